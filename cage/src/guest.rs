//! The control connection to one guest: who may say what when, and where it goes.
//!
//! Must hold: what a guest says is bounded (frames by abi, channels by their windows and [`limits::EXECS_PER_AGENT_MAX`], waits by
//! time) and legal in its phase, or the connection ends and the VM with it. Must never: let one channel's slow reader or writer
//! hold up another, or this connection.

mod calls;
mod channel;
#[cfg(test)]
pub(crate) mod fake;
mod phase;
mod window;

use calls::Calls;
pub use channel::{Channel, ChannelSaid};
pub use phase::{Phase, admit};

use abi::control::Stream;
use abi::guest::{
    Clock, Denied, Exec, Exit, Failed, Files, FilesJob, Frame, FrameError, Health, Hello, Kind, Ready,
    Shutdown, Signal, Start, TerminalSize, Window,
};
use abi::limits;
use abi::tools;
use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Write};
use std::net::Shutdown as Side;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::ending::harmless;

/// How long a guest that is not held may leave a frame unread.
const WRITE_MS_MAX: u64 = 10_000;
/// How long one write waits before it looks whether the guest is held.
const WRITE_MS_STEP: u64 = 500;

/// What the life of an agent needs to know of its guest.
#[derive(Debug)]
pub enum Said {
    Hello(Hello),
    Ready(Ready),
    Failed(Failed),
    Exited(Exit),
    /// What [`Session::sync`] asked for is done.
    Synced,
    Health(Health),
    /// The last thing: the connection ended, and why.
    Ended(String),
}

/// Why a channel could not be opened or spoken to.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("guest: {0}")]
    Frame(#[from] FrameError),
    #[error("{} execs and copies run in this agent", limits::EXECS_PER_AGENT_MAX)]
    TooManyExecs,
    #[error("the agent's VM has ended")]
    Ended,
    #[error("the caller went away")]
    CallerGone,
}

#[derive(Debug, Default)]
struct Channels {
    last: u32,
    open: BTreeMap<u32, Arc<Channel>>,
    ended: bool,
}

/// The host's end of a control connection; shared by the life of the agent and the callers of its channels.
#[derive(Debug)]
pub struct Session {
    stream: Mutex<UnixStream>,
    /// Bounds a write to a guest that is not held.
    patience: Duration,
    channels: Mutex<Channels>,
    calls: Mutex<Calls>,
    /// Channel 0, for its input.
    main: Arc<Channel>,
    /// Somebody writes the command's input.
    main_written: AtomicBool,
    /// The guest is frozen, or about to be.
    held: AtomicBool,
    begun: Instant,
    /// When somebody last used the guest, in milliseconds since `begun`.
    used_ms: AtomicU64,
    /// Why a frame could not be sent, which is why the connection ended.
    unsent: OnceLock<String>,
}

impl Session {
    /// Takes over an accepted connection.
    pub fn new(stream: &UnixStream) -> std::io::Result<Session> {
        let writer = stream.try_clone()?;
        writer.set_write_timeout(Some(Duration::from_millis(WRITE_MS_STEP)))?;
        Ok(Session {
            stream: Mutex::new(writer),
            patience: Duration::from_millis(WRITE_MS_MAX),
            channels: Mutex::default(),
            calls: Mutex::default(),
            main: Arc::new(Channel::new(0, 0)),
            main_written: AtomicBool::new(false),
            held: AtomicBool::new(false),
            begun: Instant::now(),
            used_ms: AtomicU64::new(0),
            unsent: OnceLock::new(),
        })
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Frame) -> Result<(), SessionError> {
        let mut bytes = Vec::new();
        frame.write_to(&mut bytes)?;
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.write(&mut stream, &bytes);
        if let Err(error) = &sent {
            let why = match error.kind() {
                ErrorKind::WouldBlock => {
                    format!("the guest left a frame unread for {} s", self.patience.as_secs())
                }
                _ => format!("the guest's control connection broke: {error}"),
            };
            let _ = self.unsent.set(why); // the first reason stays
            // A frame may stand half written: nothing sensible can follow it.
            let _ = stream.shutdown(Side::Both); // it may have ended by itself
        }
        Ok(sent.map_err(FrameError::Io)?)
    }

