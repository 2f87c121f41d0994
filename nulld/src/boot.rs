//! The phases of the boot up to the point where services start.
//!
//! Must hold: each phase is listed with time and outcome; after a failed one nothing else is begun; what is lacking stands in
//! the phase and among the facts. Must never: make up for a failed phase silently, or write to a state volume in doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use abi::control::Severity;
use abi::identity::UPLINK_UID;
use abi::log::Level;
use abi::node::{NetworkMode, NodeConfig, ServiceConfig};

use crate::builtin;
use crate::config;
use crate::journal::Journal;
use crate::mounts;
use crate::phases::{Outcome, Phases};
use crate::sysctl;
use crate::system::Facts;
use crate::uplink;
use crate::volume::{self, Disks, Volume};

/// Seconds that `nullbox.wait_s=` may ask the boot to wait for slow disks.
const WAIT_S_MAX: u64 = 60;

/// What the first phases found out.
#[derive(Debug)]
pub struct Booted {
    pub config: NodeConfig,
}

/// Why the boot stops: the phase says it too.
#[derive(Debug)]
pub struct Halted {
    pub phase: &'static str,
    pub why: String,
}

/// The record of a boot under way.
#[derive(Debug)]
pub struct Record<'a> {
    pub phases: &'a mut Phases,
    pub journal: &'a mut Journal,
}

impl Record<'_> {
    /// Runs a phase from beginning to end. The work says what is degraded, if anything.
    fn run<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Journal) -> Result<(T, Vec<String>), String>,
    ) -> Result<T, Halted> {
        self.phases.begin(name);
        let (outcome, result) = match work(self.journal) {
            Ok((value, lacking)) if lacking.is_empty() => (Outcome::Ok, Ok(value)),
            Ok((value, lacking)) => (Outcome::Degraded(lacking.join("; ")), Ok(value)),
            Err(why) => (Outcome::Failed(why.clone()), Err(Halted { phase: name, why })),
        };
        self.phases.end(name, &outcome, self.journal);
        result
    }
}

/// Runs the phases mounts, hardening, config, state and the first half of network.
pub fn run(record: &mut Record<'_>, facts: &mut Facts) -> Result<Booted, Halted> {
    record.run("mounts", |journal| {
        let lacking = mounts::mount_kernel().map_err(|error| error.to_string())?;
        journal.console.open_if_none();
        for what in &lacking {
            facts.found(Severity::Error, "kernel", &format!("this kernel has no {what}"), LESS, OTHER_IMAGE);
        }
        Ok(((), lacking.into_iter().map(|what| format!("no {what}")).collect()))
    })?;
    record.run("hardening", |_| {
        facts.lax = sysctl::apply().iter().map(ToString::to_string).collect();
        let lacking = match facts.lax.as_slice() {
            [] => Vec::new(),
            [one] => vec![one.clone()],
            [first, rest @ ..] => vec![format!("{first}, and {} more", rest.len())],
        };
        Ok(((), lacking))
    })?;
    facts.boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let wait = slow_disks(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let mut disks = Disks::default();
    let config = record.run("config", |journal| configure(wait, &mut disks, facts, journal))?;
    record.run("state", |_| prepare_state(wait, &mut disks, facts, &config))?;
    begin_network(record, facts, &config);
    Ok(Booted { config })
}

/// The services that nulld brings itself, beside those of the configuration. In rescue both are reduced to the ones that an
/// operator needs to ask and to repair; what one of these would otherwise wait for is not there to be waited for.
pub fn services(config: &mut NodeConfig, facts: &Facts) -> BTreeMap<String, ServiceConfig> {
    let mut builtin = builtin::services(config);
    if facts.rescue.is_some() {
        let is_kept = |_: &String, service: &mut ServiceConfig| service.rescue;
        config.services.retain(is_kept);
        builtin.retain(is_kept);
        let names: BTreeSet<String> = config.services.keys().chain(builtin.keys()).cloned().collect();
        for service in config.services.values_mut().chain(builtin.values_mut()) {
            service.needs.retain(|need| names.contains(need));
        }
    }
    builtin
}

const LESS: &str = "what it would bound or protect is not";
const OTHER_IMAGE: &str = "boot an image whose kernel was built by this project";

/// `nullbox.wait_s=N` on the kernel command line: how long to wait for the volumes' disks.
fn slow_disks(command_line: &str) -> Duration {
    let seconds = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("nullbox.wait_s="))
        .and_then(|seconds| seconds.parse::<u64>().ok())
        .unwrap_or(0);
    Duration::from_secs(seconds.min(WAIT_S_MAX))
}

