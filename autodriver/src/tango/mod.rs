//! The Tango form.

#[allow(dead_code, reason = "the form that reads them follows")]
pub mod arguments;

#[cfg(test)]
mod against_argp;
