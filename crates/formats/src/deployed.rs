//! What config.json says of a quantised directory: the Linears in compressed-tensors' words, and beside them what Zeropoint's
//! runtime alone reads.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value, json};
use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, Scheme, Symmetry};

use crate::compressed_tensors::{NamedBytes, check_scales};
use crate::safetensors::element::f32_bytes;
use crate::{Checkpoint, Dtype, FormatError, QuantizationConfig, TensorSpec};

const QUANTIZATION: &str = "quantization_config";
/// Names our own format. There is no `quant_method` beside it: transformers refuses a config without one, where of one that it does
/// not know it only warns, and takes the integers for floats.
const FORMAT: &str = "format";
const VERSION: u64 = 1;
/// The Linears of our own format, in the words of compressed-tensors.
const LINEARS: &str = "linears";
/// Of our own format: activations that are rotated before they are quantised.
const ROTATIONS: &str = "rotations";
const DIVIDED: &str = "divided";
/// Our own section of config.json. Other loaders keep it and do nothing with it.
const SECTION: &str = "zeropoint";
const HEAD: &str = "lm_head";
const INT8: &str = "int8";

/// The folder of tensors that other loaders must not see: vLLM reads every safetensors file beside config.json.
pub const OWN_FOLDER: &str = "zeropoint";

/// How an INT8 head computes, whatever the other Linears do.
pub const INT8_HEAD: Scheme = Scheme::int8(
    Granularity::Channel,
    ActivationScheme { mode: ActivationMode::Dynamic, symmetry: Symmetry::Symmetric },
);

/// Who can load a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryFormat {
    /// Whoever reads compressed-tensors.
    CompressedTensors,
    /// Zeropoint's runtime: embedding tables may be I8 with a scale for each row, and so may Linears that torch has in another
    /// module. Other loaders refuse it.
    Zeropoint,
}

/// How a directory is quantised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployedConfig {
    /// Who can load it.
    pub format: DirectoryFormat,
    /// The INT8 Linears.
    pub linears: QuantizationConfig,
    /// Activations that are rotated before Linears read them, quantised or not; of Zeropoint's own format alone.
    pub rotations: Vec<InputRotation>,
    /// Whether the matrix of a decoder's logits, which is its word embedding table, multiplies in INT8. A table in floats is
    /// rounded with the scales of [`read_head_scales`] when it is loaded; an INT8 one is multiplied as it is.
    pub int8_head: bool,
}

/// An activation that is rotated before some Linears, all that read it, do so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRotation {
    /// Their module paths, in order.
    pub linears: Vec<String>,
    /// Whether its channels are divided by [`input_divisors`] of the first one before.
    pub divided: bool,
}

/// The name of the divisors of a Linear's input channels, F32 `[inputs]`; `tensor` is that of the Linear without its last part.
pub fn input_divisors(tensor: &str) -> String {
    format!("{tensor}.{INPUT_DIVISORS}")
}

/// How that name ends.
pub const INPUT_DIVISORS: &str = "input_divisors";

impl DeployedConfig {
    /// Reads config.json; `None` where it has no `quantization_config`, as that of a float model.
    ///
    /// # Errors
    ///
    /// Those of [`QuantizationConfig::from_json`], and a key or value of our own that is not known.
    pub fn from_config(config: &Value) -> Result<Option<Self>, FormatError> {
        let Some(quantization) = config.get(QUANTIZATION).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let format = format_of(config);
        let (linears, rotations) = match format {
            DirectoryFormat::CompressedTensors => (QuantizationConfig::from_json(quantization)?, Vec::new()),
            DirectoryFormat::Zeropoint => (own_linears(quantization)?, rotations(quantization)?),
        };
        Ok(Some(Self { format, linears, rotations, int8_head: int8_head(config)? }))
    }

    /// Puts it into config.json, in place of what is there.
    pub fn write_into(&self, config: &mut Map<String, Value>) {
        let linears = self.linears.to_json();
        let quantization = match self.format {
            DirectoryFormat::CompressedTensors => linears,
            DirectoryFormat::Zeropoint => {
                let mut own = json!({ FORMAT: SECTION, "version": VERSION, LINEARS: linears });
                if !self.rotations.is_empty() {
                    let rotation = |rotation: &InputRotation| json!({ LINEARS: rotation.linears, DIVIDED: rotation.divided });
                    own[ROTATIONS] = self.rotations.iter().map(rotation).collect();
                }
                own
            }
        };
        config.insert(QUANTIZATION.to_owned(), quantization);
        config.remove(SECTION);
        if self.int8_head {
            config.insert(SECTION.to_owned(), json!({ HEAD: INT8 }));
        }
    }
}

/// Who can load the directory with that config.json; whether it is quantised at all is another question.
pub fn format_of(config: &Value) -> DirectoryFormat {
    let format = config.get(QUANTIZATION).and_then(|quantization| quantization.get(FORMAT));
    match format.and_then(Value::as_str) {
        Some(SECTION) => DirectoryFormat::Zeropoint,
        _ => DirectoryFormat::CompressedTensors,
    }
}

