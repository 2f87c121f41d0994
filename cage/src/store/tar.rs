//! Reads a tar stream (POSIX pax, ustar, GNU, v7), one entry at a time.
//!
//! Must hold: memory is bounded by [`limits::TAR_EXTENSION_BYTES_MAX`] whatever the stream says; what is not understood is refused,
//! never guessed. Must never: interpret a path (that is [`super::path`]), or touch a file system.
//!
//! Source: POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended Header"; tar(5) of libarchive for GNU.

use abi::limits;
use std::io::{self, Read};

const BLOCK: usize = 512;

/// A stream that can leave bytes out, by seeking where it can.
pub trait Input: Read {
    /// Moves `bytes` ahead. Fewer left: `UnexpectedEof`.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// Reads and drops `bytes`.
pub fn skip_by_reading(input: &mut impl Read, bytes: u64) -> io::Result<()> {
    let dropped = io::copy(&mut input.take(bytes), &mut io::sink())?;
    if dropped < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One entry, as the stream claims it. Paths are not checked in any way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Target of a link; empty for everything else.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, clamped to 0 and `u32::MAX`.
    pub mtime: u32,
    /// Bytes of content; 0 for everything but a file.
    pub size: u64,
    /// Where the content begins in the stream.
    pub data_at: u64,
    /// Where the entry begins in the stream, its extension headers included.
    pub at: u64,
}

/// Why a stream is not a tar that can be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("byte {at}: {rule}")]
    Malformed { at: u64, rule: &'static str },
    #[error("the archive is cut at byte {at}")]
    Cut { at: u64 },
    #[error("{0}")]
    Read(#[from] io::Error),
}

/// A tar stream.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes consumed.
    position: u64,
    /// Content of the present entry not yet read, and the padding after it.
    content_left: u64,
    padding: u64,
    ended: bool,
    /// An end without the closing zero block is a cut.
    strict_end: bool,
}

impl<R: Input> Reader<R> {
    /// `strict_end`: the closing zero block must be there. Layers are covered by their digests and need it not.
    pub fn new(input: R, strict_end: bool) -> Self {
        Reader { input, position: 0, content_left: 0, padding: 0, ended: false, strict_end }
    }

