//! Notices jumps of the wall clock, whoever made them (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
//!
//! Slewing is no jump: it moves CLOCK_MONOTONIC just the same. Nothing in nulld runs by the wall clock; a jump is told because
//! everything that is dated before it is dated wrongly.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::clock;
use crate::poll::{self, Token};

/// The armed timer.
#[derive(Debug, Default)]
pub struct ClockWatch {
    timer: Option<OwnedFd>,
    /// Wall clock less time since kernel start, in milliseconds, as last seen.
    ahead_ms: u64,
}

impl ClockWatch {
    /// Arms it and watches it. Where that fails, jumps are not noticed.
    pub fn open(epoll: &OwnedFd) -> ClockWatch {
        let armed = || -> std::io::Result<OwnedFd> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
            arm(&timer)?;
            poll::watch(epoll, &timer, Token::Clock, EventFlags::IN)?;
            Ok(timer)
        };
        ClockWatch { timer: armed().ok(), ahead_ms: ahead_ms() }
    }

    /// After an event: from which time to which the clock jumped, in milliseconds since 1970.
    pub fn read(&mut self) -> Option<(u64, u64)> {
        let timer = self.timer.as_ref()?;
        let mut count = [0u8; 8];
        let is_jump = rustix::io::read(timer, &mut count) == Err(rustix::io::Errno::CANCELED);
        // Reading it as cancelled leaves it armed (timerfd_create(2)); setting it again costs nothing and needs no proof of that.
        let _ = arm(timer); // it could be armed once, so it can again
        if !is_jump {
            return None;
        }
        let (before, now) = (self.ahead_ms, ahead_ms());
        self.ahead_ms = now;
        let monotonic = clock::now_ms();
        (before != now).then(|| (before.saturating_add(monotonic), now.saturating_add(monotonic)))
    }
}

/// A time that never comes; a jump of the clock cancels the wait for it.
fn arm(timer: &OwnedFd) -> rustix::io::Result<()> {
    let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)?;
    Ok(())
}

fn ahead_ms() -> u64 {
    clock::unix_ms().saturating_sub(clock::now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_on_is_no_jump() {
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let mut watch = ClockWatch::open(&epoll);
        assert!(watch.timer.is_some());
        assert_eq!(watch.read(), None);
    }
}
