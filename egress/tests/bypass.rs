//! Ways around the rules that need frames no agent can send: a guest's kernel, or a VMM, that was taken over writes what it likes into
//! its TAP. The attacks that an agent itself can make are tried in real guests (system tests, `bypass::*`). Needs what network.rs needs.

mod world;

use world::{Guest, Lease, World};

/// Helpers for frames, for [`Guest::python`].
const FRAMES: &str = "
GATEWAY_MAC, OWN_MAC = bytes.fromhex('MAC'.replace(':', '')), bytes.fromhex('OWN'.replace(':', ''))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(('eth0', 0))
def checksum(data):
    data += b'\\0' * (len(data) % 2)
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def ipv4(payload, to, protocol, source='100.64.0.2', ident=7, offset=0, more=False, options=b'', ttl=64):
    words = (0x2000 if more else 0) | offset // 8
    head = struct.pack('>BBHHHBBH4s4s', 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), ident, words, ttl, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(to)) + options
    return head[:10] + struct.pack('>H', checksum(head)) + head[12:] + payload
def udp(payload, port, source=4000):
    return struct.pack('>HHHH', source, port, 8 + len(payload), 0) + payload
def syn(port, to, source='100.64.0.2', sport=4001):
    head = struct.pack('>HHIIBBHHH', sport, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack('>BBH', 0, 6, len(head))
    return head[:16] + struct.pack('>H', checksum(pseudo + head)) + head[18:]
def send(packet, source=OWN_MAC, to=GATEWAY_MAC, kind=0x0800):
    wire.send(to + source + struct.pack('>H', kind) + packet)
def arp(operation, mac, address, target_mac, target):
    return struct.pack('>HHBBH6s4s6s4s', 1, 0x0800, 6, 4, operation, mac, socket.inet_aton(address), target_mac, socket.inet_aton(target))
question = bytes.fromhex('004d01000001000000000000') + b'\\x03web\\x04test\\0' + bytes.fromhex('00010001')
def answers(seconds=0.5, first=lambda frame: False):
    wire.settimeout(seconds)
    found = []
    try:
        while True:
            frame = wire.recv(4096)
            if frame[:6] != OWN_MAC and frame[6:12] != GATEWAY_MAC: continue
            found.append(frame)
            if first(frame): return found + answers()
    except OSError:
        return found
def answered(which):  # how many came, of which one at least should
    return sum(map(which, answers(20, which)))
";

/// A guest whose code has [`FRAMES`] at hand.
struct Attacker<'a> {
    guest: Guest,
    lease: &'a Lease,
}

impl Attacker<'_> {
    fn new<'a>(world: &World, lease: &'a Lease) -> Attacker<'a> {
        Attacker { guest: world.guest(lease), lease }
    }

    fn run(&self, code: &str) -> String {
        let gateway = String::from_utf8(self.lease.as_root("ip -o link show nbtap0").stdout).unwrap();
        let mac = gateway.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let frames = FRAMES
            .replace("MAC'.", &format!("{mac}'."))
            .replace("OWN'.", &format!("{}'.", self.lease.attached.mac));
        self.guest.python(&format!("{frames}\n{code}"))
    }

    /// The network still does what it should for who keeps to the rules.
    fn is_served(&self) {
        let said = self.guest.text("curl -sS -m 10 http://web.test/");
        assert!(said.contains("hello"), "{said}");
    }
}

fn neighbours(lease: &Lease) -> String {
    String::from_utf8(lease.as_root("ip neigh show").stdout).unwrap()
}

/// Connections that the test internet saw to anything but the granted host.
fn strays(world: &World) -> Vec<String> {
    let granted = |line: &str| line.contains("203.0.113.10:80");
    world
        .seen()
        .lines()
        .filter(|line| line.starts_with("connect ") && !granted(line))
        .map(str::to_owned)
        .collect()
}

