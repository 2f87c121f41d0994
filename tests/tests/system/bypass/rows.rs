//! The attacks that need no more than one attempt, one a row: what is tried, what a refusal of it looks like, which denial is recorded,
//! and what must not have reached the internet.

use serde_json::Value;

/// An attack and what must come of it.
pub struct Row {
    pub name: &'static str,
    /// What the guest's /app/bypass.py is asked to do.
    pub attempt: &'static [&'static str],
    /// Whether what it found is what a refusal looks like.
    pub holds: fn(&Value) -> bool,
    /// A denial that must be recorded: what it is about, and its rule.
    pub denied: Option<(&'static str, &'static str)>,
    /// What must not have reached the internet.
    pub unseen: &'static [&'static str],
}

/// It ended in an error, and soon.
pub fn fails(found: &Value) -> bool {
    found["error"].is_string() && found["ms"].as_u64().is_some_and(|ms| ms < 15_000)
}

/// The name does not exist, and the answer says why.
fn explained(found: &Value) -> bool {
    found["code"] == 3
        && found["records"] == 0
        && found["error"].as_str().is_some_and(|why| why.contains("network.allow"))
}

/// Refused over HTTP with the reason, and nothing from the host.
pub fn http_refused(found: &Value) -> bool {
    let response = found["response"].as_str().unwrap_or_default();
    response.contains("NullBox refused") && response.contains("remedy: ") && !response.contains("hello from")
}

/// Ended, without an answer of any host.
pub fn unanswered(found: &Value) -> bool {
    fails(found) || found["response"].as_str().is_some_and(|response| !response.contains("hello from"))
}

/// A TLS alert: unrecognized_name or access_denied, fatal (RFC 8446 section 6).
fn alerted(found: &Value) -> bool {
    fails(found) || found["alert"].as_str().is_some_and(|alert| matches!(alert, "0270" | "0231"))
}

const fn row(
    name: &'static str,
    attempt: &'static [&'static str],
    holds: fn(&Value) -> bool,
    denied: Option<(&'static str, &'static str)>,
    unseen: &'static [&'static str],
) -> Row {
    Row { name, attempt, holds, denied, unseen }
}

