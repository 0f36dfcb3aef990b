//! Pixel values, hidden states, embeddings and logits of images are those of `transformers`, for every vision fixture.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeropoint_models::{
    ImagePixels, InputRef, Model, ModelDirectory, PackedBatch, SourceRef, Task, TokenSequence,
};

/// Largest absolute difference to the reference for the same pixel values. Hidden states are of order 1.
const TOLERANCE: f32 = 1e-5;

/// Largest difference of a pixel value whose 8-bit value is the same; the references keep seven digits.
const SAME_STEP: f32 = 1e-6;

const FIXTURES: [&str; 5] = ["vit-base", "vit-classifier", "deit-classifier", "deit-teacher", "clip"];

/// What `transformers` computed. Lists have an entry an image or text, maps one for some.
#[derive(Deserialize)]
struct Reference {
    images: Vec<String>,
    /// `[channels][rows][columns]`.
    pixel_values: BTreeMap<usize, Vec<Vec<Vec<f32>>>>,
    last_hidden_state: Option<BTreeMap<usize, Vec<Vec<f32>>>>,
    pooled: Option<Vec<Vec<f32>>>,
    logits: Option<Vec<Vec<f32>>>,
    image_embeds: Option<Vec<Vec<f32>>>,
    text_hidden_state: Option<BTreeMap<usize, Vec<Vec<f32>>>>,
    #[serde(default)]
    texts: Vec<String>,
    #[serde(default)]
    input_ids: Vec<Vec<u32>>,
    text_embeds: Option<Vec<Vec<f32>>>,
    logits_per_image: Option<Vec<Vec<f32>>>,
}

impl Reference {
    /// What the image tower gives, an entry an image.
    fn outputs(&self) -> &[Vec<f32>] {
        self.pooled
            .as_ref()
            .or(self.logits.as_ref())
            .or(self.image_embeds.as_ref())
            .expect("outputs of images")
    }

    fn pixels(&self, image: usize) -> Option<ImagePixels> {
        let values = self.pixel_values.get(&image)?;
        let shape = [values.len(), values[0].len(), values[0][0].len()];
        Some(ImagePixels { values: values.iter().flatten().flatten().copied().collect(), shape })
    }
}

struct Fixture {
    name: &'static str,
    path: PathBuf,
    directory: ModelDirectory,
    model: Model,
    reference: Reference,
}

impl Fixture {
    fn open(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        let text = std::fs::read_to_string(path.join("reference.json")).expect("a reference");
        let directory = open(&path, Task::Auto);
        let model = Model::load(&directory).expect("the model loads");
        Self { name, path, model, directory, reference: serde_json::from_str(&text).expect("a reference") }
    }

    fn all() -> impl Iterator<Item = Self> {
        FIXTURES.into_iter().map(Self::open)
    }

    /// The images prepared by us.
    fn prepared(&self) -> Vec<ImagePixels> {
        let processor = self.directory.image_processor().expect("a processor").expect("it takes images");
        let paths: Vec<PathBuf> = self.reference.images.iter().map(|name| self.path.join(name)).collect();
        processor.prepare_all(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>()).expect("images")
    }

    fn lossless(&self, image: usize) -> bool {
        Path::new(&self.reference.images[image]).extension().is_some_and(|extension| extension == "png")
    }
}

fn open(path: &Path, task: Task) -> ModelDirectory {
    ModelDirectory::open(&SourceRef::Directory(path.to_owned()), task).expect("the fixture opens")
}

/// The output for each input alone, which must be that among the others.
fn outputs<'a, T>(model: &Model, inputs: &'a [T], what: &str) -> Vec<Vec<f32>>
where
    InputRef<'a>: From<&'a T>,
{
    let together = model.forward(&PackedBatch::new(inputs).expect("a batch")).expect("a forward");
    let alone =
        |input: &'a T| model.forward(&PackedBatch::new([input]).expect("a batch")).expect("a forward").values;
    let alone: Vec<Vec<f32>> = inputs.iter().map(alone).collect();
    for (alone, among) in alone.iter().zip(together.samples()) {
        assert_close(among, alone, TOLERANCE, &format!("{what}, together against alone"));
    }
    alone
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let nan_first = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, nan_first);
    assert!(worst <= tolerance, "{what}: differs by {worst:e}, {tolerance:e} is allowed");
}

