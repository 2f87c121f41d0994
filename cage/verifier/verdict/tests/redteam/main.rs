//! The red team: hostile sequences against the library itself, by category, each with an oracle that knows by other means what an escape is.
//! A case is made of its category and a seed; `NULLBOX_SEED=N` runs one seed of each. That the harness sees escapes is tested with each
//! category's own breach: the decision, or the host's use of it, made wrong in one place.

mod approvals;
mod flows;
mod house;
mod patches;
mod receipts;
mod tokens;

use house::Random;

/// One way to attack.
struct Category {
    name: &'static str,
    cases: u64,
    /// Plays one case; with `breached`, against a library that is wrong in one place. An escape is told in words.
    play: fn(random: &mut Random, breached: bool) -> Result<(), String>,
}

const CATEGORIES: [Category; 15] = [
    Category { name: "injection in files", cases: 150, play: flows::in_files },
    Category { name: "injection in pages", cases: 150, play: flows::in_pages },
    Category { name: "injection in tool results", cases: 150, play: flows::in_tool_results },
    Category { name: "injection in memory", cases: 150, play: flows::in_memory },
    Category { name: "hidden tool instructions", cases: 100, play: flows::hidden_instructions },
    Category { name: "capability forgery", cases: 150, play: flows::forged_capabilities },
    Category { name: "memory as authority", cases: 80, play: tokens::memory_as_authority },
    Category { name: "delegation widening", cases: 80, play: tokens::widened_delegation },
    Category { name: "replay of approvals", cases: 150, play: approvals::replay },
    Category { name: "self-approval", cases: 150, play: approvals::by_oneself },
    Category { name: "budget races", cases: 150, play: approvals::budget_races },
    Category { name: "identity spoof", cases: 150, play: approvals::spoofed_identity },
    Category { name: "path escape", cases: 150, play: patches::path_escape },
    Category { name: "verify weakening", cases: 150, play: patches::weakened_verify },
    Category { name: "receipt tampering and replay", cases: 100, play: receipts::tampered },
];

fn seeds(category: &Category) -> Vec<u64> {
    let only = std::env::var("NULLBOX_SEED").ok().and_then(|text| text.parse().ok());
    only.map_or_else(|| (0..category.cases).collect(), |seed| vec![seed])
}

#[test]
fn no_category_escapes() {
    let (mut cases, mut escapes) = (0, Vec::new());
    for category in &CATEGORIES {
        let before = escapes.len();
        for seed in seeds(category) {
            cases += 1;
            if let Err(how) = (category.play)(&mut Random::new(category.name, seed), false) {
                escapes.push(format!("{}: NULLBOX_SEED={seed}: {how}", category.name));
            }
        }
        println!(
            "{:30} {:5} cases {:3} escapes",
            category.name,
            seeds(category).len(),
            escapes.len() - before
        );
    }
    println!("{:30} {cases:5} cases {:3} escapes", "together", escapes.len());
    assert!(escapes.is_empty(), "{}", escapes.join("\n"));
    assert!(cases >= 1000 || std::env::var("NULLBOX_SEED").is_ok());
}

#[test]
fn every_category_finds_its_breach() {
    for category in &CATEGORIES {
        let found = (0..category.cases)
            .filter(|seed| (category.play)(&mut Random::new(category.name, *seed), true).is_err())
            .count();
        println!("{:30} {found:5} of {} cases find the breach", category.name, category.cases);
        assert!(found > 0, "{}: nothing noticed", category.name);
    }
}
