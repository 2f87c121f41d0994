//! A health check as text: what is asked, and what an answer means. HTTP/1.1 (RFC 9112), the status line only.

use abi::guest::{Health, HealthProbe};

/// What is read of an answer before its first line must be whole.
pub const STATUS_LINE_BYTES_MAX: usize = 256;
const DETAIL_CHARS_MAX: usize = 120;

/// The request. The path was checked with the plan: no blank, no control character.
pub fn request(probe: &HealthProbe) -> String {
    format!(
        "GET {} HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: nullbox-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        probe.path, probe.port
    )
}

/// What so many first bytes of an answer say; none: more must come. `ended`: no more will.
pub fn judge(answer: &[u8], ended: bool) -> Option<Health> {
    let line_end = answer.iter().position(|byte| *byte == b'\n');
    let line = match line_end {
        Some(at) => answer.get(..at).unwrap_or_default(),
        None if ended || answer.len() >= STATUS_LINE_BYTES_MAX => answer,
        None => return None,
    };
    let shown: String = String::from_utf8_lossy(line)
        .trim()
        .chars()
        .take(DETAIL_CHARS_MAX)
        .flat_map(char::escape_default)
        .collect();
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| match rest {
        [b'0' | b'1', b' ', a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ' | b'\r', ..]
        | [b'0' | b'1', b' ', a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            Some(u32::from(a - b'0') * 100 + u32::from(b - b'0') * 10 + u32::from(c - b'0'))
        }
        _ => None,
    });
    Some(match status {
        Some(status) => Health { healthy: (200..400).contains(&status), detail: shown },
        None if answer.is_empty() => {
            Health { healthy: false, detail: "the connection was closed without an answer".into() }
        }
        None => Health { healthy: false, detail: format!("no HTTP status line: `{shown}`") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(answer: &str) -> Option<bool> {
        judge(answer.as_bytes(), true).map(|health| health.healthy)
    }

    #[test]
    fn two_and_three_hundreds_are_healthy() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 204\r\n", true),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", true),
            ("HTTP/1.1 399", true),
            ("HTTP/1.1 404 Not Found\r\n", false),
            ("HTTP/1.1 500 \r\n", false),
            ("HTTP/1.1 100 Continue\r\n", false),
        ] {
            assert_eq!(healthy(answer), Some(expected), "{answer}");
        }
    }

    #[test]
    fn what_is_no_status_line_is_unhealthy_and_shown_harmlessly() {
        for answer in [
            "",
            "200",
            "HTTP/2 200\r\n",
            "HTTP/1.1 2000 x\r\n",
            "HTTP/1.1 20x\r\n",
            "HTTP/1.1  200\r\n",
            "\x1b[2J\n",
        ] {
            assert_eq!(healthy(answer), Some(false), "{answer}");
        }
        let detail = judge(b"\x1b[2J\n", false).unwrap().detail;
        assert!(detail.is_ascii() && !detail.contains('\x1b'), "{detail}");
        assert!(judge(&[b'x'; 100_000], true).unwrap().detail.len() < 1000);
    }

    #[test]
    fn a_line_may_come_in_parts_but_not_for_ever() {
        assert_eq!(judge(b"HTTP/1.1 20", false), None);
        assert_eq!(judge(b"", false), None);
        assert!(judge(&[b'x'; STATUS_LINE_BYTES_MAX], false).is_some());
    }

    #[test]
    fn the_request_is_one_http_message() {
        let probe = HealthProbe { port: 8080, path: "/up?x=1".into(), interval_secs: 1 };
        let text = request(&probe);
        assert!(
            text.starts_with("GET /up?x=1 HTTP/1.1\r\nHost: localhost:8080\r\n")
                && text.ends_with("\r\n\r\n")
        );
    }
}
