//! What the benchmarks share that measure the whole daemon.

/// Arguments that cargo adds.
#[derive(clap::Args)]
pub struct Cargo {
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(hide = true)]
    name: Option<String>,
}

impl Cargo {
    /// `cargo bench NAME` runs every benchmark with NAME and leaves it to each whether it is meant.
    pub fn means(&self, benchmark: &str) -> bool {
        self.name.as_ref().is_none_or(|name| benchmark.contains(name.as_str()))
    }
}

/// Whether to measure. `cargo test --all-targets` and `cargo bench -- --test` run benchmarks to see that they start, with
/// any flags.
pub fn is_to_measure(benchmark: &str) -> bool {
    let has = |flag: &str| std::env::args().skip(1).any(|argument| argument == flag);
    let measures = has("--bench") && !has("--test");
    if !measures {
        println!("{benchmark}: measured by `cargo bench` only");
    }
    measures
}
