//! Models that take images, from folders and csv files through every scheme, and what is refused.
#![cfg(unix)] // the snapshot holds what the system says about files

use serde_json::{Value, json};

use crate::scene::answers::Answers;
use crate::scene::{Scene, fixture, json_lines, stdout};

const FIXTURES: [&str; 5] = ["vit-base", "vit-classifier", "deit-classifier", "deit-teacher", "clip"];
const SCHEMES: [&str; 2] = ["w8a8-dynamic", "w8a8-static"];

fn reference(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(name).join("reference.json")).expect("it is there");
    serde_json::from_str(&text).expect("it is JSON")
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
}

fn best(scores: &Value) -> usize {
    let scores = floats(scores);
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).expect("scores")
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A scene with the images of a fixture in `photos/`, its texts in `texts.txt` if it has any, and a config for it.
fn scene_of(name: &str) -> Scene {
    let scene = Scene::new();
    for image in reference(name)["images"].as_array().expect("a list") {
        let image = image.as_str().expect("a path");
        let file = image.rsplit('/').next().expect("a name");
        scene.write(&format!("photos/{file}"), std::fs::read(fixture(name).join(image)).expect("an image"));
    }
    let mut data = vec!["'photos/'"];
    if let Some(texts) = reference(name)["texts"].as_array() {
        let lines: Vec<&str> = texts.iter().map(|text| text.as_str().expect("a text")).collect();
        scene.write("texts.txt", lines.join("\n"));
        data.push("'texts.txt'");
    }
    let config = format!(
        "version = 1\nmodel.source = '{}'\n[calibration]\ndata = [{}]\nsamples = 8\nbatch_size = 2\n",
        fixture(name).display(),
        data.join(", "),
    );
    scene.write("config.toml", config);
    scene
}

fn metric<'a>(report: &'a Value, task: &str, name: &str) -> &'a Value {
    let metrics = report["metrics"].as_array().expect("a list");
    metrics.iter().find(|metric| metric["task"] == task && metric["name"] == name).unwrap_or_else(|| {
        panic!("{task} has no {name}: {metrics:?}");
    })
}

#[test]
fn every_model_goes_through_every_scheme_and_gives_nearly_what_the_float_one_gives() {
    for name in FIXTURES {
        let scene = scene_of(name);
        let reference = reference(name);
        for scheme in SCHEMES {
            let what = format!("{name}, {scheme}");
            scene.succeeds([
                "run",
                "config.toml",
                "--no-cache",
                "--out",
                scheme,
                "--set",
                &format!("quantization.scheme={scheme}"),
            ]);
            let report = scene.json(&format!("{scheme}/report.json"));
            assert_eq!(report["self_check"]["cosine_min"], 1.0, "{what}");
            let near = metric(&report, "fidelity", "cosine_min")["quantized"].as_f64().unwrap();
            assert!(near > 0.98, "{what}: {near}");
            let layers = report["layers"].as_array().expect("a list");
            let blocks = if name == "clip" { 4 } else { 2 };
            assert_eq!(layers.len(), blocks * 6, "{what}: the Linears of the blocks and no other");

            // The patch embedding is a convolution to `transformers`: left out, and not among its Linears.
            let left_out = report["not_quantized"].as_array().expect("a list");
            let patches = left_out.iter().find(|entry| {
                let tensor = entry["tensor"].as_str().expect("a name");
                tensor.contains("patch_embed") && tensor.ends_with("weight")
            });
            let reason = patches.expect("it is named")["reason"].as_str().expect("a reason").to_owned();
            assert!(reason.starts_with("patch embedding: a convolution"), "{what}: {reason}");
            let ignored =
                &scene.json(&format!("{scheme}/model/config.json"))["quantization_config"]["ignore"];
            let expected = match name {
                "vit-base" => json!(["pooler.dense"]),
                "deit-teacher" => json!(["cls_classifier", "distillation_classifier"]),
                "clip" => json!(["visual_projection", "text_projection"]),
                _ => json!(["classifier"]),
            };
            assert_eq!(*ignored, expected, "{what}");

            let model = format!("{scheme}/model");
            let output = scene.succeeds(["encode", &model, "--data", "photos", "--batch-size", "2"]);
            let rows = json_lines(&stdout(&output));
            assert_eq!(rows.len(), 3, "{what}");
            for row in rows {
                let path = row["image"].as_str().expect("a path");
                let images = reference["images"].as_array().expect("a list");
                let file = path.strip_prefix("photos/").expect("inside the folder");
                let at = images
                    .iter()
                    .position(|image| image.as_str().is_some_and(|image| image.ends_with(file)))
                    .expect("an image of the fixture");
                let (found, expected) = match name {
                    "vit-base" => (&row["embedding"], &reference["pooled"][at]),
                    "clip" => (&row["embedding"], &reference["image_embeds"][at]),
                    _ => (&row["logits"], &reference["logits"][at]),
                };
                let cosine = cosine(&floats(found), &floats(expected));
                assert!(cosine > 0.98, "{what}, {path}: {cosine}");
            }
        }
    }
}

