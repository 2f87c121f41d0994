//! What a claim may not do, tried; and what a verified patch takes.

use super::support::{Random, changed, claim, digest, file, link, seeds, seen, tree, write};
use abi::authority::{Call, Operation, PathPattern, Target};
use abi::exposure::Exposure;
use abi::identity::Role;
use abi::limits;
use verdict::approvals::{Actor, Approvals, CallKey};
use verdict::decide::operator_step;
use verdict::patch::{
    Claimed, ClaimedChange, ClaimedContent, IntegrateError, MintError, Protect, REFUSALS_MAX, Recorded,
    Refusals, Rule, check, integrate, mint, reminted, steering, step_arguments,
};
use verdict::tree::{Entry, Tree, TreeError};

fn patterns(list: &[&str]) -> Vec<PathPattern> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn protect(protect: &[&str], permit: &[&str], verify: &[&str]) -> Protect {
    let verify: Vec<String> = verify.iter().map(ToString::to_string).collect();
    Protect::new(&patterns(protect), &patterns(permit), &verify).unwrap()
}

fn removed(path: &str) -> ClaimedChange {
    changed(path, ClaimedContent::Removed)
}

fn linked(path: &str, target: &str) -> ClaimedChange {
    changed(path, ClaimedContent::Link { target: target.into() })
}

fn directory(path: &str) -> ClaimedChange {
    changed(path, ClaimedContent::Directory)
}

/// The rules that refuse it, each once.
fn rules(result: Result<verdict::patch::ChangeSet, Refusals>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = match result {
        Ok(_) => Vec::new(),
        Err(refusals) => refusals.list.iter().map(|refusal| refusal.rule).collect(),
    };
    rules.sort();
    rules.dedup();
    rules
}

fn base() -> Tree {
    tree(&[
        ("src/lib.rs", file("fn one() {}")),
        ("src/deep/mod.rs", file("mod")),
        ("tests/one.rs", file("assert")),
        ("tests/data/a", file("a")),
        ("docs/index.md", file("docs")),
        ("here", link("src")),
        ("spec", link("tests")),
    ])
}

fn refused_by(changes: Vec<ClaimedChange>, protect: &Protect) -> Vec<Rule> {
    rules(check(&base(), claim(changes), protect))
}

#[test]
fn a_plain_change_passes_and_its_digests_are_those_of_the_page() {
    let set = check(
        &base(),
        claim(vec![write("src/lib.rs", "fn two() {}"), removed("docs/index.md"), write("src/new.rs", "")]),
        &Protect::default(),
    )
    .unwrap();
    let result = set.apply(&base()).unwrap();
    assert_eq!((set.base(), set.result()), (base().digest(), result.digest()));
    assert_eq!(result.entry("src/new.rs"), Some(&file("")));
    assert_eq!(result.entry("docs/index.md"), None);
    let hex = |text: &str| digest(text).hex();
    let text = format!(
        "nullbox-patch-1\n{}\n-f 644 {} docs/index.md\n-f 644 {} src/lib.rs\n+f 644 {} src/lib.rs\n+f 644 {} src/new.rs\n",
        base().digest().hex(),
        hex("docs"),
        hex("fn one() {}"),
        hex("fn two() {}"),
        hex("")
    );
    assert_eq!(set.digest(), digest(&text));
    let small = tree(&[
        ("d/t\u{e4} \"", Entry::File { is_executable: true, sha256: digest("x"), bytes: 1 }),
        ("l", link("d")),
    ]);
    let text = format!("nullbox-tree-1\nd d\nf 755 {} \"d/t\\303\\244 \\\"\"\nl {} l\n", hex("x"), hex("d"));
    assert_eq!(small.digest(), digest(&text));
    assert_eq!(set.apply(&small), None, "another base");
}

