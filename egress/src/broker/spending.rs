//! What a call may use, reserved before it leaves and settled by what its host reports.
//!
//! Must hold: a metered call's body is read whole and its cost known before a byte of it leaves; what nobody reported stays spent.

use abi::control::Spent;
use abi::limits;
use abi::network::Api;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Session;
use super::body::Outbound;
use super::call::{Fault, body_too_long};
use crate::budget::{self, BudgetError, Hold, Over, Plan, Unplanned, Usage};
use crate::denials::Rule;
use crate::splice::End;

/// A reservation and the reader of what was used of it. Dropped, all of it stays spent.
#[derive(Debug)]
pub struct Spending {
    plan: Plan,
    hold: Hold,
    usage: Option<Usage>,
    /// More than was reserved is known to have been used.
    over: bool,
}

impl Spending {
    /// The model that is asked for.
    pub fn model(&self) -> Option<String> {
        self.plan.model.clone()
    }

    /// The most the call can use.
    pub fn reserved(&self) -> Spent {
        self.hold.reserved()
    }

    /// The answer's head is there.
    pub fn answered(&mut self, status: u16, content_type: Option<&str>) {
        self.usage = Some(Usage::of(&self.plan, status, content_type));
    }

    /// The next bytes of the answer. An error: it must be cut.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let pushed = self.usage.as_mut().map_or(Ok(()), |usage| usage.push(bytes));
        self.over |= pushed.is_err();
        pushed
    }

    /// The call is over; `whole`: its answer ended as it should. Says whether the host reported what it used, and what counts.
    pub fn settle(self, whole: bool) -> (bool, Spent) {
        let reserved = self.hold.reserved();
        let Some(usage) = self.usage else { return (false, reserved) };
        if self.over {
            let used = larger(reserved, usage.seen());
            self.hold.settle(used);
            return (true, used);
        }
        match usage.finish(whole) {
            Some(used) => {
                self.hold.settle(used);
                (true, used)
            }
            None => (false, reserved),
        }
    }

    /// The call never left.
    pub fn cancel(self) {
        self.hold.cancel();
    }
}

/// The larger of each.
fn larger(a: Spent, b: Spent) -> Spent {
    Spent {
        input_tokens: a.input_tokens.max(b.input_tokens),
        cache_tokens: a.cache_tokens.max(b.cache_tokens),
        output_tokens: a.output_tokens.max(b.output_tokens),
        micro_dollars: a.micro_dollars.max(b.micro_dollars),
        ..a
    }
}

/// The body to send, and what the call has reserved.
pub async fn plan(
    session: &Session,
    parts: &Parts,
    incoming: Incoming,
    too_long: &Arc<AtomicBool>,
) -> Result<(Outbound, Spending), Fault> {
    let most = limits::BROKER_BODY_BYTES_MAX;
    let announced = incoming.size_hint();
    if announced.lower() > most as u64 {
        return Err(body_too_long(session));
    }
    let api = session.admission.secret.as_ref().map_or(Api::Plain, |secret| secret.api);
    if api == Api::Plain {
        let (spending, _) = reserve(session, parts, api, Vec::new()).await?;
        let body = match incoming.is_end_stream() {
            true => Outbound::Whole(None),
            false => Outbound::Streamed { incoming, left: most, too_long: too_long.clone() },
        };
        return Ok((body, spending));
    }
    // Asked for once, before the first byte: two bodies that wait for each other's room would wait for ever.
    let room = announced.exact().map_or(BODIES_BYTES_MAX, |length| u32::try_from(length).unwrap_or(u32::MAX));
    let _room = session.agent.desk.bodies.acquire_many(room).await.map_err(|_| Fault::Ends(End::Closed))?;
    let body = whole(session, incoming).await?;
    let (spending, body) = reserve(session, parts, api, body).await?;
    Ok((Outbound::Whole((!body.is_empty()).then(|| body.into())), spending))
}

/// Bytes of metered bodies that one agent may have here at a time.
pub const BODIES_BYTES_MAX: u32 = limits::BROKER_BODY_BYTES_MAX as u32;

async fn whole(session: &Session, mut incoming: Incoming) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        // On an error the guest is gone, or its bytes were wrong.
        let frame = frame.map_err(|_| Fault::Ends(End::Closed))?;
        let Ok(data) = frame.into_data() else { continue };
        if body.len() + data.len() > limits::BROKER_BODY_BYTES_MAX {
            return Err(body_too_long(session));
        }
        body.extend_from_slice(&data);
    }
    Ok(body)
}

/// Plans a call and reserves what it can use at most; that is on the disk when this returns.
async fn reserve(
    session: &Session,
    parts: &Parts,
    api: Api,
    body: Vec<u8>,
) -> Result<(Spending, Vec<u8>), Fault> {
    let agent = &session.agent;
    let (method, path) = (parts.method.to_string(), parts.uri.path().to_owned());
    let shown = format!("{method} {path} at {}", session.admission.name);
    let (meter, settings) = (agent.meter.clone(), agent.node.settings.now());
    let planned = move || {
        let bounded = meter.bounds_tokens();
        let mut plan = budget::plan(api, &method, &path, body, &settings.config.prices, bounded)?;
        let body = std::mem::take(&mut plan.body);
        let hold = meter.reserve(plan.wanted)?;
        Ok::<_, Unspendable>((Spending { plan, hold, usage: None, over: false }, body))
    };
    let refused = |what: String, rule: Rule, remedy: String| Fault::Refused {
        status: StatusCode::FORBIDDEN,
        what: format!("{shown}: {what}"),
        rule,
        remedy,
    };
    match agent.in_turn(planned).await {
        Ok(Ok(reserved)) => Ok(reserved),
        Ok(Err(Unspendable::Unplanned(unplanned))) => {
            Err(refused(unplanned.because, unplanned.rule, unplanned.remedy))
        }
        Ok(Err(Unspendable::Budget(BudgetError::Exhausted(exhausted)))) => {
            Err(refused(exhausted.what(), "budget", exhausted.remedy()))
        }
        Ok(Err(Unspendable::Budget(unkept))) => Err(Fault::Failed(unkept.to_string())),
        Err(error) => Err(Fault::Failed(error)),
    }
}

/// Why nothing was reserved.
enum Unspendable {
    Unplanned(Unplanned),
    Budget(BudgetError),
}

impl From<Unplanned> for Unspendable {
    fn from(unplanned: Unplanned) -> Unspendable {
        Unspendable::Unplanned(unplanned)
    }
}

impl From<BudgetError> for Unspendable {
    fn from(error: BudgetError) -> Unspendable {
        Unspendable::Budget(error)
    }
}
