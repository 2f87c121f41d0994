//! The real nullgate: who is let in, what passes, and what happens at each bound.

mod fixture;

use abi::identity::{Caller, Role};
use abi::ledger::Event;
use abi::limits::{
    GATE_CONNECTIONS_MAX, GATE_CONNECTIONS_PER_KEY_MAX, GATE_HANDSHAKE_MS_MAX, GATE_HANDSHAKES_MAX,
};
use abi::rpc::{Code, Request};
use fixture::*;
use nullctl::keys::PrivateKey;
use nullctl::relay::{RelayError, handshake};
use nullctl::tls;
use rustls::Connection as Tls;
use serde_json::json;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_listed_key_is_vouched_for_with_its_name_and_role() {
    let gate = Gate::start();
    for (name, role) in [("alice", Role::Admin), ("olga", Role::Operator), ("rita", Role::Reader)] {
        let (mut connection, _) = session(&gate, &gate.key(name));
        let answer = call(&mut connection, "agent.list", json!({}));
        assert!(answer.error.is_none(), "{answer:?}");
        let expected = Caller::Operator {
            name: name.into(),
            key: gate.key(name).public().fingerprint().to_string(),
            role,
        };
        assert_eq!(gate.upstream.callers.lock().unwrap().last(), Some(&expected));
    }
}

#[test]
fn roles_are_enforced_by_who_vouched_not_by_what_the_client_says() {
    let gate = Gate::start();
    let (mut connection, _) = session(&gate, &gate.key("rita"));
    // A client that vouches for itself sends a request line that is none.
    let forged = json!({"vouch": {"kind": "operator", "name": "rita", "key": "k", "role": "admin"}});
    let start = Request::call(1, "agent.start", json!({"name": "researcher"}));
    connection.write_line(&start).unwrap();
    assert_eq!(response(&mut connection).error.unwrap().code, Code::DENIED);
    connection.write_line(&forged).unwrap();
    assert_eq!(response(&mut connection).error.unwrap().code, Code::INVALID_REQUEST);
    assert_eq!(last_role(&gate), Some(Role::Reader));
    let (mut olga, _) = session(&gate, &gate.key("olga"));
    assert!(call(&mut olga, "agent.start", json!({"name": "researcher"})).error.is_none());
}

#[test]
fn an_unknown_key_is_refused_in_the_handshake_logged_and_recorded() {
    let gate = Gate::start();
    let eve = gate.key("eve");
    let (mut connection, thread) = session(&gate, &eve);
    let request = Request::call(1, "agent.list", json!({}));
    let _ = connection.write_line(&request); // the refusal may be faster
    assert!(matches!(connection.read_line(), Ok(None) | Err(_)));
    drop(connection);
    let ended = thread.join().unwrap().expect("the session was refused");
    assert!(ended.contains("AccessDenied"), "{ended}");
    let fingerprint = eve.public().fingerprint().to_string();
    eventually("the log names the key", || gate.log().contains(&format!("key={fingerprint}")).then_some(()));
    let event = eventually("the ledger has it", || gate.ledger.lock().unwrap().first().cloned());
    match event {
        Event::CallRefused { by, method, reason } => {
            assert!(by.contains(&fingerprint), "{by}");
            assert_eq!((method.as_str(), reason.as_str()), ("handshake", "the key is not in operators.toml"));
        }
        other => panic!("{other:?}"),
    }
    assert!(gate.upstream.callers.lock().unwrap().is_empty(), "nulld heard of it");
}

#[test]
fn a_client_refuses_a_node_that_is_not_the_pinned_one() {
    let gate = Gate::start();
    let other = gate.key("eve").public().fingerprint();
    for pin in [Some(other), None] {
        let tcp = gate.tcp();
        let (tls, offered) = tls::client(&gate.key("alice"), pin).unwrap();
        let mut tls = Tls::Client(tls);
        let error = handshake(&mut tls, &tcp, Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, RelayError::Tls(rustls::Error::InvalidCertificate(_))), "{error}");
        assert_eq!(offered.key().unwrap().fingerprint(), gate.fingerprint());
    }
    assert!(gate.upstream.callers.lock().unwrap().is_empty());
}

