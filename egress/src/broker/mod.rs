//! The credential broker: HTTP/1.1 towards a guest, TLS and HTTP/1.1 towards the one host that the guest's connection stands for.
//!
//! Must hold: every request is judged by itself; a secret is added here and nowhere before, goes to its own host and port over TLS that
//! was verified here, and comes back in no answer; redirects are answers like others. Dropping [`serve`]'s future ends all of it.
//! Must never: send what a guest says about itself as a credential, follow a redirect, share a connection between guests.

mod authority;
mod body;
mod call;
mod env;
mod fetch;
pub mod fields;
mod record;
pub mod reflect;
mod route;
mod spending;
mod strict;
mod upstream;

pub use authority::{Authority, AuthorityError};
pub use env::env;
pub use fetch::{Bounds, FetchError, fetch};
pub use upstream::Trust;

use abi::limits;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::agent::Agent;
use crate::buffers::Buffers;
use crate::http;
use crate::open::Entry;
use crate::policy::{Admission, BROKER_PORT, Refused, Way, broker_name};
use crate::proxy;
use crate::sniff::{Guard, Refusal, Speaks, wrong_request};
use crate::splice::End;
use strict::{Pulse, Strict};
use upstream::{Tally, Upstream};

/// First byte of a TLS client.
const TLS_HANDSHAKE: u8 = 22;

/// What the broker keeps for one agent.
#[derive(Debug)]
pub struct Desk {
    /// Calls at a time.
    calls: Arc<Semaphore>,
    /// Bytes of bodies that are held whole.
    bodies: Arc<Semaphore>,
    /// Set when the agent's network is made, if a name is intercepted.
    pub authority: OnceLock<Authority>,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            calls: Arc::new(Semaphore::new(limits::BROKER_CALLS_PER_AGENT_MAX)),
            bodies: Arc::new(Semaphore::new(limits::BROKER_BODY_BYTES_MAX)),
            authority: OnceLock::new(),
        }
    }
}

/// What the broker has for all agents together.
#[derive(Debug)]
pub struct Hall {
    /// Bytes of bodies that are held whole.
    bodies: Arc<Semaphore>,
    /// Calls that are planned.
    plans: Semaphore,
}

impl Default for Hall {
    fn default() -> Hall {
        Hall {
            bodies: Arc::new(Semaphore::new(limits::BROKER_BODIES_BYTES_MAX)),
            plans: Semaphore::new(limits::BROKER_PLANS_MAX),
        }
    }
}

/// One guest's connection.
#[derive(Debug)]
struct Session {
    agent: Arc<Agent>,
    admission: Admission,
    /// Bounds of its sockets.
    buffers: Buffers,
    pulse: Arc<Pulse>,
    /// Bytes on the node's side.
    tally: Arc<Tally>,
    /// To the host, between calls.
    upstream: tokio::sync::Mutex<Option<Upstream>>,
    /// An answer's head went to the guest, and no request came since.
    answering: AtomicBool,
    end: Mutex<(Option<End>, &'static str)>,
    /// Requests leave over TLS; else as they are, which is only so for a page of an `http://` address.
    is_tls: bool,
    /// Why the last request has no answer of the host.
    told: Mutex<Option<Told>>,
}

/// A request was refused, or why there is no answer.
type Told = Result<Refused, String>;

impl Session {
    fn new(agent: &Arc<Agent>, admission: &Admission, buffers: Buffers, is_tls: bool) -> Arc<Session> {
        Arc::new(Session {
            agent: agent.clone(),
            admission: admission.clone(),
            buffers,
            pulse: Pulse::new(),
            tally: Arc::default(),
            upstream: tokio::sync::Mutex::default(),
            answering: AtomicBool::new(false),
            end: Mutex::new((None, "detached")),
            is_tls,
            told: Mutex::default(),
        })
    }

    fn bytes(&self) -> [u64; 2] {
        [&self.tally.out, &self.tally.inward].map(|count| count.load(Ordering::Relaxed))
    }

    fn begins_call(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    /// Remembers why there is no answer.
    fn tell(&self, told: Told) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    fn told(&self) -> Option<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn begins_answer(&self) {
        self.answering.store(true, Ordering::Relaxed);
    }

    /// What ends the connection.
    fn stop(&self, end: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(end);
    }

    fn stopped(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).0.take()
    }

    /// How calls end that are dropped from now on.
    fn ends_as(&self, word: &'static str) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).1 = word;
    }

