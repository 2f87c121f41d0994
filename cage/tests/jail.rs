//! The real jail around a hostile program in the VMM's place. Needs root, and no KVM: it stands where the VM would start.
//!
//! This program is both: run as `jail-probe` it is the process in the jail, else it is the test.

mod hostile;

use abi::wire::Connection;
use cage::jail::calls::{Role, rows};
use cage::jail::cgroup::{Bounds, Delegated, IoBound};
use cage::jail::seccomp::Filters;
use cage::jail::{self, JailSpec, JailVolume, Launch};
use cage::vmm::{self, Console};
use hostile::{ATTEMPTS, Outside, Wall};
use rustix::process::{Resource, Signal, getrlimit};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PROBE: &str = "jail-probe";
const UID: u32 = 100_063;
const NEIGHBOUR_UID: u32 = 100_062;
const ABSTRACT: &str = "nullbox-jail-test";
const DISK_BYTES: u64 = 1 << 20;
/// Where the probe and the test tell each other how far they are: a byte of the probe's own disk.
const MARK: u64 = DISK_BYTES - 1;

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
    the_jail_holds_the_vms_files_and_nothing_else(&host);
    everything_a_hostile_vmm_tries_is_refused_and_named(&host);
    threads_have_the_calls_of_their_role_only(&host);
    calls_of_another_architecture_kill(&host);
    a_step_that_fails_is_named_and_nothing_starts(&host);
    bounds_are_in_force_in_the_cgroup(&host);
    println!("test result: ok. 6 passed");
}

/// What a jail is made of, on this machine, and things of the host that must be out of reach.
struct Host {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    tcp: TcpListener,
    _open_sockets: [UnixListener; 2],
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let files = ["kernel", "initramfs", "layer0", "layer1", "public"];
        for name in files.into_iter().chain(["scratch", "volume0", "volume1", "neighbour"]) {
            fs::write(dir.path().join(name), vec![0; DISK_BYTES as usize]).unwrap();
            let mode = if files.contains(&name) { 0o644 } else { 0o600 };
            fs::set_permissions(dir.path().join(name), Permissions::from_mode(mode)).unwrap();
        }
        for (disk, uid) in
            [("scratch", UID), ("volume0", UID), ("volume1", UID), ("neighbour", NEIGHBOUR_UID)]
        {
            chown(dir.path().join(disk), Some(uid), Some(uid)).unwrap();
        }
        for place in ["root", "neighbour-root", "vsock"] {
            fs::create_dir(dir.path().join(place)).unwrap();
        }
        fs::set_permissions(dir.path().join("vsock"), Permissions::from_mode(0o711)).unwrap();
        fs::write(dir.path().join("vsock/control"), "").unwrap();
        fs::hard_link(std::env::current_exe().unwrap(), dir.path().join(PROBE))
            .or_else(|_| fs::copy(std::env::current_exe().unwrap(), dir.path().join(PROBE)).map(|_| ()))
            .unwrap();
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let unified =
            mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup2 mount");
        let cgroup = Path::new(unified.split(' ').nth(1).unwrap())
            .join(format!("nullbox-jail-{}", std::process::id()));
        for name in ["", "vm", "neighbour"] {
            fs::create_dir(cgroup.join(name)).unwrap();
        }
        let public = UnixListener::bind(dir.path().join("public.sock")).unwrap();
        fs::set_permissions(dir.path().join("public.sock"), Permissions::from_mode(0o666)).unwrap();
        let address = SocketAddr::from_abstract_name(ABSTRACT).unwrap();
        let open_sockets = [UnixListener::bind_addr(&address).unwrap(), public];
        Host { dir, cgroup, tcp: TcpListener::bind("127.0.0.1:0").unwrap(), _open_sockets: open_sockets }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The probe reads from the instance what to do.
    fn spec(&self, deed: &str, number: usize) -> JailSpec {
        let volume =
            |name: &str, read_only| JailVolume { path: self.path(name), bytes: DISK_BYTES, read_only };
        JailSpec {
            instance: format!("{deed}.{}", number + 1).parse().unwrap(),
            uid: UID,
            cgroup: self.cgroup.join("vm"),
            root: self.path("root"),
            kernel: self.path("kernel"),
            initramfs: self.path("initramfs"),
            rootfs: vec![self.path("layer0"), self.path("layer1")],
            volumes: vec![volume("volume0", false), volume("volume1", true)],
            scratch: self.path("scratch"),
            vsock: self.path("vsock"),
            scratch_bytes: DISK_BYTES,
            vcpus: 1,
            memory_mib: 32,
            network: None,
        }
    }

