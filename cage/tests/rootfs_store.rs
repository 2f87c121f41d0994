//! The rootfs store from outside: archives go in, and what comes out is read by squashfs-tools and by the kernel.

mod archives;

use abi::control::Image;
use abi::manifest::RootfsRef;
use archives::{Archive, Facts, Layer, Members, Packing, gzip};
use cage::store::{ImportError, Source, Store, StoreError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Bench { dir, store }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn import(&self, name: &str, archive: &[u8]) -> Result<Image, ImportError> {
        let mut reader = archive;
        let source = Source::Stream { reader: &mut reader, bytes: archive.len() as u64 };
        self.store.import(source, name, &mut |_, _, _| {})
    }

    fn tree(&self, image: &Image) -> BTreeMap<String, Facts> {
        archives::facts_of_disks(&self.disks(image))
    }

    fn disks(&self, image: &Image) -> Vec<PathBuf> {
        let (_, disks, found) = self.store.resolve(&RootfsRef::Digest(image.digest)).unwrap();
        assert_eq!(disks.len(), found.layers.len());
        for (disk, layer) in disks.iter().zip(&found.layers) {
            assert_eq!(archives::digest(&std::fs::read(disk).unwrap()), layer.digest.to_string());
            assert_eq!(std::fs::metadata(disk).unwrap().len() % 4096, 0);
        }
        disks
    }

    /// Every file of the store, by path below it.
    fn files(&self) -> Vec<String> {
        let mut todo = vec![self.path()];
        let mut found = Vec::new();
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false => found.push(path.strip_prefix(self.path()).unwrap().display().to_string()),
                }
            }
        }
        found.sort();
        found
    }

    fn refused(&self, what: &str, archive: &[u8], fragment: &str) {
        let error = self.import("hostile", archive).expect_err(what).to_string();
        assert!(error.contains(fragment), "{what}: `{error}` does not say `{fragment}`");
        assert_eq!(self.files(), Vec::<String>::new(), "{what} left something behind");
    }
}

/// The smallest stack that imports run on.
const STACK_BYTES: usize = 256 * 1024;

fn counting() -> Vec<u8> {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

fn two_layers() -> Vec<Layer> {
    let mut lower = Layer::default();
    lower
        .dir("usr/", 0o755)
        .dir("usr/bin/", 0o755)
        .symlink("bin", "usr/bin")
        .file("usr/bin/tool", 0o4755, b"#!old")
        .file("usr/bin/gone", 0o755, b"removed above")
        .hard_link("usr/bin/also", "usr/bin/tool")
        .dir("etc/", 0o750)
        .file("etc/kept", 0o600, b"kept")
        .file("etc/empty", 0o644, b"")
        .dir("opaque/", 0o755)
        .file("opaque/below", 0o644, b"hidden")
        .dir("opaque/deep/", 0o755)
        .file("opaque/deep/below", 0o644, b"hidden")
        .dir("becomes-file/", 0o755)
        .file("becomes-file/inside", 0o644, b"gone with it")
        .fifo("run/fifo", 0o640);
    let mut upper = Layer::default();
    upper
        .file("bin/new", 0o755, b"through the link")
        .file("bin/.wh.gone", 0o644, b"")
        .hard_link("usr/bin/third", "usr/bin/tool")
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/above", 0o644, b"seen")
        .file("becomes-file", 0o644, b"a file now")
        .symlink("etc/link", "/does/not/exist/../x")
        .file(&long_path(), 0o644, b"long name")
        .file("zeros", 0o644, &vec![0; 400_000])
        .file("big", 0o644, &counting());
    vec![lower, upper]
}

fn long_path() -> String {
    format!("long/{}/{}", "d".repeat(120), "f".repeat(200))
}

fn expected_of_two_layers() -> BTreeMap<String, Facts> {
    let file = |mode: u32, content: &[u8]| Facts::File { mode, content: content.to_vec() };
    let directory = |mode| Facts::Directory { mode };
    let expected: Vec<(String, Facts)> = vec![
        ("".into(), directory(0o755)),
        ("becomes-file".into(), file(0o644, b"a file now")),
        ("big".into(), file(0o644, &counting())),
        ("bin".into(), Facts::Symlink("usr/bin".into())),
        ("etc".into(), directory(0o750)),
        ("etc/empty".into(), file(0o644, b"")),
        ("etc/kept".into(), file(0o600, b"kept")),
        ("etc/link".into(), Facts::Symlink("/does/not/exist/../x".into())),
        ("long".into(), directory(0o755)),
        (format!("long/{}", "d".repeat(120)), directory(0o755)),
        (long_path(), file(0o644, b"long name")),
        ("opaque".into(), directory(0o755)),
        ("opaque/above".into(), file(0o644, b"seen")),
        ("run".into(), directory(0o755)),
        ("run/fifo".into(), Facts::Fifo { mode: 0o640 }),
        ("usr".into(), directory(0o755)),
        ("usr/bin".into(), directory(0o755)),
        ("usr/bin/also".into(), file(0o4755, b"#!old")),
        ("usr/bin/new".into(), file(0o755, b"through the link")),
        ("usr/bin/third".into(), file(0o4755, b"#!old")),
        ("usr/bin/tool".into(), file(0o4755, b"#!old")),
        ("zeros".into(), file(0o644, &vec![0; 400_000])),
    ];
    expected.into_iter().collect()
}

fn same(ours: &BTreeMap<String, Facts>, theirs: &BTreeMap<String, Facts>) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, facts) in theirs {
        assert!(ours[name] == *facts, "{name} differs");
    }
}