#[test]
fn paths_that_are_none_are_refused() {
    let long = format!("src/{}", "a/".repeat(2100) + "a");
    for path in [
        "/etc/passwd",
        "../out",
        "src/../../out",
        "src//lib.rs",
        "./x",
        "src/.",
        "",
        "a\0b",
        &long,
        &"n".repeat(256),
    ] {
        for content in [write(path, "x"), removed(path), linked(path, "src"), directory(path)] {
            assert_eq!(refused_by(vec![content], &Protect::default()), [Rule::Path], "{path:?}");
        }
    }
    assert_eq!(refused_by(vec![write("src/x", "1"), write("src/x", "2")], &Protect::default()), [Rule::Path]);
    assert_eq!(refused_by(vec![write("no/where", "1")], &Protect::default()), [Rule::Path]);
    assert_eq!(refused_by(vec![write("src/lib.rs/x", "1")], &Protect::default()), [Rule::Path]);
    assert_eq!(refused_by(vec![write("SRC", "1")], &Protect::default()), [Rule::Path]);
    assert_eq!(refused_by(vec![write("src/Lib.rs", "1")], &Protect::default()), [Rule::Path]);
    let renamed = vec![removed("src/lib.rs"), write("src/Lib.rs", "1")];
    assert_eq!(refused_by(renamed, &Protect::default()), [], "another spelling in its place");
}

#[test]
fn links_that_lead_out_and_paths_through_links_are_refused() {
    for target in ["/etc/passwd", "..", "../x", "src/../../x", "", "here/../../x", "self", "a\0b"] {
        let changes = vec![linked("self", target)];
        assert_eq!(refused_by(changes, &Protect::default()), [Rule::Link], "{target:?}");
    }
    for (path, target) in
        [("l", "src/lib.rs"), ("src/l", "../docs"), ("l", "src/../docs/./index.md"), ("l", "dangling/x")]
    {
        assert_eq!(refused_by(vec![linked(path, target)], &Protect::default()), [], "{path} -> {target}");
    }
    assert_eq!(refused_by(vec![write("here/x", "1")], &Protect::default()), [Rule::Link]);
    let through_own = vec![linked("mine", "src"), write("mine/x", "1")];
    assert_eq!(refused_by(through_own, &Protect::default()), [Rule::Link]);
    // Each target alone stays inside; the second, followed through the first, does not.
    let climb = vec![linked("src/deep/up", "../.."), linked("src/deep/out", "up/../x")];
    assert_eq!(refused_by(climb, &Protect::default()), [Rule::Link]);
    // A directory of the base becomes a link, and a link of the base leads out by it.
    let tree = tree(&[("d/a/f", file("x")), ("d/l", link("a/../../e"))]);
    let turned = claim(vec![removed("d/a/f"), linked("d/a", "..")]);
    assert_eq!(rules(check(&tree, turned, &Protect::default())), [Rule::Link]);
    let round = vec![linked("one", "two"), linked("two", "one")];
    assert_eq!(refused_by(round, &Protect::default()), [Rule::Link]);
    assert_eq!(refused_by(vec![linked("l", ".git/config")], &Protect::default()), [Rule::Git]);
}

#[test]
fn a_link_of_the_base_that_leads_out_harms_nobody_but_is_not_followed() {
    let tree = tree(&[("abs", link("/etc")), ("up", link("../..")), ("f", file("x"))]);
    assert_eq!(rules(check(&tree, claim(vec![write("f", "y")]), &Protect::default())), []);
    assert_eq!(rules(check(&tree, claim(vec![write("abs/passwd", "y")]), &Protect::default())), [Rule::Link]);
    assert_eq!(rules(check(&tree, claim(vec![linked("l", "up/x")]), &Protect::default())), [Rule::Link]);
}

