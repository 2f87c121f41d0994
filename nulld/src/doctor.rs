//! What is wrong with the node, and what to do about it: `system.doctor`. Pure: facts in, findings out.
//!
//! Must hold: each finding says what is wrong, what it means and what to do, in words that need no other page; the list is
//! bounded, worst first. Must never: repeat what a service or a disk says without escaping and cutting it.

use abi::control::{Doctor, Finding, Phase, ServiceStatus, Severity};
use abi::limits;
use abi::node::NetworkMode;

use crate::health::{Disk, Kvm, Machine, Space};
use crate::journal::Journal;
use crate::screen::plain;
use crate::system::{Facts, View};

/// A look at the disks that takes longer has found one that does not answer.
const DISK_LATE_MS: u64 = 5_000;
/// A service that was restarted so often and is ready for less than [`SETTLED_MS`] is in trouble even when it is ready.
const RESTARTS_MANY: u64 = 3;
const SETTLED_MS: u64 = 10 * 60_000;
/// Characters of a text that came from elsewhere.
const QUOTED_CHARS_MAX: usize = 240;
/// Below so much available memory, in percent of all, VMs are about to be killed.
const MEMORY_PERCENT_MIN: u64 = 10;
/// Free room and inodes of /state, in percent: scarce, and as good as none.
const ROOM_PERCENT_SCARCE: u64 = 10;
const ROOM_PERCENT_NONE: u64 = 2;

/// A service as the doctor sees it.
#[derive(Debug, Clone)]
pub struct Patient {
    pub status: ServiceStatus,
    /// What it needs and is not ready, with its state.
    pub unmet: Vec<String>,
    /// The newest line of its log.
    pub last_line: String,
}

/// All that is looked at.
#[derive(Debug)]
pub struct Exam<'a> {
    pub facts: &'a Facts,
    pub phases: &'a [Phase],
    pub patients: &'a [Patient],
    pub machine: &'a Machine,
    pub disk: &'a Disk,
}

/// A finding.
pub fn finding(severity: Severity, area: &str, what: &str, effect: &str, remedy: &str) -> Finding {
    let [what, effect, remedy] = [what, effect, remedy].map(|text| plain(text, QUOTED_CHARS_MAX * 2));
    Finding { severity, area: area.to_owned(), what, effect, remedy }
}

/// Answers `system.doctor`.
pub fn of(view: &View<'_>) -> Doctor {
    let phases = view.phases.list();
    let patients = patients(view);
    let (machine, disk) = (Machine::read(), view.disks.seen());
    examine(&Exam { facts: view.facts, phases: &phases, patients: &patients, machine: &machine, disk: &disk })
}

/// The services, with what they wait for and what they said last.
pub fn patients(view: &View<'_>) -> Vec<Patient> {
    let state = |name: &str| view.supervisor.unit(name).map_or("not there", |unit| unit.state.name());
    let one = |unit: &crate::service::Unit| Patient {
        status: unit.status(),
        unmet: unit
            .config
            .needs
            .iter()
            .filter(|need| state(need) != "ready")
            .map(|need| format!("{need} ({})", state(need)))
            .collect(),
        last_line: last_line(view.journal, &unit.name),
    };
    view.supervisor.units.iter().map(one).collect()
}

fn last_line(journal: &Journal, service: &str) -> String {
    let mut newest = journal.logs.cursor(Some(service), 0, 1);
    journal.logs.next(&mut newest, None).map(|line| line.line).unwrap_or_default()
}

/// Everything that is not as it should be, worst first.
pub fn examine(exam: &Exam<'_>) -> Doctor {
    let mut findings = exam.facts.findings.clone();
    for look in [nulld, boot, config, state, network, clock, virtualization, services, memory, kernel] {
        look(exam, &mut findings);
    }
    findings.sort_by_key(|finding| finding.severity);
    if findings.len() > limits::FINDINGS_MAX {
        let more = findings.len() - (limits::FINDINGS_MAX - 1);
        findings.truncate(limits::FINDINGS_MAX - 1);
        let what = format!("{more} more findings do not fit this answer");
        findings.push(finding(
            Severity::Info,
            "nulld",
            &what,
            "they are not worse than these",
            "deal with these first",
        ));
    }
    Doctor { findings }
}

