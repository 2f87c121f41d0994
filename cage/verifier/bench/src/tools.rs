//! What stands around a decision: a step of a task, a frame of the ledger, a receipt, a token.

use abi::authority::Rules;
use abi::identity::Service;
use abi::ids::Digest;
use abi::ledger::Event;
use ledger::chain::Chain;
use ledger::frame::{SegmentHeader, Source};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::time::Duration;
use verdict::decide::{Ruling, decide};
use verdict::step::{Actor, Event as StepEvent, Life, State, Terms, What, step};
use verdict::token::{Ed25519, Key, Signature, Token};

use crate::shape::{CASES, Own, ready};
use crate::{Figure, Size, Times, figure, measure};

pub const DECISION_AND_RECEIPT: &str = "decision with its receipt, no fsync";

struct Ring;

impl Ed25519 for Ring {
    fn verify(&self, key: &Key, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
    }
    fn public(&self, seed: &Key) -> Option<Key> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok()?.public_key().as_ref().try_into().ok()
    }
    fn sign(&self, seed: &Key, message: &[u8]) -> Option<Signature> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok()?.sign(message).as_ref().try_into().ok()
    }
}

pub fn timed(what: &str, time: Duration, one: impl FnMut(usize)) -> Figure {
    let mut times = Times(Vec::new());
    measure(&mut times, time, one);
    figure(what, times)
}

/// The event that the desk writes of a call.
fn event(ruling: &Ruling<'_>, number: usize, target: &str) -> Result<Event, String> {
    let call = ruling.call();
    Ok(Event::ToolCalled {
        instance: "researcher.3".parse().map_err(|error| format!("{error}"))?,
        call: number as u32,
        tool: call.tool.clone(),
        operation: Some(call.operation),
        target: target.to_owned(),
        arguments: call.arguments,
        verdict: ruling.verdict(),
        rule: ruling.rule().to_owned(),
        exposure: ruling.exposure(),
        labels: ruling.labels(),
        approval: None,
    })
}

fn rule(own: &Own, number: usize) -> Ruling<'_> {
    decide(&own.authority, &own.policy, &own.situation, &own.calls[number % CASES.len()])
}

/// A candidate that works is heard of.
fn steps(time: Duration) -> Figure {
    let life = Life { candidate: 1, number: 0 };
    let terms = Terms { base: Digest([1; 32]), candidates: 1, attempts: 3, is_scored: false };
    let told = |what| StepEvent { actor: Actor::Cage, now_ms: 0, what };
    let (state, _) = step(State::new(terms), told(What::Accepted));
    let (mut state, _) = step(state, told(What::Started(life)));
    timed("step of a task", time, |number| {
        let event = StepEvent { actor: Actor::Agent(life), now_ms: number as u64, what: What::Heard };
        let (next, actions) = step(state.clone(), event);
        black_box(actions);
        state = next;
    })
}

fn frames(own: &Own, time: Duration) -> Result<(Figure, usize), String> {
    let body =
        serde_json::to_vec(&event(&rule(own, 0), 0, CASES[0].target)?).map_err(|error| error.to_string())?;
    let mut chain = Chain::begin(&SegmentHeader::genesis([3; 32])).map_err(|error| error.to_string())?;
    let mut out = Vec::with_capacity(1 << 16);
    chain.append(0, 0, Source::Service(Service::Cage), &body, &mut out);
    let bytes = out.len();
    let figure = timed("frame of the ledger", time, |number| {
        out.clear();
        black_box(chain.append(number as u64 + 1, 0, Source::Service(Service::Cage), &body, &mut out));
    });
    Ok((figure, bytes))
}

/// As ctxgraph appends: written as JSON, chained, and one write(2) to the segment, on this machine's file system. What it adds is a lock, and a
/// thread that syncs behind (`make bench-ctxgraph`).
fn receipts(own: &Own, time: Duration) -> Result<Figure, String> {
    let told = |error: std::io::Error| error.to_string();
    let place = tempfile::tempdir().map_err(told)?;
    let mut segment = File::create(place.path().join("segment")).map_err(told)?;
    let mut chain = Chain::begin(&SegmentHeader::genesis([3; 32])).map_err(|error| error.to_string())?;
    let (mut out, mut failed) = (Vec::with_capacity(1 << 16), None);
    let mut append = |number: usize| -> Result<(), String> {
        let ruling = rule(own, number);
        let event = event(&ruling, number, CASES[number % CASES.len()].target)?;
        let body = serde_json::to_vec(&event).map_err(|error| error.to_string())?;
        out.clear();
        chain.append(number as u64, 0, Source::Service(Service::Cage), &body, &mut out);
        segment.write_all(&out).map_err(told)
    };
    let figure = timed(DECISION_AND_RECEIPT, time, |number| failed = failed.take().or(append(number).err()));
    failed.map_or(Ok(figure), Err)
}

fn tokens(own: &Own, time: Duration) -> Result<(Figure, usize), String> {
    let (node, rules) = ([9; 32], &own.authority.rules()[0]);
    let less = Rules { until_unix_ms: Some(u64::MAX - 1), ..rules.clone() };
    let told = |error: verdict::token::TokenError| error.to_string();
    let life = "researcher.3".parse().map_err(|error| format!("{error}"))?;
    let token = Token::issue(&life, rules.clone(), |message| Ring.sign(&node, message), [1; 32], &Ring)
        .and_then(|token| token.attenuate(less.clone(), [2; 32], &Ring))
        .and_then(|token| token.attenuate(less, [3; 32], &Ring))
        .map_err(told)?;
    let key = Ring.public(&node).ok_or("no key")?;
    let bytes = token.to_bytes();
    let check = || Token::from_bytes(&bytes).and_then(|token| token.check(&key, 0, &Ring));
    check().map_err(told)?;
    let ours = timed("token of 3 blocks, checked", time, |_| {
        black_box(check().is_ok());
    });
    Ok((ours, bytes.len()))
}

/// What the kernel takes of a receipt: as many bytes, written by themselves. No receipt is faster on this file system.
fn writes(bytes: usize, time: Duration) -> Result<Figure, String> {
    let mut file = tempfile::tempfile().map_err(|error| error.to_string())?;
    let (frame, mut failed) = (vec![7; bytes], None);
    let figure = timed("write(2) of a receipt's bytes", time, |_| {
        failed = failed.take().or(file.write_all(&frame).err())
    });
    failed.map_or(Ok(figure), |error: std::io::Error| Err(error.to_string()))
}

/// All of them, and what they take.
pub fn all(time: Duration) -> Result<(Vec<Figure>, Vec<Size>), String> {
    let own = ready()?;
    let (frame, frame_bytes) = frames(&own, time)?;
    let (token, token_bytes) = tokens(&own, time)?;
    let figures = vec![steps(time), frame, writes(frame_bytes, time)?, receipts(&own, time)?, token];
    let sizes = vec![
        ("a ruling", size_of::<Ruling<'_>>()),
        ("a call's receipt in the ledger", frame_bytes),
        ("token of 3 blocks", token_bytes),
    ];
    Ok((figures, sizes))
}
