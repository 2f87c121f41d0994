//! The walls around every process of the agent: user, capabilities, Landlock, system call filter.
//!
//! Must hold: rules are made by PID 1 before any agent code runs, so that no path can be changed under them; a child that
//! cannot take on one wall never runs the program. Must never: loosen anything after [`Sandbox::new`].

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use abi::guest::GUEST_UID;
use abi::tools::TOOLS_UID;
use verifier::access::{self, Rule};
use verifier::elf::{self, Needs};
use verifier::plan::Plan;
use verifier::seccomp::{self, Filtered};

use crate::console;
use crate::mounts::{Step, StepError};
use crate::sys;

/// Open files: what programs expect, and what they may raise it to (less where PID 1 itself has less).
const NOFILE: u64 = 4096;
/// The most an agent's process may raise it to.
pub const NOFILE_MAX: u64 = 65_536;
const NO_CORE: Rlimit = Rlimit { current: Some(0), maximum: Some(0) };
/// A script's interpreter may be a script; the kernel follows four.
const INTERPRETERS_MAX: usize = 4;
/// No loader is near this.
const LOADER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Capabilities are bits of a 64-bit set; the kernel refuses those above its last.
const CAPABILITY_BITS: u32 = 64;

/// The walls, ready to be taken on by children.
#[derive(Debug)]
pub struct Sandbox {
    ruleset: OwnedFd,
    /// Files with several names that have a rule. overlayfs gives such a file another inode, without the rule, when its
    /// directory entry is looked up anew; an open descriptor keeps the entry.
    pinned: Vec<OwnedFd>,
    filter: Vec<libc::sock_filter>,
    sealed: BTreeSet<PathBuf>,
    user: u32,
    /// A process whose mounts and System V objects are those of everything in here (pidfd).
    namespaces: Option<OwnedFd>,
}

impl Sandbox {
    /// Resolves the plan's paths in the current root, once.
    pub fn new(plan: &Plan) -> Result<Sandbox, StepError> {
        let filter = Filtered::Agent { shell: plan.shell };
        let mut sandbox = Sandbox::with_rules(&access::rules(plan), filter, GUEST_UID)?;
        if !plan.shell {
            for program in &plan.programs {
                sandbox.allow_program(program).step("command and exec")?;
            }
        }
        Ok(sandbox)
    }

    /// The tools' own: they may execute whatever the host lets them.
    pub fn of_tools(plan: &Plan) -> Result<Sandbox, StepError> {
        Sandbox::with_rules(&access::tools_rules(plan), Filtered::Tools, TOOLS_UID)
    }

    /// From here on its children enter the namespaces of this process.
    pub fn within(&mut self, process: OwnedFd) {
        self.namespaces = Some(process);
    }

    /// Whose it is.
    pub fn user(&self) -> u32 {
        self.user
    }

