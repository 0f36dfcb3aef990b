//! What a sample is to a model that takes texts, images, or both.

use zeropoint_calibrator::dataset::Sample;
use zeropoint_models::{ModelError, ModelSpec, check_image};

use crate::PipelineError;

/// Leaves of each sample what the model takes: of an encoder of texts and images, a sample that has both becomes two.
/// Images are opened, not decoded.
pub(crate) fn fit_samples(samples: Vec<Sample>, spec: &ModelSpec) -> Result<Vec<Sample>, PipelineError> {
    let (texts, images) = (spec.text().is_some(), spec.image().is_some());
    let lacks = |sample: &Sample, what: &str| {
        let place = place(sample);
        let reason = format!("{place}: the sample has no {what}, and {} takes {what}s", spec.architecture);
        PipelineError::from(ModelError::Sample { reason })
    };
    let mut fitted = Vec::with_capacity(samples.len());
    for mut sample in samples {
        let image = sample.image.take();
        // Without an image a text may be empty; beside one an empty text is none.
        let has_text = image.is_none() || !sample.text_a.is_empty();
        if texts && has_text {
            fitted.push(sample.clone());
        } else if !images {
            return Err(lacks(&sample, "text"));
        }
        if images {
            match image {
                Some(image) => {
                    check_image(&image)?;
                    let (text_a, text_b) = (String::new(), None);
                    fitted.push(Sample { image: Some(image), text_a, text_b, ..sample });
                }
                None if !texts => return Err(lacks(&sample, "image")),
                None => {}
            }
        }
    }
    Ok(fitted)
}

/// Refuses calibration samples that leave a tower without input: its activations would never be observed.
pub(crate) fn check_towers(samples: &[Sample], spec: &ModelSpec, origin: &str) -> Result<(), PipelineError> {
    let has_images = samples.iter().any(|sample| sample.image.is_some());
    let has_texts = samples.iter().any(|sample| sample.image.is_none());
    let missing = match (spec.image().is_some() && !has_images, spec.text().is_some() && !has_texts) {
        (true, _) => "images",
        (false, true) => "texts",
        (false, false) => return Ok(()),
    };
    Err(PipelineError::EmptyTower {
        origin: origin.to_owned(),
        architecture: spec.architecture.clone(),
        missing,
    })
}

/// `file:line` of a sample; of an image in a folder the file alone.
pub(crate) fn place(sample: &Sample) -> String {
    match sample.line {
        0 => sample.file.to_string(),
        line => format!("{}:{line}", sample.file),
    }
}
