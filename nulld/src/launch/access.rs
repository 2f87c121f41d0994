//! Landlock around a service (Documentation/userspace-api/landlock.rst, ABI 6): the same grants once more, checked at each use by
//! path and port, and no abstract socket or signal to anyone outside.
//!
//! Must hold: every right that this ABI knows is refused unless a grant gives it. A kernel that cannot do that starts no service.

use std::fs;
use std::path::Path;

use abi::node::{Port, PortName, Proc, ServiceConfig};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};

use super::LaunchError;
use super::root::{Grant, Kind};

/// What the node's kernel, 6.12, has.
const KERNEL: ABI = ABI::V6;

fn rights(kind: Kind) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match kind {
        Kind::Read => read,
        Kind::Write => {
            let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
            AccessFs::from_all(KERNEL) & !never
        }
        Kind::Execute => read | AccessFs::Execute,
        Kind::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev,
    }
}

/// Takes the rules on, for this thread and all that it starts, for ever. Call inside the service's root.
pub fn enter(config: &ServiceConfig, present: &[Grant]) -> Result<(), LaunchError> {
    let status = rules(config, present)?.restrict_self().map_err(LaunchError::Landlock)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(LaunchError::LandlockPartial),
    }
}

fn rules(config: &ServiceConfig, present: &[Grant]) -> Result<RulesetCreated, LaunchError> {
    let connects_anywhere = config.tcp_connect.contains(&Port::Named(PortName::Any));
    let ports = match connects_anywhere {
        true => AccessNet::BindTcp.into(),
        false => AccessNet::from_all(KERNEL),
    };
    let mut rules = create(ports).map_err(LaunchError::Landlock)?;
    for grant in present {
        rules = allow(rules, &grant.path, rights(grant.kind))?;
    }
    if config.proc != Proc::None {
        rules = allow(rules, Path::new("/proc"), rights(Kind::Read))?;
    }
    if config.proc == Proc::Net {
        let change = rights(Kind::Read) | AccessFs::WriteFile | AccessFs::Truncate;
        rules = allow(rules, Path::new("/proc/sys/net"), change)?;
    }
    let listen = config.tcp_listen.iter().map(|port| (port, AccessNet::BindTcp));
    let connect = config.tcp_connect.iter().map(|port| (port, AccessNet::ConnectTcp));
    for (port, right) in listen.chain(connect.filter(|_| !connects_anywhere)) {
        if let Port::Number(number) = port {
            rules = rules.add_rule(NetPort::new(*number, right)).map_err(LaunchError::Landlock)?;
        }
    }
    Ok(rules)
}

fn create(ports: BitFlags<AccessNet>) -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(KERNEL))?
        .handle_access(ports)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, LaunchError> {
    // A link that leads nowhere in this root grants nothing.
    let Ok(meta) = fs::metadata(path) else { return Ok(rules) };
    let rights = if meta.is_dir() { rights } else { rights & AccessFs::from_file(KERNEL) };
    // Not the crate's PathFd: with musl the standard library takes O_PATH out of an open's flags (musl's O_ACCMODE has it), and
    // a socket cannot be opened without it.
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| LaunchError::Path { path: path.to_owned(), error: errno.into() })?;
    rules.add_rule(PathBeneath::new(place, rights)).map_err(LaunchError::Landlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_can_be_written_can_be_executed_and_nobody_makes_devices() {
        for kind in [Kind::Read, Kind::Write, Kind::Execute, Kind::Device] {
            let rights = rights(kind);
            assert!(!rights.intersects(AccessFs::MakeChar | AccessFs::MakeBlock), "{kind:?}");
            assert!(
                !(rights.contains(AccessFs::Execute) && rights.contains(AccessFs::WriteFile)),
                "{kind:?}"
            );
            assert_eq!(rights.contains(AccessFs::Execute), kind == Kind::Execute);
        }
    }
}
