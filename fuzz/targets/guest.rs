//! What a guest says: frames, the host's reading of them, and the records of copies.
//!
//! Looks for: a panic, a hang, a frame that is not itself again when written, more waiting for a caller than its window,
//! a call of a tool out of its order or beyond their bounds.

#![no_main]

use abi::control::Stream;
use abi::files::Reader;
use abi::guest::{Denied, Exec, Files, FilesJob, Frame, FrameError, Hello, Kind, PROTOCOL, Ready};
use abi::limits;
use abi::tools::{Answer, Call, Ended, Refused};
use cage::guest::{ChannelSaid, Said, Session, Sink, listen};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What a socket holds without anybody reading.
const SENT_BYTES_MAX: usize = 64 * 1024;
/// Kinds of frames, with 0, which is none.
const KINDS: u8 = Kind::Still as u8 + 1;

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    match mode % 3 {
        0 => frames(rest),
        1 => session(&told(rest)),
        _ => records(rest),
    }
});

/// Any bytes as frames: what is read is written as it came.
fn frames(bytes: &[u8]) {
    let mut input = Cursor::new(bytes);
    loop {
        let begin = input.position() as usize;
        let Ok(Some(frame)) = Frame::read_from(&mut input) else { break };
        let mut written = Vec::new();
        frame.write_to(&mut written).unwrap();
        assert_eq!(written, bytes[begin..input.position() as usize]);
    }
    session(bytes);
}

/// Frames in short, so that the fuzzer need not guess their headers: kind, channel, length, payload.
fn told(mut bytes: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    // The beginning that every guest has to get right, unless the first byte says otherwise.
    if bytes.first().is_some_and(|first| *first >= 8) {
        let hello = Hello { protocol: PROTOCOL, uptime_us: 1 };
        Frame::json(Kind::Hello, 0, &hello).unwrap().write_to(&mut wire).unwrap();
        Frame::json(Kind::Ready, 0, &Ready { stages_us: vec![] }).unwrap().write_to(&mut wire).unwrap();
    }
    while let [kind, channel, length, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        if let Some(kind) = Kind::from_byte(kind % KINDS) {
            let payload = match kind {
                // Long enough to run into a window now and then.
                Kind::Stdout | Kind::Stderr => payload.repeat(1 + usize::from(*channel >> 2)),
                _ => payload.to_vec(),
            };
            let channel = match kind {
                Kind::Call | Kind::Ended => *channel,
                _ => channel % 4,
            };
            Frame::data(kind, u32::from(channel), &payload).write_to(&mut wire).unwrap();
        }
        bytes = rest;
    }
    wire
}

/// Answers every second call, and holds the guest to the order of calls.
struct Desk<'a> {
    session: &'a Session,
    last: u32,
    /// By channel: whether it was answered.
    open: BTreeMap<u32, bool>,
}

impl Sink for Desk<'_> {
    fn output(&mut self, _: Stream, _: &[u8]) {}
    fn denied(&mut self, _: Denied) {}
    fn called(&mut self, channel: u32, call: Call) -> Result<(), FrameError> {
        assert!(channel > self.last, "channel {channel} after {}", self.last);
        assert!(call.tool.len() <= limits::AGENT_NAME_BYTES_MAX && call.params.len() <= limits::TOOL_PARAMS_BYTES_MAX);
        let is_answered = channel % 2 == 0;
        self.last = channel;
        self.open.insert(channel, is_answered);
        assert!(self.open.len() <= limits::TOOL_CALLS_AT_ONCE_MAX);
        if is_answered {
            let none = String::new;
            let refused = Refused { receipt: None, rule: none(), why: none(), remedy: none() };
            let _ = self.session.answer(channel, &Answer::Refused(refused), None); // the guest has hung up
        }
        Ok(())
    }
    fn call_ended(&mut self, channel: u32, _: Ended) {
        assert_eq!(self.open.remove(&channel), Some(true), "the end of channel {channel}");
    }
}

/// The host's end of a guest that says these bytes and hangs up, with two execs and a copy open.
fn session(bytes: &[u8]) {
    let (mut guest, host) = UnixStream::pair().unwrap();
    let session = Session::new(&host).unwrap();
    let exec = Exec {
        command: vec!["/x".into()],
        env: Vec::new(),
        workdir: String::new(),
        terminal: None,
        window_bytes: limits::EXEC_WINDOW_BYTES,
    };
    let mut channels = vec![session.exec(&exec).unwrap(), session.exec(&exec).unwrap()];
    channels.push(session.files(FilesJob::Changes).unwrap());
    guest.set_nonblocking(true).unwrap();
    let _ = guest.write(&bytes[..bytes.len().min(SENT_BYTES_MAX)]); // as much as fits
    drop(guest);
    let ended = std::cell::Cell::new(0);
    let mut desk = Desk { session: &session, last: 0, open: BTreeMap::new() };
    listen(host, &session, &mut desk, &|said| {
        assert_eq!(ended.get(), 0, "something was said after the end");
        ended.set(u32::from(matches!(said, Said::Ended(_))));
    });
    assert_eq!(ended.get(), 1);
    for channel in channels {
        let mut waiting = 0;
        while let ChannelSaid::Output(_, bytes) = channel.next(usize::MAX, Duration::ZERO) {
            assert!(!bytes.is_empty());
            waiting += bytes.len();
        }
        assert!(waiting <= limits::EXEC_WINDOW_BYTES as usize, "{waiting} bytes wait");
        assert!(channel.is_over());
    }
    assert_eq!(session.execs_running(), 0);
}

/// Any bytes as the records of a copy, with and without contents.
fn records(bytes: &[u8]) {
    for contents in [true, false] {
        let mut reader = Reader::new(Cursor::new(bytes));
        while let Ok(Some(record)) = reader.next(contents) {
            assert!(abi::files::path_ok(&record.path));
            assert!(!record.path.split('/').any(|part| part == ".."));
            let mut part = [0; 64];
            let _ = reader.content().read(&mut part); // what is left is passed over by the next one
        }
    }
    let _ = serde_json::from_slice::<Files>(bytes); // never a panic
}
