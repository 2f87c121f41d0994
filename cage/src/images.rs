//! `image.inspect`, `image.remove` and `image.prune`.

use abi::door::{Call, Outcome};
use abi::rpc::{Code, RpcError};
use std::sync::Arc;

use crate::agents::Cage;

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let _ = cage;
    Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{}`", call.request.method)))
}
