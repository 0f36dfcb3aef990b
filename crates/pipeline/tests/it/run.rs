//! The whole way through the public interface: what the events tell, what a cancelled run leaves, and that the
//! simulation of a plan computes what the written model computes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use zeropoint_evaluator::report::{Engine, Report, Timing};
use zeropoint_formats::Checkpoint;
use zeropoint_observer::StatisticsFile;
use zeropoint_pipeline::config::Config;
use zeropoint_pipeline::{
    CacheDir, CalibrateOptions, Cancel, Event, Events, Memory, PipelineError, Prepared, RunOptions, Stage,
    calibrate, dry_run, quantize, run,
};

const OPTIONS: RunOptions =
    RunOptions { force: false, restart: false, cache: CacheDir::None, memory: Memory(1 << 30) };
/// Of a run that does not measure latency.
const STAGES: [Stage; 6] =
    [Stage::Load, Stage::Calibrate, Stage::Quantize, Stage::SelfCheck, Stage::Evaluate, Stage::Publish];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A run of a model, a directory or "embedded", with a few of the repository's texts and with changes to the config.
fn prepared(dir: &Path, source: &str, changes: &[&str]) -> Prepared {
    let text = format!(
        "version = 1\nmodel.source = '{source}'\noutput.dir = '{}'\ncalibration.samples = 40\ncalibration.data = ['{}']\n",
        dir.join("out").display(),
        repository().join("calibration-data/topics-train.jsonl").display(),
    );
    let file = dir.join("config.toml");
    std::fs::write(&file, text).expect("the directory is writable");
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let config = Config::load(&file, &changes).unwrap_or_else(|error| panic!("{error}"));
    Prepared::new(config).unwrap_or_else(|error| panic!("{source}: {error}"))
}

fn directory() -> TempDir {
    TempDir::new().expect("a temporary directory can be made")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("the directory is there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_simulation_is_the_runtime() {
    let fixture = |name: &str| repository().join("tests/fixtures").join(name).to_string_lossy().into_owned();
    let models = [
        "embedded".to_owned(),
        fixture("bert-mean"),
        fixture("bert-cls-sharded"),
        fixture("bert-max-f16"),
        fixture("bert-classifier-bf16"),
    ];
    let schemes = [
        "scheme='w8a8-dynamic'",
        "scheme='w8a8-static'",
        "scheme='w8a8-static',activations={symmetric=true,observer='mse'},embeddings='bf16'",
        "scheme='w8a8-dynamic',activations={symmetric=false},weights={granularity='tensor'}",
        "overrides=[{layers=['re:.*query$','re:.*output'],scheme='w8a8-static'}]",
        "overrides=[{layers=['re:.*key$'],scheme='none'},{layers=['re:.*value$'],scheme='w8a8-static'}]",
    ];
    for model in &models {
        for scheme in schemes {
            let dir = directory();
            let change = format!("quantization={{{scheme}}}");
            let prepared = prepared(dir.path(), model, &[&change, "evaluation.tasks=[]"]);
            let outcome = run(&prepared, &OPTIONS, &(), &Cancel::default())
                .unwrap_or_else(|error| panic!("{model} {scheme}: {error}"));
            let check = outcome.report.self_check.expect("every run checks itself");
            assert!(check.samples >= 10, "{model} {scheme}: {check:?}");
            assert_eq!(check.cosine_min, 1.0, "{model} {scheme}");
        }
    }
}

/// Keeps every event; asks to stop when `stop` says so.
struct Recorder<'a> {
    events: Mutex<Vec<Event>>,
    cancel: &'a Cancel,
    stop: fn(&Event, Stage) -> bool,
    at: Stage,
}

impl<'a> Recorder<'a> {
    fn new(cancel: &'a Cancel, at: Stage, stop: fn(&Event, Stage) -> bool) -> Self {
        Self { events: Mutex::new(Vec::new()), cancel, stop, at }
    }

    fn stages(&self) -> Vec<Stage> {
        let events = self.events.lock().expect("no thread has panicked");
        let stage = |event: &Event| match event {
            Event::Started(stage) => Some(*stage),
            _ => None,
        };
        events.iter().filter_map(stage).collect()
    }
}

