//! A [`Start`] becomes a [`Plan`] here, once: what to run, as whom, with which paths and bounds.
//!
//! Must hold: every path of a plan is absolute, in one spelling, without `..` and NUL; lists and numbers are within
//! [`abi::limits`]. The host is trusted and checked all the same: what is wrong is named before anything is mounted.

use abi::guest::{Exec, FilesJob, GuestNetwork, HealthProbe, Start, TerminalSize, Volume};
use abi::ids::Instance;
use abi::limits;
use abi::tools::{BUILT_IN, Tools, WORK_PATH};
use std::ffi::CString;
use std::net::Ipv4Addr;

/// The agent's home, made for it; HOME of its environment.
pub const HOME: &str = "/home/agent";
/// The tools' home; their /tmp and /dev/shm are in it.
pub const TOOLS_HOME: &str = "/home/tools";
/// What belongs to the guest's system and is never granted for writing.
const SYSTEM_TOPS: [&str; 4] = ["proc", "sys", "dev", "run"];
/// Bytes of all arguments and variables together, well below what execve(2) takes.
const EXEC_BYTES_MAX: usize = 512 * 1024;

/// What is wrong with a start or an exec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("instance: {0}")]
    Instance(String),
    #[error("command: must have 1 to {} parts", limits::COMMAND_ARGS_MAX)]
    Parts,
    #[error("{field} `{path}`: must be an absolute path without empty, `.` or `..` parts")]
    Path { field: &'static str, path: String },
    #[error("{field} `{path}`: `/`, /proc, /sys, /dev and /run belong to the guest's system")]
    System { field: &'static str, path: String },
    #[error("volumes `{0}`: two volumes lie in one another")]
    Overlap(String),
    #[error("rootfs_disks: must be 1 to {}", limits::GUEST_LAYERS_MAX)]
    Disks,
    #[error("terminal: rows and columns must be 1 to {}", limits::TERMINAL_SIZE_MAX)]
    Terminal,
    #[error("health: {0}")]
    Health(&'static str),
    #[error("{field}: at most {most} entries are allowed")]
    TooMany { field: &'static str, most: usize },
    #[error("{0}: a text is too long or holds a NUL")]
    Text(&'static str),
    #[error("env: `{0}` is not NAME=value")]
    Env(String),
    #[error("pids_max: must be 1 to {}", limits::GUEST_PIDS_MAX)]
    Pids,
    #[error("network: {0}")]
    Network(&'static str),
    #[error("tools: `{0}` is not a name of a tool, is one of the verifier's, or comes twice")]
    Tool(String),
}

/// A program ready for execve(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Never empty; the first is the absolute path.
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    pub workdir: CString,
}

impl Program {
    /// The path that is executed.
    pub fn path(&self) -> CString {
        self.args.first().cloned().unwrap_or_default()
    }
}

/// The interface of a guest with a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    /// Bytes.
    pub mtu: u16,
}

/// A checked start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub hostname: String,
    pub program: Program,
    pub network: Option<Network>,
    /// Certificate of the agent's own authority.
    pub authority: Option<String>,
    pub read: Vec<String>,
    pub write: Vec<String>,
    pub shell: bool,
    /// What may be executed when `shell` is false: the command first, then the `exec` entries.
    pub programs: Vec<String>,
    pub pids_max: u32,
    pub clock_unix_ns: u64,
    /// Layers of the rootfs, bottom to top: vda and on.
    pub rootfs_disks: u8,
    /// In the order of their disks, which follow the workspace's.
    pub volumes: Vec<Volume>,
    /// Whether the command has an input; with a terminal it always has one.
    pub stdin: bool,
    pub terminal: Option<TerminalSize>,
    pub health: Option<HealthProbe>,
    pub tools: Option<Tools>,
    /// A task's tree stands at [`WORK_PATH`].
    pub has_tree: bool,
}

impl Plan {
    /// Checks a start.
    pub fn new(start: Start) -> Result<Plan, PlanError> {
        let instance: Instance = start
            .instance
            .parse()
            .map_err(|error: abi::ids::IdError| PlanError::Instance(error.to_string()))?;
        if !(1..=limits::GUEST_PIDS_MAX).contains(&start.pids_max) {
            return Err(PlanError::Pids);
        }
        let program = program(&start.command, start.env, &start.workdir)?;
        let read = paths("filesystem.read", start.read)?;
        let write = paths("filesystem.write", start.write)?;
        not_system("filesystem.write", &write)?;
        if !(1..=limits::GUEST_LAYERS_MAX).contains(&usize::from(start.rootfs_disks)) {
            return Err(PlanError::Disks);
        }
        check_volumes(&start.volumes)?;
        check_terminal(start.terminal)?;
        start.health.as_ref().map_or(Ok(()), check_health)?;
        start.tools.as_ref().map_or(Ok(()), check_tools)?;
        let mut programs: Vec<String> = start.command.into_iter().take(1).collect();
        programs.extend(paths("exec", start.exec)?);
        Ok(Plan {
            hostname: instance.agent.to_string(),
            program,
            network: start.network.as_ref().map(network).transpose()?,
            authority: start.authority,
            read,
            write,
            shell: start.shell,
            programs,
            pids_max: start.pids_max,
            clock_unix_ns: start.clock_unix_ns,
            rootfs_disks: start.rootfs_disks,
            volumes: start.volumes,
            stdin: start.stdin,
            terminal: start.terminal,
            health: start.health,
            tools: start.tools,
            has_tree: start.has_tree,
        })
    }

    /// The paths that are written by whoever works on the files: the tools, where there are any, else the agent. Beside the volumes.
    pub fn written(&self) -> impl Iterator<Item = &str> {
        self.write.iter().map(String::as_str).chain(self.has_tree.then_some(WORK_PATH))
    }

    /// User and group of whoever works on the files.
    pub fn files_uid(&self) -> u32 {
        if self.tools.is_some() { abi::tools::TOOLS_UID } else { abi::guest::GUEST_UID }
    }

    /// The agent's PATH, if its environment has one.
    pub fn path(&self) -> Option<&str> {
        let variables = self.program.env.iter().filter_map(|variable| variable.to_str().ok());
        variables.filter_map(|variable| variable.strip_prefix("PATH=")).next_back()
    }

    /// A run of a tool, in the environment of a verify command: what passes in a run is not to fail there for a variable. What the
    /// agent's own holds is not for the programs of a tree.
    pub fn run(&self, command: &[String], workdir: &str) -> Result<Program, PlanError> {
        let mut env = vec![format!("HOME={TOOLS_HOME}"), "LANG=C.UTF-8".to_owned(), "TERM=dumb".to_owned()];
        env.extend(self.path().map(|path| format!("PATH={path}")));
        program(command, env, workdir)
    }

    /// An exec in this agent's sandbox: its variables replace the agent's of the same name.
    pub fn exec(&self, exec: Exec) -> Result<Program, PlanError> {
        check_terminal(exec.terminal)?;
        let name_of = |variable: &[u8]| variable.split(|b| *b == b'=').next().map(<[u8]>::to_vec);
        let names: Vec<_> = exec.env.iter().map(|v| name_of(v.as_bytes())).collect();
        let mut env: Vec<String> = Vec::new();
        for variable in &self.program.env {
            if !names.contains(&name_of(variable.as_bytes())) {
                env.push(variable.to_string_lossy().into_owned());
            }
        }
        env.extend(exec.env);
        let workdir = if exec.workdir.is_empty() {
            self.program.workdir.to_string_lossy().into_owned()
        } else {
            exec.workdir
        };
        program(&exec.command, env, &workdir)
    }

    /// Why a program could not be executed, in words that say how to grant it.
    pub fn refusal(&self, path: &str) -> String {
        if !self.shell && !self.programs.iter().any(|known| known == path) {
            return format!(
                "`{path}` may not be executed: shell = false allows only the command and the entries of capabilities.exec; add it there"
            );
        }
        format!(
            "`{path}` may not be executed: it is not executable for the agent's user, or not in a program directory or a granted path"
        )
    }
}

fn program(command: &[String], env: Vec<String>, workdir: &str) -> Result<Program, PlanError> {
    if command.is_empty() || command.len() > limits::COMMAND_ARGS_MAX {
        return Err(PlanError::Parts);
    }
    if let Some(path) = command.first() {
        check_path("command", path, false)?;
    }
    check_path("workdir", workdir, true)?;
    if env.len() > limits::ENV_VARS_MAX * 4 {
        return Err(PlanError::TooMany { field: "env", most: limits::ENV_VARS_MAX * 4 });
    }
    if let Some(wrong) = env.iter().find(|v| v.find('=').is_none_or(|at| at == 0)) {
        return Err(PlanError::Env(wrong.chars().take(64).collect()));
    }
    let total: usize = command.iter().chain(&env).map(|text| text.len() + 1).sum();
    if total > EXEC_BYTES_MAX || command.iter().any(|arg| arg.len() > limits::COMMAND_ARG_BYTES_MAX) {
        return Err(PlanError::Text("command and env"));
    }
    let texts = |field, list: Vec<String>| -> Result<Vec<CString>, PlanError> {
        list.into_iter().map(|text| CString::new(text).map_err(|_| PlanError::Text(field))).collect()
    };
    Ok(Program {
        args: texts("command", command.to_vec())?,
        env: texts("env", env)?,
        workdir: CString::new(workdir).map_err(|_| PlanError::Text("workdir"))?,
    })
}

fn paths(field: &'static str, list: Vec<String>) -> Result<Vec<String>, PlanError> {
    if list.len() > limits::MANIFEST_LIST_MAX {
        return Err(PlanError::TooMany { field, most: limits::MANIFEST_LIST_MAX });
    }
    for path in &list {
        check_path(field, path, false)?;
    }
    Ok(list)
}

fn check_path(field: &'static str, path: &str, root_too: bool) -> Result<(), PlanError> {
    let parts_ok = path.strip_prefix('/').is_some_and(|rest| {
        (root_too && rest.is_empty())
            || rest
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
    });
    if !parts_ok || path.len() > limits::PATH_BYTES_MAX || path.contains('\0') {
        return Err(PlanError::Path {
            field,
            path: path.chars().take(64).flat_map(char::escape_default).collect(),
        });
    }
    Ok(())
}

/// Checks the path of a job on files; `/` is one.
pub fn check_job(job: &FilesJob) -> Result<(), PlanError> {
    match job {
        FilesJob::Read { path } | FilesJob::Write { path } => check_path("path", path, true),
        FilesJob::Changes | FilesJob::Claim => Ok(()),
    }
}

/// Checks a terminal's size.
pub fn check_terminal(size: Option<TerminalSize>) -> Result<(), PlanError> {
    let sizes = 1..=limits::TERMINAL_SIZE_MAX;
    match size {
        Some(size) if !sizes.contains(&size.rows) || !sizes.contains(&size.columns) => {
            Err(PlanError::Terminal)
        }
        _ => Ok(()),
    }
}

fn check_volumes(volumes: &[Volume]) -> Result<(), PlanError> {
    if volumes.len() > limits::VOLUMES_PER_AGENT_MAX {
        return Err(PlanError::TooMany { field: "volumes", most: limits::VOLUMES_PER_AGENT_MAX });
    }
    for (index, Volume { path, .. }) in volumes.iter().enumerate() {
        check_path("volumes", path, false)?;
        not_system("volumes", std::slice::from_ref(path))?;
        let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        if volumes
            .iter()
            .skip(index + 1)
            .any(|v| v.path == *path || below(path, &v.path) || below(&v.path, path))
        {
            return Err(PlanError::Overlap(path.clone()));
        }
    }
    Ok(())
}

fn check_health(probe: &HealthProbe) -> Result<(), PlanError> {
    let visible = |byte: u8| (0x21..0x7f).contains(&byte);
    if probe.port == 0 {
        return Err(PlanError::Health("port must be 1 to 65535"));
    }
    if !probe.path.starts_with('/')
        || !probe.path.bytes().all(visible)
        || probe.path.len() > limits::PATH_BYTES_MAX
    {
        return Err(PlanError::Health("path must begin with `/` and hold visible ASCII only"));
    }
    match probe.interval_secs {
        limits::HEALTH_INTERVAL_SECS_MIN..=limits::HEALTH_INTERVAL_SECS_MAX => Ok(()),
        _ => Err(PlanError::Health("interval_secs is out of bounds")),
    }
}

fn check_tools(tools: &Tools) -> Result<(), PlanError> {
    let most = limits::TOOLS_PER_AGENT_MAX;
    if tools.programs.len() > most {
        return Err(PlanError::TooMany { field: "tools", most });
    }
    for (index, (name, command)) in tools.programs.iter().enumerate() {
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let is_taken = BUILT_IN.iter().any(|(known, _)| known == name)
            || tools.programs.iter().skip(index + 1).any(|(other, _)| other == name);
        if name.is_empty() || name.len() > limits::AGENT_NAME_BYTES_MAX || !letters || is_taken {
            return Err(PlanError::Tool(name.chars().take(64).flat_map(char::escape_default).collect()));
        }
        program(command, Vec::new(), "/")?;
    }
    Ok(())
}

fn not_system(field: &'static str, paths: &[String]) -> Result<(), PlanError> {
    let is_system = |path: &&String| {
        let top = path.split('/').nth(1).unwrap_or_default();
        top.is_empty() || SYSTEM_TOPS.contains(&top)
    };
    match paths.iter().find(is_system) {
        Some(path) => Err(PlanError::System { field, path: path.clone() }),
        None => Ok(()),
    }
}

fn network(network: &GuestNetwork) -> Result<Network, PlanError> {
    let address =
        |text: &str| text.parse::<Ipv4Addr>().map_err(|_| PlanError::Network("an address is not IPv4"));
    if network.prefix > 32 || !(576..=9216).contains(&network.mtu) {
        return Err(PlanError::Network("prefix must be at most 32, mtu 576 to 9216"));
    }
    Ok(Network {
        address: address(&network.address)?,
        prefix: network.prefix,
        gateway: address(&network.gateway)?,
        mtu: network.mtu,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn start() -> Start {
        Start {
            tools: None,
            has_tree: false,
            instance: "researcher.3".into(),
            command: vec!["/usr/bin/python3".into(), "/app/main.py".into()],
            env: vec!["PATH=/usr/bin".into(), "HOME=/home/agent".into()],
            workdir: "/".into(),
            network: Some(GuestNetwork {
                address: "10.0.0.2".into(),
                prefix: 30,
                gateway: "10.0.0.1".into(),
                mtu: 1500,
            }),
            authority: None,
            read: vec!["/data".into()],
            write: vec!["/data/out".into()],
            shell: false,
            exec: vec!["/usr/bin/git".into()],
            pids_max: 64,
            clock_unix_ns: 1,
            rootfs_disks: 1,
            volumes: vec![],
            stdin: false,
            terminal: None,
            health: None,
        }
    }

    #[test]
    fn a_good_start_is_a_plan() {
        let plan = Plan::new(start()).unwrap();
        assert_eq!(plan.hostname, "researcher");
        assert_eq!(plan.programs, ["/usr/bin/python3", "/usr/bin/git"]);
        assert_eq!(plan.program.path().to_str(), Ok("/usr/bin/python3"));
    }

    #[test]
    fn each_wrong_start_is_refused() {
        type Change = fn(&mut Start);
        fn volume(s: &mut Start, path: &str) {
            s.volumes.push(Volume { path: path.into(), read_only: false });
        }
        fn tool(s: &mut Start, name: &str, program: &str) {
            let tools = s.tools.get_or_insert(Tools { programs: vec![] });
            tools.programs.push((name.into(), vec![program.into()]));
        }
        fn health(s: &mut Start, port: u16, path: &str, interval_secs: u32) {
            s.health = Some(HealthProbe { port, path: path.into(), interval_secs });
        }
        let wrong: [(&str, Change); 31] = [
            ("instance", |s| s.instance = "a".into()),
            ("command", |s| s.command.clear()),
            ("command", |s| s.command = vec!["python".into()]),
            ("command", |s| s.command.push("a\0b".into())),
            ("command", |s| s.command = vec!["/x".into(); limits::COMMAND_ARGS_MAX + 1]),
            ("env", |s| s.env.push("=x".into())),
            ("env", |s| s.env.push("x".into())),
            ("workdir", |s| s.workdir = "a".into()),
            ("filesystem.read", |s| s.read.push("/a/../b".into())),
            ("filesystem.write", |s| s.write.push("/".into())),
            ("filesystem.write", |s| s.write.push("/proc/x".into())),
            ("exec", |s| s.exec.push("//x".into())),
            ("pids_max", |s| s.pids_max = 0),
            ("network", |s| s.network.as_mut().unwrap().address = "::1".into()),
            ("network", |s| s.network.as_mut().unwrap().mtu = 1),
            ("rootfs_disks", |s| s.rootfs_disks = 0),
            ("rootfs_disks", |s| s.rootfs_disks = limits::GUEST_LAYERS_MAX as u8 + 1),
            ("volumes", |s| volume(s, "/run/x")),
            ("volumes", |s| volume(s, "/a/../b")),
            ("volumes", |s| ["/v/a", "/v"].into_iter().for_each(|path| volume(s, path))),
            ("volumes", |s| (0..=limits::VOLUMES_PER_AGENT_MAX).for_each(|n| volume(s, &format!("/v{n}")))),
            ("tools", |s| tool(s, "", "/x")),
            ("tools", |s| tool(s, "read", "/x")),
            ("tools", |s| ["x", "x"].into_iter().for_each(|name| tool(s, name, "/x"))),
            ("command", |s| tool(s, "x", "x")),
            ("terminal", |s| s.terminal = Some(TerminalSize { rows: 0, columns: 80 })),
            ("terminal", |s| s.terminal = Some(TerminalSize { rows: 24, columns: 1001 })),
            ("health", |s| health(s, 0, "/", 1)),
            ("health", |s| health(s, 1, "/a b", 1)),
            ("health", |s| health(s, 1, "x", 1)),
            ("health", |s| health(s, 1, "/", 0)),
        ];
        for (word, change) in wrong {
            let mut start = start();
            change(&mut start);
            let error = Plan::new(start).unwrap_err().to_string();
            assert!(error.starts_with(word), "{error}");
        }
    }

    #[test]
    fn an_exec_replaces_variables_and_inherits_the_rest() {
        let plan = Plan::new(start()).unwrap();
        let exec = |env: &[&str], workdir: &str| Exec {
            terminal: None,
            window_bytes: 65536,
            command: vec!["/bin/true".into()],
            env: env.iter().map(|v| v.to_string()).collect(),
            workdir: workdir.into(),
        };
        let program = plan.exec(exec(&["HOME=/tmp", "X=1"], "")).unwrap();
        let env: Vec<_> = program.env.iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(env, ["PATH=/usr/bin", "HOME=/tmp", "X=1"]);
        assert_eq!(program.workdir.to_str(), Ok("/"));
        assert!(plan.exec(exec(&[], "relative")).is_err());
        assert!(plan.exec(exec(&["NOVALUE"], "")).is_err());
    }

    #[test]
    fn a_run_has_the_path_of_the_agents_environment_and_nothing_else_of_it() {
        let mut start = start();
        start.env.extend([
            "GREETING=hello".into(),
            "PATHS=/x".into(),
            "LANG=de".into(),
            "LD_PRELOAD=/x".into(),
        ]);
        let plan = Plan::new(start).unwrap();
        let program = plan.run(&["/bin/true".into()], "/").unwrap();
        let env: Vec<_> = program.env.iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(env, ["HOME=/home/tools", "LANG=C.UTF-8", "TERM=dumb", "PATH=/usr/bin"]);
    }

    #[test]
    fn a_refusal_says_how_to_grant() {
        let plan = Plan::new(start()).unwrap();
        assert!(plan.refusal("/bin/sh").contains("capabilities.exec"));
        assert!(!plan.refusal("/usr/bin/git").contains("capabilities.exec"));
    }
}
