//! Guests have no clock but the node's: when that one is set, they are told.

use abi::control::AgentState;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;

use crate::agents::Cage;
use crate::order;

/// Tells all guests the time whenever the wall clock jumps (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). Returns only when it
/// cannot watch the clock. A guest that stands still is told when it goes on.
pub fn watch(cage: &Cage) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC)?;
    let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    loop {
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)?;
        match rustix::io::read(&timer, &mut [0u8; 8]) {
            Err(rustix::io::Errno::CANCELED) => tell(cage),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(cage: &Cage) {
    for agent in cage.known_agents() {
        let session = {
            let facts = agent.facts();
            facts.session.clone().filter(|_| facts.state.now() == AgentState::Running)
        };
        if let Some(session) = session
            && let Err(error) = session.clock(order::clock_unix_ns())
        {
            abi::log::warning("guest_clock_not_set", &[("agent", &agent.name), ("error", &error)]);
        }
    }
}
