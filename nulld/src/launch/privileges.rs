//! Who a service is, what it may ask of the kernel, and how much of it.
//!
//! Must hold: after [`reduce`] no capability but the granted ones is in any set, and none can come back.

use std::io;
use std::path::Path;

use abi::node::ServiceConfig;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{LaunchError, at};

/// Says how readily the kernel takes this process when memory is out (proc_pid_oom_score_adj(5)). It stays over exec.
pub fn set_oom_score(score: i32) -> Result<(), LaunchError> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| LaunchError::Step { step: "set the oom score", error })
}

/// Sets the limits of setrlimit(2).
pub fn limit(config: &ServiceConfig) -> Result<(), LaunchError> {
    let mut limits = vec![
        (Resource::Core, 0),
        (Resource::Nofile, u64::from(config.open_files_max)),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Rtprio, 0),
        (Resource::Nice, 0),
        (Resource::Sigpending, 1024),
    ];
    // Counted per user: root is also nulld. The cgroup's pids.max holds for every service.
    if config.uid != 0 {
        limits.push((Resource::Nproc, u64::from(config.tasks_max)));
    }
    for (resource, most) in limits {
        let both = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(resource, both).map_err(at("set a resource limit"))?;
    }
    Ok(())
}

/// Gives up users, groups and capabilities. The order matters: the bounding set while CAP_SETPCAP is held, ids while
/// capabilities survive the change, then the sets themselves. `last`: [`last_capability`], which takes the node's /proc.
pub fn reduce(uid: u32, kept: CapabilitySet, last: u32) -> Result<(), LaunchError> {
    use rustix::thread;
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
pub fn last_capability() -> Result<u32, LaunchError> {
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
