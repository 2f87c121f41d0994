//! The saboteur: a service that only test images carry. It breaks the node from inside, on orders from the second serial
//! port, and tells what it sees there. The product's own binaries know nothing of it.
//!
//! One order a line, one JSON answer a line: `{"ok":"text"}` or `{"error":"text"}`.
//!
//! ```text
//! signal NUMBER COMM [TEXT]   send a signal to each process named COMM (with TEXT in its command line); answers how many
//! kill NUMBER PID             send a signal to one process
//! ps                          all processes: pid, parent, uid, state, name
//! read PATH                   a file, at most 64 KiB
//! list DIR                    names in a directory
//! write PATH TEXT             write a file
//! remove PATH                 remove a file
//! fill PATH                   make a file that takes all the space its file system has; answers its bytes
//! connect HOST:PORT           open a TCP connection
//! call METHOD PARAMS          one call on the node's control socket, as root; answers the result or the error
//! line BYTES                  send one line of so many bytes to the control socket; answers what came back
//! endless BYTES               send a line without an end to the control socket, until it is closed or so much is sent
//! idle COUNT                  open so many connections to the control socket and say nothing on them
//! hangups                     close them; answers how many the node had closed already
//! mark TEXT                   write a line into the service's log
//! flood LINES                 write so many long lines into the service's log, as fast as it takes them
//! bomb SECONDS                processes that all fork without end, for so long; answers the child's pid
//! orphans COUNT               leave so many dead children to the first process
//! eat own|node                a child that takes memory until it is killed, in the service's cgroup or in none; its pid
//! ended PID                   how a child of the saboteur ended, or `running`
//! now                         the Unix time
//! clock SECONDS               set the wall clock so far forward or back; answers the new Unix time
//! census                      what there is of processes, descriptors, mounts, cgroups, files, sockets, interfaces; a line each
//! flush-rules [PID]           removes every nftables rule of the node, or of the network namespace of a process
//! guest attacks               names of what a hostile guest kernel can do (see `hostile`)
//! guest ATTACK SEED SECONDS   starts cage-vmm with that guest in a jail; how it ended, as JSON
//! calls AGENT                 a child that lives a VM's life and records its VMM's system calls (see `calls`); its pid
//! bench WHAT ...              measures something on the node (see `bench`)
//! dm create DISK | suspend | resume   a device-mapper device over a disk, which can be made to never answer; its path
//! ```
//!
//! With arguments it is something else: `--victim` a service to be broken (see `victim`), `--bomb`, `--orphans`, `--eat`, `--calls` what the
//! orders of these names start.

mod bench;
mod calls;
mod census;
#[cfg_attr(not(test), expect(dead_code, reason = "the tables of the initramfs, of which one is used here"))]
#[path = "../../../../initramfs/src/dm.rs"]
mod dm;
mod door;
mod firewall;
mod guest;
mod hostile;
mod hunger;
mod stall;
#[path = "../../../../initramfs/src/sys.rs"]
mod sys;
mod tap;
mod victim;

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::ToSocketAddrs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use rustix::termios::{LocalModes, OptionalActions, OutputModes};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        // Alone in a PID namespace of its own, as every VMM.
        _ if calls::is_watched() => calls::watched(),
        _ if std::process::id() == 1 => bench::init(),
        [] => Saboteur::default().serve(),
        ["--victim", name, rest @ ..] => victim::main(name, rest),
        ["--bomb", seconds] => hunger::bomb(Duration::from_secs(seconds.parse()?)),
        ["--orphans", count] => hunger::orphans(count.parse()?),
        ["--eat", whose] => hunger::eat(whose),
        ["--calls", agent] => calls::main(agent),
        ["--plain", rest @ ..] => bench::plain(rest),
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

/// What outlives an order.
#[derive(Debug, Default)]
struct Saboteur {
    children: Vec<Child>,
    idle: Vec<UnixStream>,
}