    fn end_word(&self) -> &'static str {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// Serves a guest's connection to a brokered host until it ends or is cut.
pub async fn serve(
    agent: &Arc<Agent>,
    client: &mut TcpStream,
    admission: &Admission,
    mut entry: Entry,
    buffers: Buffers,
) -> Result<(), End> {
    let session = Session::new(agent, admission, buffers, true);
    let served = async {
        match admission.way {
            Way::Intercepted => behind_tls(&session, client).await,
            Way::Broker | Way::Direct => in_the_clear(&session, client).await,
        }
    };
    let cut = async {
        let cut = entry.cut().await;
        // Calls are dropped before the select returns.
        session.ends_as(End::Cut(cut).word());
        cut
    };
    tokio::select! {
        ended = served => ended,
        cut = cut => Err(End::Cut(cut)),
        () = session.pulse.moved.idle() => Err(End::Closed),
    }
}

async fn in_the_clear(session: &Arc<Session>, client: &mut TcpStream) -> Result<(), End> {
    let Some(name) = broker_name(&session.admission.name) else {
        let why = format!("{} is too long for a name of the broker", session.admission.name);
        return Err(End::Failed { why, speaks: Speaks::Http });
    };
    let mut first = [0];
    let allowed = Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX);
    match timeout(allowed, client.peek(&mut first)).await {
        Ok(Ok(1)) if first == [TLS_HANDSHAKE] => Err(End::Refused(Refusal {
            what: format!("tls on {name}:{BROKER_PORT}"),
            rule: "protocol",
            remedy: format!("use http://{name}/: the broker makes TLS to the host itself"),
            speaks: Speaks::Tls,
        })),
        Ok(Ok(1)) => requests(session, client, name.as_str(), BROKER_PORT).await,
        _ => Err(End::Closed),
    }
}

async fn behind_tls(session: &Arc<Session>, client: &mut TcpStream) -> Result<(), End> {
    let (name, port) = (&session.admission.name, session.admission.port);
    let failed = |why: String, speaks| End::Failed { why, speaks };
    let mut guard = Guard::new(name.as_str(), port, false);
    let first = proxy::first_bytes(&session.agent, client, &mut guard, port).await?.bytes;
    let authority = session.agent.desk.authority.get();
    let authority = authority.ok_or_else(|| AuthorityError::Name(name.clone()));
    let config = authority.and_then(|authority| authority.server(name));
    let config = config.map_err(|error| failed(error.to_string(), Speaks::Tls))?;
    let shake = TlsAcceptor::from(config).accept(Begun { first, read: 0, client });
    let stream = match timeout(Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX), shake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(format!("no TLS with the guest: {error}"), Speaks::Neither)),
        Err(_) => return Err(End::Closed),
    };
    requests(session, stream, name.as_str(), port).await
}

/// Answers requests until one side ends.
async fn requests<S: AsyncRead + AsyncWrite + Unpin>(
    session: &Arc<Session>,
    stream: S,
    name: &str,
    port: u16,
) -> Result<(), End> {
    let mut stream = Strict::new(stream, name, port, session.pulse.clone());
    let of = session.clone();
    let service = service_fn(move |request| {
        let session = of.clone();
        async move {
            call::answer(session.clone(), request).await.map_err(|end| {
                session.stop(end);
                Stopped
            })
        }
    });
    let served = {
        let mut server = http1::Builder::new();
        let serving = server
            .header_read_timeout(None)
            .max_buf_size(limits::BROKER_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(&mut stream), service);
        let mut serving = std::pin::pin!(serving);
        let served = serving.as_mut().await;
        // What is still under way is dropped here: the guest has gone.
        session.ends_as("closed");
        served
    };
    if let Some(cut) = session.pulse.is_cut() {
        return Err(End::Cut(cut));
    }
    match session.stopped() {
        None | Some(End::Closed) => {}
        Some(end) => return Err(end),
    }
    let Some(wrong) = session.pulse.wrong() else {
        // A guest that hangs up has nobody to be told.
        return served.map_err(|_| End::Closed);
    };
    let refusal = wrong_request(&wrong, name, port);
    session.agent.deny(&refusal.what, refusal.rule, &refusal.remedy);
    if session.answering.load(Ordering::Relaxed) {
        // In the middle of an answer, perhaps: nothing may be added to it.
        return Err(End::Closed);
    }
    let text = http::refusal("400 Bad Request", refusal.rule, &refusal.what, &refusal.remedy);
    proxy::farewell(stream.inner(), &text).await;
    Err(End::Closed)
}

/// Why hyper gives a connection up; the session knows the rest.
#[derive(Debug, Clone, Copy)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ends")
    }
}

impl std::error::Error for Stopped {}

/// A client whose first bytes were read already; they are let go when they were read again, so that an idle connection holds none.
#[derive(Debug)]
struct Begun<'a> {
    first: Vec<u8>,
    read: usize,
    client: &'a mut TcpStream,
}

impl AsyncRead for Begun<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.first.get(self.read..).unwrap_or_default();
        if rest.is_empty() {
            self.first = Vec::new();
            self.read = 0;
            return Pin::new(&mut *self.client).poll_read(context, buffer);
        }
        let now = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..now).unwrap_or_default());
        self.read += now;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.client).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_shutdown(context)
    }
}