impl Events for Recorder<'_> {
    fn event(&self, event: Event) {
        if (self.stop)(&event, self.at) {
            self.cancel.request();
        }
        self.events.lock().expect("no thread has panicked").push(event);
    }
}

#[test]
fn the_events_tell_every_stage_and_its_progress() {
    let dir = directory();
    let prepared = prepared(dir.path(), "embedded", &[]);
    let cancel = Cancel::default();
    let recorder = Recorder::new(&cancel, Stage::Load, |_, _| false);
    run(&prepared, &OPTIONS, &recorder, &cancel).expect("the run succeeds");
    assert_eq!(recorder.stages(), STAGES);

    let events = recorder.events.into_inner().expect("no thread has panicked");
    let progress = |kind: fn(&Event) -> Option<(usize, usize)>| -> Vec<(usize, usize)> {
        let steps: Vec<_> = events.iter().filter_map(kind).collect();
        assert!(steps.is_sorted_by(|a, b| a.0 < b.0), "progress goes on: {steps:?}");
        steps
    };
    let calibrated = progress(|event| match event {
        Event::Calibrated(progress) => Some((progress.done, progress.total)),
        _ => None,
    });
    let quantized = progress(|event| match event {
        Event::Quantized { done, total } => Some((*done, *total)),
        _ => None,
    });
    let evaluated = progress(|event| match event {
        Event::Evaluated { done, total, .. } => Some((*done, *total)),
        _ => None,
    });
    assert_eq!(calibrated.last(), Some(&(40, 40)));
    assert_eq!(quantized, (1..=18).map(|done| (done, 18)).collect::<Vec<_>>());
    assert_eq!(evaluated.last(), Some(&(1000, 1000)), "fidelity takes the first 1000 calibration texts");
}

#[test]
fn an_evaluation_part_by_part_tells_how_far_both_models_are() {
    let decoder = repository().join("tests/fixtures/llama-causal").display().to_string();
    let dir = directory();
    let changes =
        ["calibration.samples=4", "evaluation.tasks=[{kind='fidelity'}]", "evaluation.batch_size=2"];
    let prepared = prepared(dir.path(), &decoder, &changes);
    let cancel = Cancel::default();
    let recorder = Recorder::new(&cancel, Stage::Load, |_, _| false);
    run(&prepared, &RunOptions { memory: Memory(0), ..OPTIONS }, &recorder, &cancel)
        .expect("the run succeeds");
    let events = recorder.events.into_inner().expect("no thread has panicked");
    for of_original in [true, false] {
        let told: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Advanced { original, done, total } if *original == of_original => {
                    Some((*done, *total))
                }
                _ => None,
            })
            .collect();
        // Two batches through the input and two blocks; the output comes with the metrics.
        assert_eq!(told, (1..=6).map(|done| (done, 6)).collect::<Vec<_>>(), "{of_original}");
    }
}

/// The product of a run: everything of which the bytes are promised.
fn product(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        names(&dir.join("model")).iter().map(|name| dir.join("model").join(name)).collect();
    files.push(dir.join("statistics.safetensors"));
    files
        .into_iter()
        .map(|file| (file.clone(), std::fs::read(&file).expect("it is a file")))
        .map(|(file, bytes)| (file.strip_prefix(dir).expect("it is below").to_owned(), bytes))
        .collect()
}

