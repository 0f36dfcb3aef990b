//! What `--help` says, in full: the text is a part of the program that its users rely on.

use crate::scene::{Scene, stderr, stdout};

#[test]
fn help_of_every_command() {
    let scene = Scene::new();
    for command in [
        "",
        "run",
        "sweep",
        "auto",
        "calibrate",
        "statistics",
        "statistics merge",
        "statistics show",
        "quantize",
        "evaluate",
        "encode",
        "generate",
        "embed",
        "bench",
        "compare",
        "inspect",
        "init",
        "push",
        "schema",
    ] {
        let output = scene.succeeds(command.split_whitespace().chain(["--help"]));
        assert_eq!(stderr(&output), "");
        let name = if command.is_empty() { "zeropoint".to_owned() } else { command.replace(' ', "_") };
        insta::assert_snapshot!(name, stdout(&output));
    }
}

#[test]
fn help_lists_every_command_and_no_other() {
    let scene = Scene::new();
    let help = stdout(&scene.succeeds(["--help"]));
    let commands =
        help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next()).unwrap_or_default();
    let named: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        named,
        [
            "run",
            "sweep",
            "auto",
            "calibrate",
            "statistics",
            "quantize",
            "evaluate",
            "encode",
            "generate",
            "embed",
            "bench",
            "compare",
            "inspect",
            "init",
            "push",
            "schema",
            "help"
        ]
    );
}

#[test]
fn help_fits_its_width() {
    let scene = Scene::new();
    for width in [60, 80, 100, 250] {
        let output =
            scene.zeropoint(["run", "--help"]).env("COLUMNS", width.to_string()).output().expect("runs");
        for line in stdout(&output).lines() {
            assert!(line.chars().count() <= width.min(100), "{width}: {line}");
        }
    }
}

#[test]
fn the_version_is_the_crates() {
    let scene = Scene::new();
    let expected = format!("zeropoint {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&scene.succeeds(["--version"])), expected);
}

#[test]
fn the_schema_is_a_json_schema_of_the_config() {
    let scene = Scene::new();
    let output = scene.succeeds(["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(stderr(&output), "");
    assert!(schema["$schema"].as_str().is_some_and(|uri| uri.contains("json-schema.org")), "{schema}");
    for table in ["version", "model", "calibration", "quantization", "evaluation", "output"] {
        assert!(schema["properties"][table].is_object(), "{table}");
    }
    assert_eq!(schema["additionalProperties"], false);
}
