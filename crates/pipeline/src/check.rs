//! The self-check: what was written, loaded back and run beside the simulation of the plan; and each layer's own error.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use zeropoint_evaluator::metrics::fidelity::cosine;
use zeropoint_evaluator::report::SelfCheck;
use zeropoint_formats::compressed_tensors::read_linear;
use zeropoint_models::{
    EmbeddingTable, Hidden, HiddenStates, INT8_ATTENTION, Model, ModelDirectory, ModelError, ModelInput,
    PackedBatch, Part, SimulatedReader, SimulatedSite, SiteId, SiteOp, SiteSink, State, Tables, rows_of,
};
use zeropoint_observer::sqnr_db;
use zeropoint_quantizer::{EmbeddingPrecision, simulated_reader};

use crate::deploy::DeployedLinear;
use crate::{PipelineError, Prepared, tables};

/// The largest relative deviation of the written model's outputs from the simulation's. They are computed to the same
/// bits; what is above 0 is a fault. (A cosine of 0.9999 would be a deviation of 0.014.)
const MAX_DEVIATION: f64 = 1e-4;
/// Samples that are run, spread over all lengths.
const SAMPLES: usize = 16;
/// Tokens that are run: enough to see every channel, few enough to cost little.
const TOKENS: usize = 512;

/// The error of each quantised Linear on the inputs it has in the float model, by its index in the description.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerErrors {
    /// Float output against quantised output, in decibels.
    pub output_sqnr_db: BTreeMap<usize, f64>,
    /// Float input against quantised input, in decibels.
    pub input_sqnr_db: BTreeMap<usize, f64>,
}

/// A part of the model as the plan should compute it. A part that is whole shares the tables of the float model.
pub(crate) fn simulate(
    prepared: &Prepared,
    float: &Model,
    deployed: &BTreeMap<usize, DeployedLinear>,
) -> Result<Model, PipelineError> {
    let (spec, checkpoint) = (prepared.graph().spec(), prepared.graph().checkpoint());
    let mut factory = |site: SiteId| -> Result<Option<Box<dyn SiteOp>>, ModelError> {
        let consumers = &spec.sites[site].consumers;
        if consumers.iter().all(|id| !deployed.contains_key(id)) {
            return Ok(None);
        }
        let readers = consumers
            .iter()
            .map(|id| {
                let linear = &spec.linears[*id];
                match deployed.get(id) {
                    None => Ok(SimulatedReader::Float(linear.read_float(checkpoint)?)),
                    Some(DeployedLinear { weight, scheme, quantizer, bias, .. }) => {
                        let bias = match bias {
                            Some(corrected) => Some(corrected.clone()),
                            None => linear.read_bias(checkpoint)?,
                        };
                        let bits = scheme.scheme.weights.bits;
                        Ok(simulated_reader(linear, weight, bits, *quantizer, bias)?)
                    }
                }
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Some(Box::new(SimulatedSite { isa: float.isa(), readers })))
    };
    let made = |table: &EmbeddingTable| {
        let rows = tables::simulated(prepared, float.isa(), table, deployed);
        rows.map(Some).map_err(|error| ModelError::Sample { reason: error.to_string() })
    };
    let tables = match (prepared.plan.embeddings, float.part()) {
        (EmbeddingPrecision::Keep, Part::Whole) => Tables::Shared(float),
        (EmbeddingPrecision::Bf16, Part::Whole) => Tables::SharedAsBf16(float),
        (EmbeddingPrecision::Keep, _) => Tables::Read,
        (EmbeddingPrecision::Bf16, _) => Tables::ReadAsBf16,
        (EmbeddingPrecision::Int8, _) => Tables::Made(&made),
    };
    let mut model = Model::load_part(spec, checkpoint, float.part(), &mut factory, tables)?;
    if prepared.plan.quantized().any(|(_, layer)| !layer.scheme.is_weight_only()) {
        model.set_attention_precision(INT8_ATTENTION);
    }
    Ok(model)
}

/// A few calibration samples of each tower, spread over all lengths, with their indices.
fn probes(prepared: &Prepared) -> Vec<Vec<(usize, &ModelInput)>> {
    let inputs = &prepared.calibration.inputs;
    let order: Vec<usize> = prepared.calibration.plan.batches().concat();
    let is_image = |i: &usize| matches!(inputs[*i], ModelInput::Image(_));
    let (images, texts): (Vec<usize>, Vec<usize>) = order.into_iter().partition(is_image);
    let spec = prepared.graph().spec();
    let choose = |order: Vec<usize>| {
        let step = order.len().div_ceil(SAMPLES).max(1);
        // From the short end, so that long samples are left out first when tokens run out.
        let mut tokens = 0;
        let mut chosen = Vec::new();
        for &i in order.iter().rev().step_by(step) {
            tokens += inputs[i].rows(spec);
            if tokens > TOKENS && !chosen.is_empty() {
                break;
            }
            chosen.push((i, &inputs[i]));
        }
        chosen
    };
    [texts, images].into_iter().filter(|order| !order.is_empty()).map(choose).collect()
}

/// Those samples in a batch for each tower.
pub(crate) fn probe_batches(prepared: &Prepared) -> Result<Vec<PackedBatch>, PipelineError> {
    let batch =
        |probes: Vec<(usize, &ModelInput)>| PackedBatch::new(probes.into_iter().map(|(_, input)| input));
    Ok(probes(prepared).into_iter().map(batch).collect::<Result<_, ModelError>>()?)
}

/// The lengths of the samples that the check runs as one batch, in tokens.
pub(crate) fn probe_lengths(prepared: &Prepared) -> Vec<usize> {
    let spec = prepared.graph().spec();
    let lengths = probes(prepared).into_iter();
    let lengths = lengths.map(|probes| probes.into_iter().map(|(_, input)| input.rows(spec)).collect());
    lengths.max_by_key(|lengths: &Vec<usize>| lengths.iter().sum::<usize>()).unwrap_or_default()
}

/// The self-check of a model that is made part by part: the written model beside its simulation, and each layer's own error.
pub(crate) struct PartCheck<'a> {
    prepared: &'a Prepared,
    /// The samples of each batch, by their numbers in the calibration set.
    batches: Vec<(Vec<usize>, PackedBatch)>,
    /// How far each batch is in the float model, and in the simulation.
    float: Vec<State>,
    simulated: Vec<State>,
}

