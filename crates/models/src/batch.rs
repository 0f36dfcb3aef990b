//! Batches without padding: the sequences of a batch laid end to end.

use zeropoint_core::Fingerprint;

use crate::{ModelError, ModelSpec};

/// One tokenised sample.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenSequence {
    /// Token ids, specials included.
    pub ids: Vec<u32>,
    /// Segment of each token (0, or 1 for the second text of a pair).
    pub type_ids: Vec<u32>,
    /// How many leading tokens, specials included, belong to a prompt that the pooling may be told to leave out.
    pub prompt: usize,
}

impl TokenSequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// One image, ready for the model: scaled, cropped and normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePixels {
    /// `[channels, height, width]`, row-major.
    pub values: Vec<f32>,
    /// Colour channels, height and width.
    pub shape: [usize; 3],
}

/// One sample as a model takes it.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelInput {
    /// A text or a pair of texts.
    Tokens(TokenSequence),
    /// An image.
    Image(ImagePixels),
}

/// A [`ModelInput`], or what is inside one, by reference.
#[derive(Debug, Clone, Copy)]
pub enum InputRef<'a> {
    /// A text or a pair of texts.
    Tokens(&'a TokenSequence),
    /// An image.
    Image(&'a ImagePixels),
}

impl<'a> From<&'a TokenSequence> for InputRef<'a> {
    fn from(tokens: &'a TokenSequence) -> Self {
        Self::Tokens(tokens)
    }
}

impl<'a> From<&'a ImagePixels> for InputRef<'a> {
    fn from(image: &'a ImagePixels) -> Self {
        Self::Image(image)
    }
}

impl<'a> From<&'a ModelInput> for InputRef<'a> {
    fn from(input: &'a ModelInput) -> Self {
        match input {
            ModelInput::Tokens(tokens) => Self::Tokens(tokens),
            ModelInput::Image(image) => Self::Image(image),
        }
    }
}

impl<'a> From<&'a &'a ModelInput> for InputRef<'a> {
    fn from(input: &'a &'a ModelInput) -> Self {
        (*input).into()
    }
}

impl From<TokenSequence> for ModelInput {
    fn from(tokens: TokenSequence) -> Self {
        Self::Tokens(tokens)
    }
}

impl ModelInput {
    /// Tokens of a text; 1 for an image, whose rows are the same for all.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Image(_) => 1,
        }
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its rows in the residual stream of a model that takes it.
    pub fn rows(&self, model: &ModelSpec) -> usize {
        match (self, model.image()) {
            (Self::Image(_), Some((_, image))) => image.rows(),
            _ => self.len(),
        }
    }
}

/// Sequences laid end to end, or images of one shape. Every row of every activation is a real token or patch: no padding
/// exists, so none can reach an observer, a pooling or a metric, and no time is spent on it.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedBatch {
    pub(crate) content: Content,
    /// Start of each sequence among the tokens, and the total at the end; for images, one each.
    pub(crate) offsets: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Tokens {
        ids: Vec<u32>,
        type_ids: Vec<u32>,
        /// Leading tokens of each sequence that are a prompt.
        prompts: Vec<usize>,
    },
    Images {
        /// `[images, channels, height, width]`.
        pixels: Vec<f32>,
        shape: [usize; 3],
    },
}

fn bytes(values: impl Iterator<Item = u64>) -> Vec<u8> {
    values.flat_map(u64::to_le_bytes).collect()
}

