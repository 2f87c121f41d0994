//! Says what happens on every console the kernel has, a screen and serial ports alike: /dev/console alone is only the
//! last of them, and whoever stands at the box may look at another.
//!
//! Must never do: fail. A console that cannot be written to is left out.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const ACTIVE: &str = "/sys/class/tty/console/active";
const CONSOLES_MAX: usize = 8;

#[derive(Debug, Default)]
pub struct Console {
    outputs: Vec<File>,
}

impl Console {
    /// Before /dev and /sys are mounted there are none, and standard output (/dev/console) has to do.
    pub fn open() -> Console {
        let names = fs::read_to_string(ACTIVE).unwrap_or_default();
        let open = |name: &str| File::options().write(true).open(Path::new("/dev").join(name)).ok();
        Console { outputs: names.split_whitespace().take(CONSOLES_MAX).filter_map(open).collect() }
    }

    pub fn line(&mut self, text: &str) {
        let line = format!("{text}\n");
        if self.outputs.is_empty() {
            // Nobody is left to be told that this failed.
            let _ = std::io::stdout().write_all(line.as_bytes());
        }
        self.outputs.retain_mut(|output| output.write_all(line.as_bytes()).is_ok());
    }
}
