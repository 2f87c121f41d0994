//! Unit tests of live.rs: what changes come to, and that none is forgotten.

use super::*;

fn change(effect: Effect, entry: &str, instance: Option<&str>) -> LiveChange {
    LiveChange {
        agent: "a".parse().unwrap(),
        effect,
        grant: entry.parse().unwrap(),
        instance: instance.map(|text| text.parse().unwrap()),
        until_unix_ms: None,
        by: "operator x".into(),
        receipt: 0,
    }
}

fn allow(entry: &str) -> LiveChange {
    change(Effect::Allow, entry, Some("a.1"))
}

fn after(changes: &[LiveChange], wanted: Wanted) -> Vec<LiveChange> {
    match step(changes.to_vec(), wanted, 1000) {
        Step::Change(changes) => changes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_again_changes_nothing_and_another_time_does() {
    let one = after(&[], Wanted::Allow(allow("x.test")));
    assert_eq!(step(one.clone(), Wanted::Allow(allow("x.test")), 1000), Step::Stands(allow("x.test")));
    let timed = LiveChange { until_unix_ms: Some(2000), ..allow("x.test") };
    assert_eq!(after(&one, Wanted::Allow(timed.clone())), std::slice::from_ref(&timed));
    // Another port is another grant.
    assert_eq!(after(&[timed], Wanted::Allow(allow("x.test:22"))).len(), 2);
    let deny = change(Effect::Deny, "x.test", None);
    let denied = after(&one, Wanted::Deny(deny.clone()));
    assert_eq!(step(denied, Wanted::Deny(deny.clone()), 1000), Step::Stands(deny));
}

#[test]
fn a_denial_ends_what_it_covers_and_no_grant_stands_below_it() {
    let held = [allow("x.cdn.test"), allow("y.test:22"), allow("x.cdn.test:22")];
    let deny = change(Effect::Deny, "*.cdn.test", None);
    let denied = after(&held, Wanted::Deny(deny.clone()));
    assert_eq!(denied, [allow("y.test:22"), deny.clone()]);
    for entry in ["x.cdn.test", "my_bucket.cdn.test", "*.cdn.test"] {
        let refused = step(denied.clone(), Wanted::Allow(allow(entry)), 1000);
        assert_eq!(refused, Step::Covered(deny.clone()), "{entry}");
    }
}

#[test]
fn a_denial_for_one_life_becomes_one_for_all_and_not_the_other_way() {
    let (this, all) = (change(Effect::Deny, "x.test", Some("a.1")), change(Effect::Deny, "x.test", None));
    let held = after(&[], Wanted::Deny(this.clone()));
    assert_eq!(after(&held, Wanted::Deny(all.clone())), std::slice::from_ref(&all));
    assert_eq!(step(vec![all.clone()], Wanted::Deny(this), 1000), Step::Stands(all));
    // Another agent's changes, and another life's, are not touched.
    let other = LiveChange { agent: "b".parse().unwrap(), ..allow("x.test") };
    let past = change(Effect::Allow, "x.test", Some("a.0"));
    let next =
        after(&[other.clone(), past.clone()], Wanted::Deny(change(Effect::Deny, "x.test", Some("a.1"))));
    assert_eq!(next[..2], [other, past]);
}

fn file(test: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("nbx-live-{}-{test}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir.join("policy.json")
}

#[test]
fn changes_survive_and_hold_for_their_life_only() {
    let path = file("survive");
    let live = Live::read(&path);
    let kept = vec![allow("x.test"), change(Effect::Deny, "y.test", None)];
    live.keep(kept.clone()).unwrap();
    let again = Live::read(&path);
    let of = |life: &str, works_for: Option<&str>| {
        let works_for = works_for.map(|name| name.parse().unwrap());
        again.of(&life.parse().unwrap(), works_for.as_ref()).unwrap()
    };
    assert_eq!(of("a.1", None), kept);
    assert_eq!(of("a.2", None), kept[1..]);
    assert_eq!(of("b.1", None), []);
    assert_eq!(
        of("t1-c1.5", Some("a")),
        kept[1..],
        "what works for it is denied what it is, and given nothing"
    );
    assert_eq!(of("t1-c1.5", Some("b")), []);
    assert_eq!(again.forget(), Err(LiveError::Readable));
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn what_cannot_be_read_is_not_empty_and_not_written_over() {
    let path = file("unreadable");
    let whole = Live::read(&path);
    whole.keep(vec![change(Effect::Deny, "y.test", None)]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let broken: Vec<Vec<u8>> = vec![
        bytes[..bytes.len() - 1].to_vec(),
        b"".to_vec(),
        b"{}".to_vec(),
        b"{\"changes\":[],\"more\":1}".to_vec(),
        vec![b' '; limits::LIVE_CHANGES_BYTES_MAX as usize + 1],
    ];
    for bytes in broken {
        fs::write(&path, &bytes).unwrap();
        let live = Live::read(&path);
        assert!(matches!(live.of(&"a.1".parse().unwrap(), None), Err(LiveError::Unreadable { .. })));
        assert!(live.keep(Vec::new()).is_err());
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    let live = Live::read(&path);
    live.forget().unwrap();
    assert_eq!(live.all(), Ok(vec![]));
    assert!(path.with_extension("json.bad").exists() && !path.exists());
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn a_change_that_cannot_be_written_is_not_kept() {
    let live = Live::read("/proc/nbx/policy.json");
    assert!(matches!(live.keep(vec![allow("x.test")]), Err(LiveError::Unwritten { .. })));
    assert_eq!(live.all(), Ok(vec![]));
}

#[test]
fn changes_are_bounded_by_agent_node_and_bytes() {
    let live = Live::read("/proc/nbx/policy.json");
    let many = |agents: usize, each: usize| -> Vec<LiveChange> {
        let one = |n: usize| LiveChange {
            agent: format!("a{}", n % agents).parse().unwrap(),
            ..allow(&format!("n{n}.test"))
        };
        (0..agents * each).map(one).collect()
    };
    assert!(live.fits(&many(2, limits::LIVE_CHANGES_PER_AGENT_MAX)).is_ok());
    let full = |of: &str| Err(LiveError::Full(of.to_owned()));
    assert_eq!(live.fits(&many(1, limits::LIVE_CHANGES_PER_AGENT_MAX + 1)), full("a0"));
    assert_eq!(live.fits(&many(100, 11)), full("the node"));
    let mut large = many(20, 50);
    for change in &mut large {
        change.grant.paths = vec![format!("/{}", "x".repeat(250)); limits::GRANT_PATHS_MAX];
    }
    assert_eq!(live.fits(&large), full("the node"));
}