    fn start(&self, spec: &JailSpec) -> Run {
        let console = Arc::new(Console::default());
        let (sender, ended) = channel();
        let program = self.path(PROBE);
        let launched =
            vmm::launch(&program, spec, None, &console, move |status| sender.send(status).unwrap());
        Run { launched, ended, console }
    }

    fn run(&self, spec: &JailSpec) -> (Result<(), vmm::VmmError>, ExitStatus, Vec<String>) {
        self.start(spec).end()
    }

    /// Tells the probe, on its own disk, what is outside.
    fn tell(&self, neighbour: i32) {
        let outside = Outside {
            dir: self.dir.path().to_str().unwrap().into(),
            tcp_port: self.tcp.local_addr().unwrap().port(),
            abstract_socket: ABSTRACT.into(),
            cage: std::process::id().cast_signed(),
            neighbour,
        };
        let mut text = serde_json::to_vec(&outside).unwrap();
        text.push(b'\n');
        fs::OpenOptions::new()
            .write(true)
            .open(self.path("scratch"))
            .unwrap()
            .write_all_at(&text, 0)
            .unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let removed: Vec<_> =
            ["vm", "neighbour", ""].iter().map(|name| fs::remove_dir(self.cgroup.join(name))).collect();
        assert!(removed.iter().all(Result::is_ok) || std::thread::panicking(), "{removed:?}");
    }
}

struct Run {
    launched: Result<(), vmm::VmmError>,
    ended: Receiver<ExitStatus>,
    console: Arc<Console>,
}

impl Run {
    fn end(self) -> (Result<(), vmm::VmmError>, ExitStatus, Vec<String>) {
        let status = self.ended.recv_timeout(Duration::from_secs(20)).expect("the probe ends");
        self.console.await_end(Duration::from_secs(10));
        (self.launched, status, self.console.tail(400).0)
    }
}

fn mark(disk: &Path) -> u8 {
    let mut byte = [0];
    fs::File::open(disk).unwrap().read_exact_at(&mut byte, MARK).unwrap();
    byte[0]
}

