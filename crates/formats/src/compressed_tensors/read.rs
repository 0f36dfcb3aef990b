//! Reading the tensors of one quantised Linear, whoever wrote them.

use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, QuantParams, Scheme};

use super::QuantizedLinear;
use super::linear::{
    INPUT_SCALE, INPUT_ZERO_POINT, WEIGHT, WEIGHT_PACKED, WEIGHT_SCALE, WEIGHT_SHAPE, check_scales,
    linear_tensor_specs,
};
use super::packed::{row_words, unpack};
use crate::deployed::INPUT_DIVISORS;
use crate::{Checkpoint, Dtype, FormatError, TensorInfo};

const WEIGHT_ZERO_POINT: &str = "weight_zero_point";
/// The group of each input, where groups were made in another order than that of the inputs (activation ordering).
const WEIGHT_GROUPS: &str = "weight_g_idx";
const BIAS: &str = "bias";

/// Reads the Linear at module path `path` and checks it against its scheme.
///
/// Scales may be F32, BF16 or F16, those of channels `[N, 1]` or `[N]`. Zero points of what is symmetric may be there as
/// zeros. Refused: wrong dtypes and shapes, scales that are not positive and normal, groups that are not whole, a
/// `weight_shape` that `weight_packed` cannot have, static activations without `input_scale` (and `input_zero_point`, where asymmetric), and
/// tensors under the path that neither the scheme nor a bias accounts for: they would change the result. Divisors of a rotated input
/// are the business of who describes the model.
pub fn read_linear(
    checkpoint: &Checkpoint,
    path: &str,
    scheme: Scheme,
) -> Result<QuantizedLinear, FormatError> {
    let reader = Reader { checkpoint, path, scheme };
    match scheme.activations {
        Some(activations) => reader.int8(activations),
        None => reader.weight_only(),
    }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    path: &'a str,
    scheme: Scheme,
}

impl<'a> Reader<'a> {
    fn int8(&self, activations: ActivationScheme) -> Result<QuantizedLinear, FormatError> {
        let weight = self.tensor(WEIGHT)?;
        self.expect_dtype(weight, &[Dtype::I8], "I8")?;
        let (outputs, inputs) = self.matrix(weight, "[outputs, inputs]")?;
        self.refuse_extra(outputs, inputs)?;
        let weight_scales = self.weight_scales(outputs, inputs)?;
        let input = match activations.mode {
            ActivationMode::Dynamic => None,
            ActivationMode::Static => {
                let scale = self.scales(INPUT_SCALE, &[&[1], &[]])?[0];
                let zero_point = self.input_zero_point(activations)?;
                Some(QuantParams { scale, zero_point })
            }
        };
        let weight = self.checkpoint.read_i8(&weight.name)?;
        Ok(QuantizedLinear { weight, outputs, inputs, weight_scales, column_groups: None, input })
    }

