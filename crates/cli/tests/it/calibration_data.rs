//! What calibration makes of texts, documents and conversations for a decoder.

use serde_json::Value;

use crate::scene::{Scene, stderr, stdout};

/// A model that takes 48 tokens, and a config for it.
fn scene(calibration: &str) -> Scene {
    let scene = Scene::new();
    scene.copy_fixture("llama-causal", "model");
    let config = format!("model.source = 'model'\nevaluation.tasks = []\n[calibration]\n{calibration}\n");
    scene.write("config.toml", config);
    scene
}

fn plan(scene: &Scene) -> (u64, u64) {
    let planned = scene.succeeds(["run", "config.toml", "--dry-run", "--json"]);
    let plan: Value = serde_json::from_str(&stdout(&planned)).expect("JSON");
    let number = |key: &str| plan[key].as_u64().expect("a number");
    (number("samples"), number("tokens"))
}

/// Words of one token each; the end of a line has none in this vocabulary.
const LINE: &str = " river is river is";

#[test]
fn a_long_text_is_several_samples_with_every_token() {
    let scene = scene("data = ['texts.txt']");
    scene.write("texts.txt", format!("{}\n river\n", LINE.repeat(75)));
    // 300 tokens and the one before them are six times 48 and a rest.
    assert_eq!(plan(&scene), (7 + 1, 301 + 2));
}

#[test]
fn a_document_is_one_text_and_packed_texts_have_one_length() {
    let lines = format!("{LINE}\n").repeat(75);
    for (data, sequences, expected) in [
        ("'book.txt'", "chunked", (75, 75 * 5)),
        ("{ path = 'book.txt', format = 'document' }", "chunked", (10, 301)),
        ("{ path = 'book.txt', format = 'document' }", "packed", (9, 9 * 32)),
        // 300 tokens and 74 between the lines.
        ("'book.txt'", "packed", (11, 11 * 32)),
        ("{ path = 'book.txt', format = 'document' }", "truncated", (1, 32)),
    ] {
        let scene = scene(&format!("data = [{data}]\nmax_length = 32\nsequences = '{sequences}'"));
        scene.write("book.txt", &lines);
        assert_eq!(plan(&scene), expected, "{data} {sequences}");
    }
}

#[test]
fn conversations_go_through_the_chat_template() {
    let scene = scene("data = ['chat.jsonl']");
    let conversation = |role: &str| {
        format!(
            r#"{{"messages": [{{"role": "{role}", "content": " river"}}, {{"role": "user", "content": " is"}}]}}"#
        )
    };
    scene.write("chat.jsonl", format!("{{\"text\": \" is\"}}\n{}\n", conversation("user")));
    let refused = scene.ends_with(2, ["run", "config.toml", "--dry-run"]);
    let said = stderr(&refused);
    assert!(said.contains("chat.jsonl:2: model: the model has no chat template"), "{said}");
    assert!(said.contains("data = ['chat.jsonl']"), "{said}");

    scene.write(
        "model/chat_template.jinja",
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'nobody' %}{{ raise_exception('No such role.') }}\
         {% endif %}{{ message.content }}{% endfor %}{% if add_generation_prompt %} is is is{% endif %}",
    );
    // Both with the token that begins a text, once.
    assert_eq!(plan(&scene), (2, 2 + 3));
    scene.write("chat.jsonl", format!("{}\n", conversation("nobody")));
    let said = stderr(&scene.ends_with(1, ["run", "config.toml", "--dry-run"]));
    assert!(
        said.contains("chat.jsonl:1: model/chat_template.jinja: the chat template refuses the conversation: No such role."),
        "{said}"
    );
}

#[test]
fn a_run_on_conversations_measures_fidelity_on_them_and_can_be_repeated() {
    let scene = scene("data = [{ path = 'chat.jsonl', messages = 'chat' }]\nsamples = 3");
    let row = |i: usize| {
        format!("{{\"chat\": [{{\"role\": \"user\", \"content\": \"{}\"}}]}}\n", "the river ".repeat(i))
    };
    scene.write("chat.jsonl", (1..9).map(row).collect::<String>());
    scene.write("model/chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}");
    let config = scene.text("config.toml").replace("evaluation.tasks = []\n", "");
    scene.write("config.toml", config);
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out"]);
    scene.succeeds(["run", "out/config.toml", "--no-cache", "--out", "again"]);
    let statistics =
        |run: &str| std::fs::read(scene.path(run).join("statistics.safetensors")).expect("statistics");
    assert_eq!(statistics("out"), statistics("again"));
    let report = scene.json("out/report.json");
    assert_eq!(report["calibration"]["samples"], 3);
    let written = scene.text("out/config.toml");
    assert!(written.contains("sequences = \"chunked\""), "{written}");
}

#[test]
fn an_encoder_takes_texts_as_they_are() {
    let scene = Scene::new();
    scene.write("config.toml", "model.source = 'embedded'\n\n[calibration]\nsequences = 'packed'\n");
    let said = stderr(&scene.ends_with(2, ["run", "config.toml", "--dry-run"]));
    assert!(
        said.contains("`calibration.sequences` is \"packed\", which is for decoder language models"),
        "{said}"
    );
    assert!(said.contains("sequences = 'packed'"), "{said}");
}

/// A hundred megabytes as one text, and as a text a line.
#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn a_hundred_megabytes_are_read_in_little_memory() {
    let models = std::env::var("ZEROPOINT_MODELS").expect("ZEROPOINT_MODELS is set");
    let model = std::path::Path::new(&models).join("smollm2");
    let scene = Scene::new();
    let line = "The zero point is the integer that stands for real zero exactly, and the scale is the size of a step.\n";
    scene.write("large.txt", line.repeat((100 << 20) / line.len()));
    for data in ["'large.txt'", "{ path = 'large.txt', format = 'document' }"] {
        let config = format!(
            "model.source = '{}'\nevaluation.tasks = []\n[calibration]\ndata = [{data}]\nmax_length = 512\nsamples = 64\n",
            model.display()
        );
        scene.write("config.toml", config);
        let (samples, _) = plan(&scene);
        assert_eq!(samples, 64);
    }
}
