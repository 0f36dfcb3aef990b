//! Texts to vectors: a quantised sentence encoder with its tokenizer.

use std::path::Path;

use zeropoint_models::{ModelError, PackedBatch, Task, TokenSequence, Tokenizer};

use crate::{QuantizedModel, RuntimeError};

/// Texts that go through the model together.
const BATCH: usize = 32;

/// A quantised sentence encoder, ready for texts.
///
/// It is used by reference from any number of threads at once; each call works on the threads of the rayon pool that it is
/// made in.
///
/// ```no_run
/// let encoder = zeropoint_runtime::Encoder::load("runs/minilm-w8a8-dynamic/model")?;
/// let vectors = encoder.encode(&["A man is playing a guitar.", "Someone makes music."])?;
/// let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
/// # let _ = cosine;
/// # Ok::<(), zeropoint_runtime::RuntimeError>(())
/// ```
pub struct Encoder {
    model: QuantizedModel,
    tokenizer: Tokenizer,
}

impl Encoder {
    /// Loads a directory that `zeropoint run` has made of a sentence encoder.
    ///
    /// # Errors
    ///
    /// Those of [`QuantizedModel::load`], and a model that gives no vectors of texts.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        Self::new(QuantizedModel::load(dir.as_ref(), Task::Auto)?)
    }

    /// As [`Encoder::load`], of a model that is loaded already.
    pub fn new(model: QuantizedModel) -> Result<Self, RuntimeError> {
        let spec = model.directory().spec();
        if spec.head().task() != Task::Embedding || spec.text().is_none() {
            let reason = format!("{} gives no vectors of texts", spec.architecture);
            return Err(ModelError::Sample { reason }.into());
        }
        let tokenizer = model.directory().tokenizer(None)?;
        Ok(Self { model, tokenizer })
    }

    /// The model inside.
    pub fn model(&self) -> &QuantizedModel {
        &self.model
    }

    /// The vector of each text, in order: pooled and normalised as the model's files say. Texts longer than the model takes
    /// are cut.
    ///
    /// Texts of like length share a batch; a vector does not depend on the others.
    ///
    /// # Errors
    ///
    /// A text without any token, and activations that are not finite.
    pub fn encode<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let mut sequences = texts
            .iter()
            .enumerate()
            .map(|(place, text)| Ok((place, self.tokenizer.encode(text.as_ref(), None)?)))
            .collect::<Result<Vec<(usize, TokenSequence)>, ModelError>>()?;
        sequences.sort_by_key(|(_, sequence)| sequence.len());
        let mut vectors = vec![Vec::new(); texts.len()];
        for batch in sequences.chunks(BATCH) {
            let outputs =
                self.model.forward(&PackedBatch::new(batch.iter().map(|(_, sequence)| sequence))?)?;
            for ((place, _), vector) in batch.iter().zip(outputs.rows()) {
                vectors[*place] = vector.to_vec();
            }
        }
        Ok(vectors)
    }
}
