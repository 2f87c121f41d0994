//! `agent cp` and `agent diff`: files of a running agent.

use abi::control::{AgentFiles, AgentRef, Output, Progress, StdinData, Stream};
use abi::files::{Content, FilesError, Reader, Record, Writer};
use abi::guest::Exit;
use abi::ids::AgentName;
use abi::rpc::Request;
use abi::wire::LineWriter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::id;
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::{Event, Link, typed};
use crate::print::{Meter, Passage, size, visible};
use crate::tree::{self, Maker, Tally};

/// Bytes of input in one notification (docs/control-protocol.md: 32 KiB).
const INPUT_BYTES: usize = 32 * 1024;
/// How often the progress changes.
const PROGRESS: Duration = Duration::from_millis(100);

/// A side of a copy.
enum Side {
    Agent(AgentName, String),
    Here(String),
}

fn side(text: &str) -> Result<Side, Failure> {
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') => match path.starts_with('/') && !path.contains('\0') {
            true => Ok(Side::Agent(id(name)?, path.to_owned())),
            false => Err(Failure::usage(
                format!("`{text}`: a path in an agent is absolute"),
                "write for example researcher:/data/out; a file here with a colon in its name is ./a:b",
            )),
        },
        _ => Ok(Side::Here(text.to_owned())),
    }
}

pub fn cp(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let mut meter = Shown::new(context.json);
    let copied = match (side(given.required(0))?, side(given.required(1))?) {
        (Side::Agent(name, path), Side::Here(to)) => {
            copy_out(context, AgentFiles { name, path }, &to, given.has("links"), &mut meter)
        }
        (Side::Here(from), Side::Agent(name, path)) => {
            copy_in(context, &from, AgentFiles { name, path }, meter)
        }
        _ => Err(Failure::usage(
            "one side of a copy is in an agent, the other here",
            "write AGENT:/path on one side",
        )),
    };
    let (tally, exit) = copied?;
    for line in &tally.left_out {
        eprintln!("left out: {}", visible(line));
    }
    if tally.more_left_out > 0 {
        eprintln!("left out: {} more", tally.more_left_out);
    }
    let whole = tally.is_whole() && exit.code == Some(0);
    if context.json {
        say(&format!("{}\n", json!({ "copied": tally, "exit": exit })))?;
    } else {
        let (files, bytes) = (tally.files, size(tally.bytes));
        say(&format!("{files} files, {bytes}, {} directories, {} links\n", tally.directories, tally.links))?;
    }
    if exit.signal.is_some() {
        return Err(Failure::local(
            status::FAILED,
            "the copy was ended inside the agent",
            "",
            "see nullctl agent status",
        ));
    }
    Ok(if whole { 0 } else { status::FAILED })
}

fn local(path: &str, error: impl std::fmt::Display, remedy: &str) -> Failure {
    Failure::local(status::USAGE, format!("{path}: {error}"), "", remedy)
}

/// Splits `/.` off the end: then what is in a directory is meant.
fn contents_of(path: &str) -> (&str, bool) {
    let whole = path.strip_suffix("/.").or_else(|| (path == ".").then_some("."));
    let (path, contents) = whole.map_or((path, false), |path| (path, true));
    (if path.is_empty() { "/" } else { path }, contents)
}

/// Where a copy goes here: the directory, and its name there (none: its contents go into the directory).
fn place(from: &str, contents: bool, to: &str) -> Result<(PathBuf, Option<String>), Failure> {
    let target = Path::new(to);
    if target.is_dir() {
        let name = Path::new(from).file_name().and_then(|name| name.to_str()).filter(|_| !contents);
        return Ok((target.to_owned(), name.map(str::to_owned)));
    }
    let name = target.file_name().and_then(|name| name.to_str());
    let parent = target.parent().map(|dir| if dir == Path::new("") { Path::new(".") } else { dir });
    match (name, parent) {
        (Some(name), Some(parent)) => Ok((parent.to_owned(), Some(name.to_owned()))),
        _ => Err(local(
            to,
            "it is no name for a copy",
            "name a directory that exists, or what the copy is to be",
        )),
    }
}

fn copy_out(
    context: &Context,
    params: AgentFiles,
    to: &str,
    any_links: bool,
    meter: &mut Shown,
) -> Result<(Tally, Exit), Failure> {
    let (path, contents) = contents_of(&params.path);
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let (dir, name) = place(path, contents, to)?;
    let must_be_directory = to.ends_with('/') && name.is_some() && !Path::new(to).is_dir();
    let root = tree::open_root(&dir)
        .map_err(|error| local(&dir.display().to_string(), error, "make the directory first"))?;
    let params = AgentFiles { name: params.name, path: path.to_owned() };
    let mut link = context.ask("agent.read_files", &params, Silence::Unbounded)?;
    let mut maker = Maker::new(root, name, any_links);
    let mut reader = Reader::new(BufReader::with_capacity(64 * 1024, Incoming::new(&mut link)));
    let failed = loop {
        match reader.next(true) {
            Ok(None) => break None,
            Ok(Some(record)) => {
                if must_be_directory
                    && matches!(record.content, Content::File { .. })
                    && record.path.is_empty()
                {
                    return Err(local(to, "it is no directory", "make it first, or leave the last / out"));
                }
                if let Err(error) = maker.make(&record, &mut reader.content()) {
                    break Some(error);
                }
                meter.show(&params.path, &maker.tally);
            }
            Err(error) => break Some(error),
        }
    };
    meter.meter.done();
    let exit = ended(reader.into_input().into_inner(), failed)?;
    Ok((maker.tally, exit))
}

