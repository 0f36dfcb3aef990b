//! One Linear of which the weight alone is quantised.

use std::borrow::Cow;

use zeropoint_core::WeightBits;
use zeropoint_formats::compressed_tensors::QuantizedLinear;
use zeropoint_kernels::{Isa, PackError, WeightOnlyMatrix, add_in_place, weight_only_product};
use zeropoint_models::{ActivationFn, apply_activation};

use crate::split::over_threads;

/// A Linear with a weight of 4 or 8 bits that stays packed, and float activations.
///
/// Its products are those of [`weight_only_product`]: f32 sums in one order, with the same bits on every instruction set, for
/// any number of threads, and whether rows go through together or alone.
#[derive(Debug, Clone)]
pub struct WeightOnlyLinear {
    isa: Isa,
    weights: WeightOnlyMatrix,
    /// The input that each column of `weights` multiplies, where groups are not of neighbouring inputs.
    order: Option<Vec<u32>>,
    bias: Option<Vec<f32>>,
    activation: ActivationFn,
}

impl WeightOnlyLinear {
    /// Packs a Linear as read from a file.
    pub fn new(
        isa: Isa,
        stored: &QuantizedLinear,
        bits: WeightBits,
        bias: Option<Vec<f32>>,
        activation: ActivationFn,
    ) -> Result<Self, PackError> {
        let order = stored.column_groups.as_ref().map(|groups| {
            let mut order: Vec<u32> = (0..).take(groups.len()).collect();
            order.sort_by_key(|column| groups[*column as usize]);
            order
        });
        let weight = in_order(&stored.weight, order.as_deref());
        let size = (stored.outputs, stored.inputs);
        let weights = WeightOnlyMatrix::pack(&weight, size, bits, &stored.weight_scales)?;
        Ok(Self { isa, weights, order, bias, activation })
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.weights.outputs()
    }

    /// Input channels.
    pub fn inputs(&self) -> usize {
        self.weights.inputs()
    }

    /// Bytes of its packed weight and scales.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// `activation(x w + bias)` for rows `x`, `[rows, inputs]`; `[rows, outputs]` out.
    pub fn forward(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let (x, inputs) = (in_order(x, self.order.as_deref()), self.inputs());
        over_threads(rows, self.outputs(), |rows, columns, out, stride| {
            let x = &x[rows.start * inputs..rows.end * inputs];
            weight_only_product(self.isa, x, rows.len(), &self.weights, columns.clone(), out, stride);
            for out in out.chunks_mut(stride) {
                let out = &mut out[..columns.len()];
                if let Some(bias) = &self.bias {
                    add_in_place(self.isa, out, &bias[columns.clone()]);
                }
                apply_activation(self.isa, out, self.activation);
            }
        })
    }
}

/// The columns of rows in that order.
fn in_order<'a, T: Copy>(rows: &'a [T], order: Option<&[u32]>) -> Cow<'a, [T]> {
    match order {
        None => Cow::Borrowed(rows),
        Some(order) => {
            let row = |row: &'a [T]| order.iter().map(move |column| row[*column as usize]);
            rows.chunks_exact(order.len()).flat_map(row).collect()
        }
    }
}
