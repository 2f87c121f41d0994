//! What a service tells nulld of itself, on the pipe at [`crate::door::NOTIFY_FD`]: one line each, at any time in its life.
//!
//! `ready`: it serves now. `alive`: its loop still turns (nulld kills a service that stays silent longer than its
//! `watchdog_secs_max`). `status TEXT`: what an operator should see of it at a glance, replacing what it said before.
//!
//! Must hold: a notice never blocks the service that sends it; one that does not fit the pipe is lost.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::limits;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Ready,
    Alive,
    Status(String),
}

impl Notice {
    /// The line, with its end; a status is cut to what fits, and control characters in it become spaces.
    pub fn line(&self) -> String {
        match self {
            Notice::Ready => "ready\n".to_owned(),
            Notice::Alive => "alive\n".to_owned(),
            Notice::Status(text) => {
                let mut line = String::from("status ");
                for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
                    if line.len() + c.len_utf8() >= limits::NOTICE_BYTES_MAX {
                        break;
                    }
                    line.push(c);
                }
                line.push('\n');
                line
            }
        }
    }

    /// Reads a line without its end; none for what is not a notice.
    pub fn parse(line: &str) -> Option<Notice> {
        match line.split_once(' ') {
            None if line == "ready" => Some(Notice::Ready),
            None if line == "alive" => Some(Notice::Alive),
            Some(("status", text)) if line.len() < limits::NOTICE_BYTES_MAX => {
                (!text.chars().any(char::is_control)).then(|| Notice::Status(text.to_owned()))
            }
            _ => None,
        }
    }
}

/// The service's end of the pipe. Cheap to copy; every thread may send.
#[derive(Debug, Clone)]
pub struct Notifier {
    pipe: Arc<OwnedFd>,
}

impl Notifier {
    /// Takes the inherited pipe. Sets it not to block.
    pub fn new(pipe: OwnedFd) -> io::Result<Notifier> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Notifier { pipe: Arc::new(pipe) })
    }

    /// Sends a notice, whole or not at all (a line is shorter than PIPE_BUF, pipe(7)).
    pub fn send(&self, notice: &Notice) -> io::Result<()> {
        rustix::io::write(&*self.pipe, notice.line().as_bytes())?;
        Ok(())
    }

    /// Says what an operator should see at a glance. Lost when nulld does not read; the next one is as good.
    pub fn status(&self, text: &str) {
        let _ = self.send(&Notice::Status(text.to_owned())); // see above
    }
}

const _: () = assert!(limits::NOTICE_BYTES_MAX <= 512, "POSIX's least PIPE_BUF");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_survive_the_round_trip() {
        for notice in [Notice::Ready, Notice::Alive, Notice::Status("3 agents run".into())] {
            assert_eq!(Notice::parse(notice.line().trim_end()), Some(notice));
        }
        for junk in ["", "ready ", "Ready", "status", "alive now", "status a\x1bb"] {
            assert_eq!(Notice::parse(junk), None, "{junk:?}");
        }
    }

    #[test]
    fn a_status_is_one_short_line_whatever_it_holds() {
        let line = Notice::Status(format!("a\nready\n\x1b[2J{}", "é".repeat(500))).line();
        assert!(line.len() <= limits::NOTICE_BYTES_MAX && line.matches('\n').count() == 1);
        assert!(matches!(Notice::parse(line.trim_end_matches('\n')), Some(Notice::Status(_))));
    }

    #[test]
    fn a_pipe_that_nobody_reads_blocks_no_service() {
        let (_read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let notifier = Notifier::new(write).unwrap();
        for _ in 0..100_000 {
            notifier.status("still here");
        }
        // A shorter one may still fit once.
        assert!((0..1_000).any(|_| notifier.send(&Notice::Alive).is_err()));
    }
}
