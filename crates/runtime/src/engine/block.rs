//! One block over some rows.

mod stage;

use std::ops::Range;

use rayon::prelude::*;
use zeropoint_core::Symmetry;
use zeropoint_kernels::{
    AttentionScratch, CachedInput, HeadCache, HeadInput, Isa, NonFinite, attend, attend_cached,
    quantize_measured,
};
use zeropoint_models::{
    ActivationFn, ActivationQuantizer, BlockNorms, BlockSpec, FeedForward, INT8_ATTENTION, ModelSpec, Norm,
    NormPlacement, Positions, Projection, SiteId, apply_gate,
};

use super::arena::{Work, room_for_params};
use super::{Batch, ROWS, Sites};
use crate::site::{params_of, quantize_rows};

use stage::{Output, Stage};

/// Rows that go from one operation to the next while they are in the first cache.
const HOT_ROWS: usize = 8;

/// Multiplications of integers that take as long as one of attention, with its share of the exponentials.
const PAIRED_PRODUCT: usize = 4;

/// Tokens times channels of queries up to which one thread attends to a cache faster than several share it.
const ALONE: usize = 1 << 16;

/// Rows of a batch, counted from its first.
pub(super) struct Rows<'a> {
    pub(super) isa: Isa,
    pub(super) batch: &'a Batch<'a>,
    pub(super) span: Range<usize>,
    /// Whether the products are split over threads by their outputs: rows are too few to be.
    pub(super) split: bool,
}

pub(super) struct Block {
    placement: NormPlacement,
    attention: Attention,
    attention_norm: Option<Norm>,
    mlp: Mlp,
    mlp_norm: Norm,
}

/// The heads of a projection among the outputs of a stage.
#[derive(Clone, Copy)]
struct Heads {
    /// The first column.
    column: usize,
    /// Columns from one head's first to the next one's.
    stride: usize,
    /// From the first column to the last.
    span: usize,
}

struct Attention {
    input: Stage,
    heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    cap: Option<f32>,
    /// Tokens before and after its own that a token attends to.
    around: (usize, usize),
    positions: Positions,
    /// Norms of each head's queries and keys.
    head_norms: [Option<Norm>; 2],
    /// Where query, key and value stand among the outputs of `input`.
    heads_of: [Heads; 3],
    output: Output,
}

struct Mlp {
    input: Stage,
    up: Range<usize>,
    gate: Option<(Range<usize>, ActivationFn)>,
    down: Output,
}

impl Block {
    /// `None` where a Linear is not integer, where those of one activation want it quantised in different ways, and where the
    /// feed-forward half is a mixture of experts.
    pub(super) fn new(
        spec: &BlockSpec,
        norms: BlockNorms,
        model: &ModelSpec,
        sites: Sites<'_>,
    ) -> Option<Self> {
        let stage = |site: SiteId| Stage::new(sites, site, &model.sites[site].consumers);
        let (attention, FeedForward::Dense(mlp)) = (&spec.attention, &spec.mlp) else { return None };
        let input = stage(attention.input)?;
        let heads_of = |projection: &Projection| {
            let columns = input.columns(projection)?;
            let stride = projection.stride.unwrap_or(attention.head_dim);
            Some(Heads { column: columns.start, stride, span: columns.len() })
        };
        let heads_of = [heads_of(&attention.query)?, heads_of(&attention.key)?, heads_of(&attention.value)?];
        let attention = Attention {
            heads_of,
            input,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            scale: attention.scale,
            cap: attention.cap,
            around: attention.reach.around(),
            positions: attention.positions.clone(),
            head_norms: [norms.query, norms.key],
            output: Output::new(stage(attention.context)?, norms.attention_output)?,
        };
        let input = stage(mlp.input)?;
        let gate = match &mlp.gate {
            None => None,
            Some(gate) => Some((input.columns(&gate.projection)?, gate.activation)),
        };
        let down = Output::new(stage(mlp.inner)?, norms.mlp_output)?;
        let mlp = Mlp { up: input.columns(&mlp.up)?, gate, input, down };
        let (attention_norm, mlp_norm) = (norms.attention, norms.mlp);
        Some(Self { placement: spec.placement, attention, attention_norm, mlp, mlp_norm })
    }

