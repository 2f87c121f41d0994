//! What one agent may reach, now: the manifest's grants, live changes over them, and which hosts only the broker talks to. Pure.
//!
//! Must hold: a name, a port and a request pass only by a grant that stands here; a live denial beats every grant; `net.explain` and
//! the proxy ask the same function; an agent that has seen private data gets no connection on which it could hear strangers.
//! Must never: widen by a guest's word.

use abi::authority;
use abi::control::{Effect, LiveChange};
use abi::exposure::Exposure;
use abi::ids::{AgentName, HostName};
use abi::network::{NetworkGrant, SecretPolicy};
use std::net::Ipv4Addr;

use crate::denials::Rule;

/// What a guest appends to a host's name to reach it over the broker, in the clear and on port 80.
pub const BROKER_SUFFIX: &str = ".broker.internal";
/// The broker's port in the guest's world.
pub const BROKER_PORT: u16 = 80;
/// Where hosts without a secret are reached by the broker.
const TLS_PORT: u16 = 443;

/// The grants of one agent.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub manifest: Vec<NetworkGrant>,
    /// Of the agent's credentials, those that are set.
    pub secrets: Vec<SecretPolicy>,
    /// It works for this agent, whose denials are its own.
    pub works_for: Option<AgentName>,
    /// Of this agent and life.
    pub live: Vec<LiveChange>,
    /// Names that may be sent anything, and are no strangers.
    pub trusted: Vec<authority::NamePattern>,
    /// What this life has seen.
    pub seen: Exposure,
}

/// How a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Bytes pass as they are, once the first were looked at.
    Direct,
    /// Each request is read, judged and sent over TLS of our own.
    Broker,
    /// The same, after TLS that we end as the host.
    Intercepted,
}

/// Why and how a connection passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The host to dial, never the broker's name for it.
    pub name: HostName,
    pub port: u16,
    pub way: Way,
    /// What the broker adds.
    pub secret: Option<SecretPolicy>,
    /// The grants that admit it; one at least.
    pub grants: Vec<NetworkGrant>,
    /// They in words, for records.
    pub rule: String,
}

/// Why something does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub rule: Rule,
    pub because: String,
    pub remedy: String,
}

/// A grant, and where it comes from.
type Granted = (NetworkGrant, String);

impl Policy {
    /// What happens to a connection to `name:port` as a guest asks for it. `now_unix_ms` ends live grants.
    pub fn decide(
        &self,
        agent: &AgentName,
        name: &HostName,
        port: u16,
        now_unix_ms: u64,
    ) -> Result<Admission, Refused> {
        let admission = match brokered_host(name) {
            Some(host) => self.decide_broker(agent, &host, name, port, now_unix_ms),
            None => self.decide_direct(agent, name, port, now_unix_ms),
        }?;
        self.confine(&admission.name).map(|()| admission)
    }

    /// What happens to a request that cage makes for the agent, once its call was decided: grants hold as for the agent itself, and its
    /// credential is used; what it has seen was judged with the call.
    pub fn decide_fetch(
        &self,
        agent: &AgentName,
        name: &HostName,
        port: u16,
        now_unix_ms: u64,
    ) -> Result<Admission, Refused> {
        let named = self.grants_of(agent, name, now_unix_ms)?;
        let grants = at_port(&named, name, port)?;
        match self.secret_of(name) {
            Some(secret) if secret.port != port => Err(Refused {
                rule: "brokered-only",
                because: format!("{name} has a credential, so nothing else goes there"),
                remedy: format!("use https://{name}:{}", secret.port),
            }),
            _ => Ok(self.admission(name, port, Way::Intercepted, grants)),
        }
    }

    /// Whether a name is no stranger.
    pub fn is_trusted(&self, name: &HostName) -> bool {
        self.trusted.iter().any(|pattern| pattern.admits(name))
    }

    /// Whom it was connected to before is not known: strangers were heard, where the manifest grants a name that is one or may be one.
    pub fn may_have_heard(&mut self) {
        if self.manifest.iter().any(|grant| grant.exact().is_none_or(|name| !self.is_trusted(name))) {
            self.seen = self.seen.and(Exposure::UNTRUSTED_CONTENT);
        }
    }

    /// Whether only trusted names may be reached. Strangers' text need not have been seen yet: the connection would bring it, and take
    /// the private data with it.
    pub fn is_confined(&self) -> bool {
        self.seen.has(Exposure::PRIVATE_DATA)
    }

