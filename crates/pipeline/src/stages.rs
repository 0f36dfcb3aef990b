//! The stages of a run in their order, each left out when the journal has it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeropoint_calibrator::{Begun, Observed};
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{Latency, Metric, Report, Timing};
use zeropoint_formats::staged::StagedDir;
use zeropoint_formats::{Checkpoint, write_file_atomically};
use zeropoint_models::Model;
use zeropoint_observer::{StatisticsFile, sqnr_db};
use zeropoint_runtime::QuantizedModel;

use crate::check::{layer_errors, self_check, simulate};
use crate::deploy::{MODEL_DIR, deploy, input_quantizer};
use crate::evaluate::{gates, measure};
use crate::events::{Cancel, Event, Events, Stage};
use crate::identity::{Identity, model_weights};
use crate::journal::{
    CheckpointDone, Cost, Done, Entry, Exact, Journal, LinearDone, ModelDone, StatisticsDone, TaskDone,
    WrittenFile,
};
use crate::report::{Findings, LayerFacts, build, card, details};
use crate::run::RunOptions;
use crate::statistics::{Origin, Pass, cached, keep, observe};
use crate::system::peak_memory;
use crate::{PipelineError, Prepared, bench, convert};

const STATISTICS: &str = "statistics.safetensors";

/// A run at work in its partial directory.
pub(crate) struct Work<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) options: &'a RunOptions,
    /// The file that `quantize` is given: no observing pass then, and no evaluation.
    pub(crate) statistics: Option<&'a Path>,
    pub(crate) events: &'a dyn Events,
    pub(crate) cancel: &'a Cancel,
    pub(crate) dir: PathBuf,
}

/// The model that a run makes.
struct MadeModel {
    /// By the index of the Linear in the description.
    layers: BTreeMap<usize, LayerFacts>,
    done: ModelDone,
    /// As it runs; `None` when it was made by an interrupted run and nothing has needed it yet.
    written: Option<QuantizedModel>,
}

/// The float model, loaded when a stage first needs it.
struct Float<'a> {
    work: &'a Work<'a>,
    loaded: OnceCell<(Model, f64)>,
}

impl Float<'_> {
    fn get(&self) -> Result<&Model, PipelineError> {
        if self.loaded.get().is_none() {
            let clock = Instant::now();
            let model = Model::load(&self.work.prepared.directory)?;
            let seconds = clock.elapsed().as_secs_f64();
            tracing::info!(seconds, "float model loaded");
            let _ = self.loaded.set((model, seconds));
        }
        Ok(&self.loaded.get().expect("it was set above").0)
    }

    fn seconds(&self) -> f64 {
        self.loaded.get().map_or(0.0, |(_, seconds)| *seconds)
    }
}

/// Whether a partial directory holds something to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Its journal has not been read: it may be another run's.
    Unknown,
    Nothing,
    Something,
}

