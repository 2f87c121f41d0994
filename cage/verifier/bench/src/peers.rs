//! The same ten claims, in the language of each peer. Everything that a server would make ready once is made ready before the clock runs.

use crate::shape::{CASES, COMMANDS, Engine, NAMES, NEVER, READ, WRITE};
use crate::tools::timed;
use crate::{Figure, Size};
use biscuit_auth::builder::{AuthorizerBuilder, BlockBuilder, Fact, string};
use biscuit_auth::{AuthorizerLimits, Biscuit, KeyPair};
use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, PolicySet, Request};
use regorus::{CompiledPolicy, Engine as Rego, Value};
use std::hint::black_box;
use std::str::FromStr;
use std::time::Duration;

fn told(error: impl ToString) -> String {
    error.to_string()
}

/// Action, and how its target is compared: a prefix, a suffix or the whole text.
enum Claim {
    Below(&'static str, &'static str),
    Words(&'static str),
    Host(&'static str),
    Suffix(&'static str),
}

fn claims() -> Vec<Claim> {
    let files = READ
        .map(|one| Claim::Below("read", one))
        .into_iter()
        .chain(WRITE.map(|one| Claim::Below("write", one)));
    let names = NAMES.map(|one| one.strip_prefix('*').map_or(Claim::Host(one), Claim::Suffix));
    files.chain(COMMANDS.map(Claim::Words)).chain(names).collect()
}

struct Cedar {
    authorizer: Authorizer,
    policies: PolicySet,
    entities: Entities,
    requests: Vec<Request>,
}

impl Engine for Cedar {
    fn name(&self) -> &'static str {
        "decision, cedar-policy"
    }

    fn allows(&mut self, case: usize) -> bool {
        let response = self.authorizer.is_authorized(&self.requests[case], &self.policies, &self.entities);
        response.decision() == Decision::Allow
    }
}

pub fn cedar() -> Result<Box<dyn Engine>, String> {
    let permit = |action: &str, when: String| {
        format!("permit(principal, action == Action::\"{action}\", resource) when {{ {when} }};\n")
    };
    let policies: String = claims()
        .into_iter()
        .map(|claim| match claim {
            Claim::Below(action, prefix) => permit(action, format!("context.target like \"{prefix}*\"")),
            Claim::Words(words) => {
                permit("run", format!("context.target == \"{words}\" || context.target like \"{words} *\""))
            }
            Claim::Host(name) => permit("fetch", format!("context.target == \"{name}\"")),
            Claim::Suffix(suffix) => permit("fetch", format!("context.target like \"*{suffix}\"")),
        })
        .chain([format!(
            "forbid(principal, action, resource) when {{ context.target like \"*{NEVER}\" }};\n"
        )])
        .collect();
    let uid = |kind: &str, name: &str| EntityUid::from_str(&format!("{kind}::\"{name}\"")).map_err(told);
    let request = |case: &crate::shape::Case| {
        let target = serde_json::json!({ "target": case.target });
        let context = Context::from_json_value(target, None).map_err(told)?;
        let (principal, resource) = (uid("Agent", "researcher")?, uid("Box", "node")?);
        Request::new(principal, uid("Action", case.action)?, resource, context, None).map_err(told)
    };
    Ok(Box::new(Cedar {
        authorizer: Authorizer::new(),
        policies: PolicySet::from_str(&policies).map_err(told)?,
        entities: Entities::empty(),
        requests: CASES.iter().map(request).collect::<Result<_, String>>()?,
    }))
}

struct Regorus {
    policy: CompiledPolicy,
    inputs: Vec<Value>,
}

impl Engine for Regorus {
    fn name(&self) -> &'static str {
        "decision, regorus"
    }

    fn allows(&mut self, case: usize) -> bool {
        let answer = self.policy.eval_with_input(self.inputs[case].clone());
        answer.is_ok_and(|value| value == Value::from(true))
    }
}

pub fn rego() -> Result<Box<dyn Engine>, String> {
    let rule =
        |action: &str, when: String| format!("permitted if {{ input.action == \"{action}\"; {when} }}\n");
    let rules: String = claims()
        .into_iter()
        .map(|claim| match claim {
            Claim::Below(action, prefix) => rule(action, format!("startswith(input.target, \"{prefix}\")")),
            Claim::Words(words) => {
                rule("run", format!("input.target == \"{words}\""))
                    + &rule("run", format!("startswith(input.target, \"{words} \")"))
            }
            Claim::Host(name) => rule("fetch", format!("input.target == \"{name}\"")),
            Claim::Suffix(suffix) => rule("fetch", format!("endswith(input.target, \"{suffix}\")")),
        })
        .collect();
    let text = format!(
        "package nullbox\nimport rego.v1\ndefault allow := false\nallow if {{ not forbidden; permitted }}\n\
         forbidden if endswith(input.target, \"{NEVER}\")\n{rules}"
    );
    let mut engine = Rego::new();
    engine.add_policy("nullbox.rego".into(), text).map_err(told)?;
    let policy = engine.compile_with_entrypoint(&"data.nullbox.allow".into()).map_err(told)?;
    let input = |case: &crate::shape::Case| {
        let json = serde_json::json!({ "action": case.action, "target": case.target });
        Value::from_json_str(&json.to_string()).map_err(told)
    };
    Ok(Box::new(Regorus { policy, inputs: CASES.iter().map(input).collect::<Result<_, String>>()? }))
}

struct Biscuits {
    token: Biscuit,
    policies: AuthorizerBuilder,
    facts: Vec<[Fact; 2]>,
}

impl Engine for Biscuits {
    fn name(&self) -> &'static str {
        "decision, biscuit-auth (token checked before)"
    }

