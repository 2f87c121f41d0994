//! The guest's loop as it is, in namespaces of this machine instead of a VM: a root of its own over this one, a second layer above
//! it, real programs behind the real sandbox. The control connection is a socket pair.
//!
//! Left out is what would change the machine: the clock, the kernel's settings, and the bounds of the cgroup.

mod tools_tests;

use super::*;
use abi::files::{Content, Reader, Record, Writer};
use abi::guest::{
    Clock, Exec, Exit, Failed, Files, FilesJob, Frame, GUEST_UID, Health, HealthProbe, Shutdown, Signal,
    TerminalSize, Volume, Window,
};
use rustix::mount::{MountFlags, mount, mount_bind};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufReader, Read as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const BASE: &str = "NULLBOX_TEST_WORLD";
/// Minor numbers of loop devices: the workspace, then the volumes.
const DISKS: &str = "NULLBOX_TEST_DISKS";
/// Longer than anything here takes, so that a wait for what never comes fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest: run by the tests below as PID 1 of its namespaces, with the control connection as its standard input.
#[test]
#[ignore = "it is the other end of the tests below"]
fn guest() {
    let Some(base) = std::env::var_os(BASE) else { return };
    if let Err(error) = live_in(&base.into_string().unwrap()) {
        eprintln!("guest: {error}");
    }
}

fn live_in(base: &str) -> Result<(), String> {
    let signals = sys::signals().unwrap();
    let mut control = Control::over(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
    let start = greet(&mut control).map_err(|error| error.to_string())?;
    let plan = Plan::new(start).map_err(|error| error.to_string())?;
    let places = Places::new(base, 2);
    mount("tmpfs", base, "tmpfs", MountFlags::empty(), None).unwrap();
    places.make().unwrap();
    mount_bind("/", places.layer(0)).unwrap();
    upper_layer(Path::new(&places.layer(1)), plan.has_tree.then(|| plan.files_uid()));
    let (scratch, volumes) = mounted(&places, &plan);
    let tree = cgroup::Tree::of(cgroup_of(base));
    let (root, volumes, view) = enter_root(&places, volumes).map_err(|error| error.to_string())?;
    network::names(&root, &plan).unwrap();
    network::interfaces(None).unwrap();
    grant_paths(&root, &plan).unwrap();
    let mut relay = relay::Relay::bind().unwrap();
    let sandbox = sandbox::Sandbox::new(&plan).map_err(|error| error.to_string())?;
    let own = changes::Own::new(&plan, sandbox.sealed());
    let disks = std::iter::once(scratch).chain(volumes).collect();
    let tools = plan.tools.as_ref().map(|_| crate::tools::start(&root, &plan, &tree));
    let tools = tools.transpose().map_err(|error| error.to_string())?;
    relay.tools = tools.as_ref().map(|tools| tools.leader);
    let world = World { sandbox, tree, relay, disks, view, own, tools };
    let mut server = Server::new(control, signals, plan, world);
    run(&mut server, Stages::default())?;
    if std::env::var_os(DISKS).is_some() {
        disks::close(&server.world.disks).map_err(|error| error.to_string())?;
    }
    server.control.finish(FINISH_TIME).map_err(|error| error.to_string())
}

/// The workspace and the volumes: real disks where the test brought some, else a directory and none.
fn mounted(places: &Places, plan: &Plan) -> (OwnedFd, Vec<Mounted>) {
    let Ok(disks) = std::env::var(DISKS) else { return (disks::upper(places).unwrap(), Vec::new()) };
    mount("tmpfs", "/dev", "tmpfs", MountFlags::empty(), None).unwrap();
    for (name, minor) in ["vdc", "vdd", "vde"].iter().zip(disks.split(',')) {
        let device = rustix::fs::makedev(7, minor.parse().unwrap());
        let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, format!("/dev/{name}"), kind, mode, device).unwrap();
    }
    let scratch = disks::workspace(places).unwrap();
    (scratch, disks::volumes_as_they_are(places, &plan.volumes, plan.files_uid()).unwrap())
}

