//! The kernel's log, from /dev/kmsg (Documentation/ABI/testing/dev-kmsg) into a ring of its own.
//!
//! A line is `LEVEL kernel: TEXT` for what the kernel said, and `LEVEL FACILITY: TEXT` for what a process wrote into the
//! kernel's log: the kernel gives such a record a facility other than its own, so nobody can forge a line of the kernel.
//! Lines of nulld in this ring begin with `warning log_dropped`. Every call that a seccomp filter refused fatally is a line of nulld's own log as well.
//!
//! Must hold: at most [`RECORDS_PER_TURN`] records in [`PAUSE_MS`], and KERNEL_LOG_LINES_PER_SECOND_MAX lines a second kept;
//! what is lost is counted. After a crash of nulld no record comes twice. Must never: trust the text of a record.

use std::io;
use std::os::fd::OwnedFd;

use abi::control::KERNEL_LOG;
use abi::limits;
use abi::log::Level;
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::clock;
use crate::journal::Journal;
use crate::logs::Gate;
use crate::poll::{self, Token};

mod seccomp;

/// Records read at a time; then the log is left alone for [`PAUSE_MS`].
const RECORDS_PER_TURN: u32 = 128;
/// A kernel that talks without end gets so little of the loop.
const PAUSE_MS: u64 = 20;
/// Refused system calls told in a second.
const REFUSALS_PER_SECOND: u32 = 5;
/// RFC 5424, table 2. 1 and up come from processes.
pub const FACILITIES: [&str; 24] = [
    "kernel", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];
/// RFC 5424, table 1, with the longer names of abi::log.
pub const LEVELS: [&str; 8] = ["emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"];

/// The open log; nothing where there is no /dev/kmsg.
#[derive(Debug)]
pub struct KernelLog {
    fd: Option<OwnedFd>,
    /// The next record's number.
    expected: u64,
    lines: Gate,
    refusals: Gate,
    resume_ms: Option<u64>,
}

impl Default for KernelLog {
    fn default() -> KernelLog {
        let lines = Gate::new(limits::KERNEL_LOG_LINES_PER_SECOND_MAX);
        KernelLog { fd: None, expected: 0, lines, refusals: Gate::new(REFUSALS_PER_SECOND), resume_ms: None }
    }
}

impl KernelLog {
    /// Opens it and watches it; goes on after the last record that the journal has.
    pub fn open(epoll: &OwnedFd, journal: &Journal) -> KernelLog {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).ok();
        let fd = fd.filter(|fd| poll::watch(epoll, fd, Token::Kernel, epoll::EventFlags::IN).is_ok());
        KernelLog { fd, expected: journal.logs.mark(KERNEL_LOG), ..KernelLog::default() }
    }

    /// Takes what has come. `service_of` names the service of a process, by pid and uid.
    pub fn read(
        &mut self,
        epoll: &OwnedFd,
        journal: &mut Journal,
        service_of: impl Fn(u32, u32) -> Option<String>,
    ) -> io::Result<()> {
        let mut buffer = [0u8; 8 * 1024];
        for _ in 0..RECORDS_PER_TURN {
            let Some(fd) = &self.fd else { return Ok(()) };
            match rustix::io::read(fd, &mut buffer) {
                Ok(count) if count > 0 => {
                    if let Some(record) = Record::parse(buffer.get(..count).unwrap_or_default()) {
                        self.take(&record, journal, &service_of);
                    }
                }
                // Records were overwritten before they were read: the next one's number says how many.
                Err(Errno::PIPE | Errno::INTR) => {}
                _ => return Ok(()),
            }
        }
        if let Some(fd) = &self.fd {
            poll::rewatch(epoll, fd, Token::Kernel, epoll::EventFlags::empty())?;
            self.resume_ms = Some(clock::now_ms() + PAUSE_MS);
        }
        Ok(())
    }

    fn take(
        &mut self,
        record: &Record<'_>,
        journal: &mut Journal,
        service_of: &impl Fn(u32, u32) -> Option<String>,
    ) {
        if record.number < self.expected {
            return; // kept before a crash of nulld
        }
        let missed = record.number - self.expected;
        if missed > 0 {
            journal.dropped(KERNEL_LOG, missed, "overrun");
        }
        self.expected = record.number + 1;
        let now = clock::now_ms();
        // At the rate at which the kernel said it: what it said before nulld began does not come all at once.
        if self.lines.pass(record.since_start_us / 1000) {
            // By the wall clock of now: what is said before the clock is set is as wrong as the clock was.
            let age_ms = now.saturating_sub(record.since_start_us / 1000);
            let unix_ms = clock::unix_ms().saturating_sub(age_ms);
            journal.kernel(unix_ms, self.expected, &record.line());
        }
        if record.is_of_kernel()
            && let Some(refusal) = seccomp::Refusal::parse(record.text)
            && self.refusals.pass(now)
        {
            let service = service_of(refusal.pid, refusal.uid);
            refusal.tell(journal, Level::Warning, service.as_deref());
        }
    }

    /// What is due: watches the log again, tells what was dropped.
    pub fn tick(&mut self, epoll: &OwnedFd, journal: &mut Journal) -> io::Result<()> {
        let now = clock::now_ms();
        if let Some(dropped) = self.lines.take_dropped(now) {
            journal.dropped(KERNEL_LOG, dropped, "rate");
        }
        if let Some(dropped) = self.refusals.take_dropped(now) {
            journal.own(Level::Warning, "system_calls_refused", &[("more", &dropped)]);
        }
        if self.resume_ms.is_some_and(|due| due <= now) {
            self.resume_ms = None;
            if let Some(fd) = &self.fd {
                poll::rewatch(epoll, fd, Token::Kernel, epoll::EventFlags::IN)?;
            }
        }
        Ok(())
    }

    /// When [`KernelLog::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.resume_ms, self.lines.next_deadline(), self.refusals.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }
}

