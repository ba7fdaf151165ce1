//! The targets of `tests/fuzz/`, for the engine.

#[path = "../../tests/fuzz/mod.rs"]
mod targets;

pub use targets::*;
