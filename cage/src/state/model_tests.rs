//! The table against a model of it: the rules of docs/cage.md written a second time, as facts about one VM instead of a table
//! of states, and long random histories in which both must come to the same.

use super::{Happening, Stateful, alive, next};
use abi::control::AgentState;

pub(super) const STATES: [AgentState; 8] = [
    AgentState::Stopped,
    AgentState::Starting,
    AgentState::Running,
    AgentState::Paused,
    AgentState::Quarantined,
    AgentState::Stopping,
    AgentState::Exited,
    AgentState::Failed,
];

pub(super) const HAPPENINGS: [Happening; 10] = [
    Happening::StartAsked,
    Happening::Ready,
    Happening::PauseAsked,
    Happening::ResumeAsked,
    Happening::QuarantineAsked,
    Happening::StopAsked,
    Happening::KillAsked,
    Happening::EndedByItself,
    Happening::Unhealthy,
    Happening::Broke,
];

/// How the last VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    OnRequest,
    Well,
    Badly,
}

/// Facts about the one VM there may be.
#[derive(Debug, Clone, Copy, Default)]
struct Vm {
    runs_command: bool,
    is_frozen: bool,
    network_is_cut: bool,
    is_to_end: bool,
}

/// What is so, without a word of states.
#[derive(Debug, Clone)]
struct Model {
    vm: Option<Vm>,
    last: Last,
}

impl Model {
    /// Whether it may happen; if so, it has.
    fn happen(&mut self, happening: Happening) -> bool {
        let Some(vm) = &mut self.vm else {
            match happening {
                Happening::StartAsked => self.vm = Some(Vm::default()),
                Happening::StopAsked | Happening::KillAsked => self.last = Last::OnRequest,
                _ => return false,
            }
            return true;
        };
        let is_free = vm.runs_command && !vm.network_is_cut && !vm.is_to_end;
        match happening {
            Happening::StartAsked => return false,
            // A guest says ready once, and a frozen one says nothing.
            Happening::Ready if vm.is_to_end => {}
            Happening::Ready if !vm.runs_command => vm.runs_command = true,
            Happening::PauseAsked if is_free && !vm.is_frozen => vm.is_frozen = true,
            Happening::ResumeAsked if is_free && vm.is_frozen => vm.is_frozen = false,
            Happening::QuarantineAsked if is_free => (vm.is_frozen, vm.network_is_cut) = (true, true),
            Happening::StopAsked | Happening::KillAsked => vm.is_to_end = true,
            Happening::EndedByItself | Happening::Unhealthy | Happening::Broke => {
                self.last = match happening {
                    Happening::Unhealthy => Last::Badly,
                    _ if vm.is_to_end => Last::OnRequest,
                    Happening::EndedByItself if vm.runs_command && !vm.network_is_cut => Last::Well,
                    _ => Last::Badly,
                };
                self.vm = None;
            }
            Happening::Ready
            | Happening::PauseAsked
            | Happening::ResumeAsked
            | Happening::QuarantineAsked => return false,
        }
        true
    }

    fn seen(&self) -> AgentState {
        match (self.vm, self.last) {
            (Some(vm), _) if vm.is_to_end => AgentState::Stopping,
            (Some(vm), _) if vm.network_is_cut => AgentState::Quarantined,
            (Some(vm), _) if vm.is_frozen => AgentState::Paused,
            (Some(vm), _) if vm.runs_command => AgentState::Running,
            (Some(_), _) => AgentState::Starting,
            (None, Last::OnRequest) => AgentState::Stopped,
            (None, Last::Well) => AgentState::Exited,
            (None, Last::Badly) => AgentState::Failed,
        }
    }
}

#[test]
fn the_table_and_the_model_agree_in_every_history() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut dice = seed | 1;
    let mut visited = std::collections::BTreeSet::new();
    for _ in 0..500 {
        let mut real = Stateful::default();
        let mut model = Model { vm: None, last: Last::OnRequest };
        let mut history = Vec::new();
        for _ in 0..200 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let happening = HAPPENINGS[(dice % HAPPENINGS.len() as u64) as usize];
            history.push(happening);
            let (before, legal) = (real.now(), real.let_happen(happening).is_ok());
            visited.insert((format!("{before:?}"), format!("{happening:?}")));
            assert_eq!(legal, model.happen(happening), "{before:?} {happening:?} after {history:?}");
            assert_eq!(real.now(), model.seen(), "after {history:?}");
        }
    }
    assert_eq!(visited.len(), STATES.len() * HAPPENINGS.len(), "each cell of the table was visited");
}

#[test]
fn what_is_refused_changes_nothing() {
    for state in STATES {
        for happening in HAPPENINGS {
            let mut stateful = Stateful(state);
            if next(state, happening).is_err() {
                assert!(stateful.let_happen(happening).is_err());
                assert_eq!(stateful.now(), state, "{happening:?}");
            }
            assert!(!alive(state) || next(state, Happening::Broke).is_ok());
        }
    }
}
