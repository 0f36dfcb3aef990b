//! The tensors of one quantised Linear.

use std::borrow::Cow;

use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, QuantParams, Scheme};

use super::packed::{pack, row_words};
use crate::{Dtype, FormatError, TensorSpec, safetensors::element::f32_bytes};

pub(super) const WEIGHT: &str = "weight";
pub(super) const WEIGHT_PACKED: &str = "weight_packed";
pub(super) const WEIGHT_SCALE: &str = "weight_scale";
pub(super) const WEIGHT_SHAPE: &str = "weight_shape";
pub(super) const INPUT_SCALE: &str = "input_scale";
pub(super) const INPUT_ZERO_POINT: &str = "input_zero_point";

/// A Linear whose weight is quantised: `y = x W^T` with `W[n][k] = weight[n * inputs + k] * weight_scales[n * groups + g]`,
/// where k is of the g-th group. Its bias is an ordinary floating-point tensor and not part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    /// Row-major, one row of `inputs` values for each output; within the bits of the scheme.
    pub weight: Vec<i8>,
    /// Output channels, N.
    pub outputs: usize,
    /// Input channels, K.
    pub inputs: usize,
    /// `[outputs, groups]`, positive and normal: one scale for each output or, per group, for each group of its inputs; all
    /// equal under a per-tensor scheme.
    pub weight_scales: Vec<f32>,
    /// The group of each input, each as often as others. `None` where groups are neighbours, in order.
    pub column_groups: Option<Vec<u32>>,
    /// The parameters of the input where they are static; `None` where they are dynamic or the input stays float.
    pub input: Option<QuantParams>,
}

/// A tensor's full name and its bytes, as the writers take them.
pub type NamedBytes<'a> = (String, Cow<'a, [u8]>);

/// The tensors of a Linear at module path `path`, apart from its bias.
///
/// With INT8 activations: `weight` (I8 `[N, K]`), `weight_scale` (F32 `[N, 1]` per channel, `[1]` per tensor), and for static
/// activations `input_scale` (F32 `[1]`) and, where they are asymmetric, `input_zero_point` (I8 `[1]`).
///
/// Weight-only: `weight_packed` (I32 `[N, ceil(K * bits / 32)]`), `weight_scale` (F32 `[N, K / size]` per group, otherwise as
/// above) and `weight_shape` (I64 `[2]`: N and K).
pub fn linear_tensor_specs(path: &str, outputs: usize, inputs: usize, scheme: Scheme) -> Vec<TensorSpec> {
    let spec = |suffix, dtype, shape: &[usize]| TensorSpec::new(format!("{path}.{suffix}"), dtype, shape);
    let scales = spec(WEIGHT_SCALE, Dtype::F32, &scale_shape(scheme, outputs, inputs));
    let Some(activations) = scheme.activations else {
        let packed = [outputs, row_words(inputs, scheme.weights.bits)];
        return vec![spec(WEIGHT_PACKED, Dtype::I32, &packed), scales, spec(WEIGHT_SHAPE, Dtype::I64, &[2])];
    };
    let mut specs = vec![spec(WEIGHT, Dtype::I8, &[outputs, inputs]), scales];
    if activations.mode == ActivationMode::Static {
        specs.push(spec(INPUT_SCALE, Dtype::F32, &[1]));
        if !activations.symmetry.is_symmetric() {
            specs.push(spec(INPUT_ZERO_POINT, Dtype::I8, &[1]));
        }
    }
    specs
}

/// The shape in which scales are written; the last group is counted where it is not whole.
pub(super) fn scale_shape(scheme: Scheme, outputs: usize, inputs: usize) -> Vec<usize> {
    match scheme.weights.granularity {
        Granularity::Channel => vec![outputs, 1],
        Granularity::Group(size) => vec![outputs, inputs.div_ceil(size.max(1))],
        Granularity::Tensor | Granularity::Token => vec![1],
    }
}