impl<'a> PartCheck<'a> {
    /// Before the first part.
    pub(crate) fn begin(prepared: &'a Prepared) -> Result<Self, PipelineError> {
        let batch = |probes: Vec<(usize, &ModelInput)>| {
            let (samples, inputs): (Vec<usize>, Vec<&ModelInput>) = probes.into_iter().unzip();
            Ok((samples, PackedBatch::new(inputs)?))
        };
        let batches: Vec<_> =
            probes(prepared).into_iter().map(batch).collect::<Result<_, PipelineError>>()?;
        let begin = || batches.iter().map(|_| State::Begin).collect();
        Ok(Self { prepared, float: begin(), simulated: begin(), batches })
    }

    /// Checks what was written of a part, and measures its layers. The result is there after the last part.
    ///
    /// Both models take what the simulation gave before, so that a fault shows where it is.
    pub(crate) fn part(
        &mut self,
        float: &Model,
        written: &Model,
        deployed: &BTreeMap<usize, DeployedLinear>,
    ) -> Result<(LayerErrors, Option<SelfCheck>), PipelineError> {
        let simulated = simulate(self.prepared, float, deployed)?;
        let errors = self.layer_errors(float, &simulated, deployed)?;
        let mut agreement = Agreement::default();
        for ((samples, batch), state) in self.batches.iter().zip(&mut self.simulated) {
            let before = std::mem::replace(state, State::Begin);
            let found = written.advance(batch, before.clone())?;
            *state = simulated.advance(batch, before)?;
            let hidden = self.prepared.graph().spec().towers[0].hidden;
            agreement.add(samples, &by_sample(state, hidden), &by_sample(&found, hidden));
            if let State::Done(_) = state {
                // Logits of a vocabulary are large.
                *state = State::Begin;
            }
        }
        let Agreement { samples, cosine_min, deviation, cosine, sample } = agreement;
        if deviation.is_nan() || deviation > MAX_DEVIATION {
            return Err(PipelineError::SelfCheck { deviation, cosine, sample, limit: MAX_DEVIATION });
        }
        Ok((errors, float.part().has_output().then_some(SelfCheck { samples, cosine_min })))
    }

