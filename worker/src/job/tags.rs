//! Smart tags: comments by which a source says what its functions and its data are for.
//!
//! ```text
//! # modelop.score                    above a function: what it is for
//! # modelop.action: my_score         the same by name, as FastScore's models write it
//! # modelop.schema.0: input.avsc     about a slot: its schema, data frames instead of records, used or not
//! # fastscore.recordsets.$in: true
//! ```
//!
//! A slot is a number (inputs are even, outputs odd), a name, `$all`, `$in` or `$out`. What is no tag is prose, and says
//! nothing; what nearly is one is told.
//!
//! This module must not know Python: it is given comments.

use strsim::osa_distance;

/// What the tags begin with.
const PREFIXES: [&str; 2] = ["modelop", "fastscore"];
/// The words that stand above a function.
const ABOVE: [&str; 6] = ["init", "score", "action", "metrics", "train", "training"];
/// How many letters may be wrong in what is taken for a misspelling.
const SLIPS: usize = 2;

/// What a tag about a slot says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// The file that holds its schema.
    Schema,
    /// Whether the function gets data frames instead of records.
    Recordsets,
    /// Whether it is used.
    Slot,
}

impl Aspect {
    /// Every aspect.
    pub const ALL: [Self; 3] = [Self::Schema, Self::Recordsets, Self::Slot];

    /// The word for it in a tag.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Recordsets => "recordsets",
            Self::Slot => "slot",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Schema => "modelop.schema.0: input.avsc",
            Self::Recordsets => "modelop.recordsets.0: true",
            Self::Slot => "modelop.slot.1: in-use",
        }
    }
}

/// A comment's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag<'a> {
    /// Says what the function below it is for.
    Above(&'a str),
    /// Names the scoring function.
    Action(&'a str),
    /// Says something of a slot.
    OfSlot {
        /// What it is about.
        aspect: Aspect,
        /// The slot, as written.
        slot: &'a str,
        /// What is said.
        value: &'a str,
    },
    /// Says nothing, but looks as if it was meant to; what was probably meant.
    Misspelt(&'static str),
}

impl<'a> Tag<'a> {
    /// The tag that a comment is, with its `#`; `None` for prose.
    #[must_use]
    pub fn of(comment: &'a str) -> Option<Self> {
        let said = comment.trim_start_matches('#').trim();
        let (prefix, rest) = said.split_once('.')?;
        if !PREFIXES.contains(&prefix) {
            return misspelt_prefix(prefix, rest);
        }
        let (head, value) = match rest.split_once(':') {
            Some((head, value)) => (head.trim_end(), Some(value.trim()).filter(|value| !value.is_empty())),
            None => (rest, None),
        };
        let (word, slot) = match head.split_once('.') {
            Some((word, slot)) => (word, Some(slot).filter(|slot| !slot.is_empty())),
            None => (head, None),
        };
        // A sentence about a tag is none.
        if head.contains(char::is_whitespace) {
            return None;
        }
        let aspect = Aspect::ALL.into_iter().find(|aspect| aspect.word() == word);
        match (aspect, slot, value) {
            (Some(aspect), Some(slot), Some(value)) => Some(Self::OfSlot { aspect, slot, value }),
            (Some(aspect), ..) => Some(Self::Misspelt(aspect.example())),
            (None, None, None) if !rest.contains(':') && is_word(word) => match nearest(word) {
                Some(known) if known != word => Some(Self::Misspelt(known)),
                _ => Some(Self::Above(word)),
            },
            (None, None, Some("unused")) if word == "action" => None,
            (None, None, Some(name)) if word == "action" && is_word(name) => Some(Self::Action(name)),
            _ => nearest(word).map(Self::Misspelt),
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// The known word that this is, or is nearly.
fn nearest(word: &str) -> Option<&'static str> {
    let lower = word.to_ascii_lowercase();
    let known = ABOVE.into_iter().chain(Aspect::ALL.map(Aspect::word));
    let nearest = known.map(|known| (osa_distance(known, &lower), known)).min_by_key(|(slips, _)| *slips);
    // Half of a short word is another word.
    nearest.filter(|(slips, known)| *slips <= SLIPS && slips * 2 < known.len()).map(|(_, known)| known)
}

fn misspelt_prefix<'a>(prefix: &str, rest: &str) -> Option<Tag<'a>> {
    let lower = prefix.to_ascii_lowercase();
    let is_near = PREFIXES.iter().any(|known| osa_distance(known, &lower) <= SLIPS);
    let word = rest.split(['.', ':']).next().unwrap_or_default();
    let is_known = ABOVE.into_iter().chain(Aspect::ALL.map(Aspect::word)).find(|known| *known == word);
    is_known.filter(|_| is_near).map(Tag::Misspelt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_a_tag_in_either_language_with_or_without_a_space() {
        for comment in ["# modelop.score", "#fastscore.score", "##  modelop.score  "] {
            assert_eq!(Tag::of(comment), Some(Tag::Above("score")), "{comment}");
        }
        let schema = Tag::OfSlot { aspect: Aspect::Schema, slot: "0", value: "input.avsc" };
        assert_eq!(Tag::of("# modelop.schema.0: input.avsc"), Some(schema));
        assert_eq!(Tag::of("#fastscore.schema.0 :input.avsc"), Some(schema));
        let named = Tag::OfSlot { aspect: Aspect::Slot, slot: "test.csv", value: "unused" };
        assert_eq!(Tag::of("# modelop.slot.test.csv: unused"), Some(named));
        let all = Tag::OfSlot { aspect: Aspect::Recordsets, slot: "$all", value: "yes" };
        assert_eq!(Tag::of("# fastscore.recordsets.$all: yes"), Some(all));
        assert_eq!(Tag::of("# fastscore.action: run_it"), Some(Tag::Action("run_it")));
        assert_eq!(Tag::of("# fastscore.action: unused"), None);
        // What the service has no use for is for others.
        assert_eq!(Tag::of("# modelop.explain"), Some(Tag::Above("explain")));
    }

    #[test]
    fn prose_about_tags_is_none() {
        for comment in
            ["# modelop.score is below", "# see modelop.score", "# a.b", "# nothing", "#", "# modelop."]
        {
            assert_eq!(Tag::of(comment), None, "{comment}");
        }
        assert_eq!(Tag::of("# fastscore.module-attached: gensim"), None);
    }

    #[test]
    fn what_nearly_is_a_tag_is_known_for_what_was_meant() {
        for (comment, meant) in [
            ("# modelop.scroe", "score"),
            ("# modelop.Score", "score"),
            ("# modelop.metric", "metrics"),
            ("# modelopp.init", "init"),
            ("# ModelOp.train", "train"),
            ("# modelop.score: run", "score"),
            ("# modelop.schema: x.avsc", "modelop.schema.0: input.avsc"),
            ("# modelop.recordset.0: true", "recordsets"),
        ] {
            assert_eq!(Tag::of(comment), Some(Tag::Misspelt(meant)), "{comment}");
        }
    }
}
