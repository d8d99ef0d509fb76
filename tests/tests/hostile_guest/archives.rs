//! Archives that no autodriver packs: names, kinds and sizes that lead somewhere else.

use std::os::unix::ffi::OsStrExt;

use autodriver_protocol::Kind;
use e2e::{copied, frame, say, wait_for, Act, Bytes, Stage};

use crate::meeting::{with_each, Place};
use crate::{meet_all, Case};

/// One entry of an archive, with any header.
#[derive(Clone, Debug)]
struct Entry {
    name: Vec<u8>,
    kind: u8,
    content: Vec<u8>,
    /// Instead of the content's.
    size: Option<[u8; 12]>,
    mode: &'static [u8],
    link: Vec<u8>,
}

impl Entry {
    fn new(kind: u8, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
        let (name, content) = (name.as_ref().to_vec(), content.as_ref().to_vec());
        Entry { name, kind, content, size: None, mode: b"0000644", link: Vec::new() }
    }

    fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
        Entry::new(b'0', name, content)
    }

    fn link(kind: u8, name: &str, target: impl AsRef<[u8]>) -> Entry {
        Entry { link: target.as_ref().to_vec(), ..Entry::new(kind, name, "") }
    }

    fn sized(self, size: &[u8; 12]) -> Entry {
        Entry { size: Some(*size), ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = [0; 512];
        header[..self.name.len()].copy_from_slice(&self.name);
        header[100..100 + self.mode.len()].copy_from_slice(self.mode);
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        let size = format!("{:011o}\0", self.content.len()).into_bytes();
        header[124..136].copy_from_slice(self.size.as_ref().map_or(&size[..], |size| size));
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].fill(b' ');
        header[156] = self.kind;
        header[157..157 + self.link.len()].copy_from_slice(&self.link);
        header[257..265].copy_from_slice(b"ustar  \0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let padding = self.content.len().next_multiple_of(512) - self.content.len();
        [&header[..], &self.content, &vec![0; padding]].concat()
    }
}

/// A record of a pax header.
fn pax(key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value.as_ref(), b"\n"].concat();
    let length = (1..).find(|length: &usize| length - length.to_string().len() == rest.len());
    [length.expect("some length fits").to_string().as_bytes(), &rest].concat()
}

const END: [u8; 1024] = [0; 1024];

fn archive(entries: &[Entry]) -> Vec<u8> {
    [entries.iter().flat_map(Entry::bytes).collect(), END.to_vec()].concat()
}

/// A guest that sends these bytes as the files, says what it copied, and closes in order.
fn sends(stream: impl Into<Bytes>, entries: u64, bytes: u64) -> Vec<Act> {
    let mut script = Stage::Get.reached();
    script.extend([say(frame(Kind::Data, stream)), copied(Kind::GetDone, entries, bytes)]);
    script.extend([wait_for(Kind::Close), say(frame(Kind::Closed, e2e::closed())), Act::Silence]);
    script
}

/// An archive that is found out as such; `before` is what came before the entry that is wrong.
fn refused(name: &str, entries: &[Entry], says: &str, before: &[&str]) -> Case {
    let count = entries.len() as u64;
    Case::refused(name, sends(archive(entries), count, 4), "exited", format!("vmm-local: get: {says}"))
        .leaving(before)
}

#[test]
fn an_archive_in_order_is_unpacked() {
    let modes = Entry { mode: b"0006777", ..Entry::file("setuid", "x") };
    let same = [Entry::file("same", "1"), Entry::file("same", "2")];
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
    let gnu = [Entry::new(b'L', "././@LongLink", &long), Entry::file("short", "x")];
    let named = [Entry::new(b'x', "pax", pax("path", "renamed")), Entry::file("short", "x")];
    let graded = |name, entries: &[Entry], count, bytes, files: &[&str]| {
        Case::graded(name, sends(archive(entries), count, bytes)).leaving(files)
    };
    meet_all(&[
        graded("one file", &[Entry::file("f", "four")], 1, 4, &["f"]),
        graded("setuid", &[modes], 1, 1, &["setuid"]),
        graded("twice the same", &same, 2, 2, &["same"]),
        graded("GNU long name", &gnu, 1, 1, &[&"d".repeat(120), &long]),
        graded("pax name", &named, 1, 1, &["renamed"]),
        graded("dots and slashes", &[Entry::file(".//.//./f", "four")], 1, 4, &["f"]),
    ]);
}

