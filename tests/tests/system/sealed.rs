//! Secrets on a node with a TPM (swtpm behind QEMU's), with the same disk and another TPM, and without one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::fixture::Config;
use system_tests::node::{Machine, Node, Oddities};

use crate::shared::eventually;
use crate::trial;

const VALUE: &str = "sk-sealed-0123456789-abcdefghij";

pub fn trials() -> Vec<Trial> {
    vec![trial("sealed::a_disk_without_its_tpm_has_no_secrets", a_disk_without_its_tpm_has_no_secrets)]
}

/// A TPM for one power cycle: QEMU ends it with itself.
struct Tpm(Child);

impl Tpm {
    fn start(dir: &Path) -> Result<(Tpm, Oddities)> {
        std::fs::create_dir_all(dir)?;
        let socket = dir.join("control.sock");
        let _ = std::fs::remove_file(&socket); // of the power cycle before
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", dir.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start swtpm: run `make deps`")?;
        let tpm = Tpm(child);
        eventually(Duration::from_secs(10), "swtpm listens", || Ok(socket.exists()))?;
        let chardev = format!("socket,id=tpm,path={}", socket.display());
        let arguments = [
            "-chardev",
            &chardev,
            "-tpmdev",
            "emulator,id=tpm0,chardev=tpm",
            "-device",
            "tpm-crb,tpmdev=tpm0",
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        Ok((tpm, Oddities { arguments, ..Oddities::default() }))
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended with QEMU
        let _ = self.0.wait();
    }
}

fn a_disk_without_its_tpm_has_no_secrets() -> Result<()> {
    let config = Config::new("sealed")?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("128M")?),
        ..Machine::bare("sealed", system_tests::iso()?, &config)
    };
    let disk = machine.state.clone().context("no state")?;
    let file = config.dir().join("secret");
    std::fs::write(&file, format!("{VALUE}\n"))?;
    let (own, another) = (config.dir().join("tpm"), config.dir().join("another"));

    let (tpm, odd) = Tpm::start(&own)?;
    let node = Node::boot_odd(machine, &odd)?;
    let path = file.display().to_string();
    node.json(&["secret", "set", "KEY", "--host", "api.test", "--file", &path])?;
    let list = node.json(&["secret", "list"])?;
    ensure!(list["sealed_by"] == "tpm", "{list}");
    let machine = node.pull_plug()?;
    drop(tpm);
    let bytes = std::fs::read(&disk)?;
    ensure!(!bytes.windows(VALUE.len()).any(|part| part == VALUE.as_bytes()), "the value is on the disk");

    let (tpm, odd) = Tpm::start(&own)?;
    let node = Node::boot_odd(machine, &odd)?;
    let list = node.json(&["secret", "list"])?;
    ensure!(list["sealed_by"] == "tpm" && list["secrets"][0]["problem"].is_null(), "{list}");

    let machine = node.pull_plug()?;
    drop(tpm);
    let (_tpm, odd) = Tpm::start(&another)?;
    let node = Node::boot_odd(machine, &odd)?;
    let list = node.json(&["secret", "list"])?;
    ensure!(list["sealed_by"].as_str().is_some_and(|why| why.contains("another TPM")), "{list}");

    let node = Node::boot(node.pull_plug()?)?;
    let list = node.json(&["secret", "list"])?;
    ensure!(
        list["sealed_by"].as_str().is_some_and(|why| why.contains("give the machine its TPM back")),
        "{list}"
    );
    let refused = node.ctl(&["secret", "set", "NEW", "--host", "api.test", "--file", &path])?;
    ensure!(refused.status != 0, "a secret was stored without its key");
    Ok(())
}
