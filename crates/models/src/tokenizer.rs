//! Texts to token ids, as the model's own files say.

mod aligned;
mod mask;
mod settings;
mod stream;

pub use aligned::{AlignedTokens, TextPart};
pub use mask::MaskToken;
pub(crate) use settings::TokenizerSettings;
pub use stream::TextStream;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, EncodeInput, Encoding, PostProcessor, TruncationParams};

use zeropoint_core::contain;

use crate::ModelError;
use crate::batch::TokenSequence;
use crate::prompts::TextRef;

/// Fewest tokens a sample may be cut to: the specials of a pair, and one token of each text.
const MIN_LENGTH: usize = 5;

/// The tokenizer of a model, cutting every sample at a maximum length and never padding.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same without a maximum length, once it is needed.
    whole: OnceLock<tokenizers::Tokenizer>,
    dir: PathBuf,
    path: PathBuf,
    max_length: usize,
    /// Whether the model is told of segments; otherwise all tokens are of the first.
    segments: bool,
}

impl Tokenizer {
    /// Loads tokenizer.json, or vocab.txt (`WordPiece`) where that is all there is.
    pub(crate) fn load(
        dir: &Path,
        max_length: usize,
        settings: &TokenizerSettings,
    ) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        let (path, loaded) = if path.exists() {
            let loaded = from_json(&path, settings);
            (path, loaded)
        } else {
            let vocab = dir.join("vocab.txt");
            let loaded = word_piece(&vocab, settings);
            (vocab, loaded)
        };
        let failed = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        let mut inner = loaded.map_err(|error| failed(format!("cannot be loaded: {error}")))?;
        let specials = |pair| inner.get_post_processor().map_or(0, |processor| processor.added_tokens(pair));
        let specials =
            contain(|| specials(false).max(specials(true))).map_err(|panic| failed(gave_up(&panic)))?;
        let least = MIN_LENGTH.max(specials.saturating_add(2));
        if max_length < least {
            return Err(failed(format!(
                "would cut samples at {max_length} tokens; at least {least} are needed"
            )));
        }
        inner.with_padding(None);
        let direction = settings.truncation_side(&inner);
        inner
            .with_truncation(Some(TruncationParams { max_length, direction, ..TruncationParams::default() }))
            .map_err(|error| failed(error.to_string()))?;
        let segments = settings.segments();
        Ok(Self { inner, whole: OnceLock::new(), dir: dir.to_owned(), path, max_length, segments })
    }

    /// The length at which samples are cut, in tokens with specials.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Token ids with specials for one text, or a pair.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<TokenSequence, ModelError> {
        self.encode_text(TextRef { text, pair, prompt: None })
    }

    /// Token ids with specials for a text or pair behind its prompt, which is prepended to the text before it is cut, as
    /// sentence-transformers does.
    pub fn encode_text(&self, text: TextRef<'_>) -> Result<TokenSequence, ModelError> {
        let prompt = text.prompt.filter(|prompt| !prompt.is_empty());
        let whole = prompt.map(|prompt| prompt.to_owned() + text.text);
        let first = whole.as_deref().unwrap_or(text.text);
        let input: EncodeInput<'_> = match text.pair {
            Some(pair) => (first, pair).into(),
            None => first.into(),
        };
        let encoding = self.library(|| self.inner.encode_fast(input, true))?;
        Ok(TokenSequence {
            ids: encoding.get_ids().to_vec(),
            type_ids: self.type_ids(&encoding),
            prompt: prompt.map_or(Ok(0), |prompt| self.prompt_length(prompt))?,
        })
    }

    /// [`Tokenizer::encode_text`] of many, in parallel, in order.
    pub fn encode_all<'a, T>(&self, texts: &[T]) -> Result<Vec<TokenSequence>, ModelError>
    where
        T: Into<TextRef<'a>> + Copy + Sync,
    {
        texts.par_iter().map(|text| self.encode_text((*text).into())).collect()
    }

    /// How many leading tokens of a prompted text are the prompt: those of the prompt alone, without the special token
    /// that ends it (`_get_prompt_length` of sentence-transformers). The specials before it count.
    fn prompt_length(&self, prompt: &str) -> Result<usize, ModelError> {
        let encoding = self.library(|| self.inner.encode_fast(prompt, true))?;
        let (tokens, specials) = (encoding.get_tokens(), encoding.get_special_tokens_mask());
        let is_special = tokens.last().zip(specials.last()).is_some_and(|(token, mask)| {
            *mask == 1 || self.inner.get_added_vocabulary().is_special_token(token)
        });
        Ok(tokens.len() - usize::from(is_special))
    }

    /// Segments, for a model that is told of them.
    fn type_ids(&self, encoding: &Encoding) -> Vec<u32> {
        if self.segments { encoding.get_type_ids().to_vec() } else { vec![0; encoding.get_ids().len()] }
    }

    /// A call of the library, which panics where a file names a token that it does not define.
    fn library<T>(&self, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ModelError> {
        let failed = |reason: String| ModelError::Tokenizer { path: self.path.clone(), reason };
        contain(call)
            .map_err(|panic| failed(gave_up(&panic)))?
            .map_err(|error| failed(format!("failed: {error}")))
    }
}

fn gave_up(panic: &str) -> String {
    format!("is damaged: the tokenizers library gives up on it ({panic})")
}

/// Reads tokenizer.json. The library that does it unwraps what it expects to be well-formed, so what is no JSON at all is
/// refused here, and a panic becomes an error.
fn from_json(path: &Path, settings: &TokenizerSettings) -> Result<tokenizers::Tokenizer, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|error| error.to_string())?;
    let load = || {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)?;
        settings.apply(&mut tokenizer)?;
        settings.lower(&mut tokenizer)?;
        Ok::<_, tokenizers::Error>(tokenizer)
    };
    contain(load)
        .map_err(|panic| format!("the tokenizers library gives up on it ({panic}): the file is damaged"))?
        .map_err(|error| error.to_string())
}

/// The special tokens of BERT's classes.
const BERT_SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A BERT tokenizer from vocab.txt alone.
fn word_piece(vocab: &Path, settings: &TokenizerSettings) -> Result<tokenizers::Tokenizer, String> {
    let Some(name) = vocab.to_str().filter(|_| vocab.exists()) else {
        return Err("neither tokenizer.json nor vocab.txt is in the directory".to_owned());
    };
    if let Some(class) = settings.foreign_class() {
        return Err(format!(
            "a vocabulary alone makes a tokenizer of BERT's classes, and this one is a `{class}`: tokenizer.json is needed"
        ));
    }
    let model = WordPiece::from_file(name)
        .unk_token("[UNK]".to_owned())
        .build()
        .map_err(|error| error.to_string())?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let id = |token: &str| {
        tokenizer
            .token_to_id(token)
            .map(|id| (token.to_owned(), id))
            .ok_or(format!("vocab.txt has no {token}"))
    };
    let (separator, class) = (id("[SEP]")?, id("[CLS]")?);
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(BertProcessing::new(separator, class)));
    let specials: Vec<AddedToken> = BERT_SPECIALS
        .into_iter()
        .filter(|token| tokenizer.token_to_id(token).is_some())
        .map(|token| AddedToken::from(token, true))
        .collect();
    tokenizer
        .with_normalizer(Some(settings.bert_normalizer()))
        .and_then(|tokenizer| tokenizer.add_special_tokens(specials))
        .map_err(|error| error.to_string())?;
    settings.lower(&mut tokenizer).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}
