//! The store on real files.

use super::*;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

const VALUE: &str = "sk-live-0123456789abcdef";

fn policy(name: &str, host: &str) -> SecretPolicy {
    SecretPolicy {
        name: name.parse().unwrap(),
        host: host.parse().unwrap(),
        port: 443,
        header: "authorization".into(),
        format: "Bearer {}".into(),
        api: Default::default(),
    }
}

fn face(name: &str, host: &str) -> Face {
    Face { policy: policy(name, host), set_unix_ms: 5, by: "admin alice".into() }
}

fn open(dir: &Path) -> Secrets {
    Secrets::open(dir, &dir.join("no-tpm")).unwrap()
}

#[test]
fn a_secret_is_kept_sealed_and_given_out_for_its_own_place_only() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    assert_eq!(secrets.sealed_by(), "none yet");
    assert!(!dir.path().join("key").exists(), "asking makes no key");
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    for secrets in [secrets, open(dir.path())] {
        let secret = secrets.reveal(&policy("KEY", "api.test")).unwrap();
        assert_eq!((secret.value(), secret.field().as_str()), (VALUE, format!("Bearer {VALUE}").as_str()));
        assert_eq!(format!("{secret:?}"), "Secret(KEY)");
        assert!(!format!("{secrets:?}").contains(VALUE));
        assert!(matches!(secrets.reveal(&policy("KEY", "evil.test")), Err(SecretError::Changed(_))));
        assert!(matches!(secrets.reveal(&policy("OTHER", "api.test")), Err(SecretError::NotSet(_))));
        assert_eq!(secrets.list(), [(face("KEY", "api.test"), None)]);
        assert_eq!(secrets.sealed_by(), "state-volume");
    }
    let file = fs::read_to_string(dir.path().join("secrets/KEY.json")).unwrap();
    assert!(file.contains("api.test") && !file.contains(VALUE), "{file}");
    assert!(!file.contains(&STANDARD.encode(VALUE)[..20]), "{file}");
    use std::os::unix::fs::PermissionsExt;
    for name in ["key", "secrets/KEY.json"] {
        assert_eq!(
            fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{name}"
        );
    }
}

#[test]
fn a_new_value_replaces_the_old_one_with_a_new_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    let first = fs::read(dir.path().join("secrets/KEY.json")).unwrap();
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    assert_ne!(fs::read(dir.path().join("secrets/KEY.json")).unwrap(), first);
    secrets.set(face("KEY", "api.test"), "another-value").unwrap();
    assert_eq!(open(dir.path()).reveal(&policy("KEY", "api.test")).unwrap().value(), "another-value");
    secrets.remove(&"KEY".parse().unwrap()).unwrap();
    assert!(matches!(secrets.remove(&"KEY".parse().unwrap()), Err(SecretError::NotSet(_))));
    assert!(open(dir.path()).list().is_empty());
}

#[test]
fn any_flipped_bit_of_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).set(face("KEY", "api.test"), VALUE).unwrap();
    let path = dir.path().join("secrets/KEY.json");
    let whole = fs::read(&path).unwrap();
    let mut opened = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        opened += usize::from(open(dir.path()).policy(&"KEY".parse().unwrap()).is_ok());
    }
    assert_eq!(opened, 0, "of {} bytes", whole.len());
    fs::write(&path, &whole).unwrap();
    assert!(open(dir.path()).policy(&"KEY".parse().unwrap()).is_ok());
}

