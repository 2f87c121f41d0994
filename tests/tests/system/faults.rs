//! Everything that a service, a caller or the machine can do to a node, done to one node in a row. After each fault the node is as
//! sound as before (`sound`). The last ones end the machine: a shutdown that everything holds up, and a nulld that has stopped.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use system_tests::fixture::Config;
use system_tests::node::{Machine, Node, Oddities};

use crate::shared::eventually;
use crate::slot::{Own, Slot};
use crate::sound::{before, call, service, status};
use crate::trial;

/// How long a shutdown that is held up at every step may take; the limits of nulld add up to less.
const STUCK_SHUTDOWN_MAX: Duration = Duration::from_secs(90);
const CALLERS: usize = 1000;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("faults::screen_is_drawn", screen_is_drawn),
        trial("faults::sigkill_and_sigstop_do_nothing_to_pid_1", sigkill_and_sigstop_do_nothing),
        trial("faults::segfault_in_nulld_disturbs_no_service", || crash(11)),
        trial("faults::abort_in_nulld_disturbs_no_service", || crash(6)),
        trial("faults::fork_bomb_stays_in_its_service", fork_bomb_stays_in_its_service),
        trial("faults::ten_thousand_orphans_are_reaped", ten_thousand_orphans_are_reaped),
        trial("faults::service_that_eats_its_memory_is_killed_alone", service_that_eats_its_memory),
        trial("faults::process_that_eats_the_nodes_memory_is_killed_alone", process_that_eats_the_node),
        trial("faults::full_disk_is_survived_and_named", full_disk_is_survived_and_named),
        trial("faults::crash_loop_disturbs_nobody_and_ends", crash_loop_disturbs_nobody),
        trial("faults::flooded_log_disturbs_nobody", flooded_log_disturbs_nobody),
        trial("faults::lines_of_64_kib_and_without_end_are_refused", long_lines_are_refused),
        trial("faults::thousand_idle_callers_shut_nobody_out", thousand_idle_callers),
        trial("faults::thousand_idle_connections_from_outside_shut_nobody_out", thousand_idle_outside),
        trial("faults::clock_jumps_disturb_nobody", clock_jumps_disturb_nobody),
        trial("faults::killed_services_come_back", killed_services_come_back),
        trial("faults::silent_service_is_started_anew", silent_service_is_started_anew),
        trial(
            "faults::service_stuck_in_the_kernel_is_left_behind_and_comes_back",
            stuck_service_is_left_behind,
        ),
        trial("faults::power_button_ends_a_node_that_holds_on_to_everything", power_button_ends_a_stuck_node),
        trial("faults::crash_loop_of_nulld_is_held_and_explained", crash_loop_of_nulld_is_held),
        trial("faults::watchdog_of_the_machine_is_in_use", watchdog_is_in_use),
    ]
}

/// Ends what [`trials`] began: the watchdog takes its time, in which others can be tested.
pub fn last() -> Vec<Trial> {
    vec![trial("faults::frozen_nulld_is_restarted_by_the_hardware", frozen_nulld_is_restarted)]
}

/// Their node.
pub static NODE: Slot<Own> = Slot::new(start);

/// Ends what [`last`] would have, and removes what a failed test left.
pub fn switch_off() {
    FROZEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    let _ = full_disk().map(std::fs::remove_file); // it is there only when a test failed
}

fn start() -> Result<Own> {
    let config = Config::new("faults")?;
    config.file("nulld.toml", &format!("{SABOTEUR}{VICTIMS}"))?;
    let disk = config.dir().join("stall.img");
    std::fs::File::create(&disk)?.set_len(1 << 20)?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("256M")?),
        ..Machine::bare("faults", system_tests::test_iso()?, &config)
    };
    let odd = Oddities {
        disks: vec![disk],
        // The chipset's watchdog may restart the machine; by default QEMU straps it not to.
        arguments: ["-vga", "std", "-action", "watchdog=reset", "-global", "ICH9-LPC.noreboot=false"]
            .map(Into::into)
            .into(),
        ..Oddities::default()
    };
    Ok(Own { node: Node::boot_odd(machine, &odd)?, config })
}

