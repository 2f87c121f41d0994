//! What the environment says: the goal, the tree, the model, bounds.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use abi::limits;
use abi::tools::{TOOLS_SOCKET, WORK_PATH};

use crate::model::Api;

/// Everything that is set from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub goal: String,
    /// The tree's root.
    pub tree: String,
    pub tools: PathBuf,
    pub api: Api,
    /// Without a `/` at its end.
    pub base_url: String,
    pub key: String,
    pub model: String,
    pub steps_max: u32,
    pub context_bytes_max: usize,
    pub answer_tokens_max: u32,
    /// Pause before the first repetition.
    pub pause_ms: u64,
}

/// A setting that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {why}")]
pub struct SettingsError {
    pub name: &'static str,
    pub why: String,
}

impl Settings {
    /// Reads them from an environment.
    pub fn read(env: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let wanted = |name: &'static str, why: &str| {
            env(name).ok_or_else(|| SettingsError { name, why: why.to_owned() })
        };
        let goal = wanted("NULLBOX_GOAL", "is not set; `nullctl task run --goal` sets it")?;
        let model = wanted("NULLBOX_MODEL", "is not set; name a model in `env` of the manifest")?;
        let api = api(&env, &model)?;
        let (url, key) = match api {
            Api::Openai => ("OPENAI_BASE_URL", "OPENAI_API_KEY"),
            Api::Anthropic => ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
        };
        let base_url =
            wanted(url, "is not set; the broker sets it where credential_refs names a secret of this API")?;
        if !base_url.starts_with("http://") {
            let why = format!(
                "`{base_url}` is not http://: the broker speaks TLS to the provider, this program does not"
            );
            return Err(SettingsError { name: url, why });
        }
        Ok(Settings {
            goal,
            tree: env("NULLBOX_WORK")
                .unwrap_or_else(|| WORK_PATH.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            tools: env("NULLBOX_TOOLS").unwrap_or_else(|| TOOLS_SOCKET.to_owned()).into(),
            api,
            base_url: base_url.trim_end_matches('/').to_owned(),
            key: env(key).unwrap_or_default(),
            model,
            steps_max: number(
                &env,
                "NULLBOX_STEPS",
                limits::CODER_STEPS_DEFAULT,
                1..=limits::CODER_STEPS_MAX,
            )?,
            context_bytes_max: number(
                &env,
                "NULLBOX_CONTEXT_BYTES",
                limits::CODER_CONTEXT_BYTES_DEFAULT,
                limits::CODER_CONTEXT_BYTES_MIN..=limits::CODER_CONTEXT_BYTES_MAX,
            )?,
            answer_tokens_max: number(
                &env,
                "NULLBOX_ANSWER_TOKENS",
                limits::CODER_ANSWER_TOKENS_DEFAULT,
                1..=limits::CODER_ANSWER_TOKENS_MAX,
            )?,
            pause_ms: number(
                &env,
                "NULLBOX_PAUSE_MS",
                limits::CODER_PAUSE_MS_MIN,
                1..=limits::CODER_PAUSE_MS_MAX,
            )?,
        })
    }
}

/// The API whose URL is set; of two, the one that NULLBOX_API or the model's name says.
fn api(env: &impl Fn(&str) -> Option<String>, model: &str) -> Result<Api, SettingsError> {
    match env("NULLBOX_API").as_deref() {
        Some("openai") => return Ok(Api::Openai),
        Some("anthropic") => return Ok(Api::Anthropic),
        Some(other) => {
            let why = format!("`{other}` is neither `openai` nor `anthropic`");
            return Err(SettingsError { name: "NULLBOX_API", why });
        }
        None => {}
    }
    let is_set = |name: &str| env(name).is_some();
    Ok(match (is_set("OPENAI_BASE_URL"), is_set("ANTHROPIC_BASE_URL")) {
        (false, true) => Api::Anthropic,
        (true, true) if model.starts_with("claude") => Api::Anthropic,
        _ => Api::Openai,
    })
}

fn number<T>(
    env: &impl Fn(&str) -> Option<String>,
    name: &'static str,
    default: T,
    range: RangeInclusive<T>,
) -> Result<T, SettingsError>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let Some(text) = env(name) else { return Ok(default) };
    text.trim().parse().ok().filter(|value| range.contains(value)).ok_or_else(|| SettingsError {
        name,
        why: format!("`{text}` is not a number from {} to {}", range.start(), range.end()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENAI: [(&str, &str); 4] = [
        ("NULLBOX_GOAL", "fix it"),
        ("NULLBOX_MODEL", "m"),
        ("OPENAI_BASE_URL", "http://api.test.broker.internal/v1/"),
        ("OPENAI_API_KEY", "provided-by-nullbox"),
    ];

    fn read(more: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let find = |name: &str| OPENAI.iter().chain(more).rev().find(|(key, _)| *key == name);
        Settings::read(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn what_the_broker_and_the_task_set_is_enough() {
        let settings = read(&[]).unwrap();
        assert_eq!(
            (settings.api, settings.base_url.as_str()),
            (Api::Openai, "http://api.test.broker.internal/v1")
        );
        assert_eq!((settings.tree.as_str(), settings.steps_max), ("/work", limits::CODER_STEPS_DEFAULT));
        assert_eq!(settings.tools, PathBuf::from("/run/nullbox/tools.sock"));
    }

    #[test]
    fn the_api_is_the_one_that_is_set_or_named() {
        let both = ("ANTHROPIC_BASE_URL", "http://anthropic.test.broker.internal");
        assert_eq!(read(&[both]).unwrap().api, Api::Openai);
        assert_eq!(read(&[both, ("NULLBOX_MODEL", "claude-x")]).unwrap().api, Api::Anthropic);
        assert_eq!(read(&[both, ("NULLBOX_API", "anthropic")]).unwrap().api, Api::Anthropic);
        assert_eq!(read(&[both, ("OPENAI_BASE_URL", "")]).unwrap().api, Api::Anthropic);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (name, value) in [
            ("NULLBOX_GOAL", ""),
            ("NULLBOX_MODEL", " "),
            ("OPENAI_BASE_URL", ""),
            ("OPENAI_BASE_URL", "https://api.test"),
            ("NULLBOX_API", "other"),
            ("NULLBOX_STEPS", "0"),
            ("NULLBOX_STEPS", "1001"),
            ("NULLBOX_CONTEXT_BYTES", "many"),
            ("NULLBOX_ANSWER_TOKENS", "-1"),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap_err().name, name, "{value}");
        }
    }
}
