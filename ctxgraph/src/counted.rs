//! So many of a kind at a time: a place is given back when it is dropped.

use abi::rpc::RpcError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of the places that `count` counts.
#[derive(Debug)]
pub struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    /// Takes a place; where `max` are taken, what `full` says.
    pub fn take(
        count: &'a AtomicUsize,
        max: usize,
        full: impl FnOnce() -> RpcError,
    ) -> Result<Counted<'a>, RpcError> {
        let place = Counted(count);
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            return Err(full());
        }
        Ok(place)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
