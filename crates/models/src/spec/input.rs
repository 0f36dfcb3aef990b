//! What a tower reads, and how it becomes the residual stream.

use super::{NormSpec, SiteId};

/// What a tower reads.
#[derive(Debug, Clone, PartialEq)]
pub enum InputSpec {
    /// Tokens.
    Text(TextInput),
    /// Images, cut into square patches.
    Image(ImageInput),
}

/// Token ids to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct TextInput {
    /// Longest sequence that the positions allow, in tokens with specials.
    pub max_positions: usize,
    /// Width of the tables: that of the residual stream unless there is a projection.
    pub width: usize,
    /// Tables whose rows are added up for each token.
    pub tables: Vec<EmbeddingTable>,
    /// Factor on the sum.
    pub scale: f32,
    /// Norm over the sum.
    pub norm: Option<NormSpec>,
    /// The Linear from `width` to the residual stream, where the widths differ.
    pub projection: Option<SiteId>,
}

/// Pixels to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInput {
    /// Height and width of an image, in pixels.
    pub image_size: [usize; 2],
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub channels: usize,
    /// The site whose rows are flattened patches, `[channels, patch, patch]` each.
    pub patches: SiteId,
    /// Tensors of `hidden` values that stand before the patches: class token, distillation token.
    pub tokens: Vec<String>,
    /// Tensor of the positions, `tokens + patches` rows of `hidden` values.
    pub positions: String,
    /// Norm over the sum.
    pub norm: Option<NormSpec>,
}

impl ImageInput {
    /// Patches of one image.
    pub fn patch_count(&self) -> usize {
        self.image_size.iter().map(|side| side / self.patch_size).product()
    }

    /// Rows of one image in the residual stream: its tokens and patches.
    pub fn rows(&self) -> usize {
        self.tokens.len() + self.patch_count()
    }
}

/// What a row of an embedding table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingRole {
    /// A token id.
    Word,
    /// An absolute position; the first token has position `offset`.
    Position {
        /// Rows skipped at the start of the table.
        offset: usize,
        /// A token that takes no position of its own but this row, as padding does in `RoBERTa`.
        pad: Option<u32>,
    },
    /// A segment (0 for the first text, 1 for the second of a pair).
    TokenType,
}

/// One embedding table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingTable {
    /// Its tensor, `[rows, width]`.
    pub tensor: String,
    /// Number of rows.
    pub rows: usize,
    /// Values in a row.
    pub width: usize,
    /// What a row stands for.
    pub role: EmbeddingRole,
}
