//! What a request to a metered API can use at most, and the request that can use no more.
//!
//! Must hold: with a bound of tokens or money nothing passes whose cost is not known: no model without a price, no member that is not
//! listed here, no tool that the provider runs. The answer's bound stands in the request that goes out.

use abi::control::Spent;
use abi::network::{Api, Price};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use super::json::{self, Found, Object};
use super::prices;
use crate::policy::Refused;

/// Tokens that a provider adds to a request (roles, separators, its own words about tools), beyond one for each byte.
const MARGIN_TOKENS: u64 = 2_048;
/// The same for each tool that only its name describes.
const MARGIN_TOKENS_OF_A_TOOL: u64 = 1_024;
/// Answers to one request.
const ANSWERS_MAX: u64 = 128;
/// The bound of a chat's answer that not every compatible host knows.
const NEWER_BOUND: &str = "max_completion_tokens";
/// A model's name, in bytes.
const MODEL_BYTES_MAX: usize = 128;

/// What goes out, and what it can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub model: Option<String>,
    pub price: Option<Price>,
    /// To be reserved.
    pub wanted: Spent,
    /// The body to send.
    pub body: Vec<u8>,
    pub kind: Kind,
    /// The agent has a bound of tokens or money: an answer that uses more than this is cut.
    pub bounded: bool,
}

/// What is asked for, and so where the answer says what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// OpenAI `chat/completions`.
    Chat,
    /// OpenAI `completions`.
    Completions,
    /// OpenAI `responses`.
    Responses,
    /// OpenAI `embeddings`.
    Embeddings,
    /// Anthropic `messages`.
    Messages,
    /// Something that costs no tokens, or whose tokens nobody bounds.
    Unmetered,
}

/// Members that a request may have whose cost is known: all of it is in the request, or in the bound of the answer.
#[rustfmt::skip]
fn members(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Chat => &[
            "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages",
            "metadata", "min_p", "model", "n", "parallel_tool_calls", "presence_penalty", "prompt_cache_key", "reasoning_effort", "repetition_penalty", "response_format",
            "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature", "tool_choice",
            "tools", "top_k", "top_logprobs", "top_p", "user", "verbosity",
        ],
        Kind::Completions => &[
            "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n", "presence_penalty", "prompt",
            "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_k", "top_p", "user",
        ],
        Kind::Responses => &[
            "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "parallel_tool_calls",
            "previous_response_id", "conversation", "prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "store",
            "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user",
        ],
        Kind::Embeddings => &["dimensions", "encoding_format", "input", "model", "user"],
        Kind::Messages => &[
            "cache_control", "context_management", "max_tokens", "messages", "metadata", "model", "output_config", "output_format", "service_tier",
            "stop_sequences", "stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
        ],
        Kind::Unmetered => &[],
    }
}

/// Kinds (members `type`) whose tokens are all in the request's text.
#[rustfmt::skip]
const TEXT_KINDS: &[&str] = &[
    // content
    "text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal", "thinking", "redacted_thinking",
    // what was said, called and answered before
    "message", "reasoning", "function", "function_call", "function_call_output", "custom", "custom_tool_call",
    "custom_tool_call_output", "tool_use", "tool_result",
    // choices and forms
    "auto", "any", "tool", "none", "allowed_tools", "enabled", "disabled", "adaptive", "ephemeral", "json_object", "json_schema",
    "grammar",
    // JSON Schema
    "object", "array", "string", "number", "integer", "boolean", "null",
];

/// Anthropic's tools that run where the client is, by the beginning of their kind.
const CLIENT_TOOLS: &[&str] = &["bash_", "text_editor_", "computer_", "memory_"];

/// Edits of a context that only take from it, by the beginning of their kind.
const CLEARS: &str = "clear_";

fn is_text(kind: &str) -> bool {
    TEXT_KINDS.contains(&kind)
        || kind.starts_with(CLEARS)
        || CLIENT_TOOLS.iter().any(|tool| kind.starts_with(tool))
}