    /// Measures each quantised Linear alone: float and simulated on the float model's own activations.
    fn layer_errors(
        &mut self,
        float: &Model,
        simulated: &Model,
        deployed: &BTreeMap<usize, DeployedLinear>,
    ) -> Result<LayerErrors, PipelineError> {
        let mut sink = ErrorSink { float, simulated, deployed, sums: BTreeMap::new() };
        for ((_, batch), state) in self.batches.iter().zip(&mut self.float) {
            let before = std::mem::replace(state, State::Begin);
            *state = float.observe(batch, before, &mut sink)?;
        }
        let mut errors = LayerErrors::default();
        for (id, sums) in sink.sums {
            errors.output_sqnr_db.insert(id, sqnr_db(sums.output.0, sums.output.1));
            errors.input_sqnr_db.insert(id, sqnr_db(sums.input.0, sums.input.1));
        }
        Ok(errors)
    }

    /// Writes how far the samples have come between two parts.
    pub(crate) fn save(&self, path: &Path) -> Result<(), PipelineError> {
        let states = self.float.iter().chain(&self.simulated).cloned();
        let mut all = HiddenStates::new(2 * self.batches.len(), u64::MAX, Path::new(""));
        for (index, state) in states.enumerate() {
            all.update(index, |_| Ok(state))?;
        }
        Ok(all.save(path)?)
    }

    /// Goes on from what [`PartCheck::save`] has written.
    pub(crate) fn load(&mut self, path: &Path) -> Result<(), PipelineError> {
        let inputs = &self.prepared.calibration.inputs;
        let of_batch = |(samples, _): &(Vec<usize>, PackedBatch)| {
            let mut offsets = vec![0];
            for &sample in samples {
                offsets.push(offsets[offsets.len() - 1] + inputs[sample].len());
            }
            offsets
        };
        let offsets: Vec<Vec<usize>> = self.batches.iter().chain(&self.batches).map(of_batch).collect();
        let mut all = HiddenStates::new(offsets.len(), u64::MAX, Path::new(""));
        all.load(path, &offsets, self.prepared.graph().spec().towers[0].hidden)?;
        for (index, state) in self.float.iter_mut().chain(&mut self.simulated).enumerate() {
            *state = all.take(index)?;
        }
        Ok(())
    }
}

/// The values of each sample: its hidden states or its outputs.
fn by_sample(state: &State, hidden: usize) -> Vec<&[f32]> {
    match state {
        State::Begin => Vec::new(),
        State::Hidden(Hidden { values, offsets }) => {
            offsets.windows(2).map(|pair| &values[pair[0] * hidden..pair[1] * hidden]).collect()
        }
        State::Done(outputs) => outputs.samples().collect(),
    }
}

/// How well the outputs of two models agree.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Agreement {
    /// How many were compared.
    samples: u64,
    /// The lowest cosine.
    cosine_min: f64,
    /// The largest deviation, NaN when outputs cannot be compared.
    deviation: f64,
    /// The cosine there.
    cosine: f64,
    /// The sample there.
    sample: usize,
}

impl Default for Agreement {
    fn default() -> Self {
        Self { samples: 0, cosine_min: 1.0, deviation: 0.0, cosine: 1.0, sample: 0 }
    }
}

impl Agreement {
    /// Adds the outputs for these samples, in their order.
    fn add(&mut self, samples: &[usize], expected: &[&[f32]], found: &[&[f32]]) {
        self.samples += samples.len() as u64;
        if expected.len() != samples.len() || found.len() != samples.len() {
            // Whose output is whose is not known.
            self.sees(f64::NAN, f64::NAN, samples.first().copied().unwrap_or(0));
            return;
        }
        for (sample, (expected, found)) in samples.iter().zip(expected.iter().zip(found)) {
            self.sees(deviation(expected, found), cosine(expected, found), *sample);
        }
    }

    fn sees(&mut self, deviation: f64, cosine: f64, sample: usize) {
        self.cosine_min = self.cosine_min.min(cosine);
        // Nothing is worse than what is no number.
        if !self.deviation.is_nan() && (deviation.is_nan() || deviation > self.deviation) {
            (self.deviation, self.cosine, self.sample) = (deviation, cosine, sample);
        }
    }
}

