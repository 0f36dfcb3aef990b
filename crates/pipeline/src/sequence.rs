//! The calibration samples on their way through a model that is quantised part by part: what the integers before a part make of
//! them is what its weights are rounded for.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use zeropoint_calibrator::Room;
use zeropoint_models::{ActivationQuantizer, HiddenStates, Model, PackedBatch, SiteId, SiteSink, rows_of};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::{Curvature, WeightAlgorithm};

use crate::deploy::input_quantizer;
use crate::events::{Cancel, Event, Events};
use crate::{PipelineError, Prepared};

/// Channels whose products with those before are computed together.
const TILE: usize = 256;

/// Every batch of the calibration set, as far as the written parts have brought it.
pub(crate) struct Sequence<'a> {
    prepared: &'a Prepared,
    batches: Vec<PackedBatch>,
    states: HiddenStates,
    /// Sites that Linears read whose weights are rounded for their inputs, or whose biases are corrected.
    sites: BTreeSet<SiteId>,
    /// Of the second moments, where weights are rounded for them.
    damping: Option<f64>,
    /// Of sites at which means are taken, each way in which their activation is quantised.
    quantizers: BTreeMap<SiteId, Vec<Option<ActivationQuantizer>>>,
    events: &'a dyn Events,
    cancel: &'a Cancel,
    done: usize,
    total: usize,
}

impl<'a> Sequence<'a> {
    /// Before the first of so many parts; `None` where nothing goes by the inputs.
    pub(crate) fn begin(
        prepared: &'a Prepared,
        statistics: &StatisticsFile,
        parts: usize,
        room: Room<'_>,
        events: &'a dyn Events,
        cancel: &'a Cancel,
    ) -> Result<Option<Self>, PipelineError> {
        let damping = match prepared.plan.algorithm {
            WeightAlgorithm::Gptq { damping } => Some(damping),
            WeightAlgorithm::Rtn if prepared.plan.bias_correction => None,
            WeightAlgorithm::Rtn => return Ok(None),
        };
        let set = &prepared.calibration;
        let batch = |samples: &Vec<usize>| PackedBatch::new(samples.iter().map(|i| &set.inputs[*i]));
        let batches: Vec<PackedBatch> = set.plan.batches().iter().map(batch).collect::<Result<_, _>>()?;
        let linears = &prepared.graph().spec().linears;
        let mut sites = BTreeSet::new();
        let mut quantizers: BTreeMap<SiteId, Vec<Option<ActivationQuantizer>>> = BTreeMap::new();
        for (plan, scheme) in prepared.plan.quantized() {
            let linear = &linears[plan.linear];
            let Some(site) = linear.site else { continue };
            let corrects = prepared.plan.bias_correction && linear.bias.is_some();
            if damping.is_some() || corrects {
                sites.insert(site);
            }
            if corrects {
                let quantizer = input_quantizer(prepared, Some(statistics), linear, scheme)?;
                let known = quantizers.entry(site).or_default();
                if !known.contains(&quantizer) {
                    known.push(quantizer);
                }
            }
        }
        let states = HiddenStates::new(batches.len(), room.memory, room.dir);
        let total = 2 * parts * batches.len();
        Ok(Some(Self {
            prepared,
            batches,
            states,
            sites,
            damping,
            quantizers,
            events,
            cancel,
            done: 0,
            total,
        }))
    }

    /// What the inputs of the sites of a part, in floats behind the integers before, say of their weights and biases.
    pub(crate) fn inputs(&mut self, float: &Model) -> Result<PartInputs, PipelineError> {
        let spec = self.prepared.graph().spec();
        let wanted: BTreeSet<SiteId> = float.part().sites(spec).intersection(&self.sites).copied().collect();
        let quantizers = std::mem::take(&mut self.quantizers);
        let mut sink = Moments {
            sites: BTreeMap::new(),
            means: BTreeMap::new(),
            wanted: &wanted,
            quantizers: &quantizers,
            squares: self.damping.is_some(),
        };
        for index in 0..self.batches.len() {
            if self.cancel.is_requested() {
                return Err(PipelineError::Cancelled);
            }
            let batch = &self.batches[index];
            if !wanted.is_empty() {
                let before = self.states.take(index)?;
                float.show(batch, before.clone(), &mut sink)?;
                self.states.update(index, |_| Ok(before))?;
            }
            self.tell();
        }
        let means = std::mem::take(&mut sink.means);
        let squares = std::mem::take(&mut sink.sites);
        self.quantizers = quantizers;
        let Some(damping) = self.damping else {
            return Ok(PartInputs { curvatures: BTreeMap::new(), means });
        };
        let of_site = |(site, moments): (SiteId, Vec<f32>)| {
            let found = Curvature::new(&moments, spec.sites[site].channels, damping);
            let failed = |reason: String| PipelineError::Layer { path: spec.sites[site].id.clone(), reason };
            Ok((site, found.map_err(|error| failed(error.to_string()))?))
        };
        let found: Vec<(SiteId, Curvature)> =
            squares.into_par_iter().map(of_site).collect::<Result<_, PipelineError>>()?;
        for (site, curvature) in &found {
            let site = &spec.sites[*site].id;
            if curvature.damping > damping {
                let warning = format!(
                    "{site}: the second moments of its channels are nearly dependent; GPTQ adds {} of their mean, not {damping}",
                    curvature.damping
                );
                self.events.event(Event::Warning(warning));
            }
            tracing::debug!(site, curvature.damping, curvature.dead, "second moments factorised");
        }
        Ok(PartInputs { curvatures: found.into_iter().collect(), means })
    }

