//! Meters and their books: caps under many threads, periods, files.

use super::*;
use abi::network::Period;
use proptest::prelude::*;

fn tokens(input: u64, output: u64) -> Spent {
    Spent { input_tokens: input, output_tokens: output, ..Spent::default() }
}

fn output_max(most: u64) -> Budget {
    Budget { output_tokens_max: Some(most), ..Budget::default() }
}

fn meter(dir: &Path, budget: Budget) -> Arc<Meter> {
    let meter = Meters::open(&dir.join("meters")).unwrap().of(&"a".parse().unwrap());
    std::mem::forget(meter.begin(budget).unwrap()); // as a process that is killed
    meter
}

fn exhausted(error: BudgetError) -> Exhausted {
    match error {
        BudgetError::Exhausted(exhausted) => exhausted,
        BudgetError::Unkept(why) => panic!("{why}"),
    }
}

#[test]
fn many_callers_at_once_never_overspend() {
    let dir = tempfile::tempdir().unwrap();
    let meter = meter(dir.path(), Budget { calls_per_hour_max: Some(300), ..output_max(1000) });
    let admitted: u64 = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let holds: Vec<Hold> = (0..20).filter_map(|_| meter.reserve(tokens(0, 7)).ok()).collect();
                    holds.len() as u64 // dropped: they stay spent
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    assert_eq!(admitted, 1000 / 7);
    let refused = exhausted(meter.reserve(tokens(0, 7)).unwrap_err());
    assert_eq!((refused.unit, refused.most, refused.reserved), (Unit::OutputTokens, 1000, 994));
    assert!(meter.reserve(tokens(0, 6)).is_ok());
}

#[test]
fn a_settled_call_gives_back_what_it_did_not_use_and_a_cancelled_one_all() {
    let dir = tempfile::tempdir().unwrap();
    let meter = meter(dir.path(), Budget { calls_per_hour_max: Some(3), ..output_max(100) });
    meter.reserve(tokens(0, 100)).unwrap().settle(tokens(0, 40));
    assert_eq!(exhausted(meter.reserve(tokens(0, 61)).unwrap_err()).used, 40);
    meter.reserve(tokens(0, 60)).unwrap().cancel();
    meter.reserve(tokens(0, 60)).unwrap().settle(tokens(0, 75));
    assert_eq!(
        exhausted(meter.reserve(tokens(0, 1)).unwrap_err()).used,
        115,
        "what was used counts, reserved or not"
    );
    drop(meter.reserve(tokens(0, 0)).unwrap());
    assert_eq!(exhausted(meter.reserve(tokens(0, 0)).unwrap_err()).unit, Unit::CallsPerHour);
}

#[test]
fn a_reservation_is_on_the_disk_before_the_call_and_stays_spent_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let before = meter(dir.path(), output_max(100));
    let hold = before.reserve(tokens(3, 90)).unwrap();
    // What a process finds that begins after ours was killed here.
    let after = meter(dir.path(), output_max(100));
    assert_eq!(after.shown().reserved, tokens(3, 90));
    assert_eq!(exhausted(after.reserve(tokens(0, 11)).unwrap_err()).reserved, 90);
    drop(after.reserve(tokens(0, 10)).unwrap());
    hold.settle(tokens(1, 1));
    before.write().unwrap();
    assert_eq!(meter(dir.path(), output_max(100)).shown().used.output_tokens, 1);
}

#[test]
fn without_a_place_to_write_no_call_goes_out_and_none_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let meter = meter(dir.path(), output_max(100));
    std::fs::remove_dir_all(dir.path().join("meters")).unwrap();
    let refused = meter.reserve(tokens(0, 90)).unwrap_err();
    assert!(matches!(&refused, BudgetError::Unkept(why) if why.contains("meters/a.json")), "{refused}");
    assert_eq!((meter.shown().used, meter.shown().reserved), Default::default());
}

#[test]
fn a_damaged_file_is_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meters/a.json");
    meter(dir.path(), output_max(100)).reserve(tokens(0, 90)).unwrap().settle(tokens(0, 90));
    for content in ["", "{}", "{\"agent\":\"a\"", "x"] {
        std::fs::write(&path, content).unwrap();
        let meters = Meters::open(&dir.path().join("meters")).unwrap();
        let meter = meters.of(&"a".parse().unwrap());
        assert!(meter.begin(output_max(100)).is_err(), "{content}");
        assert!(meter.reserve(tokens(0, 1)).is_err());
        assert!(meters.list(None)[0].damaged.is_some());
        meter.reset().unwrap();
        let running = meter.begin(output_max(100)).unwrap();
        drop(meter.reserve(tokens(0, 100)).unwrap());
        drop(running);
        assert!(meter.reserve(tokens(0, 0)).is_err(), "no network, no budget");
    }
    std::fs::copy(&path, dir.path().join("meters/b.json")).unwrap();
    let other = Meters::open(&dir.path().join("meters")).unwrap().of(&"b".parse().unwrap());
    assert!(other.begin(Budget::default()).is_err(), "the file of another agent");
}