    /// Writes all of it. A guest that is held has all the time there is; another one must go on taking bytes.
    fn write(&self, stream: &mut UnixStream, mut bytes: &[u8]) -> std::io::Result<()> {
        let mut since = Instant::now();
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = bytes.get(n..).unwrap_or_default();
                    since = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.held.load(Ordering::Relaxed) {
                        since = Instant::now();
                    } else if since.elapsed() >= self.patience {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells the guest what to run.
    pub fn start(&self, start: &Start) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Start, 0, start)?)
    }

    /// Asks the guest to stop everything and halt.
    pub fn shutdown(&self, grace_ms: u64) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Shutdown, 0, &Shutdown { grace_ms })?)
    }

    /// Asks the guest to write its disks out; [`Said::Synced`] tells when that is done.
    pub fn sync(&self) -> Result<(), SessionError> {
        self.send(&Frame::data(Kind::Sync, 0, b""))
    }

    /// Tells the guest what time it is.
    pub fn clock(&self, unix_ns: u64) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Clock, 0, &Clock { unix_ns })?)
    }

    /// The guest is about to be frozen: from now on no input is sent, and nobody blames it for not reading. Call it before
    /// [`Session::sync`], so that nothing waits in the connection when the guest stands still.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// The guest runs again.
    pub fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
        self.main.wake();
        self.channels().open.values().for_each(|channel| channel.wake());
    }

    /// Starts an exec; what it says is on the channel, until the exec or the VM ends.
    pub fn exec(&self, exec: &Exec) -> Result<Arc<Channel>, SessionError> {
        self.open(exec.window_bytes, |channel| Frame::json(Kind::Exec, channel, exec))
    }

    /// Starts work on the agent's files; it says and takes records on the channel.
    pub fn files(&self, job: FilesJob) -> Result<Arc<Channel>, SessionError> {
        let files = Files { job, window_bytes: limits::EXEC_WINDOW_BYTES };
        self.open(files.window_bytes, |channel| Frame::json(Kind::Files, channel, &files))
    }

    fn open(
        &self,
        window_bytes: u32,
        frame: impl FnOnce(u32) -> Result<Frame, FrameError>,
    ) -> Result<Arc<Channel>, SessionError> {
        self.touch();
        let channel = {
            let mut channels = self.channels();
            if channels.ended {
                return Err(SessionError::Ended);
            }
            if channels.open.len() >= limits::EXECS_PER_AGENT_MAX {
                return Err(SessionError::TooManyExecs);
            }
            channels.last = channels.last.checked_add(1).ok_or(SessionError::TooManyExecs)?;
            let channel = Arc::new(Channel::new(channels.last, window_bytes));
            channels.open.insert(channel.number(), channel.clone());
            channel
        };
        match frame(channel.number()).map_err(SessionError::from).and_then(|frame| self.send(&frame)) {
            Ok(()) => Ok(channel),
            Err(error) => {
                self.channels().open.remove(&channel.number());
                Err(error)
            }
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call of a tool; `value` is what the host made itself. Once for each call.
    pub fn answer(
        &self,
        call: u32,
        answer: &tools::Answer,
        value: Option<&[u8]>,
    ) -> Result<(), SessionError> {
        self.touch();
        // The answer comes last, so that nothing of it is looked at before it is whole.
        for part in value.unwrap_or_default().chunks(limits::GUEST_FRAME_BYTES_MAX) {
            self.send(&Frame::data(Kind::Value, call, part))?;
        }
        let frame = Frame::json(Kind::Answer, call, answer)?;
        self.calls().answered(call); // before the guest can end it
        self.send(&frame)
    }

    /// Has the guest stand still until a call is answered.
    pub fn still(&self, call: u32) -> Result<(), SessionError> {
        self.send(&Frame::data(Kind::Still, call, b""))
    }

    /// Whether the connection has ended, and with it all that is said on it.
    pub fn is_over(&self) -> bool {
        self.channels().ended
    }

    /// Channel 0, for the input of the agent's command.
    pub fn main(&self) -> &Arc<Channel> {
        &self.main
    }

    /// Makes the caller the one who writes the command's input, if nobody is. He ends it with [`Session::leave_main`].
    pub fn take_main(&self) -> bool {
        !self.main_written.swap(true, Ordering::Relaxed)
    }

    /// Nobody writes the command's input any more.
    pub fn leave_main(&self) {
        self.main_written.store(false, Ordering::Relaxed);
    }

    /// Gives a channel input; empty means end of file. Waits as long as the guest has no room for it or is held, and `is_wanted`.
    pub fn stdin(
        &self,
        channel: &Channel,
        data: &[u8],
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(), SessionError> {
        let step = Duration::from_millis(WRITE_MS_STEP);
        let mut rest = data;
        while !rest.is_empty() {
            let is_held = self.held.load(Ordering::Relaxed);
            let wanted = if is_held { 0 } else { rest.len().min(limits::GUEST_FRAME_BYTES_MAX) };
            let leave = channel.leave(wanted, step).ok_or(SessionError::Ended)?;
            if leave == 0 && !is_wanted() {
                return Err(SessionError::CallerGone);
            }
            if let Some((now, later)) = rest.split_at_checked(leave).filter(|(now, _)| !now.is_empty()) {
                self.touch();
                self.send(&Frame::data(Kind::Stdin, channel.number(), now))?;
                rest = later;
            }
        }
        if data.is_empty() {
            self.send(&Frame::data(Kind::Stdin, channel.number(), b""))?;
        }
        Ok(())
    }

    /// The caller took so many bytes of a channel's output.
    pub fn taken(&self, channel: &Channel, bytes: usize) -> Result<(), SessionError> {
        self.widen(channel.number(), channel.taken(bytes))
    }

    /// Nobody reads a channel any more: it is killed, and what it still says is dropped.
    pub fn abandon(&self, channel: &Channel) -> Result<(), SessionError> {
        self.signal(channel, 9)?;
        self.widen(channel.number(), channel.abandon())
    }

    fn widen(&self, channel: u32, bytes: Option<u32>) -> Result<(), SessionError> {
        match bytes {
            Some(bytes) => self.send(&Frame::json(Kind::Window, channel, &Window { bytes })?),
            None => Ok(()),
        }
    }

    /// Signals a channel's processes.
    pub fn signal(&self, channel: &Channel, signal: i32) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Signal, channel.number(), &Signal { signal })?)
    }

    /// The size of a channel's terminal.
    pub fn resize(&self, channel: &Channel, size: TerminalSize) -> Result<(), SessionError> {
        self.send(&Frame::json(Kind::Resize, channel.number(), &size)?)
    }

    /// Execs and copies that have not ended.
    pub fn execs_running(&self) -> u32 {
        self.channels().open.len() as u32
    }

    /// Execs and copies so far.
    pub fn execs_total(&self) -> u64 {
        self.channels().last.into()
    }

    /// How long nobody used the guest: no output, input, exec or copy.
    pub fn idle(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.used_ms.load(Ordering::Relaxed)))
    }

    fn touch(&self) {
        self.used_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// The VM has ended: no channel will say more.
    fn end(&self) {
        let mut channels = self.channels();
        channels.ended = true;
        self.main.end(ChannelSaid::VmEnded);
        for channel in std::mem::take(&mut channels.open).into_values() {
            channel.end(ChannelSaid::VmEnded);
        }
    }

    /// A channel that is open, by its number.
    fn channel(&self, number: u32, said: Kind) -> Result<Arc<Channel>, FrameError> {
        match number {
            0 => Ok(self.main.clone()),
            _ => self.channels().open.get(&number).cloned().ok_or(FrameError::Unexpected { got: said }),
        }
    }

    fn came(&self, number: u32, stream: Stream, data: &[u8]) -> Result<(), FrameError> {
        self.touch();
        let channel = self.channel(number, Kind::Stdout)?;
        let back = channel.came(stream, data).map_err(|window::Overrun| beyond(Kind::Stdout))?;
        match self.widen(number, back) {
            Ok(()) => Ok(()),
            Err(SessionError::Frame(error)) => Err(error),
            Err(_) => Ok(()), // the connection's end is seen by who reads it
        }
    }

    fn last(&self, number: u32, said: Kind, last: ChannelSaid) -> Result<(), FrameError> {
        let channel = self.channels().open.remove(&number).ok_or(FrameError::Unexpected { got: said })?;
        channel.end(last);
        Ok(())
    }
}

