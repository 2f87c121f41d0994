//! `[services.NAME]` of nulld.toml: what a service is, and everything it may do. What is not granted here is refused.
//!
//! Must hold: each default is the least; a grant that could undo another wall (a path around `devices`, another service's
//! state) is a mistake, not a grant.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{Checked, NodeConfig, STATE_DIR};
use crate::limits;

/// `[services.NAME]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Absolute path of a program in the image.
    pub path: String,
    #[serde(default)]
    pub args: Vec<String>,
    /// Services that must be ready before this one starts, and whose failure keeps it from starting.
    #[serde(default)]
    pub needs: Vec<String>,
    #[serde(default)]
    pub restart: Restart,
    /// User and group id.
    #[serde(default)]
    pub uid: u32,
    /// Capabilities kept, without `CAP_`, lower case; everything else is dropped from every set.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Sets of system calls beside the one that every program needs. Any other call ends the process.
    #[serde(default)]
    pub system_calls: Vec<CallSet>,
    /// Files and directories it sees and may read; a socket among them it may connect to. One that is not there is left out.
    #[serde(default)]
    pub read: Vec<String>,
    /// Files and directories it may change, beside its own `/state/NAME`. One that is not there is left out.
    #[serde(default)]
    pub write: Vec<String>,
    /// Files and directories from which it may execute programs, beside its own one.
    #[serde(default)]
    pub execute: Vec<String>,
    /// Devices it may use, below /dev. One that is not there is left out.
    #[serde(default)]
    pub devices: Vec<String>,
    /// What of /proc it sees.
    #[serde(default)]
    pub proc: Proc,
    /// It shares the node's network; else it has one of its own, without an interface.
    #[serde(default)]
    pub network: bool,
    /// TCP ports it may listen on.
    #[serde(default)]
    pub tcp_listen: Vec<Port>,
    /// TCP ports it may connect to.
    #[serde(default)]
    pub tcp_connect: Vec<Port>,
    /// It makes mounts of its own. Landlock, which refuses mount(2) to all under it, is left off for it.
    #[serde(default)]
    pub makes_mounts: bool,
    /// No file system of its own, no Landlock, no filter of system calls, the node's network: for test images.
    #[serde(default)]
    pub unconfined: bool,
    /// The service makes cgroups of its own below its cgroup.
    #[serde(default)]
    pub delegate_cgroup: bool,
    #[serde(default = "ready_secs_default")]
    pub ready_secs_max: u32,
    #[serde(default = "stop_secs_default")]
    pub stop_secs_max: u32,
    /// memory.max of the service's own cgroup in MiB; 0: no limit.
    #[serde(default)]
    pub memory_mib_max: u32,
    /// pids.max of the service's own cgroup: its threads and processes.
    #[serde(default = "tasks_default")]
    pub tasks_max: u32,
    /// Descriptors it may have open.
    #[serde(default = "open_files_default")]
    pub open_files_max: u32,
    /// How readily the kernel kills it when the node has no memory left: -1000 never, 1000 first (proc_pid_oom_score_adj(5)).
    #[serde(default)]
    pub oom_score: i32,
    /// Silence, in seconds, after which a ready service is taken for hung and killed; 0: never.
    #[serde(default)]
    pub watchdog_secs_max: u32,
    /// The pause before the first restart; it doubles up to 30 s.
    #[serde(default = "restart_ms_default")]
    pub restart_ms_min: u32,
    /// It runs also on a node that cannot use its state volume, so that an operator can ask what is wrong.
    #[serde(default)]
    pub rescue: bool,
}

/// Tasks a service has when its table says nothing: a few threads, and one for each connection being answered.
pub const TASKS_DEFAULT: u32 = 256;
/// Descriptors a service has when its table says nothing.
pub const OPEN_FILES_DEFAULT: u32 = 1024;
/// The pause before a first restart when the table says nothing.
pub const RESTART_MS_DEFAULT: u32 = limits::SERVICE_BACKOFF_MS_MIN as u32;

fn restart_ms_default() -> u32 {
    RESTART_MS_DEFAULT
}

fn ready_secs_default() -> u32 {
    30
}

fn stop_secs_default() -> u32 {
    10
}

fn tasks_default() -> u32 {
    TASKS_DEFAULT
}

fn open_files_default() -> u32 {
    OPEN_FILES_DEFAULT
}

