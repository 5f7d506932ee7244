//! Shared by the benchmarks that measure the whole daemon.

use clap::Parser;

/// Arguments that cargo adds.
#[derive(clap::Args)]
pub struct Cargo {
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(hide = true)]
    name: Option<String>,
}

/// The options of a benchmark, if it should measure. `cargo test --all-targets` and `cargo bench -- --test` only check
/// that benchmarks start, with any flags; `cargo bench NAME` runs every one, and each checks whether it is meant.
pub fn options<T: Parser>(benchmark: &str, cargo: impl Fn(&T) -> &Cargo) -> Option<T> {
    let has = |flag: &str| std::env::args().skip(1).any(|argument| argument == flag);
    if !has("--bench") || has("--test") {
        println!("{benchmark}: measured by `cargo bench` only");
        return None;
    }
    let is_meant = |options: &T| cargo(options).name.as_ref().is_none_or(|name| benchmark.contains(name.as_str()));
    Some(T::parse()).filter(is_meant)
}