#[test]
fn classes_of_images_come_from_folders_and_from_csv_files() {
    let name = "vit-classifier";
    let scene = scene_of(name);
    let labels = ["awful", "bad", "fair", "good", "wonderful"];
    let reference = reference(name);
    let mut csv = "image,label\n".to_owned();
    for (image, logits) in
        reference["images"].as_array().unwrap().iter().zip(reference["logits"].as_array().unwrap())
    {
        let file = image.as_str().unwrap().rsplit('/').next().unwrap();
        let label = labels[best(logits)];
        csv.extend(["photos/", file, ",", label, "\n"]);
        let bytes = std::fs::read(scene.path(&format!("photos/{file}"))).unwrap();
        scene.write(&format!("sorted/{label}/{file}"), bytes);
    }
    scene.write("labels.csv", csv);
    for data in ["labels.csv", "sorted/"] {
        let task = format!("evaluation.tasks=[{{kind='classification',data='{data}'}}]");
        scene.succeeds(["run", "config.toml", "--no-cache", "--force", "--out", "out", "--set", &task]);
        let report = scene.json("out/report.json");
        assert_eq!(metric(&report, "classification", "accuracy")["original"], 1.0, "{data}");
        assert_eq!(metric(&report, "classification", "macro_f1")["original"], 1.0, "{data}");
        assert_eq!(report["metrics"].as_array().unwrap().len(), 2, "{data}: five labels have no top five");
    }
}

#[test]
fn zero_shot_labels_are_those_whose_sentences_are_nearest() {
    let scene = scene_of("clip");
    let reference = reference("clip");
    let texts: Vec<&str> =
        reference["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let rows: Vec<String> = reference["images"]
        .as_array()
        .unwrap()
        .iter()
        .zip(reference["logits_per_image"].as_array().unwrap())
        .map(|(image, logits)| {
            let file = image.as_str().unwrap().rsplit('/').next().unwrap();
            json!({ "image": format!("photos/{file}"), "label": texts[best(logits)] }).to_string()
        })
        .collect();
    scene.write("labels.jsonl", rows.join("\n"));
    let quoted: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
    let task = |more: &str| {
        format!(
            "evaluation.tasks=[{{kind='zero-shot',data='labels.jsonl',labels=[{}],templates=['{{label}}']{more}}}]",
            quoted.join(",")
        )
    };
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "out", "--set", &task("")]);
    let report = scene.json("out/report.json");
    assert_eq!(metric(&report, "zero-shot", "accuracy")["original"], 1.0);
    assert_eq!(metric(&report, "zero-shot", "accuracy")["samples"], 3);
    assert_eq!(report["metrics"].as_array().unwrap().len(), 1, "five labels have no top five");

    // With a sixth label there is; the templates are averaged.
    let more =
        task("").replace("labels=[", "labels=['six',").replace("['{label}']", "['{label}','a {label}']");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "six", "--set", &more]);
    let report = scene.json("six/report.json");
    let top5 = metric(&report, "zero-shot", "top5_accuracy")["original"].as_f64().unwrap();
    let top1 = metric(&report, "zero-shot", "accuracy")["original"].as_f64().unwrap();
    assert!(top5 >= top1, "{top1} {top5}");
}

