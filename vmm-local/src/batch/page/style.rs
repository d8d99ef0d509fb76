//! How the page looks: in the colours of the reader's system, light or dark.

/// The style sheet, which is part of the page.
pub(super) const STYLE: &str = include_str!("style.css");
