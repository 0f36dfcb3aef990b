//! `preprocessor_config.json`, in the spellings of today and of older versions of `transformers`.

use serde_json::Value;

use super::resample::Filter;
use crate::spec::ImageInput;

/// How an image is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// To this height and width.
    Exactly([usize; 2]),
    /// So that its shorter side has this length; the aspect stays.
    ShortestEdge(usize),
}

/// What happens to an image, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Steps {
    pub(super) scale: Option<Scale>,
    pub(super) filter: Filter,
    /// Height and width that are cut out of the middle.
    pub(super) crop: Option<[usize; 2]>,
    /// Factor on the 8-bit values.
    pub(super) rescale: Option<f64>,
    /// Mean and standard deviation of each channel.
    pub(super) normalize: Option<([f32; 3], [f32; 3])>,
}

/// What holds for keys that the file lacks: the class attributes of `transformers`' processors.
struct Defaults {
    /// How a plain number is read as `size`, and the size when there is none.
    size: fn(usize) -> Scale,
    side: usize,
    crop: Option<usize>,
    filter: Filter,
    mean: [f32; 3],
    std: [f32; 3],
}

const PLAIN: [f32; 3] = [0.5; 3];
/// `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD` of `transformers`.
const OPENAI_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const OPENAI_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

impl Defaults {
    fn of(kind: &str) -> Option<Self> {
        let square = |side| Scale::Exactly([side, side]);
        match kind {
            "ViT" => Some(Self {
                size: square,
                side: 224,
                crop: None,
                filter: Filter::Bilinear,
                mean: PLAIN,
                std: PLAIN,
            }),
            "DeiT" => Some(Self {
                size: square,
                side: 256,
                crop: Some(224),
                filter: Filter::Bicubic,
                mean: PLAIN,
                std: PLAIN,
            }),
            "CLIP" => Some(Self {
                size: Scale::ShortestEdge,
                side: 224,
                crop: Some(224),
                filter: Filter::Bicubic,
                mean: OPENAI_MEAN.map(|mean| mean as f32),
                std: OPENAI_STD.map(|std| std as f32),
            }),
            _ => None,
        }
    }
}

/// The steps that are known. Any other that is switched on would change pixels unnoticed.
const KNOWN_STEPS: [&str; 5] =
    ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
const MAX_SIDE: usize = 16_384;

impl Steps {
    /// Understands a config, or says what is wrong with it.
    pub(super) fn read(config: &Value, model_type: &str) -> Result<Self, String> {
        let Some(keys) = config.as_object() else { return Err("holds no table of settings".to_owned()) };
        let given = |key: &str| keys.get(key).filter(|value| !value.is_null());
        let named = ["image_processor_type", "feature_extractor_type"].into_iter().find_map(given);
        let class = named.and_then(Value::as_str);
        let kind = class.map_or_else(|| kind_of_model(model_type), |class| strip(class).to_owned());
        let Some(defaults) = Defaults::of(&kind) else {
            return Err(format!(
                "asks for the image processor `{}`; ViTImageProcessor, DeiTImageProcessor and CLIPImageProcessor are \
                 supported",
                class.unwrap_or(&kind)
            ));
        };
        let switch = |key: &str, default: bool| match given(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| format!("`{key}` is {value}; true or false is expected"))
            }
        };
        for key in keys.keys().filter(|key| key.starts_with("do_") && !KNOWN_STEPS.contains(&key.as_str())) {
            if switch(key, false)? {
                return Err(format!("`{key}` is true, a step that is not supported"));
            }
        }
        let scale = switch("do_resize", true)?
            .then(|| {
                given("size")
                    .map_or(Ok((defaults.size)(defaults.side)), |size| read_scale(size, defaults.size))
            })
            .transpose()?;
        let crop = switch("do_center_crop", defaults.crop.is_some())?
            .then(|| match (given("crop_size"), defaults.crop) {
                (Some(size), _) => read_crop(size),
                (None, Some(side)) => Ok([side, side]),
                (None, None) => Err("`do_center_crop` is true, but there is no `crop_size`".to_owned()),
            })
            .transpose()?;
        let rescale = switch("do_rescale", true)?
            .then(|| match given("rescale_factor") {
                None => Ok(1.0 / 255.0),
                Some(value) => value
                    .as_f64()
                    .filter(|factor| factor.is_finite() && *factor > 0.0)
                    .ok_or_else(|| format!("`rescale_factor` is {value}; a number above 0 is expected")),
            })
            .transpose()?;
        let normalize = switch("do_normalize", true)?
            .then(|| -> Result<_, String> {
                let mean = given("image_mean").map_or(Ok(defaults.mean), |v| channels("image_mean", v))?;
                let std = given("image_std").map_or(Ok(defaults.std), |v| channels("image_std", v))?;
                if std.iter().any(|std| *std <= 0.0) {
                    return Err(format!("`image_std` is {std:?}; numbers above 0 are expected"));
                }
                Ok((mean, std))
            })
            .transpose()?;
        let filter = match given("resample") {
            None => defaults.filter,
            Some(value) => value.as_u64().and_then(Filter::from_number).ok_or_else(|| {
                format!(
                    "`resample` is {value}; 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) and 5 (hamming) \
                     are supported"
                )
            })?,
        };
        Ok(Self { scale, filter, crop, rescale, normalize })
    }

    /// What comes out must be what the model takes, as far as it is known without an image.
    pub(super) fn check(&self, input: &ImageInput) -> Result<(), String> {
        if input.channels != 3 {
            return Err(format!("prepares 3 channels, and the model takes {}", input.channels));
        }
        let ((Some(made), _) | (None, Some(Scale::Exactly(made)))) = (self.crop, self.scale) else {
            return Ok(());
        };
        if made == input.image_size {
            return Ok(());
        }
        let ([height, width], [model_height, model_width]) = (made, input.image_size);
        Err(format!(
            "makes images of {height} x {width} pixels, and the model takes {model_height} x {model_width}"
        ))
    }
}

