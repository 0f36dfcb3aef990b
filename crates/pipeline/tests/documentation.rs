//! docs/configuration.md says what the program does: its examples are configs, its keys are those of the language.

use std::collections::BTreeSet;

use serde_json::Value;
use zeropoint_pipeline::config::{Config, Preset, TaskKind};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    std::fs::read_to_string(path).expect("the page is there")
}

fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    page.split(&begin).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

#[test]
fn every_example_is_a_config() {
    let page = page();
    let examples = blocks(&page, "toml");
    assert!(examples.len() >= 8);
    for example in examples {
        Config::parse(example, "docs/configuration.md", &[])
            .unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
}

#[test]
fn every_change_of_the_command_line_is_one() {
    let page = page();
    let mut changes = 0;
    for line in
        blocks(&page, "sh").iter().flat_map(|block| block.lines()).filter(|line| line.contains("--set"))
    {
        let line = line.split(" #").next().unwrap_or(line).trim_end();
        let sets: Vec<String> =
            line.split("--set ").skip(1).map(|set| set.trim().trim_matches('\'').to_owned()).collect();
        Config::parse("model.source = 'm'", "c.toml", &sets)
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        changes += sets.len();
    }
    assert!(changes >= 5);
}

#[test]
fn the_mistake_that_is_shown_is_the_one_that_is_made() {
    let page = page();
    let shown = blocks(&page, "text")[0];
    let text = "version = 1\nmodel.source = 'm'\n\n[calibration]\nsamplse = 64\n";
    let error = Config::parse(text, "config.toml", &[]).expect_err("a mistake");
    for part in [error.message(), &error.location(), error.hint().expect("a way out")] {
        assert!(shown.contains(part), "{part}");
    }
}

#[test]
fn every_key_and_no_unknown_metric_or_scheme_is_on_the_page() {
    fn keys(schema: &Value, found: &mut BTreeSet<String>) {
        match schema {
            Value::Object(object) => {
                if let Some(properties) = object.get("properties").and_then(Value::as_object) {
                    found.extend(properties.keys().cloned());
                }
                object.values().for_each(|value| keys(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let page = page();
    let words: BTreeSet<&str> =
        page.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))).collect();
    let mut found = BTreeSet::new();
    keys(&Config::json_schema(), &mut found);
    assert!(found.len() >= 30, "{found:?}");
    for key in &found {
        assert!(words.contains(key.as_str()), "`{key}` is not on the page");
    }
    for preset in Preset::ALL {
        assert!(page.contains(&format!("| `{}`", preset.as_str())), "{}", preset.as_str());
    }
    for kind in [TaskKind::Sts, TaskKind::Classification, TaskKind::Fidelity] {
        let row =
            page.lines().find(|line| line.starts_with(&format!("| `{kind}` |"))).expect("a row of the table");
        for metric in kind.metrics() {
            assert!(row.contains(&format!("`{metric}`")), "{kind} {metric}");
        }
    }
}
