//! The verifier's tools: what of them the model is offered, and calls over their socket (docs/tools.md).
//!
//! Must hold: what the model wrote is made a call's parameters and nothing else; no line longer than its bound is sent or read.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use abi::limits;
use abi::tools::Done;
use serde_json::{Map, Value, json};

use crate::model::ToolCall;

/// A tool as the model is told of it.
#[derive(Debug)]
pub struct Tool {
    pub name: &'static str,
    pub about: &'static str,
    /// JSON Schema of the parameters, as text.
    schema: &'static str,
}

impl Tool {
    /// JSON Schema of its parameters.
    pub fn parameters(&self) -> Value {
        serde_json::from_str(self.schema).unwrap_or_default()
    }
}

/// What the model is offered. A manifest may allow less; a refusal says so.
pub fn offered() -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter()
}

macro_rules! schema {
    ([$($required:literal),*], $($name:literal: $kind:literal $about:literal),*) => {
        concat!(
            r#"{"type":"object","additionalProperties":false,"required":"#, "[", schema!(@list $($required),*), "]",
            r#","properties":{"#, schema!(@list $($name: $kind $about),*), "}}"
        )
    };
    (@list) => { "" };
    (@list $first:literal $(, $more:literal)*) => { concat!("\"", $first, "\"", $(",\"", $more, "\"",)*) };
    (@list $n:literal: $k:literal $a:literal $(, $name:literal: $kind:literal $about:literal)*) => {
        concat!("\"", $n, "\":{", $k, ",\"description\":\"", $a, "\"}", $(",\"", $name, "\":{", $kind, ",\"description\":\"", $about, "\"}",)*)
    };
}