/// The saboteur with all that it needs.
pub const SABOTEUR: &str = r#"
[services.fault]
path = "/system/bin/fault"
needs = ["cage"]
capabilities = [
    "dac_override", "dac_read_search", "kill", "net_admin", "sys_admin", "sys_ptrace", "sys_resource", "sys_time", "sys_tty_config",
]
unconfined = true
tasks_max = 4096
open_files_max = 4096
oom_score = 500
"#;

const VICTIMS: &str = r#"
[node]
name = "faults"

[services.victim]
path = "/system/bin/fault"
args = ["--victim", "victim"]
capabilities = ["dac_override"]
unconfined = true
watchdog_secs_max = 5
restart_ms_min = 100

[services.deaf]
path = "/system/bin/fault"
args = ["--victim", "deaf", "--deaf"]
unconfined = true
stop_secs_max = 2
"#;

fn screen_is_drawn() -> Result<()> {
    let node = NODE.hold()?;
    let file = node.dir.join("screen.ppm");
    let mut lit = 0;
    eventually(Duration::from_secs(20), "the screen shows text", || {
        node.qmp("screendump", json!({ "filename": file.display().to_string() }))?;
        let image = std::fs::read(&file).unwrap_or_default();
        // A header of three lines (ppm(5)), then three bytes a pixel.
        lit = image.iter().skip(16).filter(|byte| **byte > 64).count();
        Ok(lit > 3000)
    })
    .with_context(|| format!("{lit} bytes of light"))
}

fn sigkill_and_sigstop_do_nothing() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    for signal in [9, 19] {
        node.fault(&format!("kill {signal} 1"))?;
    }
    before.still_sound(&node, &[], 0)
}

fn crash(signal: u32) -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let crashes = status(&node)?["crashes"].as_u64().context("no count of crashes")?;
    node.fault(&format!("kill {signal} 1"))?;
    eventually(Duration::from_secs(30), "nulld has begun again", || {
        Ok(status(&node)?["crashes"].as_u64() == Some(crashes + 1))
    })?;
    before.still_sound(&node, &[], 1)
}

fn fork_bomb_stays_in_its_service() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let group = "/sys/fs/cgroup/services/fault";
    node.fault(&format!("write {group}/pids.max 100"))?;
    let bomb = node.fault("bomb 5")?;
    let refused = || {
        let events = node.fault(&format!("read {group}/pids.events"))?;
        Ok(!events.lines().any(|line| line == "max 0"))
    };
    eventually(Duration::from_secs(30), "the bomb reaches its bound", refused)?;
    status(&node).context("the door, while the bomb goes off")?;
    eventually(Duration::from_secs(60), "the bomb has burnt out", || {
        let left: u32 = node.fault(&format!("read {group}/pids.current"))?.trim().parse()?;
        Ok(node.fault(&format!("ended {bomb}"))? != "running" && left <= 2)
    })?;
    node.fault(&format!("write {group}/pids.max 4096"))?;
    before.still_sound(&node, &[], 0)
}

fn ten_thousand_orphans_are_reaped() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let maker = node.fault("orphans 10000")?;
    let mut how = String::new();
    eventually(Duration::from_secs(120), "10,000 orphans are made", || {
        status(&node).context("the door, while orphans come")?;
        how = node.fault(&format!("ended {maker}"))?;
        Ok(how != "running")
    })?;
    ensure!(how == "exit status: 0", "not all orphans were made: {how}");
    before.still_sound(&node, &[], 0)
}

fn service_that_eats_its_memory() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let bound = "/sys/fs/cgroup/services/fault/memory.max";
    node.fault(&format!("write {bound} 33554432"))?;
    ends_by_kill(&node, "own")?;
    // Where the whole service is killed, it comes back with its bound as configured.
    eventually(Duration::from_secs(60), "the saboteur answers", || {
        Ok(node.fault(&format!("write {bound} max")).is_ok())
    })?;
    before.still_sound(&node, &["fault"], 0)
}