    /// Takes all batches through a part that was written.
    pub(crate) fn advance(&mut self, written: &Model) -> Result<(), PipelineError> {
        for index in 0..self.batches.len() {
            if self.cancel.is_requested() {
                return Err(PipelineError::Cancelled);
            }
            let batch = &self.batches[index];
            self.states.update(index, |state| written.advance(batch, state))?;
            self.tell();
        }
        Ok(())
    }

    /// Leaves out what was to be observed in a part that is written already.
    pub(crate) fn skip(&mut self) {
        self.done += self.batches.len();
    }

    fn tell(&mut self) {
        self.done += 1;
        self.events.event(Event::Propagated { done: self.done, total: self.total });
    }
}

/// What the inputs of a part's sites say of the weights and biases of the Linears that read them.
#[derive(Default)]
pub(crate) struct PartInputs {
    /// Where weights are rounded for them.
    pub(crate) curvatures: BTreeMap<SiteId, Curvature>,
    /// Where biases are corrected.
    pub(crate) means: BTreeMap<SiteId, Means>,
}

/// Sums over the rows of a site.
pub(crate) struct Means {
    rows: u64,
    sums: Vec<f64>,
    /// Of the values as each quantiser has them.
    quantized: Vec<(Option<ActivationQuantizer>, Vec<f64>)>,
}

impl Means {
    /// The mean of each channel, and that of what a quantiser makes of it.
    pub(crate) fn of(&self, quantizer: Option<ActivationQuantizer>) -> Option<[Vec<f64>; 2]> {
        let rows = self.rows.max(1) as f64;
        let mean = |sums: &Vec<f64>| sums.iter().map(|sum| sum / rows).collect();
        let (_, found) = self.quantized.iter().find(|(known, _)| *known == quantizer)?;
        Some([mean(&self.sums), mean(found)])
    }

    fn add(&mut self, values: &[f32], channels: usize) -> Result<(), String> {
        self.rows += (values.len() / channels) as u64;
        sum_rows(&mut self.sums, values);
        for (quantizer, sums) in &mut self.quantized {
            match quantizer {
                None => sum_rows(sums, values),
                Some(quantizer) => {
                    let rounded = quantizer.quantize(values, channels).map_err(|error| error.to_string())?;
                    sum_rows(sums, &rounded.dequantize());
                }
            }
        }
        Ok(())
    }
}

fn sum_rows(sums: &mut [f64], values: &[f32]) {
    for row in values.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
}

/// Sums of `x x^T` over the rows that sites show, of which the lower triangle is computed, and of `x`.
struct Moments<'a> {
    sites: BTreeMap<SiteId, Vec<f32>>,
    means: BTreeMap<SiteId, Means>,
    wanted: &'a BTreeSet<SiteId>,
    quantizers: &'a BTreeMap<SiteId, Vec<Option<ActivationQuantizer>>>,
    squares: bool,
}

impl SiteSink for Moments<'_> {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        if !self.wanted.contains(&site) {
            return Ok(());
        }
        if let Some(quantizers) = self.quantizers.get(&site) {
            let none = || Means {
                rows: 0,
                sums: vec![0.0; channels],
                quantized: quantizers.iter().map(|quantizer| (*quantizer, vec![0.0; channels])).collect(),
            };
            self.means.entry(site).or_insert_with(none).add(values, channels)?;
        }
        if !self.squares {
            return Ok(());
        }
        let sums = self.sites.entry(site).or_insert_with(|| vec![0.0; channels * channels]);
        add(sums, values, channels).map_err(|error| error.to_string())
    }
}

/// Adds the products of the channels of `x`, `[rows, channels]`.
fn add(sums: &mut [f32], x: &[f32], channels: usize) -> candle_core::Result<()> {
    let x = Tensor::from_slice(x, (x.len() / channels, channels), &Device::Cpu)?;
    // The last ones take the longest.
    let tiles = sums.par_chunks_mut(TILE * channels).enumerate().rev();
    tiles.try_for_each(|(tile, sums)| {
        let (start, width) = (tile * TILE, sums.len() / channels);
        let product = x.narrow(1, start, width)?.t()?.matmul(&x.narrow(1, 0, start + width)?)?;
        rows_of(&product, |product| {
            for (sums, product) in sums.chunks_exact_mut(channels).zip(product.chunks_exact(start + width)) {
                sums.iter_mut().zip(product).for_each(|(sum, x)| *sum += x);
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeropoint_core::Rng;

    #[test]
    fn moments_are_sums_of_products() {
        let mut rng = Rng::new(1);
        for channels in [1, 5, 256, 300] {
            let rows = 7;
            let x: Vec<f32> = (0..rows * channels).map(|_| rng.normal() as f32).collect();
            let mut sums = vec![0f32; channels * channels];
            add(&mut sums, &x, channels).unwrap();
            add(&mut sums, &x, channels).unwrap();
            for i in 0..channels {
                for j in 0..=i {
                    let products = (0..rows).map(|row| x[row * channels + i] * x[row * channels + j]);
                    let expected = 2.0 * products.sum::<f32>();
                    assert!((sums[i * channels + j] - expected).abs() < 1e-4, "{channels} {i} {j}");
                }
            }
        }
    }
}
