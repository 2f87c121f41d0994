//! OpenAI's chat completions, as OpenAI and many compatible hosts speak them: tools, streaming, usage at the end.
//! Source: platform.openai.com/docs/api-reference/chat (create, streaming).

use serde_json::{Value, json};

use super::{Answer, Message, Question, StreamError, Usage, add_arguments, call_at, error_of};
use crate::sse::Event;
use crate::tools;

/// The body of a request.
pub fn request(question: &Question<'_>) -> Value {
    let mut messages = vec![json!({"role": "system", "content": question.system})];
    for message in question.messages {
        match message {
            Message::User(text) => messages.push(json!({"role": "user", "content": text})),
            Message::Model(answer) => messages.push(said(answer)),
            Message::Results(results) => messages.extend(
                results
                    .iter()
                    .map(|result| json!({"role": "tool", "tool_call_id": result.id, "content": result.text})),
            ),
        }
    }
    let tools: Vec<Value> = tools::offered()
        .map(|tool| {
            let function =
                json!({"name": tool.name, "description": tool.about, "parameters": tool.parameters()});
            json!({"type": "function", "function": function})
        })
        .collect();
    json!({
        "model": question.model,
        "messages": messages,
        "tools": tools,
        "max_completion_tokens": question.answer_tokens_max,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

fn said(answer: &Answer) -> Value {
    let mut message = json!({"role": "assistant", "content": answer.text});
    if !answer.calls.is_empty() {
        let calls: Vec<Value> = answer
            .calls
            .iter()
            .map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            })
            .collect();
        message["tool_calls"] = calls.into();
    }
    message
}

/// A stream of `chat.completion.chunk` objects.
#[derive(Debug, Default)]
pub struct Stream {
    answer: Answer,
    has_ended: bool,
}

impl Stream {
    /// Takes an event. True at `[DONE]`.
    pub fn take(&mut self, event: &Event) -> Result<bool, StreamError> {
        if event.data.trim() == "[DONE]" {
            return Ok(true);
        }
        let chunk = super::json(event)?;
        if let Some(error) = error_of(&chunk) {
            return Err(error);
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
            self.answer.usage = Usage { input: count("prompt_tokens"), output: count("completion_tokens") };
        }
        let Some(choice) = chunk.pointer("/choices/0") else { return Ok(false) };
        if let Some(delta) = choice.get("delta") {
            self.add(delta)?;
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.has_ended = true;
            self.answer.is_cut = reason == "length";
        }
        Ok(false)
    }

    fn add(&mut self, delta: &Value) -> Result<(), StreamError> {
        for name in ["content", "refusal"] {
            self.answer.text.push_str(delta.get(name).and_then(Value::as_str).unwrap_or_default());
        }
        let calls = delta.get("tool_calls").and_then(Value::as_array);
        for piece in calls.into_iter().flatten() {
            let place = piece.get("index").and_then(Value::as_u64).unwrap_or(0);
            let call = call_at(&mut self.answer.calls, usize::try_from(place).unwrap_or(usize::MAX))?;
            let text = |pointer: &str| piece.pointer(pointer).and_then(Value::as_str);
            // Some hosts repeat id and name in each piece; OpenAI says them once.
            if let Some(id) = text("/id").filter(|id| !id.is_empty()) {
                id.clone_into(&mut call.id);
            }
            if let Some(name) = text("/function/name").filter(|name| !name.is_empty()) {
                name.clone_into(&mut call.name);
            }
            add_arguments(call, text("/function/arguments").unwrap_or_default())?;
        }
        Ok(())
    }

    /// The answer; a reason to end must have come.
    pub fn finish(self) -> Result<Answer, StreamError> {
        if self.has_ended { Ok(self.answer) } else { Err(StreamError::Cut) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(events: &[Value]) -> Result<Answer, StreamError> {
        let mut stream = Stream::default();
        for event in events {
            stream.take(&Event { name: String::new(), data: event.to_string() })?;
        }
        stream.finish()
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    fn end(reason: &str) -> Value {
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    }

    #[test]
    fn calls_that_come_in_pieces_and_mixed_are_put_together() {
        let piece = |index: u64, more: Value| {
            let mut piece = json!({"index": index, "function": more});
            if index == 1 {
                piece["id"] = json!("call_b");
            }
            delta(json!({"tool_calls": [piece]}))
        };
        let events = [
            delta(json!({"role": "assistant", "content": "I "})),
            delta(json!({"content": "look.", "tool_calls": [{"index": 0, "id": "call_a", "type": "function",
                "function": {"name": "read", "arguments": ""}}]})),
            piece(1, json!({"name": "glob", "arguments": "{\"pat"})),
            piece(0, json!({"arguments": "{\"path\":"})),
            piece(1, json!({"name": "glob", "arguments": "tern\":\"*\"}"})),
            piece(0, json!({"arguments": "\"a\"}"})),
            end("tool_calls"),
            json!({"choices": [], "usage": {"prompt_tokens": 70, "completion_tokens": 5}}),
        ];
        let answer = answer(&events).unwrap();
        assert_eq!(answer.text, "I look.");
        let calls: Vec<_> =
            answer.calls.iter().map(|c| (c.id.as_str(), c.name.as_str(), c.arguments.as_str())).collect();
        assert_eq!(calls, [("call_a", "read", r#"{"path":"a"}"#), ("call_b", "glob", r#"{"pattern":"*"}"#)]);
        assert_eq!(answer.usage, Usage { input: 70, output: 5 });
    }

    #[test]
    fn a_stream_without_a_reason_to_end_is_no_answer() {
        assert_eq!(answer(&[delta(json!({"content": "half"}))]), Err(StreamError::Cut));
        assert!(answer(&[end("length")]).unwrap().is_cut);
    }

    #[test]
    fn errors_and_excess_end_the_stream_with_their_reason() {
        let error = json!({"error": {"type": "server_error", "message": "overloaded"}});
        assert_eq!(answer(&[error]), Err(StreamError::Provider("server_error: overloaded".to_owned())));
        let far =
            delta(json!({"tool_calls": [{"index": u64::MAX, "id": "x", "function": {"name": "read"}}]}));
        assert!(matches!(answer(&[far]), Err(StreamError::TooMuch(_))));
        let long =
            delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "x".repeat(100_000)}}]}));
        assert!(matches!(answer(&vec![long; 6]), Err(StreamError::TooMuch(_))));
    }
}
