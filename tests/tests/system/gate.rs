//! The remote door: keys, pins, roles.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::shared::lab;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("gate::unknown_key_is_refused", unknown_key_is_refused),
        trial("gate::wrong_pin_is_refused_by_the_client", wrong_pin_is_refused_by_the_client),
        trial("gate::reader_may_look_and_not_act", reader_may_look_and_not_act),
        trial("gate::operator_may_not_power_off", operator_may_not_power_off),
        trial("gate::internal_methods_are_closed_to_admins", internal_methods_are_closed_to_admins),
    ]
}

fn unknown_key_is_refused() -> Result<()> {
    let lab = lab()?;
    let answer =
        lab.node.ctl_as(&lab.config.keys.stranger, &lab.node.fingerprint()?, &["system", "status"])?;
    ensure!(answer.status == 4 && answer.stdout.is_empty(), "{answer:?}");
    ensure!(answer.stderr.contains("operators.toml"), "no remedy: {}", answer.stderr);
    Ok(())
}

fn wrong_pin_is_refused_by_the_client() -> Result<()> {
    let lab = lab()?;
    let pin = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let answer = lab.node.ctl_as(&lab.config.keys.admin, pin, &["system", "status"])?;
    ensure!(answer.status == 3 && answer.stdout.is_empty(), "{answer:?}");
    Ok(())
}

fn reader_may_look_and_not_act() -> Result<()> {
    let lab = lab()?;
    let pin = lab.node.fingerprint()?;
    lab.node.ctl_as(&lab.config.keys.reader, &pin, &["agent", "list"])?.ok()?;
    for action in
        [["agent", "start", "tester"].as_slice(), &["agent", "stop", "tester"], &["system", "reboot"]]
    {
        let answer = lab.node.ctl_as(&lab.config.keys.reader, &pin, action)?;
        ensure!(answer.status == 4, "{action:?}: {answer:?}");
        ensure!(answer.stderr.contains("role"), "the refusal does not explain itself: {}", answer.stderr);
    }
    Ok(())
}

fn operator_may_not_power_off() -> Result<()> {
    let lab = lab()?;
    let answer = lab.node.ctl(&["system", "poweroff"])?;
    ensure!(answer.status == 4 && answer.stderr.contains("admin"), "{answer:?}");
    Ok(())
}

/// No command of nullctl sends these, so the request is written by hand, over the real TLS door.
fn internal_methods_are_closed_to_admins() -> Result<()> {
    let lab = lab()?;
    let pin = lab.node.fingerprint()?;
    for method in ["ledger.append", "net.attach", "memory.attach"] {
        let answer = lab.node.ctl_as(&lab.config.keys.admin, &pin, &["--json", "call", method, "{}"])?;
        ensure!(answer.status == 4, "{method}: {answer:?}");
    }
    Ok(())
}
