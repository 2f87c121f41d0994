//! The one shape of "your file is wrong": which file, line, field and value, which rule, and what to write instead.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Something wrong in a file the operator wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigError {
    /// The file as the operator knows it.
    pub file: String,
    /// 1-based; 0 when the whole file is meant.
    pub line: usize,
    /// Dotted path of the field; empty when the text is not TOML.
    pub field: String,
    /// The value as written, shortened.
    pub value: String,
    /// The rule that is broken.
    pub rule: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        match (self.field.is_empty(), self.value.is_empty()) {
            (true, true) => write!(f, ": {}", self.rule)?,
            (true, false) => write!(f, ": `{}`: {}", self.value, self.rule)?,
            (false, true) => write!(f, ": {}: {}", self.field, self.rule)?,
            (false, false) => write!(f, ": {} = {}: {}", self.field, self.value, self.rule)?,
        }
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for ConfigError {}

/// A file being parsed: its name and text, to place errors in it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    /// The 1-based line of a byte offset.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count()
    }

    /// The text of a span, shortened to what an error may repeat.
    pub fn excerpt(&self, span: std::ops::Range<usize>) -> String {
        let text = self.text.get(span).unwrap_or_default();
        let mut short: String = text.lines().next().unwrap_or_default().chars().take(80).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        short
    }

    /// An error about a field that parsed but breaks a rule.
    pub fn wrong(
        &self,
        span: std::ops::Range<usize>,
        field: &str,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: self.line(span.start),
            field: field.to_owned(),
            value: self.excerpt(span),
            rule: rule.into(),
            remedy: remedy.into(),
        }
    }

    /// An error of the TOML parser or of the shape of the document.
    pub fn malformed(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let line_number = self.line(span.start);
        let line = self.text.lines().nth(line_number.saturating_sub(1)).unwrap_or_default();
        let (field, value) = line.split_once('=').unwrap_or((line, ""));
        let field = field.trim().trim_matches(['[', ']']);
        let (rule, remedy) = match error.message().split_once(", expected") {
            Some((rule, expected)) => (rule.to_owned(), format!("expected{expected}")),
            None => (error.message().to_owned(), String::new()),
        };
        ConfigError {
            file: self.file.to_owned(),
            line: line_number,
            field: field.chars().take(80).collect(),
            value: value.trim().chars().take(80).collect(),
            rule,
            remedy,
        }
    }
}
