//! The command line of `vmm_local`; nothing else.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    vmm_local::cli::main()
}
