//! From token ids or pixels to the residual stream.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use zeropoint_formats::Checkpoint;
use zeropoint_kernels::{Isa, add_in_place};

use crate::ModelError;
use crate::batch::{Content, PackedBatch};
use crate::model::Pass;
use crate::ops::{Norm, ROWS_PER_TASK, rows_of};
use crate::read::read_finite;
use crate::spec::{EmbeddingRole, EmbeddingTable, ImageInput, InputSpec, NormSpec, TextInput, Tower};
use crate::tables::{Table, Tables};

/// The float parts of an [`InputSpec`].
pub(crate) struct Embedding {
    /// Of a text: its tables.
    tables: Vec<Table>,
    /// Of an image: what stands before its patches, row-major, and the positions of both, `[rows, hidden]`.
    lead: Vec<f32>,
    positions: Vec<f32>,
    norm: Option<Norm>,
}

impl Embedding {
    pub(crate) fn load(
        tower: &Tower,
        index: usize,
        checkpoint: &Checkpoint,
        isa: Isa,
        tables: Tables<'_>,
    ) -> Result<Self, ModelError> {
        let read_norm =
            |norm: &Option<NormSpec>| norm.as_ref().map(|norm| norm.read(checkpoint, isa)).transpose();
        match &tower.input {
            InputSpec::Text(input) => {
                let read = |(at, table): (usize, &EmbeddingTable)| {
                    Table::load(table, checkpoint, tables, (index, at))
                };
                let tables = input.tables.iter().enumerate().map(read).collect::<Result<_, ModelError>>()?;
                Ok(Self { tables, lead: Vec::new(), positions: Vec::new(), norm: read_norm(&input.norm)? })
            }
            InputSpec::Image(input) => {
                let mut lead = Vec::new();
                for token in &input.tokens {
                    lead.extend(read_finite(checkpoint, token)?);
                }
                let positions = read_finite(checkpoint, &input.positions)?;
                Ok(Self { tables: Vec::new(), lead, positions, norm: read_norm(&input.norm)? })
            }
        }
    }

    /// The table of that number.
    pub(crate) fn table_at(&self, at: usize) -> &Table {
        &self.tables[at]
    }

    /// The table of that tensor, as a matrix.
    pub(crate) fn matrix(&self, input: &InputSpec, tensor: &str) -> Option<Result<Tensor, ModelError>> {
        let InputSpec::Text(input) = input else { return None };
        let at = input.tables.iter().position(|table| table.tensor == tensor)?;
        Some(self.tables.get(at)?.matrix(&input.tables[at]))
    }

    /// The residual stream before the first block, `[rows, hidden]` and row-major, and the first row of each sample with the number of
    /// rows at the end. `place` is that of the first token of a text.
    pub(crate) fn forward(
        &self,
        input: &InputSpec,
        pass: &mut Pass<'_, '_>,
        batch: &PackedBatch,
        place: usize,
    ) -> Result<(Vec<f32>, Vec<usize>), ModelError> {
        match (input, &batch.content) {
            (InputSpec::Text(input), Content::Tokens { ids, type_ids, .. }) => {
                let rows = (ids.as_slice(), type_ids.as_slice());
                let mut stream = self.look_up(input, pass.model.isa(), rows, &batch.offsets, place)?;
                if input.scale != 1.0 {
                    stream.par_iter_mut().for_each(|x| *x *= input.scale);
                }
                if let Some(norm) = &self.norm {
                    norm.in_place(&mut stream);
                }
                if let Some(site) = input.projection {
                    let narrow = Tensor::from_vec(stream, (ids.len(), input.width), &Device::Cpu)?;
                    stream = rows_of(&pass.single(site, &narrow)?, <[f32]>::to_vec)?;
                }
                Ok((stream, batch.offsets.clone()))
            }
            (InputSpec::Image(input), Content::Images { pixels, shape }) => {
                self.cut_and_project(input, pass, pixels, *shape)
            }
            _ => Err(ModelError::Sample {
                reason: "texts and images go through towers of their own".to_owned(),
            }),
        }
    }

