//! What each tensor of the source becomes, and so every tensor of the output, before any weight is read.

use std::collections::BTreeMap;

use zeropoint_formats::compressed_tensors::linear_tensor_specs;
use zeropoint_formats::{Dtype, PlannedCheckpoint, TensorInfo, TensorSpec};
use zeropoint_models::LinearRole;
use zeropoint_quantizer::LayerScheme;

use crate::Prepared;
use crate::tables::{Stored, TableFate};

/// What one tensor of the source becomes.
pub(super) enum Fate<'a> {
    /// The weight of a planned Linear.
    Quantized(usize, &'a LayerScheme),
    /// The weight of several Linears, some of them planned: each gets tensors of its own, named as `transformers` builds it.
    Split(Vec<(usize, Option<&'a LayerScheme>)>),
    /// The bias of such Linears.
    SplitBias(Vec<usize>),
    /// The bias of a planned Linear that takes up what rounding changes; in f32.
    Bias(usize),
    /// An embedding table that is not copied as it is, or that an INT8 head reads.
    Table(TableFate<'a>),
    /// A second copy of an embedding table.
    Copy(Stored),
    /// Copied.
    Kept,
}

impl Fate<'_> {
    /// Whether it can be told only when the weights of its part are rounded.
    pub(super) fn follows_weights(&self, prepared: &Prepared) -> bool {
        prepared.plan.bias_correction && matches!(self, Self::Bias(_) | Self::SplitBias(_))
    }
}

/// The fate of every tensor of the source, by name; what is not here is copied.
pub(super) struct Fates<'a>(BTreeMap<&'a str, Fate<'a>>);

impl<'a> Fates<'a> {
    pub(super) fn of(prepared: &'a Prepared) -> Self {
        let spec = prepared.graph().spec();
        let mut fates = BTreeMap::new();
        let tables = TableFate::all(prepared);
        // A table that the file holds twice is rounded twice: loaders would untie what differs.
        for (copy, original) in &spec.copies {
            if let Some(fate) = tables.get(original.as_str()) {
                fates.insert(copy.as_str(), Fate::Copy(fate.stored));
            }
        }
        fates.extend(tables.into_iter().map(|(tensor, fate)| (tensor, Fate::Table(fate))));
        for (plan, scheme) in prepared.plan.quantized() {
            let linear = &spec.linears[plan.linear];
            if linear.role == LinearRole::TiedDecoder {
                continue;
            }
            if !linear.is_fused_in_file() {
                fates.insert(&linear.weight, Fate::Quantized(plan.linear, scheme));
                // A Linear that the task does not run has no inputs to take a mean of.
                if let Some(bias) =
                    linear.bias.as_ref().filter(|_| prepared.plan.bias_correction && linear.site.is_some())
                {
                    fates.insert(bias, Fate::Bias(plan.linear));
                }
                continue;
            }
            let together = || {
                prepared
                    .plan
                    .linears
                    .iter()
                    .filter(|other| spec.linears[other.linear].weight == linear.weight)
            };
            let parts = together().map(|other| (other.linear, other.scheme())).collect();
            fates.insert(&linear.weight, Fate::Split(parts));
            if let Some(bias) = &linear.bias {
                fates.insert(bias, Fate::SplitBias(together().map(|other| other.linear).collect()));
            }
        }
        Self(fates)
    }

    pub(super) fn get(&self, tensor: &str) -> &Fate<'a> {
        self.0.get(tensor).unwrap_or(&Fate::Kept)
    }
}

/// Every tensor of the output, known before any weight is read.
pub(crate) fn output_specs(prepared: &Prepared) -> Vec<TensorSpec> {
    let fates = Fates::of(prepared);
    let tensors = prepared.graph().checkpoint().tensors();
    tensors.flat_map(|info| specs_of(prepared, fates.get(&info.name), info)).collect()
}

/// What a tensor of the source becomes.
pub(super) fn specs_of(prepared: &Prepared, fate: &Fate<'_>, info: &TensorInfo) -> Vec<TensorSpec> {
    let spec = prepared.graph().spec();
    let quantized = |id: usize, scheme: &LayerScheme| {
        let linear = &spec.linears[id];
        linear_tensor_specs(&linear.tensor, linear.outputs, linear.inputs, scheme.scheme)
    };
    match fate {
        Fate::Quantized(id, scheme) => quantized(*id, scheme),
        Fate::Split(parts) => parts
            .iter()
            .flat_map(|(id, scheme)| {
                if let Some(scheme) = scheme {
                    return quantized(*id, scheme);
                }
                let linear = &spec.linears[*id];
                let shape = vec![linear.outputs, linear.inputs];
                vec![TensorSpec::new(format!("{}.weight", linear.tensor), info.dtype, shape)]
            })
            .collect(),
        Fate::SplitBias(parts) => {
            let dtype = if prepared.plan.bias_correction { Dtype::F32 } else { info.dtype };
            let linears = parts.iter().map(|id| &spec.linears[*id]);
            linears.map(|l| TensorSpec::new(format!("{}.bias", l.tensor), dtype, vec![l.outputs])).collect()
        }
        Fate::Bias(_) => vec![TensorSpec::new(&info.name, Dtype::F32, info.shape.clone())],
        Fate::Table(fate) => fate.specs(info),
        Fate::Copy(Stored::Bf16) => vec![TensorSpec::new(&info.name, Dtype::BF16, info.shape.clone())],
        // The table serves both.
        Fate::Copy(Stored::Int8) => Vec::new(),
        Fate::Kept | Fate::Copy(Stored::AsItIs) => vec![TensorSpec::from(info)],
    }
}

/// The output's weight files and index, to the byte.
pub(crate) fn planned_output(prepared: &Prepared) -> PlannedCheckpoint {
    PlannedCheckpoint::new(output_specs(prepared), prepared.config.output.max_shard_bytes())
}

/// Bytes of memory for the largest tensor on its way into the output.
pub(crate) fn largest_copy(prepared: &Prepared) -> usize {
    let (tensors, fates) = (prepared.graph().checkpoint().tensors(), Fates::of(prepared));
    let bytes = tensors.map(|info| match fates.get(&info.name) {
        // As it is read, and the next one; in f32, and what it is rounded to.
        Fate::Quantized(..) | Fate::Split(_) | Fate::SplitBias(_) | Fate::Bias(_) => {
            info.elements() * 5 + 2 * info.bytes() as usize
        }
        // In f32, what it is rounded to, and what a head has of it.
        Fate::Table(_) => info.elements() * 7,
        Fate::Copy(Stored::Bf16) => info.elements() * 6,
        Fate::Kept | Fate::Copy(_) => info.bytes() as usize,
    });
    bytes.max().unwrap_or(0)
}
