//! What a disk must hold so that overlayfs, laying it over the disks below, shows a given tree.
//!
//! Must hold: laid over `below`, the result is `merged` to the last name, owner, time and hard link, whatever the layer looked like:
//! it is the difference of two finished trees, not a translation of a layer's entries. Must never: rely on an opaque mark, so no
//! disk needs extended attributes.
//!
//! Source: Linux, Documentation/filesystems/overlayfs.rst ("whiteouts and opaque directories", "Multiple lower layers"). An entry of
//! the topmost disk counts; directories of all disks merge, down to a whiteout or to what is no directory, and the topmost one's
//! owner, mode and time show; a whiteout is a character device 0:0.

use std::collections::BTreeMap;

use super::tree::{Children, IMPLIED, Node, NodeId, Refusal, Tree};

/// The difference; none if there is none. `merged` must have grown from the tree whose [`Tree::snapshot`] is `below`.
pub fn upper(below: &Tree, merged: &Tree) -> Result<Option<Tree>, Refusal> {
    let mut build = Build {
        below,
        merged,
        staying: staying(below, merged),
        upper: Tree::default(),
        made: BTreeMap::new(),
        whiteout: None,
    };
    let same_root = build.directories()?;
    let upper = build.upper;
    let empty = upper.children(NodeId::ROOT).is_none_or(Children::is_empty);
    Ok((!empty || !same_root).then_some(upper))
}

/// How many names of each node with several of them stay where they are.
fn staying(below: &Tree, merged: &Tree) -> BTreeMap<NodeId, u32> {
    let mut staying = BTreeMap::new();
    for (directory, _) in merged.inodes() {
        let (Some(then), Some(now)) = (below.children(directory), merged.children(directory)) else {
            continue;
        };
        for (name, dentry) in now {
            let linked = merged.inode(dentry.node).is_some_and(|inode| inode.names > 1);
            if linked && then.get(name).is_some_and(|was| was.node == dentry.node) {
                *staying.entry(dentry.node).or_insert(0) += 1;
            }
        }
    }
    staying
}

struct Build<'a> {
    below: &'a Tree,
    merged: &'a Tree,
    staying: BTreeMap<NodeId, u32>,
    upper: Tree,
    /// Nodes of `merged` that stand in `upper`.
    made: BTreeMap<NodeId, NodeId>,
    /// One node serves for all.
    whiteout: Option<NodeId>,
}

