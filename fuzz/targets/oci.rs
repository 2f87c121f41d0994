//! OCI archives into the rootfs store.
//!
//! Looks for: a panic, a hang, something left behind by a refused import, an image whose disks are not what the index says, and two
//! digests for one archive. Most inputs are layers: the archive and its digests are made around them, so that the fuzzer need not
//! guess a SHA-256.

#![no_main]

#[path = "../../cage/tests/archives/mod.rs"]
#[allow(dead_code, reason = "tests of the store use all of it")]
mod archives;

use abi::manifest::RootfsRef;
use archives::{Archive, Layer, Packing};
use cage::store::{ImportError, Source, Store};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

/// More only takes longer.
const LAYERS_MAX: usize = 7;
const BLOCK: usize = 512;

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    match mode % 5 {
        // The archive itself.
        0 => import_twice(rest),
        // Packed layers of any bytes: for what unpacks them.
        1 => {
            let mut archive = Archive::of(vec![Layer::default()], Packing::Gzip);
            archive.layers[0] = [&[0x1f, 0x8b], rest].concat();
            import_twice(&archive.oci());
        }
        2 => {
            let mut archive = Archive::of(vec![Layer::default()], Packing::Zstd);
            archive.layers[0] = [&[0x28, 0xb5, 0x2f, 0xfd], rest].concat();
            import_twice(&archive.oci());
        }
        // Layers of any bytes as tar, with the checksums made right.
        3 => {
            let layers =
                rest.chunks(rest.len().div_ceil(2).next_multiple_of(BLOCK).max(BLOCK)).map(checksummed);
            import_twice(&Archive::of(layers.collect(), Packing::Plain).docker());
        }
        // Layers in short: kind, name, link, content.
        _ => import_twice(&Archive::of(told(rest), Packing::Plain).oci()),
    }
});

/// A tar whose headers are any bytes but for their magic and checksum.
fn checksummed(bytes: &[u8]) -> Layer {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + BLOCK) {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0).min(1 << 20) as usize;
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    Layer::of(bytes)
}

/// Layers of entries: a byte for the kind, one for name and link each, one for the content's length.
fn told(bytes: &[u8]) -> Vec<Layer> {
    let mut layers = vec![Layer::default()];
    for entry in bytes.chunks_exact(4) {
        let &[kind, name, link, length] = entry else { continue };
        let (name, link) = (path(name), path(link));
        if kind % 12 == 0 && layers.len() < LAYERS_MAX {
            layers.push(Layer::default());
            continue;
        }
        let Some(layer) = layers.last_mut() else { break };
        match kind % 12 {
            1 => drop(layer.raw(b'5', name.as_bytes(), b"", b"")),
            2 => drop(layer.raw(b'2', name.as_bytes(), link.as_bytes(), b"")),
            3 => drop(layer.raw(b'1', name.as_bytes(), link.as_bytes(), b"")),
            4 => drop(layer.raw(b'6', name.as_bytes(), b"", b"")),
            5 => {
                let (parent, name) = name.rsplit_once('/').unwrap_or(("", &name));
                drop(layer.raw(b'0', format!("{parent}/.wh.{name}").as_bytes(), b"", b""));
            }
            6 => drop(layer.raw(b'0', format!("{name}/.wh..wh..opq").as_bytes(), b"", b"")),
            7 => drop(layer.pax(
                &name,
                &[(["path", "linkpath", "size", "uid", "mtime"][usize::from(length % 5)], link.as_bytes())],
            )),
            kind => drop(layer.raw(b'0', name.as_bytes(), b"", &vec![kind; usize::from(length) * 700])),
        }
    }
    layers
}

/// Up to three of a few names.
fn path(byte: u8) -> String {
    const NAMES: [&str; 4] = ["a", "b", "..", "d"];
    let part = |shift: u8| NAMES[usize::from(byte >> shift & 3)];
    let parts = [part(0), part(2), part(4)];
    let path = parts[..1 + usize::from(byte >> 6).min(2)].join("/");
    if byte & 0xc0 == 0xc0 { format!("/{path}") } else { path }
}

fn import_twice(archive: &[u8]) {
    // In memory: a store fsyncs.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Store::open(dir.path()).unwrap();
    let import = |store: &Store| -> Result<_, ImportError> {
        let mut reader = archive;
        store.import(
            Source::Stream { reader: &mut reader, bytes: archive.len() as u64 },
            "x",
            &mut |_, _, _| {},
        )
    };
    let image = match import(&store) {
        Ok(image) => image,
        Err(error) => {
            assert!(error.to_string().len() < 4096);
            return assert_eq!(files(dir.path()), 0, "{error}");
        }
    };
    let (_, disks, found) = store.resolve(&RootfsRef::Digest(image.digest)).unwrap();
    assert_eq!((disks.len(), &found), (image.layers.len(), &image));
    for (disk, layer) in disks.iter().zip(&image.layers) {
        assert_eq!(std::fs::metadata(disk).unwrap().len(), layer.bytes);
    }
    // Opened again it is the same; removed, nothing is left but the names; imported again it has the same digest.
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), [image.clone()]);
    store.remove(&image.digest).unwrap();
    assert_eq!(files(dir.path()), 1);
    assert_eq!(import(&store).unwrap().digest, image.digest);
}

/// Files below a directory.
fn files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}