#[test]
fn a_name_leads_nowhere_else() {
    let evil = |name: &[u8], says: &str| {
        let title = name.escape_ascii().to_string();
        refused(&title, &[Entry::file("a", "good"), Entry::file(name, "evil")], says, &["a"])
    };
    let long = |name: &[u8], says: &str| {
        let entries = [Entry::new(b'L', "././@LongLink", name), Entry::file("x", "evil")];
        let title = format!("long name of {} bytes", name.len());
        refused(&title, &entries, says, &[])
    };
    let mut cases = vec![
        evil(b"../evil", "archive entry '../evil': name with '..'"),
        evil(b"../../home/.ssh/canary", "archive entry '../../home/.ssh/canary': name with '..'"),
        evil(b"a/../../evil", "archive entry 'a/../../evil': name with '..'"),
        evil(b"x/..", "archive entry 'x/..': name with '..'"),
        evil(b"..", "archive entry '..': name with '..'"),
        evil(b"/etc/cron.d/hostile-guest", "archive entry '/etc/cron.d/hostile-guest': absolute name"),
        evil(b"//x", "archive entry '//x': absolute name"),
        evil(b"/", "archive entry '/': absolute name"),
        evil(b"", "archive entry '': was not asked for"),
        evil(b".", "archive entry '.': was not asked for"),
        evil(b"./", "archive entry './': was not asked for"),
        // As with two --out into one directory; so this alone is no lie.
        Case { restored: true, ..evil(b"a/b", "cannot open directory 'a': ENOTDIR") },
        long(&[b'n'; 4097], "archive entry '"),
        long(&[b'n'; 256], "archive entry '"),
        long(b"../evil", "archive entry '../evil': name with '..'"),
        long("d/".repeat(129).as_bytes(), "archive entry '"),
        long(&[b'n'; 16385], "archive entry '././@LongLink': extension header longer than 16384 bytes"),
        long(b"x\0y", "archive entry 'x\\0y': name with a NUL byte"),
    ];
    let directory = [Entry::file("d/f", "1"), Entry::file("d", "evil")];
    let over = refused("a directory's name", &directory, "cannot put in place 'd': EISDIR", &["d", "d/f"]);
    cases.push(Case { restored: true, ..over });
    meet_all(&cases);
}

#[test]
fn names_that_terminals_obey_are_spelled_out() {
    let name = "esc\u{1b}[2J\u{202e}\r\n/../evil";
    let says = "esc\\u{1b}[2J\\u{202e}\\r\\n/../evil': name with '..'";
    let mut cases = vec![refused("evil", &[Entry::file(name, "x")], &format!("archive entry '{says}"), &[])];
    // Such a file may be; it is for its reader to show it well.
    let lines = Entry::file("new\nline", "four");
    cases.push(Case::graded("new line", sends(archive(&[lines]), 1, 4)).leaving(&["new\nline"]));
    let number = Entry::file("f", "").sized(b"\x1b[2J\xc2\x9b1m    ");
    cases.push(refused("a size that is none", &[number], "archive stream: ", &[]));
    meet_all(&cases);
}

