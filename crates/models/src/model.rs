//! The forward pass, written once over the description.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use zeropoint_formats::safetensors::element::floats_from_bytes;
use zeropoint_formats::{Checkpoint, Dtype};
use zeropoint_kernels::{AttentionPrecision, Isa, KvPrecision};

use crate::ModelError;
use crate::attention::{Attention, AttentionContext, part};
use crate::awake::awake;
use crate::batch::{PackedBatch, TokenSequence};
use crate::cache::{CachedAttention, KvCache, decoder};
use crate::embed::Embedding;
use crate::ops::{ActivateInPlace, AddInPlace, MultiplyInPlace, Norm};
use crate::output::Head;
use crate::positions::{BiasTable, PositionTables};
use crate::sites::{FloatLinear, FloatSite, LARGE, SiteOp};
use crate::source::ModelDirectory;
use crate::spec::{
    BlockSpec, InputSpec, LinearId, LinearRole, LinearSpec, MlpSpec, ModelSpec, NormPlacement, NormSpec,
    SiteId, Tower,
};
use crate::tables::Tables;

/// What the products of attention multiply in a model with INT8 Linears, whether it runs in integers or simulates them: its
/// queries, keys and values come from INT8 products, and a bfloat16 number has as many bits.
pub const INT8_ATTENTION: AttentionPrecision = AttentionPrecision::Bf16;

/// Watches the activations of a forward pass.
pub trait SiteSink {
    /// Called with every site's activation before its Linears run: contiguous `[rows, channels]`, every row a real
    /// token. An error ends the forward pass.
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String>;
}

/// Runs all blocks of a tower and its final norm at once, in place of its sites one by one.
pub trait BlockRunner: Send + Sync {
    /// Replaces the residual stream before the first block, `[rows, hidden]`, by the hidden states. `offsets` are the first
    /// rows of the sequences, and the number of rows at the end.
    fn run(&self, stream: &mut [f32], offsets: &[usize]) -> Result<(), ModelError>;

    /// As [`BlockRunner::run`] for tokens that follow those of `cache`, whose keys and values it adds to each block of the
    /// cache. After an error those of some blocks may be there.
    fn extend(&self, stream: &mut [f32], cache: &mut KvCache) -> Result<(), ModelError>;
}

/// Makes the operator of a site; `None` leaves the f32 original in place.
pub type SiteOpFactory<'a> = dyn FnMut(SiteId) -> Result<Option<Box<dyn SiteOp>>, ModelError> + 'a;

/// What a model gives for the samples of a batch, in its order: one row a sample, or one a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// Row-major values: vectors or logits.
    pub values: Vec<f32>,
    /// Values in a row.
    pub columns: usize,
    /// First row of each sample, and the number of rows at the end.
    pub offsets: Vec<usize>,
}

impl Outputs {
    /// All rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.columns)
    }

    /// The rows of each sample, `[rows, columns]`.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.offsets.windows(2).map(|pair| &self.values[pair[0] * self.columns..pair[1] * self.columns])
    }
}

/// The norms of a block: those of [`BlockSpec`], by the same names.
#[derive(Debug, Clone)]
pub struct BlockNorms {
    /// Of the attention half.
    pub attention: Option<Norm>,
    /// Of each head's queries.
    pub query: Option<Norm>,
    /// Of each head's keys.
    pub key: Option<Norm>,
    /// Of what the attention half adds.
    pub attention_output: Option<Norm>,
    /// Of the feed-forward half.
    pub mlp: Norm,
    /// Of what the feed-forward half adds.
    pub mlp_output: Option<Norm>,
}

impl BlockSpec {
    /// Reads the values of its norms, of which every one is finite.
    pub fn read_norms(&self, checkpoint: &Checkpoint, isa: Isa) -> Result<BlockNorms, ModelError> {
        let norm = |norm: &Option<NormSpec>| norm.as_ref().map(|norm| norm.read(checkpoint, isa)).transpose();
        Ok(BlockNorms {
            attention: norm(&self.attention_norm)?,
            query: norm(&self.attention.query_norm)?,
            key: norm(&self.attention.key_norm)?,
            attention_output: norm(&self.attention_output_norm)?,
            mlp: self.mlp_norm.read(checkpoint, isa)?,
            mlp_output: norm(&self.mlp_output_norm)?,
        })
    }
}

/// The float parts of a tower.
struct TowerParts {
    embedding: Embedding,
    norms: Vec<BlockNorms>,
    final_norm: Option<Norm>,
    bias: Option<BiasTable>,
    head: Head,
    runner: Option<Box<dyn BlockRunner>>,
}

