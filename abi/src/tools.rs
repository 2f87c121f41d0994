//! Tools: what an agent may ask of the verifier in its guest, and what the verifier asks of the host.
//!
//! The agent speaks JSON-RPC 2.0, one object a line, to [`TOOLS_SOCKET`]: method `tool.NAME`, parameters by name. The verifier puts each
//! call to the host as it came ([`Call`]), does it only after [`Go`], and answers with [`Done`]. The host decides by `verdict`.
//! Must hold: no tool runs before its receipt; whatever a result carries is said beside it. The page is docs/tools.md.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::authority::Operation;
use crate::exposure::Exposure;
use crate::limits;

/// Unix socket in the guest where the agent finds its tools.
pub const TOOLS_SOCKET: &str = "/run/nullbox/tools.sock";
/// User that tools run as inside a guest; files that only tools reach are its own.
pub const TOOLS_UID: u32 = 1001;
/// Where a task's tree stands in a guest.
pub const WORK_PATH: &str = "/work";

/// Host to guest, in `Start`: the agent has tools. Its own processes then reach nothing of `read`, `write`, the volumes and the tree; the
/// tools do, as [`TOOLS_UID`], and without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    /// The manifest's own tools: name, program and first arguments.
    pub programs: Vec<(String, Vec<String>)>,
}

/// Guest to host, on a channel above all that were used before: may this tool be used so?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// At most [`limits::AGENT_NAME_BYTES_MAX`] bytes; the verifier refuses a longer one itself.
    pub tool: String,
    /// As the agent sent them, JSON text. At most [`limits::TOOL_PARAMS_BYTES_MAX`].
    pub params: String,
}

/// Host to guest, on the call's channel: the verdict. Before it comes raw bytes ([`crate::guest::Kind::Value`]) of what the host did itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    Go(Go),
    Refused(Refused),
}

/// The tool may be used so; or, for what the host does (`fetch`, `submit`), it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Go {
    /// Place of its receipt in the ledger.
    pub receipt: u64,
    /// What the result carries.
    pub labels: Exposure,
    /// Bytes of the result at most; the rest is cut, and that is said.
    pub output_bytes_max: u64,
    /// Wall time at most.
    pub wall_ms_max: u64,
    /// Of a search: what it does not look at, and all that is in it (`never` of the rules).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pass_over: Vec<crate::authority::PathPattern>,
    /// What the host did itself, beside the raw bytes: members of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// The tool may not be used so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    pub receipt: Option<u64>,
    pub rule: String,
    pub why: String,
    pub remedy: String,
}

/// Guest to host, on the call's channel, its last frame, after a refusal too: how it went. The host settles the budget by it, never above what it reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Of the result.
    pub bytes: u64,
    pub wall_ms: u64,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// To the agent: the result of a call (`result` of the JSON-RPC answer). A refusal is an error with code -32001 and [`Refused`] as its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Stands for the result in later calls: `{"value": N}` in place of a text. The call's channel, so that the host knows which labels it carries.
    pub value: u32,
    pub receipt: u64,
    pub labels: Exposure,
    /// Absent where the call asked for a sealed result. Text of others is data: its labels say `untrusted_content`, and `data` holds it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// The result was longer than its bound.
    #[serde(default)]
    pub is_cut: bool,
}

/// A text in a call's parameters: as it is, or what an earlier result holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "Value")]
pub enum Text {
    Clear(String),
    Reference {
        /// [`Done::value`].
        value: u32,
    },
}

impl TryFrom<Value> for Text {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Text, Self::Error> {
        match (reference(&value), value) {
            (Some(value), _) => Ok(Text::Reference { value }),
            (None, Value::String(text)) => Ok(Text::Clear(text)),
            (None, _) => Err("a text, or {\"value\": N} for what an earlier result holds"),
        }
    }
}

impl Text {
    /// The result that it stands for.
    pub fn reference(&self) -> Option<u32> {
        match self {
            Text::Clear(_) => None,
            Text::Reference { value } => Some(*value),
        }
    }
}

/// The result that a value in the arguments of a manifest's own tool stands for: an object with `value` alone, a number. It may stand anywhere in
/// them; the tool gets the text in its place.
pub fn reference(argument: &Value) -> Option<u32> {
    let members = argument.as_object().filter(|members| members.len() == 1)?;
    u32::try_from(members.get("value")?.as_u64()?).ok()
}

