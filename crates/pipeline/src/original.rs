//! The original's log-probabilities, coded in 16 bits, and kept between evaluations: ten schemes cost one pass of the float
//! model.
//!
//! What a task sees are the decoded values whether they were kept or not, so that a report does not depend on the cache.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::log_probabilities::{DamagedRow, RowCode};
use zeropoint_evaluator::tasks::{BatchOutputs, Forward};
use zeropoint_kernels::Isa;
use zeropoint_models::{ModelError, ModelSpec, Outputs, PackedBatch};

use crate::log_prob_cache::{Entry, LogProbCache, Reader, Writer};

/// A decoder language model whose logits are its log-probabilities, coded and decoded.
pub(crate) struct CodedOriginal<'a> {
    original: &'a dyn Forward,
    /// What identifies the model, its weights and tokenizer among it, and where its log-probabilities are kept.
    cache: Option<(Fingerprint, LogProbCache)>,
    warnings: Mutex<Vec<String>>,
}

impl<'a> CodedOriginal<'a> {
    /// `cache` says what identifies the model, with its weights, and where to keep what it gives.
    pub(crate) fn new(original: &'a dyn Forward, cache: Option<(Fingerprint, LogProbCache)>) -> Self {
        Self { original, cache, warnings: Mutex::new(Vec::new()) }
    }

    /// What went wrong with the cache; never with the outputs.
    pub(crate) fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn warn(&self, warning: String) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    fn entry(&self, model: Fingerprint, batches: &[PackedBatch]) -> Entry {
        let mut builder = Fingerprint::builder("original-log-probabilities");
        builder.field("model", model.to_string());
        builder.field("instruction set", self.original.isa().to_string());
        builder.field("version", env!("CARGO_PKG_VERSION"));
        for batch in batches {
            builder.field("offsets", format!("{:?}", batch.offsets()));
            builder.field("tokens", format!("{:?}", batch.token_ids()));
        }
        Entry { key: builder.finish(), rows: batches.iter().map(PackedBatch::tokens).collect() }
    }
}

impl Forward for CodedOriginal<'_> {
    fn spec(&self) -> &ModelSpec {
        self.original.spec()
    }

    fn isa(&self) -> Isa {
        self.original.isa()
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        let mut outputs = self.original.forward(batch)?;
        code(batch, &mut outputs)?;
        Ok(outputs)
    }

    fn forward_all<'a>(&'a self, batches: &'a [PackedBatch]) -> BatchOutputs<'a> {
        let Some((model, cache)) = &self.cache else { return Box::new(Pass::new(self, batches, None)) };
        let entry = self.entry(*model, batches);
        match cache.open(&entry) {
            Ok(Some(reader)) => {
                return Box::new(Kept { original: self, entry, batches, at: 0, reader: Ok(reader) });
            }
            Ok(None) => {}
            Err(reason) => self.warn(format!("the cached log-probabilities are not used: {reason}")),
        }
        Box::new(Pass::new(self, batches, Some((cache, entry))))
    }
}

/// Outputs as the original gives them, coded and, if there is a cache, kept.
struct Pass<'a> {
    original: &'a CodedOriginal<'a>,
    outputs: BatchOutputs<'a>,
    batches: std::slice::Iter<'a, PackedBatch>,
    keep: Keep<'a>,
}

/// What is done with coded rows.
enum Keep<'a> {
    Nothing,
    /// The file is begun when the width of the rows is known.
    To(&'a LogProbCache, Entry),
    In(Box<Writer>),
}

impl<'a> Pass<'a> {
    fn new(
        original: &'a CodedOriginal<'a>,
        batches: &'a [PackedBatch],
        keep: Option<(&'a LogProbCache, Entry)>,
    ) -> Self {
        let outputs = original.original.forward_all(batches);
        let keep = keep.map_or(Keep::Nothing, |(cache, entry)| Keep::To(cache, entry));
        Self { original, outputs, batches: batches.iter(), keep }
    }

    /// Writes the rows of a batch. A cache that cannot be written costs time later, not this evaluation.
    fn keep(&mut self, columns: usize, coded: &[u8], is_last: bool) {
        let kept = match std::mem::replace(&mut self.keep, Keep::Nothing) {
            Keep::Nothing => return,
            Keep::To(cache, entry) => cache.create(&entry, columns),
            Keep::In(writer) => Ok(Some(*writer)),
        };
        let written = kept.and_then(|writer| {
            let Some(mut writer) = writer else { return Ok(None) };
            writer.batch(coded)?;
            if is_last { writer.finish().map(|()| None) } else { Ok(Some(writer)) }
        });
        match written {
            Ok(Some(writer)) => self.keep = Keep::In(Box::new(writer)),
            Ok(None) => {}
            Err(reason) => {
                self.original.warn(format!("the log-probabilities are not kept for later runs: {reason}"));
            }
        }
    }
}

impl Iterator for Pass<'_> {
    type Item = Result<Outputs, ModelError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        let outputs = self.outputs.next()?;
        Some(outputs.and_then(|mut outputs| {
            match code(batch, &mut outputs)? {
                Some(coded) => self.keep(outputs.columns, &coded, self.batches.as_slice().is_empty()),
                // The task says which sample it is.
                None => self.keep = Keep::Nothing,
            }
            Ok(outputs)
        }))
    }
}

