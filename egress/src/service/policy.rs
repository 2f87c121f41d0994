//! `net.allow`, `net.deny`, `net.revoke`, `net.policy`, `net.explain`, `net.suggest`, `net.watch`, `net.forget`.
//!
//! Must hold: a change is checked, then its receipt is durable, then it is kept, then in force with what it forbids cut, then
//! answered. No receipt, no change. A grant ends when its time does, whether or not anybody asks.

use abi::control::{
    Effect, Explanation, LiveChange, LiveChanges, NetAgent, NetAllow, NetChanged, NetExplain, NetRefuse,
    PolicyRecord, Suggestions, Watched,
};
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, Instance};
use abi::ledger::Event;
use abi::network::{NamePattern, NetworkGrant, PORTS_DEFAULT};
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Egress, FOLLOW_POLL, gone, to_value};
use crate::agent::{Agent, unix_ms_now};
use crate::live::{LiveError, Step, Wanted, step};
use crate::policy::{Admission, BROKER_SUFFIX, Policy, Refused, Way};
use crate::records::Item;
use crate::{guard, page, suggest};

/// Longest sleep of who ends grants: a clock that was set is noticed by then.
const ENDS_POLL: Duration = Duration::from_secs(10);
/// Pause before the receipt of an end is asked for again.
const EXPIRE_PAUSE: Duration = Duration::from_secs(5);

impl Egress {
    pub(super) fn allow(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetAllow { agent, grant, secs } = call.request.params()?;
        if let Some((rule, remedy)) = grant.fault() {
            return Err(RpcError::new(Code::INVALID_PARAMS, format!("`{grant}` cannot be granted"))
                .explained(rule, remedy));
        }
        if secs.is_some_and(|secs| !(1..=limits::LIVE_GRANT_SECS_MAX).contains(&secs)) {
            let rule = format!("a time is 1 to {} s", limits::LIVE_GRANT_SECS_MAX);
            return Err(RpcError::new(Code::INVALID_PARAMS, "no grant can last so long")
                .explained(rule, "leave the time out: the grant then ends with the agent's network"));
        }
        let change = LiveChange {
            instance: Some(self.life_of(&agent)?),
            agent,
            effect: Effect::Allow,
            grant,
            until_unix_ms: secs.map(|secs| unix_ms_now().saturating_add(secs.saturating_mul(1000))),
            by: call.caller.to_string(),
            receipt: 0,
        };
        self.change("allow", Wanted::Allow(change))
    }

    pub(super) fn deny(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetRefuse { agent, name } = call.request.params()?;
        not_the_brokers(&name)?;
        self.change("deny", Wanted::Deny(denial(agent, name, None, call)))
    }

    pub(super) fn revoke(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetRefuse { agent, name } = call.request.params()?;
        not_the_brokers(&name)?;
        let life = self.life_of(&agent)?;
        self.change("revoke", Wanted::Deny(denial(agent, name, Some(life), call)))
    }

    /// Takes denials and revocations of a pattern back. It grants nothing: what the manifest says holds again.
    pub(super) fn lift(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetRefuse { agent, name } = call.request.params()?;
        let live = &self.node.live;
        let _turn = live.turn();
        let is_it = |change: &LiveChange| {
            (change.effect, &change.agent, &change.grant.name) == (Effect::Deny, &agent, &name)
        };
        let (lifted, rest): (Vec<_>, Vec<_>) = live.all().map_err(in_rpc)?.into_iter().partition(is_it);
        let Some(mut change) = lifted.into_iter().next() else {
            return Err(RpcError::new(Code::NOT_FOUND, format!("nobody denied `{name}` to {agent}"))
                .explained("what is lifted is a denial of the same pattern", "see nullctl net policy"));
        };
        (change.by, change.until_unix_ms) = (call.caller.to_string(), None);
        change.receipt = self.receipt_of("lift", &change)?;
        live.keep(rest).map_err(in_rpc)?;
        let cut = self.renew(&agent);
        self.record("lift", &change);
        log::info("policy_changed", &[("agent", &agent), ("change", &"lift"), ("entry", &entry_of(&change))]);
        let now = format!("{agent} may reach {name} as its manifest and live grants say");
        Ok(Outcome::Result(to_value(&NetChanged { now, cut, receipt: change.receipt })?))
    }

