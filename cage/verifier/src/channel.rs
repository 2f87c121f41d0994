//! The life of one channel: a command, its two outputs, its end. No I/O; the guest's loop does what it is told.
//!
//! Must hold: neither side sends more than the other said it takes; an exit is reported once, after the leader has ended and its output has been taken or given up; when the leader ends,
//! whatever it left behind is killed, so that nothing outlives its channel.

use abi::guest::Exit;
use abi::limits;

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// How a process ended (wait(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// How much output of a channel the host takes now. Channel 0 has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    left: Option<u64>,
}

impl Window {
    /// Channel 0.
    pub const OPEN: Window = Window { left: None };

    /// So many bytes to begin with.
    pub fn of(bytes: u32) -> Window {
        Window { left: Some(u64::from(bytes)) }
    }

    /// The host took so many bytes.
    pub fn widen(&mut self, bytes: u32) {
        self.left = self.left.map(|left| left.saturating_add(u64::from(bytes)));
    }

    /// What may be sent now, of at most `bytes`.
    pub fn of_at_most(&self, bytes: usize) -> usize {
        self.left.map_or(bytes, |left| usize::try_from(left).map_or(bytes, |left| left.min(bytes)))
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.left = self.left.map(|left| left.saturating_sub(bytes as u64));
    }
}

/// How much input of a channel the host may send, and what is to be given back to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intake {
    left: u32,
    taken: u32,
}

impl Default for Intake {
    fn default() -> Self {
        Intake { left: limits::EXEC_INPUT_WINDOW_BYTES, taken: 0 }
    }
}

impl Intake {
    /// Input came. `false`: more than the host may send.
    pub fn receive(&mut self, bytes: usize) -> bool {
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.left.checked_sub(bytes));
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// The process took so many bytes, or nobody will.
    pub fn take(&mut self, bytes: usize) {
        let out = limits::EXEC_INPUT_WINDOW_BYTES.saturating_sub(self.left).saturating_sub(self.taken);
        self.taken += u32::try_from(bytes).map_or(out, |bytes| bytes.min(out));
    }

    /// What the host is to be told that it may send again; not before it is half a window, so that a slow process does not
    /// make a frame for each line.
    pub fn give_back(&mut self) -> Option<u32> {
        if self.taken < limits::EXEC_INPUT_WINDOW_BYTES / 2 {
            return None;
        }
        self.left += self.taken;
        Some(std::mem::take(&mut self.taken))
    }
}

/// What the loop must do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Kill every process in the channel's cgroup; then report [`Life::drain_expired`] if outputs stay open too long.
    KillTree,
    /// Send the exit and forget the channel.
    Finish(Ended),
}

/// Where a channel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    ended: Option<Ended>,
    stdout_open: bool,
    stderr_open: bool,
}

impl Life {
    /// Nothing has ended. A terminal has one output only.
    pub fn new(with_stderr: bool) -> Life {
        Life { ended: None, stdout_open: true, stderr_open: with_stderr }
    }

    /// The leader was reaped.
    pub fn leader_ended(&mut self, ended: Ended) -> Act {
        if self.ended.is_none() {
            self.ended = Some(ended);
        }
        match self.finished() {
            // Even with both outputs closed, something may run on without them.
            Act::Nothing => Act::KillTree,
            finish => finish,
        }
    }

    /// An output reached its end.
    pub fn output_closed(&mut self, output: Output) -> Act {
        match output {
            Output::Stdout => self.stdout_open = false,
            Output::Stderr => self.stderr_open = false,
        }
        self.finished()
    }

    /// Survivors of the kill hold an output open for too long: it is given up.
    pub fn drain_expired(&mut self) -> Act {
        self.stdout_open = false;
        self.stderr_open = false;
        self.finished()
    }

    /// Whether the leader still runs, so that a signal can reach it.
    pub fn running(&self) -> bool {
        self.ended.is_none()
    }