    /// Values of a token's queries, keys and values.
    pub(super) fn projection_width(&self) -> usize {
        self.attention.input.width
    }

    /// What a row costs, what it costs more for each token that it attends to, in multiplications of the integer product, and the
    /// tokens before its own that it attends to at most.
    pub(super) fn work(&self) -> (usize, usize, usize) {
        let Attention { input, output, heads, head_dim, around, .. } = &self.attention;
        let products = |inputs: usize, outputs: usize| inputs * outputs;
        let of_row = products(input.inputs, input.width)
            + products(output.linear.inputs(), output.linear.outputs())
            + products(self.mlp.input.inputs, self.mlp.input.width)
            + products(self.mlp.down.linear.inputs(), self.mlp.down.linear.outputs());
        (of_row, 2 * heads * head_dim * PAIRED_PRODUCT, around.0)
    }

    fn hidden(&self) -> usize {
        self.mlp_norm.gain.len()
    }

    /// Queries, keys and values of the stream `x`, `[rows, hidden]`, before the first block.
    pub(super) fn begin(
        &self,
        rows: &Rows<'_>,
        x: &mut [f32],
        work: &mut Work,
        out: &mut [f32],
    ) -> Result<(), NonFinite> {
        let (hidden, width) = (self.hidden(), self.projection_width());
        for part in rows.parts() {
            let count = part.len();
            self.attention_input().settle(
                rows.isa,
                &mut x[part.start * hidden..part.end * hidden],
                hidden,
                None,
                work,
            )?;
            self.project(&rows.part(&part), work, &mut out[part.start * width..][..count * width]);
        }
        Ok(())
    }

    /// The block's output in the place of its input `x`, and the next block's queries, keys and values in `out`.
    /// `projections` are this block's, of all rows of the batch; a cache holds their keys and values behind those of the tokens
    /// before.
    pub(super) fn run(
        &self,
        rows: &Rows<'_>,
        x: &mut [f32],
        (projections, cache): (&[f32], Option<&[HeadCache]>),
        next: Option<&Self>,
        work: &mut Work,
        out: &mut [f32],
    ) -> Result<(), NonFinite> {
        let hidden = self.hidden();
        for part in rows.parts() {
            let x = &mut x[part.start * hidden..part.end * hidden];
            let here = rows.part(&part);
            if self.placement == NormPlacement::Parallel {
                // Both halves read the same stream: of the attention half, the projections have done so.
                self.mlp_input().settle(rows.isa, x, hidden, None, work)?;
                self.feed_forward(&here, work, x)?;
                self.attend(&here, (projections, cache), work, x)?;
            } else {
                self.attend(&here, (projections, cache), work, x)?;
                let after = self.after(self.attention_norm.as_ref());
                self.mlp_input().settle(rows.isa, x, hidden, after, work)?;
                self.feed_forward(&here, work, x)?;
            }
            let after = self.after(Some(&self.mlp_norm));
            match next {
                Some(next) => {
                    let width = next.projection_width();
                    next.attention_input().settle(rows.isa, x, hidden, after, work)?;
                    next.project(&here, work, &mut out[part.start * width..part.end * width]);
                }
                None => Input::NONE.settle(rows.isa, x, hidden, after, work)?,
            }
        }
        Ok(())
    }

