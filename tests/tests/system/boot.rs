//! How a node comes up: UEFI, BIOS, USB, phases, a read-only root, a flipped byte.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use system_tests::fixture::Config;
use system_tests::node::{BOOT_TIME_MAX, Firmware, Machine, Node, READY};

use crate::shared::lab;
use crate::trial;

/// Tests on the shared node.
pub fn before() -> Vec<Trial> {
    vec![
        trial(
            "boot::uefi_boot_reaches_ready_and_times_each_phase",
            uefi_boot_reaches_ready_and_times_each_phase,
        ),
        trial("boot::image_holds_our_programs_and_no_other", image_holds_our_programs_and_no_other),
        trial("boot::root_file_system_cannot_be_written", root_file_system_cannot_be_written),
        trial("boot::sizes_are_what_was_promised", sizes_are_what_was_promised),
        trial("boot::idle_node_stays_small", idle_node_stays_small),
        trial("boot::console_tells_the_nodes_state", console_tells_the_nodes_state),
    ]
}

/// Tests that boot nodes of their own.
pub fn after() -> Vec<Trial> {
    vec![
        trial(
            "boot::bios_boot_without_volumes_is_ephemeral_and_says_so",
            bios_boot_without_volumes_is_ephemeral_and_says_so,
        ),
        trial("boot::usb_stick_boots", usb_stick_boots),
        trial("boot::flipped_byte_is_refused", flipped_byte_is_refused),
        trial("boot::three_boots_in_a_row_reach_ready", three_boots_in_a_row_reach_ready),
    ]
}

fn uefi_boot_reaches_ready_and_times_each_phase() -> Result<()> {
    let lab = lab()?;
    let status = lab.node.json(&["system", "status"])?;
    let phases = status["phases"].as_array().context("no phases")?;
    for name in ["mounts", "config", "state", "network", "services"] {
        let phase = phases
            .iter()
            .find(|phase| phase["name"] == name)
            .with_context(|| format!("no phase {name} in {status}"))?;
        ensure!(phase["outcome"] == "ok" && phase["took_ms"].is_u64(), "{phase}");
    }
    ensure!(status["ephemeral"] == false && status["node"] == "lab", "{status}");
    ensure!(status["root_hash"].as_str().is_some_and(|hash| hash.len() == 64), "no root hash: {status}");
    ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");
    let table = lab.node.ctl(&["system", "status"])?.ok()?.stdout;
    ensure!(table.contains("services") && table.contains("ms"), "no phases for people: {table}");
    Ok(())
}

fn image_holds_our_programs_and_no_other() -> Result<()> {
    let lab = lab()?;
    let programs = lab.node.fault("list /system/bin")?;
    let programs: Vec<&str> = programs.lines().collect();
    ensure!(
        programs == ["cage", "cage-vmm", "ctxgraph", "egress", "fault", "nulld", "nullgate"],
        "{programs:?}"
    );
    for missing in ["/bin", "/sbin", "/usr", "/lib", "/lib64"] {
        ensure!(lab.node.fault(&format!("list {missing}")).is_err(), "{missing} exists");
    }
    Ok(())
}

fn root_file_system_cannot_be_written() -> Result<()> {
    let lab = lab()?;
    for path in ["/system/bin/nulld", "/system/new", "/new", "/system/config/new"] {
        let Err(error) = lab.node.fault(&format!("write {path} x")) else { bail!("{path} was written") };
        ensure!(format!("{error:#}").contains("os error 30"), "{path}: {error:#}, not EROFS");
    }
    Ok(())
}

fn sizes_are_what_was_promised() -> Result<()> {
    let verifier = system_tests::nullctl()?.with_file_name("verifier");
    for (path, most) in [(system_tests::iso()?, 30_000_000), (verifier, 480 * 1024)] {
        let bytes = fs::metadata(&path)?.len();
        ensure!(bytes < most, "{} has {bytes} bytes, {most} were promised", path.display());
    }
    Ok(())
}

fn idle_node_stays_small() -> Result<()> {
    let status = lab()?.node.json(&["system", "status"])?;
    let number = |field: &str| status[field].as_u64().with_context(|| format!("no {field}"));
    ensure!(number("nulld_rss_kib")? < 5 * 1024, "nulld holds {} KiB", number("nulld_rss_kib")?);
    Ok(())
}

