//! The doctor's look at the machine: disks, network, clock, processor, memory, kernel.

use std::collections::BTreeMap;

use abi::control::{Finding, Severity};
use abi::node::{Network, NetworkMode};

use super::{Exam, finding};
use crate::health::{Interface, Kvm, Space};

/// A look at the disks that takes longer has found one that does not answer.
const DISK_LATE_MS: u64 = 5_000;
/// Below so much available memory, in percent of all, VMs are about to be killed.
const MEMORY_PERCENT_MIN: u64 = 10;
/// Free room and inodes of /state, in percent: scarce, and as good as none.
const ROOM_PERCENT_SCARCE: u64 = 10;
const ROOM_PERCENT_NONE: u64 = 2;

pub fn state(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let late =
        exam.disk.asked_ms.is_some_and(|since| exam.machine.now_ms.saturating_sub(since) > DISK_LATE_MS);
    if late {
        let since = exam.machine.now_ms.saturating_sub(exam.disk.asked_ms.unwrap_or_default()) / 1000;
        let what = format!("/state or the configuration has not answered for {since} s");
        let effect =
            "whoever reads or writes there waits, services included; what is said of their room is old";
        out.push(finding(
            Severity::Error,
            "state",
            &what,
            effect,
            "check the disk; reboot when it answers again",
        ));
    }
    if exam.facts.rescue.is_some() {
        return; // the boot's own finding says why, and the tmpfs that stands in for the volume says nothing
    }
    if exam.facts.ephemeral {
        out.push(finding(
            Severity::Info,
            "state",
            "there is no state volume: the node is ephemeral",
            "agents' memory, the ledger, images and the node's key are lost at power-off",
            "attach a disk with an ext4 file system labelled NULLBOX-STATE and reboot",
        ));
    }
    if let Some(space) = &exam.disk.state {
        room(space, exam.facts.ephemeral, out);
    }
}

fn room(space: &Space, ephemeral: bool, out: &mut Vec<Finding>) {
    if space.read_only {
        out.push(finding(
            Severity::Error,
            "state",
            "/state has become read-only: the kernel found its file system or its disk broken",
            "no receipt can be stored, so no effect happens: agents cannot start, connect or remember",
            "see `nullctl system logs kernel`; check the disk and its file system (fsck) on another machine, then reboot",
        ));
    }
    let percent = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let remedy = match ephemeral {
        true => "attach a state volume, or give the machine more memory",
        false => {
            "move to a larger state volume, or free room: fewer rootfs archives, agents with a smaller disk"
        }
    };
    for (free, all, unit) in [
        (percent(space.bytes_free, space.bytes), space.bytes / 1024 / 1024, "MiB"),
        (percent(space.inodes_free, space.inodes), space.inodes, "files"),
    ] {
        let what = format!(
            "/state is {}: {free} % of {all} {unit} are free",
            if free < ROOM_PERCENT_NONE { "full" } else { "nearly full" }
        );
        if free < ROOM_PERCENT_NONE {
            let effect = "receipts cannot be stored, so effects do not happen; agents may not start";
            out.push(finding(Severity::Error, "state", &what, effect, remedy));
        } else if free < ROOM_PERCENT_SCARCE {
            out.push(finding(
                Severity::Warning,
                "state",
                &what,
                "when it is full, no effect happens",
                remedy,
            ));
        }
    }
}

pub fn network(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let Some(network) = &exam.machine.network else { return };
    let unreached = "the node is not reached from outside, and agents reach nothing";
    if network.mode == NetworkMode::None {
        let what = "the configuration says that there is no network";
        let remedy = "set network.mode if that is not meant";
        return out.push(finding(Severity::Info, "network", what, unreached, remedy));
    }
    let Some(uplink) = &exam.machine.uplink else {
        let (what, remedy) = why_no_address(network, &exam.machine.interfaces);
        return out.push(finding(Severity::Error, "network", &what, unreached, &remedy));
    };
    if uplink.resolvers == 0 && network.dns.is_empty() {
        let effect = "agents reach only names of network.hosts";
        let remedy = "set network.dns, or have DHCP name one";
        out.push(finding(Severity::Warning, "network", "no resolver is known", effect, remedy));
    }
    if !uplink.has_gateway {
        let what = format!("{} has no gateway", uplink.interface);
        let remedy = "set network.gateway if that is not meant";
        out.push(finding(Severity::Info, "network", &what, "only its own network is reached", remedy));
    }
}

/// What keeps the uplink from an address, and the remedy.
fn why_no_address(network: &Network, interfaces: &BTreeMap<String, Interface>) -> (String, String) {
    let others: Vec<_> = interfaces.iter().filter(|(name, _)| *name != "lo").collect();
    let chosen = match network.interface.as_str() {
        "" => others.iter().find(|(_, one)| one.carrier).or(others.first()),
        name => others.iter().find(|(other, _)| *other == name),
    };
    let (what, remedy) = match chosen {
        None if others.is_empty() => (
            "there is no network interface".to_owned(),
            "give the machine a network card that the kernel has a driver for (docs/kernel.md)",
        ),
        None => {
            let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
            let what = format!("there is no network interface `{}`", network.interface);
            return (what, format!("set network.interface to one of {}", names.join(", ")));
        }
        Some((name, one)) if !one.carrier => {
            (format!("{name} has no carrier"), "plug the cable in, or check the switch")
        }
        Some((name, _)) if network.mode == NetworkMode::Dhcp => (
            format!("{name} has no address: no DHCP server answers"),
            "check the DHCP server, or set network.mode = \"static\" with an address",
        ),
        Some((name, _)) => (format!("{name} has no address yet"), "see `nullctl system logs uplink`"),
    };
    (what, remedy.to_owned())
}