fn nulld(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let facts = exam.facts;
    if let Some(why) = &facts.held {
        out.push(finding(
            Severity::Error,
            "nulld",
            why,
            "nothing is started, stopped or handed over any more; what runs goes on",
            "save the output of `nullctl system logs nulld`, then reboot the node",
        ));
    } else if facts.crashes > 0 {
        out.push(finding(
            Severity::Warning,
            "nulld",
            &format!("nulld crashed and began again {} times in this boot", facts.crashes),
            "services ran on; each crash is a mistake in nulld",
            "report it with the output of `nullctl system logs nulld`",
        ));
    }
    if facts.watchdog.is_empty() || facts.watchdog.starts_with("none") {
        out.push(finding(
            Severity::Info,
            "watchdog",
            "there is no hardware watchdog",
            "a node whose kernel or nulld hangs stays as it is until somebody resets it",
            "give the machine one (in QEMU: -device i6300esb), or ignore this",
        ));
    }
    if facts.root_hash.is_empty() {
        out.push(finding(
            Severity::Warning,
            "boot",
            "the root file system was not checked against a hash",
            "a changed image would not be noticed",
            "boot the ISO or disk that the image builder makes",
        ));
    }
    if facts.ledger_events_dropped > 0 {
        out.push(finding(
            Severity::Warning,
            "nulld",
            &format!("{} events of nulld did not reach the ledger", facts.ledger_events_dropped),
            "calls, starts and ends of services are missing there; effects are not, they wait for their receipts",
            "see why ctxgraph is slow or down: `nullctl system logs ctxgraph`",
        ));
    }
}

fn boot(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    for phase in exam.phases {
        if let Some(why) = phase.outcome.strip_prefix("failed: ") {
            let what = format!("the boot halted in phase {}: {why}", phase.name);
            let remedy =
                "this is the image's own fault or the machine's: boot another image, or repair what is named";
            out.push(finding(Severity::Error, "boot", &what, "no service was started", remedy));
        }
    }
}

fn config(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    for problem in &exam.facts.problems {
        out.push(finding(
            Severity::Error,
            "config",
            &ConfigErrorWithoutRemedy(problem).to_string(),
            "nulld.toml of the configuration volume is not used at all; the image's own is",
            if problem.remedy.is_empty() { "correct the file and reboot" } else { &problem.remedy },
        ));
    }
    let remedy =
        "put operators.toml on a volume labelled NULLBOX-CONFIG; `nullctl key gen` prints what goes in it";
    let nobody = "nobody can call this node from outside";
    match &exam.disk.operators {
        Some(Ok(0)) => {
            out.push(finding(Severity::Error, "config", "operators.toml lists no operator", nobody, remedy));
        }
        Some(Err(why)) => {
            let what = format!("operators.toml cannot be used: {why}");
            out.push(finding(Severity::Error, "config", &what, nobody, remedy));
        }
        Some(Ok(_)) | None => {}
    }
}

/// The error's own words, but for the remedy, which stands apart here.
struct ConfigErrorWithoutRemedy<'a>(&'a abi::config_error::ConfigError);

impl std::fmt::Display for ConfigErrorWithoutRemedy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bare = abi::config_error::ConfigError { remedy: String::new(), ..self.0.clone() };
        bare.fmt(f)
    }
}

fn state(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let late =
        exam.disk.asked_ms.is_some_and(|since| exam.machine.now_ms.saturating_sub(since) > DISK_LATE_MS);
    if late {
        let since = exam.machine.now_ms.saturating_sub(exam.disk.asked_ms.unwrap_or_default()) / 1000;
        let what = format!("/state or the configuration has not answered for {since} s");
        let effect =
            "whoever reads or writes there waits, services included; what is said of their room is old";
        out.push(finding(
            Severity::Error,
            "state",
            &what,
            effect,
            "check the disk; reboot when it answers again",
        ));
    }
    if exam.facts.rescue.is_some() {
        return; // the boot's own finding says why, and the tmpfs that stands in for the volume says nothing
    }
    if exam.facts.ephemeral {
        out.push(finding(
            Severity::Info,
            "state",
            "there is no state volume: the node is ephemeral",
            "agents' memory, the ledger, images and the node's key are lost at power-off",
            "attach a disk with an ext4 file system labelled NULLBOX-STATE and reboot",
        ));
    }
    if let Some(space) = &exam.disk.state {
        room(space, exam.facts.ephemeral, out);
    }
}

fn room(space: &Space, ephemeral: bool, out: &mut Vec<Finding>) {
    if space.read_only {
        out.push(finding(
            Severity::Error,
            "state",
            "/state has become read-only: the kernel found its file system or its disk broken",
            "no receipt can be stored, so no effect happens: agents cannot start, connect or remember",
            "see `nullctl system logs kernel`; check the disk and its file system (fsck) on another machine, then reboot",
        ));
    }
    let percent = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let remedy = match ephemeral {
        true => "attach a state volume, or give the machine more memory",
        false => {
            "move to a larger state volume, or free room: fewer rootfs archives, agents with a smaller disk"
        }
    };
    for (free, all, unit) in [
        (percent(space.bytes_free, space.bytes), space.bytes / 1024 / 1024, "MiB"),
        (percent(space.inodes_free, space.inodes), space.inodes, "files"),
    ] {
        let what = format!(
            "/state is {}: {free} % of {all} {unit} are free",
            if free < ROOM_PERCENT_NONE { "full" } else { "nearly full" }
        );
        if free < ROOM_PERCENT_NONE {
            let effect = "receipts cannot be stored, so effects do not happen; agents may not start";
            out.push(finding(Severity::Error, "state", &what, effect, remedy));
        } else if free < ROOM_PERCENT_SCARCE {
            out.push(finding(
                Severity::Warning,
                "state",
                &what,
                "when it is full, no effect happens",
                remedy,
            ));
        }
    }
}

