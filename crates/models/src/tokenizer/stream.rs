//! Prompts to token ids, and token ids to text as they come.

use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use super::Tokenizer;
use crate::ModelError;

impl Tokenizer {
    /// Token ids of a text that is to be continued, with the specials that its tokenizer puts around texts, of any length.
    pub fn prompt_ids(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let whole = self.whole();
        Ok(self.library(|| whole.encode_fast(text, true))?.get_ids().to_vec())
    }

    /// Text of the tokens that are handed over one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, inner: self.inner.decode_stream(true) }
    }
}

/// Text of tokens as they come, special tokens left out.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    inner: DecodeStream<
        'a,
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >,
}

impl TextStream<'_> {
    /// What the next token adds to the text; empty while a character is not complete.
    pub fn push(&mut self, id: u32) -> Result<String, ModelError> {
        let Self { tokenizer, inner } = self;
        Ok(tokenizer.library(|| inner.step(id))?.unwrap_or_default())
    }
}