pub fn clock(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let effect = "dates of logs and of the ledger are wrong by as much; agents may refuse certificates";
    let remedy = "name time servers in clock.servers, or have DHCP name some; set the machine's clock";
    let keeper = exam.patients.iter().find(|patient| patient.status.name == "clock");
    let says = keeper.map_or("", |patient| patient.status.says.as_str());
    let is_right = says.starts_with("synchronised");
    if exam.machine.unix_s < exam.machine.floor_s {
        let what = "the clock is before the time this image was built";
        out.push(finding(Severity::Error, "clock", what, effect, remedy));
    } else if says.starts_with("not synchronised") || says.starts_with("was synchronised") {
        let effect = "the clock may be wrong, by more each day";
        out.push(finding(Severity::Warning, "clock", &format!("the clock is {says}"), effect, remedy));
    } else if let Some(words) = exam.facts.clock.strip_prefix("wrong: ").filter(|_| !is_right) {
        out.push(finding(Severity::Warning, "clock", words, effect, remedy));
    } else if !is_right && !says.is_empty() {
        let what = format!("the clock is not compared with any other: {says}");
        let effect = "it may be wrong, by more each day";
        out.push(finding(Severity::Info, "clock", &what, effect, remedy));
    }
    // One jump is usual: the first answer of a time server.
    if exam.facts.clock_jumps > 1 {
        let what = format!("the clock jumped {} times in this boot", exam.facts.clock_jumps);
        let effect = "what was dated before is dated by another clock";
        let remedy = "see `nullctl system logs nulld` (clock_jumped)";
        out.push(finding(Severity::Info, "clock", &what, effect, remedy));
    }
}

pub fn virtualization(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let (what, remedy) = match exam.machine.kvm {
        Kvm::Present => return,
        Kvm::NotNested => (
            "there is no /dev/kvm: the node is a VM, and its processor offers no virtualization",
            "switch nested virtualization on in its hypervisor (QEMU: -cpu host, and nested=1 of the host's kvm module)",
        ),
        Kvm::NoFlag => (
            "there is no /dev/kvm: the processor offers no virtualization",
            "switch it on in the firmware's setup (VT-x, SVM), or use a machine that has it",
        ),
        Kvm::Unused => (
            "there is no /dev/kvm, although the processor offers virtualization",
            "see `nullctl system logs kernel` for kvm; it may be switched off in the firmware's setup",
        ),
    };
    out.push(finding(Severity::Error, "virtualization", what, "no agent can run", remedy));
}

pub fn memory(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    let (all, free) = (exam.machine.memory_total_kib, exam.machine.memory_available_kib);
    if all > 0 && free.saturating_mul(100) / all < MEMORY_PERCENT_MIN {
        let what = format!("{} of {} MiB of memory are available", free / 1024, all / 1024);
        let effect = "the kernel will soon kill VMs; no further agent fits";
        out.push(finding(
            Severity::Warning,
            "memory",
            &what,
            effect,
            "stop agents, or give them or the machine other amounts",
        ));
    }
}

pub fn kernel(exam: &Exam<'_>, out: &mut Vec<Finding>) {
    match exam.machine.lockdown.as_deref() {
        Some("confidentiality") => {}
        other => {
            let what =
                format!("the kernel's lockdown is {}, not confidentiality", other.unwrap_or("not there"));
            let effect = "root on this node could read or change the kernel's memory";
            out.push(finding(
                Severity::Warning,
                "kernel",
                &what,
                effect,
                "boot an image whose kernel was built by this project",
            ));
        }
    }
    for setting in exam.lax {
        let what = format!("a kernel setting is not in force: {setting}");
        let effect = "an attacker who is root in a service has more to work with";
        out.push(finding(
            Severity::Warning,
            "kernel",
            &what,
            effect,
            "boot an image whose kernel was built by this project",
        ));
    }
    if exam.machine.taint != 0 {
        let what = format!("the kernel is tainted ({}): {}", exam.machine.taint, taint(exam.machine.taint));
        let effect = "it saw something that should never happen, and may misbehave";
        out.push(finding(
            Severity::Warning,
            "kernel",
            &what,
            effect,
            "see `nullctl system logs kernel`; reboot",
        ));
    }
}

/// The bits that can come up on a node without modules (kernel doc admin-guide/tainted-kernels).
fn taint(bits: u64) -> String {
    const NAMES: [(u64, &str); 8] = [
        (2, "out of specification"),
        (4, "machine check"),
        (5, "bad page"),
        (7, "oops"),
        (9, "warning"),
        (11, "firmware bug worked around"),
        (14, "soft lockup"),
        (15, "live patch"),
    ];
    let names: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| *name).collect();
    if names.is_empty() { "see the kernel's documentation".to_owned() } else { names.join(", ") }
}
