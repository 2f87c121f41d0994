//! The limits of tools, approvals and tasks.

/// Parameters of a tool's call as JSON text, in bytes. Longer: refused by the verifier, unread by the host.
pub const TOOL_PARAMS_BYTES_MAX: usize = 31 * 1024;
/// A line of the agent to its tools: the parameters and what stands around them.
pub const TOOL_LINE_BYTES_MAX: usize = TOOL_PARAMS_BYTES_MAX + 1024;
/// Calls of one agent that wait or run. One more waits in the verifier, unread.
pub const TOOL_CALLS_AT_ONCE_MAX: usize = 16;
/// Calls of one life that are decided at once, and in a second from then on. More wait: each costs a receipt.
pub const TOOL_CALLS_BURST_MAX: u32 = 1000;
pub const TOOL_CALLS_PER_SECOND_MAX: u32 = 20;
/// The result of a call, in bytes. What is more is cut, and that is said.
pub const TOOL_RESULT_BYTES_MAX: u64 = 256 * 1024;
/// Results that the verifier keeps for references, in bytes and in number; the oldest go first, and a reference to one that went is refused.
pub const TOOL_VALUES_BYTES_MAX: usize = 2 * 1024 * 1024;
pub const TOOL_VALUES_MAX: usize = 256;
/// Wall time of one run, unless its budget is less.
pub const TOOL_RUN_MS_MAX: u64 = 600_000;
/// Wall time of one fetch.
pub const FETCH_MS_MAX: u64 = 60_000;
/// Tools of its own in one manifest.
pub const TOOLS_PER_AGENT_MAX: usize = 64;
/// Paths that a glob answers, and lines that a grep answers.
pub const TOOL_MATCHES_MAX: usize = 1000;
/// Entries that one glob or grep looks at.
pub const TOOL_ENTRIES_MAX: usize = 100_000;
/// A file that grep looks into, in bytes. A larger one is passed over, and counted.
pub const TOOL_GREP_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Entries of each list in `[authority]`.
pub const RULES_LIST_MAX: usize = 64;
/// Rules met in one authority: profile, manifest, session and delegations. One more: refused.
pub const RULES_MEETS_MAX: usize = 8;
/// Agents in a row below one another.
pub const DELEGATION_DEPTH_MAX: u8 = 3;
/// A delegation's token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Questions of one life, and of the node, that wait for a human. One more: denied.
pub const APPROVALS_PER_AGENT_MAX: usize = 16;
pub const APPROVALS_MAX: usize = 256;
/// How long a question waits, and how long an approval that was given may be used.
pub const APPROVAL_WAIT_MS_MAX: u64 = 3_600_000;
pub const APPROVAL_USE_MS_MAX: u64 = 300_000;
/// What a question shows of a call, in bytes.
pub const APPROVAL_SHOWN_BYTES_MAX: usize = 24 * 1024;
/// Bytes a human declared fit to leave, in one life.
pub const DECLASSIFIED_MAX: usize = 64;

/// Tasks that are not over. One more: refused.
pub const TASKS_RUNNING_MAX: usize = 8;
/// Tasks that the node remembers; the oldest that is over goes first, when its result was exported or is older than a day.
pub const TASKS_MAX: usize = 256;
/// Candidates of one task.
pub const CANDIDATES_MAX: u8 = 8;
/// Claims of one candidate that are verified. One more: it has failed.
pub const ATTEMPTS_MAX: u8 = 16;
pub const ATTEMPTS_DEFAULT: u8 = 3;
/// Times that a candidate is begun again after its VM or the node went down.
pub const RECOVERIES_MAX: u8 = 3;
/// Tree of a task: bytes of its tar, files and directories.
pub const TREE_BYTES_MAX: u64 = 256 * 1024 * 1024;
pub const TREE_ENTRIES_MAX: usize = 65_536;
/// Names and links' targets of a tree, in bytes.
pub const TREE_TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A change set: files, and bytes of their new contents. More: refused.
pub const CHANGES_MAX: usize = 1024;
pub const CHANGES_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Patterns of protected paths in one task.
pub const PROTECT_MAX: usize = 64;
/// A goal, and an agent's note, in bytes.
pub const GOAL_BYTES_MAX: usize = 16 * 1024;
pub const NOTE_BYTES_MAX: usize = 4 * 1024;
/// Wall time of a task, of one verification, and where the operator says nothing.
pub const TASK_WALL_MS_MAX: u64 = 24 * 3_600_000;
pub const TASK_WALL_MS_DEFAULT: u64 = 3_600_000;
pub const VERIFY_WALL_MS_MAX: u64 = 3_600_000;
pub const VERIFY_WALL_MS_DEFAULT: u64 = 600_000;
/// Output of a verify command, in bytes. One that writes more has failed.
pub const VERIFY_OUTPUT_BYTES_MAX: u64 = 1024 * 1024;
/// Of it, what a failed candidate is told, in bytes: the end.
pub const VERIFY_TOLD_BYTES_MAX: usize = 16 * 1024;
/// A lease of a candidate ends when its life was silent for so long; a heartbeat comes three times as often.
pub const TASK_LEASE_MS: u64 = 60_000;
