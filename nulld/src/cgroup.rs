//! cgroup v2 (kernel doc admin-guide/cgroup-v2): one group for each service below `services`, nulld in one of its own.
//!
//! Must hold: a service and all that it starts is in its group, so that killing the group leaves nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use abi::node::ServiceConfig;

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that services and jails are limited with.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// Moves nulld to a group of its own and enables the controllers for services. Returns those the kernel lacks.
pub fn prepare() -> io::Result<Vec<&'static str>> {
    let root = Path::new(ROOT);
    let own = root.join("nulld");
    make_dir(&own)?;
    fs::write(own.join("cgroup.procs"), "0")?;
    let missing = enable(root)?;
    make_dir(&root.join("services"))?;
    enable(&root.join("services"))?;
    Ok(missing)
}

/// A service's group.
#[derive(Debug, Clone)]
pub struct Group {
    path: PathBuf,
    delegated: bool,
}

impl Group {
    /// Makes it, with its bounds on memory and tasks; with `delegate_cgroup` the service itself goes to `self` below it.
    pub fn make(name: &str, config: &ServiceConfig) -> io::Result<Group> {
        let path = Path::new(ROOT).join("services").join(name);
        make_dir(&path)?;
        let group = Group { path, delegated: config.delegate_cgroup };
        if group.delegated {
            enable(&group.path)?;
            make_dir(&group.path.join("self"))?;
        }
        let memory = match config.memory_mib_max {
            0 => "max".to_owned(),
            mib => (u64::from(mib) * 1024 * 1024).to_string(),
        };
        group.bound("memory.max", &memory)?;
        group.bound("pids.max", &config.tasks_max.to_string())?;
        Ok(group)
    }

    fn bound(&self, file: &str, value: &str) -> io::Result<()> {
        let file = self.seat().join(file);
        // Without the controller the boot phase `mounts` has said that it is degraded.
        match file.exists() {
            true => fs::write(file, value),
            false => Ok(()),
        }
    }

    /// The group that the service's own processes are in.
    pub fn seat(&self) -> PathBuf {
        match self.delegated {
            true => self.path.join("self"),
            false => self.path.clone(),
        }
    }

    /// SIGKILL to every process in it and below (cgroup.kill).
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Whether a process is left in it or below.
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Memory of all of it, in KiB; 0 without the controller.
    pub fn memory_kib(&self) -> u64 {
        fs::read_to_string(self.path.join("memory.current"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
            / 1024
    }
}

/// SIGKILL to all services at once: the last step before power.
pub fn kill_services() -> io::Result<()> {
    fs::write(Path::new(ROOT).join("services/cgroup.kill"), "1")
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot make {}: {error}", path.display()))),
        Ok(()) => Ok(()),
    }
}

fn enable(group: &Path) -> io::Result<Vec<&'static str>> {
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    let available: Vec<&str> = available.split_whitespace().collect();
    let (present, missing): (Vec<&str>, Vec<&'static str>) =
        CONTROLLERS.into_iter().partition(|name| available.contains(name));
    for name in present {
        fs::write(group.join("cgroup.subtree_control"), format!("+{name}"))?;
    }
    Ok(missing)
}
