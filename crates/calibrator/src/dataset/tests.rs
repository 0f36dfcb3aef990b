use proptest::prelude::*;

use super::*;

const CSV: Format = Format::Csv { header: None, delimiter: b',' };

fn parse_as(format: Format, text: impl AsRef<[u8]>, fields: &Fields) -> Result<Vec<Sample>, DatasetError> {
    parse(text.as_ref(), &"data".into(), format, fields)
}

fn ok(format: Format, text: &str) -> Vec<Sample> {
    parse_as(format, text, &Fields::default()).expect("a good data set")
}

fn error(format: Format, text: impl AsRef<[u8]>) -> String {
    parse_as(format, text, &Fields::default()).expect_err("a bad data set").to_string()
}

fn sample(line: usize, a: &str, b: Option<&str>, score: Option<f64>, label: Option<&str>) -> Sample {
    let [b, label] = [b, label].map(|text| text.map(str::to_owned));
    Sample { text_a: a.to_owned(), text_b: b, score, label, file: "data".into(), line, ..Sample::default() }
}

#[test]
fn jsonl_rows_of_each_kind() {
    let text = "\u{feff}{\"text\": \"one\"}\r\n\r\n  \n{\"text_a\": \"a\", \"text_b\": \"b\", \"score\": 4}\n\
                {\"text\": \"x\", \"label\": true, \"id\": [1]}\n{\"text\": \"\", \"label\": 3, \"score\": null}\n\
                {\"text\": \"y\\nz\", \"label\": \"pos\"}";
    assert_eq!(
        ok(Format::Jsonl, text),
        [
            sample(1, "one", None, None, None),
            sample(4, "a", Some("b"), Some(4.0), None),
            sample(5, "x", None, None, Some("true")),
            sample(6, "", None, None, Some("3")),
            sample(7, "y\nz", None, None, Some("pos")),
        ]
    );
}

#[test]
fn a_list_of_labels_is_kept_as_a_list() {
    let text = "{\"text\": \"a\", \"label\": [\"x\", 2]}\n{\"text\": \"b\", \"label\": []}";
    let samples = ok(Format::Jsonl, text);
    assert_eq!(samples[0].labels, Some(vec!["x".to_owned(), "2".to_owned()]));
    assert_eq!((&samples[1].labels, &samples[1].label), (&Some(Vec::new()), &None));
    let error = require_labels(&samples).unwrap_err().to_string();
    assert_eq!(error, "data:1: the label is a list, and the model gives each text one label");
    assert_ne!(fingerprint(&samples[..1]), fingerprint(&[Sample { labels: None, ..samples[0].clone() }]));
}

#[test]
fn txt_is_a_sample_a_line() {
    let expected = [sample(1, "one", None, None, None), sample(3, " two ", None, None, None)];
    assert_eq!(ok(Format::Txt, "\u{feff}one\r\n\r\n two \r\n"), expected);
    assert_eq!(ok(Format::Txt, "one\n\n two "), expected);
}

#[test]
fn csv_with_and_without_a_header() {
    for (text, expected) in [
        ("text\none\n", vec![sample(2, "one", None, None, None)]),
        (
            "\u{feff}score, text_b ,id,text_a\r\n0.5,b,7,a\r\n",
            vec![sample(2, "a", Some("b"), Some(0.5), None)],
        ),
        (
            "label,text\n1,x\n,y\n",
            vec![sample(2, "x", None, None, Some("1")), sample(3, "y", None, None, None)],
        ),
        ("one\ntwo", vec![sample(1, "one", None, None, None), sample(2, "two", None, None, None)]),
        (
            "x,pos\ny,neg\n",
            vec![sample(1, "x", None, None, Some("pos")), sample(2, "y", None, None, Some("neg"))],
        ),
        ("a,b,1e-1\n", vec![sample(1, "a", Some("b"), Some(0.1), None)]),
        ("a,,\n", vec![sample(1, "a", Some(""), None, None)]),
        ("\"a \"\"x\"\", y\",b,1\n", vec![sample(1, "a \"x\", y", Some("b"), Some(1.0), None)]),
    ] {
        assert_eq!(ok(CSV, text), expected, "{text:?}");
    }
    let raw = Format::Csv { header: Some(false), delimiter: b';' };
    assert_eq!(ok(raw, "text;label\n")[0], sample(1, "text", None, None, Some("label")));
    let tab = Format::Csv { header: Some(true), delimiter: b'\t' };
    assert_eq!(ok(tab, "text\tid\na, b\t1\n"), [sample(2, "a, b", None, None, None)]);
}

