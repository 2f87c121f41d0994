//! `cage-vmm`: one process, one VM. Started by cage as root, it closes its own jail and becomes the VM.
//!
//! Must hold: the VM starts only after every step of the jail; what it is told comes on standard input, and nothing comes
//! later. Must never: return to anything after the VM has started.

mod krun;
mod sys;

use abi::wire::Connection;
use cage::jail::seccomp::Filters;
use cage::jail::{self, JailSpec, Launch};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (mut connection, null) = match standard_input() {
        Ok(pair) => pair,
        Err(error) => {
            abi::log::error("vmm_not_started_by_cage", &[("error", &error)]);
            return ExitCode::FAILURE;
        }
    };
    let launch = match prepare(&mut connection) {
        Ok(vm) => match report(&connection, &Launch::Entered) {
            Ok(()) => {
                // The end of this connection tells cage that the jail is closed.
                drop(connection);
                drop(null);
                vm.run()
            }
            Err(error) => failed("report", error),
        },
        Err(launch) => launch,
    };
    abi::log::error("vm_not_started", &[("why", &format!("{launch:?}"))]);
    ExitCode::FAILURE
}

/// Moves the connection away from descriptor 0, which becomes /dev/null: the VMM's own code must not find it there.
fn standard_input() -> io::Result<(Connection, File)> {
    cage::sys::close_from(3)?; // nothing is open yet that is ours
    let stream = UnixStream::from(rustix::io::dup(rustix::stdio::stdin())?);
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok((Connection::new(stream), null))
}

/// One line by write(2): the filter, which stands by now, has no sendmsg(2).
fn report(connection: &Connection, launch: &Launch) -> io::Result<()> {
    let mut line = serde_json::to_vec(launch)?;
    line.push(b'\n');
    connection.stream().write_all(&line)
}

fn failed(step: &str, error: impl std::fmt::Display) -> Launch {
    Launch::Failed { step: step.to_owned(), error: error.to_string() }
}

fn prepare(connection: &mut Connection) -> Result<krun::Vm, Launch> {
    let outcome = (|| {
        let (spec, netns) = read_spec(connection)?;
        let jailed = jail::enter(&spec, netns).map_err(|error| failed(error.step, error.error))?;
        let vm = krun::Vm::configure(&spec).map_err(|error| failed("vm", error))?;
        cage::sys::name_refused_calls().map_err(|error| failed("filter", error))?;
        let filters = Filters::new().map_err(|error| failed("filter", error))?;
        filters.install(&jailed).map_err(|error| failed("filter", error))?;
        sys::start_spawner(filters).map_err(|error| failed("spawner", error))?;
        Ok(vm)
    })();
    if let Err(launch) = &outcome {
        report(connection, launch).unwrap_or_else(|error| {
            abi::log::error("launch_not_reported", &[("error", &error)]);
        });
    }
    outcome
}

fn read_spec(connection: &mut Connection) -> Result<(JailSpec, Option<OwnedFd>), Launch> {
    let line = match connection.read_line() {
        Ok(Some(line)) => line,
        Ok(None) => return Err(failed("spec", "the connection ended")),
        Err(error) => return Err(failed("spec", error)),
    };
    let spec = serde_json::from_str(&line).map_err(|error| failed("spec", error))?;
    let mut fds = connection.take_fds();
    Ok((spec, fds.pop()))
}
