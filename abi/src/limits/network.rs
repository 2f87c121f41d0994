//! The limits of egress.

/// Names in one agent's `network.allow`.
pub const NETWORK_ALLOW_MAX: usize = 64;
/// The same list as cage sends it to egress, in bytes. More: the manifest is rejected, or its `net.attach` could exceed a line.
pub const NETWORK_ALLOW_BYTES_MAX: usize = 48 * 1024;
/// A label that a wildcard of `network.allow` admits, in bytes.
pub const WILDCARD_LABEL_BYTES_MAX: usize = 40;
/// Different names that one agent may use under its wildcards, in one life. One more: refused, and counted as a denial.
pub const WILDCARD_NAMES_MAX: usize = 64;
/// HTTP methods of one entry of `network.allow`, path prefixes of one entry, path prefixes of one manifest.
pub const GRANT_METHODS_MAX: usize = 16;
pub const GRANT_PATHS_MAX: usize = 32;
pub const GRANT_PATHS_TOTAL_MAX: usize = 64;
/// A path prefix, in bytes.
pub const GRANT_PATH_BYTES_MAX: usize = 256;
/// Ports of one entry of `network.allow`.
pub const GRANT_PORTS_MAX: usize = 16;
/// Private addresses of one entry of `network.allow`.
pub const GRANT_ADDRESSES_MAX: usize = 8;
/// Live changes of what one agent may reach (`net allow`, `net deny`). One more: refused.
pub const LIVE_CHANGES_PER_AGENT_MAX: usize = 64;
/// The same of all agents of a node.
pub const LIVE_CHANGES_MAX: usize = 1024;
/// The file that keeps them, in bytes. A change that does not fit is refused; a larger file is not read, and no network is made.
pub const LIVE_CHANGES_BYTES_MAX: u64 = 1024 * 1024;
/// How long a live grant may be asked for, in seconds.
pub const LIVE_GRANT_SECS_MAX: u64 = 30 * 86_400;
/// Records of ended connections kept in memory for `net.watch`; the oldest go first (the ledger has all).
pub const CONNECTIONS_KEPT_MAX: usize = 1024;
/// Connections, denials and changes kept for followers of `net.watch`. Who is further behind loses the oldest, and is told.
pub const WATCH_KEPT_MAX: usize = 2048;
/// Records of ended connections that wait for the ledger. At the bound new connections wait; none is dropped.
pub const RECORDS_WAITING_MAX: usize = 1024;
/// Entries that `net.suggest` names for one agent, and refusals that no entry admits.
pub const SUGGESTIONS_PER_AGENT_MAX: usize = 64;
/// Shortest pause between two restorations of the same packet rules.
pub const FIREWALL_RESTORE_PAUSE_MS: u64 = 100;

/// A secret's name, in bytes.
pub const SECRET_NAME_BYTES_MAX: usize = 64;
/// A secret's value, in bytes. Shorter ones could not be told from ordinary text in an answer.
pub const SECRET_BYTES_MIN: usize = 8;
pub const SECRET_BYTES_MAX: usize = 8 * 1024;
/// Secrets of a node.
pub const SECRETS_MAX: usize = 256;
/// Entries of `credential_refs`.
pub const CREDENTIALS_PER_AGENT_MAX: usize = 16;
/// The format of the field that carries a secret, in bytes.
pub const SECRET_FORMAT_BYTES_MAX: usize = 256;
/// Entries of the price table, a price in micro-dollars for a million tokens, and tokens of one call: their products fit 64 bits.
pub const PRICES_MAX: usize = 256;
pub const PRICE_MAX: u64 = 10_000_000_000;
pub const CALL_TOKENS_MAX: u64 = 100_000_000;
/// Certificates of `network.authorities`.
pub const AUTHORITIES_MAX: usize = 16;
/// Body of a request through the broker, in bytes. Larger: 413.
pub const BROKER_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bodies of metered calls that egress holds at a time, all agents', in bytes; one agent's are [`BROKER_BODY_BYTES_MAX`] together. Far
/// below egress' own memory: what is above waits.
pub const BROKER_BODIES_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Metered calls that are planned at a time. Planning holds a body twice, and what was found in it.
pub const BROKER_PLANS_MAX: usize = 2;
/// Head of an answer to the broker, in bytes. Larger: 502. A connection to the broker, and one of its to a host, hold no more of what
/// passes.
pub const BROKER_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests of one agent in the broker at a time. One more waits; [`PROXY_CONNECTIONS_PER_AGENT_MAX`] bounds those who wait.
pub const BROKER_CALLS_PER_AGENT_MAX: usize = 32;
/// How long a host may take from the request's last byte to its answer's head.
pub const BROKER_ANSWER_MS_MAX: u64 = 600_000;
/// How often the meters of a running agent are written, in milliseconds: what a crash can forget of bytes and seconds, never of calls,
/// tokens or money that are bounded.
pub const METERS_WRITTEN_MS: u64 = 5_000;

