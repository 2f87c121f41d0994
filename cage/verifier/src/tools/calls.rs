//! One call, from the agent's line to its answer.

use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::rc::Rc;
use std::time::{Duration, Instant};

use abi::limits;
use abi::tools::{Go, Text};
use verifier::call::{Request, said};

use super::memory::Exchange;
use super::search::Search;
use crate::few::Few;

/// Results that a call takes by reference.
pub type Inputs = Few<Rc<[u8]>>;

/// A call that has not ended.
#[derive(Debug)]
pub struct Call {
    /// The connection that it came on.
    pub connection: u32,
    pub request: Request,
    /// What it takes by reference, as it was when it was asked for.
    pub inputs: Inputs,
    /// What the host made, as far as it came.
    pub value: Vec<u8>,
    pub stage: Stage,
}

/// How far a call is.
#[derive(Debug)]
pub enum Stage {
    /// It waits for the host.
    Asked,
    Running(Box<Running>),
}

/// A call that may be done, and is.
#[derive(Debug)]
pub struct Running {
    pub go: Go,
    pub began: Instant,
    /// When it is ended, whatever it does.
    pub until: Instant,
    pub job: Job,
}

/// What is done over some time.
#[derive(Debug)]
pub enum Job {
    Search(Search),
    Memory(Exchange),
    Run(Run),
}

/// A run, which PID 1 has started.
#[derive(Debug)]
pub struct Run {
    /// What waits to be its standard input; none when the end of it was told.
    pub input: Option<Rc<[u8]>>,
    pub sent: usize,
    /// What PID 1 takes of it now.
    pub window: u32,
    pub output: Vec<u8>,
    pub is_cut: bool,
    pub timed_out: bool,
}

/// What a tool gave.
#[derive(Debug)]
pub struct Outcome {
    pub data: Value,
    /// What a reference to it stands for.
    pub value: Vec<u8>,
    /// It was longer than its bound.
    pub is_cut: bool,
}

impl Call {
    /// A text of its parameters.
    pub fn text<'a>(&'a self, text: &'a Text) -> Cow<'a, [u8]> {
        match text {
            Text::Clear(text) => Cow::Borrowed(text.as_bytes()),
            // Each reference was looked up before the host was asked.
            Text::Reference { value } => {
                Cow::Borrowed(self.inputs.of(*value).map_or(&[][..], |bytes| &**bytes))
            }
        }
    }
}

impl Running {
    /// From now on, and no longer than the host and the call itself allow.
    pub fn new(go: Go, timeout_ms: Option<u64>, job: Job) -> Running {
        let most = go.wall_ms_max.min(limits::TOOL_RUN_MS_MAX).min(timeout_ms.unwrap_or(u64::MAX));
        let began = Instant::now();
        Running { go, began, until: began + Duration::from_millis(most), job }
    }
}

impl Run {
    /// With this standard input.
    pub fn new(input: Vec<u8>) -> Run {
        Run {
            input: Some(input.into()),
            sent: 0,
            window: limits::EXEC_INPUT_WINDOW_BYTES,
            output: Vec::new(),
            is_cut: false,
            timed_out: false,
        }
    }

    /// The next piece of input that may be sent, at most so long; empty is its end, none that nothing may be sent now.
    pub fn piece(&mut self, most: usize) -> Option<Vec<u8>> {
        let rest = self.input.as_ref()?.get(self.sent..).unwrap_or_default();
        if rest.is_empty() {
            self.input = None;
            return Some(Vec::new());
        }
        let length = rest.len().min(most).min(self.window as usize);
        let piece = rest.get(..length).filter(|piece| !piece.is_empty())?.to_vec();
        self.sent += piece.len();
        self.window -= piece.len() as u32;
        Some(piece)
    }

    /// Takes output; what is above the bound is dropped, and that is known.
    pub fn take(&mut self, bytes: &[u8], most: u64) {
        let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(self.output.len());
        self.output.extend(bytes.iter().take(room));
        self.is_cut |= bytes.len() > room;
    }

    /// What it gave, now that it has ended: an `Exit`, as PID 1 says it.
    pub fn outcome(&mut self, exit: &Value) -> Outcome {
        let value = std::mem::take(&mut self.output);
        let oom_killed = exit.get("oom_killed") == Some(&Value::Bool(true));
        let mut data = json!({
            "code": exit.get("code"),
            "signal": exit.get("signal"),
            "output": String::from_utf8_lossy(&value),
        });
        for (name, is_so) in [("timed_out", self.timed_out), ("oom_killed", oom_killed)] {
            if let Some(members) = data.as_object_mut().filter(|_| is_so) {
                members.insert(name.to_owned(), true.into());
            }
        }
        Outcome { data, value, is_cut: self.is_cut }
    }
}

/// What the host did itself: members of the result, and its bytes.
pub fn by_host(result: Option<Value>, value: Vec<u8>) -> Outcome {
    let mut data = match result {
        Some(Value::Object(members)) => members,
        Some(other) => Map::from_iter([("result".to_owned(), other)]),
        None => Map::new(),
    };
    if !value.is_empty() {
        let (name, content) = said(&value);
        data.insert(name.to_owned(), content);
    }
    let data = Value::Object(data);
    let value = if value.is_empty() { data.to_string().into_bytes() } else { value };
    Outcome { data, value, is_cut: false }
}
