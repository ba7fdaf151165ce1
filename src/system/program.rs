//! The file that a command runs, and why it cannot be run.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::launch::error;
use crate::model::{Stage, StartError};

/// Longest first line of a script that is looked at for its interpreter.
const SHEBANG_BYTES_MAX: usize = 256;

/// The file that a command's name stands for: a name with a slash is relative to the working
/// directory, another is looked up on `search`, the PATH that the child will have.
pub(super) fn resolve(name: &OsStr, search: &OsStr, dir: &Path) -> Result<PathBuf, StartError> {
    if name.as_bytes().contains(&b'/') {
        return Ok(dir.join(name));
    }
    let mut refused = None;
    for place in std::env::split_paths(search) {
        let candidate = dir.join(place).join(name);
        match std::fs::metadata(&candidate) {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(metadata) if metadata.is_file() => refused = refused.or(Some(candidate)),
            Ok(_) | Err(_) => {}
        }
    }
    Err(match refused {
        Some(file) => error(Stage::Resolve, file.display(), "it is not executable"),
        None => error(
            Stage::Resolve,
            name.display(),
            format!("no such program on PATH ({})", search.display()),
        ),
    })
}

/// For a script that is there although exec says "no such file": it means the interpreter.
pub(super) fn missing_interpreter(path: &Path) -> Option<String> {
    let mut start = [0u8; SHEBANG_BYTES_MAX];
    let got = std::fs::File::open(path).ok()?.read(&mut start).ok()?;
    let line = start.get(..got)?.split(|byte| *byte == b'\n').next()?;
    let interpreter = line.strip_prefix(b"#!")?;
    let is_of_dos = interpreter.ends_with(b"\r");
    let interpreter = interpreter.trim_ascii().split(|byte| *byte == b' ').next()?;
    let interpreter = String::from_utf8_lossy(interpreter);
    if is_of_dos {
        return Some(format!(
            "its lines end as on DOS (CR LF), so that its interpreter would be `{interpreter}\\r`"
        ));
    }
    Some(format!("its interpreter `{interpreter}` does not exist"))
}

/// Whether anybody may run a file.
pub(super) fn is_executable(path: &Path) -> bool {
    // Of one that we may not look at nobody knows.
    std::fs::metadata(path).map_or(true, |file| file.permissions().mode() & 0o111 != 0)
}
