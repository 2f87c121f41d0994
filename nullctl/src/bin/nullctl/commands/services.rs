//! `ledger`: what happened, and what proves it.

use super::{AGENT, FOLLOW, SINCE};
use crate::cli::{Command, Opt, switch, valued};
use crate::run::{ledger, proofs};

const OUT: Opt = Opt { short: Some('o'), ..valued("out", "FILE", "write it there") };
const FORCE: Opt = switch("force", None, "replace the file if there is one");

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "ledger tail",
        arguments: &[],
        rest: "",
        about: "newest events of the node's ledger",
        details: "",
        options: &[FOLLOW, valued("limit", "N", "begin with the newest N (100)")],
        examples: &[("nullctl ledger tail --limit 20 -f", "")],
        run: ledger::tail,
    },
    Command {
        path: "ledger query",
        arguments: &[],
        rest: "",
        about: "events of an agent, a kind, a service, a time; oldest first",
        details: "Reads the whole ledger unless --limit or --until ends it; what it asks for must all be met.",
        options: &[
            AGENT,
            valued("event", "KIND", "of this kind (net_connected, ..); may be repeated"),
            valued("source", "SERVICE", "written by this service (egress, ..)"),
            SINCE,
            valued("until", "TIME", "up to then"),
            valued("limit", "N", "at most N events"),
        ],
        examples: &[("nullctl ledger query --agent researcher --event net_connected --since 2h", "")],
        run: ledger::query,
    },
    Command {
        path: "ledger verify",
        arguments: &[],
        rest: "",
        about: "check the ledger, an export or a proof; status 1 and the place if wrong",
        details: "Without --export and --proof the node checks its ledger. With one of them no node is asked: the file and the ledger's public key \
                  (nullctl ledger key, once, over a connection you trust) are all that is needed. Keep checkpoints: only an older one shows that a \
                  ledger was set back or written anew.",
        options: &[
            valued("export", "FILE", "check an export, on this machine"),
            valued("proof", "FILE", "check a proof, on this machine"),
            valued("key", "KEY", "the ledger's public key, ed25519:... (for a node: private key FILE)"),
            valued("since", "CHECKPOINT", "file of an older checkpoint: it must go on from that"),
        ],
        examples: &[
            ("nullctl ledger verify", ""),
            (
                "nullctl ledger verify --export ledger.export --key ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
                "",
            ),
        ],
        run: ledger::verify,
    },
    Command {
        path: "ledger export",
        arguments: &["FILE"],
        rest: "",
        about: "the whole ledger with a signed checkpoint, for ledger verify",
        details: "",
        options: &[FORCE],
        examples: &[("nullctl ledger export ledger.export", "")],
        run: proofs::export,
    },
    Command {
        path: "ledger prove",
        arguments: &["[SEQ]"],
        rest: "",
        about: "proof that it has an event, or goes on from an older checkpoint",
        details: "The proof is a JSON object; nullctl ledger verify --proof checks it, and its COSE receipt (RFC 9942) is for verifiers of others. \
                  With --export no node is asked.",
        options: &[
            valued("since", "CHECKPOINT", "instead of SEQ: it goes on from this older checkpoint (a file)"),
            valued("export", "FILE", "from an export, on this machine"),
            valued("key", "KEY", "with --export: the ledger's public key (for a node: private key FILE)"),
            OUT,
            FORCE,
        ],
        examples: &[
            ("nullctl ledger prove 42 -o event-42.json", ""),
            ("nullctl ledger prove --since old.checkpoint", ""),
        ],
        run: proofs::prove,
    },
    Command {
        path: "ledger checkpoint",
        arguments: &[],
        rest: "",
        about: "what the ledger is now, signed: keep it elsewhere",
        details: "",
        options: &[OUT, FORCE],
        examples: &[("nullctl ledger checkpoint -o lab-today.checkpoint", "")],
        run: proofs::checkpoint,
    },
    Command {
        path: "ledger key",
        arguments: &[],
        rest: "",
        about: "public key and fingerprint of the ledger",
        details: "",
        options: &[switch("pem", None, "as PEM, for other tools")],
        examples: &[("nullctl ledger key", "")],
        run: proofs::key,
    },
];
