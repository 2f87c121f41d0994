//! The consoles: what a person at the screen or at the serial line sees.
//!
//! A virtual terminal is a screen: the status on top, the newest lines below, drawn anew when something changed. Every other
//! console (serial, virtio) is a log: lines as they come, and the status among them when the node becomes ready and when it
//! changed.
//!
//! Must hold: writing never blocks PID 1; a console that takes nothing loses lines, and the loss is counted and shown. Every
//! line that is not nulld's own carries its service's name, and control characters are shown, not sent.
//! Must never: read from a console, or make one a controlling terminal.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use crate::clock;
use crate::screen::{Board, plain};

/// Bytes waiting for a slow console. One line more: it is lost and counted.
const PENDING_BYTES_MAX: usize = 32 * 1024;
/// Lines of services mirrored in one second. More: they are only in the log ring.
const MIRRORED_LINES_PER_SECOND: u32 = 100;
/// Columns of a mirrored line.
const MIRRORED_CHARS_MAX: usize = 240;
/// How soon the loop comes back to a console that was full.
const RETRY_MS: u64 = 50;
/// Shortest pause between two drawings of a screen.
const DRAW_MS_MIN: u64 = 1_000;
/// A screen on which nothing changed is drawn again after so long: the time of day goes on, and whatever else wrote there
/// (the kernel) does not stay for ever.
const DRAW_MS_MAX: u64 = 10_000;
/// Shortest pause between two status blocks on a console that keeps every line.
const BLOCK_MS_MIN: u64 = 60_000;
/// How often it is looked whether there is something new to tell there.
const BLOCK_LOOK_MS: u64 = 10_000;
/// Columns of a status block.
const BLOCK_COLUMNS: usize = 80;
/// Lines kept for the screen: more than any screen has rows.
const RECENT_LINES_MAX: usize = 128;
/// Columns and rows of a screen at most, and what is taken for one that does not say.
const COLUMNS_MAX: u16 = 240;
const ROWS_MAX: u16 = 100;
const SIZE_DEFAULT: (u16, u16) = (80, 25);

/// One device.
#[derive(Debug)]
struct Device {
    fd: OwnedFd,
    pending: VecDeque<u8>,
    lost: u64,
    /// A virtual terminal, drawn as a screen once there is a status to show.
    is_screen: bool,
}

/// All consoles of the kernel command line.
#[derive(Debug, Default)]
pub struct Console {
    devices: Vec<Device>,
    second: u64,
    mirrored: u32,
    unmirrored: u64,
    board: Option<Board>,
    recent: VecDeque<String>,
    /// Something changed since the screens were drawn.
    stale: bool,
    drawn_ms: u64,
    looked_ms: u64,
    /// What the newest status block told, and when.
    told: String,
    told_ms: Option<u64>,
}

impl Console {
    /// Opens the kernel's active consoles, or /dev/console when none has a device.
    pub fn open() -> Console {
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut devices: Vec<Device> = active.split_whitespace().take(4).filter_map(open_device).collect();
        if devices.is_empty() {
            devices.extend(open_device("console"));
        }
        Console { devices, ..Console::default() }
    }

    /// Opens them again where none could be opened before /dev was mounted.
    pub fn open_if_none(&mut self) {
        if self.devices.is_empty() {
            self.devices = Console::open().devices;
        }
    }

    /// A line of nulld's own, with the time since kernel start.
    pub fn say(&mut self, text: &str) {
        let ms = clock::now_ms();
        self.line(&format!("[{:>3}.{:03}] {}", ms / 1000, ms % 1000, plain(text, usize::MAX)));
    }

    /// A line without a time, seen at once: there may be no later.
    pub fn raw(&mut self, text: &str) {
        self.line(text);
        self.draw(clock::now_ms());
    }

