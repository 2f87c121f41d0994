//! A disk that stops answering: a device-mapper device over a real one, suspended. Reads of it wait in the kernel and no signal
//! ends them.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::dm::{self, DeviceNumber, Request};
use crate::sys;

const NAME: &str = "fault";
/// Offset of `flags` in a message, and DM_SUSPEND_FLAG (dm-ioctl.h).
const FLAGS_OFFSET: usize = 28;
const SUSPEND_FLAG: u8 = 1 << 1;

/// `create DISK`, `suspend` or `resume`; answers the device's path.
pub fn obey(order: &str) -> Result<String> {
    match order.split_once(' ').unwrap_or((order, "")) {
        ("create", disk) => create(disk),
        ("suspend", _) => {
            let mut message = dm::message(NAME, None);
            message[FLAGS_OFFSET] |= SUSPEND_FLAG;
            send(Request::Resume, &mut message)?;
            Ok(String::new())
        }
        ("resume", _) => {
            send(Request::Resume, &mut dm::message(NAME, None))?;
            Ok(String::new())
        }
        _ => bail!("dm create DISK, dm suspend or dm resume"),
    }
}

/// Makes it, or finds it.
fn create(disk: &str) -> Result<String> {
    for entry in fs::read_dir("/sys/class/block")?.flatten() {
        let name = fs::read_to_string(entry.path().join("dm/name")).unwrap_or_default();
        if name.trim() == NAME {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    let class = format!("/sys/class/block/{disk}");
    let number = fs::read_to_string(format!("{class}/dev")).with_context(|| class.clone())?;
    let (major, minor) = number.trim().split_once(':').context("major:minor")?;
    let device = DeviceNumber { major: major.parse()?, minor: minor.parse()? };
    let sectors: u64 = fs::read_to_string(format!("{class}/size"))?.trim().parse()?;
    let mut message = dm::message(NAME, None);
    send(Request::Create, &mut message)?;
    let made = dm::device_number(&message).context("no device number")?;
    send(Request::LoadTable, &mut dm::message(NAME, Some(&dm::linear(device, 0, sectors))))?;
    send(Request::Resume, &mut dm::message(NAME, None))?;
    Ok(format!("/dev/dm-{}", made.minor))
}

fn send(request: Request, message: &mut Vec<u8>) -> Result<()> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")
        .context("/dev/mapper/control")?;
    sys::device_mapper(control.as_fd(), request, message).with_context(|| format!("{request:?}"))
}
