//! What an agent can reach: the names it was granted, and nothing else. Each test tries from inside a real guest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::shared::{PAGE, eventually, lab, refused};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("network::granted_name_is_reached", granted_name_is_reached),
        trial("network::name_without_a_grant_does_not_resolve", name_without_a_grant_does_not_resolve),
        trial("network::port_without_a_grant_is_refused", port_without_a_grant_is_refused),
        trial("network::host_header_of_another_name_is_refused", host_header_of_another_name_is_refused),
        trial("network::raw_addresses_are_refused_at_once", raw_addresses_are_refused_at_once),
        trial("network::ports_of_the_node_are_unreachable", ports_of_the_node_are_unreachable),
        trial("network::udp_goes_nowhere", udp_goes_nowhere),
        trial("network::there_is_no_ipv6", there_is_no_ipv6),
        trial("network::another_agents_addresses_lead_nowhere", another_agents_addresses_lead_nowhere),
        trial("network::agent_without_grants_has_no_interface", agent_without_grants_has_no_interface),
        trial("network::connection_has_its_receipt", connection_has_its_receipt),
        trial("network::killed_egress_fails_closed_and_recovers", killed_egress_fails_closed_and_recovers),
    ]
}

fn granted_name_is_reached() -> Result<()> {
    let lab = lab()?;
    let before = lab.web.seen().len();
    let found = lab.probe("tester", &["http", "web.test", "80", "web.test", "/page"])?;
    ensure!(found["response"].as_str().is_some_and(|r| r.contains(PAGE)), "{found}");
    ensure!(lab.web.seen()[before..] == ["GET /page web.test"], "{:?}", lab.web.seen());
    let resolved = lab.probe("tester", &["resolve", "web.test"])?;
    let address = resolved["addresses"][0].as_str().context("no address")?;
    ensure!(
        address.starts_with("198.18.") || address.starts_with("198.19."),
        "a real address leaked: {resolved}"
    );
    Ok(())
}

fn name_without_a_grant_does_not_resolve() -> Result<()> {
    let lab = lab()?;
    let names =
        ["evil.example", "other.test", "sub.web.test", "web.test.evil.example", "c2VjcmV0.evil.example"];
    lab.refused_each("tester", &names.map(|name| ["resolve", name]))?;
    names.iter().try_for_each(|name| lab.denied("tester", name, "name-not-granted"))
}

fn port_without_a_grant_is_refused() -> Result<()> {
    let lab = lab()?;
    let ports = ["443", "22", "8080"];
    for found in lab.probe_each("tester", &ports.map(|port| ["http", "web.test", port, "web.test"]))? {
        ensure!(found["error"].is_string() || found["response"] == "", "{found}");
    }
    lab.denied("tester", "web.test:443", "port-not-granted")
}

fn host_header_of_another_name_is_refused() -> Result<()> {
    let lab = lab()?;
    let before = lab.web.seen().len();
    let hosts = ["other.test", "10.0.2.100", "web.test.evil.example"];
    for found in lab.probe_each("tester", &hosts.map(|host| ["http", "web.test", "80", host]))? {
        ensure!(!found["response"].as_str().is_some_and(|r| r.contains(PAGE)), "{found}");
    }
    ensure!(lab.web.seen().len() == before, "the server saw {:?}", &lab.web.seen()[before..]);
    lab.denied("tester", "other.test", "host-mismatch")
}

fn raw_addresses_are_refused_at_once() -> Result<()> {
    let lab = lab()?;
    let before = lab.web.seen().len();
    let places = [
        ("8.8.8.8", "443"),
        ("10.0.2.100", "80"), // the very server, by its address
        ("10.0.2.2", "80"),
        ("169.254.169.254", "80"),
        ("192.168.1.1", "80"),
        ("1.1.1.1", "53"),
        ("134744072", "80"),     // 8.8.8.8 in decimal
        ("0x08.0x08.8.8", "80"), // and in hex
        ("255.255.255.255", "80"),
        ("224.0.0.1", "80"),
    ];
    lab.refused_each("tester", &places.map(|(address, port)| ["tcp", address, port]))?;
    ensure!(lab.web.seen().len() == before, "the server was reached by its address");
    lab.denied("tester", "8.8.8.8:443", "raw-address")?;
    lab.denied("tester", "169.254.169.254:80", "raw-address")
}

