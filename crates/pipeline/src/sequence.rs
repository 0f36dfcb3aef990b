//! The calibration samples on their way through a model that is quantised part by part: what the integers before a part make of
//! them is what its weights are rounded for.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use zeropoint_calibrator::Room;
use zeropoint_models::{HiddenStates, Model, PackedBatch, SiteId, SiteSink, rows_of};
use zeropoint_quantizer::{Curvature, WeightAlgorithm};

use crate::events::{Cancel, Event, Events};
use crate::{PipelineError, Prepared};

/// Channels whose products with those before are computed together.
const TILE: usize = 256;

/// Every batch of the calibration set, as far as the written parts have brought it.
pub(crate) struct Sequence<'a> {
    prepared: &'a Prepared,
    batches: Vec<PackedBatch>,
    states: HiddenStates,
    /// Sites that Linears read whose weights are rounded for their inputs.
    sites: BTreeSet<SiteId>,
    damping: f64,
    events: &'a dyn Events,
    cancel: &'a Cancel,
    done: usize,
    total: usize,
}

impl<'a> Sequence<'a> {
    /// Before the first of so many parts; `None` where no weight is rounded for its inputs.
    pub(crate) fn begin(
        prepared: &'a Prepared,
        parts: usize,
        room: Room<'_>,
        events: &'a dyn Events,
        cancel: &'a Cancel,
    ) -> Result<Option<Self>, PipelineError> {
        let WeightAlgorithm::Gptq { damping } = prepared.plan.algorithm else { return Ok(None) };
        let set = &prepared.calibration;
        let batch = |samples: &Vec<usize>| PackedBatch::new(samples.iter().map(|i| &set.inputs[*i]));
        let batches: Vec<PackedBatch> = set.plan.batches().iter().map(batch).collect::<Result<_, _>>()?;
        let linears = &prepared.graph().spec().linears;
        let sites = prepared.plan.quantized().filter_map(|(linear, _)| linears[linear.linear].site).collect();
        let states = HiddenStates::new(batches.len(), room.memory, room.dir);
        let total = 2 * parts * batches.len();
        Ok(Some(Self { prepared, batches, states, sites, damping, events, cancel, done: 0, total }))
    }

    /// What the inputs of the sites of a part, in floats behind the integers before, say of their weights.
    pub(crate) fn curvatures(&mut self, float: &Model) -> Result<BTreeMap<SiteId, Curvature>, PipelineError> {
        let spec = self.prepared.graph().spec();
        let wanted: BTreeSet<SiteId> = float.part().sites(spec).intersection(&self.sites).copied().collect();
        let mut sink = Moments { sites: BTreeMap::new(), wanted: &wanted };
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
        let damping = self.damping;
        let of_site = |(site, moments): (SiteId, Vec<f32>)| {
            let found = Curvature::new(&moments, spec.sites[site].channels, damping);
            let failed = |reason: String| PipelineError::Layer { path: spec.sites[site].id.clone(), reason };
            Ok((site, found.map_err(|error| failed(error.to_string()))?))
        };
        let found: Vec<(SiteId, Curvature)> =
            sink.sites.into_par_iter().map(of_site).collect::<Result<_, PipelineError>>()?;
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
        Ok(found.into_iter().collect())
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

/// Sums of `x x^T` over the rows that sites show, of which the lower triangle is computed.
struct Moments<'a> {
    sites: BTreeMap<SiteId, Vec<f32>>,
    wanted: &'a BTreeSet<SiteId>,
}

impl SiteSink for Moments<'_> {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        if !self.wanted.contains(&site) {
            return Ok(());
        }
        let sums = self.sites.entry(site).or_insert_with(|| vec![0.0; channels * channels]);
        add(sums, values, channels).map_err(|error| error.to_string())
    }
}

/// Adds the products of the channels of `x`, `[rows, channels]`.
fn add(sums: &mut [f32], x: &[f32], channels: usize) -> candle_core::Result<()> {
    let x = Tensor::from_slice(x, (x.len() / channels, channels), &Device::Cpu)?;
    for start in (0..channels).step_by(TILE) {
        let width = TILE.min(channels - start);
        let product = x.narrow(1, start, width)?.t()?.matmul(&x.narrow(1, 0, start + width)?)?;
        rows_of(&product, |product| {
            for (row, product) in product.chunks_exact(start + width).enumerate() {
                let sums = &mut sums[(start + row) * channels..][..start + width];
                sums.iter_mut().zip(product).for_each(|(sum, x)| *sum += x);
            }
        })?;
    }
    Ok(())
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
