//! What holds for all disks together: lives, forks, quotas, refusals, ownership.

use super::*;
use abi::ids::Instance;
use std::cell::RefCell;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

/// A uid that a jail could have.
const UID: u32 = 100_007;

struct Bench {
    dir: tempfile::TempDir,
    depot: Depot,
    receipts: RefCell<Vec<Event>>,
}

impl Bench {
    fn new() -> Bench {
        assert!(rustix::process::geteuid().is_root(), "changes owners, so it runs as root");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("guest")).unwrap();
        fs::create_dir_all(dir.path().join("state")).unwrap();
        let mut template = vec![0u8; 1 << 20];
        template[500_000] = 1;
        fs::write(dir.path().join("guest/scratch.ext4"), template).unwrap();
        let depot = Depot::open(&places(dir.path())).unwrap();
        Bench { dir, depot, receipts: RefCell::default() }
    }

    /// What a life of cage after this one finds.
    fn reopen(&mut self) {
        self.depot = Depot::open(&places(self.dir.path())).unwrap();
    }

    fn receipt(&self) -> impl Fn(Event) -> Result<(), DiskError> {
        |event| {
            self.receipts.borrow_mut().push(event);
            Ok(())
        }
    }

    fn start(&self, manifest: &Manifest, generation: u64, rootfs: u8) -> Result<Disks, DiskError> {
        let instance = Instance { agent: manifest.name.clone(), generation };
        self.depot.prepare(&instance, manifest, Digest([rootfs; 32]), UID, &self.receipt())
    }

    fn take(&self, name: &str, agent: &str) -> Result<abi::control::Snapshot, DiskError> {
        let agent: AgentName = agent.parse().unwrap();
        let kept = self.depot.kept_workspace(&agent);
        let record = kept.read::<WorkspaceRecord>()?.ok_or(DiskError::NoWorkspace(agent.clone()))?;
        let origin = Origin { agent, disk: kept.disk(), size_mib: record.size_mib, rootfs: record.rootfs };
        self.depot.take(&name.parse().unwrap(), &origin, "alice", &mut |_, _| Ok(()), &self.receipt())
    }

    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut dirs = vec![self.dir.path().join("state")];
        while let Some(dir) = dirs.pop() {
            for path in kept::entries(&dir).unwrap() {
                match path.symlink_metadata().unwrap().is_dir() {
                    true => dirs.push(path),
                    false => files.push(
                        path.strip_prefix(self.dir.path().join("state")).unwrap().display().to_string(),
                    ),
                }
            }
        }
        files.sort();
        files
    }
}

fn places(dir: &Path) -> Places {
    Places { state: dir.join("state"), guest: dir.join("guest"), ..Places::of_node() }
}

fn manifest(agent: &str, more: &str) -> Manifest {
    let text =
        format!("[agent]\nname = \"{agent}\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n{more}");
    abi::manifest::parse("f", &text).unwrap()
}

fn kept(agent: &str, mib: u32) -> Manifest {
    manifest(agent, &format!("workspace = \"kept\"\n[capabilities]\nmax_disk_mb = {mib}\n"))
}

fn with_volume(mib: u32, read_only: bool) -> Manifest {
    let volume = format!("volumes.data = {{ path = \"/data\", max_mb = {mib}, read_only = {read_only} }}");
    manifest("a", &format!("[capabilities]\nmax_disk_mb = 64\n{volume}\n"))
}

fn write(path: &Path, at: u64, text: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(text, at).unwrap();
}

fn read(path: &Path, at: u64) -> [u8; 4] {
    let mut text = [0; 4];
    File::open(path).unwrap().read_exact_at(&mut text, at).unwrap();
    text
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

#[test]
fn an_ephemeral_workspace_is_sparse_private_and_gone_after_its_life() {
    let bench = Bench::new();
    let disks = bench.start(&manifest("a", "[capabilities]\nmax_disk_mb = 64\n"), 1, 0).unwrap();
    let path = disks.workspace().to_owned();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), disks.workspace_bytes(), disks.size_mib()), (64 << 20, 64 << 20, 64));
    assert!(meta.blocks() * 512 < 64 * 1024, "{}", meta.blocks());
    assert_eq!(owner(&path), (UID, UID, 0o600));
    assert_eq!(read(&path, 500_000), [1, 0, 0, 0], "it begins as the template");
    assert_eq!(owner(path.parent().unwrap()), (0, 0, 0o700), "no jail could reach it by itself");
    drop(disks);
    assert!(bench.files().is_empty());
}

