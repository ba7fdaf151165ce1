//! Names of units and instances: parsed once, ordered, safe as a file name.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest unit name or instance label, in bytes. Two of them and a suffix still fit a file name.
pub const NAME_BYTES_MAX: usize = 64;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameError {
    /// There is no text.
    Empty,
    /// The text has more than [`NAME_BYTES_MAX`] bytes.
    TooLong(usize),
    /// The text begins with a character that may only follow.
    BadStart(char),
    /// The text holds a character that a name may not have.
    BadChar(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a name needs at least one character"),
            Self::TooLong(n) => write!(f, "{n} bytes; a name has at most {NAME_BYTES_MAX}"),
            Self::BadStart(c) => {
                write!(f, "begins with {c:?}; a name begins with a letter, a digit or `_`")
            }
            Self::BadChar(c) => {
                write!(f, "holds {c:?}; a name holds letters, digits, `_`, `-` and `.`")
            }
        }
    }
}

impl std::error::Error for NameError {}

/// Checks the grammar that unit names and instance labels share.
fn check(text: &str) -> Result<(), NameError> {
    let first = text.chars().next().ok_or(NameError::Empty)?;
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if !first.is_ascii_alphanumeric() && first != '_' {
        return Err(NameError::BadStart(first));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !"_-.".contains(*c)) {
        Some(c) => Err(NameError::BadChar(c)),
        None => Ok(()),
    }
}

/// The name of a unit.
///
/// Every event looks for units by their names in a handful of maps, and every look passes over dozens of them:
/// how a name begins stands in the map itself, where it costs no cache miss.
#[derive(Clone)]
pub struct UnitName {
    /// The first bytes, from the most significant on, and zeros where there are no more.
    head: (u64, u64),
    text: Arc<Text>,
}

/// All of a name, behind one word.
struct Text(Box<str>);

impl UnitName {
    /// Takes a text as a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text)?;
        let word = |at: usize| {
            let bytes = text.bytes().skip(at).chain(std::iter::repeat(0)).take(size_of::<u64>());
            bytes.fold(0, |word, byte| word << 8 | u64::from(byte))
        };
        let head = (word(0), word(size_of::<u64>()));
        Ok(Self { head, text: Arc::new(Text(text.into())) })
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.text.0
    }
}

impl Ord for UnitName {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // No name holds a zero: those that differ do so in their heads, or go on behind them.
        let is_whole = || self.head.1.trailing_zeros() >= u8::BITS;
        match self.head.cmp(&other.head) {
            Ordering::Equal if is_whole() || Arc::ptr_eq(&self.text, &other.text) => {
                Ordering::Equal
            }
            Ordering::Equal => self.text.0.cmp(&other.text.0),
            differs @ (Ordering::Less | Ordering::Greater) => differs,
        }
    }
}

impl PartialOrd for UnitName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for UnitName {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for UnitName {}

/// One instance of a unit: `web`, or `web@eu` where the unit asks for several.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceId {
    /// The unit it is an instance of.
    pub unit: UnitName,
    /// Which one, where the unit has several.
    label: Option<Arc<str>>,
}

impl InstanceId {
    /// The only instance of a unit.
    pub fn single(unit: &UnitName) -> Self {
        Self { unit: unit.clone(), label: None }
    }

    /// One of several instances.
    pub fn labelled(unit: &UnitName, label: &str) -> Result<Self, NameError> {
        check(label)?;
        Ok(Self { unit: unit.clone(), label: Some(label.into()) })
    }

    /// The instance's label; the only instance of a unit has none.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Takes `web` or `web@eu`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.split_once('@') {
            None => Ok(Self { unit: UnitName::parse(text)?, label: None }),
            Some((unit, label)) => Self::labelled(&UnitName::parse(unit)?, label),
        }
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            None => f.pad(self.unit.as_str()),
            Some(label) => f.pad(&format!("{}@{label}", self.unit)),
        }
    }
}

/// Both names print, compare and travel as their text.
macro_rules! as_text {
    ($type:ty) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`{self}`")
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
as_text!(UnitName);
as_text!(InstanceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_safe_as_file_names_are_taken() {
        for text in ["web", "php8.2-fpm", "_x", "9p", &"n".repeat(NAME_BYTES_MAX)] {
            assert_eq!(UnitName::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        for (text, error) in [
            ("", NameError::Empty),
            (".hidden", NameError::BadStart('.')),
            ("-f", NameError::BadStart('-')),
            ("a/b", NameError::BadChar('/')),
            ("a@b", NameError::BadChar('@')),
            ("wörk", NameError::BadChar('ö')),
            (long.as_str(), NameError::TooLong(NAME_BYTES_MAX + 1)),
        ] {
            assert_eq!(UnitName::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn names_are_in_the_order_of_their_bytes() {
        let long = ["_234567890123456", "_2345678901234567", "_23456789012345678"];
        let mut texts = vec!["Z", "a", "a-", "a.", "a0", "aa", "ab", "b", "12345678", "123456789"];
        texts.extend(long);
        texts.extend(["_2345678901234567x", "_2345678901234567-", "_23456789012345", "_2"]);
        texts.sort_unstable();
        let names: Vec<_> = texts.iter().map(|text| UnitName::parse(text).unwrap()).collect();
        for (i, name) in names.iter().enumerate() {
            for (j, text) in texts.iter().enumerate() {
                let other = UnitName::parse(text).unwrap();
                assert_eq!(name.cmp(&other), i.cmp(&j), "{name} {other}");
                assert_eq!(*name == other, i == j, "{name} {other}");
            }
            assert_eq!(name.cmp(&name.clone()), Ordering::Equal);
        }
    }

    #[test]
    fn an_instance_is_written_as_unit_and_label() {
        for text in ["web", "web@1", "web@eu-west"] {
            let id = InstanceId::parse(text).unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(serde_json::from_str::<InstanceId>(&format!("\"{text}\"")).unwrap(), id);
        }
        assert!(InstanceId::parse("web@").is_err());
        assert!(InstanceId::parse("web@a@b").is_err());
    }
}
