//! The state of the machine, read at the moment it is asked for: what `system.doctor` and the screen look at.
//!
//! Must hold: PID 1 itself reads only /proc, /sys and its own tmpfs, which always answer; whatever lies on a disk is read
//! by a thread, and a disk that does not answer shows as one. Must never: judge; that is [`crate::doctor`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::config_error::Source;
use abi::limits;
use abi::node::{self, CONFIG_DIR, NODE_CONFIG_PATH, Network, NodeConfig, STATE_DIR};
use rustix::fs::StatVfsMountFlags;

use crate::clock;

/// Pause between two looks at the disks.
const DISK_LOOK_MS: u64 = 5_000;
/// Bytes of a file of /proc that are looked at: in /proc/cpuinfo more than one processor.
const READ_BYTES_MAX: u64 = 16 * 1024;

/// What the kernel and the node's own files say now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Milliseconds since kernel start.
    pub now_ms: u64,
    pub kvm: Kvm,
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    pub interfaces: BTreeMap<String, Interface>,
    /// The uplink's file: whether there is an address, and resolvers.
    pub uplink: Option<Uplink>,
    /// What the configuration says of it; none before there is one.
    pub network: Option<Network>,
    /// /proc/sys/kernel/tainted (kernel doc admin-guide/tainted-kernels).
    pub taint: u64,
    /// The lockdown in force: `none`, `integrity`, `confidentiality`; none where the kernel has no such thing.
    pub lockdown: Option<String>,
    /// The wall clock, and the time of the image before which it cannot be, in seconds since 1970.
    pub unix_s: u64,
    pub floor_s: u64,
}

/// Whether VMs can run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kvm {
    #[default]
    Present,
    /// The processor is virtual, and offers no virtualization itself.
    NotNested,
    /// The processor offers none: it has none, or the firmware keeps it off.
    NoFlag,
    /// The processor offers it and the kernel does not use it.
    Unused,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub carrier: bool,
    /// IPv4, in CIDR form.
    pub addresses: Vec<String>,
}

/// What the uplink uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplink {
    pub interface: String,
    pub has_gateway: bool,
    pub resolvers: usize,
}

impl Machine {
    /// Reads all of it; takes well under a millisecond and waits for nobody.
    pub fn read() -> Machine {
        let meminfo = text("/proc/meminfo");
        let config: Option<NodeConfig> = serde_json::from_str(&text(NODE_CONFIG_PATH)).ok();
        Machine {
            now_ms: clock::now_ms(),
            kvm: kvm(Path::new("/dev/kvm").exists(), &text("/proc/cpuinfo")),
            memory_total_kib: kib(&meminfo, "MemTotal:"),
            memory_available_kib: kib(&meminfo, "MemAvailable:"),
            interfaces: interfaces(),
            uplink: uplink(&text("/run/nullbox/uplink/uplink.json")),
            network: config.map(|config| config.network),
            taint: text("/proc/sys/kernel/tainted").trim().parse().unwrap_or(0),
            lockdown: lockdown(&text("/sys/kernel/security/lockdown")),
            unix_s: clock::unix_ms() / 1000,
            floor_s: clock::floor_s(),
        }
    }

    /// Addresses by interface, without loopback, in words.
    pub fn addresses(&self) -> String {
        let shown = self.interfaces.iter().filter(|(name, one)| *name != "lo" && !one.addresses.is_empty());
        shown.map(|(name, one)| format!("{name} {}", one.addresses.join(" "))).collect::<Vec<_>>().join(", ")
    }
}

/// The beginning of a file; empty when it cannot be read.
fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is as good as nothing: a line that is looked for is missing then.
    let _ = File::open(path).map(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A field of /proc/meminfo or /proc/self/status, in KiB; 0 when it is not there.
pub fn kib(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn kvm(is_there: bool, cpuinfo: &str) -> Kvm {
    let mut flags =
        cpuinfo.lines().filter(|line| line.starts_with("flags")).take(1).flat_map(str::split_whitespace);
    let flags: Vec<&str> = flags.by_ref().collect();
    match is_there {
        true => Kvm::Present,
        false if flags.contains(&"vmx") || flags.contains(&"svm") => Kvm::Unused,
        false if flags.contains(&"hypervisor") => Kvm::NotNested,
        false => Kvm::NoFlag,
    }
}

/// The word in brackets: `none [integrity] confidentiality`.
fn lockdown(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn uplink(text: &str) -> Option<Uplink> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(Uplink {
        interface: value.get("interface")?.as_str()?.to_owned(),
        has_gateway: value.get("gateway").is_some_and(serde_json::Value::is_string),
        resolvers: value.get("dns").and_then(serde_json::Value::as_array).map_or(0, Vec::len),
    })
}

/// Interfaces and their IPv4 addresses, as the kernel lists them.
fn interfaces() -> BTreeMap<String, Interface> {
    let mut out: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let name = entry.interface_name;
        let one = out.entry(name.clone()).or_insert_with(|| Interface {
            carrier: text(&format!("/sys/class/net/{name}/carrier")).trim() == "1",
            addresses: Vec::new(),
        });
        let ip = |address: &Option<nix::sys::socket::SockaddrStorage>| {
            address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip())
        };
        if let (Some(address), Some(mask)) = (ip(&entry.address), ip(&entry.netmask)) {
            one.addresses.push(format!("{address}/{}", mask.to_bits().count_ones()));
        }
    }
    out
}