#[test]
fn a_kept_workspace_goes_on_and_is_roots_between_lives() {
    let mut bench = Bench::new();
    let path = {
        let disks = bench.start(&kept("a", 64), 1, 0).unwrap();
        assert_eq!(owner(disks.workspace()), (UID, UID, 0o600));
        write(disks.workspace(), 9 << 20, b"mine");
        disks.workspace().to_owned()
    };
    assert_eq!(owner(&path), (0, 0, 0o600));
    assert_eq!(bench.files(), ["workspaces/a.ext4", "workspaces/a.json"]);
    let disks = bench.start(&kept("a", 64), 2, 0).unwrap();
    assert_eq!((disks.workspace(), read(&path, 9 << 20)), (path.as_path(), *b"mine"));
    // cage dies now: what the jail's uid had is root's again before anything runs.
    disks.abandon();
    bench.reopen();
    assert_eq!(owner(&path), (0, 0, 0o600));
    assert_eq!(read(&path, 9 << 20), *b"mine");
}

#[test]
fn a_workspace_grows_with_its_manifest_and_never_shrinks() {
    let bench = Bench::new();
    drop(bench.start(&kept("a", 64), 1, 0).unwrap());
    let disks = bench.start(&kept("a", 100), 2, 0).unwrap();
    assert_eq!(fs::metadata(disks.workspace()).unwrap().len(), 100 << 20);
    drop(disks);
    let error = bench.start(&kept("a", 64), 3, 0).unwrap_err();
    assert!(matches!(error, DiskError::Smaller { has_mib: 100, wants_mib: 64, .. }), "{error}");
    assert!(error.to_string().contains("at least 100 MiB"), "{error}");
    assert!(bench.start(&kept("a", 100), 4, 0).is_ok(), "a refusal holds nothing");
}

#[test]
fn a_length_that_a_vmm_left_is_set_right() {
    let bench = Bench::new();
    let disks = bench.start(&kept("a", 64), 1, 0).unwrap();
    let path = disks.workspace().to_owned();
    File::options().write(true).open(&path).unwrap().set_len(900 << 20).unwrap();
    drop(disks);
    assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 20);
}

#[test]
fn another_rootfs_is_refused_with_the_remedy() {
    let bench = Bench::new();
    drop(bench.start(&kept("a", 64), 1, 7).unwrap());
    let error = bench.start(&kept("a", 64), 2, 8).unwrap_err().to_string();
    let was = Digest([7; 32]).to_string();
    assert!(error.contains(&format!("rootfs = \"{was}\"")) && error.contains("agent remove a"), "{error}");
    assert_eq!(bench.depot.above().unwrap(), [(Digest([7; 32]), "the workspace of a".to_owned())].into());
    assert!(bench.start(&kept("a", 64), 3, 7).is_ok());
}

#[test]
fn a_disk_is_in_one_life_at_most_even_if_the_states_were_wrong() {
    let bench = Bench::new();
    let first = bench.start(&kept("a", 64), 1, 0).unwrap();
    assert!(matches!(bench.start(&kept("a", 64), 2, 0), Err(DiskError::StillOpen(i)) if i.generation == 1));
    assert_eq!(owner(first.workspace()), (UID, UID, 0o600), "the refused one took nothing away");
    first.abandon();
    assert!(bench.start(&kept("a", 64), 3, 0).unwrap_err().to_string().contains("could not be killed"));
    let work = bench.depot.custody.begin_work(&"b".parse().unwrap(), "a snapshot is being taken").unwrap();
    assert!(bench.start(&kept("b", 64), 1, 0).unwrap_err().to_string().contains("snapshot is being taken"));
    drop(work);
    assert!(bench.start(&kept("b", 64), 1, 0).is_ok());
}

