//! The tensors of one quantised Linear.

use std::borrow::Cow;

use zeropoint_core::{ActivationMode, Granularity, QuantParams, Scheme};

use crate::{Checkpoint, Dtype, FormatError, TensorInfo, TensorSpec, safetensors::element::f32_bytes};

const WEIGHT: &str = "weight";
const WEIGHT_SCALE: &str = "weight_scale";
const INPUT_SCALE: &str = "input_scale";
const INPUT_ZERO_POINT: &str = "input_zero_point";
const BIAS: &str = "bias";

/// A Linear in INT8: `y = x W^T` with `W[n][k] = weight[n * inputs + k] * weight_scales[n]`. Its bias is an ordinary
/// floating-point tensor and not part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    /// Row-major, one row of `inputs` values for each output.
    pub weight: Vec<i8>,
    /// Output channels, N.
    pub outputs: usize,
    /// Input channels, K.
    pub inputs: usize,
    /// One scale for each output, positive and normal; all equal under a per-tensor scheme.
    pub weight_scales: Vec<f32>,
    /// The parameters of the input where they are static; `None` where they are dynamic.
    pub input: Option<QuantParams>,
}

/// A tensor's full name and its bytes, as the writers take them.
pub type NamedBytes<'a> = (String, Cow<'a, [u8]>);

/// The tensors of a Linear at module path `path`, apart from its bias: `weight` (I8 `[N, K]`), `weight_scale` (F32
/// `[N, 1]` per channel, `[1]` per tensor), and for static activations `input_scale` (F32 `[1]`) and, where they are
/// asymmetric, `input_zero_point` (I8 `[1]`).
pub fn linear_tensor_specs(path: &str, outputs: usize, inputs: usize, scheme: Scheme) -> Vec<TensorSpec> {
    let spec = |suffix, dtype, shape: &[usize]| TensorSpec::new(format!("{path}.{suffix}"), dtype, shape);
    let mut specs = vec![
        spec(WEIGHT, Dtype::I8, &[outputs, inputs]),
        spec(WEIGHT_SCALE, Dtype::F32, scale_shape(scheme, &[outputs, 1])),
    ];
    if scheme.activations.mode == ActivationMode::Static {
        specs.push(spec(INPUT_SCALE, Dtype::F32, &[1]));
        if !scheme.activations.symmetry.is_symmetric() {
            specs.push(spec(INPUT_ZERO_POINT, Dtype::I8, &[1]));
        }
    }
    specs
}

fn scale_shape(scheme: Scheme, per_channel: &[usize; 2]) -> &[usize] {
    if scheme.weights.granularity == Granularity::Channel { per_channel } else { &[1] }
}

/// The names and bytes of those tensors, in the order of [`linear_tensor_specs`]; the weight is borrowed.
///
/// Refused: lengths that contradict each other, scales that are not positive and normal or differ under a per-tensor
/// scheme, input parameters where the scheme has none or the reverse, a zero point other than 0 under a symmetric one.
pub fn linear_tensor_bytes<'a>(
    path: &str,
    linear: &'a QuantizedLinear,
    scheme: Scheme,
) -> Result<Vec<NamedBytes<'a>>, FormatError> {
    linear.check(scheme).map_err(|reason| FormatError::LinearParts { module: path.to_owned(), reason })?;
    let scales = match scheme.weights.granularity {
        Granularity::Channel => &linear.weight_scales[..],
        _ => &linear.weight_scales[..1],
    };
    let specs = linear_tensor_specs(path, linear.outputs, linear.inputs, scheme);
    let input =
        linear.input.map(|params| [f32_bytes(&[params.scale]), params.zero_point.to_le_bytes().to_vec()]);
    let data = [Cow::Borrowed(bytemuck::cast_slice(&linear.weight)), Cow::Owned(f32_bytes(scales))]
        .into_iter()
        .chain(input.into_iter().flatten().map(Cow::Owned));
    Ok(specs.into_iter().map(|spec| spec.name).zip(data).collect())
}

