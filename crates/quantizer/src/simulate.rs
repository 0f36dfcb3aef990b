//! The simulation of a plan: operators that compute in floats exactly what the integers will say.

use candle_core::{Device, Tensor};
use zeropoint_core::WeightBits;
use zeropoint_kernels::WeightOnlyMatrix;
use zeropoint_models::{
    ActivationQuantizer, LinearSpec, SimulatedLinear, SimulatedReader, SimulatedWeightOnly,
};

use crate::QuantizedWeight;

/// The simulation of a Linear whose weight is quantised so, and its activation by `quantizer`, or not at all.
pub fn simulated_reader(
    spec: &LinearSpec,
    weight: &QuantizedWeight,
    bits: WeightBits,
    quantizer: Option<ActivationQuantizer>,
    bias: Option<Vec<f32>>,
) -> candle_core::Result<SimulatedReader> {
    let (weight_scales, activation) = (weight.scales_by_row(), spec.activation);
    let Some(quantizer) = quantizer else {
        let size = (spec.outputs, spec.inputs);
        let weight = WeightOnlyMatrix::pack(&weight.values, size, bits, &weight_scales)
            .map_err(candle_core::Error::wrap)?;
        return Ok(SimulatedReader::WeightOnly(SimulatedWeightOnly { weight, bias, activation }));
    };
    let integers: Vec<f32> = weight.values.iter().map(|q| f32::from(*q)).collect();
    let weight = Tensor::from_vec(integers, (spec.outputs, spec.inputs), &Device::Cpu)?;
    Ok(SimulatedReader::Integer(SimulatedLinear { quantizer, weight, weight_scales, bias, activation }))
}
