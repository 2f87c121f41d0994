//! `net budget` and `secret`: what agents may spend, and what they use without having it.

use crate::cli::{Command, switch, valued};
use crate::run::spend;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "net budget",
        arguments: &["[AGENT]"],
        rest: "",
        about: "what agents may spend, have spent and have reserved",
        details: "The bounds stand in the manifest. What is reserved belongs to calls that are under way, or whose end nobody reported.",
        options: &[switch("reset", None, "forget what the agent has spent")],
        examples: &[
            ("nullctl net budget", "of all agents"),
            ("nullctl net budget researcher --reset", "let it begin anew"),
        ],
        run: spend::budget,
    },
    Command {
        path: "secret set",
        arguments: &["NAME"],
        rest: "",
        about: "store a secret that the broker adds to requests",
        details: "The value is read from standard input (a terminal does not show it) or from --file, never from the command line. One line end \
                  after it is dropped. The secret goes to --host alone, over TLS, and to agents that name it in credential_refs and may reach the host.",
        options: &[
            valued("host", "HOST", "the only host it is sent to"),
            valued("port", "N", "its port (443)"),
            valued("header", "NAME", "the header field that carries it (by --api: authorization, x-api-key)"),
            valued(
                "format",
                "TEXT",
                "the field's value, {} stands for the secret (by --api: 'Bearer {}', '{}')",
            ),
            valued("api", "plain|openai|anthropic", "how calls are metered (plain: calls and bytes only)"),
            valued("file", "PATH", "read the value from a file"),
        ],
        examples: &[
            ("nullctl secret set OPENAI_API_KEY --host api.openai.com --api openai --file key.txt", ""),
            ("nullctl secret set EXA_KEY --host api.exa.ai --header x-api-key --format {} < key.txt", ""),
        ],
        run: spend::set,
    },
    Command {
        path: "secret list",
        arguments: &[],
        rest: "",
        about: "secrets, where they go and who uses them, without their values",
        details: "",
        options: &[],
        examples: &[("nullctl secret list", "")],
        run: spend::list,
    },
    Command {
        path: "secret rm",
        arguments: &["NAME"],
        rest: "",
        about: "delete a secret, and cut what uses it",
        details: "",
        options: &[],
        examples: &[("nullctl secret rm EXA_KEY", "")],
        run: spend::remove,
    },
];
