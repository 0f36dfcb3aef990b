//! `tokenizer_config.json`: what `transformers` makes of a tokenizer's files by the class that it names.
//!
//! tokenizer.json is not the last word. Since version 5 of `transformers` the classes of BERT and ALBERT build their
//! normalisation from the settings, those of `RoBERTa` and XLM-`RoBERTa` decide whether a space stands before the text, and
//! the class knows whether the model is told of segments. Where the settings say nothing, the class has defaults.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::{
    BertNormalizer, Lowercase, NFKD, NormalizerWrapper, Precompiled, Replace, Sequence, StripAccents,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{PostProcessorWrapper, Tokenizer, TruncationDirection};

use crate::ModelError;
use crate::source::read_json_if_there;

/// The class that takes tokenizer.json as it is.
const PLAIN: &str = "TokenizersBackend";

/// The keys of `tokenizer_config.json` that matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    model_max_length: Option<f64>,
    model_input_names: Option<Vec<String>>,
    truncation_side: Option<Side>,
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    keep_accents: Option<bool>,
    add_prefix_space: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Left,
    Right,
}

/// What a class of `transformers` does with tokenizer.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A `BertNormalizer` of the settings takes the place of whatever normalisation there is.
    Bert { segments: bool },
    /// The same with ALBERT's steps, and a space before the text.
    Albert,
    /// A space stands before the text as the settings say, or as `by_default`.
    Prefixing { by_default: bool },
    /// Nothing.
    Plain { segments: bool },
}

impl Class {
    /// By its name without `Fast`, as in `transformers` 5.23. A name that it does not know means [`PLAIN`].
    fn named(name: &str) -> Self {
        match name {
            "BertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "SqueezeBertTokenizer" => Self::Bert { segments: true },
            "DistilBertTokenizer" | "MPNetTokenizer" => Self::Bert { segments: false },
            "AlbertTokenizer" => Self::Albert,
            "RobertaTokenizer"
            | "BartTokenizer"
            | "LEDTokenizer"
            | "LongformerTokenizer"
            | "MvpTokenizer" => Self::Prefixing { by_default: false },
            "XLMRobertaTokenizer" | "CamembertTokenizer" => Self::Prefixing { by_default: true },
            "ConvBertTokenizer"
            | "DebertaTokenizer"
            | "DebertaV2Tokenizer"
            | "DPRContextEncoderTokenizer"
            | "DPRQuestionEncoderTokenizer"
            | "FNetTokenizer" => Self::Plain { segments: true },
            _ => Self::Plain { segments: false },
        }
    }
}

/// The name of the class that `transformers` takes, without `Fast`.
fn class_name<'a>(own: Option<&'a str>, config: &'a Value) -> &'a str {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let model_type = text("model_type").unwrap_or_default();
    if model_type == "modernbert" {
        // What its files name is known to be wrong, and not heeded.
        return PLAIN;
    }
    let name = own.or_else(|| text("tokenizer_class")).unwrap_or(match model_type {
        "bert" | "distilbert" | "electra" | "nomic_bert" => "BertTokenizer",
        "mpnet" => "MPNetTokenizer",
        "albert" => "AlbertTokenizer",
        "roberta" => "RobertaTokenizer",
        "camembert" => "CamembertTokenizer",
        "xlm-roberta" | "gte" => "XLMRobertaTokenizer",
        _ => PLAIN,
    });
    name.strip_suffix("Fast").unwrap_or(name)
}

/// `tokenizer_config.json` understood, and what sentence-transformers adds to it.
#[derive(Debug)]
pub(crate) struct TokenizerSettings {
    name: String,
    class: Class,
    config: TokenizerConfig,
    lower_case: bool,
}