#[test]
fn links_are_followed_in_bounded_work() {
    let chain = |links: usize| {
        let one = |n: usize| {
            linked(&format!("l{n}"), &if n + 1 < links { format!("l{}", n + 1) } else { "src".into() })
        };
        (0..links).map(one).collect::<Vec<_>>()
    };
    assert_eq!(refused_by(chain(41), &Protect::default()), [], "40 from the first on");
    assert_eq!(refused_by(chain(42), &Protect::default()), [Rule::Link]);
    let longest = "./".repeat(2046) + "src";
    assert_eq!(longest.len(), 4095);
    assert_eq!(refused_by(vec![linked("l", &longest)], &Protect::default()), []);
    assert_eq!(refused_by(vec![linked("l", &format!("{longest}/"))], &Protect::default()), [Rule::Link]);
    // 2,000 links with 2,047 parts each are more than are followed for one tree.
    let many = Tree::new((0..2000).map(|n| (format!("l{n}"), link(&longest)))).unwrap();
    assert_eq!(rules(check(&many, claim(vec![linked("m", "l0")]), &Protect::default())), [Rule::Link]);
    let few = Tree::new((0..1000).map(|n| (format!("l{n}"), link(&longest)))).unwrap();
    assert_eq!(rules(check(&few, claim(vec![linked("m", "l0")]), &Protect::default())), []);
}

#[test]
fn special_files_and_modes_are_refused() {
    for kind in ["socket", "pipe", "device"] {
        let special = changed("src/s", ClaimedContent::Other { kind: kind.into() });
        assert_eq!(refused_by(vec![special], &Protect::default()), [Rule::Mode]);
    }
    for mode in [0o4755, 0o2755, 0o1777, 0o10644, u32::MAX] {
        let set_id = ClaimedChange { mode, ..write("src/x", "1") };
        assert_eq!(refused_by(vec![set_id], &Protect::default()), [Rule::Mode], "{mode:o}");
    }
    let open = ClaimedChange { mode: 0o777, ..write("src/x", "1") };
    assert_eq!(refused_by(vec![open], &Protect::default()), []);
    let executable = ClaimedChange { mode: 0o755, ..write("src/lib.rs", "fn one() {}") };
    let set = check(&base(), claim(vec![executable]), &Protect::default()).unwrap();
    assert_eq!(set.changes().count(), 1, "a mode alone is a change");
}

#[test]
fn what_git_acts_on_is_refused_in_every_spelling() {
    let names = [
        ".git",
        ".GIT",
        ".Git",
        ".git.",
        ".git ",
        ".git . .",
        "git~1",
        "GIT~1",
        "git~12",
        ".g\u{200c}it",
        "\u{feff}.git",
        ".gi\u{ad}t",
        ".git::$INDEX_ALLOCATION",
        ".git:x",
        ".gitmodules",
        ".GitModules",
        ".gitmodules ",
        "gitmod~1",
        "GI7EBA~1",
        "gi7eba~99",
        ".gitattributes",
        "gitatt~4",
        "gi7d29~1",
        ".githooks",
        ".husky",
        ".HUSKY",
        "a\\.git",
        ".git\\config",
        "x\\.git\\hooks",
        ".git\u{fe0f}",
        ".\u{200d}git\u{202e}",
    ];
    for name in names {
        assert_eq!(refused_by(vec![write(name, "x")], &Protect::default()), [Rule::Git], "{name:?}");
        let below = vec![
            directory(name),
            directory(&format!("{name}/hooks")),
            write(&format!("{name}/hooks/pre-commit"), "x"),
        ];
        assert_eq!(refused_by(below, &Protect::default()), [Rule::Git], "{name:?}");
        assert_eq!(
            refused_by(vec![write(&format!("src/{name}"), "x")], &Protect::default()),
            [Rule::Git],
            "{name:?}"
        );
        assert_eq!(refused_by(vec![linked(name, "src")], &Protect::default()), [Rule::Git], "{name:?}");
    }
    for name in [
        ".gitignore",
        "git",
        "agit~1",
        "git~",
        "git~x",
        "x.git",
        ".gitx",
        ".github2",
        "gitmodules",
        "legit",
        "..git",
    ] {
        assert_eq!(refused_by(vec![write(name, "x")], &Protect::default()), [], "{name:?}");
    }
    let everything = protect(&[], &["/work/**"], &[]);
    assert_eq!(refused_by(vec![write(".gitmodules", "x")], &everything), [Rule::Git], "nothing permits it");
}

