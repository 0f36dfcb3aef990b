//! The fused encoder: all blocks of a tower over one arena.
//!
//! It computes what the sites do one by one, with the same kernels and so the same bits, in another order: a worker
//! takes some rows through everything that needs these rows alone, so that an activation is read again while it is in
//! cache, and waits for others only where attention needs their keys and values.

mod arena;
mod block;
mod schedule;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rayon::prelude::*;
use zeropoint_formats::Checkpoint;
use zeropoint_kernels::{ChannelRotation, HeadCache, Isa, NonFinite};
use zeropoint_models::{
    BiasTable, BlockNorms, BlockRunner, BlockSpec, KvCache, ModelError, ModelSpec, Norm, NormSpec,
    PositionTables, Tower,
};

use crate::site::IntegerSite;
use arena::Arena;
use block::{Block, Rows};
use schedule::Schedule;

/// Rows that go through a product together: enough to use a panel of weights several times, few enough for their
/// activations to stay in the second cache.
const ROWS: usize = 96;

/// The blocks of one tower, ready to run.
pub(crate) struct Engine {
    isa: Isa,
    tower: Tower,
    bias: Option<BiasTable>,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    tables: RwLock<Arc<PositionTables>>,
    /// Memory of calls that have ended, for the next ones.
    arenas: Mutex<Vec<Arena>>,
}

/// The sites of a whole model: those that are integer, and what rotates their activations.
#[derive(Clone, Copy)]
pub(crate) struct Sites<'a> {
    pub(crate) integer: &'a [Option<Arc<IntegerSite>>],
    pub(crate) rotations: &'a [Option<Arc<ChannelRotation>>],
}

/// The float parts of blocks and what follows them.
pub(crate) struct BlockParts {
    pub(crate) norms: Vec<BlockNorms>,
    pub(crate) final_norm: Option<Norm>,
    pub(crate) bias: Option<BiasTable>,
}

impl BlockParts {
    /// Those of all blocks of `tower`, with its final norm or without.
    pub(crate) fn read(
        tower: &Tower,
        checkpoint: &Checkpoint,
        isa: Isa,
        final_norm: bool,
    ) -> Result<Self, ModelError> {
        let norm = |norm: &NormSpec| norm.read(checkpoint, isa);
        let of_block = |block: &BlockSpec| block.read_norms(checkpoint, isa);
        let final_norm = tower.final_norm.as_ref().filter(|_| final_norm);
        Ok(Self {
            norms: tower.blocks.iter().map(of_block).collect::<Result<_, ModelError>>()?,
            final_norm: final_norm.map(norm).transpose()?,
            bias: tower.relative_bias.as_ref().map(|bias| BiasTable::read(bias, checkpoint)).transpose()?,
        })
    }
}

impl Engine {
    /// `None` where a block has a Linear that is not integer, or Linears that read one activation quantised in different ways.
    pub(crate) fn new(
        isa: Isa,
        spec: &ModelSpec,
        tower: &Tower,
        parts: BlockParts,
        sites: Sites<'_>,
    ) -> Option<Self> {
        let blocks = tower.blocks.iter().zip(parts.norms);
        let blocks =
            blocks.map(|(block, norms)| Block::new(block, norms, spec, sites)).collect::<Option<_>>()?;
        Some(Self {
            isa,
            tower: tower.clone(),
            bias: parts.bias,
            blocks,
            final_norm: parts.final_norm,
            tables: RwLock::default(),
            arenas: Mutex::default(),
        })
    }

