//! Seeded randomness for tests: every run prints its seed, and NULLBOX_TEST_SEED repeats it.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::time::{SystemTime, UNIX_EPOCH};

/// The seed of this run.
pub fn seed() -> u64 {
    let seed =
        std::env::var("NULLBOX_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_nanos() as u64
        });
    println!("NULLBOX_TEST_SEED={seed}");
    seed
}

/// Checks a property on `cases` values; shrinks what fails.
pub fn property<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, rng)
        .run(&strategy, |value| {
            check(value);
            Ok::<(), TestCaseError>(())
        })
        .unwrap();
}

/// A small generator (xorshift64*), for traces.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new() -> Random {
        Random(seed() | 1)
    }

    /// From a number that this run made.
    pub fn from(number: u64) -> Random {
        Random(number | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}