#[test]
fn a_protected_path_is_refused_whatever_is_done_to_it() {
    let tests = protect(&["/work/tests/**"], &[], &[]);
    for changes in [
        vec![write("tests/one.rs", "")],
        vec![write("tests/new.rs", "")],
        vec![removed("tests/one.rs")],
        vec![removed("tests")],
        vec![linked("tests", "src")],
        vec![write("tests", "a file now")],
        vec![directory("tests/more")],
        vec![ClaimedChange { mode: 0o755, ..write("tests/one.rs", "assert") }],
        vec![directory("Tests"), write("Tests/one.rs", "")],
        vec![removed("tests/data")],
        vec![linked("tests/l", "../src")],
        vec![write("src/lib.rs", "fine"), write("tests/one.rs", "")],
    ] {
        let rules = refused_by(changes.clone(), &tests);
        assert!(rules.contains(&Rule::Protected), "{changes:?}: {rules:?}");
    }
    assert_eq!(refused_by(vec![write("src/tests.rs", ""), write("testsuite", "")], &tests), []);
    let upper = protect(&["/work/SRC/Deep"], &[], &[]);
    assert_eq!(refused_by(vec![write("src/deep/mod.rs", "x")], &upper), [Rule::Protected], "all below it");
    let by_another_name = protect(&["/work/spec/**"], &[], &[]);
    assert_eq!(
        refused_by(vec![write("tests/one.rs", "")], &by_another_name),
        [Rule::Protected],
        "spec leads to tests"
    );
    assert_eq!(refused_by(vec![write("src/lib.rs", "")], &by_another_name), []);
    let one = protect(&["/work/spec/one.rs", "/work/specsuite"], &[], &[]);
    let refusals = check(&base(), claim(vec![write("tests/one.rs", "")]), &one).unwrap_err();
    assert_eq!(refusals.to_string(), "protected tests/one.rs: it is protected (as `spec/one.rs`)");
    assert_eq!(refused_by(vec![write("testsuite", "")], &one), [], "spec does not lead to it");
    let tree = tree(&[("d/root", link("..")), ("src/a", file("a"))]);
    let through_root = protect(&["/work/d/root/src/a"], &[], &[]);
    let refused = check(&tree, claim(vec![write("src/a", "b")]), &through_root);
    assert_eq!(rules(refused), [Rule::Protected], "d/root leads to the tree itself");
    let permitted = protect(&["/work/tests/**"], &["/work/**"], &[]);
    assert_eq!(
        refused_by(vec![write("tests/one.rs", "")], &permitted),
        [Rule::Protected],
        "no permit lifts it"
    );
}

#[test]
fn what_steers_the_build_is_refused_unless_it_is_permitted() {
    let none = Protect::default();
    let files = [
        "Cargo.toml",
        "cargo.TOML",
        "src/build.rs",
        "rust-toolchain.toml",
        "pyproject.toml",
        "setup.py",
        "setup.cfg",
        "tox.ini",
        "noxfile.py",
        "pytest.ini",
        "conftest.py",
        "src/deep/conftest.py",
        "sitecustomize.py",
        "usercustomize.py",
        "evil.pth",
        "package.json",
        "package-lock.json",
        "yarn.lock",
        ".npmrc",
        "Makefile",
        "GNUmakefile",
        "rules.mk",
        "justfile",
        "CMakeLists.txt",
        "meson.build",
        "build.gradle",
        "build.gradle.kts",
        "pom.xml",
        "go.mod",
        "go.sum",
        ".gitlab-ci.yml",
        ".gitlab-ci-extra.yml",
        "Dockerfile",
        "Dockerfile.test",
        ".envrc",
        "vitest.config.ts",
        "jest.config.js",
        "tsconfig.json",
        "tsconfig.base.json",
        "requirements.txt",
        "requirements-dev.txt",
        "Rakefile",
        "mod.cpython-311.pyc",
        "helper.so",
        "Jenkinsfile",
    ];
    for name in files {
        assert_eq!(refused_by(vec![write(name, "x")], &none), [Rule::BuildSteering], "{name}");
        let permit = format!("/work/{name}");
        assert_eq!(refused_by(vec![write(name, "x")], &protect(&[], &[&permit], &[])), [], "{name}");
    }
    for directory_name in
        [".cargo", ".github", ".config", "node_modules", ".venv", ".GitHub", ".vscode", ".circleci"]
    {
        let changes = vec![directory(directory_name), write(&format!("{directory_name}/x"), "x")];
        assert_eq!(refused_by(changes, &none), [Rule::BuildSteering], "{directory_name}");
    }
    for name in [
        "src/main.rs",
        "README.md",
        "src/builder.rs",
        "makefile_parser.py",
        "src/package_json.js",
        "config.toml",
        "cargo.txt",
    ] {
        assert_eq!(steering::why(name), None, "{name}");
    }
    let tree = tree(&[("Cargo.toml", file("[package]")), ("conf", file("x")), ("Makefile", link("conf"))]);
    assert_eq!(rules(check(&tree, claim(vec![removed("Cargo.toml")]), &none)), [Rule::BuildSteering]);
    assert_eq!(
        rules(check(&tree, claim(vec![write("conf", "y")]), &none)),
        [Rule::BuildSteering],
        "the Makefile leads to it"
    );
}

