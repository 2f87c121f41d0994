//! What ends a life that goes on: its age, nobody's use of it, failed health checks. Pure: it is told the time and what was seen.
//!
//! Must hold: time spent paused counts neither as idle nor as a missed health check; it counts as age.

use abi::limits;
use abi::manifest::{HealthCheck, Manifest};
use std::time::{Duration, Instant};

/// Looks at an agent's use within its idle time.
const LOOKS: u32 = 4;
/// Intervals without a word of a health check, beside its own time limit, that count as a failure.
const SILENT_INTERVALS: u32 = 3;

/// Why a life is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Lifetime(String),
    Idle(String),
    Unhealthy(String),
}

/// What a health check changed, worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    BecameHealthy,
    BecameUnhealthy,
    /// As before.
    None,
}

/// The watch over one life.
#[derive(Debug)]
pub struct Vigil {
    lifetime: Option<Duration>,
    idle: Option<Duration>,
    check: Option<HealthCheck>,
    began: Instant,
    /// The same, as far as its health goes.
    started: Instant,
    used: Instant,
    looked: Instant,
    heard: Instant,
    healthy: Option<bool>,
    was_healthy: bool,
    failures: u32,
    network_bytes: u64,
}

impl Vigil {
    /// Begins when the agent's command runs.
    pub fn new(manifest: &Manifest, now: Instant) -> Vigil {
        let seconds = |seconds: Option<u32>| seconds.map(|s| Duration::from_secs(s.into()));
        Vigil {
            lifetime: seconds(manifest.lifetime_secs_max),
            idle: seconds(manifest.idle_secs_max),
            check: manifest.health_check.clone(),
            began: now,
            started: now,
            used: now,
            looked: now,
            heard: now,
            healthy: None,
            was_healthy: false,
            failures: 0,
            network_bytes: 0,
        }
    }

    /// When there is something to decide next; none: nothing bounds this life. `is_paused`: only its age goes on.
    pub fn due(&self, is_paused: bool) -> Option<Instant> {
        let age = self.lifetime.map(|lifetime| self.began + lifetime);
        if is_paused {
            return age;
        }
        let look = self.idle.map(|idle| self.looked + idle / LOOKS);
        let silence = self.check.as_ref().map(|check| self.heard + silence(check));
        [age, look, silence].into_iter().flatten().min()
    }

    /// Whether the life has lasted long enough.
    pub fn age(&self, now: Instant) -> Option<Verdict> {
        let lifetime = self.lifetime.filter(|lifetime| now >= self.began + *lifetime)?;
        Some(Verdict::Lifetime(format!("its lifetime of {} s is over", lifetime.as_secs())))
    }

    /// Whether it is time to look at its use.
    pub fn is_look_due(&self, now: Instant) -> bool {
        self.idle.is_some_and(|idle| now >= self.looked + idle / LOOKS)
    }

    /// Takes what a look saw: when the guest was last used, whether an exec, a copy or a caller is there, and the bytes that
    /// went over its network so far, if that is known.
    pub fn saw(
        &mut self,
        now: Instant,
        used: Instant,
        is_attended: bool,
        network_bytes: Option<u64>,
    ) -> Option<Verdict> {
        self.looked = now;
        let went = network_bytes.is_some_and(|bytes| bytes != self.network_bytes);
        self.network_bytes = network_bytes.unwrap_or(self.network_bytes);
        self.used = if is_attended || went { now } else { self.used.max(used) };
        let idle = self.idle.filter(|idle| now >= self.used + *idle)?;
        Some(Verdict::Idle(format!("nobody used it for {} s", idle.as_secs())))
    }

    /// What silence means, if it has lasted long enough.
    pub fn silence(&self, now: Instant) -> Option<String> {
        let check = self.check.as_ref()?;
        let patience = silence(check);
        (now >= self.heard + patience)
            .then(|| format!("the guest told of no health check for {} s", patience.as_secs()))
    }

    /// Takes the outcome of a health check. A guest that tells of one nobody asked for, or of more than were asked for, is not
    /// listened to: what it says costs a receipt.
    pub fn checked(&mut self, now: Instant, healthy: bool, detail: &str) -> (Change, Option<Verdict>) {
        let Some(check) = &self.check else { return (Change::None, None) };
        let interval = Duration::from_secs(check.interval_secs.into());
        if self.healthy.is_some() && now < self.heard + interval / 2 {
            return (Change::None, None);
        }
        self.heard = now;
        let before = self.healthy.replace(healthy);
        if healthy {
            (self.failures, self.was_healthy) = (0, true);
            return (if before == Some(true) { Change::None } else { Change::BecameHealthy }, None);
        }
        let is_coming_up =
            !self.was_healthy && now < self.started + Duration::from_millis(limits::HEALTH_START_MS);
        self.failures = if is_coming_up { 0 } else { self.failures.saturating_add(1) };
        let change = if before == Some(false) { Change::None } else { Change::BecameUnhealthy };
        let verdict = (self.failures >= check.max_failures).then(|| {
            Verdict::Unhealthy(format!(
                "unhealthy: {} health checks failed, the last one: {detail}",
                self.failures
            ))
        });
        (change, verdict)
    }

    /// Of the last check; none: there was none.
    pub fn healthy(&self) -> Option<bool> {
        self.healthy
    }

    /// It goes on after having been paused for so long.
    pub fn resumed(&mut self, paused: Duration) {
        for at in [&mut self.started, &mut self.used, &mut self.looked, &mut self.heard] {
            *at += paused;
        }
    }
}

