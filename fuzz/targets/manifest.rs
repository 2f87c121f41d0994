//! AGENT.toml, nulld.toml and operators' texts: what an operator or a configuration volume says.
//!
//! Looks for: a panic, a manifest that is accepted and not whole, and one that is another when it was sent as JSON.

#![no_main]

use abi::limits;
use abi::manifest::{Manifest, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match parse("agents/x.toml", text) {
        Ok(manifest) => check(&manifest),
        Err(error) => {
            let told = error.to_string();
            assert!(!told.is_empty() && error.file == "agents/x.toml");
        }
    }
    let _ = text.parse::<abi::ids::Instance>(); // never a panic
});

/// What every accepted manifest is.
fn check(manifest: &Manifest) {
    assert!((1..=limits::COMMAND_ARGS_MAX).contains(&manifest.command.len()));
    assert!((limits::MEMORY_MIB_MIN..=limits::MEMORY_MIB_MAX).contains(&manifest.memory_mib));
    assert!((limits::DISK_MIB_MIN..=limits::DISK_MIB_MAX).contains(&manifest.disk_mib));
    assert!((1..=limits::CPU_PERCENT_MAX).contains(&manifest.cpu_percent));
    assert!((1..=limits::GUEST_PIDS_MAX).contains(&manifest.pids_max));
    assert!(manifest.network_allow.len() <= limits::NETWORK_ALLOW_MAX);
    for path in
        manifest.read.iter().chain(&manifest.write).chain(&manifest.exec).chain(manifest.command.first())
    {
        assert!(path.starts_with('/') && path.len() <= limits::PATH_BYTES_MAX, "{path}");
        assert!(path.split('/').skip(1).all(|part| !matches!(part, "." | "..")), "{path}");
    }
    let json = serde_json::to_string(manifest).unwrap();
    let again: Manifest = serde_json::from_str(&json).unwrap();
    assert_eq!(*manifest, again);
}