/// A layer that takes something of the one below away: a file by a whiteout, a directory's content by being opaque.
/// And a task's tree, where somebody is to have one.
fn upper_layer(layer: &Path, tree_of: Option<u32>) {
    if let Some(uid) = tree_of {
        std::fs::create_dir_all(layer.join("work/gone")).unwrap();
        let files = [("work/keep.txt", "kept\n"), ("work/edit.txt", "old\n"), ("work/gone/file", "x")];
        for (path, text) in files {
            std::fs::write(layer.join(path), text).unwrap();
        }
        // This machine may have a /work of its own.
        let opaque = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(layer.join("work"), "trusted.overlay.opaque", b"y", opaque).unwrap();
        for path in ["work", "work/gone", "work/keep.txt", "work/edit.txt", "work/gone/file"] {
            std::os::unix::fs::chown(layer.join(path), Some(uid), Some(uid)).unwrap();
        }
    }
    std::fs::create_dir_all(layer.join("opt/layered")).unwrap();
    std::fs::write(layer.join("opt/layered/file"), "from the layer").unwrap();
    std::fs::write(layer.join("opt/layered/other"), "from the layer").unwrap();
    for path in ["opt/layered", "opt/layered/file", "opt/layered/other"] {
        std::os::unix::fs::chown(layer.join(path), Some(GUEST_UID), Some(GUEST_UID)).unwrap();
    }
    let opaque = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(layer.join("opt"), "trusted.overlay.opaque", b"y", opaque).unwrap();
    std::fs::create_dir(layer.join("etc")).unwrap();
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty());
    rustix::fs::mknodat(rustix::fs::CWD, layer.join("etc/fstab"), kind, mode, 0).unwrap();
}

fn cgroups() -> OwnedFd {
    let mounted = mounts::detached("cgroup2", &[], rustix::mount::MountAttrFlags::empty()).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(&mounted, ".", flags, rustix::fs::Mode::empty()).unwrap()
}

/// A cgroup without bounds, named after the test.
fn cgroup_of(base: &str) -> OwnedFd {
    let (root, name) = (cgroups(), base.rsplit('/').next().unwrap());
    rustix::fs::mkdirat(&root, name, rustix::fs::Mode::RWXU).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(&root, name, flags, rustix::fs::Mode::empty()).unwrap()
}

/// The host's side.
struct Host {
    guest: Child,
    base: PathBuf,
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    /// What came for channels that nobody asked about yet.
    came: VecDeque<Frame>,
    last: u32,
}

/// How a channel ended.
#[derive(Debug)]
struct Ended {
    stdout: Vec<u8>,
    stderr: String,
    exit: Exit,
}

