//! Which fields of a request go to a host and which of an answer come back (RFC 9110). Pure.
//!
//! Must hold: nothing that a client sent as a credential, or about the connection, leaves; a request says one thing to everybody who
//! reads it.

use abi::ids::HostName;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::policy::{Way, broker_name};

/// Fields about one connection (RFC 9110 section 7.6.1), beside those that Connection names.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Whose account pays: the secret's does.
const ACCOUNTS: [&str; 4] =
    ["openai-organization", "openai-project", "x-goog-user-project", "anthropic-workspace-id"];
/// Features of `anthropic-beta` that make no token cost more and take no more of them than the request says.
const BETAS: [&str; 8] = [
    "prompt-caching-2024-07-31",
    "token-efficient-tools-2025-02-19",
    "fine-grained-tool-streaming-2025-05-14",
    "output-128k-2025-02-19",
    "max-tokens-3-5-sonnet-2024-07-15",
    "context-management-2025-06-27",
    "structured-outputs-2025-11-13",
    "computer-use-2025-01-24",
];
/// Made anew for each request.
const OURS: [&str; 5] = ["host", "content-length", "accept-encoding", "expect", "http2-settings"];
/// Read by some servers as another method, path, host or client than the one that was judged.
const MISLEADING: [&str; 9] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    "x-original-method",
    "x-host",
    "forwarded",
    "alt-used",
];
/// Parts of the names of fields and parameters that carry credentials.
const CREDENTIAL_PARTS: [&str; 16] = [
    "auth",
    "token",
    "secret",
    "passw",
    "passphrase",
    "signature",
    "credential",
    "cookie",
    "bearer",
    "jwt",
    "api-key",
    "apikey",
    "access-key",
    "accesskey",
    "auth-key",
    "subscription-key",
];
/// Whole names that do.
const CREDENTIAL_NAMES: [&str; 4] = ["sig", "pass", "pwd", "hmac"];
/// Names that only look like it: who wrote something, how many tokens, where a list goes on, what a row is found by.
#[rustfmt::skip]
const NO_CREDENTIALS: [&str; 40] = [
    "author", "authors", "author-id", "author-ids", "author-name", "author-email", "authority",
    "tokens", "max-tokens", "maxtokens", "max-output-tokens", "max-completion-tokens", "min-tokens", "token-count", "tokenizer",
    "page-token", "pagetoken", "next-page-token", "nextpagetoken", "next-token", "nexttoken", "continuation-token", "continuationtoken",
    "sync-token", "synctoken", "delta-token", "deltatoken", "skip-token", "skiptoken",
    "idempotency-key", "x-idempotency-key", "partition-key", "sort-key", "primary-key", "foreign-key", "start-key", "end-key",
    "startkey", "endkey", "sec-websocket-key",
];

/// Whether a field or a parameter of a query is a client's own credential, by its name. What is in doubt is one.
pub fn is_credential(name: &str) -> bool {
    // Servers take `_`, `.` and more for `-`.
    let dashed: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let name = dashed.trim_matches('-');
    if NO_CREDENTIALS.contains(&name) {
        return false;
    }
    CREDENTIAL_PARTS.iter().any(|part| name.contains(part))
        || CREDENTIAL_NAMES.contains(&name)
        || name.ends_with("key")
}

/// The parameter of a query that carries a credential, if one does: the beginning of its name.
pub fn credential_parameter(query: &str) -> Option<String> {
    let names = query.split(['&', ';']).map(|pair| pair.split('=').next().unwrap_or_default());
    let found = names.map(decoded).find(|name| is_credential(name))?;
    Some(found.chars().take(PARAMETER_CHARS).flat_map(char::escape_default).collect())
}

/// Characters of a parameter's name that are shown.
const PARAMETER_CHARS: usize = 64;

