//! How many connections there are: in all, without a proved key, and of each key. The limits are in docs/nullgate.md.
//!
//! Must hold: a place is given back when its holder is dropped, whatever happened.

use abi::limits::{GATE_CONNECTIONS_MAX, GATE_CONNECTIONS_PER_KEY_MAX, GATE_HANDSHAKES_MAX};
use nullctl::keys::PublicKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts.
#[derive(Debug, Default)]
struct Counts {
    all: usize,
    handshaking: usize,
    by_key: HashMap<PublicKey, usize>,
}

/// All places of the gate.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<Counts>>);

/// One connection's place; given back on drop.
#[derive(Debug)]
pub struct Place {
    places: Places,
    key: Option<PublicKey>,
}

/// Which bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("{GATE_CONNECTIONS_MAX} connections at a time")]
    Connections,
    #[error("{GATE_HANDSHAKES_MAX} handshakes at a time")]
    Handshakes,
    #[error("{GATE_CONNECTIONS_PER_KEY_MAX} connections of one key at a time")]
    Key,
}

impl Places {
    /// No connection yet.
    pub fn new() -> Places {
        Places::default()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection that has proved nothing yet.
    pub fn take(&self) -> Result<Place, Full> {
        let mut counts = self.counts();
        if counts.all >= GATE_CONNECTIONS_MAX {
            return Err(Full::Connections);
        }
        if counts.handshaking >= GATE_HANDSHAKES_MAX {
            return Err(Full::Handshakes);
        }
        counts.all += 1;
        counts.handshaking += 1;
        Ok(Place { places: self.clone(), key: None })
    }
}

impl Place {
    /// The key was proved.
    pub fn belongs_to(&mut self, key: PublicKey) -> Result<(), Full> {
        let mut counts = self.places.counts();
        let of_key = counts.by_key.entry(key).or_default();
        if *of_key >= GATE_CONNECTIONS_PER_KEY_MAX {
            return Err(Full::Key);
        }
        *of_key += 1;
        counts.handshaking -= 1;
        drop(counts);
        self.key = Some(key);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        counts.all -= 1;
        let Some(key) = self.key else {
            counts.handshaking -= 1;
            return;
        };
        if let Some(of_key) = counts.by_key.get_mut(&key) {
            *of_key -= 1;
            if *of_key == 0 {
                counts.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        let mut spki =
            "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".parse::<PublicKey>().unwrap().spki();
        spki[20] = n;
        PublicKey::from_spki(&spki).unwrap()
    }

    #[test]
    fn strangers_cannot_take_all_places() {
        let places = Places::new();
        let strangers: Vec<Place> = (0..GATE_HANDSHAKES_MAX).map(|_| places.take().unwrap()).collect();
        assert_eq!(places.take().unwrap_err(), Full::Handshakes);
        drop(strangers);
        assert!(places.take().is_ok());
    }

    #[test]
    fn one_key_cannot_lock_out_the_others() {
        let places = Places::new();
        let mut held = Vec::new();
        for _ in 0..GATE_CONNECTIONS_PER_KEY_MAX {
            let mut place = places.take().unwrap();
            place.belongs_to(key(1)).unwrap();
            held.push(place);
        }
        let mut refused = places.take().unwrap();
        assert_eq!(refused.belongs_to(key(1)), Err(Full::Key));
        drop(refused);
        let mut other = places.take().unwrap();
        other.belongs_to(key(2)).unwrap();
    }

    #[test]
    fn every_place_comes_back() {
        let places = Places::new();
        for round in 0..3 {
            let held: Vec<Place> = (0..GATE_CONNECTIONS_MAX)
                .map(|n| {
                    let mut place = places.take().unwrap();
                    place.belongs_to(key((n % 2) as u8)).unwrap();
                    place
                })
                .collect();
            assert_eq!(places.take().unwrap_err(), Full::Connections, "round {round}");
            drop(held);
        }
        assert!(places.counts().by_key.is_empty());
    }
}
