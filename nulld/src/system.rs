//! nulld's own methods, `system.*`.
//!
//! Must hold: nothing here waits; a call that takes time becomes a stream or an order for the loop.

use std::fs;

use abi::config_error::ConfigError;
use abi::control::{Finding, Nothing, ServiceStatus, Severity, SystemLogs, SystemStatus};
use abi::identity::Caller;
use abi::limits;
use abi::rpc::{Code, Request, RpcError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::builtin::CLOCK;
use crate::callers::LogStream;
use crate::health::{self, DiskWatch, Machine};
use crate::journal::{Journal, OWN};
use crate::phases::Phases;
use crate::power::Order;
use crate::supervisor::Supervisor;
use crate::{clock, doctor};

/// What nulld knows about itself. It lives on over a crash of nulld.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Facts {
    pub node: String,
    pub root_hash: String,
    pub boot_id: String,
    pub ready_ms: Option<u64>,
    pub ephemeral: bool,
    pub problems: Vec<ConfigError>,
    /// How often nulld crashed in this boot.
    pub crashes: u32,
    /// Why nothing is started or handed over any more.
    pub held: Option<String>,
    /// Why only the services of a rescue were started.
    pub rescue: Option<String>,
    /// What the boot could not do as it should, for `system.doctor`; at most [`limits::FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Kernel settings that were not in force when the boot had written them.
    pub lax: Vec<String>,
    /// Events that did not reach the ledger.
    pub ledger_events_dropped: u64,
    /// How often the wall clock jumped.
    pub clock_jumps: u32,
    /// The watchdog, in words.
    pub watchdog: String,
    /// The wall clock, in words.
    pub clock: String,
}

impl Facts {
    /// Notes something that is wrong, for `system.doctor`. More than fit one answer are not noted.
    pub fn found(&mut self, severity: Severity, area: &str, what: &str, effect: &str, remedy: &str) {
        if self.findings.len() < limits::FINDINGS_MAX {
            self.findings.push(doctor::finding(severity, area, what, effect, remedy));
        }
    }
}

/// What `system.*` looks at.
#[derive(Debug)]
pub struct View<'a> {
    pub facts: &'a Facts,
    pub phases: &'a Phases,
    pub supervisor: &'a Supervisor,
    pub journal: &'a Journal,
    pub is_going_down: bool,
    pub disks: &'a DiskWatch,
}

/// What a call comes to.
#[derive(Debug)]
pub enum Reply {
    Result(Value),
    Logs(LogStream),
    Power(Order),
}

/// Serves one call; who may call was checked at the door.
pub fn call(request: &Request, caller: &Caller, view: &View<'_>) -> Result<Reply, RpcError> {
    let internal = |error: serde_json::Error| RpcError::new(Code::INTERNAL, error.to_string());
    match request.method.as_str() {
        "system.status" => {
            request.params::<Nothing>()?;
            serde_json::to_value(status(view)).map(Reply::Result).map_err(internal)
        }
        "system.doctor" => {
            request.params::<Nothing>()?;
            serde_json::to_value(doctor::of(view)).map(Reply::Result).map_err(internal)
        }
        "system.logs" => logs(request, view).map(Reply::Logs),
        "system.reboot" | "system.poweroff" => {
            request.params::<Nothing>()?;
            if view.is_going_down {
                return Err(RpcError::new(Code::CONFLICT, "the node is going down already")
                    .explained("power is ordered once", "wait for it"));
            }
            let by = caller.to_string();
            Ok(Reply::Power(match request.method.as_str() {
                "system.reboot" => Order::reboot(by),
                _ => Order::poweroff(by),
            }))
        }
        other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("there is no method `{other}`"))),
    }
}