    fn confine(&self, name: &HostName) -> Result<(), Refused> {
        if !self.is_confined() || self.is_trusted(name) {
            return Ok(());
        }
        Err(Refused {
            rule: "exposure",
            because: format!("the agent has seen private data, and {name} is not trusted with it"),
            remedy: format!(
                "use the fetch tool, which asks a human where it must, or add \"{name}\" to trusted_names in [authority]"
            ),
        })
    }

    /// The same for a published port: who connects to it is a stranger.
    pub fn confine_port(&self, port: u16) -> Result<(), Refused> {
        if !self.is_confined() {
            return Ok(());
        }
        Err(Refused {
            rule: "exposure",
            because: format!(
                "the agent has seen private data, and who connects to port {port} is not trusted with it"
            ),
            remedy: "let the agent that serves the port read nothing private".into(),
        })
    }

    /// Whether a name exists for the agent: some port of it passes, or is refused with a reason of its own when it is connected to.
    pub fn resolves(&self, agent: &AgentName, name: &HostName, now_unix_ms: u64) -> Result<(), Refused> {
        let host = brokered_host(name).unwrap_or_else(|| name.clone());
        let grants = self.grants_of(agent, &host, now_unix_ms)?;
        if host == *name { Ok(()) } else { self.at_broker(agent, &host, &grants).map(drop) }
    }

    /// The grants as of now: the manifest's that nobody denied, and live ones.
    pub fn in_force(&self, now_unix_ms: u64) -> Vec<NetworkGrant> {
        let manifest = self.manifest.iter().filter(|grant| !self.is_denied(grant, now_unix_ms));
        manifest.cloned().chain(self.live_grants(now_unix_ms)).collect()
    }

    /// Those of them that are live.
    pub fn live_grants(&self, now_unix_ms: u64) -> Vec<NetworkGrant> {
        let allowed = self.live_now(now_unix_ms).filter(|change| change.effect == Effect::Allow);
        let grants = allowed.map(|change| &change.grant);
        grants.filter(|grant| !self.is_denied(grant, now_unix_ms)).cloned().collect()
    }

    fn live_now(&self, now: u64) -> impl Iterator<Item = &LiveChange> {
        self.live.iter().filter(move |change| change.until_unix_ms.is_none_or(|until| now < until))
    }

    /// Whether all of a grant's names are denied.
    fn is_denied(&self, grant: &NetworkGrant, now: u64) -> bool {
        self.live_now(now)
            .filter(|change| change.effect == Effect::Deny)
            .any(|denial| denial.grant.name.covers(&grant.name))
    }

    fn decide_direct(
        &self,
        agent: &AgentName,
        name: &HostName,
        port: u16,
        now: u64,
    ) -> Result<Admission, Refused> {
        let named = self.grants_of(agent, name, now)?;
        let grants = at_port(&named, name, port)?;
        let intercepted = port == TLS_PORT && grants.iter().any(|(grant, _)| grant.intercept);
        if self.is_brokered(name, &grants) && !intercepted {
            let remedy = match self.at_broker(agent, name, &named) {
                Ok(_) => format!("use http://{name}{BROKER_SUFFIX}/, or grant it with intercept = true"),
                Err(_) => {
                    format!("methods and paths hold over TLS: give the entry of {name} port {TLS_PORT}")
                }
            };
            return Err(Refused {
                rule: "brokered-only",
                because: format!("{name} has a credential, methods or paths, so each request to it is read"),
                remedy,
            });
        }
        let way = if intercepted { Way::Intercepted } else { Way::Direct };
        Ok(self.admission(name, port, way, grants))
    }

    fn decide_broker(
        &self,
        agent: &AgentName,
        host: &HostName,
        asked: &HostName,
        port: u16,
        now: u64,
    ) -> Result<Admission, Refused> {
        let named = self.grants_of(agent, host, now)?;
        let (host_port, grants) = self.at_broker(agent, host, &named)?;
        if port != BROKER_PORT {
            return Err(Refused {
                rule: "port-not-granted",
                because: format!("the broker is at port {BROKER_PORT} only"),
                remedy: format!("use http://{asked}/"),
            });
        }
        Ok(self.admission(host, host_port, Way::Broker, grants))
    }

