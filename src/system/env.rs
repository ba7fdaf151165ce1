//! Environments: the supervisor's own as it was at its start, and env files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Variables of the supervisor that say something about the supervisor itself.
const OWN: [&str; 14] = [
    "OPM_RUN",
    "OPM_UNIT",
    "OPM_INSTANCE",
    "OPM_LOCK_FD",
    "OPM_RUN_LOCK_FD",
    "OPM_LISTEN_FD",
    "OPM_SOCKET_FDS",
    "OPM_NOTIFY_FDS",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// A set of variables: any bytes, in a fixed order.
pub type Environment = BTreeMap<OsString, OsString>;

/// What units inherit of the supervisor's environment.
pub(super) fn inheritable(all: Environment) -> Environment {
    all.into_iter().filter(|(name, _)| !OWN.iter().any(|own| *name == **own)).collect()
}

/// The variables of an env file: `NAME=value` lines, `#` comments, an optional `export`, and values
/// in single quotes (as they are) or double quotes (`\"`, `\\`, `\$`, `\n` known). Returns the
/// number of the first line that is none of these.
pub(super) fn parse_file(bytes: &[u8]) -> Result<Environment, usize> {
    let mut found = Environment::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let line = line.strip_prefix(b"export ").unwrap_or(line);
        let equals = line.iter().position(|byte| *byte == b'=').ok_or(number)?;
        let (name, value) = line.split_at_checked(equals).ok_or(number)?;
        let name = name.trim_ascii();
        if name.is_empty() || name.contains(&b' ') {
            return Err(number);
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let value = unquote(value).ok_or(number)?;
        found.insert(OsStr::from_bytes(name).to_owned(), OsString::from_vec(value));
    }
    Ok(found)
}

fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    match value {
        [b'\'', inside @ .., b'\''] => Some(inside.to_vec()),
        [b'"', inside @ .., b'"'] => {
            let mut plain = Vec::with_capacity(inside.len());
            let mut bytes = inside.iter();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\\' => match bytes.next()? {
                        b'n' => plain.push(b'\n'),
                        known @ (b'"' | b'\\' | b'$' | b'`') => plain.push(*known),
                        other => plain.extend([b'\\', *other]),
                    },
                    other => plain.push(*other),
                }
            }
            Some(plain)
        }
        [b'\'' | b'"', ..] => None,
        plain => Some(plain.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files_are_read() {
        let text = b"# c\n\nA=1\nexport B = two words \nC='$x \"y\"'\nD=\"a\\\"b\\n\\z\"\nE=\nF=a=b#c\nG=\xff\r\n";
        let found = parse_file(text).unwrap();
        for (name, value) in [
            ("A", &b"1"[..]),
            ("B", b"two words"),
            ("C", b"$x \"y\""),
            ("D", b"a\"b\n\\z"),
            ("E", b""),
            ("F", b"a=b#c"),
            ("G", b"\xff"),
        ] {
            assert_eq!(found[OsStr::new(name)].as_bytes(), value, "{name}");
        }
    }

    #[test]
    fn a_line_that_is_no_variable_is_named() {
        for (text, line) in [(&b"A=1\nnonsense"[..], 2), (b"=x", 1), (b"A=\"x", 1), (b"A B=x", 1)] {
            assert_eq!(parse_file(text), Err(line));
        }
    }
}
