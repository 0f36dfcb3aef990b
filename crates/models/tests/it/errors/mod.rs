//! What is wrong with a model directory or a batch is said in one sentence, before any weight is read; and the edges of
//! what is allowed work.

mod config;
mod texts;

use serde_json::{Value, json};
use zeropoint_formats::{Dtype, TensorSpec};
use zeropoint_models::{
    ActivationFn, HeadOutput, LinearRole, Model, ModelDirectory, PackedBatch, Pooling, Positions,
    RowSelection, SourceRef, Task, TokenSequence,
};

use crate::copies::Copy;

const MEAN: &str = "bert-mean";
const CLASSIFIER: &str = "bert-classifier-bf16";

#[track_caller]
fn assert_says(result: Result<ModelDirectory, String>, phrases: &[&str]) {
    let Err(message) = result else { panic!("opened, where {phrases:?} was to be said") };
    for phrase in phrases {
        assert!(message.contains(phrase), "{phrase:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "one sentence is expected: {message}");
}

fn batch_of(directory: &ModelDirectory, text: &str) -> PackedBatch {
    let tokens = directory.tokenizer(None).expect("a tokenizer").encode(text, None).expect("tokens");
    PackedBatch::new([&tokens]).expect("a batch")
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused() {
    const QUERY: &str = "encoder.layer.1.attention.self.query.weight";
    const UP: &str = "encoder.layer.0.intermediate.dense.weight";
    let missing = Copy::of(MEAN);
    missing.tensors(|tensors| {
        tensors.remove(QUERY);
    });
    assert_says(
        missing.open(Task::Auto),
        &[QUERY, "is missing; config.json describes one of shape [32, 32]"],
    );

    let no_bias = Copy::of(MEAN);
    no_bias.tensors(|tensors| {
        tensors.remove("encoder.layer.1.output.dense.bias");
    });
    assert_says(no_bias.open(Task::Auto), &["tensor `encoder.layer.1.output.dense.bias` is missing"]);

    let transposed = Copy::of(MEAN);
    transposed.tensors(|tensors| tensors.get_mut(UP).unwrap().0.shape.reverse());
    assert_says(transposed.open(Task::Auto), &[UP, "has shape [32, 64]; config.json says [64, 32]"]);

    let flat = Copy::of(MEAN);
    flat.tensors(|tensors| tensors.get_mut(UP).unwrap().0.shape = vec![64 * 32]);
    assert_says(flat.open(Task::Auto), &[UP, "has shape [2048]; config.json says [64, 32]"]);

    for name in
        ["encoder.layer.0.adapter.weight", "encoder.layer.0.output.dense.weight_scale", "regression.weight"]
    {
        let extra = Copy::of(MEAN);
        extra.tensors(|tensors| {
            tensors.insert(name.to_owned(), (TensorSpec::new(name, Dtype::F32, [1]), vec![0; 4]));
        });
        let tensor = format!("tensor `{name}` is not part of the architecture");
        assert_says(extra.open(Task::Auto), &[&tensor, "cannot be converted safely"]);
    }
}

#[test]
fn norms_of_old_checkpoints_are_found_by_their_old_names() {
    let whole = Copy::of(MEAN);
    let reference = whole.opened();
    let old = Copy::of(MEAN);
    old.tensors(|tensors| {
        let norms: Vec<String> = tensors.keys().filter(|name| name.contains("LayerNorm")).cloned().collect();
        assert_eq!(norms.len(), 10);
        for name in norms {
            let (spec, bytes) = tensors.remove(&name).unwrap();
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            tensors.insert(name.clone(), (TensorSpec { name, ..spec }, bytes));
        }
    });
    let batch =
        PackedBatch::new([&reference.tokenizer(None).unwrap().encode("the river", None).unwrap()]).unwrap();
    let outputs = |directory: &ModelDirectory| Model::load(directory).unwrap().forward(&batch).unwrap();
    assert_eq!(outputs(&old.opened()), outputs(&reference));
}

#[test]
fn labels_and_tasks_that_do_not_fit_are_refused() {
    let hole = Copy::of(CLASSIFIER);
    hole.edit("config.json", |config| {
        let labels = config["id2label"].as_object_mut().unwrap();
        let label = labels.remove("3").unwrap();
        labels.insert("7".to_owned(), label);
    });
    assert_says(hole.open(Task::Auto), &["`id2label` has 5 entries but none with a name for label 3"]);

    let few = Copy::of(CLASSIFIER);
    few.set("id2label", json!({"0": "no", "1": "yes"}));
    assert_says(
        few.open(Task::Auto),
        &["tensor `classifier.weight` has shape [5, 24]; config.json says [2, 24]"],
    );

    let many = Copy::of(CLASSIFIER);
    many.set("problem_type", "ranking");
    assert_says(
        many.open(Task::Auto),
        &["`problem_type` `ranking` is not supported; single_label_classification, "],
    );

    let asked = "`task = \"classification\"` does not fit BertModel; it has no head for that; `embedding` and `auto` fit";
    assert_says(Copy::of(MEAN).open(Task::Classification), &[asked]);
}

#[test]
fn a_classifier_can_be_asked_for_embeddings() {
    let directory = Copy::of(CLASSIFIER).open(Task::Embedding).unwrap();
    let head = directory.spec().head();
    assert_eq!(head.output, HeadOutput::Embedding { after: Vec::new(), include_prompt: true });
    assert_eq!(head.branches.len(), 1);
    assert_eq!(head.branches[0].rows, RowSelection::Pooled(vec![Pooling::Mean]));
    let unread: Vec<&str> =
        directory.spec().linears.iter().filter(|l| l.site.is_none()).map(|l| l.path.as_str()).collect();
    assert_eq!(unread, ["pooler.dense"]);
    let carried: Vec<&str> = directory.spec().unused.iter().map(|(tensor, _)| tensor.as_str()).collect();
    assert_eq!(carried, ["classifier.bias", "classifier.weight"]);
}

/// `modules.json` and `config_sentence_transformers.json` as `CrossEncoder.save_pretrained` of sentence-transformers 6.2 writes
/// them, but for the activation.
#[test]
fn a_cross_encoder_is_read_as_sentence_transformers_saves_it() {
    let modules = json!([{
        "idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"
    }]);
    let saved = json!({
        "__version__": { "pytorch": "2.15.0", "sentence_transformers": "6.2.0", "transformers": "5.23.0" },
        "activation_fn": "torch.nn.modules.activation.Tanh",
        "default_prompt_name": null,
        "model_type": "CrossEncoder",
        "prompts": {}
    });
    let copy = Copy::of("bert-cross-encoder");
    let (before, file) = (copy.opened(), "config_sentence_transformers.json");
    assert_eq!(before.score_activation().unwrap(), ActivationFn::Identity, "as config.json says");
    copy.write(file, &saved.to_string());
    assert_eq!(copy.opened().score_activation().unwrap(), ActivationFn::Identity, "without modules.json");
    copy.write("modules.json", &modules.to_string());
    let directory = copy.opened();
    assert_eq!(directory.spec(), before.spec());
    assert_eq!(directory.score_activation().unwrap(), ActivationFn::Tanh);

    copy.edit(file, |saved| saved["activation_fn"] = "ours.Softsign".into());
    let message = copy.opened().score_activation().unwrap_err().to_string();
    assert!(
        message.contains("config_sentence_transformers.json: has the score activation `Softsign`; "),
        "{message}"
    );
    copy.edit(file, |saved| saved["activation_fn"] = Value::Null);
    assert_eq!(copy.opened().score_activation().unwrap(), ActivationFn::Identity);

    copy.edit(file, |saved| saved["default_prompt_name"] = "query".into());
    let says = "has the `default_prompt_name` `query`; prompts of cross-encoders are not supported";
    assert_says(copy.open(Task::Auto), &["config_sentence_transformers.json: ", says]);
    copy.edit(file, |saved| saved["default_prompt_name"] = Value::Null);
    copy.edit("modules.json", |modules| modules[0]["path"] = "0_Transformer".into());
    assert_says(copy.open(Task::Auto), &["keeps its Transformer in `0_Transformer`"]);
    copy.edit("modules.json", |modules| {
        modules[0]["path"] = "".into();
        modules.as_array_mut().unwrap().push(json!({
            "idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"
        }));
    });
    let says = "a cross-encoder of the modules [Transformer, LogitScore]; a Transformer alone is supported";
    assert_says(copy.open(Task::Auto), &[says]);

    // What the architecture says is enough, and an encoder's is not.
    copy.write("modules.json", &modules.to_string()).remove(file);
    assert_eq!(copy.opened().spec(), before.spec());
    let encoder = Copy::of(MEAN);
    encoder.write("modules.json", &modules.to_string());
    assert_says(
        encoder.open(Task::Auto),
        &["describes the modules [Transformer]; Transformer, Pooling, then any"],
    );
}

#[test]
fn a_tied_decoder_that_is_in_the_file_must_be_the_table() {
    const TABLE: &str = "bert.embeddings.word_embeddings.weight";
    const DECODER: &str = "cls.predictions.decoder.weight";
    const BIASES: [&str; 2] = ["cls.predictions.bias", "cls.predictions.decoder.bias"];
    let twice = |copy: &Copy, from: &str, to: &str, change: fn(&mut Vec<u8>)| {
        copy.tensors(|tensors| {
            let (spec, mut bytes) = tensors[from].clone();
            change(&mut bytes);
            tensors.insert(to.to_owned(), (TensorSpec { name: to.to_owned(), ..spec }, bytes));
        });
    };
    let outputs = |copy: &Copy| {
        let directory = copy.opened();
        let batch = batch_of(&directory, "the river is [MASK] fire");
        Model::load(&directory).map(|model| model.forward(&batch).unwrap()).map_err(|error| error.to_string())
    };
    // The last value of a little-endian f32 becomes another, finite one.
    let last = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 0x80;
    let reference = outputs(&Copy::of("bert-mlm"));
    assert!(reference.is_ok());

    let equal = Copy::of("bert-mlm");
    twice(&equal, TABLE, DECODER, |_| ());
    twice(&equal, BIASES[0], BIASES[1], |_| ());
    let spec = equal.opened().spec().clone();
    let pair = |copy: &str, original: &str| (copy.to_owned(), original.to_owned());
    assert_eq!(spec.copies, [pair(DECODER, TABLE), pair(BIASES[1], BIASES[0])]);
    assert!(spec.unused.is_empty(), "{:?}", spec.unused);
    assert_eq!(outputs(&equal), reference);

    for (original, copy) in [(TABLE, DECODER), (BIASES[0], BIASES[1])] {
        let differing = Copy::of("bert-mlm");
        twice(&differing, original, copy, last);
        let message = outputs(&differing).unwrap_err();
        let says = format!("tensor `{copy}` differs from `{original}`, to which config.json ties it; ");
        assert!(message.contains(&says), "{says:?} is not in: {message}");

        // Not tied, the decoder runs with its own.
        differing.set("tie_word_embeddings", false);
        assert!(differing.opened().spec().copies.is_empty());
        assert_ne!(outputs(&differing).unwrap(), *reference.as_ref().unwrap());
    }
    let untied = Copy::of("bert-mlm");
    twice(&untied, TABLE, DECODER, last);
    untied.set("tie_word_embeddings", false);
    let directory = untied.opened();
    let (_, decoder) = directory.spec().linear("cls.predictions.decoder").unwrap();
    assert_eq!((decoder.weight.as_str(), decoder.role), (DECODER, LinearRole::Classifier));

    let wide = Copy::of("bert-mlm");
    twice(&wide, "bert.embeddings.position_embeddings.weight", DECODER, |_| ());
    assert_says(wide.open(Task::Auto), &[DECODER, "has shape [64, 32]; config.json says [107, 32]"]);
}

#[test]
fn the_first_config_of_the_transformer_that_says_anything_counts() {
    let copy = Copy::of(MEAN);
    copy.write("sentence_xlnet_config.json", r#"{"max_seq_length": 9}"#);
    copy.write("sentence_roberta_config.json", r#"{"max_seq_length": 20, "do_lower_case": null}"#);
    assert_eq!(copy.opened().max_tokens(), 48, "of sentence_bert_config.json");
    copy.write("sentence_bert_config.json", "{}");
    assert_eq!(copy.opened().max_tokens(), 20);
    copy.remove("sentence_bert_config.json").remove("sentence_roberta_config.json");
    assert_eq!(copy.opened().max_tokens(), 9);
    copy.write("sentence_xlnet_config.json", r#"{"max_seq_length": "9"}"#);
    assert_says(copy.open(Task::Auto), &["sentence_xlnet_config.json: invalid type: string \"9\""]);
}

#[test]
fn sentence_transformers_chains_that_are_not_understood_are_refused() {
    struct Case {
        change: fn(&mut Value),
        says: &'static str,
    }
    let modules = [
        Case {
            change: |modules| {
                modules.as_array_mut().unwrap().push(json!({
                    "idx": 3, "name": "3", "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"
                }));
            },
            says: "describes the modules [Transformer, Pooling, Normalize, LSTM]; Transformer, Pooling, then any Dense \
                   and Normalize are supported",
        },
        Case {
            change: |modules| modules.as_array_mut().unwrap().swap(1, 2),
            says: "describes the modules [Transformer, Normalize, Pooling]",
        },
        Case { change: |modules| *modules = json!([]), says: "describes the modules []" },
        Case {
            change: |modules| modules[0]["path"] = "0_Transformer".into(),
            says: "keeps its Transformer in `0_Transformer`; it must be the directory itself",
        },
        Case {
            change: |modules| modules[1]["path"] = "../1_Pooling".into(),
            says: "names the pooling folder `../1_Pooling`, which is not inside the directory",
        },
        Case {
            change: |modules| modules[1]["path"] = "1_Pooling/../../etc".into(),
            says: "names the pooling folder `1_Pooling/../../etc`, which is not inside the directory",
        },
        Case {
            change: |modules| modules[1]["path"] = "/etc".into(),
            says: "names the pooling folder `/etc`, which is not inside the directory",
        },
        Case {
            change: |modules| modules[1]["path"] = "2_Pooling".into(),
            says: "2_Pooling/config.json: is missing, and modules.json names its folder",
        },
        Case {
            change: |modules| *modules = json!({}),
            says: "modules.json: is not the JSON that is expected",
        },
    ];
    for Case { change, says } in modules {
        assert_says(Copy::of(MEAN).edit("modules.json", change).open(Task::Auto), &[says]);
    }
    let poolings = [
        (
            json!({"pooling_mode_attention_tokens": true}),
            "asks for pooling `attention_tokens`; cls, max, mean",
        ),
        (json!({"pooling_mode_mean_tokens": true, "pooling_mode_first": true}), "asks for pooling `first`"),
        (json!({"pooling_mode": "median"}), "asks for pooling `median`"),
        (json!({"pooling_mode": ["mean", 3]}), "names the pooling mode 3; cls, max, mean"),
        (json!({"pooling_mode": 3}), "has the `pooling_mode` 3; a name or a list of cls, max, mean"),
        (
            json!({"pooling_mode_mean_tokens": false}),
            "names no pooling mode; cls, max, mean, mean_sqrt_len_tokens, weightedmean and lasttoken are supported",
        ),
        (json!({}), "names no pooling mode"),
    ];
    for (config, says) in poolings {
        let copy = Copy::of(MEAN);
        copy.write("1_Pooling/config.json", &config.to_string());
        assert_says(copy.open(Task::Auto), &["1_Pooling/config.json: ", says]);
    }
}

#[test]
fn several_poolings_are_joined_in_the_order_of_sentence_transformers() {
    let copy = Copy::of(MEAN);
    let names = |form: Value| {
        copy.write("1_Pooling/config.json", &form.to_string());
        match &copy.opened().spec().head().branches[0].rows {
            RowSelection::Pooled(poolings) => poolings.clone(),
            rows => panic!("{rows:?}"),
        }
    };
    let all = [Pooling::Cls, Pooling::Max, Pooling::Mean];
    let listed = [Pooling::Mean, Pooling::Cls, Pooling::Max];
    assert_eq!(names(json!({"pooling_mode": ["mean", "cls", "max"]})), listed, "a list has an order");
    assert_eq!(names(json!({"pooling_mode": ["max", "max"]})), [Pooling::Max, Pooling::Max]);
    let flags = json!({
        "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true, "pooling_mode_cls_token": true
    });
    assert_eq!(names(flags), all);

    let directory = copy.opened();
    let batch = batch_of(&directory, "the river is on fire");
    let outputs = Model::load(&directory).unwrap().forward(&batch).unwrap();
    assert_eq!((outputs.columns, outputs.values.len()), (96, 96));
    let length = outputs.values.iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() < 1e-6, "Normalize follows the joined vector: {length}");
}

#[test]
fn sources_that_are_no_directory_are_told_apart() {
    let copy = Copy::of(MEAN);
    let says = |source: &str| SourceRef::parse(source).unwrap_err().to_string();
    let hub = SourceRef::parse("sentence-transformers/all-MiniLM-L6-v2").expect("a model of the hub");
    assert_eq!(hub.name(), "all-MiniLM-L6-v2");
    let unfetched =
        ModelDirectory::open(&hub, Task::Auto).map(|_| ()).expect_err("it is not here").to_string();
    assert!(unfetched.contains("it was not fetched from the hub"), "{unfetched}");
    let absent = copy.path("absent").to_string_lossy().into_owned();
    assert!(says(&absent).contains("absent: no such model directory; a directory with config.json"));
    let file = copy.path("config.json").to_string_lossy().into_owned();
    assert!(
        says(&file)
            .contains("config.json: a file is given; the directory that holds config.json is expected")
    );
    assert_eq!(SourceRef::parse("embedded").unwrap(), SourceRef::Embedded);
    // Tests run in the directory of the crate, which has a folder `src`.
    let in_the_way = says("src/all-MiniLM-L6-v2");
    assert!(
        in_the_way.starts_with(
            "src/all-MiniLM-L6-v2: no such model directory, and it is not taken for an id of the hub because `src` exists \
             here: "
        ),
        "{in_the_way}"
    );
}