#[test]
fn a_policy_or_a_value_of_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    secrets.set(face("OTHER", "other.test"), "another-value").unwrap();
    let path = |name: &str| dir.path().join(format!("secrets/{name}.json"));
    let text = fs::read_to_string(path("KEY")).unwrap();
    for (from, to) in [("api.test", "evil.test"), ("443", "444"), ("Bearer {}", "{}"), ("alice", "mallory")] {
        fs::write(path("KEY"), text.replace(from, to)).unwrap();
        let secrets = open(dir.path());
        assert!(matches!(secrets.policy(&"KEY".parse().unwrap()), Err(SecretError::Damaged(_))), "{from}");
        assert!(secrets.reveal(&policy("KEY", "evil.test")).is_err());
        assert!(
            secrets
                .list()
                .iter()
                .any(|(face, problem)| face.policy.name.as_str() == "KEY" && problem.is_some())
        );
    }
    fs::copy(path("OTHER"), path("KEY")).unwrap();
    assert!(matches!(open(dir.path()).policy(&"KEY".parse().unwrap()), Err(SecretError::Damaged(_))));
    // Set anew, it is whole again.
    let secrets = open(dir.path());
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    assert_eq!(secrets.reveal(&policy("KEY", "api.test")).unwrap().value(), VALUE);
}

#[test]
fn a_lost_or_wrong_key_opens_nothing_and_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    open(dir.path()).set(face("KEY", "api.test"), VALUE).unwrap();
    let right = fs::read(&key).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    assert!(matches!(open(dir.path()).reveal(&policy("KEY", "api.test")), Err(SecretError::Damaged(_))));
    for wrong in [&right[..31], &[right.as_slice(), b"x"].concat()] {
        fs::write(&key, wrong).unwrap();
        assert!(matches!(open(dir.path()).reveal(&policy("KEY", "api.test")), Err(SecretError::NoKey(_))));
        assert!(open(dir.path()).set(face("NEW", "api.test"), VALUE).is_err());
    }
    fs::remove_file(&key).unwrap();
    let secrets = open(dir.path());
    assert!(secrets.set(face("KEY", "api.test"), VALUE).is_err());
    assert!(!key.exists() && secrets.sealed_by().contains("put back the key"), "{}", secrets.sealed_by());
    // Without its secrets there may be a new one.
    secrets.remove(&"KEY".parse().unwrap()).unwrap();
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    fs::write(&key, &right).unwrap();
    assert!(open(dir.path()).reveal(&policy("KEY", "api.test")).is_err());
}

#[test]
fn policies_and_values_that_could_say_more_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    let with = |change: fn(&mut SecretPolicy)| {
        let mut face = face("KEY", "api.test");
        change(&mut face.policy);
        secrets.set(face, VALUE).map_err(|error| error.to_string())
    };
    let wrong: [fn(&mut SecretPolicy); 15] = [
        |p| p.port = 0,
        |p| p.header = "host".into(),
        |p| p.header = "content-length".into(),
        |p| p.header = "transfer-encoding".into(),
        |p| p.header = "connection".into(),
        |p| p.header = "Authorization".into(),
        |p| p.header = "x key".into(),
        |p| p.header = "x:y".into(),
        |p| p.header = String::new(),
        |p| p.format = "Bearer".into(),
        |p| p.format = "{}{}".into(),
        |p| p.format = "Bearer {}\r\nhost: evil.test".into(),
        |p| p.format = "B\u{e9} {}".into(),
        |p| p.format = "{} ".into(),
        |p| p.format = format!("{}{{}}", "x".repeat(limits::SECRET_FORMAT_BYTES_MAX)),
    ];
    for change in wrong {
        assert!(with(change).is_err());
    }
    with(|p| p.format = "{}".into()).unwrap();
    let long = "x".repeat(limits::SECRET_BYTES_MAX);
    for (value, fits) in [
        ("1234567", false),
        ("12345678", true),
        (long.as_str(), true),
        (&format!("{long}x"), false),
        ("value\nx-evil: 1", false),
        ("value\0value", false),
        ("v\u{e4}lue value", false),
        (" 12345678", false),
    ] {
        assert_eq!(secrets.set(face("KEY", "api.test"), value).is_ok(), fits, "{}", value.len());
    }
}

