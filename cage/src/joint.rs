//! One call joined to one channel of a guest: its output to the caller, his input to it, until either ends.
//!
//! Must hold: a caller that goes away, says what is not legal or does not read takes the channel's processes with him; what waits
//! in between is bounded by the channel's windows. Two threads each: this one listens, another one tells.

use abi::door::{Call, Outcome};
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use abi::{limits, log};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::{Note, STALL_MAX, Teller, hung_up};
use crate::ending::harmless;
use crate::guest::{Channel, ChannelSaid, Session, SessionError};
use crate::output::CHUNK_BYTES_MAX;

/// How long is waited for whom.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a caller who takes nothing.
    stall: Duration,
    /// For the last word of a killed channel. Then the caller is answered without it.
    last: Duration,
}

const PATIENCE: Patience = Patience { stall: STALL_MAX, last: Duration::from_secs(10) };

/// How often each side looks at what the other one found.
const STEP: Duration = Duration::from_millis(500);
const SIGKILL: i32 = 9;

/// What the caller may do, and for how long.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    pub input: bool,
    pub signals: bool,
    pub resize: bool,
    pub time_limit: Option<Duration>,
}

impl From<SessionError> for RpcError {
    fn from(error: SessionError) -> RpcError {
        let code = if matches!(error, SessionError::TooManyExecs) { Code::LIMIT } else { Code::FAILED };
        RpcError::new(code, error.to_string())
    }
}

#[derive(Debug)]
struct Joint {
    session: Arc<Session>,
    channel: Arc<Channel>,
    patience: Patience,
    /// Decided here, whatever the channel says in the end; and when.
    verdict: Mutex<Option<(RpcError, Instant)>>,
    is_gone: AtomicBool,
}

/// Passes everything between the two, and answers with how it ended.
pub fn join(
    call: Call<'_>,
    session: &Arc<Session>,
    channel: Arc<Channel>,
    terms: Terms,
) -> Result<Outcome, RpcError> {
    join_within(PATIENCE, call, session, channel, terms)
}

fn join_within(
    patience: Patience,
    call: Call<'_>,
    session: &Arc<Session>,
    channel: Arc<Channel>,
    terms: Terms,
) -> Result<Outcome, RpcError> {
    let joint = Arc::new(Joint {
        session: session.clone(),
        channel,
        patience,
        verdict: Mutex::default(),
        is_gone: AtomicBool::new(false),
    });
    let telling = joint.clone();
    let started = Teller::new(&call, patience.stall).and_then(|teller| {
        let thread = std::thread::Builder::new().name("exec".into()).stack_size(128 * 1024);
        let tell = move || telling.tell(teller);
        thread.spawn(tell).map_err(|error| RpcError::new(Code::FAILED, format!("no thread: {error}")))
    });
    if let Err(error) = started {
        joint.abandon();
        return Err(error);
    }
    joint.listen(call, terms);
    Ok(Outcome::Answered)
}

impl Joint {
    fn abandon(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
        if self.channel.is_over() {
            return;
        }
        if let Err(error) = self.session.abandon(&self.channel) {
            log::info("exec_not_killed", &[("error", &error)]); // its VM is gone
        }
    }

    /// Ends the channel, for a reason that the caller is told.
    fn decide(&self, why: RpcError) {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if verdict.is_some() {
            return; // the first one stays
        }
        *verdict = Some((why, Instant::now()));
        drop(verdict);
        if let Err(error) = self.session.signal(&self.channel, SIGKILL) {
            log::info("exec_not_killed", &[("error", &error)]); // its VM is gone
        }
    }