/// The names and bytes of those tensors, in the order of [`linear_tensor_specs`]; an INT8 weight is borrowed.
///
/// Refused: lengths that contradict each other, values outside the bits of the scheme, groups that are not whole or not of
/// neighbours, scales that are not positive and normal or differ under a per-tensor scheme, input parameters where the scheme
/// has none or the reverse, a zero point other than 0 under a symmetric one.
pub fn linear_tensor_bytes<'a>(
    path: &str,
    linear: &'a QuantizedLinear,
    scheme: Scheme,
) -> Result<Vec<NamedBytes<'a>>, FormatError> {
    linear.check(scheme).map_err(|reason| FormatError::LinearParts { module: path.to_owned(), reason })?;
    let scales = match scheme.weights.granularity {
        Granularity::Tensor | Granularity::Token => &linear.weight_scales[..1],
        Granularity::Channel | Granularity::Group(_) => &linear.weight_scales[..],
    };
    let scales = Cow::Owned(f32_bytes(scales));
    let specs = linear_tensor_specs(path, linear.outputs, linear.inputs, scheme);
    let data: Vec<Cow<'a, [u8]>> = if scheme.is_weight_only() {
        let words = pack(&linear.weight, linear.inputs, scheme.weights.bits)?;
        let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let shape = [linear.outputs, linear.inputs].map(|size| (size as u64).to_le_bytes());
        vec![Cow::Owned(words), scales, Cow::Owned(shape.concat())]
    } else {
        let input =
            linear.input.map(|params| [f32_bytes(&[params.scale]), params.zero_point.to_le_bytes().to_vec()]);
        [Cow::Borrowed(bytemuck::cast_slice(&linear.weight)), scales]
            .into_iter()
            .chain(input.into_iter().flatten().map(Cow::Owned))
            .collect()
    };
    Ok(specs.into_iter().map(|spec| spec.name).zip(data).collect())
}

impl QuantizedLinear {
    fn check(&self, scheme: Scheme) -> Result<(), String> {
        let (n, k) = (self.outputs, self.inputs);
        if n == 0 || k == 0 || n.checked_mul(k) != Some(self.weight.len()) {
            return Err(format!("its weight has {} values where [{n}, {k}] is needed", self.weight.len()));
        }
        let weights = scheme.weights;
        if let Some(value) = self.weight.iter().find(|value| !weights.bits.holds(**value)) {
            return Err(format!("its weight holds {value}, which is no value of {}", weights.bits));
        }
        let Some(groups) = weights.granularity.groups(k) else {
            return Err(format!("its {k} inputs are no whole groups of its scheme ({weights})"));
        };
        if self.column_groups.is_some() {
            return Err("its groups are not of neighbouring inputs, which is read and not written".to_owned());
        }
        let scales = n * groups;
        if self.weight_scales.len() != scales {
            return Err(format!(
                "it has {} weight scales where {scales} are needed",
                self.weight_scales.len()
            ));
        }
        check_scales(&self.weight_scales)?;
        let first = self.weight_scales[0];
        if weights.granularity == Granularity::Tensor && self.weight_scales.iter().any(|&s| s != first) {
            return Err("its weight scales differ where the scheme is per tensor; give one value".to_owned());
        }
        match (scheme.activations, self.input) {
            (None, None) => Ok(()),
            (None, Some(_)) => {
                Err("it has input parameters where activations stay float; give none".to_owned())
            }
            (Some(activations), input) => check_input(activations, input),
        }
    }
}

fn check_input(activations: ActivationScheme, input: Option<QuantParams>) -> Result<(), String> {
    match (activations.mode, input) {
        (ActivationMode::Dynamic, None) => Ok(()),
        (ActivationMode::Dynamic, Some(_)) => {
            Err("it has input parameters where activations are dynamic; give none".to_owned())
        }
        (ActivationMode::Static, None) => {
            Err("it has no input parameters where activations are static; calibrate them".to_owned())
        }
        (ActivationMode::Static, Some(params)) => {
            check_scales(&[params.scale])?;
            if activations.symmetry.is_symmetric() && params.zero_point != 0 {
                let zero_point = params.zero_point;
                return Err(format!(
                    "its input zero point is {zero_point} where symmetric activations need 0"
                ));
            }
            Ok(())
        }
    }
}

/// Scales must be positive and normal: a subnormal one has lost most of its digits.
pub(crate) fn check_scales(scales: &[f32]) -> Result<(), String> {
    match scales.iter().position(|s| !(s.is_normal() && *s > 0.0)) {
        None => Ok(()),
        Some(i) => {
            Err(format!("scale {i} is {} where a positive, finite, normal number is needed", scales[i]))
        }
    }
}
