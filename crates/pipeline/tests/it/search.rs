//! Many schemes of one model: sweeps, sensitivities, and mixed precision within a budget.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use zeropoint_evaluator::compare::MetricName;
use zeropoint_pipeline::config::Config;
use zeropoint_pipeline::{
    AutoOutcome, AutoRequest, Budget, CacheDir, Cancel, Candidate, Event, Events, Memory, PipelineError,
    Prefer, Prepared, PreparedSweep, RunOptions, Sources, auto, run,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn options(cache: &Path) -> RunOptions {
    let cache = CacheDir::At(cache.to_owned());
    RunOptions { force: false, restart: false, cache, memory: Memory(1 << 30) }
}

fn config(model: &str, out: &Path, rest: &str) -> Config {
    let text = format!(
        "model.source = '{}'\noutput.dir = '{}'\ncalibration.samples = 6\n{rest}",
        fixture(model).display(),
        out.display()
    );
    Config::parse(&text, "test.toml", &[]).unwrap_or_else(|error| panic!("{error}"))
}

/// What was told.
#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl Events for Told {
    fn event(&self, event: Event) {
        self.0.lock().expect("no panic").push(event);
    }
}

impl Told {
    fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().expect("no panic").iter().filter(|event| is(event)).count()
    }
}

const SWEEP: &str = "[sweep]\n\
    grid = [['quantization.scheme=w8a8-dynamic', 'quantization.scheme=w8a8-static'], \
            ['quantization.weights.observer=mse', 'quantization.weights.observer=min-max']]\n\
    [[sweep.runs]]\nname = 'small'\nset = ['quantization.scheme=w4a16', 'quantization.weights.group_size=8']";

#[test]
fn a_sweep_observes_once_and_its_runs_are_those_that_are_made_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("sweep");
    let config = config("bert-mean", &out, SWEEP);
    let sweep = PreparedSweep::new(&config, false, &Sources::default()).expect("it is planned");
    let names: Vec<&str> = sweep.runs.iter().map(|(name, _)| name.as_str()).collect();
    let grid = ["w8a8-dynamic_mse", "w8a8-dynamic_min-max", "w8a8-static_mse", "w8a8-static_min-max"];
    assert_eq!(names, [&grid[..], &["small"]].concat());
    let told = Told::default();
    let cancel = Cancel::default();
    let outcome = sweep.run(&options(&dir.path().join("cache")), None, &told, &cancel).expect("it runs");
    assert_eq!(outcome.runs.len(), 5);
    assert_eq!(told.count(|event| *event == Event::StatisticsReused), 4, "one observing pass");
    let comparison = outcome.comparison.expect("there are metrics");
    assert!(out.join("comparison/compare.html").is_file());
    assert_eq!(comparison.table().rows.len(), 6, "with the original");

    for (name, prepared) in &sweep.runs {
        let alone = dir.path().join("alone");
        let changes =
            config.sweep.points().into_iter().find(|point| point.name == *name).expect("it is there");
        let alone_config = config.with_changes(&changes.set, &alone.to_string_lossy()).expect("a config");
        let made = Prepared::new(alone_config).expect("it is prepared");
        let no_cache = RunOptions { cache: CacheDir::None, force: true, ..options(dir.path()) };
        let made = run(&made, &no_cache, &(), &cancel).expect("it runs");
        let swept = outcome.runs.iter().find(|run| run.dir.ends_with(name)).expect("it is there");
        assert_eq!(format!("{:?}", made.report.metrics), format!("{:?}", swept.report.metrics), "{name}");
        let weights = |dir: &Path| std::fs::read(dir.join("model/model.safetensors")).expect("it is there");
        assert!(weights(&made.dir) == weights(&swept.dir), "{name}");
        assert!(prepared.config.sweep.is_empty());
    }

    // What is there is taken as it is.
    let told = Told::default();
    let again = PreparedSweep::new(&config, false, &Sources::default()).expect("it is planned");
    again.run(&options(&dir.path().join("cache")), None, &told, &cancel).expect("it runs");
    assert_eq!(told.count(|event| matches!(event, Event::RunReused { .. })), 5);
    assert_eq!(told.count(|event| matches!(event, Event::Started(_))), 0);
}