/// A volume that cannot be used leaves the image's configuration in force, all of it: half of each would be nobody's word.
fn configure(
    wait: Duration,
    disks: &mut Disks,
    facts: &mut Facts,
    journal: &mut Journal,
) -> Result<(NodeConfig, Vec<String>), String> {
    let mut lacking = Vec::new();
    let image = config::image().map_err(|error| error.to_string())?;
    let volumes = disks.find(volume::CONFIG, wait);
    note_several(&volumes, volume::CONFIG, facts, &mut lacking);
    let text = match volumes.first().map(mounts::mount_config) {
        None => None,
        Some(Ok(text)) => text,
        Some(Err(error)) => {
            let what = format!("the configuration volume cannot be used: {error}");
            facts.found(
                Severity::Error,
                "config",
                &what,
                "the node runs with the image's configuration; agents and operators of the volume are unknown to it",
                "repair the volume on another machine, or make a new one with `image config-volume`, and reboot",
            );
            lacking.push(what);
            None
        }
    };
    let loaded = config::merge(&image, text.as_deref()).map_err(|error| error.to_string())?;
    config::publish(&loaded.config).map_err(|error| error.to_string())?;
    for problem in &loaded.problems {
        journal.own(Level::Error, "config_wrong", &[("problem", problem)]);
        lacking.push("the volume's nulld.toml is wrong, the image's is used".to_owned());
    }
    facts.node.clone_from(&loaded.config.node.name);
    facts.problems = loaded.problems;
    if let Err(error) = rustix::system::sethostname(facts.node.as_bytes()) {
        lacking.push(format!("the host name could not be set: {error}"));
    }
    Ok((loaded.config, lacking))
}

/// The volume, or nothing: a state volume that is there and cannot be used, and a disk that may be it, put the node in
/// rescue, where nothing runs that has effects, since their ledger would be another one.
fn prepare_state(
    wait: Duration,
    disks: &mut Disks,
    facts: &mut Facts,
    config: &NodeConfig,
) -> Result<((), Vec<String>), String> {
    let mut lacking = Vec::new();
    let volumes = disks.find(volume::STATE, wait);
    note_several(&volumes, volume::STATE, facts, &mut lacking);
    let silent: Vec<String> = disks.silent.iter().map(|(name, how)| format!("disk {name} {how}")).collect();
    let rescue = match volumes.first() {
        Some(volume) => match mounts::mount_state(volume, config) {
            Ok(()) => {
                for disk in &silent {
                    facts.found(Severity::Warning, "state", disk, "it is not used", "check or detach it");
                }
                None
            }
            Err(error) => Some(format!("the state volume cannot be used: {error}")),
        },
        None if silent.is_empty() => None,
        None => Some(format!("{}, and may be the state volume", silent.join(", "))),
    };
    facts.ephemeral = volumes.is_empty() || rescue.is_some();
    if facts.ephemeral {
        mounts::mount_no_state(config).map_err(|error| error.to_string())?;
    }
    match &rescue {
        Some(why) => {
            lacking.push(format!("rescue: {why}"));
            facts.found(
                Severity::Error,
                "state",
                why,
                "rescue: no agent runs, nothing was written to it, and the node's key is a new one until the next boot",
                "check the disk and its file system (fsck) on another machine, or detach it to begin with an empty node; then reboot",
            );
        }
        None if facts.ephemeral => {
            lacking.push(format!("no volume is labelled {}, everything is lost at power-off", volume::STATE));
        }
        None => {}
    }
    facts.rescue = rescue;
    Ok(((), lacking))
}

