//! Kernel settings below /proc/sys that the node runs with: one table, written at boot and compared whenever asked.
//!
//! Must hold: what is not in force afterwards is named, with what it is instead. kernel-config/kspp.toml holds the list of the
//! Kernel Self-Protection Project; a test here fails where the table neither follows it nor is excepted there.
//! Must never: change a kernel that others run on. Settings of the whole kernel are this node's only in the first PID
//! namespace; anywhere else (tests, containers) only those of the network namespace are touched.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

const ROOT: &str = "/proc/sys";
/// No setting of the table is longer; what is longer is another value.
const VALUE_BYTES_MAX: u64 = 256;
/// PROC_PID_INIT_INO of linux/proc_ns.h: the PID namespace that the kernel began with.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A value and its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    /// Below /proc/sys.
    path: &'static str,
    /// As the kernel prints it, words apart by one space.
    value: &'static str,
    /// What it keeps out.
    why: &'static str,
}

const fn set(path: &'static str, value: &'static str, why: &'static str) -> Setting {
    Setting { path, value, why }
}

/// Settings of the whole kernel. Those that the kernel's configuration leaves no file for (modules, kexec, eBPF, userfaultfd, core
/// dumps, SysRq) need none.
const OF_KERNEL: [Setting; 26] = [
    set("kernel/kptr_restrict", "2", "kernel addresses are shown to nobody"),
    set("kernel/dmesg_restrict", "1", "kernel messages are for root"),
    set(
        "kernel/perf_event_paranoid",
        "3",
        "no performance counters without CAP_PERFMON: they are a side channel",
    ),
    set("kernel/randomize_va_space", "2", "programs lie at another place each time, their heap too"),
    set("kernel/yama/ptrace_scope", "3", "no process traces another; nothing on a node does"),
    set("user/max_user_namespaces", "0", "a captured service gets no namespace in which it is root"),
    set("kernel/panic", "5", "a panic can be read for 5 s, then the node restarts"),
    set("kernel/panic_on_oops", "1", "a kernel that found itself wrong is not trusted further"),
    set("kernel/oops_limit", "1", "the same, should panic_on_oops be missed"),
    // A single warning says that something was not expected, not that memory is wrong (what finds memory wrong is an oops), and some can
    // be caused from a guest: one must not end every other agent. Hundreds are somebody trying.
    set("kernel/warn_limit", "100", "so many warnings are an attack or a broken machine: the node restarts"),
    set(
        "kernel/panic_on_warn",
        "0",
        "one warning, which a guest may be able to cause, does not end the node",
    ),
    set("kernel/ctrl-alt-del", "0", "ctrl-alt-del is a signal to PID 1, not a restart without sync"),
    set("kernel/printk", "4 4 1 4", "consoles show the kernel's errors and not its remarks"),
    set("dev/tty/ldisc_autoload", "0", "no line discipline comes in by being asked for"),
    set("dev/tty/legacy_tiocsti", "0", "nobody types into another's terminal"),
    set("fs/protected_symlinks", "1", "links in shared directories lead only where their owner may"),
    set("fs/protected_hardlinks", "1", "no links to files that one cannot write"),
    set("fs/protected_fifos", "2", "no writing to a pipe that another planted"),
    set("fs/protected_regular", "2", "no writing to a file that another planted"),
    set("fs/suid_dumpable", "0", "what changed its privileges leaves no memory behind"),
    set("vm/mmap_min_addr", "65536", "a null pointer of the kernel meets no page of a process"),
    set("vm/mmap_rnd_bits", "32", "as much chance in addresses as the machine has"),
    // Mode 2 would refuse VMMs that reserve guest memory which is never touched; cgroups bound what is.
    set("vm/overcommit_memory", "0", "obvious overcommitment is refused"),
    set("vm/panic_on_oom", "0", "too little memory ends the process at fault, not the node"),
    set("vm/oom_dump_tasks", "0", "an agent that runs out of memory again and again fills no log"),
    set("net/core/bpf_jit_harden", "2", "constants of filters are no code for an attacker"),
];