impl QuantizedLinear {
    fn check(&self, scheme: Scheme) -> Result<(), String> {
        let (n, k) = (self.outputs, self.inputs);
        if n == 0 || k == 0 || n.checked_mul(k) != Some(self.weight.len()) {
            return Err(format!("its weight has {} values where [{n}, {k}] is needed", self.weight.len()));
        }
        if self.weight_scales.len() != n {
            return Err(format!("it has {} weight scales where {n} are needed", self.weight_scales.len()));
        }
        check_scales(&self.weight_scales)?;
        let first = self.weight_scales[0];
        if scheme.weights.granularity != Granularity::Channel
            && self.weight_scales.iter().any(|&s| s != first)
        {
            return Err("its weight scales differ where the scheme is per tensor; give one value".to_owned());
        }
        match (scheme.activations.mode, self.input) {
            (ActivationMode::Dynamic, None) => Ok(()),
            (ActivationMode::Dynamic, Some(_)) => {
                Err("it has input parameters where activations are dynamic; give none".to_owned())
            }
            (ActivationMode::Static, None) => {
                Err("it has no input parameters where activations are static; calibrate them".to_owned())
            }
            (ActivationMode::Static, Some(params)) => {
                check_scales(&[params.scale])?;
                if scheme.activations.symmetry.is_symmetric() && params.zero_point != 0 {
                    let zero_point = params.zero_point;
                    return Err(format!(
                        "its input zero point is {zero_point} where symmetric activations need 0"
                    ));
                }
                Ok(())
            }
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

/// Reads the Linear at module path `path` and checks it against its scheme.
///
/// Scales may be F32, BF16 or F16. Refused: wrong dtypes and shapes, scales that are not positive and normal, static
/// activations without `input_scale` (and `input_zero_point`, where asymmetric), and tensors under the path that
/// neither the scheme nor a bias accounts for, such as `weight_zero_point`: they would change the result.
pub fn read_linear(
    checkpoint: &Checkpoint,
    path: &str,
    scheme: Scheme,
) -> Result<QuantizedLinear, FormatError> {
    let reader = Reader { checkpoint, path };
    let weight = reader.tensor(WEIGHT)?;
    if weight.dtype != Dtype::I8 {
        return Err(reader.wrong_dtype(weight, "I8"));
    }
    let &[outputs, inputs] = &weight.shape[..] else {
        return Err(reader.wrong_shape(weight, "[outputs, inputs]"));
    };
    if outputs == 0 || inputs == 0 {
        return Err(reader.wrong_shape(weight, "[outputs, inputs] without a zero"));
    }
    reader.refuse_extra(&linear_tensor_specs(path, outputs, inputs, scheme))?;
    let mut weight_scales = reader.scales(WEIGHT_SCALE, scale_shape(scheme, &[outputs, 1]))?;
    weight_scales.resize(outputs, weight_scales[0]);
    let input = match scheme.activations.mode {
        ActivationMode::Dynamic => None,
        ActivationMode::Static => {
            let scale = reader.scales(INPUT_SCALE, &[1])?[0];
            let symmetric = scheme.activations.symmetry.is_symmetric();
            let zero_point = if symmetric { 0 } else { reader.zero_point()? };
            Some(QuantParams { scale, zero_point })
        }
    };
    let weight = checkpoint.read_i8(&weight.name)?;
    Ok(QuantizedLinear { weight, outputs, inputs, weight_scales, input })
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    path: &'a str,
}

impl<'a> Reader<'a> {
    fn tensor(&self, suffix: &str) -> Result<&'a TensorInfo, FormatError> {
        self.checkpoint.require(&format!("{}.{suffix}", self.path))
    }

    fn scales(&self, suffix: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        let info = self.tensor(suffix)?;
        if ![Dtype::F32, Dtype::BF16, Dtype::F16].contains(&info.dtype) {
            return Err(self.wrong_dtype(info, "F32, BF16 or F16"));
        }
        if info.shape != shape {
            return Err(self.wrong_shape(info, &format!("{shape:?}")));
        }
        let scales = self.checkpoint.read_f32(&info.name)?;
        check_scales(&scales).map_err(|reason| {
            self.refused(format!("has a bad `{suffix}`: {reason}; quantise the model again"))
        })?;
        Ok(scales)
    }

    fn zero_point(&self) -> Result<i8, FormatError> {
        let info = self.tensor(INPUT_ZERO_POINT)?;
        if info.shape != [1] {
            return Err(self.wrong_shape(info, "[1]"));
        }
        Ok(self.checkpoint.read_i8(&info.name)?[0])
    }

    fn refuse_extra(&self, expected: &[TensorSpec]) -> Result<(), FormatError> {
        let prefix = format!("{}.", self.path);
        let is_extra = |info: &&TensorInfo| {
            info.name[prefix.len()..] != *BIAS && expected.iter().all(|spec| spec.name != info.name)
        };
        match self.checkpoint.tensors_under(&prefix).find(is_extra) {
            None => Ok(()),
            Some(info) => {
                let suffix = info.name[prefix.len()..].escape_debug();
                Err(self.refused(format!(
                    "has a tensor `{suffix}` that its scheme does not account for; check quantization_config, or \
                     quantise the model again with a scheme that is supported"
                )))
            }
        }
    }

    fn refused(&self, reason: String) -> FormatError {
        FormatError::Linear { path: self.checkpoint.dir().to_owned(), module: self.path.to_owned(), reason }
    }

    fn wrong_dtype(&self, info: &TensorInfo, allowed: &'static str) -> FormatError {
        let (path, tensor) = (self.checkpoint.place_of(&info.name).to_owned(), info.name.clone());
        FormatError::WrongDtype { path, tensor, dtype: info.dtype, allowed }
    }

    fn wrong_shape(&self, info: &TensorInfo, allowed: &str) -> FormatError {
        let (path, tensor) = (self.checkpoint.place_of(&info.name).to_owned(), info.name.clone());
        FormatError::WrongShape { path, tensor, shape: info.shape.clone(), allowed: allowed.to_owned() }
    }
}
