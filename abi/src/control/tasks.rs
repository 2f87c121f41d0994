//! Shapes of `task.*`, `approval.*` and `exposure.*`, all cage's.

use serde::{Deserialize, Serialize};

use crate::authority::{Amounts, Decision, PathPattern};
use crate::exposure::Exposure;
use crate::identity::Role;
use crate::ids::{AgentName, Digest, Instance, Name};

pub use crate::task::{CandidateState, TaskState};

/// Parameters of `task.run`. After `ready` (a notification) the caller sends `tree_bytes` bytes: a tar of the tree, paths relative to its
/// root, files, directories and symbolic links only. Notifications `progress`; result [`TaskRef`], when the task is accepted and has its receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRun {
    /// Whose manifest the candidates work by.
    pub agent: AgentName,
    pub goal: String,
    /// Program and arguments; no shell reads them.
    pub verify: Vec<String>,
    /// Paths below the tree that the patch must not touch, as patterns that begin with `/work/`, beside those that never may be.
    #[serde(default)]
    pub protect: Vec<PathPattern>,
    /// Build-steering files that the patch may change all the same (docs/tasks.md).
    #[serde(default)]
    pub permit: Vec<PathPattern>,
    pub tree_bytes: u64,
    /// Where the tree comes from, in words (a commit, a directory's name). Stands in the attestation as what the operator said.
    #[serde(default)]
    pub source: Option<String>,
    /// Cages that work on it at the same time; the first verified wins, or with `score` the best of them.
    #[serde(default = "one")]
    pub candidates: u8,
    /// A command that prints one number for a verified tree, on its last line; the largest wins.
    #[serde(default)]
    pub score: Option<Vec<String>>,
    /// Claims of one candidate that are verified.
    #[serde(default)]
    pub attempts: Option<u8>,
    /// For the whole task; absent: the manifest's.
    #[serde(default)]
    pub budget: Amounts,
    /// Wall time of one verification.
    #[serde(default)]
    pub verify_ms: Option<u64>,
    /// The tree holds nothing that is private.
    #[serde(default)]
    pub is_public: bool,
}

const fn one() -> u8 {
    1
}

/// A task, by its id: `t` and a number that never comes twice on the node's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRef {
    pub id: Name,
}

/// Result of `task.list`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskList {
    pub tasks: Vec<TaskSummary>,
}

/// A line of `task.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSummary {
    pub id: Name,
    pub agent: AgentName,
    /// The first 120 characters.
    pub goal: String,
    pub state: TaskState,
    pub begun_unix_ms: u64,
    pub ended_unix_ms: Option<u64>,
    /// Why it is in this state, in words.
    pub reason: String,
}

/// Result of `task.status`; also each `task` notification of `task.watch`, whose result is the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskStatus {
    pub id: Name,
    pub agent: AgentName,
    pub goal: String,
    pub verify: Vec<String>,
    pub protect: Vec<PathPattern>,
    pub state: TaskState,
    pub reason: String,
    pub by: String,
    pub begun_unix_ms: u64,
    pub ended_unix_ms: Option<u64>,
    /// Digest of the base tree (docs/tasks.md).
    pub base: Digest,
    pub candidates: Vec<CandidateStatus>,
    pub spent: Amounts,
    pub budget: Amounts,
    /// Of the candidate that won.
    pub patch: Option<PatchSummary>,
    /// Counts up with each change; `task.watch` sends each state once.
    pub revision: u64,
}

/// One candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateStatus {
    pub number: u8,
    /// Its cage, while there is one: `agent logs` takes its name.
    pub instance: Option<Instance>,
    pub state: CandidateState,
    pub reason: String,
    pub attempts: u8,
    pub recoveries: u8,
    pub score: Option<i64>,
    /// What it said of its last claim: advice, never evidence.
    pub note: Option<String>,
}

/// What a verified patch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchSummary {
    pub candidate: u8,
    pub digest: Digest,
    /// The base with the patch.
    pub result: Digest,
    pub files: Vec<ChangedFile>,
    /// Place of the receipt of the verification.
    pub receipt: u64,
}

/// One path of a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedFile {
    /// Below the tree.
    pub path: String,
    /// `added`, `changed` or `removed`.
    pub change: String,
    pub bytes: u64,
}

/// Parameters of `task.cancel`, `task.pause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSteer {
    pub id: Name,
    #[serde(default)]
    pub reason: String,
}

/// Parameters of `task.resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskResume {
    pub id: Name,
    /// Added to its budget.
    #[serde(default)]
    pub more: Amounts,
}

/// Parameters of `task.export`; streams `output` (standard output: the bytes), result [`TaskExported`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskExport {
    pub id: Name,
    pub what: TaskPart,
}

/// What of a verified task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskPart {
    /// The change set: records of `abi::files`, with contents.
    Patch,
    /// A unified diff, as `git apply` takes it.
    Diff,
    /// The DSSE envelope.
    Attestation,
    /// What the verify command wrote.
    Output,
}

/// Result of `task.export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskExported {
    pub bytes: u64,
    pub sha256: Digest,
}

