//! Statistics are those of the rows that the model shows, for any number of threads.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use zeropoint_calibrator::{
    BatchPlan, Begun, Calibrated, CalibrationProgress, CalibrationSet, Observed, Room, Shard, calibrate,
    calibrate_batches, calibrate_from,
};
use zeropoint_core::Rng;
use zeropoint_kernels::Isa;
use zeropoint_models::{
    FloatParts, Model, ModelDirectory, ModelInput, ModelParts, PackedBatch, SiteId, SiteSink, SourceRef,
    Task, TokenSequence,
};
use zeropoint_observer::{ActivationStatistics, SampleRange, SampleRows, StatisticsFile};

type Statistics = BTreeMap<String, ActivationStatistics>;

const SAMPLES: usize = 24;

/// Everything in memory.
fn room() -> Room<'static> {
    Room { memory: u64::MAX, dir: Path::new("") }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn model(path: PathBuf) -> Model {
    let directory =
        ModelDirectory::open(&SourceRef::Directory(path), Task::Auto).expect("the directory opens");
    Model::load(&directory).expect("the model loads")
}

/// Samples of every length up to the limit of the fixtures.
fn set(batch_size: usize) -> CalibrationSet {
    let mut rng = Rng::new(17);
    let inputs: Vec<ModelInput> = (0..SAMPLES)
        .map(|_| {
            let length = 2 + rng.below(47) as usize;
            let ids = (0..length).map(|_| rng.below(107) as u32).collect();
            TokenSequence { ids, type_ids: vec![0; length], prompt: 0 }.into()
        })
        .collect();
    CalibrationSet { plan: BatchPlan::new(&inputs, batch_size), inputs, available: SAMPLES }
}

fn calibrated(model: &Model, set: &CalibrationSet) -> Statistics {
    match calibrate(model, set, &mut |_| ControlFlow::Continue(())).expect("the pass succeeds") {
        Calibrated::Done(statistics) => statistics,
        Calibrated::Cancelled => panic!("nobody cancelled"),
    }
}

/// Keeps every row of every site.
struct Rows(Vec<Vec<f32>>);

impl SiteSink for Rows {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        assert!(values.len().is_multiple_of(channels));
        self.0[site].extend_from_slice(values);
        Ok(())
    }
}

fn collected(model: &Model, set: &CalibrationSet) -> Vec<Vec<f32>> {
    let mut rows = Rows(vec![Vec::new(); model.spec().sites.len()]);
    for indices in set.plan.batches() {
        let batch = PackedBatch::new(indices.iter().map(|&i| &set.inputs[i])).expect("a batch");
        model.forward_observed(&batch, &mut rows).expect("a forward pass");
    }
    rows.0
}

#[test]
fn statistics_are_those_of_the_rows() {
    for name in ["bert-mean", "bert-cls-sharded", "bert-classifier-bf16"] {
        let model = model(fixture(name));
        let set = set(4);
        let found = calibrated(&model, &set);
        let rows = collected(&model, &set);
        assert_eq!(found.len(), model.spec().sites.len());
        for (site, values) in model.spec().sites.iter().zip(&rows) {
            let statistics = &found[&site.id];
            let channels = site.channels;
            // The head of a classifier sees one row a sequence, everything else one a token.
            let head = site.id.contains("pooler") || site.id.contains("classifier");
            let expected_rows = if head { SAMPLES } else { set.tokens() };
            assert_eq!(
                (statistics.rows(), statistics.channels()),
                (expected_rows as u64, channels),
                "{}",
                site.id
            );
            assert_eq!(values.len(), expected_rows * channels, "{}", site.id);

            let (mut min, mut max, mut absmax) = (f32::INFINITY, f32::NEG_INFINITY, vec![0f32; channels]);
            for row in values.chunks(channels) {
                for (absmax, value) in absmax.iter_mut().zip(row) {
                    (min, max) = (min.min(*value), max.max(*value));
                    *absmax = absmax.max(value.abs());
                }
            }
            assert_eq!((statistics.min(), statistics.max()), (min, max), "{}", site.id);
            assert_eq!(statistics.channel_absmax(), absmax, "{}", site.id);

            // Every sample by its number in the set, whatever batch it was in, with the range of its own rows.
            let mut rest = &values[..];
            let mut ranges = BTreeMap::new();
            for &i in set.plan.batches().iter().flatten() {
                let rows = if head { 1 } else { set.inputs[i].len() };
                let (own, others) = rest.split_at(rows * channels);
                rest = others;
                let (min, max) =
                    own.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
                ranges.insert(i as u32, SampleRange { rows: rows as u64, min, max });
            }
            assert_eq!(*statistics.samples(), ranges, "{}", site.id);

            // All rows at once and in the plain code: the statistics are the same.
            let mut at_once = ActivationStatistics::new(channels);
            let order = set.plan.batches().iter().flatten();
            let samples: Vec<SampleRows> = order
                .map(|&i| SampleRows { sample: i as u32, rows: if head { 1 } else { set.inputs[i].len() } })
                .collect();
            at_once.observe_samples(Isa::SCALAR, values, &samples).unwrap();
            assert_eq!(*statistics, at_once, "{}", site.id);
            // Bins are as wide as a power of two, so the division is exact.
            let width = statistics.histogram().bin_width();
            let mut counts = BTreeMap::<i64, u64>::new();
            for value in values {
                *counts.entry((f64::from(*value) / width).floor() as i64).or_default() += 1;
            }
            let bins = statistics.histogram().bins().filter(|(_, _, count)| *count > 0);
            let bins: BTreeMap<i64, u64> =
                bins.map(|(lower, _, count)| ((lower / width) as i64, count)).collect();
            assert_eq!(bins, counts, "{}", site.id);
        }
    }
}

