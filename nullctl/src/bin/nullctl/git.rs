//! The operator's own git, and what of a repository it is shown.
//!
//! Must hold: git works in a directory of nullctl's own, and is lent the repository's index and objects. So nothing that the repository
//! configures counts: no hooks, no filters, no fsmonitor, no includes, no remote helpers. The repository's own directory is named to git
//! for two things alone, which run nothing: to read a ref or a value of its configuration, and to set a ref.
//! Must never: follow a `.git` that leads somewhere which does not lead back.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::failure::{Failure, status};
use crate::print::visible;

/// Bytes of a small file of a repository: `.git`, `commondir`, `info/exclude`, `shallow`.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Variables of the operator's that git keeps; all other `GIT_*` could point it elsewhere.
const KEPT: &[&str] = &[
    "GIT_ASKPASS",
    "GIT_AUTHOR_DATE",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_NAME",
    "GIT_COMMITTER_DATE",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_NAME",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_SYSTEM",
    "GIT_EXEC_PATH",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
];

/// The forge's, which nullctl alone reads: git and its helpers have credentials of their own.
pub const TOKEN: &str = "NULLBOX_FORGE_TOKEN";

/// A repository, seen from nullctl's own directory.
#[derive(Debug)]
pub struct Repository {
    /// The work tree's top; of a bundle none.
    pub top: Option<PathBuf>,
    /// HEAD and index.
    dir: PathBuf,
    /// Objects and branches.
    common: PathBuf,
    own: Own,
}

/// A directory that git believes to be the repository.
#[derive(Debug)]
struct Own(PathBuf);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // what is left in the temporary directory is private and hurts nobody
    }
}

impl Own {
    fn create() -> io::Result<Own> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nullctl-git-{}-{number}", std::process::id()));
        std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&path)?;
        let own = Own(path);
        for dir in ["objects", "refs", "info"] {
            fs::create_dir(own.0.join(dir))?;
        }
        fs::write(own.0.join("HEAD"), "ref: refs/heads/none\n")?;
        own.configure(40)?;
        Ok(own)
    }

    /// For object names of so many characters.
    fn configure(&self, digits: usize) -> io::Result<()> {
        let format = if digits == 64 {
            "1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n"
        } else {
            "0\n\tbare = true\n"
        };
        fs::write(self.0.join("config"), format!("[core]\n\trepositoryformatversion = {format}"))
    }
}

/// Git could not do it.
fn failed(what: &str, why: &str) -> Failure {
    Failure::local(
        status::USAGE,
        format!("git {what}: {}", visible(why.trim())),
        "",
        "correct the repository, or name another one",
    )
}

fn local(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()), "check the path and its permissions")
}

/// Reads a small regular file; none if there is none.
fn small(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::NONBLOCK
        | rustix::fs::OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(local(path, &error.into())),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| local(path, &error))?;
    if bytes.len() as u64 > SMALL_BYTES_MAX {
        return Err(failed("repository", &format!("{} is too large", path.display())));
    }
    Ok(Some(bytes))
}

/// The path on the one line of a file, relative to `base`.
fn pointer(file: &Path, prefix: &str, base: &Path) -> Result<Option<PathBuf>, Failure> {
    let Some(bytes) = small(file)? else { return Ok(None) };
    let text = String::from_utf8(bytes)
        .map_err(|_| failed("repository", &format!("{} is no text", file.display())))?;
    Ok(text.trim_end_matches(['\n', '\r']).strip_prefix(prefix).map(|path| base.join(path)))
}

fn leads_elsewhere(dot_git: &Path) -> Failure {
    Failure::local(
        status::USAGE,
        format!("{}: leads to a git directory that does not name this work tree", dot_git.display()),
        "a .git is followed only where it is a directory, or a file whose git directory leads back",
        "git worktree repair mends a moved work tree; of a submodule, clone it by itself or make a git bundle",
    )
}

/// Where `.git` of a work tree leads: its own directory, and the one it shares. None: it is no repository.
fn places(top: &Path) -> Result<Option<(PathBuf, PathBuf)>, Failure> {
    let dot_git = top.join(".git");
    let Ok(kind) = dot_git.symlink_metadata() else { return Ok(None) };
    let dir = match kind.file_type() {
        kind if kind.is_dir() => dot_git,
        kind if kind.is_file() => {
            let dir = pointer(&dot_git, "gitdir: ", top)?.ok_or_else(|| leads_elsewhere(&dot_git))?;
            let back =
                pointer(&dir.join("gitdir"), "", &dir)?.and_then(|back| back.parent()?.canonicalize().ok());
            if back.as_deref() != Some(top) {
                return Err(leads_elsewhere(&dot_git));
            }
            dir
        }
        _ => return Err(leads_elsewhere(&dot_git)),
    };
    let common = pointer(&dir.join("commondir"), "", &dir)?.unwrap_or_else(|| dir.clone());
    Ok(common.join("objects").is_dir().then_some((dir, common)))
}