#[test]
fn csv_lines_are_where_records_begin() {
    for end in ["\n", "\r\n"] {
        let text = ["text,label", "", "\"one", "more\",1", "", "", "two,2", "three,3", ""].join(end);
        let lines: Vec<usize> = ok(CSV, &text).iter().map(|sample| sample.line).collect();
        assert_eq!(lines, [3, 7, 8], "{end:?}");
        assert_eq!(
            error(CSV, text + "x,1,2" + end),
            "data:9: the row has 3 columns, and the first row has 2; \
            quote a field that contains the delimiter"
        );
    }
}

#[test]
fn chosen_fields() {
    let fields = Fields { text_a: "sentence1".into(), text_b: "sentence2".into(), ..Fields::default() };
    let expected = sample(1, "a", Some("b"), None, None);
    let json = "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"text\": \"no\"}";
    assert_eq!(parse_as(Format::Jsonl, json, &fields).expect("good"), std::slice::from_ref(&expected));
    let csv = parse_as(CSV, "sentence2,sentence1\nb,a\n", &fields).expect("good");
    assert_eq!(csv, [Sample { line: 2, ..expected }]);
    // A chosen `text` is not overruled by a `text_a` that happens to be there.
    let body = Fields { text: "body".into(), ..Fields::default() };
    let json = "{\"text_a\": \"no\", \"body\": \"yes\"}";
    assert_eq!(parse_as(Format::Jsonl, json, &body).expect("good")[0].text_a, "yes");
    assert_eq!(parse_as(CSV, "text_a,body\nno,yes\n", &body).expect("good")[0].text_a, "yes");
    let places = Fields { text: 3.into(), label: 0.into(), ..Fields::default() };
    let csv = parse_as(CSV, "1,_,_,x\n2,_,_,y\n", &places).expect("good");
    assert_eq!(csv, [sample(1, "x", None, None, Some("1")), sample(2, "y", None, None, Some("2"))]);
}

#[test]
fn what_is_wrong_with_chosen_fields() {
    struct Case<'a>(Format, &'a Fields, &'a str, &'a str);
    let named = Fields { text_a: "sentence1".into(), ..Fields::default() };
    let placed = Fields { text: 3.into(), ..Fields::default() };
    let only_label = Fields { label: 0.into(), ..Fields::default() };
    let raw = Format::Csv { header: Some(false), delimiter: b',' };
    for Case(format, fields, text, expected) in [
        Case(
            Format::Jsonl,
            &named,
            "{\"sentence_1\": 1}",
            "data:1: the field `sentence1` is missing; the fields here are \
            `sentence_1`; did you mean `sentence_1`?",
        ),
        Case(
            CSV,
            &named,
            "Sentence1,b\nx,y\n",
            "data:1: the field `sentence1` is missing; the fields here are \
            `Sentence1`, `b`; did you mean `Sentence1`?",
        ),
        Case(
            CSV,
            &named,
            "text,b\nx,y\n",
            "data:1: the field `sentence1` is missing; the fields here are `text`, `b`",
        ),
        Case(
            raw,
            &named,
            "a,b\n",
            "data:1: `sentence1` is a column name, and the file is read without a header; give \
            a column number, counted from 0",
        ),
        Case(
            Format::Jsonl,
            &placed,
            "{}",
            "data: column 3 is a column number, and the objects of a JSON lines file have \
            names; give a name",
        ),
        Case(
            CSV,
            &placed,
            "a,b\n",
            "data:1: the text is to be in column 3, counted from 0, and there are 2 columns",
        ),
        Case(
            raw,
            &only_label,
            "a,b\n",
            "data:1: there is no header and 2 columns; say which column holds which field, \
            or name them in a first row",
        ),
    ] {
        let error = parse_as(format, text, fields).expect_err("a bad data set").to_string();
        assert_eq!(error, expected);
    }
}