    pub fn get_ref(&self) -> &R {
        &self.input
    }

    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry, or none after the closing block. Content of the one before that was not read is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.content_left.saturating_add(self.padding))?;
        (self.content_left, self.padding) = (0, 0);
        let at = self.position;
        let mut extension = Extension::default();
        for _ in 0..limits::TAR_EXTENSIONS_PER_ENTRY_MAX {
            let Some(header) = self.header()? else {
                if !extension.is_empty() {
                    return Err(self.wrong("an extension header stands before no entry"));
                }
                self.ended = true;
                return Ok(None);
            };
            match header.flag() {
                b'x' => extension.pax(&self.extension_body(&header)?).map_err(|rule| self.wrong(rule))?,
                b'g' => global_pax(&self.extension_body(&header)?).map_err(|rule| self.wrong(rule))?,
                b'L' => extension.path = Some(until_nul(&self.extension_body(&header)?)),
                b'K' => extension.link = Some(until_nul(&self.extension_body(&header)?)),
                _ => return self.entry(at, &header, extension).map(Some),
            }
        }
        Err(self.wrong("more extension headers than an entry may have"))
    }

    fn entry(&mut self, at: u64, header: &Header, extension: Extension) -> Result<Entry, TarError> {
        let path = extension.path.unwrap_or_else(|| header.path());
        let kind = match header.flag() {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(self.wrong("a sparse file (GNU); pack it without --sparse")),
            _ => return Err(self.wrong("an entry of an unknown type")),
        };
        let number = |field: &[u8], rule| number(field).ok_or(TarError::Malformed { at, rule });
        // Size fields of links, directories and devices mean nothing (archive/tar of Go reads them the same way).
        let size = match (kind, extension.size) {
            (Kind::File, Some(size)) => size,
            (Kind::File, None) => number(header.field(124, 12), "the size is not a number")?,
            _ => 0,
        };
        if size > limits::ARCHIVE_BYTES_MAX.max(limits::ROOTFS_BYTES_MAX) {
            return Err(self.wrong("the size is above every limit"));
        }
        let uid = match extension.uid {
            Some(uid) => uid,
            None => number(header.field(108, 8), "the uid is not a number")?,
        };
        let gid = match extension.gid {
            Some(gid) => gid,
            None => number(header.field(116, 8), "the gid is not a number")?,
        };
        let wide = TarError::Malformed { at, rule: "the uid or gid does not fit 32 bits" };
        let (Ok(uid), Ok(gid)) = (u32::try_from(uid), u32::try_from(gid)) else {
            return Err(wide);
        };
        let mtime = match extension.mtime {
            Some(mtime) => mtime,
            None => clamped_time(header.field(136, 12))
                .ok_or(TarError::Malformed { at, rule: "the mtime is not a number" })?,
        };
        let mode = number(header.field(100, 8), "the mode is not a number")? & 0o7777;
        self.content_left = size;
        self.padding = padding_after(size);
        Ok(Entry {
            kind,
            path,
            link: match kind {
                Kind::HardLink | Kind::Symlink => extension.link.unwrap_or_else(|| header.link()),
                _ => Vec::new(),
            },
            mode: u16::try_from(mode).unwrap_or(0),
            uid,
            gid,
            mtime,
            size,
            data_at: self.position,
            at,
        })
    }

    /// The next header block, checked; none at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 && !self.strict_end {
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(TarError::Cut { at: self.position + filled as u64 });
        }
        let header = Header(block);
        if header.0.iter().all(|b| *b == 0) {
            self.position += BLOCK as u64;
            return Ok(None);
        }
        if !header.checksum_holds() {
            return Err(self.wrong("not a tar header (its checksum is wrong)"));
        }
        self.position += BLOCK as u64;
        Ok(Some(header))
    }

    fn extension_body(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = number(header.field(124, 12)).ok_or_else(|| self.wrong("the size is not a number"))?;
        if size > limits::TAR_EXTENSION_BYTES_MAX {
            return Err(self.wrong("an extension header is larger than its limit"));
        }
        let mut body = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut body)?;
        self.position += body.len() as u64;
        if (body.len() as u64) < size {
            return Err(TarError::Cut { at: self.position });
        }
        self.skip(padding_after(size))?;
        Ok(body)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        if bytes == 0 {
            return Ok(());
        }
        self.input.skip(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Cut { at: self.position },
            _ => TarError::Read(error),
        })?;
        self.position = self.position.saturating_add(bytes);
        Ok(())
    }

    fn wrong(&self, rule: &'static str) -> TarError {
        TarError::Malformed { at: self.position, rule }
    }
}

/// What extension headers say about the entry after them.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u32>,
}

impl Extension {
    fn is_empty(&self) -> bool {
        self.path.is_none()
            && self.link.is_none()
            && self.size.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.mtime.is_none()
    }

    fn pax(&mut self, body: &[u8]) -> Result<(), &'static str> {
        for_each_record(body, |key, value| {
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value).ok_or("the pax size is not a number")?),
                b"uid" => self.uid = Some(decimal(value).ok_or("the pax uid is not a number")?),
                b"gid" => self.gid = Some(decimal(value).ok_or("the pax gid is not a number")?),
                b"mtime" => self.mtime = Some(pax_time(value).ok_or("the pax mtime is not a number")?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err("a sparse file (pax); pack it without --sparse");
                }
                // Extended attributes are dropped (docs/rootfs.md says why); names of owners, comments and other times
                // do not reach a rootfs.
                _ => {}
            }
            Ok(())
        })
    }
}

/// A global header may carry a comment, nothing that changes entries.
fn global_pax(body: &[u8]) -> Result<(), &'static str> {
    for_each_record(body, |key, _| match key {
        b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" => {
            Err("a global pax header changes every entry after it; pack it without one")
        }
        _ => Ok(()),
    })
}

/// Walks the records `LENGTH KEY=VALUE\n` of a pax header.
fn for_each_record(
    mut body: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    const WRONG: &str = "a pax record is malformed";
    while !body.is_empty() {
        let space = body.iter().position(|b| *b == b' ').ok_or(WRONG)?;
        let length = decimal(body.get(..space).ok_or(WRONG)?).ok_or(WRONG)?;
        let length = usize::try_from(length).map_err(|_| WRONG)?;
        let record = body.get(space + 1..length).ok_or(WRONG)?;
        let record = record.strip_suffix(b"\n").ok_or(WRONG)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or(WRONG)?;
        let (key, value) = record.split_at_checked(equals).ok_or(WRONG)?;
        each(key, value.get(1..).unwrap_or_default())?;
        body = body.get(length..).ok_or(WRONG)?;
    }
    Ok(())
}

struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, at: usize, length: usize) -> &[u8] {
        self.0.get(at..at + length).unwrap_or_default()
    }

    fn flag(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    /// Name, with the ustar prefix before it. GNU tar uses the prefix's place for other things.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = until_nul(self.field(345, 155));
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name;
        }
        [prefix.as_slice(), b"/", name.as_slice()].concat()
    }

    fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100))
    }

    /// The sum of all bytes, those of the checksum itself read as spaces; old writers summed signed bytes.
    fn checksum_holds(&self) -> bool {
        let Some(claimed) = number(self.field(148, 8)) else {
            return false;
        };
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        claimed == unsigned || i64::try_from(claimed) == Ok(signed)
    }
}

fn padding_after(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take_while(|b| *b != 0).collect()
}

/// Octal with blanks around it, or GNU's base 256. Empty is 0.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        return rest.iter().try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|b| *b == 0 || *b == b' ').unwrap_or(text.len());
    let (digits, after) = text.split_at_checked(end)?;
    if !after.iter().all(|b| *b == 0 || *b == b' ') {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A header's time: times before 1970 (base 256, negative) become 0, later ones are clamped.
fn clamped_time(field: &[u8]) -> Option<u32> {
    if field.first() == Some(&0xff) {
        return Some(0);
    }
    Some(u32::try_from(number(field)?).unwrap_or(u32::MAX))
}

/// A pax time, `-?SECONDS(.FRACTION)?`.
fn pax_time(value: &[u8]) -> Option<u32> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |b| *b == b'.');
    let seconds = decimal(parts.next()?)?;
    if !parts.next().unwrap_or_default().iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(if negative { 0 } else { u32::try_from(seconds).unwrap_or(u32::MAX) })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_and_nothing_else() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"77777777777 ", Some(0o77777777777)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x00", Some(256)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"64 4\0\0\0\0", None),
            (b"-1\0", None),
        ] {
            assert_eq!(number(field), want, "{field:?}");
        }
    }

    #[test]
    fn times_are_whole_seconds_within_32_bits() {
        for (value, want) in [
            (&b"1700000000.999"[..], Some(1_700_000_000)),
            (b"-5.5", Some(0)),
            (b"99999999999", Some(u32::MAX)),
            (b"1.x", None),
            (b"", None),
        ] {
            assert_eq!(pax_time(value), want, "{value:?}");
        }
        assert_eq!(clamped_time(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Some(0));
    }

    impl Input for &[u8] {
        fn skip(&mut self, bytes: u64) -> io::Result<()> {
            skip_by_reading(self, bytes)
        }
    }

    /// Whatever the bytes are: an end or an error, after no more entries than there are blocks.
    #[test]
    fn any_bytes_end_in_an_entry_an_error_or_the_end() {
        let mut builder = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(700);
        builder.append_data(&mut header, "n".repeat(150), &[7; 700][..]).unwrap();
        builder.append_pax_extensions([("mtime", &b"1.5"[..]), ("path", b"p")]).unwrap();
        header.set_size(0);
        builder.append_data(&mut header, "x", io::empty()).unwrap();
        let good = builder.into_inner().unwrap();
        let mut random = std::hash::DefaultHasher::new();
        for round in 0..20_000u32 {
            use std::hash::Hasher;
            random.write_u32(round);
            let dice = random.finish();
            let mut bytes = good.clone();
            let at = dice as usize % bytes.len();
            bytes[at] = (dice >> 32) as u8;
            // The checksum is made right again, so that the change gets past it.
            if let Some(block) = bytes.get_mut(at / 512 * 512..at / 512 * 512 + 512) {
                let mut header = ::tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block[148..156].copy_from_slice(&header.as_bytes()[148..156]);
            }
            let mut reader = Reader::new(bytes.as_slice(), true);
            let mut entries = 0;
            while let Ok(Some(_)) = reader.next_entry() {
                entries += 1;
            }
            assert!(entries <= good.len() / 512);
        }
    }
}
