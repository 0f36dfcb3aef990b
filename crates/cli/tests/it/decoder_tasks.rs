//! The tasks of decoders: perplexity, fidelity token by token, multiple choice.

use serde_json::{Value, json};

use crate::scene::{stderr, stdout};
use crate::tasks::{assert_near, number, quantized, run, scene_of, write_lines};

/// What `transformers` says of the same windows, in float32: exp of the mean cross-entropy of every token but the first.
#[test]
fn perplexity_is_over_windows_of_the_whole_text() {
    let scene = scene_of("llama-causal");
    scene.write("text.txt", "the river is on fire\n\nit was a cold night for the model\r\n".repeat(4));
    for (scheme, windows, expected) in [
        ("w8a8-dynamic", "", 220.213_937_156_655_6),
        ("w8a8-static", ",windows=2,stride=5", 204.504_732_686_400_47),
    ] {
        let task = format!("{{kind='perplexity',data='text.txt',window=16{windows}}}");
        let report = run(&scene, "out", scheme, &task);
        let metric = &report["metrics"][0];
        assert_eq!(metric["name"], "perplexity");
        assert!((number(&metric["original"]) / expected - 1.0).abs() < 1e-5, "{metric}");
        assert!((quantized(&report, "perplexity") / expected - 1.0).abs() < 0.2);
        assert!(quantized(&report, "kl_mean") > 0.0 && quantized(&report, "top1_agreement") > 0.5);
    }
    scene.write("one.txt", "t");
    let mistake = |task: &str| {
        let set = format!("evaluation.tasks=[{task}]");
        stderr(&scene.ends_with(1, ["run", "config.toml", "--no-cache", "--out", "wrong", "--set", &set]))
    };
    let long = mistake("{kind='perplexity',data='text.txt',window=4096}");
    assert!(long.contains("windows of 4096 tokens are asked for, and the model takes 2 to 48"), "{long}");
    let short = mistake("{kind='perplexity',data='one.txt'}");
    assert!(short.contains("has fewer than two tokens"), "{short}");
}

#[test]
fn a_decoder_is_held_against_the_original_token_by_token() {
    let scene = scene_of("llama-causal");
    scene.write("text.txt", "the river is on fire\n\nit was a cold night for the model\r\n".repeat(4));
    let task = "{kind='fidelity',data='text.txt',window=16},\
                {kind='perplexity',data='text.txt',window=16,counting='llama.cpp'}";
    let report = run(&scene, "out", "w8a8-dynamic", task);
    let names: Vec<&str> =
        report["metrics"].as_array().unwrap().iter().map(|metric| metric["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "kl_mean",
            "kl_p99",
            "kl_p999",
            "top1_agreement",
            "probability_change",
            "probability_change_rms",
            "cosine_mean",
            "cosine_min",
            "perplexity",
            "kl_mean",
            "top1_agreement"
        ]
    );
    let of = |at: usize| number(&report["metrics"][at]["quantized"]);
    assert!(0.0 < of(0) && of(0) < of(1) && of(1) <= of(2), "{report}");
    assert!(of(4).abs() < of(5) && of(7) < of(6) && of(6) < 1.0, "{report}");
    // What `transformers` says in float32, counted as llama.cpp counts.
    let expected = 214.949_062_687_275_22;
    assert!((number(&report["metrics"][8]["original"]) / expected - 1.0).abs() < 1e-5, "{report}");
    let resolved = scene.text("out/config.toml");
    assert!(resolved.contains("counting = \"llama.cpp\"") && resolved.contains("counting = \"every-token\""));

    // The text has 113 tokens with the one before it.
    scene.write("short.txt", "the river is on fire\n\nit was a cold night for the model\r\n".repeat(2));
    let set = "evaluation.tasks=[{kind='perplexity',data='short.txt',window=48,counting='llama.cpp'}]";
    let short =
        stderr(&scene.ends_with(1, ["run", "config.toml", "--no-cache", "--out", "wrong", "--set", set]));
    assert!(
        short.contains("short.txt has 57 tokens, and llama.cpp's counting needs two windows of 48"),
        "{short}"
    );
}