impl Saboteur {
    fn serve(mut self) -> Result<()> {
        let inherited = abi::door::Inherited::take()?;
        let port = OpenOptions::new().read(true).write(true).open("/dev/ttyS1").context("/dev/ttyS1")?;
        let mut modes = rustix::termios::tcgetattr(&port)?;
        modes.local_modes -= LocalModes::ECHO | LocalModes::ISIG;
        modes.output_modes -= OutputModes::OPOST;
        rustix::termios::tcsetattr(&port, OptionalActions::Now, &modes)?;
        fs::create_dir_all(victim::ORDERS)?;
        inherited.notify.send(&abi::notice::Notice::Ready)?;
        let mut answers = port.try_clone()?;
        for line in BufReader::new(port).lines() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let answer = match self.obey(line.trim()) {
                Ok(text) => serde_json::json!({ "ok": text }),
                Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
            };
            writeln!(answers, "{answer}")?;
        }
        Ok(())
    }

    fn obey(&mut self, line: &str) -> Result<String> {
        let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
        match order {
            "signal" => signal(rest),
            "kill" => {
                let (number, pid) = rest.split_once(' ').context("kill NUMBER PID")?;
                let signal = Signal::from_named_raw(number.parse()?).context("no such signal")?;
                rustix::process::kill_process(Pid::from_raw(pid.parse()?).context("pid 0")?, signal)?;
                Ok(String::new())
            }
            "ps" => {
                // Its own dead children are no zombies of the node's.
                self.children.iter_mut().try_for_each(|child| child.try_wait().map(drop))?;
                processes()
            }
            "read" | "list" | "write" | "remove" | "fill" => files(order, rest),
            "connect" => {
                let address = rest.to_socket_addrs()?.next().context("no address")?;
                std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
                Ok(String::new())
            }
            "call" => door::call(rest),
            "line" => door::line(rest.parse()?),
            "endless" => door::endless(rest.parse()?),
            "idle" => {
                self.idle = door::idle(rest.parse()?)?;
                Ok(self.idle.len().to_string())
            }
            "hangups" => Ok(door::hangups(std::mem::take(&mut self.idle)).to_string()),
            "mark" => {
                println!("{rest}");
                Ok(String::new())
            }
            "flood" => flood(rest.parse()?),
            "bomb" | "orphans" | "eat" | "calls" => self.child(order, rest),
            "ended" => self.ended(rest.parse()?),
            "now" => Ok(unix_s()?.to_string()),
            "clock" => set_clock(rest.parse()?),
            "dm" => stall::obey(rest),
            "census" => census::take(),
            "flush-rules" => firewall::flush(rest),
            "guest" => guest::obey(rest),
            "bench" => bench::obey(rest),
            _ => bail!("unknown order `{order}`"),
        }
    }

    /// Starts this program in another shape.
    fn child(&mut self, order: &str, argument: &str) -> Result<String> {
        let child = Command::new(std::env::current_exe()?).arg(format!("--{order}")).arg(argument).spawn()?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid.to_string())
    }

    fn ended(&mut self, pid: u32) -> Result<String> {
        let child = self.children.iter_mut().find(|child| child.id() == pid).context("no such child")?;
        Ok(child.try_wait()?.map_or_else(|| "running".into(), |status| status.to_string()))
    }
}

fn files(order: &str, rest: &str) -> Result<String> {
    match order {
        "read" => {
            let mut text = Vec::new();
            File::open(rest)?.take(64 * 1024).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        "list" => {
            let mut names: Vec<String> =
                fs::read_dir(rest)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            Ok(names.join("\n"))
        }
        "write" => {
            let (path, text) = rest.split_once(' ').context("write PATH TEXT")?;
            fs::write(path, text)?;
            Ok(String::new())
        }
        "remove" => {
            fs::remove_file(rest)?;
            Ok(String::new())
        }
        _ => hunger::fill(rest),
    }
}

fn pids() -> Result<Vec<i32>> {
    let mut found: Vec<i32> =
        fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

fn signal(arguments: &str) -> Result<String> {
    let mut words = arguments.splitn(3, ' ');
    let number: i32 = words.next().context("signal NUMBER COMM")?.parse()?;
    let comm = words.next().context("signal NUMBER COMM")?;
    let text = words.next().unwrap_or("");
    let signal = Signal::from_named_raw(number).context("no such signal")?;
    let mut sent = 0;
    for pid in pids()? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if name.trim() == comm && String::from_utf8_lossy(&line).replace('\0', " ").contains(text) {
            rustix::process::kill_process(Pid::from_raw(pid).context("pid 0")?, signal)?;
            sent += 1;
        }
    }
    Ok(sent.to_string())
}

fn processes() -> Result<String> {
    let mut table = String::new();
    for pid in pids()? {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        writeln!(table, "{pid} {} {} {} {}", field("PPid:"), field("Uid:"), field("State:"), field("Name:"))?;
    }
    Ok(table)
}

fn flood(lines: u64) -> Result<String> {
    let text = "flood ".repeat(30);
    let mut out = std::io::stdout().lock();
    for number in 0..lines {
        writeln!(out, "{number} {text}")?;
    }
    Ok(String::new())
}

fn set_clock(seconds: i64) -> Result<String> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let then = rustix::time::Timespec { tv_sec: now.tv_sec + seconds, ..now };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, then)?;
    Ok(unix_s()?.to_string())
}

fn unix_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}