impl Build<'_> {
    /// Goes through all directories, without recursion: stacks are small, trees may be deep. True: the root itself is unchanged.
    fn directories(&mut self) -> Result<bool, Refusal> {
        let (below, merged) = (self.below, self.merged);
        let nothing = Children::new();
        let owner = |tree: &Tree, id| tree.inode(id).map(|inode| inode.owner);
        if let Some(owner) = owner(merged, NodeId::ROOT) {
            self.upper.set_owner(NodeId::ROOT, owner);
        }
        // Needed only if something comes into them; a directory stands before those in it.
        let mut unchanged = Vec::new();
        let mut todo = vec![(Some(NodeId::ROOT), NodeId::ROOT, NodeId::ROOT)];
        while let Some((then, now, here)) = todo.pop() {
            let old = then.and_then(|id| below.children(id)).unwrap_or(&nothing);
            let new = merged.children(now).unwrap_or(&nothing);
            for (name, dentry) in new {
                let was = old.get(name).map(|was| was.node);
                if !merged.is_directory(dentry.node) {
                    if was != Some(dentry.node) || !self.stays(dentry.node) {
                        self.leaf(here, name, dentry.node)?;
                    }
                    continue;
                }
                let Some(owner) = owner(merged, dentry.node) else { continue };
                let was = was.filter(|was| below.is_directory(*was));
                let id = self.upper.insert(Node::Directory(Default::default()), owner)?;
                self.upper.put(here, name, id);
                if was.and_then(|was| below.inode(was)).is_some_and(|was| was.owner == owner) {
                    unchanged.push((here, name, id));
                }
                todo.push((was, dentry.node, id));
            }
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                self.hide(here, name)?;
            }
        }
        for (parent, name, id) in unchanged.into_iter().rev() {
            if self.upper.children(id).is_some_and(Children::is_empty) {
                self.upper.unlink(parent, name);
            }
        }
        Ok(owner(below, NodeId::ROOT) == owner(merged, NodeId::ROOT))
    }

    /// Whether a node is the same below, its content, its owner and all its names.
    fn stays(&self, id: NodeId) -> bool {
        let now = self.merged.inode(id);
        let names = now.map_or(0, |inode| inode.names);
        now == self.below.inode(id) && (names == 1 || self.staying.get(&id) == Some(&names))
    }

    fn leaf(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), Refusal> {
        let Some(inode) = self.merged.inode(id) else { return Ok(()) };
        let made = match self.made.get(&id) {
            Some(made) => {
                if let Some(inode) = self.upper.inode_mut(*made) {
                    inode.names += 1;
                }
                *made
            }
            None => {
                let made = self.upper.insert(inode.node.clone(), inode.owner)?;
                self.made.insert(id, made);
                made
            }
        };
        self.upper.put(parent, name, made);
        Ok(())
    }

    fn hide(&mut self, parent: NodeId, name: &[u8]) -> Result<(), Refusal> {
        let id = match self.whiteout {
            Some(id) => {
                if let Some(inode) = self.upper.inode_mut(id) {
                    inode.names += 1;
                }
                id
            }
            None => self.upper.insert(Node::Whiteout, super::tree::Owner { mode: 0, ..IMPLIED })?,
        };
        self.whiteout = Some(id);
        self.upper.put(parent, name, id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::archives::{Random, seed};
    use super::super::tar::{Entry, Kind};
    use super::super::tree::{Content, Owner};
    use super::*;
    use std::collections::BTreeSet;

    /// What is seen at a path: what it is, whose, and the other paths of the same node.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Sight {
        kind: String,
        owner: Owner,
        names: u32,
        same: BTreeSet<String>,
    }

    type View = BTreeMap<String, (usize, NodeId, Owner, u32, Node)>;

    /// Overlayfs in its own words: the disks from the bottom, the upper one's entries over the lower one's.
    fn overlay(disks: &[&Tree]) -> BTreeMap<String, Sight> {
        let mut view = View::new();
        for (disk, tree) in disks.iter().enumerate() {
            let mut todo = vec![(String::new(), NodeId::ROOT)];
            while let Some((path, id)) = todo.pop() {
                let inode = tree.inode(id).unwrap();
                let below = format!("{path}/");
                let keeps_what_is_below = match (&inode.node, view.get(&path)) {
                    (Node::Directory(_), Some((_, _, _, _, Node::Directory(_)))) => true,
                    (Node::Whiteout, was) => {
                        assert!(was.is_some(), "a whiteout of nothing at {path}");
                        false
                    }
                    _ => false,
                };
                if !keeps_what_is_below {
                    view.retain(|known, _| !known.starts_with(&below));
                    view.remove(&path);
                }
                if let Node::Directory(children) = &inode.node {
                    for (name, dentry) in children.iter() {
                        todo.push((format!("{below}{}", String::from_utf8_lossy(name)), dentry.node));
                    }
                }
                if inode.node != Node::Whiteout {
                    view.insert(path, (disk, id, inode.owner, inode.names, inode.node.clone()));
                }
            }
        }
        let same = |disk, id| {
            let it = view.iter().filter(move |(_, seen)| (seen.0, seen.1) == (disk, id));
            it.map(|(path, _)| path.clone()).collect()
        };
        let sight = |(disk, id, owner, names, node): &(usize, NodeId, Owner, u32, Node)| match node {
            Node::Directory(_) => {
                Sight { kind: "directory".into(), owner: *owner, names: 1, same: BTreeSet::new() }
            }
            other => {
                Sight { kind: format!("{other:?}"), owner: *owner, names: *names, same: same(*disk, *id) }
            }
        };
        view.iter().map(|(path, seen)| (path.clone(), sight(seen))).collect()
    }

    fn path(random: &mut Random) -> String {
        let names: Vec<&str> =
            (0..1 + random.below(3)).map(|_| ["a", "b", "c", "d"][random.below(4)]).collect();
        names.join("/")
    }

    fn entry(random: &mut Random, place: u64) -> Entry {
        let path_now = path(random);
        let (parent, name) = path_now.rsplit_once('/').unwrap_or(("", &path_now));
        let beside = |name: &str| format!("{parent}/{name}").trim_start_matches('/').to_owned();
        let (kind, path_now, link) = match random.below(12) {
            0 | 1 => (Kind::File, beside(&format!(".wh.{name}")), String::new()),
            2 => (Kind::File, beside(".wh..wh..opq"), String::new()),
            3 | 4 => (Kind::Directory, path_now, String::new()),
            5 => (Kind::Symlink, path_now, ["a", "../b", "/c/d", "nowhere"][random.below(4)].to_owned()),
            6 | 7 => (Kind::HardLink, path_now, path(random)),
            8 => (Kind::Fifo, path_now, String::new()),
            _ => (Kind::File, path_now, String::new()),
        };
        Entry {
            kind,
            path: path_now.into(),
            link: link.into(),
            mode: 0o700 + random.below(2) as u16,
            uid: random.below(2) as u32,
            gid: 0,
            mtime: 0,
            size: 1,
            data_at: place,
            at: 0,
        }
    }

    /// Whatever the layers are, what is seen through the disks is the merge.
    #[test]
    fn disks_laid_over_one_another_show_the_merge_of_any_layers() {
        let seed = seed();
        let mut random = Random(seed);
        let (mut compared, mut whiteouts, mut linked) = (0, 0, 0);
        for round in 0..4_000 {
            let mut tree = Tree::default();
            let mut below = tree.snapshot();
            let mut disks: Vec<Tree> = Vec::new();
            let mut entries = Vec::new();
            for layer in 0..2 + random.below(4) as u16 {
                tree.begin_layer(layer);
                for place in 0..random.below(9) as u64 {
                    let entry = entry(&mut random, u64::from(layer) * 100 + place);
                    // What the merge refuses ends an import; here it is only left out.
                    if tree.apply(&entry).is_ok() {
                        entries.push((layer, entry));
                    }
                }
                let now = tree.snapshot();
                match disks.is_empty() {
                    true => disks.push(now.clone()),
                    false => disks.extend(upper(&below, &now).unwrap()),
                }
                below = now;
                let seen = overlay(&disks.iter().collect::<Vec<_>>());
                let want = overlay(&[&tree]);
                assert_eq!(seen, want, "seed {seed}, round {round}, layer {layer}: {entries:#?}");
                compared += 1;
            }
            let nodes = || disks.iter().flat_map(Tree::inodes);
            whiteouts += nodes().filter(|(_, inode)| inode.node == Node::Whiteout).count();
            linked +=
                nodes().filter(|(_, inode)| inode.names > 1 && matches!(inode.node, Node::File(_))).count();
        }
        assert!(compared > 8_000 && whiteouts > 500 && linked > 50, "{compared} {whiteouts} {linked}");
    }

    #[test]
    fn a_layer_that_changes_nothing_is_no_disk() {
        let file = |path: &str| Entry { path: path.into(), ..entry_of_file() };
        let mut tree = Tree::default();
        tree.apply(&file("usr/bin/x")).unwrap();
        let below = tree.snapshot();
        tree.begin_layer(1);
        tree.apply(&file("tmp/gone")).unwrap();
        tree.begin_layer(2);
        tree.apply(&file(".wh.tmp")).unwrap();
        assert!(upper(&below, &tree).unwrap().is_none());
        // Only what changed is in a disk, with the directories that lead there.
        tree.apply(&file("usr/lib/y")).unwrap();
        let disk = upper(&below, &tree).unwrap().unwrap();
        let seen = overlay(&[&disk]);
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["", "/usr", "/usr/lib", "/usr/lib/y"]);
    }

    fn entry_of_file() -> Entry {
        Entry {
            kind: Kind::File,
            path: Vec::new(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 1,
            data_at: 1,
            at: 0,
        }
    }

    /// A link made above to a file below is one file with two names: so the disk above holds both.
    #[test]
    fn a_hard_link_to_a_file_below_takes_the_file_along() {
        let mut tree = Tree::default();
        tree.apply(&Entry { path: b"one".to_vec(), ..entry_of_file() }).unwrap();
        let below = tree.snapshot();
        tree.begin_layer(1);
        let link =
            Entry { kind: Kind::HardLink, path: b"two".to_vec(), link: b"one".to_vec(), ..entry_of_file() };
        tree.apply(&link).unwrap();
        let disk = upper(&below, &tree).unwrap().unwrap();
        let seen = overlay(&[&disk]);
        assert_eq!((seen["/one"].names, seen["/one"].same.len()), (2, 2));
        let content = disk.inodes().find_map(|(_, inode)| match inode.node {
            Node::File(content) => Some(content),
            _ => None,
        });
        assert_eq!(content, Some(Content { layer: 0, at: 1, size: 1 }));
    }
}
