//! The stages of a run in their order, each left out when the journal has it.

mod observing;
mod sensitivity;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use zeropoint_calibrator::Room;
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{Latency, Metric, Report, SelfCheck, Timing};
use zeropoint_formats::staged::StagedDir;
use zeropoint_formats::{Checkpoint, write_file_atomically};
use zeropoint_kernels::Isa;
use zeropoint_models::{FloatParts, Model, ModelParts, Part, PartModel};
use zeropoint_observer::{StatisticsFile, sqnr_db};
use zeropoint_runtime::{QuantizedModel, QuantizedParts};

use crate::check::{LayerErrors, PartCheck, unrun_linears};
use crate::deploy::{Deployment, MODEL_DIR, input_quantizer};
use crate::evaluate::{Original, gates, measure};
use crate::events::{Cancel, Event, Events, Stage};
use crate::experts::{expert_rows, unused_warning};
use crate::identity::{Identity, model_weights};
use crate::journal::{
    Cost, Done, Entry, Exact, Journal, LinearDone, ModelDone, PartDone, TaskDone, WrittenFile,
};
use crate::kept::KeptOutputs;
use crate::report::{Findings, LayerFacts, build, card, details};
use crate::run::RunOptions;
use crate::sequence::{PartInputs, Sequence};
use crate::streamed::Streamed;
use crate::system::peak_memory;
use crate::{PipelineError, Prepared, bench, convert};

use observing::{Observations, UNTRANSFORMED};

/// What the names of files begin with that hold how far the samples of the self-check are.
const PROBES: &str = "self-check-";

/// A run at work in its partial directory.
pub(crate) struct Work<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) options: &'a RunOptions,
    /// The file that `quantize` is given: no first observing pass then, and no evaluation.
    pub(crate) statistics: Option<&'a Path>,
    /// What the runs of a sweep keep of the original.
    pub(crate) kept: Option<&'a KeptOutputs>,
    pub(crate) events: &'a dyn Events,
    pub(crate) cancel: &'a Cancel,
    pub(crate) dir: PathBuf,
}

