//! The jail around real VMs, seen from the node.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::shared::{Guard, lab};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![trial("jail::every_thread_of_a_vmm_has_its_own_filter", every_thread_has_its_own_filter)]
}

/// The pids of processes of one name.
fn processes(lab: &Guard, name: &str) -> Result<Vec<String>> {
    let all = lab.node.fault("ps")?;
    let named = all.lines().filter(|line| line.ends_with(&format!(" {name}")));
    Ok(named.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn every_thread_has_its_own_filter() -> Result<()> {
    let lab = lab()?;
    lab.running("hermit")?;
    let vmms = processes(&lab, "libkrun")?;
    let vmm = vmms.first().context("no VMM among the processes")?;
    let status = |task: &str| lab.node.fault(&format!("read /proc/{vmm}/task/{task}/status"));
    let mut names = BTreeSet::new();
    for task in lab.node.fault(&format!("list /proc/{vmm}/task"))?.lines() {
        let status = status(task)?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
        };
        let (name, filters) = (field("Name:"), field("Seccomp_filters:").parse::<u32>()?);
        ensure!(field("Seccomp:") == "2" && field("NoNewPrivs:") == "1", "{name}: {status}");
        // Those of cage's service, the one that kills, the first thread's, and its role's.
        ensure!(filters >= 4, "{name} has {filters} filters");
        names.insert(name);
    }
    for expected in ["fc_vcpu 0", "block worker", "vsock muxer", "spawner"] {
        ensure!(names.contains(expected), "no thread `{expected}` in {names:?}");
    }
    Ok(())
}
