//! Memory as a whole: export, import, hashes, verify.

use abi::door::{Call, Outcome};
use abi::rpc::{Code, RpcError};
use std::path::Path;
use std::sync::Arc;

use crate::bundle::transfer::Transfers;
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::notary::Notary;
use crate::scrub::Scrub;

/// What answers for memory as a whole.
#[derive(Debug)]
pub struct Whole {
    transfers: Transfers,
    scrub: Arc<Scrub>,
}

impl Whole {
    /// Checks memory.db, bounded, and goes on checking it in the background. `trust` is `[memory] trust`.
    pub fn start(
        state: &Path,
        memory: Arc<Memory>,
        ledger: Arc<Ledger>,
        notary: Result<Arc<Notary>, String>,
        trust: Vec<String>,
    ) -> Result<Whole, String> {
        let scrub = Scrub::start(state, ledger.clone()).map_err(|error| error.to_string())?;
        Ok(Whole { transfers: Transfers::new(memory, ledger, state, notary, trust), scrub })
    }

    /// The methods that are answered here.
    pub fn has(method: &str) -> bool {
        matches!(method, "memory.export" | "memory.import" | "memory.hashes" | "memory.verify")
    }

    /// Answers one of them.
    pub fn answer(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        match call.request.method.as_str() {
            "memory.export" => self.transfers.export(&mut call),
            "memory.import" => self.transfers.import(&mut call),
            "memory.hashes" => self.transfers.hashes(&call),
            "memory.verify" => self.scrub.verify(&mut call),
            other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("there is no method `{other}`"))),
        }
    }

    /// For the status line: what is known to be wrong, if anything is.
    pub fn status(&self) -> Option<String> {
        match self.scrub.damaged() {
            0 => None,
            places => Some(format!("memory.db is damaged in {places} places: nullctl memory verify")),
        }
    }

    /// Ends the background check.
    pub fn close(&self) {
        self.scrub.close();
    }
}
