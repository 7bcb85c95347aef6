//! `Cache-Control` fields.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edge_node::cache::policy::directives::fuzz_cache_control(data));