/// A model that runs: its description, its float parts, and an operator for each site.
pub struct Model {
    spec: ModelSpec,
    isa: Isa,
    towers: Vec<TowerParts>,
    sites: Vec<Box<dyn SiteOp>>,
    logit_scale: Option<f32>,
    attention: AttentionPrecision,
}

impl Model {
    /// Loads the float model of a directory.
    pub fn load(directory: &ModelDirectory) -> Result<Self, ModelError> {
        check_copies(directory.spec(), directory.checkpoint())?;
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
        let towers = (0..spec.towers.len())
            .map(|i| TowerParts::load(spec, i, checkpoint, isa, tables))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let sites = (0..spec.sites.len())
            .map(|site| match factory(site)? {
                Some(op) => Ok(op),
                None => Ok(Box::new(float_site(spec, checkpoint, isa, site, &towers)?) as Box<dyn SiteOp>),
            })
            .collect::<Result<_, ModelError>>()?;
        let logit_scale =
            spec.logit_scale.as_deref().map(|name| read_finite(checkpoint, name)).transpose()?;
        let logit_scale = logit_scale.and_then(|values| values.first().map(|value| value.exp()));
        Ok(Self { spec: spec.clone(), isa, towers, sites, logit_scale, attention: AttentionPrecision::F32 })
    }

    /// The description it was built from.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The instruction set its kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The factor on the cosine of an image and a text, which makes logits of them, in models that have both.
    pub fn logit_scale(&self) -> Option<f32> {
        self.logit_scale
    }

    /// What the products of attention multiply from now on; f32 until then. A
    /// [`BlockRunner`] has its own.
    pub fn set_attention_precision(&mut self, precision: AttentionPrecision) {
        self.attention = precision;
    }

    /// What the products of attention multiply.
    pub fn attention_precision(&self) -> AttentionPrecision {
        self.attention
    }

    /// Lets `runner` run the blocks of a tower from now on, except where a sink watches and in
    /// [`Model::forward_by_sites`].
    pub fn set_block_runner(&mut self, tower: usize, runner: Box<dyn BlockRunner>) {
        self.towers[tower].runner = Some(runner);
    }

    /// Whether a tower that takes such input has a [`BlockRunner`].
    pub fn has_block_runner(&self, batch: &PackedBatch) -> bool {
        self.tower(batch).is_ok_and(|(_, parts)| parts.runner.is_some())
    }

    pub(crate) fn embedding(&self, tower: usize) -> &Embedding {
        &self.towers[tower].embedding
    }

