//! What commands of `memory` read from files and standard input.

use std::fs::File;
use std::io::{self, Read};

use crate::failure::Failure;

/// The text of a file; `-` is standard input. Bounded: what does not fit a line the node would not take.
pub fn text(path: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let most = abi::limits::LINE_BYTES_MAX as u64 + 1;
    let read = match path {
        "-" => io::stdin().lock().take(most).read_to_string(&mut text),
        path => File::open(path).and_then(|file| file.take(most).read_to_string(&mut text)),
    };
    read.map_err(|error| {
        Failure::usage(format!("{}: {error}", shown(path)), "name a text file, or - for standard input")
    })?;
    if text.len() > abi::limits::LINE_BYTES_MAX {
        let message = format!("{}: more than {} bytes", shown(path), abi::limits::LINE_BYTES_MAX);
        return Err(Failure::usage(message, "one call takes no more: split it"));
    }
    Ok(text)
}

/// A JSON array of numbers.
pub fn vector(path: &str) -> Result<Vec<f32>, Failure> {
    serde_json::from_str(&text(path)?).map_err(|error| {
        Failure::usage(
            format!("{}: no vector: {error}", shown(path)),
            "write a JSON array of numbers, like [0.1, -0.5]",
        )
    })
}

fn shown(path: &str) -> &str {
    if path == "-" { "standard input" } else { path }
}
