//! What each mistake is answered with. The snapshots are documents to be read: one for each kind of mistake. Those of the
//! config are in `config_errors.rs`.
#![cfg(unix)] // the snapshots hold what the system says about files

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::scene::answers::Answers;
use crate::scene::safetensors::Safetensors;
use crate::scene::{Scene, fixture};

/// A query weight of the fixture `bert-mean`.
const QUERY: &str = "encoder.layer.0.attention.self.query.weight";

#[test]
fn command_lines() {
    let mut answers = Answers::new();
    for (mistake, arguments) in [
        ("no config", &["run"][..]),
        ("an unknown command", &["quantise", "config.toml"]),
        ("an unknown option", &["run", "config.toml", "--no-cach"]),
        ("no threads", &["run", "config.toml", "--threads", "0"]),
        ("quiet and verbose", &["run", "config.toml", "--quiet", "--verbose"]),
        ("a cache and none", &["run", "config.toml", "--cache", "c", "--no-cache"]),
        ("no statistics", &["quantize", "config.toml"]),
        ("an empty batch", &["encode", "model", "--data", "texts.txt", "--batch-size", "0"]),
    ] {
        answers.refused(2, mistake, arguments);
    }
    answers.compare("errors__command_lines");
}

#[test]
fn models() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.write("a-file", "not a model");
    scene.copy_fixture("bert-mean", "without-config");
    std::fs::remove_file(scene.path("without-config/config.json")).expect("it was there");
    scene.copy_fixture("bert-mean", "without-weights");
    std::fs::remove_file(scene.path("without-weights/model.safetensors")).expect("it was there");
    scene.copy_fixture("bert-cls-sharded", "without-a-shard");
    std::fs::remove_file(scene.path("without-a-shard/model-00002-of-00002.safetensors"))
        .expect("it was there");
    scene.copy_fixture("bert-mean", "broken-config");
    scene.write("broken-config/config.json", "{\"architectures\": [");
    scene.copy_fixture("bert-mean", "broken-tokenizer");
    scene.write("broken-tokenizer/tokenizer.json", "{}");
    let change_json = |model: &str, file: &str, change: &dyn Fn(&mut Value)| {
        let name = format!("{model}/{file}");
        let mut value = scene.json(&name);
        change(&mut value);
        scene.write(&name, value.to_string());
    };
    scene.copy_fixture("bert-mean", "bloom");
    change_json("bloom", "config.json", &|config| {
        config["architectures"] = json!(["BloomForCausalLM"]);
        config["model_type"] = json!("bloom");
    });
    scene.copy_fixture("bert-mean", "relative-positions");
    change_json("relative-positions", "config.json", &|config| {
        config["position_embedding_type"] = json!("relative_key");
    });
    scene.copy_fixture("bert-mean", "with-a-dense-module");
    change_json("with-a-dense-module", "modules.json", &|modules| {
        modules[2] =
            json!({ "idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense" });
    });
    scene.copy_fixture("bert-cls-sharded", "index-points-outside");
    change_json("index-points-outside", "model.safetensors.index.json", &|index| {
        for file in index["weight_map"].as_object_mut().expect("a map").values_mut() {
            *file = json!("../bert-mean/model.safetensors");
        }
    });
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);

    for (mistake, source) in [("a directory that does not exist", "./models/absent"), ("a file", "a-file")] {
        answers.model(2, mistake, source);
    }
    for (mistake, source) in [
        ("a hub id, offline", "sentence-transformers/all-MiniLM-L6-v2"),
        ("a directory without config.json", "without-config"),
        ("a run directory in place of its model", "finished"),
        ("a model that is quantised already", "finished/model"),
        ("an unknown architecture", "bloom"),
        ("an unknown kind of positions", "relative-positions"),
        ("an unknown sentence-transformers module", "with-a-dense-module"),
        ("a broken config.json", "broken-config"),
        ("a broken tokenizer", "broken-tokenizer"),
        ("a directory without weights", "without-weights"),
        ("a shard that is missing", "without-a-shard"),
        ("an index that names a file outside", "index-points-outside"),
    ] {
        answers.model(1, mistake, source);
    }
    // In the scene, so that the marks under the path do not depend on where the repository lies.
    answers.scene.copy_fixture("bert-mean", "encoder");
    let change = "model={source='encoder',task='classification'}";
    answers.set(2, "a task that the model does not fit", change);
    answers.compare("errors__models");
}

