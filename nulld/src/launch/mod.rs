//! From nulld's fork to the service's program. `nulld launch` runs in the new process, before the service's own program,
//! and gives up everything the service does not need: what is not granted in nulld.toml is refused.
//!
//! It is a program start of its own so that all of this is ordinary, single-threaded code that can fail with a message in the
//! service's log, and nothing runs between fork and exec inside PID 1.
//!
//! Must hold: the service gets descriptors 0 to 5 and no other, its own session, cgroup and uid, the capabilities of its
//! configuration and no other in any set, a file system of its own ([`root`]), Landlock ([`access`]), a filter of system calls
//! ([`calls`]), and NULLBOX_SERVICE as its whole environment.
//! Must never: start a service that could not be reduced.

pub mod access;
pub mod calls;
pub mod privileges;
pub mod root;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use abi::door::{DOOR_FD, NOTIFY_FD, PEERS_FD};
use abi::log;
use abi::node::ServiceConfig;
use abi::wire::{Connection, WireError};
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

/// What to start, as nulld tells the new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub name: String,
    pub config: ServiceConfig,
    pub cgroup: PathBuf,
}

/// The service's ends of what it shares with nulld.
#[derive(Debug)]
pub struct Ends<'a> {
    pub door: OwnedFd,
    pub notify: OwnedFd,
    pub peers: &'a std::os::unix::net::UnixListener,
    pub log: &'a OwnedFd,
}

