//! Shards of a calibration set, observed apart and merged, are the statistics of one run, to the byte.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use zeropoint_core::Rng;
use zeropoint_observer::{StatisticsFile, outlier_channels};
use zeropoint_pipeline::config::Config;
use zeropoint_pipeline::{
    CacheDir, CalibrateOptions, Cancel, Memory, PipelineError, Prepared, RunOptions, Shard, StatisticsHeader,
    calibrate, merge_statistics, quantize, show_statistics,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Forty of the repository's texts on a model, in batches of this many.
fn prepared(dir: &Path, model: &str, batch_size: usize) -> Prepared {
    prepared_with(dir, model, batch_size, &[])
}

/// The same with changes to the config.
fn prepared_with(dir: &Path, model: &str, batch_size: usize, changes: &[&str]) -> Prepared {
    // Experts have no INT8 form in compressed-tensors.
    let overrides =
        if model.contains("mixtral") { r"{ layers = ['re:.*\.experts\.'], scheme = 'none' }" } else { "" };
    let text = format!(
        "version = 1\nmodel.source = '{model}'\nevaluation.tasks = []\nquantization.overrides = [{overrides}]\n\
         calibration = {{ samples = 40, batch_size = {batch_size}, data = ['{}'] }}\n",
        repository().join("calibration-data/topics-train.jsonl").display(),
    );
    let file = dir.join("config.toml");
    fs::write(&file, text).expect("the directory is writable");
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let config = Config::load(&file, &changes).unwrap_or_else(|error| panic!("{error}"));
    Prepared::new(config).unwrap_or_else(|error| panic!("{model}: {error}"))
}

/// Calibrates on a pool of its own.
fn observed(prepared: &Prepared, shard: Option<Shard>, threads: usize, out: &Path) -> StatisticsHeader {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let options = CalibrateOptions { shard, cache: CacheDir::None, memory: Memory::default() };
    pool.install(|| calibrate(prepared, out, &options, &(), &Cancel::default()).expect("it succeeds"))
}

fn shards(of: u32) -> impl Iterator<Item = Shard> {
    (1..=of).map(move |index| Shard::new(index, of).expect("it is in range"))
}

#[test]
fn any_number_of_shards_merged_in_any_order_is_one_run() {
    let fixture = |name| repository().join("tests/fixtures").join(name).to_string_lossy().into_owned();
    let (encoder, mixture) = (fixture("bert-mean"), fixture("mixtral-causal"));
    let mut rng = Rng::new(11);
    for (model, batch_size, batches) in [("embedded", 5, 8), (&encoder, 16, 3), (&mixture, 16, 3)] {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let prepared = prepared(dir.path(), model, batch_size);
        assert_eq!(prepared.calibration.plan.batches().len(), batches);
        let (whole, merged) = (dir.path().join("whole"), dir.path().join("merged"));
        let header = observed(&prepared, None, 2, &whole);
        for of in 1..=8 {
            let mut parts = Vec::new();
            for (i, shard) in shards(of).enumerate() {
                let path = dir.path().join(format!("{}-of-{of}", shard.index()));
                let own = observed(&prepared, Some(shard), 1 + (i + of as usize) % 3, &path);
                assert_eq!(StatisticsHeader::load(&path).expect("it is a header"), own);
                parts.push((path, own.shard.expect("a shard says so")));
            }
            let empty = parts.iter().filter(|(_, part)| part.samples == 0).count();
            assert_eq!(empty, (of as usize).saturating_sub(batches), "{model}, {of} shards");
            assert_eq!(parts.iter().map(|(_, part)| part.tokens).sum::<u64>(), header.tokens);

            let mut files: Vec<PathBuf> = parts.into_iter().map(|(path, _)| path).collect();
            for i in (1..files.len()).rev() {
                files.swap(i, rng.below(i as u64 + 1) as usize);
            }
            assert_eq!(merge_statistics(&files, &merged).expect("they belong together"), header);
            let same = fs::read(&merged).expect("it is there") == fs::read(&whole).expect("it is there");
            assert!(same, "{model}: {of} shards are not one run, merged as {files:?}");
            for file in files {
                fs::remove_file(file).expect("it can be removed");
            }
        }
    }
}

#[test]
fn shards_of_what_factors_are_chosen_from_are_one_run() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = |name: &str| dir.path().join(name);
    let changes = [
        "quantization.transforms=[{kind='online-rotation'}]",
        "output.formats=['zeropoint']",
        "calibration.transform_tokens=200",
    ];
    let smoothed = prepared_with(dir.path(), "embedded", 2, &changes);
    let header = observed(&smoothed, None, 2, &path("whole"));
    assert!(header.samples < 20, "{header:?}");
    let files: Vec<PathBuf> = shards(3).map(|shard| path(&format!("{}", shard.index()))).collect();
    for (shard, file) in shards(3).zip(&files) {
        assert_eq!(observed(&smoothed, Some(shard), 1, file).samples, header.samples);
    }
    assert_eq!(merge_statistics(&files, &path("merged")).expect("they belong together"), header);
    assert!(fs::read(path("merged")).expect("it is there") == fs::read(path("whole")).expect("it is there"));

    // One shard is told as such, be it of these samples or of all.
    let plain = prepared(dir.path(), "embedded", 2);
    observed(&plain, Shard::new(1, 3).ok(), 1, &path("of all"));
    let options =
        RunOptions { force: false, restart: false, cache: CacheDir::None, memory: Memory::default() };
    for lone in [&files[0], &path("of all")] {
        let error = quantize(&smoothed, lone, &options, &(), &Cancel::default()).expect_err("a part alone");
        let error = match error {
            PipelineError::Interrupted { source, .. } => *source,
            error => error,
        };
        assert!(matches!(error, PipelineError::LoneShard { .. }), "{error}");
    }
}

#[test]
fn what_is_shown_is_what_the_file_holds() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let prepared = prepared(dir.path(), "embedded", 40);
    let path = dir.path().join("statistics");
    for shard in [None, Shard::new(1, 2).ok(), Shard::new(2, 2).ok()] {
        let header = observed(&prepared, shard, 1, &path);
        let shown = show_statistics(&path).expect("it holds statistics");
        let file = StatisticsFile::load(&path).expect("it holds statistics");
        assert_eq!(shown.header, header);
        assert!(shown.sites.iter().map(|site| &site.site).eq(file.sites.keys()));
        for (shown, statistics) in shown.sites.iter().zip(file.sites.values()) {
            assert_eq!((shown.channels, shown.rows), (statistics.channels(), statistics.rows()));
            let range = [f64::from(statistics.min()), f64::from(statistics.max())];
            // One batch of all samples: the second of two shards is empty.
            let empty = shard.is_some_and(|shard| shard.index() == 2);
            assert_eq!(shown.range, (!empty).then_some(range), "{}", shown.site);
            let outliers: Vec<(usize, f32)> = shown
                .outlier_channels
                .iter()
                .map(|outlier| (outlier.channel as usize, outlier.absmax as f32))
                .collect();
            assert_eq!(outliers, outlier_channels(statistics, 6.0), "{}", shown.site);
        }
    }
}
