//! What is wrong with a model directory or a batch is said in one sentence, before any weight is read; and the edges of
//! what is allowed work.

mod copies;

use serde_json::{Value, json};
use zeropoint_formats::{Dtype, TensorSpec};
use zeropoint_models::{
    ActivationFn, HeadOutput, LinearRole, Model, ModelDirectory, PackedBatch, Pooling, Positions,
    RowSelection, SourceRef, Task, TokenSequence,
};

use copies::Copy;

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

#[test]
fn a_config_that_does_not_fit_is_refused() {
    struct Case {
        key: &'static str,
        value: Value,
        says: &'static str,
    }
    let case = |key, value, says| Case { key, value, says };
    let cases = [
        case(
            "architectures",
            json!(["BloomForCausalLM"]),
            "architecture `BloomForCausalLM` is not supported; supported are classes of Bert, Roberta, XLMRoberta, ",
        ),
        case(
            "architectures",
            json!(["BertForNextSentencePrediction"]),
            "architecture `BertForNextSentencePrediction` is not supported; supported are BertModel, \
             BertForSequenceClassification, BertForTokenClassification, BertForMaskedLM, ",
        ),
        case("hidden_act", json!("mish"), "`hidden_act` `mish` is not supported; gelu, gelu_new, "),
        case(
            "num_attention_heads",
            json!(5),
            "`hidden_size` 32 is not a multiple of `num_attention_heads` 5",
        ),
        case("num_attention_heads", json!(0), "`num_attention_heads` is 0; 1 to "),
        case("num_hidden_layers", json!(0), "`num_hidden_layers` is 0; 1 to 1024 is allowed"),
        case("num_hidden_layers", json!(1025), "`num_hidden_layers` is 1025; 1 to 1024 is allowed"),
        case("num_hidden_layers", json!(u64::MAX), "`num_hidden_layers` is 18446744073709551615; "),
        case("num_hidden_layers", json!(-1), "invalid value: integer `-1`"),
        case("num_hidden_layers", json!("2"), "invalid type: string \"2\""),
        case(
            "num_hidden_layers",
            json!(1024),
            "tensor `encoder.layer.2.attention.self.query.weight` is missing; config.json describes one of shape \
             [32, 32]",
        ),
        case(
            "num_hidden_layers",
            json!(1),
            "tensor `encoder.layer.1.attention.output.LayerNorm.bias` is not part of the architecture that \
             config.json describes (1 layers)",
        ),
        case("hidden_size", json!(0), "`hidden_size` is 0; 1 to 65536 is allowed"),
        case("hidden_size", json!(1u64 << 40), "`hidden_size` is 1099511627776; 1 to 65536 is allowed"),
        case(
            "hidden_size",
            json!(65_536),
            "tensor `embeddings.word_embeddings.weight` has shape [107, 32]; config.json says [107, 65536]",
        ),
        case("intermediate_size", json!(u64::MAX), "`intermediate_size` is 18446744073709551615; "),
        case("vocab_size", json!(1 << 28), "config.json says [268435456, 32]"),
        case("vocab_size", json!((1 << 28) + 1), "`vocab_size` is 268435457; 1 to 268435456 is allowed"),
        case("max_position_embeddings", json!(128), "has shape [64, 32]; config.json says [128, 32]"),
        case("type_vocab_size", json!(0), "`type_vocab_size` is 0; "),
        case("layer_norm_eps", json!(0.0), "`layer_norm_eps` is 0; it lies between 0 and 1"),
        case("is_decoder", json!(true), "`is_decoder` is true; the family is supported as an encoder only"),
        case(
            "position_embedding_type",
            json!("relative_key"),
            "`position_embedding_type` `relative_key` is not supported; `absolute` is",
        ),
    ];
    for Case { key, value, says } in cases {
        let copy = Copy::of(MEAN);
        copy.set(key, value);
        let path = copy.0.path().to_string_lossy().into_owned();
        assert_says(copy.open(Task::Auto), &[says, &path]);
    }
}

