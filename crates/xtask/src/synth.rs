//! Checkpoints of random weights with the shapes of large models: what they compute means nothing, what they weigh does.

use std::path::Path;

use half::bf16;
use rayon::prelude::*;
use serde_json::{Value, json};
use zeropoint_core::Rng;
use zeropoint_formats::{CheckpointWriter, Dtype, TensorSpec, write_file_atomically};

use crate::Error;

/// The sizes of a decoder of the Llama family.
struct Shapes {
    hidden: usize,
    intermediate: usize,
    blocks: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
}

/// As the models' own config.json have them.
const KNOWN: [(&str, Shapes); 2] = [
    (
        "llama-7b",
        Shapes {
            hidden: 4096,
            intermediate: 11_008,
            blocks: 32,
            heads: 32,
            kv_heads: 32,
            vocabulary: 32_000,
        },
    ),
    (
        "llama-3-8b",
        Shapes {
            hidden: 4096,
            intermediate: 14_336,
            blocks: 32,
            heads: 32,
            kv_heads: 8,
            vocabulary: 128_256,
        },
    ),
];

/// Bytes of a shard, as `transformers` splits by default.
const SHARD: u64 = 5_000_000_000;
/// Standard deviation of the weights, as they are initialised.
const DEVIATION: f64 = 0.02;
const SEED: u64 = 7;
/// Ids of the tokens that begin and end a text; those of bytes follow.
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// Writes a checkpoint of the first `blocks` blocks, or of all, with a tokenizer whose tokens are bytes.
pub(crate) fn write(name: &str, blocks: Option<usize>, dir: &Path) -> Result<(), Error> {
    let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
    let Some((_, shapes)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        return Err(format!("no shapes are called `{name}`; there are {}", names.join(" and ")).into());
    };
    let blocks = blocks.unwrap_or(shapes.blocks);
    if !(1..=shapes.blocks).contains(&blocks) {
        return Err(format!("{name} has 1 to {} blocks, not {blocks}", shapes.blocks).into());
    }
    std::fs::create_dir_all(dir)?;
    let text = |value: &Value| format!("{value:#}\n");
    write_file_atomically(dir.join("config.json"), text(&config(shapes, blocks)))?;
    write_file_atomically(dir.join("tokenizer.json"), text(&tokenizer()))?;
    let specs = tensors(shapes, blocks);
    let table = normal_values();
    let mut writer = CheckpointWriter::create(dir, specs.clone(), SHARD)?;
    for (index, spec) in specs.iter().enumerate() {
        let values = spec.shape.iter().product();
        let bytes = if spec.shape.len() == 1 { ones(values) } else { random(values, index as u64, &table) };
        writer.write(&spec.name, &bytes)?;
    }
    Ok(writer.finish()?)
}

fn config(shapes: &Shapes, blocks: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shapes.hidden,
        "intermediate_size": shapes.intermediate,
        "num_hidden_layers": blocks,
        "num_attention_heads": shapes.heads,
        "num_key_value_heads": shapes.kv_heads,
        "vocab_size": shapes.vocabulary,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    })
}

/// Each byte is a token.
fn tokenizer() -> Value {
    let mut vocabulary = serde_json::Map::new();
    for (id, special) in SPECIALS.iter().enumerate() {
        vocabulary.insert((*special).to_owned(), json!(id));
    }
    for byte in 0..=255u8 {
        vocabulary.insert(format!("<0x{byte:02X}>"), json!(SPECIALS.len() + usize::from(byte)));
    }
    let added = SPECIALS.iter().enumerate().map(|(id, special)| {
        json!({ "id": id, "content": special, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" }] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

fn tensors(shapes: &Shapes, blocks: usize) -> Vec<TensorSpec> {
    let Shapes { hidden, intermediate, vocabulary, .. } = *shapes;
    let kv = hidden / shapes.heads * shapes.kv_heads;
    let tensor = |name: String, shape: &[usize]| TensorSpec::new(name, Dtype::BF16, shape.to_vec());
    let mut specs = vec![tensor("model.embed_tokens.weight".to_owned(), &[vocabulary, hidden])];
    for block in 0..blocks {
        let matrices = [
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("mlp.gate_proj", [intermediate, hidden]),
            ("mlp.up_proj", [intermediate, hidden]),
            ("mlp.down_proj", [hidden, intermediate]),
        ];
        let name = |module: &str| format!("model.layers.{block}.{module}.weight");
        specs.extend(matrices.iter().map(|(module, shape)| tensor(name(module), shape)));
        let norms = ["input_layernorm", "post_attention_layernorm"];
        specs.extend(norms.iter().map(|norm| tensor(name(norm), &[hidden])));
    }
    specs.push(tensor("model.norm.weight".to_owned(), &[hidden]));
    specs.push(tensor("lm_head.weight".to_owned(), &[vocabulary, hidden]));
    specs
}

fn ones(values: usize) -> Vec<u8> {
    std::iter::repeat_n(bf16::ONE.to_le_bytes(), values).flatten().collect()
}

/// As many normal values as 16 bits can choose from.
fn normal_values() -> Vec<[u8; 2]> {
    let mut rng = Rng::new(SEED);
    (0..1 << 16).map(|_| bf16::from_f64(rng.normal() * DEVIATION).to_le_bytes()).collect()
}

/// Values chosen by the bits of a counter under SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number
/// Generators"), so that any part can be made alone.
fn random(values: usize, tensor: u64, table: &[[u8; 2]]) -> Vec<u8> {
    let mut bytes = vec![0; 2 * values];
    bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, bytes)| {
        let first = (tensor << 40) + ((chunk as u64) << 14);
        for (i, bytes) in bytes.chunks_mut(8).enumerate() {
            let mut z = (first + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            for (j, value) in bytes.chunks_exact_mut(2).enumerate() {
                value.copy_from_slice(&table[usize::from((z >> (16 * j)) as u16)]);
            }
        }
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_weigh_what_their_models_do() {
        for (name, bytes) in [("llama-7b", 13_476_831_232), ("llama-3-8b", 16_060_522_496)] {
            let (_, shapes) = KNOWN.iter().find(|(known, _)| *known == name).unwrap();
            let total: u64 = tensors(shapes, shapes.blocks).iter().map(TensorSpec::bytes).sum();
            assert_eq!(total, bytes, "{name}");
        }
    }

    #[test]
    fn values_differ_from_tensor_to_tensor_and_have_the_deviation() {
        let table = normal_values();
        let [first, second] = [0, 1].map(|tensor| random(50_000, tensor, &table));
        assert_ne!(first, second);
        let (pairs, _) = first.as_chunks::<2>();
        let squares = pairs.iter().map(|pair| bf16::from_le_bytes(*pair).to_f64().powi(2));
        let deviation = (squares.sum::<f64>() / 50_000.0).sqrt();
        assert!((deviation / DEVIATION - 1.0).abs() < 0.02, "{deviation}");
    }
}
