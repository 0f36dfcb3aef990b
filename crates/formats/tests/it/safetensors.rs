//! Files written by one half of the crate and read by the other, and files that were damaged on the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;
use zeropoint_formats::{
    Checkpoint, CheckpointWriter, Dtype, FormatError, PlannedCheckpoint, SafetensorsFile, SafetensorsWriter,
    TensorSpec, planned_bytes,
    safetensors::element::{bf16_bytes, f16_bytes, f32_bytes},
};

fn specs() -> Vec<TensorSpec> {
    vec![
        TensorSpec::new("a.weight", Dtype::I8, [2, 3]),
        TensorSpec::new("a.weight_scale", Dtype::F32, [2, 1]),
        TensorSpec::new("b.half", Dtype::F16, [3]),
        TensorSpec::new("b.weight", Dtype::BF16, [2]),
        TensorSpec::new("c.empty", Dtype::F64, [0, 4]),
        TensorSpec::new("c.ids", Dtype::I64, Vec::new()),
    ]
}

fn data(name: &str) -> Vec<u8> {
    match name {
        "a.weight" => vec![0x80, 0xff, 0, 1, 2, 0x7f],
        "a.weight_scale" => f32_bytes(&[0.5, 0.25]),
        "b.half" => f16_bytes(&[1.0, -2.0, 65504.0]),
        "b.weight" => bf16_bytes(&[3.0, -0.125]),
        "c.empty" => Vec::new(),
        "c.ids" => 7i64.to_le_bytes().to_vec(),
        other => panic!("no data for {other}"),
    }
}

fn write_checkpoint(dir: &Path, max_shard_bytes: u64) {
    let mut writer = CheckpointWriter::create(dir, specs(), max_shard_bytes).unwrap();
    for spec in specs() {
        writer.write(&spec.name, &data(&spec.name)).unwrap();
    }
    let planned = writer.weight_bytes();
    writer.finish().unwrap();
    assert_eq!(Checkpoint::open(dir).unwrap().weight_bytes(), planned);
}

fn check_contents(checkpoint: &Checkpoint) {
    assert_eq!(checkpoint.tensors().map(TensorSpec::from).collect::<Vec<_>>(), specs());
    for spec in specs() {
        assert_eq!(checkpoint.read_bytes(&spec.name).unwrap(), data(&spec.name), "{}", spec.name);
    }
    assert_eq!(checkpoint.read_i8("a.weight").unwrap(), [-128, -1, 0, 1, 2, 127]);
    assert_eq!(checkpoint.read_f32("a.weight_scale").unwrap(), [0.5, 0.25]);
    assert_eq!(checkpoint.read_f32("b.half").unwrap(), [1.0, -2.0, 65504.0]);
    assert_eq!(checkpoint.read_f32("b.weight").unwrap(), [3.0, -0.125]);
    assert_eq!(checkpoint.read_f32("c.empty").unwrap(), [0f32; 0]);
    assert_eq!(checkpoint.read_range("a.weight", 2..4).unwrap(), [0, 1]);
}

#[test]
fn one_file_round_trips_and_has_the_planned_size() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), 1_000_000);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    check_contents(&checkpoint);
    assert!(!checkpoint.is_sharded());
    assert_eq!(checkpoint.files(), [dir.path().join("model.safetensors")]);
    assert_eq!(fs::metadata(&checkpoint.files()[0]).unwrap().len(), planned_bytes(&specs()));
    assert_eq!(SafetensorsFile::open(&checkpoint.files()[0]).unwrap().metadata()["format"], "pt");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn shards_round_trip_and_fingerprint_as_one_file_does() {
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_checkpoint(one.path(), 1_000_000);
    write_checkpoint(many.path(), 14);
    let checkpoint = Checkpoint::open(many.path()).unwrap();
    check_contents(&checkpoint);
    assert!(checkpoint.is_sharded());
    let names: Vec<_> =
        checkpoint.files().iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors"
        ]
    );
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(many.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 32);
    assert_eq!(index["weight_map"]["a.weight_scale"], "model-00001-of-00003.safetensors");
    assert_eq!(index["weight_map"]["c.ids"], "model-00003-of-00003.safetensors");
    assert_eq!(
        checkpoint.content_fingerprint().unwrap(),
        Checkpoint::open(one.path()).unwrap().content_fingerprint().unwrap()
    );
}

