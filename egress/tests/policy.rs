//! policy.rs against a model that is too slow and too simple to be wrong in the same way: texts, and one question at a time.

use abi::control::{Effect, LiveChange};
use abi::network::{Api, NetworkGrant, SecretPolicy};
use egress::policy::{Policy, Way};

/// xorshift64: the seed is printed, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }
}

const NOW: u64 = 1_000;
const PATTERNS: [&str; 5] = ["a.test", "b.test", "x.a.test", "*.a.test", "*.x.a.test"];
const NAMES: [&str; 7] =
    ["a.test", "b.test", "x.a.test", "y.a.test", "z.x.a.test", "c.test", "a.test.broker.internal"];
const PORTS: [u16; 4] = [22, 80, 443, 8443];

fn grant(dice: &mut Dice) -> NetworkGrant {
    let ports = PORTS.iter().copied().filter(|_| dice.one_in(2)).collect::<Vec<_>>();
    let ports = if ports.is_empty() { vec![443] } else { ports };
    let mut grant = NetworkGrant::plain(dice.of(&PATTERNS).parse().unwrap(), ports);
    if dice.one_in(3) {
        grant.methods = vec!["GET".into()];
    }
    grant.intercept = dice.one_in(4) && grant.exact().is_some() && grant.ports.contains(&443);
    grant
}

fn policy(dice: &mut Dice) -> Policy {
    let manifest = (0..dice.below(4)).map(|_| grant(dice)).collect();
    let live = (0..dice.below(4)).map(|n| LiveChange {
        agent: "a".parse().unwrap(),
        effect: if dice.one_in(3) { Effect::Deny } else { Effect::Allow },
        grant: grant(dice),
        instance: None,
        until_unix_ms: [None, Some(NOW), Some(NOW + 1)][dice.below(3) as usize],
        by: "operator x".into(),
        receipt: n,
    });
    let live = live.collect();
    let secret = |host: &str, port| SecretPolicy {
        name: "KEY".parse().unwrap(),
        host: host.parse().unwrap(),
        port,
        header: "authorization".into(),
        format: "Bearer {}".into(),
        api: Api::Plain,
    };
    let mut secrets = Vec::new();
    if dice.one_in(3) {
        secrets.push(secret("a.test", 443));
    }
    if dice.one_in(4) {
        secrets.push(secret("x.a.test", 8443));
    }
    Policy { manifest, secrets, live, ..Policy::default() }
}

fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == name,
        Some(suffix) => {
            name.strip_suffix(suffix).is_some_and(|label| !label.is_empty() && !label.contains('.'))
        }
    }
}

/// The way that a connection takes, or the rule that refuses it.
fn model(policy: &Policy, asked: &str, port: u16) -> Result<Way, &'static str> {
    let host = asked.strip_suffix(".broker.internal");
    let name = host.unwrap_or(asked);
    let mut grants = Vec::new();
    for change in &policy.live {
        let over = change.until_unix_ms.is_some_and(|until| until <= NOW);
        if over || !stands_for(&change.grant.name.to_string(), name) {
            continue;
        }
        match change.effect {
            Effect::Deny => return Err("denied"),
            Effect::Allow => grants.push(&change.grant),
        }
    }
    grants.extend(policy.manifest.iter().filter(|grant| stands_for(&grant.name.to_string(), name)));
    let secret = policy.secrets.iter().find(|secret| secret.host.as_str() == name);
    let only_read =
        |grants: &[&NetworkGrant]| secret.is_some() || grants.iter().all(|grant| !grant.methods.is_empty());
    let with_port = |port: u16| -> Vec<&NetworkGrant> {
        let all: Vec<_> = grants.iter().copied().filter(|grant| grant.ports.contains(&port)).collect();
        let exact: Vec<_> = all.iter().copied().filter(|grant| grant.name.to_string() == name).collect();
        if exact.is_empty() { all } else { exact }
    };
    if grants.is_empty() {
        return Err("name-not-granted");
    }
    if host.is_some() {
        let far = with_port(secret.map_or(443, |secret| secret.port));
        return match (far.is_empty(), only_read(&far)) {
            (true, _) => Err("port-not-granted"),
            (false, false) => Err("name-not-granted"),
            (false, true) if port == 80 => Ok(Way::Broker),
            (false, true) => Err("port-not-granted"),
        };
    }
    let here = with_port(port);
    match here.is_empty() {
        true => Err("port-not-granted"),
        false if port == 443 && here.iter().any(|grant| grant.intercept) => Ok(Way::Intercepted),
        false if only_read(&here) => Err("brokered-only"),
        false => Ok(Way::Direct),
    }
}

#[test]
fn decisions_are_those_of_the_model() {
    let seed =
        std::env::var("NULLBOX_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_1234_u64);
    println!("NULLBOX_SEED={seed}");
    let (mut dice, agent) = (Dice(seed), "a".parse().unwrap());
    let mut met = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..20_000 {
        let policy = policy(&mut dice);
        for name in NAMES {
            let host: abi::ids::HostName = name.parse().unwrap();
            let mut any = false;
            for port in PORTS {
                let decided = policy.decide(&agent, &host, port, NOW);
                let short = decided.as_ref().map(|found| found.way).map_err(|refused| refused.rule);
                assert_eq!(short, model(&policy, name, port), "round {round}: {name}:{port} {policy:#?}");
                *met.entry(format!("{short:?}")).or_default() += 1;
                any |= decided.is_ok();
                let Ok(found) = decided else { continue };
                assert!(found.grants.iter().all(|grant| policy.in_force(NOW).contains(grant)), "{policy:#?}");
                let rightly =
                    found.secret.is_none_or(|secret| secret.host == found.name && secret.port == found.port);
                assert!(rightly && found.way != Way::Direct || policy.secrets.iter().all(|s| s.host != host));
            }
            assert!(!any || policy.resolves(&agent, &host, NOW).is_ok(), "{name} {policy:#?}");
        }
    }
    assert_eq!(met.len(), 7, "each outcome was met: {met:?}");
}
