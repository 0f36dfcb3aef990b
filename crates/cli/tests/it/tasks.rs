//! Every task on a model of its kind: what the report says of the quantised model is what its own outputs, as `encode`
//! gives them, come to.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::scene::{Scene, data, json_lines, stderr, stdout};

const SCHEMES: [&str; 2] = ["w8a8-dynamic", "w8a8-static"];

/// A scene with a config for a model, calibrated on a few of the repository's texts.
pub(crate) fn scene_of(model: &str) -> Scene {
    let scene = Scene::new();
    scene.copy_fixture(model, "source");
    let config = format!(
        "version = 1\nmodel.source = 'source'\n[calibration]\ndata = ['{}']\nsamples = 8\n",
        data("topics-train.jsonl").display()
    );
    scene.write("config.toml", config);
    scene
}

/// Quantises the scene's model into `out` and measures it on one task.
pub(crate) fn run(scene: &Scene, out: &str, scheme: &str, task: &str) -> Value {
    let sets = [format!("quantization.scheme={scheme}"), format!("evaluation.tasks=[{task}]")];
    let arguments =
        ["run", "config.toml", "--no-cache", "--force", "--out", out, "--set", &sets[0], "--set", &sets[1]];
    scene.succeeds(arguments);
    scene.json(&format!("{out}/report.json"))
}

fn encode(scene: &Scene, out: &str, arguments: &[&str]) -> Vec<Value> {
    let model = format!("{out}/model");
    json_lines(&stdout(&scene.succeeds(["encode", &model, "--data"].iter().chain(arguments))))
}

pub(crate) fn write_lines(scene: &Scene, name: &str, rows: &[Value]) {
    scene.write(name, rows.iter().map(|row| row.to_string() + "\n").collect::<String>());
}

/// The metrics without the fingerprint of the data, which may hold the same gold in another form.
fn measured(report: &Value) -> Vec<Value> {
    let mut metrics = report["metrics"].as_array().expect("a list").clone();
    for metric in &mut metrics {
        metric.as_object_mut().expect("an object").remove("data").expect("it is there");
    }
    metrics
}

/// A metric's value for the quantised model.
#[track_caller]
pub(crate) fn quantized(report: &Value, name: &str) -> f64 {
    let metric = report["metrics"].as_array().expect("a list").iter().find(|metric| metric["name"] == name);
    let metric = metric.unwrap_or_else(|| panic!("no {name} in {}", report["metrics"]));
    let other = metric["original"].as_f64().expect("the original is measured as well");
    assert!(other.is_finite());
    metric["quantized"].as_f64().expect("a number")
}

#[track_caller]
pub(crate) fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6, "{found}, and not {expected}");
}

pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn vector(row: &Value) -> Vec<f64> {
    row["embedding"].as_array().expect("a list").iter().map(number).collect()
}

/// Of vectors of length 1.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let (mx, my) = (mean(x), mean(y));
    let sum = |of: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(a, b)| of(a - mx, b - my)).sum::<f64>();
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

const PAIRS: [(&str, &str, f64); 4] = [
    ("what is on fire", "the river is on fire", 4.5),
    ("what is on fire", "it was a cold night for the model", 0.5),
    ("models", "the model can be smaller", 3.0),
    ("the river", "there was a night when the river said no", 2.0),
];

#[test]
fn sts_of_an_encoder_and_of_a_cross_encoder() {
    for model in ["roberta-mean", "bert-cross-encoder", "xlm-roberta-cross-encoder"] {
        for scheme in SCHEMES {
            let scene = scene_of(model);
            let pair = |(a, b, score): &(&str, &str, f64)| json!({"text_a": a, "text_b": b, "score": score});
            write_lines(&scene, "pairs.jsonl", &PAIRS.iter().map(pair).collect::<Vec<_>>());
            let report = run(&scene, "out", scheme, "{kind='sts',data='pairs.jsonl'}");
            let predicted: Vec<f64> = if model == "roberta-mean" {
                let texts = PAIRS.iter().flat_map(|(a, b, _)| [json!({"text": a}), json!({"text": b})]);
                write_lines(&scene, "texts.jsonl", &texts.collect::<Vec<_>>());
                let rows = encode(&scene, "out", &["texts.jsonl"]);
                rows.chunks(2).map(|pair| cosine(&vector(&pair[0]), &vector(&pair[1]))).collect()
            } else {
                encode(&scene, "out", &["pairs.jsonl"]).iter().map(|row| number(&row["score"])).collect()
            };
            let gold: Vec<f64> = PAIRS.iter().map(|(.., score)| *score).collect();
            assert_near(quantized(&report, "pearson"), pearson(&gold, &predicted));
        }
    }
}

