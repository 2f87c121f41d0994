//! What a round of answers does to the clock. Pure: samples in, one verdict out.
//!
//! Must hold: more than half of those that answered must agree, within what each says of its own distance; the clock never goes
//! below the image's time; once it was right, it makes no great leap on one server's word. Must never: act on a single liar among
//! three.

use super::packet::Sample;

/// Nanoseconds of a second.
pub const SECOND_NS: i64 = 1_000_000_000;
/// More than this is stepped, less is slewed: the kernel's discipline takes no more (adjtimex(2), MAXPHASE).
pub const STEP_NS: i64 = 500_000_000;
/// Once the clock was right: a time that is farther than this from where it must be by now needs the word of every server, and of
/// two at least.
pub const LEAP_NS: i64 = 24 * 3600 * SECOND_NS;

/// What is known before a round is judged.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Wall clock now, in nanoseconds since 1970.
    pub now_unix_ns: i64,
    /// The image's time, in seconds since 1970.
    pub floor_s: u64,
    /// What the wall clock would be now had nobody touched it since it was last right, in this life of the service. So a clock
    /// that somebody else moved is set back on the word of a majority, and a server that moves is not followed.
    pub expected_unix_ns: Option<i64>,
    /// Servers that were asked.
    pub asked: usize,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Set the clock by so many nanoseconds at once.
    Step(Agreed),
    /// Let the kernel bring it there.
    Slew(Agreed),
    /// Nothing, for this reason.
    Refuse(Why),
}

/// What the majority says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub offset_ns: i64,
    pub error_ns: i64,
    /// Position of the server, among the samples, that is nearest to true time.
    pub best: usize,
    pub agreeing: usize,
}

/// Why nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    NoAnswer,
    /// So many agree at most, of so many that answered.
    NoMajority {
        agreeing: usize,
        answered: usize,
    },
    /// They agree on a time before the image was built.
    BelowFloor,
    /// They agree on a great leap, and are too few for one.
    Leap {
        leap_ns: i64,
        agreeing: usize,
        needed: usize,
    },
}

/// Judges a round.
pub fn judge(samples: &[Sample], known: Known) -> Verdict {
    let Some(agreed) = agree(samples) else { return Verdict::Refuse(Why::NoAnswer) };
    if agreed.agreeing * 2 <= samples.len() {
        let why = Why::NoMajority { agreeing: agreed.agreeing, answered: samples.len() };
        return Verdict::Refuse(why);
    }
    let floor_ns = i64::try_from(known.floor_s).unwrap_or(i64::MAX).saturating_mul(SECOND_NS);
    if known.now_unix_ns.saturating_add(agreed.offset_ns) < floor_ns {
        return Verdict::Refuse(Why::BelowFloor);
    }
    let says_ns = known.now_unix_ns.saturating_add(agreed.offset_ns);
    let leap_ns = known.expected_unix_ns.map_or(0, |expected| says_ns.saturating_sub(expected));
    let needed = known.asked.max(2);
    if leap_ns.saturating_abs() > LEAP_NS && agreed.agreeing < needed {
        return Verdict::Refuse(Why::Leap { leap_ns, agreeing: agreed.agreeing, needed });
    }
    if agreed.offset_ns.saturating_abs() > STEP_NS { Verdict::Step(agreed) } else { Verdict::Slew(agreed) }
}