impl Repository {
    /// The repository whose work tree `path` (canonical) is in, if there is one, and git on this machine.
    pub fn around(path: &Path) -> Result<Option<Repository>, Failure> {
        if Command::new("git")
            .env_remove(TOKEN)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            return Ok(None);
        }
        for top in path.ancestors() {
            let Some((dir, common)) = places(top)? else { continue };
            let own = Own::create().map_err(|error| local(&std::env::temp_dir(), &error))?;
            for (from, to) in [(&common, "info/exclude"), (&common, "shallow")] {
                if let Some(bytes) = small(&from.join(to))? {
                    fs::write(own.0.join(to), bytes).map_err(|error| local(&own.0, &error))?;
                }
            }
            let repository = Repository { top: Some(top.to_owned()), dir, common, own };
            let digits = repository.resolve("HEAD")?.map_or(40, |head| head.len());
            repository.own.configure(digits).map_err(|error| local(&repository.own.0, &error))?;
            return Ok(Some(repository));
        }
        Ok(None)
    }

    /// What a bundle holds, unpacked into a directory of nullctl's own, and the commit that is its HEAD.
    pub fn of_bundle(path: &Path) -> Result<(Repository, String), Failure> {
        let own = Own::create().map_err(|error| local(&std::env::temp_dir(), &error))?;
        let repository = Repository { top: None, dir: own.0.clone(), common: own.0.clone(), own };
        let mut listing = repository.command();
        let heads =
            repository.run("bundle list-heads", listing.args(["bundle", "list-heads"]).arg(path), b"")?;
        let heads = String::from_utf8_lossy(&heads).into_owned();
        let head = heads.lines().find_map(|line| line.strip_suffix(" HEAD")).ok_or_else(|| {
            Failure::usage(
                format!("{}: the bundle has no HEAD", path.display()),
                "make it with git bundle create FILE HEAD",
            )
        })?;
        repository.own.configure(head.len()).map_err(|error| local(&repository.own.0, &error))?;
        let mut unpacking = repository.command();
        repository.run("bundle unbundle", unpacking.args(["bundle", "unbundle"]).arg(path), b"")?;
        Ok((repository, head.to_owned()))
    }

    /// git, in nullctl's own directory, with the repository's objects.
    pub fn command(&self) -> Command {
        let mut git = self.bare();
        git.env("GIT_DIR", &self.own.0).env("GIT_OBJECT_DIRECTORY", self.common.join("objects"));
        git
    }

    /// git in the repository's own directory: only what runs nothing.
    fn there(&self, dir: &Path) -> Command {
        let mut git = self.bare();
        git.env("GIT_DIR", dir);
        git
    }

    fn bare(&self) -> Command {
        let mut git = Command::new("git");
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("GIT_") && !KEPT.contains(&name.as_str()) {
                git.env_remove(name);
            }
        }
        git.env_remove(TOKEN).env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0").env("GIT_NO_LAZY_FETCH", "1");
        git.env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_ALLOW_PROTOCOL", "none");
        git.args([
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "core.fsmonitor=false",
            "-c",
            "core.quotePath=false",
        ]);
        git.current_dir(&self.own.0);
        git
    }

    /// Runs it; its output.
    pub fn run(&self, what: &str, git: &mut Command, input: &[u8]) -> Result<Vec<u8>, Failure> {
        let (ok, out, err) = run(git, input).map_err(|error| failed(what, &error.to_string()))?;
        if ok { Ok(out) } else { Err(failed(what, &String::from_utf8_lossy(&err))) }
    }

    /// The object a name of the repository's stands for; none if it stands for nothing.
    pub fn resolve(&self, name: &str) -> Result<Option<String>, Failure> {
        let mut git = self.there(&self.dir);
        let (ok, out, _) = run(git.args(["rev-parse", "--verify", "--quiet", "--end-of-options", name]), b"")
            .map_err(|error| failed("rev-parse", &error.to_string()))?;
        Ok(ok.then(|| String::from_utf8_lossy(&out).trim().to_owned()).filter(|id| !id.is_empty()))
    }

    /// A value of the repository's or the operator's configuration.
    pub fn configured(&self, name: &str) -> Result<Option<String>, Failure> {
        let (ok, out, _) = run(self.there(&self.dir).args(["config", "--get", name]), b"")
            .map_err(|error| failed("config", &error.to_string()))?;
        Ok(ok.then(|| String::from_utf8_lossy(&out).trim_end_matches('\n').to_owned()))
    }

    /// Whether the work tree differs from its commit, or has files that git does not know.
    pub fn is_dirty(&self, commit: &str) -> Result<bool, Failure> {
        fs::write(self.own.0.join("HEAD"), format!("{commit}\n"))
            .map_err(|error| local(&self.own.0, &error))?;
        let mut git = self.in_work_tree(self.top.as_deref().unwrap_or(&self.own.0));
        git.args(["status", "--porcelain", "-z", "--ignore-submodules=all"]);
        Ok(!self.run("status", &mut git, b"")?.is_empty())
    }

    fn in_work_tree(&self, at: &Path) -> Command {
        let mut git = self.command();
        git.env("GIT_INDEX_FILE", self.dir.join("index")).current_dir(at);
        // A bare directory has no work tree, unless one is named.
        git.env("GIT_WORK_TREE", self.top.as_deref().unwrap_or(at));
        git
    }

    /// Paths below `at` that are tracked, or neither tracked nor ignored.
    pub fn files(&self, at: &Path) -> Result<BTreeSet<String>, Failure> {
        let mut git = self.in_work_tree(at);
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let out = self.run("ls-files", &mut git, b"")?;
        out.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(text).collect()
    }

    /// What a commit's tree holds: mode, object and path of each entry that is no directory.
    pub fn tree(&self, commit: &str) -> Result<Vec<(String, String, String)>, Failure> {
        let mut git = self.command();
        let out = self.run(
            "ls-tree",
            git.args(["ls-tree", "-r", "-z", "--full-tree", "--end-of-options", commit]),
            b"",
        )?;
        let mut entries = Vec::new();
        for line in out.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            let line = text(line)?;
            let (facts, path) =
                line.split_once('\t').ok_or_else(|| failed("ls-tree", "a line without a path"))?;
            let mut facts = facts.split(' ');
            let (Some(mode), Some(_), Some(object)) = (facts.next(), facts.next(), facts.next()) else {
                return Err(failed("ls-tree", "a line without an object"));
            };
            entries.push((mode.to_owned(), object.to_owned(), path.to_owned()));
        }
        Ok(entries)
    }

    /// Contents of objects, one after the other.
    pub fn objects(&self) -> Result<Objects, Failure> {
        let mut git = self.command();
        git.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = git.spawn().map_err(|error| failed("cat-file", &error.to_string()))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(asked), Some(answers)) => Ok(Objects { child, asked, answers: BufReader::new(answers) }),
            _ => Err(failed("cat-file", "it has no pipes")),
        }
    }

    /// A path in nullctl's own directory.
    pub fn own(&self, name: &str) -> PathBuf {
        self.own.0.join(name)
    }

    /// Whether a work tree has the branch checked out.
    pub fn is_checked_out(&self, branch: &str) -> Result<bool, Failure> {
        let mut git = self.there(&self.common);
        git.args(["for-each-ref", "--format=%(worktreepath)", &format!("refs/heads/{branch}")]);
        let elsewhere = !self.run("for-each-ref", &mut git, b"")?.trim_ascii().is_empty();
        let (ok, out, _) = run(self.there(&self.dir).args(["symbolic-ref", "--quiet", "HEAD"]), b"")
            .map_err(|error| failed("symbolic-ref", &error.to_string()))?;
        Ok(elsewhere || (ok && String::from_utf8_lossy(&out).trim() == format!("refs/heads/{branch}")))
    }

    /// Sets a branch, if it is still where it was (empty: if there is none).
    pub fn set_branch(&self, branch: &str, to: &str, was: &str) -> Result<(), Failure> {
        let was = if was.is_empty() { "0".repeat(to.len()) } else { was.to_owned() };
        let mut git = self.there(&self.common);
        git.args(["update-ref", "--no-deref", &format!("refs/heads/{branch}"), to, &was]);
        self.run("update-ref", &mut git, b"").map(drop)
    }
}

