//! Ends of connections in the ledger, also of those whose receipt became durable while nobody waited for it any more.
//!
//! Must hold: a receipt of a connection has its end in the ledger, also when the connection was cut while the ledger wrote.

use abi::control::ConnectionRecord;
use abi::ledger::Event;
use std::sync::Arc;

use crate::agent::{Node, unix_ms_now};
use crate::records::Item;

impl Node {
    /// Records an ended connection, in the ledger and for followers.
    pub fn ended(&self, record: ConnectionRecord) {
        self.records.push(Item::Connection(record.clone()));
        let ConnectionRecord {
            unix_ms: _,
            instance,
            name,
            port,
            address,
            bytes_out,
            bytes_in,
            duration_ms,
            rule,
            end,
            receipt,
        } = record;
        self.receipts.record(Event::NetEnded {
            instance,
            name,
            port,
            address,
            bytes_out,
            bytes_in,
            duration_ms,
            rule,
            end,
            receipt,
        });
    }
}

/// A receipt on its way to who asked for it. Dropped before that, its connection is recorded as one that came to nothing.
#[derive(Debug)]
pub struct Unclaimed {
    node: Arc<Node>,
    event: Option<Event>,
    receipt: u64,
}

impl Unclaimed {
    /// A receipt at this place of the ledger.
    pub fn new(node: Arc<Node>, event: Event, receipt: u64) -> Unclaimed {
        Unclaimed { node, event: Some(event), receipt }
    }

    /// From here on its end is the caller's.
    pub fn claim(mut self) -> u64 {
        self.event = None;
        self.receipt
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some(Event::NetConnected { instance, name, port, address, rule }) = self.event.take() else {
            return; // claimed, or without a record of its end
        };
        self.node.ended(ConnectionRecord {
            unix_ms: unix_ms_now(),
            instance,
            name,
            port,
            address,
            bytes_out: 0,
            bytes_in: 0,
            duration_ms: 0,
            rule,
            end: "failed".into(),
            receipt: self.receipt,
        });
    }
}
