//! How tasks and their candidates stand, as `verdict`, cage and the control protocol speak of it.

use serde::{Deserialize, Serialize};

/// How a task stands. The table of its transitions is `verdict::step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Accepted; no candidate works yet.
    Accepted,
    /// A candidate works or is verified.
    Running,
    /// Nothing goes on until somebody resumes it: a budget is spent, or an operator said so.
    Paused,
    /// A fresh VM ran the verify command on the tree with the patch, and it ended well.
    Verified,
    /// The verified patch went where an operator approved.
    Integrated,
    Failed,
    Cancelled,
}

/// How a candidate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateState {
    Waiting,
    Starting,
    Working,
    /// A call of its waits for a human.
    Asking,
    Paused,
    /// It said that it is done; its change set is read and checked.
    Claimed,
    Verifying,
    Verified,
    /// Its attempts are used up, its claim was not legal, or it ended without one.
    Failed,
    Cancelled,
}
