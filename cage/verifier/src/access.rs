//! Which paths the agent may use, and how: the Landlock rules of a [`Plan`].
//!
//! Must hold: what no rule names is refused, since every right is handled. EXECUTE stands on directories only when the
//! manifest says `shell = true`. Source of the rights: Documentation/userspace-api/landlock.rst, ABI 6.

use crate::plan::{HOME, Plan, TOOLS_HOME};

pub const EXECUTE: u64 = 1 << 0;
pub const WRITE_FILE: u64 = 1 << 1;
pub const READ_FILE: u64 = 1 << 2;
pub const READ_DIR: u64 = 1 << 3;
pub const REMOVE_DIR: u64 = 1 << 4;
pub const REMOVE_FILE: u64 = 1 << 5;
pub const MAKE_CHAR: u64 = 1 << 6;
pub const MAKE_DIR: u64 = 1 << 7;
pub const MAKE_REG: u64 = 1 << 8;
pub const MAKE_SOCK: u64 = 1 << 9;
pub const MAKE_FIFO: u64 = 1 << 10;
pub const MAKE_BLOCK: u64 = 1 << 11;
pub const MAKE_SYM: u64 = 1 << 12;
pub const REFER: u64 = 1 << 13;
pub const TRUNCATE: u64 = 1 << 14;
pub const IOCTL_DEV: u64 = 1 << 15;

/// Every right of ABI 5 and later: all of them are refused unless a rule grants them.
pub const HANDLED: u64 = (1 << 16) - 1;
/// Abstract Unix sockets and signals stay within one channel (ABI 6).
pub const SCOPED: u64 = 0b11;
/// The oldest Landlock that has all of the above.
pub const ABI_MIN: i64 = 6;

/// Read and list.
pub const READ: u64 = READ_FILE | READ_DIR;
/// Read, list, write, make and remove; no device nodes.
pub const WRITE: u64 = READ
    | WRITE_FILE
    | TRUNCATE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER;
/// What may be done with one program.
pub const RUN: u64 = READ_FILE | EXECUTE;
const USE_DEVICE: u64 = READ_FILE | WRITE_FILE | IOCTL_DEV;
/// The rights that make sense on something that is not a directory; the kernel refuses the others there.
const ON_A_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// Where programs, their libraries and settings live in an image: readable for every agent.
pub const PROGRAM_DIRECTORIES: [&str; 9] =
    ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc", "/opt", "/app"];
/// Devices an agent may use.
pub const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts"];

/// One rule: rights on a path and, if it is a directory, on everything beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub path: String,
    pub rights: u64,
    /// Whether the path must be there. An image needs not have each program directory.
    pub required: bool,
}

/// The rights of a rule on the kind of file that was found.
pub fn rights_for(rights: u64, is_directory: bool) -> u64 {
    if is_directory { rights } else { rights & ON_A_FILE }
}

/// All rules of a plan, except EXECUTE on single programs, which takes a look at the files. With tools the agent's own processes reach
/// none of what was granted.
pub fn rules(plan: &Plan) -> Vec<Rule> {
    let execute = if plan.shell { EXECUTE } else { 0 };
    let mut rules = system(&DEVICES, execute);
    for path in ["/tmp", "/dev/shm", HOME] {
        rules.push(rule(path, WRITE | execute, true));
    }
    if plan.tools.is_none() {
        granted(plan, execute, &mut rules);
    }
    rules
}

/// The rules of the tools: what was granted, homes of their own, and whatever the host lets `run` execute. No terminals: one would be a way
/// to the agent.
pub fn tools_rules(plan: &Plan) -> Vec<Rule> {
    let mut rules = system(DEVICES.get(..5).unwrap_or_default(), EXECUTE);
    // Their /tmp and /dev/shm; a walk up from there ends at the mount.
    for path in [TOOLS_HOME.to_owned(), format!("{TOOLS_HOME}/tmp")] {
        rules.push(rule(&path, WRITE | EXECUTE, true));
    }
    granted(plan, EXECUTE, &mut rules);
    rules
}

fn rule(path: &str, rights: u64, required: bool) -> Rule {
    Rule { path: path.to_owned(), rights, required }
}

fn system(devices: &[&str], execute: u64) -> Vec<Rule> {
    let mut rules: Vec<Rule> =
        PROGRAM_DIRECTORIES.iter().map(|path| rule(path, READ | execute, false)).collect();
    rules.extend([rule("/proc", READ, true), rule("/dev", READ_DIR, true)]);
    rules.extend(devices.iter().map(|path| rule(path, USE_DEVICE | READ_DIR, true)));
    rules
}

