//! The real jail around a probe that tries to get out. Needs root, and no KVM: the probe stands where the VM would start.
//!
//! This program is both: run as `jail-probe` it is the process in the jail, else it is the test.

use abi::wire::Connection;
use cage::jail::{self, JailSpec, Launch, seccomp};
use cage::vmm::{self, Console};
use rustix::process::{Resource, getrlimit};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

const PROBE: &str = "jail-probe";
const UID: u32 = 100_063;
const ABSTRACT: &str = "nullbox-jail-test";
const SCRATCH_BYTES: u64 = 1 << 20;

fn main() {
    let name = std::env::args().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == PROBE) {
        return probe();
    }
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    assert!(rustix::process::getuid().is_root(), "the jail test needs root: run it with sudo -E");
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO); // as nulld starts its services
    let host = Host::new();
    nothing_of_the_host_is_in_reach(&host);
    refused_system_calls_end_the_process(&host);
    a_step_that_fails_is_named_and_nothing_starts(&host);
    println!("test result: ok. 3 passed");
}

/// What a jail is made of, on this machine, and things of the host that must be out of reach.
struct Host {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    tcp: TcpListener,
    _abstract_socket: UnixListener,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "initramfs", "rootfs", "scratch"] {
            fs::write(dir.path().join(name), vec![0; SCRATCH_BYTES as usize]).unwrap();
            fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o644)).unwrap();
        }
        chown(dir.path().join("scratch"), Some(UID), Some(UID)).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("vsock")).unwrap();
        fs::hard_link(std::env::current_exe().unwrap(), dir.path().join(PROBE))
            .or_else(|_| fs::copy(std::env::current_exe().unwrap(), dir.path().join(PROBE)).map(|_| ()))
            .unwrap();
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let unified =
            mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup2 mount");
        let cgroup = Path::new(unified.split(' ').nth(1).unwrap())
            .join(format!("nullbox-jail-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let address = SocketAddr::from_abstract_name(ABSTRACT).unwrap();
        Host {
            dir,
            cgroup,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract_socket: UnixListener::bind_addr(&address).unwrap(),
        }
    }

    /// The probe reads from the instance what to do: its name, and for the first one the host's TCP port.
    fn spec(&self, deed: &str) -> JailSpec {
        let path = |name: &str| self.dir.path().join(name);
        JailSpec {
            instance: format!("{deed}.{}", self.tcp.local_addr().unwrap().port()).parse().unwrap(),
            uid: UID,
            cgroup: self.cgroup.clone(),
            root: path("root"),
            kernel: path("kernel"),
            initramfs: path("initramfs"),
            rootfs: vec![path("rootfs")],
            volumes: vec![],
            scratch: path("scratch"),
            vsock: path("vsock"),
            scratch_bytes: SCRATCH_BYTES,
            vcpus: 1,
            memory_mib: 32,
            network: None,
        }
    }

    fn run(&self, spec: &JailSpec) -> (Result<(), vmm::VmmError>, ExitStatus, Vec<String>) {
        let console = Arc::new(Console::default());
        let (sender, ended) = channel();
        let program = self.dir.path().join(PROBE);
        let launched =
            vmm::launch(&program, spec, None, &console, move |status| sender.send(status).unwrap());
        let status = ended.recv_timeout(Duration::from_secs(20)).expect("the probe ends");
        console.await_end(Duration::from_secs(10));
        (launched, status, console.tail(100).0)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir(&self.cgroup).unwrap();
    }
}

fn nothing_of_the_host_is_in_reach(host: &Host) {
    let (launched, status, said) = host.run(&host.spec("look"));
    launched.unwrap();
    assert!(status.success(), "{status:?} {said:#?}");
    assert_eq!(said.last().map(String::as_str), Some("all looked at"), "{said:#?}");
    let wrong: Vec<_> = said.iter().filter(|line| line.starts_with("WRONG")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(said.len() > 20, "{said:#?}");
}

fn refused_system_calls_end_the_process(host: &Host) {
    let (launched, status, said) = host.run(&host.spec("allowed"));
    launched.unwrap();
    assert!(status.success(), "what a VMM does is allowed: {status:?} {said:#?}");
    for deed in DEEDS.iter().map(|(name, _)| *name) {
        let (launched, status, said) = host.run(&host.spec(deed));
        launched.unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{deed}: {status:?} {said:#?}");
    }
}

fn a_step_that_fails_is_named_and_nothing_starts(host: &Host) {
    type Spoil = fn(&mut JailSpec);
    let spoiled: [(&str, Spoil); 4] = [
        ("cgroup", |spec| spec.cgroup = "/nonexistent".into()),
        ("mounts: root", |spec| spec.root = "/nonexistent".into()),
        ("mounts: bind", |spec| spec.rootfs = vec!["/nonexistent".into()]),
        ("network", |spec| spec.network = Some(jail::JailNetwork { tap: "t".into(), mac: [0; 6] })),
    ];
    for (step, spoil) in spoiled {
        let mut spec = host.spec("look");
        spoil(&mut spec);
        let (launched, status, said) = host.run(&spec);
        assert!(
            matches!(&launched, Err(vmm::VmmError::Jail { step: named, .. }) if named == step),
            "{step}: {launched:?}"
        );
        assert!(!status.success() && !said.iter().any(|line| line.contains("looked")), "{step}: {said:#?}");
    }
}

// ---- the probe ---------------------------------------------------------------------------------------------------

/// System calls by what they are for; each alone after the filter is in place.
const DEEDS: &[(&str, fn())] = &[
    ("inet-socket", || {
        tried(rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None))
    }),
    ("netlink-socket", || {
        tried(rustix::net::socket(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, None))
    }),
    ("exec", || tried(Command::new("/rootfs0.squashfs").status())),
    ("mount", || tried(rustix::mount::mount("t", "/", "tmpfs", rustix::mount::MountFlags::empty(), None))),
    ("new-namespace", || tried(cage::sys::leave_namespaces(rustix::thread::UnshareFlags::NEWNS))),
    ("kill", || tried(rustix::process::test_kill_process(rustix::process::getpid()))),
    ("unlink", || tried(fs::remove_file("/scratch.ext4"))),
    ("chmod", || tried(fs::set_permissions("/scratch.ext4", Permissions::from_mode(0o777)))),
    ("setuid", || tried(rustix::thread::set_thread_uid(rustix::process::Uid::ROOT))),
    ("raise-limit", || tried(rustix::process::setrlimit(Resource::Core, getrlimit(Resource::Core)))),
    ("bind", || tried(UnixListener::bind("/vsock/mine"))),
    ("dumpable", || {
        tried(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable))
    }),
];