#[test]
fn the_score_of_a_cross_encoder_is_behind_its_activation() {
    // One says Identity in its config; the other says nothing, which is a sigmoid.
    for (model, sigmoid) in [("bert-cross-encoder", false), ("xlm-roberta-cross-encoder", true)] {
        let scene = scene_of(model);
        run(&scene, "out", "w8a8-dynamic", "");
        write_lines(&scene, "pairs.jsonl", &[json!({"text_a": "models", "text_b": "the model"})]);
        let row = &encode(&scene, "out", &["pairs.jsonl"])[0];
        let logit = number(&row["logits"][0]);
        let expected = if sigmoid { 1.0 / (1.0 + (-logit).exp()) } else { logit };
        assert_near(number(&row["score"]), expected);
        assert_eq!((&row["text"], &row["text_b"]), (&json!("models"), &json!("the model")));
    }
}

#[test]
fn regression_is_measured_by_its_error() {
    for scheme in SCHEMES {
        let scene = scene_of("bert-regression");
        let texts = ["the river is on fire", "a cold night", "the model was rounded"];
        let rows: Vec<Value> =
            texts.iter().zip([0.5, 1.0, -2.0]).map(|(t, s)| json!({"text": t, "score": s})).collect();
        write_lines(&scene, "gold.jsonl", &rows);
        let report = run(&scene, "out", scheme, "{kind='classification',data='gold.jsonl'}");
        let encoded = encode(&scene, "out", &["gold.jsonl"]);
        let errors: Vec<f64> = encoded
            .iter()
            .zip(&rows)
            .map(|(found, gold)| {
                assert_eq!(found["score"], found["logits"][0], "the number itself");
                (number(&found["score"]) - number(&gold["score"])).abs()
            })
            .collect();
        assert_near(quantized(&report, "mean_absolute_error"), mean(&errors));
        let metric = report["metrics"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&metric["name"], &metric["higher_is_better"]),
            (&json!("mean_absolute_error"), &json!(false))
        );
        // Gold in a column of labels is as good.
        let lines: Vec<String> =
            texts.iter().zip(["0.5", "1", "-2"]).map(|(t, s)| format!("{t},{s}")).collect();
        scene.write("gold.csv", lines.join("\n"));
        let task = "{kind='classification',data={path='gold.csv',text=0,label=1}}";
        assert_eq!(measured(&run(&scene, "csv", scheme, task)), measured(&report));
    }
}

#[test]
fn several_labels_are_a_list_or_joined_by_bars() {
    for scheme in SCHEMES {
        let scene = scene_of("bert-multilabel");
        let texts = ["it was all for the use", "what an awful slow machine", "wonderful", "the river"];
        write_lines(&scene, "texts.jsonl", &texts.map(|text| json!({"text": text})));
        run(&scene, "out", scheme, "");
        let encoded = encode(&scene, "out", &["texts.jsonl"]);
        // Gold is what the model says, but for the last text, which gets one label too many or a wrong one.
        let mut gold: Vec<Vec<String>> = encoded
            .iter()
            .map(|row| {
                row["labels"].as_array().unwrap().iter().map(|l| l.as_str().unwrap().to_owned()).collect()
            })
            .collect();
        assert!(gold.iter().all(|labels| !labels.is_empty()), "{gold:?}");
        let said: usize = gold.iter().map(Vec::len).sum();
        let missing = ["awful", "bad", "fair", "good", "wonderful"]
            .iter()
            .find(|l| !gold[3].contains(&(**l).to_owned()));
        gold[3].push((*missing.expect("a label is off")).to_owned());
        let rows: Vec<Value> = texts.iter().zip(&gold).map(|(t, l)| json!({"text": t, "label": l})).collect();
        write_lines(&scene, "gold.jsonl", &rows);
        let report = run(&scene, "out", scheme, "{kind='classification',data='gold.jsonl'}");
        assert_near(quantized(&report, "exact_match"), 0.75);
        assert_near(quantized(&report, "micro_f1"), 2.0 * said as f64 / (2 * said + 1) as f64);

        let lines: Vec<String> =
            texts.iter().zip(&gold).map(|(t, l)| format!("{t},{}", l.join(" | "))).collect();
        scene.write("gold.csv", format!("text,label\n{}", lines.join("\n")));
        let joined = run(&scene, "csv", scheme, "{kind='classification',data='gold.csv'}");
        assert_eq!(measured(&joined), measured(&report));
    }
}

