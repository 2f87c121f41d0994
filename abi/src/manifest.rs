//! AGENT.toml: bytes become a [`Manifest`] here, once, or one [`ConfigError`] that names what is wrong.
//!
//! Must hold: a `Manifest` has only values that are legal and that the node enforces. A field the node does not
//! enforce yet is refused with its name, never ignored. The reference is docs/AGENT.toml.md.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use toml::Spanned;

use crate::config_error::{ConfigError, Source};
use crate::ids::{AgentName, Digest, Name, SecretName, Source as SourceRange};
use crate::limits;
use crate::memory::MemoryGrants;
use crate::network::{Budget, NetworkGrant};

mod authority;
mod grants;
mod memory;
mod network;
mod program;

pub use authority::{PROFILES, profile};

/// A checked manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: AgentName,
    pub version: String,
    pub rootfs: RootfsRef,
    /// Absolute path, then arguments; never empty.
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Absolute path, or none for the image's own (else `/`).
    pub workdir: Option<String>,
    /// Started when the node boots.
    pub autostart: bool,
    pub shell: bool,
    pub exec: Vec<String>,
    pub cpu_percent: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    pub pids_max: u32,
    /// Sorted by name, no name and port twice.
    pub network_allow: Vec<NetworkGrant>,
    /// Secrets that the broker adds to the agent's requests.
    pub credential_refs: Vec<SecretName>,
    pub budget: Budget,
    pub read: Vec<String>,
    pub write: Vec<String>,
    /// The command's standard input is open for `agent.attach`; false: end of file.
    pub stdin: bool,
    /// The command gets a terminal.
    pub tty: bool,
    pub workspace: Workspace,
    pub restart: Restart,
    /// A life that lasts longer is ended.
    pub lifetime_secs_max: Option<u32>,
    /// A life is ended when so long nobody used it: no output, no exec, no copy, no byte over the network.
    pub idle_secs_max: Option<u32>,
    pub health_check: Option<HealthCheck>,
    /// MiB a second of its disks, reads and writes each.
    pub disk_mb_per_sec: Option<u32>,
    /// By name.
    pub volumes: BTreeMap<Name, VolumeGrant>,
    pub publish: Vec<Published>,
    /// Of other agents' memory, and others of this one's.
    #[serde(default)]
    pub memory: MemoryGrants,
    /// Absent: the agent has no tools, and reaches its files itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<crate::authority::Authority>,
}

/// What becomes of the disk behind the agent's root when a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workspace {
    /// Removed; the next life begins with an empty one.
    #[default]
    Ephemeral,
    /// Kept until `agent.remove`; the next life goes on with it.
    Kept,
}

/// When an agent is started again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// In a row; a life of [`limits::RESTART_RESET_MS`] begins the count anew.
    pub max: u32,
}

/// After which ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    Never,
    /// Status other than 0, a signal, a broken VM, failed health checks.
    OnFailure,
    /// Every end that nobody asked for.
    Always,
}

/// GET `path` at `port` inside the guest; 2xx and 3xx are healthy. After `max_failures` in a row the life is ended, as a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub port: u16,
    pub path: String,
    pub interval_secs: u32,
    pub max_failures: u32,
}

/// A disk of the agent's own that outlives its lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeGrant {
    pub path: String,
    pub size_mib: u32,
    pub read_only: bool,
}

/// A port of the guest that can be reached at a port of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    pub guest_port: u16,
    pub node_port: u16,
    /// Who may connect; never empty.
    pub from: Vec<SourceRange>,
}

