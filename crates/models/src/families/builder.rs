//! What every family's description is put together with: tensors checked against config.json, Linears, sites, norms.

mod heads;

use std::collections::BTreeSet;

use zeropoint_core::WeightBits;
use zeropoint_formats::Dtype;
use zeropoint_formats::compressed_tensors::packed::row_words;
use zeropoint_formats::deployed::{DirectoryFormat, INPUT_DIVISORS, format_of, table_scale};

use super::FamilyInput;
use crate::ModelError;
use crate::heads::HeadStep;
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, Edge, EmbeddingRole, EmbeddingTable, LinearId, LinearRole,
    LinearSpec, ModelSpec, NormKind, NormPlacement, NormSpec, Projection, Site, SiteId, Tower,
};

/// Tensors beside the weight of a quantised Linear. Which of them belong to a scheme is known to those who read it.
const QUANTIZED_PARTS: [&str; 7] = [
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
    INPUT_DIVISORS,
];

/// A Linear about to be described.
pub(super) struct Draft<'a> {
    pub(super) path: &'a str,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) bias: bool,
    pub(super) activation: ActivationFn,
    pub(super) role: LinearRole,
    /// Whether the file has its weight transposed.
    pub(super) transposed: bool,
}

impl<'a> Draft<'a> {
    /// A Linear with a bias and no non-linearity.
    pub(super) fn new(path: &'a str, outputs: usize, inputs: usize, role: LinearRole) -> Self {
        Self {
            path,
            outputs,
            inputs,
            bias: true,
            activation: ActivationFn::Identity,
            role,
            transposed: false,
        }
    }

    pub(super) fn activation(self, activation: ActivationFn) -> Self {
        Self { activation, ..self }
    }

    pub(super) fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }
}

/// Collects Linears, sites and edges while a description is written down.
pub(super) struct Builder<'a> {
    pub(super) input: &'a FamilyInput<'a>,
    /// What the base model's tensors are called in the file before their module paths, such as `bert.`.
    in_file: &'static str,
    /// What stands before the base model's paths in the model that `transformers` builds.
    in_module: &'static str,
    eps: f32,
    pub(super) linears: Vec<LinearSpec>,
    pub(super) sites: Vec<Site>,
    pub(super) edges: Vec<Edge>,
    known: BTreeSet<String>,
    copies: Vec<(String, String)>,
    absent: Vec<String>,
    logit_scale: Option<String>,
}

impl<'a> Builder<'a> {
    /// `prefix` is the attribute under which task models keep the base model, with its dot; `probe` is a tensor that every
    /// checkpoint of the family has.
    ///
    /// Checkpoints saved from a task model keep the base model under the prefix, one saved from the base model does
    /// not. `transformers` loads both into either class, so the file's prefix and the module's differ.
    pub(super) fn new(
        input: &'a FamilyInput<'a>,
        prefix: &'static str,
        probe: &str,
        base: bool,
        eps: (&str, f64),
    ) -> Result<Self, ModelError> {
        let prefixed = input.checkpoint.contains(&format!("{prefix}{probe}"));
        let mut build = Self {
            input,
            in_file: if prefixed { prefix } else { "" },
            in_module: if base { "" } else { prefix },
            eps: 0.0,
            linears: Vec::new(),
            sites: Vec::new(),
            edges: Vec::new(),
            known: BTreeSet::new(),
            copies: Vec::new(),
            absent: Vec::new(),
            logit_scale: None,
        };
        build.set_eps(eps)?;
        Ok(build)
    }

    /// Sets what the norms from here on add to the variance.
    pub(super) fn set_eps(&mut self, (key, eps): (&str, f64)) -> Result<(), ModelError> {
        if !(eps > 0.0 && eps < 1.0) {
            return Err(self.input.config_error(format!("`{key}` is {eps}; it lies between 0 and 1")));
        }
        self.eps = eps as f32;
        Ok(())
    }

    /// Names the tensor of [`ModelSpec::logit_scale`].
    pub(super) fn logit_scale(&mut self, tensor: &str) {
        self.logit_scale = Some(tensor.to_owned());
    }

