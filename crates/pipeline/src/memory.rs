//! The peak memory of a run, foretold from the plan.
//!
//! What lives at the same time is counted stage by stage and the largest sum is the answer. It is within a quarter of what a
//! run measures (`VmHWM`); tests on an encoder and on a decoder hold it to that.

use std::collections::BTreeSet;

use zeropoint_calibrator::BatchPlan;
use zeropoint_formats::Dtype;
use zeropoint_models::{
    EmbeddingTable, LARGE_MATRIX, LinearId, LinearRole, LinearSpec, ModelSpec, Part, SiteId, WIDEST_MATRIX,
};
use zeropoint_quantizer::{EmbeddingPrecision, WeightAlgorithm};

use crate::check::probe_lengths;
use crate::deploy::largest_copy;
use crate::system::resident_memory;
use crate::{Prepared, disk};

/// Bytes of hidden states that a run keeps in memory while all samples go through one part of a model after the other; what
/// does not fit goes into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub u64);

impl Default for Memory {
    fn default() -> Self {
        Self(1 << 30)
    }
}

impl Memory {
    /// Bytes of a model's weights in f32 up to which it is kept whole: hidden states would take as much.
    pub(crate) fn whole(self) -> u64 {
        self.0 / 8
    }

    /// The parts in which a model is run; `None` of one that is whole.
    pub(crate) fn parts(self, spec: &ModelSpec) -> Option<Vec<Part>> {
        Part::of(spec).filter(|_| spec.float_bytes() > self.whole())
    }
}

const F32: usize = 4;
const BF16: usize = 2;
/// Of the program before any weight is read, where the system does not tell.
const PROGRAM: u64 = 32 << 20;

/// Bytes resident at the peak. `evaluation` has the lengths of the inputs of each task, in the batches that they are run in;
/// `latency` batch and tokens of each measurement of speed.
///
/// The program, its data sets and tokenizers are measured: the caller holds what a run holds at that point.
pub(crate) fn peak(
    prepared: &Prepared,
    memory: Memory,
    evaluation: &[Vec<Vec<usize>>],
    latency: &[[usize; 2]],
) -> u64 {
    let spec = prepared.graph().spec();
    let mut stages = match memory.parts(spec) {
        Some(parts) => by_parts(prepared, memory, &parts, evaluation),
        None => whole(prepared, evaluation),
    };
    if prepared.is_sequential() {
        stages.extend(sequential(prepared, memory));
    }
    if !latency.is_empty() {
        // Both models as wholes, one of them at work.
        let batches: Vec<_> = latency.iter().map(|&[batch, tokens]| vec![tokens; batch]).collect();
        let model = Weights::of(prepared, Part::Whole);
        let models = model.float() + model.left(true) + model.integers();
        stages.push(statistics(prepared) + models + evaluated(spec, &batches));
    }
    resident_memory().unwrap_or(PROGRAM) + stages.into_iter().max().unwrap_or(0) as u64
}

/// Of the statistics, which live from the observing pass to the reports.
fn statistics(prepared: &Prepared) -> usize {
    if prepared.calibration.inputs.is_empty() { 0 } else { disk::statistics(prepared) as usize }
}

/// Each stage of a run whose models are whole in memory.
fn whole(prepared: &Prepared, evaluation: &[Vec<Vec<usize>>]) -> Vec<usize> {
    let spec = prepared.graph().spec();
    let model = Weights::of(prepared, Part::Whole);
    // The original stays beside the model with its transforms, where that is run as a whole.
    let runs_both =
        prepared.transformed.is_some() && (!prepared.is_sequential() || prepared.plan.needs_statistics());
    let originals = if runs_both { 2 } else { 1 };
    let (float, integers) = (originals * model.float() + statistics(prepared), model.integers());
    let written = model.left(true) + integers;
    let mut stages = vec![float + integers + largest_copy(prepared)];
    if let Some(calibration) =
        batches(prepared, prepared.last_pass()).map(|lengths| in_blocks(spec, &lengths)).max()
    {
        stages.push(float + calibration);
    }
    if prepared.config.output.self_check {
        // Tables that nothing changes are those of the float model.
        let simulated = model.left(prepared.plan.embeddings != EmbeddingPrecision::Keep) + F32 * integers;
        stages.push(float + integers + written + simulated + checked(prepared, &model));
    }
    if let Some(evaluated) = evaluation.iter().map(|task| evaluated(spec, task)).max() {
        stages.push(float + written + model.widened(false) + model.widened(true) + evaluated);
    }
    stages
}

