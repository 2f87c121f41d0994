//! The clock service: asks time servers (SNTP, RFC 4330 with the client's rules of RFC 5905) and brings the wall clock to what
//! most of them say. PID 1 parses nothing from a network.
//!
//! Runs as uid 205 with CAP_SYS_TIME, in the node's network namespace. Ready at once: no boot waits for the time.
//!
//! Must hold: the clock moves by a verdict of [`judge`] only; every wait is bounded, and signs of life go on meanwhile.
//! Must never: set the clock below the image's time, or ask a server more often than every 16 s.

mod ask;
mod judge;
mod packet;
mod servers;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use abi::door::Inherited;
use abi::limits;
use abi::log;
use abi::node::{NODE_CONFIG_PATH, NodeConfig};
use abi::notice::{Notice, Notifier};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::{clock, sys};
use ask::{AskError, unix_ns};
use judge::{Agreed, Known, SECOND_NS, Verdict, Why};
use packet::Refusal;
use servers::{Server, Servers, uplink_stamp};

/// First and longest pause between rounds (RFC 4330, section 10; RFC 5905, MINPOLL and MAXPOLL of most servers).
const PAUSE_S_MIN: u64 = 64;
const PAUSE_S_MAX: u64 = 1024;
/// First pause after a round that came to nothing; it doubles to [`PAUSE_S_MAX`], and begins anew when the uplink changes.
const RETRY_S_MIN: u64 = 2;
/// Shortest pause after servers were asked, whatever happens.
const ASKED_PAUSE_S_MIN: u64 = 16;
/// An offset below this is steady: the pause grows.
const STEADY_NS: i64 = 50_000_000;
/// A wall clock that moved by itself so much was moved by somebody.
const MOVED_NS: i64 = judge::STEP_NS;

/// Entry of the service.
pub fn main() -> i32 {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            log::error("clock_failed", &[("error", &error)]);
            1
        }
    }
}

fn run() -> io::Result<Infallible> {
    let inherited = Inherited::take()?;
    let node: NodeConfig = serde_json::from_slice(&fs::read(NODE_CONFIG_PATH)?)?;
    inherited.notify.send(&Notice::Ready)?;
    let mut keeper = Keeper {
        notify: inherited.notify,
        servers: Servers::new(node.clock.servers),
        floor_s: clock::floor_s(),
        right: None,
        pace: Pace::default(),
        said: String::new(),
    };
    loop {
        let asked = keeper.round();
        keeper.wait(asked)?;
    }
}

/// The service.
#[derive(Debug)]
struct Keeper {
    notify: Notifier,
    servers: Servers,
    floor_s: u64,
    /// When the clock was last right: wall clock, and time that does not jump.
    right: Option<(i64, Instant)>,
    pace: Pace,
    /// What was logged last, without its numbers.
    said: String,
}

impl Keeper {
    /// Asks all servers once and acts on what they say. Whether any was asked.
    fn round(&mut self) -> bool {
        self.alive();
        let round = self.servers.round();
        if round.known == 0 {
            let text = "the machine's own clock: no time server in nulld.toml, none in the lease";
            self.say("no_server", text, log::info);
            self.pace.failed();
            return false;
        }
        let (mut answered, mut samples, mut problems) = (Vec::new(), Vec::new(), round.problems);
        let mut was_asked = false;
        for server in &round.servers {
            self.alive();
            match ask::ask(server.address, self.floor_s) {
                Ok(sample) => {
                    was_asked = true;
                    answered.push(server);
                    samples.push(sample);
                }
                Err(error) => {
                    was_asked |= !matches!(error, AskError::Unsent(_));
                    problems.push(format!("{}: {error}", server.name));
                    self.failed(server, &error);
                }
            }
        }
        let expected_unix_ns = self.right.map(|(was, since)| was.saturating_add(nanos(since.elapsed())));
        let now_unix_ns = unix_ns();
        let known = Known { now_unix_ns, floor_s: self.floor_s, expected_unix_ns, asked: round.known };
        match judge::judge(&samples, known) {
            Verdict::Refuse(why) => self.refuse(why, &problems),
            Verdict::Step(agreed) => self.set(&agreed, &answered, true),
            Verdict::Slew(agreed) => self.set(&agreed, &answered, false),
        }
        was_asked
    }