fn refused(key: String, value: &Value, allowed: &str) -> FormatError {
    const SHOWN: usize = 80;
    let value: String = value.to_string().chars().take(SHOWN).collect();
    FormatError::Config { key, value, allowed: allowed.to_owned() }
}

const LATER: &str = "it is not known: a later version of zeropoint may have written it";

fn own_linears(quantization: &Value) -> Result<QuantizationConfig, FormatError> {
    let path = |key: &str| format!("{QUANTIZATION}.{}", key.escape_debug());
    for (key, value) in quantization.as_object().into_iter().flatten() {
        if ![FORMAT, "version", LINEARS, ROTATIONS].contains(&key.as_str()) {
            return Err(refused(path(key), value, LATER));
        }
    }
    let version = quantization.get("version").unwrap_or(&Value::Null);
    if version.as_u64() != Some(VERSION) {
        return Err(refused(path("version"), version, "only 1 is allowed: later versions write others"));
    }
    QuantizationConfig::from_json(quantization.get(LINEARS).unwrap_or(&Value::Null))
}

/// What our format says of rotations.
fn rotations(quantization: &Value) -> Result<Vec<InputRotation>, FormatError> {
    let Some(value) = quantization.get(ROTATIONS).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let path = |index: usize| format!("{QUANTIZATION}.{ROTATIONS}.{index}");
    let Some(list) = value.as_array() else {
        return Err(refused(format!("{QUANTIZATION}.{ROTATIONS}"), value, "a list is needed"));
    };
    let rotation = |(index, value): (usize, &Value)| {
        const NEEDED: &str = "`linears`, a list of module paths, and `divided`, true or false, are needed";
        let bad = || refused(path(index), value, NEEDED);
        let keys = value.as_object().ok_or_else(bad)?;
        if let Some((key, value)) = keys.iter().find(|(key, _)| ![LINEARS, DIVIDED].contains(&key.as_str())) {
            return Err(refused(format!("{}.{}", path(index), key.escape_debug()), value, LATER));
        }
        let linears = keys.get(LINEARS).and_then(Value::as_array).ok_or_else(bad)?;
        let linears: Option<Vec<String>> =
            linears.iter().map(|path| path.as_str().map(str::to_owned)).collect();
        let divided = keys.get(DIVIDED).and_then(Value::as_bool).ok_or_else(bad)?;
        Ok(InputRotation { linears: linears.filter(|l| !l.is_empty()).ok_or_else(bad)?, divided })
    };
    list.iter().enumerate().map(rotation).collect()
}

/// What our section says of the head.
fn int8_head(config: &Value) -> Result<bool, FormatError> {
    let Some(section) = config.get(SECTION).filter(|value| !value.is_null()) else { return Ok(false) };
    let Some(keys) = section.as_object() else {
        return Err(refused(SECTION.to_owned(), section, "an object is needed"));
    };
    let mut int8 = false;
    for (key, value) in keys {
        let path = format!("{SECTION}.{}", key.escape_debug());
        if key != HEAD {
            return Err(refused(path, value, LATER));
        }
        if value != INT8 {
            return Err(refused(path, value, "only \"int8\" is allowed"));
        }
        int8 = true;
    }
    Ok(int8)
}

/// The tensors of [`OWN_FOLDER`] for an INT8 head at module path `path`: `weight_scale`, F32 `[N, 1]`.
pub fn head_scale_specs(path: &str, outputs: usize) -> Vec<TensorSpec> {
    vec![TensorSpec::new(format!("{path}.weight_scale"), Dtype::F32, [outputs, 1])]
}

/// The scales of an INT8 head, one for each output, from the own folder of the directory `dir`.
///
/// # Errors
///
/// Files that cannot be read, another type or shape, a scale that is not positive and normal.
pub fn read_head_scales(dir: &Path, path: &str, outputs: usize) -> Result<Vec<f32>, FormatError> {
    let checkpoint = Checkpoint::open(dir.join(OWN_FOLDER))?;
    head_scale_specs(path, outputs).iter().try_for_each(|spec| expect(&checkpoint, spec))?;
    scales(&checkpoint, path, &format!("{path}.weight_scale"))
}

/// The tensors of an INT8 embedding table: its own, I8 `[rows, width]`, and `_scale` behind its name, F32 `[rows, 1]`.
pub fn table_specs(tensor: &str, rows: usize, width: usize) -> [TensorSpec; 2] {
    [
        TensorSpec::new(tensor, Dtype::I8, [rows, width]),
        TensorSpec::new(table_scale(tensor), Dtype::F32, [rows, 1]),
    ]
}

/// The name of the scales of an INT8 embedding table.
pub fn table_scale(tensor: &str) -> String {
    format!("{tensor}_scale")
}

