//! Threads of a VMM: what stands before libc's functions.
//!
//! libkrun makes its threads itself, some of them in the middle of a vCPU's exit to a device. So libc's `pthread_create` is
//! wrapped: one thread, the spawner, makes all others, and no thread that a guest drives can make one. And its
//! `pthread_setname_np`: a thread that takes its name takes its role's filter with it.
//! Must hold: a thread runs nothing of libkrun's before its filter stands; one that cannot be narrowed ends the process.

#![expect(unsafe_code, reason = "libc's functions are C's")]

use cage::jail::calls::{Role, role};
use cage::jail::seccomp::Filters;
use libc::{c_char, c_int, c_void, pthread_attr_t, pthread_t};
use std::ffi::CStr;
use std::io;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Once, OnceLock};

/// Set once, when the first filter stands.
static FILTERS: OnceLock<Filters> = OnceLock::new();
static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
/// The first vCPU of several tells it.
static VM_IS_MADE: Once = Once::new();

type Body = extern "C" fn(*mut c_void) -> *mut c_void;

unsafe extern "C" {
    fn __real_pthread_create(
        thread: *mut pthread_t,
        attributes: *const pthread_attr_t,
        body: Body,
        argument: *mut c_void,
    ) -> c_int;
    fn __real_pthread_setname_np(thread: pthread_t, name: *const c_char) -> c_int;
}

/// A thread to be made, by the arguments of pthread_create(3).
struct Order {
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    body: Body,
    argument: *mut c_void,
    made: SyncSender<c_int>,
}

// SAFETY: who orders waits for `made`, so what the pointers lead to outlives the order, and only one side uses it at a time.
unsafe impl Send for Order {}

/// Starts the spawner; from now on threads take on their roles. Call once, after the first filter stands.
pub fn start_spawner(filters: Filters) -> io::Result<()> {
    let (sender, orders) = channel::<Order>();
    if FILTERS.set(filters).is_err() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    std::thread::Builder::new().name("spawner".into()).spawn(move || {
        for order in orders {
            // SAFETY: these are the caller's arguments, whole and unchanged, and he waits.
            let outcome =
                unsafe { __real_pthread_create(order.thread, order.attributes, order.body, order.argument) };
            let _ = order.made.send(outcome); // he waits
        }
    })?;
    SPAWNER.set(sender).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))
}

/// pthread_create(3). The first thread starts vCPUs only, and when it does the VM is made: its part is the event loop then.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    body: Body,
    argument: *mut c_void,
) -> c_int {
    let Some(spawner) = SPAWNER.get() else {
        // SAFETY: the caller's own arguments.
        return unsafe { __real_pthread_create(thread, attributes, body, argument) };
    };
    if rustix::thread::gettid() == rustix::process::getpid() {
        VM_IS_MADE.call_once(|| narrow(Role::Loop));
    }
    let (made, outcome) = sync_channel(1);
    match spawner.send(Order { thread, attributes, body, argument, made }) {
        Ok(()) => outcome.recv().unwrap_or(libc::EAGAIN),
        Err(_) => libc::EAGAIN, // the spawner never ends
    }
}

/// pthread_setname_np(3); Rust's threads call it for themselves, before anything else.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_setname_np(thread: pthread_t, name: *const c_char) -> c_int {
    // SAFETY: the caller's own arguments.
    let outcome = unsafe { __real_pthread_setname_np(thread, name) };
    // SAFETY: pthread_setname_np(3) takes a NUL-terminated text.
    let name = unsafe { CStr::from_ptr(name) };
    narrow(role(&name.to_string_lossy()));
    outcome
}

/// A role is taken on once the filters are there.
fn narrow(role: Role) {
    if let Some(Err(error)) = FILTERS.get().map(|filters| filters.narrow(role)) {
        eprintln!("thread not narrowed: {error}");
        std::process::abort();
    }
}
