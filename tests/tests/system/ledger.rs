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
