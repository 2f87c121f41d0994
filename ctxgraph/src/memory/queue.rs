//! What waits for the writer, taken in turn by who asked: one that floods it waits behind itself.

use abi::limits;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::MemoryError;
use crate::draft::{Author, Draft};
use crate::ledger::Ledger;
use crate::store::Store;
use abi::control::Entry;

/// Writes that stand or fall together.
#[derive(Debug)]
pub struct Write {
    pub drafts: Vec<Draft>,
    /// As the ledger names it.
    pub author: Author,
    pub answer: SyncSender<Result<Vec<Entry>, MemoryError>>,
}

/// Something else that only the writer may do.
pub type Task = Box<dyn FnOnce(&mut Store, &Ledger) + Send>;

/// One turn of somebody's.
pub enum Job {
    Write(Write),
    Task(Task),
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Job::Write(write) => write.fmt(f),
            Job::Task(_) => f.write_str("Task"),
        }
    }
}

impl Job {
    fn cost(&self) -> usize {
        match self {
            Job::Write(write) => write.drafts.len(),
            Job::Task(_) => 1,
        }
    }
}

/// What the writer does next.
#[derive(Debug)]
pub enum Next {
    Writes(Vec<Write>),
    Task(TaskJob),
    /// Nothing came until the time given.
    Tick,
    Closed,
}

/// A task that was taken.
pub struct TaskJob(pub Task);

impl std::fmt::Debug for TaskJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whose turn is next; each author with jobs is there once.
    turns: VecDeque<Author>,
    jobs: BTreeMap<Author, Line>,
    cost: usize,
    closed: bool,
}