/// Else the rest would show nothing.
#[test]
fn frames_that_keep_to_the_rules_are_answered() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    let said = attacker.run(
        "send(ipv4(udp(question, 53), '100.64.0.1', 17))
print('dns', answered(lambda f: f[12:14] == b'\\x08\\x00' and f[23] == 17))
send(arp(1, OWN_MAC, '100.64.0.2', b'\\0' * 6, '100.64.0.1'), to=b'\\xff' * 6, kind=0x0806)
print('arp', answered(lambda f: f[12:14] == b'\\x08\\x06'))
send(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6))
print('reset', answered(lambda f: f[12:14] == b'\\x08\\x00' and f[23] == 6 and f[47] & 4 == 4))",
    );
    for kind in ["dns 1", "arp 1", "reset 1"] {
        assert!(said.contains(kind), "{kind}: {said}");
    }
}

#[test]
fn frames_with_another_source_mac_move_nobody() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    attacker.is_served();
    let before = neighbours(&lease);
    assert!(before.contains("PERMANENT"), "{before}");
    let said = attacker.run(
        "other = bytes.fromhex('02aaaaaaaaaa')
for number in range(50):
    send(ipv4(udp(question, 53), '100.64.0.1', 17), source=other)
    send(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6), source=other)
    send(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6), to=other)
    send(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6), to=b'\\xff' * 6)
print('sent')",
    );
    assert!(said.contains("sent"), "{said}");
    assert_eq!(neighbours(&lease), before);
    attacker.is_served();
    assert_eq!(strays(&world), Vec::<String>::new());
}

#[test]
fn arp_answers_of_a_guests_choice_change_no_neighbour() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    attacker.is_served();
    let before = neighbours(&lease);
    let said = attacker.run(
        "other = bytes.fromhex('02aaaaaaaaaa')
for address in ['100.64.0.1', '100.64.0.2', '100.64.0.3', '198.18.0.7', '192.0.2.1', '8.8.8.8']:
    for operation in (1, 2):
        send(arp(operation, other, address, b'\\xff' * 6, '100.64.0.1'), to=b'\\xff' * 6, kind=0x0806)
        send(arp(operation, OWN_MAC, address, GATEWAY_MAC, address), kind=0x0806)
        send(arp(operation, GATEWAY_MAC, address, other, '100.64.0.2'), source=GATEWAY_MAC, kind=0x0806)
print('sent', [f.hex() for f in answers() if f[12:14] == b'\\x08\\x06' and socket.inet_aton('8.8.8.8') in f[28:32]])",
    );
    assert!(said.contains("sent []"), "somebody answers for an address of the internet: {said}");
    assert_eq!(neighbours(&lease), before);
    attacker.is_served();
}

#[test]
fn sources_that_are_not_the_guests_are_dropped() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    let said = attacker.run(
        "for source in ['100.64.0.3', '100.64.0.1', '127.0.0.1', '0.0.0.0', '255.255.255.255', '198.18.0.9', '192.0.2.2', '224.0.0.1']:
    send(ipv4(udp(question, 53), '100.64.0.1', 17, source=source))
    send(ipv4(syn(80, '198.18.0.9', source), '198.18.0.9', 6, source=source))
    send(ipv4(syn(4466, '127.0.0.1', source), '127.0.0.1', 6, source=source))
ours = [f for f in answers() if f[12:14] == b'\\x08\\x00' and f[23] in (6, 17)]
print('sent', len(ours))",
    );
    assert!(said.contains("sent 0"), "{said}");
    attacker.is_served();
    assert_eq!(strays(&world), Vec::<String>::new());
}

