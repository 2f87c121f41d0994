//! One request through the broker: judged, its secret added, its receipt durable, sent, its answer's head checked.
//!
//! Must hold: nothing leaves before the receipt is durable; whatever way a call ends, it is recorded once.

use abi::network::{Api, SecretPolicy};
use abi::{limits, log};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::{Builder, Parts};
use hyper::{Method, Request, Response, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::OwnedSemaphorePermit;

use super::body::{Answer, Inbound, reflected};
use super::record::Record;
use super::reflect::{Needle, Scan};
use super::{Session, fields, route, spending};
use crate::denials::Rule;
use crate::http;
use crate::policy::Refused;
use crate::splice::End;

/// Why there is no answer of the host.
#[derive(Debug)]
pub enum Fault {
    /// The request is refused, and the guest is told.
    Refused { status: StatusCode, what: String, rule: Rule, remedy: String },
    /// The host cannot be reached, or its answer cannot be passed on.
    Failed(String),
    /// The guest's connection ends.
    Ends(End),
}

impl From<End> for Fault {
    fn from(end: End) -> Fault {
        match end {
            End::Refused(refusal) => Fault::Refused {
                status: StatusCode::FORBIDDEN,
                what: refusal.what,
                rule: refusal.rule,
                remedy: refusal.remedy,
            },
            End::Failed { why, .. } => Fault::Failed(why),
            other => Fault::Ends(other),
        }
    }
}

/// A secret as it goes into a request, and comes back in no answer.
struct Credential {
    field: HeaderName,
    value: HeaderValue,
    needle: Needle,
}

/// Answers a guest's request: with the host's answer, or with why there is none. The error ends the connection.
pub async fn answer(session: Arc<Session>, request: Request<Incoming>) -> Result<Response<Inbound>, End> {
    session.begins_call();
    let fault = match call(&session, request).await {
        Ok(response) => return Ok(response),
        Err(fault) => fault,
    };
    let agent = &session.agent;
    let (status, rule, what, remedy) = match fault {
        // What was wrong with the guest's bytes is told when the connection ends.
        _ if session.pulse.wrong().is_some() || session.pulse.is_cut().is_some() => return Err(End::Closed),
        Fault::Ends(end) => return Err(end),
        Fault::Refused { status, what, rule, remedy } => {
            agent.deny(&what, rule, &remedy);
            session.tell(Ok(Refused { rule, because: what.clone(), remedy: remedy.clone() }));
            (status, rule, what, remedy)
        }
        Fault::Failed(why) => {
            log::info(
                "call_failed",
                &[("agent", &agent.instance), ("to", &session.admission.name), ("why", &why)],
            );
            session.tell(Err(why.clone()));
            (StatusCode::BAD_GATEWAY, "unreachable", why, "try again, or ask the operator".into())
        }
    };
    session.begins_answer();
    let text = http::refusal_text(rule, &what, &remedy);
    let mut response = Response::new(Inbound::Text(Some(text.into())));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert("server", HeaderValue::from_static("nullbox-egress"));
    fields.insert("x-nullbox-rule", HeaderValue::from_static(rule));
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // One refusal or failure a connection: how many connections there are is bounded.
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

async fn call(session: &Arc<Session>, request: Request<Incoming>) -> Result<Response<Inbound>, Fault> {
    let (parts, incoming) = request.into_parts();
    judge(session, &parts)?;
    let calls = session.agent.desk.calls.clone();
    let turn = calls.acquire_owned().await.map_err(|_| Fault::Ends(End::Closed))?;
    let credential = match &session.admission.secret {
        Some(policy) => Some(credential(session, policy)?),
        None => None,
    };
    let mut head = head(session, &parts, credential.as_ref())?;
    if let Some(fields) = head.headers_mut()
        && session.admission.secret.as_ref().is_some_and(|secret| secret.api != Api::Plain)
        && session.agent.meter.bounds_tokens()
    {
        fields::planned(fields).map_err(|encoding| encoded_body(session, &encoding))?;
    }
    let too_long = Arc::new(AtomicBool::new(false));
    let (body, spending) = spending::plan(session, &parts, incoming, &too_long).await?;
    let sent = route::send(session, &parts, head, body, spending).await;
    let (sent, record) =
        sent.map_err(|fault| if too_long.load(Ordering::Relaxed) { body_too_long(session) } else { fault })?;
    let needle = credential.map(|credential| credential.needle);
    inbound(session, sent, record, needle, turn)
}

/// The secret, taken from the store for this call only.
fn credential(session: &Session, policy: &SecretPolicy) -> Result<Credential, Fault> {
    let unusable = |why: String| Fault::Refused {
        status: StatusCode::BAD_GATEWAY,
        what: format!("secret {} for {}: {why}", policy.name, policy.host),
        rule: "credential",
        remedy: format!("an operator sets it: nullctl secret set {} --host {}", policy.name, policy.host),
    };
    let secret = session.agent.node.secrets.reveal(policy).map_err(|error| unusable(error.to_string()))?;
    let mut value =
        HeaderValue::from_str(&secret.field()).map_err(|_| unusable("it fits no header field".into()))?;
    value.set_sensitive(true);
    let field = HeaderName::from_bytes(policy.header.as_bytes())
        .map_err(|_| unusable(format!("`{}` is no header field", policy.header)))?;
    Ok(Credential { field, value, needle: Needle::new(secret.value().as_bytes()) })
}

/// Judges a request by what it asks for.
fn judge(session: &Session, parts: &Parts) -> Result<(), Fault> {
    let (admission, path) = (&session.admission, parts.uri.path());
    let host = &admission.name;
    let shown = format!("{} {path} at {host}", parts.method);
    let refused = |rule: Rule, remedy: String| {
        Err(Fault::Refused { status: StatusCode::FORBIDDEN, what: shown.clone(), rule, remedy })
    };
    // A host that is asked for it sends the request back, the secret in it.
    if parts.method == Method::TRACE || parts.method == Method::CONNECT {
        return refused("protocol", format!("{} is never sent with a credential", parts.method));
    }
    if let Err(Refused { rule, because, remedy }) = admission.request(parts.method.as_str(), path) {
        return Err(Fault::Refused {
            status: StatusCode::FORBIDDEN,
            what: format!("{shown}: {because}"),
            rule,
            remedy,
        });
    }
    if let Some(parameter) = parts.uri.query().and_then(fields::credential_parameter) {
        return refused(
            "credential",
            format!("leave `{parameter}` out of the query: the broker adds the node's own secret for {host}"),
        );
    }
    Ok(())
}

/// A body above its bound.
pub(super) fn body_too_long(session: &Session) -> Fault {
    Fault::Refused {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        what: format!(
            "a body of more than {} bytes to {}",
            limits::BROKER_BODY_BYTES_MAX,
            session.admission.name
        ),
        rule: "limit",
        remedy: "send it in parts: there is no grant for more".into(),
    }
}

/// A body whose cost nobody read.
fn encoded_body(session: &Session, encoding: &str) -> Fault {
    Fault::Refused {
        status: StatusCode::FORBIDDEN,
        what: format!("a body in the encoding `{encoding}` to {}", session.admission.name),
        rule: "budget",
        remedy: "send it as it is: its cost is read from it".into(),
    }
}

/// The head as it leaves.
fn head(session: &Session, parts: &Parts, credential: Option<&Credential>) -> Result<Builder, Fault> {
    let unsendable =
        |error: &dyn std::error::Error| Fault::Failed(format!("the request cannot be sent: {error}"));
    let admission = &session.admission;
    let host = match (admission.port, session.is_tls) {
        (443, true) | (80, false) => admission.name.to_string(),
        (port, _) => format!("{}:{port}", admission.name),
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut head = Request::builder().method(&parts.method).uri(target);
    if let Some(headers) = head.headers_mut() {
        headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|error| unsendable(&error))?);
        headers.extend(fields::outward(&parts.headers, credential.map(|c| c.field.as_str())));
        if let Some(credential) = credential {
            headers.insert(credential.field.clone(), credential.value.clone());
        }
    }
    Ok(head)
}

/// The answer as the guest gets it.
fn inbound(
    session: &Session,
    answered: Response<Incoming>,
    mut record: Record,
    needle: Option<Needle>,
    turn: OwnedSemaphorePermit,
) -> Result<Response<Inbound>, Fault> {
    let admission = &session.admission;
    let (parts, incoming) = answered.into_parts();
    let mut stopped = |fault: Fault| {
        record.end("refused");
        Err(fault)
    };
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return stopped(Fault::Failed(format!("{} switched to another protocol", admission.name)));
    }
    let is_in = |needle: &Needle| {
        parts
            .headers
            .iter()
            .any(|(name, value)| needle.is_in(name.as_str().as_bytes()) || needle.is_in(value.as_bytes()))
    };
    if needle.as_ref().is_some_and(is_in) {
        return stopped(Fault::Ends(reflected(admission.name.as_str())));
    }
    if let Some(why) = fields::encoding(&parts.headers).filter(|_| !incoming.is_end_stream()) {
        return stopped(Fault::Failed(format!("an answer of {} cannot be read: {why}", admission.name)));
    }
    record.answered(parts.status, parts.headers.get(header::CONTENT_TYPE));
    let with_secret = needle.is_some();
    let headers = fields::inward(&parts.headers, &admission.name, admission.port, admission.way, with_secret);
    let over = incoming.is_end_stream();
    let mut answer = Answer { incoming, scan: needle.map(Scan::new), record, _turn: turn };
    if over {
        answer.record.whole();
    }
    let mut response = Response::new(Inbound::Answer(Box::new(answer)));
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    session.begins_answer();
    Ok(response)
}