    /// What normalises the stream after a half.
    fn after<'a>(&self, norm: Option<&'a Norm>) -> Option<&'a Norm> {
        norm.filter(|_| self.placement == NormPlacement::Post)
    }

    fn attention_input(&self) -> Input<'_> {
        let norm = self.attention_norm.as_ref().filter(|_| self.placement != NormPlacement::Post);
        Input { norm, stage: Some(&self.attention.input) }
    }

    fn mlp_input(&self) -> Input<'_> {
        let norm = (self.placement != NormPlacement::Post).then_some(&self.mlp_norm);
        Input { norm, stage: Some(&self.mlp.input) }
    }

    /// Queries, keys and values of the rows whose input stands in `work`, queries and keys normalised and turned to their
    /// places.
    fn project(&self, rows: &Rows<'_>, work: &Work, out: &mut [f32]) {
        let attention = &self.attention;
        let count = rows.span.len();
        attention.input.run(count, &work.quantized, &work.params, out, rows.split);
        let rotation = match &attention.positions {
            Positions::Rotary(rotary) => rows.batch.tables.rotation(rotary),
            _ => None,
        };
        if rotation.is_none() && attention.head_norms.iter().all(Option::is_none) {
            return;
        }
        for (sequence, asked) in rows.batch.sequences(&rows.span) {
            for row in asked {
                let at = (row - rows.span.start) * attention.input.width;
                for (heads, norm) in attention.heads_of.iter().zip(&attention.head_norms) {
                    let values = &mut out[at + heads.column..][..heads.span];
                    if let Some(norm) = norm {
                        values
                            .chunks_mut(heads.stride)
                            .for_each(|head| norm.apply(&mut head[..attention.head_dim]));
                    }
                    if let Some(rotation) = rotation {
                        let known = rows.batch.known;
                        let (place, tokens) = (known + row - sequence.start, known + sequence.len());
                        rotation.turn(place, tokens, values, heads.stride);
                    }
                }
            }
        }
    }

    /// Adds the output of the attention half to the rows' stream `x`.
    fn attend(
        &self,
        rows: &Rows<'_>,
        (projections, cache): (&[f32], Option<&[HeadCache]>),
        work: &mut Work,
        x: &mut [f32],
    ) -> Result<(), NonFinite> {
        let Attention {
            heads,
            kv_heads,
            head_dim,
            scale,
            cap,
            around,
            positions,
            heads_of,
            input,
            output,
            ..
        } = &self.attention;
        let (count, width, stride) = (rows.span.len(), heads * head_dim, input.width);
        let context = work.context.room(count * width);
        if let Some(cache) = cache {
            self.attend_cached(rows, projections, cache, context, &mut work.attention);
        }
        for (sequence, asked) in rows.batch.sequences(&rows.span).filter(|_| cache.is_none()) {
            let tokens = sequence.len();
            let queries = asked.start - sequence.start..asked.end - sequence.start;
            for head in 0..*heads {
                let from = |row: usize, heads: Heads, head: usize| {
                    &projections[row * stride + heads.column + head * heads.stride..]
                };
                let shared = head / (heads / kv_heads);
                let input = HeadInput {
                    query: from(asked.start, heads_of[0], head),
                    key: from(sequence.start, heads_of[1], shared),
                    value: from(sequence.start, heads_of[2], shared),
                    queries: queries.clone(),
                    query_stride: stride,
                    kv_stride: stride,
                    tokens,
                    head_dim: *head_dim,
                    scale: *scale,
                    cap: *cap,
                    before: around.0,
                    after: around.1,
                    bias: rows.batch.tables.bias(positions, head, tokens),
                    precision: INT8_ATTENTION,
                };
                let out = &mut context[(asked.start - rows.span.start) * width + head * head_dim..];
                attend(rows.isa, &input, &mut work.attention, out, width);
            }
        }
        if let Some(rotation) = &output.rotation {
            rotation.apply(rows.isa, context);
        }
        let quantized = work.quantized.room(count * width);
        let params = room_for_params(&mut work.params, count);
        quantize_rows(rows.isa, output.quantizer, context, width, quantized, params)?;
        output.add(rows.isa, quantized, params, &mut work.normed, x, rows.split);
        Ok(())
    }

    /// Adds keys and values of rows, whose projections they are, to a cache.
    pub(super) fn remember(&self, projections: &[f32], cache: &mut [HeadCache]) {
        let Attention { heads_of: [_, keys, values], head_dim, input, .. } = &self.attention;
        let remember = |(head, cache): (usize, &mut HeadCache)| {
            for row in projections.chunks_exact(input.width) {
                let of = |heads: &Heads| &row[heads.column + head * heads.stride..][..*head_dim];
                cache.append(of(keys), of(values));
            }
        };
        if projections.len() > input.width {
            cache.par_iter_mut().enumerate().for_each(remember);
        } else {
            cache.iter_mut().enumerate().for_each(remember);
        }
    }

    /// The heads' outputs of rows whose keys and values a cache holds, those of the tokens before them too.
    fn attend_cached(
        &self,
        rows: &Rows<'_>,
        projections: &[f32],
        cache: &[HeadCache],
        context: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        let Attention {
            heads, kv_heads, head_dim, scale, cap, around, heads_of: [queries, ..], input, ..
        } = &self.attention;
        let (group, width) = (heads / kv_heads, heads * head_dim);
        let known = rows.batch.known;
        let asked = |head: usize, query_stride: usize, together: usize| CachedInput {
            query: &projections[rows.span.start * input.width + queries.column + head * queries.stride..],
            queries: known + rows.span.start..known + rows.span.end,
            query_stride,
            together,
            scale: *scale,
            cap: *cap,
            before: around.0,
        };
        if rows.span.len() > 1 {
            for head in 0..*heads {
                let out = &mut context[head * head_dim..];
                attend_cached(
                    rows.isa,
                    &asked(head, input.width, 1),
                    &cache[head / group],
                    scratch,
                    out,
                    width,
                );
            }
            return;
        }
        // Heads that share keys read them together.
        let groups = context.par_chunks_mut(group * head_dim).zip(cache).enumerate();
        let attend = |scratch: &mut AttentionScratch,
                      (i, (out, cache)): (usize, (&mut [f32], &HeadCache))| {
            let input = asked(i * group, queries.stride, group);
            attend_cached(rows.isa, &input, cache, scratch, out, *head_dim);
        };
        if rows.split && known * width > ALONE {
            groups.for_each_init(AttentionScratch::default, attend);
        } else {
            let groups = context.chunks_mut(group * head_dim).zip(cache).enumerate();
            groups.for_each(|task| attend(scratch, task));
        }
    }

    /// Adds the output of the feed-forward half to the stream `x` of the rows whose input stands in `work`.
    fn feed_forward(&self, rows: &Rows<'_>, work: &mut Work, x: &mut [f32]) -> Result<(), NonFinite> {
        let (isa, count) = (rows.isa, rows.span.len());
        let Mlp { input, up, gate, down } = &self.mlp;
        let inner = down.linear.inputs();
        let quantized = work.inner.room(count * inner);
        let params = room_for_params(&mut work.inner_params, count);
        match &input.linears[..] {
            // The product itself leaves what the next one reads.
            [(_, widen)]
                if gate.is_none()
                    && *up == (0..input.width)
                    && widen.is_fused()
                    && down.rotation.is_none()
                    && !rows.split =>
            {
                let a = &work.quantized[..count * input.inputs];
                let read = params_of(input.quantizer, &work.params[..count]);
                let memory = (&mut work.wide, &mut work.magnitudes);
                widen.forward_quantized(a, count, read, down.quantizer, memory, (quantized, params))?;
            }
            _ => self.widen(rows, work)?,
        }
        down.add(isa, &work.inner, &work.inner_params, &mut work.normed, x, rows.split);
        Ok(())
    }

    /// The first products of a feed-forward half with what stands between them and the last one, for the rows whose input
    /// stands in `work`; the input of the last one is left there.
    fn widen(&self, rows: &Rows<'_>, work: &mut Work) -> Result<(), NonFinite> {
        let (isa, count) = (rows.isa, rows.span.len());
        let Mlp { input, up, gate, down } = &self.mlp;
        let inner = down.linear.inputs();
        let wide = work.wide.room(count * input.width);
        input.run(count, &work.quantized, &work.params, wide, rows.split);
        let quantized = work.inner.room(count * inner);
        let params = room_for_params(&mut work.inner_params, count);
        if gate.is_none() && *up == (0..input.width) {
            if let Some(rotation) = &down.rotation {
                rotation.apply(isa, wide);
            }
            quantize_rows(isa, down.quantizer, wide, inner, quantized, params)?;
        } else {
            let gated = work.gated.room(inner);
            let each = wide.chunks_exact(input.width).zip(quantized.chunks_exact_mut(inner)).zip(params);
            for (row, ((wide, quantized), params)) in each.enumerate() {
                let params = std::slice::from_mut(params);
                let magnitude = match gate {
                    None => {
                        gated.copy_from_slice(&wide[up.clone()]);
                        None
                    }
                    Some((gate, activation)) => {
                        let (gate, up) = (&wide[gate.clone()], &wide[up.clone()]);
                        apply_gate(isa, gate, up, *activation, gated, &mut work.magnitudes)
                    }
                };
                if let Some(rotation) = &down.rotation {
                    rotation.apply(isa, gated);
                }
                match (magnitude, down.quantizer) {
                    (Some(magnitude), ActivationQuantizer::Dynamic(Symmetry::Symmetric))
                        if down.rotation.is_none() =>
                    {
                        quantize_measured(isa, gated, inner, magnitude, quantized, params)
                    }
                    (_, quantizer) => quantize_rows(isa, quantizer, gated, inner, quantized, params),
                }
                .map_err(|_| NonFinite { row })?;
            }
        }
        Ok(())
    }
}

