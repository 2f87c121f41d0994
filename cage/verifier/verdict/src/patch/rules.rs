//! The rules that a claim must pass, and their order.

use abi::authority::PathPattern;
use abi::limits;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::links::{self, Leads};
use super::{Change, ChangeSet, Claimed, ClaimedChange, ClaimedContent, Refusal, Refusals, Rule};
use super::{REFUSAL_PATH_CHARS_MAX, REFUSALS_MAX, applied, git, steering};
use crate::tree::{Entry, Tree};

/// Where patterns of paths have the tree.
const ROOT: &str = "/work/";

/// What a patch must leave alone, and what of the build-steering files it may change all the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Protect {
    /// In small letters: where letters' case is nothing, another spelling is the same file.
    protect: Vec<PathPattern>,
    permit: Vec<PathPattern>,
    /// Paths that the verify command names, in small letters.
    named: BTreeSet<String>,
}

/// Why there is no such [`Protect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtectError {
    /// A pattern that does not begin with `/work/`.
    Elsewhere(PathPattern),
    /// More than [`limits::PROTECT_MAX`] patterns of one kind.
    Many,
}

impl core::fmt::Display for ProtectError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ProtectError::Elsewhere(pattern) => {
                write!(f, "`{pattern}` is not below the tree: begin it with `{ROOT}`")
            }
            ProtectError::Many => {
                write!(f, "at most {} patterns may be protected, and permitted", limits::PROTECT_MAX)
            }
        }
    }
}

impl core::error::Error for ProtectError {}

impl Protect {
    /// Of a task's terms. `verify`: its command (and the score's); files that it names steer it.
    pub fn new(
        protect: &[PathPattern],
        permit: &[PathPattern],
        verify: &[String],
    ) -> Result<Protect, ProtectError> {
        if protect.len().max(permit.len()) > limits::PROTECT_MAX {
            return Err(ProtectError::Many);
        }
        let elsewhere = |pattern: &&PathPattern| !pattern.as_str().starts_with(ROOT);
        if let Some(pattern) = protect.iter().chain(permit).find(elsewhere) {
            return Err(ProtectError::Elsewhere(pattern.clone()));
        }
        let lower = |pattern: &PathPattern| {
            let lower = pattern.as_str().to_lowercase().parse();
            lower.map_err(|_| ProtectError::Elsewhere(pattern.clone()))
        };
        Ok(Protect {
            protect: protect.iter().map(lower).collect::<Result<_, _>>()?,
            permit: permit.to_vec(),
            named: verify.iter().flat_map(|word| named(word)).chain(modules(verify)).collect(),
        })
    }

    fn protects(&self, path: &str) -> bool {
        let path = format!("{ROOT}{}", path.to_lowercase());
        self.protect.iter().any(|pattern| pattern.covers(&path))
    }

    fn permits(&self, path: &str) -> bool {
        let path = format!("{ROOT}{path}");
        self.permit.iter().any(|pattern| pattern.admits(&path))
    }

    /// Why a path steers the verify command, if it does and is not permitted.
    fn steers(&self, path: &str) -> Option<&'static str> {
        let why = if self.named.contains(&path.to_lowercase()) {
            Some("the verify command names it")
        } else {
            steering::why(path)
        };
        why.filter(|_| !self.permits(path))
    }
}

/// Paths of the tree that a word of a command may stand for: the word, what follows its `=`, and each without a test's name behind `::`.
fn named(word: &str) -> impl Iterator<Item = String> + '_ {
    let behind = word.split_once('=').map(|(_, behind)| behind);
    [Some(word), behind].into_iter().flatten().filter_map(|word| {
        let path = word.split("::").next().unwrap_or_default();
        let path = path.strip_prefix(ROOT).unwrap_or(path);
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        (!path.starts_with('/') && !parts.is_empty()).then(|| parts.join("/").to_lowercase())
    })
}

/// Files that `-m MODULE` means to Python, which looks into the tree before it looks into its own library.
fn modules(command: &[String]) -> impl Iterator<Item = String> + '_ {
    let after = command.iter().zip(command.iter().skip(1)).filter(|(option, _)| *option == "-m");
    after.flat_map(|(_, module)| {
        let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
        ends.filter_map(|end| module.get(..end)).flat_map(|name| {
            let path = name.replace('.', "/").to_lowercase();
            [".py", "/__init__.py", "/__main__.py"].map(|end| format!("{path}{end}"))
        })
    })
}