    fn decided(&self) -> Option<(RpcError, Instant)> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what the caller sends until the connection ends: his own end, or ours after the answer.
    fn listen(&self, call: Call<'_>, terms: Terms) {
        let until = terms.time_limit.map(|limit| (Instant::now() + limit, limit));
        let Ok(stream) = call.connection.stream().try_clone() else { return self.abandon() };
        if stream.set_read_timeout(Some(STEP)).is_err() {
            return self.abandon();
        }
        let goes_on = || {
            if let Some((_, limit)) = until.filter(|(end, _)| Instant::now() >= *end) {
                self.decide(too_long(limit));
            }
            !hung_up(&stream) && self.decided().is_none()
        };
        loop {
            let line = match call.connection.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(WireError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    goes_on();
                    continue;
                }
                Err(_) => break,
            };
            goes_on();
            match Note::parse(&line).and_then(|note| self.hear(note, terms, &goes_on)) {
                Ok(()) => {}
                Err(error) if hung_up(&stream) => {
                    log::info("caller_lost", &[("caller", call.caller), ("error", &error)]);
                    break;
                }
                Err(error) => self.decide(error),
            }
        }
        self.abandon();
    }

    fn hear(&self, note: Note, terms: Terms, goes_on: &dyn Fn() -> bool) -> Result<(), RpcError> {
        let illegal = |what: &str| Err(RpcError::new(Code::INVALID_REQUEST, format!("{what} in this call")));
        let done = match note {
            Note::Stdin(_) if !terms.input => return illegal("no `stdin` is taken"),
            Note::Signal(_) if !terms.signals => return illegal("no `signal` is taken"),
            Note::Resize(_) if !terms.resize => return illegal("there is no terminal to `resize`"),
            Note::Stdin(data) => self.session.stdin(&self.channel, &data, goes_on),
            Note::Signal(signal) => self.session.signal(&self.channel, signal),
            Note::Resize(size) => self.session.resize(&self.channel, size),
        };
        match done {
            // Its end crossed the caller's words on the way; who tells will say so.
            Err(SessionError::Ended | SessionError::CallerGone) => Ok(()),
            other => Ok(other?),
        }
    }

    fn tell(&self, mut teller: Teller) {
        let outcome = self.until_the_end(&mut teller);
        if let Err(error) = teller.answer(outcome) {
            log::info("call_not_answered", &[("error", &error)]);
        }
    }

    /// None: there is nobody left to answer.
    fn until_the_end(&self, teller: &mut Teller) -> Option<Result<Value, RpcError>> {
        loop {
            let said = self.channel.next(CHUNK_BYTES_MAX, STEP);
            let verdict = self.decided();
            let ended = match said {
                ChannelSaid::Output(stream, data) => {
                    let passed = teller.output(stream, &data);
                    if let Err(error) = passed {
                        log::info("caller_lost", &[("error", &error)]);
                        self.abandon();
                        return None;
                    }
                    if let Err(error) = self.session.taken(&self.channel, data.len()) {
                        log::info("window_not_told", &[("error", &error)]); // its VM is gone
                    }
                    continue;
                }
                ChannelSaid::Nothing if self.is_gone.load(Ordering::Relaxed) => return None,
                ChannelSaid::Nothing => match verdict {
                    Some((why, since)) if since.elapsed() > self.patience.last => return Some(Err(why)),
                    _ => continue,
                },
                ChannelSaid::Exited(exit) => Ok(json!(exit)),
                ChannelSaid::VmEnded => Err(RpcError::new(Code::FAILED, "the agent's VM has ended")),
                ChannelSaid::Failed(failed) => {
                    let short = harmless(&failed.error, limits::GUEST_REASON_CHARS_MAX);
                    let stage = harmless(&failed.stage, 64);
                    Err(RpcError::new(Code::FAILED, format!("{stage}: {short}")).explained(
                        "the guest could not do it",
                        "check the path, the agent's grants and its rootfs",
                    ))
                }
            };
            return Some(verdict.map_or(ended, |(why, _)| Err(why)));
        }
    }
}