/// The interval in which most of the samples' intervals meet (RFC 5905, 11.2.1, with no limit on falsetickers: the caller counts),
/// and its middle. None without a sample.
fn agree(samples: &[Sample]) -> Option<Agreed> {
    let low = |sample: &Sample| sample.offset_ns.saturating_sub(sample.distance_ns);
    let high = |sample: &Sample| sample.offset_ns.saturating_add(sample.distance_ns);
    // Where most intervals meet, one of them begins: try each beginning.
    let meeting = |at: i64| samples.iter().filter(move |sample| low(sample) <= at && at <= high(sample));
    let begin = samples.iter().map(low).max_by_key(|at| (meeting(*at).count(), std::cmp::Reverse(*at)))?;
    let end = meeting(begin).map(high).min()?;
    let agreeing = meeting(begin).count();
    let best = samples
        .iter()
        .enumerate()
        .filter(|(_, sample)| low(sample) <= begin && begin <= high(sample))
        .min_by_key(|(_, sample)| (sample.distance_ns, sample.stratum))?;
    // The nearest server's own word, kept within what all of them allow.
    let offset_ns = best.1.offset_ns.clamp(begin, end);
    Some(Agreed { offset_ns, error_ns: best.1.distance_ns, best: best.0, agreeing })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const FLOOR_S: u64 = 1_767_225_600;
    const HOUR_NS: i64 = 3600 * SECOND_NS;

    fn sample(offset_ms: i64, distance_ms: i64) -> Sample {
        Sample { offset_ns: offset_ms * MS, distance_ns: distance_ms * MS, stratum: 2 }
    }

    const NOW_NS: i64 = FLOOR_S as i64 * SECOND_NS + 24 * 400 * HOUR_NS;

    /// Nobody touched the clock since it was right, if it was.
    fn known(was_right: bool, asked: usize) -> Known {
        let expected_unix_ns = was_right.then_some(NOW_NS);
        Known { now_unix_ns: NOW_NS, floor_s: FLOOR_S, expected_unix_ns, asked }
    }

    fn offset(verdict: Verdict) -> i64 {
        match verdict {
            Verdict::Step(agreed) | Verdict::Slew(agreed) => agreed.offset_ns,
            Verdict::Refuse(why) => panic!("{why:?}"),
        }
    }

    #[test]
    fn half_a_second_is_slewed_and_more_is_stepped() {
        for (ms, is_step) in
            [(0, false), (500, false), (-500, false), (501, true), (-501, true), (86_400_000, true)]
        {
            let verdict = judge(&[sample(ms, 10)], known(true, 1));
            assert_eq!(matches!(verdict, Verdict::Step(_)), is_step, "{ms} ms: {verdict:?}");
            assert_eq!(offset(verdict), ms * MS);
        }
    }

    #[test]
    fn one_liar_among_three_moves_nothing_whatever_it_says_and_wherever_it_stands() {
        for lie in [-3_000_000_000i64, -900, -600, 400, 5_000, 86_400_000 * 400] {
            for place in 0..3 {
                for distance in [1, 200] {
                    let mut all = vec![sample(20, 30), sample(25, 40)];
                    all.insert(place, sample(lie, distance));
                    let found = offset(judge(&all, known(false, 3)));
                    assert!((-15 * MS..=60 * MS).contains(&found), "{lie} at {place}: {found}");
                }
            }
        }
    }

    #[test]
    fn without_a_majority_nothing_is_done() {
        let two = [sample(0, 10), sample(5_000, 10)];
        assert_eq!(
            judge(&two, known(false, 2)),
            Verdict::Refuse(Why::NoMajority { agreeing: 1, answered: 2 })
        );
        let four = [sample(0, 10), sample(5, 10), sample(9_000, 10), sample(9_005, 10)];
        assert_eq!(
            judge(&four, known(false, 4)),
            Verdict::Refuse(Why::NoMajority { agreeing: 2, answered: 4 })
        );
        assert_eq!(judge(&[], known(false, 3)), Verdict::Refuse(Why::NoAnswer));
    }

    #[test]
    fn the_nearest_server_is_followed_within_what_all_allow() {
        let Verdict::Slew(agreed) = judge(&[sample(40, 50), sample(10, 8), sample(0, 100)], known(true, 3))
        else {
            panic!("no slew")
        };
        assert_eq!((agreed.offset_ns, agreed.best, agreed.agreeing), (10 * MS, 1, 3));
        // What the nearest says lies outside of another's interval: the edge of that is taken.
        let edge = judge(&[sample(0, 10), sample(30, 25)], known(true, 2));
        assert_eq!(offset(edge), 5 * MS);
    }

    #[test]
    fn the_clock_never_goes_below_the_images_time() {
        let far = known(false, 1);
        let to_floor_ms = (FLOOR_S as i64 * SECOND_NS - far.now_unix_ns) / MS;
        assert_eq!(judge(&[sample(to_floor_ms - 1, 5)], far), Verdict::Refuse(Why::BelowFloor));
        assert!(matches!(judge(&[sample(to_floor_ms, 5)], far), Verdict::Step(_)));
    }

    #[test]
    fn a_great_leap_is_free_once_and_then_needs_all_and_two() {
        let leap = 25 * 3600 * 1000;
        assert!(matches!(judge(&[sample(leap, 5)], known(false, 1)), Verdict::Step(_)));
        let alone = judge(&[sample(leap, 5)], known(true, 1));
        assert_eq!(alone, Verdict::Refuse(Why::Leap { leap_ns: leap * MS, agreeing: 1, needed: 2 }));
        let both = [sample(leap, 5), sample(leap + 2, 5)];
        assert!(matches!(judge(&both, known(true, 2)), Verdict::Step(_)));
        // A third was asked and is silent, or says otherwise.
        assert!(matches!(judge(&both, known(true, 3)), Verdict::Refuse(Why::Leap { needed: 3, .. })));
        let against = [sample(leap, 5), sample(leap + 2, 5), sample(0, 5)];
        assert!(matches!(judge(&against, known(true, 3)), Verdict::Refuse(Why::Leap { agreeing: 2, .. })));
        // Below the bound a majority is enough.
        let day = 23 * 3600 * 1000;
        assert!(matches!(
            judge(&[sample(day, 5), sample(day, 5), sample(0, 5)], known(true, 3)),
            Verdict::Step(_)
        ));
    }

    #[test]
    fn a_clock_that_somebody_else_moved_is_set_back_on_one_servers_word() {
        let year = 365 * 24 * 3600 * 1000;
        for moved_ms in [year, -year / 2] {
            let expected_unix_ns = Some(NOW_NS - moved_ms * MS);
            let verdict = judge(&[sample(-moved_ms, 5)], Known { expected_unix_ns, ..known(true, 1) });
            assert!(matches!(verdict, Verdict::Step(_)), "{verdict:?}");
            // And a server that agrees with the wrong clock is not believed.
            let verdict = judge(&[sample(0, 5)], Known { expected_unix_ns, ..known(true, 1) });
            assert!(matches!(verdict, Verdict::Refuse(Why::Leap { .. })), "{verdict:?}");
        }
    }

    /// The reference: the most intervals that any one point lies in, by trying each edge of each.
    fn most_meeting(samples: &[Sample]) -> usize {
        samples
            .iter()
            .flat_map(|s| [s.offset_ns - s.distance_ns, s.offset_ns + s.distance_ns])
            .map(|at| samples.iter().filter(|s| (at - s.offset_ns).abs() <= s.distance_ns).count())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn random_rounds_keep_the_rules() {
        let seed = u64::from(std::process::id()) << 8 | 1;
        println!("seed {seed}");
        let mut state = seed;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below) as i64
        };
        for _ in 0..100_000 {
            let count = next(9);
            let samples: Vec<Sample> =
                (0..count).map(|_| sample(next(4_000) - 2_000, 5 + next(1_500))).collect();
            let verdict = judge(&samples, known(next(2) == 0, samples.len()));
            let most = most_meeting(&samples);
            match verdict {
                Verdict::Step(agreed) | Verdict::Slew(agreed) => {
                    assert_eq!(agreed.agreeing, most);
                    assert!(most * 2 > samples.len());
                    let near = samples
                        .iter()
                        .filter(|s| (agreed.offset_ns - s.offset_ns).abs() <= s.distance_ns)
                        .count();
                    assert!(near >= most, "{agreed:?} {samples:?}");
                }
                Verdict::Refuse(Why::NoAnswer) => assert!(samples.is_empty()),
                Verdict::Refuse(Why::NoMajority { .. }) => assert!(most * 2 <= samples.len()),
                Verdict::Refuse(why) => panic!("{why:?}"),
            }
        }
    }

    #[test]
    fn extreme_numbers_do_not_overflow() {
        let extreme = Sample { offset_ns: i64::MIN, distance_ns: i64::MAX, stratum: 1 };
        let other = Sample { offset_ns: i64::MAX, distance_ns: 5, stratum: 1 };
        judge(&[extreme, other, extreme], known(true, 3));
    }
}
