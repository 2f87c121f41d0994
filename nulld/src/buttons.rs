//! The power button, as input events (kernel doc input/input.rst, linux/input-event-codes.h).
//!
//! Must hold: only devices whose keys are all power and sleep keys are opened, as sysfs says, so nothing that anybody types is
//! ever read. Devices are looked for once, when nulld begins: ACPI's buttons are there before the first process.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};

use crate::poll::{self, Token};

/// Input devices as the kernel lists them.
const CLASS: &str = "/sys/class/input";
/// Devices opened; a machine has one or two.
const DEVICES_MAX: usize = 8;
/// Bytes of a struct input_event on 64-bit machines: time, type, code, value.
const EVENT_BYTES: usize = 24;
/// Events taken at one turn of the loop.
const EVENTS_MAX: usize = 64;

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// KEY_POWER, KEY_SLEEP, KEY_WAKEUP, KEY_SUSPEND.
const BUTTON_KEYS: [u16; 4] = [KEY_POWER, 142, 143, 205];
/// EV_SYN, EV_KEY, EV_REP: what a device with nothing but buttons sends.
const BUTTON_KINDS: [u16; 3] = [0, EV_KEY, 20];

/// Input devices that have a power key.
#[derive(Debug, Default)]
pub struct Buttons {
    devices: Vec<OwnedFd>,
}

impl Buttons {
    /// Opens and watches them. One that cannot be opened or watched is no button.
    pub fn open(epoll: &OwnedFd) -> Buttons {
        let mut devices = Vec::new();
        for name in power_buttons(Path::new(CLASS)).into_iter().take(DEVICES_MAX) {
            let Some(device) = open(&name) else { continue };
            let index = u32::try_from(devices.len()).unwrap_or(u32::MAX);
            if poll::watch(epoll, &device, Token::Button(index), EventFlags::IN).is_ok() {
                devices.push(device);
            }
        }
        Buttons { devices }
    }

    /// After an event of the device with this index: how often its power key was pressed.
    pub fn read(&mut self, index: u32) -> usize {
        let Some(device) = self.devices.get(index as usize) else { return 0 };
        let mut buffer = [0u8; EVENT_BYTES * EVENTS_MAX];
        match rustix::io::read(device, &mut buffer[..]) {
            Ok(count) => presses(buffer.get(..count).unwrap_or_default()),
            // EAGAIN: nothing after all. ENODEV: it was taken away, and epoll would report that for ever.
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(_) => {
                // An index is a place in the list, so the place stays: with a descriptor that never becomes ready.
                if let (Ok((idle, _)), Some(place)) = (
                    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC),
                    self.devices.get_mut(index as usize),
                ) {
                    *place = idle;
                }
                0
            }
        }
    }
}

/// Presses of the power key in the kernel's events; a release (0) and a repetition (2) are none.
fn presses(events: &[u8]) -> usize {
    let number = |event: &[u8], at: usize| Some(u16::from_ne_bytes(event.get(at..at + 2)?.try_into().ok()?));
    let is_press = |event: &&[u8]| {
        number(event, 16) == Some(EV_KEY)
            && number(event, 18) == Some(KEY_POWER)
            && event.get(20..24) == Some(&1i32.to_ne_bytes()[..])
    };
    events.chunks_exact(EVENT_BYTES).filter(is_press).count()
}

/// Names (`event0`) of the devices that have a power key and no key but buttons.
fn power_buttons(class: &Path) -> Vec<String> {
    let read = |name: &str, file: &str| {
        bits(&fs::read_to_string(class.join(name).join("device/capabilities").join(file)).unwrap_or_default())
    };
    let mut names: Vec<String> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("event"))
        .filter(|name| is_power_button(&read(name, "ev"), &read(name, "key")))
        .collect();
    names.sort();
    names
}

fn is_power_button(kinds: &[u16], keys: &[u16]) -> bool {
    keys.contains(&KEY_POWER)
        && keys.iter().all(|key| BUTTON_KEYS.contains(key))
        && kinds.iter().all(|kind| BUTTON_KINDS.contains(kind))
}

/// Numbers of the bits in sysfs's form: words of 64 bits in hexadecimal, the highest first. Unreadable: a bit that no button
/// has, so that what is not understood is not opened.
fn bits(text: &str) -> Vec<u16> {
    let mut found = Vec::new();
    for (index, word) in text.split_whitespace().rev().enumerate() {
        let (Ok(word), Ok(index)) = (u64::from_str_radix(word, 16), u16::try_from(index)) else {
            return vec![u16::MAX];
        };
        found.extend((0..64u16).filter(|bit| word >> bit & 1 == 1).map(|bit| index.saturating_mul(64) + bit));
    }
    found
}

/// Opens a device node and makes sure that it is the device that sysfs spoke of.
fn open(name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let device = rustix::fs::open(format!("/dev/input/{name}"), flags, Mode::empty()).ok()?;
    let number = fs::File::from(device.try_clone().ok()?).metadata().ok()?.rdev();
    let listed = fs::read_to_string(Path::new(CLASS).join(name).join("dev")).ok()?;
    let is_same = listed.trim() == format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    is_same.then_some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_going_down_of_the_power_key_is_a_press() {
        let events = [
            event(EV_KEY, KEY_POWER, 1),
            event(0, 0, 0),
            event(EV_KEY, KEY_POWER, 2),
            event(EV_KEY, KEY_POWER, 0),
            event(EV_KEY, 142, 1),
            event(4, KEY_POWER, 1),
            event(EV_KEY, KEY_POWER, 1),
        ]
        .concat();
        assert_eq!(presses(&events), 2);
        for end in 0..events.len() {
            assert!(presses(&events[..end]) <= 2); // a cut event counts for nothing
        }
    }

    #[test]
    fn a_keyboard_is_never_a_button_even_with_a_power_key() {
        // As sysfs shows ACPI's button, an AT keyboard, and a keyboard with only a few keys.
        let button = (bits("3"), bits("10000000000000 0"));
        assert_eq!(button, (vec![0, 1], vec![116]));
        assert!(is_power_button(&button.0, &button.1));
        let keyboard = bits("402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe");
        assert!(keyboard.contains(&KEY_POWER) && !is_power_button(&bits("120013"), &keyboard));
        assert!(!is_power_button(&[0, 1], &[KEY_POWER, 30]), "a power key beside the letter A");
        assert!(!is_power_button(&[0, 1, 2], &[KEY_POWER]), "something that moves");
        assert!(!is_power_button(&[0, 1], &[142]), "sleep only");
        assert!(!is_power_button(&[0, 1], &bits("nonsense 10000000000000 0")));
    }

    #[test]
    fn devices_are_found_by_what_sysfs_says() {
        let dir = std::env::temp_dir().join(format!("nulld-buttons-{}", std::process::id()));
        let device = |name: &str, ev: &str, key: &str| {
            let at = dir.join(name).join("device/capabilities");
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("ev"), ev).unwrap();
            fs::write(at.join("key"), key).unwrap();
        };
        device("event1", "3\n", "10000000000000 0\n");
        device("event0", "120013\n", "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe\n");
        device("input1", "3\n", "10000000000000 0\n");
        fs::create_dir_all(dir.join("event2")).unwrap();
        assert_eq!(power_buttons(&dir), ["event1"]);
        fs::remove_dir_all(&dir).unwrap();
        assert!(power_buttons(&dir).is_empty());
    }
}
