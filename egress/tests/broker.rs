//! The credential broker with real clients, a real TLS host under an authority of the test's own, and the real binary.
//! Needs what tests/network.rs needs.

mod world;

use abi::control::{AgentBudget, Budgets, NetAttach};
use abi::ledger::Event;
use abi::limits;
use abi::network::{Api, Budget, NetworkGrant, Price, SecretPolicy};
use abi::node::NodeConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::atomic::Ordering;
use world::{Guest, Lease, VM_UID, World};

/// Long enough to be found in each form, and in no other text.
const SECRET: &str = "sk-live/4f9Q+broker-Zx81";
const HOST: &str = "api.test";
const BASE: &str = "http://api.test.broker.internal";

/// A certificate authority of the test internet.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Gives a host of the test internet a certificate for a name.
    fn certify(&self, world: &World, host: &str, params: CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        put(world, host, &format!("{}{}", leaf.pem(), key.serialize_pem()));
    }
}

fn put(world: &World, host: &str, pem: &str) {
    fs::create_dir_all(world.dir.join("certs")).unwrap();
    fs::write(world.dir.join(format!("certs/{host}.pem")), pem).unwrap();
}

fn leaf(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

/// A world whose node trusts the authority, with two hosts under it.
fn trusting() -> (World, Authority) {
    trusting_with(NodeConfig::default())
}

fn trusting_with(mut config: NodeConfig) -> (World, Authority) {
    let authority = Authority::new("test authority");
    config.network.authorities = vec![authority.pem.clone()];
    let world = World::with(config);
    for host in [HOST, "other.test"] {
        authority.certify(&world, host, leaf(host));
    }
    let table =
        json!({ HOST: ["203.0.113.10"], "other.test": ["203.0.113.11"], "web.test": ["203.0.113.10"] });
    world.set_dns(table);
    (world, authority)
}

fn secret(name: &str, host: &str) -> SecretPolicy {
    SecretPolicy {
        name: name.parse().unwrap(),
        host: host.parse().unwrap(),
        port: 443,
        header: "authorization".into(),
        format: "Bearer {}".into(),
        api: Api::Plain,
    }
}

fn asked(grants: &[NetworkGrant], credentials: &[&str]) -> NetAttach {
    NetAttach {
        instance: "a.1".parse().unwrap(),
        uid: VM_UID,
        allow: grants.to_vec(),
        publish: Vec::new(),
        credentials: credentials.iter().map(|name| name.parse().unwrap()).collect(),
        budget: Budget::default(),
        works_for: None,
        trusted: Vec::new(),
        seen: Default::default(),
    }
}

fn grant(entry: &str) -> NetworkGrant {
    entry.parse().unwrap()
}

fn intercepted(entry: &str) -> NetworkGrant {
    NetworkGrant { intercept: true, ..grant(entry) }
}

/// An agent with a secret for `HOST`, which is all it may reach but for `other.test`.
fn brokered() -> (World, Lease, Guest) {
    let (world, _) = trusting();
    world.set_secret(&secret("API_KEY", HOST), SECRET);
    let lease = world.ask_network(&asked(&[grant(HOST), grant("other.test")], &["API_KEY"]), None).unwrap();
    let guest = world.guest(&lease);
    (world, lease, guest)
}

/// Sends bytes to the broker and prints what comes back until the end.
fn raw(guest: &Guest, bytes: &str) -> String {
    guest.python(&format!(
        "s = socket.create_connection(('api.test.broker.internal', 80)); s.settimeout(30)\n\
         s.sendall({bytes})\nout = b''\n\
         try:\n  while data := s.recv(65536): out += data\nexcept OSError as e: out += repr(e).encode()\n\
         print(out.decode('latin-1'))"
    ))
}

#[test]
fn the_secret_reaches_its_host_and_nothing_of_it_the_guest() {
    let (world, lease, guest) = brokered();
    let said = guest.text(&format!("env; curl -sS -m 10 -i {BASE}/v1/things?q=1 -d hello"));
    assert!(said.contains("200 OK") && said.contains("api.test got POST /v1/things?q=1 5"), "{said}");
    assert!(world.seen().contains(&format!(r#"["authorization", "Bearer {SECRET}"]"#)), "{}", world.seen());
    assert!(world.seen().contains(r#"["host", "api.test"]"#), "{}", world.seen());
    assert_eq!(lease.attached.env["API_BASE_URL"], BASE);
    let ended = |event: &Event| matches!(event, Event::NetEnded { end, .. } if end == "closed");
    world.eventually(|| world.events.lock().unwrap().iter().any(ended));
    let events = world.events.lock().unwrap().clone();
    let at = |wanted: &dyn Fn(&Event) -> bool| {
        events.iter().position(wanted).unwrap_or_else(|| panic!("{events:#?}"))
    };
    let called = at(&|event| {
        matches!(event, Event::BrokerCalled { name, port: 443, address, secret: Some(secret), method, path, .. }
            if name.as_str() == HOST && address == "203.0.113.10" && secret.as_str() == "API_KEY"
                && method == "POST" && path == "/v1/things")
    });
    let receipt_of_call = called as u64 + 1;
    let settled = at(
        &|event| matches!(event, Event::BrokerSettled { receipt, status: Some(200), .. } if *receipt == receipt_of_call),
    );
    let ended = at(&|event| {
        matches!(event, Event::NetEnded { receipt, bytes_out, bytes_in, .. }
            if *receipt == receipt_of_call && *bytes_out > 500 && *bytes_in > 500)
    });
    assert!(called < settled && settled < ended);
    assert!(world.grants().agents[0].bytes_in > 500);
    let all = format!("{said}{:?}{}{events:?}{:?}", lease.attached, world.log(), world.grants());
    let half = &SECRET[..SECRET.len() / 2];
    assert!(!all.contains(half), "part of the secret leaked: {all}");
}

#[test]
fn a_clients_own_credentials_are_stripped() {
    let (world, _lease, guest) = brokered();
    let said = guest.text(&format!(
        "curl -sS -m 10 {BASE}/x -H 'Authorization: Bearer own-key' -H 'X-Api-Key: own-key' -H 'Cookie: own-key' \
         -H 'Proxy-Authorization: own-key' -H 'Connection: close, X-Note' -H 'X-Note: own-key' -H 'X-Keep: kept'"
    ));
    assert!(said.contains("api.test got GET /x"), "{said}");
    let seen = world.seen();
    assert!(!seen.contains("own-key") && seen.contains("kept") && seen.contains(SECRET), "{seen}");
    let said = guest.text(&format!("curl -sS -m 10 '{BASE}/x?api_key=own-key'"));
    assert!(said.contains("rule: credential") && said.contains("leave `api_key` out"), "{said}");
    world.denied("credential", "GET /x at api.test");
    assert!(!world.seen().contains("own-key"));
}

#[test]
fn a_redirect_is_not_followed_and_its_target_gets_no_secret() {
    let (world, _lease, guest) = brokered();
    let said = guest.text(&format!("curl -sS -m 10 -i '{BASE}/redirect?to=https://other.test/steal'"));
    assert!(said.contains("302 Found") && said.contains("location: https://other.test/steal"), "{said}");
    let said = guest.text(&format!("curl -sS -m 10 -L -k '{BASE}/redirect?to=https://other.test/steal'"));
    assert!(said.contains("other.test got GET /steal"), "the guest may go there by itself: {said}");
    let seen = world.seen();
    let stolen: Vec<&str> = seen.lines().filter(|line| line.starts_with("host other.test")).collect();
    assert!(stolen.len() == 1 && !stolen[0].contains(SECRET), "{seen}");
    let said = guest.text(&format!("curl -sS -m 10 -L '{BASE}/redirect?to=https://api.test/here'"));
    assert!(said.contains("api.test got GET /here"), "its own location comes back over the broker: {said}");
}

#[test]
fn a_reflected_secret_is_cut() {
    let (world, _lease, guest) = brokered();
    for path in ["echo-header", "echo-body", "echo-base64", "echo-json", "echo-events"] {
        let said = guest.text(&format!("curl -sS -N -m 10 -i {BASE}/{path}"));
        assert!(said.contains("curl: ("), "{path}: {said}");
        assert!(!said.contains("sk-live") && !said.contains("\\u0073"), "{path}: {said}");
        assert!(!said.contains("data: last"), "{path}: {said}");
        assert_eq!(said.contains("data: first"), path == "echo-events", "{path}: {said}");
    }
    let denial = world.denied("secret-reflected", "an answer of api.test that holds the secret");
    assert!(!format!("{denial:?}{}", world.log()).contains("sk-live"));
    for path in ["gzip", "coded", "two-lengths"] {
        let said = guest.text(&format!("curl -sS -m 10 -i --compressed {BASE}/{path}"));
        assert!(said.contains("502 Bad Gateway") && said.contains("cannot be read"), "{path}: {said}");
    }
    let said = guest.text(&format!("curl -sS -m 10 -r 0-5 -i {BASE}/x"));
    assert!(said.contains("200 OK") && !world.seen().contains("bytes=0-5"), "{said}");
    let said = guest.text(&format!("curl -sS -m 10 -X TRACE {BASE}/x"));
    assert!(said.contains("rule: protocol"), "{said}");
    let said = guest.text(&format!("curl -sS -m 10 -i {BASE}/cookie"));
    assert!(said.contains("200 OK") && !said.contains("session=") && !said.contains("h3="), "{said}");
}

#[test]
fn what_two_servers_could_read_in_two_ways_is_refused() {
    let (world, _lease, guest) = brokered();
    let head = "b'POST /smuggled HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n";
    let rows = [
        "Content-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding: chunked\\r\\nContent-Length: 4\\r\\n\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding: chunked\\r\\nTransfer-Encoding: identity\\r\\n\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding: xchunked\\r\\n\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding: gzip, chunked\\r\\n\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding : chunked\\r\\n\\r\\n0\\r\\n\\r\\n'",
        "Content-Length: 1\\r\\nContent-Length: 2\\r\\n\\r\\nab'",
        "Content-Length: 1, 1\\r\\n\\r\\na'",
        "Content-Length: +1\\r\\n\\r\\na'",
        "Content-Length: 1\\nX: y\\r\\n\\r\\na'",
        "X: a\\r\\n folded: b\\r\\n\\r\\n'",
        "X: a\\rAuthorization: b\\r\\n\\r\\n'",
        "X: a\\0b\\r\\n\\r\\n'",
        "Transfer-Encoding: chunked\\r\\n\\r\\n5;ext\\nhello\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding: chunked\\r\\n\\r\\n0x5\\r\\nhello\\r\\n0\\r\\n\\r\\n'",
        "Transfer-Encoding: chunked\\r\\n\\r\\n-1\\r\\n\\r\\n'",
        "Transfer-Encoding: chunked\\r\\n\\r\\n2\\r\\nhello\\r\\n0\\r\\n\\r\\n'",
        "Upgrade: h2c\\r\\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\\r\\nConnection: Upgrade, HTTP2-Settings\\r\\n\\r\\n'",
    ];
    for row in rows {
        let said = raw(&guest, &format!("{head}{row}"));
        assert!(said.contains("400 Bad Request") && said.contains("rule: protocol"), "{row}: {said}");
    }
    for (row, rule) in [
        ("b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'", "protocol"),
        ("b'CONNECT api.test:443 HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n'", "protocol"),
        ("b'GET /a b HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n'", "protocol"),
        ("b'GET /a\\nX: y HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n'", "protocol"),
        ("b'GET / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n'", "host-mismatch"),
        ("b'GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n'", "host-mismatch"),
        ("b'GET / HTTP/1.1\\r\\n\\r\\n'", "host-mismatch"),
        (
            "b'GET http://other.test/ HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n'",
            "host-mismatch",
        ),
        (
            "b'GET http://x@other.test/ HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\n\\r\\n'",
            "host-mismatch",
        ),
    ] {
        let said = raw(&guest, row);
        assert!(said.contains("400 Bad Request") && said.contains(&format!("rule: {rule}")), "{row}: {said}");
    }
    world.denied("protocol", "on api.test.broker.internal:80");
    world.denied("host-mismatch", "host other.test on api.test.broker.internal:80");
    let smuggled =
        |seen: &str| seen.lines().any(|line| line.starts_with("host ") && line.contains("Content-Length: 4"));
    assert!(!smuggled(&world.seen()), "{}", world.seen());
    // A second request in the first one's body is a body.
    let said = raw(
        &guest,
        "b'POST /first HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\nConnection: close\\r\\nContent-Length: 27\\r\\n\\r\\nGET /second HTTP/1.1\\r\\nX: y\\r\\n'",
    );
    assert!(said.contains("api.test got POST /first 27"), "{said}");
    assert!(!world.seen().contains("host api.test GET /second"), "{}", world.seen());
    // Chunk extensions and trailers are read and go no further.
    let said = raw(
        &guest,
        "b'POST /chunks HTTP/1.1\\r\\nHost: api.test.broker.internal\\r\\nConnection: close\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5;a=b\\r\\nhello\\r\\n0\\r\\nAuthorization: own-key\\r\\n\\r\\n'",
    );
    assert!(said.contains("api.test got POST /chunks 5"), "{said}");
    assert!(!world.seen().contains("own-key"), "{}", world.seen());
}

#[test]
fn hosts_with_wrong_certificates_get_nothing() {
    let (world, authority) = trusting();
    let mut expired = leaf("expired.test");
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    authority.certify(&world, "expired.test", expired);
    authority.certify(&world, "wrong.test", leaf("api.test"));
    Authority::new("nobody").certify(&world, "unknown.test", leaf("unknown.test"));
    let own = KeyPair::generate().unwrap();
    let certificate = leaf("self.test").self_signed(&own).unwrap();
    put(&world, "self.test", &format!("{}{}", certificate.pem(), own.serialize_pem()));
    let rows = [
        ("expired.test", "EXPIRED_KEY", "expired"),
        ("wrong.test", "WRONG_KEY", "not valid for name"),
        ("unknown.test", "UNKNOWN_KEY", "UnknownIssuer"),
        ("self.test", "SELF_KEY", "UnknownIssuer"),
    ];
    let table: serde_json::Map<_, _> =
        rows.iter().map(|(host, ..)| ((*host).to_owned(), json!(["203.0.113.10"]))).collect();
    world.set_dns(table.into());
    for (host, name, _) in rows {
        world.set_secret(&secret(name, host), SECRET);
    }
    let grants = rows.map(|(host, ..)| grant(host));
    let lease = world.ask_network(&asked(&grants, &rows.map(|(_, name, _)| name)), None).unwrap();
    let guest = world.guest(&lease);
    for (host, _, reason) in rows {
        let said = guest.text(&format!("curl -sS -m 10 -i http://{host}.broker.internal/x"));
        assert!(said.contains("502 Bad Gateway") && said.contains(reason), "{host}: {said}");
    }
    assert!(!world.seen().contains("host "), "{}", world.seen());
}

#[test]
fn only_granted_methods_and_paths_pass() {
    let (world, _) = trusting();
    let narrowed = NetworkGrant {
        methods: vec!["GET".into()],
        paths: vec!["/v1/search".into()],
        ..grant("api.test:443")
    };
    let lease = world.ask_network(&asked(&[narrowed], &[]), None).unwrap();
    let guest = world.guest(&lease);
    let said = guest.text(&format!("curl -sS -m 10 {BASE}/v1/search/x?y=1 -H 'Authorization: own-key'"));
    assert!(said.contains("api.test got GET /v1/search/x?y=1"), "{said}");
    for (line, rule) in [
        ("-X DELETE {}/v1/search", "method-not-granted"),
        ("-X DELETE -H 'X-HTTP-Method-Override: GET' {}/v1/search", "method-not-granted"),
        ("{}/v1/keys", "path-not-granted"),
        ("--path-as-is {}/v1/search/../keys", "path-not-granted"),
        ("--path-as-is {}/v1/search/%2e%2e/keys", "path-not-granted"),
    ] {
        let said = guest.text(&format!("curl -sS -m 10 -i {}", line.replace("{}", BASE)));
        assert!(said.contains("403 Forbidden") && said.contains(&format!("rule: {rule}")), "{line}: {said}");
    }
    world.denied("path-not-granted", "GET /v1/keys at api.test");
    guest.text(&format!(
        "curl -sS -m 10 -H 'X-HTTP-Method-Override: DELETE' -H 'X-Original-URL: /v1/keys' {BASE}/v1/search"
    ));
    let seen = world.seen();
    assert!(!seen.contains("keys") && !seen.contains("DELETE") && !seen.contains("own-key"), "{seen}");
    let said = guest.text("curl -sS -m 10 -k https://api.test/v1/search");
    assert!(said.contains("curl: ("), "{said}");
    world.denied("brokered-only", "tcp api.test:443");
}

#[test]
fn each_event_arrives_before_the_next_is_sent() {
    let (world, _lease, guest) = brokered();
    let mut curl = guest.spawn_python(
        "import http.client\nc = http.client.HTTPConnection('api.test.broker.internal', timeout=60)\n\
         c.request('GET', '/events'); r = c.getresponse()\n\
         while line := r.readline(): line.strip() and print(line.decode().strip(), flush=True)",
    );
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    for number in 0..3 {
        assert_eq!(lines.next().unwrap().unwrap(), format!("data: event {number}"));
        fs::write(world.dir.join(format!("go{number}")), "").unwrap();
    }
    assert!(curl.wait().unwrap().success());
}

#[test]
fn large_bodies_pass_both_ways_and_too_large_ones_do_not() {
    let (world, _lease, guest) = brokered();
    let said = guest.text(&format!("curl -sS -m 50 {BASE}/big | sha256sum"));
    let expected = guest.text("for i in $(seq 1 524288); do echo -n 0123456789abcdef; done | sha256sum");
    assert_eq!(said, expected);
    let said = guest.text(&format!(
        "head -c 8000000 /dev/zero > /tmp/up.$$; curl -sS -m 50 {BASE}/up --data-binary @/tmp/up.$$; \
         curl -sS -m 50 {BASE}/chunked -H 'Transfer-Encoding: chunked' -T /tmp/up.$$; sha256sum < /tmp/up.$$; rm /tmp/up.$$"
    ));
    let digest = said.lines().last().unwrap().split(' ').next().unwrap();
    assert!(said.contains(&format!("POST /up 8000000 {digest}")), "{said}");
    assert!(said.contains(&format!("PUT /chunked 8000000 {digest}")), "{said}");
    let said =
        guest.text(&format!("head -c 17000000 /dev/zero | curl -sS -m 50 -i {BASE}/up --data-binary @-"));
    assert!(said.contains("413") && said.contains("rule: limit"), "{said}");
    let said = guest.text(&format!("head -c 17000000 /dev/zero | curl -sS -m 50 -i -X POST {BASE}/up -T -"));
    assert!(said.contains("413") || said.contains("curl: ("), "{said}");
    world.denied("limit", "a body of more than 16777216 bytes");
    assert!(!world.seen().contains("body=17000000"), "a whole one left");
    let said = guest.text(&format!(
        "curl -sS -m 10 -i {BASE}/short; curl -sS -m 10 -i {BASE}/long-head; curl -sS -m 10 -i {BASE}/upgrade"
    ));
    assert!(said.contains("only part") && said.contains("curl: ("), "{said}");
    assert_eq!(said.matches("502 Bad Gateway").count(), 2, "{said}");
}

#[test]
fn a_guests_connection_uses_one_connection_to_the_host() {
    let (world, _lease, guest) = brokered();
    let said = guest.text(&format!("curl -sS -m 10 {BASE}/one {BASE}/two {BASE}/three -I {BASE}/four"));
    assert_eq!(said.matches("200 OK").count(), 4, "{said}");
    assert_eq!(world.seen().matches("connect 203.0.113.10:443").count(), 1, "{}", world.seen());
    guest.text(&format!("curl -sS -m 10 {BASE}/five"));
    assert_eq!(world.seen().matches("connect 203.0.113.10:443").count(), 2, "{}", world.seen());
    let calls = |event: &&Event| matches!(event, Event::BrokerCalled { .. });
    assert_eq!(world.events.lock().unwrap().iter().filter(calls).count(), 5);
}

#[test]
fn an_intercepted_name_works_with_usual_tools_and_no_other_name_does() {
    let (world, _) = trusting();
    world.set_secret(&secret("API_KEY", HOST), SECRET);
    let grants = [intercepted("api.test:443"), grant("other.test:443")];
    let lease = world.ask_network(&asked(&grants, &["API_KEY"]), None).unwrap();
    let guest = world.guest(&lease);
    let authority = lease.attached.authority.clone().unwrap();
    let file = world.dir.join("authority.pem");
    fs::write(&file, &authority).unwrap();
    let file = file.display();
    assert_eq!(lease.attached.env["NODE_EXTRA_CA_CERTS"], "/etc/nullbox-authority.pem");
    let said = guest.text(&format!("curl -sS -m 10 -v --cacert {file} https://api.test/tools -d x"));
    assert!(said.contains("api.test got POST /tools 1"), "{said}");
    let said = guest.python(&format!(
        "import urllib.request\ncontext = ssl.create_default_context(cafile='{file}')\n\
         print(urllib.request.urlopen('https://api.test/python', context=context).read().decode())"
    ));
    assert!(said.contains("api.test got GET /python"), "{said}");
    assert_eq!(world.seen().matches(&format!("Bearer {SECRET}")).count(), 2, "{}", world.seen());
    // Another server name on the intercepted address; the other host itself, under the agent's authority.
    let address = world.grants().agents[0].synthetic[&HOST.parse().unwrap()].clone();
    let said = guest.text(&format!(
        "curl -sS -m 10 --cacert {file} --resolve other.test:443:{address} https://other.test/"
    ));
    assert!(said.contains("curl: (") && !said.contains("got GET"), "{said}");
    world.denied("sni-mismatch", "sni other.test on api.test:443");
    let said = guest.text(&format!("openssl s_client -noservername -connect {address}:443 </dev/null"));
    assert!(said.contains("access denied"), "{said}");
    let said = guest.text(&format!("curl -sS -m 10 --cacert {file} https://other.test/"));
    assert!(said.contains("unable to get local issuer") || said.contains("self-signed"), "{said}");
    // Only HTTP/1.1, and the request's own host.
    let said = guest.text(&format!("curl -sS -m 10 --http2 -v --cacert {file} https://api.test/h2"));
    assert!(said.contains("accepted http/1.1") && said.contains("got GET /h2"), "{said}");
    let said =
        guest.text(&format!("curl -sS -m 10 -i --cacert {file} -H 'Host: other.test' https://api.test/x"));
    assert!(said.contains("400 Bad Request") && said.contains("rule: host-mismatch"), "{said}");
    let said = guest.text(&format!("curl -sS -m 10 -i --cacert {file} https://api.test/echo-body"));
    assert!(said.contains("curl: (") && !said.contains("sk-live"), "{said}");
    let said = guest.text("curl -sS -m 10 https://api.test/untrusted");
    assert!(said.contains("curl: (60)"), "{said}");
    assert!(!world.seen().contains("untrusted"), "{}", world.seen());
}

#[test]
fn a_host_with_a_secret_is_not_reached_directly() {
    let (world, _lease, guest) = brokered();
    for line in ["-k https://api.test/", "http://api.test/"] {
        let said = guest.text(&format!("curl -sS -m 10 {line}"));
        assert!(said.contains("curl: (") || said.contains("rule: brokered-only"), "{said}");
        assert!(!said.contains("got GET"), "{said}");
    }
    let said = guest.text("curl -sS -m 10 http://api.test/");
    assert!(
        said.contains("rule: brokered-only") && said.contains("use http://api.test.broker.internal/"),
        "{said}"
    );
    let denial = world.denied("brokered-only", "tcp api.test:443");
    assert!(denial.remedy.contains("http://api.test.broker.internal/"), "{denial:?}");
    let said = guest.text("curl -sS -m 10 -k https://api.test.broker.internal:80/");
    assert!(said.contains("curl: ("), "{said}");
    assert!(world.denied("protocol", "tls on api.test.broker.internal:80").remedy.contains("http://"));
    assert!(!world.seen().contains("connect "), "{}", world.seen());
}

#[test]
fn without_a_receipt_no_call_leaves() {
    let (world, _lease, guest) = brokered();
    world.refuse_receipts.store(true, Ordering::Relaxed);
    let said = guest.text(&format!("curl -sS -m 10 -i {BASE}/x"));
    assert!(said.contains("502 Bad Gateway") && said.contains("no receipt"), "{said}");
    assert!(!world.seen().contains("connect "), "{}", world.seen());
    world.refuse_receipts.store(false, Ordering::Relaxed);
    // On a connection that is open already, too.
    let mut open = guest.spawn_python(&format!(
        "import http.client, os\nc = http.client.HTTPConnection('api.test.broker.internal', timeout=60)\n\
         c.request('GET', '/one'); print(c.getresponse().read(), flush=True)\n\
         while not os.path.exists('{}/go'): time.sleep(0.01)\n\
         c.request('GET', '/two'); print(c.getresponse().read(), flush=True)",
        world.dir.display()
    ));
    let mut lines = BufReader::new(open.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("GET /one"));
    world.refuse_receipts.store(true, Ordering::Relaxed);
    fs::write(world.dir.join("go"), "").unwrap();
    assert!(lines.next().unwrap().unwrap().contains("no receipt"));
    assert!(open.wait().unwrap().success() && !world.seen().contains("/two"), "{}", world.seen());
}

#[test]
fn a_head_that_does_not_end_and_a_lease_that_does_are_cut() {
    let (world, lease, guest) = brokered();
    let late = guest.spawn_python(
        "s = socket.create_connection(('api.test.broker.internal', 80))\nbegun = time.time()\n\
         s.sendall(b'GET / HTTP/1.1\\r\\n')\nprint(s.recv(999), time.time() - begun < 45)",
    );
    let slow = guest.spawn_python(
        "import http.client\nc = http.client.HTTPConnection('api.test.broker.internal', timeout=60)\n\
         c.request('GET', '/slow')\n\
         try: print(c.getresponse().read())\nexcept OSError as e: print('cut', e)",
    );
    let late = String::from_utf8(late.wait_with_output().unwrap().stdout).unwrap();
    assert!(late.contains("not whole in time") && late.contains("True"), "{late}");
    world.eventually(|| world.seen().contains("GET /slow"));
    drop(lease);
    let slow = String::from_utf8(slow.wait_with_output().unwrap().stdout).unwrap();
    assert!(slow.contains("cut") || slow.is_empty(), "{slow}");
    let settled =
        |event: &Event| matches!(event, Event::BrokerSettled { status: None, usage_known: false, .. });
    world.eventually(|| world.events.lock().unwrap().iter().any(settled));
}

/// An agent with an OpenAI key and this budget; the node has a price for `m-1`.
fn metered(budget: Budget) -> (World, Lease, Guest) {
    let mut config = NodeConfig::default();
    let price = Price {
        input: 2_000_000,
        cache_read: 1_000_000,
        cache_write: 2_000_000,
        output: 8_000_000,
        input_tokens_max: 8_000,
        output_tokens_max: 1_000,
    };
    config.prices.insert("m-1".into(), price);
    let (world, _) = trusting_with(config);
    world.set_secret(&SecretPolicy { api: Api::Openai, ..secret("OPENAI_KEY", HOST) }, SECRET);
    let asked = NetAttach { budget, ..asked(&[grant(HOST)], &["OPENAI_KEY"]) };
    let lease = world.ask_network(&asked, None).unwrap();
    let guest = world.guest(&lease);
    (world, lease, guest)
}

fn chat(guest: &Guest, more: &str) -> String {
    guest.text(&format!(
        "curl -sS -N -i -m 10 {BASE}/v1/chat/completions -H 'Content-Type: application/json' \
         -d '{{\"model\":\"m-1\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}],\"max_tokens\":100{more}}}'"
    ))
}

fn spent(world: &World) -> AgentBudget {
    let budgets: Budgets = serde_json::from_value(world.call("net.budget", json!({}))).unwrap();
    budgets.agents[0].clone()
}

#[test]
fn a_call_costs_what_its_host_reports_and_a_silent_host_costs_the_reservation() {
    let budget = Budget { output_tokens_max: Some(250), ..Budget::default() };
    let (world, lease, guest) = metered(budget);
    assert_eq!(lease.attached.env["OPENAI_BASE_URL"], format!("{BASE}/v1"));
    assert!(chat(&guest, "").contains("\"completion_tokens\": 5"));
    assert_eq!(spent(&world).used.output_tokens, 5);
    let said = chat(&guest, ",\"stream\":true");
    assert!(said.contains("\"content\":\"2\"") && said.contains("[DONE]"), "{said}");
    let now = spent(&world);
    assert_eq!((now.used.output_tokens, now.used.input_tokens, now.reserved.output_tokens), (10, 20, 0));
    assert_eq!(now.used.micro_dollars, 2 * (10 * 2 + 5 * 8));
    assert!(chat(&guest, ",\"user\":\"silent\"").contains("200 OK"));
    assert_eq!(spent(&world).reserved.output_tokens, 100, "nobody said what it used");
    let settled = |event: &Event| matches!(event, Event::BrokerSettled { usage_known: false, used, .. } if used.output_tokens == 100);
    world.eventually(|| world.events.lock().unwrap().iter().any(settled));
    let called = |event: &Event| {
        matches!(event, Event::BrokerCalled { model: Some(model), reserved, .. }
            if model == "m-1" && reserved.output_tokens == 100)
    };
    assert!(world.events.lock().unwrap().iter().any(called));
    // 110 of 250 are gone: one more fits, two do not.
    assert!(chat(&guest, ",\"user\":\"silent\"").contains("200 OK"));
    let said = chat(&guest, "");
    assert!(said.contains("403 Forbidden") && said.contains("rule: budget"), "{said}");
    assert!(said.contains("raise ") && said.contains("nullctl net budget a --reset"), "{said}");
    world.denied("budget", "POST /v1/chat/completions at api.test");
    assert_eq!(world.seen().matches("POST /v1/chat/completions").count(), 4, "{}", world.seen());
}

#[test]
fn calls_at_the_same_time_cannot_overspend() {
    let (world, _lease, guest) = metered(Budget { output_tokens_max: Some(500), ..Budget::default() });
    let one = format!(
        "curl -sS -m 20 -o /dev/null -w '%{{http_code}}\\n' {BASE}/v1/chat/completions \
         -d '{{\"model\":\"m-1\",\"messages\":[],\"max_tokens\":100,\"user\":\"silent\"}}'"
    );
    let said = guest.text(&format!("for i in $(seq 20); do {one} & done; wait"));
    assert_eq!((said.matches("200").count(), said.matches("403").count()), (5, 15), "{said}");
    assert_eq!(world.seen().matches("POST /v1/chat/completions").count(), 5);
}

#[test]
fn a_stream_that_uses_more_than_was_reserved_is_cut_and_unknown_models_are_refused() {
    let (world, _lease, guest) = metered(Budget { micro_dollars_max: Some(1_000_000), ..Budget::default() });
    let said = chat(&guest, ",\"stream\":true,\"user\":\"greedy\"");
    assert!(said.contains("curl: (") && !said.contains("[DONE]") && !said.contains("50000"), "{said}");
    world.denied("budget", "api.test: the answer has 50000 output tokens, and 100 were reserved");
    assert!(spent(&world).used.output_tokens >= 50_000);
    let ended = |event: &Event| matches!(event, Event::NetEnded { end, .. } if end == "budget");
    world.eventually(|| world.events.lock().unwrap().iter().any(ended));
    let said = guest.text(&format!(
        "curl -sS -i -m 10 {BASE}/v1/chat/completions -d '{{\"model\":\"m-2\",\"messages\":[]}}'; \
         curl -sS -i -m 10 {BASE}/v1/images/generations -d '{{}}'"
    ));
    assert!(said.contains("rule: unknown-model") && said.contains("[prices.\"m-2\"]"), "{said}");
    assert_eq!(said.matches("403 Forbidden").count(), 2, "{said}");
    assert!(!world.seen().contains("images"), "{}", world.seen());
}

#[test]
fn bytes_and_calls_through_the_broker_are_bounded() {
    let (world, _) = trusting();
    world.set_secret(&secret("API_KEY", HOST), SECRET);
    let budget = Budget { calls_per_hour_max: Some(3), bytes_max: Some(1_000_000), ..Budget::default() };
    let asked = NetAttach { budget, ..asked(&[grant(HOST)], &["API_KEY"]) };
    let lease = world.ask_network(&asked, None).unwrap();
    let guest = world.guest(&lease);
    assert!(guest.text(&format!("curl -sS -m 10 {BASE}/one {BASE}/two")).contains("GET /two"));
    let said = guest.text(&format!("curl -sS -m 50 {BASE}/big | wc -c"));
    assert!(said.contains("curl: (") && !said.contains("8388608"), "{said}");
    world.denied("budget", "bytes");
    let said = guest.text(&format!("curl -sS -m 10 -i {BASE}/four"));
    assert!(said.contains("rule: budget"), "{said}");
    assert!(!world.seen().contains("/four"), "{}", world.seen());
}

#[test]
fn a_revoked_name_cuts_the_call_under_way() {
    let (world, _lease, guest) = brokered();
    let mut open = guest.spawn_python(
        "import http.client\nc = http.client.HTTPConnection('api.test.broker.internal', timeout=60)\n\
         c.request('GET', '/events'); r = c.getresponse()\nprint(r.readline(), flush=True)\n\
         try: print('more', r.read())\nexcept Exception as e: print('cut', e)",
    );
    let mut lines = BufReader::new(open.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("event 0"));
    world.order("net.deny", json!({ "agent": "a", "name": HOST })).unwrap();
    assert!(lines.next().unwrap().unwrap().contains("cut"));
    let ended = |event: &Event| matches!(event, Event::NetEnded { end, .. } if end == "revoked");
    world.eventually(|| world.events.lock().unwrap().iter().any(ended));
    let said = guest.text(&format!("curl -sS -m 10 {BASE}/after"));
    assert!(said.contains("curl: (") || said.contains("rule: denied"), "{said}");
    assert!(!world.seen().contains("/after"), "{}", world.seen());
    assert!(open.wait().unwrap().success());
}

#[test]
fn an_agents_calls_wait_for_each_other_above_their_bound() {
    let (world, _lease, guest) = brokered();
    let many = guest.spawn_python(
        "import http.client, threading\ndef one(done):\n\
         \x20 c = http.client.HTTPConnection('api.test.broker.internal', timeout=60)\n\
         \x20 c.request('GET', '/events'); done.append(c.getresponse().read().count(b'event'))\n\
         done = []\nall = [threading.Thread(target=one, args=(done,)) for _ in range(40)]\n\
         for t in all: t.start()\nfor t in all: t.join()\nprint(done.count(3))",
    );
    let calls = || world.seen().matches("GET /events").count();
    world.eventually(|| calls() >= limits::BROKER_CALLS_PER_AGENT_MAX);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(calls(), limits::BROKER_CALLS_PER_AGENT_MAX);
    for number in 0..3 {
        fs::write(world.dir.join(format!("go{number}")), "").unwrap();
    }
    let done = String::from_utf8(many.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!((done.trim(), calls()), ("40", 40));
}

#[test]
fn bodies_that_a_host_does_not_take_hold_others_back() {
    let (world, _lease, guest) = metered(Budget::default());
    // A body that does not say how long it is takes all of an agent's room.
    let many = guest.spawn_python(
        "import http.client, threading\ndef one(done):\n\
         \x20 c = http.client.HTTPConnection('api.test.broker.internal', timeout=60)\n\
         \x20 c.request('POST', '/v1/stall', iter([bytes(3000000)])); done.append(b'3000000' in c.getresponse().read())\n\
         done = []\nall = [threading.Thread(target=one, args=(done,)) for _ in range(4)]\n\
         for t in all: t.start()\nfor t in all: t.join()\nprint(done.count(True))",
    );
    let dialled = || world.seen().matches("connect 203.0.113.10:443").count();
    world.eventually(|| dialled() > 0);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(dialled(), 1, "the room is taken until the host has the body");
    fs::write(world.dir.join("go"), "").unwrap();
    let done = String::from_utf8(many.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!((done.trim(), dialled()), ("4", 4));
}

#[test]
fn a_bounded_call_asks_for_nothing_that_costs_more_than_its_body_says() {
    let (world, _lease, guest) = metered(Budget { output_tokens_max: Some(500), ..Budget::default() });
    let call = |fields: &str| {
        guest.text(&format!(
            "curl -sS -i -m 10 {BASE}/v1/chat/completions {fields} \
             -d '{{\"model\":\"m-1\",\"messages\":[],\"max_tokens\":100}}'"
        ))
    };
    let said = call(
        "-H 'Content-Type: application/json; charset=utf-7' -H 'OpenAI-Beta: x=1' -H 'Anthropic-Beta: context-1m-2025-08-07' \
         -H 'OpenAI-Organization: other'",
    );
    assert!(said.contains("200 OK"), "{said}");
    let seen = world.seen();
    assert!(seen.contains(r#"["content-type", "application/json"]"#), "{seen}");
    for gone in ["utf-7", "openai-beta", "context-1m", "openai-organization"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    let said = call("-H 'Content-Encoding: gzip'");
    assert!(said.contains("403 Forbidden") && said.contains("rule: budget"), "{said}");
    world.denied("budget", "a body in the encoding `gzip` to api.test");
    assert_eq!(world.seen().matches("POST /v1/chat").count(), 1);
}

#[test]
fn a_call_that_is_given_up_before_anything_left_costs_nothing() {
    let (world, _lease, guest) = metered(Budget { output_tokens_max: Some(500), ..Budget::default() });
    // A host that takes connections and says nothing.
    fs::write(world.dir.join("mute"), "").unwrap();
    let said = guest.text(&format!(
        "curl -sS -m 8 {BASE}/v1/chat/completions -d '{{\"model\":\"m-1\",\"messages\":[],\"max_tokens\":100}}'"
    ));
    assert!(said.contains("curl: (28)"), "{said}");
    let ended = |event: &Event| matches!(event, Event::BrokerSettled { usage_known: true, used, .. } if *used == Default::default());
    world.eventually(|| world.events.lock().unwrap().iter().any(ended));
    assert!(world.seen().contains("connect 203.0.113.10:443"), "{}", world.seen());
    let now = spent(&world);
    assert_eq!((now.used.output_tokens, now.reserved.output_tokens), (0, 0));
    fs::remove_file(world.dir.join("mute")).unwrap();
    assert!(chat(&guest, "").contains("\"completion_tokens\": 5"));
}

#[test]
fn a_receipt_that_comes_after_its_call_has_gone_has_an_end() {
    let (world, _lease, guest) = brokered();
    world.receipt_ms.store(12_000, Ordering::Relaxed);
    let said = guest.text(&format!("curl -sS -m 6 {BASE}/x"));
    assert!(said.contains("curl: (28)"), "{said}");
    world.receipt_ms.store(0, Ordering::Relaxed);
    let settled = |event: &Event| matches!(event, Event::BrokerSettled { status: None, .. });
    let ended = |event: &Event| matches!(event, Event::NetEnded { end, .. } if end == "failed");
    world.eventually(|| {
        let events = world.events.lock().unwrap();
        let called = events.iter().any(|event| matches!(event, Event::BrokerCalled { .. }));
        called && events.iter().any(settled) && events.iter().any(ended)
    });
    assert!(!world.seen().contains("/x"), "{}", world.seen());
}
