//! Why the store refused something, by culprit: the archive, a layer inside it, the operator's name for it, this host.
//!
//! Text from an archive is untrusted: it is escaped and cut before it stands in a message.

use abi::ids::{AgentName, Digest};
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of an untrusted path that a message repeats.
const SHOWN_BYTES_MAX: usize = 160;

/// Why an import was refused. Whatever the reason, nothing of the archive is left in the store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Culprit: the operator.
    #[error("`{0}` is not a rootfs name: use 1 to 64 of a-z 0-9 . _ -, starting with a letter or digit")]
    Name(String),
    /// Culprit: the archive, outside its layers.
    #[error("archive: `{place}`: {rule}; {remedy}")]
    Archive { place: String, rule: String, remedy: &'static str },
    /// Culprit: an entry of a layer (counted from 1, lowest first), at this offset of the unpacked layer.
    #[error("layer {layer}: `{path}` at byte {offset}: {rule}; {remedy}")]
    Layer { layer: usize, path: String, offset: u64, rule: String, remedy: &'static str },
    /// Culprit: whoever sends the archive.
    #[error("archive: {got} of {want} bytes came: {source}; send it again")]
    Receive { got: u64, want: u64, source: io::Error },
    /// Culprit: this host.
    #[error("{operation} `{}`: {source}{}", path.display(), host_remedy(source))]
    Host { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the store holds {max} images already; remove one")]
    Full { max: usize },
}

/// Why the store could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no rootfs `{0}` in the store; see image list")]
    UnknownName(String),
    #[error("no rootfs {0} in the store; see image list")]
    UnknownDigest(Digest),
    #[error("{0} is being removed")]
    BeingRemoved(Digest),
    #[error("{digest} stays: agent {agent} {doing}")]
    Needed { digest: Digest, agent: AgentName, doing: &'static str },
    #[error("{operation} `{}`: {source}{}", path.display(), host_remedy(source))]
    Host { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}`: {rule}; move it away and import again", path.display())]
    Index { path: PathBuf, rule: String },
}

impl ImportError {
    pub(super) fn archive(place: impl AsRef<[u8]>, rule: impl Into<String>, remedy: &'static str) -> Self {
        ImportError::Archive { place: shown(place.as_ref()), rule: rule.into(), remedy }
    }

    pub(super) fn host(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| ImportError::Host { operation, path: path.to_path_buf(), source }
    }
}

impl StoreError {
    pub(super) fn host(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| StoreError::Host { operation, path: path.to_path_buf(), source }
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Host { operation, path, source } => ImportError::Host { operation, path, source },
            other => ImportError::Archive {
                place: "store".into(),
                rule: other.to_string(),
                remedy: "see image list",
            },
        }
    }
}

fn host_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; remove images, or give the node a larger NULLBOX-STATE"
        }
        _ => "",
    }
}

/// Untrusted bytes as one short line of printable text.
pub(super) fn shown(bytes: &[u8]) -> String {
    let cut: &[u8] = bytes.get(..SHOWN_BYTES_MAX).unwrap_or(bytes);
    let mut text: String = String::from_utf8_lossy(cut)
        .chars()
        .flat_map(|c| {
            let plain = !c.is_control() && c != '`';
            plain.then_some(c).into_iter().chain((!plain).then(|| c.escape_unicode()).into_iter().flatten())
        })
        .collect();
    if cut.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_text_is_one_short_printable_line() {
        assert_eq!(shown(b"usr/bin/x"), "usr/bin/x");
        assert_eq!(shown(b"a\n\x1b[2Jb`"), "a\\u{a}\\u{1b}[2Jb\\u{60}");
        assert!(shown(&[b'x'; 5000]).len() < 200);
    }
}
