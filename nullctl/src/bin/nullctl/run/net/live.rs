//! `net allow|deny|revoke|policy|explain|suggest|watch|forget`: what agents may reach while they run.

use abi::control::{
    ConnectionRecord, Denial, Effect, Explanation, FirewallRecord, LiveChange, LiveChanges, Missed, NetAgent,
    NetAllow, NetChanged, NetExplain, NetRefuse, Nothing, PolicyRecord, Suggestion, Suggestions, Watched,
};
use abi::ids::HostName;
use abi::network::NetworkGrant;
use abi::rpc::Request;
use serde::Serialize;

use super::super::{id, logs::age_ms, note};
use super::{line, marks};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{Table, facts, moment, size, span, visible};

/// The port of `net explain` when none is given.
const PORT: u16 = 443;

pub fn allow(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let secs = given.value("for").map(|text| {
        let secs = age_ms(text).map(|ms| ms / 1000).filter(|secs| *secs > 0);
        secs.ok_or_else(|| {
            Failure::usage(format!("--for {text}: no time"), "write for example --for 10m (s, m, h or d)")
        })
    });
    let mut grant: NetworkGrant = id(given.required(1))?;
    grant.methods = given.values("method").to_vec();
    grant.paths = given.values("path").to_vec();
    grant.addresses = given.values("address").iter().map(|text| id(text)).collect::<Result<_, _>>()?;
    grant.intercept = given.has("intercept");
    if let Some((rule, remedy)) = grant.fault() {
        return Err(Failure::local(status::USAGE, format!("{grant} cannot be granted"), rule, remedy));
    }
    changed(context, "net.allow", &NetAllow { agent: id(given.required(0))?, grant, secs: secs.transpose()? })
}

pub fn deny(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    changed(context, "net.deny", &refused(given)?)
}

pub fn revoke(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    changed(context, "net.revoke", &refused(given)?)
}

pub fn lift(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    changed(context, "net.lift", &refused(given)?)
}

pub fn forget(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    changed(context, "net.forget", &Nothing {})
}

fn refused(given: &Arguments) -> Result<NetRefuse, Failure> {
    Ok(NetRefuse { agent: id(given.required(0))?, name: id(given.required(1))? })
}

fn changed(context: &Context, method: &str, params: &impl Serialize) -> Result<u8, Failure> {
    // The change waits for its receipt, as long as that may take.
    let silence = Silence::AtMost(std::time::Duration::from_secs(70));
    let result = context.ask(method, params, silence)?.result(&mut |request| context.note(request))?;
    let Some(result) = context.result_or_json(result)? else {
        return Ok(0);
    };
    let NetChanged { now, cut, receipt } = typed(&result)?;
    let connections = if cut == 1 { "connection" } else { "connections" };
    say(&format!("{}\n{cut} open {connections} cut; receipt {receipt} of the ledger\n", visible(&now)))?;
    Ok(0)
}

pub fn policy(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = NetAgent { agent: given.value("agent").map(id).transpose()? };
    let Some(result) = context.call("net.policy", &params)? else {
        return Ok(0);
    };
    let LiveChanges { changes, left_out } = typed(&result)?;
    let mut table = Table::new(&["AGENT", "", "NAME", "HOW", "FOR", "UNTIL", "BY", "RECEIPT"]);
    for LiveChange { agent, effect, grant, instance, until_unix_ms, by, receipt } in &changes {
        let (effect, name, how) = match effect {
            Effect::Allow => ("allow", grant.to_string(), marks(grant, false)),
            Effect::Deny => ("deny", grant.name.to_string(), String::new()),
        };
        let life = instance.as_ref().map_or("all lives".to_owned(), ToString::to_string);
        let until = match (until_unix_ms, instance) {
            (Some(until), _) => moment(*until),
            (None, Some(_)) => "its network ends".into(),
            (None, None) => "net allow".into(),
        };
        table.row(&[agent.as_str(), effect, &name, &how, &life, &until, by, &receipt.to_string()]);
    }
    let mut text = table.render();
    if left_out > 0 {
        text.push_str(&format!("{left_out} more: ask for one agent with --agent\n"));
    }
    say(&text)?;
    Ok(0)
}

pub fn explain(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let text = given.required(1);
    let (name, port) = match text.rsplit_once(':') {
        None => (text, PORT),
        Some((name, port)) => (
            name,
            port.parse().map_err(|_| Failure::usage(format!("`{port}` is no port"), "write NAME:PORT"))?,
        ),
    };
    let name: HostName = id(name)?;
    let params = NetExplain { agent: id(given.required(0))?, name, port };
    let result = context.ask("net.explain", &params, Silence::Ordinary)?.result(&mut |_| Ok(()))?;
    let Explanation { allowed, rule, because, remedy } = typed(&result)?;
    if context.result_or_json(result)?.is_some() {
        let word = if allowed { "passes" } else { "refused by" };
        say(&facts(&[(word, rule), ("because", because), ("to change it", remedy)]))?;
    }
    Ok(if allowed { 0 } else { status::FAILED })
}

