//! The memory methods, for whoever speaks: what each needs, and the shapes of answers and refusals.
//!
//! Must hold: an agent reaches another's memory only where `access` says so; what is shown to it has raised its exposure.
//! Must never: tell an agent whether an entry that it may not read exists.

use abi::control::{
    Entries, Entry, Hits, MemoryBatch, MemoryConflicts, MemoryForget, MemoryHistory, MemoryList,
    MemoryNearest, MemoryQuery, MemoryRead, MemorySearch, MemoryTraverse, MemoryWrite,
};
use abi::door::Outcome;
use abi::ids::{AgentName, Digest};
use abi::memory::LINK_SUPERSEDES;
use abi::rpc::{Code, Request, RpcError};
use serde::Serialize;
use serde_json::Value;

use crate::access::{NEEDS_BOTH, What};
use crate::draft::{self, DraftError};
use crate::memory::{Memory, MemoryError};
use crate::speaker::{Denied, Refusal, Speaker};
use crate::store::search::Query;
use crate::store::vector::Vector;

impl From<MemoryError> for Refusal {
    fn from(error: MemoryError) -> Refusal {
        explain(&error).into()
    }
}

/// The rule that refuses methods of the control protocol on an agent's memory socket.
pub const MEMORY_METHODS_ONLY: &str = "memory-methods-only";

/// What an agent may call. `memory.watch` is served where its connection is.
const AGENT_METHODS: [&str; 12] = [
    "memory.write",
    "memory.batch",
    "memory.read",
    "memory.query",
    "memory.history",
    "memory.conflicts",
    "memory.neighbours",
    "memory.traverse",
    "memory.search",
    "memory.nearest",
    "memory.watch",
    "memory.forget",
];

/// As JSON text: no tree of an answer is kept while it is sent.
type Answer = Result<String, Refusal>;

/// Serves one call that has one answer.
pub fn answer(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    match request.method.as_str() {
        "memory.write" => write(memory, speaker, request),
        "memory.batch" => batch(memory, speaker, request),
        "memory.read" => read(memory, speaker, request),
        "memory.query" => query(memory, speaker, request),
        "memory.history" => history(memory, speaker, request),
        "memory.conflicts" => conflicts(memory, speaker, request),
        "memory.neighbours" | "memory.traverse" => traverse(memory, speaker, request),
        "memory.search" => search(memory, speaker, request),
        "memory.nearest" => nearest(memory, speaker, request),
        "memory.forget" => forget(memory, speaker, request),
        method => match speaker {
            Speaker::Operator(_) if method == "memory.list" => text_of(MemoryList { agents: memory.list()? }),
            Speaker::Operator(_) => {
                Err(RpcError::new(Code::UNKNOWN_METHOD, format!("there is no method `{}`", shorten(method)))
                    .into())
            }
            Speaker::Agent(_) => Err(not_for_agents(method)),
        },
    }
}

fn write(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryWrite = request.take_params()?;
    let unseen = may_write(speaker, &mut params, &request.method)?;
    let written = memory
        .write(&speaker.author(), speaker.exposure(), params, &|owner, key| speaker.may_read(owner, key));
    let entry = written.map_err(|error| not_written(memory, speaker, error, unseen))?;
    text_of(Entry { reader_exposure: speaker.exposure(), ..veiled(speaker, entry) })
}

fn batch(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryBatch = request.take_params()?;
    let mut unseen = false;
    for write in &mut params.writes {
        unseen |= may_write(speaker, write, &request.method)?;
    }
    let written = memory.batch(&speaker.author(), speaker.exposure(), params.writes, &|owner, key| {
        speaker.may_read(owner, key)
    });
    let mut page = written.map_err(|error| not_written(memory, speaker, error, unseen))?;
    page.entries = page.entries.into_iter().map(|entry| veiled(speaker, entry)).collect();
    text_of(Entries { reader_exposure: speaker.exposure(), ..page })
}

/// Names the owner, and checks the right to a write. Returns whether the writer may not read what it writes over.
fn may_write(speaker: Speaker<'_>, write: &mut MemoryWrite, method: &str) -> Result<bool, Refusal> {
    let owner = speaker.owner(write.agent.take(), method)?;
    check_key(&write.key)?;
    speaker.may(What::Write, &owner, &write.key)?;
    let unseen = !speaker.may_read(&owner, &write.key);
    if unseen && write.parent.is_some() {
        // Whether the expectation was met would tell what is there.
        speaker.may(What::Read, &owner, &write.key)?;
    }
    write.agent = Some(owner);
    Ok(unseen)
}

