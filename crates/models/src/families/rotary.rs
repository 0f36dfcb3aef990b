//! The rotary settings of a decoder, in both spellings of config.json.

use serde_json::{Map, Value};

use super::FamilyInput;
use crate::ModelError;
use crate::spec::{Rotary, RotaryScaling};

/// Where a family's settings stand and what their silence means.
pub(super) struct RotaryKeys {
    /// The base frequency.
    pub(super) theta: f64,
    /// Its key outside the settings.
    pub(super) theta_key: &'static str,
    /// The key outside the settings of the share of a head's channels that turn, and the share, in families that have one.
    pub(super) channels: Option<(&'static str, f64)>,
    /// Tokens of the longest sequence of the training, in families whose config.json names it outside the settings.
    pub(super) original: Option<f64>,
    /// What the type of [`RotaryScaling::Long`] is called.
    pub(super) long: &'static [&'static str],
}

impl Default for RotaryKeys {
    fn default() -> Self {
        Self { theta: 10_000.0, theta_key: "rope_theta", channels: None, original: None, long: &["longrope"] }
    }
}

/// What a decoder's config.json says: `rope_theta` with `rope_scaling`, or both in `rope_parameters`, as version 5 of
/// `transformers` writes them. It lets the former override the latter.
pub(super) fn read(
    input: &FamilyInput<'_>,
    head_dim: usize,
    longest: usize,
    keys: &RotaryKeys,
) -> Result<Rotary, ModelError> {
    let key = if object(input, "rope_scaling")?.is_some() { "rope_scaling" } else { "rope_parameters" };
    let values = object(input, key)?.cloned().unwrap_or_default();
    let theta = theta_outside(input, keys)?;
    Settings { input, key: key.to_owned(), values, head_dim, longest, keys }.rotary(theta)
}

/// What a config.json with settings for each kind of layer says: those of layers with a sliding window, and of the others.
pub(super) fn read_local_and_global(
    input: &FamilyInput<'_>,
    head_dim: usize,
    longest: usize,
) -> Result<(Rotary, Rotary), ModelError> {
    let nested = object(input, "rope_parameters")?;
    let of_kind = |kind: &str, keys: &RotaryKeys, scaling: Option<&Map<String, Value>>| {
        let mut values = match nested.and_then(|nested| nested.get(kind)) {
            Some(Value::Object(values)) => values.clone(),
            None | Some(Value::Null) => Map::new(),
            Some(other) => {
                let reason = format!("`rope_parameters.{kind}` is {other}; an object or null is expected");
                return Err(input.config_error(reason));
            }
        };
        values.extend(scaling.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        let theta = theta_outside(input, keys)?;
        let key = format!("rope_parameters.{kind}");
        Settings { input, key, values, head_dim, longest, keys }.rotary(theta)
    };
    let local = RotaryKeys { theta_key: "rope_local_base_freq", ..RotaryKeys::default() };
    let global = RotaryKeys { theta: 1_000_000.0, ..RotaryKeys::default() };
    Ok((
        of_kind("sliding_attention", &local, None)?,
        of_kind("full_attention", &global, object(input, "rope_scaling")?)?,
    ))
}

fn object<'a>(
    input: &FamilyInput<'a>,
    key: &'static str,
) -> Result<Option<&'a Map<String, Value>>, ModelError> {
    match input.config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(values)) => Ok((!values.is_empty()).then_some(values)),
        Some(other) => Err(input.config_error(format!("`{key}` is {other}; an object or null is expected"))),
    }
}

fn theta_outside(input: &FamilyInput<'_>, keys: &RotaryKeys) -> Result<f32, ModelError> {
    let value = input.config.get(keys.theta_key).map_or(Some(keys.theta), Value::as_f64);
    super::check_theta(input, keys.theta_key, value)
}

/// The settings of one kind of layer.
struct Settings<'a> {
    input: &'a FamilyInput<'a>,
    key: String,
    values: Map<String, Value>,
    head_dim: usize,
    longest: usize,
    keys: &'a RotaryKeys,
}