#[test]
fn errors_name_the_file_the_line_and_the_way_out() {
    struct Case(Format, &'static str, &'static str);
    for Case(format, text, expected) in [
        Case(
            Format::Jsonl,
            "{\"text\": \"a\"}\n{\"text\": }\n",
            "data:2: the line is not a JSON object: expected value \
            (column 10)",
        ),
        Case(
            Format::Jsonl,
            "\n[1]\n",
            "data:2: the line holds an array; a JSON object such as {\"text\": \"...\"} is \
            expected",
        ),
        Case(
            Format::Jsonl,
            "{\"txet\": \"a\", \"id\": 1}",
            "data:1: the field `text_a` or `text` is missing; the fields here \
            are `txet`, `id`; did you mean `txet`?",
        ),
        Case(
            Format::Jsonl,
            "{}",
            "data:1: the field `text_a` or `text` is missing; the fields here are none",
        ),
        Case(Format::Jsonl, "{\"text\": null}", "data:1: the field `text` holds null; a value is expected"),
        Case(Format::Jsonl, "{\"text\": 1}", "data:1: the field `text` holds a number; a string is expected"),
        Case(
            Format::Jsonl,
            "{\"text\": \"a\", \"score\": \"1\"}",
            "data:1: the field `score` holds a string; a number is \
            expected",
        ),
        Case(
            Format::Jsonl,
            "{\"text\": \"a\", \"label\": {}}",
            "data:1: the field `label` holds an object; a string, a \
            number, a boolean or a list of these is expected",
        ),
        Case(
            Format::Jsonl,
            "{\"text\": \"a\", \"score\": 1e999}",
            "data:1: the line is not a JSON object: number out of \
            range (column 28)",
        ),
        Case(
            Format::Jsonl,
            "{\"text\": \"a\", \"score\": NaN}",
            "data:1: the line is not a JSON object: expected value \
            (column 24)",
        ),
        Case(Format::Jsonl, " \r\n\n", "data: the data set holds no samples; at least one is needed"),
        Case(Format::Txt, "", "data: the data set holds no samples; at least one is needed"),
        Case(CSV, "\u{feff}", "data: the data set holds no samples; at least one is needed"),
        Case(CSV, "text,label\n", "data: the data set holds no samples; at least one is needed"),
        Case(CSV, "a,b,nan\n", "data:1: the score `nan` is not a finite number"),
        Case(CSV, "a,b,1\na,b,-inf\n", "data:2: the score `-inf` is not a finite number"),
        Case(CSV, "a,b,good\n", "data:1: the score `good` is not a finite number"),
        Case(
            CSV,
            "a,b,c,d\n",
            "data:1: there is no header and 4 columns; say which column holds which field, or name \
            them in a first row",
        ),
        Case(
            CSV,
            "label,txt\n1,x\n",
            "data:1: the field `text_a` or `text` is missing; the fields here are `label`, \
            `txt`; did you mean `txt`?",
        ),
        Case(CSV, "text,text\nx,y\n", "data:1: the header names the column `text` twice"),
        Case(
            CSV,
            "text\na\n\"b\nc\nd\n",
            "data:3: a quoted field begins in this row and is never closed; close it with \
            `\"`",
        ),
        Case(
            Format::Csv { header: Some(false), delimiter: b'\t' },
            "\"Quote opens and\tnever closes\t3.0\nHe said \"hi\" to\tthe other\t4.0\n",
            "data:1: a quoted field goes on behind its closing quote; write a quote within such a field twice, or the file \
            as JSON lines",
        ),
        Case(
            Format::Csv { header: None, delimiter: b'"' },
            "a\n",
            "data: the byte 0x22 cannot be the delimiter; one \
            ASCII character other than a quote and an end of line is",
        ),
    ] {
        assert_eq!(error(format, text), expected, "{text:?}");
    }
    for format in [Format::Jsonl, Format::Txt, CSV] {
        let text = b"{\"text\": \"a\"}\n\n{\"text\": \"\xff\"}\n";
        assert_eq!(error(format, text), "data:3: the text is not valid UTF-8; convert the file to UTF-8");
    }
}

