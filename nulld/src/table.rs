//! The table of supervision: state x event gives the next state and what to do. Total, pure, without a wildcard.
//!
//! Must hold: every pair has an entry that somebody chose; a service that ended is never left running by half (each
//! end clears its cgroup); stopping always ends. Must never: do anything. [`crate::service`] does.

use abi::limits::{SERVICE_BACKOFF_MS_MAX, SERVICE_BACKOFF_TIMES_MAX};
use abi::node::Restart;
use serde::{Deserialize, Serialize};

/// Where a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// A service that it needs is not ready, or something of its last run has not ended yet.
    Waiting,
    /// Started, not yet ready.
    Starting,
    Ready,
    /// Asked to end by SIGTERM, as the node goes down.
    Stopping,
    /// Killed because it did not stop in time.
    KillingStop,
    /// Asked to end by SIGTERM, as a service that it needs has failed for good.
    Pausing,
    /// Killed because it did not pause in time.
    KillingPause,
    /// Killed because it was not ready in time, or gave no sign of life.
    KillingFaulty,
    /// Ended; waits before the next start.
    Backoff,
    /// Ended, and should not run.
    Stopped,
    /// Ended, should run, and will not be tried again.
    Failed,
    /// Killed, and the kernel does not end it. Nothing is started beside it.
    Abandoned,
}

impl State {
    /// The word in `system.status`.
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Stopping
            | State::KillingStop
            | State::Pausing
            | State::KillingPause
            | State::KillingFaulty => "stopping",
            State::Backoff => "backoff",
            State::Stopped => "stopped",
            State::Failed | State::Abandoned => "failed",
        }
    }

    /// nulld waits for nothing more of it, and will not start it by itself.
    pub fn is_over(self) -> bool {
        match self {
            State::Stopped | State::Failed | State::Abandoned => true,
            State::Waiting | State::Backoff => false,
            State::Starting | State::Ready => false,
            State::Stopping | State::KillingStop => false,
            State::Pausing | State::KillingPause | State::KillingFaulty => false,
        }
    }

    /// It has a first process whose end nulld waits for.
    pub fn has_process(self) -> bool {
        match self {
            State::Starting | State::Ready => true,
            State::Stopping | State::KillingStop => true,
            State::Pausing | State::KillingPause | State::KillingFaulty => true,
            State::Waiting | State::Backoff => false,
            State::Stopped | State::Failed | State::Abandoned => false,
        }
    }
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All services it needs are ready, and nothing of its last run is left.
    NeedsMet,
    /// A service that it needs has failed for good, and none that needs this one runs any more.
    NeedsLost,
    /// It said that it is ready.
    Announced,
    /// Its process could not be made.
    SpawnFailed,
    /// Its process ended.
    Exited { clean: bool },
    /// The time of the present state is up.
    Timeout,
    /// It gave no sign of life for too long.
    Silent,
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
    /// It ended: kill what it left behind and let go of its sockets.
    Clear,
    /// It ran well for long enough: the next back-off is the shortest again.
    ResetBackoff,
    /// The kernel does not end it: say so and go on without it.
    Abandon,
}

