//! Sensitivity: what quantising one group of Linears alone costs, in its own outputs and in those of the model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use zeropoint_calibrator::Room;
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::capped_sqnr_db;
use zeropoint_evaluator::tasks::output_loss;
use zeropoint_formats::write_file_atomically;
use zeropoint_kernels::Isa;
use zeropoint_models::{
    FloatSite, HeadOutput, HiddenStates, LinearId, LinearRole, Model, ModelDirectory, ModelError, ModelInput,
    ModelParts, ModelSpec, Outputs, PackedBatch, SimulatedReader, SimulatedSite, SiteId, SiteOp, State,
    Tables, TokenSequence, rows_of,
};
use zeropoint_observer::{StatisticsFile, sqnr_db};
use zeropoint_quantizer::{LayerScheme, QuantizedWeight, quantize_weight, simulated_reader, site_quantizer};

use crate::events::{Cancel, Event, Events, Stage};
use crate::statistics::CacheDir;
use crate::{PipelineError, Prepared};

/// Calibration samples that are run.
const SAMPLES: usize = 4;
/// Tokens of each, its first.
const TOKENS: usize = 64;

/// Linears that are quantised together: those that read one activation, which other runtimes fuse, and the experts of a mixture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Where their activations are.
    pub(crate) sites: Vec<SiteId>,
    /// The Linears, in the order of the description.
    pub(crate) linears: Vec<LinearId>,
}

/// What quantising a unit costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Its outputs against those of the float Linears on the same inputs, in decibels, capped.
    pub(crate) output_sqnr_db: f64,
    /// What the outputs of the model lose on average, in the unit of its head.
    pub(crate) loss: f64,
}

/// The units of a model whose Linears `is_quantized`.
pub(crate) fn units(spec: &ModelSpec, is_quantized: &dyn Fn(LinearId) -> bool) -> Vec<Unit> {
    // By the site, the first site of its unit.
    let mut first: Vec<SiteId> = (0..spec.sites.len()).collect();
    for block in spec.towers.iter().flat_map(|tower| &tower.blocks) {
        let mlps = block.mlp.mlps();
        if block.mlp.experts().is_some() {
            let lead = mlps.iter().map(|mlp| mlp.input).min().unwrap_or(0);
            mlps.iter().flat_map(|mlp| [mlp.input, mlp.inner]).for_each(|site| first[site] = lead);
        }
    }
    let mut units: BTreeMap<SiteId, Unit> = BTreeMap::new();
    for (site, lead) in first.into_iter().enumerate() {
        let wanted = |id: &LinearId| is_quantized(*id) && spec.linears[*id].role != LinearRole::TiedDecoder;
        let linears: Vec<LinearId> = spec.sites[site].consumers.iter().copied().filter(wanted).collect();
        if !linears.is_empty() {
            let unit = units.entry(lead).or_insert_with(|| Unit { sites: Vec::new(), linears: Vec::new() });
            unit.sites.push(site);
            unit.linears.extend(linears);
        }
    }
    let mut units: Vec<Unit> = units.into_values().collect();
    for unit in &mut units {
        unit.linears.sort_unstable();
    }
    units.sort_by_key(|unit| unit.linears[0]);
    units
}

/// A site that is float, or quantised while it is switched.
struct Switch {
    float: FloatSite,
    state: Mutex<Switched>,
}

#[derive(Default)]
struct Switched {
    quantized: Option<SimulatedSite>,
    /// Sums of squares of the float outputs and of the difference.
    sums: (f64, f64),
}

impl SiteOp for Switch {
    fn forward(&self, input: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let float = self.float.forward(input)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(quantized) = &state.quantized else { return Ok(float) };
        let outputs = quantized.forward(input)?;
        let mut sums = state.sums;
        for (float, quantized) in float.iter().zip(&outputs) {
            rows_of(float, |x| {
                rows_of(quantized, |y| {
                    for (x, y) in x.iter().zip(y) {
                        sums.0 += f64::from(*x).powi(2);
                        sums.1 += f64::from(x - y).powi(2);
                    }
                })
            })??;
        }
        state.sums = sums;
        Ok(outputs)
    }
}