#[test]
fn long_lines_and_records_are_refused() {
    for (format, first) in [(Format::Jsonl, "{\"text\": \"a\"}"), (Format::Txt, "a"), (CSV, "a")] {
        let text = format!("{first}\n{}\n", "x".repeat(MAX_LINE_BYTES + 1));
        assert!(error(format, &text).starts_with("data:2: the line is longer than 16 MiB"));
    }
    assert_eq!(ok(Format::Txt, &"x".repeat(MAX_LINE_BYTES)).len(), 1);
    // A record may span lines, but not to grow beyond the same limit.
    let text = format!("a\n\"{}\"\n", "x\n".repeat(MAX_LINE_BYTES / 2 + 1));
    assert!(error(CSV, &text).starts_with("data:2: the line is longer than 16 MiB"));
}

#[test]
fn files_are_read_by_their_extension() {
    let dir = tempfile::tempdir().expect("a directory");
    let read_file = |name: &str, options: &ReadOptions| {
        let path = dir.path().join(name);
        if name != "absent.txt" {
            std::fs::write(&path, "{\"text\": \"a\"}\n").expect("written");
        }
        read(&path, options).map_err(|error| error.problem)
    };
    let options = ReadOptions::default();
    for (name, text) in
        [("x.jsonl", "a"), ("x.NDJSON", "a"), ("x.txt", "{\"text\": \"a\"}"), ("x.csv", "{\"text\": \"a\"}")]
    {
        let samples = read_file(name, &options).expect("good");
        assert_eq!(samples[0].text_a, text);
        assert!(samples[0].file.ends_with(name));
    }
    assert!(matches!(read_file("x.arrow", &options), Err(Problem::UnknownFormat)));
    assert!(matches!(read_file("absent.txt", &options), Err(Problem::Io(_))));
    let explicit = ReadOptions { format: Some(Format::Jsonl), ..options };
    assert_eq!(read_file("x.arrow", &explicit).expect("good")[0].text_a, "a");
}

#[test]
fn requirements_point_at_the_sample() {
    let samples = ok(
        Format::Jsonl,
        "{\"text\": \"a\", \"text_b\": \"b\", \"score\": 1, \"label\": 2}\n\n{\"text\": \"c\"}\n",
    );
    assert_eq!(require_scores(&samples[..1]).expect("present"), [1.0]);
    assert_eq!(require_labels(&samples[..1]).expect("present"), ["2"]);
    assert_eq!(require_pairs(&samples[..1]).expect("present"), [("a", "b")]);
    let message = "data:3: the sample has no score, and the task needs one for every sample";
    assert_eq!(require_scores(&samples).expect_err("absent").to_string(), message);
    assert_eq!(require_labels(&samples).expect_err("absent").line, 3);
    assert_eq!(require_pairs(&samples).expect_err("absent").line, 3);
}

#[test]
fn fingerprints_see_content_and_order_only() {
    let a = sample(1, "a", None, None, None);
    let others = [
        sample(1, "b", None, None, None),
        sample(1, "a", Some(""), None, None),
        sample(1, "a", None, Some(0.0), None),
        sample(1, "a", None, None, Some("")),
    ];
    let of =
        |samples: &[&Sample]| fingerprint(&samples.iter().map(|&sample| sample.clone()).collect::<Vec<_>>());
    for other in &others {
        assert_ne!(of(&[&a]), of(&[other]));
        assert_ne!(of(&[&a, other]), of(&[other, &a]));
    }
    assert_ne!(of(&[&a]), of(&[&a, &a]));
    assert_eq!(of(&[&a]), of(&[&Sample { file: "elsewhere".into(), line: 9, ..a.clone() }]));
}

