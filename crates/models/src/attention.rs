//! Self-attention over packed sequences.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;
use zeropoint_kernels::{Isa, softmax_rows};

use crate::ops::{ROWS_PER_TASK, contiguous_mut};
use crate::spec::{AttentionSpec, BlockSpec, Positions, Reach, RelativeBias};

/// Consecutive sequences of one length that attend in one task.
struct AttentionTask {
    start: usize,
    count: usize,
    length: usize,
}

/// Tokens of the short sequences that one attention task takes together; it depends on the batch alone. A sequence that is
/// longer is a task of its own, with all its scores at once: 4 bytes for each head and pair of its tokens.
const TOKENS_PER_TASK: usize = 64;

fn attention_tasks(offsets: &[usize]) -> Vec<AttentionTask> {
    let mut tasks: Vec<AttentionTask> = Vec::new();
    for range in offsets.windows(2).map(|pair| pair[0]..pair[1]) {
        match tasks.last_mut() {
            Some(task) if task.length == range.len() && (task.count + 1) * task.length <= TOKENS_PER_TASK => {
                task.count += 1;
            }
            _ => tasks.push(AttentionTask { start: range.start, count: 1, length: range.len() }),
        }
    }
    tasks
}

/// What the attention of every block of a forward shares.
pub(crate) struct AttentionContext {
    isa: Isa,
    tasks: Vec<AttentionTask>,
    /// For each base that occurs.
    rotations: Vec<(f32, Rotary)>,
    /// Of every length that occurs, by head and distance.
    biases: BTreeMap<usize, Vec<Vec<f32>>>,
}

impl AttentionContext {
    /// `offsets` are the first rows of the sequences, and the number of rows at the end.
    pub(crate) fn new(isa: Isa, offsets: &[usize], blocks: &[BlockSpec], bias: Option<&BiasTable>) -> Self {
        let tasks = attention_tasks(offsets);
        let positions: Vec<usize> = offsets.windows(2).flat_map(|pair| 0..pair[1] - pair[0]).collect();
        let mut rotations: Vec<(f32, Rotary)> = Vec::new();
        for spec in blocks.iter().map(|block| &block.attention) {
            if let Positions::Rotary { theta } = spec.positions
                && rotations.iter().all(|(known, _)| *known != theta)
            {
                rotations.push((theta, Rotary::new(theta, spec.head_dim, &positions)));
            }
        }
        let of_length = |task: &AttentionTask| Some((task.length, bias?.by_distance(task.length)));
        let biases = tasks.iter().filter_map(of_length).collect();
        Self { isa, tasks, rotations, biases }
    }

    /// Scaled dot-product attention within each sequence; `[tokens, heads * head_dim]` in and out.
    pub(crate) fn attend(
        &self,
        spec: &AttentionSpec,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        // In the memory of the projections, which nothing else reads: parts of a fused one do not overlap.
        let (query, key) = (query.contiguous()?, key.contiguous()?);
        if let Positions::Rotary { theta } = spec.positions
            && let Some((_, rotary)) = self.rotations.iter().find(|(known, _)| *known == theta)
        {
            query.inplace_op1(rotary)?;
            key.inplace_op1(rotary)?;
        }
        let attend_task = |task: &AttentionTask| -> Result<Tensor> {
            let heads_first = |x: &Tensor| {
                x.narrow(0, task.start, task.count * task.length)?
                    .reshape((task.count, task.length, spec.heads, spec.head_dim))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let scores = heads_first(&query)?.matmul(&heads_first(&key)?.t()?)?;
            let bias = self.biases.get(&task.length).filter(|_| spec.positions == Positions::RelativeBias);
            scores.inplace_op1(&Softmax { isa: self.isa, scale: spec.scale, reach: spec.reach, bias })?;
            scores
                .matmul(&heads_first(value)?)?
                .transpose(1, 2)?
                .reshape((task.count * task.length, spec.heads * spec.head_dim))
        };
        let parts = self.tasks.par_iter().map(attend_task).collect::<Result<Vec<_>>>()?;
        debug_assert!(parts.iter().all(|part| part.dtype() == DType::F32));
        Tensor::cat(&parts, 0)
    }
}

/// `softmax(scale * scores + bias)` over the last dimension of `[sequences, heads, length, length]`, in place; what a
/// token does not reach gets 0.
struct Softmax<'a> {
    isa: Isa,
    scale: f32,
    reach: Reach,
    /// For each head the bias of the distances `-(length - 1)..length`.
    bias: Option<&'a Vec<Vec<f32>>>,
}

impl InplaceOp1 for Softmax<'_> {
    fn name(&self) -> &'static str {
        "attention-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, heads, length, _) = layout.shape().dims4()?;
        let scores = contiguous_mut(storage, layout)?;
        if self.reach == Reach::Full && self.bias.is_none() {
            softmax_rows(self.isa, scores, length, self.scale);
            return Ok(());
        }
        for (row, scores) in scores.chunks_exact_mut(length).enumerate() {
            let (head, query) = (row / length % heads, row % length);
            if let Some(bias) = self.bias {
                // The bias of key j stands at distance j - query.
                let from = length - 1 - query;
                let bias = &bias[head][from..from + length];
                scores.iter_mut().zip(bias).for_each(|(score, bias)| *score = *score * self.scale + bias);
            }
            match self.reach {
                Reach::Full => {}
                Reach::Window(width) => {
                    scores[..query.saturating_sub(width)].fill(f32::NEG_INFINITY);
                    scores[(query + width + 1).min(length)..].fill(f32::NEG_INFINITY);
                }
                Reach::Causal => scores[query + 1..].fill(f32::NEG_INFINITY),
            }
        }
        softmax_rows(self.isa, scores, length, if self.bias.is_some() { 1.0 } else { self.scale });
        Ok(())
    }
}