#[test]
fn rotary_positions_that_are_scaled_are_refused() {
    let linear = json!({ "rope_type": "linear", "factor": 2.0 });
    for fixture in ["nomic-mean", "gte-mean", "modernbert-mean", "modernbert-old-config"] {
        for scaling in [linear.clone(), json!({ "type": "dynamic" }), json!({ "factor": 8.0 }), json!("yarn")]
        {
            let copy = Copy::of(fixture);
            copy.set("rope_scaling", scaling.clone());
            let says = format!("`rope_scaling` is {scaling}; only null and the type `default` are supported");
            assert_says(copy.open(Task::Auto), &[&says]);
        }
        for harmless in [Value::Null, json!({}), json!({ "rope_type": "default", "type": "default" })] {
            let copy = Copy::of(fixture);
            copy.set("rope_scaling", harmless);
            copy.opened();
        }
    }
    for fixture in ["nomic-mean", "gte-mean"] {
        let copy = Copy::of(fixture);
        copy.set("rope_parameters", linear.clone());
        assert_says(
            copy.open(Task::Auto),
            &["`rope_parameters` has the type `linear`; only `default` is supported"],
        );
    }
    for layers in ["full_attention", "sliding_attention"] {
        let copy = Copy::of("modernbert-mean");
        copy.edit("config.json", |config| config["rope_parameters"][layers] = linear.clone());
        let says = format!("`rope_parameters.{layers}` has the type `linear`; only `default` is supported");
        assert_says(copy.open(Task::Auto), &[&says]);
    }
}

#[test]
fn a_decoder_config_that_does_not_fit_is_refused() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    let with = |key: &str, value: Value| {
        let mut settings = llama3.clone();
        settings[key] = value;
        settings
    };
    let cases = [
        (
            "num_key_value_heads",
            json!(3),
            "`num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3",
        ),
        ("num_key_value_heads", json!(0), "`num_key_value_heads` is 0; 1 to 65536 is allowed"),
        ("num_key_value_heads", json!(1), "`model.layers.0.self_attn.k_proj.weight` has shape [12, 24]"),
        ("head_dim", json!(7), "4 heads have 7 channels each; rotary positions need an even number"),
        ("head_dim", json!(65_536), "all heads together have at most 65536"),
        ("hidden_act", json!("mish"), "`hidden_act` `mish` is not supported"),
        ("rms_norm_eps", json!(0.0), "`rms_norm_eps` is 0; it lies between 0 and 1"),
        ("rope_scaling", json!("yarn"), "`rope_scaling` is \"yarn\"; an object or null is expected"),
        (
            "rope_scaling",
            json!({ "type": "ntk", "factor": 4.0 }),
            "`rope_scaling` has the type `ntk`; default, linear, dynamic, llama3, yarn and longrope are supported",
        ),
        (
            "rope_scaling",
            json!({ "type": "linear" }),
            "`rope_scaling.factor` is missing or no number from 1 to 1e9",
        ),
        (
            "rope_parameters",
            with("factor", json!(0.5)),
            "`rope_parameters.factor` is missing or no number from 1 to 1e9",
        ),
        (
            "rope_parameters",
            with("low_freq_factor", json!(4.0)),
            "`rope_parameters.low_freq_factor` is 4, not below `high_freq_factor` 4",
        ),
        (
            "rope_scaling",
            with("rope_theta", json!(0.1)),
            "`rope_scaling.rope_theta` is 0.1; a number from 1 to",
        ),
    ];
    for (key, value, says) in cases {
        let copy = Copy::of("llama-causal");
        copy.set(key, value);
        assert_says(copy.open(Task::Auto), &[says]);
    }
    let cases = [
        ("mistral-causal", "sliding_window", json!(0), "`sliding_window` is 0; null or a number of tokens"),
        (
            "qwen2-causal",
            "layer_types",
            json!(["full_attention"]),
            "`layer_types` has 1 entries for 2 layers",
        ),
        (
            "qwen2-causal",
            "layer_types",
            json!(["full_attention", "chunked_attention"]),
            "`layer_types` names `chunked_attention`; full_attention and sliding_attention are supported",
        ),
        ("qwen2-causal", "tie_word_embeddings", json!(false), "tensor `lm_head.weight` is missing"),
        ("smollm3-causal", "no_rope_layers", json!([1, 0]), "`no_rope_layers` has 2 entries for 4 layers"),
        (
            "llama-causal",
            "partial_rotary_factor",
            json!(0.5),
            "every channel of this family's heads turns, so 1",
        ),
        ("gemma2-causal", "attn_logit_softcapping", json!(-1.0), "`attn_logit_softcapping` is -1; null or a"),
        (
            "gemma2-causal",
            "query_pre_attn_scalar",
            json!(0),
            "`query_pre_attn_scalar` is 0; a number above 0",
        ),
        ("gemma3-causal", "use_bidirectional_attention", json!(true), "only causal models are supported"),
        (
            "gemma3-causal",
            "rope_parameters",
            json!({ "full_attention": 3 }),
            "`rope_parameters.full_attention` is 3; an object or null is expected",
        ),
        ("gpt2-causal", "add_cross_attention", json!(true), "only decoders by themselves are supported"),
        ("gpt2-causal", "n_head", json!(5), "`n_embd` 24 is not a multiple of `n_head` 5"),
        (
            "phi3-long",
            "rope_parameters",
            json!({ "rope_type": "longrope", "short_factor": [1, 2, 0], "long_factor": [1, 1, 1] }),
            "`rope_parameters.short_factor` is no list of 3 numbers above 0",
        ),
        (
            "phi3-causal",
            "rope_parameters",
            json!({ "partial_rotary_factor": 0.1 }),
            "0 of 8 channels do not turn in pairs",
        ),
        (
            "phi3-causal",
            "rope_parameters",
            json!({ "partial_rotary_factor": -1 }),
            "a number above 0 and at most 1 is expected",
        ),
        (
            "phi3-long",
            "original_max_position_embeddings",
            json!(0),
            "is 0; a number from 1 to 1e9 is expected",
        ),
    ];
    for (fixture, key, value, says) in cases {
        let copy = Copy::of(fixture);
        copy.set(key, value);
        assert_says(copy.open(Task::Auto), &[says]);
    }
    assert_says(
        Copy::of("llama-causal").open(Task::MaskedLm),
        &["`task = \"masked-lm\"` does not fit LlamaForCausalLM; `causal-lm`, `embedding` and `auto` fit"],
    );
}

