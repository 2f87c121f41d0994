//! Keys, pinned nodes, manifests, and any method by its name.

use crate::cli::{Command, switch, valued};
use crate::run::local;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "key gen",
        arguments: &[],
        rest: "",
        about: "make a private key; prints what goes into operators.toml",
        details: "The file must not exist: a key is never replaced. Without --out: ~/.config/nullbox/operator.key.",
        options: &[valued("out", "FILE", "where the private key goes")],
        examples: &[("nullctl key gen", ""), ("nullctl key gen --out lab.key", "")],
        run: local::key_gen,
    },
    Command {
        path: "key show",
        arguments: &["[FILE]"],
        rest: "",
        about: "public key and fingerprint of a private key file",
        details: "",
        options: &[],
        examples: &[("nullctl key show", "")],
        run: local::key_show,
    },
    Command {
        path: "node trust",
        arguments: &["HOST[:PORT]"],
        rest: "",
        about: "pin a node's key, once; the fingerprint is on its console",
        details: "Connects, compares, and writes nodes.toml only if the node shows that key. The first node becomes the default.",
        options: &[
            valued("name", "NAME", "what --node shall call it (default: HOST)"),
            switch("default", None, "use it when no node is named"),
        ],
        examples: &[(
            "nullctl node trust 192.0.2.7 --pin SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU --name lab",
            "",
        )],
        run: local::node_trust,
    },
    Command {
        path: "node list",
        arguments: &[],
        rest: "",
        about: "known nodes",
        details: "",
        options: &[],
        examples: &[("nullctl node list", "")],
        run: local::node_list,
    },
    Command {
        path: "node forget",
        arguments: &["NAME"],
        rest: "",
        about: "forget a node",
        details: "",
        options: &[],
        examples: &[("nullctl node forget lab", "")],
        run: local::node_forget,
    },
    Command {
        path: "manifest check",
        arguments: &["FILE"],
        rest: "",
        about: "check an AGENT.toml on this machine, as a node would",
        details: "",
        options: &[],
        examples: &[("nullctl manifest check AGENT.toml", "")],
        run: local::manifest_check,
    },
    Command {
        path: "call",
        arguments: &["METHOD", "[PARAMS]"],
        rest: "",
        about: "any method of the control protocol; parameters and answer are JSON",
        details: "",
        options: &[],
        examples: &[
            ("nullctl call system.status", ""),
            ("nullctl call agent.status {\"name\":\"researcher\"}", ""),
        ],
        run: local::call,
    },
    Command {
        path: "version",
        arguments: &[],
        rest: "",
        about: "version of nullctl",
        details: "",
        options: &[],
        examples: &[("nullctl version", "")],
        run: local::version,
    },
];
