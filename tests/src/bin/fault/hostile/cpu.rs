//! The processor as a guest kernel has it: entry, memory, ports, registers that are the machine's own.

#![expect(unsafe_code, reason = "ring 0: nothing beneath could make it safe")]

use core::arch::{asm, global_asm};
use core::fmt;

/// Where libkrun puts the boot parameters (krun-arch, layout.rs: ZERO_PAGE_START).
pub const BOOT_PARAMETERS: u64 = 0x7000;
/// The end of the guest's memory: the saboteur starts it with so much.
pub const MEMORY_END: u64 = (super::super::guest::MEMORY_MIB as u64) << 20;
/// Memory that is neither program, stack nor tables, up to [`MEMORY_END`] less what libkrun puts there.
pub const ARENA: u64 = 0x0200_0000;

/// Page tables: one page for each level, then four that map 4 GiB one to one in pages of 2 MiB (AMD64 manual 2, 5.3).
const TABLES: u64 = 0x40000;
const IDT: u64 = 0x48000;
const IDT_VECTORS: u64 = 32;
/// Exceptions that push an error code (AMD64 manual 2, 8.2).
const WITH_CODE: [u64; 7] = [8, 10, 11, 12, 13, 14, 17];
const CODE_SELECTOR: u64 = 8; // libkrun's GDT
const SERIAL: u16 = 0x3f8;
const KEYBOARD_COMMAND: u16 = 0x64;
const RESET: u8 = 0xfe;

// libkrun enters with interrupts off, 1 GiB mapped, and SSE off. What faults is stepped over: each instruction that is allowed to
// fault here (rdmsr, wrmsr) has two bytes.
global_asm!(
    ".global hostile_entry",
    "hostile_entry:",
    "cli",
    "cld",
    "mov ${stack}, %esp",
    "xor %ebp, %ebp",
    "mov %cr0, %rax",
    "and $~4, %rax",
    "or $2, %rax",
    "mov %rax, %cr0",
    "mov %cr4, %rax",
    "or $0x600, %rax",
    "mov %rax, %cr4",
    "call {set_up}",
    "call {main}",
    ".global hostile_fault_with_code",
    "hostile_fault_with_code:",
    "add $8, %rsp",
    ".global hostile_fault",
    "hostile_fault:",
    "addq $2, (%rsp)",
    "iretq",
    stack = const ARENA,
    set_up = sym set_up,
    main = sym super::main,
    options(att_syntax)
);

unsafe extern "C" {
    fn hostile_entry();
    fn hostile_fault();
    fn hostile_fault_with_code();
}

/// Address of the first instruction.
pub fn entry() -> u64 {
    hostile_entry as *const () as u64
}

/// Reads memory or a device, with one access.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: as a guest kernel all that is mapped is this program's own, and what it breaks is the attack.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes memory or a device, with one access.
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as in `read`.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// One byte to a port.
pub fn out(port: u16, byte: u8) {
    // SAFETY: touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack)) }
}

/// Four bytes to a port.
pub fn out_wide(port: u16, value: u32) {
    // SAFETY: touches no memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

/// One byte from a port.
pub fn read_port(port: u16) -> u8 {
    let byte: u8;
    // SAFETY: touches no memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack)) }
    byte
}

/// Reads a model-specific register and writes it back changed. Where there is none the fault is stepped over.
pub fn disturb_register(number: u32, change: u32) {
    // SAFETY: no register that is named by the caller maps or unmaps memory.
    unsafe {
        asm!("rdmsr", "xor eax, {change:e}", "wrmsr", change = in(reg) change, in("ecx") number,
            out("eax") _, out("edx") _, options(nostack))
    }
}

/// Waits for an interrupt that never comes.
pub fn halt() -> ! {
    loop {
        // SAFETY: touches no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Three faults in one: the processor shuts down.
pub fn triple_fault() -> ! {
    let nothing = [0u16; 5];
    // SAFETY: nothing runs after it.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &raw const nothing, options(noreturn)) }
}

/// The end, as a PC has it: the keyboard controller resets the machine.
pub fn reset() -> ! {
    out(KEYBOARD_COMMAND, RESET);
    halt()
}

/// Page tables for 4 GiB, since libkrun's end below the devices; and handlers for faults.
extern "C" fn set_up() {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let (directory_pointers, directories) = (TABLES + 0x1000, TABLES + 0x2000);
    write(TABLES, directory_pointers | PRESENT_WRITABLE);
    for gib in 0..4 {
        write(directory_pointers + gib * 8, (directories + gib * 0x1000) | PRESENT_WRITABLE);
    }
    for page in 0..2048u64 {
        write(directories + page * 8, (page << 21) | PRESENT_WRITABLE | LARGE);
    }
    for vector in 0..IDT_VECTORS {
        let handler = match WITH_CODE.contains(&vector) {
            true => hostile_fault_with_code as *const () as u64,
            false => hostile_fault as *const () as u64,
        };
        // Present, interrupt gate (AMD64 manual 2, 4.8.4).
        let low =
            (handler & 0xffff) | (CODE_SELECTOR << 16) | (0x8e << 40) | ((handler >> 16 & 0xffff) << 48);
        write(IDT + vector * 16, low);
        write(IDT + vector * 16 + 8, handler >> 32);
    }
    let limit_and_base = [(IDT_VECTORS * 16 - 1) as u16, IDT as u16, (IDT >> 16) as u16, 0, 0];
    // SAFETY: both tables were just filled, and map this program where it stands.
    unsafe {
        asm!("mov cr3, {}", in(reg) TABLES, options(nostack));
        asm!("lidt [{}]", in(reg) &raw const limit_and_base, options(nostack));
    }
}

/// The first serial port; it takes what comes.
#[derive(Debug, Clone, Copy)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(SERIAL, byte));
        Ok(())
    }
}
