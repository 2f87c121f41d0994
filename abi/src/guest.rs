//! The protocol between cage (host) and the verifier (PID 1 of a guest), over vsock port [`CONTROL_PORT`].
//!
//! A frame is `length: u32 LE | kind: u8 | channel: u32 LE | payload` with `length` the payload's bytes, at most
//! [`limits::GUEST_FRAME_BYTES_MAX`]. Control payloads are JSON with unknown fields denied; data payloads are raw bytes.
//! Channel 0 is the agent's command; an exec gets a channel above 0, chosen by the host, never used twice in one VM.
//!
//! Order: guest sends [`Kind::Hello`]; host answers [`Kind::Start`]; guest sets itself up and sends [`Kind::Ready`] (or
//! [`Kind::Failed`], then halts), starts the agent, streams [`Kind::Stdout`]/[`Kind::Stderr`], and sends [`Kind::Exit`] on
//! channel 0 when the agent has ended; it halts after the host's [`Kind::Shutdown`] or when the connection closes.
//! On a channel above 0 output is sent only as far as the window reaches that [`Exec`] or [`Files`] gave and [`Kind::Window`]
//! widened; input likewise on every channel, 0 too, from [`limits::EXEC_INPUT_WINDOW_BYTES`] on. So a slow reader holds up its own
//! channel alone. Who sends more than his window, or gives back more than he was sent, breaks the protocol. Output of channel 0
//! has no window: the host always takes it. [`Kind::Exit`] or [`Kind::Failed`] is the last frame of a channel.
//!
//! Disks: the rootfs's layers first, bottom to top (vda...), then the workspace, then the volumes, in the order of [`Start`].
//! The host believes nothing of what a guest says beyond "this VM said so".

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

use crate::limits;

/// vsock port, host side, of the control connection. The first connection is the verifier's: it is made before any
/// agent code runs. Any later one is closed unread.
pub const CONTROL_PORT: u32 = 1024;
/// vsock port, host side, of the agent's memory: JSON-RPC lines, answered by ctxgraph.
pub const MEMORY_PORT: u32 = 1025;
/// Version of this protocol; a guest with another one is not started.
pub const PROTOCOL: u32 = 3;
/// Unix socket in the guest where the agent finds its memory; the verifier relays it to [`MEMORY_PORT`].
pub const GUEST_MEMORY_SOCKET: &str = "/run/nullbox/memory.sock";
/// User and group the agent runs as inside its guest.
pub const GUEST_UID: u32 = 1000;

