//! What one agent has spent: the sums, the caps, the periods. Pure; the clock comes in.
//!
//! Must hold: used and reserved together never exceed a cap by what is admitted here; what was reserved in a period counts in that
//! period, whenever it is settled; a clock that is set back never ends a period early.

use abi::control::Spent;
use abi::ids::AgentName;
use abi::network::{Budget, Period};
use serde::{Deserialize, Serialize};
use std::fmt;

const HOUR_MS: u64 = 3_600_000;

/// The form of the file. One that changes it reads the older ones, too.
pub const VERSION: u32 = 1;

/// The sums, as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    /// Of the file's form.
    pub version: u32,
    pub agent: AgentName,
    pub period: Period,
    /// None: nothing was used since the last reset or period.
    pub period_began_unix_ms: Option<u64>,
    pub hour_began_unix_ms: Option<u64>,
    pub used: Spent,
    pub reserved: Spent,
    /// Periods and hours that are over: a reservation belongs to one of each.
    pub periods: u64,
    pub hours: u64,
}

/// The period and the hour in which something was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct When {
    period: u64,
    hour: u64,
}

/// What there is not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    InputTokens,
    CacheTokens,
    OutputTokens,
    MicroDollars,
    CallsPerHour,
    Bytes,
    WallSecs,
}

/// A cap that does not admit what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhausted {
    pub agent: AgentName,
    pub unit: Unit,
    pub most: u64,
    pub used: u64,
    pub reserved: u64,
    pub wanted: u64,
    /// When what was used is forgotten.
    pub ends_unix_ms: Option<u64>,
}

impl Book {
    /// Nothing spent.
    pub fn new(agent: AgentName) -> Book {
        let (used, reserved) = (Spent::default(), Spent::default());
        Book {
            version: VERSION,
            agent,
            period: Period::default(),
            period_began_unix_ms: None,
            hour_began_unix_ms: None,
            used,
            reserved,
            periods: 0,
            hours: 0,
        }
    }

    /// Forgets what was spent. Reservations under way belong to the past then.
    pub fn reset(&mut self) {
        self.end_period();
        self.end_hour();
    }

    fn end_period(&mut self) {
        let calls_this_hour = self.used.calls_this_hour;
        self.used = Spent { calls_this_hour, ..Spent::default() };
        self.reserved = Spent::default();
        self.period_began_unix_ms = None;
        self.periods = self.periods.saturating_add(1);
    }

    fn end_hour(&mut self) {
        self.used.calls_this_hour = 0;
        self.hour_began_unix_ms = None;
        self.hours = self.hours.saturating_add(1);
    }

    /// Ends what is over by now. A start that lies in the future stays: nothing has elapsed since. A node that begins without a clock
    /// and is set right later would end its periods by that, if they began anew when it went back.
    pub fn roll(&mut self, now_unix_ms: u64) {
        if self.period_ends_unix_ms().is_some_and(|ends| ends <= now_unix_ms) {
            self.end_period();
        }
        if self.hour_ends_unix_ms().is_some_and(|ends| ends <= now_unix_ms) {
            self.end_hour();
        }
    }

    /// When the running period ends.
    pub fn period_ends_unix_ms(&self) -> Option<u64> {
        let length = match self.period {
            Period::Hour => HOUR_MS,
            Period::Day => 24 * HOUR_MS,
            Period::Month => 30 * 24 * HOUR_MS,
            Period::Total => return None,
        };
        self.period_began_unix_ms.map(|began| began.saturating_add(length))
    }

    /// When the hour ends in which calls are counted.
    pub fn hour_ends_unix_ms(&self) -> Option<u64> {
        self.hour_began_unix_ms.map(|began| began.saturating_add(HOUR_MS))
    }

    /// Takes a call and the most it can use, or nothing.
    pub fn reserve(&mut self, budget: &Budget, wanted: &Spent, now_unix_ms: u64) -> Result<When, Exhausted> {
        self.roll(now_unix_ms);
        self.check(budget, &Spent { calls_this_hour: 1, bytes: 0, wall_secs: 0, ..*wanted })?;
        self.period_began_unix_ms.get_or_insert(now_unix_ms);
        self.hour_began_unix_ms.get_or_insert(now_unix_ms);
        self.used.calls_this_hour = self.used.calls_this_hour.saturating_add(1);
        change(&mut self.reserved, wanted, u64::saturating_add);
        Ok(When { period: self.periods, hour: self.hours })
    }

    /// Puts what a call used in the place of its reservation.
    pub fn settle(&mut self, when: When, reserved: &Spent, used: &Spent) {
        if when.period == self.periods {
            change(&mut self.reserved, reserved, u64::saturating_sub);
            change(&mut self.used, used, u64::saturating_add);
        }
    }

    /// Gives back a call that never left.
    pub fn cancel(&mut self, when: When, reserved: &Spent) {
        self.settle(when, reserved, &Spent::default());
        if when.hour == self.hours {
            self.used.calls_this_hour = self.used.calls_this_hour.saturating_sub(1);
        }
    }