    fn allows(&mut self, case: usize) -> bool {
        let [action, target] = self.facts[case].clone();
        let builder = self.policies.clone().fact(action).and_then(|builder| builder.fact(target));
        let authorizer = builder.and_then(|builder| builder.build(&self.token));
        authorizer.is_ok_and(|mut authorizer| authorizer.authorize().is_ok())
    }
}

/// A token whose first block holds the ten claims.
fn biscuit_token(root: &KeyPair) -> Result<Biscuit, String> {
    let facts = claims().into_iter().map(|claim| match claim {
        Claim::Below(action, prefix) => format!("below(\"{action}\", \"{prefix}\");\n"),
        Claim::Words(words) => format!("words(\"{words}\", \"{words} \");\n"),
        Claim::Host(name) => format!("host(\"{name}\");\n"),
        Claim::Suffix(suffix) => format!("suffix(\"{suffix}\");\n"),
    });
    let text: String = facts.chain([format!("never(\"{NEVER}\");\n")]).collect();
    Biscuit::builder().code(text).map_err(told)?.build(root).map_err(told)
}

/// A token of as many blocks as ours, checked.
pub fn token(time: Duration) -> Result<(Figure, Size), String> {
    let root = KeyPair::new();
    let block = || BlockBuilder::new().code("check if action($a), $a != \"push\"").map_err(told);
    let token = biscuit_token(&root)?.append(block()?).map_err(told)?.append(block()?).map_err(told)?;
    let (bytes, key) = (token.to_vec().map_err(told)?, root.public());
    let what = "token of 3 blocks, biscuit-auth";
    let figure = timed(what, time, |_| {
        black_box(Biscuit::from(&bytes, key).is_ok());
    });
    Ok((figure, (what, bytes.len())))
}

pub fn biscuit() -> Result<Box<dyn Engine>, String> {
    let policies = r#"
        deny if target($t), never($n), $t.ends_with($n);
        allow if action($a), target($t), below($a, $p), $t.starts_with($p);
        allow if action("run"), target($t), words($w, $p), $t == $w || $t.starts_with($p);
        allow if action("fetch"), target($t), host($t);
        allow if action("fetch"), target($t), suffix($s), $t.ends_with($s);
    "#;
    // The default gives up after a millisecond, which on a busy machine is another answer.
    let limits = AuthorizerLimits { max_time: Duration::from_secs(1), ..AuthorizerLimits::default() };
    let fact = |case: &crate::shape::Case| {
        [
            Fact::new("action".into(), vec![string(case.action)]),
            Fact::new("target".into(), vec![string(case.target)]),
        ]
    };
    Ok(Box::new(Biscuits {
        token: biscuit_token(&KeyPair::new())?,
        policies: AuthorizerBuilder::new().code(policies).map_err(told)?.set_limits(limits),
        facts: CASES.iter().map(fact).collect(),
    }))
}
