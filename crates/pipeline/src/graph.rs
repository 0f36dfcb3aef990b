//! The model that is quantised: the original with its transforms, of which tensors are made when they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use zeropoint_core::Fingerprint;
use zeropoint_formats::deployed::{InputRotation, input_divisors};
use zeropoint_formats::safetensors::Overlay;
use zeropoint_formats::safetensors::element::{bf16_bytes, f16_bytes, f32_bytes, floats_from_bytes};
use zeropoint_formats::{Checkpoint, Dtype, FormatError, TensorInfo, TensorSpec};
use zeropoint_kernels::Isa;
use zeropoint_models::{FloatParts, LinearId, LinearSpec, ModelDirectory, ModelError, ModelSpec, is_divisor};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::transform::{
    Edit, EditedRows, NormEdit, Smoothing, column_maxima, edit_bias, edit_norm, edit_table, edit_weight,
};
use zeropoint_quantizer::{ActivationError, TransformPlan};

use crate::events::Cancel;
use crate::strength::chosen_factors;
use crate::{PipelineError, Prepared};

/// A model with its transforms.
pub(crate) struct Graph {
    /// What is done.
    pub(crate) plan: TransformPlan,
    tensors: Arc<MadeTensors>,
    /// As a model of its own.
    pub(crate) directory: ModelDirectory,
}

/// What is made in place of a tensor.
#[derive(Debug, Clone)]
enum Recipe {
    /// The weight of these Linears, from that tensor.
    Weight { source: String, linears: Vec<LinearId> },
    /// Their bias.
    Bias { linears: Vec<LinearId> },
    /// Gain or shift of a norm, by its index in the plan.
    Norm { norm: usize, is_gain: bool },
    /// An embedding table.
    Table { width: usize },
    /// What the channels of a rotated activation are divided by.
    Divisors { smoothing: usize },
}

/// The tensors of a graph that are not the original's.
#[derive(Debug)]
struct MadeTensors {
    base: Checkpoint,
    spec: ModelSpec,
    plan: TransformPlan,
    recipes: BTreeMap<String, (Recipe, TensorSpec)>,
    isa: Isa,
    /// Of each smoothing, once they are chosen.
    factors: OnceLock<Vec<Vec<f32>>>,
}

impl Graph {
    /// Of the original and a plan; `quantized` are the Linears that become integers.
    pub(crate) fn new(
        directory: &ModelDirectory,
        plan: TransformPlan,
        quantized: &BTreeSet<LinearId>,
    ) -> Result<Self, PipelineError> {
        let spec = directory.spec().clone();
        let base = Checkpoint::open(directory.path())?;
        let recipes = recipes(&spec, &base, &plan, quantized)?;
        let isa = Isa::active().map_err(ModelError::from)?;
        let factors = OnceLock::new();
        if plan.smoothings.is_empty() {
            let _ = factors.set(Vec::new());
        }
        let rotation = |(site, smoothing): (&usize, &Option<usize>)| InputRotation {
            linears: spec.sites[*site].consumers.iter().map(|id| spec.linears[*id].path.clone()).collect(),
            divided: smoothing.is_some(),
        };
        let rotations: Vec<InputRotation> = plan.rotations.iter().map(rotation).collect();
        let tensors = Arc::new(MadeTensors { base, spec, plan: plan.clone(), recipes, isa, factors });
        let overlay: Arc<dyn Overlay> = Arc::<MadeTensors>::clone(&tensors);
        let directory = directory.with_overlay(overlay, plan.untied.is_some(), &rotations)?;
        Ok(Self { plan, tensors, directory })
    }

    /// Chooses the factors of smoothing, from statistics of the original and its weights, and where a strength is to be searched for
    /// from what it makes of a few samples in `float`, the original.
    pub(crate) fn settle(
        &self,
        prepared: &Prepared,
        float: &FloatParts<'_>,
        statistics: &StatisticsFile,
        cancel: &Cancel,
    ) -> Result<(), PipelineError> {
        if self.tensors.factors.get().is_none() {
            let maxima = |smoothing: &Smoothing| self.tensors.maxima(smoothing, statistics);
            let chosen = chosen_factors(prepared, self, float, &maxima, cancel)?;
            let factors =
                self.plan.smoothings.iter().zip(chosen).map(|(smoothing, factors)| match smoothing.norm {
                    Some(norm) => self.tensors.representable(norm, factors),
                    None => Ok(factors),
                });
            let factors = factors.collect::<Result<_, PipelineError>>()?;
            let _ = self.tensors.factors.set(factors);
        }
        Ok(())
    }