#[test]
fn bytes_and_seconds_are_taken_before_they_pass() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Budget { bytes_max: Some(100), wall_secs_max: Some(2), ..Budget::default() };
    let meter = meter(dir.path(), budget);
    meter.take_bytes(60).unwrap();
    assert_eq!(meter.take_bytes(41).unwrap_err().unit, Unit::Bytes);
    meter.take_bytes(40).unwrap();
    assert_eq!(meter.admits().unwrap_err().unit, Unit::Bytes);
    meter.tick(2).unwrap();
    assert_eq!(meter.tick(1).unwrap_err().unit, Unit::WallSecs);
    assert_eq!(meter.take_bytes(0).unwrap_err().unit, Unit::WallSecs);
    meter.reset().unwrap();
    meter.admits().unwrap();
    assert_eq!(meter.shown().used, Spent::default());
}

#[test]
fn without_a_network_no_byte_and_no_second_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let meter = Meters::open(&dir.path().join("meters")).unwrap().of(&"a".parse().unwrap());
    let taken = |meter: &Meter| (meter.take_bytes(1).is_ok(), meter.tick(1).is_ok(), meter.admits().is_ok());
    assert_eq!(taken(&meter), (false, false, false), "before");
    let running = meter.begin(Budget::default()).unwrap();
    assert_eq!(taken(&meter), (true, true, true));
    drop(running);
    assert_eq!(taken(&meter), (false, false, false), "after");
    assert_eq!((meter.shown().used.bytes, meter.shown().used.wall_secs), (1, 1));
}

#[test]
fn a_meter_of_another_version_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meters/a.json");
    meter(dir.path(), output_max(100)).reserve(tokens(0, 90)).unwrap().settle(tokens(0, 90));
    let written = std::fs::read_to_string(&path).unwrap();
    let other = written.replacen("{\"version\":1,", "{\"version\":2,\"more\":[],", 1);
    assert_ne!(written, other);
    std::fs::write(&path, other).unwrap();
    let meter = Meters::open(&dir.path().join("meters")).unwrap().of(&"a".parse().unwrap());
    let refused = meter.begin(output_max(100)).unwrap_err();
    assert!(refused.to_string().contains("version 2"), "{refused}");
}

#[test]
fn what_nobody_bounds_waits_for_no_disk() {
    let caps = [
        (Budget { calls_per_hour_max: Some(9), ..Budget::default() }, false),
        (Budget { micro_dollars_max: Some(9), ..Budget::default() }, false),
        (output_max(9), false),
        (Budget { bytes_max: Some(9), wall_secs_max: Some(9), ..Budget::default() }, true),
        (Budget::default(), true),
    ];
    for (budget, passes) in caps {
        let dir = tempfile::tempdir().unwrap();
        let meter = meter(dir.path(), budget);
        std::fs::remove_dir_all(dir.path().join("meters")).unwrap();
        assert_eq!(meter.reserve(tokens(0, 0)).is_ok(), passes, "{budget:?}");
    }
}

#[test]
fn a_reset_does_not_count_what_was_under_way_twice() {
    let dir = tempfile::tempdir().unwrap();
    let meter = meter(dir.path(), output_max(100));
    let old = meter.reserve(tokens(0, 90)).unwrap();
    meter.reset().unwrap();
    let new = meter.reserve(tokens(0, 100)).unwrap();
    old.settle(tokens(0, 50));
    assert_eq!(meter.shown().reserved.output_tokens, 100);
    new.settle(tokens(0, 100));
    assert_eq!(meter.shown().used.output_tokens, 100);
}

#[test]
fn a_period_ends_by_the_clock_and_never_early() {
    const DAY: u64 = 86_400_000;
    let budget = Budget { calls_per_hour_max: Some(1), ..output_max(10) };
    let mut book = Book::new("a".parse().unwrap());
    let start = 1_000 * DAY;
    book.reserve(&budget, &tokens(0, 10), start).unwrap();
    let refused = |book: &mut Book, now| book.reserve(&budget, &tokens(0, 1), now).unwrap_err().unit;
    // A node without a clock of its own begins years ago, and is set right then: nothing of the day is over by that.
    assert_eq!(refused(&mut book, start - 365 * DAY), Unit::OutputTokens);
    assert_eq!(refused(&mut book, start + 1), Unit::OutputTokens);
    assert_eq!(book.used.calls_this_hour, 1);
    assert_eq!(book.period_ends_unix_ms(), Some(start + DAY));
    assert_eq!(refused(&mut book, start + DAY - 1), Unit::OutputTokens);
    book.reserve(&budget, &tokens(0, 10), start + DAY).unwrap();
    assert_eq!(book.used.calls_this_hour, 1, "the hour was over too");
    assert_eq!(refused(&mut book, start + DAY + 1), Unit::OutputTokens);
    book.period = Period::Total;
    assert_eq!(refused(&mut book, start + 900 * DAY), Unit::OutputTokens);
}

