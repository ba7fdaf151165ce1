#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| opm_fuzz::reader(bytes));
