//! Attacks on block devices (Virtual I/O Device 1.2, section 5.2.6).

use core::fmt::Write as _;

use super::Random;
use super::cpu::{self, Serial, read, write};
use super::virtio::{self, NEXT, Queue, WRITE, kind, register};

const HEADER: u64 = cpu::ARENA + 0x10_0000;
const STATUS: u64 = HEADER + 0x100;
const DATA: u64 = HEADER + 0x1000;
const HEADER_BYTES: u32 = 16;
const PATIENCE: u32 = 3_000_000;

/// Request types.
const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const IDENTITY: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn capacity(device: virtio::Device) -> u64 {
    u64::from(device.read(register::CONFIG)) | u64::from(device.read(register::CONFIG + 4)) << 32
}

/// One sound request, waited for; the status, 0xff if there was none.
fn request(queue: &mut Queue, what: u32, sector: u64, bytes: u32) -> u8 {
    write(HEADER, what);
    write(HEADER + 4, 0u32);
    write(HEADER + 8, sector);
    write(STATUS, 0xff_u8);
    let to_guest = if what == READ || what == IDENTITY { WRITE } else { 0 };
    queue.describe(0, HEADER, HEADER_BYTES, NEXT, if bytes == 0 { 2 } else { 1 });
    queue.describe(1, DATA, bytes, NEXT | to_guest, 2);
    queue.describe(2, STATUS, 1, WRITE, 0);
    queue.offer(0);
    queue.notify();
    queue.wait(PATIENCE);
    read(STATUS)
}

/// Requests of every type with parts missing, swapped, too long and too short.
pub fn requests(random: &mut Random) {
    for device in virtio::of_kind(kind::BLOCK) {
        for _ in 0..60 {
            let Some(mut queues) = device.sound(64) else { break };
            let queue = &mut queues[0];
            for chain in 0..8u16 {
                let what = random.of(&[
                    READ,
                    WRITE_OUT,
                    FLUSH,
                    IDENTITY,
                    DISCARD,
                    WRITE_ZEROES,
                    2,
                    3,
                    5,
                    0xffff_ffff,
                ]);
                let header = HEADER + u64::from(chain) * 32;
                write(header, what);
                write(header + 8, random.edge());
                let slot = chain * 4;
                let flags = random.of(&[NEXT, NEXT, NEXT, 0, NEXT | WRITE]);
                queue.describe(slot, header, random.of(&[16, 16, 0, 1, 15, 17, 4096]), flags, slot + 1);
                let bytes = random.of(&[0, 1, 16, 511, 512, 513, 4096, 0x10_0000, 0xffff_ffff]);
                write(DATA, random.edge());
                write(DATA + 8, random.edge());
                queue.describe(slot + 1, DATA, bytes, random.of(&[NEXT, NEXT | WRITE, 0, WRITE]), slot + 2);
                queue.describe(
                    slot + 2,
                    STATUS,
                    random.of(&[1, 1, 0, 512]),
                    random.of(&[WRITE, WRITE, 0]),
                    slot,
                );
                queue.offer(slot);
            }
            queue.notify();
        }
    }
}

/// Reads, writes and discards at and beyond the last sector, and numbers of sectors that wrap around. Says what went through.
pub fn beyond_the_end(random: &mut Random) {
    for (number, device) in virtio::of_kind(kind::BLOCK).enumerate() {
        let Some(mut queues) = device.sound(64) else { continue };
        let queue = &mut queues[0];
        let end = capacity(device);
        // Nobody reads an error of the serial port.
        let _ = writeln!(
            Serial,
            "hostile: disk {number} has {end} sectors; read {}, write {}",
            request(queue, READ, 0, 512),
            request(queue, WRITE_OUT, 0, 512)
        );
        for sector in [end - 1, end, end + 1, end * 2, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
            for what in [READ, WRITE_OUT] {
                // Two sectors at the last one reach beyond it.
                if request(queue, what, sector, 1024) == 0 {
                    let _ = writeln!(
                        Serial,
                        "hostile: disk {number} took request {what} at sector {sector} of {end}"
                    );
                }
            }
        }
        for what in [DISCARD, WRITE_ZEROES] {
            for _ in 0..8 {
                write(DATA, random.of(&[0, end - 1, end, u64::MAX]));
                write(DATA + 8, random.of(&[1u32, 8, u32::MAX]));
                write(DATA + 12, random.of(&[0u32, 1, u32::MAX]));
                request(queue, what, 0, 16);
            }
        }
    }
}

/// Nothing but flushes and writes, as fast as they go.
pub fn floods(_: &mut Random) {
    for device in virtio::of_kind(kind::BLOCK) {
        let Some(mut queues) = device.sound(64) else { continue };
        let queue = &mut queues[0];
        for round in 0..1500u64 {
            request(queue, FLUSH, 0, 0);
            request(queue, WRITE_OUT, round * 8 % capacity(device).max(8), 4096);
        }
    }
}
