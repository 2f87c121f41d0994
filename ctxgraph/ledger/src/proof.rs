//! Proofs in the tree: that a frame is in it, and that one tree goes on from another (RFC 9162 sections 2.1.3 and 2.1.4).
//!
//! A path is the hashes of some ranges of frames, which lie side by side. So it is made in one pass over the frames' digests, with one
//! [`Frontier`] at a time, and its length is all that it holds.
//! Must hold: makes what the RFC defines; takes exactly what the RFC's algorithms take.

use abi::ids::Digest;

use crate::merkle::{Frontier, leaf, node};

/// A path that is being made.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Frames of each range and its place in the path, by first frame.
    ranges: Vec<(u64, u64, usize)>,
    /// Which range is next or under way.
    now: usize,
    seq: u64,
    tree: Frontier,
    path: Vec<Digest>,
}

impl Pass {
    /// The audit path of frame `seq` in the tree of `size` frames. None if it is not in it.
    pub fn inclusion(seq: u64, size: u64) -> Option<Pass> {
        if seq >= size {
            return None;
        }
        let (mut from, mut to) = (0, size);
        let mut ranges = Vec::new(); // the RFC has the nearest to the root last
        while to - from > 1 {
            let middle = from + split(to - from);
            if seq < middle {
                ranges.push((middle, to));
                to = middle;
            } else {
                ranges.push((from, middle));
                from = middle;
            }
        }
        Some(Pass::over(ranges))
    }

    /// The path from the tree of `old` frames to the tree of `size` frames. None unless `0 < old <= size`.
    pub fn consistency(old: u64, size: u64) -> Option<Pass> {
        if old == 0 || old > size {
            return None;
        }
        let (mut from, mut to) = (0, size);
        let mut whole = true; // the range is one that the old tree had as its root
        let mut ranges = Vec::new();
        while old != to {
            let middle = from + split(to - from);
            if old <= middle {
                ranges.push((middle, to));
                to = middle;
            } else {
                ranges.push((from, middle));
                from = middle;
                whole = false;
            }
        }
        if !whole {
            ranges.push((from, to));
        }
        Some(Pass::over(ranges))
    }

    fn over(from_the_root: Vec<(u64, u64)>) -> Pass {
        let path = vec![Digest([0; 32]); from_the_root.len()];
        let in_path = from_the_root.into_iter().rev().enumerate();
        let mut ranges: Vec<_> = in_path.map(|(place, (from, to))| (from, to, place)).collect();
        ranges.sort_unstable();
        Pass { ranges, now: 0, seq: 0, tree: Frontier::default(), path }
    }

    /// Takes the digest of the next frame, from frame 0 on.
    pub fn push(&mut self, frame: &Digest) {
        let seq = self.seq;
        self.seq += 1;
        let Some(&(from, to, place)) = self.ranges.get(self.now) else { return };
        if seq < from {
            return;
        }
        self.tree.push(frame);
        if self.seq == to {
            if let Some(hash) = self.path.get_mut(place) {
                *hash = self.tree.root();
            }
            self.tree = Frontier::default();
            self.now += 1;
        }
    }

    /// The path. None if frames were missing.
    pub fn finish(self) -> Option<Vec<Digest>> {
        (self.now == self.ranges.len()).then_some(self.path)
    }
}

