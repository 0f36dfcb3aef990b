//! A deployable directory as a model that runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use thiserror::Error;
use zeropoint_core::{ActivationMode, ActivationScheme, Scheme};
use zeropoint_formats::compressed_tensors::{QuantizationConfig, read_linear};
use zeropoint_formats::{DeployedConfig, FormatError};
use zeropoint_kernels::{Isa, PackError};
use zeropoint_models::{
    ActivationQuantizer, EmbeddingTable, INT8_ATTENTION, LinearSpec, Model, ModelDirectory, ModelError,
    ModelParts, ModelSpec, Outputs, PackedBatch, Part, PartModel, SiteOp, SourceRef, Tables, Task, Tower,
};

use crate::engine::{BlockParts, Engine, Sites};
use crate::head;
use crate::site::{IntegerSite, Reader};
use crate::{IntegerLinear, WeightOnlyLinear};

/// Why a directory cannot be loaded or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The directory is not a quantised model.
    #[error(
        "{path}: config.json has no `quantization_config`; a directory written by `zeropoint run` is expected"
    )]
    NotQuantized {
        /// The directory.
        path: PathBuf,
    },
    /// Its files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its description, or running it.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A quantised model, ready to run.
pub struct QuantizedModel {
    directory: ModelDirectory,
    model: Model,
    quantized: usize,
}

impl QuantizedModel {
    /// Loads a directory of compressed-tensors: INT8 (`int-quantized`), weight-only (`pack-quantized`), or both beside each
    /// other.
    ///
    /// Attention multiplies numbers of [`INT8_ATTENTION`] where any Linear quantises its activation, otherwise f32: a
    /// weight-only model rounds no activation.
    pub fn load(path: &Path, task: Task) -> Result<Self, RuntimeError> {
        let directory = ModelDirectory::open(&SourceRef::Directory(path.to_owned()), task)?;
        Self::from_directory(directory)
    }

    /// As [`QuantizedModel::load`], from a directory that is open already.
    pub fn from_directory(directory: ModelDirectory) -> Result<Self, RuntimeError> {
        let Some(config) = DeployedConfig::from_config(directory.config())? else {
            return Err(RuntimeError::NotQuantized { path: directory.path().to_owned() });
        };
        let (model, quantized) = load_part(&directory, &config, Part::Whole)?;
        tracing::info!(isa = %model.isa(), quantized, "quantised model loaded");
        Ok(Self { directory, model, quantized })
    }

    /// The directory it was loaded from.
    pub fn directory(&self) -> &ModelDirectory {
        &self.directory
    }

    /// The model, its quantised Linears as they are stored.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many of the Linears that the task runs are quantised.
    pub fn quantized_linears(&self) -> usize {
        self.quantized
    }

    /// Sentence vectors or logits, one row a sequence.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        self.model.forward(batch)
    }
}

/// An INT8 model that is loaded part by part, or whole at its first use.
pub struct QuantizedParts {
    directory: ModelDirectory,
    config: DeployedConfig,
    parts: Vec<Part>,
    whole: OnceLock<Model>,
}

impl QuantizedParts {
    /// Of a directory as [`QuantizedModel::load`] takes it, of which no weight is read yet; kept whole where its weights would
    /// take at most `whole_bytes` in f32 or it has no parts.
    pub fn open(path: &Path, task: Task, whole_bytes: u64) -> Result<Self, RuntimeError> {
        let directory = ModelDirectory::open(&SourceRef::Directory(path.to_owned()), task)?;
        Self::from_directory(directory, whole_bytes)
    }

    /// As [`QuantizedParts::open`], of a directory that is open already.
    pub fn from_directory(directory: ModelDirectory, whole_bytes: u64) -> Result<Self, RuntimeError> {
        let Some(config) = DeployedConfig::from_config(directory.config())? else {
            return Err(RuntimeError::NotQuantized { path: directory.path().to_owned() });
        };
        let parts = Part::of(directory.spec()).filter(|_| directory.spec().float_bytes() > whole_bytes);
        let parts = parts.unwrap_or_else(|| vec![Part::Whole]);
        Ok(Self { directory, config, parts, whole: OnceLock::new() })
    }

    /// The directory.
    pub fn directory(&self) -> &ModelDirectory {
        &self.directory
    }
}

impl ModelParts for QuantizedParts {
    fn spec(&self) -> &ModelSpec {
        self.directory.spec()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn load(&self, part: Part) -> Result<PartModel<'_>, ModelError> {
        if part != Part::Whole {
            return Ok(PartModel::Loaded(Box::new(load_part(&self.directory, &self.config, part)?.0)));
        }
        if self.whole.get().is_none() {
            // Of two threads that both load it one model stays.
            let _ = self.whole.set(load_part(&self.directory, &self.config, part)?.0);
        }
        self.whole.get().map(PartModel::Kept).ok_or_else(|| ModelError::Sample {
            reason: "the INT8 model was lost while it was loaded".to_owned(),
        })
    }
}