/// One record as the kernel gives it.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    priority: u32,
    number: u64,
    since_start_us: u64,
    text: &'a str,
}

impl<'a> Record<'a> {
    /// `priority,number,microseconds,flags[,more];text`, then lines of keys and values, which are left out.
    fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let first = bytes.split(|byte| *byte == b'\n').next()?;
        // The kernel escapes what is not ASCII; a cut character would be the kernel's mistake.
        let line = match std::str::from_utf8(first) {
            Ok(line) => line,
            Err(error) => std::str::from_utf8(first.get(..error.valid_up_to())?).ok()?,
        };
        let (head, text) = line.split_once(';')?;
        let mut fields = head.split(',');
        let priority = fields.next()?.parse().ok()?;
        let (number, since_start_us) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Record { priority, number, since_start_us, text })
    }

    fn is_of_kernel(&self) -> bool {
        self.priority < 8
    }

    fn line(&self) -> String {
        let level = LEVELS.get((self.priority % 8) as usize).copied().unwrap_or("info");
        let facility = FACILITIES.get((self.priority / 8) as usize).copied().unwrap_or("unknown");
        let mut line = format!("{level} {facility}: ");
        for c in self.text.chars() {
            match c.is_control() {
                true => line.extend(c.escape_default()),
                false => line.push(c),
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(journal: &Journal, name: &str) -> Vec<String> {
        let mut cursor = journal.logs.cursor(Some(name), 0, usize::MAX);
        std::iter::from_fn(|| journal.logs.next(&mut cursor, None)).map(|line| line.line).collect()
    }

    fn feed(log: &mut KernelLog, journal: &mut Journal, record: &str) {
        if let Some(record) = Record::parse(record.as_bytes()) {
            log.take(&record, journal, &|_, uid| (uid == 206).then(|| "forward".to_owned()));
        }
    }

    #[test]
    fn a_record_becomes_a_line_with_its_level_and_who_said_it() {
        for (record, line) in [
            ("6,0,0,-;Linux version 6.12\n SUBSYSTEM=x\n", "info kernel: Linux version 6.12"),
            ("3,1,5,-,caller=T1;a;b", "error kernel: a;b"),
            ("12,2,5,-;kernel: I am the kernel", "warning user: kernel: I am the kernel"),
            ("30,3,5,-;x", "info daemon: x"),
            ("4,4,5,-;evil\x1b[2J\u{9b}", "warning kernel: evil\\u{1b}[2J\\u{9b}"),
        ] {
            assert_eq!(Record::parse(record.as_bytes()).unwrap().line(), line);
        }
        for bad in ["", "x", "6,0,0,-", "6;x", "a,0,0,-;x", "6,-1,0,-;x"] {
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn records_that_were_overwritten_are_counted_and_none_comes_twice() {
        let (mut log, mut journal) = (KernelLog::default(), Journal::default());
        for number in [0, 1, 5, 5, 4, 6] {
            feed(&mut log, &mut journal, &format!("6,{number},0,-;line {number}"));
        }
        let want = [
            "info kernel: line 0",
            "info kernel: line 1",
            "warning log_dropped lines=3 reason=overrun",
            "info kernel: line 5",
            "info kernel: line 6",
        ];
        assert_eq!(read(&journal, KERNEL_LOG), want);
        // What a nulld that begins again goes on from.
        assert_eq!(journal.logs.mark(KERNEL_LOG), 7);
    }

    #[test]
    fn a_flood_of_the_kernel_is_bounded_and_counted() {
        let (mut log, mut journal) = (KernelLog::default(), Journal::default());
        for number in 0..20_000 {
            feed(&mut log, &mut journal, &format!("6,{number},{},-;audit", number * 50));
        }
        let dropped = log.lines.take_dropped(u64::MAX).unwrap();
        let kept = read(&journal, KERNEL_LOG).len() as u64 + journal.logs.forgotten(KERNEL_LOG);
        assert_eq!(kept + dropped, 20_000);
        assert!(kept <= u64::from(limits::KERNEL_LOG_LINES_PER_SECOND_MAX) * 2, "{kept}");
    }

    #[test]
    fn a_refused_system_call_is_told_by_name_only_when_the_kernel_says_so() {
        let (mut log, mut journal) = (KernelLog::default(), Journal::default());
        let arch = if cfg!(target_arch = "x86_64") { ("c000003e", 59) } else { ("c00000b7", 221) };
        let text = format!(
            "audit: type=1326 audit(1700000000.123:4): auid=4294967295 uid=206 gid=206 ses=1 pid=77 comm=\"probe\" exe=\"/system/bin/nulld\" sig=31 arch={} syscall={} compat=0 ip=0x1 code=0x80000000",
            arch.0, arch.1
        );
        feed(&mut log, &mut journal, &format!("13,0,0,-;{text}"));
        assert!(read(&journal, crate::journal::OWN).is_empty(), "a process wrote this");
        for number in 1..50 {
            feed(&mut log, &mut journal, &format!("5,{number},0,-;{text}"));
        }
        let told = read(&journal, crate::journal::OWN);
        assert!(
            told[0]
                .starts_with("warning system_call_refused service=forward pid=77 program=/system/bin/nulld")
                && told[0].contains("name=execve"),
            "{told:?}"
        );
        assert!(told.len() <= 2 * REFUSALS_PER_SECOND as usize, "{}", told.len());
    }
}
