//! Lines for the VM's console, which the host keeps beside the agent's log.
//!
//! Must hold: what an agent can cause is bounded over the guest's whole life. Must never: fail, or show an agent's data raw.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

/// Lines that an agent's doing may cause in one guest. Further ones are dropped, and the last says so.
const AGENT_LINES_MAX: u32 = 200;
const LINE_CHARS_MAX: usize = 400;
static AGENT_LINES: AtomicU32 = AtomicU32::new(0);

/// One line about the guest itself.
pub fn say(event: impl Display) {
    let text: String = event.to_string().chars().take(LINE_CHARS_MAX).flat_map(printable).collect();
    // One write, so that lines of the kernel do not cut it. Nobody is left to tell when it fails.
    let _ = std::io::stderr().write_all(format!("verifier: {text}\n").as_bytes());
}

/// One line that an agent's doing caused.
pub fn say_of_agent(event: impl Display) {
    match AGENT_LINES.fetch_add(1, Ordering::Relaxed) {
        0..AGENT_LINES_MAX => say(event),
        AGENT_LINES_MAX => say("further lines caused by the agent are not shown"),
        _ => AGENT_LINES.store(AGENT_LINES_MAX + 1, Ordering::Relaxed),
    }
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control() || !c.is_ascii();
    let (plain, escape) = if escaped { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escape.into_iter().flatten())
}
