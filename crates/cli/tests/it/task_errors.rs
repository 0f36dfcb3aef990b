//! What mistakes in tasks, prompts and the texts for them are answered with: snapshots, as in `errors.rs`.
#![cfg(unix)] // the snapshots hold what the system says about files

use serde_json::json;

use crate::scene::answers::Answers;
use crate::scene::fixture;

#[test]
fn tasks_and_prompts() {
    let mut answers = Answers::new();
    let fixture = |name: &str| fixture(name).to_string_lossy().into_owned();
    answers.scene.write("texts.txt", "rain is coming\n");
    answers.scene.write("pairs.jsonl", "{\"text_a\": \"a\", \"text_b\": \"b\", \"score\": 1}\n");
    answers.scene.write("words.jsonl", "{\"tokens\": [\"a\", \"b\"], \"labels\": [\"awful\", \"B-PER\"]}\n");
    answers.scene.write("uneven.jsonl", "{\"tokens\": [\"a\", \"b\"], \"labels\": [\"awful\"]}\n");
    let long = "why is it so cold ".repeat(20);
    let question = json!({"question": long, "context": "it is ".repeat(30), "answers": []});
    answers.scene.write("questions.jsonl", question.to_string());
    answers.scene.write("sets.jsonl", "{\"text\": \"a\", \"label\": [\"awful\", \"grand\"]}\n");
    answers.scene.write("named.jsonl", "{\"text\": \"a\", \"label\": \"high\"}\n");
    answers.scene.write("ranking.jsonl", "{\"query\": \"q\", \"positives\": [], \"negatives\": [\"n\"]}\n");

    for (code, mistake, model, task) in [
        (2, "sts of a token classifier", "bert-tokens", "{kind='sts',data='pairs.jsonl'}"),
        (
            2,
            "token classification of an encoder",
            "bert-mean",
            "{kind='token-classification',data='words.jsonl'}",
        ),
        (
            2,
            "question answering of a classifier",
            "bert-multilabel",
            "{kind='question-answering',data='questions.jsonl'}",
        ),
        (2, "masked-lm of an encoder", "bert-mean", "{kind='masked-lm',data='texts.txt'}"),
        (2, "reranking of a span model", "bert-qa", "{kind='reranking',data='ranking.jsonl'}"),
        (
            1,
            "a tag that the model does not have",
            "bert-tokens",
            "{kind='token-classification',data='words.jsonl'}",
        ),
        (1, "words without their tags", "bert-tokens", "{kind='token-classification',data='uneven.jsonl'}"),
        (
            1,
            "a question without room for its context",
            "bert-qa",
            "{kind='question-answering',data='questions.jsonl'}",
        ),
        (
            1,
            "a set with a label that the model does not have",
            "bert-multilabel",
            "{kind='classification',data='sets.jsonl'}",
        ),
        (
            1,
            "a set of labels for a model of one",
            "roberta-classifier",
            "{kind='classification',data='sets.jsonl'}",
        ),
        (
            1,
            "a gold answer that is no number",
            "bert-regression",
            "{kind='classification',data='named.jsonl'}",
        ),
        (1, "a ranking without a positive", "bert-mean", "{kind='reranking',data='ranking.jsonl'}"),
        (
            2,
            "a prompt that the model does not have",
            "bert-prompts",
            "{kind='sts',data={path='pairs.jsonl',prompt='question'}}",
        ),
        (
            2,
            "a prompt for a model without any",
            "bert-mean",
            "{kind='sts',data={path='pairs.jsonl',prompt='query'}}",
        ),
        (
            2,
            "a prompt for a classifier",
            "bert-multilabel",
            "{kind='fidelity',data={path='texts.txt',prompt_text='query: '}}",
        ),
    ] {
        let model = format!("model.source={}", fixture(model));
        let task = format!("evaluation.tasks=[{task}]");
        let arguments = ["run", "config.toml", "--no-cache", "--out", "out", "--set", &model, "--set", &task];
        answers.refused(code, mistake, &arguments);
    }
    let model = format!("model.source={}", fixture("bert-tokens"));
    let gate = "evaluation={tasks=[{kind='token-classification',data='plain.jsonl'}],\
                gate=[{task='token-classification',metric='entity_f1',max_drop=0.1}]}";
    answers.scene.write("plain.jsonl", "{\"tokens\": [\"a\"], \"labels\": [\"awful\"]}\n");
    let arguments = ["run", "config.toml", "--no-cache", "--out", "out", "--set", &model, "--set", gate];
    answers.refused(2, "a gate on entities where labels are of none", &arguments);

    answers.scene.copy_fixture("bert-mlm", "maskless");
    for file in ["tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"] {
        let text = answers.scene.text(&format!("maskless/{file}"));
        let text = text.replace("\"mask_token\"", "\"no_token\"").replace("[MASK]", "[HOLE]");
        answers.scene.write(&format!("maskless/{file}"), text);
    }
    let arguments =
        ["run", "config.toml", "--no-cache", "--out", "out", "--set", "model.source=maskless", "--set"];
    let task = "evaluation.tasks=[{kind='masked-lm',data='texts.txt'}]";
    answers.refused(1, "a tokenizer without a mask token", &[&arguments[..], &[task]].concat());

    for (mistake, task) in [
        ("rows with lists from a csv file", "{kind='reranking',data='rows.csv'}"),
        ("columns of rows with fixed names", "{kind='reranking',data={path='rows.jsonl',text='query'}}"),
        (
            "a prompt by name and as text",
            "{kind='fidelity',data={path='a.txt',prompt='q',prompt_text='q: '}}",
        ),
        ("no prompt by an empty name", "{kind='fidelity',data={path='a.txt',prompt=''}}"),
        ("question answering without data", "{kind='question-answering'}"),
    ] {
        answers.set(2, mistake, &format!("evaluation.tasks=[{task}]"));
    }
    answers.set(
        2,
        "a metric of another task",
        "evaluation={tasks=[{kind='masked-lm'}],gate=[{task='masked-lm',metric='f1',max_drop=0.1}]}",
    );
    answers.refused(
        2,
        "encoding with a prompt by name and as text",
        &["encode", "model", "--data", "texts.txt", "--prompt", "query", "--prompt-text", "query: "],
    );
    answers.compare("task_errors__tasks_and_prompts");
}

