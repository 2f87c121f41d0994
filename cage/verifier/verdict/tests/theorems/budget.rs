//! budget_conserved.

use crate::world::{amounts, each_seed};
use abi::authority::Amounts;
use abi::identity::Role;
use verdict::approvals::Actor;
use verdict::budget::{Foreign, NotOperator, Purse, Reservation, exhausted, named};

const OPERATOR: Actor<'static> = Actor::Operator { role: Role::Operator, name: "alice" };

fn calls(calls: u64) -> Amounts {
    Amounts { calls: Some(calls), ..Amounts::default() }
}

fn total(held: &[Reservation]) -> [u64; 8] {
    let mut sum = [0; 8];
    for reservation in held {
        for (sum, amount) in sum.iter_mut().zip(reservation.amounts().list()) {
            *sum += amount.unwrap_or(0);
        }
    }
    sum
}

#[test]
fn budget_conserved() {
    each_seed(2_000, |random| {
        let mut purse = Purse::new(1, amounts(random, 100));
        let mut held: Vec<Reservation> = Vec::new();
        let mut spent = [0u64; 8];
        for _ in 0..200 {
            match random.below(6) {
                0..=2 => {
                    let (before, asked) = (purse.clone(), amounts(random, 20));
                    match purse.reserve(&asked) {
                        Ok(reservation) => {
                            assert_eq!(reservation.amounts(), &asked, "all of it");
                            held.push(reservation);
                        }
                        Err(error) => {
                            assert_eq!(purse, before, "or none");
                            assert_eq!(exhausted(&purse.left(), &asked), Some(error));
                        }
                    }
                }
                3 if !held.is_empty() => {
                    let reservation = held.remove(random.below(held.len() as u64) as usize);
                    let (reserved, used) = (*reservation.amounts(), amounts(random, 40));
                    purse.settle(reservation, &used).unwrap();
                    for ((spent, reserved), used) in spent.iter_mut().zip(reserved.list()).zip(used.list()) {
                        let reserved = reserved.unwrap_or(0);
                        *spent += used.map_or(reserved, |used| used.min(reserved));
                    }
                }
                4 if !held.is_empty() => {
                    let reservation = held.remove(random.below(held.len() as u64) as usize);
                    purse.release(reservation).unwrap();
                }
                5 => {
                    let (left, used) = (purse.left(), amounts(random, 5));
                    assert_eq!(purse.charge(&used).is_err(), exhausted(&left, &used).is_some());
                    for ((spent, left), used) in spent.iter_mut().zip(left.list()).zip(used.list()) {
                        *spent += used.unwrap_or(0).min(left.unwrap_or(u64::MAX));
                    }
                }
                _ => {}
            }
            let reserved = total(&held);
            for place in 0..8 {
                assert_eq!(
                    purse.spent().list()[place].unwrap_or(0),
                    spent[place],
                    "what was spent is what was used"
                );
                assert_eq!(
                    purse.reserved().list()[place].unwrap_or(0),
                    reserved[place],
                    "and what is held is reserved"
                );
                if let Some(bound) = purse.bound().list()[place] {
                    assert_eq!(purse.left().list()[place], Some(bound - spent[place] - reserved[place]));
                } else {
                    assert_eq!(purse.left().list()[place], None);
                }
            }
        }
    });
}

#[test]
fn sixteen_calls_at_once_reserve_no_more_than_there_is() {
    let mut purse = Purse::new(1, calls(10));
    let held: Vec<_> = (0..16).map(|_| purse.reserve(&calls(1))).collect();
    assert_eq!(held.iter().filter(|one| one.is_ok()).count(), 10);
    let error = held.iter().find_map(|one| one.as_ref().err()).unwrap();
    assert_eq!((error.bound, error.left, error.needed), ("calls", 0, 1));
    assert_eq!(purse.is_empty_of(), Some("calls"));
    assert_eq!(error.to_string(), "`calls` has 0 left, and 1 would be needed");
}

#[test]
fn a_reservation_of_another_purse_settles_nothing() {
    let (mut one, mut two) = (Purse::new(1, calls(5)), Purse::new(2, calls(5)));
    let reservation = one.reserve(&calls(3)).unwrap();
    let _held = two.reserve(&calls(3)).unwrap();
    assert_eq!(two.settle(reservation, &calls(0)), Err(Foreign));
    assert_eq!((one.left(), two.left()), (calls(2), calls(2)));
    let reservation = one.reserve(&calls(1)).unwrap();
    assert_eq!(two.release(reservation), Err(Foreign));
    assert_eq!((one.left(), two.left()), (calls(1), calls(2)));
}

#[test]
fn only_an_operator_makes_a_budget_larger() {
    let reader = Actor::Operator { role: Role::Reader, name: "bob" };
    for actor in [Actor::Agent, Actor::Service, Actor::Clock, reader] {
        let mut purse = Purse::new(1, calls(5));
        assert_eq!(purse.more(actor, &calls(1)), Err(NotOperator));
        assert_eq!(purse.bound(), &calls(5));
    }
    let mut purse = Purse::resumed(1, calls(5), calls(5));
    assert_eq!(purse.is_empty_of(), Some("calls"));
    purse.more(OPERATOR, &Amounts { calls: Some(2), tokens: Some(7), ..Amounts::default() }).unwrap();
    assert_eq!(
        (purse.left(), purse.is_empty_of()),
        (calls(2), None),
        "what had no bound gets none by being given more"
    );
}

#[test]
fn a_purse_that_is_tightened_has_nothing_left_rather_than_less() {
    let mut purse = Purse::resumed(1, calls(10), calls(6));
    purse.tighten(&Amounts { calls: Some(4), tokens: Some(3), ..Amounts::default() });
    assert_eq!(purse.left(), Amounts { calls: Some(0), tokens: Some(3), ..Amounts::default() });
    purse.tighten(&calls(100));
    assert_eq!(purse.bound().calls, Some(4));
}

#[test]
fn counting_without_a_bound_does_not_overflow() {
    let mut purse = Purse::new(1, Amounts::default());
    let _held = purse.reserve(&calls(u64::MAX - 1)).unwrap();
    assert!(purse.reserve(&calls(1)).is_ok());
    assert_eq!(purse.reserve(&calls(1)).unwrap_err().bound, "calls");
    assert_eq!(purse.charge(&calls(u64::MAX)), Ok(()));
    assert_eq!(named(purse.spent()).collect::<Vec<_>>(), [("calls", u64::MAX)]);
}
