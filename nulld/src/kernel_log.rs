//! The kernel's log, from /dev/kmsg (kernel doc ABI/testing/dev-kmsg) into a ring of its own.

use std::os::fd::OwnedFd;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};

use crate::journal::Journal;
use crate::poll::{self, Token};

/// The open log; none where there is no /dev/kmsg.
#[derive(Debug, Default)]
pub struct KernelLog {
    fd: Option<OwnedFd>,
}

impl KernelLog {
    /// Opens it and watches it.
    pub fn open(epoll: &OwnedFd) -> KernelLog {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).ok();
        let fd = fd.filter(|fd| poll::watch(epoll, fd, Token::Kernel, epoll::EventFlags::IN).is_ok());
        KernelLog { fd }
    }

    /// Takes what has come; bounded, so that a kernel that talks without end does not hold the loop.
    pub fn read(&mut self, journal: &mut Journal) {
        let mut record = [0u8; 8 * 1024];
        for _ in 0..64 {
            let Some(fd) = &self.fd else { return };
            match rustix::io::read(fd, &mut record) {
                Ok(count) if count > 0 => {
                    let text = String::from_utf8_lossy(record.get(..count).unwrap_or_default());
                    journal.kernel(text.lines().next().unwrap_or_default());
                }
                _ => return,
            }
        }
    }
}
