//! What a call asks for, read from its parameters as they came. Pure.
//!
//! Must hold: what it finds is what the guest finds, which reads the same text by itself (the fuzz target `tools` compares them); a path, a
//! program and a page have one spelling, or the call is refused; what people are shown of it cannot steer their terminal. Must never: look
//! at anything but the text.

use abi::authority::{Operation, Target, Tool, is_plain};
use abi::ids::{HostName, Name};
use abi::tools::{self, BUILT_IN, Text};
use abi::{limits, tools as params};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Longest part of a page's address below its host.
const PAGE_PATH_BYTES_MAX: usize = 2048;

/// Who does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// The guest, once it may.
    Guest,
    /// The guest, at the agent's memory, whose own grants decide.
    Memory,
    /// egress: the page in its one spelling.
    Fetch { url: String },
    /// Whoever judges the tree.
    Submit { note: String },
}

/// A call that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Absent where the operation is none that rules are written about.
    pub operation: Option<Operation>,
    pub target: Target,
    pub job: Job,
    /// Values whose content flows into it.
    pub references: Vec<u32>,
    pub sealed: bool,
    /// It may change files.
    pub writes: bool,
    /// Its result may hold what is in files.
    pub reads: bool,
    /// The agent's image computes it, not the verifier.
    pub is_program: bool,
    /// What will happen, to what.
    pub what: String,
    /// The arguments, for people; and whether that is not all of them.
    pub shown: String,
    pub is_cut: bool,
}

/// Why it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub why: String,
    pub remedy: String,
}

fn malformed(why: impl Into<String>, remedy: impl Into<String>) -> Malformed {
    Malformed { why: why.into(), remedy: remedy.into() }
}

fn typed<T: DeserializeOwned>(call: &tools::Call) -> Result<T, Malformed> {
    // Types with names take a list, too, in the order of their fields: the guest does not, and nobody is to read parameters by their order.
    if !call.params.trim_start().starts_with('{') {
        let why =
            harmless(&format!("parameters of {}: they are no object", call.tool), limits::REASON_CHARS_MAX);
        return Err(malformed(why, "give parameters by name; docs/tools.md has those of each tool"));
    }
    serde_json::from_str(&call.params).map_err(|error| {
        let why = harmless(&format!("parameters of {}: {error}", call.tool), limits::REASON_CHARS_MAX);
        malformed(why, "docs/tools.md has the parameters of each tool")
    })
}

fn plain(path: String) -> Result<String, Malformed> {
    if is_plain(&path) {
        return Ok(path);
    }
    let shown = harmless(&path, 200);
    Err(malformed(
        format!("`{shown}` is no path in its one spelling"),
        "write an absolute path without `.`, `..`, empty parts and control characters",
    ))
}

impl Reading {
    fn of(operation: Operation, target: Target, what: String) -> Reading {
        Reading {
            operation: Some(operation),
            target,
            job: Job::Guest,
            references: Vec::new(),
            sealed: false,
            writes: false,
            reads: false,
            is_program: false,
            what,
            shown: String::new(),
            is_cut: false,
        }
    }

    fn at(operation: Operation, path: String, verb: &str) -> Result<Reading, Malformed> {
        let path = plain(path)?;
        let what = format!("{verb} {path}");
        Ok(Reading::of(operation, Target::Path(path), what))
    }

    fn showing(mut self, text: &str) -> Reading {
        (self.shown, self.is_cut) = shown(text);
        self
    }

    /// The target as the ledger has it.
    pub fn target_in_words(&self) -> String {
        let words = match &self.target {
            Target::Path(path) => path.clone(),
            Target::Command(command) => command.join(" "),
            Target::Page { name, port, path } => format!("{name}:{port}{path}"),
            Target::Agent(agent) => agent.to_string(),
            Target::Arguments => String::new(),
        };
        let mut words = harmless(&words, 512);
        while words.len() > 512 {
            words.pop();
        }
        words
    }
}