#[test]
fn both_formats_and_all_packings_give_the_expected_tree_and_one_digest() {
    let bench = Bench::new();
    let mut digests = Vec::new();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let archive = Archive::of(two_layers(), packing);
        for (format, bytes) in [("oci", archive.oci()), ("docker", archive.docker())] {
            let name = format!("{format}.{packing:?}").to_lowercase();
            digests.push(bench.import(&name, &bytes).unwrap().digest);
        }
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the same layers give the same bytes");
    let images = bench.store.list();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].names.len(), 6);
    assert_eq!(images[0].env, ["PATH=/usr/bin"]);
    assert_eq!(images[0].workdir.as_deref(), Some("/srv"));
    assert_eq!(images[0].layers.len(), 2);
    same(&bench.tree(&images[0]), &expected_of_two_layers());
    let kernel = archives::mounted(&bench.disks(&images[0]), archives::facts_of_directory);
    if let Some(seen) = kernel {
        same(&seen, &expected_of_two_layers());
    }
}

/// The kernel is the reader that counts. Needs root and a loop device; says so where it has neither.
#[test]
fn the_kernel_mounts_it_and_sees_hard_links_and_listings_of_every_size() {
    let bench = Bench::new();
    let mut layer = Layer::default();
    for number in 0..3000 {
        let name = format!("many/{number:05}-{}", "x".repeat(number % 60));
        layer.file(&name, 0o644, number.to_string().as_bytes());
    }
    let content = |number: usize| vec![b'a' + (number % 26) as u8; 1000 * number];
    for number in 0..300 {
        layer.file(&format!("blocks/{number}"), 0o644, &content(number));
    }
    layer.hard_link("again", "many/00007-xxxxxxx").uid_gid("owned", 1234, 100_000);
    let image = bench.import("many", &Archive::of(vec![layer], Packing::Gzip).oci()).unwrap();
    assert_eq!(bench.tree(&image).len(), 3000 + 300 + 5);
    archives::mounted(&bench.disks(&image), |mount| {
        use std::os::unix::fs::MetadataExt;
        let listed: Vec<_> = std::fs::read_dir(mount.join("many")).unwrap().map(Result::unwrap).collect();
        assert_eq!(listed.len(), 3000);
        for entry in listed {
            let number: usize = entry.file_name().to_str().unwrap()[..5].parse().unwrap();
            assert_eq!(std::fs::read_to_string(entry.path()).unwrap(), number.to_string());
        }
        for number in 0..300 {
            let read = std::fs::read(mount.join(format!("blocks/{number}"))).unwrap();
            assert!(read == content(number), "blocks/{number}");
        }
        let one = mount.join("again").metadata().unwrap();
        let other = mount.join("many/00007-xxxxxxx").metadata().unwrap();
        assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
        assert_eq!(mount.metadata().unwrap().nlink(), 4);
        let owned = mount.join("owned").metadata().unwrap();
        let mtime = archives::MTIME.cast_signed();
        assert_eq!((owned.uid(), owned.gid(), owned.mtime()), (1234, 100_000, mtime));
    });
}

#[test]
fn an_archive_that_is_known_only_gets_the_name() {
    let bench = Bench::new();
    let path = bench.dir.path().join("python.tar");
    std::fs::write(&path, Archive::of(two_layers(), Packing::Gzip).oci()).unwrap();
    let mut stages = Vec::new();
    let mut tell = |stage, _, _| stages.push(stage);
    let first = bench.store.import(Source::File(&path), "a", &mut tell).unwrap();
    assert!(!stages.is_empty());
    stages.clear();
    // Also after the store was opened again, and whatever the file's time says.
    let store = Store::open(&bench.path()).unwrap();
    set_time(&path);
    let mut tell = |stage, _, _| stages.push(stage);
    let second = store.import(Source::File(&path), "b", &mut tell).unwrap();
    assert_eq!(stages, [], "nothing was hashed or converted");
    assert_eq!(first.digest, second.digest);
    assert_eq!(second.names, ["a", "b"]);
}

fn set_time(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
}

#[test]
fn a_changed_archive_of_the_same_size_and_time_is_a_new_image() {
    let bench = Bench::new();
    let path = bench.dir.path().join("python.tar");
    let mut digests = Vec::new();
    let mut sizes = Vec::new();
    for content in [b"one", b"two"] {
        let mut layer = Layer::default();
        layer.file("x", 0o644, content);
        let bytes = Archive::of(vec![layer], Packing::Plain).oci();
        sizes.push(bytes.len());
        std::fs::write(&path, bytes).unwrap();
        set_time(&path);
        let image = bench.store.import(Source::File(&path), "x", &mut |_, _, _| {}).unwrap();
        digests.push(image.digest);
    }
    assert_eq!(sizes[0], sizes[1]);
    assert_ne!(digests[0], digests[1]);
    let named = bench.store.resolve(&RootfsRef::Name("x".into())).unwrap();
    assert_eq!(named.0, digests[1]);
}

#[test]
fn images_that_differ_in_environment_only_are_two() {
    let bench = Bench::new();
    let mut archive = Archive::of(two_layers(), Packing::Plain);
    let one = bench.import("one", &archive.oci()).unwrap();
    archive.env = vec!["OTHER=1".into()];
    let two = bench.import("two", &archive.oci()).unwrap();
    assert_ne!(one.digest, two.digest);
    let first = bench.store.resolve(&RootfsRef::Name("one".into())).unwrap();
    assert_eq!(first.2.env, ["PATH=/usr/bin"]);
}

