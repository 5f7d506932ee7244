//! What the tests on a real broker share. Each test binary uses its own part of it.
#![allow(dead_code)]

pub mod broker;
