//! Everything that a life on the node could leave behind, as sorted lines: two censuses of a node that is as it was are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

/// Where files are listed. What grows with every life (logs, the ledger and memory, which only ever grow) is left out.
const PLACES: [&str; 4] = ["/run", "/state/cage", "/sys/fs/cgroup", "/dev/mapper"];
const LEFT_OUT: [&str; 4] =
    ["/state/cage/logs", "/run/fault", "/state/ctxgraph", "/sys/fs/cgroup/services/fault"];
/// Processes whose descriptors and threads are counted.
const SERVICES: [&str; 5] = ["nulld", "cage", "egress", "ctxgraph", "nullgate"];
const DEPTH_MAX: usize = 8;
const KERNEL_THREADS: &str = "2";

/// All of it.
pub fn take() -> Result<String> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut count = |line: String| *counts.entry(line).or_default() += 1;
    for pid in super::pids()? {
        processes(pid, &mut count);
    }
    for mount in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        count(format!("mount {}", mount.split(' ').nth(4).unwrap_or_default()));
    }
    for place in PLACES {
        files(Path::new(place), 0, &mut count);
    }
    for line in fs::read_to_string("/proc/net/unix")?.lines().skip(1) {
        if let Some(path) = line.split_whitespace().nth(7) {
            count(format!("unix {path}"));
        }
    }
    Ok(counts.into_iter().map(|(line, number)| format!("{line} = {number}\n")).collect())
}

/// A process; of services also the descriptors, by kind, and the threads; interfaces of its network namespace.
fn processes(pid: i32, count: &mut impl FnMut(String)) {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return };
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let name = field("Name:");
    if field("PPid:") == KERNEL_THREADS || pid == 2 {
        return;
    }
    count(format!("process {name} uid {}", field("Uid:")));
    let interfaces = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    for interface in interfaces.lines().skip(2).filter_map(|line| line.split(':').next()) {
        count(format!("interface {} of {name}", interface.trim()));
    }
    if !SERVICES.contains(&name.as_str()) {
        return;
    }
    (0..fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count))
        .for_each(|_| count(format!("thread of {name}")));
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return };
    for target in open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
        // `socket:[4711]`: the number is another one each time.
        let target = target.to_string_lossy();
        count(format!("descriptor of {name}: {}", target.split('[').next().unwrap_or_default()));
    }
}

fn files(path: &Path, depth: usize, count: &mut impl FnMut(String)) {
    if depth > DEPTH_MAX || LEFT_OUT.iter().any(|left| path.starts_with(left)) {
        return;
    }
    let is_cgroup = path.starts_with("/sys/fs/cgroup");
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // A cgroup's files are the kernel's.
        if is_dir || !is_cgroup {
            count(format!("file {}", entry.path().display()));
        }
        if is_dir {
            files(&entry.path(), depth + 1, count);
        }
    }
}