#[test]
fn pixel_values_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let config = std::fs::read_to_string(fixture.path.join("preprocessor_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let smallest_std = config["image_std"].as_array().unwrap().iter().map(|std| std.as_f64().unwrap());
        // JPEG decoders round their inverse cosine transform and their colours differently, and scaling may add to that: two
        // steps of 255 at most.
        let two_steps = (2.0 / 255.0 / smallest_std.fold(f64::INFINITY, f64::min)) as f32 + SAME_STEP;
        let mut compared = 0;
        for (i, found) in fixture.prepared().iter().enumerate() {
            let Some(expected) = fixture.reference.pixels(i) else { continue };
            let tolerance = if fixture.lossless(i) { SAME_STEP } else { two_steps };
            assert_eq!(found.shape, expected.shape);
            assert_close(&found.values, &expected.values, tolerance, &format!("{}, image {i}", fixture.name));
            compared += 1;
        }
        assert_eq!(compared, 2, "{}", fixture.name);
    }
}

#[test]
fn hidden_states_of_the_same_pixels_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let Some(states) = &fixture.reference.last_hidden_state else { continue };
        for (image, expected) in states {
            let pixels = fixture.reference.pixels(*image).unwrap();
            let batch = PackedBatch::new([&pixels]).unwrap();
            let found: Vec<Vec<f32>> = fixture.model.hidden_states(&batch).unwrap().to_vec2().unwrap();
            assert_close(&found.concat(), &expected.concat(), TOLERANCE, fixture.name);
        }
    }
}

#[test]
fn outputs_of_the_same_pixels_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let indices: Vec<usize> = fixture.reference.pixel_values.keys().copied().collect();
        let pixels: Vec<ImagePixels> =
            indices.iter().map(|i| fixture.reference.pixels(*i).unwrap()).collect();
        let found = outputs(&fixture.model, &pixels, fixture.name);
        for (i, found) in indices.into_iter().zip(found) {
            let what = format!("{}, image {i}", fixture.name);
            assert_close(&found, &fixture.reference.outputs()[i], TOLERANCE, &what);
        }
    }
}

#[test]
fn outputs_of_image_files_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let found = outputs(&fixture.model, &fixture.prepared(), fixture.name);
        for (i, found) in found.iter().enumerate() {
            // Two steps of 255 in some pixels of a JPEG move outputs of order 1 by less than this.
            let tolerance = if fixture.lossless(i) { TOLERANCE } else { 2e-2 };
            let what = format!("{}, image {i}", fixture.name);
            assert_close(found, &fixture.reference.outputs()[i], tolerance, &what);
        }
    }
}

#[test]
fn texts_of_clip_are_those_of_transformers_and_so_are_the_logits() {
    let fixture = Fixture::open("clip");
    let reference = &fixture.reference;
    let tokenizer = fixture.directory.tokenizer(None).unwrap();
    let sequences: Vec<TokenSequence> =
        reference.texts.iter().map(|text| tokenizer.encode(text, None).unwrap()).collect();
    for (sequence, expected) in sequences.iter().zip(&reference.input_ids) {
        assert_eq!(&sequence.ids, expected);
    }
    for (text, expected) in reference.text_hidden_state.as_ref().unwrap() {
        let batch = PackedBatch::new([&sequences[*text]]).unwrap();
        let found: Vec<Vec<f32>> = fixture.model.hidden_states(&batch).unwrap().to_vec2().unwrap();
        assert_close(&found.concat(), &expected.concat(), TOLERANCE, "hidden states of texts");
    }
    let texts = outputs(&fixture.model, &sequences, "texts");
    assert_close(&texts.concat(), &reference.text_embeds.as_ref().unwrap().concat(), TOLERANCE, "texts");

    let scale = fixture.model.logit_scale().expect("a factor");
    let images = reference.image_embeds.as_ref().unwrap();
    let logits = reference.logits_per_image.as_ref().unwrap();
    for (image, expected) in images.iter().zip(logits) {
        let dot = |text: &Vec<f32>| scale * image.iter().zip(text).map(|(a, b)| a * b).sum::<f32>();
        assert_close(&texts.iter().map(dot).collect::<Vec<_>>(), expected, TOLERANCE, "logits");
    }
}