/// Settings of the node's network. IPv6 is off on the uplink: egress speaks IPv4 only. `rp_filter` stays off: before there is an address
/// it drops the answers to DHCP, and with one uplink it has nothing to tell apart (egress sets it where agents are).
const OF_NETWORK: [Setting; 23] = [
    set("net/ipv4/ip_forward", "0", "the node is no router: agents reach the proxy and nothing behind it"),
    set("net/ipv4/icmp_echo_ignore_broadcasts", "1", "the node multiplies nobody's packets"),
    set("net/ipv4/conf/all/forwarding", "0", "the same as ip_forward, for what exists"),
    set("net/ipv4/conf/default/forwarding", "0", "and for what comes"),
    set("net/ipv4/conf/all/route_localnet", "0", "127.0.0.0/8 is never on a wire"),
    set("net/ipv4/conf/default/route_localnet", "0", "the same"),
    set("net/ipv4/conf/all/accept_redirects", "0", "no neighbour changes the route"),
    set("net/ipv4/conf/default/accept_redirects", "0", "the same"),
    set("net/ipv4/conf/all/secure_redirects", "0", "not even the gateway does"),
    set("net/ipv4/conf/default/secure_redirects", "0", "the same"),
    set("net/ipv4/conf/all/send_redirects", "0", "the node is no router"),
    set("net/ipv4/conf/default/send_redirects", "0", "the same"),
    set("net/ipv4/conf/all/accept_source_route", "0", "a packet does not choose its way"),
    set("net/ipv4/conf/default/accept_source_route", "0", "the same"),
    set("net/ipv4/tcp_syncookies", "1", "half-open connections do not keep others out"),
    set("net/ipv4/tcp_rfc1337", "1", "a forged reset does not end a closing connection early"),
    set("net/ipv4/icmp_ignore_bogus_error_responses", "1", "faulty routers fill no log"),
    set("net/ipv4/conf/all/log_martians", "0", "whoever sends impossible addresses fills no log"),
    set("net/ipv4/conf/default/log_martians", "0", "the same"),
    set("net/ipv6/conf/all/disable_ipv6", "1", "what is off cannot leak"),
    set("net/ipv6/conf/default/disable_ipv6", "1", "the same"),
    set("net/ipv6/conf/all/accept_ra", "0", "no neighbour becomes the gateway"),
    set("net/ipv6/conf/default/accept_ra", "0", "the same"),
];

/// A setting that is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// Below /proc/sys.
    pub path: &'static str,
    /// The value it should have.
    pub wanted: &'static str,
    /// The value it has, or why it could not be read.
    pub found: Found,
    /// What the wanted value keeps out.
    pub why: &'static str,
}

/// What stands where another value should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Value(String),
    /// This kernel has no such setting.
    Absent,
    Unreadable(io::ErrorKind),
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ROOT}/{} ", self.path)?;
        match &self.found {
            Found::Value(value) => write!(f, "is `{}`", value.escape_debug())?,
            Found::Absent => write!(f, "is not there")?,
            Found::Unreadable(kind) => write!(f, "cannot be read ({kind})")?,
        }
        write!(f, ", not `{}`: {}", self.wanted, self.why)
    }
}

/// Writes every setting of the table, and returns those that are not in force afterwards. For PID 1, once /proc is mounted and before
/// any interface is up; may be repeated.
pub fn apply() -> Vec<Deviation> {
    let root = Path::new(ROOT);
    for setting in table() {
        // One that is right is left alone: some can only be written once (yama), or not lowered. What fails shows in the comparison.
        if deviation(root, setting).is_some() {
            let _ = write(root, setting);
        }
    }
    lax()
}

/// The settings that are not in force now. Reads some fifty files of /proc/sys, which always answer.
pub fn lax() -> Vec<Deviation> {
    table().filter_map(|setting| deviation(Path::new(ROOT), setting)).collect()
}

/// What is this node's to set.
fn table() -> impl Iterator<Item = &'static Setting> {
    let kernel: &[Setting] = if owns_kernel() { &OF_KERNEL } else { &[] };
    kernel.iter().chain(&OF_NETWORK)
}

fn owns_kernel() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE))
}

fn write(root: &Path, setting: &Setting) -> io::Result<()> {
    // One write for the whole value, as Documentation/admin-guide/sysctl/kernel.rst (sysctl_writes_strict) asks; no file is made.
    OpenOptions::new().write(true).open(root.join(setting.path))?.write_all(setting.value.as_bytes())
}