/// The names and bytes of those tensors.
pub fn table_bytes<'a>(tensor: &str, values: &'a [i8], scales: &[f32]) -> [NamedBytes<'a>; 2] {
    [
        (tensor.to_owned(), Cow::Borrowed(bytemuck::cast_slice(values))),
        (table_scale(tensor), Cow::Owned(f32_bytes(scales))),
    ]
}

/// The integers `[rows, width]` of an INT8 embedding table, and the scale of each row.
///
/// # Errors
///
/// As [`read_head_scales`].
pub fn read_table(
    checkpoint: &Checkpoint,
    tensor: &str,
    rows: usize,
    width: usize,
) -> Result<(Vec<i8>, Vec<f32>), FormatError> {
    table_specs(tensor, rows, width).iter().try_for_each(|spec| expect(checkpoint, spec))?;
    let scales = scales(checkpoint, tensor, &table_scale(tensor))?;
    Ok((checkpoint.read_i8(tensor)?, scales))
}

fn expect(checkpoint: &Checkpoint, spec: &TensorSpec) -> Result<(), FormatError> {
    let info = checkpoint.require(&spec.name)?;
    let (path, tensor) = (checkpoint.place_of(&spec.name).to_owned(), spec.name.clone());
    if info.dtype != spec.dtype {
        return Err(FormatError::WrongDtype {
            path,
            tensor,
            dtype: info.dtype,
            allowed: if spec.dtype == Dtype::I8 { "I8" } else { "F32" },
        });
    }
    if info.shape != spec.shape {
        let (shape, allowed) = (info.shape.clone(), format!("{:?}", spec.shape));
        return Err(FormatError::WrongShape { path, tensor, shape, allowed });
    }
    Ok(())
}

fn scales(checkpoint: &Checkpoint, module: &str, tensor: &str) -> Result<Vec<f32>, FormatError> {
    let scales = checkpoint.read_f32(tensor)?;
    check_scales(&scales).map_err(|reason| FormatError::Linear {
        path: checkpoint.dir().to_owned(),
        module: module.to_owned(),
        reason: format!("has bad scales: {reason}; quantise the model again"),
    })?;
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(format: DirectoryFormat, int8_head: bool) -> DeployedConfig {
        let linears = QuantizationConfig::for_modules([("a", INT8_HEAD)], ["lm_head"]);
        let rotation = |divided| InputRotation { linears: vec!["a".to_owned()], divided };
        let rotations = match format {
            DirectoryFormat::CompressedTensors => Vec::new(),
            DirectoryFormat::Zeropoint => vec![rotation(true), rotation(false)],
        };
        DeployedConfig { format, linears, rotations, int8_head }
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_of_the_config_stays() {
        for format in [DirectoryFormat::CompressedTensors, DirectoryFormat::Zeropoint] {
            for int8_head in [false, true] {
                let mut text = json!({ "hidden_size": 8, "zeropoint": { "old": 1 } });
                let written = config(format, int8_head);
                written.write_into(text.as_object_mut().unwrap());
                assert_eq!(DeployedConfig::from_config(&text).unwrap(), Some(written));
                assert_eq!((format_of(&text), &text["hidden_size"]), (format, &json!(8)));
                assert_eq!(text.get("zeropoint").is_some(), int8_head);
            }
        }
        assert_eq!(DeployedConfig::from_config(&json!({ "zeropoint": 3 })).unwrap(), None, "a float model");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let mut text = json!({});
        config(DirectoryFormat::Zeropoint, true).write_into(text.as_object_mut().unwrap());
        for (place, value, says) in [
            (
                "/zeropoint",
                json!({ "lm_head": "int4" }),
                "`zeropoint.lm_head` is \"int4\"; only \"int8\" is allowed",
            ),
            ("/zeropoint", json!({ "head": "int8" }), "`zeropoint.head` is \"int8\"; it is not known"),
            ("/zeropoint", json!([1]), "`zeropoint` is [1]; an object is needed"),
            (
                "/quantization_config/version",
                json!(2),
                "`quantization_config.version` is 2; only 1 is allowed",
            ),
            ("/quantization_config/linears", json!({}), "missing"),
            (
                "/quantization_config/rotations",
                json!({}),
                "`quantization_config.rotations` is {}; a list is needed",
            ),
            (
                "/quantization_config/rotations/1",
                json!({ "linears": [], "divided": true }),
                "rotations.1` is",
            ),
            (
                "/quantization_config/rotations/0",
                json!({ "linears": ["a"] }),
                "`divided`, true or false, are needed",
            ),
            (
                "/quantization_config/rotations/0",
                json!({ "linears": ["a"], "divided": true, "order": 4 }),
                "`quantization_config.rotations.0.order` is 4; it is not known",
            ),
        ] {
            let mut changed = text.clone();
            *changed.pointer_mut(place).unwrap() = value;
            let error = DeployedConfig::from_config(&changed).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        text["quantization_config"]["extra"] = json!(1);
        let error = DeployedConfig::from_config(&text).unwrap_err().to_string();
        assert!(error.contains("`quantization_config.extra` is 1; it is not known"), "{error}");
    }
}
