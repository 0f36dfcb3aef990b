//! What `[quantization]` must not say: values that nothing here implements, and keys that contradict each other.

use super::error::{Problem, within};
use super::quantization::{
    ActivationMode, ActivationObserver, Activations, AlgorithmKind, LayerScheme, Override, Preset,
    Quantization, WeightGranularity, WeightObserver, Weights,
};
use super::transforms::{Transform, TransformKind};

impl Quantization {
    pub(super) fn check(&self) -> Result<(), Problem> {
        check_scheme("quantization", self.scheme, &self.layer_scheme())?;
        for (index, pattern) in self.ignore.iter().flatten().enumerate() {
            pattern.check(&format!("quantization.ignore.{index}"))?;
        }
        if let Some(damping) = self.algorithm.damping {
            let path = "quantization.algorithm.damping";
            if self.algorithm.kind != AlgorithmKind::Gptq {
                let message = format!("`{path}` is given, but the algorithm is not \"gptq\"");
                return Err(Problem::new(path, message)
                    .label("of another algorithm")
                    .related("quantization.algorithm.kind", "the algorithm")
                    .hint("remove `damping`, or write `kind = \"gptq\"`"));
            }
            within(path, damping, 0.0..=1.0)?;
        }
        for (index, transform) in self.transforms.iter().flatten().enumerate() {
            transform.check(&format!("quantization.transforms.{index}"))?;
        }
        for (index, other) in self.overrides.iter().enumerate() {
            other.check(&format!("quantization.overrides.{index}"))?;
        }
        Ok(())
    }
}

impl Quantization {
    /// Whether any layer may have static activations.
    pub(super) fn has_static_activations(&self) -> bool {
        let is_static = |preset: Preset| preset.mode() == Some(ActivationMode::Static);
        is_static(self.scheme)
            || self.overrides.iter().filter_map(|other| other.scheme.preset()).any(is_static)
    }
}

impl Quantization {
    /// The key of an algorithm or transform that goes by calibration, if there is one.
    pub(super) fn calibrated_key(&self) -> Option<String> {
        if self.algorithm.kind == AlgorithmKind::Gptq {
            return Some("quantization.algorithm".to_owned());
        }
        if self.bias_correction {
            return Some("quantization.bias_correction".to_owned());
        }
        let smooths = |transform: &Transform| {
            transform.kind == TransformKind::Awq
                || (transform.search.is_some() && transform.smooth != Some(false))
        };
        match &self.transforms {
            Some(transforms) => {
                transforms.iter().position(smooths).map(|index| format!("quantization.transforms.{index}"))
            }
            // A run makes those of the preset.
            None => self.scheme.transforms().iter().any(smooths).then(|| "quantization.scheme".to_owned()),
        }
    }
}

impl Override {
    fn check(&self, at: &str) -> Result<(), Problem> {
        if self.layers.is_empty() {
            let path = format!("{at}.layers");
            return Err(Problem::new(path.clone(), format!("`{path}` names no layer"))
                .label("empty")
                .hint("`re:.*` is every layer"));
        }
        for (index, pattern) in self.layers.iter().enumerate() {
            pattern.check(&format!("{at}.layers.{index}"))?;
        }
        if let Some(preset) = self.scheme.preset() {
            return check_scheme(at, preset, &self.layer_scheme().unwrap_or_else(|| preset.scheme()));
        }
        for (key, given) in [("weights", self.weights.is_some()), ("activations", self.activations.is_some())]
        {
            if given {
                let message = format!("`{at}.{key}` is given, but these layers stay float (scheme \"none\")");
                return Err(Problem::new(format!("{at}.{key}"), message)
                    .label("of layers that stay float")
                    .related(format!("{at}.scheme"), "which this says")
                    .hint(format!("remove `{key}` or `scheme`")));
            }
        }
        Ok(())
    }
}

