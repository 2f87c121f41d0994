//! `task run`: packs a tree and hands it to the node with what is to be done.

use abi::authority::PathPattern;
use abi::control::{Progress, TaskRef, TaskRun};
use abi::limits;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::{Event, typed};
use crate::pack::Tree;
use crate::print::{Meter, size, visible};
use crate::run::{amounts, id, note};
use crate::words;

/// The node unpacks the tree and makes a disk of it; it tells its progress, but a large tree takes its time.
const SILENCE: Duration = Duration::from_secs(300);

/// Words that somebody who writes them means for a shell.
const OPERATORS: &[&str] = &["&&", "||", "|", ";", ">", ">>", "<", "2>&1", "&"];

pub fn run(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let tree = Tree::of(needed(given, "repo", "a directory or a git bundle")?)?;
    let mut params = params(given, &tree)?;
    let (file, bytes) = tree.tar()?;
    params.tree_bytes = bytes;
    for line in tree.left_out.iter().take(100) {
        eprintln!("left out: {}", visible(line));
    }
    if !context.json {
        eprintln!("tree: {}, {} paths, {}", visible(&tree.source), tree.paths().count(), size(bytes));
        eprintln!("verify: {}", words::shown(&params.verify));
        if let Some(operator) = params.verify.iter().find(|word| OPERATORS.contains(&word.as_str())) {
            eprintln!(
                "verify: no shell reads it, so {operator} is an argument; for a shell: --verify \"sh -c '...'\""
            );
        }
    }
    let task = send(context, &params, file)?;
    if !given.has("follow") {
        if context.json {
            say(&format!("{}\n", serde_json::json!(task)))?;
        } else {
            say(&format!("{}\n", task.id))?;
        }
        return Ok(0);
    }
    if !context.json {
        eprintln!("task {}", task.id);
    }
    super::follow(context, &task)
}

fn needed<'a>(given: &'a Arguments, option: &str, what: &str) -> Result<&'a str, Failure> {
    given.value(option).filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::usage(format!("task run: --{option} is missing"), format!("write --{option} and {what}"))
    })
}

fn params(given: &Arguments, tree: &Tree) -> Result<TaskRun, Failure> {
    let patterns = |option: &str| -> Result<Vec<PathPattern>, Failure> {
        given.values(option).iter().map(|text| in_tree(option, text, tree)).collect()
    };
    let command = |option: &str, text: &str| {
        words::split(text).map_err(|why| {
            let remedy = "write a program and its arguments; for a shell's operators: \"sh -c '...'\"";
            Failure::usage(format!("--{option}: {why}"), remedy)
        })
    };
    let seconds = given.number::<u64>("verify-secs")?;
    Ok(TaskRun {
        agent: id(needed(given, "agent", "the agent that shall work")?)?,
        goal: goal(needed(given, "goal", "what is to be done, or @FILE")?)?,
        verify: command("verify", needed(given, "verify", "the command that proves it")?)?,
        protect: patterns("protect")?,
        permit: patterns("permit")?,
        tree_bytes: 0,
        source: Some(tree.source.clone()),
        candidates: given.number("candidates")?.unwrap_or(1),
        score: given.value("score").map(|text| command("score", text)).transpose()?,
        attempts: given.number("attempts")?,
        budget: amounts::of_option(given, amounts::OF_TASK)?,
        verify_ms: seconds.map(|seconds| seconds.saturating_mul(1000)),
        is_public: given.has("public"),
    })
}

fn goal(text: &str) -> Result<String, Failure> {
    let goal = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(path) => {
            let mut goal = String::new();
            File::open(path)
                .and_then(|file| file.take(limits::GOAL_BYTES_MAX as u64 + 1).read_to_string(&mut goal))
                .map_err(|error| {
                    Failure::usage(format!("{}: {error}", visible(path)), "name a text file after @")
                })?;
            goal
        }
    };
    match goal.len() > limits::GOAL_BYTES_MAX {
        true => Err(Failure::usage(
            format!("the goal has more than {} bytes", limits::GOAL_BYTES_MAX),
            "put the long part into a file of the tree, and name it in the goal",
        )),
        false => Ok(goal),
    }
}

/// A pattern relative to the tree as the node takes it. One that meets nothing may be a slip of the pen, and is told.
fn in_tree(option: &str, text: &str, tree: &Tree) -> Result<PathPattern, Failure> {
    let relative = text.strip_prefix("/work/").unwrap_or(text).trim_start_matches("./").trim_end_matches('/');
    let pattern: Result<PathPattern, _> = format!("/work/{relative}").parse();
    let pattern = pattern.ok().filter(|_| !relative.starts_with('/')).ok_or_else(|| {
        let remedy = format!("write a path or a pattern below the tree, like --{option} 'tests/**'");
        Failure::usage(format!("--{option} `{}` is no pattern", visible(text)), remedy)
    })?;
    if !tree.paths().any(|path| pattern.covers(&format!("/work/{path}"))) {
        eprintln!(
            "--{option} {}: nothing in the tree has such a path (what is made later may)",
            visible(text)
        );
    }
    Ok(pattern)
}

/// Asks, and sends the tree when the node is ready for it.
fn send(context: &Context, params: &TaskRun, file: File) -> Result<TaskRef, Failure> {
    let mut meter = Meter::new(context.json);
    let mut link = context.ask("task.run", params, Silence::AtMost(SILENCE))?;
    let bytes = params.tree_bytes;
    let (mut file, mut sender) = (Some(file), None);
    let result = loop {
        match link.next() {
            Ok(Event::Notification(request)) if request.method == "ready" => {
                let (Some(file), body) = (file.take(), link.body()?) else { continue };
                sender = Some(
                    std::thread::Builder::new().name("tree".into()).spawn(move || pour(file, body, bytes))?,
                );
            }
            Ok(Event::Notification(request)) => match note::<Progress>(&request, "progress")? {
                Some(progress) => meter.show("task", &progress),
                None => context.note(&request)?,
            },
            Ok(Event::Result(value)) => break Ok(value),
            Err(failure) => break Err(failure),
        }
    };
    meter.done();
    // The node's answer says more than a broken pipe.
    if let (Err(_), Some(sender)) = (&result, sender)
        && sender.is_finished()
        && let Ok(Err(error)) = sender.join()
    {
        return Err(Failure::usage(format!("the packed tree cannot be read: {error}"), "try again"));
    }
    typed(&result?)
}

/// Sends exactly the announced bytes. An error is about the file; a connection that ends is told by the result.
fn pour(file: File, mut body: UnixStream, bytes: u64) -> io::Result<()> {
    let mut file = file.take(bytes);
    let mut chunk = vec![0u8; 64 * 1024];
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) if file.limit() == 0 => return Ok(()),
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        match read {
            Ok(read) if body.write_all(chunk.get(..read).unwrap_or_default()).is_err() => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                let _ = body.shutdown(std::net::Shutdown::Both); // it must not look complete
                return Err(error);
            }
        }
    }
}
