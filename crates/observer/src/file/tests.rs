//! What is written is read back, and what nothing could have written is refused.

use super::*;
use crate::SampleRows;
use tempfile::TempDir;
use zeropoint_kernels::Isa;

fn observed(channels: usize, x: &[f32]) -> ActivationStatistics {
    let mut statistics = ActivationStatistics::new(channels);
    statistics.observe(Isa::SCALAR, x).unwrap();
    statistics
}

/// With the rows of each sample after its number.
fn of_samples(channels: usize, x: &[f32], samples: &[(u32, usize)]) -> ActivationStatistics {
    let samples: Vec<SampleRows> =
        samples.iter().map(|&(sample, rows)| SampleRows { sample, rows }).collect();
    let mut statistics = ActivationStatistics::new(channels);
    statistics.observe_samples(Isa::SCALAR, x, &samples).unwrap();
    statistics
}

/// Of which so many rows are routed to an expert.
fn of_expert(channels: usize, x: &[f32], samples: &[SampleRows], routed: u64) -> ActivationStatistics {
    let mut statistics = ActivationStatistics::new(channels);
    statistics.observe_expert(Isa::SCALAR, x, samples, routed).unwrap();
    statistics
}

fn example() -> StatisticsFile {
    StatisticsFile {
        header: [("graph", "ab12"), ("data", "cd34"), ("a \"quoted\" key", "\u{e9}\n")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        sites: [
            ("encoder.layer.0.attention", observed(3, &[1.0, -2.0, 3.5, 0.25, -0.0, 1e-30])),
            ("encoder.layer.0.meta", observed(1, &[f32::MAX, f32::MIN])),
            (
                "encoder.layer.0.samples",
                of_samples(2, &[1.0, -2.0, 3.5, 0.25, -0.0, 1e-30], &[(7, 1), (3, 2)]),
            ),
            ("experts.0.w1", of_expert(2, &[1.0, -2.0, 3.5, 0.25], &[], 1)),
            ("experts.1.w1", of_expert(2, &[1.0, -2.0, 3.5, 0.25], &[], 0)),
            ("never seen", ActivationStatistics::new(2)),
            ("zero", observed(2, &[0.0; 4])),
        ]
        .map(|(site, statistics)| (site.to_owned(), statistics))
        .into(),
    }
}

#[test]
fn what_was_saved_is_loaded_and_saved_again_byte_for_byte() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    for file in [example(), StatisticsFile::default()] {
        file.save(&first).unwrap();
        let loaded = StatisticsFile::load(&first).unwrap();
        assert_eq!(loaded, file);
        loaded.save(&second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    }
}

#[test]
fn loaded_statistics_go_on_like_those_in_memory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.safetensors");
    example().save(&path).unwrap();
    for (site, mut statistics) in StatisticsFile::load(&path).unwrap().sites {
        let mut expected = example().sites[&site].clone();
        let more = vec![-7.0; statistics.channels()];
        statistics.observe(Isa::SCALAR, &more).unwrap();
        expected.observe(Isa::SCALAR, &more).unwrap();
        assert_eq!(statistics, expected, "{site}");
    }
}