    /// The durable receipt of a change; its place in the ledger.
    fn receipt_of(&self, word: &str, change: &LiveChange) -> Result<u64, RpcError> {
        let event = Event::NetPolicyChanged {
            agent: change.agent.clone(),
            change: word.to_owned(),
            entry: entry_of(change),
            until_unix_ms: change.until_unix_ms,
            by: change.by.clone(),
        };
        let receipt = self.node.receipts.durable(event).map_err(|error| {
            RpcError::new(Code::UNAVAILABLE, format!("no receipt, so no change: {error}")).explained(
                "a change is in force after its receipt is durable",
                "see that ctxgraph is running",
            )
        })?;
        Ok(receipt.seq)
    }

    /// The newest life of an agent that has a network.
    fn life_of(&self, agent: &AgentName) -> Result<Instance, RpcError> {
        let lives = self.agents();
        let newest = lives.keys().filter(|life| life.agent == *agent).max_by_key(|life| life.generation);
        newest.cloned().ok_or_else(|| not_running(agent))
    }

    fn change(&self, word: &str, wanted: Wanted) -> Result<Outcome, RpcError> {
        let live = &self.node.live;
        let _turn = live.turn();
        let all = live.all().map_err(in_rpc)?;
        let mut changes = match step(all, wanted, unix_ms_now()) {
            Step::Change(changes) => changes,
            Step::Stands(change) => {
                let answer = NetChanged { now: in_words(&change), cut: 0, receipt: change.receipt };
                return Ok(Outcome::Result(to_value(&answer)?));
            }
            Step::Covered(above) => {
                let name = &above.grant.name;
                return Err(RpcError::new(Code::CONFLICT, format!("{} denied `{name}`", above.by))
                    .explained(
                        "a denial beats every grant of its names",
                        format!("lift it first: nullctl net lift {} '{name}'", above.agent),
                    ));
            }
        };
        if live.fits(&changes).is_err() {
            let new = changes.pop();
            self.leave_out_ended(&mut changes);
            changes.extend(new);
        }
        live.fits(&changes).map_err(in_rpc)?;
        let Some(new) = changes.last_mut() else {
            return Err(RpcError::new(Code::INTERNAL, "a change without a change"));
        };
        new.receipt = self.receipt_of(word, new)?;
        let new = new.clone();
        live.keep(changes).map_err(in_rpc)?;
        let cut = self.renew(&new.agent);
        self.record(word, &new);
        self.ends.notify_one();
        log::info(
            "policy_changed",
            &[("agent", &new.agent), ("change", &word), ("entry", &entry_of(&new)), ("cut", &cut)],
        );
        let answer = NetChanged { now: in_words(&new), cut, receipt: new.receipt };
        Ok(Outcome::Result(to_value(&answer)?))
    }

    /// Puts what is kept into force for an agent's lives; returns how many connections were cut.
    fn renew(&self, agent: &AgentName) -> usize {
        let lives: Vec<_> = self.agents().values().filter(|one| one.is_of(agent)).cloned().collect();
        lives.iter().map(|one| self.renew_one(one)).sum()
    }

    /// The same for one life.
    pub(super) fn renew_one(&self, agent: &Agent) -> usize {
        agent.renew(|policy| match self.node.live.of(&agent.instance, policy.works_for.as_ref()) {
            Ok(live) => policy.live = live,
            Err(error) => log::error("live_policy_unknown", &[("agent", &agent.instance), ("error", &error)]),
        })
    }

    fn record(&self, word: &str, change: &LiveChange) {
        self.node.records.push(Item::Policy(PolicyRecord {
            unix_ms: unix_ms_now(),
            agent: change.agent.clone(),
            change: word.to_owned(),
            entry: entry_of(change),
            until_unix_ms: change.until_unix_ms,
            by: change.by.clone(),
            receipt: change.receipt,
        }));
    }

