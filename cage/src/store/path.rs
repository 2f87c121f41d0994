//! Paths inside a rootfs. An entry's path is a claim until it became a [`RootfsPath`].
//!
//! Must hold: a `RootfsPath` names something at or below the root by plain names; no `..`, no NUL, nothing too long.

use abi::limits;

/// A path relative to the root: its names, outermost first. Empty: the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsPath<'a> {
    names: Vec<&'a [u8]>,
}

impl<'a> RootfsPath<'a> {
    /// Checks an entry's path. A leading `/` and `.` parts mean the root and nothing, as every tar reader has it.
    pub fn parse(claimed: &'a [u8]) -> Result<Self, &'static str> {
        if claimed.is_empty() {
            return Err("an entry has no path");
        }
        if claimed.len() > limits::ROOTFS_PATH_BYTES_MAX {
            return Err("the path is longer than a path can be");
        }
        let mut names = Vec::new();
        for part in claimed.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err("`..` leads out of the rootfs"),
                _ if part.contains(&0) => return Err("the path contains a NUL"),
                _ if part.len() > limits::ROOTFS_NAME_BYTES_MAX => {
                    return Err("a name is longer than a name can be");
                }
                name => names.push(name),
            }
        }
        if names.len() > limits::ROOTFS_DEPTH_MAX {
            return Err("the path is nested deeper than the limit");
        }
        Ok(RootfsPath { names })
    }

    /// The directory's names and the last name; none for the root.
    pub fn split(&self) -> Option<(&[&'a [u8]], &'a [u8])> {
        let (last, parents) = self.names.split_last()?;
        Some((parents, last))
    }

    /// At or below this top-level directory.
    pub fn is_below(&self, top: &[u8]) -> bool {
        self.names.first().is_some_and(|first| *first == top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_below_the_root() {
        for (claimed, last) in
            [(&b"./usr/bin/x"[..], &b"x"[..]), (b"/usr//bin/./x/", b"x"), (b"x", b"x"), (b"..x", b"..x")]
        {
            assert_eq!(RootfsPath::parse(claimed).unwrap().split().unwrap().1, last);
        }
        for root in [&b"./"[..], b"/", b"."] {
            assert!(RootfsPath::parse(root).unwrap().split().is_none());
        }
    }

    #[test]
    fn escapes_and_oversized_paths_are_refused() {
        let deep = b"d/".repeat(limits::ROOTFS_DEPTH_MAX + 1);
        let name = [b'n'; limits::ROOTFS_NAME_BYTES_MAX + 1];
        let long = b"n".repeat(limits::ROOTFS_PATH_BYTES_MAX + 1);
        for claimed in [&b"../x"[..], b"a/../../x", b"a/..", b"/..", b"", b"a\0b", &deep, &name, &long] {
            assert!(RootfsPath::parse(claimed).is_err());
        }
    }
}
