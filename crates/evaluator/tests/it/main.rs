//! The integration tests, in one program: each file alone would link the whole crate again.

mod compare;
mod fidelity;
mod made_up;
mod masked_lm;
mod next_tokens;
mod report;
mod report_html;
