//! What `[quantization]` must not say: values that nothing here implements, and keys that contradict each other.

use super::error::{Problem, within};
use super::quantization::{
    ActivationMode, ActivationObserver, Activations, Override, Preset, Quantization, Weights,
};

impl Quantization {
    pub(super) fn check(&self) -> Result<(), Problem> {
        self.weights.check("quantization.weights")?;
        self.activations.check("quantization", self.scheme)?;
        for (index, pattern) in self.ignore.iter().flatten().enumerate() {
            pattern.check(&format!("quantization.ignore.{index}"))?;
        }
        for (index, other) in self.overrides.iter().enumerate() {
            other.check(&format!("quantization.overrides.{index}"))?;
        }
        Ok(())
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

impl Weights {
    fn check(self, at: &str) -> Result<(), Problem> {
        eight_bits(at, self.bits)?;
        if !self.symmetric {
            let path = format!("{at}.symmetric");
            let message = format!("`{path}` must be true: no INT8 runtime loads asymmetric weights");
            return Err(Problem::new(path, message).label("not offered").hint("remove `symmetric`"));
        }
        Ok(())
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
                return Err(Problem::new(path, message)
                    .label("`observer` belongs here")
                    .hint("allowed: `min-max`, `percentile`, `mse`"));
            }
            _ => {}
        }
        let path = format!("{at}.percentile");
        match (self.percentile, self.observer == Some(ActivationObserver::Percentile)) {
            (None, false) => Ok(()),
            (Some(percentile), true) => within(&path, percentile, 50.0..=100.0).map_err(|problem| {
                problem.hint("percentiles are in percent, 50 to 100: 99.99 leaves out one value in 10000")
            }),
            (Some(_), false) => {
                let message = format!("`{path}` is given, but the observer is not \"percentile\"");
                Err(Problem::new(path, message)
                    .label("a percentile of nothing")
                    .related(format!("{at}.observer"), "the observer")
                    .hint("write `observer = \"percentile\"`, or remove `percentile`"))
            }
            (None, true) => {
                let message = format!("`{path}` is missing: the observer \"percentile\" needs it");
                Err(Problem::new(path, message)
                    .label("`percentile` belongs here")
                    .hint("for example `percentile = 99.99`"))
            }
        }
    }
}
