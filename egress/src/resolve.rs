//! From a granted name to addresses that may be dialled.
//!
//! Must hold: `[network.hosts]` first, then resolvers; every address is judged after resolution, each time, so a name that
//! turns inward is refused at the moment it does.
//! Must never: resolve a name that nobody granted: an agent's names come from its manifest, the node's own from nulld.toml.

use abi::ids::HostName;
use abi::limits;
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::addresses::{Word, refusal};
use crate::dns::{self, Resolved};
use crate::settings::Snapshot;

/// How long one resolver may take for one question.
const ANSWER: Duration = Duration::from_millis(1500);
/// Datagrams read while waiting for one answer: more is somebody guessing.
const DATAGRAMS_MAX: usize = 16;

/// Why there is nothing to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("`{name}` resolves only to {address}: {why}")]
    Refused { name: HostName, address: IpAddr, why: &'static str },
    #[error("`{0}` has no address")]
    Empty(HostName),
    #[error("`{name}` cannot be resolved: {why}")]
    Failed { name: HostName, why: String },
}

/// Names asked for lately; one more empties the memory.
const REMEMBERED_MAX: usize = 4096;

/// Asks for each name once at a time, and remembers an answer as long as it says, at most [`limits::RESOLVED_SECS_MAX`].
/// What is remembered is judged again at each use.
#[derive(Debug, Default)]
pub struct Resolver {
    names: Mutex<HashMap<HostName, Arc<tokio::sync::Mutex<Option<Remembered>>>>>,
}

#[derive(Debug, Clone)]
struct Remembered {
    result: Result<Vec<IpAddr>, ResolveError>,
    answered: Instant,
    until: Instant,
}

impl Resolver {
    /// Resolves a name; what comes back may be dialled, in this order. `private`: addresses that the agent was granted for this name
    /// by themselves.
    pub async fn resolve(
        &self,
        name: &HostName,
        private: &[Ipv4Addr],
        snapshot: &Snapshot,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let (addresses, word) = self.look_up(name, snapshot).await?;
        judge(name, &addresses, word, private, &snapshot.own)
    }

    /// Resolves a name of the node's own configuration. The operator named it, so its address may be private, whoever says so;
    /// never the node itself, link-local or loopback.
    pub async fn resolve_for_node(
        &self,
        name: &HostName,
        snapshot: &Snapshot,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let (addresses, _) = self.look_up(name, snapshot).await?;
        judge(name, &addresses, Word::Operator, &[], &snapshot.own)
    }

    async fn look_up(
        &self,
        name: &HostName,
        snapshot: &Snapshot,
    ) -> Result<(Vec<IpAddr>, Word), ResolveError> {
        match snapshot.config.network.hosts.get(name) {
            Some(addresses) => Ok((addresses.clone(), Word::Operator)),
            None => Ok((self.ask(name, &snapshot.resolvers).await?, Word::Resolver)),
        }
    }

    /// An answer that came while waiting counts for all who waited, also a failure: or a slow resolver would be asked
    /// by one connection after the other.
    async fn ask(&self, name: &HostName, resolvers: &[IpAddr]) -> Result<Vec<IpAddr>, ResolveError> {
        let arrived = Instant::now();
        let slot = self.slot(name);
        let mut slot = slot.lock().await;
        if let Some(known) = slot.as_ref().filter(|k| k.answered >= arrived || k.until > Instant::now()) {
            return known.result.clone();
        }
        let asked = ask_all(name, resolvers).await;
        let seconds = match &asked {
            Ok((addresses, seconds)) if !addresses.is_empty() => (*seconds).min(limits::RESOLVED_SECS_MAX),
            // Or an agent that asks again and again asks the resolver as often.
            _ if !resolvers.is_empty() => limits::UNRESOLVED_SECS,
            _ => 0,
        };
        let (answered, result) = (Instant::now(), asked.map(|(addresses, _)| addresses));
        let until = answered + Duration::from_secs(u64::from(seconds));
        *slot = Some(Remembered { result: result.clone(), answered, until });
        result
    }

    fn slot(&self, name: &HostName) -> Arc<tokio::sync::Mutex<Option<Remembered>>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= REMEMBERED_MAX {
            names.clear();
        }
        names.entry(name.clone()).or_default().clone()
    }
}

