//! One booted node: QEMU, its console, its door.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::accel;
use crate::losses;

/// From power-on to ready, under emulation on a busy machine.
pub const BOOT_TIME_MAX: Duration = Duration::from_secs(300);
/// The console line that says a node is ready.
pub const READY: &str = "nullbox: ready";
/// How that line ends, behind a number.
const READY_END: &str = "ms after kernel start";
/// QEMU's control socket in the node's folder.
const QMP: &str = "qmp.sock";
/// QEMU's log of resets, where it emulates the CPU.
const RESETS: &str = "resets.log";

/// How long after QEMU's end all that it wrote may take to be read.
const GOES_OFF_MAX: Duration = Duration::from_secs(10);

/// How the machine finds the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// OVMF, from CD.
    Uefi,
    /// SeaBIOS, from CD.
    Bios,
    /// OVMF, the ISO written to a USB stick.
    UefiUsb,
    /// OVMF, the image on a virtio disk; what the machine writes to it is lost with the machine.
    UefiDisk,
}

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Names its folder below build/tests.
    pub name: String,
    pub iso: PathBuf,
    pub firmware: Firmware,
    /// Disk labelled NULLBOX-CONFIG.
    pub config: Option<PathBuf>,
    /// Disk labelled NULLBOX-STATE.
    pub state: Option<PathBuf>,
    pub memory_mib: u32,
    pub cpus: u32,
    /// Host TCP ports that stand for addresses of the test internet: (address:port in the node's world, host port).
    pub forwards: Vec<(String, u16)>,
    /// A real way out, by this machine's network. Only a person who runs the demo may ask for it; tests never do.
    pub uplink: bool,
    /// Private key of the operator that [`Node::ctl`] uses.
    pub key: PathBuf,
}

impl Machine {
    /// A machine without volumes: UEFI, 1 GiB, the admin key of `config`.
    pub fn bare(name: &str, iso: PathBuf, config: &crate::fixture::Config) -> Machine {
        Machine {
            name: name.into(),
            iso,
            firmware: Firmware::Uefi,
            config: None,
            state: None,
            memory_mib: 1024,
            cpus: 2,
            forwards: Vec::new(),
            uplink: false,
            key: config.keys.admin.clone(),
        }
    }
}

/// What is unlike an ordinary machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Features taken from the CPU, as QEMU names them.
    pub cpu_without: Vec<String>,
    /// What QEMU's `-netdev` gets instead of user networking; empty: no network device at all.
    pub network: Option<String>,
    /// The port of this machine's loopback that leads to the node's gate, where `network` brings one.
    pub gate_port: Option<u16>,
    /// Further TCP ports of this machine's loopback that lead to ports of the node, beside the one for its gate.
    pub entrances: Vec<(u16, u16)>,
    /// Disks beside the ordinary ones; they come last.
    pub disks: Vec<PathBuf>,
    /// Further arguments of QEMU.
    pub arguments: Vec<String>,
}

/// A running node. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Node {
    pub machine: Machine,
    pub dir: PathBuf,
    pub port: u16,
    qemu: Child,
    console: Arc<Console>,
    fault: Option<Mutex<BufReader<UnixStream>>>,
    keep: AtomicBool,
}

#[derive(Debug, Default)]
struct Console {
    text: Mutex<ConsoleText>,
    grew: Condvar,
}

#[derive(Debug, Default)]
struct ConsoleText {
    text: String,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Powers the machine on and returns at once.
    pub fn power_on(machine: Machine) -> Result<Node> {
        Node::power_on_odd(machine, &Oddities::default())
    }