fn copy_in(
    context: &Context,
    from: &str,
    params: AgentFiles,
    mut meter: Shown,
) -> Result<(Tally, Exit), Failure> {
    let (source, contents) = contents_of(from);
    let meta =
        std::fs::metadata(source).map_err(|error| local(source, error, "name what is to be copied"))?;
    let named = Path::new(source).file_name().and_then(|name| name.to_str()).filter(|_| !contents);
    // A directory is its own root; a file is read below the directory that it is in. Both as the operator named them.
    let whole =
        std::fs::canonicalize(source).map_err(|error| local(source, error, "name what is to be copied"))?;
    let (root, path) = match (meta.is_dir(), whole.parent(), whole.file_name().and_then(|name| name.to_str()))
    {
        (true, _, _) => (whole.clone(), String::new()),
        (false, Some(parent), Some(name)) => (parent.to_owned(), name.to_owned()),
        _ => return Err(local(source, "its name is not UTF-8", "rename it")),
    };
    let root = tree::open_root(&root).map_err(|error| local(source, error, "check its permissions"))?;
    let name = named.unwrap_or_default().to_owned();
    let mut link = context.ask("agent.write_files", &params, Silence::Unbounded)?;
    let (writer, body) = (link.writer()?, link.body()?);
    let what = from.to_owned();
    let sender = std::thread::Builder::new().name("copy".into()).spawn(move || {
        let mut out = Writer::new(BufWriter::with_capacity(INPUT_BYTES, Outgoing { writer }));
        let sent = tree::send(&root, &path, &name, &mut out, &mut |tally| meter.show(&what, tally));
        let flushed = sent.and_then(|tally| {
            out.out().flush()?;
            Ok(tally)
        });
        meter.meter.done();
        match flushed {
            Ok(tally) => {
                let ended = out.out().get_mut().end();
                (Ok(tally), ended.is_err())
            }
            Err(error) => {
                let _ = body.shutdown(std::net::Shutdown::Both); // half a file must not look whole
                (Err(error), false)
            }
        }
    })?;
    let mut err = Passage::new(io::stderr().is_terminal(), false);
    let result = link.result(&mut |request| {
        if let Some(output) = super::note::<Output>(request, "output")? {
            io::stderr().write_all(&err.take(&decoded(&output)?))?;
        }
        Ok(())
    });
    if let Err(failure) = result {
        return Err(match (sender.is_finished(), failure.error.is_some()) {
            (true, _) => match sender.join() {
                Ok((Err(error), _)) if is_ours(&error) => local(from, error, "copy it when nobody writes it"),
                _ => failure,
            },
            _ => failure,
        });
    }
    let exit: Exit = typed(&result?)?;
    match sender.join() {
        Ok((Ok(tally), _)) => Ok((tally, exit)),
        // The agent's side ended before it had all.
        Ok((Err(error), _)) => Err(local(from, error, "see what the agent's side said")),
        Err(_) => Err(local(from, "the thread that sends it ended", "try again")),
    }
}

/// Whether an error is one of the files here, and not of the connection.
fn is_ours(error: &FilesError) -> bool {
    match error {
        FilesError::Record(..) => true,
        FilesError::Io(error) => error.kind() == io::ErrorKind::Other,
    }
}