#[test]
fn names_and_images_are_removed_with_their_files() {
    let bench = Bench::new();
    let archive = Archive::of(two_layers(), Packing::Plain).oci();
    let image = bench.import("x", &archive).unwrap();
    let name = RootfsRef::Name("x".into());
    bench.store.forget("x").unwrap();
    assert!(matches!(bench.store.resolve(&name), Err(StoreError::UnknownName(_))));
    assert!(bench.store.resolve(&RootfsRef::Digest(image.digest)).is_ok());
    assert!(bench.store.forget("x").is_err());
    assert_eq!(bench.store.remove(&image.digest).unwrap(), image.bytes);
    assert_eq!(bench.files(), ["names.json"]);
    let image = bench.import("x", &archive).unwrap();
    bench.store.remove(&image.digest).unwrap();
    assert_eq!(bench.store.list(), []);
    assert!(bench.store.resolve(&name).is_err());
    assert!(bench.store.remove(&image.digest).is_err());
}

#[test]
fn what_a_cut_off_import_left_is_removed_at_the_next_opening() {
    let bench = Bench::new();
    let image = bench.import("x", &Archive::of(two_layers(), Packing::Plain).oci()).unwrap();
    let whole = bench.files();
    let dir = bench.path();
    std::fs::write(dir.join("tmp/upload"), "half").unwrap();
    let stray = format!("squashfs/{}.squashfs", "0".repeat(64));
    std::fs::write(dir.join(stray), "no description").unwrap();
    std::fs::write(dir.join("chains/half"), "{").unwrap();
    std::fs::write(dir.join(format!("meta/{}.json", "1".repeat(64))), "{").unwrap();
    assert_eq!(Store::open(&dir).unwrap().list(), std::slice::from_ref(&image));
    assert_eq!(bench.files(), whole);
    // A description whose file is not whole is no image, and its name means nothing.
    let path = &bench.disks(&image)[1];
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, "short").unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.list(), []);
    assert!(store.resolve(&RootfsRef::Name("x".into())).is_err());
    assert_eq!(bench.files(), ["names.json"]);
}

#[test]
fn a_connection_that_ends_early_leaves_nothing() {
    let bench = Bench::new();
    let bytes = Archive::of(two_layers(), Packing::Gzip).oci();
    let mut reader = &bytes[..bytes.len() / 2];
    let source = Source::Stream { reader: &mut reader, bytes: bytes.len() as u64 };
    let error = bench.store.import(source, "x", &mut |_, _, _| {}).unwrap_err();
    assert!(matches!(error, ImportError::Receive { .. }), "{error}");
    assert_eq!(bench.files(), Vec::<String>::new());
    let error = bench.import("Not/A/Name", &bytes).unwrap_err();
    assert!(matches!(error, ImportError::Name(_)));
}

type Hostile<T> = (&'static str, fn(&mut T), &'static str);