/// Plans a request to a metered API. `path`: without the query. `bounded`: the agent has a bound of tokens or money; without one a
/// request passes as it is, and is metered as far as it can be.
pub fn plan(
    api: Api,
    method: &str,
    path: &str,
    body: Vec<u8>,
    prices: &BTreeMap<String, Price>,
    bounded: bool,
) -> Result<Plan, Refused> {
    let unmetered = |body| Plan {
        model: None,
        price: None,
        wanted: Spent::default(),
        body,
        kind: Kind::Unmetered,
        bounded,
    };
    let kind = match kind_of(api, method, path, &body) {
        Some(kind) if bounded && kind != Kind::Unmetered && decides_the_model(path) => {
            return Err(unbounded(
                format!("{path} may name another model than the body, whose price is known"),
                "use a path without `deployments`, `engines`, `models`, `%` and `;`",
            ));
        }
        Some(kind) => kind,
        None if bounded => {
            return Err(unbounded(
                format!("what {method} {path} costs is not known"),
                "use chat/completions, completions, responses or embeddings (OpenAI), or messages (Anthropic)",
            ));
        }
        None => Kind::Unmetered,
    };
    if kind == Kind::Unmetered {
        return Ok(unmetered(body));
    }
    match metered(kind, &body, prices, bounded) {
        Ok(plan) => Ok(plan),
        Err(refused) if bounded => Err(refused),
        // Nobody bounds what it costs; the answer still says what it used.
        Err(_) => Ok(Plan { kind, ..unmetered(body) }),
    }
}

fn kind_of(api: Api, method: &str, path: &str, body: &[u8]) -> Option<Kind> {
    let ends = |end: &str| path.ends_with(end);
    match (api, method) {
        (Api::Plain, _) => Some(Kind::Unmetered),
        (_, "GET" | "HEAD" | "DELETE" | "OPTIONS") => body.is_empty().then_some(Kind::Unmetered),
        (Api::Openai, "POST") if ends("/chat/completions") => Some(Kind::Chat),
        (Api::Openai, "POST") if ends("/completions") => Some(Kind::Completions),
        (Api::Openai, "POST") if ends("/responses") => Some(Kind::Responses),
        (Api::Openai, "POST") if ends("/embeddings") => Some(Kind::Embeddings),
        (Api::Openai, "POST") if ends("/responses/input_tokens") => Some(Kind::Unmetered),
        (Api::Anthropic, "POST") if ends("/messages") => Some(Kind::Messages),
        (Api::Anthropic, "POST") if ends("/messages/count_tokens") => Some(Kind::Unmetered),
        _ => None,
    }
}

/// Whether a path may say which model answers, as some hosts have it, or may be read in two ways.
fn decides_the_model(path: &str) -> bool {
    let names_one = |segment: &str| {
        ["deployments", "engines", "models"].iter().any(|name| segment.eq_ignore_ascii_case(name))
    };
    path.contains(['%', ';', '\\']) || path.split('/').any(names_one)
}

fn metered(
    kind: Kind,
    body: &[u8],
    prices: &BTreeMap<String, Price>,
    bounded: bool,
) -> Result<Plan, Refused> {
    let malformed = |why: String| unbounded(format!("the request is not what the API takes: {why}"), "");
    let request = Object::parse(body).map_err(malformed)?;
    if let Some((name, _)) = request.0.iter().find(|(name, _)| !members(kind).contains(&name.as_str())) {
        let shown: String = name.chars().take(64).collect();
        return Err(unbounded(
            format!("what the member `{shown}` costs is not known"),
            "leave it out, or ask for a manifest without bounds of tokens and money",
        ));
    }
    let model: String = request.value("model").map_err(malformed)?.unwrap_or_default();
    let Some(price) = prices.get(&model).copied() else {
        let shown: String = model.chars().take(MODEL_BYTES_MAX).collect();
        return Err(Refused {
            rule: "unknown-model",
            because: format!("the node has no price for the model `{shown}`"),
            remedy: format!("add [prices.\"{shown}\"] to nulld.toml, or use a model that has one"),
        });
    };
    check_tier(&request)?;
    let mut found = Found::default();
    // Where nothing is bounded nothing must be known beforehand.
    for (_, value) in request.0.iter().filter(|_| bounded) {
        json::survey(value, is_text, &mut found).map_err(malformed)?;
    }
    let tools = count_tools(&request)?;
    check_context(&request)?;
    let prompts = prompts(kind, &request);
    let context = price.input_tokens_max.saturating_mul(prompts);
    let elsewhere = found.unknown_kind
        || found.reference
        || ["previous_response_id", "conversation"].iter().any(|name| request.member(name).is_some());
    let in_the_text =
        (body.len() as u64).saturating_add(MARGIN_TOKENS).saturating_add(tools * MARGIN_TOKENS_OF_A_TOOL);
    let input = if elsewhere { context } else { in_the_text.min(context) };
    let (field, each) = answer_bound(kind, &request, &price)?;
    // Hosts that are older than this member pass over it: only the model bounds their answers.
    let sure = if field == Some(NEWER_BOUND) { price.output_tokens_max } else { each };
    let answers = answers(&request)?.saturating_mul(prompts);
    let output = sure.saturating_mul(answers);
    let caches = kind != Kind::Messages || found.cache_control || request.member("cache_control").is_some();
    let wanted = Spent {
        input_tokens: input,
        // OpenAI reads from caches unasked, Anthropic where it is told to; embeddings have none.
        cache_tokens: if caches && kind != Kind::Embeddings { input } else { 0 },
        output_tokens: output,
        micro_dollars: prices::worst(&price, input, output),
        ..Spent::default()
    };
    let body = if bounded { rewritten(kind, &request, field, each)? } else { body.to_vec() };
    Ok(Plan { model: Some(model), price: Some(price), wanted, body, kind, bounded })
}

