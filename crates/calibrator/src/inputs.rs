//! Samples to what a model takes: texts through its tokenizer, images through its image processor.

use std::path::Path;

use zeropoint_models::{
    ImageProcessor, ModelDirectory, ModelError, ModelInput, TextRef, TokenSequence, Tokenizer,
};

use crate::dataset::Sample;

/// What makes the inputs of a model: a tokenizer, an image processor, or both.
pub struct Inputs {
    tokenizer: Option<Tokenizer>,
    images: Option<ImageProcessor>,
}

impl Inputs {
    /// As the files of a directory say. Texts are cut at `max_length` tokens or the model's own limit, whichever is
    /// smaller.
    pub fn of(directory: &ModelDirectory, max_length: Option<usize>) -> Result<Self, ModelError> {
        let takes_texts = directory.spec().text().is_some();
        Ok(Self {
            tokenizer: takes_texts.then(|| directory.tokenizer(max_length)).transpose()?,
            images: directory.image_processor()?,
        })
    }

    /// The tokenizer of a model that takes texts.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ModelError> {
        self.tokenizer
            .as_ref()
            .ok_or_else(|| ModelError::Sample { reason: "the model takes no texts".to_owned() })
    }

    /// The image processor of a model that takes images.
    pub fn images(&self) -> Result<&ImageProcessor, ModelError> {
        self.images
            .as_ref()
            .ok_or_else(|| ModelError::Sample { reason: "the model takes no images".to_owned() })
    }

    /// One input for each sample, in order: its image if it has one, otherwise its text or pair.
    pub fn encode(&self, samples: &[&Sample]) -> Result<Vec<ModelInput>, ModelError> {
        let texts: Vec<&Sample> = samples.iter().filter(|sample| sample.image.is_none()).copied().collect();
        let paths: Vec<&Path> = samples.iter().filter_map(|sample| sample.image.as_deref()).collect();
        let encoded = if texts.is_empty() { Vec::new() } else { encode_texts(self.tokenizer()?, &texts)? };
        let prepared = if paths.is_empty() { Vec::new() } else { self.images()?.prepare_all(&paths)? };
        let (mut encoded, mut prepared) = (encoded.into_iter(), prepared.into_iter());
        let next = |sample: &&Sample| match sample.image {
            Some(_) => prepared.next().map(ModelInput::Image),
            None => encoded.next().map(ModelInput::Tokens),
        };
        Ok(samples.iter().filter_map(next).collect())
    }
}

/// The tokens of each sample, in order: its own where it has been tokenised already, cut at the tokenizer's maximum length,
/// otherwise those of its text or pair.
pub fn encode_texts(tokenizer: &Tokenizer, samples: &[&Sample]) -> Result<Vec<TokenSequence>, ModelError> {
    let texts: Vec<TextRef<'_>> =
        samples.iter().filter(|sample| sample.tokens.is_none()).map(|sample| sample.text()).collect();
    let mut encoded = tokenizer.encode_all(&texts)?.into_iter();
    let next = |sample: &&Sample| match &sample.tokens {
        Some(tokens) => {
            let ids = tokens[..tokens.len().min(tokenizer.max_length())].to_vec();
            Some(TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 })
        }
        None => encoded.next(),
    };
    Ok(samples.iter().filter_map(next).collect())
}