impl ServiceConfig {
    /// A service of this program with nothing granted: what nulld.toml's defaults are.
    pub fn denied(path: &str) -> ServiceConfig {
        ServiceConfig {
            path: path.to_owned(),
            args: Vec::new(),
            needs: Vec::new(),
            restart: Restart::Always,
            uid: 0,
            capabilities: Vec::new(),
            system_calls: Vec::new(),
            read: Vec::new(),
            write: Vec::new(),
            execute: Vec::new(),
            devices: Vec::new(),
            proc: Proc::None,
            network: false,
            tcp_listen: Vec::new(),
            tcp_connect: Vec::new(),
            makes_mounts: false,
            unconfined: false,
            delegate_cgroup: false,
            ready_secs_max: ready_secs_default(),
            stop_secs_max: stop_secs_default(),
            memory_mib_max: 0,
            tasks_max: TASKS_DEFAULT,
            open_files_max: OPEN_FILES_DEFAULT,
            oom_score: 0,
            watchdog_secs_max: 0,
            restart_ms_min: RESTART_MS_DEFAULT,
            rescue: false,
        }
    }
}

/// When an ended service is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// A named set of system calls; nulld/src/launch/calls.rs lists them with a reason for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallSet {
    /// Makes, changes and removes files.
    Files,
    /// IPv4 sockets.
    Network,
    /// Netlink sockets: links, addresses, packet rules.
    Netlink,
    /// Makes and enters network namespaces.
    Namespaces,
    /// Makes jails: processes, mounts, namespaces, identities; and what runs in them.
    Jails,
    /// Sets the node's clock.
    Clock,
}

impl CallSet {
    /// All of them.
    pub const ALL: [CallSet; 6] = [
        CallSet::Files,
        CallSet::Network,
        CallSet::Netlink,
        CallSet::Namespaces,
        CallSet::Jails,
        CallSet::Clock,
    ];
}

/// What a service sees of /proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Proc {
    /// There is no /proc.
    #[default]
    None,
    /// Its own processes and nothing else.
    Own,
    /// Its own processes, and the settings below /proc/sys/net, which it may change.
    Net,
}

/// A TCP port, or a word for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "not a port, expected 1 to 65535, \"any\", \"gate\", \"published\" or \"metrics\""
)]
pub enum Port {
    Number(u16),
    Named(PortName),
}

/// A word for ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortName {
    /// Every port.
    Any,
    /// `gate.port`, whatever it is; a number once the configuration is whole.
    Gate,
    /// All ports that a manifest may publish on; numbers once the configuration is whole.
    Published,
    /// The port of `metrics.listen`: a number once the configuration is whole, or nothing where nothing listens.
    Metrics,
}

/// Puts numbers in the place of words that the rest of the configuration gives a number, and grants the node's libraries.
pub(super) fn resolve(config: &mut NodeConfig) {
    let gate = config.gate.port;
    let metrics = config.metrics.address().map(|address| address.port());
    let numbers = |port: Port| match port {
        Port::Named(PortName::Gate) => vec![Port::Number(gate)],
        Port::Named(PortName::Metrics) => metrics.map(Port::Number).into_iter().collect(),
        Port::Named(PortName::Published) => {
            (limits::PUBLISH_PORT_MIN..=limits::PUBLISH_PORT_MAX).map(Port::Number).collect()
        }
        Port::Named(PortName::Any) | Port::Number(_) => vec![port],
    };
    for service in config.services.values_mut() {
        for ports in [&mut service.tcp_listen, &mut service.tcp_connect] {
            *ports = ports.iter().copied().flat_map(numbers).collect();
        }
        service.execute.extend(config.node.libraries.iter().cloned());
    }
}

/// The same shape with every field optional: what one file may hold.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PartialService {
    path: Option<String>,
    args: Vec<String>,
    needs: Vec<String>,
    restart: Restart,
    uid: u32,
    capabilities: Vec<String>,
    system_calls: Vec<CallSet>,
    read: Vec<String>,
    write: Vec<String>,
    execute: Vec<String>,
    devices: Vec<String>,
    proc: Proc,
    network: bool,
    tcp_listen: Vec<Port>,
    tcp_connect: Vec<Port>,
    makes_mounts: bool,
    unconfined: bool,
    delegate_cgroup: bool,
    ready_secs_max: u32,
    stop_secs_max: u32,
    memory_mib_max: u32,
    tasks_max: u32,
    open_files_max: u32,
    oom_score: i32,
    watchdog_secs_max: u32,
    restart_ms_min: u32,
    rescue: bool,
}

/// Says which field is wrong, which rule that is, and how to put it right.
type Wrong<'a> = &'a dyn Fn(String, &str, &str) -> Checked<()>;