    /// Tables that serve sequences of so many rows.
    fn tables(&self, longest: usize) -> Arc<PositionTables> {
        let known = Arc::clone(&self.tables.read().unwrap_or_else(PoisonError::into_inner));
        if known.longest() >= longest {
            return known;
        }
        let tables = Arc::new(PositionTables::new(&self.tower, self.bias.as_ref(), longest));
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&tables);
        tables
    }

    /// Lends memory to `f`.
    fn with_arena<T>(&self, f: impl FnOnce(&mut Arena) -> T) -> T {
        let known = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = known.unwrap_or_default();
        let result = f(&mut arena);
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
        result
    }

    /// Whole sequences on one thread.
    fn alone(&self, x: &mut [f32], offsets: &[usize], tables: &PositionTables) -> Result<(), NonFinite> {
        let rows = x.len() / self.tower.hidden;
        self.with_arena(|arena| {
            let Arena { work, projections: [now, next] } = arena;
            let (mut now, mut next) = (now, next);
            let batch = Batch { offsets, tables, known: 0 };
            let Some(first) = self.blocks.first() else { return Ok(()) };
            let all = Rows { isa: self.isa, batch: &batch, span: 0..rows, split: false };
            first.begin(&all, x, work, now.room(rows * first.projection_width()))?;
            for (i, block) in self.blocks.iter().enumerate() {
                let following = self.blocks.get(i + 1);
                let width = following.map_or(0, Block::projection_width);
                block.run(&all, x, (now, None), following, work, next.room(rows * width))?;
                std::mem::swap(&mut now, &mut next);
            }
            self.finish(x);
            Ok(())
        })
    }

    /// One row behind those of a cache, its products split over threads.
    fn step(&self, x: &mut [f32], cache: &mut KvCache) -> Result<(), NonFinite> {
        let tables = cache.tables(&self.tower, cache.len() + 1);
        let batch = Batch { offsets: &[0, 1], tables: &tables, known: cache.len() };
        let row = Rows { isa: self.isa, batch: &batch, span: 0..1, split: rayon::current_num_threads() > 1 };
        self.with_arena(|arena| {
            let Arena { work, projections: [now, next] } = arena;
            let (mut now, mut next) = (now, next);
            let Some(first) = self.blocks.first() else { return Ok(()) };
            first.begin(&row, x, work, now.room(first.projection_width()))?;
            for (i, block) in self.blocks.iter().enumerate() {
                let following = self.blocks.get(i + 1);
                let width = following.map_or(0, Block::projection_width);
                let heads = cache.block_mut(i);
                block.remember(&now[..block.projection_width()], heads);
                block.run(&row, x, (now, Some(heads)), following, work, next.room(width))?;
                std::mem::swap(&mut now, &mut next);
            }
            self.finish(x);
            Ok(())
        })
    }

    /// All rows cut into the strips that begin at `starts` (the number of rows at the end), one a thread, that meet after every
    /// block. A cache is that of the one sequence.
    fn together(
        &self,
        x: &mut [f32],
        batch: &Batch<'_>,
        starts: &[usize],
        mut cache: Option<&mut KvCache>,
    ) -> Result<(), NonFinite> {
        let rows = x.len() / self.tower.hidden;
        let Some(first) = self.blocks.first() else { return Ok(()) };
        self.with_arena(|arena| {
            let Arena { projections: [now, next], .. } = arena;
            let (mut now, mut next) = (now, next);
            let part =
                |strip: &[usize]| Rows { isa: self.isa, batch, span: strip[0]..strip[1], split: false };
            let out = now.room(rows * first.projection_width());
            each_strip(starts, x, out, &|strip, x, out| {
                self.with_arena(|arena| first.begin(&part(strip), x, &mut arena.work, out))
            })?;
            for (at, block) in self.blocks.iter().enumerate() {
                let following = self.blocks.get(at + 1);
                let heads: Option<&[HeadCache]> = cache.as_deref_mut().map(|cache| {
                    let heads = cache.block_mut(at);
                    block.remember(&now[..rows * block.projection_width()], heads);
                    &*heads
                });
                let read: (&[f32], _) = (now, heads);
                let out = next.room(rows * following.map_or(0, Block::projection_width));
                each_strip(starts, x, out, &|strip, x, out| {
                    self.with_arena(|arena| {
                        block.run(&part(strip), x, read, following, &mut arena.work, out)
                    })?;
                    if following.is_none() {
                        self.finish(x);
                    }
                    Ok(())
                })?;
                std::mem::swap(&mut now, &mut next);
            }
            Ok(())
        })
    }

    /// Where strips of rows begin that follow `known` tokens and are as much work each, for the threads there are.
    fn strips(&self, rows: usize, known: usize) -> Vec<usize> {
        let threads = rayon::current_num_threads();
        let Some(block) = self.blocks.first() else { return vec![0, rows] };
        let (of_row, of_token, before) = block.work();
        schedule::strips(rows, threads, of_row, of_token, |row| (known + row).min(before) + 1)
    }

    fn finish(&self, x: &mut [f32]) {
        if let Some(norm) = &self.final_norm {
            norm.apply(x);
        }
    }

    fn run_schedule(&self, x: &mut [f32], offsets: &[usize], schedule: Schedule) -> Result<(), NonFinite> {
        let longest = offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let tables = self.tables(longest);
        match schedule {
            Schedule::Together => {
                let rows = x.len() / self.tower.hidden;
                let batch = Batch { offsets, tables: &tables, known: 0 };
                self.together(
                    x,
                    &batch,
                    &schedule::strips(rows, rayon::current_num_threads(), 1, 0, |_| 0),
                    None,
                )
            }
            Schedule::Groups(groups) if groups.len() == 1 => self.alone(x, offsets, &tables),
            Schedule::Groups(groups) => {
                let mut parts = Vec::with_capacity(groups.len());
                let mut rest = x;
                for Range { start, end } in groups {
                    let rows = offsets[end] - offsets[start];
                    let (part, behind) = rest.split_at_mut(rows * self.tower.hidden);
                    parts.push((part, &offsets[start..=end]));
                    rest = behind;
                }
                parts.into_par_iter().try_for_each(|(x, offsets)| self.alone(x, offsets, &tables))
            }
        }
    }
}

