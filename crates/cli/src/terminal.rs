//! Progress, warnings and errors on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use zeropoint_pipeline::{Event, Events, PipelineError, Stage};

use crate::args::Global;
use crate::report::{self, Style};

/// Standard error as this program uses it.
pub(crate) struct Terminal {
    quiet: bool,
    style: Style,
    bar: Mutex<Option<ProgressBar>>,
    live: bool,
    /// When a line of progress was last written where there is no bar.
    told: Mutex<Instant>,
}

/// Between two lines of progress in a log.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

impl Terminal {
    pub(crate) fn new(global: &Global) -> Self {
        let live = std::io::stderr().is_terminal();
        let style = Style {
            color: live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            unicode: live && speaks_utf8(|name| std::env::var(name).ok()),
        };
        let level = match (global.quiet, global.verbose) {
            (true, _) => "error",
            (_, 0) => "warn",
            (_, 1) => "info",
            _ => "debug",
        };
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(style.color)
            .with_env_filter(EnvFilter::new(format!("zeropoint={level}")))
            .without_time()
            .log_internal_errors(false)
            .init();
        Self { quiet: global.quiet, style, bar: Mutex::new(None), live, told: Mutex::new(Instant::now()) }
    }

    /// A line for the reader, unless quiet.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            self.clear();
            complain(format_args!("{text}\n"));
        }
    }

    /// The result itself, on standard output. A reader that has gone away, as `head` does, is no error.
    pub(crate) fn print(&self, text: &str) -> Result<(), PipelineError> {
        self.print_some(text).map(drop)
    }

    /// As [`Terminal::print`], for a part of the result; false when the reader has gone away.
    pub(crate) fn print_some(&self, text: &str) -> Result<bool, PipelineError> {
        self.clear();
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(source) => Err(PipelineError::Io { path: "standard output".into(), source }),
        }
    }

    pub(crate) fn warn(&self, text: &str) {
        if !self.quiet {
            self.clear();
            complain(format_args!("{}: {text}\n", self.paint("warning", "33")));
        }
    }

    pub(crate) fn error(&self, error: &PipelineError) {
        self.clear();
        complain(format_args!("{}", report::render(error, self.style)));
    }

    fn paint(&self, word: &str, code: &str) -> String {
        if self.style.color { format!("\u{1b}[1;{code}m{word}\u{1b}[0m") } else { word.to_owned() }
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn progress(&self, done: u64, total: u64, message: String) {
        self.show(done, total, message, "{bar:30} {pos}/{len} {msg}");
    }

    fn progress_bytes(&self, done: u64, total: u64, message: String) {
        self.show(done, total, message, "{bar:30} {decimal_bytes}/{decimal_total_bytes} {msg}");
        if done == total {
            self.clear();
        }
    }

    fn show(&self, done: u64, total: u64, message: String, template: &str) {
        if self.quiet {
            return;
        }
        if !self.live {
            if let Ok(mut told) = self.told.lock()
                && told.elapsed() >= BETWEEN_LINES
            {
                *told = Instant::now();
                complain(format_args!("{done}/{total} {message}\n"));
            }
            return;
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(message);
    }
}

/// Writes to standard error. Where nobody can be told, nobody is: the work goes on.
fn complain(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// Whether the locale of these variables of the environment is written in UTF-8; the first that is set decides.
fn speaks_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable).find(|value| !value.is_empty());
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.ends_with("utf-8") || locale.ends_with("utf8")
    })
}

impl Events for Terminal {
    fn event(&self, event: Event) {
        match event {
            Event::Started(stage) => {
                let line = match stage {
                    Stage::Load => "Loading the float model",
                    Stage::Calibrate => "Calibrating",
                    Stage::Sensitivity => "Quantising groups of Linears alone",
                    Stage::Quantize => "Quantising",
                    Stage::SelfCheck => "Checking the written model against the simulation",
                    Stage::Evaluate => "Evaluating original and quantised model",
                    Stage::Latency => "Measuring the latency of both",
                    Stage::Publish => "Writing card and reports",
                };
                self.say(line);
            }
            Event::Run { name, index, total } => self.say(&format!("Run {index} of {total}: {name}")),
            Event::RunReused { name } => self.say(&format!("{name} is there already, of the same config")),
            Event::Resumed { partial, next } => {
                self.say(&format!("Going on with the interrupted run in {}: {next}", partial.display()));
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
            Event::Measured { done, total } => {
                self.progress(done as u64, total as u64, "groups of Linears".to_owned());
            }
            Event::Quantized { done, total } => {
                self.progress(done as u64, total as u64, "Linears".to_owned());
            }
            Event::Propagated { done, total } => {
                self.progress(
                    done as u64,
                    total as u64,
                    "batches through what is quantised so far".to_owned(),
                );
            }
            Event::Advanced { original, done, total } => {
                let model = if original { "original" } else { "quantised model" };
                self.progress(
                    done as u64,
                    total as u64,
                    format!("batches through the blocks of the {model}"),
                );
            }
            Event::Evaluated { task, done, total } => {
                self.progress(done as u64, total as u64, format!("sequences of task {task}"));
            }
            Event::Embedded { done } => self.show(done, done, "lines".to_owned(), "{pos} {msg}, {per_sec}"),
            Event::Benched { done, total } => {
                self.progress(done as u64, total as u64, "combinations".to_owned());
            }
            Event::Fetching { what, files, bytes } => {
                let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
                self.say(&format!("Fetching {what}: {files}, {}", indicatif::DecimalBytes(bytes)));
            }
            Event::Downloaded { file, done, total } => self.progress_bytes(done, total, file),
            Event::Uploaded { done, total } => self.progress_bytes(done, total, "sent".to_owned()),
            Event::Waiting { seconds } => {
                self.say(&format!("The hub allows no more requests at the moment; waiting {seconds} s"));
            }
            Event::Warning(text) => self.warn(&text),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_locale_that_is_set_decides() {
        let cases: [(&[(&str, &str)], bool); 6] = [
            (&[], false),
            (&[("LANG", "en_GB.UTF-8")], true),
            (&[("LANG", "C.utf8")], true),
            (&[("LANG", "en_GB.UTF-8"), ("LC_ALL", "C")], false),
            (&[("LANG", "C"), ("LC_CTYPE", "de_DE.UTF-8")], true),
            (&[("LC_ALL", ""), ("LANG", "POSIX")], false),
        ];
        for (set, expected) in cases {
            let variable = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(speaks_utf8(variable), expected, "{set:?}");
        }
    }
}
