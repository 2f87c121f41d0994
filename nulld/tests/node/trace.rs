//! What a debugger can do to PID 1 from outside: make it run at a bad address, with a bad stack, or into a panic of its own code.
//! nulld knows nothing of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Stops a process wherever it is, lets `change` write its registers, and lets it go.
fn with_registers(pid: u32, change: impl FnOnce(Pid, &mut libc::user_regs_struct)) {
    let pid = Pid::from_raw(pid.cast_signed());
    loop {
        ptrace::seize(pid, ptrace::Options::empty()).expect("ptrace as root");
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        // While the C library makes a process it has all signals blocked and runs nothing of nulld: a fault there is the
        // kernel's to end, and not what is tried here.
        if !blocks_faults(pid) {
            break;
        }
        ptrace::detach(pid, None).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut registers = ptrace::getregs(pid).unwrap();
    // Whatever system call it was in is not begun again.
    registers.orig_rax = u64::MAX;
    change(pid, &mut registers);
    ptrace::setregs(pid, registers).unwrap();
    ptrace::detach(pid, None).unwrap();
}

fn blocks_faults(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    u64::from_str_radix(blocked, 16).unwrap() & 1 << (libc::SIGSEGV - 1) != 0
}

/// A real fault: the next instruction is at address 0.
pub fn jump_to_nowhere(pid: u32) {
    with_registers(pid, |_, registers| registers.rip = 0);
}

/// A real fault that the usual stack cannot serve: the stack pointer is bad, and so is the next instruction.
pub fn break_the_stack(pid: u32) {
    with_registers(pid, |_, registers| (registers.rsp, registers.rip) = (8, 0));
}

/// A real panic: `core::panicking::panic("...", location)` of the very program is entered.
pub fn panic(pid: u32, program: &Path) {
    let entry = base_of(pid) + symbol(program, "core::panicking::panic");
    with_registers(pid, |pid, registers| {
        let text = b"called by a test";
        let frame = (registers.rsp - 64 * 1024) & !0xfff;
        let poke = |address: u64, word: u64| {
            ptrace::write(pid, address as ptrace::AddressType, word.cast_signed()).unwrap();
        };
        for (at, chunk) in text.chunks(8).enumerate() {
            poke(frame + at as u64 * 8, u64::from_le_bytes(chunk.try_into().unwrap()));
        }
        // core::panic::Location: the file's name as pointer and length, line and column.
        let location = frame + 64;
        poke(location, frame);
        poke(location + 8, text.len() as u64);
        poke(location + 16, 2 << 32 | 1);
        (registers.rdi, registers.rsi, registers.rdx) = (frame, text.len() as u64, location);
        // As after a call: 8 below a multiple of 16.
        (registers.rsp, registers.rip) = (frame - 4096 - 8, entry);
    });
}

fn base_of(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let first = maps.lines().find(|line| line.ends_with("/nulld")).unwrap();
    u64::from_str_radix(first.split('-').next().unwrap(), 16).unwrap()
}

fn symbol(program: &Path, name: &str) -> u64 {
    let out = Command::new("nm").arg("--demangle").arg(program).output().expect("nm of binutils");
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find(|line| line.ends_with(&format!(" {name}")));
    u64::from_str_radix(line.unwrap().split(' ').next().unwrap(), 16).unwrap()
}
