//! The stage that observes: statistics of the graphs that a run needs, from the journal, a file, the cache or a pass.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use zeropoint_calibrator::{BatchPlan, Begun, Observed};
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::PassTime;
use zeropoint_models::{FloatParts, ModelParts};
use zeropoint_observer::StatisticsFile;

use super::{Work, cost};
use crate::cadence::Cadence;
use crate::header::samples_and_tokens;
use crate::journal::{CheckpointDone, Cost, Done, Entry, Journal, StatisticsDone, WrittenFile};
use crate::statistics::{Origin, Pass, cached, keep, observe};
use crate::{PipelineError, Prepared};

const STATISTICS: &str = "statistics.safetensors";
/// Those of the original, from which the factors of transforms are chosen, where the transformed model is observed too.
pub(super) const UNTRANSFORMED: &str = "statistics-original.safetensors";

/// A pass over calibration samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observing {
    /// The only one, or that of the transformed model.
    Last,
    /// Of the original, another follows.
    First,
}

impl Observing {
    fn plan(self, prepared: &Prepared) -> &BatchPlan {
        match self {
            Self::First => prepared.first_pass(),
            Self::Last => prepared.last_pass(),
        }
    }
}

/// What the observing passes gave.
pub(super) struct Observations {
    /// Of the model that is quantised.
    pub(super) statistics: StatisticsFile,
    /// How many samples the original was observed on for the factors of transforms, where these have any.
    pub(super) factor_samples: Option<u64>,
    /// With the time of all of them.
    pub(super) done: StatisticsDone,
    /// How many this run has made.
    pub(super) passes: u32,
    /// Those with their seconds.
    pub(super) times: Vec<(&'static str, f64)>,
}

/// What passes over the calibration data are for.
const OF_ORIGINAL: &str = "observing the original";
const OF_TRANSFORMED: &str = "observing the model with its transforms";
const ROUNDING: &str = "making each block for what the blocks before give, which takes the data through it in floats and in integers";

impl Work<'_> {
    /// The statistics of the model that is quantised, and the factors of its transforms settled.
    ///
    /// Factors come from statistics of the original, and static ranges from those of the model with its transforms: then there are
    /// two passes, the first of them over no more samples. What a dynamic scheme reports is seen in the first.
    pub(super) fn all_statistics(
        &self,
        float: &FloatParts<'_>,
        transformed: &FloatParts<'_>,
        weights: Option<Fingerprint>,
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<Observations, PipelineError> {
        let prepared = self.prepared;
        let only = |what: &'static str, (statistics, done): (StatisticsFile, StatisticsDone)| {
            let times = if done.observed { vec![(what, done.cost.seconds)] } else { Vec::new() };
            Observations { statistics, factor_samples: None, passes: u32::from(done.observed), times, done }
        };
        let origin = weights.map(|weights| Origin::of(prepared, weights)).transpose()?;
        let Some(graph) = &prepared.transformed else {
            return Ok(only(OF_ORIGINAL, self.statistics(float, origin, Observing::Last, journal, done)?));
        };
        let of_graph = || weights.map(|weights| Origin::of_graph(prepared, weights)).transpose();
        if !graph.plan.needs_statistics() {
            let found = self.statistics(transformed, of_graph()?, Observing::Last, journal, done)?;
            return Ok(only(OF_TRANSFORMED, found));
        }
        if !prepared.plan.needs_statistics() {
            let found = self.statistics(float, origin, Observing::Last, journal, done)?;
            graph.settle(prepared, float, &found.0, self.cancel)?;
            let factor_samples = samples_and_tokens(&found.0).map(|[samples, _]| samples);
            return Ok(Observations { factor_samples, ..only(OF_ORIGINAL, found) });
        }
        let (first, first_done) = self.statistics(float, origin, Observing::First, journal, done)?;
        graph.settle(prepared, float, &first, self.cancel)?;
        let factor_samples = samples_and_tokens(&first).map(|[samples, _]| samples);
        drop(first);
        let (statistics, mut last) =
            self.statistics(transformed, of_graph()?, Observing::Last, journal, done)?;
        let both = [(OF_ORIGINAL, &first_done), (OF_TRANSFORMED, &last)];
        let times: Vec<(&'static str, f64)> = both
            .iter()
            .filter(|(_, done)| done.observed)
            .map(|(what, done)| (*what, done.cost.seconds))
            .collect();
        last.cost.seconds += first_done.cost.seconds;
        last.cost.peak_rss_bytes = last.cost.peak_rss_bytes.max(first_done.cost.peak_rss_bytes);
        let passes = u32::from(first_done.observed) + u32::from(last.observed);
        Ok(Observations { statistics, factor_samples, done: last, passes, times })
    }

    /// Each pass of the calibration data through the model, for the report.
    pub(super) fn pass_times(&self, observed: Vec<(&'static str, f64)>, model: Cost) -> Vec<PassTime> {
        let rounding = self.prepared.is_sequential().then_some((ROUNDING, model.seconds));
        let all = observed.into_iter().chain(rounding);
        all.map(|(what, seconds)| PassTime { what: what.to_owned(), seconds }).collect()
    }

    /// The statistics of a model: from the journal, the file that was given, the cache, or the observing pass.
    fn statistics(
        &self,
        float: &FloatParts<'_>,
        origin: Option<Origin>,
        observing: Observing,
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<(StatisticsFile, StatisticsDone), PipelineError> {
        let (name, known) = match observing {
            Observing::Last => (STATISTICS, &mut done.statistics),
            Observing::First => (UNTRANSFORMED, &mut done.untransformed),
        };
        let path = self.dir.join(name);
        let cache = &self.options.cache;
        if let Some(done) = known.take() {
            return Ok((StatisticsFile::load(&path)?, done));
        }
        let clock = Instant::now();
        let Some(origin) = origin else {
            let file = StatisticsFile { header: BTreeMap::new(), sites: BTreeMap::new() };
            let done =
                self.statistics_done(&file, observing, false, cost(clock, Cost::default()), journal)?;
            return Ok((file, done));
        };
        // What is given is of the first pass.
        let is_first = observing == Observing::First || self.prepared.observing_passes() < 2;
        let given = self.statistics.filter(|_| is_first);
        let given = given.map(|path| given_statistics(self.prepared, path, origin)).transpose()?;
        let at_hand = given.or_else(|| cached(self.prepared, origin, cache, self.events));
        let (file, observed, before) = if let Some(file) = at_hand {
            (file, false, Cost::default())
        } else {
            let checkpoint = done.checkpoint.take();
            let before = checkpoint.as_ref().map_or(Cost::default(), |done| done.cost);
            (self.observe(float, origin, observing.plan(self.prepared), checkpoint, journal)?, true, before)
        };
        let statistics = self.statistics_done(&file, observing, observed, cost(clock, before), journal)?;
        // Not earlier: a run that dies in between would find its own statistics there and take them for another's.
        if observed {
            keep(&file, origin, cache, self.events);
        }
        self.remove_but("calibration-", &[])?;
        tracing::info!(seconds = statistics.cost.seconds, observed, "statistics ready");
        Ok((file, statistics))
    }

    fn statistics_done(
        &self,
        file: &StatisticsFile,
        observing: Observing,
        observed: bool,
        cost: Cost,
        journal: &mut Journal,
    ) -> Result<StatisticsDone, PipelineError> {
        let name = if observing == Observing::First { UNTRANSFORMED } else { STATISTICS };
        file.save(self.dir.join(name))?;
        let written = WrittenFile::of(&self.dir, name)?;
        let statistics = StatisticsDone { observed, file: written, cost };
        journal.append(&match observing {
            Observing::First => Entry::Untransformed(statistics.clone()),
            Observing::Last => Entry::Statistics(statistics.clone()),
        })?;
        Ok(statistics)
    }

    /// The observing pass, which keeps what it has seen now and then.
    fn observe(
        &self,
        model: &FloatParts<'_>,
        origin: Origin,
        plan: &BatchPlan,
        checkpoint: Option<CheckpointDone>,
        journal: &mut Journal,
    ) -> Result<StatisticsFile, PipelineError> {
        let (clock, of_batches) = (Instant::now(), plan.batches().len());
        let of_parts = model.parts().len();
        let (begun, before) = match checkpoint {
            None => (Begun::default(), Cost::default()),
            Some(CheckpointDone { parts, batches, file, states, cost, .. }) => {
                let sites = StatisticsFile::load(self.dir.join(file.path))?.sites;
                let states = states.map(|file| self.dir.join(file.path));
                let elapsed = Duration::try_from_secs_f64(cost.seconds).unwrap_or_default();
                (Begun { parts, batches, sites, states, elapsed }, cost)
            }
        };
        let mut cadence = Cadence::new(self.prepared, plan, of_parts, &begun);
        let mut after_batch = |observed: &mut Observed<'_>| {
            let (parts, batches) = (observed.parts, observed.batches);
            // Hidden states are at one place between two parts only.
            let between = batches == 0 || of_parts == 1;
            if parts == of_parts || !between || !cadence.is_due(parts, batches, observed.progress.tokens) {
                return Ok(());
            }
            let name = format!("calibration-{parts:05}-{batches:08}.safetensors");
            let statistics = StatisticsFile { header: BTreeMap::new(), sites: observed.sites() };
            statistics.save(self.dir.join(&name))?;
            let file = WrittenFile::of(&self.dir, &name)?;
            let states = if parts == 0 {
                None
            } else {
                let name = format!("calibration-states-{parts:05}.safetensors");
                observed.save_states(&self.dir.join(&name))?;
                Some(WrittenFile::of(&self.dir, &name)?)
            };
            let kept: Vec<String> =
                [Some(&file), states.as_ref()].into_iter().flatten().map(|file| file.path.clone()).collect();
            let cost = cost(clock, before);
            let done = CheckpointDone { parts, of_parts, batches, of_batches, file, states, cost };
            journal.append(&Entry::Checkpoint(done))?;
            self.remove_but("calibration-", &kept)
        };
        let pass = Pass { begun, ..Pass::whole(plan, self.room()) };
        observe(self.prepared, origin, model, pass, &mut after_batch, self.events, self.cancel)
    }
}

/// Those of the whole set do where a part of it would.
fn given_statistics(
    prepared: &Prepared,
    path: &Path,
    origin: Origin,
) -> Result<StatisticsFile, PipelineError> {
    let file = StatisticsFile::load(path)?;
    match origin.of_all(prepared).check(&file, path) {
        Err(PipelineError::ForeignStatistics { .. }) => origin.check(&file, path)?,
        checked => checked?,
    }
    Ok(file)
}
