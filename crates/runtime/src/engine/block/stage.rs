//! The INT8 Linears of a block at work.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use zeropoint_core::QuantParams;
use zeropoint_kernels::{AlignedMemory, ChannelRotation, Isa, PackedWeights, add_in_place};
use zeropoint_models::{ActivationQuantizer, LinearId, Norm, Projection, SiteId};

use crate::IntegerLinear;
use crate::engine::Sites;
use crate::site::params_of;

/// The Linears that read one activation, their outputs side by side.
pub(super) struct Stage {
    pub(super) quantizer: ActivationQuantizer,
    /// Of the activation, before it is quantised.
    pub(super) rotation: Option<Arc<ChannelRotation>>,
    pub(super) inputs: usize,
    pub(super) linears: Vec<(LinearId, Arc<IntegerLinear>)>,
    pub(super) width: usize,
}

/// The Linear that ends a half of a block, and the norm of its outputs.
pub(super) struct Output {
    pub(super) quantizer: ActivationQuantizer,
    /// Of what it reads, before that is quantised.
    pub(super) rotation: Option<Arc<ChannelRotation>>,
    pub(super) linear: Arc<IntegerLinear>,
    pub(super) norm: Option<Norm>,
}

/// Outputs of a product of so many that one task computes where they are split over threads.
fn split_width(outputs: usize) -> usize {
    let even = outputs.div_ceil(rayon::current_num_threads());
    even.next_multiple_of(PackedWeights::PANEL).max(2 * PackedWeights::PANEL)
}

fn split_columns(outputs: usize, share: usize) -> impl Iterator<Item = Range<usize>> {
    (0..outputs).step_by(share).map(move |start| start..outputs.min(start + share))
}

impl Stage {
    pub(super) fn new(sites: Sites<'_>, site: SiteId, consumers: &[LinearId]) -> Option<Self> {
        let (quantizer, linears) = sites.integer[site].as_ref()?.uniform()?;
        let inputs = linears.first()?.inputs();
        let width = linears.iter().map(|linear| linear.outputs()).sum();
        let linears = consumers.iter().copied().zip(linears).collect();
        Some(Self { quantizer, rotation: sites.rotations[site].clone(), inputs, linears, width })
    }

    /// Where a projection stands among the outputs.
    pub(super) fn columns(&self, projection: &Projection) -> Option<Range<usize>> {
        let mut start = 0;
        for (id, linear) in &self.linears {
            if *id == projection.linear {
                return Some(start + projection.outputs.start..start + projection.outputs.end);
            }
            start += linear.outputs();
        }
        None
    }

    /// The outputs `[rows, width]` of the first rows.
    pub(super) fn run(
        &self,
        rows: usize,
        quantized: &[i8],
        params: &[QuantParams],
        out: &mut [f32],
        split: bool,
    ) {
        let (quantized, params) =
            (&quantized[..rows * self.inputs], params_of(self.quantizer, &params[..rows]));
        if split && rows == 1 {
            let share = split_width(self.width);
            let mut parts = Vec::new();
            let mut rest = &mut out[..self.width];
            for (_, linear) in &self.linears {
                for columns in split_columns(linear.outputs(), share) {
                    let (part, behind) = rest.split_at_mut(columns.len());
                    parts.push((linear, columns, part));
                    rest = behind;
                }
            }
            parts.into_par_iter().with_max_len(1).for_each(|(linear, columns, out)| {
                linear.forward_columns(quantized, params, columns, out);
            });
            return;
        }
        let mut start = 0;
        for (_, linear) in &self.linears {
            linear.forward_into(quantized, rows, params, &mut out[start..], self.width);
            start += linear.outputs();
        }
    }
}

impl Output {
    /// `None` where several Linears read the activation, or one with an activation of its own behind it.
    pub(super) fn new(stage: Stage, norm: Option<Norm>) -> Option<Self> {
        let Stage { quantizer, rotation, linears, .. } = stage;
        let [(_, linear)] = <[_; 1]>::try_from(linears).ok()?;
        linear.is_fused().then_some(Self { quantizer, rotation, linear, norm })
    }

    /// Adds the outputs of the first rows to `x`, `[rows, outputs]`; `memory` is used where they have a norm.
    pub(super) fn add(
        &self,
        isa: Isa,
        quantized: &[i8],
        params: &[QuantParams],
        memory: &mut AlignedMemory<f32>,
        x: &mut [f32],
        split: bool,
    ) {
        let width = self.linear.outputs();
        let rows = x.len() / width;
        let quantized = &quantized[..rows * self.linear.inputs()];
        let params = params_of(self.quantizer, &params[..rows]);
        if split && rows == 1 {
            let out = memory.room(width);
            let share = split_width(width);
            out.par_chunks_mut(share).with_max_len(1).enumerate().for_each(|(i, out)| {
                let columns = i * share..i * share + out.len();
                self.linear.forward_columns(quantized, params, columns, out);
            });
            if let Some(norm) = &self.norm {
                norm.apply(out);
            }
            add_in_place(isa, x, out);
            return;
        }
        match &self.norm {
            None => self.linear.add_into(quantized, rows, params, x),
            Some(norm) => {
                let out = memory.room(x.len());
                self.linear.forward_into(quantized, rows, params, out, width);
                norm.apply(out);
                add_in_place(isa, x, out);
            }
        }
    }
}
