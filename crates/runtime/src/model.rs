//! A deployable directory as a model that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use zeropoint_core::{ActivationMode, Scheme};
use zeropoint_formats::compressed_tensors::{QuantizationConfig, read_linear};
use zeropoint_formats::{DeployedConfig, FormatError};
use zeropoint_kernels::Isa;
use zeropoint_models::{
    ActivationQuantizer, EmbeddingTable, INT8_ATTENTION, LinearSpec, Model, ModelDirectory, ModelError,
    Outputs, PackedBatch, SiteOp, SourceRef, Tables, Task,
};

use crate::IntegerLinear;
use crate::engine::{Engine, FloatParts};
use crate::head;
use crate::site::{IntegerSite, Reader};

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

/// An INT8 model, ready to run.
pub struct QuantizedModel {
    directory: ModelDirectory,
    model: Model,
    quantized: usize,
}

impl QuantizedModel {
    /// Loads a directory with INT8 weights in compressed-tensors' `int-quantized` form.
    pub fn load(path: &Path, task: Task) -> Result<Self, RuntimeError> {
        let directory = ModelDirectory::open(&SourceRef::Directory(path.to_owned()), task)?;
        Self::from_directory(directory)
    }

    /// As [`QuantizedModel::load`], from a directory that is open already.
    pub fn from_directory(directory: ModelDirectory) -> Result<Self, RuntimeError> {
        let Some(config) = DeployedConfig::from_config(directory.config())? else {
            return Err(RuntimeError::NotQuantized { path: directory.path().to_owned() });
        };
        let isa = Isa::active().map_err(ModelError::from)?;
        let spec = directory.spec().clone();
        let mut quantized = 0;
        let mut sites: Vec<Option<Arc<IntegerSite>>> = vec![None; spec.sites.len()];
        let head = head::load(&directory, isa, config.int8_head)?;
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
                .map(|(linear, scheme)| reader(&directory, isa, linear, *scheme))
                .collect::<Result<_, _>>()?;
            let op = Arc::new(IntegerSite::new(isa, readers));
            sites[site] = Some(Arc::clone(&op));
            Ok(Some(Box::new(op)))
        };
        let table = |table: &EmbeddingTable| Ok(head.as_ref().and_then(|head| head.rows_of(table)));
        let tables = Tables::Made(&table);
        let mut model = Model::load_with(&spec, directory.checkpoint(), &mut factory, tables)?;
        model.set_attention_precision(INT8_ATTENTION);
        for (i, tower) in spec.towers.iter().enumerate() {
            let parts = FloatParts::read(tower, directory.checkpoint(), isa)?;
            if let Some(engine) = Engine::new(isa, &spec, tower, parts, &sites) {
                model.set_block_runner(i, Box::new(engine));
            } else {
                tracing::info!(tower = i, "not all Linears of the blocks are INT8: they run one by one");
            }
        }
        tracing::info!(%isa, quantized, "INT8 model loaded");
        Ok(Self { directory, model, quantized })
    }

    /// The directory it was loaded from.
    pub fn directory(&self) -> &ModelDirectory {
        &self.directory
    }

    /// The model, its quantised Linears in integers.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many of the Linears that the task runs are INT8.
    pub fn quantized_linears(&self) -> usize {
        self.quantized
    }

    /// Sentence vectors or logits, one row a sequence.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        self.model.forward(batch)
    }
}

/// How a Linear is quantised. The config's targets are modules of the class `Linear`, which a convolution is not.
pub(crate) fn scheme_of(config: &QuantizationConfig, linear: &LinearSpec) -> Option<Scheme> {
    if linear.is_torch_linear() { config.scheme_of(&linear.path) } else { None }
}

/// A Linear as the directory has it: INT8 by `scheme`, or float without one.
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
    let bias = linear.read_bias(checkpoint)?;
    let quantizer = match (scheme.activations.mode, stored.input) {
        (ActivationMode::Static, Some(params)) => ActivationQuantizer::Static(params),
        (ActivationMode::Static, None) => return Err(bad("has no `input_scale` beside it".to_owned())),
        (ActivationMode::Dynamic, _) => ActivationQuantizer::Dynamic(scheme.activations.symmetry),
    };
    let packed = IntegerLinear::new(isa, &stored, bias, linear.activation)
        .map_err(|error| bad(format!("cannot be packed: {error}")))?;
    Ok(Reader::Integer(quantizer, Arc::new(packed)))
}
