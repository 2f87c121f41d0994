//! The calls of tools that a guest has under way. Pure: which frames of theirs are legal.
//!
//! Must hold: a channel stands for one call of a life, so that an answer never reaches another one; how many are under way is bounded.

use abi::guest::{FrameError, Kind};
use abi::limits;
use abi::tools::Call;
use std::collections::BTreeMap;

/// The calls that have not ended.
#[derive(Debug, Default)]
pub(super) struct Calls {
    last: u32,
    /// By channel: whether it was answered.
    open: BTreeMap<u32, bool>,
}

impl Calls {
    /// A call came.
    pub(super) fn begin(&mut self, channel: u32) -> Result<(), FrameError> {
        if channel <= self.last {
            return Err(wrong(Kind::Call, format!("channel {channel} after channel {}", self.last)));
        }
        if self.open.len() >= limits::TOOL_CALLS_AT_ONCE_MAX {
            let most = limits::TOOL_CALLS_AT_ONCE_MAX;
            return Err(wrong(Kind::Call, format!("more than {most} calls under way")));
        }
        self.last = channel;
        self.open.insert(channel, false);
        Ok(())
    }

    /// It is answered: from now on the guest may end it.
    pub(super) fn answered(&mut self, channel: u32) {
        if let Some(is_answered) = self.open.get_mut(&channel) {
            *is_answered = true;
        }
    }

    /// The guest ended it.
    pub(super) fn end(&mut self, channel: u32) -> Result<(), FrameError> {
        match self.open.get(&channel) {
            Some(true) => self.open.remove(&channel).map(drop).ok_or_else(|| no_call(channel)),
            _ => Err(no_call(channel)),
        }
    }
}

/// A call whose texts are within their bounds.
pub(super) fn checked(call: Call) -> Result<Call, FrameError> {
    if call.tool.len() > limits::AGENT_NAME_BYTES_MAX || call.params.len() > limits::TOOL_PARAMS_BYTES_MAX {
        let (name, params) = (limits::AGENT_NAME_BYTES_MAX, limits::TOOL_PARAMS_BYTES_MAX);
        return Err(wrong(Kind::Call, format!("a name above {name} bytes or parameters above {params}")));
    }
    Ok(call)
}

fn no_call(channel: u32) -> FrameError {
    wrong(Kind::Ended, format!("no answered call has channel {channel}"))
}

fn wrong(kind: Kind, error: String) -> FrameError {
    FrameError::Payload { kind, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_stands_for_one_call() {
        let mut calls = Calls::default();
        calls.begin(1).unwrap();
        assert!(calls.begin(1).is_err(), "while it is open");
        assert!(calls.end(1).is_err(), "before its answer");
        calls.answered(1);
        calls.end(1).unwrap();
        assert!(calls.end(1).is_err(), "twice");
        assert!(calls.begin(1).is_err(), "after its end");
        assert!(calls.begin(0).is_err());
        calls.begin(7).unwrap();
        assert!(calls.begin(6).is_err(), "below one that was used");
        calls.answered(9);
        assert!(calls.end(9).is_err(), "an answer makes no call");
    }

    #[test]
    fn so_many_are_under_way_and_no_more() {
        let mut calls = Calls::default();
        let most = limits::TOOL_CALLS_AT_ONCE_MAX as u32;
        for channel in 1..=most {
            calls.begin(channel).unwrap();
            calls.answered(channel); // an answer alone makes no room: its end does
        }
        assert!(calls.begin(most + 1).is_err());
        calls.end(3).unwrap();
        calls.begin(most + 1).unwrap();
    }

    #[test]
    fn texts_beyond_their_bounds_are_refused() {
        let call = |tool: usize, params: usize| Call { tool: "t".repeat(tool), params: "p".repeat(params) };
        let (name, params) = (limits::AGENT_NAME_BYTES_MAX, limits::TOOL_PARAMS_BYTES_MAX);
        checked(call(name, params)).unwrap();
        checked(call(name + 1, 2)).unwrap_err();
        checked(call(1, params + 1)).unwrap_err();
    }
}