impl Work<'_> {
    /// Runs what is not done yet and leaves a directory that is ready to be published.
    ///
    /// `progress` says, however this ends, whether anything is there to go on with.
    pub(crate) fn run(&self, staged: &StagedDir, progress: &mut Progress) -> Result<Report, PipelineError> {
        let (prepared, events) = (self.prepared, self.events);
        let clock = Instant::now();
        events.event(Event::Started(Stage::Load));
        let weights = model_weights(prepared)?;
        let origin = Origin::of(prepared, weights)?;
        let identity = Identity::of(prepared, Some(weights), self.statistics)?;
        let fingerprinted = clock.elapsed().as_secs_f64();
        let (mut journal, mut done) = Journal::open(&self.dir, &identity)?;
        if journal.has_entries {
            let latency = prepared.config.report.latency;
            let (partial, next) = (self.dir.clone(), done.next(self.task_count(), latency));
            events.event(Event::Resumed { partial, next });
        }
        let float = Float { work: self, loaded: OnceCell::new() };
        let report = staged.retain(|path| done.holds(path)).map_err(PipelineError::from).and_then(|()| {
            self.write("config.toml", prepared.config.to_toml())?;
            self.stages(&float, identity.model(), origin, &mut journal, &mut done, fingerprinted)
        });
        *progress = if journal.has_entries { Progress::Something } else { Progress::Nothing };
        report
    }

    fn stages(
        &self,
        float: &Float<'_>,
        model: Fingerprint,
        origin: Origin,
        journal: &mut Journal,
        done: &mut Done,
        fingerprinted: f64,
    ) -> Result<Report, PipelineError> {
        let prepared = self.prepared;
        let (statistics, statistics_done) = self.statistics(float, origin, journal, done)?;
        let MadeModel { layers, done: model_done, mut written } =
            self.model(float, &statistics, journal, done)?;
        let tasks = self.evaluation(float, &mut written, journal, done)?;
        let latency = self.latency(float, written)?;

        self.events.event(Event::Started(Stage::Publish));
        let costs =
            || [statistics_done.cost, model_done.cost].into_iter().chain(tasks.iter().map(|task| task.cost));
        let timing = Timing {
            load_s: fingerprinted + float.seconds(),
            calibrate_s: statistics_done.cost.seconds,
            quantize_s: model_done.cost.seconds,
            evaluate_s: tasks.iter().map(|task| task.cost.seconds).sum(),
            peak_rss_bytes: costs().map(|cost| cost.peak_rss_bytes).fold(peak_memory(), u64::max),
            threads: u32::try_from(rayon::current_num_threads()).ok(),
            ..Timing::default()
        };
        let metrics: Vec<Metric> = tasks.into_iter().flat_map(|task| task.metrics).collect();
        let output = Checkpoint::open(self.dir.join(MODEL_DIR))?;
        let report = build(
            prepared,
            Findings {
                model,
                statistics: &statistics,
                observed: statistics_done.observed,
                layers: &layers,
                output: &output,
                self_check: model_done.self_check,
                gates: if self.statistics.is_some() { Vec::new() } else { gates(prepared, &metrics) },
                metrics,
                latency,
                timing,
            },
        )?;
        self.write(&format!("{MODEL_DIR}/README.md"), report.to_model_card(card(prepared)))?;
        self.write("report.json", report.to_json())?;
        self.write("report.md", report.to_markdown())?;
        self.write("report.html", report.to_html(&details(prepared, &statistics, &layers)))?;
        if self.cancel.is_requested() {
            return Err(PipelineError::Cancelled);
        }
        Ok(report)
    }

    /// The statistics: from the journal, the file that was given, the cache, or the observing pass.
    fn statistics(
        &self,
        float: &Float<'_>,
        origin: Origin,
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<(StatisticsFile, StatisticsDone), PipelineError> {
        let path = self.dir.join(STATISTICS);
        let cache = &self.options.cache;
        if let Some(done) = done.statistics.take() {
            return Ok((StatisticsFile::load(&path)?, done));
        }
        let float = float.get()?;
        let clock = Instant::now();
        let given = self.statistics.map(|path| given_statistics(path, origin)).transpose()?;
        let at_hand = given.or_else(|| cached(self.prepared, origin, cache, self.events));
        let (file, observed, before) = if let Some(file) = at_hand {
            (file, false, Cost::default())
        } else {
            let checkpoint = done.checkpoint.take();
            let before = checkpoint.as_ref().map_or(Cost::default(), |done| done.cost);
            (self.observe(float, origin, checkpoint, journal)?, true, before)
        };
        file.save(&path)?;
        let written = WrittenFile::of(&self.dir, STATISTICS)?;
        let statistics = StatisticsDone { observed, file: written, cost: cost(clock, before) };
        journal.append(&Entry::Statistics(statistics.clone()))?;
        // Not earlier: a run that dies in between would find its own statistics there and take them for another's.
        if observed {
            keep(&file, origin, cache, self.events);
        }
        self.remove_checkpoints(None)?;
        tracing::info!(seconds = statistics.cost.seconds, observed, "statistics ready");
        Ok((file, statistics))
    }

    /// The observing pass, which keeps what it has seen now and then.
    fn observe(
        &self,
        model: &Model,
        origin: Origin,
        checkpoint: Option<CheckpointDone>,
        journal: &mut Journal,
    ) -> Result<StatisticsFile, PipelineError> {
        let (clock, of) = (Instant::now(), self.prepared.calibration.plan.batches().len());
        let (begun, before) = match checkpoint {
            None => (Begun::default(), Cost::default()),
            Some(CheckpointDone { batches, file, cost, .. }) => {
                let sites = StatisticsFile::load(self.dir.join(file.path))?.sites;
                let elapsed = Duration::try_from_secs_f64(cost.seconds).unwrap_or_default();
                (Begun { batches, sites, elapsed }, cost)
            }
        };
        let mut cadence = Cadence::new(self.prepared, begun.batches);
        let mut after_batch = |observed: &Observed<'_>| {
            if observed.batches == of || !cadence.is_due(observed.batches, observed.progress.tokens) {
                return Ok(());
            }
            let name = format!("calibration-{:08}.safetensors", observed.batches);
            let statistics = StatisticsFile { header: BTreeMap::new(), sites: observed.sites() };
            statistics.save(self.dir.join(&name))?;
            let file = WrittenFile::of(&self.dir, &name)?;
            let done = CheckpointDone { batches: observed.batches, of, file, cost: cost(clock, before) };
            journal.append(&Entry::Checkpoint(done))?;
            self.remove_checkpoints(Some(&name))
        };
        let pass = Pass { begun, ..Pass::whole(self.prepared) };
        observe(self.prepared, origin, model, pass, &mut after_batch, self.events, self.cancel)
    }

    /// Removes every checkpoint of the observing pass but one.
    fn remove_checkpoints(&self, but: Option<&str>) -> Result<(), PipelineError> {
        let io = |path: &Path, source| PipelineError::Io { path: path.to_owned(), source };
        for entry in std::fs::read_dir(&self.dir).map_err(|source| io(&self.dir, source))? {
            let entry = entry.map_err(|source| io(&self.dir, source))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("calibration-") && Some(name.as_str()) != but {
                std::fs::remove_file(entry.path()).map_err(|source| io(&entry.path(), source))?;
            }
        }
        Ok(())
    }

    /// The model, written and checked against its simulation, and what the report says of its layers. It is made as a whole:
    /// the check needs every quantised weight in memory, so that parts on the disk would be made again anyway.
    fn model(
        &self,
        float: &Float<'_>,
        statistics: &StatisticsFile,
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<MadeModel, PipelineError> {
        if let Some(done) = done.model.take() {
            return Ok(MadeModel { layers: self.facts(statistics, &done)?, done, written: None });
        }
        let (prepared, events) = (self.prepared, self.events);
        let float = float.get()?;
        let clock = Instant::now();
        events.event(Event::Started(Stage::Quantize));
        let dir = self.dir.join(MODEL_DIR);
        std::fs::create_dir(&dir).map_err(|source| PipelineError::Io { path: dir.clone(), source })?;
        let deployed = deploy(prepared, statistics, float.isa(), &dir, events, self.cancel)?;
        events.event(Event::Started(Stage::SelfCheck));
        let written = self.written()?;
        let simulated = simulate(prepared, float, &deployed)?;
        let self_check = self_check(prepared, &simulated, &written, &deployed)?;
        let errors = layer_errors(prepared, float, &simulated, &deployed)?;
        drop(simulated);
        let spec = prepared.directory.spec();
        let linears = deployed.iter().map(|(id, linear)| LinearDone {
            path: spec.linears[*id].path.clone(),
            bytes: linear.bytes,
            weight_sqnr_db: Exact(sqnr_db(linear.weight.signal, linear.weight.noise)),
            input_sqnr_db: errors.input_sqnr_db.get(id).copied().map(Exact),
            output_sqnr_db: errors.output_sqnr_db.get(id).copied().map(Exact),
            distribution: linear.distribution.clone(),
        });
        let model = ModelDone {
            linears: linears.collect(),
            self_check,
            files: WrittenFile::all_below(&self.dir, MODEL_DIR)?,
            cost: cost(clock, Cost::default()),
        };
        journal.append(&Entry::Model(model.clone()))?;
        tracing::info!(seconds = model.cost.seconds, linears = deployed.len(), "model written and checked");
        Ok(MadeModel { layers: self.facts(statistics, &model)?, done: model, written: Some(written) })
    }

    fn written(&self) -> Result<QuantizedModel, PipelineError> {
        let task = convert::task(self.prepared.config.model.task);
        Ok(QuantizedModel::load(&self.dir.join(MODEL_DIR), task)?)
    }

    /// What the journal says of each quantised Linear, with what the plan and the statistics say.
    fn facts(
        &self,
        statistics: &StatisticsFile,
        done: &ModelDone,
    ) -> Result<BTreeMap<usize, LayerFacts>, PipelineError> {
        let spec = self.prepared.directory.spec();
        let mut facts = BTreeMap::new();
        for (plan, scheme) in self.prepared.plan.quantized() {
            let linear = &spec.linears[plan.linear];
            // A Linear of the plan that the checkpoint does not hold is refused when the model is described.
            if let Some(done) = done.linears.iter().find(|done| done.path == linear.path) {
                let quantizer = input_quantizer(self.prepared, Some(statistics), linear, scheme)?;
                facts.insert(plan.linear, LayerFacts { scheme: *scheme, quantizer, done: done.clone() });
            }
        }
        Ok(facts)
    }

    /// Every task's metrics, in the order of the config. `written` is there afterwards, if a task has needed it.
    fn evaluation(
        &self,
        float: &Float<'_>,
        written: &mut Option<QuantizedModel>,
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<Vec<TaskDone>, PipelineError> {
        let mut tasks = Vec::with_capacity(self.task_count());
        let mut started = false;
        for (index, task) in self.prepared.tasks.iter().enumerate().take(self.task_count()) {
            if let Some(done) = done.tasks.remove(&index) {
                tasks.push(done);
                continue;
            }
            if !started {
                self.events.event(Event::Started(Stage::Evaluate));
                started = true;
            }
            let float = float.get()?;
            let clock = Instant::now();
            let model = match written {
                Some(model) => model,
                None => written.insert(self.written()?),
            };
            let metrics = measure(self.prepared, task, float, model, self.events, self.cancel)?;
            let task = TaskDone { index, metrics, cost: cost(clock, Cost::default()) };
            // JSON has no infinity: a task with one is measured again rather than changed.
            if task.metrics.iter().all(|metric| !has_infinity(metric)) {
                journal.append(&Entry::Task(task.clone()))?;
            }
            tracing::info!(seconds = task.cost.seconds, index, metrics = task.metrics.len(), "evaluated");
            tasks.push(task);
        }
        Ok(tasks)
    }

    /// How fast both models are, when the config asks for it. The journal keeps nothing of it: a run that goes on, maybe on
    /// another machine, measures anew.
    fn latency(
        &self,
        float: &Float<'_>,
        written: Option<QuantizedModel>,
    ) -> Result<Option<Latency>, PipelineError> {
        if !self.prepared.config.report.latency {
            return Ok(None);
        }
        self.events.event(Event::Started(Stage::Latency));
        let float = float.get()?;
        let model = match written {
            Some(model) => model,
            None => self.written()?,
        };
        let clock = Instant::now();
        let latency = bench::latency(&model, float, self.events, self.cancel)?;
        let seconds = clock.elapsed().as_secs_f64();
        tracing::info!(seconds, measurements = latency.rows.len(), "latency measured");
        Ok(Some(latency))
    }

    fn task_count(&self) -> usize {
        if self.statistics.is_some() { 0 } else { self.prepared.tasks.len() }
    }

    fn write(&self, name: &str, text: String) -> Result<(), PipelineError> {
        Ok(write_file_atomically(self.dir.join(name), text)?)
    }
}

/// The time since `clock` on top of what was spent before.
fn cost(clock: Instant, before: Cost) -> Cost {
    Cost {
        seconds: before.seconds + clock.elapsed().as_secs_f64(),
        peak_rss_bytes: before.peak_rss_bytes.max(peak_memory()),
    }
}

fn has_infinity(metric: &Metric) -> bool {
    [metric.original, metric.quantized, metric.delta, metric.stderr].into_iter().any(f64::is_infinite)
}

fn given_statistics(path: &Path, origin: Origin) -> Result<StatisticsFile, PipelineError> {
    let file = StatisticsFile::load(path)?;
    origin.check(&file, path)?;
    Ok(file)
}

/// When the observing pass keeps what it has seen: after so many batches, or sooner after so much work. Counted and not
/// timed, so that a run does the same things every time.
struct Cadence {
    operations_per_token: f64,
    /// Batches and tokens at the last checkpoint.
    last: (usize, usize),
}

impl Cadence {
    /// A few seconds of a small encoder.
    const BATCHES: usize = 64;
    /// About half a minute on two cores of a server processor.
    const OPERATIONS: f64 = 5e12;

    fn new(prepared: &Prepared, batches: usize) -> Self {
        let spec = prepared.directory.spec();
        let weights: usize = spec.towers.iter().map(|tower| spec.weights_per_row(tower)).sum();
        let set = &prepared.calibration;
        let before = set.plan.batches().iter().take(batches).flatten();
        let tokens = before.map(|&sample| set.inputs[sample].len()).sum();
        Self { operations_per_token: 2.0 * weights as f64, last: (batches, tokens) }
    }

    fn is_due(&mut self, batches: usize, tokens: usize) -> bool {
        let operations = (tokens - self.last.1) as f64 * self.operations_per_token;
        let due = batches - self.last.0 >= Self::BATCHES || operations >= Self::OPERATIONS;
        if due {
            self.last = (batches, tokens);
        }
        due
    }
}
