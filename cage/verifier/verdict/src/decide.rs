//! The decision on one call: first rule that refuses, else one question that names all that ask, else allowed.
//!
//! Must hold: total and deterministic; what no rule names is denied; a denial comes before a question; a question that one rule asks is
//! not taken back by another. Must never: allocate on the way to a verdict ([`Ruling::explained`] does, for people).

use abi::authority::{
    Amounts, Authority as Policies, Call, Level, Operation, PathPattern, Risk, Situation, Sources, Target,
};
use abi::exposure::Exposure;
use abi::ids::HostName;
use abi::tools::BUILT_IN;
use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::authority::Authority;
use crate::budget::{Exhausted, exhausted};
use crate::exposure::EVERYTHING;

mod explain;

pub use abi::authority::{Decision, Verdict};

/// What a manifest says beside its rules: where values come from, and what its tools are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    sources: Sources,
    tools: BTreeMap<String, Known>,
}

/// A tool that may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    operation: Operation,
    risk: Risk,
    /// Of the manifest's own: what it does with its arguments is its own affair.
    is_own: bool,
}

impl Policy {
    /// From the checked manifest.
    pub fn of(policies: &Policies) -> Policy {
        let built_in = BUILT_IN.into_iter().filter_map(|(name, operation)| {
            Some((String::from(name), Known { operation: operation?, risk: Risk::Low, is_own: false }))
        });
        let mut tools: BTreeMap<String, Known> = built_in.collect();
        for (name, tool) in &policies.tools {
            let known = Known { operation: tool.operation, risk: tool.risk, is_own: tool.command.is_some() };
            tools.insert(String::from(name.as_str()), known);
        }
        Policy { sources: policies.sources.clone(), tools }
    }

    /// The same with further private paths: a task's tree.
    #[must_use]
    pub fn with_private(mut self, path: PathPattern) -> Policy {
        self.sources.private.push(path);
        self
    }

    /// Where values come from.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What calling a tool is: its operation and its risk; none of a tool that is not there.
    pub fn tool(&self, name: &str) -> Option<(Operation, Risk)> {
        self.tools.get(name).map(|known| (known.operation, known.risk))
    }
}

/// Why a call is denied. The words of the rules are those of docs/authority.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The authority's time is over.
    Expired {
        until_unix_ms: u64,
    },
    /// No such tool, or it does something else.
    Tool,
    /// The operation is `never`.
    Level,
    /// A path that no tool touches.
    Never,
    /// In no list of one of the rules; or no path in its one spelling.
    Path,
    Command,
    Name,
    Agent,
    /// There may be no agent below this one.
    Depth,
    /// A bound has no room.
    Budget(Exhausted),
}

/// Who asks: a set, in the order of docs/authority.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Asks(u8);

impl Asks {
    pub const NONE: Asks = Asks(0);
    /// The operation's level is `ask`.
    pub const LEVEL: Asks = Asks(1);
    /// The tool's risk is high or critical.
    pub const RISK: Asks = Asks(2);
    /// Private data and strangers' text meet a sink.
    pub const EXPOSURE: Asks = Asks(4);
    /// A step of an operator that is always asked for: a verified patch goes somewhere.
    pub const STEP: Asks = Asks(8);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Asks) -> Asks {
        Asks(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    pub const fn has(self, other: Asks) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    const fn when(self, asks: bool) -> Asks {
        if asks { self } else { Asks::NONE }
    }
}

/// What becomes of a call, before it is put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling<'a> {
    call: &'a Call,
    denial: Option<Denial>,
    asks: Asks,
    risk: Risk,
    exposure: Exposure,
    labels: Exposure,
}

impl<'a> Ruling<'a> {
    /// A denial before a question, a question before leave.
    pub fn verdict(&self) -> Verdict {
        match (self.denial, self.asks) {
            (Some(_), _) => Verdict::Deny,
            (None, Asks::NONE) => Verdict::Allow,
            (None, _) => Verdict::Ask,
        }
    }

