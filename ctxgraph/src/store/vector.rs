//! Vectors of entries, and the nearest of them: every vector under the prefix is compared, so the answer is exact.
//!
//! Must hold: numbers are kept as they came (little-endian IEEE binary32) and compared in binary64.
//! Must never: compare more than [`limits::MEMORY_NEAREST_VECTORS_MAX`] for one question.

use abi::ids::{AgentName, Digest};
use abi::limits;
use rusqlite::{Connection, params};

use super::search::Found;
use super::{StoreError, row};
use crate::entry::sha256;

/// The index holds the newest entries only, so that a question's cost is the vectors under its prefix.
pub(crate) const SCHEMA: &str = "
CREATE TABLE vector (
    entry INTEGER PRIMARY KEY REFERENCES entry (id),
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    dimensions INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE INDEX vector_newest ON vector (agent, dimensions, key) WHERE newest = 1;
";

/// Why a vector is refused, or a question about vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    #[error("the vector has {0} numbers, 1 to {max} are kept", max = limits::MEMORY_VECTOR_DIMENSIONS_MAX)]
    Dimensions(usize),
    #[error("number {0} of the vector is not finite")]
    NotFinite(usize),
    #[error("the vector is all zeros, so it has no direction")]
    Zero,
    #[error("more than {0} vectors of {1} numbers are under the prefix")]
    TooMany(usize, usize),
}

/// A vector that can be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Vector(Vec<f32>);

impl Vector {
    /// Checks the numbers.
    pub fn new(numbers: &[f32]) -> Result<Vector, VectorError> {
        if !(1..=limits::MEMORY_VECTOR_DIMENSIONS_MAX).contains(&numbers.len()) {
            return Err(VectorError::Dimensions(numbers.len()));
        }
        if let Some(number) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(VectorError::NotFinite(number));
        }
        if numbers.iter().all(|number| *number == 0.0) {
            return Err(VectorError::Zero);
        }
        Ok(Vector(numbers.to_vec()))
    }

    /// As it is stored.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// What the label `nullbox.vector` says.
    pub fn digest(&self) -> Digest {
        sha256(&self.bytes())
    }

    /// Cosine distance to a stored one of as many dimensions, 0 to 2; none if that is damaged.
    fn distance(&self, stored: &[u8]) -> Option<f64> {
        let (numbers, []) = stored.as_chunks::<4>() else { return None };
        if numbers.len() != self.0.len() {
            return None;
        }
        // Four sums of each, so that one addition need not wait for the one before it.
        let (mut dot, mut own, mut other) = ([0.0f64; 4], [0.0f64; 4], [0.0f64; 4]);
        let mut add = |a: &[f32], b: &[[u8; 4]]| {
            let sums = dot.iter_mut().zip(&mut own).zip(&mut other);
            for (((dot, own), other), (a, b)) in sums.zip(a.iter().zip(b)) {
                let (a, b) = (f64::from(*a), f64::from(f32::from_le_bytes(*b)));
                *dot += a * b;
                *own += a * a;
                *other += b * b;
            }
        };
        let ((fours, rest), (their_fours, their_rest)) = (self.0.as_chunks::<4>(), numbers.as_chunks::<4>());
        fours.iter().zip(their_fours).for_each(|(a, b)| add(a, b));
        add(rest, their_rest);
        let sum = |lanes: [f64; 4]| lanes.iter().sum::<f64>();
        let cosine = sum(dot) / (sum(own) * sum(other)).sqrt();
        cosine.is_finite().then(|| (1.0 - cosine).clamp(0.0, 2.0))
    }
}

/// Keeps the vector of the newest entry of a key.
pub(crate) fn keep(
    db: &Connection,
    id: i64,
    agent: &AgentName,
    key: &str,
    vector: &Vector,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO vector VALUES (?1, ?2, ?3, ?4, 1, ?5)")?.execute(params![
        id,
        agent.as_str(),
        key,
        vector.0.len(),
        vector.bytes()
    ])?;
    Ok(())
}

/// The entry is not the newest any more: its vector stays, and is not looked for.
pub(crate) fn retire(db: &Connection, id: i64) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE vector SET newest = 0 WHERE entry = ?1")?.execute([id])?;
    Ok(())
}

/// The entry is the newest again: what came after it was superseded.
pub(crate) fn revive(db: &Connection, id: i64) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE vector SET newest = 1 WHERE entry = ?1")?.execute([id])?;
    Ok(())
}

/// Deletes an entry's vector; returns how many bytes it had.
pub(crate) fn forget(db: &Connection, id: i64) -> Result<u64, StoreError> {
    let mut statement = db.prepare_cached("DELETE FROM vector WHERE entry = ?1 RETURNING length(data)")?;
    let mut rows = statement.query([id])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        bytes += row.get::<_, u64>(0)?;
    }
    Ok(bytes)
}

/// Rows of entries and their distances, nearest first, among the newest entries of keys with a prefix. The caller holds a snapshot.
pub(crate) fn nearest(
    db: &Connection,
    agent: &AgentName,
    prefix: &str,
    to: &Vector,
    limit: usize,
) -> Result<Found, StoreError> {
    let (dimensions, max) = (to.0.len(), limits::MEMORY_NEAREST_VECTORS_MAX);
    let mut statement = db.prepare_cached(
        "SELECT key FROM vector WHERE newest = 1 AND agent = ?1 AND dimensions = ?2 AND key >= ?3 ORDER BY key LIMIT ?4",
    )?;
    let mut rows = statement.query(params![agent.as_str(), dimensions, prefix, max + 1])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        if !row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?.starts_with(prefix) {
            break;
        }
        count += 1;
    }
    if count > max {
        return Err(VectorError::TooMany(max, dimensions).into());
    }
    let mut statement = db.prepare_cached(
        "SELECT entry, data, key FROM vector WHERE newest = 1 AND agent = ?1 AND dimensions = ?2 AND key >= ?3 ORDER BY key LIMIT ?4",
    )?;
    let mut rows = statement.query(params![agent.as_str(), dimensions, prefix, count])?;
    let mut found = Vec::with_capacity(count);
    let mut damaged = 0;
    while let Some(row) = rows.next()? {
        if !row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?.starts_with(prefix) {
            break;
        }
        let id = row.get(0)?;
        let data = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let distance = to.distance(data).ok_or(StoreError::Damaged(id, "its vector"));
        match row::sound(distance)? {
            Some(distance) => found.push((id, distance)),
            None => damaged += 1,
        }
    }
    found.sort_by(|(id, distance), (other_id, other)| distance.total_cmp(other).then(id.cmp(other_id)));
    let mut rows = Vec::new();
    for (id, distance) in found {
        if rows.len() == limit {
            break;
        }
        match row::sound(check(db, id))? {
            Some(()) => rows.push((id, distance)),
            None => damaged += 1,
        }
    }
    Ok(Found { rows, truncated: false, damaged })
}

/// A stored vector is the one that its entry's label names; the entry itself is checked where it is read.
fn check(db: &Connection, id: i64) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT v.data, json_extract(e.labels, '$.\"nullbox.vector\"') FROM vector v JOIN entry e ON e.id = v.entry WHERE v.entry = ?1",
    )?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let data = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    if row.get::<_, Option<String>>(1)? != Some(sha256(data).to_string()) {
        return Err(StoreError::Damaged(id, "its vector does not have its digest"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
