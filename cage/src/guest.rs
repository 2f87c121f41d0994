//! The control connection to one guest: who may say what when, and where it goes.
//!
//! Must hold: what a guest says is bounded (frames by abi, execs by [`limits::EXECS_PER_AGENT_MAX`], waits by time) and legal
//! in its phase, or the connection ends and the VM with it. Must never: let one exec's slow reader hold up the rest for long.

use abi::control::Stream;
use abi::guest::{
    Denied, Exec, Exit, Failed, Frame, FrameError, Hello, Kind, Ready, Shutdown, Signal, Start,
};
use abi::limits;
use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind};
use std::net::Shutdown as Side;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Frames of an exec that wait for its caller; 64 KiB each at most.
const EXEC_QUEUE_MAX: usize = 4;
/// How long a guest may leave a frame unread.
const WRITE_MS_MAX: u64 = 10_000;

/// How far a guest has come. Decides what it may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but its hello.
    Connected,
    /// It has its orders and sets itself up.
    Started,
    /// The agent's command runs, or its ready says that it is about to.
    Running,
    /// The agent's command has ended; execs may still end.
    Ended,
}

/// The phase after a frame, or that the frame is not legal. Pure.
pub fn admit(phase: Phase, kind: Kind, channel: u32) -> Result<Phase, FrameError> {
    use Phase::{Connected, Ended, Running, Started};
    let main = channel == 0;
    match (phase, kind) {
        (Connected, Kind::Hello) if main => Ok(Started),
        (Started, Kind::Ready) if main => Ok(Running),
        (Started | Running, Kind::Failed) if main => Ok(Ended),
        (Running, Kind::Exit) if main => Ok(Ended),
        (Running, Kind::Stdout | Kind::Stderr) => Ok(Running),
        (Running | Ended, Kind::Exit | Kind::Failed) if !main => Ok(phase),
        (Ended, Kind::Stdout | Kind::Stderr) if !main => Ok(Ended),
        (Started | Running | Ended, Kind::Denied) => Ok(phase),
        _ => Err(FrameError::Unexpected { got: kind }),
    }
}

/// What the life of an agent needs to know of its guest.
#[derive(Debug)]
pub enum Said {
    Hello(Hello),
    Ready(Ready),
    Failed(Failed),
    Exited(Exit),
    /// The last thing: the connection ended, and why.
    Ended(String),
}

/// What the caller of an exec gets.
#[derive(Debug)]
pub enum ExecSaid {
    Output(Stream, Vec<u8>),
    Exited(Exit),
    Failed(Failed),
}

/// Why an exec could not be opened or spoken to.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("guest: {0}")]
    Frame(#[from] FrameError),
    #[error("{} execs run in this agent", limits::EXECS_PER_AGENT_MAX)]
    TooManyExecs,
    #[error("the agent's VM has ended")]
    Ended,
}

#[derive(Debug, Default)]
struct Execs {
    last: u32,
    open: BTreeMap<u32, SyncSender<ExecSaid>>,
    ended: bool,
}

/// The host's end of a control connection; shared by the life of the agent and its execs.
#[derive(Debug)]
pub struct Session {
    stream: Mutex<UnixStream>,
    execs: Mutex<Execs>,
    /// Why a frame could not be sent, which is why the connection ended.
    unsent: OnceLock<String>,
}

impl Session {
    /// Takes over an accepted connection.
    pub fn new(stream: &UnixStream) -> std::io::Result<Session> {
        let writer = stream.try_clone()?;
        writer.set_write_timeout(Some(Duration::from_millis(WRITE_MS_MAX)))?;
        Ok(Session { stream: Mutex::new(writer), execs: Mutex::default(), unsent: OnceLock::new() })
    }

