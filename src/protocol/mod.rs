//! Varlink: JSON objects, each ended by a NUL byte, over a stream. Bytes to messages and back; no
//! socket here.
//!
//! <https://varlink.org/Method-Call>: a call has `method` and `parameters`, and may ask for several
//! replies (`more`) or none (`oneway`); replies come in the order of the calls.

mod codec;
mod interface;
mod message;

pub use codec::{Decoder, TooLong};
pub use interface::{CONTROL, CONTROL_DESCRIPTION, SERVICE, SERVICE_DESCRIPTION};
pub use message::{Call, Failure, FileText, FileToSend, Reply};

/// Longest call of a client without rights, in bytes. A list of 1,000 names fits.
pub const CALL_BYTES_MAX: usize = 1024 * 1024;
/// Longest call of a client that may apply units, in bytes: 20,000 files of 3 KB fit.
pub const APPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most bytes that wait for one client to read them; a slower one is dropped.
pub const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most clients at one time; further ones are turned away.
pub const CLIENTS_MAX: usize = 256;