fn text(bytes: &[u8]) -> Result<String, Failure> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        let shown = visible(&String::from_utf8_lossy(bytes));
        Failure::usage(format!("`{shown}`: the name is not UTF-8"), "rename it, or have git ignore it")
    })
}

/// Runs a program with an input: whether it ended well, its output and its errors.
fn run(command: &mut Command, input: &[u8]) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // A program that does not read its input to the end says why by its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let output = child.wait_with_output()?;
        Ok((output.status.success(), output.stdout, output.stderr))
    })
}

/// A running `git cat-file --batch`.
#[derive(Debug)]
pub struct Objects {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Objects {
    /// One object's contents, at most so many bytes.
    pub fn content(&mut self, object: &str, bytes_max: u64) -> Result<Vec<u8>, Failure> {
        let wrong = |error: io::Error| failed("cat-file", &error.to_string());
        self.asked
            .write_all(format!("{object}\n").as_bytes())
            .and_then(|()| self.asked.flush())
            .map_err(wrong)?;
        let mut line = String::new();
        (&mut self.answers).take(4096).read_line(&mut line).map_err(wrong)?;
        let size: Option<u64> = line.trim_end().rsplit_once(' ').and_then(|(_, size)| size.parse().ok());
        let size = size.ok_or_else(|| failed("cat-file", &line))?;
        if size > bytes_max {
            return Err(failed("cat-file", &format!("{object} has {size} bytes, {bytes_max} are allowed")));
        }
        let mut content = Vec::new();
        (&mut self.answers).take(size).read_to_end(&mut content).map_err(wrong)?;
        let mut end = [0u8; 1];
        self.answers.read_exact(&mut end).map_err(wrong)?;
        match content.len() as u64 == size && end == [b'\n'] {
            true => Ok(content),
            false => Err(failed("cat-file", "its answer is cut")),
        }
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