    fn failed(&mut self, server: &Server, error: &AskError) {
        match error {
            AskError::Refused(Refusal::Denied) => self.servers.denied(server),
            AskError::Refused(Refusal::Slower) => self.pace.slower(),
            AskError::Refused(_) | AskError::Silent | AskError::Unsent(_) | AskError::Network(_) => {
                self.servers.failed(server);
            }
        }
    }

    fn refuse(&mut self, why: Why, problems: &[String]) {
        let problems = problems.join(", ");
        let (event, text) = match why {
            Why::NoAnswer => ("no_answer", format!("no time server answers: {problems}")),
            Why::NoMajority { agreeing, answered } => (
                "no_majority",
                format!(
                    "time servers contradict each other: {agreeing} of {answered} agree; name three or more"
                ),
            ),
            Why::BelowFloor => {
                ("below_floor", "time servers give a time before this image was built".to_owned())
            }
            Why::Leap { leap_ns, agreeing, needed } => (
                "leap_refused",
                format!(
                    "refused to jump by {} s: {agreeing} servers say so, {needed} must; if it is right, restart the node",
                    leap_ns / SECOND_NS
                ),
            ),
        };
        let state = match self.right {
            Some(_) => "was synchronised",
            None => "not synchronised",
        };
        self.say(event, &format!("{state}: {text}"), log::warning);
        self.pace.failed();
    }

    /// Moves the clock, by a step or through the kernel's discipline.
    fn set(&mut self, agreed: &Agreed, answered: &[&Server], is_step: bool) {
        let name = answered.get(agreed.best).map_or("", |server| server.name.as_str());
        let error_us = u32::try_from(agreed.error_ns / 1000).unwrap_or(u32::MAX);
        let gentle = self.pace.time_constant();
        let moved = match is_step {
            // The second call tells the kernel that the clock is right now.
            true => step(agreed.offset_ns).and_then(|()| sys::discipline_clock(0, gentle, error_us)),
            false => sys::discipline_clock(agreed.offset_ns, gentle, error_us),
        };
        let offset = in_words(agreed.offset_ns);
        if let Err(error) = moved {
            let text =
                format!("not synchronised: {name} says {offset}, but the clock cannot be set: {error}");
            self.say("clock_not_set", &text, log::error);
            return self.pace.failed();
        }
        // A slew goes on for a while; what is right is what it leads to.
        let now = unix_ns();
        let right_ns = if is_step { now } else { now.saturating_add(agreed.offset_ns) };
        self.right = Some((right_ns, Instant::now()));
        let count = agreed.agreeing;
        if is_step {
            log::warning("clock_stepped", &[("server", &name), ("by", &offset), ("agreeing", &count)]);
        }
        let text =
            format!("synchronised to {name} ({count} of {} servers agree), offset {offset}", answered.len());
        self.say("synchronised", &text, log::info);
        self.pace.worked(agreed.offset_ns);
    }

    /// For the operator; and a line in the log when the event is another than last time.
    fn say(&mut self, event: &str, text: &str, line: fn(&str, &[(&str, &dyn std::fmt::Display)])) {
        self.notify.status(text);
        if self.said != event {
            event.clone_into(&mut self.said);
            line(event, &[("status", &text)]);
        }
    }

    fn alive(&self) {
        let _ = self.notify.send(&Notice::Alive); // nulld is slow: the next one is as good
    }

