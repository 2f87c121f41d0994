//! Towards the host: TLS that we verify ourselves, and the bytes counted where they leave.
//!
//! Must hold: no byte of a request leaves before the host's certificate was verified for its name; a connection belongs to one
//! connection of one guest.

use abi::ids::HostName;
use abi::limits;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::body::Outbound;
use super::strict::Pulse;
use crate::agent::Agent;

/// Trust in hosts, made again when the configuration's own authorities change.
#[derive(Debug, Default)]
pub struct Trust {
    made: Mutex<Option<(Vec<String>, Arc<ClientConfig>)>>,
}

impl Trust {
    /// TLS 1.2 or later, HTTP/1.1, the web's roots and these authorities (PEM). Sessions are not resumed: nothing of one agent's
    /// connection is seen in another's.
    pub fn client(&self, authorities: &[String]) -> Result<Arc<ClientConfig>, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = made.as_ref()
            && of == authorities
        {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for text in authorities {
            let unusable = |why: String| format!("a certificate in network.authorities of nulld.toml: {why}");
            let certificate = CertificateDer::from_pem_slice(text.as_bytes())
                .map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        *made = Some((authorities.to_vec(), config.clone()));
        Ok(config)
    }
}

/// A connection to the host.
#[derive(Debug)]
pub struct Upstream {
    pub address: IpAddr,
    pub sender: SendRequest<Outbound>,
    /// Drives it; ends with it.
    _driver: JoinSet<()>,
}

/// Makes TLS and HTTP over a connection that was dialled. The error says why not, for the guest too.
pub async fn open(
    tcp: Counted,
    address: IpAddr,
    name: &HostName,
    config: Arc<ClientConfig>,
) -> Result<Upstream, String> {
    let server = ServerName::try_from(name.to_string()).map_err(|error| error.to_string())?;
    let shake = TlsConnector::from(config).connect(server, tcp);
    let tls = match timeout(Duration::from_millis(limits::DIAL_MS_MAX), shake).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return Err(format!("TLS with {name} at {address} failed: {error}")),
        Err(_) => return Err(format!("{address}: no TLS within {} ms", limits::DIAL_MS_MAX)),
    };
    speak(tls, address).await
}

/// The same without TLS, for what has no credential.
pub async fn open_plain(tcp: Counted, address: IpAddr) -> Result<Upstream, String> {
    speak(tcp, address).await
}

async fn speak<S>(stream: S, address: IpAddr) -> Result<Upstream, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(limits::BROKER_HEAD_BYTES_MAX)
        .max_header_size(limits::BROKER_HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("{address}: {error}"))?;
    let mut driver = JoinSet::new();
    // How it ended is seen by who sends.
    driver.spawn(async move { drop(connection.await) });
    Ok(Upstream { address, sender, _driver: driver })
}

/// Bytes of a guest's connection as they pass on the node's side.
#[derive(Debug, Default)]
pub struct Tally {
    pub out: AtomicU64,
    pub inward: AtomicU64,
}

/// A connection whose bytes are counted, and asked for, when they pass.
#[derive(Debug)]
pub struct Counted {
    tcp: TcpStream,
    agent: Arc<Agent>,
    tally: Arc<Tally>,
    pulse: Arc<Pulse>,
}

impl Counted {
    /// Counts for this agent and tally.
    pub fn new(tcp: TcpStream, agent: Arc<Agent>, tally: Arc<Tally>, pulse: Arc<Pulse>) -> Counted {
        // Latency matters more than packets saved; a socket that refuses the option still works.
        let _ = tcp.set_nodelay(true);
        Counted { tcp, agent, tally, pulse }
    }
}

impl Counted {
    /// Takes bytes of the agent's budget. Without them nothing more passes: of what was read the guest gets nothing, and of what was
    /// written one write is the most that nobody paid for.
    fn take(&self, bytes: usize) -> io::Result<()> {
        self.agent.take_bytes(bytes as u64).map_err(|cut| {
            self.pulse.cut(cut);
            io::Error::other("the budget of bytes is used up")
        })
    }
}

fn add(counters: [&AtomicU64; 2], bytes: usize) {
    for counter in counters {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(context, buffer))?;
        self.pulse.moved.now();
        let read = buffer.filled().len() - before;
        self.take(read)?;
        add([&self.agent.counters.bytes_in, &self.tally.inward], read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write(context, bytes))?;
        self.pulse.moved.now();
        self.take(written)?;
        add([&self.agent.counters.bytes_out, &self.tally.out], written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
