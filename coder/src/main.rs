//! Reads the settings, works, and ends with a code that says how it went.

use std::process::ExitCode;

use coder::settings::Settings;
use coder::work;

fn main() -> ExitCode {
    let settings = match Settings::read(|name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => {
            println!("coder: {error}");
            return ExitCode::from(2);
        }
    };
    match work::work(&settings, &mut |line| println!("coder: {line}")) {
        Ok(work::Ending::Verified) => ExitCode::SUCCESS,
        Ok(work::Ending::OutOfSteps) => ExitCode::from(1),
        Err(work::Failure::Provider(error)) => {
            println!("coder: the model: {error}");
            ExitCode::from(3)
        }
        Err(work::Failure::Tools(error)) => {
            println!("coder: {error}");
            ExitCode::from(4)
        }
    }
}
