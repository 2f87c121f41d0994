//! A place for the node that the tests of a group share: booted when first asked for, held by one test at a time, ended when another
//! group's is booted (a node that does nothing still takes part of a processor under emulation).

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use system_tests::fixture::Config;
use system_tests::node::Node;

/// What a group of tests needs; it has a node.
pub trait Bench: Send + 'static {
    /// The node.
    fn node(&self) -> &Node;
}

/// A node and what it was made from, for tests that need nothing else.
pub struct Own {
    pub node: Node,
    pub config: Config,
}

impl Bench for Own {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl Deref for Own {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.node
    }
}

/// The place of one.
pub struct Slot<T> {
    start: fn() -> Result<T>,
    bench: Mutex<Option<T>>,
}

/// What is in a slot, held by one test.
pub struct Guard<T: 'static>(MutexGuard<'static, Option<T>>);

impl<T: Bench> Slot<T> {
    /// An empty one.
    pub const fn new(start: fn() -> Result<T>) -> Slot<T> {
        Slot { start, bench: Mutex::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.bench.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in it, made when first asked for and after one who took it.
    pub fn hold(&'static self) -> Result<Guard<T>> {
        let mut bench = self.lock();
        if bench.is_none() {
            crate::SLOTS.iter().for_each(|slot| slot.make_room());
            *bench = Some((self.start)()?);
        }
        Ok(Guard(bench))
    }

    /// Runs a test on it.
    pub fn on(&'static self, test: impl FnOnce(&T) -> Result<()>) -> Result<()> {
        test(&*self.hold()?)
    }
}

impl<T> Deref for Guard<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect("filled by hold()")
    }
}

impl<T> Guard<T> {
    /// Takes it out, for tests that end the node; another can be put in with [`Guard::put`].
    pub fn take(&mut self) -> T {
        self.0.take().expect("filled by hold()")
    }

    /// Puts another in.
    pub fn put(&mut self, bench: T) {
        *self.0 = Some(bench);
    }
}

/// A slot, whatever is in it.
pub trait Shared: Sync {
    /// Keeps what its node told, if there is one.
    fn keep_logs(&self);
    /// Ends its node, if there is one that no test holds.
    fn make_room(&self);
    /// Ends its node, if there is one.
    fn switch_off(&self);
}

impl<T: Bench> Shared for Slot<T> {
    fn keep_logs(&self) {
        if let Some(bench) = self.lock().as_ref() {
            bench.node().keep_logs();
        }
    }

    fn make_room(&self) {
        if let Ok(mut bench) = self.bench.try_lock() {
            bench.take();
        }
    }

    fn switch_off(&self) {
        self.lock().take();
    }
}