/// A part of the model in a directory, and how many of its Linears are INT8.
fn load_part(
    directory: &ModelDirectory,
    config: &DeployedConfig,
    part: Part,
) -> Result<(Model, usize), ModelError> {
    let isa = Isa::active()?;
    let spec = directory.spec();
    let mut quantized = 0;
    let mut sites: Vec<Option<Arc<IntegerSite>>> = vec![None; spec.sites.len()];
    // Where the input alone is loaded its table is read as any other, INT8 or not.
    let head = head::load(directory, isa, config.int8_head && part.has_output())?;
    let mut factory = |site: usize| -> Result<Option<Box<dyn SiteOp>>, ModelError> {
        let consumers = &spec.sites[site].consumers;
        if let Some(head) = head.as_ref().filter(|head| consumers == &[head.id]) {
            quantized += 1;
            return Ok(Some(Box::new(IntegerSite::new(isa, vec![head.reader()]))));
        }
        let linears: Vec<&LinearSpec> = consumers.iter().map(|&id| &spec.linears[id]).collect();
        let schemes: Vec<Option<Scheme>> =
            linears.iter().map(|linear| scheme_of(&config.linears, linear)).collect();
        if schemes.iter().all(Option::is_none) {
            return Ok(None);
        }
        quantized += schemes.iter().flatten().count();
        let readers = linears
            .iter()
            .zip(&schemes)
            .map(|(linear, scheme)| reader(directory, isa, linear, *scheme))
            .collect::<Result<_, _>>()?;
        let op = Arc::new(IntegerSite::new(isa, readers));
        sites[site] = Some(Arc::clone(&op));
        Ok(Some(Box::new(op)))
    };
    let table = |table: &EmbeddingTable| Ok(head.as_ref().and_then(|head| head.rows_of(table)));
    let tables = Tables::Made(&table);
    let mut model = Model::load_part(spec, directory.checkpoint(), part, &mut factory, tables)?;
    // One precision for all parts of a model.
    let schemes = spec.linears.iter().filter(|linear| linear.site.is_some());
    let mut schemes = schemes.filter_map(|linear| scheme_of(&config.linears, linear));
    if config.int8_head || schemes.any(|scheme| !scheme.is_weight_only()) {
        model.set_attention_precision(INT8_ATTENTION);
    }
    for (i, tower) in spec.towers.iter().enumerate() {
        let blocks = part.blocks(tower);
        if blocks.is_empty() {
            continue;
        }
        let tower = Tower { blocks: tower.blocks[blocks].to_vec(), ..tower.clone() };
        let parts = BlockParts::read(&tower, directory.checkpoint(), isa, part.has_output())?;
        let rotations = (0..sites.len()).map(|site| model.rotation(site).cloned()).collect::<Vec<_>>();
        let all = Sites { integer: &sites, rotations: &rotations };
        if let Some(engine) = Engine::new(isa, spec, &tower, parts, all) {
            model.set_block_runner(i, Box::new(engine));
        } else {
            tracing::info!(tower = i, %part, "not all Linears of the blocks are INT8: they run one by one");
        }
    }
    Ok((model, quantized))
}

/// How a Linear is quantised. The config's targets are modules of the class `Linear`, which a convolution is not.
pub(crate) fn scheme_of(config: &QuantizationConfig, linear: &LinearSpec) -> Option<Scheme> {
    if linear.is_torch_linear() { config.scheme_of(&linear.path) } else { None }
}

/// A Linear as the directory has it: quantised by `scheme`, or float without one.
pub(crate) fn reader(
    directory: &ModelDirectory,
    isa: Isa,
    linear: &LinearSpec,
    scheme: Option<Scheme>,
) -> Result<Reader, ModelError> {
    let checkpoint = directory.checkpoint();
    let Some(scheme) = scheme else { return Ok(Reader::Float(linear.read_float(checkpoint)?)) };
    let bad = |reason: String| ModelError::Tensor {
        path: directory.path().to_owned(),
        tensor: linear.weight.clone(),
        reason,
    };
    let stored = read_linear(checkpoint, &linear.tensor, scheme)?;
    let (found, expected) = ([stored.outputs, stored.inputs], [linear.outputs, linear.inputs]);
    if found != expected {
        return Err(bad(format!(
            "is of shape {found:?} by its `weight_shape`; config.json says {expected:?}"
        )));
    }
    let bias = linear.read_bias(checkpoint)?;
    let unpackable = |error: PackError| bad(format!("cannot be packed: {error}"));
    let Some(ActivationScheme { mode, symmetry }) = scheme.activations else {
        let bits = scheme.weights.bits;
        let packed =
            WeightOnlyLinear::new(isa, &stored, bits, bias, linear.activation).map_err(unpackable)?;
        return Ok(Reader::WeightOnly(packed));
    };
    let quantizer = match (mode, stored.input) {
        (ActivationMode::Static, Some(params)) => ActivationQuantizer::Static(params),
        (ActivationMode::Static, None) => return Err(bad("has no `input_scale` beside it".to_owned())),
        (ActivationMode::Dynamic, _) => ActivationQuantizer::Dynamic(symmetry),
    };
    let packed = IntegerLinear::new(isa, &stored, bias, linear.activation).map_err(unpackable)?;
    Ok(Reader::Integer(quantizer, Arc::new(packed)))
}
