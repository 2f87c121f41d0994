//! The course of one call: read, decided, receipted, answered.
//!
//! Must hold: the order is decision, reservation, receipt, effect, exposure, answer; a step that fails ends it with a refusal that says
//! which. What is asked for is decided again when it is used. Must never: hold the desk's state while a peer or a human is waited for.

use abi::authority::{Amounts, Call, Decision, PathPattern, Risk, Verdict};
use abi::control::NetFetch;
use abi::exposure::Exposure;
use abi::ids::{Digest, Name};
use abi::ledger::Event;
use abi::rpc::RpcError;
use abi::tools::{self, Answer, Go, Refused};
use abi::{limits, log};
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use verdict::approvals::Actor;
use verdict::budget::{Exhausted, Reservation};
use verdict::decide::decide;

use super::bounds::{LOOK, Watch};
use super::questions::{self, Shown};
use super::reading::{self, Job, Reading};
use super::{Claim, Desk, Open, THREAD_STACK_BYTES, digest_of};
use crate::output::unix_ms;

/// Characters of what a host says of its page's type, and of why a claim came to what it did.
const TYPE_CHARS_MAX: usize = 200;
const JUDGED_CHARS_MAX: usize = 2000;

/// A call on its way.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) channel: u32,
    pub(super) tool: String,
    pub(super) reading: Reading,
    pub(super) arguments: Digest,
    /// As `verdict` decides it; none of what rules are not written about. What flows in is looked up when it is decided.
    pub(super) call: Option<Call>,
}

/// What it may have.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) reservation: Reservation,
    pub(super) decision: Decision,
    pub(super) output_bytes_max: u64,
    pub(super) wall_ms_max: u64,
    pub(super) pass_over: Vec<PathPattern>,
    pub(super) approval: Option<Name>,
}

/// What becomes of it now.
#[derive(Debug)]
pub(super) enum Next {
    Go(Box<Grant>),
    Ask,
    /// A bound had no room when there had come to be more so often: it waits for more.
    Wait(Exhausted, u64),
    Refuse(Decision),
}

/// How fast calls are decided: so many at once, so many in a second.
#[derive(Debug)]
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    fn begin() -> Pace {
        Pace { left: limits::TOOL_CALLS_BURST_MAX, since: Instant::now() }
    }

    /// Waits for the next call's turn.
    fn keep(&mut self) {
        let one = Duration::from_secs(1) / limits::TOOL_CALLS_PER_SECOND_MAX;
        let earned = (self.since.elapsed().as_nanos() / one.as_nanos()) as u32;
        self.left = self.left.saturating_add(earned).min(limits::TOOL_CALLS_BURST_MAX);
        self.since += one * earned;
        if self.left == 0 {
            std::thread::sleep(one.saturating_sub(self.since.elapsed()));
            return self.keep();
        }
        self.left -= 1;
    }
}

pub(super) fn refusal(rule: &str, why: impl Into<String>, remedy: impl Into<String>) -> Decision {
    Decision {
        verdict: Verdict::Deny,
        rule: rule.to_owned(),
        why: why.into(),
        remedy: remedy.into(),
        risk: Risk::Low,
        exposure: Exposure::NONE,
        labels: Exposure::NONE,
    }
}

fn refused_by_peer(error: &RpcError) -> Decision {
    let (rule, remedy) = match &error.data {
        Some(data) => (data.rule.clone(), data.remedy.clone()),
        None => ("fetch".to_owned(), "try again, or look at `nullctl net denials`".to_owned()),
    };
    refusal(&rule, error.message.clone(), remedy)
}

impl Desk {
    /// Decides what comes, in its order, until the life is over.
    pub(super) fn serve(self: &Arc<Desk>) {
        let (mut pace, mut watch) = (Pace::begin(), Watch::begin());
        loop {
            let came = {
                let mut state = self.state();
                if state.is_over {
                    return;
                }
                if state.waiting.is_empty() {
                    state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
                }
                state.waiting.pop_front()
            };
            if let Some((channel, call)) = came {
                pace.keep();
                self.begin_course(channel, call);
            }
            self.look(&mut watch);
        }
    }

