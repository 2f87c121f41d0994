//! One layer: unpacked as a stream, checked against its digests, its entries handed on.
//!
//! Must hold: nothing of a layer counts before both its digests were right; unpacked bytes are bounded over the whole image.
//! Must never: hold a layer's content in memory or spool it.

use abi::ids::Digest;
use abi::limits;
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead, BufReader, Read};

use super::archive::{Archive, Extent, ExtentReader, digest_differs};
use super::error::{ImportError, shown};
use super::tar::{self, Input, TarError};
use super::tree::{Content, NodeId, Refusal, Tree};
use super::{Progress, Stage, throttle};

const DAMAGED: &str = "the layer is damaged: fetch or write the archive again";

/// A layer as the image's manifest and config describe it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its member of the archive, for messages.
    pub member: String,
    pub extent: Extent,
    /// Of the member's bytes; docker save does not state it.
    pub blob: Option<Digest>,
    /// Of the unpacked tar.
    pub diff_id: Digest,
}

/// Unpacked bytes that the image may still yield.
#[derive(Debug)]
pub struct Allowance(u64);

impl Allowance {
    /// What is left after so many bytes.
    pub fn after(used: u64) -> Self {
        Allowance(limits::ROOTFS_BYTES_MAX.saturating_sub(used))
    }

    /// Bytes unpacked so far.
    pub fn used(&self) -> u64 {
        limits::ROOTFS_BYTES_MAX - self.0
    }
}

/// Takes a file's content: its node, its size, a reader of exactly that much.
pub type Each<'a> = &'a mut dyn FnMut(NodeId, u64, &mut dyn Read) -> Result<(), ImportError>;

