//! Compiles the system-call policy into the BPF programs the sandbox loads.
//!
//! Done here, the policy stays a table people can read, a mistake in it stops
//! the build instead of a job, and starting a job spends no time on it.

#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on stdout")]

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

#[path = "src/sandbox/seccomp/bpf.rs"]
mod bpf;
#[path = "src/sandbox/seccomp/compile.rs"]
mod compile;
#[path = "src/sandbox/seccomp/table.rs"]
mod table;

use bpf::{ARCH_AARCH64, ARCH_I386, ARCH_X86_64};
use compile::{Abi, Instruction};
use table::Policy;

fn main() -> Result<(), Box<dyn Error>> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let (native_arch, native_table, i386_table) = match arch.as_str() {
        "x86_64" => (ARCH_X86_64, "numbers.x86_64", Some("numbers.i386")),
        "aarch64" => (ARCH_AARCH64, "numbers.aarch64", None),
        _ => return Err(format!("no table of system-call numbers for {arch}").into()),
    };
    let texts = [
        read("job.syscalls")?,
        read("init.syscalls")?,
        read("offline.syscalls")?,
        read("shared.syscalls")?,
        read(native_table)?,
        i386_table.map_or(Ok(String::new()), read)?,
    ];
    let job = table::parse_policy(&texts[0]).map_err(|error| format!("job.syscalls: {error}"))?;
    let init = table::parse_policy(&texts[1]).map_err(|error| format!("init.syscalls: {error}"))?;
    let offline = table::parse_policy(&texts[2]).map_err(|error| format!("offline.syscalls: {error}"))?;
    let shared = table::parse_policy(&texts[3]).map_err(|error| format!("shared.syscalls: {error}"))?;
    let native = Abi { arch: native_arch, numbers: &table::parse_numbers(&texts[4])? };
    let i386 = Abi { arch: ARCH_I386, numbers: &table::parse_numbers(&texts[5])? };

    let mut code = String::new();
    write_filter(&mut code, "INIT", &compile::compile(&init, &[&native]))?;
    write_filter(&mut code, "JOB", &compile::compile(&job, &[&native]))?;
    let both = if i386_table.is_some() { vec![&native, &i386] } else { vec![&native] };
    write_filter(&mut code, "JOB_ABI32", &compile::compile(&job, &both))?;
    write_filter(&mut code, "OFFLINE", &compile::compile(&offline, &both))?;
    write_filter(&mut code, "SHARED", &compile::compile(&shared, &both))?;
    writeln!(code, "const NATIVE: u32 = {};", native.arch)?;
    writeln!(code, "const DEFAULT: u32 = {};", job.default.code())?;
    write_rows(&mut code, "ROWS", &job, &native, &i386)?;
    write_rows(&mut code, "OFFLINE_ROWS", &offline, &native, &i386)?;
    write_rows(&mut code, "SHARED_ROWS", &shared, &native, &i386)?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("seccomp.rs");
    fs::write(out, code)?;
    Ok(())
}

/// Reads a file of the policy, and has cargo run this again when it changes.
fn read(name: &str) -> Result<String, Box<dyn Error>> {
    println!("cargo::rerun-if-changed=policy/{name}");
    let path = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("policy").join(name);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    // It parts the fields of a row for the program.
    if text.contains('\t') {
        return Err(format!("{}: a tab; write blanks", path.display()).into());
    }
    Ok(text)
}

/// `static NAME: [sock_filter; N] = [...];`
fn write_filter(code: &mut String, name: &str, program: &[Instruction]) -> std::fmt::Result {
    writeln!(code, "static {name}: [sock_filter; {}] = [", program.len())?;
    for Instruction { code: op, jt, jf, k } in program {
        writeln!(code, "    sock_filter {{ code: {op}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    writeln!(code, "];")
}

/// The rows of a policy, for `describe`: one text, which the program need not relocate each time that it starts,
/// as it would a table of strings.
fn write_rows(code: &mut String, name: &str, policy: &Policy, native: &Abi, i386: &Abi) -> std::fmt::Result {
    let number = |abi: &Abi, name| {
        let found = abi.numbers.iter().find(|(_, other)| *other == name);
        found.map_or(String::new(), |(number, _)| number.to_string())
    };
    let mut text = String::new();
    for row in &policy.rows {
        let numbers = [number(native, row.name), number(i386, row.name)].join("\t");
        writeln!(text, "{}\t{}\t{}\t{}\t{numbers}", row.name, row.answer, row.condition, row.reason)?;
    }
    writeln!(code, "const {name}: &str = {text:?};")
}