/// Why a service could not be started; the step is in the text.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("cannot {step}: {error}")]
    Step { step: &'static str, error: io::Error },
    #[error("nulld's message: {0}")]
    Message(#[from] WireError),
    #[error("nulld's message: {0}")]
    Spec(#[from] serde_json::Error),
    #[error("nulld's message ended early")]
    Cut,
    #[error("descriptor {is} came where {should} belongs")]
    Place { is: i32, should: i32 },
    #[error("`{0}` is not a capability; see capabilities(7), without CAP_ and in lower case")]
    Capability(String),
    #[error("cannot grant {path}: {error}")]
    Path { path: PathBuf, error: io::Error },
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("landlock: the kernel has not all of ABI 6")]
    LandlockPartial,
    #[error(transparent)]
    Filter(#[from] seccomp::FilterError),
}

fn at(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> LaunchError {
    move |errno| LaunchError::Step { step, error: errno.into() }
}

/// In nulld: makes the process. Its pid stays the service's; nulld's reaper collects it.
pub fn spawn(spec: &Spec, ends: Ends<'_>) -> Result<u32, LaunchError> {
    let fail = |step| move |error| LaunchError::Step { step, error };
    let (near, far) = UnixStream::pair().map_err(fail("make a socket pair"))?;
    let log_copy = |step| ends.log.try_clone().map_err(fail(step));
    let child = Command::new("/proc/self/exe")
        .arg("launch")
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(far)))
        .stdout(Stdio::from(log_copy("copy the log pipe")?))
        .stderr(Stdio::from(log_copy("copy the log pipe")?))
        .spawn()
        .map_err(fail("start a process"))?;
    // If this fails, the new process sees an early end, says so in the log, and exits.
    Connection::new(near)
        .write_line_with_fds(spec, &[ends.door.as_fd(), ends.notify.as_fd(), ends.peers.as_fd()])?;
    Ok(child.id())
}

/// In the new process: reduces itself and becomes the service. Returns only on failure.
pub fn become_service() -> LaunchError {
    match prepare().and_then(|spec| start(&spec)) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Gives everything up, step by step. The order matters: the cgroup first, so that all that follows is accounted and can be
/// killed; what needs root before the identity; Landlock inside the new root; the filter last, since it allows none of this.
fn prepare() -> Result<Spec, LaunchError> {
    let (spec, fds) = receive()?;
    let config = &spec.config;
    let kept = privileges::parse_capabilities(&config.capabilities)?;
    std::fs::write(spec.cgroup.join("cgroup.procs"), "0")
        .map_err(|error| LaunchError::Step { step: "join the cgroup", error })?;
    place(fds)?;
    // The loop's signals are blocked in PID 1, and a mask outlives exec.
    SigSet::empty().thread_set_mask().map_err(|errno| step("unblock signals", errno))?;
    rustix::process::setsid().map_err(at("make a session"))?;
    privileges::set_oom_score(config.oom_score)?;
    let last_capability = privileges::last_capability()?;
    let present = match config.unconfined {
        true => {
            log::warning("unconfined", &[("service", &spec.name)]);
            None
        }
        false => {
            leave_namespaces(config)?;
            Some(root::enter(&spec.name, config)?)
        }
    };
    rustix::process::chdir("/").map_err(at("change to /"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    privileges::limit(config)?;
    privileges::reduce(config.uid, kept, last_capability)?;
    if let Some(present) = present {
        if !config.makes_mounts {
            access::enter(config, &present)?;
        }
        calls::filter(&config.system_calls)?.install()?;
    }
    Ok(spec)
}

fn step(step: &'static str, errno: nix::errno::Errno) -> LaunchError {
    LaunchError::Step { step, error: errno.into() }
}

/// Mounts and System V objects of its own; without `network` also a network of its own, in which there is nothing.
fn leave_namespaces(config: &ServiceConfig) -> Result<(), LaunchError> {
    let mut own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if !config.network {
        own |= CloneFlags::CLONE_NEWNET;
    }
    nix::sched::unshare(own).map_err(|errno| step("leave the node's namespaces", errno))
}

/// The program takes the place of this one, by the one call that the filter lets through for it.
fn start(spec: &Spec) -> Result<std::convert::Infallible, LaunchError> {
    let text = |text: &str| {
        CString::new(text)
            .map_err(|error| LaunchError::Step { step: "pass an argument", error: error.into() })
    };
    let path = text(&spec.config.path)?;
    let mut args = vec![path.clone()];
    for arg in &spec.config.args {
        args.push(text(arg)?);
    }
    let env = [text(&format!("NULLBOX_SERVICE={}", spec.name))?];
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    nix::unistd::execveat(nix::fcntl::AT_FDCWD, &path, &args, &env, flags)
        .map_err(|errno| step("execute the program of the service", errno))
}

/// Reads the spec and its three descriptors from standard input, which becomes /dev/null.
fn receive() -> Result<(Spec, Vec<OwnedFd>), LaunchError> {
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| LaunchError::Step { step: "copy standard input", error })?;
    let mut connection = Connection::new(UnixStream::from(stdin));
    let line = connection.read_line()?.ok_or(LaunchError::Cut)?;
    let fds = connection.take_fds();
    drop(connection);
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(at("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(at("replace standard input"))?;
    Ok((serde_json::from_str(&line)?, fds))
}

/// Puts the descriptors at 3, 4 and 5 by taking the lowest free number each time, and checks that it did.
fn place(fds: Vec<OwnedFd>) -> Result<(), LaunchError> {
    // First all of them out of the way, so that each number is free when its turn comes.
    let mut high = Vec::new();
    for fd in &fds {
        high.push(rustix::io::fcntl_dupfd_cloexec(fd, 64).map_err(at("move a descriptor"))?);
    }
    drop(fds);
    for (fd, should) in high.iter().zip([DOOR_FD, NOTIFY_FD, PEERS_FD]) {
        let placed = rustix::io::fcntl_dupfd_cloexec(fd, should).map_err(at("place a descriptor"))?;
        let is = placed.as_raw_fd();
        if is != should {
            return Err(LaunchError::Place { is, should });
        }
        rustix::io::fcntl_setfd(&placed, FdFlags::empty()).map_err(at("keep a descriptor"))?;
        let _ = placed.into_raw_fd(); // it belongs to the service's program now
    }
    // Whatever else came from nulld, by a mistake of any library, ends with exec.
    crate::sys::close_on_exec_from(PEERS_FD + 1)
        .map_err(|error| LaunchError::Step { step: "mark further descriptors", error })?;
    match high.len() {
        3 => Ok(()),
        _ => Err(LaunchError::Cut),
    }
}

/// Entry of `nulld launch`: the error goes to the service's log.
pub fn main() -> i32 {
    let error = become_service();
    log::error("launch_failed", &[("error", &error)]);
    LAUNCH_FAILED
}

/// Exit code of a service whose program could not be started.
pub const LAUNCH_FAILED: i32 = 126;
