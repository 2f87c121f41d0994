//! `net.fetch` and `net.expose`: what cage asks for a life.
//!
//! Must never: do either for anybody but root (cage).

use abi::control::{NetExpose, NetFetch, Output, Stream};
use abi::door::{Call, Outcome};
use abi::identity::Caller;
use abi::ids::Instance;
use abi::limits;
use abi::page::PageUrl;
use abi::rpc::{Code, RpcError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

use super::{Egress, to_value};
use crate::agent::{Agent, unix_ms_now};
use crate::broker::{self, Bounds, FetchError};

/// Bytes of one notification: they fit a line as base64.
const OUTPUT_BYTES: usize = 16 * 1024;
/// Pieces of a page that wait for cage.
const PIECES_MAX: usize = 4;

impl Egress {
    pub(super) fn expose(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        only_cage(call)?;
        let NetExpose { instance, seen } = call.request.params()?;
        let exposed = self.life(&instance)?.expose(seen).map_err(|error| {
            RpcError::new(Code::FAILED, error)
                .explained("what was seen bounds every connection before more is shown", "try again")
        })?;
        Ok(Outcome::Result(to_value(&exposed)?))
    }

    pub(super) fn fetch(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        only_cage(&call)?;
        let NetFetch { instance, url, bytes_max, wall_ms_max } = call.request.params()?;
        let page: PageUrl = url.parse().map_err(|error| RpcError::new(Code::INVALID_PARAMS, error))?;
        let agent = self.life(&instance)?;
        let bounds = Bounds {
            bytes: bytes_max.min(limits::TOOL_RESULT_BYTES_MAX),
            wall: Duration::from_millis(wall_ms_max.min(limits::TOOL_RUN_MS_MAX)),
        };
        let (out, mut pieces) = mpsc::channel::<Bytes>(PIECES_MAX);
        let (done, ended) = oneshot::channel();
        self.workers.own().spawn(async move {
            // Nobody waits any more where it cannot be sent.
            let _ = done.send(broker::fetch(agent, page, bounds, out).await);
        });
        let mut seq = 0;
        while let Some(piece) = pieces.blocking_recv() {
            for part in piece.chunks(OUTPUT_BYTES) {
                let data = STANDARD.encode(part);
                let output = Output { stream: Stream::Stdout, seq, unix_ms: unix_ms_now(), data };
                seq += 1;
                if call.notify("output", to_value(&output)?).is_err() {
                    return Ok(Outcome::Answered); // with the pieces' receiver the fetch ends
                }
            }
        }
        let fetched =
            ended.blocking_recv().map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
        Ok(Outcome::Result(to_value(&fetched.map_err(in_rpc)?)?))
    }

    fn life(&self, instance: &Instance) -> Result<Arc<Agent>, RpcError> {
        self.agents().get(instance).cloned().ok_or_else(|| {
            RpcError::new(Code::NOT_FOUND, format!("`{instance}` has no network")).explained(
                "a name is reached by who has a network",
                "add the name to capabilities.network.allow",
            )
        })
    }
}

fn only_cage(call: &Call<'_>) -> Result<(), RpcError> {
    if *call.caller == (Caller::Local { uid: 0 }) {
        return Ok(());
    }
    Err(RpcError::new(Code::DENIED, format!("{} may not speak for a life", call.caller))
        .explained("only cage does", "there is no grant for it"))
}

fn in_rpc(error: FetchError) -> RpcError {
    match error {
        FetchError::Refused(refused) => {
            RpcError::new(Code::DENIED, refused.because).explained(refused.rule, refused.remedy)
        }
        FetchError::Failed(why) => RpcError::new(Code::UNAVAILABLE, why),
    }
}