fn silence(check: &HealthCheck) -> Duration {
    let interval = Duration::from_secs(check.interval_secs.into());
    interval * SILENT_INTERVALS + Duration::from_millis(limits::HEALTH_TIMEOUT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn vigil(fields: &str, now: Instant) -> Vigil {
        let text =
            format!("[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n{fields}\n");
        Vigil::new(&abi::manifest::parse("a.toml", &text).unwrap(), now)
    }

    const CHECK: &str = "[capabilities.health_check]\nport = 80\ninterval_secs = 10\nmax_failures = 3";

    #[test]
    fn without_bounds_nothing_is_due() {
        let now = Instant::now();
        let mut vigil = vigil("", now);
        assert_eq!(vigil.due(false), None);
        assert_eq!(vigil.age(now + 1_000_000 * SECOND), None);
        assert_eq!(vigil.checked(now, false, "uninvited"), (Change::None, None));
        assert_eq!(vigil.healthy(), None);
    }

    #[test]
    fn a_lifetime_ends_the_life_paused_or_not() {
        let now = Instant::now();
        let vigil = vigil("max_lifetime_secs = 60", now);
        assert_eq!(vigil.due(false), Some(now + 60 * SECOND));
        assert_eq!(vigil.due(true), Some(now + 60 * SECOND));
        assert_eq!(vigil.age(now + 59 * SECOND), None);
        assert!(matches!(vigil.age(now + 60 * SECOND), Some(Verdict::Lifetime(why)) if why.contains("60 s")));
    }

    #[test]
    fn any_use_puts_the_idle_end_off_and_a_pause_does_not_count() {
        let now = Instant::now();
        let mut vigil = vigil("idle_timeout_secs = 40", now);
        assert_eq!(vigil.due(false), Some(now + 10 * SECOND));
        assert!(!vigil.is_look_due(now + 9 * SECOND) && vigil.is_look_due(now + 10 * SECOND));
        let at = |seconds: u32| now + seconds * SECOND;
        assert_eq!(vigil.saw(at(10), at(5), false, Some(0)), None); // output at 5
        assert_eq!(vigil.saw(at(44), at(5), false, Some(0)), None);
        assert_eq!(vigil.saw(at(45), at(5), true, Some(0)), None); // an exec at 45
        assert_eq!(vigil.saw(at(80), at(5), false, Some(7)), None); // bytes at 80
        assert_eq!(vigil.saw(at(110), at(5), false, None), None); // egress does not answer
        assert_eq!(vigil.due(true), None);
        vigil.resumed(100 * SECOND);
        assert_eq!(vigil.saw(at(219), at(5), false, Some(7)), None);
        assert!(matches!(vigil.saw(at(220), at(5), false, Some(7)), Some(Verdict::Idle(_))));
    }

    #[test]
    fn failures_in_a_row_end_the_life_and_a_success_forgives_them() {
        let mut now = Instant::now();
        let mut vigil = vigil(CHECK, now);
        let mut check = |healthy, detail: &str| {
            now += 10 * SECOND;
            vigil.checked(now, healthy, detail)
        };
        assert_eq!(check(true, ""), (Change::BecameHealthy, None));
        assert_eq!(check(false, "503"), (Change::BecameUnhealthy, None));
        assert_eq!(check(false, "503"), (Change::None, None));
        assert_eq!(check(true, ""), (Change::BecameHealthy, None));
        for _ in 0..2 {
            assert_eq!(check(false, "503").1, None);
        }
        let (_, verdict) = check(false, "no answer");
        assert!(
            matches!(verdict, Some(Verdict::Unhealthy(why)) if why.contains("3 health checks") && why.contains("no answer"))
        );
    }

    #[test]
    fn an_agent_has_time_to_become_healthy_and_no_more() {
        let now = Instant::now();
        let mut vigil = vigil(CHECK, now);
        for seconds in [10, 20, 29] {
            assert_eq!(vigil.checked(now + seconds * SECOND, false, "refused").1, None);
        }
        assert_eq!(vigil.checked(now + 40 * SECOND, false, "refused").1, None);
        assert_eq!(vigil.checked(now + 50 * SECOND, false, "refused").1, None);
        assert!(vigil.checked(now + 60 * SECOND, false, "refused").1.is_some());
    }

    #[test]
    fn a_guest_that_floods_with_checks_changes_nothing() {
        let now = Instant::now();
        let mut vigil = vigil(CHECK, now);
        vigil.checked(now, true, "");
        for number in 0..10_000u32 {
            let said = vigil.checked(now + number * SECOND / 10_000, number % 2 == 0, "");
            assert_eq!(said, (Change::None, None));
        }
        assert_eq!(vigil.healthy(), Some(true));
    }

    #[test]
    fn a_silent_guest_fails_its_checks_and_a_paused_one_does_not() {
        let now = Instant::now();
        let mut vigil = vigil(CHECK, now);
        assert_eq!(vigil.due(false), Some(now + 35 * SECOND));
        assert_eq!(vigil.silence(now + 34 * SECOND), None);
        assert!(vigil.silence(now + 35 * SECOND).is_some());
        vigil.resumed(100 * SECOND);
        assert_eq!(vigil.silence(now + 134 * SECOND), None);
        let mut at = now + 135 * SECOND;
        for failures in 1..=3 {
            let why = vigil.silence(at).unwrap();
            let (_, verdict) = vigil.checked(at, false, &why);
            assert_eq!(verdict.is_some(), failures == 3);
            assert_eq!(vigil.silence(at), None);
            at += 35 * SECOND;
        }
    }
}