/// Length of the difference over the length of what is expected (at least the smallest normal number); NaN when there are
/// more values of one than of the other.
fn deviation(expected: &[f32], found: &[f32]) -> f64 {
    if expected.len() != found.len() {
        return f64::NAN;
    }
    let square = |x: f64| x * x;
    let noise: f64 = expected.iter().zip(found).map(|(e, f)| square(f64::from(*e) - f64::from(*f))).sum();
    let signal: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    (noise / signal.max(f64::MIN_POSITIVE)).sqrt()
}

/// Quantised Linears that the task does not run are compared as they are stored.
pub(crate) fn unrun_linears(
    prepared: &Prepared,
    written: &ModelDirectory,
    deployed: &BTreeMap<usize, DeployedLinear>,
) -> Result<(), PipelineError> {
    for (id, done) in deployed {
        let linear = &prepared.graph().spec().linears[*id];
        if linear.site.is_some() {
            continue;
        }
        let stored = read_linear(written.checkpoint(), &linear.tensor, done.scheme.scheme)?;
        if stored.weight != done.weight.values || stored.weight_scales != done.weight.scales_by_row() {
            let reason = "what was written is not what was quantised; nothing was published".to_owned();
            return Err(PipelineError::Layer { path: linear.path.clone(), reason });
        }
    }
    Ok(())
}

/// Sums of squares: signal and noise.
#[derive(Default)]
struct Sums {
    output: (f64, f64),
    input: (f64, f64),
}

struct ErrorSink<'a> {
    float: &'a Model,
    simulated: &'a Model,
    deployed: &'a BTreeMap<usize, DeployedLinear>,
    sums: BTreeMap<usize, Sums>,
}

impl ErrorSink<'_> {
    fn compare(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), ModelError> {
        let consumers = &self.float.spec().sites[site].consumers;
        if consumers.iter().all(|id| !self.deployed.contains_key(id)) {
            return Ok(());
        }
        let input = Tensor::from_slice(values, (values.len() / channels, channels), &Device::Cpu)?;
        let (float, simulated) = (self.float.run_site(site, &input)?, self.simulated.run_site(site, &input)?);
        for (id, (float, simulated)) in consumers.iter().zip(float.iter().zip(&simulated)) {
            let Some(done) = self.deployed.get(id) else { continue };
            let sums = self.sums.entry(*id).or_default();
            rows_of(float, |float| rows_of(simulated, |simulated| add(&mut sums.output, float, simulated)))??;
            if let Some(quantizer) = done.quantizer {
                let rounded = quantizer.quantize(values, channels).map_err(candle_core::Error::wrap)?;
                add(&mut sums.input, values, &rounded.dequantize());
            }
        }
        Ok(())
    }
}

fn add(sums: &mut (f64, f64), reference: &[f32], approximation: &[f32]) {
    for (r, a) in reference.iter().zip(approximation) {
        sums.0 += f64::from(*r) * f64::from(*r);
        sums.1 += f64::from(r - a) * f64::from(r - a);
    }
}

