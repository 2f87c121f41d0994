//! A small HTTP server of the test internet, on this machine's loopback. It answers each request with what it saw.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// A running server; it ends with the process.
#[derive(Debug, Clone)]
pub struct Web {
    pub port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// Serves `page` for every path.
    pub fn start(page: &'static str) -> Result<Web> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                std::thread::spawn(move || answer(stream, page, &log));
            }
        });
        Ok(Web { port, seen })
    }

    /// Request lines and Host headers seen so far, `GET /path host`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(stream: TcpStream, page: &str, log: &Mutex<Vec<String>>) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut host = String::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("host:") {
            host = value.trim().to_owned();
        }
    }
    let what: Vec<&str> = request.split_whitespace().take(2).collect();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{} {host}", what.join(" ")));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
    (&stream).write_all(format!("{head}{page}").as_bytes()).ok()
}