    /// Sets what stands before module paths, where it is not what stands before the file's names.
    pub(super) fn module_prefix(&mut self, prefix: &'static str) {
        self.in_module = prefix;
    }

    /// The name of a base model's tensor in the file.
    pub(super) fn in_file(&self, path: &str) -> String {
        format!("{}{path}", self.in_file)
    }

    /// The path of a base model's module.
    pub(super) fn in_module(&self, path: &str) -> String {
        format!("{}{path}", self.in_module)
    }

    /// Whether the file has that tensor of the base model.
    pub(super) fn has(&self, path: &str) -> bool {
        self.input.checkpoint.contains(&self.in_file(path))
    }

    /// The tensor of a Linear's weight that is packed: integers of 4 or 8 bits, in place of `weight`.
    fn packed_weight(&self, tensor: &str) -> Option<String> {
        let packed = format!("{tensor}.weight_packed");
        let there = |name: &str| self.input.checkpoint.contains(name);
        (self.input.quantized && there(&packed) && !there(&format!("{tensor}.weight"))).then_some(packed)
    }

    /// Takes a packed weight `[outputs, inputs]` into the description.
    fn expect_packed(&mut self, tensor: &str, outputs: usize, inputs: usize) -> Result<(), ModelError> {
        let wrong = |reason: String| ModelError::Tensor {
            path: self.input.dir.to_owned(),
            tensor: tensor.to_owned(),
            reason,
        };
        let Some(info) = self.input.checkpoint.get(tensor) else {
            return Err(wrong("is missing".to_owned()));
        };
        let shapes = [WeightBits::Four, WeightBits::Eight].map(|bits| [outputs, row_words(inputs, bits)]);
        if !shapes.iter().any(|shape| info.shape == *shape) {
            return Err(wrong(format!(
                "has shape {:?}; [{outputs}, {inputs}], as config.json says, is {:?} in 4 bits and {:?} in 8",
                info.shape, shapes[0], shapes[1]
            )));
        }
        if info.dtype != Dtype::I32 {
            return Err(wrong(format!("is stored as {}; packed weights are I32", info.dtype)));
        }
        self.known.insert(tensor.to_owned());
        Ok(())
    }

    /// Whether the file has the weight of that Linear of the base model, packed or not.
    pub(super) fn has_weight(&self, path: &str) -> bool {
        self.has(&format!("{path}.weight")) || self.packed_weight(&self.in_file(path)).is_some()
    }

