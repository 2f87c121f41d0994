//! Nodes that lack something, or on which something is broken: each boots, answers, and says what is wrong and what to do.
//!
//! Disks are loop devices and files behind made-up names of block devices; to nulld they are what its kernel lists.

mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use abi::control::{Finding, Severity};
use abi::limits;
use abi::rpc::Code;
use node::Node;
use serde_json::Value;

/// A list of block devices of the test's own, in place of this machine's.
const DISKS: &str = r#"
mount -t sysfs sysfs "$ROOT/sys"
mount -t tmpfs tmpfs "$ROOT/sys/class/block"
disk() { mkdir "$ROOT/sys/class/block/$1"; echo "PARTNAME=$3" > "$ROOT/sys/class/block/$1/uevent"; cp -a "$2" "$ROOT/dev/$1"; }
"#;

const SERVICES: &str = r#"
[services.cage]
path = "/system/bin/probe"
args = ["good"]
needs = ["ctxgraph"]
[services.ctxgraph]
path = "/system/bin/probe"
args = ["good"]
[services.nullgate]
path = "/system/bin/probe"
args = ["good"]
uid = 203
rescue = true
"#;

fn config() -> String {
    format!("[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n{SERVICES}")
}

/// A file system in a file, as a loop device.
struct Disk {
    image: PathBuf,
    device: String,
}

impl Disk {
    /// An ext4 with this label and the files of a directory, if there is one.
    fn ext4(label: &str, from: Option<&Path>) -> Disk {
        Disk::sized(label, from, "32M", &[])
    }

    fn sized(label: &str, from: Option<&Path>, size: &str, more: &[&str]) -> Disk {
        let image = Disk::image();
        let mut make = Command::new("mke2fs");
        make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F", "-t", "ext4", "-L", label]);
        if let Some(from) = from {
            make.arg("-d").arg(from);
        }
        run(make.args(more).arg(&image).arg(size));
        Disk::of(image, &[])
    }

    fn image() -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::env::temp_dir().join(format!("nulld-disk-{}-{number}", std::process::id()))
    }

    fn of(image: PathBuf, options: &[&str]) -> Disk {
        let mut losetup = Command::new("/sbin/losetup");
        let output = run(losetup.args(options).args(["--find", "--show"]).arg(&image));
        Disk { image, device: output.trim().to_owned() }
    }

    /// The same bytes, with these over those at an offset.
    fn overwrite(&self, offset: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let device = fs::OpenOptions::new().write(true).open(&self.device).unwrap();
        device.write_all_at(bytes, offset).unwrap();
        device.sync_all().unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A node that is going away may hold it for a moment; it is detached when that lets go.
        let _ = Command::new("/sbin/losetup").args(["--detach", &self.device]).status();
        let _ = fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/deps.sh"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A directory with these files.
fn folder(files: &[(&str, &str)]) -> PathBuf {
    let path = Disk::image().with_extension("d");
    fs::create_dir_all(&path).unwrap();
    for (name, text) in files {
        fs::write(path.join(name), text).unwrap();
    }
    path
}

/// Boots with these disks, as sda, sdb and so on; a partition name for each.
fn boot(config: &str, disks: &[(&str, &str)], more: &str) -> Node {
    let mut script = DISKS.to_owned();
    for ((device, partition), letter) in disks.iter().zip('a'..) {
        script.push_str(&format!("disk sd{letter} {device} '{partition}'\n"));
    }
    let node = Node::start_on(config, &(script + more));
    node.wait_console("\nnullbox: ready", 30);
    node
}

/// The one finding of a severity in an area that has this text.
fn finding(node: &Node, severity: Severity, area: &str, text: &str) -> Finding {
    let findings = node.findings();
    let found = findings
        .iter()
        .find(|one| one.severity == severity && one.area == area && format!("{one:?}").contains(text));
    found.unwrap_or_else(|| panic!("no {severity:?} of {area} with `{text}` in {findings:#?}")).clone()
}

/// What holds in every rescue: only what an operator needs runs, nobody with effects, and all of it is said.
fn assert_rescue(node: &Node, why: &str) {
    let status = node.status();
    assert!(status.rescue.as_ref().is_some_and(|said| said.contains(why)), "{:?}", status.rescue);
    let names: Vec<&str> = status.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["nullgate"], "{status:?}");
    assert!(status.ephemeral && status.ready_ms.is_some());
    let state = status.phases.iter().find(|phase| phase.name == "state").unwrap();
    assert!(state.outcome.starts_with("degraded: rescue: "), "{state:?}");
    let console = node.console();
    let at = |text: &str| console.find(text).unwrap_or_else(|| panic!("no {text} in {console}"));
    assert!(at("\nnullbox: rescue: ") < at("\nnullbox: ready "));
    assert!(console.contains("\n  trouble   RESCUE, with a node key of its own: "), "{console}");
    let found = finding(node, Severity::Error, "state", why);
    assert!(found.effect.contains("nothing was written") && found.remedy.contains("fsck"), "{found:?}");
    let refused = node.call("agent.list", Value::Null).error.unwrap();
    assert!(refused.code == Code::UNAVAILABLE && refused.message.contains("rescue"), "{refused:?}");
    assert!(is_tmpfs(node));
}