/// What rounding for inputs takes besides, for each part: its float weights with the second moments of what they read, and those while they
/// are factorised, one site a thread.
fn sequential(prepared: &Prepared, memory: Memory) -> Vec<usize> {
    const F64: usize = 8;
    let spec = prepared.graph().spec();
    let parts = Part::of(spec).unwrap_or_else(|| vec![Part::Whole]);
    let limit = usize::try_from(memory.0).unwrap_or(usize::MAX);
    let states = (batches(prepared, &prepared.calibration.plan).flatten().sum::<usize>()
        * spec.towers[0].hidden
        * F32)
        .min(limit);
    let activations = batches(prepared, &prepared.calibration.plan)
        .map(|lengths| in_blocks(spec, &lengths))
        .max()
        .unwrap_or(0);
    let quantized: BTreeSet<LinearId> = prepared.plan.quantized().map(|(plan, _)| plan.linear).collect();
    let of_part = |part: Part| {
        let sites = part.sites(spec).into_iter().map(|site| &spec.sites[site]);
        let sites = sites.filter(|site| site.consumers.iter().any(|id| quantized.contains(id)));
        let mut squares: Vec<usize> = sites.map(|site| site.channels * site.channels).collect();
        squares.sort_unstable_by(|a, b| b.cmp(a));
        if prepared.plan.algorithm == WeightAlgorithm::Rtn {
            // Means alone.
            squares.clear();
        }
        let moments = squares.iter().sum::<usize>() * F32;
        // The matrix and its factor, of which the inverse is another.
        let factorised = squares.iter().take(rayon::current_num_threads()).sum::<usize>() * 3 * F64;
        let model = Weights::of(prepared, part);
        statistics(prepared) + states + model.float() + moments + activations.max(factorised)
    };
    parts.into_iter().map(of_part).collect()
}

/// Each stage of a run of which one part of a model is in memory at a time, for the part that takes most.
fn by_parts(
    prepared: &Prepared,
    memory: Memory,
    parts: &[Part],
    evaluation: &[Vec<Vec<usize>>],
) -> Vec<usize> {
    let spec = prepared.graph().spec();
    let hidden = spec.towers[0].hidden;
    let calibrates = !prepared.calibration.inputs.is_empty();
    let statistics = statistics(prepared);
    let limit = usize::try_from(memory.0).unwrap_or(usize::MAX);
    let states = |rows: usize| (rows * hidden * F32).min(limit);
    let calibrated: usize = batches(prepared, prepared.last_pass()).flatten().sum();
    let calibration =
        batches(prepared, prepared.last_pass()).map(|lengths| in_blocks(spec, &lengths)).max().unwrap_or(0);
    // A head that is made of a table waits for the part that runs it.
    let waiting = prepared.plan.tied_head(spec).map_or(0, |(id, _)| spec.linears[id].weights());
    let mut stages = Vec::new();
    for &part in parts {
        let model = Weights::of(prepared, part);
        let (float, integers) = (model.float(), model.integers());
        let (left, runs_blocks) = (model.left(true), matches!(part, Part::Block(_)));
        if calibrates {
            let activations = if runs_blocks { calibration } else { 0 };
            stages.push(statistics + states(calibrated) + float + activations);
        }
        stages.push(statistics + waiting + integers + largest_copy(prepared));
        if prepared.config.output.self_check {
            // The integers as they were quantised, as they were written, and as f32 in the simulation.
            let models = float + integers + (left + integers) + (left + F32 * integers);
            stages.push(statistics + waiting + models + checked(prepared, &model));
        }
        for task in evaluation {
            let rows: usize = task.iter().flatten().sum();
            let activations = task.iter().map(|lengths| in_blocks(spec, lengths)).max().unwrap_or(0);
            stages.push(
                statistics
                    + if part.has_output() {
                        // Both heads, behind the hidden states of both models.
                        let heads = float + left + integers + model.widened(false) + model.widened(true);
                        2 * states(rows) + heads + evaluated(spec, task)
                    } else {
                        2 * states(rows)
                            + float.max(left + integers)
                            + if runs_blocks { activations } else { 0 }
                    },
            );
        }
    }
    stages
}

