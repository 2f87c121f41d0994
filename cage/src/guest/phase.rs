//! How far a guest has come, and so what it may say.
//!
//! Must hold: what is not named here is not legal; every phase only goes on.

use abi::guest::{FrameError, Kind};

/// How far a guest has come. Decides what it may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but its hello.
    Connected,
    /// It has its orders and sets itself up.
    Started,
    /// The agent's command runs, or its ready says that it is about to.
    Running,
    /// The agent's command has ended; execs may still end.
    Ended,
}

/// The phase after a frame, or that the frame is not legal. Pure.
pub fn admit(phase: Phase, kind: Kind, channel: u32) -> Result<Phase, FrameError> {
    use Phase::{Connected, Ended, Running, Started};
    let main = channel == 0;
    match (phase, kind) {
        (Connected, Kind::Hello) if main => Ok(Started),
        (Started, Kind::Ready) if main => Ok(Running),
        (Started | Running, Kind::Failed) if main => Ok(Ended),
        (Running, Kind::Exit) if main => Ok(Ended),
        (Running, Kind::Stdout | Kind::Stderr | Kind::Window) => Ok(Running),
        (Running | Ended, Kind::Exit | Kind::Failed) if !main => Ok(phase),
        (Ended, Kind::Stdout | Kind::Stderr | Kind::Window) if !main => Ok(Ended),
        (Running | Ended, Kind::Synced | Kind::Health) if main => Ok(phase),
        (Running | Ended, Kind::Call | Kind::Ended) if !main => Ok(phase),
        (Started | Running | Ended, Kind::Denied) => Ok(phase),
        _ => Err(FrameError::Unexpected { got: kind }),
    }
}