/// The fixture's labels replaced by those of entities.
fn with_entity_labels(scene: &Scene) {
    let text = scene.text("source/config.json");
    let names =
        [("awful", "O"), ("bad", "B-PER"), ("fair", "I-PER"), ("good", "B-LOC"), ("wonderful", "I-LOC")];
    let text = names
        .iter()
        .fold(text, |text, (from, to)| text.replace(&format!("\"{from}\""), &format!("\"{to}\"")));
    scene.write("source/config.json", text);
}

#[test]
fn words_get_the_label_of_their_first_token() {
    for model in ["roberta-tokens", "bert-tokens", "modernbert-tokens"] {
        for scheme in SCHEMES {
            let scene = scene_of(model);
            with_entity_labels(&scene);
            // The second sentence is longer than the model takes: it goes in parts.
            let long = "the model was rounded to the nearest integer and ".repeat(12);
            let sentences: Vec<Vec<&str>> =
                ["it was all for Zürich", long.trim()].iter().map(|s| s.split(' ').collect()).collect();
            let tags = |words: &[&str]| -> Vec<&str> {
                words.iter().enumerate().map(|(i, _)| ["O", "B-PER", "I-PER", "B-LOC"][i % 4]).collect()
            };
            let rows: Vec<Value> =
                sentences.iter().map(|words| json!({"tokens": words, "labels": tags(words)})).collect();
            write_lines(&scene, "words.jsonl", &rows);
            let report = run(&scene, "out", scheme, "{kind='token-classification',data='words.jsonl'}");
            write_lines(
                &scene,
                "texts.jsonl",
                &sentences.iter().map(|w| json!({"text": w.join(" ")})).collect::<Vec<_>>(),
            );
            let (mut right, mut all) = (0, 0);
            for (words, row) in sentences.iter().zip(encode(&scene, "out", &["texts.jsonl"])) {
                let tokens = row["tokens"].as_array().expect("a list");
                let mut start = 0;
                for (word, tag) in words.iter().zip(tags(words)) {
                    let end = start + word.chars().count();
                    // A token may begin with the space before its word, or be no more than that.
                    let first = tokens.iter().find(|token| number(&token["start"]) as usize + 1 >= start);
                    let first = first.expect("a token");
                    assert!(number(&first["end"]) as usize <= end, "{word}: {first}");
                    right += usize::from(first["label"] == tag);
                    all += 1;
                    start = end + 1;
                }
            }
            assert_near(quantized(&report, "accuracy"), right as f64 / all as f64);
            assert!((0.0..=1.0).contains(&quantized(&report, "entity_f1")), "{model}");
        }
    }
}

#[test]
fn entities_that_are_all_as_predicted_have_an_f1_of_one() {
    let scene = scene_of("bert-tokens");
    with_entity_labels(&scene);
    run(&scene, "out", "w8a8-dynamic", "");
    let words = ["the", "river", "was", "on", "fire", "and", "the", "night", "was", "cold"];
    write_lines(&scene, "texts.jsonl", &[json!({"text": words.join(" ")})]);
    let row = &encode(&scene, "out", &["texts.jsonl"])[0];
    let tokens = row["tokens"].as_array().expect("a list");
    let mut start = 0;
    let tags: Vec<&Value> = words
        .iter()
        .map(|word| {
            let first = tokens.iter().find(|token| number(&token["start"]) as usize == start);
            start += word.len() + 1;
            &first.expect("a word begins with a token")["label"]
        })
        .collect();
    assert!(tags.iter().any(|tag| **tag != "O"), "{tags:?}");
    write_lines(&scene, "words.jsonl", &[json!({"tokens": words, "tags": tags})]);
    let report = run(&scene, "out", "w8a8-dynamic", "{kind='token-classification',data='words.jsonl'}");
    assert_eq!((quantized(&report, "accuracy"), quantized(&report, "entity_f1")), (1.0, 1.0));
}

