//! The DNS sockets in a VM's namespace. What is answered is decided in [`crate::dns`].

use abi::ids::HostName;
use abi::{limits, log};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::bucket::Bucket;
use crate::dns::{self, Answer, Book, Transport};
use crate::policy::Refused;

/// Pause after a socket error, so that a broken socket does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Answers one agent's questions.
#[derive(Debug)]
pub struct DnsServer {
    agent: Arc<Agent>,
    bucket: Mutex<Bucket>,
}

impl DnsServer {
    /// For one agent.
    pub fn new(agent: Arc<Agent>) -> Arc<DnsServer> {
        DnsServer::with_rate(agent, limits::DNS_QUESTIONS_PER_SECOND_MAX)
    }

    /// The same with another bound: the benchmark's, which measures what lies behind it.
    pub fn with_rate(agent: Arc<Agent>, per_second: u32) -> Arc<DnsServer> {
        let bucket = Bucket::new(per_second, Instant::now());
        Arc::new(DnsServer { agent, bucket: Mutex::new(bucket) })
    }

    /// Answers over UDP for ever.
    pub async fn udp(self: Arc<DnsServer>, socket: UdpSocket) {
        let mut buffer = vec![0; limits::DNS_MESSAGE_BYTES_MAX];
        loop {
            let (read, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    log::error("dns_receive_failed", &[("agent", &self.agent.instance), ("error", &error)]);
                    tokio::time::sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            if let Some(bytes) = self.answer(buffer.get(..read).unwrap_or_default(), Transport::Udp) {
                // A guest that does not take its answer asks again.
                let _ = socket.send_to(&bytes, from).await;
            }
        }
    }

    /// Answers over TCP for ever.
    pub async fn tcp(self: Arc<DnsServer>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < limits::DNS_TCP_CONNECTIONS_PER_AGENT_MAX => {
                        let server = self.clone();
                        connections.spawn(async move { server.stream(stream).await });
                    }
                    Ok(_) => {} // one too many: closed by being dropped
                    Err(error) => {
                        log::error("accept_failed", &[("agent", &self.agent.instance), ("error", &error)]);
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Answers until the guest ends, is silent for too long or asks too much.
    async fn stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let idle = Duration::from_millis(limits::DNS_TCP_IDLE_MS_MAX);
            let question =
                timeout(idle, read_message(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
            let Some(bytes) = self.answer(&question, Transport::Tcp) else {
                return Ok(());
            };
            let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
            let reply = [&length.to_be_bytes()[..], &bytes].concat();
            timeout(idle, stream.write_all(&reply)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        }
    }

    fn answer(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if !self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            let most = limits::DNS_QUESTIONS_PER_SECOND_MAX;
            self.agent.deny(
                &format!("more than {most} dns questions a second"),
                "limit",
                "ask less: there is no grant for more",
            );
            return None;
        }
        let agent = &self.agent;
        let Answer { bytes, refused } =
            dns::answer(question, transport, &agent.instance.agent, agent.as_ref())?;
        if let Some(refused) = refused {
            agent.deny(&refused.what, refused.rule, &refused.remedy);
        }
        Some(bytes)
    }
}

impl Book for Agent {
    fn address(&self, name: &HostName) -> Result<Ipv4Addr, Refused> {
        self.address_of(name)
    }

    fn name(&self, address: Ipv4Addr) -> Option<HostName> {
        self.name_at(address)
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limits::DNS_MESSAGE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
