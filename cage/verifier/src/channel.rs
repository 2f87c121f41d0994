//! The life of one channel: a command, its two outputs, its end. No I/O; the guest's loop does what it is told.
//!
//! Must hold: an exit is reported once, after the leader has ended and its output has been taken or given up; when the leader ends,
//! whatever it left behind is killed, so that nothing outlives its channel.

use abi::guest::Exit;

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

impl Default for Life {
    fn default() -> Self {
        Life { ended: None, stdout_open: true, stderr_open: true }
    }
}

impl Life {
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
        let mut life = Life::default();
        assert_eq!(life.leader_ended(Ended::Code(3)), Act::KillTree);
        assert!(!life.running());
        assert_eq!(life.output_closed(Stdout), Act::Nothing);
        assert_eq!(life.output_closed(Stderr), Act::Finish(Ended::Code(3)));
    }

    #[test]
    fn a_command_that_closes_its_output_still_runs() {
        let mut life = Life::default();
        assert_eq!(life.output_closed(Stderr), Act::Nothing);
        assert_eq!(life.output_closed(Stdout), Act::Nothing);
        assert!(life.running());
        assert_eq!(life.leader_ended(Ended::Signal(9)), Act::Finish(Ended::Signal(9)));
    }

    #[test]
    fn a_survivor_that_holds_an_output_is_given_up() {
        let mut life = Life::default();
        life.output_closed(Stderr);
        assert_eq!(life.leader_ended(Ended::Code(0)), Act::KillTree);
        assert_eq!(life.drain_expired(), Act::Finish(Ended::Code(0)));
    }

    #[test]
    fn every_order_of_events_finishes_exactly_once() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (mut life, mut finished) = (Life::default(), 0);
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
    fn oom_is_read_from_its_own_line() {
        assert!(oom_killed("low 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(!oom_killed("low 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 7\n"));
        assert!(!oom_killed(""));
    }
}
