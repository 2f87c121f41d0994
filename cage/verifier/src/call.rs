//! A line of the agent becomes a call of a tool, or a fault that says what is wrong with it; and how a result is said.
//!
//! Must hold: a line is parsed once, whole, with unknown fields refused; the parameters reach the host as the agent wrote them; a path is
//! absolute and in its one spelling. Must never: allocate by a length it has not bounded (lines are, by their reader).

use abi::authority::{PathPattern, is_plain};
use abi::guest::{Exec, Frame, FrameError};
use abi::limits;
use abi::rpc::{Code, Version};
use abi::tools::{self, Answer, Done, Edit, Glob, Grep, Memory, Read, Refused, Remove, Run, Text, Write};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// What a tool is to do, once it may.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    Read(Read),
    Write(Write),
    Edit(Edit),
    Remove(Remove),
    Glob(Glob),
    Grep(Grep),
    Run(Run),
    Memory(Memory),
    /// A program of the manifest's, with these first words.
    Own {
        command: Vec<String>,
        arguments: Value,
    },
    /// The host does it.
    Host,
}

/// One call, as the agent asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub id: u64,
    pub tool: String,
    /// JSON, as it came.
    pub params: String,
    pub work: Work,
    /// The agent gets a reference to the result, not the result.
    pub sealed: bool,
}

/// Why there is no result: `error` of the JSON-RPC answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    pub code: Code,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<FaultData>>,
}

/// What stands beside a fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum FaultData {
    Refused(Refused),
    /// The call was let through, and failed.
    Receipt {
        receipt: u64,
    },
}

impl Fault {
    /// A fault in words.
    pub fn new(code: Code, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), data: None }
    }

    /// The host's refusal.
    pub fn refused(refused: Refused) -> Fault {
        let message = format!("refused by rule `{}`: {}", refused.rule, refused.why);
        Fault { code: Code::DENIED, message, data: Some(Box::new(FaultData::Refused(refused))) }
    }

    /// A call that was let through and failed.
    pub fn failed(receipt: u64, message: String) -> Fault {
        Fault { code: Code::FAILED, message, data: Some(Box::new(FaultData::Receipt { receipt })) }
    }
}

/// A line's members; `params` as they came.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    jsonrpc: String,
    id: u64,
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Parses one line. `programs` are the manifest's own tools. With a fault comes the call's id, where it could be read.
pub fn parse(line: &[u8], programs: &[(String, Vec<String>)]) -> Result<Request, (Option<u64>, Fault)> {
    let wrong = |message: String| {
        let message = format!("not a JSON-RPC 2.0 call with a numeric id: {message}");
        (None, Fault::new(Code::INVALID_REQUEST, message))
    };
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
    if line.jsonrpc != "2.0" {
        return Err(wrong(format!("jsonrpc is `{}`", shown(&line.jsonrpc))));
    }
    let id = line.id;
    request(line, programs).map_err(|fault| (Some(id), fault))
}

fn request(line: Line<'_>, programs: &[(String, Vec<String>)]) -> Result<Request, Fault> {
    let unknown = || Fault::new(Code::UNKNOWN_METHOD, format!("no tool is called `{}`", shown(&line.method)));
    let tool = line.method.strip_prefix("tool.").ok_or_else(unknown)?;
    let params = line.params.map_or("{}", RawValue::get);
    if params.len() > limits::TOOL_PARAMS_BYTES_MAX {
        let most = limits::TOOL_PARAMS_BYTES_MAX;
        return Err(Fault::new(Code::LIMIT, format!("params: at most {most} bytes are allowed")));
    }
    let mut members = Members::of(params)?;
    let sealed = members.flag("sealed")?;
    let work = match programs.iter().find(|(name, _)| name == tool) {
        Some((_, command)) => Work::Own { command: command.clone(), arguments: members.value("arguments")? },
        None => built_in(tool, &mut members, sealed)?.ok_or_else(unknown)?,
    };
    members.none_is_left(&work, sealed)?;
    check(&work)?;
    Ok(Request { id: line.id, tool: tool.to_owned(), params: params.to_owned(), work, sealed })
}

/// The parameters, taken one by one. By hand: what serde derives for as many types takes a fifteenth of this whole program.
struct Members(Map<String, Value>);

fn wrong(name: &str, rule: &str) -> Fault {
    Fault::new(Code::INVALID_PARAMS, format!("params: {name}: {rule}"))
}

