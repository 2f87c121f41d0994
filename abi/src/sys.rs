//! The one unsafe step of abi: taking ownership of a descriptor that nulld left open for us.

#![expect(unsafe_code, reason = "file descriptors inherited over exec have no safe constructor")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// Takes an inherited descriptor, or none if it is not open. Call once per number, at start, before any other
/// descriptor is opened.
pub(crate) fn take_inherited(number: i32) -> Option<OwnedFd> {
    // SAFETY: the number is not -1, and fcntl(2) answers EBADF where nothing is open; there may be no /proc to ask.
    let open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok();
    // SAFETY: the descriptor is open (checked above) and, by this function's contract, nobody else owns it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}
