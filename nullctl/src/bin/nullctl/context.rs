//! What each command has at hand: the node it speaks to, and how results are shown.

use abi::rpc::Request;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::Arguments;
use crate::failure::Failure;
use crate::link::Link;
use crate::nodes::{Asked, Nodes, config_dir};

/// How long a node may be silent in an ordinary call.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Options of every command.
#[derive(Debug)]
pub struct Context {
    pub json: bool,
    pub asked: Asked,
    timeout: Option<Duration>,
}

/// How long a node may be silent in this call, unless `--timeout` says otherwise.
#[derive(Debug, Clone, Copy)]
pub enum Silence {
    Ordinary,
    AtMost(Duration),
    Unbounded,
    /// Unbounded, and the command's own `--timeout` means something else.
    Never,
}

impl Context {
    /// Reads the options and the environment.
    pub fn new(given: &Arguments) -> Result<Context, Failure> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let asked = |option: &str, name: &str| given.value(option).map(str::to_owned).or_else(|| set(name));
        Ok(Context {
            json: given.has("json"),
            asked: Asked {
                node: asked("node", "NULLBOX_NODE"),
                key: asked("key", "NULLBOX_KEY").map(PathBuf::from),
                pin: asked("pin", "NULLBOX_PIN"),
                socket: given.value("socket").map(PathBuf::from),
            },
            timeout: given.number::<u64>("timeout")?.map(|seconds| Duration::from_secs(seconds.max(1))),
        })
    }

    /// Where operator.key stands unless said otherwise.
    pub fn key_path(&self) -> Result<PathBuf, Failure> {
        match &self.asked.key {
            Some(path) => Ok(path.clone()),
            None => Ok(config_dir()?.join("operator.key")),
        }
    }

    /// Where nodes.toml stands.
    pub fn nodes_path(&self) -> Result<PathBuf, Failure> {
        Ok(config_dir()?.join("nodes.toml"))
    }

    /// Connects and sends a request.
    pub fn ask(&self, method: &str, params: &impl Serialize, silence: Silence) -> Result<Link, Failure> {
        let local = Path::new(abi::node::CONTROL_SOCKET);
        let (nodes, default_key) = match config_dir() {
            Ok(dir) => (Nodes::read(&dir.join("nodes.toml"))?, dir.join("operator.key")),
            Err(_) => (Nodes::default(), PathBuf::from("operator.key")),
        };
        let target = nodes.target(&self.asked, &default_key, local.exists().then_some(local))?;
        let silence = match (self.timeout, silence) {
            (_, Silence::Never) => None,
            (Some(timeout), _) => Some(timeout),
            (None, Silence::Ordinary) => Some(SILENCE),
            (None, Silence::AtMost(limit)) => Some(limit),
            (None, Silence::Unbounded) => None,
        };
        let mut link = Link::open(&target, silence)?;
        link.ask(method, params)?;
        Ok(link)
    }

    /// A call without notifications: the result, or, with `--json`, the result printed and `None`.
    pub fn call(&self, method: &str, params: &impl Serialize) -> Result<Option<Value>, Failure> {
        let result = self.ask(method, params, Silence::Ordinary)?.result(&mut |note| self.note(note))?;
        self.result_or_json(result)
    }

    /// Prints a result as JSON if that is wanted, else hands it back.
    pub fn result_or_json(&self, result: Value) -> Result<Option<Value>, Failure> {
        if self.json {
            say(&format!("{result}\n"))?;
            return Ok(None);
        }
        Ok(Some(result))
    }

    /// Prints a notification as JSON if that is wanted.
    pub fn note(&self, note: &Request) -> Result<(), Failure> {
        if self.json {
            say(&format!("{}\n", json!({ note.method.as_str(): note.params })))?;
        }
        Ok(())
    }
}

/// Writes to standard output.
pub fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Whether standard output is a terminal.
pub fn terminal() -> bool {
    io::stdout().is_terminal()
}
