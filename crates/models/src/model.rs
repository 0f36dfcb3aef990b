//! The forward pass, written once over the description.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use zeropoint_formats::{Checkpoint, Dtype};
use zeropoint_kernels::Isa;

use crate::ModelError;
use crate::batch::PackedBatch;
use crate::heads::HeadSpec;
use crate::ops::{AddInPlace, LayerNorm, Softmax};
use crate::pooling::pool;
use crate::sites::{FloatLinear, FloatSite, SiteOp};
use crate::source::ModelDirectory;
use crate::spec::{AttentionSpec, EmbeddingRole, LinearId, LinearSpec, ModelSpec, NormSpec, SiteId};

/// Watches the activations of a forward pass.
pub trait SiteSink {
    /// Called with every site's activation before its Linears run: contiguous `[rows, channels]`, every row a real
    /// token. An error ends the forward pass.
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String>;
}

/// Makes the operator of a site; `None` leaves the f32 original in place.
pub type SiteOpFactory<'a> = dyn FnMut(SiteId) -> Result<Option<Box<dyn SiteOp>>, ModelError> + 'a;

/// One row for each sequence of the batch, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// Row-major values: sentence vectors or logits.
    pub values: Vec<f32>,
    /// Values in a row.
    pub columns: usize,
}

impl Outputs {
    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.columns)
    }
}

