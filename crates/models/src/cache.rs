//! What a sequence leaves behind for the tokens that follow: keys and values of every block.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use zeropoint_kernels::{AttentionScratch, CachedInput, HeadCache, Isa, KvPrecision, attend_cached};

use crate::ModelError;
use crate::attention::{Attention, QUERIES_PER_TASK, Rotate};
use crate::ops::rows_of;
use crate::positions::PositionTables;
use crate::spec::{AttentionSpec, ModelSpec, Positions, Reach, RotaryScaling, TextInput, Tower};

/// The keys and values of one sequence's tokens so far, for [`Model::extend`](crate::Model::extend).
pub struct KvCache {
    /// For each block, each head of keys and values.
    blocks: Vec<Vec<HeadCache>>,
    ids: Vec<u32>,
    tables: Arc<PositionTables>,
    precision: KvPrecision,
    max_tokens: usize,
    /// Lengths beyond which every key turns otherwise.
    turning_points: Vec<usize>,
}

impl KvCache {
    /// Of no token yet, for a model of that description; `precision` is that of the keys and values, and so of the products of
    /// attention.
    ///
    /// Fails where the model is no decoder: a token whose keys depend on later ones cannot be kept.
    pub fn new(spec: &ModelSpec, precision: KvPrecision) -> std::result::Result<Self, ModelError> {
        let (tower, input) = decoder(spec)?;
        let heads = |spec: &AttentionSpec| {
            (0..spec.kv_heads).map(|_| HeadCache::new(spec.head_dim, precision)).collect()
        };
        let mut turning_points: Vec<usize> = tower
            .blocks
            .iter()
            .filter_map(|block| match &block.attention.positions {
                Positions::Rotary(rotary) => match rotary.scaling {
                    RotaryScaling::Long { original, .. } => Some(original),
                    _ => None,
                },
                _ => None,
            })
            .collect();
        turning_points.dedup();
        Ok(Self {
            blocks: tower.blocks.iter().map(|block| heads(&block.attention)).collect(),
            ids: Vec::new(),
            tables: Arc::default(),
            precision,
            max_tokens: input.max_positions,
            turning_points,
        })
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// That of the keys and values.
    pub fn precision(&self) -> KvPrecision {
        self.precision
    }

    /// Tokens that it can hold.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().flatten().map(HeadCache::bytes).sum()
    }

    /// Forgets all tokens but the first so many.
    pub fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
        self.blocks.iter_mut().flatten().for_each(|head| head.truncate(tokens));
    }

    /// Each head of keys and values of a block. While a model runs, they hold its new tokens as far as it has come.
    pub fn block_mut(&mut self, block: usize) -> &mut [HeadCache] {
        &mut self.blocks[block]
    }

    /// Rotations for sequences of up to so many tokens.
    pub fn tables(&mut self, tower: &Tower, tokens: usize) -> Arc<PositionTables> {
        if self.tables.longest() < tokens {
            let longest = tokens.next_power_of_two().max(64).min(self.max_tokens.max(tokens));
            self.tables = Arc::new(PositionTables::new(tower, None, longest));
        }
        Arc::clone(&self.tables)
    }

    /// Whether with so many tokens the keys of those that it holds would have turned otherwise.
    pub(crate) fn turns_anew(&self, tokens: usize) -> bool {
        !self.is_empty() && self.turning_points.iter().any(|point| self.len() <= *point && tokens > *point)
    }

    pub(crate) fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
    }
}

/// The tower of a model that continues texts.
pub(crate) fn decoder(spec: &ModelSpec) -> std::result::Result<(&Tower, &TextInput), ModelError> {
    let causal = |tower: &Tower| {
        let reaches = tower.blocks.iter().map(|block| block.attention.reach);
        reaches.into_iter().all(|reach| matches!(reach, Reach::Causal | Reach::CausalWindow(_)))
    };
    spec.text().filter(|(tower, _)| causal(tower)).ok_or_else(|| ModelError::Sample {
        reason: format!("{} is no decoder: it reads texts as a whole", spec.architecture),
    })
}

/// The attention of tokens that follow those of a cache.
pub(crate) struct CachedAttention<'a> {
    isa: Isa,
    cache: &'a mut KvCache,
    tables: Arc<PositionTables>,
    /// The place of each new row, and the tokens up to the last.
    places: Vec<(usize, usize)>,
}

impl<'a> CachedAttention<'a> {
    /// Of so many new tokens.
    pub(crate) fn new(isa: Isa, tower: &Tower, cache: &'a mut KvCache, tokens: usize) -> Self {
        let (known, total) = (cache.len(), cache.len() + tokens);
        let tables = cache.tables(tower, total);
        Self { isa, cache, tables, places: (known..total).map(|place| (place, total)).collect() }
    }
}

impl Attention for CachedAttention<'_> {
    fn attend(
        &mut self,
        block: usize,
        spec: &AttentionSpec,
        [query, key, value]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let (query, key, value) = (query.contiguous()?, key.contiguous()?, value.contiguous()?);
        if let Positions::Rotary(rotary) = &spec.positions
            && let Some(rotation) = self.tables.rotation(rotary)
        {
            let rotate = Rotate { rotation, places: &self.places, head_dim: spec.head_dim };
            query.inplace_op1(&rotate)?;
            key.inplace_op1(&rotate)?;
        }
        let (first, tokens) = (self.cache.len(), self.places.len());
        let (head_dim, width, kv_width) = (spec.head_dim, spec.heads * spec.head_dim, key.dim(1)?);
        let heads = &mut self.cache.blocks[block];
        rows_of(&key, |key| {
            rows_of(&value, |value| {
                heads.par_iter_mut().enumerate().for_each(|(head, cache)| {
                    for token in 0..tokens {
                        let at = token * kv_width + head * head_dim..token * kv_width + (head + 1) * head_dim;
                        cache.append(&key[at.clone()], &value[at]);
                    }
                });
            })
        })??;
        let group = spec.heads / spec.kv_heads;
        let before = spec.reach.around().0;
        let mut out = vec![0f32; tokens * width];
        rows_of(&query, |query| {
            let input = |at: usize, queries, query_stride, together| CachedInput {
                query: &query[at..],
                queries,
                query_stride,
                together,
                scale: spec.scale,
                cap: spec.cap,
                before,
            };
            if tokens == 1 {
                // Heads that share keys read them together.
                let of_group = group * head_dim;
                out.par_chunks_mut(of_group).zip(&*heads).enumerate().for_each_init(
                    AttentionScratch::default,
                    |scratch, (i, (out, cache))| {
                        let input = input(i * of_group, first..first + 1, head_dim, group);
                        attend_cached(self.isa, &input, cache, scratch, out, head_dim);
                    },
                );
                return;
            }
            out.par_chunks_mut(QUERIES_PER_TASK * width).enumerate().for_each_init(
                AttentionScratch::default,
                |scratch, (i, out)| {
                    let start = i * QUERIES_PER_TASK;
                    let queries = first + start..first + start + out.len() / width;
                    for head in 0..spec.heads {
                        let input = input(start * width + head * head_dim, queries.clone(), width, 1);
                        let out = &mut out[head * head_dim..];
                        attend_cached(self.isa, &input, &heads[head / group], scratch, out, width);
                    }
                },
            );
        })?;
        Tensor::from_vec(out, (tokens, width), &Device::Cpu)
    }
}
