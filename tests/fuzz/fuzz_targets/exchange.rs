//! The fields of a request and of its answer, through the whole policy.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edge_node::cache::policy::fuzz_exchange(data));