/// `transformers` lets a `rope_scaling` that holds anything take the place of `rope_parameters`.
#[test]
fn a_harmless_rope_scaling_still_takes_the_place_of_the_parameters() {
    let theta = |copy: &Copy| match &copy.opened().spec().towers[0].blocks[0].attention.positions {
        Positions::Rotary(rotary) => rotary.theta,
        other => panic!("{other:?}"),
    };
    let copy = Copy::of("gte-mean");
    assert_eq!(theta(&copy), 20_000.0);
    copy.set("rope_scaling", json!({}));
    assert_eq!(theta(&copy), 20_000.0);
    copy.set("rope_scaling", json!({ "rope_type": "default" }));
    assert_eq!(theta(&copy), 160_000.0, "the family's");
}

#[test]
fn switches_of_nomic_that_are_not_computed_are_refused() {
    for key in ["causal", "parallel_block", "rotary_head_dim", "rotary_emb_interleaved"] {
        let copy = Copy::of("nomic-mean");
        copy.set(key, false);
        copy.opened();
        copy.set(key, true);
        assert_says(copy.open(Task::Auto), &[&format!("`{key}` is true; only false is supported")]);
    }
}

#[test]
fn padding_that_leaves_no_positions_is_refused() {
    // The fixture has 50 rows of positions, which begin behind the padding's.
    for (pad, fits) in [(1u64, true), (48, true), (49, false), (50, false), (u64::MAX, false)] {
        let copy = Copy::of("roberta-classifier");
        copy.set("pad_token_id", pad);
        let opened = copy.open(Task::Auto);
        if fits {
            assert!(opened.is_ok());
        } else {
            assert_says(
                opened,
                &[&format!("`pad_token_id` is {pad}, which leaves no row of 50 to the positions")],
            );
        }
    }
}

