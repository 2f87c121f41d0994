//! What agents remember, and that nobody else can read it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::shared::{eventually, lab};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("memory::three_writes_of_a_b_a_are_three_entries", three_writes_are_three_entries),
        trial("memory::another_agent_cannot_read_list_or_write", another_agent_cannot_read_list_or_write),
        trial(
            "memory::what_both_manifests_say_is_shared_and_no_more",
            what_both_manifests_say_is_shared_and_no_more,
        ),
        trial("memory::what_is_read_exposes_its_reader", what_is_read_exposes_its_reader),
        trial("memory::operator_sees_what_the_agent_wrote", operator_sees_what_the_agent_wrote),
        trial("memory::killed_ctxgraph_loses_nothing", killed_ctxgraph_loses_nothing),
    ]
}

fn three_writes_are_three_entries() -> Result<()> {
    let lab = lab()?;
    let found = lab.probe(
        "tester",
        &[
            "memory",
            r#"memory.write {"key":"aba","value":"A"}"#,
            r#"memory.write {"key":"aba","value":"B"}"#,
            r#"memory.write {"key":"aba","value":"A"}"#,
            r#"memory.history {"key":"aba"}"#,
            r#"memory.read {"key":"aba"}"#,
        ],
    )?;
    let answers = found["answers"].as_array().with_context(|| found.to_string())?;
    let hashes: std::collections::BTreeSet<_> =
        answers[..3].iter().filter_map(|a| a["result"]["hash"].as_str()).collect();
    ensure!(hashes.len() == 3, "{found}");
    ensure!(answers[3]["result"]["entries"].as_array().is_some_and(|e| e.len() == 3), "{found}");
    ensure!(answers[4]["result"]["hash"] == answers[2]["result"]["hash"], "{found}");
    ensure!(answers[2]["result"]["parent"] == answers[1]["result"]["hash"], "{found}");
    Ok(())
}