fn too_long(limit: Duration) -> RpcError {
    RpcError::new(Code::TIMEOUT, format!("it ran longer than {} ms and was killed", limit.as_millis()))
        .explained("the caller set `timeout_ms`", "give it more time, or look at what it waits for")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::fake::{call, heard, heard_out, stdin};
    use crate::guest::fake::{SOON, any_exec, exit, ready_session, sent};
    use abi::control::Stream;
    use abi::guest::{Frame, Kind, Signal, Window};
    use abi::rpc::Request;
    use abi::wire::Connection;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread::{JoinHandle, spawn};

    const ALL: Terms = Terms { input: true, signals: true, resize: true, time_limit: None };
    const SHORT: Duration = Duration::from_millis(100);

    struct Bench {
        guest: UnixStream,
        session: Arc<Session>,
        number: u32,
        caller: Connection,
        served: JoinHandle<Result<Outcome, RpcError>>,
    }

    /// An exec that has begun, joined to a caller.
    fn bench(terms: Terms, patience: Patience) -> Bench {
        let (mut guest, session, _) = ready_session();
        let channel = session.exec(&any_exec()).unwrap();
        let number = channel.number();
        assert_eq!(sent(&mut guest).kind, Kind::Exec);
        let joined = session.clone();
        let (caller, served) = call(move |call| join_within(patience, call, &joined, channel, terms));
        Bench { guest, session, number, caller, served }
    }

    /// The guest is told to kill the channel; what else it is told on the way does not matter.
    fn is_killed(guest: &mut UnixStream, number: u32) {
        loop {
            let frame = sent(guest);
            if frame.kind == Kind::Signal {
                assert_eq!((frame.channel, frame.parse::<Signal>().unwrap().signal), (number, SIGKILL));
                return;
            }
        }
    }

    #[test]
    fn a_caller_who_hangs_up_takes_the_channel_with_him() {
        let Bench { mut guest, session, number, caller, served } = bench(ALL, PATIENCE);
        drop(caller);
        is_killed(&mut guest, number);
        exit(number).write_to(&mut guest).unwrap();
        served.join().unwrap().unwrap();
        // His channel is free again once its end was heard.
        let until = Instant::now() + SOON;
        while session.execs_running() > 0 {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_caller_who_hangs_up_while_his_input_waits_takes_the_channel_with_him() {
        let Bench { mut guest, number, mut caller, served, .. } = bench(ALL, PATIENCE);
        // The guest takes none: four fill the window, the fifth waits in the host and the sixth in the socket. No more than these: a
        // writer that found the socket full goes on when three quarters of it are free again (unix_write_space in Linux's af_unix.c),
        // which the host, that reads no further, need not bring about.
        for _ in 0..6 {
            caller.write_line(&stdin(&[7; 32 * 1024])).unwrap();
        }
        drop(caller);
        is_killed(&mut guest, number);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_caller_who_reads_nothing_is_given_up() {
        let Bench { mut guest, number, caller, served, .. } =
            bench(ALL, Patience { stall: SHORT, ..PATIENCE });
        // As much as the host takes, until it kills the channel.
        let mut left = any_exec().window_bytes as usize;
        loop {
            while left > 0 {
                let now = left.min(16 * 1024);
                Frame::data(Kind::Stdout, number, &vec![b'x'; now]).write_to(&mut guest).unwrap();
                left -= now;
            }
            let frame = sent(&mut guest);
            if frame.kind == Kind::Signal {
                assert_eq!(frame.parse::<Signal>().unwrap().signal, SIGKILL);
                break;
            }
            left += frame.parse::<Window>().unwrap().bytes as usize;
        }
        served.join().unwrap().unwrap();
        drop(caller); // he was there all the time
    }

    #[test]
    fn an_illegal_note_ends_the_channel_with_the_error_that_names_it() {
        let none = Terms::default();
        let note = |method: &str, params: Value| Request::notification(method, params);
        for (terms, note, expected) in [
            (none, stdin(b"x"), "no `stdin` is taken"),
            (none, note("signal", json!({"signal": 15})), "no `signal` is taken"),
            (none, note("resize", json!({"rows": 24, "columns": 80})), "no terminal to `resize`"),
            (ALL, note("stdin", json!({"data": "?"})), "stdin"),
            (ALL, note("signal", json!({"signal": 64})), "signal 64 is not one of 1 to 31"),
            (ALL, note("resize", json!({"rows": 0, "columns": 80})), "0 rows"),
            (ALL, note("agent.stop", json!({})), "`agent.stop` is not legal"),
        ] {
            let Bench { mut guest, number, mut caller, served, .. } = bench(terms, PATIENCE);
            caller.write_line(&note).unwrap();
            is_killed(&mut guest, number);
            Frame::data(Kind::Stdout, number, b"last words").write_to(&mut guest).unwrap();
            exit(number).write_to(&mut guest).unwrap();
            let (bytes, answer) = heard_out(&mut caller);
            let error = answer.unwrap_err();
            assert!(error.message.contains(expected), "{expected}: {error}");
            assert_eq!(bytes, b"last words");
            served.join().unwrap().unwrap();
        }
    }

    #[test]
    fn what_is_no_note_at_all_ends_the_channel() {
        let Bench { mut guest, number, mut caller, served, .. } = bench(ALL, PATIENCE);
        caller.stream().write_all(b"garbage\n").unwrap();
        is_killed(&mut guest, number);
        exit(number).write_to(&mut guest).unwrap();
        assert_eq!(heard_out(&mut caller).1.unwrap_err().code, Code::INVALID_REQUEST);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn the_time_limit_kills_and_says_so_even_where_the_guest_says_nothing_more() {
        let terms = Terms { time_limit: Some(SHORT), ..ALL };
        for answers in [true, false] {
            let Bench { mut guest, number, mut caller, served, .. } =
                bench(terms, Patience { last: SHORT, ..PATIENCE });
            is_killed(&mut guest, number);
            if answers {
                exit(number).write_to(&mut guest).unwrap();
            }
            let error = heard_out(&mut caller).1.unwrap_err();
            assert_eq!(error.code, Code::TIMEOUT);
            assert!(error.message.contains("longer than 100 ms"), "{error}");
            served.join().unwrap().unwrap();
        }
    }

    #[test]
    fn the_vms_end_is_the_channels_end() {
        let Bench { guest, mut caller, served, .. } = bench(ALL, PATIENCE);
        drop(guest);
        assert!(heard_out(&mut caller).1.unwrap_err().message.contains("VM has ended"));
        served.join().unwrap().unwrap();
    }

    /// A guest that says what it hears, each way within its window, and ends after the end of its input.
    fn echo(mut guest: UnixStream, number: u32) -> UnixStream {
        let (mut waiting, mut owed) = (std::collections::VecDeque::new(), 0u32);
        let (mut room, mut is_end) = (any_exec().window_bytes as usize, false);
        let mut may_come = limits::EXEC_INPUT_WINDOW_BYTES as usize;
        while !is_end || !waiting.is_empty() {
            let frame = sent(&mut guest);
            match frame.kind {
                Kind::Window => room += frame.parse::<Window>().unwrap().bytes as usize,
                Kind::Stdin if frame.payload.is_empty() => is_end = true,
                Kind::Stdin => {
                    may_come = may_come.checked_sub(frame.payload.len()).expect("more than the window");
                    waiting.extend(frame.payload);
                }
                other => panic!("{other:?}"),
            }
            let now = waiting.len().min(room);
            let echoed: Vec<u8> = waiting.drain(..now).collect();
            for part in echoed.chunks(20_000) {
                Frame::data(Kind::Stdout, number, part).write_to(&mut guest).unwrap();
            }
            (room, owed) = (room - now, owed + now as u32);
            if owed >= limits::EXEC_INPUT_WINDOW_BYTES / 2 {
                Frame::json(Kind::Window, number, &Window { bytes: owed })
                    .unwrap()
                    .write_to(&mut guest)
                    .unwrap();
                may_come += std::mem::take(&mut owed) as usize;
            }
        }
        exit(number).write_to(&mut guest).unwrap();
        guest
    }

    #[test]
    fn megabytes_go_both_ways_at_once_in_order_and_whole() {
        const BYTES: usize = 4 << 20;
        let Bench { guest, number, mut caller, served, .. } = bench(ALL, PATIENCE);
        let guest = spawn(move || echo(guest, number));
        let sent: Vec<u8> = (0..BYTES).map(|at| (at / 253 + at) as u8).collect();
        let (feeding, mut writer) = (sent.clone(), caller.writer().unwrap());
        let feeder = spawn(move || {
            feeding.chunks(32 * 1024).for_each(|part| writer.write_line(&stdin(part)).unwrap());
            writer.write_line(&stdin(b"")).unwrap();
        });
        let (mut came, mut next) = (Vec::with_capacity(BYTES), 0);
        let answer = loop {
            match heard(&mut caller) {
                Ok(chunk) => {
                    assert_eq!((chunk.seq, chunk.stream), (next, Stream::Stdout));
                    next += 1;
                    came.extend(chunk.data);
                }
                Err(answer) => break answer.unwrap(),
            }
        };
        assert!(came == sent, "{} of {BYTES} bytes", came.len());
        assert_eq!(answer["code"], 3);
        feeder.join().unwrap();
        served.join().unwrap().unwrap();
        drop(guest.join().unwrap());
    }
}