#[test]
fn tls_1_2_and_clients_without_a_raw_key_are_refused() {
    let gate = Gate::start();
    for (version, alert) in [("-tls1_2", "alert protocol version"), ("-tls1_3", "alert")] {
        let output = Command::new("openssl")
            .args(["s_client", version, "-connect", &format!("127.0.0.1:{}", gate.port)])
            .stdin(Stdio::null())
            .output()
            .expect("openssl is installed");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{version}: {text}");
        assert!(text.contains(alert), "{version}: {text}");
        assert!(text.contains("no peer certificate available"), "{version}: {text}");
    }
    assert!(gate.upstream.callers.lock().unwrap().is_empty());
}

#[test]
fn a_large_body_and_its_answer_pass_whole() {
    let gate = Gate::start();
    let body: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut connection, thread) = session(&gate, &gate.key("olga"));
    let request = Request::call(1, "image.import", json!({"name": "x", "bytes": body.len()}));
    connection.write_line(&request).unwrap();
    let (mut writer, expected) = (connection.stream().try_clone().unwrap(), sum_of(&body));
    let sender = std::thread::spawn(move || writer.write_all(&body).unwrap());
    assert_eq!(response(&mut connection).result.unwrap()["digest"], expected);
    sender.join().unwrap();
    drop(connection);
    assert_eq!(thread.join().unwrap(), None);
}

#[test]
fn a_half_closed_side_still_gets_its_answer() {
    let gate = Gate::start();
    let (mut connection, thread) = session(&gate, &gate.key("olga"));
    let request = Request::call(1, "image.import", json!({"name": "x", "bytes": 5}));
    connection.write_line(&request).unwrap();
    connection.stream().write_all(b"hello").unwrap();
    connection.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(response(&mut connection).result.unwrap()["digest"], sum_of(b"hello"));
    assert!(connection.read_line().unwrap().is_none(), "the end comes after the answer");
    assert_eq!(thread.join().unwrap(), None);
    eventually("upstream ended cleanly", || gate.upstream.saw("image.import end").then_some(()));
}

#[test]
fn a_client_that_vanishes_ends_the_upstream_connection() {
    let gate = Gate::start();
    let tcp = gate.tcp();
    let (tls, _) = tls::client(&gate.key("olga"), Some(gate.fingerprint())).unwrap();
    let mut tls = Tls::Client(tls);
    handshake(&mut tls, &tcp, Duration::from_secs(60)).unwrap();
    let request = Request::call(1, "image.import", json!({"name": "x", "bytes": 1000}));
    tls.writer().write_all((serde_json::to_string(&request).unwrap() + "\nhalf").as_bytes()).unwrap();
    while tls.wants_write() {
        tls.write_tls(&mut &tcp).unwrap();
    }
    eventually("the call arrived", || gate.upstream.saw("image.import").then_some(()));
    drop(tcp);
    eventually("upstream ended", || {
        let seen = gate.upstream.seen.lock().unwrap();
        seen.iter().any(|line| line.starts_with("image.import ")).then_some(())
    });
    eventually("the log says cut", || gate.log().contains("info cut operator=olga").then_some(()));
}