/// As `transformers` reads them: what `text_config_dict` does not say is a default, whatever `text_config` says.
#[test]
fn the_older_table_of_a_clip_tower_takes_the_place_of_the_newer() {
    let copy = Copy::of("clip");
    let reference = copy.opened().spec().clone();
    copy.edit("config.json", |config| {
        config["text_config_dict"] = config["text_config"].clone();
        config["vision_config_dict"] = config["vision_config"].clone();
        config["text_config"]["hidden_size"] = 48.into();
        config["vision_config"]["num_hidden_layers"] = 1.into();
    });
    assert_eq!(*copy.opened().spec(), reference);
    copy.edit("config.json", |config| {
        config["text_config"]["hidden_size"] = 16.into();
        config["text_config_dict"].as_object_mut().unwrap().remove("hidden_size");
    });
    assert_says(copy.open(Task::Auto), &["token_embedding.weight", "config.json says [122, 512]"]);
    // A model of the tower alone reads the newer one.
    copy.set("architectures", json!(["CLIPTextModelWithProjection"]));
    copy.opened();
}

#[test]
fn a_config_that_is_not_there_or_not_json_is_named() {
    let copy = Copy::of(MEAN);
    assert_says(
        copy.write("config.json", "{\"hidden_size\": ").open(Task::Auto),
        &["config.json: is not the JSON that is expected: EOF while parsing"],
    );
    copy.write("config.json", "[]");
    assert_says(copy.open(Task::Auto), &["config.json: neither `architectures` nor `model_type` is given"]);
    copy.write("config.json", "{\"model_type\": \"bert\"}");
    assert_says(copy.open(Task::Auto), &["config.json: missing field `hidden_size`"]);
    copy.write("config.json", "{\"model_type\": \"bloom\"}");
    assert_says(copy.open(Task::Auto), &["architecture `bloom` is not supported"]);
    assert_says(
        copy.remove("config.json").open(Task::Auto),
        &["holds no config.json, so it is not a model directory"],
    );
    let copy = Copy::of(MEAN);
    assert_says(copy.remove("model.safetensors").open(Task::Auto), &["holds neither model.safetensors nor "]);
}