pub const DNS_ROWS: &[Row] = &[
    row(
        "name_without_a_grant",
        &["dns", "evil.test"],
        explained,
        Some(("evil.test", "name-not-granted")),
        &["dns "],
    ),
    row(
        "tunnel_through_a_denied_suffix",
        &["tunnel", "evil.test", "60"],
        |found| found["there"] == 0 && found["refused"] == 60,
        Some(("evil.test", "name-not-granted")),
        &["dns "],
    ),
    row(
        "long_label_under_a_wildcard",
        &["dns", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.cdn.test"],
        explained,
        Some(("cdn.test", "name-not-granted")),
        &["dns "],
    ),
    row("labels_below_a_wildcards_label", &["dns", "data.more.cdn.test"], explained, None, &["dns "]),
    row(
        "text_record_of_a_granted_name",
        &["dns", "web.test", "16"],
        |f| f["code"] == 0 && f["records"] == 0,
        None,
        &["dns "],
    ),
    row(
        "ipv6_record_of_a_granted_name",
        &["dns", "web.test", "28"],
        |f| f["code"] == 0 && f["records"] == 0,
        None,
        &["dns "],
    ),
    row(
        "https_record_of_a_granted_name",
        &["dns", "web.test", "65"],
        |f| f["code"] == 0 && f["records"] == 0,
        None,
        &["dns "],
    ),
    row(
        "direct_dns_to_8_8_8_8",
        &["dns", "web.test", "1", "8.8.8.8"],
        fails,
        Some(("udp 8.8.8.8:53", "protocol")),
        &["8.8.8.8"],
    ),
    row(
        "direct_dns_to_the_uplinks_resolver",
        &["dns", "web.test", "1", "203.0.113.53"],
        fails,
        None,
        &["dns ", "203.0.113.53"],
    ),
    row(
        "dns_over_tcp_to_8_8_8_8",
        &["dns_tcp", "web.test", "8.8.8.8"],
        fails,
        Some(("8.8.8.8:53", "raw-address")),
        &["8.8.8.8"],
    ),
    row(
        "dns_over_https",
        &["tls", "8.8.8.8", "443", "dns.google"],
        fails,
        Some(("8.8.8.8:443", "raw-address")),
        &["8.8.8.8"],
    ),
    row(
        "dns_over_https_by_name",
        &["tls", "dns.google", "443", "dns.google"],
        fails,
        Some(("dns.google", "name-not-granted")),
        &["dns "],
    ),
    row(
        "dns_over_tls",
        &["raw", "8.8.8.8", "853", "x"],
        fails,
        Some(("8.8.8.8:853", "raw-address")),
        &["8.8.8.8"],
    ),
    row(
        "dns_over_tls_to_a_granted_name",
        &["raw", "web.test", "853", "x"],
        unanswered,
        Some(("web.test:853", "port-not-granted")),
        &[":853"],
    ),
    row("dns_over_quic", &["dns", "web.test", "1", "8.8.8.8", "853"], fails, None, &[":853"]),
    row("multicast_dns", &["multicast", "224.0.0.251", "5353"], fails, None, &[":5353"]),
    row(
        "link_local_multicast_name_resolution",
        &["multicast", "224.0.0.252", "5355"],
        fails,
        None,
        &[":5355"],
    ),
];

pub const ADDRESS_ROWS: &[Row] = &[
    row(
        "raw_ipv4",
        &["raw", "203.0.113.10", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row(
        "decimal_ipv4",
        &["raw", "3405803786", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row(
        "hexadecimal_ipv4",
        &["raw", "0xcb.0x0.0x71.0xa", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row(
        "octal_ipv4",
        &["raw", "0313.0.0161.012", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row("mapped_ipv4", &["raw", "::ffff:203.0.113.10", "80", "x"], fails, None, &["connect"]),
    row("ipv6", &["raw", "2001:db8::1", "80", "x"], fails, None, &["connect"]),
    row("link_local_ipv6", &["raw", "fe80::1%eth0", "80", "x"], fails, None, &["connect"]),
    row("icmp", &["icmp", "203.0.113.10"], fails, None, &["connect"]),
    row("packet_socket", &["packet_socket"], fails, None, &[]),
    row("quic_to_a_granted_name", &["dns", "web.test", "1", "web.test", "443"], fails, None, &["udp "]),
    row(
        "metadata_service",
        &["raw", "169.254.169.254", "80", "x"],
        fails,
        Some(("169.254.169.254:80", "raw-address")),
        &["169.254"],
    ),
    row("metadata_service_of_another_cloud", &["raw", "168.63.129.16", "80", "x"], fails, None, &["168.63"]),
    row(
        "metadata_service_in_carrier_space",
        &["raw", "100.100.100.200", "80", "x"],
        fails,
        None,
        &["100.100"],
    ),
    row(
        "granted_name_that_is_the_metadata_service",
        &["raw", "metadata.test", "80", "GET / HTTP/1.1\\r\\nHost: metadata.test\\r\\n\\r\\n"],
        http_refused,
        Some(("169.254.169.254", "private-address")),
        &["connect"],
    ),
    row(
        "granted_name_whose_alias_leads_inward",
        &["raw", "inward.test", "80", "GET / HTTP/1.1\\r\\nHost: inward.test\\r\\n\\r\\n"],
        http_refused,
        Some(("10.9.9.9", "private-address")),
        &["connect"],
    ),
    row(
        "granted_name_with_endless_aliases",
        &["raw", "loop.test", "80", "GET / HTTP/1.1\\r\\nHost: loop.test\\r\\n\\r\\n"],
        unanswered,
        None,
        &["connect"],
    ),
    row(
        "gate_of_the_node",
        &["raw", "100.64.0.1", "4466", "x"],
        fails,
        Some(("100.64.0.1:4466", "raw-address")),
        &[],
    ),
    row("proxy_of_the_node", &["raw", "100.64.0.1", "15001", "x"], fails, None, &["connect"]),
    row(
        "uplink_address_of_the_node",
        &["raw", "192.0.2.5", "4466", "x"],
        fails,
        Some(("192.0.2.5:4466", "raw-address")),
        &[],
    ),
    row("neighbour_on_the_uplink", &["raw", "192.0.2.1", "80", "x"], fails, None, &["connect"]),
    row(
        "port_without_a_grant",
        &["raw", "web.test", "22", "x"],
        unanswered,
        Some(("web.test:22", "port-not-granted")),
        &["connect"],
    ),
];

pub const PROTOCOL_ROWS: &[Row] = &[
    row(
        "sni_of_another_name",
        &["tls", "web.test", "443", "other.test"],
        fails,
        Some(("sni other.test", "sni-mismatch")),
        &["connect"],
    ),
    row("no_sni", &["tls", "web.test", "443", ""], fails, Some(("web.test:443", "no-sni")), &["connect"]),
    row(
        "sni_of_another_name_in_many_packets",
        &["split_hello", "web.test", "443", "other.test"],
        alerted,
        Some(("sni other.test", "sni-mismatch")),
        &["connect"],
    ),
    row(
        "encrypted_client_hello",
        &["ech", "web.test", "443", "web.test"],
        alerted,
        Some(("encrypted client hello", "protocol")),
        &["connect"],
    ),
    row(
        "no_tls_on_443",
        &["raw", "web.test", "443", "GET / HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n"],
        unanswered,
        Some(("web.test:443", "protocol")),
        &["connect"],
    ),
    row(
        "no_http_on_80",
        &["raw", "web.test", "80", "SSH-2.0-x\\r\\n"],
        unanswered,
        Some(("web.test:80", "protocol")),
        &["connect"],
    ),
    row(
        "host_of_another_name",
        &["raw", "web.test", "80", "GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n"],
        http_refused,
        Some(("host other.test", "host-mismatch")),
        &["connect"],
    ),
    row(
        "host_of_another_name_in_the_second_request",
        &[
            "raw",
            "web.test",
            "80",
            "GET / HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\nGET /second HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n",
        ],
        |found| !found["response"].as_str().unwrap_or("for other.test").contains("for other.test"),
        Some(("host other.test", "host-mismatch")),
        &["/second"],
    ),
    row(
        "absolute_form_of_another_name",
        &["raw", "web.test", "80", "GET http://other.test/ HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n"],
        http_refused,
        Some(("host other.test", "host-mismatch")),
        &["connect"],
    ),
    row(
        "connect_method",
        &["raw", "web.test", "80", "CONNECT other.test:443 HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n"],
        http_refused,
        Some(("CONNECT", "protocol")),
        &["connect"],
    ),
    row(
        "http2_by_prior_knowledge",
        &["raw", "web.test", "80", "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"],
        http_refused,
        Some(("HTTP version", "protocol")),
        &["connect"],
    ),
    row(
        "upgrade_to_another_protocol",
        &[
            "raw",
            "web.test",
            "80",
            "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nUpgrade: h2c\\r\\nConnection: upgrade\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("upgrade", "protocol")),
        &["connect"],
    ),
    row(
        "two_lengths_of_one_request",
        &[
            "raw",
            "web.test",
            "80",
            "POST / HTTP/1.1\\r\\nHost: web.test\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("content length and chunks", "protocol")),
        &["connect"],
    ),
    row(
        "folded_field",
        &[
            "raw",
            "web.test",
            "80",
            "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nX: 1\\r\\n Host: other.test\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("web.test:80", "protocol")),
        &["connect"],
    ),
];

/// What the broker adds to requests to api.test.
pub const SECRET: &str = "sk-nobody-in-a-guest-may-see-this-4711";

/// Answered by api.test.
pub fn served(found: &Value) -> bool {
    found["response"].as_str().is_some_and(|r| r.starts_with("HTTP/1.1 200"))
}

/// Neither the secret nor its base64 form, and not the whole answer.
fn cut(found: &Value) -> bool {
    let response = found["response"].as_str().unwrap_or_default();
    !response.contains("your key is sk-")
        && !response.contains("c2stbm9ib2R5")
        && !response.contains("X-Debug: Bearer")
}

pub const BROKER: &str = "api.test.broker.internal";

pub const BROKER_ROWS: &[Row] = &[
    row(
        "own_key_on_a_brokered_host",
        &[
            "raw",
            BROKER,
            "80",
            "GET /own HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\nAuthorization: Bearer own-key\\r\\nX-Api-Key: own-key\\r\\nCookie: own-key\\r\\n\\r\\n",
        ],
        served,
        None,
        &["own-key", "connect 203.0.113.66"],
    ),
    row(
        "own_key_in_the_query",
        &[
            "raw",
            BROKER,
            "80",
            "GET /q?api_key=own-key HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n",
        ],
        unanswered,
        Some(("api.test", "credential")),
        &["own-key"],
    ),
    row(
        "redirect_with_the_secret",
        &["raw", BROKER, "80", "GET /redirect HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n"],
        |found| {
            found["response"]
                .as_str()
                .is_some_and(|r| r.starts_with("HTTP/1.1 302") && r.contains("https://evil.test/stolen"))
        },
        None,
        &["dns evil.test", "203.0.113.66", "/stolen"],
    ),
    row(
        "secret_reflected_in_a_body",
        &["raw", BROKER, "80", "GET /reflect HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n"],
        cut,
        Some(("api.test", "secret-reflected")),
        &[],
    ),
    row(
        "secret_reflected_in_base64",
        &[
            "raw",
            BROKER,
            "80",
            "GET /reflect-base64 HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n",
        ],
        cut,
        Some(("api.test", "secret-reflected")),
        &[],
    ),
    row(
        "secret_reflected_in_a_field",
        &["raw", BROKER, "80", "GET /reflect-field HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n"],
        cut,
        Some(("api.test", "secret-reflected")),
        &[],
    ),
    row(
        "direct_tls_to_a_brokered_host",
        &["tls", "api.test", "443", "api.test"],
        fails,
        Some(("api.test:443", "brokered-only")),
        &["connect"],
    ),
    row(
        "direct_http_to_a_brokered_host",
        &["raw", "api.test", "80", "GET / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n"],
        http_refused,
        Some(("api.test:80", "brokered-only")),
        &["connect"],
    ),
    row(
        "broker_of_a_host_without_a_credential",
        &["dns", "web.test.broker.internal"],
        |found| found["code"] == 3,
        Some(("web.test.broker.internal", "name-not-granted")),
        &["dns "],
    ),
    row(
        "host_of_another_name_at_the_broker",
        &["raw", BROKER, "80", "GET / HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n"],
        http_refused,
        Some(("evil.test", "host-mismatch")),
        &["connect"],
    ),
    row(
        "absolute_form_at_the_broker",
        &[
            "raw",
            BROKER,
            "80",
            "GET http://evil.test/ HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("evil.test", "host-mismatch")),
        &["connect"],
    ),
    row(
        "connect_method_at_the_broker",
        &[
            "raw",
            BROKER,
            "80",
            "CONNECT evil.test:443 HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("CONNECT", "protocol")),
        &["connect"],
    ),
    row(
        "http2_at_the_broker",
        &["raw", BROKER, "80", "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"],
        http_refused,
        Some(("HTTP version", "protocol")),
        &["connect"],
    ),
    row(
        "request_smuggled_by_two_lengths",
        &[
            "raw",
            BROKER,
            "80",
            "POST / HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\nContent-Length: 6\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("content length and chunks", "protocol")),
        &["connect", "/smuggled"],
    ),
    row(
        "request_smuggled_by_a_bare_line_end",
        &[
            "raw",
            BROKER,
            "80",
            "GET / HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\nX: a\\nTransfer-Encoding: chunked\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("line end", "protocol")),
        &["connect"],
    ),
    row(
        "call_to_a_model_without_a_price",
        &[
            "raw",
            BROKER,
            "80",
            "POST /v1/chat/completions HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\nContent-Type: application/json\\r\\nContent-Length: 36\\r\\n\\r\\n{\"model\":\"free-lunch\",\"messages\":[]}",
        ],
        unanswered,
        Some(("free-lunch", "unknown-model")),
        &["/v1/chat"],
    ),
];
