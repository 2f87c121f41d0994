//! A page that cage asks for on an agent's behalf: one GET through the broker, as if the agent had a connection of its own to it.
//!
//! Must hold: a request passes every check that the agent's own would, its receipt first; it ends with the agent's network, when its
//! grant does, and in its time. Must never: follow a redirect, say more than the page's address, send a credential in the clear.

use abi::control::Fetched;
use abi::limits;
use abi::page::PageUrl;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::header::{self, HeaderMap};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::{Session, requests};
use crate::agent::Agent;
use crate::policy::Refused;
use crate::splice::End;

/// Bytes between the two ends of the connection, which both are ours.
const PIPE_BYTES: usize = 64 * 1024;

/// Why there is no page.
#[derive(Debug)]
pub enum FetchError {
    /// Told as a denial already.
    Refused(Refused),
    Failed(String),
}

/// Bounds of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes: u64,
    pub wall: Duration,
}

/// Gets a page; its body goes to `out` as it comes, and stops where nobody takes it.
pub async fn fetch(
    agent: Arc<Agent>,
    page: PageUrl,
    bounds: Bounds,
    out: Sender<Bytes>,
) -> Result<Fetched, FetchError> {
    let refused = |refused: Refused| {
        agent.deny(
            &format!("fetch {}:{}: {}", page.name, page.port, refused.because),
            refused.rule,
            &refused.remedy,
        );
        FetchError::Refused(refused)
    };
    let (admission, mut entry) = agent.enter_fetch(&page.name, page.port).map_err(refused)?;
    if !page.is_tls && admission.secret.is_some() {
        return Err(refused(Refused {
            rule: "protocol",
            because: format!("{} has a credential, which goes over TLS only", page.name),
            remedy: format!("use https://{}", page.name),
        }));
    }
    let Some(place) = agent.connection_place() else {
        return Err(refused(Refused {
            rule: "limit",
            because: format!("more than {} connections", limits::PROXY_CONNECTIONS_PER_AGENT_MAX),
            remedy: "close some: there is no grant for more".into(),
        }));
    };
    let with_credential = admission.secret.is_some();
    let session = Session::new(&agent, &admission, place.buffers(), page.is_tls);
    session.ends_as("closed");
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let asked = timeout(bounds.wall, ask(near, &page, bounds.bytes, &out));
    let served = async {
        // How it ended is seen on the near side, or said by the session.
        let _ = requests(&session, far, page.name.as_str(), page.port).await;
        std::future::pending::<()>().await;
    };
    let cut = async {
        let cut = entry.cut().await;
        session.ends_as(End::Cut(cut).word()); // before what is under way is dropped
    };
    let got = tokio::select! {
        got = asked => got.unwrap_or_else(|_| Err(format!("no page within {} ms", bounds.wall.as_millis()))),
        () = served => Err("the connection ended".into()),
        () = cut => Err("it was cut: what granted it holds no more, or its budget is spent".into()),
    };
    if let Some(told) = session.told() {
        return Err(match told {
            Ok(refused) => FetchError::Refused(refused),
            Err(why) => FetchError::Failed(why),
        });
    }
    got.map(|page| Fetched { with_credential, ..page }).map_err(FetchError::Failed)
}

/// The agent's side of the connection.
async fn ask(
    near: tokio::io::DuplexStream,
    page: &PageUrl,
    bytes_max: u64,
    out: &Sender<Bytes>,
) -> Result<Fetched, String> {
    let in_words = |error: &dyn std::error::Error| format!("no answer: {error}");
    let (mut sender, connection) =
        client::handshake(TokioIo::new(near)).await.map_err(|error| in_words(&error))?;
    let usual = if page.is_tls { 443 } else { 80 };
    let host = match page.port == usual {
        true => page.name.to_string(),
        false => format!("{}:{}", page.name, page.port),
    };
    let request = Request::get(&page.target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "nullbox")
        .header(header::ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .map_err(|error| in_words(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| in_words(&error))?;
        let (parts, body) = answer.into_parts();
        let (bytes, is_cut) = copy(body, bytes_max, out).await?;
        Ok(Fetched {
            status: parts.status.as_u16(),
            media_type: text(&parts.headers, header::CONTENT_TYPE),
            bytes,
            is_cut,
            with_credential: false,
            location: text(&parts.headers, header::LOCATION),
        })
    };
    let driver = async {
        let _ = connection.await; // how it ended is seen by who sends
        std::future::pending::<()>().await;
    };
    tokio::select! {
        page = exchange => page,
        () = driver => Err("the connection ended".into()),
    }
}

/// The bytes that were passed on, and whether there were more.
async fn copy(mut body: Incoming, bytes_max: u64, out: &Sender<Bytes>) -> Result<(u64, bool), String> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the answer ended early: {error}"))?;
        let Ok(mut data) = frame.into_data() else { continue };
        let room = usize::try_from(bytes_max - bytes).unwrap_or(usize::MAX);
        let is_cut = data.len() > room;
        data.truncate(room);
        bytes += data.len() as u64;
        if !data.is_empty() {
            out.send(data).await.map_err(|_| "nobody takes it any more".to_owned())?;
        }
        if is_cut {
            return Ok((bytes, true));
        }
    }
    Ok((bytes, false))
}

/// A field as text; empty where it is none, or long.
fn text(fields: &HeaderMap, name: header::HeaderName) -> String {
    let value = fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if value.len() > limits::FETCH_LOCATION_BYTES_MAX { String::new() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_long_field_is_none() {
        let most = "x".repeat(limits::FETCH_LOCATION_BYTES_MAX);
        for (value, want) in [(most.clone(), most.as_str()), (format!("{most}x"), "")] {
            let value = HeaderValue::from_str(&value).unwrap();
            let fields = HeaderMap::from_iter([(header::LOCATION, value)]);
            assert_eq!(text(&fields, header::LOCATION), want);
        }
    }
}