impl Settings<'_> {
    fn rotary(&self, theta: f32) -> Result<Rotary, ModelError> {
        let Self { input, key, values, .. } = self;
        let theta = match values.get("rope_theta") {
            Some(value) => super::check_theta(input, &format!("{key}.rope_theta"), value.as_f64())?,
            None => theta,
        };
        let channels = self.channels()?;
        let kind =
            values.get("rope_type").or_else(|| values.get("type")).map_or(Some("default"), Value::as_str);
        let scaling = match kind {
            // Up to `max_position_embeddings`, which is as far as we go, `dynamic` changes nothing.
            Some("default" | "dynamic") => RotaryScaling::None,
            Some("linear") => RotaryScaling::Linear { factor: self.number("factor", 1.0)? },
            Some("llama3") => {
                let (low, high) =
                    (self.number("low_freq_factor", 1e-6)?, self.number("high_freq_factor", 1e-6)?);
                if low >= high {
                    return Err(input.config_error(format!(
                        "`{key}.low_freq_factor` is {low}, not below `high_freq_factor` {high}"
                    )));
                }
                let original = self.original()? as f32;
                RotaryScaling::Llama3 { factor: self.number("factor", 1.0)?, low, high, original }
            }
            Some(kind) if self.keys.long.contains(&kind) => self.long(channels)?,
            Some("yarn") => self.yarn(theta, channels)?,
            other => {
                return Err(input.config_error(format!(
                    "`{key}` has the type `{}`; default, linear, dynamic, llama3, yarn and longrope are supported",
                    other.unwrap_or("that is no text")
                )));
            }
        };
        Ok(Rotary { theta, channels, scaling })
    }

    /// The first channels of a head that turn.
    fn channels(&self) -> Result<usize, ModelError> {
        const INSIDE: &str = "partial_rotary_factor";
        let Self { input, head_dim, .. } = self;
        let (outside, default) = self.keys.channels.unwrap_or((INSIDE, 1.0));
        let told = self.values.get(INSIDE).map(|value| (format!("{}.{INSIDE}", self.key), value));
        let told = told.or_else(|| input.config.get(outside).map(|value| (outside.to_owned(), value)));
        let Some((key, value)) = told else { return Ok((*head_dim as f64 * default) as usize) };
        let wrong = |allowed: &str| Err(input.config_error(format!("`{key}` is {value}; {allowed}")));
        match value.as_f64() {
            Some(1.0) => Ok(*head_dim),
            _ if self.keys.channels.is_none() => wrong("every channel of this family's heads turns, so 1"),
            Some(share) if share > 0.0 && share < 1.0 => match (*head_dim as f64 * share) as usize {
                channels if channels >= 2 && channels.is_multiple_of(2) => Ok(channels),
                channels => {
                    wrong(&format!("{channels} of {head_dim} channels do not turn in pairs, at least one"))
                }
            },
            _ => wrong("a number above 0 and at most 1 is expected"),
        }
    }

    /// A number of the settings.
    fn number(&self, name: &str, least: f64) -> Result<f32, ModelError> {
        self.optional(name, least)?.map(|value| value as f32).ok_or_else(|| self.no_number(name, least))
    }

    fn optional(&self, name: &str, least: f64) -> Result<Option<f64>, ModelError> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|value| *value >= least && *value < 1e9) {
                None => Err(self.no_number(name, least)),
                value => Ok(value),
            },
        }
    }

    fn no_number(&self, name: &str, least: f64) -> ModelError {
        let reason = format!("`{}.{name}` is missing or no number from {least} to 1e9", self.key);
        self.input.config_error(reason)
    }

    /// Tokens of the longest sequence of the training.
    fn original(&self) -> Result<f64, ModelError> {
        const KEY: &str = "original_max_position_embeddings";
        let outside = match self.input.config.get(KEY) {
            None | Some(Value::Null) => self.keys.original,
            Some(value) => match value.as_f64().filter(|value| *value >= 1.0 && *value < 1e9) {
                None => {
                    let reason = format!("`{KEY}` is {value}; a number from 1 to 1e9 is expected");
                    return Err(self.input.config_error(reason));
                }
                value => value,
            },
        };
        Ok(match outside {
            Some(outside) => outside,
            None => self.optional(KEY, 1.0)?.unwrap_or(self.longest as f64),
        })
    }

    fn factor(&self, original: f64) -> Result<f64, ModelError> {
        Ok(self.optional("factor", 1.0)?.unwrap_or(self.longest as f64 / original))
    }

    /// As `_compute_yarn_parameters` of `transformers`' `modeling_rope_utils.py`.
    fn yarn(&self, theta: f32, channels: usize) -> Result<RotaryScaling, ModelError> {
        let original = self.original()?;
        let factor = self.factor(original)?;
        let growth = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let weight = |name| -> Result<Option<f64>, ModelError> {
            Ok(self.optional(name, 0.0)?.filter(|weight| *weight > 0.0))
        };
        let attention = match (weight("mscale")?, weight("mscale_all_dim")?) {
            (Some(above), Some(below)) => growth(above) / growth(below),
            _ => growth(1.0),
        };
        let attention = self.optional("attention_factor", 1e-6)?.unwrap_or(attention) as f32;
        // The pair of channels that turns so often within the original length.
        let pair = |turns: f64| {
            let period = original / (turns * 2.0 * std::f64::consts::PI);
            channels as f64 * period.ln() / (2.0 * f64::from(theta).ln())
        };
        let fast = weight("beta_fast")?.unwrap_or(32.0);
        let slow = weight("beta_slow")?.unwrap_or(1.0);
        let (mut low, mut high) = (pair(fast), pair(slow));
        if self.values.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(channels as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        Ok(RotaryScaling::Yarn { factor: factor as f32, ramp: [low as f32, high as f32], attention })
    }

    /// As `_compute_longrope_parameters` there.
    fn long(&self, channels: usize) -> Result<RotaryScaling, ModelError> {
        let list = |name: &str| {
            let values = self.values.get(name).and_then(Value::as_array).into_iter().flatten();
            let values: Vec<f32> = values
                .filter_map(Value::as_f64)
                .filter(|value| *value > 0.0 && *value < 1e9)
                .map(|value| value as f32)
                .collect();
            let told = self.values.get(name).and_then(Value::as_array).map_or(0, Vec::len);
            if values.len() == channels / 2 && told == values.len() {
                return Ok(values);
            }
            Err(self.input.config_error(format!(
                "`{}.{name}` is no list of {} numbers above 0, one for each pair of channels",
                self.key,
                channels / 2
            )))
        };
        let original = self.original()?;
        let factor = self.factor(original)?;
        let growth = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let attention = self.optional("attention_factor", 1e-6)?.unwrap_or(growth) as f32;
        let original = original as usize;
        Ok(RotaryScaling::Long {
            short: list("short_factor")?,
            long: list("long_factor")?,
            original,
            attention,
        })
    }
}