/// Outputs of an earlier evaluation. From a damaged batch on, they are made anew.
struct Kept<'a> {
    original: &'a CodedOriginal<'a>,
    entry: Entry,
    batches: &'a [PackedBatch],
    at: usize,
    reader: Result<Reader, Pass<'a>>,
}

impl Iterator for Kept<'_> {
    type Item = Result<Outputs, ModelError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = match &mut self.reader {
            Ok(reader) => reader,
            Err(pass) => return pass.next(),
        };
        let batch = self.batches.get(self.at)?;
        let read = reader.batch(batch.tokens()).and_then(|coded| {
            decode(batch, reader.columns, &coded).map_err(|DamagedRow| DamagedRow.to_string())
        });
        match read {
            Ok(outputs) => {
                self.at += 1;
                Some(Ok(outputs))
            }
            Err(reason) => {
                self.original.warn(format!("the cached log-probabilities are not used: {reason}"));
                if let Some((_, cache)) = &self.original.cache {
                    cache.remove(&self.entry);
                }
                let mut pass = Pass::new(self.original, &self.batches[self.at..], None);
                let outputs = pass.next();
                self.reader = Err(pass);
                outputs
            }
        }
    }
}

/// Puts decoded log-probabilities in the place of logits, and gives their codes. `None`, with the outputs as they were, where
/// one is not finite.
fn code(batch: &PackedBatch, outputs: &mut Outputs) -> Result<Option<Vec<u8>>, ModelError> {
    let ids = batch.token_ids().unwrap_or_default();
    let columns = outputs.columns;
    if outputs.offsets != batch.offsets() || outputs.values.len() != ids.len() * columns || columns == 0 {
        let reason = "the model does not give one row of logits for each token".to_owned();
        return Err(ModelError::Sample { reason });
    }
    if outputs.values.par_iter().any(|value| !value.is_finite()) {
        return Ok(None);
    }
    let code = RowCode::new(columns);
    // The last token of a sequence has none after it.
    let mut next: Vec<Option<usize>> = ids.iter().skip(1).map(|id| Some(*id as usize)).collect();
    next.push(None);
    for end in &batch.offsets()[1..] {
        next[end - 1] = None;
    }
    let mut coded = vec![0u8; ids.len() * code.bytes()];
    let rows = outputs.values.par_chunks_exact_mut(columns).zip(coded.par_chunks_exact_mut(code.bytes()));
    rows.zip(next)
        .try_for_each(|((row, place), next)| {
            let mut bytes = Vec::new();
            code.encode(row, next, &mut bytes);
            place.copy_from_slice(&bytes);
            code.decode(place, row)
        })
        .map_err(|DamagedRow| ModelError::Sample { reason: DamagedRow.to_string() })?;
    Ok(Some(coded))
}