#[test]
fn connections_are_bounded_per_key_and_in_all_and_places_come_back() {
    let gate = Gate::start();
    let mut held = Vec::new();
    for name in ["alice", "olga"] {
        for _ in 0..GATE_CONNECTIONS_PER_KEY_MAX {
            let (mut connection, _) = session(&gate, &gate.key(name));
            assert!(call(&mut connection, "agent.list", json!({})).error.is_none());
            held.push(connection);
        }
    }
    assert_eq!(held.len(), GATE_CONNECTIONS_MAX);
    // One more of anybody is closed before TLS.
    let mut byte = [0u8; 1];
    assert!(matches!(gate.tcp().read(&mut byte), Ok(0) | Err(_)));
    // With room in all, but none for this key, the key is told so.
    held.truncate(GATE_CONNECTIONS_MAX - 1);
    let mut refused = eventually("a place comes back", || try_session(&gate, &gate.key("alice")));
    assert_eq!(response(&mut refused).error.unwrap().code, Code::LIMIT);
    drop(refused);
    let mut rita = eventually("another key gets in", || try_session(&gate, &gate.key("rita")));
    assert!(call(&mut rita, "agent.list", json!({})).error.is_none());
}

/// A session, or none if the gate has no place.
fn try_session(gate: &Gate, key: &PrivateKey) -> Option<abi::wire::Connection> {
    let tcp = gate.tcp();
    let (tls, _) = tls::client(key, Some(gate.fingerprint())).unwrap();
    let mut tls = Tls::Client(tls);
    handshake(&mut tls, &tcp, Duration::from_secs(60)).ok()?;
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::spawn(move || nullctl::relay::relay(tls, &tcp, &far));
    let connection = abi::wire::Connection::new(near);
    connection.set_timeout(Some(Duration::from_secs(20))).unwrap();
    Some(connection)
}

#[test]
fn silent_strangers_are_bounded_and_closed_after_the_handshake_limit() {
    let gate = Gate::start();
    let begun = Instant::now();
    let mut silent: Vec<_> = (0..GATE_HANDSHAKES_MAX).map(|_| gate.tcp()).collect();
    let mut byte = [0u8; 1];
    eventually("one more is closed at once", || {
        let mut extra = gate.tcp();
        extra.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        matches!(extra.read(&mut byte), Ok(0)).then_some(())
    });
    for tcp in &mut silent {
        tcp.set_read_timeout(Some(Duration::from_millis(GATE_HANDSHAKE_MS_MAX * 2))).unwrap();
        assert!(matches!(tcp.read(&mut byte), Ok(0) | Err(_)));
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(GATE_HANDSHAKE_MS_MAX - 500), "{took:?}");
    assert!(took < Duration::from_millis(GATE_HANDSHAKE_MS_MAX + 5000), "{took:?}");
    drop(silent);
    eventually("a known key gets in again", || try_session(&gate, &gate.key("rita")));
}

#[test]
fn garbage_is_refused_and_floods_are_counted() {
    let gate = Gate::start();
    for _ in 0..40 {
        let mut tcp = gate.tcp();
        let _ = tcp.write_all(b"GET / HTTP/1.1\r\n\r\n"); // may be closed already
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest);
    }
    eventually("some refusals are told", || gate.log().contains("warning refused").then_some(()));
    let told = gate.log().matches("warning refused").count();
    assert!((10..40).contains(&told), "{told}");
    assert!(try_session(&gate, &gate.key("rita")).is_some());
}

/// What the metrics listener answers a client on this loopback address.
fn scrape(gate: &Gate, from: &str, request: &[u8]) -> String {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    let from: std::net::SocketAddr = format!("{from}:0").parse().unwrap();
    rustix::net::bind(&socket, &from).unwrap();
    let to: std::net::SocketAddr = ([127, 0, 0, 1], gate.metrics).into();
    eventually("the metrics listener is there", || rustix::net::connect(&socket, &to).ok());
    let mut tcp = std::net::TcpStream::from(socket);
    tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = tcp.write_all(request); // it may be closed already
    let mut answer = String::new();
    let _ = tcp.read_to_string(&mut answer); // a reset is an answer too
    answer
}

