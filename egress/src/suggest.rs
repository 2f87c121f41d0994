//! From what was refused to the smallest change of the manifest that would admit it. Pure.
//!
//! Must hold: an entry is suggested only for a name that a guest asked for and a rule that an entry can satisfy, and not when it
//! passes by now. Must never: suggest by itself what needs a judgement: addresses, other protocols, what an operator denied.

use abi::control::{Denial, Suggestion};
use abi::ids::{AgentName, HostName};
use abi::limits;
use abi::network::{NetworkGrant, PORTS_DEFAULT, is_path_prefix};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

use crate::page;
use crate::policy::{self, BROKER_PORT, Policy, broker_name, brokered_host};

/// What was asked of one name.
#[derive(Debug, Default)]
struct Asked {
    /// How often by a DNS question, which tells no port.
    anywhere: u64,
    ports: BTreeMap<u16, u64>,
}

/// What one agent was refused.
#[derive(Debug, Default)]
struct Refusals {
    names: BTreeMap<HostName, Asked>,
    /// Host, method and path.
    requests: BTreeMap<(HostName, String, String), u64>,
    never: BTreeMap<String, String>,
}

/// Suggests for each agent in the denials. `policies`: of the agents that run.
pub fn suggest(
    denials: &[Denial],
    policies: &BTreeMap<AgentName, Policy>,
    now_unix_ms: u64,
) -> Vec<Suggestion> {
    let mut agents: BTreeMap<&AgentName, Refusals> = BTreeMap::new();
    for denial in denials {
        agents.entry(&denial.instance.agent).or_default().take(denial);
    }
    let nothing = Policy::default();
    agents
        .into_iter()
        .map(|(agent, refusals)| {
            refusals.suggest(agent, policies.get(agent).unwrap_or(&nothing), now_unix_ms)
        })
        .filter(|suggestion| !suggestion.add.is_empty() || !suggestion.never.is_empty())
        .collect()
}

/// Shortens suggestions until they fit so many bytes together, each agent's to its share.
pub fn shorten(agents: &mut [Suggestion], bytes_max: usize) {
    let share = bytes_max / agents.len().max(1);
    for suggestion in agents {
        let (add, never) = (take(&mut suggestion.add), take(&mut suggestion.never));
        let mut room = share.saturating_sub(page::bytes_of(suggestion));
        let mut less = [0; 2];
        (suggestion.add, less[0]) = page::first_that_fit(add, &mut room);
        (suggestion.never, less[1]) = page::first_that_fit(never, &mut room);
        suggestion.left_out += less[0] + less[1];
    }
}

impl Refusals {
    fn take(&mut self, denial: &Denial) {
        let Denial { what, rule, remedy, count, .. } = denial;
        let taken = match rule.as_str() {
            "name-not-granted" | "port-not-granted" => self.take_name(what, *count),
            "method-not-granted" | "path-not-granted" => self.take_request(what, *count),
            _ => None,
        };
        if taken.is_none() {
            self.never.insert(what.clone(), format!("{rule}: {remedy}"));
        }
    }

    /// `dns TYPE NAME` or `tcp NAME:PORT`. The broker's names are no names of a manifest.
    fn take_name(&mut self, what: &str, count: u64) -> Option<()> {
        let words: Vec<&str> = what.split(' ').collect();
        let (name, port) = match words.as_slice() {
            ["dns", _, name] => (*name, None),
            ["tcp", target] => {
                let (name, port) = target.rsplit_once(':')?;
                (name, Some(port.parse::<u16>().ok()?))
            }
            _ => return None,
        };
        let name: HostName = name.parse().ok().filter(|name| brokered_host(name).is_none())?;
        let asked = self.names.entry(name).or_default();
        match port {
            Some(port) => *asked.ports.entry(port).or_default() += count,
            None => asked.anywhere += count,
        }
        Some(())
    }

    /// `... METHOD PATH ... on NAME[:PORT]`.
    fn take_request(&mut self, what: &str, count: u64) -> Option<()> {
        let (request, target) = what.rsplit_once(" on ")?;
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
        let host: HostName = host.parse().ok()?;
        let host = brokered_host(&host).unwrap_or(host);
        let is_method = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
        let method = request.split(' ').find(is_method)?;
        let path = request.split(' ').find(|word| word.starts_with('/'))?;
        *self.requests.entry((host, method.to_owned(), path.to_owned())).or_default() += count;
        Some(())
    }

    fn suggest(mut self, agent: &AgentName, policy: &Policy, now: u64) -> Suggestion {
        let mut add = self.names(agent, policy, now);
        add.extend(self.requests(agent, policy, now));
        // The most often refused first: what does not fit is left out at the end.
        add.sort_by(|(a, times_a), (b, times_b)| times_b.cmp(times_a).then(a.cmp(b)));
        let most = limits::SUGGESTIONS_PER_AGENT_MAX;
        let left_out = add.len().saturating_sub(most) + self.never.len().saturating_sub(most);
        add.truncate(most);
        let never = self.never.into_iter().take(most).collect();
        Suggestion { agent: agent.clone(), add, never, left_out: left_out as u64 }
    }