    fn execs(&self) -> MutexGuard<'_, Execs> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Frame) -> Result<(), SessionError> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = frame.write_to(&mut *stream);
        if let Err(FrameError::Io(error)) = &sent {
            let why = match error.kind() {
                ErrorKind::WouldBlock => {
                    format!("the guest left a frame unread for {} s", WRITE_MS_MAX / 1000)
                }
                _ => format!("the guest's control connection broke: {error}"),
            };
            let _ = self.unsent.set(why); // the first reason stays
            // A frame may stand half written: nothing sensible can follow it.
            let _ = stream.shutdown(Side::Both); // it may have ended by itself
        }
        Ok(sent?)
    }

    /// Tells the guest what to run.
    pub fn start(&self, start: &Start) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Start, 0, start)?)
    }

    /// Asks the guest to stop everything and halt.
    pub fn shutdown(&self, grace_ms: u64) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Shutdown, 0, &Shutdown { grace_ms })?)
    }

    /// Starts an exec; what it says comes through the receiver, which ends when the exec or the VM does.
    pub fn exec(&self, exec: &Exec) -> Result<(u32, Receiver<ExecSaid>), SessionError> {
        let (sender, receiver) = sync_channel(EXEC_QUEUE_MAX);
        let channel = {
            let mut execs = self.execs();
            if execs.ended {
                return Err(SessionError::Ended);
            }
            if execs.open.len() >= limits::EXECS_PER_AGENT_MAX {
                return Err(SessionError::TooManyExecs);
            }
            execs.last = execs.last.checked_add(1).ok_or(SessionError::TooManyExecs)?;
            let channel = execs.last;
            execs.open.insert(channel, sender);
            channel
        };
        let sent =
            Frame::json(Kind::Exec, channel, exec).map_err(SessionError::from).and_then(|f| self.send(&f));
        match sent {
            Ok(()) => Ok((channel, receiver)),
            Err(error) => {
                self.execs().open.remove(&channel);
                Err(error)
            }
        }
    }

    /// Gives an exec input; empty means end of file.
    pub fn stdin(&self, channel: u32, data: &[u8]) -> Result<(), SessionError> {
        self.send(&Frame::data(Kind::Stdin, channel, data))
    }

    /// Signals an exec.
    pub fn signal(&self, channel: u32, signal: i32) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Signal, channel, &Signal { signal })?)
    }

    /// Execs that have not ended.
    pub fn execs_running(&self) -> u32 {
        self.execs().open.len() as u32
    }

    /// The VM has ended: no exec will say more.
    fn end(&self) {
        let mut execs = self.execs();
        execs.ended = true;
        execs.open.clear();
    }

    fn exec_said(&self, channel: u32, said: ExecSaid) {
        let last = !matches!(said, ExecSaid::Output(..));
        let sender = match last {
            true => self.execs().open.remove(&channel),
            false => self.execs().open.get(&channel).cloned(),
        };
        // A caller that went away no longer listens; its exec is being killed. A full queue holds this guest's frames up
        // until the caller reads or its connection times out.
        if let Some(sender) = sender {
            let _ = sender.send(said);
        }
    }
}

/// Where the rest of what a guest says goes.
pub trait Sink {
    /// Output of the agent's command.
    fn output(&mut self, stream: Stream, data: &[u8]);
    /// What the guest's sandbox refused.
    fn denied(&mut self, denied: Denied);
}

/// Reads the connection until it ends, for whatever reason; the last thing sent is [`Said::Ended`].
pub fn listen(stream: UnixStream, session: &Session, sink: &mut dyn Sink, said: &dyn Fn(Said)) {
    let ended = read_frames(&stream, session, sink, said);
    let why = match ended {
        Ok(()) | Err(FrameError::Io(_)) if session.unsent.get().is_some() => {
            session.unsent.get().cloned().unwrap_or_default()
        }
        Ok(()) => "the guest closed its control connection".to_owned(),
        Err(FrameError::Io(error)) => format!("the guest's control connection broke: {error}"),
        Err(error) => format!("the guest broke the protocol: {error}"),
    };
    let _ = stream.shutdown(Side::Both); // it may have ended by itself
    session.end();
    said(Said::Ended(why));
}