#[test]
fn a_node_has_so_many_secrets_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    for n in 0..limits::SECRETS_MAX {
        secrets.set(face(&format!("KEY{n}"), "api.test"), VALUE).unwrap();
    }
    assert!(matches!(secrets.set(face("MORE", "api.test"), VALUE), Err(SecretError::TooMany)));
    secrets.set(face("KEY0", "api.test"), "another-value").unwrap();
}

/// A TPM of its own: swtpm behind a socket.
struct Simulated {
    child: Child,
    socket: PathBuf,
}

impl Simulated {
    /// With the state of a directory; a TPM that was there before keeps its seeds.
    fn start(dir: &Path) -> Simulated {
        fs::create_dir_all(dir.join("tpm")).unwrap();
        let socket = dir.join("tpm.sock");
        let _ = fs::remove_file(&socket); // of one before
        let at = dir.display();
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={at}/tpm"), "--server"])
            .arg(format!("type=unixio,path={}", socket.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm (package swtpm)");
        let simulated = Simulated { child, socket };
        let until = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&simulated.socket).is_err() {
            assert!(Instant::now() < until, "swtpm does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        simulated
    }

    fn tpm(&self) -> tpm::Tpm<UnixStream> {
        let device = UnixStream::connect(&self.socket).unwrap();
        device.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        tpm::Tpm::new(device)
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

#[test]
fn a_tpm_gives_back_the_key_it_sealed_and_no_other_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let simulated = Simulated::start(dir.path());
    let (key, blob) = simulated.tpm().create().unwrap();
    assert!(!blob.0.windows(32).any(|part| part == key.as_slice()));
    // More often than a TPM has room for objects: each is flushed.
    for _ in 0..8 {
        assert_eq!(simulated.tpm().open(&blob).unwrap(), key);
    }
    drop(simulated);
    let again = Simulated::start(dir.path());
    assert_eq!(again.tpm().open(&blob).unwrap(), key, "after a restart of the machine");
    let mut opened = 0;
    for at in (0..blob.0.len()).step_by(5) {
        let mut bytes = blob.clone();
        bytes.0[at] ^= 1;
        opened += usize::from(again.tpm().open(&bytes).is_ok_and(|found| found != key));
    }
    assert_eq!(opened, 0);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Simulated::start(elsewhere.path());
    let error = other.tpm().open(&blob).unwrap_err();
    assert!(error.to_string().contains("another TPM"), "{error}");
    assert_ne!(other.tpm().create().unwrap().0, key);
}

#[test]
fn with_a_tpm_no_key_lies_on_the_disk_and_without_it_nothing_is_opened_or_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("tpm.sock");
    let open = || Secrets::open(dir.path(), &device).unwrap();
    let simulated = Simulated::start(dir.path());
    let secrets = open();
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    assert_eq!(secrets.sealed_by(), "tpm");
    assert!(dir.path().join("key.tpm").exists() && !dir.path().join("key").exists());
    assert_eq!(open().reveal(&policy("KEY", "api.test")).unwrap().value(), VALUE);
    drop(simulated);
    fs::remove_file(&device).unwrap();
    let blob = fs::read(dir.path().join("key.tpm")).unwrap();
    let secrets = open();
    let refused = secrets.reveal(&policy("KEY", "api.test")).unwrap_err().to_string();
    assert!(refused.contains("give the machine its TPM back"), "{refused}");
    assert!(secrets.set(face("KEY", "api.test"), VALUE).is_err());
    assert!(secrets.sealed_by().contains("unavailable"), "{}", secrets.sealed_by());
    assert_eq!(secrets.list().len(), 1);
    assert!(!dir.path().join("key").exists());
    // Another TPM in its place.
    fs::remove_dir_all(dir.path().join("tpm")).unwrap();
    let other = Simulated::start(dir.path());
    assert!(open().reveal(&policy("KEY", "api.test")).unwrap_err().to_string().contains("another TPM"));
    assert!(open().set(face("KEY", "api.test"), VALUE).is_err());
    assert_eq!(fs::read(dir.path().join("key.tpm")).unwrap(), blob);
    drop(other);
}

#[test]
fn a_key_in_a_file_seals_nothing_new_where_there_is_a_tpm() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("tpm.sock");
    let open = || Secrets::open(dir.path(), &device).unwrap();
    let planted = [7; 32];
    fs::write(dir.path().join("key"), planted).unwrap();
    let without = open();
    without.set(face("KEY", "api.test"), VALUE).unwrap();
    assert_eq!(without.sealed_by(), "state-volume");
    let _simulated = Simulated::start(dir.path());
    // What it sealed is opened still, and nothing more is given to it.
    let secrets = open();
    assert_eq!(secrets.reveal(&policy("KEY", "api.test")).unwrap().value(), VALUE);
    for name in ["KEY", "NEW"] {
        let refused = secrets.set(face(name, "api.test"), VALUE).unwrap_err().to_string();
        assert!(refused.contains("remove all secrets and set them anew"), "{refused}");
    }
    secrets.remove(&"KEY".parse().unwrap()).unwrap();
    assert_eq!(secrets.sealed_by(), "none yet");
    secrets.set(face("NEW", "api.test"), VALUE).unwrap();
    assert_eq!(secrets.sealed_by(), "tpm");
    assert!(dir.path().join("key.tpm").exists() && !dir.path().join("key").exists());
    assert_eq!(open().reveal(&policy("NEW", "api.test")).unwrap().value(), VALUE);
}

#[test]
fn a_change_that_waits_for_the_disk_holds_no_call_up() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Arc::new(open(dir.path()));
    secrets.set(face("KEY", "api.test"), VALUE).unwrap();
    // As it is while a file is written, and while a TPM is asked.
    let _changing = lock(&secrets.changing);
    let _fetching = lock(&secrets.fetching);
    let (done, told) = std::sync::mpsc::channel();
    let calls = secrets.clone();
    std::thread::spawn(move || done.send(calls.reveal(&policy("KEY", "api.test")).is_ok()));
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(true));
}