#[test]
fn a_volume_outlives_lives_has_its_quota_and_a_receipt() {
    let bench = Bench::new();
    let disks = bench.start(&with_volume(64, false), 1, 0).unwrap();
    let volume = disks.volumes().remove(0);
    assert_eq!((volume.bytes, volume.read_only, disks.size_mib()), (64 << 20, false, 128));
    assert_eq!(owner(&volume.path), (UID, UID, 0o600));
    write(&volume.path, 1 << 20, b"kept");
    assert!(bench.depot.list_volumes().unwrap()[0].in_use);
    drop(disks);
    assert_eq!(owner(&volume.path), (0, 0, 0o600));
    let disks = bench.start(&with_volume(80, true), 2, 5).unwrap();
    assert_eq!((disks.volumes()[0].read_only, owner(&volume.path)), (true, (UID, UID, 0o400)));
    assert_eq!(
        (read(&volume.path, 1 << 20), fs::metadata(&volume.path).unwrap().len()),
        (*b"kept", 80 << 20)
    );
    drop(disks);
    assert!(matches!(
        bench.start(&with_volume(64, false), 3, 0),
        Err(DiskError::Smaller { has_mib: 80, .. })
    ));
    assert_eq!(bench.files(), ["volumes/a/data.ext4", "volumes/a/data.json"], "and its scratch disk is gone");
    let (agent, name) = ("a".parse().unwrap(), "data".parse().unwrap());
    assert_eq!(bench.depot.usage(&agent).unwrap()[0].size_mib, 80);
    bench.depot.remove_volume(&agent, &name, "alice", &bench.receipt()).unwrap();
    assert!(bench.files().is_empty() && bench.depot.list_volumes().unwrap().is_empty());
    assert!(bench.depot.remove_volume(&agent, &name, "alice", &bench.receipt()).is_err());
    let receipts = bench.receipts.borrow();
    assert!(matches!(receipts[0], Event::VolumeCreated { size_mib: 64, .. }), "{receipts:?}");
    assert!(matches!(&receipts[1..], [Event::VolumeRemoved { .. }]), "{receipts:?}");
}

#[test]
fn without_a_receipt_nothing_is_made_or_removed() {
    let bench = Bench::new();
    let refuse = |_| Err(DiskError::NoReceipt(abi::ledger::LedgerError::Protocol("no".into())));
    let instance = "a.1".parse().unwrap();
    let made = bench.depot.prepare(&instance, &with_volume(64, false), Digest([0; 32]), UID, &refuse);
    assert!(matches!(made, Err(DiskError::NoReceipt(_))));
    assert!(bench.files().is_empty());
    drop(bench.start(&kept("a", 64), 2, 0).unwrap());
    bench.take("s", "a").unwrap();
    let name = "s".parse().unwrap();
    assert!(bench.depot.remove_snapshot(&name, "alice", &refuse).is_err());
    assert_eq!(bench.depot.list_snapshots().unwrap().len(), 1);
}

#[test]
fn a_snapshot_is_forked_into_other_agents_and_outlives_its_own() {
    let bench = Bench::new();
    let disks = bench.start(&kept("a", 64), 1, 3).unwrap();
    write(disks.workspace(), 33 << 20, b"then");
    drop(disks);
    let taken = bench.take("s", "a").unwrap();
    let file = bench.dir.path().join("state/snapshots/s.ext4");
    use sha2::Digest as _;
    assert_eq!(taken.disk.0, <[u8; 32]>::from(sha2::Sha256::digest(fs::read(&file).unwrap())));
    assert_eq!((taken.size_mib, taken.rootfs, owner(&file)), (64, Digest([3; 32]), (0, 0, 0o600)));
    let first = "a".parse().unwrap();
    write(&bench.depot.kept_workspace(&first).disk(), 33 << 20, b"late");
    bench.depot.kept_workspace(&first).remove().unwrap();
    let name = "s".parse().unwrap();
    for agent in ["a", "b"] {
        let mut told = Vec::new();
        let mut watch = |done, total| {
            told.push((done, total));
            Ok(())
        };
        bench.depot.create(&kept(agent, 80), Digest([3; 32]), Some(&name), &mut watch).unwrap();
        assert_eq!(told.last(), Some(&(64 << 20, 64 << 20)));
        let disks = bench.start(&kept(agent, 80), 9, 3).unwrap();
        assert_eq!(read(disks.workspace(), 33 << 20), *b"then");
        assert_eq!(fs::metadata(disks.workspace()).unwrap().len(), 80 << 20);
    }
    let listed = bench.depot.list_snapshots().unwrap();
    assert!(listed[0].used_kib > 0 && listed[0].used_kib < 1024, "{listed:?}");
    bench.depot.remove_snapshot(&name, "alice", &bench.receipt()).unwrap();
    assert_eq!(
        bench.files(),
        ["workspaces/a.ext4", "workspaces/a.json", "workspaces/b.ext4", "workspaces/b.json"]
    );
}