impl BlockRunner for Engine {
    fn run(&self, stream: &mut [f32], offsets: &[usize]) -> Result<(), ModelError> {
        let schedule = Schedule::of(offsets, rayon::current_num_threads());
        self.run_schedule(stream, offsets, schedule)
            .map_err(|error| ModelError::Candle(candle_core::Error::wrap(error)))
    }

    fn extend(&self, stream: &mut [f32], cache: &mut KvCache) -> Result<(), ModelError> {
        let rows = stream.len() / self.tower.hidden;
        let result = if rows == 1 {
            self.step(stream, cache)
        } else {
            let known = cache.len();
            let tables = cache.tables(&self.tower, known + rows);
            let batch = Batch { offsets: &[0, rows], tables: &tables, known };
            self.together(stream, &batch, &self.strips(rows, known), Some(cache))
        };
        result.map_err(|error| ModelError::Candle(candle_core::Error::wrap(error)))
    }
}

/// Hands each strip of `x` and `out`, rows of both that begin at `starts`, to `work`, over the threads there are.
fn each_strip<F>(starts: &[usize], x: &mut [f32], out: &mut [f32], work: &F) -> Result<(), NonFinite>
where
    F: Fn(&[usize], &mut [f32], &mut [f32]) -> Result<(), NonFinite> + Sync,
{
    let (count, rows) = (starts.len() - 1, starts[starts.len() - 1] - starts[0]);
    if count <= 1 {
        return work(starts, x, out);
    }
    let middle = count / 2;
    let before = starts[middle] - starts[0];
    let (x, x_behind) = x.split_at_mut(x.len() / rows * before);
    let (out, out_behind) = out.split_at_mut(out.len() / rows * before);
    let (first, second) = rayon::join(
        || each_strip(&starts[..=middle], x, out, work),
        || each_strip(&starts[middle..], x_behind, out_behind, work),
    );
    first.and(second)
}

/// Sequences that attend within themselves.
pub(crate) struct Batch<'a> {
    /// First row of each sequence and the number of rows at the end, plus a common start.
    offsets: &'a [usize],
    tables: &'a PositionTables,
    /// Tokens before the first row, in a cache.
    known: usize,
}

impl Batch<'_> {
    /// The sequences that have rows among `rows`: each one's rows, and those of them that are asked for.
    fn sequences(&self, rows: &Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let base = self.offsets[0];
        let rows = rows.clone();
        let first = self.offsets.partition_point(|offset| offset - base <= rows.start).saturating_sub(1);
        self.offsets[first..].windows(2).map(move |pair| pair[0] - base..pair[1] - base).map_while(
            move |sequence| {
                let asked = rows.start.max(sequence.start)..rows.end.min(sequence.end);
                (!asked.is_empty()).then_some((sequence, asked))
            },
        )
    }
}
