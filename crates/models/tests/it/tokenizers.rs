//! What `tokenizer_config.json` and the files of sentence-transformers say over tokenizer.json, as `transformers` 5.23 and
//! sentence-transformers 6.2 read them. The token ids are theirs, for the same changes of the same fixtures.

use serde_json::{Value, json};
use zeropoint_models::{Model, PackedBatch, Task, TextPart};

use crate::copies::Copy;

const TEXT: &str = "Caf\u{e9}s in Z\u{fc}rich. The a\u{6c34}b [MASK] RIVER";

/// Sets keys of a JSON file; null removes one.
fn set(copy: &Copy, file: &str, keys: Value) {
    copy.edit(file, |config| {
        let (Value::Object(config), Value::Object(keys)) = (config, keys) else {
            panic!("objects are expected")
        };
        for (key, value) in keys {
            if value.is_null() {
                config.remove(&key);
            } else {
                config.insert(key, value);
            }
        }
    });
}

fn ids(copy: &Copy, text: &str) -> Vec<u32> {
    copy.opened().tokenizer(None).expect("a tokenizer").encode(text, None).expect("tokens").ids
}

const LOWER: [u32; 21] = [2, 13, 37, 42, 41, 55, 67, 36, 57, 54, 45, 39, 44, 5, 63, 11, 1, 12, 4, 99, 3];
const CASED: [u32; 12] = [2, 1, 67, 1, 5, 1, 11, 1, 12, 4, 1, 3];

#[test]
fn the_class_and_its_settings_decide_over_tokenizer_json() {
    struct Case {
        what: &'static str,
        fixture: &'static str,
        config: Value,
        json: Value,
        ids: &'static [u32],
    }
    let case = |what, fixture, config, json, ids| Case { what, fixture, config, json, ids };
    let bert = |lowercase: bool, chinese: bool| {
        json!({ "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": chinese, "strip_accents": null,
            "lowercase": lowercase
        }})
    };
    let none = || json!({});
    let unset = json!({ "do_lower_case": null, "strip_accents": null, "tokenize_chinese_chars": null });
    let cases = [
        case("as it is", "bert-mean", none(), none(), &LOWER),
        case("cased", "bert-mean", json!({ "do_lower_case": false }), none(), &CASED),
        case("the class's defaults", "bert-mean", unset, bert(false, false), &LOWER),
        case(
            "accents are kept",
            "bert-mean",
            json!({ "strip_accents": false }),
            none(),
            &[2, 1, 67, 1, 5, 63, 11, 1, 12, 4, 99, 3],
        ),
        case(
            "ideographs are no words",
            "bert-mean",
            json!({ "tokenize_chinese_chars": false }),
            none(),
            &[2, 13, 37, 42, 41, 55, 67, 36, 57, 54, 45, 39, 44, 5, 63, 1, 4, 99, 3],
        ),
        case(
            "another normalisation",
            "bert-mean",
            none(),
            json!({ "normalizer": { "type": "NFC" } }),
            &LOWER,
        ),
        case(
            "ELECTRA's name",
            "bert-mean",
            json!({ "tokenizer_class": "ElectraTokenizerFast", "do_lower_case": false }),
            none(),
            &CASED,
        ),
        case(
            "a class that takes tokenizer.json as it is",
            "bert-mean",
            json!({ "tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": false }),
            none(),
            &LOWER,
        ),
        case(
            "a class that nobody knows",
            "bert-mean",
            json!({ "tokenizer_class": "OurTokenizer", "do_lower_case": false }),
            none(),
            &LOWER,
        ),
        case(
            "the class of the model's type",
            "bert-mean",
            json!({ "tokenizer_class": null, "do_lower_case": false }),
            none(),
            &CASED,
        ),
        case("DistilBERT", "distilbert-mean", json!({ "do_lower_case": false }), none(), &CASED),
        case(
            "MPNet",
            "mpnet-mean",
            json!({ "do_lower_case": false }),
            none(),
            &[0, 3, 66, 3, 4, 3, 10, 3, 11, 3, 3, 3, 3, 2],
        ),
        case(
            "ALBERT",
            "albert-mean",
            none(),
            none(),
            &[2, 5, 52, 50, 55, 54, 68, 10, 5, 75, 70, 67, 58, 52, 57, 76, 6, 5, 50, 1, 51, 4, 42, 3],
        ),
        case(
            "ALBERT, cased",
            "albert-mean",
            json!({ "do_lower_case": false, "keep_accents": true }),
            none(),
            &[
                2, 5, 84, 50, 55, 88, 68, 10, 5, 85, 89, 67, 58, 52, 57, 76, 5, 82, 57, 54, 5, 50, 1, 51, 4,
                5, 1, 3,
            ],
        ),
        case(
            "XLM-RoBERTa without spaces before words",
            "xlm-roberta-mean",
            json!({ "add_prefix_space": false }),
            none(),
            &[0, 83, 49, 54, 87, 67, 57, 62, 84, 88, 66, 57, 51, 56, 75, 81, 56, 53, 49, 3, 50, 3, 3, 2],
        ),
    ];
    for Case { what, fixture, config, json, ids: expected } in cases {
        let copy = Copy::of(fixture);
        set(&copy, "tokenizer_config.json", config);
        set(&copy, "tokenizer.json", json);
        assert_eq!(ids(&copy, TEXT), expected, "{what}");
    }
}

