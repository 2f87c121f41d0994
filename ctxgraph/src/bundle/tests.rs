//! Bundles, good and altered, against real stores.

use super::*;
use crate::testing::{Random, property};
use abi::memory::{LABEL_NODE, Link};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key() -> Signer {
    Signer::from_seed(&[1; 32]).unwrap()
}

fn item(number: u64, content: Content) -> Item {
    let mut labels = BTreeMap::from([(LABEL_NODE.to_owned(), "0123456789abcdef".to_owned())]);
    let text = match &content {
        Content::Whole { value, vector } => {
            if let Some(numbers) = vector {
                labels.insert(LABEL_VECTOR.into(), numbers.digest().to_string());
            }
            value.clone()
        }
        Content::Forgotten(_) => "\"gone\"".into(),
    };
    let header = Header {
        agent: "researcher".parse().unwrap(),
        key: format!("notes/\"{number}\""),
        parent: (number > 1).then(|| sha256(b"parent")),
        seq: number,
        unix_ms: 1_700_000_000_000 + number,
        labels,
        links: vec![Link { kind: "about".into(), to: sha256(b"other") }],
        value: sha256(text.as_bytes()),
    };
    Item { hash: header.hash().unwrap(), header, content }
}

fn vector(numbers: &[f32]) -> Option<Vector> {
    Some(Vector::new(numbers).unwrap())
}

fn some() -> Vec<Item> {
    let whole = |value: &str, vector| Content::Whole { value: value.into(), vector };
    vec![
        item(0, whole("{\"a\":1,\"é\":null}", None)),
        item(1, whole("null", vector(&[0.5, -1.0, 3.25]))),
        item(2, Content::Forgotten("its time to live is over".into())),
    ]
}

fn written(items: &[Item], key: &Signer) -> (Vec<u8>, Written) {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &[7; 32]).unwrap();
    for item in items {
        let bytes;
        let held = match &item.content {
            Content::Whole { value, vector: numbers } => {
                bytes = numbers.as_ref().map(Vector::bytes);
                Held::Value(value, bytes.as_deref())
            }
            Content::Forgotten(why) => Held::Forgotten(why),
        };
        writer.entry(&item.hash, &item.header.text().unwrap(), held).unwrap();
    }
    let done = writer.finish(key).unwrap();
    (bytes, done)
}

fn read(bytes: &[u8]) -> Result<(Vec<Item>, PublicKey), BundleError> {
    let mut reader = Reader::new(bytes)?;
    let mut items = Vec::new();
    while let Some(item) = reader.item()? {
        items.push(item);
    }
    Ok((items, reader.signer().unwrap()))
}

#[test]
fn a_bundle_reads_back_and_names_its_signer() {
    let key = key();
    let (bytes, done) = written(&some(), &key);
    assert_eq!((done.entries, done.bytes, done.digest), (3, bytes.len() as u64, sha256(&bytes)));
    assert_eq!(read(&bytes).unwrap(), (some(), key.public()));
    // The same entries of the same node are the same bytes: two syncs at once make one object.
    assert_eq!(written(&some(), &key).0, bytes);
}

#[test]
fn every_flipped_byte_and_every_cut_is_refused() {
    let (bytes, _) = written(&some(), &key());
    for place in 0..bytes.len() {
        assert!(read(&bytes[..place]).is_err(), "cut at {place}");
        for bit in [1, 4, 32] {
            let mut changed = bytes.clone();
            changed[place] ^= bit;
            assert!(read(&changed).is_err(), "bit {bit} of byte {place}");
        }
    }
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for (what, order) in [("reordered", [0, 2, 1, 3, 4]), ("repeated", [0, 1, 1, 3, 4])] {
        let changed: Vec<u8> = order.iter().flat_map(|line| lines[*line].to_vec()).collect();
        assert!(matches!(read(&changed), Err(BundleError::Signature(_))), "{what}");
    }
    assert!(read(&[bytes.as_slice(), b"\n"].concat()).is_err());
}

#[test]
fn what_is_signed_and_wrong_all_the_same_is_refused_by_its_line() {
    let key = key();
    let refused = |change: &dyn Fn(&mut Item)| {
        let mut items = some();
        change(&mut items[1]);
        let error = read(&written(&items, &key).0).unwrap_err();
        assert!(matches!(error, BundleError::Line(3, _)), "{error}");
        error.to_string()
    };
    let again = |item: &mut Item| item.hash = item.header.hash().unwrap();
    assert!(refused(&|item| item.hash = sha256(b"x")).contains("hash"));
    assert!(refused(&|item| item.header.seq = 9).contains("hash"));
    assert!(
        refused(
            &|item| item.content = Content::Whole { value: "1".into(), vector: vector(&[0.5, -1.0, 3.25]) }
        )
        .contains("another value")
    );
    assert!(
        refused(&|item| item.content = Content::Whole { value: "null".into(), vector: vector(&[0.5]) })
            .contains("vector")
    );
    assert!(
        refused(&|item| item.content = Content::Whole { value: "null".into(), vector: None })
            .contains("vector")
    );
    for (word, change) in [
        ("2^48", (|item: &mut Item| item.header.seq = (1 << 48) + 1) as fn(&mut Item)),
        ("2^52", |item| item.header.unix_ms = 1 << 52),
        ("key", |item| item.header.key = "a\nb".into()),
        ("key", |item| item.header.key = String::new()),
        ("sorted", |item| {
            item.header.links = vec![item.header.links[0].clone(), item.header.links[0].clone()]
        }),
        ("labels", |item| {
            item.header.labels.extend((0..99).map(|n| (format!("l{n}"), String::new())));
        }),
        ("256", |item| {
            item.header.labels.insert("l".into(), "x".repeat(257));
        }),
    ] {
        let why = refused(&|item| {
            change(item);
            again(item);
        });
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn a_line_without_an_end_costs_no_more_than_a_line() {
    let (bytes, _) = written(&some(), &key());
    let endless = bytes.chain(io::repeat(b'x'));
    let error = read_all(io::BufReader::new(endless)).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
    let error = read_all(io::BufReader::new(io::repeat(b'x'))).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

fn read_all(input: impl BufRead) -> Result<(), BundleError> {
    let mut reader = Reader::new(input)?;
    while reader.item()?.is_some() {}
    Ok(())
}

#[test]
fn any_bytes_are_refused_without_harm() {
    property(256, prop::collection::vec(any::<u8>(), 0..400), |bytes| {
        assert!(read(&bytes).is_err());
    });
    let mut random = Random::new();
    let (bytes, _) = written(&some(), &key());
    for _ in 0..500 {
        let (mut changed, at) = (bytes.clone(), random.below(bytes.len() as u64) as usize);
        changed
            .splice(at..at, [b"{", b"\"", b"[", b"\n", b"0", b",", b"}"][random.below(7) as usize].to_vec());
        assert!(read(&changed).is_err(), "at {at}");
    }
}