    fn begin_course(self: &Arc<Desk>, channel: u32, call: tools::Call) {
        let arguments = digest_of(call.params.as_bytes());
        let reading = match reading::read(&call, &self.tools) {
            Ok(reading) => reading,
            Err(wrong) => {
                let refused = Refused {
                    receipt: None,
                    rule: "parameters".into(),
                    why: wrong.why,
                    remedy: wrong.remedy,
                };
                return self.answer(channel, &Answer::Refused(refused), None);
            }
        };
        let asked = reading.operation.map(|operation| Call {
            operation,
            tool: call.tool.clone(),
            target: reading.target.clone(),
            arguments,
            pinned: if reading.is_program { self.pinned.rootfs } else { self.pinned.verifier },
            flows: Exposure::NONE,
            sealed: reading.sealed,
        });
        self.go_through(Course { channel, tool: call.tool, reading, arguments, call: asked });
    }

    /// Decides, and does what follows; what takes long on a thread of its own.
    fn go_through(self: &Arc<Desk>, course: Course) {
        let next = self.next(&course, None);
        let is_quick = match &next {
            Next::Refuse(_) => true,
            Next::Go(_) => matches!(course.reading.job, Job::Guest | Job::Memory),
            Next::Ask | Next::Wait(..) => false,
        };
        if is_quick {
            return self.follow(course, next);
        }
        let (desk, channel) = (self.clone(), course.channel);
        let thread = std::thread::Builder::new().name("call".into()).stack_size(THREAD_STACK_BYTES);
        if let Err(error) = thread.spawn(move || desk.follow(course, next)) {
            let why = format!("no thread for it: {error}");
            let refused = Refused { receipt: None, rule: "host".into(), why, remedy: "try again".into() };
            self.answer(channel, &Answer::Refused(refused), None);
        }
    }

    fn follow(self: &Arc<Desk>, course: Course, mut next: Next) {
        loop {
            match next {
                Next::Refuse(decision) => return self.refuse(&course, &decision, None),
                Next::Go(grant) => return self.go(&course, *grant),
                Next::Ask => return self.ask(&course),
                Next::Wait(full, refills) if self.await_room(full.bound, refills) => {}
                Next::Wait(..) => return, // the life is over
            }
            next = self.next(&course, None);
        }
    }

    /// Puts it to people and waits.
    fn ask(self: &Arc<Desk>, course: &Course) {
        let Some(call) = &course.call else { return }; // only what rules are written about is asked for
        let flows = self.state().exposed.flows(course.reading.references.iter().copied());
        let call = Call { flows, ..call.clone() };
        let ruling = {
            let state = self.state();
            let situation = self.situation(&state, course, unix_ms(), Amounts::default());
            decide(&state.authority, &self.policy, &situation, &call)
        };
        if !questions::is_asked(&ruling) {
            // Something changed since: it is decided as it is now, by the one way there is.
            let next = self.next(course, None);
            return match next {
                Next::Go(grant) => self.go(course, *grant),
                Next::Refuse(decision) => self.refuse(course, &decision, None),
                _ => self.refuse(
                    course,
                    &refusal("approval", "what it needs changed meanwhile", "try again"),
                    None,
                ),
            };
        }
        let shown = Shown {
            instance: Some(self.instance.clone()),
            task: self.task.clone(),
            what: course.reading.what.clone(),
            shown: course.reading.shown.clone(),
            is_cut: course.reading.is_cut,
        };
        let freezes = ruling.freezes();
        let answer = match self.questions.ask(Actor::Agent, &self.instance.to_string(), &ruling, shown) {
            Ok(id) => self.await_answer(id, freezes, &course.reading.what),
            Err(error) => {
                Err(refusal("approval", error.message, "wait until others are answered, and call it again"))
            }
        };
        let next = answer.map(|id| self.next(course, Some(id)));
        match next {
            Ok(Next::Go(grant)) => self.go(course, *grant),
            Ok(Next::Refuse(decision)) | Err(decision) => self.refuse(course, &decision, None),
            Ok(Next::Wait(full, refills)) => {
                self.exhaust(full.bound, refills);
                let why = format!("{full}; the approval was not used");
                self.refuse(course, &refusal("budget", why, "call it again, and it is asked again"), None);
            }
            Ok(Next::Ask) => {
                self.refuse(course, &refusal("approval", "it would be asked again", "call it again"), None);
            }
        }
    }