    /// Identifies what is done to the original, its factors included once they are chosen.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut builder = Fingerprint::builder("transforms");
        builder.field("plan", format!("{:?}", self.plan));
        for factors in self.tensors.factors.get().into_iter().flatten() {
            builder.field("factors", f32_bytes(factors));
        }
        builder.finish()
    }

    /// Bytes of the tensor that an output matrix gets of its own.
    pub(crate) fn untied_bytes(&self) -> Option<u64> {
        let linear = &self.tensors.spec.linears[self.plan.untied?];
        self.directory.checkpoint().get(&own_weight(linear)).map(TensorInfo::bytes)
    }

    /// Whether something is done to the weight of a Linear.
    pub(crate) fn changes(&self, linear: LinearId) -> bool {
        self.plan.linears.contains_key(&linear)
    }

    /// Whether a tensor has no counterpart in the original.
    pub(crate) fn is_new(&self, tensor: &str) -> bool {
        self.tensors.recipes.contains_key(tensor) && !self.tensors.base.contains(tensor)
    }
}

/// The weight of a Linear that was a table.
fn own_weight(linear: &LinearSpec) -> String {
    format!("{}.weight", linear.tensor)
}

fn recipes(
    spec: &ModelSpec,
    base: &Checkpoint,
    plan: &TransformPlan,
    quantized: &BTreeSet<LinearId>,
) -> Result<BTreeMap<String, (Recipe, TensorSpec)>, PipelineError> {
    let mut recipes: BTreeMap<String, (Recipe, TensorSpec)> = BTreeMap::new();
    // What becomes integers is made in full, and so are biases, which are small; what else stays float is as the original has it.
    let kept = |dtype: Dtype| if dtype == Dtype::F64 { Dtype::F32 } else { dtype };
    let mut add = |name: &str, like: &TensorInfo, dtype: Dtype, recipe: Recipe| {
        let tensor = TensorSpec::new(name, dtype, like.shape.clone());
        recipes.insert(name.to_owned(), (recipe, tensor));
    };
    for (id, edits) in &plan.linears {
        let linear = &spec.linears[*id];
        let together: Vec<LinearId> =
            (0..spec.linears.len()).filter(|other| spec.linears[*other].weight == linear.weight).collect();
        let linears = if plan.untied == Some(*id) { vec![*id] } else { together };
        let info = base.require(&linear.weight)?;
        let is_quantized = linears.iter().any(|id| quantized.contains(id));
        let dtype = if is_quantized { Dtype::F32 } else { kept(info.dtype) };
        let name = if plan.untied == Some(*id) { own_weight(linear) } else { linear.weight.clone() };
        add(&name, info, dtype, Recipe::Weight { source: linear.weight.clone(), linears: linears.clone() });
        let changes_bias =
            edits.iter().any(|edit| matches!(edit, Edit::DivideRows { .. } | Edit::RotateRows { .. }));
        if let Some(bias) = linear.bias.as_ref().filter(|_| changes_bias) {
            add(bias, base.require(bias)?, Dtype::F32, Recipe::Bias { linears });
        }
    }
    for (index, (norm, edits)) in plan.norms.iter().enumerate() {
        let info = base.require(&norm.weight)?;
        add(&norm.weight, info, kept(info.dtype), Recipe::Norm { norm: index, is_gain: true });
        if let Some(shift) =
            norm.bias.as_ref().filter(|_| edits.iter().any(|e| matches!(e, NormEdit::Divide(_))))
        {
            add(shift, base.require(shift)?, Dtype::F32, Recipe::Norm { norm: index, is_gain: false });
        }
    }
    for table in spec.tables().filter(|table| plan.tables.contains(&table.tensor)) {
        let info = base.require(&table.tensor)?;
        add(&table.tensor, info, kept(info.dtype), Recipe::Table { width: table.width });
    }
    for (site, smoothing) in &plan.rotations {
        if let Some(smoothing) = smoothing {
            let first = &spec.linears[spec.sites[*site].consumers[0]];
            let name = input_divisors(&first.tensor);
            let tensor = TensorSpec::new(&name, Dtype::F32, [first.inputs]);
            recipes.insert(name, (Recipe::Divisors { smoothing: *smoothing }, tensor));
        }
    }
    Ok(recipes)
}

