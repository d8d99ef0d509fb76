//! `--report FILE|fd:N`.

use std::fs::File;
use std::io::{self, Write};

use autodriver_protocol::Report;

use crate::text;

/// Where the report goes, open before anything runs: a place that cannot be written is an
/// error that costs nothing.
pub(super) struct ReportFile {
    name: String,
    out: Box<dyn Write>,
}

impl ReportFile {
    pub(super) fn open(name: &str) -> Result<ReportFile, String> {
        let place = if name == "-" { "fd:1" } else { name };
        let opened = match place.strip_prefix("fd:") {
            None => File::create(name).map(|file| Box::new(file) as Box<dyn Write>),
            Some("1") => Ok(Box::new(io::stdout()) as Box<dyn Write>),
            Some("2") => Ok(Box::new(io::stderr()) as Box<dyn Write>),
            Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => {
                // A second opening of the same file or pipe: the first is not ours to close.
                let file = File::options().append(true).open(format!("/proc/self/fd/{number}"));
                file.map(|file| Box::new(file) as Box<dyn Write>)
            }
            Some(_) => Err(io::Error::other("expected a file, or fd: and a number")),
        };
        opened.map(|out| ReportFile { name: name.to_owned(), out }).map_err(|error| {
            format!("--report '{name}': {error}; give a file, or fd:N with N open for writing")
        })
    }

    pub(super) fn write(&mut self, report: &Report) -> Result<(), String> {
        let mut text = text::json(report).map_err(|error| format!("report: {error}"))?;
        text.push('\n');
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| format!("cannot write the report to '{}': {error}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        for name in ["/nowhere/report", "fd:999999", "fd:", "fd:x", "fd:-1"] {
            let error = ReportFile::open(name).err().unwrap();
            assert!(error.contains(name) && error.contains("fd:N"), "{error}");
        }
    }
}
