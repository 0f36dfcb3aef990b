//! The observing pass with its cache: statistics are made once for a model and a calibration set.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use zeropoint_calibrator::{
    BatchPlan, Begun, Calibrated, Observed, Room, Shard, calibrate_from, graph_fingerprint,
};
use zeropoint_core::Fingerprint;
use zeropoint_formats::staged::check_writable;
use zeropoint_kernels::Isa;
use zeropoint_models::{FloatParts, ModelParts};
use zeropoint_observer::StatisticsFile;

use crate::events::{Cancel, Event, Events, Stage};
use crate::header::{DATA, GRAPH, SHARD, ShardHeader, StatisticsHeader};
use crate::identity::model_weights;
use crate::memory::Memory;
use crate::{PipelineError, Prepared};

/// Where statistics, and the log-probabilities of originals, are kept between runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CacheDir {
    #[default]
    /// In the user's cache directory: `$XDG_CACHE_HOME/zeropoint`, or `~/.cache/zeropoint`.
    Default,
    /// In this one.
    At(PathBuf),
    /// Nowhere.
    None,
}

impl CacheDir {
    pub(crate) fn path(&self) -> Option<PathBuf> {
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

/// Where statistics are kept between several runs: the user's cache, or where none is wanted a directory that goes away with this.
pub(crate) struct KeptCache {
    pub(crate) dir: CacheDir,
    _own: Option<tempfile::TempDir>,
}

impl KeptCache {
    pub(crate) fn new(cache: &CacheDir) -> Result<Self, PipelineError> {
        if *cache != CacheDir::None {
            return Ok(Self { dir: cache.clone(), _own: None });
        }
        let own =
            tempfile::tempdir().map_err(|source| PipelineError::Io { path: std::env::temp_dir(), source })?;
        Ok(Self { dir: CacheDir::At(own.path().to_owned()), _own: Some(own) })
    }
}

/// What statistics belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) graph: Fingerprint,
    pub(crate) data: Fingerprint,
    samples: u64,
    tokens: u64,
    isa: Isa,
}

impl Origin {
    /// Of the first observing pass of a run. `weights` is the checkpoint's content fingerprint.
    pub(crate) fn of(prepared: &Prepared, weights: Fingerprint) -> Result<Self, PipelineError> {
        let isa = Isa::active().map_err(zeropoint_models::ModelError::from)?;
        let graph = graph_fingerprint(&prepared.directory, weights, isa);
        Ok(Self::of_batches(prepared, graph, prepared.first_pass(), isa))
    }

    /// Of the pass over the model with its transforms.
    pub(crate) fn of_graph(prepared: &Prepared, weights: Fingerprint) -> Result<Self, PipelineError> {
        let origin = Self::of(prepared, weights)?;
        let Some(graph) = &prepared.transformed else { return Ok(origin) };
        let transformed = Fingerprint::builder("transformed")
            .field(GRAPH, origin.graph.to_string())
            .field("transforms", graph.fingerprint().to_string())
            .finish();
        Ok(Self::of_batches(prepared, transformed, &prepared.calibration.plan, origin.isa))
    }

    /// As this, of all batches.
    pub(crate) fn of_all(self, prepared: &Prepared) -> Self {
        Self::of_batches(prepared, self.graph, &prepared.calibration.plan, self.isa)
    }

    fn of_batches(prepared: &Prepared, graph: Fingerprint, plan: &BatchPlan, isa: Isa) -> Self {
        let set = &prepared.calibration;
        let (samples, tokens) = (plan.samples() as u64, set.tokens_in(plan) as u64);
        Self { graph, data: set.fingerprint_of(plan), samples, tokens, isa }
    }

    /// The header of statistics of the whole set, or of a shard.
    fn header(&self, prepared: &Prepared, shard: Option<ShardHeader>) -> StatisticsHeader {
        StatisticsHeader {
            graph_fingerprint: self.graph,
            data_fingerprint: self.data,
            samples: self.samples,
            tokens: self.tokens,
            seed: prepared.config.calibration.seed,
            instruction_set: self.isa.to_string(),
            zeropoint_version: env!("CARGO_PKG_VERSION").to_owned(),
            shard,
        }
    }

