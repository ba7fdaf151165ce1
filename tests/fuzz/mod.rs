//! What must hold for any bytes that reach opm from outside, one function for each door: it returns,
//! or it panics and says what is wrong.
//!
//! Nothing here chooses the bytes. `tests/fuzz.rs` takes those of `fuzz/corpus/` and a few thousand
//! changes of them; the crate in `fuzz/` has a coverage-guided engine look for more.
//!
//! The models here are written from the manual and not from the code, and simpler than the code.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what is wrong ends the run"
)]
#![expect(unreachable_pub, reason = "the crate in fuzz/ uses them too")]

mod ledger;
mod output;
mod protocol;
mod saved;
mod small;
mod values;
mod yaml;

pub use ledger::ledger;
pub use output::{reader, split};
pub use protocol::protocol;
pub use saved::saved;
pub use small::{instruction, notify, stat};
pub use values::values;
pub use yaml::{check_said, yaml};

/// A function of this directory.
pub type Target = fn(&[u8]);

/// All of them, by the names of their directories in `fuzz/corpus/`.
pub const TARGETS: [(&str, Target); 10] = [
    ("yaml", yaml),
    ("protocol", protocol),
    ("ledger", ledger),
    ("saved", saved),
    ("stat", stat),
    ("split", split),
    ("reader", reader),
    ("instruction", instruction),
    ("notify", notify),
    ("values", values),
];

/// The rest of the bytes as text, for what takes nothing else; what is not UTF-8 is left out.
fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap(),
    }
}

/// A text as a YAML scalar that says exactly this, whatever is in it.
fn in_double_quotes(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // What YAML does not allow, or takes for a line's end or for nothing.
            c if c.is_control() || "\u{2028}\u{2029}\u{feff}\u{fffe}\u{ffff}".contains(c) => {
                quoted.extend(format!("\\u{:04x}", u32::from(c)).chars());
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// A number out of the bytes: the same bytes, the same number.
fn number_of(bytes: &[u8]) -> usize {
    let sum =
        bytes.iter().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    usize::try_from(sum >> 3).unwrap()
}
