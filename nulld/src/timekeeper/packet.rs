//! SNTP messages (RFC 4330, RFC 5905 section 7.3): the question, and what makes an answer to it one that may be used.
//!
//! A format of our own, 48 bytes of it: `sntpc`, the light crate for it, puts the node's own time into the question and matches
//! answers by that, where a node wants a random number that nobody off the path can guess.
//!
//! Must hold: only an answer to this question is read, and only one that claims a synchronised server with a sane distance makes a
//! sample. Must never: trust a time. [`super::judge`] says which samples move the clock.

/// Bytes of a message without extensions; more is not read.
pub const MESSAGE_BYTES: usize = 48;

/// Seconds from 1900 to 1970.
const UNIX_EPOCH_S: u64 = 2_208_988_800;
/// Nanoseconds of a second.
const SECOND_NS: i64 = 1_000_000_000;
/// Farthest that an answer may say it is from true time (RFC 5905, MAXDIST), in nanoseconds.
const DISTANCE_NS_MAX: i64 = 1_500_000_000;
/// Least distance assumed: the clocks' own grain (RFC 5905, MINDISP), in nanoseconds.
const DISTANCE_NS_MIN: i64 = 5_000_000;

/// What one exchange says of this node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What must be added to this node's clock, in nanoseconds.
    pub offset_ns: i64,
    /// How far true time may be from that, either way, by what the server says and how long the exchange took.
    pub distance_ns: i64,
    pub stratum: u8,
}

/// When the question left and its answer came.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Between the two, in nanoseconds, by a clock that does not jump.
    pub took_ns: i64,
    /// Wall clock when the answer came, in nanoseconds since 1970.
    pub came_unix_ns: i64,
}

/// Why an answer makes no sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an answer to this question: somebody else's, an old one, or a forged one. The right one may still come.
    #[error("an answer to another question")]
    NotOurs,
    /// The server wants to be asked less often (RFC 5905, 7.4, RATE).
    #[error("the server wants to be asked less often")]
    Slower,
    /// The server does not want to be asked (DENY, RSTR, and every other code).
    #[error("the server refuses to serve this node")]
    Denied,
    #[error("the server's own clock is not synchronised")]
    Unsynchronised,
    #[error("the server is too far from true time")]
    TooFar,
    #[error("the answer's times contradict each other")]
    Contradiction,
    /// The clock cannot be below this software's own age.
    #[error("the server's time is before this image was built")]
    BeforeFloor,
}

/// A question with this random number where a client's time stands.
pub fn question(cookie: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0u8; MESSAGE_BYTES];
    // No leap indicator, version 4, mode 3 (client); everything else a server needs from no client (RFC 4330, section 5).
    let [first, .., a, b, c, d, e, f, g, h] = &mut message;
    *first = 0x23;
    [*a, *b, *c, *d, *e, *f, *g, *h] = cookie.to_be_bytes();
    message
}

/// The sample in an answer. `floor_s`: the image's time in seconds since 1970, which also tells the era of the server's seconds.
pub fn sample(message: &[u8], cookie: u64, times: Times, floor_s: u64) -> Result<Sample, Refusal> {
    let answer = Answer::read(message).ok_or(Refusal::NotOurs)?;
    let is_server = answer.mode == 4 && (3..=4).contains(&answer.version);
    if !is_server || answer.origin != cookie {
        return Err(Refusal::NotOurs);
    }
    if answer.stratum == 0 {
        return Err(if &answer.reference == b"RATE" { Refusal::Slower } else { Refusal::Denied });
    }
    if answer.leap == 3 || answer.stratum > 15 || answer.received == 0 || answer.sent == 0 {
        return Err(Refusal::Unsynchronised);
    }
    let received = unix_ns(answer.received, floor_s);
    let sent = unix_ns(answer.sent, floor_s);
    let at_server = sent - received;
    let delay = times.took_ns - at_server;
    if at_server < 0 || times.took_ns < 0 || delay < 0 {
        return Err(Refusal::Contradiction);
    }
    let floor = i64::try_from(floor_s).unwrap_or(0).saturating_mul(SECOND_NS);
    if sent < floor {
        return Err(Refusal::BeforeFloor);
    }
    let distance = (answer.root_delay_ns + delay) / 2 + answer.root_dispersion_ns;
    if distance > DISTANCE_NS_MAX {
        return Err(Refusal::TooFar);
    }
    // RFC 5905, section 8: half of what both ways say.
    let there = received - (times.came_unix_ns - times.took_ns);
    let back = sent - times.came_unix_ns;
    Ok(Sample {
        offset_ns: there / 2 + back / 2,
        distance_ns: distance.max(DISTANCE_NS_MIN),
        stratum: answer.stratum,
    })
}

