//! `zeropoint auto`: mixed precision within a budget.

use std::fmt::Write as _;

use serde_json::json;
use zeropoint_pipeline::{
    AutoOutcome, AutoRequest, Budget, Cancel, Candidate, PipelineError, Prefer, RunOptions, Sources, auto,
    check_output,
};

use crate::args::{AutoArgs, Cheap};
use crate::commands::{cache, gate_outcome, load, print_json};
use crate::terminal::Terminal;
use crate::{Outcome, render};

pub(crate) fn auto_command(
    args: &AutoArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let config = load(&args.config, args.out.as_ref())?;
    check_output(&config, args.force)?;
    let budget = match (args.max_drop, args.target_bytes) {
        (Some(most), _) => Budget::MaxDrop(most),
        // The command line has one of both.
        (None, bytes) => Budget::TargetBytes(bytes.unwrap_or_default()),
    };
    let is_named = |candidate: &Candidate| args.candidates.iter().any(|name| name == candidate.as_str());
    let request = AutoRequest {
        budget,
        metric: args.metric.clone(),
        candidates: Candidate::ALL.into_iter().filter(is_named).collect(),
        prefer: match args.prefer {
            Cheap::Speed => Prefer::Speed,
            Cheap::Size => Prefer::Size,
        },
    };
    let options = RunOptions {
        force: args.force,
        restart: false,
        cache: cache(&args.cache),
        memory: args.memory.memory,
    };
    let outcome = auto(config, &request, &options, sources, terminal, cancel)?;
    if args.json {
        let tries = outcome.tries.iter().map(|tried| {
            json!({
                "linears": tried.linears,
                "bytes": tried.bytes,
                "predicted": tried.predicted,
                "drop": tried.drop,
                "met": tried.met,
            })
        });
        let tries: Vec<_> = tries.collect();
        print_json(
            &json!({ "metric": outcome.metric.to_string(), "tries": tries, "report": outcome.run.report }),
            terminal,
        )?;
    } else {
        terminal.print(&tried(&outcome))?;
    }
    terminal.say(&render::summary(&outcome.run));
    terminal.say(&format!("config: {}", outcome.run.dir.join("config.toml").display()));
    if !outcome.met() {
        terminal.say("The limit was not met with these schemes; the last try, the gentlest, is kept.");
        return Ok(Outcome::GateNotMet);
    }
    Ok(gate_outcome(outcome.run.gates_passed(), terminal))
}

/// Small numbers with their digits.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.2e}") } else { format!("{value:.5}") }
}

/// Every try on a line.
fn tried(outcome: &AutoOutcome) -> String {
    let mut rows = vec![["try", "Linears", "bytes", "predicted", "lost", ""].map(str::to_owned).to_vec()];
    for (index, tried) in outcome.tries.iter().enumerate() {
        let mut linears = String::new();
        for (scheme, count) in &tried.linears {
            let comma = if linears.is_empty() { "" } else { ", " };
            let _ = write!(linears, "{comma}{count} {scheme}");
        }
        rows.push(vec![
            (index + 1).to_string(),
            linears,
            tried.bytes.to_string(),
            number(tried.predicted),
            number(tried.drop),
            if tried.met { "met" } else { "not met" }.to_owned(),
        ]);
    }
    let mut text = render::table(&rows);
    let _ = writeln!(
        text,
        "lost: of {}; predicted: the sum of what each group costs alone, of logits in nats, of vectors as 1 less the cosine",
        outcome.metric
    );
    text
}