/// Why a write was refused; without a word of what is there, where the writer may not read that.
fn not_written(memory: &Memory, speaker: Speaker<'_>, error: MemoryError, unseen: bool) -> Refusal {
    match error {
        MemoryError::Link(target) => no_entry(memory, speaker, &target),
        MemoryError::Quota(_) | MemoryError::Conflict { .. } | MemoryError::Heads(_) if unseen => {
            RpcError::new(Code::LIMIT, "the memory of the other agent does not take this now")
                .explained(
                    "it is full, or its owner has a conflict to settle; who may not read it is told no more",
                    "try later, or ask an operator",
                )
                .into()
        }
        error => error.into(),
    }
}

/// What a writer is shown of its entry: without what came before it, where it may not read that.
fn veiled(speaker: Speaker<'_>, mut entry: Entry) -> Entry {
    if !speaker.may_read(&entry.agent, &entry.key) {
        // All that is in the hash but these two is known to the writer: it could find them by trying.
        entry.hash = Digest([0; 32]);
        entry.parent = None;
        entry.seq = 0;
        entry.links.retain(|link| link.kind != LINK_SUPERSEDES);
    }
    entry
}

fn read(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let params: MemoryRead = request.take_params()?;
    let mut entry = match (&params.hash, params.key) {
        (Some(hash), None) => by_hash(memory, speaker, hash, params.agent.as_ref())?,
        (None, Some(key)) => {
            let owner = speaker.owner(params.agent, &request.method)?;
            check_key(&key)?;
            speaker.may(What::Read, &owner, &key)?;
            memory.newest(&owner, &key)?.ok_or_else(|| no_key(&owner, &key))?
        }
        _ => return Err(key_or_hash().into()),
    };
    entry.reader_exposure = speaker.reads(std::iter::once(&entry))?;
    text_of(entry)
}

/// An entry by its hash, where the speaker may read it and it is that agent's, if one is named.
fn by_hash(
    memory: &Memory,
    speaker: Speaker<'_>,
    hash: &Digest,
    named: Option<&AgentName>,
) -> Result<Entry, Refusal> {
    // By agent and key alone: another's value is not even loaded.
    let may_see = memory.read(|store| {
        store.may_see(hash, &|owner, key| {
            named.is_none_or(|named| named == owner) && speaker.may_read(owner, key)
        })
    })?;
    let entry = if may_see { memory.by_hash(hash)? } else { None };
    entry.ok_or_else(|| no_entry(memory, speaker, hash))
}

fn query(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryQuery = request.take_params()?;
    let owner = speaker.owner(params.agent.take(), &request.method)?;
    check_prefix(&params.prefix)?;
    speaker.may(What::Read, &owner, &params.prefix)?;
    let question = question(speaker, &request.method, &owner);
    open(memory, &question, &mut params.cursor)?;
    page(memory, speaker, &question, memory.query(&owner, &params)?)
}

fn history(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryHistory = request.take_params()?;
    let owner = speaker.owner(params.agent.take(), &request.method)?;
    check_key(&params.key)?;
    speaker.may(What::Read, &owner, &params.key)?;
    let question = question(speaker, &request.method, &owner);
    open(memory, &question, &mut params.cursor)?;
    page(memory, speaker, &question, memory.history(&owner, &params)?)
}

fn conflicts(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryConflicts = request.take_params()?;
    let owner = speaker.owner(params.agent.take(), &request.method)?;
    check_prefix(&params.prefix)?;
    speaker.may(What::Read, &owner, &params.prefix)?;
    let question = question(speaker, &request.method, &owner);
    open(memory, &question, &mut params.cursor)?;
    page(memory, speaker, &question, memory.conflicts(&owner, &params)?)
}

/// Who asks what of whose memory: a cursor goes on with that and nothing else.
fn question(speaker: Speaker<'_>, method: &str, owner: &AgentName) -> String {
    match speaker.agent() {
        Some(agent) => format!("agent {agent} {method} {owner}"),
        None => format!("operator {method} {owner}"),
    }
}

fn open(memory: &Memory, question: &str, cursor: &mut Option<String>) -> Result<(), Refusal> {
    let Some(sealed) = cursor else { return Ok(()) };
    let opened = memory.seals().open(question, sealed);
    *cursor = Some(opened.ok_or_else(|| MemoryError::Cursor(shorten(sealed)))?);
    Ok(())
}

fn page(memory: &Memory, speaker: Speaker<'_>, question: &str, mut page: Entries) -> Answer {
    if let Some(cursor) = &mut page.cursor {
        let sealed = memory.seals().seal(question, cursor);
        *cursor = sealed.ok_or_else(|| RpcError::new(Code::INTERNAL, "the cursor cannot be sealed"))?;
    }
    page.reader_exposure = speaker.reads(page.entries.iter())?;
    text_of(page)
}