    /// Vectors or logits of each sample.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        self.run(batch, &mut None, true)
    }

    /// A cache of no token, whose keys and values have the precision of [`Model::attention_precision`].
    pub fn new_cache(&self) -> Result<KvCache, ModelError> {
        self.new_cache_in(self.attention.into())
    }

    /// As [`Model::new_cache`], with keys and values of that precision.
    pub fn new_cache_in(&self, precision: KvPrecision) -> Result<KvCache, ModelError> {
        KvCache::new(&self.spec, precision)
    }

    /// The output rows of the last `rows` of the tokens `ids`, which follow those of `cache` and are added to it.
    ///
    /// They are those of a forward of the whole sequence, apart from rounding of sums whose order depends on the number of
    /// rows. Where more tokens turn keys otherwise (`longrope`), all are computed anew once. Fails, and leaves the cache as it
    /// was, where the model is no decoder, there is no token, or there are more than the cache can hold.
    pub fn extend(&self, ids: &[u32], cache: &mut KvCache, rows: usize) -> Result<Outputs, ModelError> {
        self.extend_by(ids, cache, rows, true)
    }

    /// As [`Model::extend`], site by site: the reference of [`BlockRunner::extend`].
    pub fn extend_by_sites(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        rows: usize,
    ) -> Result<Outputs, ModelError> {
        self.extend_by(ids, cache, rows, false)
    }

    fn extend_by(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        rows: usize,
        fused: bool,
    ) -> Result<Outputs, ModelError> {
        let (tower, _) = decoder(&self.spec)?;
        let (known, total) = (cache.len(), cache.len() + ids.len());
        if ids.is_empty() || rows == 0 || rows > ids.len() {
            let reason = format!("{rows} rows of {} tokens are asked for; at least one is", ids.len());
            return Err(ModelError::Sample { reason });
        }
        if total > cache.max_tokens() {
            let most = cache.max_tokens();
            let reason = format!("the text has {total} tokens; the model reads at most {most}");
            return Err(ModelError::Sample { reason });
        }
        if cache.turns_anew(total) {
            let all: Vec<u32> = cache.ids().iter().chain(ids).copied().collect();
            let mut anew = KvCache::new(&self.spec, cache.precision())?;
            let outputs = self.extend_by(&all, &mut anew, rows, fused)?;
            *cache = anew;
            return Ok(outputs);
        }
        let parts = &self.towers[self.spec.towers.iter().position(|known| known == tower).unwrap_or(0)];
        let result = if ids.len() == 1 {
            awake(|| Pass { model: self, sink: &mut None }.extend(tower, parts, ids, cache, rows, fused))
        } else {
            Pass { model: self, sink: &mut None }.extend(tower, parts, ids, cache, rows, fused)
        };
        match &result {
            Ok(_) => cache.push(ids),
            Err(_) => cache.truncate(known),
        }
        result
    }

    /// As [`Model::forward`], site by site: the reference of a [`BlockRunner`].
    pub fn forward_by_sites(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        self.run(batch, &mut None, false)
    }

    /// As [`Model::forward`], showing every site's activation to `sink`.
    pub fn forward_observed(
        &self,
        batch: &PackedBatch,
        sink: &mut dyn SiteSink,
    ) -> Result<Outputs, ModelError> {
        self.run(batch, &mut Some(sink), false)
    }

    /// The hidden states after the last block and its norm, `[tokens, hidden]`, of all samples end to end.
    pub fn hidden_states(&self, batch: &PackedBatch) -> Result<Tensor, ModelError> {
        let pass = &mut Pass { model: self, sink: &mut None };
        let (tower, parts) = self.tower(batch)?;
        Ok(pass.encode(tower, parts, batch, true)?.0)
    }

    /// The outputs of one site's Linears for an activation `[rows, channels]`.
    pub fn run_site(&self, site: SiteId, input: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        Ok(self.sites[site].forward(input)?)
    }

    /// The tower that takes this kind of input.
    fn tower(&self, batch: &PackedBatch) -> Result<(&Tower, &TowerParts), ModelError> {
        let fits =
            |(tower, _): &(&Tower, &TowerParts)| batch.is_text() == matches!(tower.input, InputSpec::Text(_));
        self.spec.towers.iter().zip(&self.towers).find(fits).ok_or_else(|| ModelError::Sample {
            reason: format!(
                "{} are given, which {} does not take",
                if batch.is_text() { "texts" } else { "images" },
                self.spec.architecture
            ),
        })
    }

    fn run(
        &self,
        batch: &PackedBatch,
        sink: &mut Option<&mut dyn SiteSink>,
        fused: bool,
    ) -> Result<Outputs, ModelError> {
        let mut pass = Pass { model: self, sink };
        let (tower, parts) = self.tower(batch)?;
        let (hidden, ranges) = pass.encode(tower, parts, batch, fused)?;
        parts.head.run(&tower.head, &mut pass, &hidden, &ranges, batch)
    }
}

/// One forward pass.
pub(crate) struct Pass<'a, 's> {
    pub(crate) model: &'a Model,
    sink: &'a mut Option<&'s mut dyn SiteSink>,
}

impl Pass<'_, '_> {
    /// The hidden states, and the rows of each sample.
    fn encode(
        &mut self,
        tower: &Tower,
        parts: &TowerParts,
        batch: &PackedBatch,
        fused: bool,
    ) -> Result<(Tensor, Vec<usize>), ModelError> {
        let (mut stream, offsets) = parts.embedding.forward(&tower.input, self, batch, 0)?;
        let shape = (stream.len() / tower.hidden, tower.hidden);
        if let Some(runner) = parts.runner.as_ref().filter(|_| fused) {
            runner.run(&mut stream, &offsets)?;
            return Ok((Tensor::from_vec(stream, shape, &Device::Cpu)?, offsets));
        }
        let hidden = Tensor::from_vec(stream, shape, &Device::Cpu)?;
        let longest = offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let tables = PositionTables::new(tower, parts.bias.as_ref(), longest);
        let mut context = AttentionContext::new(self.model.isa, self.model.attention, &offsets, &tables);
        Ok((self.blocks(tower, parts, &mut context, hidden)?, offsets))
    }

