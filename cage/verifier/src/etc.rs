//! The few files of /etc that the guest writes, as text.

use std::fmt::Write as _;

/// The agent's user and group name in the guest.
pub const AGENT_USER: &str = "agent";

/// resolv.conf(5): the node answers, or without a network nobody does.
pub fn resolv_conf(gateway: Option<&str>) -> String {
    match gateway {
        Some(gateway) => format!("nameserver {gateway}\noptions timeout:5 attempts:2\n"),
        None => String::from("# this agent has no network\n"),
    }
}

/// hosts(5). IPv4 only: the guest's kernel has no IPv6.
pub fn hosts(hostname: &str) -> String {
    format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n")
}

/// The line that passwd(5) or group(5) lacks for the agent's user, or none when `text` already knows the id.
pub fn account_line(text: &str, id: u32, home: Option<&str>) -> Option<String> {
    let known = text.lines().any(|line| line.split(':').nth(2) == Some(id.to_string().as_str()));
    if known {
        return None;
    }
    let mut line = String::new();
    if !text.is_empty() && !text.ends_with('\n') {
        line.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = match home {
        Some(home) => writeln!(line, "{AGENT_USER}:x:{id}:{id}::{home}:/bin/sh"),
        None => writeln!(line, "{AGENT_USER}:x:{id}:"),
    };
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_added_once() {
        let passwd = "root:x:0:0:root:/root:/bin/sh";
        let line = account_line(passwd, 1000, Some("/home/agent")).unwrap();
        assert_eq!(line, "\nagent:x:1000:1000::/home/agent:/bin/sh\n");
        assert_eq!(account_line(&format!("{passwd}{line}"), 1000, Some("/x")), None);
        assert_eq!(account_line("", 1000, None).unwrap(), "agent:x:1000:\n");
    }

    #[test]
    fn without_a_network_no_name_server_is_named() {
        assert!(!resolv_conf(None).contains("nameserver"));
        assert!(resolv_conf(Some("10.0.0.1")).starts_with("nameserver 10.0.0.1\n"));
    }
}
