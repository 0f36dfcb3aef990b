//! Results as text for a reader.

use std::collections::BTreeMap;
use std::fmt::Write;

use indicatif::{BinaryBytes, HumanCount};
use zeropoint_evaluator::report::{Gate, Metric};
use zeropoint_pipeline::{DryRun, Inspection, PlannedLayer, RunOutcome};

/// What a run ends with on the terminal.
pub(crate) fn summary(outcome: &RunOutcome) -> String {
    let report = &outcome.report;
    let mut text = format!(
        "\n{}: {} -> {} ({:.2} times smaller)\n",
        outcome.dir.display(),
        BinaryBytes(report.size.original_bytes),
        BinaryBytes(report.size.quantized_bytes),
        report.size.ratio,
    );
    text.push_str(&metrics(&report.metrics, &report.gates));
    if let Some(check) = &report.self_check {
        let _ = writeln!(text, "self-check: cosine to the simulation at least {:.6}", check.cosine_min);
    }
    let _ = write!(text, "report: {}", outcome.dir.join("report.html").display());
    text
}

/// What a push would send, and where.
#[cfg(feature = "hub")]
pub(crate) fn push(plan: &zeropoint_pipeline::PushPlan) -> String {
    let rows: Vec<Vec<String>> =
        plan.files.iter().map(|(path, bytes)| vec![path.clone(), BinaryBytes(*bytes).to_string()]).collect();
    format!(
        "{}{} files, {}: {} -> {} at {}, {}\n",
        table(&rows),
        plan.files.len(),
        BinaryBytes(plan.bytes),
        plan.dir.display(),
        plan.target,
        plan.revision,
        if plan.public { "public if it is made" } else { "private" },
    )
}

/// Metrics of both models, and the gates.
pub(crate) fn metrics(metrics: &[Metric], gates: &[Gate]) -> String {
    let mut rows =
        vec![["task", "metric", "original", "quantised", "delta", "stderr"].map(str::to_owned).to_vec()];
    for metric in metrics {
        rows.push(vec![
            metric.task.clone(),
            metric.name.clone(),
            if metric.ideal { "-".to_owned() } else { format!("{:.4}", metric.original) },
            format!("{:.4}", metric.quantized),
            format!("{:+.4}", metric.delta),
            if metric.stderr.is_finite() { format!("{:.4}", metric.stderr) } else { "-".to_owned() },
        ]);
    }
    let mut text = if metrics.is_empty() { String::new() } else { table(&rows) };
    for gate in gates {
        let _ = writeln!(
            text,
            "gate {} {}: lost {:.4}, at most {} allowed: {}",
            gate.task,
            gate.metric,
            gate.drop,
            gate.max_drop,
            if gate.passed { "met" } else { "NOT MET" }
        );
    }
    text
}

/// Linears that differ in nothing but the numbers in their paths, in the order of the first of each, which `*` stands for where
/// there are several.
fn alike(layers: &[PlannedLayer]) -> Vec<(String, Vec<&PlannedLayer>)> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let pattern = |path: &str| {
        path.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
    };
    let mut places = BTreeMap::new();
    let mut groups: Vec<(String, Vec<&PlannedLayer>)> = Vec::new();
    for layer in layers {
        let PlannedLayer { path, shape, weights, activations, reason } = layer;
        let pattern = pattern(path);
        let place =
            *places.entry((pattern.clone(), shape, weights, activations, reason)).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((name, group)) => {
                *name = pattern;
                group.push(layer);
            }
            None => groups.push((path.clone(), vec![layer])),
        }
    }
    groups
}