fn logs(request: &Request, view: &View<'_>) -> Result<LogStream, RpcError> {
    let params: SystemLogs = request.params()?;
    if let Some(name) = &params.service {
        let is_known = name == OWN || view.supervisor.unit(name).is_some() || view.journal.logs.knows(name);
        if !is_known {
            let names: Vec<&str> = view.supervisor.units.iter().map(|unit| unit.name.as_str()).collect();
            let shown: String = name.chars().take(64).collect();
            return Err(RpcError::new(Code::NOT_FOUND, format!("there is no service `{shown}`")).explained(
                "logs are kept for each service of the node",
                format!("name one of {OWN}, {}", names.join(", ")),
            ));
        }
    }
    let count =
        params.lines.map_or(limits::SERVICE_LOG_LINES_MAX * limits::LOG_RINGS_MAX, |lines| lines as usize);
    let logs = &view.journal.logs;
    Ok(LogStream {
        request_id: request.id,
        cursor: logs.cursor(params.service.as_deref(), params.since_unix_ms.unwrap_or(0), count),
        end_seq: (!params.follow).then(|| logs.next_seq()),
        is_patient: false,
    })
}

fn status(view: &View<'_>) -> SystemStatus {
    let (facts, machine) = (view.facts, Machine::read());
    let services: Vec<ServiceStatus> = view.supervisor.units.iter().map(|unit| unit.status()).collect();
    // The service knows better than what was found at boot.
    let keeper = services.iter().find(|service| service.name == CLOCK && !service.says.is_empty());
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    SystemStatus {
        node: facts.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        root_hash: facts.root_hash.clone(),
        boot_id: facts.boot_id.clone(),
        uptime_ms: clock::now_ms(),
        ready_ms: facts.ready_ms,
        ephemeral: facts.ephemeral,
        phases: view.phases.list(),
        addresses: machine.interfaces.into_iter().map(|(name, one)| (name, one.addresses)).collect(),
        memory_total_kib: machine.memory_total_kib,
        memory_available_kib: machine.memory_available_kib,
        nulld_rss_kib: health::kib(&own, "VmRSS:"),
        problems: facts.problems.clone(),
        crashes: facts.crashes,
        held: facts.held.clone(),
        rescue: facts.rescue.clone(),
        clock: keeper.map_or(&facts.clock, |service| &service.says).clone(),
        services,
        watchdog: facts.watchdog.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view<'a>(
        facts: &'a Facts,
        phases: &'a Phases,
        supervisor: &'a Supervisor,
        journal: &'a Journal,
    ) -> View<'a> {
        let disks = Box::leak(Box::new(DiskWatch::default()));
        View { facts, phases, supervisor, journal, is_going_down: false, disks }
    }

    fn root() -> Caller {
        Caller::Local { uid: 0 }
    }

    #[test]
    fn every_system_method_is_served_and_takes_no_unknown_field() {
        let (facts, phases, supervisor, journal) = Default::default();
        let view = view(&facts, &phases, &supervisor, &journal);
        for method in abi::control::METHODS.iter().filter(|m| m.service == abi::identity::Service::Nulld) {
            let good = Request::call(1, method.name, Value::Null);
            assert!(call(&good, &root(), &view).is_ok(), "{}", method.name);
            let bad = Request::call(1, method.name, json!({ "surplus": 1 }));
            assert_eq!(call(&bad, &root(), &view).unwrap_err().code, Code::INVALID_PARAMS, "{}", method.name);
        }
    }

    #[test]
    fn status_reads_this_machine() {
        let (facts, phases, supervisor, journal) = Default::default();
        let status = status(&view(&facts, &phases, &supervisor, &journal));
        assert!(status.nulld_rss_kib > 0 && status.memory_total_kib > status.memory_available_kib);
        assert!(
            status
                .addresses
                .get("lo")
                .is_some_and(|list| list.is_empty() || list.contains(&"127.0.0.1/8".to_owned()))
        );
    }

    #[test]
    fn power_is_ordered_once() {
        let (facts, phases, supervisor, journal) = Default::default();
        let mut view = view(&facts, &phases, &supervisor, &journal);
        view.is_going_down = true;
        let error = call(&Request::call(1, "system.reboot", Value::Null), &root(), &view).unwrap_err();
        assert_eq!(error.code, Code::CONFLICT);
    }

    #[test]
    fn logs_of_an_unknown_service_are_refused() {
        let (facts, phases, supervisor, journal) = Default::default();
        let request = Request::call(1, "system.logs", json!({ "service": "nobody" }));
        let view = view(&facts, &phases, &supervisor, &journal);
        assert_eq!(call(&request, &root(), &view).unwrap_err().code, Code::NOT_FOUND);
    }
}