fn deviation(root: &Path, setting: &Setting) -> Option<Deviation> {
    let found = match read(&root.join(setting.path)) {
        Ok(value) if value == setting.value => return None,
        Ok(value) => Found::Value(value),
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match setting.path.starts_with("net/ipv6/") {
                true => return None,
                false => Found::Absent,
            }
        }
        Err(error) => Found::Unreadable(error.kind()),
    };
    Some(Deviation { path: setting.path, wanted: setting.value, found, why: setting.why })
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(VALUE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = &'static Setting> {
        OF_KERNEL.iter().chain(&OF_NETWORK)
    }

    /// A folder in which the table is in force.
    fn kernel(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("nullbox-sysctl-{}-{name}", std::process::id()));
        for setting in all() {
            let path = root.join(setting.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{}\n", setting.value.replace(' ', "\t"))).unwrap();
        }
        root
    }

    #[test]
    fn a_value_in_force_is_no_deviation_and_another_one_is() {
        let root = kernel("values");
        for setting in all() {
            assert_eq!(deviation(&root, setting), None);
            fs::write(root.join(setting.path), "77\n").unwrap();
            let found = deviation(&root, setting).unwrap();
            assert_eq!(found.found, Found::Value("77".to_owned()));
            assert_eq!(
                found.to_string(),
                format!("/proc/sys/{} is `77`, not `{}`: {}", setting.path, setting.value, setting.why)
            );
            write(&root, setting).unwrap();
            // A file keeps the rest of a longer value, where a setting does not.
            let now = fs::read_to_string(root.join(setting.path)).unwrap();
            assert!(now.starts_with(setting.value), "{now:?}");
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_setting_that_is_absent_unreadable_or_endless_is_a_deviation() {
        let root = kernel("absent");
        for setting in all() {
            let path = root.join(setting.path);
            fs::remove_file(&path).unwrap();
            let found = deviation(&root, setting).map(|deviation| deviation.found);
            let wanted = (!setting.path.starts_with("net/ipv6/")).then_some(Found::Absent);
            assert_eq!(found, wanted, "{}", setting.path);
            assert!(write(&root, setting).is_err() && !path.exists(), "no file is made");
            fs::create_dir(&path).unwrap();
            let found = deviation(&root, setting).unwrap().found;
            assert!(matches!(found, Found::Unreadable(_)), "{found:?}");
            fs::remove_dir(&path).unwrap();
            std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            let Found::Value(value) = deviation(&root, setting).unwrap().found else { panic!() };
            assert!(value.len() as u64 <= VALUE_BYTES_MAX, "{}", value.len());
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn no_setting_stands_twice_and_each_has_a_reason() {
        let mut paths: Vec<&str> = all().map(|setting| setting.path).collect();
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
        for setting in all() {
            assert!(
                !setting.why.is_empty() && !setting.path.starts_with('/') && !setting.path.contains("..")
            );
        }
    }

    /// The list of the Kernel Self-Protection Project, in kernel-config/kspp.toml beside that of the kernels.
    #[test]
    fn every_recommended_setting_is_followed_or_excepted_with_a_reason() {
        let list: toml::Table = include_str!("../../kernel-config/kspp.toml").parse().unwrap();
        let section = |name: &str| list["sysctl"][name].as_table().unwrap().clone();
        let (wanted, excepted) = (section("wanted"), section("exceptions"));
        assert!(wanted.len() >= 20, "the list is cut: {}", wanted.len());
        for (path, value) in &wanted {
            let set = all().find(|setting| setting.path == path).map(|setting| setting.value);
            let is_followed = set == value.as_str();
            match excepted.get(path) {
                None => assert!(is_followed, "{path} is {set:?}, not {value:?}: follow it or write why not"),
                Some(exception) => {
                    let value = exception.get("value").and_then(toml::Value::as_str);
                    assert!(!is_followed && set == value, "the exception of {path} is not true: {set:?}");
                    assert!(exception["why"].as_str().is_some_and(|why| why.len() > 10), "{path}");
                }
            }
        }
        assert!(excepted.keys().all(|path| wanted.contains_key(path)));
    }

    #[test]
    fn nothing_of_the_whole_kernel_is_touched_outside_the_first_pid_namespace() {
        let is_first = fs::read_link("/proc/self/ns/pid").unwrap() == Path::new(FIRST_PID_NAMESPACE);
        let touched = table().filter(|setting| !setting.path.starts_with("net/")).count();
        assert_eq!(touched > 0, is_first);
    }
}