fn network(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let Some(network) = &exam.machine.network else { return };
    if network.mode == NetworkMode::None {
        let what = "the configuration says that there is no network";
        let effect = "the node is not reached from outside, and agents reach nothing";
        out.push(finding(Severity::Info, "network", what, effect, "set network.mode if that is not meant"));
        return;
    }
    let effect = "the node is not reached from outside, and agents reach nothing";
    let wanted = network.interface.as_str();
    let others: Vec<_> = exam.machine.interfaces.iter().filter(|(name, _)| *name != "lo").collect();
    let chosen = match wanted {
        "" => others.iter().find(|(_, one)| one.carrier).or(others.first()),
        name => others.iter().find(|(other, _)| *other == name),
    };
    match (&exam.machine.uplink, chosen) {
        (None, None) => {
            let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
            let (what, remedy) = match (wanted, names.is_empty()) {
                (_, true) => (
                    "there is no network interface".to_owned(),
                    "give the machine a network card that the kernel has a driver for (docs/kernel.md)"
                        .to_owned(),
                ),
                (wanted, false) => (
                    format!("there is no network interface `{wanted}`"),
                    format!("set network.interface to one of {}", names.join(", ")),
                ),
            };
            out.push(finding(Severity::Error, "network", &what, effect, &remedy));
        }
        (None, Some((name, one))) if !one.carrier => {
            let what = format!("{name} has no carrier");
            out.push(finding(
                Severity::Error,
                "network",
                &what,
                effect,
                "plug the cable in, or check the switch",
            ));
        }
        (None, Some((name, _))) => {
            let (what, remedy) = match network.mode {
                NetworkMode::Dhcp => (
                    format!("{name} has no address: no DHCP server answers"),
                    "check the DHCP server, or set network.mode = \"static\" with an address",
                ),
                NetworkMode::Static | NetworkMode::None => {
                    (format!("{name} has no address yet"), "see `nullctl system logs uplink`")
                }
            };
            out.push(finding(Severity::Error, "network", &what, effect, remedy));
        }
        (Some(uplink), _) => {
            if uplink.resolvers == 0 && network.dns.is_empty() {
                let what = "no resolver is known";
                let effect = "agents reach only names of network.hosts";
                out.push(finding(
                    Severity::Warning,
                    "network",
                    what,
                    effect,
                    "set network.dns, or have DHCP name one",
                ));
            }
            if !uplink.has_gateway {
                let what = format!("{} has no gateway", uplink.interface);
                let effect = "only its own network is reached";
                out.push(finding(
                    Severity::Info,
                    "network",
                    &what,
                    effect,
                    "set network.gateway if that is not meant",
                ));
            }
        }
    }
}

fn clock(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let effect = "dates of logs and of the ledger are wrong by as much; agents may refuse certificates";
    let remedy = "name time servers in clock.servers, or have DHCP name some; set the machine's clock";
    if exam.machine.unix_s < exam.machine.floor_s {
        out.push(finding(
            Severity::Error,
            "clock",
            "the clock is before the time this image was built",
            effect,
            remedy,
        ));
    } else if let Some(words) = exam.facts.clock.strip_prefix("wrong: ") {
        out.push(finding(Severity::Warning, "clock", words, effect, remedy));
    } else if exam.facts.clock_jumps > 0 {
        let what = format!("the clock jumped {} times in this boot", exam.facts.clock_jumps);
        out.push(finding(
            Severity::Info,
            "clock",
            &what,
            "what was dated before is dated by another clock",
            "see `nullctl system logs nulld` (clock_jumped); one jump after the boot is usual",
        ));
    }
}

fn virtualization(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let (what, remedy) = match exam.machine.kvm {
        Kvm::Present => return,
        Kvm::NotNested => (
            "there is no /dev/kvm: the node is a VM, and its processor offers no virtualization",
            "switch nested virtualization on in its hypervisor (QEMU: -cpu host, and nested=1 of the host's kvm module)",
        ),
        Kvm::NoFlag => (
            "there is no /dev/kvm: the processor offers no virtualization",
            "switch it on in the firmware's setup (VT-x, SVM), or use a machine that has it",
        ),
        Kvm::Unused => (
            "there is no /dev/kvm, although the processor offers virtualization",
            "see `nullctl system logs kernel` for kvm; it may be switched off in the firmware's setup",
        ),
    };
    out.push(finding(Severity::Error, "virtualization", what, "no agent can run", remedy));
}

