//! A peer's answer about its holdings.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::hostile::digest(data));
