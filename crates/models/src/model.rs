//! The forward pass, written once over the description.

mod pass;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use zeropoint_formats::Checkpoint;
use zeropoint_kernels::{AttentionPrecision, ChannelRotation, Isa, KvPrecision};

use crate::ModelError;
use crate::awake::awake;
use crate::batch::PackedBatch;
use crate::cache::{KvCache, decoder};
use crate::embed::Embedding;
use crate::ops::Norm;
use crate::output::Head;
use crate::parts::{Part, State};
use crate::positions::BiasTable;
use crate::read::{check_copies, read_finite};
use crate::sites::{FloatSite, SiteOp};
use crate::source::ModelDirectory;
use crate::spec::{BlockSpec, InputSpec, LinearId, ModelSpec, NormSpec, Site, SiteId, Tower};
use crate::tables::Tables;

pub(crate) use pass::Pass;

/// What the products of attention multiply in a model with INT8 Linears, whether it runs in integers or simulates them: its
/// queries, keys and values come from INT8 products, and a bfloat16 number has as many bits.
pub const INT8_ATTENTION: AttentionPrecision = AttentionPrecision::Bf16;

/// Watches the activations of a forward pass.
pub trait SiteSink {
    /// Called with every site's activation before its Linears run: contiguous `[rows, channels]`, every row a real
    /// token. An error ends the forward pass.
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String>;

    /// As [`SiteSink::observe`], at a site of an expert: the activation that all rows would have there, of which the router
    /// sends `routed`.
    fn observe_expert(
        &mut self,
        site: SiteId,
        values: &[f32],
        channels: usize,
        routed: usize,
    ) -> Result<(), String> {
        let _ = routed;
        self.observe(site, values, channels)
    }
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

/// The float parts of a tower, as far as they are loaded.
struct TowerParts {
    embedding: Option<Embedding>,
    /// By the index of the block.
    norms: BTreeMap<usize, BlockNorms>,
    final_norm: Option<Norm>,
    bias: Option<BiasTable>,
    head: Option<Head>,
    runner: Option<Box<dyn BlockRunner>>,
}

/// A model that runs, or a [`Part`] of one: its description, its float parts, and an operator for each site.
pub struct Model {
    spec: ModelSpec,
    isa: Isa,
    part: Part,
    towers: Vec<TowerParts>,
    /// `None` where the part has no use for it.
    sites: Vec<Option<Box<dyn SiteOp>>>,
    /// By the site.
    rotations: Vec<Option<Arc<ChannelRotation>>>,
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
        Self::load_part(spec, checkpoint, Part::Whole, factory, tables)
    }

    /// As [`Model::load_with`], a part of the model only. What else a model does fails with it, but for
    /// [`Model::advance`], [`Model::observe`] and [`Model::run_site`].
    pub fn load_part(
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        part: Part,
        factory: &mut SiteOpFactory<'_>,
        tables: Tables<'_>,
    ) -> Result<Self, ModelError> {
        let isa = Isa::active()?;
        let towers = (0..spec.towers.len())
            .map(|i| TowerParts::load(spec, i, checkpoint, isa, part, tables))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let wanted = part.sites(spec);
        let sites = (0..spec.sites.len())
            .map(|site| {
                if !wanted.contains(&site) {
                    return Ok(None);
                }
                Ok(Some(match factory(site)? {
                    Some(op) => op,
                    None => Box::new(float_site(spec, checkpoint, isa, site, &towers, tables)?),
                }))
            })
            .collect::<Result<_, ModelError>>()?;
        let rotation = |(site, spec): (SiteId, &Site)| {
            if wanted.contains(&site) { spec.read_rotation(checkpoint) } else { Ok(None) }
        };
        let rotations = spec.sites.iter().enumerate().map(rotation).collect::<Result<_, ModelError>>()?;
        let logit_scale =
            spec.logit_scale.as_deref().map(|name| read_finite(checkpoint, name)).transpose()?;
        let logit_scale = logit_scale.and_then(|values| values.first().map(|value| value.exp()));
        let attention = AttentionPrecision::F32;
        Ok(Self { spec: spec.clone(), isa, part, towers, sites, rotations, logit_scale, attention })
    }

