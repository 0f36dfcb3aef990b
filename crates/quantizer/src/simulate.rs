//! The simulation of a plan: operators that compute in floats exactly what the integers will say.

use candle_core::{Device, Tensor};
use zeropoint_models::{ActivationQuantizer, LinearSpec, SimulatedLinear};

use crate::QuantizedWeight;

/// The simulation of a Linear whose weight and activation are quantised so.
pub fn simulated_linear(
    spec: &LinearSpec,
    weight: &QuantizedWeight,
    quantizer: ActivationQuantizer,
    bias: Option<Vec<f32>>,
) -> candle_core::Result<SimulatedLinear> {
    let integers: Vec<f32> = weight.values.iter().map(|q| f32::from(*q)).collect();
    Ok(SimulatedLinear {
        quantizer,
        weight: Tensor::from_vec(integers, (spec.outputs, spec.inputs), &Device::Cpu)?,
        weight_scales: (0..spec.outputs).map(|row| weight.scale(row)).collect(),
        bias,
        activation: spec.activation,
    })
}