fn process_that_eats_the_node() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    ends_by_kill(&node, "node")?;
    before.still_sound(&node, &[], 0)
}

fn ends_by_kill(node: &Node, whose: &str) -> Result<()> {
    let eater = node.fault(&format!("eat {whose}"))?;
    let mut how = String::new();
    eventually(Duration::from_secs(120), "the eater is killed", || {
        // The saboteur may be a new one that knows no such child.
        how = node.fault(&format!("ended {eater}")).unwrap_or_else(|error| format!("{error:#}"));
        Ok(how != "running")
    })?;
    ensure!(how.contains("signal: 9") || how.contains("no such child"), "it ended by itself: {how}");
    Ok(())
}

fn full_disk_is_survived_and_named() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    node.fault("fill /state/full")?;
    let mut found = json!(null);
    let named = eventually(Duration::from_secs(60), "doctor names the full disk", || {
        found = call(&node, "system.doctor", "{}")?;
        Ok(finding(&found, "state", "full").is_some())
    });
    node.fault("remove /state/full")?;
    named.with_context(|| found.to_string())?;
    before.still_sound(&node, &[], 0)
}

/// The finding of an area whose text holds a word; it has a remedy.
pub fn finding(doctor: &serde_json::Value, area: &str, word: &str) -> Option<serde_json::Value> {
    let all = doctor["findings"].as_array()?;
    let text = |finding: &serde_json::Value| {
        ["what", "effect"].map(|field| finding[field].as_str().unwrap_or_default().to_lowercase()).join(" ")
    };
    all.iter()
        .find(|f| {
            f["area"] == area && text(f).contains(word) && f["remedy"].as_str().is_some_and(|r| !r.is_empty())
        })
        .cloned()
}

fn crash_loop_disturbs_nobody() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let restarts = service(&status(&node)?, "victim")?["restarts"].as_u64().unwrap_or(0);
    node.fault("write /run/fault/victim.crash now")?;
    eventually(Duration::from_secs(60), "the victim has crashed five times", || {
        Ok(service(&status(&node)?, "victim")?["restarts"].as_u64() >= Some(restarts + 5))
    })?;
    let doctor = call(&node, "system.doctor", "{}")?;
    node.fault("remove /run/fault/victim.crash")?;
    ensure!(finding(&doctor, "services", "victim").is_some(), "doctor does not name it: {doctor}");
    before.still_sound(&node, &["victim"], 0)
}

fn flooded_log_disturbs_nobody() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    node.fault("write /run/fault/victim.flood 20000")?;
    let mut answered = 0;
    eventually(Duration::from_secs(90), "the flood is over", || {
        status(&node).context("the door, in the flood")?;
        answered += 1;
        Ok(node.fault("read /run/fault/victim.flood").is_err())
    })?;
    ensure!(answered > 0, "nobody asked");
    // Its sign of life may have come too late behind so many lines.
    before.still_sound(&node, &["victim"], 0)
}

fn long_lines_are_refused() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    for bytes in [65_535, 65_536, 65_537, 200_000] {
        let answer = node.fault(&format!("line {bytes}"))?;
        ensure!(answer.contains("\"error\""), "a line of {bytes} bytes was answered `{answer}`");
    }
    for _ in 0..20 {
        let answer = node.fault("endless 8000000")?;
        ensure!(answer.starts_with("closed after"), "{answer}");
    }
    before.still_sound(&node, &[], 0)
}

fn thousand_idle_callers() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let open = node.fault(&format!("idle {CALLERS}"))?;
    ensure!(open == CALLERS.to_string(), "{open} connections were taken");
    for _ in 0..10 {
        status(&node).context("the door, behind idle callers")?;
    }
    let closed: usize = node.fault("hangups")?.parse()?;
    let most = abi::limits::DOOR_PENDING_MAX;
    ensure!(closed >= CALLERS - most, "{closed} were closed, at most {most} may wait");
    before.still_sound(&node, &[], 0)
}

