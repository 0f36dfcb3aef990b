//! Embedding tables on their way into the output, and the INT8 head that multiplies with one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use zeropoint_formats::deployed::{INT8_HEAD, OWN_FOLDER, head_scale_specs, table_bytes, table_specs};
use zeropoint_formats::safetensors::element::{bf16_bytes, f32_bytes, floats_from_bytes};
use zeropoint_formats::{CheckpointWriter, Dtype, PlannedCheckpoint, TensorInfo, TensorSpec};
use zeropoint_kernels::Isa;
use zeropoint_models::{EmbeddingTable, Int8Table, TableRows};
use zeropoint_quantizer::{EmbeddingPrecision, LayerScheme, QuantizedWeight, quantize_weight};

use crate::deploy::{DeployedLinear, Write, finite, input_quantizer};
use crate::distribution::WeightDistribution;
use crate::{PipelineError, Prepared, convert};

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    AsItIs,
    Bf16,
    Int8,
}

/// What becomes of a table, and the INT8 head that reads it too, by its index in the description.
pub(crate) struct TableFate<'a> {
    pub(crate) stored: Stored,
    pub(crate) head: Option<(usize, &'a LayerScheme)>,
}

impl<'a> TableFate<'a> {
    /// Every table of which something becomes, by its tensor.
    pub(crate) fn all(prepared: &'a Prepared) -> BTreeMap<&'a str, Self> {
        let spec = prepared.graph().spec();
        let head = prepared.plan.tied_head(spec);
        let fate = |table: &'a EmbeddingTable| {
            let dtype = prepared.graph().checkpoint().get(&table.tensor)?.dtype;
            let is_wide = matches!(dtype, Dtype::F32 | Dtype::F64);
            let stored = match prepared.plan.embeddings {
                EmbeddingPrecision::Bf16 if is_wide => Stored::Bf16,
                EmbeddingPrecision::Keep | EmbeddingPrecision::Bf16 => Stored::AsItIs,
                EmbeddingPrecision::Int8 => Stored::Int8,
            };
            let head = head.filter(|(id, _)| spec.linears[*id].weight == table.tensor);
            let changed = stored != Stored::AsItIs || head.is_some();
            changed.then_some((table.tensor.as_str(), Self { stored, head }))
        };
        spec.tables().filter_map(fate).collect()
    }

    /// What is written of the table.
    pub(crate) fn specs(&self, info: &TensorInfo) -> Vec<TensorSpec> {
        match (self.stored, &info.shape[..]) {
            (Stored::Int8, &[rows, width]) => table_specs(&info.name, rows, width).into(),
            (Stored::Bf16, _) => vec![TensorSpec::new(&info.name, Dtype::BF16, info.shape.clone())],
            _ => vec![TensorSpec::from(info)],
        }
    }

    /// Writes the table and, into a folder of `dir`, what the head has of its own; gives the head.
    pub(crate) fn write(
        &self,
        prepared: &Prepared,
        isa: Isa,
        info: &TensorInfo,
        bytes: &[u8],
        dir: &Path,
        write: &mut Write<'_>,
    ) -> Result<Option<(usize, DeployedLinear)>, PipelineError> {
        let mut values = finite(prepared, isa, info, bytes)?;
        if self.stored == Stored::AsItIs {
            write(&info.name, bytes)?;
        }
        let mut integers = None;
        match self.stored {
            Stored::AsItIs => {}
            Stored::Bf16 => {
                let bytes = bf16_bytes(&values);
                write(&info.name, &bytes)?;
                values = from_bf16(&bytes, values);
            }
            Stored::Int8 => {
                let weight = round(prepared, isa, &info.name, &values, info.shape[0], info.shape[1])?;
                for (name, bytes) in table_bytes(&info.name, &weight.values, &weight.scales) {
                    write(&name, &bytes)?;
                }
                integers = Some(weight);
            }
        }
        self.make_head(prepared, isa, &values, integers, dir)
    }

    /// The head of a table that is written already; what it has of its own is written again.
    pub(crate) fn head_anew(
        &self,
        prepared: &Prepared,
        isa: Isa,
        info: &TensorInfo,
        dir: &Path,
    ) -> Result<Option<(usize, DeployedLinear)>, PipelineError> {
        if self.head.is_none() {
            return Ok(None);
        }
        let mut values = finite(prepared, isa, info, &prepared.graph().checkpoint().read_bytes(&info.name)?)?;
        if self.stored == Stored::Bf16 {
            values = from_bf16(&bf16_bytes(&values), values);
        }
        self.make_head(prepared, isa, &values, None, dir)
    }

