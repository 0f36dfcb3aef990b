//! The `zeropoint` command: arguments in, `zeropoint-pipeline` called, events and results shown.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this crate is the terminal's end of the program"
)]

mod args;
mod auto;
mod bench;
mod commands;
mod compare;
mod embed;
mod encode;
mod generate;
#[cfg(feature = "hub")]
mod push;
mod render;
mod report;
mod statistics;
mod sweep;
mod terminal;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use zeropoint_kernels::{Isa, keep_freed_memory};
use zeropoint_models::ModelError;
use zeropoint_pipeline::{Cancel, PipelineError};

use args::{Cli, Command};
use terminal::Terminal;

/// How the program ends, as the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    GateNotMet,
}

/// 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = Cli::parse();
    let terminal = Terminal::new(&cli.global);
    let cancel = Arc::new(Cancel::default());
    if let Err(error) = stop_on_signal(&cancel) {
        terminal.warn(&format!("Ctrl-C will end the program at once: {error}"));
    }
    match on_threads(&cli, &terminal, &cancel) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::GateNotMet) => ExitCode::from(3),
        Err(error) => {
            terminal.error(&error);
            match &error {
                error if error.is_cancelled() => ExitCode::from(INTERRUPTED),
                error if error.is_usage() => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Runs the command on a pool of the asked-for size; every parallel loop below it, candle's included, uses that pool.
fn on_threads(cli: &Cli, terminal: &Terminal, cancel: &Cancel) -> Result<Outcome, PipelineError> {
    Isa::active().map_err(ModelError::from)?;
    let mut pool = rayon::ThreadPoolBuilder::new();
    match cli.global.threads.as_slice() {
        [] => {}
        [threads] => pool = pool.num_threads(usize::from(*threads)),
        // Each combination that is measured has a pool of its own.
        _ if matches!(cli.command, Command::Bench(_)) => {}
        _ => {
            let reason = "one number is taken here; `zeropoint bench` takes several".to_owned();
            return Err(PipelineError::Option { option: "--threads", reason });
        }
    }
    let pool = pool.build().map_err(|error| PipelineError::Io {
        path: "threads".into(),
        source: std::io::Error::other(error),
    })?;
    pool.install(|| commands::execute(cli, terminal, cancel))
}

/// The first signal asks the run to stop and clean up; a second one ends the program where it is.
fn stop_on_signal(cancel: &Arc<Cancel>) -> Result<(), ctrlc::Error> {
    let cancel = Arc::clone(cancel);
    ctrlc::set_handler(move || {
        if cancel.is_requested() {
            #[expect(
                clippy::exit,
                reason = "the user asked twice; what is half-written is recognised as such later"
            )]
            std::process::exit(INTERRUPTED.into());
        }
        cancel.request();
    })
}
