//! Reading weights in the form in which models hold them, every value finite.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use zeropoint_formats::safetensors::element::floats_from_bytes;
use zeropoint_formats::{Checkpoint, Dtype};
use zeropoint_kernels::{Isa, with_large_pages};

use crate::ModelError;
use crate::ops::Norm;
use crate::sites::{FloatLinear, LARGE_MATRIX};
use crate::spec::{LinearRole, LinearSpec, ModelSpec, NormSpec};

/// Elements of two tensors that are compared at a time.
const COMPARED_AT_A_TIME: usize = 1 << 16;

/// Refuses a checkpoint whose [`ModelSpec::copies`] are none.
pub(crate) fn check_copies(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    for (copy, original) in &spec.copies {
        let elements = checkpoint.require(original)?.elements();
        for start in (0..elements).step_by(COMPARED_AT_A_TIME) {
            let part = start..elements.min(start + COMPARED_AT_A_TIME);
            let (ours, theirs) =
                (read_elements(checkpoint, original, &part)?, read_elements(checkpoint, copy, &part)?);
            if ours != theirs {
                return Err(ModelError::Tensor {
                    path: checkpoint.dir().to_owned(),
                    tensor: copy.clone(),
                    reason: format!(
                        "differs from `{original}`, to which config.json ties it; say `\"tie_word_embeddings\": false` \
                         there if both are meant, or remove the one that is not"
                    ),
                });
            }
        }
    }
    Ok(())
}

/// Some elements of a tensor in f32.
fn read_elements(checkpoint: &Checkpoint, name: &str, part: &Range<usize>) -> Result<Vec<f32>, ModelError> {
    let dtype = checkpoint.require(name)?.dtype;
    let at = |element: usize| (element * dtype.size()) as u64;
    let bytes = checkpoint.read_range(name, at(part.start)..at(part.end))?;
    floats_from_bytes(dtype, &bytes).ok_or_else(|| ModelError::Tensor {
        path: checkpoint.dir().to_owned(),
        tensor: name.to_owned(),
        reason: format!("is stored as {dtype}; floats are expected"),
    })
}

impl NormSpec {
    /// Reads gain and shift, of which every value is finite; a shift that is not there is zeros.
    pub fn read(&self, checkpoint: &Checkpoint, isa: Isa) -> Result<Norm, ModelError> {
        let mut gain = read_finite(checkpoint, &self.weight)?;
        if self.unit_offset {
            for gain in &mut gain {
                *gain += 1.0;
            }
        }
        let shift = match &self.bias {
            Some(bias) => read_finite(checkpoint, bias)?,
            None => vec![0.0; gain.len()],
        };
        Ok(Norm { isa, kind: self.kind, gain, shift, eps: self.eps })
    }
}

/// Reads a tensor in f32, every value finite.
pub(crate) fn read_finite(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, ModelError> {
    let values = checkpoint.read_f32(name)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(ModelError::not_finite(checkpoint.dir(), name, at, values[at])),
    }
}

/// Bytes of a matrix that are decoded at a time.
const BYTES_AT_A_TIME: u64 = 4 << 20;

/// A table `[rows, columns]`, every value finite: f32, or bfloat16 where the file has a large one so, which is half the
/// memory, and half the time where reading it is what takes time.
pub(crate) fn read_matrix(
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Tensor, ModelError> {
    let info = checkpoint.require(name)?;
    if info.elements() < LARGE_MATRIX {
        return Ok(Tensor::from_vec(read_finite(checkpoint, name)?, (rows, columns), &Device::Cpu)?);
    }
    // A part at a time, so that bfloat16 is never held as a whole in f32.
    let parts = (0..info.bytes()).step_by(BYTES_AT_A_TIME as usize);
    let parts = parts.map(|start| start..info.bytes().min(start + BYTES_AT_A_TIME));
    if info.dtype == Dtype::BF16 {
        let mut values = with_large_pages(info.elements());
        for part in parts {
            let bytes = checkpoint.read_range(name, part)?;
            let (pairs, _) = bytes.as_chunks::<2>();
            values.extend(pairs.iter().map(|pair| bf16::from_le_bytes(*pair)));
        }
        return match values.iter().position(|value| !value.is_finite()) {
            None => Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?),
            Some(at) => Err(ModelError::not_finite(checkpoint.dir(), name, at, values[at].to_f32())),
        };
    }
    let size = info.dtype.size() as u64;
    let mut values = with_large_pages(info.elements());
    for part in parts {
        values.extend(read_elements(
            checkpoint,
            name,
            &((part.start / size) as usize..(part.end / size) as usize),
        )?);
    }
    match values.iter().position(|value: &f32| !value.is_finite()) {
        None => Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?),
        Some(at) => Err(ModelError::not_finite(checkpoint.dir(), name, at, values[at])),
    }
}

