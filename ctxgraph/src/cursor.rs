//! Cursors as they are given out: sealed, so that they say nothing.
//!
//! In the clear a cursor names the place where a page stopped looking: a key that was not shown, a row of the file, which counts
//! everybody's entries. Must hold: a cursor opens for whom it was given, for the same method and memory, in this life of the process.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// All cursors are as long as the longest, so that their length says nothing either: a key, a number, and a mark between them.
const PLAIN_BYTES: usize = 2 + abi::limits::MEMORY_KEY_BYTES_MAX + 32;

/// The key of all cursors, made anew by each start.
#[derive(Debug)]
pub struct Seals {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Seals {
    /// A fresh key; none where the kernel has no random numbers.
    pub fn new() -> Option<Seals> {
        let random = SystemRandom::new();
        let mut bytes = [0; 32];
        random.fill(&mut bytes).ok()?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?);
        Some(Seals { key, random })
    }

    /// Seals a cursor for a question.
    pub fn seal(&self, question: &str, cursor: &str) -> Option<String> {
        // Not a counter: that would count everybody's pages.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut plain = u16::try_from(cursor.len()).ok()?.to_be_bytes().to_vec();
        plain.extend(cursor.as_bytes());
        if plain.len() > PLAIN_BYTES {
            return None;
        }
        plain.resize(PLAIN_BYTES, 0);
        let aad = Aad::from(question.as_bytes());
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut plain).ok()?;
        Some(URL_SAFE_NO_PAD.encode([nonce.as_slice(), &plain].concat()))
    }

    /// Opens one that was sealed for the same question.
    pub fn open(&self, question: &str, sealed: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let (mut sealed, aad) = (sealed.to_vec(), Aad::from(question.as_bytes()));
        let plain = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut sealed).ok()?;
        let (length, rest) = plain.split_first_chunk::<2>()?;
        let cursor = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
        String::from_utf8(cursor.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_opens_for_its_question_in_its_life_and_says_nothing() {
        let seals = Seals::new().unwrap();
        let longest = "k".repeat(abi::limits::MEMORY_KEY_BYTES_MAX) + &i64::MAX.to_string();
        for cursor in ["", "7.1", "notes/é", longest.as_str()] {
            let sealed = seals.seal("agent a query b", cursor).unwrap();
            assert_eq!(seals.open("agent a query b", &sealed).as_deref(), Some(cursor));
            assert_eq!(sealed.len(), seals.seal("agent a query b", "").unwrap().len());
            assert_ne!(sealed, seals.seal("agent a query b", cursor).unwrap());
            assert_eq!(seals.open("agent b query b", &sealed), None, "another's");
            assert_eq!(Seals::new().unwrap().open("agent a query b", &sealed), None, "another life's");
        }
        for wrong in ["", "notes/1", "AAAA", &"A".repeat(500)] {
            assert_eq!(seals.open("agent a query b", wrong), None);
        }
    }
}
