//! The merged file system of an image, in memory: names, modes and links, with contents left where they lie in the layers.
//!
//! Must hold: a name only ever resolves inside the tree; whiteouts hide what lower layers put there and nothing of their own
//! layer; memory and work are bounded by abi's limits. Must never: hold contents, or touch the host's file system.
//!
//! Source: OCI image-spec, layer.md ("Applying Changesets", "Whiteouts").

use abi::limits;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::path::RootfsPath;
use super::tar::{Entry, Kind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// Symbolic links followed for one path, as Linux has it (ELOOP).
const LINKS_FOLLOWED_MAX: usize = 40;

/// Index of a node; made by [`Tree`] only, and only for nodes it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(u32);

impl NodeId {
    pub const ROOT: NodeId = NodeId(0);

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a file's content lies: in the unpacked stream of this layer (from 0), at this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Content {
    pub layer: u16,
    pub at: u64,
    pub size: u64,
}

/// A directory's entries.
pub type Children = BTreeMap<Box<[u8]>, Dentry>;

/// What a node is. Directories and targets are shared with snapshots of the tree until they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    Directory(Arc<Children>),
    File(Content),
    Symlink(Arc<[u8]>),
    Fifo,
    /// Hides what the disks below have at this name; only in what [`super::upper`] makes.
    Whiteout,
}

/// A name's target, and the layer that last wrote the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    pub node: NodeId,
    layer: u16,
}

/// A node with its owner, permissions and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub node: Node,
    pub owner: Owner,
    /// Names that lead here; directories have one.
    pub names: u32,
}

/// Owner, permissions and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
}

/// A directory nobody described.
pub(super) const IMPLIED: Owner = Owner { mode: 0o755, uid: 0, gid: 0, mtime: 0 };

/// What became of an entry that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Kept,
    /// A device node below /dev, or aufs's own book-keeping: the guest has its own.
    Ignored,
}

/// Why an entry is refused: the rule, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub rule: &'static str,
    pub remedy: &'static str,
}

const REPACK: &str = "build the layer without it";
const SMALLER: &str = "make the image smaller";

fn refuse<T>(rule: &'static str, remedy: &'static str) -> Result<T, Refusal> {
    Err(Refusal { rule, remedy })
}

/// The merge of the layers applied so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tree {
    /// Freed slots are none and listed in `free`, those of a snapshot excepted.
    nodes: Vec<Option<Inode>>,
    free: Vec<NodeId>,
    /// Nodes below this are known to a snapshot: their numbers never mean another one.
    fixed: u32,
    layer: u16,
    /// Of the present layer: done once is done, since nothing can put a lower layer's entries back.
    #[serde(skip)]
    opaque_done: BTreeSet<NodeId>,
    #[serde(skip)]
    whiteout_done: BTreeSet<(NodeId, Box<[u8]>)>,
    entries: u64,
    text_bytes: u64,
    lookups: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Tree {
            nodes: vec![Some(Inode { node: Node::Directory(Arc::default()), owner: IMPLIED, names: 1 })],
            free: Vec::new(),
            fixed: 0,
            layer: 0,
            opaque_done: BTreeSet::new(),
            whiteout_done: BTreeSet::new(),
            entries: 0,
            text_bytes: 0,
            lookups: 0,
        }
    }
}

impl Tree {
    /// What follows belongs to this layer; layers come in rising order.
    pub fn begin_layer(&mut self, layer: u16) {
        self.layer = layer;
        self.opaque_done.clear();
        self.whiteout_done.clear();
    }

