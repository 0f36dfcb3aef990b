//! What `[quantization]` must not say: values that nothing here implements, and keys that contradict each other.

use super::error::{Problem, within};
use super::quantization::{
    ActivationMode, ActivationObserver, Activations, AlgorithmKind, Override, Preset, Quantization,
    WeightObserver, Weights,
};
use super::transforms::Transform;

impl Quantization {
    pub(super) fn check(&self) -> Result<(), Problem> {
        self.weights.check("quantization.weights")?;
        self.activations.check("quantization", self.scheme)?;
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
        for (index, transform) in self.transforms.iter().enumerate() {
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
        let is_static = |preset: Preset| preset.scheme().activations.mode == ActivationMode::Static;
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
        let smooths = |transform: &Transform| transform.search.is_some() && transform.smooth != Some(false);
        let index = self.transforms.iter().position(smooths)?;
        Some(format!("quantization.transforms.{index}"))
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
            let scheme = self.layer_scheme().unwrap_or_else(|| preset.scheme());
            scheme.weights.check(&format!("{at}.weights"))?;
            return scheme.activations.check(at, preset);
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

fn eight_bits(at: &str, bits: u8) -> Result<(), Problem> {
    if bits == 8 {
        return Ok(());
    }
    let path = format!("{at}.bits");
    Err(Problem::new(path.clone(), format!("`{path}` must be 8, but is {bits}"))
        .label("not offered")
        .hint("allowed: 8, that is INT8"))
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
        eight_bits(at, self.bits)?;
        if !self.symmetric {
            let path = format!("{at}.symmetric");
            let message = format!("`{path}` must be true: no INT8 runtime loads asymmetric weights");
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
        eight_bits(&at, self.bits)?;
        let usual = Self::of(self.mode);
        let (mode, granularity, other) = match self.mode {
            ActivationMode::Static => ("static", "tensor", Preset::W8a8Static),
            ActivationMode::Dynamic => ("dynamic", "token", Preset::W8a8Dynamic),
        };
        if self.mode != preset.mode() {
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
