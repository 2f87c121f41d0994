//! Makes archives, good and bad, and reads SquashFS files with squashfs-tools.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const MTIME: u64 = 1_600_000_000;

/// What a reader of a file system sees at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Facts {
    Directory {
        mode: u32,
    },
    File {
        mode: u32,
        content: Vec<u8>,
    },
    Symlink(String),
    Fifo {
        mode: u32,
    },
    /// A character device 0:0.
    Whiteout,
}

/// Reads a SquashFS as unsquashfs does, by its pseudo-file output: names and facts, then all contents.
pub fn facts(squashfs: &Path) -> BTreeMap<String, Facts> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let run = Command::new("unsquashfs").arg("-pf").arg(out.path()).arg(squashfs).output();
    let run = run.expect("unsquashfs (package squashfs-tools): run scripts/deps.sh");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let bytes = std::fs::read(out.path()).unwrap();
    let mark: &[u8] = b"#\n# START OF DATA - DO NOT MODIFY\n#\n";
    let head_end = bytes.windows(mark.len()).position(|w| w == mark).unwrap_or(bytes.len());
    let data = bytes.get(head_end + mark.len()..).unwrap_or_default();
    let mut found = BTreeMap::new();
    let mut hard_links = Vec::new();
    for line in String::from_utf8(bytes[..head_end].to_vec()).unwrap().lines() {
        let words: Vec<&str> = line.splitn(7, ' ').collect();
        let name = words[0].trim_start_matches('/').to_string();
        if words[1] == "L" {
            hard_links.push((name, words[2].trim_start_matches('/').to_string()));
            continue;
        }
        let mode = u32::from_str_radix(words[3], 8).unwrap();
        let facts = match words[1] {
            "D" => Facts::Directory { mode },
            "S" => Facts::Symlink(words[6].to_string()),
            "I" => Facts::Fifo { mode },
            "C" => {
                assert_eq!(words[6], "0 0", "a device that is no whiteout: {line}");
                Facts::Whiteout
            }
            "R" => {
                let numbers: Vec<usize> = words[6].split(' ').map(|n| n.parse().unwrap()).collect();
                Facts::File { mode, content: data[numbers[1]..numbers[1] + numbers[0]].to_vec() }
            }
            other => panic!("{other} in {line}"),
        };
        found.insert(name, facts);
    }
    for (name, target) in hard_links {
        found.insert(name, found[&target].clone());
    }
    found
}

/// What overlayfs shows of SquashFS disks, bottom to top, by its documentation.
pub fn facts_of_disks(disks: &[PathBuf]) -> BTreeMap<String, Facts> {
    let mut seen: BTreeMap<String, Facts> = BTreeMap::new();
    for disk in disks {
        for (name, found) in facts(disk) {
            let both =
                |was: &Facts| matches!((was, &found), (Facts::Directory { .. }, Facts::Directory { .. }));
            if !seen.get(&name).is_some_and(both) {
                let below = format!("{name}/");
                seen.retain(|known, _| !known.starts_with(&below));
                assert!(seen.remove(&name).is_some() || found != Facts::Whiteout, "{name} hides nothing");
            }
            if found != Facts::Whiteout {
                seen.insert(name, found);
            }
        }
    }
    seen
}