#[test]
fn texts_that_a_head_cannot_take() {
    let mut answers = Answers::new();
    for (model, rows) in [
        ("bert-qa", "{\"text\": \"alone\"}\n"),
        ("bert-mlm", "{\"text\": \"the [MASK] river\"}\n{\"text\": \"no mask\"}\n"),
        ("bert-prompts", "{\"text_a\": \"a\", \"text_b\": \"b\"}\n"),
    ] {
        let source = format!("model.source={}", fixture(model).display());
        let no_tasks = "evaluation={tasks=[],gate=[]}";
        let out = format!("{model}-int8");
        answers.scene.succeeds([
            "run",
            "config.toml",
            "--no-cache",
            "--out",
            &out,
            "--set",
            &source,
            "--set",
            no_tasks,
        ]);
        answers.scene.write(&format!("{model}.jsonl"), rows);
        let (model_dir, data) = (format!("{out}/model"), format!("{model}.jsonl"));
        answers.refused(
            1,
            &format!("a text that {model} cannot take"),
            &["encode", &model_dir, "--data", &data, "--out", "rows.jsonl"],
        );
    }
    answers.refused(
        2,
        "a prompt that the quantised model does not have",
        &["encode", "bert-prompts-int8/model", "--data", "bert-qa.jsonl", "--prompt", "question"],
    );
    answers.compare("task_errors__texts_that_a_head_cannot_take");
}
