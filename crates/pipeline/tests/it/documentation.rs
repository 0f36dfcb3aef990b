//! docs/configuration.md says what the program does: its examples are configs, its keys are those of the language.

use std::collections::BTreeSet;

use serde_json::Value;
use zeropoint_pipeline::config::{Config, Preset};

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
fn every_key_scheme_and_task_is_on_the_page() {
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
    for kind in names("TaskKind") {
        assert!(page.contains(&format!("| `{kind}` |")), "`{kind}` has no row");
    }
    for task in names("ModelTask") {
        assert!(words.contains(task.as_str()), "the task `{task}` is not on the page");
    }
}

/// The names that a definition of the schema allows.
fn names(definition: &str) -> Vec<String> {
    let schema = Config::json_schema();
    let choices = schema["$defs"][definition]["oneOf"].as_array().cloned().unwrap_or_default();
    let names: Vec<String> =
        choices.iter().filter_map(|choice| choice["const"].as_str()).map(str::to_owned).collect();
    assert!(!names.is_empty(), "{definition} has names");
    names
}

#[test]
fn the_pages_of_tasks_and_observers_name_them_all() {
    for (file, definitions) in [
        ("tasks.md", &["TaskKind", "Metric"][..]),
        ("observers.md", &["ActivationObserver", "WeightObserver"]),
    ] {
        let path = format!("{}/../../docs/{file}", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(path).expect("the page is there");
        for name in definitions.iter().flat_map(|definition| names(definition)) {
            assert!(page.contains(&format!("`{name}`")), "`{name}` is not in docs/{file}");
        }
    }
}