/// What a half reads: the stream, normalised or not, rotated or not, quantised.
struct Input<'a> {
    norm: Option<&'a Norm>,
    stage: Option<&'a Stage>,
}

impl Input<'_> {
    /// Nothing reads the stream.
    const NONE: Self = Self { norm: None, stage: None };

    /// Normalises the stream `x` where `after` says so, and leaves what a half reads of it in `work`.
    fn settle(
        &self,
        isa: Isa,
        x: &mut [f32],
        hidden: usize,
        after: Option<&Norm>,
        work: &mut Work,
    ) -> Result<(), NonFinite> {
        let count = x.len() / hidden;
        let quantized = work.quantized.room(x.len());
        let params = room_for_params(&mut work.params, count);
        for start in (0..count).step_by(HOT_ROWS) {
            let rows = start..count.min(start + HOT_ROWS);
            let values = start * hidden..rows.end * hidden;
            let x = &mut x[values.clone()];
            if let Some(norm) = after {
                norm.apply(x);
            }
            let Some(Stage { quantizer, rotation, .. }) = self.stage else { continue };
            let (quantized, params) = (&mut quantized[values], &mut params[rows]);
            let read = if self.norm.is_none() && rotation.is_none() {
                &*x
            } else {
                let changed = work.normed.room(x.len());
                changed.copy_from_slice(x);
                if let Some(norm) = self.norm {
                    norm.apply(changed);
                }
                if let Some(rotation) = rotation {
                    rotation.apply(isa, changed);
                }
                &*changed
            };
            quantize_rows(isa, *quantizer, read, hidden, quantized, params)
                .map_err(|error| NonFinite { row: start + error.row })?;
        }
        Ok(())
    }
}

impl<'a> Rows<'a> {
    /// Ranges of nearly equal length, counted from the first row, that go through a product together.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.span.len();
        let parts = count.div_ceil(ROWS);
        (0..parts).map(move |part| part * count / parts..(part + 1) * count / parts)
    }

    fn part(&self, part: &Range<usize>) -> Rows<'a> {
        let start = self.span.start;
        Rows {
            isa: self.isa,
            batch: self.batch,
            span: start + part.start..start + part.end,
            split: self.split,
        }
    }
}
