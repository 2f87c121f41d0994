//! Prints what an idle node holds in memory: the product's image, booted with a state disk and no agent.

use std::time::Duration;

use anyhow::{Context, Result};
use system_tests::fixture::Config;
use system_tests::node::{Machine, Node};

/// What a boot still holds, up to a fifth of all, is given back by then.
const SETTLED: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let config = Config::new("idle")?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("256M")?),
        ..Machine::bare("idle", system_tests::iso()?, &config)
    };
    let node = Node::boot(machine)?;
    std::thread::sleep(SETTLED);
    let status = node.json(&["system", "status"])?;
    let kib = |field: &str| status[field].as_u64().with_context(|| format!("no {field} in {status}"));
    let used = kib("memory_total_kib")? - kib("memory_available_kib")?;
    println!("{:<20} {:>9} KiB  (MemTotal - MemAvailable)", "idle node", used);
    println!("{:<20} {:>9} KiB  resident", "nulld", kib("nulld_rss_kib")?);
    for service in status["services"].as_array().context("no services")? {
        let name = service["name"].as_str().unwrap_or_default();
        println!("{name:<20} {:>9} KiB  (cgroup)", service["memory_kib"].as_u64().unwrap_or(0));
    }
    println!("{:<20} {:>9} ms   (kernel start to all services ready)", "boot", kib("ready_ms")?);
    Ok(())
}
