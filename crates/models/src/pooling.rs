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
            let prompt = prompts.get(i).copied().unwrap_or(0);
            let tokens = &values[(pair[0] + prompt) * width..pair[1] * width];
            for pooling in poolings {
                pool_one(tokens, width, prompt, *pooling, &mut out);
            }
        }
    })?;
    Tensor::from_vec(out, (count, columns), &Device::Cpu)
}

/// `before` rows of the sequence stand before `tokens`, left out.
fn pool_one(tokens: &[f32], width: usize, before: usize, pooling: Pooling, out: &mut Vec<f32>) {
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
            // Every token has the weight of its place in the whole sequence.
            let before = before as f32;
            for value in vector.iter_mut() {
                *value *= before + 1.0;
            }
            (2u32..).zip(rest).for_each(|(place, row)| add(vector, row, before + place as f32));
            let divisor = count * before + count * (count + 1.0) / 2.0;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The sequences have 4 and 3 tokens.
    const HIDDEN: [[f32; 2]; 7] =
        [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25], [2.0, -0.75], [4.0, 1.0], [-3.0, 0.5], [0.125, -1.0]];

    /// The vectors that `Pooling` of sentence-transformers 6.2 gives, for prompts of no token and of 2 in the first and
    /// 1 in the second sequence, where they are left out.
    #[test]
    fn vectors_are_those_of_sentence_transformers() {
        struct Case {
            pooling: Pooling,
            whole: [[f32; 2]; 2],
            without_prompt: [[f32; 2]; 2],
        }
        let cases = [
            Case {
                pooling: Pooling::Cls,
                whole: [[1.0, -2.0], [4.0, 1.0]],
                without_prompt: [[-1.5, 0.25], [-3.0, 0.5]],
            },
            Case {
                pooling: Pooling::Max,
                whole: [[2.0, 3.0], [4.0, 1.0]],
                without_prompt: [[2.0, 0.25], [0.125, 0.5]],
            },
            Case {
                pooling: Pooling::Mean,
                whole: [[0.5, 0.125], [0.375, 0.166_666_7]],
                without_prompt: [[0.25, -0.25], [-1.4375, -0.25]],
            },
            Case {
                pooling: Pooling::MeanSqrtLength,
                whole: [[1.0, 0.25], [0.649_519_1, 0.288_675_1]],
                without_prompt: [[0.353_553_4, -0.353_553_4], [-2.032_932, -0.353_553_4]],
            },
            Case {
                pooling: Pooling::WeightedMean,
                whole: [[0.55, 0.175], [-0.270_833_3, -0.166_666_7]],
                without_prompt: [[0.5, -0.321_428_6], [-1.125, -0.4]],
            },
            Case {
                pooling: Pooling::Last,
                whole: [[2.0, -0.75], [0.125, -1.0]],
                without_prompt: [[2.0, -0.75], [0.125, -1.0]],
            },
        ];
        let rows = HIDDEN.concat();
        let hidden = Tensor::from_vec(rows, (7, 2), &Device::Cpu).unwrap();
        let pooled = |prompts: &[usize], poolings: &[Pooling]| {
            pool(&hidden, &[0, 4, 7], prompts, poolings).unwrap().to_vec2::<f32>().unwrap()
        };
        let near = |found: &[Vec<f32>], expected: [[f32; 2]; 2], what: Pooling| {
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < 1e-6, "{what:?}: {found} and {expected}");
            }
        };
        for Case { pooling, whole, without_prompt } in cases {
            near(&pooled(&[], &[pooling]), whole, pooling);
            near(&pooled(&[0, 0], &[pooling]), whole, pooling);
            near(&pooled(&[2, 1], &[pooling]), without_prompt, pooling);
        }
        let two = pooled(&[], &[Pooling::Mean, Pooling::Cls]);
        assert_eq!(two[0], [0.5, 0.125, 1.0, -2.0], "in the order given");
    }
}
