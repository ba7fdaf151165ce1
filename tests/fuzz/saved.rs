//! The saved desired state.

use opm::model::Desired;
use opm::system::{decode_saved, encode_saved};

/// The bytes as a file, and as the JSON of a file that has the right first line. What is read is
/// written and read as the same; a file that is cut off or has a wrong byte is not read as another.
pub fn saved(bytes: &[u8]) {
    if let Ok(desired) = decode_saved(bytes) {
        check(&desired, bytes);
    }
    let mut file = format!("opm-desired 1 {:016x} {}\n", checksum(bytes), bytes.len()).into_bytes();
    file.extend_from_slice(bytes);
    if let Ok(desired) = decode_saved(&file) {
        check(&desired, &file);
    }
    for wrong in ["opm-desired 2 ", "opm-desired 18446744073709551616 ", "opm-desired -1 "] {
        let head = "opm-desired 1 ".len();
        let other = [wrong.as_bytes(), &file[head..]].concat();
        assert!(decode_saved(&other).is_err(), "read as version 1: {wrong}");
    }
}

fn check(desired: &Desired, file: &[u8]) {
    let again = encode_saved(desired).expect("what was read can be saved");
    assert_eq!(decode_saved(&again).as_ref(), Ok(desired));
    // The newline at the end is nobody's.
    let end = again.len() - 1;
    let place = super::number_of(file) % end;
    assert!(decode_saved(&again[..place]).is_err(), "cut off at {place}");
    let mut wrong = again;
    wrong[place] ^= 0x15;
    assert!(decode_saved(&wrong).map_or(true, |other| other == *desired), "byte {place}");
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = 14_695_981_039_346_656_037_u64;
    for byte in bytes {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211);
    }
    sum
}