#[test]
fn the_whole_is_reproducible_from_its_own_config_and_from_statistics() {
    let scene = scene_of("clip");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "first", "--threads", "1"]);
    scene.succeeds(["run", "first/config.toml", "--no-cache", "--out", "second", "--threads", "2"]);
    scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "statistics.safetensors"]);
    scene.succeeds(["quantize", "config.toml", "--statistics", "statistics.safetensors", "--out", "third"]);
    for other in ["second", "third"] {
        for file in ["model/model.safetensors", "model/config.json", "statistics.safetensors"] {
            let bytes = |run: &str| std::fs::read(scene.path(&format!("{run}/{file}"))).expect("it is there");
            assert_eq!(bytes("first"), bytes(other), "{other}: {file}");
        }
    }
    let metrics = scene.succeeds(["evaluate", "config.toml", "--model", "first/model", "--json"]);
    let metrics: Value = serde_json::from_slice(&metrics.stdout).expect("it is JSON");
    assert_eq!(metrics["metrics"], scene.json("first/report.json")["metrics"]);
}

#[test]
fn inspect_says_what_the_models_take() {
    let scene = Scene::new();
    for (name, expected) in [
        (
            "vit-base",
            "head         embedding: class token through the pooler\n\
             size         2 blocks, hidden 24, images of 32 x 32 in patches of 8 x 8\n",
        ),
        (
            "deit-teacher",
            "head         classification into 5 labels\n\
             size         2 blocks, hidden 24, images of 32 x 32 in patches of 8 x 8\n",
        ),
        (
            "clip",
            "head         images and texts in one space: projected, normalised\n\
             size         4 blocks, hidden 24, at most 24 tokens, images of 32 x 32 in patches of 8 x 8\n",
        ),
    ] {
        let output = scene.succeeds(["inspect", &fixture(name).to_string_lossy()]);
        let text = stdout(&output);
        assert!(text.contains(expected), "{name}: {text}");
    }
}

