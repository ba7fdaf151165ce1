//! Texts of a unit file in which `${…}` stands for something that is known only at the start.
//!
//! Only `${…}` is special: `$`, `%`, quotes and back-slashes are themselves, and `$${` writes a
//! literal `${`. A template is checked when it is read, so that filling it in cannot fail.

use std::ffi::{OsStr, OsString};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a `${…}` may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `${env:NAME}` or `${env:NAME:-default}`: from the supervisor's environment at its start.
    Env {
        /// The variable's name.
        name: String,
        /// What stands for it where it is not set.
        default: String,
    },
    /// `${unit.name}`.
    UnitName,
    /// `${unit.dir}`: the directory of the unit's file.
    UnitDir,
    /// `${instance}`: the instance's label; `1` for the only one.
    Instance,
    /// `${instance.index}`: the instance's place in the unit's list, from 1.
    InstanceIndex,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// A checked text with places to fill in.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    raw: Box<str>,
    /// None where the text stands for itself, as most do.
    parts: Box<[Part]>,
}

/// Why a text is not a template: what is wrong, and the byte at which the `${` begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// Byte offset of the `${` in the text.
    pub at: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for TemplateError {}

impl Template {
    /// Reads a text, checking every `${…}` in it.
    pub fn parse(raw: &str) -> Result<Self, TemplateError> {
        Self::read(raw, Strictness::New)
    }

    fn read(raw: &str, strictness: Strictness) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(rest) = raw.get(at..).filter(|rest| !rest.is_empty()) {
            if rest.starts_with("$${") {
                literal.push_str("${");
                at += 3;
            } else if let Some(body) = rest.strip_prefix("${") {
                let Some((inside, _)) = body.split_once('}') else {
                    return Err(TemplateError {
                        at,
                        problem: "`${` without `}`; write `$${` for a literal `${`".to_owned(),
                    });
                };
                let variable = variable(inside, strictness)
                    .map_err(|problem| TemplateError { at, problem })?;
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Variable(variable));
                at += inside.len() + 3;
            } else {
                let length = rest.chars().next().map_or(1, char::len_utf8);
                literal.push_str(rest.get(..length).unwrap_or_default());
                at += length;
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self::of(raw.to_owned(), parts))
    }

    fn of(raw: String, mut parts: Vec<Part>) -> Self {
        parts.retain(|part| !matches!(part, Part::Literal(text) if *text == raw));
        Self { raw: raw.into(), parts: parts.into() }
    }

    /// A text in which nothing is special.
    pub fn literal(text: &str) -> Self {
        Self::of(text.replace("${", "$${"), vec![Part::Literal(text.to_owned())])
    }

    /// The same path from a directory on. One that begins with a variable may be a whole path, and
    /// stays as it is.
    #[must_use]
    pub fn from_dir(self, dir: &str) -> Self {
        let is_relative = match self.parts.first() {
            Some(Part::Literal(text)) => !text.starts_with('/'),
            Some(Part::Variable(_)) => false,
            None => !self.raw.is_empty() && !self.raw.starts_with('/'),
        };
        if !is_relative {
            return self;
        }
        let raw = format!("{}/{}", Self::literal(dir.trim_end_matches('/')).raw, self.raw);
        Self::read(&raw, Strictness::Saved).unwrap_or(self)
    }

    /// The text as it was written.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The text with every place filled in by `value`.
    pub fn fill<'a>(&'a self, value: &dyn Fn(&'a Variable) -> OsString) -> OsString {
        if self.parts.is_empty() {
            return OsString::from(&*self.raw);
        }
        let mut text = OsString::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push(OsStr::new(literal)),
                Part::Variable(variable) => text.push(value(variable)),
            }
        }
        text
    }
}

/// Whether a text is new, or was accepted before, perhaps by an opm that let more pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strictness {
    New,
    Saved,
}

/// Longest piece of a wrong `${…}` that an error repeats, in characters; the rest is cut off.
const REPEATED_CHARS_MAX: usize = 60;

