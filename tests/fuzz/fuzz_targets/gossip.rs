//! Datagrams, sealed or not.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::hostile::gossip(data));
