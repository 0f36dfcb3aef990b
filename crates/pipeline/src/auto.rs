//! Mixed precision within a budget: a scheme for each group of Linears, chosen from what each costs alone, and verified by real
//! runs.

mod choice;
mod request;
mod schemes;

use zeropoint_calibrator::{BatchPlan, Room};
use zeropoint_evaluator::compare::MetricName;
use zeropoint_formats::TensorSpec;
use zeropoint_formats::compressed_tensors::linear_tensor_specs;
use zeropoint_models::{FloatParts, LinearId, LinearSpec};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::LayerScheme;

use crate::config::{Config, LmHead};
use crate::dry_run::dry_run;
use crate::events::{Cancel, Event, Events, Stage};
use crate::identity::model_weights;
use crate::kept::KeptOutputs;
use crate::run::{Inputs, RunOptions, RunOutcome, check_output, produce};
use crate::sensitivity::{Cost, Sensitivities, Unit, units};
use crate::sources::Sources;
use crate::statistics::{KeptCache, Origin, Pass, cached, keep, observe};
use crate::{PipelineError, Prepared};

use choice::{Choice, Item};
use schemes::{Planned, Scheme};

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
    if config.calibration.samples == 0 {
        let reason =
            "`calibration.samples` is 0, but a search measures on some of them; ask for samples".to_owned();
        return Err(PipelineError::Option { option: "auto", reason });
    }
    let by_preset = config.quantization.transforms.is_none();
    let prepared = Prepared::with_sources(config, sources)?;
    prepared.model.check_whole()?;
    let metric = metric_of(&prepared, request)?;
    let cache = KeptCache::new(&options.cache)?;
    // What a try has left when it was stopped is of no use to another.
    let options = RunOptions { cache: cache.dir.clone(), restart: true, ..options.clone() };
    let search = Search {
        prepared: &prepared,
        by_preset,
        request,
        metric,
        options: &options,
        sources,
        events,
        cancel,
    };
    search.run().map_err(|error| match error {
        PipelineError::Interrupted { source, .. } => *source,
        error => error,
    })
}

/// Refuses a metric that no task of a run gives.
pub(crate) fn check_metric(prepared: &Prepared, metric: &MetricName) -> Result<(), PipelineError> {
    let known = known_metrics(prepared)?;
    if known.contains(metric) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(|metric| format!("`{metric}`")).collect();
    let reason = format!("no task of the config gives `{metric}`; there are {}", known.join(", "));
    Err(PipelineError::Option { option: "--metric", reason })
}

/// Every metric that the tasks of a run give.
fn known_metrics(prepared: &Prepared) -> Result<Vec<MetricName>, PipelineError> {
    let mut known = Vec::new();
    for task in &prepared.tasks {
        let names = task.metrics(prepared.directory.spec())?;
        known.extend(
            names.iter().map(|name| MetricName { task: task.name.clone(), name: (*name).to_owned() }),
        );
    }
    Ok(known)
}

fn metric_of(prepared: &Prepared, request: &AutoRequest) -> Result<MetricName, PipelineError> {
    let gate = prepared.config.evaluation.gate.first();
    let of_gate = gate.map(|gate| MetricName { task: gate.task.clone(), name: gate.metric.to_string() });
    if let Some(metric) = request.metric.clone().or(of_gate) {
        check_metric(prepared, &metric)?;
        return Ok(metric);
    }
    known_metrics(prepared)?.into_iter().next().ok_or_else(|| {
        let reason = "the config has no evaluation task whose loss could be held to a limit; add one";
        PipelineError::Option { option: "--metric", reason: reason.to_owned() }
    })
}

