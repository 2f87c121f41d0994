//! Receipts of the ledger: durable ones before an effect, notes for what was refused.
//!
//! Must hold: [`Receipts::durable`] returns Ok only when the event is durable; who gets an error does not release its
//! effect. Notes are bounded: above the bound they are dropped and counted.

use abi::ids::Instance;
use abi::ledger::{Client, Event, LedgerError, Receipt};
use abi::{limits, log};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// A connection that was not used for so long is closed.
const REST_AFTER: Duration = Duration::from_secs(10);

/// Connections to the ledger, so that events of several agents share its group commit.
#[derive(Debug)]
pub struct Receipts {
    clients: Arc<[Client]>,
    next: AtomicUsize,
    notes: SyncSender<Event>,
    notes_lost: AtomicU64,
}

impl Receipts {
    /// For the node's ledger; starts the thread that writes notes.
    pub fn of_node() -> io::Result<Receipts> {
        let (notes, queue) = sync_channel(limits::LEDGER_NOTES_WAITING_MAX);
        let note_thread = std::thread::Builder::new().name("notes".into()).stack_size(256 * 1024);
        let clients: Arc<[Client]> = (0..limits::RECEIPTS_WAITING_MAX).map(|_| Client::of_node()).collect();
        let resting = clients.clone();
        note_thread.spawn(move || write_notes(&queue, &resting))?;
        Ok(Receipts { clients, next: AtomicUsize::new(0), notes, notes_lost: AtomicU64::new(0) })
    }

    /// Appends an event, waits until it is durable, and returns its receipt. Blocks: not for an async task.
    pub fn durable(&self, event: Event) -> Result<Receipt, LedgerError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len().max(1);
        match self.clients.get(turn) {
            Some(client) => client.append(event),
            None => Err(LedgerError::Protocol("no ledger client".into())),
        }
    }

    /// Notes a denial, without waiting.
    pub fn note_denial(&self, instance: Instance, what: String, rule: String) {
        self.note(Event::NetDenied { instance, what, rule });
    }

    /// Notes an event, without waiting.
    pub fn note(&self, event: Event) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.notes.try_send(event) {
            let lost = self.notes_lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                log::error(
                    "ledger_notes_lost",
                    &[("total", &lost), ("limit", &limits::LEDGER_NOTES_WAITING_MAX)],
                );
            }
        }
    }
}

/// Writes the notes, and closes the connections that nobody uses.
fn write_notes(queue: &Receiver<Event>, clients: &[Client]) {
    let client = Client::of_node();
    let mut failed = 0u64;
    loop {
        let event = match queue.recv_timeout(REST_AFTER) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => {
                clients.iter().chain([&client]).for_each(|client| client.rest(REST_AFTER));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Err(error) = client.note(event) {
            failed += 1;
            if failed.is_power_of_two() {
                log::error("ledger_note_failed", &[("total", &failed), ("error", &error)]);
            }
        }
    }
}
