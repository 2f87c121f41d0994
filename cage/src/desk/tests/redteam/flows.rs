//! An agent that follows a stranger's words and wants a secret out: by files, pages, results, memory, numbers of another life.

use super::*;
use std::collections::BTreeMap;

/// Whether something holds a secret, and whether it holds a stranger's words.
#[derive(Debug, Clone, Copy, Default)]
struct Taint {
    secret: bool,
    strange: bool,
}

const BOTH: Taint = Taint { secret: true, strange: true };

impl Taint {
    fn and(self, other: Taint) -> Taint {
        Taint { secret: self.secret || other.secret, strange: self.strange || other.strange }
    }
    fn is_both(self) -> bool {
        self.secret && self.strange
    }
}

fn all<'a>(taints: impl Iterator<Item = &'a Taint>) -> Taint {
    taints.fold(Taint::default(), |all, one| all.and(*one))
}

/// The truth of one life: what is in what.
struct Truth {
    seen: Taint,
    values: BTreeMap<u32, Taint>,
    files: BTreeMap<&'static str, Taint>,
}

const FILES: [&str; 5] =
    ["/work/src/lib.rs", "/work/notes", "/work/issues/1", "/data/customers", "/work/out"];

impl Truth {
    fn new() -> Truth {
        let mut files = BTreeMap::from(FILES.map(|path| (path, Taint::default())));
        files.insert("/work/issues/1", Taint { strange: true, secret: false });
        files.insert("/data/customers", Taint { secret: true, strange: false });
        Truth { seen: Taint::default(), values: BTreeMap::new(), files }
    }

    /// A number that stands for nothing of this life: a guest that lies has kept whatever it likes under it.
    fn of(&self, references: &[u32]) -> Taint {
        all(references.iter().map(|value| self.values.get(value).unwrap_or(&BOTH)))
    }

    /// A call happened. An escape: to somebody who is not trusted went what a stranger and a secret had both come to.
    fn happened(&mut self, call: u32, ask: &Ask) -> Result<(), String> {
        let by_agent = self.seen.and(self.of(&ask.references));
        let files = all(self.files.values());
        let is_trusted = ask.place.contains("api.example.org");
        let result = match ask.tool {
            "read" => self.files[ask.place],
            "grep" => {
                all(self.files.iter().filter(|(path, _)| path.starts_with("/work")).map(|(_, file)| file))
            }
            "write" => {
                let old = self.files[ask.place];
                self.files.insert(ask.place, old.and(by_agent));
                Taint::default()
            }
            "run" | "lint" => {
                let everything = files.and(by_agent);
                let work = self.files.iter_mut().filter(|(path, _)| path.starts_with("/work"));
                work.for_each(|(_, file)| *file = everything);
                everything
            }
            "publish" if by_agent.is_both() => return Err(format!("published: {}", ask.params)),
            "fetch" if by_agent.is_both() && !is_trusted => return Err(format!("left: {}", ask.params)),
            "fetch" => by_agent.and(Taint { strange: !is_trusted, secret: false }),
            _ => files.and(by_agent), // what publishes is a program, too
        };
        self.values.insert(call, result);
        if !ask.is_sealed {
            self.seen = self.seen.and(result);
        }
        Ok(())
    }
}

struct Ask {
    tool: &'static str,
    place: &'static str,
    references: Vec<u32>,
    is_sealed: bool,
    params: String,
}

fn asked(random: &mut Random, last: u32) -> Ask {
    // Now and then a number that is none of this life's, or not yet.
    let references: Vec<u32> =
        (0..random.below(3)).map(|_| 1 + random.below(last as usize + 2) as u32).collect();
    let values: Vec<Value> = references.iter().map(|value| json!({"value": value})).collect();
    let arguments = json!({"deep": [&values]});
    let (text, one) = (values.first().cloned(), references.iter().take(1).copied().collect());
    let (file, is_sealed) = (*random.pick(&FILES), random.one_in(3));
    let page = *random.pick(&["https://docs.rs/?q=", "https://docs.rs/?q=", "https://api.example.org/"]);
    let (tool, place, references, params) = match random.below(9) {
        0 | 1 => ("read", file, vec![], json!({"path": file, "sealed": is_sealed})),
        2 => {
            let to = *random.pick(&["/work/notes", "/work/src/lib.rs"]);
            let params = json!({"path": to, "content": text.unwrap_or(json!("x"))}).to_string();
            return Ask { tool: "write", place: to, references: one, is_sealed: false, params };
        }
        3 => ("grep", "", vec![], json!({"path": "/work", "text": "x", "sealed": is_sealed})),
        4 => {
            let command = json!(["cargo", "test", "x"]);
            ("run", "", one, json!({"command": command, "stdin": text, "sealed": is_sealed}))
        }
        5 => ("lint", "", references, json!({"arguments": arguments, "sealed": is_sealed})),
        6 => ("publish", "", references, json!({"arguments": arguments, "sealed": is_sealed})),
        _ => ("fetch", page, vec![], json!({"url": page, "sealed": is_sealed})),
    };
    Ask { tool, place, references, is_sealed, params: params.to_string() }
}

pub(super) fn play(random: &mut Random, breached: bool) -> Result<(), String> {
    let mut bench = life(&node(), "a.7", RULES);
    // A breach: somebody lets everything through whom nobody counts.
    let _person = Person::who(&bench.questions, breached);
    let (mut truth, mut happened) = (Truth::new(), Vec::new());
    for _ in 0..8 + random.below(10) {
        if random.one_in(12) {
            let strange = random.one_in(2);
            bench.desk.note(if strange { STRANGE } else { PRIVATE }).unwrap();
            truth.seen = truth.seen.and(Taint { strange, secret: !strange });
        }
        let (channel, ask) = (bench.next, asked(random, bench.next));
        let fetched = |bench: &Bench| bench.house.fetched.lock().unwrap().len();
        let before = fetched(&bench);
        if allowed(&mut bench, ask.tool, &ask.params) {
            truth.happened(channel, &ask).map_err(|how| format!("{how}, after {happened:?}"))?;
            happened.push((channel, ask.params));
        } else if fetched(&bench) > before {
            return Err(format!("refused, and fetched all the same: {}", ask.params));
        }
    }
    receipted(&bench, &happened)
}
