//! `--set key=value`: one change on top of the file, before anything is typed.

use super::error::{Problem, quoted};
use super::tree::{Entry, Node, Place, Value};

/// No key of a config lies deeper.
const DEEPEST: usize = 16;

/// Applies argument number `index`. The value is TOML where it parses as TOML, else it is taken as a string, so that
/// `--set model.source=models/minilm` needs no quotes. Tables and lists on the way are made when they are missing;
/// the index one past the end of a list appends to it.
pub(super) fn apply(root: &mut Node, index: usize, argument: &str) -> Result<(), Problem> {
    let place = Place::Set(index);
    let usage = "write `--set key=value`, for example `--set calibration.samples=64`";
    let Some((path, value)) = argument.split_once('=') else {
        return Err(Problem::new("", "there is no `=` in this `--set`").hint(usage));
    };
    let segments: Vec<&str> = path.split('.').map(str::trim).collect();
    if segments.iter().any(|segment| segment.is_empty()) || segments.len() > DEEPEST {
        return Err(Problem::new("", format!("{} is not a key", quoted(path))).hint(usage));
    }
    let value = value.trim();
    let new = match Node::parse_value(value, &place) {
        Some(node) => node,
        None if value.starts_with(['[', '{', '"', '\'']) => {
            let message = format!("the value of {} is not valid TOML", quoted(path));
            return Err(Problem::new("", message).hint("a plain string needs no quotes here"));
        }
        None => Node { value: Value::String(value.to_owned()), place: place.clone() },
    };

    let mut node = root;
    for (depth, segment) in segments.iter().enumerate() {
        let walked = segments[..depth].join(".");
        let next_is_index = segments.get(depth + 1).is_some_and(|next| next.parse::<usize>().is_ok());
        let missing = || Node {
            value: if next_is_index { Value::List(Vec::new()) } else { Value::Table(Vec::new()) },
            place: place.clone(),
        };
        node = match &mut node.value {
            Value::Table(entries) => {
                let at = entries.iter().position(|entry| entry.key == *segment).unwrap_or_else(|| {
                    entries.push(Entry { key: (*segment).to_owned(), place: place.clone(), node: missing() });
                    entries.len() - 1
                });
                &mut entries[at].node
            }
            Value::List(nodes) => {
                let length = nodes.len();
                let Some(at) = segment.parse::<usize>().ok().filter(|at| *at <= length) else {
                    let message = format!("{} has no entry {}", quoted(&walked), quoted(segment));
                    return Err(Problem::new(walked, message).hint(match length {
                        0 => "the list is empty: 0 adds an entry".to_owned(),
                        _ => format!("its entries are 0 to {}; {length} adds one", length - 1),
                    }));
                };
                if at == length {
                    nodes.push(missing());
                }
                &mut nodes[at]
            }
            scalar => {
                let message = format!(
                    "{} is {}, so it has no key {}",
                    quoted(&walked),
                    scalar.in_words(),
                    quoted(segment)
                );
                return Err(Problem::new(walked, message));
            }
        };
    }
    *node = new;
    Ok(())
}