#[derive(Debug, Default)]
struct Line {
    jobs: VecDeque<Job>,
    cost: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job behind the others of its author.
    pub fn push(&self, author: Author, job: Job) -> Result<(), MemoryError> {
        let cost = job.cost();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(MemoryError::Closed);
        }
        let own = waiting.jobs.get(&author).map_or(0, |line| line.cost);
        if own + cost > limits::MEMORY_WRITES_WAITING_PER_AUTHOR_MAX {
            return Err(MemoryError::Busy(format!("{author} has {own} writes waiting already")));
        }
        // One who has nothing there is let in, so that those who fill it lock nobody out: as many more as there are authors.
        if own > 0 && waiting.cost + cost > limits::MEMORY_WRITES_WAITING_MAX {
            return Err(MemoryError::Busy(format!("{} writes are waiting already", waiting.cost)));
        }
        waiting.cost += cost;
        let line = waiting.jobs.entry(author.clone()).or_default();
        line.cost += cost;
        line.jobs.push_back(job);
        if line.jobs.len() == 1 {
            waiting.turns.push_back(author);
        }
        self.more.notify_one();
        Ok(())
    }

    /// Takes no more; what waits is still done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }

    /// Waits for work, but not beyond `until`.
    pub fn next(&self, until: Instant) -> Next {
        let mut waiting = self.lock();
        loop {
            if Instant::now() >= until && !waiting.closed {
                return Next::Tick; // before the work, so that no load puts it off
            }
            if let Some(next) = waiting.take() {
                return next;
            }
            if waiting.closed {
                return Next::Closed;
            }
            let left = until.saturating_duration_since(Instant::now());
            waiting = self.more.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Waiting {
    /// One job of each author in turn, as many as fit a transaction.
    fn take(&mut self) -> Option<Next> {
        let (mut writes, mut cost) = (Vec::new(), 0);
        while let Some(author) = self.turns.front() {
            let first = self.jobs.get(author)?.jobs.front()?;
            let fits = cost + first.cost() <= limits::MEMORY_WRITE_BATCH_MAX;
            if !writes.is_empty() && (!fits || matches!(first, Job::Task(_))) {
                break;
            }
            cost += first.cost();
            match self.pop()? {
                Job::Write(write) => writes.push(write),
                Job::Task(task) => return Some(Next::Task(TaskJob(task))),
            }
        }
        (!writes.is_empty()).then_some(Next::Writes(writes))
    }

    /// The next job of whose turn it is, who then waits behind the others.
    fn pop(&mut self) -> Option<Job> {
        let author = self.turns.pop_front()?;
        let line = self.jobs.get_mut(&author)?;
        let job = line.jobs.pop_front()?;
        line.cost -= job.cost();
        self.cost -= job.cost();
        if line.jobs.is_empty() {
            self.jobs.remove(&author);
        } else {
            self.turns.push_back(author);
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    fn author(name: &str) -> Author {
        Author::Agent(name.parse().unwrap())
    }

    fn write(name: &str, count: usize) -> Job {
        let (answer, _) = sync_channel(1);
        let draft = Draft {
            agent: name.parse().unwrap(),
            key: "k".into(),
            text: "1".into(),
            labels: BTreeMap::new(),
            links: Vec::new(),
            expected: None,
            ttl_secs: None,
            vector: None,
        };
        Job::Write(Write { drafts: vec![draft; count], author: author(name), answer })
    }

    fn taken(queue: &Queue) -> Vec<String> {
        match queue.next(Instant::now() + Duration::from_secs(60)) {
            Next::Writes(writes) => {
                writes.iter().map(|w| format!("{}{}", w.drafts[0].agent, w.drafts.len())).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_that_floods_the_writer_waits_behind_itself() {
        let queue = Queue::default();
        for _ in 0..limits::MEMORY_WRITES_WAITING_PER_AUTHOR_MAX {
            queue.push(author("flood"), write("flood", 1)).unwrap();
        }
        let refused = queue.push(author("flood"), write("flood", 1)).unwrap_err();
        assert!(refused.to_string().contains("agent flood has 128"), "{refused}");
        for _ in 0..3 {
            queue.push(author("b"), write("b", 2)).unwrap();
        }
        queue.push(author("c"), write("c", 1)).unwrap();
        let first = taken(&queue);
        assert_eq!(first[..6], ["flood1", "b2", "c1", "flood1", "b2", "flood1"].map(String::from));
        assert_eq!(first.iter().filter(|job| *job == "b2").count(), 3);
    }

    #[test]
    fn the_queue_is_bounded_for_all_together() {
        let queue = Queue::default();
        let each = limits::MEMORY_WRITES_WAITING_PER_AUTHOR_MAX;
        for n in 0..limits::MEMORY_WRITES_WAITING_MAX / each {
            queue.push(author(&format!("a{n}")), write("a", each)).unwrap();
        }
        // Who has nothing there is let in, once.
        queue.push(author("last"), write("last", 1)).unwrap();
        assert!(matches!(queue.push(author("last"), write("last", 1)), Err(MemoryError::Busy(_))));
        taken(&queue);
        queue.push(author("last"), write("last", 1)).unwrap();
        queue.close();
        assert!(matches!(queue.push(author("later"), write("later", 1)), Err(MemoryError::Closed)));
        // What waits when it closes is still done.
        while let Next::Writes(_) = queue.next(Instant::now() + Duration::from_secs(60)) {}
        assert_eq!(queue.lock().cost, 0);
    }

    #[test]
    fn a_task_is_alone_and_keeps_its_place() {
        let queue = Queue::default();
        queue.push(author("a"), write("a", 1)).unwrap();
        queue.push(author("b"), Job::Task(Box::new(|_, _| {}))).unwrap();
        queue.push(author("c"), write("c", 1)).unwrap();
        assert_eq!(taken(&queue), ["a1"]);
        let next = queue.next(Instant::now() + Duration::from_secs(60));
        assert!(matches!(next, Next::Task(_)), "{next:?}");
        assert_eq!(taken(&queue), ["c1"]);
        assert!(matches!(queue.next(Instant::now()), Next::Tick));
    }
}