    /// Applies one entry of the present layer.
    pub fn apply(&mut self, entry: &Entry) -> Result<Applied, Refusal> {
        self.count_entry()?;
        let path = RootfsPath::parse(&entry.path).map_err(|rule| Refusal { rule, remedy: REPACK })?;
        let owner = Owner { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        let Some((parents, name)) = path.split() else {
            return match entry.kind {
                Kind::Directory => {
                    self.set_owner(NodeId::ROOT, owner);
                    Ok(Applied::Kept)
                }
                _ => refuse("the root can only be a directory", REPACK),
            };
        };
        if let Some(mark) = parents.iter().find(|part| part.starts_with(WHITEOUT)) {
            return match mark.starts_with(AUFS) {
                true => Ok(Applied::Ignored),
                false => refuse("a directory has a whiteout's name", REPACK),
            };
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(parents, name);
        }
        let node = match entry.kind {
            Kind::CharDevice | Kind::BlockDevice => {
                return match path.is_below(b"dev") {
                    true => Ok(Applied::Ignored),
                    false => refuse("a device node outside /dev", REPACK),
                };
            }
            Kind::HardLink => return self.hard_link(parents, name, &entry.link),
            Kind::Directory => return self.directory(parents, name, owner),
            Kind::File => Node::File(Content { layer: self.layer, at: entry.data_at, size: entry.size }),
            Kind::Symlink => Node::Symlink(self.symlink_target(&entry.link)?),
            Kind::Fifo => Node::Fifo,
        };
        let parent = self.parent(parents)?;
        let id = self.insert(node, owner)?;
        self.link(parent, name, id)?;
        Ok(Applied::Kept)
    }

    /// The tree as it is now. From here on a node's number means the same node in both, or nothing.
    pub fn snapshot(&mut self) -> Tree {
        self.begin_layer(self.layer);
        self.free = Vec::new();
        self.fixed = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.clone()
    }

    pub fn inode(&self, id: NodeId) -> Option<&Inode> {
        self.nodes.get(id.index())?.as_ref()
    }

    /// One more than the largest index of a node.
    pub fn index_end(&self) -> usize {
        self.nodes.len()
    }

    /// A directory's entries; none if it is not one.
    pub fn children(&self, id: NodeId) -> Option<&Children> {
        match &self.inode(id)?.node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// All nodes, in no meaningful order.
    pub fn inodes(&self) -> impl Iterator<Item = (NodeId, &Inode)> {
        (0u32..).zip(&self.nodes).filter_map(|(id, slot)| Some((NodeId(id), slot.as_ref()?)))
    }

    /// Bytes of all files.
    pub fn content_bytes(&self) -> u64 {
        self.inodes()
            .map(|(_, inode)| match inode.node {
                Node::File(content) => content.size,
                _ => 0,
            })
            .fold(0, u64::saturating_add)
    }

    fn directory(&mut self, parents: &[&[u8]], name: &[u8], owner: Owner) -> Result<Applied, Refusal> {
        let parent = self.parent(parents)?;
        let layer = self.layer;
        if let Some(dentry) = self.child(parent, name)?
            && self.is_directory(dentry.node)
        {
            self.set_owner(dentry.node, owner);
            if let Some(dentry) = self.children_mut(parent).and_then(|c| c.get_mut(name)) {
                dentry.layer = layer;
            }
            return Ok(Applied::Kept);
        }
        let id = self.insert(Node::Directory(Arc::default()), owner)?;
        self.link(parent, name, id)?;
        Ok(Applied::Kept)
    }

    fn hard_link(&mut self, parents: &[&[u8]], name: &[u8], target: &[u8]) -> Result<Applied, Refusal> {
        let target = RootfsPath::parse(target).map_err(|rule| Refusal { rule, remedy: REPACK })?;
        let gone = || refuse("a hard link to something that is not there", REPACK);
        let Some((target_parents, target_name)) = target.split() else {
            return refuse("a hard link to a directory", REPACK);
        };
        let Some(directory) = self.resolve(target_parents, false)? else {
            return gone();
        };
        let Some(dentry) = self.child(directory, target_name)? else {
            return gone();
        };
        if self.is_directory(dentry.node) {
            return refuse("a hard link to a directory", REPACK);
        }
        let parent = self.parent(parents)?;
        // Counted first: the name may be the target's own.
        if let Some(inode) = self.inode_mut(dentry.node) {
            inode.names += 1;
        }
        self.link(parent, name, dentry.node)?;
        Ok(Applied::Kept)
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<Applied, Refusal> {
        if name != OPAQUE && name.starts_with(AUFS) {
            return Ok(Applied::Ignored);
        }
        let hidden = name.get(WHITEOUT.len()..).unwrap_or_default();
        if matches!(hidden, b"" | b"." | b"..") {
            return refuse("a whiteout of no name", REPACK);
        }
        let Some(parent) = self.resolve(parents, false)? else {
            return Ok(Applied::Kept);
        };
        if name == OPAQUE {
            if self.opaque_done.insert(parent) {
                self.hide(self.names_in(parent))?;
            }
        } else if self.whiteout_done.insert((parent, hidden.into())) {
            self.count_text(hidden)?;
            self.hide(vec![(parent, hidden.into())])?;
        }
        Ok(Applied::Kept)
    }

    /// Removes what lower layers put at these names, and below them. Without recursion: stacks are small, trees may be deep.
    fn hide(&mut self, mut names: Vec<(NodeId, Box<[u8]>)>) -> Result<(), Refusal> {
        let mut next = 0;
        while let Some((parent, name)) = names.get(next) {
            if let Some(dentry) = self.child(*parent, name)? {
                names.extend(self.names_in(dentry.node));
            }
            next += 1;
        }
        // Whatever is below a name comes after it.
        for (parent, name) in names.into_iter().rev() {
            let Some(dentry) = self.child(parent, &name)? else { continue };
            if dentry.layer == self.layer {
                continue;
            }
            match self.inode(dentry.node).map(|inode| &inode.node) {
                // The present layer put something into it without describing the directory: it is a new one.
                Some(Node::Directory(left)) if !left.is_empty() => self.set_owner(dentry.node, IMPLIED),
                _ => self.unlink(parent, &name),
            }
        }
        Ok(())
    }

    fn names_in(&self, directory: NodeId) -> Vec<(NodeId, Box<[u8]>)> {
        let names = self.children(directory).into_iter().flat_map(|children| children.keys());
        names.map(|name| (directory, name.clone())).collect()
    }

    /// The directory these names lead to, made where it is missing.
    fn parent(&mut self, names: &[&[u8]]) -> Result<NodeId, Refusal> {
        match self.resolve(names, true)? {
            Some(id) => Ok(id),
            None => refuse("its directory could not be made", REPACK),
        }
    }

    /// Follows names from the root; symbolic links are followed inside the tree, where `..` of the root is the root. None: it
    /// is not there, and `make` is false.
    fn resolve(&mut self, names: &[&[u8]], make: bool) -> Result<Option<NodeId>, Refusal> {
        let mut stack = vec![NodeId::ROOT];
        let mut links = 0;
        // Innermost last.
        let mut todo: Vec<Box<[u8]>> = names.iter().rev().map(|name| (*name).into()).collect();
        while let Some(name) = todo.pop() {
            let here = stack.last().copied().unwrap_or(NodeId::ROOT);
            if &*name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let next = match self.child(here, &name)? {
                Some(dentry) => dentry.node,
                None if !make => return Ok(None),
                None => {
                    self.count_entry()?;
                    let id = self.insert(Node::Directory(Arc::default()), IMPLIED)?;
                    self.link(here, &name, id)?;
                    id
                }
            };
            match self.inode(next).map(|inode| &inode.node) {
                Some(Node::Directory(_)) => stack.push(next),
                Some(Node::Symlink(target)) => {
                    links += 1;
                    if links > LINKS_FOLLOWED_MAX {
                        return refuse("symbolic links lead in a circle", REPACK);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let parts = target.split(|b| *b == b'/').rev();
                    todo.extend(parts.filter(|p| !matches!(*p, b"" | b".")).map(Box::from));
                }
                _ if !make => return Ok(None),
                _ => return refuse("a part of the path is not a directory", REPACK),
            }
            if stack.len() > limits::ROOTFS_DEPTH_MAX {
                return refuse("the path is nested deeper than the limit", REPACK);
            }
        }
        Ok(stack.last().copied())
    }

    /// Puts a counted node at a name, in place of what is there.
    fn link(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), Refusal> {
        self.count_text(name)?;
        self.unlink(parent, name);
        self.put(parent, name, id);
        Ok(())
    }

    /// Puts a node at a free name.
    pub(super) fn put(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        let layer = self.layer;
        if let Some(children) = self.children_mut(parent) {
            children.insert(name.into(), Dentry { node: id, layer });
        }
    }

    /// Removes a name and all below it.
    pub(super) fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        let removed = self.children_mut(parent).and_then(|children| children.remove(name));
        let mut todo: Vec<NodeId> = removed.into_iter().map(|dentry| dentry.node).collect();
        while let Some(id) = todo.pop() {
            let Some(slot) = self.nodes.get_mut(id.index()) else {
                continue;
            };
            let Some(inode) = slot else { continue };
            inode.names = inode.names.saturating_sub(1);
            if inode.names > 0 {
                continue;
            }
            if let Node::Directory(children) = &inode.node {
                todo.extend(children.values().map(|dentry| dentry.node));
            }
            *slot = None;
            if id.0 >= self.fixed {
                self.free.push(id);
            }
        }
    }

    pub(super) fn insert(&mut self, node: Node, owner: Owner) -> Result<NodeId, Refusal> {
        let inode = Inode { node, owner, names: 1 };
        if let Some(id) = self.free.pop()
            && let Some(slot) = self.nodes.get_mut(id.index())
        {
            *slot = Some(inode);
            return Ok(id);
        }
        let Ok(id) = u32::try_from(self.nodes.len()) else {
            return refuse("more entries than a rootfs may have", SMALLER);
        };
        self.nodes.push(Some(inode));
        Ok(NodeId(id))
    }

    fn symlink_target(&mut self, target: &[u8]) -> Result<Arc<[u8]>, Refusal> {
        if target.is_empty() || target.contains(&0) {
            return refuse("a symbolic link without a target", REPACK);
        }
        if target.len() > limits::ROOTFS_PATH_BYTES_MAX {
            return refuse("a symbolic link longer than a path can be", REPACK);
        }
        self.count_text(target)?;
        Ok(target.into())
    }

    fn child(&mut self, directory: NodeId, name: &[u8]) -> Result<Option<Dentry>, Refusal> {
        self.lookups += 1;
        if self.lookups > limits::ROOTFS_LOOKUPS_MAX {
            return refuse("merging takes more directory look-ups than the limit", SMALLER);
        }
        Ok(self.children(directory).and_then(|children| children.get(name).copied()))
    }

    fn count_entry(&mut self) -> Result<(), Refusal> {
        self.entries += 1;
        if self.entries > limits::ROOTFS_ENTRIES_MAX {
            return refuse("more entries than a rootfs may have", SMALLER);
        }
        Ok(())
    }

    fn count_text(&mut self, text: &[u8]) -> Result<(), Refusal> {
        self.text_bytes += text.len() as u64;
        if self.text_bytes > limits::ROOTFS_TEXT_BYTES_MAX {
            return refuse("names and links larger than a rootfs may have", SMALLER);
        }
        Ok(())
    }

    pub(super) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.inode(id).map(|inode| &inode.node), Some(Node::Directory(_)))
    }

    pub(super) fn inode_mut(&mut self, id: NodeId) -> Option<&mut Inode> {
        self.nodes.get_mut(id.index())?.as_mut()
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut Children> {
        match &mut self.inode_mut(id)?.node {
            Node::Directory(children) => Some(Arc::make_mut(children)),
            _ => None,
        }
    }

    pub(super) fn set_owner(&mut self, id: NodeId, owner: Owner) {
        if let Some(inode) = self.inode_mut(id) {
            inode.owner = owner;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, path: &str, link: &str, mode: u16, id: u64) -> Entry {
        Entry {
            kind,
            path: path.into(),
            link: link.into(),
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 1,
            data_at: id,
            at: 0,
        }
    }

    /// Path to what is there: a directory's mode, or the place of a file's content.
    type Seen = BTreeMap<String, Result<u16, u64>>;

    fn dump(tree: &Tree, id: NodeId, path: &str, seen: &mut Seen) {
        let inode = tree.inode(id).unwrap();
        match &inode.node {
            Node::Directory(children) => {
                seen.insert(path.to_owned(), Ok(inode.owner.mode));
                for (name, dentry) in children.iter() {
                    let name = std::str::from_utf8(name).unwrap();
                    dump(tree, dentry.node, &format!("{path}/{name}"), seen);
                }
            }
            Node::File(content) => {
                seen.insert(path.to_owned(), Err(content.at));
            }
            other => panic!("{other:?}"),
        }
    }

    /// The specification in its own words: whiteouts hide what is below, first; then the layer's entries, in order.
    fn model(seen: &mut Seen, layer: &[Entry]) -> Result<(), ()> {
        let remove_below = |seen: &mut Seen, path: &str| {
            let below = format!("{path}/");
            seen.retain(|known, _| !known.starts_with(&below));
        };
        let text = |entry: &Entry| format!("/{}", String::from_utf8(entry.path.clone()).unwrap());
        for entry in layer {
            let path = text(entry);
            let (parent, name) = path.rsplit_once('/').unwrap();
            if name == ".wh..wh..opq" {
                remove_below(seen, parent);
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                let hidden = format!("{parent}/{hidden}");
                remove_below(seen, &hidden);
                seen.remove(&hidden);
            }
        }
        for entry in layer {
            let path = text(entry);
            if path.contains(".wh.") {
                continue;
            }
            for (at, _) in path.match_indices('/').skip(1) {
                if seen.entry(path[..at].to_owned()).or_insert(Ok(0o755)).is_err() {
                    return Err(());
                }
            }
            if entry.kind == Kind::Directory && matches!(seen.get(&path), Some(Ok(_))) {
                seen.insert(path, Ok(entry.mode));
                continue;
            }
            remove_below(seen, &path);
            let what = match entry.kind {
                Kind::Directory => Ok(entry.mode),
                _ => Err(entry.data_at),
            };
            seen.insert(path, what);
        }
        Ok(())
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }

        fn path(&mut self) -> String {
            let depth = 1 + self.below(3);
            let names: Vec<&str> = (0..depth).map(|_| ["a", "b", "c"][self.below(3) as usize]).collect();
            names.join("/")
        }

        fn entry(&mut self, id: u64) -> Entry {
            let path = self.path();
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let name = path.rsplit('/').next().unwrap();
            let beside = |name: &str| format!("{parent}/{name}").trim_start_matches('/').to_owned();
            match self.below(6) {
                0 => entry(Kind::File, &beside(&format!(".wh.{name}")), "", 0, id),
                1 => entry(Kind::File, &beside(".wh..wh..opq"), "", 0, id),
                2 | 3 => entry(Kind::Directory, &path, "", 0o700 + (id % 8) as u16, id),
                _ => entry(Kind::File, &path, "", 0o644, id),
            }
        }
    }

    #[test]
    fn any_layers_merge_as_the_specification_says() {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = std::env::var("NULLBOX_TEST_SEED")
            .ok()
            .map_or(time.as_nanos() as u64 | 1, |text| text.parse().unwrap());
        eprintln!("NULLBOX_TEST_SEED={seed}");
        let mut random = Random(seed);
        let mut compared = 0;
        for round in 0..20_000 {
            let mut tree = Tree::default();
            let mut want = Seen::from([(String::new(), Ok(0o755))]);
            for layer in 0..1 + random.below(4) as u16 {
                let entries: Vec<Entry> =
                    (0..random.below(7)).map(|id| random.entry(u64::from(layer) * 100 + id)).collect();
                tree.begin_layer(layer);
                let applied = entries.iter().try_for_each(|entry| tree.apply(entry).map(|_| ()));
                let modelled = model(&mut want, &entries);
                // An entry below what is still a file is refused; the model only sees that after the whiteouts.
                let (Ok(()), Ok(())) = (applied, modelled) else {
                    assert!(applied.is_err(), "seed {seed}, round {round}: the model refuses more");
                    break;
                };
                let mut got = Seen::new();
                dump(&tree, NodeId::ROOT, "", &mut got);
                assert_eq!(got, want, "seed {seed}, round {round}, layer {layer}: {entries:#?}");
                compared += 1;
            }
        }
        assert!(compared > 20_000, "only {compared} layers were compared");
    }

    #[test]
    fn freed_nodes_are_used_again_and_links_keep_theirs() {
        let mut tree = Tree::default();
        tree.apply(&entry(Kind::File, "one", "", 0o644, 1)).unwrap();
        tree.apply(&entry(Kind::HardLink, "two", "one", 0, 0)).unwrap();
        // A link to itself changes nothing.
        tree.apply(&entry(Kind::HardLink, "two", "two", 0, 0)).unwrap();
        tree.begin_layer(1);
        for id in 0..1000 {
            tree.apply(&entry(Kind::File, "one", "", 0o644, id)).unwrap();
        }
        assert_eq!(tree.index_end(), 4);
        let mut seen = Seen::new();
        dump(&tree, NodeId::ROOT, "", &mut seen);
        assert_eq!((seen["/one"], seen["/two"]), (Err(999), Err(1)));
        assert!(tree.inodes().all(|(_, inode)| inode.names == 1));
    }

    #[test]
    fn each_bound_is_a_refusal() {
        let file = entry(Kind::File, "x", "", 0o644, 1);
        type Fill = fn(&mut Tree);
        let limits: [(Fill, &str); 3] = [
            (|tree| tree.entries = limits::ROOTFS_ENTRIES_MAX, "more entries"),
            (|tree| tree.text_bytes = limits::ROOTFS_TEXT_BYTES_MAX, "names and links larger"),
            (|tree| tree.lookups = limits::ROOTFS_LOOKUPS_MAX, "look-ups"),
        ];
        for (fill, rule) in limits {
            let mut tree = Tree::default();
            fill(&mut tree);
            let refused = match tree.apply(&file) {
                Err(refusal) => refusal,
                // Creating looks nothing up; a directory does.
                Ok(_) => tree.apply(&entry(Kind::Directory, "x", "", 0, 1)).unwrap_err(),
            };
            assert!(refused.rule.contains(rule), "{refused:?}");
        }
    }

    /// What a hostile layer repeats costs no more than the first time.
    #[test]
    fn repeated_whiteouts_of_a_large_directory_are_done_once() {
        let mut tree = Tree::default();
        for id in 0..10_000 {
            tree.apply(&entry(Kind::File, &format!("d/{id}"), "", 0o644, id)).unwrap();
        }
        let before = tree.lookups;
        for _ in 0..10_000 {
            tree.apply(&entry(Kind::File, "d/.wh..wh..opq", "", 0, 0)).unwrap();
            tree.apply(&entry(Kind::File, ".wh.d", "", 0, 0)).unwrap();
        }
        assert!(tree.lookups - before < 100_000, "{}", tree.lookups - before);
    }
}
