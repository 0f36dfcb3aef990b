//! Reading a `quantization_config`, and refusing what would be computed wrongly.
//!
//! Files of llm-compressor carry many keys that say how the model was made; those are known here and passed over. A key
//! that is not known may change what the tensors mean (transforms and sparsity once were such keys), so it is refused
//! unless it is empty.

use serde_json::{Map, Value};
use zeropoint_core::Scheme;

use super::{
    Format, Group, QuantizationConfig,
    args::{self, Object, is_empty, refused},
    config::MIXED,
    matching::Target,
};
use crate::FormatError;

const ROOT: &str = "quantization_config";
/// More targets than any model has modules. Each is compared with the name of each Linear.
const MAX_TARGETS: usize = 100_000;
/// `re:` patterns among them; recipes have a handful. Each may take a mebibyte when it is compiled.
const MAX_EXPRESSIONS: usize = 256;

impl QuantizationConfig {
    /// Reads the value of `quantization_config`.
    ///
    /// Accepted: compressed models of two kinds of groups, apart or mixed. `int-quantized`: INT8 weights, symmetric per channel
    /// or tensor, and INT8 activations, static per tensor or dynamic per token. `pack-quantized`: weights of 4 or 8 bits,
    /// symmetric per group, channel or tensor, and float activations. Everything else is an error that names the key, its
    /// value and what is allowed.
    pub fn from_json(value: &Value) -> Result<Self, FormatError> {
        let root = Object::new(ROOT, value)?;
        root.expect("quant_method", &["compressed-tensors"])?;
        let format = model_format(&root)?;
        root.expect("quantization_status", &["compressed"])?;
        root.expect_empty(
            "kv_cache_scheme",
            "a quantised KV cache is not supported: quantise the model without it",
        )?;
        root.expect_empty(
            "transform_config",
            "online transforms are not supported: quantise the model without them",
        )?;
        check_sparsity(&root)?;
        root.known(&[
            "quant_method",
            "format",
            "quantization_status",
            "kv_cache_scheme",
            "transform_config",
            "sparsity_config",
            "ignore",
            "config_groups",
            "version",
            "global_compression_ratio",
            "run_compressed",
        ])?;
        let mut total = Total::default();
        let ignore = match root.get("ignore") {
            None | Some(Value::Null) => Vec::new(),
            Some(_) => targets(&root, "ignore", &mut total)?,
        };
        let groups = root.object("config_groups")?;
        if groups.is_empty() {
            return Err(root.refuse("config_groups", "at least one group is needed"));
        }
        let groups: Vec<Group> = groups
            .entries()
            .map(|(path, value)| group(path, value, format, &mut total))
            .collect::<Result<_, _>>()?;
        check_unique(&root, &groups)?;
        Ok(Self { groups, ignore })
    }
}

/// The format of groups that do not name their own; `None` where each must.
fn model_format(root: &Object<'_>) -> Result<Option<Format>, FormatError> {
    let name = root.text("format")?;
    let known = Format::ALL.into_iter().find(|format| format.name() == name);
    if known.is_none() && name != MIXED {
        return Err(root.refuse(
            "format",
            "only int-quantized models (INT8 weights and activations), pack-quantized ones (weight-only) and mixtures of both \
             (mixed-precision) can be run",
        ));
    }
    Ok(known)
}

fn group(
    path: String,
    value: &Value,
    model_format: Option<Format>,
    total: &mut Total,
) -> Result<Group, FormatError> {
    let group = Object::new(path, value)?;
    let format = match model_format.filter(|_| is_empty(group.get("format"))) {
        Some(format) => format,
        None => match group.expect("format", &Format::ALL.map(Format::name))? {
            name if name == Format::PackQuantized.name() => Format::PackQuantized,
            _ => Format::IntQuantized,
        },
    };
    group.expect_empty("output_activations", "quantised outputs are not supported: set it to null")?;
    group.known(&["targets", "weights", "input_activations", "output_activations", "format"])?;
    let targets = targets(&group, "targets", total)?;
    if targets.is_empty() {
        return Err(group.refuse("targets", "at least one target is needed"));
    }
    let activations = match (group.require("input_activations")?.is_null(), format) {
        (true, Format::PackQuantized) => None,
        (false, Format::IntQuantized) => Some(args::activations(&group.object("input_activations")?)?),
        (true, Format::IntQuantized) => {
            let allowed = "INT8 activations (static or dynamic) are needed with int-quantized: weights alone are read in the \
                           format pack-quantized";
            return Err(group.refuse("input_activations", allowed));
        }
        (false, Format::PackQuantized) => {
            let allowed = "only null is allowed with pack-quantized: weights beside INT8 activations are read in the format \
                           int-quantized";
            return Err(group.refuse("input_activations", allowed));
        }
    };
    let weights = args::weights(&group.object("weights")?, format)?;
    Ok(Group { targets, scheme: Scheme { weights, activations } })
}

/// What the lists of a config hold together.
#[derive(Default)]
struct Total {
    targets: usize,
    expressions: usize,
}

impl Total {
    /// Takes one more, or says how many are allowed.
    fn add(&mut self, target: &Target) -> Result<(), String> {
        self.targets += 1;
        self.expressions += usize::from(target.is_expression());
        if self.expressions > MAX_EXPRESSIONS {
            return Err(format!(
                "at most {MAX_EXPRESSIONS} patterns are allowed in all lists together: write exact names instead"
            ));
        }
        if self.targets > MAX_TARGETS {
            return Err(format!(
                "at most {MAX_TARGETS} names and patterns are allowed in all lists together: write patterns for them"
            ));
        }
        Ok(())
    }
}

/// A list of names and patterns, each of which compiles.
fn targets(object: &Object<'_>, key: &str, total: &mut Total) -> Result<Vec<Target>, FormatError> {
    let list =
        object.require(key)?.as_array().ok_or_else(|| object.refuse(key, "a list of names is needed"))?;
    let target = |(i, value): (usize, &Value)| {
        let path = format!("{}[{i}]", object.path_of(key));
        let text = value
            .as_str()
            .ok_or_else(|| refused(&path, Some(value), "a module name or a pattern is needed"))?;
        let target = Target::parse(text).map_err(|error| {
            let reason =
                format!("the pattern does not compile ({}): write exact names instead", error.reason);
            refused(&path, Some(value), &reason)
        })?;
        total.add(&target).map_err(|allowed| refused(&path, Some(value), &allowed))?;
        Ok(target)
    };
    list.iter().enumerate().map(target).collect()
}

/// The same target with two schemes would leave the choice to the order of reading.
fn check_unique(root: &Object<'_>, groups: &[Group]) -> Result<(), FormatError> {
    let mut seen = std::collections::BTreeMap::new();
    for group in groups {
        for target in &group.targets {
            let target = target.as_str();
            if seen.insert(target, group.scheme).is_some_and(|scheme| scheme != group.scheme) {
                let target = target.escape_debug();
                return Err(
                    root.refuse("config_groups", &format!("`{target}` is in groups of different schemes"))
                );
            }
        }
    }
    Ok(())
}

/// Older files describe the absence of sparsity by the format `dense`.
fn check_sparsity(root: &Object<'_>) -> Result<(), FormatError> {
    let dense = |config: &Map<String, Value>| config.get("format").and_then(Value::as_str) == Some("dense");
    match root.get("sparsity_config") {
        value if is_empty(value) => Ok(()),
        Some(Value::Object(config)) if dense(config) => Ok(()),
        _ => Err(root.refuse(
            "sparsity_config",
            "sparse weights are not supported: only null, {} or format dense is allowed",
        )),
    }
}
