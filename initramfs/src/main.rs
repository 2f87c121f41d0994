//! The first program of a node: finds the boot medium, checks the whole image against the root hash that came with
//! this program, and hands over to nulld on it.
//!
//! Must hold: nothing read from a medium is used before dm-verity has checked it, the partition table excepted, which
//! only says where to look. Must never do: offer a shell, mount anything writable, or go on after a failed step.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod boot;
mod console;
mod dm;
mod gpt;
mod image;
mod medium;
mod sys;

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use boot::{BootError, CmdLine};
use console::Console;

const NULLD: &str = "/system/bin/nulld";
const ROOT_HASH_VARIABLE: &str = "NULLBOX_ROOT_HASH";
const TIMES_VARIABLE: &str = "NULLBOX_INITRAMFS_MS";

fn main() {
    if std::process::id() != 1 {
        eprintln!("nullbox: this program is the first process of a node and does nothing anywhere else");
        std::process::exit(2);
    }
    let error = match run() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let mut console = Console::open();
    console.line(&format!("\nnullbox: this node did not boot\n  what: {error}\n  fix:  {}", error.remedy()));
    hold(&mut console, boot::command_line().unwrap_or_default());
}

fn run() -> Result<Infallible, BootError> {
    let start = Instant::now();
    boot::mount_kernel_file_systems()?;
    let mut steps = Steps { console: Console::open(), last: start, times: Vec::new() };
    let image = image::load()?;
    steps.done("mounts", "");

    let medium = medium::find(&image)?;
    steps.done("medium", &medium.describe());

    let device = boot::open_image(&image, &medium)?;
    steps.done("verity", &device.path.display().to_string());

    boot::check_every_block(&image, &device)?;
    steps.done("check", &format!("{} KiB", image.data_bytes() / 1024));

    boot::mount_image(&device)?;
    boot::switch_root()?;
    steps.done("root", &image.root_hash);

    let error = Command::new(NULLD)
        .env_clear()
        .env(ROOT_HASH_VARIABLE, &image.root_hash)
        .env(TIMES_VARIABLE, steps.times())
        .exec();
    Err(BootError::Exec { path: NULLD, error })
}

/// Nothing more can be done, and PID 1 must not end: the message stays on the console. A reboot only where the command
/// line asks for one.
fn hold(console: &mut Console, options: CmdLine) -> ! {
    if let Some(seconds) = options.reboot_s {
        console.line(&format!("nullbox: restarting in {seconds} s (nullbox.reboot_s)"));
        std::thread::sleep(Duration::from_secs(seconds));
        // If the restart is refused there is nothing left but to hold.
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    }
    console.line("nullbox: holding; switch the machine off or restart it");
    loop {
        std::thread::park();
    }
}

/// The steps of this program on the console, and their times for nulld's list of boot phases.
struct Steps {
    console: Console,
    last: Instant,
    times: Vec<(&'static str, u128)>,
}

impl Steps {
    fn done(&mut self, step: &'static str, detail: &str) {
        let ms = self.last.elapsed().as_millis();
        self.console.line(&format!("nullbox: {step:<7} {ms:>5} ms  {detail}"));
        self.times.push((step, ms));
        self.last = Instant::now();
    }

    /// `mounts=1,medium=20,...`
    fn times(&self) -> String {
        self.times.iter().map(|(step, ms)| format!("{step}={ms}")).collect::<Vec<_>>().join(",")
    }
}
