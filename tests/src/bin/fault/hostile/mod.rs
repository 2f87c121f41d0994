//! A guest kernel that is an enemy: what the saboteur becomes when a VMM starts it in the place of Linux.
//!
//! It has ring 0, all of the guest's memory and every device, and needs no operating system: libkrun enters it in 64-bit mode
//! ([`cpu`]). Which attack and which seed it reads from where libkrun puts the initramfs: `ATTACK SEED`. It says on the serial
//! port what it does, and ends with a reset. Must never: call the standard library's system calls, which lead nowhere here.

mod attacks;
mod cpu;
mod disk;
mod virtio;
mod vsock;

use core::fmt::Write as _;

use cpu::Serial;

/// Where Linux, and so libkrun, keeps address and size of the initramfs in the boot parameters (Documentation/arch/x86/boot.rst).
const RAMDISK_IMAGE: u64 = cpu::BOOT_PARAMETERS + 0x218;
const RAMDISK_SIZE: u64 = cpu::BOOT_PARAMETERS + 0x21c;
/// Longest order, in bytes.
const ORDER_BYTES_MAX: usize = 64;

/// Names of all attacks.
pub fn names() -> Vec<&'static str> {
    attacks::ATTACKS.iter().map(|(name, _)| *name).collect()
}

/// The address at which a VMM has to enter this program. Means something only in the static, not relocated build.
pub fn entry() -> u64 {
    cpu::entry()
}

/// Numbers that a seed determines (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Every seed gives another row; zero is not one of its states.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound.max(1)
    }

    /// One of a few.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number that code tends to get wrong: an edge of a type or of memory, or just any.
    pub fn edge(&mut self) -> u64 {
        let near = self.below(33).wrapping_sub(16);
        match self.below(8) {
            0 => self.any(),
            1 => near,
            2 => cpu::MEMORY_END.wrapping_add(near),
            3 => 0xffff_ffff_u64.wrapping_add(near),
            4 => u64::MAX.wrapping_sub(self.below(4096)),
            5 => virtio::WINDOWS.wrapping_add(self.below(0x10000)),
            6 => 1 << self.below(64),
            _ => self.below(cpu::MEMORY_END),
        }
    }
}

/// Where [`cpu`] goes on once there is a stack.
extern "C" fn main() -> ! {
    let mut text = [0u8; ORDER_BYTES_MAX];
    let (name, seed) = order(&mut text);
    let mut serial = Serial;
    // The serial port takes everything; nobody reads an error here.
    let _ = writeln!(serial, "hostile: {name} begins with seed {seed}");
    match attacks::ATTACKS.iter().find(|(known, _)| *known == name) {
        Some((_, attack)) => {
            attack(&mut Random::new(seed));
            let _ = writeln!(serial, "hostile: {name} is over");
        }
        None => {
            let _ = writeln!(serial, "hostile: `{name}` is not an attack");
        }
    }
    cpu::reset()
}

/// The order that lies where the initramfs should be.
fn order(text: &mut [u8; ORDER_BYTES_MAX]) -> (&str, u64) {
    let (from, bytes) = (cpu::read::<u32>(RAMDISK_IMAGE), cpu::read::<u32>(RAMDISK_SIZE));
    let bytes = (bytes as usize).min(ORDER_BYTES_MAX);
    for (at, byte) in text.iter_mut().take(bytes).enumerate() {
        *byte = cpu::read::<u8>(u64::from(from) + at as u64);
    }
    let text = core::str::from_utf8(&text[..bytes]).unwrap_or_default();
    let (name, seed) = text.split_once(' ').unwrap_or((text, "1"));
    (name, seed.trim_end_matches(['\0', '\n']).parse().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn attacks_have_distinct_names_that_fit_an_order() {
        let all = names();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(all.iter().all(|name| name.len() + 22 <= ORDER_BYTES_MAX && !name.contains(' ')));
    }

    #[test]
    fn seeds_give_rows_of_their_own() {
        let row = |seed| {
            let mut random = Random::new(seed);
            (0..8).map(move |_| random.any()).collect::<Vec<_>>()
        };
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
        let mut random = Random::new(3);
        assert!((0..10_000).all(|_| random.below(10) < 10 && random.of(&[1, 2]) < 3));
    }
}
