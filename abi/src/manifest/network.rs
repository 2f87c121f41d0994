//! The parts of a manifest that describe what an agent may reach and spend: `network.allow`, credentials, budgets.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Range;
use toml::Spanned;

use super::{Checked, Checker};
use crate::ids::SecretName;
use crate::limits;
use crate::network::{Budget, GrantError, NamePattern, NetworkGrant, PORTS_DEFAULT, Period};

/// An entry of `network.allow` that is a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    name: String,
    #[serde(default)]
    ports: Vec<i64>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    addresses: Vec<Ipv4Addr>,
    #[serde(default)]
    without_sni: bool,
    #[serde(default)]
    intercept: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBudget {
    #[serde(default)]
    period: Period,
    max_input_tokens: Option<Spanned<i64>>,
    max_cache_tokens: Option<Spanned<i64>>,
    max_output_tokens: Option<Spanned<i64>>,
    max_micro_dollars: Option<Spanned<i64>>,
    max_bytes: Option<Spanned<i64>>,
    max_wall_secs: Option<Spanned<i64>>,
}

const ALLOW: &str = "capabilities.network.allow";
/// Above it a TOML integer is not exact in every reader (RFC 8259 section 6 says the same of JSON).
pub(super) const AMOUNT_MAX: i64 = 1 << 53;

