//! Attacks on the way to the host (Virtual I/O Device 1.2, section 5.10): only ports 1024 and 1025 of the host may answer.

use core::fmt::Write as _;

use super::Random;
use super::attacks::first;
use super::cpu::{self, Serial, read, write};
use super::virtio::{NEXT, Queue, WRITE, kind};

const GUEST: u64 = 3;
const HOST: u64 = 2;
const STREAM: u16 = 1;
const DATAGRAM: u16 = 3;
/// Operations.
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
const HEADER_BYTES: u32 = 44;
const SLOTS: u16 = 128;
/// Room of one packet that comes in or goes out.
const SLOT_BYTES: u64 = 0x1000;
const INCOMING: u64 = cpu::ARENA + 0x20_0000;
const OUTGOING: u64 = cpu::ARENA + 0x40_0000;
const PATIENCE: u32 = 200_000;
const CONTROL: u32 = 1024;

/// A packet's head.
#[derive(Debug, Clone, Copy)]
struct Packet {
    from: u64,
    to: u64,
    from_port: u32,
    to_port: u32,
    bytes: u32,
    kind: u16,
    operation: u16,
    flags: u32,
    room: u32,
    taken: u32,
}

impl Packet {
    fn request(to: u64, from_port: u32, to_port: u32) -> Packet {
        let (bytes, flags, room, taken) = (0, 0, 0x10000, 0);
        Packet {
            from: GUEST,
            to,
            from_port,
            to_port,
            bytes,
            kind: STREAM,
            operation: REQUEST,
            flags,
            room,
            taken,
        }
    }

    fn write(&self, at: u64) {
        write(at, self.from);
        write(at + 8, self.to);
        write(at + 16, self.from_port);
        write(at + 20, self.to_port);
        write(at + 24, self.bytes);
        write(at + 28, self.kind);
        write(at + 30, self.operation);
        write(at + 32, self.flags);
        write(at + 36, self.room);
        write(at + 40, self.taken);
    }
}

/// The device with room for what comes in.
struct Link {
    receive: Queue,
    send: Queue,
    next: u16,
}

impl Link {
    fn up() -> Option<Link> {
        let (_, [mut receive, send, ..]) = first(kind::VSOCK, SLOTS)?;
        for slot in 0..receive.size {
            receive.describe(slot, INCOMING + u64::from(slot) * SLOT_BYTES, SLOT_BYTES as u32, WRITE, 0);
            receive.offer(slot);
        }
        receive.notify();
        Some(Link { receive, send, next: 0 })
    }

    /// Puts one packet, and `data` bytes of a second descriptor, in line.
    fn put(&mut self, packet: &Packet, data: u32) {
        let slot = self.next % (self.send.size / 2).max(1);
        self.next = self.next.wrapping_add(1);
        let at = OUTGOING + u64::from(slot) * SLOT_BYTES;
        packet.write(at);
        self.send.describe(slot * 2, at, HEADER_BYTES, if data == 0 { 0 } else { NEXT }, slot * 2 + 1);
        self.send.describe(slot * 2 + 1, OUTGOING, data, 0, 0);
        self.send.offer(slot * 2);
    }

    /// Sends what is in line and waits until the device has taken it.
    fn flush(&mut self) {
        self.send.notify();
        while self.send.wait(PATIENCE).is_some() {}
    }

    /// What came in: operation, and the port it came from. Gives the room back.
    fn heard(&mut self) -> Option<(u16, u32)> {
        let (slot, _) = self.receive.take()?;
        let at = INCOMING + u64::from(slot) * SLOT_BYTES;
        let found = (read::<u16>(at + 30), read::<u32>(at + 16));
        self.receive.offer(slot as u16);
        Some(found)
    }
}