#[test]
fn weight_files() {
    type Damage = fn(&mut Safetensors);
    let mut answers = Answers::new();
    let whole = Safetensors::read(&fixture("bert-mean").join("model.safetensors"));
    let damages: [(&str, &str, Damage); 9] = [
        ("a tensor beyond the end of the file", "beyond", |file| {
            file.header[QUERY]["data_offsets"][1] = json!(10_000_000);
        }),
        ("two tensors in one place", "overlapping", |file| {
            let (begin, end) = file.offsets(QUERY);
            file.header[QUERY]["data_offsets"] = json!([begin - 4096, end - 4096]);
        }),
        ("a tensor that ends before it begins", "backwards", |file| {
            let (begin, end) = file.offsets(QUERY);
            file.header[QUERY]["data_offsets"] = json!([end, begin]);
        }),
        ("a shape that its bytes do not fill", "bytes", |file| file.header[QUERY]["shape"] = json!([32, 33])),
        ("a shape that overflows", "overflow", |file| {
            file.header[QUERY]["shape"] = json!([1u64 << 40, 1u64 << 40]);
        }),
        ("a shape that is not the config's", "shape", |file| file.header[QUERY]["shape"] = json!([16, 64])),
        ("an unknown dtype", "dtype", |file| file.header[QUERY]["dtype"] = json!("F4")),
        ("a tensor that is missing", "missing", |file| {
            let entry = file.header.remove(QUERY).expect("it was there");
            file.header.insert("encoder.layer.0.attention.self.q.weight".to_owned(), entry);
        }),
        ("NaN in a weight", "not-a-number", |file| file.poke(QUERY, 10, f32::NAN)),
    ];
    for (mistake, name, damage) in damages {
        let mut file = whole.clone();
        damage(&mut file);
        answers.scene.copy_fixture("bert-mean", name);
        answers.scene.write(&format!("{name}/model.safetensors"), file.to_bytes());
        answers.model(1, mistake, name);
    }
    let bytes = whole.to_bytes();
    for (mistake, name, content) in [
        ("a file that ends early", "truncated", &bytes[..bytes.len() - 100]),
        ("a file that ends in its header", "cut", &bytes[..1000]),
        ("a header that claims a terabyte", "huge", &[&(1u64 << 40).to_le_bytes()[..], &bytes[8..]].concat()),
        ("three bytes", "tiny", b"abc"),
        (
            "a Git LFS pointer",
            "pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        ),
        ("a pickle", "pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
    ] {
        answers.scene.copy_fixture("bert-mean", name);
        answers.scene.write(&format!("{name}/model.safetensors"), content);
        answers.model(1, mistake, name);
    }
    answers.compare("errors__weight_files");
}

#[test]
fn mixtures_of_experts() {
    const EXPERT: &str = "model.layers.0.block_sparse_moe.experts.2.w1.weight";
    let mut answers = Answers::new();
    answers.scene.copy_fixture("mixtral-causal", "mixtral");
    answers.model(2, "experts that would be INT8", "mixtral");
    for (mistake, name, new) in [
        ("an expert that is missing", "missing", "model.layers.0.block_sparse_moe.experts.4.w1.weight"),
        ("experts in one tensor", "fused", "model.layers.0.mlp.experts.gate_up_proj"),
    ] {
        answers.scene.copy_fixture("mixtral-causal", name);
        let path = answers.scene.path(&format!("{name}/model.safetensors"));
        let mut file = Safetensors::read(&path);
        let entry = file.header.remove(EXPERT).expect("it was there");
        file.header.insert(new.to_owned(), entry);
        answers.scene.write(&format!("{name}/model.safetensors"), file.to_bytes());
        answers.model(1, mistake, name);
    }
    answers.scene.copy_fixture("mixtral-causal", "too-few");
    let mut config = answers.scene.json("too-few/config.json");
    config["num_experts_per_tok"] = json!(5);
    answers.scene.write("too-few/config.json", config.to_string());
    answers.model(1, "more experts for a token than there are", "too-few");
    answers.compare("errors__mixtures_of_experts");
}

#[test]
fn infinity_in_a_table_that_no_text_reaches() {
    // Found while the tensor is copied, after calibration: the texts do not use that row.
    let mut answers = Answers::new();
    let mut file = Safetensors::read(&fixture("bert-mean").join("model.safetensors"));
    file.poke("embeddings.word_embeddings.weight", 10, f32::INFINITY);
    answers.scene.copy_fixture("bert-mean", "infinite");
    answers.scene.write("infinite/model.safetensors", file.to_bytes());
    for embeddings in ["keep", "bf16"] {
        let arguments = [
            "run",
            "config.toml",
            "--no-cache",
            "--out",
            "out",
            "--set",
            "model.source=infinite",
            "--set",
            &format!("quantization.embeddings={embeddings}"),
        ];
        answers.refused(1, embeddings, &arguments);
    }
    answers.compare("errors__infinity_in_a_table");
}

#[test]
fn data_files() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.write("broken.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"\n");
    scene.write("strings.jsonl", "\"one\"\n");
    scene.write("empty.jsonl", "");
    scene.write("blank.txt", "\n\n");
    scene.write("columns.csv", "sentence,points\nA cold day.,1\n");
    scene.write("ragged.csv", "text,label\nA cold, wet day.,weather\n");
    scene.write("latin1.txt", b"caf\xe9\n");
    scene.write(
        "labels.jsonl",
        "{\"text\": \"a\", \"label\": \"law\"}\n{\"text\": \"b\", \"label\": \"poetry\"}\n",
    );
    scene.write("texts.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    scene.write("pairs.jsonl", "{\"text_a\": \"a\", \"text_b\": \"b\", \"score\": \"good\"}\n");
    for (code, mistake, file) in [
        (2, "a data file that does not exist", "absent.jsonl"),
        (1, "a line that ends early", "broken.jsonl"),
        (1, "a line that is no object", "strings.jsonl"),
        (1, "an empty file", "empty.jsonl"),
        (1, "a file of blank lines", "blank.txt"),
        (2, "a csv file with other columns", "columns.csv"),
        (1, "a csv file with an unquoted comma", "ragged.csv"),
        (1, "a text that is not UTF-8", "latin1.txt"),
    ] {
        answers.set(code, mistake, &format!("calibration.data=['{file}']"));
    }
    for (mistake, data) in [
        ("a column that does not exist", "[{path='columns.csv',text='body'}]"),
        ("a column beyond the last", "['texts.jsonl',{path='columns.csv',header=false,text=7}]"),
        ("columns without names or numbers", "[{path='columns.csv',header=false}]"),
        ("a field that does not exist", "[{path='texts.jsonl',text='body'}]"),
    ] {
        answers.set(2, mistake, &format!("calibration.data={data}"));
    }
    for (code, mistake, kind, file) in [
        (1, "a label outside the model's", "classification", "labels.jsonl"),
        (2, "texts without labels", "classification", "texts.jsonl"),
        (2, "similarity of a classifier", "sts", "texts.jsonl"),
        (2, "a task on a file that does not exist", "fidelity", "absent.txt"),
    ] {
        answers.set(code, mistake, &format!("evaluation.tasks=[{{kind='{kind}',data='{file}'}}]"));
    }
    let source = format!("model.source={}", fixture("bert-mean").display());
    for (code, mistake, kind, file) in [
        (2, "similarity without pairs", "sts", "texts.jsonl"),
        (1, "a score that is no number", "sts", "pairs.jsonl"),
        (2, "classes of an embedding model", "classification", "labels.jsonl"),
    ] {
        let tasks = format!("evaluation.tasks=[{{kind='{kind}',data='{file}'}}]");
        answers.refused(
            code,
            mistake,
            &["run", "config.toml", "--no-cache", "--out", "out", "--set", &source, "--set", &tasks],
        );
    }
    answers.compare("errors__data_files");
}

#[test]
fn outputs() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    scene.write("theirs/thesis.tex", "three years of work");
    scene.write("unfinished.partial/thesis.tex", "two years of work");
    scene.write("a-file", "");
    symlink("theirs", scene.path("link")).expect("links can be made");
    scene.copy_fixture("bert-mean", "source");
    for (mistake, code, arguments) in [
        ("an output that exists", 1, &["--out", "finished"][..]),
        ("a directory that is not ours", 1, &["--out", "theirs"]),
        ("a directory that is not ours, by force", 1, &["--out", "theirs", "--force"]),
        ("a working directory that is not ours, by force", 1, &["--out", "unfinished", "--force"]),
        ("a file", 1, &["--out", "a-file", "--force"]),
        ("a link", 1, &["--out", "link", "--force"]),
        ("a directory inside a file", 1, &["--out", "a-file/out"]),
        ("no name", 2, &["--out", ""]),
        ("the root of the file system", 1, &["--out", "/"]),
        ("the model itself", 2, &["--out", "source", "--force", "--set", "model.source=source"]),
    ] {
        let arguments = [&["run", "config.toml", "--no-cache"][..], arguments].concat();
        answers.refused(code, mistake, &arguments);
    }
    answers.refused(
        1,
        "statistics in place of a directory",
        &["calibrate", "config.toml", "--no-cache", "--out", "theirs"],
    );
    answers.compare("errors__outputs");
}

#[test]
fn statistics_and_models_of_something_else() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    scene.write("text.txt", "one\n");
    let statistics = "finished/statistics.safetensors";
    let other_model = format!("model.source={}", fixture("bert-mean").display());
    let float = fixture("bert-classifier-bf16").to_string_lossy().into_owned();
    for (mistake, arguments) in [
        (
            "statistics that do not exist",
            &["quantize", "config.toml", "--out", "out", "--statistics", "absent.safetensors"][..],
        ),
        ("evaluation of a model that does not exist", &["evaluate", "config.toml", "--model", "absent"]),
        ("evaluation of the float embedded model", &["evaluate", "config.toml", "--model", "embedded"]),
        ("encoding with the float embedded model", &["encode", "embedded", "--data", "text.txt"]),
        ("encoding with a model that does not exist", &["encode", "absent", "--data", "text.txt"]),
        ("encoding a file that does not exist", &["encode", "finished/model", "--data", "absent.txt"]),
        ("encoding over the texts", &["encode", "finished/model", "--data", "text.txt", "--out", "text.txt"]),
        ("inspection of a model that does not exist", &["inspect", "absent"]),
        ("inspection of a file", &["inspect", "text.txt"]),
    ] {
        answers.refused(2, mistake, arguments);
    }
    for (mistake, arguments) in [
        (
            "weights in place of statistics",
            &["quantize", "config.toml", "--out", "out", "--statistics", "finished/model/model.safetensors"]
                [..],
        ),
        (
            "a text in place of statistics",
            &["quantize", "config.toml", "--out", "out", "--statistics", "text.txt"],
        ),
        (
            "statistics of other data",
            &[
                "quantize",
                "config.toml",
                "--out",
                "out",
                "--statistics",
                statistics,
                "--set",
                "calibration.seed=7",
            ][..],
        ),
        (
            "statistics of another model",
            &["quantize", "config.toml", "--out", "out", "--statistics", statistics, "--set", &other_model],
        ),
        (
            "evaluation of another model",
            &["evaluate", "config.toml", "--model", "finished/model", "--set", &other_model],
        ),
        (
            "evaluation of a model of the same architecture and another size",
            &["evaluate", "config.toml", "--model", &float],
        ),
        ("encoding with a float model", &["encode", &float, "--data", "text.txt"]),
    ] {
        answers.refused(1, mistake, arguments);
    }
    answers.compare("errors__something_else");
}

#[test]
fn instruction_sets() {
    let mut answers = Answers::new();
    for (name, arguments) in [
        ("foo", &["run", "config.toml", "--no-cache", "--out", "out"][..]),
        ("foo", &["run", "config.toml", "--dry-run"]),
        ("AVX2", &["inspect", "embedded"]),
    ] {
        answers.refused_in(2, &format!("ZEROPOINT_ISA={name}"), arguments, |command| {
            command.env("ZEROPOINT_ISA", name);
        });
    }
    answers.compare("errors__instruction_sets");
}

/// Rewrites fields of a statistics file's header.
fn edit_header(scene: &Scene, from: &str, to: &str, fields: &[(&str, &str)]) {
    let mut file = Safetensors::read(&scene.path(from));
    let stored = &mut file.header["__metadata__"]["zeropoint.statistics"];
    let mut metadata: Value = serde_json::from_str(stored.as_str().expect("a text")).expect("it is JSON");
    for (field, value) in fields {
        metadata["header"][*field] = json!(value);
    }
    *stored = json!(metadata.to_string());
    scene.write(to, file.to_bytes());
}

#[test]
fn shards() {
    let mut answers = Answers::new();
    for (mistake, shard) in [
        ("shards are counted from 1", "0/4"),
        ("a shard beyond the last", "5/4"),
        ("a set cut into nothing", "1/0"),
        ("letters for a shard", "a/b"),
        ("a shard without their number", "3"),
        ("a negative shard", "-1/4"),
    ] {
        answers.refused(
            2,
            mistake,
            &["calibrate", "config.toml", "--out", "out", &format!("--shard={shard}")],
        );
    }
    let cached = ["calibrate", "config.toml", "--out", "out", "--shard", "1/2", "--cache", "c"];
    answers.refused(2, "a shard in the cache", &cached);
    answers.refused(2, "nothing to merge", &["statistics", "merge", "--out", "out"]);
    answers.refused(2, "nowhere to merge to", &["statistics", "merge", "a", "b"]);

    let scene = &answers.scene;
    let other_model = format!("model.source={}", fixture("bert-mean").display());
    let seed = "calibration.seed=7";
    for (shard, file, change) in [
        ("1/2", "1-of-2", None),
        ("2/2", "2-of-2", None),
        ("1/3", "1-of-3", None),
        ("2/3", "2-of-3", None),
        ("2/2", "other-data", Some(seed)),
        ("2/2", "other-model", Some(other_model.as_str())),
    ] {
        let change = change.map(|change| ["--set", change]);
        let arguments = ["calibrate", "config.toml", "--shard", shard, "--out", file];
        scene.succeeds(arguments.iter().copied().chain(change.into_iter().flatten()));
    }
    scene.succeeds(["calibrate", "config.toml", "--no-cache", "--out", "whole"]);
    std::fs::copy(scene.path("2-of-2"), scene.path("copy")).expect("it can be copied");
    scene.write("text.txt", "one\n");
    scene.write("directory/file", "");
    edit_header(scene, "1-of-2", "avx2", &[("instruction_set", "avx2")]);
    edit_header(scene, "2-of-2", "scalar", &[("instruction_set", "scalar")]);
    edit_header(scene, "2-of-2", "later", &[("zeropoint_version", "9.0.0"), ("instruction_set", "scalar")]);
    edit_header(scene, "2-of-2", "seed-43", &[("seed", "43")]);
    edit_header(scene, "2-of-2", "heavier", &[("shard_tokens", "77")]);
    edit_header(scene, "1-of-2", "one-of-many", &[("shard", "1/4294967295")]);
    edit_header(scene, "1-of-2", "no-shard", &[("shard", "2/1")]);
    let mut renamed = Safetensors::read(&scene.path("2-of-2"));
    renamed.header = renamed
        .header
        .into_iter()
        .map(|(name, value)| (name.replace("classifier.input", "classifier.output"), value))
        .collect();
    scene.write("renamed", renamed.to_bytes());

    for (mistake, files, out) in [
        ("one shard is missing", &["1-of-2"][..], "out"),
        ("the first shard is missing", &["2-of-3"], "out"),
        ("nearly all of very many are missing", &["one-of-many"], "out"),
        ("the same file twice", &["1-of-2", "2-of-2", "2-of-2"], "out"),
        ("the same shard twice, and one missing", &["2-of-2", "copy"], "out"),
        ("shards of two and of three", &["1-of-2", "2-of-3"], "out"),
        ("shards of two models", &["1-of-2", "other-model"], "out"),
        ("shards of other data", &["1-of-2", "other-data"], "out"),
        ("shards of two instruction sets", &["avx2", "scalar"], "out"),
        ("shards of two versions", &["avx2", "later"], "out"),
        ("shards of two seeds", &["1-of-2", "seed-43"], "out"),
        ("a shard with too many tokens", &["1-of-2", "heavier"], "out"),
        ("a shard that was changed", &["1-of-2", "renamed"], "out"),
        ("a shard that cannot be", &["no-shard"], "out"),
        ("a whole set", &["whole"], "out"),
        ("a whole set among shards", &["1-of-2", "2-of-2", "whole"], "out"),
        ("no statistics among shards", &["1-of-2", "text.txt"], "out"),
        ("the output is something else", &["1-of-2", "2-of-2"], "text.txt"),
        ("the output is a directory", &["1-of-2", "2-of-2"], "directory"),
        ("the output is inside a file", &["1-of-2", "2-of-2"], "text.txt/out"),
    ] {
        let arguments = [&["statistics", "merge"], files, &["--out", out]].concat();
        answers.refused(1, mistake, &arguments);
    }
    answers.refused(
        1,
        "a model from one shard",
        &["quantize", "config.toml", "--statistics", "1-of-2", "--out", "out"],
    );
    answers.refused(1, "a text shown", &["statistics", "show", "text.txt"]);
    for (mistake, files, out) in [
        ("a shard that does not exist", &["1-of-2", "absent"][..], "out"),
        ("the output is a shard", &["1-of-2", "2-of-2"], "./2-of-2"),
    ] {
        let arguments = [&["statistics", "merge"], files, &["--out", out]].concat();
        answers.refused(2, mistake, &arguments);
    }
    answers.refused(2, "nothing shown", &["statistics", "show", "absent"]);
    answers.compare("errors__shards");
}