fn thousand_idle_outside() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    // All at once, and without patience: once the node takes no more, the rest wait in the network.
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], node.port));
    let dial = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let twenty = || (0..20).filter_map(dial).collect::<Vec<_>>();
    let open: Vec<TcpStream> = std::thread::scope(|scope| {
        let dialers: Vec<_> = (0..CALLERS / 20).map(|_| scope.spawn(twenty)).collect();
        dialers.into_iter().filter_map(|dialer| dialer.join().ok()).flatten().collect()
    });
    ensure!(open.len() > 50, "only {} connections were made", open.len());
    eventually(Duration::from_secs(60), "an operator gets through", || {
        Ok(node.ctl(&["system", "status"])?.status == 0)
    })?;
    drop(open);
    before.still_sound(&node, &[], 0)
}

fn clock_jumps_disturb_nobody() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    const YEARS: i64 = 30 * 365 * 86_400;
    for jump in [YEARS, -2 * YEARS, YEARS] {
        node.fault(&format!("clock {jump}"))?;
        status(&node).context("the door, after a jump of the clock")?;
    }
    let log = node.ctl(&["system", "logs", "nulld"])?.ok()?.stdout;
    ensure!(log.contains("clock_jumped"), "nulld does not tell of the jump:\n{log}");
    before.still_sound(&node, &[], 0)
}

fn killed_services_come_back() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    for name in ["ctxgraph", "egress", "nullgate"] {
        ensure!(node.fault(&format!("signal 9 {name}"))? == "1", "{name} is not one process");
    }
    before.still_sound(&node, &["ctxgraph", "egress", "nullgate"], 0)
}

fn silent_service_is_started_anew() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    ensure!(node.fault("signal 19 fault --victim victim")? == "1", "the victim is not one process");
    let mut now = json!(null);
    eventually(Duration::from_secs(60), "the victim is started anew", || {
        now = service(&status(&node)?, "victim")?;
        Ok(now["restarts"].as_u64() > before.restarts("victim") && now["state"] == "ready")
    })
    .with_context(|| now.to_string())?;
    let log = node.ctl(&["system", "logs", "nulld"])?.ok()?.stdout;
    ensure!(log.contains("no sign of life"), "nulld does not say why:\n{log}");
    before.still_sound(&node, &["victim"], 0)
}

/// Puts the victim to sleep in the kernel, where no signal wakes it.
fn stall_victim(node: &Node) -> Result<()> {
    let disk = odd_disk(node)?;
    let device = node.fault(&format!("dm create {disk}"))?.trim().to_owned();
    node.fault("dm suspend")?;
    node.fault(&format!("write /run/fault/victim.stuck {device}"))?;
    eventually(Duration::from_secs(20), "the victim sleeps uninterruptibly", || {
        Ok(node.fault("ps")?.lines().any(|line| line.contains(" D fault")))
    })
}

/// The disk of one MiB.
fn odd_disk(node: &Node) -> Result<String> {
    for disk in node.fault("list /sys/class/block")?.lines() {
        if node.fault(&format!("read /sys/class/block/{disk}/size"))?.trim() == "2048"
            && disk.starts_with("vd")
        {
            return Ok(disk.to_owned());
        }
    }
    bail!("there is no disk of 1 MiB")
}

fn stuck_service_is_left_behind() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    let pid = service(&status(&node)?, "victim")?["pid"].as_u64().context("no pid")?;
    stall_victim(&node)?;
    let mut now = json!(null);
    eventually(Duration::from_secs(60), "the victim is given up", || {
        now = service(&status(&node)?, "victim")?;
        Ok(now["state"] == "failed")
    })
    .with_context(|| now.to_string())?;
    ensure!(
        now["detail"].as_str().is_some_and(|d| d.contains(&pid.to_string())),
        "its pid {pid} is not named: {now}"
    );
    let doctor = call(&node, "system.doctor", "{}")?;
    ensure!(finding(&doctor, "services", "victim").is_some(), "doctor does not name it: {doctor}");
    before.others_are_untouched(&node, &["victim"])?;
    node.fault("remove /run/fault/victim.stuck")?;
    node.fault("dm resume")?;
    before.still_sound(&node, &["victim"], 0)
}