fn ports_of_the_node_are_unreachable() -> Result<()> {
    let lab = lab()?;
    let addresses = ["100.64.0.1", "10.0.2.15", "127.0.0.1"];
    let at = |port| addresses.map(|address| ["tcp", address, port]);
    lab.refused_each("tester", &["4466", "22", "80", "111"].map(at).concat())
}

fn udp_goes_nowhere() -> Result<()> {
    let lab = lab()?;
    let places = [
        ("8.8.8.8", "53"),
        ("10.0.2.3", "53"),
        ("web.test", "443"),
        ("100.64.0.1", "123"),
        ("224.0.0.251", "5353"),
    ];
    lab.refused_each("tester", &places.map(|(address, port)| ["udp", address, port]))
}

fn there_is_no_ipv6() -> Result<()> {
    let lab = lab()?;
    let addresses = ["::1", "2001:4860:4860::8888", "fe80::1", "::ffff:8.8.8.8"];
    lab.refused_each("tester", &addresses.map(|address| ["tcp6", address, "80"]))
}

fn another_agents_addresses_lead_nowhere() -> Result<()> {
    let lab = lab()?;
    lab.running("neighbour")?;
    let theirs = lab.probe("neighbour", &["resolve", "other.test"])?["addresses"][0]
        .as_str()
        .context("no address")?
        .to_owned();
    let before = lab.web.seen().len();
    // In the tester's world this address stands for its own name or for none: never for `other.test`.
    lab.probe("tester", &["http", &theirs, "80", "other.test"])?;
    ensure!(
        lab.web.seen().len() == before,
        "the neighbour's grant was used: {:?}",
        &lab.web.seen()[before..]
    );
    Ok(())
}

fn agent_without_grants_has_no_interface() -> Result<()> {
    let lab = lab()?;
    let me = lab.probe("hermit", &["whoami"])?;
    ensure!(me["interfaces"] == serde_json::json!(["lo"]), "{me}");
    refused(&lab.probe("hermit", &["tcp", "8.8.8.8", "443"])?)?;
    refused(&lab.probe("hermit", &["resolve", "web.test"])?)
}

fn connection_has_its_receipt() -> Result<()> {
    let lab = lab()?;
    lab.probe("tester", &["http", "web.test", "80", "web.test"])?;
    let page = lab.node.json(&["ledger", "tail", "--limit", "200"])?;
    let events = page["events"].as_array().context("no events")?;
    let receipt = events
        .iter()
        .rev()
        .find(|e| e["event"]["event"] == "net_connected")
        .context("no receipt of a connection")?;
    ensure!(receipt["source"] == "egress" && receipt["event"]["name"] == "web.test", "{receipt}");
    ensure!(receipt["event"]["address"].as_str().is_some_and(|a| a.starts_with("10.0.2.100")), "{receipt}");
    Ok(())
}

fn killed_egress_fails_closed_and_recovers() -> Result<()> {
    let lab = lab()?;
    lab.running("tester")?;
    let instance = lab.node.json(&["agent", "status", "tester"])?["summary"]["instance"].clone();
    ensure!(lab.node.fault("signal 9 egress")? == "1", "egress is not one process");
    eventually(Duration::from_secs(60), "the granted name is reached again", || {
        let found = lab.probe("tester", &["http", "web.test", "80", "web.test"])?;
        Ok(found["response"].as_str().is_some_and(|r| r.contains(PAGE)))
    })?;
    let same = lab.node.json(&["agent", "status", "tester"])?["summary"]["instance"].clone();
    ensure!(same == instance, "the agent was restarted: {instance} {same}");
    refused(&lab.probe("tester", &["resolve", "evil.example"])?)?;
    refused(&lab.probe("tester", &["tcp", "8.8.8.8", "443"])?)
}