    /// Changes that hold for a life, at its beginning.
    pub(super) fn live_of(
        &self,
        instance: &Instance,
        works_for: Option<&AgentName>,
    ) -> Result<Vec<LiveChange>, RpcError> {
        self.node.live.of(instance, works_for).map_err(in_rpc)
    }

    /// Forgets what was for the lives before this one. Not when a network ends: until another life begins, cage may attach the same
    /// one again, and its guest still runs.
    pub(super) fn forget_past_lives(&self, newest: &Instance) {
        let live = &self.node.live;
        let _turn = live.turn();
        let Ok(mut changes) = live.all() else { return };
        let before = changes.len();
        {
            let lives = self.agents();
            let is_past = |life: &Instance| {
                life.agent == newest.agent && life.generation < newest.generation && !lives.contains_key(life)
            };
            changes.retain(|change| !change.instance.as_ref().is_some_and(is_past));
        }
        if changes.len() != before
            && let Err(error) = live.keep(changes)
        {
            log::error("live_policy_not_kept", &[("agent", &newest.agent), ("error", &error)]);
        }
    }

    /// Leaves out what was for lives that have no network. Only for room: agents that never start again must not fill the file for ever.
    fn leave_out_ended(&self, changes: &mut Vec<LiveChange>) {
        let before = changes.len();
        let lives = self.agents();
        changes.retain(|change| change.instance.as_ref().is_none_or(|life| lives.contains_key(life)));
        log::warning("live_changes_of_ended_lives_left_out", &[("changes", &(before - changes.len()))]);
    }

    /// Ends live grants when their time does, for ever.
    pub fn end_grants(&self) {
        let mut told = Vec::new();
        loop {
            let wait = match self.end_due(&mut told) {
                Ok(wait) => wait,
                Err(error) => {
                    log::error("grant_not_ended", &[("error", &error)]);
                    EXPIRE_PAUSE
                }
            };
            self.ends.wait(wait);
        }
    }

    /// Ends what is due; how long until the next is. `told`: what has its receipt and could not be forgotten yet.
    fn end_due(&self, told: &mut Vec<LiveChange>) -> Result<Duration, Box<dyn std::error::Error>> {
        let live = &self.node.live;
        let Ok(known) = live.all() else { return Ok(ENDS_POLL) };
        let now = unix_ms_now();
        let is_due = |change: &LiveChange| change.until_unix_ms.is_some_and(|until| until <= now);
        if known.iter().any(is_due) {
            // They admit nothing since their time: what is left is to cut, to say so and to forget.
            let agents: Vec<_> = self.agents().values().cloned().collect();
            let cut: usize = agents.iter().map(|agent| agent.cut_expired()).sum();
            log::info("grants_ended", &[("cut", &cut)]);
            let _turn = live.turn();
            let (due, rest): (Vec<_>, Vec<_>) = live.all()?.into_iter().partition(is_due);
            told.retain(|change| due.contains(change));
            for change in &due {
                if told.contains(change) {
                    continue;
                }
                let receipt = self.node.receipts.durable(Event::NetPolicyChanged {
                    agent: change.agent.clone(),
                    change: "expire".into(),
                    entry: entry_of(change),
                    until_unix_ms: change.until_unix_ms,
                    by: change.by.clone(),
                })?;
                self.record("expire", &LiveChange { receipt: receipt.seq, ..change.clone() });
                told.push(change.clone());
            }
            live.keep(rest)?;
            for change in &due {
                self.renew(&change.agent);
            }
        }
        let next = live.all()?.iter().filter_map(|change| change.until_unix_ms).min();
        let until = next.map(|next| Duration::from_millis(next.saturating_sub(unix_ms_now())));
        Ok(until.map_or(ENDS_POLL, |until| until.min(ENDS_POLL)))
    }

    pub(super) fn policy(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetAgent { agent } = call.request.params()?;
        let mut changes = self.node.live.all().map_err(in_rpc)?;
        let lives: BTreeSet<Instance> = self.agents().keys().cloned().collect();
        changes.retain(|change| {
            // What is kept for a life without a network holds for nobody now.
            agent.as_ref().is_none_or(|agent| change.agent == *agent)
                && change.instance.as_ref().is_none_or(|life| lives.contains(life))
        });
        let (changes, left_out) = page::newest_that_fit(changes);
        Ok(Outcome::Result(to_value(&LiveChanges { changes, left_out })?))
    }

