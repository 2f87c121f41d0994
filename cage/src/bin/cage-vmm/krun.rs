//! The VM itself: every call into libkrun.
//!
//! Must hold: no implicit device, no virtio-fs, no TSI: the disks of the spec, one vsock with two ports, at most one TAP, one serial
//! console that only writes. Must never: be called before the jail is closed, or configure a VM from anything but the spec.

#![expect(unsafe_code, reason = "libkrun's interface is C")]

use cage::jail::{JailSpec, Launch, root};
use std::ffi::{CStr, CString};

/// krun_set_kernel's format for an uncompressed ELF image.
const KERNEL_FORMAT_ELF: u32 = 1;
/// krun_add_disk2's format: never probe what a guest wrote.
const DISK_FORMAT_RAW: u32 = 0;
/// krun_init_log: errors only, without colours, not steered by the environment.
const LOG_ERRORS: (u32, u32, u32) = (1, 2, 1);
const STDOUT: i32 = 1;
const STDERR: i32 = 2;
const NO_INPUT: i32 = -1;
/// Reset is the triple fault that ends the VM; a panic resets at once; the console is the first serial port.
const KERNEL_COMMAND_LINE: &CStr = c"reboot=t panic=-1 console=ttyS0 8250.nr_uarts=1 quiet";

/// Which call libkrun refused.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("libkrun: {call}: {error}")]
    Call { call: &'static str, error: std::io::Error },
    #[error("libkrun: the TAP's name `{0}` must be 1 to 15 bytes without NUL")]
    TapName(String),
}

/// A configured VM that has not started.
#[derive(Debug)]
pub struct Vm {
    context: u32,
}

fn checked(call: &'static str, outcome: i32) -> Result<u32, VmError> {
    u32::try_from(outcome)
        .map_err(|_| VmError::Call { call, error: std::io::Error::from_raw_os_error(-outcome) })
}

fn path(text: &str) -> CString {
    CString::new(text).unwrap_or_default() // the jail's paths are constants without NUL; an empty one is refused
}

impl Vm {
    /// Configures the VM from files at the jail's own paths. They are opened when it starts.
    pub fn configure(spec: &JailSpec) -> Result<Vm, VmError> {
        let (level, style, options) = LOG_ERRORS;
        // SAFETY: standard error is open, and libkrun only writes to it.
        checked("init_log", unsafe { krun::krun_init_log(STDERR, level, style, options) })?;
        let context = checked("create_ctx", krun::krun_create_ctx())?;
        let vm = Vm { context };
        checked("set_vm_config", krun::krun_set_vm_config(context, spec.vcpus, spec.memory_mib))?;
        vm.set_kernel()?;
        checked("disable_implicit_vsock", krun::krun_disable_implicit_vsock(context))?;
        checked("disable_implicit_console", krun::krun_disable_implicit_console(context))?;
        // No TSI flags: a guest's sockets are never opened on the host.
        checked("add_vsock", krun::krun_add_vsock(context, 0))?;
        vm.add_vsock_port(abi::guest::CONTROL_PORT, root::CONTROL_SOCKET)?;
        vm.add_vsock_port(abi::guest::MEMORY_PORT, root::MEMORY_SOCKET)?;
        for number in 0..spec.rootfs.len() {
            vm.add_disk(&format!("rootfs{number}"), &root::layer(number), true)?;
        }
        vm.add_disk("scratch", root::SCRATCH, false)?;
        for (number, disk) in spec.volumes.iter().enumerate() {
            vm.add_disk(&format!("volume{number}"), &root::volume(number), disk.read_only)?;
        }
        if let Some(network) = &spec.network {
            vm.add_tap(&network.tap, network.mac)?;
        }
        // SAFETY: standard output is open; libkrun takes it over, and nothing else here writes to it.
        checked("add_serial_console", unsafe {
            krun::krun_add_serial_console_default(context, NO_INPUT, STDOUT)
        })?;
        Ok(vm)
    }

    fn set_kernel(&self) -> Result<(), VmError> {
        let (kernel, initramfs) = (path(root::KERNEL), path(root::INITRAMFS));
        // SAFETY: three NUL-terminated texts that live across the call, which copies them.
        let outcome = unsafe {
            krun::krun_set_kernel(
                self.context,
                kernel.as_ptr(),
                KERNEL_FORMAT_ELF,
                initramfs.as_ptr(),
                KERNEL_COMMAND_LINE.as_ptr(),
            )
        };
        checked("set_kernel", outcome).map(|_| ())
    }

    fn add_vsock_port(&self, port: u32, socket: &str) -> Result<(), VmError> {
        let socket = path(socket);
        // SAFETY: a NUL-terminated text that lives across the call, which copies it.
        let outcome = unsafe { krun::krun_add_vsock_port2(self.context, port, socket.as_ptr(), false) };
        checked("add_vsock_port2", outcome).map(|_| ())
    }

    fn add_disk(&self, id: &str, file: &str, read_only: bool) -> Result<(), VmError> {
        let (id, file) = (path(id), path(file));
        // SAFETY: two NUL-terminated texts that live across the call, which copies them.
        let outcome = unsafe {
            krun::krun_add_disk2(self.context, id.as_ptr(), file.as_ptr(), DISK_FORMAT_RAW, read_only)
        };
        checked("add_disk2", outcome).map(|_| ())
    }

    /// libkrun copies the name unchecked into 16 bytes, so the bound is checked here.
    fn add_tap(&self, tap: &str, mac: [u8; 6]) -> Result<(), VmError> {
        let name = match CString::new(tap) {
            Ok(name) if (1..=15).contains(&tap.len()) => name,
            _ => return Err(VmError::TapName(tap.to_owned())),
        };
        // SAFETY: a NUL-terminated text of at most 15 bytes and six bytes of address, both alive across the call.
        let outcome = unsafe { krun::krun_add_net_tap(self.context, name.as_ptr(), mac.as_ptr(), 0, 0) };
        checked("add_net_tap", outcome).map(|_| ())
    }

    /// Runs the VM in this process until it ends; the process ends with it. Returns only why it could not start.
    pub fn run(self) -> Launch {
        let outcome = krun::krun_start_enter(self.context);
        Launch::Failed {
            step: "start".into(),
            error: std::io::Error::from_raw_os_error(-outcome).to_string(),
        }
    }
}
