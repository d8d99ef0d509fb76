//! The compilers, interpreters and debuggers that courses use, at work inside the full sandbox.
//! Only for machines that have them; a missing one is a failure that names it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use e2e::{program, Outcome};

/// The places that a job's PATH has.
const PLACES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

#[track_caller]
fn need(names: &[&str]) {
    for name in names {
        let found = PLACES.iter().any(|place| PathBuf::from(place).join(name).exists());
        assert!(found, "'{name}' is in none of {PLACES:?}; scripts/test installs what these tests need");
    }
}

/// Runs a script over these files with room for a compiler.
fn build(files: &[(&str, &str)], script: &str, options: &[(&str, &str)]) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        fs::write(folder.path().join(name), content).expect("a source file");
    }
    let run = program(["/bin/sh", "-ec", script]).opt("--in", folder.path()).opt("--memory", "2G");
    let run = run.opt("--disk", "1G").opt("--pids", "512").opt("--wall", "250s").opt("--fsize", "500M");
    let run = run.opt("--require", "all");
    options.iter().fold(run, |run, (name, value)| run.opt(name, value)).run().expect_exit(0)
}

#[track_caller]
fn last_line(outcome: &Outcome) -> &str {
    outcome.text().lines().last().unwrap_or_else(|| panic!("no output: {outcome}"))
}

#[test]
fn make_and_gcc_work() {
    need(&["make", "gcc"]);
    let makefile = "all: a.o b.o\n\t@$(CC) -o sum a.o b.o && ./sum\n";
    let a = "int twice(int); int main(void) { __builtin_printf(\"%d\\n\", twice(21)); return 0; }\n";
    let files = [("Makefile", makefile), ("a.c", a), ("b.c", "int twice(int n) { return 2 * n; }\n")];
    assert_eq!(last_line(&build(&files, "make -j4", &[])), "42");
}

#[test]
fn gxx_works_with_threads_and_exceptions() {
    need(&["g++"]);
    let source = "#include <iostream>\n#include <stdexcept>\n#include <thread>\n\
        int main() { int n = 0; std::thread t([&] { n = 40; }); t.join();\n\
        try { throw std::runtime_error(\"x\"); } catch (std::exception &) { n += 2; }\n\
        std::cout << n << std::endl; }\n";
    assert_eq!(last_line(&build(&[("a.cc", source)], "g++ -pthread a.cc && ./a.out", &[])), "42");
}

#[test]
fn sanitizers_work() {
    need(&["gcc"]);
    let source = "#include <stdlib.h>\nint main(void) { char *p = malloc(4); int r = p[0] = 0; free(p);\n\
        __builtin_printf(\"clean %d\\n\", r); return 0; }\n";
    for flag in ["address", "undefined", "thread"] {
        let script = format!("gcc -fsanitize={flag} a.c && ./a.out");
        assert_eq!(last_line(&build(&[("a.c", source)], &script, &[])), "clean 0", "{flag}");
    }
}

#[test]
fn java_works_and_knows_its_user() {
    need(&["java", "javac"]);
    let source = "public class A { public static void main(String[] x) throws Exception {\n\
        Thread t = new Thread(() -> System.out.println(\"thread\")); t.start(); t.join();\n\
        System.out.println(System.getProperty(\"user.home\") + \" \" + System.getProperty(\"user.name\")); } }\n";
    let outcome = build(&[("A.java", source)], "javac A.java && java A", &[]);
    assert_eq!(last_line(&outcome), "/job job");
}

#[test]
fn python_works_and_knows_its_user() {
    need(&["python3"]);
    let source = "import getpass, multiprocessing, os, sqlite3, subprocess, tempfile, threading\n\
        import asyncio, socket\n\
        def square(n): return n * n\n\
        if __name__ == '__main__':\n\
        \x20   db = sqlite3.connect('a.db'); db.execute('create table t (n)'); db.commit()\n\
        \x20   with multiprocessing.Pool(2) as pool: total = sum(pool.map(square, range(4)))\n\
        \x20   assert subprocess.check_output(['echo', 'x']) == b'x\\n'\n\
        \x20   asyncio.run(asyncio.sleep(0)); tempfile.mkstemp()\n\
        \x20   print(total, getpass.getuser(), os.path.expanduser('~'), socket.gethostname())\n";
    assert_eq!(last_line(&build(&[("a.py", source)], "python3 a.py", &[])), "14 job /job job");
}