    /// The same with something unusual about the machine.
    pub fn power_on_odd(machine: Machine, odd: &Oddities) -> Result<Node> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let id =
            format!("{}-{}-{}", machine.name, std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let dir = crate::workspace()?.join(id);
        fs::create_dir_all(&dir)?;
        let port = odd.gate_port.map_or_else(free_port, Ok)?;
        let fault_path = dir.join("fault.sock");
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-M",
            "q35",
            "-smp",
            &machine.cpus.to_string(),
            "-display",
            "none",
            "-no-reboot",
            "-nodefaults",
        ]);
        let mut accel: Vec<String> = accel::arguments().iter().map(|word| (*word).to_owned()).collect();
        if let Some(cpu) = accel.last_mut() {
            odd.cpu_without.iter().for_each(|feature| cpu.push_str(&format!(",-{feature}")));
        }
        command.args(accel);
        if accel::is_emulated() {
            command.args(["-d", "cpu_reset", "-D"]).arg(dir.join(RESETS));
        }
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", dir.join(QMP).display()));
        command.arg("-m").arg(machine.memory_mib.to_string());
        command.args(["-chardev", "stdio,id=console", "-serial", "chardev:console"]);
        command
            .arg("-chardev")
            .arg(format!("socket,id=fault,path={},server=on,wait=off", fault_path.display()));
        command.args(["-serial", "chardev:fault"]);
        add_firmware(&mut command, &machine, &dir)?;
        for (disk, id) in [(&machine.config, "config"), (&machine.state, "state")] {
            if let Some(disk) = disk {
                let read_only = if id == "config" { ",readonly=on" } else { "" };
                command
                    .arg("-drive")
                    .arg(format!("file={},if=none,id={id},format=raw{read_only}", disk.display()));
                command.arg("-device").arg(format!("virtio-blk-pci,drive={id}"));
            }
        }
        for (number, disk) in odd.disks.iter().enumerate() {
            command.arg("-drive").arg(format!("file={},if=none,id=odd{number},format=raw", disk.display()));
            command.arg("-device").arg(format!("virtio-blk-pci,drive=odd{number}"));
        }
        let mut netdev = odd.network.clone().map_or_else(|| network(&machine, port), Ok)?;
        for (here, there) in &odd.entrances {
            netdev.push_str(&format!(",hostfwd=tcp:127.0.0.1:{here}-:{there}"));
        }
        if !netdev.is_empty() {
            command.arg("-netdev").arg(netdev);
            command.args(["-device", "virtio-net-pci,netdev=uplink"]);
        }
        command.args(["-device", "virtio-rng-pci"]).args(&odd.arguments);
        let log = File::create(dir.join("qemu.log"))?;
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start qemu-system-x86_64: run `make deps`")?;
        let console = Arc::new(Console::default());
        let output = qemu.stdout.take().context("no console")?;
        record(output, console.clone(), &dir)?;
        Ok(Node { machine, dir, port, qemu, console, fault: None, keep: AtomicBool::new(false) })
    }

    /// Powers on and waits until all services are ready.
    pub fn boot(machine: Machine) -> Result<Node> {
        Node::boot_odd(machine, &Oddities::default())
    }

    /// The same with something unusual about the machine.
    pub fn boot_odd(machine: Machine, odd: &Oddities) -> Result<Node> {
        let mut node = Node::power_on_odd(machine, odd)?;
        node.wait_for(READY, BOOT_TIME_MAX)?;
        node.meet_saboteur();
        Ok(node)
    }

    /// Opens the line to the saboteur, if the image has one.
    pub fn meet_saboteur(&mut self) {
        let path = self.dir.join("fault.sock");
        self.fault = UnixStream::connect(path).ok().map(|socket| Mutex::new(BufReader::new(socket)));
    }

    /// Gives QEMU an order (the QEMU Machine Protocol, docs/interop/qmp-spec of QEMU).
    pub fn qmp(&self, order: &str, arguments: serde_json::Value) -> Result<()> {
        crate::qmp::order(&self.dir.join(QMP), order, arguments).map(drop)
    }

    /// Waits for a text on the console and returns the first line that holds it.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut console = lock(&self.console.text);
        loop {
            if let Some(line) = console.text.lines().find(|line| line.contains(text)) {
                return Ok(line.trim().to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || console.ended {
                let why = if console.ended { "the machine went off" } else { "time is up" };
                bail!(
                    "`{text}` did not come on the console ({why}); it ends with\n{}",
                    tail(&console.text, 25)
                );
            }
            let woken = self.console.grew.wait_timeout(console, left);
            console = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Kernel start to ready in milliseconds, in the node's own words; waits until they are there.
    pub fn ready_ms(&self, limit: Duration) -> Result<u64> {
        // By its end: a line that is still coming could have half a number.
        let line = self.wait_for(READY_END, limit)?;
        let number = line.strip_suffix(READY_END).and_then(|line| line.rsplit_once(READY));
        let number = number.with_context(|| format!("no `{READY}` in {line:?}"))?.1.trim();
        number.parse().with_context(|| format!("`{number}` is no number in {line:?}"))
    }

    /// Everything the console has shown.
    pub fn console(&self) -> String {
        lock(&self.console.text).text.clone()
    }

    /// Waits until the machine has switched itself off.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.qemu.try_wait()? {
                ensure!(
                    status.success(),
                    "QEMU ended with {status}: see {}",
                    self.dir.join("qemu.log").display()
                );
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the machine is still on; its console ends with\n{}", tail(&self.console(), 25))
    }

    /// Pulls the plug: QEMU is killed, and with it all that the node had not written.
    pub fn pull_plug(mut self) -> Result<Machine> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(self.machine.clone())
    }

    /// The node's fingerprint, as an operator reads it off the console.
    pub fn fingerprint(&self) -> Result<String> {
        let line = self.wait_for("fingerprint=SHA256:", Duration::from_secs(30))?;
        let (_, after) = line.split_once("fingerprint=").context("no fingerprint")?;
        Ok(after.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// Gives the saboteur an order (test images only; src/bin/fault.rs lists them). Errors: what the saboteur says; [`losses::Gone`].
    pub fn fault(&self, order: &str) -> Result<String> {
        self.is_asked(order)?;
        let fault = self.fault.as_ref().context("no line to the saboteur")?;
        let mut line = lock(fault);
        line.get_ref().set_read_timeout(Some(Duration::from_secs(240)))?;
        writeln!(line.get_mut(), "{order}")?;
        let mut answer = String::new();
        line.read_line(&mut answer).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => anyhow::Error::new(losses::stands_still(order)),
            _ => anyhow::Error::new(error).context(format!("no answer to `{order}`")),
        })?;
        let answer: serde_json::Value = serde_json::from_str(answer.trim())
            .with_context(|| format!("answer to `{order}`: {answer:?}"))?;
        match (answer["ok"].as_str(), answer["error"].as_str()) {
            (Some(text), _) => Ok(text.to_owned()),
            (None, error) => bail!("{order}: {}", error.unwrap_or("no reason")),
        }
    }

    /// A machine that is off answers nothing. Errors: [`losses::Gone`].
    pub(crate) fn is_asked(&self, order: &str) -> Result<()> {
        if lock(&self.console.text).ended { Err(losses::Gone::Off(order.into()).into()) } else { Ok(()) }
    }

    /// How QEMU ended, if it has; a signal as its negative number. It is still to be waited for.
    fn exit(&self) -> Option<i32> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(Pid::from_child(&self.qemu)), options).ok()??;
        status.exit_status().or(status.terminating_signal().map(|signal| -signal))
    }

    /// Keeps the node's folder, with its console log, when the node is dropped: something failed on it. Tells its last words, and
    /// what its processors do if it is on, so that one that stands still is told from one that is slow.
    pub fn keep_logs(&self) {
        self.keep.store(true, Ordering::Relaxed);
        let exit = self.exit();
        let (last_words, is_off) = {
            // What is said of how it went off is read with the console's end.
            let ends = |text: &mut ConsoleText| exit.is_some() && !text.ended;
            let console = self.console.grew.wait_timeout_while(lock(&self.console.text), GOES_OFF_MAX, ends);
            let console = console.unwrap_or_else(PoisonError::into_inner).0;
            (tail(&console.text, 40), console.ended)
        };
        let state = match is_off {
            true => format!("it is off, QEMU's exit status {exit:?}"),
            false => crate::qmp::processors(&self.dir.join(QMP)).unwrap_or_else(|error| format!("{error:#}")),
        };
        if !is_off && self.fault.is_some() && !losses::is_noted() {
            let _ = self.fault("ps"); // only whether it answers counts, which is noted there
        }
        eprintln!(
            "something failed on the node {}: {state}\nits console ends with\n{last_words}",
            self.machine.name
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.qemu.kill(); // it may be off already
        let _ = self.qemu.wait();
        if std::thread::panicking() || self.keep.load(Ordering::Relaxed) {
            eprintln!("console of the failed node: {}", self.dir.join("console.log").display());
        } else {
            let _ = fs::remove_dir_all(&self.dir); // only space is lost
        }
    }
}