/// Asks every port of the host, and a choice of ports of every other address, for a connection. Names those that answer.
pub fn ports(random: &mut Random) {
    let Some(mut link) = Link::up() else { return };
    let mut answers = 0u32;
    let mut listen = |link: &mut Link| {
        while let Some((operation, port)) = link.heard() {
            if operation == RESPONSE {
                answers += 1;
                // The port takes everything.
                let _ = writeln!(Serial, "hostile: vsock port {port} answered");
            }
        }
    };
    let wide = (0..=u32::from(u16::MAX)).map(|port| (HOST, port));
    let seeds = random.any() as u32;
    let others = [0, 1, 3, 4, 5, u64::from(u32::MAX), u64::MAX]
        .into_iter()
        .flat_map(|to| (0..300u32).chain(1000..1050).map(move |port| (to, port)));
    let high = (0..2000u32).map(|n| (HOST, seeds.wrapping_mul(n | 1) | 0x1_0000));
    for (count, (to, port)) in wide.chain(others).chain(high).enumerate() {
        link.put(&Packet::request(to, 5000 + count as u32, port), 0);
        if count % 32 == 31 {
            link.flush();
            link.receive.notify();
            listen(&mut link);
        }
    }
    link.flush();
    link.receive.wait(20_000_000).into_iter().for_each(drop);
    listen(&mut link);
    let _ = writeln!(Serial, "hostile: {answers} connections answered");
}

/// libkrun's control ports for sockets on the host's side ("transparent socket impersonation"): all must be dead.
pub fn tsi(random: &mut Random) {
    let Some(mut link) = Link::up() else { return };
    for port in 1024..=1032 {
        for round in 0..64u64 {
            let body = OUTGOING;
            (0..256).for_each(|at| write(body + at, random.any() as u8));
            // Asks for a TCP socket to 10.0.2.2 and to the node's own loopback, in all that the bytes can be taken for.
            write(body, 40u32 + round as u32);
            write(body + 4, random.of(&[1u16, 2, 10]));
            write(body + 6, random.of(&[1u16, 2]));
            write(body + 8, random.of(&[0x0100_007f_u32, 0x0202_000a]));
            let packet = Packet {
                kind: DATAGRAM,
                operation: DATA,
                bytes: 200,
                ..Packet::request(HOST, 40 + round as u32, port)
            };
            link.put(&packet, 200);
            if round % 32 == 31 {
                link.flush();
            }
        }
    }
    let mut answers = 0u32;
    while link.heard().is_some() {
        answers += 1;
    }
    let _ = writeln!(Serial, "hostile: {answers} answers to datagrams"); // the port takes everything
}

/// Packets that lie about lengths, states and senders.
pub fn packets(random: &mut Random) {
    let Some(mut link) = Link::up() else { return };
    for round in 0..3000u32 {
        let packet = Packet {
            from: random.of(&[GUEST, GUEST, HOST, 0, u64::MAX]),
            to: random.of(&[HOST, HOST, GUEST, 1, u64::MAX]),
            from_port: 100 + random.below(8) as u32,
            to_port: random.of(&[CONTROL, CONTROL + 1, 1026, 0, u32::MAX]),
            bytes: random.of(&[0, 1, 44, 4096, 0x10000, 0x10001, 0x7fff_ffff, u32::MAX]),
            kind: random.of(&[STREAM, STREAM, 2, DATAGRAM, 0, 0xffff]),
            operation: random.below(10) as u16,
            flags: random.edge() as u32,
            room: random.edge() as u32,
            taken: random.edge() as u32,
        };
        link.put(&packet, random.of(&[0, 1, 43, 4096, 0x10000]));
        if round % 16 == 15 {
            link.flush();
            link.receive.notify();
            while link.heard().is_some() {}
        }
    }
}

/// More connections than the host can want, none of them ended.
pub fn half_open(_: &mut Random) {
    let Some(mut link) = Link::up() else { return };
    for n in 0..4000u32 {
        link.put(&Packet::request(HOST, 10_000 + n, CONTROL + n % 2), 0);
        if n % 16 == 15 {
            link.flush();
            link.receive.notify();
            while link.heard().is_some() {}
        }
    }
}

/// A connection that sends without being allowed to, promises room that it has not, and asks for credit without end.
pub fn credit(random: &mut Random) {
    let Some(mut link) = Link::up() else { return };
    let open = Packet::request(HOST, 77, CONTROL);
    link.put(&open, 0);
    link.flush();
    for round in 0..2000u32 {
        let operation = random.of(&[DATA, DATA, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN]);
        let operation = if operation == SHUTDOWN && round < 1500 { DATA } else { operation };
        let bytes = if operation == DATA { random.of(&[1, 4096, 0x10000]) } else { 0 };
        let (room, taken) = (random.edge() as u32, random.edge() as u32);
        link.put(&Packet { operation, bytes, room, taken, flags: random.below(4) as u32, ..open }, bytes);
        if round % 16 == 15 {
            link.flush();
            while link.heard().is_some() {}
        }
    }
}
