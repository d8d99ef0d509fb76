//! Options and documents, good and bad.

use super::*;

#[test]
fn unknown_keys_and_wrong_types_are_named() {
    for (text, word) in [
        (r#"{"wal": 3}"#, "wal"),
        (r#"{"wall": []}"#, "sequence"),
        (r#"{"pids": -1}"#, "-1"),
        (r#"{"pids": 1e99}"#, "1e"),
        (r#"{"memory": 99999999999999999999999}"#, "K, M or G"),
        (r#"{"skip": ["firewall"]}"#, "firewall"),
        (r#"{"env": {"A=B\u0000": "x"}}"#, "NAME=VALUE"),
        (r#"{"in": ["/x:a\u0000b"]}"#, "SRC or SRC:DEST"),
        (r#"{"in": [":x"]}"#, "SRC or SRC:DEST"),
        (r#"{"net": "lan"}"#, "lan"),
        ("{\"\\u001b[2Jwall\u{7f}\": 3}", r"`\u{1b}[2Jwall\u{7f}`"),
        (r#"[]"#, "expected an object"),
        (r#"[["make"]]"#, "expected an object"),
        (r#"{} x"#, "trailing"),
        ("", "EOF"),
    ] {
        let error = Options::from_json(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn a_document_reads_back_as_written() {
    let text = r#"{"command": ["make", "grade"], "wall": "10s", "memory": 1048576,
        "env": {"A": "b=c"}, "in": ["/x:y"], "out": ["*.log:/d"], "bind": ["/a:/b:rw"],
        "require": ["all"], "skip": ["landlock"], "on_output": "kill", "as": "1G"}"#;
    let options = Options::from_json(text.as_bytes()).unwrap();
    assert_eq!(options.env, [EnvVar("A".into(), "b=c".into())]);
    let again = serde_json::to_vec(&options).unwrap();
    assert_eq!(Options::from_json(&again).unwrap(), options);
}

#[test]
fn options_given_stand_over_the_document() {
    let over = Options { wall: Some("1s".parse().unwrap()), ..Options::default() };
    let merged = over.over(Options::defaults());
    assert_eq!(merged.wall.unwrap().to_string(), "1s");
    assert_eq!(merged.command, ["make"]);
    assert_eq!(merged.pids, Some(128));
}

#[test]
fn binds_are_absolute() {
    assert!("/a".parse::<Bind>().is_ok());
    assert_eq!("/a:/b:rw".parse(), Ok(Bind { src: "/a".into(), dest: "/b".into(), writable: true }));
    for text in ["", "a", "/a:b", "/a:/b:/c", "\0"] {
        assert!(text.parse::<Bind>().is_err(), "{text}");
    }
}
