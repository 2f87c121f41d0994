//! Landlock in the jail (Documentation/userspace-api/landlock.rst, ABI 6): the files of the jail's root once more, each with what
//! the VM does with it, checked at each open.
//!
//! Must hold: every right that this ABI knows is refused but for those given here; no TCP port; no abstract socket and no
//! signal to anyone outside. A kernel that cannot do that starts no VM.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use std::io;

use super::{JailError, JailSpec, at, root};

/// What the node's kernel, 6.12, has.
const KERNEL: ABI = ABI::V6;

fn refused(error: RulesetError) -> JailError {
    at("landlock")(io::Error::other(error))
}

/// The files of a jail and the rights on them. Sockets are not here: Landlock has no right to connect by path, and none is needed.
fn grants(spec: &JailSpec) -> Vec<(String, BitFlags<AccessFs>)> {
    let read = BitFlags::from(AccessFs::ReadFile);
    let disk = AccessFs::ReadFile | AccessFs::WriteFile;
    let device = disk | AccessFs::IoctlDev;
    let mut grants = vec![(root::KERNEL.to_owned(), read), (root::INITRAMFS.to_owned(), read)];
    grants.extend((0..spec.rootfs.len()).map(|number| (root::layer(number), read)));
    grants.push((root::SCRATCH.to_owned(), disk));
    let volumes = spec.volumes.iter().enumerate();
    grants.extend(volumes.map(|(n, volume)| (root::volume(n), if volume.read_only { read } else { disk })));
    grants.push((root::KVM.to_owned(), device));
    grants.extend(spec.network.iter().map(|_| (root::TUN.to_owned(), device)));
    grants
}

/// Takes the rules on, for this thread and all that it starts, for ever. Call inside the jail's root.
pub fn enter(spec: &JailSpec) -> Result<(), JailError> {
    let mut rules = create().map_err(refused)?;
    for (path, rights) in grants(spec) {
        // Not the crate's PathFd: with musl the standard library takes O_PATH out of an open's flags.
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(at("landlock: a file of the jail"))?;
        rules = rules.add_rule(PathBeneath::new(file, rights)).map_err(refused)?;
    }
    match rules.restrict_self().map_err(refused)?.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(at("landlock")(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel enforces it in part only",
        ))),
    }
}

fn create() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(KERNEL))?
        .handle_access(AccessNet::from_all(KERNEL))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()
}
