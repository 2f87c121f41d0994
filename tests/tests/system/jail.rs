//! The jail around real VMs, seen from the node.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cage::jail::calls::{ROLES, Role, rows};
use libtest_mimic::Trial;
use system_tests::node::Node;
use system_tests::rules::{Made, judge};

use crate::hostile;
use crate::shared::eventually;
use crate::trial;

/// How long a life may take whose every system call is watched.
const LIFE: Duration = Duration::from_secs(300);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("jail::no_rule_of_the_filters_is_dead", no_rule_is_dead),
        trial("jail::every_thread_of_a_vmm_has_its_own_filter", every_thread_has_its_own_filter),
    ]
}

/// The pids of processes of one name.
fn processes(node: &Node, name: &str) -> Result<Vec<String>> {
    let all = node.fault("ps")?;
    let named = all.lines().filter(|line| line.ends_with(&format!(" {name}")));
    Ok(named.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn every_thread_has_its_own_filter() -> Result<()> {
    let node = hostile::NODE.hold()?;
    hostile::running(&node, "bystander")?;
    let vmms = processes(&node, "libkrun")?;
    let vmm = vmms.first().context("no VMM among the processes")?;
    let status = |task: &str| node.fault(&format!("read /proc/{vmm}/task/{task}/status"));
    let mut names = BTreeSet::new();
    for task in node.fault(&format!("list /proc/{vmm}/task"))?.lines() {
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

/// The saboteur lives one whole life of a VM (src/bin/fault/calls) on the node whose saboteur may make jails.
fn no_rule_is_dead() -> Result<()> {
    let node = hostile::NODE.hold()?;
    hostile::running(&node, "bystander")?;
    let life = node.fault("calls bystander")?;
    let is_over = || Ok(node.fault(&format!("ended {life}"))? != "running");
    eventually(LIFE, "the watched life is over", is_over)?;
    let record = node.fault("read /run/fault/calls.txt")?;
    let made: Vec<Made> = record.lines().filter_map(Made::parse).collect();
    ensure!(made.len() == record.lines().count(), "{record}");
    // `Start` has nothing of its own before it has a name; every other role must have lived.
    for role in ROLES {
        let count = made.iter().filter(|made| made.role == role).count();
        eprintln!("system calls of {role:?}: {count} distinct");
        ensure!(count > 0 || role == Role::Idle, "no call of {role:?} was seen:\n{record}");
    }
    let wrong = judge(rows(), &made);
    ensure!(wrong.is_empty(), "cage/src/jail/calls.rs:\n{}\nseen:\n{record}", wrong.join("\n"));
    Ok(())
}