fn is_tmpfs(node: &Node) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.pid)).unwrap();
    let state: Vec<&str> = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/state")).collect();
    let [state] = state.as_slice() else { panic!("{mounts}") };
    state.contains(" - tmpfs ")
}

#[test]
fn a_state_volume_is_used_kept_and_let_go_of() {
    let disk = Disk::ext4("NULLBOX-STATE", None);
    let mut node = boot(&config(), &[(&disk.device, "")], "");
    let status = node.status();
    assert!(!status.ephemeral && status.rescue.is_none() && status.services.len() == 3, "{status:?}");
    assert!(!is_tmpfs(&node));
    fs::write(node.path("/state/cage/kept"), "still here").unwrap();
    node.call("system.poweroff", Value::Null);
    assert_eq!(node.wait_end(20), 2);
    assert!(node.console().contains("state unmounted"), "{}", node.console());
    drop(node);
    let node = boot(&config(), &[(&disk.device, "")], "");
    assert_eq!(fs::read_to_string(node.path("/state/cage/kept")).unwrap(), "still here");
}

#[test]
fn a_broken_state_volume_puts_the_node_in_rescue_and_stays_as_it_is() {
    let disk = Disk::ext4("NULLBOX-STATE", None);
    // Counts of blocks and free blocks after the label's place: the superblock is there and nonsense.
    disk.overwrite(1024 + 4, &[0xff; 40]);
    let before = disk.bytes();
    let node = boot(&config(), &[(&disk.device, "")], "");
    assert_rescue(&node, "the state volume cannot be used: cannot mount /dev/sda");
    assert!(disk.bytes() == before, "the broken volume was written to");
}

#[test]
fn a_state_volume_that_can_only_be_read_puts_the_node_in_rescue() {
    let disk = Disk::ext4("NULLBOX-STATE", None);
    let locked = Disk::of(disk.image.clone(), &["--read-only"]);
    let node = boot(&config(), &[(&locked.device, "")], "");
    assert_rescue(&node, "the state volume cannot be used: ");
}

#[test]
fn a_full_state_volume_without_room_for_directories_puts_the_node_in_rescue() {
    // No inode is left for a directory.
    let disk = Disk::sized("NULLBOX-STATE", None, "8M", &["-N", "32"]);
    let script = format!(
        "mount {0} /mnt; i=0; while [ $i -lt 64 ]; do touch /mnt/f$i || break; i=$((i+1)); done; umount /mnt",
        disk.device
    );
    let filled = Command::new("unshare").args(["--mount", "/bin/sh", "-c", &script]).output().unwrap();
    assert!(filled.status.success(), "{filled:?}");
    let node = boot(&config(), &[(&disk.device, "")], "");
    assert_rescue(&node, "No space left on device");
}

#[test]
fn a_partition_named_for_state_with_nothing_on_it_is_not_taken_for_no_volume() {
    let image = Disk::image();
    fs::write(&image, vec![0u8; 1 << 20]).unwrap();
    let disk = Disk::of(image, &[]);
    let node = boot(&config(), &[(&disk.device, "NULLBOX-STATE")], "");
    assert_rescue(&node, "no file system that NullBox knows");
}

#[test]
fn a_disk_that_never_answers_holds_the_boot_for_a_bound_and_may_be_the_state_volume() {
    // Opening a FIFO waits for its other end: for nulld, a disk that never answers.
    let begin = Instant::now();
    let node = boot(&config(), &[], "mkfifo $ROOT/fifo; disk sdx $ROOT/fifo ''\n");
    assert!(begin.elapsed() < Duration::from_millis(limits::DISK_ANSWER_MS_MAX + 10_000));
    assert_rescue(&node, "disk sdx did not answer within 10 s, and may be the state volume");
    drop(node);
    // Where the state volume is another disk, it is only out of order.
    let disk = Disk::ext4("NULLBOX-STATE", None);
    let node = boot(&config(), &[(&disk.device, "")], "mkfifo $ROOT/fifo; disk sdx $ROOT/fifo ''\n");
    assert_eq!(node.status().rescue, None);
    finding(&node, Severity::Warning, "state", "disk sdx did not answer");
}