#[test]
fn files_that_the_verify_command_names_are_refused() {
    let named = protect(
        &[],
        &[],
        &["./scripts/check.sh", "--config=conf/x.ini", "tests/one.rs::works", "/work/run", "src", "/bin/sh"],
    );
    let tree = tree(&[
        ("scripts/check.sh", file("x")),
        ("conf/x.ini", file("x")),
        ("tests/one.rs", file("x")),
        ("src/a", file("a")),
    ]);
    for path in ["scripts/check.sh", "conf/x.ini", "tests/one.rs", "run"] {
        let refused = check(&tree, claim(vec![write(path, "y")]), &named);
        assert_eq!(rules(refused), [Rule::BuildSteering], "{path}");
    }
    let inside = check(&tree, claim(vec![write("src/a", "y"), write("scripts/other.sh", "y")]), &named);
    assert_eq!(rules(inside), [], "what is in a directory that it names is what it judges");
    let elsewhere = check(&tree, claim(vec![directory("bin"), write("bin/sh", "y")]), &named);
    assert_eq!(rules(elsewhere), [], "an absolute path is the image's");
}

#[test]
fn sizes_are_bounded_and_nothing_is_no_change() {
    let none = Protect::default();
    let files = |count: usize| (0..count).map(|n| write(&format!("src/f{n}"), "x")).collect::<Vec<_>>();
    assert_eq!(refused_by(files(limits::CHANGES_MAX), &none), []);
    assert_eq!(refused_by(files(limits::CHANGES_MAX + 1), &none), [Rule::Size]);
    let big = |bytes| changed("src/big", ClaimedContent::File { sha256: digest("big"), bytes });
    assert_eq!(refused_by(vec![big(limits::CHANGES_BYTES_MAX)], &none), []);
    assert_eq!(refused_by(vec![big(limits::CHANGES_BYTES_MAX + 1)], &none), [Rule::Size]);
    assert_eq!(refused_by(vec![big(u64::MAX), write("src/x", "1")], &none), [Rule::Size]);
    assert_eq!(refused_by(Vec::new(), &none), [Rule::Empty]);
    let same = vec![write("src/lib.rs", "fn one() {}"), directory("src"), removed("nowhere")];
    assert_eq!(refused_by(same, &none), [Rule::Empty]);
    let flood = (0..limits::TREE_ENTRIES_MAX + 1).map(|n| write(&format!("f{n}"), "")).collect();
    assert_eq!(refused_by(flood, &none), [Rule::Size]);
    let full = Tree::new((1..limits::TREE_ENTRIES_MAX).map(|n| (format!("f{n}"), file("")))).unwrap();
    assert_eq!(rules(check(&full, claim(vec![write("f0", "")]), &none)), []);
    assert_eq!(rules(check(&full, claim(vec![write("f0", ""), write("one-more", "")]), &none)), [Rule::Size]);
    let computed = |count: usize| {
        let made = (3..=count).map(|n| write(&format!("__pycache__/{n}"), "")).collect();
        [vec![directory("__pycache__"), write("src/x", "1")], made].concat()
    };
    assert_eq!(refused_by(computed(limits::TREE_ENTRIES_MAX), &none), []);
    assert_eq!(refused_by(computed(limits::TREE_ENTRIES_MAX + 1), &none), [Rule::Size]);
}