impl Ended {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

fn start(command: &[&str]) -> Start {
    Start {
        tools: None,
        has_tree: false,
        instance: "tested.1".into(),
        command: command.iter().map(ToString::to_string).collect(),
        env: vec!["PATH=/usr/bin:/bin".into(), "HOME=/home/agent".into()],
        workdir: "/home/agent".into(),
        network: None,
        authority: None,
        read: vec![],
        write: vec!["/work".into()],
        shell: true,
        exec: vec![],
        pids_max: 1024,
        clock_unix_ns: 1,
        rootfs_disks: 2,
        volumes: vec![],
        stdin: false,
        terminal: None,
        health: None,
    }
}

/// A running guest whose command only waits; none where the kernel is too old for its sandbox.
fn idle() -> Option<Host> {
    Host::new(start(&["/bin/sleep", "1000"]))
}

fn shell(text: &str) -> Exec {
    Exec {
        command: vec!["/bin/sh".into(), "-c".into(), text.into()],
        env: vec![],
        workdir: String::new(),
        terminal: None,
        window_bytes: limits::EXEC_WINDOW_BYTES,
    }
}

/// An empty ext4 in a file, with a device.
struct Disk {
    image: PathBuf,
    device: String,
}

impl Disk {
    fn new(name: &str) -> Disk {
        let image = std::env::temp_dir().join(format!("verifier-disk-{name}-{}", std::process::id()));
        std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        ran("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "^has_journal", image.to_str().unwrap()]);
        let device = ran("losetup", &["--find", "--show", image.to_str().unwrap()]);
        Disk { image, device: device.trim().to_owned() }
    }

    fn state(&self) -> String {
        let state = ran("dumpe2fs", &["-h", self.image.to_str().unwrap()]);
        state.lines().find_map(|line| line.strip_prefix("Filesystem state:")).unwrap().trim().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
        let _ = std::fs::remove_file(&self.image);
    }
}

fn ran(program: &str, args: &[&str]) -> String {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new(program).args(args).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Host {
    fn new(start: Start) -> Option<Host> {
        Host::with_disks(start, &[])
    }

    fn with_disks(start: Start, disks: &[&Disk]) -> Option<Host> {
        assert!(rustix::process::getuid().is_root(), "run the verifier's tests as root");
        if sys::landlock_abi().unwrap() < verifier::access::ABI_MIN {
            eprintln!("skipped: this kernel's Landlock is too old; see the system tests of agents");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("verifier-world-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let base = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&base).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child"];
        let minors: Vec<&str> =
            disks.iter().map(|disk| disk.device.strip_prefix("/dev/loop").unwrap()).collect();
        let guest = Command::new("unshare")
            .envs((!minors.is_empty()).then(|| (DISKS, minors.join(","))))
            .args(namespaces)
            // The test harness has a second thread; in a guest PID 1 has one, and SIGCHLD is blocked in all of them.
            .args(["env", "--block-signal=CHLD"])
            .arg(std::env::current_exe().unwrap())
            .args(["world_tests::guest", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(BASE, &base)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(ours.try_clone().unwrap());
        let mut host = Host { guest, base, writer: ours, reader, came: VecDeque::new(), last: 0 };
        assert_eq!(host.frame().unwrap().parse::<Hello>().unwrap().protocol, PROTOCOL);
        host.send(Frame::json(Kind::Start, 0, &start).unwrap());
        let ready = host.frame().unwrap();
        assert_eq!(ready.kind, Kind::Ready, "{}", String::from_utf8_lossy(&ready.payload));
        Some(host)
    }

    fn send(&mut self, frame: Frame) {
        frame.write_to(&mut self.writer).unwrap();
    }

    /// The next frame; none when the guest has closed the connection.
    fn frame(&mut self) -> Option<Frame> {
        Frame::read_from(&mut self.reader).unwrap()
    }

    /// The next frame of a channel; others' wait.
    fn frame_of(&mut self, channel: u32) -> Frame {
        if let Some(at) = self.came.iter().position(|frame| frame.channel == channel) {
            return self.came.remove(at).unwrap();
        }
        loop {
            let frame = self.frame().expect("the guest has ended");
            match frame.channel == channel {
                true => return frame,
                false => self.came.push_back(frame),
            }
        }
    }

    fn open(&mut self, kind: Kind, order: &impl serde::Serialize) -> u32 {
        self.last += 1;
        self.send(Frame::json(kind, self.last, order).unwrap());
        self.last
    }

    fn exec(&mut self, exec: &Exec) -> u32 {
        self.open(Kind::Exec, exec)
    }

    fn input(&mut self, channel: u32, bytes: &[u8]) {
        self.send(Frame::data(Kind::Stdin, channel, bytes));
    }

    fn widen(&mut self, channel: u32, bytes: u32) {
        self.send(Frame::json(Kind::Window, channel, &Window { bytes }).unwrap());
    }

    /// Takes all output of a channel to its end.
    fn end_of(&mut self, channel: u32) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let frame = self.frame_of(channel);
            match frame.kind {
                Kind::Stdout | Kind::Stderr => {
                    if channel > 0 {
                        self.widen(channel, frame.payload.len() as u32);
                    }
                    assert!(!frame.payload.is_empty());
                    if frame.kind == Kind::Stdout { &mut stdout } else { &mut stderr }.extend(frame.payload);
                }
                Kind::Window => {}
                Kind::Exit => {
                    let stderr = String::from_utf8_lossy(&stderr).into_owned();
                    return Ended { stdout, stderr, exit: frame.parse().unwrap() };
                }
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&frame.payload)),
            }
        }
    }

    fn run(&mut self, text: &str) -> Ended {
        let channel = self.exec(&shell(text));
        self.end_of(channel)
    }

    /// Output of a terminal up to some text.
    fn until(&mut self, channel: u32, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let frame = self.frame_of(channel);
            assert_eq!(frame.kind, Kind::Stdout, "`{text}` never came: {seen:?}");
            seen += &String::from_utf8_lossy(&frame.payload);
        }
        seen
    }

    fn files(&mut self, job: FilesJob, input: &[u8]) -> Ended {
        let channel = self.open(Kind::Files, &Files { job, window_bytes: limits::EXEC_WINDOW_BYTES });
        for chunk in input.chunks(32 * 1024) {
            self.input(channel, chunk);
        }
        self.input(channel, b"");
        self.end_of(channel)
    }

    fn changes(&mut self) -> BTreeMap<String, Record> {
        let ended = self.files(FilesJob::Changes, b"");
        assert_eq!((ended.exit.code, ended.stderr.as_str()), (Some(0), ""));
        let mut reader = Reader::new(ended.stdout.as_slice());
        let mut records = BTreeMap::new();
        while let Some(record) = reader.next(false).unwrap() {
            records.insert(record.path.clone(), record);
        }
        records
    }