    fn with_rules(rules: &[Rule], filtered: Filtered, user: u32) -> Result<Sandbox, StepError> {
        let abi = sys::landlock_abi().step("landlock")?;
        if abi < access::ABI_MIN {
            return Err(io::Error::other(format!(
                "the kernel has landlock {abi}, {} is needed",
                access::ABI_MIN
            )))
            .step("landlock");
        }
        let ruleset = sys::landlock_ruleset(access::HANDLED, access::SCOPED).step("landlock ruleset")?;
        let mut sandbox = Sandbox {
            ruleset,
            pinned: Vec::new(),
            filter: seccomp::filter(filtered),
            sealed: BTreeSet::new(),
            user,
            namespaces: None,
        };
        for rule in rules {
            match sandbox.allow(Path::new(&rule.path), rule.rights) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !rule.required => {}
                other => other.step(format_args!("landlock rule on `{}`", rule.path))?,
            }
        }
        Ok(sandbox)
    }

    fn allow(&mut self, path: &Path, rights: u64) -> io::Result<()> {
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&place)?;
        let is_directory =
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
        sys::landlock_allow(self.ruleset.as_fd(), place.as_fd(), access::rights_for(rights, is_directory))?;
        if !is_directory && stat.st_nlink > 1 {
            self.pinned.push(place);
        }
        Ok(())
    }

    /// EXECUTE on one program and on what the kernel needs to execute it.
    fn allow_program(&mut self, program: &str) -> io::Result<()> {
        let mut path = program.to_owned();
        for _ in 0..=INTERPRETERS_MAX {
            let real = fs::canonicalize(&path).map_err(|error| at(&path, error))?;
            let file = open_regular(&real).map_err(|error| at(&path, error))?;
            protect(&file)?;
            self.allow(&real, access::RUN)?;
            let needs = elf::needs(|offset, length| read_at(&file, offset, length));
            match needs.map_err(|error| at(&path, io::Error::other(error)))? {
                Needs::Nothing => return Ok(()),
                Needs::Interpreter(interpreter) => path = interpreter,
                Needs::Loader(loader) => {
                    let real = fs::canonicalize(&loader).map_err(|error| at(&loader, error))?;
                    if !self.sealed.contains(&real) {
                        seal(&real).map_err(|error| at(&loader, error))?;
                        self.allow(&real, access::RUN)?;
                        self.sealed.insert(real);
                    }
                    return Ok(());
                }
            }
        }
        Err(io::Error::other("its interpreters are scripts, too many deep"))
    }

    /// In a child: the bounds of the whole process.
    pub fn bound() -> Result<(), StepError> {
        let most = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(NOFILE_MAX).min(NOFILE_MAX);
        let nofile = Rlimit { current: Some(NOFILE.min(most)), maximum: Some(most) };
        rustix::process::setrlimit(Resource::Nofile, nofile).step("limit on open files")?;
        rustix::process::setrlimit(Resource::Core, NO_CORE).step("limit on cores")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok(())
    }

    /// In a child that compares file systems: root that can read every file and attribute, and do nothing else.
    pub fn enter_as_reader(&self) -> Result<(), StepError> {
        // SYS_ADMIN is what the kernel asks for to read trusted attributes; the filter refuses what else it is good for.
        let reader = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_ADMIN;
        rustix::thread::set_no_new_privs(true).step("no_new_privs")?;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: reader, permitted: reader, inheritable: CapabilitySet::empty() },
        )
        .step("capabilities")?;
        sys::seccomp_enter(&self.filter).step("seccomp")
    }

    /// Loaders that stand in the overlay in a form of ours.
    pub fn sealed(&self) -> impl Iterator<Item = &Path> {
        self.sealed.iter().map(PathBuf::as_path)
    }

    /// In a child: gives up everything, in the one order that works.
    pub fn enter(&self, workdir: &std::ffi::CStr) -> Result<(), StepError> {
        if let Some(process) = &self.namespaces {
            let own = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
            rustix::thread::move_into_thread_name_spaces(process.as_fd(), own)
                .step("enter the tools' mounts")?;
        }
        give_up_root(self.user).step("give up root")?;
        rustix::process::chdir(workdir)
            .step(format_args!("working directory `{}`", workdir.to_string_lossy()))?;
        rustix::thread::set_no_new_privs(true).step("no_new_privs")?;
        sys::landlock_enter(self.ruleset.as_fd()).step("landlock")?;
        sys::seccomp_enter(&self.filter).step("seccomp")
    }
}

fn give_up_root(user: u32) -> io::Result<()> {
    for bit in 0..CAPABILITY_BITS {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break, // above the kernel's last capability
            Err(error) => return Err(error.into()),
        }
    }
    let (uid, gid) = (rustix::process::Uid::from_raw(user), rustix::process::Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?;
    Ok(rustix::thread::clear_ambient_capability_set()?)
}

fn at(path: &str, error: io::Error) -> io::Error {
    let error = match error.kind() {
        io::ErrorKind::NotFound => String::from("there is no such file in the rootfs"),
        _ => error.to_string(),
    };
    io::Error::other(format!("`{path}`: {error}"))
}

