//! The jail around real VMs: what their threads call is what the tables of cage say, no more and no less.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cage::jail::calls::{KEPT, Role, role, rows};
use libtest_mimic::Trial;
use seccomp::When;

use crate::shared::{Guard, eventually, lab};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("jail::every_thread_of_a_vmm_has_its_own_filter", every_thread_has_its_own_filter),
        trial(
            "jail::no_rule_of_the_filters_is_dead_and_none_is_missing",
            no_rule_is_dead_and_none_is_missing,
        ),
    ]
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

/// One distinct call of a thread, with the arguments that a filter may look at.
struct Seen {
    thread: String,
    call: i64,
    args: [u64; 6],
}

impl Seen {
    fn parse(line: &str) -> Option<Seen> {
        let mut words = line.split('\t');
        let (thread, call) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let mut args = [0; 6];
        for arg in args.iter_mut().take(3) {
            *arg = words.next()?.parse().ok()?;
        }
        Some(Seen { thread, call, args })
    }

    /// A thread's name tells its role, but for the first thread, which has two after each other, and for new ones.
    fn roles(&self) -> Vec<Role> {
        match self.thread.as_str() {
            "cage-vmm" | "libkrun VM" => vec![Role::Setup, Role::Loop],
            "spawner" => vec![Role::Spawner, Role::Start],
            other => vec![role(other)],
        }
    }

    fn uses(&self, roles: &[Role], call: i64, when: When) -> bool {
        self.call == call && when.admits(&self.args) && self.roles().iter().any(|role| roles.contains(role))
    }
}

/// A whole life: boot, network, disk, flush, discard, output, exec with input, stop.
fn live(lab: &Guard) -> Result<()> {
    lab.node.json(&["agent", "start", "tester"])?;
    let code = "import os\nf = open('/data/out/blob', 'wb')\nfor n in range(8): f.write(os.urandom(1 << 20))\n\
        f.flush(); os.fsync(f.fileno()); f.close(); os.sync(); os.remove('/data/out/blob'); os.sync()\nprint('worked')";
    let answer = lab.node.ctl(&["agent", "exec", "tester", "--", "/usr/bin/python3", "-c", code])?;
    ensure!(answer.stdout.contains("worked"), "{answer:?}");
    lab.probe("tester", &["whoami"])?;
    lab.node.ctl(&["agent", "stop", "tester"])?.ok()?;
    Ok(())
}

fn no_rule_is_dead_and_none_is_missing() -> Result<()> {
    let lab = lab()?;
    lab.node.ctl(&["agent", "stop", "tester"])?.ok()?;
    let cage = processes(&lab, "cage")?.first().context("no cage")?.clone();
    let tracer = lab.node.fault(&format!("trace {cage}"))?;
    let record = || lab.node.fault("read /run/fault/trace");
    eventually(Duration::from_secs(20), "cage is followed", || Ok(record().is_ok_and(|r| !r.is_empty())))?;
    let lived = live(&lab);
    let record = record()?;
    lab.node.fault(&format!("kill 9 {tracer}"))?;
    lived.with_context(|| format!("traced:\n{record}"))?;
    let seen: Vec<Seen> = record.lines().filter_map(Seen::parse).collect();
    ensure!(seen.len() > 60, "only {} calls were seen:\n{record}", seen.len());
    let missing: Vec<String> = seen
        .iter()
        .filter(|seen| !rows().any(|(roles, (call, when, _))| seen.uses(roles, *call, *when)))
        .map(|seen| format!("{} {} {:x?}", seen.thread, seccomp::names::name(seen.call), seen.args))
        .collect();
    let mut dead = Vec::new();
    for (roles, (call, when, reason)) in rows() {
        if KEPT.iter().any(|(kept, why)| kept == call && !why.is_empty()) {
            continue;
        }
        // Each value of a list is a rule of its own.
        let rules = match *when {
            When::OneOf(index, values) => values.iter().map(|value| (index, Some(*value))).collect(),
            _ => vec![(0, None)],
        };
        for (index, value) in rules {
            let used = seen.iter().any(|seen| {
                seen.uses(roles, *call, *when)
                    && value.is_none_or(|value| seen.args.get(usize::from(index)) == Some(&value))
            });
            if !used {
                dead.push(format!("{} {value:x?} for {roles:?}: {reason}", seccomp::names::name(*call)));
            }
        }
    }
    ensure!(missing.is_empty(), "made and not allowed: {missing:#?}");
    ensure!(dead.is_empty(), "allowed and never made: {dead:#?}");
    Ok(())
}
