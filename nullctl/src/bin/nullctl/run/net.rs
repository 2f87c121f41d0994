//! `net`: what agents may reach, and what was refused.

use abi::control::{Denial, Denials, Grants, NetDenials, NetGrants};
use abi::network::NetworkGrant;

use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Table, ago, moment, size, visible};

pub mod live;

pub fn grants(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = NetGrants { agent: given.value("agent").map(id).transpose()?, counters_only: false };
    let Some(result) = context.call("net.grants", &params)? else {
        return Ok(0);
    };
    let grants: Grants = typed(&result)?;
    let mut table =
        Table::new(&["AGENT", "MAY REACH", "HOW", "STANDS FOR", "OPEN", "TOTAL", "OUT", "IN", "DENIED"]);
    for agent in &grants.agents {
        let mut first = true;
        if agent.allow.is_empty() {
            table.row(&[&agent.instance.to_string(), "-"]);
        }
        for destination in &agent.allow {
            let synthetic =
                destination.exact().and_then(|name| agent.synthetic.get(name)).map_or("-", String::as_str);
            let (name, to) = (agent.instance.to_string(), destination.to_string());
            let how = marks(destination, agent.live.contains(destination));
            if first {
                table.row(&[
                    &name,
                    &to,
                    &how,
                    synthetic,
                    &agent.connections.to_string(),
                    &agent.connections_total.to_string(),
                    &size(agent.bytes_out),
                    &size(agent.bytes_in),
                    &agent.denials.to_string(),
                ]);
            } else {
                table.row(&["", &to, &how, synthetic]);
            }
            first = false;
        }
    }
    let mut text = table.render();
    for agent in &grants.agents {
        for port in &agent.publish {
            let from: Vec<String> = port.from.iter().map(ToString::to_string).collect();
            let (node_port, guest_port) = (port.node_port, port.guest_port);
            text.push_str(&format!(
                "{}: port {node_port} of the node leads to its port {guest_port}, for {}\n",
                agent.instance,
                from.join(" ")
            ));
        }
    }
    if grants.left_out > 0 {
        text.push_str(&format!("{} entries more: ask for one agent with --agent\n", grants.left_out));
    }
    say(&text)?;
    Ok(0)
}

/// What narrows or widens a grant beyond its name and ports, in words.
pub fn marks(grant: &NetworkGrant, live: bool) -> String {
    let mut marks: Vec<String> = Vec::new();
    if live {
        marks.push("live".into());
    }
    if grant.exact().is_none() {
        marks.push("one label more".into());
    }
    if !grant.methods.is_empty() {
        marks.push(format!("{} only", grant.methods.join(" ")));
    }
    if !grant.paths.is_empty() {
        marks.push(format!("below {}", grant.paths.join(" ")));
    }
    if !grant.addresses.is_empty() {
        let addresses: Vec<String> = grant.addresses.iter().map(ToString::to_string).collect();
        marks.push(format!("also at {}", addresses.join(" ")));
    }
    if grant.without_sni {
        marks.push("without a server name".into());
    }
    if grant.intercept {
        marks.push("intercepted".into());
    }
    if marks.is_empty() { "-".into() } else { marks.join(", ") }
}

pub fn denials(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let params = NetDenials { agent: given.value("agent").map(id).transpose()?, follow };
    let silence = if follow { Silence::Unbounded } else { Silence::Ordinary };
    let mut link = context.ask("net.denials", &params, silence)?;
    let result = link.result(&mut |request| context.note(request))?;
    if let Some(result) = context.result_or_json(result)? {
        let page: Denials = typed(&result)?;
        say(&in_words(&page))?;
    }
    if !follow {
        return Ok(0);
    }
    link.follow(&mut |request| {
        if context.json {
            return context.note(request);
        }
        match note::<Denial>(request, "denial")? {
            Some(denial) => say(&line(&denial)),
            None => Ok(()),
        }
    })
}

fn in_words(page: &Denials) -> String {
    let mut table = Table::new(&["WHEN", "AGENT", "REFUSED", "RULE", "TIMES", "TO GRANT IT"]);
    for denial in &page.denials {
        table.row(&[
            &ago(denial.unix_ms),
            &denial.instance.to_string(),
            &denial.what,
            &denial.rule,
            &denial.count.to_string(),
            &denial.remedy,
        ]);
    }
    let mut text = table.render();
    if page.dropped > 0 {
        text.push_str(&format!("{} older ones are only in the ledger\n", page.dropped));
    }
    text
}

fn line(denial: &Denial) -> String {
    format!(
        "{} {}: {} refused by {} (x{}); {}\n",
        moment(denial.unix_ms),
        denial.instance,
        visible(&denial.what),
        visible(&denial.rule),
        denial.count,
        visible(&denial.remedy)
    )
}
