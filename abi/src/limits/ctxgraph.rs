//! The limits of ctxgraph: memory, and the ledger.

/// A memory key, in bytes.
pub const MEMORY_KEY_BYTES_MAX: usize = 256;
/// A memory value as canonical JSON, in bytes.
pub const MEMORY_VALUE_BYTES_MAX: usize = 32 * 1024;
/// Entries in one answer; more comes with the cursor.
pub const MEMORY_PAGE_MAX: usize = 256;
/// Entries one agent may own. One more: refused with the quota's name.
pub const MEMORY_ENTRIES_PER_AGENT_MAX: u64 = 1_000_000;
/// Bytes of keys and values one agent may own. More: refused with the quota's name.
pub const MEMORY_BYTES_PER_AGENT_MAX: u64 = 256 * 1024 * 1024;
/// How deep arrays and objects of a memory value may nest. Deeper: refused.
pub const MEMORY_VALUE_DEPTH_MAX: usize = 64;
/// Values in one memory value, itself and all that it holds: in memory each takes far more than its text. More: refused.
pub const MEMORY_VALUE_NODES_MAX: usize = 2048;
/// Values in one line of an agent. More: refused.
pub const MEMORY_LINE_NODES_MAX: usize = 8192;
/// Reads, and writes, of agents that are served at a time; an agent has one read. The rest wait their turn.
pub const MEMORY_READS_MAX: usize = 4;
pub const MEMORY_WRITES_MAX: usize = 16;
/// Writes that share one transaction and one receipt batch; the rest wait for the next.
pub const MEMORY_WRITE_BATCH_MAX: usize = 64;
/// Writes waiting for the writer. One more: refused, try again, unless its author has none there.
pub const MEMORY_WRITES_WAITING_MAX: usize = 1024;
/// Of those, writes of one agent or operator; they are taken in turn. One more: refused, try again.
pub const MEMORY_WRITES_WAITING_PER_AUTHOR_MAX: usize = 128;
/// Largest position of an entry in its agent's memory; an import beyond it is refused, or nothing could follow it.
pub const MEMORY_SEQ_MAX: u64 = 1 << 48;
/// Entries that one query looks at. Then: the page ends there with a cursor, however few it has.
pub const MEMORY_QUERY_LOOKED_MAX: usize = 4096;
/// Entries that retention, or a caller who forgets a key, looks at each time.
pub const MEMORY_RETENTION_LOOKED_MAX: usize = 10_000;
/// How long an agent's memory connection may be silent. Later: closed, the agent connects again.
pub const MEMORY_IDLE_MS_MAX: u64 = 60 * 60 * 1000;
/// How long an agent may take to read its answer. Later: closed.
pub const MEMORY_ANSWER_MS_MAX: u64 = 10_000;
/// The attestation of a verified patch, in bytes: an event's facts, a checkpoint, base64. Longer: refused unread.
pub const ATTESTATION_BYTES_MAX: usize = 64 * 1024;
/// How long ctxgraph waits for cage to note a rise of an agent's exposure. Later: the agent is not shown what raises it.
pub const MEMORY_NOTED_MS_MAX: u64 = 10_000;
/// Refusals of one agent that the ledger records in a minute; more are counted and told with the next one recorded.
pub const MEMORY_DENIALS_PER_MINUTE_MAX: u32 = 30;
/// Connections one agent may hold to its memory. One more: answered with an error and closed.
pub const MEMORY_CONNECTIONS_PER_AGENT_MAX: usize = 8;
/// Labels of one entry that its writer sets. More: refused.
pub const MEMORY_LABELS_MAX: usize = 16;
/// A label's name, and a link's type, in bytes: a-z 0-9 . _ -.
pub const MEMORY_WORD_BYTES_MAX: usize = 64;
/// A label's value, in bytes, without control characters.
pub const MEMORY_LABEL_VALUE_BYTES_MAX: usize = 256;
/// Links of one entry. More: refused.
pub const MEMORY_LINKS_MAX: usize = 32;
/// Numbers in a vector. More: refused.
pub const MEMORY_VECTOR_DIMENSIONS_MAX: usize = 2048;
/// Links that a traversal follows in a row.
pub const MEMORY_TRAVERSE_DEPTH_MAX: u32 = 8;
/// Links that a traversal looks at, with those it may not follow. Then: truncated.
pub const MEMORY_TRAVERSE_LINKS_MAX: usize = 4096;
/// Words of a search. More: refused.
pub const MEMORY_SEARCH_WORDS_MAX: usize = 16;
/// Characters of a word that count in a search; what follows in the same word is not looked at.
pub const MEMORY_SEARCH_WORD_CHARS_MAX: usize = 64;
/// Characters before the `*` of a search. Fewer: refused.
pub const MEMORY_SEARCH_PREFIX_CHARS_MIN: usize = 2;
/// Entries with the words that one search looks at, the newest first. More: `truncated`.
pub const MEMORY_SEARCH_ROWS_MAX: usize = 16_384;
/// Bytes of values that one search reads. Then: `truncated`.
pub const MEMORY_SEARCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Vectors that one `memory.nearest` compares. More under the prefix: refused, with the number.
pub const MEMORY_NEAREST_VECTORS_MAX: usize = 100_000;
/// Watchers of one agent's connections, and of all operators. One more: refused.
pub const MEMORY_WATCHERS_MAX: usize = 16;
/// Entries that wait for a watcher. One more: it is told `dropped` and closed; no writer waits for it.
pub const MEMORY_WATCH_QUEUE_MAX: usize = 256;
/// Longest life of a value with `ttl_secs`: ten years.
pub const MEMORY_TTL_SECS_MAX: u64 = 10 * 366 * 24 * 60 * 60;
/// How often values whose time is over are forgotten.
pub const MEMORY_FORGET_EVERY_MS: u64 = 10_000;
/// Bytes of memory.db's write-ahead log beyond which the writer empties it, and how long it waits then for each reader that stands on it.
pub const MEMORY_LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
pub const MEMORY_LOG_WAIT_MS_MAX: u64 = 100;
/// Bytes of a bundle or an export in one notification.
pub const MEMORY_CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Hashes in one answer of `memory.hashes`, and in one `memory.export`.
pub const MEMORY_HASHES_MAX: usize = 384;
/// One line of a bundle, in bytes. Longer: refused.
pub const MEMORY_BUNDLE_LINE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a bundle that is imported. More: refused; export agent by agent.
pub const MEMORY_BUNDLE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Entries of a bundle that are stored in one transaction; a bundle of more is stored in several, in order.
pub const MEMORY_IMPORT_ENTRIES_MAX: usize = 4096;
/// Exports under way. One more: refused, try again.
pub const MEMORY_EXPORTS_MAX: usize = 2;
/// How long a caller may not take what is exported, or not send what is imported. Then: closed.
pub const MEMORY_TRANSFER_STALL_MS_MAX: u64 = 60_000;
/// How long an export may take: the write-ahead log grows meanwhile. Then: closed.
pub const MEMORY_EXPORT_MS_MAX: u64 = 60 * 60 * 1000;
/// Entries of a bundle that were forgotten and are stored in one transaction: their receipts fit one append.
pub const MEMORY_IMPORT_FORGOTTEN_MAX: usize = 256;
/// Heads that one write supersedes; the others stay until the next.
pub const MEMORY_HEADS_SUPERSEDED_MAX: usize = 64;
/// Heads of a key that an entry of a bundle may supersede.
pub const MEMORY_HEADS_MAX: usize = 256;
/// Newest entries that are read at start, before the service says it is ready.
pub const MEMORY_START_CHECK_MAX: u64 = 1024;
/// Entries that the background check reads, and how long it rests then.
pub const MEMORY_SCRUB_ENTRIES: u64 = 64;
pub const MEMORY_SCRUB_REST_MS: u64 = 200;
/// From the end of a background check of all entries to the next.
pub const MEMORY_SCRUB_EVERY_MS: u64 = 6 * 60 * 60 * 1000;
/// Places of damage that one answer names.
pub const MEMORY_DAMAGES_MAX: usize = 64;
/// Scopes in the four lists of a manifest's memory grants together. More: refused.
pub const MEMORY_SCOPES_MAX: usize = 64;
/// Nodes whose bundles nulld.toml trusts.
pub const MEMORY_TRUST_MAX: usize = 64;
/// Retention by age, in days: a hundred years.
pub const MEMORY_KEEP_DAYS_MAX: u32 = 36_525;
/// The same four lists as JSON. More: refused.
pub const MEMORY_SCOPES_BYTES_MAX: usize = 14 * 1024;
/// What other manifests let one agent have, as JSON: `read` and `write` each. The rest is not shared, and cage's log says so.
pub const MEMORY_SHARES_BYTES_MAX: usize = 20 * 1024;
/// A ledger segment, in bytes; the batch that passes it is its last.
pub const LEDGER_SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bytes of the ledger that one `ledger.query` looks at; it goes on with `next_seq`.
pub const LEDGER_QUERY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// One ledger event as JSON, in bytes. Longer: refused, and with it the effect.
pub const LEDGER_EVENT_BYTES_MAX: usize = 16 * 1024;
/// How long an event that nobody waits for may stay unsynced.
pub const LEDGER_SYNC_DELAY_MS_MAX: u64 = 100;
/// Bytes of frames not yet synced. At the bound appenders wait for the disk.
pub const LEDGER_UNSYNCED_BYTES_MAX: usize = 1024 * 1024;
/// Followers of the ledger at a time. One more: refused.
pub const LEDGER_FOLLOWERS_MAX: usize = 16;
/// How long a follower may leave its socket full. Later: told `dropped` and closed; the ledger never waits for it.
pub const LEDGER_FOLLOWER_STALL_MS_MAX: u64 = 10_000;
/// Events in one answer of `ledger.tail`; fewer where they would not fit a line.
pub const LEDGER_PAGE_MAX: usize = 1000;
/// A checkpoint, in bytes. Longer: refused by whoever checks it.
pub const LEDGER_NOTE_BYTES_MAX: usize = 8 * 1024;
/// A COSE receipt, in bytes. Longer: refused by whoever checks it.
pub const LEDGER_RECEIPT_BYTES_MAX: usize = 8 * 1024;
/// The first line of an export, in bytes. Longer: refused by whoever checks it.
pub const LEDGER_EXPORT_HEAD_BYTES_MAX: usize = 2 * LEDGER_NOTE_BYTES_MAX;
/// Proofs, exports and checks under way at a time, each of which reads the ledger. One more: refused.
pub const LEDGER_READERS_MAX: usize = 4;
/// Bytes that the reader of an export takes in a second on average, after the first [`LEDGER_EXPORT_GRACE_S`]. Fewer: its connection is closed, so that
/// no reader keeps its place for ever.
pub const LEDGER_EXPORT_BYTES_PER_S_MIN: u64 = 64 * 1024;
/// Seconds of an export that do not count.
pub const LEDGER_EXPORT_GRACE_S: u64 = 60;
