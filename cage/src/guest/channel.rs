//! One channel of a guest: what waits for its caller, and how much may be on its way in each direction.
//!
//! Must hold: what waits is at most the window, whatever the guest sends; nobody but this channel's caller is held up by it.

use abi::control::Stream;
use abi::guest::{Exit, Failed};
use abi::limits;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::window::{Overrun, Sending, Taking};

/// What the caller of a channel gets.
#[derive(Debug)]
pub enum ChannelSaid {
    Output(Stream, Vec<u8>),
    Exited(Exit),
    Failed(Failed),
    /// Its VM has ended, and with it the channel.
    VmEnded,
    /// Nothing within the time waited.
    Nothing,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    number: u32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    bytes: VecDeque<u8>,
    /// Lengths of the runs in `bytes`, the highest bit set where they are standard error's. A guest that changes streams with
    /// each byte costs five bytes for one, and no more.
    runs: VecDeque<u32>,
    output: Taking,
    input: Sending,
    last: Option<ChannelSaid>,
    is_over: bool,
    /// Nobody reads it any more.
    is_abandoned: bool,
}

const STDERR: u32 = 1 << 31;

impl Channel {
    /// A new channel whose guest may send so many bytes.
    pub fn new(number: u32, window_bytes: u32) -> Channel {
        let state = State {
            bytes: VecDeque::new(),
            runs: VecDeque::new(),
            output: Taking::new(window_bytes),
            input: Sending::new(limits::EXEC_INPUT_WINDOW_BYTES),
            last: None,
            is_over: false,
            is_abandoned: false,
        };
        Channel { number, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Its number in the protocol.
    pub fn number(&self) -> u32 {
        self.number
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest sent output. An abandoned channel's is dropped; what to give back for it, if anything.
    pub(super) fn came(&self, stream: Stream, data: &[u8]) -> Result<Option<u32>, Overrun> {
        if data.is_empty() {
            return Err(Overrun); // a frame that costs the window nothing would be without bound
        }
        let mut state = self.state();
        state.output.came(data.len())?;
        if state.is_abandoned {
            return Ok(state.output.taken(data.len()));
        }
        let mark = if stream == Stream::Stderr { STDERR } else { 0 };
        let length = data.len() as u32; // a frame is far shorter than a u32 counts
        match state.runs.back_mut() {
            Some(run) if *run & STDERR == mark => *run += length,
            _ => state.runs.push_back(length | mark),
        }
        state.bytes.extend(data);
        drop(state);
        self.changed.notify_all();
        Ok(None)
    }

    /// The guest took input.
    pub(super) fn widened(&self, bytes: u32) -> Result<(), Overrun> {
        let result = self.state().input.widened(bytes);
        self.changed.notify_all();
        result
    }

    /// The last thing the channel says.
    pub(super) fn end(&self, last: ChannelSaid) {
        let mut state = self.state();
        if !state.is_over {
            (state.is_over, state.last) = (true, Some(last));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes who waits, to look at something outside the channel.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Nobody reads it any more: drops what waits; what to give back for it, if anything.
    pub(super) fn abandon(&self) -> Option<u32> {
        let mut state = self.state();
        state.is_abandoned = true;
        let dropped = state.bytes.len();
        (state.bytes, state.runs) = Default::default();
        state.output.taken(dropped)
    }

    /// Whether it has said its last.
    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// So many bytes of output were taken by the caller; what to give back for them, if anything.
    pub(super) fn taken(&self, bytes: usize) -> Option<u32> {
        self.state().output.taken(bytes)
    }

    /// Leave to send up to `wanted` bytes of input, waiting for it at most `patience`; zero: there was none. `None`: the channel
    /// has ended.
    pub(super) fn leave(&self, wanted: usize, patience: Duration) -> Option<usize> {
        let mut state = self.state();
        if state.is_over {
            return None;
        }
        let leave = state.input.leave(wanted);
        if leave > 0 {
            return Some(leave);
        }
        let (mut state, _) =
            self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        if state.is_over { None } else { Some(state.input.leave(wanted)) }
    }

    /// What comes next, at most `bytes_max` of output in one piece; waits for it at most `patience`.
    pub fn next(&self, bytes_max: usize, patience: Duration) -> ChannelSaid {
        let state = self.state();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| state.runs.is_empty() && !state.is_over)
            .unwrap_or_else(PoisonError::into_inner);
        let Some(run) = state.runs.front_mut() else {
            return match (state.is_over, state.last.take()) {
                (_, Some(last)) => last,
                (true, None) => ChannelSaid::VmEnded, // asked again after its end
                (false, None) => ChannelSaid::Nothing,
            };
        };
        let stream = if *run & STDERR == 0 { Stream::Stdout } else { Stream::Stderr };
        let length = (*run & !STDERR).min(u32::try_from(bytes_max).unwrap_or(u32::MAX));
        *run -= length;
        if *run & !STDERR == 0 {
            state.runs.pop_front();
        }
        ChannelSaid::Output(stream, state.bytes.drain(..length as usize).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[test]
    fn streams_keep_their_order_and_one_byte_frames_stay_small() {
        let channel = Channel::new(1, 1000);
        for number in 0..1000u32 {
            let stream = if number % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
            channel.came(stream, &[number as u8]).unwrap();
        }
        assert!(channel.came(Stream::Stdout, b"x").is_err());
        let state = channel.state();
        assert_eq!((state.bytes.len(), state.runs.len()), (1000, 1000));
        drop(state);
        for number in 0..1000u32 {
            let expected = if number % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
            match channel.next(100, SOON) {
                ChannelSaid::Output(stream, data) => {
                    assert_eq!((stream, data), (expected, vec![number as u8]));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(channel.next(100, SOON), ChannelSaid::Nothing));
    }

    #[test]
    fn what_came_before_the_end_is_heard_before_it() {
        let channel = Channel::new(1, 1000);
        channel.came(Stream::Stdout, &[7; 300]).unwrap();
        let exit = Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 };
        channel.end(ChannelSaid::Exited(exit));
        for expected in [200, 100] {
            assert!(
                matches!(channel.next(200, SOON), ChannelSaid::Output(_, data) if data.len() == expected)
            );
        }
        assert!(matches!(channel.next(200, SOON), ChannelSaid::Exited(_)));
        assert!(matches!(channel.next(200, SOON), ChannelSaid::VmEnded));
        assert_eq!(channel.leave(1, SOON), None);
    }

    #[test]
    fn an_abandoned_channel_takes_everything_and_keeps_nothing() {
        let channel = Channel::new(1, 100);
        channel.came(Stream::Stdout, &[0; 80]).unwrap();
        assert_eq!(channel.abandon(), Some(80));
        let mut given_back = 0;
        for _ in 0..100 {
            given_back += channel.came(Stream::Stderr, &[0; 50]).unwrap().unwrap_or(0);
        }
        assert_eq!(given_back, 5000);
        assert!(channel.state().bytes.is_empty());
    }

    #[test]
    fn empty_output_is_refused() {
        assert!(Channel::new(1, 100).came(Stream::Stdout, b"").is_err());
    }

    #[test]
    fn input_waits_for_the_guest() {
        let channel = std::sync::Arc::new(Channel::new(1, 100));
        let window = limits::EXEC_INPUT_WINDOW_BYTES;
        assert_eq!(channel.leave(usize::MAX, SOON), Some(window as usize));
        assert_eq!(channel.leave(1, SOON), Some(0));
        let other = channel.clone();
        let waiter = std::thread::spawn(move || other.leave(10, Duration::from_secs(20)));
        channel.widened(5).unwrap();
        assert_eq!(waiter.join().unwrap(), Some(5));
        assert!(channel.widened(window + 1).is_err());
    }
}