/// Lets the kernel mount the disks, laid over one another as in a guest, while `look` looks. None: it cannot here (root and loop
/// devices are needed).
pub fn mounted<T>(disks: &[PathBuf], look: impl FnOnce(&Path) -> T) -> Option<T> {
    let dir = tempfile::tempdir().unwrap();
    let mut mounts: Vec<PathBuf> = Vec::new();
    let mount = |kind: &str, options: &str, what: &Path, at: &Path| {
        std::fs::create_dir(at).unwrap();
        let told =
            Command::new("mount").args(["-t", kind, "-o", options]).arg(what).arg(at).output().unwrap();
        if !told.status.success() {
            eprintln!("not mounted here: {}", String::from_utf8_lossy(&told.stderr));
        }
        told.status.success()
    };
    let mut all = true;
    for (number, disk) in disks.iter().enumerate() {
        let at = dir.path().join(number.to_string());
        all = all && mount("squashfs", "loop,ro", disk, &at);
        mounts.extend(all.then_some(at));
    }
    if all && mounts.len() > 1 {
        let at = dir.path().join("all");
        let lower: Vec<&str> = mounts.iter().rev().map(|at| at.to_str().unwrap()).collect();
        all = mount("overlay", &format!("ro,lowerdir={}", lower.join(":")), Path::new("overlay"), &at);
        mounts.extend(all.then_some(at));
    }
    let root = mounts.last().cloned();
    let seen = all.then(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&root.unwrap()))));
    for at in mounts.iter().rev() {
        assert!(Command::new("umount").arg(at).status().unwrap().success());
    }
    seen.map(|seen| seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// The same of a directory on this machine.
pub fn facts_of_directory(root: &Path) -> BTreeMap<String, Facts> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        let kind = path.symlink_metadata().unwrap();
        let mode = kind.permissions().mode() & 0o7777;
        let facts = if kind.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Facts::Directory { mode }
        } else if kind.is_symlink() {
            Facts::Symlink(std::fs::read_link(&path).unwrap().to_str().unwrap().to_string())
        } else if kind.file_type().is_fifo() {
            Facts::Fifo { mode }
        } else {
            Facts::File { mode, content: std::fs::read(&path).unwrap() }
        };
        found.insert(name, facts);
    }
    found
}

/// Of each file of several names: how many it says it has, and how many there are.
pub fn links(root: &Path) -> BTreeMap<(u64, u64), (u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    for name in facts_of_directory(root).into_keys() {
        let kind = root.join(name).symlink_metadata().unwrap();
        if !kind.is_dir() {
            let entry = found.entry((kind.dev(), kind.ino())).or_insert((kind.nlink(), 0));
            entry.1 += 1;
        }
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer's tar in the making. Headers come from the `tar` crate, so that not only we understand what we write.
#[derive(Clone, Default)]
pub struct Layer {
    bytes: Vec<u8>,
    /// Start of the last header.
    last: usize,
    unfinished: bool,
}

impl Layer {
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(tar::EntryType::Regular, path, mode, "", content, (0, 0))
    }

    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        self.entry(tar::EntryType::Directory, path, mode, "", b"", (0, 0))
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Symlink, path, 0o777, target, b"", (0, 0))
    }

    pub fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Link, path, 0o644, target, b"", (0, 0))
    }

    pub fn fifo(&mut self, path: &str, mode: u32) -> &mut Self {
        self.entry(tar::EntryType::Fifo, path, mode, "", b"", (0, 0))
    }

    pub fn uid_gid(&mut self, path: &str, uid: u64, gid: u64) -> &mut Self {
        self.entry(tar::EntryType::Regular, path, 0o600, "", b"", (uid, gid))
    }

    fn entry(
        &mut self,
        kind: tar::EntryType,
        path: &str,
        mode: u32,
        link: &str,
        content: &[u8],
        owner: (u64, u64),
    ) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(MTIME);
        header.set_size(content.len() as u64);
        let mut builder = tar::Builder::new(Vec::new());
        match link {
            "" => builder.append_data(&mut header, path, content).unwrap(),
            link => builder.append_link(&mut header, path, link).unwrap(),
        }
        self.append(builder)
    }

    fn append(&mut self, builder: tar::Builder<Vec<u8>>) -> &mut Self {
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        self.last = self.bytes.len();
        self.bytes.extend(bytes);
        self
    }

    /// An entry that no library would write.
    pub fn raw(&mut self, flag: u8, path: &[u8], link: &[u8], content: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(MTIME);
        header.set_size(content.len() as u64);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[156] = flag;
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_cksum();
        self.last = self.bytes.len();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// A file with a pax header.
    pub fn pax(&mut self, path: &str, records: &[(&str, &[u8])]) -> &mut Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        self.append(builder);
        self.raw(b'0', path.as_bytes(), b"", b"")
    }

    /// Changes the last entry's type.
    pub fn kind(&mut self, flag: u8) -> &mut Self {
        self.field(156, &[flag])
    }

    /// Changes bytes of the last entry's header.
    pub fn field(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        let header = &mut self.bytes[self.last..self.last + 512];
        header[at..at + bytes.len()].copy_from_slice(bytes);
        let mut fixed = tar::Header::new_ustar();
        fixed.as_mut_bytes().copy_from_slice(header);
        fixed.set_cksum();
        header.copy_from_slice(fixed.as_bytes());
        self
    }

    /// A layer of any bytes, as they are.
    pub fn of(bytes: Vec<u8>) -> Layer {
        Layer { bytes, last: 0, unfinished: true }
    }

    pub fn cut(&mut self, bytes: usize) {
        self.bytes.truncate(self.bytes.len() - bytes);
        self.unfinished = true;
    }

    pub fn garbage_checksum(&mut self) {
        self.bytes[self.last + 148] ^= 1;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn garbage(&mut self) {
        self.bytes = vec![b'g'; 4096];
    }

    fn finish(mut self) -> Vec<u8> {
        if !self.unfinished {
            self.bytes.extend([0; 1024]);
        }
        self.bytes
    }
}

