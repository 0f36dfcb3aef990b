//! `zeropoint bench`: how fast a quantised model is, beside its original.

use std::fmt::Write;

use serde_json::json;
use zeropoint_evaluator::report::{Engine, Latency, LatencyRow, Phase};
use zeropoint_models::{ModelDirectory, Task};
use zeropoint_pipeline::{
    BenchRequest, Cancel, PipelineError, Sources, bench as measure, bench_texts as measure_texts, read_texts,
};

use crate::Outcome;
use crate::args::BenchArgs;
use crate::commands::print_json;
use crate::encode::load;
use crate::render::table;
use crate::terminal::Terminal;

pub(crate) fn bench(
    args: &BenchArgs,
    threads: &[u16],
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let (model, _kept) = load(sources, &args.model, args.revision.as_deref())?;
    let original = args.against.as_deref().map(|name| sources.model(name, None)).transpose()?;
    let directory =
        original.as_ref().map(|model| ModelDirectory::open(&model.source, Task::Auto)).transpose()?;
    let request = BenchRequest {
        threads: match threads {
            [] => BenchRequest::default().threads,
            given => given.iter().map(|&count| usize::from(count)).collect(),
        },
        batches: args.batch.clone(),
        tokens: args.tokens.clone(),
        generate: args.generate,
        kv_cache: args.kv_cache.map(Into::into),
        runs: args.runs,
    };
    let found = match &args.texts {
        None => measure(&model, directory.as_ref(), &request, terminal, cancel)?,
        Some(texts) => {
            let texts = match texts.to_str() {
                Some(name) => sources.data(name)?.path,
                None => texts.clone(),
            };
            let samples = read_texts(&texts, &model)?;
            measure_texts(&model, directory.as_ref(), &samples, &request, terminal, cancel)?
        }
    };
    if args.json {
        print_json(&json!(found.rows), terminal)?;
    } else {
        terminal.print(&render(&found))?;
    }
    Ok(Outcome::Done)
}

fn render(found: &Latency) -> String {
    let mut text = String::new();
    let processor = found.processor.as_deref().unwrap_or("processor of no known name");
    let isa = found.rows.first().map_or("", |row| row.isa.as_str());
    let _ = writeln!(text, "{processor}, {} processors, instruction set {isa}\n", found.processors);
    let texts = found.rows.iter().any(|row| row.texts.is_some());
    let phases = found.rows.iter().any(|row| row.phase.is_some());
    let head = [
        "threads",
        if phases { "phase" } else { "batch" },
        if texts { "texts" } else { "tokens" },
        "engine",
        "median ms",
        "quartiles",
        if texts { "texts/s" } else { "tokens/s" },
        "runs",
        "against f32",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for row in &found.rows {
        rows.push(vec![
            row.threads.to_string(),
            match row.phase {
                None => row.batch.to_string(),
                Some(Phase::Prefill) => "prefill".to_owned(),
                Some(Phase::Decode) => "decode".to_owned(),
            },
            row.texts.or(row.new_tokens).or(row.tokens).unwrap_or_default().to_string(),
            match row.engine {
                Engine::Int8 => "int8".to_owned(),
                Engine::F32 => "f32".to_owned(),
            },
            format!("{:.3}", row.median_ms),
            format!("{:.3} to {:.3}", row.q1_ms, row.q3_ms),
            format!("{:.0}", row.texts_per_s.unwrap_or(row.tokens_per_s)),
            row.runs.to_string(),
            ratio(row, &found.rows).unwrap_or_default(),
        ]);
    }
    text.push_str(&table(&rows));
    text
}

/// How many times as fast as f32 an INT8 row is.
fn ratio(row: &LatencyRow, rows: &[LatencyRow]) -> Option<String> {
    let place = |row: &LatencyRow| (row.threads, row.batch, row.tokens, row.phase);
    let float = rows.iter().find(|other| other.engine == Engine::F32 && place(other) == place(row))?;
    (row.engine == Engine::Int8).then(|| format!("{:.2} x", float.median_ms / row.median_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_compares_engines_of_one_combination() {
        let row = |engine, threads, median_ms| LatencyRow {
            engine,
            isa: "avx2".to_owned(),
            threads,
            batch: 32,
            tokens: Some(128),
            phase: None,
            new_tokens: None,
            texts: None,
            median_ms,
            q1_ms: median_ms - 1.0,
            q3_ms: median_ms + 2.0,
            tokens_per_s: 4096.0 / median_ms * 1e3,
            texts_per_s: None,
            runs: 9,
        };
        let rows = vec![
            row(Engine::Int8, 1, 200.0),
            row(Engine::F32, 1, 900.0),
            row(Engine::Int8, 2, 100.0),
            row(Engine::F32, 2, 500.0),
        ];
        let found = Latency { processor: Some("A processor".to_owned()), processors: 2, rows };
        insta::assert_snapshot!(render(&found), @r"
        A processor, 2 processors, instruction set avx2

        threads  batch  tokens  engine  median ms  quartiles           tokens/s  runs  against f32
        1        32     128     int8    200.000    199.000 to 202.000  20480     9     4.50 x
        1        32     128     f32     900.000    899.000 to 902.000  4551      9
        2        32     128     int8    100.000    99.000 to 102.000   40960     9     5.00 x
        2        32     128     f32     500.000    499.000 to 502.000  8192      9
        ");
        let alone = Latency { processor: None, processors: 1, rows: vec![row(Engine::Int8, 1, 200.0)] };
        insta::assert_snapshot!(render(&alone), @r"
        processor of no known name, 1 processors, instruction set avx2

        threads  batch  tokens  engine  median ms  quartiles           tokens/s  runs  against f32
        1        32     128     int8    200.000    199.000 to 202.000  20480     9
        ");
    }
}