/// `parent` is the table that holds `scheme`, `weights` and `activations`.
fn check_scheme(parent: &str, preset: Preset, layer: &LayerScheme) -> Result<(), Problem> {
    let (weights, at) = (layer.weights, format!("{parent}.weights"));
    if let Some(activations) = layer.activations {
        if preset.mode().is_none() {
            let message = format!(
                "`{parent}.activations` is given, but the scheme \"{}\" leaves activations float",
                preset.as_str()
            );
            return Err(Problem::new(format!("{parent}.activations"), message)
                .label("of schemes with INT8 activations")
                .related(format!("{parent}.scheme"), "the scheme")
                .hint("remove `activations`, or write `scheme = \"w8a8-dynamic\"`"));
        }
        eight_bits(&at, weights.bits, "w4a16", parent)?;
        if weights.granularity == WeightGranularity::Group {
            let path = format!("{at}.granularity");
            let message = format!("`{path}` is \"group\", which no runtime multiplies with INT8 activations");
            return Err(Problem::new(path, message)
                .label("of weight-only schemes")
                .related(format!("{at}.group_size"), "the size of groups")
                .related(format!("{parent}.scheme"), "the scheme")
                .hint("write `granularity = \"channel\"`, or `scheme = \"w8a16\"` or \"w4a16\""));
        }
        weights.check(&at)?;
        return activations.check(parent, preset);
    }
    match (preset, weights.bits) {
        (Preset::W8a16, 4) => {
            let path = format!("{at}.bits");
            let message = format!("`{path}` is 4, which contradicts the scheme \"w8a16\"");
            return Err(Problem::new(path, message)
                .label("not of \"w8a16\"")
                .related(format!("{parent}.scheme"), "the scheme")
                .hint("write `scheme = \"w4a16\"`, or remove `bits`"));
        }
        (Preset::W4a16, 8) => {
            let path = format!("{at}.bits");
            let message = format!("`{path}` is 8, which contradicts the scheme \"w4a16\"");
            return Err(Problem::new(path, message)
                .label("not of \"w4a16\"")
                .related(format!("{parent}.scheme"), "the scheme")
                .hint("write `scheme = \"w8a16\"`, or remove `bits`"));
        }
        (_, 4) => {}
        (_, bits) => eight_bits(&at, bits, "w4a16", parent)?,
    }
    weights.check(&at)
}

/// INT8, unless another scheme has other integers.
fn eight_bits(at: &str, bits: u8, four: &str, parent: &str) -> Result<(), Problem> {
    if bits == 8 {
        return Ok(());
    }
    let path = format!("{at}.bits");
    let problem =
        Problem::new(path.clone(), format!("`{path}` must be 8, but is {bits}")).label("not offered");
    Err(if bits == 4 && !four.is_empty() {
        problem
            .related(format!("{parent}.scheme"), "the scheme")
            .hint(format!("INT4 weights are of the scheme \"{four}\", whose activations stay float; otherwise 8, that is INT8"))
    } else {
        problem.hint("allowed: 8, that is INT8")
    })
}

/// Whether the setting of an observer is given exactly where its observer is.
fn belongs(
    path: &str,
    given: bool,
    takes_it: bool,
    observers: &[&str],
    example: &str,
) -> Result<(), Problem> {
    if given == takes_it {
        return Ok(());
    }
    let key = path.rsplit('.').next().unwrap_or(path);
    let names: Vec<String> = observers.iter().map(|name| format!("\"{name}\"")).collect();
    let names = names.join(" or ");
    let observer = path.strip_suffix(key).unwrap_or_default().to_owned() + "observer";
    Err(if given {
        Problem::new(path, format!("`{path}` is given, but the observer is not {names}"))
            .label(format!("belongs to {names}"))
            .related(observer, "the observer")
            .hint(format!("write `observer = \"{}\"`, or remove `{key}`", observers[0]))
    } else {
        Problem::new(path, format!("`{path}` is missing: the observer {names} needs it"))
            .label(format!("`{key}` belongs here"))
            .hint(format!("for example `{key} = {example}`"))
    })
}

fn in_percent(path: &str, percentile: f64) -> Result<(), Problem> {
    within(path, percentile, 50.0..=100.0)
        .map_err(|problem| problem.hint("percentiles are in percent: 99.99 leaves out one value in 10000"))
}

impl Weights {
    fn check(self, at: &str) -> Result<(), Problem> {
        if let Some(size) = self.group_size {
            let path = format!("{at}.group_size");
            if self.granularity != WeightGranularity::Group {
                let message = format!("`{path}` is given, but the granularity is not \"group\"");
                return Err(Problem::new(path, message)
                    .label("of groups")
                    .related(format!("{at}.granularity"), "the granularity")
                    .hint("remove `group_size`, or write `granularity = \"group\"`"));
            }
            within(&path, size, 8..=4096).map_err(|problem| problem.hint("32, 64 and 128 are usual"))?;
        }
        if !self.symmetric {
            let path = format!("{at}.symmetric");
            let message =
                format!("`{path}` must be true: no runtime of this format loads asymmetric weights alike");
            return Err(Problem::new(path, message).label("not offered").hint("remove `symmetric`"));
        }
        let path = format!("{at}.percentile");
        let takes_it = self.observer == WeightObserver::Percentile;
        belongs(&path, self.percentile.is_some(), takes_it, &["percentile"], "99.9")?;
        self.percentile.map_or(Ok(()), |percentile| in_percent(&path, percentile))
    }
}