/// The largest power of two smaller than `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// The root that a path leads to from frame `seq` with this digest. None if the path has not the length it must have (RFC 9162
/// section 2.1.3.2).
pub fn root_of(frame: &Digest, seq: u64, size: u64, path: &[Digest]) -> Option<Digest> {
    let (mut place, mut last) = (seq, size.checked_sub(1)?);
    if place > last {
        return None;
    }
    let mut root = leaf(frame);
    for hash in path {
        if last == 0 {
            return None;
        }
        if place & 1 == 1 || place == last {
            root = node(hash, &root);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            root = node(&root, hash);
        }
        place >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(root)
}

/// Whether a path shows that the tree of `size` frames with `root` goes on from the one of `old` frames with `old_root` (RFC 9162
/// section 2.1.4.2).
pub fn goes_on(old: u64, old_root: &Digest, size: u64, root: &Digest, path: &[Digest]) -> bool {
    if old == 0 || old > size {
        return false;
    }
    if old == size {
        return path.is_empty() && old_root == root;
    }
    let (first, rest) = match path.split_first() {
        None => return false,
        Some(_) if old.is_power_of_two() => (old_root, path),
        Some(both) => both,
    };
    let (mut place, mut last) = (old - 1, size - 1);
    while place & 1 == 1 {
        place >>= 1;
        last >>= 1;
    }
    let (mut old_made, mut made) = (*first, *first);
    for hash in rest {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            old_made = node(hash, &old_made);
            made = node(hash, &made);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            made = node(&made, hash);
        }
        place >>= 1;
        last >>= 1;
    }
    last == 0 && old_made == *old_root && made == *root
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: u64 = 131;

    fn frames(count: u64) -> Vec<Digest> {
        (0..count)
            .map(|n| {
                let mut bytes = [3; 32];
                bytes[..8].copy_from_slice(&n.to_le_bytes());
                Digest(bytes)
            })
            .collect()
    }

    fn root(frames: &[Digest]) -> Digest {
        let mut tree = Frontier::default();
        frames.iter().for_each(|frame| tree.push(frame));
        tree.root()
    }

    fn made(pass: Option<Pass>, frames: &[Digest]) -> Vec<Digest> {
        let mut pass = pass.unwrap();
        frames.iter().for_each(|frame| pass.push(frame));
        pass.finish().unwrap()
    }

    /// RFC 9162 section 2.1.3.1, word for word.
    fn inclusion_of_the_rfc(m: usize, frames: &[Digest]) -> Vec<Digest> {
        if frames.len() == 1 {
            return vec![];
        }
        let k = frames.len().next_power_of_two() / 2;
        let (left, right) = frames.split_at(k);
        if m < k {
            [inclusion_of_the_rfc(m, left), vec![root(right)]].concat()
        } else {
            [inclusion_of_the_rfc(m - k, right), vec![root(left)]].concat()
        }
    }

    /// RFC 9162 section 2.1.4.1, word for word.
    fn consistency_of_the_rfc(m: usize, frames: &[Digest], b: bool) -> Vec<Digest> {
        if m == frames.len() {
            return if b { vec![] } else { vec![root(frames)] };
        }
        let k = frames.len().next_power_of_two() / 2;
        let (left, right) = frames.split_at(k);
        if m <= k {
            [consistency_of_the_rfc(m, left, b), vec![root(right)]].concat()
        } else {
            [consistency_of_the_rfc(m - k, right, false), vec![root(left)]].concat()
        }
    }

    #[test]
    fn every_frame_of_every_size_has_the_path_of_the_rfc() {
        let all = frames(SIZES);
        for size in 1..=SIZES {
            let tree = &all[..size as usize];
            let root = root(tree);
            for seq in 0..size {
                let path = made(Pass::inclusion(seq, size), tree);
                assert_eq!(path, inclusion_of_the_rfc(seq as usize, tree), "{seq} of {size}");
                assert_eq!(root_of(&all[seq as usize], seq, size, &path), Some(root), "{seq} of {size}");
            }
        }
        assert!(Pass::inclusion(5, 5).is_none() && Pass::inclusion(0, 0).is_none());
    }

    #[test]
    fn every_two_sizes_have_the_path_of_the_rfc() {
        let all = frames(SIZES);
        let roots: Vec<_> = (0..=all.len()).map(|size| root(&all[..size])).collect();
        for size in 1..=all.len() {
            for old in 1..=size {
                let path = made(Pass::consistency(old as u64, size as u64), &all[..size]);
                assert_eq!(path, consistency_of_the_rfc(old, &all[..size], true), "{old} to {size}");
                assert!(
                    goes_on(old as u64, &roots[old], size as u64, &roots[size], &path),
                    "{old} to {size}"
                );
            }
        }
        assert!(Pass::consistency(0, 5).is_none() && Pass::consistency(6, 5).is_none());
    }

    #[test]
    fn a_path_with_too_few_frames_is_not_made() {
        let mut pass = Pass::inclusion(2, 9).unwrap();
        frames(8).iter().for_each(|frame| pass.push(frame));
        assert!(pass.finish().is_none());
    }

    #[test]
    fn no_other_place_size_or_length_is_taken() {
        let all = frames(40);
        for size in 1..=all.len() as u64 {
            let root = root(&all[..size as usize]);
            for seq in 0..size {
                let path = made(Pass::inclusion(seq, size), &all[..size as usize]);
                let frame = &all[seq as usize];
                for other in (0..size).filter(|other| *other != seq) {
                    assert_ne!(root_of(frame, other, size, &path), Some(root), "{seq} as {other} of {size}");
                }
                for length in 0..path.len() {
                    assert_ne!(root_of(frame, seq, size, &path[..length]), Some(root));
                }
                let longer = [path.as_slice(), &[root]].concat();
                assert_eq!(root_of(frame, seq, size, &longer), None);
                assert_eq!(root_of(frame, seq, 0, &path), None);
                assert_eq!(root_of(frame, size, size, &path), None);
            }
        }
    }

    #[test]
    fn an_old_tree_that_is_not_in_it_is_refused() {
        let all = frames(60);
        let roots: Vec<_> = (0..=all.len()).map(|size| root(&all[..size])).collect();
        let size = all.len();
        for old in 1..size {
            let path = made(Pass::consistency(old as u64, size as u64), &all);
            let take = |old: usize, old_root: &Digest, path: &[Digest]| {
                goes_on(old as u64, old_root, size as u64, &roots[size], path)
            };
            assert!(take(old, &roots[old], &path));
            for other in (0..=size).filter(|other| *other != old) {
                assert!(!take(old, &roots[other], &path), "the root of {other} for {old}");
                assert!(!take(other, &roots[other], &path), "the path of {old} for {other}");
            }
            for length in 0..path.len() {
                assert!(!take(old, &roots[old], &path[..length]));
            }
            assert!(!take(old, &roots[old], &[path.as_slice(), &[roots[1]]].concat()));
        }
        assert!(goes_on(3, &roots[3], 3, &roots[3], &[]));
        assert!(!goes_on(3, &roots[3], 3, &roots[3], &[roots[1]]));
        assert!(!goes_on(3, &roots[2], 3, &roots[3], &[]));
        assert!(!goes_on(4, &roots[4], 3, &roots[3], &[]));
        assert!(!goes_on(0, &roots[0], 3, &roots[3], &[]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_hash_of_a_path_can_be_another(size in 2u64..1500, pick in 0.0..1.0f64, at in 0usize..64, bit in 0usize..256) {
            let seq = (size as f64 * pick) as u64;
            let all = frames(size);
            let root = root(&all);
            let flip = |path: &mut Vec<Digest>| {
                let at = at % path.len();
                path[at].0[bit / 8] ^= 1 << (bit % 8);
            };
            let mut path = made(Pass::inclusion(seq, size), &all);
            prop_assert_eq!(root_of(&all[seq as usize], seq, size, &path), Some(root));
            flip(&mut path);
            prop_assert_ne!(root_of(&all[seq as usize], seq, size, &path), Some(root));
            let (old, old_root) = (seq + 1, super::tests::root(&all[..=seq as usize]));
            let mut path = made(Pass::consistency(old, size), &all);
            prop_assert!(goes_on(old, &old_root, size, &root, &path));
            if !path.is_empty() {
                flip(&mut path);
                prop_assert!(!goes_on(old, &old_root, size, &root, &path));
            }
        }

        #[test]
        fn no_numbers_break_the_arithmetic(seq: u64, size: u64, length in 0usize..70) {
            let path = vec![Digest([1; 32]); length];
            let _ = root_of(&Digest([2; 32]), seq, size, &path); // that it returns is what is asked
            let _ = goes_on(seq, &Digest([2; 32]), size, &Digest([3; 32]), &path);
            for pass in [Pass::inclusion(seq, size), Pass::consistency(seq, size)].into_iter().flatten() {
                prop_assert!(pass.path.len() <= 65);
            }
        }
    }
}
