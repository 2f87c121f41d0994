//! Tasks from the operator's side: what is packed, what is applied, what is committed, and what a hostile repository or node gets done
//! with it (nothing). Real git, and a node that answers from what the test gives it.

mod fixture;
#[path = "task/forge.rs"]
mod forge;

use abi::control::{PatchSummary, TaskRun};
use abi::files::{Content, Record, Writer};
use abi::ids::Digest;
use abi::rpc::{Code, Request, Response, RpcError};
use abi::wire::Connection;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fixture::{Scratch, nullctl};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use verdict::patch::{Claimed, ClaimedChange, ClaimedContent, Protect, check};
use verdict::tree::{Entry, Tree};

/// What the node knows and was asked.
#[derive(Default)]
struct Known {
    tar: Vec<u8>,
    run: Option<TaskRun>,
    status: Value,
    patch: Vec<u8>,
    /// Of the patch, if it is not told as it is.
    told_sha256: Option<Digest>,
    /// An operator says no.
    denies: bool,
    asked: Vec<(String, Value)>,
    answers: BTreeMap<&'static str, Value>,
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

/// A node of one test, and a directory.
struct World {
    scratch: Scratch,
    node: Arc<Mutex<Known>>,
}

fn sum(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

impl World {
    fn new() -> World {
        let scratch = Scratch::new();
        let listener = UnixListener::bind(scratch.path("node.sock")).unwrap();
        let node: Arc<Mutex<Known>> = Arc::default();
        let known = node.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let known = known.clone();
                std::thread::spawn(move || serve(Connection::new(stream.unwrap()), &known));
            }
        });
        World { scratch, node }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = nullctl();
        command.args(args).arg("--socket").arg(self.scratch.path("node.sock"));
        command.env("GIT_CONFIG_GLOBAL", self.scratch.path("gitconfig")).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_AUTHOR_DATE", "1700000000 +0000").env("GIT_COMMITTER_DATE", "1700000000 +0000");
        let output = command.envs(environment.iter().copied()).output().unwrap();
        Ran {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Packs a directory, as a task begins with it.
    fn begin(&self, dir: &str) -> Tree {
        let ran = self.run(&[
            "task",
            "run",
            "--agent",
            "coder",
            "--repo",
            dir,
            "--goal",
            "mend it",
            "--verify",
            "make check",
        ]);
        assert_eq!((ran.status, ran.out.as_str()), (0, "t7\n"), "{}", ran.err);
        tree_of(&self.node.lock().unwrap().tar)
    }

    /// The task's verified patch.
    fn verified(&self, base: &Tree, changes: &[(&str, Option<&str>)]) {
        let mut wire = Vec::new();
        let mut writer = Writer::new(&mut wire);
        let mut claimed = Claimed::default();
        for (path, new) in changes {
            let content = match new {
                None => Content::Removed,
                Some(link) if link.starts_with("->") => Content::Link { target: link[2..].to_owned() },
                Some("/") => Content::Directory,
                Some(text) => Content::File { bytes: text.len() as u64 },
            };
            let mode = if path.ends_with(".sh") { 0o755 } else { 0o644 };
            let (path, mode) =
                ((*path).to_owned(), if matches!(content, Content::Directory) { 0o755 } else { mode });
            writer
                .record(&Record {
                    path: path.clone(),
                    mode,
                    modified_unix_s: 0,
                    content: content.clone(),
                    in_rootfs: false,
                })
                .unwrap();
            let content = match content {
                Content::File { bytes } => {
                    writer.out().write_all(new.unwrap().as_bytes()).unwrap();
                    ClaimedContent::File { sha256: sum(new.unwrap().as_bytes()), bytes }
                }
                Content::Link { target } => ClaimedContent::Link { target },
                Content::Directory => ClaimedContent::Directory,
                _ => ClaimedContent::Removed,
            };
            claimed.changes.push(ClaimedChange { path, mode, content });
        }
        let set = check(base, claimed, &Protect::new(&[], &[], &[]).unwrap()).unwrap();
        let patch = PatchSummary {
            candidate: 1,
            digest: set.digest(),
            result: set.result(),
            files: Vec::new(),
            receipt: 41,
        };
        let mut node = self.node.lock().unwrap();
        node.patch = wire;
        node.status = json!({"id": "t7", "agent": "coder", "goal": "mend it\nall of it", "verify": ["make", "check"], "protect": [],
            "state": "verified", "reason": "", "by": "operator olga", "begun_unix_ms": 1000, "ended_unix_ms": 2000, "base": base.digest(),
            "candidates": [{"number": 1, "instance": null, "state": "verified", "reason": "", "attempts": 1, "recoveries": 0, "score": null,
            "note": "done\u{1b}[2J"}], "spent": {}, "budget": {}, "patch": patch, "revision": 9});
    }

    fn methods(&self) -> Vec<String> {
        self.node.lock().unwrap().asked.iter().map(|(method, _)| method.clone()).collect()
    }
}

fn serve(mut connection: Connection, known: &Mutex<Known>) {
    let Ok(Some(line)) = connection.read_line() else { return };
    let mut request = Request::parse(&line).unwrap();
    let (id, method, params) = (request.id, request.method.clone(), request.params.clone());
    known.lock().unwrap().asked.push((method.clone(), params));
    let outcome = match method.as_str() {
        "task.run" => {
            let run: TaskRun = request.take_params().unwrap();
            connection.write_line(&Request::notification("ready", json!({}))).unwrap();
            let mut tar = vec![0; run.tree_bytes as usize];
            connection.read_exact(&mut tar).unwrap();
            let mut known = known.lock().unwrap();
            (known.tar, known.run) = (tar, Some(run));
            Ok(json!({"id": "t7"}))
        }
        "task.status" => Ok(known.lock().unwrap().status.clone()),
        "task.watch" => {
            let status = known.lock().unwrap().status.clone();
            connection.write_line(&Request::notification("task", status.clone())).unwrap();
            Ok(status)
        }
        "task.export" | "task.integrate" => {
            let known = known.lock().unwrap();
            if known.denies {
                Err(RpcError::new(Code::DENIED, "nobody approved it").explained("approval", "ask again"))
            } else {
                for (seq, part) in known.patch.chunks(1000).enumerate() {
                    let output =
                        json!({"stream": "stdout", "seq": seq, "unix_ms": 0, "data": STANDARD.encode(part)});
                    connection.write_line(&Request::notification("output", output)).unwrap();
                }
                let sha256 = known.told_sha256.unwrap_or_else(|| sum(&known.patch));
                Ok(match method.as_str() {
                    "task.export" => json!({"bytes": known.patch.len(), "sha256": sha256}),
                    _ => json!({"receipt": 44, "approval": "a3", "patch": known.status["patch"]["digest"]}),
                })
            }
        }
        other => match known.lock().unwrap().answers.get(other) {
            Some(answer) => Ok(answer.clone()),
            None => Ok(json!({})),
        },
    };
    connection.write_line(&Response::of(id, outcome)).unwrap();
    let _ = connection.read_line(); // until nullctl has read it
}

/// The tree in a tar, read by another reader than nullctl's own.
fn tree_of(bytes: &[u8]) -> Tree {
    let mut archive = tar::Archive::new(bytes);
    let mut paths = Vec::new();
    let mut entries = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        let path = String::from_utf8(entry.path_bytes().trim_ascii().to_vec())
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        let is_executable = header.mode().unwrap() == 0o755;
        let made = match header.entry_type() {
            tar::EntryType::Directory => Entry::Directory,
            tar::EntryType::Symlink => {
                Entry::Link { target: String::from_utf8(entry.link_name_bytes().unwrap().to_vec()).unwrap() }
            }
            tar::EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                Entry::File { is_executable, sha256: sum(&content), bytes: content.len() as u64 }
            }
            other => panic!("{path}: {other:?}"),
        };
        paths.push(path.clone());
        entries.push((path, made));
    }
    assert!(paths.is_sorted(), "{paths:?}");
    Tree::new(entries).unwrap()
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.entries().map(|(path, _)| path.to_owned()).collect()
}

fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for (name, value) in [("NAME", "Ann"), ("EMAIL", "ann@example.org")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

/// A repository with a commit, on branch `main`.
fn repository(world: &World, name: &str) -> String {
    let dir = world.scratch.path(name);
    write(
        &dir,
        &[
            ("src/lib.rs", "fn a() {}\n"),
            ("run.sh", "#!/bin/sh\n"),
            ("docs/old/a.md", "old\n"),
            (".gitignore", "target\n"),
        ],
    );
    std::fs::set_permissions(dir.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("src/lib.rs", dir.join("link")).unwrap();
    git(&dir, &["init", "-q", "-b", "main"]);
    git(&dir, &["config", "user.name", "Bob"]);
    git(&dir, &["config", "user.email", "bob@example.org"]);
    git(&dir, &["add", "-A"]);
    git(&dir, &["commit", "-qm", "one"]);
    dir.to_str().unwrap().to_owned()
}

#[test]
fn what_git_tracks_or_does_not_ignore_is_packed_always_the_same() {
    let world = World::new();
    let dir = repository(&world, "r");
    let here = Path::new(&dir);
    write(
        here,
        &[
            ("target/out", "x"),
            ("new.rs", "new\n"),
            ("long/".repeat(40).as_str().trim_end_matches('/'), "deep\n"),
        ],
    );
    std::fs::remove_file(here.join("docs/old/a.md")).unwrap();
    let long = "long/".repeat(39) + "long";
    let tree = world.begin(&dir);
    let mut found = paths(&tree);
    found.retain(|path| !path.starts_with("long"));
    assert_eq!(found, [".gitignore", "link", "new.rs", "run.sh", "src", "src/lib.rs"]);
    assert!(tree.entry(&long).is_some(), "a path longer than a ustar name");
    assert!(matches!(tree.entry("run.sh"), Some(Entry::File { is_executable: true, .. })));
    assert!(matches!(tree.entry("link"), Some(Entry::Link { target }) if target == "src/lib.rs"));
    let (first, run) = {
        let node = world.node.lock().unwrap();
        (node.tar.clone(), node.run.clone().unwrap())
    };
    assert_eq!(run.verify, ["make", "check"]);
    assert!(run.source.unwrap().ends_with("and what is not committed"));
    let touched = std::fs::File::open(here.join("new.rs")).unwrap();
    touched.set_modified(std::time::UNIX_EPOCH).unwrap();
    std::fs::set_permissions(here.join("new.rs"), std::fs::Permissions::from_mode(0o600)).unwrap();
    world.begin(&dir);
    assert!(world.node.lock().unwrap().tar == first, "time and permissions beside one bit are left out");
    let ignored = format!("{dir}/target");
    let words = ["task", "run", "--agent", "a", "--goal", "g", "--verify", "make", "--repo", &ignored];
    let ran = world.run(&words);
    assert!(ran.status == 2 && ran.err.contains("ignores all that is in it"), "{}", ran.err);
    // A directory below the top is a tree of its own, and so is one outside git.
    assert_eq!(paths(&world.begin(&format!("{dir}/src"))), ["lib.rs"]);
    let plain = world.scratch.path("plain");
    write(&plain, &[("a", "1"), ("target/out", "x"), ("sub/.git/config", "x"), ("sub/b", "2")]);
    std::fs::create_dir(plain.join("empty")).unwrap();
    let tree = world.begin(plain.to_str().unwrap());
    // What lies in a repository of its own is a part of the tree outside git; its `.git` never is.
    assert_eq!(paths(&tree), ["a", "empty", "sub", "sub/b", "target", "target/out"]);
}

#[test]
fn a_bundle_is_the_tree_of_its_head() {
    let world = World::new();
    let dir = repository(&world, "r");
    let direct = world.begin(&dir);
    let bundle = world.scratch.path("r.bundle");
    git(Path::new(&dir), &["bundle", "create", "-q", bundle.to_str().unwrap(), "HEAD"]);
    let tree = world.begin(bundle.to_str().unwrap());
    assert_eq!(tree.digest(), direct.digest());
    assert!(world.node.lock().unwrap().run.clone().unwrap().source.unwrap().starts_with("r.bundle: commit "));
    git(Path::new(&dir), &["bundle", "create", "-q", bundle.to_str().unwrap(), "main"]);
    let ran = world.run(&[
        "task",
        "run",
        "--agent",
        "a",
        "--repo",
        bundle.to_str().unwrap(),
        "--goal",
        "g",
        "--verify",
        "v",
    ]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.err.contains("the bundle has no HEAD") && ran.err.contains("git bundle create FILE HEAD"),
        "{}",
        ran.err
    );
}

/// Everything a repository can name to be run writes a file when it is.
#[test]
fn nothing_of_a_hostile_repository_is_run_or_followed() {
    let world = World::new();
    let dir = repository(&world, "evil");
    let here = Path::new(&dir);
    let canary = world.scratch.path("canary");
    let evil = world.scratch.path("evil.sh");
    std::fs::write(&evil, format!("#!/bin/sh\necho \"$0 $@\" >> {}\ncat\n", canary.display())).unwrap();
    std::fs::set_permissions(&evil, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = evil.to_str().unwrap();
    for hook in [
        "fsmonitor-watchman",
        "pre-commit",
        "reference-transaction",
        "pre-push",
        "post-index-change",
        "commit-msg",
        "post-checkout",
    ] {
        std::fs::copy(&evil, here.join(".git/hooks").join(hook)).unwrap();
    }
    write(here, &[(".gitattributes", "* filter=evil diff=evil text\n")]);
    git(here, &["add", ".gitattributes"]);
    git(here, &["commit", "-qm", "two"]);
    for (name, value) in [
        ("core.fsmonitor", script),
        ("core.hooksPath", here.join(".git/hooks").to_str().unwrap()),
        ("core.worktree", "/etc"),
        ("core.sshCommand", script),
        ("core.pager", script),
        ("core.editor", script),
        ("core.askPass", script),
        ("core.alternateRefsCommand", script),
        ("filter.evil.clean", script),
        ("filter.evil.smudge", script),
        ("filter.evil.process", script),
        ("filter.evil.required", "true"),
        ("diff.evil.textconv", script),
        ("diff.external", script),
        ("credential.helper", &format!("!{script}")),
        ("gpg.program", script),
        ("commit.gpgSign", "true"),
        ("protocol.ext.allow", "always"),
        ("remote.origin.url", &format!("ext::{script}")),
        ("remote.local.url", &dir),
        ("remote.origin.promisor", "true"),
        ("extensions.partialClone", "origin"),
        ("alias.ls-files", &format!("!{script}")),
    ] {
        git(here, &["config", name, value]);
    }
    git(here, &["config", "core.repositoryFormatVersion", "1"]);
    let _ = std::fs::remove_file(&canary); // git itself, above, is not what is tested
    // A tracked file whose directory was replaced by a link that leads out, and links that lead out themselves.
    let outside = world.scratch.path("outside");
    write(&outside, &[("lib.rs", "secret")]);
    symlink("/etc/passwd", here.join("out")).unwrap();
    let tree = world.begin(&dir);
    assert!(
        matches!(tree.entry("out"), Some(Entry::Link { target }) if target == "/etc/passwd"),
        "a link is packed as a link"
    );
    assert!(!canary.exists(), "{}", std::fs::read_to_string(&canary).unwrap());
    // The same repository takes a verified patch.
    std::fs::remove_file(here.join("out")).unwrap();
    let base = world.begin(&dir);
    world.verified(&base, &[("src/lib.rs", Some("fn b() {}\n"))]);
    let ran = world.run(&["task", "integrate", "t7", "--commit", "fix", "--repo", &dir]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    for (remote, why) in [
        ("origin", "ext::"),
        ("local", "may only name"),
        ("none", "there is no remote"),
        ("--upload-pack=x", "no remote"),
    ] {
        let push = format!("--push={remote}");
        let ran = world.run(&["task", "integrate", "t7", "--commit", "more", &push, "--repo", &dir]);
        assert_eq!(ran.status, 2, "{remote}");
        assert!(ran.err.contains(why), "{remote}: {}", ran.err);
    }
    assert!(!canary.exists(), "{}", std::fs::read_to_string(&canary).unwrap());
    // A directory on the way that became a link is not gone through.
    std::fs::remove_dir_all(here.join("src")).unwrap();
    symlink(&outside, here.join("src")).unwrap();
    let ran = world.run(&["task", "run", "--agent", "a", "--repo", &dir, "--goal", "g", "--verify", "v"]);
    let sent = world.node.lock().unwrap().tar.clone();
    assert!(ran.status != 0 || !sent.windows(6).any(|window| window == b"secret"), "{}", ran.err);
    assert!(!canary.exists());
}

#[test]
fn a_git_file_is_followed_only_where_it_leads_back() {
    let world = World::new();
    let dir = repository(&world, "victim");
    let trick = world.scratch.path("trick");
    write(&trick, &[("a", "1"), (".git", &format!("gitdir: {dir}/.git\n"))]);
    let args = ["task", "run", "--agent", "a", "--goal", "g", "--verify", "v", "--repo"];
    let ran = world.run(&[&args[..], &[trick.to_str().unwrap()]].concat());
    assert_eq!(ran.status, 2, "{}", ran.err);
    assert!(ran.err.contains("does not name this work tree"), "{}", ran.err);
    std::fs::remove_file(trick.join(".git")).unwrap();
    symlink(format!("{dir}/.git"), trick.join(".git")).unwrap();
    assert_eq!(world.run(&[&args[..], &[trick.to_str().unwrap()]].concat()).status, 2);
    // A work tree that git made leads back.
    let second = world.scratch.path("second");
    git(Path::new(&dir), &["worktree", "add", "-q", "-b", "second", second.to_str().unwrap()]);
    assert_eq!(world.begin(second.to_str().unwrap()).digest(), world.begin(&dir).digest());
}

#[test]
fn a_patch_is_applied_whole_or_not_at_all() {
    let world = World::new();
    let dir = repository(&world, "r");
    let here = Path::new(&dir);
    let base = world.begin(&dir);
    let read = |path: &str| std::fs::read_to_string(here.join(path)).ok();
    let ran =
        world.run(&["task", "run", "--agent", "a", "--repo", &dir, "--goal", "g", "--verify", "a && b"]);
    assert!(ran.err.contains("no shell reads it, so && is an argument"), "{}", ran.err);
    let changes = [
        ("docs", None),
        ("docs/old", None),
        ("docs/old/a.md", None),
        ("link", None),
        ("run.sh", Some("#!/bin/sh\nexit 0\n")),
        ("src/lib.rs", Some("fn b() {}\n")),
        ("src/more", Some("/")),
        ("src/more/new.rs", Some("new\n")),
        ("src/other", Some("->lib.rs")),
    ];
    world.verified(&base, &changes);
    let apply = || world.run(&["task", "apply", "t7", "--into", &dir]);
    let untouched = |why: &str| {
        assert_eq!(
            (read("src/lib.rs").as_deref(), read("docs/old/a.md").as_deref()),
            (Some("fn a() {}\n"), Some("old\n")),
            "{why}"
        );
        assert!(here.join("link").is_symlink() && !here.join("src/other").exists(), "{why}");
        let names =
            std::fs::read_dir(here).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.into_iter().any(|name| name.starts_with(".nullctl")), "{why}");
    };
    // Another tree than the one it began from.
    write(here, &[("extra", "x")]);
    let ran = apply();
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("not the tree") && ran.err.contains("--diff"), "{}", ran.err);
    untouched("another base");
    std::fs::remove_file(here.join("extra")).unwrap();
    // Something that git ignores is in the way of the last path: everything is put back.
    write(here, &[(".git/info/exclude", "src/other\nsrc/more\n"), ("src/other", "mine")]);
    let ran = apply();
    assert_eq!(ran.status, 1, "{}", ran.out);
    assert!(
        ran.err.contains("src/other: something is there") && ran.err.contains("nothing was changed"),
        "{}",
        ran.err
    );
    assert_eq!(read("src/other").as_deref(), Some("mine"));
    std::fs::remove_file(here.join("src/other")).unwrap();
    untouched("in the way");
    // An ignored directory that is a link out of the tree is not gone through.
    let outside = world.scratch.path("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, here.join("src/more")).unwrap();
    let ran = apply();
    assert_eq!(ran.status, 1, "{}", ran.out);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    std::fs::remove_file(here.join("src/more")).unwrap();
    untouched("a link");
    // A node that sends another patch than it verified, or not all of it.
    let sound = world.node.lock().unwrap().patch.clone();
    let forged = String::from_utf8(sound.clone()).unwrap().replace("fn b", "fn c");
    world.node.lock().unwrap().patch = forged.into_bytes();
    let ran = apply();
    assert!(ran.status == 1 && ran.err.contains("is not the verified one"), "{}", ran.err);
    world.node.lock().unwrap().patch = sound.clone();
    world.node.lock().unwrap().told_sha256 = Some(sum(b"other"));
    assert!(apply().err.contains("what came is not what the node said"));
    world.node.lock().unwrap().told_sha256 = None;
    untouched("forged");
    let ran = apply();
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(
        (read("src/lib.rs").as_deref(), read("src/more/new.rs").as_deref()),
        (Some("fn b() {}\n"), Some("new\n"))
    );
    assert!(!here.join("docs/old").exists() && !here.join("link").is_symlink());
    assert_eq!(std::fs::read_link(here.join("src/other")).unwrap(), Path::new("lib.rs"));
    assert_eq!(std::fs::metadata(here.join("run.sh")).unwrap().permissions().mode() & 0o111, 0o111);
    write(here, &[(".git/info/exclude", "")]);
    let result = world.node.lock().unwrap().status["patch"]["result"].clone();
    assert_eq!(json!(world.begin(&dir).digest()), result, "the tree is the one that was verified");
    assert_eq!(apply().status, 1, "it is applied once");
}

#[test]
fn the_executable_bit_is_applied_and_put_back() {
    let world = World::new();
    let dir = repository(&world, "r");
    let here = Path::new(&dir);
    write(here, &[("tool.sh", "#!/bin/sh\n"), ("src/run", "x\n")]);
    let mode = |path: &str| std::fs::metadata(here.join(path)).unwrap().permissions().mode() & 0o100 != 0;
    std::fs::set_permissions(here.join("src/run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let base = world.begin(&dir);
    // The contents stay as they are; the last path finds something in its way at first.
    world.verified(
        &base,
        &[("src/run", Some("x\n")), ("tool.sh", Some("#!/bin/sh\n")), ("zz", Some("new\n"))],
    );
    write(here, &[(".git/info/exclude", "zz\n"), ("zz", "mine")]);
    let apply = || world.run(&["task", "apply", "t7", "--into", &dir]);
    let ran = apply();
    assert!(ran.status == 1 && ran.err.contains("nothing was changed"), "{}", ran.err);
    assert!(mode("src/run") && !mode("tool.sh"));
    std::fs::remove_file(here.join("zz")).unwrap();
    let ran = apply();
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(!mode("src/run") && mode("tool.sh"));
}

#[test]
fn a_patch_with_a_git_directory_is_refused_here_too() {
    let world = World::new();
    let dir = repository(&world, "r");
    let base = world.begin(&dir);
    world.verified(&base, &[("src/lib.rs", Some("x"))]);
    let mut wire = Vec::new();
    let mut writer = Writer::new(&mut wire);
    for path in [".git/hooks/post-checkout", "../out", "src/.GIT/config"] {
        let content = Content::File { bytes: 1 };
        writer
            .record(&Record { path: path.into(), mode: 0o755, modified_unix_s: 0, content, in_rootfs: false })
            .unwrap();
        writer.out().write_all(b"x").unwrap();
    }
    world.node.lock().unwrap().patch = wire;
    let ran = world.run(&["task", "apply", "t7", "--into", &dir]);
    assert_eq!(ran.status, 1);
    assert!(
        !Path::new(&dir).join(".git/hooks/post-checkout").exists() && !world.scratch.path("out").exists()
    );
}

#[test]
fn a_commit_holds_the_verified_tree_and_waits_for_the_approval() {
    let world = World::new();
    let dir = repository(&world, "r");
    let here = Path::new(&dir);
    let base = world.begin(&dir);
    world.verified(
        &base,
        &[("src/lib.rs", Some("fn b() {}\n")), ("docs/old/a.md", None), ("empty", Some("/"))],
    );
    let head = git(here, &["rev-parse", "HEAD"]);
    let index = std::fs::read(here.join(".git/index")).unwrap();
    let integrate = |more: &[&str]| world.run(&[&["task", "integrate", "t7", "--repo", &dir], more].concat());
    world.node.lock().unwrap().denies = true;
    let ran = integrate(&["--commit", "fix"]);
    assert_eq!(ran.status, 4, "{}", ran.err);
    assert_eq!(git(here, &["branch", "--list", "fix"]), "", "no approval, no branch");
    world.node.lock().unwrap().denies = false;
    for (branch, why) in
        [("main", "is checked out"), ("-x", "cannot name a branch"), ("a..b", "cannot name a branch")]
    {
        let ran = integrate(&[&format!("--commit={branch}")]);
        assert!(ran.status == 2 && ran.err.contains(why), "{branch}: {}", ran.err);
    }
    let remote = world.scratch.path("remote.git");
    git(&world.scratch.0, &["init", "-q", "--bare", remote.to_str().unwrap()]);
    let hook = remote.join("hooks/pre-receive");
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", world.scratch.path("ran").display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    // What is not committed is not looked at: the branch's commit is what counts.
    write(here, &[("src/lib.rs", "unsaved")]);
    let ran = integrate(&["--commit", "fix", "--push", remote.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let asked = world.node.lock().unwrap().asked.last().unwrap().clone();
    assert_eq!(asked.1["step"], json!({"push": {"remote": remote.to_str().unwrap(), "branch": "fix"}}));
    assert_eq!(git(here, &["show", "fix:src/lib.rs"]), "fn b() {}");
    assert_eq!(git(here, &["ls-tree", "-r", "--name-only", "fix"]), ".gitignore\nlink\nrun.sh\nsrc/lib.rs");
    assert_eq!(git(here, &["rev-parse", "fix^"]), head);
    assert_eq!(git(&remote, &["rev-parse", "fix"]), git(here, &["rev-parse", "fix"]));
    assert!(!world.scratch.path("ran").exists(), "a hook of a remote on this machine is not run");
    let message = git(here, &["log", "-1", "--format=%an <%ae>%n%B", "fix"]);
    let digest = world.node.lock().unwrap().status["patch"]["digest"].as_str().unwrap().to_owned();
    assert!(message.starts_with("Bob <bob@example.org>\nmend it\n\nNullBox-Task: t7\n"), "{message}");
    assert!(
        message.contains(&format!("NullBox-Patch: {digest}\n"))
            && message.contains("NullBox-Attestation: 41\n"),
        "{message}"
    );
    // The work tree, its index and its branch are as they were.
    assert_eq!(std::fs::read_to_string(here.join("src/lib.rs")).unwrap(), "unsaved");
    assert!(std::fs::read(here.join(".git/index")).unwrap() == index);
    assert_eq!(git(here, &["rev-parse", "HEAD"]), head);
    // The branch is no longer the base: nothing is asked, nothing happens.
    let before = world.methods().len();
    let ran = integrate(&["--commit", "fix"]);
    assert!(ran.status == 1 && ran.err.contains("not the tree"), "{}", ran.err);
    assert_eq!(world.methods()[before..], ["task.status"]);
}

#[test]
fn what_a_node_gives_out_goes_to_files_whole_and_to_terminals_harmless() {
    let world = World::new();
    let dir = repository(&world, "r");
    let base = world.begin(&dir);
    world.verified(&base, &[("src/lib.rs", Some("x\n"))]);
    let to = world.scratch.path("t7.patch");
    let export = |more: &[&str]| world.run(&[&["task", "export", "t7"], more].concat());
    let ran = export(&["--patch", "--out", to.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(std::fs::read(&to).unwrap(), world.node.lock().unwrap().patch);
    assert_eq!(export(&["--patch", "--out", to.to_str().unwrap()]).status, 2, "nothing is replaced");
    assert_eq!(export(&["--patch", "--diff"]).status, 2);
    assert_eq!(export(&["--json"]).status, 2);
    world.node.lock().unwrap().told_sha256 = Some(sum(b"other"));
    let other = world.scratch.path("other");
    assert_eq!(export(&["--out", other.to_str().unwrap()]).status, 1);
    assert!(!other.exists());
    let ran = world.run(&["task", "watch", "t7"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(
        ran.out.starts_with("t7 verified: c1 verified\n") && ran.out.contains("  | done\\u{1b}[2J"),
        "{}",
        ran.out
    );
    world.node.lock().unwrap().status["state"] = json!("failed");
    assert_eq!(world.run(&["task", "watch", "t7"]).status, 1);
    let ran = world.run(&["task", "apply", "t7", "--into", &dir]);
    assert!(ran.status == 1 && ran.err.contains("only what a fresh VM verified"), "{}", ran.err);
}

#[test]
fn a_question_steers_no_terminal_and_forges_no_line() {
    let world = World::new();
    let digest = sum(b"x");
    let decision = json!({"verdict": "ask", "rule": "exposure", "why": "private data\u{1b}[1A meets strangers' text", "remedy": "",
        "risk": "critical", "exposure": ["private_data", "untrusted_content", "exfiltration"], "labels": []});
    let approval = json!({"id": "a7", "instance": "coder.3", "task": "t7", "tool": "fetch", "what": "GET https://x.test/?\u{202e}q",
        "shown": "a\nnullctl approve a7\r\u{1b}]0;x\u{7}\u{200b}", "is_cut": true, "decision": decision, "arguments": digest, "pinned": digest,
        "role": "admin", "asked_unix_ms": 0, "until_unix_ms": 99_999_999_999_999u64, "is_frozen": true});
    world.node.lock().unwrap().answers.insert("approval.list", json!({ "approvals": [approval] }));
    let ran = world.run(&["approvals"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(ran.out.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{}", ran.out);
    for line in [
        "  what       GET https://x.test/?\\u{202e}q",
        "  exposure   private_data untrusted_content exfiltration",
        "  decides    admin or above",
        "  | nullctl approve a7\\r\\u{1b}]0;x\\u{7}\\u{200b}",
    ] {
        assert!(ran.out.lines().any(|shown| shown == line), "{line}\n{}", ran.out);
    }
    assert!(ran.out.contains("stands still") && ran.out.contains("the rest is cut"));
    assert_eq!(world.run(&["approve", "a7"]).status, 2, "no reason, no answer");
    assert_eq!(world.run(&["approve", "a7", "--reason", " "]).status, 2);
    assert!(!world.methods().contains(&"approval.decide".to_owned()));
    assert_eq!(world.run(&["deny", "a7", "--reason", "no"]).status, 0);
    let asked = world.node.lock().unwrap().asked.last().unwrap().clone();
    assert_eq!(asked, ("approval.decide".into(), json!({"id": "a7", "approve": false, "reason": "no"})));
}

#[test]
fn a_tightening_is_sent_as_what_holds_with_what_is_less() {
    let world = World::new();
    let rules =
        json!({"levels": {"run_bash": "always", "read_files": "always"}, "read": ["/work/**"], "depth": 1});
    let status = json!({"instance": "coder.3", "seen": ["private_data"], "written": [], "raised_by": [4], "spent": {"calls": 3},
        "left": {}, "rules": [rules]});
    world.node.lock().unwrap().answers.insert("exposure.status", status);
    let file = world.scratch.path("less.toml");
    std::fs::write(&file, "never = [\"/work/.env\"]\noperations = { run_bash = \"never\" }\n").unwrap();
    let ran = world.run(&["agent", "tighten", "coder", "--rules", file.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let sent = world.node.lock().unwrap().asked.last().unwrap().1.clone();
    assert_eq!(sent["rules"]["levels"], json!({"read_files": "always", "run_bash": "never"}));
    assert_eq!(
        (&sent["rules"]["read"], &sent["rules"]["never"]),
        (&json!(["/work/**"]), &json!(["/work/.env"]))
    );
    let ran = world.run(&["agent", "exposure", "coder"]);
    assert!(
        ran.out.contains("has seen              private_data") && ran.out.contains("3 calls"),
        "{}",
        ran.out
    );
    for wrong in [&["--arguments", "xyz", "--reason", "r"][..], &["--reason", "r"]] {
        assert_eq!(world.run(&[&["agent", "declassify", "coder"], wrong].concat()).status, 2);
    }
    let hex = sum(b"x").hex();
    assert_eq!(
        world.run(&["agent", "declassify", "coder", "--arguments", &hex, "--reason", "public"]).status,
        0
    );
}

#[test]
fn an_attestation_is_checked_without_a_node_and_against_a_tree() {
    let world = World::new();
    let dir = repository(&world, "r");
    let base = world.begin(&dir);
    let signer = ledger::keys::Signer::from_seed(&[7; 32]).unwrap();
    let checkpoint = ledger::checkpoint::Checkpoint {
        ledger_id: [1; 32],
        size: 42,
        root: sum(b"root"),
        head: sum(b"head"),
        unix_ms: 9,
    };
    let facts = json!({"task": "t7", "agent": "coder", "verifier": "t7-v1.1", "base": sum(b"base"), "patch": sum(b"patch"),
        "result": base.digest(), "command": ["make", "check"], "rootfs": sum(b"rootfs"), "kernel": sum(b"kernel"), "init": sum(b"init"),
        "protect": ["/work/tests/**"], "source": "r: commit \u{1b}[2J", "output": sum(b"out"), "wall_ms": 1500});
    let predicate = ledger::attestation::Predicate {
        facts: serde_json::from_value(facts).unwrap(),
        receipt: abi::ledger::Receipt { seq: 41, digest: sum(b"frame") },
        checkpoint: checkpoint.sign(&signer),
    };
    let text = ledger::attestation::sign(&signer, predicate).unwrap();
    let file = world.scratch.path("t7.attestation");
    std::fs::write(&file, &text).unwrap();
    let key = signer.public().to_string();
    let check = |key: &str, more: &[&str]| {
        let mut command = nullctl();
        command.args(["task", "verify-attestation", file.to_str().unwrap(), "--key", key]).args(more);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (status, out, err) = check(&key, &["--repo", &dir]);
    assert_eq!(status, Some(0), "{err}");
    assert!(
        out.contains("is the tree that was verified")
            && out.contains("event 41 of 42")
            && out.contains("\\u{1b}[2J"),
        "{out}"
    );
    let other = ledger::keys::Signer::from_seed(&[8; 32]).unwrap().public().to_string();
    assert_eq!(check(&other, &[]).0, Some(1), "another key");
    write(Path::new(&dir), &[("src/lib.rs", "fn evil() {}\n")]);
    let (status, _, err) = check(&key, &["--repo", &dir]);
    assert!(status == Some(1) && err.contains("was verified"), "another tree: {err}");
    assert_eq!(check(&key, &[]).0, Some(0));
    let place = text.find("payload\":\"").unwrap() + 60;
    for (at, byte) in [(place, b'A'), (place + 1, b'B')] {
        let mut forged = text.clone().into_bytes();
        forged[at] = if forged[at] == byte { b'C' } else { byte };
        std::fs::write(&file, forged).unwrap();
        assert_eq!(check(&key, &[]).0, Some(1), "a byte of it");
    }
    assert_eq!(check("nonsense", &[]).0, Some(2));
}