#[rustfmt::skip]
const HOSTILE_LAYERS: &[Hostile<Layer>] = &[
    ("dotdot", |l| { l.raw(b'0', b"a/../../etc/passwd", b"", b"x"); }, "`..` leads out"),
    ("dotdot alone", |l| { l.raw(b'5', b"..", b"", b""); }, "`..` leads out"),
    ("no path", |l| { l.raw(b'0', b"", b"", b"x"); }, "has no path"),
    ("char device", |l| { l.raw(b'3', b"etc/kmem", b"", b""); }, "device node outside /dev"),
    ("block device", |l| { l.raw(b'4', b"devs/sda", b"", b""); }, "device node outside /dev"),
    ("unknown type", |l| { l.raw(b'M', b"x", b"", b""); }, "unknown type"),
    ("GNU sparse", |l| { l.raw(b'S', b"x", b"", b""); }, "sparse"),
    ("pax sparse", |l| { l.pax("x", &[("GNU.sparse.major", b"1")]); }, "sparse"),
    ("hard link out", |l| { l.raw(b'1', b"x", b"../../etc/shadow", b""); }, "`..` leads out"),
    ("hard link to nothing", |l| { l.raw(b'1', b"x", b"nothing", b""); }, "not there"),
    ("hard link to a directory", |l| { l.dir("d/", 0o755).raw(b'1', b"x", b"d", b""); }, "hard link to a directory"),
    ("link circle", |l| { l.symlink("a", "b").symlink("b", "a").file("a/x", 0o644, b""); }, "circle"),
    ("file as directory", |l| { l.file("f", 0o644, b"").file("f/x", 0o644, b""); }, "not a directory"),
    ("root as file", |l| { l.raw(b'0', b"./.", b"", b""); }, "root can only be a directory"),
    ("whiteout of nothing", |l| { l.file(".wh.", 0o644, b""); }, "whiteout of no name"),
    ("whiteout of dotdot", |l| { l.file("a/.wh...", 0o644, b""); }, "whiteout of no name"),
    ("whiteout as directory", |l| { l.file(".wh.x/y", 0o644, b""); }, "whiteout's name"),
    ("deep", |l| { l.pax("x", &[("path", "d/".repeat(300).as_bytes())]); }, "deeper"),
    ("deep through links", |l| {
        let deep = "d/".repeat(200);
        l.dir(&deep, 0o755).symlink("s", &deep).file(&format!("s/{deep}x"), 0o644, b"");
    }, "deeper"),
    ("long name", |l| { l.pax("x", &[("path", "n".repeat(256).as_bytes())]); }, "longer than a name"),
    ("long path", |l| { l.pax("x", &[("path", "nnnnnnnnn/".repeat(410).as_bytes())]); }, "longer than a path"),
    ("NUL in a name", |l| { l.pax("x", &[("path", b"a\0b")]); }, "NUL"),
    ("empty link", |l| { l.raw(b'2', b"x", b"", b""); }, "without a target"),
    ("long link", |l| { l.pax("x", &[("linkpath", "n".repeat(5000).as_bytes())]).kind(b'2'); }, "longer than a path"),
    ("huge size", |l| { l.pax("x", &[("size", b"99999999999999")]); }, "above every limit"),
    ("size not a number", |l| { l.pax("x", &[("size", b"-1")]); }, "not a number"),
    ("wide uid", |l| { l.pax("x", &[("uid", b"4294967296")]); }, "32 bits"),
    ("huge pax", |l| { l.pax("x", &[("comment", &[b'c'; 1024 * 1024])]); }, "larger than its limit"),
    ("endless extensions", |l| {
        for _ in 0..10 { l.raw(b'L', b"././@LongLink", b"", b"name"); }
        l.file("x", 0o644, b"");
    }, "more extension headers"),
    ("global pax", |l| { l.raw(b'g', b"g", b"", b"16 path=overall\n"); }, "global pax"),
    ("broken pax", |l| { l.raw(b'x', b"x", b"", b"99 path=a\n").file("y", 0o644, b""); }, "malformed"),
    ("cut content", |l| { l.file("x", 0o644, &[7; 2000]).cut(1000); }, "cut"),
    ("not a tar", |l| l.garbage(), "not a tar header"),
    ("negative size, base 256", |l| { l.raw(b'0', b"x", b"", b"").field(124, &[0xff; 12]); }, "size is not a number"),
    ("huge size, base 256", |l| { l.raw(b'0', b"x", b"", b"").field(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]); }, "above every limit"),
    ("size beyond the layer", |l| { l.raw(b'0', b"x", b"", b"").field(124, b"00000777777\0"); }, "cut"),
    ("size of pax beyond the layer", |l| { l.pax("x", &[("size", b"100000")]); }, "cut"),
    ("wide gid, base 256", |l| { l.raw(b'0', b"x", b"", b"").field(116, &[0x80, 0, 0, 1, 0, 0, 0, 0]); }, "32 bits"),
    ("mode not a number", |l| { l.raw(b'0', b"x", b"", b"").field(100, b"zzzzzzz\0"); }, "mode is not a number"),
    ("checksum", |l| { l.raw(b'0', b"x", b"", b"").garbage_checksum(); }, "checksum is wrong"),
    ("pax path leads out", |l| { l.pax("plain", &[("path", b"../../etc/passwd")]); }, "`..` leads out"),
    ("pax link leads out", |l| { l.pax("x", &[("linkpath", b"/../../etc/shadow")]).kind(b'1'); }, "`..` leads out"),
    ("pax time not a number", |l| { l.pax("x", &[("mtime", b"now")]); }, "mtime is not a number"),
    ("hard link to a later entry", |l| { l.raw(b'1', b"x", b"later", b"").file("later", 0o644, b""); }, "not there"),
    ("hard link to a whiteout", |l| { l.file(".wh.a", 0o644, b"").raw(b'1', b"x", b".wh.a", b""); }, "not there"),
    ("hard link to a symbolic link that leads nowhere", |l| { l.raw(b'1', b"x", b"l/a", b"").symlink("l", "gone"); }, "not there"),
    ("hard link to itself", |l| { l.raw(b'1', b"x", b"x", b""); }, "not there"),
    ("hard link below a file", |l| { l.file("f", 0o644, b"").raw(b'1', b"f/x", b"f", b""); }, "not a directory"),
    ("whiteout of the root", |l| { l.file(".wh..", 0o644, b""); }, "whiteout of no name"),
    ("device over a directory", |l| { l.dir("etc/", 0o755).raw(b'3', b"etc", b"", b""); }, "device node outside /dev"),
    ("link circle of many", |l| {
        for n in 0..50 { l.symlink(&format!("l{n}"), &format!("l{}", n + 1)); }
        l.file("l0/x", 0o644, b"");
    }, "circle"),
    ("old GNU sparse map", |l| { l.raw(b'0', b"x", b"", b"").kind(b'S'); }, "sparse"),
    ("GNU multi-volume", |l| { l.raw(b'M', b"x", b"", b""); }, "unknown type"),
    ("many owners", |l| { for id in 0..70_000 { l.uid_gid(&format!("{id}"), id, 0); } }, "different uids"),
];

#[test]
fn hostile_layers_are_refused_with_a_reason_and_leave_nothing() {
    let bench = Bench::new();
    for (what, build, fragment) in HOSTILE_LAYERS {
        for packing in [Packing::Plain, Packing::Gzip] {
            let mut layer = Layer::default();
            build(&mut layer);
            let archive = Archive::of(vec![layer], packing);
            bench.refused(what, &archive.oci(), fragment);
            bench.refused(what, &archive.docker(), fragment);
        }
    }
}

#[rustfmt::skip]
const HOSTILE_IMAGES: &[Hostile<Archive>] = &[
    ("wrong diff_id", |a| a.diff_ids[1] = a.diff_ids[0].clone(), "not sha256:"),
    ("diff_id missing", |a| { a.diff_ids.pop(); }, "1 diff_ids"),
    ("no layers", |a| { a.diff_ids.clear(); a.layers.clear(); }, "0 layers"),
    ("too many layers", |a| for _ in 0..200 {
        a.diff_ids.push(a.diff_ids[0].clone());
        a.layers.push(a.layers[0].clone());
    }, "202 layers"),
    ("diff_id not a digest", |a| a.diff_ids[0] = "sha256:x".into(), "is not a digest"),
    ("other platform", |a| a.architecture = "riscv64", "riscv64"),
    ("environment not KEY=VALUE", |a| a.env = vec!["=x".into()], "KEY=VALUE"),
    ("large environment", |a| a.env = vec![format!("A={}", "x".repeat(10_000))], "Env has"),
    ("workdir out", |a| a.workdir = "/a/../..".into(), "plain absolute path"),
];