/// Checks one service of a whole configuration.
pub(super) fn check(
    name: &str,
    services: &BTreeMap<String, ServiceConfig>,
    service: &ServiceConfig,
    wrong: Wrong<'_>,
) -> Checked<()> {
    let field = |key: &str| format!("services.{name}.{key}");
    let is_name = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    if name.is_empty() || name.len() > limits::AGENT_NAME_BYTES_MAX || !name.bytes().all(is_name) {
        let rule = "a service's name must be 1 to 32 of A-Z a-z 0-9 - _";
        return wrong(format!("services.{name}"), rule, "choose another name");
    }
    if !service.path.starts_with("/system/bin/") || !is_plain(&service.path) {
        let rule = "must be a program of the image, below /system/bin";
        return wrong(field("path"), rule, "remove the line");
    }
    if let Some(missing) = service.needs.iter().find(|need| !services.contains_key(*need)) {
        let rule = format!("needs `{missing}`, which is not a service");
        return wrong(field("needs"), &rule, "name a service of this file");
    }
    if service.ready_secs_max == 0 || service.stop_secs_max == 0 {
        let rule = "time limits must be at least one second";
        return wrong(format!("services.{name}"), rule, "remove the zero");
    }
    check_bounds(service, &field, wrong)?;
    check_paths(name, service, &field, wrong)
}

/// Checks `node.libraries`.
pub(super) fn check_libraries(libraries: &[String], wrong: Wrong<'_>) -> Checked<()> {
    let allowed = |path: &String| {
        is_plain(path) && !["/dev", "/proc", STATE_DIR].iter().any(|top| path.starts_with(top))
    };
    if libraries.len() > limits::SERVICE_GRANTS_MAX || !libraries.iter().all(allowed) {
        let rule = format!("must be at most {} absolute paths of directories", limits::SERVICE_GRANTS_MAX);
        return wrong("node.libraries".into(), &rule, "remove the line: the image's programs need none");
    }
    Ok(())
}

fn check_bounds(service: &ServiceConfig, field: &dyn Fn(&str) -> String, wrong: Wrong<'_>) -> Checked<()> {
    if !(1..=limits::SERVICE_TASKS_MAX).contains(&service.tasks_max) {
        let rule = format!("must be 1 to {}", limits::SERVICE_TASKS_MAX);
        return wrong(field("tasks_max"), &rule, "write for example tasks_max = 256");
    }
    if !(16..=limits::SERVICE_OPEN_FILES_MAX).contains(&service.open_files_max) {
        let rule = format!("must be 16 to {}", limits::SERVICE_OPEN_FILES_MAX);
        return wrong(field("open_files_max"), &rule, "write for example open_files_max = 1024");
    }
    if !(-999..=1000).contains(&service.oom_score) {
        let rule = "must be -999 to 1000; -1000 is nulld's alone";
        return wrong(field("oom_score"), rule, "write for example oom_score = -500");
    }
    if service.tcp_listen.contains(&Port::Named(PortName::Any)) {
        let rule = "\"any\" is for tcp_connect: a service says which ports it listens on";
        return wrong(field("tcp_listen"), rule, "list the ports");
    }
    let all = service.tcp_listen.iter().chain(&service.tcp_connect);
    if all.clone().any(|port| *port == Port::Number(0)) || all.count() > limits::SERVICE_GRANTS_MAX {
        let rule = format!("must be at most {} ports, none of them 0", limits::SERVICE_GRANTS_MAX);
        return wrong(field("tcp_listen"), &rule, "write for example tcp_listen = [443]");
    }
    Ok(())
}

fn check_paths(
    name: &str,
    service: &ServiceConfig,
    field: &dyn Fn(&str) -> String,
    wrong: Wrong<'_>,
) -> Checked<()> {
    let lists = [("read", &service.read), ("write", &service.write), ("execute", &service.execute)];
    for (key, list) in lists.into_iter().chain([("devices", &service.devices)]) {
        if list.len() > limits::SERVICE_GRANTS_MAX {
            let rule = format!("must be at most {} paths", limits::SERVICE_GRANTS_MAX);
            return wrong(field(key), &rule, "name a directory above several of them");
        }
        for path in list {
            if !is_plain(path) {
                let rule = format!("`{}` must be an absolute path without `.`, `..` or `//`", shown(path));
                return wrong(field(key), &rule, "write the whole path, for example /run/nullbox/node.json");
            }
            if (key == "devices") != is_below(path, "/dev") {
                let rule =
                    format!("`{path}`: devices are below /dev and stand in `devices`, nothing else does");
                return wrong(field(key), &rule, "move it to the right list");
            }
            if is_below(path, "/proc") || path == "/proc" {
                let rule = format!("`{path}`: what is seen of /proc is said by `proc`");
                return wrong(field(key), &rule, "write proc = \"own\" or proc = \"net\"");
            }
            let own = format!("{STATE_DIR}/{name}");
            if path == STATE_DIR || (is_below(path, STATE_DIR) && *path != own && !is_below(path, &own)) {
                let rule = format!("`{path}`: a service has its own state and no other's");
                return wrong(field(key), &rule, "remove the path; ask that service over its socket");
            }
        }
    }
    Ok(())
}