    fn finished(&self) -> Act {
        match self.ended {
            Some(ended) if !self.stdout_open && !self.stderr_open => Act::Finish(ended),
            _ => Act::Nothing,
        }
    }
}

/// The report of an end.
pub fn exit(ended: Ended, oom_killed: bool) -> Exit {
    let (code, signal) = match ended {
        Ended::Code(code) => (Some(code), None),
        Ended::Signal(signal) => (None, Some(signal)),
    };
    Exit { code, signal, oom_killed, dropped_bytes: 0 }
}

/// `oom_kill` of a cgroup's memory.events (cgroup-v2.rst): whether the OOM killer ended something there.
pub fn oom_killed(memory_events: &str) -> bool {
    memory_events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Output::{Stderr, Stdout};

    #[test]
    fn an_exit_waits_for_the_output() {
        let mut life = Life::new(true);
        assert_eq!(life.leader_ended(Ended::Code(3)), Act::KillTree);
        assert!(!life.running());
        assert_eq!(life.output_closed(Stdout), Act::Nothing);
        assert_eq!(life.output_closed(Stderr), Act::Finish(Ended::Code(3)));
    }

    #[test]
    fn a_command_that_closes_its_output_still_runs() {
        let mut life = Life::new(true);
        assert_eq!(life.output_closed(Stderr), Act::Nothing);
        assert_eq!(life.output_closed(Stdout), Act::Nothing);
        assert!(life.running());
        assert_eq!(life.leader_ended(Ended::Signal(9)), Act::Finish(Ended::Signal(9)));
    }

    #[test]
    fn a_survivor_that_holds_an_output_is_given_up() {
        let mut life = Life::new(true);
        life.output_closed(Stderr);
        assert_eq!(life.leader_ended(Ended::Code(0)), Act::KillTree);
        assert_eq!(life.drain_expired(), Act::Finish(Ended::Code(0)));
    }

    #[test]
    fn every_order_of_events_finishes_exactly_once() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (mut life, mut finished) = (Life::new(true), 0);
            for event in order {
                let act = match event {
                    0 => life.leader_ended(Ended::Code(1)),
                    1 => life.output_closed(Stdout),
                    _ => life.output_closed(Stderr),
                };
                finished += i32::from(matches!(act, Act::Finish(Ended::Code(1))));
            }
            assert_eq!(finished, 1, "{order:?}");
        }
    }

    #[test]
    fn a_terminal_has_one_output() {
        let mut life = Life::new(false);
        life.leader_ended(Ended::Code(0));
        assert_eq!(life.output_closed(Stdout), Act::Finish(Ended::Code(0)));
    }

    #[test]
    fn a_window_is_never_overdrawn() {
        let mut window = Window::of(100);
        assert_eq!(window.of_at_most(60), 60);
        window.sent(60);
        assert_eq!(window.of_at_most(60), 40);
        window.sent(40);
        assert_eq!(window.of_at_most(60), 0);
        window.widen(5);
        assert_eq!(window.of_at_most(60), 5);
        window.widen(u32::MAX);
        assert_eq!((window.of_at_most(60), Window::OPEN.of_at_most(60)), (60, 60));
    }

    #[test]
    fn input_is_bounded_and_what_was_taken_comes_back() {
        let window = limits::EXEC_INPUT_WINDOW_BYTES as usize;
        let mut intake = Intake::default();
        assert!(intake.receive(window) && !intake.receive(1));
        intake.take(window / 2 - 1);
        assert_eq!(intake.give_back(), None);
        intake.take(1);
        assert_eq!(intake.give_back(), Some(window as u32 / 2));
        assert!(intake.receive(window / 2) && !intake.receive(1));
        intake.take(10 * window);
        assert_eq!(intake.give_back(), Some(window as u32), "never more than came");
        assert_eq!(intake.give_back(), None);
    }

    #[test]
    fn oom_is_read_from_its_own_line() {
        assert!(oom_killed("low 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(!oom_killed("low 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 7\n"));
        assert!(!oom_killed(""));
    }
}
