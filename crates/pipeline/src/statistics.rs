//! The observing pass with its cache: statistics are made once for a model and a calibration set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeropoint_calibrator::{Calibrated, CalibrationProgress, graph_fingerprint};
use zeropoint_core::Fingerprint;
use zeropoint_models::Model;
use zeropoint_observer::StatisticsFile;

use crate::events::{Cancel, Event, Events, Stage};
use crate::{PipelineError, Prepared};

const GRAPH: &str = "graph_fingerprint";
const DATA: &str = "data_fingerprint";
const SAMPLES: &str = "samples";
const TOKENS: &str = "tokens";
const SEED: &str = "seed";

/// Where statistics are kept between runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheDir {
    /// In the user's cache directory: `$XDG_CACHE_HOME/zeropoint`, or `~/.cache/zeropoint`.
    Default,
    /// In this one.
    At(PathBuf),
    /// Nowhere.
    None,
}

impl CacheDir {
    fn path(&self) -> Option<PathBuf> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match self {
            Self::None => None,
            Self::At(dir) => Some(dir.clone()),
            Self::Default => from("XDG_CACHE_HOME")
                .or_else(|| from("HOME").map(|home| home.join(".cache")))
                .map(|dir| dir.join("zeropoint")),
        }
    }
}

/// What statistics belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) graph: Fingerprint,
    pub(crate) data: Fingerprint,
}

impl Origin {
    /// Of a prepared run. `weights` is the checkpoint's content fingerprint.
    pub(crate) fn of(prepared: &Prepared, weights: Fingerprint) -> Result<Self, PipelineError> {
        let isa = zeropoint_kernels::Isa::active().map_err(zeropoint_models::ModelError::from)?;
        Ok(Self {
            graph: graph_fingerprint(&prepared.directory, weights, isa),
            data: prepared.calibration.fingerprint(),
        })
    }

    fn header(&self, prepared: &Prepared) -> BTreeMap<String, String> {
        [
            (GRAPH, self.graph.to_string()),
            (DATA, self.data.to_string()),
            (SAMPLES, prepared.calibration.sequences.len().to_string()),
            (TOKENS, prepared.calibration.tokens().to_string()),
            (SEED, prepared.config.calibration.seed.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Refuses statistics that belong to something else.
    pub(crate) fn check(&self, file: &StatisticsFile, path: &Path) -> Result<(), PipelineError> {
        let expected = [
            ("model, instruction set or version of zeropoint", GRAPH, self.graph),
            ("set of calibration data", DATA, self.data),
        ];
        for (what, key, expected) in expected {
            let found = file.header.get(key).cloned().unwrap_or_else(|| "nothing".to_owned());
            if found != expected.to_string() {
                return Err(PipelineError::ForeignStatistics {
                    path: path.to_owned(),
                    what,
                    found: found.chars().take(12).collect(),
                    expected: expected.short(),
                });
            }
        }
        Ok(())
    }

    fn cache_key(&self) -> String {
        let key = Fingerprint::builder("statistics")
            .field(GRAPH, self.graph.to_string())
            .field(DATA, self.data.to_string())
            .finish();
        format!("{key}.statistics.safetensors")
    }
}

/// Statistics for a run: from the cache if it has them, otherwise by running the float model over the calibration set.
/// Returns whether the model was run.
pub(crate) fn collect(
    prepared: &Prepared,
    origin: Origin,
    model: &Model,
    cache: &CacheDir,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<(StatisticsFile, bool), PipelineError> {
    let cached = cache.path().map(|dir| dir.join(origin.cache_key()));
    if let Some(path) = cached.as_deref().filter(|path| path.exists()) {
        match StatisticsFile::load(path).map_err(PipelineError::from).and_then(|file| {
            origin.check(&file, path)?;
            Ok(file)
        }) {
            Ok(file) => {
                events.event(Event::StatisticsReused);
                // The data may have been chosen in another way; what was chosen is the same.
                return Ok((StatisticsFile { header: origin.header(prepared), ..file }, false));
            }
            Err(error) => {
                events.event(Event::Warning(format!("the cached statistics are not used: {error}")));
            }
        }
    }
    events.event(Event::Started(Stage::Calibrate));
    let mut progress = |report: CalibrationProgress| {
        events.event(Event::Calibrated(report));
        cancel.flow()
    };
    let sites = match zeropoint_calibrator::calibrate(model, &prepared.calibration, &mut progress)? {
        Calibrated::Done(sites) => sites,
        Calibrated::Cancelled => return Err(PipelineError::Cancelled),
    };
    let file = StatisticsFile { header: origin.header(prepared), sites };
    if let Some(path) = cached {
        // A cache that cannot be written costs time later, not this run.
        let kept = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| error.to_string());
        if let Err(reason) = kept.and_then(|()| file.save(&path).map_err(|error| error.to_string())) {
            events.event(Event::Warning(format!("the statistics are not kept for later runs: {reason}")));
        }
    }
    Ok((file, true))
}

/// The observing pass alone: writes the statistics of a config's model and data to `out`.
pub fn calibrate(
    prepared: &Prepared,
    out: &Path,
    cache: &CacheDir,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<(), PipelineError> {
    if out.is_file() && StatisticsFile::load(out).is_err() {
        let reason =
            "exists and holds no statistics; give a new file, or one that `zeropoint calibrate` wrote";
        return Err(PipelineError::Io { path: out.to_owned(), source: std::io::Error::other(reason) });
    }
    if out.is_dir() {
        return Err(PipelineError::Io {
            path: out.to_owned(),
            source: std::io::ErrorKind::IsADirectory.into(),
        });
    }
    let weights = prepared.directory.checkpoint().content_fingerprint()?;
    let origin = Origin::of(prepared, weights)?;
    events.event(Event::Started(Stage::Load));
    let model = Model::load(&prepared.directory)?;
    let (file, _) = collect(prepared, origin, &model, cache, events, cancel)?;
    if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .map_err(|source| PipelineError::Io { path: parent.to_owned(), source })?;
    }
    Ok(file.save(out)?)
}