    fn names(&mut self, agent: &AgentName, policy: &Policy, now: u64) -> Vec<(String, u64)> {
        let mut add = Vec::new();
        for (name, mut asked) in std::mem::take(&mut self.names) {
            match policy.resolves(agent, &name, now) {
                Ok(()) => asked.anywhere = 0,
                Err(refused) if refused.rule == "denied" => {
                    self.never.insert(name.to_string(), format!("denied: {}", refused.remedy));
                    continue;
                }
                Err(_) => {}
            }
            let passes = |port: &u16| match policy.decide(agent, &name, *port, now) {
                Ok(_) => true,
                Err(refused) => !matches!(refused.rule, "name-not-granted" | "port-not-granted"),
            };
            asked.ports.retain(|port, _| !passes(port));
            add.extend(entries(&name, &asked));
        }
        add
    }

    /// The entries that have methods or paths, widened by what was asked for.
    fn requests(&mut self, agent: &AgentName, policy: &Policy, now: u64) -> Vec<(String, u64)> {
        let in_force = policy.in_force(now);
        let mut wider: BTreeMap<usize, (NetworkGrant, u64)> = BTreeMap::new();
        for ((host, method, path), count) in std::mem::take(&mut self.requests) {
            let admissions = [broker_name(&host).map(|name| (name, BROKER_PORT)), Some((host.clone(), 443))];
            let passes = |(name, port): (HostName, u16)| {
                policy
                    .decide(agent, &name, port, now)
                    .is_ok_and(|found| found.request(&method, &path).is_ok())
            };
            if admissions.into_iter().flatten().any(passes) {
                continue;
            }
            let narrowed = |grant: &&NetworkGrant| grant.name.admits(&host) && grant.is_narrowed();
            let at = in_force.iter().position(|grant| narrowed(&grant));
            let widened = at.and_then(|at| {
                let (grant, times) =
                    wider.get(&at).cloned().or(in_force.get(at).map(|grant| (grant.clone(), 0)))?;
                Some((at, widen(grant, &method, &path)?, times + count))
            });
            match widened {
                Some((at, grant, times)) => drop(wider.insert(at, (grant, times))),
                None => {
                    let why = "no entry for it can be made of this: grant the method or a prefix of the path by hand";
                    self.never.insert(format!("{method} {path} on {host}"), why.into());
                }
            }
        }
        wider.into_values().map(|(grant, times)| (grant.entry(), times)).collect()
    }
}

fn widen(mut grant: NetworkGrant, method: &str, path: &str) -> Option<NetworkGrant> {
    if !grant.methods.is_empty() && !grant.methods.iter().any(|known| known == method) {
        grant.methods.push(method.to_owned());
    }
    let below = |prefix: &String| policy::is_below(path, prefix);
    if !grant.paths.is_empty() && !grant.paths.iter().any(below) {
        if !is_path_prefix(path) {
            return None;
        }
        grant.paths.push(path.to_owned());
    }
    grant.fault().is_none().then_some(grant)
}

