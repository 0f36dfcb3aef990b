//! Token vectors to sentence vectors.

use candle_core::{Device, Result, Tensor};

use crate::heads::Pooling;
use crate::ops::rows_of;

/// Length below which a vector is not scaled up further, as in `torch.nn.functional.normalize`.
const NORM_FLOOR: f32 = 1e-12;

/// One vector a sequence: the poolings' results one after the other.
///
/// `offsets` are the first rows of the sequences and the number of rows at the end; `prompts`, empty or one a sequence,
/// are leading rows to leave out.
pub(crate) fn pool(
    hidden: &Tensor,
    offsets: &[usize],
    prompts: &[usize],
    poolings: &[Pooling],
) -> Result<Tensor> {
    let width = hidden.dim(1)?;
    let columns = width * poolings.len();
    let count = offsets.len() - 1;
    let mut out = Vec::with_capacity(count * columns);
    rows_of(hidden, |values| {
        for (i, pair) in offsets.windows(2).enumerate() {
            let start = pair[0] + prompts.get(i).copied().unwrap_or(0);
            let tokens = &values[start * width..pair[1] * width];
            for pooling in poolings {
                pool_one(tokens, width, *pooling, &mut out);
            }
        }
    })?;
    Tensor::from_vec(out, (count, columns), &Device::Cpu)
}

fn pool_one(tokens: &[f32], width: usize, pooling: Pooling, out: &mut Vec<f32>) {
    let start = out.len();
    out.extend_from_slice(&tokens[..width]);
    let vector = &mut out[start..];
    let rest = tokens[width..].chunks_exact(width);
    let count = (tokens.len() / width) as f32;
    let add = |vector: &mut [f32], row: &[f32], weight: f32| {
        vector.iter_mut().zip(row).for_each(|(v, x)| *v += weight * x);
    };
    match pooling {
        Pooling::Cls => {}
        Pooling::Last => vector.copy_from_slice(&tokens[tokens.len() - width..]),
        Pooling::Max => rest.for_each(|row| vector.iter_mut().zip(row).for_each(|(v, x)| *v = v.max(*x))),
        Pooling::Mean | Pooling::MeanSqrtLength => {
            rest.for_each(|row| add(vector, row, 1.0));
            let divisor = if pooling == Pooling::Mean { count } else { count.sqrt() };
            for v in vector {
                *v /= divisor;
            }
        }
        Pooling::WeightedMean => {
            (2u32..).zip(rest).for_each(|(weight, row)| add(vector, row, weight as f32));
            let divisor = count * (count + 1.0) / 2.0;
            for v in vector {
                *v /= divisor;
            }
        }
    }
}

/// Each row divided by its Euclidean norm.
pub(crate) fn normalize_rows(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let mut out = rows_of(x, <[f32]>::to_vec)?;
    for vector in out.chunks_exact_mut(columns) {
        let norm = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32;
        for v in vector {
            *v /= norm.max(NORM_FLOOR);
        }
    }
    Tensor::from_vec(out, (rows, columns), &Device::Cpu)
}
