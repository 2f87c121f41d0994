//! `system`: the node itself.

use abi::control::{Nothing, SystemStatus};

use crate::cli::Arguments;
use crate::context::{Context, SILENCE, Silence, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Table, facts, size, span, visible};

pub fn status(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("system.status", &Nothing {})? else {
        return Ok(0);
    };
    say(&in_words(&typed(&result)?))?;
    Ok(0)
}

/// What there is nothing to say of in a sound node has no line.
fn about(status: &SystemStatus) -> String {
    let used = status.memory_total_kib.saturating_sub(status.memory_available_kib);
    let addresses: Vec<String> =
        status.addresses.iter().map(|(interface, list)| format!("{interface} {}", list.join(" "))).collect();
    let all = [
        ("node", format!("{}, NullBox {}, up {}", status.node, status.version, span(status.uptime_ms))),
        (
            "image",
            if status.root_hash.is_empty() {
                "not a verified image".into()
            } else {
                format!("root hash {}", status.root_hash)
            },
        ),
        ("boot", status.boot_id.clone()),
        ("rescue", status.rescue.clone().unwrap_or_default()),
        ("held", status.held.clone().unwrap_or_default()),
        ("ready", status.ready_ms.map_or("not yet".into(), |ms| format!("{} after kernel start", span(ms)))),
        (
            "state",
            match (&status.rescue, status.ephemeral) {
                (Some(_), _) => "the state volume is not used",
                (None, true) => "ephemeral: lost at power-off (no NULLBOX-STATE partition)",
                (None, false) => "kept on NULLBOX-STATE",
            }
            .into(),
        ),
        (
            "memory",
            format!(
                "{} of {} used, nulld {}",
                size(used * 1024),
                size(status.memory_total_kib * 1024),
                size(status.nulld_rss_kib * 1024)
            ),
        ),
        ("clock", status.clock.clone()),
        ("watchdog", status.watchdog.clone()),
        ("crashes", if status.crashes == 0 { String::new() } else { format!("{} of nulld", status.crashes) }),
        ("addresses", if addresses.is_empty() { "none".into() } else { addresses.join(", ") }),
    ];
    let said: Vec<(&str, String)> = all.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    facts(&said)
}

fn in_words(status: &SystemStatus) -> String {
    let mut text = about(status);
    let mut phases = Table::new(&["PHASE", "STARTED", "TOOK", "OUTCOME"]);
    for phase in &status.phases {
        phases.row(&[
            &phase.name,
            &format!("{} ms", phase.started_ms),
            &format!("{} ms", phase.took_ms),
            &phase.outcome,
        ]);
    }
    let mut services = Table::new(&["SERVICE", "STATE", "PID", "RESTARTS", "READY", "MEMORY", "DETAIL"]);
    for service in &status.services {
        services.row(&[
            &service.name,
            &service.state,
            &service.pid.map_or("-".into(), |pid| pid.to_string()),
            &service.restarts.to_string(),
            &service.ready_ms.map_or("-".into(), |ms| format!("{ms} ms")),
            &size(service.memory_kib * 1024),
            if service.detail.is_empty() { &service.says } else { &service.detail },
        ]);
    }
    text.push_str(&format!("\n{}\n{}", phases.render(), services.render()));
    if !status.problems.is_empty() {
        text.push_str("\nProblems in the configuration:\n");
        for problem in &status.problems {
            text.push_str(&format!("  {}\n", visible(&problem.to_string())));
        }
    }
    text
}

pub fn reboot(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    power(context, "system.reboot", "the node reboots")
}

pub fn poweroff(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    power(context, "system.poweroff", "the node powers off")
}

fn power(context: &Context, method: &str, done: &str) -> Result<u8, Failure> {
    let result = context
        .ask(method, &Nothing {}, Silence::AtMost(SILENCE))?
        .result(&mut |request| context.note(request))?;
    if context.result_or_json(result)?.is_some() {
        say(&format!("{done}\n"))?;
    }
    Ok(0)
}
