//! Whether an agent is started again by itself, and when. Pure.

use abi::limits;
use abi::manifest::{Restart, RestartPolicy};
use std::time::Duration;

/// How a life ended, as its restart policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody asked, or it was quarantined: nobody wants it to run.
    Asked,
    /// Its command ended with status 0.
    Well,
    /// Any other status, a signal, a broken VM, failed health checks.
    Badly,
    /// It reached its lifetime.
    Lifetime,
    /// Nobody used it.
    Idle,
}

/// What the policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays as it ended.
    Rest,
    /// It would be started again, but for the number of restarts.
    GiveUp,
    /// It is started again after a pause, as the `attempt`th in a row.
    Again { attempt: u32, pause: Duration },
}

/// Decides. `restarts`: in a row so far. `ran`: how long the command ran; none if it never did.
pub fn decide(restart: Restart, outcome: Outcome, restarts: u32, ran: Option<Duration>) -> Verdict {
    let wanted = match (restart.policy, outcome) {
        // An agent that nobody uses would be started only to be ended again.
        (RestartPolicy::Never, _) | (_, Outcome::Asked | Outcome::Idle) => false,
        (RestartPolicy::OnFailure, Outcome::Well | Outcome::Lifetime) => false,
        (RestartPolicy::OnFailure, Outcome::Badly) => true,
        (RestartPolicy::Always, Outcome::Well | Outcome::Badly | Outcome::Lifetime) => true,
    };
    // Who asked for a start that failed has the reason; only what the policy itself began is tried again.
    if !wanted || (ran.is_none() && restarts == 0) {
        return Verdict::Rest;
    }
    let lasted = ran.is_some_and(|ran| ran >= Duration::from_millis(limits::RESTART_RESET_MS));
    let before = if lasted || outcome == Outcome::Lifetime { 0 } else { restarts };
    if before >= restart.max {
        return Verdict::GiveUp;
    }
    let doubled = 1u64.checked_shl(before).unwrap_or(u64::MAX);
    let pause_ms = limits::RESTART_PAUSE_MS_MIN.saturating_mul(doubled).min(limits::RESTART_PAUSE_MS_MAX);
    Verdict::Again { attempt: before + 1, pause: Duration::from_millis(pause_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTCOMES: [Outcome; 5] =
        [Outcome::Asked, Outcome::Well, Outcome::Badly, Outcome::Lifetime, Outcome::Idle];
    const SHORT: Option<Duration> = Some(Duration::from_secs(1));

    fn again(policy: RestartPolicy) -> Vec<Outcome> {
        let restart = Restart { policy, max: 3 };
        let goes_on = |outcome: &Outcome| decide(restart, *outcome, 0, SHORT) != Verdict::Rest;
        OUTCOMES.into_iter().filter(goes_on).collect()
    }

    #[test]
    fn each_policy_starts_after_its_own_ends_and_none_after_a_request() {
        assert_eq!(again(RestartPolicy::Never), []);
        assert_eq!(again(RestartPolicy::OnFailure), [Outcome::Badly]);
        assert_eq!(again(RestartPolicy::Always), [Outcome::Well, Outcome::Badly, Outcome::Lifetime]);
    }

    #[test]
    fn pauses_double_to_their_bound_and_the_count_has_one_too() {
        let restart = Restart { policy: RestartPolicy::OnFailure, max: 70 };
        let mut before = Duration::ZERO;
        for restarts in 0..70 {
            let Verdict::Again { attempt, pause } = decide(restart, Outcome::Badly, restarts, SHORT) else {
                panic!("{restarts}");
            };
            assert_eq!(attempt, restarts + 1);
            assert!(pause >= before && pause <= Duration::from_millis(limits::RESTART_PAUSE_MS_MAX));
            before = pause;
        }
        assert_eq!(before, Duration::from_millis(limits::RESTART_PAUSE_MS_MAX));
        assert_eq!(decide(restart, Outcome::Badly, 70, SHORT), Verdict::GiveUp);
        let first = decide(restart, Outcome::Badly, 0, SHORT);
        let pause = Duration::from_millis(limits::RESTART_PAUSE_MS_MIN);
        assert_eq!(first, Verdict::Again { attempt: 1, pause });
    }

    #[test]
    fn a_long_life_begins_the_count_anew() {
        let restart = Restart { policy: RestartPolicy::Always, max: 2 };
        let long = Some(Duration::from_millis(limits::RESTART_RESET_MS));
        assert!(matches!(decide(restart, Outcome::Badly, 2, long), Verdict::Again { attempt: 1, .. }));
        assert!(matches!(decide(restart, Outcome::Lifetime, 2, SHORT), Verdict::Again { attempt: 1, .. }));
        assert_eq!(decide(restart, Outcome::Well, 2, SHORT), Verdict::GiveUp);
    }

    #[test]
    fn a_start_that_somebody_asked_for_and_that_failed_is_not_tried_again() {
        let restart = Restart { policy: RestartPolicy::Always, max: 2 };
        assert_eq!(decide(restart, Outcome::Badly, 0, None), Verdict::Rest);
        assert!(matches!(decide(restart, Outcome::Badly, 1, None), Verdict::Again { attempt: 2, .. }));
    }
}
