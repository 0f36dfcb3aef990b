//! Self-attention over packed sequences.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;
use zeropoint_kernels::{AttentionPrecision, AttentionScratch, HeadInput, Isa, attend};

use crate::ops::{ROWS_PER_TASK, contiguous_mut, rows_of};
use crate::positions::{PositionTables, Rotation};
use crate::spec::{AttentionSpec, Positions, Reach};

/// Queries of one sequence whose output one task computes. Fixed, so that the split never depends on the number of threads.
pub(crate) const QUERIES_PER_TASK: usize = 64;

/// The attention of the rows of a forward, block by block.
pub(crate) trait Attention {
    /// Scaled dot-product attention: queries `[rows, heads * head_dim]`, keys and values `[rows, kv_heads * head_dim]`; as the
    /// queries out. Queries and keys are turned in place.
    fn attend(&mut self, block: usize, spec: &AttentionSpec, projections: [&Tensor; 3]) -> Result<Tensor>;
}

/// Some rows of one sequence.
struct AttentionTask {
    sequence: Range<usize>,
    /// Counted from the sequence's first.
    queries: Range<usize>,
}

fn attention_tasks(offsets: &[usize]) -> Vec<AttentionTask> {
    let of_sequence = |sequence: Range<usize>| {
        let tokens = sequence.len();
        (0..tokens).step_by(QUERIES_PER_TASK).map(move |start| AttentionTask {
            sequence: sequence.clone(),
            queries: start..tokens.min(start + QUERIES_PER_TASK),
        })
    };
    offsets.windows(2).flat_map(|pair| of_sequence(pair[0]..pair[1])).collect()
}

/// The attention within whole sequences.
pub(crate) struct AttentionContext<'a> {
    isa: Isa,
    precision: AttentionPrecision,
    tasks: Vec<AttentionTask>,
    /// The place of each row in its sequence, and the sequence's tokens.
    places: Vec<(usize, usize)>,
    tables: &'a PositionTables,
}

impl<'a> AttentionContext<'a> {
    /// `offsets` are the first rows of the sequences, and the number of rows at the end; `tables` reach to the longest.
    pub(crate) fn new(
        isa: Isa,
        precision: AttentionPrecision,
        offsets: &[usize],
        tables: &'a PositionTables,
    ) -> Self {
        let places = offsets.windows(2).flat_map(|pair| {
            let tokens = pair[1] - pair[0];
            (0..tokens).map(move |place| (place, tokens))
        });
        let places = places.collect();
        Self { isa, precision, tasks: attention_tasks(offsets), places, tables }
    }

    fn run(
        &self,
        spec: &AttentionSpec,
        [query, key, value]: [&[f32]; 3],
        [width, kv_width]: [usize; 2],
        out: &mut [f32],
    ) {
        let mut parts = Vec::with_capacity(self.tasks.len());
        let mut rest = out;
        for task in &self.tasks {
            let (part, behind) = rest.split_at_mut(task.queries.len() * width);
            parts.push((task, part));
            rest = behind;
        }
        parts.into_par_iter().for_each_init(AttentionScratch::default, |scratch, (task, out)| {
            let (start, tokens) = (task.sequence.start, task.sequence.len());
            let (before, after) = spec.reach.around();
            for head in 0..spec.heads {
                let shared = head / (spec.heads / spec.kv_heads) * spec.head_dim;
                let input = HeadInput {
                    query: &query[(start + task.queries.start) * width + head * spec.head_dim..],
                    key: &key[start * kv_width + shared..],
                    value: &value[start * kv_width + shared..],
                    queries: task.queries.clone(),
                    query_stride: width,
                    kv_stride: kv_width,
                    tokens,
                    head_dim: spec.head_dim,
                    scale: spec.scale,
                    cap: spec.cap,
                    before,
                    after,
                    bias: self.tables.bias(&spec.positions, head, tokens),
                    precision: self.precision,
                };
                attend(self.isa, &input, scratch, &mut out[head * spec.head_dim..], width);
            }
        });
    }
}

impl Attention for AttentionContext<'_> {
    fn attend(
        &mut self,
        _: usize,
        spec: &AttentionSpec,
        [query, key, value]: [&Tensor; 3],
    ) -> Result<Tensor> {
        // In the memory of the projections, which nothing else reads: parts of a fused one do not overlap.
        let (query, key) = (query.contiguous()?, key.contiguous()?);
        if let Positions::Rotary(rotary) = &spec.positions
            && let Some(rotation) = self.tables.rotation(rotary)
        {
            let rotate = Rotate { rotation, places: &self.places, head_dim: spec.head_dim };
            query.inplace_op1(&rotate)?;
            key.inplace_op1(&rotate)?;
        }
        let ((rows, width), kv_width) = (query.dims2()?, key.dim(1)?);
        let mut out = vec![0f32; rows * width];
        let value = value.contiguous()?;
        rows_of(&query, |query| {
            rows_of(&key, |key| {
                rows_of(&value, |value| self.run(spec, [query, key, value], [width, kv_width], &mut out))
            })
        })???;
        Tensor::from_vec(out, (rows, width), &Device::Cpu)
    }
}

impl Reach {
    /// How many tokens before and after its own a token attends to.
    pub fn around(self) -> (usize, usize) {
        match self {
            Self::Full => (usize::MAX, usize::MAX),
            Self::Window(width) => (width, width),
            Self::Causal => (usize::MAX, 0),
            Self::CausalWindow(width) => (width, 0),
        }
    }
}

/// Turns queries or keys, `[tokens, heads * head_dim]`, by their places.
pub(crate) struct Rotate<'a> {
    pub(crate) rotation: &'a Rotation,
    /// The place of each row in its sequence, and the sequence's tokens.
    pub(crate) places: &'a [(usize, usize)],
    pub(crate) head_dim: usize,
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, columns) = layout.shape().dims2()?;
        let x = contiguous_mut(storage, layout)?;
        x.par_chunks_mut(columns * ROWS_PER_TASK).zip(self.places.par_chunks(ROWS_PER_TASK)).for_each(
            |(x, places)| {
                for (row, (place, tokens)) in x.chunks_exact_mut(columns).zip(places) {
                    self.rotation.turn(*place, *tokens, row, self.head_dim);
                }
            },
        );
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
    if let Some(stride) = projection.stride {
        let (rows, columns) = whole.dims2()?;
        let heads = projection.outputs.len().div_ceil(stride);
        let width = projection.outputs.len() - (heads - 1) * stride;
        let first = projection.outputs.start;
        let heads =
            whole.reshape((rows, columns / stride, stride))?.narrow(2, first, width)?.narrow(1, 0, heads)?;
        return heads.contiguous()?.reshape((rows, ()));
    }
    if projection.outputs == (0..whole.dim(1)?) {
        return Ok(whole.clone());
    }
    whole.narrow(1, projection.outputs.start, projection.outputs.len())
}