/// Absolute, printable, bounded, below the root, and spelled in the one way there is.
fn is_plain(path: &str) -> bool {
    let part_is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= limits::PATH_BYTES_MAX
        && !path.chars().any(char::is_control)
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part_is_plain))
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn shown(path: &str) -> String {
    path.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_error::Source;
    use crate::node::parse;

    fn with(line: &str) -> Result<NodeConfig, Box<crate::config_error::ConfigError>> {
        let text = format!("[services.a]\npath = \"/system/bin/a\"\n{line}\n");
        parse(&[Source { file: "t", text: &text }])
    }

    #[test]
    fn the_defaults_deny() {
        let config = with("").unwrap();
        assert_eq!(config.services["a"], ServiceConfig::denied("/system/bin/a"));
        let denied = ServiceConfig::denied("/system/bin/a");
        assert!(!denied.unconfined && !denied.network && !denied.makes_mounts && denied.proc == Proc::None);
        assert!(denied.read.is_empty() && denied.capabilities.is_empty() && denied.system_calls.is_empty());
    }

    #[test]
    fn a_wrong_grant_names_line_field_rule_and_remedy() {
        for (line, rule) in [
            ("read = [\"relative\"]", "absolute path"),
            ("read = [\"/\"]", "absolute path"),
            ("read = [\"/run/../state/cage\"]", "absolute path"),
            ("read = [\"/run//x\"]", "absolute path"),
            ("write = [\"/run/./x\"]", "absolute path"),
            ("execute = [\"/run/x\\u0007\"]", "absolute path"),
            ("read = [\"/dev/null\"]", "stand in `devices`"),
            ("devices = [\"/run/x\"]", "below /dev"),
            ("write = [\"/proc/sys\"]", "said by `proc`"),
            ("read = [\"/proc\"]", "said by `proc`"),
            ("read = [\"/state\"]", "its own state"),
            ("write = [\"/state/cage\"]", "its own state"),
            ("write = [\"/state/ab\"]", "its own state"),
            ("system_calls = [\"everything\"]", "unknown variant"),
            ("proc = \"all\"", "unknown variant"),
            ("tcp_listen = [\"any\"]", "list the ports"),
            ("tcp_listen = [0]", "none of them 0"),
            ("tcp_connect = [70000]", "not a port"),
            ("tasks_max = 0", "must be 1 to"),
            ("open_files_max = 3", "must be 16 to"),
            ("oom_score = -1000", "nulld's alone"),
            ("sudo = true", "unknown field"),
        ] {
            let error = with(line).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(rule) && error.file == "t", "{line}: {text}");
            assert_eq!(error.line, 3, "{line}: {text}");
            assert!(!error.remedy.is_empty(), "{text}");
        }
        let many = format!("read = {:?}", vec!["/a"; limits::SERVICE_GRANTS_MAX + 1]);
        assert!(with(&many).unwrap_err().rule.contains("at most"));
    }

    #[test]
    fn words_for_ports_become_the_ports_they_stand_for() {
        let config = with("tcp_listen = [\"published\", \"metrics\"]").unwrap();
        let ports = &config.services["a"].tcp_listen;
        assert_eq!(ports.len(), 256, "nothing listens for metrics");
        assert_eq!(
            (ports.first(), ports.last()),
            (Some(&Port::Number(limits::PUBLISH_PORT_MIN)), Some(&Port::Number(limits::PUBLISH_PORT_MAX)))
        );
        let metrics = "[metrics]\nlisten = \"0.0.0.0:9464\"\nfrom = [\"192.0.2.0/24\"]";
        let config = with(&format!("tcp_listen = [\"metrics\"]\n{metrics}")).unwrap();
        assert_eq!(config.services["a"].tcp_listen, [Port::Number(9464)]);
    }

    #[test]
    fn libraries_are_every_services() {
        let config = with("[node]\nlibraries = [\"/lib\"]").unwrap();
        assert_eq!(config.services["a"].execute, ["/lib"]);
        for bad in ["lib", "/state/x", "/a/../b"] {
            assert!(
                with(&format!("[node]\nlibraries = [\"{bad}\"]")).unwrap_err().field.contains("libraries")
            );
        }
    }

    #[test]
    fn grants_are_read_and_the_gates_port_becomes_a_number() {
        let config = with(
            "read = [\"/state/a/x\"]\ndevices = [\"/dev/net/tun\"]\ntcp_listen = [53, \"gate\"]\n\
             tcp_connect = [\"any\"]\nproc = \"net\"\nsystem_calls = [\"files\", \"jails\"]\n[gate]\nport = 99",
        )
        .unwrap();
        let a = &config.services["a"];
        assert_eq!(a.tcp_listen, [Port::Number(53), Port::Number(99)]);
        assert_eq!(a.tcp_connect, [Port::Named(PortName::Any)]);
        assert_eq!((a.proc, a.system_calls.as_slice()), (Proc::Net, &[CallSet::Files, CallSet::Jails][..]));
    }
}