#[test]
fn experts_see_every_row_and_count_those_that_are_routed_to_them() {
    let model = model(fixture("mixtral-causal"));
    let set = set(4);
    let whole = calibrated(&model, &set);
    for block in &model.spec().towers[0].blocks {
        let mixture = block.mlp.experts().expect("a mixture");
        let mut routed = Vec::new();
        for expert in &mixture.experts {
            let [input, inner] =
                [expert.input, expert.inner].map(|site| &whole[&model.spec().sites[site].id]);
            assert_eq!((input.rows(), inner.rows()), (set.tokens() as u64, set.tokens() as u64));
            assert_eq!(input.routed_rows(), inner.routed_rows());
            assert_eq!(input.samples().len(), SAMPLES, "rows belong to their samples");
            routed.push(input.routed_rows());
        }
        assert_eq!(routed.iter().sum::<u64>(), (mixture.top_k * set.tokens()) as u64);
        assert!(routed.iter().all(|rows| *rows < set.tokens() as u64), "{routed:?}");
        let router = &whole[&model.spec().sites[mixture.router].id];
        assert_eq!(router.routed_rows(), router.rows());
    }
    // A shard without any batch among them.
    let parts = [1, 2, 3].map(|index| {
        let plan = set.shard(&set.plan, Shard::new(index, 3).expect("a shard"));
        match calibrate_batches(&model, &set, &plan, &mut |_| ControlFlow::Continue(())) {
            Ok(Calibrated::Done(sites)) => StatisticsFile { header: BTreeMap::new(), sites },
            other => panic!("{other:?}"),
        }
    });
    let none =
        model.spec().sites.iter().map(|site| (site.id.clone(), ActivationStatistics::new(site.channels)));
    let none = StatisticsFile { header: BTreeMap::new(), sites: none.collect() };
    let [first, second, third] = parts;
    let merged = third.merge(&none).and_then(|sum| sum.merge(&first)).and_then(|sum| sum.merge(&second));
    assert_eq!(merged.expect("parts of one set").sites, whole);
}

#[test]
fn every_site_that_the_task_runs_has_statistics() {
    let names: Vec<String> =
        calibrated(&model(fixture("bert-classifier-bf16")), &set(8)).into_keys().collect();
    let block = |layer: usize| {
        ["attention.output.dense", "attention.self.query", "intermediate.dense", "output.dense"]
            .map(|name| format!("bert.encoder.layer.{layer}.{name}.input"))
    };
    let head = ["bert.pooler.dense.input".to_owned(), "classifier.input".to_owned()];
    assert_eq!(names, [&block(0)[..], &block(1), &head].concat());
}

#[test]
fn the_size_of_batches_changes_rounding_at_most() {
    for name in ["bert-mean", "bert-cls-sharded", "bert-max-f16"] {
        let model = model(fixture(name));
        let one = calibrated(&model, &set(1));
        for batch_size in [3, 8, 100] {
            for (site, statistics) in calibrated(&model, &set(batch_size)) {
                let expected = &one[&site];
                assert_eq!(statistics.rows(), expected.rows());
                let extremes = [(statistics.min(), expected.min()), (statistics.max(), expected.max())];
                let channels = statistics.channel_absmax().iter().zip(expected.channel_absmax());
                for (a, b) in extremes.into_iter().chain(channels.map(|(a, b)| (*a, *b))) {
                    assert!((a - b).abs() <= 1e-5, "{name}, {site}, batches of {batch_size}: {a} and {b}");
                }
            }
        }
    }
}

/// Says where the other run of this program is to write what it found.
const OUTPUT: &str = "ZEROPOINT_TEST_STATISTICS";

