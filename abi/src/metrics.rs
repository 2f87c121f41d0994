//! Prometheus's text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats): written by cage and nullgate.
//!
//! Must hold: the samples of a name stand together under one HELP and one TYPE, whatever the order in which they were added;
//! no label can break its line.

use std::fmt::Write as _;

/// Content type of the text over HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until it begins anew from 0. Its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A page of samples.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: String,
}

impl Page {
    /// Adds a sample. Base units: seconds and bytes.
    pub fn add(
        &mut self,
        kind: Kind,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let at = self.families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.families.push(Family { name, kind, help, samples: String::new() });
            self.families.len() - 1
        });
        let Some(family) = self.families.get_mut(at) else { return };
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Writing to a String cannot fail.
        let _ = writeln!(family.samples, "{name}{braces} {value}");
    }

    /// A counter; `name` ends in `_total`.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: impl Into<f64>,
    ) {
        self.add(Kind::Counter, name, help, labels, value.into());
    }

    /// A gauge.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: impl Into<f64>,
    ) {
        self.add(Kind::Gauge, name, help, labels, value.into());
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        self.families.iter().fold(String::new(), |mut text, family| {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            let Family { name, help, samples, .. } = family;
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}"); // cannot fail
            text
        })
    }
}

/// A large count as a sample's value: exact up to 2^53.
pub fn count(value: u64) -> f64 {
    value as f64
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Cuts a text between lines into parts of at most `most` bytes; a longer line is a part of its own. At least one part.
pub fn parts(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        if end > start && end + line.len() - start > most {
            parts.push(text.get(start..end).unwrap_or_default());
            start = end;
        }
        end += line.len();
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_name_stand_together_under_one_head() {
        let mut page = Page::default();
        page.counter("x_total", "Xs.", &[("agent", "a")], 1);
        page.gauge("y", "Ys.", &[], 0.5);
        page.counter("x_total", "Xs.", &[("agent", "b"), ("why", "q\"\\\n")], 2);
        assert_eq!(
            page.text(),
            "# HELP x_total Xs.\n# TYPE x_total counter\nx_total{agent=\"a\"} 1\n\
             x_total{agent=\"b\",why=\"q\\\"\\\\\\n\"} 2\n# HELP y Ys.\n# TYPE y gauge\ny 0.5\n"
        );
    }

    #[test]
    fn large_counts_are_written_out() {
        let mut page = Page::default();
        page.counter("x_total", "Xs.", &[], count(9_007_199_254_740_992));
        assert!(page.text().ends_with("x_total 9007199254740992\n"));
    }

    #[test]
    fn parts_end_with_lines_and_make_the_whole() {
        let text = "one\ntwo\nthree\n";
        assert_eq!(parts(text, 8), ["one\ntwo\n", "three\n"]);
        assert_eq!(parts(text, 1), ["one\n", "two\n", "three\n"]);
        assert_eq!(parts(text, 100), [text]);
        assert_eq!(parts("", 8), [""]);
        for most in 0..20 {
            assert_eq!(parts(text, most).concat(), text);
        }
    }
}