/// First reading: checks the layer and applies its entries to the tree. `progress` gets the packed bytes read so far. Returns how
/// many entries were left out.
pub fn merge(
    archive: &Archive,
    number: u16,
    layer: &Layer,
    tree: &mut Tree,
    allowance: &mut Allowance,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, ImportError> {
    let merged = read_all(archive, number, layer, tree, allowance, progress);
    if merged.is_err() {
        // Whatever a damaged layer looks like, that it is damaged is the reason.
        blob_holds(archive, layer)?;
    }
    merged
}

/// Checks the packed layer against the digest that the manifest states.
fn blob_holds(archive: &Archive, layer: &Layer) -> Result<(), ImportError> {
    match layer.blob {
        Some(_) => digest_of_packed(archive, layer, |_| {}).map(|_| ()),
        None => Ok(()),
    }
}

/// The packed layer's digest; an error where the manifest states another one.
fn digest_of_packed(
    archive: &Archive,
    layer: &Layer,
    progress: impl FnMut(u64),
) -> Result<Digest, ImportError> {
    let got = archive.digest(layer.extent, progress)?;
    match layer.blob {
        Some(want) if got != want => Err(digest_differs(&layer.member, &want, &got)),
        _ => Ok(got),
    }
}

/// Whether these layers are, byte for byte, those that were unpacked before: packed as then, or not at all.
pub fn packed_as_known(
    archive: &Archive,
    layers: &[Layer],
    known: &[Digest],
    progress: Progress<'_>,
) -> Result<bool, ImportError> {
    let fits = |layer: &Layer, known: &Digest, got| got == *known || got == layer.diff_id;
    let stated = |(layer, known): (&Layer, &Digest)| layer.blob.is_none_or(|blob| fits(layer, known, blob));
    if !layers.iter().zip(known).all(stated) {
        return Ok(false);
    }
    let total = layers.iter().map(|layer| layer.extent.size).sum();
    let mut before = 0;
    let mut tell = throttle(Stage::Hash, total, progress);
    for (layer, known) in layers.iter().zip(known) {
        let got = digest_of_packed(archive, layer, |done| tell(before + done))?;
        if !fits(layer, known, got) {
            return Ok(false);
        }
        before += layer.extent.size;
    }
    Ok(true)
}

fn read_all(
    archive: &Archive,
    number: u16,
    layer: &Layer,
    tree: &mut Tree,
    allowance: &mut Allowance,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, ImportError> {
    // An unpacked layer is its own blob: one hash serves for both.
    let twice = layer.blob.is_some_and(|blob| blob != layer.diff_id);
    let packed = Hashing { inner: archive.open(layer.extent), hash: twice.then(Sha256::new), bytes: 0 };
    let unpacked = Unpacked::new(packed).map_err(|error| broken(layer, &error))?;
    let checked = Checked { inner: unpacked, hash: Sha256::new(), allowance };
    let mut reader = tar::Reader::new(checked, false);
    let mut ignored = 0;
    tree.begin_layer(number);
    while let Some(entry) = reader.next_entry().map_err(|error| not_a_layer(number, layer, error))? {
        let applied = tree.apply(&entry);
        match applied {
            Ok(super::tree::Applied::Kept) => {}
            Ok(super::tree::Applied::Ignored) => ignored += 1,
            Err(refusal) => return Err(refused(number, &entry, refusal)),
        }
        progress(reader.get_ref().inner.packed().bytes);
    }
    let mut checked = reader.into_inner();
    io::copy(&mut checked, &mut io::sink()).map_err(|error| broken(layer, &error))?;
    let diff_id = Digest(checked.hash.finalize().into());
    let mut packed = checked.inner.into_packed();
    io::copy(&mut packed, &mut io::sink()).map_err(|error| broken(layer, &error))?;
    progress(packed.bytes);
    if packed.bytes != layer.extent.size {
        return Err(ImportError::archive(&layer.member, "the archive is cut", DAMAGED));
    }
    if let (Some(want), Some(hash)) = (layer.blob, packed.hash) {
        let got = Digest(hash.finalize().into());
        if got != want {
            return Err(digest_differs(&layer.member, &want, &got));
        }
    }
    if diff_id != layer.diff_id {
        let place = format!("{} (unpacked)", layer.member);
        return Err(digest_differs(&place, &layer.diff_id, &diff_id));
    }
    Ok(ignored)
}

/// Second reading: hands the content of each wanted file, in the order it lies in the layer, to `each`.
///
/// `wanted` is sorted by offset. The layer was checked by [`merge`] from the same open file.
pub fn extract(
    archive: &Archive,
    layer: &Layer,
    wanted: &[(Content, NodeId)],
    each: Each<'_>,
) -> Result<(), ImportError> {
    let packed = Hashing { inner: archive.open(layer.extent), hash: None, bytes: 0 };
    let mut unpacked = Unpacked::new(packed).map_err(|error| broken(layer, &error))?;
    let mut position = 0u64;
    for (content, node) in wanted {
        let gap = content
            .at
            .checked_sub(position)
            .ok_or_else(|| ImportError::archive(&layer.member, "two files share one place", DAMAGED))?;
        unpacked.skip(gap).map_err(|error| broken(layer, &error))?;
        let mut body = (&mut unpacked).take(content.size);
        each(*node, content.size, &mut body)?;
        if body.limit() != 0 {
            return Err(ImportError::archive(&layer.member, "the layer changed while it was read", DAMAGED));
        }
        position = content.at + content.size;
    }
    Ok(())
}

/// Counts what is read and hashes it, if it is to be.
struct Hashing<'a> {
    inner: ExtentReader<'a>,
    hash: Option<Sha256>,
    bytes: u64,
}

impl Read for Hashing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(out)?;
        if let (Some(hash), Some(part)) = (&mut self.hash, out.get(..got)) {
            hash.update(part);
        }
        self.bytes += got as u64;
        Ok(got)
    }
}

/// The layer's tar, however it is packed. Told by its first bytes: the media type of real images does not always tell the truth,
/// and the digest of the unpacked tar decides anyway.
enum Unpacked<'a> {
    Plain(Box<BufReader<Hashing<'a>>>),
    Gzip(Box<MultiGzDecoder<BufReader<Hashing<'a>>>>),
    Zstd(Box<ZstdFrames<BufReader<Hashing<'a>>>>),
}

impl<'a> Unpacked<'a> {
    fn new(packed: Hashing<'a>) -> io::Result<Self> {
        let mut packed = BufReader::with_capacity(64 * 1024, packed);
        let start = packed.fill_buf()?;
        Ok(if start.starts_with(&[0x1f, 0x8b]) {
            Unpacked::Gzip(Box::new(MultiGzDecoder::new(packed)))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Unpacked::Zstd(Box::new(ZstdFrames::new(packed)))
        } else {
            Unpacked::Plain(Box::new(packed))
        })
    }

    fn packed(&self) -> &Hashing<'a> {
        match self {
            Unpacked::Plain(packed) => packed.get_ref(),
            Unpacked::Gzip(gzip) => gzip.get_ref().get_ref(),
            Unpacked::Zstd(zstd) => zstd.packed.get_ref(),
        }
    }

    /// What is left of the packed bytes; what buffers hold was read and hashed already.
    fn into_packed(self) -> Hashing<'a> {
        match self {
            Unpacked::Plain(packed) => packed.into_inner(),
            Unpacked::Gzip(gzip) => gzip.into_inner().into_inner(),
            Unpacked::Zstd(zstd) => zstd.packed.into_inner(),
        }
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Unpacked::Plain(plain) => plain.read(out),
            Unpacked::Gzip(gzip) => gzip.read(out),
            Unpacked::Zstd(zstd) => zstd.read(out),
        }
    }
}