    /// The port at which the broker reaches a host, and the grants that admit it there.
    fn at_broker(
        &self,
        agent: &AgentName,
        host: &HostName,
        named: &[Granted],
    ) -> Result<(u16, Vec<Granted>), Refused> {
        let port = self.secret_of(host).map_or(TLS_PORT, |secret| secret.port);
        let grants = at_port(named, host, port)?;
        if self.is_brokered(host, &grants) { Ok((port, grants)) } else { Err(not_brokered(agent, host)) }
    }

    fn admission(&self, name: &HostName, port: u16, way: Way, grants: Vec<Granted>) -> Admission {
        let secret = match way {
            Way::Direct => None,
            // A secret goes to its own port and to no other.
            Way::Broker | Way::Intercepted => {
                self.secret_of(name).filter(|secret| secret.port == port).cloned()
            }
        };
        let (grants, words): (Vec<_>, Vec<_>) = grants.into_iter().unzip();
        Admission { name: name.clone(), port, way, secret, grants, rule: words.join(", ") }
    }

    /// All grants in force that stand for a name, each with where it comes from.
    fn grants_of(&self, agent: &AgentName, name: &HostName, now: u64) -> Result<Vec<Granted>, Refused> {
        let denial = self
            .live_now(now)
            .find(|change| change.effect == Effect::Deny && change.grant.name.refuses(name));
        if let Some(denial) = denial {
            let what = &denial.grant.name;
            return Err(Refused {
                rule: "denied",
                because: format!("{} denied `{what}`", denial.by),
                remedy: format!("an operator may lift it: nullctl net lift {agent} '{what}'"),
            });
        }
        let own = self.manifest.iter().filter(|grant| grant.name.admits(name));
        let own = own.map(|grant| (grant.clone(), format!("manifest: {grant}")));
        let live = self
            .live_now(now)
            .filter(|change| change.effect == Effect::Allow && change.grant.name.admits(name))
            .map(|change| (change.grant.clone(), format!("allowed by {}: {}", change.by, change.grant)));
        let grants: Vec<_> = own.chain(live).collect();
        if grants.is_empty() {
            return Err(Refused {
                rule: "name-not-granted",
                because: format!("\"{name}\" is not in network.allow of agent {agent}"),
                remedy: format!(
                    "\"{name}\" is not in network.allow of agent {agent}; add it to capabilities.network.allow"
                ),
            });
        }
        Ok(grants)
    }

    fn secret_of(&self, host: &HostName) -> Option<&SecretPolicy> {
        self.secrets.iter().find(|secret| secret.host == *host)
    }

    /// Whether only requests that are read may go to a host: it has a secret, or no grant of it is without methods and paths.
    fn is_brokered(&self, host: &HostName, grants: &[Granted]) -> bool {
        self.secret_of(host).is_some() || grants.iter().all(|(grant, _)| grant.is_narrowed())
    }
}

impl Admission {
    /// Whether a connection that an earlier admission let through may go on by this one: nothing that admitted it was taken away.
    pub fn still_admits(&self, earlier: &Admission) -> bool {
        let kept = |grant: &NetworkGrant| self.grants.contains(grant);
        (self.way, &self.secret) == (earlier.way, &earlier.secret) && earlier.grants.iter().all(kept)
    }

    /// Addresses that may be dialled for it although they are private.
    pub fn private_addresses(&self) -> Vec<Ipv4Addr> {
        self.grants.iter().flat_map(|grant| grant.addresses.iter().copied()).collect()
    }

    /// Whether TLS without a server name passes.
    pub fn without_sni(&self) -> bool {
        self.grants.iter().any(|grant| grant.without_sni)
    }

    /// Judges one request. `path`: the target's, without the query.
    pub fn request(&self, method: &str, path: &str) -> Result<(), Refused> {
        let with_method: Vec<_> = self
            .grants
            .iter()
            .filter(|grant| grant.methods.is_empty() || grant.methods.iter().any(|granted| granted == method))
            .collect();
        let name = &self.name;
        if with_method.is_empty() {
            return Err(Refused {
                rule: "method-not-granted",
                because: format!("{method} is not among the methods of {name}"),
                remedy: format!("add \"{method}\" to methods of {name} in capabilities.network.allow"),
            });
        }
        if with_method.iter().any(|grant| grant.paths.is_empty()) {
            return Ok(());
        }
        let plain = is_plain(path);
        if plain && with_method.iter().any(|grant| grant.paths.iter().any(|prefix| is_below(path, prefix))) {
            return Ok(());
        }
        let shown: String = path.chars().take(200).collect();
        Err(Refused {
            rule: "path-not-granted",
            because: match plain {
                true => format!("{shown} is below none of the paths of {name}"),
                false => format!("{shown} has parts that a server may read as another path"),
            },
            remedy: format!("add a prefix of it to paths of {name} in capabilities.network.allow"),
        })
    }
}

