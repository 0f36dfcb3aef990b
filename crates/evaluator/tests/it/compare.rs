//! Runs side by side: what is compared, what is refused, what comes out.

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::compare::{Comparison, MetricName, Run};
use zeropoint_evaluator::report::{Metric, Report, Size};

use crate::made_up::{metric, rich};

/// A run with one loss of `sts.spearman`, which is 0.82 in the original.
fn run(name: &str, bytes: u64, loss: f64, stderr: f64) -> Run {
    let mut report = rich();
    report.settings.scheme = format!("scheme of {name}: int8");
    report.size = Size::new(90_000_000, bytes);
    report.metrics = vec![
        metric("sts", "spearman", 0.82, 0.82 - loss, stderr, true),
        Metric {
            ideal: true,
            ..metric("fidelity", "cosine_mean", 1.0, 1.0 - loss / 2.0, stderr / 4.0, true)
        },
    ];
    report.gates.clear();
    report.layers.truncate(2);
    Run { name: name.to_owned(), report }
}

fn few() -> Vec<Run> {
    vec![
        run("runs/static", 59_000_000, 0.0005, 0.0007),
        run("runs/bf16", 35_000_000, 0.0012, 0.0004),
        run("runs/dynamic", 59_000_000, 0.0010, 0.0004),
        run("runs/clipped", 60_000_000, 0.0341, 0.0045),
    ]
}

fn sts() -> MetricName {
    MetricName::parse("sts.spearman").expect("a name")
}

fn compare(runs: &[Run]) -> Comparison {
    Comparison::new(runs, Some(&sts())).expect("they can be compared")
}

/// The names of the runs on the frontier, smallest first, and whether the original is on it.
fn frontier(comparison: &Comparison) -> (Vec<&str>, bool) {
    let on = comparison.runs.iter().filter(|row| row.frontier).map(|row| row.run.as_str());
    (on.collect(), comparison.original.frontier)
}

#[test]
fn json() {
    insta::assert_snapshot!(compare(&few()).to_json());
}

#[test]
fn csv() {
    insta::assert_snapshot!(compare(&few()).to_csv());
}

#[test]
fn svg() {
    insta::assert_snapshot!(compare(&few()).to_svg());
}

#[test]
fn table() {
    let table = compare(&few()).table();
    let rows = std::iter::once(&table.heads).chain(&table.rows);
    insta::assert_snapshot!(rows.map(|row| row.join(" | ")).collect::<Vec<_>>().join("\n"));
}