impl Activations {
    /// `parent` is the table that holds both `scheme` and `activations`.
    fn check(&self, parent: &str, preset: Preset) -> Result<(), Problem> {
        let at = format!("{parent}.activations");
        eight_bits(&at, self.bits, "", parent)?;
        let usual = Self::of(self.mode);
        let (mode, granularity, other) = match self.mode {
            ActivationMode::Static => ("static", "tensor", Preset::W8a8Static),
            ActivationMode::Dynamic => ("dynamic", "token", Preset::W8a8Dynamic),
        };
        if Some(self.mode) != preset.mode() {
            let message =
                format!("`{at}.mode` is \"{mode}\", which contradicts the scheme \"{}\"", preset.as_str());
            return Err(Problem::new(format!("{at}.mode"), message)
                .label(format!("not of \"{}\"", preset.as_str()))
                .related(format!("{parent}.scheme"), "the scheme")
                .hint(format!("write `scheme = \"{}\"`, or remove `mode`", other.as_str())));
        }
        if self.granularity != usual.granularity {
            let path = format!("{at}.granularity");
            let message = format!("`{path}` must be \"{granularity}\" for {mode} activations");
            return Err(Problem::new(path, message)
                .label(format!("not of {mode} activations"))
                .related(format!("{at}.mode"), "the mode")
                .related(format!("{parent}.scheme"), "the scheme")
                .hint("allowed: \"tensor\" for static activations, \"token\" for dynamic ones"));
        }
        match (self.mode, self.observer) {
            (ActivationMode::Dynamic, Some(_)) => {
                let path = format!("{at}.observer");
                let message =
                    format!("`{path}` is given, but dynamic activations take their range at run time");
                return Err(Problem::new(path, message)
                    .label("nothing to observe")
                    .related(format!("{parent}.scheme"), "dynamic activations")
                    .hint("remove `observer`, or write `scheme = \"w8a8-static\"`"));
            }
            (ActivationMode::Static, None) => {
                let path = format!("{at}.observer");
                let message = format!("`{path}` is missing: static activations need one");
                let names = ActivationObserver::ALL.map(|observer| format!("`{}`", observer.as_str()));
                return Err(Problem::new(path, message)
                    .label("`observer` belongs here")
                    .hint(format!("allowed: {}", names.join(", "))));
            }
            _ => {}
        }
        self.check_settings(&at)
    }

    /// The settings of observers.
    fn check_settings(&self, at: &str) -> Result<(), Problem> {
        let is = |observer| self.observer == Some(observer);
        let path = format!("{at}.percentile");
        let takes_it = self.observer.is_some_and(ActivationObserver::takes_percentile);
        belongs(
            &path,
            self.percentile.is_some(),
            takes_it,
            &["percentile", "percentile-per-channel"],
            "99.99",
        )?;
        self.percentile.map_or(Ok(()), |percentile| in_percent(&path, percentile))?;

        let (averages, name) = (is(ActivationObserver::MovingAverage), &["moving-average"]);
        let path = format!("{at}.averaging_constant");
        belongs(&path, self.averaging_constant.is_some(), averages, name, "0.01")?;
        self.averaging_constant.map_or(Ok(()), |constant| within(&path, constant, 0.000_001..=1.0)).map_err(
            |problem| problem.hint("1 keeps the last step alone; a small constant averages over many"),
        )?;
        let path = format!("{at}.averaging_batch");
        belongs(&path, self.averaging_batch.is_some(), averages, name, "1")?;
        self.averaging_batch.map_or(Ok(()), |batch| within(&path, batch, 1..=1_000_000))?;

        let (outliers, name) = (is(ActivationObserver::OutlierAware), &["outlier-aware"]);
        let path = format!("{at}.outlier_ratio");
        belongs(&path, self.outlier_ratio.is_some(), outliers, name, "2.0")?;
        self.outlier_ratio.map_or(Ok(()), |ratio| within(&path, ratio, 1.0..=1e6)).map_err(|problem| {
            problem.hint("2 takes tokens for outliers that reach twice as far as the median")
        })?;
        let path = format!("{at}.clipped_tokens");
        belongs(&path, self.clipped_tokens.is_some(), outliers, name, "1.0")?;
        self.clipped_tokens.map_or(Ok(()), |tokens| within(&path, tokens, 0.0..=50.0)).map_err(|problem| {
            problem.hint("in percent of all tokens: 1.0 lets one token in 100 lose values")
        })
    }
}
