//! virtio devices over MMIO and their queues (Virtual I/O Device 1.2, sections 2.7 and 4.2), driven properly or not at all properly.

use super::cpu::{self, read, write};

/// Where libkrun's devices begin, a page each.
pub const WINDOWS: u64 = 0xd000_0000;
const WINDOWS_MAX: u64 = 24;
const WINDOW_BYTES: u64 = 0x1000;
const MAGIC: u32 = 0x7472_6976;

/// Registers (4.2.2).
pub mod register {
    pub const DEVICE: u64 = 0x08;
    pub const FEATURES: u64 = 0x10;
    pub const FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS: u64 = 0x80;
    pub const AVAILABLE: u64 = 0x90;
    pub const USED: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

/// Device types (5).
pub mod kind {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const ENTROPY: u32 = 4;
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
}

/// Descriptor flags (2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
/// VIRTIO_F_VERSION_1, of the second page of features.
const VERSION_1: u32 = 1;
/// Memory of one well-behaved queue: descriptors, then both rings.
const QUEUE_BYTES: u64 = 0x10000;

/// A device.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    pub base: u64,
    pub kind: u32,
}

/// Where a queue's three parts are.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// All devices there are.
pub fn devices() -> impl Iterator<Item = Device> {
    (0..WINDOWS_MAX).map(|n| WINDOWS + n * WINDOW_BYTES).filter(|base| read::<u32>(*base) == MAGIC).map(
        |base| {
            let kind = read::<u32>(base + register::DEVICE);
            Device { base, kind }
        },
    )
}

/// Devices of one type.
pub fn of_kind(kind: u32) -> impl Iterator<Item = Device> {
    devices().filter(move |device| device.kind == kind)
}

impl Device {
    pub fn read(self, register: u64) -> u32 {
        read(self.base + register)
    }

    pub fn write(self, register: u64, value: u32) {
        write(self.base + register, value);
    }

    /// Back to the beginning. False: this device cannot, or is broken already.
    pub fn reset(self) -> bool {
        self.write(register::STATUS, 0);
        self.read(register::STATUS) == 0
    }

    /// As a driver begins: all features that the device offers, or what `claim` makes of them.
    pub fn begin(self, claim: impl Fn(u32, u32) -> u32) {
        self.write(register::STATUS, ACKNOWLEDGE);
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER);
        for page in 0..2 {
            self.write(register::FEATURES_SELECT, page);
            let offered = self.read(register::FEATURES);
            self.write(register::DRIVER_FEATURES_SELECT, page);
            self.write(register::DRIVER_FEATURES, claim(page, offered));
        }
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Only what a driver must claim.
    pub fn begin_plainly(self) {
        self.begin(|page, _| if page == 1 { VERSION_1 } else { 0 });
    }

    /// Sets a queue up.
    pub fn set_queue(self, number: u32, size: u32, rings: Rings) {
        self.write(register::QUEUE_SELECT, number);
        self.write(register::QUEUE_SIZE, size);
        for (register, address) in [
            (register::DESCRIPTORS, rings.descriptors),
            (register::AVAILABLE, rings.available),
            (register::USED, rings.used),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
    }

    /// The device may work now.
    pub fn go(self) {
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn notify(self, queue: u32) {
        self.write(register::NOTIFY, queue);
    }

    /// Largest size of a queue; zero where there is none.
    pub fn size_max(self, queue: u32) -> u32 {
        self.write(register::QUEUE_SELECT, queue);
        self.read(register::QUEUE_SIZE_MAX)
    }

    /// Number of queues.
    pub fn queues(self) -> u32 {
        (0..8).take_while(|queue| self.size_max(*queue) != 0).count() as u32
    }

    /// Resets the device and brings it up with sound queues of at most `size` entries.
    pub fn sound(self, size: u16) -> Option<[Queue; 4]> {
        if !self.reset() {
            return None;
        }
        self.begin_plainly();
        let queues = core::array::from_fn(|number| Queue::new(self, number as u32, size));
        self.go();
        Some(queues)
    }
}

/// A queue with sound rings; what is put into it is another matter.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    pub device: Device,
    pub number: u32,
    pub size: u16,
    pub rings: Rings,
    offered: u16,
    seen: u16,
}

impl Queue {
    /// In the arena, where queues of different numbers do not overlap. Sets the device's queue up where it has one.
    fn new(device: Device, number: u32, size: u16) -> Queue {
        let size = device.size_max(number).min(u32::from(size)) as u16;
        let start = cpu::ARENA + u64::from(number) * QUEUE_BYTES;
        let rings = Rings { descriptors: start, available: start + 0x8000, used: start + 0xc000 };
        (0..QUEUE_BYTES).step_by(8).for_each(|at| write(start + at, 0u64));
        if size != 0 {
            device.set_queue(number, u32::from(size), rings);
        }
        Queue { device, number, size, rings, offered: 0, seen: 0 }
    }

    /// Fills a descriptor.
    pub fn describe(&self, slot: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let at = self.rings.descriptors + u64::from(slot) * 16;
        write(at, address);
        write(at + 8, bytes);
        write(at + 12, flags);
        write(at + 14, next);
    }

    /// Offers a chain that begins at a descriptor.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size.max(1));
        write(self.rings.available + 4 + slot * 2, head);
        self.offered = self.offered.wrapping_add(1);
        write(self.rings.available + 2, self.offered);
    }

    /// Claims that more was offered than was.
    pub fn jump(&mut self, by: u16) {
        self.offered = self.offered.wrapping_add(by);
        write(self.rings.available + 2, self.offered);
    }

    pub fn notify(&self) {
        self.device.notify(self.number);
    }

    /// The next chain that the device gave back: its head and the bytes written.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        if read::<u16>(self.rings.used + 2) == self.seen {
            return None;
        }
        let at = self.rings.used + 4 + u64::from(self.seen % self.size.max(1)) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((read(at), read(at + 4)))
    }

    /// Waits until a chain comes back, but not for ever.
    pub fn wait(&mut self, patience: u32) -> Option<(u32, u32)> {
        (0..patience).find_map(|_| {
            self.take().or_else(|| {
                core::hint::spin_loop();
                None
            })
        })
    }
}