#[test]
fn refusals_name_their_paths_and_are_bounded() {
    let tests = protect(&["/work/tests/**"], &[], &[]);
    let changes: Vec<ClaimedChange> = (0..100).map(|n| write(&format!("tests/{n}"), "x")).collect();
    let refusals = check(&base(), claim(changes), &tests).unwrap_err();
    // Each once as `tests/N` and once more through the link `spec`, which is not protected.
    assert_eq!((refusals.list.len(), refusals.more), (REFUSALS_MAX, 100 - REFUSALS_MAX));
    let shown = refusals.to_string();
    assert!(shown.starts_with("protected tests/0: it is protected; "), "{shown}");
    assert!(shown.ends_with(&format!("and {} more", 100 - REFUSALS_MAX)), "{shown}");
    let hostile = check(&base(), claim(vec![write(&format!("/{}\n\x1b[2J", "x".repeat(5000)), "x")]), &tests)
        .unwrap_err();
    assert!(hostile.to_string().len() < 400 && !hostile.to_string().contains('\x1b'));
}

#[test]
fn caches_that_tools_made_are_left_out() {
    let none = Protect::default();
    let made = vec![
        write("src/lib.rs", "fixed"),
        directory("target"),
        write("target/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55"),
        write("target/debug", "x"),
        directory("src/__pycache__"),
        write("src/__pycache__/mod.cpython-311.pyc", "x"),
    ];
    let set = check(&base(), claim(made), &none).unwrap();
    assert_eq!(set.changes().map(|(path, _)| path).collect::<Vec<_>>(), ["src/lib.rs"]);
    assert_eq!(set.left_out(), 5);
    let tagged = vec![write("src/CACHEDIR.TAG", "x"), write("src/lib.rs", "y")];
    let set = check(&base(), claim(tagged), &none).unwrap();
    assert_eq!((set.changes().count(), set.left_out()), (2, 0), "a directory of the base is none");
    let only = vec![directory("target"), write("target/CACHEDIR.TAG", "x")];
    assert_eq!(refused_by(only, &none), [Rule::Empty]);
    let outside = vec![directory("t"), write("t/CACHEDIR.TAG", ""), write("t/../../x", "1")];
    assert_eq!(refused_by(outside, &none), [Rule::Path], "each path is looked at first");
}

#[test]
fn a_removed_or_replaced_directory_takes_with_it_what_was_in_it() {
    let set = check(&base(), claim(vec![removed("src")]), &Protect::default()).unwrap();
    let paths: Vec<&str> = set.changes().map(|(path, _)| path).collect();
    assert_eq!(paths, ["src", "src/deep", "src/deep/mod.rs", "src/lib.rs"]);
    let set = check(&base(), claim(vec![write("docs", "now a file")]), &Protect::default()).unwrap();
    assert_eq!(set.apply(&base()).unwrap().entry("docs/index.md"), None);
}

#[test]
fn a_protection_outside_the_tree_is_refused() {
    assert!(Protect::new(&patterns(&["/etc/**"]), &[], &[]).is_err());
    assert!(Protect::new(&[], &patterns(&["/workshop/x"]), &[]).is_err());
    let many = vec!["/work/x".parse().unwrap(); limits::PROTECT_MAX + 1];
    assert!(Protect::new(&many, &[], &[]).is_err() && Protect::new(&[], &many, &[]).is_err());
    assert!(Protect::new(&many[1..], &many[1..], &[]).is_ok());
}