fn console_tells_the_nodes_state() -> Result<()> {
    let lab = lab()?;
    lab.node.wait_for("nullbox: status", Duration::from_secs(60))?;
    let fingerprint = lab.node.fingerprint()?;
    let console = lab.node.console().replace('\r', "");
    let (_, block) = console.split_once("\nnullbox: status\n").context("the block does not begin a line")?;
    let rows: Vec<&str> = block.lines().take_while(|line| line.starts_with("  ")).collect();
    let row = |label: &str| {
        let found = rows.iter().find(|row| row.trim_start().starts_with(label)).copied();
        found.with_context(|| format!("no row `{label}` in {rows:#?}"))
    };
    for (label, text) in
        [("node", "lab"), ("address", "10.0.2.15"), ("state", "NULLBOX-STATE"), ("phases", "mounts")]
    {
        ensure!(row(label)?.contains(text), "{}", row(label)?);
    }
    // The services' own words: nullgate's key, and all of them by name.
    row("door")?;
    let all = rows.concat();
    let key = fingerprint.trim_start_matches("SHA256:");
    ensure!(all.contains(key.get(..16).unwrap_or(key)), "the node's key is not shown: {rows:#?}");
    for name in ["cage", "ctxgraph", "egress", "nullgate"] {
        ensure!(all.contains(name), "{name} is not shown: {rows:#?}");
    }
    Ok(())
}

fn three_boots_in_a_row_reach_ready() -> Result<()> {
    let (mut machine, _config) = bare("again", Firmware::UefiDisk)?;
    machine.memory_mib = 768;
    for boot in 1..=3 {
        let ms = Node::power_on(machine.clone())?
            .ready_ms(BOOT_TIME_MAX)
            .with_context(|| format!("boot {boot} of 3"))?;
        ensure!(ms > 0, "boot {boot} was ready before it began");
    }
    Ok(())
}

fn bare(name: &str, firmware: Firmware) -> Result<(Machine, Config)> {
    let config = Config::new(name)?;
    let machine = Machine { firmware, ..Machine::bare(name, system_tests::iso()?, &config) };
    Ok((machine, config))
}

fn bios_boot_without_volumes_is_ephemeral_and_says_so() -> Result<()> {
    let (machine, _config) = bare("bios", Firmware::Bios)?;
    let node = Node::boot(machine)?;
    node.wait_for("everything is lost at power-off", Duration::from_secs(30))?;
    node.fingerprint()?;
    // No operators.toml: the door is there and lets nobody in.
    let answer = node.ctl(&["system", "status"])?;
    ensure!(answer.status == 4, "a node without operators answered: {answer:?}");
    Ok(())
}

fn usb_stick_boots() -> Result<()> {
    let (mut machine, config) = bare("usb", Firmware::UefiUsb)?;
    machine.config = Some(config.volume()?);
    let node = Node::boot(machine)?;
    ensure!(
        node.json(&["system", "status"])?["ephemeral"] == true,
        "a node without a state disk must say so"
    );
    Ok(())
}

fn flipped_byte_is_refused() -> Result<()> {
    let (mut machine, config) = bare("flipped", Firmware::Uefi)?;
    let mut iso = fs::read(&machine.iso)?;
    // The first magic of SquashFS that has a version 4 superblock behind it; a byte well inside its data.
    let squashfs = iso
        .windows(32)
        .position(|w| w.starts_with(b"hsqs") && w[28..30] == [4, 0])
        .context("no SquashFS in the ISO")?;
    for offset in (squashfs + 96..squashfs + 96 + 8 * 4096).step_by(4096) {
        iso[offset] ^= 0x01;
    }
    let path = config.dir().join("flipped.iso");
    fs::write(&path, &iso)?;
    machine.iso = path;
    let node = Node::power_on(machine)?;
    let line = node.wait_for("corrupt", BOOT_TIME_MAX)?;
    ensure!(!node.console().contains(READY), "the node came up all the same; console said {line}");
    Ok(())
}
