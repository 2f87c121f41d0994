//! How much may be on its way on one channel. Pure: both ends of a window, counted.
//!
//! Must hold: what was sent and not yet taken never exceeds the window; a peer that says otherwise is found at that frame.

/// The peer sent, or gave back, more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

/// The taking end: what the guest may still send.
#[derive(Debug)]
pub struct Taking {
    window: u32,
    /// Bytes that may still come.
    open: u32,
    /// Bytes taken and not yet given back.
    owed: u32,
}

impl Taking {
    /// A window of so many bytes, all open.
    pub fn new(window: u32) -> Taking {
        Taking { window, open: window, owed: 0 }
    }

    /// So many bytes came.
    pub fn came(&mut self, bytes: usize) -> Result<(), Overrun> {
        let bytes = u32::try_from(bytes).map_err(|_| Overrun)?;
        self.open = self.open.checked_sub(bytes).ok_or(Overrun)?;
        Ok(())
    }

    /// So many of them were taken; what to give back to the peer now, if it is worth a frame (half a window).
    pub fn taken(&mut self, bytes: usize) -> Option<u32> {
        let outstanding = self.window - self.open - self.owed;
        self.owed += u32::try_from(bytes).unwrap_or(u32::MAX).min(outstanding);
        if self.owed == 0 || self.owed < self.window / 2 {
            return None;
        }
        self.open += self.owed;
        Some(std::mem::take(&mut self.owed))
    }
}

/// The sending end: what may still be sent to the guest.
#[derive(Debug)]
pub struct Sending {
    window: u32,
    left: u32,
}

impl Sending {
    /// A window of so many bytes, none of them sent.
    pub fn new(window: u32) -> Sending {
        Sending { window, left: window }
    }

    /// Takes leave to send up to `wanted` bytes; zero: wait until the peer has taken some.
    pub fn leave(&mut self, wanted: usize) -> usize {
        let bytes = self.left.min(u32::try_from(wanted).unwrap_or(u32::MAX));
        self.left -= bytes;
        bytes as usize
    }

    /// The peer took so many bytes.
    pub fn widened(&mut self, bytes: u32) -> Result<(), Overrun> {
        let left = self.left.checked_add(bytes).filter(|left| *left <= self.window).ok_or(Overrun)?;
        self.left = left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A small generator (xorshift64), so that a failure can be run again from its seed.
    struct Dice(u64);
    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    /// One sender, one taker, two wires, steps in any order: everything arrives, and never more than the window is on its way.
    #[test]
    fn random_traffic_stays_within_the_window_and_arrives_whole() {
        let seed = std::process::id() as u64 * 0x9e37_79b9 + 1;
        println!("seed {seed}");
        for round in 0..200 {
            let mut dice = Dice(seed + round);
            let window = 1 + dice.below(300) as u32;
            let (mut sending, mut taking) = (Sending::new(window), Taking::new(window));
            let (mut wire, mut back) = (VecDeque::new(), VecDeque::new());
            let (mut unsent, mut queued, mut arrived) = (5_000usize, 0usize, 0usize);
            while arrived < 5_000 {
                match dice.below(4) {
                    0 => {
                        let leave = sending.leave(unsent.min(1 + dice.below(100)));
                        unsent -= leave;
                        if leave > 0 {
                            wire.push_back(leave);
                        }
                    }
                    1 => {
                        if let Some(bytes) = wire.pop_front() {
                            taking.came(bytes).unwrap();
                            queued += bytes;
                        }
                    }
                    2 => {
                        let bytes = queued.min(1 + dice.below(100));
                        queued -= bytes;
                        arrived += bytes;
                        back.extend(taking.taken(bytes));
                    }
                    _ => {
                        if let Some(bytes) = back.pop_front() {
                            sending.widened(bytes).unwrap();
                        }
                    }
                }
                let on_its_way: usize = queued + wire.iter().sum::<usize>();
                assert!(on_its_way <= window as usize, "seed {seed} round {round}: {on_its_way} > {window}");
            }
        }
    }

    #[test]
    fn one_byte_more_than_the_window_is_found() {
        let mut taking = Taking::new(10);
        taking.came(10).unwrap();
        assert_eq!(taking.came(1), Err(Overrun));
        assert_eq!(taking.taken(4), None);
        assert_eq!(taking.taken(1), Some(5));
        taking.came(5).unwrap();
        assert_eq!(taking.came(1), Err(Overrun));
    }

    #[test]
    fn giving_back_more_than_was_sent_is_found() {
        let mut sending = Sending::new(10);
        assert_eq!(sending.widened(1), Err(Overrun));
        assert_eq!((sending.leave(7), sending.leave(7), sending.leave(7)), (7, 3, 0));
        sending.widened(10).unwrap();
        assert_eq!(sending.widened(u32::MAX), Err(Overrun));
    }

    #[test]
    fn taking_more_than_came_gives_nothing_away() {
        let mut taking = Taking::new(10);
        taking.came(6).unwrap();
        assert_eq!(taking.taken(1_000), Some(6));
        taking.came(10).unwrap();
        assert_eq!(taking.came(1), Err(Overrun));
    }
}
