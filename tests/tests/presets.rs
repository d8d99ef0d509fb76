//! Real programs in what vmm-local/presets gives to each language, and in less.

use std::fs;
use std::path::Path;

use autodriver_protocol::Cause;
use e2e::{program, Outcome};

/// Runs a script over one file with the preset of that name, and with these options instead of its own.
fn run(preset: &str, file: (&str, &str), script: &str, options: &[(&str, &str)]) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(file.0), file.1).expect("a source file");
    let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm-local/presets");
    let job = program(["/bin/sh", "-ec", script]).opt("--job", presets.join(format!("{preset}.json")));
    let job = job.opt("--in", folder.path()).opt("--wall", "250s");
    options.iter().fold(job, |job, (name, value)| job.opt(name, value)).run().expect_restored()
}

#[track_caller]
fn expect_last_line(outcome: &Outcome, line: &str) {
    assert_eq!(outcome.cause(), Cause::Exited, "{outcome}");
    assert_eq!(outcome.text().lines().last(), Some(line), "{outcome}");
}

#[track_caller]
fn expect_no_success(outcome: &Outcome) {
    assert!(outcome.status != 0, "{outcome}");
}

#[test]
fn c_has_what_a_compiler_and_a_deep_recursion_need() {
    let source = "#include <iostream>\n#include <regex>\n#include <thread>\n#include <vector>\n\
        int deep(int n) { volatile int here = n; return n ? deep(n - 1) + (here == n) : 0; }\n\
        int main() { std::vector<std::thread> all; for (int i = 0; i < 40; i++) all.emplace_back([] { \
        std::this_thread::sleep_for(std::chrono::milliseconds(300)); });\n\
        for (auto &one : all) one.join();\n\
        std::cout << std::regex_match(\"aab\", std::regex(\"a*b\")) << ' ' << deep(1000000) << std::endl; }\n";
    let script = "g++ -O1 -fno-optimize-sibling-calls -pthread -o a a.cc && ./a";
    expect_last_line(&run("c", ("a.cc", source), script, &[]), "1 1000000");
    expect_no_success(&run("c", ("a.cc", source), script, &[("--stack", "1M")]));
    expect_no_success(&run("c", ("a.cc", source), script, &[("--memory", "32M")]));
    expect_no_success(&run("c", ("a.cc", source), script, &[("--pids", "8")]));
}

#[test]
fn java_has_what_a_machine_and_its_threads_need() {
    let source = "import java.util.*; public class A { public static void main(String[] a) throws Exception {\n\
        List<Thread> all = new ArrayList<>(); List<byte[]> kept = Collections.synchronizedList(new ArrayList<>());\n\
        for (int i = 0; i < 100; i++) { Thread t = new Thread(() -> { kept.add(new byte[1 << 21]); \
        try { Thread.sleep(500); } catch (InterruptedException e) { } }); t.start(); all.add(t); }\n\
        for (Thread t : all) t.join(); System.out.println(kept.size()); } }\n";
    let script = "javac A.java && java A";
    expect_last_line(&run("java", ("A.java", source), script, &[]), "100");
    expect_no_success(&run("java", ("A.java", source), script, &[("--pids", "64")]));
    expect_no_success(&run("java", ("A.java", source), script, &[("--memory", "128M")]));
}

#[test]
fn python_has_what_a_pool_and_a_deep_recursion_need() {
    let source = "import multiprocessing, sys, threading\n\
        def square(n): return n * n\n\
        def deep(n): return deep(n - 1) + 1 if n else 0\n\
        if __name__ == '__main__':\n\
        \x20   with multiprocessing.Pool(16) as pool: total = sum(pool.map(square, range(10)))\n\
        \x20   sys.setrecursionlimit(200000)\n\
        \x20   kept = bytearray(1 << 28)\n\
        \x20   print(total, deep(100000), len(kept))\n";
    expect_last_line(&run("python", ("a.py", source), "python3 a.py", &[]), "285 100000 268435456");
    expect_no_success(&run("python", ("a.py", source), "timeout 20 python3 a.py", &[("--pids", "8")]));
    expect_no_success(&run("python", ("a.py", source), "python3 a.py", &[("--memory", "128M")]));
}