impl Refusals {
    fn add(&mut self, rule: Rule, path: &str, why: &str) {
        if self.list.len() < REFUSALS_MAX {
            let path = path.chars().take(REFUSAL_PATH_CHARS_MAX).collect();
            self.list.push(Refusal { rule, path, why: why.into() });
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn checked<T>(self, value: T) -> Result<T, Refusals> {
        if self.list.is_empty() { Ok(value) } else { Err(self) }
    }
}

/// Checks a claim against every rule. What is not legal is refused whole, each path with its rule.
pub fn check(base: &Tree, claimed: Claimed, protect: &Protect) -> Result<ChangeSet, Refusals> {
    let (wanted, left_out) = without_caches(base, entries(claimed)?);
    let changes = differences(base, wanted);
    let mut refusals = Refusals::default();
    size(&changes, &mut refusals);
    let base_links = links::of(base);
    let result = applied(base, &changes);
    if result.entries.len() > limits::TREE_ENTRIES_MAX {
        let why = format!("the tree would have more than {} entries", limits::TREE_ENTRIES_MAX);
        refusals.add(Rule::Size, "", &why);
    }
    // What is above a bound is not worth the time that the other rules take.
    let mut refusals = refusals.checked(Refusals::default())?;
    for path in changes.keys() {
        place(path, path, protect, &mut refusals);
        for other in other_names(&base_links, path) {
            place(&other, path, protect, &mut refusals);
        }
    }
    shape(&changes, &result, &mut refusals);
    // Links can be followed only where each path has its directory.
    let mut refusals = refusals.checked(Refusals::default())?;
    where_links_lead(&base_links, &changes, &result, &mut refusals);
    spellings(&changes, &result, &mut refusals);
    let (base, result) = (base.digest(), result.digest());
    refusals.checked(ChangeSet { base, result, changes, left_out })
}

/// What the claim wants at each path: rules `path` and `mode`, of each change alone.
fn entries(claimed: Claimed) -> Result<BTreeMap<String, Option<Entry>>, Refusals> {
    let mut refusals = Refusals::default();
    if claimed.changes.len() > limits::TREE_ENTRIES_MAX {
        refusals.add(Rule::Size, "", &format!("it has more than {} entries", limits::TREE_ENTRIES_MAX));
        return Err(refusals);
    }
    let mut wanted = BTreeMap::new();
    for ClaimedChange { path, mode, content } in claimed.changes {
        if path.is_empty() || !abi::files::path_ok(&path) {
            refusals.add(Rule::Path, &path, "it is not a relative path without empty, `.` or `..` parts");
        }
        if mode > 0o777 {
            refusals.add(Rule::Mode, &path, &format!("mode {mode:o} has more than permission bits"));
        }
        let entry = match content {
            ClaimedContent::Directory => Some(Entry::Directory),
            ClaimedContent::File { sha256, bytes } => {
                Some(Entry::File { is_executable: mode & 0o100 != 0, sha256, bytes })
            }
            ClaimedContent::Link { target } => Some(Entry::Link { target }),
            ClaimedContent::Removed => None,
            ClaimedContent::Other { kind } => {
                let kind: String = kind.chars().take(32).flat_map(char::escape_debug).collect();
                refusals.add(Rule::Mode, &path, &format!("a {kind} is no file, directory or link"));
                None
            }
        };
        if wanted.contains_key(&path) {
            refusals.add(Rule::Path, &path, "it came twice");
        }
        wanted.insert(path, entry);
    }
    refusals.checked(wanted)
}

/// Without added directories that a tool keeps what it computed in, and how many entries that were: nobody means to hand them over, and
/// what is left out is neither verified nor applied.
fn without_caches(
    base: &Tree,
    mut wanted: BTreeMap<String, Option<Entry>>,
) -> (BTreeMap<String, Option<Entry>>, usize) {
    let has_tag = |path: &str| matches!(wanted.get(&format!("{path}/CACHEDIR.TAG")), Some(Some(_)));
    let is_cache = |path: &&String| {
        base.entry(path).is_none() && (path.rsplit('/').next() == Some("__pycache__") || has_tag(path))
    };
    let caches: BTreeSet<String> = wanted.keys().filter(is_cache).cloned().collect();
    let before = wanted.len();
    wanted.retain(|path, _| {
        let mut above = path.match_indices('/').filter_map(|(at, _)| path.get(..at)).chain([path.as_str()]);
        !above.any(|path| caches.contains(path))
    });
    let left_out = before - wanted.len();
    (wanted, left_out)
}

/// What is really changed. With a directory that is removed or replaced goes all that was in it.
fn differences(base: &Tree, wanted: BTreeMap<String, Option<Entry>>) -> BTreeMap<String, Change> {
    let mut all = BTreeMap::new();
    for (path, entry) in &wanted {
        if base.entry(path) == Some(&Entry::Directory) && *entry != Some(Entry::Directory) {
            all.extend(base.below(path).map(|below| (below.clone(), None)));
        }
    }
    all.extend(wanted);
    let changes = all.into_iter().map(|(path, new)| {
        let old = base.entry(&path).cloned();
        (path, Change { old, new })
    });
    changes.filter(|(_, change)| change.old != change.new).collect()
}

fn size(changes: &BTreeMap<String, Change>, refusals: &mut Refusals) {
    if changes.is_empty() {
        refusals.add(Rule::Empty, "", "nothing was changed");
    }
    if changes.len() > limits::CHANGES_MAX {
        let why = format!("{} paths are changed, at most {} may be", changes.len(), limits::CHANGES_MAX);
        refusals.add(Rule::Size, "", &why);
    }
    let bytes = changes.values().fold(0u64, |sum, change| match &change.new {
        Some(Entry::File { bytes, .. }) => sum.saturating_add(*bytes),
        _ => sum,
    });
    if bytes > limits::CHANGES_BYTES_MAX {
        let most = limits::CHANGES_BYTES_MAX;
        refusals.add(Rule::Size, "", &format!("the new contents have {bytes} bytes, at most {most} may be"));
    }
}

/// Rules `git`, `protected` and `build-steering` of one name of a changed path.
fn place(name: &str, path: &str, protect: &Protect, refusals: &mut Refusals) {
    let by = if name == path { String::new() } else { format!(" (as `{}`)", name.escape_debug()) };
    if git::is_gits(name) {
        refusals.add(Rule::Git, path, &format!("git acts on what is there{by}"));
    }
    if protect.protects(name) {
        refusals.add(Rule::Protected, path, &format!("it is protected{by}"));
    }
    if let Some(why) = protect.steers(name).filter(|_| !protect.permits(path)) {
        let permit = format!("`--permit {ROOT}{}` would allow it", name.escape_debug());
        refusals.add(Rule::BuildSteering, path, &format!("{why}{by}; {permit}"));
    }
}

/// Under which other names, through links of the base, a path can be reached.
fn other_names<'a>(links: &'a Leads, path: &'a str) -> impl Iterator<Item = String> + 'a {
    links.iter().filter_map(move |(link, leads)| {
        let leads = leads.as_deref().ok()?;
        match path.strip_prefix(leads)? {
            _ if leads.is_empty() => Some(format!("{link}/{path}")),
            rest if rest.is_empty() || rest.starts_with('/') => Some(format!("{link}{rest}")),
            _ => None,
        }
    })
}

/// Each path of the result lies in a directory: none leads through a link or a file.
fn shape(changes: &BTreeMap<String, Change>, result: &Tree, refusals: &mut Refusals) {
    let made = changes.iter().filter(|(_, change)| change.new.is_some()).map(|(path, _)| path);
    for path in made.filter(|path| !result.is_in_directory(path)) {
        let mut parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
        if parents.any(|parent| matches!(result.entry(parent), Some(Entry::Link { .. }))) {
            refusals.add(Rule::Link, path, "it leads through a symbolic link");
        } else {
            refusals.add(Rule::Path, path, "what it lies in is no directory of the tree");
        }
    }
}

/// No link of the patch leads out of the tree, nor does one of the base that did not before.
fn where_links_lead(
    before: &Leads,
    changes: &BTreeMap<String, Change>,
    result: &Tree,
    refusals: &mut Refusals,
) {
    for (path, leads) in links::of(result) {
        let is_changed = changes.contains_key(&path);
        let was_well = before.get(&path).is_some_and(Result::is_ok);
        match leads {
            Err(why) if was_well || is_changed => refusals.add(Rule::Link, &path, why),
            Ok(leads) if is_changed && git::is_gits(&leads) => {
                refusals.add(Rule::Git, &path, "it leads to what git acts on");
            }
            _ => {}
        }
    }
}

/// No added path is another spelling of one that is there: where letters' case is nothing, it would replace it.
fn spellings(changes: &BTreeMap<String, Change>, result: &Tree, refusals: &mut Refusals) {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for (path, _) in result.entries() {
        *seen.entry(path.to_lowercase()).or_default() += 1;
    }
    for (path, _) in changes.iter().filter(|(_, change)| change.old.is_none()) {
        if seen.get(&path.to_lowercase()).is_some_and(|count| *count > 1) {
            refusals.add(Rule::Path, path, "it differs from another path in the case of letters alone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;

    #[test]
    fn a_module_that_the_verify_command_runs_cannot_come_from_the_patch() {
        let command = |line: &str| line.split(' ').map(ToOwned::to_owned).collect::<Vec<String>>();
        let protect = Protect::new(&[], &[], &command("python3 -B -m tools.check -m")).unwrap();
        for path in ["tools/check.py", "Tools/Check/__main__.py", "tools/__init__.py", "tools.py"] {
            assert!(protect.steers(path).is_some(), "{path}");
        }
        for path in ["tools/other.py", "check.py", "src/tools/check.py"] {
            assert!(protect.steers(path).is_none(), "{path}");
        }
    }
}
