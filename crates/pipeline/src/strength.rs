//! The strength of smoothing, searched for each site by what it leaves of the error of the Linears that read it.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use zeropoint_core::{ActivationMode, ParamsError, QuantParams};
use zeropoint_kernels::Isa;
use zeropoint_models::{
    ActivationQuantizer, FloatParts, ModelError, ModelParts, SiteId, SiteSink, State, rows_of,
};
use zeropoint_observer::WeightObserver;
use zeropoint_quantizer::transform::{
    Edit, EditedRows, Smoothing, Strength, activation_aware_factors, edit_weight, smoothing_factors,
};
use zeropoint_quantizer::{LayerScheme, quantize_weight};

use crate::check::probe_batches;
use crate::events::Cancel;
use crate::graph::Graph;
use crate::{PipelineError, Prepared};

/// Those that are tried. Beyond them one side has next to nothing of the other's range.
const STRENGTHS: [f64; 8] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Those of factors that go by activations alone; 0 leaves all as it is.
const ACTIVATION_AWARE: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Rows of a site that are looked at.
const ROWS: usize = 256;

/// The largest magnitudes of the activations and of the weights of a smoothing.
type Maxima<'a> = dyn Fn(&Smoothing) -> Result<[Vec<f32>; 2], PipelineError> + 'a;

/// The factors of each smoothing of the graph: of the strength that is asked for, or of the best one for the inputs that a few
/// calibration samples have in the original.
pub(crate) fn chosen_factors(
    prepared: &Prepared,
    graph: &Graph,
    float: &FloatParts<'_>,
    maxima: &Maxima<'_>,
    cancel: &Cancel,
) -> Result<Vec<Vec<f32>>, PipelineError> {
    let all = &graph.plan.smoothings;
    let maxima: Vec<[Vec<f32>; 2]> = all.iter().map(maxima).collect::<Result<_, _>>()?;
    let mut wanted = BTreeSet::new();
    let mut of_one = |(smoothing, [activations, weights]): (&Smoothing, &[Vec<f32>; 2])| {
        // What is searched for and never seen is as it would be without a search.
        match smoothing.strength {
            Strength::Fixed(strength) => smoothing_factors(strength, activations, weights),
            Strength::Search => {
                wanted.insert(smoothing.site);
                smoothing_factors(0.5, activations, weights)
            }
            Strength::ActivationAware => {
                wanted.insert(smoothing.site);
                vec![1.0; smoothing.factors]
            }
        }
    };
    let mut found: Vec<Vec<f32>> = all.iter().zip(&maxima).map(&mut of_one).collect();
    let searched = |index: &usize| !matches!(all[*index].strength, Strength::Fixed(_));
    if wanted.is_empty() {
        return Ok(found);
    }
    let batches = probe_batches(prepared)?;
    let mut states: Vec<State> = batches.iter().map(|_| State::Begin).collect();
    for &part in float.parts() {
        let model = float.load(part)?;
        let mut sink = Rows { wanted: &wanted, sites: BTreeMap::new() };
        for (batch, state) in batches.iter().zip(&mut states) {
            let before = std::mem::replace(state, State::Begin);
            *state = model.observe(batch, before, &mut sink)?;
        }
        for (index, smoothing) in all.iter().enumerate().filter(|(index, _)| searched(index)) {
            let Some(rows) = sink.sites.get(&smoothing.site) else { continue };
            if cancel.is_requested() {
                return Err(PipelineError::Cancelled);
            }
            let trial = Trial { prepared, graph, smoothing, index, rows };
            let (strength, factors) = if smoothing.strength == Strength::ActivationAware {
                let means = mean_magnitudes(smoothing, rows);
                trial.best(&ACTIVATION_AWARE, &|strength| activation_aware_factors(strength, &means))?
            } else {
                let [activations, weights] = &maxima[index];
                trial.best(&STRENGTHS, &|strength| smoothing_factors(strength, activations, weights))?
            };
            found[index] = factors;
            let site = &prepared.directory.spec().sites[smoothing.site].id;
            tracing::debug!(site, strength, "strength of smoothing chosen");
        }
    }
    Ok(found)
}

