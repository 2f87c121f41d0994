//! What must be true of a node after every fault: asked of the node itself, of its processes behind its back, and over the network.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use system_tests::node::Node;

use crate::shared::eventually;

/// How long a node may take to be sound again, under emulation: a service that was killed starts anew after seconds.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(90);
/// What nulld may hold in memory, whatever was done to it.
const NULLD_RSS_KIB_MAX: u64 = 5 * 1024;

/// A node before a fault.
#[derive(Debug)]
pub struct Before {
    services: BTreeMap<String, (u64, u64)>,
    crashes: u64,
    boot_id: String,
    events: u64,
    mark: String,
}

/// Notes what must be the same afterwards, and leaves a mark in the saboteur's log.
pub fn before(node: &Node) -> Result<Before> {
    static MARKS: AtomicU32 = AtomicU32::new(0);
    let mark = format!("mark-{}-is-kept", MARKS.fetch_add(1, Ordering::Relaxed));
    node.fault(&format!("mark {mark}"))?;
    let status = status(node)?;
    Ok(Before {
        services: services(&status)?,
        crashes: number(&status, "crashes")?,
        boot_id: status["boot_id"].as_str().context("no boot id")?.to_owned(),
        events: node.json(&["ledger", "verify"])?["events"].as_u64().context("no count of events")?,
        mark,
    })
}

/// `system.status`, asked as root on the node itself.
pub fn status(node: &Node) -> Result<Value> {
    call(node, "system.status", "{}")
}

/// A call as root on the node itself.
pub fn call(node: &Node, method: &str, params: &str) -> Result<Value> {
    Ok(serde_json::from_str(&node.fault(&format!("call {method} {params}"))?)?)
}

/// A service of a status.
pub fn service(status: &Value, name: &str) -> Result<Value> {
    let all = status["services"].as_array().context("no services")?;
    all.iter().find(|service| service["name"] == name).cloned().with_context(|| format!("no service {name}"))
}

fn number(status: &Value, field: &str) -> Result<u64> {
    status[field].as_u64().with_context(|| format!("no {field} in {status}"))
}

/// Each service's pid and restarts.
fn services(status: &Value) -> Result<BTreeMap<String, (u64, u64)>> {
    let all = status["services"].as_array().context("no services")?;
    all.iter()
        .map(|service| {
            let name = service["name"].as_str().context("a service without a name")?.to_owned();
            let restarts = number(service, "restarts")?;
            Ok((name, (service["pid"].as_u64().unwrap_or(0), restarts)))
        })
        .collect()
}

impl Before {
    /// The node is as sound as it was. Services in `hit` may have been started anew; nulld crashed `crashes` times.
    pub fn still_sound(&self, node: &Node, hit: &[&str], crashes: u64) -> Result<()> {
        let mut why = String::new();
        let sound = eventually(RECOVERY_TIME_MAX, "all services are ready and no zombie is left", || {
            why = self.unsound(node, hit)?.unwrap_or_default();
            Ok(why.is_empty())
        });
        sound.with_context(|| why.clone())?;
        let status = status(node)?;
        ensure!(status["boot_id"] == *self.boot_id, "the node has booted anew");
        ensure!(status["held"].is_null(), "nulld is held: {}", status["held"]);
        ensure!(
            number(&status, "crashes")? == self.crashes + crashes,
            "nulld crashed {} times before and {} now, {crashes} more were expected",
            self.crashes,
            status["crashes"]
        );
        let rss = number(&status, "nulld_rss_kib")?;
        ensure!(rss < NULLD_RSS_KIB_MAX, "nulld holds {rss} KiB");
        let first = node.fault("read /proc/1/comm")?;
        ensure!(first.trim() == "nulld", "the first process is {first}");
        // From outside, by the one door: the log is kept, and the ledger has lost nothing.
        let log = node.ctl(&["system", "logs", "fault"])?.ok()?.stdout;
        ensure!(log.contains(&self.mark), "the log has lost `{}`: it ends with\n{}", self.mark, end(&log));
        let verified = node.json(&["ledger", "verify"])?;
        ensure!(
            verified["broken"].is_null() && verified["events"].as_u64() >= Some(self.events),
            "the ledger had {} events: {verified}",
            self.events
        );
        Ok(())
    }

    /// Crashes of nulld before the fault.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }

    /// Restarts of a service before the fault.
    pub fn restarts(&self, name: &str) -> Option<u64> {
        self.services.get(name).map(|(_, restarts)| *restarts)
    }

    /// All services but those `hit` run on as they did.
    pub fn others_are_untouched(&self, node: &Node, hit: &[&str]) -> Result<()> {
        let now = services(&status(node)?)?;
        for (name, before) in self.services.iter().filter(|(name, _)| !hit.contains(&name.as_str())) {
            ensure!(
                now.get(name) == Some(before),
                "{name} was {before:?} (pid, restarts), now {:?}",
                now.get(name)
            );
        }
        Ok(())
    }

    /// Why the node is not sound yet. What can never be sound again is an error.
    fn unsound(&self, node: &Node, hit: &[&str]) -> Result<Option<String>> {
        let status = status(node)?;
        for (name, (pid, restarts)) in &self.services {
            let now = service(&status, name)?;
            if now["state"] != "ready" {
                return Ok(Some(format!("{name} is not ready: {now}")));
            }
            let is_same = now["pid"].as_u64() == Some(*pid) && now["restarts"].as_u64() == Some(*restarts);
            if !hit.contains(&name.as_str()) && !is_same {
                bail!("{name} was pid {pid} with {restarts} restarts and was not to be touched: {now}");
            }
        }
        let table = node.fault("ps")?;
        let zombie = table.lines().find(|line| line.split(' ').nth(3) == Some("Z"));
        Ok(zombie.map(|line| format!("a zombie: {line}")))
    }
}

fn end(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