#[test]
fn a_secret_outlives_a_change_of_its_files_form_and_a_later_form_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secrets/KEY.json");
    open(dir.path()).set(face("KEY", "api.test"), VALUE).unwrap();
    // As another version may have written it: members in another order, white space.
    let key = open(dir.path());
    let raw = r#"{"by":"admin alice", "set_unix_ms":5, "policy":{"port":443,"host":"api.test","name":"KEY",
        "header":"authorization","format":"Bearer {}","api":"plain"}}"#;
    let mut stored = sealed(&key.key(false).unwrap().0, face("KEY", "api.test"), VALUE).unwrap();
    let mut other = STANDARD.decode(&stored.nonce).unwrap();
    other.truncate(12);
    let nonce = Nonce::try_assume_unique_for_key(&other).unwrap();
    let mut bytes = VALUE.as_bytes().to_vec();
    stored.raw = RawValue::from_string(raw.to_owned()).unwrap();
    key.key(false).unwrap().0.seal_in_place_append_tag(nonce, bound(&stored.raw), &mut bytes).unwrap();
    stored.sealed = STANDARD.encode(&bytes);
    fs::write(&path, serde_json::to_vec(&stored.file()).unwrap()).unwrap();
    assert_eq!(open(dir.path()).reveal(&policy("KEY", "api.test")).unwrap().value(), VALUE);
    // Of a version that is not known, nothing is opened, and its key stays.
    let text = fs::read_to_string(&path).unwrap().replace("\"version\":1", "\"version\":2");
    fs::write(&path, text).unwrap();
    let simulated = Simulated::start(dir.path());
    let secrets = Secrets::open(dir.path(), &simulated.socket).unwrap();
    assert!(matches!(secrets.reveal(&policy("KEY", "api.test")), Err(SecretError::Damaged(_))));
    assert!(secrets.set(face("NEW", "api.test"), VALUE).is_err());
    assert!(dir.path().join("key").exists());
}
