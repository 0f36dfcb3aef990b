use super::*;
use crate::identity::tests::identity;
use crate::written::RangesHasher;

/// A partial directory with everything of a run in it, and the entries that say so.
fn finished() -> (tempfile::TempDir, Vec<Entry>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("model/1_Pooling")).unwrap();
    for file in [
        "calibration-00000064.safetensors",
        "statistics.safetensors",
        "model/w",
        "model/1_Pooling/config.json",
    ] {
        fs::write(dir.path().join(file), file).unwrap();
    }
    let file = |path: &str| WrittenFile::of(dir.path(), path).unwrap();
    let cost = Cost { seconds: 0.1, peak_rss_bytes: 7 };
    let linear = LinearDone {
        path: "encoder.layer.0".to_owned(),
        bytes: 3,
        weight_sqnr_db: Exact(f64::INFINITY),
        input_sqnr_db: None,
        output_sqnr_db: Some(Exact(0.1 + 0.2)),
        distribution: None,
    };
    let task = |index| {
        let metrics = vec![Metric {
            task: "sts".to_owned(),
            name: "spearman".to_owned(),
            original: 0.1 + 0.2,
            quantized: 1e-300,
            delta: -0.0,
            stderr: 5e-324,
            higher_is_better: true,
            samples: 3,
            data: Some(Fingerprint::builder("texts").finish()),
            ideal: false,
        }];
        Entry::Task(TaskDone { index, metrics, cost })
    };
    let checkpoint = file("calibration-00000064.safetensors");
    let mut written = RangesHasher::default();
    written.add(Some(("w", 0..3)), b"mod");
    written.add(Some(("w", 3..7)), b"el/w");
    let written = written.finish();
    let entries = vec![
        Entry::Checkpoint(CheckpointDone {
            parts: 0,
            of_parts: 1,
            batches: 64,
            of_batches: 188,
            file: checkpoint,
            states: None,
            cost,
        }),
        Entry::Statistics(StatisticsDone { observed: true, file: file("statistics.safetensors"), cost }),
        Entry::Part(PartDone {
            index: 0,
            of: 1,
            linears: vec![linear],
            written,
            sources: BTreeMap::new(),
            probes: None,
            self_check: Some(SelfCheck { samples: 16, cosine_min: 1.0 }),
            cost,
        }),
        Entry::Model(ModelDone {
            files: WrittenFile::all_below_but(dir.path(), "model", &BTreeSet::from(["model/w".to_owned()]))
                .unwrap(),
            cost,
        }),
        task(0),
        task(1),
    ];
    (dir, entries)
}

fn written(dir: &Path, entries: &[Entry]) {
    let (mut journal, done) = Journal::open(dir, &identity()).unwrap();
    assert_eq!(done, Done::default());
    for entry in entries {
        journal.append(entry).unwrap();
    }
    assert!(journal.has_entries || entries.is_empty());
}

fn reopened(dir: &Path) -> Done {
    Journal::open(dir, &identity()).unwrap().1
}

#[test]
fn what_was_written_is_found_again_to_the_bit() {
    let (dir, entries) = finished();
    written(dir.path(), &entries);
    let done = reopened(dir.path());
    assert_eq!(done.entries(), entries[1..], "the checkpoint has served");
    assert_eq!(Journal::look(dir.path(), &identity()).unwrap(), Ok(done.clone()));
    assert_eq!(reopened(dir.path()), done, "and again");
}

#[test]
fn each_line_tells_what_comes_next() {
    let (dir, entries) = finished();
    let next = [
        "calibration",
        "calibration, batch 65 of 188",
        "quantisation",
        "quantisation",
        "evaluation, task 1 of 2",
        "evaluation, task 2 of 2",
        "card and reports",
    ];
    for (count, next) in next.into_iter().enumerate() {
        let _ = fs::remove_file(dir.path().join(JOURNAL));
        written(dir.path(), &entries[..count]);
        assert_eq!(reopened(dir.path()).next(2, false), next);
    }
    // It is measured anew whenever the run goes on.
    assert_eq!(reopened(dir.path()).next(2, true), "latency");
}

#[test]
fn parts_of_a_model_go_on_where_the_samples_of_the_check_are_at_hand() {
    let (dir, entries) = finished();
    let Entry::Part(whole) = &entries[2] else { panic!("the third entry is a part") };
    let probes = |index: usize| {
        let name = format!("self-check-{index:05}.safetensors");
        fs::write(dir.path().join(&name), "states").unwrap();
        Some(WrittenFile::of(dir.path(), &name).unwrap())
    };
    let part = |index| PartDone { index, of: 3, probes: probes(index), self_check: None, ..whole.clone() };
    let parts = [part(0), part(1)];
    let all: Vec<Entry> =
        entries[..2].iter().cloned().chain(parts.iter().cloned().map(Entry::Part)).collect();
    written(dir.path(), &all);
    let done = reopened(dir.path());
    assert_eq!(
        (done.parts.as_slice(), done.next(0, false).as_str()),
        (&parts[..], "quantisation, part 3 of 3 of the model")
    );
    assert!(done.holds(Path::new("self-check-00001.safetensors")) && done.holds(Path::new("model/w")));
    assert!(!done.holds(Path::new("self-check-00000.safetensors")));
    // A run that died after it had removed the older file and before the newer was whole begins anew.
    fs::remove_file(dir.path().join("self-check-00001.safetensors")).unwrap();
    assert_eq!(Journal::look(dir.path(), &identity()).unwrap().unwrap().parts, parts[..1]);
    fs::remove_file(dir.path().join("self-check-00000.safetensors")).unwrap();
    assert_eq!(reopened(dir.path()).parts, []);
}

