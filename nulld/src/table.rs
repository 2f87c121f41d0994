//! The table of supervision: state x event gives the next state and what to do. Total, pure, without a wildcard.
//!
//! Must hold: every pair has an entry that somebody chose; a service that ended is never left running by half (each
//! end clears its cgroup); stopping always ends. Must never: do anything. [`crate::service`] does.

use abi::limits::{SERVICE_BACKOFF_MS_MAX, SERVICE_BACKOFF_MS_MIN};
use abi::node::Restart;

/// Where a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A service that it needs is not ready.
    Waiting,
    /// Started, not yet ready.
    Starting,
    Ready,
    /// Asked to end by SIGTERM.
    Stopping,
    /// Killed because it was not ready in time.
    KillingLate,
    /// Killed because it did not stop in time.
    KillingStop,
    /// Ended; waits before the next start.
    Backoff,
    /// Ended, and should not run.
    Stopped,
    /// Ended, should run, and will not be tried again.
    Failed,
}

impl State {
    /// The word in `system.status`.
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Stopping | State::KillingLate | State::KillingStop => "stopping",
            State::Backoff => "backoff",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }

    /// Nothing of it runs, and nothing will start it.
    pub fn is_over(self) -> bool {
        matches!(self, State::Stopped | State::Failed)
    }
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All services it needs are ready.
    NeedsMet,
    /// It wrote its readiness line.
    Announced,
    /// Its process could not be made.
    SpawnFailed,
    /// Its process ended.
    Exited { clean: bool },
    /// The time of the present state is up.
    Timeout,
    /// The node is going down.
    Stop,
}

/// What to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Spawn,
    /// SIGTERM to its first process.
    Terminate,
    /// SIGKILL to its whole cgroup.
    Kill,
    /// It ended: kill what it left behind and make new sockets.
    Clear,
    /// It ran well for long enough: the next back-off is the shortest again.
    ResetBackoff,
    /// The kernel does not end it: say so and go on without it.
    Abandon,
}

/// The table.
pub fn step(state: State, event: Event, restart: Restart) -> (State, &'static [Action]) {
    use Action::{Abandon, Clear, Kill, ResetBackoff, Spawn, Terminate};
    use Event::{Announced, Exited, NeedsMet, SpawnFailed, Stop, Timeout};
    match (state, event) {
        (State::Waiting, NeedsMet) => (State::Starting, &[Spawn]),
        (State::Waiting, Stop) => (State::Stopped, &[]),
        (State::Waiting, Announced | SpawnFailed | Exited { .. } | Timeout) => (state, &[]),

        (State::Starting, Announced) => (State::Ready, &[]),
        (State::Starting, SpawnFailed) => (after_end(false, restart), &[Clear]),
        (State::Starting, Exited { clean }) => (after_end(clean, restart), &[Clear]),
        (State::Starting, Timeout) => (State::KillingLate, &[Kill]),
        (State::Starting, Stop) => (State::Stopping, &[Terminate]),
        (State::Starting, NeedsMet) => (state, &[]),

        (State::Ready, Exited { clean }) => (after_end(clean, restart), &[Clear]),
        (State::Ready, Timeout) => (state, &[ResetBackoff]),
        (State::Ready, Stop) => (State::Stopping, &[Terminate]),
        (State::Ready, NeedsMet | Announced | SpawnFailed) => (state, &[]),

        (State::Stopping, Exited { .. }) => (State::Stopped, &[Clear]),
        (State::Stopping, Timeout) => (State::KillingStop, &[Kill]),
        (State::Stopping, NeedsMet | Announced | SpawnFailed | Stop) => (state, &[]),

        (State::KillingLate, Exited { .. }) => (after_end(false, restart), &[Clear]),
        (State::KillingLate, Timeout) => (State::Failed, &[Abandon]),
        (State::KillingLate, Stop) => (State::KillingStop, &[]),
        (State::KillingLate, NeedsMet | Announced | SpawnFailed) => (state, &[]),

        (State::KillingStop, Exited { .. }) => (State::Stopped, &[Clear]),
        (State::KillingStop, Timeout) => (State::Stopped, &[Abandon]),
        (State::KillingStop, NeedsMet | Announced | SpawnFailed | Stop) => (state, &[]),

        (State::Backoff, Timeout) => (State::Waiting, &[]),
        (State::Backoff, Stop) => (State::Stopped, &[]),
        (State::Backoff, NeedsMet | Announced | SpawnFailed | Exited { .. }) => (state, &[]),

        (State::Stopped, NeedsMet | Announced | SpawnFailed | Exited { .. } | Timeout | Stop) => (state, &[]),

        // The kernel let go of an abandoned process after all: what it left must still be cleared.
        (State::Failed, Exited { .. }) => (state, &[Clear]),
        (State::Failed, NeedsMet | Announced | SpawnFailed | Timeout | Stop) => (state, &[]),
    }
}

