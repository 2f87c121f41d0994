//! A TLS client's first flight.
//!
//! Looks for: a panic, a verdict that changes with the bytes that come later, and a server name that rustls reads differently.

#![no_main]

use egress::tls::{self, Hello};
use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

/// Every prefix of a longer input only takes longer.
const PREFIXES_MAX: usize = 1024;

fuzz_target!(|input: &[u8]| {
    // The first byte is looked at by the caller.
    let mut bytes = input.to_vec();
    match bytes.first_mut() {
        Some(first) => *first = 22,
        None => return,
    }
    let whole = tls::look(&bytes);
    let step = bytes.len().div_ceil(PREFIXES_MAX).max(1);
    let mut decided = None;
    for end in (1..=bytes.len()).step_by(step) {
        let seen = tls::look(&bytes[..end]);
        match &decided {
            None if seen != Hello::Partial => decided = Some(seen),
            None => {}
            Some(earlier) => assert_eq!(seen, *earlier, "at {end}"),
        }
    }
    if let Some(decided) = decided {
        assert_eq!(whole, decided);
    }
    let Hello::Whole { server_name, .. } = whole else { return };
    let mut acceptor = Acceptor::default();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() && acceptor.read_tls(&mut rest).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                // What rustls takes for no name (an address, a trailing dot) it leaves out.
                if let Some(read) = accepted.client_hello().server_name() {
                    assert_eq!(server_name.as_deref(), Some(read.to_ascii_lowercase().as_str()));
                }
                return;
            }
            Err(_) => return,
        }
    }
});