#[test]
fn planned_files_are_those_that_are_written_to_the_byte() {
    for max_shard_bytes in [0, 1, 6, 14, 15, 31, 32, u64::MAX] {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), max_shard_bytes);
        let planned = PlannedCheckpoint::new(specs(), max_shard_bytes);
        let mut expected: Vec<(String, u64)> = planned.files.clone();
        if planned.files.len() > 1 {
            expected.push(("model.safetensors.index.json".to_owned(), planned.index_bytes));
        }
        let mut written: Vec<(String, u64)> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
            .collect();
        written.sort();
        assert_eq!(written, expected, "shards of {max_shard_bytes}");
        assert_eq!(planned.weight_bytes(), Checkpoint::open(dir.path()).unwrap().weight_bytes());
    }
}

#[test]
fn the_fingerprint_changes_with_any_content() {
    let fingerprint = |name: &str, dtype, shape: &[usize], bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            CheckpointWriter::create(dir.path(), vec![TensorSpec::new(name, dtype, shape)], u64::MAX)
                .unwrap();
        writer.write(name, bytes).unwrap();
        writer.finish().unwrap();
        Checkpoint::open(dir.path()).unwrap().content_fingerprint().unwrap()
    };
    let base = fingerprint("a", Dtype::I8, &[2, 2], &[1, 2, 3, 4]);
    assert_eq!(base, fingerprint("a", Dtype::I8, &[2, 2], &[1, 2, 3, 4]));
    assert_ne!(base, fingerprint("b", Dtype::I8, &[2, 2], &[1, 2, 3, 4]));
    assert_ne!(base, fingerprint("a", Dtype::U8, &[2, 2], &[1, 2, 3, 4]));
    assert_ne!(base, fingerprint("a", Dtype::I8, &[4, 1], &[1, 2, 3, 4]));
    assert_ne!(base, fingerprint("a", Dtype::I8, &[2, 2], &[1, 2, 3, 5]));
}

#[test]
fn the_order_of_writing_does_not_change_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, reverse: bool| {
        let path = dir.path().join(file);
        let mut writer = SafetensorsWriter::create(&path, specs(), &BTreeMap::new()).unwrap();
        let mut names: Vec<String> = writer.order().iter().map(|info| info.name.clone()).collect();
        if reverse {
            names.reverse();
        }
        for name in names {
            writer.write(&name, &data(&name)).unwrap();
        }
        writer.finish().unwrap();
        fs::read(path).unwrap()
    };
    assert_eq!(write("forward", false), write("backward", true));
}

#[test]
fn what_was_not_planned_is_not_written_and_an_unfinished_file_does_not_appear() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, specs(), &BTreeMap::new()).unwrap();
    writer.write("a.weight", &data("a.weight")).unwrap();
    for (name, bytes, expected) in [
        ("a.weight", data("a.weight"), "written before"),
        ("zzz", vec![], "not planned"),
        ("b.half", vec![0; 5], "takes 6"),
    ] {
        let message = writer.write(name, &bytes).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
    let message = writer.finish().unwrap_err().to_string();
    assert!(message.contains("`a.weight_scale`") && message.contains("never written"), "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn reading_the_wrong_thing_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), u64::MAX);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let cases = [
        (checkpoint.read_bytes("zzz").map(drop), "there is no tensor `zzz`"),
        (checkpoint.read_f32("a.weight").map(drop), "dtype I8"),
        (checkpoint.read_i8("b.half").map(drop), "dtype F16"),
        (checkpoint.read_range("a.weight", 4..7).map(drop), "bytes 4..7"),
        (checkpoint.read_range("a.weight", std::ops::Range { start: 5, end: 4 }).map(drop), "bytes 5..4"),
    ];
    for (result, expected) in cases {
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains("safetensors") | message.contains("zzz"),
            "{message}"
        );
    }
}

