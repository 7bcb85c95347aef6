//! Targeted cache control: `CDN-Cache-Control` and `Surrogate-Control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edge_node::cache::policy::targeted::fuzz_targeted(data));