/// Open connections of one agent through the proxy. One more: reset, and counted as a denial.
pub const PROXY_CONNECTIONS_PER_AGENT_MAX: usize = 256;
/// What the kernel may hold of one connection of an agent in any case, in bytes, in both directions and both sockets together.
pub const PROXY_SOCKET_BYTES_MIN: usize = 64 * 1024;
/// What it may hold of all connections of an agent beyond that. A connection gets a quarter of what is left.
pub const PROXY_SOCKET_BYTES_SHARED: usize = 16 * 1024 * 1024;
/// What egress itself may hold of one connection, in bytes: its task, and what each direction has read and not yet sent.
pub const PROXY_CONNECTION_BYTES_MAX: usize = 8 * 1024 + 2 * PROXY_READ_BYTES_MAX;
/// Bytes of one read of the proxy.
pub const PROXY_READ_BYTES_MAX: usize = 16 * 1024;
/// Heads and hellos of all of an agent's connections that are not judged or sent yet, in bytes. More: refused.
pub const PROXY_UNDECIDED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What egress needs beside what agents make it hold, in MiB.
pub const EGRESS_OWN_MIB: usize = 256;
/// Its memory (image/config/nulld.toml), in MiB: no agents together can have it killed.
pub const EGRESS_MEMORY_MIB: usize = 6400;
/// Denials kept in memory for `net.denials`; the oldest go first (the ledger keeps all that are recorded).
pub const DENIALS_KEPT_MAX: usize = 1024;

/// Denials of one agent by one rule recorded in a second; more are counted, not kept.
pub const DENIALS_PER_AGENT_SECOND_MAX: u32 = 20;
/// Ledger notes of denials waiting to be written. More: dropped and counted.
pub const LEDGER_NOTES_WAITING_MAX: usize = 1024;
/// Receipts for connections waiting at a time, over all agents. More wait their turn.
pub const RECEIPTS_WAITING_MAX: usize = 8;
/// The same of one agent: its flood leaves turns to the others.
pub const RECEIPTS_WAITING_PER_AGENT_MAX: usize = RECEIPTS_WAITING_MAX / 2;
/// How long a connection waits for its receipt, its turn and room for its end included. Then: it fails.
pub const RECEIPT_MS_MAX: u64 = 30_000;
/// DNS questions of one agent in a second, over UDP and TCP. More: dropped, and counted as a denial.
pub const DNS_QUESTIONS_PER_SECOND_MAX: u32 = 200;
/// A DNS message from a guest or a resolver, in bytes. Longer: cut, so malformed.
pub const DNS_MESSAGE_BYTES_MAX: usize = 4096;
/// DNS connections over TCP of one agent. One more: closed.
pub const DNS_TCP_CONNECTIONS_PER_AGENT_MAX: usize = 8;
/// How long a DNS connection over TCP may be silent. Then: closed.
pub const DNS_TCP_IDLE_MS_MAX: u64 = 5_000;
/// How long a guest may keep a synthetic address, in seconds. It never changes while the VM runs.
pub const DNS_TTL_SECS: u32 = 60;
/// New flows of one VM in a second, counted by nftables. More: dropped, and logged as a denial.
pub const NET_FLOWS_PER_SECOND_MAX: u32 = 200;
/// Refused packets of one VM logged in a second. More: refused all the same, unlogged.
pub const NET_REFUSALS_LOGGED_PER_SECOND_MAX: u32 = 10;
/// First bytes of a connection that the proxy looks at, in bytes. A TLS hello or HTTP head that is longer: refused.
pub const PROXY_FIRST_BYTES_MAX: usize = 32 * 1024;
/// How long a TLS hello or HTTP head may take to be whole. Later: refused.
pub const PROXY_FIRST_BYTES_MS_MAX: u64 = 10_000;
/// Pipes of 64 KiB that hold bytes of one agent's connections at a time. One more: those bytes are copied.
pub const PROXY_PIPES_PER_AGENT_MAX: usize = 32;
/// Empty pipes kept for the next bytes. More: closed.
pub const PROXY_PIPES_SPARE_MAX: usize = 32;
/// How long the proxy waits for a client's first byte on ports other than 80 and 443 before it lets the server speak first.
pub const PROXY_SILENCE_MS: u64 = 300;
/// How long resolving a name may take, all resolvers together. Later: the connection fails.
pub const RESOLVE_MS_MAX: u64 = 6_000;
/// How long egress remembers what a resolver said, in seconds, whatever the answer's own time is.
pub const RESOLVED_SECS_MAX: u32 = 60;
/// How long egress remembers that a name has no address, or that no resolver said one.
pub const UNRESOLVED_SECS: u32 = 5;
/// Addresses of a name that the proxy tries.
pub const DIAL_ADDRESSES_MAX: usize = 3;
/// How long one dial may take.
pub const DIAL_MS_MAX: u64 = 10_000;
/// How long a dial may take before the next address is tried beside it (RFC 8305 section 5).
pub const DIAL_STAGGER_MS: u64 = 250;
/// How long a connection may carry nothing in either direction. Then: closed.
pub const PROXY_IDLE_MS_MAX: u64 = 900_000;
