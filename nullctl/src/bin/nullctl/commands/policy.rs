//! `policy`: what a manifest would decide. Not in the nullctl of the image: none of it asks a node.

use crate::cli::{Command, Opt, switch, valued};
use crate::run::policy;

const MANIFEST: Opt = valued("manifest", "FILE", "an AGENT.toml, or its [authority] and [tools]");

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "policy explain",
        arguments: &["TOOL", "[TARGET]"],
        rest: "",
        about: "what every rule of a manifest says of one call; status 1 if it is denied",
        details: "TARGET is a path, a command in quotes, or a page; a tool of the manifest's own ([tools] with a command) has none. The library that\ndecides on a node decides here. Status 0 also where a human would be asked.",
        options: &[
            MANIFEST,
            valued("seen", "LABELS", "what the agent has seen: private_data,untrusted_content"),
            valued("flows", "LABELS", "what the call takes by reference"),
            valued("written", "LABELS", "what went into files that tools wrote"),
            switch("declassified", None, "as if a human had declared the arguments fit to leave"),
        ],
        examples: &[
            ("nullctl policy explain --manifest AGENT.toml write /work/src/lib.rs", ""),
            (
                "nullctl policy explain --manifest AGENT.toml fetch https://docs.rs/serde --seen private_data",
                "",
            ),
        ],
        run: policy::explain,
    },
    Command {
        path: "policy decide",
        arguments: &[],
        rest: "",
        about: "decide calls, as JSON lines of call and situation",
        details: "Shapes: Call, Situation and Decision of abi/src/authority.rs; policy explain --json prints a call and a situation. A decision a line.",
        options: &[MANIFEST],
        examples: &[("nullctl policy decide --manifest AGENT.toml < calls.jsonl", "")],
        run: policy::decide,
    },
    Command {
        path: "policy replay",
        arguments: &[],
        rest: "",
        about: "decide a ledger's calls anew; status 1 where a manifest decides otherwise",
        details: "Reads what nullctl ledger query --json or ledger tail --json prints. Of a call the ledger has its target's first 512 bytes and what\nit was judged by; a longer target is passed over, and words of a command are parted at blanks.",
        options: &[MANIFEST],
        examples: &[(
            "nullctl policy replay --manifest AGENT.toml < calls.jsonl",
            "of nullctl ledger query --event tool_called --json > calls.jsonl",
        )],
        run: policy::replay,
    },
    Command {
        path: "policy diff",
        arguments: &["OLD", "NEW"],
        rest: "",
        about: "what a manifest's change newly permits (then status 1) and refuses",
        details: "Nothing that is newly permitted is left out. Where it cannot be told for certain whether patterns admit more, they are listed.",
        options: &[],
        examples: &[("nullctl policy diff AGENT.toml changed/AGENT.toml", "")],
        run: policy::diff,
    },
    Command {
        path: "policy observe",
        arguments: &[],
        rest: "",
        about: "the smallest [authority] that allows a ledger's calls, as TOML",
        details: "Reads what policy replay reads. What no such rules can allow stands in comments, and the status is 1.",
        options: &[],
        examples: &[(
            "nullctl policy observe < calls.jsonl",
            "of nullctl ledger query --event tool_called --json > calls.jsonl",
        )],
        run: policy::observe,
    },
];
