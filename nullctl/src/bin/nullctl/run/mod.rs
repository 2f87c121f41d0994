//! What each command does: parameters, the call, and the result in words.

pub mod agent;
pub mod bundle;
pub mod disks;
pub mod doctor;
pub mod evidence;
pub mod exec;
pub mod files;
pub mod image;
pub mod ledger;
pub mod local;
pub mod logs;
pub mod memory;
pub mod net;
pub mod offbox;
pub mod proofs;
pub mod spend;
#[cfg(feature = "sync")]
pub mod sync;
pub mod system;
pub mod watch;

use abi::rpc::Request;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::link::typed;

/// A name from the command line as the type that holds its rule.
fn id<T: std::str::FromStr>(text: &str) -> Result<T, Failure>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| Failure::usage(error.to_string(), "correct the name"))
}

/// The parameters of a notification, if it is the one of this name.
fn note<T: DeserializeOwned>(request: &Request, name: &str) -> Result<Option<T>, Failure> {
    if request.method == name { typed(&request.params).map(Some) } else { Ok(None) }
}