    /// What of the model is loaded.
    pub fn part(&self) -> Part {
        self.part
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

    pub(crate) fn embedding(&self, tower: usize) -> Result<&Embedding, ModelError> {
        loaded(self.towers[tower].embedding.as_ref(), "input")
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
        let run =
            |cache: &mut KvCache| Pass::new(self, &mut None).extend(tower, parts, ids, cache, rows, fused);
        let result = if ids.len() == 1 { awake(|| run(cache)) } else { run(cache) };
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
        let (tower, parts) = self.tower(batch)?;
        let hidden = Pass::new(self, &mut None).encode(tower, parts, batch, State::Begin, true)?;
        hidden.into_tensor(tower.hidden)
    }

    /// What rotates the activation of a site that is loaded before its Linears read it.
    pub fn rotation(&self, site: SiteId) -> Option<&Arc<ChannelRotation>> {
        self.rotations[site].as_ref()
    }

    /// The outputs of one site's Linears for an activation `[rows, channels]`, rotated already where the site rotates it.
    pub fn run_site(&self, site: SiteId, input: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        Ok(self.site(site)?.forward(input)?)
    }

    fn site(&self, site: SiteId) -> Result<&dyn SiteOp, ModelError> {
        loaded(self.sites[site].as_deref(), &self.spec.sites[site].id)
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
        match self.step(batch, State::Begin, Pass::new(self, sink), fused)? {
            State::Done(outputs) => Ok(outputs),
            State::Begin | State::Hidden(_) => Err(misplaced(self.part)),
        }
    }

    /// Takes a batch through what is loaded. A pass that only observes has no output: it ends before the last Linears.
    pub(crate) fn step(
        &self,
        batch: &PackedBatch,
        state: State,
        mut pass: Pass<'_, '_>,
        fused: bool,
    ) -> Result<State, ModelError> {
        let (tower, parts) = self.tower(batch)?;
        let hidden = pass.encode(tower, parts, batch, state, fused)?;
        if !self.part.has_output() {
            return Ok(State::Hidden(hidden));
        }
        let offsets = hidden.offsets.clone();
        let hidden = hidden.into_tensor(tower.hidden)?;
        let head = loaded(parts.head.as_ref(), "output")?;
        Ok(State::Done(head.run(&tower.head, &mut pass, &hidden, &offsets, batch)?))
    }
}

/// What a part must have.
fn loaded<T>(part: Option<T>, what: &str) -> Result<T, ModelError> {
    part.ok_or_else(|| ModelError::Sample { reason: format!("{what}: this part of the model is not loaded") })
}

fn misplaced(part: Part) -> ModelError {
    ModelError::Sample { reason: format!("{part} of the model was to be run out of its order") }
}

impl TowerParts {
    fn load(
        spec: &ModelSpec,
        index: usize,
        checkpoint: &Checkpoint,
        isa: Isa,
        part: Part,
        tables: Tables<'_>,
    ) -> Result<Self, ModelError> {
        let tower = &spec.towers[index];
        let norms =
            part.blocks(tower).map(|block| Ok((block, tower.blocks[block].read_norms(checkpoint, isa)?)));
        let norms: BTreeMap<usize, BlockNorms> = norms.collect::<Result<_, ModelError>>()?;
        let bias = tower.relative_bias.as_ref().filter(|_| !norms.is_empty());
        let embedding = part.has_input().then(|| Embedding::load(tower, index, checkpoint, isa, tables));
        let final_norm = tower.final_norm.as_ref().filter(|_| part.has_output());
        let head = part.has_output().then(|| Head::load(&tower.head, checkpoint, isa));
        Ok(Self {
            embedding: embedding.transpose()?,
            norms,
            final_norm: final_norm.map(|norm| norm.read(checkpoint, isa)).transpose()?,
            bias: bias.map(|bias| BiasTable::read(bias, checkpoint)).transpose()?,
            head: head.transpose()?,
            runner: None,
        })
    }
}

/// A weight that is also an embedding table shares its memory where that is loaded, and is rounded as that is.
fn float_site(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    isa: Isa,
    site: SiteId,
    towers: &[TowerParts],
    tables: Tables<'_>,
) -> Result<FloatSite, ModelError> {
    let read = |id: &LinearId| {
        let linear = &spec.linears[*id];
        let inputs = spec.towers.iter().map(|tower| &tower.input);
        let mut embeddings =
            inputs.zip(towers).filter_map(|(input, parts)| Some((input, parts.embedding.as_ref()?)));
        if let Some(table) = embeddings.find_map(|(input, embedding)| embedding.matrix(input, &linear.weight))
        {
            return linear.with_weight(checkpoint, table?);
        }
        match spec.tables().find(|table| table.tensor == linear.weight) {
            Some(table) => linear.with_weight(checkpoint, tables.read(checkpoint, table)?.matrix(table)?),
            None => linear.read_float(checkpoint),
        }
    };
    Ok(FloatSite { isa, linears: spec.sites[site].consumers.iter().map(read).collect::<Result<_, _>>()? })
}