    pub(super) fn explain(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetExplain { agent: name, name: host, port } = call.request.params()?;
        let life = self.life_of(&name)?;
        let agent = self.agents().get(&life).cloned().ok_or_else(|| not_running(&name))?;
        let answer = match agent.foresee(&host, port) {
            Ok(admission) => admitted(&agent.policy(), &admission),
            Err(Refused { rule, because, remedy }) => {
                Explanation { allowed: false, rule: rule.to_owned(), because, remedy }
            }
        };
        Ok(Outcome::Result(to_value(&answer)?))
    }

    pub(super) fn suggest(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetAgent { agent } = call.request.params()?;
        let page = self.node.denials.page(0, agent.as_ref());
        let policies: BTreeMap<AgentName, Policy> =
            self.agents().values().map(|one| (one.instance.agent.clone(), one.policy())).collect();
        let mut agents = suggest::suggest(&page.denials, &policies, unix_ms_now());
        suggest::shorten(&mut agents, page::BYTES_MAX);
        Ok(Outcome::Result(to_value(&Suggestions { agents })?))
    }

    pub(super) fn watch(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let NetAgent { agent } = call.request.params()?;
        let records = &self.node.records;
        let (connections, dropped, mut next) = records.connections(agent.as_ref());
        let (connections, left_out) = page::newest_that_fit(connections);
        let page = to_value(&Watched { connections, dropped: dropped + left_out })?;
        if call.answer(page, &[]).is_err() {
            return Ok(Outcome::Answered);
        }
        while !gone(call.connection) {
            for item in records.since(&mut next, agent.as_ref(), FOLLOW_POLL) {
                let (method, params) =
                    item.notification().map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
                if call.notify(method, params).is_err() {
                    return Ok(Outcome::Answered);
                }
            }
        }
        Ok(Outcome::Answered)
    }

    pub(super) fn forget(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let live = &self.node.live;
        let _turn = live.turn();
        if live.all().is_ok() {
            return Err(in_rpc(LiveError::Readable));
        }
        let by = call.caller.to_string();
        let receipt = self.node.receipts.durable(Event::NetPolicyForgotten { by }).map_err(|error| {
            RpcError::new(Code::UNAVAILABLE, format!("no receipt, so no change: {error}"))
        })?;
        live.forget().map_err(in_rpc)?;
        let now = "no live change holds; the file that could not be read is kept as policy.json.bad".into();
        Ok(Outcome::Result(to_value(&NetChanged { now, cut: 0, receipt: receipt.seq })?))
    }

    /// Guards the node's own packet rules, for ever. Call in the node's namespace.
    pub fn guard_node(&self) {
        guard::node(&self.firewall, &self.node);
    }
}

/// Who ends grants sleeps here until the next end, or until another grant is made.
#[derive(Debug, Default)]
pub(super) struct Ends {
    kicked: std::sync::Mutex<bool>,
    condition: std::sync::Condvar,
}

impl Ends {
    fn notify_one(&self) {
        *self.kicked.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
        self.condition.notify_one();
    }

