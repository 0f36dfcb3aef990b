//! Progress, warnings and errors on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use zeropoint_pipeline::{Event, Events, PipelineError, Stage};

use crate::args::Global;

/// Standard error as this program uses it.
pub(crate) struct Terminal {
    quiet: bool,
    color: bool,
    bar: Mutex<Option<ProgressBar>>,
    live: bool,
}

impl Terminal {
    pub(crate) fn new(global: &Global) -> Self {
        let live = std::io::stderr().is_terminal();
        let color = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let level = match (global.quiet, global.verbose) {
            (true, _) => "error",
            (_, 0) => "warn",
            (_, 1) => "info",
            _ => "debug",
        };
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(color)
            .with_env_filter(EnvFilter::new(format!("zeropoint={level}")))
            .without_time()
            .init();
        Self { quiet: global.quiet, color, bar: Mutex::new(None), live }
    }

    /// A line for the reader, unless quiet.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            self.clear();
            eprintln!("{text}");
        }
    }

    /// The result itself, on standard output. A reader that has gone away, as `head` does, is no error.
    pub(crate) fn print(&self, text: &str) -> Result<(), PipelineError> {
        self.clear();
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(PipelineError::Io { path: "standard output".into(), source })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn warn(&self, text: &str) {
        if !self.quiet {
            self.clear();
            eprintln!("{}: {text}", self.paint("warning", "33"));
        }
    }

    pub(crate) fn error(&self, error: &PipelineError) {
        self.clear();
        let text = match error {
            // Without its own `error: `, which is painted here.
            PipelineError::Config(error) => error.render().trim_start_matches("error: ").to_owned(),
            other => other.to_string(),
        };
        eprintln!("{}: {}", self.paint("error", "31"), text.trim_end());
        if let (Some(hint), false) = (error.hint(), matches!(error, PipelineError::Config(_))) {
            eprintln!("{}: {hint}", self.paint("hint", "36"));
        }
    }

    fn paint(&self, word: &str, code: &str) -> String {
        if self.color { format!("\u{1b}[1;{code}m{word}\u{1b}[0m") } else { word.to_owned() }
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn progress(&self, done: u64, total: u64, message: String) {
        if self.quiet || !self.live {
            return;
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(message);
    }
}

impl Events for Terminal {
    fn event(&self, event: Event) {
        match event {
            Event::Started(stage) => {
                let line = match stage {
                    Stage::Load => "Loading the float model",
                    Stage::Calibrate => "Calibrating",
                    Stage::Quantize => "Quantising",
                    Stage::SelfCheck => "Checking the written model against the simulation",
                    Stage::Evaluate => "Evaluating original and quantised model",
                    Stage::Publish => "Writing card and reports",
                };
                self.say(line);
            }
            Event::Calibrated(progress) => self.progress(
                progress.done as u64,
                progress.total as u64,
                format!(
                    "samples, {:.0} samples/s, {:.0} tokens/s, {} left",
                    progress.samples_per_second(),
                    progress.tokens_per_second(),
                    indicatif::HumanDuration(Duration::from_secs(progress.time_left().as_secs()))
                ),
            ),
            Event::StatisticsReused => self.say("Calibration: statistics of an earlier run are reused"),
            Event::Quantized { done, total } => {
                self.progress(done as u64, total as u64, "Linears".to_owned());
            }
            Event::Evaluated { task, done, total } => {
                self.progress(done as u64, total as u64, format!("sequences of task {task}"));
            }
            Event::Warning(text) => self.warn(&text),
            _ => {}
        }
    }
}
