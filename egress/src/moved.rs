//! When bytes of a connection last moved, and when none did for too long.

use abi::limits;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// When bytes last moved, in either direction.
#[derive(Debug)]
pub struct Moved {
    start: Instant,
    millis: AtomicU64,
}

impl Moved {
    /// As if some just had.
    pub fn begin() -> Moved {
        Moved { start: Instant::now(), millis: AtomicU64::new(0) }
    }

    /// Bytes move now.
    pub fn now(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// Ends when nothing has moved for too long. One timer for both directions, which no byte has to touch.
    pub async fn idle(&self) {
        loop {
            let idle = self.millis.load(Ordering::Relaxed).saturating_add(limits::PROXY_IDLE_MS_MAX);
            let deadline = self.start + Duration::from_millis(idle);
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}