    /// Refuses statistics that belong to something else, or to a part of this only.
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
        match file.header.get(SHARD) {
            None => Ok(()),
            Some(shard) => {
                let shard = shard.escape_debug().to_string();
                Err(PipelineError::LoneShard { path: path.to_owned(), shard })
            }
        }
    }

    fn cache_key(&self) -> String {
        let key = Fingerprint::builder("statistics")
            .field(GRAPH, self.graph.to_string())
            .field(DATA, self.data.to_string())
            .finish();
        format!("{}-{key}.statistics.safetensors", self.data.short())
    }
}

/// Statistics that an earlier run has put into the cache, with this run's header.
pub(crate) fn cached(
    prepared: &Prepared,
    origin: Origin,
    cache: &CacheDir,
    events: &dyn Events,
) -> Option<StatisticsFile> {
    let path = cache.path()?.join(origin.cache_key());
    if !path.exists() {
        return None;
    }
    let loaded = StatisticsFile::load(&path).map_err(PipelineError::from).and_then(|file| {
        origin.check(&file, &path)?;
        Ok(file)
    });
    match loaded {
        Ok(file) => {
            events.event(Event::StatisticsReused);
            // The data may have been chosen in another way; what was chosen is the same.
            Some(StatisticsFile { header: origin.header(prepared, None).to_map(), ..file })
        }
        Err(error) => {
            events.event(Event::Warning(format!("the cached statistics are not used: {error}")));
            None
        }
    }
}

/// Puts statistics into the cache. A cache that cannot be written costs time later, not this run.
pub(crate) fn keep(file: &StatisticsFile, origin: Origin, cache: &CacheDir, events: &dyn Events) {
    let Some(dir) = cache.path() else { return };
    let path = dir.join(origin.cache_key());
    let kept = std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()));
    if let Err(reason) = kept.and_then(|()| file.save(&path).map_err(|error| error.to_string())) {
        events.event(Event::Warning(format!("the statistics are not kept for later runs: {reason}")));
    }
}

/// Whether the cache holds statistics of these texts for a model with the same sites. Whether it is the same model, only
/// its weights tell.
pub(crate) fn is_likely_cached(prepared: &Prepared, cache: &CacheDir) -> bool {
    let Some(entries) = cache.path().and_then(|dir| std::fs::read_dir(dir).ok()) else { return false };
    let prefix = prepared.calibration.fingerprint_of(prepared.first_pass()).short();
    let sites = &prepared.directory.spec().sites;
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .filter_map(|entry| StatisticsFile::load(entry.path()).ok())
        .any(|file| {
            file.sites.len() == sites.len()
                && sites.iter().all(|site| {
                    file.sites.get(&site.id).is_some_and(|found| found.channels() == site.channels)
                })
        })
}

/// What an observing pass goes over.
pub(crate) struct Pass<'a> {
    /// The batches: all of the calibration set, or those of a shard.
    pub(crate) plan: &'a BatchPlan,
    pub(crate) shard: Option<ShardHeader>,
    /// What an interrupted pass over them has done.
    pub(crate) begun: Begun,
    /// Where hidden states are.
    pub(crate) room: Room<'a>,
}

impl<'a> Pass<'a> {
    /// Over all of some batches.
    pub(crate) fn whole(plan: &'a BatchPlan, room: Room<'a>) -> Self {
        Self { plan, shard: None, begun: Begun::default(), room }
    }
}