    fn wait(&self, time: Duration) {
        let kicked = self.kicked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waited = self.condition.wait_timeout_while(kicked, time, |kicked| !*kicked);
        let (mut kicked, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        *kicked = false;
    }
}

fn denial(agent: AgentName, name: NamePattern, instance: Option<Instance>, call: &Call<'_>) -> LiveChange {
    LiveChange {
        agent,
        effect: Effect::Deny,
        grant: NetworkGrant::plain(name, PORTS_DEFAULT.to_vec()),
        instance,
        until_unix_ms: None,
        by: call.caller.to_string(),
        receipt: 0,
    }
}

/// The broker's names stand for hosts, and are refused with them.
fn not_the_brokers(name: &NamePattern) -> Result<(), RpcError> {
    let (NamePattern::Exact(host) | NamePattern::Below(host)) = name;
    let is_brokers = format!(".{host}").ends_with(BROKER_SUFFIX);
    if !is_brokers {
        return Ok(());
    }
    Err(RpcError::new(Code::INVALID_PARAMS, format!("`{name}` is a name of the broker"))
        .explained("a host is refused by its own name, to the broker too", "leave the broker's suffix out"))
}

fn not_running(agent: &AgentName) -> RpcError {
    RpcError::new(Code::NOT_FOUND, format!("agent `{agent}` has no network now")).explained(
        "a live grant and a revocation are for a running agent; a denial may name any",
        "start it; an agent gets a network when its manifest has network.allow or publish",
    )
}

fn in_rpc(error: LiveError) -> RpcError {
    let (code, rule, remedy) = match &error {
        LiveError::Unreadable { .. } => (
            Code::UNAVAILABLE,
            "live denials are not forgotten silently: no agent gets a network until they can be read",
            "repair the state volume, or give up all live changes: nullctl net forget",
        ),
        LiveError::Unwritten { .. } => (
            Code::FAILED,
            "a change is kept before it is in force; this one is not in force",
            "see that the state volume is writable and not full, then try again",
        ),
        LiveError::Full(_) => (
            Code::LIMIT,
            "live changes are bounded",
            "lift some, or write them into manifests: nullctl net policy",
        ),
        LiveError::Readable => (
            Code::CONFLICT,
            "live changes are forgotten all at once only when they cannot be read",
            "lift them one by one: nullctl net policy lists them",
        ),
    };
    RpcError::new(code, error.to_string()).explained(rule, remedy)
}

/// What the ledger and followers see: a grant as a manifest writes it, a denial's name.
fn entry_of(change: &LiveChange) -> String {
    match change.effect {
        Effect::Allow => change.grant.entry(),
        Effect::Deny => format!("\"{}\"", change.grant.name),
    }
}

fn in_words(change: &LiveChange) -> String {
    let LiveChange { agent, grant, instance, until_unix_ms, .. } = change;
    match (change.effect, instance, until_unix_ms) {
        (Effect::Allow, _, Some(until)) => format!("{agent} may reach {grant} for {} s", seconds_to(*until)),
        (Effect::Allow, _, None) => format!("{agent} may reach {grant} until its network ends"),
        (Effect::Deny, Some(life), _) => {
            format!("{} is refused to {life}, until its network ends", grant.name)
        }
        (Effect::Deny, None, _) => {
            format!("{name} is refused to {agent}, until `net lift {agent} {name}`", name = grant.name)
        }
    }
}

/// How long it is until then.
fn seconds_to(unix_ms: u64) -> u64 {
    unix_ms.saturating_sub(unix_ms_now()).div_ceil(1000)
}

/// Why something passes, and what else must hold.
fn admitted(policy: &Policy, admission: &Admission) -> Explanation {
    let Admission { name, port, way, secret, grants, rule } = admission;
    let (word, must) = match way {
        Way::Direct => ("direct", format!("TLS or HTTP in it must name {name}")),
        Way::Broker => ("broker", format!("each request is read, and sent to {name}:{port} over TLS")),
        Way::Intercepted => ("intercepted", format!("TLS is ended as {name}, and each request is read")),
    };
    let mut because = vec![rule.clone()];
    let ends =
        policy.live.iter().filter(|change| change.effect == Effect::Allow && grants.contains(&change.grant));
    because.extend(
        ends.filter_map(|change| change.until_unix_ms)
            .map(|until| format!("ends in {} s", seconds_to(until))),
    );
    if !grants.iter().any(|grant| !grant.is_narrowed()) {
        because.push("methods and paths as the entry says".into());
    }
    because.extend(secret.as_ref().map(|secret| format!("the secret {} is added", secret.name)));
    let private = admission.private_addresses();
    because.push(match private.is_empty() {
        true => "its addresses must be public".into(),
        false => format!("its addresses must be public or among {private:?}"),
    });
    because.push(must);
    Explanation {
        allowed: true,
        rule: word.into(),
        because: because.join("; "),
        remedy: format!("to take it back: nullctl net revoke AGENT {name}"),
    }
}
