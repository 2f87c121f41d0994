//! nulld's events on their way to the ledger: a bounded queue and one thread that waits, so that PID 1 never does.
//!
//! Must hold: a full queue drops the newest event and counts it. Nothing nulld does is released by these receipts: they
//! record what it did. Must never: block the caller.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use abi::ledger::{Client, Event, LedgerError};
use abi::limits;

/// The caller's end. Events wait in it until the ledger is [`Queue::open`].
#[derive(Debug)]
pub struct Queue {
    sender: SyncSender<Event>,
    /// Until the thread has it.
    receiver: Option<Receiver<Event>>,
    waiting: Arc<AtomicUsize>,
    dropped: u64,
}

impl Default for Queue {
    fn default() -> Queue {
        let (sender, receiver) = sync_channel(limits::LEDGER_QUEUE_MAX);
        Queue { sender, receiver: Some(receiver), waiting: Arc::default(), dropped: 0 }
    }
}

impl Queue {
    /// The ledger is ready: starts the thread that delivers. Once; later calls do nothing.
    pub fn open(&mut self, client: Client) -> io::Result<()> {
        let Some(receiver) = self.receiver.take() else {
            return Ok(());
        };
        let counter = self.waiting.clone();
        std::thread::Builder::new()
            .name("ledger".into())
            .stack_size(64 * 1024)
            .spawn(move || deliver(&receiver, &client, &counter))?;
        Ok(())
    }

    /// Queues an event.
    pub fn note(&mut self, event: Event) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.sender.try_send(event).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped += 1;
        }
    }

    /// Whether everything queued was answered.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Events dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

fn deliver(receiver: &Receiver<Event>, client: &Client, waiting: &AtomicUsize) {
    for event in receiver {
        // The ledger may be restarting: a few tries, then the event is lost, as its absence in the ledger shows. A
        // refused event would be refused again.
        for attempt in 0..3 {
            match client.note(event.clone()) {
                Ok(_) | Err(LedgerError::Refused(_) | LedgerError::Protocol(_)) => break,
                Err(LedgerError::Unreachable(_) | LedgerError::Wire(_)) => {
                    std::thread::sleep(Duration::from_millis(200 << attempt));
                }
            }
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_without_blocking() {
        let dir = std::env::temp_dir().join(format!("nulld-ledger-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ledger.sock");
        // A ledger that takes connections into its backlog and never answers.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut queue = Queue::default();
        queue.open(Client::at(path.to_str().unwrap())).unwrap();
        let begin = std::time::Instant::now();
        for n in 0..limits::LEDGER_QUEUE_MAX as u64 + 50 {
            queue.note(Event::ServiceStarted { service: "x".into(), restarts: n });
        }
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert!(queue.take_dropped() >= 49 && queue.take_dropped() == 0);
        assert!(!queue.is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
