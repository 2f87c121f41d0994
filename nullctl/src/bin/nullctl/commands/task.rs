//! `task`: goals that are done when a fresh VM proved it.

use crate::cli::{Command, Opt, switch, valued};
use crate::run::task;

const OUT: Opt = valued("out", "FILE", "a file that does not exist yet; else standard output");
const REASON: Opt = valued("reason", "TEXT", "why, for those who read the ledger");

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "task run",
        arguments: &[],
        rest: "",
        about: "let an agent work on a tree until a command proves that it is done",
        details: "DIR in a git work tree: what git tracks or does not ignore, as it lies on the disk; elsewhere all but .git. BUNDLE: the tree of\nits HEAD. The repository's own hooks, filters and configuration count for nothing. The command of --verify is split into words as\na shell would, and no shell reads it: write \"sh -c '...'\" for one. It runs in a fresh VM, without a network, on the tree with\nthe agent's changes. Tests, build files and hooks it must not change: see docs/tasks.md. Of a directory --protect means all in it.",
        options: &[
            valued("agent", "NAME", "whose manifest the candidates work by"),
            valued("repo", "DIR|BUNDLE", "the tree: a directory or a git bundle"),
            valued("goal", "TEXT|@FILE", "what is to be done"),
            valued("verify", "COMMAND", "what must end with status 0"),
            valued(
                "protect",
                "PATTERN",
                "paths of the tree that the patch must not touch; any number of times",
            ),
            valued("permit", "PATTERN", "build files that it may change all the same; any number of times"),
            valued("candidates", "N", "so many cages at once; the first verified wins"),
            valued(
                "score",
                "COMMAND",
                "prints a number for a verified tree; the best of all candidates wins",
            ),
            valued("attempts", "N", "claims of one candidate that are verified (3)"),
            valued("verify-secs", "N", "wall time of one verification (600)"),
            valued(
                "budget",
                "K=V,...",
                "at most so much: calls, tokens, micro_dollars, wall_secs, cpu_secs, output_bytes",
            ),
            switch("public", None, "the tree holds nothing that is private"),
            switch("follow", Some('f'), "wait for the end; status 1 if it is not verified"),
        ],
        examples: &[
            (
                "nullctl task run --agent coder --repo . --goal @goal.md --verify ./check.sh --protect tests --follow",
                "",
            ),
            (
                "nullctl task run --agent coder --repo . --goal \"mend it\" --verify \"sh -c 'make && make test'\" --candidates 2",
                "",
            ),
        ],
        run: task::run,
    },
    Command {
        path: "task list",
        arguments: &[],
        rest: "",
        about: "tasks, newest first",
        details: "",
        options: &[],
        examples: &[("nullctl task list", "")],
        run: task::list,
    },
    Command {
        path: "task show",
        arguments: &["ID"],
        rest: "",
        about: "one task: state, candidates, what was spent, the verified patch",
        details: "What a candidate says of its work is advice; what was verified stands under `verified patch`.",
        options: &[],
        examples: &[("nullctl task show t12", "")],
        run: task::show,
    },
    Command {
        path: "task watch",
        arguments: &["ID"],
        rest: "",
        about: "follow a task to its end; status 1 if it is not verified",
        details: "",
        options: &[],
        examples: &[("nullctl task watch t12", "")],
        run: task::watch,
    },
    Command {
        path: "task cancel",
        arguments: &["ID"],
        rest: "",
        about: "end a task; its cages go",
        details: "",
        options: &[REASON],
        examples: &[("nullctl task cancel t12", "")],
        run: task::cancel,
    },
    Command {
        path: "task pause",
        arguments: &["ID"],
        rest: "",
        about: "let a task's cages stand still",
        details: "",
        options: &[REASON],
        examples: &[("nullctl task pause t12", "")],
        run: task::pause,
    },
    Command {
        path: "task resume",
        arguments: &["ID"],
        rest: "",
        about: "let a paused task go on, with more budget if asked",
        details: "",
        options: &[valued("budget", "K=V,...", "added to what it may spend; names as in task run")],
        examples: &[("nullctl task resume t12 --budget calls=200", "")],
        run: task::resume,
    },
    Command {
        path: "task remove",
        arguments: &["ID"],
        rest: "",
        about: "forget a task that is over, and its files",
        details: "",
        options: &[],
        examples: &[("nullctl task remove t12", "")],
        run: task::remove,
    },
    Command {
        path: "task export",
        arguments: &["ID"],
        rest: "",
        about: "a verified task's diff, patch, attestation or output",
        details: "Without an option: the diff, for reading and for git apply. The patch is the exact change, as records of docs/control-protocol.md.",
        options: &[
            switch("diff", None, "a unified diff"),
            switch("patch", None, "records with contents"),
            switch("attestation", None, "the DSSE envelope"),
            switch("output", None, "what the verify command wrote"),
            OUT,
            super::RAW,
        ],
        examples: &[
            ("nullctl task export t12 --diff", ""),
            ("nullctl task export t12 --patch --out t12.patch", ""),
        ],
        run: task::export,
    },
    Command {
        path: "task attest",
        arguments: &["ID"],
        rest: "",
        about: "the signed statement of what was verified",
        details: "",
        options: &[OUT, super::RAW],
        examples: &[("nullctl task attest t12 --out t12.attestation", "")],
        run: task::attest,
    },
    Command {
        path: "task verify-attestation",
        arguments: &["FILE"],
        rest: "",
        about: "check an attestation here, and that a tree is the one it speaks of",
        details: "Asks no node. --key is the ledger's public key, once had over a connection you trust: nullctl ledger key. With --repo: status 0\nonly if that directory (or the HEAD of that bundle) is exactly the tree that was verified.",
        options: &[valued("repo", "DIR|BUNDLE", "the tree that should be the verified one")],
        examples: &[(
            "nullctl task verify-attestation t12.attestation --key ed25519:ckfhc+6bcmBCRYQTIFA5IVXQpkLMhoKZhzzE2V2CYjk= --repo .",
            "",
        )],
        run: task::verify_attestation,
    },
    Command {
        path: "task apply",
        arguments: &["ID"],
        rest: "",
        about: "put a verified patch into a directory, whole or not at all",
        details: "The directory must be the tree the task began from, so that it is the verified one afterwards; both are checked by their digests.\nNothing is followed or replaced that is not part of the tree.",
        options: &[valued("into", "DIR", "the directory (.)")],
        examples: &[("nullctl task apply t12 --into ~/src/parser", "")],
        run: task::apply,
    },
    Command {
        path: "task integrate",
        arguments: &["ID"],
        rest: "",
        about: if cfg!(feature = "forge") {
            "once approved: a verified patch as a commit, a push, a pull request"
        } else {
            "once approved: a verified patch as a commit on a branch; push it"
        },
        details: "Waits for the approval. The branch's commit (or HEAD, for a new branch) must hold the tree the task began from; the new commit\nholds exactly the tree that was verified. The work tree and its index are not touched, no hook runs, and of the repository's\nconfiguration only the remote's address and your name count. A verified patch is given out once: if a later step\nfails, the message says what stands and how to go on by hand.",
        options: &[
            valued("commit", "BRANCH", "a branch that is not checked out; it is made if there is none"),
            valued("push", "REMOTE", "a remote of the repository, or an address"),
            valued("repo", "DIR", "the git work tree (.)"),
            valued("message", "TEXT", "the subject (the goal's first line)"),
            #[cfg(feature = "forge")]
            valued(
                "pr",
                "BASE",
                "once pushed, a pull request into this branch; NULLBOX_FORGE_TOKEN holds the token",
            ),
            #[cfg(feature = "forge")]
            valued("title", "TEXT", "the pull request's title (the subject)"),
            #[cfg(feature = "forge")]
            valued("forge", "URL", "the forge's API (of a remote at github.com: https://api.github.com)"),
        ],
        examples: &[
            ("nullctl task integrate t12 --commit fix-parser --push origin", ""),
            #[cfg(feature = "forge")]
            ("nullctl task integrate t12 --commit fix-parser --push origin --pr main", "on GitHub"),
            #[cfg(feature = "forge")]
            (
                "nullctl task integrate t12 --commit fix --push origin --pr main --forge https://git.example.org/api/v1",
                "Gitea, Forgejo",
            ),
        ],
        run: task::integrate,
    },
];
