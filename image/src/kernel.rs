//! Builds the host and the guest kernel from Debian's linux-source-6.12.
//!
//! Fragments under kernel-config/ are merged over `allnoconfig`, and every line of them is checked in the result: an
//! option that did not take fails the build with its name. Output lies in the cache, keyed by everything it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::hardening::List;
use crate::iso::COMMAND_LINE;
use crate::process::{run, run_watched, tool};
use crate::progress::Step;
use crate::tree::Tree;

const PACKAGE: &str = "linux-source-6.12";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Host,
    Guest,
}

impl Kind {
    pub fn parse(name: &str) -> Result<Kind> {
        match name {
            "host" => Ok(Kind::Host),
            "guest" => Ok(Kind::Guest),
            _ => bail!("there is no kernel `{name}`: it is `host` or `guest`"),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Host => "host",
            Kind::Guest => "guest",
        }
    }

    /// The file libkrun (ELF) or the firmware (bzImage) wants.
    fn output(self) -> &'static str {
        match self {
            Kind::Host => "bzImage",
            Kind::Guest => "vmlinux",
        }
    }

    /// Lines `make` prints, for the progress bar.
    fn expected_lines(self) -> usize {
        match self {
            Kind::Host => 2490,
            Kind::Guest => 1525,
        }
    }
}

/// The kernel's file, built when it is not in the cache.
pub fn build(tree: &Tree, kind: Kind) -> Result<PathBuf> {
    let fragments = Fragments::of(tree, kind)?;
    List::read(tree)?.hold(kind, &fragments.options, None, COMMAND_LINE)?;
    let folder = tree.cache("kernel").join(fragments.key(kind, &Compiler::find(tree)?));
    let output = folder.join(kind.output());
    if output.exists() {
        return Ok(output);
    }
    let work = Work::create(tree, kind)?;
    fragments.configure(tree, &work, kind)?;
    let log = tree.cache("kernel").join(format!("{}.log", kind.name()));
    let mut step = Step::start(format!("{} kernel (once; log in {})", kind.name(), log.display()));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let target = match kind {
        Kind::Host => "bzImage",
        Kind::Guest => "vmlinux",
    };
    run_watched(
        work.make(tree).arg(format!("-j{jobs}")).arg(target),
        &mut step,
        kind.expected_lines(),
        &log,
    )?;
    let built = match kind {
        Kind::Host => work.object.join("arch/x86/boot/bzImage"),
        Kind::Guest => {
            let stripped = work.object.join("vmlinux.stripped");
            run(tool(tree, "strip").arg("-s").arg("-o").arg(&stripped).arg(work.object.join("vmlinux")))?;
            stripped
        }
    };
    publish(&folder, &[(&built, kind.output()), (&work.object.join(".config"), "config")])?;
    step.done(&output.display().to_string());
    Ok(output)
}

/// Configures without building: a wrong option is found in seconds.
pub fn check_only(tree: &Tree, kind: Kind) -> Result<()> {
    let fragments = Fragments::of(tree, kind)?;
    let work = Work::create(tree, kind)?;
    fragments.configure(tree, &work, kind)?;
    let config = fs::read_to_string(work.object.join(".config"))?;
    let enabled = config.lines().filter(|line| line.ends_with("=y")).count();
    eprintln!(
        "image: {} kernel: {} options asked for, all taken; {enabled} enabled",
        kind.name(),
        fragments.options.len()
    );
    Ok(())
}

