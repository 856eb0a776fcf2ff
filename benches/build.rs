//! Tells the program which compiler made it, with which flags: counts of instructions are only comparable where both are equal.

use std::env;
use std::process::Command;

fn main() {
    // A compiler that was exchanged runs this again anyway.
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("the compiler that compiles this can be run");
    let version = String::from_utf8_lossy(&version.stdout);
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\u{1f}', " ");
    println!("cargo::rustc-env=COMPILER={}", format!("{} {flags}", version.trim()).trim());
}
