//! Token ids, hidden states, embeddings and logits are those of `transformers`, for every fixture of `tests/fixtures`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Deserialize;
use zeropoint_models::{Model, ModelDirectory, PackedBatch, SourceRef, Task, TokenSequence, Tokenizer};

/// Largest absolute difference to the reference. Hidden states are of order 1; the tanh form of GELU is off by 1e-3
/// here, and a wrong epsilon of a norm by 2e-5.
const TOLERANCE: f32 = 1e-5;

/// Largest absolute difference between a sequence alone and among others, whose sums may be taken in another order. The
/// script that made the fixtures asserts the same of a padded batch in `transformers`.
const BATCH_TOLERANCE: f32 = 1e-5;

/// Every text fixture whose outputs the test can find by itself.
const FIXTURES: &[&str] = &[
    "bert-mean",
    "bert-cls-sharded",
    "bert-max-f16",
    "bert-classifier-bf16",
    "roberta-mean",
    "roberta-classifier",
    "roberta-tokens",
    "roberta-mlm",
    "roberta-qa",
    "xlm-roberta-mean",
    "xlm-roberta-cross-encoder",
    "distilbert-mean",
    "distilbert-classifier",
    "distilbert-tokens",
    "distilbert-mlm",
    "distilbert-qa",
    "mpnet-mean",
    "mpnet-classifier",
    "mpnet-mlm",
    "albert-mean",
    "albert-two-groups",
    "albert-classifier",
    "albert-mlm",
    "electra-mean",
    "electra-classifier",
    "electra-discriminator",
    "modernbert-mean",
    "modernbert-old-config",
    "modernbert-classifier",
    "modernbert-classifier-cls",
    "modernbert-tokens",
    "modernbert-mlm",
    "nomic-mean",
    "gte-mean",
    "nomic-remote",
    "bert-tokens",
    "bert-mlm",
    "bert-qa",
    "bert-cross-encoder",
    "bert-regression",
    "bert-multilabel",
    "bert-dense",
    "llama-causal",
    "llama-scaled",
    "mistral-causal",
    "qwen2-causal",
    "llama-yarn",
    "qwen3-causal",
    "smollm3-causal",
    "phi3-causal",
    "phi3-long",
    "gemma-causal",
    "gemma2-causal",
    "gemma3-causal",
    "gpt2-causal",
    "neox-causal",
    "neox-serial",
    "mixtral-causal",
    "qwen3moe-causal",
    "qwen3moe-renormalized",
];

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    Pair(String, String),
}

/// `reference.json`: what `transformers` and `sentence-transformers` computed. Each list has an entry a text, each map one
/// for some.
#[derive(Deserialize)]
struct Reference {
    texts: Vec<Text>,
    input_ids: Vec<Vec<u32>>,
    token_type_ids: Vec<Vec<u32>>,
    last_hidden_state: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Sentence vectors.
    pooled: Option<Vec<Vec<f32>>>,
    /// Of a classifier a row a text; of a head over tokens a row a token.
    logits: Option<Logits>,
    /// Of question answering, a value a token.
    start_logits: Option<Vec<Vec<f32>>>,
    end_logits: Option<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Logits {
    Sequences(Vec<Vec<f32>>),
    Tokens(Vec<Vec<Vec<f32>>>),
    SomeTokens(BTreeMap<String, Vec<Vec<f32>>>),
}

impl Reference {
    /// The expected output of text `i`, row after row.
    fn output(&self, i: usize) -> Option<Vec<f32>> {
        if let Some(pooled) = &self.pooled {
            return Some(pooled[i].clone());
        }
        if let (Some(starts), Some(ends)) = (&self.start_logits, &self.end_logits) {
            return Some(starts[i].iter().zip(&ends[i]).flat_map(|(start, end)| [*start, *end]).collect());
        }
        match self.logits.as_ref()? {
            Logits::Sequences(rows) => Some(rows[i].clone()),
            Logits::Tokens(texts) => Some(texts[i].concat()),
            Logits::SomeTokens(texts) => texts.get(&i.to_string()).map(|rows| rows.concat()),
        }
    }
}

struct Fixture {
    name: &'static str,
    directory: ModelDirectory,
    model: Model,
    reference: Reference,
}

impl Fixture {
    fn open(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        let text = std::fs::read_to_string(path.join("reference.json")).expect("a reference");
        let directory = open(path);
        let model = Model::load(&directory).expect("the model loads");
        Self { name, model, directory, reference: serde_json::from_str(&text).expect("a reference") }
    }