#[test]
fn links_and_devices_are_not_made() {
    let evil = |name: &str, entry: Entry, says: &str| {
        // What is written through it would be the evil.
        let through = Entry::file(format!("{}/canary", String::from_utf8_lossy(&entry.name)), "evil");
        let over = Entry::file(&entry.name, "evil");
        refused(name, &[entry, through, over], &format!("archive entry 'l': {says}"), &[])
    };
    let links = "symbolic links are not accepted here";
    let others = "only regular files, directories and symbolic links are accepted";
    meet_all(&[
        evil("symlink out", Entry::link(b'2', "l", "../../home"), links),
        evil("symlink to a file", Entry::link(b'2', "l", "../canary"), links),
        evil("absolute symlink", Entry::link(b'2', "l", "/etc"), links),
        evil("symlink inside", Entry::link(b'2', "l", "."), links),
        evil("hard link", Entry::link(b'1', "l", "../canary"), "hard links are not accepted"),
        evil("character device", Entry::new(b'3', "l", ""), others),
        evil("block device", Entry::new(b'4', "l", ""), others),
        evil("fifo", Entry::new(b'6', "l", ""), others),
        evil("GNU sparse", Entry::new(b'S', "l", ""), others),
        evil("GNU directory dump", Entry::new(b'D', "l", "Yx\0\0"), others),
        evil("GNU multi-volume", Entry::new(b'M', "l", ""), others),
        evil("GNU volume label", Entry::new(b'V', "l", ""), others),
        evil("unknown kind", Entry::new(0xff, "l", ""), others),
    ]);
}

#[test]
fn a_second_opinion_about_names_and_sizes_is_no_way_out() {
    let after = |name: &str, records: Vec<u8>, says: &str| {
        let entries = [Entry::new(b'x', "pax", records), Entry::file("x", "evil")];
        refused(name, &entries, says, &[])
    };
    meet_all(&[
        after("pax path", pax("path", "../evil"), "archive entry '../evil': name with '..'"),
        after(
            "pax absolute",
            pax("path", "/tmp/hostile-guest"),
            "archive entry '/tmp/hostile-guest': absolute name",
        ),
        after("pax NUL", pax("path", "a\0b"), "archive entry 'a\\0b': name with a NUL byte"),
        after(
            "pax size",
            pax("size", "1000000000000"),
            "archive entry 'pax header': pax 'size' is not accepted",
        ),
        after(
            "pax sparse",
            pax("GNU.sparse.major", "1"),
            "archive entry 'pax header': sparse files are not accepted",
        ),
        after("pax that is none", b"999 path=x\n".to_vec(), "archive stream: malformed pax extension"),
        after(
            "pax of 17000 bytes",
            pax("comment", vec![b'x'; 17000]),
            "archive entry 'pax': extension header longer",
        ),
    ]);
}

#[test]
fn a_size_that_lies_ends_the_transfer() {
    let lies = |name: &str, entry: Entry, says: &str| refused(name, &[entry], says, &[]);
    let huge = b"77777777777\0";
    let binary = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let longer = Entry::file("f", "four").sized(b"00000001000\0");
    let shorter = Entry::file("f", vec![b'x'; 2000]).sized(b"00000000001\0");
    let mut cases = vec![
        lies("8 GiB", Entry::file("f", "four").sized(huge), "archive of more than"),
        lies("2^64 - 1", Entry::file("f", "four").sized(&binary), "archive stream: size overflow"),
        lies("negative", Entry::file("f", "four").sized(&[0xff; 12]), "archive stream: size overflow"),
        // The content goes on where the next header should be.
        Case { files: vec!["f".to_owned()], ..lies("shorter", shorter, "archive stream: ") },
    ];
    // With the end of the archive for its content.
    cases.push(Case::graded("longer", sends(archive(&[longer]), 1, 512)).leaving(&["f"]));
    let longest = Entry::file("f", "four").sized(b"00000010000\0");
    cases.push(lies("longer than all", longest, "archive stream: "));
    let junk = sends(Bytes::repeated([0xa5], 4096), 1, 4);
    cases.push(Case::refused("no archive", junk, "exited", "get: archive stream: "));
    for case in &mut cases {
        // Such a limit was passed by a job's files where their size is only sampled: no lie.
        case.restored |= case.says[..].first().is_some_and(|says| says.contains("more than"));
    }
    meet_all(&cases);
}