/// Files appear in the cache all at once, or not.
fn publish(folder: &Path, files: &[(&Path, &str)]) -> Result<()> {
    let partial = folder.with_extension(format!("tmp.{}", std::process::id()));
    fs::create_dir_all(&partial)?;
    for (from, name) in files {
        fs::copy(from, partial.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    match fs::rename(&partial, folder) {
        // Somebody else was faster with the same content.
        Err(_) if folder.exists() => Ok(fs::remove_dir_all(&partial)?),
        renamed => renamed.with_context(|| format!("cannot make {}", folder.display())),
    }
}

/// What else than the fragments a kernel's bytes depend on.
#[derive(Debug)]
struct Compiler {
    source: String,
    gcc: String,
    ld: String,
}

impl Compiler {
    fn find(tree: &Tree) -> Result<Compiler> {
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let version = run(tool(tree, "dpkg-query").args(["-W", "-f", "${Version}", PACKAGE]));
        let version =
            version.with_context(|| format!("package {PACKAGE} is not installed: run scripts/deps.sh"))?;
        Ok(Compiler {
            source: format!("{PACKAGE} {version}"),
            gcc: first(run(tool(tree, "gcc").arg("--version"))?),
            ld: first(run(tool(tree, "ld").arg("--version"))?),
        })
    }
}

/// An unpacked source tree with an output folder beside it, gone when dropped.
#[derive(Debug)]
struct Work {
    folder: PathBuf,
    source: PathBuf,
    object: PathBuf,
}

impl Work {
    fn create(tree: &Tree, kind: Kind) -> Result<Work> {
        let folder = tree.cache("kernel").join(format!("work-{}-{}", kind.name(), std::process::id()));
        let work = Work { source: folder.join(PACKAGE), object: folder.join(PACKAGE).join("build"), folder };
        clear_abandoned(&tree.cache("kernel"));
        fs::create_dir_all(&work.folder).with_context(|| format!("cannot make {}", work.folder.display()))?;
        let archive = format!("/usr/src/{PACKAGE}.tar.xz");
        let step = Step::start(format!("{} kernel: unpack {archive}", kind.name()));
        run(tool(tree, "tar").arg("-xf").arg(&archive).arg("-C").arg(&work.folder))?;
        fs::create_dir_all(&work.object)?;
        step.done("");
        Ok(work)
    }

    fn make(&self, tree: &Tree) -> Command {
        let mut make = tool(tree, "make");
        // The kernel prints these; they must not tell one build from another.
        make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC").env("KBUILD_BUILD_VERSION", "1");
        make.env("KBUILD_BUILD_USER", "nullbox").env("KBUILD_BUILD_HOST", "nullbox");
        // `make` of this repository may have started us; its flags are not for this one.
        make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
        make.arg("-C").arg(&self.source).arg(format!("O={}", self.object.display())).arg("ARCH=x86_64");
        make
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // A leftover work folder only takes space.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A build that was killed leaves its work folder, 2 GB of it. The name ends with the builder's process id.
fn clear_abandoned(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let builder = name.strip_prefix("work-").and_then(|rest| rest.rsplit('-').next());
        if builder.is_some_and(|id| id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists()) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The merged fragments: option name to value.
#[derive(Debug, PartialEq, Eq)]
pub struct Fragments {
    pub options: BTreeMap<String, String>,
}

impl Fragments {
    pub fn of(tree: &Tree, kind: Kind) -> Result<Fragments> {
        Fragments::read(&tree.path("kernel-config").join(kind.name()))
    }

    fn read(folder: &Path) -> Result<Fragments> {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "config"));
        files.sort();
        let mut text = Vec::new();
        for file in files {
            text.push((file.display().to_string(), fs::read_to_string(&file)?));
        }
        Fragments::parse(&text)
    }

    fn parse(files: &[(String, String)]) -> Result<Fragments> {
        let mut options = BTreeMap::new();
        for (file, text) in files {
            for (number, line) in text.lines().enumerate() {
                let place = || format!("{file}:{}", number + 1);
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                let (name, value) = line.split_once('=').filter(|(name, _)| name.starts_with("CONFIG_")).ok_or_else(|| {
                    anyhow!("{}: `{line}` is neither a comment nor CONFIG_NAME=value; switch options off with =n", place())
                })?;
                if options.insert(name.to_owned(), value.to_owned()).is_some() {
                    bail!(
                        "{}: `{name}` is set a second time; each option has one place and one reason",
                        place()
                    );
                }
            }
        }
        Ok(Fragments { options })
    }

    /// The lines in byte order, as the kernel's tools and the cache key take them.
    fn merged(&self) -> String {
        let mut lines: Vec<String> =
            self.options.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        lines.sort();
        lines.concat()
    }

    fn key(&self, kind: Kind, compiler: &Compiler) -> String {
        let Compiler { source, gcc, ld } = compiler;
        let text = format!("nullbox-kernel-1\n{}\n{source}\n{gcc}\n{ld}\n{}", kind.name(), self.merged());
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn configure(&self, tree: &Tree, work: &Work, kind: Kind) -> Result<()> {
        let merged = work.folder.join("merged.config");
        fs::write(&merged, self.merged())?;
        run(work.make(tree).arg("-s").env("KCONFIG_ALLCONFIG", &merged).arg("allnoconfig"))?;
        let config = fs::read_to_string(work.object.join(".config"))?;
        let mut known = BTreeSet::new();
        collect_symbols(&work.source, &mut known)?;
        let wrong = self.not_taken(&config, &known);
        if wrong.is_empty() {
            let finished = config.lines().filter_map(|line| line.split_once('='));
            let finished = finished.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            return List::read(tree)?.hold(kind, &finished, Some(&known), COMMAND_LINE);
        }
        bail!(
            "kernel options that did not take (a dependency is missing, or the name is wrong):\n  {}",
            wrong.join("\n  ")
        )
    }

    /// Options whose value in the finished configuration is not the one asked for, and names that no Kconfig knows:
    /// a misspelt `=n` would otherwise always seem right.
    fn not_taken(&self, config: &str, known: &BTreeSet<String>) -> Vec<String> {
        let taken: BTreeMap<&str, &str> = config.lines().filter_map(|line| line.split_once('=')).collect();
        let mut wrong = Vec::new();
        for (name, wanted) in &self.options {
            let got = taken.get(name.as_str()).copied().unwrap_or("n");
            if !known.contains(name.trim_start_matches("CONFIG_")) {
                wrong.push(format!("{name}: this kernel has no such option"));
            } else if got != wanted {
                wrong.push(format!("{name}={wanted}: is {got}"));
            }
        }
        wrong
    }
}

/// Names defined by any Kconfig file below `folder`.
fn collect_symbols(folder: &Path, known: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect_symbols(&entry.path(), known)?;
        } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with("Kconfig") {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
            known.extend(text.lines().filter_map(|line| {
                let mut words = line.split_whitespace();
                matches!(words.next(), Some("config" | "menuconfig"))
                    .then(|| words.next().map(str::to_owned))?
            }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Fragments> {
        Fragments::parse(&[("a.config".to_owned(), text.to_owned())])
    }

    fn known(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn options_that_took_pass() {
        let fragments = parse("# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_S=\"x\"\n").unwrap();
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"x\"\n";
        assert_eq!(fragments.not_taken(config, &known(&["A", "B", "S"])), Vec::<String>::new());
    }

    #[test]
    fn options_that_did_not_take_are_named() {
        let fragments = parse("CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\n").unwrap();
        let wrong = fragments.not_taken("# CONFIG_A is not set\nCONFIG_B=y\n", &known(&["A", "B"]));
        assert_eq!(
            wrong,
            ["CONFIG_A=y: is n", "CONFIG_B=n: is y", "CONFIG_C: this kernel has no such option"]
        );
    }

    #[test]
    fn double_and_malformed_lines_are_refused_with_their_place() {
        let double = parse("CONFIG_A=y\n\nCONFIG_A=n\n").unwrap_err().to_string();
        assert!(double.starts_with("a.config:3: `CONFIG_A` is set a second time"), "{double}");
        assert!(parse("# CONFIG_A is not set\n").unwrap().options.is_empty());
        assert!(parse("CONFIG_A\n").unwrap_err().to_string().contains("a.config:1"));
    }

    #[test]
    fn work_folders_of_dead_builders_are_cleared_and_those_of_live_ones_stay() {
        let cache = std::env::temp_dir().join(format!("nullbox-kernel-{}", std::process::id()));
        let live = format!("work-host-{}", std::process::id());
        // Process ids end at 2^22 (proc(5)).
        let names = [live.as_str(), "work-guest-4194399", "work-guest-x", "4194399", "host.log"];
        for name in names {
            fs::create_dir_all(cache.join(name).join("linux")).unwrap();
        }
        clear_abandoned(&cache);
        let left: Vec<&str> = names.into_iter().filter(|name| cache.join(name).exists()).collect();
        fs::remove_dir_all(&cache).unwrap();
        assert_eq!(left, [live.as_str(), "work-guest-x", "4194399", "host.log"]);
    }

    #[test]
    fn key_depends_on_options_compiler_and_kind_and_not_on_comments() {
        let compiler =
            |gcc: &str| Compiler { source: "s".to_owned(), gcc: gcc.to_owned(), ld: "l".to_owned() };
        let fragments = parse("CONFIG_A=y\n").unwrap();
        let key = fragments.key(Kind::Host, &compiler("12"));
        assert_eq!(key, parse("# why\nCONFIG_A=y\n").unwrap().key(Kind::Host, &compiler("12")));
        assert_ne!(key, fragments.key(Kind::Guest, &compiler("12")));
        assert_ne!(key, fragments.key(Kind::Host, &compiler("13")));
        assert_ne!(key, parse("CONFIG_A=n\n").unwrap().key(Kind::Host, &compiler("12")));
    }
}
