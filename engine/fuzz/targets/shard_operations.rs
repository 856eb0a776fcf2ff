//! A host of two shards by lists of operations; `engine/tests/operations` says which, and what must hold.
#![no_main]

#[path = "../../tests/host/mod.rs"]
mod host;
#[path = "../../tests/operations/mod.rs"]
mod operations;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|operations: &[u8]| operations::run(operations));
