//! The client that waits for a receipt.
//!
//! Must hold: [`Client::append`] returns only after the event is durable, or with an error; a caller releases its
//! effect only on `Ok` (fail closed).

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Append, Event, Receipt};
use crate::identity::Service;
use crate::limits;
use crate::rpc::{Incoming, Request, RpcError};
use crate::wire::{Connection, WireError};

/// Why there is no receipt, and so no effect.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("ledger cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("ledger connection: {0}")]
    Wire(#[from] WireError),
    #[error("ledger refused the event: {0}")]
    Refused(RpcError),
    #[error("ledger answered what was not asked: {0}")]
    Protocol(String),
}

/// A connection to the ledger that is made when needed and remade once when it broke. Cheap to share.
#[derive(Debug)]
pub struct Client {
    path: String,
    /// With the moment of its last use.
    connection: Mutex<Option<(Connection, Instant)>>,
}

impl Client {
    /// The node's ledger.
    pub fn of_node() -> Client {
        Client::at(Service::Ctxgraph.socket_path())
    }

    /// A ledger at another socket, for tests outside a node.
    pub fn at(path: impl Into<String>) -> Client {
        Client { path: path.into(), connection: Mutex::new(None) }
    }

    /// Appends an event and waits until it is durable. At most two times [`limits::PEER_CALL_MS_MAX`].
    pub fn append(&self, event: Event) -> Result<Receipt, LedgerError> {
        self.send(Append { event, durable: true })
    }

    /// Chains an event; it becomes durable with the next batch.
    pub fn note(&self, event: Event) -> Result<Receipt, LedgerError> {
        self.send(Append { event, durable: false })
    }

    fn send(&self, append: Append) -> Result<Receipt, LedgerError> {
        let params = serde_json::to_value(&append).map_err(|e| LedgerError::Protocol(e.to_string()))?;
        let mut slot = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A kept connection may be one that a restarted ledger no longer knows: then one fresh try.
        if let Some((mut connection, _)) = slot.take()
            && let Ok(receipt) = exchange(&mut connection, params.clone())
        {
            *slot = Some((connection, Instant::now()));
            return receipt;
        }
        let mut connection = Connection::connect(&self.path)?;
        connection.set_timeout(Some(Duration::from_millis(limits::PEER_CALL_MS_MAX)))?;
        let receipt = exchange(&mut connection, params)?;
        *slot = Some((connection, Instant::now()));
        receipt
    }

    /// Closes the connection if it was not used for `idle`. One that is in use is left alone.
    pub fn rest(&self, idle: Duration) {
        if let Ok(mut slot) = self.connection.try_lock()
            && slot.as_ref().is_some_and(|(_, used)| used.elapsed() >= idle)
        {
            *slot = None;
        }
    }
}

/// Outer error: the connection is unusable. Inner error: the ledger's answer.
fn exchange(
    connection: &mut Connection,
    params: serde_json::Value,
) -> Result<Result<Receipt, LedgerError>, LedgerError> {
    connection.write_line(&Request::call(1, "ledger.append", params))?;
    let line = connection.read_line()?.ok_or(WireError::CutLine)?;
    match serde_json::from_str(&line) {
        Ok(Incoming::Response(response)) => Ok(match (response.result, response.error) {
            (Some(value), None) => {
                serde_json::from_value(value).map_err(|e| LedgerError::Protocol(e.to_string()))
            }
            (_, Some(error)) => Err(LedgerError::Refused(error)),
            (None, None) => Err(LedgerError::Protocol("neither result nor error".into())),
        }),
        _ => Err(LedgerError::Protocol(line.chars().take(200).collect())),
    }
}
