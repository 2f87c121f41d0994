//! The one system call that needs `unsafe`.
#![expect(unsafe_code, reason = "device-mapper ioctls have no safe wrapper")]

use std::os::fd::BorrowedFd;

use rustix::io;
use rustix::ioctl::{self, Opcode};

use crate::dm::Request;

/// A device-mapper ioctl on /dev/mapper/control; the kernel answers into the same message.
///
/// `message` must come from `dm::message`: its data_size field is its own length.
pub fn device_mapper(control: BorrowedFd<'_>, request: Request, message: &mut Vec<u8>) -> io::Result<()> {
    // SAFETY: dm-ioctl.h, copy_params: the kernel reads and writes at most data_size bytes from the pointer, and `dm::message` sets
    // data_size to the length of the buffer it returns, which is borrowed mutably for the call.
    unsafe { ioctl::ioctl(control, Message { opcode: request.code(), bytes: message }) }
}

struct Message<'a> {
    opcode: Opcode,
    bytes: &'a mut Vec<u8>,
}

// SAFETY: the opcode belongs to the buffer's layout (dm::Request::code and dm::message), the pointer is the buffer's, and the
// kernel may write to it.
unsafe impl ioctl::Ioctl for Message<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.bytes.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> io::Result<()> {
        Ok(())
    }
}