struct Search<'a> {
    prepared: &'a Prepared,
    /// Whether transforms were left to a preset, so that those which a choice does not allow may go.
    by_preset: bool,
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
        let schemes: Vec<Vec<Scheme>> =
            units.iter().map(|unit| self.candidates(unit)).collect::<Result<_, _>>()?;
        let fixed = self.fixed_bytes(&units)?;
        let sizes: Vec<Vec<u64>> =
            units.iter().zip(&schemes).map(|(unit, all)| self.bytes(unit, all)).collect();
        let plan = Planned { units: &units, schemes: &schemes, fixed, outside: self.outside(&units)? };
        if let Budget::TargetBytes(most) = self.request.budget {
            let smallest = |of_unit: &Vec<u64>| {
                (0..of_unit.len()).min_by_key(|index| of_unit[*index]).unwrap_or_default()
            };
            let smallest: Vec<usize> = sizes.iter().map(smallest).collect();
            let least = if plan.quantises(&smallest) {
                dry_run(&self.prepare(&plan, &smallest, None)?, self.options)?.quantized_bytes
            } else {
                fixed + sizes.iter().filter_map(|of_unit| of_unit.iter().min()).sum::<u64>()
            };
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
                let of_candidate = |(index, scheme): (usize, &Scheme)| {
                    let bytes = sizes[unit][index];
                    let price = match self.request.prefer {
                        Prefer::Speed => bytes as f64 + scheme.candidate.work() * weights as f64,
                        Prefer::Size => bytes as f64,
                    };
                    Item { bytes, price, loss: costs[unit][index] }
                };
                schemes[unit].iter().enumerate().map(of_candidate).collect()
            })
            .collect();
        let choice = Choice::new(items);
        match self.request.budget {
            Budget::MaxDrop(limit) => self.within_loss(&choice, &plan, limit),
            Budget::TargetBytes(most) => self.within_bytes(&choice, &plan, most),
        }
    }

    /// Whether an override of the config names a Linear.
    fn named(&self) -> Result<impl Fn(&str) -> bool + use<>, PipelineError> {
        let mut named = Vec::new();
        for pattern in self.prepared.config.quantization.overrides.iter().flat_map(|other| &other.layers) {
            named.push(zeropoint_quantizer::Pattern::parse(pattern.as_str())?);
        }
        Ok(move |path: &str| named.iter().any(|pattern| pattern.matches(path)))
    }

    /// The head whose scheme `lm_head` decides.
    fn decided_head(&self) -> Option<LinearId> {
        let spec = self.prepared.graph().spec();
        spec.language_head().filter(|_| self.prepared.config.quantization.lm_head == LmHead::Int8)
    }

    /// The groups that are searched for: of Linears that become integers and that nothing else decides.
    fn units(&self) -> Result<Vec<Unit>, PipelineError> {
        let (named, head) = (self.named()?, self.decided_head());
        let is_free = |id: LinearId| {
            let plan = &self.prepared.plan.linears[id];
            plan.scheme().is_some() && head != Some(id) && !named(&plan.path)
        };
        let units = units(self.prepared.graph().spec(), &is_free);
        if units.is_empty() {
            let reason =
                "overrides decide every Linear that can be quantised, so there is nothing to search for"
                    .to_owned();
            return Err(PipelineError::Option { option: "auto", reason });
        }
        Ok(units)
    }

    /// Quantised Linears that are in no group, since the task does not run them: they keep the scheme of the config.
    fn outside(&self, units: &[Unit]) -> Result<Vec<LinearId>, PipelineError> {
        let (named, head) = (self.named()?, self.decided_head());
        let inside = |id: LinearId| units.iter().any(|unit| unit.linears.contains(&id));
        let quantized = self.prepared.plan.quantized().map(|(plan, _)| plan);
        let outside =
            quantized.filter(|plan| head != Some(plan.linear) && !inside(plan.linear) && !named(&plan.path));
        Ok(outside.map(|plan| plan.linear).collect())
    }

    /// The schemes of a unit: those of the candidates, with what the config says of weights and activations.
    fn candidates(&self, unit: &Unit) -> Result<Vec<Scheme>, PipelineError> {
        let spec = self.prepared.graph().spec();
        let mut candidates = self.request.candidates.clone();
        candidates.sort_unstable();
        candidates.dedup();
        if candidates.is_empty() {
            let reason = "there is no scheme to choose from".to_owned();
            return Err(PipelineError::Option { option: "--candidates", reason });
        }
        let inputs: Vec<usize> = unit.linears.iter().map(|id| spec.linears[*id].inputs).collect();
        let base = self.prepared.config.quantization.layer_scheme();
        Ok(candidates.into_iter().map(|candidate| Scheme::of(candidate, &base, &inputs)).collect())
    }

    fn weights(&self, id: LinearId) -> usize {
        self.prepared.graph().spec().linears[id].weights()
    }

    /// Bytes of a unit under each of its schemes.
    fn bytes(&self, unit: &Unit, candidates: &[Scheme]) -> Vec<u64> {
        let of_linear = |id: &LinearId, scheme: &Scheme| {
            let linear = &self.prepared.graph().spec().linears[*id];
            if let Some(layer) = scheme.numbers() {
                return tensor_bytes(linear, &layer);
            }
            let info = self.prepared.directory.checkpoint().get(&linear.weight);
            (linear.weights() * info.map_or(4, |info| info.dtype.size())) as u64
        };
        let of_candidate = |scheme: &Scheme| unit.linears.iter().map(|id| of_linear(id, scheme)).sum();
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
    fn costs(&self, units: &[Unit], schemes: &[Vec<Scheme>]) -> Result<Vec<Vec<f64>>, PipelineError> {
        /// Of outputs that are no numbers: more than any sum of others.
        const LOST: f64 = 1e9;
        self.events.event(Event::Started(Stage::Load));
        let weights = model_weights(self.prepared)?;
        let statistics = self.statistics(weights)?;
        let float = FloatParts::new(self.prepared.graph(), self.options.memory.whole())?;
        let directory = std::env::temp_dir();
        let room = Room { memory: self.options.memory.0, dir: &directory };
        let sensitivities = Sensitivities {
            prepared: self.prepared,
            float: &float,
            statistics: &statistics,
            room,
            events: self.events,
            cancel: self.cancel,
        };
        let layers: Vec<Vec<LayerScheme>> =
            schemes.iter().map(|all| all.iter().filter_map(Scheme::numbers).collect()).collect();
        let graph = Origin::of_graph(self.prepared, weights)?.graph;
        let costs = sensitivities.measure(graph, units, &layers, &self.options.cache)?;
        let with_float = |(all, costs): (&Vec<Scheme>, Vec<Cost>)| {
            let mut costs = costs.into_iter();
            let loss = |scheme: &Scheme| match scheme.candidate {
                Candidate::Float => 0.0,
                // Less than nothing is a chance of the samples.
                _ => costs
                    .next()
                    .map_or(LOST, |cost| if cost.loss.is_finite() { cost.loss.max(0.0) } else { LOST }),
            };
            all.iter().map(loss).collect()
        };
        Ok(schemes.iter().zip(costs).map(with_float).collect())
    }

    /// Statistics of the model that is quantised, its transforms settled.
    fn statistics(&self, weights: zeropoint_core::Fingerprint) -> Result<StatisticsFile, PipelineError> {
        let (prepared, options) = (self.prepared, self.options);
        let directory = std::env::temp_dir();
        let found = |origin: Origin, model: &FloatParts<'_>, plan: &BatchPlan| {
            if let Some(file) = cached(prepared, origin, &options.cache, self.events) {
                return Ok(file);
            }
            let room = Room { memory: options.memory.0, dir: &directory };
            let pass = Pass::whole(plan, room);
            let file = observe(prepared, origin, model, pass, &mut |_| Ok(()), self.events, self.cancel)?;
            keep(&file, origin, &options.cache, self.events);
            Ok::<_, PipelineError>(file)
        };
        let original = FloatParts::new(&prepared.directory, options.memory.whole())?;
        let Some(graph) = &prepared.transformed else {
            return found(Origin::of(prepared, weights)?, &original, prepared.first_pass());
        };
        if graph.plan.needs_statistics() {
            let first = found(Origin::of(prepared, weights)?, &original, prepared.first_pass())?;
            graph.settle(prepared, &original, &first, self.cancel)?;
        }
        let transformed = FloatParts::new(&graph.directory, options.memory.whole())?;
        found(Origin::of_graph(prepared, weights)?, &transformed, &prepared.calibration.plan)
    }

    /// From the cheapest on, what the metric says holds; groups that lose most for what they save are given up until it does. The last
    /// try that may be made is the gentlest.
    fn within_loss(
        self,
        choice: &Choice,
        plan: &Planned<'_>,
        limit: f64,
    ) -> Result<AutoOutcome, PipelineError> {
        let kept = KeptOutputs::new(self.options.memory.0);
        let mut tries: Vec<Try> = Vec::new();
        let mut last: Option<(Vec<usize>, RunOutcome)> = None;
        let mut allowed = f64::INFINITY;
        let gentlest =
            choice.gentlest(|group, index| plan.schemes[group][index].candidate != Candidate::Float);
        let Some(gentlest) = gentlest else {
            let reason = "the schemes to choose from leave every Linear float".to_owned();
            return Err(PipelineError::Option { option: "--candidates", reason });
        };
        while tries.len() < TRIES {
            let is_last = |chosen: &Vec<usize>| last.as_ref().is_some_and(|(before, _)| before == chosen);
            let mut chosen = choice.cheapest_within(allowed);
            if is_last(&chosen) {
                chosen = choice.next_step(&chosen);
            }
            if tries.len() + 1 == TRIES || is_last(&chosen) || !plan.quantises(&chosen) {
                chosen.clone_from(&gentlest);
            }
            if is_last(&chosen) {
                break;
            }
            let predicted = choice.loss(&chosen);
            let (run, drop) = self.try_out(plan, &chosen, Some(limit), tries.len(), &kept)?;
            let met = drop <= limit;
            let (linears, bytes) = (plan.counts(&chosen), run.report.size.quantized_bytes);
            tries.push(Try { linears, bytes, predicted, drop, met });
            last = Some((chosen, run));
            if met {
                break;
            }
            // What was predicted is what was lost, in another unit.
            let by_ratio = if drop.is_finite() && drop > 0.0 { 0.9 * predicted * limit / drop } else { 0.0 };
            allowed = by_ratio.min(0.7 * predicted);
        }
        let Some((_, run)) = last else { return Err(PipelineError::Cancelled) };
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
            if self.cancel.is_requested() {
                return Err(PipelineError::Cancelled);
            }
            let bytes = dry_run(&self.prepare(plan, &chosen, None)?, self.options)?.quantized_bytes;
            let smaller = choice.bytes(&chosen).saturating_sub(1);
            if bytes <= most || room == 0 {
                break;
            }
            room = room.saturating_sub(bytes - most).min(smaller);
            chosen = choice.best_within(room);
        }
        if !plan.quantises(&chosen) {
            let reason = format!("the model as it is has no more than {most} bytes; ask for fewer");
            return Err(PipelineError::Option { option: "--target-bytes", reason });
        }
        let predicted = choice.loss(&chosen);
        let kept = KeptOutputs::new(self.options.memory.0);
        let (run, drop) = self.try_out(plan, &chosen, None, 0, &kept)?;
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
        let prepared = self.prepare(plan, chosen, limit)?;
        let force = self.options.force || before > 0;
        check_output(&prepared.config, force)?;
        let name: Vec<String> =
            plan.counts(chosen).iter().map(|(scheme, count)| format!("{count} {scheme}")).collect();
        self.events.event(Event::Run { name: name.join(", "), index: before + 1, total: TRIES });
        let options = RunOptions { force, ..self.options.clone() };
        let inputs = Inputs { statistics: None, kept: Some(kept) };
        let run = produce(&prepared, &options, inputs, self.events, self.cancel)?;
        let metrics = &run.report.metrics;
        let metric = metrics.iter().find(|m| m.task == self.metric.task && m.name == self.metric.name);
        let drop = metric.map_or(f64::NAN, zeropoint_evaluator::report::Metric::loss);
        Ok((run, drop))
    }

    /// The run of a choice. Transforms that a preset brought, and that have nothing left to do in it, go.
    fn prepare(
        &self,
        plan: &Planned<'_>,
        chosen: &[usize],
        limit: Option<f64>,
    ) -> Result<Prepared, PipelineError> {
        let limit = limit.map(|limit| (&self.metric, limit));
        let mut config = plan.config(self.prepared, chosen, limit)?;
        loop {
            let error = match Prepared::with_sources(config.clone(), self.sources) {
                Err(error) => error,
                Ok(prepared) => return Ok(prepared),
            };
            let transforms = config.quantization.transforms.get_or_insert_default();
            match error.impossible_transform().filter(|index| self.by_preset && *index < transforms.len()) {
                Some(index) => drop(transforms.remove(index)),
                None => return Err(error),
            }
        }
    }
}

/// Bytes of the tensors of a quantised Linear.
fn tensor_bytes(linear: &LinearSpec, layer: &LayerScheme) -> u64 {
    let tensors = linear_tensor_specs(&linear.tensor, linear.outputs, linear.inputs, layer.scheme);
    tensors.iter().map(TensorSpec::bytes).sum()
}