fn add_firmware(command: &mut Command, machine: &Machine, dir: &Path) -> Result<()> {
    if machine.firmware != Firmware::Bios {
        let variables = dir.join("efivars.fd");
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables)
            .context("OVMF is missing: run `make deps`")?;
        command.args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
        command.arg("-drive").arg(format!("if=pflash,format=raw,file={}", variables.display()));
    }
    let iso = machine.iso.display();
    match machine.firmware {
        Firmware::UefiUsb => {
            command.args(["-device", "qemu-xhci"]);
            command.arg("-drive").arg(format!("file={iso},if=none,id=stick,format=raw,readonly=on"));
            command.args(["-device", "usb-storage,drive=stick,bootindex=0"]);
        }
        Firmware::UefiDisk => {
            command.arg("-drive").arg(format!("file={iso},if=none,id=disk,format=raw,snapshot=on"));
            command.args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
        }
        Firmware::Uefi | Firmware::Bios => {
            command.arg("-drive").arg(format!("file={iso},if=none,id=cd,media=cdrom,readonly=on"));
            command.args(["-device", "ide-cd,drive=cd,bus=ide.0,bootindex=0"]);
        }
    }
    Ok(())
}

/// User networking that reaches this machine's loopback, and of that only the listed ports.
fn network(machine: &Machine, port: u16) -> Result<String> {
    let restrict = if machine.uplink { "off" } else { "on" };
    let mut netdev =
        format!("user,id=uplink,restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-:{}", abi::node::GATE_PORT);
    let helper = built_helper("pipe")?;
    for (address, host_port) in &machine.forwards {
        netdev.push_str(&format!(",guestfwd=tcp:{address}-cmd:{} 127.0.0.1:{host_port}", helper.display()));
    }
    Ok(netdev)
}

