//! One function for each command.

use serde_json::json;
use zeropoint_pipeline::config::{Config, Preset};
use zeropoint_pipeline::{
    CacheDir, CalibrateOptions, Cancel, EvaluateOptions, PipelineError, Prepared, RunOptions, RunOutcome,
    Sources, calibrate, check_output, dry_run, evaluate, inspect, quantize, run, starter, write_starter,
};

use crate::args::{
    CacheArgs, CalibrateArgs, Cli, Command, ConfigArgs, EvaluateArgs, InitArgs, InspectArgs, MemoryArgs,
    OutputArgs, QuantizeArgs, RunArgs,
};
use crate::terminal::Terminal;
use crate::{Outcome, bench, compare, embed, encode, render, statistics};

pub(crate) fn execute(cli: &Cli, terminal: &Terminal, cancel: &Cancel) -> Result<Outcome, PipelineError> {
    let sources = Sources::new(terminal, cancel).offline(cli.global.offline);
    match &cli.command {
        Command::Run(args) => run_command(args, sources, terminal, cancel),
        Command::Sweep(args) => crate::sweep::sweep_command(args, sources, terminal, cancel),
        Command::Auto(args) => crate::auto::auto_command(args, &sources, terminal, cancel),
        Command::Calibrate(args) => calibrate_command(args, &sources, terminal, cancel),
        Command::Statistics(command) => statistics::execute(command, terminal),
        Command::Quantize(args) => quantize_command(args, &sources, terminal, cancel),
        Command::Evaluate(args) => evaluate_command(args, &sources, terminal, cancel),
        Command::Encode(args) => encode::encode(args, &sources, terminal, cancel),
        Command::Generate(args) => crate::generate::generate(args, &sources, terminal, cancel),
        Command::Embed(args) => embed::embed(args, &sources, terminal, cancel),
        Command::Bench(args) => bench::bench(args, &cli.global.threads, &sources, terminal, cancel),
        Command::Compare(args) => compare::compare_command(args, terminal),
        Command::Inspect(args) => inspect_command(args, &sources.headers_only(true), terminal),
        Command::Init(args) => init_command(args, &sources.headers_only(true), terminal),
        #[cfg(feature = "hub")]
        Command::Push(args) => crate::push::push(args, cli.global.offline, terminal, cancel),
        Command::Schema => {
            print_json(&Config::json_schema(), terminal)?;
            Ok(Outcome::Done)
        }
    }
}

pub(crate) fn load(args: &ConfigArgs, out: Option<&String>) -> Result<Config, PipelineError> {
    let config = Config::load(&args.config, &args.sets)?;
    match out {
        Some(out) => Ok(config.with_output_dir(out, "--out")?),
        None => Ok(config),
    }
}

pub(crate) fn cache(args: &CacheArgs) -> CacheDir {
    match (&args.cache, args.no_cache) {
        (_, true) => CacheDir::None,
        (Some(dir), _) => CacheDir::At(dir.clone()),
        (None, false) => CacheDir::Default,
    }
}

fn options(args: &OutputArgs, cache: CacheDir, memory: &MemoryArgs) -> RunOptions {
    RunOptions { force: args.force, restart: args.restart, cache, memory: memory.memory }
}

fn run_command(
    args: &RunArgs,
    sources: Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let sources = sources.headers_only(args.dry_run);
    let config = load(&args.config, args.output.out.as_ref())?;
    if !args.dry_run {
        check_output(&config, args.output.force)?;
    }
    let prepared = Prepared::with_sources(config, &sources)?;
    let options = options(&args.output, cache(&args.cache), &args.memory);
    if args.dry_run {
        let plan = dry_run(&prepared, &options)?;
        if args.json {
            print_json(&json!(plan), terminal)?;
        } else {
            terminal.print(&render::dry_run(&plan))?;
        }
        return Ok(Outcome::Done);
    }
    let outcome = run(&prepared, &options, terminal, cancel)?;
    finish(&outcome, args.json, terminal)
}

fn quantize_command(
    args: &QuantizeArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let config = load(&args.config, args.output.out.as_ref())?;
    check_output(&config, args.output.force)?;
    let prepared = Prepared::with_sources(config, sources)?;
    let options = options(&args.output, CacheDir::None, &args.memory);
    let outcome = quantize(&prepared, &args.statistics, &options, terminal, cancel)?;
    finish(&outcome, args.json, terminal)
}

fn finish(outcome: &RunOutcome, as_json: bool, terminal: &Terminal) -> Result<Outcome, PipelineError> {
    terminal.say(&render::summary(outcome));
    if as_json {
        terminal.print(&outcome.report.to_json())?;
    }
    Ok(gate_outcome(outcome.gates_passed(), terminal))
}

pub(crate) fn gate_outcome(passed: bool, terminal: &Terminal) -> Outcome {
    if passed {
        return Outcome::Done;
    }
    terminal.say("An accuracy gate was not met; the outputs are kept.");
    Outcome::GateNotMet
}

fn calibrate_command(
    args: &CalibrateArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let prepared = Prepared::with_sources(load(&args.config, None)?, sources)?;
    for warning in &prepared.warnings {
        terminal.warn(warning);
    }
    let options =
        CalibrateOptions { shard: args.shard, cache: cache(&args.cache), memory: args.memory.memory };
    let header = calibrate(&prepared, &args.out, &options, terminal, cancel)?;
    terminal.say(&statistics::written(&header, &args.out));
    Ok(Outcome::Done)
}

fn evaluate_command(
    args: &EvaluateArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let prepared = Prepared::with_sources(load(&args.config, None)?, sources)?;
    for warning in &prepared.warnings {
        terminal.warn(warning);
    }
    let (model, _kept) = sources.directory(&args.model, None)?;
    let options = EvaluateOptions { cache: cache(&args.cache), memory: args.memory.memory };
    let (metrics, gates) = evaluate(&prepared, &model, &options, terminal, cancel)?;
    if args.json {
        print_json(&json!({ "metrics": metrics, "gates": gates }), terminal)?;
    } else {
        terminal.say("");
        terminal.print(&render::metrics(&metrics, &gates))?;
    }
    Ok(gate_outcome(gates.iter().all(|gate| gate.passed), terminal))
}

fn inspect_command(
    args: &InspectArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
) -> Result<Outcome, PipelineError> {
    let inspection = inspect(&args.model, args.revision.as_deref(), sources)?;
    if args.json {
        print_json(&json!(inspection), terminal)?;
    } else {
        terminal.print(&render::inspection(&inspection))?;
    }
    Ok(Outcome::Done)
}

fn init_command(
    args: &InitArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
) -> Result<Outcome, PipelineError> {
    let named = Preset::ALL.into_iter().find(|preset| preset.as_str() == args.scheme);
    let text = starter(&args.model, named.unwrap_or_default(), args.schema, sources)?;
    match &args.out {
        Some(path) => {
            write_starter(&text, path, &args.model, args.schema, args.force)?;
            terminal
                .say(&format!("Config written to {0}; next: zeropoint run {0} --dry-run", path.display()));
        }
        None => terminal.print(&text)?,
    }
    Ok(Outcome::Done)
}

pub(crate) fn print_json(value: &serde_json::Value, terminal: &Terminal) -> Result<(), PipelineError> {
    terminal.print(&format!("{value:#}\n"))
}
