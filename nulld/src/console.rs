//! The consoles: what a person at the screen or at the serial line sees.
//!
//! Must hold: writing never blocks PID 1; a console that takes nothing loses lines, and the loss is counted and shown. Every
//! line that is not nulld's own carries its service's name, and control characters are shown, not sent.
//! Must never: read from a console, or make one a controlling terminal.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use crate::clock;

/// Bytes waiting for a slow console. One line more: it is lost and counted.
const PENDING_BYTES_MAX: usize = 32 * 1024;
/// Lines of services mirrored in one second. More: they are only in the log ring.
const MIRRORED_LINES_PER_SECOND: u32 = 100;
/// Columns of a mirrored line.
const MIRRORED_CHARS_MAX: usize = 240;

/// One device.
#[derive(Debug)]
struct Screen {
    fd: OwnedFd,
    pending: VecDeque<u8>,
    lost: u64,
}

/// All consoles of the kernel command line.
#[derive(Debug, Default)]
pub struct Console {
    screens: Vec<Screen>,
    second: u64,
    mirrored: u32,
    unmirrored: u64,
}

impl Console {
    /// Opens the kernel's active consoles, or /dev/console when none has a device.
    pub fn open() -> Console {
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut screens: Vec<Screen> = active
            .split_whitespace()
            .take(4)
            // tty0 is whichever virtual terminal is shown.
            .filter_map(|name| open_screen(&format!("/dev/{name}")))
            .collect();
        if screens.is_empty() {
            screens.extend(open_screen("/dev/console"));
        }
        Console { screens, ..Console::default() }
    }

    /// Opens them again where none could be opened before /dev was mounted.
    pub fn open_if_none(&mut self) {
        if self.screens.is_empty() {
            self.screens = Console::open().screens;
        }
    }

    /// A line of nulld's own, with the time since kernel start.
    pub fn say(&mut self, text: &str) {
        let ms = clock::now_ms();
        self.raw(&format!("[{:>3}.{:03}] {}", ms / 1000, ms % 1000, printable(text)));
    }

    /// A line without a time.
    pub fn raw(&mut self, text: &str) {
        for screen in &mut self.screens {
            if screen.pending.len() + text.len() > PENDING_BYTES_MAX {
                screen.lost += 1;
                continue;
            }
            if screen.lost > 0 && screen.pending.len() < PENDING_BYTES_MAX / 2 {
                let note = format!("nulld: {} console lines lost\n", screen.lost);
                screen.pending.extend(note.as_bytes());
                screen.lost = 0;
            }
            screen.pending.extend(text.as_bytes());
            screen.pending.push_back(b'\n');
        }
        self.flush();
    }

    /// A service's log line, in short form and at a bounded rate.
    pub fn mirror(&mut self, service: &str, text: &str) {
        let second = clock::now_ms() / 1000;
        if second != self.second {
            self.second = second;
            self.mirrored = 0;
            let missed = std::mem::take(&mut self.unmirrored);
            if missed > 0 {
                self.say(&format!("nulld: {missed} log lines not shown here, see system.logs"));
            }
        }
        if self.mirrored >= MIRRORED_LINES_PER_SECOND {
            self.unmirrored += 1;
            return;
        }
        self.mirrored += 1;
        let short: String = text.chars().take(MIRRORED_CHARS_MAX).collect();
        self.say(&format!("{service}: {short}"));
    }

    /// Writes what the devices take now. Called by every line and by the loop.
    pub fn flush(&mut self) {
        self.screens.retain_mut(drain);
    }

    /// Whether a device is behind, so that the loop comes back soon.
    pub fn is_behind(&self) -> bool {
        self.screens.iter().any(|screen| !screen.pending.is_empty())
    }
}

fn open_screen(path: &str) -> Option<Screen> {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::APPEND | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    Some(Screen { fd, pending: VecDeque::new(), lost: 0 })
}

/// False: the device is gone (a serial port that is not there answers EIO).
fn drain(screen: &mut Screen) -> bool {
    while !screen.pending.is_empty() {
        let (front, _) = screen.pending.as_slices();
        match rustix::io::write(&screen.fd, front) {
            Ok(written) => drop(screen.pending.drain(..written)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Control characters as escapes: a log line cannot move the cursor, clear the screen or begin a second line.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped() -> (Console, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let screen = Screen { fd: write, pending: VecDeque::new(), lost: 0 };
        let console = Console { screens: vec![screen], ..Console::default() };
        (console, read)
    }

    fn read_all(fd: &OwnedFd) -> String {
        let mut all = Vec::new();
        let mut chunk = [0u8; 4096];
        while let Ok(count) = rustix::io::read(fd, &mut chunk) {
            all.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn a_service_cannot_forge_a_line_of_nulld() {
        let (mut console, read) = piped();
        console.mirror("evil", "x\nnullbox: ready\x1b[2J");
        let text = read_all(&read);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("evil: x\\nnullbox: ready\\u{1b}[2J"), "{text:?}");
    }

    #[test]
    fn a_console_that_takes_nothing_loses_lines_and_says_so() {
        let (mut console, read) = piped();
        let line = "y".repeat(1000);
        for _ in 0..200 {
            console.raw(&line);
        }
        assert!(console.is_behind() && console.screens[0].pending.len() <= PENDING_BYTES_MAX + 2);
        let mut text = String::new();
        for _ in 0..3 {
            text.push_str(&read_all(&read));
            console.raw("after");
        }
        text.push_str(&read_all(&read));
        assert!(text.contains("console lines lost") && text.contains("after"));
    }

    #[test]
    fn mirrored_lines_are_bounded_in_rate() {
        let (mut console, read) = piped();
        for n in 0..MIRRORED_LINES_PER_SECOND * 3 {
            console.mirror("s", &n.to_string());
        }
        // The loop may cross one second's edge, never two.
        assert!(read_all(&read).lines().count() <= 2 * MIRRORED_LINES_PER_SECOND as usize + 1);
        assert!(console.unmirrored > 0);
    }
}