fn set_mark(disk: &Path, value: u8) {
    fs::OpenOptions::new().write(true).open(disk).unwrap().write_all_at(&[value], MARK).unwrap();
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The one process of a jail, by its cgroup.
fn process(cgroup: &Path) -> i32 {
    fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().trim().parse().unwrap()
}

/// Seen from outside: what is in the jail cannot list it.
fn the_jail_holds_the_vms_files_and_nothing_else(host: &Host) {
    let run = host.start(&host.spec("look", 0));
    let root = PathBuf::from(format!("/proc/{}/root", process(&host.cgroup.join("vm"))));
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root.join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let of = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
    let files = ["vmlinux", "initramfs.cpio", "rootfs0.squashfs", "rootfs1.squashfs", "scratch.ext4"];
    let all = [&files[..], &["volume0.ext4", "volume1.ext4", "vsock", "dev"]].concat();
    assert_eq!(names(""), of(&all));
    assert_eq!(names("dev"), of(&["kvm"]));
    assert_eq!(names("vsock"), of(&["control"]));
    set_mark(&host.path("scratch"), 1);
    let (launched, status, said) = run.end();
    launched.unwrap();
    assert!(status.success(), "{status:?} {said:#?}");
    assert_eq!(said.last().map(String::as_str), Some("all looked at"), "{said:#?}");
    let wrong: Vec<_> = said.iter().filter(|line| line.starts_with("WRONG")).collect();
    assert!(wrong.is_empty() && said.len() > 15, "{said:#?}");
    set_mark(&host.path("scratch"), 0);
}

/// Each attempt twice: in a jail without its filter, where the walls behind it must hold, and in the whole jail.
fn everything_a_hostile_vmm_tries_is_refused_and_named(host: &Host) {
    let mut beside = host.spec("stay", 0);
    beside.uid = NEIGHBOUR_UID;
    (beside.cgroup, beside.root) = (host.cgroup.join("neighbour"), host.path("neighbour-root"));
    (beside.scratch, beside.volumes) = (host.path("neighbour"), vec![]);
    let neighbour = host.start(&beside);
    host.tell(process(&host.cgroup.join("neighbour")));
    let (launched, status, without) = host.run(&host.spec("without", 0));
    launched.unwrap();
    assert!(status.success(), "{status:?} {without:#?}");
    println!(
        "{} attempts of a hostile VMM, each with what answered without and with the filter",
        ATTEMPTS.len()
    );
    for (number, (name, wall, _)) in ATTEMPTS.iter().enumerate() {
        let alone = without.iter().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or("");
        match wall {
            Wall::Filter => assert_eq!(alone, "not tried"),
            Wall::Jail | Wall::Both => {
                assert!(alone.starts_with("refused"), "{name}: `{alone}` {without:#?}")
            }
        }
        let (launched, status, said) = host.run(&host.spec("with", number));
        launched.unwrap();
        let answer = said.last().cloned().unwrap_or_default();
        match wall {
            Wall::Jail => {
                assert!(status.success() && answer.contains(": refused"), "{name}: {status:?} {said:#?}")
            }
            Wall::Filter | Wall::Both => {
                assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {said:#?}");
                let killed = *name == "take the handler of refused calls away";
                assert!(killed || answer.starts_with(jail::REFUSED), "{name}: {said:#?}");
            }
        }
        println!("  {name}: {alone}; {}", answer.trim_start_matches(name).trim_start_matches(": "));
    }
    assert!(neighbour.ended.try_recv().is_err(), "the neighbour was ended");
    assert_eq!(mark(&host.path("neighbour")), 0);
    set_mark(&host.path("neighbour"), 1);
    assert!(neighbour.end().1.success());
    set_mark(&host.path("neighbour"), 0);
    assert_eq!(fs::metadata(host.path("scratch")).unwrap().len(), DISK_BYTES, "the disk grew");
}

fn threads_have_the_calls_of_their_role_only(host: &Host) {
    for (number, (role, _)) in IN_ROLES.iter().enumerate() {
        let (launched, status, said) = host.run(&host.spec("role", number));
        launched.unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{number} {role:?}: {said:#?}");
        assert!(said.iter().any(|line| line.starts_with(jail::REFUSED)), "{role:?}: {said:#?}");
    }
    for role in jail::calls::ROLES {
        let count = rows().filter(|(roles, _, _)| roles.contains(&role)).count();
        println!("  {role:?}: {count} rows");
    }
}

fn calls_of_another_architecture_kill(host: &Host) {
    let (launched, status, said) = host.run(&host.spec("i386", 0));
    launched.unwrap();
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status:?} {said:#?}");
    assert!(!said.iter().any(|line| line.contains("done")), "{said:#?}");
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
        let mut spec = host.spec("look", 0);
        spoil(&mut spec);
        let (launched, status, said) = host.run(&spec);
        assert!(
            matches!(&launched, Err(vmm::VmmError::Jail { step: named, .. }) if named == step),
            "{step}: {launched:?}"
        );
        assert!(!status.success() && !said.iter().any(|line| line.contains("looked")), "{step}: {said:#?}");
    }
}

/// Each bound is what the kernel says it is, read back from the cgroup that the process is in.
fn bounds_are_in_force_in_the_cgroup(host: &Host) {
    // Only a cgroup whose controllers reach this far can be divided; the test's own machine may lack some.
    let parent = host.cgroup.parent().unwrap();
    let offered = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap();
    if !["cpu", "memory", "pids"].iter().all(|needed| offered.split_whitespace().any(|c| c == *needed)) {
        println!("  bounds: not read back, {} divides only `{}`", parent.display(), offered.trim());
        return;
    }
    let delegated = Delegated::at(host.cgroup.clone()).unwrap();
    let io = IoBound::of(Path::new("/"), 7).ok().filter(|_| delegated.bounds_io());
    let bounds = Bounds { cpu_percent: 40, memory_mib: 64, disk_in_memory_mib: 0, io };
    let cgroup = delegated.create(&"bounded.1".parse().unwrap(), bounds).unwrap();
    let read = |file: &str| fs::read_to_string(cgroup.dir().join(file)).unwrap_or_default().trim().to_owned();
    for (file, value) in bounds.files() {
        let set = read(file);
        let absent = file == "memory.swap.max" && !cgroup.dir().join(file).exists();
        assert!(
            set == value || absent || set.contains(&value) || file == "io.max",
            "{file}: `{set}`, not `{value}`"
        );
        println!("  {file}: {set}");
    }
    if io.is_some() {
        assert!(read("io.max").contains("rbps=7340032 wbps=7340032"), "{}", read("io.max"));
    }
    cgroup.remove().unwrap();
}

// ---- the probe ---------------------------------------------------------------------------------------------------

/// What a thread of a role does not get through with, though another thread may.
const IN_ROLES: &[(Role, fn())] = &[
    (Role::Vcpu, || drop(UnixStream::connect("/vsock/control"))),
    (Role::Vcpu, || drop(std::thread::spawn(|| ()).join())),
    (Role::Vcpu, || {
        drop(fs::OpenOptions::new().write(true).open("/scratch.ext4").unwrap().write_at(b"x", 0))
    }),
    (Role::Block, || drop(fs::File::open("/scratch.ext4"))),
    (Role::Block, || drop(UnixStream::connect("/vsock/control"))),
    (Role::Net, || drop(fs::File::open("/dev/kvm"))),
    (Role::Vsock, || drop(std::thread::spawn(|| ()).join())),
    (Role::Vsock, || drop(UnixStream::connect("/vsock/control"))),
    (Role::Loop, || drop(fs::File::open("/scratch.ext4"))),
    (Role::Loop, || drop(std::thread::spawn(|| ()).join())),
    (Role::Idle, || drop(fs::File::open("/scratch.ext4"))),
];

fn probe() {
    cage::sys::close_from(3).unwrap(); // as cage-vmm does
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
    connection.write_line(&Launch::Entered).unwrap();
    let number = spec.instance.generation as usize - 1;
    let close = || {
        cage::sys::name_refused_calls().unwrap();
        let filters = Filters::new().unwrap();
        filters.install(&jailed).unwrap();
        filters
    };
    match spec.instance.agent.as_str() {
        "look" => look(jailed.uid()),
        "stay" => until("told to go", || mark(Path::new("/scratch.ext4")) == 1),
        "without" => {
            let outside = outside();
            for (name, wall, attempt) in ATTEMPTS {
                match wall {
                    Wall::Filter => println!("{name}: not tried"),
                    Wall::Jail | Wall::Both => tell(name, attempt(&outside)),
                }
            }
        }
        "with" => {
            let outside = outside();
            close();
            let (name, _, attempt) = ATTEMPTS[number];
            tell(name, attempt(&outside));
        }
        "role" => {
            let (role, deed) = IN_ROLES[number];
            close().narrow(role).unwrap();
            deed();
            println!("done");
        }
        "i386" => {
            close();
            hostile::call_as_i386();
            println!("done");
        }
        other => panic!("{other}"),
    }
}

fn outside() -> Outside {
    // A file that would grow beyond its bound is told by a signal first.
    assert!(hostile::ignore(Signal::XFSZ), "SIGXFSZ");
    let text = fs::read("/scratch.ext4").unwrap();
    serde_json::from_slice(text.split(|byte| *byte == b'\n').next().unwrap()).unwrap()
}

fn tell(name: &str, outcome: std::io::Result<()>) {
    match outcome {
        Ok(()) => println!("{name}: DONE"),
        Err(error) => println!("{name}: refused, {error}"),
    }
    std::io::stdout().flush().unwrap();
}

/// What can be told from inside without trying to break anything.
fn look(uid: u32) {
    until("looked at from outside", || mark(Path::new("/scratch.ext4")) == 1);
    check("KVM can be reached", fs::metadata("/dev/kvm").is_ok());
    for fixed in ["/vmlinux", "/initramfs.cpio", "/rootfs0.squashfs", "/rootfs1.squashfs", "/volume1.ext4"] {
        check(&format!("{fixed} is readable"), fs::File::open(fixed).is_ok());
    }
    for disk in ["/scratch.ext4", "/volume0.ext4"] {
        let opened = fs::OpenOptions::new().read(true).write(true).open(disk);
        check(&format!("{disk} is writable"), opened.is_ok());
    }
    check("own uid", rustix::process::getuid().as_raw() == uid && rustix::process::geteuid().as_raw() == uid);
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
    check("no environment", std::env::vars_os().next().is_none());
    let open = (0..256).filter(|fd| hostile::is_open(*fd)).count();
    check(&format!("{open} descriptors, of its own making"), open <= 4); // 0, 1, 2 and cage's question
    check("no core", getrlimit(Resource::Core).maximum == Some(0));
    check("no large file", getrlimit(Resource::Fsize).maximum == Some(DISK_BYTES));
    let dumpable = rustix::process::dumpable_behavior();
    check("no dump", dumpable == Ok(rustix::process::DumpableBehavior::NotDumpable));
    check("own host name", rustix::system::uname().nodename().to_bytes() == b"vm");
    println!("all looked at");
}

fn check(what: &str, holds: bool) {
    println!("{} {what}", if holds { "ok" } else { "WRONG" });
}
