//! `zeropoint generate`: texts that decoders continue.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::scene::{Scene, stderr, stdout};

const PROMPT: [&str; 2] = ["--prompt", "the river is"];

fn json_of(scene: &Scene, model: &str, options: &[&str]) -> Value {
    let arguments = [&["generate", model, "--json"], &PROMPT[..], options].concat();
    serde_json::from_str(&stdout(&scene.succeeds(arguments))).expect("JSON")
}

/// `generate` of `transformers` in float32, without sampling.
#[test]
fn the_most_probable_tokens_are_those_of_transformers() {
    let scene = Scene::new();
    for (fixture, tokens) in [
        (
            "llama-causal",
            [34, 31, 9, 92, 59, 18, 31, 9, 29, 56, 83, 84, 41, 56, 56, 56, 56, 56, 87, 18, 59, 56, 56, 56],
        ),
        (
            "gemma3-causal",
            [
                92, 85, 85, 93, 129, 119, 48, 48, 48, 48, 48, 48, 48, 92, 92, 119, 119, 119, 119, 119, 119,
                119, 119, 119,
            ],
        ),
        (
            "neox-causal",
            [32, 39, 70, 85, 59, 23, 70, 23, 59, 23, 59, 23, 59, 23, 59, 23, 59, 23, 59, 23, 59, 23, 59, 23],
        ),
    ] {
        scene.copy_fixture(fixture, fixture);
        let found = json_of(&scene, fixture, &["--max-tokens", "24", "--ignore-stop"]);
        assert_eq!(found["prompt_tokens"], json!([1, 104, 71, 129, 117]), "{fixture}");
        assert_eq!(found["tokens"], json!(tokens), "{fixture}");
        assert_eq!(found["ending"], "max-tokens");
    }
}