/// The fields of a message that a client uses.
struct Answer {
    leap: u8,
    version: u8,
    mode: u8,
    stratum: u8,
    root_delay_ns: i64,
    root_dispersion_ns: i64,
    reference: [u8; 4],
    origin: u64,
    received: u64,
    sent: u64,
}

impl Answer {
    fn read(message: &[u8]) -> Option<Answer> {
        let long = |at: usize| Some(u64::from_be_bytes(message.get(at..at + 8)?.try_into().ok()?));
        let short = |at: usize| {
            let value = u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?);
            Some(i64::from(value) * SECOND_NS / 65_536)
        };
        let first = *message.first()?;
        Some(Answer {
            leap: first >> 6,
            version: first >> 3 & 7,
            mode: first & 7,
            stratum: *message.get(1)?,
            root_delay_ns: short(4)?,
            root_dispersion_ns: short(8)?,
            reference: message.get(12..16)?.try_into().ok()?,
            origin: long(24)?,
            received: long(32)?,
            sent: long(40)?,
        })
    }
}

/// A server's time in nanoseconds since 1970. Its 32 bits of seconds begin again every 136 years (2036 next): the era is taken that
/// lies nearest to the image's time.
fn unix_ns(timestamp: u64, floor_s: u64) -> i64 {
    let seconds = (timestamp >> 32) as u32;
    let floor = floor_s.saturating_add(UNIX_EPOCH_S);
    let from_floor = i64::from(seconds.wrapping_sub(floor as u32).cast_signed());
    let nanos = ((timestamp & u64::from(u32::MAX)) * SECOND_NS.cast_unsigned()) >> 32;
    let unix_s = i64::try_from(floor_s).unwrap_or(0).saturating_add(from_floor);
    unix_s.saturating_mul(SECOND_NS).saturating_add(nanos.cast_signed())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Build time of the tests' image: 2026-01-01.
    pub const FLOOR_S: u64 = 1_767_225_600;
    pub const COOKIE: u64 = 0x0123_4567_89ab_cdef;
    /// A day and a little after that.
    pub const NOW_NS: i64 = (FLOOR_S as i64 + 100_000) * SECOND_NS + 250_000_000;
    pub const MS: i64 = 1_000_000;

    /// A time as it stands in a message.
    pub fn timestamp(unix_ns: i64) -> u64 {
        let seconds = (unix_ns.div_euclid(SECOND_NS) as u64).wrapping_add(UNIX_EPOCH_S) as u32;
        let nanos = unix_ns.rem_euclid(SECOND_NS) as u64;
        // Rounded up, so that reading it back gives the same nanosecond.
        u64::from(seconds) << 32 | (nanos << 32).div_ceil(SECOND_NS as u64)
    }

    /// A good server's answer: received and sent at these times.
    pub fn answer(cookie: u64, received_ns: i64, sent_ns: i64) -> [u8; MESSAGE_BYTES] {
        let mut message = [0u8; MESSAGE_BYTES];
        message[0] = 0x24;
        message[1] = 2;
        message[4..8].copy_from_slice(&655u32.to_be_bytes()); // 10 ms to the root
        message[8..12].copy_from_slice(&655u32.to_be_bytes());
        message[12..16].copy_from_slice(&[192, 0, 2, 1]);
        message[24..32].copy_from_slice(&cookie.to_be_bytes());
        message[32..40].copy_from_slice(&timestamp(received_ns).to_be_bytes());
        message[40..48].copy_from_slice(&timestamp(sent_ns).to_be_bytes());
        message
    }

    const TIMES: Times = Times { took_ns: 20 * MS, came_unix_ns: NOW_NS };

    fn read(message: &[u8]) -> Result<Sample, Refusal> {
        sample(message, COOKIE, TIMES, FLOOR_S)
    }

    #[test]
    fn the_question_holds_nothing_of_this_node_but_a_random_number() {
        let message = question(COOKIE);
        assert_eq!((message[0], &message[40..]), (0x23, &COOKIE.to_be_bytes()[..]));
        assert!(message[1..40].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_answer_says_how_far_the_clock_is_off() {
        for offset in [0, 7 * MS, -7 * MS, 86_400 * SECOND_NS, -50_000 * SECOND_NS] {
            // 8 ms there, 2 ms at the server, 10 ms back.
            let received = NOW_NS - 12 * MS + offset;
            let found = read(&answer(COOKIE, received, received + 2 * MS)).unwrap();
            // Half of the difference between the two ways cannot be told.
            assert!((found.offset_ns - offset + MS).abs() <= 2, "{offset}: {found:?}");
            assert!(found.distance_ns > 9 * MS && found.distance_ns < 30 * MS, "{found:?}");
        }
    }

    #[test]
    fn only_an_answer_to_this_question_is_read() {
        let good = answer(COOKIE, NOW_NS - 10 * MS, NOW_NS - 9 * MS);
        assert!(read(&good).is_ok());
        assert_eq!(read(&answer(COOKIE + 1, NOW_NS, NOW_NS)), Err(Refusal::NotOurs));
        assert_eq!(read(&answer(0, NOW_NS, NOW_NS)), Err(Refusal::NotOurs));
        for first in [0x23, 0x25, 0x26, 0x0c, 0x3c] {
            // A client's own message, broadcast, control, versions 1 and 7.
            let mut other = good;
            other[0] = first;
            assert_eq!(read(&other), Err(Refusal::NotOurs), "{first:#x}");
        }
        for end in 0..MESSAGE_BYTES {
            assert_eq!(read(&good[..end]), Err(Refusal::NotOurs), "{end}");
        }
        // A message with extensions is read by its head.
        assert!(read(&[&good[..], &[0; 20]].concat()).is_ok());
    }

    #[test]
    fn a_kiss_of_death_is_no_time_whatever_else_it_holds() {
        for (code, refusal) in [
            (b"RATE", Refusal::Slower),
            (b"DENY", Refusal::Denied),
            (b"RSTR", Refusal::Denied),
            (b"\0\0\0\0", Refusal::Denied),
        ] {
            let mut kiss = answer(COOKIE, NOW_NS, NOW_NS);
            kiss[1] = 0;
            kiss[12..16].copy_from_slice(code);
            assert_eq!(read(&kiss), Err(refusal));
            // A forged one does nothing at all.
            kiss[31] ^= 1;
            assert_eq!(read(&kiss), Err(Refusal::NotOurs));
        }
    }

    #[test]
    fn insane_answers_make_no_sample() {
        let refused = |change: &dyn Fn(&mut [u8; MESSAGE_BYTES])| {
            let mut message = answer(COOKIE, NOW_NS - 10 * MS, NOW_NS - 9 * MS);
            change(&mut message);
            read(&message).unwrap_err()
        };
        assert_eq!(refused(&|m| m[0] |= 0xc0), Refusal::Unsynchronised);
        assert_eq!(refused(&|m| m[1] = 16), Refusal::Unsynchronised);
        assert_eq!(refused(&|m| m[40..48].fill(0)), Refusal::Unsynchronised);
        assert_eq!(refused(&|m| m[32..40].fill(0)), Refusal::Unsynchronised);
        assert_eq!(refused(&|m| m[4..8].copy_from_slice(&u32::MAX.to_be_bytes())), Refusal::TooFar);
        assert_eq!(refused(&|m| m[8..12].copy_from_slice(&[0, 2, 0, 0])), Refusal::TooFar);
        let back = timestamp(NOW_NS - 11 * MS).to_be_bytes();
        assert_eq!(refused(&|m| m[40..48].copy_from_slice(&back)), Refusal::Contradiction);
        // It says that it worked on it for longer than the whole exchange took.
        let later = timestamp(NOW_NS + 50 * MS).to_be_bytes();
        assert_eq!(refused(&|m| m[40..48].copy_from_slice(&later)), Refusal::Contradiction);
    }

    #[test]
    fn a_time_before_the_image_was_built_is_refused() {
        let floor = FLOOR_S as i64 * SECOND_NS;
        for before in [1, SECOND_NS, 1000 * SECOND_NS, 50 * 365 * 86_400 * SECOND_NS] {
            assert_eq!(read(&answer(COOKIE, floor - before, floor - before)), Err(Refusal::BeforeFloor));
        }
        assert!(read(&answer(COOKIE, floor, floor)).is_ok());
    }

    #[test]
    fn seconds_that_began_again_in_2036_are_read_in_their_era() {
        let in_2040 = 2_208_988_800i64 * SECOND_NS + 5;
        assert_eq!(unix_ns(timestamp(in_2040), FLOOR_S), in_2040);
        let in_2085 = 3_629_000_000i64 * SECOND_NS + 999_999_999;
        assert_eq!(unix_ns(timestamp(in_2085), FLOOR_S), in_2085);
        assert_eq!(unix_ns(timestamp(NOW_NS), FLOOR_S), NOW_NS);
    }

    /// Whatever bytes come: no panic, and no sample without this question's number.
    #[test]
    fn random_bytes_never_make_a_sample() {
        let seed = std::process::id() as u64 | 1;
        println!("seed {seed}");
        let mut state = seed;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..200_000 {
            let mut message: Vec<u8> = (0..8).flat_map(|_| next().to_ne_bytes()).collect();
            message.truncate((next() % 65) as usize);
            assert!(read(&message).is_err());
            // With the number every field is still checked.
            if round % 2 == 0 && message.len() >= MESSAGE_BYTES {
                message[0] = 0x24;
                message[24..32].copy_from_slice(&COOKIE.to_be_bytes());
                if let Ok(sample) = read(&message) {
                    assert!(sample.distance_ns <= DISTANCE_NS_MAX && (1..=15).contains(&sample.stratum));
                }
            }
        }
    }
}