fn note_several(volumes: &[Volume], label: &str, facts: &mut Facts, lacking: &mut Vec<String>) {
    if let [first, _, ..] = volumes {
        let what =
            format!("{} volumes are labelled {label}, {} is used", volumes.len(), first.device.display());
        let area = if label == volume::STATE { "state" } else { "config" };
        facts.found(
            Severity::Warning,
            area,
            &what,
            "the other ones are not looked at",
            "detach the wrong ones and reboot",
        );
        lacking.push(what);
    }
}

/// Loopback and settings now; the address is the uplink service's work, and the phase ends with it.
fn begin_network(record: &mut Record<'_>, facts: &mut Facts, config: &NodeConfig) {
    record.phases.begin("network");
    match (uplink::prepare(UPLINK_UID), config.network.mode) {
        (Err(error), _) => {
            let what = format!("the network cannot be prepared: {error}");
            facts.found(
                Severity::Error,
                "network",
                &what,
                "the node may not be reached, and agents reach nothing",
                "see `nullctl system logs kernel`; boot an image whose kernel was built by this project",
            );
            record.phases.end("network", &Outcome::Degraded(what), record.journal);
        }
        (Ok(()), NetworkMode::None) => {
            record.phases.end("network", &Outcome::Ok, record.journal);
        }
        (Ok(()), NetworkMode::Dhcp | NetworkMode::Static) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_disks_is_asked_for_and_bounded() {
        assert_eq!(slow_disks("quiet console=ttyS0"), Duration::ZERO);
        assert_eq!(slow_disks("quiet nullbox.wait_s=5\n"), Duration::from_secs(5));
        assert_eq!(slow_disks("nullbox.wait_s=9999"), Duration::from_secs(WAIT_S_MAX));
        assert_eq!(slow_disks("nullbox.wait_s=soon"), Duration::ZERO);
    }

    #[test]
    fn in_rescue_only_what_an_operator_needs_is_started() {
        let text = "[clock]\nservers = [\"time.example.org\"]\n\
            [services.ctxgraph]\npath = \"/system/bin/ctxgraph\"\n\
            [services.egress]\npath = \"/system/bin/egress\"\nneeds = [\"ctxgraph\"]\n\
            [services.nullgate]\npath = \"/system/bin/nullgate\"\nneeds = [\"egress\"]\nrescue = true\n";
        let mut config = config::merge(text, None).unwrap().config;
        let mut facts = Facts::default();
        let all = services(&mut config, &facts);
        assert!(all.contains_key("uplink") && config.services.len() == 3);
        facts.rescue = Some("no journal".into());
        let builtin = services(&mut config, &facts);
        assert!(builtin.contains_key("uplink"));
        assert_eq!(config.services.keys().collect::<Vec<_>>(), ["nullgate"]);
        let mut both = config.services.clone();
        both.extend(builtin);
        assert!(
            both.values()
                .all(|service| service.rescue && service.needs.iter().all(|need| both.contains_key(need)))
        );
        assert_eq!(abi::node::start_order(&both).unwrap().len(), both.len());
    }

    #[test]
    fn a_failed_phase_stops_and_is_listed() {
        let (mut phases, mut journal) = (Phases::default(), Journal::default());
        let mut record = Record { phases: &mut phases, journal: &mut journal };
        assert!(record.run("a", |_| Ok((1, vec![]))).is_ok());
        let halted = record.run::<()>("b", |_| Err("no disk".to_owned())).unwrap_err();
        assert_eq!((halted.phase, halted.why.as_str()), ("b", "no disk"));
        assert_eq!(phases.list()[1].outcome, "failed: no disk");
    }
}