/// A part of the site `s` with its dtype, length and bytes.
type Part = (&'static str, Dtype, Vec<u8>);

fn message_of(parts: &[Part], metadata: &str) -> String {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.safetensors");
    let specs = parts
        .iter()
        .map(|(part, dtype, bytes)| TensorSpec::new(tensor("s", part), *dtype, [bytes.len() / dtype.size()]));
    let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
    let mut writer = SafetensorsWriter::create(&path, specs.collect(), &metadata).unwrap();
    for (part, _, bytes) in parts {
        writer.write(&tensor("s", part), bytes).unwrap();
    }
    writer.finish().unwrap();
    match StatisticsFile::load(&path) {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Metadata of the present version, without a header, whose checksum is right for these parts.
fn metadata_for(parts: &[Part]) -> String {
    let mut content = content_of(&BTreeMap::new());
    for part in PARTS {
        for (_, _, bytes) in parts.iter().filter(|(name, ..)| *name == part) {
            content.field(&tensor("s", part), bytes);
        }
    }
    format!(r#"{{"checksum":"{}","header":{{}},"version":2}}"#, content.finish())
}

/// Two rows of two channels: 1, -2 of sample 4 and 0.5, 1 of sample 9.
fn good() -> Vec<Part> {
    let statistics = of_samples(2, &[1.0, -2.0, 0.5, 1.0], &[(4, 1), (9, 1)]);
    PARTS.map(|part| (part, layout(part, Lengths::of(&statistics)).0, encode(part, &statistics))).into()
}

fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn statistics_that_nothing_could_have_left_are_refused() {
    assert_eq!(message_of(&good(), &metadata_for(&good())), "no error");
    let exponent = i64::from(observed(2, &[1.0, -2.0]).histogram().exponent());
    let counts = |changes: &[(usize, i64)]| {
        let (_, _, bytes) = good().swap_remove(2);
        let mut counts: Vec<i64> = i64s(&bytes).collect();
        for &(bin, change) in changes {
            counts[bin] += change;
        }
        i64_bytes(&counts)
    };
    let changed = |part: &str, changes: &[(usize, i64)]| {
        let (_, _, bytes) = good().into_iter().find(|(name, ..)| *name == part).unwrap();
        let mut counts: Vec<u32> = u32s(&bytes).collect();
        for &(bin, change) in changes {
            counts[bin] = u32::try_from(i64::from(counts[bin]) + change).unwrap();
        }
        counts.iter().flat_map(|count| count.to_le_bytes()).collect()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("meta", i64_bytes(&[4, 2]), "has `meta` of I64 [2] where I64 [3] is needed"),
        ("meta", i64_bytes(&[5, 2, exponent]), "claims 5 values and counts 4"),
        ("meta", i64_bytes(&[-4, 2, exponent]), "claims -4 values"),
        ("meta", i64_bytes(&[4, 1, exponent]), "contradicts itself"),
        ("meta", i64_bytes(&[4, -2, exponent]), "claims -2 rows"),
        ("meta", i64_bytes(&[4, i64::MAX, exponent]), "contradicts itself"),
        ("meta", i64_bytes(&[4, 0, exponent]), "contradicts itself"),
        ("meta", i64_bytes(&[4, 2, exponent + 1]), "contradicts itself"),
        ("meta", i64_bytes(&[4, 2, exponent - 1]), "contradicts itself"),
        ("meta", i64_bytes(&[4, 2, i64::MAX]), "impossible histogram"),
        ("meta", i64_bytes(&[4, 2, -127]), "impossible histogram"),
        ("meta", i64_bytes(&[4, 2, exponent, 3]), "contradicts itself"), // more rows are routed than seen
        ("meta", i64_bytes(&[4, 2, exponent, -1]), "claims -1 rows that are routed to it"),
        ("meta", i64_bytes(&[4, 2, exponent, 1, 1]), "has `meta` of I64 [5] where I64 [3] is needed"),
        ("histogram", vec![0; 8 * (BINS - 1)], "has `histogram` of I64 [8191]"),
        ("histogram", counts(&[(9, -1)]), "negative count"),
        ("histogram", counts(&[(9, i64::MAX)]), "impossible histogram"),
        ("histogram", counts(&[(9, i64::MAX), (10, i64::MAX), (11, i64::MAX)]), "impossible histogram"),
        ("histogram", counts(&[(9, 1)]), "claims 4 values and counts 5"),
        ("histogram", counts(&[(0, -1), (1, 1)]), "contradicts itself"), // the minimum's bin is empty
        ("range", f32_bytes(&[-2.0]), "has `range` of F32 [1]"),
        ("range", f32_bytes(&[-2.0, f32::NAN]), "contradicts itself"),
        ("range", f32_bytes(&[f32::NEG_INFINITY, 1.0]), "contradicts itself"),
        ("range", f32_bytes(&[-2.0, 1.9]), "contradicts itself"),
        ("range", f32_bytes(&[1.0, -2.0]), "contradicts itself"),
        ("channel_absmax", f32_bytes(&[1.0, f32::NAN]), "contradicts itself"),
        ("channel_absmax", f32_bytes(&[1.0, 3.0]), "contradicts itself"),
        ("channel_absmax", f32_bytes(&[-1.0, 2.0]), "contradicts itself"),
        ("channel_absmax", f32_bytes(&[1.0, 2.0, 0.0]), "has `channel_counts` of U32 [192]"),
        ("channel_absmax", vec![], "has `channel_counts` of U32 [192] where U32 [0] is needed"),
        ("channel_counts", changed("channel_counts", &[(43, -1), (42, 1)]), "contradicts itself"), // a maximum's bin
        ("channel_counts", changed("channel_counts", &[(0, 1)]), "contradicts itself"),
        ("channel_counts", changed("channel_counts", &[(0, u32::MAX as i64)]), "contradicts itself"),
        ("row_counts", changed("row_counts", &[(0, 1)]), "contradicts itself"),
        ("row_counts", vec![0; 8], "has `row_counts` of U32 [2] where U32 [2304] is needed"),
        ("samples", i64_bytes(&[4, 1, 9]), "has `sample_ranges` of F32 [4] where F32 [2] is needed"),
        ("samples", i64_bytes(&[4, 1, 4, 1]), "names sample 4 out of order"),
        ("samples", i64_bytes(&[9, 1, 4, 1]), "names sample 4 out of order"),
        ("samples", i64_bytes(&[-4, 1, 9, 1]), "a sample of the number -4"),
        ("samples", i64_bytes(&[4, 1, 1 << 32, 1]), "a sample of the number 4294967296"),
        ("samples", i64_bytes(&[4, -1, 9, 1]), "claims -1 rows of sample 4"),
        ("samples", i64_bytes(&[4, 0, 9, 2]), "contradicts itself"),
        ("samples", i64_bytes(&[4, 2, 9, 1]), "contradicts itself"),
        ("samples", i64_bytes(&[4, i64::MAX, 9, i64::MAX]), "contradicts itself"),
        ("sample_ranges", f32_bytes(&[-2.0, 1.1, 0.5, 1.0]), "contradicts itself"),
        ("sample_ranges", f32_bytes(&[-2.0, 1.0, 1.0, 0.5]), "contradicts itself"),
        ("sample_ranges", f32_bytes(&[-1.9, 1.0, 0.5, 1.0]), "contradicts itself"), // none reaches the minimum
        ("sample_ranges", f32_bytes(&[f32::NAN, 1.0, -2.0, 1.0]), "contradicts itself"),
    ];
    for (part, bytes, expected) in cases {
        let mut parts = good();
        for (_, _, old) in parts.iter_mut().filter(|(name, ..)| *name == part) {
            old.clone_from(&bytes);
        }
        let message = message_of(&parts, &metadata_for(&parts));
        assert!(message.contains(expected) && message.contains("site `s`"), "{part}: {message}");
    }
}

#[test]
fn files_of_another_kind_are_named() {
    let mut incomplete = good();
    incomplete.pop();
    let mut retyped = good();
    retyped[0].1 = Dtype::I32;
    let mut stranger = good();
    stranger.push(("weight", Dtype::F32, vec![0; 4]));
    let right = metadata_for(&good());
    let zeros = "0".repeat(64);
    let with_checksum = |rest: &str| format!(r#"{{"checksum":"{zeros}",{rest}}}"#);
    let cases: [(_, &str, _); 11] = [
        (incomplete, &right, "site `s` has no tensor `samples`"),
        (retyped, &right, "has `channel_absmax` of I32 [2] where F32 [2] is needed"),
        (stranger, &right, "not a statistics file (it holds a tensor `s.weight`)"),
        (
            good(),
            r#"{"header":{},"version":1}"#,
            "version 1, this is Zeropoint for version 2: calibrate again",
        ),
        (good(), r#"{"version":9,"other":[]}"#, "version 9"),
        (good(), &with_checksum(r#""header":{"a":1},"version":2"#), "malformed"),
        (good(), &with_checksum(r#""header":{},"version":2,"x":1"#), "malformed"),
        (good(), r#"{"header":{},"version":2}"#, "malformed"),
        (good(), r#"{"checksum":"12","header":{},"version":2}"#, "malformed"),
        (good(), &with_checksum(r#""header":{},"version":2"#), "is damaged"),
        (good(), "", "malformed"),
    ];
    for (parts, metadata, expected) in cases {
        let message = message_of(&parts, metadata);
        assert!(message.contains(expected), "{message}");
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.safetensors");
    SafetensorsWriter::create(&path, vec![], &BTreeMap::new()).unwrap().finish().unwrap();
    let message = StatisticsFile::load(&path).unwrap_err().to_string();
    assert!(message.contains("has no key `zeropoint.statistics`"), "{message}");
    std::fs::write(&path, [0; 5]).unwrap();
    assert!(matches!(StatisticsFile::load(&path), Err(StatisticsFileError::Format(_))));
}

#[test]
fn every_damaged_byte_is_found() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.safetensors");
    let file = StatisticsFile {
        header: BTreeMap::from([("graph".to_owned(), "ab12".to_owned())]),
        sites: BTreeMap::from([("s".to_owned(), of_samples(1, &[1.0, -2.0], &[(0, 2)]))]),
    };
    file.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    // Every byte of the header, and bytes here and there in the tensors.
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    for at in (0..header).chain((header..bytes.len()).step_by(397)) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x04;
        std::fs::write(&path, &damaged).unwrap();
        // Spaces that pad the header are the one thing that may differ without changing anything.
        match StatisticsFile::load(&path) {
            Ok(loaded) => assert_eq!(loaded, file, "byte {at}"),
            Err(error) => assert!(error.to_string().contains("s.safetensors"), "{error}"),
        }
    }
}
