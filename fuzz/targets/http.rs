//! Requests of an HTTP client, followed through their bodies.
//!
//! Looks for: a panic, a verdict that depends on how the bytes came in pieces, bytes that are changed, and a request among what passed
//! that httparse reads with another host, another length or at another place.

#![no_main]

use egress::http::Requests;
use libfuzzer_sys::fuzz_target;

const NAME: &str = "a.test";
const PORT: u16 = 80;

fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else { return };
    let mut passed = Vec::new();
    let judged = Requests::new(NAME, PORT).push(bytes, &mut passed);
    assert!(bytes.starts_with(&passed));
    let mut in_pieces = Vec::new();
    let mut requests = Requests::new(NAME, PORT);
    let again =
        bytes.chunks(usize::from(*piece).max(1)).try_for_each(|piece| requests.push(piece, &mut in_pieces));
    assert_eq!((again, &in_pieces), (judged, &passed), "in pieces of {piece}");
    follow(&passed);
});

/// Reads what passed as a server would.
fn follow(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 4096];
        let mut request = httparse::Request::new(&mut fields);
        let head = match request.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Err(httparse::Error::TooManyHeaders) => return,
            // A server that reads less refuses it.
            Err(_) => return,
            Ok(httparse::Status::Partial) => panic!("a head that is not whole passed"),
        };
        let values = |name: &str| {
            let of = request.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
            of.map(|field| String::from_utf8_lossy(field.value).trim().to_ascii_lowercase())
                .collect::<Vec<_>>()
        };
        let hosts = values("host");
        assert_eq!(hosts.len(), 1, "{hosts:?}");
        let host = hosts[0].strip_suffix(&format!(":{PORT}")).unwrap_or(&hosts[0]);
        assert_eq!(host.strip_suffix('.').unwrap_or(host), NAME);
        assert!(!request.method.is_some_and(|method| method.eq_ignore_ascii_case("connect")));
        assert!(values("upgrade").is_empty());
        let target = request.path.unwrap_or_default();
        assert!(
            target.starts_with('/')
                || target == "*"
                || target.to_ascii_lowercase().starts_with("http://a.test")
        );
        bytes = &bytes[head..];
        let (coded, lengths) = (values("transfer-encoding"), values("content-length"));
        bytes = match (coded.as_slice(), lengths.as_slice()) {
            ([], []) => bytes,
            ([], [length]) => {
                let length = usize::try_from(length.parse::<u64>().expect("a length")).unwrap_or(usize::MAX);
                &bytes[length.min(bytes.len())..]
            }
            ([coded], []) if coded == "chunked" => chunks(bytes),
            both => panic!("{both:?}"),
        };
    }
}

/// What follows a chunked body; nothing, if it goes on.
fn chunks(mut bytes: &[u8]) -> &[u8] {
    loop {
        let Ok(httparse::Status::Complete((head, size))) = httparse::parse_chunk_size(bytes) else {
            return &[];
        };
        bytes = &bytes[head..];
        if size == 0 {
            break;
        }
        let end = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(2);
        if end > bytes.len() {
            return &[];
        }
        assert_eq!(&bytes[end - 2..end], b"\r\n", "a chunk that does not end");
        bytes = &bytes[end..];
    }
    let mut fields = [httparse::EMPTY_HEADER; 4096];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete((trailer, _))) => &bytes[trailer..],
        _ => &[],
    }
}
