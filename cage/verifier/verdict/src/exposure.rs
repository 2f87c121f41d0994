//! Exposure: what a life has seen, what it wrote, and what each result carries.
//!
//! Must hold: what was seen and written only grows. A result that is not remembered carries all that any result could carry.

use abi::exposure::Exposure;
use abi::limits;
use alloc::collections::BTreeMap;

/// All that a value can carry.
pub const EVERYTHING: Exposure = Exposure::PRIVATE_DATA.and(Exposure::UNTRUSTED_CONTENT);

/// The ratchet of one life.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exposed {
    seen: Exposure,
    written: Exposure,
    values: BTreeMap<u32, Exposure>,
}

impl Exposed {
    /// A life that begins with something: a kept workspace, a memory, a parent.
    pub fn beginning(seen: Exposure, written: Exposure) -> Exposed {
        Exposed { seen, written, values: BTreeMap::new() }
    }

    /// What the agent has been shown.
    pub fn seen(&self) -> Exposure {
        self.seen
    }

    /// What flowed into files.
    pub fn written(&self) -> Exposure {
        self.written
    }

    /// It is shown something. Says whether that is more than before.
    #[must_use = "what rises is told to egress before the result goes out"]
    pub fn see(&mut self, labels: Exposure) -> bool {
        let before = self.seen;
        self.seen = self.seen.and(labels);
        self.seen != before
    }

    /// A tool writes, or runs something that may: what was seen and what the call took by reference goes into files.
    pub fn write(&mut self, flows: Exposure) {
        self.written = self.written.and(self.seen).and(flows);
    }

    /// A result is kept under a number. A number that was there keeps what it carried, too; the oldest goes first.
    pub fn keep(&mut self, value: u32, labels: Exposure) {
        let kept = self.values.entry(value).or_default();
        *kept = kept.and(labels);
        if self.values.len() > limits::TOOL_VALUES_MAX {
            self.values.pop_first();
        }
    }

    /// What a result carries.
    pub fn of(&self, value: u32) -> Exposure {
        self.values.get(&value).copied().unwrap_or(EVERYTHING)
    }

    /// What several results carry together.
    pub fn flows(&self, values: impl IntoIterator<Item = u32>) -> Exposure {
        values.into_iter().fold(Exposure::NONE, |all, value| all.and(self.of(value)))
    }
}
