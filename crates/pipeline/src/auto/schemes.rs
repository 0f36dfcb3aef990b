//! The schemes of groups, and the config that a choice among them comes to.

use std::collections::BTreeMap;

use zeropoint_evaluator::compare::MetricName;
use zeropoint_models::LinearId;
use zeropoint_quantizer::LayerScheme;

use super::Candidate;
use crate::config::{
    self, Activations, AlgorithmKind, Config, Gate, Override, OverrideScheme, Pattern, Preset,
    WeightGranularity, Weights,
};
use crate::sensitivity::Unit;
use crate::{PipelineError, Prepared, convert};

/// A candidate with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scheme {
    pub(super) candidate: Candidate,
    /// Of a candidate that is float, those of nothing.
    layer: config::LayerScheme,
}

impl Scheme {
    /// A candidate for Linears of so many inputs, with the observers and the symmetry of `base`, where it has any for it.
    pub(super) fn of(candidate: Candidate, base: &config::LayerScheme, inputs: &[usize]) -> Self {
        const SIZES: [u32; 4] = [64, 32, 128, 16];
        let preset = candidate.preset().unwrap_or_default().scheme();
        let mut weights = Weights {
            observer: base.weights.observer,
            percentile: base.weights.percentile,
            ..preset.weights
        };
        let is_integer = preset.activations.is_some();
        if is_integer && base.weights.granularity == WeightGranularity::Tensor {
            weights.granularity = WeightGranularity::Tensor;
        }
        if weights.granularity == WeightGranularity::Group {
            let divides = |size: &u32| inputs.iter().all(|inputs| inputs.is_multiple_of(*size as usize));
            let asked = base.weights.group_size;
            weights.group_size = asked.into_iter().chain(SIZES).find(divides);
            if weights.group_size.is_none() {
                weights.granularity = WeightGranularity::Channel;
            }
        }
        let of_mode =
            |usual: Activations| base.activations.filter(|given| given.mode == usual.mode).unwrap_or(usual);
        Self {
            candidate,
            layer: config::LayerScheme { weights, activations: preset.activations.map(of_mode) },
        }
    }

    /// Its numbers and observers; `None` where it is float.
    pub(super) fn numbers(&self) -> Option<LayerScheme> {
        self.candidate.preset().map(|_| convert::layer_scheme(self.layer))
    }

    /// It, for some Linears.
    fn for_layers(&self, layers: Vec<Pattern>) -> Override {
        let is_float = self.candidate == Candidate::Float;
        Override {
            layers,
            scheme: self.candidate.scheme(),
            weights: (!is_float).then_some(self.layer.weights),
            activations: self.layer.activations.filter(|_| !is_float),
        }
    }
}

/// The units with their schemes.
pub(super) struct Planned<'a> {
    pub(super) units: &'a [Unit],
    pub(super) schemes: &'a [Vec<Scheme>],
    /// Bytes of what is in no unit.
    pub(super) fixed: u64,
    /// Quantised Linears that are in no unit and that no override names.
    pub(super) outside: Vec<LinearId>,
}

impl Planned<'_> {
    fn chosen<'a>(&'a self, chosen: &'a [usize]) -> impl Iterator<Item = Scheme> + 'a {
        self.schemes.iter().zip(chosen).map(|(schemes, index)| schemes[*index])
    }

    /// Whether a choice makes anything integers.
    pub(super) fn quantises(&self, chosen: &[usize]) -> bool {
        self.chosen(chosen).any(|scheme| scheme.candidate != Candidate::Float)
    }

    /// Linears of each scheme.
    pub(super) fn counts(&self, chosen: &[usize]) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (unit, scheme) in self.units.iter().zip(self.chosen(chosen)) {
            *counts.entry(scheme.candidate.as_str()).or_default() += unit.linears.len();
        }
        counts
    }

    /// The config of a choice: the scheme of most weights for all, others by name, and what the user's overrides say behind. With a
    /// limit on the loss of a metric as a gate.
    pub(super) fn config(
        &self,
        prepared: &Prepared,
        chosen: &[usize],
        limit: Option<(&MetricName, f64)>,
    ) -> Result<Config, PipelineError> {
        let mut config = prepared.config.clone();
        let spec = prepared.graph().spec();
        let mut groups: Vec<(Scheme, Vec<LinearId>)> = Vec::new();
        for (unit, scheme) in self.units.iter().zip(self.chosen(chosen)) {
            match groups.iter_mut().find(|(known, _)| *known == scheme) {
                Some((_, linears)) => linears.extend(&unit.linears),
                None => groups.push((scheme, unit.linears.clone())),
            }
        }
        let size =
            |linears: &Vec<LinearId>| linears.iter().map(|id| spec.linears[*id].weights()).sum::<usize>();
        let main = groups.iter().filter(|(scheme, _)| scheme.candidate != Candidate::Float);
        let main = main.max_by_key(|(_, linears)| size(linears)).map(|(scheme, _)| *scheme);
        let Some(main) = main else { return Ok(config) };
        let pattern = |id: &LinearId| Pattern(spec.linears[*id].path.clone());
        let quantization = &mut config.quantization;
        let base = quantization.layer_scheme();
        let others = groups.iter().filter(|(scheme, _)| *scheme != main);
        let mut overrides: Vec<Override> = others
            .map(|(scheme, linears)| scheme.for_layers(linears.iter().map(pattern).collect()))
            .collect();
        if !self.outside.is_empty() {
            overrides.push(Override {
                layers: self.outside.iter().map(pattern).collect(),
                scheme: OverrideScheme::of(&base),
                weights: Some(base.weights),
                activations: base.activations,
            });
        }
        overrides.append(&mut quantization.overrides);
        quantization.overrides = overrides;
        // Four bits are rounded as their preset has it, and with them the rest: there is one algorithm for all.
        let four = groups.iter().any(|(scheme, _)| scheme.candidate == Candidate::W4a16);
        if four && quantization.algorithm.kind == AlgorithmKind::Rtn {
            quantization.algorithm = Preset::W4a16.algorithm();
        }
        quantization.scheme = main.candidate.preset().unwrap_or_default();
        quantization.weights = main.layer.weights;
        quantization.activations = main.layer.activations;
        if let Some((metric, max_drop)) = limit
            && let Some(gate) = Gate::of(&metric.task, &metric.name, max_drop)
        {
            let is_it = |gate: &Gate| gate.task == metric.task && gate.metric.to_string() == metric.name;
            config.evaluation.gate.retain(|gate| !is_it(gate));
            config.evaluation.gate.push(gate);
        }
        config.validate()?;
        Ok(config)
    }
}