pub fn suggest(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = NetAgent { agent: given.at(0).map(id).transpose()? };
    let Some(result) = context.call("net.suggest", &params)? else {
        return Ok(0);
    };
    let Suggestions { agents } = typed(&result)?;
    let parts: Vec<String> = agents.iter().map(suggestion).collect();
    say(&match parts.is_empty() {
        true => "# nothing was refused that is not granted by now\n".to_owned(),
        false => parts.join("\n"),
    })?;
    Ok(0)
}

/// As lines of a manifest.
fn suggestion(suggestion: &Suggestion) -> String {
    let Suggestion { agent, add, never, left_out } = suggestion;
    let mut text = format!("# {agent}: for network.allow below [capabilities] of its AGENT.toml");
    if add.iter().any(|(entry, _)| entry.starts_with('{')) {
        text.push_str("; a table replaces the entry of the same name");
    }
    text.push('\n');
    let width = add.iter().map(|(entry, _)| entry.chars().count()).max().unwrap_or(0) + 1;
    for (entry, times) in add {
        let entry = format!("{},", visible(entry));
        text.push_str(&format!("{entry:<width$}  # refused {times} times\n"));
    }
    for (what, why) in never {
        text.push_str(&format!("# no entry admits {}: {}\n", visible(what), visible(why)));
    }
    if *left_out > 0 {
        text.push_str(&format!("# {left_out} more: ask for this agent alone, or grant these first\n"));
    }
    text
}

pub fn watch(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = NetAgent { agent: given.at(0).map(id).transpose()? };
    let mut link = context.ask("net.watch", &params, Silence::Unbounded)?;
    let result = link.result(&mut |request| context.note(request))?;
    if let Some(result) = context.result_or_json(result)? {
        let Watched { connections, dropped } = typed(&result)?;
        let mut text = String::new();
        if dropped > 0 {
            text = format!("{dropped} earlier ones are not kept; the ledger has them\n");
        }
        connections.iter().for_each(|record| text.push_str(&ended(record)));
        say(&text)?;
    }
    link.follow(&mut |request| {
        if context.json {
            return context.note(request);
        }
        match item(request)? {
            Some(line) => say(&line),
            None => Ok(()),
        }
    })
}

/// A notification of `net.watch` in words.
fn item(request: &Request) -> Result<Option<String>, Failure> {
    if let Some(record) = note::<ConnectionRecord>(request, "connection")? {
        return Ok(Some(ended(&record)));
    }
    if let Some(denial) = note::<Denial>(request, "denial")? {
        return Ok(Some(line(&denial)));
    }
    if let Some(PolicyRecord { unix_ms, agent, change, entry, until_unix_ms, by, receipt }) =
        note(request, "policy")?
    {
        let until = until_unix_ms.map(|until| format!(" until {}", moment(until))).unwrap_or_default();
        let (change, entry, by) = (visible(&change), visible(&entry), visible(&by));
        return Ok(Some(format!(
            "{} {agent}: {change} {entry}{until} by {by} (receipt {receipt})\n",
            moment(unix_ms)
        )));
    }
    if let Some(FirewallRecord { unix_ms, instance, by }) = note(request, "firewall")? {
        let whose = instance.map_or("the node".to_owned(), |instance| instance.to_string());
        let (when, by) = (moment(unix_ms), visible(&by));
        return Ok(Some(format!("{when} packet rules of {whose} were changed by {by}, and put back\n")));
    }
    let missed = note::<Missed>(request, "missed")?;
    Ok(missed.map(|Missed { count }| format!("-- {count} are lost here; the ledger has them --\n")))
}

fn ended(record: &ConnectionRecord) -> String {
    format!(
        "{} {}: {}:{} at {}, {} out, {} in, {}, {} ({}; receipt {})\n",
        moment(record.unix_ms),
        record.instance,
        record.name,
        record.port,
        visible(&record.address),
        size(record.bytes_out),
        size(record.bytes_in),
        span(record.duration_ms),
        visible(&record.end),
        visible(&record.rule),
        record.receipt
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggestion_can_be_pasted_into_a_manifest() {
        let found = Suggestion {
            agent: "researcher".parse().unwrap(),
            add: vec![
                ("\"api.exa.ai\"".into(), 3),
                ("{ name = \"x.test\", methods = [\"GET\"], paths = [\"/a\\\"b\"] }".into(), 1),
            ],
            never: vec![("tcp 8.8.8.8:53\n\"evil.test\",".into(), "raw-address: connect to a name".into())],
            left_out: 2,
        };
        let manifest = format!(
            "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n[capabilities]\nnetwork.allow = [\n{}]\n",
            suggestion(&found)
        );
        let parsed = abi::manifest::parse("AGENT.toml", &manifest).unwrap();
        assert_eq!(parsed.network_allow.len(), 2, "{manifest}");
    }
}
