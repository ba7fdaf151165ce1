//! Signals: names and numbers in one table.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The first real-time signal a program may use (`SIGRTMIN` of glibc on Linux).
const RT_MIN: u8 = 34;
/// The last real-time signal.
const RT_MAX: u8 = 64;

/// The numbers are those of x86, arm and risc-v Linux, signal(7).
const TABLE: [(&str, u8); 30] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("PWR", 30),
    ("SYS", 31),
];

/// A signal that exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signal(u8);

impl Signal {
    /// Ask to end.
    pub const TERM: Self = Self(15);
    /// End now; cannot be caught.
    pub const KILL: Self = Self(9);
    /// Go on after a stop.
    pub const CONT: Self = Self(18);
    /// Hang-up; by custom: read your configuration again.
    pub const HUP: Self = Self(1);

    /// The signal with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (1..=RT_MAX).contains(&number).then_some(Self(number))
    }

    /// The signal's number.
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    /// Reads `TERM`, `SIGTERM`, `term`, `15` or `RTMIN+3`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return Self::from_number(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = TABLE.iter().find(|(known, _)| *known == name) {
            return Some(Self(*number));
        }
        let number = match name {
            "RTMIN" => RT_MIN,
            "RTMAX" => RT_MAX,
            _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
                (Some(up), _) => RT_MIN.checked_add(up.parse().ok()?)?,
                (_, Some(down)) => RT_MAX.checked_sub(down.parse().ok()?)?,
                (None, None) => return None,
            },
        };
        (RT_MIN..=RT_MAX).contains(&number).then_some(Self(number))
    }

    /// All names that [`Signal::parse`] knows, for suggestions.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TABLE.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 >= RT_MIN => write!(f, "SIGRTMIN+{}", self.0 - RT_MIN),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i32::deserialize(deserializer)?;
        Self::from_number(number).ok_or_else(|| serde::de::Error::custom("no such signal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_reads_back_as_it_prints() {
        for number in (1..=31).filter(|n| *n != 29).chain(34..=64) {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(Signal::parse(&signal.to_string()), Some(signal), "{number}");
            assert_eq!(Signal::parse(&number.to_string()), Some(signal), "{number}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "SIG", "FOO", "0", "65", "-1", "RTMIN+31", "RTMAX-31", "SIGSIGTERM"] {
            assert_eq!(Signal::parse(text), None, "{text}");
        }
    }
}
