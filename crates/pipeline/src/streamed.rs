//! The outputs of models that are run part by part.

use zeropoint_calibrator::Room;
use zeropoint_evaluator::tasks::{BatchOutputs, Forward};
use zeropoint_kernels::Isa;
use zeropoint_models::{
    HiddenStates, ModelError, ModelParts, ModelSpec, Outputs, PackedBatch, Part, PartModel, State,
};

use crate::events::{Cancel, Event, Events};

/// A model for tasks: all batches go through one part before any goes through the next, and outputs are made one batch at a
/// time.
pub(crate) struct Streamed<'a> {
    model: &'a dyn ModelParts,
    isa: Isa,
    room: Room<'a>,
    original: bool,
    events: &'a dyn Events,
    cancel: &'a Cancel,
}

impl<'a> Streamed<'a> {
    /// With hidden states in `room`; `original` says which of both models it is.
    pub(crate) fn new(
        model: &'a dyn ModelParts,
        original: bool,
        room: Room<'a>,
        events: &'a dyn Events,
        cancel: &'a Cancel,
    ) -> Result<Self, ModelError> {
        Ok(Self { model, isa: Isa::active()?, room, original, events, cancel })
    }

    /// The hidden states of all batches before the output, and what makes outputs of them.
    fn before_output(&self, batches: &[PackedBatch]) -> Result<(HiddenStates, PartModel<'_>), ModelError> {
        let mut states = HiddenStates::new(batches.len(), self.room.memory, self.room.dir);
        let parts = self.model.parts();
        let (last, before) = parts.split_last().unwrap_or((&Part::Whole, &[]));
        for (at, &part) in before.iter().enumerate() {
            let model = self.model.load(part)?;
            for (index, batch) in batches.iter().enumerate() {
                if self.cancel.is_requested() {
                    return Err(ModelError::Sample { reason: "the run was stopped".to_owned() });
                }
                states.update(index, |state| model.advance(batch, state))?;
                let (done, total) = (at * batches.len() + index + 1, before.len() * batches.len());
                self.events.event(Event::Advanced { original: self.original, done, total });
            }
            tracing::debug!(%part, batches = batches.len(), "all batches are through");
        }
        Ok((states, self.model.load(*last)?))
    }
}

impl Forward for Streamed<'_> {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn isa(&self) -> Isa {
        self.isa
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Outputs, ModelError> {
        let mut outputs = self.forward_all(std::slice::from_ref(batch));
        outputs.next().unwrap_or_else(|| Err(no_output()))
    }

    fn forward_all<'a>(&'a self, batches: &'a [PackedBatch]) -> BatchOutputs<'a> {
        let mut ready: Option<(HiddenStates, PartModel<'a>)> = None;
        Box::new(batches.iter().enumerate().map(move |(index, batch)| {
            let (states, output) = match &mut ready {
                Some(ready) => ready,
                None => ready.insert(self.before_output(batches)?),
            };
            match output.advance(batch, states.take(index)?)? {
                State::Done(outputs) => Ok(outputs),
                State::Begin | State::Hidden(_) => Err(no_output()),
            }
        }))
    }
}

fn no_output() -> ModelError {
    ModelError::Sample { reason: "the last part of the model gave no output".to_owned() }
}
