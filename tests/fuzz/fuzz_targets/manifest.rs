//! An object's manifest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::hostile::manifest(data));
