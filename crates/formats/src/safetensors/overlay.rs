//! Tensors that are made when they are read.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{TensorInfo, TensorSpec};
use crate::FormatError;

/// Makes tensors that stand in for those of a [`Checkpoint`](super::Checkpoint), or beside them.
pub trait Overlay: fmt::Debug + Send + Sync {
    /// Name, type and shape of each, floats all. They do not change.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// The bytes of some rows of one of them, little-endian: of indices of its first dimension. The same each time.
    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>, FormatError>;
}

/// An overlay with the headers of its tensors.
#[derive(Debug)]
pub(super) struct Made {
    overlay: Arc<dyn Overlay>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

impl Made {
    pub(super) fn new(overlay: Arc<dyn Overlay>) -> Self {
        let info = |spec: TensorSpec| {
            let end = spec.bytes();
            let TensorSpec { name, dtype, shape } = spec;
            (name.clone(), TensorInfo { name, dtype, shape, begin: 0, end })
        };
        let tensors = overlay.tensors().into_iter().map(info).collect();
        Self { overlay, tensors }
    }

    /// All of a tensor.
    pub(super) fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, FormatError> {
        self.rows(info, 0..rows_of(info))
    }

    fn rows(&self, info: &TensorInfo, rows: Range<usize>) -> Result<Vec<u8>, FormatError> {
        let bytes = self.overlay.read(&info.name, rows.clone())?;
        let expected = (info.bytes() as usize).checked_div(rows_of(info)).unwrap_or(0) * rows.len();
        debug_assert_eq!(bytes.len(), expected, "an overlay gives the rows that it is asked for");
        Ok(bytes)
    }

    /// Some bytes of a tensor, by way of the rows that hold them.
    pub(super) fn read_range(
        &self,
        dir: &Path,
        info: &TensorInfo,
        range: Range<u64>,
    ) -> Result<Vec<u8>, FormatError> {
        if range.start > range.end || range.end > info.bytes() {
            return Err(FormatError::OutsideTensor {
                path: dir.to_owned(),
                tensor: info.name.clone(),
                start: range.start,
                end: range.end,
                len: info.bytes(),
            });
        }
        let row = info.bytes().checked_div(rows_of(info) as u64).unwrap_or(0);
        if row == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        let rows = (range.start / row) as usize..range.end.div_ceil(row) as usize;
        let first = rows.start as u64 * row;
        let mut bytes = self.rows(info, rows)?;
        bytes.truncate((range.end - first) as usize);
        bytes.drain(..(range.start - first) as usize);
        Ok(bytes)
    }
}

/// The first dimension; a scalar is one row.
fn rows_of(info: &TensorInfo) -> usize {
    info.shape.first().copied().unwrap_or(1)
}
