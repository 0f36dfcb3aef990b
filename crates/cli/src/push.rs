//! `zeropoint push`: a quantised model to the Hugging Face hub.

use serde_json::json;
use zeropoint_pipeline::{Cancel, PipelineError, PushRequest, plan_push, push as push_planned};

use crate::args::PushArgs;
use crate::commands::print_json;
use crate::terminal::Terminal;
use crate::{Outcome, render};

pub(crate) fn push(
    args: &PushArgs,
    offline: bool,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let plan = plan_push(
        &args.dir,
        &PushRequest {
            target: args.target.clone(),
            revision: args.revision.clone(),
            public: args.public,
            message: args.message.clone(),
        },
    )?;
    for warning in &plan.warnings {
        terminal.warn(warning);
    }
    if args.dry_run {
        if args.json {
            print_json(&json!(plan), terminal)?;
        } else {
            terminal.print(&render::push(&plan))?;
        }
        return Ok(Outcome::Done);
    }
    terminal.say(render::push(&plan).trim_end());
    let outcome = push_planned(&plan, offline, terminal, cancel)?;
    if args.json {
        print_json(&json!(outcome), terminal)?;
    }
    let commit = outcome.commit.map_or(String::new(), |commit| format!(" (commit {commit})"));
    terminal.say(&format!("Pushed to {}{commit}", outcome.url));
    Ok(Outcome::Done)
}