    /// Takes bytes, or none of them. None passes when no second is left.
    pub fn take_bytes(&mut self, budget: &Budget, bytes: u64, now_unix_ms: u64) -> Result<(), Exhausted> {
        self.roll(now_unix_ms);
        self.check(budget, &Spent { bytes, wall_secs: 1, ..Spent::default() })?;
        self.period_began_unix_ms.get_or_insert(now_unix_ms);
        self.used.bytes = self.used.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Counts seconds that have passed, as many as there are. An error: there are no more.
    pub fn tick(&mut self, budget: &Budget, secs: u64, now_unix_ms: u64) -> Result<(), Exhausted> {
        self.roll(now_unix_ms);
        let enough = self.check(budget, &Spent { wall_secs: secs, ..Spent::default() });
        self.period_began_unix_ms.get_or_insert(now_unix_ms);
        let most = budget.wall_secs_max.unwrap_or(u64::MAX).max(self.used.wall_secs);
        self.used.wall_secs = self.used.wall_secs.saturating_add(secs).min(most);
        enough
    }

    /// Whether every cap has room for this. What is not wanted is not asked about.
    pub fn check(&self, budget: &Budget, wanted: &Spent) -> Result<(), Exhausted> {
        for (unit, cap) in Unit::caps(budget) {
            let of = |spent: &Spent| unit.of(spent);
            let (used, reserved, wanted) = (of(&self.used), of(&self.reserved), of(wanted));
            let sum = used.saturating_add(reserved).saturating_add(wanted);
            if let Some(most) = cap
                && wanted > 0
                && (sum > most || sum == u64::MAX)
            {
                let ends_unix_ms = match unit {
                    Unit::CallsPerHour => self.hour_ends_unix_ms(),
                    _ => self.period_ends_unix_ms(),
                };
                let agent = self.agent.clone();
                return Err(Exhausted { agent, unit, most, used, reserved, wanted, ends_unix_ms });
            }
        }
        Ok(())
    }
}

/// Changes the amounts that calls reserve: tokens and money.
fn change(sum: &mut Spent, by: &Spent, how: fn(u64, u64) -> u64) {
    sum.input_tokens = how(sum.input_tokens, by.input_tokens);
    sum.cache_tokens = how(sum.cache_tokens, by.cache_tokens);
    sum.output_tokens = how(sum.output_tokens, by.output_tokens);
    sum.micro_dollars = how(sum.micro_dollars, by.micro_dollars);
}

impl Unit {
    fn caps(budget: &Budget) -> [(Unit, Option<u64>); 7] {
        [
            (Unit::InputTokens, budget.input_tokens_max),
            (Unit::CacheTokens, budget.cache_tokens_max),
            (Unit::OutputTokens, budget.output_tokens_max),
            (Unit::MicroDollars, budget.micro_dollars_max),
            (Unit::CallsPerHour, budget.calls_per_hour_max),
            (Unit::Bytes, budget.bytes_max),
            (Unit::WallSecs, budget.wall_secs_max),
        ]
    }

    fn of(self, spent: &Spent) -> u64 {
        match self {
            Unit::InputTokens => spent.input_tokens,
            Unit::CacheTokens => spent.cache_tokens,
            Unit::OutputTokens => spent.output_tokens,
            Unit::MicroDollars => spent.micro_dollars,
            Unit::CallsPerHour => spent.calls_this_hour,
            Unit::Bytes => spent.bytes,
            Unit::WallSecs => spent.wall_secs,
        }
    }

    /// As the manifest calls its cap.
    pub fn field(self) -> &'static str {
        match self {
            Unit::InputTokens => "capabilities.budget.max_input_tokens",
            Unit::CacheTokens => "capabilities.budget.max_cache_tokens",
            Unit::OutputTokens => "capabilities.budget.max_output_tokens",
            Unit::MicroDollars => "capabilities.budget.max_micro_dollars",
            Unit::CallsPerHour => "capabilities.max_api_calls_per_hour",
            Unit::Bytes => "capabilities.budget.max_bytes",
            Unit::WallSecs => "capabilities.budget.max_wall_secs",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::InputTokens => "input tokens",
            Unit::CacheTokens => "cache tokens",
            Unit::OutputTokens => "output tokens",
            Unit::MicroDollars => "micro-dollars",
            Unit::CallsPerHour => "calls in this hour",
            Unit::Bytes => "bytes",
            Unit::WallSecs => "seconds with a network",
        })
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exhausted { agent, unit, most, used, reserved, wanted, .. } = self;
        write!(
            f,
            "agent {agent} may use {most} {unit}: {used} are used, {reserved} reserved, {wanted} wanted"
        )
    }
}

impl Exhausted {
    /// What was refused, the same for each byte and call that is.
    pub fn what(&self) -> String {
        format!("more than {} {}", self.most, self.unit)
    }

    /// How to put it right, for the agent and the operator.
    pub fn remedy(&self) -> String {
        let Exhausted { agent, unit, .. } = self;
        let wait = match self.ends_unix_ms {
            Some(ends) => format!("wait until {ends} (milliseconds since 1970), "),
            None => String::new(),
        };
        format!("{wait}raise {} in the manifest, or: nullctl net budget {agent} --reset", unit.field())
    }
}
