//! `Range` fields.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edge_node::deliver::range::fuzz_range(data));
