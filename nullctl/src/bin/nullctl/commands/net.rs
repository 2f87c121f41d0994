//! `net`: what agents may reach, what was refused to them, and what operators change of it.

use super::{AGENT, FOLLOW};
use crate::cli::{Command, Opt, switch, valued};
use crate::run::net::{self, live};

const GRANT: [Opt; 5] = [
    valued("for", "TIME", "ends after so long (90s, 10m, 2h, 1d); else with the agent's network"),
    valued("method", "METHOD", "this HTTP method only; may be repeated"),
    valued("path", "PREFIX", "below this path only, by whole segments; may be repeated"),
    valued("address", "ADDRESS", "this private address may be dialled for the name; may be repeated"),
    switch("intercept", None, "end its TLS with the agent's own authority, and read each request"),
];

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "net grants",
        arguments: &[],
        rest: "",
        about: "names each running agent may reach, and its traffic",
        details: "HOW says what narrows or widens an entry, and whether it is live: granted while the agent runs (net allow).",
        options: &[],
        examples: &[("nullctl net grants", "")],
        run: net::grants,
    },
    Command {
        path: "net denials",
        arguments: &[],
        rest: "",
        about: "what was refused, by which rule, and how to grant it",
        details: "",
        options: &[AGENT, FOLLOW],
        examples: &[
            ("nullctl net denials", "of all agents"),
            ("nullctl net denials --agent researcher -f", "watch one"),
        ],
        run: net::denials,
    },
    Command {
        path: "net allow",
        arguments: &["AGENT", "NAME[:PORT]"],
        rest: "",
        about: "a live grant for a running agent; lifts a denial of the same name",
        details: "It stands beside the manifest's grants and is in force when the command returns. NAME may be *.SUFFIX: one label more.\nWithout a port it is 80 and 443. With methods or paths the host is reached over the broker, or intercepted.\nThe same again changes nothing; with --for its time begins anew.",
        options: &GRANT,
        examples: &[
            ("nullctl net allow researcher api.exa.ai --for 10m", ""),
            ("nullctl net allow researcher git.example.org:22", "until its network ends"),
            (
                "nullctl net allow researcher api.test --method GET --path /v1/search",
                "requests that are read",
            ),
        ],
        run: live::allow,
    },
    Command {
        path: "net deny",
        arguments: &["AGENT", "NAME"],
        rest: "",
        about: "refuse a name to an agent from now on, and cut its connections",
        details: "It beats every grant, in all lives of the agent, until net allow of the same name. The agent need not run.",
        options: &[],
        examples: &[("nullctl net deny researcher pastebin.example", "")],
        run: live::deny,
    },
    Command {
        path: "net revoke",
        arguments: &["AGENT", "NAME"],
        rest: "",
        about: "take a name from a running agent, and cut its connections",
        details: "Live grants of it end, and the manifest's do not count until the agent's network ends. Its next life has the manifest's again.",
        options: &[],
        examples: &[("nullctl net revoke researcher api.exa.ai", "")],
        run: live::revoke,
    },
    Command {
        path: "net policy",
        arguments: &[],
        rest: "",
        about: "live grants and denials that hold, with who made them",
        details: "",
        options: &[AGENT],
        examples: &[("nullctl net policy --agent researcher", "")],
        run: live::policy,
    },
    Command {
        path: "net explain",
        arguments: &["AGENT", "NAME[:PORT]"],
        rest: "",
        about: "what would happen to a connection, by which rule; status 1 if refused",
        details: "Decided by the code that decides connections. Without a port it is 443.",
        options: &[],
        examples: &[("nullctl net explain researcher api.exa.ai:443", "")],
        run: live::explain,
    },
    Command {
        path: "net suggest",
        arguments: &["[AGENT]"],
        rest: "",
        about: "entries for network.allow that would admit what was refused",
        details: "To observe first: let the agent run with one entry (without any it has no network), then paste what is printed into its list.\nA name that was only asked for by DNS tells no port: its entry stands for 80 and 443. Ports are known once the name is granted.",
        options: &[],
        examples: &[("nullctl net suggest researcher", "")],
        run: live::suggest,
    },
    Command {
        path: "net watch",
        arguments: &["[AGENT]"],
        rest: "",
        about: "connections as they end, denials and changes as they happen",
        details: "Begins with the newest ended connections, and goes on until it is stopped.",
        options: &[],
        examples: &[("nullctl net watch researcher", ""), ("nullctl net watch --json", "one object a line")],
        run: live::watch,
    },
    Command {
        path: "net forget",
        arguments: &[],
        rest: "",
        about: "give up live grants and denials that the node cannot read any more",
        details: "Only then: while they cannot be read no agent gets a network. The broken file stays on the state volume as policy.json.bad.",
        options: &[],
        examples: &[("nullctl net forget", "")],
        run: live::forget,
    },
];