/// All references in such arguments.
pub fn references(arguments: &Value) -> Vec<u32> {
    match (reference(arguments), arguments) {
        (Some(value), _) => vec![value],
        (None, Value::Array(items)) => items.iter().flat_map(references).collect(),
        (None, Value::Object(members)) => members.values().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// The tools that the verifier has itself, and what each does; `memory` and `submit` are decided by what they stand for.
pub const BUILT_IN: [(&str, Option<Operation>); 10] = [
    ("edit", Some(Operation::EditFiles)),
    ("fetch", Some(Operation::WebFetch)),
    ("glob", Some(Operation::GlobSearch)),
    ("grep", Some(Operation::GrepSearch)),
    ("memory", None),
    ("read", Some(Operation::ReadFiles)),
    ("remove", Some(Operation::WriteFiles)),
    ("run", Some(Operation::RunBash)),
    ("submit", None),
    ("write", Some(Operation::WriteFiles)),
];

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* })*
    };
}

params! {
    /// `tool.read`: data is `{"text"}` or, for bytes that are not UTF-8, `{"base64"}`.
    Read {
        path: String,
        /// Bytes to pass over.
        #[serde(default)]
        offset: u64,
        /// Bytes at most; absent: as many as the host allows.
        #[serde(default)]
        length: Option<u64>,
        #[serde(default)]
        sealed: bool,
    }
    /// `tool.write`: makes or replaces a file, with its directories; data is `{"bytes"}`.
    Write {
        path: String,
        content: Text,
        /// Adds to the file instead.
        #[serde(default)]
        append: bool,
        /// May be executed.
        #[serde(default)]
        executable: bool,
    }
    /// `tool.edit`: replaces `old`, which must stand in the file exactly `count` times; data is `{"replaced"}`.
    Edit {
        path: String,
        old: String,
        new: Text,
        /// Absent: once.
        #[serde(default)]
        count: Option<u32>,
    }
    /// `tool.remove`: removes a file or an empty directory. The operation is `write_files`.
    Remove {
        path: String,
    }
    /// `tool.glob`: data is `{"paths"}`, sorted, with directories ending in `/`.
    Glob {
        /// Pattern below `path`, `**` for any number of components.
        pattern: String,
        path: String,
        #[serde(default)]
        sealed: bool,
    }
    /// `tool.grep`: lines that hold a text; data is `{"matches": [{"path", "line", "text"}]}`. Files that are not text are passed over.
    Grep {
        text: String,
        path: String,
        #[serde(default)]
        ignore_case: bool,
        #[serde(default)]
        sealed: bool,
    }
    /// `tool.run`: a program without a network; data is `{"code", "signal", "output"}`, both outputs as they came.
    Run {
        command: Vec<String>,
        #[serde(default)]
        stdin: Option<Text>,
        /// Absent: the tree, else `/`.
        #[serde(default)]
        workdir: Option<String>,
        /// Absent: as long as the host allows.
        #[serde(default)]
        timeout_ms: Option<u64>,
        #[serde(default)]
        sealed: bool,
    }
    /// `tool.fetch`: GET of a page by the host; data is `{"status", "type", "text" or "base64"}`.
    Fetch {
        /// `https://NAME[:PORT]/PATH`, or `http://`.
        url: String,
        #[serde(default)]
        sealed: bool,
    }
    /// `tool.memory`: a method of the agent's memory (docs/ctxgraph.md) with its parameters; data is its result.
    Memory {
        method: String,
        params: Value,
        #[serde(default)]
        sealed: bool,
    }
    /// `tool.submit`: what the tree is now is the agent's claim. Answers when it was verified; data is `{"verified", "why", "output"}`.
    Submit {
        /// What the agent says it did. Advice for people, never evidence.
        #[serde(default)]
        note: String,
    }
    /// `tool.NAME` of a manifest's own tool: `arguments` is its standard input; data as of `tool.run`.
    Own {
        arguments: Value,
        #[serde(default)]
        sealed: bool,
    }
}

const _: () = assert!(
    limits::TOOL_PARAMS_BYTES_MAX * 2 + 1024 <= limits::GUEST_FRAME_BYTES_MAX,
    "a call fits a frame, quoted once more"
);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reference_is_an_object_with_a_value_and_nothing_else() {
        let text = |json: Value| serde_json::from_value::<Text>(json);
        assert_eq!(text(json!({"value": 3})).unwrap().reference(), Some(3));
        assert_eq!(text(json!("3")).unwrap().reference(), None);
        for wrong in [
            json!({"value": 3, "x": 1}),
            json!({"value": -1}),
            json!({"value": "3"}),
            json!({}),
            json!(3),
            json!([3]),
        ] {
            assert!(text(wrong.clone()).is_err(), "{wrong}");
        }
        let arguments =
            json!({"a": {"value": 1}, "b": [{"value": 2}, {"value": 3, "x": {"value": 4}}], "value": 5});
        assert_eq!(references(&arguments), [1, 2, 4]);
        assert_eq!(references(&json!({"value": 9})), [9]);
    }
}
