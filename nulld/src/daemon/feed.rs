//! The loop's part in logs: what is due with them, and the stream of all lines for the forwarder.
//!
//! Must hold: a forwarder that is ready has one stream, and a new one when it lost it; however slow it is, it costs its
//! socket's buffer and OUT_BYTES_MAX. Must never: read from that stream.

use std::io;
use std::os::unix::net::UnixStream;

use abi::identity::Caller;
use abi::log::Level;

use super::Daemon;
use crate::builtin::FORWARD;
use crate::callers::{Callers, LogStream};
use crate::service::HandOver;
use crate::table::State;

/// Pause between two tries to hand a stream over.
const RETRY_MS: u64 = 1000;

/// The forwarder's stream.
#[derive(Debug, Default)]
pub(super) struct Feed {
    connection: Option<u32>,
    retry_ms: u64,
}

impl Daemon {
    /// What is due with the logs.
    pub(super) fn tick_logs(&mut self, now: u64) {
        self.journal.tick(now);
        self.supervisor.tick_logs(&self.epoll, &mut self.journal);
        if let Err(error) = self.kernel_log.tick(&self.epoll, &mut self.journal) {
            self.journal.quiet(Level::Error, "log_not_watched", &[("service", &"kernel"), ("error", &error)]);
        }
        self.feed_forwarder(now);
    }

    pub(super) fn next_log_deadline(&self, now: u64) -> Option<u64> {
        let hungry = self.callers.as_ref().is_some_and(Callers::is_hungry).then_some(now);
        let starving = self.is_forwarder_starving().then_some(self.feed.retry_ms);
        let others = [
            self.supervisor.next_log_deadline(),
            self.kernel_log.next_deadline(),
            self.journal.next_deadline(),
            hungry,
            starving,
        ];
        others.into_iter().flatten().min()
    }

    pub(super) fn read_kernel_log(&mut self) {
        let units = &self.supervisor.units;
        let service_of = |pid: u32, uid: u32| {
            let by_pid = units.iter().find(|unit| unit.pid == Some(pid));
            let by_uid = || units.iter().find(|unit| uid != 0 && unit.config.uid == uid);
            by_pid.or_else(by_uid).map(|unit| unit.name.clone())
        };
        if let Err(error) = self.kernel_log.read(&self.epoll, &mut self.journal, service_of) {
            self.journal.quiet(Level::Error, "log_not_watched", &[("service", &"kernel"), ("error", &error)]);
        }
    }

    /// It is ready and has no stream: it is new, nulld is, or the stream broke.
    fn is_forwarder_starving(&self) -> bool {
        let is_ready = self.supervisor.unit(FORWARD).is_some_and(|unit| unit.state == State::Ready);
        let is_fed = match (&self.callers, self.feed.connection) {
            (Some(callers), Some(id)) => callers.is_open(id),
            _ => false,
        };
        is_ready && !is_fed && self.callers.is_some()
    }

    fn feed_forwarder(&mut self, now: u64) {
        if now < self.feed.retry_ms || !self.is_forwarder_starving() {
            return;
        }
        self.feed = Feed { connection: None, retry_ms: now + RETRY_MS };
        if let Err(error) = self.hand_stream_over() {
            self.journal.quiet(Level::Warning, "forwarder_not_fed", &[("error", &error)]);
        }
    }

    /// All lines from the oldest one kept; the forwarder skips those that it has sent.
    fn hand_stream_over(&mut self) -> io::Result<()> {
        let (Some(callers), Some(unit)) = (&mut self.callers, self.supervisor.unit(FORWARD)) else {
            return Ok(());
        };
        let (near, far) = UnixStream::pair()?;
        match unit.hand_over(&Caller::Local { uid: 0 }, &far) {
            HandOver::Done => {}
            HandOver::Busy | HandOver::Down => return Err(io::Error::other("it takes no connection")),
        }
        let logs = LogStream {
            request_id: None,
            cursor: self.journal.logs.cursor(None, 0, usize::MAX),
            end_seq: None,
            is_patient: true,
        };
        let id = callers.adopt(near, logs, &self.epoll)?;
        self.feed.connection = Some(id);
        self.again.push(id);
        Ok(())
    }
}