impl Checker<'_> {
    /// Sorted by name; a name and port stand once.
    pub(super) fn allow(
        &self,
        list: Option<Spanned<Vec<Spanned<toml::Value>>>>,
    ) -> Checked<Vec<NetworkGrant>> {
        let Some(list) = list else { return Ok(Vec::new()) };
        let (span, entries) = (list.span(), list.into_inner());
        if entries.len() > limits::NETWORK_ALLOW_MAX {
            let rule =
                format!("{} entries: at most {} are allowed", entries.len(), limits::NETWORK_ALLOW_MAX);
            return self.wrong(span, ALLOW, rule, "remove some");
        }
        let mut seen = BTreeSet::new();
        let mut grants: Vec<NetworkGrant> = Vec::new();
        for entry in entries {
            let span = entry.span();
            let grant = match entry.into_inner() {
                toml::Value::String(text) => self.short(&text, span.clone())?,
                table @ toml::Value::Table(_) => self.table(table, span.clone())?,
                _ => {
                    let rule = "an entry is a text or a table";
                    return self.wrong(
                        span,
                        ALLOW,
                        rule,
                        "write \"api.exa.ai\" or { name = \"api.exa.ai\" }",
                    );
                }
            };
            for port in &grant.ports {
                if !seen.insert((grant.name.clone(), *port)) {
                    return self.wrong(span, ALLOW, "stands in the list twice", "remove one of the two");
                }
            }
            grants.push(grant);
        }
        let paths: usize = grants.iter().map(|grant| grant.paths.len()).sum();
        if paths > limits::GRANT_PATHS_TOTAL_MAX {
            let rule = format!("{paths} paths: at most {} in all are allowed", limits::GRANT_PATHS_TOTAL_MAX);
            return self.wrong(span, ALLOW, rule, "write shorter prefixes");
        }
        let bytes = serde_json::to_string(&grants).map_or(usize::MAX, |text| text.len());
        if bytes > limits::NETWORK_ALLOW_BYTES_MAX {
            let rule = format!(
                "{bytes} bytes with all parts: at most {} are allowed",
                limits::NETWORK_ALLOW_BYTES_MAX
            );
            return self.wrong(span, ALLOW, rule, "write fewer entries, or fewer paths and methods in them");
        }
        grants.sort_by(|a, b| (&a.name, &a.ports).cmp(&(&b.name, &b.ports)));
        Ok(grants)
    }

    fn short(&self, text: &str, span: Range<usize>) -> Checked<NetworkGrant> {
        text.parse().or_else(|error| match error {
            GrantError::Port => self.wrong(span, ALLOW, "the port must be 1 to 65535", "write NAME:PORT"),
            GrantError::Name(_) => self.no_name(span),
        })
    }

    fn no_name<T>(&self, span: Range<usize>) -> Checked<T> {
        self.wrong(
            span,
            ALLOW,
            "must be a host name with at least one dot, or `*.` and such a name; never an address",
            "write a name like \"api.exa.ai\", \"git.example.org:22\" or \"*.example.org\"",
        )
    }

    fn table(&self, table: toml::Value, span: Range<usize>) -> Checked<NetworkGrant> {
        let wrong = |rule: &str, remedy: &str| self.wrong(span.clone(), ALLOW, rule, remedy);
        let raw = match RawGrant::deserialize(table) {
            Ok(raw) => raw,
            Err(error) => {
                let rule = error.message().to_owned();
                return wrong(
                    &rule,
                    "an entry has name, ports, methods, paths, addresses, without_sni, intercept",
                );
            }
        };
        let Ok(name) = raw.name.parse::<NamePattern>() else { return self.no_name(span) };
        let ports: Option<Vec<u16>> =
            raw.ports.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0)).collect();
        let Some(ports) = ports else { return wrong("a port must be 1 to 65535", "write ports = [443]") };
        let distinct: BTreeSet<u16> = ports.iter().copied().collect();
        if distinct.len() != ports.len() {
            return wrong("a port stands once", "remove one of the two");
        }
        let ports = if ports.is_empty() { PORTS_DEFAULT.to_vec() } else { ports };
        let mut grant = NetworkGrant::plain(name, ports);
        (grant.methods, grant.paths, grant.addresses) = (raw.methods, raw.paths, raw.addresses);
        (grant.without_sni, grant.intercept) = (raw.without_sni, raw.intercept);
        if let Some((rule, remedy)) = grant.fault() {
            return wrong(rule, remedy);
        }
        Ok(grant)
    }

    pub(super) fn credentials(
        &self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
    ) -> Checked<Vec<SecretName>> {
        let field = "capabilities.credential_refs";
        let mut refs = BTreeSet::new();
        for entry in self.list(list, field, limits::CREDENTIALS_PER_AGENT_MAX)? {
            let Ok(name) = entry.get_ref().parse::<SecretName>() else {
                let rule = "must be the name of a secret: 1 to 64 of A-Z 0-9 _, beginning with a letter";
                return self.wrong(
                    entry.span(),
                    field,
                    rule,
                    "name it as `nullctl secret list` does, like \"EXA_KEY\"",
                );
            };
            if !refs.insert(name) {
                return self.wrong(entry.span(), field, "stands in the list twice", "remove one of the two");
            }
        }
        Ok(refs.into_iter().collect())
    }

    pub(super) fn budget(&self, raw: RawBudget, calls: Option<Spanned<i64>>) -> Checked<Budget> {
        let amount = |value: Option<Spanned<i64>>, field: &str, unit: &str| {
            let Some(value) = value else { return Ok(None) };
            match *value.get_ref() {
                amount @ 0..=AMOUNT_MAX => Ok(u64::try_from(amount).ok()),
                _ => {
                    let rule = format!("must be 0 to {AMOUNT_MAX} ({unit})");
                    self.wrong(value.span(), field, rule, "leave it out for no bound")
                }
            }
        };
        Ok(Budget {
            period: raw.period,
            input_tokens_max: amount(raw.max_input_tokens, "capabilities.budget.max_input_tokens", "tokens")?,
            cache_tokens_max: amount(raw.max_cache_tokens, "capabilities.budget.max_cache_tokens", "tokens")?,
            output_tokens_max: amount(
                raw.max_output_tokens,
                "capabilities.budget.max_output_tokens",
                "tokens",
            )?,
            micro_dollars_max: amount(
                raw.max_micro_dollars,
                "capabilities.budget.max_micro_dollars",
                "millionths of a dollar",
            )?,
            calls_per_hour_max: amount(calls, "capabilities.max_api_calls_per_hour", "calls")?,
            bytes_max: amount(raw.max_bytes, "capabilities.budget.max_bytes", "bytes")?,
            wall_secs_max: amount(raw.max_wall_secs, "capabilities.budget.max_wall_secs", "seconds")?,
        })
    }
}
