//! A Hugging Face model directory as data, and the candle program that runs it.
//!
//! candle-transformers' models keep their layers private, so they can be neither observed nor changed. Here a family
//! is a function from `config.json` to a [`ModelSpec`]: blocks, Linears, the *sites* they read (an activation that
//! several Linears may share), norms, edges and heads. Everything else in the workspace reads that description and no
//! tensor name of one family; [`Model`] runs it, with the Linears of each site behind a [`SiteOp`] that can be the f32
//! original, the simulation of a quantised one, or the integer code of `zeropoint-runtime`.
//!
//! This crate knows nothing of quantisation algorithms, data sets or reports.

mod attention;
mod awake;
mod batch;
mod cache;
mod chat;
mod embed;
mod embedded;
mod error;
mod experts;
mod families;
mod heads;
mod image_processor;
mod model;
mod ops;
mod output;
mod parts;
mod pooling;
mod positions;
mod prompts;
mod read;
mod rotation;
mod score;
mod sentence;
mod sites;
mod source;
mod spec;
mod states;
mod tables;
mod tokenizer;

pub use batch::{ImagePixels, InputRef, ModelInput, PackedBatch, TokenSequence};
pub use cache::KvCache;
pub use chat::{ChatTemplate, MAX_RENDERED_BYTES, MAX_TEMPLATE_BYTES};
pub use embedded::EMBEDDED;
pub use error::ModelError;
pub use heads::{
    HeadBranch, HeadOutput, HeadSpec, HeadStep, Pooling, Problem, RowSelection, SentenceStep, Task,
};
pub use image_processor::{ImageProcessor, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, check_image};
pub use model::{BlockNorms, BlockRunner, INT8_ATTENTION, Model, Outputs, SiteOpFactory, SiteSink};
pub use ops::{Norm, apply_activation, apply_gate, rows_of};
pub use parts::{FloatParts, Hidden, ModelParts, Part, PartModel, State};
pub use positions::{BiasTable, PositionTables, Rotation};
pub use prompts::{PromptChoice, Prompts, TextRef};
pub use rotation::is_divisor;
pub use sites::{
    ActivationQuantizer, FloatLinear, FloatSite, LARGE_MATRIX, QuantizedActivation, SimulatedLinear,
    SimulatedReader, SimulatedSite, SimulatedWeightOnly, SiteOp, WIDEST_MATRIX,
};
pub use source::{ModelDirectory, SourceRef};
pub use spec::{
    ActivationFn, AttentionSpec, BlockSpec, Edge, EmbeddingRole, EmbeddingTable, ExpertsSpec, FeedForward,
    Gate, ImageInput, InputSpec, LinearId, LinearRole, LinearSpec, MlpSpec, ModelSpec, NormKind,
    NormPlacement, NormSpec, Positions, Projection, Reach, RelativeBias, Rotary, RotaryScaling, Site, SiteId,
    SiteRotation, TextInput, Tower,
};
pub use states::HiddenStates;
pub use tables::{Int8Table, TableFactory, TableRows, Tables};
pub use tokenizer::{AlignedTokens, MaskToken, TextPart, TextStream, Tokenizer};
