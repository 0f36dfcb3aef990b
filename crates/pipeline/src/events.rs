//! What a run tells while it works, and how it is told to stop.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use zeropoint_calibrator::CalibrationProgress;

/// The stages of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading the float model.
    Load,
    /// Observing activations.
    Calibrate,
    /// Quantising groups of Linears alone, to see what each costs.
    Sensitivity,
    /// Quantising weights and writing the model.
    Quantize,
    /// Loading the result back and running it beside the simulation.
    SelfCheck,
    /// Measuring both models.
    Evaluate,
    /// Measuring how fast both models are, when the config asks for it.
    Latency,
    /// Card, reports, and the directory's final name.
    Publish,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load",
            Self::Calibrate => "calibrate",
            Self::Sensitivity => "sensitivity",
            Self::Quantize => "quantize",
            Self::SelfCheck => "self-check",
            Self::Evaluate => "evaluate",
            Self::Latency => "latency",
            Self::Publish => "publish",
        })
    }
}

/// Something worth showing.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// What an interrupted run has left is gone on with.
    Resumed {
        /// Where it lies.
        partial: PathBuf,
        /// What comes next, such as `calibration, batch 65 of 188`.
        next: String,
    },
    /// A run of several begins.
    Run {
        /// What it is called.
        name: String,
        /// Which it is, from 1 on.
        index: usize,
        /// Of how many.
        total: usize,
    },
    /// A run of several was there already.
    RunReused {
        /// What it is called.
        name: String,
    },
    /// A stage begins.
    Started(Stage),
    /// A batch of the observing pass is done.
    Calibrated(CalibrationProgress),
    /// Statistics were found in the cache; the observing pass is left out.
    StatisticsReused,
    /// A Linear has been quantised and written.
    Quantized {
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// A group of Linears was quantised alone, in each of its schemes.
    Measured {
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// A batch of the calibration set is through a part of the model that is quantised for what it is given: once in floats, once as
    /// it was written.
    Propagated {
        /// Batches that are through, two for each part.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// A batch of a task is through a part of a model that is run part by part; what it gives comes behind the last part, as
    /// [`Event::Evaluated`].
    Advanced {
        /// Whether the model is the original.
        original: bool,
        /// Batches that are through, one for each part.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Sequences of a task are done on both models.
    Evaluated {
        /// The task.
        task: String,
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Lines have been embedded.
    Embedded {
        /// How many so far; how many there are is not known.
        done: u64,
    },
    /// A combination of threads, batch and tokens has been measured.
    Benched {
        /// How many are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// Files of the hub are about to be downloaded.
    Fetching {
        /// The repository and its commit.
        what: String,
        /// How many files are missing in the cache.
        files: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// Bytes of a file are there.
    Downloaded {
        /// Its path in the repository.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// The hub asked for a pause.
    Waiting {
        /// How long, in seconds.
        seconds: u64,
    },
    /// Bytes of a push are sent.
    Uploaded {
        /// Bytes so far, of all files.
        done: u64,
        /// Bytes of all files.
        total: u64,
    },
    /// Something that works but that the user should know.
    Warning(String),
}

/// Receives events. Called from the thread that runs the pipeline.
pub trait Events: Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// Events to nowhere.
impl Events for () {
    fn event(&self, _event: Event) {}
}

/// A request to stop, made from another thread or a signal handler.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    /// Nothing has been asked for.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Asks the run to stop at the next batch or layer.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether stopping has been asked for.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