/// A rootfs in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsRef {
    Name(String),
    Digest(Digest),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    agent: RawAgent,
    #[serde(default)]
    capabilities: RawCapabilities,
    authority: Option<authority::RawAuthority>,
    tools: Option<Spanned<authority::RawTools>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAgent {
    name: Spanned<String>,
    version: Spanned<String>,
    rootfs: Spanned<String>,
    command: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    env: BTreeMap<String, Spanned<String>>,
    workdir: Option<Spanned<String>>,
    #[serde(default)]
    autostart: bool,
    #[serde(default)]
    stdin: bool,
    #[serde(default)]
    tty: bool,
    #[serde(default)]
    workspace: Workspace,
    #[serde(default)]
    restart: RestartPolicy,
    max_restarts: Option<Spanned<i64>>,
    max_lifetime_secs: Option<Spanned<i64>>,
    idle_timeout_secs: Option<Spanned<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawCapabilities {
    #[serde(default)]
    shell: bool,
    exec: Option<Spanned<Vec<Spanned<String>>>>,
    max_cpu_percent: Option<Spanned<i64>>,
    max_memory_mb: Option<Spanned<i64>>,
    max_disk_mb: Option<Spanned<i64>>,
    max_pids: Option<Spanned<i64>>,
    #[serde(default)]
    network: RawNetwork,
    #[serde(default)]
    filesystem: RawFilesystem,
    credential_refs: Option<Spanned<Vec<Spanned<String>>>>,
    max_api_calls_per_hour: Option<Spanned<i64>>,
    #[serde(default)]
    budget: network::RawBudget,
    max_disk_mb_per_sec: Option<Spanned<i64>>,
    health_check: Option<grants::RawHealthCheck>,
    #[serde(default)]
    volumes: BTreeMap<String, Spanned<grants::RawVolume>>,
    #[serde(default)]
    memory: memory::RawMemory,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    allow: Option<Spanned<Vec<Spanned<toml::Value>>>>,
    publish: Option<Spanned<Vec<Spanned<grants::RawPublished>>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawFilesystem {
    read: Option<Spanned<Vec<Spanned<String>>>>,
    write: Option<Spanned<Vec<Spanned<String>>>>,
}

type Checked<T> = Result<T, Box<ConfigError>>;

/// Parses one AGENT.toml. `file` is only used in errors.
pub fn parse(file: &str, text: &str) -> Checked<Manifest> {
    let source = Source { file, text };
    if text.len() as u64 > limits::CONFIG_FILE_BYTES_MAX {
        let rule = format!("{} bytes: at most {} are allowed", text.len(), limits::CONFIG_FILE_BYTES_MAX);
        return Err(Box::new(source.wrong(0..0, "", rule, "make the file smaller")));
    }
    let raw: RawManifest = toml::from_str(text).map_err(|error| Box::new(source.malformed(&error)))?;
    Checker { source }.manifest(raw)
}

struct Checker<'a> {
    source: Source<'a>,
}

impl Checker<'_> {
    fn manifest(&self, raw: RawManifest) -> Checked<Manifest> {
        let (agent, caps) = (raw.agent, raw.capabilities);
        let read = self.paths(caps.filesystem.read, "capabilities.filesystem.read", false)?;
        let write = self.paths(caps.filesystem.write, "capabilities.filesystem.write", true)?;
        let volumes = self.volumes(caps.volumes)?;
        let name = self.name(&agent.name)?;
        Ok(Manifest {
            authority: self.authority(raw.authority, raw.tools)?,
            memory: self.memory(caps.memory, &name)?,
            stdin: agent.stdin,
            tty: agent.tty,
            workspace: agent.workspace,
            restart: self.restart(agent.restart, agent.max_restarts)?,
            lifetime_secs_max: self.seconds(agent.max_lifetime_secs, "agent.max_lifetime_secs")?,
            idle_secs_max: self.seconds(agent.idle_timeout_secs, "agent.idle_timeout_secs")?,
            health_check: caps.health_check.map(|check| self.health_check(check)).transpose()?,
            disk_mb_per_sec: self.optional(
                caps.max_disk_mb_per_sec,
                "capabilities.max_disk_mb_per_sec",
                1..=limits::DISK_MB_PER_SEC_MAX,
                "MiB a second",
            )?,
            volumes,
            publish: self.publish(caps.network.publish)?,
            name,
            version: self.version(&agent.version)?,
            rootfs: self.rootfs(&agent.rootfs)?,
            command: self.command(agent.command)?,
            env: self.env(agent.env)?,
            workdir: agent.workdir.map(|dir| self.path(&dir, "agent.workdir", false)).transpose()?,
            autostart: agent.autostart,
            shell: caps.shell,
            exec: self.paths(caps.exec, "capabilities.exec", false)?,
            cpu_percent: self.number(
                caps.max_cpu_percent,
                "capabilities.max_cpu_percent",
                1..=limits::CPU_PERCENT_MAX,
                limits::CPU_PERCENT_DEFAULT,
                "percent of one core",
            )?,
            memory_mib: self.number(
                caps.max_memory_mb,
                "capabilities.max_memory_mb",
                limits::MEMORY_MIB_MIN..=limits::MEMORY_MIB_MAX,
                limits::MEMORY_MIB_DEFAULT,
                "MiB of guest memory",
            )?,
            disk_mib: self.number(
                caps.max_disk_mb,
                "capabilities.max_disk_mb",
                limits::DISK_MIB_MIN..=limits::DISK_MIB_MAX,
                limits::DISK_MIB_DEFAULT,
                "MiB of scratch disk",
            )?,
            pids_max: self.number(
                caps.max_pids,
                "capabilities.max_pids",
                1..=limits::GUEST_PIDS_MAX,
                limits::GUEST_PIDS_DEFAULT,
                "processes",
            )?,
            network_allow: self.allow(caps.network.allow)?,
            credential_refs: self.credentials(caps.credential_refs)?,
            budget: self.budget(caps.budget, caps.max_api_calls_per_hour)?,
            read,
            write,
        })
    }

    fn wrong<T>(
        &self,
        span: Range<usize>,
        field: &str,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Checked<T> {
        Err(Box::new(self.source.wrong(span, field, rule, remedy)))
    }

    fn name(&self, name: &Spanned<String>) -> Checked<AgentName> {
        name.get_ref().parse().or_else(|_| {
            self.wrong(
                name.span(),
                "agent.name",
                "must be 1 to 32 of A-Z a-z 0-9 _ -",
                "write for example name = \"researcher\"",
            )
        })
    }

    fn version(&self, version: &Spanned<String>) -> Checked<String> {
        let text = version.get_ref();
        let admitted = |b: u8| b.is_ascii_alphanumeric() || b".-+_".contains(&b);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(admitted) {
            return self.wrong(
                version.span(),
                "agent.version",
                "must be 1 to 64 of A-Z a-z 0-9 . - + _",
                "write for example version = \"1.2.0\"",
            );
        }
        Ok(text.clone())
    }

    fn rootfs(&self, rootfs: &Spanned<String>) -> Checked<RootfsRef> {
        let text = rootfs.get_ref();
        if text.starts_with("sha256:") {
            return match text.parse() {
                Ok(digest) => Ok(RootfsRef::Digest(digest)),
                Err(error) => {
                    self.wrong(rootfs.span(), "agent.rootfs", error.to_string(), "copy it from image list")
                }
            };
        }
        if rootfs_name_ok(text) {
            return Ok(RootfsRef::Name(text.clone()));
        }
        self.wrong(
            rootfs.span(),
            "agent.rootfs",
            "must be a rootfs name (1 to 64 of a-z 0-9 . _ -, starting with a letter or digit) or a sha256: digest",
            "name an archive rootfs/NAME.tar of the configuration, for example rootfs = \"python\"",
        )
    }

    fn number(
        &self,
        value: Option<Spanned<i64>>,
        field: &str,
        legal: std::ops::RangeInclusive<u32>,
        default: u32,
        unit: &str,
    ) -> Checked<u32> {
        let Some(value) = value else { return Ok(default) };
        match u32::try_from(*value.get_ref()) {
            Ok(number) if legal.contains(&number) => Ok(number),
            _ => {
                let rule = format!("must be {} to {} ({unit})", legal.start(), legal.end());
                self.wrong(value.span(), field, rule, format!("leave it out for {default}"))
            }
        }
    }

    fn list(
        &self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        field: &str,
        most: usize,
    ) -> Checked<Vec<Spanned<String>>> {
        let Some(list) = list else { return Ok(Vec::new()) };
        let (span, entries) = (list.span(), list.into_inner());
        if entries.len() > most {
            let rule = format!("{} entries: at most {most} are allowed", entries.len());
            return self.wrong(span, field, rule, "remove some");
        }
        Ok(entries)
    }

    /// A list of paths without repeats; `writable` as in [`Self::path`].
    fn paths(
        &self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        field: &str,
        writable: bool,
    ) -> Checked<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut paths = Vec::new();
        for entry in self.list(list, field, limits::MANIFEST_LIST_MAX)? {
            let path = self.path(&entry, field, writable)?;
            if !seen.insert(path.clone()) {
                return self.wrong(entry.span(), field, "stands in the list twice", "remove one of the two");
            }
            paths.push(path);
        }
        Ok(paths)
    }

    /// An absolute path in its one spelling; a `writable` one also keeps out of the guest's system directories.
    fn path(&self, path: &Spanned<String>, field: &str, writable: bool) -> Checked<String> {
        let text = path.get_ref();
        let parts_ok = text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
        });
        if !parts_ok || text.len() > limits::PATH_BYTES_MAX || text.chars().any(char::is_control) {
            let rule = "must be an absolute path without empty, `.` or `..` parts, and not `/` itself";
            return self.wrong(path.span(), field, rule, "write it like \"/data/research\"");
        }
        let top = text.split('/').nth(1).unwrap_or_default();
        if writable && ["proc", "sys", "dev", "run"].contains(&top) {
            let rule = format!("`/{top}` belongs to the guest's system");
            return self.wrong(path.span(), field, rule, "choose a path of the agent's own, like \"/data\"");
        }
        Ok(text.clone())
    }
}