    /// The call that was judged.
    pub fn call(&self) -> &'a Call {
        self.call
    }

    pub fn denial(&self) -> Option<Denial> {
        self.denial
    }

    pub fn asks(&self) -> Asks {
        self.asks
    }

    pub fn risk(&self) -> Risk {
        self.risk
    }

    /// By what the sink was judged; of what is no sink, what flows in.
    pub fn exposure(&self) -> Exposure {
        self.exposure
    }

    /// What the result carries.
    pub fn labels(&self) -> Exposure {
        self.labels
    }

    /// Whether the VM stands still until somebody decided.
    pub fn freezes(&self) -> bool {
        self.verdict() == Verdict::Ask && self.risk == Risk::Critical
    }
}

/// Decides a call. The order of the rules is that of docs/authority.md.
pub fn decide<'a>(
    authority: &Authority,
    policy: &Policy,
    situation: &Situation,
    call: &'a Call,
) -> Ruling<'a> {
    let known = policy.tools.get(call.tool.as_str());
    let is_own = known.is_some_and(|known| known.is_own);
    let risk = known.map_or(Risk::Critical, |known| known.risk);
    let flows = flowing(situation, call);
    let is_sink = call.operation.is_sink();
    let exposure = if is_sink { flows.and(Exposure::EXFILTRATION) } else { flows };
    let denial = denial(authority, known, situation, call);
    let asks = Asks::LEVEL
        .when(authority.level(call.operation) == Level::Ask)
        .and(Asks::RISK.when(risk >= Risk::High))
        .and(Asks::EXPOSURE.when(is_sink && flows.has(EVERYTHING) && !is_trusted(policy, &call.target)));
    let labels = labels(policy, situation, call, is_own);
    Ruling { call, denial, asks, risk, exposure, labels }
}

/// A step of an operator with a verified patch: no authority of an agent bounds it, and it is always asked for.
pub fn operator_step(call: &Call) -> Ruling<'_> {
    Ruling {
        call,
        denial: None,
        asks: Asks::STEP,
        risk: Risk::High,
        exposure: call.flows.and(Exposure::EXFILTRATION),
        labels: Exposure::NONE,
    }
}

/// What flows into a call. What a human declared fit to leave is the bytes of the arguments; what a reference stands for is not among them.
fn flowing(situation: &Situation, call: &Call) -> Exposure {
    if situation.is_declassified { call.flows } else { call.flows.and(situation.seen) }
}

fn denial(
    authority: &Authority,
    known: Option<&Known>,
    situation: &Situation,
    call: &Call,
) -> Option<Denial> {
    if let Some(until_unix_ms) = authority.until_unix_ms()
        && situation.now_unix_ms >= until_unix_ms
    {
        return Some(Denial::Expired { until_unix_ms });
    }
    let Some(known) = known.filter(|known| known.operation == call.operation) else {
        return Some(Denial::Tool);
    };
    if authority.level(call.operation) == Level::Never {
        return Some(Denial::Level);
    }
    if let Some(denial) = of_target(authority, call, known.is_own) {
        return Some(denial);
    }
    if call.operation == Operation::SpawnAgent && authority.depth() == 0 {
        return Some(Denial::Depth);
    }
    let left = situation.left.lesser(authority.budget());
    exhausted(&left, &situation.needs).map(Denial::Budget)
}

/// What the rules say of the target. A target of another kind than the operation's is in no list.
fn of_target(authority: &Authority, call: &Call, is_own: bool) -> Option<Denial> {
    use Operation::{
        EditFiles, GlobSearch, GrepSearch, ReadFiles, RunBash, SpawnAgent, WebFetch, WebSearch, WriteFiles,
    };
    let rules = authority.rules();
    let (denial, is_admitted) = match (call.operation, &call.target) {
        // What a program of the manifest does with its arguments no list is written about: its level and risk say whether it may.
        (_, Target::Arguments) if is_own => return None,
        (ReadFiles | WriteFiles | EditFiles | GlobSearch | GrepSearch, Target::Path(path)) => {
            return of_path(authority, call.operation, path);
        }
        (RunBash, Target::Command(command)) => {
            (Denial::Command, rules.iter().all(|rules| rules.commands.iter().any(|one| one.admits(command))))
        }
        (WebFetch | WebSearch, Target::Page { name, .. }) => {
            (Denial::Name, rules.iter().all(|rules| rules.names.iter().any(|one| one.admits(name))))
        }
        (SpawnAgent, Target::Agent(agent)) => {
            (Denial::Agent, rules.iter().all(|rules| rules.agents.contains(agent)))
        }
        (RunBash, _) => (Denial::Command, false),
        (SpawnAgent, _) => (Denial::Agent, false),
        (ReadFiles | WriteFiles | EditFiles | GlobSearch | GrepSearch, _) => (Denial::Path, false),
        _ => (Denial::Name, false),
    };
    (!is_admitted).then_some(denial)
}

