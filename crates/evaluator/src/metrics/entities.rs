//! Entities in a sequence of tags, and their F1, as the `conlleval` script of the CoNLL shared tasks counts them.
//!
//! A tag is `O`, or a position and a type, `B-PER`: B(egin), I(nside), E(nd) and S(ingle), or L for E and U for S. The rules
//! below are the script's, which makes the most of broken sequences: an `I-PER` after `O` or after another type begins an
//! entity. On IOB2 and IOBES sequences that are whole they agree with the plain reading.
//!
//! Source: E. F. Tjong Kim Sang, F. De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003, and its `conlleval`.

/// A tag, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag<'a> {
    Outside,
    Entity(Position, &'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Begin,
    Inside,
    End,
    Single,
}

impl<'a> Tag<'a> {
    fn parse(tag: &'a str) -> Option<Self> {
        if tag == "O" {
            return Some(Self::Outside);
        }
        let (position, kind) = tag.split_once('-')?;
        let position = match position {
            "B" => Position::Begin,
            "I" | "M" => Position::Inside,
            "E" | "L" => Position::End,
            "S" | "U" => Position::Single,
            _ => return None,
        };
        Some(Self::Entity(position, kind))
    }
}

/// An entity: its words and its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entity<'a> {
    /// Its first word.
    pub start: usize,
    /// The word behind its last.
    pub end: usize,
    /// Its type.
    pub kind: &'a str,
}

/// Whether every one of these tags is `O` or a position and a type, and one is of an entity.
pub fn are_entity_tags<S: AsRef<str>>(tags: &[S]) -> bool {
    let parsed: Option<Vec<Tag<'_>>> = tags.iter().map(|tag| Tag::parse(tag.as_ref())).collect();
    parsed.is_some_and(|tags| tags.iter().any(|tag| *tag != Tag::Outside))
}

/// The entities of a sequence of tags, in order. What is no tag counts as `O`.
pub fn entities<'a>(tags: &[&'a str]) -> Vec<Entity<'a>> {
    let mut found: Vec<Entity<'a>> = Vec::new();
    let mut previous = Tag::Outside;
    let mut open: Option<Entity<'a>> = None;
    for (at, tag) in tags.iter().enumerate() {
        let tag = Tag::parse(tag).unwrap_or(Tag::Outside);
        if ends_between(previous, tag) {
            found.extend(open.take());
        }
        if let Tag::Entity(_, kind) = tag {
            match &mut open {
                Some(entity) => entity.end = at + 1,
                None => open = Some(Entity { start: at, end: at + 1, kind }),
            }
        }
        previous = tag;
    }
    found.extend(open);
    found
}

/// Whether an entity that `previous` is part of is over before `next`.
fn ends_between(previous: Tag<'_>, next: Tag<'_>) -> bool {
    match (previous, next) {
        (Tag::Outside, _) => false,
        (_, Tag::Outside) => true,
        (Tag::Entity(before, kind), Tag::Entity(after, other)) => {
            kind != other
                || matches!(before, Position::End | Position::Single)
                || matches!(after, Position::Begin | Position::Single)
        }
    }
}

/// Entities counted: those predicted, those of the gold tags, and those that are both, with the same words and type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// Predicted.
    pub predicted: usize,
    /// In the gold tags.
    pub gold: usize,
    /// In both.
    pub right: usize,
}

/// Counts the entities of one sentence.
pub fn count_entities(predicted: &[&str], gold: &[&str]) -> EntityCounts {
    let (predicted, gold) = (entities(predicted), entities(gold));
    let right = predicted.iter().filter(|entity| gold.contains(entity)).count();
    EntityCounts { predicted: predicted.len(), gold: gold.len(), right }
}

/// The harmonic mean of precision and recall, `2 right / (predicted + gold)`; `None` when there are no entities on
/// either side.
pub fn entity_f1(counts: EntityCounts) -> Option<f64> {
    let all = counts.predicted + counts.gold;
    (all > 0).then(|| 2.0 * counts.right as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans(tags: &str) -> Vec<(usize, usize, &str)> {
        let tags: Vec<&str> = tags.split(' ').collect();
        entities(&tags).into_iter().map(|e| (e.start, e.end, e.kind)).collect()
    }

    #[test]
    fn spans_are_those_of_conlleval() {
        type Spans = &'static [(usize, usize, &'static str)];
        // Worked out by hand from the rules of the script for where a chunk starts and ends.
        let cases: [(&str, Spans); 10] = [
            ("B-PER I-PER O B-LOC", &[(0, 2, "PER"), (3, 4, "LOC")]),
            ("B-PER B-PER", &[(0, 1, "PER"), (1, 2, "PER")]),
            ("O I-PER I-PER", &[(1, 3, "PER")]),
            ("B-PER I-LOC", &[(0, 1, "PER"), (1, 2, "LOC")]),
            ("S-PER B-LOC I-LOC E-LOC", &[(0, 1, "PER"), (1, 4, "LOC")]),
            ("B-LOC E-LOC I-LOC", &[(0, 2, "LOC"), (2, 3, "LOC")]),
            ("U-PER B-LOC L-LOC", &[(0, 1, "PER"), (1, 3, "LOC")]),
            ("E-PER E-PER", &[(0, 1, "PER"), (1, 2, "PER")]),
            ("O O", &[]),
            ("B-A-B I-A-B", &[(0, 2, "A-B")]),
        ];
        for (tags, expected) in cases {
            assert_eq!(spans(tags), expected, "{tags}");
        }
    }

    #[test]
    fn f1_is_over_whole_entities() {
        let counts = count_entities(&["B-PER", "O", "B-LOC"], &["B-PER", "I-PER", "B-LOC"]);
        assert_eq!(counts, EntityCounts { predicted: 2, gold: 2, right: 1 });
        assert_eq!(entity_f1(counts), Some(0.5));
        assert_eq!(entity_f1(EntityCounts::default()), None);
        assert!(are_entity_tags(&["O", "B-PER", "I-PER"]));
        assert!(!are_entity_tags(&["NOUN", "VERB"]));
        assert!(!are_entity_tags(&["O"]));
    }

    proptest! {
        /// Entities written as IOB2 or IOBES are found again.
        #[test]
        fn whole_sequences_are_read_back(
            parts in prop::collection::vec((0usize..3, 1usize..4, 0usize..2), 0..12), iobes in any::<bool>(),
        ) {
            let kinds = ["PER", "LOC"];
            let (mut tags, mut expected) = (Vec::new(), Vec::new());
            for (gap, length, kind) in parts {
                tags.extend(std::iter::repeat_n("O".to_owned(), gap));
                let start = tags.len();
                for i in 0..length {
                    let position = match (i, iobes) {
                        (0, true) if length == 1 => 'S',
                        (0, _) => 'B',
                        (i, true) if i + 1 == length => 'E',
                        _ => 'I',
                    };
                    tags.push(format!("{position}-{}", kinds[kind]));
                }
                expected.push(Entity { start, end: start + length, kind: kinds[kind] });
            }
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            prop_assert_eq!(entities(&tags), expected.clone());
            let counts = count_entities(&tags, &tags);
            prop_assert_eq!(counts, EntityCounts { predicted: expected.len(), gold: expected.len(), right: expected.len() });
        }
    }
}
