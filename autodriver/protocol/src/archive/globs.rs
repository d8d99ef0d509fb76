//! Patterns against paths, in a time that grows with the pattern times the path, whoever chose the names.
//!
//! The crate's own matcher takes a pattern as one text, and tries each way to share a path out among its
//! `**`: with a few of them, and a name with a hundred directories, that takes longer than anybody waits.
//! Here it only ever sees one name, which holds no `/`.

use glob::{MatchOptions, Pattern};

/// A pattern, name by name.
#[derive(Debug)]
pub struct Glob(Vec<Part>);

#[derive(Debug)]
enum Part {
    /// `**`: any directories, or none; at the end, anything below.
    Any,
    /// What one name must match.
    Name(Pattern),
}

impl Glob {
    /// Reads a relative pattern without a slash at its end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Glob, &'static str> {
        // As a whole first: it knows where `**` may stand.
        Pattern::new(text).map_err(|error| error.msg)?;
        let part = |name: &str| match name {
            "**" => Ok(Part::Any),
            name => Pattern::new(name).map(Part::Name).map_err(|error| error.msg),
        };
        names(text).into_iter().map(part).collect::<Result<_, _>>().map(Glob)
    }

    /// Whether the pattern matches this path.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.reached(path).last() == Some(&true)
    }

    /// Whether the pattern matches this path, or a directory above it.
    pub(super) fn covers(&self, path: &str) -> bool {
        self.reached(path).into_iter().skip(1).any(|reached| reached)
    }

    /// For each number of names from the path's start, whether they are matched.
    fn reached(&self, path: &str) -> Vec<bool> {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let mut reached = vec![false; names.len() + 1];
        reached[0] = true;
        for (number, part) in self.0.iter().enumerate() {
            match part {
                Part::Any => {
                    let first = reached.iter().position(|reached| *reached);
                    // Nothing is below nothing.
                    let from = first.map(|first| first + usize::from(number + 1 == self.0.len()));
                    for (at, reached) in reached.iter_mut().enumerate() {
                        *reached = from.is_some_and(|from| at >= from);
                    }
                }
                Part::Name(pattern) => {
                    for at in (0..names.len()).rev() {
                        reached[at + 1] = reached[at] && pattern.matches_with(names[at], MatchOptions::new());
                    }
                    reached[0] = false;
                }
            }
        }
        reached
    }
}

/// The names of a pattern: what is between slashes, but for those in `[...]`, which match nothing.
fn names(text: &str) -> Vec<&str> {
    let (mut names, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(byte) = text.as_bytes().get(at) {
        if *byte == b'[' {
            // The first character of a class is never its end.
            let first = at + 1 + usize::from(text[at + 1..].starts_with('!'));
            let skipped = text[first..].chars().next().map_or(0, char::len_utf8);
            at = text[first + skipped..].find(']').map_or(text.len(), |end| first + skipped + end);
        } else if *byte == b'/' {
            names.push(&text[start..at]);
            start = at + 1;
        }
        at += 1;
    }
    names.push(&text[start..]);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[test]
    fn many_recursive_wildcards_cost_no_more_than_their_number() {
        let pattern = Glob::new(&format!("{}x", "**/a/".repeat(40))).unwrap();
        let began = std::time::Instant::now();
        assert!(!pattern.matches(&"a/".repeat(2000)) && !pattern.covers(&"a/".repeat(2000)));
        assert!(pattern.matches(&format!("{}x", "a/".repeat(2000))));
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4000, ..ProptestConfig::default() })]

        /// Over a small alphabet, so that much matches; the crate's matcher is slow, not wrong.
        #[test]
        fn what_matches_is_what_the_crate_says(
            pattern in vec(select(&["a", "b", "*", "?", "[a/]", "[!a]", "[]]", "/", "/", "/**/", "**/", "/**"][..]), 1..7),
            path in vec(select(&["a", "b", "ab", "]", "ba"][..]), 1..5),
        ) {
            // As a selection trims it: after `**` the crate takes a last slash for none.
            let (pattern, path) = (pattern.concat().trim_end_matches('/').to_owned(), path.join("/"));
            let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
            let theirs = Pattern::new(&pattern);
            let ours = Glob::new(&pattern);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}", pattern);
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.matches(&path), theirs.matches_with(&path, options), "{} {}", pattern, path);
            }
        }
    }
}
