//! All attacks, by name, and those that any device can be met with. Each is bounded in steps; none counts on an answer.

use core::fmt::Write as _;

use super::cpu::{self, MEMORY_END, Serial, read, write};
use super::virtio::{self, Device, INDIRECT, NEXT, Rings, WRITE, kind, register};
use super::{Random, disk, vsock};

/// An attack.
pub type Attack = fn(&mut Random);

/// What the saboteur can ask for.
pub const ATTACKS: &[(&str, Attack)] = &[
    ("registers", registers),
    ("states", states),
    ("rings", rings),
    ("descriptors", descriptors),
    ("loops", loops),
    ("resets", resets),
    ("notify-storm", notify_storm),
    ("block-requests", disk::requests),
    ("block-beyond-the-end", disk::beyond_the_end),
    ("block-floods", disk::floods),
    ("vsock-ports", vsock::ports),
    ("vsock-tsi", vsock::tsi),
    ("vsock-packets", vsock::packets),
    ("vsock-half-open", vsock::half_open),
    ("vsock-credit", vsock::credit),
    ("net-frames", net_frames),
    ("balloon", balloon),
    ("entropy", entropy),
    ("serial-flood", serial_flood),
    ("ports", ports),
    ("model-specific-registers", model_specific_registers),
    ("interrupt-controllers", interrupt_controllers),
    ("memory", memory),
    ("halt", |_| cpu::halt()),
    ("spin", spin),
    ("triple-fault", |_| cpu::triple_fault()),
    ("reset", |_| cpu::reset()),
    ("everything", everything),
];

/// Ring addresses that the table of a queue may get: sound ones, edges and overlaps.
fn some_rings(random: &mut Random) -> Rings {
    let mut one = || match random.below(3) {
        0 => cpu::ARENA + random.below(0x8000),
        _ => random.edge(),
    };
    Rings { descriptors: one(), available: one(), used: one() }
}

/// All devices, beginning with one that the seed chooses: an attack that ends the VMM at one device would never reach the next.
fn in_some_order(random: &mut Random) -> impl Iterator<Item = Device> + use<> {
    let count = virtio::devices().count();
    let first = random.below(count as u64) as usize;
    virtio::devices().skip(first).chain(virtio::devices().take(first))
}

/// Every register and all of the configuration space, at any offset, in any width.
fn registers(random: &mut Random) {
    for device in in_some_order(random) {
        for _ in 0..500 {
            let at = device.base + random.below(0x1000);
            let value = random.edge();
            match random.below(8) {
                0 => drop(read::<u8>(at)),
                1 => drop(read::<u16>(at)),
                2 => drop(read::<u32>(at)),
                3 => drop(read::<u64>(at)),
                4 => write(at, value as u8),
                5 => write(at, value as u16),
                6 => write(at, value as u32),
                _ => write(at, value),
            }
        }
    }
}

/// Every order of states, with features that were never offered.
fn states(random: &mut Random) {
    for device in in_some_order(random) {
        for _ in 0..300 {
            match random.below(5) {
                0 => device.write(register::STATUS, random.of(&[0, 1, 2, 3, 4, 7, 8, 11, 15, 64, 128, 0xff])),
                1 => device.begin(|_, offered| !offered),
                2 => device.begin(|_, offered| offered),
                3 => {
                    let rings = some_rings(random);
                    device.set_queue(random.below(5) as u32, random.edge() as u32, rings);
                }
                _ => device.notify(random.below(5) as u32),
            }
        }
    }
}

/// Queues of impossible sizes at impossible places, in use.
fn rings(random: &mut Random) {
    for device in in_some_order(random) {
        for _ in 0..24 {
            if !device.reset() {
                break;
            }
            device.begin(|_, offered| offered);
            for queue in 0..device.queues() {
                let size = random.of(&[0, 1, 2, 3, 128, 255, 256, 257, 1024, 32768, 65535, 65536]);
                let rings = some_rings(random);
                device.set_queue(queue, size, rings);
            }
            device.go();
            (0..8).for_each(|n| device.notify(n % 4));
        }
    }
}