    /// The number of a question that was answered with yes; or why it was not.
    fn await_answer(self: &Arc<Desk>, id: u64, freezes: bool, what: &str) -> Result<u64, Decision> {
        let why = format!("a{id} waits for an answer");
        self.state().asking += 1;
        self.house.tell("asks", &format!("a{id}: {what}"));
        self.stands();
        // A critical call that is asked for while its VM runs on would be no critical one.
        let held = if freezes { self.hold(&why) } else { Ok(()) };
        let answer = match &held {
            Ok(()) => self.questions.wait(id, &|| !self.is_over()),
            Err(_) => {
                self.questions.forget(id);
                questions::Answer::Withdrawn
            }
        };
        self.state().asking -= 1;
        if freezes {
            self.unhold(&why, &format!("approval a{id}"));
        }
        self.stands();
        match (answer, held) {
            (questions::Answer::Approved { .. }, _) => Ok(id),
            (questions::Answer::Denied { by, reason }, _) => {
                let why = format!("a{id} was denied by {by}: {reason}");
                Err(refusal("approval", why, "do it another way, or ask the one who denied it"))
            }
            (questions::Answer::Withdrawn, Err(error)) => {
                let why = format!("the VM could not be let stand still for a{id}: {error}");
                Err(refusal("risk", why, "a call of critical risk needs that; try again"))
            }
            (questions::Answer::Withdrawn, Ok(())) => Err(refusal("approval", "the life is over", "")),
        }
    }

    /// It may happen: its receipt, what the host does of it, its exposure, its answer.
    fn go(self: &Arc<Desk>, course: &Course, grant: Grant) {
        let Grant { reservation, decision, output_bytes_max, wall_ms_max, pass_over, approval } = grant;
        let is_durable = approval.is_some() || !matches!(course.reading.job, Job::Guest | Job::Memory);
        let receipt = match self.receipt(course, &decision, Verdict::Allow, approval, is_durable) {
            Ok(receipt) => receipt,
            Err(why) => {
                return self.give_up(course, reservation, &refusal("receipt", why, "try again"), None);
            }
        };
        let mut labels = decision.labels;
        let (result, value) = match self.host_does(course, receipt, output_bytes_max, wall_ms_max) {
            Ok(None) => (None, None),
            Ok(Some((result, value, more))) => {
                labels = labels.and(more);
                (Some(result), value)
            }
            Err(decision) => return self.give_up(course, reservation, &decision, Some(receipt)),
        };
        match self.begins(course, labels, reservation) {
            Ok(labels) => {
                let go = Go { receipt, labels, output_bytes_max, wall_ms_max, pass_over, result };
                self.answer(course.channel, &Answer::Go(go), value.as_deref());
            }
            Err(why) => {
                let why =
                    format!("its result would raise the exposure, which could not be put in force: {why}");
                self.refuse(course, &refusal("exposure", why, "try again"), Some(receipt));
            }
        }
    }

    /// Notes what flows where from now on, and has it in force; what its result carries then. What is written while others read may be in
    /// their results, too; and what was written since it was decided in its own.
    fn begins(
        &self,
        course: &Course,
        labels: Exposure,
        reservation: Reservation,
    ) -> Result<Exposure, String> {
        let (channel, reading) = (course.channel, &course.reading);
        let shows_files = reading.reads.then_some(!reading.sealed);
        let (labels, shown) = {
            let mut state = self.state();
            let before = state.exposed.written();
            let labels = if reading.reads { labels.and(before) } else { labels };
            let mut shown = if reading.sealed { Exposure::NONE } else { labels };
            if reading.writes {
                let flows = state.exposed.flows(reading.references.iter().copied());
                state.exposed.write(flows.and(labels));
            }
            let written = state.exposed.written();
            if written != before {
                let readers = state.open.iter().filter_map(|(value, open)| Some((*value, open.shows_files?)));
                for (value, is_shown) in readers.collect::<Vec<_>>() {
                    state.exposed.keep(value, written);
                    shown = if is_shown { shown.and(written) } else { shown };
                }
            }
            state.exposed.keep(channel, labels);
            state.open.insert(channel, Open { reservation, shows_files });
            (labels, shown)
        };
        let raised = self.raise(shown, Some(channel));
        if raised.is_err() {
            self.ended(channel, &tools::Ended { bytes: 0, wall_ms: 0, failed: None });
        }
        raised.map(|()| labels)
    }

