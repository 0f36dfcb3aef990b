//! Embedding tables: rows in f32, in bfloat16, or as integers with a scale each.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use zeropoint_core::{QuantParams, dequantize};
use zeropoint_formats::deployed::read_table;
use zeropoint_formats::{Checkpoint, Dtype};

use crate::ModelError;
use crate::model::Model;
use crate::ops::{halves_of, rows_of};
use crate::read::{as_bf16, read_matrix};
use crate::spec::EmbeddingTable;

/// A table whose rows are looked up one by one.
pub trait TableRows: Send + Sync {
    /// Writes row `row` in f32 over `out`, which is as long as a row.
    fn read(&self, row: usize, out: &mut [f32]);
}

/// An embedding table in INT8, symmetric with a scale for each row.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Table {
    /// `[rows, width]`.
    pub values: Vec<i8>,
    /// One for each row, at least one.
    pub scales: Vec<f32>,
}

impl TableRows for Int8Table {
    fn read(&self, row: usize, out: &mut [f32]) {
        let params = QuantParams { scale: self.scales[row], zero_point: 0 };
        let values = &self.values[row * out.len()..(row + 1) * out.len()];
        out.iter_mut().zip(values).for_each(|(out, q)| *out = dequantize(*q, params));
    }
}

/// Makes the rows of a table; `None` reads it as the checkpoint has it.
pub type TableFactory<'a> = dyn Fn(&EmbeddingTable) -> Result<Option<Arc<dyn TableRows>>, ModelError> + 'a;

/// Where a model's embedding tables come from.
#[derive(Clone, Copy)]
pub enum Tables<'a> {
    /// Read from the checkpoint.
    Read,
    /// Read from the checkpoint, and rounded to bfloat16 where that holds more than 16 bits.
    ReadAsBf16,
    /// Those of a model of the same description, in the same memory.
    Shared(&'a Model),
    /// Those of a model of the same description, rounded to bfloat16 where the checkpoint holds more than 16 bits.
    SharedAsBf16(&'a Model),
    /// Those that this makes, others read.
    Made(&'a TableFactory<'a>),
}

/// A table at work.
#[derive(Clone)]
pub(crate) enum Table {
    /// `[rows, width]`, f32 or bfloat16.
    Float(Tensor),
    /// Rows made as they are looked up.
    Rows(Arc<dyn TableRows>),
}

impl Tables<'_> {
    /// A table that no model shares.
    pub(crate) fn read(self, checkpoint: &Checkpoint, table: &EmbeddingTable) -> Result<Table, ModelError> {
        if let Self::Made(make) = self
            && let Some(rows) = make(table)?
        {
            return Ok(Table::Rows(rows));
        }
        if checkpoint.get(&table.tensor).is_some_and(|info| info.dtype == Dtype::I8) {
            let (values, scales) = read_table(checkpoint, &table.tensor, table.rows, table.width)?;
            return Ok(Table::Rows(Arc::new(Int8Table { values, scales })));
        }
        let values = read_matrix(checkpoint, &table.tensor, table.rows, table.width)?;
        Ok(Table::Float(match self {
            Self::ReadAsBf16 | Self::SharedAsBf16(_) if is_wide(checkpoint, &table.tensor) => {
                as_bf16(&values)?
            }
            _ => values,
        }))
    }
}

impl Table {
    /// Loads the table that is number `at` of the input of tower `tower`.
    pub(crate) fn load(
        spec: &EmbeddingTable,
        checkpoint: &Checkpoint,
        tables: Tables<'_>,
        (tower, at): (usize, usize),
    ) -> Result<Self, ModelError> {
        match tables {
            Tables::Shared(model) => Ok(model.embedding(tower)?.table_at(at).clone()),
            Tables::SharedAsBf16(model) => match model.embedding(tower)?.table_at(at) {
                Self::Float(table) if is_wide(checkpoint, &spec.tensor) => Ok(Self::Float(as_bf16(table)?)),
                shared => Ok(shared.clone()),
            },
            Tables::Read | Tables::ReadAsBf16 | Tables::Made(_) => tables.read(checkpoint, spec),
        }
    }

    /// The whole table as a matrix; in memory of its own where its rows are made as they are looked up.
    pub(crate) fn matrix(&self, spec: &EmbeddingTable) -> Result<Tensor, ModelError> {
        match self {
            Self::Float(table) => Ok(table.clone()),
            Self::Rows(rows) => {
                let mut values = vec![0f32; spec.rows * spec.width];
                let each = values.chunks_exact_mut(spec.width).enumerate();
                each.for_each(|(row, out)| rows.read(row, out));
                Ok(Tensor::from_vec(values, (spec.rows, spec.width), &Device::Cpu)?)
            }
        }
    }

    /// Hands what reads a row of `width` values to `work`.
    pub(crate) fn with_rows<T>(
        &self,
        width: usize,
        work: impl FnOnce(&(dyn Fn(usize, &mut [f32]) + Sync)) -> T,
    ) -> candle_core::Result<T> {
        match self {
            Self::Rows(rows) => Ok(work(&|row, out| rows.read(row, out))),
            Self::Float(table) if table.dtype() == DType::BF16 => halves_of(table, |halves| {
                work(&|row, out| {
                    for (out, bits) in out.iter_mut().zip(&halves[row * width..]) {
                        *out = f32::from_bits(u32::from(*bits) << 16);
                    }
                })
            }),
            Self::Float(table) => rows_of(table, |values| {
                work(&|row, out| out.copy_from_slice(&values[row * width..(row + 1) * width]))
            }),
        }
    }
}

fn is_wide(checkpoint: &Checkpoint, tensor: &str) -> bool {
    checkpoint.get(tensor).is_some_and(|info| matches!(info.dtype, Dtype::F32 | Dtype::F64))
}
