//! What the ledger tells of a node's life.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::shared::lab;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("ledger::life_of_an_agent_is_told_in_order", life_of_an_agent_is_told_in_order),
        trial("ledger::refused_calls_are_recorded", refused_calls_are_recorded),
        trial("ledger::whole_chain_verifies", whole_chain_verifies),
        trial(
            "ledger::an_export_and_proofs_hold_without_the_node",
            an_export_and_proofs_hold_without_the_node,
        ),
    ]
}

fn life_of_an_agent_is_told_in_order() -> Result<()> {
    let lab = lab()?;
    let started = lab.node.json(&["agent", "start", "once"])?;
    let instance = started["instance"].as_str().context("no instance")?.to_owned();
    lab.wait_state("once", "exited", std::time::Duration::from_secs(60))?;
    let page = lab.node.json(&["ledger", "tail", "--limit", "500"])?;
    let told: Vec<&str> = page["events"]
        .as_array()
        .context("no events")?
        .iter()
        .filter(|e| e["event"]["instance"] == instance.as_str())
        .filter_map(|e| e["event"]["event"].as_str())
        .filter(|e| e.starts_with("agent_"))
        .collect();
    ensure!(told == ["agent_starting", "agent_ready", "agent_exited"], "{told:?}");
    Ok(())
}

fn refused_calls_are_recorded() -> Result<()> {
    let lab = lab()?;
    let pin = lab.node.fingerprint()?;
    lab.node.ctl_as(&lab.config.keys.reader, &pin, &["system", "poweroff"])?;
    crate::shared::eventually(std::time::Duration::from_secs(10), "the refusal is recorded", || {
        let page = lab.node.json(&["ledger", "tail", "--limit", "50"])?;
        let events = page["events"].as_array().cloned().unwrap_or_default();
        Ok(events.iter().any(|e| {
            e["event"]["event"] == "call_refused"
                && e["event"]["method"] == "system.poweroff"
                && e["event"]["by"].as_str().is_some_and(|by| by.contains("reader"))
        }))
    })
}

fn whole_chain_verifies() -> Result<()> {
    let verified = lab()?.node.json(&["ledger", "verify"])?;
    ensure!(verified["broken"].is_null() && verified["events"].as_u64() > Some(10), "{verified}");
    Ok(())
}

fn an_export_and_proofs_hold_without_the_node() -> Result<()> {
    let lab = lab()?;
    let at = |name: &str| lab.node.dir.join(name).display().to_string();
    let (old, export, proof, goes_on) = (at("old"), at("export"), at("proof"), at("goes-on"));
    let key = lab.node.json(&["ledger", "key"])?["key"].as_str().context("no key")?.to_owned();
    lab.node.json(&["ledger", "checkpoint", "-o", &old])?;
    let page = lab.node.json(&["ledger", "tail", "--limit", "10"])?;
    let seq = page["events"][0]["seq"].to_string();
    lab.node.json(&["ledger", "prove", &seq, "-o", &proof])?;
    lab.node.json(&["ledger", "export", &export])?;
    lab.node.json(&["ledger", "prove", "--since", &old, "-o", &goes_on])?;
    // From here on nothing but files and the key.
    let nullctl = system_tests::nullctl()?;
    let off = |arguments: &[&str]| {
        std::process::Command::new(&nullctl).args(["ledger", "verify"]).args(arguments).output()
    };
    for arguments in [
        &["--export", &export, "--key", &key, "--since", &old][..],
        &["--proof", &proof, "--key", &key],
        &["--proof", &goes_on, "--key", &key, "--since", &old],
    ] {
        let said = off(arguments)?;
        ensure!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    }
    let stranger = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for file in [&export, &proof, &goes_on] {
        let which = if file == &export { "--export" } else { "--proof" };
        let said = off(&[which, file, "--key", stranger, "--since", &old])?;
        ensure!(said.status.code() == Some(1), "{file} by a stranger: {said:?}");
    }
    let mut bytes = std::fs::read(&export)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&export, bytes)?;
    let said = off(&["--export", &export, "--key", &key])?;
    ensure!(said.status.code() == Some(1), "a flipped bit: {said:?}");
    Ok(())
}
