//! What tasks need of a model: outputs of batches.

use zeropoint_kernels::Isa;
use zeropoint_models::{Model, ModelError, ModelSpec, Outputs, PackedBatch};

/// Outputs of batches, in order.
pub type BatchOutputs<'a> = Box<dyn Iterator<Item = Result<Outputs, ModelError>> + 'a>;

/// Whatever gives outputs: a model in memory, or one whose blocks are loaded one after the other.
pub trait Forward: Sync {
    /// The description of the model.
    fn spec(&self) -> &ModelSpec;

    /// The instruction set its kernels use.
    fn isa(&self) -> Isa;

    /// Vectors or logits of each sample of a batch.
    fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError>;

    /// The outputs of several batches, in order, each made when it is asked for. Tasks give all batches of a pass at once, so
    /// that a model may take all of them through one block before it loads the next.
    fn forward_all<'a>(&'a self, batches: &'a [PackedBatch]) -> BatchOutputs<'a> {
        Box::new(batches.iter().map(|batch| self.forward(batch)))
    }
}

impl Forward for Model {
    fn spec(&self) -> &ModelSpec {
        Model::spec(self)
    }

    fn isa(&self) -> Isa {
        Model::isa(self)
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        Model::forward(self, batch)
    }
}