/// A table rounded to bfloat16, and held so where it is large.
pub(crate) fn as_bf16(table: &Tensor) -> Result<Tensor, ModelError> {
    let rounded = table.to_dtype(DType::BF16)?;
    Ok(if rounded.elem_count() >= LARGE_MATRIX { rounded } else { rounded.to_dtype(DType::F32)? })
}

impl LinearSpec {
    /// Its weight `[outputs, inputs]` in f32, row-major, every value finite.
    pub fn read_weight(&self, checkpoint: &Checkpoint) -> Result<Vec<f32>, ModelError> {
        let values = self.read_rows(checkpoint, &self.weight, self.inputs)?;
        Ok(if self.transposed { self.untransposed(&values) } else { values })
    }

    /// Its weight `[outputs, inputs]` among the values of the whole tensor that holds it.
    pub fn weight_among<'a>(&self, tensor: &'a [f32]) -> Cow<'a, [f32]> {
        if self.transposed {
            return Cow::Owned(self.untransposed(tensor));
        }
        Cow::Borrowed(&tensor[self.rows.start * self.inputs..self.rows.end * self.inputs])
    }

    fn untransposed(&self, values: &[f32]) -> Vec<f32> {
        let column = |output| values[output..].iter().step_by(self.outputs).copied();
        (0..self.outputs).flat_map(column).collect()
    }

    /// Its bias `[outputs]` in f32, every value finite.
    pub fn read_bias(&self, checkpoint: &Checkpoint) -> Result<Option<Vec<f32>>, ModelError> {
        self.bias.as_deref().map(|bias| self.read_rows(checkpoint, bias, 1)).transpose()
    }

    /// Its rows of a tensor, and no others.
    fn read_rows(&self, checkpoint: &Checkpoint, name: &str, columns: usize) -> Result<Vec<f32>, ModelError> {
        if !self.is_fused_in_file() {
            return read_finite(checkpoint, name);
        }
        let values = read_elements(checkpoint, name, &(self.rows.start * columns..self.rows.end * columns))?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let element = self.rows.start * columns + i;
                Err(ModelError::not_finite(checkpoint.dir(), name, element, values[i]))
            }
        }
    }

    /// Reads it in f32; the last Linear of a model as the file has it, where that is large and in bfloat16.
    pub fn read_float(&self, checkpoint: &Checkpoint) -> Result<FloatLinear, ModelError> {
        // Linears before the last one are read with many rows, too.
        let is_last = matches!(self.role, LinearRole::Classifier | LinearRole::TiedDecoder);
        let weight =
            if is_last && !self.transposed && !self.is_fused_in_file() && self.weight_shape.len() == 2 {
                read_matrix(checkpoint, &self.weight, self.outputs, self.inputs)?
            } else {
                Tensor::from_vec(self.read_weight(checkpoint)?, (self.outputs, self.inputs), &Device::Cpu)?
            };
        self.with_weight(checkpoint, weight)
    }

    /// With a weight that is in memory already.
    pub(crate) fn with_weight(
        &self,
        checkpoint: &Checkpoint,
        weight: Tensor,
    ) -> Result<FloatLinear, ModelError> {
        let bias = self.read_bias(checkpoint)?;
        Ok(FloatLinear::new(weight, bias, self.activation))
    }
}