fn beyond(kind: Kind) -> FrameError {
    FrameError::Payload { kind, error: "more than its window".into() }
}

/// Where the rest of what a guest says goes.
pub trait Sink {
    /// Output of the agent's command.
    fn output(&mut self, stream: Stream, data: &[u8]);
    /// What the guest's sandbox refused.
    fn denied(&mut self, denied: Denied);
    /// A tool is to be used; at most [`limits::TOOL_CALLS_AT_ONCE_MAX`] are under way. Must return at once.
    fn called(&mut self, channel: u32, call: tools::Call) -> Result<(), FrameError>;
    /// A call that was answered has ended.
    fn call_ended(&mut self, channel: u32, ended: tools::Ended);
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
        // The error may quote what came.
        Err(error) => format!(
            "the guest broke the protocol: {}",
            harmless(&error.to_string(), limits::GUEST_REASON_CHARS_MAX)
        ),
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
            (Kind::Synced, _) => said(Said::Synced),
            (Kind::Health, _) => said(Said::Health(in_short(frame.parse()?))),
            (Kind::Call, channel) => {
                session.touch();
                let call = calls::checked(frame.parse()?)?;
                session.calls().begin(channel)?;
                sink.called(channel, call)?;
            }
            (Kind::Ended, channel) => {
                let ended = frame.parse()?;
                session.calls().end(channel)?;
                sink.call_ended(channel, ended);
            }
            (Kind::Stdout | Kind::Stderr, 0) => {
                session.touch();
                sink.output(stream_of(frame.kind), &frame.payload);
            }
            (Kind::Stdout | Kind::Stderr, channel) => {
                session.came(channel, stream_of(frame.kind), &frame.payload)?;
            }
            (Kind::Window, channel) => {
                let Window { bytes } = frame.parse()?;
                let widened = session.channel(channel, frame.kind)?.widened(bytes);
                widened.map_err(|window::Overrun| beyond(Kind::Window))?;
            }
            (Kind::Exit, 0) => {
                session.main.end(ChannelSaid::VmEnded);
                said(Said::Exited(frame.parse()?));
            }
            (Kind::Exit, channel) => {
                session.last(channel, frame.kind, ChannelSaid::Exited(frame.parse()?))?
            }
            (Kind::Failed, 0) => said(Said::Failed(frame.parse()?)),
            (Kind::Failed, channel) => {
                session.last(channel, frame.kind, ChannelSaid::Failed(frame.parse()?))?;
            }
            (got, _) => {
                return Err(FrameError::Unexpected { got }); // admit refused it already
            }
        }
    }
    Ok(())
}