/// The host that a name of the broker stands for.
pub fn brokered_host(name: &HostName) -> Option<HostName> {
    name.as_str().strip_suffix(BROKER_SUFFIX)?.parse().ok()
}

/// The broker's name for a host; none where it would be too long to be one.
pub fn broker_name(host: &HostName) -> Option<HostName> {
    format!("{host}{BROKER_SUFFIX}").parse().ok()
}

fn not_brokered(agent: &AgentName, host: &HostName) -> Refused {
    Refused {
        rule: "name-not-granted",
        because: format!("agent {agent} has no credential for {host}, and no entry with methods or paths"),
        remedy: format!("use {host} itself, or name a secret for it in capabilities.credential_refs"),
    }
}

/// The grants of a port. An exact entry is the last word about its ports: its methods and paths are not undone by a wildcard beside it.
fn at_port(grants: &[Granted], name: &HostName, port: u16) -> Result<Vec<Granted>, Refused> {
    let mut found: Vec<_> = grants.iter().filter(|(grant, _)| grant.ports.contains(&port)).cloned().collect();
    if found.iter().any(|(grant, _)| grant.exact().is_some()) {
        found.retain(|(grant, _)| grant.exact().is_some());
    }
    if found.is_empty() {
        return Err(Refused {
            rule: "port-not-granted",
            because: format!("no entry for {name} has port {port}"),
            remedy: format!("add \"{name}:{port}\" to capabilities.network.allow"),
        });
    }
    Ok(found)
}

/// Whether a path has one reading: no escapes of separators and dots, no empty or dot segments.
fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let ambiguous = ["%2e", "%2f", "%5c", "%25", "%00", "\\", "//", ";"];
    path.starts_with('/')
        && !ambiguous.iter().any(|part| lower.contains(part))
        && !path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Whether a path is a prefix or below it, by whole segments.