fn read_frames(
    stream: &UnixStream,
    session: &Session,
    sink: &mut dyn Sink,
    said: &dyn Fn(Said),
) -> Result<(), FrameError> {
    let mut input = BufReader::new(stream);
    let mut phase = Phase::Connected;
    while let Some(frame) = Frame::read_from(&mut input)? {
        phase = admit(phase, frame.kind, frame.channel)?;
        match (frame.kind, frame.channel) {
            (Kind::Hello, _) => said(Said::Hello(frame.parse()?)),
            (Kind::Ready, _) => said(Said::Ready(frame.parse()?)),
            (Kind::Denied, _) => sink.denied(frame.parse()?),
            (Kind::Stdout, 0) => sink.output(Stream::Stdout, &frame.payload),
            (Kind::Stderr, 0) => sink.output(Stream::Stderr, &frame.payload),
            (Kind::Stdout, exec) => session.exec_said(exec, ExecSaid::Output(Stream::Stdout, frame.payload)),
            (Kind::Stderr, exec) => session.exec_said(exec, ExecSaid::Output(Stream::Stderr, frame.payload)),
            (Kind::Exit, 0) => said(Said::Exited(frame.parse()?)),
            (Kind::Exit, exec) => session.exec_said(exec, ExecSaid::Exited(frame.parse()?)),
            (Kind::Failed, 0) => said(Said::Failed(frame.parse()?)),
            (Kind::Failed, exec) => session.exec_said(exec, ExecSaid::Failed(frame.parse()?)),
            (got, _) => {
                return Err(FrameError::Unexpected { got }); // admit refused it already
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc::channel;

    struct Kept(Vec<u8>, usize);
    impl Sink for Kept {
        fn output(&mut self, _: Stream, data: &[u8]) {
            self.0.extend_from_slice(data);
        }
        fn denied(&mut self, _: Denied) {
            self.1 += 1;
        }
    }

    /// Lets a guest say `frames` and returns what came of it.
    fn hear(frames: &[Frame]) -> (Vec<Said>, Kept) {
        let (mut guest, host) = UnixStream::pair().unwrap();
        for frame in frames {
            frame.write_to(&mut guest).unwrap();
        }
        drop(guest);
        let (sender, receiver) = channel();
        let session = Session::new(&host).unwrap();
        let mut kept = Kept(Vec::new(), 0);
        listen(host, &session, &mut kept, &|said| sender.send(said).unwrap());
        drop(sender);
        (receiver.iter().collect(), kept)
    }

    fn hello() -> Frame {
        Frame::json(Kind::Hello, 0, &Hello { protocol: 2, uptime_us: 5 }).unwrap()
    }

    fn ready() -> Frame {
        Frame::json(Kind::Ready, 0, &Ready { stages_us: vec![] }).unwrap()
    }

    fn exit(channel: u32) -> Frame {
        let exit = Exit { code: Some(3), signal: None, oom_killed: false, dropped_bytes: 0 };
        Frame::json(Kind::Exit, channel, &exit).unwrap()
    }

    #[test]
    fn an_ordinary_life_is_heard_in_order() {
        let (said, kept) = hear(&[hello(), ready(), Frame::data(Kind::Stdout, 0, b"hi"), exit(0)]);
        assert!(matches!(
            said.as_slice(),
            [Said::Hello(_), Said::Ready(_), Said::Exited(Exit { code: Some(3), .. }), Said::Ended(_)]
        ));
        assert_eq!(kept.0, b"hi");
    }

    #[test]
    fn every_frame_out_of_place_ends_the_connection() {
        for (phase, frames) in [
            ("output before hello", vec![Frame::data(Kind::Stdout, 0, b"x")]),
            ("two hellos", vec![hello(), hello()]),
            ("output before ready", vec![hello(), Frame::data(Kind::Stdout, 0, b"x")]),
            ("exit before ready", vec![hello(), exit(0)]),
            ("two readies", vec![hello(), ready(), ready()]),
            ("output after exit", vec![hello(), ready(), exit(0), Frame::data(Kind::Stdout, 0, b"x")]),
            ("two exits", vec![hello(), ready(), exit(0), exit(0)]),
            ("a host's frame", vec![hello(), ready(), Frame::data(Kind::Stdin, 1, b"x")]),
            ("hello of an exec", vec![Frame::data(Kind::Hello, 1, b"{}")]),
        ] {
            let (said, _) = hear(&frames);
            assert!(
                matches!(said.last(), Some(Said::Ended(why)) if why.contains("protocol")),
                "{phase}: {said:?}"
            );
        }
    }

    #[test]
    fn garbage_ends_the_connection() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        guest.write_all(&[0xff; 64]).unwrap();
        drop(guest);
        let session = Session::new(&host).unwrap();
        let (sender, receiver) = channel();
        listen(host, &session, &mut Kept(vec![], 0), &|said| sender.send(said).unwrap());
        assert!(matches!(receiver.recv().unwrap(), Said::Ended(why) if why.contains("65536")));
        assert!(matches!(
            session.exec(&Exec {
                command: vec![],
                env: vec![],
                workdir: String::new(),
                terminal: None,
                window_bytes: 65536,
            }),
            Err(SessionError::Ended)
        ));
    }

    #[test]
    fn an_unknown_execs_output_is_dropped_and_a_known_ones_delivered() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let session = Session::new(&host).unwrap();
        let exec = Exec {
            command: vec!["/bin/x".into()],
            env: vec![],
            workdir: String::new(),
            terminal: None,
            window_bytes: 65536,
        };
        let (channel_a, heard) = session.exec(&exec).unwrap();
        assert_eq!(Frame::read_from(&mut guest).unwrap().unwrap().parse::<Exec>().unwrap(), exec);
        for frame in [
            hello(),
            ready(),
            Frame::data(Kind::Stdout, 77, b"lost"),
            Frame::data(Kind::Stderr, channel_a, b"e"),
            exit(channel_a),
        ] {
            frame.write_to(&mut guest).unwrap();
        }
        drop(guest);
        listen(host, &session, &mut Kept(vec![], 0), &|_| ());
        let heard: Vec<ExecSaid> = heard.iter().collect();
        assert!(
            matches!(heard.as_slice(), [ExecSaid::Output(Stream::Stderr, data), ExecSaid::Exited(_)] if data == b"e")
        );
    }

    #[test]
    fn a_guest_that_does_not_read_is_given_up_and_the_reason_kept() {
        let (guest, host) = UnixStream::pair().unwrap();
        let session = Session::new(&host).unwrap();
        session.stream.lock().unwrap().set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let sent = (0..1000).map(|_| session.stdin(1, &[0; 65536])).find(Result::is_err);
        assert!(sent.is_some());
        let (sender, receiver) = channel();
        listen(host, &session, &mut Kept(vec![], 0), &|said| sender.send(said).unwrap());
        assert!(matches!(receiver.recv().unwrap(), Said::Ended(why) if why.contains("unread")));
        drop(guest);
    }

    #[test]
    fn execs_are_bounded_and_their_channels_never_repeat() {
        let (guest, host) = UnixStream::pair().unwrap();
        std::thread::spawn(move || std::io::copy(&mut &guest, &mut std::io::sink()));
        let session = Session::new(&host).unwrap();
        let exec = Exec {
            command: vec![],
            env: vec![],
            workdir: String::new(),
            terminal: None,
            window_bytes: 65536,
        };
        let open: Vec<_> = (0..limits::EXECS_PER_AGENT_MAX).map(|_| session.exec(&exec).unwrap()).collect();
        assert!(matches!(session.exec(&exec), Err(SessionError::TooManyExecs)));
        assert!(open.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