    /// Takes a tensor into the description; its shape and type must be right.
    pub(super) fn expect(&mut self, tensor: &str, shape: &[usize]) -> Result<(), ModelError> {
        let wrong = |reason: String| ModelError::Tensor {
            path: self.input.dir.to_owned(),
            tensor: tensor.to_owned(),
            reason,
        };
        let Some(info) = self.input.checkpoint.get(tensor) else {
            return Err(wrong(format!("is missing; config.json describes one of shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(wrong(format!("has shape {:?}; config.json says {shape:?}", info.shape)));
        }
        let integers = self.input.quantized && info.dtype == Dtype::I8;
        if !(info.dtype.is_float() || integers) {
            return Err(wrong(format!("is stored as {}; F32, F16, BF16 and F64 are supported", info.dtype)));
        }
        self.known.insert(tensor.to_owned());
        Ok(())
    }

    /// An embedding table of the base model.
    pub(super) fn table(
        &mut self,
        path: &str,
        rows: usize,
        width: usize,
        role: EmbeddingRole,
    ) -> Result<EmbeddingTable, ModelError> {
        let tensor = self.in_file(&format!("{path}.weight"));
        self.expect(&tensor, &[rows, width])?;
        if self.is_own_int8(&tensor) {
            self.known.insert(table_scale(&tensor));
        }
        Ok(EmbeddingTable { tensor, rows, width, role })
    }

    /// A norm of the base model, with gain and shift.
    pub(super) fn norm(&mut self, path: &str, width: usize) -> Result<NormSpec, ModelError> {
        let (file, module) = (self.in_file(path), self.in_module(path));
        self.norm_at(&file, module, width, true)
    }

    /// A norm of the base model that may lack the shift.
    pub(super) fn norm_without_shift(
        &mut self,
        path: &str,
        width: usize,
        shift: bool,
    ) -> Result<NormSpec, ModelError> {
        let (file, module) = (self.in_file(path), self.in_module(path));
        self.norm_at(&file, module, width, shift)
    }

    /// An `RMSNorm` of the base model.
    pub(super) fn rms_norm(&mut self, path: &str, width: usize) -> Result<NormSpec, ModelError> {
        Ok(NormSpec { kind: NormKind::Rms, ..self.norm_without_shift(path, width, false)? })
    }

    /// A norm outside the base model.
    pub(super) fn head_norm(
        &mut self,
        path: &str,
        width: usize,
        shift: bool,
    ) -> Result<NormSpec, ModelError> {
        self.norm_at(path, path.to_owned(), width, shift)
    }

    fn norm_at(
        &mut self,
        file: &str,
        path: String,
        width: usize,
        shift: bool,
    ) -> Result<NormSpec, ModelError> {
        // Checkpoints converted from TensorFlow name the gain and shift gamma and beta; `transformers` renames them.
        let old = self.input.checkpoint.contains(&format!("{file}.gamma"));
        let (gain, beta) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let (weight, bias) = (format!("{file}.{gain}"), shift.then(|| format!("{file}.{beta}")));
        self.expect(&weight, &[width])?;
        if let Some(bias) = &bias {
            self.expect(bias, &[width])?;
        }
        Ok(NormSpec { kind: NormKind::Layer, path, weight, unit_offset: false, bias, eps: self.eps })
    }

    /// A Linear of the base model.
    pub(super) fn linear(&mut self, draft: &Draft<'_>) -> Result<LinearId, ModelError> {
        let (file, module) = (self.in_file(draft.path), self.in_module(draft.path));
        self.linear_at(draft, file, module)
    }

    /// A Linear outside the base model.
    pub(super) fn head_linear(&mut self, draft: &Draft<'_>) -> Result<LinearId, ModelError> {
        self.linear_at(draft, draft.path.to_owned(), draft.path.to_owned())
    }

    fn linear_at(&mut self, draft: &Draft<'_>, tensor: String, path: String) -> Result<LinearId, ModelError> {
        let weight = format!("{tensor}.weight");
        let bias = draft.bias.then(|| format!("{tensor}.bias"));
        self.push(LinearSpec {
            path,
            weight,
            weight_shape: if draft.transposed {
                vec![draft.inputs, draft.outputs]
            } else {
                vec![draft.outputs, draft.inputs]
            },
            transposed: draft.transposed,
            rows: 0..draft.outputs,
            bias,
            tensor,
            outputs: draft.outputs,
            inputs: draft.inputs,
            activation: draft.activation,
            site: None,
            role: draft.role,
        })
    }

    /// The convolution of the base model that embeds square patches, `[outputs, channels, patch, patch]`: its stride is its
    /// size, so it is a Linear over flattened patches.
    pub(super) fn convolution(
        &mut self,
        path: &str,
        outputs: usize,
        channels: usize,
        patch: usize,
        bias: bool,
    ) -> Result<LinearId, ModelError> {
        let tensor = self.in_file(path);
        self.push(LinearSpec {
            path: self.in_module(path),
            weight: format!("{tensor}.weight"),
            weight_shape: vec![outputs, channels, patch, patch],
            transposed: false,
            rows: 0..outputs,
            bias: bias.then(|| format!("{tensor}.bias")),
            tensor,
            outputs,
            inputs: channels * patch * patch,
            activation: ActivationFn::Identity,
            site: None,
            role: LinearRole::PatchEmbedding,
        })
    }

    /// Linears of the base model that `transformers` builds apart and the file keeps in one tensor, one after the other; a
    /// file that we or others wrote from the built model has them apart. `fused` is the tensor's path.
    pub(super) fn split_linears(
        &mut self,
        fused: &str,
        drafts: &[Draft<'_>],
    ) -> Result<Vec<LinearId>, ModelError> {
        if !self.has(&format!("{fused}.weight")) {
            return drafts.iter().map(|draft| self.linear(draft)).collect();
        }
        let fused = self.in_file(fused);
        let total = drafts.iter().map(|draft| draft.outputs).sum();
        let mut start = 0;
        drafts
            .iter()
            .map(|draft| {
                let rows = start..start + draft.outputs;
                start = rows.end;
                self.push(LinearSpec {
                    path: self.in_module(draft.path),
                    tensor: self.in_file(draft.path),
                    weight: format!("{fused}.weight"),
                    weight_shape: vec![total, draft.inputs],
                    transposed: false,
                    rows,
                    bias: draft.bias.then(|| format!("{fused}.bias")),
                    outputs: draft.outputs,
                    inputs: draft.inputs,
                    activation: draft.activation,
                    site: None,
                    role: draft.role,
                })
            })
            .collect()
    }

    /// A Linear of the base model that the file calls `file`, unless the file was written from the built model.
    pub(super) fn renamed_linear(&mut self, file: &str, draft: &Draft<'_>) -> Result<LinearId, ModelError> {
        let file = if self.has_weight(file) { file } else { draft.path };
        let (file, module) = (self.in_file(file), self.in_module(draft.path));
        self.linear_at(draft, file, module)
    }

    /// As [`Builder::renamed_linear`], for a norm.
    pub(super) fn renamed_norm(
        &mut self,
        file: &str,
        path: &str,
        width: usize,
    ) -> Result<NormSpec, ModelError> {
        let file = if self.has(&format!("{file}.weight")) { file } else { path };
        let (file, module) = (self.in_file(file), self.in_module(path));
        self.norm_at(&file, module, width, true)
    }

    /// Whether the file is of our own format and holds that tensor in INT8.
    fn is_own_int8(&self, tensor: &str) -> bool {
        let is_int8 = self.input.checkpoint.get(tensor).is_some_and(|info| info.dtype == Dtype::I8);
        is_int8 && self.input.quantized && format_of(self.input.config) == DirectoryFormat::Zeropoint
    }

    /// Takes a Linear into the description; its tensors must be there.
    pub(super) fn push(&mut self, mut linear: LinearSpec) -> Result<LinearId, ModelError> {
        let is_own = format_of(self.input.config) == DirectoryFormat::Zeropoint;
        let is_packed = || is_own && self.packed_weight(&linear.tensor).is_some();
        if linear.transposed && (self.is_own_int8(&linear.weight) || is_packed()) {
            // Quantised weights have their outputs first.
            linear.transposed = false;
            linear.weight_shape = vec![linear.outputs, linear.inputs];
        }
        let own = linear.weight == format!("{}.weight", linear.tensor) && linear.is_torch_linear();
        if let Some(packed) = self.packed_weight(&linear.tensor).filter(|_| own) {
            self.expect_packed(&packed, linear.outputs, linear.inputs)?;
            linear.weight = packed;
        } else {
            self.expect(&linear.weight, &linear.weight_shape)?;
        }
        if let Some(bias) = &linear.bias {
            self.expect(bias, &linear.weight_shape[usize::from(linear.transposed)..][..1])?;
        }
        if self.input.quantized {
            self.known.extend(QUANTIZED_PARTS.map(|part| format!("{}.{part}", linear.tensor)));
        }
        self.linears.push(linear);
        Ok(self.linears.len() - 1)
    }

    /// The whole output of a Linear.
    pub(super) fn whole(&self, linear: LinearId) -> Projection {
        Projection { linear, outputs: 0..self.linears[linear].outputs, stride: None }
    }

    /// An activation that these Linears read.
    pub(super) fn site(&mut self, consumers: Vec<LinearId>) -> SiteId {
        let id = self.sites.len();
        let first = &self.linears[consumers[0]];
        let (id_of_site, channels) = (format!("{}.input", first.path), first.inputs);
        let site = Site { id: id_of_site, channels, consumers, rotation: None };
        for &consumer in &site.consumers {
            self.linears[consumer].site = Some(id);
        }
        self.sites.push(site);
        id
    }

    /// One step of a head: the site of a Linear, and the norm after it.
    pub(super) fn step(&mut self, linear: LinearId, norm: Option<NormSpec>) -> HeadStep {
        HeadStep { site: self.site(vec![linear]), norm, cap: None }
    }

    /// Records how the operators of these blocks feed each other. `feeding` is the norm before the first block of a
    /// post-norm model.
    pub(super) fn connect(&mut self, blocks: &[BlockSpec], feeding: Option<&NormSpec>) {
        let mut residual_norm = feeding.map(|norm| norm.path.clone());
        let mut seen = BTreeSet::new();
        for block in blocks {
            let AttentionSpec { query, key, value, output, heads, kv_heads, .. } = &block.attention;
            let mut readers = vec![query.linear, key.linear, value.linear];
            readers.dedup();
            let post = block.placement == NormPlacement::Post;
            let first = if post {
                residual_norm.take()
            } else {
                block.attention_norm.as_ref().map(|n| n.path.clone())
            };
            let second = if post {
                block.attention_norm.as_ref().map(|n| n.path.clone())
            } else {
                Some(block.mlp_norm.path.clone())
            };
            let router = block.mlp.experts().map(|mixture| &self.sites[mixture.router].consumers);
            let mut wide: Vec<LinearId> = router.into_iter().flatten().copied().collect();
            for mlp in block.mlp.mlps() {
                wide.extend(mlp.gate.iter().map(|gate| gate.projection.linear).chain([mlp.up.linear]));
            }
            wide.dedup();
            // A block that shares its layers with an earlier one adds nothing but the norm that feeds it.
            let repeated = !seen.insert(*output);
            for (norm, linears) in [(first, readers), (second, wide)] {
                let edge = norm.map(|norm| Edge::NormToLinears { norm, linears, residual: post });
                self.edges.extend(edge.filter(|edge| !self.edges.contains(edge)));
            }
            if !repeated {
                if value.outputs.len() == self.linears[value.linear].outputs {
                    self.edges.push(Edge::ValueToOutput {
                        value: value.linear,
                        output: *output,
                        heads: *heads,
                        kv_heads: *kv_heads,
                    });
                }
                for mlp in block.mlp.mlps() {
                    if mlp.up.outputs.len() == self.linears[mlp.up.linear].outputs {
                        self.edges.push(Edge::UpToDown { up: mlp.up.linear, down: mlp.down });
                    }
                }
            }
            residual_norm = Some(block.mlp_norm.path.clone());
        }
    }

    /// Every tensor of the file is either described or known to be unused; anything else is not understood, and what is
    /// not understood is not published. `unused` are beginnings of names, those of the base model without its prefix.
    pub(super) fn finish(
        self,
        architecture: &str,
        towers: Vec<Tower>,
        unused: &[(&str, &str)],
    ) -> Result<ModelSpec, ModelError> {
        let mut carried = Vec::new();
        for info in self.input.checkpoint.tensors().filter(|info| !self.known.contains(&info.name)) {
            let name = info.name.strip_prefix(self.in_file).unwrap_or(&info.name);
            let Some((_, reason)) = unused.iter().find(|(start, _)| name.starts_with(start)) else {
                return Err(ModelError::Tensor {
                    path: self.input.dir.to_owned(),
                    tensor: info.name.clone(),
                    reason: format!(
                        "is not part of the architecture that config.json describes ({} layers); a directory that \
                         holds it cannot be converted safely",
                        towers.iter().map(|tower| tower.blocks.len()).sum::<usize>()
                    ),
                });
            };
            carried.push((info.name.clone(), (*reason).to_owned()));
        }
        Ok(ModelSpec {
            architecture: architecture.to_owned(),
            towers,
            sites: self.sites,
            linears: self.linears,
            edges: self.edges,
            unused: carried,
            copies: self.copies,
            absent_linears: self.absent,
            logit_scale: self.logit_scale,
        })
    }
}
