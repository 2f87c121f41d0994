//! Copies in trees that somebody hostile has a hand in.

use super::*;
use abi::files::{Content, Reader, Record, Writer};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

fn place(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("copy-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(path.join("secret")).unwrap();
    fs::write(path.join("secret/key"), "the operator's").unwrap();
    fs::create_dir_all(path.join("tree/sub")).unwrap();
    path
}

fn dir(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// Records by path, with their bytes.
type Sent = BTreeMap<String, (Record, Vec<u8>)>;

/// What was sent, what was said, and the exit code.
fn sent(root: &Path, path: &str) -> (Sent, String, i32) {
    let (mut wire, mut said) = (Vec::new(), Vec::new());
    let mut complaints = Complaints::new(&mut said);
    let ended = send(&dir(root), path, &mut wire, &mut complaints);
    let code = complaints.finish(ended);
    let mut reader = Reader::new(wire.as_slice());
    let mut records = BTreeMap::new();
    while let Ok(Some(record)) = reader.next(true) {
        let mut bytes = Vec::new();
        let _ = reader.content().read_to_end(&mut bytes); // a stream may end within a file
        records.insert(record.path.clone(), (record, bytes));
    }
    (records, String::from_utf8(said).unwrap(), code)
}

fn made(root: &Path, path: &str, records: &[(&str, u32, Content, &[u8])]) -> (String, i32) {
    let mut wire = Writer::new(Vec::new());
    for (path, mode, content, bytes) in records {
        let (path, content) = (path.to_string(), content.clone());
        wire.record(&Record { path, mode: *mode, modified_unix_s: 1_000_000, content, in_rootfs: false })
            .unwrap();
        wire.out().extend_from_slice(bytes);
    }
    made_of(root, path, wire.out())
}

fn made_of(root: &Path, path: &str, wire: &[u8]) -> (String, i32) {
    let mut said = Vec::new();
    let mut complaints = Complaints::new(&mut said);
    let ended = make(&dir(root), path, wire, &mut complaints);
    let code = complaints.finish(ended);
    (String::from_utf8(said).unwrap(), code)
}

fn file(bytes: &[u8]) -> Content {
    Content::File { bytes: bytes.len() as u64 }
}

fn link(target: &str) -> Content {
    Content::Link { target: target.into() }
}

#[test]
fn a_tree_is_sent_with_its_links_as_links_and_odd_files_by_name() {
    let root = place("send");
    fs::write(root.join("tree/a"), "aa").unwrap();
    fs::hard_link(root.join("tree/a"), root.join("tree/again")).unwrap();
    fs::set_permissions(root.join("tree/a"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("../secret/key", root.join("tree/link")).unwrap();
    symlink("/", root.join("tree/sub/up")).unwrap();
    let fifo = root.join("tree/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    let (records, said, code) = sent(&root, "/tree");
    assert_eq!((said.as_str(), code), ("", 0));
    let kinds: Vec<_> = records.iter().map(|(path, (record, _))| (path.as_str(), &record.content)).collect();
    assert_eq!(
        kinds,
        [
            ("", &Content::Directory),
            ("a", &file(b"aa")),
            ("again", &file(b"aa")),
            ("fifo", &Content::Other { kind: "pipe".into() }),
            ("link", &link("../secret/key")),
            ("sub", &Content::Directory),
            ("sub/up", &link("/")),
        ]
    );
    assert_eq!((records["a"].0.mode, records["again"].1.as_slice()), (0o751, b"aa".as_slice()));
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn one_file_is_sent_by_itself_and_a_link_asked_for_is_a_link() {
    let root = place("one");
    fs::write(root.join("tree/a"), "aa").unwrap();
    symlink("/secret/key", root.join("tree/link")).unwrap();
    symlink("tree", root.join("way")).unwrap();
    assert_eq!(
        sent(&root, "/way/a").0[""].1,
        b"aa",
        "links on the way to what was asked for are the agent's own"
    );
    let (records, _, code) = sent(&root, "/tree/link");
    assert_eq!((&records[""].0.content, code), (&link("/secret/key"), 0));
    let (records, said, code) = sent(&root, "/tree/none");
    assert!(records.is_empty() && code == 1 && said.contains("`/tree/none`"), "{said}");
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_root_that_is_no_prison_is_one_here() {
    let root = place("inroot");
    symlink("../../../../../../../../etc", root.join("tree/out")).unwrap();
    symlink("/etc", root.join("tree/abs")).unwrap();
    for path in ["/tree/out/passwd", "/tree/abs/passwd"] {
        let (records, _, code) = sent(&root, path);
        assert!(records.is_empty() && code == 1, "{path}: the machine's own file was sent");
    }
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn what_grows_is_cut_and_what_shrinks_ends_the_copy() {
    let root = place("sizes");
    // A file whose size says more than reading gives: sysfs does that.
    let attribute = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    if attribute.exists() {
        let (_, said, code) = sent(Path::new("/"), attribute.to_str().unwrap());
        assert!(code == 1 && said.contains("shorter"), "{said}");
    }
    let path = root.join("tree/log");
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = fs::OpenOptions::new().append(true).open(&path).unwrap();
            while running.load(Ordering::Relaxed) {
                io::Write::write_all(&mut log, b"yyyy").unwrap();
            }
        });
        for _ in 0..20 {
            let (records, _, code) = sent(&root, "/tree/log");
            let (record, bytes) = &records[""];
            assert_eq!((&record.content, code), (&file(bytes), 0), "exactly the announced bytes");
        }
        running.store(false, Ordering::Relaxed);
    });
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn complaints_are_counted_bounded_and_harmless() {
    let mut said = Vec::new();
    let mut complaints = Complaints::new(&mut said);
    for _ in 0..COMPLAINTS_MAX + 7 {
        complaints.say("a\x1b[2J\n", "no");
    }
    assert_eq!(complaints.finish(Ok(())), 1);
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.lines().count() as u64, COMPLAINTS_MAX + 1);
    assert!(!said.contains('\x1b') && said.ends_with("and 7 more\n"));
}

#[test]
fn a_tree_is_made_with_modes_and_times_and_without_writing_through_anything() {
    let root = place("make");
    symlink("../secret/key", root.join("tree/a")).unwrap();
    fs::hard_link(root.join("secret/key"), root.join("tree/b")).unwrap();
    let (said, code) = made(
        &root,
        "/tree",
        &[
            ("a", 0o640, file(b"new a"), b"new a"),
            ("b", 0o600, file(b"new b"), b"new b"),
            ("d", 0o555, Content::Directory, b""),
            ("d/in", 0o444, file(b"x"), b"x"),
            ("d/l", 0o777, link("/etc"), b""),
            ("sub", 0o700, Content::Directory, b""),
        ],
    );
    assert_eq!((said.as_str(), code), ("", 0));
    assert_eq!(fs::read_to_string(root.join("secret/key")).unwrap(), "the operator's");
    assert_eq!(fs::read_to_string(root.join("tree/a")).unwrap(), "new a");
    assert_eq!(fs::read_to_string(root.join("tree/b")).unwrap(), "new b");
    for (path, mode) in [("tree/a", 0o640), ("tree/d", 0o555), ("tree/d/in", 0o444), ("tree/sub", 0o755)] {
        assert_eq!(fs::symlink_metadata(root.join(path)).unwrap().mode() & 0o7777, mode, "{path}");
    }
    for path in ["tree/a", "tree/d", "tree/d/in", "tree/d/l"] {
        assert_eq!(fs::symlink_metadata(root.join(path)).unwrap().mtime(), 1_000_000, "{path}");
    }
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_later_record_never_goes_through_a_link() {
    let root = place("through");
    symlink("../secret", root.join("tree/planted")).unwrap();
    let (said, code) = made(
        &root,
        "/tree",
        &[
            ("l", 0o777, link("../secret"), b""),
            ("l/stolen", 0o644, file(b"x"), b"x"),
            ("planted/stolen", 0o644, file(b"x"), b"x"),
            ("planted", 0o755, Content::Directory, b""),
            ("fine", 0o644, file(b"y"), b"y"),
        ],
    );
    assert_eq!(code, 1);
    assert_eq!(said.lines().filter(|line| line.contains("symbolic link")).count(), 2, "{said}");
    assert!(said.contains("`planted`: something stands there"), "{said}");
    assert_eq!(fs::read_dir(root.join("secret")).unwrap().count(), 1, "nothing was made through a link");
    assert_eq!(fs::read_to_string(root.join("tree/fine")).unwrap(), "y", "the rest goes on");
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn the_first_record_may_become_the_path_itself() {
    let root = place("itself");
    assert_eq!(made(&root, "/tree/new", &[("", 0o600, file(b"1"), b"1")]).1, 0);
    assert_eq!(made(&root, "/tree/other", &[("name", 0o600, file(b"2"), b"2")]).1, 0);
    let tree: [(&str, u32, Content, &[u8]); 2] =
        [("src", 0o755, Content::Directory, b""), ("src/x", 0o600, file(b"3"), b"3")];
    assert_eq!(made(&root, "/tree/dir", &tree).1, 0);
    assert_eq!(made(&root, "/tree/dir", &tree).1, 0, "a second time it lies below");
    let own: [(&str, u32, Content, &[u8]); 2] =
        [("", 0o755, Content::Directory, b""), ("x", 0o600, file(b"4"), b"4")];
    assert_eq!(made(&root, "/tree/own", &own).1, 0);
    assert_eq!(made(&root, "/tree/own", &own).1, 0, "a directory that is there is kept");
    for (path, text) in [("new", "1"), ("other", "2"), ("dir/x", "3"), ("dir/src/x", "3"), ("own/x", "4")] {
        assert_eq!(fs::read_to_string(root.join("tree").join(path)).unwrap(), text, "{path}");
    }
    let (said, code) = made(&root, "/tree", &[("", 0o600, file(b"1"), b"1")]);
    assert!(code == 1 && said.contains("it is a directory"), "{said}");
    let (said, code) = made(&root, "/none/x", &[("", 0o600, file(b"1"), b"1")]);
    assert!(code == 1 && said.contains("`/none/x`"), "{said}");
    let astray: [(&str, u32, Content, &[u8]); 2] =
        [("a", 0o600, file(b"1"), b"1"), ("b", 0o600, file(b"2"), b"2")];
    let (said, code) = made(&root, "/tree/single", &astray);
    assert!(code == 1 && said.contains("below the first"), "{said}");
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_stream_that_is_cut_leaves_no_half_file() {
    let root = place("cut");
    let mut wire = Writer::new(Vec::new());
    let (path, content) = ("a".to_owned(), Content::File { bytes: 100 });
    wire.record(&Record { path, mode: 0o644, modified_unix_s: 0, content, in_rootfs: false }).unwrap();
    wire.out().extend_from_slice(b"short");
    let (said, code) = made_of(&root, "/tree", wire.out());
    assert!(code == 1 && said.contains("ends within a file"), "{said}");
    assert!(!root.join("tree/a").exists());
    fs::remove_dir_all(root).unwrap();
}

/// Somebody swaps a directory for a link to the secret as fast as he can, while copies run both ways.
#[test]
fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
    let root = place("race");
    let swapped = root.join("tree/sub");
    fs::write(swapped.join("key"), "the agent's").unwrap();
    symlink("../secret", root.join("link")).unwrap();
    let running = AtomicBool::new(true);
    let mut met = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                let (a, b) = (root.join("link"), &swapped);
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &a, cwd, b, exchange).unwrap();
            }
        });
        for round in 0..2_000 {
            let (records, _, _) = sent(&root, "/tree");
            for (path, (record, bytes)) in &records {
                assert_ne!(bytes, b"the operator's", "round {round}: {path}");
                met += u32::from(matches!(record.content, Content::Link { .. }));
            }
            let bytes = b"planted".as_slice();
            made(&root, "/tree", &[("sub/new", 0o644, file(bytes), bytes)]);
        }
        running.store(false, Ordering::Relaxed);
    });
    assert!(met > 0, "the race never showed a link");
    assert_eq!(fs::read_dir(root.join("secret")).unwrap().count(), 1, "something was made behind the link");
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_tree_deeper_than_the_limit_is_said_and_not_followed() {
    let root = place("deep");
    let mut path = root.join("tree");
    for _ in 0..DEPTH_MAX + 10 {
        path.push("d");
    }
    fs::create_dir_all(&path).unwrap();
    let (records, said, code) = sent(&root, "/tree");
    assert!(code == 1 && said.contains("directories deep"), "{said}");
    assert!(records.len() <= DEPTH_MAX + 2);
    fs::remove_dir_all(root).unwrap();
}