fn granted(plan: &Plan, execute: u64, rules: &mut Vec<Rule>) {
    rules.extend(plan.read.iter().map(|path| rule(path, READ | execute, false)));
    rules.extend(plan.written().map(|path| rule(path, WRITE | execute, true)));
    for volume in &plan.volumes {
        let rights = if volume.read_only { READ } else { WRITE };
        rules.push(rule(&volume.path, rights | execute, true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::start;

    fn rights_on(plan: &Plan, path: &str) -> u64 {
        rights_in(&rules(plan), path)
    }

    fn rights_in(rules: &[Rule], path: &str) -> u64 {
        rules
            .iter()
            .filter(|rule| path == rule.path || path.starts_with(&format!("{}/", rule.path)))
            .fold(0, |rights, rule| rights | rule.rights)
    }

    #[test]
    fn without_shell_no_rule_lets_execute() {
        let plan = Plan::new(start()).unwrap();
        assert!(rules(&plan).iter().all(|rule| rule.rights & EXECUTE == 0));
    }

    #[test]
    fn with_shell_programs_and_own_files_run_but_not_devices_and_proc() {
        let mut start = start();
        start.shell = true;
        let plan = Plan::new(start).unwrap();
        for path in ["/usr/bin/sh", "/app/x", "/data/out/x", "/tmp/x", "/home/agent/x"] {
            assert!(rights_on(&plan, path) & EXECUTE != 0, "{path}");
        }
        for path in ["/proc/self/exe", "/dev/null", "/var/x", "/root/x"] {
            assert!(rights_on(&plan, path) & EXECUTE == 0, "{path}");
        }
    }

    #[test]
    fn writing_is_only_where_it_was_granted() {
        let plan = Plan::new(start()).unwrap();
        for path in ["/data/out/x", "/tmp/x", "/dev/shm/x", "/home/agent/x"] {
            assert!(rights_on(&plan, path) & MAKE_REG != 0, "{path}");
        }
        for path in ["/data/x", "/usr/x", "/etc/passwd", "/proc/sys/kernel", "/var/x", "/dev/x", "/home/x"] {
            assert!(rights_on(&plan, path) & (WRITE & !READ) == 0, "{path}");
        }
    }

    #[test]
    fn nothing_grants_device_nodes_and_nothing_is_granted_on_the_root() {
        let plan = Plan::new(start()).unwrap();
        assert!(
            rules(&plan).iter().all(|rule| rule.rights & (MAKE_CHAR | MAKE_BLOCK) == 0 && rule.path != "/")
        );
        assert_eq!(rights_on(&plan, "/var/log"), 0);
        assert_eq!(rights_on(&plan, "/run/nullbox"), 0);
    }

    #[test]
    fn a_volume_is_written_only_where_it_may_be_and_holds_programs_only_with_a_shell() {
        let mut start = start();
        for (path, read_only) in [("/v/rw", false), ("/v/ro", true)] {
            start.volumes.push(abi::guest::Volume { path: path.into(), read_only });
        }
        let plan = Plan::new(start.clone()).unwrap();
        assert_eq!(rights_on(&plan, "/v/rw/x"), WRITE);
        assert_eq!(rights_on(&plan, "/v/ro/x"), READ);
        assert_eq!(rights_on(&plan, "/v"), 0);
        start.shell = true;
        let plan = Plan::new(start).unwrap();
        assert_eq!(rights_on(&plan, "/v/ro/x"), READ | EXECUTE);
    }

    #[test]
    fn with_tools_the_agent_reaches_nothing_that_was_granted_and_the_tools_nothing_of_the_agents() {
        let mut start = start();
        start.shell = true;
        start.has_tree = true;
        start.volumes.push(abi::guest::Volume { path: "/v".into(), read_only: false });
        let without = Plan::new(start.clone()).unwrap();
        assert_eq!(rights_on(&without, "/work/x"), WRITE | EXECUTE);
        start.tools = Some(abi::tools::Tools { programs: vec![] });
        let plan = Plan::new(start).unwrap();
        let tools = tools_rules(&plan);
        for (path, rights) in [("/data/x", READ), ("/data/out/x", WRITE), ("/v/x", WRITE), ("/work/x", WRITE)]
        {
            assert_eq!(rights_on(&plan, path), 0, "{path}");
            assert_eq!(rights_in(&tools, path), rights | EXECUTE, "{path}");
        }
        for path in ["/home/agent/x", "/tmp/x", "/dev/shm/x", "/dev/pts/0", "/dev/tty"] {
            assert!(rights_on(&plan, path) & READ_FILE != 0, "{path}");
            assert_eq!(rights_in(&tools, path) & READ_FILE, 0, "{path}");
        }
        assert!(rights_in(&tools, "/usr/x") & (WRITE & !READ) == 0 && rights_on(&plan, "/home/tools/x") == 0);
    }

    #[test]
    fn directory_rights_never_stand_on_a_file() {
        assert_eq!(rights_for(WRITE, false), READ_FILE | WRITE_FILE | TRUNCATE);
        assert_eq!(rights_for(WRITE, true), WRITE);
    }
}
