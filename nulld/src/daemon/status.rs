//! The loop's part of the status: what `system.*` looks at, and when the consoles get it.

use super::Daemon;
use crate::doctor::{self, Exam};
use crate::health::Machine;
use crate::screen::{Board, Sight};
use crate::system::View;

impl Daemon {
    /// What a call of `system.*` sees.
    pub(super) fn view(&self) -> View<'_> {
        View {
            facts: &self.facts,
            phases: &self.phases,
            supervisor: &self.supervisor,
            journal: &self.journal,
            is_going_down: self.going_down.is_some(),
            disks: &self.disks,
        }
    }

    /// Each turn: shows the status where it is due, and gives the consoles what waits for them.
    pub(super) fn show_status(&mut self, now_ms: u64) {
        if self.journal.console.wants_board(now_ms) {
            let board = self.board();
            self.journal.console.show(board, now_ms);
        }
        self.journal.console.flush();
    }

    /// The status on every console, whatever was told before: the node is ready, or will not be.
    pub(super) fn tell_status(&mut self, now_ms: u64) {
        let board = self.board();
        self.journal.console.show(board, now_ms);
        self.journal.console.tell(now_ms);
    }

    fn board(&self) -> Board {
        let (phases, machine) = (self.phases.list(), Machine::read());
        let (patients, disk) = (doctor::patients(&self.view()), self.disks.seen());
        let exam = Exam {
            facts: &self.facts,
            phases: &phases,
            patients: &patients,
            machine: &machine,
            disk: &disk,
            lax: &self.facts.lax,
        };
        let findings = doctor::examine(&exam).findings;
        Board::of(&Sight {
            now_ms: machine.now_ms,
            facts: &self.facts,
            phases: &phases,
            patients: &patients,
            addresses: &machine.addresses(),
            findings: &findings,
        })
    }
}
