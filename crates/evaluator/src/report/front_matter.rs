//! The few lines of a model card's YAML front matter that go over to the quantised model's card.
//!
//! This reads the subset that cards on the Hub use for these keys (`key: value`, `key: [a, b]`, `key:` with a list of
//! `- item` lines) and leaves out whatever is written in another way, so that nothing is ever copied wrongly.

use std::collections::BTreeMap;

/// The keys that are kept. A licence named `other` says nothing without its name and link.
const KEPT: [&str; 7] =
    ["language", "library_name", "license", "license_link", "license_name", "pipeline_tag", "tags"];

/// A value of the front matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontValue {
    /// `key: value`
    One(String),
    /// A list, in its order; never empty.
    Many(Vec<String>),
}

impl FrontValue {
    /// The values, one or many.
    pub fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// The kept keys of a front matter, in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontMatter(pub BTreeMap<String, FrontValue>);

/// Reads the front matter of a README.md: licence, language, tags, `pipeline_tag` and `library_name`.
///
/// Empty when there is none, or when it does not end.
pub fn parse_front_matter(readme: &str) -> FrontMatter {
    let mut lines = readme.trim_start_matches('\u{feff}').lines().map(str::trim_end);
    if lines.next() != Some("---") {
        return FrontMatter::default();
    }
    let mut entries = BTreeMap::new();
    // The key whose list is being read, with the items so far; `None` once something in it was not understood.
    let mut open: Option<(&str, Option<Vec<String>>)> = None;
    let mut ended = false;
    for line in lines {
        if line == "---" || line == "..." {
            ended = true;
            break;
        }
        if line.is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            if let Some((_, items)) = &mut open {
                *items = items.take().zip(scalar(item)).map(|(mut items, item)| {
                    items.push(item);
                    items
                });
            }
            continue;
        }
        if line.starts_with([' ', '\t', '-']) {
            // A nested value: whatever list it belongs to is not a plain one.
            if let Some((_, items)) = &mut open {
                *items = None;
            }
            continue;
        }
        close(&mut entries, open.take());
        let Some((key, value)) = line.split_once(':') else { continue };
        let Some(&key) = KEPT.iter().find(|&&kept| kept == key) else { continue };
        let value = value.trim();
        if value.is_empty() || value.starts_with('#') {
            open = Some((key, Some(Vec::new())));
        } else if let Some(list) = value.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
            let items = list.split(',').filter(|item| !item.trim().is_empty()).map(scalar).collect();
            close(&mut entries, Some((key, items)));
        } else if let Some(value) = scalar(value) {
            entries.insert(key.to_owned(), FrontValue::One(value));
        }
    }
    close(&mut entries, open);
    if ended { FrontMatter(entries) } else { FrontMatter::default() }
}

fn close(entries: &mut BTreeMap<String, FrontValue>, open: Option<(&str, Option<Vec<String>>)>) {
    if let Some((key, Some(items))) = open
        && !items.is_empty()
    {
        entries.insert(key.to_owned(), FrontValue::Many(items));
    }
}

/// A plain or quoted scalar on one line without its comment; `None` for anything else.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let (value, after) = rest.split_once(quote)?;
            let after = after.trim_start();
            let whole = after.is_empty() || after.starts_with('#');
            return (whole && !value.contains('\\')).then(|| value.to_owned());
        }
    }
    let text = text.split_once(" #").map_or(text, |(text, _)| text).trim_end();
    // Block scalars, nested lists and maps, anchors, aliases, tags, directives.
    let special = text
        .starts_with(['|', '>', '-', '[', '{', '&', '*', '!', '%', '@', '`', '?', ',', ']', '}'])
        || text.contains(": ")
        || text.ends_with(':')
        || text.is_empty();
    (!special && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(value: &str) -> FrontValue {
        FrontValue::One(value.to_owned())
    }

    fn many(values: &[&str]) -> FrontValue {
        FrontValue::Many(values.iter().map(|&v| v.to_owned()).collect())
    }

    #[test]
    fn a_card_as_the_hub_has_them() {
        let readme = "---\r\nlanguage: en\r\nlicense: apache-2.0  # as the base\r\nlibrary_name: 'sentence-transformers'\n\
                      tags:\n- sentence-transformers\n  - \"feature extraction\"\n\n# a comment\n- transformers\n\
                      datasets:\n- s2orc\npipeline_tag: sentence-similarity\nmodel-index:\n- name: x\n  results:\n\
                      \x20 - task: {}\n---\n# all-MiniLM\nlicense: mit\n";
        let FrontMatter(entries) = parse_front_matter(readme);
        assert_eq!(
            entries.into_iter().collect::<Vec<_>>(),
            [
                ("language".to_owned(), one("en")),
                ("library_name".to_owned(), one("sentence-transformers")),
                ("license".to_owned(), one("apache-2.0")),
                ("pipeline_tag".to_owned(), one("sentence-similarity")),
                ("tags".to_owned(), many(&["sentence-transformers", "feature extraction", "transformers"])),
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        for (front, expected) in [
            ("license: mit", vec![("license", one("mit"))]),
            ("language: [en, \"de\",]", vec![("language", many(&["en", "de"]))]),
            ("language: []", vec![]),
            ("tags:", vec![]),
            ("tags:\n- a: b\n- c", vec![]),
            ("tags:\n- a\n  nested", vec![]),
            ("license: |\n  mit", vec![]),
            ("license: \"a\\n\"", vec![]),
            ("license: \"open", vec![]),
            ("author: me\n- x", vec![]),
            (
                "license: other\nlicense_name: gemma",
                vec![("license", one("other")), ("license_name", one("gemma"))],
            ),
        ] {
            let expected: BTreeMap<_, _> = expected.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            assert_eq!(parse_front_matter(&format!("---\n{front}\n---\n")).0, expected, "{front}");
        }
        for none in ["", "# title", "---", "---\nlicense: mit\n", "text\n---\nlicense: mit\n---\n"] {
            assert_eq!(parse_front_matter(none), FrontMatter::default(), "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(---\n)?([a-z:\\-\\[\\]\"' #,|\n]|tags:|language:|- )*(\n---\n)?") {
            for (key, value) in parse_front_matter(&text).0 {
                prop_assert!(KEPT.contains(&key.as_str()));
                prop_assert!(!value.values().is_empty());
            }
        }
    }
}
