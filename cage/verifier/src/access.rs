//! Which paths the agent may use, and how: the Landlock rules of a [`Plan`].
//!
//! Must hold: what no rule names is refused, since every right is handled. EXECUTE stands on directories only when the
//! manifest says `shell = true`. Source of the rights: Documentation/userspace-api/landlock.rst, ABI 6.

use crate::plan::{HOME, Plan};

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

/// The directories that the agent can write: granted ones, temporary ones, its home.
pub fn writable(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.write.iter().map(String::as_str).chain(["/tmp", "/dev/shm", HOME])
}

/// All rules of a plan, except EXECUTE on single programs, which takes a look at the files.
pub fn rules(plan: &Plan) -> Vec<Rule> {
    let execute = if plan.shell { EXECUTE } else { 0 };
    let mut rules = Vec::new();
    let mut add = |path: &str, rights, required| {
        rules.push(Rule { path: path.to_owned(), rights, required });
    };
    for path in PROGRAM_DIRECTORIES {
        add(path, READ | execute, false);
    }
    add("/proc", READ, true);
    add("/dev", READ_DIR, true);
    for path in DEVICES {
        add(path, USE_DEVICE | READ_DIR, true);
    }
    for path in &plan.read {
        add(path, READ | execute, false);
    }
    for path in writable(plan) {
        add(path, WRITE | execute, true);
    }
    for volume in &plan.volumes {
        add(&volume.path, if volume.read_only { READ } else { WRITE } | execute, true);
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::start;

    fn rights_on(plan: &Plan, path: &str) -> u64 {
        rules(plan)
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
    fn directory_rights_never_stand_on_a_file() {
        assert_eq!(rights_for(WRITE, false), READ_FILE | WRITE_FILE | TRUNCATE);
        assert_eq!(rights_for(WRITE, true), WRITE);
    }
}
