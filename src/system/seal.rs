//! Files that other versions of opm read: one line with a word, version, checksum and length, then
//! JSON. A file that is torn, cut off or overwritten is noticed.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the content. A higher one is refused: it was written by a newer opm.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes; 20,000 units of 4 KB fit.
pub(super) const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The bytes of a file.
pub(super) fn seal<T: Serialize>(magic: &str, value: &T) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(value).map_err(|error| error.to_string())?;
    let mut bytes =
        format!("{magic} {VERSION} {:016x} {}\n", checksum(&json), json.len()).into_bytes();
    bytes.extend(json);
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a file's bytes back; else says what is wrong with them.
pub(super) fn unseal<T: DeserializeOwned>(magic: &str, bytes: &[u8]) -> Result<T, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let (head, body) = bytes.split_at_checked(end).ok_or("it has no first line")?;
    let head = std::str::from_utf8(head).map_err(|_| "its first line is no text")?;
    let mut words = head.split(' ');
    if words.next() != Some(magic) {
        return Err("its first line is not opm's".to_owned());
    }
    let version: u32 = words.next().and_then(|w| w.parse().ok()).ok_or("it has no version")?;
    if version > VERSION {
        return Err(format!("it has version {version}, and this opm knows up to {VERSION}"));
    }
    let sum = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).ok_or("no checksum")?;
    let length: usize = words.next().and_then(|w| w.parse().ok()).ok_or("it has no length")?;
    let json = body.get(1..).and_then(|rest| rest.get(..length)).ok_or("it is cut off")?;
    if checksum(json) != sum {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// 64-bit FNV-1a: finds torn and overwritten files; it is no seal.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
