//! What a guest is told to run, made of manifest and image. Pure.

use abi::authority::{Authority, Tool};
use abi::control::{Attached, Image};
use abi::guest::{Exec, HealthProbe, Start, TerminalSize, Volume};
use abi::ids::{Instance, Name};
use abi::limits;
use abi::manifest::{HealthCheck, Manifest, VolumeGrant};
use abi::rpc::{Code, RpcError};
use abi::tools::Tools;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOME: &str = "/home/agent";
/// The guest kernel's bound.
const VCPUS_MAX: u32 = 16;

/// A terminal nobody has attached to yet.
const TERMINAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// The order for a guest. The clock is set when it is sent.
pub fn start(instance: &Instance, manifest: &Manifest, image: &Image, attached: Option<&Attached>) -> Start {
    let volume = |grant: &VolumeGrant| Volume { path: grant.path.clone(), read_only: grant.read_only };
    let probe = |check: &HealthCheck| HealthProbe {
        port: check.port,
        path: check.path.clone(),
        interval_secs: check.interval_secs,
    };
    Start {
        instance: instance.to_string(),
        command: manifest.command.clone(),
        env: environment(&image.env, attached.map(|attached| &attached.env), &manifest.env),
        workdir: manifest.workdir.clone().or_else(|| image.workdir.clone()).unwrap_or_else(|| "/".into()),
        network: attached.map(|attached| attached.guest.clone()),
        authority: attached.and_then(|attached| attached.authority.clone()),
        read: manifest.read.clone(),
        write: manifest.write.clone(),
        shell: manifest.shell,
        exec: manifest.exec.clone(),
        pids_max: manifest.pids_max,
        clock_unix_ns: clock_unix_ns(),
        rootfs_disks: image.layers.len() as u8, // the store has at most ROOTFS_DISKS_MAX
        volumes: manifest.volumes.values().map(volume).collect(),
        stdin: manifest.stdin,
        terminal: manifest.tty.then_some(TERMINAL),
        health: manifest.health_check.as_ref().map(probe),
        tools: manifest.authority.as_ref().map(tools),
        has_tree: false, // a task's life has one
    }
}

/// The manifest's own tools, for the guest.
fn tools(authority: &Authority) -> Tools {
    let program = |(name, tool): (&Name, &Tool)| Some((name.to_string(), tool.command.clone()?));
    Tools { programs: authority.tools.iter().filter_map(program).collect() }
}

