//! A rate with room for a burst.

use std::time::Instant;

/// A token bucket that fills `per_second` and holds twice as much.
#[derive(Debug)]
pub struct Bucket {
    per_second: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Bucket {
        Bucket { per_second, tokens: f64::from(per_second) * 2.0, filled: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(self.per_second);
        self.filled = now;
        self.tokens = (self.tokens + gained).min(f64::from(self.per_second) * 2.0);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_holds_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        assert_eq!((0..1000).filter(|_| bucket.take(start)).count(), 200);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..1000).filter(|_| bucket.take(later)).count(), 50);
    }
}
