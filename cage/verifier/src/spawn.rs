//! A channel gets its process: in its cgroup, behind the sandbox, with pipes or a terminal.
//!
//! Must hold: no descriptor of the verifier reaches what runs there; a child that fails before that says where, and nothing ran.

use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::guest::{FilesJob, TerminalSize};
use verifier::plan::Program;

use crate::cgroup::Group;
use crate::changes::{self, Own};
use crate::copy;
use crate::disks::View;
use crate::mounts::{Step, StepError};
use crate::sandbox::Sandbox;
use crate::sys;
use crate::terminal;

/// A running process and the verifier's ends of its input and outputs, non-blocking.
#[derive(Debug)]
pub struct Spawned {
    pub leader: Pid,
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    /// None: all output is standard output.
    pub stderr: Option<OwnedFd>,
    pub terminal: bool,
}

/// What a child does.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// Becomes a program, behind the sandbox.
    Program(&'a Program),
    /// Works on files, behind the sandbox; nothing is executed.
    Files(&'a FilesJob),
    /// Sends what differs from the rootfs: as root, since a workspace is compared as it is, and able to do no more than read.
    Changes(&'a View, &'a Own),
    /// The same of a task's tree, with contents.
    Claim(&'a View),
}

/// What a process reads from and writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// Two pipes; the input is at its end at once.
    Outputs,
    Pipes,
    /// An input, and one pipe for both outputs.
    Merged,
    Terminal(TerminalSize),
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

/// Starts a child. Returns when it is behind its walls, a program when its exec has happened; or when that failed.
pub fn spawn(work: Work<'_>, sandbox: &Sandbox, group: &Group, stdio: Stdio) -> Result<Spawned, SpawnError> {
    let (Ends { stdin, stdout, stderr }, childs) = ends(stdio, sandbox.user())?;
    let terminal = matches!(stdio, Stdio::Terminal(_));
    let leader = fork_child(|words| run_child(work, sandbox, group, childs, terminal, words))?;
    Ok(Spawned { leader, stdin, stdout, stderr, terminal })
}

/// Forks a child that says why it did not come up, or closes its end of a pipe when it did.
pub fn fork_child(child: impl FnOnce(OwnedFd)) -> Result<Pid, SpawnError> {
    let (last_words, child_words) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("status pipe")?;
    let Some(pid) = sys::fork().step("fork")? else {
        drop(last_words);
        child(child_words);
        sys::exit_now(127)
    };
    drop((child_words, child));
    let mut words = Vec::new();
    // Ends when the child is ready or dies; what stands between takes no input and waits for nobody.
    File::from(last_words).take(LAST_WORDS_BYTES_MAX).read_to_end(&mut words).step("status pipe")?;
    match words.split_first() {
        Some((&REFUSED, _)) => return Err(SpawnError::Refused),
        Some((_, words)) => return Err(SpawnError::Child(String::from_utf8_lossy(words).into_owned())),
        None => {}
    }
    Ok(Pid::from_raw(pid).ok_or_else(|| io::Error::other("no pid")).step("fork")?)
}

struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

/// Our ends and the child's three.
fn ends(stdio: Stdio, owner: u32) -> Result<(Ends, [OwnedFd; 3]), StepError> {
    if let Stdio::Terminal(size) = stdio {
        let (master, agent) = terminal::open(size).step("terminal")?;
        let copy = |fd: &OwnedFd| fd.try_clone().step("terminal");
        let childs = [copy(&agent)?, copy(&agent)?, agent];
        return Ok((Ends { stdin: Some(copy(&master)?), stdout: master, stderr: None }, childs));
    }
    let (stdout, child_stdout) = output_pipe(owner).step("output pipe")?;
    let (stderr, child_stderr) = match stdio {
        Stdio::Merged => (None, child_stdout.try_clone().step("output pipe")?),
        _ => output_pipe(owner).map(|(ours, childs)| (Some(ours), childs)).step("output pipe")?,
    };
    let (child_stdin, stdin) = match stdio {
        Stdio::Pipes | Stdio::Merged => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("input pipe")?;
            (owned_by(owner, read, &write).step("input pipe")?, Some(write))
        }
        _ => (OwnedFd::from(File::open("/dev/null").step("/dev/null")?), None),
    };
    Ok((Ends { stdin, stdout, stderr }, [child_stdin, child_stdout, child_stderr]))
}

/// Both ends of a pipe belong to the child's user, so that it may open /dev/stdout again; ours does not block.
fn owned_by(owner: u32, child: OwnedFd, ours: &OwnedFd) -> io::Result<OwnedFd> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner), rustix::fs::Gid::from_raw(owner));
    rustix::fs::fchown(&child, Some(uid), Some(gid))?;
    rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
    Ok(child)
}

