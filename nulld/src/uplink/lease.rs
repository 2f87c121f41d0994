//! The life of a lease (RFC 2131, section 4.4): ask, take, renew, rebind, lose. Pure; [`super`] does the sending.
//!
//! Must hold: every wait has a time, doubling to a bound; an address is dropped when its lease ends and never before.

use std::net::Ipv4Addr;

use super::dhcp::{Kind, Reply, Say};

/// First pause before a message is sent again.
const RETRY_MS_MIN: u64 = 1_000;
/// Longest pause while there is no lease.
const RETRY_MS_MAX: u64 = 64_000;
/// Shortest pause while renewing.
const RENEW_RETRY_MS_MIN: u64 = 15_000;
/// Requests for an offer before it is given up.
const TAKE_TRIES_MAX: u32 = 4;

/// An address, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    pub server: Ipv4Addr,
    pub renew_ms: u64,
    pub rebind_ms: u64,
    pub expire_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Asking { tries: u32 },
    Taking { offer: Lease, tries: u32 },
    Bound { lease: Lease },
    Renewing { lease: Lease },
    Rebinding { lease: Lease },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Send to this server, or to all.
    Send { say: Say, to: Option<Ipv4Addr> },
    /// The address may be used from now on.
    Apply(Lease),
    /// It must not be used any more.
    Drop(Lease),
}

/// A client's memory.
#[derive(Debug)]
pub struct Dhcp {
    state: State,
    /// When [`Dhcp::on_time`] has something to do.
    pub deadline_ms: u64,
}

impl Dhcp {
    /// Begins at once.
    pub fn new(now_ms: u64) -> Dhcp {
        Dhcp { state: State::Asking { tries: 0 }, deadline_ms: now_ms }
    }

    /// The deadline has passed.
    pub fn on_time(&mut self, now_ms: u64) -> Vec<Do> {
        match self.state.clone() {
            State::Asking { tries } => {
                self.enter(State::Asking { tries: tries + 1 }, now_ms + retry(tries));
                vec![broadcast(Say::Discover)]
            }
            State::Taking { tries, .. } if tries >= TAKE_TRIES_MAX => self.start_over(now_ms),
            State::Taking { offer, tries } => {
                let say = take(&offer);
                let next = State::Taking { offer, tries: tries + 1 };
                self.enter(next, now_ms + retry(tries));
                vec![broadcast(say)]
            }
            State::Bound { lease } | State::Renewing { lease } if now_ms < lease.rebind_ms => {
                let say = Say::Renew { address: lease.address };
                let to = Some(lease.server);
                let next = now_ms + renew_retry(lease.rebind_ms, now_ms);
                self.enter(State::Renewing { lease }, next);
                vec![Do::Send { say, to }]
            }
            State::Bound { lease } | State::Renewing { lease } | State::Rebinding { lease }
                if now_ms < lease.expire_ms =>
            {
                let say = Say::Renew { address: lease.address };
                let next = now_ms + renew_retry(lease.expire_ms, now_ms);
                self.enter(State::Rebinding { lease }, next);
                vec![broadcast(say)]
            }
            State::Bound { lease } | State::Renewing { lease } | State::Rebinding { lease } => {
                let mut all = vec![Do::Drop(lease)];
                all.extend(self.start_over(now_ms));
                all
            }
        }
    }

    /// A server has answered.
    pub fn on_reply(&mut self, now_ms: u64, reply: &Reply) -> Vec<Do> {
        match (self.state.clone(), reply.kind) {
            (State::Asking { .. }, Kind::Offer) => match reply.lease(now_ms) {
                Some(offer) => {
                    let say = take(&offer);
                    self.enter(State::Taking { offer, tries: 1 }, now_ms + retry(0));
                    vec![broadcast(say)]
                }
                None => Vec::new(),
            },
            (State::Taking { offer, .. }, Kind::Ack) => match reply.lease(now_ms) {
                Some(lease) if lease.server == offer.server => self.bind(lease),
                _ => Vec::new(),
            },
            (State::Taking { offer, .. }, Kind::Nak) if reply.server == Some(offer.server) => {
                self.start_over(now_ms)
            }
            (State::Renewing { lease } | State::Rebinding { lease }, Kind::Ack) => {
                match reply.lease(now_ms) {
                    Some(renewed) if renewed.address == lease.address => self.bind(renewed),
                    Some(other) => {
                        let mut all = vec![Do::Drop(lease)];
                        all.extend(self.bind(other));
                        all
                    }
                    None => Vec::new(),
                }
            }
            (State::Renewing { lease } | State::Rebinding { lease }, Kind::Nak)
                if reply.server == Some(lease.server) =>
            {
                let mut all = vec![Do::Drop(lease)];
                all.extend(self.start_over(now_ms));
                all
            }
            (
                State::Asking { .. }
                | State::Taking { .. }
                | State::Bound { .. }
                | State::Renewing { .. }
                | State::Rebinding { .. },
                Kind::Offer | Kind::Ack | Kind::Nak,
            ) => Vec::new(),
        }
    }

