//! The states of an agent and what leads from one to the next. A total table, nothing else.

use abi::control::AgentState;
use abi::rpc::{Code, RpcError};

/// What can happen to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// Somebody, or its restart policy, asked for it to run.
    StartAsked,
    /// The guest runs the agent's command.
    Ready,
    /// Somebody asked for it to be frozen and to go on later.
    PauseAsked,
    /// Somebody asked for it to go on.
    ResumeAsked,
    /// Somebody asked for it to be frozen for good.
    QuarantineAsked,
    /// Somebody, or a bound of its manifest, asked for it to stop.
    StopAsked,
    /// Somebody asked for its end at once.
    KillAsked,
    /// The VM is gone and nothing of it is left: the agent's command had ended.
    EndedByItself,
    /// The VM is gone and nothing of it is left: it was ended because its health checks failed.
    Unhealthy,
    /// The VM is gone and nothing of it is left: for any other reason.
    Broke,
}

/// Why something may not happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Illegal {
    AlreadyStarting,
    AlreadyRunning,
    StillStopping,
    Paused,
    Quarantined,
    /// It runs, so it cannot be let go on.
    NotPaused,
    /// No life of this agent is under way.
    NotAlive,
}

/// The state after `happening`, or why it is not legal.
pub fn next(state: AgentState, happening: Happening) -> Result<AgentState, Illegal> {
    use AgentState::{Exited, Failed, Paused, Quarantined, Running, Starting, Stopped, Stopping};
    use Happening::{
        Broke, EndedByItself, KillAsked, PauseAsked, QuarantineAsked, Ready, ResumeAsked, StartAsked,
        StopAsked, Unhealthy,
    };
    match (state, happening) {
        (Stopped | Exited | Failed, StartAsked) => Ok(Starting),
        // Stopping what does not run is done already.
        (Stopped | Exited | Failed, StopAsked | KillAsked) => Ok(Stopped),
        (
            Stopped | Exited | Failed,
            Ready | PauseAsked | ResumeAsked | QuarantineAsked | EndedByItself | Unhealthy | Broke,
        ) => Err(Illegal::NotAlive),

        (Starting, Ready) => Ok(Running),
        (Starting, StopAsked | KillAsked) => Ok(Stopping),
        (Starting, EndedByItself | Unhealthy | Broke) => Ok(Failed),
        // No agent runs yet that could be frozen; what is wanted is a stop.
        (Starting, StartAsked | PauseAsked | ResumeAsked | QuarantineAsked) => Err(Illegal::AlreadyStarting),

        (Running, PauseAsked) => Ok(Paused),
        (Running, QuarantineAsked) => Ok(Quarantined),
        (Running, StopAsked | KillAsked) => Ok(Stopping),
        (Running, EndedByItself) => Ok(Exited),
        (Running, Unhealthy | Broke) => Ok(Failed),
        (Running, StartAsked | Ready) => Err(Illegal::AlreadyRunning),
        (Running, ResumeAsked) => Err(Illegal::NotPaused),

        (Paused, ResumeAsked) => Ok(Running),
        (Paused, QuarantineAsked) => Ok(Quarantined),
        (Paused, StopAsked | KillAsked) => Ok(Stopping),
        (Paused, EndedByItself) => Ok(Exited),
        (Paused, Unhealthy | Broke) => Ok(Failed),
        (Paused, StartAsked | Ready | PauseAsked) => Err(Illegal::Paused),

        (Quarantined, StopAsked | KillAsked) => Ok(Stopping),
        // Its guest is frozen: whatever it had said before is not its end any more, only its VMM's is.
        (Quarantined, EndedByItself | Unhealthy | Broke) => Ok(Failed),
        (Quarantined, StartAsked | Ready | PauseAsked | ResumeAsked | QuarantineAsked) => {
            Err(Illegal::Quarantined)
        }

        // The stop was asked for while the guest came up, or after a first one: it wins.
        (Stopping, Ready | StopAsked | KillAsked) => Ok(Stopping),
        (Stopping, EndedByItself | Broke) => Ok(Stopped),
        (Stopping, Unhealthy) => Ok(Failed),
        (Stopping, StartAsked | PauseAsked | ResumeAsked | QuarantineAsked) => Err(Illegal::StillStopping),
    }
}

