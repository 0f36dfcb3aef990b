//! The rotary settings of a decoder, in both spellings of config.json.

use serde_json::Value;

use super::FamilyInput;
use crate::ModelError;
use crate::spec::{Rotary, RotaryScaling};

/// What a decoder's config.json says: `rope_theta` with `rope_scaling`, or both in `rope_parameters`, as version 5 of
/// `transformers` writes them. It lets the former override the latter.
pub(super) fn read(input: &FamilyInput<'_>) -> Result<Rotary, ModelError> {
    const DEFAULT_THETA: f64 = 10_000.0;
    let object = |key: &'static str| {
        let value = input.config.get(key).filter(|value| !value.is_null())?;
        let is_empty = value.as_object().is_some_and(serde_json::Map::is_empty);
        (!is_empty).then_some((key, value))
    };
    let settings = object("rope_scaling").or_else(|| object("rope_parameters"));
    let own = match settings {
        Some((key, Value::Object(settings))) => Some((key, settings)),
        Some((key, other)) => {
            return Err(input.config_error(format!("`{key}` is {other}; an object or null is expected")));
        }
        None => None,
    };
    let outside = input.config.get("rope_theta").map_or(Some(DEFAULT_THETA), Value::as_f64);
    let Some((key, settings)) = own else {
        return Ok(Rotary::plain(super::check_theta(input, "rope_theta", outside)?));
    };
    let theta = match settings.get("rope_theta") {
        Some(value) => value.as_f64(),
        None => outside,
    };
    let theta = super::check_theta(input, &format!("{key}.rope_theta"), theta)?;
    let kind =
        settings.get("rope_type").or_else(|| settings.get("type")).map_or(Some("default"), Value::as_str);
    // A positive number of the settings.
    let number = |name: &str, least: f64| {
        let value = settings.get(name).and_then(Value::as_f64);
        value.filter(|value| *value >= least && *value < 1e9).map(|value| value as f32).ok_or_else(|| {
            input.config_error(format!("`{key}.{name}` is missing or no number from {least} to 1e9"))
        })
    };
    let scaling = match kind {
        Some("default") => RotaryScaling::None,
        Some("linear") => RotaryScaling::Linear { factor: number("factor", 1.0)? },
        Some("llama3") => {
            let (low, high) = (number("low_freq_factor", 1e-6)?, number("high_freq_factor", 1e-6)?);
            if low >= high {
                return Err(input.config_error(format!(
                    "`{key}.low_freq_factor` is {low}, not below `high_freq_factor` {high}"
                )));
            }
            let original = number("original_max_position_embeddings", 1.0)?;
            RotaryScaling::Llama3 { factor: number("factor", 1.0)?, low, high, original }
        }
        other => {
            return Err(input.config_error(format!(
                "`{key}` has the type `{}`; default, linear and llama3 are supported",
                other.unwrap_or("that is no text")
            )));
        }
    };
    Ok(Rotary { theta, scaling })
}
