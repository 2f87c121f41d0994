//! Anthropic's messages, with tools, streamed. Source: docs.anthropic.com/en/api/messages and messages-streaming.

use serde_json::{Value, json};

use super::{Answer, Message, Question, StreamError, ToolCall, add_arguments, call_at, error_of};
use crate::sse::Event;
use crate::tools;

/// Of the API, in the field `anthropic-version`.
pub const VERSION: &str = "2023-06-01";

/// The body of a request.
pub fn request(question: &Question<'_>) -> Value {
    let messages: Vec<Value> = question
        .messages
        .iter()
        .map(|message| match message {
            Message::User(text) => json!({"role": "user", "content": [{"type": "text", "text": text}]}),
            Message::Model(answer) => json!({"role": "assistant", "content": said(answer)}),
            Message::Results(results) => {
                let blocks: Vec<Value> = results
                    .iter()
                    .map(|result| {
                        json!({"type": "tool_result", "tool_use_id": result.id, "content": result.text, "is_error": result.is_error})
                    })
                    .collect();
                json!({"role": "user", "content": blocks})
            }
        })
        .collect();
    let tools: Vec<Value> = tools::offered()
        .map(|tool| json!({"name": tool.name, "description": tool.about, "input_schema": tool.parameters()}))
        .collect();
    json!({
        "model": question.model,
        "max_tokens": question.answer_tokens_max,
        "system": question.system,
        "messages": messages,
        "tools": tools,
        "stream": true,
    })
}

/// Content blocks. The API refuses empty text and input that is no object.
fn said(answer: &Answer) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !answer.text.trim().is_empty() || answer.calls.is_empty() {
        let text = if answer.text.trim().is_empty() { "(nothing)" } else { answer.text.trim_end() };
        blocks.push(json!({"type": "text", "text": text}));
    }
    blocks.extend(answer.calls.iter().map(|call| {
        json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.parsed().unwrap_or_default()})
    }));
    blocks
}

/// A stream of named events.
#[derive(Debug, Default)]
pub struct Stream {
    answer: Answer,
    /// Block of the stream and place of its call.
    calls: Vec<(u64, usize)>,
    has_ended: bool,
}

impl Stream {
    /// Takes an event. True at `message_stop`.
    pub fn take(&mut self, event: &Event) -> Result<bool, StreamError> {
        let value = super::json(event)?;
        match value.get("type").and_then(Value::as_str).unwrap_or_default() {
            "error" => {
                let unknown = || StreamError::Provider("an error without a reason".to_owned());
                return Err(error_of(&value).unwrap_or_else(unknown));
            }
            "message_start" => self.count(value.pointer("/message/usage")),
            "content_block_start" => self.begin(&value)?,
            "content_block_delta" => self.add(&value)?,
            "message_delta" => {
                self.count(value.get("usage"));
                if let Some(reason) = value.pointer("/delta/stop_reason").and_then(Value::as_str) {
                    self.answer.is_cut = matches!(reason, "max_tokens" | "model_context_window_exceeded");
                }
            }
            "message_stop" => self.has_ended = true,
            _ => {} // ping, content_block_stop, and what comes later
        }
        Ok(self.has_ended)
    }

    /// Counts are cumulative.
    fn count(&mut self, usage: Option<&Value>) {
        let count = |name: &str| usage.and_then(|usage| usage.get(name)).and_then(Value::as_u64).unwrap_or(0);
        let kinds = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
        let input = kinds.iter().fold(0u64, |sum, name| sum.saturating_add(count(name)));
        self.answer.usage.input = self.answer.usage.input.max(input);
        self.answer.usage.output = self.answer.usage.output.max(count("output_tokens"));
    }

