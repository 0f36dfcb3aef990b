//! The simulation of a plan: float operators that compute what the integers will say.

use candle_core::{Device, Tensor};
use zeropoint_kernels::Isa;
use zeropoint_models::{ActivationQuantizer, FloatLinear, LinearSpec, SimulatedSite};

use crate::QuantizedWeight;

/// A Linear whose weight is `dequantize(quantize(weight))`.
pub fn dequantized(
    spec: &LinearSpec,
    weight: &QuantizedWeight,
    bias: Option<Vec<f32>>,
) -> candle_core::Result<FloatLinear> {
    let weight = Tensor::from_vec(weight.dequantize(), (spec.outputs, spec.inputs), &Device::Cpu)?;
    Ok(FloatLinear { weight, bias, activation: spec.activation })
}

/// The operator of a site: each consumer with its activation quantiser (`None`: it stays float) and its Linear.
pub fn simulated_site(isa: Isa, linears: Vec<(Option<ActivationQuantizer>, FloatLinear)>) -> SimulatedSite {
    SimulatedSite { isa, linears }
}
