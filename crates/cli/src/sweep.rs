//! `zeropoint sweep`: many schemes of one model, made and compared.

use zeropoint_pipeline::config::Config;
use zeropoint_pipeline::{Cancel, PipelineError, PreparedSweep, RunOptions, RunOutcome, Sources, dry_run};

use crate::args::SweepArgs;
use crate::commands::{cache, gate_outcome, load, print_json};
use crate::terminal::Terminal;
use crate::{Outcome, compare, render};

pub(crate) fn sweep_command(
    args: &SweepArgs,
    sources: Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let sources = sources.headers_only(args.dry_run);
    let mut config: Config = load(&args.config, args.out.as_ref())?;
    if let Some(grid) = &args.grid {
        config = config.with_sweep_of(grid)?;
    }
    let sweep = PreparedSweep::new(&config, args.force || args.dry_run, &sources)?;
    let options = RunOptions {
        force: args.force,
        restart: args.restart,
        cache: cache(&args.cache),
        memory: args.memory.memory,
    };
    if args.dry_run {
        let mut rows = vec![["run", "bytes", "scheme"].map(str::to_owned).to_vec()];
        for (name, prepared) in &sweep.runs {
            let plan = dry_run(prepared, &options)?;
            rows.push(vec![name.clone(), plan.quantized_bytes.to_string(), plan.scheme]);
        }
        terminal.print(&format!("{}{}", render::table(&rows), warnings(&sweep)))?;
        return Ok(Outcome::Done);
    }
    let outcome = sweep.run(&options, args.metric.as_ref(), terminal, cancel)?;
    match &outcome.comparison {
        Some(comparison) if args.json => terminal.print(&comparison.to_json())?,
        Some(comparison) => terminal.print(&compare::text(comparison))?,
        None if args.json => print_json(&serde_json::Value::Null, terminal)?,
        None => terminal.say("Nothing was measured, so there is no comparison."),
    }
    if outcome.comparison.is_some() {
        terminal.say(&format!("comparison: {}", outcome.dir.join("compare.html").display()));
    }
    Ok(gate_outcome(outcome.runs.iter().all(RunOutcome::gates_passed), terminal))
}

/// What the runs are warned of, each warning once, with the runs that it is for unless it is for all.
fn warnings(sweep: &PreparedSweep) -> String {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, prepared) in &sweep.runs {
        for warning in &prepared.warnings {
            match found.iter_mut().find(|(known, _)| known == warning) {
                Some((_, names)) => names.push(name),
                None => found.push((warning, vec![name])),
            }
        }
    }
    let lines = found.iter().map(|(warning, names)| {
        if names.len() == sweep.runs.len() {
            format!("warning: {warning}\n")
        } else {
            format!("warning: {}: {warning}\n", names.join(", "))
        }
    });
    lines.collect()
}