    fn all() -> impl Iterator<Item = Self> {
        FIXTURES.iter().copied().map(Self::open)
    }

    fn tokenizer(&self) -> Tokenizer {
        self.directory.tokenizer(None).expect("a tokenizer")
    }

    fn sequences(&self) -> Vec<TokenSequence> {
        let ids = self.reference.input_ids.iter().zip(&self.reference.token_type_ids);
        ids.map(|(ids, types)| TokenSequence { ids: ids.clone(), type_ids: types.clone(), prompt: 0 })
            .collect()
    }
}

fn is_decoder(fixture: &Fixture) -> bool {
    fixture.directory.spec().head().task() == Task::CausalLm
}

fn open(path: PathBuf) -> ModelDirectory {
    ModelDirectory::open(&SourceRef::Directory(path), Task::Auto).expect("the fixture opens")
}

fn pack(sequences: &[TokenSequence]) -> PackedBatch {
    PackedBatch::new(sequences).expect("a batch")
}

fn rows(hidden: &Tensor) -> Vec<Vec<f32>> {
    hidden.to_vec2().expect("a matrix of f32")
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, nan_first);
    assert!(worst <= tolerance, "{what}: differs by {worst:e}, {tolerance:e} is allowed");
}

/// The maximum, with NaN above everything.
fn nan_first(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

#[test]
fn token_ids_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let tokenizer = fixture.tokenizer();
        for (text, expected) in fixture.reference.texts.iter().zip(fixture.sequences()) {
            let (a, b) = match text {
                Text::One(a) => (a, None),
                Text::Pair(a, b) => (a, Some(b.as_str())),
            };
            let found = tokenizer.encode(a, b).unwrap();
            assert_eq!(found, expected, "{}: {a:?} {b:?}", fixture.name);
        }
    }
}

#[test]
fn the_parallel_tokenizer_gives_the_ids_in_order() {
    let fixture = Fixture::open("bert-classifier-bf16");
    let texts: Vec<_> = fixture
        .reference
        .texts
        .iter()
        .map(|text| match text {
            Text::One(a) => (a.as_str(), None),
            Text::Pair(a, b) => (a.as_str(), Some(b.as_str())),
        })
        .collect();
    assert_eq!(fixture.tokenizer().encode_all(&texts).unwrap(), fixture.sequences());
}

#[test]
fn hidden_states_are_those_of_transformers_alone_and_packed() {
    for fixture in Fixture::all() {
        let sequences = fixture.sequences();
        let packed = rows(&fixture.model.hidden_states(&pack(&sequences)).unwrap());
        let mut start = 0;
        for (i, sequence) in sequences.iter().enumerate() {
            let what = format!("{}, text {i}", fixture.name);
            let alone =
                rows(&fixture.model.hidden_states(&pack(std::slice::from_ref(sequence))).unwrap()).concat();
            let among_others = packed[start..start + sequence.len()].concat();
            start += sequence.len();
            assert_close(&among_others, &alone, BATCH_TOLERANCE, &format!("{what}, packed against alone"));
            if let Some(expected) = fixture.reference.last_hidden_state.get(&i) {
                assert_close(&alone, &expected.concat(), TOLERANCE, &format!("{what}, alone"));
                assert_close(&among_others, &expected.concat(), TOLERANCE, &format!("{what}, packed"));
            }
        }
        assert_eq!(start, packed.len());
        assert!(!fixture.reference.last_hidden_state.is_empty());
    }
}

