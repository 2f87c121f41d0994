//! For tests: the guest's end of a control connection, in the test's hands.

use abi::control::Stream;
use abi::guest::{Denied, Exec, Exit, Frame, FrameError, Hello, Kind, PROTOCOL, Ready};
use abi::tools;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::{Said, Session, Sink, listen};

/// Longer than anything takes that goes well.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The command's output, and how often something was refused.
pub(crate) struct Kept(pub(crate) Vec<u8>, pub(crate) usize);

impl Sink for Kept {
    fn output(&mut self, _: Stream, data: &[u8]) {
        self.0.extend_from_slice(data);
    }
    fn denied(&mut self, _: Denied) {
        self.1 += 1;
    }
    fn called(&mut self, _: u32, _: tools::Call) -> Result<(), FrameError> {
        Err(FrameError::Unexpected { got: Kind::Call })
    }
    fn call_ended(&mut self, _: u32, _: tools::Ended) {}
}

pub(crate) fn hello() -> Frame {
    Frame::json(Kind::Hello, 0, &Hello { protocol: PROTOCOL, uptime_us: 5 }).unwrap()
}

pub(crate) fn ready() -> Frame {
    Frame::json(Kind::Ready, 0, &Ready { stages_us: vec![] }).unwrap()
}

pub(crate) fn exit(channel: u32) -> Frame {
    let exit = Exit { code: Some(3), signal: None, oom_killed: false, dropped_bytes: 0 };
    Frame::json(Kind::Exit, channel, &exit).unwrap()
}

pub(crate) fn any_exec() -> Exec {
    Exec {
        command: vec!["/bin/x".into()],
        env: vec![],
        workdir: String::new(),
        terminal: None,
        window_bytes: 65536,
    }
}

/// A session whose guest is ready, and what it says to its life.
pub(crate) fn ready_session() -> (UnixStream, Arc<Session>, Receiver<Said>) {
    let (mut guest, host) = UnixStream::pair().unwrap();
    guest.set_read_timeout(Some(SOON)).unwrap();
    let session = Arc::new(Session::new(&host).unwrap());
    hello().write_to(&mut guest).unwrap();
    ready().write_to(&mut guest).unwrap();
    let (sender, receiver) = channel();
    let listening = session.clone();
    std::thread::spawn(move || {
        listen(host, &listening, &mut Kept(vec![], 0), &|said| sender.send(said).unwrap_or(()));
    });
    for _ in 0..2 {
        receiver.recv_timeout(SOON).unwrap();
    }
    (guest, session, receiver)
}

/// The next frame the host sends.
pub(crate) fn sent(guest: &mut UnixStream) -> Frame {
    Frame::read_from(guest).unwrap().unwrap()
}