fn in_short(health: Health) -> Health {
    Health { detail: harmless(&health.detail, limits::GUEST_WORDS_CHARS_MAX), ..health }
}

fn stream_of(kind: Kind) -> Stream {
    if kind == Kind::Stderr { Stream::Stderr } else { Stream::Stdout }
}

#[cfg(test)]
mod tests {
    use super::fake::{Kept, SOON, any_exec, exit, hello, ready, ready_session, sent};
    use super::*;
    use abi::guest::PROTOCOL;
    use std::io::Write;
    use std::sync::mpsc::channel;

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
        assert!(matches!(session.exec(&any_exec()), Err(SessionError::Ended)));
    }

    #[test]
    fn what_breaks_the_protocol_is_not_repeated_at_length() {
        let field = "\u{10ffff}x".repeat(10_000);
        let hello = format!("{{\"protocol\":{PROTOCOL},\"uptime_us\":5,\"{field}\":1}}");
        let (said, _) = hear(&[Frame::data(Kind::Hello, 0, hello.as_bytes())]);
        let Some(Said::Ended(why)) = said.last() else { panic!("{said:?}") };
        assert!(why.contains("protocol") && why.contains("unknown field"), "{why}");
        assert!(why.chars().count() < 600, "{}", why.len());
    }

    fn why_ended(said: &std::sync::mpsc::Receiver<Said>) -> String {
        loop {
            if let Said::Ended(why) = said.recv_timeout(SOON).unwrap() {
                return why;
            }
        }
    }

    #[test]
    fn an_execs_output_and_end_come_in_order() {
        let (mut guest, session, _said) = ready_session();
        let one = session.exec(&any_exec()).unwrap();
        assert_eq!(sent(&mut guest).parse::<Exec>().unwrap(), any_exec());
        Frame::data(Kind::Stderr, one.number(), b"e").write_to(&mut guest).unwrap();
        exit(one.number()).write_to(&mut guest).unwrap();
        assert!(matches!(one.next(10, SOON), ChannelSaid::Output(Stream::Stderr, data) if data == b"e"));
        assert!(matches!(one.next(10, SOON), ChannelSaid::Exited(Exit { code: Some(3), .. })));
        assert_eq!((session.execs_running(), session.execs_total()), (0, 1));
    }

    #[test]
    fn a_guest_that_breaks_a_window_or_speaks_on_a_closed_channel_is_ended() {
        let window = |channel, bytes| Frame::json(Kind::Window, channel, &Window { bytes }).unwrap();
        for (case, frames) in [
            (
                "more output than its window",
                vec![Frame::data(Kind::Stdout, 1, &[0; 65536]), Frame::data(Kind::Stderr, 1, b"x")],
            ),
            ("empty output", vec![Frame::data(Kind::Stdout, 1, b"")]),
            ("input taken that was never sent", vec![window(1, 1)]),
            ("input of the command taken that was never sent", vec![window(0, 1)]),
            ("a channel that never was", vec![Frame::data(Kind::Stdout, 77, b"x")]),
            ("output after its exit", vec![exit(1), Frame::data(Kind::Stdout, 1, b"x")]),
            ("two exits", vec![exit(1), exit(1)]),
            ("a window of another size of integer", vec![Frame::data(Kind::Window, 1, b"{\"bytes\":-1}")]),
        ] {
            let (mut guest, session, said) = ready_session();
            let one = session.exec(&any_exec()).unwrap();
            for frame in frames {
                frame.write_to(&mut guest).unwrap();
            }
            let why = why_ended(&said);
            assert!(why.contains("protocol"), "{case}: {why}");
            drop(one);
            assert!(matches!(session.exec(&any_exec()), Err(SessionError::Ended)), "{case}");
        }
    }

    #[test]
    fn a_slow_caller_holds_up_its_own_channel_alone() {
        let (mut guest, session, _said) = ready_session();
        let (slow, fast) = (session.exec(&any_exec()).unwrap(), session.exec(&any_exec()).unwrap());
        for _ in 0..2 {
            sent(&mut guest);
        }
        Frame::data(Kind::Stdout, slow.number(), &[1; 65536]).write_to(&mut guest).unwrap();
        // The slow one's window is shut now; the fast one gets a hundred windows of data through.
        let mut written = 0;
        let mut left = 65536usize;
        while written < 100 * 65536 {
            let now = left.min(16384);
            Frame::data(Kind::Stdout, fast.number(), &vec![2; now]).write_to(&mut guest).unwrap();
            (written, left) = (written + now, left - now);
            let mut taken = 0;
            while taken < now {
                match fast.next(4096, SOON) {
                    ChannelSaid::Output(_, data) => {
                        session.taken(&fast, data.len()).unwrap();
                        taken += data.len();
                    }
                    other => panic!("{other:?}"),
                }
            }
            while left == 0 {
                let frame = sent(&mut guest);
                assert_eq!((frame.kind, frame.channel), (Kind::Window, fast.number()));
                left += frame.parse::<Window>().unwrap().bytes as usize;
            }
        }
        assert!(matches!(slow.next(65536, SOON), ChannelSaid::Output(_, data) if data.len() == 65536));
    }

    #[test]
    fn input_beyond_the_window_waits_and_ends_with_its_caller() {
        let (mut guest, session, _said) = ready_session();
        let one = session.exec(&any_exec()).unwrap();
        sent(&mut guest);
        let window = limits::EXEC_INPUT_WINDOW_BYTES as usize;
        let (feeding, to) = (session.clone(), one.clone());
        let feeder = std::thread::spawn(move || feeding.stdin(&to, &vec![7; 2 * 65536 + 5], &|| true));
        let mut came = 0;
        while came < window {
            came += sent(&mut guest).payload.len();
        }
        assert_eq!(came, window, "not one byte more than the window");
        Frame::json(Kind::Window, one.number(), &Window { bytes: 5 }).unwrap().write_to(&mut guest).unwrap();
        assert_eq!(sent(&mut guest).payload.len(), 5);
        feeder.join().unwrap().unwrap();
        assert!(matches!(session.stdin(&one, b"x", &|| false), Err(SessionError::CallerGone)));
    }

    #[test]
    fn a_held_guest_gets_no_input_and_all_the_time_it_needs() {
        let (mut guest, mut session, said) = ready_session();
        let one = session.exec(&any_exec()).unwrap();
        sent(&mut guest);
        session.hold();
        let (feeding, to) = (session.clone(), one.clone());
        let feeder = std::thread::spawn(move || feeding.stdin(&to, b"late", &|| true));
        guest.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        assert!(matches!(Frame::read_from(&mut guest), Err(FrameError::Io(_))), "input reached a held guest");
        session.release();
        guest.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(sent(&mut guest).payload, b"late");
        feeder.join().unwrap().unwrap();
        drop((guest, said));
        // Nothing it is sent while held counts against it, however long it leaves it unread.
        let (guest, host) = UnixStream::pair().unwrap();
        session = Arc::new(Session { patience: Duration::from_millis(100), ..Session::new(&host).unwrap() });
        session.stream.lock().unwrap().set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        session.hold();
        let stuck = session.clone();
        let writer = std::thread::spawn(move || {
            (0..200).try_for_each(|_| stuck.send(&Frame::data(Kind::Stdin, 1, &[0; 65536])))
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(!writer.is_finished(), "a held guest was given up");
        let reader = std::thread::spawn(move || std::io::copy(&mut &guest, &mut std::io::sink()));
        writer.join().unwrap().unwrap();
        drop((session, host));
        reader.join().unwrap().unwrap();
    }

    #[test]
    fn an_abandoned_exec_is_killed_and_can_still_end() {
        let (mut guest, session, _said) = ready_session();
        let one = session.exec(&any_exec()).unwrap();
        sent(&mut guest);
        session.abandon(&one).unwrap();
        assert_eq!(sent(&mut guest).parse::<Signal>().unwrap().signal, 9);
        for _ in 0..10 {
            Frame::data(Kind::Stdout, one.number(), &[0; 65536]).write_to(&mut guest).unwrap();
            assert_eq!(sent(&mut guest).parse::<Window>().unwrap().bytes, 65536);
        }
        exit(one.number()).write_to(&mut guest).unwrap();
        assert!(matches!(one.next(10, SOON), ChannelSaid::Exited(_)));
        assert_eq!(session.execs_running(), 0);
    }

    #[test]
    fn a_guest_that_does_not_read_is_given_up_and_the_reason_kept() {
        let (guest, host) = UnixStream::pair().unwrap();
        let session = Session { patience: Duration::from_millis(50), ..Session::new(&host).unwrap() };
        session.stream.lock().unwrap().set_write_timeout(Some(Duration::from_millis(10))).unwrap();
        let frame = Frame::data(Kind::Stdin, 1, &[0; 65536]);
        let sent = (0..1000).map(|_| session.send(&frame)).find(Result::is_err);
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
        let open: Vec<_> =
            (0..limits::EXECS_PER_AGENT_MAX).map(|_| session.exec(&any_exec()).unwrap()).collect();
        assert!(matches!(session.exec(&any_exec()), Err(SessionError::TooManyExecs)));
        assert!(open.windows(2).all(|pair| pair[0].number() < pair[1].number()));
    }

    #[test]
    fn sync_and_health_reach_the_life() {
        let (mut guest, session, said) = ready_session();
        session.sync().unwrap();
        assert_eq!(sent(&mut guest).kind, Kind::Sync);
        Frame::data(Kind::Synced, 0, b"").write_to(&mut guest).unwrap();
        assert!(matches!(said.recv_timeout(SOON).unwrap(), Said::Synced));
        let health = Health { healthy: false, detail: "no".into() };
        Frame::json(Kind::Health, 0, &health).unwrap().write_to(&mut guest).unwrap();
        assert!(matches!(said.recv_timeout(SOON).unwrap(), Said::Health(heard) if heard == health));
    }
}