    /// The head of the table's values, or of the integers that they are rounded to already.
    fn make_head(
        &self,
        prepared: &Prepared,
        isa: Isa,
        values: &[f32],
        integers: Option<QuantizedWeight>,
        dir: &Path,
    ) -> Result<Option<(usize, DeployedLinear)>, PipelineError> {
        let Some((id, scheme)) = self.head else { return Ok(None) };
        let linear = &prepared.graph().spec().linears[id];
        let weight = match integers {
            Some(weight) => weight,
            None => round(prepared, isa, &linear.path, values, linear.outputs, linear.inputs)?,
        };
        let scales = f32_bytes(&weight.scales);
        let mut bytes = scales.len();
        if self.stored == Stored::Int8 {
            bytes += weight.values.len();
        } else {
            let folder = dir.join(OWN_FOLDER);
            std::fs::create_dir_all(&folder)
                .map_err(|source| PipelineError::Io { path: folder.clone(), source })?;
            let specs = head_scale_specs(&linear.tensor, linear.outputs);
            let name = specs[0].name.clone();
            let mut own = CheckpointWriter::create(&folder, specs, u64::MAX)?;
            own.write(&name, &scales)?;
            own.finish()?;
        }
        let distribution = WeightDistribution::of(isa, values, &weight, scheme.scheme.weights.bits);
        // Dynamic: it needs no statistics.
        let quantizer = input_quantizer(prepared, None, linear, scheme)?;
        let bytes = bytes as u64;
        Ok(Some((id, DeployedLinear { weight, scheme: *scheme, quantizer, bias: None, bytes, distribution })))
    }
}

/// What a reader finds of a table in bfloat16, of which a head is made.
fn from_bf16(bytes: &[u8], values: Vec<f32>) -> Vec<f32> {
    floats_from_bytes(Dtype::BF16, bytes).unwrap_or(values)
}

/// A table in INT8, with the weight observer of the run.
fn round(
    prepared: &Prepared,
    isa: Isa,
    name: &str,
    values: &[f32],
    rows: usize,
    width: usize,
) -> Result<QuantizedWeight, PipelineError> {
    let observer = convert::layer_scheme(prepared.config.quantization.layer_scheme()).weight_observer;
    quantize_weight(isa, values, rows, width, INT8_HEAD.weights, observer)
        .map_err(|error| PipelineError::Layer { path: name.to_owned(), reason: error.to_string() })
}

/// The rows of a table as the plan's output has them in INT8; those of an INT8 head are its weights.
pub(crate) fn simulated(
    prepared: &Prepared,
    isa: Isa,
    table: &EmbeddingTable,
    deployed: &BTreeMap<usize, DeployedLinear>,
) -> Result<Arc<dyn TableRows>, PipelineError> {
    let spec = prepared.graph().spec();
    let head = prepared
        .plan
        .tied_head(spec)
        .and_then(|(id, _)| deployed.get(&id).filter(|_| spec.linears[id].weight == table.tensor));
    let (values, scales) = if let Some(head) = head {
        (head.weight.values.clone(), head.weight.scales.clone())
    } else {
        let info = prepared.graph().checkpoint().require(&table.tensor)?;
        let bytes = prepared.graph().checkpoint().read_bytes(&table.tensor)?;
        let values = finite(prepared, isa, info, &bytes)?;
        let weight = round(prepared, isa, &table.tensor, &values, table.rows, table.width)?;
        (weight.values, weight.scales)
    };
    Ok(Arc::new(Int8Table { values, scales }))
}

/// The weight files of the own folder with their bytes; none where nothing lies there.
pub(crate) fn own_files(prepared: &Prepared) -> Vec<(String, u64)> {
    let spec = prepared.graph().spec();
    let head = prepared.plan.tied_head(spec).filter(|_| prepared.plan.embeddings != EmbeddingPrecision::Int8);
    head.into_iter()
        .flat_map(|(id, _)| {
            let linear = &spec.linears[id];
            PlannedCheckpoint::new(head_scale_specs(&linear.tensor, linear.outputs), u64::MAX).files
        })
        .map(|(name, bytes)| (format!("{OWN_FOLDER}/{name}"), bytes))
        .collect()
}

/// The bytes of those files.
pub(crate) fn own_bytes(prepared: &Prepared) -> u64 {
    own_files(prepared).into_iter().map(|(_, bytes)| bytes).sum()
}
