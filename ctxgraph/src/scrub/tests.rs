//! A real memory.db with pages damaged at random: what is not on them is served, what is on them is named.

use super::*;
use crate::ledger::Setup;
use crate::ledger::storage::RealDirectory;
use crate::store::whole::Chosen;
use crate::testing::Random;
use abi::door::Handler;
use abi::ids::Digest;
use abi::rpc::Request;
use serde_json::json;
use std::io::{Read, Seek, SeekFrom, Write};

/// Bytes of a page of SQLite.
const PAGE: u64 = 4096;

struct Place {
    directory: tempfile::TempDir,
    hashes: Vec<Digest>,
}

impl Place {
    /// A memory with entries, long and short, closed again: all of it is in memory.db.
    fn new(entries: u64) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { directory, hashes: Vec::new() };
        let settings = abi::node::Memory::default();
        let quotas = crate::store::Quotas::default();
        let (service, _lock) =
            crate::service::open(place.directory.path(), &settings, 64 << 20, quotas).unwrap();
        let mut hashes = Vec::new();
        for n in 0..entries {
            let text = "x".repeat(if n % 7 == 0 { 9000 } else { 300 });
            let params = json!({ "agent": "a", "key": format!("k/{n}"), "value": text });
            let entry = call(&service, "memory.write", params);
            hashes.push(entry["hash"].as_str().unwrap().parse().unwrap());
        }
        service.close();
        drop(service);
        let db = rusqlite::Connection::open(place.path()).unwrap();
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        Place { hashes, ..place }
    }

    fn path(&self) -> PathBuf {
        memory::database(self.directory.path())
    }

    /// The service's own ledger is closed; this one takes what is recorded.
    fn scrub(&self) -> Arc<Scrub> {
        let directory = RealDirectory::open_or_create(&self.directory.path().join("other")).unwrap();
        let ledger = Arc::new(Ledger::open(Box::new(directory), Setup::default()).unwrap());
        Scrub::start(self.directory.path(), ledger).unwrap()
    }

    fn overwrite(&self, page: u64, bytes: &[u8]) {
        let mut file = std::fs::OpenOptions::new().write(true).open(self.path()).unwrap();
        file.seek(SeekFrom::Start(page * PAGE)).unwrap();
        file.write_all(bytes).unwrap();
    }
}

fn call(service: &dyn Handler, method: &str, params: serde_json::Value) -> serde_json::Value {
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let caller = abi::identity::Caller::Local { uid: 0 };
    let request = Request::call(1, method, params);
    let mut connection = abi::wire::Connection::new(far);
    let outcome = service.call(Call { caller: &caller, request: &request, connection: &mut connection });
    drop(near);
    match outcome.unwrap() {
        Outcome::Result(value) => value,
        Outcome::Answered => panic!("answered"),
    }
}

#[test]
fn a_whole_memory_is_whole() {
    let place = Place::new(30);
    let scrub = place.scrub();
    let verified = scrub.verify_all(&mut |_, _| true).unwrap();
    assert_eq!((verified.entries, verified.damaged, scrub.damaged()), (30, 0, 0), "{verified:?}");
    scrub.close();
}

#[test]
fn an_entry_that_was_changed_is_named_and_told_once() {
    let place = Place::new(30);
    let db = rusqlite::Connection::open(place.path()).unwrap();
    db.execute("UPDATE entry SET value = '\"y\"' WHERE id = 4", []).unwrap();
    drop(db);
    let scrub = place.scrub();
    assert_eq!(scrub.damaged(), 1, "the check at start sees the newest entries");
    for _ in 0..2 {
        let verified = scrub.verify_all(&mut |_, _| true).unwrap();
        assert_eq!((verified.entries, verified.damaged), (29, 1), "{verified:?}");
        let damage = &verified.damages[0];
        assert!(damage.place.contains("row 4") && damage.why.contains("digest"), "{damage:?}");
        assert!(damage.lost.contains("`k/3`") && damage.lost.contains(&place.hashes[3].to_string()));
        assert_eq!(scrub.damaged(), 1);
    }
    scrub.close();
}