/// The weights of a part of a model, in bytes.
struct Weights<'a> {
    prepared: &'a Prepared,
    part: Part,
    sites: BTreeSet<SiteId>,
    quantized: BTreeSet<LinearId>,
}

impl<'a> Weights<'a> {
    fn of(prepared: &'a Prepared, part: Part) -> Self {
        let spec = prepared.graph().spec();
        let quantized = prepared.plan.quantized().map(|(plan, _)| plan.linear).collect();
        Self { prepared, part, sites: part.sites(spec), quantized }
    }

    fn spec(&self) -> &'a ModelSpec {
        self.prepared.graph().spec()
    }

    /// Its Linears that are run, and whether each is quantised.
    fn linears(&self) -> impl Iterator<Item = (&'a LinearSpec, bool)> {
        let all = self.spec().linears.iter().enumerate();
        let own = all.filter(|(_, linear)| linear.site.is_some_and(|site| self.sites.contains(&site)));
        own.map(|(id, linear)| (linear, self.quantized.contains(&id)))
    }

    fn tables(&self) -> impl Iterator<Item = &'a EmbeddingTable> {
        self.spec().tables().filter(|_| self.part.has_input())
    }

    fn is_tied(&self, linear: &LinearSpec) -> bool {
        self.spec().tables().any(|table| table.tensor == linear.weight)
    }

    /// Bytes of a weight of that tensor: four, or two of a large table or last Linear in bfloat16.
    fn of_weight(&self, tensor: &str, weights: usize, written: bool) -> usize {
        let found = self.prepared.graph().checkpoint().get(tensor).map(|info| info.dtype);
        let rounded = written
            && self.prepared.plan.embeddings == EmbeddingPrecision::Bf16
            && self.spec().tables().any(|table| table.tensor == tensor);
        let is_bf16 = rounded || found == Some(Dtype::BF16);
        if weights >= LARGE_MATRIX && is_bf16 { BF16 } else { F32 }
    }

    /// Of a Linear that is float, in the original or in what was written; none of one whose table is in memory besides.
    fn of_linear(&self, linear: &LinearSpec, written: bool) -> usize {
        if self.part.has_input() && self.is_tied(linear) {
            return 0;
        }
        let size =
            if is_last(linear) { self.of_weight(&linear.weight, linear.weights(), written) } else { F32 };
        size * linear.weights()
    }

    /// As the original holds them.
    fn float(&self) -> usize {
        let tables = self.tables().map(|table| {
            let weights = table.rows * table.width;
            self.of_weight(&table.tensor, weights, false) * weights
        });
        tables.sum::<usize>() + self.linears().map(|(linear, _)| self.of_linear(linear, false)).sum::<usize>()
    }

    /// Of the Linears that become integers, one each.
    fn integers(&self) -> usize {
        self.linears().filter(|(_, quantized)| *quantized).map(|(linear, _)| linear.weights()).sum()
    }

    /// What is left float of them, as the written model holds it: tables, where they are asked for, and Linears.
    fn left(&self, with_tables: bool) -> usize {
        let tables = self.tables().filter(|_| with_tables).map(|table| {
            let weights = table.rows * table.width;
            match self.prepared.plan.embeddings {
                EmbeddingPrecision::Int8 => weights,
                _ => self.of_weight(&table.tensor, weights, true) * weights,
            }
        });
        let float = self.linears().filter(|(_, quantized)| !quantized);
        tables.sum::<usize>() + float.map(|(linear, _)| self.of_linear(linear, true)).sum::<usize>()
    }

    /// What the last Linear takes besides in f32 while it is run with many rows, if it is held in bfloat16.
    fn widened(&self, written: bool) -> usize {
        let last = self.linears().filter(|(linear, quantized)| is_last(linear) && !(written && *quantized));
        let bytes = last.map(|(linear, _)| match self.of_weight(&linear.weight, linear.weights(), written) {
            BF16 => linear.weights().min(WIDEST_MATRIX) * F32,
            _ => 0,
        });
        bytes.sum()
    }
}

