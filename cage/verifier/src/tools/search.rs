//! `tool.glob` and `tool.grep`, in a child of the tools process: they may take long, and are killed when they do.
//!
//! Must hold: no link is followed, and what the rules pass over is not looked at; entries, matches and bytes are bounded, and what is cut
//! is said. The child has nothing of its parent's but the root and its pipe. Must never: wait for a child to end.

use rustix::fs::{Dir, FileType, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use abi::authority::PathPattern;
use abi::limits;
use abi::tools::{Glob, Grep};
use verifier::call::below;

use super::calls::Outcome;
use super::files;
use crate::copy::{DEPTH_MAX, open_beneath};
use crate::sys;

/// Bytes of one line of grep's answer.
const LINE_BYTES_MAX: usize = 1000;
const READ_BYTES: usize = 64 * 1024;
/// Children that were killed and have not gone: with more of them none is started.
const LEAVING_MAX: usize = 4 * limits::TOOL_CALLS_AT_ONCE_MAX;

/// Those children. A disk that stands still holds one for as long as it likes; its number is nobody else's until it was waited for.
static LEAVING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub enum Order<'a> {
    Glob(&'a Glob),
    Grep(&'a Grep),
}

/// A search under way.
#[derive(Debug)]
pub struct Search {
    child: Pid,
    pipe: OwnedFd,
    answer: Vec<u8>,
}

impl Search {
    /// Starts the child.
    pub fn start(
        root: &OwnedFd,
        order: Order<'_>,
        pass_over: &[PathPattern],
        most: u64,
    ) -> io::Result<Search> {
        if leaving(None) > LEAVING_MAX {
            return Err(io::Error::other("searches that were ended have not gone yet; try again"));
        }
        let (pipe, out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let Some(child) = sys::fork()? else {
            drop(pipe);
            // The agent must see its connections end, whatever a search still does.
            let closed = sys::close_from(3, &[root.as_fd(), out.as_fd()]).map_err(|error| error.to_string());
            let answer = match closed.and_then(|()| look(root, order, pass_over, most)) {
                Ok((data, is_cut)) => format!("{}{data}", if is_cut { 'c' } else { 'w' }),
                Err(error) => format!("e{error}"),
            };
            let written = File::from(out).write_all(answer.as_bytes());
            sys::exit_now(i32::from(written.is_err()))
        };
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        let child = Pid::from_raw(child).ok_or_else(|| io::Error::other("no pid"))?;
        Ok(Search { child, pipe, answer: Vec::new() })
    }

    /// What to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what is there; the outcome when it is whole.
    pub fn advance(&mut self) -> Option<Result<Outcome, String>> {
        let mut chunk = vec![0; READ_BYTES];
        match rustix::io::read(&self.pipe, &mut chunk) {
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(count) if count > 0 => {
                self.answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
                None
            }
            _ => Some(self.outcome()),
        }
    }

    fn outcome(&self) -> Result<Outcome, String> {
        let unfinished = || "the search did not come to its end".to_owned();
        let (kind, rest) = self.answer.split_first().ok_or_else(unfinished)?;
        match kind {
            b'e' => Err(String::from_utf8_lossy(rest).into_owned()),
            kind => {
                let data: Value = serde_json::from_slice(rest).map_err(|_| unfinished())?;
                Ok(Outcome { data, value: rest.to_vec(), is_cut: *kind == b'c' })
            }
        }
    }
}

/// Its child does nothing any more.
impl Drop for Search {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is to go.
        let _ = rustix::process::kill_process(self.child, Signal::KILL);
        leaving(Some(self.child));
    }
}

/// Takes note of one more child that is to go, and forgets those that have gone: how many are left.
fn leaving(one_more: Option<Pid>) -> usize {
    let mut children = LEAVING.lock().unwrap_or_else(PoisonError::into_inner);
    children.extend(one_more);
    children.retain(|child| {
        matches!(rustix::process::waitpid(Some(*child), WaitOptions::NOHANG), Ok(None) | Err(Errno::INTR))
    });
    children.len()
}

/// Looks, and gives data and whether it was cut.
fn look(
    root: &OwnedFd,
    order: Order<'_>,
    pass_over: &[PathPattern],
    most: u64,
) -> Result<(Value, bool), String> {
    let (path, pattern) = match order {
        Order::Glob(glob) => (&glob.path, below(&glob.path, &glob.pattern)),
        Order::Grep(grep) => (&grep.path, None),
    };
    let mut walk = Walk {
        order,
        pattern,
        pass_over,
        left: usize::try_from(most).unwrap_or(usize::MAX),
        entries: 0,
        found: Vec::new(),
        passed_over: 0,
        is_cut: false,
    };
    if walk.is_passed_over(path) {
        return Err(format!("`{path}`: the rules keep tools from it"));
    }
    let place = files::open(root, path, OFlags::RDONLY, 0)?;
    let stat = rustix::fs::fstat(&place).map_err(|error| format!("`{path}`: {}", io::Error::from(error)))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => walk.directory(place, path.trim_end_matches('/'), 0),
        FileType::RegularFile => walk.file(place, path),
        _ => return Err(format!("`{path}`: it is neither a file nor a directory")),
    }
    let Walk { mut found, passed_over, is_cut, .. } = walk;
    if let Order::Glob(_) = order {
        found.sort_unstable_by(|a, b| a.as_str().cmp(&b.as_str()));
        return Ok((json!({ "paths": found }), is_cut));
    }
    let mut data = json!({ "matches": found });
    if let Some(members) = data.as_object_mut().filter(|_| passed_over > 0) {
        members.insert("passed_over".to_owned(), passed_over.into());
    }
    Ok((data, is_cut))
}

struct Walk<'a> {
    order: Order<'a>,
    pattern: Option<PathPattern>,
    pass_over: &'a [PathPattern],
    /// Bytes that the answer may still take.
    left: usize,
    entries: usize,
    found: Vec<Value>,
    /// Files that could not be looked into.
    passed_over: u64,
    is_cut: bool,
}

