//! Calls at the same time, ends that lie, and guests that would give themselves more: what was let through never exceeds the bound.

use super::*;

const CALLS: u32 = limits::TOOL_CALLS_AT_ONCE_MAX as u32;

/// Sends calls from several threads, as a guest with several connections does; the channels still grow.
fn flood(bench: &Bench) -> Vec<std::thread::JoinHandle<()>> {
    let next = Arc::new(Mutex::new(1));
    let send = |_| {
        let (mut guest, next) = (bench.guest.try_clone().unwrap(), next.clone());
        std::thread::spawn(move || {
            for _ in 0..CALLS / 4 {
                let mut next = next.lock().unwrap();
                let call =
                    tools::Call { tool: "read".into(), params: format!(r#"{{"path":"/work/{next}"}}"#) };
                Frame::json(Kind::Call, *next, &call).unwrap().write_to(&mut guest).unwrap();
                *next += 1;
            }
        })
    };
    (0..4).map(send).collect()
}

pub(super) fn play(random: &mut Random, breached: bool) -> Result<(), String> {
    let (calls, bytes) = (2 + random.below(10) as u32, 100_000 * (1 + random.below(8) as u64));
    let budget = format!("calls = {calls}, output_bytes = {bytes}");
    let bench = life(&node(), "a.7", &RULES.replace("calls = 1000, output_bytes = 100000000", &budget));
    let senders = flood(&bench);
    // Meanwhile a reader gives more, by the agent's name. A breach: an operator whom nobody counts does.
    let giver = {
        let (desk, role) = (bench.desk.clone(), if breached { Role::Operator } else { Role::Reader });
        let more =
            authority::Amounts { calls: Some(20), output_bytes: Some(10_000_000), ..Default::default() };
        std::thread::spawn(move || (0..5).filter(|_| desk.more(&more, "a.7", role).is_ok()).count())
    };
    let (mut gone, mut used) = (0, 0);
    let mut guest = bench.guest.try_clone().unwrap();
    guest.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let deadline = Instant::now() + SOON;
    while bench.house.held.load(Ordering::SeqCst) == 0 && gone < CALLS {
        assert!(Instant::now() < deadline, "neither answers nor a standstill");
        let Ok(Some(frame)) = Frame::read_from(&mut guest) else { continue };
        let Answer::Go(go) = frame.parse().unwrap() else { return Err("refused for want of budget".into()) };
        // What it says it used: all, half, nothing, or more than there is.
        let said = *random.pick(&[go.output_bytes_max, go.output_bytes_max / 2, 0, u64::MAX]);
        (gone, used) = (gone + 1, used + said.min(go.output_bytes_max));
        let ended = Ended { bytes: said, wall_ms: 1, failed: None };
        Frame::json(Kind::Ended, frame.channel, &ended).unwrap().write_to(&mut guest).unwrap();
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let gave = giver.join().unwrap();
    if gave > 0 && !breached {
        return Err("a reader gave more".into());
    }
    if gone > calls || used > bytes {
        return Err(format!("{gone} calls of {calls}, {used} bytes of {bytes}"));
    }
    until("the last end is settled", || bench.desk.spent().output_bytes >= Some(used));
    Ok(())
}