/// An image to be put into an archive.
pub struct Archive {
    pub layers: Vec<Vec<u8>>,
    pub diff_ids: Vec<String>,
    pub architecture: &'static str,
    pub env: Vec<String>,
    pub workdir: String,
    packing: Packing,
}

impl Archive {
    pub fn of(layers: Vec<Layer>, packing: Packing) -> Self {
        let tars: Vec<Vec<u8>> = layers.into_iter().map(Layer::finish).collect();
        Archive {
            diff_ids: tars.iter().map(|tar| digest(tar)).collect(),
            layers: tars.iter().map(|tar| pack(tar, packing)).collect(),
            architecture: match std::env::consts::ARCH {
                "aarch64" => "arm64",
                _ => "amd64",
            },
            env: vec!["PATH=/usr/bin".into()],
            workdir: "/srv".into(),
            packing,
        }
    }

    /// The layers of both, one upon the other.
    pub fn followed_by(mut self, above: &Archive) -> Self {
        self.layers.extend(above.layers.iter().cloned());
        self.diff_ids.extend(above.diff_ids.iter().cloned());
        self
    }

    fn config(&self) -> Vec<u8> {
        let config = serde_json::json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": { "Env": self.env, "WorkingDir": self.workdir },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        serde_json::to_vec(&config).unwrap()
    }

    pub fn oci_members(&self) -> Members {
        let mut members = Members::default();
        members.add("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
        let suffix = match self.packing {
            Packing::Plain => "",
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        let layers: Vec<_> = self.layers.iter().map(|layer| members.blob(&media_type, layer)).collect();
        let config = members.blob("application/vnd.oci.image.config.v1+json", &self.config());
        members.index(&serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers }));
        members
    }

    pub fn oci(&self) -> Vec<u8> {
        self.oci_members().tar()
    }

    pub fn docker(&self) -> Vec<u8> {
        self.saved(1)
    }

    /// An archive that says it holds the image twice.
    pub fn docker_twice(&self) -> Vec<u8> {
        self.saved(2)
    }

    fn saved(&self, times: usize) -> Vec<u8> {
        let mut members = Members::default();
        let config = self.config();
        let config_name = format!("{}.json", &digest(&config)[7..]);
        members.add(&config_name, &config);
        let mut names = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let name = format!("{number}/layer.tar");
            members.add(&name, layer);
            names.push(name);
        }
        let image = serde_json::json!({ "Config": config_name, "RepoTags": ["x:latest"], "Layers": names });
        let manifest = vec![image; times];
        members.add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
        members.tar()
    }
}

/// An archive's members, to be changed one by one.
#[derive(Default)]
pub struct Members(Vec<(String, Vec<u8>)>);

