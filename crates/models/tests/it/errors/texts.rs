//! Tokenizers, samples and batches that do not fit a model.

use super::*;

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
