//! What others do for the same: SQLite by itself, and Redis.

use crate::writers::{rate, value};
use rusqlite::{Connection, params};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The table of entries, without what hangs on it.
const TABLE: &str = "
CREATE TABLE entry (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, agent TEXT NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL,
    parent BLOB, unix_ms INTEGER NOT NULL, links TEXT NOT NULL, labels TEXT NOT NULL, value_hash BLOB NOT NULL, value TEXT) STRICT;
CREATE INDEX entry_key ON entry (agent, key, seq);
";

/// A connection as ctxgraph's own.
pub fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("a database");
    db.busy_timeout(Duration::from_secs(60)).expect("a timeout");
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-1024;")
        .expect("settings");
    db
}

/// Rows a second, `batch` of them in each transaction, each thread with a connection of its own.
pub fn sqlite(directory: &Path, threads: usize, batch: u64, time: Duration) -> f64 {
    let path = directory.join("plain.db");
    open(&path).execute_batch(TABLE).expect("a table");
    let transactions = rate(
        threads,
        time,
        |_| open(&path),
        |db, thread, number| {
            db.execute_batch("BEGIN IMMEDIATE").expect("begin");
            for number in number * batch..(number + 1) * batch {
                insert(db, thread as u64, number);
            }
            db.execute_batch("COMMIT").expect("commit");
        },
    );
    transactions * batch as f64
}

fn insert(db: &Connection, thread: u64, number: u64) {
    // Spread as hashes are.
    let mut hash = [0u8; 32];
    hash[..8].copy_from_slice(&(thread << 40 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    db.prepare_cached("INSERT INTO entry VALUES (NULL, ?1, ?2, ?3, ?4, NULL, ?5, '[]', ?6, ?1, ?7)")
        .expect("a statement")
        .execute(params![
            hash,
            format!("agent-{thread}"),
            number,
            format!("notes/{thread}/{number}"),
            1_700_000_000_000u64,
            r#"{"nullbox.node":"0123456789abcdef"}"#,
            value(number).to_string(),
        ])
        .expect("a row");
}

/// A server of its own, on a socket in a directory of its own.
pub struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Redis {
    /// Starts it and waits until it answers.
    pub fn start(directory: &Path) -> Result<Redis, String> {
        let socket = directory.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(directory);
        let child =
            command.stdout(Stdio::null()).spawn().map_err(|error| format!("redis-server: {error}"))?;
        let redis = Redis { child, socket };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&redis.socket).is_err() {
            if Instant::now() > deadline {
                return Err("redis-server does not answer in 20 s".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(redis)
    }

    /// `SET` a second; Redis answers after its file was synced.
    pub fn rate(&self, clients: usize, time: Duration) -> f64 {
        rate(
            clients,
            time,
            |_| BufReader::new(UnixStream::connect(&self.socket).expect("a connection")),
            |connection, client, number| {
                let (key, value) = (format!("notes/{client}/{number}"), value(number).to_string());
                let command =
                    format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len());
                connection.get_mut().write_all(command.as_bytes()).expect("a request");
                let mut answer = String::new();
                connection.read_line(&mut answer).expect("an answer");
                assert_eq!(answer, "+OK\r\n");
            },
        )
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}