const HEADER_BYTES: usize = 9;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a frame is. Direction and payload stand beside each kind.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $value,)* }
        impl Kind {
            /// The kind of a byte from the wire, or none.
            pub fn from_byte(byte: u8) -> Option<Kind> {
                match byte { $($value => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Guest to host, first frame: [`Hello`].
    Hello = 1,
    /// Host to guest, once: [`Start`].
    Start = 2,
    /// Guest to host, once: [`Ready`]. The agent's command is about to run.
    Ready = 3,
    /// Guest to host: [`Failed`]. On channel 0 setting up the guest or the agent failed; above 0 the exec could not start.
    Failed = 4,
    /// Host to guest, on a new channel: [`Exec`].
    Exec = 5,
    /// Host to guest: raw bytes for standard input; empty means end of file.
    Stdin = 6,
    /// Guest to host: raw bytes of standard output.
    Stdout = 7,
    /// Guest to host: raw bytes of standard error.
    Stderr = 8,
    /// Guest to host: [`Exit`]; the last frame of a channel.
    Exit = 9,
    /// Host to guest: [`Signal`] for the channel's process group.
    Signal = 10,
    /// Host to guest: [`Shutdown`]. Stop everything in the guest, then halt.
    Shutdown = 11,
    /// Guest to host: [`Denied`]. Something the sandbox inside the guest refused.
    Denied = 12,
    /// Host to guest: [`TerminalSize`] of a channel that has a terminal.
    Resize = 13,
    /// Either way: [`Window`]. So many more bytes may be sent on this channel to the one who says it; none for output of channel 0.
    Window = 14,
    /// Host to guest: [`Clock`]. After a pause, or when the host's clock was set.
    Clock = 15,
    /// Host to guest: write the disks out and answer [`Kind::Synced`]. Empty payload.
    Sync = 16,
    /// Guest to host: the disks are written out. Empty payload.
    Synced = 17,
    /// Guest to host: [`Health`], after each health check.
    Health = 18,
    /// Host to guest, on a new channel: [`Files`].
    Files = 19,
    /// Guest to host, on a channel of calls: [`crate::tools::Call`]. Calls have channels of their own, which the guest counts up from 1; they are not
    /// those of execs. A call is under way until its [`Kind::Ended`], which comes after its answer, whatever that is.
    Call = 20,
    /// Host to guest, on a call's channel: [`crate::tools::Answer`].
    Answer = 21,
    /// Host to guest, on a call's channel, before its [`Kind::Answer`]: raw bytes of a result that the host made.
    Value = 22,
    /// Guest to host, on a call's channel, its last frame: [`crate::tools::Ended`].
    Ended = 23,
    /// Host to guest, on a call's channel, instead of an answer to `submit` for now: no tool runs until the answer comes; what ran was killed. Empty payload.
    Still = 24,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub channel: u32,
    pub payload: Vec<u8>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("frame of {0} bytes: at most 65536 are allowed")]
    TooLong(usize),
    #[error("frame kind {0} does not exist")]
    Kind(u8),
    #[error("payload of {kind:?}: {error}")]
    Payload { kind: Kind, error: String },
    #[error("frame {got:?} is not legal here")]
    Unexpected { got: Kind },
}

impl Frame {
    /// A frame with raw bytes.
    pub fn data(kind: Kind, channel: u32, payload: &[u8]) -> Frame {
        Frame { kind, channel, payload: payload.to_vec() }
    }

    /// A frame with a JSON payload.
    pub fn json<T: Serialize>(kind: Kind, channel: u32, payload: &T) -> Result<Frame, FrameError> {
        let payload = serde_json::to_vec(payload)
            .map_err(|error| FrameError::Payload { kind, error: error.to_string() })?;
        Ok(Frame { kind, channel, payload })
    }

    /// Parses a JSON payload; unknown fields are errors.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| FrameError::Payload { kind: self.kind, error: error.to_string() })
    }

    /// Writes the frame with one `write_all`. `TooLong` writes nothing.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), FrameError> {
        if self.payload.len() > limits::GUEST_FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(self.payload.len()));
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.channel.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        out.write_all(&bytes)?;
        Ok(())
    }

    /// Reads one frame; `None` at a clean end between frames. Allocates only after the length was checked.
    pub fn read_from(input: &mut impl Read) -> Result<Option<Frame>, FrameError> {
        let mut first = [0u8; 1];
        loop {
            match input.read(&mut first) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
        }
        let mut rest = [0u8; HEADER_BYTES - 1];
        input.read_exact(&mut rest)?;
        let [b0] = first;
        let [b1, b2, b3, kind, c0, c1, c2, c3] = rest;
        let length = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
        if length > limits::GUEST_FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        let mut payload = vec![0u8; length];
        input.read_exact(&mut payload)?;
        Ok(Some(Frame { kind, channel: u32::from_le_bytes([c0, c1, c2, c3]), payload }))
    }
}

/// Guest to host: who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Microseconds since the guest kernel started.
    pub uptime_us: u64,
}

/// Host to guest: what to run and what it may do. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub instance: String,
    /// Absolute path of the program, then its arguments.
    pub command: Vec<String>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Absolute; must exist in the guest once `write` paths were made.
    pub workdir: String,
    /// Absent: no network interface at all.
    pub network: Option<GuestNetwork>,
    /// A certificate (PEM) that becomes [`AUTHORITY_PATH`], for programs whose TLS egress ends.
    #[serde(default)]
    pub authority: Option<String>,
    /// Paths the agent may read beside the rootfs's program directories (docs/AGENT.toml.md, filesystem).
    pub read: Vec<String>,
    /// Paths the agent may read and write; made, owned by the agent, if missing.
    pub write: Vec<String>,
    /// True: anything in the readable rootfs may be executed. False: `command` and `exec` only.
    pub shell: bool,
    /// Absolute paths of further programs that may be executed.
    pub exec: Vec<String>,
    /// Processes in the agent's sandbox.
    pub pids_max: u32,
    /// The host's clock, Unix nanoseconds: the guest has no other.
    pub clock_unix_ns: u64,
    /// Disks that make the rootfs, bottom to top, and a task's tree; 1 to [`limits::GUEST_LAYERS_MAX`].
    pub rootfs_disks: u8,
    /// One disk each, after the workspace's.
    pub volumes: Vec<Volume>,
    /// True: the command's standard input is a pipe that [`Kind::Stdin`] on channel 0 fills; false: end of file.
    pub stdin: bool,
    /// Present: the command gets a terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
    pub health: Option<HealthProbe>,
    /// Present: the agent's files are reached through tools (docs/tools.md).
    #[serde(default)]
    pub tools: Option<crate::tools::Tools>,
    /// The layers hold a task's tree at [`crate::tools::WORK_PATH`]: for the tools, where there are any, else for the agent itself.
    #[serde(default)]
    pub has_tree: bool,
}

/// A volume's place in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Absolute; made where missing. The agent may read there, and write unless `read_only`.
    pub path: String,
    pub read_only: bool,
}

