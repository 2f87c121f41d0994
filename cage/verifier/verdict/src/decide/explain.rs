//! A ruling in words: which rule, why, and how it could be had.

use abi::authority::{Decision, Risk, Target, Verdict};
use alloc::format;
use alloc::string::{String, ToString};

use super::{Asks, Denial, Ruling};

/// The longest piece of an agent's text that an explanation repeats, in characters.
const SHOWN_CHARS_MAX: usize = 200;

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The target in words, with what an agent wrote in it escaped and cut.
fn target(target: &Target) -> String {
    match target {
        Target::Path(path) => format!("`{}`", shown(path)),
        Target::Command(command) => format!("`{}`", shown(&command.join(" "))),
        Target::Page { name, port, path } => format!("`{}`", shown(&format!("{name}:{port}{path}"))),
        Target::Agent(agent) => format!("`{agent}`"),
        Target::Arguments => String::from("its arguments"),
    }
}

impl Denial {
    /// The rule's name.
    pub fn rule(self) -> &'static str {
        match self {
            Denial::Expired { .. } => "expired",
            Denial::Tool => "tool",
            Denial::Level => "level",
            Denial::Never => "never",
            Denial::Path => "path",
            Denial::Command => "command",
            Denial::Name => "name",
            Denial::Agent => "agent",
            Denial::Depth => "depth",
            Denial::Budget(_) => "budget",
        }
    }
}

impl Asks {
    /// Each one that asks, with the rule's name.
    pub fn rules(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (Asks::LEVEL, "level"),
            (Asks::RISK, "risk"),
            (Asks::EXPOSURE, "exposure"),
            (Asks::STEP, "step"),
        ];
        all.into_iter().filter(move |(one, _)| self.has(*one)).map(|(_, rule)| rule)
    }
}

impl Ruling<'_> {
    /// The rule that decided: of several that ask, the first.
    pub fn rule(&self) -> &'static str {
        match self.denial {
            Some(denial) => denial.rule(),
            None => self.asks.rules().next().unwrap_or("granted"),
        }
    }

    /// The verdict with its reasons.
    pub fn explained(&self) -> Decision {
        let (why, remedy) = match self.denial {
            Some(denial) => self.refusal(denial),
            None if self.asks.is_none() => (
                format!("`{}` is allowed on {}", self.call.operation, target(&self.call.target)),
                String::new(),
            ),
            None => self.question(),
        };
        Decision {
            verdict: self.verdict(),
            rule: String::from(self.rule()),
            why,
            remedy,
            risk: self.risk,
            exposure: self.exposure,
            labels: self.labels,
        }
    }

    fn refusal(&self, denial: Denial) -> (String, String) {
        let (tool, operation) = (shown(&self.call.tool), self.call.operation);
        let target = target(&self.call.target);
        let (why, remedy) = match denial {
            Denial::Expired { until_unix_ms } => {
                (format!("the authority ended at {until_unix_ms} ms"), "a life begun anew has a new end")
            }
            Denial::Tool => (
                format!("there is no tool `{tool}` that does `{operation}`"),
                "name it in [tools] of the manifest with its operation and command",
            ),
            Denial::Level => (
                format!("`{operation}` is `never`"),
                "the manifest's [authority.operations] and its profile would have to allow it",
            ),
            Denial::Never => (
                format!("{target} is a path that no tool touches"),
                "leave it alone; `never` in the manifest or the profile names it",
            ),
            Denial::Path => (
                format!("{target} is in no list of paths for `{operation}`, or not a plain absolute path"),
                "use a path that `read` or `write` admits; a search needs the whole directory admitted",
            ),
            Denial::Command => (
                format!("no pattern in `commands` admits {target}"),
                "use a command that `commands` of the manifest and its profile admit",
            ),
            Denial::Name => (
                format!("no pattern in `names` admits {target}"),
                "use a name that `names` of the manifest and its profile admit",
            ),
            Denial::Agent => (
                format!("{target} is not among `agents`"),
                "use an agent that `agents` of the manifest names",
            ),
            Denial::Depth => (
                String::from("no agent may stand below this one"),
                "`depth` in the manifest says how many may",
            ),
            Denial::Budget(exhausted) => {
                (format!("the budget {exhausted}"), "ask for less, or have an operator add to the budget")
            }
        };
        (why, String::from(remedy))
    }

    fn question(&self) -> (String, String) {
        let (operation, mut why) = (self.call.operation, String::new());
        for rule in self.asks.rules() {
            let reason = match rule {
                "level" => format!("`{operation}` is asked for each time"),
                "risk" => format!("`{}` is a tool of {} risk", shown(&self.call.tool), risk(self.risk)),
                "exposure" => format!(
                    "what has seen private data, under the influence of strangers' text, would go to {}, which is not trusted",
                    target(&self.call.target)
                ),
                _ => String::from("a verified patch leaves the node"),
            };
            why.push_str(if why.is_empty() { "" } else { "; " });
            why.push_str(&reason);
        }
        (why, "nullctl approvals; nullctl approve ID --reason TEXT".to_string())
    }

    /// Whether a human has to be asked or was.
    pub fn is_question(&self) -> bool {
        self.verdict() == Verdict::Ask
    }
}

fn risk(risk: Risk) -> &'static str {
    match risk {
        Risk::Low => "low",
        Risk::Medium => "medium",
        Risk::High => "high",
        Risk::Critical => "critical",
    }
}