/// A parameter's name as a server reads it.
fn decoded(name: &str) -> String {
    let mut out = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The fields of a request as they leave, but for Host and the secret's own.
///
/// With a secret no part of an answer is asked for: half of a secret could not be told from other text.
pub fn outward(asked: &HeaderMap, secret_field: Option<&str>) -> HeaderMap {
    let named = named_by_connection(asked);
    let mut out = HeaderMap::new();
    for (name, value) in asked {
        let text = name.as_str();
        let stays = HOP_BY_HOP.contains(&text)
            || OURS.contains(&text)
            || MISLEADING.contains(&text)
            || text.starts_with("x-forwarded")
            || named.contains(name)
            || is_credential(text)
            || secret_field == Some(text)
            || secret_field.is_some() && ACCOUNTS.contains(&text)
            || secret_field.is_some() && matches!(text, "range" | "if-range");
        if !stays {
            out.append(name.clone(), value.clone());
        }
    }
    out.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    out
}

/// The fields of a request whose cost was read from its body: the host reads that body in the same way, and takes it for nothing that
/// costs more. The error says what it is encoded in.
pub fn planned(fields: &mut HeaderMap) -> Result<(), String> {
    let encodings: Vec<_> = fields.get_all(header::CONTENT_ENCODING).iter().collect();
    if let Some(odd) = encodings.into_iter().find(|value| *value != "identity" && !value.is_empty()) {
        return Err(String::from_utf8_lossy(odd.as_bytes()).chars().take(PARAMETER_CHARS).collect());
    }
    fields.remove(header::CONTENT_ENCODING);
    // Without a character set of its own.
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let asked = fields.get_all("anthropic-beta").iter().filter_map(|value| value.to_str().ok());
    let known: Vec<&str> =
        asked.flat_map(|value| value.split(',')).map(str::trim).filter(|name| BETAS.contains(name)).collect();
    let known = HeaderValue::from_str(&known.join(","));
    fields.remove("anthropic-beta");
    fields.remove("openai-beta");
    if let Some(known) = known.ok().filter(|known| !known.is_empty()) {
        fields.insert("anthropic-beta", known);
    }
    Ok(())
}

/// The fields of an answer as the guest gets them. `length` stays: bytes are counted alike on both sides.
///
/// Cookies of a host that got a secret stay here: a session that a secret opened is as good as the secret.
pub fn inward(answered: &HeaderMap, host: &HostName, port: u16, way: Way, with_secret: bool) -> HeaderMap {
    let named = named_by_connection(answered);
    let mut out = HeaderMap::new();
    for (name, value) in answered {
        let text = name.as_str();
        let stays = HOP_BY_HOP.contains(&text)
            || named.contains(name)
            || text == "alt-svc"
            || with_secret && matches!(text, "set-cookie" | "set-cookie2");
        if stays {
            continue;
        }
        let rewritten = matches!(text, "location" | "content-location")
            .then(|| at_broker(value, host, port, way))
            .flatten();
        out.append(name.clone(), rewritten.unwrap_or_else(|| value.clone()));
    }
    out
}

/// A location on the same host, by the name the guest has for it.
fn at_broker(location: &HeaderValue, host: &HostName, port: u16, way: Way) -> Option<HeaderValue> {
    if way != Way::Broker {
        return None;
    }
    let rest = location.to_str().ok()?.strip_prefix("https://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end)?;
    let (name, at) = match authority.rsplit_once(':') {
        Some((name, at)) => (name, at.parse().ok()?),
        None => (authority, 443),
    };
    if !name.eq_ignore_ascii_case(host.as_str()) || at != port {
        return None;
    }
    format!("http://{}{path}", broker_name(host)?).parse().ok()
}

fn named_by_connection(fields: &HeaderMap) -> Vec<HeaderName> {
    let values = fields.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// Why an answer's body cannot be looked through: it is in a form of its own.
pub fn encoding(answered: &HeaderMap) -> Option<String> {
    let odd = |name: HeaderName, plain: &str| {
        let values: Vec<_> = answered.get_all(&name).iter().collect();
        let is_plain = values.iter().all(|value| {
            value.to_str().is_ok_and(|text| text.trim().is_empty() || text.trim().eq_ignore_ascii_case(plain))
        });
        (!is_plain || values.len() > 1).then(|| format!("its {name} is not {plain}"))
    };
    odd(header::CONTENT_ENCODING, "identity").or_else(|| odd(header::TRANSFER_ENCODING, "chunked")).or_else(
        || {
            // Two lengths: the guest would read by the one that does not hold (RFC 9112 section 6.3).
            let both = answered.contains_key(header::TRANSFER_ENCODING)
                && answered.contains_key(header::CONTENT_LENGTH);
            both.then(|| "it has a content-length and is chunked".to_owned())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let each = fields.iter().map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        });
        each.collect()
    }

    fn names(fields: &HeaderMap) -> Vec<&str> {
        fields.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn no_credential_of_a_client_leaves() {
        for name in [
            "authorization",
            "proxy-authorization",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "cookie",
            "x-auth-token",
            "x-amz-security-token",
            "private-token",
            "x-subscription-token",
            "job-token",
            "deploy-token",
            "x-vault-token",
            "circle-token",
            "x-auth",
            "x-token",
            "x_api_key",
            "private_token",
            "authorization_",
            "x-amz-credential",
            "ocp-apim-subscription-key",
            "x-hub-signature-256",
            "x-custom",
        ] {
            let asked = map(&[(name, "own"), ("accept", "*/*"), ("idempotency-key", "7")]);
            let out = outward(&asked, Some("x-custom"));
            assert_eq!(names(&out), ["accept", "idempotency-key", "accept-encoding"], "{name}");
        }
    }

    #[test]
    fn what_is_about_the_connection_or_misleads_stays() {
        let asked = map(&[
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("expect", "100-continue"),
            ("host", "api.test.broker.internal"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/admin"),
            ("x-forwarded-host", "other.test"),
            ("range", "bytes=3-9"),
            ("accept-encoding", "gzip, br"),
            ("content-type", "text/plain"),
        ]);
        let out = outward(&asked, Some("authorization"));
        assert_eq!(out, map(&[("content-type", "text/plain"), ("accept-encoding", "identity")]));
        assert!(outward(&asked, None).contains_key("range"));
    }

    #[test]
    fn a_planned_request_is_read_in_one_way_and_costs_what_is_listed() {
        let mut fields = map(&[
            ("content-type", "application/json; charset=utf-7"),
            ("content-encoding", "identity"),
            ("anthropic-beta", "context-1m-2025-08-07, prompt-caching-2024-07-31"),
            ("anthropic-beta", "extended-cache-ttl-2025-04-11"),
            ("openai-beta", "assistants=v2"),
        ]);
        planned(&mut fields).unwrap();
        let json = ("content-type", "application/json");
        assert_eq!(fields, map(&[json, ("anthropic-beta", "prompt-caching-2024-07-31")]));
        let mut fields = map(&[("anthropic-beta", "context-1m-2025-08-07")]);
        planned(&mut fields).unwrap();
        assert_eq!(fields, map(&[json]));
        for odd in ["gzip", "identity, gzip", "IDENTITY"] {
            assert!(planned(&mut map(&[("content-encoding", odd)])).is_err(), "{odd}");
        }
        let accounts =
            map(&[("openai-organization", "o"), ("openai-project", "p"), ("x-goog-user-project", "g")]);
        assert_eq!(names(&outward(&accounts, Some("authorization"))), ["accept-encoding"]);
        assert_eq!(outward(&accounts, None).len(), 4);
    }

    #[test]
    fn keys_in_a_query_are_seen_however_they_are_written() {
        for query in [
            "key=1",
            "a=1&api_key=2",
            "a=1;KEY=2",
            "%6bey=1",
            "access%5Ftoken=x",
            "key",
            "private_token=1",
            "job_token=1",
            "token=1",
            "auth=1",
            "authorization=1",
            "subscription-key=1",
            "sig=1",
            "X-Amz-Signature=1",
            "X-Amz-Credential=1",
            "AWSAccessKeyId=1",
            "oauth_token=1",
            "apiKey=1",
            "api%20key=1",
            "key+=1",
            "auth%5Btoken%5D=1",
            "client_secret=1",
            "password=1",
            "jwt=1",
        ] {
            assert!(credential_parameter(query).is_some(), "{query}");
        }
        for query in [
            "",
            "q=key",
            "keys=1",
            "a=b&keyword=1",
            "%zz=1",
            "%",
            "pageToken=1",
            "page_token=1",
            "author=1",
            "max_tokens=1",
            "design=1",
            "startkey=1",
        ] {
            assert!(credential_parameter(query).is_none(), "{query}");
        }
    }

    #[test]
    fn answers_lose_hops_cookies_and_their_own_location() {
        let answered = map(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "a=b"),
            ("alt-svc", "h3=\":443\""),
            ("location", "https://API.test/v1/x?y=1"),
            ("content-length", "3"),
        ]);
        let host: HostName = "api.test".parse().unwrap();
        let out = inward(&answered, &host, 443, Way::Broker, true);
        assert_eq!(
            out,
            map(&[("location", "http://api.test.broker.internal/v1/x?y=1"), ("content-length", "3")])
        );
        assert!(inward(&answered, &host, 443, Way::Intercepted, false).contains_key("set-cookie"));
        for elsewhere in
            ["https://other.test/", "https://api.test:8443/", "/relative", "https://api.test@other.test/"]
        {
            let answered = map(&[("location", elsewhere)]);
            assert_eq!(inward(&answered, &host, 443, Way::Broker, true), answered, "{elsewhere}");
        }
    }

    #[test]
    fn a_body_in_a_form_of_its_own_is_seen() {
        for plain in [&[][..], &[("content-encoding", "identity")], &[("transfer-encoding", "Chunked")]] {
            assert_eq!(encoding(&map(plain)), None);
        }
        for odd in [
            &[("content-encoding", "gzip")][..],
            &[("content-encoding", "identity, br")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "chunked"), ("content-length", "5")],
        ] {
            assert!(encoding(&map(odd)).is_some(), "{odd:?}");
        }
    }
}
