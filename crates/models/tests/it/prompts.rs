//! Prompts are prepended, and left out of the pooling, as sentence-transformers does it.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use zeropoint_models::{
    Model, ModelDirectory, ModelError, PackedBatch, PromptChoice, SourceRef, Task, TextRef,
};

use crate::copies::Copy;

/// Largest absolute difference to the reference, whose vectors are of length 1.
const TOLERANCE: f32 = 1e-5;

/// `reference.json`: `texts` without their prompts, `input_ids` with them.
#[derive(Deserialize)]
struct Reference {
    texts: Vec<String>,
    prompt_name: Vec<Option<String>>,
    input_ids: Vec<Vec<u32>>,
    pooled: Vec<Vec<f32>>,
}

fn open(name: &str) -> (ModelDirectory, Reference) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    let text = std::fs::read_to_string(path.join("reference.json")).expect("a reference");
    let directory = ModelDirectory::open(&SourceRef::Directory(path), Task::Auto).expect("the fixture opens");
    (directory, serde_json::from_str(&text).expect("a reference"))
}

fn choice(name: Option<&String>) -> PromptChoice {
    name.map_or(PromptChoice::ModelDefault, |name| PromptChoice::Named(name.clone()))
}

#[test]
fn prompted_vectors_are_those_of_sentence_transformers() {
    for name in ["bert-prompts", "bert-prompts-excluded"] {
        let (directory, reference) = open(name);
        let model = Model::load(&directory).unwrap();
        let tokenizer = directory.tokenizer(None).unwrap();
        let prompts: Vec<Option<String>> = reference
            .prompt_name
            .iter()
            .map(|name| directory.prompt(&choice(name.as_ref())).unwrap())
            .collect();
        let texts: Vec<TextRef<'_>> = reference
            .texts
            .iter()
            .zip(&prompts)
            .map(|(text, prompt)| TextRef { text, pair: None, prompt: prompt.as_deref() })
            .collect();
        let sequences = tokenizer.encode_all(&texts).unwrap();
        for (sequence, expected) in sequences.iter().zip(&reference.input_ids) {
            assert_eq!(&sequence.ids, expected, "{name}");
        }
        // [CLS] and five pieces of `query: `, [CLS] and eight of `passage: `.
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.prompt).collect();
        assert_eq!(lengths, [6, 9, 6, 9, 6, 6], "{name}");
        let outputs = model.forward(&PackedBatch::new(&sequences).unwrap()).unwrap();
        let mut worst = 0f32;
        for (found, expected) in outputs.samples().zip(&reference.pooled) {
            assert_eq!(found.len(), expected.len());
            worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        }
        assert!(worst <= TOLERANCE, "{name}: {worst:e}");
    }
}

/// The attention sees a prompt that the pooling leaves out, and the weights of the tokens behind it are those of their places
/// in the whole text: what each pooling gives is computed from the hidden states.
#[test]
fn a_prompt_that_is_left_out_of_the_pooling_still_counts() {
    const PROMPT: usize = 6;
    let copy = Copy::of("bert-prompts-excluded");
    let text = |prompt| TextRef { text: "the river", pair: None, prompt };
    let directory = copy.opened();
    let sequence = directory.tokenizer(None).unwrap().encode_text(text(Some("query: "))).unwrap();
    assert_eq!(sequence.prompt, PROMPT, "[CLS] and five pieces");
    let batch = PackedBatch::new(std::slice::from_ref(&sequence)).unwrap();
    let hidden = Model::load(&directory).unwrap().hidden_states(&batch).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(hidden.len(), sequence.len());
    let rows = &hidden[PROMPT..];
    assert!(rows.len() >= 3);

    // The sum of the rows, each with the weight of its place.
    let sum = |weight: fn(usize) -> f32| -> Vec<f32> {
        let column =
            |c: usize| rows.iter().enumerate().map(|(i, row)| weight(PROMPT + i) * row[c]).sum::<f32>();
        (0..32).map(column).collect()
    };
    let max = |c: usize| rows.iter().map(|row| row[c]).fold(f32::NEG_INFINITY, f32::max);
    // Normalize follows: a factor is of no consequence.
    let expected = [
        ("cls", rows[0].clone()),
        ("lasttoken", rows[rows.len() - 1].clone()),
        ("max", (0..32).map(max).collect()),
        ("mean", sum(|_| 1.0)),
        ("mean_sqrt_len_tokens", sum(|_| 1.0)),
        ("weightedmean", sum(|place| (place + 1) as f32)),
    ];
    for (mode, expected) in expected {
        let pooling = json!({ "embedding_dimension": 32, "pooling_mode": mode, "include_prompt": false });
        copy.write("1_Pooling/config.json", &pooling.to_string());
        let model = Model::load(&copy.opened()).unwrap();
        let length = expected.iter().map(|v| v * v).sum::<f32>().sqrt();
        let found = model.forward(&batch).unwrap().values;
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected / length).abs() <= TOLERANCE,
                "{mode}: {found} and {}",
                expected / length
            );
        }
    }

    let vector = |prompt| {
        let sequence = directory.tokenizer(None).unwrap().encode_text(text(prompt)).unwrap();
        Model::load(&directory).unwrap().forward(&PackedBatch::new(&[sequence]).unwrap()).unwrap().values
    };
    assert_eq!(vector(Some("")), vector(None), "an empty prompt is none");
}

#[test]
fn a_choice_is_resolved_by_name_text_or_default() {
    let (directory, _) = open("bert-prompts");
    let resolve = |choice: PromptChoice| directory.prompt(&choice);
    let named = |name: &str| PromptChoice::Named(name.to_owned());
    let text = |text: &str| PromptChoice::Text(text.to_owned());
    assert_eq!(resolve(PromptChoice::ModelDefault).unwrap().as_deref(), Some("query: "));
    assert_eq!(resolve(named("document")).unwrap().as_deref(), Some("passage: "));
    assert_eq!(resolve(text("Find: ")).unwrap().as_deref(), Some("Find: "));
    assert_eq!(resolve(text("")).unwrap(), None);
    let error = resolve(named("passage")).unwrap_err();
    assert!(matches!(error, ModelError::Prompt { .. }));
    let message = error.to_string();
    assert!(
        message.ends_with(
            "config_sentence_transformers.json: the model has no prompt `passage`: there are `document` (\"passage: \"), \
             `query` (\"query: \")"
        ),
        "{message}"
    );
}

#[test]
fn models_without_prompts_take_a_text_only() {
    let encoder = open_bare("bert-mean");
    assert_eq!(encoder.prompt(&PromptChoice::ModelDefault).unwrap(), None);
    let error = encoder.prompt(&PromptChoice::Named("query".to_owned())).unwrap_err().to_string();
    assert!(
        error.ends_with("the model has no prompt `query`: it names none; give the text itself instead"),
        "{error}"
    );
    let classifier = open_bare("bert-multilabel");
    assert_eq!(classifier.prompt(&PromptChoice::ModelDefault).unwrap(), None);
    let error = classifier.prompt(&PromptChoice::Text("query: ".to_owned())).unwrap_err().to_string();
    assert_eq!(
        error,
        "a prompt is given, but BertForSequenceClassification as loaded gives no sentence vectors: prompts are for \
         sentence encoders"
    );
}

fn open_bare(name: &str) -> ModelDirectory {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    ModelDirectory::open(&SourceRef::Directory(path), Task::Auto).expect("the fixture opens")
}