impl MadeTensors {
    /// The largest magnitudes of activations and of weights, those of channels that share a factor together.
    fn maxima(
        &self,
        smoothing: &Smoothing,
        statistics: &StatisticsFile,
    ) -> Result<[Vec<f32>; 2], PipelineError> {
        let site = &self.spec.sites[smoothing.site];
        let seen = statistics.sites.get(&site.id).ok_or_else(|| PipelineError::Layer {
            path: site.id.clone(),
            reason: ActivationError::Missing.to_string(),
        })?;
        let mut weights = vec![0f32; site.channels];
        for id in &smoothing.linears {
            let weight = self.spec.linears[*id].read_weight(&self.base)?;
            column_maxima(self.isa, &weight, &mut weights);
        }
        let shared = |channels: &[f32]| {
            let mut maxima = vec![0f32; smoothing.factors];
            for (channel, max) in channels.iter().enumerate() {
                let shared = &mut maxima[smoothing.factor_of(channel)];
                *shared = shared.max(*max);
            }
            maxima
        };
        Ok([shared(seen.channel_absmax()), shared(&weights)])
    }

    /// Factors near those given whose quotients of a norm's gain are numbers of the type that the gain is stored in, so that the
    /// product of both is the gain that it was.
    fn representable(&self, norm: usize, mut factors: Vec<f32>) -> Result<Vec<f32>, PipelineError> {
        let dtype = self.base.require(&self.plan.norms[norm].0.weight)?.dtype;
        if !matches!(dtype, Dtype::BF16 | Dtype::F16) {
            return Ok(factors);
        }
        let unit = if self.plan.norms[norm].0.unit_offset { 1.0 } else { 0.0 };
        for (factor, gain) in factors.iter_mut().zip(self.gain(norm)?) {
            let stored = encode(dtype, &[gain / *factor - unit]);
            let divided = floats_from_bytes(dtype, &stored).map_or(0.0, |values| values[0] + unit);
            let near = gain / divided;
            // A gain of zero has no channel behind it.
            *factor = if is_divisor(near) { near } else { 1.0 };
        }
        Ok(factors)
    }

    /// The gain of a norm as it was.
    fn gain(&self, norm: usize) -> Result<Vec<f32>, FormatError> {
        let (norm, _) = &self.plan.norms[norm];
        let mut gain = self.base.read_f32(&norm.weight)?;
        if norm.unit_offset {
            for gain in &mut gain {
                *gain += 1.0;
            }
        }
        Ok(gain)
    }

    /// By the index of the norm, those that go into one of these Linears; nothing of others.
    fn gains(&self, linears: &[LinearId]) -> Result<Vec<Vec<f32>>, FormatError> {
        let mut gains = vec![Vec::new(); self.plan.norms.len()];
        for edit in linears.iter().flat_map(|id| self.edits(*id)) {
            if let Edit::FoldGain { norm } = edit {
                gains[*norm] = self.gain(*norm)?;
            }
        }
        Ok(gains)
    }

    fn edits(&self, linear: LinearId) -> &[Edit] {
        self.plan.linears.get(&linear).map_or(&[], Vec::as_slice)
    }