/// Texts with everything that makes readers stumble.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c ,;\"\r\n\t\u{feff}]{0,8}", "\\PC{0,12}"]
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let score = (-9_999_999..9_999_999i32).prop_map(|score| f64::from(score) / 1e4);
    prop::collection::vec((text(), text(), prop::option::of(score), prop::option::of("[a-z]{1,4}")), 1..8)
        .prop_map(|rows| {
            let sample = |(a, b, score, label): (String, String, Option<f64>, Option<String>)| Sample {
                text_a: a,
                text_b: Some(b),
                score,
                label,
                ..Sample::default()
            };
            rows.into_iter().map(sample).collect()
        })
}

/// What counts, without places.
fn content(samples: Vec<Sample>) -> Vec<Sample> {
    samples.into_iter().map(|sample| Sample { file: Arc::default(), line: 0, ..sample }).collect()
}

proptest! {
    #[test]
    fn written_jsonl_reads_back(samples in samples()) {
        let row = |s: &Sample| serde_json::json!({"text_a": s.text_a, "text_b": s.text_b, "score": s.score, "label": s.label});
        let text: String = samples.iter().map(|sample| row(sample).to_string() + "\n").collect();
        prop_assert_eq!(content(ok(Format::Jsonl, &text)), samples);
    }

    #[test]
    fn written_csv_reads_back(samples in samples(), delimiter in prop::sample::select(b",;\t|".to_vec()), crlf: bool) {
        let terminator = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
        let mut writer = csv::WriterBuilder::new().delimiter(delimiter).terminator(terminator).from_writer(Vec::new());
        writer.write_record(["text_a", "text_b", "score", "label"]).expect("written");
        let mut lines = Vec::new();
        for s in &samples {
            writer.flush().expect("flushed");
            lines.push(1 + lines::ends(writer.get_ref()));
            let score = s.score.map(|score| score.to_string()).unwrap_or_default();
            let label = s.label.clone().unwrap_or_default();
            writer.write_record([s.text_a.as_str(), s.text_b.as_deref().unwrap_or_default(), &score, &label]).expect("written");
        }
        let bytes = writer.into_inner().expect("flushed");
        let read = parse_as(Format::Csv { header: None, delimiter }, bytes, &Fields::default()).expect("good");
        prop_assert_eq!(read.iter().map(|sample| sample.line).collect::<Vec<_>>(), lines);
        prop_assert_eq!(content(read), samples);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(prop::sample::select(b"{}[]\"tex:,\r\n\\1\xef\xbb\xbf\xff".to_vec()), 0..60)) {
        for format in [Format::Jsonl, Format::Txt, CSV] {
            if let Ok(samples) = parse_as(format, &bytes, &Fields::default()) {
                prop_assert!(!samples.is_empty());
                prop_assert!(samples.windows(2).all(|pair| pair[0].line <= pair[1].line));
            }
        }
    }
}

#[test]
fn a_document_is_one_text_with_its_line_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let read = |bytes: &[u8]| {
        let path = dir.path().join("text.txt");
        std::fs::write(&path, bytes).expect("written");
        read_document(&path).map_err(|error| error.to_string())
    };
    assert_eq!(read(b"\xef\xbb\xbfa\r\n\n b ").as_deref(), Ok("a\r\n\n b "));
    let latin = read(b"a\nb\n\xe9").expect_err("not UTF-8");
    assert!(latin.contains(":3:") || latin.contains("line 3"), "{latin}");
    assert!(read(b" \n\t").is_err());
}

#[test]
fn a_document_is_one_text_with_its_lines() {
    let expected = [sample(1, "one\n\n two \r\n", None, None, None)];
    assert_eq!(ok(Format::Document, "\u{feff}one\n\n two \r\n"), expected);
    assert_eq!(error(Format::Document, " \n"), "data: the data set holds no samples; at least one is needed");
    let long = error(Format::Document, "a".repeat(MAX_LINE_BYTES + 1));
    assert!(long.starts_with("data: the text is longer than 16 MiB, and it is to be one sample"), "{long}");
}