/// Whether it may be held in bfloat16.
fn is_last(linear: &LinearSpec) -> bool {
    matches!(linear.role, LinearRole::Classifier | LinearRole::TiedDecoder)
}

/// Lengths of the sequences of each batch of some of the calibration set.
fn batches<'a>(prepared: &'a Prepared, plan: &'a BatchPlan) -> impl Iterator<Item = Vec<usize>> + 'a {
    let set = &prepared.calibration;
    let spec = prepared.graph().spec();
    plan.batches().iter().map(|batch| batch.iter().map(|&i| set.inputs[i].rows(spec)).collect())
}

/// The largest batch of a task, with the outputs of both models that are kept to its end.
fn evaluated(spec: &ModelSpec, task: &[Vec<usize>]) -> usize {
    // A vector for each sequence; a classifier's row of logits is shorter. A row of logits for each token lives as long as its
    // batch.
    let sequences: usize = task.iter().map(Vec::len).sum();
    let kept = if spec.head().is_per_token() { 0 } else { 2 * sequences * spec.towers[0].hidden * F32 };
    let of_batch = |lengths: &Vec<usize>| in_blocks(spec, lengths).max(OUTPUTS * outputs(spec, lengths));
    kept + task.iter().map(of_batch).max().unwrap_or(0)
}

/// Outputs of a batch that are there at once: one model's, and the other's, which is copied out of the tensor that was computed.
const OUTPUTS: usize = 3;

/// The output of a head for sequences of these lengths.
fn outputs(spec: &ModelSpec, lengths: &[usize]) -> usize {
    let rows = if spec.head().is_per_token() { lengths.iter().sum() } else { lengths.len() };
    rows * spec.output_columns() * F32
}

/// What a forward pass over sequences of these lengths holds at once within the blocks: at the end of one the hidden states
/// before and after attention, query, key and value, context, both outputs and the wide inner activation; or, in attention,
/// what each thread has of its sequence besides.
fn in_blocks(spec: &ModelSpec, lengths: &[usize]) -> usize {
    let tokens: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let tower = &spec.towers[0];
    let (hidden, heads) = (tower.hidden, tower.blocks.first().map_or(0, |block| block.attention.heads));
    let threads = rayon::current_num_threads().min(lengths.len());
    let in_attention = tokens * 6 * hidden + threads * (5 * longest * hidden + heads * longest * longest);
    let at_the_end = tokens * (8 * hidden + widest(spec));
    in_attention.max(at_the_end) * F32
}

/// What the self-check of a part holds besides weights. In blocks one layer after the other is compared, its input and output in
/// float, in steps, as whole sums and simulated; at the end the outputs are.
fn checked(prepared: &Prepared, model: &Weights<'_>) -> usize {
    let spec = prepared.graph().spec();
    let lengths = probe_lengths(prepared);
    let tokens: usize = lengths.iter().sum();
    let blocks = match model.part {
        Part::Whole | Part::Block(_) => in_blocks(spec, &lengths) + tokens * 4 * widest(spec) * F32,
        Part::Input | Part::Output => 0,
    };
    let output = if model.part.has_output() {
        // Of a last Linear that is float the written model's and the simulation's are run, of one that is not the original's too.
        let last = model.linears().filter(|(linear, _)| is_last(linear));
        let widened =
            last.map(|(_, quantized)| if quantized { model.widened(false) } else { 2 * model.widened(true) });
        OUTPUTS * outputs(spec, &lengths) + widened.sum::<usize>()
    } else {
        0
    };
    blocks.max(output)
}

/// The widest output of a Linear of a block.
fn widest(spec: &ModelSpec) -> usize {
    let linears = spec.linears.iter().filter(|linear| linear.site.is_some() && !is_last(linear));
    linears.map(|linear| linear.outputs).max().unwrap_or(0)
}
