//! Supervision against a model of it: the rules of docs/nulld.md written a second time, as facts about processes instead of a
//! table of states, and long random histories in which both must come to the same.

use abi::node::Restart;

use super::{Goal, decide};
use crate::table::{Action, Event, State, step};

/// What happens to one service, or to all.
#[derive(Debug, Clone, Copy)]
enum Happening {
    SaysReady(usize),
    Ends(usize, bool),
    TimeIsUp(usize),
    IsSilent(usize),
    /// From here on processes can, or cannot, be made.
    Spawning(bool),
    NodeGoesDown,
}

/// What anyone can see of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    word: &'static str,
    /// A process exists, as far as the kernel is concerned.
    exists: bool,
    /// Signals its present process was sent.
    asked: bool,
    killed: bool,
    starts: u32,
}

/// The tested side: table and decisions, with the least of a world around them.
struct Real {
    needs: Vec<Vec<usize>>,
    policies: Vec<Restart>,
    states: Vec<State>,
    seen: Vec<Seen>,
    can_spawn: bool,
    goal: Goal,
}

impl Real {
    fn apply(&mut self, place: usize, event: Event) {
        let (next, actions) = step(self.states[place], event, self.policies[place]);
        self.states[place] = next;
        for action in actions {
            let can_spawn = self.can_spawn;
            let seen = &mut self.seen[place];
            match action {
                Action::Spawn if can_spawn => {
                    assert!(!seen.exists, "a second process");
                    (seen.exists, seen.asked, seen.killed) = (true, false, false);
                    seen.starts += 1;
                }
                Action::Spawn => self.apply(place, Event::SpawnFailed),
                Action::Terminate => seen.asked = true,
                Action::Kill => seen.killed = true,
                Action::Clear => assert!(!seen.exists, "cleared while its process exists"),
                Action::ResetBackoff | Action::Abandon => {}
            }
        }
        self.seen[place].word = self.states[place].name();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::SaysReady(place) => self.apply(place, Event::Announced),
            Happening::Ends(place, clean) => {
                let seen = &mut self.seen[place];
                (seen.exists, seen.asked, seen.killed) = (false, false, false);
                self.apply(place, Event::Exited { clean });
            }
            Happening::TimeIsUp(place) => self.apply(place, Event::Timeout),
            Happening::IsSilent(place) => self.apply(place, Event::Silent),
            Happening::Spawning(can) => self.can_spawn = can,
            Happening::NodeGoesDown => self.goal = Goal::End { keep: None },
        }
        for _ in 0..100 {
            let events = decide(&self.states, &self.needs, self.goal);
            if events.is_empty() {
                return;
            }
            for (place, event) in events {
                // What is left of an abandoned process keeps a service from being started (Unit::start).
                assert!(event != Event::NeedsMet || !self.seen[place].exists);
                self.apply(place, event);
            }
        }
        panic!("the decisions never come to rest: {:?}", self.states);
    }
}

/// Why a process was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    NodeGoesDown,
    NeedIsLost,
    Faulty,
}

/// The model's process: facts, no states.
#[derive(Debug, Clone, Copy, Default)]
struct Process {
    is_ready: bool,
    ends: Option<Why>,
    asked: bool,
    killed: bool,
    given_up: bool,
}

#[derive(Debug, Clone, Default)]
struct Modelled {
    process: Option<Process>,
    rests: bool,
    /// Will not run again: as it should (true) or as a failure.
    over: Option<bool>,
    starts: u32,
}

struct Model {
    needs: Vec<Vec<usize>>,
    policies: Vec<Restart>,
    services: Vec<Modelled>,
    can_spawn: bool,
    goes_down: bool,
}

impl Model {
    /// "A service that needs a service that has failed for good ..."
    fn is_hopeless(&self, place: usize) -> bool {
        let service = &self.services[place];
        service.over.is_some() || service.process.is_some_and(|process| process.given_up)
    }

    fn has_lost_a_need(&self, place: usize) -> bool {
        self.needs[place].iter().any(|need| self.is_hopeless(*need) || self.has_lost_a_need(*need))
    }

    fn serves(&self, place: usize) -> bool {
        let is_serving = |process: Process| process.is_ready && process.ends.is_none();
        self.services[place].over.is_none() && self.services[place].process.is_some_and(is_serving)
    }