#[test]
fn metrics_are_read_by_their_sources_as_a_reader_would() {
    let gate = Gate::start();
    let answer = scrape(&gate, "127.0.0.1", b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    for line in [
        "nullbox_node_info{node=\"n1\",version=\"0.1.0\",root_hash=\"ab\"} 1",
        "nullbox_service_up{service=\"cage\"} 1",
        "nullbox_node_boot_seconds 2.5",
        "nullbox_scrape_up{part=\"agents\"} 1",
        "x 1",
        "x 2",
    ] {
        assert!(body.lines().any(|found| found == line), "{line} is not in\n{body}");
    }
    let reader = Caller::Operator { name: "metrics".into(), key: "metrics".into(), role: Role::Reader };
    assert_eq!(*gate.upstream.callers.lock().unwrap(), [reader.clone(), reader]);
}

#[test]
fn strangers_and_other_requests_get_no_metrics_and_ask_the_node_nothing() {
    let gate = Gate::start();
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
        ("GET /state HTTP/1.1\r\n\r\n", "404"),
        ("hello\r\n\r\n", "400"),
        (&format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(8000)), "431"),
    ] {
        let answer = scrape(&gate, "127.0.0.1", request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
    assert_eq!(scrape(&gate, "127.0.0.2", b"GET /metrics HTTP/1.1\r\n\r\n"), "", "a stranger got an answer");
    assert!(gate.upstream.callers.lock().unwrap().is_empty());
}

#[test]
fn connections_that_say_nothing_take_the_metrics_places_for_a_while_and_no_longer() {
    let gate = Gate::start();
    let request = b"GET /metrics HTTP/1.1\r\n\r\n";
    assert!(scrape(&gate, "127.0.0.1", request).contains("200 OK"));
    let held: Vec<_> = (0..abi::limits::METRICS_CONNECTIONS_MAX)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", gate.metrics)).unwrap())
        .collect();
    eventually("all places are taken", || scrape(&gate, "127.0.0.1", request).is_empty().then_some(()));
    eventually("they are given back", || {
        scrape(&gate, "127.0.0.1", request).contains("200 OK").then_some(())
    });
    drop(held);
}

#[test]
fn the_node_key_outlives_a_restart() {
    let gate = Gate::start();
    let first = gate.fingerprint();
    assert!(gate.log().contains("made=true"));
    let scratch = gate.stop();
    let again = Gate::with(scratch, Setup::default());
    assert_eq!(again.fingerprint(), first);
    assert!(again.log().contains("made=false"));
}

#[test]
fn a_broken_node_key_stops_nullgate_and_is_not_replaced() {
    let scratch = Gate::start().stop();
    let path = scratch.path("state/node.key");
    std::fs::write(&path, "garbage").unwrap();
    std::fs::remove_file(scratch.path("peers.sock")).unwrap();
    let (mut child, _door, _ready) = spawn(&scratch);
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert!(!status.success());
    let log = std::fs::read_to_string(scratch.path("log")).unwrap();
    assert!(log.contains("start_failed") && log.contains("node.key"), "{log}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "garbage");
}

#[test]
fn wrong_operators_let_nobody_in_and_the_fingerprint_is_still_shown() {
    let setup = Setup {
        operators: Some("[[operator]]\nname = \"a\"\nkey = \"ed25519:AAAA\"\nrole = \"admin\"\n".into()),
        ..Setup::default()
    };
    let gate = Gate::with(Scratch::new(), setup);
    assert!(
        gate.log().contains("nobody_is_let_in") && gate.log().contains("operators.toml:3"),
        "{}",
        gate.log()
    );
    let (mut connection, _) = session(&gate, &gate.key("alice"));
    assert!(matches!(connection.read_line(), Ok(None) | Err(_)));
}

#[test]
fn without_nulld_the_client_is_told_so() {
    let setup = Setup { upstream: false, ..Setup::default() };
    let gate = Gate::with(Scratch::new(), setup);
    let (mut connection, _) = session(&gate, &gate.key("alice"));
    let error = call(&mut connection, "system.status", json!({})).error.unwrap();
    assert_eq!(error.code, Code::UNAVAILABLE);
}
