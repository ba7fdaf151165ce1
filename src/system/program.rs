//! The file that a command runs, and why it cannot be run.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::launch::error;
use crate::model::{Stage, StartError};

/// Longest first line of a script that is looked at for its interpreter.
const SHEBANG_BYTES_MAX: usize = 256;
/// Longest name of a loader, as the kernel has it (`PATH_MAX`).
const LOADER_BYTES_MAX: u64 = 4096;

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

/// For a file that is there although exec says "no such file": it means the interpreter of a script, or the
/// loader that a program names, `elf(5)`.
pub(super) fn missing_interpreter(path: &Path) -> Option<String> {
    missing_interpreter_of_script(path).or_else(|| {
        let loader = missing_loader(path)?;
        Some(format!(
            "its loader `{loader}` does not exist, as where it was built for another C library"
        ))
    })
}

fn missing_interpreter_of_script(path: &Path) -> Option<String> {
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
    match missing_loader(Path::new(&*interpreter)) {
        Some(loader) => {
            Some(format!("the loader `{loader}` of its interpreter `{interpreter}` does not exist"))
        }
        None => Some(format!("its interpreter `{interpreter}` does not exist")),
    }
}

/// The loader that a program of this machine's byte order names, where there is no such file.
fn missing_loader(path: &Path) -> Option<String> {
    const LOADER: u64 = libc::PT_INTERP as u64;
    let file = std::fs::File::open(path).ok()?;
    let number = |at: u64, bytes: u64| {
        let mut number = [0u8; 8];
        let (low, high) = number.split_at_mut(usize::try_from(bytes).ok()?);
        file.read_exact_at(low, at).ok()?;
        if cfg!(target_endian = "big") {
            low.reverse();
        }
        high.fill(0);
        Some(u64::from_le_bytes(number))
    };
    let mut ident = [0u8; 6];
    file.read_exact_at(&mut ident, 0).ok()?;
    let order = if cfg!(target_endian = "big") { 2 } else { 1 };
    // Where the headers of segments begin, how long and how many they are; in one, where its bytes are,
    // and how many.
    let (begin, word, size, count, offset, length) = match ident {
        [0x7f, b'E', b'L', b'F', 1, found] if found == order => (28, 4, 42, 44, 4, 16),
        [0x7f, b'E', b'L', b'F', 2, found] if found == order => (32, 8, 54, 56, 8, 32),
        _ => return None,
    };
    let (begin, size, count) = (number(begin, word)?, number(size, 2)?, number(count, 2)?);
    let headers = (0..count).map(|n| begin.saturating_add(size.saturating_mul(n)));
    let header = { headers }.find(|at| number(*at, 4) == Some(LOADER))?;
    let length = number(header.saturating_add(length), word)?.min(LOADER_BYTES_MAX);
    let mut name = vec![0u8; usize::try_from(length).ok()?];
    file.read_exact_at(&mut name, number(header.saturating_add(offset), word)?).ok()?;
    let name = name.strip_suffix(b"\0").unwrap_or(&name);
    let loader = Path::new(OsStr::from_bytes(name));
    (!loader.exists()).then(|| loader.display().to_string())
}

/// Whether anybody may run a file.
pub(super) fn is_executable(path: &Path) -> bool {
    // Of one that we may not look at nobody knows.
    std::fs::metadata(path).map_or(true, |file| file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        // The smallest program of 64 bits that names a loader: a header, one segment, and the name.
        let name = b"/nib64/ld-linux.so\0";
        let word = |number: u64| number.to_ne_bytes();
        let half = |number: u16| number.to_ne_bytes();
        let mut program = vec![0u8; 120];
        let order = if cfg!(target_endian = "big") { 2 } else { 1 };
        program[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, order]);
        program[32..40].copy_from_slice(&word(64));
        program[54..56].copy_from_slice(&half(56));
        program[56..58].copy_from_slice(&half(1));
        program[64..68].copy_from_slice(&libc::PT_INTERP.to_ne_bytes());
        program[72..80].copy_from_slice(&word(120));
        program[96..104].copy_from_slice(&word(name.len() as u64));
        program.extend_from_slice(name);
        assert_eq!(
            missing_loader(Path::new("/proc/self/exe")),
            None,
            "ours is there, or there is none"
        );
        let (other, script) = (dir.path().join("other"), dir.path().join("script"));
        std::fs::write(&other, program).unwrap();
        std::fs::write(&script, format!("#!{}\n", other.display())).unwrap();
        let said = missing_interpreter(&other).unwrap();
        assert!(said.starts_with("its loader `/nib64/ld-linux"), "{said}");
        let said = missing_interpreter(&script).unwrap();
        assert!(said.starts_with("the loader `/nib64/ld-linux"), "{said}");
        std::fs::write(&script, "#!/no/such\n").unwrap();
        let said = missing_interpreter(&script).unwrap();
        assert_eq!(said, "its interpreter `/no/such` does not exist");
        std::fs::write(&script, "\x7fELF\x02\x01").unwrap();
        assert_eq!(missing_interpreter(&script), None);
    }
}
