//! The `quantization_config` of a model, and how it is written.

use serde_json::{Value, json};
use zeropoint_core::{ActivationMode, Granularity, Scheme};

use super::matching::{self, Target};

/// The name of a model's format where its groups differ.
pub(super) const MIXED: &str = "mixed-precision";

/// How the tensors of a quantised Linear are stored; it follows from its scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// INT8 weights as they are, one byte each, with scales beside them: for INT8 activations.
    IntQuantized,
    /// Weights in 32-bit words ([`packed`](super::packed)), with scales beside them: weight-only schemes.
    PackQuantized,
}

impl Format {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::IntQuantized, Self::PackQuantized];

    /// That of a scheme.
    pub fn of(scheme: Scheme) -> Self {
        if scheme.is_weight_only() { Self::PackQuantized } else { Self::IntQuantized }
    }

    /// The name in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IntQuantized => "int-quantized",
            Self::PackQuantized => "pack-quantized",
        }
    }
}

/// Modules that share a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Exact module names, the class `Linear`, or `re:` patterns matched from the start of the name.
    pub targets: Vec<Target>,
    /// Their scheme.
    pub scheme: Scheme,
}

/// Which Linears of a model are quantised, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// The schemes and the modules they apply to.
    pub groups: Vec<Group>,
    /// Modules left in floating point, named as targets are. Every Linear that is not quantised must be here: readers
    /// take a missing one for quantised and compute garbage.
    pub ignore: Vec<Target>,
}

impl QuantizationConfig {
    /// The config of these quantised modules and these ignored ones, in the most portable form: where all share one
    /// scheme a single group with the target `Linear`, otherwise one group per scheme with exact names. Groups and the
    /// names in them keep the order in which they come.
    pub fn for_modules<N: Into<String>>(
        modules: impl IntoIterator<Item = (N, Scheme)>,
        ignore: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for (name, scheme) in modules {
            let name = Target::exact(name);
            match groups.iter_mut().find(|group| group.scheme == scheme) {
                Some(group) => group.targets.push(name),
                None => groups.push(Group { targets: vec![name], scheme }),
            }
        }
        if let [only] = groups.as_mut_slice() {
            only.targets = vec![Target::exact(matching::LINEAR)];
        }
        Self { groups, ignore: ignore.into_iter().map(Target::exact).collect() }
    }

    /// How the tensors of all groups are stored; `None` where groups differ.
    pub fn format(&self) -> Option<Format> {
        let mut formats = self.groups.iter().map(|group| Format::of(group.scheme));
        let first = formats.next()?;
        formats.all(|format| format == first).then_some(first)
    }

    /// The JSON for `config.json`, with exactly the keys that every reader takes.
    ///
    /// Older readers refuse unknown keys inside the argument objects, and readers compute garbage without an error when
    /// `quantization_status` is missing or `format` is left to its default, so both are always written.
    pub fn to_json(&self) -> Value {
        let format = self.format();
        let groups: serde_json::Map<String, Value> = self
            .groups
            .iter()
            .enumerate()
            .map(|(i, group)| (format!("group_{i}"), group_json(group, format.is_none())))
            .collect();
        json!({
            "quant_method": "compressed-tensors",
            "format": format.map_or(MIXED, Format::name),
            "quantization_status": "compressed",
            "ignore": texts(&self.ignore),
            "config_groups": groups,
        })
    }

    /// The scheme of a Linear by its module name; `None` when it is ignored or no target matches.
    ///
    /// Where several targets match, an exact name wins over a pattern and a pattern over a class; among patterns the
    /// first in the order of their text wins. This is the rule of `compressed-tensors` (`match_named_modules`).
    pub fn scheme_of(&self, module_name: &str) -> Option<Scheme> {
        if self.ignore.iter().any(|target| target.matches(module_name)) {
            return None;
        }
        self.groups
            .iter()
            .flat_map(|group| group.targets.iter().map(|target| (target, group.scheme)))
            .filter(|(target, _)| target.matches(module_name))
            .map(|(target, scheme)| (target.rank(), target.as_str(), scheme))
            .min_by_key(|(rank, text, _)| (*rank, *text))
            .map(|(_, _, scheme)| scheme)
    }
}

/// Targets as they are written.
fn texts(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(Target::as_str).collect()
}

/// A group, with its own format where those of the model differ.
fn group_json(group: &Group, with_format: bool) -> Value {
    let Scheme { weights, activations } = group.scheme;
    let mut json = json!({
        "targets": texts(&group.targets),
        "weights": args_json(weights.bits.width(), true, weights.granularity, false),
        "input_activations": activations.map(|activations| {
            let dynamic = activations.mode == ActivationMode::Dynamic;
            args_json(8, activations.symmetry.is_symmetric(), activations.granularity(), dynamic)
        }),
    });
    if with_format {
        json["format"] = Format::of(group.scheme).name().into();
    }
    json
}

fn args_json(bits: usize, symmetric: bool, granularity: Granularity, dynamic: bool) -> Value {
    let mut args = json!({
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy(granularity),
    });
    if let Granularity::Group(size) = granularity {
        args["group_size"] = size.into();
    }
    args["dynamic"] = dynamic.into();
    args
}

/// The format's word for a granularity.
pub(crate) const fn strategy(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Tensor => "tensor",
        Granularity::Channel => "channel",
        Granularity::Group(_) => "group",
        Granularity::Token => "token",
    }
}