#[test]
fn page() {
    let page = compare(&few()).to_html();
    let from = page.find("<main").expect("a main part");
    let to = page.find("</main>").expect("it ends");
    insta::assert_snapshot!(&page[from..to]);
    assert!(page.contains("default-src 'none'"));
    for reference in ["http://", "https://", " src=", "<link", "<img", "@import", "url("] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn the_order_of_the_runs_changes_nothing() {
    let (mut runs, expected) = (few(), compare(&few()));
    for _ in 0..runs.len() {
        runs.rotate_left(1);
        let found = compare(&runs);
        assert_eq!(found.to_json(), expected.to_json());
        assert_eq!(found.to_html(), expected.to_html());
        assert_eq!(found.to_svg(), expected.to_svg());
    }
}

#[test]
fn the_frontier_holds_the_original_as_well() {
    let comparison = compare(&few());
    assert_eq!(frontier(&comparison), (vec!["runs/bf16", "runs/static"], true));
    // A run that gains is better than the original and smaller.
    let mut runs = few();
    runs.push(run("runs/lucky", 70_000_000, -0.001, 0.002));
    assert_eq!(frontier(&compare(&runs)), (vec!["runs/bf16", "runs/static", "runs/lucky"], false));
    // A run that is larger than the original and loses is worse than doing nothing.
    assert_eq!(frontier(&compare(&[run("a", 90_000_001, 0.001, 0.0)])), (vec![], true));
    // Ties stand together.
    let twins = [run("a", 10, 0.25, 0.0), run("b", 10, 0.25, 0.0)];
    assert_eq!(frontier(&compare(&twins)), (vec!["a", "b"], true));
}

#[test]
fn metrics_that_fall_are_compared_by_their_loss() {
    let runs: Vec<Run> = [("a", 10, 13.0), ("b", 20, 12.6), ("c", 30, 12.7)]
        .map(|(name, bytes, value)| {
            let mut run = run(name, bytes, 0.0, 0.0);
            run.report.metrics = vec![metric("text", "perplexity", 12.5, value, 0.01, false)];
            run
        })
        .into();
    let comparison = Comparison::new(&runs, None).expect("they can be compared");
    assert_eq!(frontier(&comparison), (vec!["a", "b"], true));
    assert!(comparison.to_svg().contains("lower is better"));
}

#[test]
fn what_was_measured_otherwise_is_kept_aside_with_the_reason() {
    struct Case(fn(&mut Report), &'static str);
    for Case(change, reason) in [
        Case(|r| r.metrics.clear(), "not measured"),
        Case(|r| r.metrics[0].samples = 100, "measured on 100 samples, not 1379"),
        Case(
            |r| r.metrics[0].original = 0.75,
            "measured on other data: the original has 0.7500 there, not 0.8200",
        ),
        Case(|r| r.metrics[0].higher_is_better = false, "measured as another kind of metric"),
        Case(|r| r.metrics[0].delta = f64::NAN, "has no value"),
        Case(|r| r.metrics[0].quantized = f64::INFINITY, "has no value"),
    ] {
        let mut runs = few();
        // The smallest and best by far, if it were to be compared.
        runs.insert(0, run("runs/odd", 1, -0.5, 0.0));
        change(&mut runs[0].report);
        let comparison = compare(&runs);
        let odd = comparison.runs.iter().find(|row| row.run == "runs/odd").expect("it is in the table");
        assert_eq!(odd.excluded.as_deref(), Some(reason));
        assert_eq!((odd.value, odd.loss, odd.frontier), (None, None, false), "{reason}");
        assert_eq!(frontier(&comparison), (vec!["runs/bf16", "runs/static"], true), "{reason}");
        for output in [comparison.to_html(), comparison.to_csv(), comparison.to_json()] {
            assert!(output.contains(reason), "{reason}");
        }
        assert!(!comparison.to_svg().contains("odd"), "{reason}");
    }
    // The last digits of the original differ between instruction sets.
    let mut runs = few();
    runs[2].report.metrics[0].original += 1e-6;
    assert!(compare(&runs).runs.iter().all(|row| row.excluded.is_none()));
}

#[test]
fn fidelity_to_the_original_is_compared_on_the_same_data_alone() {
    let fidelity = MetricName::parse("fidelity.cosine_mean").expect("a name");
    let data = |texts: &str| Fingerprint::builder(texts).finish();
    let mut runs = few();
    for run in &mut runs {
        run.report.metrics[1].data = Some(data("texts"));
    }
    // A report of an earlier release does not name its data, and is taken as it was.
    runs[0].report.metrics[1].data = None;
    runs[3].report.metrics[1].data = Some(data("other texts"));
    let reason = format!(
        "measured on other data: fingerprint {}, not {}",
        data("other texts").short(),
        data("texts").short()
    );
    for _ in 0..runs.len() {
        runs.rotate_left(1);
        let comparison = Comparison::new(&runs, Some(&fidelity)).expect("they can be compared");
        let excluded: Vec<(&str, &str)> = comparison
            .runs
            .iter()
            .filter_map(|row| Some((row.run.as_str(), row.excluded.as_deref()?)))
            .collect();
        assert_eq!(excluded, [("runs/clipped", reason.as_str())]);
        assert!(comparison.to_html().contains(&reason) && comparison.to_csv().contains(&reason));
    }
}

#[test]
fn without_a_name_the_metric_that_most_runs_measured_is_taken() {
    let mut runs = few();
    let chosen = |runs: &[Run]| {
        let comparison = Comparison::new(runs, None).expect("they can be compared");
        format!("{}.{}", comparison.metric.task, comparison.metric.name)
    };
    assert_eq!(chosen(&runs), "sts.spearman");
    runs[0].report.metrics.insert(0, metric("rare", "accuracy", 0.5, 0.5, 0.1, true));
    assert_eq!(chosen(&runs), "sts.spearman");
    for run in &mut runs {
        run.report.metrics.retain(|metric| metric.ideal);
    }
    assert_eq!(chosen(&runs), "fidelity.cosine_mean");
}

#[test]
fn runs_that_have_nothing_in_common_are_refused() {
    let refused = |runs: &[Run], metric: Option<&str>| {
        let metric = metric.map(|name| MetricName::parse(name).expect("a name"));
        Comparison::new(runs, metric.as_ref()).expect_err("they cannot be compared").to_string()
    };
    let mut sentences = vec![refused(&[], None)];
    sentences.push(refused(&[few()[0].clone(), few()[0].clone()], None));
    let mut models = few();
    models[1].report.model.fingerprint = Fingerprint::builder("another").finish();
    models[1].report.model.source = "models/\u{1b}[31mother".to_owned();
    sentences.push(refused(&models, None));
    sentences.push(refused(&few(), Some("sts.pearson")));
    let mut unmeasured = few();
    for run in &mut unmeasured {
        run.report.metrics.clear();
    }
    sentences.push(refused(&unmeasured, None));
    sentences.push(refused(&unmeasured, Some("sts.pearson")));
    insta::assert_snapshot!(sentences.join("\n"));
}

#[test]
fn metrics_are_named_by_task_and_metric() {
    let parts = |text| MetricName::parse(text).map(|name| (name.task, name.name));
    let both = |task: &str, name: &str| Some((task.to_owned(), name.to_owned()));
    assert_eq!(parts("sts.spearman"), both("sts", "spearman"));
    assert_eq!(parts("my.task.accuracy"), both("my.task", "accuracy"));
    for none in ["", "sts", ".spearman", "sts.", "."] {
        assert_eq!(parts(none), None, "{none}");
    }
}

#[test]
fn hostile_text_is_nothing_but_text() {
    const HOSTILE: &str = "</style></svg><script>alert(1)</script>\"'=1+1,\u{1b}[2J\r\n\u{202e}&amp;";
    let mut runs = few();
    for run in &mut runs {
        run.name = format!("{}{HOSTILE}", run.name);
        run.report.settings.scheme = HOSTILE.to_owned();
        run.report.model.source = HOSTILE.to_owned();
        run.report.metrics[0].task = HOSTILE.to_owned();
        run.report.metrics[0].name = HOSTILE.to_owned();
    }
    let metric = MetricName { task: HOSTILE.to_owned(), name: HOSTILE.to_owned() };
    let comparison = Comparison::new(&runs, Some(&metric)).expect("they can be compared");
    let harmless = compare(&few());
    for (hostile, harmless) in
        [(comparison.to_html(), harmless.to_html()), (comparison.to_svg(), harmless.to_svg())]
    {
        for markup in ["<script", "</script", "<style", "</style", "<svg", "</svg"] {
            assert_eq!(hostile.matches(markup).count(), harmless.matches(markup).count(), "{markup}");
        }
        assert!(!hostile.contains(['\u{1b}', '\u{202e}']));
    }
    let table = comparison.table();
    for cell in table.heads.iter().chain(table.rows.iter().flatten()) {
        assert!(!cell.contains(['\u{1b}', '\n', '\r', '\u{202e}']), "{cell:?}");
    }
    let csv = comparison.to_csv();
    assert_eq!(csv.lines().count(), 2 + runs.len());
    assert!(!csv.contains(['\u{1b}', '\r']));
    assert!(serde_json::from_str::<serde_json::Value>(&comparison.to_json()).is_ok());
}

#[test]
fn broken_numbers_make_a_comparison() {
    let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0];
    for original in numbers {
        let runs: Vec<Run> = numbers
            .iter()
            .enumerate()
            .map(|(i, value)| {
                let mut run = run(&i.to_string(), if i == 0 { u64::MAX } else { 0 }, 0.0, *value);
                run.report.size.original_bytes = u64::MAX;
                run.report.metrics[0].original = original;
                run.report.metrics[0].quantized = *value;
                run.report.metrics[0].delta = *value;
                run
            })
            .collect();
        let comparison = compare(&runs);
        for output in [comparison.to_html(), comparison.to_svg(), comparison.to_csv(), comparison.to_json()] {
            for broken in ["\"NaN", "\"inf", ">NaN", ">inf", ",NaN", ",inf"] {
                assert!(!output.contains(broken), "{broken}");
            }
        }
    }
}