/// Sound rings, and descriptors that are anything but.
fn descriptors(random: &mut Random) {
    for device in in_some_order(random) {
        for _ in 0..24 {
            let Some(mut queues) = device.sound(128) else { break };
            for queue in &mut queues {
                for slot in 0..queue.size {
                    let (flags, next) =
                        (random.below(8) as u16, random.of(&[slot + 1, slot, 0, 127, 128, 0xffff]));
                    let bytes =
                        random.of(&[0, 1, 15, 16, 17, 512, 0x1000, 0x10000, 0x7fff_ffff, 0xffff_ffff]);
                    let address = if random.below(3) == 0 { cpu::ARENA + 0x10_0000 } else { random.edge() };
                    queue.describe(slot, address, bytes, flags, next);
                }
                (0..32).for_each(|_| queue.offer(random.of(&[0, 1, 2, 127, 128, 0x8000, 0xffff])));
                if random.below(3) == 0 {
                    queue.jump(random.of(&[1, 127, 128, 129, 0x7fff, 0xffff]));
                }
                queue.notify();
            }
        }
    }
}

/// Chains that come back to themselves, chains as long as can be, and tables inside tables.
fn loops(random: &mut Random) {
    for device in in_some_order(random) {
        for flags in [NEXT, NEXT | WRITE, NEXT | INDIRECT, NEXT | WRITE | INDIRECT] {
            let Some(mut queues) = device.sound(256) else { break };
            for queue in &mut queues {
                let back = random.below(u64::from(queue.size.max(1))) as u16;
                for slot in 0..queue.size {
                    let next = if slot + 1 == queue.size { back } else { slot + 1 };
                    // Each part of the chain is the chain's own table.
                    queue.describe(slot, queue.rings.descriptors, 4096, flags, next);
                }
                (0..queue.size).for_each(|slot| queue.offer(slot));
                queue.notify();
            }
        }
    }
}

/// Resets while requests are on their way.
fn resets(random: &mut Random) {
    for device in in_some_order(random) {
        for _ in 0..40 {
            let Some(mut queues) = device.sound(64) else { break };
            for queue in &mut queues {
                for slot in 0..queue.size {
                    let flags = if random.below(2) == 0 { WRITE } else { 0 };
                    queue.describe(slot, cpu::ARENA + 0x10_0000 + u64::from(slot) * 4096, 4096, flags, 0);
                    queue.offer(slot);
                }
                queue.notify();
            }
        }
    }
}

/// More notifications than anybody can want, with nothing behind them.
fn notify_storm(random: &mut Random) {
    for device in in_some_order(random) {
        let _ = device.sound(16); // one that cannot be reset is stormed as it is
        (0..3000).for_each(|_| device.notify(random.below(4) as u32));
    }
}

/// Frames with lying headers: lengths, offsets and types of offloads that are not so; frames too long and too short.
fn net_frames(random: &mut Random) {
    const SEND: usize = 1;
    for device in virtio::of_kind(kind::NET) {
        let features = random.any();
        if !device.reset() {
            continue;
        }
        device.begin(|page, offered| if page == 0 { offered & features as u32 } else { offered });
        let Some(mut queues) = device.sound(128) else { continue };
        let queue = &mut queues[SEND];
        for _ in 0..200 {
            let from = cpu::ARENA + 0x10_0000;
            (0..12).for_each(|at| write(from + at, random.edge() as u8));
            (12..256).for_each(|at| write(from + at, random.any() as u8));
            let slot = random.below(u64::from(queue.size.max(2)) - 1) as u16;
            let bytes = random.of(&[0, 1, 11, 12, 13, 26, 64, 1514, 9000, 0xffff, 0x10000, 0x10_0000]);
            queue.describe(slot, from, bytes, if random.below(4) == 0 { NEXT } else { 0 }, slot + 1);
            queue.offer(slot);
            queue.notify();
        }
    }
}

/// Pages that are not there, all pages that are, the same page for ever.
fn balloon(random: &mut Random) {
    for device in virtio::of_kind(kind::BALLOON) {
        let Some(mut queues) = device.sound(128) else { continue };
        (0..64).for_each(|at| write(device.base + register::CONFIG + at % 16, 0xff_u8));
        for queue in &mut queues {
            for round in 0..64u16 {
                let table = cpu::ARENA + 0x10_0000;
                (0..1024).for_each(|n| write(table + n * 4, random.edge() as u32));
                if queue.size == 0 {
                    continue;
                }
                let slot = round % queue.size;
                // A list of page numbers for one queue, the pages themselves for another (free page reporting).
                let (address, bytes) = match random.below(3) {
                    0 => (table, 4096),
                    1 => (random.edge(), random.edge() as u32),
                    _ => (0, MEMORY_END as u32),
                };
                // All of memory, this program with it, only as the last thing.
                let is_all = address == 0 && round < 63;
                queue.describe(slot, if is_all { cpu::ARENA + 0x80_0000 } else { address }, bytes, WRITE, 0);
                queue.offer(slot);
                queue.notify();
            }
        }
    }
}

