//! `zeropoint compare`: several runs as accuracy against size.

use zeropoint_evaluator::compare::{Comparison, MetricName};
use zeropoint_pipeline::{PipelineError, compare, write_comparison};

use crate::args::CompareArgs;
use crate::terminal::Terminal;
use crate::{Outcome, render};

pub(crate) fn compare_command(args: &CompareArgs, terminal: &Terminal) -> Result<Outcome, PipelineError> {
    let comparison = compare(&args.runs, args.metric.as_ref())?;
    let dir = write_comparison(&comparison, &args.out)?;
    if args.json {
        terminal.print(&comparison.to_json())?;
    } else {
        terminal.print(&text(&comparison))?;
    }
    terminal.say(&format!("comparison: {}", dir.join("compare.html").display()));
    Ok(Outcome::Done)
}

pub(crate) fn text(comparison: &Comparison) -> String {
    let table = comparison.table();
    let rows: Vec<Vec<String>> = std::iter::once(table.heads).chain(table.rows).collect();
    let better = if comparison.metric.higher_is_better { "higher" } else { "lower" };
    format!(
        "{}\n* no other is both as small and as good, and better in one; {} samples, {better} is better\n",
        render::table(&rows),
        comparison.metric.samples,
    )
}

/// `TASK.METRIC` of the command line.
pub(crate) fn metric(text: &str) -> Result<MetricName, String> {
    MetricName::parse(text).ok_or_else(|| "give TASK.METRIC, such as sts.spearman".to_owned())
}
