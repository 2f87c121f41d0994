//! The tools process: serves the agent's tools in the guest, as a user of its own, once the host said so.
//!
//! Must hold: it starts before any agent code, behind the tools' sandbox, with mounts in which nothing that both can write is the agent's; only
//! the agent's user is served. Must never: do anything of a call before the host's `Go`, or while a tree stands still.

mod calls;
mod connection;
mod files;
mod memory;
mod search;
mod server;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, PidfdFlags};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use abi::tools::TOOLS_SOCKET;
use verifier::plan::{Plan, TOOLS_HOME};

use crate::cgroup::{Group, Tree};
use crate::console;
use crate::control::Control;
use crate::mounts::{self, Step, StepError};
use crate::sandbox::Sandbox;
use crate::serve::Tools;
use crate::spawn::{self, SpawnError};
use crate::sys;

/// The kernel takes it last when the agent's processes use up the memory (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "-900";

/// Starts the tools process and hides its files from what PID 1 starts from now on. Once, before any agent code.
pub fn start(root: &OwnedFd, plan: &Plan, tree: &Tree) -> Result<Tools, SpawnError> {
    mounts::tools_home(root)?;
    let mut sandbox = Sandbox::of_tools(plan)?;
    let listener = bind().step(TOOLS_SOCKET)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).step("socket pair")?;
    let group = tree.group("tools".to_owned()).step("cgroup of the tools")?;
    let leader = spawn::fork_child(|words| {
        match come_up(&sandbox, &group, &listener, &theirs) {
            Ok(()) => std::mem::forget(words), // closed with the rest
            Err(error) => {
                spawn::say_failed(words, &error.to_string());
                sys::exit_now(127);
            }
        }
        let served = server::Server::new(plan, listener, theirs).and_then(|mut server| server.run());
        if let Err(error) = served {
            console::say(format_args!("tools: {error}"));
        }
        sys::exit_now(1)
    })?;
    sandbox.within(rustix::process::pidfd_open(leader, PidfdFlags::empty()).step("tools process")?);
    let mut hidden: Vec<&str> = plan.written().chain(plan.volumes.iter().map(|v| v.path.as_str())).collect();
    hidden.push(TOOLS_HOME);
    hidden.sort_unstable();
    let mut covered: Vec<&str> = Vec::new();
    for path in hidden {
        // What lies in a hidden directory is not there any more.
        if !covered
            .iter()
            .any(|above| path.strip_prefix(above).is_some_and(|r| r.is_empty() || r.starts_with('/')))
        {
            mounts::cover(root, path)?;
            covered.push(path);
        }
    }
    let control = Control::over(ours).step("socket pair")?;
    Ok(Tools::new(control, sandbox, leader))
}

fn bind() -> io::Result<UnixListener> {
    let listener = UnixListener::bind(TOOLS_SOCKET)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(TOOLS_SOCKET, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// In the child: everything that makes it the tools process, and no descriptor but its own two and the console.
fn come_up(
    sandbox: &Sandbox,
    group: &Group,
    listener: &UnixListener,
    control: &OwnedFd,
) -> Result<(), StepError> {
    rustix::process::setsid().step("new session")?;
    group.join().step("join the cgroup")?;
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        // Not a wall: without it the agent can only end its own life sooner.
        console::say(format_args!("tools: oom_score_adj: {error}"));
    }
    sys::unshare_mounts_and_ipc().step("mounts of its own")?;
    mounts::own_temporary()?;
    let null = File::options().read(true).write(true).open("/dev/null").step("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd()).step("standard input")?;
    rustix::stdio::dup2_stdout(null.as_fd()).step("standard output")?;
    sys::default_signals().step("signals")?;
    Sandbox::bound()?;
    sandbox.enter(c"/")?;
    // The filter and Landlock keep its own runs from it; this does once more.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("not dumpable")?;
    sys::close_from(3, &[listener.as_fd(), control.as_fd()]).step("close descriptors")?;
    std::mem::forget(null); // closed with the rest
    Ok(())
}
