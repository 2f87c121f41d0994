//! Boots real nodes and holds them to what design and manifests promise. Named and reported like `cargo test`; tests of
//! one group share one node and run in the order they stand in.

mod agents;
mod boot;
mod bypass;
mod degraded;
mod disks;
mod execs;
mod faults;
mod gate;
mod hardening;
mod hostile;
mod images;
mod jail;
mod ledger;
mod lives;
mod many;
mod memory;
mod network;
mod ports;
mod power;
mod rogue;
mod sealed;
mod shared;
mod slot;
mod sound;
mod tasks;
mod time;

use libtest_mimic::{Arguments, Failed, Trial};
use slot::Shared;
use system_tests::losses;

/// The nodes that tests share.
static SLOTS: [&dyn Shared; 11] = [
    &shared::LAB,
    &bypass::BENCH,
    &execs::BENCH,
    &faults::NODE,
    &disks::BENCH,
    &lives::BENCH,
    &hostile::NODE,
    &many::NODE,
    &ports::BENCH,
    &tasks::BENCH,
    &rogue::BENCH,
];

/// Groups of the second lane. A node under emulation keeps one processor busy, so that two lanes (`make system`) take little
/// longer than half of the time that one does; tests that share a node are in one.
const SECOND: [&str; 8] = ["bypass", "execs", "hostile", "jail", "lives", "ports", "sealed", "time"];

/// The lane that NULLBOX_LANE names: whether it is the second. Without one all tests are run.
fn lane() -> anyhow::Result<Option<bool>> {
    match std::env::var("NULLBOX_LANE").as_deref() {
        Err(_) => Ok(None),
        Ok("first") => Ok(Some(false)),
        Ok("second") => Ok(Some(true)),
        Ok(other) => anyhow::bail!("NULLBOX_LANE is `{other}`; it can be `first` or `second`"),
    }
}

/// A test, named `group::outcome`. When it fails what the shared nodes told is kept and the next one finds new nodes, not what this one
/// left; when the emulator lost a machine meanwhile it is run once more.
fn trial(name: &str, test: impl Fn() -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        losses::forget();
        let Err(error) = attempt(&test) else { return Ok(()) };
        let Some(loss) = losses::excuse() else { return Err(failed(&error)) };
        eprintln!("{error:#}\nonce more, since the emulator lost a machine (docs/decisions/0007): {loss}");
        attempt(&test).map_err(|error| failed(&error))
    })
}

fn attempt(test: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    test().inspect_err(|_| {
        for slot in SLOTS {
            slot.keep_logs();
            slot.make_room();
        }
    })
}

fn failed(error: &anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

/// Room for the connections of a thousand idle callers, here and in QEMU, which inherits the limit.
fn open_files() -> std::io::Result<()> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
}

fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::from_args();
    // One node at a time in each lane.
    arguments.test_threads = Some(1);
    if let Err(error) = open_files() {
        eprintln!("the limit of open files stays as it is: {error}");
    }
    let mut trials = Vec::new();
    trials.extend(boot::before());
    trials.extend(hardening::trials());
    trials.extend(gate::trials());
    trials.extend(agents::trials());
    trials.extend(network::trials());
    trials.extend(memory::trials());
    trials.extend(ledger::trials());
    trials.extend(images::trials());
    trials.extend(power::trials());
    trials.extend(boot::after());
    trials.extend(execs::trials());
    trials.extend(bypass::trials());
    trials.extend(faults::trials());
    trials.extend(degraded::trials());
    trials.extend(sealed::trials());
    trials.extend(time::trials());
    trials.extend(disks::trials());
    trials.extend(lives::trials());
    trials.extend(hostile::trials());
    trials.extend(rogue::trials());
    trials.extend(jail::trials());
    trials.extend(many::trials());
    trials.extend(ports::trials());
    trials.extend(tasks::trials());
    trials.extend(faults::last());
    if let Some(second) = lane()? {
        trials.retain(|trial| {
            trial.name().split("::").next().is_some_and(|group| SECOND.contains(&group) == second)
        });
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    SLOTS.iter().for_each(|slot| slot.switch_off());
    degraded::switch_off();
    faults::switch_off();
    if losses::excused() > 0 {
        eprintln!("{} of these tests ran twice: the emulator lost a machine (see above)", losses::excused());
    }
    conclusion.exit();
}