#[test]
fn a_run_that_is_cancelled_at_any_stage_goes_on_there() {
    let changes = [
        "evaluation.tasks=[{kind='fidelity',limit=40}]",
        "calibration.batch_size=1",
        "calibration.samples=200",
    ];
    let reference = directory();
    let uninterrupted =
        run(&prepared(reference.path(), "embedded", &changes), &OPTIONS, &(), &Cancel::default())
            .expect("the run succeeds");
    for (i, stage) in STAGES.into_iter().enumerate() {
        let dir = directory();
        let prepared = prepared(dir.path(), "embedded", &changes);
        let cancel = Cancel::default();
        let recorder = Recorder::new(&cancel, stage, |event, at| *event == Event::Started(at));
        let error = run(&prepared, &OPTIONS, &recorder, &cancel).expect_err("it was asked to stop");
        assert!(recorder.stages().len() <= i + 2, "{stage}: it goes on to {:?}", recorder.stages());
        // Before the first checkpoint there is nothing to keep.
        let kept = stage > Stage::Calibrate;
        match error {
            PipelineError::Cancelled => assert!(!kept, "{stage}"),
            PipelineError::Interrupted { partial, .. } => {
                assert!(kept, "{stage}");
                assert_eq!(partial, dir.path().join("out.partial"));
            }
            other => panic!("{stage}: {other}"),
        }
        let left = if kept { vec!["config.toml", "out.partial"] } else { vec!["config.toml"] };
        assert_eq!(names(dir.path()), left, "{stage}");

        let cancel = Cancel::default();
        let recorder = Recorder::new(&cancel, stage, |_, _| false);
        let outcome = run(&prepared, &OPTIONS, &recorder, &cancel).expect("it goes on");
        // A stage that was done is not run again. The check is not interrupted: it is short.
        let expected = match stage {
            Stage::Load | Stage::Calibrate => &STAGES[..],
            Stage::Quantize => {
                &[Stage::Load, Stage::Quantize, Stage::SelfCheck, Stage::Evaluate, Stage::Publish]
            }
            Stage::SelfCheck | Stage::Evaluate => &[Stage::Load, Stage::Evaluate, Stage::Publish],
            Stage::Latency | Stage::Sensitivity | Stage::Publish => &[Stage::Load, Stage::Publish],
        };
        assert_eq!(recorder.stages(), expected, "{stage}");
        assert_eq!(names(dir.path()), ["config.toml", "out"]);
        // As JSON: a standard error that is not known is equal to another one there.
        let untimed = |report: Report| Report { timing: Timing::default(), ..report }.to_json();
        assert_eq!(untimed(outcome.report), untimed(uninterrupted.report.clone()), "{stage}");
        assert_eq!(product(&dir.path().join("out")), product(&reference.path().join("out")), "{stage}");
    }
}

#[test]
fn latency_is_measured_when_it_is_asked_for_and_is_no_part_of_the_product() {
    let plain = ["evaluation.tasks=[]"];
    let asked = [plain[0], "report.latency=true"];
    let (reference, dir) = (directory(), directory());
    let outcome = run(&prepared(reference.path(), "embedded", &plain), &OPTIONS, &(), &Cancel::default())
        .expect("the run succeeds");
    assert_eq!(outcome.report.latency, None);

    let cancel = Cancel::default();
    let recorder = Recorder::new(&cancel, Stage::Latency, |event, at| *event == Event::Started(at));
    let error = run(&prepared(dir.path(), "embedded", &asked), &OPTIONS, &recorder, &cancel)
        .expect_err("it was asked to stop");
    assert!(matches!(error, PipelineError::Interrupted { .. }), "{error}");
    // It may be asked for, or no longer, when the run goes on.
    for (changes, next) in [(&plain[..], "card and reports"), (&asked[..], "latency")] {
        let plan = dry_run(&prepared(dir.path(), "embedded", changes), &OPTIONS).expect("it is planned");
        assert_eq!(plan.interrupted.and_then(|left| left.next).as_deref(), Some(next));
    }

    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads can be had");
    let (planned, stages, report) = pool.install(|| {
        let (prepared, cancel) = (prepared(dir.path(), "embedded", &asked), Cancel::default());
        let plan = dry_run(&prepared, &OPTIONS).expect("it is planned");
        let recorder = Recorder::new(&cancel, Stage::Load, |_, _| false);
        let outcome = run(&prepared, &OPTIONS, &recorder, &cancel).expect("it goes on");
        (plan.latency, recorder.stages(), outcome.report)
    });
    assert_eq!(stages, [Stage::Load, Stage::Latency, Stage::Publish]);
    let latency = report.latency.expect("it was asked for");
    let mut expected = Vec::new();
    for threads in [1, 2] {
        for batch in [1, 32] {
            // The model takes no more than 64.
            for tokens in [32, 64].map(Some) {
                expected.extend([Engine::Int8, Engine::F32].map(|engine| (engine, threads, batch, tokens)));
            }
        }
    }
    let found: Vec<_> =
        latency.rows.iter().map(|row| (row.engine, row.threads, row.batch, row.tokens)).collect();
    assert_eq!((found, planned), (expected, latency.rows.len() / 2));
    for row in &latency.rows {
        assert!(0.0 < row.q1_ms && row.q1_ms <= row.median_ms && row.median_ms <= row.q3_ms, "{row:?}");
        assert!((5..=101).contains(&row.runs), "{row:?}");
    }
    assert_eq!(product(&dir.path().join("out")), product(&reference.path().join("out")));
}