#[test]
fn a_config_without_architectures_means_the_base_model() {
    let copy = Copy::of(MEAN);
    copy.edit("config.json", |config| {
        config.as_object_mut().unwrap().remove("architectures");
    });
    assert_eq!(copy.opened().spec().architecture, "BertModel");
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

fn batch_of(directory: &ModelDirectory, text: &str) -> PackedBatch {
    let tokens = directory.tokenizer(None).expect("a tokenizer").encode(text, None).expect("tokens");
    PackedBatch::new([&tokens]).expect("a batch")
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

#[test]
fn a_vocabulary_alone_gives_the_ids_of_the_whole_tokenizer() {
    let texts = [
        "the river is on fire",
        "What was that, and when can we use it?",
        "Cafés in Zürich 水 cost 12!",
        "MODELS, models;\tmodels\u{a0}\u{200b}and\nMoDeLs",
        "unbelievable wonderfulnesses",
        "",
    ];
    for name in ["bert-mean", "bert-max-f16", "bert-classifier-bf16"] {
        let copy = Copy::of(name);
        let whole = copy.opened().tokenizer(None).unwrap();
        let alone = copy.remove("tokenizer.json").opened().tokenizer(None).unwrap();
        for text in texts {
            assert_eq!(
                alone.encode(text, None).unwrap(),
                whole.encode(text, None).unwrap(),
                "{name}: {text:?}"
            );
            let pair = Some("and the model");
            assert_eq!(
                alone.encode(text, pair).unwrap(),
                whole.encode(text, pair).unwrap(),
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn tokenizers_that_cannot_be_loaded_are_named() {
    let says = |copy: &Copy, max_length: Option<usize>| match copy.opened().tokenizer(max_length) {
        Ok(_) => panic!("loaded"),
        Err(error) => error.to_string(),
    };
    let copy = Copy::of(MEAN);
    let short = says(&copy, Some(4));
    assert!(short.contains("would cut samples at 4 tokens; at least 5 are needed"), "{short}");
    copy.write("tokenizer.json", "{}");
    let broken = says(&copy, None);
    assert!(broken.contains("tokenizer.json: the tokenizer cannot be loaded: "), "{broken}");
    copy.remove("tokenizer.json").write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\nthe\n");
    let separator = says(&copy, None);
    assert!(
        separator.contains("vocab.txt: the tokenizer cannot be loaded: vocab.txt has no [SEP]"),
        "{separator}"
    );
    let none = says(copy.remove("vocab.txt"), None);
    assert!(none.contains("neither tokenizer.json nor vocab.txt is in the directory"), "{none}");
}

#[test]
fn samples_are_cut_at_the_smaller_of_the_limits() {
    let copy = Copy::of(MEAN);
    let directory = copy.opened();
    assert_eq!(directory.max_tokens(), 48);
    let text = "the river is on fire ".repeat(30);
    let whole = directory.tokenizer(None).unwrap().encode(&text, None).unwrap();
    for (asked, expected) in [(None, 48), (Some(1000), 48), (Some(48), 48), (Some(12), 12), (Some(5), 5)] {
        let tokenizer = directory.tokenizer(asked).unwrap();
        assert_eq!(tokenizer.max_length(), expected);
        let cut = tokenizer.encode(&text, None).unwrap();
        assert_eq!((cut.len(), cut.type_ids.len()), (expected, expected));
        assert_eq!(cut.ids[..expected - 1], whole.ids[..expected - 1], "a cut keeps the beginning");
        assert_eq!(cut.ids[expected - 1], whole.ids[47], "a cut sample still ends with the separator");
        let pair = tokenizer.encode(&text, Some(&text)).unwrap();
        assert_eq!(pair.len(), expected);
        let separators = pair.ids.iter().filter(|id| **id == whole.ids[47]).count();
        assert_eq!(separators, 2, "a cut pair keeps both separators");
    }
}

#[test]
fn an_empty_text_is_two_specials_and_has_a_vector() {
    let copy = Copy::of(MEAN);
    let directory = copy.opened();
    let batch = batch_of(&directory, "");
    assert_eq!((batch.len(), batch.tokens()), (1, 2));
    let outputs = Model::load(&directory).unwrap().forward(&batch).unwrap();
    assert_eq!(outputs.values.len(), 32);
    assert!(outputs.values.iter().all(|v| v.is_finite()));
}

#[test]
fn batches_that_hold_nothing_are_refused() {
    let none: [&TokenSequence; 0] = [];
    assert_eq!(PackedBatch::new(none).unwrap_err().to_string(), "a batch holds no sample");
    let empty = TokenSequence { ids: Vec::new(), type_ids: Vec::new(), prompt: 0 };
    let some = TokenSequence { ids: vec![2, 3], type_ids: vec![0, 0], prompt: 0 };
    for batch in [vec![&empty], vec![&some, &empty], vec![&empty, &some]] {
        assert_eq!(PackedBatch::new(batch).unwrap_err().to_string(), "a sample has no token at all");
    }
}

#[test]
fn a_sample_that_the_tables_do_not_hold_is_refused() {
    let model = Model::load(&Copy::of(MEAN).opened()).unwrap();
    let sequence =
        |ids: Vec<u32>, kind: u32| TokenSequence { type_ids: vec![kind; ids.len()], ids, prompt: 0 };
    let cases = [
        (sequence(vec![2, 106, 3], 1), None),
        (
            sequence(vec![2, 107, 3], 0),
            Some("row 107 of `embeddings.word_embeddings.weight` is asked for, which has 107"),
        ),
        (sequence(vec![2, u32::MAX, 3], 0), Some("row 4294967295 of `embeddings.word_embeddings.weight`")),
        (
            sequence(vec![2, 3], 2),
            Some("row 2 of `embeddings.token_type_embeddings.weight` is asked for, which has 2"),
        ),
        (sequence(vec![5; 64], 0), None),
        (
            sequence(vec![5; 65], 0),
            Some("row 64 of `embeddings.position_embeddings.weight` is asked for, which has 64"),
        ),
        (sequence(vec![5; 65], 0), Some("or the sample is longer than 64 tokens")),
    ];
    for (sequence, says) in cases {
        let result = model.forward(&PackedBatch::new([&sequence]).unwrap());
        match says {
            None => assert!(result.is_ok()),
            Some(says) => {
                let message = result.unwrap_err().to_string();
                assert!(message.contains(says), "{says:?} is not in: {message}");
            }
        }
    }
}