fn after_end(clean: bool, restart: Restart) -> State {
    match (restart, clean) {
        (Restart::Always, true | false) | (Restart::OnFailure, false) => State::Backoff,
        (Restart::OnFailure | Restart::Never, true) => State::Stopped,
        (Restart::Never, false) => State::Failed,
    }
}

/// The pause after this one.
pub fn next_backoff(present_ms: u64) -> u64 {
    present_ms.saturating_mul(2).clamp(SERVICE_BACKOFF_MS_MIN, SERVICE_BACKOFF_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 9] = [
        State::Waiting,
        State::Starting,
        State::Ready,
        State::Stopping,
        State::KillingLate,
        State::KillingStop,
        State::Backoff,
        State::Stopped,
        State::Failed,
    ];
    const EVENTS: [Event; 7] = [
        Event::NeedsMet,
        Event::Announced,
        Event::SpawnFailed,
        Event::Exited { clean: true },
        Event::Exited { clean: false },
        Event::Timeout,
        Event::Stop,
    ];
    const POLICIES: [Restart; 3] = [Restart::Always, Restart::OnFailure, Restart::Never];

    fn has_process(state: State) -> bool {
        matches!(
            state,
            State::Starting | State::Ready | State::Stopping | State::KillingLate | State::KillingStop
        )
    }

    #[test]
    fn a_process_is_made_only_where_there_is_none() {
        for state in STATES {
            for event in EVENTS {
                for policy in POLICIES {
                    let (next, actions) = step(state, event, policy);
                    if actions.contains(&Action::Spawn) {
                        assert!(!has_process(state) && next == State::Starting, "{state:?} {event:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_end_of_a_process_clears_what_it_left() {
        for state in STATES.into_iter().filter(|s| has_process(*s)) {
            for clean in [true, false] {
                for policy in POLICIES {
                    let (next, actions) = step(state, Event::Exited { clean }, policy);
                    assert!(!has_process(next) && actions.contains(&Action::Clear), "{state:?}");
                }
            }
        }
    }

    #[test]
    fn stop_followed_by_timeouts_ends_from_every_state() {
        for start in STATES {
            for policy in POLICIES {
                let (mut state, _) = step(start, Event::Stop, policy);
                for _ in 0..2 {
                    state = step(state, Event::Timeout, policy).0;
                }
                assert!(state.is_over(), "{start:?} ends in {state:?}");
            }
        }
    }

    #[test]
    fn nothing_starts_again_after_a_stop() {
        for start in STATES {
            for event in EVENTS {
                for policy in POLICIES {
                    let (stopped, _) = step(start, Event::Stop, policy);
                    let (next, actions) = step(stopped, event, policy);
                    assert!(!actions.contains(&Action::Spawn), "{start:?} {event:?}");
                    assert!(
                        next.is_over() || matches!(next, State::Stopping | State::KillingStop),
                        "{start:?} {event:?} {next:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn policies_differ_only_at_the_end() {
        let end = |clean, policy| step(State::Ready, Event::Exited { clean }, policy).0;
        assert_eq!(end(true, Restart::Always), State::Backoff);
        assert_eq!(end(false, Restart::Always), State::Backoff);
        assert_eq!(end(true, Restart::OnFailure), State::Stopped);
        assert_eq!(end(false, Restart::OnFailure), State::Backoff);
        assert_eq!(end(true, Restart::Never), State::Stopped);
        assert_eq!(end(false, Restart::Never), State::Failed);
    }

    #[test]
    fn backoff_doubles_from_one_second_to_thirty() {
        let mut pauses = vec![SERVICE_BACKOFF_MS_MIN];
        for _ in 0..6 {
            pauses.push(next_backoff(pauses[pauses.len() - 1]));
        }
        assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    }
}
