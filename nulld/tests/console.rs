//! What a person sees: the log on a serial line, the screen on a virtual terminal. The terminal is a pseudoterminal, which the
//! real nulld takes for the one that its kernel names.

mod node;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};

use nix::sys::signal::Signal;
use node::Node;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

const CONFIG: &str = "[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n\
    [services.cage]\npath = \"/system/bin/probe\"\nargs = [\"good\"]\n";

/// The rows of the status block that begins at a text.
fn blocks(console: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = console.lines().collect();
    let begins = lines.iter().enumerate().filter(|(_, line)| **line == "nullbox: status");
    begins
        .map(|(at, _)| lines[at + 1..].iter().copied().take_while(|line| line.starts_with("  ")).collect())
        .collect()
}

#[test]
fn a_log_console_has_the_status_once_the_node_is_ready_and_after_a_crash() {
    let node = Node::boot(CONFIG);
    node.wait_console("\nnullbox: status\n", 10);
    let console = node.console();
    let all = blocks(&console);
    let [block] = all.as_slice() else { panic!("{console}") };
    assert!(
        block[0].starts_with("  node      test-node, NullBox ") && block[0].contains(", ready after "),
        "{block:?}"
    );
    for row in [
        "  address   none",
        "  image     00112233",
        "  phases    mounts ",
        "  services  cage ready",
        "  findings  ",
    ] {
        assert!(block.iter().any(|line| line.starts_with(row)), "{row} is not in {block:#?}");
    }
    assert!(block.iter().all(|line| line.len() <= 80), "{block:#?}");
    assert!(console.find("\nnullbox: ready ").unwrap() < console.find("\nnullbox: status\n").unwrap());
    node.signal(Signal::SIGSEGV);
    node.until("a block after the crash", 20, |node| (blocks(&node.console()).len() == 2).then_some(()));
    assert_eq!(node.status().crashes, 1);
    let ready = node.console().lines().filter(|line| line.starts_with("nullbox: ready")).count();
    assert_eq!(ready, 1);
}

const COLUMNS: usize = 100;
const ROWS: usize = 30;

/// A terminal: what was written to it, as it would be shown. Only what nulld and this test write is understood.
struct Terminal {
    master: File,
    slave: String,
    cells: Vec<Vec<char>>,
    place: (usize, usize),
    rest: String,
}

impl Terminal {
    fn new() -> Terminal {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let size = Winsize { ws_row: ROWS as u16, ws_col: COLUMNS as u16, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        let cells = vec![vec![' '; COLUMNS]; ROWS];
        Terminal { master: master.into(), slave, cells, place: (0, 0), rest: String::new() }
    }

    /// Takes what has come.
    fn look(&mut self) {
        let mut bytes = [0u8; 64 * 1024];
        while let Ok(count) = self.master.read(&mut bytes) {
            self.rest.push_str(std::str::from_utf8(&bytes[..count]).expect("only ASCII comes"));
        }
        let text = std::mem::take(&mut self.rest);
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            let (row, column) = self.place;
            match c {
                '\x1b' => {
                    let Some(end) = rest[2.min(rest.len())..].find(|c: char| c.is_ascii_alphabetic()) else {
                        break;
                    };
                    self.obey(&rest[1..end + 3]);
                    rest = &rest[end + 3..];
                    continue;
                }
                '\r' => self.place.1 = 0,
                '\n' if row + 1 == ROWS => {
                    self.cells.remove(0);
                    self.cells.push(vec![' '; COLUMNS]);
                }
                '\n' => self.place.0 += 1,
                ' '..='~' => {
                    // Deferred wrap is not needed: nobody writes beyond a line's end.
                    if column < COLUMNS {
                        self.cells[row][column] = c;
                    }
                    self.place.1 += 1;
                }
                other => panic!("{other:?} reached the terminal"),
            }
            rest = &rest[1..];
        }
        self.rest = rest.to_owned();
    }

    fn obey(&mut self, sequence: &str) {
        match sequence {
            "[2K" => self.cells[self.place.0] = vec![' '; COLUMNS],
            "[2J" => self.cells = vec![vec![' '; COLUMNS]; ROWS],
            "[0m" | "[?25l" => {}
            other => {
                let place = other.strip_prefix('[').and_then(|rest| rest.strip_suffix(";1H"));
                let row =
                    place.and_then(|row| row.parse::<usize>().ok()).unwrap_or_else(|| panic!("ESC {other}"));
                self.place = (row - 1, 0);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        self.cells.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
    }

    fn until(&mut self, what: &str, seconds: u64, is_so: impl Fn(&[String]) -> bool) {
        let begin = std::time::Instant::now();
        loop {
            self.look();
            if is_so(&self.lines()) {
                return;
            }
            assert!(begin.elapsed().as_secs() < seconds, "no {what}\n{}", self.lines().join("\n"));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

#[test]
fn a_virtual_terminal_is_a_screen_that_takes_no_input_and_heals() {
    let mut terminal = Terminal::new();
    let prepare = format!(
        "touch $ROOT/dev/tty0; mount --bind {} $ROOT/dev/tty0; mount -t sysfs sysfs $ROOT/sys; \
         echo tty0 console > $ROOT/active; mount --bind $ROOT/active $ROOT/sys/class/tty/console/active",
        terminal.slave
    );
    let node = Node::start_on(CONFIG, &prepare);
    // Nobody reads the terminal yet, and the node comes up all the same.
    node.wait_console("\nnullbox: ready", 20);
    let is_drawn = |lines: &[String]| {
        lines[0].starts_with("node      test-node, NullBox ") && lines[0].contains(", ready after ")
    };
    terminal.until("status on the screen", 20, is_drawn);
    let lines = terminal.lines();
    let rule = lines.iter().position(|line| *line == "-".repeat(COLUMNS)).expect("a rule under the status");
    assert!(
        rule > 5 && lines[rule + 1..].iter().any(|line| line.starts_with("nullbox: ready ")),
        "{lines:#?}"
    );
    // The service's forged line is a line of the service, with its escape code as text.
    assert!(lines.iter().any(|line| line.contains("cage: nullbox: ready (forged)\\u{1b}[2J")), "{lines:#?}");
    // Somebody else's text, as the kernel's, does not stay.
    let mut other = OpenOptions::new().write(true).open(&terminal.slave).unwrap();
    other.write_all(b"\x1b[2J\x1b[1;1Hkernel: something terrible").unwrap();
    terminal.until("somebody else's text", 5, |lines| lines[0].starts_with("kernel: something"));
    terminal.until("the status again", 20, is_drawn);
    // What is typed is read by nobody: the console is open for writing only (open(2), O_ACCMODE).
    let fds = fs::read_dir(format!("/proc/{}/fd", node.pid)).unwrap().flatten();
    let consoles: Vec<String> = fds
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.ends_with("tty0")))
        .map(|fd| {
            fs::read_to_string(format!("/proc/{}/fdinfo/{}", node.pid, fd.file_name().display())).unwrap()
        })
        .collect();
    assert!(!consoles.is_empty());
    for info in &consoles {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        assert_eq!(u32::from_str_radix(flags, 8).unwrap() & 3, 1, "{info}");
    }
    terminal.master.write_all(b"\x03\x04reboot\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(node.status().services[0].state, "ready");
}
