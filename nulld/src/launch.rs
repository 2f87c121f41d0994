//! From nulld's fork to the service's program. `nulld launch` runs in the new process, before the service's own program,
//! and gives up everything the service does not need.
//!
//! It is a program start of its own so that all of this is ordinary, single-threaded code that can fail with a message in the
//! service's log, and nothing runs between fork and exec inside PID 1.
//!
//! Must hold: the service gets descriptors 0 to 5 and no other, its own session, cgroup and uid, the capabilities of its
//! configuration and no other in any set, and NULLBOX_SERVICE as its whole environment.
//! Must never: start a service that could not be reduced.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use abi::door::{DOOR_FD, NOTIFY_FD, PEERS_FD};
use abi::log;
use abi::wire::{Connection, WireError};
use nix::sys::signal::SigSet;
use rustix::io::FdFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

/// Descriptors a service may have open; cage and egress hold a few for each VM and connection.
const OPEN_FILES_MAX: u64 = 16 * 1024;

/// What to start, as nulld tells the new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub name: String,
    pub path: String,
    pub args: Vec<String>,
    pub uid: u32,
    pub capabilities: Vec<String>,
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
    match prepare() {
        Ok(spec) => {
            let error = Command::new(&spec.path)
                .args(&spec.args)
                .env_clear()
                .env("NULLBOX_SERVICE", &spec.name)
                .exec();
            LaunchError::Step { step: "execute the program of the service", error }
        }
        Err(error) => error,
    }
}

fn prepare() -> Result<Spec, LaunchError> {
    let (spec, fds) = receive()?;
    let kept = parse_capabilities(&spec.capabilities)?;
    std::fs::write(spec.cgroup.join("cgroup.procs"), "0")
        .map_err(|error| LaunchError::Step { step: "join the cgroup", error })?;
    place(fds)?;
    // The loop's signals are blocked in PID 1, and a mask outlives exec.
    SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| LaunchError::Step { step: "unblock signals", error: errno.into() })?;
    rustix::process::setsid().map_err(at("make a session"))?;
    rustix::process::chdir("/").map_err(at("change to /"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, OPEN_FILES_MAX)?;
    reduce(spec.uid, kept)?;
    Ok(spec)
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

fn limit(resource: Resource, most: u64) -> Result<(), LaunchError> {
    let both = Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::setrlimit(resource, both).map_err(at("set a resource limit"))
}

/// Gives up users, groups and capabilities. The order matters: the bounding set while CAP_SETPCAP is held, ids while
/// capabilities survive the change, then the sets themselves.
fn reduce(uid: u32, kept: CapabilitySet) -> Result<(), LaunchError> {
    use rustix::thread;
    let last = last_capability()?;
    for number in 0..=last {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(one) {
            thread::remove_capability_from_bounding_set(one).map_err(at("drop a bounding capability"))?;
        }
    }
    thread::set_keep_capabilities(true).map_err(at("keep capabilities"))?;
    thread::set_thread_groups(&[]).map_err(at("drop groups"))?;
    thread::set_thread_gid(rustix::process::Gid::from_raw(uid)).map_err(at("change group"))?;
    thread::set_thread_uid(rustix::process::Uid::from_raw(uid)).map_err(at("change user"))?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    thread::set_capabilities(None, sets).map_err(at("set capabilities"))?;
    thread::clear_ambient_capability_set().map_err(at("clear ambient capabilities"))?;
    for one in kept.iter() {
        thread::configure_capability_in_ambient_set(one, true).map_err(at("raise an ambient capability"))?;
    }
    thread::set_no_new_privs(true).map_err(at("set no_new_privs"))
}

/// The highest capability this kernel knows.
fn last_capability() -> Result<u32, LaunchError> {
    let path = Path::new("/proc/sys/kernel/cap_last_cap");
    let fail = |error| LaunchError::Step { step: "read /proc/sys/kernel/cap_last_cap", error };
    let text = std::fs::read_to_string(path).map_err(fail)?;
    match text.trim().parse() {
        Ok(last) if last < 64 => Ok(last),
        _ => Err(fail(io::Error::other("not a number below 64"))),
    }
}

/// Names as in capabilities(7), lower case, without `cap_`.
pub fn parse_capabilities(names: &[String]) -> Result<CapabilitySet, LaunchError> {
    let mut set = CapabilitySet::empty();
    for name in names {
        let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let one = is_plain.then(|| CapabilitySet::from_name(&name.to_ascii_uppercase()));
        match one.flatten() {
            Some(one) => set |= one,
            None => return Err(LaunchError::Capability(name.chars().take(64).collect())),
        }
    }
    Ok(set)
}

/// Entry of `nulld launch`: the error goes to the service's log.
pub fn main() -> i32 {
    let error = become_service();
    log::error("launch_failed", &[("error", &error)]);
    LAUNCH_FAILED
}

/// Exit code of a service whose program could not be started.
pub const LAUNCH_FAILED: i32 = 126;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_as_in_the_manual() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let set = parse_capabilities(&names(&["net_admin", "sys_admin"])).unwrap();
        assert_eq!(set, CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN);
        for bad in ["NET_ADMIN", "cap_net_admin", "all", "", "0x1"] {
            assert!(parse_capabilities(&names(&[bad])).is_err(), "{bad}");
        }
    }
}