fn output_pipe(owner: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let write = owned_by(owner, write, &read)?;
    Ok((read, write))
}

fn run_child(
    work: Work<'_>,
    sandbox: &Sandbox,
    group: &Group,
    stdio: [OwnedFd; 3],
    terminal: bool,
    words: OwnedFd,
) -> ! {
    if let Err(error) = become_child(group, &stdio, terminal).and_then(|()| wall_in(work, sandbox)) {
        say(words, FAILED, &error.to_string());
        sys::exit_now(127);
    }
    match work {
        Work::Program(program) => {
            let error = sys::execve(&program.path(), &program.args, &program.env);
            match error.kind() {
                io::ErrorKind::PermissionDenied => say(words, REFUSED, ""),
                _ => say(words, FAILED, &format!("execute `{}`: {error}", program.path().to_string_lossy())),
            }
            sys::exit_now(126)
        }
        Work::Files(job) => go_on(&[], words, || copy::run(job)),
        Work::Changes(view, own) => {
            go_on(&[view.lower.as_fd(), view.upper.as_fd()], words, || changes::run(view, own))
        }
        Work::Claim(view) => go_on(&[view.lower.as_fd(), view.upper.as_fd()], words, || changes::claim(view)),
    }
}

/// A child that stays what it is: with no descriptor of the verifier's but its own (one left open would keep another channel's
/// input from ending), and with the parent no longer waiting.
fn go_on(keep: &[BorrowedFd<'_>], words: OwnedFd, job: impl FnOnce() -> i32) -> ! {
    match sys::close_from(3, keep) {
        Ok(()) => std::mem::forget(words), // closed with the rest
        Err(error) => {
            say(words, FAILED, &format!("close descriptors: {error}"));
            sys::exit_now(127);
        }
    }
    sys::exit_now(job())
}

/// In a child: a session of its own, in its cgroup, with its input and outputs, and the signals that programs expect.
fn become_child(group: &Group, stdio: &[OwnedFd; 3], terminal: bool) -> Result<(), StepError> {
    rustix::process::setsid().step("new session")?;
    group.join().step("join the cgroup")?;
    let [stdin, stdout, stderr] = stdio;
    if terminal {
        rustix::process::ioctl_tiocsctty(stdin).step("controlling terminal")?;
    }
    rustix::stdio::dup2_stdin(stdin.as_fd()).step("standard input")?;
    rustix::stdio::dup2_stdout(stdout.as_fd()).step("standard output")?;
    rustix::stdio::dup2_stderr(stderr.as_fd()).step("standard error")?;
    sys::close_on_exec_from(3).step("close descriptors")?;
    sys::default_signals().step("signals")?;
    Sandbox::bound()
}

fn wall_in(work: Work<'_>, sandbox: &Sandbox) -> Result<(), StepError> {
    match work {
        Work::Program(program) => sandbox.enter(&program.workdir),
        Work::Files(_) => sandbox.enter(c"/"),
        Work::Changes(..) | Work::Claim(_) => sandbox.enter_as_reader(),
    }
}

/// A child's last words: what kept it from coming up.
pub fn say_failed(words: OwnedFd, text: &str) {
    say(words, FAILED, text);
}

fn say(words: OwnedFd, kind: u8, text: &str) {
    let mut message = vec![kind];
    message.extend(text.bytes().take(LAST_WORDS_BYTES_MAX as usize - 1));
    // With the parent gone there is nobody to tell.
    let _ = File::from(words).write_all(&message);
}
