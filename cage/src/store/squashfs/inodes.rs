//! The inode and directory tables.
//!
//! Must hold: inode numbers and table order follow from names alone. A directory's inode comes after those of all it holds, since
//! its listing tells where they are.

use std::collections::BTreeMap;

use super::super::tree::{Children, Inode, Node, NodeId, Owner, Tree};
use super::metadata::{Packer, Table};
use super::{Stored, WriteError, count};

pub const TOO_MANY_IDS: &str = "more than 65535 different uids and gids, which SquashFS cannot hold";

const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const SYMLINK: u16 = 3;
const CHARACTER_DEVICE: u16 = 5;
const FIFO: u16 = 6;
/// Device number of overlayfs's whiteouts (Linux, Documentation/filesystems/overlayfs.rst).
const WHITEOUT_DEVICE: u32 = 0;
/// A basic type plus this is its extended form.
const EXTENDED: u16 = 7;
const NONE: u32 = u32::MAX;
/// Entries under one header of a listing.
const RUN_MAX: usize = 256;

/// Everything that follows the contents.
pub struct Tables {
    pub inodes: Table,
    pub directories: Table,
    pub ids: Vec<u32>,
    pub inode_count: u32,
    /// Reference to the root's inode.
    pub root: u64,
}

/// Builds the tables.
pub fn encode(
    tree: &Tree,
    stored: &BTreeMap<NodeId, Stored>,
    packer: &mut Packer,
) -> Result<Tables, WriteError> {
    let (numbers, inode_count) = number(tree)?;
    let mut encoder = Encoder {
        tree,
        stored,
        packer,
        numbers,
        places: vec![None; tree.index_end()],
        inodes: Table::default(),
        directories: Table::default(),
        ids: Vec::new(),
        id_of: BTreeMap::new(),
    };
    // The root's parent is, by mksquashfs's custom, the number after the last.
    let root = encoder.directories(inode_count + 1)?;
    encoder.inodes.flush(encoder.packer)?;
    encoder.directories.flush(encoder.packer)?;
    Ok(Tables {
        root: u64::from(root.0) << 16 | u64::from(root.1),
        inodes: encoder.inodes,
        directories: encoder.directories,
        ids: encoder.ids,
        inode_count,
    })
}

/// Numbers the inodes from 1, a directory's children in a row (a listing stores differences of 15 bits).
fn number(tree: &Tree) -> Result<(Vec<u32>, u32), WriteError> {
    let mut numbers = vec![0u32; tree.index_end()];
    let mut last = 1;
    let mut queue = std::collections::VecDeque::from([NodeId::ROOT]);
    if let Some(root) = numbers.first_mut() {
        *root = last;
    }
    while let Some(id) = queue.pop_front() {
        let Some(Inode { node: Node::Directory(children), .. }) = tree.inode(id) else {
            continue;
        };
        for dentry in children.values() {
            let Some(number) = numbers.get_mut(dentry.node.index()) else {
                continue;
            };
            if *number == 0 {
                last = count(last as usize + 1)?;
                *number = last;
                queue.push_back(dentry.node);
            }
        }
    }
    Ok((numbers, last))
}

/// Where an inode begins: start of its metadata block, offset in it.
type Place = (u32, u16);

struct Encoder<'a> {
    tree: &'a Tree,
    stored: &'a BTreeMap<NodeId, Stored>,
    packer: &'a mut Packer,
    numbers: Vec<u32>,
    places: Vec<Option<Place>>,
    inodes: Table,
    directories: Table,
    ids: Vec<u32>,
    id_of: BTreeMap<u32, u16>,
}

