//! What each command does: parameters, the call, and the result in words.

pub mod agent;
mod amounts;
pub mod approvals;
pub mod bundle;
pub mod disks;
pub mod doctor;
pub mod evidence;
pub mod exec;
pub mod exposure;
pub mod files;
pub mod image;
pub mod ledger;
pub mod local;
pub mod logs;
pub mod memory;
pub mod net;
pub mod offbox;
#[cfg(feature = "policy")]
pub mod policy;
pub mod proofs;
pub mod spend;
#[cfg(feature = "sync")]
pub mod sync;
pub mod system;
pub mod task;
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
    text.parse().map_err(|error: T::Err| Failure::usage(error.to_string(), "correct it"))
}

/// Whether what is sent there stays on this machine.
#[cfg(any(feature = "forge", feature = "sync"))]
fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The parameters of a notification, if it is the one of this name.
fn note<T: DeserializeOwned>(request: &Request, name: &str) -> Result<Option<T>, Failure> {
    if request.method == name { typed(&request.params).map(Some) } else { Ok(None) }
}

/// A value that is one word on the wire, as that word.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or("-").to_owned()
}