/// A weight as it was rounded last, and the scheme that it was for.
type Rounded = Option<(LayerScheme, QuantizedWeight)>;

/// The float weights of some Linears.
type Weights = BTreeMap<LinearId, (Vec<f32>, Rounded)>;

/// A measurement of a model's units.
pub(crate) struct Sensitivities<'a> {
    pub(crate) prepared: &'a Prepared,
    /// The model that is quantised, in floats.
    pub(crate) float: &'a dyn ModelParts,
    pub(crate) statistics: &'a StatisticsFile,
    pub(crate) room: Room<'a>,
    pub(crate) events: &'a dyn Events,
    pub(crate) cancel: &'a Cancel,
}

impl Sensitivities<'_> {
    /// The cost of each unit under each of its schemes, one for each unit and each candidate in `schemes`; from `cache` where it was
    /// measured before.
    ///
    /// All samples go through one part of the model after the other, as often as units before have been quantised, so that a part is
    /// loaded once.
    pub(crate) fn measure(
        &self,
        graph: Fingerprint,
        units: &[Unit],
        schemes: &[Vec<LayerScheme>],
        cache: &CacheDir,
    ) -> Result<Vec<Vec<Cost>>, PipelineError> {
        let path = self.cache_path(graph, units, schemes, cache);
        if let Some(known) = path.as_ref().and_then(|path| known(path, schemes)) {
            return Ok(known);
        }
        self.events.event(Event::Started(Stage::Sensitivity));
        let costs = self.measure_anew(units, schemes)?;
        if let Some(path) = &path {
            let text = serde_json::to_string(&costs).unwrap_or_default();
            let kept =
                path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| error.to_string());
            if let Err(reason) =
                kept.and_then(|()| write_file_atomically(path, text).map_err(|e| e.to_string()))
            {
                self.events.event(Event::Warning(format!(
                    "the sensitivities are not kept for later runs: {reason}"
                )));
            }
        }
        Ok(costs)
    }

    fn cache_path(
        &self,
        graph: Fingerprint,
        units: &[Unit],
        schemes: &[Vec<LayerScheme>],
        cache: &CacheDir,
    ) -> Option<PathBuf> {
        let key = Fingerprint::builder("sensitivity")
            .field("version", env!("CARGO_PKG_VERSION"))
            .field("instruction set", Isa::active().map_or_else(|_| String::new(), |isa| isa.to_string()))
            .field("description", format!("{:?}", self.prepared.graph().spec()))
            .field("graph", graph.to_string())
            .field("data", self.prepared.calibration.fingerprint().to_string())
            .field("units", format!("{units:?}"))
            .field("schemes", format!("{schemes:?}"))
            .finish();
        Some(cache.path()?.join(format!("{key}.sensitivity.json")))
    }

    fn measure_anew(
        &self,
        units: &[Unit],
        schemes: &[Vec<LayerScheme>],
    ) -> Result<Vec<Vec<Cost>>, PipelineError> {
        let batches = batches(self.prepared)?;
        let directory = self.prepared.graph();
        let spec = directory.spec();
        let parts = self.float.parts();
        // Where the states of each unit and scheme are among all, those of the float model before.
        let mut starts = Vec::with_capacity(units.len());
        let mut count = 1;
        for schemes in schemes {
            starts.push(count);
            count += schemes.len();
        }
        let mut states = HiddenStates::new(count * batches.len(), self.room.memory, self.room.dir);
        let mut sums: Vec<Vec<Sums>> = schemes.iter().map(|all| vec![Sums::default(); all.len()]).collect();
        let mut begun: Vec<usize> = Vec::new();
        let (mut done, total) = (0, units.len());
        for &part in parts {
            let sites = part.sites(spec);
            let here: Vec<usize> =
                (0..units.len()).filter(|unit| sites.contains(&units[*unit].sites[0])).collect();
            let switched: BTreeMap<SiteId, Arc<Switch>> = here
                .iter()
                .flat_map(|unit| &units[*unit].sites)
                .map(|site| Ok((*site, Arc::new(Switch::new(directory, *site)?))))
                .collect::<Result<_, ModelError>>()?;
            let mut factory = |site: SiteId| {
                let switch = switched.get(&site).map(Arc::clone);
                Ok(switch.map(|switch| Box::new(switch) as Box<dyn SiteOp>))
            };
            let model = Model::load_part(spec, directory.checkpoint(), part, &mut factory, Tables::Read)?;
            for (batch, content) in batches.iter().enumerate() {
                let before = states.take(batch)?;
                let after = model.advance(content, before.clone())?;
                let add = |sums: &mut Sums, found: State| {
                    if let (State::Done(expected), State::Done(found)) = (&after, found) {
                        sums.add(spec, expected, &found);
                    }
                };
                for &unit in &begun {
                    for (candidate, sums) in sums[unit].iter_mut().enumerate() {
                        let index = (starts[unit] + candidate) * batches.len() + batch;
                        match model.advance(content, states.take(index)?)? {
                            found @ State::Done(_) => add(sums, found),
                            state => states.update(index, |_| Ok(state))?,
                        }
                    }
                }
                for &unit in &here {
                    let mut weights = self.weights(&units[unit])?;
                    for (candidate, scheme) in schemes[unit].iter().enumerate() {
                        if self.cancel.is_requested() {
                            return Err(PipelineError::Cancelled);
                        }
                        for site in &units[unit].sites {
                            let op = self.quantized(*site, &mut weights, scheme, model.isa())?;
                            switched[site].switch(Some(op));
                        }
                        let state = model.advance(content, before.clone())?;
                        let sums = &mut sums[unit][candidate];
                        for site in &units[unit].sites {
                            let (signal, noise) = switched[site].switch(None);
                            sums.signal += signal;
                            sums.noise += noise;
                        }
                        match state {
                            // Nothing is kept of the outputs, which may have a vocabulary in each row.
                            found @ State::Done(_) => add(sums, found),
                            state => {
                                let index = (starts[unit] + candidate) * batches.len() + batch;
                                states.update(index, |_| Ok(state))?;
                            }
                        }
                    }
                    if batch + 1 == batches.len() {
                        done += 1;
                        self.events.event(Event::Measured { done, total });
                    }
                }
                if let State::Hidden(_) = after {
                    states.update(batch, |_| Ok(after))?;
                }
            }
            begun.extend(here);
        }
        Ok(sums.iter().map(|of_unit| of_unit.iter().map(Sums::cost).collect()).collect())
    }

    /// The float weights of a unit.
    fn weights(&self, unit: &Unit) -> Result<Weights, PipelineError> {
        let directory = self.prepared.graph();
        let read = |id: &LinearId| {
            let weight = directory.spec().linears[*id].read_weight(directory.checkpoint())?;
            Ok((*id, (weight, None)))
        };
        unit.linears.iter().map(read).collect()
    }

    /// A site whose Linears are quantised by a scheme, those of `weights`; a weight that was rounded so last is not rounded again.
    fn quantized(
        &self,
        site: SiteId,
        weights: &mut Weights,
        scheme: &LayerScheme,
        isa: Isa,
    ) -> Result<SimulatedSite, PipelineError> {
        let directory = self.prepared.graph();
        let (spec, checkpoint) = (directory.spec(), directory.checkpoint());
        let mut readers = Vec::new();
        for id in &spec.sites[site].consumers {
            let linear = &spec.linears[*id];
            let failed = |reason: String| PipelineError::Layer { path: linear.path.clone(), reason };
            let Some((weight, last)) = weights.get_mut(id) else {
                readers.push(SimulatedReader::Float(linear.read_float(checkpoint)?));
                continue;
            };
            let (numbers, observer) = (scheme.scheme.weights, scheme.weight_observer);
            let rounded = match last.take() {
                Some((known, rounded))
                    if known.scheme.weights == numbers && known.weight_observer == observer =>
                {
                    rounded
                }
                _ => quantize_weight(isa, weight, linear.outputs, linear.inputs, numbers, observer)
                    .map_err(|error| failed(error.to_string()))?,
            };
            let quantizer = if scheme.scheme.is_weight_only() {
                None
            } else {
                let observed = self.statistics.sites.get(&spec.sites[site].id);
                Some(site_quantizer(observed, scheme).map_err(|error| failed(error.to_string()))?)
            };
            let bias = linear.read_bias(checkpoint)?;
            let reader = simulated_reader(linear, &rounded, numbers.bits, quantizer, bias);
            readers.push(reader.map_err(ModelError::from)?);
            *last = Some((*scheme, rounded));
        }
        Ok(SimulatedSite { isa, readers })
    }
}