    /// What the host does of a call itself: members of the result, its bytes, and what they carry beside what was known before.
    #[expect(clippy::type_complexity, reason = "three parts of one answer, taken apart at once")]
    fn host_does(
        &self,
        course: &Course,
        receipt: u64,
        bytes_max: u64,
        wall_ms_max: u64,
    ) -> Result<Option<(Value, Option<Vec<u8>>, Exposure)>, Decision> {
        match &course.reading.job {
            Job::Guest | Job::Memory => Ok(None),
            Job::Fetch { url } => {
                let wall_ms_max = wall_ms_max.min(limits::FETCH_MS_MAX);
                let want =
                    NetFetch { instance: self.instance.clone(), url: url.clone(), bytes_max, wall_ms_max };
                let (bytes, fetched) = self.house.fetch(&want).map_err(|error| refused_by_peer(&error))?;
                let more = if fetched.with_credential { Exposure::PRIVATE_DATA } else { Exposure::NONE };
                let mut result = json!({"status": fetched.status, "type": reading::harmless(&fetched.media_type, TYPE_CHARS_MAX)});
                if fetched.is_cut {
                    result["is_cut"] = true.into();
                }
                if !fetched.location.is_empty() {
                    result["location"] =
                        reading::harmless(&fetched.location, limits::FETCH_LOCATION_BYTES_MAX).into();
                }
                Ok(Some((result, Some(bytes), more)))
            }
            Job::Submit { note } => {
                let (Some(follower), Some(session)) = (&self.follower, self.session.get()) else {
                    return Err(refusal("task", "nobody waits for this tree", ""));
                };
                session
                    .still(course.channel)
                    .map_err(|error| refusal("task", format!("the guest cannot stand still: {error}"), ""))?;
                let judged = follower.judge(Claim { instance: &self.instance, session, note, receipt });
                let output = end_of(&judged.output, limits::VERIFY_TOLD_BYTES_MAX).lines();
                // Without what JSON spells with six bytes: an answer fits a frame.
                let output: Vec<String> = output.map(|line| reading::harmless(line, usize::MAX)).collect();
                let why = reading::harmless(&judged.why, JUDGED_CHARS_MAX);
                let result = json!({"verified": judged.verified, "why": why, "output": output.join("\n")});
                Ok(Some((result, None, Exposure::NONE)))
            }
        }
    }

    fn receipt(
        &self,
        course: &Course,
        decision: &Decision,
        verdict: Verdict,
        approval: Option<Name>,
        is_durable: bool,
    ) -> Result<u64, String> {
        let event = Event::ToolCalled {
            instance: self.instance.clone(),
            call: course.channel,
            tool: course.tool.clone(),
            operation: course.reading.operation,
            target: course.reading.target_in_words(),
            arguments: course.arguments,
            verdict,
            rule: decision.rule.clone(),
            exposure: decision.exposure,
            labels: decision.labels,
            approval,
        };
        let receipt = if is_durable { self.receipts.append(event) } else { self.notes.note(event) };
        receipt.map(|receipt| receipt.seq).map_err(|error| format!("no receipt, so it was not done: {error}"))
    }

    /// What was reserved is free again, but for the call itself; and it is refused.
    fn give_up(&self, course: &Course, reservation: Reservation, decision: &Decision, receipt: Option<u64>) {
        let used = Amounts { calls: Some(1), output_bytes: Some(0), ..Amounts::default() };
        self.state().settle(reservation, &used);
        self.refuse(course, decision, receipt);
    }

    /// Refused, with a receipt of its own where it has none yet. Each counts as a call: a refusal costs a receipt too.
    fn refuse(&self, course: &Course, decision: &Decision, receipt: Option<u64>) {
        let receipt = match receipt {
            Some(receipt) => Some(receipt),
            None => {
                let one = Amounts { calls: Some(1), ..Amounts::default() };
                let _ = self.state().purse.charge(&one); // none left: the next call finds that
                let noted = self.receipt(course, decision, Verdict::Deny, None, false);
                noted.inspect_err(|error| log::warning("refusal_without_receipt", &[("error", error)])).ok()
            }
        };
        let Decision { rule, why, remedy, .. } = decision.clone();
        let refused = Refused { receipt, rule, why, remedy };
        self.answer(course.channel, &Answer::Refused(refused), None);
    }

    /// Answers, if its guest is still there.
    fn answer(&self, channel: u32, answer: &Answer, value: Option<&[u8]>) {
        let Some(session) = self.session.get() else { return };
        if let Err(error) = session.answer(channel, answer, value) {
            log::info("call_not_answered", &[("instance", &self.instance), ("error", &error)]);
        }
    }
}

/// The last bytes of a text.
fn end_of(text: &str, bytes_max: usize) -> &str {
    let from = text.ceil_char_boundary(text.len().saturating_sub(bytes_max));
    text.get(from..).unwrap_or_default()
}