/// The model that a run makes.
struct MadeModel {
    /// By the index of the Linear in the description.
    layers: BTreeMap<usize, LayerFacts>,
    self_check: Option<SelfCheck>,
    cost: Cost,
    /// As it runs.
    written: QuantizedParts,
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
        // Without statistics nothing asks for the weights before they are quantised: they are read once.
        // Those of a transformed model are read in another form.
        let calibrates = self.statistics.is_some()
            || !prepared.calibration.inputs.is_empty()
            || prepared.transformed.is_some();
        let weights = calibrates.then(|| model_weights(prepared)).transpose()?;
        let identity = Identity::of(prepared, weights, self.statistics)?;
        let fingerprinted = clock.elapsed().as_secs_f64();
        let (mut journal, mut done) = Journal::open(&self.dir, &identity)?;
        if journal.has_entries {
            let latency = prepared.config.report.latency;
            let (partial, next) = (self.dir.clone(), done.next(self.task_count(), latency));
            events.event(Event::Resumed { partial, next });
        }
        let float = FloatParts::new(&prepared.directory, self.options.memory.whole())?;
        let report = staged.retain(|path| done.holds(path)).map_err(PipelineError::from).and_then(|()| {
            self.write("config.toml", prepared.config.to_toml())?;
            self.stages(&float, &identity, weights, &mut journal, &mut done, fingerprinted)
        });
        *progress = if journal.has_entries { Progress::Something } else { Progress::Nothing };
        report
    }

    fn stages(
        &self,
        float: &FloatParts<'_>,
        identity: &Identity,
        weights: Option<Fingerprint>,
        journal: &mut Journal,
        done: &mut Done,
        fingerprinted: f64,
    ) -> Result<Report, PipelineError> {
        let prepared = self.prepared;
        let clock = Instant::now();
        if !float.is_split() && done.model.is_none() {
            // So that its time counts as loading.
            float.load(Part::Whole)?;
        }
        let loaded = clock.elapsed().as_secs_f64();
        let transformed;
        let graph = match &prepared.transformed {
            None => float,
            Some(graph) => {
                transformed = FloatParts::new(&graph.directory, self.options.memory.whole())?;
                &transformed
            }
        };
        // What is rounded for its inputs goes part by part, whatever the memory.
        let sequential;
        let quantized_by = if self.prepared.is_sequential() {
            sequential = FloatParts::new(prepared.graph(), 0)?;
            &sequential
        } else {
            graph
        };
        let Observations { statistics, factor_samples, done: statistics_done, passes, times } =
            self.all_statistics(float, graph, weights, journal, done)?;
        let unused = unused_warning(&expert_rows(prepared.graph().spec(), &statistics));
        if let Some(warning) = unused {
            self.events.event(Event::Warning(warning));
        }
        let (made, sources) = self.model(quantized_by, &statistics, journal, done)?;
        let MadeModel { layers, self_check, cost: model_cost, written } = made;
        let weights = match weights {
            Some(_) => None,
            None => Some(self.prepared.directory.checkpoint().fingerprint_of(&sources)?),
        };
        let model = identity.model(weights);
        let tasks = self.evaluation(float, model, &written, journal, done)?;
        drop(written);
        let latency = self.latency(float)?;
        let sensitivity = self.sensitivity(graph, model, &statistics)?;

        self.events.event(Event::Started(Stage::Publish));
        let costs =
            || [statistics_done.cost, model_cost].into_iter().chain(tasks.iter().map(|task| task.cost));
        let timing = Timing {
            load_s: fingerprinted + loaded,
            calibrate_s: statistics_done.cost.seconds,
            quantize_s: model_cost.seconds,
            // The sum of nothing is -0.
            evaluate_s: tasks.iter().fold(0.0, |sum, task| sum + task.cost.seconds),
            peak_rss_bytes: costs().map(|cost| cost.peak_rss_bytes).fold(peak_memory(), u64::max),
            threads: u32::try_from(rayon::current_num_threads()).ok(),
            passes: self.pass_times(times, model_cost),
            ..Timing::default()
        };
        let metrics: Vec<Metric> = tasks.into_iter().flat_map(|task| task.metrics).collect();
        let output = Checkpoint::open(self.dir.join(MODEL_DIR))?;
        let report = build(
            prepared,
            Findings {
                model,
                statistics: &statistics,
                factor_samples,
                passes,
                layers: &layers,
                output: &output,
                self_check,
                gates: if self.statistics.is_some() { Vec::new() } else { gates(prepared, &metrics) },
                metrics,
                latency,
                sensitivity,
                timing,
            },
        )?;
        self.write(&format!("{MODEL_DIR}/README.md"), report.to_model_card(card(prepared)))?;
        self.write("report.json", report.to_json())?;
        self.write("report.md", report.to_markdown())?;
        let before = self.dir.join(UNTRANSFORMED);
        let before = before.is_file().then(|| StatisticsFile::load(&before)).transpose()?;
        self.write("report.html", report.to_html(&details(prepared, &statistics, before.as_ref(), &layers)))?;
        if self.cancel.is_requested() {
            return Err(PipelineError::Cancelled);
        }
        Ok(report)
    }

    /// Where hidden states are.
    fn room(&self) -> Room<'_> {
        Room { memory: self.options.memory.0, dir: &self.dir }
    }

    /// Removes every file whose name begins so, but some.
    fn remove_but(&self, prefix: &str, kept: &[String]) -> Result<(), PipelineError> {
        let io = |path: &Path, source| PipelineError::Io { path: path.to_owned(), source };
        for entry in std::fs::read_dir(&self.dir).map_err(|source| io(&self.dir, source))? {
            let entry = entry.map_err(|source| io(&self.dir, source))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) && !kept.contains(&name) {
                std::fs::remove_file(entry.path()).map_err(|source| io(&entry.path(), source))?;
            }
        }
        Ok(())
    }

    /// The model, written and checked against its simulation part by part, what the report says of its layers, and BLAKE3 of
    /// the source's tensors where they have not been read before.
    fn model(
        &self,
        float: &FloatParts<'_>,
        statistics: &StatisticsFile,
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<(MadeModel, BTreeMap<String, Fingerprint>), PipelineError> {
        let (prepared, events) = (self.prepared, self.events);
        let dir = self.dir.join(MODEL_DIR);
        let mut parts = std::mem::take(&mut done.parts);
        let before = parts.iter().fold(Cost::default(), |before, part| Cost {
            seconds: before.seconds + part.cost.seconds,
            peak_rss_bytes: before.peak_rss_bytes.max(part.cost.peak_rss_bytes),
        });
        let mut made = before;
        if let Some(done) = &done.model {
            made.peak_rss_bytes = made.peak_rss_bytes.max(done.cost.peak_rss_bytes);
            made.seconds += done.cost.seconds;
        } else {
            events.event(Event::Started(Stage::Quantize));
            std::fs::create_dir_all(&dir)
                .map_err(|source| PipelineError::Io { path: dir.clone(), source })?;
            let clock = Instant::now();
            self.parts(float, statistics, &dir, &mut parts, journal)?;
            let written: BTreeSet<String> = parts
                .iter()
                .flat_map(|part| part.written.files())
                .map(|file| format!("{MODEL_DIR}/{file}"))
                .collect();
            let files = WrittenFile::all_below_but(&self.dir, MODEL_DIR, &written)?;
            let spent = parts.iter().map(|part| part.cost.seconds).sum::<f64>() - before.seconds;
            let total = clock.elapsed().as_secs_f64();
            let model = ModelDone {
                files,
                cost: Cost { seconds: (total - spent).max(0.0), peak_rss_bytes: peak_memory() },
            };
            journal.append(&Entry::Model(model.clone()))?;
            self.remove_but(PROBES, &[])?;
            made = Cost {
                seconds: before.seconds + total,
                peak_rss_bytes: before.peak_rss_bytes.max(model.cost.peak_rss_bytes),
            };
            tracing::info!(seconds = made.seconds, parts = parts.len(), "model written and checked");
        }
        let task = convert::task(prepared.config.model.task);
        let written = QuantizedParts::open(&dir, task, self.options.memory.whole())?;
        let self_check = parts.last().and_then(|part| part.self_check.clone());
        let sources = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.sources)).collect();
        let linears = parts.into_iter().flat_map(|part| part.linears).collect();
        let layers = self.facts(statistics, linears)?;
        Ok((MadeModel { layers, self_check, cost: made, written }, sources))
    }

    /// Makes the parts of the model that are not done yet.
    fn parts(
        &self,
        float: &FloatParts<'_>,
        statistics: &StatisticsFile,
        dir: &Path,
        done: &mut Vec<PartDone>,
        journal: &mut Journal,
    ) -> Result<(), PipelineError> {
        let (prepared, events) = (self.prepared, self.events);
        let isa = Isa::active().map_err(zeropoint_models::ModelError::from)?;
        let parts = float.parts();
        let shard = prepared.config.output.max_shard_bytes();
        let mut deployment = Deployment::begin(prepared, isa, dir, parts, shard)?;
        if prepared.calibration.inputs.is_empty() && self.statistics.is_none() {
            deployment.hash_sources();
        }
        for (part, done) in parts.iter().zip(&*done) {
            self.check_sources(done)?;
            deployment.is_written(*part, done.linears.len())?;
        }
        let task = convert::task(prepared.config.model.task);
        let mut check = prepared.config.output.self_check.then(|| PartCheck::begin(prepared)).transpose()?;
        if let (Some(check), Some(probes)) = (&mut check, done.last().and_then(|part| part.probes.as_ref())) {
            check.load(&self.dir.join(&probes.path))?;
        }
        let whole = if self.prepared.is_sequential() { 0 } else { self.options.memory.whole() };
        let mut sequence =
            Sequence::begin(prepared, statistics, parts.len(), self.room(), events, self.cancel)?;
        if let Some(sequence) = sequence.as_mut().filter(|_| !done.is_empty()) {
            let written = QuantizedParts::open(dir, task, whole)?;
            for &part in &parts[..done.len()] {
                sequence.skip();
                if !part.has_output() {
                    sequence.advance(&*written.load(part)?)?;
                }
            }
        }
        for (index, &part) in parts.iter().enumerate().skip(done.len()) {
            let clock = Instant::now();
            let inputs = match &mut sequence {
                None => PartInputs::default(),
                Some(sequence) => sequence.inputs(&*float.load(part)?)?,
            };
            let deployed = deployment.part(part, (statistics, &inputs), events, self.cancel)?;
            drop(inputs);
            let (mut errors, mut self_check, mut probes) = (LayerErrors::default(), None, None);
            if let Some(check) = &mut check {
                if parts.len() == 1 {
                    events.event(Event::Started(Stage::SelfCheck));
                }
                // What was written is read as any loader would, a part at a time.
                let written = QuantizedParts::open(dir, task, whole)?;
                unrun_linears(prepared, written.directory(), &deployed.linears)?;
                let (float, written) = (float.load(part)?, written.load(part)?);
                (errors, self_check) = check.part(&float, &written, &deployed.linears)?;
                if index + 1 < parts.len() {
                    let name = format!("{PROBES}{index:05}.safetensors");
                    check.save(&self.dir.join(&name))?;
                    probes = Some(WrittenFile::of(&self.dir, &name)?);
                }
            }
            if let Some(sequence) = sequence.as_mut().filter(|_| !part.has_output()) {
                let written = QuantizedParts::open(dir, task, whole)?;
                sequence.advance(&*written.load(part)?)?;
            }
            let spec = prepared.graph().spec();
            let linears = deployed.linears.iter().map(|(id, linear)| LinearDone {
                path: spec.linears[*id].path.clone(),
                bytes: linear.bytes,
                weight_sqnr_db: Exact(sqnr_db(linear.weight.signal, linear.weight.noise)),
                input_sqnr_db: errors.input_sqnr_db.get(id).copied().map(Exact),
                output_sqnr_db: errors.output_sqnr_db.get(id).copied().map(Exact),
                distribution: linear.distribution.clone(),
            });
            let entry = PartDone {
                index,
                of: parts.len(),
                linears: linears.collect(),
                written: deployed.written,
                sources: deployed.sources,
                probes,
                self_check,
                cost: cost(clock, Cost::default()),
            };
            journal.append(&Entry::Part(entry.clone()))?;
            // The file before it stays until this one has a line in the journal.
            self.remove_but(PROBES, &entry.probes.iter().map(|file| file.path.clone()).collect::<Vec<_>>())?;
            tracing::debug!(%part, seconds = entry.cost.seconds, "part written");
            done.push(entry);
        }
        deployment.finish()
    }

    /// Of a run that did not read all weights before: those that a part was made of are what they were.
    fn check_sources(&self, part: &PartDone) -> Result<(), PipelineError> {
        let checkpoint = self.prepared.directory.checkpoint();
        for (name, hash) in &part.sources {
            if checkpoint.tensor_hash(name)? != *hash {
                let difference = "the weights of the model have changed".to_owned();
                return Err(PipelineError::OtherRun { partial: self.dir.clone(), difference });
            }
        }
        Ok(())
    }

    /// What the journal says of each quantised Linear, with what the plan and the statistics say.
    fn facts(
        &self,
        statistics: &StatisticsFile,
        linears: Vec<LinearDone>,
    ) -> Result<BTreeMap<usize, LayerFacts>, PipelineError> {
        let spec = self.prepared.graph().spec();
        let mut facts = BTreeMap::new();
        let mut linears: BTreeMap<String, LinearDone> =
            linears.into_iter().map(|done| (done.path.clone(), done)).collect();
        for (plan, scheme) in self.prepared.plan.quantized() {
            let linear = &spec.linears[plan.linear];
            // A Linear of the plan that the checkpoint does not hold is refused when the model is described.
            if let Some(done) = linears.remove(&linear.path) {
                let quantizer = input_quantizer(self.prepared, Some(statistics), linear, scheme)?;
                facts.insert(plan.linear, LayerFacts { scheme: *scheme, quantizer, done });
            }
        }
        Ok(facts)
    }

    /// Every task's metrics, in the order of the config; `fingerprint` is the original's.
    fn evaluation(
        &self,
        float: &FloatParts<'_>,
        fingerprint: Fingerprint,
        written: &QuantizedParts,
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
            let clock = Instant::now();
            let original = Streamed::new(float, true, self.room(), self.events, self.cancel)?;
            let quantized = Streamed::new(written, false, self.room(), self.events, self.cancel)?;
            let original = Original {
                model: &original,
                fingerprint: Some(fingerprint),
                cache: &self.options.cache,
                kept: self.kept,
            };
            let metrics = measure(self.prepared, task, original, &quantized, self.events, self.cancel)?;
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

    /// How fast both models are, as wholes in memory, when the config asks for it. The journal keeps nothing of it: a run that
    /// goes on, maybe on another machine, measures anew.
    fn latency(&self, float: &FloatParts<'_>) -> Result<Option<Latency>, PipelineError> {
        if !self.prepared.config.report.latency {
            return Ok(None);
        }
        self.events.event(Event::Started(Stage::Latency));
        let float = if float.is_split() {
            PartModel::Loaded(Box::new(Model::load(&self.prepared.directory)?))
        } else {
            float.load(Part::Whole)?
        };
        let task = convert::task(self.prepared.config.model.task);
        let model = QuantizedModel::load(&self.dir.join(MODEL_DIR), task)?;
        let clock = Instant::now();
        let latency = bench::latency(&model, &float, self.events, self.cancel)?;
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
