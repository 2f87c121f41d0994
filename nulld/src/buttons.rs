//! The power button, as an input event (kernel doc input/input.rst).

use std::os::fd::OwnedFd;

/// Input devices that have a power key.
#[derive(Debug, Default)]
pub struct Buttons {
    devices: Vec<OwnedFd>,
}

impl Buttons {
    /// Opens and watches them.
    pub fn open(_epoll: &OwnedFd) -> Buttons {
        Buttons { devices: Vec::new() }
    }

    /// After an event of the device with this index: how often its power key was pressed.
    pub fn read(&mut self, index: u32) -> usize {
        let _device = self.devices.get(index as usize);
        0
    }
}