/// What it answers is not waited for: the process ends.
fn tried<T>(_: T) {}

fn probe() {
    let stream = UnixStream::from(rustix::io::dup(rustix::stdio::stdin()).unwrap());
    let mut connection = Connection::new(stream);
    let spec: JailSpec = serde_json::from_str(&connection.read_line().unwrap().unwrap()).unwrap();
    let jailed = match jail::enter(&spec, None) {
        Ok(jailed) => jailed,
        Err(error) => {
            let failed = Launch::Failed { step: error.step.into(), error: error.error.to_string() };
            connection.write_line(&failed).unwrap();
            std::process::exit(1);
        }
    };
    assert_eq!(jailed.uid(), UID);
    connection.write_line(&Launch::Entered).unwrap();
    match spec.instance.agent.as_str() {
        "look" => look(spec.instance.generation as u16),
        "allowed" => {
            seccomp::install(&jailed).unwrap();
            assert_eq!(fs::File::open("/kernel").unwrap_err().kind(), std::io::ErrorKind::NotFound);
            drop(fs::OpenOptions::new().write(true).open("/scratch.ext4").unwrap());
            std::io::stdout().write_all(b"done\n").unwrap();
        }
        deed => {
            let (_, deed) = DEEDS.iter().find(|(name, _)| *name == deed).unwrap();
            seccomp::install(&jailed).unwrap();
            deed();
        }
    }
}

/// Everything that must fail even without the filter.
fn look(tcp_port: u16) {
    let names = |dir: &str| -> BTreeSet<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let of = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
    let root = of(&["vmlinux", "initramfs.cpio", "rootfs0.squashfs", "scratch.ext4", "vsock", "dev"]);
    check("only the VM's files", names("/") == root);
    check("KVM can be reached", fs::metadata("/dev/kvm").is_ok());
    check("only KVM", names("/dev") == of(&["kvm"]));
    for gone in ["/proc", "/sys", "/etc/passwd", "/run", "/tmp", "/..//etc"] {
        check(&format!("no {gone}"), fs::metadata(gone).is_err());
    }
    check("root is read-only", fs::write("/x", "x").is_err());
    for fixed in ["/vmlinux", "/initramfs.cpio", "/rootfs0.squashfs"] {
        check(&format!("{fixed} is read-only"), fs::OpenOptions::new().write(true).open(fixed).is_err());
        check(&format!("{fixed} is readable"), fs::File::open(fixed).is_ok());
    }
    check("scratch is writable", fs::OpenOptions::new().write(true).open("/scratch.ext4").is_ok());
    check("no new socket in vsock", UnixListener::bind("/vsock/mine").is_err());
    let mount = rustix::mount::mount("t", "/vsock", "tmpfs", rustix::mount::MountFlags::empty(), None);
    check("no mount", mount == Err(rustix::io::Errno::PERM));
    let node = rustix::fs::mknodat(
        rustix::fs::CWD,
        "/dev/mem",
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 1),
    );
    check("no device node", node.is_err());
    check("no root", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_err());
    check("own uid", rustix::process::getuid().as_raw() == UID && rustix::process::geteuid().as_raw() == UID);
    check("no groups", rustix::process::getgroups().unwrap().is_empty());
    let capabilities = rustix::thread::capabilities(None).unwrap();
    check("no capability", capabilities.effective.is_empty() && capabilities.permitted.is_empty());
    let bounding = rustix::thread::capability_is_in_bounding_set(rustix::thread::CapabilitySet::SYS_ADMIN);
    check("no capability to gain", bounding == Ok(false));
    check("no new privileges", rustix::thread::no_new_privs() == Ok(true));
    check("first process", rustix::process::getpid().as_raw_nonzero().get() == 1);
    let others = (2..400)
        .filter_map(rustix::process::Pid::from_raw)
        .any(|pid| rustix::process::test_kill_process(pid).is_ok());
    check("no other process", !others);
    check("no loopback", TcpStream::connect(("127.0.0.1", tcp_port)).is_err());
    check("no network", TcpStream::connect(("192.0.2.1", 80)).is_err());
    let address = SocketAddr::from_abstract_name(ABSTRACT).unwrap();
    check("no abstract socket", UnixStream::connect_addr(&address).is_err());
    check("no environment", std::env::vars_os().next().is_none());
    check("no core", getrlimit(Resource::Core).maximum == Some(0));
    check("no large file", getrlimit(Resource::Fsize).maximum == Some(SCRATCH_BYTES));
    let dumpable = rustix::process::dumpable_behavior();
    check("no dump", dumpable == Ok(rustix::process::DumpableBehavior::NotDumpable));
    check("own host name", rustix::system::uname().nodename().to_bytes() == b"vm");
    println!("all looked at");
}

fn check(what: &str, holds: bool) {
    println!("{} {what}", if holds { "ok" } else { "WRONG" });
}