/// A PNG that claims a size and colours, without a pixel.
fn png_header(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([depth, colour, 0, 0, 0]);
    let mut crc = u32::MAX;
    for byte in &chunk {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    file.extend((chunk.len() as u32 - 4).to_be_bytes());
    file.extend(&chunk);
    file.extend((!crc).to_be_bytes());
    file.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    file.extend(b"\0\0\0\0IEND\xae\x42\x60\x82");
    file
}

#[test]
fn mistakes() {
    let mut answers = Answers::new();
    let images = |name: &str| fixture(name).join("images");
    let png = std::fs::read(images("vit-base").join("wide.png")).expect("an image");
    let jpeg = std::fs::read(images("vit-base").join("photo.jpg")).expect("an image");
    let scene = &answers.scene;
    for (path, content) in [
        ("photos/a.png", &png[..]),
        ("cut/a.png", &png[..png.len() / 2]),
        ("text/a.png", b"a photo of a cat"),
        ("gif/a.png", b"GIF89a\x01\0\x01\0\0\0\0;"),
        ("huge/a.png", &png_header(60_000, 60_000, 8, 2)),
        ("long/a.png", &png_header(1 << 20, 1, 8, 2)),
        ("deep/a.png", &png_header(8, 8, 16, 2)),
        ("mixed/a.png", &png[..]),
        ("mixed/notes.txt", b"cats"),
        ("half/a.png", &png[..]),
        ("half/cat/b.jpg", &jpeg[..]),
        ("nested/cat/big/b.jpg", &jpeg[..]),
        ("empty/.keep", b""),
        ("nobody.csv", b"image,label\nphotos/b.png,bad\n"),
        ("unknown.csv", b"image,label\nphotos/a.png,cat\n"),
        ("texts.csv", b"text,label\nA cat.,bad\n"),
        ("pictures.csv", b"image,label\nphotos/a.png,bad\n"),
        ("labelled/cat/a.png", &png[..]),
    ] {
        scene.write(path, content);
    }
    let change = |model: &str, file: &str, change: &dyn Fn(&mut Value)| {
        let name = format!("{model}/{file}");
        let mut value = scene.json(&name);
        change(&mut value);
        scene.write(&name, value.to_string());
    };
    let processor = "preprocessor_config.json";
    for model in ["none", "blip", "padded", "small", "resample", "patches", "channels", "oblong"] {
        scene.copy_fixture("vit-classifier", model);
    }
    std::fs::remove_file(scene.path("none/preprocessor_config.json")).expect("it was there");
    change("blip", processor, &|value| value["image_processor_type"] = json!("BlipImageProcessor"));
    change("padded", processor, &|value| value["do_pad"] = json!(true));
    change("small", processor, &|value| value["size"] = json!({ "height": 16, "width": 16 }));
    change("resample", processor, &|value| value["resample"] = json!(9));
    change("patches", "config.json", &|value| value["patch_size"] = json!(7));
    change("channels", "config.json", &|value| value["num_channels"] = json!(1));
    change("oblong", "config.json", &|value| value["patch_size"] = json!([8, 4]));

    // In the scene, so that the marks under a path do not depend on where the repository lies.
    for model in ["vit-base", "vit-classifier", "bert-mean", "clip"] {
        scene.copy_fixture(model, model);
    }
    let run = |model: &str, data: &str, more: &str| {
        format!("version = 1\nmodel.source = '{model}'\ncalibration.data = [{data}]\n{more}")
    };
    let cases: [(i32, &str, String); 32] = [
        (2, "a model of images without images", run("vit-base", "", "")),
        (1, "texts for a model of images", run("vit-base", "'texts.csv'", "")),
        (1, "images for a model of texts", run("bert-mean", "'photos/'", "")),
        (2, "images alone for a model of both", run("clip", "'photos/'", "")),
        (2, "texts alone for a model of both", run("clip", "'texts.csv'", "")),
        (2, "a folder that is not there", run("vit-base", "'nowhere/'", "")),
        (2, "a file as a folder", run("vit-base", "{ path = 'texts.csv', format = 'images' }", "")),
        (2, "a folder without the slash", run("vit-base", "'photos'", "")),
        (1, "a folder without images", run("vit-base", "'empty/'", "")),
        (1, "a folder with something else in it", run("vit-base", "'mixed/'", "")),
        (1, "a folder with images and folders", run("vit-base", "'half/'", "")),
        (1, "a folder in the folder of a label", run("vit-base", "'nested/'", "")),
        (1, "an image that is not there", run("vit-base", "'nobody.csv'", "")),
        (1, "an image that ends early", run("vit-base", "'cut/'", "")),
        (1, "a text as an image", run("vit-base", "'text/'", "")),
        (1, "a GIF", run("vit-base", "'gif/'", "")),
        (1, "an image that claims gigapixels", run("vit-base", "'huge/'", "")),
        (1, "an image that is very long", run("vit-base", "'long/'", "")),
        (1, "16 bits a channel", run("vit-base", "'deep/'", "")),
        (1, "no preprocessor_config.json", run("none", "'photos/'", "")),
        (1, "another image processor", run("blip", "'photos/'", "")),
        (1, "another step", run("padded", "'photos/'", "")),
        (1, "another size than the model's", run("small", "'photos/'", "")),
        (1, "another filter", run("resample", "'photos/'", "")),
        (1, "patches that do not fill the image", run("patches", "'photos/'", "")),
        (1, "one channel", run("channels", "'photos/'", "")),
        (1, "oblong patches", run("oblong", "'photos/'", "")),
        (
            1,
            "a label that the model does not have",
            run(
                "vit-classifier",
                "'photos/'",
                "evaluation.tasks = [{ kind = 'classification', data = 'unknown.csv' }]",
            ),
        ),
        (
            1,
            "folders that are no labels of the model",
            run(
                "vit-classifier",
                "'photos/'",
                "evaluation.tasks = [{ kind = 'classification', data = 'labelled/' }]",
            ),
        ),
        (
            2,
            "zero-shot without a tower for texts",
            run(
                "vit-base",
                "'photos/'",
                "evaluation.tasks = [{ kind = 'zero-shot', data = 'pictures.csv' }]",
            ),
        ),
        (
            2,
            "a gate on the top five of five",
            run(
                "vit-classifier",
                "'photos/'",
                "evaluation.tasks = [{ kind = 'classification', data = 'pictures.csv' }]\n\
                 evaluation.gate = [{ task = 'classification', metric = 'top5_accuracy', max_drop = 0.1 }]",
            ),
        ),
        (
            2,
            "a template without a label",
            run(
                "clip",
                "'photos/', 'texts.csv'",
                "evaluation.tasks = [{ kind = 'zero-shot', data = 'pictures.csv', templates = ['a photo'] }]",
            ),
        ),
    ];
    for (code, mistake, config) in cases {
        answers.scene.write("mistake.toml", config);
        answers.refused(code, mistake, &["run", "mistake.toml", "--no-cache", "--out", "out"]);
    }
    answers.compare("vision__mistakes");
}