#[test]
fn forks_that_do_not_fit_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    drop(bench.start(&kept("a", 80), 1, 3).unwrap());
    bench.take("s", "a").unwrap();
    let files = bench.files();
    let fork = |manifest: &Manifest, rootfs: u8, snapshot: &str| {
        let snapshot = snapshot.parse().unwrap();
        bench.depot.create(manifest, Digest([rootfs; 32]), Some(&snapshot), &mut |_, _| Ok(())).unwrap_err()
    };
    assert!(matches!(fork(&kept("b", 80), 4, "s"), DiskError::SnapshotOfOtherRootfs { .. }));
    assert!(matches!(fork(&kept("b", 64), 3, "s"), DiskError::Smaller { has_mib: 80, wants_mib: 64, .. }));
    assert!(matches!(fork(&kept("b", 80), 3, "t"), DiskError::UnknownSnapshot(_)));
    assert!(matches!(fork(&kept("a", 80), 3, "s"), DiskError::WorkspaceExists(_)));
    assert!(matches!(fork(&manifest("b", ""), 3, "s"), DiskError::NotKept(_)));
    // A snapshot whose bytes have changed is not gone on with.
    write(&bench.dir.path().join("state/snapshots/s.ext4"), 5 << 20, b"evil");
    assert!(matches!(fork(&kept("b", 80), 3, "s"), DiskError::Damaged { .. }));
    assert_eq!(bench.files(), files);
    assert!(matches!(bench.take("s", "a"), Err(DiskError::SnapshotExists(_))));
    assert!(matches!(bench.take("t", "b"), Err(DiskError::NoWorkspace(_))));
}

#[test]
fn a_copy_that_is_given_up_leaves_nothing() {
    let bench = Bench::new();
    drop(bench.start(&kept("a", 64), 1, 3).unwrap());
    let files = bench.files();
    let kept = bench.depot.kept_workspace(&"a".parse().unwrap());
    let origin =
        Origin { agent: "a".parse().unwrap(), disk: kept.disk(), size_mib: 64, rootfs: Digest([3; 32]) };
    let mut steps = 0;
    let mut watch = |_, _| {
        steps += 1;
        if steps == 9 { Err(DiskError::Moved("a".parse().unwrap())) } else { Ok(()) }
    };
    let taken = bench.depot.take(&"s".parse().unwrap(), &origin, "alice", &mut watch, &bench.receipt());
    assert!(matches!(taken, Err(DiskError::Moved(_))));
    assert_eq!((bench.files(), bench.receipts.borrow().len()), (files, 0));
}

