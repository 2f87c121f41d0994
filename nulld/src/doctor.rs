//! What is wrong with the node, and what to do about it: `system.doctor`. Pure: facts in, findings out.
//!
//! Must hold: each finding says what is wrong, what it means and what to do, in words that need no other page; the list is
//! bounded, worst first. Must never: repeat what a service or a disk says without escaping and cutting it.

mod machine;

use abi::control::{Doctor, Finding, Phase, ServiceStatus, Severity};
use abi::limits;

use crate::health::{Disk, Machine};
use crate::screen::plain;
use crate::sysctl;
use crate::system::{Facts, View};
use machine::{clock, kernel, memory, network, state, virtualization};

/// A service that was restarted so often and is ready for less than [`SETTLED_MS`] is in trouble even when it is ready.
const RESTARTS_MANY: u64 = 3;
const SETTLED_MS: u64 = 10 * 60_000;
/// Bytes of all findings together: what a line of the protocol takes, less its frame.
const ANSWER_BYTES_MAX: usize = limits::LINE_BYTES_MAX - 4096;
/// Characters of a text that came from elsewhere.
const QUOTED_CHARS_MAX: usize = 240;

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
    /// Kernel settings that are not in force.
    pub lax: &'a [String],
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
    let lax: Vec<String> = sysctl::lax().iter().map(ToString::to_string).collect();
    let (facts, machine, disk) = (view.facts, &machine, &disk);
    examine(&Exam { facts, phases: &phases, patients: &patients, machine, disk, lax: &lax })
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
        last_line: view.journal.logs.newest(&unit.name).map(|line| line.line).unwrap_or_default(),
    };
    view.supervisor.units.iter().map(one).collect()
}

