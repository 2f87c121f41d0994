//! What a call may use, reserved before it leaves and settled by what its host reports.
//!
//! Must hold: a metered call's body is read whole and its cost known before a byte of it leaves; what nobody reported stays spent.

use abi::control::Spent;
use abi::limits;
use abi::network::Api;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::OwnedSemaphorePermit;

use super::Session;
use super::body::Outbound;
use super::call::{Fault, body_too_long};
use crate::agent::Agent;
use crate::budget::{self, BudgetError, Hold, Over, Plan, Usage};
use crate::denials::Rule;
use crate::policy::Refused;
use crate::splice::End;

/// A reservation and the reader of what was used of it. Dropped, it is given back while nothing of the call left, and stays spent after.
#[derive(Debug)]
pub struct Spending {
    plan: Plan,
    /// None: it was settled.
    hold: Option<Hold>,
    usage: Option<Usage>,
    /// Something of the call may have left.
    left: bool,
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
        self.hold.as_ref().map_or_else(Spent::default, Hold::reserved)
    }

    /// Says whether something of the call may have left from now on.
    pub fn leaves(&mut self, left: bool) {
        self.left = left;
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
    pub fn settle(mut self, whole: bool) -> (bool, Spent) {
        // What is not taken is given back when this is dropped.
        let Some(hold) = self.hold.take_if(|_| self.left) else { return (true, Spent::default()) };
        let reserved = hold.reserved();
        let Some(usage) = self.usage.take() else { return (false, reserved) };
        if self.over {
            let used = larger(reserved, usage.seen());
            hold.settle(used);
            return (true, used);
        }
        match usage.finish(whole) {
            Some(used) => {
                hold.settle(used);
                (true, used)
            }
            None => (false, reserved),
        }
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take_if(|_| !self.left) {
            hold.cancel();
        }
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
            true => Outbound::Whole(Bytes::new()),
            false => Outbound::Streamed { incoming, left: most, too_long: too_long.clone() },
        };
        return Ok((body, spending));
    }
    let announced = announced.exact().and_then(|length| usize::try_from(length).ok());
    let room = Room::take(session, announced.unwrap_or(most)).await?;
    let body = whole(session, incoming, announced.unwrap_or(0)).await?;
    let (spending, body) = reserve(session, parts, api, body).await?;
    Ok((Outbound::Whole(Bytes::from_owner(Held { body, _room: room })), spending))
}

/// Room for a body.
struct Room {
    _of_the_agent: OwnedSemaphorePermit,
    _of_the_node: OwnedSemaphorePermit,
}

impl Room {
    /// Waits for it, before the body's first byte and for all of them: two bodies that wait for each other's room would wait for ever.
    async fn take(session: &Session, bytes: usize) -> Result<Room, Fault> {
        let bytes = u32::try_from(bytes).map_err(|_| body_too_long(session))?;
        let Agent { desk, node, .. } = &*session.agent;
        let closed = |_| Fault::Ends(End::Closed);
        let _of_the_agent = desk.bodies.clone().acquire_many_owned(bytes).await.map_err(closed)?;
        let _of_the_node = node.hall.bodies.clone().acquire_many_owned(bytes).await.map_err(closed)?;
        Ok(Room { _of_the_agent, _of_the_node })
    }
}

/// A body with its room, which is free again when the connection to the host has let go of the last part of it.
struct Held {
    body: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

async fn whole(session: &Session, mut incoming: Incoming, announced: usize) -> Result<Vec<u8>, Fault> {
    let most = limits::BROKER_BODY_BYTES_MAX;
    let mut body = Vec::with_capacity(announced.min(most));
    while let Some(frame) = incoming.frame().await {
        // On an error the guest is gone, or its bytes were wrong.
        let frame = frame.map_err(|_| Fault::Ends(End::Closed))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = body.len() + data.len();
        if length > most {
            return Err(body_too_long(session));
        }
        if length > body.capacity() {
            // Doubled, but never above what there is room for.
            body.reserve_exact(length.saturating_mul(2).min(most) - body.len());
        }
        body.extend_from_slice(&data);
    }
    Ok(body)
}

/// Plans a call and reserves what it can use at most; where that is bounded it is on the disk when this returns.
async fn reserve(
    session: &Session,
    parts: &Parts,
    api: Api,
    body: Vec<u8>,
) -> Result<(Spending, Vec<u8>), Fault> {
    let agent = &session.agent;
    let (method, path) = (parts.method.to_string(), parts.uri.path().to_owned());
    let shown = format!("{method} {path} at {}", session.admission.name);
    let refused = |what: String, rule: Rule, remedy: String| Fault::Refused {
        status: StatusCode::FORBIDDEN,
        what: format!("{shown}: {what}"),
        rule,
        remedy,
    };
    let mut plan = planned(agent, api, method, path, body)
        .await?
        .map_err(|Refused { rule, because, remedy }| refused(because, rule, remedy))?;
    let body = std::mem::take(&mut plan.body);
    let (meter, wanted) = (agent.meter.clone(), plan.wanted);
    match agent.in_turn(move || meter.reserve(wanted)).await {
        Ok(Ok(hold)) => {
            Ok((Spending { plan, hold: Some(hold), usage: None, left: false, over: false }, body))
        }
        Ok(Err(BudgetError::Exhausted(exhausted))) => {
            Err(refused(exhausted.what(), "budget", exhausted.remedy()))
        }
        Ok(Err(unkept)) => Err(Fault::Failed(unkept.to_string())),
        Err(error) => Err(Fault::Failed(error)),
    }
}

/// What a call can use. A long body takes its time: on a thread of its own, and in none of the turns in which receipts are waited for.
async fn planned(
    agent: &Agent,
    api: Api,
    method: String,
    path: String,
    body: Vec<u8>,
) -> Result<Result<Plan, Refused>, Fault> {
    let (bounded, settings) = (agent.meter.bounds_tokens(), agent.node.settings.now());
    let plan = move || budget::plan(api, &method, &path, body, &settings.config.prices, bounded);
    if api == Api::Plain {
        return Ok(plan());
    }
    let _turn = agent.node.hall.plans.acquire().await.map_err(|_| Fault::Ends(End::Closed))?;
    tokio::task::spawn_blocking(plan).await.map_err(|error| Fault::Failed(error.to_string()))
}
