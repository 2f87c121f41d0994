//! Nodes that lack something: each comes up as far as it can and tells an operator what is wrong and what to do. Each machine lacks
//! several things that have nothing to do with each other, and is booted once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::fixture::Config;
use system_tests::node::{BOOT_TIME_MAX, Machine, Node, Oddities};

use crate::faults::finding;
use crate::shared::eventually;
use crate::trial;

/// How long doctor may take to see all of it.
const FINDINGS_TIME_MAX: Duration = Duration::from_secs(60);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("degraded::machine_without_virtualization_is_told", || {
            told(Lack::Machine, "virtualization", "kvm")
        }),
        trial("degraded::missing_state_volume_is_told", || told(Lack::Machine, "state", "ephemeral")),
        trial("degraded::clock_of_2001_is_told_and_put_right", clock_of_2001_is_told_and_put_right),
        trial("degraded::broken_service_is_told_and_alone", broken_service_is_told_and_alone),
        trial("degraded::wrong_nulld_toml_is_told", || told(Lack::Disks, "config", "nulld.toml")),
        trial("degraded::full_state_volume_is_told", || told(Lack::Disks, "state", "full")),
        trial("degraded::ctrl_alt_del_restarts_in_order", ctrl_alt_del_restarts_in_order),
        trial("degraded::broken_state_volume_leads_to_rescue_and_is_not_written", broken_state_volume),
        trial(
            "degraded::missing_network_is_told_on_the_node_itself_and_seven_presses_end_it_at_once",
            missing_network_is_told_and_seven_presses_end_it,
        ),
    ]
}

/// A machine that lacks something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    /// No virtualization, no state volume, a clock of 2001, a service that does not start.
    Machine,
    /// nulld.toml with a mistake, and a state volume without room.
    Disks,
    /// A state volume with a broken file system.
    Broken,
}

struct Patient {
    node: Node,
    config: Config,
}

/// One of them runs at a time.
static PATIENT: Mutex<BTreeMap<Lack, Patient>> = Mutex::new(BTreeMap::new());

fn with<T>(lack: Lack, test: impl FnOnce(&mut Patient) -> Result<T>) -> Result<T> {
    let mut slot = PATIENT.lock().unwrap_or_else(PoisonError::into_inner);
    slot.retain(|other, _| *other == lack);
    if slot.is_empty() {
        slot.insert(lack, admit(lack)?);
    }
    let patient = slot.get_mut(&lack).context("just put there")?;
    test(patient).inspect_err(|_| patient.node.keep_logs())
}

/// Ends what runs.
pub fn switch_off() {
    PATIENT.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn admit(lack: Lack) -> Result<Patient> {
    let config = Config::new("degraded")?;
    let mut machine = Machine { memory_mib: 768, ..Machine::bare("degraded", system_tests::iso()?, &config) };
    let mut odd = Oddities::default();
    match lack {
        Lack::Machine => {
            config.file("nulld.toml", "[services.broken]\npath = \"/system/bin/missing\"\n")?;
            odd.cpu_without = vec!["svm".into(), "vmx".into()];
            odd.arguments = ["-rtc", "base=2001-01-01T00:00:00"].map(Into::into).into();
        }
        Lack::Disks => {
            config.file("nulld.toml", "[node]\nname = \"degraded\"\ncolour = \"red\"\n")?;
            let state = config.dir().join("state.img");
            crate::faults::full_state(&state)?;
            machine.state = Some(state);
        }
        Lack::Broken => {
            let state = config.state("64M")?;
            // Behind magic and label (ext4's superblock, at 1024): what the file system is, is garbage.
            fs::File::options().write(true).open(&state)?.write_all_at(&[0xa5; 0x300], 1024 + 0x88)?;
            machine.state = Some(state);
        }
    }
    machine.config = Some(config.volume()?);
    let node = Node::power_on_odd(machine, &odd)?;
    node.wait_for("fingerprint=SHA256:", BOOT_TIME_MAX)?;
    if lack != Lack::Broken {
        // A connection that is opening while the packet filter comes up is unknown to it, and lost.
        node.wait_for("service_ready service=cage", BOOT_TIME_MAX)?;
    }
    Ok(Patient { node, config })
}

/// What doctor says to an operator; its exit status says whether something is wrong.
fn doctor(node: &Node) -> Result<Value> {
    let answer = node.ctl(&["--json", "system", "doctor"])?;
    answer.json().with_context(|| answer.stderr.clone())
}

/// Doctor has a finding of an area, with a word in it and a remedy.
fn told(lack: Lack, area: &str, word: &str) -> Result<()> {
    with(lack, |patient| found(&patient.node, area, word).map(drop))
}

fn found(node: &Node, area: &str, word: &str) -> Result<Value> {
    let mut all = Value::Null;
    let mut one = None;
    let told = eventually(FINDINGS_TIME_MAX, &format!("doctor tells of `{word}` in {area}"), || {
        all = doctor(node)?;
        one = finding(&all, area, word);
        Ok(one.is_some())
    });
    told.with_context(|| all.to_string())?;
    one.context("found above")
}

fn clock_of_2001_is_told_and_put_right() -> Result<()> {
    with(Lack::Machine, |patient| {
        found(&patient.node, "clock", "")?;
        // It runs from the image's time on all the same.
        let logs = patient.node.ctl(&["--json", "system", "logs", "nulld"])?.ok()?.stdout;
        let (_, newest) = logs.rsplit_once("\"unix_ms\":").with_context(|| format!("no time in {logs}"))?;
        let digits: String = newest.chars().take_while(char::is_ascii_digit).collect();
        let unix_ms: u64 = digits.parse()?;
        ensure!(unix_ms > 1_700_000_000_000, "its clock is still at {unix_ms} ms");
        Ok(())
    })
}

fn broken_service_is_told_and_alone() -> Result<()> {
    with(Lack::Machine, |patient| {
        found(&patient.node, "services", "broken")?;
        let others = ["ctxgraph", "egress", "cage", "nullgate", "uplink"];
        let mut status = Value::Null;
        eventually(FINDINGS_TIME_MAX, "all others are ready", || {
            status = patient.node.json(&["system", "status"])?;
            Ok(others.iter().all(|name| {
                crate::sound::service(&status, name)
                    .is_ok_and(|s| s["state"] == "ready" && s["restarts"] == 0)
            }))
        })
        .with_context(|| status.to_string())
    })
}

/// ctrl-alt-del at the machine's own keyboard.
fn press(node: &Node) -> Result<()> {
    let keys = ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key }));
    node.qmp("send-key", json!({ "keys": keys, "hold-time": 50 }))?;
    std::thread::sleep(Duration::from_millis(250));
    Ok(())
}