/// Size of a terminal in characters; 1 to [`limits::TERMINAL_SIZE_MAX`] each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// A check the guest makes of the agent: GET of a path at a port of the loopback address; 2xx and 3xx are healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthProbe {
    pub port: u16,
    pub path: String,
    pub interval_secs: u32,
}

/// Guest to host: the outcome of one health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub healthy: bool,
    /// What was answered, or why there was no answer.
    pub detail: String,
}

/// More bytes that may be sent on this channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub bytes: u32,
}

/// The host's clock now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    pub unix_ns: u64,
}

/// Host to guest: work on the agent's files, with the agent's user and grants. Output and input are records of `abi::files`;
/// what went wrong stands in words on standard error; [`Exit`] ends it, with code 0 if all went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    pub job: FilesJob,
    /// As in [`Exec`].
    pub window_bytes: u32,
}

/// What to do with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FilesJob {
    /// Send a file or a directory with all below it.
    Read { path: String },
    /// Take records from standard input and make what they say. If `path` is a directory, below it; if it is not, the first record,
    /// a file or a directory, becomes `path` itself, and what the others name below it comes below `path`. An empty path in the first
    /// record is `path` itself either way.
    Write { path: String },
    /// Send what differs from the rootfs, as records without contents. Made by the verifier itself, outside the agent's sandbox.
    Changes,
    /// The same of a task's tree alone, with contents. Nothing that could still write there runs meanwhile.
    Claim,
}

/// Where a guest has the certificate of its agent's own authority.
pub const AUTHORITY_PATH: &str = "/etc/nullbox-authority.pem";

/// The guest's interface eth0; the same for each agent, since each lives in a network namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNetwork {
    /// IPv4 address of the guest.
    pub address: String,
    pub prefix: u8,
    /// IPv4 address of the node's end: gateway and DNS server.
    pub gateway: String,
    /// Bytes.
    pub mtu: u16,
}

/// Guest to host: set-up is done. Microseconds since the guest kernel started, by stage, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub stages_us: Vec<(String, u64)>,
}

/// Guest to host: what failed, at which stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    pub stage: String,
    pub error: String,
}

/// Host to guest: run a program in the agent's sandbox, with the agent's user, limits and grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    pub command: Vec<String>,
    /// Added to the agent's environment, `NAME=value`.
    pub env: Vec<String>,
    /// Empty: the agent's working directory.
    pub workdir: String,
    /// Present: a terminal instead of pipes; all output is then standard output.
    pub terminal: Option<TerminalSize>,
    /// Output that may be sent before the first [`Window`].
    pub window_bytes: u32,
}

/// Guest to host: how a process ended. Exactly one of the two is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The guest kernel's OOM killer ended something in this channel's cgroup.
    pub oom_killed: bool,
    /// Bytes of output dropped because nobody took them.
    pub dropped_bytes: u64,
}

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Linux signal number, 1 to 31.
    pub signal: i32,
}

/// Host to guest: SIGTERM to all, SIGKILL after the grace, then halt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    pub grace_ms: u64,
}

/// Guest to host: what the guest's own sandbox refused, for the operator to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    pub what: String,
    pub rule: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let frame = Frame::json(Kind::Signal, 7, &Signal { signal: 15 }).unwrap();
        let mut wire = Vec::new();
        frame.write_to(&mut wire).unwrap();
        Frame::data(Kind::Stdout, 0, b"").write_to(&mut wire).unwrap();
        let mut input = wire.as_slice();
        let read = Frame::read_from(&mut input).unwrap().unwrap();
        assert_eq!(read, frame);
        assert_eq!(read.parse::<Signal>().unwrap().signal, 15);
        assert_eq!(Frame::read_from(&mut input).unwrap().unwrap().payload, b"");
        assert!(Frame::read_from(&mut input).unwrap().is_none());
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_allocation() {
        let mut wire = (limits::GUEST_FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec();
        wire.extend_from_slice(&[7, 0, 0, 0, 0]);
        assert!(matches!(Frame::read_from(&mut wire.as_slice()), Err(FrameError::TooLong(65537))));
    }

    #[test]
    fn unknown_kinds_and_fields_are_refused() {
        assert!(matches!(
            Frame::read_from(&mut [0u8, 0, 0, 0, 99, 0, 0, 0, 0].as_slice()),
            Err(FrameError::Kind(99))
        ));
        let frame = Frame::data(Kind::Signal, 0, br#"{"signal":9,"x":1}"#);
        assert!(frame.parse::<Signal>().is_err());
    }

    #[test]
    fn a_cut_frame_is_an_error_not_an_end() {
        let mut wire = Vec::new();
        Frame::data(Kind::Stdout, 3, b"hello").write_to(&mut wire).unwrap();
        for cut in 1..wire.len() {
            assert!(Frame::read_from(&mut &wire[..cut]).is_err(), "cut at {cut}");
        }
    }
}
