//! `zeropoint statistics`: shards merged, and what a statistics file holds.

use std::fmt::Write as _;
use std::path::Path;

use indicatif::HumanCount;
use serde_json::json;
use zeropoint_pipeline::{
    PipelineError, ShownSite, ShownStatistics, StatisticsHeader, merge_statistics, show_statistics,
};

use crate::Outcome;
use crate::args::{MergeArgs, ShowArgs, StatisticsCommand};
use crate::commands::print_json;
use crate::render::table;
use crate::terminal::Terminal;

/// Outlier channels named in a row of the table; the JSON has all.
const NAMED: usize = 4;

pub(crate) fn execute(command: &StatisticsCommand, terminal: &Terminal) -> Result<Outcome, PipelineError> {
    match command {
        StatisticsCommand::Merge(args) => merge(args, terminal),
        StatisticsCommand::Show(args) => show(args, terminal),
    }
}

fn merge(args: &MergeArgs, terminal: &Terminal) -> Result<Outcome, PipelineError> {
    let header = merge_statistics(&args.files, &args.out)?;
    terminal.say(&format!("{} shards merged: {}", args.files.len(), extent(&header)));
    terminal.say(&written(&header, &args.out));
    Ok(Outcome::Done)
}

fn show(args: &ShowArgs, terminal: &Terminal) -> Result<Outcome, PipelineError> {
    let shown = show_statistics(&args.file)?;
    if args.json {
        print_json(&json!(shown), terminal)?;
    } else {
        terminal.print(&page(&shown))?;
    }
    Ok(Outcome::Done)
}

/// Where statistics have been written, and what is left to do with a shard.
pub(crate) fn written(header: &StatisticsHeader, out: &Path) -> String {
    match &header.shard {
        None => format!("Statistics written to {}", out.display()),
        Some(part) => format!(
            "Shard {} ({}) written to {}; merge all {} with `zeropoint statistics merge`",
            part.shard,
            extent(header),
            out.display(),
            part.shard.of()
        ),
    }
}

/// How much has been observed.
fn extent(header: &StatisticsHeader) -> String {
    let (samples, tokens) = (HumanCount(header.samples), HumanCount(header.tokens));
    match &header.shard {
        None => format!("{samples} samples, {tokens} tokens"),
        Some(part) => format!(
            "{} of {samples} samples, {} of {tokens} tokens",
            HumanCount(part.samples),
            HumanCount(part.tokens)
        ),
    }
}

fn page(shown: &ShownStatistics) -> String {
    let header = &shown.header;
    let part = header.shard.map_or_else(String::new, |part| format!("shard {}: ", part.shard));
    let mut text = format!("statistics of {part}{}\n\n", extent(header));
    let _ = writeln!(text, "graph            {}", header.graph_fingerprint);
    let _ = writeln!(text, "data             {}", header.data_fingerprint);
    let _ = writeln!(text, "seed             {}", header.seed);
    let _ = writeln!(text, "instruction set  {}", header.instruction_set.escape_debug());
    let version = header.zeropoint_version.escape_debug();
    let _ = writeln!(text, "written by       zeropoint {version}, format {}\n", shown.version);
    let head = ["site", "channels", "rows", "min", "max", "outlier channels"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(shown.sites.iter().map(row));
    text.push_str(&table(&rows));
    text
}

fn row(site: &ShownSite) -> Vec<String> {
    let [min, max] = site.range.map_or_else(|| ["-".to_owned(), "-".to_owned()], |range| range.map(number));
    let outliers = &site.outlier_channels;
    let mut named: Vec<String> = outliers
        .iter()
        .take(NAMED)
        .map(|outlier| format!("{} ({})", outlier.channel, number(outlier.absmax)))
        .collect();
    if outliers.len() > NAMED {
        named.push(format!("{} more", outliers.len() - NAMED));
    }
    let outliers = if named.is_empty() { "-".to_owned() } else { named.join(", ") };
    let rows = match site.routed_rows {
        None => site.rows.to_string(),
        Some(routed) => format!("{} ({routed} routed)", site.rows),
    };
    vec![site.site.escape_debug().to_string(), site.channels.to_string(), rows, min, max, outliers]
}

/// Four digits behind the point, or a power of ten where they would say nothing.
fn number(value: f64) -> String {
    if value == 0.0 || (1e-2..1e6).contains(&value.abs()) {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    }
}
