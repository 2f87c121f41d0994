//! Diffs, held against `git apply` and `patch`: what they make of the old tree is the new one.

use super::support::{Random, claim, seeds};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use verdict::diff;
use verdict::patch::{ChangeSet, ClaimedChange, ClaimedContent, Protect, check};
use verdict::tree::{Entry, Tree};

/// What stands at a path, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(bool, Vec<u8>),
    Link(String),
}

type Nodes = BTreeMap<String, Node>;

fn sha(bytes: &[u8]) -> abi::ids::Digest {
    use sha2::Digest as _;
    abi::ids::Digest(sha2::Sha256::digest(bytes).into())
}

fn entry(node: &Node) -> Entry {
    match node {
        Node::File(is_executable, bytes) => {
            Entry::File { is_executable: *is_executable, sha256: sha(bytes), bytes: bytes.len() as u64 }
        }
        Node::Link(target) => Entry::Link { target: target.clone() },
    }
}

fn tree_of(nodes: &Nodes) -> Tree {
    let list: Vec<(&str, Entry)> = nodes.iter().map(|(path, node)| (path.as_str(), entry(node))).collect();
    super::support::tree(&list)
}

fn change_set(old: &Nodes, new: &Nodes) -> ChangeSet {
    let (before, after) = (tree_of(old), tree_of(new));
    let mut changes: Vec<ClaimedChange> = after
        .entries()
        .map(|(path, entry)| {
            let (mode, content) = match entry {
                Entry::Directory => (0o755, ClaimedContent::Directory),
                Entry::File { is_executable, sha256, bytes } => {
                    let mode = if *is_executable { 0o755 } else { 0o644 };
                    (mode, ClaimedContent::File { sha256: *sha256, bytes: *bytes })
                }
                Entry::Link { target } => (0o777, ClaimedContent::Link { target: target.clone() }),
            };
            ClaimedChange { path: path.into(), mode, content }
        })
        .collect();
    for (path, _) in before.entries().filter(|(path, _)| after.entry(path).is_none()) {
        changes.push(ClaimedChange { path: path.into(), mode: 0, content: ClaimedContent::Removed });
    }
    let set =
        check(&before, claim(changes), &Protect::default()).unwrap_or_else(|refusals| panic!("{refusals}"));
    assert_eq!(set.apply(&before), Some(after));
    set
}