    fn line(&mut self, text: &str) {
        self.stale = true;
        if self.recent.len() == RECENT_LINES_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(text.chars().take(MIRRORED_CHARS_MAX).collect());
        let has_board = self.board.is_some();
        for device in self.devices.iter_mut().filter(|device| !(device.is_screen && has_board)) {
            device.push_line(text);
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

    /// The kernel wrote something: its lines go to the same screen.
    pub fn disturbed(&mut self) {
        self.stale = true;
    }

    /// When the loop must come back: to a device that is behind, to a screen that is stale, to look for news.
    pub fn next_deadline(&self, now_ms: u64) -> Option<u64> {
        let retry = self.devices.iter().any(|device| !device.pending.is_empty()).then_some(now_ms + RETRY_MS);
        let draw = self.devices.iter().any(|device| device.is_screen).then(|| self.draws_ms());
        let look = (!self.devices.is_empty()).then_some(self.looked_ms + BLOCK_LOOK_MS);
        [retry, draw, look].into_iter().flatten().min()
    }

    fn draws_ms(&self) -> u64 {
        self.drawn_ms + if self.stale { DRAW_MS_MIN } else { DRAW_MS_MAX }
    }

    /// Whether a fresh board is wanted now. Making one costs more than asking this.
    pub fn wants_board(&self, now_ms: u64) -> bool {
        let has_screen = self.devices.iter().any(|device| device.is_screen);
        (has_screen && now_ms >= self.draws_ms()) || now_ms >= self.looked_ms + BLOCK_LOOK_MS
    }

    /// Shows a board: on screens now, on the others if it tells something new and the last one is long enough ago.
    pub fn show(&mut self, board: Board, now_ms: u64) {
        let is_news = board.news() != self.told;
        let is_time = self.told_ms.is_some_and(|told| now_ms >= told + BLOCK_MS_MIN);
        self.board = Some(board);
        self.looked_ms = now_ms;
        self.draw(now_ms);
        if is_news && is_time {
            self.tell(now_ms);
        }
    }

    /// The status block on the consoles that keep every line. The first one is the loop's word: the node is ready, or halted.
    pub fn tell(&mut self, now_ms: u64) {
        let Some(board) = &self.board else { return };
        let lines = board.lines(BLOCK_COLUMNS - 2);
        (self.told, self.told_ms) = (board.news(), Some(now_ms));
        for device in self.devices.iter_mut().filter(|device| !device.is_screen) {
            device.push_line("nullbox: status");
            for line in &lines {
                device.push_line(&format!("  {line}"));
            }
        }
        self.flush();
    }

    /// Draws the screens anew, each as one piece. One that has not taken the last drawing yet gets this one later.
    fn draw(&mut self, now_ms: u64) {
        let Some(board) = &self.board else { return };
        self.recent.make_contiguous();
        let (log, _) = self.recent.as_slices();
        self.drawn_ms = now_ms;
        self.stale = false;
        for device in self.devices.iter_mut().filter(|device| device.is_screen) {
            if !device.pending.is_empty() {
                self.stale = true;
                continue;
            }
            let (columns, rows) = device.size();
            let picture = picture(&board.screen(columns, rows, log));
            device.pending.extend(picture.as_bytes());
        }
        self.flush();
    }

    /// Writes what the devices take now. Called by every line and by the loop.
    pub fn flush(&mut self) {
        self.devices.retain_mut(Device::drain);
    }
}

/// Each line at its own place, so that nothing ever scrolls, and the cursor left at the foot, where the kernel goes on.
/// ECMA-48: CUP, EL, SGR; DEC: the cursor is hidden. Cleared before it is written: after the last column it would take a letter.
fn picture(lines: &[String]) -> String {
    let mut out = String::from("\x1b[?25l\x1b[0m");
    for (number, line) in lines.iter().enumerate() {
        let _ = write!(out, "\x1b[{};1H\x1b[2K{line}", number + 1); // a String takes everything
    }
    let _ = write!(out, "\x1b[{};1H", lines.len()); // as above
    out
}

/// Opens a console by its name below /dev. tty0 is whichever virtual terminal is shown.
fn open_device(name: &str) -> Option<Device> {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::APPEND | OFlags::CLOEXEC;
    let fd = rustix::fs::open(format!("/dev/{name}"), flags, Mode::empty()).ok()?;
    let number = name.strip_prefix("tty").unwrap_or_default();
    let is_screen = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    Some(Device { fd, pending: VecDeque::new(), lost: 0, is_screen })
}

impl Device {
    fn push_line(&mut self, text: &str) {
        if self.pending.len() + text.len() > PENDING_BYTES_MAX {
            self.lost += 1;
            return;
        }
        if self.lost > 0 && self.pending.len() < PENDING_BYTES_MAX / 2 {
            let note = format!("nulld: {} console lines lost\n", self.lost);
            self.pending.extend(note.as_bytes());
            self.lost = 0;
        }
        self.pending.extend(text.as_bytes());
        self.pending.push_back(b'\n');
    }

    /// Columns and rows now: a frame buffer that comes up late changes them.
    fn size(&self) -> (usize, usize) {
        let (columns, rows) = match rustix::termios::tcgetwinsize(&self.fd) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
            _ => SIZE_DEFAULT,
        };
        (usize::from(columns.min(COLUMNS_MAX)), usize::from(rows.min(ROWS_MAX)))
    }

    /// False: the device is gone (a serial port that is not there answers EIO).
    fn drain(&mut self) -> bool {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match rustix::io::write(&self.fd, front) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped() -> (Console, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let device = Device { fd: write, pending: VecDeque::new(), lost: 0, is_screen: false };
        (Console { devices: vec![device], ..Console::default() }, read)
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
        assert!(
            console.next_deadline(0) == Some(RETRY_MS)
                && console.devices[0].pending.len() <= PENDING_BYTES_MAX + 2
        );
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

    fn board(text: &str) -> Board {
        let row = |label, text: &str, tells| crate::screen::Row { label, text: text.into(), tells };
        Board { rows: vec![row("node", "box-1", false), row("agents", text, true)] }
    }

    #[test]
    fn a_log_console_gets_the_status_once_told_and_then_only_news() {
        let (mut console, read) = piped();
        console.show(board("none"), 1_000);
        assert_eq!(read_all(&read), "", "before the node is ready there is no news");
        console.tell(2_000);
        let block = "nullbox: status\n  node      box-1\n  agents    none\n";
        assert_eq!(read_all(&read), block);
        console.show(board("none"), 200_000);
        assert_eq!(read_all(&read), "", "nothing changed");
        console.show(board("a runs"), 2_000 + BLOCK_MS_MIN - 1);
        assert_eq!(read_all(&read), "", "too soon");
        console.show(board("a runs"), 2_000 + BLOCK_MS_MIN);
        assert_eq!(read_all(&read), block.replace("none", "a runs"));
    }

    /// What a screen shows after some bytes: CUP, EL and letters, as ECMA-48 has them; anything else ends the test.
    fn shown(bytes: &str, columns: usize, rows: usize, screen: &mut Vec<Vec<char>>) {
        screen.resize(rows, vec![' '; columns]);
        let (mut row, mut column) = (0, 0);
        let mut rest = bytes;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '\x1b' {
                assert!(column < columns, "a letter beyond the last column");
                screen[row][column] = c;
                column += 1;
                continue;
            }
            let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
            let (sequence, after) = rest.split_at(end + 1);
            rest = after;
            match sequence {
                "[2K" => screen[row] = vec![' '; columns],
                "[0m" | "[?25l" => {}
                other => {
                    let place = other.strip_prefix('[').unwrap().strip_suffix(";1H").unwrap();
                    (row, column) = (place.parse::<usize>().unwrap() - 1, 0);
                }
            }
        }
    }

    #[test]
    fn a_screen_is_drawn_whole_over_whatever_was_there() {
        let (mut console, read) = piped();
        console.devices[0].is_screen = true;
        console.say("before there is a status, lines are lines");
        assert!(read_all(&read).ends_with("lines are lines\n"));
        console.show(board("none"), 1_000);
        let mut screen = vec![vec!['?'; 80]; 25];
        shown(&read_all(&read), 80, 25, &mut screen);
        let line = |number: usize| screen[number].iter().collect::<String>().trim_end().to_owned();
        assert_eq!((line(0).as_str(), line(1).as_str()), ("node      box-1", "agents    none"));
        assert!(line(3).ends_with("lines are lines") && line(24).is_empty());
        assert!(!screen.iter().flatten().any(|c| *c == '?'), "something is left of what was there");
        console.mirror("cage", "hello\x1b[2J");
        assert_eq!(read_all(&read), "", "not at once: at most one drawing a second");
        assert!(!console.wants_board(1_000 + DRAW_MS_MIN - 1) && console.wants_board(1_000 + DRAW_MS_MIN));
        assert_eq!(console.next_deadline(1_500), Some(1_000 + DRAW_MS_MIN));
        console.show(board("none"), 3_000);
        shown(&read_all(&read), 80, 25, &mut screen);
        assert!(screen[4].iter().collect::<String>().contains("cage: hello\\u{1b}[2J"));
        assert!(!console.wants_board(3_000 + DRAW_MS_MAX - 1) && console.wants_board(3_000 + DRAW_MS_MAX));
        console.disturbed();
        assert!(console.wants_board(3_000 + DRAW_MS_MIN), "the kernel's lines do not stay");
        // What must be seen at once is.
        console.raw("nullbox: state unmounted, reboot");
        assert!(read_all(&read).contains("state unmounted"));
    }

    #[test]
    fn a_screen_that_takes_nothing_costs_one_drawing() {
        let (mut console, read) = piped();
        console.devices[0].is_screen = true;
        for n in 0..2_000 {
            console.show(board("none"), n * 1_000);
        }
        assert!(console.devices[0].pending.len() < 8 * 1024);
        assert!(!read_all(&read).is_empty());
    }
}