    /// That the guest ends at once, having been told something that breaks the protocol.
    fn assert_ended(mut self) {
        while self.frame().is_some() {}
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.guest.kill();
        let _ = self.guest.wait();
        let _ = std::fs::remove_dir(&self.base);
        let (root, name) = (cgroups(), self.base.file_name().unwrap());
        let remove =
            |dir: &OwnedFd, name: &Path| rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::REMOVEDIR);
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let own = rustix::fs::openat(&root, name, flags, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..500 {
            let listed = rustix::fs::Dir::read_from(&own).unwrap();
            for entry in listed.flatten() {
                let name = PathBuf::from(entry.file_name().to_string_lossy().into_owned());
                let _ = remove(&own, &name); // a file, a dot, or still being left
            }
            if remove(&root, Path::new(name)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10)); // killed processes are still being reaped
        }
        eprintln!("the cgroup {name:?} was left behind");
    }
}

#[test]
fn an_exec_has_its_output_its_code_and_its_input() {
    let Some(mut host) = idle() else { return };
    let ended = host.run("echo out; echo err >&2; id -u; pwd; exit 7");
    assert_eq!(ended.text(), format!("out\n{GUEST_UID}\n/home/agent\n"));
    assert_eq!((ended.stderr.as_str(), ended.exit.code, ended.exit.signal), ("err\n", Some(7), None));
    let channel = host.exec(&shell("md5sum"));
    let sent: Vec<u8> = (0..2_000_000u32).map(|n| (n ^ n >> 8) as u8).collect();
    let mut window = limits::EXEC_INPUT_WINDOW_BYTES as usize;
    for chunk in sent.chunks(30_000) {
        while window < chunk.len() {
            let frame = host.frame_of(channel);
            assert_eq!(frame.kind, Kind::Window);
            window += frame.parse::<Window>().unwrap().bytes as usize;
        }
        window -= chunk.len();
        host.input(channel, chunk);
    }
    host.input(channel, b"");
    let mut known = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut known.stdin.take().unwrap(), &sent).unwrap();
    let known = String::from_utf8(known.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(host.end_of(channel).text(), known);
    let channel = host.exec(&shell("kill -9 $$"));
    assert_eq!(host.end_of(channel).exit.signal, Some(9));
}

