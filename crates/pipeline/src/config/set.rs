//! `--set key=value`: one change on top of the file, before anything is typed.

use super::error::{Problem, quoted};
use super::tree::{Entry, Node, Place, Value};

/// No key of a config lies deeper.
const DEEPEST: usize = 16;

const USAGE: &str = "write `--set key=value`, for example `--set calibration.samples=64`";

/// Applies argument number `index`. The value is TOML where it parses as TOML, else it is taken as a string, so that
/// `--set model.source=models/minilm` needs no quotes.
pub(super) fn apply(root: &mut Node, index: usize, argument: &str) -> Result<(), (Place, Problem)> {
    let Some((path, value)) = argument.split_once('=') else {
        let problem = Problem::new("", "there is no `=` in this `--set`").label("a key, but no value");
        return Err((Place::Argument(index, 0..argument.len()), problem.hint(USAGE)));
    };
    let key = Place::Argument(index, 0..path.trim_end().len());
    let segments: Vec<&str> = path.split('.').map(str::trim).collect();
    if segments.iter().any(|segment| segment.is_empty()) || segments.len() > DEEPEST {
        let problem = Problem::new("", format!("{} is not a key", quoted(path))).label("not a key");
        return Err((key, problem.hint(USAGE)));
    }
    let offset = path.len() + 1 + (value.len() - value.trim_start().len());
    let node = Node::parse_value(value.trim(), index, offset).map_err(|(place, mut problem)| {
        if let Some(rest) = problem.message.strip_prefix("this is ") {
            problem.message = format!("the value of {} is {rest}", quoted(path.trim()));
        }
        problem.path = segments.join(".");
        (place, problem)
    })?;
    put(root, &segments, node, &key).map_err(|problem| (key.clone(), problem))
}

/// Puts `new` where `segments` lead. Tables and lists on the way are made when they are missing, and are then placed at
/// `key`; the index one past the end of a list appends to it.
pub(super) fn put(root: &mut Node, segments: &[&str], new: Node, key: &Place) -> Result<(), Problem> {
    let mut node = root;
    for (depth, segment) in segments.iter().enumerate() {
        let walked = segments[..depth].join(".");
        let next_is_index = segments.get(depth + 1).is_some_and(|next| next.parse::<usize>().is_ok());
        let missing = || Node {
            value: if next_is_index { Value::List(Vec::new()) } else { Value::Table(Vec::new()) },
            place: key.clone(),
        };
        node = match &mut node.value {
            Value::Table(entries) => {
                let at = entries.iter().position(|entry| entry.key == *segment).unwrap_or_else(|| {
                    entries.push(Entry { key: (*segment).to_owned(), place: key.clone(), node: missing() });
                    entries.len() - 1
                });
                &mut entries[at].node
            }
            Value::List(nodes) => {
                let length = nodes.len();
                let Some(at) = segment.parse::<usize>().ok().filter(|at| *at <= length) else {
                    let message = format!("{} has no entry {}", quoted(&walked), quoted(segment));
                    let problem = Problem::new(walked, message).label("no such entry");
                    return Err(problem.hint(match length {
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
                let hint = format!("set {} as a whole", quoted(&walked));
                return Err(Problem::new(walked, message).label("no such key").hint(hint));
            }
        };
    }
    *node = new;
    Ok(())
}
