//! The files that are made from the code and kept in the repository: written by `generate`, compared by `check`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use zeropoint_pipeline::config::Config;

use crate::Error;

/// A file of the repository that nobody writes by hand.
struct Generated {
    /// Relative to the root.
    path: &'static str,
    content: fn(&Path) -> Result<String, Error>,
}

const FILES: [Generated; 2] = [
    Generated { path: "schema/zeropoint-config.schema.json", content: schema },
    Generated { path: "docs/cli.md", content: cli_reference },
];

/// The commands of the program in the order of its help.
const COMMANDS: [&str; 16] = [
    "run",
    "sweep",
    "auto",
    "calibrate",
    "statistics",
    "quantize",
    "evaluate",
    "encode",
    "generate",
    "embed",
    "bench",
    "compare",
    "inspect",
    "init",
    "push",
    "schema",
];

/// Writes every generated file.
pub(crate) fn generate(root: &Path) -> Result<(), Error> {
    for file in &FILES {
        let path = root.join(file.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, (file.content)(root)?)?;
        println!("wrote {}", file.path);
    }
    Ok(())
}

/// A sentence for each generated file that is not what the code says now.
pub(crate) fn drift(root: &Path) -> Result<Vec<String>, Error> {
    let mut problems = Vec::new();
    for file in &FILES {
        let expected = (file.content)(root)?;
        let found = match std::fs::read_to_string(root.join(file.path)) {
            Ok(found) => found,
            Err(error) => {
                problems.push(format!("{}: {error}; run `cargo xtask generate`", file.path));
                continue;
            }
        };
        if let Some(line) = first_difference(&expected, &found) {
            problems.push(format!(
                "{}:{line}: is not what the code says now; run `cargo xtask generate` and commit the result",
                file.path
            ));
        }
    }
    Ok(problems)
}

/// The first line, from 1, in which two texts differ.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    let (mut a_lines, mut b_lines) = (a.split('\n'), b.split('\n'));
    (1..).find_map(|line| match (a_lines.next(), b_lines.next()) {
        (None, None) => Some(None),
        (x, y) => (x != y).then_some(Some(line)),
    })?
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of every content of FILES")]
fn schema(_root: &Path) -> Result<String, Error> {
    Ok(format!("{:#}\n", Config::json_schema()))
}

fn cli_reference(root: &Path) -> Result<String, Error> {
    let mut page = String::from(
        "# The command line\n\n\
         The help of every command, as the program prints it. This file is generated: `cargo xtask generate`.\n",
    );
    let top = help(root, &[])?;
    check_commands(&top)?;
    section(&mut page, "zeropoint", &top);
    for command in COMMANDS {
        let text = help(root, &[command])?;
        section(&mut page, &format!("zeropoint {command}"), &text);
        for part in listed(&text) {
            section(&mut page, &format!("zeropoint {command} {part}"), &help(root, &[command, part])?);
        }
    }
    Ok(page)
}

fn section(page: &mut String, title: &str, help: &str) {
    let _ = write!(page, "\n## {title}\n\n```text\n");
    for line in help.trim_end().lines() {
        page.push_str(line.trim_end());
        page.push('\n');
    }
    page.push_str("```\n");
}

/// Runs the program of this workspace, or the one that `ZEROPOINT` names, with `--help`. No stream is a terminal and
/// COLUMNS is not passed on, so the program falls back to its own fixed width.
fn help(root: &Path, command: &[&str]) -> Result<String, Error> {
    let built = std::env::var_os("ZEROPOINT").filter(|path| !path.is_empty());
    let mut program = if let Some(built) = built {
        Command::new(built)
    } else {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["run", "--quiet", "--package", "zeropoint-cli", "--"]);
        cargo
    };
    let output = program
        .args(command)
        .arg("--help")
        .current_dir(root)
        .env_remove("COLUMNS")
        .env_remove("CLICOLOR_FORCE")
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let called = command.join(" ");
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`zeropoint {called} --help` failed: {}", told.trim_end()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The commands that a help page lists must be [`COMMANDS`].
fn check_commands(help: &str) -> Result<(), Error> {
    let listed = listed(help);
    if listed == COMMANDS {
        return Ok(());
    }
    Err(format!(
        "the program has the commands {}, but COMMANDS in crates/xtask/src/generated.rs names {}",
        listed.join(", "),
        COMMANDS.join(", ")
    )
    .into())
}

/// The commands that a help page lists, `help` itself apart.
fn listed(help: &str) -> Vec<&str> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // Continued descriptions are indented further.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_in_their_line() {
        let cases = [
            ("a\nb\n", "a\nb\n", None),
            ("a\nb\n", "a\nc\n", Some(2)),
            ("a\nb\n", "a\nb", Some(3)),
            ("a\n", "a\nb\n", Some(2)),
            ("a\nb\n", "", Some(1)),
        ];
        for (expected, found, line) in cases {
            assert_eq!(first_difference(expected, found), line, "{expected:?} {found:?}");
        }
    }

    #[test]
    fn the_page_must_list_every_command() {
        let entry =
            |command: &str| format!("  {command}  Does something long,\n         told in two lines\n");
        let page = |commands: &[&str]| {
            let entries: String = commands.iter().map(|command| entry(command)).collect();
            format!("About\n\nCommands:\n{entries}  help  Print this\n\nOptions:\n  -h, --help\n")
        };
        assert!(check_commands(&page(&COMMANDS)).is_ok());
        let error = check_commands(&page(&COMMANDS[..7])).unwrap_err().to_string();
        assert!(error.contains("generated.rs"), "{error}");
    }
}
