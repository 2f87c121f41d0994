//! What an agent says to the tools in its guest, and how guest and host read it.
//!
//! Looks for: a panic, lines that depend on the pieces in which bytes come, a fault that is no line, a call that the host decides as another
//! one than the guest does, a reference that is left out of either, and an answer that is another one when written.

#![no_main]

use abi::authority::{Operation, Risk, Target, Tool};
use abi::guest::{Frame, Kind};
use abi::ids::Name;
use abi::tools::{self, BUILT_IN};
use abi::limits;
use cage::desk::reading::{self, Job, Reading};
use libfuzzer_sys::fuzz_target;
use rustix::event::PollFlags;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use verifier::call::{self, Request, Work};
use verifier::values::filled;

/// As the guest has it: in its own program, so by its file.
#[path = "../../cage/verifier/src/tools/connection.rs"]
#[expect(dead_code, reason = "the target takes lines, and answers nothing")]
mod connection;

use connection::{Connection, TooLong};

/// The manifest's own tool.
const OWN: &str = "deploy";

static PROGRAMS: LazyLock<Vec<(String, Vec<String>)>> = LazyLock::new(|| vec![(OWN.into(), vec!["/app/deploy".into()])]);
static TOOLS: LazyLock<BTreeMap<Name, Tool>> = LazyLock::new(|| {
    let command = Some(vec!["/app/deploy".to_owned()]);
    BTreeMap::from([(OWN.parse().unwrap(), Tool { operation: Operation::CreatePr, risk: Risk::Low, command })])
});

fuzz_target!(|input: &[u8]| {
    let [mode, which, rest @ ..] = input else { return };
    match mode % 3 {
        0 => lines(rest, usize::from(*which) * 64 + 1),
        1 => judged(&wrapped(*which, rest)),
        _ => said_below(rest),
    }
});

/// Parameters as a whole line, so that the fuzzer need not guess what is around them.
fn wrapped(which: u8, params: &[u8]) -> Vec<u8> {
    let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).chain([OWN]).collect();
    let name = names[usize::from(which) % names.len()];
    [format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tool.{name}","params":"#).as_bytes(), params, b"}"].concat()
}

/// Bytes of an agent, in pieces, through its connection.
fn lines(bytes: &[u8], piece: usize) {
    let (mut agent, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(ours);
    let mut came = Vec::new();
    for piece in bytes.chunks(piece.min(16 * 1024)) {
        agent.write_all(piece).unwrap();
        // The loop looks at what is ready and nothing else; behind a line that is too long nothing is read.
        connection.serve(connection.interest(true), true);
        while let Some(line) = connection.next_line() {
            came.push(line.map_err(|TooLong| ()));
        }
        if connection.interest(true).is_empty() {
            break;
        }
    }
    assert_eq!(came, expected(bytes));
    for line in came.into_iter().flatten() {
        judged(&line);
    }
    drop(agent);
    connection.serve(PollFlags::IN | PollFlags::HUP, true);
    assert!(connection.next_line().is_none(), "half a line counted");
}

fn expected(bytes: &[u8]) -> Vec<Result<Vec<u8>, ()>> {
    let mut lines = Vec::new();
    let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
    while let Some(part) = parts.next() {
        if part.len() > limits::TOOL_LINE_BYTES_MAX {
            lines.push(Err(()));
            break;
        }
        if parts.peek().is_some() {
            lines.push(Ok(part.to_vec()));
        }
    }
    lines
}

/// A line as guest and host read it.
fn judged(line: &[u8]) {
    match call::parse(line, &PROGRAMS) {
        Ok(request) => {
            assert!(request.params.len() <= limits::TOOL_PARAMS_BYTES_MAX);
            let asked = tools::Call { tool: request.tool.clone(), params: request.params.clone() };
            if let Ok(reading) = reading::read(&asked, &TOOLS) {
                assert!(reading.shown.len() <= limits::APPROVAL_SHOWN_BYTES_MAX);
                same(&request, &reading);
            }
        }
        Err((id, fault)) => {
            let line = call::reply(id, &Err(fault));
            assert!(line.iter().position(|byte| *byte == b'\n') == Some(line.len() - 1));
            let said: Value = serde_json::from_slice(&line).unwrap();
            assert!(said["error"]["code"].is_i64() && said["id"].as_u64() == id, "{said}");
        }
    }
}

/// What the host decides on is what the guest does.
fn same(request: &Request, reading: &Reading) {
    assert_eq!(request.sealed, reading.sealed);
    let (mut ours, mut theirs) = (request.work.references(), reading.references.clone());
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs, "{}", request.params);
    let at = |path: &str| assert_eq!(reading.target, Target::Path(path.to_owned()));
    match &request.work {
        Work::Read(read) => (at(&read.path), typed(request, read)).0,
        Work::Write(write) => (at(&write.path), typed(request, write)).0,
        Work::Edit(edit) => (at(&edit.path), typed(request, edit)).0,
        Work::Remove(remove) => (at(&remove.path), typed(request, remove)).0,
        Work::Glob(glob) => (at(&glob.path), typed(request, glob)).0,
        Work::Grep(grep) => (at(&grep.path), typed(request, grep)).0,
        Work::Run(run) => {
            assert_eq!(reading.target, Target::Command(run.command.clone()));
            typed(request, run);
        }
        Work::Memory(memory) => {
            assert_eq!((&reading.job, reading.operation), (&Job::Memory, None));
            typed(request, memory);
        }
        Work::Own { arguments, .. } => {
            assert_eq!(reading.operation, Some(Operation::CreatePr));
            typed(request, &tools::Own { arguments: arguments.clone(), sealed: request.sealed });
        }
        Work::Host => assert!(matches!(reading.job, Job::Fetch { .. } | Job::Submit { .. })),
    }
}

/// The parameters as the host's types have them.
fn typed<T: DeserializeOwned + PartialEq + std::fmt::Debug>(request: &Request, work: &T) {
    assert_eq!(&serde_json::from_str::<T>(&request.params).unwrap(), work);
}

/// What passes between host, PID 1 and the tools process; and references in arguments.
fn said_below(bytes: &[u8]) {
    let frame = |kind| Frame::data(kind, 1, bytes);
    if let Ok(answer) = call::answer(&frame(Kind::Answer)) {
        assert_eq!(call::answer(&Frame::json(Kind::Answer, 1, &answer).unwrap()).unwrap(), answer);
    }
    if let Ok(exec) = call::exec(&frame(Kind::Exec)) {
        assert_eq!(call::exec(&Frame::json(Kind::Exec, 1, &exec).unwrap()).unwrap(), exec);
    }
    if let Ok(ended) = frame(Kind::Ended).parse::<tools::Ended>() {
        assert_eq!(Frame::json(Kind::Ended, 1, &ended).unwrap().parse::<tools::Ended>().unwrap(), ended);
    }
    if let Ok(arguments) = serde_json::from_slice::<Value>(bytes) {
        let known = tools::references(&arguments);
        // Every second result is there, and what a reference stands for is a text, never a reference.
        let of = |number: u32| (number % 2 == 0).then(|| br#"{"value":2}"#[..].into());
        match filled(&arguments, &of) {
            Ok(filled) => assert!(known.iter().all(|n| n % 2 == 0) && tools::references(&filled).is_empty()),
            Err(number) => assert!(number % 2 == 1 && known.contains(&number)),
        }
    }
}