/// The plan of a run.
pub(crate) fn dry_run(plan: &DryRun) -> String {
    let mut rows = vec![["Linear", "number", "shape", "weights", "activations"].map(str::to_owned).to_vec()];
    for (path, layers) in alike(&plan.layers) {
        let layer = layers[0];
        let [outputs, inputs] = layer.shape;
        rows.push(vec![
            path,
            layers.len().to_string(),
            format!("{outputs} x {inputs}"),
            layer.weights.clone().unwrap_or_else(|| "float".to_owned()),
            layer.activations.clone().or_else(|| layer.reason.clone()).unwrap_or_default(),
        ]);
    }
    let mut text = format!("{} ({}), scheme {}\n\n", plan.model, plan.architecture, plan.scheme);
    text.push_str(&table(&rows));
    let _ = writeln!(
        text,
        "\ncalibration  {} samples, {} tokens, {}{}{}",
        plan.samples,
        HumanCount(plan.tokens as u64),
        match plan.passes {
            0 => "no pass".to_owned(),
            1 => "1 pass".to_owned(),
            passes => format!("{passes} passes"),
        },
        plan.transform_samples
            .filter(|samples| *samples < plan.samples)
            .map_or_else(String::new, |samples| format!(", the first over {samples} of the samples")),
        if plan.cached { "; none if the statistics in the cache are of these weights" } else { "" }
    );
    for (task, samples) in &plan.tasks {
        let _ = writeln!(text, "evaluation   {task}, {samples} samples");
    }
    if plan.latency > 0 {
        let _ = writeln!(text, "latency      {} combinations of threads, batch and tokens", plan.latency);
    }
    let _ = writeln!(
        text,
        "weights      {} -> {} bytes ({:.2} times smaller)",
        HumanCount(plan.original_bytes),
        HumanCount(plan.quantized_bytes),
        plan.original_bytes as f64 / plan.quantized_bytes as f64
    );
    if let files @ [_, _, ..] = &plan.files[..] {
        let _ = writeln!(text, "             in {} files", files.len());
    }
    let free =
        plan.disk_free_bytes.map_or_else(String::new, |free| format!("; {} are free", BinaryBytes(free)));
    let _ = writeln!(text, "disk         at most {}{free}", BinaryBytes(plan.disk_bytes));
    if plan.log_probability_bytes > 0 {
        let bytes = BinaryBytes(plan.log_probability_bytes);
        let _ =
            writeln!(text, "cache        {bytes} of the original's log-probabilities, for later evaluations");
    }
    let _ = writeln!(text, "memory       about {}", BinaryBytes(plan.memory_bytes));
    let _ = writeln!(text, "time         about {:.1} s on this machine", plan.seconds);
    let _ = writeln!(text, "output       {}", plan.output);
    if let Some(left) = &plan.interrupted {
        let partial = left.partial.display();
        let _ = match (&left.next, &left.difference) {
            (Some(next), _) => writeln!(text, "resume       {partial} would be gone on with: {next}"),
            (None, Some(reason)) => {
                writeln!(
                    text,
                    "warning: {partial} holds an interrupted run that cannot be continued: {reason}"
                )
            }
            (None, None) => Ok(()),
        };
    }
    for warning in &plan.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// A model as `inspect` shows it.
pub(crate) fn inspection(model: &Inspection) -> String {
    let mut text = format!("{} ({})\n\n", model.name, model.architecture);
    let _ = writeln!(text, "head         {}", model.head);
    let _ = write!(text, "size         {} blocks, hidden {}", model.blocks, model.hidden);
    if let Some(tokens) = model.max_tokens {
        let _ = write!(text, ", at most {tokens} tokens");
    }
    if let Some(image) = model.image {
        let ([height, width], patch) = (image.size, image.patch);
        let _ = write!(text, ", images of {height} x {width} in patches of {patch} x {patch}");
    }
    let _ = writeln!(text);
    let _ = writeln!(
        text,
        "parameters   {}, of them {} in {} Linears",
        HumanCount(model.parameters),
        HumanCount(model.linear_parameters as u64),
        model.linears.len()
    );
    let _ = writeln!(text, "weights      {} bytes in {} file(s)", HumanCount(model.bytes), model.files);
    let _ = writeln!(text, "quantised    {}\n", if model.quantized { "yes" } else { "no" });
    let mut rows = vec![["Linear", "shape", "dtype", "bytes", "quantisation"].map(str::to_owned).to_vec()];
    for linear in &model.linears {
        let [outputs, inputs] = linear.shape;
        let state = linear
            .quantized
            .clone()
            .or_else(|| linear.ignored_by_default.clone())
            .unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            linear.path.clone(),
            format!("{outputs} x {inputs}"),
            linear.dtype.clone(),
            linear.bytes.to_string(),
            state,
        ]);
    }
    text.push_str(&table(&rows));
    for (tensor, reason) in &model.unused {
        let _ = writeln!(text, "not run: {tensor} ({reason})");
    }
    text
}

/// Columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linears_that_differ_in_their_numbers_alone_are_told_together() {
        let layer = |path: &str, weights: Option<&str>| PlannedLayer {
            path: path.to_owned(),
            shape: [2, 3],
            weights: weights.map(str::to_owned),
            activations: None,
            reason: None,
        };
        let layers = [
            layer("layers.0.up", Some("int8")),
            layer("layers.0.down", Some("int8")),
            layer("layers.1.up", Some("int8")),
            layer("layers.1.down", None),
            layer("head.10b", None),
        ];
        let groups: Vec<(String, usize)> =
            alike(&layers).into_iter().map(|(path, layers)| (path, layers.len())).collect();
        let expected = [("layers.*.up", 2), ("layers.0.down", 1), ("layers.1.down", 1), ("head.10b", 1)];
        assert_eq!(groups, expected.map(|(path, count)| (path.to_owned(), count)));
    }

    #[test]
    fn a_standard_error_that_is_not_known_is_a_dash() {
        let metric = |name: &str, stderr: f64| Metric {
            task: "fidelity".to_owned(),
            name: name.to_owned(),
            original: 1.0,
            quantized: 0.5,
            delta: -0.5,
            stderr,
            higher_is_better: true,
            samples: 10,
            data: None,
            ideal: true,
        };
        let shown = metrics(&[metric("cosine_mean", 0.01), metric("cosine_min", f64::NAN)], &[]);
        let last: Vec<&str> = shown.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(last, ["stderr", "0.0100", "-"]);
    }
}
