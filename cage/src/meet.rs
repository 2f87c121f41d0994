//! The meeting with a guest: its one control connection, awaited and served on a thread of its own.
//!
//! Must hold: the first connection of the jail's own uid is the guest's, since it is made before any agent code runs; there is no
//! second one. Must never: wait longer than a guest may take to boot, or than its life lasts.

use abi::control::Stream;
use abi::guest::{Denied, FrameError, Kind};
use abi::{limits, log, tools};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, PipeReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::agent::Agent;
use crate::agents::Cage;
use crate::desk::Desk;
use crate::guest::{self, Said, Session, Sink};
use crate::life::Mail;
use crate::tasks::Errand;

/// Where a guest's output goes.
#[derive(Debug)]
pub struct Recorder {
    pub cage: Arc<Cage>,
    pub agent: Arc<Agent>,
    /// Of a task's life.
    pub errand: Option<Arc<Errand>>,
    /// Absent: the agent has no tools, and its guest must ask for none.
    pub desk: Option<Arc<Desk>>,
}

impl Sink for Recorder {
    fn output(&mut self, stream: Stream, data: &[u8]) {
        self.agent.log.append(stream, data);
        if let Some(errand) = &self.errand {
            errand.wrote(data);
        }
    }

    fn denied(&mut self, denied: Denied) {
        self.agent.denied(&denied);
        self.cage.events.push(&self.agent.name, "denied", format!("{}: {}", denied.what, denied.rule));
    }

    fn called(&mut self, channel: u32, call: tools::Call) -> Result<(), FrameError> {
        let desk = self.desk.as_ref().ok_or(FrameError::Unexpected { got: Kind::Call })?;
        desk.take(channel, call);
        Ok(())
    }

    fn call_ended(&mut self, channel: u32, ended: tools::Ended) {
        if let Some(desk) = &self.desk {
            desk.ended(channel, &ended);
        }
    }
}

/// Waits for the guest's one control connection and serves it to its end. The listening socket is closed once it is there: a
/// later connection is refused.
pub fn serve(
    control: UnixListener,
    until: PipeReader,
    uid: u32,
    mut sink: Recorder,
    mailbox: &SyncSender<Mail>,
) {
    let said = |said| {
        let _ = mailbox.send(Mail::Guest(said)); // the life is over already
    };
    let stream = match accept(&control, &until, uid) {
        Ok(Some(stream)) => stream,
        Ok(None) => return,
        Err(error) => return said(Said::Ended(format!("the guest's control connection: {error}"))),
    };
    drop(control);
    match Session::new(&stream).map(Arc::new) {
        Ok(session) => {
            if let Some(desk) = &sink.desk {
                desk.open(&session);
            }
            let _ = mailbox.send(Mail::Connected(session.clone())); // the life is over already
            guest::listen(stream, &session, &mut sink, &said);
        }
        Err(error) => said(Said::Ended(format!("the guest's control connection: {error}"))),
    }
}

/// The first connection of the jail's own uid; none when the life ends first.
fn accept(control: &UnixListener, until: &PipeReader, uid: u32) -> io::Result<Option<UnixStream>> {
    let patience = Timespec { tv_sec: (limits::GUEST_BOOT_MS_MAX / 1000) as i64, tv_nsec: 0 };
    loop {
        let mut both = [PollFd::new(control, PollFlags::IN), PollFd::new(until, PollFlags::IN)];
        match poll(&mut both, Some(&patience)) {
            Ok(0) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) if !both[1].revents().is_empty() => return Ok(None),
            Ok(_) => {}
        }
        let (stream, _) = control.accept()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
        if peer == uid {
            return Ok(Some(stream));
        }
        log::warning("control_peer_refused", &[("uid", &peer)]);
    }
}