#[test]
fn a_layer_above_hides_what_it_says() {
    let Some(mut host) = idle() else { return };
    let ended = host.run("cat /opt/layered/file; ls /opt; ls /etc/fstab");
    assert_eq!(ended.text(), "from the layerlayered\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("fstab"), "the whiteout hides it: {}", ended.stderr);
}

#[test]
fn a_terminal_is_one_and_follows_its_size() {
    let Some(mut host) = idle() else { return };
    let mut exec = shell(
        "tty; test -t 0 && test -t 1 && test -t 2 && echo yes; stty size; echo to-tty > /dev/tty; read x; stty size; echo \"got $x\" >&2",
    );
    exec.terminal = Some(TerminalSize { rows: 30, columns: 100 });
    let channel = host.exec(&exec);
    let seen = host.until(channel, "to-tty");
    assert!(seen.starts_with("/dev/pts/0\r\nyes\r\n30 100\r\n"), "{seen:?}");
    let size = TerminalSize { rows: 50, columns: 132 };
    host.send(Frame::json(Kind::Resize, channel, &size).unwrap());
    host.input(channel, b"hello\n");
    let ended = host.end_of(channel);
    assert!(
        ended.text().contains("hello\r\n50 132\r\ngot hello\r\n"),
        "echo, new size, one output: {ended:?}"
    );
    assert_eq!((ended.stderr.as_str(), ended.exit.code), ("", Some(0)));
}

#[test]
fn keys_signal_the_terminals_own_processes_and_its_end_is_an_end() {
    let Some(mut host) = idle() else { return };
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let sleeping = host.exec(&Exec {
        terminal,
        ..shell("trap 'echo int; exit 3' INT; echo ready; while :; do sleep 0.1; done")
    });
    let second = host.exec(&Exec { terminal, ..shell("cat; echo end") });
    host.until(sleeping, "ready");
    host.input(sleeping, b"\x03");
    let ended = host.end_of(sleeping);
    assert!(ended.text().contains("int"), "{ended:?}");
    assert_eq!(ended.exit.code, Some(3));
    host.input(second, b"unfinished");
    host.input(second, b"");
    let ended = host.end_of(second);
    assert!(ended.text().ends_with("unfinishedend\r\n"), "{ended:?}");
    let away = host.exec(&Exec { terminal, ..shell("exec < /dev/null > /dev/null 2>&1; sleep 0.3; exit 4") });
    host.input(away, &[b'x'; 60_000]);
    assert_eq!(host.end_of(away).exit.code, Some(4), "a process may leave its terminal and live on");
    let left = Exec { terminal, ..shell("trap '' HUP; (trap '' HUP; sleep 1000) & echo gone") };
    let left = host.exec(&left);
    assert!(host.end_of(left).text().contains("gone"), "what is left on a terminal does not hold it open");
}

#[test]
fn the_agents_command_may_have_a_terminal_or_an_input() {
    let mut order = start(&["/bin/sh", "-c", "test -t 0 && stty size; read x; echo \"<$x>\""]);
    order.terminal = Some(TerminalSize { rows: 10, columns: 20 });
    let Some(mut host) = Host::new(order) else { return };
    host.until(0, "10 20");
    host.send(Frame::json(Kind::Resize, 0, &TerminalSize { rows: 11, columns: 20 }).unwrap());
    host.input(0, b"typed\n");
    assert!(host.end_of(0).text().contains("<typed>"));
    assert_eq!(host.run("echo after").text(), "after\n", "execs go on after the command has ended");
    let mut order = start(&["/bin/cat"]);
    order.stdin = true;
    let mut host = Host::new(order).unwrap();
    host.input(0, b"through");
    host.input(0, b"");
    assert_eq!(host.end_of(0).text(), "through");
    let mut host = Host::new(start(&["/bin/cat"])).unwrap();
    assert_eq!(host.end_of(0).text(), "", "without stdin its input is at its end");
}

#[test]
fn a_slow_reader_holds_up_nobody_but_itself() {
    let Some(mut host) = idle() else { return };
    let slow = host.exec(&Exec { window_bytes: 1000, ..shell("yes") });
    let never = host.exec(&Exec { window_bytes: 0, ..shell("echo lost; echo lost >&2") });
    let mut taken = 0;
    while taken < 1000 {
        taken += host.frame_of(slow).payload.len();
    }
    let quick = host.run("head -c 3000000 /dev/zero | wc -c; head -c 3000000 /dev/zero");
    assert_eq!(quick.stdout.len(), 3_000_000 + "3000000\n".len());
    assert!(
        !host.came.iter().any(|frame| frame.channel == slow || frame.channel == never),
        "no more than the window"
    );
    host.widen(slow, 500);
    while taken < 1500 {
        taken += host.frame_of(slow).payload.len();
    }
    assert_eq!(taken, 1500);
    host.send(Frame::json(Kind::Signal, slow, &Signal { signal: 9 }).unwrap());
    host.widen(slow, 1 << 20);
    assert_eq!(host.end_of(slow).exit.signal, Some(9));
    // It ended long ago; what it wrote still waits for who reads late.
    std::thread::sleep(Duration::from_millis(5_500));
    host.widen(never, 100);
    let ended = host.end_of(never);
    assert_eq!(
        (ended.text().as_str(), ended.stderr.as_str(), ended.exit.code),
        ("lost\n", "lost\n", Some(0))
    );
}

#[test]
fn an_input_that_nobody_reads_holds_up_nobody() {
    let Some(mut host) = idle() else { return };
    let deaf = host.exec(&shell("sleep 1000"));
    for _ in 0..4 {
        host.input(deaf, &[b'x'; 32 * 1024]);
    }
    assert_eq!(host.run("echo alive").text(), "alive\n");
    host.send(Frame::json(Kind::Signal, deaf, &Signal { signal: 15 }).unwrap());
    assert_eq!(host.end_of(deaf).exit.signal, Some(15));
}

#[test]
fn a_host_that_breaks_the_protocol_ends_the_guest() {
    type Breach = fn(&mut Host);
    let breaches: [Breach; 6] = [
        |host| {
            let deaf = host.exec(&shell("sleep 1000"));
            // The pipe takes a part, which comes back at once; so much more than both is too much in any case.
            (0..8)
                .for_each(|_| drop(Frame::data(Kind::Stdin, deaf, &[0; 60_000]).write_to(&mut host.writer)));
        },
        |host| host.widen(0, 1),
        |host| host.send(Frame::json(Kind::Exec, 0, &shell("true")).unwrap()),
        |host| {
            let taken = host.exec(&shell("sleep 1000"));
            host.send(Frame::json(Kind::Exec, taken, &shell("true")).unwrap());
        },
        |host| host.send(Frame::json(Kind::Resize, 0, &TerminalSize { rows: 0, columns: 1 }).unwrap()),
        |host| host.send(Frame::data(Kind::Synced, 0, b"")),
    ];
    for breach in breaches {
        let Some(mut host) = idle() else { return };
        breach(&mut host);
        host.assert_ended();
    }
}

#[test]
fn hundreds_of_execs_run_side_by_side_and_one_more_is_refused() {
    let Some(mut host) = idle() else { return };
    let channels: Vec<u32> = (0..limits::EXECS_PER_AGENT_MAX)
        .map(|n| {
            host.exec(&Exec {
                window_bytes: 4096,
                ..shell(&format!("read x; echo {n} $x; exit {}", n % 100))
            })
        })
        .collect();
    let one_more = host.exec(&shell("true"));
    let refused = host.frame_of(one_more);
    assert!(refused.parse::<Failed>().unwrap().error.contains("256"), "{refused:?}");
    for channel in channels.iter().rev() {
        host.input(*channel, format!("line of {channel}\n").as_bytes());
    }
    for (n, channel) in channels.iter().enumerate() {
        let ended = host.end_of(*channel);
        assert_eq!(ended.text(), format!("{n} line of {channel}\n"));
        assert_eq!(ended.exit.code, Some(n as i32 % 100));
    }
    assert_eq!(host.run("echo room again").text(), "room again\n");
}

fn stream(records: &[(&str, u32, Content, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, mode, content, bytes) in records {
        let (path, content) = (path.to_string(), content.clone());
        writer.record(&Record { path, mode: *mode, modified_unix_s: 77, content, in_rootfs: false }).unwrap();
        writer.out().extend_from_slice(bytes);
    }
    std::mem::take(writer.out())
}

#[test]
fn files_go_in_and_out_as_the_agent_and_no_further_than_its_grants() {
    let Some(mut host) = idle() else { return };
    let big: Vec<u8> = (0..100_000u32).map(|n| (n * 7) as u8).collect();
    let wire = stream(&[
        ("", 0o755, Content::Directory, b""),
        ("big", 0o640, Content::File { bytes: big.len() as u64 }, &big),
        ("link", 0o777, Content::Link { target: "/etc/shadow".into() }, b""),
        ("run.sh", 0o755, Content::File { bytes: 18 }, b"#!/bin/sh\necho ran"),
    ]);
    let written = host.files(FilesJob::Write { path: "/work/tree".into() }, &wire);
    assert_eq!((written.exit.code, written.stderr.as_str()), (Some(0), ""));
    let seen = host.run("stat -c '%n %u %a %Y' /work/tree/big; readlink /work/tree/link; /work/tree/run.sh");
    assert_eq!(seen.text(), "/work/tree/big 1000 640 77\n/etc/shadow\nran\n", "{}", seen.stderr);
    let read = host.files(FilesJob::Read { path: "/work/tree".into() }, b"");
    assert_eq!((read.exit.code, read.stderr.as_str()), (Some(0), ""));
    let mut reader = Reader::new(read.stdout.as_slice());
    let mut paths = BTreeMap::new();
    while let Some(record) = reader.next(true).unwrap() {
        let mut bytes = Vec::new();
        reader.content().read_to_end(&mut bytes).unwrap();
        paths.insert(record.path, (record.content, bytes));
    }
    assert_eq!(paths.keys().collect::<Vec<_>>(), ["", "big", "link", "run.sh"]);
    assert_eq!(paths["big"].1, big);
    assert_eq!(paths["link"].0, Content::Link { target: "/etc/shadow".into() });
    for path in ["/root", "/etc/shadow", "/work/tree/link/x", "/proc/1/environ"] {
        let read = host.files(FilesJob::Read { path: path.into() }, b"");
        assert!(
            read.exit.code == Some(1) && read.stdout.is_empty() && !read.stderr.is_empty(),
            "{path}: {read:?}"
        );
    }
    for path in ["/etc/planted", "/usr/bin/planted", "/planted"] {
        let wire = stream(&[("", 0o644, Content::File { bytes: 1 }, b"x")]);
        let written = host.files(FilesJob::Write { path: path.into() }, &wire);
        assert!(written.exit.code == Some(1) && !written.stderr.is_empty(), "{path}: {written:?}");
    }
    let channel =
        host.open(Kind::Files, &Files { job: FilesJob::Read { path: "x/../y".into() }, window_bytes: 1 });
    assert!(host.frame_of(channel).parse::<Failed>().unwrap().error.contains("absolute"));
}

#[test]
fn a_copy_for_a_slow_reader_waits_and_can_be_killed() {
    let Some(mut host) = idle() else { return };
    host.run("head -c 3000000 /dev/zero > /work/big");
    let job = FilesJob::Read { path: "/work/big".into() };
    let slow = host.open(Kind::Files, &Files { job, window_bytes: 100 });
    assert_eq!(host.run("echo alive").text(), "alive\n");
    host.send(Frame::json(Kind::Signal, slow, &Signal { signal: 9 }).unwrap());
    host.widen(slow, 1 << 20);
    assert_eq!(host.end_of(slow).exit.signal, Some(9));
}

#[test]
fn a_diff_says_what_was_added_changed_and_removed_and_nothing_of_the_guests_own() {
    let mut order = start(&["/bin/sleep", "1000"]);
    order.write.extend(["/opt/layered".into(), "/srv/made/deep".into()]);
    let Some(mut host) = Host::new(order) else { return };
    assert_eq!(host.changes().keys().collect::<Vec<_>>(), Vec::<&String>::new(), "nothing was done yet");
    let script = "cd /work; mkdir -p d/e; echo one > d/e/file; ln -s /etc l; mkfifo p; touch -d @5 old; \
                  echo changed > /opt/layered/file; rm /opt/layered/other; echo x > /srv/made/deep/x; echo t > /tmp/t";
    let ended = host.run(script);
    assert_eq!(ended.exit.code, Some(0), "{}", ended.stderr);
    let records = host.changes();
    let seen: Vec<_> = records
        .values()
        .map(|record| (record.path.as_str(), record.in_rootfs, record.content.clone()))
        .collect();
    let file = |bytes| Content::File { bytes };
    assert_eq!(
        seen,
        [
            ("opt/layered/file", true, file(8)),
            ("opt/layered/other", true, Content::Removed),
            ("srv/made/deep/x", false, file(2)),
            ("tmp/t", false, file(2)),
            ("work/d", false, Content::Directory),
            ("work/d/e", false, Content::Directory),
            ("work/d/e/file", false, file(4)),
            ("work/l", false, Content::Link { target: "/etc".into() }),
            ("work/old", false, file(0)),
            ("work/p", false, Content::Other { kind: "pipe".into() }),
        ]
    );
    assert_eq!(records["work/old"].modified_unix_s, 5);
}

#[test]
fn a_directory_made_anew_shows_what_it_no_longer_holds() {
    let mut order = start(&["/bin/sleep", "1000"]);
    order.write.push("/opt".into());
    let Some(mut host) = Host::new(order) else { return };
    let ended = host.run("rm -r /opt/layered && mkdir /opt/layered && echo new > /opt/layered/new");
    assert_eq!(ended.exit.code, Some(0), "{}", ended.stderr);
    let seen: Vec<_> = host.changes().into_values().map(|r| (r.path, r.in_rootfs, r.content)).collect();
    assert_eq!(
        seen,
        [
            ("opt/layered/file".to_owned(), true, Content::Removed),
            ("opt/layered/new".to_owned(), false, Content::File { bytes: 4 }),
            ("opt/layered/other".to_owned(), true, Content::Removed),
        ]
    );
    host.run("rm -r /opt/layered; echo gone > /opt/layered");
    let seen: Vec<_> = host.changes().into_values().map(|r| (r.path, r.in_rootfs, r.content)).collect();
    assert_eq!(seen, [("opt/layered".to_owned(), true, Content::File { bytes: 5 })]);
}

#[test]
fn health_is_checked_while_the_command_runs() {
    let mut order = start(&["/bin/sh", "-c", "read x; exit 0"]);
    order.stdin = true;
    order.health = Some(HealthProbe { port: 8080, path: "/up".into(), interval_secs: 1 });
    let Some(mut host) = Host::new(order) else { return };
    let frame = host.frame_of(0);
    assert_eq!(frame.kind, Kind::Health);
    let health: Health = frame.parse().unwrap();
    assert!(!health.healthy && health.detail.contains("refused"), "{health:?}");
    host.input(0, b"\n");
    while host.frame_of(0).kind != Kind::Exit {}
    std::thread::sleep(Duration::from_millis(1_500));
    host.run("true");
    assert!(!host.came.iter().any(|frame| frame.kind == Kind::Health), "nobody asks an agent that has ended");
}

#[test]
fn disks_are_written_out_on_request_and_a_right_clock_is_left_alone() {
    let Some(mut host) = idle() else { return };
    for _ in 0..3 {
        host.send(Frame::data(Kind::Sync, 0, b""));
    }
    let unix_ns =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    host.send(Frame::json(Kind::Clock, 0, &Clock { unix_ns }).unwrap());
    assert_eq!(host.frame_of(0).kind, Kind::Synced);
    assert_eq!(host.frame_of(0).kind, Kind::Synced, "asked again meanwhile, it is done again");
}

#[test]
fn a_shutdown_reports_every_channel_and_ends_what_does_not_listen() {
    let Some(mut host) = idle() else { return };
    let stubborn = host.exec(&shell("trap '' TERM; echo ready; while :; do sleep 0.1; done"));
    host.until(stubborn, "ready");
    host.send(Frame::json(Kind::Shutdown, 0, &Shutdown { grace_ms: 300 }).unwrap());
    assert_eq!(host.end_of(0).exit.signal, Some(15));
    let late = host.exec(&shell("true"));
    assert!(host.frame_of(late).parse::<Failed>().unwrap().error.contains("being stopped"));
    assert_eq!(host.end_of(stubborn).exit.signal, Some(9));
    host.assert_ended();
}

#[test]
fn volumes_are_the_agents_keep_what_they_hold_and_are_left_clean() {
    let (workspace, rw, ro) = (Disk::new("workspace"), Disk::new("rw"), Disk::new("ro"));
    let mut order = start(&["/bin/sleep", "1000"]);
    for (path, read_only) in [("/vol/rw", false), ("/vol/ro", true)] {
        order.volumes.push(Volume { path: path.into(), read_only });
    }
    let Some(mut host) = Host::with_disks(order, &[&workspace, &rw, &ro]) else { return };
    let ended = host.run("stat -c '%n %u' /vol/rw; ls -A /vol/rw; echo kept > /vol/rw/x; echo '#!/bin/sh\necho ran' > /vol/rw/p; chmod +x /vol/rw/p; /vol/rw/p; echo y > /vol/ro/y; cat /vol/rw/x; echo w > /work/w");
    assert_eq!(ended.text(), "/vol/rw 1000\nran\nkept\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("/vol/ro/y"), "what is read only is not written: {}", ended.stderr);
    assert_eq!(host.changes().keys().collect::<Vec<_>>(), ["work/w"], "a volume is no part of the root");
    let wire = stream(&[("in", 0o644, Content::File { bytes: 2 }, b"in")]);
    assert_eq!(host.files(FilesJob::Write { path: "/vol/rw".into() }, &wire).exit.code, Some(0));
    let wire = stream(&[("in", 0o644, Content::File { bytes: 2 }, b"in")]);
    assert_eq!(host.files(FilesJob::Write { path: "/vol/ro".into() }, &wire).exit.code, Some(1));
    host.send(Frame::json(Kind::Shutdown, 0, &Shutdown { grace_ms: 1000 }).unwrap());
    host.assert_ended();
    assert_eq!([workspace.state(), rw.state()], ["clean", "clean"]);
    for disk in [&workspace, &rw] {
        ran("e2fsck", &["-f", "-n", disk.image.to_str().unwrap()]);
    }
    assert_eq!(ran("debugfs", &["-R", "cat /x", rw.image.to_str().unwrap()]), "kept\n");
    assert_eq!(ran("debugfs", &["-R", "cat /upper/work/w", workspace.image.to_str().unwrap()]), "w\n");
}

#[test]
fn without_a_shell_a_volume_holds_no_programs_and_copies_still_work() {
    let (workspace, rw) = (Disk::new("shell-workspace"), Disk::new("shell-rw"));
    let mut order = start(&["/bin/sleep", "1000"]);
    order.shell = false;
    order.volumes.push(Volume { path: "/vol".into(), read_only: false });
    let Some(mut host) = Host::with_disks(order, &[&workspace, &rw]) else { return };
    let program = std::fs::read("/bin/true").unwrap();
    let wire = stream(&[("p", 0o755, Content::File { bytes: program.len() as u64 }, &program)]);
    assert_eq!(host.files(FilesJob::Write { path: "/vol".into() }, &wire).exit.code, Some(0));
    let channel = host.exec(&Exec { command: vec!["/vol/p".into()], ..shell("") });
    assert_eq!(host.frame_of(channel).kind, Kind::Denied);
    assert!(host.frame_of(channel).parse::<Failed>().unwrap().error.contains("shell = false"));
    assert!(host.changes().is_empty(), "the sealed loader is the guest's own");
}