/// Of the three questions transformers in float32 chooses 0, 1 and 0.
#[test]
fn a_decoder_chooses_the_likeliest_continuation() {
    let scene = scene_of("llama-causal");
    let rows = [
        json!({"context": "the river is ", "choices": ["on fire", "a cold night"], "answer": 1}),
        json!({"context": "it was a cold night for", "choices": [" the model", " the river", " a fire"], "answer": 1}),
        json!({"context": "the", "choices": [" model", " night"], "answer": 0}),
    ];
    write_lines(&scene, "choices.jsonl", &rows);
    let report = run(&scene, "out", "w8a8-dynamic", "{kind='multiple-choice',data='choices.jsonl'}");
    let metrics = report["metrics"].as_array().unwrap();
    let names: Vec<&str> = metrics.iter().map(|metric| metric["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["accuracy", "accuracy_norm", "choice_agreement"]);
    assert_near(number(&metrics[0]["original"]), 2.0 / 3.0);
    assert_eq!((number(&metrics[2]["original"]), &metrics[2]["samples"]), (1.0, &json!(3)));

    let mistake = |row: &Value| {
        write_lines(&scene, "wrong.jsonl", &[rows[0].clone(), row.clone()]);
        let set = "evaluation.tasks=[{kind='multiple-choice',data='wrong.jsonl'}]";
        stderr(&scene.ends_with(1, ["run", "config.toml", "--no-cache", "--out", "wrong", "--set", set]))
    };
    let answer = mistake(&json!({"context": "the", "choices": [" a", " b"], "answer": 2}));
    assert!(
        answer.contains(
            "wrong.jsonl:2: the answer is 2, and there are 2 choices; an index from 0 to 1 is expected"
        ),
        "{answer}"
    );
    let long = mistake(&json!({"context": "the", "choices": [" a", " river".repeat(60)], "answer": 0}));
    assert!(long.contains("wrong.jsonl:2: choice 1 has") && long.contains("the model takes 48"), "{long}");
}

#[test]
fn the_original_of_a_decoder_runs_once_for_all_evaluations() {
    let scene = scene_of("llama-causal");
    scene.write("text.txt", "the river is on fire\n\nit was a cold night for the model\r\n".repeat(4));
    run(&scene, "out", "w8a8-dynamic", "");
    let task = "evaluation.tasks=[{kind='perplexity',data='text.txt',window=16}]";
    let evaluate = |cache: &[&str]| {
        let arguments = ["evaluate", "config.toml", "--model", "out/model", "--json", "--set", task];
        let output = scene.succeeds(arguments.iter().chain(cache));
        (stdout(&output), stderr(&output))
    };
    let files = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(scene.path("kept")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let cold = evaluate(&["--cache", "kept"]);
    assert_eq!(files().len(), 1);
    let bytes = std::fs::read(&files()[0]).unwrap();
    let plan =
        ["run", "config.toml", "--cache", "kept", "--out", "new", "--dry-run", "--json", "--set", task];
    let plan: Value = serde_json::from_slice(&scene.succeeds(plan).stdout).unwrap();
    assert_eq!(plan["log_probability_bytes"], bytes.len());
    assert_eq!(evaluate(&["--cache", "kept"]).0, cold.0);
    assert_eq!(evaluate(&["--no-cache"]).0, cold.0);
    std::fs::write(&files()[0], &bytes[..bytes.len() - 1]).unwrap();
    let (found, said) = evaluate(&["--cache", "kept"]);
    assert_eq!(found, cold.0);
    assert!(said.contains("the cached log-probabilities are not used"), "{said}");
    assert_eq!(std::fs::read(&files()[0]).unwrap(), bytes, "it is made anew");
}