/// A tier that costs more than the price table says is refused.
fn check_tier(request: &Object<'_>) -> Result<(), Refused> {
    let tier: Option<String> = request.value("service_tier").map_err(|why| unbounded(why, ""))?;
    match tier.as_deref() {
        None | Some("auto" | "default" | "flex" | "standard_only") => Ok(()),
        Some(_) => Err(unbounded(
            "what this `service_tier` costs is not known".to_owned(),
            "leave it out, or use `default`",
        )),
    }
}

/// A value that says its kind.
#[derive(serde::Deserialize)]
struct Kinded {
    #[serde(rename = "type")]
    kind: Option<String>,
}

fn kind_within(value: &RawValue) -> Result<Option<String>, String> {
    serde_json::from_str::<Kinded>(value.get()).map(|value| value.kind).map_err(|error| error.to_string())
}

/// Tools that only a name describes; those that the provider runs are refused, since they may run the model again and again.
fn count_tools(request: &Object<'_>) -> Result<u64, Refused> {
    let Some(tools) = request.member("tools") else { return Ok(0) };
    let (mut named, mut theirs) = (0, None);
    let seen = json::each(tools, &mut |tool| {
        match kind_within(tool)?.as_deref() {
            None | Some("function" | "custom") => {}
            Some(kind) if CLIENT_TOOLS.iter().any(|known| kind.starts_with(known)) => named += 1,
            Some(kind) => theirs = Some(kind.chars().take(64).collect::<String>()),
        }
        Ok(())
    });
    seen.map_err(|why| unbounded(why, ""))?;
    match theirs {
        None => Ok(named),
        Some(kind) => Err(unbounded(
            format!("what the provider's tool `{kind}` uses is not known"),
            "leave it out, or ask for a manifest without bounds of tokens and money",
        )),
    }
}

/// What Anthropic may do to a context: only taking from it costs nothing.
fn check_context(request: &Object<'_>) -> Result<(), Refused> {
    let Some(management) = request.member("context_management") else { return Ok(()) };
    let refused = |why: String| {
        unbounded(
            format!("what `context_management` costs is not known: {why}"),
            "only `edits` that clear are taken",
        )
    };
    let management = Object::parse(management.get().as_bytes()).map_err(refused)?;
    for (name, value) in &management.0 {
        if name != "edits" {
            return Err(refused("it has more than `edits`".to_owned()));
        }
        let clears = json::each(value, &mut |edit| match kind_within(edit)? {
            Some(kind) if kind.starts_with(CLEARS) => Ok(()),
            _ => Err("an edit that does not clear".to_owned()),
        });
        clears.map_err(refused)?;
    }
    Ok(())
}

/// How many prompts one request holds: `completions` and `embeddings` take lists of them.
fn prompts(kind: Kind, request: &Object<'_>) -> u64 {
    let member = match kind {
        Kind::Completions => request.member("prompt"),
        Kind::Embeddings => request.member("input"),
        _ => None,
    };
    let mut count = 0;
    if let Some(list) = member {
        // A list of numbers is one prompt. What is no JSON was refused before.
        let _ = json::each(list, &mut |value| {
            count += u64::from(value.get().starts_with(['"', '[']));
            Ok(())
        });
    }
    count.max(1)
}