    fn dependents(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.services.len()).filter(move |other| self.needs[*other].contains(&place))
    }

    fn runs(&self, place: usize) -> bool {
        let service = &self.services[place];
        service.over.is_none() && service.process.is_some_and(|process| !process.given_up)
    }

    /// "When it ends, its policy decides."
    fn ended(&mut self, place: usize, clean: bool) {
        let service = &mut self.services[place];
        match self.policies[place] {
            Restart::Never => service.over = Some(clean),
            Restart::OnFailure if clean => service.over = Some(true),
            Restart::OnFailure | Restart::Always => service.rests = true,
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Spawning(can) => self.can_spawn = can,
            Happening::NodeGoesDown => self.goes_down = true,
            Happening::SaysReady(place) if self.services[place].over.is_none() => {
                if let Some(process) = self.services[place].process.as_mut().filter(|p| p.ends.is_none()) {
                    process.is_ready = true;
                }
            }
            Happening::IsSilent(place) if self.serves(place) => self.kill(place),
            Happening::SaysReady(_) | Happening::IsSilent(_) => {}
            Happening::TimeIsUp(place) => self.time_is_up(place),
            Happening::Ends(place, clean) => {
                let process = self.services[place].process.take().expect("only what exists ends");
                match process.ends {
                    _ if self.services[place].over.is_some() => {}
                    Some(Why::NodeGoesDown) => self.services[place].over = Some(true),
                    _ if process.given_up => self.ended(place, false),
                    Some(Why::NeedIsLost) => {}
                    Some(Why::Faulty) => self.ended(place, false),
                    None => self.ended(place, clean),
                }
            }
        }
        while (0..self.services.len()).any(|place| self.follow_rules(place)) {}
    }

    fn kill(&mut self, place: usize) {
        if let Some(process) = &mut self.services[place].process {
            process.killed = true;
            process.ends.get_or_insert(Why::Faulty);
        }
    }

    fn time_is_up(&mut self, place: usize) {
        let service = &mut self.services[place];
        if service.over.is_some() {
            return;
        }
        let Some(process) = &mut service.process else {
            service.rests = false;
            return;
        };
        match (process.ends, process.killed) {
            (_, true) if process.given_up => {}
            (Some(Why::NodeGoesDown), true) => service.over = Some(true),
            (_, true) => process.given_up = true,
            (Some(_), false) => process.killed = true,
            (None, false) if process.is_ready => {}
            (None, false) => self.kill(place),
        }
    }

    /// One rule for one service, if one applies.
    fn follow_rules(&mut self, place: usize) -> bool {
        let is_over = self.services[place].over.is_some();
        if is_over {
            return false;
        }
        if self.goes_down {
            let is_needed = self.dependents(place).any(|other| !self.is_hopeless(other));
            let service = &mut self.services[place];
            return match &mut service.process {
                _ if is_needed => false,
                Some(process) if process.given_up => {
                    service.over = Some(true);
                    true
                }
                Some(Process { ends: Some(Why::NodeGoesDown), .. }) => false,
                Some(process) => {
                    process.asked |= process.ends.is_none();
                    process.ends = Some(Why::NodeGoesDown);
                    true
                }
                None => {
                    service.over = Some(true);
                    true
                }
            };
        }
        if self.has_lost_a_need(place) {
            let is_needed = self.dependents(place).any(|other| self.runs(other));
            return match &mut self.services[place].process {
                Some(process) if process.ends.is_none() && !is_needed => {
                    (process.asked, process.ends) = (true, Some(Why::NeedIsLost));
                    true
                }
                _ => false,
            };
        }
        let may_start = self.needs[place].iter().all(|need| self.serves(*need));
        let service = &mut self.services[place];
        if service.process.is_some() || service.rests || !may_start {
            return false;
        }
        if self.can_spawn {
            service.process = Some(Process::default());
            service.starts += 1;
        } else {
            self.ended(place, false);
        }
        true
    }

    fn seen(&self, place: usize) -> Seen {
        let service = &self.services[place];
        let word = match (service.over, service.process) {
            (Some(true), _) => "stopped",
            (Some(false), _) => "failed",
            (None, Some(process)) if process.given_up => "failed",
            (None, Some(process)) if process.ends.is_some() => "stopping",
            (None, Some(process)) if process.is_ready => "ready",
            (None, Some(_)) => "starting",
            (None, None) if service.rests => "backoff",
            (None, None) => "waiting",
        };
        let process = service.process.unwrap_or_default();
        Seen {
            word,
            exists: service.process.is_some(),
            asked: process.asked,
            killed: process.killed,
            starts: service.starts,
        }
    }
}

