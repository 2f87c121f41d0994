//! A small ledger in memory, written with the same encoders as the node's.

#![allow(dead_code, reason = "each test file uses its part")]

use abi::ids::Digest;
use ledger::chain::Chain;
use ledger::checkpoint::Checkpoint;
use ledger::export::Place;
use ledger::frame::{self, Draft, SegmentHeader, Source};
use ledger::keys::Signer;

/// How many events each segment has, and what was done to them.
#[derive(Clone)]
pub struct Book {
    id: u8,
    segments: Vec<u64>,
    /// Events from this one on are others.
    rewritten: Option<u64>,
}

impl Book {
    /// A ledger with so many events in each segment.
    pub fn new(id: u8, segments: &[u64]) -> Book {
        Book { id, segments: segments.to_vec(), rewritten: None }
    }

    /// Its first events. A segment without events is there only if it is the first.
    pub fn cut(&self, size: u64) -> Book {
        let mut left = size;
        let taken = self.segments.iter().map(|events| {
            let taken = left.min(*events);
            left -= taken;
            taken
        });
        let mut segments: Vec<_> = taken.collect();
        while segments.len() > 1 && segments.last() == Some(&0) {
            segments.pop();
        }
        Book { segments, ..self.clone() }
    }

    /// The same with other events from one on.
    pub fn rewritten(&self, from: u64) -> Book {
        Book { rewritten: Some(from), ..self.clone() }
    }

    fn build(&self) -> (Vec<Vec<u8>>, Chain) {
        let header = SegmentHeader::genesis([self.id; 32]);
        let mut chain = Chain::begin(&header).unwrap();
        let mut pieces = Vec::new();
        let mut batch = 0;
        for (number, events) in self.segments.iter().enumerate() {
            let header = chain.next_header();
            if number > 0 {
                chain.go_on(&header).unwrap();
            }
            pieces.push(header.encode());
            for nth in 0..*events {
                let seq = chain.seq();
                if nth == 0 || seq.is_multiple_of(3) {
                    batch = seq;
                }
                let salt = if self.rewritten.is_some_and(|from| seq >= from) { 1 } else { 0 };
                let body = format!("{{\"by\":\"n{seq}\",\"event\":\"call_made\",\"method\":\"m{salt}\"}}");
                let draft = Draft {
                    seq,
                    batch,
                    unix_ms: 1_700_000_000_000 + seq,
                    source: Source::Root,
                    previous: chain.before(),
                    body: body.as_bytes(),
                };
                let mut bytes = Vec::new();
                draft.encode(&mut bytes);
                chain.push(&frame::decode(&bytes).unwrap()).unwrap();
                pieces.push(bytes);
            }
        }
        (pieces, chain)
    }

    /// Its segment headers and frames, in order.
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        self.build().0
    }

    /// Digests of its frames.
    pub fn digests(&self) -> Vec<Digest> {
        self.pieces().iter().filter_map(|piece| Some(frame::decode(piece).ok()?.digest)).collect()
    }

    pub fn checkpoint(&self) -> Checkpoint {
        let (_, chain) = self.build();
        Checkpoint {
            ledger_id: [self.id; 32],
            size: chain.seq(),
            root: chain.tree().root(),
            head: chain.head().unwrap_or(Digest([0; 32])),
            unix_ms: 1_700_000_001_000,
        }
    }

    pub fn export(&self, signer: &Signer) -> Vec<u8> {
        [ledger::export::head(&self.checkpoint(), signer).into_bytes(), self.pieces().concat()].concat()
    }

    /// Where each piece of its export begins, the first line and the end among them.
    pub fn places(&self, export: &[u8]) -> Vec<Place> {
        let pieces = self.pieces();
        let mut offset = (export.len() - pieces.concat().len()) as u64;
        let mut places = vec![Place::default()];
        let mut seq = 0;
        for piece in pieces {
            places.push(Place { offset, seq, ..Place::default() });
            offset += piece.len() as u64;
            seq += u64::from(frame::decode(&piece).is_ok());
        }
        places.push(Place { offset, seq, ..Place::default() });
        places
    }
}
