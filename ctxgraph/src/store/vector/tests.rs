//! The nearest vectors against a naive computation.

use super::*;
use crate::testing::Random;

fn database() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(&format!("CREATE TABLE entry (id INTEGER PRIMARY KEY, labels TEXT); {SCHEMA}")).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    db
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

#[test]
fn the_nearest_are_exactly_those_of_a_naive_search() {
    let mut random = Random::new();
    let mut number = || (random.below(2001) as f32 - 1000.0) / 37.0;
    let db = database();
    let mut model = Vec::new();
    for id in 1..=600i64 {
        let dimensions = [1, 3, 4, 7, 64][id as usize % 5];
        let numbers: Vec<f32> = (0..dimensions).map(|_| number()).collect();
        let Ok(vector) = Vector::new(&numbers) else { continue };
        let (owner, key) = (["a", "b"][id as usize % 2], format!("{}/{id}", ["n", "m"][id as usize / 2 % 2]));
        keep(&db, id, &agent(owner), &key, &vector).unwrap();
        match id % 11 {
            0 => retire(&db, id).unwrap(),
            1 => assert!(forget(&db, id).unwrap() > 0),
            _ => model.push((id, owner, key, numbers)),
        }
    }
    let mut found_any = 0;
    for round in 0..60 {
        let dimensions = [1, 3, 4, 7, 64, 5][round % 6];
        let numbers: Vec<f32> = (0..dimensions).map(|_| number()).collect();
        let Ok(vector) = Vector::new(&numbers) else { continue };
        let (owner, prefix) = (["a", "b"][round % 2], ["", "n/", "m/1"][round % 3]);
        let cosine = |other: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            1.0 - dot(&numbers, other) / (dot(&numbers, &numbers).sqrt() * dot(other, other).sqrt())
        };
        let mut expected: Vec<(i64, f64)> = model
            .iter()
            .filter(|(_, of, key, other)| {
                *of == owner && key.starts_with(prefix) && other.len() == dimensions
            })
            .map(|(id, _, _, other)| (*id, cosine(other)))
            .collect();
        expected.sort_by(|one, other| one.1.total_cmp(&other.1));
        expected.truncate(10);
        let found = nearest(&db, &agent(owner), prefix, &vector, 10).unwrap().rows;
        assert_eq!(found.len(), expected.len());
        found_any += found.len();
        for ((_, distance), (_, naive)) in found.iter().zip(&expected) {
            assert!((distance - naive).abs() < 1e-12, "{distance} instead of {naive}");
        }
        // Where no two are as far, the entries are the same too.
        if dimensions == 64 {
            assert!(found.iter().zip(&expected).all(|(one, other)| one.0 == other.0));
        }
    }
    assert!(found_any > 100);
}

#[test]
fn extreme_numbers_are_compared_and_wrong_ones_refused() {
    let db = database();
    let tiny = Vector::new(&[f32::from_bits(1), 0.0]).unwrap();
    let huge = Vector::new(&[f32::MAX; 2]).unwrap();
    keep(&db, 1, &agent("a"), "tiny", &tiny).unwrap();
    keep(&db, 2, &agent("a"), "huge", &huge).unwrap();
    let found = nearest(&db, &agent("a"), "", &tiny, 10).unwrap().rows;
    assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
    assert!(found[0].1.abs() < 1e-12 && (found[1].1 - (1.0 - 0.5f64.sqrt())).abs() < 1e-12);
    assert_eq!(Vector::new(&[]), Err(VectorError::Dimensions(0)));
    let over = limits::MEMORY_VECTOR_DIMENSIONS_MAX + 1;
    assert_eq!(Vector::new(&vec![1.0; over]), Err(VectorError::Dimensions(over)));
    assert_eq!(Vector::new(&[1.0, f32::NAN]), Err(VectorError::NotFinite(1)));
    assert_eq!(Vector::new(&[f32::NEG_INFINITY]), Err(VectorError::NotFinite(0)));
    assert_eq!(Vector::new(&[0.0, -0.0]), Err(VectorError::Zero));
}

#[test]
fn a_damaged_vector_is_left_out_and_counted() {
    let db = database();
    keep(&db, 7, &agent("a"), "k", &Vector::new(&[1.0, 2.0]).unwrap()).unwrap();
    for data in [vec![0u8; 8], vec![1; 7], f32::NAN.to_le_bytes().repeat(2)] {
        db.execute("UPDATE vector SET data = ?1", [data]).unwrap();
        let found = nearest(&db, &agent("a"), "", &Vector::new(&[1.0, 1.0]).unwrap(), 1).unwrap();
        assert_eq!((found.rows.len(), found.damaged), (0, 1));
    }
}

#[test]
fn more_vectors_than_are_compared_is_refused() {
    let db = database();
    let more = limits::MEMORY_NEAREST_VECTORS_MAX as i64 + 1;
    db.execute_batch("BEGIN").unwrap();
    let vector = Vector::new(&[1.0]).unwrap();
    for id in 1..=more {
        keep(&db, id, &agent("a"), &format!("k/{}", id % 2), &vector).unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    let error = nearest(&db, &agent("a"), "k", &vector, 1).unwrap_err();
    assert!(matches!(error, StoreError::Vector(VectorError::TooMany(..))), "{error}");
    assert_eq!(nearest(&db, &agent("a"), "k/1", &vector, 3).unwrap().rows.len(), 3);
}