    /// The output of the last `rows` of some tokens behind those of a cache.
    fn extend(
        &mut self,
        tower: &Tower,
        parts: &TowerParts,
        ids: &[u32],
        cache: &mut KvCache,
        rows: usize,
        fused: bool,
    ) -> Result<Outputs, ModelError> {
        let tokens = ids.len();
        let sequence = TokenSequence { ids: ids.to_vec(), type_ids: vec![0; tokens], prompt: 0 };
        let batch = PackedBatch::new(&[sequence])?;
        let (mut stream, _) = parts.embedding.forward(&tower.input, self, &batch, cache.len())?;
        let shape = (tokens, tower.hidden);
        let hidden = if let Some(runner) = parts.runner.as_ref().filter(|_| fused) {
            runner.extend(&mut stream, cache)?;
            Tensor::from_vec(stream, shape, &Device::Cpu)?
        } else {
            let hidden = Tensor::from_vec(stream, shape, &Device::Cpu)?;
            let mut attention = CachedAttention::new(self.model.isa, tower, cache, tokens);
            self.blocks(tower, parts, &mut attention, hidden)?
        };
        let hidden = hidden.narrow(0, tokens - rows, rows)?.contiguous()?;
        parts.head.run(&tower.head, self, &hidden, &[0, rows], &batch)
    }

    /// The hidden states for the residual stream before the first block.
    fn blocks(
        &mut self,
        tower: &Tower,
        parts: &TowerParts,
        attention: &mut dyn Attention,
        mut hidden: Tensor,
    ) -> Result<Tensor, ModelError> {
        for (index, norms) in parts.norms.iter().enumerate() {
            hidden = self.block((index, &tower.blocks[index]), norms, attention, &hidden)?;
        }
        match &parts.final_norm {
            Some(norm) => Ok(norm.forward(&hidden, None)?),
            None => Ok(hidden),
        }
    }

    fn block(
        &mut self,
        (index, block): (usize, &BlockSpec),
        norms: &BlockNorms,
        attention: &mut dyn Attention,
        hidden: &Tensor,
    ) -> Result<Tensor, ModelError> {
        match block.placement {
            NormPlacement::Post => {
                let mixed = self.attention((index, block), norms, attention, hidden)?;
                let hidden = match &norms.attention {
                    Some(norm) => norm.forward(&mixed, Some(hidden))?,
                    None => self.add(mixed, hidden)?,
                };
                let out = self.mlp(&block.mlp, &hidden)?;
                Ok(norms.mlp.forward(&out, Some(&hidden))?)
            }
            NormPlacement::Pre | NormPlacement::Parallel => {
                let normed = normalized(norms.attention.as_ref(), hidden.clone())?;
                let mixed = self.attention((index, block), norms, attention, &normed)?;
                let mixed = normalized(norms.attention_output.as_ref(), mixed)?;
                if block.placement == NormPlacement::Parallel {
                    let out = self.mlp(&block.mlp, &norms.mlp.forward(hidden, None)?)?;
                    let out = normalized(norms.mlp_output.as_ref(), out)?;
                    let hidden = self.add(out, hidden)?;
                    return self.add(mixed, &hidden);
                }
                let hidden = self.add(mixed, hidden)?;
                let out = self.mlp(&block.mlp, &norms.mlp.forward(&hidden, None)?)?;
                self.add(normalized(norms.mlp_output.as_ref(), out)?, &hidden)
            }
        }
    }

    fn attention(
        &mut self,
        (index, block): (usize, &BlockSpec),
        norms: &BlockNorms,
        attention: &mut dyn Attention,
        input: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let spec = &block.attention;
        let outputs = self.site(spec.input, input)?;
        let (query, key, value) =
            (part(&outputs, &spec.query)?, part(&outputs, &spec.key)?, part(&outputs, &spec.value)?);
        // A norm is as long as a head: it goes over each.
        let query = normalized(norms.query.as_ref(), query)?;
        let key = normalized(norms.key.as_ref(), key)?;
        let mixed = attention.attend(index, spec, [&query, &key, &value])?;
        self.single(spec.context, &mixed)
    }

    fn mlp(&mut self, spec: &MlpSpec, input: &Tensor) -> Result<Tensor, ModelError> {
        let isa = self.model.isa;
        let outputs = self.site(spec.input, input)?;
        let up = part(&outputs, &spec.up)?;
        let inner = match &spec.gate {
            None => up.contiguous()?,
            Some(gate) => {
                let gated = part(&outputs, &gate.projection)?;
                // One row of a fused Linear is contiguous as it is, and would share the memory of `up`.
                let fused = gate.projection.linear == spec.up.linear;
                let gated = if fused { gated.force_contiguous()? } else { gated };
                gated.inplace_op1(&ActivateInPlace { isa, activation: gate.activation })?;
                gated.inplace_op2(&up.contiguous()?, &MultiplyInPlace)?;
                gated
            }
        };
        self.single(spec.inner, &inner)
    }

