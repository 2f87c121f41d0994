//! Questions to the model over HTTP, through the broker. What may pass is asked again; what will not is told.
//!
//! Must hold: an answer is one that came whole; waits, tries and bytes are bounded.

use std::io::Read;
use std::time::Duration;

use abi::limits;
use serde_json::Value;

use crate::model::{Answer, Api, StreamError};
use crate::settings::Settings;
use crate::shown::shortened;
use crate::sse::Events;

/// Of an error's body.
const SAID_BYTES_MAX: usize = 2048;

/// The model's host, as the guest reaches it.
#[derive(Debug)]
pub struct Provider {
    agent: ureq::Agent,
    api: Api,
    url: String,
    key: String,
    pause_ms: u64,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// By the provider, or by the broker with its rule.
    #[error("status {status}: {said}")]
    Refused { status: u16, said: String, after: Option<Duration> },
    #[error("not reached: {0}")]
    Unreached(String),
    #[error("{0}")]
    Stream(#[from] StreamError),
}

impl ProviderError {
    /// Whether the same question may be answered later: statuses of load and of failure, and whatever broke on the way.
    fn may_pass(&self) -> bool {
        match self {
            ProviderError::Refused { status, .. } => {
                matches!(status, 408 | 409 | 429 | 500 | 502 | 503 | 504 | 529)
            }
            ProviderError::Unreached(_) => true,
            ProviderError::Stream(error) => !matches!(error, StreamError::TooMuch(_)),
        }
    }
}

impl Provider {
    /// By the settings; connects to nobody yet.
    pub fn new(settings: &Settings) -> Provider {
        let wall = Duration::from_millis(limits::CODER_ANSWER_MS_MAX);
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_global(Some(wall))
            .user_agent("nullbox-coder");
        Provider {
            agent: config.build().into(),
            api: settings.api,
            url: format!("{}{}", settings.base_url, settings.api.path()),
            key: settings.key.clone(),
            pause_ms: settings.pause_ms,
        }
    }

    /// Asks until there is an answer, or until it makes no sense any more.
    pub fn ask(&self, question: &Value, log: &mut dyn FnMut(&str)) -> Result<Answer, ProviderError> {
        let mut pause_ms = self.pause_ms;
        for left in (0..limits::CODER_TRIES_MAX).rev() {
            let error = match self.ask_once(question) {
                Ok(answer) => return Ok(answer),
                Err(error) if left == 0 || !error.may_pass() => return Err(error),
                Err(error) => error,
            };
            let asked = match &error {
                ProviderError::Refused { after, .. } => after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            let pause = asked
                .max(Duration::from_millis(pause_ms))
                .min(Duration::from_millis(limits::CODER_PAUSE_MS_MAX));
            log(&format!("the model: {error}; again in {} ms", pause.as_millis()));
            std::thread::sleep(pause);
            pause_ms = pause_ms.saturating_mul(2).min(limits::CODER_PAUSE_MS_MAX);
        }
        Err(ProviderError::Unreached("no try is left".to_owned()))
    }

    fn ask_once(&self, question: &Value) -> Result<Answer, ProviderError> {
        let unreached = |error: ureq::Error| ProviderError::Unreached(error.to_string());
        let mut request = self.agent.post(&self.url).content_type("application/json");
        for (name, value) in self.api.fields(&self.key) {
            request = request.header(name, value);
        }
        let response = request.send(question.to_string()).map_err(unreached)?;
        let status = response.status().as_u16();
        let field = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let after = field("retry-after").and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        let body = response.into_body().into_reader();
        if status == 200 {
            return Ok(read_answer(self.api, body)?);
        }
        let mut said = Vec::new();
        // What of it came is told; its status alone says enough.
        let _ = body.take(SAID_BYTES_MAX as u64).read_to_end(&mut said);
        Err(ProviderError::Refused { status, said: words(&said), after })
    }
}

/// Reads a stream to the end of its answer.
pub fn read_answer(api: Api, mut body: impl Read) -> Result<Answer, StreamError> {
    let mut events = Events::default();
    let mut stream = api.stream();
    let mut chunk = [0; 8192];
    let mut taken = 0;
    loop {
        let count = match body.read(&mut chunk) {
            Ok(0) => return stream.finish(),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(StreamError::Cut),
        };
        taken += count;
        if taken > limits::CODER_ANSWER_BYTES_MAX {
            return Err(StreamError::TooMuch("64 MiB"));
        }
        for event in events.push(&chunk[..count]).map_err(|_| StreamError::TooMuch("1 MiB in one event"))? {
            if stream.take(&event)? {
                return stream.finish();
            }
        }
    }
}

/// An error's body for a log line: its message where it has one, on one line.
fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = value.pointer("/error/message").and_then(Value::as_str).unwrap_or(&text);
    let line: String = message.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    shortened(line.trim(), 600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn load_and_failure_may_pass_and_refusals_do_not() {
        let refused = |status| ProviderError::Refused { status, said: String::new(), after: None };
        assert!([429, 500, 502, 503, 529].into_iter().all(|status| refused(status).may_pass()));
        assert!([400, 401, 403, 404, 413, 200, 302].into_iter().all(|status| !refused(status).may_pass()));
        assert!(ProviderError::Stream(StreamError::Cut).may_pass());
        assert!(!ProviderError::Stream(StreamError::TooMuch("x")).may_pass());
    }

    #[test]
    fn an_endless_answer_is_given_up() {
        let endless = std::io::repeat(b'\n');
        assert!(matches!(read_answer(Api::Openai, endless), Err(StreamError::TooMuch(_))));
    }

    #[test]
    fn an_errors_message_is_one_line_without_control_characters() {
        assert_eq!(words(br#"{"error":{"message":"too\nmany\u001b[2J"}}"#), "too many [2J");
        assert_eq!(words(b"NullBox refused this\r\n"), "NullBox refused this");
    }

    proptest! {
        #[test]
        fn any_stream_is_an_answer_or_an_error(
            lines in proptest::collection::vec("(data: |event: )?(\\[DONE\\]|\\{\"type\":\"[a-z_]{0,20}\"[^\n]{0,40}|[^\n]{0,30})", 0..20),
        ) {
            let text = lines.join("\n\n");
            for api in [Api::Openai, Api::Anthropic] {
                let _ = read_answer(api, text.as_bytes());
            }
        }
    }
}