impl PackedBatch {
    /// Identifies what the batch holds.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut builder = Fingerprint::builder("batch");
        builder.field("offsets", bytes(self.offsets.iter().map(|offset| *offset as u64)));
        match &self.content {
            Content::Tokens { ids, type_ids, prompts } => {
                builder.field("ids", bytes(ids.iter().map(|id| u64::from(*id))));
                builder.field("types", bytes(type_ids.iter().map(|id| u64::from(*id))));
                builder.field("prompts", bytes(prompts.iter().map(|length| *length as u64)));
            }
            Content::Images { pixels, shape } => {
                builder.field("pixels", bytes(pixels.iter().map(|pixel| u64::from(pixel.to_bits()))));
                builder.field("shape", bytes(shape.iter().map(|size| *size as u64)));
            }
        }
        builder.finish()
    }

    /// Packs samples in the order given. Empty batches, empty sequences, and texts beside images are refused.
    pub fn new<'a, I>(inputs: impl IntoIterator<Item = I>) -> Result<Self, ModelError>
    where
        I: Into<InputRef<'a>>,
    {
        let mut inputs = inputs.into_iter().map(Into::into).peekable();
        match inputs.peek() {
            None => Err(bad("a batch holds no sample".to_owned())),
            Some(InputRef::Tokens(_)) => Self::of_tokens(inputs),
            Some(InputRef::Image(first)) => {
                let shape = first.shape;
                Self::of_images(inputs, shape)
            }
        }
    }

    fn of_tokens<'a>(inputs: impl Iterator<Item = InputRef<'a>>) -> Result<Self, ModelError> {
        let (mut ids, mut type_ids, mut prompts, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), vec![0]);
        for input in inputs {
            let InputRef::Tokens(sequence) = input else { return Err(mixed()) };
            if sequence.is_empty() {
                return Err(bad("a sample has no token at all".to_owned()));
            }
            if sequence.type_ids.len() != sequence.ids.len() {
                return Err(bad(format!(
                    "a sample has {} token ids but {} segment ids; there is one for each token",
                    sequence.ids.len(),
                    sequence.type_ids.len()
                )));
            }
            if sequence.prompt >= sequence.ids.len() {
                return Err(bad(format!(
                    "a sample of {} tokens begins with a prompt of {}; something must be left to encode",
                    sequence.ids.len(),
                    sequence.prompt
                )));
            }
            ids.extend_from_slice(&sequence.ids);
            type_ids.extend_from_slice(&sequence.type_ids);
            prompts.push(sequence.prompt);
            offsets.push(ids.len());
        }
        Ok(Self { content: Content::Tokens { ids, type_ids, prompts }, offsets })
    }

    fn of_images<'a>(
        inputs: impl Iterator<Item = InputRef<'a>>,
        shape: [usize; 3],
    ) -> Result<Self, ModelError> {
        let (mut pixels, mut offsets) = (Vec::new(), vec![0]);
        for input in inputs {
            let InputRef::Image(image) = input else { return Err(mixed()) };
            if image.shape != shape || image.values.len() != shape.iter().product::<usize>() {
                return Err(bad(format!(
                    "an image of {} values and shape {:?} is in a batch of shape {shape:?}",
                    image.values.len(),
                    image.shape
                )));
            }
            pixels.extend_from_slice(&image.values);
            offsets.push(offsets.len());
        }
        Ok(Self { content: Content::Images { pixels, shape }, offsets })
    }

    /// Number of sequences or images.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether it holds no sequence.
    pub fn is_empty(&self) -> bool {
        self.offsets.len() == 1
    }

    /// The token ids of all sequences, end to end; `None` for images.
    pub fn token_ids(&self) -> Option<&[u32]> {
        match &self.content {
            Content::Tokens { ids, .. } => Some(ids),
            Content::Images { .. } => None,
        }
    }

    /// Start of each sequence among the tokens, and the number of tokens at the end; of images, one each.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Whether it holds texts.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.content, Content::Tokens { .. })
    }

    /// Number of tokens over all sequences, or of images.
    pub fn tokens(&self) -> usize {
        self.offsets[self.len()]
    }
}

fn bad(reason: String) -> ModelError {
    ModelError::Sample { reason }
}

fn mixed() -> ModelError {
    bad("a batch holds texts and images; they go through towers of their own".to_owned())
}
