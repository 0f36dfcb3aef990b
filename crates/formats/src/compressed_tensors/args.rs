//! The quantisation arguments of weights and activations, read key by key.

use serde_json::{Map, Value};
use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, Symmetry, WeightBits, WeightScheme};

use super::Format;
use crate::FormatError;

const BLOCKS: &str = "blocks are not supported: only null is allowed";

/// Keys of an argument object: first those that carry the scheme, then those that say how its numbers were found or how
/// the tensors are typed, which the tensors themselves show.
const KNOWN: [&str; 12] = [
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "dynamic",
    "group_size",
    "block_structure",
    "actorder",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "zp_dtype",
];

/// What `actorder` may say. By itself it changes nothing: where columns of a group are no neighbours, a tensor says so.
const ACTIVATION_ORDERS: [&str; 4] = ["group", "weight", "static", "dynamic"];

pub(super) fn weights(args: &Object<'_>, format: Format) -> Result<WeightScheme, FormatError> {
    let bits = match (args.require("num_bits")?.as_u64(), format) {
        (Some(8), _) => WeightBits::Eight,
        (Some(4), Format::PackQuantized) => WeightBits::Four,
        (_, Format::IntQuantized) => return Err(args.refuse("num_bits", "only 8 is allowed")),
        (_, Format::PackQuantized) => return Err(args.refuse("num_bits", "only 4 or 8 is allowed")),
    };
    args.expect("type", &["int"])?;
    if !args.flag("symmetric")? {
        let allowed = match format {
            Format::IntQuantized => "only symmetric weights (true) can be run",
            Format::PackQuantized => {
                "only symmetric weights (true) can be run, for releases of compressed-tensors differ in how they pack zero \
                 points: quantise the model again with symmetric weights"
            }
        };
        return Err(args.refuse("symmetric", allowed));
    }
    if args.flag("dynamic")? {
        return Err(args.refuse("dynamic", "weights must be static (false)"));
    }
    let strategies: &[&str] = match format {
        Format::IntQuantized => &["channel", "tensor"],
        Format::PackQuantized => &["group", "channel", "tensor"],
    };
    let granularity = match args.expect("strategy", strategies)? {
        "group" => Granularity::Group(args.positive("group_size")?),
        strategy => {
            // Some files say -1 of one group over all columns.
            if args.get("group_size").and_then(Value::as_i64) != Some(-1) {
                args.expect_empty(
                    "group_size",
                    &format!("the strategy \"{strategy}\" has no groups: only null is allowed"),
                )?;
            }
            if strategy == "channel" { Granularity::Channel } else { Granularity::Tensor }
        }
    };
    match args.get("actorder") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(_) => drop(args.expect("actorder", &ACTIVATION_ORDERS)?),
    }
    args.expect_empty("block_structure", BLOCKS)?;
    args.known(&KNOWN)?;
    Ok(WeightScheme { bits, granularity })
}

pub(super) fn activations(args: &Object<'_>) -> Result<ActivationScheme, FormatError> {
    if args.require("num_bits")?.as_u64() != Some(8) {
        return Err(args.refuse("num_bits", "only 8 is allowed"));
    }
    args.expect("type", &["int"])?;
    args.expect_empty("group_size", "INT8 activations have no groups: only null is allowed")?;
    args.expect_empty("block_structure", BLOCKS)?;
    args.known(&KNOWN)?;
    let symmetry = Symmetry::from_flag(args.flag("symmetric")?);
    let mode = if args.flag("dynamic")? { ActivationMode::Dynamic } else { ActivationMode::Static };
    let (strategy, allowed) = match mode {
        ActivationMode::Dynamic => ("token", "dynamic activations must have the strategy \"token\""),
        ActivationMode::Static => ("tensor", "static activations must have the strategy \"tensor\""),
    };
    if args.text("strategy")? != strategy {
        return Err(args.refuse("strategy", allowed));
    }
    Ok(ActivationScheme { mode, symmetry })
}

/// A JSON object that knows its path, for messages.
pub(super) struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(super) fn new(path: impl Into<String>, value: &'a Value) -> Result<Self, FormatError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            _ => Err(refused(&path, Some(value), "an object is needed")),
        }
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        format!("{}.{}", self.path, key.escape_debug())
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The entries with their paths.
    pub(super) fn entries(&self) -> impl Iterator<Item = (String, &'a Value)> {
        self.map.iter().map(|(key, value)| (self.path_of(key), value))
    }

    pub(super) fn require(&self, key: &str) -> Result<&'a Value, FormatError> {
        self.get(key).ok_or_else(|| self.refuse(key, "it must be given"))
    }

    pub(super) fn object(&self, key: &str) -> Result<Self, FormatError> {
        Self::new(self.path_of(key), self.require(key)?)
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, FormatError> {
        self.require(key)?.as_str().ok_or_else(|| self.refuse(key, "a string is needed"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, FormatError> {
        self.require(key)?.as_bool().ok_or_else(|| self.refuse(key, "only true or false is allowed"))
    }

    /// A whole number that is not 0.
    pub(super) fn positive(&self, key: &str) -> Result<usize, FormatError> {
        let found = self.require(key)?.as_u64().and_then(|number| usize::try_from(number).ok());
        found
            .filter(|number| *number > 0)
            .ok_or_else(|| self.refuse(key, "a whole number that is at least 1 is needed"))
    }

    /// One of the allowed strings.
    pub(super) fn expect(&self, key: &str, allowed: &[&str]) -> Result<&'a str, FormatError> {
        let found = self.get(key).and_then(Value::as_str).filter(|text| allowed.contains(text));
        found.ok_or_else(|| {
            let quoted: Vec<String> = allowed.iter().map(|text| format!("\"{text}\"")).collect();
            self.refuse(key, &format!("only {} is allowed", quoted.join(" or ")))
        })
    }

    pub(super) fn expect_empty(&self, key: &str, allowed: &str) -> Result<(), FormatError> {
        if is_empty(self.get(key)) { Ok(()) } else { Err(self.refuse(key, allowed)) }
    }

    /// Refuses keys that are not in the list and say something.
    pub(super) fn known(&self, keys: &[&str]) -> Result<(), FormatError> {
        match self.map.iter().find(|(key, value)| !keys.contains(&key.as_str()) && !is_empty(Some(value))) {
            None => Ok(()),
            Some((key, _)) => Err(self.refuse(
                key,
                "this key is not known and may change what the model computes: remove it if it does not",
            )),
        }
    }

    pub(super) fn refuse(&self, key: &str, allowed: &str) -> FormatError {
        refused(&self.path_of(key), self.get(key), allowed)
    }
}

/// Absent, null, or a list or object without content.
pub(super) fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

pub(super) fn refused(path: &str, value: Option<&Value>, allowed: &str) -> FormatError {
    const SHOWN: usize = 80;
    let value = value.map_or_else(|| "missing".to_owned(), Value::to_string);
    let value = match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value,
    };
    FormatError::Config { key: path.to_owned(), value, allowed: allowed.to_owned() }
}
