//! A program becomes a process of the agent: in its cgroup, behind the sandbox, its outputs in pipes.
//!
//! Must hold: no descriptor of the verifier crosses exec; a child that fails before exec says where, and nothing ran.

use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use abi::guest::GUEST_UID;
use verifier::plan::Program;

use crate::cgroup::Group;
use crate::mounts::{Step, StepError};
use crate::sandbox::Sandbox;
use crate::sys;

/// A running process and the verifier's ends of its pipes, non-blocking.
#[derive(Debug)]
pub struct Spawned {
    pub leader: Pid,
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Where a process reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// End of file at once.
    Null,
    Pipe,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel refused to execute the file: Landlock or permissions.
    #[error("permission denied")]
    Refused,
    #[error("{0}")]
    Child(String),
    #[error(transparent)]
    Step(#[from] StepError),
}

/// First byte of a child's last words: exec was refused; or another failure, in words.
const REFUSED: u8 = b'r';
const FAILED: u8 = b'f';
const LAST_WORDS_BYTES_MAX: u64 = 1024;

/// Starts a program. Returns when its exec has happened or failed.
pub fn spawn(
    program: &Program,
    sandbox: &Sandbox,
    group: &Group,
    stdin: Stdin,
) -> Result<Spawned, SpawnError> {
    let (stdout, child_stdout) = output_pipe().step("output pipe")?;
    let (stderr, child_stderr) = output_pipe().step("output pipe")?;
    let (child_stdin, stdin) = match stdin {
        Stdin::Null => (OwnedFd::from(File::open("/dev/null").step("/dev/null")?), None),
        Stdin::Pipe => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("input pipe")?;
            (owned_by_agent(read, &write).step("input pipe")?, Some(write))
        }
    };
    let (last_words, child_words) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("status pipe")?;
    let Some(pid) = sys::fork().step("fork")? else {
        drop(last_words);
        run_child(program, sandbox, group, [child_stdin, child_stdout, child_stderr], child_words);
    };
    drop((child_words, child_stdin, child_stdout, child_stderr));
    let mut words = Vec::new();
    // Ends when the child execs or dies; what stands between takes no input and waits for nobody.
    File::from(last_words).take(LAST_WORDS_BYTES_MAX).read_to_end(&mut words).step("status pipe")?;
    match words.split_first() {
        Some((&REFUSED, _)) => return Err(SpawnError::Refused),
        Some((_, words)) => return Err(SpawnError::Child(String::from_utf8_lossy(words).into_owned())),
        None => {}
    }
    Ok(Spawned {
        leader: Pid::from_raw(pid).ok_or_else(|| io::Error::other("no pid")).step("fork")?,
        stdin,
        stdout,
        stderr,
    })
}

/// Both ends of a pipe belong to the agent, so that it may open /dev/stdout again; ours does not block.
fn owned_by_agent(child: OwnedFd, ours: &OwnedFd) -> io::Result<OwnedFd> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(GUEST_UID), rustix::fs::Gid::from_raw(GUEST_UID));
    rustix::fs::fchown(&child, Some(uid), Some(gid))?;
    rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
    Ok(child)
}

fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let write = owned_by_agent(write, &read)?;
    Ok((read, write))
}

fn run_child(program: &Program, sandbox: &Sandbox, group: &Group, stdio: [OwnedFd; 3], words: OwnedFd) -> ! {
    let error = match become_agent(program, sandbox, group, stdio) {
        Ok(()) => sys::execve(&program.path(), &program.args, &program.env),
        Err(error) => {
            say(words, FAILED, &error.to_string());
            sys::exit_now(127);
        }
    };
    match error.kind() {
        io::ErrorKind::PermissionDenied => say(words, REFUSED, ""),
        _ => say(words, FAILED, &format!("execute `{}`: {error}", program.path().to_string_lossy())),
    }
    sys::exit_now(126);
}

fn become_agent(
    program: &Program,
    sandbox: &Sandbox,
    group: &Group,
    stdio: [OwnedFd; 3],
) -> Result<(), StepError> {
    rustix::process::setsid().step("new session")?;
    group.join().step("join the cgroup")?;
    let [stdin, stdout, stderr] = &stdio;
    rustix::stdio::dup2_stdin(stdin.as_fd()).step("standard input")?;
    rustix::stdio::dup2_stdout(stdout.as_fd()).step("standard output")?;
    rustix::stdio::dup2_stderr(stderr.as_fd()).step("standard error")?;
    sys::close_on_exec_from(3).step("close descriptors")?;
    sys::default_signals().step("signals")?;
    Sandbox::bound()?;
    sandbox.enter(&program.workdir)
}

fn say(words: OwnedFd, kind: u8, text: &str) {
    let mut message = vec![kind];
    message.extend(text.bytes().take(LAST_WORDS_BYTES_MAX as usize - 1));
    // With the parent gone there is nobody to tell.
    let _ = File::from(words).write_all(&message);
}
