//! The phases of the boot up to the point where services start.
//!
//! Must hold: each phase is listed with time and outcome; after a failed one nothing else is begun. Must never: make up for a
//! failed phase silently.

use std::fs;
use std::time::Duration;

use abi::identity::UPLINK_UID;
use abi::log::Level;
use abi::node::{NetworkMode, NodeConfig};

use crate::config;
use crate::journal::Journal;
use crate::mounts;
use crate::phases::{Outcome, Phases};
use crate::system::Facts;
use crate::uplink;
use crate::volume::{self, Volume};

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

/// Runs the phases mounts, config, state and the first half of network.
pub fn run(record: &mut Record<'_>, facts: &mut Facts) -> Result<Booted, Halted> {
    record.run("mounts", |journal| {
        let lacking = mounts::mount_kernel().map_err(|error| error.to_string())?;
        journal.console.open_if_none();
        Ok(((), lacking.into_iter().map(|what| format!("no {what}")).collect()))
    })?;
    facts.boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let wait = slow_disks(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let config = record.run("config", |journal| configure(wait, facts, journal))?;
    record.run("state", |_| prepare_state(wait, facts, &config))?;
    begin_network(record, &config)?;
    Ok(Booted { config })
}

/// `nullbox.wait_s=N` on the kernel command line: how long to wait for the volumes' disks.
fn slow_disks(command_line: &str) -> Duration {
    let seconds = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("nullbox.wait_s="))
        .and_then(|seconds| seconds.parse::<u64>().ok())
        .unwrap_or(0);
    Duration::from_secs(seconds.min(WAIT_S_MAX))
}

fn configure(
    wait: Duration,
    facts: &mut Facts,
    journal: &mut Journal,
) -> Result<(NodeConfig, Vec<String>), String> {
    let mut lacking = Vec::new();
    let volumes = volume::find(volume::CONFIG, wait);
    note_several(&volumes, volume::CONFIG, &mut lacking);
    let volume = volumes.first();
    if let Some(volume) = volume {
        mounts::mount_config_volume(volume).map_err(|error| error.to_string())?;
    }
    let loaded = config::load().map_err(|error| error.to_string())?;
    if volume.is_some() {
        mounts::overlay_config().map_err(|error| error.to_string())?;
    }
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

fn prepare_state(
    wait: Duration,
    facts: &mut Facts,
    config: &NodeConfig,
) -> Result<((), Vec<String>), String> {
    let mut lacking = Vec::new();
    let volumes = volume::find(volume::STATE, wait);
    note_several(&volumes, volume::STATE, &mut lacking);
    facts.ephemeral = volumes.is_empty();
    if facts.ephemeral {
        lacking.push(format!("no volume is labelled {}, everything is lost at power-off", volume::STATE));
    }
    mounts::mount_state(volumes.first()).map_err(|error| error.to_string())?;
    mounts::make_state_dirs(config).map_err(|error| error.to_string())?;
    Ok(((), lacking))
}

fn note_several(volumes: &[Volume], label: &str, lacking: &mut Vec<String>) {
    if let [first, _, ..] = volumes {
        lacking.push(format!(
            "{} volumes are labelled {label}, {} is used",
            volumes.len(),
            first.device.display()
        ));
    }
}

/// Loopback and settings now; the address is the uplink service's work, and the phase ends with it.
fn begin_network(record: &mut Record<'_>, config: &NodeConfig) -> Result<(), Halted> {
    record.phases.begin("network");
    match (uplink::prepare(UPLINK_UID), config.network.mode) {
        (Err(error), _) => {
            let why = error.to_string();
            let outcome = Outcome::Failed(why.clone());
            record.phases.end("network", &outcome, record.journal);
            Err(Halted { phase: "network", why })
        }
        (Ok(()), NetworkMode::None) => {
            record.phases.end("network", &Outcome::Ok, record.journal);
            Ok(())
        }
        (Ok(()), NetworkMode::Dhcp | NetworkMode::Static) => Ok(()),
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
    fn a_failed_phase_stops_and_is_listed() {
        let (mut phases, mut journal) = (Phases::default(), Journal::default());
        let mut record = Record { phases: &mut phases, journal: &mut journal };
        assert!(record.run("a", |_| Ok((1, vec![]))).is_ok());
        let halted = record.run::<()>("b", |_| Err("no disk".to_owned())).unwrap_err();
        assert_eq!((halted.phase, halted.why.as_str()), ("b", "no disk"));
        assert_eq!(phases.list()[1].outcome, "failed: no disk");
    }
}