/// Some rows of sites.
struct Rows<'a> {
    wanted: &'a BTreeSet<SiteId>,
    sites: BTreeMap<SiteId, Vec<f32>>,
}

impl SiteSink for Rows<'_> {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        if self.wanted.contains(&site) {
            let rows = self.sites.entry(site).or_default();
            let step = (values.len() / channels).div_ceil(ROWS).max(1);
            for row in
                values.chunks_exact(channels).step_by(step).take(ROWS - (rows.len() / channels).min(ROWS))
            {
                rows.extend_from_slice(row);
            }
        }
        Ok(())
    }
}

/// The mean magnitude over rows `[rows, channels]` of the channels of each factor.
fn mean_magnitudes(smoothing: &Smoothing, rows: &[f32]) -> Vec<f32> {
    let channels = smoothing.channels();
    let mut sums = vec![0f64; smoothing.factors];
    for (at, x) in rows.iter().enumerate() {
        sums[smoothing.factor_of(at % channels)] += f64::from(x.abs());
    }
    let count = rows.len() as f64 / smoothing.factors as f64;
    sums.iter().map(|sum| (sum / count) as f32).collect()
}

/// One smoothing and what it is tried on.
struct Trial<'a> {
    prepared: &'a Prepared,
    graph: &'a Graph,
    smoothing: &'a Smoothing,
    index: usize,
    /// `[rows, channels]`.
    rows: &'a [f32],
}