impl SiteSink for ErrorSink<'_> {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        self.compare(site, values, channels).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::config::Config;
    use crate::deploy::tests::deploy;
    use crate::deploy::tests::room;
    use crate::events::Cancel;
    use crate::statistics::{Origin, Pass, observe};
    use zeropoint_models::{Outputs, Task};
    use zeropoint_runtime::QuantizedModel;

    /// Outputs of one row a sample.
    fn outputs(samples: &[&[f32]], columns: usize) -> Outputs {
        Outputs { values: samples.concat(), columns, offsets: (0..=samples.len()).collect() }
    }

    #[test]
    fn outputs_agree_only_sample_by_sample_and_value_by_value() {
        let expected = outputs(&[&[3.0, 4.0], &[0.0, 1.0]], 2);
        let after = |found: &Outputs| {
            let mut agreement = Agreement::default();
            let [expected, found] = [&expected, found].map(|outputs| outputs.samples().collect::<Vec<_>>());
            agreement.add(&[7, 9], &expected, &found);
            agreement
        };
        assert_eq!(after(&expected), Agreement { samples: 2, ..Agreement::default() });
        let near = after(&outputs(&[&[3.0, 4.0], &[0.0, 1.5]], 2));
        assert_eq!((near.deviation, near.cosine, near.sample, near.cosine_min), (0.5, 1.0, 9, 1.0));
        let turned = after(&outputs(&[&[4.0, -3.0], &[0.0, 1.0]], 2));
        assert_eq!((turned.sample, turned.cosine_min), (7, 0.0));
        for (what, found) in [
            ("a sample is missing", outputs(&[&[3.0, 4.0]], 2)),
            ("there is one more", outputs(&[&[3.0, 4.0], &[0.0, 1.0], &[0.0, 1.0]], 2)),
            ("rows are shorter", outputs(&[&[3.0], &[0.0]], 1)),
            ("rows are longer", outputs(&[&[3.0, 4.0, 0.0], &[0.0, 1.0, 0.0]], 3)),
            ("there is no output", outputs(&[], 2)),
            ("a value is no number", outputs(&[&[3.0, f32::NAN], &[0.0, 1.0]], 2)),
        ] {
            assert!(after(&found).deviation.is_nan(), "{what}");
        }
        // What comes after does not hide it.
        let mut agreement = after(&outputs(&[&[3.0, 4.0]], 2));
        let expected: Vec<&[f32]> = expected.samples().collect();
        agreement.add(&[7, 9], &expected, &expected);
        assert!(agreement.deviation.is_nan() && agreement.samples == 4);
    }

    fn directory(variable: &str) -> PathBuf {
        PathBuf::from(std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names a directory")))
    }

    #[test]
    #[ignore = "needs ZEROPOINT_MODELS and ZEROPOINT_DATA"]
    fn the_runtime_gives_the_bits_of_the_simulation_for_every_sentence_of_stsb() {
        let model = directory("ZEROPOINT_MODELS").join("minilm");
        let data = directory("ZEROPOINT_DATA").join("stsb-en-dev.csv");
        for scheme in ["w8a8-dynamic", "w8a8-static"] {
            let mut config = Config::new(model.to_string_lossy());
            config.quantization = toml::from_str(&format!("scheme = \"{scheme}\"")).unwrap();
            config.calibration.samples = 32;
            config.evaluation.tasks.clear();
            let prepared = Prepared::new(config).unwrap();
            let float = Model::load(&prepared.directory).unwrap();
            let weights = prepared.directory.checkpoint().content_fingerprint().unwrap();
            let origin = Origin::of(&prepared, weights).unwrap();
            let cancel = Cancel::default();
            let pass = Pass::whole(prepared.last_pass(), room());
            let statistics = observe(&prepared, origin, &float, pass, &mut |_| Ok(()), &(), &cancel).unwrap();
            let out = tempfile::tempdir().unwrap();
            let deployed = deploy(&prepared, &statistics, float.isa(), out.path());
            let written = QuantizedModel::load(out.path(), Task::Embedding).unwrap();
            let simulated = simulate(&prepared, &float, &deployed).unwrap();

            let mut compared = 0;
            for sentences in sentences(&data).chunks(100) {
                let texts: Vec<(&str, Option<&str>)> =
                    sentences.iter().map(|text| (text.as_str(), None)).collect();
                let batch =
                    PackedBatch::new(&prepared.inputs.tokenizer().unwrap().encode_all(&texts).unwrap())
                        .unwrap();
                assert_eq!(written.forward(&batch).unwrap(), simulated.forward(&batch).unwrap(), "{scheme}");
                compared += batch.len();
            }
            assert_eq!(compared, 3000);
        }
    }

    fn sentences(data: &Path) -> Vec<String> {
        use zeropoint_calibrator::dataset::{FieldRef, Fields, Format, ReadOptions, read};
        let column = FieldRef::Column;
        let fields = Fields { text_a: column(0), text_b: column(1), score: column(2), ..Fields::default() };
        let format = Some(Format::Csv { header: Some(false), delimiter: b',' });
        let samples = read(data, &ReadOptions { format, fields }).unwrap();
        samples.into_iter().flat_map(|sample| [sample.text_a, sample.text_b.unwrap()]).collect()
    }
}
