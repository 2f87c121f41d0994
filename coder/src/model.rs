//! The model: what it is asked, what it answers, in the words of no API; each API's own are in a module below.
//!
//! Must hold: an answer counts only when it came whole; nothing of a model is believed, its calls are decided by the verifier.

pub mod anthropic;
pub mod openai;

use abi::limits;
use serde_json::{Map, Value};

use crate::sse::Event;

/// Whose wire format is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `POST BASE/chat/completions`.
    Openai,
    /// `POST BASE/v1/messages`.
    Anthropic,
}

/// What is asked.
#[derive(Debug)]
pub struct Question<'a> {
    pub model: &'a str,
    pub answer_tokens_max: u32,
    pub system: &'a str,
    pub messages: &'a [Message],
}

/// A part of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    User(String),
    Model(Answer),
    /// One for each call of the answer before, in its order.
    Results(Vec<ToolResult>),
}

/// What the model said, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub text: String,
    pub calls: Vec<ToolCall>,
    /// It ended because its bound of tokens was reached.
    pub is_cut: bool,
    pub usage: Usage,
}

/// A call as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON text, or what the model took for it.
    pub arguments: String,
}

impl ToolCall {
    /// The arguments, if they are an object.
    pub fn parsed(&self) -> Result<Map<String, Value>, String> {
        if self.arguments.trim().is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_str(&self.arguments).map_err(|error| format!("not a JSON object: {error}"))
    }
}

/// What came of a call, for the model to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// Of the call.
    pub id: String,
    pub text: String,
    pub is_error: bool,
}

/// Tokens, in the provider's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
}

/// Why a stream is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("the stream is not what the API speaks: {0}")]
    Malformed(String),
    #[error("the provider ended the stream: {0}")]
    Provider(String),
    #[error("the stream ended before the answer did")]
    Cut,
    #[error("an answer of more than {0}")]
    TooMuch(&'static str),
}

/// An answer that comes.
#[derive(Debug)]
pub enum Stream {
    Openai(openai::Stream),
    Anthropic(anthropic::Stream),
}

impl Api {
    /// Below the base URL.
    pub fn path(self) -> &'static str {
        match self {
            Api::Openai => "/chat/completions",
            Api::Anthropic => "/v1/messages",
        }
    }

    /// The request's body.
    pub fn request(self, question: &Question<'_>) -> Value {
        match self {
            Api::Openai => openai::request(question),
            Api::Anthropic => anthropic::request(question),
        }
    }

    /// Header fields beside the body's type.
    pub fn fields(self, key: &str) -> Vec<(&'static str, String)> {
        match self {
            Api::Openai => vec![("authorization", format!("Bearer {key}"))],
            Api::Anthropic => {
                vec![("x-api-key", key.to_owned()), ("anthropic-version", anthropic::VERSION.to_owned())]
            }
        }
    }

    /// An answer of which nothing came yet.
    pub fn stream(self) -> Stream {
        match self {
            Api::Openai => Stream::Openai(openai::Stream::default()),
            Api::Anthropic => Stream::Anthropic(anthropic::Stream::default()),
        }
    }
}

impl Stream {
    /// Takes an event. True: the answer is whole.
    pub fn take(&mut self, event: &Event) -> Result<bool, StreamError> {
        match self {
            Stream::Openai(stream) => stream.take(event),
            Stream::Anthropic(stream) => stream.take(event),
        }
    }

    /// The answer, at the stream's end.
    pub fn finish(self) -> Result<Answer, StreamError> {
        let answer = match self {
            Stream::Openai(stream) => stream.finish()?,
            Stream::Anthropic(stream) => stream.finish()?,
        };
        if answer.calls.iter().any(|call| call.id.is_empty() || call.name.is_empty()) {
            return Err(StreamError::Malformed("a call without an id or a name".to_owned()));
        }
        Ok(answer)
    }
}

/// Adds a piece of a call's arguments.
fn add_arguments(call: &mut ToolCall, piece: &str) -> Result<(), StreamError> {
    if call.arguments.len() + piece.len() > limits::CODER_ARGUMENTS_BYTES_MAX {
        return Err(StreamError::TooMuch("512 KiB of arguments"));
    }
    call.arguments.push_str(piece);
    Ok(())
}

/// The call at a place of the answer; those before it are there already, or empty.
fn call_at(calls: &mut Vec<ToolCall>, place: usize) -> Result<&mut ToolCall, StreamError> {
    if place >= limits::CODER_CALLS_MAX {
        return Err(StreamError::TooMuch("32 calls"));
    }
    if calls.len() <= place {
        calls.resize_with(place + 1, ToolCall::default);
    }
    calls.get_mut(place).ok_or(StreamError::TooMuch("32 calls"))
}

/// The JSON of an event.
fn json(event: &Event) -> Result<Value, StreamError> {
    serde_json::from_str(&event.data).map_err(|error| StreamError::Malformed(error.to_string()))
}

/// A provider's `error` member in words.
fn error_of(value: &Value) -> Option<StreamError> {
    let error = value.get("error").filter(|error| !error.is_null())?;
    let said = |name: &str| error.get(name).and_then(Value::as_str);
    let words = [said("type"), said("message")].into_iter().flatten().collect::<Vec<_>>().join(": ");
    Some(StreamError::Provider(if words.is_empty() { error.to_string() } else { words }))
}