fn traverse(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryTraverse = request.take_params()?;
    if request.method == "memory.neighbours" {
        params.depth = Some(1);
    }
    let found = memory.traverse(&params, &|owner, key| speaker.may_read(owner, key))?;
    let mut found = found.ok_or_else(|| no_entry(memory, speaker, &params.hash))?;
    found.reader_exposure = speaker.reads(found.reached.iter().map(|reached| &reached.entry))?;
    text_of(found)
}

fn search(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let params: MemorySearch = request.take_params()?;
    let owner = speaker.owner(params.agent, &request.method)?;
    check_prefix(&params.prefix)?;
    speaker.may(What::Read, &owner, &params.prefix)?;
    let query = Query::parse(&params.text).map_err(|error| {
        RpcError::new(Code::INVALID_PARAMS, error.to_string()).explained(
            "a search has 1 to 16 words, `word*` and \"phrases\" among them",
            "write the text otherwise",
        )
    })?;
    hits(speaker, memory.read(|store| store.search(&owner, &params.prefix, &query, params.limit))?)
}

fn nearest(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let params: MemoryNearest = request.take_params()?;
    let owner = speaker.owner(params.agent, &request.method)?;
    check_prefix(&params.prefix)?;
    speaker.may(What::Read, &owner, &params.prefix)?;
    let to = Vector::new(&params.vector).map_err(|error| {
        RpcError::new(Code::INVALID_PARAMS, error.to_string())
            .explained("a vector has a direction and a bounded length", "check what made it")
    })?;
    hits(speaker, memory.read(|store| store.nearest(&owner, &params.prefix, &to, params.limit))?)
}

fn hits(speaker: Speaker<'_>, mut found: Hits) -> Answer {
    found.reader_exposure = speaker.reads(found.hits.iter().map(|hit| &hit.entry))?;
    text_of(found)
}

/// Another's memory is forgotten only by who may read it too: how much was forgotten tells what was there.
fn forget(memory: &Memory, speaker: Speaker<'_>, request: &mut Request) -> Answer {
    let mut params: MemoryForget = request.take_params()?;
    match (&params.hash, &params.key) {
        (Some(hash), None) => {
            let entry = by_hash(memory, speaker, hash, params.agent.as_ref())?;
            speaker.may(What::Write, &entry.agent, &entry.key)?;
        }
        (None, Some(key)) => {
            let owner = speaker.owner(params.agent.take(), &request.method)?;
            check_key(key)?;
            speaker.may(What::Write, &owner, key)?;
            speaker.may(What::Read, &owner, key)?;
            params.agent = Some(owner);
        }
        _ => return Err(key_or_hash().into()),
    }
    text_of(memory.forget(&speaker.author(), &params)?)
}

fn check_key(key: &str) -> Result<(), MemoryError> {
    Ok(draft::check_key(key)?)
}

/// Before anything is said of it: a refusal that has it in it fits a line.
pub fn check_prefix(prefix: &str) -> Result<(), MemoryError> {
    Ok(draft::check_prefix(prefix)?)
}

fn key_or_hash() -> RpcError {
    RpcError::new(Code::INVALID_PARAMS, "give `hash` or `key`, one of them")
        .explained("an entry is named by its hash, or as the newest of its key", "leave one out")
}

/// An agent gets the same answer whether the entry is another's or nobody's; the ledger knows the difference.
fn no_entry(memory: &Memory, speaker: Speaker<'_>, hash: &Digest) -> Refusal {
    // The operator's view: whether anybody has it.
    let reached =
        speaker.agent().is_some() && memory.read(|store| store.may_see(hash, &|_, _| true)).unwrap_or(false);
    Refusal {
        error: RpcError::new(Code::NOT_FOUND, format!("there is no entry {hash} that you may read")).explained(
            format!("{NEEDS_BOTH}: by hash, an entry's agent and key decide as they do by key"),
            "memory.history lists the entries of a key; `memory.read` and the owner's `memory.share_read` share keys",
        ),
        denied: reached.then(|| Denied { what: format!("entry {hash}"), rule: NEEDS_BOTH }),
    }
}

fn no_key(agent: &AgentName, key: &str) -> RpcError {
    RpcError::new(Code::NOT_FOUND, format!("the memory of `{agent}` has nothing under `{}`", shorten(key)))
        .explained("keys are compared byte by byte", "memory.query lists the keys with a prefix")
}

fn not_for_agents(method: &str) -> Refusal {
    let method = shorten(method);
    let known = abi::control::method(&method).is_some();
    let code = if known { Code::DENIED } else { Code::UNKNOWN_METHOD };
    Refusal {
        error: RpcError::new(code, format!("an agent's memory socket has no method `{method}`")).explained(
            format!("{MEMORY_METHODS_ONLY}: {}", AGENT_METHODS.join(", ")),
            "there is no grant for other methods",
        ),
        denied: known.then_some(Denied { what: method, rule: MEMORY_METHODS_ONLY }),
    }
}