#[test]
fn a_file_cut_short_is_refused_at_every_length_also_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), u64::MAX);
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(SafetensorsFile::open(&path).is_err(), "{length} bytes");
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert!(SafetensorsFile::open(&path).is_err(), "a byte too many");

    fs::write(&path, &bytes).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes.len() as u64 - 1).unwrap();
    assert!(matches!(checkpoint.read_i8("a.weight"), Err(FormatError::Io { .. })));
    assert!(checkpoint.content_fingerprint().is_err());
}

#[test]
fn headers_that_lie_about_their_length_are_refused_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let cases = [
        (u64::MAX.to_le_bytes().to_vec(), "limit"),
        (100_000_001u64.to_le_bytes().to_vec(), "limit"),
        (100_000_000u64.to_le_bytes().to_vec(), "but 0 follow"),
        (0u64.to_le_bytes().to_vec(), "not a JSON object"),
        (vec![1, 2, 3], "3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let message = SafetensorsFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), 14);
    let index = dir.path().join("model.safetensors.index.json");
    let good = fs::read_to_string(&index).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1)
    };
    let first = r#""a.weight": "model-00001-of-00003.safetensors""#;
    let cases = [
        (replaced(first, r#""a.weight": "../model-00001-of-00003.safetensors""#), "not a plain file name"),
        (replaced(first, r#""a.weight": "model-00002-of-00003.safetensors""#), "does not place there"),
        (replaced(first, r#""a.weight": "model-00009-of-00003.safetensors""#), "model-00009"),
        (replaced(first, &format!("{first}, \"extra\": \"model-00001-of-00003.safetensors\"")), "`extra`"),
        (replaced(first, &format!("{first}, {first}")), "comes twice"),
        (replaced(&format!("{first},"), ""), "`a.weight`"),
        (r#"{"weight_map": {}}"#.to_owned(), "empty"),
        (r#"{"metadata": {}}"#.to_owned(), "weight_map"),
        ("[".to_owned(), "cannot be used"),
    ];
    for (json, expected) in cases {
        fs::write(&index, &json).unwrap();
        let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn a_directory_without_weights_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("neither model.safetensors nor model.safetensors.index.json"), "{message}");
    fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("convert it to safetensors"), "{message}");
    let message = Checkpoint::open(dir.path().join("absent")).unwrap_err().to_string();
    assert!(message.contains("does not exist"), "{message}");
}

#[test]
fn tensors_are_found_by_prefix() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), 14);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let names: Vec<&str> = checkpoint.tensors_under("b.").map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["b.half", "b.weight"]);
    assert_eq!(checkpoint.tensors_under("zzz").count(), 0);
}

#[test]
fn tensors_longer_than_a_block_convert_whole() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..700_001).map(|i| (i % 251) as f32).collect();
    let mut writer = CheckpointWriter::create(
        dir.path(),
        vec![
            TensorSpec::new("h", Dtype::F16, [values.len()]),
            TensorSpec::new("d", Dtype::F64, [values.len()]),
        ],
        u64::MAX,
    )
    .unwrap();
    writer.write("h", &f16_bytes(&values)).unwrap();
    writer.write("d", &values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.read_f32("h").unwrap() == values);
    assert!(checkpoint.read_f32("d").unwrap() == values);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flipped_byte_never_makes_the_reader_panic(position in 0usize..600, value: u8) {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), u64::MAX);
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let position = position % bytes.len();
        bytes[position] = value;
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            let names: Vec<String> = checkpoint.tensors().map(|info| info.name.clone()).collect();
            prop_assert!(checkpoint.tensors().map(zeropoint_formats::TensorInfo::bytes).sum::<u64>() == 32);
            for name in names {
                prop_assert!(checkpoint.read_bytes(&name).is_ok());
                let _ = checkpoint.read_f32(&name);
            }
        }
    }
}