/// Reads a call. `own`: the tools that the manifest names.
pub fn read(call: &tools::Call, own: &BTreeMap<Name, Tool>) -> Result<Reading, Malformed> {
    use Operation::{EditFiles, GlobSearch, GrepSearch, ReadFiles, RunBash, WriteFiles};
    match call.tool.as_str() {
        "read" => {
            let read: params::Read = typed(call)?;
            Ok(Reading { sealed: read.sealed, reads: true, ..Reading::at(ReadFiles, read.path, "read")? }
                .showing(&call.params))
        }
        "write" => {
            let write: params::Write = typed(call)?;
            let verb = if write.append { "add to" } else { "write" };
            let reading = Reading::at(WriteFiles, write.path, verb)?;
            let text = format!("{}{}", marks(write.executable), marked('+', &write.content));
            Ok(Reading {
                references: write.content.reference().into_iter().collect(),
                writes: true,
                ..reading
            }
            .showing(&text))
        }
        "edit" => {
            let edit: params::Edit = typed(call)?;
            let reading = Reading::at(EditFiles, edit.path, "edit")?;
            let times = edit.count.map_or(String::new(), |count| format!("@@ in {count} places @@\n"));
            let old = marked('-', &Text::Clear(edit.old));
            let text = format!("{times}{old}{}", marked('+', &edit.new));
            Ok(Reading { references: edit.new.reference().into_iter().collect(), writes: true, ..reading }
                .showing(&text))
        }
        "remove" => {
            let remove: params::Remove = typed(call)?;
            Ok(Reading { writes: true, ..Reading::at(WriteFiles, remove.path, "remove")? })
        }
        "glob" => {
            let glob: params::Glob = typed(call)?;
            let reading = Reading::at(GlobSearch, glob.path, "list paths below")?;
            Ok(Reading { sealed: glob.sealed, reads: true, ..reading }.showing(&call.params))
        }
        "grep" => {
            let grep: params::Grep = typed(call)?;
            let reading = Reading::at(GrepSearch, grep.path, "search below")?;
            Ok(Reading { sealed: grep.sealed, reads: true, ..reading }.showing(&call.params))
        }
        "run" => run(call, RunBash),
        "fetch" => fetch(call),
        "memory" => {
            let memory: params::Memory = typed(call)?;
            let what = format!("memory: {}", harmless(&memory.method, 64));
            let reading = Reading::of(Operation::ReadFiles, Target::Arguments, what);
            let reading = Reading { operation: None, job: Job::Memory, sealed: memory.sealed, ..reading };
            Ok(reading.showing(&call.params))
        }
        "submit" => {
            let submit: params::Submit = typed(call)?;
            let mut note = submit.note;
            note.truncate(note.floor_char_boundary(limits::NOTE_BYTES_MAX));
            let reading = Reading::of(Operation::ReadFiles, Target::Arguments, "submit the tree".into());
            Ok(Reading { operation: None, job: Job::Submit { note: note.clone() }, ..reading }.showing(&note))
        }
        name => own_tool(name, call, own),
    }
}

fn run(call: &tools::Call, operation: Operation) -> Result<Reading, Malformed> {
    let run: params::Run = typed(call)?;
    let bad = |word: &String| word.len() > limits::COMMAND_ARG_BYTES_MAX || word.contains('\0');
    if run.command.first().is_none_or(String::is_empty)
        || run.command.len() > limits::COMMAND_ARGS_MAX
        || run.command.iter().any(bad)
    {
        let (args, bytes) = (limits::COMMAND_ARGS_MAX, limits::COMMAND_ARG_BYTES_MAX);
        return Err(malformed(
            "that is no command",
            format!("give a program and its arguments, at most {args} of {bytes} bytes, without NUL"),
        ));
    }
    if let Some(workdir) = run.workdir {
        plain(workdir)?;
    }
    let what = format!("run {}", harmless(&run.command.join(" "), 400));
    let references = run.stdin.iter().filter_map(Text::reference).collect();
    let reading = Reading::of(operation, Target::Command(run.command), what);
    let reading =
        Reading { references, sealed: run.sealed, writes: true, reads: true, is_program: true, ..reading };
    Ok(reading.showing(&call.params))
}

fn own_tool(name: &str, call: &tools::Call, own: &BTreeMap<Name, Tool>) -> Result<Reading, Malformed> {
    let tool =
        name.parse::<Name>().ok().and_then(|name| own.get(&name)).filter(|tool| tool.command.is_some());
    let Some(tool) = tool else {
        let built_in = BUILT_IN.iter().map(|(name, _)| *name);
        let all: Vec<&str> = built_in.chain(own.keys().map(|name| name.as_str())).collect();
        let shown = harmless(name, 64);
        return Err(malformed(
            format!("there is no tool `{shown}`"),
            format!("use one of {}, or name it with a command in [tools] of the manifest", all.join(", ")),
        ));
    };
    let own: params::Own = typed(call)?;
    let references = tools::references(&own.arguments);
    let reading = Reading::of(tool.operation, Target::Arguments, format!("use {name}"));
    Ok(Reading { references, sealed: own.sealed, writes: true, reads: true, is_program: true, ..reading }
        .showing(&call.params))
}