#[test]
fn a_sweep_that_cannot_be_made_is_refused_before_anything_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let refused = |rest: &str| {
        let config = config("bert-mean", &dir.path().join("out"), rest);
        PreparedSweep::new(&config, false, &Sources::default()).err().expect("an error").to_string()
    };
    assert!(refused("").contains("no `[sweep]`"), "{}", refused(""));
    let run = |set: &str| refused(&format!("[[sweep.runs]]\nname = 'a'\nset = ['{set}']"));
    let error = run("quantization.weights.observer=best");
    assert!(error.starts_with("run `a`: ") && error.contains("`quantization.weights.observer`"), "{error}");
    let error = run("quantization={ scheme = \"w4a16\", weights = { group_size = 24 } }");
    assert!(error.contains("run `a`: ") && error.contains("no whole groups of 24"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
    let refused =
        Config::parse("model.source = 'm'\nsweep.grid = [['calibration.samples=3']]", "test.toml", &[]);
    let error = refused.expect_err("an error").to_string();
    assert!(error.contains("which a sweep does not change"), "{error}");
}

#[test]
fn sensitivities_are_of_every_group_and_the_same_part_by_part() {
    for (model, groups, unit) in
        [("bert-mean", 8, "1 - cosine"), ("llama-causal", 8, "nats"), ("albert-mean", 5, "1 - cosine")]
    {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let made = |name: &str, memory: u64| {
            let config = config(model, &dir.path().join(name), "report.sensitivity = true");
            let prepared = Prepared::new(config).expect("it is prepared");
            let options = RunOptions {
                memory: Memory(memory),
                ..options(&dir.path().join(name).with_extension("cache"))
            };
            let told = Told::default();
            let report = run(&prepared, &options, &told, &Cancel::default()).expect("it runs").report;
            let measured = told.count(|event| matches!(event, Event::Measured { .. }));
            (report, measured)
        };
        let (report, measured) = made("whole", 1 << 30);
        assert_eq!((report.sensitivity.len(), measured), (groups, groups), "{model}");
        let linears: usize = report.sensitivity.iter().map(|group| group.linears.len()).sum();
        assert_eq!(linears, report.layers.len(), "{model}");
        for group in &report.sensitivity {
            assert!(group.loss >= 0.0 && group.loss < 1.0 && group.unit == unit, "{model}: {group:?}");
            assert!(group.output_sqnr_db > 10.0 && group.output_sqnr_db < 80.0, "{model}: {group:?}");
        }
        assert!(report.sensitivity.iter().any(|group| group.loss > 0.0));
        let (parts, _) = made("parts", 0);
        for (whole, part) in report.sensitivity.iter().zip(&parts.sensitivity) {
            assert!(
                (whole.loss - part.loss).abs() <= 1e-9 + 1e-4 * whole.loss,
                "{model}: {whole:?} {part:?}"
            );
            assert!((whole.output_sqnr_db - part.output_sqnr_db).abs() < 1e-3, "{model}: {whole:?} {part:?}");
        }
        assert!(report.to_markdown().contains("## Sensitivity") && parts.sensitivity.len() == groups);
    }
}

fn search(
    model: &str,
    dir: &Path,
    budget: Budget,
    candidates: &[Candidate],
) -> Result<AutoOutcome, PipelineError> {
    let config = config(model, &dir.join("auto"), "");
    let request =
        AutoRequest { budget, metric: None, candidates: candidates.to_vec(), prefer: Prefer::Speed };
    let options = RunOptions { force: true, ..options(&dir.join("cache")) };
    auto(config, &request, &options, &Sources::default(), &(), &Cancel::default())
}

#[test]
fn a_limit_on_the_loss_is_met_or_said_not_to_be_and_the_config_makes_it_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let with =
        |limit| search("llama-causal", dir.path(), Budget::MaxDrop(limit), &Candidate::ALL).expect("it runs");
    let loose = with(1e3);
    assert!(loose.met() && loose.tries.len() == 1, "{:?}", loose.tries);
    assert_eq!(loose.tries[0].linears.keys().copied().collect::<Vec<_>>(), ["w8a8-static"]);
    let limit = loose.tries[0].drop * 0.4;
    let found = with(limit);
    assert!(found.met() && found.tries.len() > 1, "{:?}", found.tries);
    let last = found.tries.last().expect("a try");
    assert!(last.drop <= limit && last.linears.len() > 1, "{last:?}");
    assert!(found.tries.windows(2).all(|pair| pair[1].predicted < pair[0].predicted), "{:?}", found.tries);
    assert!(found.run.gates_passed() && found.run.report.gates.len() == 1);

    let text = std::fs::read_to_string(found.run.dir.join("config.toml")).expect("it is there");
    let again = Config::parse(&text, "config.toml", &["output.dir=again".to_owned()]).expect("a config");
    let again =
        again.with_output_dir(&dir.path().join("again").to_string_lossy(), "--out").expect("a config");
    let again =
        run(&Prepared::new(again).expect("it is prepared"), &options(dir.path()), &(), &Cancel::default());
    let again = again.expect("it runs");
    assert_eq!(format!("{:?}", again.report.metrics), format!("{:?}", found.run.report.metrics));
    assert_eq!(again.report.size, found.run.report.size);

    // What cannot be met ends with nearly everything float, and says so.
    let hopeless = with(0.0);
    let last = hopeless.tries.last().expect("a try");
    assert!(!hopeless.met() && hopeless.tries.len() > 1 && last.linears["none"] > 8, "{:?}", hopeless.tries);

    // Nothing float to fall back on.
    let strict = search(
        "llama-causal",
        dir.path(),
        Budget::MaxDrop(0.0),
        &[Candidate::W8a8Static, Candidate::W8a8Dynamic],
    );
    let strict = strict.expect("it runs");
    assert!(!strict.met() && !strict.run.gates_passed(), "{:?}", strict.tries);
    assert_eq!(
        strict.tries.last().expect("a try").linears.keys().copied().collect::<Vec<_>>(),
        ["w8a8-dynamic"]
    );
}

