//! The threads that agents' tasks run on.
//!
//! Must hold: all tasks of an agent run on one thread. While it moves bytes, those that arrive meanwhile wake nobody; with threads that
//! share their work another one woke for nearly each arrival (docs/egress.md). An agent that keeps its thread busy leaves the other
//! threads' agents theirs.

use abi::limits;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Handle};

/// Threads with a runtime each.
#[derive(Debug)]
pub struct Workers {
    first: Handle,
    others: Vec<Handle>,
    agents: AtomicUsize,
}

impl Workers {
    /// Starts so many threads, one at least.
    pub fn start(count: usize) -> io::Result<Workers> {
        let others = (1..count).map(|_| start()).collect::<io::Result<_>>()?;
        Ok(Workers { first: start()?, others, agents: AtomicUsize::new(0) })
    }

    /// Where no agent's tasks run: the node's own questions.
    pub fn own(&self) -> &Handle {
        &self.first
    }

    /// The thread for one agent more.
    pub fn next(&self) -> &Handle {
        let turn = self.agents.fetch_add(1, Ordering::Relaxed) % (self.others.len() + 1);
        turn.checked_sub(1).and_then(|other| self.others.get(other)).unwrap_or(&self.first)
    }
}

fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(limits::RECEIPTS_WAITING_MAX)
        .thread_stack_size(256 * 1024)
        .enable_io()
        .enable_time()
        .build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("worker".into()).stack_size(1024 * 1024).spawn(run)?;
    Ok(handle)
}
