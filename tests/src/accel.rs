//! Which accelerator QEMU can really use. /dev/kvm that exists may still not run a guest, and a node needs nested
//! virtualization too, so both are tried, not inferred.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// QEMU's arguments for the accelerator; found once per process.
///
/// The emulated CPU goes without nested page tables (`-npt`): with them QEMU 7.2 now and then ends a guest in the node by a triple
/// fault, or the node's kernel finds its own stack overwritten (docs/decisions/0007). KVM in the node then keeps shadow page tables.
pub fn arguments() -> &'static [&'static str] {
    static FOUND: OnceLock<bool> = OnceLock::new();
    match FOUND.get_or_init(|| std::env::var_os("NULLBOX_ACCEL").map_or_else(kvm_works, |v| v == "kvm")) {
        true => &["-accel", "kvm", "-cpu", "host"],
        false => &["-accel", "tcg,thread=multi", "-cpu", "max,-npt"],
    }
}

/// Whether nodes are emulated.
pub fn is_emulated() -> bool {
    !arguments().contains(&"kvm")
}

/// CPUs of a node with many guests: one where it is emulated, since two at a time still lose a guest in some runs (decision 0007).
pub fn cpus_for_a_crowd() -> u32 {
    if is_emulated() { 1 } else { 2 }
}

/// Whether KVM runs our own kernel to its first panic (there is no root to mount) within 20 s, and nests.
fn kvm_works() -> bool {
    let nests = ["kvm_intel", "kvm_amd"].iter().any(|module| {
        std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|text| matches!(text.trim(), "Y" | "1"))
    });
    if !nests || std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let Ok(kernel) = crate::image(&["kernel", "host", "--print-path"]) else {
        return false;
    };
    let guest = Command::new("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "host", "-m", "256", "-display", "none", "-no-reboot", "-nodefaults"])
        .args(["-append", "panic=-1", "-kernel", &kernel])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut guest) = guest else { return false };
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        match guest.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(_) => break,
        }
    }
    let _ = guest.kill(); // it may have ended meanwhile
    let _ = guest.wait();
    false
}