fn decode(batch: &PackedBatch, columns: usize, coded: &[u8]) -> Result<Outputs, DamagedRow> {
    let code = RowCode::new(columns);
    let mut values = vec![0f32; batch.tokens() * columns];
    values
        .par_chunks_exact_mut(columns)
        .zip(coded.par_chunks_exact(code.bytes()))
        .try_for_each(|(row, bytes)| code.decode(bytes, row))?;
    Ok(Outputs { values, columns, offsets: batch.offsets().to_vec() })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use zeropoint_models::{Model, ModelDirectory, SourceRef, Task, TokenSequence};

    use super::*;

    /// A model that counts the passes it is asked for.
    struct Counted {
        model: Model,
        passes: AtomicUsize,
    }

    impl Forward for Counted {
        fn spec(&self) -> &ModelSpec {
            self.model.spec()
        }

        fn isa(&self) -> Isa {
            self.model.isa()
        }

        fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
            self.model.forward(batch)
        }

        fn forward_all<'a>(&'a self, batches: &'a [PackedBatch]) -> BatchOutputs<'a> {
            self.passes.fetch_add(1, Ordering::Relaxed);
            Box::new(batches.iter().map(|batch| self.model.forward(batch)))
        }
    }

    struct Scene {
        model: Counted,
        batches: Vec<PackedBatch>,
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama-causal");
            let directory = ModelDirectory::open(&SourceRef::Directory(path), Task::Auto).unwrap();
            let model = Counted { model: Model::load(&directory).unwrap(), passes: AtomicUsize::new(0) };
            let sequence = |seed: u32, length: u32| {
                let ids: Vec<u32> = (0..length).map(|at| 3 + (seed * 31 + at * at * 7) % 130).collect();
                TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 }
            };
            let batch = |sequences: &[TokenSequence]| PackedBatch::new(sequences).unwrap();
            let batches = vec![
                batch(&[sequence(1, 9), sequence(2, 7)]),
                batch(&[sequence(3, 5)]),
                batch(&[sequence(4, 2), sequence(5, 1)]),
            ];
            Self { model, batches, dir: tempfile::tempdir().unwrap() }
        }

        /// The outputs of a run, the warnings, and how many passes it took.
        fn run(&self, model: Option<&str>, batches: &[PackedBatch]) -> (Vec<Outputs>, Vec<String>, usize) {
            let before = self.model.passes.load(Ordering::Relaxed);
            let kept = model.map(|name| {
                let key = Fingerprint::builder("test").field("model", name).finish();
                (key, LogProbCache::at(self.dir.path().to_owned()))
            });
            let coded = CodedOriginal::new(&self.model, kept);
            let outputs = coded.forward_all(batches).collect::<Result<_, _>>().unwrap();
            (outputs, coded.warnings(), self.model.passes.load(Ordering::Relaxed) - before)
        }

        fn files(&self) -> Vec<PathBuf> {
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn values(outputs: &[Outputs]) -> Vec<(Vec<u32>, usize, Vec<usize>)> {
        let bits = |output: &Outputs| output.values.iter().map(|value| value.to_bits()).collect();
        outputs.iter().map(|output| (bits(output), output.columns, output.offsets.clone())).collect()
    }

    #[test]
    fn outputs_are_the_same_without_a_cache_and_with_a_cold_and_a_warm_one() {
        let scene = Scene::new();
        let (none, _, passes) = scene.run(None, &scene.batches);
        assert_eq!((passes, scene.files().len()), (1, 0));
        let (cold, warnings, passes) = scene.run(Some("a"), &scene.batches);
        assert_eq!((warnings.len(), passes, scene.files().len()), (0, 1, 1));
        let (warm, warnings, passes) = scene.run(Some("a"), &scene.batches);
        assert_eq!((warnings.len(), passes), (0, 0));
        assert_eq!(values(&cold), values(&none));
        assert_eq!(values(&warm), values(&none));
        // They are the model's log-probabilities.
        for (found, batch) in none.iter().zip(&scene.batches) {
            let logits = scene.model.model.forward(batch).unwrap();
            for (found, logits) in found.rows().zip(logits.rows()) {
                let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                for (found, logit) in found.iter().zip(logits) {
                    assert!((f64::from(*found) - f64::from(*logit) + sum.ln()).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn another_model_or_other_batches_are_another_file() {
        let scene = Scene::new();
        let all = scene.batches.as_slice();
        for (model, batches, files) in [("a", all, 1), ("b", all, 2), ("a", &all[1..], 3)] {
            let (_, warnings, passes) = scene.run(Some(model), batches);
            assert_eq!((warnings.len(), passes, scene.files().len()), (0, 1, files));
        }
        // The same tokens in other batches may differ in the last bits.
        let whole: Vec<TokenSequence> =
            vec![TokenSequence { ids: vec![5, 6], type_ids: vec![0; 2], prompt: 0 }; 2];
        let parts: Vec<PackedBatch> = whole.iter().map(|part| PackedBatch::new([part]).unwrap()).collect();
        scene.run(Some("a"), &[PackedBatch::new(&whole).unwrap()]);
        scene.run(Some("a"), &parts);
        assert_eq!(scene.files().len(), 5);
    }

    #[test]
    fn a_damaged_file_is_said_and_made_anew() {
        let scene = Scene::new();
        let (expected, ..) = scene.run(Some("a"), &scene.batches);
        let file = scene.files().remove(0);
        let whole = std::fs::read(&file).unwrap();
        let mut late = whole.clone();
        *late.last_mut().unwrap() ^= 1;
        for damaged in [&whole[..20], &whole[..whole.len() - 1], &whole[..0], late.as_slice()] {
            std::fs::write(&file, damaged).unwrap();
            let (found, warnings, passes) = scene.run(Some("a"), &scene.batches);
            assert_eq!(values(&found), values(&expected));
            assert_eq!((warnings.len(), passes), (1, 1), "{warnings:?}");
            assert!(warnings[0].starts_with("the cached log-probabilities are not used: "), "{warnings:?}");
            // Damage that was found on the way is gone, and the next run writes.
            if !file.exists() {
                assert_eq!(scene.run(Some("a"), &scene.batches).2, 1);
            }
            assert_eq!(std::fs::read(&file).unwrap(), whole);
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_costs_a_warning() {
        let scene = Scene::new();
        let (expected, ..) = scene.run(None, &scene.batches);
        let not_a_directory = scene.dir.path().join("file");
        std::fs::write(&not_a_directory, "").unwrap();
        let key = Fingerprint::builder("test").finish();
        let coded = CodedOriginal::new(&scene.model, Some((key, LogProbCache::at(not_a_directory))));
        let found: Vec<Outputs> = coded.forward_all(&scene.batches).collect::<Result<_, _>>().unwrap();
        assert_eq!(values(&found), values(&expected));
        assert!(!coded.warnings().is_empty());
    }
}