/// How many answers each prompt gets.
fn answers(request: &Object<'_>) -> Result<u64, Refused> {
    let count = |name: &str| -> Result<u64, Refused> {
        let count: Option<u64> = request.value(name).map_err(|why| unbounded(why, ""))?;
        Ok(count.unwrap_or(1).max(1))
    };
    let count = count("n")?.max(count("best_of")?);
    if count > ANSWERS_MAX {
        return Err(unbounded(format!("{count} answers to one request"), "ask for fewer"));
    }
    Ok(count)
}

/// The member that bounds an answer, and its bound: what the request asks for, at most the model's.
fn answer_bound(
    kind: Kind,
    request: &Object<'_>,
    price: &Price,
) -> Result<(Option<&'static str>, u64), Refused> {
    let asked = |name: &str| -> Result<Option<u64>, Refused> {
        request
            .value(name)
            .map_err(|why| unbounded(format!("the request is not what the API takes: {why}"), ""))
    };
    let most = price.output_tokens_max;
    Ok(match kind {
        Kind::Chat => match (asked("max_completion_tokens")?, asked("max_tokens")?) {
            (Some(_), Some(_)) => {
                let both = "`max_tokens` and `max_completion_tokens` bound the same".to_owned();
                return Err(unbounded(both, "leave one out"));
            }
            (None, Some(tokens)) => (Some("max_tokens"), tokens.min(most)),
            (tokens, None) => (Some(NEWER_BOUND), tokens.unwrap_or(most).min(most)),
        },
        Kind::Completions | Kind::Messages => {
            (Some("max_tokens"), asked("max_tokens")?.unwrap_or(most).min(most))
        }
        Kind::Responses => (Some("max_output_tokens"), asked("max_output_tokens")?.unwrap_or(most).min(most)),
        Kind::Embeddings | Kind::Unmetered => (None, 0),
    })
}

/// The request with the bound of its answer in it, and, where it streams, with the wish to be told what it used.
fn rewritten(kind: Kind, request: &Object<'_>, field: Option<&str>, bound: u64) -> Result<Vec<u8>, Refused> {
    let malformed = |why: String| unbounded(why, "");
    let mut changed: Vec<(&str, String)> =
        field.map(|field| (field, json::text_of(&bound))).into_iter().collect();
    let streams = request.value::<bool>("stream").map_err(malformed)?.unwrap_or(false);
    if streams && matches!(kind, Kind::Chat | Kind::Completions) {
        let options = request.member("stream_options").map_or("{}", RawValue::get);
        let options = if options == "null" { "{}" } else { options };
        let options = Object::parse(options.as_bytes()).map_err(malformed)?;
        let asked = options.with(&[("include_usage", "true".to_owned())]);
        changed.push(("stream_options", String::from_utf8_lossy(&asked).into_owned()));
    }
    Ok(request.with(&changed))
}

