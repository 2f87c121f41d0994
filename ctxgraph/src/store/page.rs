//! An answer under construction: bounded in entries, and in bytes so that it fits a line.

use abi::control::{Entries, Entry};
use abi::limits;

/// Bytes of entries in one answer; the rest of the line is for the answer around them.
const PAGE_BYTES_MAX: usize = limits::LINE_BYTES_MAX - 2048;

/// A page of entries.
#[derive(Debug)]
pub struct Page {
    entries: Vec<Entry>,
    room: Room,
    cursor: Option<String>,
    damaged: u64,
}

impl Page {
    pub fn new(limit: Option<u32>) -> Page {
        Page { entries: Vec::new(), room: Room::new(limit), cursor: None, damaged: 0 }
    }

    /// Takes an entry; false once the page is full.
    pub fn take(&mut self, entry: Entry) -> bool {
        let fits = self.room.take(&entry);
        if fits {
            self.entries.push(entry);
        }
        fits
    }

    /// An entry is left out: it is damaged.
    pub fn damaged(&mut self) {
        self.damaged += 1;
    }

    /// There is more after this place.
    pub fn more(&mut self, cursor: String) {
        self.cursor = Some(cursor);
    }

    pub fn finish(self) -> Entries {
        let Page { entries, cursor, damaged, .. } = self;
        Entries { entries, cursor, damaged, ..Entries::default() }
    }
}

/// What is left of an answer.
#[derive(Debug)]
pub struct Room {
    entries: usize,
    bytes: usize,
    taken: bool,
}

impl Room {
    pub fn new(limit: Option<u32>) -> Room {
        let limit = limit.map_or(limits::MEMORY_PAGE_MAX, |limit| limit as usize);
        Room { entries: limit.clamp(1, limits::MEMORY_PAGE_MAX), bytes: PAGE_BYTES_MAX, taken: false }
    }

    /// Takes the room that something needs as JSON; false where there is not so much. The first always fits.
    pub fn take(&mut self, what: &impl serde::Serialize) -> bool {
        let size = serde_json::to_vec(what).map_or(PAGE_BYTES_MAX, |json| json.len() + 1);
        if self.entries == 0 || (self.taken && size > self.bytes) {
            return false;
        }
        self.taken = true;
        self.entries -= 1;
        self.bytes = self.bytes.saturating_sub(size);
        true
    }
}
