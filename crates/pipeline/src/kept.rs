//! What the original gives, kept in memory for the runs that are measured against it one after the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::tasks::{BatchOutputs, Forward};
use zeropoint_kernels::Isa;
use zeropoint_models::{ModelError, ModelSpec, Outputs, PackedBatch};

/// The outputs of one model for batches, up to a number of bytes.
pub(crate) struct KeptOutputs {
    kept: Mutex<Kept>,
    limit: u64,
}

#[derive(Default)]
struct Kept {
    outputs: BTreeMap<Fingerprint, Arc<Outputs>>,
    bytes: u64,
}

fn bytes(outputs: &Outputs) -> u64 {
    size_of_val(outputs.values.as_slice()) as u64
}

impl KeptOutputs {
    /// Of at most so many bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { kept: Mutex::default(), limit }
    }

    fn get(&self, key: Fingerprint) -> Option<Arc<Outputs>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).outputs.get(&key).cloned()
    }

    /// Keeps outputs, unless they are too many.
    fn keep(&self, key: Fingerprint, outputs: &Outputs) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.outputs.contains_key(&key) {
            return true;
        }
        let fits = kept.bytes + bytes(outputs) <= self.limit;
        if fits {
            kept.bytes += bytes(outputs);
            kept.outputs.insert(key, Arc::new(outputs.clone()));
        }
        fits
    }

    fn forget(&self, keys: &[Fingerprint]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            if let Some(outputs) = kept.outputs.remove(key) {
                kept.bytes -= bytes(&outputs);
            }
        }
    }
}

/// The original, asked for what is not kept.
pub(crate) struct KeptOriginal<'a> {
    pub(crate) original: &'a dyn Forward,
    pub(crate) kept: &'a KeptOutputs,
}

impl Forward for KeptOriginal<'_> {
    fn spec(&self) -> &ModelSpec {
        self.original.spec()
    }

    fn isa(&self) -> Isa {
        self.original.isa()
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        let key = batch.fingerprint();
        if let Some(outputs) = self.kept.get(key) {
            return Ok((*outputs).clone());
        }
        let outputs = self.original.forward(batch)?;
        self.kept.keep(key, &outputs);
        Ok(outputs)
    }

    fn forward_all<'a>(&'a self, batches: &'a [PackedBatch]) -> BatchOutputs<'a> {
        let keys: Vec<Fingerprint> = batches.iter().map(PackedBatch::fingerprint).collect();
        if keys.iter().all(|key| self.kept.get(*key).is_some()) {
            return Box::new(batches.iter().map(|batch| self.forward(batch)));
        }
        // A part of a pass is of no use: all of it would be computed again.
        let mut fits = true;
        Box::new(self.original.forward_all(batches).enumerate().map(move |(index, outputs)| {
            let outputs = outputs?;
            if fits && !self.kept.keep(keys[index], &outputs) {
                fits = false;
                self.kept.forget(&keys[..index]);
            }
            Ok(outputs)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_not_kept_and_nothing_is_counted_twice() {
        let outputs =
            |count: usize| Outputs { values: vec![1.0; count], columns: 1, offsets: vec![0, count] };
        let key = |name: &str| Fingerprint::builder("key").field("name", name).finish();
        let kept = KeptOutputs::new(40);
        assert!(kept.keep(key("a"), &outputs(5)) && kept.keep(key("a"), &outputs(5)));
        assert!(!kept.keep(key("b"), &outputs(6)) && kept.get(key("b")).is_none());
        assert!(kept.keep(key("b"), &outputs(5)));
        kept.forget(&[key("a"), key("c")]);
        assert!(kept.get(key("a")).is_none() && kept.keep(key("d"), &outputs(5)));
    }
}