impl Members {
    fn of(params: &str) -> Result<Members, Fault> {
        match serde_json::from_str(params) {
            Ok(Value::Object(members)) => Ok(Members(members)),
            Ok(_) => Err(Fault::new(Code::INVALID_PARAMS, "params: must be an object, parameters by name")),
            Err(error) => Err(Fault::new(Code::INVALID_PARAMS, format!("params: {error}"))),
        }
    }

    fn optional<T>(
        &mut self,
        name: &str,
        rule: &str,
        take: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(value) => take(value).map(Some).ok_or_else(|| wrong(name, rule)),
        }
    }

    /// A parameter that may be said not to be there.
    fn nullable(&mut self, name: &str) -> &mut Members {
        if self.0.get(name).is_some_and(Value::is_null) {
            self.0.remove(name);
        }
        self
    }

    fn value(&mut self, name: &str) -> Result<Value, Fault> {
        self.0.remove(name).ok_or_else(|| wrong(name, "is missing"))
    }

    fn maybe_string(&mut self, name: &str) -> Result<Option<String>, Fault> {
        self.optional(name, "must be a text", string)
    }

    fn string(&mut self, name: &str) -> Result<String, Fault> {
        self.maybe_string(name)?.ok_or_else(|| wrong(name, "is missing"))
    }

    fn number(&mut self, name: &str) -> Result<Option<u64>, Fault> {
        self.optional(name, "must be a number, not negative", |value| value.as_u64())
    }

    fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        Ok(self.optional(name, "must be true or false", |value| value.as_bool())?.unwrap_or(false))
    }

    fn maybe_text(&mut self, name: &str) -> Result<Option<Text>, Fault> {
        self.optional(name, "must be a text, or `{\"value\": N}` for an earlier result", |value| {
            match tools::reference(&value) {
                Some(value) => Some(Text::Reference { value }),
                None => string(value).map(Text::Clear),
            }
        })
    }

    fn text(&mut self, name: &str) -> Result<Text, Fault> {
        self.maybe_text(name)?.ok_or_else(|| wrong(name, "is missing"))
    }

    fn words(&mut self, name: &str) -> Result<Vec<String>, Fault> {
        let words = self.optional(name, "must be a list of texts", |value| match value {
            Value::Array(items) => items.into_iter().map(string).collect(),
            _ => None,
        })?;
        words.ok_or_else(|| wrong(name, "is missing"))
    }

    /// What no tool takes is refused, and `sealed` where there is nothing to seal.
    fn none_is_left(&self, work: &Work, sealed: bool) -> Result<(), Fault> {
        let unsealed = matches!(work, Work::Write(_) | Work::Edit(_) | Work::Remove(_));
        match self.0.keys().next() {
            Some(name) => Err(wrong(&shown(name), "there is no such parameter")),
            None if sealed && unsealed => Err(wrong("sealed", "there is no such parameter")),
            None => Ok(()),
        }
    }
}