fn fetch(call: &tools::Call) -> Result<Reading, Malformed> {
    let fetch: params::Fetch = typed(call)?;
    let (scheme, name, port, path) = page(&fetch.url).ok_or_else(|| {
        let shown = harmless(&fetch.url, 200);
        malformed(
            format!("`{shown}` is no address of a page"),
            "write https://NAME[:PORT]/PATH, or http://, without user, fragment, blanks and characters beyond ASCII",
        )
    })?;
    let url = format!("{scheme}://{name}:{port}{path}");
    let what = format!("GET {url}");
    let reading = Reading::of(Operation::WebFetch, Target::Page { name, port, path }, harmless(&what, 400));
    Ok(Reading { job: Job::Fetch { url: url.clone() }, sealed: fetch.sealed, ..reading }.showing(&url))
}

/// The parts of an address, which together spell it in one way.
fn page(url: &str) -> Option<(&'static str, HostName, u16, String)> {
    let (scheme, port, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => ("https", 443, rest),
        (None, Some(rest)) => ("http", 80, rest),
        (None, None) => return None,
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at_checked(end)?;
    let (name, port) = match host.split_once(':') {
        Some((name, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            (name, digits.parse().ok().filter(|port| *port > 0)?)
        }
        Some(_) => return None,
        None => (host, port),
    };
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let is_good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'#' | b'\\' | b'"' | b'<' | b'>');
    if path.len() > PAGE_PATH_BYTES_MAX || !path.bytes().all(is_good) {
        return None;
    }
    Some((scheme, name.parse().ok()?, port, path))
}

fn marks(executable: bool) -> &'static str {
    if executable { "@@ may be executed @@\n" } else { "" }
}

/// The lines of a text, as a diff has them.
fn marked(mark: char, text: &Text) -> String {
    match text {
        Text::Clear(text) => text.lines().map(|line| format!("{mark}{line}\n")).collect(),
        Text::Reference { value } => format!("{mark}(what result {value} holds, which is in the guest)\n"),
    }
}

/// One line that does nothing to a terminal.
pub fn harmless(text: &str, chars_max: usize) -> String {
    text.chars().map(|c| if is_odd(c) { '\u{fffd}' } else { c }).take(chars_max).collect()
}

/// Whether it moves the cursor, turns the direction of writing, or is not seen.
fn is_odd(c: char) -> bool {
    let unseen = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    c.is_control() || unseen
}

