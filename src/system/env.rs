//! Environments: the supervisor's own as it was at its start, and env files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::model::Gather;

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
    all.into_iter().filter(|(name, _)| !OWN.iter().any(|own| *name == **own)).gather()
}

/// The variables of an env file: `NAME=value` lines, `#` comments, an optional `export`, and values
/// in single quotes (as they are) or double quotes (`\"`, `\\`, `\$`, `\n` known).
///
/// # Errors
/// What is wrong with the first line that is none of these; nothing of what stands there, which may be
/// secret.
pub(super) fn parse_file(bytes: &[u8]) -> Result<Environment, String> {
    let mut found = Environment::new();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let (name, value) = variable(line).map_err(|what| format!("line {number} {what}"))?;
        found.insert(OsStr::from_bytes(name).to_owned(), OsString::from_vec(value));
    }
    Ok(found)
}

/// The name and the value on a line.
fn variable(line: &[u8]) -> Result<(&[u8], Vec<u8>), &'static str> {
    const NONE: &str = "is no `NAME=value`";
    let exported = line
        .strip_prefix(b"export")
        .filter(|rest| rest.starts_with(b" ") || rest.starts_with(b"\t"));
    let line = exported.unwrap_or(line);
    let equals = line.iter().position(|byte| *byte == b'=').ok_or(NONE)?;
    let (name, value) = line.split_at_checked(equals).ok_or(NONE)?;
    let name = name.trim_ascii();
    if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
        return Err(NONE);
    }
    if value.contains(&0) {
        return Err("holds a NUL byte, which no program can be given");
    }
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    let value =
        unquote(value).ok_or("has a quote that is not closed, or text behind one that is")?;
    Ok((name, value))
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
        for (text, what) in [
            (&b"A=1\nnonsense"[..], "line 2 is no `NAME=value`"),
            (b"=x", "line 1 is no `NAME=value`"),
            (b"A B=x", "line 1 is no `NAME=value`"),
            (b"A\xc3\xa4=x", "line 1 is no `NAME=value`"),
            (b"A=\"x", "line 1 has a quote that is not closed, or text behind one that is"),
            (b"A=\"x\" # y", "line 1 has a quote that is not closed, or text behind one that is"),
            (b"SECRET=x\0y", "line 1 holds a NUL byte, which no program can be given"),
        ] {
            assert_eq!(parse_file(text), Err(what.to_owned()));
        }
    }

    #[test]
    fn what_editors_put_before_a_file_or_a_name_is_no_part_of_the_name() {
        let found = parse_file(b"\xef\xbb\xbfA=1\nexport\tB=2\nexported=3\n").unwrap();
        let names: Vec<_> = found.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["A", "B", "exported"]);
    }
}
