//! Texts that a decoder continues.

use zeropoint_models::{KvCache, Model, ModelError};

use crate::sampling::Sampler;

/// Most tokens of a prompt that go through the model together.
const PREFILL: usize = 512;

/// Why a continuation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model has given a token that ends a text.
    StopToken,
    /// There are as many new tokens as were asked for.
    MaxTokens,
    /// The model reads no more tokens.
    ContextFull,
    /// The caller wants no more.
    Caller,
}

/// Continues the tokens of `cache` and then `prompt`, by at most `max_tokens`; each new token is handed to `each`, which returns
/// whether it wants more. Tokens in `stop` end the text and are not handed over.
///
/// `cache` holds the prompt and the new tokens afterwards, apart from the last, and can be continued.
///
/// # Errors
///
/// A model that is no decoder, an empty prompt or one longer than the model reads, logits that are not finite.
pub fn generate<E: From<ModelError>>(
    model: &Model,
    prompt: &[u32],
    cache: &mut KvCache,
    sampler: &mut Sampler,
    (stop, max_tokens): (&[u32], usize),
    each: &mut dyn FnMut(u32) -> Result<bool, E>,
) -> Result<Ending, E> {
    let sample = |reason| E::from(ModelError::Sample { reason });
    let room = cache.max_tokens() - cache.len();
    if prompt.is_empty() || prompt.len() > room {
        let count = prompt.len();
        return Err(sample(format!("the prompt has {count} tokens; 1 to {room} are allowed")));
    }
    let mut logits = Vec::new();
    for part in prompt.chunks(PREFILL) {
        logits = model.extend(part, cache, 1)?.values;
    }
    for produced in 0.. {
        if produced == max_tokens {
            return Ok(Ending::MaxTokens);
        }
        let token = sampler.choose(&logits).map_err(|error| sample(error.to_string()))?;
        if stop.contains(&token) {
            return Ok(Ending::StopToken);
        }
        if !each(token)? {
            return Ok(Ending::Caller);
        }
        if cache.len() == cache.max_tokens() {
            return Ok(Ending::ContextFull);
        }
        if produced + 1 < max_tokens {
            logits = model.extend(&[token], cache, 1)?.values;
        }
    }
    Ok(Ending::MaxTokens)
}
