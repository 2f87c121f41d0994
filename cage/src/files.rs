//! `agent.read_files`, `agent.write_files` and `agent.diff`: records on their way between a guest and a caller.
//!
//! Must hold: the receipt of a copy is durable before the guest hears of it. Must never: look into a record. What a guest says of
//! its files is for the caller to judge (`abi::files`); here it is bytes within a window.

use abi::control::{AgentFiles, AgentRef};
use abi::door::{Call, Outcome};
use abi::guest::FilesJob;
use abi::ids::AgentName;
use abi::ledger::Event;
use abi::limits;
use abi::rpc::{Code, RpcError};
use std::sync::Arc;

use crate::agents::Cage;
use crate::exec::{Living, receipt};
use crate::joint::{self, Terms};

/// Characters of a path that the ledger keeps.
const RECORDED_CHARS_MAX: usize = 1024;

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let by = call.caller.to_string();
    match call.request.method.as_str() {
        "agent.read_files" => {
            let AgentFiles { name, path } = call.request.params()?;
            let living = Living::find(cage, &name, false)?;
            let recorded = checked(&path)?;
            receipt(
                cage,
                Event::FilesRead { instance: living.instance.clone(), path: recorded, by },
                "copy",
            )?;
            work(cage, call, &living, &name, FilesJob::Read { path })
        }
        "agent.write_files" => {
            let AgentFiles { name, path } = call.request.params()?;
            let living = Living::find(cage, &name, false)?;
            let recorded = checked(&path)?;
            receipt(
                cage,
                Event::FilesWritten { instance: living.instance.clone(), path: recorded, by },
                "copy",
            )?;
            work(cage, call, &living, &name, FilesJob::Write { path })
        }
        _ => {
            let AgentRef { name } = call.request.params()?;
            let living = Living::find(cage, &name, false)?;
            work(cage, call, &living, &name, FilesJob::Changes)
        }
    }
}

fn work(
    cage: &Cage,
    call: Call<'_>,
    living: &Living,
    name: &AgentName,
    job: FilesJob,
) -> Result<Outcome, RpcError> {
    let (what, detail, input) = match &job {
        FilesJob::Read { path } => ("files_read", path.clone(), false),
        FilesJob::Write { path } => ("files_written", path.clone(), true),
        FilesJob::Changes => ("diff", String::new(), false),
        FilesJob::Claim => ("claim", String::new(), false),
    };
    let channel = living.session.files(job)?;
    cage.events.push(name, what, detail);
    joint::join(call, &living.session, channel, Terms { input, ..Terms::default() })
}

/// A path as the ledger keeps it, if it may be one.
fn checked(path: &str) -> Result<String, RpcError> {
    if !path.starts_with('/') || path.len() > limits::COPY_PATH_BYTES_MAX || path.contains('\0') {
        let shown: String = path.chars().take(64).flat_map(char::escape_default).collect();
        let rule = format!("an absolute path of at most {} bytes, without NUL", limits::COPY_PATH_BYTES_MAX);
        return Err(RpcError::new(Code::INVALID_PARAMS, format!("`{shown}` is not a path in the agent"))
            .explained(rule, "write for example /data/out"));
    }
    Ok(path.chars().take(RECORDED_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_bounded_paths_reach_a_guest() {
        assert_eq!(checked("/data/out").unwrap(), "/data/out");
        assert_eq!(checked(&format!("/{}", "x".repeat(4094))).unwrap().len(), RECORDED_CHARS_MAX);
        for path in ["", "data", "../x", "/a\0b", &format!("/{}", "x".repeat(4095))] {
            assert!(checked(path).is_err(), "{}", path.len());
        }
    }
}
