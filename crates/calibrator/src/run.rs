//! The observing pass: the f32 model over the calibration set, statistics out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeropoint_core::Fingerprint;
use zeropoint_kernels::Isa;
use zeropoint_models::{
    HiddenStates, Model, ModelDirectory, ModelError, ModelInput, ModelParts, PackedBatch, Site, SiteId,
    SiteSink,
};
use zeropoint_observer::{ActivationStatistics, SampleRows};

use crate::plan::{BatchPlan, CalibrationSet};

/// How far a calibration is. Of a model that is run part by part, all samples go through one part before any goes through the
/// next, and each part counts for its share of every sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationProgress {
    /// Samples done, of [`CalibrationProgress::total`].
    pub done: usize,
    /// Samples in all.
    pub total: usize,
    /// Tokens done.
    pub tokens: usize,
    /// Tokens in all.
    pub total_tokens: usize,
    /// Time since the first batch began.
    pub elapsed: Duration,
}

impl CalibrationProgress {
    /// Samples in a second so far.
    pub fn samples_per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Tokens in a second so far.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Time left at the pace so far, by tokens: batches differ in length.
    pub fn time_left(&self) -> Duration {
        let left = self.total_tokens.saturating_sub(self.tokens) as f64;
        Duration::try_from_secs_f64(left / self.tokens_per_second().max(1e-9)).unwrap_or(Duration::MAX)
    }
}

/// How a calibration ended.
#[derive(Debug)]
pub enum Calibrated {
    /// Statistics of every site the task runs, by [`zeropoint_models::Site::id`].
    Done(BTreeMap<String, ActivationStatistics>),
    /// The progress callback asked to stop.
    Cancelled,
}

/// What of an observing pass was done before it was interrupted.
#[derive(Debug, Clone, Default)]
pub struct Begun {
    /// Parts of the model that all batches went through.
    pub parts: usize,
    /// Batches of the plan that went through the next part, from the first one on; 0 after the first part.
    pub batches: usize,
    /// Statistics of every site after them; nothing before the first batch.
    pub sites: BTreeMap<String, ActivationStatistics>,
    /// Where [`Observed::save_states`] has put the hidden states, after the first part.
    pub states: Option<PathBuf>,
    /// Time that they took.
    pub elapsed: Duration,
}

impl Begun {
    fn is_nothing(&self) -> bool {
        (self.parts, self.batches) == (0, 0)
    }
}

/// Where hidden states are between two parts of a model.
#[derive(Debug, Clone, Copy)]
pub struct Room<'a> {
    /// Bytes that may be in memory.
    pub memory: u64,
    /// Where a file is made for the rest.
    pub dir: &'a Path,
}

/// An observing pass between two batches.
pub struct Observed<'a> {
    /// How far it is.
    pub progress: CalibrationProgress,
    /// Parts of the model that are done.
    pub parts: usize,
    /// Batches that went through the next one.
    pub batches: usize,
    sites: (&'a [Site], &'a [ActivationStatistics]),
    states: &'a mut HiddenStates,
}

impl Observed<'_> {
    /// A copy of the statistics so far, by [`Site::id`].
    pub fn sites(&self) -> BTreeMap<String, ActivationStatistics> {
        let (sites, statistics) = self.sites;
        sites.iter().map(|site| site.id.clone()).zip(statistics.iter().cloned()).collect()
    }

    /// Writes the hidden states of all batches, with which a pass goes on after whole parts.
    pub fn save_states(&mut self, path: &Path) -> Result<(), ModelError> {
        self.states.save(path)
    }
}

/// Runs the float model over the set and collects statistics of every site. `progress` is called after each batch and
/// may end the pass.
///
/// Batches run one after the other, each on all threads; counts, ranges and histograms merge exactly, so the result
/// does not depend on the number of threads.
pub fn calibrate(
    model: &Model,
    set: &CalibrationSet,
    progress: &mut dyn FnMut(CalibrationProgress) -> ControlFlow<()>,
) -> Result<Calibrated, ModelError> {
    calibrate_batches(model, set, &set.plan, progress)
}

