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
    stay(call, living, want.replay)
}

/// Joins a caller to a life's own command until either ends.
fn stay(call: Call<'_>, living: Living, replay: bool) -> Result<Outcome, RpcError> {
    let attached = Arc::new(Attached {
        next: if replay { 0 } else { living.agent.log.tail(Some(0)).1 },
        _attendance: living.agent.attend(),
        living,
        refused: Mutex::default(),
        is_gone: AtomicBool::new(false),
    });
    let (teller, telling) = (Teller::new(&call, caller::STALL_MAX)?, attached.clone());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Agent;
    use crate::caller::fake::{call, heard, heard_out, stdin};
    use crate::guest::fake::{SOON, ready_session, sent};
    use crate::manifests::Loaded;
    use crate::state::Happening;
    use abi::control::Stream;
    use abi::guest::{Exit, Kind, Signal};
    use abi::ids::Digest;
    use abi::rpc::Request;
    use abi::wire::Connection;
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;
    use std::time::Instant;

    struct Bench {
        guest: UnixStream,
        living: Box<dyn Fn() -> Living>,
        agent: Arc<Agent>,
        _dir: tempfile::TempDir,
    }

    /// An agent that runs, with these fields in its manifest.
    fn bench(fields: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/bin/x\"]\n{fields}"
        );
        let manifest = abi::manifest::parse("a.toml", &text).unwrap();
        let loaded = Loaded { manifest, digest: Digest([0; 32]), file: "a.toml".into() };
        let (guest, session, _) = ready_session();
        let agent = Arc::new(Agent::new("a".parse().unwrap(), dir.path()));
        let (mail, _) = std::sync::mpsc::sync_channel(1);
        agent.update(|facts| {
            facts.begin("a.7".parse().unwrap(), loaded.clone(), mail, Instant::now(), 0);
            facts.state.let_happen(Happening::StartAsked).unwrap();
            facts.state.let_happen(Happening::Ready).unwrap();
        });
        let alive = agent.clone();
        let living = move || Living {
            agent: alive.clone(),
            instance: "a.7".parse().unwrap(),
            loaded: loaded.clone(),
            session: session.clone(),
        };
        Bench { guest, living: Box::new(living), agent, _dir: dir }
    }

    type Served = JoinHandle<Result<Outcome, RpcError>>;

    impl Bench {
        /// Attaches somebody, who is heard from now on.
        fn attach(&self, replay: bool) -> (Connection, Served) {
            let living = (self.living)();
            call(move |call| stay(call, living, replay))
        }

        /// Attaches somebody who has heard `word`, so that he is there.
        fn attach_hearing(&self, word: &[u8]) -> (Connection, Served) {
            let (mut caller, served) = self.attach(true);
            self.agent.log.append(Stream::Stdout, word);
            let mut came = Vec::new();
            while !came.ends_with(word) {
                came.extend(heard(&mut caller).unwrap().data);
            }
            (caller, served)
        }

        fn end(&self) {
            let exit = Exit { code: Some(3), signal: None, oom_killed: false, dropped_bytes: 0 };
            self.agent.update(|facts| {
                facts.exit = Some(exit);
                facts.end(Happening::EndedByItself, "it ended".into());
            });
        }
    }

    #[test]
    fn leaving_leaves_the_command_alone() {
        let mut bench = bench("stdin = true\n");
        let (mut caller, served) = bench.attach_hearing(b"hi");
        assert!(bench.agent.is_attended());
        caller.write_line(&stdin(b"x")).unwrap();
        assert_eq!((sent(&mut bench.guest).kind, bench.agent.is_attended()), (Kind::Stdin, true));
        drop(caller);
        served.join().unwrap().unwrap();
        let until = Instant::now() + SOON;
        while bench.agent.is_attended() {
            assert!(Instant::now() < until, "he is still there");
            std::thread::yield_now();
        }
        // What the guest hears next is what it is told now: neither a signal nor the end of its input came before.
        (bench.living)().session.sync().unwrap();
        assert_eq!(sent(&mut bench.guest).kind, Kind::Sync);
        assert!(state::alive(bench.agent.facts().state.now()));
    }

    #[test]
    fn any_number_watch_and_one_at_a_time_writes() {
        let mut bench = bench("stdin = true\n");
        let (mut first, first_served) = bench.attach_hearing(b"one");
        first.write_line(&stdin(b"mine")).unwrap();
        assert_eq!(sent(&mut bench.guest).payload, b"mine");
        let (mut second, second_served) = bench.attach_hearing(b"two");
        assert_eq!(heard(&mut first).unwrap().data, b"two");
        second.write_line(&stdin(b"too")).unwrap();
        let error = heard_out(&mut second).1.unwrap_err();
        assert_eq!(error.code, Code::CONFLICT);
        assert!(error.message.contains("somebody else writes"), "{error}");
        second_served.join().unwrap().unwrap();
        drop(first);
        first_served.join().unwrap().unwrap();
        let (mut third, _served) = bench.attach_hearing(b"three");
        third.write_line(&stdin(b"now mine")).unwrap();
        assert_eq!(sent(&mut bench.guest).payload, b"now mine");
    }

    #[test]
    fn replay_begins_with_what_the_log_has_and_nothing_else_does() {
        let bench = bench("");
        bench.agent.log.append(Stream::Stderr, b"old ");
        let (mut new, _) = bench.attach(false);
        let until = Instant::now() + SOON;
        while !bench.agent.is_attended() {
            assert!(Instant::now() < until, "he is not there");
            std::thread::yield_now();
        }
        let (mut all, _) = bench.attach(true);
        assert_eq!(heard(&mut all).unwrap().data, b"old ");
        bench.agent.log.append(Stream::Stdout, b"new");
        bench.end();
        assert_eq!(heard_out(&mut all).0, b"new");
        assert_eq!(heard_out(&mut new).0, b"new");
    }

    #[test]
    fn the_commands_end_answers_with_its_exit_after_its_last_output() {
        let bench = bench("");
        let (mut caller, served) = bench.attach_hearing(b"begun");
        for number in 0..100u8 {
            bench.agent.log.append(Stream::Stdout, &[number; 1000]);
        }
        bench.end();
        let (bytes, answer) = heard_out(&mut caller);
        assert_eq!(answer.unwrap()["code"], 3);
        assert!(bytes == (0..100u8).flat_map(|number| [number; 1000]).collect::<Vec<_>>());
        served.join().unwrap().unwrap();
    }

    #[test]
    fn an_end_without_an_exit_says_why() {
        let bench = bench("");
        let (mut caller, _) = bench.attach_hearing(b"begun");
        bench.agent.update(|facts| facts.end(Happening::Broke, "its VM was killed".into()));
        let error = heard_out(&mut caller).1.unwrap_err();
        assert_eq!(error.message, "a.7 has ended: its VM was killed");
    }

    #[test]
    fn what_the_manifest_does_not_give_is_refused_by_name() {
        for (note, field) in [
            (stdin(b"x"), "agent.stdin"),
            (Request::notification("resize", json!({"rows": 24, "columns": 80})), "agent.tty"),
        ] {
            let mut bench = bench("");
            let (mut caller, served) = bench.attach(true);
            caller.write_line(&note).unwrap();
            let error = heard_out(&mut caller).1.unwrap_err();
            assert_eq!(error.code, Code::DENIED);
            assert!(error.data.as_ref().is_some_and(|data| data.rule.contains(field)), "{error:?}");
            served.join().unwrap().unwrap();
            (bench.living)().session.sync().unwrap();
            assert_eq!(sent(&mut bench.guest).kind, Kind::Sync, "the refused note reached the guest");
        }
    }

    #[test]
    fn a_signal_reaches_the_command() {
        let mut bench = bench("");
        let (mut caller, _) = bench.attach(true);
        caller.write_line(&Request::notification("signal", json!({"signal": 2}))).unwrap();
        let frame = sent(&mut bench.guest);
        assert_eq!((frame.channel, frame.parse::<Signal>().unwrap().signal), (0, 2));
    }
}
