//! Token vectors to sentence vectors.

use candle_core::{Result, Tensor};

use crate::batch::PackedBatch;
use crate::heads::Pooling;
use crate::ops::rows_of;

/// Length below which a vector is not scaled up further, as in `torch.nn.functional.normalize`.
const NORM_FLOOR: f32 = 1e-12;

/// One vector a sequence: the poolings' results one after the other, of length 1 if asked. Row-major.
pub(crate) fn pool(
    hidden: &Tensor,
    batch: &PackedBatch,
    poolings: &[Pooling],
    normalize: bool,
) -> Result<(Vec<f32>, usize)> {
    let width = hidden.dim(1)?;
    let columns = width * poolings.len();
    let mut out = Vec::with_capacity(batch.len() * columns);
    rows_of(hidden, |values| {
        for range in batch.ranges() {
            let tokens = &values[range.start * width..range.end * width];
            let start = out.len();
            for pooling in poolings {
                pool_one(tokens, width, *pooling, &mut out);
            }
            if normalize {
                let vector = &mut out[start..];
                let norm = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32;
                for v in vector {
                    *v /= norm.max(NORM_FLOOR);
                }
            }
        }
    })?;
    Ok((out, columns))
}

fn pool_one(tokens: &[f32], width: usize, pooling: Pooling, out: &mut Vec<f32>) {
    let start = out.len();
    out.extend_from_slice(&tokens[..width]);
    let vector = &mut out[start..];
    let rest = tokens[width..].chunks_exact(width);
    match pooling {
        Pooling::Cls => {}
        Pooling::Max => rest.for_each(|row| vector.iter_mut().zip(row).for_each(|(v, x)| *v = v.max(*x))),
        Pooling::Mean => {
            rest.for_each(|row| vector.iter_mut().zip(row).for_each(|(v, x)| *v += x));
            let count = (tokens.len() / width) as f32;
            for v in vector {
                *v /= count;
            }
        }
    }
}
