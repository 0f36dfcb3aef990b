//! The header of a safetensors file: parsed, and believed only after every offset has been checked.
//!
//! Layout, from the format's specification: 8 bytes of little-endian header length n, n bytes of JSON that begin with
//! `{` and may end in spaces, then the data. Offsets count from the start of the data; the tensors cover it without
//! overlaps and holes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    marker::PhantomData,
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::Dtype;
use crate::FormatError;

/// Longest header that is read, in bytes; the limit of the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The key of the header that holds text instead of a tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// Where one tensor lies in its file, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file's data.
    pub begin: u64,
    /// End, counted likewise; `end - begin` is the element count times the element size.
    pub end: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// A header whose every claim has been checked against the length of the data.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses the JSON of a header whose file has `data_bytes` bytes of data.
    pub(crate) fn parse(path: &Path, json: &[u8], data_bytes: u64) -> Result<Self, FormatError> {
        let malformed = |reason: String| FormatError::Malformed { path: path.to_owned(), reason };
        if json.first() != Some(&b'{') {
            return Err(malformed("its header is not a JSON object".to_owned()));
        }
        let raw: RawHeader =
            serde_json::from_slice(json).map_err(|e| malformed(format!("its header is refused: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, raw) in raw.tensors {
            let info = raw.check(path, name, data_bytes)?;
            tensors.insert(info.name.clone(), info);
        }
        check_cover(path, &tensors, data_bytes)?;
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// Sorted by offset, each tensor begins where the one before it ends, and the last ends with the file.
fn check_cover(path: &Path, tensors: &BTreeMap<String, TensorInfo>, data: u64) -> Result<(), FormatError> {
    let mut sorted: Vec<&TensorInfo> = tensors.values().collect();
    sorted.sort_by_key(|info| (info.begin, info.end));
    let mut covered = 0;
    for info in sorted {
        if info.begin != covered {
            let kind =
                if info.begin < covered { "overlaps another tensor" } else { "leaves a hole before it" };
            return Err(FormatError::MalformedTensor {
                path: path.to_owned(),
                tensor: info.name.clone(),
                reason: format!("{kind}: it begins at byte {} where {covered} is expected", info.begin),
            });
        }
        covered = info.end;
    }
    if covered != data {
        let reason = format!("its tensors end at byte {covered} but its data has {data} bytes");
        return Err(FormatError::Malformed { path: path.to_owned(), reason });
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn check(self, path: &Path, name: String, data_bytes: u64) -> Result<TensorInfo, FormatError> {
        let (begin, end) = self.data_offsets;
        let Some(dtype) = Dtype::parse(&self.dtype) else {
            return Err(FormatError::UnsupportedDtype {
                path: path.to_owned(),
                tensor: name,
                dtype: self.dtype,
            });
        };
        let reason = if begin > end {
            format!("ends at byte {end}, before its beginning at {begin}")
        } else if end > data_bytes {
            format!("ends at byte {end}, outside the {data_bytes} bytes of data")
        } else {
            match byte_count(&self.shape, dtype) {
                Some(bytes) if bytes == end - begin && usize::try_from(bytes).is_ok() => {
                    // Every dimension divides a byte count that lies inside the file, or one of them is zero.
                    let shape: Result<Vec<usize>, _> =
                        self.shape.iter().map(|&d| usize::try_from(d)).collect();
                    match shape {
                        Ok(shape) => return Ok(TensorInfo { name, dtype, shape, begin, end }),
                        Err(_) => "has a dimension too large for this machine".to_owned(),
                    }
                }
                Some(bytes) => {
                    format!("has {} bytes where its shape and dtype {dtype} need {bytes}", end - begin)
                }
                None => "has a shape whose size overflows 64 bits".to_owned(),
            }
        };
        Err(FormatError::MalformedTensor { path: path.to_owned(), tensor: name, reason })
    }
}

/// Bytes of a tensor; `None` when a partial product does not fit 64 bits, also where a later dimension is zero.
pub(crate) fn byte_count(shape: &[u64], dtype: Dtype) -> Option<u64> {
    shape.iter().try_fold(dtype.size() as u64, |product, &dimension| product.checked_mul(dimension))
}

struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut metadata: Option<UniqueMap<String>> = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA_KEY {
                        if metadata.replace(map.next_value()?).is_some() {
                            return Err(duplicate(&key));
                        }
                    } else {
                        insert_unique(&mut tensors, key, map.next_value()?)?;
                    }
                }
                Ok(RawHeader { tensors, metadata: metadata.map(|map| map.0).unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A JSON object that refuses a key that comes twice, where `serde` would silently keep the last.
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueMap<V>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry()? {
                    insert_unique(&mut map, key, value)?;
                }
                Ok(UniqueMap(map))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

fn insert_unique<V, E: serde::de::Error>(
    map: &mut BTreeMap<String, V>,
    key: String,
    value: V,
) -> Result<(), E> {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
        Entry::Occupied(entry) => Err(duplicate(entry.key())),
    }
}

fn duplicate<E: serde::de::Error>(key: &str) -> E {
    E::custom(format_args!("the name `{}` comes twice", key.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str, data_bytes: u64) -> Result<Header, String> {
        Header::parse(Path::new("m.safetensors"), json.as_bytes(), data_bytes).map_err(|e| e.to_string())
    }

    #[test]
    fn a_well_formed_header_is_believed() {
        let json = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"I8","shape":[2,3],"data_offsets":[8,14]},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "none":{"dtype":"F64","shape":[3,0],"data_offsets":[8,8]},
            "scalar":{"dtype":"BF16","shape":[],"data_offsets":[14,16]}}   "#;
        let header = parse(json, 16).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(header.tensors.keys().collect::<Vec<_>>(), ["a", "b", "none", "scalar"]);
        let b = &header.tensors["b"];
        assert_eq!((b.dtype, b.shape.as_slice(), b.begin, b.end), (Dtype::I8, &[2, 3][..], 8, 14));
        assert_eq!((b.elements(), b.bytes()), (6, 6));
        assert_eq!(header.tensors["scalar"].elements(), 1);
        assert_eq!(header.tensors["none"].elements(), 0);
        assert!(parse("{}", 0).unwrap().tensors.is_empty());
    }

    #[test]
    fn every_false_claim_is_refused_by_name() {
        let one = |entry: &str| format!(r#"{{"t":{entry}}}"#);
        let cases = [
            (String::new(), "not a JSON object"),
            (" {}".to_owned(), "not a JSON object"),
            ("[]".to_owned(), "not a JSON object"),
            ("{".to_owned(), "refused"),
            ("{} x".to_owned(), "trailing"),
            (one(r#"{"dtype":"I8","shape":[4]}"#), "data_offsets"),
            (one(r#"{"dtype":"I8","shape":[-4],"data_offsets":[0,4]}"#), "invalid value"),
            (one(r#"{"dtype":"I8","shape":[4],"data_offsets":[0,4,5]}"#), "refused"),
            (one(r#"{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}"#), "tensor `t` in m.safetensors has dtype F8_E4M3"),
            (one(r#"{"dtype":"I8","shape":[4],"data_offsets":[4,0]}"#), "before its beginning"),
            (one(r#"{"dtype":"I8","shape":[5],"data_offsets":[0,5]}"#), "outside the 4 bytes"),
            (one(r#"{"dtype":"I8","shape":[3],"data_offsets":[0,4]}"#), "need 3"),
            (one(r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#), "overflows"),
            (one(r#"{"dtype":"I8","shape":[3],"data_offsets":[1,4]}"#), "hole"),
            (one(r#"{"dtype":"I8","shape":[3],"data_offsets":[0,3]}"#), "end at byte 3"),
            ("{}".to_owned(), "end at byte 0"),
            (
                r#"{"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}}"#.to_owned(),
                "tensor `b` in m.safetensors overlaps",
            ),
            (
                r#"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}}"#.to_owned(),
                "`a` comes twice",
            ),
            (r#"{"__metadata__":{"a":1}}"#.to_owned(), "refused"),
            (r#"{"__metadata__":{"a":"1","a":"2"}}"#.to_owned(), "`a` comes twice"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), "comes twice"),
        ];
        for (json, expected) in cases {
            let message = parse(&json, 4).expect_err(&json);
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(
            begin: u64, end: u64, dims in proptest::collection::vec(any::<u64>(), 0..5), data: u64,
        ) {
            let json = format!(r#"{{"t":{{"dtype":"F32","shape":{dims:?},"data_offsets":[{begin},{end}]}}}}"#);
            if let Ok(header) = parse(&json, data) {
                let info = &header.tensors["t"];
                prop_assert_eq!((info.begin, info.end), (0, data));
                prop_assert_eq!(info.elements() as u64 * 4, data);
            }
        }
    }
}
