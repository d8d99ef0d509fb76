//! The output of one job, shown as it comes. A terminal that is slow, or stopped, must not keep a
//! job waiting: what does not fit into a short queue is left out, and that is said.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::Arc;

use crate::session::Stream;
use crate::text;

/// Pieces of output under way to the terminal.
const QUEUE: usize = 256;
/// Most bytes of one piece.
const PIECE_MAX: usize = 16 << 10;
/// Longest line that is shown as one, in bytes.
const LINE_MAX: usize = 4 << 10;

#[derive(Debug)]
enum Message {
    Output(Stream, Vec<u8>),
    End,
}

/// Where a job's output is to be shown.
#[derive(Debug)]
pub(super) struct Tail {
    tx: SyncSender<Message>,
    left_out: Arc<AtomicUsize>,
}

/// The same while the job runs; the end of it is the end of the job.
#[derive(Debug)]
pub(super) struct Following {
    tx: SyncSender<Message>,
    left_out: Arc<AtomicUsize>,
}

/// What is to be shown, for whoever shows it.
#[derive(Debug)]
pub(super) struct Shown {
    prefix: String,
    rx: Receiver<Message>,
    left_out: Arc<AtomicUsize>,
    /// The unfinished lines of both streams.
    pending: [Vec<u8>; 2],
}

/// Both ends for the job of that (printable) name.
pub(super) fn tail(name: &str) -> (Tail, Shown) {
    let (tx, rx) = mpsc::sync_channel(QUEUE);
    let left_out = Arc::new(AtomicUsize::new(0));
    let tail = Tail { tx, left_out: Arc::clone(&left_out) };
    (tail, Shown { prefix: format!("{name} | "), rx, left_out, pending: Default::default() })
}

impl Tail {
    /// Begins with a job.
    pub(super) fn follow(&self) -> Following {
        Following { tx: self.tx.clone(), left_out: Arc::clone(&self.left_out) }
    }
}

impl Following {
    /// Shows output, if there is room for it now.
    pub(super) fn show(&self, stream: Stream, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_MAX) {
            if self.tx.try_send(Message::Output(stream, piece.to_vec())).is_err() {
                self.left_out.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Where there is no room for it, the end of all output ends this one too.
        let _ = self.tx.try_send(Message::End);
    }
}

impl Shown {
    /// Hands over whole lines, harmless for a terminal, until nobody can have more.
    pub(super) fn each(mut self, mut print: impl FnMut(&str)) {
        while let Ok(message) = self.rx.recv() {
            let mut text = String::new();
            match message {
                Message::Output(stream, bytes) => self.take(stream, &bytes, &mut text),
                Message::End => self.end(&mut text),
            }
            self.confess(&mut text);
            if !text.is_empty() {
                print(&text);
            }
        }
        let mut text = String::new();
        self.end(&mut text);
        self.confess(&mut text);
        if !text.is_empty() {
            print(&text);
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8], text: &mut String) {
        let pending = &mut self.pending[usize::from(stream == Stream::Stderr)];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            pending.extend_from_slice(piece);
            while let Some(end) = line_end(pending) {
                let line: Vec<u8> = pending.drain(..end).collect();
                add_line(&self.prefix, &line, text);
            }
        }
    }

    fn end(&mut self, text: &mut String) {
        for pending in &mut self.pending {
            if !pending.is_empty() {
                add_line(&self.prefix, &std::mem::take(pending), text);
            }
        }
    }

    fn confess(&self, text: &mut String) {
        let count = self.left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            *text += &format!("{}...[{count} bytes not shown: they came too fast]...\n", self.prefix);
        }
    }
}

/// Where the first line ends, if it does or is too long. The cut of a long one falls between characters.
fn line_end(pending: &[u8]) -> Option<usize> {
    let window = &pending[..pending.len().min(LINE_MAX)];
    if let Some(at) = window.iter().position(|byte| *byte == b'\n') {
        return Some(at + 1);
    }
    let is_boundary = |at: &usize| pending.get(*at).is_some_and(|byte| byte & 0xc0 != 0x80);
    let cut = || (LINE_MAX - 3..=LINE_MAX).rev().find(is_boundary).unwrap_or(LINE_MAX);
    (pending.len() > LINE_MAX).then(cut)
}

/// A line after the prefix; tabs stay, as no terminal is harmed by them.
fn add_line(prefix: &str, line: &[u8], text: &mut String) {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
    let words: Vec<String> = line.split('\t').map(text::printable).collect();
    *text += &format!("{prefix}{}\n", words.join("\t"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of output that comes in these pieces.
    fn shown(pieces: &[(Stream, &[u8])]) -> String {
        let (tail, shown) = tail("job");
        let following = tail.follow();
        pieces.iter().for_each(|(stream, bytes)| following.show(*stream, bytes));
        drop((following, tail));
        let mut text = String::new();
        shown.each(|lines| text += lines);
        text
    }

    #[test]
    fn lines_are_whole_and_harmless_whatever_the_pieces() {
        let text = shown(&[
            (Stream::Stdout, b"on"),
            (Stream::Stderr, b"er\x1b[2J"),
            (Stream::Stdout, b"e\ttab\r\n\ntw"),
            (Stream::Stderr, b"r\n"),
            (Stream::Stdout, b"o\xff"),
        ]);
        assert_eq!(text, "job | one\ttab\njob | \njob | er\\u{1b}[2Jr\njob | two\u{fffd}\n");
    }

    #[test]
    fn an_endless_line_is_shown_in_parts_that_fall_between_characters() {
        let line = "é".repeat(10_000);
        let text = shown(&[(Stream::Combined, b"x"), (Stream::Combined, line.as_bytes())]);
        assert!(text.lines().all(|line| line.len() <= LINE_MAX + "job | ".len()), "{}", text.len());
        assert_eq!(text.replace("job | ", "").replace('\n', ""), format!("x{line}"));
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_owned_up_to() {
        let (tail, shown) = tail("job");
        let following = tail.follow();
        let piece = [&[b'x'; PIECE_MAX - 1][..], b"\n"].concat();
        for _ in 0..QUEUE + 3 {
            following.show(Stream::Combined, &piece);
        }
        drop((following, tail));
        let mut text = String::new();
        shown.each(|lines| text += lines);
        assert_eq!(text.matches('x').count(), QUEUE * (PIECE_MAX - 1));
        assert!(text.contains(&format!("[{} bytes not shown", 3 * PIECE_MAX)), "it says so");
    }
}
