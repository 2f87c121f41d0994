//! Programs that tools run: PID 1 starts and ends them, their input and output pass through here.

use serde_json::Value;
use std::path::Path;
use std::time::Instant;

use abi::guest::{Exec, Frame, Kind};
use abi::limits;
use abi::tools::{Go, WORK_PATH};
use verifier::call::Work;
use verifier::plan::Plan;
use verifier::values::filled;

use super::{Server, ToolsError};
use crate::tools::calls::{Call, Job, Run, Running, Stage};

/// Bytes of one frame of input.
const INPUT_BYTES: usize = 32 * 1024;
/// Where a program without a path is looked for, if the agent's environment says nothing.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

impl Server<'_> {
    pub(super) fn begin_run(&mut self, channel: u32, go: Go) -> Result<(), ToolsError> {
        let Some(call) = self.calls.of_mut(channel) else { return Ok(()) };
        let default = if self.plan.has_tree { WORK_PATH } else { "/" };
        let (mut command, workdir, timeout_ms, input) = match &call.request.work {
            Work::Run(run) => {
                let input = run.stdin.as_ref().map(|text| call.text(text).into_owned()).unwrap_or_default();
                let workdir = run.workdir.as_deref().unwrap_or(default);
                (run.command.clone(), workdir, run.timeout_ms, Ok(input))
            }
            Work::Own { command, arguments } => {
                let input = filled(arguments, &|number| call.inputs.of(number).cloned())
                    .map(|arguments| arguments.to_string().into_bytes())
                    .map_err(|number| format!("value {number} is no text, and arguments are JSON"));
                (command.clone(), default, None, input)
            }
            _ => return Ok(()),
        };
        let place = match input {
            Ok(input) => found(&mut command, self.plan).map(|()| input),
            Err(error) => Err(error),
        };
        let workdir = workdir.to_owned();
        match place {
            Err(error) => self.finish(channel, &go, Instant::now(), Err(error)),
            Ok(input) => {
                let job = Job::Run(Run::new(input));
                call.stage = Stage::Running(Box::new(Running::new(go, timeout_ms, job)));
                let exec = Exec { command, env: Vec::new(), workdir, terminal: None, window_bytes: 0 };
                self.control.send(Kind::Exec, channel, &exec)?;
                self.feed(channel)
            }
        }
    }

    /// What PID 1 says of a run. One that was given up says the rest to nobody.
    pub(super) fn run_said(&mut self, frame: Frame) -> Result<(), ToolsError> {
        let channel = frame.channel;
        let Some(Call { stage: Stage::Running(running), .. }) = self.calls.of_mut(channel) else {
            return Ok(());
        };
        let Job::Run(run) = &mut running.job else { return Ok(()) };
        if frame.kind == Kind::Stdout {
            let most = running.go.output_bytes_max.min(limits::TOOL_RESULT_BYTES_MAX);
            run.take(&frame.payload, most);
            return Ok(());
        }
        // PID 1's own words: their members are known, and a type for each costs more than it checks.
        let said: Value = frame.parse()?;
        let outcome = match frame.kind {
            Kind::Window => {
                let bytes = said.get("bytes").and_then(Value::as_u64).unwrap_or(0);
                run.window = run.window.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
                return self.feed(channel);
            }
            Kind::Failed => Err(said.get("error").and_then(Value::as_str).unwrap_or("it failed").to_owned()),
            _ => Ok(run.outcome(&said)),
        };
        let (go, began) = (running.go.clone(), running.began);
        self.finish(channel, &go, began, outcome)
    }

    /// Sends a run as much of its input as it takes.
    fn feed(&mut self, channel: u32) -> Result<(), ToolsError> {
        let Some(Call { stage: Stage::Running(running), .. }) = self.calls.of_mut(channel) else {
            return Ok(());
        };
        let Job::Run(run) = &mut running.job else { return Ok(()) };
        while let Some(piece) = run.piece(INPUT_BYTES) {
            self.control.send_data(Kind::Stdin, channel, &piece)?;
        }
        Ok(())
    }
}

/// Gives a program without a path the one that the agent's PATH leads to first.
fn found(command: &mut [String], plan: &Plan) -> Result<(), String> {
    let Some(program) = command.first_mut().filter(|program| !program.contains('/')) else { return Ok(()) };
    let path = plan.path().unwrap_or(PATH);
    let is_program = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
            && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    let places = path.split(':').filter(|directory| directory.starts_with('/'));
    let mut places = places.map(|directory| format!("{}/{program}", directory.trim_end_matches('/')));
    *program = places
        .find(|place| is_program(Path::new(place)))
        .ok_or_else(|| format!("`{program}` is in no directory of PATH ({path})"))?;
    Ok(())
}
