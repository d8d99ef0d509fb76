//! What the fuzz targets share: a place for archives with sentinels around it, guests made of bytes, and
//! models that say independently of the code under test what it must accept.
#![forbid(unsafe_code)]

pub mod tree;
pub mod scratch;
pub mod tar_form;
pub mod guest;
pub mod report;
pub mod round_trip;
