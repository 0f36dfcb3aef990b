//! Where each tensor of a file to be written will lie, known before any of them exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    Dtype, MAX_HEADER_BYTES, TensorInfo,
    header::{METADATA_KEY, byte_count},
};
use crate::FormatError;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of that name, element type and shape.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Bytes of its data; [`u64::MAX`] where the count would overflow, which no file can hold.
    pub fn bytes(&self) -> u64 {
        let shape: Vec<u64> = self.shape.iter().map(|&d| d as u64).collect();
        byte_count(&shape, self.dtype).unwrap_or(u64::MAX)
    }
}

impl From<&TensorInfo> for TensorSpec {
    fn from(info: &TensorInfo) -> Self {
        Self::new(info.name.clone(), info.dtype, info.shape.clone())
    }
}

/// Exact size in bytes, header included, of the one file that would hold these tensors and the metadata
/// `{"format": "pt"}`; [`u64::MAX`] where that overflows.
pub fn planned_bytes(specs: &[TensorSpec]) -> u64 {
    let layout = Layout::unchecked(specs.to_vec());
    (layout.header(&pt_metadata()).len() as u64).saturating_add(layout.data_bytes)
}

/// What Hugging Face libraries expect in the header of a model: without it transformers refuses the file.
pub(crate) fn pt_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Tensors with their offsets. The order is that of the reference implementation, larger element sizes first and then
/// by name: the header is padded to 8 bytes, so every tensor is aligned to its element without a hole.
#[derive(Debug)]
pub(crate) struct Layout {
    /// In file order.
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) data_bytes: u64,
}

impl Layout {
    /// Refuses names that come twice or are reserved, and sizes that overflow.
    pub(crate) fn new(path: &Path, specs: Vec<TensorSpec>) -> Result<Self, FormatError> {
        let mut names = BTreeSet::new();
        let mut total = Some(0u64);
        for spec in &specs {
            total = total.and_then(|sum| sum.checked_add(spec.bytes()));
            let reason = if spec.name == METADATA_KEY {
                "the name is reserved by the format; rename the tensor"
            } else if !names.insert(&spec.name) {
                "the name is planned twice; write each tensor once"
            } else if spec.bytes() == u64::MAX || total.is_none() {
                "its size overflows 64 bits; check its shape"
            } else {
                continue;
            };
            let (path, tensor) = (path.to_owned(), spec.name.clone());
            return Err(FormatError::Write { path, tensor, reason: reason.to_owned() });
        }
        Ok(Self::unchecked(specs))
    }

    fn unchecked(mut specs: Vec<TensorSpec>) -> Self {
        specs.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(&b.name)));
        let mut end = 0u64;
        let place = |spec: TensorSpec| {
            let begin = end;
            end = begin.saturating_add(spec.bytes());
            TensorInfo { name: spec.name, dtype: spec.dtype, shape: spec.shape, begin, end }
        };
        let tensors = specs.into_iter().map(place).collect();
        Self { tensors, data_bytes: end }
    }

    /// The bytes before the data: length, JSON, and spaces up to a multiple of 8.
    pub(crate) fn header(&self, metadata: &BTreeMap<String, String>) -> Vec<u8> {
        let mut object = Map::new();
        if !metadata.is_empty() {
            object.insert(METADATA_KEY.to_owned(), json!(metadata));
        }
        for info in &self.tensors {
            let (begin, end) = (info.begin, info.end);
            let entry =
                json!({ "dtype": info.dtype.name(), "shape": info.shape, "data_offsets": [begin, end] });
            object.insert(info.name.clone(), entry);
        }
        let mut json = Value::Object(object).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        header
    }

    /// As [`header`](Self::header), refusing what readers refuse.
    pub(crate) fn checked_header(
        &self,
        path: &Path,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>, FormatError> {
        let header = self.header(metadata);
        if header.len() as u64 - 8 > MAX_HEADER_BYTES {
            let reason = format!("its header would have {} bytes, more than readers accept", header.len());
            return Err(FormatError::Malformed { path: path.to_owned(), reason });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_is_aligned_and_the_order_is_fixed() {
        let spec = |name: &str, dtype, shape: &[usize]| TensorSpec::new(name, dtype, shape);
        let specs = vec![
            spec("b.weight", Dtype::I8, &[3, 5]),
            spec("a.norm", Dtype::BF16, &[7]),
            spec("b.weight_scale", Dtype::F32, &[3, 1]),
            spec("a.ids", Dtype::I64, &[1]),
            spec("a.weight_scale", Dtype::F32, &[1]),
        ];
        let layout = Layout::new(Path::new("m"), specs.clone()).unwrap();
        let names: Vec<&str> = layout.tensors.iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["a.ids", "a.weight_scale", "b.weight_scale", "a.norm", "b.weight"]);
        let header = layout.header(&pt_metadata());
        assert_eq!(header.len() % 8, 0);
        for info in &layout.tensors {
            assert_eq!((header.len() as u64 + info.begin) % info.dtype.size() as u64, 0, "{}", info.name);
        }
        let mut reversed = specs.clone();
        reversed.reverse();
        assert_eq!(Layout::new(Path::new("m"), reversed).unwrap().header(&pt_metadata()), header);
        assert_eq!(planned_bytes(&specs), (header.len() + 8 + 4 + 12 + 14 + 15) as u64);
    }

    #[test]
    fn impossible_plans_are_refused_by_name() {
        let huge = usize::MAX / 2;
        let cases = [
            (
                vec![TensorSpec::new("a", Dtype::I8, [1]), TensorSpec::new("a", Dtype::F32, [1])],
                "planned twice",
            ),
            (vec![TensorSpec::new("__metadata__", Dtype::I8, [1])], "reserved"),
            (vec![TensorSpec::new("a", Dtype::F32, [huge, 4])], "overflows"),
            (
                vec![TensorSpec::new("a", Dtype::I8, [usize::MAX - 1]), TensorSpec::new("b", Dtype::I8, [2])],
                "overflows",
            ),
        ];
        for (specs, expected) in cases {
            let message = Layout::new(Path::new("m"), specs).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert_eq!(planned_bytes(&[TensorSpec::new("a", Dtype::F32, [huge, 4])]), u64::MAX);
    }
}
