//! The way to the host: the connection that a guest's connection has there, or a new one.
//!
//! Must hold: the address was judged now, and a receipt is durable, before each dial; a request that may have left is not sent again.

use abi::limits;
use hyper::body::Incoming;
use hyper::http::request::{Builder, Parts};
use hyper::{Request, Response};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Session;
use super::body::Outbound;
use super::call::Fault;
use super::record::Record;
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
        let record = Record::begin(session, parts, used.address, spending).await?;
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
        Exchanged::Unsent(_, unspent) => {
            unspent.cancel();
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

/// A connection to one of the name's addresses, each judged now, a receipt before each.
async fn dial(
    session: &Arc<Session>,
    parts: &Parts,
    mut spending: Spending,
) -> Result<(Upstream, Record), Fault> {
    let Session { agent, admission, tally, pulse, .. } = &**session;
    let authorities = &agent.node.settings.now().config.network.authorities;
    let ready = async {
        let config = agent.node.trust.client(authorities).map_err(Fault::Failed)?;
        Ok((config, proxy::dial_list(agent, admission).await?))
    };
    let (config, addresses) = match ready.await {
        Ok(ready) => ready,
        Err(fault) => {
            spending.cancel();
            return Err(fault);
        }
    };
    let mut last = String::from("no address");
    for address in addresses {
        let record = Record::begin(session, parts, address, spending).await?;
        let dialled = TcpStream::connect(SocketAddr::new(address, admission.port));
        let opened = match timeout(Duration::from_millis(limits::DIAL_MS_MAX), dialled).await {
            Ok(Ok(tcp)) => {
                let tcp = Counted::new(tcp, agent.clone(), tally.clone(), pulse.clone());
                upstream::open(tcp, address, &admission.name, config.clone()).await
            }
            Ok(Err(error)) => Err(format!("{address}: {error}")),
            Err(_) => Err(format!("{address}: no answer within {} ms", limits::DIAL_MS_MAX)),
        };
        match opened {
            Ok(upstream) => return Ok((upstream, record)),
            Err(why) => (last, spending) = (why, record.unsent()?),
        }
    }
    spending.cancel();
    Err(Fault::Failed(format!("`{}` cannot be reached: {last}", admission.name)))
}