#[derive(Debug, Clone)]
enum Step {
    Reserve(u64, u64),
    Settle(usize, u64, u64),
    Cancel(usize),
    Bytes(u64),
    Forward(u64),
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..60, 0u64..60).prop_map(|(input, output)| Step::Reserve(input, output)),
        3 => (any::<usize>(), 0u64..60, 0u64..60).prop_map(|(which, input, output)| Step::Settle(which, input, output)),
        1 => any::<usize>().prop_map(Step::Cancel),
        2 => (0u64..60).prop_map(Step::Bytes),
        2 => (0u64..2_400_000).prop_map(Step::Forward),
        1 => (0u64..2_400_000).prop_map(Step::Back),
    ]
}

proptest! {
    /// Against a list of all that ever happened, summed up anew at each step.
    #[test]
    fn a_book_admits_what_the_list_of_all_calls_admits(steps in prop::collection::vec(step(), 1..80)) {
        const HOUR: u64 = 3_600_000;
        let budget = Budget {
            period: Period::Hour,
            input_tokens_max: Some(100),
            output_tokens_max: Some(120),
            bytes_max: Some(150),
            calls_per_hour_max: Some(6),
            ..Budget::default()
        };
        let mut book = Book { period: Period::Hour, ..Book::new("a".parse().unwrap()) };
        // Of the running hour: what calls hold or used (none of it after a cancel), and bytes. Period and hour begin together or apart.
        let (mut calls, mut bytes): (Vec<(bool, u64, u64)>, u64) = Default::default();
        let mut counted = 0u64;
        let (mut began, mut hour_began): (Option<u64>, Option<u64>) = (None, None);
        let mut open: Vec<(book::When, Spent, Option<usize>, bool)> = Vec::new();
        let mut now = 100 * HOUR;
        for step in steps {
            match step {
                Step::Forward(by) => now += by,
                Step::Back(by) => now -= by,
                _ => {}
            }
            if began.is_some_and(|at| at + HOUR <= now) {
                (began, bytes) = (None, 0);
                calls.clear();
                open.iter_mut().for_each(|one| one.2 = None);
            }
            if hour_began.is_some_and(|at| at + HOUR <= now) {
                (hour_began, counted) = (None, 0);
                open.iter_mut().for_each(|one| one.3 = false);
            }
            book.roll(now);
            let sum = |of: fn(&(bool, u64, u64)) -> u64| calls.iter().map(of).sum::<u64>();
            match step {
                Step::Reserve(input, output) => {
                    let fits = (input == 0 || sum(|c| c.1) + input <= 100)
                        && (output == 0 || sum(|c| c.2) + output <= 120)
                        && counted < 6;
                    let wanted = tokens(input, output);
                    let got = book.reserve(&budget, &wanted, now);
                    prop_assert_eq!(got.is_ok(), fits);
                    if let Ok(when) = got {
                        began.get_or_insert(now);
                        hour_began.get_or_insert(now);
                        counted += 1;
                        calls.push((true, input, output));
                        open.push((when, wanted, Some(calls.len() - 1), true));
                    }
                }
                Step::Settle(which, input, output) if !open.is_empty() => {
                    let (when, wanted, at, _) = open.swap_remove(which % open.len());
                    let used = tokens(input.min(wanted.input_tokens), output.min(wanted.output_tokens));
                    book.settle(when, &wanted, &used);
                    if let Some(at) = at {
                        calls[at] = (false, used.input_tokens, used.output_tokens);
                    }
                }
                Step::Cancel(which) if !open.is_empty() => {
                    let (when, wanted, at, same_hour) = open.swap_remove(which % open.len());
                    book.cancel(when, &wanted);
                    if let Some(at) = at {
                        calls[at] = (false, 0, 0);
                    }
                    counted -= u64::from(same_hour);
                }
                Step::Bytes(count) => {
                    let fits = count == 0 || bytes + count <= 150;
                    prop_assert_eq!(book.take_bytes(&budget, count, now).is_ok(), fits);
                    if fits {
                        began.get_or_insert(now);
                        bytes += count;
                    }
                }
                _ => {}
            }
            let of = |held: bool| {
                let these = calls.iter().filter(|call| call.0 == held);
                these.fold((0, 0), |sum, call| (sum.0 + call.1, sum.1 + call.2))
            };
            let amounts = |spent: &Spent| (spent.input_tokens, spent.output_tokens);
            prop_assert_eq!((amounts(&book.used), amounts(&book.reserved)), (of(false), of(true)));
            prop_assert!(book.used.input_tokens + book.reserved.input_tokens <= 100);
            prop_assert_eq!((book.used.bytes, book.used.calls_this_hour), (bytes, counted));
        }
    }
}