/// What lies on disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// /state: none before the first look.
    pub state: Option<Space>,
    /// How many operators may come in, or why none can.
    pub operators: Option<Result<usize, String>>,
    /// Since when a look is under way that the disks have not answered, in milliseconds since kernel start.
    pub asked_ms: Option<u64>,
}

/// Room of a file system (statvfs(3)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    pub bytes: u64,
    pub bytes_free: u64,
    /// 0 where the file system does not count them.
    pub inodes: u64,
    pub inodes_free: u64,
    pub read_only: bool,
}

/// The thread that looks at the disks, and what it saw last.
#[derive(Debug, Default)]
pub struct DiskWatch {
    seen: Arc<Mutex<Disk>>,
}

impl DiskWatch {
    /// Starts the thread. Without one (no memory), nothing is ever seen, and the doctor says so.
    pub fn start() -> DiskWatch {
        let seen = Arc::new(Mutex::new(Disk { asked_ms: Some(clock::now_ms()), ..Disk::default() }));
        let own = seen.clone();
        let thread = std::thread::Builder::new().name("disk-watch".into()).stack_size(96 * 1024);
        let started = thread.spawn(move || {
            loop {
                let fresh = Disk { state: space(), operators: Some(operators()), asked_ms: None };
                *own.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                std::thread::sleep(Duration::from_millis(DISK_LOOK_MS));
                own.lock().unwrap_or_else(PoisonError::into_inner).asked_ms = Some(clock::now_ms());
            }
        });
        drop(started); // its failure shows as disks that never answer
        DiskWatch { seen }
    }

    /// What was seen last. The lock is only ever held for a copy.
    pub fn seen(&self) -> Disk {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn space() -> Option<Space> {
    let about = rustix::fs::statvfs(STATE_DIR).ok()?;
    Some(Space {
        bytes: about.f_blocks.saturating_mul(about.f_frsize),
        bytes_free: about.f_bavail.saturating_mul(about.f_frsize),
        inodes: about.f_files,
        inodes_free: about.f_favail,
        read_only: about.f_flag.contains(StatVfsMountFlags::RDONLY),
    })
}

/// The same file that nullgate reads; keys are checked for their form there.
fn operators() -> Result<usize, String> {
    let path = format!("{CONFIG_DIR}/operators.toml");
    let mut text = String::new();
    File::open(&path)
        .and_then(|file| file.take(limits::CONFIG_FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| format!("{path}: {error}"))?;
    let operators = node::parse_operators(Source { file: "operators.toml", text: &text });
    operators.map(|operators| operators.operator.len()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_kvm_is_read_off_the_processor() {
        assert_eq!(kvm(true, ""), Kvm::Present);
        assert_eq!(kvm(false, "flags\t\t: fpu svm lm hypervisor\n"), Kvm::Unused);
        assert_eq!(kvm(false, "flags\t\t: fpu vmx\n"), Kvm::Unused);
        assert_eq!(kvm(false, "vendor_id : x\nflags\t\t: fpu lm hypervisor\n"), Kvm::NotNested);
        assert_eq!(kvm(false, "flags\t\t: fpu lm\nbugs : svm\n"), Kvm::NoFlag);
        assert_eq!(kvm(false, ""), Kvm::NoFlag);
    }

    #[test]
    fn the_lockdown_in_force_stands_in_brackets() {
        assert_eq!(lockdown("none integrity [confidentiality]\n").as_deref(), Some("confidentiality"));
        assert_eq!(lockdown("[none] integrity confidentiality\n").as_deref(), Some("none"));
        assert_eq!(lockdown(""), None);
    }

    #[test]
    fn the_uplinks_file_is_read_or_there_is_none() {
        let text = r#"{"interface":"eth0","address":"192.0.2.2/24","gateway":null,"dns":["192.0.2.1"]}"#;
        let expected = Uplink { interface: "eth0".into(), has_gateway: false, resolvers: 1 };
        assert_eq!(uplink(text), Some(expected));
        for junk in ["", "{", "[]", "{\"interface\":5}"] {
            assert_eq!(uplink(junk), None);
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read();
        assert!(machine.memory_total_kib > machine.memory_available_kib);
        assert!(machine.memory_available_kib > 0);
        assert!(machine.interfaces.contains_key("lo"));
    }

    #[test]
    fn disks_are_looked_at_beside_the_loop() {
        let watch = DiskWatch::start();
        let until = clock::now_ms() + 10_000;
        while watch.seen().operators.is_none() {
            assert!(clock::now_ms() < until, "no look within 10 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        // There is no operators.toml on this machine, and the reason says where it would be.
        let why = watch.seen().operators.unwrap().unwrap_err();
        assert!(why.contains("/system/config/operators.toml"), "{why}");
    }
}