/// The variable between `${` and `}`.
fn variable(inside: &str, strictness: Strictness) -> Result<Variable, String> {
    let shown = match inside.char_indices().nth(REPEATED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", inside.get(..end).unwrap_or_default()),
        None => inside.to_owned(),
    };
    if let Some(rest) = inside.strip_prefix("env:") {
        let (name, default) = rest.split_once(":-").unwrap_or((rest, ""));
        let is_odd = |c: char| "=:$?+-{".contains(c) || c.is_whitespace() || c.is_control();
        if strictness == Strictness::Saved {
            return Ok(Variable::Env { name: name.to_owned(), default: default.to_owned() });
        }
        if name.is_empty() || name.contains(is_odd) {
            return Err(format!(
                "`${{{shown}}}` names no environment variable; write env:NAME or env:NAME:-default"
            ));
        }
        if default.contains("${") {
            return Err(format!("`${{{shown}}}`: a default is text, with no `${{` in it"));
        }
        return Ok(Variable::Env { name: name.to_owned(), default: default.to_owned() });
    }
    match inside {
        "unit.name" => Ok(Variable::UnitName),
        "unit.dir" => Ok(Variable::UnitDir),
        "instance" => Ok(Variable::Instance),
        "instance.index" => Ok(Variable::InstanceIndex),
        "unit.state_dir" | "unit.runtime_dir" | "unit.logs_dir" | "unit.cache_dir" => {
            Err(format!("`${{{inside}}}` is not supported yet"))
        }
        _ => Err(format!(
            "unknown variable `${{{shown}}}`; known are env:NAME, env:NAME:-default, unit.name, \
             unit.dir, instance, instance.index (write `$${{` for a literal `${{`)"
        )),
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.raw)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.raw)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = String::deserialize(deserializer)?;
        Self::read(&raw, Strictness::Saved).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(raw: &str) -> String {
        let template = Template::parse(raw).unwrap();
        template.fill(&|variable| format!("<{variable:?}>").into()).into_string().unwrap()
    }

    #[test]
    fn only_dollar_brace_is_special() {
        for raw in ["a%2Bb%%c %(x)s $HOME `id` \\n 'q' \"d\" #h", "$", "$$", "{}", "ü$"] {
            assert_eq!(filled(raw), raw);
        }
        assert_eq!(filled("$${Y} $$${Z}"), "${Y} $${Z}");
        assert_eq!(Template::literal("a ${x} $").fill(&|_| OsString::new()), "a ${x} $");
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(filled("p=${unit.name}-${instance}!"), "p=<UnitName>-<Instance>!");
        assert_eq!(
            filled("${env:A}${env:B:-x:-y}"),
            "<Env { name: \"A\", default: \"\" }><Env { name: \"B\", default: \"x:-y\" }>"
        );
    }

    #[test]
    fn a_wrong_variable_is_refused_where_it_stands() {
        for (raw, at) in [("ab${", 2), ("${x}", 0), ("ü ${env:}", 3), ("${unit.state_dir}", 0)] {
            assert_eq!(Template::parse(raw).unwrap_err().at, at, "{raw}");
        }
        // What other languages have in such places is none here.
        for inside in ["A-b", "A:+b", "A:?b", "A b", "$A", "A:-${env:B", "A=b", ":-b", "A\n"] {
            let raw = format!("${{env:{inside}}}");
            assert!(Template::parse(&raw).is_err(), "{inside}");
            // What was saved before is what it was.
            let json = serde_json::to_string(&raw).unwrap();
            assert_eq!(serde_json::from_str::<Template>(&json).unwrap().raw(), raw);
        }
    }

    #[test]
    fn a_relative_path_starts_at_a_directory() {
        for (raw, path) in [
            ("data", "/u/${x}/data"),
            ("./a", "/u/${x}/./a"),
            ("/data", "/data"),
            ("$${a}", "/u/${x}/${a}"),
            ("${env:HOME}/a", "<Env { name: \"HOME\", default: \"\" }>/a"),
        ] {
            let template = Template::parse(raw).unwrap().from_dir("/u/${x}");
            let filled = template.fill(&|variable| format!("<{variable:?}>").into());
            assert_eq!(filled, path, "{raw}");
        }
    }

    #[test]
    fn a_template_travels_as_it_was_written() {
        for raw in ["plain", "$${x} ${instance}"] {
            let template = Template::parse(raw).unwrap();
            let json = serde_json::to_string(&template).unwrap();
            assert_eq!(serde_json::from_str::<Template>(&json).unwrap(), template);
        }
        for text in ["", "a ${x} $", "$${"] {
            let literal = Template::literal(text);
            assert_eq!(Template::parse(literal.raw()), Ok(literal), "{text:?}");
        }
    }
}