fn of_path(authority: &Authority, operation: Operation, path: &str) -> Option<Denial> {
    if !abi::authority::is_plain(path) {
        return Some(Denial::Path);
    }
    let is_search = matches!(operation, Operation::GlobSearch | Operation::GrepSearch);
    let is_write = matches!(operation, Operation::WriteFiles | Operation::EditFiles);
    for rules in authority.rules() {
        if rules.never.iter().any(|pattern| pattern.covers(path)) {
            return Some(Denial::Never);
        }
    }
    for rules in authority.rules() {
        let list = if is_write { &rules.write } else { &rules.read };
        let is_admitted = |pattern: &PathPattern| {
            if is_search { pattern.admits_all_in(path) } else { pattern.admits(path) }
        };
        if !list.iter().any(is_admitted) {
            return Some(Denial::Path);
        }
    }
    None
}

fn is_trusted_name(policy: &Policy, name: &HostName) -> bool {
    policy.sources.trusted_names.iter().any(|pattern| pattern.admits(name))
}

fn is_trusted(policy: &Policy, target: &Target) -> bool {
    matches!(target, Target::Page { name, .. } if is_trusted_name(policy, name))
}

/// What a result carries, whatever becomes of the call. A search or a program carries all that it could read; what came by
/// reference stays in what answers to it.
fn labels(policy: &Policy, situation: &Situation, call: &Call, is_own: bool) -> Exposure {
    use Operation::{GlobSearch, GrepSearch, WebFetch, WebSearch, WriteFiles};
    let is_search = matches!(call.operation, GlobSearch | GrepSearch);
    match &call.target {
        _ if is_own => of_program(policy, situation, call),
        Target::Path(_) if call.operation == WriteFiles => Exposure::NONE,
        Target::Path(path) => {
            let at = |pattern: &PathPattern| pattern.covers(path) || (is_search && pattern.meets(path));
            from(policy, at).and(situation.written)
        }
        Target::Command(_) => of_program(policy, situation, call),
        Target::Page { name, .. } if matches!(call.operation, WebFetch | WebSearch) => {
            let is_strange = !is_trusted_name(policy, name);
            call.flows.and(if is_strange { Exposure::UNTRUSTED_CONTENT } else { Exposure::NONE })
        }
        // What another agent answers may be anything that it saw.
        Target::Page { .. } | Target::Agent(_) | Target::Arguments => EVERYTHING,
    }
}

fn of_program(policy: &Policy, situation: &Situation, call: &Call) -> Exposure {
    from(policy, |_| true).and(situation.written).and(call.flows)
}

fn from(policy: &Policy, at: impl Fn(&PathPattern) -> bool) -> Exposure {
    let one = |list: &[PathPattern], label| if list.iter().any(&at) { label } else { Exposure::NONE };
    one(&policy.sources.private, Exposure::PRIVATE_DATA)
        .and(one(&policy.sources.untrusted, Exposure::UNTRUSTED_CONTENT))
}

/// What a search passes over: what no tool touches.
pub fn passed_over(authority: &Authority) -> impl Iterator<Item = &PathPattern> {
    authority.rules().iter().flat_map(|rules| &rules.never)
}

/// One call, and nothing else: what the desk reserves at least for each.
pub const ONE_CALL: Amounts = Amounts {
    wall_ms: None,
    cpu_ms: None,
    memory_mib: None,
    disk_mib: None,
    output_bytes: None,
    tokens: None,
    micro_dollars: None,
    calls: Some(1),
};