fn another_agent_cannot_read_list_or_write() -> Result<()> {
    let lab = lab()?;
    let wrote = lab.probe("tester", &["memory", r#"memory.write {"key":"private","value":{"pin":4711}}"#])?;
    let hash = wrote["answers"][0]["result"]["hash"].as_str().with_context(|| wrote.to_string())?.to_owned();
    let by_hash = format!(r#"memory.read {{"hash":"{hash}"}}"#);
    let found = lab.probe(
        "neighbour",
        &[
            "memory",
            &by_hash,
            r#"memory.read {"agent":"tester","key":"private"}"#,
            r#"memory.query {"agent":"tester","prefix":""}"#,
            r#"memory.history {"agent":"tester","key":"private"}"#,
            r#"memory.write {"agent":"tester","key":"private","value":1}"#,
            r#"memory.list {}"#,
            r#"ledger.tail {}"#,
            r#"memory.query {"prefix":""}"#,
        ],
    )?;
    let answers = found["answers"].as_array().with_context(|| found.to_string())?;
    ensure!(answers[..7].iter().all(|answer| answer["error"]["message"].is_string()), "{found}");
    ensure!(!found.to_string().contains("4711"), "{found}");
    ensure!(answers[7]["result"]["entries"].as_array().is_some_and(Vec::is_empty), "{found}");
    let still = lab.node.json(&["memory", "read", "--agent", "tester", "private"])?;
    ensure!(still["value"]["pin"] == 4711, "{still}");
    Ok(())
}

/// The tester's `shared/` and `inbox/` are the neighbour's by both manifests; `offered/` and `wished/` have one side only.
fn what_both_manifests_say_is_shared_and_no_more() -> Result<()> {
    let lab = lab()?;
    let write = |key: &str| format!(r#"memory.write {{"key":"{key}","value":"pin 4711"}}"#);
    let keys = ["shared/1", "offered/1", "wished/1"].map(write);
    let written = lab.probe("tester", &["memory", &keys[0], &keys[1], &keys[2]])?;
    let hash = written["answers"][0]["result"]["hash"].as_str().with_context(|| written.to_string())?;
    let by_hash = format!(r#"memory.read {{"hash":"{hash}"}}"#);
    let found = lab.probe(
        "neighbour",
        &[
            "memory",
            r#"memory.query {"agent":"tester","prefix":"shared/"}"#,
            &by_hash,
            r#"memory.write {"agent":"tester","key":"inbox/1","value":"hello"}"#,
            r#"memory.read {"agent":"tester","key":"wished/1"}"#,
            r#"memory.query {"agent":"tester","prefix":""}"#,
            r#"memory.write {"agent":"tester","key":"shared/1","value":"forged"}"#,
        ],
    )?;
    let answers = found["answers"].as_array().with_context(|| found.to_string())?;
    ensure!(answers[0]["result"]["entries"][0]["value"] == "pin 4711", "{found}");
    ensure!(answers[1]["result"]["hash"] == hash, "{found}");
    ensure!(answers[2]["result"]["labels"]["nullbox.writer"] == "agent neighbour", "{found}");
    ensure!(answers[3..].iter().all(|answer| answer["error"]["message"].is_string()), "{found}");
    let wished = answers[3]["error"]["data"].to_string();
    ensure!(
        wished.contains("the manifest of `tester` lacks it") && wished.contains("neighbour:wished/1"),
        "{wished}"
    );
    let third = lab.probe(
        "hermit",
        &[
            "memory",
            r#"memory.read {"agent":"tester","key":"shared/1"}"#,
            r#"memory.read {"agent":"tester","key":"offered/1"}"#,
            &by_hash,
        ],
    )?;
    ensure!(!third.to_string().contains("4711"), "{third}");
    let denied = third["answers"].as_array().with_context(|| third.to_string())?;
    ensure!(denied.iter().all(|answer| answer["error"]["message"].is_string()), "{third}");
    let offered = denied[1]["error"]["data"].to_string();
    ensure!(offered.contains("the manifest of `hermit` lacks it"), "{offered}");
    let inbox = lab.node.json(&["memory", "read", "--agent", "tester", "inbox/1"])?;
    ensure!(inbox["labels"]["nullbox.writer"] == "agent neighbour", "{inbox}");
    Ok(())
}

/// The tester has private data by its manifest (`filesystem.read`); the neighbour has not, until it reads what the tester wrote.
fn what_is_read_exposes_its_reader() -> Result<()> {
    let lab = lab()?;
    lab.probe("tester", &["memory", r#"memory.write {"key":"shared/2","value":1}"#])?;
    // A life of its own, that has read nothing yet.
    lab.running("neighbour")?;
    lab.node.json(&["agent", "stop", "neighbour"])?;
    lab.wait_state("neighbour", "stopped", Duration::from_secs(60))?;
    let found = lab.probe(
        "neighbour",
        &[
            "memory",
            r#"memory.query {"prefix":"nothing"}"#,
            r#"memory.read {"agent":"tester","key":"shared/2"}"#,
            r#"memory.write {"key":"after","value":1}"#,
        ],
    )?;
    let exposure = |number: usize, field: &str| found["answers"][number]["result"][field].to_string();
    ensure!(exposure(0, "reader_exposure") == r#"["untrusted_content","exfiltration"]"#, "{found}");
    let all = r#"["private_data","untrusted_content","exfiltration"]"#;
    ensure!(exposure(1, "reader_exposure") == all && exposure(2, "exposure") == all, "{found}");
    let shown = lab.node.ctl(&["memory", "read", "--agent", "neighbour", "after"])?.ok()?;
    ensure!(shown.stdout.contains("private_data untrusted_content exfiltration"), "{}", shown.stdout);
    let events = lab.node.json(&["ledger", "tail", "--limit", "200"])?;
    let events = events["events"].as_array().with_context(|| events.to_string())?;
    let raised = events.iter().rev().find(|event| event["event"]["event"] == "exposure_raised");
    let by = raised.and_then(|event| event["event"]["instance"].as_str()).unwrap_or_default();
    ensure!(by.starts_with("neighbour."), "{raised:?}");
    Ok(())
}

fn operator_sees_what_the_agent_wrote() -> Result<()> {
    let lab = lab()?;
    lab.probe("tester", &["memory", r#"memory.write {"key":"seen/by","value":["operator"]}"#])?;
    let found = lab.node.json(&["memory", "query", "--agent", "tester", "seen/"])?;
    ensure!(found["entries"][0]["value"][0] == "operator", "{found}");
    let list = lab.node.json(&["memory", "list"])?;
    ensure!(list["agents"].as_array().is_some_and(|a| a.iter().any(|a| a["agent"] == "tester")), "{list}");
    Ok(())
}

fn killed_ctxgraph_loses_nothing() -> Result<()> {
    let lab = lab()?;
    lab.probe("tester", &["memory", r#"memory.write {"key":"kept","value":"over a crash"}"#])?;
    let events = lab.node.json(&["ledger", "verify"])?["events"].as_u64().context("no count")?;
    ensure!(lab.node.fault("signal 9 ctxgraph")? == "1", "ctxgraph is not one process");
    eventually(Duration::from_secs(60), "the agent reads its memory again", || {
        let found = lab.probe("tester", &["memory", r#"memory.read {"key":"kept"}"#])?;
        Ok(found["answers"][0]["result"]["value"] == "over a crash")
    })?;
    let verified = lab.node.json(&["ledger", "verify"])?;
    ensure!(verified["broken"].is_null() && verified["events"].as_u64() >= Some(events), "{verified}");
    Ok(())
}
