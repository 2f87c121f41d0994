//! The Merkle tree over the frames (RFC 9162 section 2.1): a leaf is a frame's digest.
//!
//! Must hold: the roots are those of RFC 9162 for every size.

use abi::ids::Digest;
use sha2::{Digest as _, Sha256};

/// Hash of the tree without leaves.
pub fn empty() -> Digest {
    Digest(Sha256::digest([]).into())
}

/// Hash of a leaf: `H(0x00 || the frame's digest)`.
pub fn leaf(frame: &Digest) -> Digest {
    let mut bytes = [0; 33]; // in one piece: these hashes are most of what a check costs
    let (_, rest) = bytes.split_at_mut(1);
    rest.copy_from_slice(&frame.0);
    Digest(Sha256::digest(bytes).into())
}

/// Hash of an inner node: `H(0x01 || left || right)`.
pub fn node(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [1; 65];
    let (_, rest) = bytes.split_at_mut(1);
    let (first, second) = rest.split_at_mut(32);
    first.copy_from_slice(&left.0);
    second.copy_from_slice(&right.0);
    Digest(Sha256::digest(bytes).into())
}

/// A tree that only grows: the roots of its complete subtrees, 64 at most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Digest>,
}

impl Frontier {
    /// From the roots that [`Frontier::roots`] gave at a size; none if there are not as many as the size has.
    pub fn at(size: u64, roots: Vec<Digest>) -> Option<Frontier> {
        (roots.len() == size.count_ones() as usize).then_some(Frontier { size, roots })
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: &Digest) {
        let mut root = leaf(frame);
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                root = node(&left, &root);
            }
        }
        self.roots.push(root);
        self.size = self.size.saturating_add(1);
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the complete subtrees, the largest first: as many as the size has bits set.
    pub fn roots(&self) -> &[Digest] {
        &self.roots
    }

    /// The tree's root.
    pub fn root(&self) -> Digest {
        self.roots.iter().rev().copied().reduce(|right, left| node(&left, &right)).unwrap_or_else(empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9162 section 2.1.1, word for word.
    fn of_the_rfc(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => empty(),
            [one] => leaf(one),
            many => {
                let split = many.len().next_power_of_two() / 2;
                node(&of_the_rfc(&many[..split]), &of_the_rfc(&many[split..]))
            }
        }
    }

    #[test]
    fn the_root_of_every_size_is_that_of_the_rfc() {
        let leaves: Vec<Digest> = (0..300_u32).map(|n| leaf(&Digest([n as u8; 32]))).collect();
        let mut tree = Frontier::default();
        for size in 0..leaves.len() {
            assert_eq!(tree.root(), of_the_rfc(&leaves[..size]), "size {size}");
            assert_eq!(Frontier::at(size as u64, tree.roots().to_vec()).as_ref(), Some(&tree));
            tree.push(&leaves[size]);
        }
    }
}