impl Walk<'_> {
    fn is_passed_over(&self, path: &str) -> bool {
        self.pass_over.iter().any(|pattern| pattern.covers(path))
    }

    fn directory(&mut self, dir: OwnedFd, path: &str, depth: usize) {
        let Ok(entries) = Dir::read_from(&dir) else { return self.count() };
        // One more than there may be, beside `.` and `..`: that it is cut is found out below.
        let most = limits::TOOL_ENTRIES_MAX + 3;
        let mut names: Vec<_> =
            entries.flatten().take(most).map(|entry| entry.file_name().to_owned()).collect();
        names.sort_unstable();
        for name in names {
            let Ok(text) = name.to_str() else {
                self.count();
                continue;
            };
            let below = format!("{path}/{text}");
            if text == "." || text == ".." || self.is_passed_over(&below) {
                continue;
            }
            self.entries += 1;
            if self.is_cut || self.entries > limits::TOOL_ENTRIES_MAX {
                self.is_cut = true;
                return;
            }
            let Ok(place) = open_beneath(&dir, &*name, OFlags::PATH) else { continue };
            let Ok(stat) = rustix::fs::fstat(&place) else { continue };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if let Order::Glob(_) = self.order
                && self.pattern.as_ref().is_some_and(|pattern| pattern.admits(&below))
            {
                let end = if kind == FileType::Directory { "/" } else { "" };
                self.found(Value::from(format!("{below}{end}")));
            }
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            match (kind, self.order) {
                (FileType::Directory, _) if depth >= DEPTH_MAX => self.is_cut = true,
                (FileType::Directory, _) => match open_beneath(&dir, &*name, flags | OFlags::DIRECTORY) {
                    Ok(dir) => self.directory(dir, &below, depth + 1),
                    Err(_) => self.count(),
                },
                (FileType::RegularFile, Order::Grep(_)) => match open_beneath(&dir, &*name, flags) {
                    Ok(file) => self.file(file, &below),
                    Err(_) => self.count(),
                },
                _ => {}
            }
        }
    }

    fn count(&mut self) {
        self.passed_over += 1;
    }

    fn file(&mut self, file: OwnedFd, path: &str) {
        let Order::Grep(grep) = self.order else { return };
        let mut bytes = Vec::new();
        let read = File::from(file).take(limits::TOOL_GREP_BYTES_MAX + 1).read_to_end(&mut bytes);
        let text = match std::str::from_utf8(&bytes) {
            Ok(text)
                if read.is_ok()
                    && bytes.len() as u64 <= limits::TOOL_GREP_BYTES_MAX
                    && !bytes.contains(&0) =>
            {
                text
            }
            _ => return self.count(),
        };
        let wanted = if grep.ignore_case { grep.text.to_ascii_lowercase() } else { grep.text.clone() };
        for (number, line) in text.lines().enumerate() {
            let has = match grep.ignore_case {
                true => line.to_ascii_lowercase().contains(&wanted),
                false => line.contains(&wanted),
            };
            if !has {
                continue;
            }
            let shown = line.get(..line.floor_char_boundary(LINE_BYTES_MAX)).unwrap_or_default();
            self.found(json!({ "path": path, "line": number + 1, "text": shown }));
            self.is_cut |= shown.len() < line.len();
            if self.left == 0 || self.found.len() >= limits::TOOL_MATCHES_MAX {
                return;
            }
        }
    }

    /// Adds to the answer, while there is room.
    fn found(&mut self, one: Value) {
        let bytes = one.to_string().len() + 1;
        match self.left.checked_sub(bytes) {
            Some(left) if self.found.len() < limits::TOOL_MATCHES_MAX => {
                self.left = left;
                self.found.push(one);
            }
            _ => (self.left, self.is_cut) = (0, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn place(name: &str) -> (std::path::PathBuf, OwnedFd) {
        let path = std::env::temp_dir().join(format!("search-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("work/src/deep")).unwrap();
        std::fs::create_dir_all(path.join("work/secret")).unwrap();
        for file in ["work/a.rs", "work/src/b.rs", "work/src/deep/c.rs", "work/secret/d.rs"] {
            std::fs::write(path.join(file), format!("first\nNeedle in {file}\nneedle\n")).unwrap();
        }
        std::fs::write(path.join("work/binary"), b"needle\0").unwrap();
        symlink("/etc", path.join("work/link")).unwrap();
        let root = File::open(&path).unwrap();
        (path, root.into())
    }

    fn glob(root: &OwnedFd, pattern: &str, pass_over: &[PathPattern], most: u64) -> (Vec<String>, bool) {
        let glob = Glob { pattern: pattern.into(), path: "/work".into(), sealed: false };
        let mut search = Search::start(root, Order::Glob(&glob), pass_over, most).unwrap();
        let outcome = wait(&mut search);
        let paths = outcome.data["paths"].as_array().unwrap();
        (paths.iter().map(|path| path.as_str().unwrap().to_owned()).collect(), outcome.is_cut)
    }

    fn wait(search: &mut Search) -> Outcome {
        loop {
            if let Some(outcome) = search.advance() {
                return outcome.unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn globs_are_sorted_follow_no_link_and_leave_out_what_no_tool_touches() {
        let (path, root) = place("glob");
        let never = ["/work/secret".parse().unwrap()];
        let all = |pattern| glob(&root, pattern, &never, 10_000);
        assert_eq!(all("*").0, ["/work/a.rs", "/work/binary", "/work/link", "/work/src/"]);
        assert_eq!(all("**/*.rs").0, ["/work/a.rs", "/work/src/b.rs", "/work/src/deep/c.rs"]);
        assert_eq!(all("link/*").0, Vec::<String>::new());
        let (some, cut) = glob(&root, "**/*.rs", &[], 45);
        assert!(some.len() == 2 && cut, "{some:?}");
        std::fs::remove_dir_all(path).unwrap();
    }

    /// A search whose child waits: its answer is more than the pipe takes, and nobody reads it.
    fn stuck(root: &OwnedFd, path: &std::path::Path) -> Search {
        std::fs::write(path.join("work/long"), format!("{}\n", "needle ".repeat(30)).repeat(900)).unwrap();
        let grep =
            Grep { text: "needle".into(), path: "/work/long".into(), ignore_case: false, sealed: false };
        Search::start(root, Order::Grep(&grep), &[], 1 << 20).unwrap()
    }

    #[test]
    fn a_child_holds_nothing_of_its_parents() {
        use std::io::Read as _;
        let (path, root) = place("holds");
        let (mut agent, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut search = stuck(&root, &path);
        drop(ours);
        agent.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        assert_eq!(agent.read(&mut [0]).unwrap(), 0, "while the search is under way");
        assert_eq!(wait(&mut search).data["matches"].as_array().unwrap().len(), 900);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_child_that_does_not_go_is_not_waited_for() {
        use std::io::{BufRead as _, BufReader};
        use std::process::{Command, Stdio};
        let (path, root) = place("leaves");
        let search = stuck(&root, &path);
        let child = search.child;
        // While somebody else traces it, even one that was killed cannot be waited for (ptrace(2), PTRACE_SEIZE).
        let trace = "$| = 1; syscall($ARGV[0] + 0, 0x4206, $ARGV[1] + 0, 0, 0) == 0 or die qq($!\\n); print qq(traced\\n); sleep 60";
        let numbers = [libc::SYS_ptrace.to_string(), child.as_raw_nonzero().to_string()];
        let mut tracer =
            Command::new("perl").args(["-e", trace]).args(numbers).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(tracer.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "traced\n");
        let begun = std::time::Instant::now();
        drop(search);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
        let is_left = || LEAVING.lock().unwrap().contains(&child);
        leaving(None);
        assert!(is_left(), "it has not gone");
        tracer.kill().unwrap();
        tracer.wait().unwrap();
        for _ in 0..1000 {
            leaving(None);
            if !is_left() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!is_left(), "no zombie stays");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn grep_finds_lines_counts_what_is_no_text_and_is_bounded() {
        let (path, root) = place("grep");
        let mut grep =
            Grep { text: "needle".into(), path: "/work".into(), ignore_case: false, sealed: false };
        let never = ["/work/secret/**".parse().unwrap()];
        let outcome = wait(&mut Search::start(&root, Order::Grep(&grep), &never, 100_000).unwrap());
        let matches = outcome.data["matches"].as_array().unwrap();
        assert_eq!(matches.len(), 3);
        assert_eq!(matches[0], json!({"path": "/work/a.rs", "line": 3, "text": "needle"}));
        assert_eq!((&outcome.data["passed_over"], outcome.is_cut), (&json!(1), false));
        grep.ignore_case = true;
        let outcome = wait(&mut Search::start(&root, Order::Grep(&grep), &never, 100_000).unwrap());
        assert_eq!(outcome.data["matches"].as_array().unwrap().len(), 6);
        let outcome = wait(&mut Search::start(&root, Order::Grep(&grep), &never, 100).unwrap());
        assert!(outcome.is_cut && outcome.data.to_string().len() < 150, "{:?}", outcome.data);
        grep.path = "/work/link".into();
        let mut search = Search::start(&root, Order::Grep(&grep), &[], 100).unwrap();
        let error = loop {
            match search.advance() {
                Some(outcome) => break outcome.unwrap_err(),
                None => std::thread::yield_now(),
            }
        };
        assert!(error.contains("link"), "{error}");
        std::fs::remove_dir_all(path).unwrap();
    }
}
