//! `memory.watch`: entries go to a watcher as they are committed.
//!
//! Must hold: nothing is missed between the answer and the first entry. Must never: show an agent an entry before its exposure is
//! raised by it, or keep a place for a watcher that has gone.

use abi::control::{Dropped, MemoryWatch};
use abi::ids::Digest;
use abi::limits;
use abi::memory::MemoryScope;
use abi::rpc::{Code, Request, RpcError, Version};
use abi::wire::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::access::What;
use crate::calls::check_prefix;
use crate::memory::Memory;
use crate::places::Places;
use crate::speaker::{Refusal, Speaker};
use crate::watch::{Heard, Receiver, Watchers};

/// How often a silent watch looks whether its connection lives.
const LOOK: Duration = Duration::from_millis(500);

/// Takes a watcher's place: from now on nothing is missed.
pub fn begin(watchers: &Watchers, speaker: Speaker<'_>, request: &Request) -> Result<Receiver, Refusal> {
    let params: MemoryWatch = request.params()?;
    let owner = speaker.owner(params.agent, &request.method)?;
    check_prefix(&params.prefix)?;
    speaker.may(What::Read, &owner, &params.prefix)?;
    // What may be read now may be read as long as the lease lasts, and the watch ends with it.
    let scope = MemoryScope { agent: owner, prefix: params.prefix };
    let wants = move |agent: &abi::ids::AgentName, key: &str| scope.has(agent, key);
    watchers.watch(speaker.agent().cloned(), wants).map_err(|error| {
        RpcError::new(Code::LIMIT, error.to_string())
            .explained(
                format!("{} at a time", limits::MEMORY_WATCHERS_MAX),
                "close one, or watch a shorter prefix",
            )
            .into()
    })
}

/// Sends what is heard until the watch or the connection ends. Returns why. An agent's entries are read in its turn.
pub fn stream(
    memory: &Memory,
    places: Option<&Places>,
    speaker: Speaker<'_>,
    receiver: &Receiver,
    connection: &mut Connection,
) -> String {
    // A watcher that does not read must not keep its place.
    if let Err(error) = connection.set_timeout(Some(Duration::from_millis(limits::MEMORY_ANSWER_MS_MAX))) {
        return error.to_string();
    }
    loop {
        let hash = match receiver.next(LOOK) {
            Heard::Entry(hash) => hash,
            Heard::Silence if hung_up(connection.stream()) => return "the watcher closed".into(),
            Heard::Silence => continue,
            Heard::Closed => return "ctxgraph is closing".into(),
            Heard::Dropped => return let_go(connection, "it read too slowly"),
        };
        let place = places.zip(speaker.agent()).map(|(places, agent)| places.take(agent));
        let line = entry_line(memory, speaker, &hash);
        drop(place);
        match line {
            Ok(Some(line)) => {
                if let Err(error) = connection.write_encoded(line) {
                    return error.to_string();
                }
            }
            Ok(None) => {}
            Err(why) => return let_go(connection, &why),
        }
    }
}

/// An entry as it goes out, once the watcher's exposure is raised by it. While it is sent only these bytes are kept.
fn entry_line(memory: &Memory, speaker: Speaker<'_>, hash: &Digest) -> Result<Option<Vec<u8>>, String> {
    let Some(mut entry) = memory.by_hash(hash).map_err(|error| error.to_string())? else { return Ok(None) };
    entry.reader_exposure = speaker.reads(std::iter::once(&entry)).map_err(|error| error.message)?;
    line("entry", &entry).map(Some)
}

fn line(method: &str, params: &impl Serialize) -> Result<Vec<u8>, String> {
    #[derive(Serialize)]
    struct Note<'a, T> {
        jsonrpc: Version,
        method: &'a str,
        params: &'a T,
    }
    let note = Note { jsonrpc: Version::V2, method, params };
    let mut line = serde_json::to_vec(&note).map_err(|error| error.to_string())?;
    line.shrink_to_fit(); // it is kept for as long as the watcher does not read
    Ok(line)
}

fn send(connection: &mut Connection, method: &str, params: &impl Serialize) -> Result<(), String> {
    connection.write_encoded(line(method, params)?).map_err(|error| error.to_string())
}

/// Tells the watcher why it hears no more, if its socket has room for that.
fn let_go(connection: &mut Connection, why: &str) -> String {
    // A watcher that has stalled learns it from the end alone.
    let _ = connection.set_timeout(Some(Duration::from_millis(100)));
    let told = send(connection, "dropped", &Dropped { why: why.into() });
    format!("dropped: {why}{}", if told.is_err() { " (and was not told)" } else { "" })
}

fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let [fd] = match poll(&mut fds, Some(&now)) {
        Ok(_) => &fds,
        Err(_) => return false,
    };
    fd.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}
