//! A Linear on its way into the output: decoded, looked through, quantised, written.

use std::borrow::Cow;

use rayon::prelude::*;
use zeropoint_evaluator::report::Bins;
use zeropoint_formats::TensorInfo;
use zeropoint_formats::compressed_tensors::{QuantizedLinear, linear_tensor_bytes};
use zeropoint_formats::safetensors::element::{decode_floats, floats_from_bytes};
use zeropoint_kernels::{Isa, extremes};
use zeropoint_models::{ActivationQuantizer, LinearSpec, ModelError};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::{
    LayerScheme, QuantizedWeight, bias_correction, quantize_weight, quantize_weight_gptq, site_quantizer,
};

use crate::distribution::{WeightDistribution, weight_bins};
use crate::sequence::PartInputs;
use crate::{PipelineError, Prepared};

/// Elements of a copied tensor that are decoded at a time to be checked.
const ELEMENTS_AT_A_TIME: usize = 1 << 16;

/// A Linear after quantisation, by its index in the description.
pub(crate) struct DeployedLinear {
    pub(crate) weight: QuantizedWeight,
    pub(crate) scheme: LayerScheme,
    pub(crate) quantizer: Option<ActivationQuantizer>,
    /// Where it takes up what rounding changes.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) bytes: u64,
    pub(crate) distribution: Option<WeightDistribution>,
}

/// Writes a tensor.
pub(crate) type Write<'a> = dyn FnMut(&str, &[u8]) -> Result<(), PipelineError> + 'a;

/// Quantises the weight `float`, `[outputs, inputs]`, and writes its tensors.
pub(super) fn quantize_linear(
    prepared: &Prepared,
    (statistics, seen): (&StatisticsFile, &PartInputs),
    isa: Isa,
    linear: &LinearSpec,
    scheme: &LayerScheme,
    float: &[f32],
    write: &mut Write<'_>,
) -> Result<DeployedLinear, PipelineError> {
    let failed = |reason: String| PipelineError::Layer { path: linear.path.clone(), reason };
    let (outputs, inputs) = (linear.outputs, linear.inputs);
    let (weights, observer) = (scheme.scheme.weights, scheme.weight_observer);
    let weight = match linear.site.and_then(|site| seen.curvatures.get(&site)) {
        Some(curvature) => quantize_weight_gptq(isa, float, outputs, inputs, (weights, observer), curvature),
        None => quantize_weight(isa, float, outputs, inputs, weights, observer),
    }
    .map_err(|error| failed(error.to_string()))?;
    let mut distribution = WeightDistribution::of(isa, float, &weight, weights.bits);
    if let Some(distribution) = &mut distribution {
        distribution.before = before_transforms(prepared, isa, linear)?;
    }
    let quantizer = input_quantizer(prepared, Some(statistics), linear, scheme)?;
    let means = linear.site.and_then(|site| seen.means.get(&site)).filter(|_| linear.bias.is_some());
    let bias = match means.and_then(|means| means.of(quantizer)) {
        None => None,
        Some([x, quantized]) => {
            let correction = bias_correction(float, &x, &weight, &quantized);
            let bias = linear.read_bias(prepared.graph().checkpoint())?.unwrap_or_default();
            Some(bias.iter().zip(&correction).map(|(bias, more)| bias + more).collect())
        }
    };
    let input = match quantizer {
        Some(ActivationQuantizer::Static(params)) => Some(params),
        _ => None,
    };
    let stored = QuantizedLinear {
        weight_scales: weight.scales_by_row(),
        weight: weight.values,
        outputs: linear.outputs,
        inputs: linear.inputs,
        column_groups: None,
        input,
    };
    let mut bytes = 0;
    for (name, part) in linear_tensor_bytes(&linear.tensor, &stored, scheme.scheme)? {
        let part: Cow<'_, [u8]> = part;
        write(&name, &part)?;
        bytes += part.len() as u64;
    }
    let weight = QuantizedWeight { values: stored.weight, ..weight };
    Ok(DeployedLinear { weight, scheme: *scheme, quantizer, bias, bytes, distribution })
}