    /// Until the next round is due, the uplink changes, or somebody else moves the clock.
    fn wait(&mut self, asked: bool) -> io::Result<()> {
        let (begin, uplink, ahead) = (Instant::now(), uplink_stamp(), unix_ns());
        let least = Duration::from_secs(if asked { ASKED_PAUSE_S_MIN } else { 0 });
        let pause = Duration::from_secs_f64(self.pace.pause_s as f64 * jitter(random()?)).max(least);
        while begin.elapsed() < pause {
            self.alive();
            std::thread::sleep(
                (pause - begin.elapsed().min(pause)).min(Duration::from_millis(limits::SERVICE_ALIVE_MS)),
            );
            if begin.elapsed() < least {
                continue;
            }
            if uplink_stamp() != uplink {
                self.pace = Pace::default();
                return Ok(());
            }
            let moved_ns = unix_ns().saturating_sub(ahead).saturating_sub(nanos(begin.elapsed()));
            if moved_ns.saturating_abs() > MOVED_NS {
                log::warning("clock_was_moved", &[("by", &in_words(moved_ns))]);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Sets the wall clock by so many nanoseconds. Needs CAP_SYS_TIME.
fn step(offset_ns: i64) -> io::Result<()> {
    let to = unix_ns().saturating_add(offset_ns);
    let time = Timespec { tv_sec: to.div_euclid(SECOND_NS), tv_nsec: to.rem_euclid(SECOND_NS) };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// How long the next pause is.
#[derive(Debug, Clone, Copy)]
struct Pace {
    pause_s: u64,
    /// A server asked for it (RATE).
    least_s: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { pause_s: RETRY_S_MIN / 2, least_s: 0 }
    }
}

impl Pace {
    fn worked(&mut self, offset_ns: i64) {
        let is_steady = offset_ns.saturating_abs() < STEADY_NS && self.pause_s >= PAUSE_S_MIN;
        let next_s = if is_steady { self.pause_s * 2 } else { PAUSE_S_MIN };
        self.pause_s = next_s.clamp(PAUSE_S_MIN.max(self.least_s), PAUSE_S_MAX);
    }

    fn failed(&mut self) {
        self.pause_s = (self.pause_s * 2).clamp(RETRY_S_MIN.max(self.least_s), PAUSE_S_MAX);
    }

    fn slower(&mut self) {
        self.least_s = (self.least_s * 2).clamp(PAUSE_S_MIN * 2, PAUSE_S_MAX);
    }

    /// How gently the kernel slews: the kernel's time constant is four less than the poll's power of two (RFC 5905, 11.3).
    fn time_constant(self) -> u8 {
        let poll = self.pause_s.clamp(PAUSE_S_MIN, PAUSE_S_MAX).ilog2();
        u8::try_from(poll.saturating_sub(4)).unwrap_or(0)
    }
}

/// Three to five quarters: nodes that were started together do not ask together.
fn jitter(random: [u8; 8]) -> f64 {
    0.75 + f64::from(u32::from_ne_bytes([random[0], random[1], random[2], random[3]]))
        / f64::from(u32::MAX)
        / 2.0
}

fn random() -> io::Result<[u8; 8]> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// `+12.3 ms`, `-86400.0 s`.
fn in_words(offset_ns: i64) -> String {
    let ms = offset_ns as f64 / 1e6;
    if ms.abs() < 10_000.0 { format!("{ms:+.1} ms") } else { format!("{:+.1} s", ms / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_rarer_the_longer_all_is_well_and_never_too_often() {
        let mut pace = Pace::default();
        let failures: Vec<u64> = (0..12)
            .map(|_| {
                pace.failed();
                pace.pause_s
            })
            .collect();
        assert_eq!(failures[..4], [2, 4, 8, 16]);
        assert_eq!(failures[11], PAUSE_S_MAX);
        let mut pace = Pace::default();
        let pauses: Vec<u64> = (0..6)
            .map(|_| {
                pace.worked(1_000_000);
                pace.pause_s
            })
            .collect();
        assert_eq!(pauses, [64, 128, 256, 512, 1024, 1024]);
        pace.worked(judge::STEP_NS);
        assert_eq!(pace.pause_s, PAUSE_S_MIN, "an offset brings the servers' attention back");
    }

    #[test]
    fn a_server_that_wants_to_be_asked_less_is_asked_less_for_good() {
        let mut pace = Pace::default();
        pace.slower();
        pace.failed();
        assert_eq!(pace.pause_s, 128);
        pace.worked(judge::STEP_NS);
        assert_eq!(pace.pause_s, 128);
        for _ in 0..10 {
            pace.slower();
        }
        pace.worked(judge::STEP_NS);
        assert_eq!(pace.pause_s, PAUSE_S_MAX);
    }

    #[test]
    fn the_kernels_constant_stays_in_its_range() {
        for pause_s in [0, 1, 64, 100, 1024, u64::MAX] {
            assert!((2..=6).contains(&Pace { pause_s, least_s: 0 }.time_constant()));
        }
    }

    #[test]
    fn pauses_are_spread_by_a_quarter_either_way() {
        assert_eq!((jitter([0; 8]), jitter([255; 8])), (0.75, 1.25));
    }

    #[test]
    fn offsets_are_told_in_a_unit_that_fits() {
        assert_eq!(in_words(12_340_000), "+12.3 ms");
        assert_eq!(in_words(-86_400 * SECOND_NS), "-86400.0 s");
    }
}