/// Whether a text may name a rootfs in the store.
pub fn rootfs_name_ok(text: &str) -> bool {
    let admitted = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=64).contains(&text.len())
        && text.bytes().all(admitted)
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[agent]
name = "researcher"
version = "1.2.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/main.py"]

[capabilities]
shell = false
max_cpu_percent = 40
max_memory_mb = 512
network.allow = ["api.exa.ai", "git.example.org:22"]
filesystem.read = ["/data/research"]
filesystem.write = ["/data/research/output"]
"#;

    #[test]
    fn the_documented_manifest_parses() {
        let manifest = parse("AGENT.toml", GOOD).unwrap();
        assert_eq!(manifest.name.as_str(), "researcher");
        let allow: Vec<String> = manifest.network_allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["api.exa.ai", "git.example.org:22"]);
        assert_eq!((manifest.cpu_percent, manifest.memory_mib, manifest.disk_mib), (40, 512, 1024));
    }

    #[test]
    fn each_kind_of_mistake_is_refused_with_line_field_value_and_remedy() {
        let cases = [
            ("name = \"researcher\"", "name = \"a b\"", 3, "agent.name", "\"a b\"", "A-Z"),
            ("version = \"1.2.0\"", "version = \"\"", 4, "agent.version", "\"\"", "1 to 64"),
            ("rootfs = \"python\"", "rootfs = \"../x\"", 5, "agent.rootfs", "\"../x\"", "rootfs name"),
            (
                "rootfs = \"python\"",
                "rootfs = \"sha256:12\"",
                5,
                "agent.rootfs",
                "\"sha256:12\"",
                "64 lowercase",
            ),
            ("/usr/bin/python3", "python3", 6, "agent.command", "\"python3\"", "absolute"),
            ("= 40", "= 0", 10, "capabilities.max_cpu_percent", "0", "1 to 6400"),
            ("= 40", "= -1", 10, "capabilities.max_cpu_percent", "-1", "1 to 6400"),
            ("= 512", "= 4", 11, "capabilities.max_memory_mb", "4", "32 to"),
            (
                "api.exa.ai",
                "127.0.0.1",
                12,
                "capabilities.network.allow",
                "\"127.0.0.1\"",
                "never an address",
            ),
            ("api.exa.ai", "*.com", 12, "capabilities.network.allow", "\"*.com\"", "`*.` and such a name"),
            (".org:22", ".org:0", 12, "capabilities.network.allow", "\"git.example.org:0\"", "1 to 65535"),
            (
                ".org:22",
                ".org:022",
                12,
                "capabilities.network.allow",
                "\"git.example.org:022\"",
                "1 to 65535",
            ),
            (
                "git.example.org:22",
                "API.exa.ai:80",
                12,
                "capabilities.network.allow",
                "\"API.exa.ai:80\"",
                "twice",
            ),
            ("/data/research\"]", "/../../x\"]", 13, "capabilities.filesystem.read", "\"/../../x\"", "`..`"),
            (
                "/data/research/output",
                "/proc/x",
                14,
                "capabilities.filesystem.write",
                "\"/proc/x\"",
                "system",
            ),
            ("/data/research/output", "/", 14, "capabilities.filesystem.write", "\"/\"", "not `/`"),
        ];
        for (from, to, line, field, value, rule) in cases {
            let error = parse("AGENT.toml", &GOOD.replacen(from, to, 1)).unwrap_err();
            assert_eq!(
                (error.line, error.field.as_str(), error.value.as_str()),
                (line, field, value),
                "{error}"
            );
            assert!(error.rule.contains(rule), "{error}");
            assert!(!error.remedy.is_empty(), "{error}");
        }
    }

    #[test]
    fn unknown_missing_and_mistyped_fields_name_their_line() {
        let unknown = parse("f", &GOOD.replace("shell", "shel")).unwrap_err();
        assert_eq!((unknown.line, unknown.field.as_str()), (9, "shel"), "{unknown}");
        assert!(unknown.remedy.contains("shell"), "{unknown}");
        let missing = parse("f", &GOOD.replace("rootfs = \"python\"\n", "")).unwrap_err();
        assert!(missing.rule.contains("rootfs") && missing.line == 2, "{missing}");
        let mistyped = parse("f", &GOOD.replace("= 40", "= \"40\"")).unwrap_err();
        assert_eq!((mistyped.line, mistyped.value.as_str()), (10, "\"40\""), "{mistyped}");
        let not_toml = parse("f", "[agent\n").unwrap_err();
        assert_eq!(not_toml.line, 1, "{not_toml}");
        let twice = parse("f", &GOOD.replace("shell = false", "shell = false\nshell = true")).unwrap_err();
        assert_eq!(twice.line, 10, "{twice}");
    }

    #[test]
    fn a_field_that_is_not_enforced_is_refused_by_name() {
        let tools = parse("f", &format!("{GOOD}\n[tools]\nx = {{ risk = \"low\" }}\n")).unwrap_err();
        assert_eq!(tools.field, "tools");
    }

    #[test]
    fn what_an_agent_may_reach_and_spend_is_parsed_whole() {
        let text = GOOD.replace(
            "[\"api.exa.ai\", \"git.example.org:22\"]",
            "[\"*.cdn.test\", { name = \"api.exa.ai\", methods = [\"POST\"], paths = [\"/search\", \"/v1/\"] },\n\
             { name = \"db.corp.test\", ports = [5432], addresses = [\"10.1.2.3\"], without_sni = true },\n\
             { name = \"api.mail.test\", ports = [443], intercept = true }]\n\
             credential_refs = [\"EXA_KEY\", \"A1\"]\nmax_api_calls_per_hour = 200\n\
             budget = { period = \"total\", max_output_tokens = 5, max_micro_dollars = 0 }",
        );
        let manifest = parse("f", &text).unwrap();
        let allow: Vec<String> = manifest.network_allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["api.exa.ai", "api.mail.test:443", "db.corp.test:5432", "*.cdn.test"]);
        assert!(manifest.network_allow[0].is_narrowed() && manifest.network_allow[1].intercept);
        assert!(manifest.network_allow[2].without_sni && manifest.network_allow[2].addresses.len() == 1);
        assert_eq!(manifest.credential_refs.len(), 2);
        let budget = manifest.budget;
        assert_eq!((budget.calls_per_hour_max, budget.output_tokens_max), (Some(200), Some(5)));
        assert_eq!((budget.micro_dollars_max, budget.bytes_max), (Some(0), None));
        for (from, to, rule) in [
            ("[\"POST\"]", "[\"post\"]", "upper case"),
            ("/search", "/a/../b", "dot segment"),
            ("/search", "search", "begins with `/`"),
            ("ports = [5432]", "ports = [0]", "1 to 65535"),
            ("10.1.2.3", "10.1.2", "invalid"),
            ("name = \"db.corp.test\"", "name = \"*.corp.test\"", "one exact name"),
            ("ports = [443], intercept", "ports = [80], intercept", "443"),
            ("without_sni", "without_sny", "unknown field"),
            ("\"A1\"", "\"a1\"", "name of a secret"),
            ("\"A1\"", "\"EXA_KEY\"", "twice"),
            ("= 200", "= -1", "0 to"),
            ("max_output_tokens = 5", "max_output_tokens = -5", "0 to"),
            ("\"total\"", "\"week\"", "unknown variant"),
        ] {
            let error = parse("f", &text.replacen(from, to, 1)).unwrap_err();
            assert!(error.rule.contains(rule), "{to}: {error}");
        }
    }

    #[test]
    fn a_list_that_would_not_fit_a_line_to_egress_is_refused_by_its_field() {
        let label = "x".repeat(60);
        let methods = vec!["\"PROPPATCH\""; limits::GRANT_METHODS_MAX].join(",");
        let paths = format!("'/{}'", "\"".repeat(limits::GRANT_PATH_BYTES_MAX - 1));
        let entry = |n: usize| {
            format!("{{name=\"n{n}.{label}.{label}.{label}.test\",methods=[{methods}],paths=[{paths}]}}")
        };
        let with = |entries: usize| {
            let list: Vec<String> = (0..entries).map(entry).collect();
            let text = GOOD.replace("\"api.exa.ai\", \"git.example.org:22\"", &list.join(","));
            assert!((text.len() as u64) < limits::CONFIG_FILE_BYTES_MAX);
            parse("f", &text)
        };
        let error = with(limits::NETWORK_ALLOW_MAX).unwrap_err();
        assert_eq!(error.field, "capabilities.network.allow");
        assert!(error.rule.contains("at most 49152 are allowed"), "{error}");
        let most = (1..limits::NETWORK_ALLOW_MAX).rev().find_map(|entries| with(entries).ok()).unwrap();
        let asked = crate::control::NetAttach {
            instance: format!("{}.{}", "a".repeat(32), u64::MAX).parse().unwrap(),
            uid: u32::MAX,
            allow: most.network_allow,
            publish: vec![
                Published {
                    guest_port: 65_535,
                    node_port: limits::PUBLISH_PORT_MAX,
                    from: vec!["255.255.255.254/31".parse().unwrap(); limits::PUBLISH_SOURCES_MAX],
                };
                limits::PUBLISH_PER_AGENT_MAX
            ],
            credentials: vec!["A".repeat(64).parse().unwrap(); limits::CREDENTIALS_PER_AGENT_MAX],
            budget: most.budget,
            works_for: Some("a".repeat(32).parse().unwrap()),
            trusted: Vec::new(),
            seen: Default::default(),
        };
        assert!(serde_json::to_string(&asked).unwrap().len() + 512 < limits::LINE_BYTES_MAX);
    }

    #[test]
    fn an_empty_allow_list_allows_nothing() {
        let manifest = parse("f", &GOOD.replace("[\"api.exa.ai\", \"git.example.org:22\"]", "[]")).unwrap();
        assert!(manifest.network_allow.is_empty());
    }

    #[test]
    fn a_file_above_the_limit_is_refused() {
        let big = format!("{GOOD}#{}", "x".repeat(limits::CONFIG_FILE_BYTES_MAX as usize));
        assert!(parse("f", &big).unwrap_err().rule.contains("at most"));
    }
}