/// The table.
pub fn step(state: State, event: Event, restart: Restart) -> (State, &'static [Action]) {
    use Action::{Abandon, Clear, Kill, ResetBackoff, Spawn, Terminate};
    use Event::{Announced, Exited, NeedsLost, NeedsMet, Silent, SpawnFailed, Stop, Timeout};
    match (state, event) {
        (State::Waiting, NeedsMet) => (State::Starting, &[Spawn]),
        (State::Waiting, Stop) => (State::Stopped, &[]),
        (State::Waiting, NeedsLost | Announced | SpawnFailed | Exited { .. } | Timeout | Silent) => {
            (state, &[])
        }

        (State::Starting, Announced) => (State::Ready, &[]),
        (State::Starting, SpawnFailed) => (after_end(false, restart), &[Clear]),
        (State::Starting, Exited { clean }) => (after_end(clean, restart), &[Clear]),
        (State::Starting, Timeout) => (State::KillingFaulty, &[Kill]),
        (State::Starting, NeedsLost) => (State::Pausing, &[Terminate]),
        (State::Starting, Stop) => (State::Stopping, &[Terminate]),
        (State::Starting, NeedsMet | Silent) => (state, &[]),

        (State::Ready, Exited { clean }) => (after_end(clean, restart), &[Clear]),
        (State::Ready, Timeout) => (state, &[ResetBackoff]),
        (State::Ready, Silent) => (State::KillingFaulty, &[Kill]),
        (State::Ready, NeedsLost) => (State::Pausing, &[Terminate]),
        (State::Ready, Stop) => (State::Stopping, &[Terminate]),
        (State::Ready, NeedsMet | Announced | SpawnFailed) => (state, &[]),

        (State::Stopping, Exited { .. }) => (State::Stopped, &[Clear]),
        (State::Stopping, Timeout) => (State::KillingStop, &[Kill]),
        (State::Stopping, NeedsMet | NeedsLost | Announced | SpawnFailed | Silent | Stop) => (state, &[]),

        (State::KillingStop, Exited { .. }) => (State::Stopped, &[Clear]),
        (State::KillingStop, Timeout) => (State::Stopped, &[Abandon]),
        (State::KillingStop, NeedsMet | NeedsLost | Announced | SpawnFailed | Silent | Stop) => (state, &[]),

        (State::Pausing, Exited { .. }) => (State::Waiting, &[Clear]),
        (State::Pausing, Timeout) => (State::KillingPause, &[Kill]),
        (State::Pausing, Stop) => (State::Stopping, &[]),
        (State::Pausing, NeedsMet | NeedsLost | Announced | SpawnFailed | Silent) => (state, &[]),

        (State::KillingPause, Exited { .. }) => (State::Waiting, &[Clear]),
        (State::KillingPause, Timeout) => (State::Abandoned, &[Abandon]),
        (State::KillingPause, Stop) => (State::KillingStop, &[]),
        (State::KillingPause, NeedsMet | NeedsLost | Announced | SpawnFailed | Silent) => (state, &[]),

        (State::KillingFaulty, Exited { .. }) => (after_end(false, restart), &[Clear]),
        (State::KillingFaulty, Timeout) => (State::Abandoned, &[Abandon]),
        (State::KillingFaulty, Stop) => (State::KillingStop, &[]),
        (State::KillingFaulty, NeedsMet | NeedsLost | Announced | SpawnFailed | Silent) => (state, &[]),

        (State::Backoff, Timeout) => (State::Waiting, &[]),
        (State::Backoff, Stop) => (State::Stopped, &[]),
        (State::Backoff, NeedsMet | NeedsLost | Announced | SpawnFailed | Exited { .. } | Silent) => {
            (state, &[])
        }

        // A process that was abandoned at a stop ends after all: what it left must still be cleared.
        (State::Stopped | State::Failed, Exited { .. }) => (state, &[Clear]),
        (
            State::Stopped | State::Failed,
            NeedsMet | NeedsLost | Announced | SpawnFailed | Timeout | Silent | Stop,
        ) => (state, &[]),

        // The kernel let go of it: it is treated like any other end.
        (State::Abandoned, Exited { .. }) => (after_end(false, restart), &[Clear]),
        (State::Abandoned, Stop) => (State::Stopped, &[]),
        (State::Abandoned, NeedsMet | NeedsLost | Announced | SpawnFailed | Timeout | Silent) => (state, &[]),
    }
}

fn after_end(clean: bool, restart: Restart) -> State {
    match (restart, clean) {
        (Restart::Always, true | false) | (Restart::OnFailure, false) => State::Backoff,
        (Restart::OnFailure | Restart::Never, true) => State::Stopped,
        (Restart::Never, false) => State::Failed,
    }
}