#[test]
fn outputs_are_those_of_transformers_alone_packed_and_in_any_order() {
    for fixture in Fixture::all() {
        let mut sequences = fixture.sequences();
        let packed = fixture.model.forward(&pack(&sequences)).unwrap();
        assert_eq!(packed.samples().len(), sequences.len());
        let mut compared = 0;
        for (i, sequence) in sequences.iter().enumerate() {
            let what = format!("{}, text {i}", fixture.name);
            let alone = fixture.model.forward(&pack(std::slice::from_ref(sequence))).unwrap();
            let among_others = packed.samples().nth(i).unwrap();
            let what_packed = format!("{what}, packed against alone");
            assert_close(among_others, &alone.values, BATCH_TOLERANCE, &what_packed);
            if let Some(expected) = fixture.reference.output(i) {
                assert_close(&alone.values, &expected, TOLERANCE, &format!("{what}, alone"));
                assert_close(among_others, &expected, TOLERANCE, &format!("{what}, packed"));
                compared += 1;
            }
        }
        assert!(compared >= 2, "{}: {compared} outputs to compare with", fixture.name);
        sequences.reverse();
        let reversed = fixture.model.forward(&pack(&sequences)).unwrap();
        for (found, expected) in reversed.samples().collect::<Vec<_>>().iter().rev().zip(packed.samples()) {
            assert_close(found, expected, BATCH_TOLERANCE, fixture.name);
        }
    }
}

#[test]
fn descriptions_say_what_the_fixtures_are() {
    struct Case {
        name: &'static str,
        hidden: usize,
        inner: usize,
        linears: usize,
        max_tokens: usize,
        unused: &'static [&'static str],
    }
    let cases = [
        Case {
            name: "bert-mean",
            hidden: 32,
            inner: 64,
            linears: 13,
            max_tokens: 48,
            unused: &["embeddings.position_ids"],
        },
        Case { name: "bert-cls-sharded", hidden: 20, inner: 45, linears: 12, max_tokens: 48, unused: &[] },
        Case {
            name: "bert-max-f16",
            hidden: 24,
            inner: 40,
            linears: 13,
            max_tokens: 48,
            unused: &["cls.predictions.bias"],
        },
        Case {
            name: "bert-classifier-bf16",
            hidden: 24,
            inner: 48,
            linears: 14,
            max_tokens: 64,
            unused: &[],
        },
    ];
    for case in cases {
        let fixture = Fixture::open(case.name);
        let spec = fixture.model.spec();
        let up = &spec.linears[spec.towers[0].blocks[0].mlp.mlps()[0].up.linear];
        let unused: Vec<&str> = spec.unused.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            (spec.towers[0].blocks.len(), spec.towers[0].blocks[0].attention.heads),
            (2, 4),
            "{}",
            case.name
        );
        assert_eq!(
            (spec.towers[0].hidden, up.outputs, up.inputs),
            (case.hidden, case.inner, case.hidden),
            "{}",
            case.name
        );
        assert_eq!(spec.linears.len(), case.linears, "{}", case.name);
        assert_eq!(fixture.directory.max_tokens(), case.max_tokens, "{}", case.name);
        assert_eq!(unused, case.unused, "{}", case.name);
    }
}

/// One row of a fused Linear is contiguous, and its parts share memory: none may be written through another.
#[test]
fn a_single_token_goes_through_alone_as_it_does_among_others() {
    for fixture in Fixture::all() {
        let ids = fixture.reference.input_ids[0][..1].to_vec();
        let one = TokenSequence { type_ids: vec![0], ids, prompt: 0 };
        let rest = fixture.sequences();
        let alone = rows(&fixture.model.hidden_states(&pack(std::slice::from_ref(&one))).unwrap());
        let together: Vec<TokenSequence> = [one].into_iter().chain(rest).collect();
        let among_others = rows(&fixture.model.hidden_states(&pack(&together)).unwrap());
        assert_close(&alone[0], &among_others[0], BATCH_TOLERANCE, fixture.name);
    }
}