/// A helper program of this crate, beside the test that runs.
fn built_helper(name: &str) -> Result<PathBuf> {
    let mut dir = std::env::current_exe()?;
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    ensure!(path.exists(), "{} is missing: run `cargo build --package system-tests --bins`", path.display());
    Ok(path)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn record(mut output: impl Read + Send + 'static, console: Arc<Console>, dir: &Path) -> Result<()> {
    let (path, resets) = (dir.join("console.log"), dir.join(RESETS));
    let mut file = File::create(&path).with_context(|| path.display().to_string())?;
    std::thread::spawn(move || {
        let mut chunk = [0u8; 4096];
        let mut looked = 0;
        loop {
            let count = output.read(&mut chunk).unwrap_or(0);
            if count == 0 {
                losses::look_at_resets(&fs::read_to_string(&resets).unwrap_or_default()); // there is none with KVM
            }
            let mut text = lock(&console.text);
            if count == 0 {
                text.ended = true;
                console.grew.notify_all();
                return;
            }
            let _ = file.write_all(&chunk[..count]); // the log is a convenience
            text.text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            if let Some(end) = text.text[looked..].rfind('\n') {
                text.text[looked..looked + end].lines().for_each(losses::look);
                looked += end + 1;
            }
            console.grew.notify_all();
        }
    });
    Ok(())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