#[rustfmt::skip]
const HOSTILE_LAYOUTS: &[Hostile<Members>] = &[
    ("layer changed", |m| m.change_blob(b"\x1f\x8b"), "not sha256:"),
    ("layer missing", |m| m.drop_blob(b"\x1f\x8b"), "is missing"),
    ("config changed", |m| m.change_blob(b"{\"architecture"), "not sha256:"),
    ("no layout", |m| m.remove("oci-layout"), "neither index.json"),
    ("twice", |m| m.repeat("index.json"), "stands in the archive twice"),
    ("leads out", |m| m.add("../../x", b"x"), "leads out of the archive"),
    ("two images", |m| m.add_second_image(), "holds 2 images"),
    ("index of index", |m| m.nest_index(9), "nested too deep"),
    ("index is not JSON", |m| m.replace("index.json", b"{"), "EOF"),
    ("sha512", |m| m.edit("index.json", "sha256:", "sha512:"), "is not a digest"),
    ("wrong size", |m| m.edit("index.json", "\"size\":", "\"size\":1"), "of its descriptor"),
    ("encrypted layer", |m| m.rewrite_manifest("layer.v1.tar", "layer.v1.tar+encrypted"), "a layer of media type"),
    ("large index", |m| m.replace("index.json", &[b' '; 5 << 20]), "more than the limit"),
    ("a field twice", |m| m.edit("index.json", "{\"manifests\":", "{\"manifests\":[],\"manifests\":"), "duplicate field"),
    ("deep JSON", |m| m.replace("index.json", &[b"{\"manifests\":".as_slice(), &b"[".repeat(2 << 20)].concat()), "index.json"),
    ("deep JSON aside", |m| m.replace("index.json", &[b"{\"x\":".as_slice(), &b"[".repeat(2 << 20)].concat()), "index.json"),
    ("huge numbers", |m| m.replace("index.json", &[b"{\"manifests\":".as_slice(), &b"9".repeat(2 << 20)].concat()), "index.json"),
    ("negative size", |m| m.edit("index.json", "\"size\":", "\"size\":-"), "index.json"),
    ("many members", |m| (0..5000).for_each(|n| m.add(&format!("x{n}"), b"")), "more than 4096 members"),
];

#[test]
fn hostile_archives_are_refused_with_a_reason_and_leave_nothing() {
    let bench = Bench::new();
    let good = || Archive::of(two_layers(), Packing::Gzip);
    bench.refused("empty", b"", "cut");
    bench.refused("text", &[b'x'; 2048], "not a tar header");
    bench.refused("packed as a whole", &gzip(&good().oci()), "not a tar header");
    let whole = good().oci();
    bench.refused("cut in half", &whole[..whole.len() / 2], "cut");
    for (what, change, fragment) in HOSTILE_IMAGES {
        let mut archive = good();
        change(&mut archive);
        bench.refused(what, &archive.oci(), fragment);
        bench.refused(what, &archive.docker(), fragment);
    }
    for (what, change, fragment) in HOSTILE_LAYOUTS {
        let mut members = good().oci_members();
        change(&mut members);
        bench.refused(what, &members.tar(), fragment);
    }
}

#[test]
fn a_saved_archive_of_two_images_is_refused() {
    let bench = Bench::new();
    let one = Archive::of(two_layers(), Packing::Plain);
    bench.refused("two images", &one.docker_twice(), "holds 2 images");
}

#[test]
fn more_entries_than_a_rootfs_may_have_are_refused() {
    let bench = Bench::new();
    let mut header = Layer::default();
    header.raw(b'0', b"x", b"", b"");
    let count = usize::try_from(abi::limits::ROOTFS_ENTRIES_MAX).unwrap() + 1;
    let archive = Archive::of(vec![Layer::of(header.bytes().repeat(count))], Packing::Gzip);
    assert!(archive.layers[0].len() < 64 << 20, "a bomb: half a gigabyte in a few megabytes");
    bench.refused("entries", &archive.oci(), "more entries");
}

/// What a layer's packing says of its end is checked; how many parts it has does not matter.
#[test]
fn members_of_gzip_without_end_are_refused_and_empty_ones_add_nothing() {
    let bench = Bench::new();
    let whole = Archive::of(two_layers(), Packing::Gzip);
    for cut in [1, 4, 8, 9] {
        let mut archive = Archive::of(two_layers(), Packing::Gzip);
        let length = archive.layers[1].len() - cut;
        archive.layers[1].truncate(length);
        bench.refused("gzip cut", &archive.oci(), "does not unpack");
    }
    let mut padded = Archive::of(two_layers(), Packing::Gzip);
    padded.layers[1].extend(gzip(b"").repeat(50_000));
    let want = bench.import("whole", &whole.oci()).unwrap();
    assert_eq!(bench.import("padded", &padded.oci()).unwrap().digest, want.digest);
    padded.layers[1].extend(b"rubbish");
    assert!(bench.import("rubbish", &padded.oci()).is_err());
}