/// Asks for more random bytes than there is memory.
fn entropy(random: &mut Random) {
    for device in virtio::of_kind(kind::ENTROPY) {
        let Some(mut queues) = device.sound(64) else { continue };
        let queue = &mut queues[0];
        for slot in 0..queue.size {
            let bytes = random.of(&[1, 4096, 0x0400_0000, 0x7fff_ffff, 0xffff_ffff]);
            queue.describe(slot, cpu::ARENA + 0x10_0000, bytes, WRITE | NEXT, slot + 1);
            queue.offer(slot);
        }
        queue.notify();
        let _ = queue.wait(20_000_000); // the VMM may be gone before
    }
}

/// Text without end.
fn serial_flood(random: &mut Random) {
    for line in 0..2000u32 {
        // The port takes everything.
        let _ = writeln!(
            Serial,
            "{line} \u{1b}[2J\u{0}\u{7f} {:x}{:x}{:x}{:x}",
            random.any(),
            random.any(),
            random.any(),
            random.any()
        );
    }
}

/// Every port, read and written.
fn ports(random: &mut Random) {
    const RESET_PORT: u16 = 0x64;
    for port in 0..=u16::MAX {
        cpu::read_port(port);
        // The keyboard controller's reset is an attack of its own.
        let value = random.any() as u8;
        cpu::out(port, if port == RESET_PORT { value & 0x7f } else { value });
        if port % 16 == 0 {
            cpu::out_wide(port, random.any() as u32);
        }
    }
}

/// Registers of KVM, of Hyper-V, of the processor: what is there is disturbed, what is not faults.
fn model_specific_registers(random: &mut Random) {
    // From the first of each range, so many (KVM: Documentation/virt/kvm/x86/msr.rst). Those that move the ground under this program
    // (EFER, FS and GS base) are left out.
    for (first, count) in [
        (0x0000_0000_u32, 0x500),
        (0x0000_0800, 0x100),
        (0x0000_0c80, 0x100),
        (0x4000_0000, 0x200),
        (0x4b56_4d00, 0x20),
        (0xc000_0081, 0x4),
        (0xc001_0000, 0x200),
    ] {
        for number in first..first + count {
            const APIC_BASE: u32 = 0x1b;
            let change = if number == APIC_BASE {
                0
            } else {
                random.of(&[0, 1, 0x8000_0000, random.clone().any() as u32])
            };
            cpu::disturb_register(number, change);
        }
    }
}

/// Interrupts to processors that are not there, start-up orders, timers of no length.
fn interrupt_controllers(random: &mut Random) {
    const LOCAL: u64 = 0xfee0_0000;
    const SHARED: u64 = 0xfec0_0000;
    for _ in 0..3000 {
        match random.below(3) {
            0 => write(LOCAL + random.below(0x40) * 16, random.edge() as u32),
            1 => {
                write(LOCAL + 0x310, random.any() as u32);
                // INIT (5) and start-up (6) orders among them, never to itself.
                write(LOCAL + 0x300, (random.any() as u32 & 0x0000_d7ff) | 0x000c_0000);
            }
            _ => {
                write(SHARED, random.below(0x40) as u32);
                write(SHARED + 0x10, random.edge() as u32 | 0x0001_0000);
            }
        }
    }
}

/// All memory there is, and as much beyond as there is not.
fn memory(random: &mut Random) {
    let first = cpu::ARENA + 0x10_0000;
    (first..MEMORY_END - 0x10_0000).step_by(4096).for_each(|at| write(at, random.any()));
    for _ in 0..3000 {
        let beyond = MEMORY_END + random.below(0xd000_0000 - MEMORY_END - 8);
        match random.below(2) {
            0 => write(beyond, random.any()),
            _ => drop(read::<u64>(beyond)),
        }
    }
}

/// All the processor, for nothing.
fn spin(_: &mut Random) {
    loop {
        core::hint::spin_loop();
    }
}

/// The attacks on devices in a row, in a mix that the seed makes.
fn everything(random: &mut Random) {
    const MIX: [Attack; 12] = [
        registers,
        states,
        rings,
        descriptors,
        loops,
        resets,
        disk::requests,
        vsock::packets,
        vsock::credit,
        net_frames,
        balloon,
        notify_storm,
    ];
    for _ in 0..12 {
        random.of(&MIX)(random);
    }
}

/// A device of a kind, brought up soundly.
pub fn first(kind: u32, size: u16) -> Option<(Device, [virtio::Queue; 4])> {
    let device = virtio::of_kind(kind).next()?;
    Some((device, device.sound(size)?))
}
