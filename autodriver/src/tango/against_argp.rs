//! What [`super::arguments`] reads, prints and ends with, against glibc's own argp with the same table of
//! options, compiled here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::arguments::{parse, Arguments, Stop};

/// An argp of its own, below a directory that is removed.
struct Argp(PathBuf);

impl Argp {
    fn compile(name: &str, define: &str) -> Argp {
        let place = std::env::temp_dir().join(format!("autodriver-argp-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("mkdir");
        let source = place.join("argp.c");
        std::fs::write(&source, include_str!("argp.c")).expect("the source can be written");
        let mut cc = Command::new("cc");
        let compiled = cc.arg(define).arg("-o").arg(place.join("autodriver")).arg(&source).status();
        assert!(compiled.expect("cc starts").success(), "this test needs cc and glibc's headers");
        Argp(place)
    }

    /// Standard output, standard error, exit status.
    fn says(&self, words: &[&[u8]]) -> (Vec<u8>, Vec<u8>, Option<i32>) {
        let mut command = Command::new(self.0.join("autodriver"));
        command.arg0(OsStr::from_bytes(words[0])).args(words[1..].iter().map(|word| OsStr::from_bytes(word)));
        let done = command.env_clear().output().expect("it runs");
        (done.stdout, done.stderr, done.status.code())
    }
}

impl Drop for Argp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// As [`Argp::says`], of ours.
fn ours(words: &[&[u8]]) -> (Vec<u8>, Vec<u8>, Option<i32>) {
    match parse(words) {
        Ok(read) => {
            let Arguments { nproc, fsize, timeout, osize, interval, timezone, stream, directory } = read;
            let mut line = format!("{nproc} {fsize} {timeout} {osize} {interval} ").into_bytes();
            line.extend(timezone.unwrap_or_else(|| b"none".to_vec()));
            line.extend(format!(" {} ", u8::from(stream)).into_bytes());
            (([line, directory, b"\n".to_vec()].concat()), Vec::new(), Some(0))
        }
        Err(Stop::Help(text)) => (text.as_bytes().to_vec(), Vec::new(), Some(0)),
        Err(Stop::Usage(text)) => (Vec::new(), text, Some(1)),
    }
}

fn compare(argp: &Argp, words: &[&[u8]]) {
    let readable = |(out, err, status): (Vec<u8>, Vec<u8>, Option<i32>)| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&out), text(&err), status)
    };
    let shown: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
    assert_eq!(readable(ours(words)), readable(argp.says(words)), "{shown:?}");
}

/// Every two of these, and one of them, before, between and behind directories.
const WORDS: [&str; 62] = [
    "-u5",
    "-u",
    "5",
    "-u 5",
    "-u-1",
    "-u0x10",
    "-u010",
    "-u08",
    "-u4294967295",
    "-u4294967296",
    "-u-0",
    "-u+3",
    "-u18446744073709551616",
    "-u-18446744073709551615",
    "-ux",
    "-f",
    "-f7",
    "-t9",
    "-t",
    "-o3",
    "-oo",
    "-ft",
    "-x",
    "-xu5",
    "-",
    "--",
    "---",
    "-?",
    "-?u",
    "-h",
    "-V",
    "--nproc",
    "--nproc=5",
    "--nproc=",
    "--nproc= 4",
    "--nproc=4 ",
    "--n=6",
    "--np",
    "--nprocs=1",
    "--fsize=1",
    "--f",
    "--f=0x1",
    "--timeout=8",
    "--osize=9",
    "--help",
    "--help=x",
    "--he",
    "--usage",
    "--usage=",
    "--us",
    "--u=1",
    "--version",
    "--=",
    "--=5",
    "autolab",
    "",
    " ",
    "0",
    "a/b",
    "-u=5",
    "--nproc 5",
    "-5",
];

/// Those of the forks.
const EXTENSIONS: [&str; 20] = [
    "-i",
    "-i60",
    "-ix",
    "-z",
    "-zEurope/Berlin",
    "-z=UTC",
    "-s",
    "-sx",
    "-su5",
    "-i5s",
    "--stream",
    "--stream=x",
    "--stream=",
    "--s",
    "--timestamp-interval=5",
    "--timezone=UTC",
    "--timez=UTC",
    "--times=2",
    "--timezone",
    "-?i",
];

fn lists(words: &[&'static str]) -> Vec<Vec<&'static [u8]>> {
    let mut lists: Vec<Vec<&[u8]>> = vec![vec![b"autodriver"]];
    for first in words {
        lists.push(vec![b"autodriver", first.as_bytes()]);
        lists.push(vec![b"/usr/bin/autodriver", first.as_bytes(), b"autolab"]);
        lists.push(vec![b"autodriver", b"autolab", first.as_bytes(), b"-u"]);
        for second in words {
            lists.push(vec![b"x/autodriver", first.as_bytes(), second.as_bytes(), b"dir"]);
        }
    }
    lists
}

#[test]
fn tango_s_options_are_read_as_argp_reads_them() {
    let argp = Argp::compile("own", "-DOWN");
    // What argp has besides, and its list of what a beginning may mean; ours has the later options there.
    let apart = |word: &&[u8]| word.starts_with(b"--=") || *word == b"---";
    let helps = |list: &[&[u8]]| matches!(parse(list), Err(Stop::Help(_))) && argp.says(list).2 == Some(0);
    for list in lists(&WORDS).iter().filter(|list| !list.iter().any(apart)) {
        if !helps(list) {
            compare(&argp, list);
        }
    }
}

#[test]
fn later_options_and_the_help_are_as_argp_has_them() {
    let argp = Argp::compile("extended", "-DEXTENDED");
    // The beginnings that Tango's own options keep.
    let kept = |word: &&[u8]| word.starts_with(b"--=") || *word == b"---";
    let all: Vec<_> = EXTENSIONS.into_iter().chain(WORDS.into_iter().step_by(4)).collect();
    for list in lists(&all).iter().filter(|list| !list.iter().any(kept)) {
        compare(&argp, list);
    }
    for word in ["--help", "--usage", "-?", "--us"] {
        compare(&argp, &[b"autodriver", word.as_bytes()]);
    }
}

#[test]
fn bytes_that_are_no_text_are_read_as_argp_reads_them() {
    let argp = Argp::compile("bytes", "-DEXTENDED");
    // Not "-\xff": glibc takes that byte for its own mark of an error, and prints the help.
    for word in
        [&b"\xff\xfe"[..], b"-\xfe", b"--\xff", b"-u\xff", b"-z\xff", b"--nproc=\xff", b"--timezone=\xc3"]
    {
        compare(&argp, &[b"autodriver", word, b"dir"]);
    }
}