#[test]
fn a_node_without_any_disk_is_ephemeral_and_says_what_it_lacks() {
    let node = boot(&config(), &[], "");
    assert_eq!((node.status().rescue, node.status().services.len()), (None, 3));
    finding(&node, Severity::Info, "state", "ephemeral");
    let kvm = finding(&node, Severity::Error, "virtualization", "there is no /dev/kvm");
    assert!(!kvm.remedy.is_empty());
    finding(&node, Severity::Info, "network", "network.mode");
    node.until("a look at the disks", 20, |node| {
        let findings = node.findings();
        findings.iter().any(|one| one.area == "config" && one.what.contains("operators.toml")).then_some(())
    });
    // Worst first, and nothing of a hostile shape.
    let findings = node.findings();
    assert!(findings.is_sorted_by_key(|one| one.severity), "{findings:#?}");
}

#[test]
fn a_configuration_volume_that_cannot_be_used_leaves_the_images_in_force() {
    let from = folder(&[("nulld.toml", "[node]\nname = \"from-the-volume\"\n")]);
    let disk = Disk::ext4("NULLBOX-CONFIG", Some(&from));
    let good = boot(&config(), &[(&disk.device, "")], "");
    assert_eq!(good.status().node, "from-the-volume");
    drop(good);
    disk.overwrite(1024 + 4, &[0xff; 40]);
    let node = boot(&config(), &[(&disk.device, "")], "");
    let status = node.status();
    assert_eq!((status.node.as_str(), status.services.len()), ("test-node", 3));
    let phase = status.phases.iter().find(|phase| phase.name == "config").unwrap();
    assert!(phase.outcome.starts_with("degraded: the configuration volume cannot be used"), "{phase:?}");
    finding(&node, Severity::Error, "config", "the configuration volume cannot be used");
    fs::remove_dir_all(from).unwrap();
}

#[test]
fn a_wrong_file_on_the_volume_is_named_with_line_and_remedy() {
    let from =
        folder(&[("nulld.toml", "[node]\nname = \"a b\"\n"), ("operators.toml", "[[operator]]\nnam = 5\n")]);
    let disk = Disk::ext4("NULLBOX-CONFIG", Some(&from));
    let node = boot(&config(), &[(&disk.device, "")], "");
    assert_eq!(node.status().node, "test-node");
    let wrong = finding(&node, Severity::Error, "config", "nulld.toml (configuration volume):2: node.name");
    assert!(wrong.remedy.contains("name = "), "{wrong:?}");
    node.until("a look at the disks", 20, |node| {
        let findings = node.findings();
        findings
            .iter()
            .any(|one| one.what.contains("operators.toml cannot be used: operators.toml:2"))
            .then_some(())
    });
    fs::remove_dir_all(from).unwrap();
}

#[test]
fn one_broken_service_is_one_finding_and_the_node_goes_on() {
    let text = config() + "[services.broken]\npath = \"/system/bin/no-such-program\"\nrestart = \"never\"\n";
    let node = Node::start(&text);
    node.wait_state("broken", "failed", 20);
    node.wait_state("cage", "ready", 20);
    let found = finding(&node, Severity::Error, "services", "broken is failed");
    assert!(found.remedy.contains("nullctl system logs broken"), "{found:?}");
    assert!(node.call("agent.list", Value::Null).result.is_some());
}

#[test]
fn a_state_volume_that_turns_full_is_said_while_the_node_runs() {
    let disk = Disk::ext4("NULLBOX-STATE", None);
    let node = boot(&config(), &[(&disk.device, "")], "");
    let fill = || -> std::io::Result<()> {
        use std::io::Write;
        let mut file = fs::File::create(node.path("/state/filler"))?;
        loop {
            file.write_all(&[7; 1 << 16])?;
        }
    };
    assert_eq!(fill().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    node.until("a full disk to be noticed", 20, |node| {
        let findings = node.findings();
        findings.iter().any(|one| one.area == "state" && one.what.starts_with("/state is ")).then_some(())
    });
    assert_eq!(node.status().services.iter().filter(|service| service.state == "ready").count(), 3);
}