impl Encoder<'_> {
    /// Writes all directories, each after those in it, and returns the root's place. Without recursion: stacks are small, trees
    /// may be deep.
    fn directories(&mut self, root_parent_number: u32) -> Result<Place, WriteError> {
        let tree = self.tree;
        let mut todo = vec![(NodeId::ROOT, root_parent_number, false)];
        let mut last = (0, 0);
        while let Some((id, parent_number, entered)) = todo.pop() {
            let Some(Inode { node: Node::Directory(children), owner, .. }) = tree.inode(id) else {
                continue;
            };
            if entered {
                last = self.directory(id, children, *owner, parent_number)?;
                self.set_place(id, last);
                continue;
            }
            todo.push((id, parent_number, true));
            let number = self.number_of(id);
            todo.extend(children.values().rev().map(|dentry| (dentry.node, number, false)));
        }
        Ok(last)
    }

    /// Writes a directory's children that are none themselves, its listing and its inode.
    fn directory(
        &mut self,
        id: NodeId,
        children: &Children,
        owner: Owner,
        parent_number: u32,
    ) -> Result<Place, WriteError> {
        let tree = self.tree;
        let own_number = self.number_of(id);
        let mut subdirectories = 0u32;
        for dentry in children.values() {
            match tree.inode(dentry.node) {
                Some(Inode { node: Node::Directory(_), .. }) => subdirectories += 1,
                // Another name of an inode may have given it its place.
                Some(child) if self.place_of(dentry.node).is_none() => {
                    let place = self.leaf(dentry.node, child)?;
                    self.set_place(dentry.node, place);
                }
                _ => {}
            }
        }
        let (listing_start, listing_offset) = self.directories.address()?;
        let listing_bytes = self.listing(children)?;
        // 3 more than there is: for the `.` and `..` that are not stored.
        let size = count(listing_bytes + 3)?;
        let links = subdirectories + 2;
        let place = self.inodes.address()?;
        let mut body;
        if let Ok(size) = u16::try_from(size) {
            body = self.header(DIRECTORY, owner, own_number)?;
            body.extend(listing_start.to_le_bytes());
            body.extend(links.to_le_bytes());
            body.extend(size.to_le_bytes());
            body.extend(listing_offset.to_le_bytes());
            body.extend(parent_number.to_le_bytes());
        } else {
            body = self.header(DIRECTORY + EXTENDED, owner, own_number)?;
            body.extend(links.to_le_bytes());
            body.extend(size.to_le_bytes());
            body.extend(listing_start.to_le_bytes());
            body.extend(parent_number.to_le_bytes());
            body.extend(0u16.to_le_bytes()); // entries of the index
            body.extend(listing_offset.to_le_bytes());
            body.extend(NONE.to_le_bytes()); // extended attributes
        }
        self.inodes.push(&body, self.packer)?;
        Ok(place)
    }

    /// Writes the listing, in runs that share a metadata block of inodes and a base number; returns its bytes.
    fn listing(&mut self, children: &Children) -> Result<usize, WriteError> {
        let rows: Vec<(&[u8], Place, u32, u16)> = children
            .iter()
            .filter_map(|(name, dentry)| {
                let kind = kind_of(&self.tree.inode(dentry.node)?.node);
                Some((&**name, self.place_of(dentry.node)?, self.number_of(dentry.node), kind))
            })
            .collect();
        let mut rest = rows.as_slice();
        let mut bytes = 0;
        while let Some((_, (block, _), base, _)) = rest.first() {
            let difference = |number: u32| i16::try_from(i64::from(number) - i64::from(*base)).ok();
            let run = rest
                .iter()
                .take(RUN_MAX)
                .take_while(|(_, place, number, _)| place.0 == *block && difference(*number).is_some())
                .count();
            let (now, later) = rest.split_at(run);
            let mut body = Vec::new();
            body.extend(count(run - 1)?.to_le_bytes());
            body.extend(block.to_le_bytes());
            body.extend(base.to_le_bytes());
            for (name, place, number, kind) in now {
                body.extend(place.1.to_le_bytes());
                body.extend(difference(*number).unwrap_or(0).to_le_bytes());
                body.extend(kind.to_le_bytes());
                body.extend(u16::try_from(name.len() - 1).unwrap_or(0).to_le_bytes());
                body.extend_from_slice(name);
            }
            bytes += body.len();
            self.directories.push(&body, self.packer)?;
            rest = later;
        }
        Ok(bytes)
    }

    fn leaf(&mut self, id: NodeId, inode: &Inode) -> Result<Place, WriteError> {
        let place = self.inodes.address()?;
        let number = self.number_of(id);
        let body = match &inode.node {
            Node::File(content) => {
                let stored = self.stored.get(&id).cloned().unwrap_or_default();
                if stored.size != content.size {
                    return Err(WriteError::Limit("a file's content was not stored"));
                }
                self.file(&stored, inode, number)?
            }
            Node::Symlink(target) => {
                let mut body = self.header(SYMLINK, inode.owner, number)?;
                body.extend(inode.names.to_le_bytes());
                body.extend(count(target.len())?.to_le_bytes());
                body.extend_from_slice(target);
                body
            }
            Node::Whiteout => {
                let mut body = self.header(CHARACTER_DEVICE, inode.owner, number)?;
                body.extend(inode.names.to_le_bytes());
                body.extend(WHITEOUT_DEVICE.to_le_bytes());
                body
            }
            Node::Fifo | Node::Directory(_) => {
                let mut body = self.header(FIFO, inode.owner, number)?;
                body.extend(inode.names.to_le_bytes());
                body
            }
        };
        self.inodes.push(&body, self.packer)?;
        Ok(place)
    }

    fn file(&mut self, stored: &Stored, inode: &Inode, number: u32) -> Result<Vec<u8>, WriteError> {
        let (fragment, offset) = stored.fragment.unwrap_or((NONE, 0));
        let basic = (u32::try_from(stored.start), u32::try_from(stored.size));
        let holes = stored.blocks.iter().filter(|size| **size == 0).count();
        let mut body;
        match basic {
            (Ok(start), Ok(size)) if inode.names == 1 && holes == 0 => {
                body = self.header(FILE, inode.owner, number)?;
                body.extend(start.to_le_bytes());
                body.extend(fragment.to_le_bytes());
                body.extend(offset.to_le_bytes());
                body.extend(size.to_le_bytes());
            }
            _ => {
                // Bytes in holes, only for the count of blocks that stat(2) shows; never the whole size, as mksquashfs has it.
                let sparse = (holes as u64 * super::BLOCK_BYTES as u64).min(stored.size.saturating_sub(1));
                body = self.header(FILE + EXTENDED, inode.owner, number)?;
                body.extend(stored.start.to_le_bytes());
                body.extend(stored.size.to_le_bytes());
                body.extend(sparse.to_le_bytes());
                body.extend(inode.names.to_le_bytes());
                body.extend(fragment.to_le_bytes());
                body.extend(offset.to_le_bytes());
                body.extend(NONE.to_le_bytes()); // extended attributes
            }
        }
        body.extend(stored.blocks.iter().flat_map(|size| size.to_le_bytes()));
        Ok(body)
    }

    /// The part all inodes begin with.
    fn header(&mut self, kind: u16, owner: Owner, number: u32) -> Result<Vec<u8>, WriteError> {
        let (uid, gid) = (self.id(owner.uid)?, self.id(owner.gid)?);
        let mut body = Vec::with_capacity(64);
        for half in [kind, owner.mode, uid, gid] {
            body.extend(half.to_le_bytes());
        }
        body.extend(owner.mtime.to_le_bytes());
        body.extend(number.to_le_bytes());
        Ok(body)
    }

    /// Index of a uid or gid in the table of ids.
    fn id(&mut self, id: u32) -> Result<u16, WriteError> {
        if let Some(index) = self.id_of.get(&id) {
            return Ok(*index);
        }
        let index = u16::try_from(self.ids.len())
            .ok()
            .filter(|index| *index < u16::MAX)
            .ok_or(WriteError::Limit(TOO_MANY_IDS))?;
        self.ids.push(id);
        self.id_of.insert(id, index);
        Ok(index)
    }

    fn number_of(&self, id: NodeId) -> u32 {
        self.numbers.get(id.index()).copied().unwrap_or(0)
    }

    fn set_place(&mut self, id: NodeId, place: Place) {
        if let Some(slot) = self.places.get_mut(id.index()) {
            *slot = Some(place);
        }
    }

    fn place_of(&self, id: NodeId) -> Option<Place> {
        self.places.get(id.index()).copied().flatten()
    }
}

fn kind_of(node: &Node) -> u16 {
    match node {
        Node::Directory(_) => DIRECTORY,
        Node::File(_) => FILE,
        Node::Symlink(_) => SYMLINK,
        Node::Fifo => FIFO,
        Node::Whiteout => CHARACTER_DEVICE,
    }
}
