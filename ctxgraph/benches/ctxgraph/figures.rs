//! What was measured, what it has to be, and how it is told.

use serde_json::{Value, json};

/// Figures of one kind, in the order they were taken.
#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

/// Everything of one run.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<Row>,
}

/// What a median, or its ratio to another's, has to be.
struct Aim {
    what: &'static str,
    name: &'static str,
    /// None: the figure itself.
    of: Option<&'static str>,
    at_least: bool,
    bound: f64,
}

const AIMS: [Aim; 4] = [
    Aim {
        what: "64 writers, times plain one-transaction writes",
        name: "writes, 64 writers",
        of: Some("SQLite, a transaction each, 64 threads"),
        at_least: true,
        bound: 5.0,
    },
    Aim {
        what: "a read by hash, times raw SQLite's",
        name: "read by hash",
        of: Some("SQLite, the same row"),
        at_least: false,
        bound: 1.5,
    },
    Aim {
        what: "a ledger append without fsync, us",
        name: "append, not waited for, p50",
        of: None,
        at_least: false,
        bound: 10.0,
    },
    Aim { what: "verify, MB/s", name: "verify of the ledger", of: None, at_least: true, bound: 500.0 },
];

impl Figures {
    /// Adds one figure.
    pub fn push(&mut self, name: &str, unit: &'static str, value: f64) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { name: name.into(), unit, values: vec![value] }),
        }
    }

    fn median(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name).and_then(|row| rank(&row.values, 50))
    }

    fn reached(&self, aim: &Aim) -> Option<f64> {
        let value = self.median(aim.name)?;
        Some(match aim.of {
            Some(of) => value / self.median(of)?,
            None => value,
        })
    }

    /// Aims that were missed, and what was not measured; empty when all is well.
    pub fn shortfalls(&self) -> Vec<String> {
        let missed = |aim: &Aim| match self.reached(aim) {
            None => Some(format!("{}: not measured", aim.what)),
            Some(value) if aim.at_least && value >= aim.bound || !aim.at_least && value <= aim.bound => None,
            Some(value) => Some(format!("{}: {value:.2}; the aim is {}", aim.what, aim.wanted())),
        };
        AIMS.iter().filter_map(missed).collect()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<52} {:>12} {:>12} {:>12}\n", "medians", "", "smallest", "largest");
        for row in &self.rows {
            let [low, middle, high] =
                [0, 50, 100].map(|percent| rank(&row.values, percent).unwrap_or(f64::NAN));
            let name = format!("{}, {}", row.name, row.unit);
            text += &format!("{name:<52} {middle:>12.1} {low:>12.1} {high:>12.1}\n");
        }
        for aim in &AIMS {
            let value = self.reached(aim).map_or("-".to_owned(), |value| format!("{value:.2}"));
            text += &format!("{:<52} {value:>12} (aim: {})\n", aim.what, aim.wanted());
        }
        text
    }

    /// For programs, with every single figure.
    pub fn json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| json!({ "name": row.name, "unit": row.unit, "median": rank(&row.values, 50), "values": row.values }))
            .collect();
        let aims: Vec<_> = AIMS
            .iter()
            .map(|aim| json!({ "aim": aim.what, "wanted": aim.wanted(), "reached": self.reached(aim) }))
            .collect();
        json!({ "figures": rows, "aims": aims, "shortfalls": self.shortfalls() })
    }
}

impl Aim {
    fn wanted(&self) -> String {
        format!("{} {}", if self.at_least { "at least" } else { "at most" }, self.bound)
    }
}

/// A percentile by nearest rank: a figure that was measured.
pub fn rank(figures: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied()
}