    fn look_up(
        &self,
        input: &TextInput,
        isa: Isa,
        (ids, type_ids): (&[u32], &[u32]),
        offsets: &[usize],
        place: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let width = input.width;
        let mut sum = vec![0f32; ids.len() * width];
        for (i, (table, spec)) in self.tables.iter().zip(&input.tables).enumerate() {
            let rows: Vec<u32> = match spec.role {
                EmbeddingRole::Word => ids.to_vec(),
                EmbeddingRole::TokenType => type_ids.to_vec(),
                EmbeddingRole::Position { offset, pad } => offsets
                    .windows(2)
                    .flat_map(|pair| positions(&ids[pair[0]..pair[1]], offset + place, pad))
                    .collect(),
            };
            if let Some(bad) = rows.iter().find(|row| **row as usize >= spec.rows) {
                return Err(ModelError::Sample {
                    reason: format!(
                        "row {bad} of `{}` is asked for, which has {} rows; the tokenizer does not fit the model, or \
                         the sample is longer than {} tokens",
                        spec.tensor, spec.rows, input.max_positions
                    ),
                });
            }
            table.with_rows(width, |read| {
                let tasks = sum.par_chunks_mut(width * ROWS_PER_TASK).zip(rows.par_chunks(ROWS_PER_TASK));
                tasks.for_each(|(sums, rows)| {
                    let mut row_values = vec![0.0; if i == 0 { 0 } else { width }];
                    for (sum, row) in sums.chunks_exact_mut(width).zip(rows) {
                        if i == 0 {
                            read(*row as usize, sum);
                        } else {
                            read(*row as usize, &mut row_values);
                            add_in_place(isa, sum, &row_values);
                        }
                    }
                });
            })?;
        }
        Ok(sum)
    }

    /// Patches through their projection, with the leading tokens before them and the positions added.
    fn cut_and_project(
        &self,
        input: &ImageInput,
        pass: &mut Pass<'_, '_>,
        pixels: &[f32],
        shape: [usize; 3],
    ) -> Result<(Vec<f32>, Vec<usize>), ModelError> {
        if shape != [input.channels, input.image_size[0], input.image_size[1]] {
            return Err(ModelError::Sample {
                reason: format!(
                    "an image has shape {shape:?} after preparation; the model takes {} channels of {} x {} pixels",
                    input.channels, input.image_size[0], input.image_size[1]
                ),
            });
        }
        let values = patches(pixels, shape, input.patch_size);
        let columns = input.channels * input.patch_size * input.patch_size;
        let count = values.len() / columns;
        let projected =
            pass.single(input.patches, &Tensor::from_vec(values, (count, columns), &Device::Cpu)?)?;
        let hidden = projected.dim(1)?;
        let images = count / input.patch_count();
        let mut rows = Vec::with_capacity(images * input.rows() * hidden);
        rows_of(&projected, |values| {
            for image in values.chunks_exact(input.patch_count() * hidden) {
                let start = rows.len();
                rows.extend_from_slice(&self.lead);
                rows.extend_from_slice(image);
                rows[start..].iter_mut().zip(&self.positions).for_each(|(x, position)| *x += position);
            }
        })?;
        if let Some(norm) = &self.norm {
            norm.in_place(&mut rows);
        }
        Ok((rows, (0..=images).map(|i| i * input.rows()).collect()))
    }
}

/// Rows of the position table for one sequence.
fn positions(ids: &[u32], offset: usize, pad: Option<u32>) -> Vec<u32> {
    let mut next = offset as u32;
    ids.iter()
        .map(|&id| {
            if pad == Some(id) {
                return id;
            }
            next += 1;
            next - 1
        })
        .collect()
}

/// `[images, channels, height, width]` to `[images * patches, channels * patch * patch]`, patches row by row.
fn patches(pixels: &[f32], [channels, height, width]: [usize; 3], patch: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(pixels.len());
    for image in pixels.chunks_exact(channels * height * width) {
        for top in (0..height / patch).map(|i| i * patch) {
            for left in (0..width / patch).map(|i| i * patch) {
                for plane in image.chunks_exact(height * width) {
                    for row in top..top + patch {
                        out.extend_from_slice(&plane[row * width + left..][..patch]);
                    }
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_cut_row_by_row_with_their_channels_together() {
        // Two channels of 2 x 4 pixels, patches of 2 x 2.
        let pixels: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let expected = [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15].map(|i| i as f32);
        assert_eq!(patches(&pixels, [2, 2, 4], 2), expected);
    }

    #[test]
    fn padding_takes_no_position_of_its_own() {
        assert_eq!(positions(&[5, 6, 7], 0, None), [0, 1, 2]);
        assert_eq!(positions(&[5, 1, 7, 1], 2, Some(1)), [2, 1, 3, 1]);
    }
}
