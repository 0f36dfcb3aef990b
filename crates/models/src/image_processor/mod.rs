//! Image files to pixel values, as the model's own files say: `transformers`' image processors on Pillow, step by step.
//!
//! Decode to 8-bit RGB, turn upright, scale, cut the centre out, rescale, normalise. Scaling is Pillow's own arithmetic, on
//! 8-bit values with a rounding after each direction, so that a file without loss gives the very values of `transformers`.

mod config;
mod decode;
mod resample;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use self::config::{Scale, Steps};
use crate::ModelError;
use crate::batch::ImagePixels;
use crate::source::{read_json, read_json_if_there};
use crate::spec::ImageInput;

pub use self::decode::{MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, check_image};

/// An image of 8-bit RGB, rows from the top, pixels from the left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rgb {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// `[height, width, 3]`.
    pub(crate) values: Vec<u8>,
}

/// Prepares images for one model.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    steps: Steps,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json`, or the part of `processor_config.json` that newer versions of `transformers` write
    /// instead. `model_type` says whose defaults hold for keys that the file lacks, when it does not say so itself.
    pub(crate) fn load(dir: &Path, model_type: &str, input: &ImageInput) -> Result<Self, ModelError> {
        let path = dir.join("preprocessor_config.json");
        let (path, config): (PathBuf, Value) = if path.exists() {
            let config = read_json(&path)?;
            (path, config)
        } else {
            let newer = dir.join("processor_config.json");
            let config = read_json_if_there::<Value>(&newer)?
                .and_then(|mut config| config.get_mut("image_processor").map(Value::take));
            let Some(config) = config else {
                return Err(ModelError::Config {
                    path,
                    reason: "is missing; it says how images are prepared, and the model was saved without it"
                        .to_owned(),
                });
            };
            (newer, config)
        };
        let steps = Steps::read(&config, model_type)
            .and_then(|steps| steps.check(input).map(|()| steps))
            .map_err(|reason| ModelError::Config { path, reason })?;
        Ok(Self { steps })
    }

    /// The pixel values of an image file.
    pub fn prepare(&self, path: &Path) -> Result<ImagePixels, ModelError> {
        let image = decode::decode(path)?;
        self.steps
            .run(image)
            .map_err(|reason| ModelError::Sample { reason: format!("{}: {reason}", path.display()) })
    }

    /// [`ImageProcessor::prepare`] of many, in parallel, in order.
    pub fn prepare_all(&self, paths: &[&Path]) -> Result<Vec<ImagePixels>, ModelError> {
        paths.par_iter().map(|path| self.prepare(path)).collect()
    }
}

impl Steps {
    fn run(&self, image: Rgb) -> Result<ImagePixels, String> {
        let image = match self.scale {
            None => image,
            Some(scale) => {
                let (width, height) = scale.size(image.width, image.height);
                if width.saturating_mul(height) > MAX_IMAGE_PIXELS {
                    return Err(format!(
                        "an image of {} x {} pixels becomes one of {width} x {height}; at most {MAX_IMAGE_PIXELS} pixels \
                         are supported",
                        image.width, image.height
                    ));
                }
                resample::resize(&image, width, height, self.filter)
            }
        };
        let image = match self.crop {
            None => image,
            Some([height, width]) => crop_centre(&image, width, height),
        };
        let (width, height) = (image.width, image.height);
        let mut values = vec![0f32; 3 * width * height];
        for (channel, plane) in values.chunks_exact_mut(width * height).enumerate() {
            // Each of 256 values once, by the reference's arithmetic: rescaled in f64, normalised in f32.
            let table: Vec<f32> = (0..256).map(|value| self.value(value as u8, channel)).collect();
            for (out, pixel) in plane.iter_mut().zip(image.values.chunks_exact(3)) {
                *out = table[usize::from(pixel[channel])];
            }
        }
        Ok(ImagePixels { values, shape: [3, height, width] })
    }

    fn value(&self, value: u8, channel: usize) -> f32 {
        let value = match self.rescale {
            Some(factor) => (f64::from(value) * factor) as f32,
            None => f32::from(value),
        };
        match self.normalize {
            Some((mean, std)) => (value - mean[channel]) / std[channel],
            None => value,
        }
    }
}

impl Scale {
    /// Width and height after scaling.
    fn size(self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Self::Exactly([to_height, to_width]) => (to_width, to_height),
            Self::ShortestEdge(to) => {
                let long = |short: usize, long: usize| (to as u128 * long as u128 / short as u128) as usize;
                if width <= height { (to, long(width, height)) } else { (long(height, width), to) }
            }
        }
    }
}

/// The middle of an image, black where it is smaller than what is cut out.
fn crop_centre(image: &Rgb, width: usize, height: usize) -> Rgb {
    // Where the cut begins, from the start of the image: before it when the image is smaller.
    let start = |size: usize, cut: usize| {
        if cut <= size { (size - cut) as i64 / 2 } else { -((cut - size).div_ceil(2) as i64) }
    };
    let (left, top) = (start(image.width, width), start(image.height, height));
    let mut values = vec![0; width * height * 3];
    for (y, row) in values.chunks_exact_mut(width * 3).enumerate() {
        let Some(from_y) = inside(y, top, image.height) else { continue };
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            if let Some(from_x) = inside(x, left, image.width) {
                let at = (from_y * image.width + from_x) * 3;
                pixel.copy_from_slice(&image.values[at..at + 3]);
            }
        }
    }
    Rgb { width, height, values }
}

fn inside(at: usize, start: i64, size: usize) -> Option<usize> {
    usize::try_from(at as i64 + start).ok().filter(|at| *at < size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(width: usize, height: usize) -> Rgb {
        let values = (0..width * height).flat_map(|i| [i as u8 + 1; 3]).collect();
        Rgb { width, height, values }
    }

    fn reds(image: &Rgb) -> Vec<u8> {
        image.values.chunks_exact(3).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn the_centre_is_cut_out_towards_the_top_left_and_padded_with_black() {
        struct Case(usize, usize, usize, usize, &'static [u8]);
        for Case(width, height, to_width, to_height, expected) in [
            Case(4, 3, 2, 1, &[6, 7]),
            Case(4, 3, 3, 2, &[1, 2, 3, 5, 6, 7]),
            Case(2, 1, 2, 1, &[1, 2]),
            Case(1, 1, 3, 1, &[0, 1, 0]),
            Case(1, 1, 2, 2, &[0, 0, 0, 1]),
            Case(3, 1, 2, 2, &[0, 0, 1, 2]),
        ] {
            let cropped = crop_centre(&numbered(width, height), to_width, to_height);
            assert_eq!(reds(&cropped), expected, "{width} x {height} to {to_width} x {to_height}");
        }
    }

    #[test]
    fn the_shortest_edge_keeps_the_aspect_and_cuts_fractions_off() {
        for (width, height, expected) in
            [(40, 56, (32, 44)), (56, 40, (44, 32)), (32, 32, (32, 32)), (1, 3, (32, 96)), (64, 48, (42, 32))]
        {
            assert_eq!(Scale::ShortestEdge(32).size(width, height), expected, "{width} x {height}");
        }
        assert_eq!(Scale::Exactly([20, 10]).size(7, 9), (10, 20));
    }
}
