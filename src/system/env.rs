//! Environments: the supervisor's own as it was at its start, and env files.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, NulError, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use crate::model::Gather;

/// Variables by which the program of `opm reexec` has what the one before it had.
const HANDED_OVER: [&str; 9] = [
    "OPM_BEGINS_AGAIN",
    "OPM_LOCK_FD",
    "OPM_RUN_LOCK_FD",
    "OPM_LISTEN_FD",
    "OPM_SOCKET_FDS",
    "OPM_NOTIFY_FDS",
    "OPM_KEPT_RUN",
    "OPM_KEPT_STATE",
    "OPM_KEPT_LOGS",
];
/// Others that say something about the supervisor itself.
const OWN: [&str; 9] = [
    "OPM_RUN",
    "OPM_UNIT",
    "OPM_INSTANCE",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// Whether a variable hands something over to the next program of the same process.
pub fn is_handed_over(name: &OsStr) -> bool {
    HANDED_OVER.iter().any(|own| *name == **own)
}

/// A set of variables: any bytes, in a fixed order.
pub type Environment = BTreeMap<OsString, OsString>;

/// What units inherit of the supervisor's environment: by their names, variables as a program is given
/// them, so that a start needs no copies of those that it leaves as they are.
#[derive(Debug, Default)]
pub(super) struct Inherited(BTreeMap<OsString, Rc<CStr>>);

impl Inherited {
    /// Of all that the supervisor was given.
    pub(super) fn of(all: Environment) -> Self {
        let is_own = |name: &OsStr| is_handed_over(name) || OWN.iter().any(|own| *name == **own);
        let units = all.into_iter().filter(|(name, _)| !is_own(name));
        Self(
            units
                .filter_map(|(name, value)| {
                    // The kernel gave it to us as such a text.
                    let entry = entry(&name, &value).ok()?;
                    Some((name, entry))
                })
                .gather(),
        )
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &OsStr) -> Option<&OsStr> {
        let bytes = self.0.get(name)?.to_bytes();
        bytes.get(name.len() + 1..).map(OsStr::from_bytes)
    }
}

/// The variables of one run: those set for it, over those that it inherits.
#[derive(Debug)]
pub(super) struct Variables<'a> {
    inherited: Option<&'a Inherited>,
    /// Set for this run.
    pub(super) set: Environment,
}

impl<'a> Variables<'a> {
    /// All that units inherit.
    pub(super) fn inheriting(inherited: &'a Inherited) -> Self {
        Self { inherited: Some(inherited), set: Environment::new() }
    }

    /// These, and nothing else.
    pub(super) fn only(set: Environment) -> Self {
        Self { inherited: None, set }
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        let name = OsStr::new(name);
        let set = self.set.get(name).map(OsString::as_os_str);
        set.or_else(|| self.inherited?.get(name))
    }

    /// All of them as a program is given them, in the order of their names.
    ///
    /// # Errors
    /// A variable that holds a NUL byte.
    pub(super) fn entries(&self) -> Result<Vec<Rc<CStr>>, NulError> {
        let inherited = self.inherited.map(|inherited| &inherited.0);
        let mut entries = Vec::with_capacity(self.set.len() + inherited.map_or(0, BTreeMap::len));
        let mut set = self.set.iter().peekable();
        for (name, known) in inherited.into_iter().flatten() {
            while let Some((name, value)) = set.next_if(|(own, _)| *own < name) {
                entries.push(entry(name, value)?);
            }
            if set.peek().is_none_or(|(own, _)| *own != name) {
                entries.push(Rc::clone(known));
            }
        }
        for (name, value) in set {
            entries.push(entry(name, value)?);
        }
        Ok(entries)
    }
}

/// A variable as a program is given it: `NAME=value`.
fn entry(name: &OsStr, value: &OsStr) -> Result<Rc<CStr>, NulError> {
    // With room for the NUL.
    let mut text = Vec::with_capacity(name.len() + value.len() + 2);
    text.extend_from_slice(name.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text).map(Rc::from)
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

    fn environment(text: &str) -> Environment {
        parse_file(text.replace(' ', "\n").as_bytes()).unwrap()
    }

    #[test]
    fn what_is_set_comes_over_what_is_inherited_and_all_is_in_order() {
        let inherited = Inherited::of(environment("B=1 D=1 F= OPM_RUN=old LISTEN_FDS=3 X=a=b"));
        for (set, expected) in [
            ("", "B=1 D=1 F= X=a=b"),
            ("A=2 B=2 C=2 Z=2", "A=2 B=2 C=2 D=1 F= X=a=b Z=2"),
            ("X=2 Y= OPM_RUN=new", "B=1 D=1 F= OPM_RUN=new X=2 Y="),
            ("B=2 D=2 F=2 X=2", "B=2 D=2 F=2 X=2"),
        ] {
            let mut variables = Variables::inheriting(&inherited);
            variables.set = environment(set);
            let entries = variables.entries().unwrap();
            let texts: Vec<_> = entries.iter().map(|entry| entry.to_str().unwrap()).collect();
            assert_eq!(texts.join(" "), expected);
            for entry in &texts {
                let (name, value) = entry.split_once('=').unwrap();
                assert_eq!(variables.get(name), Some(OsStr::new(value)), "{name}");
            }
            assert_eq!(variables.get("LISTEN_FDS"), None, "{set}");
            let alone = Variables::only(environment(set));
            assert_eq!(alone.entries().unwrap().len(), alone.set.len());
        }
        let mut nul = Variables::inheriting(&inherited);
        nul.set.insert("N".into(), "a\0b".into());
        assert!(nul.entries().is_err());
    }

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