#[test]
fn answers_are_spans_of_the_context() {
    for model in ["roberta-qa", "bert-qa", "distilbert-qa"] {
        for scheme in SCHEMES {
            let scene = scene_of(model);
            run(&scene, "out", scheme, "");
            // The last context goes in several windows.
            let long = "the night was cold and the river was on fire, Zürich said; ".repeat(8);
            let contexts = [
                "the night was cold and the river was on fire",
                "he said that the model was not wrong",
                &long,
            ];
            let question = "what was on fire?";
            let rows =
                contexts.map(|context| json!({"question": question, "context": context, "answers": []}));
            write_lines(&scene, "questions.jsonl", &rows);
            let encoded = encode(&scene, "out", &["questions.jsonl"]);
            for (row, context) in encoded.iter().zip(contexts) {
                let (start, end) = (number(&row["start"]) as usize, number(&row["end"]) as usize);
                let span: String = context.chars().skip(start).take(end - start).collect();
                assert_eq!(row["answer"], span, "offsets count characters");
                assert!(!span.is_empty());
                let score = number(&row["score"]);
                assert!(score > 0.0 && score <= 1.0, "{score}");
            }
            // Two of three gold answers are the model's own; the third has no word in common with any.
            let answers = [
                json!([encoded[0]["answer"]]),
                json!(["xyzzy"]),
                json!({"text": ["xyzzy", encoded[2]["answer"]]}),
            ];
            let rows: Vec<Value> = contexts
                .iter()
                .zip(&answers)
                .map(|(context, answers)| json!({"question": question, "context": context, "answers": answers}))
                .collect();
            write_lines(&scene, "gold.jsonl", &rows);
            let report = run(&scene, "out", scheme, "{kind='question-answering',data='gold.jsonl'}");
            assert_near(quantized(&report, "exact_match"), 2.0 / 3.0);
            assert_near(quantized(&report, "f1"), 2.0 / 3.0);
        }
    }
}

#[test]
fn masked_tokens_are_told_and_the_seed_says_which() {
    for model in ["bert-mlm", "roberta-mlm"] {
        for scheme in SCHEMES {
            let scene = scene_of(model);
            let task = "{kind='masked-lm',limit=40}";
            let report = run(&scene, "out", scheme, task);
            let loss = &report["metrics"][0];
            assert_eq!((&loss["name"], &loss["higher_is_better"]), (&json!("loss"), &json!(false)));
            assert_eq!(report["metrics"][1]["name"], "accuracy");
            assert_eq!(run(&scene, "again", scheme, task)["metrics"], report["metrics"]);
            let arguments =
                ["run", "config.toml", "--no-cache", "--out", "other", "--set", "evaluation.seed=7"];
            let scheme = format!("quantization.scheme={scheme}");
            let task = format!("evaluation.tasks=[{task}]");
            scene.succeeds(arguments.iter().chain(&["--set", &scheme, "--set", &task]));
            assert_ne!(scene.json("other/report.json")["metrics"][0]["original"], loss["original"]);
        }
    }
}

#[test]
fn a_loss_that_rises_is_held_against_its_gate() {
    let scene = scene_of("bert-mlm");
    let report = run(&scene, "free", "w8a8-dynamic", "{kind='fidelity',limit=20}");
    let divergence = report["metrics"].as_array().unwrap().iter().find(|m| m["name"] == "kl_mean").unwrap();
    let value = number(&divergence["quantized"]);
    assert!(value > 0.0 && divergence["ideal"] == true && divergence["original"] == 0.0, "{divergence}");
    for (limit, code) in [(value * 1.01, 0), (value * 0.99, 3)] {
        let set = format!(
            "evaluation={{tasks=[{{kind='fidelity',limit=20}}],gate=[{{task='fidelity',metric='kl_mean',max_drop={limit}}}]}}"
        );
        let output = scene.ends_with(
            code,
            ["run", "config.toml", "--no-cache", "--force", "--out", "gated", "--set", &set],
        );
        let said = if code == 0 { ": met" } else { ": NOT MET" };
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        let gate = &scene.json("gated/report.json")["gates"][0];
        assert_near(number(&gate["drop"]), value);
        assert!(scene.text("gated/report.md").contains("| lower |"));
    }
}