    /// `x + y`, in the memory of `x`.
    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor, ModelError> {
        x.inplace_op2(y, &AddInPlace(self.model.isa))?;
        Ok(x)
    }

    /// The outputs of a site's Linears by their ids.
    fn site(&mut self, site: SiteId, input: &Tensor) -> Result<BTreeMap<LinearId, Tensor>, ModelError> {
        let spec = &self.model.spec.sites[site];
        if let Some(sink) = &mut self.sink {
            crate::rows_of(input, |values| sink.observe(site, values, spec.channels))?
                .map_err(|reason| ModelError::Site { site: spec.id.clone(), reason })?;
        }
        let outputs = self.model.sites[site].forward(input)?;
        Ok(spec.consumers.iter().copied().zip(outputs).collect())
    }

    /// The output of a site that one Linear reads.
    pub(crate) fn single(&mut self, site: SiteId, input: &Tensor) -> Result<Tensor, ModelError> {
        let mut outputs = self.site(site, input)?;
        match outputs.pop_first() {
            Some((_, output)) if outputs.is_empty() => Ok(output),
            _ => Err(ModelError::Candle(candle_core::Error::Msg(
                "a site with one reader is expected".to_owned(),
            ))),
        }
    }
}

impl TowerParts {
    fn load(
        spec: &ModelSpec,
        index: usize,
        checkpoint: &Checkpoint,
        isa: Isa,
        tables: Tables<'_>,
    ) -> Result<Self, ModelError> {
        let tower = &spec.towers[index];
        let norm = |norm: &NormSpec| norm.read(checkpoint, isa);
        let norms = tower.blocks.iter().map(|block| block.read_norms(checkpoint, isa));
        let norms = norms.collect::<Result<_, ModelError>>()?;
        let bias = tower.relative_bias.as_ref().map(|bias| BiasTable::read(bias, checkpoint)).transpose()?;
        Ok(Self {
            embedding: Embedding::load(tower, index, checkpoint, isa, tables)?,
            norms,
            final_norm: tower.final_norm.as_ref().map(norm).transpose()?,
            bias,
            head: Head::load(&tower.head, checkpoint, isa)?,
            runner: None,
        })
    }
}

/// `x`, or its norm where there is one.
fn normalized(norm: Option<&Norm>, x: Tensor) -> Result<Tensor, ModelError> {
    match norm {
        Some(norm) => Ok(norm.forward(&x.contiguous()?, None)?),
        None => Ok(x),
    }
}

/// Elements of two tensors that are compared at a time.
const COMPARED_AT_A_TIME: usize = 1 << 16;

/// Refuses a checkpoint whose [`ModelSpec::copies`] are none.
fn check_copies(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    for (copy, original) in &spec.copies {
        let elements = checkpoint.require(original)?.elements();
        for start in (0..elements).step_by(COMPARED_AT_A_TIME) {
            let part = start..elements.min(start + COMPARED_AT_A_TIME);
            let (ours, theirs) =
                (read_elements(checkpoint, original, &part)?, read_elements(checkpoint, copy, &part)?);
            if ours != theirs {
                return Err(ModelError::Tensor {
                    path: checkpoint.dir().to_owned(),
                    tensor: copy.clone(),
                    reason: format!(
                        "differs from `{original}`, to which config.json ties it; say `\"tie_word_embeddings\": false` \
                         there if both are meant, or remove the one that is not"
                    ),
                });
            }
        }
    }
    Ok(())
}

/// Some elements of a tensor in f32.
fn read_elements(checkpoint: &Checkpoint, name: &str, part: &Range<usize>) -> Result<Vec<f32>, ModelError> {
    let dtype = checkpoint.require(name)?.dtype;
    let at = |element: usize| (element * dtype.size()) as u64;
    let bytes = checkpoint.read_range(name, at(part.start)..at(part.end))?;
    floats_from_bytes(dtype, &bytes).ok_or_else(|| ModelError::Tensor {
        path: checkpoint.dir().to_owned(),
        tensor: name.to_owned(),
        reason: format!("is stored as {dtype}; floats are expected"),
    })
}

