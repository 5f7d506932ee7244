#![forbid(unsafe_code)]
pub mod bce;