fn ctrl_alt_del_restarts_in_order() -> Result<()> {
    with(Lack::Disks, |patient| {
        press(&patient.node)?;
        patient.node.wait_for("reboot ordered by ctrl-alt-del", Duration::from_secs(60))?;
        patient.node.wait_for("services stopped in", Duration::from_secs(60))?;
        patient.node.wait_off(Duration::from_secs(60))
    })?;
    switch_off();
    Ok(())
}

fn broken_state_volume() -> Result<()> {
    with(Lack::Broken, |patient| {
        let state = patient.config.dir().join("state.img");
        let before = fs::read(&state)?;
        found(&patient.node, "state", "")?;
        let status = patient.node.json(&["system", "status"])?;
        let is_ready = |name: &str| crate::sound::service(&status, name).is_ok_and(|s| s["state"] == "ready");
        ensure!(is_ready("nullgate") && is_ready("uplink"), "no door in rescue: {status}");
        ensure!(!is_ready("cage") && !is_ready("ctxgraph") && !is_ready("egress"), "not in rescue: {status}");
        ensure!(fs::read(&state)? == before, "the broken volume was written to");
        ensure!(patient.node.ctl(&["agent", "list"])?.status != 0, "cage answers in rescue");
        Ok(())
    })
}

/// A service that holds up an ordered end for longer than anybody waits here.
const DEAF: &str = r#"
[services.deaf]
path = "/system/bin/fault"
args = ["--victim", "deaf", "--deaf"]
unconfined = true
stop_secs_max = 40
"#;

fn missing_network_is_told_and_seven_presses_end_it() -> Result<()> {
    switch_off();
    let config = Config::new("unplugged")?;
    config.file("nulld.toml", &format!("{}{DEAF}", crate::faults::SABOTEUR))?;
    let machine = Machine {
        config: Some(config.volume()?),
        memory_mib: 768,
        ..Machine::bare("unplugged", system_tests::test_iso()?, &config)
    };
    let odd = Oddities { network: Some(String::new()), ..Oddities::default() };
    // Ready all the same: the node waits for an address only so long.
    let mut node = Node::boot_odd(machine, &odd)?;
    let doctor = crate::sound::call(&node, "system.doctor", "{}")?;
    ensure!(finding(&doctor, "network", "no network interface").is_some(), "{doctor}");
    let forced = (0..3).find_map(|_| {
        // A machine that is busy with other things can lose a press; one that is off takes none.
        let _ = (0..abi::limits::FORCE_PRESSES).try_for_each(|_| press(&node));
        node.wait_for("forced by ctrl-alt-del", Duration::from_secs(10)).ok()
    });
    let forced = forced.context("seven presses forced nothing");
    forced.and_then(|_| node.wait_off(Duration::from_secs(25))).inspect_err(|_| node.keep_logs())
}
