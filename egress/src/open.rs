//! The connections of one agent that are open, where a change finds them.
//!
//! Must hold: what passes no more is told to end while the change is made; of what was told, who waits knows when all of it is over.

use abi::ids::{AgentName, HostName, SecretName};
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

use crate::agent::Agent;
use crate::policy::{Admission, Policy};

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    open: BTreeMap<u64, Open>,
    next_id: u64,
    /// Of what was told to end and may not be over.
    ending: Vec<mpsc::Receiver<()>>,
}

impl Connections {
    /// Keeps one more until the entry is dropped.
    pub fn keep(&mut self, agent: &Arc<Agent>, asked: Asked) -> Entry {
        let id = self.next_id;
        self.next_id += 1;
        let ((cut, told), (alive, over)) = (oneshot::channel(), mpsc::channel());
        self.open.insert(id, Open { asked, cut, over });
        Entry { agent: agent.clone(), id, told, _alive: alive }
    }

    /// One is over.
    pub fn remove(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// Tells what passes no more to end; how many there were.
    pub fn tell_refused(&mut self, policy: &Policy, agent: &AgentName, now: u64) -> usize {
        self.tell(Cut::Revoked, |open| !open.asked.passes(policy, agent, now))
    }

    /// Tells what uses a secret to end; how many there were.
    pub fn tell_users_of(&mut self, secret: &SecretName) -> usize {
        self.tell(Cut::Revoked, |open| {
            let used = open.asked.admission().and_then(|admission| admission.secret.as_ref());
            used.is_some_and(|used| used.name == *secret)
        })
    }

    /// Tells all that lead to names to end.
    pub fn tell_all_to_names(&mut self, why: Cut) {
        self.tell(why, |open| open.asked.admission().is_some());
    }

    fn tell(&mut self, why: Cut, whom: impl Fn(&Open) -> bool) -> usize {
        self.ending.retain(|over| over.try_recv() == Err(mpsc::TryRecvError::Empty));
        let told = self.open.extract_if(.., |_, open| whom(open));
        // One that ended meanwhile has nobody to tell, and is none.
        let told = told.filter_map(|(_, open)| open.cut.send(why).ok().map(|()| open.over));
        let before = self.ending.len();
        self.ending.extend(told);
        self.ending.len() - before
    }

    /// Of each connection that was told to end and may not be over, what ends when it is. Who does not wait for all gives the rest back.
    pub fn take_ending(&mut self) -> Vec<mpsc::Receiver<()>> {
        std::mem::take(&mut self.ending)
    }

    /// What is still to be waited for.
    pub fn give_back(&mut self, ending: Vec<mpsc::Receiver<()>>) {
        self.ending.extend(ending);
    }
}

/// An open connection.
#[derive(Debug)]
struct Open {
    asked: Asked,
    cut: oneshot::Sender<Cut>,
    /// Ends when all of it is over.
    over: mpsc::Receiver<()>,
}

/// A connection as it was asked for.
#[derive(Debug)]
pub enum Asked {
    /// By the guest.
    Name { name: HostName, port: u16, admission: Admission },
    /// By cage, for the agent.
    Fetch { name: HostName, port: u16, admission: Admission },
    /// From outside.
    Published { port: u16 },
}

impl Asked {
    /// Whether it passes by this policy as it did when it began.
    fn passes(&self, policy: &Policy, agent: &AgentName, now: u64) -> bool {
        let (found, earlier) = match self {
            Asked::Name { name, port, admission } => (policy.decide(agent, name, *port, now), admission),
            Asked::Fetch { name, port, admission } => {
                (policy.decide_fetch(agent, name, *port, now), admission)
            }
            Asked::Published { port } => return policy.confine_port(*port).is_ok(),
        };
        found.is_ok_and(|found| found.still_admits(earlier))
    }

    fn admission(&self) -> Option<&Admission> {
        match self {
            Asked::Name { admission, .. } | Asked::Fetch { admission, .. } => Some(admission),
            Asked::Published { .. } => None,
        }
    }
}

/// Why a connection is cut in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// What it was let through by holds no more.
    Revoked,
    /// The agent has spent what it may.
    Budget,
}

/// A connection in its agent's list.
#[derive(Debug)]
pub struct Entry {
    agent: Arc<Agent>,
    id: u64,
    told: oneshot::Receiver<Cut>,
    /// Dropped last: who waits for the end of the connection then knows it.
    _alive: mpsc::Sender<()>,
}

impl Entry {
    /// Ends when the connection must.
    pub async fn cut(&mut self) -> Cut {
        match (&mut self.told).await {
            Ok(cut) => cut,
            Err(_) => std::future::pending().await, // the list is gone, and with it the agent's tasks
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.agent.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_waited_for_by_everyone_until_it_is_over() {
        let mut connections = Connections::default();
        let mut ends = Vec::new();
        for port in [80, 443] {
            let ((cut, told), (alive, over)) = (oneshot::channel(), mpsc::channel::<()>());
            connections.open.insert(port, Open { asked: Asked::Published { port: port as u16 }, cut, over });
            ends.push((told, alive));
        }
        let first = |open: &Open| matches!(open.asked, Asked::Published { port: 80 });
        assert_eq!((connections.tell(Cut::Revoked, first), connections.tell(Cut::Revoked, first)), (1, 0));
        // Who asks later has told nobody, and waits all the same; and again, where it was not over in time.
        for _ in 0..2 {
            let ending = connections.take_ending();
            assert!(matches!(ending.as_slice(), [over] if over.try_recv() == Err(mpsc::TryRecvError::Empty)));
            connections.give_back(ending);
        }
        ends.remove(0);
        assert_eq!(connections.tell(Cut::Revoked, first), 0);
        assert!(connections.take_ending().is_empty(), "it is over");
        assert_eq!(connections.tell(Cut::Budget, |_| true), 1);
        assert_eq!(ends.remove(0).0.try_recv(), Ok(Cut::Budget));
    }
}