    fn begin(&mut self, value: &Value) -> Result<(), StreamError> {
        let text = |name: &str| {
            let block = value.get("content_block").and_then(|block| block.get(name));
            block.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        match text("type").as_str() {
            "text" => self.answer.text.push_str(&text("text")),
            "tool_use" => {
                let place = self.answer.calls.len();
                *call_at(&mut self.answer.calls, place)? =
                    ToolCall { id: text("id"), name: text("name"), arguments: String::new() };
                self.calls.push((index(value), place));
            }
            _ => {} // thinking is the model's own
        }
        Ok(())
    }

    fn add(&mut self, value: &Value) -> Result<(), StreamError> {
        let text = |name: &str| {
            value.get("delta").and_then(|delta| delta.get(name)).and_then(Value::as_str).unwrap_or_default()
        };
        match text("type") {
            "text_delta" => self.answer.text.push_str(text("text")),
            "input_json_delta" => {
                let block = index(value);
                let place = self.calls.iter().find(|(at, _)| *at == block).map(|(_, place)| *place);
                let place = place.ok_or_else(|| StreamError::Malformed("a piece of no call".to_owned()))?;
                add_arguments(call_at(&mut self.answer.calls, place)?, text("partial_json"))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The answer; `message_stop` must have come.
    pub fn finish(self) -> Result<Answer, StreamError> {
        if self.has_ended { Ok(self.answer) } else { Err(StreamError::Cut) }
    }
}

fn index(value: &Value) -> u64 {
    value.get("index").and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ToolResult, Usage};

    fn answer(events: &[Value]) -> Result<Answer, StreamError> {
        let mut stream = Stream::default();
        for event in events {
            let name = event["type"].as_str().unwrap().to_owned();
            stream.take(&Event { name, data: event.to_string() })?;
        }
        stream.finish()
    }

    fn block(index: u64, delta: Value) -> Value {
        json!({"type": "content_block_delta", "index": index, "delta": delta})
    }

    #[test]
    fn blocks_become_text_and_calls_and_counts_are_cumulative() {
        let events = [
            json!({"type": "message_start", "message": {"usage": {"input_tokens": 9, "cache_read_input_tokens": 3, "output_tokens": 1}}}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
            block(0, json!({"type": "thinking_delta", "thinking": "hm"})),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "ping"}),
            block(1, json!({"type": "text_delta", "text": "I look."})),
            json!({"type": "content_block_stop", "index": 1}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "toolu_a", "name": "read", "input": {}}}),
            block(2, json!({"type": "input_json_delta", "partial_json": ""})),
            block(2, json!({"type": "input_json_delta", "partial_json": "{\"path\": "})),
            block(2, json!({"type": "input_json_delta", "partial_json": "\"a\"}"})),
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 40}}),
            json!({"type": "message_stop"}),
        ];
        let answer = answer(&events).unwrap();
        let call =
            ToolCall { id: "toolu_a".into(), name: "read".into(), arguments: r#"{"path": "a"}"#.into() };
        assert_eq!((answer.text.as_str(), answer.calls), ("I look.", vec![call]));
        assert_eq!(answer.usage, Usage { input: 12, output: 40 });
    }

    #[test]
    fn a_stream_without_message_stop_and_one_with_an_error_are_no_answers() {
        let start = json!({"type": "message_start", "message": {"usage": {}}});
        assert_eq!(answer(std::slice::from_ref(&start)), Err(StreamError::Cut));
        let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
        assert_eq!(
            answer(&[start, error]),
            Err(StreamError::Provider("overloaded_error: Overloaded".to_owned()))
        );
        let orphan = block(4, json!({"type": "input_json_delta", "partial_json": "{}"}));
        assert!(matches!(answer(&[orphan]), Err(StreamError::Malformed(_))));
    }

    #[test]
    fn what_the_api_would_refuse_is_not_sent_back() {
        let call = ToolCall { id: "t".into(), name: "read".into(), arguments: "{broken".into() };
        let silent = Answer { calls: vec![call], ..Answer::default() };
        let messages = [
            Message::User("go".to_owned()),
            Message::Model(silent),
            Message::Results(vec![ToolResult { id: "t".into(), text: "no".into(), is_error: true }]),
            Message::Model(Answer::default()),
        ];
        let question = Question { model: "m", answer_tokens_max: 5, system: "s", messages: &messages };
        let body = request(&question);
        let content = &body["messages"][1]["content"];
        assert_eq!(content.as_array().unwrap().len(), 1, "no empty text: {content}");
        assert_eq!(content[0]["input"], json!({}));
        assert_eq!(body["messages"][3]["content"][0]["text"], "(nothing)");
    }
}
