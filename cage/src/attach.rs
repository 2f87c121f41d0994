//! `agent.attach`: the streams of an agent's own command on a caller's connection.
//!
//! Must hold: any number may watch, one at a time writes: whoever wrote first, until he leaves. A slow watcher sees a gap in
//! `seq`; he holds up nobody. Leaving ends nothing.

use abi::control::AgentAttach;
use abi::door::{Call, Outcome};
use abi::ledger::Event;
use abi::log;
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::agent::Attendance;
use crate::agents::Cage;
use crate::caller::{self, Note, Teller, hung_up};
use crate::exec::{Living, receipt};
use crate::guest::SessionError;
use crate::state;

/// How often each side looks whether the other has ended.
const STEP: Duration = Duration::from_millis(500);

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let want: AgentAttach = call.request.params()?;
    let size = want.terminal.map(caller::terminal).transpose()?;
    let living = Living::find(cage, &want.name, true)?;
    let by = call.caller.to_string();
    receipt(cage, Event::AgentAttached { instance: living.instance.clone(), by: by.clone() }, "attach")?;
    cage.events.push(&want.name, "attached", &by);
    if let Some(size) = size.filter(|_| living.loaded.manifest.tty) {
        living.session.resize(living.session.main(), size)?;
    }
    let attached = Arc::new(Attached {
        next: if want.replay { 0 } else { living.agent.log.tail(Some(0)).1 },
        _attendance: living.agent.attend(),
        living,
        refused: Mutex::default(),
        is_gone: AtomicBool::new(false),
    });
    let (teller, telling) = (Teller::new(&call)?, attached.clone());
    std::thread::Builder::new()
        .name("attach".into())
        .stack_size(128 * 1024)
        .spawn(move || telling.tell(teller))
        .map_err(|error| RpcError::new(Code::FAILED, format!("no thread: {error}")))?;
    attached.listen(call);
    Ok(Outcome::Answered)
}

#[derive(Debug)]
struct Attached {
    living: Living,
    _attendance: Attendance,
    /// Position in the agent's log to begin with.
    next: u64,
    /// Why the call ends before the life does.
    refused: Mutex<Option<RpcError>>,
    is_gone: AtomicBool,
}

/// The one who writes, until dropped.
struct Writing<'a>(&'a Attached);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.living.session.leave_main();
    }
}

impl Attached {
    fn listen(&self, call: Call<'_>) {
        let mut writing = None;
        let stream = call.connection.stream().try_clone();
        let ready = stream.and_then(|stream| stream.set_read_timeout(Some(STEP)).map(|()| stream));
        let Ok(stream) = ready else { return self.leave() };
        loop {
            let line = match call.connection.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(WireError::Io(error)) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => break,
            };
            let stays = || !hung_up(&stream);
            if let Err(error) = Note::parse(&line).and_then(|note| self.hear(note, &mut writing, &stays)) {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.living.agent.log.wake();
                break;
            }
        }
        drop(writing);
        self.leave();
    }

    fn leave(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
        self.living.agent.log.wake();
    }

    fn hear<'a>(
        &'a self,
        note: Note,
        writing: &mut Option<Writing<'a>>,
        stays: &dyn Fn() -> bool,
    ) -> Result<(), RpcError> {
        let (manifest, session) = (&self.living.loaded.manifest, &self.living.session);
        let done = match note {
            Note::Stdin(_) if !manifest.stdin => {
                return Err(not_granted("stdin", "standard input is closed"));
            }
            Note::Resize(_) if !manifest.tty => return Err(not_granted("tty", "there is no terminal")),
            Note::Stdin(data) => {
                if writing.is_none() {
                    if !session.take_main() {
                        return Err(written_already());
                    }
                    *writing = Some(Writing(self));
                }
                session.stdin(session.main(), &data, stays)
            }
            Note::Signal(signal) => session.signal(session.main(), signal),
            Note::Resize(size) => session.resize(session.main(), size),
        };
        match done {
            // The command's end crossed the caller's words on the way; who tells will say so.
            Err(SessionError::Ended | SessionError::CallerGone) => Ok(()),
            other => Ok(other?),
        }
    }

    fn tell(&self, mut teller: Teller) {
        let outcome = self.until_the_end(&mut teller);
        if let Err(error) = teller.answer(outcome) {
            log::info("attach_not_answered", &[("error", &error)]);
        }
    }

    /// None: there is nobody left to answer.
    fn until_the_end(&self, teller: &mut Teller) -> Option<Result<Value, RpcError>> {
        let mut next = self.next;
        loop {
            // Looked at first: what the log has afterwards is all of it.
            let end = self.end();
            for chunk in self.living.agent.log.follow(next, STEP) {
                next = chunk.seq + 1;
                if let Err(error) = teller.chunk(&chunk) {
                    log::info("caller_lost", &[("error", &error)]);
                    return None;
                }
            }
            if let Some(why) = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Some(Err(why));
            }
            if self.is_gone.load(Ordering::Relaxed) {
                return None;
            }
            if end.is_some() && self.living.agent.log.tail(Some(0)).1 <= next {
                return end;
            }
        }
    }

    /// How the life ended, if it has.
    fn end(&self) -> Option<Result<Value, RpcError>> {
        let facts = self.living.agent.facts();
        let is_ours = facts.instance.as_ref() == Some(&self.living.instance);
        if is_ours && state::alive(facts.state.now()) {
            return None;
        }
        if let (true, Some(exit)) = (is_ours, &facts.exit) {
            return Some(Ok(json!(exit)));
        }
        let why = match (is_ours, facts.detail.is_empty()) {
            (false, _) => "a later life began".to_owned(),
            (true, true) => "it was stopped".to_owned(),
            (true, false) => facts.detail.clone(),
        };
        Some(Err(RpcError::new(Code::FAILED, format!("{} has ended: {why}", self.living.instance))))
    }
}

fn not_granted(field: &str, what: &str) -> RpcError {
    RpcError::new(Code::DENIED, format!("the agent's command takes no such thing: {what}")).explained(
        format!("agent.{field} of the manifest is false"),
        format!("set {field} = true under [agent] and start the agent anew"),
    )
}

fn written_already() -> RpcError {
    RpcError::new(Code::CONFLICT, "somebody else writes this agent's input").explained(
        "one caller at a time writes: who wrote first, until he leaves",
        "watch only, or wait until he has detached",
    )
}
