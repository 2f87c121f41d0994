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
mod sealed;
mod shared;
mod slot;
mod sound;
mod time;

use libtest_mimic::{Arguments, Failed, Trial};
use slot::Shared;

/// The nodes that tests share.
static SLOTS: [&dyn Shared; 9] = [
    &shared::LAB,
    &bypass::BENCH,
    &execs::BENCH,
    &faults::NODE,
    &disks::BENCH,
    &lives::BENCH,
    &hostile::NODE,
    &many::NODE,
    &ports::BENCH,
];

/// A test, named `group::outcome`. When it fails what the shared nodes told is kept.
fn trial(name: &str, test: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test().map_err(|error| {
            SLOTS.iter().for_each(|slot| slot.keep_logs());
            Failed::from(format!("{error:#}"))
        })
    })
}

/// Room for the connections of a thousand idle callers, here and in QEMU, which inherits the limit.
fn open_files() -> std::io::Result<()> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
}

fn main() {
    let mut arguments = Arguments::from_args();
    // One node at a time: two emulated machines on two cores only make each other late.
    arguments.test_threads = Some(1);
    if let Err(error) = open_files() {
        eprintln!("the limit of open files stays as it is: {error}");
    }
    let mut trials = Vec::new();
    trials.extend(boot::before());
    trials.extend(hardening::trials());
    trials.extend(gate::trials());
    trials.extend(agents::trials());
    trials.extend(execs::trials());
    trials.extend(network::trials());
    trials.extend(bypass::trials());
    trials.extend(memory::trials());
    trials.extend(ledger::trials());
    trials.extend(images::trials());
    trials.extend(power::trials());
    trials.extend(boot::after());
    trials.extend(faults::trials());
    trials.extend(degraded::trials());
    trials.extend(sealed::trials());
    trials.extend(time::trials());
    trials.extend(disks::trials());
    trials.extend(lives::trials());
    trials.extend(hostile::trials());
    trials.extend(jail::trials());
    trials.extend(many::trials());
    trials.extend(ports::trials());
    trials.extend(faults::last());
    let conclusion = libtest_mimic::run(&arguments, trials);
    SLOTS.iter().for_each(|slot| slot.switch_off());
    degraded::switch_off();
    faults::switch_off();
    conclusion.exit();
}