pub fn diff(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = AgentRef { name: id(given.required(0))? };
    let mut link = context.ask("agent.diff", &params, Silence::Unbounded)?;
    let mut reader = Reader::new(BufReader::new(Incoming::new(&mut link)));
    let failed = loop {
        match reader.next(false) {
            Ok(Some(record)) => say(&change(context, &record))?,
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let exit = ended(reader.into_input().into_inner(), failed)?;
    if context.json {
        say(&format!("{}\n", json!(exit)))?;
    }
    Ok(if exit.code == Some(0) { 0 } else { status::FAILED })
}

fn change(context: &Context, record: &Record) -> String {
    let kind = match (&record.content, record.in_rootfs) {
        (Content::Removed, _) => "D",
        (_, true) => "C",
        (_, false) => "A",
    };
    if context.json {
        return format!(
            "{}\n",
            json!({ "change": { "kind": kind, "path": format!("/{}", record.path), "record": record } })
        );
    }
    format!("{kind} /{}\n", visible(&record.path))
}

/// How the agent's side ended, or what came in its place.
fn ended(mut incoming: Incoming<'_>, failed: Option<FilesError>) -> Result<Exit, Failure> {
    if let Some(error) = failed {
        // A call that failed says why; a stream that is wrong is the agent's doing.
        return Err(incoming.failure.take().unwrap_or_else(|| {
            Failure::local(
                status::FAILED,
                format!("what the agent sent is no copy: {error}"),
                "records are checked before anything is made of them",
                "what came before it is here; look at the agent before you trust it",
            )
        }));
    }
    match incoming.result.take() {
        Some(result) => typed(&result),
        None => Err(incoming.failure.take().unwrap_or_else(|| Failure::quiet(status::FAILED))),
    }
}

fn decoded(output: &Output) -> Result<Vec<u8>, Failure> {
    STANDARD.decode(&output.data).map_err(|error| {
        Failure::local(
            status::FAILED,
            format!("output is not base64: {error}"),
            "",
            "use a nullctl of the node's version",
        )
    })
}

/// A call's standard output as a stream; its standard error goes to ours.
struct Incoming<'a> {
    link: &'a mut Link,
    err: Passage,
    bytes: io::Cursor<Vec<u8>>,
    result: Option<Value>,
    failure: Option<Failure>,
}

impl<'a> Incoming<'a> {
    fn new(link: &'a mut Link) -> Incoming<'a> {
        let err = Passage::new(io::stderr().is_terminal(), false);
        Incoming { link, err, bytes: io::Cursor::default(), result: None, failure: None }
    }

    fn take(&mut self, request: &Request) -> Result<(), Failure> {
        if let Some(output) = super::note::<Output>(request, "output")? {
            let bytes = decoded(&output)?;
            match output.stream {
                Stream::Stdout => self.bytes = io::Cursor::new(bytes),
                Stream::Stderr => io::stderr().write_all(&self.err.take(&bytes))?,
            }
        }
        Ok(())
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.bytes.read(out)?;
            if read > 0 || out.is_empty() || self.result.is_some() {
                return Ok(read);
            }
            let taken = match self.link.next() {
                Ok(Event::Result(value)) => {
                    self.result = Some(value);
                    Ok(())
                }
                Ok(Event::Notification(note)) => self.take(&note),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = taken {
                self.failure = Some(failure);
                return Err(io::Error::other("the call failed"));
            }
        }
    }
}

/// Bytes as notifications `stdin`.
struct Outgoing {
    writer: LineWriter,
}

impl Outgoing {
    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let params = serde_json::to_value(StdinData { data: STANDARD.encode(bytes) })?;
        self.writer
            .write_line(&Request::notification("stdin", params))
            .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error.to_string()))
    }

    fn end(&mut self) -> io::Result<()> {
        self.say(&[])
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.chunks(INPUT_BYTES) {
            self.say(part)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Progress of a copy, on a terminal only.
struct Shown {
    meter: Meter,
    is_seen: bool,
    last: Option<Instant>,
}

impl Shown {
    fn new(quiet: bool) -> Shown {
        Shown { meter: Meter::new(quiet), is_seen: !quiet && io::stderr().is_terminal(), last: None }
    }

    fn show(&mut self, what: &str, tally: &Tally) {
        if !self.is_seen || self.last.is_some_and(|last| last.elapsed() < PROGRESS) {
            return;
        }
        self.last = Some(Instant::now());
        let stage = format!("{} files, {}", tally.files, size(tally.bytes));
        self.meter.show(&visible(what), &Progress { stage, done: None, total: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        assert!(matches!(side("a:/x"), Ok(Side::Agent(name, path)) if name.as_str() == "a" && path == "/x"));
        for here in ["x", "./a:b", "/tmp/a:b", ".", "../x"] {
            assert!(matches!(side(here), Ok(Side::Here(path)) if path == here), "{here}");
        }
        for wrong in ["a:x", "a:", ":/x", "a b:/x"] {
            assert!(side(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dot_at_the_end_means_what_is_in_it() {
        for (path, whole, contents) in [
            ("a/.", "a", true),
            ("/.", "/", true),
            (".", ".", true),
            ("a", "a", false),
            ("/a/", "/a/", false),
        ] {
            assert_eq!(contents_of(path), (whole, contents), "{path}");
        }
    }

    #[test]
    fn a_copy_goes_below_a_directory_and_becomes_anything_else() {
        let dir = std::env::temp_dir();
        let text = dir.to_str().unwrap();
        assert_eq!(place("/data/out", false, text).unwrap(), (dir.clone(), Some("out".into())));
        assert_eq!(place("/data/out", true, text).unwrap(), (dir.clone(), None));
        let new = format!("{text}/no-such-name");
        assert_eq!(place("/data/out", false, &new).unwrap(), (dir.clone(), Some("no-such-name".into())));
        assert_eq!(place("/x", false, "no-such").unwrap(), (PathBuf::from("."), Some("no-such".into())));
    }
}
