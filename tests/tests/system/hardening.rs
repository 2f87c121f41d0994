//! What the running kernel says of itself, behind nulld's back: every setting that the source promises is in force.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::node::Node;

use crate::shared::lab;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("hardening::settings_of_nulld_are_in_force", settings_of_nulld_are_in_force),
        trial("hardening::settings_of_kspp_are_in_force_or_excepted", settings_of_kspp_are_in_force),
        trial("hardening::kernel_is_locked_down", kernel_is_locked_down),
        trial("hardening::ways_into_the_kernel_are_not_there", ways_into_the_kernel_are_not_there),
    ]
}

fn source(path: &str) -> Result<String> {
    let path = system_tests::tree().join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// A file below /proc/sys, its words apart by one space; none where the kernel has no such setting.
fn setting(node: &Node, path: &str) -> Option<String> {
    let text = node.fault(&format!("read /proc/sys/{path}")).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The `set("path", "value", ...)` of nulld's table, read as text: the test must not share nulld's own eyes.
fn table(text: &str) -> Vec<(String, String)> {
    let entries = text.split("set(").skip(1);
    let strings = entries.map(|entry| entry.split('"').skip(1).step_by(2).take(2).collect::<Vec<_>>());
    let pairs = strings.filter_map(|words| Some((words.first()?.to_string(), words.get(1)?.to_string())));
    pairs.filter(|(path, _)| path.contains('/') && !path.contains(' ')).collect()
}

fn settings_of_nulld_are_in_force() -> Result<()> {
    let lab = lab()?;
    let wanted = table(&source("nulld/src/sysctl.rs")?);
    ensure!(wanted.len() >= 45, "only {} settings were found in nulld/src/sysctl.rs", wanted.len());
    let wrong: Vec<String> = wanted
        .iter()
        .map(|(path, value)| (path, value, setting(&lab.node, path)))
        .filter(|(_, value, found)| found.as_ref() != Some(*value))
        .map(|(path, value, found)| format!("{path} is {found:?}, not {value}"))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn settings_of_kspp_are_in_force() -> Result<()> {
    let lab = lab()?;
    let kspp: toml::Table = source("kernel-config/kspp.toml")?.parse()?;
    let part = |name: &str| kspp["sysctl"][name].as_table().cloned().context("no such table");
    let mut wanted: BTreeMap<String, Option<String>> = BTreeMap::new();
    for (path, value) in part("wanted")? {
        wanted.insert(path, value.as_str().map(Into::into));
    }
    // Without a value: the kernel has no such file.
    for (path, exception) in part("exceptions")? {
        wanted.insert(path, exception.get("value").and_then(|value| value.as_str()).map(Into::into));
    }
    ensure!(wanted.len() >= 15, "kspp.toml lists only {} settings", wanted.len());
    for (path, value) in wanted {
        let found = setting(&lab.node, &path);
        ensure!(found == value, "{path} is {found:?}, not {value:?}");
    }
    Ok(())
}

fn kernel_is_locked_down() -> Result<()> {
    let lab = lab()?;
    let lockdown = lab.node.fault("read /sys/kernel/security/lockdown")?;
    ensure!(lockdown.contains("[confidentiality]"), "lockdown: {lockdown}");
    let modules = lab.node.fault("read /sys/kernel/security/lsm")?;
    for module in ["lockdown", "yama", "landlock"] {
        ensure!(modules.split(',').any(|name| name.trim() == module), "no {module} in {modules}");
    }
    let line = lab.node.fault("read /proc/cmdline")?;
    for word in ["mitigations=off", "nokaslr", "nopti", "init_on_alloc=0", "slab_merge", "noexec=off"] {
        ensure!(
            !line.split_whitespace().any(|other| other == word),
            "`{word}` is on the command line: {line}"
        );
    }
    Ok(())
}

fn ways_into_the_kernel_are_not_there() -> Result<()> {
    let lab = lab()?;
    for path in ["/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", "/proc/modules", "/proc/config.gz"] {
        ensure!(lab.node.fault(&format!("read {path}")).is_err(), "{path} can be read");
    }
    let listed = lab.node.fault("list /dev")?;
    for device in ["mem", "kmem", "port", "nvram", "userfaultfd", "loop-control", "fuse", "ptmx"] {
        ensure!(!listed.lines().any(|name| name == device), "there is a /dev/{device}");
    }
    // Addresses are hidden even from root.
    if let Ok(symbols) = lab.node.fault("read /proc/kallsyms") {
        let shown = symbols.lines().find(|line| !line.starts_with("0000000000000000"));
        ensure!(shown.is_none_or(|line| line.len() < 16), "an address is shown: {shown:?}");
    }
    Ok(())
}