/// A memory error as an answer that says which rule and what to do.
pub fn explain(error: &MemoryError) -> RpcError {
    let (code, rule, remedy) = match error {
        MemoryError::Draft(error) => return undrafted(error),
        MemoryError::BatchCount(_) | MemoryError::BatchBytes => (
            Code::INVALID_PARAMS,
            "a batch is 1 to 64 writes, and its answer, with all values, one line of 64 KiB",
            "split it",
        ),
        MemoryError::Link(_) => {
            (Code::NOT_FOUND, "a link leads to an entry that its writer may read", "read the entry first")
        }
        MemoryError::Conflict { .. } => (
            Code::CONFLICT,
            "`parent` is the key's newest entry, or `none` where it has none",
            "read the key again, and write with its hash as `parent`",
        ),
        MemoryError::Heads(_) => (
            Code::CONFLICT,
            "memory.conflicts is `refuse` in nulld.toml: somebody says which one to go on from",
            "memory.conflicts lists them; write with the newest, which memory.read shows, as `parent`",
        ),
        MemoryError::Quota(_) => (
            Code::LIMIT,
            "entries are never removed, and each agent may own so many",
            "forget values that are not needed; an operator can give the agent another name",
        ),
        MemoryError::Busy(_) => {
            (Code::LIMIT, "writes wait in a bounded queue, each agent's in its own", "try again")
        }
        MemoryError::Target => return key_or_hash(),
        MemoryError::Cursor(_) => (
            Code::INVALID_PARAMS,
            "a cursor goes on for who got it, with the same method and memory, until ctxgraph starts again",
            "begin again without a cursor",
        ),
        MemoryError::Receipt(_) => (
            Code::FAILED,
            "a write happens only when its receipt is durable in the ledger",
            "an operator sees the cause with nullctl ledger verify",
        ),
        MemoryError::Store(_) | MemoryError::Closed => (
            Code::FAILED,
            "the node's memory does not work",
            "an operator sees the cause in the log of ctxgraph",
        ),
    };
    RpcError::new(code, error.to_string()).explained(rule, remedy)
}

/// Why what was sent cannot become an entry.
fn undrafted(error: &DraftError) -> RpcError {
    let (rule, remedy) = match error {
        DraftError::Owner => ("an operator names the agent whose memory is meant", "add `agent`"),
        DraftError::KeyLength(_) | DraftError::KeyControl => {
            ("a key is 1 to 256 bytes of UTF-8 without control characters", "use another key")
        }
        DraftError::ValueLength(_) => {
            ("a value is at most 32 KiB of canonical JSON", "split it over several keys")
        }
        DraftError::ValueNodes(_) => (
            "a value holds at most 2048 values: in memory each takes far more than its text",
            "split it over several keys, or write it as a string",
        ),
        DraftError::Value(_) => {
            ("a value is kept exactly, as RFC 8785 writes it", "write large integers as strings; nest less")
        }
        DraftError::TooMany(..) => ("labels and links of an entry are bounded", "use several entries"),
        DraftError::Word(..) => ("labels' names and links' types are plain words", "use another word"),
        DraftError::Reserved(..) => ("the node alone says who wrote what, and when", "use another word"),
        DraftError::LabelValue(_) => ("a label is short and plain", "put long text into the value"),
        DraftError::Ttl(_) => {
            ("a time to live is 1 second to 10 years", "leave `ttl_secs` out to keep the value")
        }
        DraftError::Vector(_) => ("a vector has a direction and a bounded length", "check what made it"),
    };
    RpcError::new(Code::INVALID_PARAMS, error.to_string()).explained(rule, remedy)
}

/// A result as JSON text.
fn text_of(result: impl Serialize) -> Answer {
    serde_json::to_string(&result).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()).into())
}

/// A result as JSON.
pub fn value_of(result: impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(result).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()).into())
}

/// A value as a call's result.
pub fn result(value: impl Serialize) -> Result<Outcome, RpcError> {
    value_of(value).map(Outcome::Result).map_err(|refusal| refusal.error)
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_of_the_control_protocol_are_denied_to_agents_and_recorded() {
        for method in abi::control::METHODS {
            let refusal = not_for_agents(method.name);
            assert_eq!(refusal.error.code, Code::DENIED);
            assert!(refusal.denied.is_some());
        }
        let unknown = not_for_agents("memory.fly");
        assert_eq!(unknown.error.code, Code::UNKNOWN_METHOD);
        assert!(unknown.denied.is_none());
    }
}
