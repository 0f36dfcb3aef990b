//! Mixed precision within a budget: a scheme for each group of Linears, chosen from what each costs alone, and verified by real
//! runs.

mod choice;
mod request;

use std::collections::BTreeMap;

use zeropoint_evaluator::compare::MetricName;
use zeropoint_formats::TensorSpec;
use zeropoint_formats::compressed_tensors::linear_tensor_specs;
use zeropoint_models::{FloatParts, LinearId, LinearSpec};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::LayerScheme;

use crate::config::{Config, Gate, Override, Pattern, WeightGranularity, Weights};
use crate::dry_run::dry_run;
use crate::events::{Cancel, Event, Events, Stage};
use crate::identity::model_weights;
use crate::kept::KeptOutputs;
use crate::run::{Inputs, RunOptions, RunOutcome, check_output, produce};
use crate::sensitivity::{Sensitivities, Unit, units};
use crate::sources::Sources;
use crate::statistics::{CacheDir, Origin, Pass, cached, keep, observe};
use crate::{PipelineError, Prepared, convert};

use choice::{Choice, Item};

pub use request::{AutoOutcome, AutoRequest, Budget, Candidate, Prefer, Try};

/// Most runs of a search.
const TRIES: usize = 8;

/// Searches for a scheme for each group of Linears that `config` leaves to it: those that no override decides. The result is a run
/// directory, whose `config.toml` makes it again.
pub fn auto(
    config: Config,
    request: &AutoRequest,
    options: &RunOptions,
    sources: &Sources<'_>,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<AutoOutcome, PipelineError> {
    let prepared = Prepared::with_sources(config, sources)?;
    prepared.model.check_whole()?;
    let metric = metric_of(&prepared, request)?;
    let cache = SearchCache::new(&options.cache)?;
    let options = RunOptions { cache: cache.dir.clone(), ..options.clone() };
    let search = Search { prepared: &prepared, request, metric, options: &options, sources, events, cancel };
    search.run()
}

/// Where statistics are kept between the runs of a search; a directory of its own where the user wants none kept.
struct SearchCache {
    dir: CacheDir,
    own: Option<tempfile::TempDir>,
}

impl SearchCache {
    fn new(cache: &CacheDir) -> Result<Self, PipelineError> {
        if *cache != CacheDir::None {
            return Ok(Self { dir: cache.clone(), own: None });
        }
        let own =
            tempfile::tempdir().map_err(|source| PipelineError::Io { path: std::env::temp_dir(), source })?;
        Ok(Self { dir: CacheDir::At(own.path().to_owned()), own: Some(own) })
    }
}

impl Drop for SearchCache {
    fn drop(&mut self) {
        // What cannot be removed is in the system's directory for such files.
        let _ = self.own.take().map(tempfile::TempDir::close);
    }
}

fn metric_of(prepared: &Prepared, request: &AutoRequest) -> Result<MetricName, PipelineError> {
    let option = |reason: String| PipelineError::Option { option: "--metric", reason };
    let mut known = Vec::new();
    for task in &prepared.tasks {
        let names = task.metrics(prepared.directory.spec())?;
        known.extend(
            names.iter().map(|name| MetricName { task: task.name.clone(), name: (*name).to_owned() }),
        );
    }
    let gate = prepared.config.evaluation.gate.first();
    let of_gate = gate.map(|gate| MetricName { task: gate.task.clone(), name: gate.metric.to_string() });
    match request.metric.clone().or(of_gate).or_else(|| known.first().cloned()) {
        None => Err(option(
            "the config has no evaluation task whose loss could be held to a limit; add one".to_owned(),
        )),
        Some(metric) if known.contains(&metric) => Ok(metric),
        Some(metric) => {
            let known: Vec<String> = known.iter().map(|metric| format!("`{metric}`")).collect();
            Err(option(format!("no task of the config gives `{metric}`; there are {}", known.join(", "))))
        }
    }
}

struct Search<'a> {
    prepared: &'a Prepared,
    request: &'a AutoRequest,
    metric: MetricName,
    options: &'a RunOptions,
    sources: &'a Sources<'a>,
    events: &'a dyn Events,
    cancel: &'a Cancel,
}