impl Switch {
    fn new(directory: &ModelDirectory, site: SiteId) -> Result<Self, ModelError> {
        let (spec, checkpoint) = (directory.spec(), directory.checkpoint());
        let read = |id: &LinearId| spec.linears[*id].read_float(checkpoint);
        let linears = spec.sites[site].consumers.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { float: FloatSite { isa: Isa::active()?, linears }, state: Mutex::default() })
    }

    /// Puts another operator in, and gives the sums since the last time.
    fn switch(&self, quantized: Option<SimulatedSite>) -> (f64, f64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *state, Switched { quantized, sums: (0.0, 0.0) }).sums
    }
}

/// Sums over the batches of a unit and scheme.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    signal: f64,
    noise: f64,
    loss: f64,
    rows: usize,
}

impl Sums {
    /// Adds what the outputs of the model lose, sample by sample.
    fn add(&mut self, spec: &ModelSpec, expected: &Outputs, found: &Outputs) {
        let (head, columns) = (&spec.head().output, expected.columns);
        // A sample's rows are taken together where they make one answer; a decoder's are many answers.
        let losses: Vec<f64> = if *head == HeadOutput::CausalLm {
            let rows = expected.values.par_chunks_exact(columns).zip(found.values.par_chunks_exact(columns));
            rows.map(|(expected, found)| output_loss(head, expected, found, columns)).collect()
        } else {
            let samples = expected.samples().zip(found.samples());
            samples.map(|(expected, found)| output_loss(head, expected, found, columns)).collect()
        };
        self.loss += losses.iter().sum::<f64>();
        self.rows += losses.len();
    }