    fn weight_only(&self) -> Result<QuantizedLinear, FormatError> {
        let bits = self.scheme.weights.bits;
        let packed = self.tensor(WEIGHT_PACKED)?;
        self.expect_dtype(packed, &[Dtype::I32], "I32")?;
        let (rows, words) = self.matrix(packed, "[outputs, words]")?;
        let (outputs, inputs) = self.weight_shape()?;
        if outputs != rows || row_words(inputs, bits) != words {
            return Err(self.refused(format!(
                "has a `{WEIGHT_SHAPE}` of [{outputs}, {inputs}], which a `{WEIGHT_PACKED}` of [{rows}, {words}] words does not hold \
                 in {bits}; check num_bits in quantization_config, or quantise the model again"
            )));
        }
        let granularity = self.scheme.weights.granularity;
        let Some(groups) = granularity.groups(inputs) else {
            return Err(self.refused(format!(
                "has {inputs} inputs, which are no whole groups of its scheme ({}); quantise the model again with a \
                 group size that divides them",
                self.scheme.weights
            )));
        };
        self.refuse_extra(outputs, inputs)?;
        let weight_scales = self.weight_scales(outputs, inputs)?;
        let column_groups = self.column_groups(inputs, groups)?;
        let words: Vec<u32> = self
            .checkpoint
            .read_bytes(&packed.name)?
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        let weight = unpack(&words, outputs, inputs, bits)?;
        Ok(QuantizedLinear { weight, outputs, inputs, weight_scales, column_groups, input: None })
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.path)
    }

    fn tensor(&self, suffix: &str) -> Result<&'a TensorInfo, FormatError> {
        self.checkpoint.require(&self.name(suffix))
    }

    /// The size of a matrix that has elements.
    fn matrix(&self, info: &TensorInfo, needed: &str) -> Result<(usize, usize), FormatError> {
        match info.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(self.wrong_shape(info, &format!("{needed} without a zero"))),
        }
    }

    /// The numbers in `weight_shape`, neither of them 0.
    fn weight_shape(&self) -> Result<(usize, usize), FormatError> {
        let info = self.tensor(WEIGHT_SHAPE)?;
        if info.shape != [2] {
            return Err(self.wrong_shape(info, "[2]"));
        }
        let sizes = self.integers(info)?;
        let sizes: Option<Vec<usize>> = sizes.iter().map(|size| usize::try_from(*size).ok()).collect();
        match sizes.as_deref() {
            Some(&[outputs, inputs]) if outputs > 0 && inputs > 0 => Ok((outputs, inputs)),
            _ => Err(self.refused(format!(
                "has a bad `{WEIGHT_SHAPE}`: two positive numbers are needed; quantise the model again"
            ))),
        }
    }

    /// `[outputs, groups]`, whatever the granularity.
    fn weight_scales(&self, outputs: usize, inputs: usize) -> Result<Vec<f32>, FormatError> {
        let granularity = self.scheme.weights.granularity;
        let groups = granularity.groups(inputs).unwrap_or(1);
        let mut scales = match granularity {
            Granularity::Channel => self.scales(WEIGHT_SCALE, &[&[outputs, 1], &[outputs]])?,
            Granularity::Group(_) => self.scales(WEIGHT_SCALE, &[&[outputs, groups]])?,
            Granularity::Tensor | Granularity::Token => self.scales(WEIGHT_SCALE, &[&[1], &[]])?,
        };
        scales.resize(outputs * groups, scales[0]);
        Ok(scales)
    }

    /// Scales, of which there is at least one, in one of these shapes.
    fn scales(&self, suffix: &str, shapes: &[&[usize]]) -> Result<Vec<f32>, FormatError> {
        let info = self.tensor(suffix)?;
        self.expect_dtype(info, &[Dtype::F32, Dtype::BF16, Dtype::F16], "F32, BF16 or F16")?;
        if !shapes.contains(&info.shape.as_slice()) {
            let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            return Err(self.wrong_shape(info, &shapes.join(" or ")));
        }
        let scales = self.checkpoint.read_f32(&info.name)?;
        check_scales(&scales).map_err(|reason| {
            self.refused(format!("has a bad `{suffix}`: {reason}; quantise the model again"))
        })?;
        Ok(scales)
    }

    fn input_zero_point(&self, activations: ActivationScheme) -> Result<i8, FormatError> {
        if activations.symmetry.is_symmetric() {
            self.expect_zeros(INPUT_ZERO_POINT, INPUT_SCALE)?;
            return Ok(0);
        }
        let info = self.tensor(INPUT_ZERO_POINT)?;
        if ![&[1][..], &[]].contains(&info.shape.as_slice()) {
            return Err(self.wrong_shape(info, "[1] or []"));
        }
        Ok(self.checkpoint.read_i8(&info.name)?[0])
    }

    /// The group of each input where they are not neighbours, as many inputs in each.
    fn column_groups(&self, inputs: usize, groups: usize) -> Result<Option<Vec<u32>>, FormatError> {
        let Some(info) = self.checkpoint.get(&self.name(WEIGHT_GROUPS)) else { return Ok(None) };
        if info.shape != [inputs] {
            return Err(self.wrong_shape(info, &format!("[{inputs}]")));
        }
        let found = self.integers(info)?;
        // compressed-tensors fills it with -1 before there are groups, and then passes it over.
        if found.contains(&-1) {
            return Ok(None);
        }
        let size = inputs / groups;
        if found.iter().zip(0..).all(|(group, column)| *group == column / size as i64) {
            return Ok(None);
        }
        let mut columns = vec![0; groups];
        let mut valid = Vec::with_capacity(inputs);
        for group in found {
            let known = u32::try_from(group).ok().filter(|group| (*group as usize) < groups);
            let Some(group) = known else {
                return Err(self.refused(format!(
                    "has a bad `{WEIGHT_GROUPS}`: group {group} where there are {groups}; quantise the model again"
                )));
            };
            columns[group as usize] += 1;
            valid.push(group);
        }
        match columns.iter().position(|count| *count != size) {
            None => Ok(Some(valid)),
            Some(group) => Err(self.refused(format!(
                "has a bad `{WEIGHT_GROUPS}`: group {group} has {} inputs where each has {size}; quantise the model again",
                columns[group]
            ))),
        }
    }

    /// The elements of an I32 or I64 tensor.
    fn integers(&self, info: &TensorInfo) -> Result<Vec<i64>, FormatError> {
        self.expect_dtype(info, &[Dtype::I64, Dtype::I32], "I64 or I32")?;
        let bytes = self.checkpoint.read_bytes(&info.name)?;
        Ok(if info.dtype == Dtype::I64 {
            bytes.as_chunks().0.iter().map(|number| i64::from_le_bytes(*number)).collect()
        } else {
            bytes.as_chunks().0.iter().map(|number| i32::from_le_bytes(*number).into()).collect()
        })
    }

    /// A zero point of what is symmetric: where it is there, it is 0 beside each of those scales.
    fn expect_zeros(&self, suffix: &str, scales: &str) -> Result<(), FormatError> {
        let Some(info) = self.checkpoint.get(&self.name(suffix)) else { return Ok(()) };
        self.expect_dtype(info, &[Dtype::I8, Dtype::I32, Dtype::I64], "I8, I32 or I64")?;
        let needed = &self.tensor(scales)?.shape;
        if info.shape != *needed {
            return Err(self.wrong_shape(info, &format!("{needed:?}")));
        }
        if self.checkpoint.read_bytes(&info.name)?.iter().any(|byte| *byte != 0) {
            return Err(self.refused(format!(
                "has a `{suffix}` that is not 0, where its scheme is symmetric; check quantization_config, or quantise the model again"
            )));
        }
        Ok(())
    }

    /// Nothing may be there that the scheme does not account for.
    fn refuse_extra(&self, outputs: usize, inputs: usize) -> Result<(), FormatError> {
        let prefix = format!("{}.", self.path);
        let expected = linear_tensor_specs(self.path, outputs, inputs, self.scheme);
        // Who describes the model knows whether its input is rotated, and what divides it then.
        let mut allowed = vec![BIAS, WEIGHT_ZERO_POINT, INPUT_DIVISORS];
        match self.scheme.activations {
            None => allowed.push(WEIGHT_GROUPS),
            Some(_) if self.scheme.is_static() => allowed.push(INPUT_ZERO_POINT),
            Some(_) => {}
        }
        let is_extra = |info: &&TensorInfo| {
            !allowed.contains(&&info.name[prefix.len()..])
                && expected.iter().all(|spec| spec.name != info.name)
        };
        if let Some(info) = self.checkpoint.tensors_under(&prefix).find(is_extra) {
            let suffix = info.name[prefix.len()..].escape_debug();
            return Err(self.refused(format!(
                "has a tensor `{suffix}` that its scheme does not account for; check quantization_config, or \
                 quantise the model again with a scheme that is supported"
            )));
        }
        self.expect_zeros(WEIGHT_ZERO_POINT, WEIGHT_SCALE)
    }

    fn expect_dtype(
        &self,
        info: &TensorInfo,
        dtypes: &[Dtype],
        allowed: &'static str,
    ) -> Result<(), FormatError> {
        if dtypes.contains(&info.dtype) {
            return Ok(());
        }
        let (path, tensor) = (self.checkpoint.place_of(&info.name).to_owned(), info.name.clone());
        Err(FormatError::WrongDtype { path, tensor, dtype: info.dtype, allowed })
    }

    fn refused(&self, reason: String) -> FormatError {
        FormatError::Linear { path: self.checkpoint.dir().to_owned(), module: self.path.to_owned(), reason }
    }

    fn wrong_shape(&self, info: &TensorInfo, allowed: &str) -> FormatError {
        let (path, tensor) = (self.checkpoint.place_of(&info.name).to_owned(), info.name.clone());
        FormatError::WrongShape { path, tensor, shape: info.shape.clone(), allowed: allowed.to_owned() }
    }
}