#[test]
fn the_class_may_be_named_in_config_json() {
    let copy = Copy::of("bert-mean");
    set(&copy, "tokenizer_config.json", json!({ "tokenizer_class": null, "do_lower_case": false }));
    set(&copy, "config.json", json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
    assert_eq!(ids(&copy, TEXT), LOWER);
}

#[test]
fn without_a_config_the_class_of_the_model_has_its_defaults() {
    let copy = Copy::of("bert-mean");
    copy.remove("tokenizer_config.json")
        .edit("tokenizer.json", |json| json["normalizer"]["lowercase"] = false.into());
    assert_eq!(ids(&copy, TEXT), LOWER);
}

#[test]
fn roberta_puts_a_space_before_the_text_where_it_is_told_to() {
    let copy = Copy::of("roberta-mean");
    let without = ids(&copy, TEXT);
    set(&copy, "tokenizer_config.json", json!({ "add_prefix_space": true }));
    let with = ids(&copy, TEXT);
    assert_eq!(with, [&[0, 105][..], &without[1..]].concat());
    let aligned = copy.opened().tokenizer(None).unwrap().align("the river", None).unwrap();
    let all = aligned.part(TextPart::First);
    assert_eq!((aligned.spans[all.start].start, aligned.spans[all.end - 1].end), (0, 9));
}

#[test]
fn modern_bert_is_known_to_name_the_wrong_class() {
    let copy = Copy::of("modernbert-mean");
    let before = ids(&copy, TEXT);
    set(
        &copy,
        "tokenizer_config.json",
        json!({ "tokenizer_class": "RobertaTokenizer", "add_prefix_space": true }),
    );
    assert_eq!(ids(&copy, TEXT), before);
}

#[test]
fn a_vocabulary_alone_is_read_with_the_settings_too() {
    let copy = Copy::of("bert-mean");
    copy.remove("tokenizer.json");
    assert_eq!(ids(&copy, TEXT), LOWER, "with its special tokens");
    set(
        &copy,
        "tokenizer_config.json",
        json!({ "do_lower_case": false, "strip_accents": true, "tokenize_chinese_chars": false }),
    );
    assert_eq!(ids(&copy, TEXT), [2, 1, 67, 1, 5, 1, 1, 4, 1, 3]);
    set(&copy, "tokenizer_config.json", json!({ "tokenizer_class": "BertJapaneseTokenizer" }));
    let message = copy.opened().tokenizer(None).map(|_| ()).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "vocab.txt: the tokenizer cannot be loaded: a vocabulary alone makes a tokenizer of BERT's classes, and this one \
             is a `BertJapaneseTokenizer`: tokenizer.json is needed"
        ),
        "{message}"
    );
}

#[test]
fn texts_are_cut_at_the_side_that_the_files_name() {
    const LONG: &str = "the river is on fire and was not there";
    const PAIR: &str = "what can we use";
    let right = ([2, 63, 99, 68, 72, 16, 45, 3], [2, 63, 99, 68, 3, 86, 92, 89, 3]);
    let left = ([2, 54, 41, 65, 70, 83, 94, 3], [2, 70, 83, 94, 3, 92, 89, 95, 3]);
    let own = json!({ "truncation": {
        "direction": "Left", "max_length": 16, "strategy": "OnlyFirst", "stride": 0
    }});
    for (config, json, expected) in [
        (json!({}), json!({}), right),
        (json!({ "truncation_side": "left" }), json!({}), left),
        (json!({}), own.clone(), left),
        (json!({ "truncation_side": "right" }), own, right),
    ] {
        let copy = Copy::of("bert-mean");
        let what = format!("{config} {json}");
        set(&copy, "tokenizer_config.json", config);
        set(&copy, "tokenizer.json", json);
        let cut = |length: usize, pair: Option<&str>| {
            copy.opened().tokenizer(Some(length)).unwrap().encode(LONG, pair).unwrap().ids
        };
        assert_eq!(cut(8, None), expected.0, "{what}");
        assert_eq!(cut(9, Some(PAIR)), expected.1, "{what}");
    }
    let copy = Copy::of("bert-mean");
    set(&copy, "tokenizer_config.json", json!({ "truncation_side": "middle" }));
    let Err(message) = copy.open(Task::Auto) else { panic!("opened") };
    assert!(message.contains("tokenizer_config.json: "), "{message}");
    assert!(message.contains("unknown variant `middle`, expected `left` or `right`"), "{message}");
}

