//! Where symbolic links of a tree lead, as a kernel would follow them below the tree's root.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use crate::tree::{Entry, Tree};

/// As many links as Linux follows (path_resolution(7)).
const HOPS_MAX: usize = 40;
/// Parts of paths looked at for all links of a tree together. A tree above it is none that a patch can be judged against.
const PARTS_MAX: usize = 4_000_000;

/// Of each link what it leads to below the root, or why not.
pub(super) type Leads = BTreeMap<String, Result<String, &'static str>>;

/// All links of a tree.
pub(super) fn of(tree: &Tree) -> Leads {
    let mut left = PARTS_MAX;
    let links = tree.entries().filter_map(|(path, entry)| match entry {
        Entry::Link { target } => Some((path, target)),
        _ => None,
    });
    links.map(|(path, target)| (path.into(), follow(tree, path, target, &mut left))).collect()
}

fn follow(tree: &Tree, link: &str, target: &str, left: &mut usize) -> Result<String, &'static str> {
    let mut at: Vec<&str> = link.split('/').collect();
    at.pop();
    let mut todo: VecDeque<&str> = parts(target)?.collect();
    let mut hops = 0;
    while let Some(part) = todo.pop_front() {
        *left = left.checked_sub(1 + at.len()).ok_or("the tree has too many links to follow them all")?;
        match part {
            "" | "." => continue,
            ".." => {
                at.pop().ok_or("it leads out of the tree")?;
                continue;
            }
            name => at.push(name),
        }
        if let Some(Entry::Link { target }) = tree.entry(&at.join("/")) {
            hops += 1;
            if hops > HOPS_MAX {
                return Err("it leads through too many links");
            }
            at.pop();
            for part in parts(target)?.rev() {
                todo.push_front(part);
            }
        }
    }
    Ok(at.join("/"))
}

fn parts(target: &str) -> Result<core::str::Split<'_, char>, &'static str> {
    match target {
        "" => Err("its target is empty"),
        target if target.starts_with('/') => Err("its target is absolute"),
        target if target.len() > abi::limits::COPY_PATH_BYTES_MAX || target.contains('\0') => {
            Err("its target is no path")
        }
        target => Ok(target.split('/')),
    }
}
