//! Resource limits and identity of a jailed process.
//!
//! Must hold: after [`drop`] no capability is left in any set and none can come back.

use abi::limits;
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{JailError, JailSpec, at};

/// Descriptors a VMM may hold: its files and devices (about 40), and one for each vsock connection of its guest.
const DESCRIPTORS_MAX: u64 = 256;

/// Sets the limits of setrlimit(2) that the cgroup does not know.
pub fn limit(spec: &JailSpec) -> Result<(), JailError> {
    let longest = spec.volumes.iter().map(|disk| disk.bytes).fold(spec.scratch_bytes, u64::max);
    let limits = [
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS_MAX),
        // No file grows: each disk has its full length already.
        (Resource::Fsize, longest),
        (Resource::Nproc, u64::from(limits::VMM_PIDS_MAX)),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Sigpending, 128),
        (Resource::Rtprio, 0),
        (Resource::Nice, 0),
    ];
    for (resource, bound) in limits {
        let both = Rlimit { current: Some(bound), maximum: Some(bound) };
        rustix::process::setrlimit(resource, both).map_err(at("limits"))?;
    }
    Ok(())
}

/// Becomes `uid` with no group beside its own, no capability, and no way to gain one.
pub fn drop(uid: u32) -> Result<(), JailError> {
    // Capabilities the running kernel does not know answer EINVAL: then all known ones are gone.
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(at("privileges: bounding set")(error)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(at("privileges: ambient set"))?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[]).map_err(at("privileges: groups"))?;
    rustix::thread::set_thread_res_gid(Some(gid), Some(gid), Some(gid)).map_err(at("privileges: group"))?;
    rustix::thread::set_thread_res_uid(Some(uid), Some(uid), Some(uid)).map_err(at("privileges: user"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(at("privileges: capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(at("privileges: no_new_privs"))?;
    // The change of identity cleared both (prctl(2)), so they are set after it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(at("privileges: dumpable"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at("privileges: parent"))
}