/// Where a model's embedding tables come from.
#[derive(Clone, Copy)]
pub enum Tables<'a> {
    /// Read from the checkpoint.
    Read,
    /// Those of a model of the same description, in the same memory.
    Shared(&'a Model),
    /// Those of a model of the same description, rounded to bfloat16 where the checkpoint holds more than 16 bits.
    SharedAsBf16(&'a Model),
}

fn is_wide(checkpoint: &Checkpoint, tensor: &str) -> bool {
    checkpoint.get(tensor).is_some_and(|info| matches!(info.dtype, Dtype::F32 | Dtype::F64))
}

struct Norms {
    attention: LayerNorm,
    mlp: LayerNorm,
}

/// A model that runs: its description, its float parts, and an operator for each site.
pub struct Model {
    spec: ModelSpec,
    isa: Isa,
    tables: Vec<Tensor>,
    embedding_norm: LayerNorm,
    norms: Vec<Norms>,
    sites: Vec<Box<dyn SiteOp>>,
}

impl Model {
    /// Loads the float model of a directory.
    pub fn load(directory: &ModelDirectory) -> Result<Self, ModelError> {
        Self::load_with(directory.spec(), directory.checkpoint(), &mut |_| Ok(None), Tables::Read)
    }

    /// Loads a model whose sites `factory` may take over; the weights of a site that it takes are not read here.
    pub fn load_with(
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        factory: &mut SiteOpFactory<'_>,
        tables: Tables<'_>,
    ) -> Result<Self, ModelError> {
        let isa = Isa::active()?;
        let norm = |norm: &NormSpec| -> Result<LayerNorm, ModelError> {
            Ok(LayerNorm {
                isa,
                gain: read_finite(checkpoint, &norm.weight)?,
                shift: read_finite(checkpoint, &norm.bias)?,
                eps: norm.eps,
            })
        };
        let tables = spec
            .embeddings
            .iter()
            .enumerate()
            .map(|(i, table)| match tables {
                Tables::Read => read_matrix(checkpoint, &table.tensor, table.rows, spec.hidden),
                Tables::SharedAsBf16(model) if is_wide(checkpoint, &table.tensor) => {
                    Ok(model.tables[i].to_dtype(DType::BF16)?.to_dtype(DType::F32)?)
                }
                Tables::Shared(model) | Tables::SharedAsBf16(model) => Ok(model.tables[i].clone()),
            })
            .collect::<Result<_, ModelError>>()?;
        let norms = spec
            .blocks
            .iter()
            .map(|block| Ok(Norms { attention: norm(&block.attention_norm)?, mlp: norm(&block.mlp_norm)? }))
            .collect::<Result<_, ModelError>>()?;
        let sites = (0..spec.sites.len())
            .map(|site| match factory(site)? {
                Some(op) => Ok(op),
                None => Ok(Box::new(float_site(spec, checkpoint, isa, site)?) as Box<dyn SiteOp>),
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            embedding_norm: norm(&spec.embedding_norm)?,
            spec: spec.clone(),
            isa,
            tables,
            norms,
            sites,
        })
    }

    /// The description it was built from.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The instruction set its kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Sentence vectors or logits, one row a sequence.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        self.run(batch, &mut None)
    }

    /// As [`Model::forward`], showing every site's activation to `sink`.
    pub fn forward_observed(
        &self,
        batch: &PackedBatch,
        sink: &mut dyn SiteSink,
    ) -> Result<Outputs, ModelError> {
        self.run(batch, &mut Some(sink))
    }

    /// The hidden states after the last block, `[tokens, hidden]`, of all sequences end to end.
    pub fn hidden_states(&self, batch: &PackedBatch) -> Result<Tensor, ModelError> {
        self.encode(batch, &mut None)
    }

    /// The outputs of one site's Linears for an activation `[rows, channels]`.
    pub fn run_site(&self, site: SiteId, input: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        Ok(self.sites[site].forward(input)?)
    }

    fn run(&self, batch: &PackedBatch, sink: &mut Option<&mut dyn SiteSink>) -> Result<Outputs, ModelError> {
        let hidden = self.encode(batch, sink)?;
        match &self.spec.head {
            HeadSpec::Embedding { pooling, normalize } => {
                let (values, columns) = pool(&hidden, batch, pooling, *normalize)?;
                Ok(Outputs { values, columns })
            }
            HeadSpec::Classification { pooler_input, classifier_input, .. } => {
                let starts: Vec<u32> = batch.ranges().map(|range| range.start as u32).collect();
                let count = starts.len();
                let first = hidden.index_select(&Tensor::from_vec(starts, count, &Device::Cpu)?, 0)?;
                let pooled = self.single(*pooler_input, &first, sink)?;
                let logits = self.single(*classifier_input, &pooled, sink)?;
                let columns = logits.dim(1)?;
                Ok(Outputs { values: logits.flatten_all()?.to_vec1()?, columns })
            }
        }
    }

    fn encode(
        &self,
        batch: &PackedBatch,
        sink: &mut Option<&mut dyn SiteSink>,
    ) -> Result<Tensor, ModelError> {
        let mut hidden = self.embed(batch)?;
        let tasks = attention_tasks(batch);
        for (block, norms) in self.spec.blocks.iter().zip(&self.norms) {
            let attention = &block.attention;
            let qkv = self.site(attention.input, &hidden, sink)?;
            let [query, key, value] = &qkv[..] else {
                return Err(ModelError::Candle(candle_core::Error::Msg(
                    "q, k and v share a site".to_owned(),
                )));
            };
            let context = attend(self.isa, attention, &tasks, query, key, value)?;
            let mixed = self.single(attention.context, &context, sink)?;
            hidden = norms.attention.forward(&mixed, Some(&hidden))?;
            let inner = self.single(block.mlp.input, &hidden, sink)?;
            let out = self.single(block.mlp.inner, &inner, sink)?;
            hidden = norms.mlp.forward(&out, Some(&hidden))?;
        }
        Ok(hidden)
    }

    fn embed(&self, batch: &PackedBatch) -> Result<Tensor, ModelError> {
        let mut sum: Option<Tensor> = None;
        for (table, spec) in self.tables.iter().zip(&self.spec.embeddings) {
            let rows: Vec<u32> = match spec.role {
                EmbeddingRole::Word => batch.ids.clone(),
                EmbeddingRole::TokenType => batch.type_ids.clone(),
                EmbeddingRole::Position { offset } => batch
                    .ranges()
                    .flat_map(|range| (0..range.len()).map(move |i| (i + offset) as u32))
                    .collect(),
            };
            if let Some(bad) = rows.iter().find(|row| **row as usize >= spec.rows) {
                return Err(ModelError::Sample {
                    reason: format!(
                        "row {bad} of `{}` is asked for, which has {} rows; the tokenizer does not fit the model, or \
                         the sample is longer than {} tokens",
                        spec.tensor, spec.rows, self.spec.max_positions
                    ),
                });
            }
            let count = rows.len();
            let looked_up = table.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)?;
            match &sum {
                Some(sum) => sum.inplace_op2(&looked_up, &AddInPlace(self.isa))?,
                None => sum = Some(looked_up),
            }
        }
        let sum =
            sum.ok_or_else(|| ModelError::Sample { reason: "the model has no embedding table".to_owned() })?;
        Ok(self.embedding_norm.forward(&sum, None)?)
    }

    fn site(
        &self,
        site: SiteId,
        input: &Tensor,
        sink: &mut Option<&mut dyn SiteSink>,
    ) -> Result<Vec<Tensor>, ModelError> {
        let spec = &self.spec.sites[site];
        if let Some(sink) = sink {
            crate::rows_of(input, |values| sink.observe(site, values, spec.channels))?
                .map_err(|reason| ModelError::Site { site: spec.id.clone(), reason })?;
        }
        Ok(self.sites[site].forward(input)?)
    }

    fn single(
        &self,
        site: SiteId,
        input: &Tensor,
        sink: &mut Option<&mut dyn SiteSink>,
    ) -> Result<Tensor, ModelError> {
        let mut outputs = self.site(site, input, sink)?;
        match outputs.pop() {
            Some(output) if outputs.is_empty() => Ok(output),
            _ => Err(ModelError::Candle(candle_core::Error::Msg(
                "a site with one reader is expected".to_owned(),
            ))),
        }
    }
}