    /// Some rows of a weight.
    fn weight(
        &self,
        source: &str,
        linears: &[LinearId],
        rows: &Range<usize>,
        factors: &[Vec<f32>],
    ) -> Result<Vec<f32>, FormatError> {
        let gains = self.gains(linears)?;
        let info = self.base.require(source)?;
        if let [only] = linears {
            let linear = &self.spec.linears[*only];
            let edits = self.edits(*only);
            if !linear.transposed && !linear.is_fused_in_file() && edits.iter().all(Edit::is_by_row) {
                let row = (linear.inputs * info.dtype.size()) as u64;
                let bytes = self.base.read_range(source, rows.start as u64 * row..rows.end as u64 * row)?;
                let mut values = floats(info.dtype, &bytes);
                finite(source, &values, linear.inputs, rows.start)?;
                let part = EditedRows { values: &mut values, rows: rows.clone(), inputs: linear.inputs };
                edit_weight(self.isa, &self.plan, edits, (factors, &gains), part);
                return Ok(values);
            }
        }
        let mut values = self.base.read_f32(source)?;
        finite(source, &values, info.shape.last().copied().unwrap_or(1), 0)?;
        for id in linears {
            let linear = &self.spec.linears[*id];
            let (outputs, inputs) = (linear.outputs, linear.inputs);
            let edits = self.edits(*id);
            if linear.transposed {
                let mut weight = transposed(&values, inputs, outputs);
                let part = EditedRows { values: &mut weight, rows: 0..outputs, inputs };
                edit_weight(self.isa, &self.plan, edits, (factors, &gains), part);
                values = transposed(&weight, outputs, inputs);
            } else {
                let own = &mut values[linear.rows.start * inputs..linear.rows.end * inputs];
                let part = EditedRows { values: own, rows: 0..outputs, inputs };
                edit_weight(self.isa, &self.plan, edits, (factors, &gains), part);
            }
        }
        let columns = values.len() / info.shape[0].max(1);
        Ok(values[rows.start * columns..rows.end * columns].to_vec())
    }
}

/// A matrix `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    // Recipes are of float tensors alone: the description has refused others.
    floats_from_bytes(dtype, bytes).unwrap_or_default()
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => bf16_bytes(values),
        Dtype::F16 => f16_bytes(values),
        _ => f32_bytes(values),
    }
}

/// A rotation would spread what is no number over a whole row.
fn finite(tensor: &str, values: &[f32], columns: usize, first: usize) -> Result<(), FormatError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(FormatError::Overlay {
            tensor: tensor.to_owned(),
            reason: format!(
                "it holds {} at row {}, column {}; weights must be finite: the source is damaged",
                values[at],
                first + at / columns,
                at % columns
            ),
        }),
    }
}

impl Overlay for MadeTensors {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.recipes.values().map(|(_, tensor)| tensor.clone()).collect()
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>, FormatError> {
        let failed =
            |reason: &str| FormatError::Overlay { tensor: name.to_owned(), reason: reason.to_owned() };
        let (recipe, tensor) = self.recipes.get(name).ok_or_else(|| failed("nothing is said of it"))?;
        let factors = self.factors.get().ok_or_else(|| failed("its smoothing is not chosen yet"))?;
        let values = match recipe {
            Recipe::Weight { source, linears } => self.weight(source, linears, &rows, factors)?,
            Recipe::Bias { linears } => {
                let mut bias = self.base.read_f32(name)?;
                finite(name, &bias, 1, 0)?;
                for id in linears {
                    let own = self.spec.linears[*id].rows.clone();
                    edit_bias(self.isa, self.edits(*id), factors, &mut bias[own]);
                }
                bias[rows].to_vec()
            }
            Recipe::Norm { norm, is_gain } => {
                let (spec, edits) = &self.plan.norms[*norm];
                let mut values = if *is_gain { self.gain(*norm)? } else { self.base.read_f32(name)? };
                edit_norm(edits, factors, &mut values);
                if *is_gain && spec.unit_offset {
                    for gain in &mut values {
                        *gain -= 1.0;
                    }
                }
                values[rows].to_vec()
            }
            Recipe::Table { width } => {
                let info = self.base.require(name)?;
                let row = (width * info.dtype.size()) as u64;
                let bytes = self.base.read_range(name, rows.start as u64 * row..rows.end as u64 * row)?;
                let mut values = floats(info.dtype, &bytes);
                finite(name, &values, *width, rows.start)?;
                edit_table(self.isa, *width, &mut values);
                values
            }
            Recipe::Divisors { smoothing } => {
                let (factors, smoothing) = (&factors[*smoothing], &self.plan.smoothings[*smoothing]);
                rows.map(|channel| factors[smoothing.factor_of(channel)]).collect()
            }
        };
        Ok(encode(tensor.dtype, &values))
    }
}

#[cfg(test)]
mod tests;
