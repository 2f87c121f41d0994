//! A service to be broken: sound until a file of its name says otherwise.
//!
//! `/run/fault/NAME.crash`: it ends at once, at each start too. `/run/fault/NAME.stuck` holds the path of a block device, which it then
//! reads past every cache. `/run/fault/NAME.flood` holds how many lines it writes at once; then the file is gone. With `--deaf` it ignores SIGTERM.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use abi::notice::Notice;
use anyhow::{Result, bail};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::OFlags;

/// Where its orders lie.
pub const ORDERS: &str = "/run/fault";
const PAGE: usize = 4096;

/// Entry.
pub fn main(name: &str, options: &[&str]) -> Result<()> {
    if options.contains(&"--deaf") {
        let mut term = SigSet::empty();
        term.add(Signal::SIGTERM);
        term.thread_block()?;
    }
    let inherited = abi::door::Inherited::take()?;
    let order = |what: &str| PathBuf::from(ORDERS).join(format!("{name}.{what}"));
    inherited.notify.send(&Notice::Ready)?;
    inherited.notify.status("sound");
    loop {
        if order("crash").exists() {
            bail!("told to crash");
        }
        if let Ok(device) = fs::read_to_string(order("stuck")) {
            println!("reading {}", device.trim());
            read_directly(device.trim())?;
        }
        if let Ok(lines) = fs::read_to_string(order("flood")) {
            crate::flood(lines.trim().parse()?)?;
            fs::remove_file(order("flood"))?;
        }
        // The pipe may be full while nulld is held: then it hears nothing, and the next word is as good.
        let _ = inherited.notify.send(&Notice::Alive);
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A read that waits for the device in the kernel, uninterruptibly.
fn read_directly(device: &str) -> Result<()> {
    let flags = i32::try_from(OFlags::DIRECT.bits())?;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(device)?;
    let mut buffer = vec![0u8; 2 * PAGE];
    let start = buffer.as_ptr().align_offset(PAGE); // O_DIRECT wants it (open(2))
    file.read_exact(&mut buffer[start..start + PAGE])?;
    Ok(())
}