/// They would steer the guest's overlay, or grant capabilities.
#[test]
fn extended_attributes_are_left_out() {
    let bench = Bench::new();
    let attributes: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.security.capability", &[1; 20]),
        ("LIBARCHIVE.xattr.user.x", b"eA=="),
    ];
    let (mut with, mut without) = (Layer::default(), Layer::default());
    with.pax("x", &attributes);
    without.raw(b'0', b"x", b"", b"");
    let with = bench.import("with", &Archive::of(vec![with], Packing::Plain).oci()).unwrap();
    let without = bench.import("without", &Archive::of(vec![without], Packing::Plain).oci()).unwrap();
    assert_eq!(with.digest, without.digest);
}

/// Whatever links say, what comes through them stays below the root.
#[test]
fn links_that_lead_out_lead_back_to_the_root() {
    let bench = Bench::new();
    let mut lower = Layer::default();
    lower.symlink("up", "../../../..").symlink("down", "/deep/er").symlink("both", "up/../up/deep");
    let mut upper = Layer::default();
    upper.file("up/etc/passwd", 0o644, b"ours").file("down/x", 0o644, b"x").file("both/y", 0o644, b"y");
    let image = bench.import("links", &Archive::of(vec![lower, upper], Packing::Plain).oci()).unwrap();
    let tree = bench.tree(&image);
    for (path, content) in [("etc/passwd", &b"ours"[..]), ("deep/er/x", b"x"), ("deep/y", b"y")] {
        assert_eq!(tree[path], Facts::File { mode: 0o644, content: content.to_vec() }, "{path}");
    }
    assert_eq!(tree["up"], Facts::Symlink("../../../..".into()));
}

#[test]
fn nested_indexes_within_the_limit_are_followed() {
    let mut members = Archive::of(two_layers(), Packing::Gzip).oci_members();
    members.nest_index(3);
    Bench::new().import("nested", &members.tar()).unwrap();
}

#[test]
fn a_zstd_window_beyond_the_limit_is_refused() {
    let bench = Bench::new();
    // A frame header that asks for a window of 2 GiB (RFC 8878 section 3.1.1.1.2: exponent 21, no mantissa).
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let mut archive = Archive::of(two_layers(), Packing::Zstd);
    archive.layers[0] = frame.to_vec();
    bench.refused("window", &archive.oci(), "does not unpack");
}

/// Bytes no digest covers are few and change nothing; any other change is refused.
#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let mut small = Layer::default();
    small.dir("etc/", 0o755).file("etc/x", 0o644, b"content").symlink("l", "etc/x");
    let seed = archives::seed();
    let mut random = archives::Random(seed);
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let good = Archive::of(vec![small.clone()], packing).oci();
        let want = Bench::new().import("x", &good).unwrap().digest;
        let mut bench = Bench::new();
        let mut refused = 0;
        for _ in 0..400 {
            let mut bytes = good.clone();
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
            match bench.import("x", &bytes) {
                Ok(image) => {
                    assert_eq!(image.digest, want, "seed {seed}, {packing:?}, byte {at}");
                    bench = Bench::new();
                }
                Err(_) => {
                    refused += 1;
                    assert_eq!(bench.files(), Vec::<String>::new(), "seed {seed}, {packing:?}, byte {at}");
                }
            }
        }
        assert!(refused > 100, "most bytes matter, {refused} did");
        // The last 512 bytes are a second closing block, which nobody needs.
        for _ in 0..100 {
            let length = random.below(good.len() - 1024);
            let cut = bench.import("x", &good[..length]);
            assert!(cut.is_err(), "seed {seed}: cut at {length} of {}", good.len());
        }
    }
}

/// Debian's Python, as `make run` uses it: our script's archive, skopeo's translation of it, and umoci's view of what it holds.
#[test]
fn a_real_image_of_debian_packages_is_what_umoci_unpacks() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let run = |command: &mut Command| {
        let output =
            command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: run scripts/deps.sh"));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {told}");
    };
    std::fs::create_dir_all(at("add/app")).unwrap();
    std::fs::write(at("add/app/main.py"), "print('hello')\n").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/rootfs-python.sh");
    run(Command::new(script).arg(at("oci.tar")).arg("--add").arg(at("add")));
    let place = |kind: &str, name: &str| format!("{kind}:{}", at(name).display());
    let from = place("oci-archive", "oci.tar");
    run(Command::new("skopeo").args(["copy", "-q", &from, &place("docker-archive", "docker.tar")]));
    run(Command::new("skopeo").args(["copy", "-q", &from, &(place("oci", "layout") + ":x")]));
    let layout = format!("{}:x", at("layout").display());
    run(Command::new("umoci").args(["unpack", "--rootless", "--image", &layout]).arg(at("bundle")));

    let bench = Bench::new();
    let mut tell = |_, _, _| {};
    let oci = bench.store.import(Source::File(&at("oci.tar")), "python", &mut tell).unwrap();
    let docker = bench.store.import(Source::File(&at("docker.tar")), "docker", &mut tell).unwrap();
    assert_eq!(oci.digest, docker.digest);
    let (ours, theirs) = (bench.tree(&docker), archives::facts_of_directory(&at("bundle/rootfs")));
    assert!(ours.len() > 500);
    same(&ours, &theirs);
}

