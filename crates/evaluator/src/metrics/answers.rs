//! Answers to questions against those that people gave, as SQuAD's evaluation script counts them.
//!
//! Source: P. Rajpurkar, R. Jia, P. Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", 2018, and its
//! `evaluate-v2.0.py`, which for questions that have an answer equals version 1.1.

/// An answer as it is compared: in lower case, without ASCII punctuation and the articles a, an and the, its words joined
/// by single spaces.
pub fn normalize_answer(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let plain: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    without_articles(&plain).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The script's `re.sub(r'\b(a|an|the)\b', ' ', text)`: an article is a run of word characters of its own.
fn without_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = is_word(first);
        let end = rest.find(|c| is_word(c) != in_word).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        out.push_str(if in_word && matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = tail;
    }
    out
}

/// 1 when the answer equals one of the gold answers after [normalisation](normalize_answer), else 0. Without gold answers
/// the right answer is the empty one.
pub fn exact_match(answer: &str, gold: &[String]) -> f64 {
    best(answer, gold, |answer, gold| if answer == gold { 1.0 } else { 0.0 })
}

/// F1 of the words of the answer against those of the gold answer that it fits best, after
/// [normalisation](normalize_answer). Against no answer only none is right.
pub fn answer_f1(answer: &str, gold: &[String]) -> f64 {
    best(answer, gold, |answer, gold| {
        let words = |text: &'_ str| {
            let mut words: Vec<String> =
                text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
            words.sort_unstable();
            words
        };
        let (answer, gold) = (words(answer), words(gold));
        if answer.is_empty() || gold.is_empty() {
            return if answer == gold { 1.0 } else { 0.0 };
        }
        2.0 * common(&answer, &gold) as f64 / (answer.len() + gold.len()) as f64
    })
}

/// The largest score against a gold answer; those that normalise to nothing do not count.
fn best(answer: &str, gold: &[String], score: impl Fn(&str, &str) -> f64) -> f64 {
    let answer = normalize_answer(answer);
    let gold: Vec<String> = gold.iter().map(|g| normalize_answer(g)).filter(|g| !g.is_empty()).collect();
    if gold.is_empty() {
        return score(&answer, "");
    }
    gold.iter().map(|gold| score(&answer, gold)).fold(0.0, f64::max)
}

/// How many words two sorted lists share, with repetitions.
fn common(a: &[String], b: &[String]) -> usize {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                shared += 1;
                i += 1;
                j += 1;
            }
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gold(answers: &[&str]) -> Vec<String> {
        answers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn known_values() {
        struct Case(&'static str, &'static [&'static str], f64, f64);
        // By hand: the largest over the gold answers that do not normalise to nothing.
        for Case(answer, answers, exact, f1) in [
            Case("The  Eiffel Tower!", &["eiffel tower"], 1.0, 1.0),
            Case("the tower", &["Eiffel Tower", "a bridge"], 0.0, 2.0 / 3.0),
            Case("an a the", &[], 1.0, 1.0),
            Case("", &["x"], 0.0, 0.0),
            Case("x", &[], 0.0, 0.0),
            Case("x", &["the"], 0.0, 0.0),
            Case("it's 1,000", &["its 1000"], 1.0, 1.0),
            Case("b b c", &["b c c"], 0.0, 2.0 / 3.0),
            Case("thé", &["the"], 0.0, 0.0),
        ] {
            assert_eq!(exact_match(answer, &gold(answers)), exact, "{answer:?} {answers:?}");
            assert!((answer_f1(answer, &gold(answers)) - f1).abs() < 1e-12, "{answer:?} {answers:?}");
        }
        assert_eq!(normalize_answer("A-Team's the_best, then an end"), "ateams thebest then end");
    }

    proptest! {
        #[test]
        fn f1_is_that_of_the_bags_of_words(a in "[b-e]( [b-e]){0,6}", b in "[b-e]( [b-e]){0,6}") {
            // Brute force: strike out each word of one list that is still in the other.
            let mut left: Vec<&str> = b.split(' ').collect();
            let shared = a.split(' ').filter(|word| {
                let at = left.iter().position(|other| other == word);
                at.map(|at| left.swap_remove(at)).is_some()
            });
            let shared = shared.count() as f64;
            let (precision, recall) = (shared / a.split(' ').count() as f64, shared / b.split(' ').count() as f64);
            let expected = if shared == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
            prop_assert!((answer_f1(&a, std::slice::from_ref(&b)) - expected).abs() < 1e-12);
            prop_assert_eq!(answer_f1(&a, std::slice::from_ref(&a)), 1.0);
        }
    }
}