#[test]
fn fragments_are_judged_as_what_they_become() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    let said = attacker.run(
        "# a whole question in two fragments is a question
whole = udp(question, 53)
send(ipv4(whole[:16], '100.64.0.1', 17, ident=11, more=True))
send(ipv4(whole[16:], '100.64.0.1', 17, ident=11, offset=16))
print('answered', answered(lambda f: f[12:14] == b'\\x08\\x00' and f[23] == 17))
# a connection to an address, its port behind the first fragment, overlapping, tiny, endless
for ident, to in enumerate(['8.8.8.8', '203.0.113.11', '169.254.169.254'], 20):
    head = syn(443, to)
    send(ipv4(head[:8], to, 6, ident=ident, more=True)); send(ipv4(head[8:], to, 6, ident=ident, offset=8))
    good = syn(80, '100.64.0.1')
    send(ipv4(good[:16], to, 6, ident=ident + 100, more=True)); send(ipv4(head[8:], to, 6, ident=ident + 100, offset=8))
    send(ipv4(head[:8], to, 6, ident=ident + 200, offset=65528)); send(ipv4(head, to, 6, ident=ident + 300, offset=8))
for ident in range(2000):
    send(ipv4(b'x' * 8, '100.64.0.1', 17, ident=ident, more=True))
print('sent')",
    );
    assert!(said.contains("answered 1") && said.contains("sent"), "{said}");
    attacker.is_served();
    assert_eq!(strays(&world), Vec::<String>::new());
}

#[test]
fn source_routes_and_odd_headers_lead_nowhere() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    let said = attacker.run(
        "route = bytes([131, 7, 4]) + socket.inet_aton('8.8.8.8') + b'\\0'
strict = bytes([137, 7, 4]) + socket.inet_aton('203.0.113.11') + b'\\0'
for options in (route, strict):
    send(ipv4(syn(80, '100.64.0.1'), '100.64.0.1', 6, options=options))
    send(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6, options=options))
for protocol in (2, 4, 41, 47, 50, 89, 132, 136, 255):  # IGMP, IP in IP, IPv6 in IP, GRE, ESP, OSPF, SCTP, UDP-Lite
    send(ipv4(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6), '203.0.113.10', protocol))
    send(ipv4(ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6), '100.64.0.1', protocol))
tagged = struct.pack('>HH', 5, 0x0800) + ipv4(syn(443, '8.8.8.8'), '8.8.8.8', 6)
for kind in (0x8100, 0x88a8, 0x8847, 0x8863, 0x8864, 0x888e, 0x88cc):
    send(tagged, kind=kind)
wire.send(b'\\xff' * 14); wire.send(GATEWAY_MAC + OWN_MAC + b'\\x08\\0' + b'E' * 4)
print('sent')",
    );
    assert!(said.contains("sent"), "{said}");
    attacker.is_served();
    assert_eq!(strays(&world), Vec::<String>::new());
}

#[test]
fn router_advertisements_give_no_address_and_no_route() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let attacker = Attacker::new(&world, &lease);
    let said = attacker.run(
        "def advertisement():
    prefix = bytes([3, 4, 64, 0xc0]) + struct.pack('>III', 600, 600, 0) + socket.inet_pton(socket.AF_INET6, '2001:db8::')
    body = struct.pack('>BBHBBHII', 134, 0, 0, 64, 0, 600, 0, 0) + prefix
    source, to = (socket.inet_pton(socket.AF_INET6, a) for a in ('fe80::1', 'ff02::1'))
    pseudo = source + to + struct.pack('>II', len(body), 58)
    body = body[:2] + struct.pack('>H', checksum(pseudo + body)) + body[4:]
    return struct.pack('>IHBB', 6 << 28, len(body), 58, 255) + source + to + body
for _ in range(5):
    send(advertisement(), to=bytes.fromhex('333300000001'), kind=0x86dd)
print('sent')",
    );
    assert!(said.contains("sent"), "{said}");
    for command in ["ip -6 addr", "ip -6 route", "ip -6 neigh"] {
        let told = lease.as_root(command);
        assert!(told.stdout.is_empty(), "{command}: {}", String::from_utf8_lossy(&told.stdout));
    }
    attacker.is_served();
}