    fn cost(&self) -> Cost {
        Cost {
            output_sqnr_db: capped_sqnr_db(sqnr_db(self.signal, self.noise)),
            loss: self.loss / self.rows.max(1) as f64,
        }
    }
}

/// The beginnings of a few calibration samples, in a batch for each tower.
fn batches(prepared: &Prepared) -> Result<Vec<PackedBatch>, PipelineError> {
    let cut = |input: &ModelInput| match input {
        ModelInput::Tokens(tokens) => {
            let length = tokens.len().min(TOKENS);
            ModelInput::Tokens(TokenSequence {
                ids: tokens.ids[..length].to_vec(),
                type_ids: tokens.type_ids[..length].to_vec(),
                prompt: tokens.prompt.min(length),
            })
        }
        ModelInput::Image(_) => input.clone(),
    };
    let is_image = |input: &&ModelInput| matches!(input, ModelInput::Image(_));
    let (images, texts): (Vec<&ModelInput>, Vec<&ModelInput>) =
        prepared.calibration.inputs.iter().partition(is_image);
    let spread = |inputs: Vec<&ModelInput>| {
        let step = inputs.len().div_ceil(SAMPLES).max(1);
        inputs.into_iter().step_by(step).map(cut).collect::<Vec<_>>()
    };
    let batches = [texts, images].map(spread);
    let batches = batches.into_iter().filter(|inputs| !inputs.is_empty());
    Ok(batches.map(|inputs| PackedBatch::new(&inputs)).collect::<Result<_, ModelError>>()?)
}

/// What an earlier run has kept, if it is of these units and schemes.
fn known(path: &PathBuf, schemes: &[Vec<LayerScheme>]) -> Option<Vec<Vec<Cost>>> {
    let costs: Vec<Vec<Cost>> = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let lengths = costs.iter().map(Vec::len);
    lengths.eq(schemes.iter().map(Vec::len)).then_some(costs)
}
