//! `memory export`, `import`, `verify`, `sync`: memory as a whole.

use crate::cli::{Command, valued};
use crate::run::bundle;

const AGENT: crate::cli::Opt = valued("agent", "NAME", "of this agent alone");
const FROM: crate::cli::Opt =
    valued("from", "ed25519:...", "trust what this key signed: a node's, as nullctl ledger key shows it");

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "memory export",
        arguments: &["FILE"],
        rest: "",
        about: "write memory into a file: a bundle, signed by the node",
        details: "FILE must not exist; it appears whole or not at all, readable by you alone. Writes go on meanwhile; the bundle has what\nwas there at its beginning. It is a backup: nullctl memory import brings it back, to this node or another.",
        options: &[AGENT, valued("prefix", "PREFIX", "of keys that begin so")],
        examples: &[
            ("nullctl memory export monday.bundle", "all agents"),
            ("nullctl memory export --agent researcher --prefix notes/ notes.bundle", ""),
        ],
        run: bundle::export,
    },
    Command {
        path: "memory import",
        arguments: &["FILE"],
        rest: "",
        about: "take in the entries of a bundle",
        details: "What is here stays; to import twice, or in another order, is the same. The signer must be this node, a key in [memory] trust\nof nulld.toml, or the one given with --from. Where two nodes wrote under one key both entries are newest: memory conflicts.",
        options: &[FROM],
        examples: &[("nullctl memory import monday.bundle", "")],
        run: bundle::import,
    },
    Command {
        path: "memory verify",
        arguments: &[],
        rest: "",
        about: "read every entry and check its hash; status 1 and the places if one is wrong",
        details: "",
        options: &[],
        examples: &[("nullctl memory verify", "")],
        run: bundle::verify,
    },
];

/// Not in the nullctl of the image (docs/decisions/0010).
#[cfg(feature = "sync")]
pub const SYNC: &[Command] = &[Command {
    path: "memory sync",
    arguments: &["s3://BUCKET/PREFIX"],
    rest: "",
    about: "make a node's memory and an S3 store equal",
    details: "Fetches the bundles that have something new, then sends what the store has not. Nothing in the store is changed or deleted.\nCredentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; they stay on this machine. A sync that\nwas cut is run again; several at once do no harm. Status 1 when a bundle was refused. See docs/memory-sync.md.",
    options: &[
        valued("endpoint", "URL", "an S3 store that is not AWS (AWS_ENDPOINT_URL)"),
        valued("region", "REGION", "its region (AWS_REGION, AWS_DEFAULT_REGION; us-east-1)"),
        FROM,
    ],
    examples: &[("nullctl memory sync s3://memories/fleet --endpoint https://s3.example.org", "")],
    run: crate::run::sync::run,
}];