/// Every bit of the statistics.
fn as_bytes(statistics: &Statistics) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (site, statistics) in statistics {
        bytes.extend_from_slice(site.as_bytes());
        bytes.extend_from_slice(&statistics.rows().to_le_bytes());
        let extremes = [statistics.min(), statistics.max()];
        bytes
            .extend(extremes.iter().chain(statistics.channel_absmax()).flat_map(|value| value.to_le_bytes()));
        bytes.extend_from_slice(&statistics.histogram().exponent().to_le_bytes());
        bytes.extend(statistics.histogram().counts().iter().flat_map(|count| count.to_le_bytes()));
    }
    // And what has no accessor of its own: the file holds everything.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("statistics.safetensors");
    StatisticsFile { header: BTreeMap::new(), sites: statistics.clone() }.save(&path).expect("saved");
    bytes.extend(std::fs::read(path).expect("read"));
    bytes
}

/// The number of threads is fixed once per process, for the matrix products too, so each number gets a process of its
/// own: this program again, running this test alone, with the variable set.
#[test]
fn the_number_of_threads_does_not_show() {
    let found = || {
        let of = |name| as_bytes(&calibrated(&model(fixture(name)), &set(8)));
        [of("bert-mean"), of("bert-cls-sharded"), of("mixtral-causal")].concat()
    };
    if let Some(path) = std::env::var_os(OUTPUT) {
        std::fs::write(path, found()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = found();
    assert_eq!(here, found(), "the same twice in one process");
    for threads in ["1", "3"] {
        let path = dir.path().join(threads);
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_number_of_threads_does_not_show"])
            .env("RAYON_NUM_THREADS", threads)
            .env(OUTPUT, &path)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert!(std::fs::read(&path).unwrap() == here, "{threads} threads");
    }
}

#[test]
fn progress_counts_every_sample_and_token() {
    let set = set(5);
    let mut reports: Vec<CalibrationProgress> = Vec::new();
    let mut report = |progress| {
        reports.push(progress);
        ControlFlow::Continue(())
    };
    calibrate(&model(fixture("bert-mean")), &set, &mut report).unwrap();
    assert_eq!(reports.len(), set.plan.batches().len());
    assert_eq!(reports.iter().map(|p| p.done).collect::<Vec<_>>(), [5, 10, 15, 20, 24]);
    assert!(reports.iter().all(|p| (p.total, p.total_tokens) == (SAMPLES, set.tokens())));
    assert!(reports.windows(2).all(|p| p[0].tokens < p[1].tokens && p[0].elapsed <= p[1].elapsed));
    assert_eq!(reports.last().unwrap().tokens, set.tokens());
    assert!(reports.last().unwrap().time_left().is_zero());
}

#[test]
fn a_pass_can_be_cancelled_after_any_batch() {
    let model = model(fixture("bert-mean"));
    for stop_after in 1..=3 {
        let mut calls = 0;
        let mut stop = |_| {
            calls += 1;
            if calls == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let ended = calibrate(&model, &set(8), &mut stop).unwrap();
        assert!(matches!(ended, Calibrated::Cancelled), "{ended:?}");
        assert_eq!(calls, stop_after, "no batch is run after the call that cancels");
    }
}

/// A copy of a fixture with one value of one f32 tensor replaced where it lies in the file.
fn with_value(tensor: &str, at: usize, value: f32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let source = fixture("bert-mean");
    let mut file = std::fs::read(source.join("model.safetensors")).expect("the weights");
    // safetensors: the header's length in 8 bytes, the header as JSON, the data.
    let header = 8..8 + u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
    let described: serde_json::Value = serde_json::from_slice(&file[header.clone()]).expect("a header");
    assert_eq!(described[tensor]["dtype"], "F32", "{tensor}");
    let start = described[tensor]["data_offsets"][0].as_u64().expect("an offset") as usize;
    file[header.end + start + 4 * at..][..4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), file).expect("written");
    std::fs::copy(source.join("config.json"), dir.path().join("config.json")).expect("copied");
    dir
}

#[test]
fn an_overflow_names_the_site_that_sees_it_first() {
    let cases = [
        ("embeddings.LayerNorm.weight", 3, "encoder.layer.0.attention.self.query.input"),
        ("encoder.layer.1.attention.output.LayerNorm.weight", 30, "encoder.layer.1.intermediate.dense.input"),
    ];
    for (tensor, at, site) in cases {
        let dir = with_value(tensor, at, f32::MAX);
        let model = model(dir.path().to_owned());
        let error = calibrate(&model, &set(8), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("site `{site}`: ")), "{tensor}: {error}");
        assert!(error.contains(&format!("channel {at}")), "{tensor}: {error}");
    }
}

#[test]
fn a_pass_that_goes_on_anywhere_ends_in_the_bits_of_an_uninterrupted_one() {
    for name in ["bert-mean", "qwen3moe-causal"] {
        goes_on_anywhere(&model(fixture(name)));
    }
}

fn goes_on_anywhere(model: &Model) {
    let set = set(4);
    let whole = calibrated(model, &set);
    for batches in 0..=set.plan.batches().len() {
        let mut begun = Begun::default();
        let mut steps = 0;
        let mut stop = |observed: &mut Observed<'_>| {
            steps += 1;
            if steps < batches {
                return ControlFlow::Continue(());
            }
            let (elapsed, sites) = (observed.progress.elapsed, observed.sites());
            begun = Begun { parts: observed.parts, batches: observed.batches, sites, states: None, elapsed };
            ControlFlow::Break(())
        };
        if batches > 0 {
            calibrate_from(model, &set, &set.plan, Begun::default(), room(), &mut stop)
                .expect("the pass succeeds");
        }
        if begun.parts == 1 {
            assert_eq!((begun.batches, begun.sites), (0, whole.clone()), "nothing is left to do");
            continue;
        }
        let mut last = None;
        let mut watch = |observed: &mut Observed<'_>| {
            last = Some((observed.progress.done, observed.progress.tokens));
            ControlFlow::Continue(())
        };
        match calibrate_from(model, &set, &set.plan, begun, room(), &mut watch).expect("the pass succeeds") {
            Calibrated::Done(statistics) => assert_eq!(statistics, whole, "from batch {batches}"),
            Calibrated::Cancelled => panic!("nobody cancelled"),
        }
        assert_eq!(last, Some((SAMPLES, set.tokens())), "progress counts what was done before");
    }
}

