//! A verified patch as the node sends it, held against the tree it is for.
//!
//! Must hold: what comes out is legal by the rules of docs/tasks.md, and base, patch and result have the digests that were verified;
//! nullctl computes each by itself, with the library that judged the claim.

use abi::control::{PatchSummary, TaskStatus};
use abi::files::{Content, Reader};
use abi::ids::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use verdict::patch::{ChangeSet, Claimed, ClaimedChange, ClaimedContent, Protect, check};
use verdict::tree::{Entry, Tree};

use crate::failure::{Failure, status};
use crate::pack;

/// What becomes of files, and their new contents.
#[derive(Debug)]
pub struct Patch {
    pub set: ChangeSet,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Patch {
    /// The contents of a file that the patch makes.
    pub fn content(&self, path: &str) -> &[u8] {
        self.contents.get(path).map(Vec::as_slice).unwrap_or_default()
    }
}

fn wrong(why: impl std::fmt::Display) -> Failure {
    Failure::local(
        status::FAILED,
        format!("the patch that came is not the verified one: {why}"),
        "nullctl computes the digests of patch and result itself",
        "try again; if it stays so, look at nullctl ledger verify",
    )
}

/// Refuses a tree that is not the one the task began from.
pub fn same_base(base: &Tree, task: &TaskStatus, what: &str) -> Result<(), Failure> {
    match base.digest() == task.base {
        true => Ok(()),
        false => Err(Failure::local(
            status::FAILED,
            format!("{what} is {}, not the tree {} that {} began from", base.digest(), task.base, task.id),
            "what was verified is the patch on exactly that tree",
            "go to the commit it began from, with nothing else changed; or take the diff: nullctl task export --diff",
        )),
    }
}

/// Reads the records of a patch on this base.
pub fn read(bytes: &[u8], base: &Tree, task: &TaskStatus, summary: &PatchSummary) -> Result<Patch, Failure> {
    let mut reader = Reader::new(bytes);
    let (mut changes, mut contents) = (Vec::new(), BTreeMap::new());
    while let Some(record) = reader.next(true).map_err(wrong)? {
        let content = match record.content {
            Content::Directory => ClaimedContent::Directory,
            Content::Removed => ClaimedContent::Removed,
            Content::Link { target } => ClaimedContent::Link { target },
            Content::Other { kind } => ClaimedContent::Other { kind },
            Content::File { bytes } => {
                let mut content = Vec::new();
                reader.content().read_to_end(&mut content).map_err(wrong)?;
                let claimed = ClaimedContent::File { sha256: pack::sum(&content), bytes };
                contents.insert(record.path.clone(), content);
                claimed
            }
        };
        changes.push(ClaimedChange { path: record.path, mode: record.mode, content });
    }
    // Steering files that the operator permitted were judged on the node; here everything else is judged once more.
    let everything = "/work/**".parse().map_err(wrong)?;
    let protect = Protect::new(&task.protect, &[everything], &task.verify).map_err(wrong)?;
    let set = check(base, Claimed { changes }, &protect).map_err(wrong)?;
    for (what, is, should) in
        [("patch", set.digest(), summary.digest), ("result", set.result(), summary.result)]
    {
        if is != should {
            return Err(wrong(format!("the {what} is {is}, and should be {should}")));
        }
    }
    Ok(Patch { set, contents })
}

/// The digest of base with patch without directories that hold no file: git keeps none.
pub fn as_git_keeps_it(base: &Tree, patch: &Patch) -> Result<Digest, Failure> {
    let whole = patch.set.apply(base).ok_or_else(|| wrong("it is for another tree"))?;
    let mut full = BTreeSet::new();
    for (mut below, entry) in whole.entries() {
        while *entry != Entry::Directory
            && let Some((parent, _)) = below.rsplit_once('/')
        {
            full.insert(parent.to_owned());
            below = parent;
        }
    }
    let kept = whole.entries().filter(|(path, entry)| **entry != Entry::Directory || full.contains(*path));
    let kept = Tree::new(kept.map(|(path, entry)| (path.to_owned(), entry.clone()))).map_err(wrong)?;
    Ok(kept.digest())
}
