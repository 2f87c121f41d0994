//! The states of an agent and what leads from one to the next. A total table, nothing else.

use abi::control::AgentState;
use abi::rpc::{Code, RpcError};

/// What can happen to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// Somebody asked for it to run.
    StartAsked,
    /// The guest runs the agent's command.
    Ready,
    /// Somebody asked for it to stop.
    StopAsked,
    /// The VM is gone and nothing of it is left: the agent's command had ended.
    EndedByItself,
    /// The VM is gone and nothing of it is left: for any other reason.
    Broke,
}

/// Why something may not happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Illegal {
    AlreadyStarting,
    AlreadyRunning,
    StillStopping,
    /// It is paused or quarantined.
    Frozen,
    /// No life of this agent is under way.
    NotAlive,
}

/// The state after `happening`, or why it is not legal.
pub fn next(state: AgentState, happening: Happening) -> Result<AgentState, Illegal> {
    use AgentState::{Exited, Failed, Paused, Quarantined, Running, Starting, Stopped, Stopping};
    use Happening::{Broke, EndedByItself, Ready, StartAsked, StopAsked};
    match (state, happening) {
        (Stopped | Exited | Failed, StartAsked) => Ok(Starting),
        (Starting, StartAsked) => Err(Illegal::AlreadyStarting),
        (Running, StartAsked) => Err(Illegal::AlreadyRunning),
        (Paused | Quarantined, StartAsked | Ready) => Err(Illegal::Frozen),
        (Stopping, StartAsked) => Err(Illegal::StillStopping),
        (Starting, Ready) => Ok(Running),
        // The stop was asked for while the guest came up: it wins.
        (Stopping, Ready) => Ok(Stopping),
        (Stopped | Running | Exited | Failed, Ready) => Err(Illegal::NotAlive),
        (Starting | Running | Paused | Quarantined | Stopping, StopAsked) => Ok(Stopping),
        // Stopping what does not run is done already.
        (Stopped | Exited | Failed, StopAsked) => Ok(Stopped),
        (Running | Paused | Quarantined, EndedByItself) => Ok(Exited),
        (Starting, EndedByItself) => Ok(Failed),
        (Starting | Running | Paused | Quarantined, Broke) => Ok(Failed),
        (Stopping, EndedByItself | Broke) => Ok(Stopped),
        (Stopped | Exited | Failed, EndedByItself | Broke) => Err(Illegal::NotAlive),
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
            Illegal::Frozen => {
                ("the agent is frozen", "resume it if it is paused; stop it if it is quarantined")
            }
            Illegal::NotAlive => ("the agent does not run", "start it first"),
        };
        RpcError::new(Code::CONFLICT, message).explained("an agent has one life at a time", remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AgentState::*;

    const STATES: [AgentState; 8] =
        [Stopped, Starting, Running, Paused, Quarantined, Stopping, Exited, Failed];
    const HAPPENINGS: [Happening; 5] = [
        Happening::StartAsked,
        Happening::Ready,
        Happening::StopAsked,
        Happening::EndedByItself,
        Happening::Broke,
    ];

    #[test]
    fn one_life_at_a_time() {
        for state in STATES {
            assert_eq!(next(state, Happening::StartAsked).is_ok(), !alive(state), "{state:?}");
        }
    }

    #[test]
    fn every_life_ends_when_its_vm_does() {
        for state in STATES.into_iter().filter(|s| alive(*s)) {
            for end in [Happening::EndedByItself, Happening::Broke] {
                assert!(!alive(next(state, end).unwrap()), "{state:?} {end:?}");
            }
        }
    }

    #[test]
    fn a_requested_stop_is_never_reported_as_a_failure() {
        let stopping = next(Running, Happening::StopAsked).unwrap();
        assert_eq!(next(stopping, Happening::Broke), Ok(Stopped));
        assert_eq!(next(stopping, Happening::EndedByItself), Ok(Stopped));
        assert_eq!(next(stopping, Happening::Ready), Ok(Stopping));
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
}
