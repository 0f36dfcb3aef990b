//! Where the keys of a config were written: the sources it was put together from, and the tree with their places.

use std::sync::Arc;

use super::error::{ConfigError, Problem};
use super::excerpt::{Excerpt, Mark, Source};
use super::tree::{Node, Place, Value};

/// Nothing for a config that a program made. Where a config was written is no part of what it says: all are equal.
#[derive(Debug, Clone, Default)]
pub(super) struct Written(Option<Arc<Sources>>);

impl PartialEq for Written {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The config's text, the arguments on top of it, and what they say together.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    origin: Arc<str>,
    text: Arc<str>,
    arguments: Vec<(&'static str, Arc<str>)>,
    pub(super) tree: Node,
}

impl Sources {
    /// Parses `text` and applies `sets` in their order.
    pub(super) fn new(text: &str, origin: &str, sets: &[String]) -> Result<Self, ConfigError> {
        let mut sources = Self {
            origin: origin.into(),
            text: text.into(),
            arguments: sets.iter().map(|set| ("--set", set.as_str().into())).collect(),
            tree: Node { value: Value::Table(Vec::new()), place: Place::Document },
        };
        let mut tree = Node::parse(text).map_err(|mistake| sources.error(mistake))?;
        for (index, argument) in sets.iter().enumerate() {
            super::set::apply(&mut tree, index, argument).map_err(|mistake| sources.error(mistake))?;
        }
        sources.tree = tree;
        Ok(sources)
    }

    /// The text, what it is called, and every `--set` on top of it.
    pub(super) fn as_given(&self) -> (String, String, Vec<String>) {
        let sets = self.arguments.iter().filter(|(option, _)| *option == "--set");
        let sets = sets.map(|(_, set)| set.to_string()).collect();
        (self.text.to_string(), self.origin.to_string(), sets)
    }

    /// The value of an option of its own, in place of `--set path=value`.
    pub(super) fn put(&mut self, option: &'static str, path: &str, value: &str) -> Result<(), Problem> {
        let place = Place::Argument(self.arguments.len(), 0..value.len());
        self.arguments.push((option, value.into()));
        let node = Node { value: Value::String(value.to_owned()), place: place.clone() };
        super::set::put(&mut self.tree, &path.split('.').collect::<Vec<_>>(), node, &place)
    }

    /// The error of a problem that has found its place.
    pub(super) fn error(&self, (place, problem): (Place, Problem)) -> ConfigError {
        let related = problem.related.iter().filter_map(|(path, label)| {
            Some((self.tree.exact_place_of(path)?, label.clone())).filter(|(other, _)| *other != place)
        });
        let excerpt = self.excerpt(&place, &problem.label, related);
        ConfigError::new(self.origin.as_ref(), excerpt, problem)
    }

    /// The error of a problem that only knows its key.
    pub(super) fn error_at_key(&self, problem: Problem) -> ConfigError {
        self.error((self.tree.place_of(&problem.path), problem))
    }

    /// Marks `place`, and of `others` those in the same source.
    fn excerpt(
        &self,
        place: &Place,
        label: &str,
        others: impl IntoIterator<Item = (Place, String)>,
    ) -> Option<Excerpt> {
        let (source, span) = self.find(place)?;
        let others = others.into_iter().filter_map(|(place, label)| {
            let (other, span) = self.find(&place)?;
            (other == source).then_some(Mark { span, label })
        });
        let others: Vec<Mark> = others.collect();
        Some(Excerpt::new(source, Mark { span, label: label.to_owned() }, others))
    }

    fn find(&self, place: &Place) -> Option<(Source, std::ops::Range<usize>)> {
        match place {
            Place::Document => None,
            Place::Text(span) => {
                let source = Source::File { origin: Arc::clone(&self.origin), text: Arc::clone(&self.text) };
                Some((source, span.clone()))
            }
            Place::Argument(index, span) => {
                let (option, text) = self.arguments.get(*index)?;
                Some((Source::Argument { option, text: Arc::clone(text) }, span.clone()))
            }
        }
    }
}

impl Written {
    pub(super) fn sources(&self) -> Option<&Sources> {
        self.0.as_deref()
    }

    /// The place of a key that is written, with `label` to stand there.
    pub(super) fn excerpt(&self, path: &str, label: &str) -> Option<Excerpt> {
        let sources = self.sources()?;
        sources.excerpt(&sources.tree.exact_place_of(path)?, label, [])
    }
}

impl From<Sources> for Written {
    fn from(sources: Sources) -> Self {
        Self(Some(Arc::new(sources)))
    }
}
