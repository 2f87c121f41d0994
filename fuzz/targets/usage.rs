//! What a host's answer says it used.
//!
//! Looks for: a panic, a result that depends on how the bytes came in pieces, a call that is settled above what it had reserved, and
//! one that is settled although its answer did not end.

#![no_main]

use abi::network::{Api, Price};
use egress::budget::{Plan, Usage, plan};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const OUTPUT_MAX: u64 = 1000;

/// A request to each API.
static PLANS: LazyLock<[Plan; 4]> = LazyLock::new(|| {
    [
        (Api::Openai, "/v1/chat/completions", r#"{"model":"m","max_completion_tokens":1000,"messages":[]}"#),
        (Api::Openai, "/v1/responses", r#"{"model":"m","max_output_tokens":1000,"input":"x"}"#),
        (Api::Openai, "/v1/embeddings", r#"{"model":"m","input":"x"}"#),
        (Api::Anthropic, "/v1/messages", r#"{"model":"m","max_tokens":1000,"messages":[]}"#),
    ]
    .map(|(api, path, body)| {
        let price = Price {
            input: 3,
            cache_read: 1,
            cache_write: 4,
            output: 15,
            input_tokens_max: 10_000,
            output_tokens_max: OUTPUT_MAX,
        };
        let prices = BTreeMap::from([("m".to_owned(), price)]);
        plan(api, "POST", path, body.as_bytes().to_vec(), &prices, true).expect("a plan")
    })
});

fuzz_target!(|input: &[u8]| {
    let [mode, piece, bytes @ ..] = input else { return };
    let plan = &PLANS[usize::from(mode & 3)];
    let kind = if mode & 4 == 0 { "text/event-stream" } else { "application/json" };
    let status = if mode & 8 == 0 { 200 } else { 429 };
    let read = |size: usize| {
        let mut usage = Usage::of(plan, status, Some(kind));
        // Above the bound it stays above it: the connection is cut at once.
        let fits = bytes.chunks(size.max(1)).all(|piece| usage.push(piece).is_ok());
        (fits, usage)
    };
    let (whole, pieces) = (read(bytes.len()), read(usize::from(*piece)));
    assert_eq!(whole.0, pieces.0, "in pieces of {piece}");
    if !whole.0 {
        return;
    }
    assert_eq!(whole.1.seen(), pieces.1.seen());
    let ended = mode & 16 == 0;
    let (settled, again) = (whole.1.finish(ended), pieces.1.finish(ended));
    assert_eq!(settled, again, "in pieces of {piece}");
    if let Some(spent) = settled {
        assert!(spent.output_tokens <= plan.wanted.output_tokens);
        assert!(spent.input_tokens.saturating_add(spent.cache_tokens) <= plan.wanted.input_tokens.saturating_add(plan.wanted.cache_tokens));
        assert!(spent.micro_dollars <= plan.wanted.micro_dollars, "{spent:?} of {:?}", plan.wanted);
    }
});
