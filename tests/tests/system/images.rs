//! The rootfs store of a node: what operators see, share and remove.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::shared::lab;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("images::layers_are_shared_and_go_with_the_last_image", layers_are_shared),
        trial("images::what_an_agent_runs_from_stays", what_an_agent_runs_from_stays),
        trial("images::hostile_archive_is_refused_and_leaves_nothing", hostile_archive_is_refused),
    ]
}

/// Runs a program of this machine; what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What docker save would write of these layers, each a file of that name and content.
fn archive(dir: &Path, name: &str, layers: &[(&str, &str)]) -> Result<PathBuf> {
    let work = dir.join(name);
    let (mut diff_ids, mut members) = (Vec::new(), Vec::new());
    for (number, (file, content)) in layers.iter().enumerate() {
        let root = work.join(format!("root{number}"));
        fs::create_dir_all(&root)?;
        fs::write(root.join(file), content)?;
        let tar = work.join(format!("{number}.tar"));
        run(Command::new("tar")
            .args(["--sort=name", "--mtime=@1", "--owner=0", "--group=0", "--mode=u=rwX,go=rX", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&root)
            .arg("."))?;
        let sum = run(Command::new("sha256sum").arg(&tar))?;
        diff_ids.push(format!("sha256:{}", sum.split(' ').next().unwrap_or_default()));
        members.push(format!("{number}.tar"));
    }
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/hello"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    fs::write(work.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [], "Layers": members }]);
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let out = dir.join(format!("{name}.tar"));
    run(Command::new("tar")
        .arg("-cf")
        .arg(&out)
        .arg("-C")
        .arg(&work)
        .args(["manifest.json", "config.json"])
        .args(&members))?;
    Ok(out)
}

fn shares(image: &Value) -> Vec<u64> {
    let layers = image["image"]["layers"].as_array().cloned().unwrap_or_default();
    layers.iter().filter_map(|layer| layer["images"].as_u64()).collect()
}

fn layers_are_shared() -> Result<()> {
    let lab = lab()?;
    let dir = lab.config.dir().join("images");
    let base = archive(&dir, "base", &[("hello", "base")])?;
    let app = archive(&dir, "app", &[("hello", "base"), ("app", "application")])?;
    let import = |path: &Path, name: &str| {
        lab.node.ctl(&["image", "import", path.to_str().unwrap_or_default(), "--name", name])?.ok()
    };
    import(&base, "base")?;
    let told = import(&app, "app")?;
    ensure!(told.stderr.contains("1 of 2 layers known"), "{told:?}");
    ensure!(told.stdout.contains("1 of 2 layers shared"), "{told:?}");
    let inspected = lab.node.json(&["image", "inspect", "app"])?;
    ensure!(shares(&inspected) == [2, 1] && inspected["entrypoint"] == json!(["/hello"]), "{inspected}");
    // A second name goes by itself, the last one takes the image along, but not the layer that another one has.
    import(&app, "other")?;
    let removed = lab.node.json(&["image", "rm", "other"])?;
    ensure!(removed["images"] == json!([]), "{removed}");
    let removed = lab.node.json(&["image", "remove", "app"])?;
    ensure!(removed["images"] == json!([inspected["image"]["digest"]]), "{removed}");
    ensure!(removed["bytes"] == inspected["image"]["layers"][1]["bytes"], "{removed}");
    ensure!(shares(&lab.node.json(&["image", "inspect", "base"])?) == [1]);
    lab.node.json(&["image", "remove", "base"])?;
    let receipts = lab.node.json(&["ledger", "tail", "--limit", "50"])?.to_string();
    let digest = inspected["image"]["digest"].as_str().unwrap_or_default();
    ensure!(receipts.contains("image_removed") && receipts.contains(digest), "{receipts}");
    Ok(())
}

fn what_an_agent_runs_from_stays() -> Result<()> {
    let lab = lab()?;
    lab.running("tester")?;
    let inspected = lab.node.json(&["image", "inspect", "python"])?;
    ensure!(inspected["agents"].to_string().contains("tester"), "{inspected}");
    ensure!(shares(&inspected).len() == 2, "python and the programs above it: {inspected}");
    let refused = lab.node.ctl(&["image", "remove", "python"])?;
    ensure!(refused.status != 0 && refused.stderr.contains("runs from it"), "{refused:?}");
    let pruned = lab.node.json(&["image", "prune"])?;
    ensure!(pruned["images"] == json!([]), "{pruned}");
    let list = lab.node.json(&["image", "list"])?;
    ensure!(list["images"].to_string().contains("python"), "{list}");
    Ok(())
}

fn hostile_archive_is_refused() -> Result<()> {
    let lab = lab()?;
    let dir = lab.config.dir().join("hostile");
    let before = lab.node.json(&["image", "list"])?;
    let good = archive(&dir, "good", &[("hello", "good")])?;
    // A layer that is not the one its digest names.
    let mut bytes = fs::read(&good)?;
    let at = bytes.windows(4).position(|window| window == b"good").context("no content")?;
    bytes[at..at + 4].copy_from_slice(b"evil");
    let evil = dir.join("evil.tar");
    fs::write(&evil, bytes)?;
    let refused = lab.node.ctl(&["image", "import", evil.to_str().unwrap_or_default(), "--name", "evil"])?;
    ensure!(refused.status != 0 && refused.stderr.contains("not sha256:"), "{refused:?}");
    let after = lab.node.json(&["image", "list"])?;
    ensure!(before == after, "{before} became {after}");
    Ok(())
}