fn unbounded(because: String, remedy: &str) -> Refused {
    let remedy = match remedy {
        "" => "send a request as the API's reference has it",
        remedy => remedy,
    };
    Refused { rule: "budget", because, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn prices() -> BTreeMap<String, Price> {
        let price = Price {
            input: 1_000_000,
            cache_read: 100_000,
            cache_write: 1_250_000,
            output: 5_000_000,
            input_tokens_max: 100_000,
            output_tokens_max: 4_000,
        };
        BTreeMap::from([("m".to_owned(), price)])
    }

    fn planned(api: Api, path: &str, body: &Value) -> Result<Plan, Refused> {
        plan(api, "POST", path, body.to_string().into_bytes(), &prices(), true)
    }

    fn sent(plan: &Plan) -> Value {
        serde_json::from_slice(&plan.body).unwrap()
    }

    fn chat(extra: Value) -> Value {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    #[test]
    fn a_text_request_reserves_its_bytes_and_the_answers_bound_goes_out() {
        let body = chat(json!({}));
        let found = planned(Api::Openai, "/v1/chat/completions", &body).unwrap();
        let bytes = body.to_string().len() as u64;
        assert_eq!(found.wanted.input_tokens, bytes + MARGIN_TOKENS);
        assert_eq!(found.wanted.cache_tokens, found.wanted.input_tokens);
        assert_eq!(found.wanted.output_tokens, 4_000);
        let input_cost = (found.wanted.input_tokens * 1_250_000).div_ceil(1_000_000);
        assert!(found.wanted.micro_dollars.abs_diff(input_cost + 20_000) <= 1, "{:?}", found.wanted);
        assert_eq!(sent(&found)["max_completion_tokens"], 4_000);
        let found =
            planned(Api::Openai, "/v1/chat/completions", &chat(json!({"max_tokens": 10, "n": 3}))).unwrap();
        assert_eq!((found.wanted.output_tokens, sent(&found)["max_tokens"].clone()), (30, json!(10)));
        assert!(sent(&found).get("max_completion_tokens").is_none());
        let more = chat(json!({"max_completion_tokens": 1_000_000}));
        let found = planned(Api::Openai, "/v1/chat/completions", &more).unwrap();
        assert_eq!(
            (found.wanted.output_tokens, sent(&found)["max_completion_tokens"].clone()),
            (4_000, json!(4_000))
        );
        // A host that does not know the newer member answers up to the model's bound.
        let newer = chat(json!({"max_completion_tokens": 10, "n": 2}));
        let found = planned(Api::Openai, "/v1/chat/completions", &newer).unwrap();
        assert_eq!(
            (found.wanted.output_tokens, sent(&found)["max_completion_tokens"].clone()),
            (8_000, json!(10))
        );
    }

    #[test]
    fn every_api_has_its_bound() {
        let messages = json!({"model": "m", "max_tokens": 7, "messages": [], "stream": true});
        let found = planned(Api::Anthropic, "/v1/messages", &messages).unwrap();
        assert_eq!((found.wanted.output_tokens, found.wanted.cache_tokens), (7, 0));
        assert!(sent(&found).get("stream_options").is_none());
        let cached = json!({"model": "m", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]});
        let found = planned(Api::Anthropic, "/v1/messages", &cached).unwrap();
        assert_eq!(
            (found.wanted.cache_tokens, sent(&found)["max_tokens"].clone()),
            (found.wanted.input_tokens, json!(4_000))
        );
        let outermost = json!({"model": "m", "messages": [], "cache_control": {"type": "ephemeral"}});
        let found = planned(Api::Anthropic, "/v1/messages", &outermost).unwrap();
        assert_eq!(found.wanted.cache_tokens, found.wanted.input_tokens);
        let responses = json!({"model": "m", "input": "hi"});
        let found = planned(Api::Openai, "/v1/responses", &responses).unwrap();
        assert_eq!(sent(&found)["max_output_tokens"], 4_000);
        let embeddings = json!({"model": "m", "input": ["a", "b"]});
        let found = planned(Api::Openai, "/v1/embeddings", &embeddings).unwrap();
        assert_eq!((found.wanted.output_tokens, found.wanted.cache_tokens), (0, 0));
        let completions = json!({"model": "m", "prompt": ["a", "b"], "max_tokens": 5, "n": 2, "best_of": 3});
        let found = planned(Api::Openai, "/v1/completions", &completions).unwrap();
        assert_eq!(found.wanted.output_tokens, 5 * 3 * 2);
    }

    #[test]
    fn a_stream_is_asked_for_its_usage_whatever_the_client_says() {
        for options in [
            json!({}),
            json!({"stream_options": {"include_usage": false, "x": 1}}),
            json!({"stream_options": null}),
        ] {
            let mut body = chat(options);
            body["stream"] = json!(true);
            let found = planned(Api::Openai, "/v1/chat/completions", &body).unwrap();
            assert_eq!(sent(&found)["stream_options"]["include_usage"], true);
        }
    }

    #[test]
    fn what_lies_elsewhere_reserves_the_whole_context() {
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a"}}]}]);
        for (path, body) in [
            ("/v1/chat/completions", json!({"model": "m", "messages": image})),
            (
                "/v1/chat/completions",
                json!({"model": "m", "messages": [{"type": "", "image_url": {"url": "x"}}]}),
            ),
            ("/v1/responses", json!({"model": "m", "input": [{"type": "item_reference", "id": "x"}]})),
            ("/v1/responses", json!({"model": "m", "input": [{"id": "x"}]})),
            (
                "/v1/responses",
                json!({"model": "m", "input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
            ),
            (
                "/v1/responses",
                json!({"model": "m", "input": [{"id": "rs_1", "summary": [], "status": "completed"}]}),
            ),
            (
                "/v1/responses",
                json!({"model": "m", "input": [
                {"encrypted_content": null, "summary": [{"type": "summary_text", "text": "short"}], "id": "rs_1", "type": "reasoning"}]}),
            ),
            (
                "/v1/responses",
                json!({"model": "m", "input": [{"type": "message", "id": "msg_1", "role": "assistant", "content": []}]}),
            ),
            (
                "/v1/responses",
                json!({"model": "m", "input": [{"type": "message", "id": "msg_1", "role": "assistant", "content": [{}, {"type": "output_text", "text": ""}]}]}),
            ),
            (
                "/v1/responses",
                json!({"model": "m", "input": [{"type": "message", "id": "msg_1", "role": "assistant"}]}),
            ),
            ("/v1/responses", json!({"model": "m", "input": "x", "previous_response_id": "y"})),
            ("/v1/responses", json!({"model": "m", "input": [{"type": "input_file", "file_id": "x"}]})),
        ] {
            let found = planned(Api::Openai, path, &body).unwrap();
            assert_eq!(found.wanted.input_tokens, 100_000, "{body}");
        }
        // What was said before, by value: its id costs nothing.
        for item in [
            json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}),
            json!({"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}),
            json!({"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}),
        ] {
            let body = json!({"model": "m", "input": [item]});
            let found = planned(Api::Openai, "/v1/responses", &body).unwrap();
            assert_eq!(found.wanted.input_tokens, body.to_string().len() as u64 + MARGIN_TOKENS, "{body}");
        }
        let long = chat(json!({"messages": [{"role": "user", "content": "x".repeat(200_000)}]}));
        let found = planned(Api::Openai, "/v1/chat/completions", &long).unwrap();
        assert_eq!(found.wanted.input_tokens, 100_000);
    }

    #[test]
    fn what_cannot_be_bounded_is_refused_and_says_why() {
        let path = "/v1/chat/completions";
        for (body, rule, says) in [
            (json!({"model": "other", "messages": []}), "unknown-model", "[prices.\"other\"]"),
            (json!({"messages": []}), "unknown-model", "no price"),
            (chat(json!({"models": ["m", "dear"]})), "budget", "`models`"),
            (chat(json!({"service_tier": "priority"})), "budget", "service_tier"),
            (chat(json!({"n": 1000})), "budget", "1000 answers"),
            (chat(json!({"n": -1})), "budget", "`n`"),
            (chat(json!({"max_tokens": 1.5})), "budget", "`max_tokens`"),
            (chat(json!({"max_tokens": 1, "max_completion_tokens": 1})), "budget", "bound the same"),
            (chat(json!({"tools": [{"type": "web_search"}]})), "budget", "`web_search`"),
            (json!([]), "budget", "not what the API takes"),
        ] {
            let refused = planned(Api::Openai, path, &body).unwrap_err();
            assert_eq!(refused.rule, rule, "{body}");
            assert!(format!("{} {}", refused.because, refused.remedy).contains(says), "{refused:?}");
        }
        for (api, method, path) in [
            (Api::Openai, "POST", "/v1/images/generations"),
            (Api::Openai, "POST", "/v1/chat/completions/"),
            (Api::Anthropic, "POST", "/v1/messages/batches"),
            (Api::Anthropic, "PUT", "/v1/messages"),
            // The model's name is in the path, whatever the body says.
            (Api::Openai, "POST", "/openai/deployments/dear/chat/completions"),
            (Api::Openai, "POST", "/v1/Engines/dear/completions"),
            (Api::Openai, "POST", "/models/dear/v1/chat/completions"),
            (Api::Anthropic, "POST", "/models/dear/v1/messages"),
            (Api::Openai, "POST", "/openai/%64eployments/dear/chat/completions"),
            (Api::Openai, "POST", "/openai/deployments;a=b/dear/chat/completions"),
            (Api::Openai, "GET", "/v1/models"),
        ] {
            let body = chat(json!({})).to_string().into_bytes();
            let refused = plan(api, method, path, body, &prices(), true).unwrap_err();
            assert_eq!(refused.rule, "budget", "{method} {path}");
        }
        assert!(plan(Api::Openai, "GET", "/v1/models", Vec::new(), &prices(), true).is_ok());
    }

    #[test]
    fn names_of_members_take_little_memory_and_more_are_refused() {
        let schema = |members: usize, name: &str| {
            let members: Vec<String> = (0..members).map(|n| format!("\"{name}{n}\":0")).collect();
            let body = format!("{{\"model\":\"m\",\"messages\":[{{{}}}]}}", members.join(","));
            plan(Api::Openai, "POST", "/v1/chat/completions", body.into(), &prices(), true)
        };
        assert!(schema(1_000, "a").is_ok());
        assert!(schema(1_001, "a").unwrap_err().because.contains("more than 1000 members"));
        let long = "a".repeat(1_000);
        assert!(schema(60, &long).is_ok());
        assert!(schema(70, &long).unwrap_err().because.contains("names of its members"));
        // What is closed is forgotten: a long conversation passes.
        let many = chat(json!({"messages": vec![json!({"role": "user", "content": "hi"}); 50_000]}));
        assert!(planned(Api::Openai, "/v1/chat/completions", &many).is_ok());
    }

    #[test]
    fn without_a_bound_nothing_is_looked_through_and_the_model_is_known() {
        let body = r#"{"model":"m","messages":[{"a":0,"a":0}]}"#;
        let path = "/v1/chat/completions";
        let found = plan(Api::Openai, "POST", path, body.into(), &prices(), false).unwrap();
        assert_eq!((found.model.as_deref(), found.body.as_slice()), (Some("m"), body.as_bytes()));
        assert!(plan(Api::Openai, "POST", path, body.into(), &prices(), true).is_err());
    }

    #[test]
    fn a_context_may_be_cleared_and_not_written_anew() {
        let with = |edits: Value| {
            let body = json!({"model": "m", "messages": [], "context_management": edits});
            planned(Api::Anthropic, "/v1/messages", &body)
        };
        let found = with(
            json!({"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}]}),
        );
        assert!(found.is_ok());
        for edits in [
            json!({"edits": [{"type": "compact_20260112"}]}),
            json!({"edits": [{}]}),
            json!({"more": 1}),
            json!(5),
        ] {
            assert_eq!(with(edits.clone()).unwrap_err().rule, "budget", "{edits}");
        }
    }

    #[test]
    fn the_deepest_body_fits_the_stack_of_a_worker() {
        let nested = |levels: usize| {
            format!("{{\"model\":\"m\",\"messages\":{}1{}}}", "[{\"a\":".repeat(levels), "}]".repeat(levels))
        };
        let worker = std::thread::Builder::new().stack_size(128 * 1024);
        let planned = move |levels| {
            plan(Api::Openai, "POST", "/v1/chat/completions", nested(levels).into(), &prices(), true)
        };
        let both = worker.spawn(move || (planned(23).is_ok(), planned(1000).is_ok())).unwrap();
        assert_eq!(both.join().unwrap(), (true, false));
    }

    #[test]
    fn a_body_with_two_readings_is_refused() {
        for body in [
            r#"{"model":"dear","model":"m","messages":[]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","type":"text"}]}]}"#,
            r#"{"model":"m","mod\u0065l":"dear","messages":[]}"#,
            r#"{"model":"m","messages":[]} {"model":"dear"}"#,
            r#"{"model":"m","messages":[],}"#,
        ] {
            let refused = plan(Api::Openai, "POST", "/v1/chat/completions", body.into(), &prices(), true);
            assert_eq!(refused.unwrap_err().rule, "budget", "{body}");
        }
        let deep =
            format!("{{\"model\":\"m\",\"messages\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(plan(Api::Openai, "POST", "/v1/chat/completions", deep.into(), &prices(), true).is_err());
    }

    #[test]
    fn what_is_not_changed_keeps_its_bytes_and_order() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"z \u00e9 1.0"}],"response_format":{"z":1,"a":2.50}}"#;
        let found = plan(Api::Openai, "POST", "/v1/chat/completions", body.into(), &prices(), true).unwrap();
        let expected = format!("{},\"max_completion_tokens\":4000}}", body.strip_suffix('}').unwrap());
        assert_eq!(String::from_utf8(found.body).unwrap(), expected);
    }

    #[test]
    fn without_a_bound_everything_passes_as_it_is() {
        for (path, body) in [
            ("/v1/chat/completions", "not json"),
            ("/v1/chat/completions", r#"{"model":"unknown"}"#),
            ("/v1/images/generations", "{}"),
            ("/v1/chat/completions", r#"{"model":"m","messages":[]}"#),
        ] {
            let found = plan(Api::Openai, "POST", path, body.into(), &prices(), false).unwrap();
            assert_eq!(found.body, body.as_bytes());
        }
    }
}