impl Input for Unpacked<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let Unpacked::Plain(plain) = self else {
            return tar::skip_by_reading(self, bytes);
        };
        let buffered = bytes.min(plain.buffer().len() as u64);
        plain.consume(usize::try_from(buffered).unwrap_or(0));
        match bytes - buffered {
            0 => Ok(()),
            rest => plain.get_mut().inner.skip(rest),
        }
    }
}

/// Hashes the unpacked bytes and takes them from the image's allowance. Everything is read: the digest covers all of it.
struct Checked<'a, 'b> {
    inner: Unpacked<'a>,
    hash: Sha256,
    allowance: &'b mut Allowance,
}

impl Read for Checked<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(out)?;
        self.allowance.0 = self.allowance.0.checked_sub(got as u64).ok_or_else(|| {
            io::Error::other(format!("it unpacks to more than {} bytes", limits::ROOTFS_BYTES_MAX))
        })?;
        self.hash.update(out.get(..got).unwrap_or_default());
        Ok(got)
    }
}

impl Input for Checked<'_, '_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        tar::skip_by_reading(self, bytes)
    }
}

/// Zstandard frames one after the other, skippable ones left out (RFC 8878 section 3.1).
struct ZstdFrames<R> {
    packed: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(packed: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(limits::ZSTD_WINDOW_BYTES_MAX);
        ZstdFrames { packed, decoder, in_frame: false }
    }

    /// Begins the next frame; false at the end.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.packed.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.packed) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => tar::skip_by_reading(&mut self.packed, u64::from(length))?,
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                if !self.begin()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.packed, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::other(error.to_string()))?;
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(out);
            }
            self.in_frame = false;
        }
    }
}

fn broken(layer: &Layer, error: &io::Error) -> ImportError {
    ImportError::archive(&layer.member, format!("does not unpack: {error}"), DAMAGED)
}

fn not_a_layer(number: u16, layer: &Layer, error: TarError) -> ImportError {
    match error {
        TarError::Read(error) => broken(layer, &error),
        other => ImportError::archive(
            &layer.member,
            format!("layer {}: {other}", u32::from(number) + 1),
            "a tar, plain or packed with gzip or zstd, is expected here",
        ),
    }
}

fn refused(number: u16, entry: &tar::Entry, refusal: Refusal) -> ImportError {
    ImportError::Layer {
        layer: usize::from(number) + 1,
        path: shown(&entry.path),
        offset: entry.at,
        rule: refusal.rule.to_string(),
        remedy: refusal.remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_unpacks_to_more_than_its_allowance_is_refused() {
        let zeros = vec![0u8; 1 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::Write::write_all(&mut gzip, &zeros).unwrap();
        let packed = gzip.finish().unwrap();
        assert!(packed.len() < 2000);
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &packed, 0).unwrap();
        let size = packed.len() as u64;
        for (allowed, fits) in [(1 << 20, true), ((1 << 20) - 1, false)] {
            let packed =
                Hashing { inner: ExtentReader::new(&file, Extent { at: 0, size }), hash: None, bytes: 0 };
            let mut allowance = Allowance(allowed);
            let mut checked = Checked {
                inner: Unpacked::new(packed).unwrap(),
                hash: Sha256::new(),
                allowance: &mut allowance,
            };
            assert_eq!(io::copy(&mut checked, &mut io::sink()).is_ok(), fits);
        }
    }
}