/// Reads a tensor in f32, every value finite.
fn read_finite(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, ModelError> {
    let values = checkpoint.read_f32(name)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(ModelError::not_finite(checkpoint.dir(), name, at, values[at])),
    }
}

fn read_matrix(
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Tensor, ModelError> {
    Ok(Tensor::from_vec(read_finite(checkpoint, name)?, (rows, columns), &Device::Cpu)?)
}

impl LinearSpec {
    /// Reads it in f32.
    pub fn read_float(&self, checkpoint: &Checkpoint) -> Result<FloatLinear, ModelError> {
        Ok(FloatLinear {
            weight: read_matrix(checkpoint, &self.weight_name(), self.outputs, self.inputs)?,
            bias: self.bias.then(|| read_finite(checkpoint, &self.bias_name())).transpose()?,
            activation: self.activation,
        })
    }
}

fn float_site(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    isa: Isa,
    site: SiteId,
) -> Result<FloatSite, ModelError> {
    let read = |id: &LinearId| spec.linears[*id].read_float(checkpoint);
    Ok(FloatSite { isa, linears: spec.sites[site].consumers.iter().map(read).collect::<Result<_, _>>()? })
}

/// Consecutive sequences of one length that attend in one task.
struct AttentionTask {
    start: usize,
    count: usize,
    length: usize,
}

/// Scores that one attention task may hold: bounds its memory, and depends on the batch alone.
const TOKENS_PER_TASK: usize = 64;

fn attention_tasks(batch: &PackedBatch) -> Vec<AttentionTask> {
    let mut tasks: Vec<AttentionTask> = Vec::new();
    for range in batch.ranges() {
        match tasks.last_mut() {
            Some(task) if task.length == range.len() && (task.count + 1) * task.length <= TOKENS_PER_TASK => {
                task.count += 1;
            }
            _ => tasks.push(AttentionTask { start: range.start, count: 1, length: range.len() }),
        }
    }
    tasks
}

/// Scaled dot-product attention within each sequence; `[tokens, heads * head_dim]` in and out.
fn attend(
    isa: Isa,
    spec: &AttentionSpec,
    tasks: &[AttentionTask],
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
) -> candle_core::Result<Tensor> {
    let softmax = Softmax { isa, scale: spec.scale };
    let attend_task = |task: &AttentionTask| -> candle_core::Result<Tensor> {
        let heads_first = |x: &Tensor| {
            x.narrow(0, task.start, task.count * task.length)?
                .reshape((task.count, task.length, spec.heads, spec.head_dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let scores = heads_first(query)?.matmul(&heads_first(key)?.t()?)?;
        scores.inplace_op1(&softmax)?;
        scores
            .matmul(&heads_first(value)?)?
            .transpose(1, 2)?
            .reshape((task.count * task.length, spec.heads * spec.head_dim))
    };
    let parts = tasks.par_iter().map(attend_task).collect::<candle_core::Result<Vec<_>>>()?;
    debug_assert!(parts.iter().all(|part| part.dtype() == DType::F32));
    Tensor::cat(&parts, 0)
}