/// The values of a weight before the transforms that change it.
fn before_transforms(
    prepared: &Prepared,
    isa: Isa,
    linear: &LinearSpec,
) -> Result<Option<Bins>, PipelineError> {
    let spec = prepared.graph().spec();
    let id = spec.linears.iter().position(|other| other.path == linear.path);
    let changed = prepared.transformed.as_ref().zip(id).is_some_and(|(graph, id)| graph.changes(id));
    let original = prepared.directory.spec().linears.iter().find(|other| other.path == linear.path);
    let Some(original) = original.filter(|_| changed) else { return Ok(None) };
    let weight = original.read_weight(prepared.directory.checkpoint())?;
    Ok(Some(weight_bins(isa, &weight)))
}

/// How the input of a Linear becomes INT8; `None` where it stays float, and for one that the task does not run and whose scheme needs
/// nothing.
pub(crate) fn input_quantizer(
    prepared: &Prepared,
    statistics: Option<&StatisticsFile>,
    linear: &LinearSpec,
    scheme: &LayerScheme,
) -> Result<Option<ActivationQuantizer>, PipelineError> {
    let observed =
        linear.site.and_then(|site| statistics?.sites.get(&prepared.graph().spec().sites[site].id));
    match (linear.site, scheme.scheme.is_static()) {
        (None, false) => Ok(None),
        _ if scheme.scheme.is_weight_only() => Ok(None),
        _ => site_quantizer(observed, scheme)
            .map(Some)
            .map_err(|error| PipelineError::Layer { path: linear.path.clone(), reason: error.to_string() }),
    }
}

/// The values of a tensor, every one finite.
pub(crate) fn finite(
    prepared: &Prepared,
    isa: Isa,
    info: &TensorInfo,
    bytes: &[u8],
) -> Result<Vec<f32>, PipelineError> {
    let mut values = Vec::new();
    finite_into(prepared, isa, info, bytes, &mut values)?;
    Ok(values)
}

/// As [`finite`], in memory that is there already: new memory costs as much as the work on it.
pub(super) fn finite_into(
    prepared: &Prepared,
    isa: Isa,
    info: &TensorInfo,
    bytes: &[u8],
    values: &mut Vec<f32>,
) -> Result<(), PipelineError> {
    values.resize(info.elements(), 0.0);
    let part = info.dtype.size() * ELEMENTS_AT_A_TIME;
    let parts = values.par_chunks_mut(ELEMENTS_AT_A_TIME).zip(bytes.par_chunks(part));
    let bad = parts.any(|(values, bytes)| {
        // Tensors that are quantised or rounded are of floats; a description is refused otherwise.
        let _ = decode_floats(info.dtype, bytes, values);
        !extremes(isa, values).finite
    });
    // Which one it is is another look's business.
    if bad { check_finite(prepared, info, bytes) } else { Ok(()) }
}

/// Refuses a tensor of floats with one that is not finite.
pub(crate) fn check_finite(
    prepared: &Prepared,
    info: &TensorInfo,
    bytes: &[u8],
) -> Result<(), PipelineError> {
    if !info.dtype.is_float() {
        return Ok(());
    }
    let part = info.dtype.size() * ELEMENTS_AT_A_TIME;
    let bad = bytes.par_chunks(part).enumerate().find_map_first(|(i, part)| {
        let values = floats_from_bytes(info.dtype, part).unwrap_or_default();
        let at = values.iter().position(|value| !value.is_finite())?;
        Some((i * ELEMENTS_AT_A_TIME + at, values[at]))
    });
    match bad {
        None => Ok(()),
        Some((at, value)) => {
            Err(ModelError::not_finite(prepared.graph().path(), &info.name, at, value).into())
        }
    }
}
