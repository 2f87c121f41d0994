//! One call joined to one channel of a guest: its output to the caller, his input to it, until either ends.
//!
//! Must hold: a caller that goes away, says what is not legal or does not read takes the channel's processes with him; what waits
//! in between is bounded by the channel's windows. Two threads each: this one listens, another one tells.

use abi::door::{Call, Outcome};
use abi::log;
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::{Note, Teller, hung_up};
use crate::guest::{Channel, ChannelSaid, Session, SessionError};
use crate::output::CHUNK_BYTES_MAX;

/// How long a killed channel may take to say its last. Then the caller is answered without it.
const LAST_MAX: Duration = Duration::from_secs(10);
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
    let joint = Arc::new(Joint {
        session: session.clone(),
        channel,
        verdict: Mutex::default(),
        is_gone: AtomicBool::new(false),
    });
    let telling = joint.clone();
    let started = Teller::new(&call).and_then(|teller| {
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
                    Some((why, since)) if since.elapsed() > LAST_MAX => return Some(Err(why)),
                    _ => continue,
                },
                ChannelSaid::Exited(exit) => Ok(json!(exit)),
                ChannelSaid::VmEnded => Err(RpcError::new(Code::FAILED, "the agent's VM has ended")),
                ChannelSaid::Failed(failed) => {
                    let short: String = failed.error.chars().filter(|c| !c.is_control()).take(500).collect();
                    let stage: String = failed.stage.chars().filter(|c| !c.is_control()).take(64).collect();
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