#[test]
fn entries_that_are_no_tree_are_refused() {
    let one = |path: &str, entry: Entry| (path.to_owned(), entry);
    assert_eq!(Tree::new([one("a/b", file("x"))]), Err(TreeError::Parent("a/b".into())));
    assert_eq!(Tree::new([one("a", file("x")), one("a/b", file("x"))]), Err(TreeError::Parent("a/b".into())));
    assert_eq!(Tree::new([one("a", file("x")), one("a", file("y"))]), Err(TreeError::Twice("a".into())));
    assert_eq!(Tree::new([one("../a", file("x"))]), Err(TreeError::Path("../a".into())));
    assert_eq!(Tree::new([one("", Entry::Directory)]), Err(TreeError::Path(String::new())));
    let many = (0..=limits::TREE_ENTRIES_MAX).map(|n| (format!("f{n}"), file("")));
    assert_eq!(Tree::new(many), Err(TreeError::Entries));
}

#[test]
fn only_what_was_run_and_ended_well_is_minted() {
    let set = || check(&base(), claim(vec![write("src/lib.rs", "fixed")]), &Protect::default()).unwrap();
    let other = check(&base(), claim(vec![write("src/lib.rs", "other")]), &Protect::default()).unwrap();
    let good = seen(&set());
    let proof = mint(set(), &good).unwrap().proof();
    assert_eq!((proof.base(), proof.patch(), proof.result()), (set().base(), set().digest(), set().result()));
    let mut bad = Vec::new();
    let mut spoil = |change: &dyn Fn(&mut verdict::patch::Verification)| {
        let mut one = good.clone();
        change(&mut one);
        bad.push(one);
    };
    spoil(&|v| v.base = digest("other"));
    spoil(&|v| v.result = other.result());
    spoil(&|v| v.result = v.base);
    spoil(&|v| v.exit.code = Some(1));
    spoil(&|v| v.exit.code = Some(-1));
    spoil(&|v| v.exit.code = None);
    spoil(&|v| (v.exit.code, v.exit.signal) = (None, Some(9)));
    spoil(&|v| v.exit.signal = Some(9));
    spoil(&|v| v.exit.oom_killed = true);
    spoil(&|v| v.exit.dropped_bytes = 1);
    spoil(&|v| v.output_bytes = limits::VERIFY_OUTPUT_BYTES_MAX + 1);
    spoil(&|v| v.wall_ms = v.wall_ms_max + 1);
    for one in bad {
        assert!(mint(set(), &one).is_err(), "{one:?}");
    }
    let mut full = good.clone();
    (full.output_bytes, full.wall_ms) = (limits::VERIFY_OUTPUT_BYTES_MAX, full.wall_ms_max);
    assert!(mint(set(), &full).is_ok());
    let recorded = Recorded { base: proof.base(), patch: proof.patch(), result: proof.result() };
    assert_eq!(reminted(set(), &recorded).map(|patch| patch.proof()), Ok(proof));
    assert_eq!(reminted(other, &recorded), Err(MintError::Recorded));
    for spoilt in [
        Recorded { base: digest("x"), ..recorded },
        Recorded { patch: digest("x"), ..recorded },
        Recorded { result: digest("x"), ..recorded },
    ] {
        assert_eq!(reminted(set(), &spoilt), Err(MintError::Recorded));
    }
}

