//! A config.json that is not understood, or not of the model beside it.

use super::*;

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
