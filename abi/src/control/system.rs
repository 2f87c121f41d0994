//! Shapes of `system.*`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::config_error::ConfigError;

/// Result of `system.status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemStatus {
    pub node: String,
    pub version: String,
    /// Root hash of the image's dm-verity tree, from the kernel command line; empty outside an image.
    pub root_hash: String,
    pub boot_id: String,
    pub uptime_ms: u64,
    /// Milliseconds from kernel start to all services ready; none while booting.
    pub ready_ms: Option<u64>,
    /// True: no NULLBOX-STATE partition, everything is lost at power-off.
    pub ephemeral: bool,
    pub phases: Vec<Phase>,
    pub services: Vec<ServiceStatus>,
    /// Interface to addresses in CIDR form.
    pub addresses: BTreeMap<String, Vec<String>>,
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    /// Resident memory of PID 1.
    pub nulld_rss_kib: u64,
    /// What is wrong with the configuration; the node runs without it.
    pub problems: Vec<ConfigError>,
    /// How often nulld crashed and began again in this boot.
    pub crashes: u32,
    /// Why nulld starts and hands over nothing any more; none in a sound node.
    pub held: Option<String>,
    /// Why only what an operator needs to ask and to repair was started; none in a sound node.
    pub rescue: Option<String>,
    /// The wall clock: where its time is from, in words.
    pub clock: String,
    /// The watchdog that restarts a hung node, in words.
    pub watchdog: String,
}

/// Result of `system.doctor`: what is wrong with the node, worst first; empty in a sound one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doctor {
    pub findings: Vec<Finding>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    pub severity: Severity,
    /// `boot`, `config`, `state`, `network`, `clock`, `virtualization`, `services`, `memory`, `kernel`, `watchdog` or `nulld`.
    pub area: String,
    /// What is wrong.
    pub what: String,
    /// What it means for the node.
    pub effect: String,
    /// What to do.
    pub remedy: String,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Agents cannot run, or something may be lost.
    Error,
    /// The node runs with less than it should.
    Warning,
    /// Worth knowing.
    Info,
}

/// One boot phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    /// Milliseconds after kernel start.
    pub started_ms: u64,
    pub took_ms: u64,
    /// `ok`, `degraded: why` or `failed: why`.
    pub outcome: String,
}

/// One supervised service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceStatus {
    pub name: String,
    /// `waiting`, `starting`, `ready`, `stopping`, `backoff`, `stopped` or `failed`.
    pub state: String,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub ready_ms: Option<u64>,
    pub memory_kib: u64,
    /// Why it is not ready, or how it last ended.
    pub detail: String,
    /// What it last said of itself.
    pub says: String,
}

/// The name under which `system.logs` keeps the kernel's log.
pub const KERNEL_LOG: &str = "kernel";

/// Parameters of `system.logs`. Lines come as notifications `log` with [`LogLine`], the result is [`Nothing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemLogs {
    /// None: all.
    #[serde(default)]
    pub service: Option<String>,
    /// Newest lines to begin with.
    #[serde(default)]
    pub lines: Option<u32>,
    /// Only lines from this time on, in milliseconds since 1970.
    #[serde(default)]
    pub since_unix_ms: Option<u64>,
    #[serde(default)]
    pub follow: bool,
}

/// A line of a service's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    pub seq: u64,
    pub unix_ms: u64,
    /// A service, `nulld`, or [`KERNEL_LOG`].
    pub service: String,
    pub line: String,
    /// Lines of this answer's selection that its reader missed before this one: the ring had turned over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