/// cage's threads are small; the deepest tree must fit them.
#[test]
fn the_deepest_tree_is_imported_on_a_small_stack() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let depth = abi::limits::ROOTFS_DEPTH_MAX - 1;
        let deep = "d/".repeat(depth);
        let mut lower = Layer::default();
        lower.file(&format!("{deep}x"), 0o644, b"content").file("d/y", 0o644, b"");
        let mut upper = Layer::default();
        upper.file(".wh.d", 0o644, b"").file(&format!("{deep}z"), 0o644, b"content");
        let archive = Archive::of(vec![lower, upper], packing).oci();
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let import = move || {
            let bench = Bench::new();
            let image = bench.import("deep", &archive).unwrap();
            (bench, image)
        };
        let (bench, image) = thread.spawn(import).unwrap().join().unwrap();
        assert_eq!(bench.tree(&image).len(), depth + 2);
    }
}

/// Stages that an import told of.
fn stages(bench: &Bench, name: &str, archive: &[u8]) -> (Image, Vec<String>) {
    let mut told: Vec<String> = Vec::new();
    let mut reader = archive;
    let source = Source::Stream { reader: &mut reader, bytes: archive.len() as u64 };
    let mut tell = |stage: cage::store::Stage, _, _| {
        if told.last() != Some(&stage.to_string()) {
            told.push(stage.to_string());
        }
    };
    (bench.store.import(source, name, &mut tell).unwrap(), told)
}

fn layer_of(number: usize) -> Layer {
    let mut layer = Layer::default();
    layer.file(&format!("file{number}"), 0o644, &vec![b'0' + number as u8; 10_000 * (number + 1)]);
    layer.dir(&format!("dir{number}/"), 0o755).file("same", 0o644, format!("{number}").as_bytes());
    if number > 0 {
        layer.file(&format!(".wh.dir{}", number - 1), 0o644, b"");
    }
    layer
}

fn layers(range: std::ops::Range<usize>) -> Vec<Layer> {
    range.map(layer_of).collect()
}

#[test]
fn a_layer_that_two_images_have_is_stored_once_and_converted_once() {
    let bench = Bench::new();
    let (base, _) = stages(&bench, "base", &Archive::of(layers(0..2), Packing::Gzip).oci());
    let (app, told) = stages(&bench, "app", &Archive::of(layers(0..3), Packing::Gzip).oci());
    assert!(told.contains(&"2 of 3 layers known".into()), "{told:?}");
    assert_eq!((base.layers.len(), app.layers.len()), (2, 3));
    let digests = |image: &Image| image.layers.iter().map(|l| l.digest).collect::<Vec<_>>();
    assert_eq!(digests(&base), digests(&app)[..2]);
    assert_eq!(app.layers.iter().map(|l| l.images).collect::<Vec<_>>(), [2, 2, 1]);
    let disks = bench.files().iter().filter(|file| file.starts_with("squashfs/")).count();
    assert_eq!(disks, 3);
    // The same by a store that knows nothing: digest and all.
    let fresh = Bench::new();
    let (again, told) = stages(&fresh, "app", &Archive::of(layers(0..3), Packing::Gzip).oci());
    assert!(!told.iter().any(|stage| stage.contains("known")), "{told:?}");
    assert_eq!((again.digest, digests(&again)), (app.digest, digests(&app)));
    same(&bench.tree(&app), &fresh.tree(&again));
    // Nobody loses what somebody else still has.
    assert_eq!(bench.store.remove(&app.digest).unwrap(), app.layers[2].bytes);
    assert_eq!(bench.tree(&base).len(), 5);
    assert_eq!(bench.store.remove(&base.digest).unwrap(), base.bytes);
    assert_eq!(bench.files(), ["names.json"]);
}

#[test]
fn known_layers_are_known_in_every_format_and_after_the_store_was_opened_again() {
    for (format, packing) in [(true, Packing::Plain), (true, Packing::Zstd), (false, Packing::Plain)] {
        let bytes = |archive: Archive| if format { archive.oci() } else { archive.docker() };
        let bench = Bench::new();
        bench.import("base", &bytes(Archive::of(layers(0..4), packing))).unwrap();
        let bench = Bench { store: Store::open(&bench.path()).unwrap(), dir: bench.dir };
        let (image, told) = stages(&bench, "app", &bytes(Archive::of(layers(0..6), packing)));
        assert!(told.contains(&"4 of 6 layers known".into()), "{told:?}");
        assert_eq!(image.layers.len(), 5);
        // The same layers with another environment are all known.
        let mut other = Archive::of(layers(0..6), packing);
        other.env = vec!["OTHER=1".into()];
        let (other, told) = stages(&bench, "other", &bytes(other));
        assert!(told.contains(&"6 of 6 layers known".into()), "{told:?}");
        assert!(!told.contains(&"write squashfs".into()), "{told:?}");
        assert_ne!(image.digest, other.digest);
        assert_eq!(bench.tree(&image), bench.tree(&other));
    }
}

/// A chain is known by what its layers unpack to; the archive that says so must hold them.
#[test]
fn a_known_layer_that_is_damaged_in_its_archive_is_refused() {
    let bench = Bench::new();
    bench.import("base", &Archive::of(layers(0..2), Packing::Gzip).oci()).unwrap();
    let before = bench.files();
    let mut members = Archive::of(layers(0..3), Packing::Gzip).oci_members();
    members.change_blob(b"\x1f\x8b");
    let error = bench.import("app", &members.tar()).unwrap_err().to_string();
    assert!(error.contains("not sha256:"), "{error}");
    assert_eq!(bench.files(), before);
    // Packed in another way it is unpacked again, and is the same disk.
    let (image, told) = stages(&bench, "zstd", &Archive::of(layers(0..2), Packing::Zstd).oci());
    assert!(!told.iter().any(|stage| stage.contains("known")), "{told:?}");
    assert_eq!(image.names, ["base", "zstd"]);
}

