//! Texts to token ids, as the model's own files say.

mod aligned;
mod mask;

pub use aligned::{AlignedTokens, TextPart};
pub use mask::MaskToken;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{EncodeInput, PostProcessor, TruncationParams};

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
    lower_case: bool,
}

impl Tokenizer {
    /// Loads tokenizer.json, or vocab.txt (`WordPiece`) where that is all there is.
    pub(crate) fn load(dir: &Path, max_length: usize, lower_case: bool) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        let (path, loaded) = if path.exists() {
            let loaded = from_json(&path);
            (path, loaded)
        } else {
            let vocab = dir.join("vocab.txt");
            let loaded = word_piece(&vocab, dir);
            (vocab, loaded)
        };
        let failed = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        let mut inner = loaded.map_err(|error| failed(format!("cannot be loaded: {error}")))?;
        let specials = |pair| inner.get_post_processor().map_or(0, |processor| processor.added_tokens(pair));
        let least = MIN_LENGTH.max(specials(false).max(specials(true)) + 2);
        if max_length < least {
            return Err(failed(format!(
                "would cut samples at {max_length} tokens; at least {least} are needed"
            )));
        }
        inner.with_padding(None);
        inner
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { inner, whole: OnceLock::new(), dir: dir.to_owned(), path, max_length, lower_case })
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
        let first = self.cased(whole.as_deref().unwrap_or(text.text));
        let input: EncodeInput<'_> = match text.pair {
            Some(pair) => (first, self.cased(pair)).into(),
            None => first.into(),
        };
        let encoding = self.inner.encode_fast(input, true).map_err(|error| self.failed(&error))?;
        Ok(TokenSequence {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
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
        let encoding =
            self.inner.encode_fast(self.cased(prompt), true).map_err(|error| self.failed(&error))?;
        let (tokens, specials) = (encoding.get_tokens(), encoding.get_special_tokens_mask());
        let is_special = tokens.last().zip(specials.last()).is_some_and(|(token, mask)| {
            *mask == 1 || self.inner.get_added_vocabulary().is_special_token(token)
        });
        Ok(tokens.len() - usize::from(is_special))
    }

    fn cased(&self, text: &str) -> String {
        if self.lower_case { text.to_lowercase() } else { text.to_owned() }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> ModelError {
        ModelError::Tokenizer { path: self.path.clone(), reason: format!("failed: {error}") }
    }
}

/// Reads tokenizer.json. The library that does it unwraps what it expects to be well-formed, so what is no JSON at all is
/// refused here, and a panic becomes an error.
fn from_json(path: &Path) -> Result<tokenizers::Tokenizer, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|error| error.to_string())?;
    std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
        .map_err(|_| "the tokenizers library gives up on it: the file is damaged".to_owned())?
        .map_err(|error| error.to_string())
}

/// The key of `tokenizer_config.json` that a vocabulary alone does not tell; true by default.
#[derive(serde::Deserialize)]
struct LowerCase {
    #[serde(default = "lower_case")]
    do_lower_case: bool,
}

fn lower_case() -> bool {
    true
}

/// A BERT tokenizer from vocab.txt alone.
fn word_piece(vocab: &Path, dir: &Path) -> Result<tokenizers::Tokenizer, String> {
    let Some(name) = vocab.to_str().filter(|_| vocab.exists()) else {
        return Err("neither tokenizer.json nor vocab.txt is in the directory".to_owned());
    };
    let config = dir.join("tokenizer_config.json");
    let lower = if config.exists() {
        crate::source::read_json::<LowerCase>(&config).map_err(|error| error.to_string())?.do_lower_case
    } else {
        true
    };
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
    let normalizer = BertNormalizer::new(true, true, None, lower);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|error| error.to_string())?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(BertProcessing::new(separator, class)));
    Ok(tokenizer)
}
