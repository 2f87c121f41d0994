//! The way to the host: the connection that a guest's connection has there, or a new one.
//!
//! Must hold: the address was judged now, and a receipt is durable, before each dial; a request that may have left is not sent again.

use abi::limits;
use hyper::body::Incoming;
use hyper::http::request::{Builder, Parts};
use hyper::{Request, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

use super::Session;
use super::body::Outbound;
use super::call::Fault;
use super::record::{Attempts, Record};
use super::spending::Spending;
use super::upstream::{self, Counted, Upstream};
use crate::proxy;

/// How long a connection that was used before may take to be free again.
const FREE: Duration = Duration::from_secs(1);

/// Sends a request over the connection there is, or over a new one; a receipt is durable before each.
pub async fn send(
    session: &Arc<Session>,
    parts: &Parts,
    head: Builder,
    body: Outbound,
    mut spending: Spending,
) -> Result<(Response<Incoming>, Record), Fault> {
    let mut request = head.body(body).map_err(|error| Fault::Failed(error.to_string()))?;
    let mut upstream = session.upstream.lock().await;
    if let Some(mut used) = upstream.take()
        && matches!(timeout(FREE, used.sender.ready()).await, Ok(Ok(())))
    {
        let attempts = Attempts::new(session, parts, &spending);
        let record = match attempts.receipt(used.address).await {
            Ok(receipt) => attempts.win(used.address, receipt, spending),
            Err(why) => return Err(Fault::Failed(why)),
        };
        match exchange(&mut used, request, record).await? {
            Exchanged::Answered(response, record) => {
                *upstream = Some(used);
                return Ok((response, record));
            }
            // The host had closed it: nothing left.
            Exchanged::Unsent(unsent, unspent) => (request, spending) = (unsent, unspent),
        }
    }
    let (mut fresh, record) = dial(session, parts, spending).await?;
    match exchange(&mut fresh, request, record).await? {
        Exchanged::Answered(response, record) => {
            *upstream = Some(fresh);
            Ok((response, record))
        }
        Exchanged::Unsent(..) => {
            Err(Fault::Failed(format!("{} ended the connection", session.admission.name)))
        }
    }
}

enum Exchanged {
    Answered(Response<Incoming>, Record),
    Unsent(Request<Outbound>, Spending),
}

async fn exchange(
    upstream: &mut Upstream,
    request: Request<Outbound>,
    mut record: Record,
) -> Result<Exchanged, Fault> {
    let allowed = Duration::from_millis(limits::BROKER_ANSWER_MS_MAX);
    let host = record.host();
    record.leaves();
    let error = match timeout(allowed, upstream.sender.try_send_request(request)).await {
        Ok(Ok(response)) => {
            record.status = Some(response.status());
            return Ok(Exchanged::Answered(response, record));
        }
        Ok(Err(mut error)) => match error.take_message() {
            Some(unsent) => return Ok(Exchanged::Unsent(unsent, record.unsent()?)),
            None => why(&error.into_error()),
        },
        Err(_) => format!("no answer within {} ms", limits::BROKER_ANSWER_MS_MAX),
    };
    record.end("failed");
    Err(Fault::Failed(format!("{host} gave no answer: {error}")))
}

/// An error with its causes.
fn why(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A connection to one of the name's addresses, each judged now, a receipt before each. Nothing of the request leaves here, so what was
/// reserved is given back when this ends without one.
async fn dial(
    session: &Arc<Session>,
    parts: &Parts,
    spending: Spending,
) -> Result<(Upstream, Record), Fault> {
    let Session { agent, admission, buffers, tally, pulse, .. } = &**session;
    let authorities = &agent.node.settings.now().config.network.authorities;
    let config = agent.node.trust.client(authorities).map_err(Fault::Failed)?;
    let addresses = proxy::dial_list(agent, admission).await?;
    let attempts = Attempts::new(session, parts, &spending);
    let receipt = |address| attempts.receipt(address);
    let found = match proxy::dial(&addresses, admission.port, *buffers, &receipt).await {
        Ok(found) => found,
        Err(why) => return Err(Fault::Failed(format!("`{}` cannot be reached: {why}", admission.name))),
    };
    let record = attempts.win(found.address, found.receipt, spending);
    let tcp = Counted::new(found.server, agent.clone(), tally.clone(), pulse.clone());
    let opened = match session.is_tls {
        true => upstream::open(tcp, found.address, &admission.name, config).await,
        false => upstream::open_plain(tcp, found.address).await,
    };
    match opened {
        Ok(upstream) => Ok((upstream, record)),
        Err(why) => {
            record.unsent()?;
            Err(Fault::Failed(why))
        }
    }
}