/// As few entries as say it: a name alone stands for both of the default ports, and for a port that nobody knows.
fn entries(name: &HostName, asked: &Asked) -> Vec<(String, u64)> {
    let known: BTreeSet<u16> = asked.ports.keys().copied().collect();
    let whole = asked.anywhere > 0 || PORTS_DEFAULT.iter().all(|port| known.contains(port));
    let in_whole = |port: &u16| whole && PORTS_DEFAULT.contains(port);
    let mut entries = Vec::new();
    if whole {
        let of_ports = asked.ports.iter().filter(|(port, _)| in_whole(port)).map(|(_, times)| times);
        entries.push((format!("\"{name}\""), asked.anywhere + of_ports.sum::<u64>()));
    }
    let others = asked.ports.iter().filter(|(port, _)| !in_whole(port));
    entries.extend(others.map(|(port, times)| (format!("\"{name}:{port}\""), *times)));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::control::{Effect, LiveChange};

    fn denial(rule: &str, what: &str, count: u64) -> Denial {
        Denial {
            unix_ms: 1,
            instance: "a.1".parse().unwrap(),
            what: what.into(),
            rule: rule.into(),
            remedy: "so".into(),
            count,
        }
    }

    fn one(denials: &[Denial], policy: Policy) -> Suggestion {
        let policies = [("a".parse().unwrap(), policy)].into();
        let mut agents = suggest(denials, &policies, 1000);
        assert_eq!(agents.len(), 1, "{agents:?}");
        agents.remove(0)
    }

    fn policy(grants: &[&str]) -> Policy {
        Policy { manifest: grants.iter().map(|text| text.parse().unwrap()).collect(), ..Policy::default() }
    }

    fn texts(list: &[(&str, u64)]) -> Vec<(String, u64)> {
        list.iter().map(|(text, times)| ((*text).to_owned(), *times)).collect()
    }

    #[test]
    fn names_and_ports_become_as_few_entries_as_say_it() {
        let denials = [
            denial("name-not-granted", "dns A x.test", 3),
            denial("name-not-granted", "dns AAAA x.test", 1),
            denial("port-not-granted", "tcp x.test:443", 1),
            denial("port-not-granted", "tcp x.test:22", 2),
            denial("port-not-granted", "tcp y.test:80", 1),
            denial("port-not-granted", "tcp y.test:443", 1),
            denial("port-not-granted", "tcp z.test:443", 1),
        ];
        let found = one(&denials, Policy::default());
        let wanted =
            texts(&[("\"x.test\"", 5), ("\"x.test:22\"", 2), ("\"y.test\"", 2), ("\"z.test:443\"", 1)]);
        assert_eq!((found.add, found.never), (wanted, vec![]));
    }

    #[test]
    fn what_passes_by_now_is_left_out_and_a_denied_name_is_never_suggested() {
        let denials = [
            denial("name-not-granted", "dns A x.test", 1),
            denial("port-not-granted", "tcp x.test:22", 1),
            denial("name-not-granted", "dns A y.test", 1),
            denial("name-not-granted", "dns A shut.test", 1),
        ];
        let mut now = policy(&["x.test"]);
        now.live = vec![LiveChange {
            agent: "a".parse().unwrap(),
            effect: Effect::Deny,
            grant: "shut.test".parse().unwrap(),
            instance: None,
            until_unix_ms: None,
            by: "operator x".into(),
            receipt: 0,
        }];
        let found = one(&denials, now);
        assert_eq!(found.add, texts(&[("\"x.test:22\"", 1), ("\"y.test\"", 1)]));
        assert_eq!(found.never.len(), 1);
        assert!(found.never[0].0 == "shut.test" && found.never[0].1.starts_with("denied: "), "{found:?}");
        assert_eq!(suggest(&denials[..1], &[("a".parse().unwrap(), policy(&["x.test"]))].into(), 0), []);
    }

    #[test]
    fn requests_widen_the_entry_that_refused_them() {
        let mut narrow = policy(&["api.test:443"]);
        narrow.manifest[0].methods = vec!["GET".into()];
        narrow.manifest[0].paths = vec!["/v1".into()];
        let denials = [
            denial("method-not-granted", "POST /v1/chat on api.test:443", 2),
            denial("path-not-granted", "GET /v2/x on api.test:443", 1),
            denial("path-not-granted", "GET /v1/now/granted on api.test:443", 1),
            denial("path-not-granted", "GET /a/../b on api.test:443", 1),
            denial("path-not-granted", "GET /x on unknown.test:443", 1),
        ];
        let found = one(&denials, narrow);
        let entry =
            r#"{ name = "api.test", ports = [443], methods = ["GET", "POST"], paths = ["/v1", "/v2/x"] }"#;
        assert_eq!(found.add, texts(&[(entry, 3)]));
        assert_eq!(
            found.never.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(),
            ["GET /a/../b on api.test", "GET /x on unknown.test"]
        );
    }

    #[test]
    fn what_needs_a_judgement_is_never_suggested() {
        for (rule, what) in [
            ("raw-address", "tcp 8.8.8.8:443"),
            ("protocol", "udp 8.8.8.8:53"),
            ("private-address", "tcp x.test:80 at 10.0.0.1"),
            ("sni-mismatch", "sni other.test on x.test:443"),
            ("limit", "more than 256 connections"),
            ("name-not-granted", "dns A x.test.broker.internal"),
            ("name-not-granted", "dns A \"], evil = [\""),
            ("port-not-granted", "tcp x.test:99999999"),
            ("rule-of-tomorrow", "dns A x.test"),
        ] {
            let found = one(&[denial(rule, what, 1)], Policy::default());
            let expected = (what.to_owned(), format!("{rule}: so"));
            assert!(found.add.is_empty() && found.never == [expected], "{rule} {what}: {found:?}");
        }
    }

    #[test]
    fn an_answer_is_bounded_whatever_guests_ask_for() {
        let many: Vec<Denial> = (0..1000)
            .map(|n| denial("name-not-granted", &format!("dns A n{n}.{}.test", "x".repeat(60)), 1))
            .chain((0..1000).map(|n| denial("protocol", &format!("udp {n} {}", "y".repeat(380)), 1)))
            .collect();
        let mut found = suggest(&many, &BTreeMap::new(), 0);
        assert_eq!(found[0].add.len(), limits::SUGGESTIONS_PER_AGENT_MAX);
        let left_out = found[0].left_out;
        shorten(&mut found, 10_000);
        assert!(serde_json::to_string(&found).unwrap().len() <= 10_002 && found[0].left_out > left_out);
        let shown = found[0].add.len() + found[0].never.len();
        assert_eq!(shown as u64 + found[0].left_out, 2000);
    }
}