/// The most bytes that were in a directory at any event.
struct DiskWatch {
    dir: PathBuf,
    most: AtomicU64,
}

impl Events for DiskWatch {
    fn event(&self, _: Event) {
        self.most.fetch_max(bytes(&self.dir), Ordering::Relaxed);
    }
}

/// Of all files below a directory; some may go while they are counted.
fn bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| if e.path().is_dir() { bytes(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
        .sum()
}

#[test]
fn a_run_takes_no_more_disk_than_planned_and_little_less() {
    let decoder = repository().join("tests/fixtures/llama-causal").display().to_string();
    // Of the decoder all hidden states are in a file that has no name, and twice in files that the run would go on with.
    for (model, samples, memory) in
        [("embedded", 4, 1 << 30), ("embedded", 400, 1 << 30), (decoder.as_str(), 1000, 0)]
    {
        let dir = directory();
        let samples = format!("calibration.samples={samples}");
        let changes = [&samples, "evaluation.tasks=[]", "calibration.batch_size=1"];
        let prepared = prepared(dir.path(), model, &changes);
        let options = RunOptions { memory: Memory(memory), ..OPTIONS };
        let plan = dry_run(&prepared, &options).expect("it is planned");
        let watch = DiskWatch { dir: dir.path().join("out.partial"), most: AtomicU64::new(0) };
        run(&prepared, &options, &watch, &Cancel::default()).expect("the run succeeds");
        let hidden = prepared.directory.spec().towers[0].hidden;
        let states = if memory == 0 { (plan.tokens * hidden * 4) as u64 } else { 0 };
        // Besides what is seen: the file without a name, and new statistics and hidden states before the old ones go.
        let out = dir.path().join("out");
        let statistics = out.join("statistics.safetensors").metadata().expect("it is there").len();
        let observing = if memory == 0 {
            watch.most.load(Ordering::Relaxed) + statistics + 2 * states
        } else {
            2 * statistics
        };
        let taken = bytes(&out).max(observing);
        assert!(taken <= plan.disk_bytes, "{model} {samples}: {taken} taken, {} planned", plan.disk_bytes);
        assert!(
            plan.disk_bytes <= taken + (1 << 20),
            "{model} {samples}: {taken} taken, {} planned",
            plan.disk_bytes
        );
    }
}

#[test]
fn shards_hold_what_one_file_does_and_are_checked_like_it() {
    let decoder = repository().join("tests/fixtures/llama-causal").display().to_string();
    for (model, memory) in
        [("embedded", 1 << 30), ("embedded", 0), (decoder.as_str(), 1 << 30), (&decoder, 0)]
    {
        let dir = directory();
        let options = RunOptions { memory: Memory(memory), ..OPTIONS };
        let made = |out: &str, size: &str| {
            let out = dir.path().join(out);
            let changes = [
                "evaluation.tasks=[]".to_owned(),
                format!("output.dir='{}'", out.display()),
                format!("output.max_shard_size='{size}'"),
            ];
            let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
            let prepared = prepared(dir.path(), model, &changes);
            let outcome = run(&prepared, &options, &(), &Cancel::default())
                .unwrap_or_else(|error| panic!("{model}, {memory}, {size}: {error}"));
            assert!(
                outcome.report.self_check.is_some_and(|check| check.cosine_min == 1.0),
                "{model}, {size}"
            );
            Checkpoint::open(out.join("model")).expect("it opens")
        };
        let (one, several) = (made("one", "5GB"), made("several", "20KB"));
        assert!(
            names(several.dir()).iter().filter(|name| name.ends_with(".safetensors")).count() > 2,
            "{model}"
        );
        let tensors = |checkpoint: &Checkpoint| -> Vec<_> {
            let all = checkpoint.tensors();
            all.map(|info| (info.name.clone(), checkpoint.tensor_hash(&info.name).expect("it is read")))
                .collect()
        };
        assert_eq!(tensors(&one), tensors(&several), "{model}");
    }
}

#[test]
fn an_observing_pass_that_is_cancelled_goes_on_at_its_last_checkpoint() {
    // Checkpoints come every 64 batches.
    let changes = ["evaluation.tasks=[]", "calibration.batch_size=1", "calibration.samples=200"];
    let dir = directory();
    let (prepared, cancel) = (prepared(dir.path(), "embedded", &changes), Cancel::default());
    let recorder = Recorder::new(
        &cancel,
        Stage::Calibrate,
        |event, _| matches!(event, Event::Calibrated(progress) if progress.done == 150),
    );
    let error = run(&prepared, &OPTIONS, &recorder, &cancel).expect_err("it was asked to stop");
    assert!(matches!(error, PipelineError::Interrupted { missing: None, .. }), "{error}");
    assert_eq!(
        names(&dir.path().join("out.partial")),
        [".zeropoint", "calibration-00000-00000128.safetensors", "config.toml", "journal.jsonl"]
    );
    let planned =
        dry_run(&prepared, &OPTIONS).expect("it is planned").interrupted.expect("it was interrupted");
    assert_eq!(planned.next.as_deref(), Some("calibration, batch 129 of 200"));

    let cancel = Cancel::default();
    let recorder = Recorder::new(&cancel, Stage::Load, |_, _| false);
    run(&prepared, &OPTIONS, &recorder, &cancel).expect("it goes on");
    let events = recorder.events.into_inner().expect("no thread has panicked");
    let done = events.iter().find_map(|event| match event {
        Event::Calibrated(progress) => Some(progress.done),
        _ => None,
    });
    assert_eq!(done, Some(129), "batch 129 comes first");
}

#[test]
fn statistics_of_one_config_serve_another_scheme() {
    let dir = directory();
    let statistics = dir.path().join("statistics.safetensors");
    let cancel = Cancel::default();
    let dynamic = prepared(dir.path(), "embedded", &["quantization.scheme=w8a8-dynamic"]);
    let alone = CalibrateOptions { shard: None, cache: CacheDir::None, memory: Memory::default() };
    calibrate(&dynamic, &statistics, &alone, &(), &cancel).expect("it succeeds");
    let fixed = prepared(dir.path(), "embedded", &["quantization.scheme=w8a8-static"]);
    let recorder = Recorder::new(&cancel, Stage::Load, |_, _| false);
    let outcome = quantize(&fixed, &statistics, &OPTIONS, &recorder, &cancel).expect("it succeeds");
    assert_eq!(recorder.stages(), [Stage::Load, Stage::Quantize, Stage::SelfCheck, Stage::Publish]);
    assert_eq!(outcome.report.calibration.passes, 0);
    assert_eq!(outcome.report.self_check.map(|check| check.cosine_min), Some(1.0));
}

#[test]
fn factors_of_transforms_are_chosen_from_fewer_samples() {
    let dir = directory();
    let path = |name: &str| dir.path().join(name);
    let changes = [
        "quantization.scheme=w8a8-static",
        "quantization.transforms=[{kind='online-rotation'}]",
        "output.formats=['zeropoint']",
        "evaluation.tasks=[]",
        "calibration.transform_tokens=200",
    ];
    let smoothed = prepared(dir.path(), "embedded", &changes);
    let plan = dry_run(&smoothed, &OPTIONS).expect("it is planned");
    let few = plan.transform_samples.expect("transforms have factors");
    assert!((1..20).contains(&few), "{few} of {}", plan.samples);
    assert_eq!((plan.samples, plan.passes), (40, 2));
    let samples = |file: &Path| -> usize {
        let header = StatisticsFile::load(file).expect("statistics").header;
        header["samples"].parse().expect("a number")
    };
    let outcome = run(&smoothed, &OPTIONS, &(), &Cancel::default()).expect("it succeeds");
    assert_eq!(outcome.report.calibration.transform_samples, Some(few as u64));
    assert_eq!(outcome.report.calibration.samples, 40);
    let observed = ["statistics-original.safetensors", "statistics.safetensors"];
    assert_eq!(observed.map(|name| samples(&outcome.dir.join(name))), [few, 40]);
    let expected = product(&outcome.dir);

    // What is observed alone is what factors are chosen from, and gives the same.
    let alone = CalibrateOptions { shard: None, cache: CacheDir::None, memory: Memory::default() };
    calibrate(&smoothed, &path("few"), &alone, &(), &Cancel::default()).expect("it succeeds");
    assert_eq!(samples(&path("few")), few);
    let options = RunOptions { force: true, ..OPTIONS };
    let again = quantize(&smoothed, &path("few"), &options, &(), &Cancel::default()).expect("it succeeds");
    let weights = |files: &[(PathBuf, Vec<u8>)]| -> Vec<(PathBuf, Vec<u8>)> {
        files.iter().filter(|(name, _)| name.ends_with("model.safetensors")).cloned().collect()
    };
    assert!(!weights(&expected).is_empty());
    assert_eq!(weights(&product(&again.dir)), weights(&expected));

    // Statistics of the whole set are more, and serve as well; those of another set do not.
    let plain = prepared(dir.path(), "embedded", &["quantization.scheme=w8a8-static"]);
    calibrate(&plain, &path("all"), &alone, &(), &Cancel::default()).expect("it succeeds");
    assert_eq!(samples(&path("all")), 40);
    let with_all = quantize(&smoothed, &path("all"), &options, &(), &Cancel::default()).expect("it succeeds");
    assert_eq!(with_all.report.calibration.transform_samples, Some(40));
    // A dynamic scheme observes no others, and claims none.
    let dynamic = [&["quantization.scheme=w8a8-dynamic"], &changes[1..]].concat();
    let dynamic = prepared(dir.path(), "embedded", &dynamic);
    let report = run(&dynamic, &options, &(), &Cancel::default()).expect("it succeeds").report;
    assert_eq!((report.calibration.samples, report.calibration.passes), (few as u64, 1));
    assert_eq!(report.calibration.transform_samples, Some(few as u64));
    let fewer = [&changes[..4], &["calibration.transform_tokens=50"]].concat();
    let fewer = prepared(dir.path(), "embedded", &fewer);
    let error =
        quantize(&fewer, &path("few"), &options, &(), &Cancel::default()).expect_err("of another set");
    assert!(matches!(error, PipelineError::ForeignStatistics { .. }), "{error}");
}

#[test]
fn a_plan_needs_no_weights() {
    // Only the header of the weight file is there; its data is a hole of zeros.
    let dir = directory();
    let (source, hollow) = (repository().join("tests/fixtures/bert-max-f16"), dir.path().join("hollow"));
    std::fs::create_dir_all(hollow.join("1_Pooling")).expect("the directory is writable");
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "1_Pooling/config.json",
        "model.safetensors",
    ] {
        std::fs::copy(source.join(name), hollow.join(name)).expect("it is there");
    }
    let plan = |model: &Path| {
        let plan =
            dry_run(&prepared(dir.path(), &model.to_string_lossy(), &[]), &OPTIONS).expect("it is planned");
        (plan.layers, plan.files, plan.quantized_bytes, plan.tokens)
    };
    let weights = hollow.join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("it is there");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let file = std::fs::File::options().write(true).open(&weights).expect("it is there");
    file.set_len(header).and_then(|()| file.set_len(bytes.len() as u64)).expect("it can be cut and grown");
    assert_ne!(std::fs::read(&weights).expect("it is there"), bytes);
    assert_eq!(plan(&hollow), plan(&source));
}
