//! What raises an agent's exposure is told to cage, on the connection of its lease, before it is shown to the agent.
//!
//! Must hold: [`Teller::tell`] returns `Ok` only when cage has noted that very exposure.

use abi::control::{MemoryExposure, MemoryNoted};
use abi::exposure::Exposure;
use abi::limits;
use abi::rpc::Request;
use abi::wire::{Connection, LineWriter};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One lease's line to cage.
#[derive(Debug)]
pub struct Teller {
    writer: Mutex<LineWriter>,
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    told: u64,
    noted: u64,
    ended: bool,
}

impl Teller {
    /// Speaks on the connection of a lease, whose answers somebody hands to [`Teller::hear`].
    pub fn new(lease: &Connection) -> io::Result<Teller> {
        lease.set_timeout(Some(Duration::from_millis(limits::MEMORY_NOTED_MS_MAX)))?;
        Ok(Teller { writer: Mutex::new(lease.writer()?), state: Mutex::default(), more: Condvar::new() })
    }

    /// Tells of an exposure, and waits until it was noted. The error says why it was not.
    pub fn tell(&self, to: Exposure) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_millis(limits::MEMORY_NOTED_MS_MAX);
        let number = {
            let mut state = self.state();
            state.told += 1;
            state.told
        };
        let params =
            serde_json::to_value(MemoryExposure { number, to }).map_err(|error| error.to_string())?;
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_line(&Request::notification("exposure", params))
            .map_err(|error| error.to_string())?;
        let mut state = self.state();
        while state.noted < number {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err("cage did not note it".into());
            }
            state = self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// A line of cage. False: it is none that belongs here.
    pub fn hear(&self, line: &str) -> bool {
        let noted = Request::parse(line).ok().filter(|note| note.id.is_none() && note.method == "noted");
        let Some(Ok(MemoryNoted { number })) = noted.map(|note| note.params()) else { return false };
        let mut state = self.state();
        // Of what was not told nothing can have been noted.
        if number > state.told {
            return false;
        }
        state.noted = state.noted.max(number);
        self.more.notify_all();
        true
    }

    /// The lease is over: nobody notes anything any more.
    pub fn end(&self) {
        self.state().ended = true;
        self.more.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_what_was_told_can_be_noted() {
        let (near, _far) = UnixStream::pair().unwrap();
        let teller = Teller::new(&Connection::new(near)).unwrap();
        let noted = |number: u64| {
            teller.hear(&format!(
                "{{\"jsonrpc\":\"2.0\",\"method\":\"noted\",\"params\":{{\"number\":{number}}}}}"
            ))
        };
        assert!(!noted(1) && noted(0), "beforehand");
        for bad in [
            "",
            "{}",
            "noted",
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"noted\",\"params\":{\"number\":0}}",
        ] {
            assert!(!teller.hear(bad), "{bad}");
        }
        std::thread::scope(|scope| {
            let told = scope.spawn(|| teller.tell(Exposure::PRIVATE_DATA));
            while teller.state().told == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(noted(1));
            assert_eq!(told.join().unwrap(), Ok(()));
            let told = scope.spawn(|| teller.tell(Exposure::PRIVATE_DATA));
            while teller.state().told == 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(noted(1), "again, for what was noted before");
            teller.end();
            assert!(told.join().unwrap().is_err(), "a lease that ends notes nothing");
        });
    }
}
