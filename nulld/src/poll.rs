//! Names for what epoll reports.

use std::io;
use std::os::fd::AsFd;

use rustix::event::epoll::{self, EventData, EventFlags};

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Signals,
    Door,
    /// Log pipe of the service with this index.
    Log(u32),
    /// Readiness pipe of the service with this index.
    Notify(u32),
    /// Connection with this number.
    Connection(u32),
    /// /dev/kmsg.
    Kernel,
    /// The timer that ends when the wall clock jumps.
    Clock,
    /// Input device with this index.
    Button(u32),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Token::Signals => (0u64, 0),
            Token::Door => (1, 0),
            Token::Log(index) => (2, index),
            Token::Notify(index) => (3, index),
            Token::Connection(id) => (4, id),
            Token::Kernel => (5, 0),
            Token::Clock => (6, 0),
            Token::Button(index) => (7, index),
        };
        kind << 32 | u64::from(number)
    }

    /// The token of an event; none for a number that nulld never gave out.
    pub fn decode(data: u64) -> Option<Token> {
        let number = (data & u64::from(u32::MAX)) as u32;
        match data >> 32 {
            0 => Some(Token::Signals),
            1 => Some(Token::Door),
            2 => Some(Token::Log(number)),
            3 => Some(Token::Notify(number)),
            4 => Some(Token::Connection(number)),
            5 => Some(Token::Kernel),
            6 => Some(Token::Clock),
            7 => Some(Token::Button(number)),
            _ => None,
        }
    }
}

/// Adds a descriptor. Closing it takes it out again, as nulld never copies what it watches.
pub fn watch(epoll: impl AsFd, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
    epoll::add(epoll, fd, EventData::new_u64(token.encode()), flags)?;
    Ok(())
}

/// Changes what is reported of a watched descriptor; nothing: only that it was hung up.
pub fn rewatch(epoll: impl AsFd, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
    epoll::modify(epoll, fd, EventData::new_u64(token.encode()), flags)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_round_trip() {
        for token in [
            Token::Signals,
            Token::Door,
            Token::Log(7),
            Token::Notify(u32::MAX),
            Token::Connection(3),
            Token::Kernel,
            Token::Clock,
            Token::Button(2),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
