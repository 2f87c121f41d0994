//! Durable writes through agents' sockets of the real service.

use crate::node::{self, Node};
use abi::limits::MEMORY_CONNECTIONS_PER_AGENT_MAX;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// A value as an agent may write it: about 150 bytes.
pub fn value(number: u64) -> Value {
    json!({ "note": format!("{}; number {number}", text(number, 12)), "confidence": number % 100 })
}

/// Words out of a thousand, by a number.
pub fn text(number: u64, words: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        format!("word{:03}", state.wrapping_mul(0x2545_f491_4f6c_dd1d) % 1000)
    };
    (0..words).map(word).collect::<Vec<_>>().join(" ")
}

/// Runs as many threads as asked for, each with what `open` makes for it, until the time is over; returns how often all of them
/// together finished `work`, in a second.
pub fn rate<T>(
    threads: usize,
    time: Duration,
    open: impl Fn(usize) -> T + Sync,
    work: impl Fn(&mut T, usize, u64) + Sync,
) -> f64 {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let (open, work, barrier) = (&open, &work, &barrier);
        let run = move |thread| {
            let mut own = open(thread);
            barrier.wait();
            let begun = Instant::now();
            let mut count = 0u64;
            while begun.elapsed() < time {
                work(&mut own, thread, count);
                count += 1;
            }
            count as f64 / begun.elapsed().as_secs_f64()
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a writer")).sum()
    })
}

/// `memory.write` a second, each acknowledged when it and its receipt are durable.
pub fn service(directory: &Path, writers: usize, time: Duration) -> f64 {
    let node = Node::start(directory);
    let agents = writers.div_ceil(MEMORY_CONNECTIONS_PER_AGENT_MAX);
    let leases: Vec<_> = (0..agents).map(|n| node.attach(&format!("agent-{n}.1"), directory)).collect();
    let rate = rate(
        writers,
        time,
        |writer| node::agent(&leases[writer % agents].1),
        |connection, writer, number| {
            let params = json!({ "key": format!("notes/{writer}/{number}"), "value": value(number) });
            node::call(connection, "memory.write", params).expect("a write");
        },
    );
    node.stop();
    rate
}
