//! The output matrix of a decoder in INT8, where it is the word embedding table.

use std::sync::Arc;

use rayon::prelude::*;
use zeropoint_core::{QuantParams, Symmetry};
use zeropoint_formats::deployed::{read_head_scales, read_table};
use zeropoint_formats::{Dtype, QuantizedLinear};
use zeropoint_kernels::{Isa, quantize_static};
use zeropoint_models::{
    ActivationQuantizer, EmbeddingTable, LinearId, LinearRole, LinearSpec, ModelDirectory, ModelError,
    TableRows,
};

use crate::IntegerLinear;
use crate::site::Reader;

/// An INT8 head.
pub(crate) struct Int8Head {
    pub(crate) id: LinearId,
    linear: Arc<IntegerLinear>,
    /// The table of the same integers, where the file has them.
    table: Option<String>,
}

impl Int8Head {
    /// It as the reader of its site.
    pub(crate) fn reader(&self) -> Reader {
        Reader::Integer(ActivationQuantizer::Dynamic(Symmetry::Symmetric), Arc::clone(&self.linear))
    }

    /// The rows of that table, where it is the same integers.
    pub(crate) fn rows_of(&self, table: &EmbeddingTable) -> Option<Arc<dyn TableRows>> {
        let same = self.table.as_ref() == Some(&table.tensor);
        same.then(|| Arc::clone(&self.linear) as Arc<dyn TableRows>)
    }
}

/// The head where config.json says that it is INT8.
pub(crate) fn load(directory: &ModelDirectory, isa: Isa, int8: bool) -> Result<Option<Int8Head>, ModelError> {
    if !int8 {
        return Ok(None);
    }
    let (spec, checkpoint) = (directory.spec(), directory.checkpoint());
    let tied = |id: &LinearId| spec.linears[*id].role == LinearRole::TiedDecoder;
    let Some(id) = spec.language_head().filter(tied) else {
        return Err(ModelError::Config {
            path: directory.path().join("config.json"),
            reason: "`zeropoint.lm_head` is \"int8\", but no embedding table makes the logits of this model; remove it"
                .to_owned(),
        });
    };
    let linear = &spec.linears[id];
    let stored_int8 = checkpoint.get(&linear.weight).is_some_and(|info| info.dtype == Dtype::I8);
    let (weight, weight_scales) = if stored_int8 {
        read_table(checkpoint, &linear.weight, linear.outputs, linear.inputs)?
    } else {
        let scales = read_head_scales(directory.path(), &linear.tensor, linear.outputs)?;
        (rounded(isa, directory, linear, &scales)?, scales)
    };
    let stored = QuantizedLinear {
        weight,
        outputs: linear.outputs,
        inputs: linear.inputs,
        weight_scales,
        column_groups: None,
        input: None,
    };
    let bias = linear.read_bias(checkpoint)?;
    let packed =
        IntegerLinear::new(isa, &stored, bias, linear.activation).map_err(|error| ModelError::Tensor {
            path: directory.path().to_owned(),
            tensor: linear.weight.clone(),
            reason: format!("cannot be packed: {error}"),
        })?;
    let table = stored_int8.then(|| linear.weight.clone());
    Ok(Some(Int8Head { id, linear: Arc::new(packed), table }))
}

/// The table's rows in INT8, each by its scale.
fn rounded(
    isa: Isa,
    directory: &ModelDirectory,
    linear: &LinearSpec,
    scales: &[f32],
) -> Result<Vec<i8>, ModelError> {
    let weight = linear.read_weight(directory.checkpoint())?;
    let mut rounded = vec![0i8; weight.len()];
    rounded
        .par_chunks_exact_mut(linear.inputs)
        .zip(weight.par_chunks_exact(linear.inputs))
        .zip(scales)
        .try_for_each(|((rounded, row), scale)| {
            let params = QuantParams { scale: *scale, zero_point: 0 };
            quantize_static(isa, row, linear.inputs, params, rounded)
        })
        .map_err(|error| ModelError::Candle(candle_core::Error::wrap(error)))?;
    Ok(rounded)
}