#[test]
fn a_torn_line_and_what_follows_it_do_not_count() {
    let (dir, entries) = finished();
    written(dir.path(), &entries);
    let path = dir.path().join(JOURNAL);
    let whole = fs::read(&path).unwrap();
    let ends: Vec<usize> =
        whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        // The identity, the checkpoint and the statistics are the first three lines.
        let lines = ends.iter().filter(|end| **end <= length).count();
        let expected = match lines {
            0 | 1 => vec![],
            2 => entries[..1].to_vec(),
            lines => entries[1..lines - 1].to_vec(),
        };
        let (mut journal, done) = Journal::open(dir.path(), &identity()).unwrap();
        assert_eq!(done.entries(), expected, "{length} bytes");
        // What is appended then is not glued to what was torn.
        if lines == 6 {
            journal.append(&entries[5]).unwrap();
            assert_eq!(reopened(dir.path()).entries(), entries[1..], "{length} bytes");
        }
    }
}

#[test]
fn a_file_that_has_changed_is_made_again_with_all_that_follows() {
    let (dir, entries) = finished();
    for (file, left) in [
        ("statistics.safetensors", 0),
        ("model/w", 1),
        ("model/1_Pooling/config.json", 2),
        ("calibration-00000064.safetensors", 5),
    ] {
        let path = dir.path().join(file);
        let content = fs::read(&path).unwrap();
        let mut flipped = content.clone();
        flipped[0] ^= 1;
        for damage in [Some(&flipped[..]), Some(&content[1..]), None] {
            let _ = fs::remove_file(dir.path().join(JOURNAL));
            written(dir.path(), &entries);
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let done = reopened(dir.path());
            let stages = done.entries().iter().filter(|entry| !matches!(entry, Entry::Checkpoint(_))).count();
            assert_eq!(stages, left, "{file}");
            fs::write(&path, &content).unwrap();
        }
    }
}

#[test]
fn an_older_checkpoint_that_is_gone_is_not_missed() {
    let (dir, entries) = finished();
    let Entry::Checkpoint(first) = &entries[0] else { panic!("the first entry is a checkpoint") };
    let gone = WrittenFile { path: "calibration-00000032.safetensors".to_owned(), ..first.file.clone() };
    let older = Entry::Checkpoint(CheckpointDone { batches: 32, file: gone, ..first.clone() });
    written(dir.path(), &[older, entries[0].clone()]);
    assert_eq!(reopened(dir.path()).checkpoint, Some(first.clone()));
}

#[test]
fn only_what_is_done_is_held() {
    let (dir, entries) = finished();
    written(dir.path(), &entries[..4]);
    let done = reopened(dir.path());
    for held in [JOURNAL, "statistics.safetensors", "model/w", "model/1_Pooling/config.json"] {
        assert!(done.holds(Path::new(held)), "{held}");
    }
    for stray in
        ["calibration-00000064.safetensors", "model/.zeropoint-x.tmp", "model/README.md", "report.json"]
    {
        assert!(!done.holds(Path::new(stray)), "{stray}");
    }
}

#[test]
fn journals_of_something_else_are_refused_and_left_as_they_are() {
    let (dir, entries) = finished();
    written(dir.path(), &entries);
    let path = dir.path().join(JOURNAL);
    let text = fs::read_to_string(&path).unwrap();
    for (change, expected) in [
        (text.replace("samples = 8", "samples = 9"), "`calibration.samples` was 9 and is 8 now"),
        (text.replacen(":2,", ":3,", 1), "its journal was written by another release of zeropoint"),
        (text.replacen("identity", "entity", 1), "its journal is damaged"),
        ("not JSON\n".to_owned(), "its journal is damaged"),
    ] {
        assert_ne!(change, text);
        fs::write(&path, &change).unwrap();
        let message = Journal::open(dir.path(), &identity()).unwrap_err().to_string();
        assert!(
            message.contains("interrupted run that cannot be continued") && message.contains(expected),
            "{message}"
        );
        assert_eq!(Journal::look(dir.path(), &identity()).unwrap(), Err(expected.to_owned()));
        assert_eq!(fs::read_to_string(&path).unwrap(), change);
    }
}

#[test]
fn a_journal_does_not_reach_out_of_its_directory() {
    let (dir, _) = finished();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let path = dir.path().join("statistics.safetensors");
    for outside in ["../statistics.safetensors".to_owned(), path.to_string_lossy().into_owned()] {
        let _ = fs::remove_file(inside.join(JOURNAL));
        let file = WrittenFile::of(&inside, &outside).unwrap();
        let statistics = StatisticsDone { observed: true, file, cost: Cost::default() };
        written(&inside, &[Entry::Statistics(statistics)]);
        assert_eq!(reopened(&inside), Done::default(), "{outside}");
    }
}