/// Whether a life is under way.
pub fn alive(state: AgentState) -> bool {
    match state {
        AgentState::Starting
        | AgentState::Running
        | AgentState::Paused
        | AgentState::Quarantined
        | AgentState::Stopping => true,
        AgentState::Stopped | AgentState::Exited | AgentState::Failed => false,
    }
}

/// The state, changed only by the table.
#[derive(Debug)]
pub struct Stateful(AgentState);

impl Default for Stateful {
    fn default() -> Stateful {
        Stateful(AgentState::Stopped)
    }
}

impl Stateful {
    /// The state.
    pub fn now(&self) -> AgentState {
        self.0
    }

    /// Lets something happen, if it is legal now.
    pub fn let_happen(&mut self, happening: Happening) -> Result<AgentState, Illegal> {
        self.0 = next(self.0, happening)?;
        Ok(self.0)
    }
}

impl From<Illegal> for RpcError {
    fn from(illegal: Illegal) -> RpcError {
        let (message, remedy) = match illegal {
            Illegal::AlreadyStarting => ("the agent is still starting", "wait until it runs, or stop it"),
            Illegal::AlreadyRunning => ("the agent runs already", "stop it first to start it anew"),
            Illegal::StillStopping => ("the agent is still stopping", "wait until it has stopped"),
            Illegal::Paused => ("the agent is paused", "resume it, or stop it"),
            Illegal::Quarantined => {
                ("the agent is quarantined", "stop it; its evidence stays until it is removed")
            }
            Illegal::NotPaused => ("the agent runs and is not paused", "there is nothing to resume"),
            Illegal::NotAlive => ("the agent does not run", "start it first"),
        };
        RpcError::new(Code::CONFLICT, message).explained("an agent has one life at a time", remedy)
    }
}

#[cfg(test)]
mod model_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use AgentState::*;
    use model_tests::{HAPPENINGS, STATES};

    #[test]
    fn one_life_at_a_time() {
        for state in STATES {
            assert_eq!(next(state, Happening::StartAsked).is_ok(), !alive(state), "{state:?}");
        }
    }

    #[test]
    fn every_life_ends_when_its_vm_does() {
        for state in STATES.into_iter().filter(|s| alive(*s)) {
            for end in [Happening::EndedByItself, Happening::Unhealthy, Happening::Broke] {
                assert!(!alive(next(state, end).unwrap()), "{state:?} {end:?}");
            }
        }
    }

    #[test]
    fn a_requested_stop_is_never_reported_as_a_failure() {
        for asked in [Happening::StopAsked, Happening::KillAsked] {
            let stopping = next(Running, asked).unwrap();
            assert_eq!(next(stopping, Happening::Broke), Ok(Stopped));
            assert_eq!(next(stopping, Happening::EndedByItself), Ok(Stopped));
            assert_eq!(next(stopping, Happening::Ready), Ok(Stopping));
        }
    }

    #[test]
    fn no_sequence_revives_the_dead_without_being_asked() {
        for state in STATES.into_iter().filter(|s| !alive(*s)) {
            for happening in HAPPENINGS.into_iter().filter(|h| *h != Happening::StartAsked) {
                assert!(
                    next(state, happening).map_or(true, |after| !alive(after)),
                    "{state:?} {happening:?}"
                );
            }
        }
    }

    #[test]
    fn a_quarantined_agent_leaves_by_its_end_alone() {
        for happening in HAPPENINGS {
            match next(Quarantined, happening) {
                Ok(after) => assert!(after == Stopping || !alive(after), "{happening:?}: {after:?}"),
                Err(illegal) => assert_eq!(illegal, Illegal::Quarantined, "{happening:?}"),
            }
        }
    }

    #[test]
    fn whatever_lives_can_be_stopped_and_killed() {
        for state in STATES.into_iter().filter(|s| alive(*s)) {
            for asked in [Happening::StopAsked, Happening::KillAsked] {
                assert_eq!(next(state, asked), Ok(Stopping), "{state:?}");
            }
        }
    }
}