/// The values of a [`RelativeBias`].
pub(crate) struct BiasTable {
    spec: RelativeBias,
    heads: usize,
    /// `[buckets, heads]`.
    values: Vec<f32>,
}

impl BiasTable {
    pub(crate) fn new(spec: RelativeBias, heads: usize, values: Vec<f32>) -> Self {
        Self { spec, heads, values }
    }

    /// For each head the bias of the distances `-(length - 1)..length`, key minus query.
    fn by_distance(&self, length: usize) -> Vec<Vec<f32>> {
        let buckets: Vec<usize> =
            (0..2 * length - 1).map(|i| self.spec.bucket(i as i64 - (length as i64 - 1))).collect();
        let of_head = |head| buckets.iter().map(|bucket| self.values[bucket * self.heads + head]).collect();
        (0..self.heads).map(of_head).collect()
    }
}

impl RelativeBias {
    /// The bucket of a distance, key minus query: exact up to a quarter of the buckets, then logarithmic up to
    /// `max_distance`; the upper half of the buckets is for keys that come later.
    pub(crate) fn bucket(&self, distance: i64) -> usize {
        let half = self.buckets / 2;
        let exact = half / 2;
        let side = if distance > 0 { half } else { 0 };
        let far = distance.unsigned_abs() as usize;
        if far < exact {
            return side + far;
        }
        // In f32 as the reference computes it, since the quotient is cut to a whole number.
        let octaves = (far as f32 / exact as f32).ln() / (self.max_distance as f32 / exact as f32).ln();
        side + (exact + (octaves * (half - exact) as f32) as usize).min(half - 1)
    }
}

/// Cosines and sines of every token's angles.
struct Rotary {
    half: usize,
    /// `[tokens, head_dim / 2]`, cosine and sine.
    turns: Vec<(f32, f32)>,
}

impl Rotary {
    fn new(theta: f32, head_dim: usize, positions: &[usize]) -> Self {
        let half = head_dim / 2;
        // In f32 as the reference computes them: far positions turn by the rounded frequency's multiple.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect();
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let table: Vec<(f32, f32)> = (0..longest)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
            .map(|angle| (angle.cos(), angle.sin()))
            .collect();
        let turns = positions.iter().flat_map(|p| &table[p * half..(p + 1) * half]).copied().collect();
        Self { half, turns }
    }
}

impl InplaceOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, columns) = layout.shape().dims2()?;
        let x = contiguous_mut(storage, layout)?;
        let task = ROWS_PER_TASK;
        let turns = self.turns.par_chunks(self.half * task);
        x.par_chunks_mut(columns * task).zip(turns).for_each(|(x, turns)| {
            for (row, turns) in x.chunks_exact_mut(columns).zip(turns.chunks_exact(self.half)) {
                for head in row.chunks_exact_mut(2 * self.half) {
                    let (low, high) = head.split_at_mut(self.half);
                    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
        Ok(())
    }
}

/// Parts of outputs that fused Linears gave, by consumer.
pub(crate) fn part(
    outputs: &BTreeMap<usize, Tensor>,
    projection: &crate::spec::Projection,
) -> Result<Tensor> {
    let Some(whole) = outputs.get(&projection.linear) else {
        candle_core::bail!("Linear {} does not read the site of its projection", projection.linear)
    };
    if projection.outputs == (0..whole.dim(1)?) {
        return Ok(whole.clone());
    }
    whole.narrow(1, projection.outputs.start, projection.outputs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mpnet() -> RelativeBias {
        RelativeBias { tensor: String::new(), buckets: 32, max_distance: 128 }
    }

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        let bias = mpnet();
        for (distance, bucket) in [
            (0, 0),
            (-1, 1),
            (-7, 7),
            (-8, 8),
            (-11, 8),
            (-12, 9),
            (-16, 10),
            (-127, 15),
            (-128, 15),
            (-5000, 15),
            (1, 17),
            (7, 23),
            (8, 24),
            (90, 30),
            (91, 31),
            (5000, 31),
        ] {
            assert_eq!(bias.bucket(distance), bucket, "{distance}");
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_depends_on_the_difference_of_positions_alone() {
        let device = candle_core::Device::Cpu;
        let x: Vec<f32> = (0..8).map(|i| (i as f32 * 0.7).sin()).collect();
        let y: Vec<f32> = (0..8).map(|i| (i as f32 * 1.3).cos()).collect();
        let turned = |v: &[f32], position: usize| -> Vec<f32> {
            let rotary = Rotary::new(10_000.0, 4, &[position]);
            let tensor = Tensor::from_slice(v, (1, 8), &device).unwrap();
            tensor.inplace_op1(&rotary).unwrap();
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(turned(&x, 0), x);
        assert!((dot(&turned(&x, 9), &turned(&x, 9)) - dot(&x, &x)).abs() < 1e-5);
        let far = dot(&turned(&x, 105), &turned(&y, 102));
        assert!((dot(&turned(&x, 3), &y) - far).abs() < 1e-4);
        assert!((dot(&turned(&x, 4), &y) - far).abs() > 1e-2);
    }
}