#[test]
fn a_patch_goes_where_an_operator_approved_and_nowhere_else() {
    let patch = |text: &str| {
        let set = check(&base(), claim(vec![write("src/lib.rs", text)]), &Protect::default()).unwrap();
        let seen = seen(&set);
        mint(set, &seen).unwrap()
    };
    let proof = patch("fixed").proof();
    let approved = |operation: Operation| {
        let (tool, arguments) = ("integrate".into(), step_arguments(&proof, "commit main"));
        let (target, pinned, flows) = (Target::Arguments, digest("rootfs"), Exposure::NONE);
        let call = Call { operation, tool, target, arguments, pinned, flows, sealed: false };
        let ada = Actor::Operator { role: Role::Operator, name: "ada" };
        let mut approvals = Approvals::beginning_at(7);
        let id = approvals.ask(ada, "t12", &operator_step(&call), 0).unwrap();
        approvals.decide(ada, id, true, 0).unwrap();
        approvals.spend(ada, id, &CallKey::of("t12", &call), &operator_step(&call), 0).unwrap()
    };
    for operation in Operation::ALL {
        let integrated = integrate(patch("fixed"), approved(operation), "t12", "commit main");
        if matches!(operation, Operation::GitCommit | Operation::GitPush | Operation::CreatePr) {
            let integrated = integrated.unwrap();
            assert_eq!((integrated.proof(), integrated.approval(), integrated.by()), (proof, 7, "ada"));
        } else {
            assert_eq!(integrated, Err(IntegrateError::Operation(operation)));
        }
    }
    for (text, task, step) in
        [("other", "t12", "commit main"), ("fixed", "t13", "commit main"), ("fixed", "t12", "commit evil")]
    {
        let integrated = integrate(patch(text), approved(Operation::GitCommit), task, step);
        assert_eq!(integrated, Err(IntegrateError::Other), "{text} {task} {step}");
    }
}

/// Random trees and claims: what passes is confined, and two ways to the result agree.
#[test]
fn whatever_passes_changes_only_what_it_may_and_applies_to_what_it_says() {
    const NAMES: [&str; 18] = [
        "a",
        "b",
        "c",
        "d",
        "src",
        "src",
        "deep",
        "tests",
        "..",
        ".",
        "",
        ".git",
        "GIT~1",
        "A",
        "Makefile",
        "l",
        "x\\.git",
        "conftest.py",
    ];
    let (mut passed, mut refused) = (0, 0);
    for seed in seeds(4000) {
        let mut random = Random::new(seed);
        let protect = protect(&["/work/tests/**"], &[], &[]);
        let base =
            tree(&[("src/a", file("a")), ("tests/a", file("t")), ("b", file("b")), ("l", link("src"))]);
        let changes: Vec<ClaimedChange> = (0..1 + random.below(3))
            .map(|_| {
                let path: Vec<&str> = (0..1 + random.below(3)).map(|_| *random.pick(&NAMES)).collect();
                let path = path.join("/");
                let target: Vec<&str> = (0..1 + random.below(4)).map(|_| *random.pick(&NAMES)).collect();
                match random.below(5) {
                    0 => removed(&path),
                    1 => directory(&path),
                    2 => linked(&path, &target.join("/")),
                    _ => write(&path, &format!("{}", random.below(3))),
                }
            })
            .collect();
        match check(&base, Claimed { changes: changes.clone() }, &protect) {
            Err(_) => refused += 1,
            Ok(set) => {
                passed += 1;
                let result = set.apply(&base).unwrap();
                assert_eq!(result.digest(), set.result(), "NULLBOX_SEED={seed}");
                let again = Tree::new(result.entries().map(|(path, entry)| (path.to_owned(), entry.clone())));
                assert_eq!(again, Ok(result.clone()), "NULLBOX_SEED={seed}: the result is no tree");
                assert_eq!(
                    result.entry("tests/a"),
                    base.entry("tests/a"),
                    "NULLBOX_SEED={seed}: {changes:?}"
                );
                for (path, change) in set.changes() {
                    let is_bad = |part: &str| {
                        matches!(part, ".." | "." | "" | ".git" | "GIT~1" | "Makefile" | "conftest.py")
                    };
                    assert!(!path.split('/').any(is_bad), "NULLBOX_SEED={seed}: {path}");
                    assert_ne!(path.split('/').next(), Some("tests"), "NULLBOX_SEED={seed}: {path}");
                    assert_ne!(change.old, change.new, "NULLBOX_SEED={seed}");
                }
            }
        }
    }
    println!("{passed} passed, {refused} refused");
    assert!(std::env::var("NULLBOX_SEED").is_ok() || (passed > 200 && refused > 1000));
}