/// Parameters of `task.integrate`: somebody means to put the verified patch somewhere. Asks, waits for the answer, and on approval
/// gives the patch out once (streams `output` as `task.export` of the patch); result [`Integrated`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskIntegrate {
    pub id: Name,
    pub step: IntegrationStep,
}

/// Where a verified patch goes. What does it is nullctl, with the operator's own git.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IntegrationStep {
    Commit {
        branch: String,
    },
    Push {
        remote: String,
        branch: String,
    },
    /// A push, and a pull request from that branch into `base`; `forge`: host and port of the API that is asked for it.
    PullRequest {
        remote: String,
        branch: String,
        base: String,
        forge: String,
    },
}

/// Result of `task.integrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Integrated {
    pub receipt: u64,
    pub approval: Name,
    pub patch: Digest,
}

/// Parameters of `approval.list`; with `follow` each question that comes is a notification `approval` ([`Approval`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalList {
    #[serde(default)]
    pub follow: bool,
}

/// Result of `approval.list`: what waits, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approvals {
    pub approvals: Vec<Approval>,
}

/// A question: may exactly this call happen?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// `a` and a number that never comes twice.
    pub id: Name,
    /// Whose call; none: a step of an operator.
    pub instance: Option<Instance>,
    pub task: Option<Name>,
    pub tool: String,
    /// What will happen, to what: the call in words.
    pub what: String,
    /// The arguments, and for writes a diff, as much as fits [`crate::limits::APPROVAL_SHOWN_BYTES_MAX`].
    pub shown: String,
    /// The rest was cut from `shown`.
    pub is_cut: bool,
    /// Why it is asked, by which rule, with which exposure.
    pub decision: Decision,
    pub arguments: Digest,
    pub pinned: Digest,
    /// The least role that may decide it.
    pub role: Role,
    pub asked_unix_ms: u64,
    pub until_unix_ms: u64,
    /// The VM stands still until it is decided.
    pub is_frozen: bool,
}

/// Parameters of `approval.decide`. Result `{}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalDecide {
    pub id: Name,
    pub approve: bool,
    pub reason: String,
}

/// Parameters of `exposure.declassify`: calls of this life whose arguments are exactly these bytes are judged as if they carried nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declassify {
    pub agent: AgentName,
    /// SHA-256 of the arguments, as a question shows it.
    pub arguments: Digest,
    pub reason: String,
}

/// Parameters of `exposure.status`. Result: [`ExposureStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposureOf {
    pub agent: AgentName,
}

/// What a life has been exposed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposureStatus {
    pub instance: Instance,
    pub seen: Exposure,
    pub written: Exposure,
    /// Receipts of the calls that raised it, at most 16.
    pub raised_by: Vec<u64>,
    pub spent: Amounts,
    pub left: Amounts,
    /// What its authority is now, in force after all that tightened it.
    pub rules: Vec<crate::authority::Rules>,
}

/// Parameters of `agent.tighten`: the life's authority becomes its meet with these rules. Result `{}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tighten {
    pub agent: AgentName,
    pub rules: crate::authority::Rules,
}

/// Parameters of `net.fetch`, services only: cage asks for a page on an agent's behalf. Notifications `output`; result [`Fetched`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetFetch {
    pub instance: Instance,
    pub url: String,
    pub bytes_max: u64,
    pub wall_ms_max: u64,
}

/// Result of `net.fetch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetched {
    pub status: u16,
    /// `Content-Type`, or empty.
    pub media_type: String,
    pub bytes: u64,
    pub is_cut: bool,
    /// A credential was used: the answer is private.
    pub with_credential: bool,
    /// Where a redirect leads, as the host wrote it: at most 2048 bytes, else empty. It was not followed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
}

/// Parameters of `net.expose`, services only: what an agent has seen. It only grows; answered with [`NetExposed`] when no connection goes
/// by less. Who is connected to a name that is not trusted hears strangers there: with private data seen, only `trusted` names can be
/// reached, and other connections have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetExpose {
    pub instance: Instance,
    pub seen: Exposure,
}

/// Result of `net.expose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetExposed {
    /// With what connections of its own brought: untrusted content, once it was connected to a name that is not trusted.
    pub seen: Exposure,
    /// Connections that were cut.
    pub cut: u64,
}

/// Parameters of `ledger.attest`, services only: ctxgraph writes [`crate::ledger::Event::PatchVerified`], durable, and signs an in-toto
/// statement of it as DSSE, with the ledger's head in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attest {
    pub facts: PatchFacts,
}

/// What was verified, by whom and how. The predicate of the attestation, beside the ledger's head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchFacts {
    pub task: Name,
    pub agent: AgentName,
    /// The VM that ran the verify command; it never ran anything else.
    pub verifier: Instance,
    pub base: Digest,
    pub patch: Digest,
    pub result: Digest,
    pub command: Vec<String>,
    pub rootfs: Digest,
    pub kernel: Digest,
    /// The guest's first program.
    pub init: Digest,
    pub protect: Vec<PathPattern>,
    /// What the operator said the tree is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub output: Digest,
    pub wall_ms: u64,
}

/// Result of `ledger.attest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attested {
    /// Of the event.
    pub receipt: crate::ledger::Receipt,
    /// The DSSE envelope, JSON.
    pub envelope: String,
}