#[test]
fn a_text_ends_where_the_model_or_its_files_say() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    let without = json_of(&scene, "model", &["--max-tokens", "500"]);
    assert_eq!(without["ending"], "context-full");
    // 64 tokens are read, and the last of them gives one more.
    assert_eq!(without["tokens"].as_array().map(Vec::len), Some(64 - 5 + 1));
    // The second token of the continuation, as one of several.
    scene.write("model/generation_config.json", r#"{ "eos_token_id": [2, 31] }"#);
    let found = json_of(&scene, "model", &[]);
    assert_eq!((&found["tokens"], &found["ending"]), (&json!([34]), &json!("stop-token")));
    let said = scene.succeeds(["generate", "model"].iter().chain(&PROMPT));
    assert_eq!(stdout(&said), "@\n", "text as it comes");
    assert!(stderr(&said).contains("5 tokens read in "), "{}", stderr(&said));
    assert!(stderr(&said).contains("; 1 new, ended by stop-token"), "{}", stderr(&said));
    scene.write("model/generation_config.json", r#"{ "eos_token_id": "end" }"#);
    let wrong = scene.ends_with(1, ["generate", "model"].iter().chain(&PROMPT));
    assert!(stderr(&wrong).contains("`eos_token_id` is \"end\"; a token id or a list"), "{}", stderr(&wrong));
}

#[test]
fn draws_depend_on_the_seed_and_on_nothing_else() {
    let scene = Scene::new();
    scene.copy_fixture("qwen3-causal", "source");
    scene.write("config.toml", "version = 1\nevaluation.tasks = []\n[model]\nsource = 'source'\n");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out"]);
    let drawn = |options: &[&str]| {
        let sampling = ["--temperature", "1.2", "--top-p", "0.9", "--max-tokens", "20", "--ignore-stop"];
        let options: Vec<&str> = sampling.iter().chain(options).copied().collect();
        json_of(&scene, "out/model", &options)["tokens"].clone()
    };
    let first = drawn(&["--seed", "7"]);
    for threads in ["1", "2", "3"] {
        assert_eq!(drawn(&["--seed", "7", "--threads", threads]), first, "{threads} threads");
    }
    assert_ne!(drawn(&["--seed", "8"]), first);
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    scene.copy_fixture("bert-mean", "encoder");
    let says = |code: i32, model: &str, options: &[&str], says: &str| {
        let output = scene.ends_with(code, ["generate", model].iter().chain(options));
        assert!(stderr(&output).contains(says), "{} does not say {says}", stderr(&output));
        assert_eq!(stdout(&output), "");
    };
    says(1, "encoder", &PROMPT, "BertModel does not continue texts");
    says(2, "nothing", &PROMPT, "nothing: there is no such model directory");
    let long = "night ".repeat(100);
    says(1, "model", &["--prompt", &long], "tokens; 1 to 64 are allowed");
    let with = |options: [&'static str; 2]| [PROMPT, options].concat();
    says(
        2,
        "model",
        &["--prompt", "the river is", "--temperature", "1", "--top-p", "0"],
        "top-p is 0; a number above 0 and at most 1 is expected",
    );
    says(2, "model", &with(["--top-p", "0.5"]), "--temperature <T>");
    says(2, "model", &with(["--seed", "5"]), "--temperature <T>");
    says(2, "model", &with(["--prompt-file", "text.txt"]), "cannot be used with");
    says(2, "model", &["--max-tokens", "3"], "--prompt <TEXT>");
    says(1, "model", &["--prompt-file", "nothing.txt"], "nothing.txt");
    scene.write("latin.txt", [b'a', 0xe9]);
    says(2, "model", &["--prompt-file", "latin.txt"], "the text is not UTF-8");
    says(2, "model", &with(["--temperature", "-1"]), "the temperature is -1; a number from 0 to 1000");
}

#[test]
fn the_logits_of_a_prompt_can_be_written() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    scene
        .succeeds(["generate", "model", "--max-tokens", "1", "--logits", "logits.npy"].iter().chain(&PROMPT));
    let bytes = std::fs::read(scene.path("logits.npy")).expect("it is written");
    let header = String::from_utf8_lossy(&bytes[..128]).into_owned();
    assert!(header.contains("'shape': (5, 140)"), "{header}");
    let values: Vec<f32> = bytes[bytes.len() - 5 * 140 * 4..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect();
    let last = &values[4 * 140..];
    let best = (0..140).max_by(|a, b| last[*a].total_cmp(&last[*b]));
    assert_eq!(best, Some(34), "the first new token");
    let inside =
        scene.ends_with(2, ["generate", "model", "--logits", "model/config.json"].iter().chain(&PROMPT));
    assert!(stderr(&inside).contains("model"), "{}", stderr(&inside));
}

#[test]
fn a_conversation_goes_through_the_chat_template() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    let says = |code: i32, options: &[&str], says: &str| {
        let output = scene.ends_with(code, ["generate", "model"].iter().chain(&PROMPT).chain(options));
        assert!(stderr(&output).contains(says), "{} does not say {says}", stderr(&output));
        assert_eq!(stdout(&output), "");
    };
    says(2, &["--chat"], "model: the model has no chat template");
    says(2, &["--system", "night"], "--chat");
    scene.write(
        "model/chat_template.jinja",
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}the {% endif %}{{ message.content }} \
         {% endfor %}{% if add_generation_prompt %}night{% endif %}",
    );
    let ids = |options: &[&str]| json_of(&scene, "model", options)["prompt_tokens"].clone();
    let text = |text: &str| {
        let output = scene.succeeds(["generate", "model", "--json", "--prompt", text]);
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON")["prompt_tokens"].clone()
    };
    // The template writes the token that begins a text, which the tokenizer puts before a plain prompt.
    assert_eq!(ids(&["--chat"]), text("the river is night"));
    assert_eq!(ids(&["--chat", "--system", "moon"]), text("the moon the river is night"));
    scene.write("model/chat_template.jinja", "{{ raise_exception('Not today.') }}");
    says(1, &["--chat"], "model/chat_template.jinja: the chat template refuses the conversation: Not today.");
}

/// Rendered by `transformers`.
#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn smollm2_answers_a_question() {
    let models = std::env::var("ZEROPOINT_MODELS").expect("ZEROPOINT_MODELS is set");
    let model = std::path::Path::new(&models).join("smollm2");
    let scene = Scene::new();
    let model = model.to_str().expect("a path in UTF-8");
    let asked = [
        "generate",
        model,
        "--json",
        "--chat",
        "--max-tokens",
        "1",
        "--prompt",
        "What is the capital of France?",
    ];
    let found: Value = serde_json::from_str(&stdout(&scene.succeeds(asked))).expect("JSON");
    assert_eq!(
        found["prompt_tokens"],
        json!([
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
            19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531,
            198
        ])
    );
}

#[test]
fn a_prompt_may_come_from_a_file_or_from_standard_input() {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    scene.write("prompt.txt", "the river is\r\n");
    let ids = |arguments: &[&str]| {
        let output = scene.succeeds(["generate", "model", "--json"].iter().chain(arguments));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["prompt_tokens"].clone()
    };
    let expected = ids(&PROMPT);
    assert_eq!(ids(&["--prompt-file", "prompt.txt"]), expected);
    let mut command = scene.zeropoint(["generate", "model", "--json", "--prompt-file", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("it is piped").write_all(b"the river is").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["prompt_tokens"], expected);
}