/// As [`calibrate`], with some batches of the set only, such as those of a [shard](CalibrationSet::shard). Without any
/// batch every site has empty statistics.
pub fn calibrate_batches(
    model: &Model,
    set: &CalibrationSet,
    plan: &BatchPlan,
    progress: &mut dyn FnMut(CalibrationProgress) -> ControlFlow<()>,
) -> Result<Calibrated, ModelError> {
    let room = Room { memory: u64::MAX, dir: Path::new("") };
    calibrate_from(model, set, plan, Begun::default(), room, &mut |observed| progress(observed.progress))
}

/// As [`calibrate_batches`], with a model that may be run part by part, from where an earlier pass over the same batches with
/// the same model was interrupted. The result is that of an uninterrupted pass of the whole model to the bit. `after_batch`
/// may keep what is done so far, or end the pass.
///
/// Refused: a beginning that is not of this model and these batches.
pub fn calibrate_from(
    model: &dyn ModelParts,
    set: &CalibrationSet,
    plan: &BatchPlan,
    mut begun: Begun,
    room: Room<'_>,
    after_batch: &mut dyn FnMut(&mut Observed<'_>) -> ControlFlow<()>,
) -> Result<Calibrated, ModelError> {
    let (spec, parts) = (model.spec(), model.parts());
    let batches = plan.batches();
    let is_known = begun.parts < parts.len() && begun.batches <= batches.len() || begun.is_nothing();
    let nothing = begun.is_nothing();
    let mut take = |site: &Site| {
        if nothing {
            return Ok(ActivationStatistics::new(site.channels));
        }
        let found = begun.sites.remove(&site.id);
        found.filter(|found| found.channels() == site.channels && is_known).ok_or_else(|| {
            let reason = "is not in the statistics that the pass was to go on with".to_owned();
            ModelError::Site { site: site.id.clone(), reason }
        })
    };
    let sites = spec.sites.iter().map(&mut take).collect::<Result<_, _>>()?;
    let (by_token, by_sample) = (Vec::new(), Vec::new());
    let mut sink = StatisticsSink { isa: Isa::active()?, sites, by_token, by_sample, even: false };
    let mut states = HiddenStates::new(batches.len(), room.memory, room.dir);
    if begun.parts > 0 {
        let path = begun.states.as_deref().ok_or_else(|| ModelError::Sample {
            reason: "the pass was to go on without the hidden states of its samples".to_owned(),
        })?;
        states.load(path, &offsets(set, batches), spec.towers[0].hidden)?;
    }
    let mut steps = Steps::new(set, plan, parts.len(), &begun);
    let mut first = begun.batches;
    for (at, &part) in parts.iter().enumerate().skip(begun.parts) {
        let loaded = model.load(part)?;
        for (index, indices) in batches.iter().enumerate().skip(std::mem::take(&mut first)) {
            let batch = PackedBatch::new(indices.iter().map(|&i| &set.inputs[i]))?;
            sink.begin(indices.iter().map(|&i| (i, &set.inputs[i])));
            states.update(index, |state| loaded.observe(&batch, state, &mut sink))?;
            let progress = steps.next(&batch);
            tracing::debug!(%part, batch = index, "batch observed");
            let is_last = index + 1 == batches.len();
            let mut observed = Observed {
                progress,
                parts: at + usize::from(is_last),
                batches: if is_last { 0 } else { index + 1 },
                sites: (&spec.sites, &sink.sites),
                states: &mut states,
            };
            if after_batch(&mut observed).is_break() {
                return Ok(Calibrated::Cancelled);
            }
        }
    }
    let named = spec.sites.iter().map(|site| site.id.clone()).zip(sink.sites);
    Ok(Calibrated::Done(named.collect()))
}

/// First row of each sample of each batch, and the number of rows at the end. Only texts are run part by part.
fn offsets(set: &CalibrationSet, batches: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let of_batch = |batch: &Vec<usize>| {
        let mut offsets = vec![0];
        for &i in batch {
            offsets.push(offsets[offsets.len() - 1] + set.inputs[i].len());
        }
        offsets
    };
    batches.iter().map(of_batch).collect()
}

/// Counts what is done, in samples and tokens times parts.
struct Steps {
    parts: usize,
    samples: usize,
    tokens: usize,
    total: usize,
    total_tokens: usize,
    before: Duration,
    clock: Instant,
}

impl Steps {
    fn new(set: &CalibrationSet, plan: &BatchPlan, parts: usize, begun: &Begun) -> Self {
        let (total, total_tokens) = (plan.samples(), set.tokens_in(plan));
        let done = plan.batches().iter().take(begun.batches).flatten();
        let (samples, tokens) = done.fold((0, 0), |(n, tokens), &i| (n + 1, tokens + set.inputs[i].len()));
        Self {
            parts,
            samples: begun.parts * total + samples,
            tokens: begun.parts * total_tokens + tokens,
            total,
            total_tokens,
            before: begun.elapsed,
            clock: Instant::now(),
        }
    }

    fn next(&mut self, batch: &PackedBatch) -> CalibrationProgress {
        self.samples += batch.len();
        self.tokens += batch.tokens();
        CalibrationProgress {
            done: self.samples / self.parts,
            total: self.total,
            tokens: self.tokens / self.parts,
            total_tokens: self.total_tokens,
            elapsed: self.before + self.clock.elapsed(),
        }
    }
}

struct StatisticsSink {
    isa: Isa,
    sites: Vec<ActivationStatistics>,
    /// The samples of the batch with a row for each token.
    by_token: Vec<SampleRows>,
    /// The same with one row each.
    by_sample: Vec<SampleRows>,
    /// Whether they are images, which have the same number of rows at any site.
    even: bool,
}

impl StatisticsSink {
    /// Notes the samples of the next batch with their numbers.
    fn begin<'a>(&mut self, samples: impl Iterator<Item = (usize, &'a ModelInput)> + Clone) {
        self.even = samples.clone().all(|(_, input)| matches!(input, ModelInput::Image(_)));
        // A set of 2^32 samples does not fit in memory.
        let rows = |(i, input): (usize, &ModelInput)| SampleRows { sample: i as u32, rows: input.len() };
        self.by_token = samples.map(rows).collect();
        self.by_sample = self.by_token.iter().map(|sample| SampleRows { rows: 1, ..*sample }).collect();
    }

    /// Of which samples the rows of a site are: each has one for each token, or one after pooling; an image has its
    /// share. Other rows belong to no known sample.
    fn samples(&self, rows: usize) -> Vec<SampleRows> {
        let tokens: usize = self.by_token.iter().map(|sample| sample.rows).sum();
        if self.even && rows.is_multiple_of(self.by_sample.len().max(1)) {
            let rows = rows / self.by_sample.len().max(1);
            self.by_sample.iter().map(|sample| SampleRows { rows, ..*sample }).collect()
        } else if rows == tokens {
            self.by_token.clone()
        } else if rows == self.by_sample.len() {
            self.by_sample.clone()
        } else {
            Vec::new()
        }
    }
}

impl SiteSink for StatisticsSink {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        let samples = self.samples(values.len().checked_div(channels).unwrap_or(0));
        self.sites[site].observe_samples(self.isa, values, &samples).map_err(|error| error.to_string())
    }

    fn observe_expert(
        &mut self,
        site: SiteId,
        values: &[f32],
        channels: usize,
        routed: usize,
    ) -> Result<(), String> {
        let samples = self.samples(values.len().checked_div(channels).unwrap_or(0));
        self.sites[site]
            .observe_expert(self.isa, values, &samples, routed as u64)
            .map_err(|error| error.to_string())
    }
}

/// Identifies what the statistics of a model depend on beside the data: its weights, its description, and the code
/// that ran it.
///
/// `weights` is the checkpoint's content fingerprint, which takes a reading of all weights to find.
pub fn graph_fingerprint(directory: &ModelDirectory, weights: Fingerprint, isa: Isa) -> Fingerprint {
    Fingerprint::builder("graph")
        .field("weights", weights.to_string())
        .field("spec", format!("{:?}", directory.spec()))
        .field("isa", isa.to_string())
        .field("version", env!("CARGO_PKG_VERSION"))
        .finish()
}
