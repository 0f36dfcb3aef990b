//! On a real model, our hidden states are those of candle-transformers' `BertModel`.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use zeropoint_models::{Model, ModelDirectory, PackedBatch, SourceRef, Task, TokenSequence};

/// Largest absolute difference of two f32 computations of the same six layers; hidden states are of order 1.
const TOLERANCE: f32 = 1e-4;

const SENTENCES: [&str; 20] = [
    "A man is playing a guitar.",
    "ok",
    "",
    "?!... --- ***",
    "The quick brown fox jumps over the lazy dog.",
    "Prices rose by 3.25% in 2021, to €1,499.99.",
    "Ein Mädchen läuft über die Straße.",
    "東京は日本の首都です。",
    "SELECT name FROM users WHERE id = 42;",
    "https://example.org/a/path?with=query&and=more#fragment",
    "antidisestablishmentarianism floccinaucinihilipilification",
    "the the the the the the the the the the the the",
    "She said: \"I don't know — ask him!\"",
    "🙂 🚀 emoji and\ttabs\nand lines",
    "Is it raining in Lisbon today?",
    "ALL CAPITALS ARE LOWERED BY THIS TOKENIZER",
    "Stocks fell sharply on Monday after the central bank raised interest rates for the third time this year, and \
     analysts said that more increases were likely before the summer.",
    "In the beginning there was a model, and the model was large; and people said, let it be smaller, and it was \
     smaller, and the numbers in it were rounded to the nearest of two hundred and fifty-six, and those who measured \
     the difference found that it was not nothing, but that it was little, and wrote down how much.",
    "x = a * b + c; y = relu(x); z = softmax(y)",
    "Two dogs are running through a field of tall grass while a child watches from the porch.",
];

/// candle-transformers' model wants a rectangle: padded to the longest, with a mask.
fn padded_hidden_states(theirs: &BertModel, sequences: &[TokenSequence]) -> Vec<Vec<Vec<f32>>> {
    let width = sequences.iter().map(TokenSequence::len).max().expect("a sequence");
    let grid = |value: &dyn Fn(&TokenSequence, usize) -> u32| {
        let cells: Vec<u32> = sequences
            .iter()
            .flat_map(|s| (0..width).map(|i| if i < s.len() { value(s, i) } else { 0 }))
            .collect();
        Tensor::from_vec(cells, (sequences.len(), width), &Device::Cpu).expect("a rectangle")
    };
    let (ids, types, mask) = (grid(&|s, i| s.ids[i]), grid(&|s, i| s.type_ids[i]), grid(&|_, _| 1));
    let hidden = theirs.forward(&ids, &types, Some(&mask)).expect("a forward pass");
    hidden.to_vec3().expect("hidden states")
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn hidden_states_are_those_of_candle_transformers() {
    let models =
        std::env::var_os("ZEROPOINT_MODELS").expect("ZEROPOINT_MODELS is the directory that holds minilm");
    let path = PathBuf::from(models).join("minilm");
    let directory = ModelDirectory::open(&SourceRef::Directory(path.clone()), Task::Embedding).unwrap();
    let ours = Model::load(&directory).unwrap();

    let config: Config = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
    let weights = std::fs::read(path.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let theirs = BertModel::load(weights, &config).unwrap();

    let tokenizer = directory.tokenizer(None).unwrap();
    let sequences = tokenizer.encode_all(&SENTENCES.map(|text| (text, None))).unwrap();
    let lengths = || sequences.iter().map(TokenSequence::len);
    assert!(lengths().max() > Some(64) && lengths().min() == Some(2), "the sentences are varied");

    let packed =
        ours.hidden_states(&PackedBatch::new(&sequences).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let padded = padded_hidden_states(&theirs, &sequences);
    let mut start = 0;
    for (i, sequence) in sequences.iter().enumerate() {
        let packed = &packed[start..start + sequence.len()];
        start += sequence.len();
        let alone =
            ours.hidden_states(&PackedBatch::new([sequence]).unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let unpadded = &padded_hidden_states(&theirs, std::slice::from_ref(sequence))[0];
        let pairs = [
            ("packed against padded", packed, &padded[i][..sequence.len()]),
            ("packed against unpadded", packed, unpadded.as_slice()),
            ("alone against unpadded", alone.as_slice(), unpadded.as_slice()),
        ];
        for (what, ours, theirs) in pairs {
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
                let close = (ours - theirs).abs() <= TOLERANCE;
                assert!(close, "{what}: {ours} and {theirs} in {:?}", SENTENCES[i]);
            }
        }
    }
    assert_eq!(start, packed.len());
}