impl Members {
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.push((name.into(), bytes.into()));
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = digest(bytes);
        let name = format!("blobs/sha256/{}", &digest[7..]);
        if self.0.iter().all(|(known, _)| *known != name) {
            self.add(&name, bytes);
        }
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn index(&mut self, manifest: &serde_json::Value) {
        let manifest =
            self.blob("application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(manifest).unwrap());
        self.remove("index.json");
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
        self.add("index.json", &serde_json::to_vec(&index).unwrap());
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    pub fn repeat(&mut self, name: &str) {
        let bytes = self.bytes(name).clone();
        self.add(name, &bytes);
    }

    pub fn replace(&mut self, name: &str, bytes: &[u8]) {
        *self.bytes(name) = bytes.to_vec();
    }

    pub fn edit(&mut self, name: &str, from: &str, to: &str) {
        let text = String::from_utf8(self.bytes(name).clone()).unwrap();
        assert!(text.contains(from));
        self.replace(name, text.replace(from, to).as_bytes());
    }

    fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|(known, _)| known == name).unwrap().1
    }

    fn blob_starting(&mut self, start: &[u8]) -> usize {
        self.0
            .iter()
            .position(|(name, bytes)| name.starts_with("blobs/") && bytes.starts_with(start))
            .unwrap()
    }

    /// Changes a byte in the middle of the first blob that starts so.
    pub fn change_blob(&mut self, start: &[u8]) {
        let at = self.blob_starting(start);
        let bytes = &mut self.0[at].1;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
    }

    pub fn drop_blob(&mut self, start: &[u8]) {
        let at = self.blob_starting(start);
        self.0.remove(at);
    }

    fn manifest(&mut self) -> serde_json::Value {
        let index: serde_json::Value = serde_json::from_slice(self.bytes("index.json")).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_string();
        serde_json::from_slice(self.bytes(&format!("blobs/sha256/{digest}"))).unwrap()
    }

    pub fn rewrite_manifest(&mut self, from: &str, to: &str) {
        let text = self.manifest().to_string();
        assert!(text.contains(from));
        let manifest = serde_json::from_str(&text.replace(from, to)).unwrap();
        self.index(&manifest);
    }

    pub fn add_second_image(&mut self) {
        let mut index: serde_json::Value = serde_json::from_slice(self.bytes("index.json")).unwrap();
        let mut manifest = self.manifest();
        manifest["annotations"] = serde_json::json!({ "other": "yes" });
        let second =
            self.blob("application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(&manifest).unwrap());
        index["manifests"].as_array_mut().unwrap().push(second);
        self.replace("index.json", &serde_json::to_vec(&index).unwrap());
    }

    /// Puts the index into an index, so many times.
    pub fn nest_index(&mut self, times: usize) {
        for _ in 0..times {
            let inner = self.bytes("index.json").clone();
            let inner = self.blob("application/vnd.oci.image.index.v1+json", &inner);
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": [inner] });
            self.replace("index.json", &serde_json::to_vec(&index).unwrap());
        }
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut layer = Layer::default();
        for (name, bytes) in &self.0 {
            match name.len() {
                0..=90 => layer.raw(b'0', name.as_bytes(), b"", bytes),
                _ => layer.file(name, 0o644, bytes),
            };
        }
        layer.finish()
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => gzip(bytes),
        // Two frames with a skippable one between them, as zstd:chunked layers have.
        Packing::Zstd => {
            let (one, two) = bytes.split_at(bytes.len() / 2);
            let mut packed = zstd::bulk::compress(one, 3).unwrap();
            packed.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z']);
            packed.extend(zstd::bulk::compress(two, 3).unwrap());
            packed
        }
    }
}

/// Of a random test: NULLBOX_TEST_SEED, else the time.
pub fn seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("NULLBOX_TEST_SEED").ok().map_or(time | 1, |text| text.parse().unwrap());
    eprintln!("NULLBOX_TEST_SEED={seed}");
    seed
}

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