#[test]
fn conversations_are_read_where_they_are_asked_for() {
    let asked = |name: &str| Fields { messages: Some(name.into()), ..Fields::default() };
    let row = r#"{"messages": [{"role": "user", "content": "hi", "name": "x"}], "id": 1}"#;
    let samples = parse_as(Format::Jsonl, row, &asked(MESSAGES)).expect("good");
    assert_eq!(samples[0].text_a, "");
    let messages = samples[0].messages.as_ref().expect("a conversation");
    assert_eq!(messages[0], serde_json::json!({"role": "user", "content": "hi", "name": "x"}));
    assert_ne!(fingerprint(&samples), fingerprint(&[Sample { messages: None, ..samples[0].clone() }]));

    let both = r#"{"text": "a", "messages": [{"role": "user"}], "chat": [{"role": "user"}]}"#;
    assert_eq!(parse_as(Format::Jsonl, both, &asked(MESSAGES)).expect("good")[0].messages, None);
    assert!(parse_as(Format::Jsonl, both, &asked("chat")).expect("good")[0].messages.is_some());
    for (text, fields, expected) in [
        (
            row,
            Fields::default(),
            "the field `text_a` or `text` is missing; the fields here are `messages`, `id`",
        ),
        (row, asked("chat"), "the field `chat` is missing; the fields here are `messages`, `id`"),
        (
            r#"{"messages": []}"#,
            asked(MESSAGES),
            "the list `messages` is empty; at least one entry is needed",
        ),
        (
            r#"{"messages": "hi"}"#,
            asked(MESSAGES),
            "the field `messages` holds a string; a list of objects such as {\"role\": \"user\", \"content\": \"...\"} is \
             expected",
        ),
        (
            r#"{"messages": [{"from": "user"}]}"#,
            asked(MESSAGES),
            "the field `role` is missing; the fields here are `from`",
        ),
    ] {
        let error = parse_as(Format::Jsonl, text, &fields).expect_err("a bad data set").to_string();
        assert_eq!(error, format!("data:1: {expected}"));
    }
}

/// A reader that knows how much it has given.
struct Counting<'a>(&'a std::cell::Cell<u64>, u64);

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        const LINE: &[u8] = b"{\"text\": \"a line of text\"}\n";
        let (given, count) = (self.0.get(), (buffer.len() / LINE.len() * LINE.len()) as u64);
        let count = count.min(self.1 - given);
        for (byte, of) in buffer[..count as usize].iter_mut().zip(LINE.iter().cycle()) {
            *byte = *of;
        }
        self.0.set(given + count);
        Ok(count as usize)
    }
}

#[test]
fn rows_are_handed_over_as_they_are_read() {
    let line = "{\"text\": \"a line of text\"}\n".len() as u64;
    let rows = 400_000;
    for format in [Format::Jsonl, Format::Txt] {
        let given = std::cell::Cell::new(0);
        let mut taken = 0;
        let reader = Counting(&given, rows * line);
        parse_each(reader, &"data".into(), format, &Fields::default(), &mut |_| {
            taken += line;
            assert!(given.get() - taken <= 64 << 10, "{taken} of {} bytes are held", given.get());
            Ok::<_, DatasetError>(())
        })
        .expect("good rows");
        assert_eq!(taken, rows * line);
    }
}

#[test]
fn an_error_of_the_taker_ends_the_reading() {
    let mut taken = 0;
    let stop = parse_each(&b"a\nb\nc\n"[..], &"data".into(), Format::Txt, &Fields::default(), &mut |_| {
        taken += 1;
        if taken == 2 { Err(DatasetError::new(&"mine".into(), 7, Problem::Empty)) } else { Ok(()) }
    });
    assert_eq!((taken, &*stop.expect_err("stopped").file), (2, "mine"));
}
