//! exposure_never_falls.

use crate::world::{EXPOSURES, each_seed};
use abi::exposure::Exposure;
use abi::limits;
use std::collections::BTreeMap;
use verdict::exposure::{EVERYTHING, Exposed};

#[test]
fn exposure_never_falls() {
    each_seed(2_000, |random| {
        let (seen, written) = (*random.pick(&EXPOSURES), *random.pick(&EXPOSURES));
        let mut life = Exposed::beginning(seen, written);
        assert_eq!((life.seen(), life.written()), (seen, written));
        let mut kept: BTreeMap<u32, Exposure> = BTreeMap::new();
        for _ in 0..600 {
            let (seen, written) = (life.seen(), life.written());
            let labels = *random.pick(&EXPOSURES);
            match random.below(3) {
                0 => {
                    let rose = life.see(labels);
                    assert_eq!(life.seen(), seen.and(labels));
                    assert_eq!(rose, life.seen() != seen);
                }
                1 => {
                    life.write(labels);
                    assert_eq!(
                        life.written(),
                        written.and(seen).and(labels),
                        "what was seen goes into what is written"
                    );
                }
                _ => {
                    let value = random.below(400) as u32;
                    life.keep(value, labels);
                    let known = kept.entry(value).or_default();
                    *known = known.and(labels);
                }
            }
            assert!(life.seen().has(seen) && life.written().has(written));
        }
        for (value, labels) in &kept {
            assert!(life.of(*value).has(*labels), "a value carries at least what it was given");
        }
        assert_eq!(life.of(1000), EVERYTHING, "nobody knows what that is");
    });
}

#[test]
fn a_forgotten_value_counts_as_everything() {
    let mut life = Exposed::default();
    let most = limits::TOOL_VALUES_MAX as u32;
    (0..most).for_each(|value| life.keep(value, Exposure::NONE));
    assert_eq!((life.of(0), life.of(most)), (Exposure::NONE, EVERYTHING));
    life.keep(most, Exposure::PRIVATE_DATA);
    assert_eq!((life.of(0), life.of(1), life.of(most)), (EVERYTHING, Exposure::NONE, Exposure::PRIVATE_DATA));
    assert_eq!(life.flows([1, most]), Exposure::PRIVATE_DATA);
    assert_eq!(life.flows([1, 2]), Exposure::NONE);
    assert_eq!(life.flows([1, 0]), EVERYTHING);
    assert_eq!(life.flows([]), Exposure::NONE);
}