/// Everything at once: a full disk, a service that does not listen and one that cannot be killed.
fn power_button_ends_a_stuck_node() -> Result<()> {
    let mut node = NODE.hold()?;
    stall_victim(&node)?;
    node.fault("fill /state/full")?;
    node.qmp("system_powerdown", json!({}))?;
    node.wait_for("ordered by power button", Duration::from_secs(60))?;
    let Own { node: mut machine, config } = node.take();
    drop(node);
    machine.wait_off(STUCK_SHUTDOWN_MAX)?;
    std::fs::rename(config.dir().join("state.img"), full_disk()?)?;
    let console = machine.console();
    ensure!(
        console.contains("service_ignored_sigterm") && console.contains("deaf"),
        "the deaf one is not named"
    );
    ensure!(!console.contains("Kernel panic"), "it panicked on the way down");
    Ok(())
}

fn full_disk() -> Result<PathBuf> {
    Ok(system_tests::workspace()?.join(format!("full-{}.img", std::process::id())))
}

/// The state volume of a node that has run and whose disk is full since, as a disk of the caller's.
pub fn full_state(to: &Path) -> Result<()> {
    let disk = full_disk()?;
    if !disk.exists() {
        let Own { node, config } = start()?;
        node.fault("fill /state/full")?;
        node.fault("call system.poweroff {}")?;
        let mut node = node;
        node.wait_off(STUCK_SHUTDOWN_MAX)?;
        std::fs::rename(config.dir().join("state.img"), &disk)?;
    }
    std::fs::rename(&disk, to).with_context(|| to.display().to_string())
}

fn crash_loop_of_nulld_is_held() -> Result<()> {
    let node = NODE.hold()?;
    let before = before(&node)?;
    for crash in 1..=u64::from(abi::limits::NULLD_CRASHES_MAX) {
        node.fault("kill 11 1")?;
        eventually(Duration::from_secs(60), "nulld has begun again", || {
            Ok(status(&node)?["crashes"].as_u64() == Some(before.crashes() + crash))
        })?;
    }
    let held = node.json(&["system", "status"])?;
    ensure!(
        held["held"].as_str().is_some_and(|why| !why.is_empty()),
        "it does not say that it is held: {held}"
    );
    let doctor = call(&node, "system.doctor", "{}")?;
    ensure!(finding(&doctor, "nulld", "crash").is_some(), "doctor does not explain: {doctor}");
    before.others_are_untouched(&node, &[])?;
    let answer = node.ctl(&["agent", "list"])?;
    ensure!(answer.status != 0, "it handed a call over: {}", answer.stdout);
    Ok(())
}

fn watchdog_is_in_use() -> Result<()> {
    let status = status(&*NODE.hold()?)?;
    let watchdog = status["watchdog"].as_str().unwrap_or_default();
    ensure!(watchdog.contains("hardware"), "the watchdog of the machine is not used: {watchdog}");
    // From here on nulld runs no more: `last` sees what comes of it.
    let frozen = NODE.hold()?.fault("write /sys/fs/cgroup/nulld/cgroup.freeze 1");
    let mut guard = NODE.hold()?;
    *FROZEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((guard.take(), Instant::now()));
    frozen.map(drop)
}

/// A node whose nulld is frozen, and since when.
static FROZEN: Mutex<Option<(Own, Instant)>> = Mutex::new(None);

fn frozen_nulld_is_restarted() -> Result<()> {
    let frozen = FROZEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    // Alone, without the tests before it.
    let frozen = match frozen {
        Some(frozen) => frozen,
        None => {
            watchdog_is_in_use()?;
            FROZEN.lock().unwrap_or_else(PoisonError::into_inner).take().context("just frozen")?
        }
    };
    let (mut frozen, since) = frozen;
    // The chipset's counts its time twice before it acts.
    let limit = Duration::from_secs(2 * u64::from(abi::limits::WATCHDOG_S) + 60);
    frozen.node.wait_off(limit.saturating_sub(since.elapsed()).max(Duration::from_secs(1)))
}