#[test]
fn documents_are_ranked_by_cosine_or_by_score() {
    let rows = [
        json!({"query": "what is on fire", "positives": ["the river is on fire"], "negatives": ["a cold night", "models", "he said no"]}),
        json!({"query": "models", "positive": ["the model", "all of the models"], "negative": ["the river"]}),
    ];
    for model in ["bert-mean", "bert-cross-encoder"] {
        for scheme in SCHEMES {
            let scene = scene_of(model);
            write_lines(&scene, "ranking.jsonl", &rows);
            let report = run(&scene, "out", scheme, "{kind='reranking',data='ranking.jsonl'}");
            let mut ranks = Vec::new();
            for row in &rows {
                let list = |names: [&str; 2]| -> Vec<Value> {
                    names.iter().filter_map(|name| row[*name].as_array()).flatten().cloned().collect()
                };
                let (positives, negatives) =
                    (list(["positives", "positive"]), list(["negatives", "negative"]));
                let documents: Vec<Value> = [positives.clone(), negatives].concat();
                let scores: Vec<f64> = if model == "bert-mean" {
                    let texts = std::iter::once(&row["query"]).chain(&documents).map(|t| json!({"text": t}));
                    write_lines(&scene, "texts.jsonl", &texts.collect::<Vec<_>>());
                    let vectors: Vec<Vec<f64>> =
                        encode(&scene, "out", &["texts.jsonl"]).iter().map(vector).collect();
                    vectors[1..].iter().map(|document| cosine(&vectors[0], document)).collect()
                } else {
                    let pairs = documents.iter().map(|d| json!({"text_a": row["query"], "text_b": d}));
                    write_lines(&scene, "texts.jsonl", &pairs.collect::<Vec<_>>());
                    encode(&scene, "out", &["texts.jsonl"]).iter().map(|row| number(&row["score"])).collect()
                };
                let best = scores[..positives.len()].iter().copied().fold(f64::MIN, f64::max);
                let above = scores[positives.len()..].iter().filter(|score| **score >= best).count();
                ranks.push(1.0 / (1 + above) as f64);
            }
            assert_near(quantized(&report, "mrr"), mean(&ranks));
            assert!((0.0..=1.0).contains(&quantized(&report, "ndcg_at_10")));
        }
    }
}

#[test]
fn prompts_reach_calibration_evaluation_and_encode() {
    let scene = scene_of("bert-prompts");
    write_lines(&scene, "texts.jsonl", &[json!({"text": "the river is on fire"}), json!({"text": "models"})]);
    let calibrated = |prompt: &str| {
        let set = format!("calibration.data=[{{path='texts.jsonl'{prompt}}}]");
        scene.succeeds(["run", "config.toml", "--no-cache", "--force", "--out", "out", "--set", &set]);
        let report = scene.json("out/report.json");
        (report["calibration"]["tokens"].as_u64().unwrap(), report["calibration"]["fingerprint"].clone())
    };
    // `query: ` is five tokens more than none, `passage: ` eight, on each of two texts.
    let (default, none) = (calibrated(""), calibrated(", prompt_text = ''"));
    assert_eq!(calibrated(", prompt = 'query'"), default);
    assert_eq!(calibrated(", prompt_text = 'query: '"), default);
    assert_eq!(default.0 - none.0, 2 * 5);
    assert_eq!(calibrated(", prompt = 'document'").0 - none.0, 2 * 8);

    // The cosine of a pair is that of the vectors with the prompts asked for.
    let vectors = |arguments: &[&str]| -> Vec<Vec<f64>> {
        encode(&scene, "out", &[&["texts.jsonl"], arguments].concat()).iter().map(vector).collect()
    };
    let (queries, documents) = (vectors(&[]), vectors(&["--prompt", "document"]));
    assert_eq!(vectors(&["--prompt-text", "query: "]), queries);
    assert_ne!(vectors(&["--prompt-text", ""]), queries);
    let row = json!({"query": "models", "positives": ["the river is on fire"], "negatives": ["models"]});
    write_lines(&scene, "ranking.jsonl", &[row]);
    let rank = |prompts: &str, expected: f64| {
        let task = format!("evaluation.tasks=[{{kind='reranking',data={{path='ranking.jsonl'{prompts}}}}}]");
        let output =
            scene.succeeds(["evaluate", "config.toml", "--model", "out/model", "--json", "--set", &task]);
        let found: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        assert_near(number(&found["metrics"][0]["quantized"]), expected);
    };
    // With one prompt on both sides a text is nearest to itself.
    rank("", 0.5);
    let nearer = cosine(&queries[1], &documents[0]) > cosine(&queries[1], &documents[1]);
    rank(", prompt = 'query', prompt_b = 'document'", if nearer { 1.0 } else { 0.5 });
}

