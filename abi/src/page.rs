//! The address of a page that a tool asks for.
//!
//! Must hold: whoever decides about a page and whoever asks for it read its address by this one parser; a text that two parsers could
//! read differently is none.

use std::fmt;
use std::str::FromStr;

use crate::ids::HostName;
use crate::limits;

/// `https://NAME[:PORT][/PATH][?QUERY]`, or `http://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageUrl {
    /// By TLS.
    pub is_tls: bool,
    pub name: HostName,
    pub port: u16,
    /// From `/` on, with the query: what stands in the request's first line.
    pub target: String,
}

impl PageUrl {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

impl FromStr for PageUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<PageUrl, String> {
        let wrong = |what: &str| {
            let shown: String = text.chars().take(100).flat_map(char::escape_default).collect();
            Err(format!("`{shown}` {what}; write `https://NAME/PATH`, or `http://`"))
        };
        if text.len() > limits::FETCH_URL_BYTES_MAX {
            return wrong("is too long");
        }
        let plain = |b: u8| b.is_ascii_graphic() && !b"\\#\"<>^`{|}".contains(&b);
        if !text.bytes().all(plain) {
            return wrong("has characters that an address writes as `%` and two digits, or a fragment");
        }
        let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return wrong("is no address of the web"),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (Some(authority), Some(target)) = (rest.get(..end), rest.get(end..)) else {
            return wrong("is no address of the web");
        };
        if authority.contains('@') {
            return wrong("has a user before its name");
        }
        let (name, port) = match authority.rsplit_once(':') {
            None => (authority, if is_tls { 443 } else { 80 }),
            Some((name, port)) => match port.parse::<u16>() {
                Ok(number) if number > 0 && number.to_string() == port => (name, number),
                _ => return wrong("has no port from 1 to 65535"),
            },
        };
        let Ok(name) = name.parse() else { return wrong("has no host name") };
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(PageUrl { is_tls, name, port, target: format!("{slash}{target}") })
    }
}

impl fmt::Display for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.is_tls { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.name)?;
        if self.port != usual {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_reading() {
        for (text, again) in [
            ("https://docs.rs", "https://docs.rs/"),
            ("https://Docs.RS:443/a/b?c=d/e", "https://docs.rs/a/b?c=d/e"),
            ("http://docs.rs:8080?x", "http://docs.rs:8080/?x"),
        ] {
            let page: PageUrl = text.parse().unwrap();
            assert_eq!(page.to_string(), again);
            assert_eq!(again.parse(), Ok(page), "{text}");
        }
        assert_eq!("http://a.test/p?q".parse::<PageUrl>().unwrap().path(), "/p");
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_no_address() {
        let long = format!("https://a.test/{}", "x".repeat(limits::FETCH_URL_BYTES_MAX));
        for bad in [
            "ftp://a.test/",
            "HTTPS://a.test/",
            "https:a.test",
            "https://evil.test@a.test/",
            "https://a.test\\@evil.test/",
            "https://a.test:443@evil.test/",
            "https://a.test#@evil.test/",
            "https://a.test:0/",
            "https://a.test:0443/",
            "https://a.test:/",
            "https:///path",
            "https://10.0.0.1/",
            "https://[::1]/",
            "https://a.test/a b",
            "https://a.test/\r\nHost: evil.test",
            "https://a.test/\u{e4}",
            "https://a.test/\u{0}",
            &long,
        ] {
            assert!(bad.parse::<PageUrl>().is_err(), "{bad:?}");
        }
    }
}
