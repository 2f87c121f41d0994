//! Receipts of the ledger: durable ones before an effect, records of what has ended, notes for what was refused.
//!
//! Must hold: [`Receipts::durable`] returns Ok only when the event is durable; who gets an error does not release its
//! effect. Notes are bounded: above the bound they are dropped and counted. A record is never dropped for want of room: who
//! begins what will have one waits for [`Receipts::room`] first, and the writer tries until the ledger takes it.

use abi::ids::Instance;
use abi::ledger::{Client, Event, LedgerError, Receipt};
use abi::rpc::Code;
use abi::{limits, log};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;
use tokio::sync::Notify;

/// A connection that was not used for so long is closed.
const REST_AFTER: Duration = Duration::from_secs(10);
/// Pause before a record is offered again to a ledger that did not take it.
const RECORD_PAUSE: Duration = Duration::from_millis(500);

/// Connections to the ledger, so that events of several agents share its group commit.
#[derive(Debug)]
pub struct Receipts {
    clients: Arc<[Client]>,
    next: AtomicUsize,
    notes: SyncSender<Event>,
    notes_lost: AtomicU64,
    records: Sender<Event>,
    room: Arc<Room>,
}

/// Records that wait for the ledger.
#[derive(Debug, Default)]
struct Room {
    waiting: AtomicUsize,
    freed: Notify,
}

impl Receipts {
    /// For the node's ledger; starts the thread that writes notes.
    pub fn of_node() -> io::Result<Receipts> {
        let (notes, queue) = sync_channel(limits::LEDGER_NOTES_WAITING_MAX);
        let thread = |name: &str| std::thread::Builder::new().name(name.into()).stack_size(256 * 1024);
        let clients: Arc<[Client]> = (0..limits::RECEIPTS_WAITING_MAX).map(|_| Client::of_node()).collect();
        let resting = clients.clone();
        thread("notes").spawn(move || write_notes(&queue, &resting))?;
        // Its length is bounded by `room`: that many, and what runs already when the bound is reached.
        let (records, ended) = channel();
        let room = Arc::new(Room::default());
        let freed = room.clone();
        thread("records").spawn(move || write_records(&ended, &freed))?;
        let (next, notes_lost) = (AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Receipts { clients, next, notes, notes_lost, records, room })
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

    /// Waits until the ledger has taken enough of the records that wait for it. To be asked before anything begins whose end
    /// will be a record.
    pub async fn room(&self) {
        loop {
            let freed = self.room.freed.notified();
            if self.room.waiting.load(Ordering::Acquire) < limits::RECORDS_WAITING_MAX {
                return;
            }
            freed.await;
        }
    }

    /// Records the end of something, without waiting and without loss while egress lives.
    pub fn record(&self, event: Event) {
        self.room.waiting.fetch_add(1, Ordering::AcqRel);
        if self.records.send(event).is_err() {
            log::error("record_lost", &[("why", &"the thread that writes records has ended")]);
        }
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

/// Writes the records, each until the ledger has it. A ledger that took one and died before it said so gets it twice.
fn write_records(ended: &Receiver<Event>, room: &Room) {
    let client = Client::of_node();
    let mut failed = 0u64;
    loop {
        let event = match ended.recv_timeout(REST_AFTER) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => {
                client.rest(REST_AFTER);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Err(error) = client.note(event.clone()) {
            failed += 1;
            let never = is_never_taken(&error);
            if failed.is_power_of_two() || never {
                log::error("record_not_taken", &[("total", &failed), ("error", &error), ("lost", &never)]);
            }
            if never {
                break;
            }
            std::thread::sleep(RECORD_PAUSE);
        }
        room.waiting.fetch_sub(1, Ordering::AcqRel);
        room.freed.notify_waiters();
    }
}

/// Whether a ledger that works will refuse the event each time: an error of egress.
fn is_never_taken(error: &LedgerError) -> bool {
    match error {
        LedgerError::Refused(refused) => {
            matches!(
                refused.code,
                Code::INVALID_PARAMS | Code::INVALID_REQUEST | Code::UNKNOWN_METHOD | Code::DENIED
            )
        }
        _ => false,
    }
}