#[test]
fn node_works_with_workers_and_children() {
    need(&["node"]);
    let source = "const { Worker, isMainThread, parentPort } = require('worker_threads');\n\
        if (isMainThread) { new Worker(__filename).on('message', m => {\n\
        console.log(m, require('child_process').execSync('echo child').toString().trim(), require('os').homedir()); }); }\n\
        else { parentPort.postMessage('worker'); }\n";
    assert_eq!(last_line(&build(&[("a.js", source)], "node a.js", &[])), "worker child /job");
}

#[test]
fn go_builds_and_runs() {
    need(&["go"]);
    let source = "package main\nimport (\"fmt\"; \"sync\")\nfunc main() { var w sync.WaitGroup; w.Add(1)\n\
        go func() { w.Done() }(); w.Wait(); fmt.Println(\"go\") }\n";
    let files = [("a.go", source), ("go.mod", "module a\n\ngo 1.19\n")];
    assert_eq!(last_line(&build(&files, "go build -o a . && ./a", &[])), "go");
}

#[test]
fn rust_and_cargo_build_and_run() {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc is on the PATH");
    let sysroot = String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned();
    assert!(!sysroot.is_empty(), "rustc names its sysroot");
    let bind = format!("{sysroot}:/rust");
    let path = "PATH=/rust/bin:/usr/local/bin:/usr/bin:/bin";
    let source = "fn main() { std::thread::spawn(|| println!(\"rust\")).join().unwrap(); }\n";
    let options = [("--bind", bind.as_str()), ("--env", path)];
    assert_eq!(last_line(&build(&[("a.rs", source)], "rustc a.rs && ./a", &options)), "rust");
    let cargo = "mkdir -p p/src && cp a.rs p/src/main.rs && cd p && \
        printf '[package]\\nname = \"p\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n' > Cargo.toml && \
        cargo run --offline --quiet";
    assert_eq!(last_line(&build(&[("a.rs", source)], cargo, &options)), "rust");
}

#[test]
fn gdb_steps_through_a_program() {
    need(&["gcc", "gdb"]);
    let source = "int main(void) { int n = 41; n++; return n; }\n";
    let script = "gcc -g a.c && gdb -batch -ex 'break 1' -ex run -ex next -ex continue ./a.out 2>&1";
    let outcome = build(&[("a.c", source)], script, &[]);
    assert!(outcome.text().contains("exited with code 052"), "{outcome}");
}

#[test]
fn valgrind_checks_a_program() {
    need(&["gcc", "valgrind"]);
    let source = "#include <stdlib.h>\nint main(void) { free(malloc(10)); return 0; }\n";
    let script = "gcc -g a.c && valgrind --leak-check=full --error-exitcode=9 ./a.out 2>&1";
    let outcome = build(&[("a.c", source)], script, &[]);
    assert!(outcome.text().contains("ERROR SUMMARY: 0 errors"), "{outcome}");
}

#[test]
fn account_is_found_by_every_program() {
    need(&["whoami", "id"]);
    let outcome = build(&[], "whoami; id -un; id -gn; cd ~ && pwd", &[]);
    assert_eq!(outcome.text(), "job\njob\njob\n/job");
}

#[test]
fn thirty_two_bit_programs_run_where_they_are_allowed() {
    need(&["gcc", "as", "ld"]);
    // No 32-bit C library is needed for: exit(7).
    let source = ".globl _start\n_start: movl $1, %eax\nmovl $7, %ebx\nint $0x80\n";
    let script = "as --32 a.s -o a.o && ld -m elf_i386 a.o -o a; ./a; echo $?";
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("a.s"), source).expect("a source file");
    let run = |abi32: bool| {
        let run = program(["/bin/sh", "-c", script]).opt("--in", folder.path());
        if abi32 { run.flag("--abi32") } else { run }.run()
    };
    assert_eq!(run(true).expect_clean().text(), "7");
    let refused = run(false);
    assert!(refused.text().ends_with("159"), "killed by SIGSYS: {refused}");
}

#[test]
fn client_written_from_the_documentation_runs_a_job() {
    need(&["python3", "make", "cc"]);
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("/usr/bin/python3")
        .arg(folder.join("client.py"))
        .arg(e2e::autodriver())
        .arg(folder.join("jobs/c-score"))
        .output()
        .expect("python3");
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{complaint}");
    assert_eq!(text.lines().last(), Some(r#"{"scores": {"p1": 10}}"#), "{text}{complaint}");
}
