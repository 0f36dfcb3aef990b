//! The config.json of the output.

use std::path::Path;

use serde_json::{Value, json};
use zeropoint_formats::compressed_tensors::QuantizationConfig;
use zeropoint_formats::deployed::InputRotation;
use zeropoint_formats::{DeployedConfig, write_file_atomically};
use zeropoint_models::ModelSpec;

use crate::{PipelineError, Prepared};

/// The source's config.json with `quantization_config` at its end; everything else stays as it was.
pub(super) fn write_config(prepared: &Prepared, dir: &Path) -> Result<(), PipelineError> {
    let (plan, spec) = (&prepared.plan, prepared.graph().spec());
    let tied = plan.tied_head(spec).map(|(id, _)| id);
    // To whoever reads the table, the head is float.
    let is_int8 = |id: usize| plan.linears[id].scheme().is_some() && Some(id) != tied;
    let modules = plan.quantized().filter(|(linear, _)| is_int8(linear.linear));
    let modules = modules.map(|(linear, scheme)| (linear.path.clone(), scheme.scheme));
    // In a model that continues texts they are other names of its head, which is one of both under each.
    let head = spec.language_head().filter(|id| is_int8(*id)).and_then(|id| plan.linears[id].scheme());
    let renamed = spec.absent_linears.iter().filter_map(|path| Some((path.clone(), head?.scheme)));
    let absent = spec.absent_linears.iter().filter(|_| head.is_none()).cloned();
    let float = plan.linears.iter().map(|linear| linear.linear).filter(|id| !is_int8(*id));
    let float =
        float.filter(|id| spec.linears[*id].is_torch_linear()).map(|id| spec.linears[id].path.clone());
    let float = float.chain(absent).chain(unused_linears(prepared));
    let quantization = DeployedConfig {
        format: plan.format,
        linears: QuantizationConfig::for_modules(modules.chain(renamed), float),
        rotations: rotations(spec),
        int8_head: tied.is_some(),
    };
    let mut config = prepared.graph().config().clone();
    if let Value::Object(map) = &mut config {
        // A checkpoint of a pre-training model is deployed as the encoder that was measured.
        map.insert("architectures".to_owned(), json!([prepared.graph().spec().architecture]));
        quantization.write_into(map);
    }
    let mut text = serde_json::to_string_pretty(&config)
        .map_err(|error| PipelineError::Io { path: dir.join("config.json"), source: error.into() })?;
    text.push('\n');
    Ok(write_file_atomically(dir.join("config.json"), text)?)
}

/// The activations that are rotated when the model runs.
fn rotations(spec: &ModelSpec) -> Vec<InputRotation> {
    let rotated = spec.sites.iter().filter_map(|site| Some((site, site.rotation.as_ref()?)));
    rotated
        .map(|(site, rotation)| InputRotation {
            linears: site.consumers.iter().map(|id| spec.linears[*id].path.clone()).collect(),
            divided: rotation.divisors.is_some(),
        })
        .collect()
}

/// Modules of matrices that are carried along and never run: a loader that builds them must not take them for quantised.
fn unused_linears(prepared: &Prepared) -> impl Iterator<Item = String> + '_ {
    let checkpoint = prepared.graph().checkpoint();
    prepared.graph().spec().unused.iter().filter_map(move |(tensor, _)| {
        let matrix =
            checkpoint.get(tensor).is_some_and(|info| info.dtype.is_float() && info.shape.len() == 2);
        tensor.strip_suffix(".weight").filter(|_| matrix).map(str::to_owned)
    })
}
