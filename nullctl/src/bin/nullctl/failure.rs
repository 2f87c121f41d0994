//! How a command fails: the message, the rule, the remedy and the exit status. The statuses are in docs/nullctl.md.

use abi::rpc::{Code, Explanation, RpcError};
use std::io::{self, Write};

/// Exit statuses.
pub mod status {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const UNREACHABLE: u8 = 3;
    pub const DENIED: u8 = 4;
    pub const NOT_FOUND: u8 = 5;
    pub const TIMEOUT: u8 = 6;
    /// `agent exec` when the program ran longer than `--timeout`, as timeout(1) says it.
    pub const EXEC_TIMEOUT: u8 = 124;
    /// `agent exec` when the program could not be run.
    pub const EXEC: u8 = 125;
}

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    pub exit: u8,
    /// None: everything was said already.
    pub error: Option<RpcError>,
}

impl Failure {
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::local(status::USAGE, message, "", remedy)
    }

    /// Something that nullctl found by itself.
    pub fn local(
        exit: u8,
        message: impl Into<String>,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Failure {
        let code = match exit {
            status::DENIED => Code::DENIED,
            status::TIMEOUT => Code::TIMEOUT,
            status::UNREACHABLE => Code::UNAVAILABLE,
            status::USAGE => Code::INVALID_REQUEST,
            _ => Code::FAILED,
        };
        Failure { exit, error: Some(RpcError::new(code, message).explained(rule, remedy)) }
    }

    /// What the node answered.
    pub fn node(error: RpcError) -> Failure {
        let exit = match error.code {
            Code::DENIED => status::DENIED,
            Code::NOT_FOUND | Code::UNKNOWN_METHOD => status::NOT_FOUND,
            Code::TIMEOUT => status::TIMEOUT,
            _ => status::FAILED,
        };
        Failure { exit, error: Some(error) }
    }

    /// An exit status without a message.
    pub fn quiet(exit: u8) -> Failure {
        Failure { exit, error: None }
    }

    /// The same failure with another exit status.
    pub fn with_exit(mut self, exit: u8) -> Failure {
        self.exit = exit;
        self
    }

    /// Says it on standard error.
    pub fn show(&self, json: bool) {
        let Some(error) = &self.error else { return };
        let text =
            if json { serde_json::json!({ "error": error }).to_string() + "\n" } else { in_words(error) };
        let _ = io::stderr().write_all(text.as_bytes()); // nobody is left to tell
    }
}

fn in_words(error: &RpcError) -> String {
    let mut text = format!("nullctl: {}\n", crate::print::visible(&error.message));
    if let Some(Explanation { rule, remedy }) = &error.data {
        for (label, line) in [("rule:   ", rule), ("remedy: ", remedy)] {
            if !line.is_empty() {
                text.push_str(&format!("  {label}{}\n", crate::print::visible(line)));
            }
        }
    }
    text
}

impl From<io::Error> for Failure {
    /// Writing to standard output failed. A reader that has gone (`| head`) ends the command like SIGPIPE would.
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::quiet(128 + 13);
        }
        Failure::local(status::FAILED, format!("standard output: {error}"), "", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refusal_has_its_exit_status() {
        for (code, exit) in [
            (Code::DENIED, 4),
            (Code::NOT_FOUND, 5),
            (Code::TIMEOUT, 6),
            (Code::CONFLICT, 1),
            (Code::LIMIT, 1),
            (Code::FAILED, 1),
            (Code::UNAVAILABLE, 1),
            (Code::INVALID_PARAMS, 1),
        ] {
            assert_eq!(Failure::node(RpcError::new(code, "x")).exit, exit, "{code:?}");
        }
    }

    #[test]
    fn a_refusal_is_three_lines_and_cannot_forge_a_fourth() {
        let error = RpcError::new(Code::DENIED, "no\nrule: forged").explained("r", "do this");
        assert_eq!(in_words(&error), "nullctl: no\\nrule: forged\n  rule:   r\n  remedy: do this\n");
    }
}