/// Everything that is not as it should be, worst first.
pub fn examine(exam: &Exam<'_>) -> Doctor {
    let mut findings = exam.facts.findings.clone();
    for look in [nulld, boot, config, state, network, clock, virtualization, services, memory, kernel] {
        look(exam, &mut findings);
    }
    findings.sort_by_key(|finding| finding.severity);
    let (mut fit, mut bytes) = (0, 0);
    for finding in &findings {
        bytes += serde_json::to_vec(finding).map_or(0, |text| text.len() + 1);
        if fit == limits::FINDINGS_MAX || bytes > ANSWER_BYTES_MAX {
            break;
        }
        fit += 1;
    }
    if fit < findings.len() {
        let fit = fit.saturating_sub(1);
        let what = format!("{} more findings do not fit this answer", findings.len() - fit);
        findings.truncate(fit);
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

#[cfg(test)]
impl Patient {
    /// A service that nothing is said about but its state.
    pub fn for_test(name: &str, state: &str) -> Patient {
        let status = ServiceStatus {
            name: name.into(),
            state: state.into(),
            pid: Some(7),
            restarts: 0,
            ready_ms: Some(900),
            memory_kib: 0,
            detail: String::new(),
            says: String::new(),
        };
        Patient { status, unmet: Vec::new(), last_line: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Interface, Kvm, Space, Uplink};
    use abi::config_error::ConfigError;
    use abi::node::{Network, NetworkMode};

    /// Everything an examination looks at, of a node on which nothing is wrong.
    #[derive(Default)]
    struct Node {
        facts: Facts,
        phases: Vec<Phase>,
        patients: Vec<Patient>,
        machine: Machine,
        disk: Disk,
        lax: Vec<String>,
    }

    impl Node {
        fn sound() -> Node {
            let interface = Interface { carrier: true, addresses: vec!["192.0.2.7/24".into()] };
            Node {
                facts: Facts {
                    root_hash: "ab".repeat(32),
                    watchdog: "i6300esb, 60 s".into(),
                    ready_ms: Some(2_000),
                    ..Facts::default()
                },
                phases: vec![Phase {
                    name: "mounts".into(),
                    started_ms: 1,
                    took_ms: 2,
                    outcome: "ok".into(),
                }],
                patients: vec![patient("cage", "ready"), patient("egress", "ready")],
                machine: Machine {
                    now_ms: 1_000_000,
                    memory_total_kib: 1_000_000,
                    memory_available_kib: 500_000,
                    interfaces: [("eth0".to_owned(), interface)].into(),
                    uplink: Some(Uplink { interface: "eth0".into(), has_gateway: true, resolvers: 1 }),
                    network: Some(Network::default()),
                    lockdown: Some("confidentiality".into()),
                    unix_s: 2_000_000_000,
                    floor_s: 1_900_000_000,
                    ..Machine::default()
                },
                disk: Disk {
                    state: Some(Space {
                        bytes: 1 << 30,
                        bytes_free: 1 << 29,
                        inodes: 1000,
                        inodes_free: 500,
                        read_only: false,
                    }),
                    operators: Some(Ok(1)),
                    asked_ms: None,
                },
                lax: Vec::new(),
            }
        }

        fn findings(&self) -> Vec<Finding> {
            let Node { facts, phases, patients, machine, disk, lax } = self;
            examine(&Exam { facts, phases, patients, machine, disk, lax }).findings
        }
    }

    fn patient(name: &str, state: &str) -> Patient {
        Patient::for_test(name, state)
    }

    type Harm = (&'static str, Severity, &'static str, fn(&mut Node));

    const HARMS: [Harm; 35] = [
        ("virtualization", Severity::Error, "nested", |node| node.machine.kvm = Kvm::NotNested),
        ("virtualization", Severity::Error, "firmware", |node| node.machine.kvm = Kvm::NoFlag),
        ("virtualization", Severity::Error, "although", |node| node.machine.kvm = Kvm::Unused),
        ("state", Severity::Info, "NULLBOX-STATE", |node| node.facts.ephemeral = true),
        ("state", Severity::Error, "read-only", |node| space(node).read_only = true),
        ("state", Severity::Error, "is full", |node| space(node).bytes_free = 1 << 20),
        ("state", Severity::Warning, "nearly full", |node| space(node).bytes_free = 1 << 26),
        ("state", Severity::Error, "0 % of 1000 files", |node| space(node).inodes_free = 3),
        ("state", Severity::Warning, "5 % of 1000 files", |node| space(node).inodes_free = 50),
        ("state", Severity::Error, "not answered for 20 s", |node| node.disk.asked_ms = Some(980_000)),
        ("config", Severity::Error, "nulld.toml:3: node.name", |node| node.facts.problems.push(problem())),
        ("config", Severity::Error, "no operator", |node| node.disk.operators = Some(Ok(0))),
        ("config", Severity::Error, "No such file", |node| {
            node.disk.operators = Some(Err("No such file".into()))
        }),
        ("network", Severity::Error, "no network interface", |node| {
            node.machine.uplink = None;
            node.machine.interfaces.clear();
        }),
        ("network", Severity::Error, "to one of eth0", |node| {
            node.machine.uplink = None;
            network_of(node).interface = "eth7".into();
        }),
        ("network", Severity::Error, "no carrier", |node| {
            node.machine.uplink = None;
            node.machine.interfaces.values_mut().for_each(|one| one.carrier = false);
        }),
        ("network", Severity::Error, "no DHCP server", |node| node.machine.uplink = None),
        ("network", Severity::Warning, "resolver", |node| {
            node.machine.uplink.as_mut().unwrap().resolvers = 0;
        }),
        ("network", Severity::Info, "gateway", |node| {
            node.machine.uplink.as_mut().unwrap().has_gateway = false;
        }),
        ("network", Severity::Info, "network.mode", |node| network_of(node).mode = NetworkMode::None),
        ("clock", Severity::Error, "built", |node| node.machine.unix_s = 5),
        ("clock", Severity::Warning, "was set", |node| node.facts.clock = "wrong: was set".into()),
        ("clock", Severity::Warning, "no time server answers", |node| {
            says(node, "not synchronised: no time server answers: x");
        }),
        ("clock", Severity::Info, "machine's own", |node| {
            says(node, "the machine's own clock: no time server")
        }),
        ("clock", Severity::Info, "jumped 2 times", |node| node.facts.clock_jumps = 2),
        ("memory", Severity::Warning, "of 976 MiB", |node| node.machine.memory_available_kib = 90_000),
        ("kernel", Severity::Warning, "lockdown is not there", |node| node.machine.lockdown = None),
        ("kernel", Severity::Warning, "lockdown is none", |node| node.machine.lockdown = Some("none".into())),
        ("kernel", Severity::Warning, "oops", |node| node.machine.taint = 1 << 7),
        ("kernel", Severity::Warning, "kptr_restrict", |node| node.lax.push("kptr_restrict is `0`".into())),
        ("watchdog", Severity::Info, "watchdog", |node| node.facts.watchdog = "none".into()),
        ("nulld", Severity::Warning, "crashed and began again 2", |node| node.facts.crashes = 2),
        ("nulld", Severity::Error, "3 crashes", |node| {
            node.facts.crashes = 3;
            node.facts.held = Some("3 crashes".into());
        }),
        ("nulld", Severity::Warning, "12 events", |node| node.facts.ledger_events_dropped = 12),
        ("boot", Severity::Error, "phase mounts: no /proc", |node| {
            node.phases[0].outcome = "failed: no /proc".into();
        }),
    ];

    fn says(node: &mut Node, text: &str) {
        let mut clock = patient("clock", "ready");
        clock.status.says = text.into();
        node.patients.push(clock);
    }

    fn space(node: &mut Node) -> &mut Space {
        node.disk.state.as_mut().unwrap()
    }

    fn network_of(node: &mut Node) -> &mut Network {
        node.machine.network.as_mut().unwrap()
    }

    fn problem() -> ConfigError {
        let text = |text: &str| text.to_owned();
        ConfigError {
            file: text("nulld.toml"),
            line: 3,
            field: text("node.name"),
            value: text("5"),
            rule: text("must be text"),
            remedy: text("write text"),
        }
    }

    #[test]
    fn nothing_is_found_on_a_sound_node() {
        assert_eq!(Node::sound().findings(), []);
    }

    #[test]
    fn each_harm_is_found_alone_with_a_remedy() {
        for (area, severity, text, harm) in HARMS {
            let mut node = Node::sound();
            harm(&mut node);
            let findings = node.findings();
            let [found] = findings.as_slice() else { panic!("{area} {text}: {findings:?}") };
            assert_eq!((found.area.as_str(), found.severity), (area, severity), "{found:?}");
            assert!(format!("{found:?}").contains(text), "{text} is not in {found:?}");
            assert!(found.what.len() > 5 && found.effect.len() > 8 && found.remedy.len() > 3, "{found:?}");
        }
    }

    #[test]
    fn services_are_named_with_their_end_and_their_last_line() {
        let mut node = Node::sound();
        let mut egress = patient("egress", "backoff");
        egress.status.detail = "exited with code 4".into();
        egress.last_line = "error: \x1b[2Jno table".into();
        let mut cage = patient("cage", "waiting");
        cage.unmet = vec!["egress (backoff)".into()];
        let mut clock = patient("clock", "ready");
        clock.status.restarts = 5;
        clock.status.ready_ms = Some(999_000);
        node.patients = vec![clock, egress, cage, patient("ctxgraph", "ready")];
        let findings = node.findings();
        let whats: Vec<&str> = findings.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(
            whats,
            [
                "egress is backoff: exited with code 4",
                "cage waits for egress (backoff)",
                "clock was restarted 5 times"
            ]
        );
        assert!(findings[0].remedy.ends_with("its last line: error: \\u{1b}[2Jno table"), "{findings:?}");
        assert_eq!(findings[0].effect, "agents reach nothing");
    }

    #[test]
    fn a_service_that_starts_with_the_node_is_no_trouble_yet() {
        let mut node = Node::sound();
        node.facts.ready_ms = None;
        node.patients = vec![patient("cage", "starting")];
        assert_eq!(node.findings()[0].severity, Severity::Info);
        node.facts.ready_ms = Some(1);
        assert_eq!(node.findings()[0].severity, Severity::Error);
    }

    #[test]
    fn a_clock_that_was_wrong_at_boot_and_is_right_now_is_no_trouble() {
        let mut node = Node::sound();
        node.facts.clock = "wrong: it was before the image".into();
        node.facts.clock_jumps = 1;
        says(&mut node, "synchronised to time.example.org (3 of 3 servers agree), offset +1.0 ms");
        assert_eq!(node.findings(), []);
    }

    #[test]
    fn in_rescue_the_tmpfs_is_not_spoken_of() {
        let mut node = Node::sound();
        node.facts.rescue = Some("no journal".into());
        node.facts.ephemeral = true;
        space(&mut node).bytes_free = 0;
        node.facts.found(Severity::Error, "state", "no journal", "rescue", "fsck");
        assert_eq!(node.findings(), node.facts.findings);
    }

    #[test]
    fn the_worst_comes_first_and_the_answer_is_bounded() {
        let mut node = Node::sound();
        node.machine.kvm = Kvm::NoFlag;
        node.facts.ephemeral = true;
        node.lax = (0..500).map(|n| format!("{n} {}", "x".repeat(5_000))).collect();
        let findings = node.findings();
        assert_eq!(findings.len(), limits::FINDINGS_MAX);
        assert_eq!(findings[0].area, "virtualization");
        assert!(findings.is_sorted_by_key(|finding| finding.severity));
        assert!(findings[limits::FINDINGS_MAX - 1].what.starts_with("439 more"), "{:?}", findings.last());
        let line = serde_json::to_vec(&Doctor { findings }).unwrap();
        assert!(line.len() < limits::LINE_BYTES_MAX, "{} bytes", line.len());
    }

    #[test]
    fn long_texts_shorten_the_list_not_the_line() {
        let mut node = Node::sound();
        let mut long = patient("x", "failed");
        long.status.detail = "\u{1f980}\x1b".repeat(1_000);
        long.last_line = "\u{1f980}\"".repeat(1_000);
        node.patients = vec![long; 64];
        let findings = node.findings();
        assert!(findings.len() > 10 && findings.len() < 64, "{}", findings.len());
        assert!(findings.last().unwrap().what.contains("more findings"));
        assert!(serde_json::to_vec(&Doctor { findings }).unwrap().len() < limits::LINE_BYTES_MAX - 1024);
    }
}