pub fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::network::Api;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn agent() -> AgentName {
        "a".parse().unwrap()
    }

    fn policy(grants: &[&str]) -> Policy {
        Policy { manifest: grants.iter().map(|text| text.parse().unwrap()).collect(), ..Policy::default() }
    }

    fn secret(host: &str) -> SecretPolicy {
        SecretPolicy {
            name: "KEY".parse().unwrap(),
            host: name(host),
            port: 443,
            header: "authorization".into(),
            format: "Bearer {}".into(),
            api: Api::Plain,
        }
    }

    fn change(effect: Effect, entry: &str, until_unix_ms: Option<u64>) -> LiveChange {
        let by = "operator:x".into();
        LiveChange {
            agent: agent(),
            effect,
            grant: entry.parse().unwrap(),
            instance: None,
            until_unix_ms,
            by,
            receipt: 0,
        }
    }

    fn rule(policy: &Policy, host: &str, port: u16) -> Result<Way, Rule> {
        policy
            .decide(&agent(), &name(host), port, 1000)
            .map(|found| found.way)
            .map_err(|refused| refused.rule)
    }

    #[test]
    fn private_data_goes_to_trusted_names_only_by_whatever_way() {
        let narrow = NetworkGrant {
            methods: vec!["GET".into()],
            ..NetworkGrant::plain("read.test".parse().unwrap(), vec![443])
        };
        let mut policy = policy(&["model.test", "web.test", "api.models.test"]);
        policy.manifest.push(narrow);
        policy.trusted = ["model.test", "*.models.test"].map(|text| text.parse().unwrap()).to_vec();
        let names = ["model.test", "api.models.test", "web.test", "read.test.broker.internal"];
        let rules = |policy: &Policy| {
            names.map(|host| rule(policy, host, if host.ends_with("internal") { 80 } else { 443 }).err())
        };
        for harmless in [Exposure::NONE, Exposure::UNTRUSTED_CONTENT.and(Exposure::EXFILTRATION)] {
            policy.seen = harmless;
            assert_eq!(rules(&policy), [None; 4], "{harmless}");
            assert!(policy.confine_port(30000).is_ok());
        }
        for private in [Exposure::PRIVATE_DATA, Exposure::PRIVATE_DATA.and(Exposure::UNTRUSTED_CONTENT)] {
            policy.seen = private;
            assert_eq!(rules(&policy), [None, None, Some("exposure"), Some("exposure")], "{private}");
            assert_eq!(policy.confine_port(30000).unwrap_err().rule, "exposure");
            let fetched = policy.decide_fetch(&agent(), &name("web.test"), 443, 1000);
            assert!(fetched.is_ok(), "what was decided with the call is not decided again");
        }
        let refused = policy.decide(&agent(), &name("web.test"), 443, 1000).unwrap_err();
        assert!(refused.remedy.contains("trusted_names") && refused.because.contains("web.test"));
        assert_eq!(rule(&policy, "nowhere.test", 443), Err("name-not-granted"), "a trusted name is no grant");
    }

    #[test]
    fn a_fetch_is_granted_as_the_agents_own_connection_is() {
        let mut policy = policy(&["web.test:443"]);
        policy.secrets = vec![secret("web.test")];
        let decide = |host: &str, port: u16, policy: &Policy| {
            policy.decide_fetch(&agent(), &name(host), port, 1000).map_err(|refused| refused.rule)
        };
        assert_eq!(decide("web.test", 443, &policy).unwrap().secret, Some(secret("web.test")));
        assert_eq!(decide("web.test", 80, &policy), Err("port-not-granted"));
        assert_eq!(decide("other.test", 443, &policy), Err("name-not-granted"));
        assert_eq!(decide("web.test.broker.internal", 80, &policy), Err("name-not-granted"));
        policy.manifest.push("web.test:80".parse().unwrap());
        assert_eq!(decide("web.test", 80, &policy), Err("brokered-only"));
        policy.live = vec![change(Effect::Deny, "web.test", None)];
        assert_eq!(decide("web.test", 443, &policy), Err("denied"));
    }

    #[test]
    fn names_and_ports_pass_by_their_grant_and_nothing_else_does() {
        let policy = policy(&["api.test", "git.test:22", "*.cdn.test:443"]);
        assert_eq!(rule(&policy, "api.test", 443), Ok(Way::Direct));
        assert_eq!(rule(&policy, "img.cdn.test", 443), Ok(Way::Direct));
        for (host, port, refused) in [
            ("api.test", 22, "port-not-granted"),
            ("img.cdn.test", 80, "port-not-granted"),
            ("x.api.test", 443, "name-not-granted"),
            ("cdn.test", 443, "name-not-granted"),
            ("a.b.cdn.test", 443, "name-not-granted"),
            ("api.test.broker.internal", 80, "name-not-granted"),
        ] {
            assert_eq!(rule(&policy, host, port), Err(refused), "{host}:{port}");
        }
        assert!(policy.resolves(&agent(), &name("api.test"), 0).is_ok());
        assert!(policy.resolves(&agent(), &name("api.test.broker.internal"), 0).is_err());
    }

    #[test]
    fn a_host_with_a_secret_is_reached_by_the_broker_only() {
        let mut policy = policy(&["api.test", "other.test"]);
        policy.secrets = vec![secret("api.test")];
        assert_eq!(rule(&policy, "api.test", 443), Err("brokered-only"));
        assert_eq!(rule(&policy, "api.test", 80), Err("brokered-only"));
        let found = policy.decide(&agent(), &name("api.test.broker.internal"), 80, 0).unwrap();
        assert_eq!((found.way, found.name.as_str(), found.port), (Way::Broker, "api.test", 443));
        assert!(found.secret.is_some());
        assert_eq!(rule(&policy, "api.test.broker.internal", 443), Err("port-not-granted"));
        assert_eq!(rule(&policy, "other.test.broker.internal", 80), Err("name-not-granted"));
        policy.manifest[0].intercept = true;
        assert_eq!(rule(&policy, "api.test", 443), Ok(Way::Intercepted));
        assert_eq!(rule(&policy, "api.test", 80), Err("brokered-only"));
        // A credential grants no name.
        policy.manifest.remove(0);
        assert_eq!(rule(&policy, "api.test.broker.internal", 80), Err("name-not-granted"));
    }

    #[test]
    fn a_secret_goes_to_its_own_port() {
        let mut policy = policy(&["api.test:443", "api.test:8443"]);
        policy.manifest[0].intercept = true;
        policy.secrets = vec![SecretPolicy { port: 8443, ..secret("api.test") }];
        let found = policy.decide(&agent(), &name("api.test"), 443, 0).unwrap();
        assert_eq!((found.way, found.secret), (Way::Intercepted, None));
        let found = policy.decide(&agent(), &name("api.test.broker.internal"), 80, 0).unwrap();
        assert_eq!((found.port, found.secret.is_some()), (8443, true));
    }

    #[test]
    fn live_changes_widen_for_their_time_and_a_denial_beats_all() {
        let mut policy = policy(&["api.test"]);
        policy.live = vec![
            change(Effect::Allow, "new.test:443", Some(1001)),
            change(Effect::Allow, "old.test", Some(1000)),
        ];
        assert_eq!(rule(&policy, "new.test", 443), Ok(Way::Direct));
        assert_eq!(rule(&policy, "old.test", 443), Err("name-not-granted"));
        policy.live.push(change(Effect::Deny, "*.cdn.test", None));
        policy.live.push(change(Effect::Deny, "api.test", None));
        assert_eq!(rule(&policy, "api.test", 443), Err("denied"));
        assert!(
            policy.resolves(&agent(), &name("api.test"), 1000).is_err_and(|refused| refused.rule == "denied")
        );
    }

    #[test]
    fn what_a_live_grant_added_ends_with_it() {
        let mut policy = policy(&["api.test"]);
        policy.manifest[0].methods = vec!["GET".into()];
        let mut live = change(Effect::Allow, "api.test", Some(1000));
        live.grant.methods = vec!["POST".into()];
        policy.live = vec![live];
        let at = |now| policy.decide(&agent(), &name("api.test.broker.internal"), 80, now).unwrap();
        let (before, after) = (at(999), at(1000));
        assert!(before.request("POST", "/").is_ok() && after.request("POST", "/").is_err());
        assert!(before.still_admits(&after) && !after.still_admits(&before));
    }

    #[test]
    fn an_exact_entry_is_not_widened_by_a_wildcard_beside_it() {
        let mut policy = policy(&["api.x.test:443", "*.x.test"]);
        policy.manifest[0].methods = vec!["GET".into()];
        assert_eq!(rule(&policy, "api.x.test", 443), Err("brokered-only"));
        assert_eq!(rule(&policy, "api.x.test", 80), Ok(Way::Direct));
        assert_eq!(rule(&policy, "other.x.test", 443), Ok(Way::Direct));
        let found = policy.decide(&agent(), &name("api.x.test.broker.internal"), 80, 0).unwrap();
        assert!(found.request("GET", "/").is_ok() && found.request("POST", "/").is_err());
    }

    #[test]
    fn a_remedy_leads_somewhere() {
        let mut policy = policy(&["x.test:80", "x.test:443"]);
        policy.manifest[0].methods = vec!["GET".into()];
        let refused = policy.decide(&agent(), &name("x.test"), 80, 0).unwrap_err();
        assert!(
            refused.remedy.contains("port 443") && !refused.remedy.contains("broker.internal"),
            "{}",
            refused.remedy
        );
    }

    #[test]
    fn requests_are_judged_by_method_and_whole_segments() {
        let mut policy = policy(&["api.test"]);
        policy.manifest[0].methods = vec!["POST".into()];
        policy.manifest[0].paths = vec!["/v1/chat".into(), "/search/".into()];
        assert_eq!(rule(&policy, "api.test", 443), Err("brokered-only"));
        let found = policy.decide(&agent(), &name("api.test.broker.internal"), 80, 0).unwrap();
        for path in ["/v1/chat", "/v1/chat/completions", "/search", "/search/x"] {
            assert_eq!(found.request("POST", path), Ok(()), "{path}");
        }
        assert_eq!(found.request("GET", "/v1/chat").unwrap_err().rule, "method-not-granted");
        for path in [
            "/v1/chats",
            "/v1",
            "/",
            "/v1/chat/../keys",
            "/v1/chat/%2e%2e/keys",
            "/v1/chat//x",
            "/v1/chat/%2Fx",
            "/v1/chat\\..\\keys",
            "/v1/chat/..;/keys",
            "http://api.test/v1/chat",
            "",
            "*",
        ] {
            assert_eq!(found.request("POST", path).unwrap_err().rule, "path-not-granted", "{path}");
        }
    }
}