impl Search<'_> {
    fn run(self) -> Result<AutoOutcome, PipelineError> {
        let units = self.units()?;
        let schemes: Vec<Vec<(Candidate, Weights)>> =
            units.iter().map(|unit| self.candidates(unit)).collect::<Result<_, _>>()?;
        let fixed = self.fixed_bytes(&units)?;
        let sizes: Vec<Vec<u64>> =
            units.iter().zip(&schemes).map(|(unit, all)| self.bytes(unit, all)).collect();
        if let Budget::TargetBytes(most) = self.request.budget {
            let least = fixed + sizes.iter().filter_map(|of_unit| of_unit.iter().min()).sum::<u64>();
            if least > most {
                let reason = format!(
                    "{most} bytes cannot be reached: with the smallest scheme for each Linear the weight files have {least} bytes, \
                     of which {fixed} are of what stays as it is"
                );
                return Err(PipelineError::Option { option: "--target-bytes", reason });
            }
        }
        let costs = self.costs(&units, &schemes)?;
        let items: Vec<Vec<Item>> = (0..units.len())
            .map(|unit| {
                let weights: usize = units[unit].linears.iter().map(|id| self.weights(*id)).sum();
                let of_candidate = |(index, (candidate, _)): (usize, &(Candidate, Weights))| {
                    let bytes = sizes[unit][index];
                    let price = match self.request.prefer {
                        Prefer::Speed => bytes as f64 + candidate.work() * weights as f64,
                        Prefer::Size => bytes as f64,
                    };
                    Item { bytes, price, loss: costs[unit][index] }
                };
                schemes[unit].iter().enumerate().map(of_candidate).collect()
            })
            .collect();
        let choice = Choice::new(items);
        let plan = Planned { units: &units, schemes: &schemes, fixed };
        match self.request.budget {
            Budget::MaxDrop(limit) => self.within_loss(&choice, &plan, limit),
            Budget::TargetBytes(most) => self.within_bytes(&choice, &plan, most),
        }
    }

    /// The groups that are searched for: of Linears that become integers and that no override names.
    fn units(&self) -> Result<Vec<Unit>, PipelineError> {
        let mut named = Vec::new();
        for pattern in self.prepared.config.quantization.overrides.iter().flat_map(|other| &other.layers) {
            named.push(zeropoint_quantizer::Pattern::parse(pattern.as_str())?);
        }
        let spec = self.prepared.graph().spec();
        let is_free = |id: LinearId| {
            let plan = &self.prepared.plan.linears[id];
            plan.scheme().is_some() && !named.iter().any(|pattern| pattern.matches(&plan.path))
        };
        let units = units(spec, &is_free);
        if units.is_empty() {
            let reason =
                "overrides decide every Linear that can be quantised, so there is nothing to search for"
                    .to_owned();
            return Err(PipelineError::Option { option: "auto", reason });
        }
        Ok(units)
    }

    /// The schemes of a unit, with the weights of each.
    fn candidates(&self, unit: &Unit) -> Result<Vec<(Candidate, Weights)>, PipelineError> {
        const SIZES: [u32; 4] = [64, 32, 128, 16];
        let spec = self.prepared.graph().spec();
        let mut candidates = self.request.candidates.clone();
        candidates.sort_unstable();
        candidates.dedup();
        if candidates.is_empty() {
            let reason = "there is no scheme to choose from".to_owned();
            return Err(PipelineError::Option { option: "--candidates", reason });
        }
        let with_weights = |candidate: Candidate| {
            let mut weights =
                candidate.preset().map_or_else(Weights::default, |preset| preset.scheme().weights);
            if weights.granularity == WeightGranularity::Group {
                let divides = |size: &u32| {
                    unit.linears.iter().all(|id| spec.linears[*id].inputs.is_multiple_of(*size as usize))
                };
                weights.group_size = SIZES.into_iter().find(divides);
                if weights.group_size.is_none() {
                    weights.granularity = WeightGranularity::Channel;
                }
            }
            (candidate, weights)
        };
        Ok(candidates.into_iter().map(with_weights).collect())
    }

    fn weights(&self, id: LinearId) -> usize {
        self.prepared.graph().spec().linears[id].weights()
    }

    /// Bytes of a unit under each of its schemes.
    fn bytes(&self, unit: &Unit, candidates: &[(Candidate, Weights)]) -> Vec<u64> {
        let of_linear = |id: &LinearId, candidate: Candidate, weights: Weights| {
            let linear = &self.prepared.graph().spec().linears[*id];
            if let Some(layer) = layer_scheme(candidate, weights) {
                return tensor_bytes(linear, &layer);
            }
            let info = self.prepared.directory.checkpoint().get(&linear.weight);
            (linear.weights() * info.map_or(4, |info| info.dtype.size())) as u64
        };
        let of_candidate = |&(candidate, weights): &(Candidate, Weights)| {
            unit.linears.iter().map(|id| of_linear(id, candidate, weights)).sum()
        };
        candidates.iter().map(of_candidate).collect()
    }

    /// Bytes of the weight files that the search does not change, the headers of the files apart.
    fn fixed_bytes(&self, units: &[Unit]) -> Result<u64, PipelineError> {
        let of_linear = |id: &LinearId| {
            let linear = &self.prepared.graph().spec().linears[*id];
            self.prepared.plan.linears[*id].scheme().map_or(0, |layer| tensor_bytes(linear, layer))
        };
        let changed: u64 = units.iter().flat_map(|unit| &unit.linears).map(of_linear).sum();
        Ok(dry_run(self.prepared, self.options)?.quantized_bytes.saturating_sub(changed))
    }

    /// What each scheme of each unit costs alone; nothing for one that leaves it float.
    fn costs(
        &self,
        units: &[Unit],
        schemes: &[Vec<(Candidate, Weights)>],
    ) -> Result<Vec<Vec<f64>>, PipelineError> {
        self.events.event(Event::Started(Stage::Load));
        let weights = model_weights(self.prepared)?;
        let statistics = self.statistics(weights)?;
        let float = FloatParts::new(self.prepared.graph(), self.options.memory.whole())?;
        let directory = std::env::temp_dir();
        let room = zeropoint_calibrator::Room { memory: self.options.memory.0, dir: &directory };
        let sensitivities = Sensitivities {
            prepared: self.prepared,
            float: &float,
            statistics: &statistics,
            room,
            events: self.events,
            cancel: self.cancel,
        };
        let layers: Vec<Vec<LayerScheme>> = schemes
            .iter()
            .map(|all| {
                all.iter().filter_map(|(candidate, weights)| layer_scheme(*candidate, *weights)).collect()
            })
            .collect();
        let graph = Origin::of_graph(self.prepared, weights)?.graph;
        let costs = sensitivities.measure(graph, units, &layers, &self.options.cache)?;
        let with_float = |(all, costs): (&Vec<(Candidate, Weights)>, Vec<crate::sensitivity::Cost>)| {
            let mut costs = costs.into_iter();
            let loss = |(candidate, _): &(Candidate, Weights)| match candidate {
                Candidate::Float => 0.0,
                // Less than nothing is a chance of the samples.
                _ => costs.next().map_or(f64::INFINITY, |cost| cost.loss.max(0.0)),
            };
            all.iter().map(loss).collect()
        };
        Ok(schemes.iter().zip(costs).map(with_float).collect())
    }

    /// Statistics of the model that is quantised, its transforms settled.
    fn statistics(&self, weights: zeropoint_core::Fingerprint) -> Result<StatisticsFile, PipelineError> {
        let (prepared, options) = (self.prepared, self.options);
        let directory = std::env::temp_dir();
        let found = |origin: Origin, model: &FloatParts<'_>| {
            if let Some(file) = cached(prepared, origin, &options.cache, self.events) {
                return Ok(file);
            }
            let room = zeropoint_calibrator::Room { memory: options.memory.0, dir: &directory };
            let pass = Pass::whole(prepared, room);
            let file = observe(prepared, origin, model, pass, &mut |_| Ok(()), self.events, self.cancel)?;
            keep(&file, origin, &options.cache, self.events);
            Ok::<_, PipelineError>(file)
        };
        let original = FloatParts::new(&prepared.directory, options.memory.whole())?;
        let Some(graph) = &prepared.transformed else {
            return found(Origin::of(prepared, weights)?, &original);
        };
        if graph.plan.needs_statistics() {
            let first = found(Origin::of(prepared, weights)?, &original)?;
            graph.settle(prepared, &original, &first, self.cancel)?;
        }
        let transformed = FloatParts::new(&graph.directory, options.memory.whole())?;
        found(Origin::of_graph(prepared, weights)?, &transformed)
    }

    /// From the cheapest on, what the metric says holds; groups that lose most for what they save are given up until it does.
    fn within_loss(
        self,
        choice: &Choice,
        plan: &Planned<'_>,
        limit: f64,
    ) -> Result<AutoOutcome, PipelineError> {
        let kept = KeptOutputs::default();
        let mut tries: Vec<Try> = Vec::new();
        let mut last: Option<(Vec<usize>, RunOutcome)> = None;
        let mut allowed = f64::INFINITY;
        while tries.len() < TRIES {
            let mut chosen = choice.cheapest_within(allowed);
            if last.as_ref().is_some_and(|(before, _)| *before == chosen) {
                chosen = choice.next_step(&chosen);
            }
            let quantises = plan.quantises(&chosen);
            if !quantises || last.as_ref().is_some_and(|(before, _)| *before == chosen) {
                break;
            }
            let predicted = choice.loss(&chosen);
            let (run, drop) = self.try_out(plan, &chosen, Some(limit), tries.len(), &kept)?;
            let met = drop <= limit;
            tries.push(Try {
                linears: plan.counts(&chosen),
                bytes: run.report.size.quantized_bytes,
                predicted,
                drop,
                met,
            });
            last = Some((chosen, run));
            if met {
                break;
            }
            // What was predicted is what was lost, in another unit.
            let by_ratio =
                if drop.is_finite() && drop > 0.0 { 0.9 * predicted * limit.max(0.0) / drop } else { 0.0 };
            allowed = by_ratio.min(0.7 * predicted);
        }
        let Some((_, run)) = last else {
            let reason = "the schemes to choose from leave every Linear float".to_owned();
            return Err(PipelineError::Option { option: "--candidates", reason });
        };
        Ok(AutoOutcome { metric: self.metric, tries, run })
    }

    /// What loses least in so many bytes.
    fn within_bytes(
        self,
        choice: &Choice,
        plan: &Planned<'_>,
        most: u64,
    ) -> Result<AutoOutcome, PipelineError> {
        // Tensors more or less change the headers of files, which are counted when the whole is planned.
        let mut room = most.saturating_sub(plan.fixed);
        let mut chosen = choice.best_within(room);
        while plan.quantises(&chosen) {
            let planned = Prepared::with_sources(self.config(plan, &chosen, None)?, self.sources)?;
            let bytes = dry_run(&planned, self.options)?.quantized_bytes;
            if bytes <= most || room == 0 {
                break;
            }
            room = room.saturating_sub((bytes - most).max(64));
            chosen = choice.best_within(room);
        }
        if !plan.quantises(&chosen) {
            let reason = format!("the model as it is has no more than {most} bytes; ask for fewer");
            return Err(PipelineError::Option { option: "--target-bytes", reason });
        }
        let predicted = choice.loss(&chosen);
        let (run, drop) = self.try_out(plan, &chosen, None, 0, &KeptOutputs::default())?;
        let bytes = run.report.size.quantized_bytes;
        let linears = plan.counts(&chosen);
        let tries = vec![Try { linears, bytes, predicted, drop, met: bytes <= most }];
        Ok(AutoOutcome { metric: self.metric, tries, run })
    }

    /// Makes the run of a choice, and says what the metric lost.
    fn try_out(
        &self,
        plan: &Planned<'_>,
        chosen: &[usize],
        limit: Option<f64>,
        before: usize,
        kept: &KeptOutputs,
    ) -> Result<(RunOutcome, f64), PipelineError> {
        let config = self.config(plan, chosen, limit)?;
        let force = self.options.force || before > 0;
        check_output(&config, force)?;
        let name =
            plan.counts(chosen).iter().map(|(scheme, count)| format!("{count} {scheme}")).collect::<Vec<_>>();
        self.events.event(Event::Run { name: name.join(", "), index: before + 1, total: TRIES });
        let prepared = Prepared::with_sources(config, self.sources)?;
        let options = RunOptions { force, ..self.options.clone() };
        let inputs = Inputs { statistics: None, kept: Some(kept) };
        let run = produce(&prepared, &options, inputs, self.events, self.cancel)?;
        let metrics = &run.report.metrics;
        let metric = metrics.iter().find(|m| m.task == self.metric.task && m.name == self.metric.name);
        let drop = metric.map_or(f64::NAN, zeropoint_evaluator::report::Metric::loss);
        Ok((run, drop))
    }

    /// The config of a choice: the scheme of most weights for all, others by name, and what the user's overrides say behind.
    fn config(
        &self,
        plan: &Planned<'_>,
        chosen: &[usize],
        limit: Option<f64>,
    ) -> Result<Config, PipelineError> {
        let mut config = self.prepared.config.clone();
        let spec = self.prepared.graph().spec();
        let mut groups: Vec<((Candidate, Weights), Vec<LinearId>)> = Vec::new();
        for (unit, scheme) in plan.units.iter().zip(plan.chosen(chosen)) {
            match groups.iter_mut().find(|(known, _)| *known == scheme) {
                Some((_, linears)) => linears.extend(&unit.linears),
                None => groups.push((scheme, unit.linears.clone())),
            }
        }
        let size = |linears: &Vec<LinearId>| linears.iter().map(|id| self.weights(*id)).sum::<usize>();
        let main = groups.iter().filter(|((candidate, _), _)| candidate.preset().is_some());
        let main = main.max_by_key(|(_, linears)| size(linears)).map(|(scheme, _)| *scheme);
        let Some((candidate, weights)) = main else { return Ok(config) };
        let quantization = &mut config.quantization;
        let preset = candidate.preset().unwrap_or_default();
        quantization.scheme = preset;
        quantization.weights = weights;
        quantization.activations = preset.scheme().activations;
        let name = |id: &LinearId| Pattern(spec.linears[*id].path.clone());
        let others = groups.iter().filter(|(scheme, _)| *scheme != (candidate, weights));
        let mut overrides: Vec<Override> = others
            .map(|((candidate, weights), linears)| Override {
                layers: linears.iter().map(name).collect(),
                scheme: candidate.scheme(),
                weights: candidate.preset().map(|_| *weights),
                activations: candidate.preset().and_then(|preset| preset.scheme().activations),
            })
            .collect();
        overrides.append(&mut quantization.overrides);
        quantization.overrides = overrides;
        let (task, name) = (&self.metric.task, &self.metric.name);
        let is_gate = |gate: &Gate| gate.task == *task && gate.metric.to_string() == *name;
        if let Some(max_drop) = limit
            && let Some(gate) = Gate::of(task, name, max_drop)
        {
            config.evaluation.gate.retain(|gate| !is_gate(gate));
            config.evaluation.gate.push(gate);
        }
        config.validate()?;
        Ok(config)
    }
}