#[test]
fn a_pass_part_by_part_has_the_bits_of_the_whole_wherever_it_goes_on() {
    let directory = ModelDirectory::open(&SourceRef::Directory(fixture("llama-causal")), Task::Auto)
        .expect("it is a model directory");
    let parts = FloatParts::new(&directory, 0).expect("nothing is wrong with it");
    assert!(parts.is_split());
    let set = set(4);
    let whole = calibrated(&Model::load(&directory).expect("it loads"), &set);
    let dir = tempfile::tempdir().expect("a directory");
    // Everything in memory, some of it, nothing.
    for memory in [u64::MAX, 2000, 0] {
        let room = Room { memory, dir: dir.path() };
        for done in 0..parts.parts().len() {
            let path = dir.path().join("states.safetensors");
            let mut begun = Begun::default();
            let mut stop = |observed: &mut Observed<'_>| {
                if observed.parts < done {
                    return ControlFlow::Continue(());
                }
                observed.save_states(&path).expect("they are written");
                let (elapsed, sites) = (observed.progress.elapsed, observed.sites());
                let states = Some(path.clone());
                begun = Begun { parts: observed.parts, batches: 0, sites, states, elapsed };
                ControlFlow::Break(())
            };
            if done > 0 {
                calibrate_from(&parts, &set, &set.plan, Begun::default(), room, &mut stop)
                    .expect("the pass succeeds");
            }
            let mut progress = Vec::new();
            let mut watch = |observed: &mut Observed<'_>| {
                progress.push((observed.progress.done, observed.progress.tokens));
                ControlFlow::Continue(())
            };
            match calibrate_from(&parts, &set, &set.plan, begun, room, &mut watch).expect("the pass succeeds")
            {
                Calibrated::Done(statistics) => assert_eq!(statistics, whole, "after {done} parts, {memory}"),
                Calibrated::Cancelled => panic!("nobody cancelled"),
            }
            assert!(progress.is_sorted(), "{progress:?}");
            assert_eq!(progress.last(), Some(&(SAMPLES, set.tokens())));
        }
    }
}

#[test]
fn a_beginning_of_something_else_is_refused() {
    let (first, second) = (model(fixture("bert-mean")), model(fixture("bert-classifier-bf16")));
    let set = set(4);
    let mut go_on = |_: &mut Observed<'_>| ControlFlow::Continue(());
    for begun in [
        Begun { batches: 1, ..Begun::default() },
        Begun { batches: 1, sites: calibrated(&second, &set), ..Begun::default() },
        Begun { batches: 99, sites: calibrated(&first, &set), ..Begun::default() },
    ] {
        let error =
            calibrate_from(&first, &set, &set.plan, begun, room(), &mut go_on).expect_err("it does not fit");
        assert!(error.to_string().contains("statistics that the pass was to go on with"), "{error}");
    }
}
