//! `agent top`, `events` and `metrics`.

use abi::control::{AgentEvent, AgentEventList, AgentEvents, AgentTop, AgentUse, Metrics, Nothing};
use std::time::Duration;

use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say, terminal};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Table, moment, size, visible};

/// Between two samples that a person compares.
const PAUSE: Duration = Duration::from_secs(2);
/// Between the two samples of a single table.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

pub fn top(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let Some(first) = sample(context)? else {
        return if follow { samples(context) } else { Ok(0) };
    };
    let mut before = first;
    std::thread::sleep(FIRST_PAUSE);
    loop {
        let Some(now) = sample(context)? else { return Ok(0) };
        let table = table(&before, &now);
        match follow && terminal() {
            true => say(&format!(
                "\x1b[H\x1b[2J{} agents run at {}\n\n{table}",
                now.agents.len(),
                moment(now.unix_ms)
            ))?,
            false => say(&table)?,
        }
        if !follow {
            return Ok(0);
        }
        before = now;
        std::thread::sleep(PAUSE);
    }
}

/// One sample; none if it was printed as JSON.
fn sample(context: &Context) -> Result<Option<AgentTop>, Failure> {
    context.call("agent.top", &Nothing {})?.map(|result| typed(&result)).transpose()
}

/// Further samples as JSON, until the command ends.
fn samples(context: &Context) -> Result<u8, Failure> {
    loop {
        std::thread::sleep(PAUSE);
        sample(context)?;
    }
}

fn table(before: &AgentTop, now: &AgentTop) -> String {
    let mut table = Table::new(&[
        "AGENT", "STATE", "CPU", "OF", "MEMORY", "OF", "DISK R", "DISK W", "NET OUT", "NET IN", "CONN",
        "DENIED", "EXECS", "RESTARTS", "TASKS",
    ]);
    let passed_ms = now.unix_ms.saturating_sub(before.unix_ms);
    for agent in &now.agents {
        let earlier = before.agents.iter().find(|other| other.name == agent.name);
        table.row(&[
            &agent.name,
            &agent.state,
            &cpu_percent(earlier, agent, passed_ms),
            &format!("{} %", agent.cpu_percent_max),
            &size(agent.memory_kib * 1024),
            &size(agent.memory_max_kib * 1024),
            &size(agent.disk_read_bytes),
            &size(agent.disk_written_bytes),
            &size(agent.net_out_bytes),
            &size(agent.net_in_bytes),
            &agent.connections.to_string(),
            &(agent.net_denials + agent.guest_denials).to_string(),
            &format!("{} ({})", agent.execs, agent.execs_total),
            &agent.restarts.to_string(),
            &agent.tasks.to_string(),
        ]);
    }
    table.render()
}

/// CPU time between two samples, of one core; a dash where there is nothing to compare with.
fn cpu_percent(earlier: Option<&AgentUse>, now: &AgentUse, passed_ms: u64) -> String {
    // A counter that went back belongs to another life.
    let used = earlier.and_then(|earlier| now.cpu_ms.checked_sub(earlier.cpu_ms));
    match (used, passed_ms) {
        (Some(used), 1..) => format!("{:.1} %", used as f64 * 100.0 / passed_ms as f64),
        _ => "-".into(),
    }
}

pub fn events(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let params = AgentEvents { name: given.at(0).map(id).transpose()?, follow };
    let silence = if follow { Silence::Unbounded } else { Silence::Ordinary };
    let mut link = context.ask("agent.events", &params, silence)?;
    let result = link.result(&mut |request| context.note(request))?;
    if let Some(result) = context.result_or_json(result)? {
        let list: AgentEventList = typed(&result)?;
        let mut text = String::new();
        if list.dropped > 0 {
            text = format!("{} earlier ones are not kept; the ledger has them\n", list.dropped);
        }
        list.events.iter().for_each(|event| text.push_str(&line(event)));
        say(&text)?;
    }
    if !follow {
        return Ok(0);
    }
    link.follow(&mut |request| {
        if context.json {
            return context.note(request);
        }
        match note::<AgentEvent>(request, "event")? {
            Some(event) => say(&line(&event)),
            None => Ok(()),
        }
    })
}

fn line(event: &AgentEvent) -> String {
    let AgentEvent { unix_ms, agent, what, detail, .. } = event;
    let line = format!("{} {agent}: {} {}", moment(*unix_ms), visible(what), visible(detail));
    format!("{}\n", line.trim_end())
}

pub fn metrics(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let mut text = String::new();
    let mut link = context.ask("agent.metrics", &Nothing {}, Silence::Ordinary)?;
    let last = link.result(&mut |request| {
        if let Some(part) = note::<Metrics>(request, "metrics")? {
            text.push_str(&part.text);
        }
        Ok(())
    })?;
    let last: Metrics = typed(&last)?;
    text.push_str(&last.text);
    let whole = serde_json::to_value(Metrics { text })
        .map_err(|error| Failure::usage(error.to_string(), "this is an error of nullctl"))?;
    if let Some(whole) = context.result_or_json(whole)? {
        let Metrics { text } = typed(&whole)?;
        match terminal() {
            true => say(&text.lines().map(|line| visible(line) + "\n").collect::<String>())?,
            false => say(&text)?, // the bytes as they are, for a program
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_what_was_used_between_two_samples_of_one_life() {
        let used = |cpu_ms: u64| AgentUse { cpu_ms, ..AgentUse::default() };
        assert_eq!(cpu_percent(Some(&used(1000)), &used(1500), 1000), "50.0 %");
        assert_eq!(cpu_percent(Some(&used(1500)), &used(100), 1000), "-", "another life");
        assert_eq!(cpu_percent(None, &used(100), 1000), "-");
        assert_eq!(cpu_percent(Some(&used(1)), &used(2), 0), "-");
    }
}