/// The tokens of a text in parts of these lengths, then one by one.
fn logits_by_parts(fixture: &Fixture, ids: &[u32], parts: &[usize]) -> Vec<f32> {
    let mut cache = fixture.model.new_cache().expect("a decoder");
    let mut rows = Vec::new();
    let mut rest = ids;
    for part in parts.iter().copied().chain(std::iter::repeat(1)) {
        let (now, later) = rest.split_at(part.min(rest.len()));
        if now.is_empty() {
            break;
        }
        let outputs = fixture.model.extend(now, &mut cache, now.len()).expect("the model runs");
        rows.extend(outputs.values);
        rest = later;
    }
    assert_eq!(cache.ids(), ids);
    rows
}

#[test]
fn token_by_token_gives_the_logits_of_transformers() {
    let decoders: Vec<Fixture> = Fixture::all().filter(is_decoder).collect();
    assert!(decoders.len() > 14);
    for fixture in decoders {
        for (i, ids) in fixture.reference.input_ids.iter().enumerate() {
            let Some(expected) = fixture.reference.output(i) else { continue };
            // Where keys turn otherwise in longer texts, shorter ones in front of them have other logits.
            let start = if fixture.name == "phi3-long" { 17 } else { 1 };
            for parts in [&[start][..], &[start.max(3), 1, 7], &[ids.len()]] {
                let found = logits_by_parts(&fixture, ids, parts);
                assert_eq!(found.len(), expected.len(), "{}", fixture.name);
                let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(far < TOLERANCE, "{}, text {i} in {parts:?}: {far}", fixture.name);
            }
        }
    }
}

#[test]
fn a_text_that_grows_over_a_turning_point_is_computed_anew() {
    let fixture = Fixture::open("phi3-long");
    let ids = &fixture.reference.input_ids[1];
    assert!(ids.len() > 17);
    let mut cache = fixture.model.new_cache().unwrap();
    for id in &ids[..ids.len() - 1] {
        fixture.model.extend(&[*id], &mut cache, 1).unwrap();
    }
    let last = fixture.model.extend(&ids[ids.len() - 1..], &mut cache, 1).unwrap().values;
    let whole = fixture.model.extend(ids, &mut fixture.model.new_cache().unwrap(), 1).unwrap().values;
    let far = last.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < TOLERANCE, "{far}");
}

#[test]
fn a_cache_takes_back_tokens_and_refuses_too_many() {
    let fixture = Fixture::open("llama-causal");
    let model = &fixture.model;
    let ids = &fixture.reference.input_ids[1];
    let mut cache = model.new_cache().unwrap();
    let expected = model.extend(&ids[..10], &mut cache, 1).unwrap();
    // Four bytes for each of two blocks' keys and values of two heads of six channels.
    assert_eq!(cache.bytes(), 10 * 2 * 2 * 2 * 6 * 4);
    model.extend(&ids[10..], &mut cache, 3).unwrap();
    cache.truncate(9);
    let found = model.extend(&ids[9..10], &mut cache, 1).unwrap();
    let far = found.values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < TOLERANCE, "{far}");
    let says = |error: zeropoint_models::ModelError, says: &str| {
        assert!(error.to_string().contains(says), "{error} does not say {says}");
    };
    let long = vec![5; 55];
    says(
        model.extend(&long, &mut cache, 1).unwrap_err(),
        "the text has 65 tokens; the model reads at most 64",
    );
    says(model.extend(&[], &mut cache, 1).unwrap_err(), "1 rows of 0 tokens are asked for");
    says(model.extend(&[1], &mut cache, 2).unwrap_err(), "2 rows of 1 tokens are asked for");
    says(model.extend(&[5, 100_000], &mut cache, 1).unwrap_err(), "which has 140 rows");
    assert_eq!(cache.len(), 10, "an error leaves it as it was");
    assert_eq!(model.extend(&ids[10..11], &mut cache, 1).unwrap().columns, 140);
    let encoder = Fixture::open("bert-mean");
    says(encoder.model.new_cache().err().expect("no decoder"), "BertModel is no decoder");
}
