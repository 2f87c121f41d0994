//! Writes initramfs archives: cpio "newc" (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`), with fixed
//! owners, times and inode numbers, so that the same entries are the same bytes.

#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }

    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, (0, 0), content);
    }

    /// A character device; /dev/console lets the first program speak before devtmpfs is mounted.
    pub fn character_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, 0o020_000 | mode, (major, minor), &[]);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("initramfs files are far below 4 GiB");
        let links = 1;
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_what_we_write() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"hello");
        let mut cpio = Command::new("cpio")
            .args(["-tv", "--quiet", "-n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by scripts/deps.sh");
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with("dev"), "{listing}");
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 5 "), "{listing}");
    }
}