impl NormSpec {
    /// Reads gain and shift, of which every value is finite; a shift that is not there is zeros.
    pub fn read(&self, checkpoint: &Checkpoint, isa: Isa) -> Result<Norm, ModelError> {
        let mut gain = read_finite(checkpoint, &self.weight)?;
        if self.unit_offset {
            for gain in &mut gain {
                *gain += 1.0;
            }
        }
        let shift = match &self.bias {
            Some(bias) => read_finite(checkpoint, bias)?,
            None => vec![0.0; gain.len()],
        };
        Ok(Norm { isa, kind: self.kind, gain, shift, eps: self.eps })
    }
}

/// Reads a tensor in f32, every value finite.
pub(crate) fn read_finite(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, ModelError> {
    let values = checkpoint.read_f32(name)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(ModelError::not_finite(checkpoint.dir(), name, at, values[at])),
    }
}

/// A large matrix in bfloat16 where the file has it so: half the memory, and half the time where reading it is what takes time.
fn as_in_file(checkpoint: &Checkpoint, name: &str, matrix: Tensor) -> Result<Tensor, ModelError> {
    let is_bf16 = checkpoint.get(name).is_some_and(|info| info.dtype == Dtype::BF16);
    if is_bf16 && matrix.elem_count() >= LARGE { Ok(matrix.to_dtype(DType::BF16)?) } else { Ok(matrix) }
}

/// A table `[rows, columns]`, every value finite: f32, or bfloat16 where the file has a large one so.
pub(crate) fn read_matrix(
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Tensor, ModelError> {
    let matrix = Tensor::from_vec(read_finite(checkpoint, name)?, (rows, columns), &Device::Cpu)?;
    as_in_file(checkpoint, name, matrix)
}

impl LinearSpec {
    /// Its weight `[outputs, inputs]` in f32, row-major, every value finite.
    pub fn read_weight(&self, checkpoint: &Checkpoint) -> Result<Vec<f32>, ModelError> {
        let values = self.read_rows(checkpoint, &self.weight, self.inputs)?;
        if !self.transposed {
            return Ok(values);
        }
        let column = |output| values[output..].iter().step_by(self.outputs).copied();
        Ok((0..self.outputs).flat_map(column).collect())
    }

    /// Its bias `[outputs]` in f32, every value finite.
    pub fn read_bias(&self, checkpoint: &Checkpoint) -> Result<Option<Vec<f32>>, ModelError> {
        self.bias.as_deref().map(|bias| self.read_rows(checkpoint, bias, 1)).transpose()
    }

    /// Its rows of a tensor, and no others.
    fn read_rows(&self, checkpoint: &Checkpoint, name: &str, columns: usize) -> Result<Vec<f32>, ModelError> {
        if !self.is_fused_in_file() {
            return read_finite(checkpoint, name);
        }
        let values = read_elements(checkpoint, name, &(self.rows.start * columns..self.rows.end * columns))?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let element = self.rows.start * columns + i;
                Err(ModelError::not_finite(checkpoint.dir(), name, element, values[i]))
            }
        }
    }

    /// Reads it in f32.
    pub fn read_float(&self, checkpoint: &Checkpoint) -> Result<FloatLinear, ModelError> {
        let weight = self.read_weight(checkpoint)?;
        let mut weight = Tensor::from_vec(weight, (self.outputs, self.inputs), &Device::Cpu)?;
        // Linears before the last one are read with many rows, too.
        if matches!(self.role, LinearRole::Classifier | LinearRole::TiedDecoder) {
            weight = as_in_file(checkpoint, &self.weight, weight)?;
        }
        self.with_weight(checkpoint, weight)
    }

    fn with_weight(&self, checkpoint: &Checkpoint, weight: Tensor) -> Result<FloatLinear, ModelError> {
        let bias = self.read_bias(checkpoint)?;
        Ok(FloatLinear::new(weight, bias, self.activation))
    }
}

/// A weight that is also an embedding table shares its memory, and what was rounded with it.
fn float_site(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    isa: Isa,
    site: SiteId,
    towers: &[TowerParts],
) -> Result<FloatSite, ModelError> {
    let read = |id: &LinearId| {
        let linear = &spec.linears[*id];
        let mut tables = spec.towers.iter().zip(towers);
        match tables.find_map(|(tower, parts)| parts.embedding.matrix(&tower.input, &linear.weight)) {
            Some(table) => linear.with_weight(checkpoint, table?),
            None => linear.read_float(checkpoint),
        }
    };
    Ok(FloatSite { isa, linears: spec.sites[site].consumers.iter().map(read).collect::<Result<_, _>>()? })
}