#[test]
fn an_old_entry_that_passes_for_the_newest_is_named() {
    for (change, why) in [
        ("UPDATE head SET entry = 1 WHERE key = 'k/0'", "was replaced"),
        ("UPDATE head SET entry = 4 WHERE key = 'k/0'", "no entry under it"),
        ("UPDATE head SET newest = 0 WHERE key = 'k/0'", "not one of its heads"),
        ("INSERT INTO head VALUES ('a', 'k/0', 1, 1)", "not one of its heads"),
        ("DELETE FROM head WHERE key = 'k/0'", "one that was not is none"),
        ("INSERT INTO label VALUES ('a', 'l', 'v', 'k/0', 1)", "not its newest"),
    ] {
        let place = Place::new(5);
        let settings = abi::node::Memory::default();
        let quotas = crate::store::Quotas::default();
        let (service, lock) =
            crate::service::open(place.directory.path(), &settings, 64 << 20, quotas).unwrap();
        call(&service, "memory.write", json!({ "agent": "a", "key": "k/0", "value": 2 }));
        service.close();
        drop((service, lock));
        let scrub = place.scrub();
        assert_eq!(scrub.verify_all(&mut |_, _| true).unwrap().damaged, 0);
        let db = rusqlite::Connection::open(place.path()).unwrap();
        db.execute(change, []).unwrap();
        drop(db);
        let verified = scrub.verify_all(&mut |_, _| true).unwrap();
        let named = |damage: &Damage| damage.place.contains("`k/0`") && damage.why.contains(why);
        assert!(verified.damages.iter().any(named), "{change}: {verified:?}");
        scrub.close();
    }
}

/// What a bundle of everything has.
fn exported(path: &Path) -> Result<BTreeSet<Digest>, StoreError> {
    let store = Store::open_reader(path)?;
    let snapshot = store.snapshot()?;
    let mut whole = BTreeSet::new();
    snapshot.each(&Chosen::Keys(None, String::new()), |row, _| -> Result<(), StoreError> {
        whole.insert(row.hash());
        Ok(())
    })?;
    Ok(whole)
}

#[test]
fn damaged_pages_lose_what_is_on_them_and_nothing_else() {
    let rounds = if std::env::var("NULLBOX_LONG").is_ok() { 200 } else { 12 };
    let place = Place::new(300);
    let mut clean = Vec::new();
    std::fs::File::open(place.path()).unwrap().read_to_end(&mut clean).unwrap();
    let pages = clean.len() as u64 / PAGE;
    let mut random = Random::new();
    let mut seen_some = 0;
    for round in 0..rounds {
        std::fs::write(place.path(), &clean).unwrap();
        // The first pages hold the schema and the roots: without them there is no file to read.
        let page = 40 + random.below(pages - 40);
        let noise: Vec<u8> = (0..PAGE).map(|_| random.below(256) as u8).collect();
        place.overwrite(page, &noise);
        let scrub = place.scrub();
        let verified = scrub.verify_all(&mut |_, _| true).unwrap();
        let whole = exported(&place.path()).unwrap();
        assert_eq!(verified.entries, whole.len() as u64, "round {round}, page {page}");
        let lost: Vec<&Digest> = place.hashes.iter().filter(|hash| !whole.contains(hash)).collect();
        // A page has a dozen entries at most; the inner pages are among the first.
        assert!(lost.len() <= 16, "round {round}, page {page}: {} entries lost by one page", lost.len());
        assert!(verified.damaged >= lost.len() as u64, "round {round}, page {page}: {verified:?}");
        if lost.len() < limits::MEMORY_DAMAGES_MAX {
            for hash in &lost {
                let row = place.hashes.iter().position(|one| one == *hash).unwrap() + 1;
                let named =
                    verified.damages.iter().any(|damage| damage.place.contains(&format!("row {row} ")));
                assert!(named, "round {round}, page {page}: {hash} is lost and not named");
            }
        }
        seen_some += usize::from(!lost.is_empty());
        scrub.close();
    }
    assert!(seen_some > 0, "no round damaged an entry");
}