fn services(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    for patient in exam.patients {
        let status = &patient.status;
        let name = status.name.as_str();
        let last = plain(&patient.last_line, QUOTED_CHARS_MAX);
        let detail = plain(&status.detail, QUOTED_CHARS_MAX);
        let log = format!("see `nullctl system logs {name}`; its last line: {last}");
        let effect = effect_of(name);
        match status.state.as_str() {
            "ready" => {
                let for_ms = exam.machine.now_ms.saturating_sub(status.ready_ms.unwrap_or_default());
                if status.restarts >= RESTARTS_MANY && for_ms < SETTLED_MS {
                    let what = format!("{name} was restarted {} times", status.restarts);
                    out.push(finding(
                        Severity::Warning,
                        "services",
                        &what,
                        "its callers lose their calls each time",
                        &log,
                    ));
                }
            }
            "waiting" if !patient.unmet.is_empty() => {
                let what = format!("{name} waits for {}", patient.unmet.join(", "));
                out.push(finding(Severity::Error, "services", &what, effect, "deal with what it waits for"));
            }
            "waiting" | "starting" if exam.facts.ready_ms.is_none() && status.restarts == 0 => {
                let what = format!("{name} is {}", status.state);
                out.push(finding(Severity::Info, "services", &what, "the node is still booting", "wait"));
            }
            "stopped" => {
                let what = format!("{name} ended, and its policy starts it no more: {detail}");
                out.push(finding(Severity::Info, "services", &what, effect, &log));
            }
            "stopping" => {
                let what = format!("{name} is being stopped: {detail}");
                out.push(finding(Severity::Warning, "services", &what, effect, &log));
            }
            state => {
                let what = format!("{name} is {state}: {detail}");
                out.push(finding(Severity::Error, "services", &what, effect, &log));
            }
        }
    }
}

fn effect_of(service: &str) -> &'static str {
    match service {
        "cage" => "no agent can be started or asked",
        "egress" => "agents reach nothing",
        "ctxgraph" => "no receipt can be stored, so no effect happens",
        "nullgate" => "nobody can call this node from outside",
        "uplink" => "the node's address is not kept",
        "clock" => "the clock is not kept right",
        "forward" => "logs are not sent to the log host",
        _ => "what it does is not done",
    }
}

fn memory(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let (all, free) = (exam.machine.memory_total_kib, exam.machine.memory_available_kib);
    if all > 0 && free.saturating_mul(100) / all < MEMORY_PERCENT_MIN {
        let what = format!("{} of {} MiB of memory are available", free / 1024, all / 1024);
        let effect = "the kernel will soon kill VMs; no further agent fits";
        out.push(finding(
            Severity::Warning,
            "memory",
            &what,
            effect,
            "stop agents, or give them or the machine other amounts",
        ));
    }
}

fn kernel(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    match exam.machine.lockdown.as_deref() {
        Some("confidentiality") => {}
        other => {
            let what =
                format!("the kernel's lockdown is {}, not confidentiality", other.unwrap_or("not there"));
            let effect = "root on this node could read or change the kernel's memory";
            out.push(finding(
                Severity::Warning,
                "kernel",
                &what,
                effect,
                "boot an image whose kernel was built by this project",
            ));
        }
    }
    for name in &exam.machine.lax {
        let what = format!("the kernel setting {name} is not in force");
        let effect = "an attacker who is root in a service has more to work with";
        out.push(finding(
            Severity::Warning,
            "kernel",
            &what,
            effect,
            "boot an image whose kernel was built by this project",
        ));
    }
    if exam.machine.taint != 0 {
        let what = format!("the kernel is tainted ({}): {}", exam.machine.taint, taint(exam.machine.taint));
        let effect = "it saw something that should never happen, and may misbehave";
        out.push(finding(
            Severity::Warning,
            "kernel",
            &what,
            effect,
            "see `nullctl system logs kernel`; reboot",
        ));
    }
}

/// The bits that can come up on a node without modules (kernel doc admin-guide/tainted-kernels).
fn taint(bits: u64) -> String {
    const NAMES: [(u64, &str); 8] = [
        (2, "out of specification"),
        (4, "machine check"),
        (5, "bad page"),
        (7, "oops"),
        (9, "warning"),
        (11, "firmware bug worked around"),
        (14, "soft lockup"),
        (15, "live patch"),
    ];
    let names: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| *name).collect();
    if names.is_empty() { "see the kernel's documentation".to_owned() } else { names.join(", ") }
}
