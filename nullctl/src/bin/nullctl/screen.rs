//! The terminal nullctl runs in: raw while a remote one is shown in it, its size, and the signals that come meanwhile.
//!
//! Must hold: it is as it was before when nullctl ends, whether by return, panic or signal.

use abi::guest::TerminalSize;
use abi::limits::TERMINAL_SIZE_MAX;
use nix::sys::signal::{SigSet, Signal};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

/// As it was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Signals that end nullctl.
const ENDS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];

/// Raw mode, until dropped.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes standard input's terminal raw; none if it is no terminal. Call it before any thread is started: signals are then
    /// [`watch`]'s alone.
    pub fn enter() -> io::Result<Option<Raw>> {
        Raw::with(Termios::make_raw)
    }

    /// Lets it show nothing of what is typed, and is otherwise as it was; a signal that ends nullctl restores it first.
    pub fn hidden() -> io::Result<Option<Raw>> {
        let hidden = Raw::with(|mode| mode.local_modes.remove(LocalModes::ECHO))?;
        if let Some(hidden) = &hidden {
            hidden.watch(|_| {})?;
        }
        Ok(hidden)
    }

    fn with(change: impl FnOnce(&mut Termios)) -> io::Result<Option<Raw>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        watched().thread_block().map_err(io::Error::from)?;
        let before = tcgetattr(io::stdin())?;
        let mut mode = before.clone();
        change(&mut mode);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        let entered = Raw(());
        tcsetattr(io::stdin(), OptionalActions::Now, &mode)?;
        Ok(Some(entered))
    }

    /// Calls `resized` with each new size, on a thread of its own; a signal that ends nullctl restores the terminal first.
    pub fn watch(&self, mut resized: impl FnMut(TerminalSize) + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("signals".into());
        let watch = move || {
            while let Ok(signal) = watched().wait() {
                if signal != Signal::SIGWINCH {
                    restore();
                    std::process::exit(128 + signal as i32);
                }
                if let Some(size) = size() {
                    resized(size);
                }
            }
        };
        thread.spawn(watch).map(drop)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn watched() -> SigSet {
    ENDS.into_iter().chain([Signal::SIGWINCH]).collect()
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before); // it may have gone
    }
}

/// The size of the terminal that standard output, input or error is.
pub fn size() -> Option<TerminalSize> {
    let all = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin()), tcgetwinsize(io::stderr())];
    let size = all.into_iter().find_map(Result::ok).filter(|size| size.ws_row > 0 && size.ws_col > 0)?;
    Some(TerminalSize {
        rows: size.ws_row.min(TERMINAL_SIZE_MAX),
        columns: size.ws_col.min(TERMINAL_SIZE_MAX),
    })
}

/// Finds the keys that detach, ctrl-p ctrl-q, in what is typed.
#[derive(Debug, Default)]
pub struct DetachKeys {
    /// A ctrl-p that waits for what follows it.
    held: bool,
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

impl DetachKeys {
    /// What to pass on, and whether the keys came; what follows them is dropped.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            if std::mem::take(&mut self.held) {
                if *byte == CTRL_Q {
                    return (out, true);
                }
                out.push(CTRL_P);
            }
            match *byte {
                CTRL_P => self.held = true,
                byte => out.push(byte),
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_keys_in_a_row_detach_and_nothing_else_is_lost() {
        for (typed, passed, detached) in [
            (&[b"abc".as_slice()][..], b"abc".as_slice(), false),
            (&[b"a\x10", b"\x11b"], b"a", true),
            (&[b"a\x10\x11b"], b"a", true),
            (&[b"\x10", b"x", b"\x11"], b"\x10x\x11", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
            (&[b"\x11\x10", b"y"], b"\x11\x10y", false),
        ] {
            let mut keys = DetachKeys::default();
            let (mut out, mut found) = (Vec::new(), false);
            for part in typed {
                let (some, now) = keys.take(part);
                out.extend(some);
                found |= now;
            }
            assert_eq!((out.as_slice(), found), (passed, detached), "{typed:?}");
        }
    }
}
