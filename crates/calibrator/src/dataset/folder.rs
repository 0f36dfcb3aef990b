//! Folders of images: all in one, or one folder for each label.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DatasetError, Problem, Sample};

/// Extensions of the kinds of images that can be decoded.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A name and its path.
type Named = (String, PathBuf);

/// Every image of the folder, sorted by label and name.
pub(super) fn read(path: &Path) -> Result<Vec<Sample>, DatasetError> {
    let (folders, images) = list(path)?;
    let samples: Vec<Sample> = match (folders.is_empty(), images.is_empty()) {
        (true, _) => images.into_iter().map(|image| sample(image, None)).collect(),
        (false, false) => return Err(error(path, Problem::HalfLabelled)),
        (false, true) => {
            let mut samples = Vec::new();
            for (label, folder) in folders {
                let (nested, images) = list(&folder)?;
                if let Some((name, _)) = nested.first() {
                    return Err(error(&folder, Problem::NestedFolder { name: name.clone() }));
                }
                samples.extend(images.into_iter().map(|image| sample(image, Some(&label))));
            }
            samples
        }
    };
    if samples.is_empty() {
        return Err(error(path, Problem::NoImages));
    }
    Ok(samples)
}

fn sample(image: PathBuf, label: Option<&str>) -> Sample {
    Sample {
        file: image.display().to_string().into(),
        image: Some(image),
        label: label.map(str::to_owned),
        ..Sample::default()
    }
}

fn error(path: &Path, problem: Problem) -> DatasetError {
    DatasetError::new(&Arc::from(path.display().to_string()), 0, problem)
}

/// The folders of a folder by name, and its images, each sorted; hidden entries are passed over.
fn list(path: &Path) -> Result<(Vec<Named>, Vec<PathBuf>), DatasetError> {
    let io = |source| error(path, Problem::Io(source));
    let (mut folders, mut images) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().into_string().map_err(|name| {
            let name = name.to_string_lossy().into_owned();
            error(path, Problem::NameNotUnicode { name })
        })?;
        if name.starts_with('.') {
            continue;
        }
        let entry = entry.path();
        let extension = entry.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        if entry.is_dir() {
            folders.push((name, entry));
        } else if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            images.push(entry);
        } else {
            return Err(error(path, Problem::NotAnImage { name }));
        }
    }
    folders.sort();
    images.sort();
    Ok((folders, images))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    #[test]
    fn sub_folders_are_labels_and_all_is_sorted() {
        let dir =
            folder(&["dog/b.PNG", "cat/2.jpg", "cat/10.jpeg", ".cache/x", "dog/.DS_Store", "dog/a.webp"]);
        let samples = read(dir.path()).unwrap();
        let found: Vec<_> = samples
            .iter()
            .map(|sample| {
                let image = sample.image.as_deref().unwrap();
                assert_eq!(&*sample.file, image.display().to_string());
                let name = image.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
                (name, sample.label.clone().unwrap())
            })
            .collect();
        let expected =
            [("cat/10.jpeg", "cat"), ("cat/2.jpg", "cat"), ("dog/a.webp", "dog"), ("dog/b.PNG", "dog")];
        assert_eq!(found, expected.map(|(name, label)| (name.to_owned(), label.to_owned())));
        let flat = read(folder(&["b.png", "a.png"]).path()).unwrap();
        assert!(flat.iter().all(|sample| sample.label.is_none()));
        assert_eq!(flat.len(), 2);
    }

    #[test]
    fn what_is_not_clear_is_said() {
        struct Case(&'static [&'static str], &'static str);
        for Case(files, expected) in [
            Case(
                &[],
                "DIR: the folder holds no images; .png, .jpg, .jpeg and .webp files are, in it or in one folder for each \
                 label",
            ),
            Case(
                &["cat/.keep"],
                "DIR: the folder holds no images; .png, .jpg, .jpeg and .webp files are, in it or in one folder for each \
                 label",
            ),
            Case(
                &["a.png", "metadata.csv"],
                "DIR: metadata.csv is in a folder of images and is none; .png, .jpg, .jpeg and .webp files are, and \
                 hidden files are passed over",
            ),
            Case(
                &["a.png", "cat/b.png"],
                "DIR: the folder holds images and folders; put every image into the folder of its label, or have no \
                 folders",
            ),
            Case(
                &["cat/big/b.png"],
                "DIR/cat: big is a folder inside the folder of a label, which holds images only",
            ),
        ] {
            let dir = folder(files);
            let found = read(dir.path()).unwrap_err().to_string();
            assert_eq!(found.replace(&dir.path().display().to_string(), "DIR"), expected);
        }
    }
}
