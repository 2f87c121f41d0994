//! The limits of the coding agent (coder/), which is a guest's program like any other: they keep it from waste, nobody relies on them.

/// Answers of the model that one task takes, and where the operator says nothing. One more: it ends, with what is there unsubmitted.
pub const CODER_STEPS_MAX: u32 = 1_000;
pub const CODER_STEPS_DEFAULT: u32 = 100;
/// The conversation that is sent, in bytes of its texts, and the bounds of that setting. What is older goes first.
pub const CODER_CONTEXT_BYTES_DEFAULT: usize = 384 * 1024;
pub const CODER_CONTEXT_BYTES_MIN: usize = 32 * 1024;
pub const CODER_CONTEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Tokens of one answer where the operator says nothing, and at most.
pub const CODER_ANSWER_TOKENS_DEFAULT: u32 = 8_192;
pub const CODER_ANSWER_TOKENS_MAX: u32 = 131_072;
/// One answer of the model, in bytes of its stream, which says every few letters in some hundred bytes. Longer: given up.
pub const CODER_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// One event of a stream, in bytes.
pub const CODER_EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Calls of tools in one answer. More: the answer is given up.
pub const CODER_CALLS_MAX: usize = 32;
/// Arguments of one call, as the model writes them. A file is written in pieces of [`super::TOOL_PARAMS_BYTES_MAX`].
pub const CODER_ARGUMENTS_BYTES_MAX: usize = 512 * 1024;
/// What the model is shown of one result, in bytes; the middle is left out, and that is said.
pub const CODER_SHOWN_BYTES_MAX: usize = 24 * 1024;
/// An answer of the tools, one line, in bytes: a result in which each byte is escaped, and what stands around it.
pub const CODER_LINE_BYTES_MAX: usize = 6 * super::TOOL_RESULT_BYTES_MAX as usize + 64 * 1024;
/// Times that one question is put to the model when it fails in a way that may pass, and the pauses between, which double.
pub const CODER_TRIES_MAX: u32 = 6;
pub const CODER_PAUSE_MS_MIN: u64 = 1_000;
pub const CODER_PAUSE_MS_MAX: u64 = 60_000;
/// Wall time of one answer of the model.
pub const CODER_ANSWER_MS_MAX: u64 = 600_000;
/// Wall time of one call of a tool: a human may be asked, a verification may run.
pub const CODER_TOOL_MS_MAX: u64 = 2 * super::APPROVAL_WAIT_MS_MAX;

const _: () = assert!(
    CODER_SHOWN_BYTES_MAX < CODER_CONTEXT_BYTES_MIN,
    "one result leaves room for the goal in the smallest context"
);