/// Defaults, overlaid by the image's variables, by those of egress, by the manifest's. Sorted by name. What is not `NAME=value` in an
/// image is left out.
pub fn environment(
    image: &[String],
    egress: Option<&BTreeMap<String, String>>,
    manifest: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::from([("HOME", HOME), ("PATH", PATH_DEFAULT)]);
    let named = |pair: &&String| pair.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    all.extend(image.iter().filter(named).take(limits::ENV_VARS_MAX).filter_map(|pair| pair.split_once('=')));
    // An image's HOME is another user's.
    all.insert("HOME", HOME);
    let pairs = egress.into_iter().flatten().chain(manifest);
    all.extend(pairs.map(|(name, value)| (name.as_str(), value.as_str())));
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// vCPUs for a share of CPU: as many as it can keep busy.
pub fn vcpus(cpu_percent: u32) -> u8 {
    cpu_percent.div_ceil(100).clamp(1, VCPUS_MAX) as u8
}

/// The six bytes of `xx:xx:xx:xx:xx:xx`.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// The host's clock.
pub fn clock_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The order for an exec, if the manifest lets it be executed.
pub fn exec(manifest: &Manifest, want: &abi::control::AgentExec) -> Result<Exec, RpcError> {
    let invalid = |what: String| RpcError::new(Code::INVALID_PARAMS, what);
    let Some(program) = want.command.first() else {
        return Err(invalid("the command is empty".into()));
    };
    let too_long = |text: &String| text.len() > limits::COMMAND_ARG_BYTES_MAX || text.contains('\0');
    if want.command.len() > limits::COMMAND_ARGS_MAX || want.command.iter().any(too_long) {
        let most = (limits::COMMAND_ARGS_MAX, limits::COMMAND_ARG_BYTES_MAX);
        return Err(invalid(format!(
            "a command has at most {} parts of {} bytes, without NUL",
            most.0, most.1
        )));
    }
    if want.env.len() > limits::ENV_VARS_MAX
        || want.env.iter().any(|(name, value)| {
            name.is_empty() || name.contains(['=', '\0']) || too_long(name) || too_long(value)
        })
    {
        return Err(invalid(format!(
            "an environment has at most {} variables, NAME=value",
            limits::ENV_VARS_MAX
        )));
    }
    if want.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/') || dir.len() > limits::PATH_BYTES_MAX) {
        return Err(invalid("the working directory must be an absolute path".into()));
    }
    let terminal = want.terminal.map(crate::caller::terminal).transpose()?;
    if want.timeout_ms.is_some_and(|ms| !(1..=limits::EXEC_TIMEOUT_MS_MAX).contains(&ms)) {
        return Err(invalid(format!("the time limit must be 1 to {} ms", limits::EXEC_TIMEOUT_MS_MAX)));
    }
    if !manifest.shell && manifest.command.first() != Some(program) && !manifest.exec.contains(program) {
        let shown: String = program.chars().take(200).collect();
        return Err(RpcError::new(Code::DENIED, format!("`{shown}` may not be executed in {}", manifest.name)).explained(
            "capabilities.shell is false: only the command and the exec entries may be executed",
            format!("add \"{shown}\" to capabilities.exec of the manifest, or set capabilities.shell = true, and start the agent anew"),
        ));
    }
    Ok(Exec {
        command: want.command.clone(),
        env: want.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        workdir: want.workdir.clone().unwrap_or_default(),
        terminal,
        window_bytes: limits::EXEC_WINDOW_BYTES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(extra: &str) -> Manifest {
        let text = format!(
            "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/bin/x\", \"y\"]\nenv = {{ A = \"manifest\" }}\n[capabilities]\n{extra}"
        );
        abi::manifest::parse("a.toml", &text).unwrap()
    }

    fn want(command: &[&str]) -> abi::control::AgentExec {
        abi::control::AgentExec {
            name: "a".parse().unwrap(),
            command: command.iter().map(ToString::to_string).collect(),
            env: BTreeMap::new(),
            workdir: None,
            terminal: None,
            timeout_ms: None,
        }
    }

    #[test]
    fn the_manifest_overrides_the_image_which_overrides_the_defaults() {
        let image = [
            "A=image".to_owned(),
            "PATH=/image".into(),
            "HOME=/root".into(),
            "broken".into(),
            "=x".into(),
            "B=1=2".into(),
        ];
        let egress = BTreeMap::from([("A".to_owned(), "egress".to_owned()), ("B".into(), "egress".into())]);
        let env = environment(&image, Some(&egress), &manifest("").env);
        assert_eq!(env, ["A=manifest", "B=egress", "HOME=/home/agent", "PATH=/image"]);
        assert_eq!(environment(&image, None, &BTreeMap::new())[1], "B=1=2");
        assert_eq!(
            environment(&[], None, &BTreeMap::new()),
            ["HOME=/home/agent".to_owned(), format!("PATH={PATH_DEFAULT}")]
        );
    }

    #[test]
    fn vcpus_cover_the_share_and_stay_in_bounds() {
        assert_eq!([1, 40, 100, 101, 400, 6400].map(vcpus), [1, 1, 1, 2, 4, 16]);
    }

    #[test]
    fn only_whole_mac_addresses_are_read() {
        assert_eq!(mac("02:00:5e:10:00:ff"), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:5e:10:0:ff",
            "02:00:5e:10:00:fg",
            "+2:00:5e:10:00:ff:",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn exec_is_refused_unless_the_manifest_names_the_program() {
        let refused = exec(&manifest(""), &want(&["/bin/sh"])).unwrap_err();
        assert_eq!(refused.code, Code::DENIED);
        assert!(refused.data.unwrap().remedy.contains("/bin/sh"));
        assert!(exec(&manifest(""), &want(&["/bin/x"])).is_ok());
        assert!(exec(&manifest("exec = [\"/bin/ls\"]"), &want(&["/bin/ls", "-l"])).is_ok());
        assert!(exec(&manifest("shell = true"), &want(&["/bin/sh"])).is_ok());
        assert!(exec(&manifest("exec = [\"/bin/ls\"]"), &want(&["/bin/lsx"])).is_err());
    }

    #[test]
    fn malformed_execs_are_refused() {
        let shell = manifest("shell = true");
        assert!(exec(&shell, &want(&[])).is_err());
        assert!(exec(&shell, &want(&["/bin/x", "a\0b"])).is_err());
        assert!(exec(&shell, &want(&vec!["x"; 65])).is_err());
        let mut bad = want(&["/bin/x"]);
        bad.env.insert("A=B".into(), "x".into());
        assert!(exec(&shell, &bad).is_err());
        let mut bad = want(&["/bin/x"]);
        bad.workdir = Some("relative".into());
        assert!(exec(&shell, &bad).is_err());
        for ms in [0, limits::EXEC_TIMEOUT_MS_MAX + 1] {
            assert!(
                exec(&shell, &abi::control::AgentExec { timeout_ms: Some(ms), ..want(&["/bin/x"]) }).is_err()
            );
        }
        for (rows, columns) in [(0, 80), (24, 0), (24, limits::TERMINAL_SIZE_MAX + 1)] {
            let terminal = Some(TerminalSize { rows, columns });
            assert!(exec(&shell, &abi::control::AgentExec { terminal, ..want(&["/bin/x"]) }).is_err());
        }
    }
}