#[test]
fn what_is_not_complete_has_no_name() {
    let content = vec![b'x'; 700];
    let whole = archive(&[Entry::file("good", "1"), Entry::file("part", &content)]);
    // In the header, between header and content, in the content, in its padding, before the end.
    meet_all(
        &[
            1024 + 300,
            1024 + 512,
            1024 + 513,
            1024 + 512 + 699,
            1024 + 512 + 700,
            1024 + 1536,
            1024 + 1536 + 512,
        ]
        .map(|length| {
            let script = [Stage::Get.reached(), vec![say(frame(Kind::Data, &whole[..length]))]].concat();
            let says = "get: the peer ended where get-done was expected";
            let complete = length >= 1024 + 512 + 700;
            let files: &[&str] = if complete { &["good", "part"] } else { &["good"] };
            Case::refused(format!("{length} bytes"), script, "exited", says).leaving(files)
        }),
    );
}

#[test]
fn what_a_guest_says_it_sent_is_what_came() {
    let one = archive(&[Entry::file("f", "four")]);
    let lie = |entries, bytes| {
        let name = format!("{entries} entries, {bytes} bytes");
        let says = "get: payload of 'get-done': says";
        Case::refused(name, sends(&one, entries, bytes), "exited", says).leaving(&["f"])
    };
    let none = sends(END, 1, 4);
    meet_all(&[
        lie(0, 0),
        lie(2, 4),
        lie(1, 5),
        lie(u64::MAX, u64::MAX),
        Case::refused("no file at all", none, "exited", "get: payload of 'get-done': says"),
    ]);
}

#[test]
fn only_what_was_asked_for_is_taken() {
    let asked = |glob: &'static str, name: &str, says: &str| {
        let script = sends(archive(&[Entry::file(name, "evil")]), 1, 4);
        let case = Case::refused(format!("{name} for {glob}"), script, "exited", says);
        Case { options: vec!["--out", glob], ..case }
    };
    let other = "was not asked for";
    meet_all(&[
        asked("score.json:out/", "other", other),
        asked("score.json:out/", "score.json.sh", other),
        asked("*.json:out/", "d/x.json", other),
        asked("d:out/", "e/f", other),
        // Into the working directory, where something else has that name.
        asked("score.json:.", "canary", other),
        asked("score.json:.", "in/f", other),
        asked("score.json:out/score", "other", other),
        asked("score.json:out/score", "score.json/other/../../x", "name with '..'"),
    ]);
}

#[test]
fn directories_count_as_well() {
    let deep = |index: u32| Entry::file(format!("{index}/{}f", "d/".repeat(40)), "");
    let entries: Vec<Entry> = (0..90).map(deep).collect();
    let script = sends(archive(&entries), 90, 0);
    let place = Place::new(&script);
    let ended = place.run(&crate::OUT);
    let made = place.files("cwd/out").len();
    assert!(ended.wrong.is_empty(), "{:?}", ended.wrong);
    assert_eq!(ended.status, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("get: archive of more than"), "{}", ended.stderr);
    // 100 of the job's, one of the inputs, and the directories of the path that is too much.
    assert!((41..=142).contains(&made), "{made} files and directories were made");
}

#[test]
fn a_million_entries_end_with_the_limit() {
    let file = frame(Kind::Data, Bytes::repeated(Entry::file("same", "").bytes(), 2000));
    let script = [Stage::Get.reached(), vec![Act::Say(file, 500), Act::Silence]].concat();
    let says = "get: archive of more than 101 entries";
    let case = Case::refused("a million", script, "exited", says).leaving(&["same"]);
    meet_all(&[case]);
}

#[test]
fn an_absolute_name_of_a_file_that_is_there_changes_nothing() {
    with_each(&["canary", "home/.ssh/canary", "new"], |name| {
        let place = Place::new(&[]);
        let path = place.path(name);
        place.teach(&sends(archive(&[Entry::file(path.as_os_str().as_bytes(), "evil")]), 1, 4));
        let ended = place.run(&crate::OUT);
        match ended.wrong.is_empty() && ended.status == 125 && ended.stderr.contains("absolute name") {
            true => Ok(()),
            false => Err(format!("{name}: {ended:?}")),
        }
    });
}