fn string(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn built_in(tool: &str, members: &mut Members, sealed: bool) -> Result<Option<Work>, Fault> {
    Ok(Some(match tool {
        "read" => Work::Read(Read {
            path: members.string("path")?,
            offset: members.number("offset")?.unwrap_or(0),
            length: members.nullable("length").number("length")?,
            sealed,
        }),
        "write" => Work::Write(Write {
            path: members.string("path")?,
            content: members.text("content")?,
            append: members.flag("append")?,
            executable: members.flag("executable")?,
        }),
        "edit" => Work::Edit(Edit {
            path: members.string("path")?,
            old: members.string("old")?,
            new: members.text("new")?,
            count: match members.nullable("count").number("count")?.map(u32::try_from) {
                Some(Err(_)) => return Err(wrong("count", "is too large")),
                Some(Ok(count)) => Some(count),
                None => None,
            },
        }),
        "remove" => Work::Remove(Remove { path: members.string("path")? }),
        "glob" => {
            Work::Glob(Glob { pattern: members.string("pattern")?, path: members.string("path")?, sealed })
        }
        "grep" => Work::Grep(Grep {
            text: members.string("text")?,
            path: members.string("path")?,
            ignore_case: members.flag("ignore_case")?,
            sealed,
        }),
        "run" => Work::Run(Run {
            command: members.words("command")?,
            stdin: members.nullable("stdin").maybe_text("stdin")?,
            workdir: members.nullable("workdir").maybe_string("workdir")?,
            timeout_ms: members.nullable("timeout_ms").number("timeout_ms")?,
            sealed,
        }),
        "memory" => Work::Memory(Memory {
            method: members.string("method")?,
            params: members.value("params")?,
            sealed,
        }),
        // The host does these, and looks at their parameters.
        "fetch" | "submit" => {
            members.0.clear();
            Work::Host
        }
        _ => return Ok(None),
    }))
}

fn check(work: &Work) -> Result<(), Fault> {
    let wrong = |message: &str| Err(Fault::new(Code::INVALID_PARAMS, message));
    match work {
        Work::Read(Read { path, .. })
        | Work::Write(Write { path, .. })
        | Work::Edit(Edit { path, .. })
        | Work::Remove(Remove { path })
            if path == "/" || !is_plain(path) =>
        {
            wrong("path: must be absolute, without empty, `.` or `..` parts, and not `/`")
        }
        Work::Edit(Edit { old, count, .. }) if old.is_empty() || *count == Some(0) => {
            wrong("old, count: neither may be empty or 0")
        }
        Work::Glob(Glob { path, .. }) | Work::Grep(Grep { path, .. }) if !is_plain(path) => {
            wrong("path: must be absolute, without empty, `.` or `..` parts")
        }
        Work::Glob(Glob { path, pattern, .. }) if below(path, pattern).is_none() => {
            wrong("pattern: components with `*`, or `**` for any number of them, relative to path")
        }
        Work::Grep(Grep { text, .. }) if text.is_empty() || text.contains('\n') => {
            wrong("text: must be part of one line")
        }
        Work::Run(run) => check_run(run),
        Work::Memory(Memory { method, .. }) if !method.starts_with("memory.") => {
            wrong("method: must be one of memory")
        }
        _ => Ok(()),
    }
}

fn check_run(run: &Run) -> Result<(), Fault> {
    let wrong = |message: &str| Err(Fault::new(Code::INVALID_PARAMS, message));
    let program = run.command.first().map_or("", String::as_str);
    let word_ok = |word: &String| word.len() <= limits::COMMAND_ARG_BYTES_MAX && !word.contains('\0');
    if program.is_empty()
        || run.command.len() > limits::COMMAND_ARGS_MAX
        || !run.command.iter().all(word_ok)
        || (program.contains('/') && !is_plain(program))
    {
        return wrong(
            "command: 1 to 64 words, first the program: a name, or an absolute path in one spelling",
        );
    }
    match &run.workdir {
        Some(workdir) if !is_plain(workdir) => {
            wrong("workdir: must be absolute, without empty, `.` or `..` parts")
        }
        _ => Ok(()),
    }
}

/// A pattern that is relative to a directory, as one of absolute paths. A `*` in the directory itself stands for no other character.
pub fn below(directory: &str, pattern: &str) -> Option<PathPattern> {
    let from_it = if directory.contains('*') { "" } else { directory.trim_end_matches('/') };
    let wide = if directory.contains('*') { "/**" } else { "" };
    format!("{from_it}{wide}/{pattern}").parse().ok()
}

/// The host's answer to a call. In one place of the program, since what serde derives for it is large.
#[inline(never)]
pub fn answer(frame: &Frame) -> Result<Answer, FrameError> {
    frame.parse()
}

/// An order to run something, from the host or the tools process; likewise.
#[inline(never)]
pub fn exec(frame: &Frame) -> Result<Exec, FrameError> {
    frame.parse()
}

impl Work {
    /// The results that it takes by reference.
    pub fn references(&self) -> Vec<u32> {
        let text = |text: &Text| text.reference().into_iter().collect();
        match self {
            Work::Write(write) => text(&write.content),
            Work::Edit(edit) => text(&edit.new),
            Work::Run(run) => run.stdin.as_ref().map(text).unwrap_or_default(),
            Work::Own { arguments, .. } => tools::references(arguments),
            _ => Vec::new(),
        }
    }
}

#[derive(Serialize)]
struct Reply<'a> {
    jsonrpc: Version,
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Done>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Fault>,
}