/// The pause after this one, of a service whose shortest pause is `min_ms`.
pub fn next_backoff(present_ms: u64, min_ms: u64) -> u64 {
    let longest = min_ms.saturating_mul(SERVICE_BACKOFF_TIMES_MAX).min(SERVICE_BACKOFF_MS_MAX);
    present_ms.saturating_mul(2).clamp(min_ms, longest.max(min_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 12] = [
        State::Waiting,
        State::Starting,
        State::Ready,
        State::Stopping,
        State::KillingStop,
        State::Pausing,
        State::KillingPause,
        State::KillingFaulty,
        State::Backoff,
        State::Stopped,
        State::Failed,
        State::Abandoned,
    ];
    const EVENTS: [Event; 9] = [
        Event::NeedsMet,
        Event::NeedsLost,
        Event::Announced,
        Event::SpawnFailed,
        Event::Exited { clean: true },
        Event::Exited { clean: false },
        Event::Timeout,
        Event::Silent,
        Event::Stop,
    ];
    const POLICIES: [Restart; 3] = [Restart::Always, Restart::OnFailure, Restart::Never];

    fn all() -> impl Iterator<Item = (State, Event, Restart)> {
        STATES.into_iter().flat_map(|state| {
            EVENTS.into_iter().flat_map(move |event| POLICIES.map(move |policy| (state, event, policy)))
        })
    }

    #[test]
    fn a_process_is_made_only_where_there_is_none() {
        for state in STATES {
            for event in EVENTS {
                for policy in POLICIES {
                    let (next, actions) = step(state, event, policy);
                    if actions.contains(&Action::Spawn) {
                        assert!(state == State::Waiting && next == State::Starting, "{state:?} {event:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_end_of_a_process_clears_what_it_left() {
        for state in STATES.into_iter().filter(|state| state.has_process()) {
            for clean in [true, false] {
                for policy in POLICIES {
                    let (next, actions) = step(state, Event::Exited { clean }, policy);
                    assert!(!next.has_process() && actions.contains(&Action::Clear), "{state:?}");
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
    fn backoff_doubles_from_the_shortest_pause_to_thirty_times_it() {
        for (min, expected) in [
            (1_000, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]),
            (40_000, [40_000; 7]),
            (1, [1, 2, 4, 8, 16, 30, 30]),
        ] {
            let mut pauses = vec![min];
            for _ in 0..6 {
                pauses.push(next_backoff(pauses[pauses.len() - 1], min));
            }
            assert_eq!(pauses, expected);
        }
    }

    #[test]
    fn a_process_that_runs_is_never_forgotten() {
        for (state, event, policy) in all() {
            let (next, actions) = step(state, event, policy);
            let is_let_go = actions.contains(&Action::Clear) || actions.contains(&Action::Abandon);
            assert!(!state.has_process() || next.has_process() || is_let_go, "{state:?} {event:?}");
        }
    }

    #[test]
    fn only_an_end_leads_out_of_abandoned_to_another_start() {
        for (state, event, policy) in all().filter(|(state, ..)| *state == State::Abandoned) {
            let (next, actions) = step(state, event, policy);
            let is_end = matches!(event, Event::Exited { .. });
            assert!(next.is_over() || is_end && actions == [Action::Clear], "{event:?}");
        }
    }

    #[test]
    fn a_lost_need_ends_in_waiting_and_nowhere_else() {
        for policy in POLICIES {
            for state in [State::Starting, State::Ready] {
                let (paused, actions) = step(state, Event::NeedsLost, policy);
                assert_eq!((paused, actions), (State::Pausing, &[Action::Terminate][..]));
            }
            for state in [State::Pausing, State::KillingPause] {
                for clean in [true, false] {
                    assert_eq!(step(state, Event::Exited { clean }, policy).0, State::Waiting);
                }
            }
        }
    }
}
