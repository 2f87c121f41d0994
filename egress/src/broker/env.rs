//! The variables that make an agent's usual tools use the broker. Pure.
//!
//! Must never: hold a secret, or part of one.

use abi::guest::AUTHORITY_PATH;
use abi::network::{Api, NetworkGrant, SecretPolicy};
use std::collections::BTreeMap;

use crate::policy::{Policy, broker_name};

/// What stands where a tool wants a key.
const PLACEHOLDER: &str = "provided-by-nullbox";

/// For [`abi::control::Attached::env`].
pub fn env(policy: &Policy) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for secret in &policy.secrets {
        let Some(name) = broker_name(&secret.host) else { continue };
        let base = format!("http://{name}");
        let own = [(base_variable(secret), base.clone())];
        let usual = match secret.api {
            Api::Plain => own.to_vec(),
            // A second host of the same kind cannot have the same variables.
            Api::Openai if !env.contains_key("OPENAI_BASE_URL") => vec![
                ("OPENAI_BASE_URL".to_owned(), format!("{base}/v1")),
                ("OPENAI_API_KEY".to_owned(), PLACEHOLDER.to_owned()),
            ],
            Api::Anthropic if !env.contains_key("ANTHROPIC_BASE_URL") => vec![
                ("ANTHROPIC_BASE_URL".to_owned(), base),
                ("ANTHROPIC_API_KEY".to_owned(), PLACEHOLDER.to_owned()),
            ],
            Api::Openai | Api::Anthropic => own.to_vec(),
        };
        for (variable, value) in usual {
            env.entry(variable).or_insert(value);
        }
    }
    let path = || AUTHORITY_PATH.to_owned();
    if policy.manifest.iter().any(|grant| grant.intercept) {
        // Adds to the roots that a program has.
        env.insert("NODE_EXTRA_CA_CERTS".into(), path());
    }
    if policy.manifest.iter().any(|grant| grant.intercept)
        && policy.manifest.iter().all(|grant| needs_no_other_root(grant, &policy.secrets))
    {
        // These replace them, so they are set only where no other host's certificate is ever seen.
        for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
            env.insert(variable.into(), path());
        }
    }
    env
}

/// Whether the guest's own TLS over a grant ends at egress, or there is none.
fn needs_no_other_root(grant: &NetworkGrant, secrets: &[SecretPolicy]) -> bool {
    let is_brokered = secrets.iter().any(|secret| grant.exact() == Some(&secret.host));
    grant.intercept || grant.is_narrowed() || is_brokered || grant.ports == [80]
}

/// `X_BASE_URL` for a secret named `X_KEY`, `X_API_KEY` or `X_TOKEN`.
fn base_variable(secret: &SecretPolicy) -> String {
    let name = secret.name.as_str();
    let stem = ["_API_KEY", "_KEY", "_TOKEN"].iter().find_map(|end| name.strip_suffix(end));
    let stem = stem.filter(|stem| !stem.is_empty()).unwrap_or(name);
    format!("{stem}_BASE_URL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, host: &str, api: Api) -> SecretPolicy {
        SecretPolicy {
            name: name.parse().unwrap(),
            host: host.parse().unwrap(),
            port: 443,
            header: "authorization".into(),
            format: "Bearer {}".into(),
            api,
        }
    }

    fn of(grants: &[(&str, bool)], secrets: Vec<SecretPolicy>) -> BTreeMap<String, String> {
        let grant = |(text, intercept): &(&str, bool)| NetworkGrant {
            intercept: *intercept,
            ..text.parse().unwrap()
        };
        env(&Policy { manifest: grants.iter().map(grant).collect(), secrets, ..Policy::default() })
    }

    #[test]
    fn tools_find_the_broker_by_their_usual_variables() {
        let env = of(
            &[("api.openai.test", false)],
            vec![
                secret("OPENAI_KEY", "api.openai.test", Api::Openai),
                secret("OTHER_AI", "other.test", Api::Openai),
                secret("ANTHROPIC", "api.anthropic.test", Api::Anthropic),
                secret("EXA_API_KEY", "api.exa.test", Api::Plain),
                secret("GIT_TOKEN", "git.test", Api::Plain),
                secret("KEY", "odd.test", Api::Plain),
            ],
        );
        let shown: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "ANTHROPIC_API_KEY=provided-by-nullbox",
                "ANTHROPIC_BASE_URL=http://api.anthropic.test.broker.internal",
                "EXA_BASE_URL=http://api.exa.test.broker.internal",
                "GIT_BASE_URL=http://git.test.broker.internal",
                "KEY_BASE_URL=http://odd.test.broker.internal",
                "OPENAI_API_KEY=provided-by-nullbox",
                "OPENAI_BASE_URL=http://api.openai.test.broker.internal/v1",
                "OTHER_AI_BASE_URL=http://other.test.broker.internal",
            ]
        );
    }

    #[test]
    fn the_authority_replaces_other_roots_only_where_none_is_needed() {
        assert!(of(&[("api.test", false)], Vec::new()).is_empty());
        let names = |grants: &[(&str, bool)]| of(grants, Vec::new()).into_keys().collect::<Vec<_>>();
        let all = ["CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"];
        assert_eq!(names(&[("api.test", true)]), all);
        assert_eq!(names(&[("api.test", true), ("other.test:443", false)]), ["NODE_EXTRA_CA_CERTS"]);
    }
}
