//! JSON-RPC 2.0 as NullBox speaks it: one object a line, numeric ids, no batches, parameters by name.
//! Source: the JSON-RPC 2.0 specification. The page is docs/control-protocol.md.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A call. A line without `id` is a notification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub jsonrpc: Version,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<u64>,
    pub method: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

/// The text `2.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    #[serde(rename = "2.0")]
    V2,
}

impl Request {
    /// A call with an id.
    pub fn call(id: u64, method: &str, params: Value) -> Request {
        Request { jsonrpc: Version::V2, id: Some(id), method: method.to_owned(), params }
    }

    /// A notification.
    pub fn notification(method: &str, params: Value) -> Request {
        Request { jsonrpc: Version::V2, id: None, method: method.to_owned(), params }
    }

    /// Parses one line.
    pub fn parse(line: &str) -> Result<Request, RpcError> {
        serde_json::from_str(line).map_err(|error| RpcError {
            code: Code::INVALID_REQUEST,
            message: format!("not a JSON-RPC 2.0 request: {error}"),
            data: None,
        })
    }

    /// The parameters as their type; unknown fields are errors where the type denies them.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, RpcError> {
        self.typed(self.params.clone())
    }

    /// As [`Request::params`], without a copy: they are gone from the request then.
    pub fn take_params<T: DeserializeOwned>(&mut self) -> Result<T, RpcError> {
        let value = self.params.take();
        self.typed(value)
    }

    fn typed<T: DeserializeOwned>(&self, params: Value) -> Result<T, RpcError> {
        let value = match params {
            Value::Null => Value::Object(Default::default()),
            value => value,
        };
        serde_json::from_value(value).map_err(|error| RpcError {
            code: Code::INVALID_PARAMS,
            message: format!("parameters of {}: {error}", self.method),
            data: None,
        })
    }
}

/// An answer. Exactly one of `result` and `error` is present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    pub jsonrpc: Version,
    pub id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<RpcError>,
}

impl Response {
    /// The answer for an outcome.
    pub fn of(id: Option<u64>, outcome: Result<Value, RpcError>) -> Response {
        let (result, error) = match outcome {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        Response { jsonrpc: Version::V2, id, result, error }
    }
}

/// What a caller may read: a notification that belongs to its call, or the answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Incoming {
    Notification(Request),
    Response(Response),
}

/// Error codes; the first block is JSON-RPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub i64);

impl Code {
    pub const PARSE: Code = Code(-32700);
    pub const INVALID_REQUEST: Code = Code(-32600);
    pub const UNKNOWN_METHOD: Code = Code(-32601);
    pub const INVALID_PARAMS: Code = Code(-32602);
    pub const INTERNAL: Code = Code(-32603);
    /// The caller may not do this.
    pub const DENIED: Code = Code(-32001);
    /// The thing named does not exist.
    pub const NOT_FOUND: Code = Code(-32002);
    /// Not legal in the present state.
    pub const CONFLICT: Code = Code(-32003);
    /// A bound is reached.
    pub const LIMIT: Code = Code(-32004);
    /// The node could not do it.
    pub const FAILED: Code = Code(-32005);
    /// The service that owns the method is not running.
    pub const UNAVAILABLE: Code = Code(-32006);
    /// It took longer than allowed.
    pub const TIMEOUT: Code = Code(-32007);
}

/// A refusal or failure, made to explain itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct RpcError {
    pub code: Code,
    /// Lowercase, no full stop: what went wrong, with the value.
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<Explanation>,
}

/// Which rule decided, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    pub rule: String,
    pub remedy: String,
}

impl RpcError {
    /// An error without a rule behind it.
    pub fn new(code: Code, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }

    /// Adds the rule that decided and how to put it right.
    pub fn explained(mut self, rule: impl Into<String>, remedy: impl Into<String>) -> RpcError {
        self.data = Some(Explanation { rule: rule.into(), remedy: remedy.into() });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_strict() {
        assert!(Request::parse(r#"{"jsonrpc":"2.0","id":1,"method":"a.b","params":{}}"#).is_ok());
        for bad in [
            r#"{"jsonrpc":"1.0","id":1,"method":"a.b"}"#,
            r#"{"id":1,"method":"a.b"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a.b","extra":1}"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"a.b"}]"#,
            r#"{"jsonrpc":"2.0","id":"x","method":"a.b"}"#,
            "",
        ] {
            assert!(Request::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_and_notifications_are_told_apart() {
        let answer = serde_json::to_string(&Response::of(Some(3), Ok(Value::Bool(true)))).unwrap();
        assert!(matches!(serde_json::from_str(&answer), Ok(Incoming::Response(_))));
        let note = serde_json::to_string(&Request::notification("x.y", Value::Null)).unwrap();
        assert!(matches!(serde_json::from_str(&note), Ok(Incoming::Notification(_))));
    }
}
