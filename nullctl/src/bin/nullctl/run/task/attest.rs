//! `task verify-attestation`: what a node signed of a verified patch, checked without it.

use abi::limits;
use ledger::attestation::open;
use serde_json::json;
use std::fs::File;
use std::io::Read;

use crate::cli::Arguments;
use crate::context::Context;
use crate::failure::{Failure, status};
use crate::pack::Tree;
use crate::print::{facts, span, visible};
use crate::run::offbox;
use crate::words;

pub fn verify_attestation(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let (path, key) = (given.required(0), offbox::key(given)?);
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!("{}: {error}", visible(path)), "name what task attest wrote")
    };
    let mut text = String::new();
    let most = limits::ATTESTATION_BYTES_MAX as u64 + 1;
    File::open(path).map_err(unreadable)?.take(most).read_to_string(&mut text).map_err(unreadable)?;
    let wrong = |why: String| {
        Failure::local(
            status::FAILED,
            format!("{}: {why}", visible(path)),
            "an attestation is signed with the ledger's key, and speaks of one tree",
            "",
        )
    };
    let attestation = open(&text, &key).map_err(|error| wrong(error.to_string()))?;
    let about = &attestation.facts;
    let tree = match given.value("repo") {
        None => None,
        Some(repo) => {
            let digest = Tree::of(repo)?.digested()?.digest();
            if digest != about.result {
                return Err(wrong(format!(
                    "{} is the tree {digest}, and {} was verified",
                    visible(repo),
                    about.result
                )));
            }
            Some(repo)
        }
    };
    let mut pairs = vec![
        ("signed by", key.to_string()),
        ("task", format!("{} of agent {}", about.task, about.agent)),
        ("ran", words::shown(&about.command)),
        ("in", format!("{}, which ran nothing else, for {}", about.verifier, span(about.wall_ms))),
        ("base", about.base.to_string()),
        ("patch", about.patch.to_string()),
        ("tree with it", about.result.to_string()),
        ("rootfs", about.rootfs.to_string()),
        ("kernel", about.kernel.to_string()),
        ("first program", about.init.to_string()),
        ("its output", about.output.to_string()),
        ("ledger", format!("event {} of {}", attestation.receipt.seq, attestation.checkpoint.size)),
    ];
    if let Some(source) = &about.source {
        pairs.push(("operator says", source.clone()));
    }
    pairs.extend(about.protect.iter().map(|pattern| ("protected", pattern.to_string())));
    let is =
        tree.map(|repo| format!("{} is the tree that was verified\n", visible(repo))).unwrap_or_default();
    let words = format!("the attestation holds\n{is}{}", facts(&pairs));
    let json = json!({ "holds": true, "facts": about, "receipt": attestation.receipt, "repo": tree });
    super::told(context, &json, &words)
}
