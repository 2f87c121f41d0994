//! The other end of a node's network cable: a neighbourhood where every address of the network is there and answers UDP as the test
//! says. QEMU's frames come over a local UDP socket (`-netdev dgram`), so nothing can leave this machine.
//!
//! ARP (RFC 826), IPv4 without options (RFC 791) and UDP (RFC 768), just enough of each.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const ARP_TYPE: [u8; 2] = [0x08, 0x06];
const IPV4_TYPE: [u8; 2] = [0x08, 0x00];

/// A datagram of the node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub to: (Ipv4Addr, u16),
    pub payload: Vec<u8>,
}

/// The cable. Dropping it leaves the node alone.
#[derive(Debug)]
pub struct Wire {
    /// What `-netdev` gets.
    pub netdev: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Begins; `answer` gives the payloads that go back for each datagram.
    pub fn start(mut answer: impl FnMut(Datagram) -> Vec<Vec<u8>> + Send + 'static) -> Result<Wire> {
        let ours = UdpSocket::bind("127.0.0.1:0")?;
        let free = UdpSocket::bind("127.0.0.1:0")?;
        let (our_port, qemu_port) = (ours.local_addr()?.port(), free.local_addr()?.port());
        drop(free); // QEMU takes it
        ours.connect(("127.0.0.1", qemu_port))?;
        ours.set_read_timeout(Some(Duration::from_millis(200)))?;
        let netdev = format!(
            "dgram,id=uplink,local.type=inet,local.host=127.0.0.1,local.port={qemu_port},\
             remote.type=inet,remote.host=127.0.0.1,remote.port={our_port}"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut frame = [0u8; 2048];
            while !stopped.load(Ordering::Relaxed) {
                // A refused datagram means that QEMU has not begun yet, or has ended.
                let Ok(length) = ours.recv(&mut frame) else { continue };
                for reply in replies(&frame[..length], &mut answer) {
                    let _ = ours.send(&reply); // as above
                }
            }
        });
        Ok(Wire { netdev, stop, thread: Some(thread) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it only ends by itself
        }
    }
}

fn replies(frame: &[u8], answer: &mut impl FnMut(Datagram) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    match frame.get(12..14) {
        Some(kind) if kind == ARP_TYPE => arp(frame).into_iter().collect(),
        Some(kind) if kind == IPV4_TYPE => udp(frame, answer).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Every address but the asker's own is here.
fn arp(frame: &[u8]) -> Option<Vec<u8>> {
    let body = frame.get(ETHERNET..ETHERNET + 28)?;
    let is_request = body[6..8] == [0, 1];
    let is_probe = body[14..18] == body[24..28] || body[14..18] == [0; 4];
    if !is_request || is_probe {
        return None;
    }
    let mut reply =
        [&body[8..14], &OUR_MAC, &ARP_TYPE, &body[..6], &[0, 2], &OUR_MAC, &body[24..28]].concat();
    reply.extend(&body[8..18]);
    Some(reply)
}

fn udp(frame: &[u8], answer: &mut impl FnMut(Datagram) -> Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let packet = frame.get(ETHERNET..)?;
    let header = packet.get(..IPV4 + UDP)?;
    if header[0] != 0x45 || header[9] != 17 {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let (from, to) = ((address(12), port(20)), (address(16), port(22)));
    let payload = packet.get(IPV4 + UDP..IPV4 + usize::from(port(24)))?.to_vec();
    let ethernet = [&frame[6..12], &OUR_MAC, &IPV4_TYPE].concat();
    let sent = answer(Datagram { to, payload });
    Some(sent.iter().map(|payload| [ethernet.clone(), datagram(to, from, payload)].concat()).collect())
}

fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let udp_bytes = (UDP + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend((IPV4 as u16 + udp_bytes).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    header.extend(from.0.octets());
    header.extend(to.0.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    // No UDP checksum: IPv4 allows zero for none.
    let ports = [from.1.to_be_bytes(), to.1.to_be_bytes(), udp_bytes.to_be_bytes(), [0, 0]].concat();
    [header, ports, payload.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_comes_back_to_its_sender() {
        let node = (Ipv4Addr::new(192, 0, 2, 5), 4000);
        let server = (Ipv4Addr::new(192, 0, 2, 9), 123);
        let node_mac = [2, 0, 0, 0, 0, 7];
        let sent = [OUR_MAC.to_vec(), node_mac.to_vec(), IPV4_TYPE.to_vec(), datagram(node, server, b"ask")]
            .concat();
        let mut seen = Vec::new();
        let back = replies(&sent, &mut |datagram: Datagram| {
            seen.push(datagram);
            vec![b"answer".to_vec()]
        });
        assert_eq!(seen, [Datagram { to: server, payload: b"ask".to_vec() }]);
        let wanted =
            [node_mac.to_vec(), OUR_MAC.to_vec(), IPV4_TYPE.to_vec(), datagram(server, node, b"answer")];
        assert_eq!(back, [wanted.concat()]);
    }

    #[test]
    fn addresses_are_found_and_a_probe_is_left_unanswered() {
        let mut ask = [[0xff; 6], [2, 0, 0, 0, 0, 7]].concat();
        ask.extend([
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 192, 0, 2, 5, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9,
        ]);
        let reply = arp(&ask).unwrap();
        assert_eq!(reply.len(), 42);
        assert_eq!((&reply[..6], &reply[20..22]), (&[2, 0, 0, 0, 0, 7][..], &[0, 2][..]));
        assert_eq!((&reply[28..32], &reply[38..42]), (&[192, 0, 2, 9][..], &[192, 0, 2, 5][..]));
        ask[28..32].copy_from_slice(&[0; 4]);
        assert_eq!(arp(&ask), None);
    }
}