impl Trial<'_> {
    /// The strength with the least squared error of the outputs, and its factors.
    fn best(
        &self,
        strengths: &[f64],
        factors: &(dyn Fn(f64) -> Vec<f32> + Sync),
    ) -> Result<(f64, Vec<f32>), PipelineError> {
        let readers = self.readers()?;
        // Not all at once: each holds its own weights.
        let halves = strengths.par_chunks(strengths.len().div_ceil(2));
        let errors = |half: &[f64]| -> Vec<Result<f64, PipelineError>> {
            half.iter().map(|strength| self.error(&factors(*strength), &readers)).collect()
        };
        let errors: Vec<Result<f64, PipelineError>> = halves.flat_map_iter(errors).collect();
        let mut best = (f64::INFINITY, strengths[0]);
        for (error, &strength) in errors.into_iter().zip(strengths) {
            let error = error?;
            if error < best.0 {
                best = (error, strength);
            }
        }
        Ok((best.1, factors(best.1)))
    }

    /// The Linears that become integers, with their weights and float outputs.
    fn readers(&self) -> Result<Vec<Reader<'_>>, PipelineError> {
        let (spec, plan) = (self.prepared.directory.spec(), &self.prepared.plan);
        let checkpoint = self.prepared.directory.checkpoint();
        let mut readers = Vec::new();
        for id in &self.smoothing.linears {
            let Some(scheme) = plan.linears[*id].scheme() else { continue };
            let linear = &spec.linears[*id];
            let weight = linear.read_weight(checkpoint)?;
            let output = product(self.rows, &weight, linear.inputs).map_err(ModelError::from)?;
            let edits = self.graph.plan.linears.get(id).map_or(&[][..], Vec::as_slice);
            // Of columns: what is done to rows leaves the error of the input as it is.
            let edits = edits.iter().filter(|edit| match edit {
                Edit::ScaleColumns { smoothing } => *smoothing == self.index,
                Edit::RotateColumns { .. } => true,
                _ => false,
            });
            readers.push(Reader {
                scheme,
                edits: edits.cloned().collect(),
                weight,
                output,
                inputs: linear.inputs,
                path: &linear.path,
            });
        }
        Ok(readers)
    }

    /// The squared error of the outputs of all Linears, smoothed with these factors and rounded.
    fn error(&self, factors: &[f32], readers: &[Reader<'_>]) -> Result<f64, PipelineError> {
        let isa = Isa::active().map_err(ModelError::from)?;
        let mut all = vec![Vec::new(); self.graph.plan.smoothings.len()];
        all[self.index] = factors.to_vec();
        let mut error = 0.0;
        // Linears of one scheme read the same.
        let mut input: Option<(&Reader<'_>, Vec<f32>)> = None;
        for reader in readers {
            let Reader { scheme, edits, weight, output, inputs, path } = reader;
            let failed = |reason: String| PipelineError::Layer { path: (*path).to_owned(), reason };
            let x = match input.take() {
                Some((known, x)) if known.reads_as(reader) => x,
                _ => self.input(isa, factors, reader).map_err(|error| failed(error.to_string()))?,
            };
            let mut w = weight.clone();
            let outputs = w.len() / inputs;
            let part = EditedRows { values: &mut w, rows: 0..outputs, inputs: *inputs };
            edit_weight(isa, &self.graph.plan, edits, (&all, &[]), part);
            // The full range, which takes no search of its own.
            let w = quantize_weight(isa, &w, outputs, *inputs, scheme.scheme.weights, WeightObserver::MinMax);
            let w = w.map_err(|error| failed(error.to_string()))?.dequantize();
            let found = product(&x, &w, *inputs).map_err(ModelError::from)?;
            error += output.iter().zip(&found).map(|(y, found)| f64::from(y - found).powi(2)).sum::<f64>();
            input = Some((reader, x));
        }
        Ok(error)
    }

    /// What a Linear reads of the rows: smoothed, rotated and rounded.
    fn input(&self, isa: Isa, factors: &[f32], reader: &Reader<'_>) -> Result<Vec<f32>, ParamsError> {
        let mut x = self.rows.to_vec();
        for edit in &reader.edits {
            match edit {
                Edit::ScaleColumns { .. } => x.chunks_exact_mut(reader.inputs).for_each(|row| {
                    for (channel, x) in row.iter_mut().enumerate() {
                        *x /= factors[self.smoothing.factor_of(channel)];
                    }
                }),
                Edit::RotateColumns { .. } => {
                    if let Some(rotation) = edit.rotation() {
                        rotation.apply(isa, &mut x);
                    }
                }
                _ => {}
            }
        }
        match quantizer(reader.scheme, &x)? {
            None => Ok(x),
            Some(quantizer) => Ok(quantizer.quantize(&x, reader.inputs)?.dequantize()),
        }
    }
}

/// A Linear of a site.
struct Reader<'a> {
    scheme: &'a LayerScheme,
    edits: Vec<Edit>,
    weight: Vec<f32>,
    output: Vec<f32>,
    inputs: usize,
    path: &'a str,
}

impl Reader<'_> {
    /// Whether another one reads the same numbers.
    fn reads_as(&self, other: &Self) -> bool {
        (self.scheme.scheme.activations, &self.edits, self.inputs)
            == (other.scheme.scheme.activations, &other.edits, other.inputs)
    }
}

/// How these values would be quantised: a static range is theirs. `None` where they stay float.
fn quantizer(scheme: &LayerScheme, x: &[f32]) -> Result<Option<ActivationQuantizer>, ParamsError> {
    let Some(activations) = scheme.scheme.activations else { return Ok(None) };
    let (min, max) = x.iter().fold((0f32, 0f32), |(low, high), v| (low.min(*v), high.max(*v)));
    Ok(Some(match activations.mode {
        ActivationMode::Dynamic => ActivationQuantizer::Dynamic(activations.symmetry),
        ActivationMode::Static => {
            ActivationQuantizer::Static(QuantParams::from_range(min, max, activations.symmetry)?)
        }
    }))
}

/// `x w^T` of `[rows, inputs]` and `[outputs, inputs]`.
fn product(x: &[f32], w: &[f32], inputs: usize) -> candle_core::Result<Vec<f32>> {
    let matrix = |values: &[f32]| Tensor::from_slice(values, (values.len() / inputs, inputs), &Device::Cpu);
    rows_of(&matrix(x)?.matmul(&matrix(w)?.t()?)?, <[f32]>::to_vec)
}