/// Opens a file of the image for reading, only if it is one: a FIFO would make PID 1 wait.
fn open_regular(path: &Path) -> io::Result<fs::File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

fn read_at(file: &fs::File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A program that may be executed must not be one that the agent can rewrite: root's, writable for nobody else.
fn protect(file: &fs::File) -> io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.uid() == 0 && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    rustix::fs::fchown(file, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
    // It stays executable for the agent, who may have owned it until now.
    file.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o755 | 0o555))
}

/// Replaces a loader by its sealed copy (see [`elf::seal`]), in the overlay.
fn seal(loader: &Path) -> io::Result<()> {
    let file = open_regular(loader)?;
    let mut bytes = Vec::new();
    file.take(LOADER_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LOADER_BYTES_MAX {
        return Err(io::Error::other("the loader is too large"));
    }
    let sealed = elf::seal(bytes).map_err(io::Error::other)?;
    let mut name = loader.file_name().unwrap_or_default().to_owned();
    name.push(".sealed");
    let copy = loader.with_file_name(name);
    fs::write(&copy, sealed)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    fs::rename(&copy, loader)
}

/// A missing path of `filesystem.read` grants nothing; the operator is told.
pub fn tell_missing(plan: &Plan) {
    for path in plan.read.iter().filter(|path| fs::metadata(path).is_err()) {
        console::say(format_args!("filesystem.read `{path}` is not in the rootfs"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::process::{Command, Stdio};

    const ROOT: &CStr = c"/";

    fn place(name: &str) -> PathBuf {
        let path = PathBuf::from(format!("/tmp/sandbox-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        for (dir, mode) in [("", 0o755), ("read", 0o755), ("write", 0o777), ("other", 0o777)] {
            fs::create_dir_all(path.join(dir)).unwrap();
            fs::set_permissions(path.join(dir), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(path.join("read/x"), "x").unwrap();
        fs::write(path.join("other/x"), "x").unwrap();
        path
    }

    fn rule(path: impl AsRef<Path>, rights: u64) -> Rule {
        Rule { path: path.as_ref().to_str().unwrap().to_owned(), rights, required: true }
    }

    fn run(path: &str) -> Option<i32> {
        let status = Command::new(path).stdin(Stdio::null()).stdout(Stdio::null()).status();
        status.map_or_else(|error| Some(-error.raw_os_error().unwrap()), |status| status.code())
    }

    /// Debian 12's own kernel has an older Landlock than our guests; there the system tests show the same from inside a guest.
    fn kernel_is_new_enough() -> bool {
        let abi = sys::landlock_abi().unwrap();
        if abi < 6 {
            eprintln!(
                "skipped: this kernel has Landlock ABI {abi}, the guest's has 6; see the system tests of agents"
            );
        }
        abi >= 6
    }

    /// Every wall is a thread's own, so a thread can take them on and try them. Needs root and Landlock, as PID 1 has them.
    fn inside(rules: Vec<Rule>, shell: bool, probe: impl FnOnce() + Send + 'static) {
        assert!(rustix::process::getuid().is_root(), "run the verifier's tests as root");
        if !kernel_is_new_enough() {
            return;
        }
        let sandbox = Sandbox::with_rules(&rules, Filtered::Agent { shell }, GUEST_UID).unwrap();
        let thread = std::thread::spawn(move || {
            sandbox.enter(ROOT).unwrap();
            probe();
        });
        thread.join().unwrap();
    }

    fn refused<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
    }

    #[test]
    fn only_granted_paths_open() {
        let path = place("paths");
        let rules = vec![rule(path.join("read"), access::READ), rule(path.join("write"), access::WRITE)];
        let dir = path.clone();
        inside(rules, true, move || {
            assert_eq!(fs::read(dir.join("read/x")).unwrap(), b"x");
            assert!(refused(fs::write(dir.join("read/y"), "y")));
            assert!(refused(fs::read(dir.join("other/x"))));
            assert!(refused(fs::read("/etc/passwd")));
            assert!(refused(fs::write(dir.join("other/y"), "y")));
            fs::write(dir.join("write/y"), "y").unwrap();
            std::os::unix::fs::symlink(dir.join("other/x"), dir.join("write/link")).unwrap();
            assert!(refused(fs::read(dir.join("write/link"))), "a link leads nowhere new");
            assert!(fs::hard_link(dir.join("other/x"), dir.join("write/hard")).is_err());
            assert!(refused(fs::rename(dir.join("write/y"), dir.join("other/y"))));
        });
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn only_granted_programs_run() {
        let real = |path: &str| fs::canonicalize(path).unwrap();
        let loader =
            match elf::needs(|offset, length| read_at(&fs::File::open("/bin/true").unwrap(), offset, length))
                .unwrap()
            {
                Needs::Loader(loader) => real(&loader),
                other => panic!("/bin/true needs {other:?}"),
            };
        let mut rules: Vec<Rule> =
            ["/usr", "/lib", "/lib64", "/etc"].iter().map(|dir| rule(dir, access::READ)).collect();
        rules.extend([
            rule(real("/bin/true"), access::RUN),
            rule(loader, access::RUN),
            rule("/dev/null", access::READ_FILE | access::WRITE_FILE),
        ]);
        inside(rules, false, || {
            assert_eq!(run("/bin/true"), Some(0));
            assert_eq!(run("/bin/false"), Some(-libc::EACCES));
            assert_eq!(run("/bin/sh"), Some(-libc::EACCES));
        });
    }

    #[test]
    fn nothing_of_root_is_left() {
        inside(vec![rule("/proc", access::READ)], false, || {
            let ids = (
                rustix::process::getuid().as_raw(),
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            );
            assert_eq!(ids, (GUEST_UID, GUEST_UID, GUEST_UID));
            assert!(rustix::process::getgroups().unwrap().is_empty());
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let field = |name: &str| {
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
            };
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
            }
            assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
            assert!(rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_err());
        });
    }

    #[test]
    fn the_filter_holds_in_the_kernel() {
        inside(Vec::new(), false, || {
            let refused = |result: io::Error| result.raw_os_error() == Some(libc::EPERM);
            assert!(refused(sys::vsock(false).unwrap_err()));
            assert!(refused(rustix::process::chroot("/").unwrap_err().into()));
            assert!(refused(
                rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::empty()).unwrap_err().into()
            ));
            assert!(refused(rustix::system::sethostname(b"x").unwrap_err().into()));
            assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
            assert!(std::thread::spawn(|| 1).join().is_ok(), "threads still start");
        });
    }

    #[test]
    fn a_missing_path_is_an_error_only_where_it_is_required() {
        if !kernel_is_new_enough() {
            return;
        }
        let mut missing = rule("/nonexistent", access::READ);
        assert!(
            Sandbox::with_rules(std::slice::from_ref(&missing), Filtered::Tools, GUEST_UID)
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
        missing.required = false;
        Sandbox::with_rules(&[missing], Filtered::Tools, GUEST_UID).unwrap();
    }

    #[test]
    fn a_program_is_taken_from_whoever_could_rewrite_it() {
        let path = place("protect").join("write/program");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        for (owner, mode) in [(GUEST_UID, 0o700), (0, 0o777), (GUEST_UID, 0o4755)] {
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            protect(&open_regular(&path).unwrap()).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o755), "{mode:o}");
        }
        fs::remove_dir_all(path.parent().unwrap().parent().unwrap()).unwrap();
    }

    #[test]
    fn a_program_that_is_a_fifo_does_not_stop_pid_1() {
        let path = place("fifo");
        let fifo = path.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        assert!(open_regular(&fifo).unwrap_err().to_string().contains("regular"));
        fs::remove_dir_all(path).unwrap();
    }
}
