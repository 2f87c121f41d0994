//! The archives of the configuration on their way into the store: imported in the background, waited for by who needs them.
//!
//! Must hold: an agent whose rootfs is still being imported waits for it, and sees how far it is; one whose archive is wrong
//! learns why, instead of getting an older image under the same name.

use abi::control::Progress;
use abi::ledger::{Client, Event};
use abi::log;
use abi::manifest::rootfs_name_ok;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::{Source, Stage, Store};

/// How far one archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Import {
    Waiting,
    Running(Progress),
    Failed(String),
}

/// All archives that are not in the store yet, by name.
#[derive(Debug, Default)]
pub struct Imports {
    open: Mutex<BTreeMap<String, Import>>,
    changed: Condvar,
}

/// The archives `rootfs/NAME.tar` of a configuration. Files with other names are left alone.
pub fn archives(config: &Path) -> BTreeMap<String, PathBuf> {
    let Ok(entries) = fs::read_dir(config.join("rootfs")) else { return BTreeMap::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_suffix(".tar")?.to_owned();
            rootfs_name_ok(&name).then(|| (name, entry.path()))
        })
        .collect()
}

impl Imports {
    /// Says which archives will be imported, so that agents wait for them.
    pub fn announce(&self, archives: &BTreeMap<String, PathBuf>) {
        self.lock().extend(archives.keys().map(|name| (name.clone(), Import::Waiting)));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Import>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, name: &str, import: Option<Import>) {
        let mut open = self.lock();
        match import {
            Some(import) => open.insert(name.to_owned(), import),
            None => open.remove(name),
        };
        drop(open);
        self.changed.notify_all();
    }

    /// Somebody gave the name to another image: that the configuration's archive was wrong keeps no agent from it any more.
    pub fn forgive(&self, name: &str) {
        let mut open = self.lock();
        if matches!(open.get(name), Some(Import::Failed(_))) {
            open.remove(name);
        }
    }

    /// Imports the announced archives, one after the other.
    pub fn run(&self, archives: BTreeMap<String, PathBuf>, store: &Store, ledger: &Client) {
        for (name, path) in archives {
            let known: Vec<_> = store.list().into_iter().map(|image| image.digest).collect();
            let mut told = None;
            let outcome = store.import(Source::File(&path), &name, &mut |stage, done, total| {
                // A step of a hundredth is as fine as anybody can see.
                let step = (stage, done * 100 / total.max(1));
                if told != Some(step) {
                    told = Some(step);
                    self.set(&name, Some(Import::Running(progress(&name, stage, done, total))));
                }
            });
            match outcome {
                Ok(image) => {
                    log::info("rootfs_ready", &[("name", &name), ("digest", &image.digest)]);
                    if !known.contains(&image.digest) {
                        let event = Event::RootfsImported {
                            name: name.clone(),
                            digest: image.digest,
                            archive: image.archive,
                        };
                        if let Err(error) = ledger.note(event) {
                            log::error(
                                "receipt_missing",
                                &[("event", &"rootfs_imported"), ("error", &error)],
                            );
                        }
                    }
                    self.set(&name, None);
                }
                Err(error) => {
                    log::error("rootfs_not_imported", &[("name", &name), ("error", &error)]);
                    self.set(&name, Some(Import::Failed(error.to_string())));
                }
            }
        }
    }

    /// Waits until `name` is not being imported any more. `watch` hears how far it is and may end the wait with false.
    pub fn wait(&self, name: &str, watch: &mut dyn FnMut(Option<Progress>) -> bool) -> Result<(), String> {
        let mut open = self.lock();
        loop {
            let now = match open.get(name) {
                None => return Ok(()),
                Some(Import::Failed(why)) => return Err(why.clone()),
                Some(Import::Waiting) => None,
                Some(Import::Running(progress)) => Some(progress.clone()),
            };
            drop(open);
            if !watch(now) {
                return Ok(());
            }
            let patience = Duration::from_millis(200);
            open = self.changed.wait_timeout(self.lock(), patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A `progress` notification of an import.
pub fn progress(name: &str, stage: Stage, done: u64, total: u64) -> Progress {
    Progress { stage: format!("rootfs {name}: {stage}"), done: Some(done), total: Some(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_named_archives_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        for name in ["python.tar", "UPPER.tar", "x.tar.gz", "a b.tar", ".tar", "readme"] {
            fs::write(dir.path().join("rootfs").join(name), "").unwrap();
        }
        assert_eq!(archives(dir.path()).into_keys().collect::<Vec<_>>(), ["python"]);
        assert!(archives(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn a_wrong_archive_is_a_reason_not_an_older_image() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("rootfs/bad.tar"), "not a tar").unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let imports = Imports::default();
        let found = archives(dir.path());
        imports.announce(&found);
        let mut asked = 0;
        assert_eq!(
            imports.wait("bad", &mut |_| {
                asked += 1;
                asked < 3
            }),
            Ok(())
        );
        imports.run(found, &store, &Client::at("/nonexistent"));
        assert!(imports.wait("bad", &mut |_| true).is_err());
        imports.forgive("bad");
        assert_eq!(
            imports.wait("bad", &mut |_| true),
            Ok(()),
            "somebody imported another one under the name"
        );
        assert_eq!(imports.wait("other", &mut |_| true), Ok(()));
    }
}
