//! Words for people: what a guest or a job said, made harmless for a terminal; times and sizes.

use std::time::Duration;

/// Text from a guest or a job with nothing left in it that a terminal would obey: control
/// characters, and the marks that turn the direction of writing, are spelled out.
pub fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        match obeyed(c) {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
        safe
    })
}

fn obeyed(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// A value as JSON on one line that is harmless for a terminal as well: JSON itself leaves the
/// controls above ASCII, and the marks that turn the direction, as they are.
///
/// # Errors
/// Those of the value's own form.
pub fn json(value: &impl serde::Serialize) -> Result<String, serde_json::Error> {
    let plain = serde_json::to_string(value)?;
    Ok(plain.chars().fold(String::with_capacity(plain.len()), |mut safe, c| {
        match obeyed(c) {
            // All of them are in strings, and in the range that four digits spell.
            true => safe += &format!("\\u{:04x}", u32::from(c)),
            false => safe.push(c),
        }
        safe
    }))
}

/// The same for a page: text, or the value of an attribute in quotes, and never anything else.
pub fn html(text: &str) -> String {
    printable(text).chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
        safe
    })
}

/// The start of a printable text, with an ellipsis where something was left out.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// Rows of cells in columns, a line each.
pub fn table(rows: &[impl AsRef<[String]>]) -> String {
    let width_of = |text: &String| text.chars().count();
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width =
        |column| rows.iter().filter_map(|row| row.as_ref().get(column)).map(width_of).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut table = String::new();
    for row in rows {
        let padded = row.as_ref().iter().zip(&widths).map(|(text, width)| format!("{text:width$}"));
        table += padded.collect::<Vec<_>>().join("  ").trim_end();
        table.push('\n');
    }
    table
}

/// Seconds with milliseconds, or whole milliseconds below a second.
pub fn time(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        ms => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
    }
}

/// Bytes with one decimal of the largest fitting unit (powers of 1024).
pub fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_terminal_obeys_is_left() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{202e}\u{61c}é"), "a\\u{1b}[2Jb\\r\\n\\u{202e}\\u{61c}é");
        assert!(!printable(&('\0'..'\u{a0}').collect::<String>()).chars().any(char::is_control));
    }

    #[test]
    fn json_is_harmless_and_still_the_same_value() {
        let text: String = ('\0'..'\u{a0}').chain("\u{61c}\u{202e}\u{2066}é\u{10ffff}".chars()).collect();
        let json = json(&text).unwrap();
        assert!(!json.chars().any(obeyed) && json.contains('é'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn nothing_a_browser_obeys_is_left() {
        let safe = html("<b a='1' c=\"2\">&amp;\0\u{202e}é");
        assert_eq!(safe, "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;amp;\\u{0}\\u{202e}é");
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(time(Duration::from_micros(12_900)), "12 ms");
        assert_eq!(time(Duration::from_millis(61_239)), "61.23 s");
        assert_eq!(size(512), "512");
        assert_eq!(size(1536), "1.5K");
        assert_eq!(size(u64::MAX), "17179869183.9G");
        assert_eq!(shortened("äbcdef", 3), "äb…");
        assert_eq!(shortened("abc", 3), "abc");
    }
}