#[test]
fn the_model_is_told_of_segments_where_the_class_or_the_files_say_so() {
    let with = json!(["input_ids", "token_type_ids", "attention_mask"]);
    let without = json!(["input_ids", "attention_mask"]);
    let plain = "PreTrainedTokenizerFast";
    let cases = [
        ("bert-classifier-bf16", json!({}), true),
        ("bert-classifier-bf16", json!({ "model_input_names": without.clone() }), false),
        ("bert-classifier-bf16", json!({ "tokenizer_class": plain }), false),
        ("bert-classifier-bf16", json!({ "tokenizer_class": plain, "model_input_names": with }), true),
        ("albert-classifier", json!({}), true),
        ("albert-classifier", json!({ "model_input_names": null }), false),
        ("albert-classifier", json!({ "model_input_names": without }), false),
    ];
    for (fixture, config, told) in cases {
        let copy = Copy::of(fixture);
        let what = format!("{fixture}: {config}");
        set(&copy, "tokenizer_config.json", config);
        let tokenizer = copy.opened().tokenizer(None).unwrap();
        let tokens = tokenizer.encode("the model", Some("is on fire")).unwrap();
        assert_eq!(tokens.type_ids.contains(&1), told, "{what}");
        assert_eq!(tokens.type_ids.len(), tokens.ids.len());
        assert_eq!(tokenizer.align("the model", Some("is on fire")).unwrap().tokens, tokens, "{what}");
    }
}

/// Published tokenizers of XLM-RoBERTa number the second text's segment, of which the model has no row.
#[test]
fn segments_that_the_model_has_no_row_for_are_not_asked_for() {
    let copy = Copy::of("xlm-roberta-cross-encoder");
    copy.edit("tokenizer.json", |json| {
        let pair = json["post_processor"]["pair"].as_array_mut().expect("a template");
        assert_eq!(pair.len(), 6);
        pair[4]["Sequence"]["type_id"] = 1.into();
        pair[5]["SpecialToken"]["type_id"] = 1.into();
    });
    let directory = copy.opened();
    let tokens = directory.tokenizer(None).unwrap().encode("what", Some("the river")).unwrap();
    assert_eq!(tokens.ids, [0, 28, 2, 2, 5, 41, 2]);
    assert_eq!(tokens.type_ids, [0; 7]);
    assert!(Model::load(&directory).unwrap().forward(&PackedBatch::new([&tokens]).unwrap()).is_ok());
}

#[test]
fn merges_are_never_dropped_at_random() {
    for fixture in ["roberta-mean", "modernbert-mean"] {
        let copy = Copy::of(fixture);
        let expected = ids(&copy, TEXT);
        copy.edit("tokenizer.json", |json| json["model"]["dropout"] = json!(0.9));
        for _ in 0..4 {
            assert_eq!(ids(&copy, TEXT), expected, "{fixture}");
        }
    }
}

/// `do_lower_case` of sentence-transformers, over a cased tokenizer that knows a word which ends in a sigma.
#[test]
fn characters_are_lowered_one_by_one_and_added_tokens_are_not() {
    let copy = Copy::of("bert-max-f16");
    copy.edit("tokenizer.json", |json| json["model"]["vocab"]["\u{3bf}\u{3c3}"] = 107.into());
    let text = "\u{39f}\u{3a3} The [MASK] MODEL";
    assert_eq!(ids(&copy, text), [2, 1, 1, 4, 1, 3]);
    set(&copy, "sentence_bert_config.json", json!({ "do_lower_case": true }));
    assert_eq!(ids(&copy, text), [2, 107, 63, 4, 101, 3]);

    let tokenizer = copy.opened().tokenizer(None).unwrap();
    for text in [text, "The \u{130} MODEL, a\u{6c34}"] {
        let aligned = tokenizer.align(text, None).unwrap();
        let all = aligned.part(TextPart::First);
        let words: Vec<&str> = aligned.spans[all].iter().map(|span| &text[span.clone()]).collect();
        // Nothing but spaces lies between the tokens.
        assert_eq!(words.concat(), text.replace(' ', ""), "{words:?}");
    }
}
