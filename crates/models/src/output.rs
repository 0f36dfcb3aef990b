//! From hidden states to the output: the head at work.

use candle_core::{Device, Tensor};
use zeropoint_formats::{Checkpoint, SafetensorsFile};
use zeropoint_kernels::Isa;

use crate::ModelError;
use crate::batch::{Content, PackedBatch};
use crate::heads::{HeadOutput, HeadSpec, RowSelection, SentenceStep};
use crate::model::{Outputs, Pass};
use crate::ops::{Norm, SoftCapInPlace};
use crate::pooling::{normalize_rows, pool};
use crate::sites::FloatLinear;

/// The float parts of a [`HeadSpec`].
pub(crate) struct Head {
    isa: Isa,
    /// For each branch, the norms of its steps.
    norms: Vec<Vec<Option<Norm>>>,
    /// The Linears of the dense steps, in order.
    dense: Vec<FloatLinear>,
}

impl Head {
    pub(crate) fn load(spec: &HeadSpec, checkpoint: &Checkpoint, isa: Isa) -> Result<Self, ModelError> {
        let norms = spec
            .branches
            .iter()
            .map(|branch| {
                let norms = branch.steps.iter().map(|step| step.norm.as_ref());
                norms.map(|norm| norm.map(|norm| norm.read(checkpoint, isa)).transpose()).collect()
            })
            .collect::<Result<_, ModelError>>()?;
        let mut dense = Vec::new();
        if let HeadOutput::Embedding { after, .. } = &spec.output {
            for step in after {
                dense.extend(step.load(checkpoint)?);
            }
        }
        Ok(Self { isa, norms, dense })
    }

    /// The output for hidden states `[rows, hidden]` of samples that begin at `offsets`; none of a pass that only observes.
    pub(crate) fn run(
        &self,
        spec: &HeadSpec,
        pass: &mut Pass<'_, '_>,
        hidden: &Tensor,
        offsets: &[usize],
        batch: &PackedBatch,
    ) -> Result<Outputs, ModelError> {
        let mut sum: Option<Tensor> = None;
        for (branch, norms) in spec.branches.iter().zip(&self.norms) {
            let last = branch.steps.len().saturating_sub(1);
            let mut x = select(&branch.rows, spec, hidden, offsets, batch)?;
            for (i, (step, norm)) in branch.steps.iter().zip(norms).enumerate() {
                if pass.observes_only && i == last {
                    pass.observe(step.site, &x)?;
                    continue;
                }
                x = pass.single(step.site, &x)?;
                if let Some(norm) = norm {
                    x = norm.forward(&x, None)?;
                }
                if let Some(cap) = step.cap {
                    x.inplace_op1(&SoftCapInPlace { isa: self.isa, cap })?;
                }
            }
            if pass.observes_only {
                continue;
            }
            sum = Some(match sum {
                Some(sum) => (sum + x)?,
                None => x,
            });
        }
        if pass.observes_only {
            return Ok(Outputs { values: Vec::new(), columns: 1, offsets: vec![0; offsets.len()] });
        }
        let Some(mut x) = sum else {
            return Err(ModelError::Sample { reason: "the head of the model has no branch".to_owned() });
        };
        if spec.branches.len() > 1 {
            x = (x * (1.0 / spec.branches.len() as f64))?;
        }
        if let HeadOutput::Embedding { after, .. } = &spec.output {
            let mut dense = self.dense.iter();
            for step in after {
                x = match (step, step.is_dense().then(|| dense.next()).flatten()) {
                    (_, Some(linear)) => linear.forward(self.isa, &x)?,
                    _ => normalize_rows(&x)?,
                };
            }
        }
        let columns = x.dim(1)?;
        let offsets = if spec.is_per_token() { offsets.to_vec() } else { (0..offsets.len()).collect() };
        Ok(Outputs { values: x.flatten_all()?.to_vec1()?, columns, offsets })
    }
}

impl SentenceStep {
    fn is_dense(&self) -> bool {
        matches!(self, Self::Dense { .. })
    }

    /// The Linear of a dense step, from the step's own file.
    fn load(&self, checkpoint: &Checkpoint) -> Result<Option<FloatLinear>, ModelError> {
        let Self::Dense { folder, inputs, outputs, bias, activation } = self else { return Ok(None) };
        let file = SafetensorsFile::open(checkpoint.dir().join(folder).join("model.safetensors"))?;
        let read = |name: &str| -> Result<Vec<f32>, ModelError> {
            let values = file.read_f32(name)?;
            match values.iter().position(|value| !value.is_finite()) {
                None => Ok(values),
                Some(at) => Err(ModelError::not_finite(file.path(), name, at, values[at])),
            }
        };
        let weight = Tensor::from_vec(read("linear.weight")?, (*outputs, *inputs), &Device::Cpu)?;
        let bias = bias.then(|| read("linear.bias")).transpose()?;
        Ok(Some(FloatLinear::new(weight, bias, *activation)))
    }
}

/// The rows that a branch reads, `[rows, columns]`.
fn select(
    rows: &RowSelection,
    spec: &HeadSpec,
    hidden: &Tensor,
    offsets: &[usize],
    batch: &PackedBatch,
) -> Result<Tensor, ModelError> {
    let gather = |rows: Vec<u32>| -> Result<Tensor, ModelError> {
        let count = rows.len();
        Ok(hidden.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)?)
    };
    let starts = &offsets[..offsets.len() - 1];
    match rows {
        RowSelection::Every => Ok(hidden.clone()),
        RowSelection::Token(at) => gather(starts.iter().map(|start| (start + at) as u32).collect()),
        RowSelection::Pooled(poolings) => {
            let prompts = match (&spec.output, &batch.content) {
                (HeadOutput::Embedding { include_prompt: false, .. }, Content::Tokens { prompts, .. }) => {
                    prompts.as_slice()
                }
                _ => &[],
            };
            Ok(pool(hidden, offsets, prompts, poolings)?)
        }
        RowSelection::EndOfText(id) => {
            let Content::Tokens { ids, .. } = &batch.content else {
                return Err(ModelError::Sample { reason: "an image has no end of text".to_owned() });
            };
            let end = |range: std::ops::Range<usize>| {
                let ids = &ids[range.clone()];
                // Without the token asked for the reference takes the first.
                let at = match id {
                    Some(id) => ids.iter().position(|found| found == id).unwrap_or(0),
                    None => ids.iter().enumerate().rev().max_by_key(|(_, id)| **id).map_or(0, |(at, _)| at),
                };
                (range.start + at) as u32
            };
            gather(offsets.windows(2).map(|pair| end(pair[0]..pair[1])).collect())
        }
    }
}
