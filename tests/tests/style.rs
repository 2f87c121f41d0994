//! The house rules of the source, as tests. Known exceptions are listed with their present size and may only shrink.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Files above the limit today: (path, lines without tests). A listed file may not grow, and leaves the list when it fits.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions above the limit today: (path, name, lines).
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("readable folder").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && !["target", "build", ".git"].iter().any(|skip| name == *skip) {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let root = tree();
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    assert!(paths.len() > 30, "the walk found only {} files", paths.len());
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below the root").display().to_string();
            (name, fs::read_to_string(&path).expect("UTF-8 source"))
        })
        .collect()
}

/// A file without its unit tests, which stand at its end.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| &text[..at])
}

fn is_test_file(name: &str) -> bool {
    name.contains("/tests/")
        || name.starts_with("tests/")
        || name.contains("/benches/")
        || name.ends_with("tests.rs")
}

#[test]
fn files_stay_under_their_limit() {
    let mut wrong = Vec::new();
    for (name, text) in sources().iter().filter(|(name, _)| !is_test_file(name)) {
        let lines = without_tests(text).lines().count();
        let listed = LONG_FILES.iter().find(|(file, _)| file == name).map(|(_, lines)| *lines);
        match listed {
            None if lines > FILE_LINES_MAX => {
                wrong.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"))
            }
            Some(known) if lines > known => wrong.push(format!("{name}: grew from {known} to {lines} lines")),
            Some(_) if lines <= FILE_LINES_MAX => {
                wrong.push(format!("{name}: fits now, take it off the list"))
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn functions_fit_a_screen() {
    let mut wrong = Vec::new();
    for (name, text) in sources().iter().filter(|(name, _)| !is_test_file(name)) {
        for (function, lines) in functions(without_tests(text)) {
            let listed =
                LONG_FUNCTIONS.iter().find(|(file, f, _)| file == name && *f == function).map(|(_, _, n)| *n);
            match listed {
                None if lines > FUNCTION_LINES_MAX => {
                    wrong.push(format!(
                        "{name}: fn {function} has {lines} lines, at most {FUNCTION_LINES_MAX}"
                    ));
                }
                Some(known) if lines > known => {
                    wrong.push(format!("{name}: fn {function} grew to {lines} lines"))
                }
                Some(_) if lines <= FUNCTION_LINES_MAX => {
                    wrong.push(format!("{name}: fn {function} fits now"))
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions with their lines, found by rustfmt's indentation: a body ends at the `}` in the column of its `fn` line.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let indent = line.len() - body.len();
        if body.ends_with(';') {
            continue; // declared in a trait
        }
        let Some(name) = body.split("fn ").nth(1).filter(|_| {
            let before = body.split("fn ").next().unwrap_or_default();
            before.split_whitespace().all(|word| {
                ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""]
                    .contains(&word)
            })
        }) else {
            continue;
        };
        let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|line| *line == close) {
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn unsafe_stands_only_in_the_files_made_for_it() {
    for (name, text) in sources() {
        let allowed = ["sys.rs", "krun.rs"].iter().any(|file| name.ends_with(file)) || is_test_file(&name);
        let opts_out = text.contains(&format!("expect({}", "unsafe_code"))
            || text.contains(&format!("allow({}", "unsafe_code"));
        assert!(allowed || !opts_out, "{name} opts out of the lint against unsafe code");
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for (name, text) in sources() {
        let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        assert!(first.is_some_and(|line| line.starts_with("//!")), "{name} does not open with //!");
    }
}

#[test]
fn nothing_is_put_off_and_no_lint_is_silenced_without_a_reason() {
    let words = [
        format!("{}!(", "todo"),
        format!("{}!(", "unimplemented"),
        format!("// {}", "TODO"),
        format!("#[{}]", "ignore"),
    ];
    for (name, text) in sources() {
        for word in &words {
            assert!(!text.contains(word.as_str()), "{name} has `{word}`");
        }
        for (number, line) in text.lines().enumerate() {
            let silenced = line.trim_start().starts_with(&format!("#[{}(", "allow"));
            assert!(
                !silenced || line.contains("reason"),
                "{name}:{} silences a lint without a reason",
                number + 1
            );
        }
    }
}

#[test]
fn every_component_has_its_page() {
    for page in [
        "ARCHITECTURE",
        "SPECIFICATION",
        "DEPENDENCIES",
        "AGENT.toml",
        "nulld.toml",
        "control-protocol",
        "nulld",
        "cage",
        "verifier",
        "egress",
        "ctxgraph",
        "nullctl",
        "nullgate",
        "coder",
        "boot",
        "image",
        "kernel",
        "rootfs",
        "formats/ctxgraph",
    ] {
        let path = tree().join(format!("docs/{page}.md"));
        assert!(path.metadata().is_ok_and(|m| m.len() > 200), "{} is missing or empty", path.display());
    }
}

#[test]
fn every_direct_dependency_has_a_reason() {
    let reasons = fs::read_to_string(tree().join("docs/DEPENDENCIES.md")).expect("docs/DEPENDENCIES.md");
    let ours = [
        "abi",
        "verifier",
        "verdict",
        "seccomp",
        "nulld",
        "cage",
        "egress",
        "ctxgraph",
        "nullctl",
        "coder",
        "initramfs",
        "image",
        "system-tests",
    ];
    let mut missing = Vec::new();
    for folder in [
        "abi",
        "seccomp",
        "nulld",
        "cage",
        "cage/verifier",
        "cage/verifier/verdict",
        "egress",
        "ctxgraph",
        "nullctl",
        "coder",
        "initramfs",
        "image",
        "tests",
    ] {
        let text = fs::read_to_string(tree().join(folder).join("Cargo.toml")).expect("Cargo.toml");
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies]");
            } else if inside
                && let Some(name) = line.split(['=', '.', ' ']).next()
                && !(name.is_empty()
                    || name.starts_with('#')
                    || ours.contains(&name)
                    || reasons.contains(name))
            {
                missing.push(format!("{folder}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "no reason in docs/DEPENDENCIES.md for {}", missing.join(", "));
}