fn judge(
    name: &HostName,
    addresses: &[IpAddr],
    word: Word,
    private: &[Ipv4Addr],
    own: &[IpAddr],
) -> Result<Vec<IpAddr>, ResolveError> {
    let mut refused = None;
    let mut admitted = Vec::new();
    for address in addresses {
        let is_granted = matches!(address, IpAddr::V4(v4) if private.contains(v4));
        let word = if is_granted { Word::Operator } else { word };
        match refusal(*address, word, own).or_else(|| is_local(*address).then_some("the node's own address"))
        {
            None => admitted.push(*address),
            Some(why) => refused = Some(ResolveError::Refused { name: name.clone(), address: *address, why }),
        }
    }
    admitted.truncate(limits::DIAL_ADDRESSES_MAX);
    match (admitted.is_empty(), refused) {
        (false, _) => Ok(admitted),
        (true, Some(refused)) => Err(refused),
        (true, None) => Err(ResolveError::Empty(name.clone())),
    }
}

/// Whether the node has this address on any interface: only then can a socket be bound to it.
fn is_local(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

async fn ask_all(name: &HostName, resolvers: &[IpAddr]) -> Result<(Vec<IpAddr>, u32), ResolveError> {
    let failed = |why: String| ResolveError::Failed { name: name.clone(), why };
    if resolvers.is_empty() {
        return Err(failed(
            "the node has no resolver; set network.dns or network.hosts in nulld.toml".into(),
        ));
    }
    let mut last = String::from("no time left");
    let all = async {
        for resolver in resolvers.iter().chain(resolvers) {
            match ask(name, *resolver).await {
                Ok(Resolved::Addresses(addresses, seconds)) => return Some((addresses, seconds)),
                Ok(Resolved::Failed(code)) => last = format!("{resolver} says {code}"),
                Ok(Resolved::Cut) => last = format!("{resolver} cuts its answer over TCP"),
                Err(error) => last = format!("{resolver}: {error}"),
            }
        }
        None
    };
    match timeout(Duration::from_millis(limits::RESOLVE_MS_MAX), all).await {
        Ok(Some((addresses, seconds))) => Ok((addresses.into_iter().map(IpAddr::V4).collect(), seconds)),
        Ok(None) | Err(_) => Err(failed(last)),
    }
}

/// Asks one resolver over UDP, and over TCP when its answer was cut.
async fn ask(name: &HostName, resolver: IpAddr) -> io::Result<Resolved> {
    let mut random = [0u8; 2];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let id = u16::from_ne_bytes(random);
    let question = dns::question(id, name).ok_or_else(|| io::Error::other("the name cannot be asked for"))?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    match timeout(ANSWER, over_udp(&question, id, name, resolver)).await.map_err(|_| late())?? {
        Resolved::Cut => {
            timeout(ANSWER, over_tcp(&question, id, name, resolver)).await.map_err(|_| late())?
        }
        answered => Ok(answered),
    }
}

async fn over_udp(question: &[u8], id: u16, name: &HostName, resolver: IpAddr) -> io::Result<Resolved> {
    let any = match resolver {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(SocketAddr::new(resolver, 53)).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; limits::DNS_MESSAGE_BYTES_MAX];
    for _ in 0..DATAGRAMS_MAX {
        let read = socket.recv(&mut buffer).await?;
        if let Some(answer) = dns::resolved(buffer.get(..read).unwrap_or_default(), id, name) {
            return Ok(answer);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "answers that do not fit the question"))
}

async fn over_tcp(question: &[u8], id: u16, name: &HostName, resolver: IpAddr) -> io::Result<Resolved> {
    let mut stream = TcpStream::connect((resolver, 53)).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let length = usize::from(stream.read_u16().await?);
    let mut buffer = vec![0; length.min(limits::DNS_MESSAGE_BYTES_MAX)];
    stream.read_exact(&mut buffer).await?;
    dns::resolved(&buffer, id, name)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer that does not fit the question"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_inward_address_among_others_is_left_out_and_alone_is_refused() {
        let name: HostName = "a.test".parse().unwrap();
        let list: Vec<IpAddr> = ["10.0.0.1", "203.0.113.9"].map(|a| a.parse().unwrap()).into();
        let outside = vec!["203.0.113.9".parse::<IpAddr>().unwrap()];
        assert_eq!(judge(&name, &list, Word::Resolver, &[], &[]), Ok(outside));
        let refused = judge(&name, &list[..1], Word::Resolver, &[], &[]).unwrap_err();
        assert!(refused.to_string().contains("10.0.0.0/8"), "{refused}");
        let granted = [Ipv4Addr::new(10, 0, 0, 1)];
        assert_eq!(judge(&name, &list[..1], Word::Resolver, &granted, &[]), Ok(list[..1].to_vec()));
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        assert!(judge(&name, &loopback, Word::Resolver, &[Ipv4Addr::LOCALHOST], &[]).is_err());
        assert_eq!(judge(&name, &[], Word::Resolver, &[], &[]), Err(ResolveError::Empty(name.clone())));
        assert!(is_local("127.0.0.1".parse().unwrap()) && !is_local("203.0.113.9".parse().unwrap()));
    }
}