#[test]
fn what_a_chain_says_is_lost_without_harm() {
    let bench = Bench::new();
    bench.import("base", &Archive::of(layers(0..2), Packing::Gzip).oci()).unwrap();
    for file in bench.files().iter().filter(|file| file.starts_with("chains/")) {
        let path = bench.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let (image, told) = stages(&bench, "app", &Archive::of(layers(0..3), Packing::Gzip).oci());
    assert!(!told.iter().any(|stage| stage.contains("known")), "{told:?}");
    assert_eq!(image.layers.iter().map(|l| l.images).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(bench.tree(&image).len(), 1 + 3 + 1 + 1);
}

/// The first version of the store: one SquashFS for an image, whose digest is the image's.
#[test]
fn an_image_of_the_first_version_is_one_layer() {
    let bench = Bench::new();
    let archive = Archive::of(layers(0..1), Packing::Plain).oci();
    let image = bench.import("old", &archive).unwrap();
    let disk = bench.disks(&image)[0].clone();
    let (digest, dir) = (image.layers[0].digest, bench.path());
    let hex = digest.hex();
    let new = dir.join(format!("meta/{}.json", image.digest.hex()));
    let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&new).unwrap()).unwrap();
    std::fs::remove_file(new).unwrap();
    let first = serde_json::json!({
        "version": 1,
        "bytes": std::fs::metadata(&disk).unwrap().len(),
        "sources": meta["sources"],
        "env": ["PATH=/usr/bin"],
        "workdir": null,
    });
    std::fs::write(dir.join(format!("meta/{hex}.json")), first.to_string()).unwrap();
    let names = serde_json::json!({ "version": 1, "names": { "old": digest } });
    std::fs::write(dir.join("names.json"), names.to_string()).unwrap();
    let store = Store::open(&dir).unwrap();
    let (found, disks, old) = store.resolve(&RootfsRef::Name("old".into())).unwrap();
    assert_eq!((found, disks, old.layers.len()), (digest, vec![disk], 1));
    // Its archive is known as it was.
    let path = bench.dir.path().join("old.tar");
    std::fs::write(&path, archive).unwrap();
    let again = store.import(Source::File(&path), "new", &mut |_, _, _| {}).unwrap();
    assert_eq!((again.digest, again.names), (digest, vec!["new".to_owned(), "old".to_owned()]));
}

/// Random stacks of layers, through the real archive, our writer, and the kernel's SquashFS and overlay: what is seen is what umoci
/// would unpack into one directory, here the merge into one disk.
#[test]
fn the_kernel_shows_any_stack_of_disks_as_the_merge_of_its_layers() {
    let seed = archives::seed();
    let mut random = archives::Random(seed);
    let (mut compared, mut disks) = (0, 0);
    for round in 0..12 {
        let bench = Bench::new();
        let stack: Vec<Layer> = (0..2 + random.below(5)).map(|_| random_layer(&mut random)).collect();
        let archive = Archive::of(stack, Packing::Plain);
        let Ok(image) = bench.import("stack", &archive.oci()) else { continue };
        // As one disk: the same layers in the same order on top of so many others that they are merged.
        let mut padded = layers(0..4);
        padded.push({
            let mut clean = Layer::default();
            clean.file(".wh..wh..opq", 0o644, b"").dir("./", 0o755);
            clean
        });
        let merged = Archive::of(padded, Packing::Plain).followed_by(&archive);
        let merged = bench.import("merged", &merged.oci()).unwrap();
        let want = archives::facts_of_disks(&bench.disks(&merged));
        let got = bench.tree(&image);
        assert_eq!(got, want, "seed {seed}, round {round}");
        for image in [&image, &merged] {
            let Some((seen, links)) = archives::mounted(&bench.disks(image), |root| {
                (archives::facts_of_directory(root), archives::links(root))
            }) else {
                return;
            };
            assert_eq!(seen, want, "seed {seed}, round {round}");
            assert!(
                links.values().all(|(stated, found)| stated == found),
                "seed {seed}, round {round}: {links:?}"
            );
        }
        compared += 1;
        disks += image.layers.len();
    }
    assert!(compared > 2 && disks > 2 * compared, "{compared} stacks of {disks} disks");
}

fn random_layer(random: &mut archives::Random) -> Layer {
    let mut layer = Layer::default();
    let mut here: Vec<String> = Vec::new();
    for number in 0..random.below(12) {
        let names: Vec<&str> = (0..1 + random.below(3)).map(|_| ["a", "b", "c"][random.below(3)]).collect();
        let path = names.join("/");
        let top = ["f", "g", "h"][random.below(3)];
        match random.below(9) {
            // Names of files and of directories differ, so that few stacks are refused.
            0 => layer.file(&format!("{path}/.wh.{top}"), 0o644, b""),
            1 => layer.file(&format!(".wh.{}", ["a", "b", "c"][random.below(3)]), 0o644, b""),
            2 => layer.file(&format!("{path}/.wh..wh..opq"), 0o644, b""),
            3 => layer.dir(&format!("{path}/"), 0o700 + random.below(8) as u32),
            4 => layer.symlink(&format!("{path}/l{top}"), "../a/b"),
            5 => layer.fifo(&format!("{path}/p{top}"), 0o600),
            6 if !here.is_empty() => {
                let target = here[random.below(here.len())].clone();
                layer.hard_link(&format!("{path}/{top}{number}"), &target)
            }
            _ => {
                let file = format!("{path}/{top}");
                here.push(file.clone());
                layer.file(&file, 0o640, &vec![number as u8; random.below(300_000)])
            }
        };
    }
    layer
}