/// The node's disk is a small tmpfs: what does not fit is refused before it is copied, and a disk that fills up midway leaves nothing.
#[test]
fn space_is_asked_for_before_a_copy_and_its_end_leaves_nothing() {
    let bench = Bench::new();
    let small = bench.dir.path().join("state/snapshots");
    for mib in [140, 8] {
        let size = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        rustix::mount::mount("tmpfs", &small, "tmpfs", rustix::mount::MountFlags::empty(), size.as_c_str())
            .unwrap();
        let disks = bench.start(&kept("a", 64), mib, 3).unwrap();
        write(disks.workspace(), 0, &vec![5; 16 << 20]);
        drop(disks);
        let refused = bench.take("s", "a").unwrap_err();
        let left = kept::entries(&small).unwrap();
        rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(matches!(refused, DiskError::Space { .. }), "{refused}");
        assert!(left.is_empty(), "{left:?}");
    }
    // Without the question: the copy itself meets the end of the disk.
    let full = bench.dir.path().join("full");
    fs::create_dir(&full).unwrap();
    rustix::mount::mount("tmpfs", &full, "tmpfs", rustix::mount::MountFlags::empty(), c"size=2m").unwrap();
    let outcome = {
        let new = Kept::of(&full, "s").begin().unwrap();
        let from = bench.depot.kept_workspace(&"a".parse().unwrap()).open().unwrap();
        copy::copy::<()>(&from, &new.file, 64 << 20, &mut |_| Ok(()))
    };
    let left = kept::entries(&full).unwrap();
    rustix::mount::unmount(&full, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(matches!(outcome, Err(Broken::Io(error)) if error.kind() == io::ErrorKind::StorageFull));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_quarantined_workspace_becomes_evidence_and_never_runs_again() {
    let mut bench = Bench::new();
    for (number, manifest) in
        [manifest("a", "[capabilities]\nmax_disk_mb = 64\n"), kept("a", 64)].iter().enumerate()
    {
        let evidence = bench.dir.path().join(format!("state/evidence{number}"));
        fs::create_dir(&evidence).unwrap();
        let disks = bench.start(manifest, number as u64, 0).unwrap();
        write(disks.workspace(), 7 << 20, b"evil");
        disks.keep_as_evidence(&evidence).unwrap();
        let kept = evidence.join("workspace.ext4");
        assert_eq!((read(&kept, 7 << 20), owner(&kept)), (*b"evil", (0, 0, 0o600)));
        bench.reopen();
        assert_eq!(bench.files().iter().filter(|file| file.starts_with("workspaces")).count(), 0);
        let disks = bench.start(manifest, 10 + number as u64, 0).unwrap();
        assert_eq!(read(disks.workspace(), 7 << 20), [0; 4], "the agent begins anew");
        drop(disks);
        bench.depot.kept_workspace(&"a".parse().unwrap()).remove().unwrap();
    }
}

#[test]
fn a_cage_that_died_with_a_quarantined_life_leaves_its_disk_as_evidence() {
    let mut bench = Bench::new();
    let places = places(bench.dir.path());
    for (generation, manifest) in
        [(1, manifest("a", "[capabilities]\nmax_disk_mb = 64\n")), (2, kept("a", 64))]
    {
        let life = Instance { agent: "a".parse().unwrap(), generation };
        let evidence = crate::evidence::begin(&places, &life).unwrap();
        let disks = bench.start(&manifest, generation, 0).unwrap();
        write(disks.workspace(), 7 << 20, b"evil");
        disks.abandon();
        crate::evidence::rescue(&places);
        crate::evidence::rescue(&places);
        bench.reopen();
        let kept = evidence.join("workspace.ext4");
        assert_eq!((read(&kept, 7 << 20), owner(&kept)), (*b"evil", (0, 0, 0o600)));
        assert!(bench.files().iter().all(|file| file.starts_with("evidence")), "{:?}", bench.files());
    }
    // Of a life that ended in order nothing more is taken.
    let life = Instance { agent: "a".parse().unwrap(), generation: 3 };
    crate::evidence::begin(&places, &life).unwrap();
    crate::evidence::end(&places, &life).unwrap();
    drop(bench.start(&kept("a", 64), 4, 0).unwrap());
    crate::evidence::rescue(&places);
    assert!(bench.depot.kept_workspace(&life.agent).disk().exists());
}

#[test]
fn no_life_goes_on_with_a_workspace_that_is_evidence_and_could_not_be_moved() {
    let dir = tempfile::tempdir().unwrap();
    let cage = crate::agents::bench::cage(dir.path(), &[]);
    let (places, manifest) = (&cage.places, kept("a", 64));
    let life = |generation| Instance { agent: "a".parse().unwrap(), generation };
    let start = |generation| Disks::prepare(&cage, &life(generation), &manifest, Digest([0; 32]), UID);
    crate::evidence::begin(places, &life(1)).unwrap();
    let disk = cage.disks.kept_workspace(&life(1).agent).disk();
    fs::write(&disk, "evil").unwrap();
    fs::hard_link(&disk, dir.path().join("second")).unwrap();
    crate::evidence::rescue(places);
    crate::evidence::end(places, &life(1)).unwrap();
    assert!(matches!(start(2), Err(DiskError::IsEvidence(first)) if first == life(1)));
    assert_eq!(fs::read(&disk).unwrap(), b"evil");
    // Once it can be moved the agent begins anew.
    fs::remove_file(dir.path().join("second")).unwrap();
    crate::evidence::rescue(places);
    let disks = start(3).unwrap();
    assert_eq!(read(disks.workspace(), 0), [1; 4], "as its template");
    assert_eq!(fs::read(crate::evidence::dir(places, &life(1)).join(EVIDENCE)).unwrap(), b"evil");
}

#[test]
fn an_opening_takes_leftovers_away_and_keeps_what_is_whole() {
    let mut bench = Bench::new();
    drop(bench.start(&kept("a", 64), 1, 0).unwrap());
    drop(bench.start(&with_volume(64, false), 2, 0).unwrap());
    bench.take("s", "a").unwrap();
    let whole = bench.files();
    let state = bench.dir.path().join("state");
    for leftover in ["workspaces/b.ext4", "volumes/a/x.ext4.new", "snapshots/t.ext4", "snapshots/t.new"] {
        File::create_new(state.join(leftover)).unwrap().write_all(b"half").unwrap();
    }
    bench.reopen();
    assert_eq!(bench.files(), whole);
}

#[test]
fn links_in_the_place_of_disks_are_refused() {
    let mut bench = Bench::new();
    let secret = bench.dir.path().join("secret");
    fs::write(&secret, b"secret").unwrap();
    let before = owner(&secret);
    drop(bench.start(&kept("a", 64), 1, 0).unwrap());
    let disk = bench.depot.kept_workspace(&"a".parse().unwrap()).disk();
    fs::remove_file(&disk).unwrap();
    symlink(&secret, &disk).unwrap();
    assert!(bench.start(&kept("a", 64), 2, 0).unwrap_err().to_string().contains("is a link"));
    assert!(bench.take("s", "a").unwrap_err().to_string().contains("is a link"));
    bench.reopen();
    assert_eq!((owner(&secret), fs::read(&secret).unwrap()), (before, b"secret".to_vec()));
    // A directory that leads elsewhere harms its own agent only.
    let elsewhere = bench.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("data.ext4.new"), b"not ours").unwrap();
    symlink(&elsewhere, bench.dir.path().join("state/volumes/a")).unwrap();
    bench.reopen();
    assert!(bench.start(&with_volume(64, false), 3, 0).unwrap_err().to_string().contains("no directory"));
    assert!(bench.depot.list_volumes().is_err() && elsewhere.join("data.ext4.new").exists());
    drop(bench.start(&kept("b", 64), 4, 0).unwrap());
}

#[test]
fn what_is_damaged_of_one_agent_keeps_no_other_from_a_new_volume() {
    let bench = Bench::new();
    drop(bench.start(&with_volume(64, false), 1, 0).unwrap());
    fs::write(bench.dir.path().join("state/volumes/a/data.json"), b"{").unwrap();
    assert!(bench.start(&with_volume(64, false), 2, 0).unwrap_err().to_string().contains("data.json"));
    let other = Manifest { name: "b".parse().unwrap(), ..with_volume(64, false) };
    drop(bench.start(&other, 3, 0).unwrap());
    assert_eq!(bench.depot.count_volumes().unwrap(), 2);
}

#[test]
fn what_is_damaged_can_be_removed() {
    let bench = Bench::new();
    drop(bench.start(&with_volume(64, false), 1, 0).unwrap());
    drop(bench.start(&kept("a", 64), 2, 0).unwrap());
    bench.take("s", "a").unwrap();
    for record in ["volumes/a/data.json", "snapshots/s.json"] {
        fs::write(bench.dir.path().join("state").join(record), b"{").unwrap();
    }
    let (a, data) = ("a".parse().unwrap(), "data".parse().unwrap());
    bench.depot.remove_volume(&a, &data, "alice", &bench.receipt()).unwrap();
    bench.depot.remove_snapshot(&"s".parse().unwrap(), "alice", &bench.receipt()).unwrap();
    assert_eq!(bench.files(), ["workspaces/a.ext4", "workspaces/a.json"]);
    let gone = bench.depot.remove_volume(&a, &data, "alice", &bench.receipt()).unwrap_err();
    assert!(matches!(gone, DiskError::UnknownVolume { .. }), "{gone}");
}

#[test]
fn evidence_that_cannot_be_moved_is_not_lost() {
    let bench = Bench::new();
    let life: Instance = "a.1".parse().unwrap();
    let disks = bench.start(&manifest("a", "[capabilities]\nmax_disk_mb = 64\n"), 1, 0).unwrap();
    write(disks.workspace(), 9 << 20, b"mine");
    let dir = bench.dir.path().join("state/evidence");
    assert!(disks.keep_as_evidence(&dir).is_err());
    fs::create_dir(&dir).unwrap();
    assert!(rescue(&places(bench.dir.path()), &life, &dir).unwrap());
    assert_eq!(read(&dir.join("workspace.ext4"), 9 << 20), *b"mine");
}

#[test]
fn what_is_removed_while_it_is_listed_is_left_out() {
    let bench = Bench::new();
    drop(bench.start(&kept("a", 64), 1, 0).unwrap());
    drop(bench.start(&with_volume(64, false), 2, 0).unwrap());
    bench.take("s", "a").unwrap();
    assert_eq!(bench.depot.usage(&"a".parse().unwrap()).unwrap().len(), 2);
    // The disk goes before its record.
    for disk in ["workspaces/a.ext4", "volumes/a/data.ext4", "snapshots/s.ext4"] {
        fs::remove_file(bench.dir.path().join("state").join(disk)).unwrap();
    }
    assert!(
        bench.depot.list_snapshots().unwrap().is_empty() && bench.depot.list_volumes().unwrap().is_empty()
    );
    assert!(bench.depot.usage(&"a".parse().unwrap()).unwrap().is_empty());
}

#[test]
fn a_caller_who_leaves_waits_for_no_copy_and_holds_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let cage = crate::agents::bench::cage(dir.path(), &["a"]);
    // Another's copy, which goes on as long as this is held.
    let _busy = cage.disks.copies.take(&mut || true).unwrap();
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let request = abi::rpc::Request::call(1, "agent.create", serde_json::Value::Null);
    let caller = abi::identity::Caller::Local { uid: 0 };
    let mut connection = abi::wire::Connection::new(near);
    let mut call = abi::door::Call { caller: &caller, request: &request, connection: &mut connection };
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(far);
    });
    let made = create(&cage, &mut call, &kept("a", 64), Digest([0; 32]), Some(&"s".parse().unwrap()));
    assert!(matches!(made, Err(DiskError::CallerGone)), "{made:?}");
    assert!(cage.disks.custody.may_run(&"a".parse().unwrap()).is_ok());
}

#[test]
fn the_longest_lists_fit_a_line() {
    let name = "n".repeat(limits::AGENT_NAME_BYTES_MAX);
    let snapshot = abi::control::Snapshot {
        name: name.parse().unwrap(),
        agent: name.parse().unwrap(),
        rootfs: Digest([255; 32]),
        unix_ms: u64::MAX,
        size_mib: limits::DISK_MIB_MAX,
        used_kib: u64::MAX,
        disk: Digest([255; 32]),
    };
    let volume = abi::control::Volume {
        agent: name.parse().unwrap(),
        name: name.parse().unwrap(),
        size_mib: limits::DISK_MIB_MAX,
        used_kib: u64::MAX,
        in_use: false,
    };
    let snapshots = serde_json::to_string(&vec![snapshot; limits::SNAPSHOTS_MAX]).unwrap();
    let volumes = serde_json::to_string(&vec![volume; limits::VOLUMES_MAX]).unwrap();
    assert!(snapshots.len() < limits::LINE_BYTES_MAX - 200, "{}", snapshots.len());
    assert!(volumes.len() < limits::LINE_BYTES_MAX - 200, "{}", volumes.len());
}