const TOOLS: [Tool; 8] = [
    Tool {
        name: "read",
        about: "Reads a file. Long files come in parts: use offset.",
        schema: schema!(["path"], "path": r#""type":"string""# "in the tree",
            "offset": r#""type":"integer""# "bytes to pass over", "length": r#""type":"integer""# "bytes at most"),
    },
    Tool {
        name: "write",
        about: "Makes or replaces a whole file, with its directories. To change a part of a file use edit.",
        schema: schema!(["path", "content"], "path": r#""type":"string""# "in the tree",
            "content": r#""type":"string""# "the whole text", "append": r#""type":"boolean""# "add at the end instead",
            "executable": r#""type":"boolean""# "may be executed"),
    },
    Tool {
        name: "edit",
        about: "Replaces a text in a file. It must stand there exactly count times, blanks and line ends included.",
        schema: schema!(["path", "old", "new"], "path": r#""type":"string""# "in the tree",
            "old": r#""type":"string""# "what stands there", "new": r#""type":"string""# "what shall stand there",
            "count": r#""type":"integer""# "how often it stands there; 1 where not given"),
    },
    Tool {
        name: "remove",
        about: "Removes a file or an empty directory.",
        schema: schema!(["path"], "path": r#""type":"string""# "in the tree"),
    },
    Tool {
        name: "glob",
        about: "Lists paths by a pattern; ** stands for any number of directories.",
        schema: schema!(["pattern"], "pattern": r#""type":"string""# "like **/*.py", "path": r#""type":"string""# "directory; the tree where not given"),
    },
    Tool {
        name: "grep",
        about: "Finds lines that hold a text (no pattern) in files below a path.",
        schema: schema!(["text"], "text": r#""type":"string""# "to be found", "path": r#""type":"string""# "the tree where not given",
            "ignore_case": r#""type":"boolean""# "capitals and small letters are the same"),
    },
    Tool {
        name: "run",
        about: "Runs a program in the tree, without a network and without a shell: program and arguments, one a string.",
        schema: schema!(["command"], "command": r#""type":"array","items":{"type":"string"}"# "like [\\\"python3\\\", \\\"-m\\\", \\\"unittest\\\"]",
            "stdin": r#""type":"string""# "its standard input", "workdir": r#""type":"string""# "directory; the tree where not given",
            "timeout_ms": r#""type":"integer""# "it is killed then"),
    },
    Tool {
        name: "submit",
        about: "Says that the goal is reached. The tree is then verified elsewhere; the answer is what came of it. Nothing else ends the task.",
        schema: schema!([], "note": r#""type":"string""# "what was changed and why, for people"),
    },
];

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Done),
    /// By a rule or a human.
    Refused {
        rule: String,
        why: String,
        remedy: String,
    },
    /// The call was malformed, beyond a bound, or the tool failed.
    Failed(String),
}

/// Why there are no tools (any more).
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    #[error("no tools at {}: {error}; the manifest needs an [authority] table", path.display())]
    Connect { path: PathBuf, error: std::io::Error },
    #[error("the connection to the tools: {0}")]
    Io(#[from] std::io::Error),
    #[error("the tools ended the connection")]
    Ended,
    #[error("the tools said what is no answer: {0}")]
    Malformed(String),
}

/// A connection to the tools; one call at a time.
#[derive(Debug)]
pub struct Tools {
    stream: BufReader<UnixStream>,
    calls: u64,
}

impl Tools {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Tools, ToolsError> {
        let connected = UnixStream::connect(path)
            .map_err(|error| ToolsError::Connect { path: path.to_owned(), error })?;
        connected.set_read_timeout(Some(Duration::from_millis(limits::CODER_TOOL_MS_MAX)))?;
        Ok(Tools { stream: BufReader::new(connected), calls: 0 })
    }

    /// Calls a tool and waits for what comes of it.
    pub fn call(&mut self, tool: &str, params: &Value) -> Result<Outcome, ToolsError> {
        let text = params.to_string();
        if text.len() > limits::TOOL_PARAMS_BYTES_MAX {
            return Ok(Outcome::Failed(format!(
                "the arguments are {} bytes: at most {}, so make several smaller calls",
                text.len(),
                limits::TOOL_PARAMS_BYTES_MAX
            )));
        }
        self.calls += 1;
        let line =
            json!({"jsonrpc": "2.0", "id": self.calls, "method": format!("tool.{tool}"), "params": params});
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = Vec::new();
        let bound = limits::CODER_LINE_BYTES_MAX as u64;
        (&mut self.stream).take(bound).read_until(b'\n', &mut answer)?;
        match answer.last() {
            Some(b'\n') => outcome(self.calls, &answer),
            _ if answer.len() as u64 == bound => {
                Err(ToolsError::Malformed(format!("a line of more than {bound} bytes")))
            }
            _ => Err(ToolsError::Ended),
        }
    }
}

fn outcome(id: u64, line: &[u8]) -> Result<Outcome, ToolsError> {
    let malformed = |why: String| ToolsError::Malformed(why);
    let mut answer: Value = serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    if answer["id"] != id {
        return Err(malformed(format!("an answer to call {} when {id} was asked", answer["id"])));
    }
    if let Some(result) = answer.get_mut("result") {
        let done = serde_json::from_value(result.take()).map_err(|error| malformed(error.to_string()))?;
        return Ok(Outcome::Done(done));
    }
    let error = answer.get("error").ok_or_else(|| malformed("neither result nor error".to_owned()))?;
    let text = |from: &Value, name: &str| from[name].as_str().unwrap_or_default().to_owned();
    let message = text(error, "message");
    let data = &error["data"];
    let rule = text(data, "rule");
    if rule.is_empty() {
        return Ok(Outcome::Failed(message));
    }
    let why = Some(text(data, "why")).filter(|why| !why.is_empty()).unwrap_or(message);
    Ok(Outcome::Refused { rule, why, remedy: text(data, "remedy") })
}

/// What a model's call means: the parameters of one call, or of several where a text is longer than one call may be.
pub fn prepare(call: &ToolCall, tree: &str) -> Result<Vec<Value>, String> {
    if !offered().any(|tool| tool.name == call.name) {
        let names: Vec<&str> = offered().map(|tool| tool.name).collect();
        return Err(format!("there is no tool `{}`: {}", call.name, names.join(", ")));
    }
    let mut params = call.parsed()?;
    // Models fill what they need not with null.
    params.retain(|_, value| !value.is_null());
    if matches!(call.name.as_str(), "glob" | "grep") {
        params.entry("path").or_insert_with(|| tree.into());
    }
    for name in ["path", "workdir"] {
        if let Some(Value::String(path)) = params.get_mut(name) {
            *path = absolute(path, tree);
        }
    }
    match params.get("content") {
        Some(Value::String(content)) if call.name == "write" => Ok(pieces(content.clone(), &params)),
        _ => Ok(vec![Value::Object(params)]),
    }
}

/// A path as the tools take it: absolute, without `.` and empty parts. `..` stays, and is refused there with the rule.
fn absolute(path: &str, tree: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{tree}/{path}") };
    let parts: Vec<&str> = whole.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    format!("/{}", parts.join("/"))
}

/// A write as calls that fit: the first as it was asked for, the others add to it.
fn pieces(content: String, params: &Map<String, Value>) -> Vec<Value> {
    const ROOM: usize = limits::TOOL_PARAMS_BYTES_MAX - 2 * limits::PATH_BYTES_MAX - 256;
    let mut parts = vec![String::new()];
    let mut taken = 0;
    for letter in content.chars() {
        let bytes = if letter.is_control() || matches!(letter, '"' | '\\') { 6 } else { letter.len_utf8() };
        if taken + bytes > ROOM {
            parts.push(String::new());
            taken = 0;
        }
        taken += bytes;
        if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    let one = |(number, part): (usize, String)| {
        let mut params = params.clone();
        params.insert("content".to_owned(), part.into());
        if number > 0 {
            params.insert("append".to_owned(), true.into());
        }
        Value::Object(params)
    };
    parts.into_iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::tools as wire;
    use proptest::prelude::*;

    fn call(name: &str, arguments: Value) -> ToolCall {
        ToolCall { id: "c".into(), name: name.into(), arguments: arguments.to_string() }
    }

    /// Parameters as a model fills the schema: each property with a value of its type.
    fn filled(tool: &Tool) -> Value {
        let schema = tool.parameters();
        let properties = schema["properties"].as_object().unwrap();
        let value = |kind: &Value| match kind["type"].as_str().unwrap() {
            "string" => json!("text"),
            "integer" => json!(1),
            "boolean" => json!(true),
            "array" => json!(["text"]),
            other => panic!("{other}"),
        };
        let required = schema["required"].as_array().unwrap();
        assert!(required.iter().all(|name| properties.contains_key(name.as_str().unwrap())));
        properties.iter().map(|(name, kind)| (name.clone(), value(kind))).collect()
    }

    fn read_back(tool: &str, params: Value) -> Result<(), serde_json::Error> {
        fn is<T: serde::de::DeserializeOwned>(params: Value) -> Result<(), serde_json::Error> {
            serde_json::from_value::<T>(params).map(drop)
        }
        match tool {
            "read" => is::<wire::Read>(params),
            "write" => is::<wire::Write>(params),
            "edit" => is::<wire::Edit>(params),
            "remove" => is::<wire::Remove>(params),
            "glob" => is::<wire::Glob>(params),
            "grep" => is::<wire::Grep>(params),
            "run" => is::<wire::Run>(params),
            "submit" => is::<wire::Submit>(params),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_the_model_is_offered_is_what_the_verifier_takes() {
        for tool in offered() {
            let full = prepare(&call(tool.name, filled(tool)), "/work").unwrap();
            read_back(tool.name, full[0].clone()).unwrap_or_else(|error| panic!("{}: {error}", tool.name));
            let mut least = filled(tool);
            let required = tool.parameters()["required"].clone();
            least
                .as_object_mut()
                .unwrap()
                .retain(|name, _| required.as_array().unwrap().contains(&json!(name)));
            let least = prepare(&call(tool.name, least), "/work").unwrap();
            read_back(tool.name, least[0].clone()).unwrap_or_else(|error| panic!("{}: {error}", tool.name));
        }
    }

    #[test]
    fn paths_are_made_absolute_and_two_dots_are_left_for_the_verifier_to_refuse() {
        for (said, meant) in [
            ("a.py", "/work/a.py"),
            ("./b//c", "/work/b/c"),
            ("/etc/x", "/etc/x"),
            (".", "/work"),
            ("../x", "/work/../x"),
        ] {
            let params = prepare(&call("read", json!({"path": said, "offset": null})), "/work").unwrap();
            assert_eq!(params, [json!({"path": meant})]);
        }
        assert!(prepare(&call("shell", json!({})), "/work").unwrap_err().contains("submit"));
        let broken = ToolCall { arguments: "[1]".into(), ..call("read", json!({})) };
        assert!(prepare(&broken, "/work").unwrap_err().contains("not a JSON object"));
    }

    #[test]
    fn refusals_failures_and_answers_to_nobody_are_told_apart() {
        let refused = br#"{"jsonrpc":"2.0","id":3,"error":{"code":-32001,"message":"m","data":{"receipt":4,"rule":"path","why":"w","remedy":"r"}}}"#;
        let wanted = Outcome::Refused { rule: "path".into(), why: "w".into(), remedy: "r".into() };
        assert_eq!(outcome(3, refused).unwrap(), wanted);
        assert!(matches!(outcome(4, refused), Err(ToolsError::Malformed(_))));
        let failed = br#"{"jsonrpc":"2.0","id":3,"error":{"code":-32602,"message":"path: missing"}}"#;
        assert_eq!(outcome(3, failed).unwrap(), Outcome::Failed("path: missing".into()));
        let done = br#"{"jsonrpc":"2.0","id":3,"result":{"value":1,"receipt":2,"labels":["private_data"],"data":{"text":"x"},"is_cut":false}}"#;
        assert!(matches!(outcome(3, done).unwrap(), Outcome::Done(done) if done.receipt == 2));
        assert!(outcome(3, b"{}").is_err() && outcome(3, b"x").is_err());
    }

    proptest! {
        #[test]
        fn a_long_text_is_written_whole_in_calls_that_fit(text in "(.|\n|\u{1}|\u{1F600}){0,40}", times in 1..4000usize) {
            let content = text.repeat(times);
            let path = "p".repeat(limits::PATH_BYTES_MAX - 6);
            let calls = prepare(&call("write", json!({"path": path, "content": content})), "/work").unwrap();
            let mut whole = String::new();
            for (number, params) in calls.iter().enumerate() {
                prop_assert!(params.to_string().len() <= limits::TOOL_PARAMS_BYTES_MAX);
                prop_assert_eq!(params["append"] == true, number > 0);
                whole.push_str(params["content"].as_str().unwrap());
            }
            prop_assert_eq!(whole, content);
        }

        #[test]
        fn any_line_is_an_answer_or_an_error(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = outcome(1, &line);
        }
    }
}