#[test]
fn a_limit_on_the_bytes_is_met_or_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let with = |bytes| search("llama-causal", dir.path(), Budget::TargetBytes(bytes), &Candidate::ALL);
    let Err(error) = with(1000) else { panic!("it is too small") };
    let text = error.to_string();
    assert!(text.contains("1000 bytes cannot be reached") && error.is_usage(), "{text}");
    let least: u64 = text.split_whitespace().rev().find_map(|word| word.parse().ok()).expect("bytes");
    assert!(least > 0);
    let of_all =
        search("llama-causal", dir.path(), Budget::MaxDrop(1e3), &[Candidate::W8a16]).expect("it runs");
    let int8 = of_all.tries[0].bytes;
    let mut losses = Vec::new();
    for bytes in [int8 - int8 / 20, int8, int8 + int8 / 10] {
        let found = with(bytes).expect("it runs");
        assert!(found.met() && found.tries[0].bytes <= bytes, "{bytes}: {:?}", found.tries);
        losses.push(found.tries[0].predicted);
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}

#[test]
fn an_unknown_metric_is_answered_with_those_that_there_are() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let request = AutoRequest {
        budget: Budget::MaxDrop(0.1),
        metric: MetricName::parse("sts.spearman"),
        candidates: Candidate::ALL.to_vec(),
        prefer: Prefer::Size,
    };
    let config = config("bert-mean", &dir.path().join("out"), "");
    let error = auto(config, &request, &options(dir.path()), &Sources::default(), &(), &Cancel::default());
    let error = error.expect_err("an error").to_string();
    assert!(error.contains("`sts.spearman`; there are `fidelity.cosine_mean`"), "{error}");
}