    fn bind(&mut self, lease: Lease) -> Vec<Do> {
        self.enter(State::Bound { lease: lease.clone() }, lease.renew_ms);
        vec![Do::Apply(lease)]
    }

    fn start_over(&mut self, now_ms: u64) -> Vec<Do> {
        self.enter(State::Asking { tries: 1 }, now_ms + retry(1));
        vec![broadcast(Say::Discover)]
    }

    fn enter(&mut self, state: State, deadline_ms: u64) {
        self.state = state;
        self.deadline_ms = deadline_ms;
    }
}

fn broadcast(say: Say) -> Do {
    Do::Send { say, to: None }
}

fn take(offer: &Lease) -> Say {
    Say::Take { address: offer.address, server: offer.server }
}

fn retry(tries: u32) -> u64 {
    RETRY_MS_MIN.checked_shl(tries.min(16)).unwrap_or(RETRY_MS_MAX).min(RETRY_MS_MAX)
}

/// Half of what is left (RFC 2131, 4.4.5).
fn renew_retry(until_ms: u64, now_ms: u64) -> u64 {
    (until_ms.saturating_sub(now_ms) / 2).max(RENEW_RETRY_MS_MIN)
}

#[cfg(test)]
mod tests {
    use super::super::dhcp::decode;
    use super::super::dhcp::tests::{MAC, USUAL, answer};
    use super::*;

    fn reply(kind: u8) -> Reply {
        decode(&answer(kind, 1, [10, 0, 2, 15], USUAL), &MAC, 1).unwrap()
    }

    fn bound() -> (Dhcp, Lease) {
        let mut dhcp = Dhcp::new(0);
        assert_eq!(dhcp.on_time(0), [broadcast(Say::Discover)]);
        assert!(matches!(dhcp.on_reply(10, &reply(2))[..], [Do::Send { say: Say::Take { .. }, to: None }]));
        match &dhcp.on_reply(20, &reply(5))[..] {
            [Do::Apply(lease)] => (dhcp, lease.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_offer_is_taken_and_a_lease_renewed_at_its_server() {
        let (mut dhcp, lease) = bound();
        assert_eq!(dhcp.deadline_ms, lease.renew_ms);
        let renew = dhcp.on_time(lease.renew_ms);
        assert_eq!(renew, [Do::Send { say: Say::Renew { address: lease.address }, to: Some(lease.server) }]);
        let renewed = dhcp.on_reply(lease.renew_ms + 5, &reply(5));
        assert!(matches!(&renewed[..], [Do::Apply(next)] if next.expire_ms > lease.expire_ms));
    }

    #[test]
    fn a_silent_server_loses_the_lease_at_its_end_and_not_before() {
        let (mut dhcp, lease) = bound();
        let (mut unicast, mut rebinds) = (0, 0);
        loop {
            let now = dhcp.deadline_ms;
            let all = dhcp.on_time(now);
            match &all[..] {
                [Do::Send { to: Some(_), .. }] => unicast += 1,
                [Do::Send { to: None, .. }] => rebinds += 1,
                [Do::Drop(dropped), Do::Send { .. }] => {
                    assert!(now >= lease.expire_ms && *dropped == lease);
                    break;
                }
                other => panic!("{other:?}"),
            }
            assert!(unicast + rebinds < 100, "the lease never ends");
        }
        assert!(unicast > 1 && rebinds > 1);
    }

    #[test]
    fn a_refusal_of_the_server_ends_the_lease_and_one_of_another_does_not() {
        let (mut dhcp, lease) = bound();
        dhcp.on_time(lease.renew_ms);
        let mut other: Vec<(u8, &[u8])> = USUAL.to_vec();
        other.retain(|(number, _)| *number != 54);
        other.push((54, &[10, 0, 2, 99]));
        let foreign = decode(&answer(6, 1, [0; 4], &other), &MAC, 1).unwrap();
        assert!(dhcp.on_reply(lease.renew_ms + 1, &foreign).is_empty());
        let refused = dhcp.on_reply(lease.renew_ms + 2, &reply(6));
        assert!(matches!(&refused[..], [Do::Drop(_), Do::Send { .. }]));
    }

    #[test]
    fn pauses_double_to_a_bound_while_nobody_answers() {
        let mut dhcp = Dhcp::new(0);
        let mut last = 0;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            dhcp.on_time(dhcp.deadline_ms);
            pauses.push(dhcp.deadline_ms - last);
            last = dhcp.deadline_ms;
        }
        assert_eq!(pauses[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(pauses[8], RETRY_MS_MAX);
    }
}
