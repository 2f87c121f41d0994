//! libkrun with nothing around it: no jail, no filter, no cage. What the same VM costs without any of that.

#![expect(unsafe_code, reason = "libkrun's interface is C")]

use std::ffi::{CStr, CString};

use anyhow::{Context, Result, ensure};

const FORMAT_ELF: u32 = 1;
const FORMAT_RAW: u32 = 0;
/// As cage-vmm's.
pub const COMMAND_LINE: &CStr = c"reboot=t panic=-1 console=ttyS0 8250.nr_uarts=1 quiet";

/// `--plain MEMORY_MIB INITRAMFS SOCKET DISK...`: becomes the VM. The last disk can be written. Does not return.
pub fn main(words: &[&str]) -> Result<()> {
    let [memory_mib, initramfs, socket, disks @ ..] = words else {
        anyhow::bail!("--plain MEMORY_MIB INITRAMFS SOCKET DISK...");
    };
    let text = |text: &str| CString::new(text).context("NUL");
    let (kernel, initramfs, socket) = (c"/system/guest/vmlinux", text(initramfs)?, text(socket)?);
    let context = u32::try_from(krun::krun_create_ctx()).context("create_ctx")?;
    checked("set_vm_config", krun::krun_set_vm_config(context, 1, memory_mib.parse()?))?;
    // SAFETY: NUL-terminated texts that live across the call, which copies them; the same holds below.
    let outcome = unsafe {
        krun::krun_set_kernel(context, kernel.as_ptr(), FORMAT_ELF, initramfs.as_ptr(), COMMAND_LINE.as_ptr())
    };
    checked("set_kernel", outcome)?;
    checked("disable_implicit_vsock", krun::krun_disable_implicit_vsock(context))?;
    checked("disable_implicit_console", krun::krun_disable_implicit_console(context))?;
    checked("add_vsock", krun::krun_add_vsock(context, 0))?;
    // SAFETY: as above.
    let outcome =
        unsafe { krun::krun_add_vsock_port2(context, abi::guest::CONTROL_PORT, socket.as_ptr(), false) };
    checked("add_vsock_port2", outcome)?;
    for (number, disk) in disks.iter().enumerate() {
        let (id, disk, is_last) = (text(&format!("disk{number}"))?, text(disk)?, number + 1 == disks.len());
        // SAFETY: as above.
        let outcome =
            unsafe { krun::krun_add_disk2(context, id.as_ptr(), disk.as_ptr(), FORMAT_RAW, !is_last) };
        checked("add_disk2", outcome)?;
    }
    // SAFETY: standard output is open, and nothing else here writes to it.
    checked("add_serial_console", unsafe { krun::krun_add_serial_console_default(context, -1, 1) })?;
    checked("start_enter", krun::krun_start_enter(context))
}

fn checked(call: &str, outcome: i32) -> Result<()> {
    ensure!(outcome >= 0, "{call}: {}", std::io::Error::from_raw_os_error(-outcome));
    Ok(())
}
