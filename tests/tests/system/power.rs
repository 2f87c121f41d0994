//! Services that die, a plug that is pulled, an orderly end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::node::Node;

use crate::shared::{PAGE, eventually, lab};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("power::killed_nullgate_comes_back_with_the_same_key", killed_nullgate_comes_back),
        trial("power::killed_cage_starts_its_agents_again", killed_cage_starts_its_agents_again),
        trial("power::pulled_plug_keeps_memory_ledger_key_and_agents", pulled_plug_keeps_state),
        trial("power::poweroff_is_orderly_and_bounded", poweroff_is_orderly_and_bounded),
    ]
}

fn killed_nullgate_comes_back() -> Result<()> {
    let lab = lab()?;
    ensure!(lab.node.fault("signal 9 nullgate")? == "1", "nullgate is not one process");
    // ctl() pins the key of the first boot line, so an answer proves the key is the same.
    eventually(Duration::from_secs(60), "the door answers again", || {
        Ok(lab.node.ctl(&["system", "status"])?.status == 0)
    })
}

fn killed_cage_starts_its_agents_again() -> Result<()> {
    let lab = lab()?;
    lab.running("tester")?;
    lab.running("hermit")?;
    lab.node.json(&["agent", "stop", "neighbour"])?;
    let agents = ["tester", "hermit"];
    let instance = |agent: &str| anyhow::Ok(lab.node.json(&["agent", "status", agent])?["summary"].clone());
    let before = [instance(agents[0])?, instance(agents[1])?];
    ensure!(lab.node.fault("signal 9 cage")? == "1", "cage is not one process");
    eventually(Duration::from_secs(240), "the agents run again as new instances", || {
        let after = [instance(agents[0])?, instance(agents[1])?];
        Ok(after.iter().zip(&before).all(|(a, b)| a["state"] == "running" && a["instance"] != b["instance"]))
    })?;
    ensure!(lab.state("neighbour")? == "stopped", "what was stopped runs again");
    let found = lab.probe("tester", &["http", "web.test", "80", "web.test"])?;
    ensure!(found["response"].as_str().is_some_and(|r| r.contains(PAGE)), "{found}");
    let services = lab.node.json(&["system", "status"])?;
    let nullgate = services["services"]
        .as_array()
        .context("no services")?
        .iter()
        .find(|s| s["name"] == "egress")
        .cloned();
    ensure!(nullgate.is_some_and(|s| s["state"] == "ready"), "{services}");
    Ok(())
}

fn pulled_plug_keeps_state() -> Result<()> {
    let mut guard = lab()?;
    guard.running("tester")?;
    guard.probe("tester", &["memory", r#"memory.write {"key":"before","value":"the plug was pulled"}"#])?;
    let events = guard.node.json(&["ledger", "verify"])?["events"].as_u64().context("no count")?;
    let fingerprint = guard.node.fingerprint()?;
    let crate::shared::Lab { node, config, web } = guard.take();
    let node = Node::boot(node.pull_plug()?)?;
    guard.put(crate::shared::Lab { node, config, web });
    ensure!(guard.node.fingerprint()? == fingerprint, "the node has another key");
    let entry = guard.node.json(&["memory", "read", "--agent", "tester", "before"])?;
    ensure!(entry["value"] == "the plug was pulled", "{entry}");
    let verified = guard.node.json(&["ledger", "verify"])?;
    ensure!(
        verified["broken"].is_null() && verified["events"].as_u64() >= Some(events),
        "{verified}, had {events}"
    );
    guard.wait_state("tester", "running", Duration::from_secs(120))
}

fn poweroff_is_orderly_and_bounded() -> Result<()> {
    let mut guard = lab()?;
    guard.running("tester")?;
    let pin = guard.node.fingerprint()?;
    guard.node.ctl_as(&guard.config.keys.admin, &pin, &["system", "poweroff"])?.ok()?;
    let mut lab = guard.take();
    lab.node.wait_off(Duration::from_secs(180))?;
    let console = lab.node.console();
    ensure!(!console.contains("Kernel panic"), "it panicked on the way down");
    Ok(())
}