/// As much of a text as a question shows, with what is odd in it spelled out; and whether that is not all.
fn shown(text: &str) -> (String, bool) {
    let (mut out, mut as_json) = (String::new(), 0);
    for c in text.chars() {
        let before = out.len();
        match c {
            '\n' | '\t' => out.push(c),
            c if is_odd(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
        // A question goes as one line of JSON, where these take two bytes.
        as_json += out.len() - before + usize::from(is_odd(c) || matches!(c, '"' | '\\'));
        if as_json > limits::APPROVAL_SHOWN_BYTES_MAX {
            out.truncate(before);
            return (out, true);
        }
    }
    (out, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(tool: &str, params: serde_json::Value) -> tools::Call {
        tools::Call { tool: tool.into(), params: params.to_string() }
    }

    fn own() -> BTreeMap<Name, Tool> {
        let tool = Tool {
            operation: Operation::CreatePr,
            risk: abi::authority::Risk::High,
            command: Some(vec!["/app/pr".into()]),
        };
        BTreeMap::from([("open_pr".parse().unwrap(), tool)])
    }

    #[test]
    fn each_tool_is_read_as_what_it_does() {
        for (tool, params, operation, target) in [
            ("read", json!({"path": "/a"}), Some(Operation::ReadFiles), Target::Path("/a".into())),
            (
                "write",
                json!({"path": "/a", "content": "x"}),
                Some(Operation::WriteFiles),
                Target::Path("/a".into()),
            ),
            (
                "edit",
                json!({"path": "/a", "old": "x", "new": "y"}),
                Some(Operation::EditFiles),
                Target::Path("/a".into()),
            ),
            ("remove", json!({"path": "/a"}), Some(Operation::WriteFiles), Target::Path("/a".into())),
            (
                "glob",
                json!({"path": "/a", "pattern": "*"}),
                Some(Operation::GlobSearch),
                Target::Path("/a".into()),
            ),
            (
                "grep",
                json!({"path": "/a", "text": "x"}),
                Some(Operation::GrepSearch),
                Target::Path("/a".into()),
            ),
            ("run", json!({"command": ["ls"]}), Some(Operation::RunBash), Target::Command(vec!["ls".into()])),
            ("open_pr", json!({"arguments": {"a": 1}}), Some(Operation::CreatePr), Target::Arguments),
            ("memory", json!({"method": "memory.get", "params": {}}), None, Target::Arguments),
            ("submit", json!({"note": "done"}), None, Target::Arguments),
        ] {
            let reading = read(&call(tool, params), &own()).unwrap();
            assert_eq!((reading.operation, reading.target), (operation, target), "{tool}");
        }
    }

    #[test]
    fn what_has_no_one_spelling_is_refused() {
        for path in ["", "a", "/a/../b", "/a//b", "/a/", "/./a", "/a\nb"] {
            for tool in ["read", "remove"] {
                read(&call(tool, json!({"path": path})), &own()).unwrap_err();
            }
        }
        for params in [
            json!({"path": "/a", "more": 1}),
            json!({}),
            json!({"path": 1}),
            json!([]),
            json!(["/a", 0, null, true]),
        ] {
            read(&call("read", params), &own()).unwrap_err();
        }
        let twice =
            tools::Call { tool: "read".into(), params: r#"{"path":"/a","path":"/etc/shadow"}"#.into() };
        read(&twice, &own()).unwrap_err();
        for command in [json!([]), json!([""]), json!(["a\0b"])] {
            read(&call("run", json!({"command": command})), &own()).unwrap_err();
        }
        for tool in ["nothing", "tool.read", "READ", "", "spawn"] {
            let wrong = read(&call(tool, json!({})), &own()).unwrap_err();
            assert!(wrong.remedy.contains("open_pr") && !wrong.remedy.contains("spawn"), "{wrong:?}");
        }
    }

    #[test]
    fn a_page_is_spelled_in_one_way_and_names_its_host() {
        let url = |url: &str| read(&call("fetch", json!({"url": url})), &own()).map(|reading| reading.job);
        for (from, to) in [
            ("https://Docs.RS", "https://docs.rs:443/"),
            ("https://docs.rs?a=b", "https://docs.rs:443/?a=b"),
            ("http://docs.rs:8080/a/%2e", "http://docs.rs:8080/a/%2e"),
        ] {
            assert_eq!(url(from), Ok(Job::Fetch { url: to.into() }));
        }
        for wrong in [
            "ftp://docs.rs/",
            "https://user@docs.rs/",
            "https://good.example\\@evil.example/",
            "https://docs.rs:/",
            "https://docs.rs:0/",
            "https://docs.rs:99999/",
            "https://10.0.0.1/",
            "https://localhost/",
            "https://docs.rs/a b",
            "https://docs.rs/#x",
            "https://docs.rs/\u{e9}",
            "https://docs.rs/a\r\nHost: evil",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn references_are_seen_wherever_a_text_may_stand() {
        let value = json!({"value": 7});
        for (tool, params) in [
            ("write", json!({"path": "/a", "content": value})),
            ("edit", json!({"path": "/a", "old": "x", "new": value})),
            ("run", json!({"command": ["cat"], "stdin": value})),
            ("open_pr", json!({"arguments": value})),
            ("open_pr", json!({"arguments": {"body": [{"text": value}]}})),
        ] {
            assert_eq!(read(&call(tool, params), &own()).unwrap().references, [7], "{tool}");
        }
    }

    #[test]
    fn a_question_shows_changes_as_a_diff_and_cannot_steer_a_terminal() {
        let edit = json!({"path": "/a", "old": "one\ntwo", "new": "three\u{1b}[2J\u{202e}"});
        let reading = read(&call("edit", edit), &own()).unwrap();
        assert_eq!(reading.shown, "-one\n-two\n+three\\u{1b}[2J\\u{202e}\n");
        let long = "\u{1b}".repeat(limits::APPROVAL_SHOWN_BYTES_MAX);
        let reading = read(&call("write", json!({"path": "/a", "content": long})), &own()).unwrap();
        assert!(reading.is_cut && reading.shown.len() <= limits::APPROVAL_SHOWN_BYTES_MAX);
    }
}