/// Runs the float model over batches of the calibration set, part by part where it is so. `after_batch` sees the pass after every one of them and may
/// end it with an error.
pub(crate) fn observe(
    prepared: &Prepared,
    origin: Origin,
    model: &dyn ModelParts,
    pass: Pass<'_>,
    after_batch: &mut dyn FnMut(&mut Observed<'_>) -> Result<(), PipelineError>,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<StatisticsFile, PipelineError> {
    events.event(Event::Started(Stage::Calibrate));
    let mut failed = None;
    let mut after = |observed: &mut Observed<'_>| {
        events.event(Event::Calibrated(observed.progress));
        match after_batch(observed) {
            Ok(()) => cancel.flow(),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let Pass { plan, shard, begun, room } = pass;
    match calibrate_from(model, &prepared.calibration, plan, begun, room, &mut after)? {
        Calibrated::Done(sites) => {
            Ok(StatisticsFile { header: origin.header(prepared, shard).to_map(), sites })
        }
        Calibrated::Cancelled => Err(failed.unwrap_or(PipelineError::Cancelled)),
    }
}

/// How the observing pass alone is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrateOptions {
    /// Observe these batches of the calibration set only; [`merge_statistics`](crate::merge_statistics) makes the
    /// shards into one. `None` is all that is to be observed.
    pub shard: Option<Shard>,
    /// Where statistics of whole sets are kept between runs; shards neither look there nor are kept.
    pub cache: CacheDir,
    /// What may be in memory.
    pub memory: Memory,
}

/// The first observing pass alone: writes the statistics of a config's model and data to `out`. Returns their header.
pub fn calibrate(
    prepared: &Prepared,
    out: &Path,
    options: &CalibrateOptions,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<StatisticsHeader, PipelineError> {
    prepared.model.check_whole()?;
    check_out(out)?;
    create_parent(out)?;
    let weights = model_weights(prepared)?;
    let origin = Origin::of(prepared, weights)?;
    events.event(Event::Started(Stage::Load));
    let model = FloatParts::new(&prepared.directory, options.memory.whole())?;
    let part = options.shard.map(|shard| {
        let plan = prepared.calibration.shard(prepared.first_pass(), shard);
        let (samples, tokens) = (plan.samples() as u64, prepared.calibration.tokens_in(&plan) as u64);
        (plan, ShardHeader { shard, samples, tokens })
    });
    if let Some((_, header)) = part.as_ref().filter(|(_, header)| header.samples == 0) {
        let batches = prepared.first_pass().batches().len();
        events.event(Event::Warning(format!(
            "shard {} is empty: there are no more than {batches} batches to observe; merging needs its file all the same",
            header.shard
        )));
    }
    let at_hand = if part.is_none() { cached(prepared, origin, &options.cache, events) } else { None };
    let file = if let Some(file) = at_hand {
        file
    } else {
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        let room = Room { memory: options.memory.0, dir: parent.unwrap_or(Path::new(".")) };
        let pass = match &part {
            None => Pass::whole(prepared.first_pass(), room),
            Some((plan, header)) => Pass { plan, shard: Some(*header), begun: Begun::default(), room },
        };
        let file = observe(prepared, origin, &model, pass, &mut |_| Ok(()), events, cancel)?;
        if part.is_none() {
            keep(&file, origin, &options.cache, events);
        }
        file
    };
    file.save(out)?;
    Ok(origin.header(prepared, part.map(|(_, header)| header)))
}

/// Statistics may be written here: nothing is there, or statistics are, and directories lead there.
pub(crate) fn check_out(out: &Path) -> Result<(), PipelineError> {
    if out.is_file() && StatisticsFile::load(out).is_err() {
        let reason =
            "exists and holds no statistics; give a new file, or one that `zeropoint calibrate` wrote";
        return Err(PipelineError::Io { path: out.to_owned(), source: std::io::Error::other(reason) });
    }
    if out.is_dir() {
        return Err(PipelineError::Io {
            path: out.to_owned(),
            source: std::io::Error::new(
                std::io::ErrorKind::IsADirectory,
                "a directory is given; name a file for the statistics",
            ),
        });
    }
    if let Some(file) = out.ancestors().skip(1).find(|ancestor| ancestor.exists())
        && !file.is_dir()
    {
        return Err(PipelineError::Io {
            path: file.to_owned(),
            source: std::io::ErrorKind::NotADirectory.into(),
        });
    }
    // The file itself, or the first of the directories that will lead to it.
    let io = |source| PipelineError::Io { path: out.to_owned(), source };
    let absolute = std::path::absolute(out).map_err(io)?;
    let missing = absolute.ancestors().take_while(|ancestor| !ancestor.exists()).last();
    Ok(check_writable(missing.unwrap_or(&absolute))?)
}

/// Makes the directory that a file will lie in.
pub(crate) fn create_parent(out: &Path) -> Result<(), PipelineError> {
    match out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        None => Ok(()),
        Some(parent) => std::fs::create_dir_all(parent)
            .map_err(|source| PipelineError::Io { path: parent.to_owned(), source }),
    }
}