/// xorshift64*
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

fn history(dice: &mut Dice, length: usize) -> usize {
    let count = 1 + dice.roll(5);
    let needs: Vec<Vec<usize>> =
        (0..count).map(|place| (0..place).filter(|_| dice.roll(3) == 0).collect()).collect();
    let policies: Vec<Restart> =
        (0..count).map(|_| [Restart::Always, Restart::OnFailure, Restart::Never][dice.roll(3)]).collect();
    let unseen = Seen { word: "waiting", exists: false, asked: false, killed: false, starts: 0 };
    let mut real = Real {
        needs: needs.clone(),
        policies: policies.clone(),
        states: vec![State::Waiting; count],
        seen: vec![unseen; count],
        can_spawn: true,
        goal: Goal::Run,
    };
    let services = vec![Modelled::default(); count];
    let mut model = Model { needs, policies, services, can_spawn: true, goes_down: false };
    let mut told = Vec::new();
    for _ in 0..length {
        let place = dice.roll(count);
        let happening = match dice.roll(20) {
            0..=4 => Happening::SaysReady(place),
            5..=8 if real.seen[place].exists => Happening::Ends(place, dice.roll(2) == 0),
            9..=14 => Happening::TimeIsUp(place),
            15 => Happening::IsSilent(place),
            16 => Happening::Spawning(dice.roll(3) != 0),
            17 if dice.roll(length) == 0 => Happening::NodeGoesDown,
            _ => continue,
        };
        told.push(happening);
        real.happen(happening);
        model.happen(happening);
        for place in 0..count {
            let (is, should) = (&real.seen[place], model.seen(place));
            assert_eq!(
                *is, should,
                "service {place} of {:?} {:?} after {told:?}",
                model.needs, model.policies
            );
        }
    }
    // Wherever it stands: an order to go down and enough time end everything.
    real.happen(Happening::NodeGoesDown);
    for _ in 0..=3 * count {
        for place in 0..count {
            real.happen(Happening::TimeIsUp(place));
        }
    }
    assert!(real.states.iter().all(|state| state.is_over()), "{:?} after {told:?}", real.states);
    told.len()
}

#[test]
fn random_histories_go_as_the_rules_say() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1
    });
    println!("SEED={seed}");
    let mut dice = Dice(seed);
    let mut steps = 0;
    while steps < 300_000 {
        let length = 10 + dice.roll(190);
        steps += history(&mut dice, length);
    }
}

#[test]
fn a_failure_for_good_stops_its_dependents_from_the_last_to_the_first_and_nobody_else() {
    // 1 needs 0, 2 needs 1; 3 stands alone.
    let needs = [vec![], vec![0], vec![1], vec![]];
    let mut states = [State::Failed, State::Ready, State::Ready, State::Ready];
    assert_eq!(decide(&states, &needs, Goal::Run), [(2, Event::NeedsLost)]);
    states[2] = State::Pausing;
    assert_eq!(decide(&states, &needs, Goal::Run), []);
    states[2] = State::Waiting;
    assert_eq!(decide(&states, &needs, Goal::Run), [(1, Event::NeedsLost)]);
    states[1] = State::Waiting;
    assert_eq!(decide(&states, &needs, Goal::Run), []);
    // The need comes back (its process was abandoned, and ended after all).
    states[0] = State::Ready;
    assert_eq!(decide(&states, &needs, Goal::Run), [(1, Event::NeedsMet)]);
}

#[test]
fn what_is_kept_to_the_end_keeps_what_it_needs() {
    let needs = [vec![], vec![0], vec![]];
    let keep = Goal::End { keep: Some(1) };
    assert_eq!(decide(&[State::Ready; 3], &needs, keep), [(2, Event::Stop)]);
    assert_eq!(
        decide(&[State::Ready; 3], &needs, Goal::End { keep: None }),
        [(1, Event::Stop), (2, Event::Stop)]
    );
}

#[test]
fn a_need_that_is_being_restarted_stops_nobody() {
    let needs = [vec![], vec![0]];
    for need in [State::Waiting, State::Starting, State::Backoff, State::KillingFaulty, State::Pausing] {
        assert_eq!(decide(&[State::Failed], &[vec![]], Goal::Run), []);
        let events = decide(&[need, State::Ready], &needs, Goal::Run);
        assert!(events.iter().all(|(place, _)| *place == 0), "{need:?} {events:?}");
    }
}