impl TokenizerSettings {
    /// `config` is config.json; `lower_case` says that sentence-transformers writes texts small beforehand.
    pub(crate) fn read(dir: &Path, config: &Value, lower_case: bool) -> Result<Self, ModelError> {
        let own: TokenizerConfig =
            read_json_if_there(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let name = class_name(own.tokenizer_class.as_deref(), config).to_owned();
        Ok(Self { class: Class::named(&name), name, config: own, lower_case })
    }

    /// The longest sequence, in tokens with specials. `transformers` writes 1e30 for "no limit".
    pub(crate) fn max_length(&self) -> Option<usize> {
        let limit = self.config.model_max_length.filter(|limit| (1.0..1e9).contains(limit));
        limit.map(|limit| limit as usize)
    }

    /// Whether the model is told which of two texts a token is of.
    pub(super) fn segments(&self) -> bool {
        match &self.config.model_input_names {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            None => matches!(self.class, Class::Bert { segments: true } | Class::Plain { segments: true }),
        }
    }

    /// The end at which texts are cut, which tokenizer.json may have a word on.
    pub(super) fn truncation_side(&self, tokenizer: &Tokenizer) -> TruncationDirection {
        match self.config.truncation_side {
            Some(Side::Left) => TruncationDirection::Left,
            Some(Side::Right) => TruncationDirection::Right,
            None => tokenizer.get_truncation().map_or(TruncationDirection::Right, |own| own.direction),
        }
    }

    /// The class's name, where it is not one of BERT's: those alone are made of a vocabulary.
    pub(super) fn foreign_class(&self) -> Option<&str> {
        (!matches!(self.class, Class::Bert { .. })).then_some(self.name.as_str())
    }

    /// The normalisation of BERT's classes.
    pub(super) fn bert_normalizer(&self) -> BertNormalizer {
        let config = &self.config;
        let chinese = config.tokenize_chinese_chars.unwrap_or(true);
        BertNormalizer::new(true, chinese, config.strip_accents, config.do_lower_case.unwrap_or(true))
    }

    /// Makes of `tokenizer`, as tokenizer.json has it, what the class makes of it.
    pub(super) fn apply(&self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        // Merges are dropped at random in training alone; here the same text must give the same tokens.
        let dropping = match tokenizer.get_model() {
            ModelWrapper::BPE(model) if model.dropout.is_some_and(|share| share != 0.0) => {
                Some(model.clone())
            }
            _ => None,
        };
        if let Some(mut model) = dropping {
            model.dropout = None;
            tokenizer.with_model(model);
        }
        let of_words = matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_));
        let of_pieces = matches!(tokenizer.get_model(), ModelWrapper::Unigram(_));
        match self.class {
            Class::Bert { .. } if of_words => {
                tokenizer.with_normalizer(Some(self.bert_normalizer()))?;
                tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
            }
            Class::Albert if of_pieces => {
                let normalizer = self.albert_normalizer(tokenizer)?;
                tokenizer.with_normalizer(Some(normalizer))?;
                self.prefix(tokenizer, true);
            }
            Class::Prefixing { by_default } => self.prefix(tokenizer, by_default),
            _ => {}
        }
        Ok(())
    }

    /// The steps of ALBERT's class; of what tokenizer.json has, a compiled table alone is kept.
    fn albert_normalizer(&self, tokenizer: &Tokenizer) -> tokenizers::Result<Sequence> {
        let table = |step: &NormalizerWrapper| -> Option<Precompiled> {
            match step {
                NormalizerWrapper::Precompiled(table) => Some(table.clone()),
                _ => None,
            }
        };
        let own: Option<Precompiled> = match tokenizer.get_normalizer() {
            Some(NormalizerWrapper::Sequence(steps)) => {
                let steps: &[NormalizerWrapper] = steps.as_ref();
                steps.iter().find_map(table)
            }
            Some(one) => table(one),
            None => None,
        };
        let mut steps: Vec<NormalizerWrapper> =
            vec![Replace::new("``", "\"")?.into(), Replace::new("''", "\"")?.into()];
        if !self.config.keep_accents.unwrap_or(false) {
            steps.push(NFKD.into());
            steps.push(StripAccents.into());
        }
        if self.config.do_lower_case.unwrap_or(true) {
            steps.push(Lowercase.into());
        }
        steps.extend(own.map(NormalizerWrapper::Precompiled));
        Ok(Sequence::new(steps))
    }

    /// Sets whether a space stands before the text, or before each of its words.
    fn prefix(&self, tokenizer: &mut Tokenizer, by_default: bool) {
        let wanted = self.config.add_prefix_space.unwrap_or(by_default);
        if let Some(mut own) = tokenizer.get_pre_tokenizer().cloned() {
            set_prefix(&mut own, wanted);
            tokenizer.with_pre_tokenizer(Some(own));
        }
        if let Some(PostProcessorWrapper::Roberta(mut own)) = tokenizer.get_post_processor().cloned() {
            // It knows of the space when it trims offsets.
            own.add_prefix_space = wanted;
            tokenizer.with_post_processor(Some(own));
        }
    }

    /// What sentence-transformers does for `do_lower_case`: characters are written small before any other step. Added tokens
    /// such as `[MASK]` are found before that, and offsets are those of the text as it is.
    pub(super) fn lower(&self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        if !self.lower_case {
            return Ok(());
        }
        let mut steps: Vec<NormalizerWrapper> = match tokenizer.get_normalizer().cloned() {
            Some(NormalizerWrapper::Sequence(steps)) => steps.into_iter().collect(),
            other => other.into_iter().collect(),
        };
        if !steps.iter().any(|step| matches!(step, NormalizerWrapper::Lowercase(_))) {
            steps.insert(0, Lowercase.into());
            tokenizer.with_normalizer(Some(Sequence::new(steps)))?;
        }
        Ok(())
    }
}

fn set_prefix(pre_tokenizer: &mut PreTokenizerWrapper, wanted: bool) {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(bytes) => bytes.add_prefix_space = wanted,
        PreTokenizerWrapper::Metaspace(space) => {
            space.prepend_scheme = if wanted { PrependScheme::Always } else { PrependScheme::Never };
        }
        PreTokenizerWrapper::Sequence(steps) => {
            let steps: &mut [PreTokenizerWrapper] = steps.as_mut();
            for step in steps.iter_mut() {
                set_prefix(step, wanted);
            }
        }
        _ => {}
    }
}
