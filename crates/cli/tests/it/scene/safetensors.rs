//! Weight files taken apart and put together again, well-formed or not.

use std::path::Path;

use serde_json::{Map, Value, json};

/// A safetensors file as its header and its data.
#[derive(Clone)]
pub(crate) struct Safetensors {
    pub(crate) header: Map<String, Value>,
    pub(crate) data: Vec<u8>,
}

impl Safetensors {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("the weight file is there");
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
        let header = serde_json::from_slice(&rest[..length]).expect("the header is JSON");
        Self { header, data: rest[length..].to_vec() }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut json = json!(self.header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes()[..], &json, &self.data].concat()
    }

    /// First byte of a tensor and the one after its last, in the data.
    pub(crate) fn offsets(&self, tensor: &str) -> (usize, usize) {
        let offsets = &self.header[tensor]["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().expect("an offset is a number") as usize;
        (at(0), at(1))
    }

    pub(crate) fn bytes(&self, tensor: &str) -> &[u8] {
        let (begin, end) = self.offsets(tensor);
        &self.data[begin..end]
    }

    pub(crate) fn dtype(&self, tensor: &str) -> &str {
        self.header[tensor]["dtype"].as_str().expect("a dtype is a string")
    }

    /// Names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.header.keys().map(String::as_str).filter(|name| *name != "__metadata__")
    }

    /// Adds a tensor that equals another one.
    pub(crate) fn copy(&mut self, tensor: &str, name: &str) {
        let bytes = self.bytes(tensor).to_vec();
        let mut entry = self.header[tensor].clone();
        entry["data_offsets"] = json!([self.data.len(), self.data.len() + bytes.len()]);
        self.header.insert(name.to_owned(), entry);
        self.data.extend(bytes);
    }

    /// Puts a number where element `index` of an F32 tensor is.
    pub(crate) fn poke(&mut self, tensor: &str, index: usize, value: f32) {
        assert_eq!(self.dtype(tensor), "F32");
        let at = self.offsets(tensor).0 + index * 4;
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}