/// Bytes of the tensors of a quantised Linear.
fn tensor_bytes(linear: &LinearSpec, layer: &LayerScheme) -> u64 {
    let tensors = linear_tensor_specs(&linear.tensor, linear.outputs, linear.inputs, layer.scheme);
    tensors.iter().map(TensorSpec::bytes).sum()
}

/// A candidate's numbers and observers.
fn layer_scheme(candidate: Candidate, weights: Weights) -> Option<LayerScheme> {
    let preset = candidate.preset()?.scheme();
    Some(convert::layer_scheme(crate::config::LayerScheme { weights, ..preset }))
}

/// The units with their schemes.
struct Planned<'a> {
    units: &'a [Unit],
    schemes: &'a [Vec<(Candidate, Weights)>],
    fixed: u64,
}

impl Planned<'_> {
    fn chosen<'a>(&'a self, chosen: &'a [usize]) -> impl Iterator<Item = (Candidate, Weights)> + 'a {
        self.schemes.iter().zip(chosen).map(|(schemes, index)| schemes[*index])
    }

    fn quantises(&self, chosen: &[usize]) -> bool {
        self.chosen(chosen).any(|(candidate, _)| candidate != Candidate::Float)
    }

    /// Linears of each scheme.
    fn counts(&self, chosen: &[usize]) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (unit, (candidate, _)) in self.units.iter().zip(self.chosen(chosen)) {
            *counts.entry(candidate.as_str()).or_default() += unit.linears.len();
        }
        counts
    }
}
