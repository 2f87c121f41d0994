//! Attacks with a change set: out of the tree, into git, and on what judges it. What passes is really written, to a real directory, by
//! somebody who follows every link, and what must not be touched is looked at after.

use crate::house::{Random, digest, paths};
use abi::guest::Exit;
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use verdict::patch::{Claimed, ClaimedChange, ClaimedContent, Protect, Verification, check, mint};
use verdict::tree::{Entry, Tree};

fn file(text: &str) -> Entry {
    Entry::File { is_executable: false, sha256: digest(text), bytes: text.len() as u64 }
}

fn base() -> Tree {
    let directories = ["src", "tests", "src/deep"].map(|path| (path.to_owned(), Entry::Directory));
    let files = ["src/lib.rs", "src/deep/a", "tests/one.rs", "check.sh", "Makefile"]
        .map(|path| (path.to_owned(), file("old")));
    let links = [
        ("here".to_owned(), Entry::Link { target: "src".into() }),
        ("spec".to_owned(), Entry::Link { target: "tests".into() }),
    ];
    Tree::new(directories.into_iter().chain(files).chain(links)).unwrap()
}

/// A real directory with the base in it, a repository beside it, and a file outside.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let root = place.0.path();
        let work = root.join("work");
        for directory in ["work/src/deep", "work/tests", "work/.git/hooks"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        for (path, entry) in base().entries() {
            match entry {
                Entry::File { .. } => std::fs::write(work.join(path), "old").unwrap(),
                Entry::Link { target } => symlink(target, work.join(path)).unwrap(),
                Entry::Directory => {}
            }
        }
        std::fs::write(root.join("outside"), "old").unwrap();
        std::fs::write(work.join(".git/config"), "old").unwrap();
        place
    }

    /// As a careless program would: every link is followed.
    fn write(&self, changes: &[ClaimedChange]) {
        for change in changes {
            let at = self.0.path().join("work").join(change.path.trim_start_matches('\0'));
            // What went wrong was not written, and that is looked at after.
            let _ = match &change.content {
                ClaimedContent::File { .. } => std::fs::write(&at, "new"),
                ClaimedContent::Directory => std::fs::create_dir_all(&at),
                ClaimedContent::Link { target } => {
                    let _ = std::fs::remove_file(&at);
                    symlink(target, &at)
                }
                ClaimedContent::Removed => {
                    std::fs::remove_file(&at).or_else(|_| std::fs::remove_dir_all(&at))
                }
                ClaimedContent::Other { .. } => Ok(()),
            };
        }
    }

    fn census(&self, at: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let about = entry.path().symlink_metadata().unwrap();
            if about.is_dir() {
                self.census(&entry.path(), out);
            }
            let text = if about.is_file() {
                std::fs::read_to_string(entry.path()).unwrap_or_default()
            } else {
                String::new()
            };
            out.insert(entry.path().strip_prefix(self.0.path()).unwrap().into(), text);
        }
    }

    /// What stands where no patch may write: outside of the tree, and in its repository.
    fn untouchable(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        self.census(self.0.path(), &mut all);
        all.retain(|path, _| !path.starts_with("work") || path.starts_with("work/.git"));
        all
    }
}

fn change(random: &mut Random, path: &str, targets: &[&str]) -> ClaimedChange {
    let target = (*random.pick(targets)).to_owned();
    let content = match random.below(7) {
        0 => ClaimedContent::Removed,
        1 => ClaimedContent::Directory,
        2 | 3 => ClaimedContent::Link { target },
        _ => ClaimedContent::File { sha256: digest("new"), bytes: 3 },
    };
    ClaimedChange { path: path.into(), mode: 0o644, content }
}

