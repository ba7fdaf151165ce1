//! opm: a declarative init and supervisor. The floors, from the ground up:
//!
//! ```text
//! 0 model       the nouns; Observed::apply is the only writer of facts
//! 1 config      YAML -> (specs, diagnostics)
//!   plan        reconcile(desired, observed, now) -> steps and the next time to look
//!   protocol    bytes <-> messages, no socket
//! 2 system      trait System and Linux: processes, ledger, store; all `unsafe` is here
//! 3 supervisor  take events -> apply -> reconcile what they touched -> carry out
//! 4 daemon      the poll loop, signals, sockets; keeper: the log keeper's own loop
//!   simulate    the supervisor over an imagined system: what would happen
//! 5 cli         arguments, output, exit codes
//! ```
//!
//! A floor uses the floors below it and nothing else; `tests/tidy.rs` holds them to it. The library
//! exists for the binary, the tests and the fuzz targets: it is no stable interface.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod keeper;
pub mod logs;
pub mod model;
pub mod plan;
pub mod protocol;
pub mod simulate;
pub mod supervisor;
pub mod system;