fn write_out(nodes: &Nodes, root: &Path) {
    for (path, node) in nodes {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match node {
            Node::File(is_executable, bytes) => {
                std::fs::write(&path, bytes).unwrap();
                let mode = if *is_executable { 0o755 } else { 0o644 };
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            Node::Link(target) => symlink(target, &path).unwrap(),
        }
    }
}

fn read_in(root: &Path) -> Nodes {
    fn walk(root: &Path, at: &Path, out: &mut Nodes) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let about = path.symlink_metadata().unwrap();
            if about.is_symlink() {
                out.insert(name, Node::Link(path.read_link().unwrap().to_str().unwrap().into()));
            } else if about.is_dir() {
                walk(root, &path, out);
            } else {
                let is_executable = about.permissions().mode() & 0o100 != 0;
                out.insert(name, Node::File(is_executable, std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut nodes = Nodes::new();
    walk(root, root, &mut nodes);
    nodes
}

fn run(command: &mut Command, input: &[u8]) -> Result<(), String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let out = child.wait_with_output().unwrap();
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

fn git(root: &Path) -> Command {
    let mut git = Command::new("git");
    // Alone: no repository around it, no configuration of whoever runs the test.
    git.current_dir(root).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    git.env("GIT_CEILING_DIRECTORIES", root.parent().unwrap()).env_remove("GIT_DIR");
    git
}

/// The diff applied by git to the old files gives the new ones.
fn holds(old: &Nodes, new: &Nodes, name: &str) {
    let set = change_set(old, new);
    let contents: BTreeMap<_, &[u8]> = old
        .values()
        .chain(new.values())
        .filter_map(|node| match node {
            Node::File(_, bytes) => Some((sha(bytes), bytes.as_slice())),
            Node::Link(_) => None,
        })
        .collect();
    let diff = diff::unified(&set, |digest| contents.get(digest).copied());
    assert!(diff.is_complete, "{name}");
    let place = tempfile::tempdir().unwrap();
    write_out(old, place.path());
    let shown = String::from_utf8_lossy(&diff.text);
    run(git(place.path()).args(["apply", "--whitespace=nowarn", "-"]), &diff.text)
        .unwrap_or_else(|why| panic!("{name}: {why}\n{shown}"));
    let made = read_in(place.path());
    for (path, node) in new {
        assert_eq!(made.get(path), Some(node), "{name}: {path}\n{shown}");
    }
    assert_eq!(made.len(), new.len(), "{name}: {:?}\n{shown}", made.keys());
}

fn text(path: &str, text: &str) -> (String, Node) {
    (path.into(), Node::File(false, text.into()))
}

#[test]
fn git_makes_the_result_of_every_kind_of_change() {
    let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let edited = many
        .replace("line 3\n", "")
        .replace("line 50\n", "line fifty\nand more\n")
        .replace("line 99\n", "line 99");
    let old: Nodes = [
        text("kept", "same\n"),
        text("dir/edited", &many),
        text("removed", "gone\n"),
        text("empty-removed", ""),
        text("no newline", "a\nb"),
        text("gets-newline", "a\nb"),
        text("mode", "#!/bin/sh\n"),
        text("becomes-link", "a file\n"),
        ("link".into(), Node::Link("kept".into())),
        ("link-gone".into(), Node::Link("kept".into())),
        ("becomes-file".into(), Node::Link("kept".into())),
        text("quotes \"and\" \\", "x\n"),
        text("dir/emptied", "x\ny\n"),
    ]
    .into();
    let mut new = old.clone();
    for gone in ["removed", "empty-removed", "link-gone"] {
        new.remove(gone);
    }
    new.extend([
        text("dir/edited", &edited),
        text("added/deep/file", "new\n"),
        text("added/empty", ""),
        text("added/no-newline", "x"),
        text("no newline", "a\nb\nc"),
        text("gets-newline", "a\nb\n"),
        ("mode".into(), Node::File(true, b"#!/bin/sh\n".into())),
        ("added-exec".into(), Node::File(true, b"#!/bin/sh\necho\n".into())),
        ("becomes-link".into(), Node::Link("dir/edited".into())),
        ("becomes-file".into(), Node::File(false, b"a file\n".into())),
        ("link".into(), Node::Link("mode".into())),
        ("new-link".into(), Node::Link("dir".into())),
        text("quotes \"and\" \\", "y\n"),
        text("t\u{e4}b\there", "z\n"),
        text("dir/emptied", ""),
        text("crlf", "a\r\nb\r\n"),
        ("latin".into(), Node::File(false, vec![0xe4, b'\n', 0xff])),
    ]);
    holds(&old, &new, "kinds");
    holds(&new, &old, "kinds-back");
}

#[test]
fn random_texts_are_made_by_git_and_by_patch() {
    for seed in seeds(25) {
        let mut random = Random::new(seed);
        let line = |random: &mut Random| format!("{}\n", random.below(6));
        let lines: Vec<String> = (0..random.below(60)).map(|_| line(&mut random)).collect();
        let mut edited = lines.clone();
        for _ in 0..random.below(12) {
            let at = random.below(edited.len() + 1);
            if random.chance(2) || at >= edited.len() {
                edited.insert(at.min(edited.len()), line(&mut random));
            } else {
                edited.remove(at);
            }
        }
        let (mut one, mut two) = (lines.concat(), edited.concat());
        for text in [&mut one, &mut two] {
            if random.chance(3) {
                text.pop();
            }
        }
        if one == two {
            continue;
        }
        holds(&[text("f", &one)].into(), &[text("f", &two)].into(), &format!("seed-{seed}"));
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("f"), &one).unwrap();
        let hunks = diff::of_texts("f", Some(one.as_bytes()), Some(two.as_bytes()));
        let made = run(Command::new("patch").current_dir(place.path()).args(["-p1", "-s"]), &hunks);
        assert_eq!(made, Ok(()), "NULLBOX_SEED={seed}\n{}", String::from_utf8_lossy(&hunks));
        if !two.is_empty() {
            assert_eq!(std::fs::read_to_string(place.path().join("f")).unwrap(), two, "NULLBOX_SEED={seed}");
        }
    }
}

#[test]
fn a_diff_is_as_short_as_diffs_own() {
    for seed in seeds(40) {
        let mut random = Random::new(seed);
        let mut text = || (0..random.below(30)).map(|_| format!("{}\n", random.below(4))).collect::<String>();
        let (one, two) = (text(), text());
        if one == two {
            continue;
        }
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("one"), &one).unwrap();
        std::fs::write(place.path().join("two"), &two).unwrap();
        let theirs = Command::new("diff")
            .current_dir(place.path())
            .args(["--minimal", "-u", "one", "two"])
            .output()
            .unwrap();
        let ours = diff::of_texts("f", Some(one.as_bytes()), Some(two.as_bytes()));
        let count = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            let is_change = |line: &&str| {
                (line.starts_with('+') && !line.starts_with("+++"))
                    || (line.starts_with('-') && !line.starts_with("---"))
            };
            text.lines().filter(is_change).count()
        };
        assert_eq!(count(&ours), count(&theirs.stdout), "NULLBOX_SEED={seed}\n{one}--\n{two}");
    }
}

#[test]
fn what_a_diff_cannot_say_is_told() {
    let old: Nodes = [("b".into(), Node::File(false, b"a\0b".into())), text("t", "x\n")].into();
    let new: Nodes = [("b".into(), Node::File(false, b"a\0c".into())), text("t", "y\n")].into();
    let set = change_set(&old, &new);
    let none = diff::unified(&set, |_| None);
    assert!(!none.is_complete);
    let contents: BTreeMap<_, &[u8]> = old
        .values()
        .chain(new.values())
        .filter_map(|node| match node {
            Node::File(_, bytes) => Some((sha(bytes), bytes.as_slice())),
            Node::Link(_) => None,
        })
        .collect();
    let diff = diff::unified(&set, |digest| contents.get(digest).copied());
    let shown = String::from_utf8(diff.text).unwrap();
    assert!(
        !diff.is_complete && shown.contains("Binary files a/b and b/b differ\n") && shown.contains("+y\n"),
        "{shown}"
    );
    let directory = claim(vec![super::support::changed("bare", ClaimedContent::Directory)]);
    let set = check(&tree_of(&old), directory, &Protect::default()).unwrap();
    assert_eq!(diff::unified(&set, |_| None), diff::Diff { text: Vec::new(), is_complete: false });
}

#[test]
fn hostile_texts_take_bounded_work() {
    // Nothing in common, everything nearly in common, and two lines over and over.
    let numbers = |from: u32| (from..from + 200_000).map(|n| format!("{n}\n")).collect::<String>();
    let flip = |first: &str, second: &str| format!("{first}\n{second}\n").repeat(60_000);
    let long = "x".repeat(3_000_000);
    for (one, two) in [
        (numbers(0), numbers(500_000)),
        (numbers(0), numbers(1)),
        (flip("a", "b"), flip("b", "c")),
        (format!("{long}a\n{long}b\n"), format!("{long}b\n{long}c\n")),
        ("\n".repeat(1_000_000), "\n".repeat(999_000)),
    ] {
        let diff = diff::of_texts("f", Some(one.as_bytes()), Some(two.as_bytes()));
        assert!(diff.len() < one.len() + two.len() + 2 * 1_000_000 + 200);
        assert!(!diff.is_empty());
    }
}