#[test]
fn encode_gives_each_head_its_own_record() {
    let mut document = String::new();
    let mut show = |model: &str, rows: &[Value], arguments: &[&str]| {
        let scene = scene_of(model);
        run(&scene, "out", "w8a8-static", "");
        write_lines(&scene, "texts.jsonl", rows);
        let _ = writeln!(document, "# {model}");
        for mut row in encode(&scene, "out", &[&["texts.jsonl"], arguments].concat()) {
            round(&mut row);
            let _ = writeln!(document, "{row}");
        }
    };
    let text = [json!({"text": "the river"}), json!({"text": "Zürich"})];
    let pair = [json!({"text_a": "what is on fire?", "text_b": "the river is on fire"})];
    show("bert-prompts", &text[..1], &["--prompt", "document"]);
    show("roberta-classifier", &text, &[]);
    show("bert-multilabel", &text, &[]);
    show("bert-regression", &text, &[]);
    show("xlm-roberta-cross-encoder", &pair, &[]);
    show("bert-tokens", &text, &[]);
    show("bert-qa", &pair, &[]);
    show("bert-mlm", &[json!({"text": "the [MASK] is [MASK] fire"})], &[]);
    insta::assert_snapshot!("encode", document.trim_end());
}

/// Numbers that are not whole to three decimals, lists of many cut to three.
fn round(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            *value = json!((number.as_f64().expect("a number") * 1000.0).round() / 1000.0);
        }
        Value::Array(values) => {
            if values.len() > 8 {
                values.truncate(3);
                values.push(json!("..."));
            }
            values.iter_mut().for_each(round);
        }
        Value::Object(object) => object.values_mut().for_each(round),
        _ => {}
    }
}

#[test]
fn rows_come_in_order_over_many_batches() {
    let scene = scene_of("bert-mean");
    run(&scene, "out", "w8a8-dynamic", "");
    // More than are held at once, of all lengths.
    let texts: Vec<Value> =
        (0..100).map(|i| json!({"text": "the river ".repeat(1 + i * 7 % 11) + &i.to_string()})).collect();
    write_lines(&scene, "texts.jsonl", &texts);
    let few = encode(&scene, "out", &["texts.jsonl", "--batch-size", "2"]);
    assert_eq!(
        few.iter().map(|row| &row["text"]).collect::<Vec<_>>(),
        texts.iter().map(|t| &t["text"]).collect::<Vec<_>>()
    );
    let alone = encode(&scene, "out", &["texts.jsonl", "--batch-size", "1"]);
    for (a, b) in few.iter().zip(&alone) {
        assert!(cosine(&vector(a), &vector(b)) > 0.999_999);
    }
}

#[test]
fn encode_takes_the_first_row_of_csv_for_names() {
    let scene = scene_of("bert-mean");
    run(&scene, "out", "w8a8-dynamic", "");
    scene.write("named.csv", "id,text\n1,the river\n2,is on fire\n");
    assert_eq!(encode(&scene, "out", &["named.csv"]).len(), 2);
    scene.write("other.csv", "id,sentence\n1,the river\n");
    let said = stderr(&scene.ends_with(2, ["encode", "out/model", "--data", "other.csv"]));
    assert!(said.contains("`text_a` or `text` is missing; the fields here are `id`, `sentence`"), "{said}");
}