pub fn path_escape(random: &mut Random, breached: bool) -> Result<(), String> {
    const PATHS: [&str; 22] = [
        "../outside",
        "/outside",
        "src/../../outside",
        "here/x",
        "here/../../outside",
        "l",
        "l/outside",
        "l/x",
        "src/l",
        "src/l/x",
        "src/deep/l",
        ".git/config",
        ".git/hooks/pre-commit",
        ".GIT/config",
        "src/.git/config",
        ".git",
        "a",
        "a/b",
        "src/deep",
        "src/deep/a",
        "./x",
        "l/hooks/x",
    ];
    const TARGETS: [&str; 10] =
        ["..", "../..", "../../..", "/tmp", ".git", "src/../..", "src", "l", "deep/../../..", "../l"];
    let changes: Vec<ClaimedChange> = (0..1 + random.below(4))
        .map(|_| *random.pick(&PATHS))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|path| change(random, path, &TARGETS))
        .collect();
    let place = Place::new();
    let before = place.untouchable();
    let set = check(&base(), Claimed { changes: changes.clone() }, &Protect::default()).ok();
    let passed = set.is_some();
    // What passed is what the set holds: a claim may name what is no change at all.
    let in_set = |one: &&ClaimedChange| set.iter().any(|set| set.changes().any(|(path, _)| path == one.path));
    let written: Vec<ClaimedChange> = changes.iter().filter(|one| breached || in_set(one)).cloned().collect();
    place.write(&written);
    if place.untouchable() != before {
        return Err(format!("{changes:?} wrote where no patch may"));
    }
    // A link that passed leads nowhere outside, even for who reads by it.
    for one in written.iter().filter(|one| passed && matches!(one.content, ClaimedContent::Link { .. })) {
        let real = place.0.path().join("work").join(&one.path).canonicalize();
        if real.is_ok_and(|real| !real.starts_with(place.0.path().join("work").canonicalize().unwrap())) {
            return Err(format!("{} leads out of the tree", one.path));
        }
    }
    Ok(())
}

/// The tests, the command and the build are changed, or the verification's own facts are.
pub fn weakened_verify(random: &mut Random, breached: bool) -> Result<(), String> {
    const PATHS: [&str; 20] = [
        "tests/one.rs",
        "Tests/one.rs",
        "TESTS",
        "tests",
        "spec",
        "spec/one.rs",
        "tests/new.rs",
        "check.sh",
        "CHECK.sh",
        "Makefile",
        "makefile",
        "src/conftest.py",
        "src/build.rs",
        "Cargo.toml",
        ".cargo",
        ".cargo/config.toml",
        "sitecustomize.py",
        "src/lib.rs",
        "src/deep/a",
        ".github",
    ];
    let verify = ["./check.sh".to_owned(), "tests".to_owned()];
    let protect = Protect::new(&paths(&["/work/tests/**"]), &[], &verify).unwrap();
    let changes: Vec<ClaimedChange> = (0..1 + random.below(3))
        .map(|_| *random.pick(&PATHS))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|path| change(random, path, &["src", "deep", "src/deep"]))
        .collect();
    let harmless = |path: &str| matches!(path, "src/lib.rs" | "src/deep/a" | "spec");
    let is_bad = changes.iter().any(|one| !harmless(&one.path));
    let Ok(set) = check(&base(), Claimed { changes: changes.clone() }, &protect) else {
        return if breached && is_bad { Err("what was refused was run".into()) } else { Ok(()) };
    };
    // A claim that changes nothing at a bad path is harmless, so what counts is what the set says.
    if let Some((path, _)) = set.changes().find(|(path, _)| !harmless(path)) {
        return Err(format!("`{path}` was changed by {changes:?}"));
    }
    let mut seen = Verification {
        base: set.base(),
        result: set.result(),
        exit: Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 },
        output_bytes: 1,
        wall_ms: 1,
        wall_ms_max: 10,
    };
    match random.below(6) {
        0 => seen.exit.code = Some(1 + random.below(255) as i32),
        1 => (seen.exit.code, seen.exit.signal) = (None, Some(9)),
        2 => seen.result = base().digest(),
        3 => seen.base = digest("another"),
        4 => seen.output_bytes = u64::MAX,
        _ => seen.wall_ms = 11,
    }
    match mint(set, &seen) {
        Ok(_) => Err(format!("minted by {seen:?}")),
        Err(_) => Ok(()),
    }
}