/// A copy of a fixture with another config.json.
fn with_config(name: &str, change: impl FnOnce(serde_json::Value) -> serde_json::Value) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    let copy = tempfile::tempdir().expect("a directory");
    for file in std::fs::read_dir(&from).expect("the fixture").map(|entry| entry.expect("an entry").path()) {
        if let (true, Some(name)) = (file.is_file(), file.file_name()) {
            std::fs::copy(&file, copy.path().join(name)).expect("copied");
        }
    }
    let config = std::fs::read_to_string(from.join("config.json")).expect("a config");
    let changed = change(serde_json::from_str(&config).expect("JSON"));
    std::fs::write(copy.path().join("config.json"), changed.to_string()).expect("written");
    copy
}

#[test]
fn one_tower_of_clip_alone_gives_what_it_gives_beside_the_other() {
    let both = Fixture::open("clip");
    for (part, architecture) in
        [("text_config", "CLIPTextModelWithProjection"), ("vision_config", "CLIPVisionModelWithProjection")]
    {
        // From the config of the tower alone, and from that of the whole model, as `transformers` reads both.
        for whole in [false, true] {
            let copy = with_config("clip", |mut config| {
                let mut config = if whole { config } else { config[part].take() };
                config["architectures"] = serde_json::json!([architecture]);
                config
            });
            let directory = open(copy.path(), Task::Auto);
            assert_eq!(directory.spec().architecture, architecture);
            assert_eq!(directory.spec().towers.len(), 1);
            let alone = Model::load(&directory).unwrap();
            assert_eq!(alone.logit_scale(), None);
            if part == "text_config" {
                let ids = both.reference.input_ids[0].clone();
                let tokens = [TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 }];
                assert_eq!(outputs(&alone, &tokens, "text"), outputs(&both.model, &tokens, "text"));
            } else {
                let pixels = [both.reference.pixels(0).unwrap()];
                assert_eq!(outputs(&alone, &pixels, "image"), outputs(&both.model, &pixels, "image"));
            }
        }
    }
}

#[test]
fn the_end_of_a_text_is_the_id_that_the_config_names() {
    let old = Fixture::open("clip");
    let copy = with_config("clip", |mut config| {
        let end = *old.reference.input_ids[0].last().unwrap();
        config["text_config"]["eos_token_id"] = end.into();
        config
    });
    let named = Model::load(&open(copy.path(), Task::Auto)).unwrap();
    let ids = old.reference.input_ids[0].clone();
    let tokens = [TokenSequence { type_ids: vec![0; ids.len()], ids, prompt: 0 }];
    assert_eq!(outputs(&named, &tokens, "named"), outputs(&old.model, &tokens, "largest"));
}

#[test]
fn a_classifier_read_as_an_encoder_gives_the_class_token() {
    let fixture = Fixture::open("vit-classifier");
    let encoder = Model::load(&open(&fixture.path, Task::Embedding)).unwrap();
    let pixels = [fixture.reference.pixels(0).unwrap()];
    let states = &fixture.reference.last_hidden_state.as_ref().unwrap()[&0];
    assert_close(&outputs(&encoder, &pixels, "class token")[0], &states[0], TOLERANCE, "class token");
    assert_eq!(encoder.spec().absent_linears, ["pooler.dense"]);
}

#[test]
fn images_are_refused_by_models_of_text_and_texts_by_models_of_images() {
    let fixture = Fixture::open("vit-base");
    let tokens = TokenSequence { ids: vec![1], type_ids: vec![0], prompt: 0 };
    let error = fixture.model.forward(&PackedBatch::new([&tokens]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "texts are given, which ViTModel does not take");
    let small = ImagePixels { values: vec![0.0; 3 * 8 * 8], shape: [3, 8, 8] };
    let error = fixture.model.forward(&PackedBatch::new([&small]).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an image has shape [3, 8, 8] after preparation; the model takes 3 channels of 32 x 32 pixels"
    );
}