/// The line that answers a call.
pub fn reply(id: Option<u64>, outcome: &Result<Done, Fault>) -> Vec<u8> {
    let (result, error) = (outcome.as_ref().ok(), outcome.as_ref().err());
    // Neither holds anything that JSON cannot say; an empty line would be no answer, and ends nothing.
    let mut line = serde_json::to_vec(&Reply { jsonrpc: Version::V2, id, result, error }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Bytes as a member of a result: `text`, or `base64` where they are none.
pub fn said(bytes: &[u8]) -> (&'static str, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => ("text", Value::from(text)),
        Err(_) => ("base64", Value::from(base64(bytes))),
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * place)) as usize & 63).copied().unwrap_or(b'=');
            text.push(if place > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(method: &str, params: &str) -> Result<Request, Fault> {
        let line = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#);
        let programs = [("deploy".to_owned(), vec!["/app/deploy".to_owned(), "-n".to_owned()])];
        parse(line.as_bytes(), &programs).map_err(|(id, fault)| {
            assert_eq!(id, Some(7));
            fault
        })
    }

    #[test]
    fn parameters_reach_the_host_as_they_were_written() {
        let params = "{ \"path\" : \"/work/\\u0061\",  \"offset\":1 }";
        let request = parsed("tool.read", params).unwrap();
        assert_eq!((request.id, request.tool.as_str(), request.params.as_str()), (7, "read", params));
        assert!(matches!(request.work, Work::Read(Read { path, offset: 1, .. }) if path == "/work/a"));
        let own = parsed("tool.deploy", r#"{"arguments":{"to":{"value":4}},"sealed":true}"#).unwrap();
        assert!(own.sealed && own.work.references() == [4]);
    }

    #[test]
    fn each_wrong_call_is_refused_and_says_why() {
        for (method, params, code, word) in [
            ("read", "{}", Code::UNKNOWN_METHOD, "`read`"),
            ("tool.shell", "{}", Code::UNKNOWN_METHOD, "tool.shell"),
            ("tool.read", "{}", Code::INVALID_PARAMS, "path"),
            ("tool.read", r#"{"path":"a"}"#, Code::INVALID_PARAMS, "path"),
            ("tool.read", r#"{"path":"/a/../b"}"#, Code::INVALID_PARAMS, "path"),
            ("tool.read", r#"{"path":"/a//b"}"#, Code::INVALID_PARAMS, "path"),
            ("tool.read", r#"{"path":"/"}"#, Code::INVALID_PARAMS, "path"),
            ("tool.read", r#"{"path":"/a\u0000b"}"#, Code::INVALID_PARAMS, "path"),
            ("tool.read", r#"{"path":"/a","allowed":true}"#, Code::INVALID_PARAMS, "allowed"),
            ("tool.read", r#"["/a"]"#, Code::INVALID_PARAMS, "object"),
            ("tool.read", r#"{"path":"/a","length":-1}"#, Code::INVALID_PARAMS, "length"),
            ("tool.write", r#"{"path":"/a","content":"x","sealed":true}"#, Code::INVALID_PARAMS, "sealed"),
            ("tool.write", r#"{"path":"/a","content":{"value":1,"x":2}}"#, Code::INVALID_PARAMS, "content"),
            (
                "tool.edit",
                r#"{"path":"/a","old":"x","new":"y","count":4294967296}"#,
                Code::INVALID_PARAMS,
                "count",
            ),
            ("tool.run", r#"{"command":["x",1]}"#, Code::INVALID_PARAMS, "command"),
            ("tool.edit", r#"{"path":"/a","old":"","new":"x"}"#, Code::INVALID_PARAMS, "old"),
            ("tool.glob", r#"{"path":"/a","pattern":"../*"}"#, Code::INVALID_PARAMS, "pattern"),
            ("tool.grep", r#"{"path":"/a","text":"x\ny"}"#, Code::INVALID_PARAMS, "text"),
            ("tool.run", r#"{"command":[]}"#, Code::INVALID_PARAMS, "command"),
            ("tool.run", r#"{"command":["./x"]}"#, Code::INVALID_PARAMS, "command"),
            ("tool.run", r#"{"command":["x"],"workdir":"y"}"#, Code::INVALID_PARAMS, "workdir"),
            ("tool.memory", r#"{"method":"ledger.tail","params":{}}"#, Code::INVALID_PARAMS, "method"),
        ] {
            let fault = parsed(method, params).unwrap_err();
            assert_eq!(fault.code, code, "{method} {params}");
            assert!(fault.message.contains(word), "{method} {params}: {}", fault.message);
        }
        let long = format!(r#"{{"note":"{}"}}"#, "x".repeat(limits::TOOL_PARAMS_BYTES_MAX));
        assert_eq!(parsed("tool.submit", &long).unwrap_err().code, Code::LIMIT);
    }

    /// What abi's types take is taken, and what they refuse is refused: the host reads with them.
    #[test]
    fn parameters_are_read_as_the_host_reads_them() {
        use abi::tools::{Edit, Glob, Grep, Memory, Read, Remove, Run, Write};
        fn host<T: serde::de::DeserializeOwned>(params: &str) -> bool {
            serde_json::from_str::<T>(params).is_ok()
        }
        type Compared = (&'static str, fn(&str) -> bool, &'static [(&'static str, &'static str)]);
        let tools: [Compared; 8] = [
            ("read", host::<Read>, &[("path", "\"/a\"")]),
            ("write", host::<Write>, &[("path", "\"/a\""), ("content", "\"x\"")]),
            ("edit", host::<Edit>, &[("path", "\"/a\""), ("old", "\"x\""), ("new", "\"y\"")]),
            ("remove", host::<Remove>, &[("path", "\"/a\"")]),
            ("glob", host::<Glob>, &[("path", "\"/a\""), ("pattern", "\"*\"")]),
            ("grep", host::<Grep>, &[("path", "\"/a\""), ("text", "\"x\"")]),
            ("run", host::<Run>, &[("command", "[\"x\"]")]),
            ("memory", host::<Memory>, &[("method", "\"memory.get\""), ("params", "{}")]),
        ];
        let names = [
            "path",
            "content",
            "old",
            "new",
            "pattern",
            "text",
            "command",
            "method",
            "params",
            "sealed",
            "offset",
            "length",
            "append",
            "executable",
            "count",
            "ignore_case",
            "stdin",
            "workdir",
            "timeout_ms",
            "other",
        ];
        let values = [
            "\"/a\"",
            "1",
            "-1",
            "1.5",
            "true",
            "{\"value\":1}",
            "{\"value\":1,\"x\":1}",
            "[\"x\"]",
            "[1]",
            "{}",
            "null",
        ];
        let mut compared = 0;
        for (tool, host, needed) in tools {
            for name in names {
                for value in values {
                    let others = needed.iter().filter(|(other, _)| *other != name);
                    let mut members: Vec<String> = others.map(|(n, v)| format!("\"{n}\":{v}")).collect();
                    members.push(format!("\"{name}\":{value}"));
                    let params = format!("{{{}}}", members.join(","));
                    let here = parsed(&format!("tool.{tool}"), &params);
                    // What only the guest looks into: spelling, emptiness.
                    if here.is_ok() != host(&params) {
                        let rule = here.as_ref().err().map_or("", |fault| &fault.message);
                        assert!(host(&params) && !rule.starts_with("params"), "{tool} {params}: {here:?}");
                    }
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 8 * 20 * 11);
    }

    #[test]
    fn lines_that_are_no_calls_are_refused() {
        for line in [
            "",
            "x",
            "[]",
            r#"{"jsonrpc":"2.0","method":"tool.read"}"#,
            r#"{"jsonrpc":"2.0","id":"x","method":"tool.read"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"tool.read"}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"tool.read"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tool.read"} {}"#,
        ] {
            let (id, fault) = parse(line.as_bytes(), &[]).unwrap_err();
            assert_eq!((id, fault.code), (None, Code::INVALID_REQUEST), "{line}");
        }
    }

    #[test]
    fn a_pattern_stands_below_its_directory() {
        let admits = |directory: &str, pattern: &str, path: &str| {
            below(directory, pattern).is_some_and(|pattern| pattern.admits(path))
        };
        assert!(admits("/work", "**/*.rs", "/work/src/a/b.rs") && admits("/", "etc/*", "/etc/x"));
        assert!(!admits("/work", "*.rs", "/work/src/b.rs") && !admits("/work", "**", "/workshop"));
    }

    #[test]
    fn bytes_are_text_or_base64() {
        assert_eq!(said("ü".as_bytes()), ("text", Value::from("ü")));
        for (bytes, expected) in [
            (&[0xff][..], "/w=="),
            (&[0xff, 0xfe], "//4="),
            (&[0xff, 0xfe, 0xfd], "//79"),
            (&[0xff; 4], "/////w=="),
        ] {
            assert_eq!(said(bytes), ("base64", Value::from(expected)));
        }
    }

    #[test]
    fn an_answer_is_one_line_with_text_of_others_in_its_data_alone() {
        let receipt =
            Refused { receipt: Some(3), rule: "path".into(), why: "no".into(), remedy: "ask".into() };
        let line = String::from_utf8(reply(Some(1), &Err(Fault::refused(receipt)))).unwrap();
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&answer["error"]["code"], &answer["error"]["data"]["rule"]),
            (&(-32001).into(), &"path".into())
        );
        let data = Some(serde_json::json!({"text": "a\nb\"}"}));
        let labels = abi::exposure::Exposure::UNTRUSTED_CONTENT;
        let line =
            reply(Some(1), &Ok(Done { value: 1, receipt: 2, labels, data: data.clone(), is_cut: false }));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let answer: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(Some(answer["result"]["data"].clone()), data);
    }
}
