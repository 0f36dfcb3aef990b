//! Image files to 8-bit RGB. A file is a stranger's: its size and the size it claims are checked before it is decoded.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read as _, Seek};
use std::path::Path;

use ::image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use super::Rgb;
use crate::ModelError;

/// Largest image file, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Most pixels of an image, before and after scaling.
pub const MAX_IMAGE_PIXELS: usize = 1 << 26;
/// Longest side of an image, in pixels.
const MAX_SIDE: u32 = 1 << 16;
/// What a decoder may allocate, in bytes: the pixels with alpha, and as much again.
const MAX_ALLOCATION: u64 = 8 * MAX_IMAGE_PIXELS as u64;

/// Reads the beginning of an image file, enough to see whether it is of a kind and size that can be used.
pub fn check_image(path: &Path) -> Result<(), ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    check_bytes(path, bytes)?;
    open(path, BufReader::new(file)).map(drop)
}

fn check_bytes(path: &Path, bytes: u64) -> Result<(), ModelError> {
    if bytes <= MAX_IMAGE_BYTES {
        return Ok(());
    }
    Err(sample(path, &format!("is larger than {} MiB, the most for one image", MAX_IMAGE_BYTES >> 20)))
}

/// Decodes a file, turned upright as its metadata says. Of an image with transparency the colours alone are kept, as in
/// Pillow's `convert("RGB")`.
pub(super) fn decode(path: &Path) -> Result<Rgb, ModelError> {
    let bytes = read(path)?;
    let mut decoder = open(path, Cursor::new(bytes))?;
    let orientation = decoder.orientation().map_err(|error| refuse(path, &error))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| refuse(path, &error))?;
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Rgb { width, height, values: image.into_raw() })
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes)).map_err(io)?;
    check_bytes(path, bytes.len() as u64)?;
    Ok(bytes)
}

/// The decoder of a file whose dimensions and colours can be used.
fn open<R: BufRead + Seek + 'static>(
    path: &Path,
    content: R,
) -> Result<impl ImageDecoder + use<R>, ModelError> {
    let mut reader = ImageReader::new(content);
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let reader =
        reader.with_guessed_format().map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    if reader.format().is_none() {
        return Err(sample(path, "is not an image of a kind that is known here; PNG, JPEG and WebP are"));
    }
    let decoder = reader.into_decoder().map_err(|error| refuse(path, &error))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 || width as usize * height as usize > MAX_IMAGE_PIXELS {
        return Err(sample(
            path,
            &format!(
                "is an image of {width} x {height} pixels; 1 to {MAX_IMAGE_PIXELS} pixels are supported"
            ),
        ));
    }
    match decoder.color_type() {
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => Ok(decoder),
        other => Err(sample(
            path,
            &format!("is an image of {other:?} pixels; 8 bits a channel are supported: convert it"),
        )),
    }
}

fn sample(path: &Path, reason: &str) -> ModelError {
    ModelError::Sample { reason: format!("{}: {reason}", path.display()) }
}

fn refuse(path: &Path, error: &ImageError) -> ModelError {
    match error {
        ImageError::Limits(_) => sample(
            path,
            &format!(
                "is too large an image; sides of up to {MAX_SIDE} pixels, {MAX_IMAGE_PIXELS} pixels in all, are supported"
            ),
        ),
        ImageError::Unsupported(_) => sample(
            path,
            &format!("is an image that cannot be read ({error}); PNG, JPEG and WebP are supported"),
        ),
        _ => sample(path, &format!("is a damaged image: {error}")),
    }
}