/// `ViTImageProcessorFast` to `ViT`.
fn strip(class: &str) -> &str {
    let class = class.strip_suffix("Fast").or_else(|| class.strip_suffix("Pil")).unwrap_or(class);
    class.strip_suffix("ImageProcessor").or_else(|| class.strip_suffix("FeatureExtractor")).unwrap_or(class)
}

fn kind_of_model(model_type: &str) -> String {
    match model_type {
        "vit" => "ViT",
        "deit" => "DeiT",
        _ if model_type.starts_with("clip") => "CLIP",
        other => other,
    }
    .to_owned()
}

fn side(key: &str, value: &Value) -> Result<usize, String> {
    value
        .as_u64()
        .and_then(|side| usize::try_from(side).ok())
        .filter(|side| (1..=MAX_SIDE).contains(side))
        .ok_or_else(|| format!("`{key}` is {value}; 1 to {MAX_SIDE} pixels are allowed"))
}

/// `{"height", "width"}`, `{"shortest_edge"}`, or, in older files, one number.
fn read_scale(value: &Value, of_number: fn(usize) -> Scale) -> Result<Scale, String> {
    let Some(keys) = value.as_object() else { return Ok(of_number(side("size", value)?)) };
    let get = |key: &str| keys.get(key).filter(|value| !value.is_null());
    let longest = get("longest_edge").is_some() || get("max_height").is_some() || get("max_width").is_some();
    match (get("height"), get("width"), get("shortest_edge")) {
        (Some(height), Some(width), None) if !longest => {
            Ok(Scale::Exactly([side("size.height", height)?, side("size.width", width)?]))
        }
        (None, None, Some(edge)) if !longest => Ok(Scale::ShortestEdge(side("size.shortest_edge", edge)?)),
        _ => Err(format!("`size` is {value}; `height` and `width`, or `shortest_edge` alone, are supported")),
    }
}

fn read_crop(value: &Value) -> Result<[usize; 2], String> {
    match read_scale(value, |side| Scale::Exactly([side, side])) {
        Ok(Scale::Exactly(sides)) => Ok(sides),
        _ => Err(format!("`crop_size` is {value}; `height` and `width`, each 1 to {MAX_SIDE}, are expected")),
    }
}

fn channels(key: &str, value: &Value) -> Result<[f32; 3], String> {
    let one = |value: &Value| value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    let all = match value {
        Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>(),
        number => one(number).map(|number| vec![number; 3]),
    };
    all.and_then(|all| all.try_into().ok())
        .ok_or_else(|| format!("`{key}` is {value}; three numbers, one for each channel, are expected"))
}
