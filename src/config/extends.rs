//! Which unit extends which: unknown ones, loops, and chains that are too long.

use std::collections::{BTreeMap, BTreeSet};

use super::compose::Document;
use super::decode;
use super::diagnostic::quoted;
use super::source::{At, Sink};
use super::suggest;
use super::yaml::Value;
use crate::model::UnitName;

/// Most units of which one extends the next. Where a value comes from has to be seen by people; those
/// that are farther are not read.
pub const EXTENDS_MAX: usize = 16;

/// Most places told of a loop.
const LOOP_PLACES_MAX: usize = 12;

/// Most unknown names for which the nearest one is looked for; each looks at all names.
const SUGGESTED_MAX: usize = 100;

/// The unit that another one extends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    /// Its number.
    pub(super) number: usize,
    /// Where the other one says so.
    pub(super) at: At,
}

/// Which units there are.
pub(super) struct Known<'a> {
    /// The units of this source, by name.
    pub(super) names: &'a BTreeMap<String, usize>,
    /// Names that are declared in a way that could not be read.
    pub(super) unread: &'a BTreeSet<String>,
    /// Units of other sources.
    pub(super) others: &'a BTreeMap<UnitName, String>,
}

/// What is extended by whom, of all units by number.
#[derive(Debug)]
pub(super) struct Bases {
    bases: Vec<Option<Base>>,
    standings: Vec<Footing>,
}

/// What a unit stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Footing {
    /// Not known yet.
    Unseen,
    /// On what is not there, goes round, or is too high.
    Broken,
    /// On so many units.
    On(usize),
}

/// Where the way from a unit to those that it extends ends.
enum End {
    /// At a unit of which it is known what it stands on.
    Known(Footing),
    /// At a unit that was on the way already.
    Loop(usize),
}

impl Bases {
    /// Finds them, and tells of every mistake.
    pub(super) fn find(documents: &[Document], known: &Known<'_>, sink: &mut Sink<'_>) -> Self {
        let mut found = Self { bases: Vec::new(), standings: Vec::new() };
        let mut suggested = 0usize;
        for document in documents {
            let said = extended(document);
            let base = said.and_then(|(name, at)| {
                let number = known.names.get(name).copied();
                Some(Base { number: number?, at })
            });
            if let (Some((name, at)), None) = (said, base)
                && !known.unread.contains(name)
            {
                suggested = suggested.saturating_add(1);
                unknown(document, name, at, known, suggested <= SUGGESTED_MAX, sink);
            }
            found.standings.push(match (said, base) {
                (None, _) => Footing::On(0),
                (Some(_), None) => Footing::Broken,
                (Some(_), Some(_)) => Footing::Unseen,
            });
            found.bases.push(base);
        }
        for number in 0..documents.len() {
            found.walk(number, documents, sink);
        }
        found
    }

    fn standing(&self, number: usize) -> Footing {
        self.standings.get(number).copied().unwrap_or(Footing::Broken)
    }

    /// Follows a unit down to one whose standing is known, and notes those on the way.
    fn walk(&mut self, number: usize, documents: &[Document], sink: &mut Sink<'_>) {
        let mut way: Vec<usize> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut at = number;
        let end = loop {
            match (self.standing(at), self.of(at)) {
                (Footing::Unseen, Some(_)) if !seen.insert(at) => break End::Loop(at),
                (Footing::Unseen, Some(base)) => {
                    way.push(at);
                    at = base.number;
                }
                (Footing::Unseen, None) => break End::Known(Footing::Broken),
                (known @ (Footing::Broken | Footing::On(_)), _) => break End::Known(known),
            }
        };
        let mut below = match end {
            End::Known(standing) => standing,
            End::Loop(first) => {
                let round: Vec<usize> =
                    way.iter().copied().skip_while(|on_way| *on_way != first).collect();
                self.tell_loop(&round, documents, sink);
                Footing::Broken
            }
        };
        for on_way in way.into_iter().rev() {
            below = match below {
                Footing::On(depth) if depth < EXTENDS_MAX => Footing::On(depth.saturating_add(1)),
                Footing::On(_) => {
                    // Those that extend this one in turn are as wrong; once is enough.
                    if let Some(base) = self.of(on_way) {
                        let message = format!("more than {EXTENDS_MAX} units extend one another");
                        sink.error(base.at, message).help("extend one that is nearer to the first");
                    }
                    Footing::Broken
                }
                Footing::Unseen | Footing::Broken => Footing::Broken,
            };
            if let Some(standing) = self.standings.get_mut(on_way) {
                *standing = below;
            }
        }
    }

    fn tell_loop(&self, round: &[usize], documents: &[Document], sink: &mut Sink<'_>) {
        let least = round.iter().enumerate().min_by_key(|(_, number)| **number);
        let shift = least.map_or(0, |(place, _)| place);
        let name = |number: usize| {
            let document = documents.get(number);
            quoted(document.and_then(|document| document.name.as_deref()).unwrap_or_default())
        };
        let mut edges = round.iter().cycle().skip(shift).take(round.len()).filter_map(|number| {
            let base = self.of(*number)?;
            Some((format!("{} extends {}", name(*number), name(base.number)), base.at))
        });
        let Some((text, at)) = edges.next() else { return };
        let message = match round {
            [one] => format!("{} extends itself", name(*one)),
            _ => format!("{} units extend one another in a loop", round.len()),
        };
        let rest: Vec<_> =
            edges.take(LOOP_PLACES_MAX).map(|(text, at)| (text, sink.spot(at))).collect();
        let found = sink.error(at, message);
        if round.len() > 1 {
            found.label(text);
        }
        for (text, spot) in rest {
            found.related(spot, text);
        }
        found.help("take one of these out");
    }

    /// All units, each after the one that it extends.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.bases.len()).collect();
        order.sort_by_key(|number| self.standing(*number));
        order
    }

    /// The unit that a unit extends.
    pub(super) fn of(&self, number: usize) -> Option<Base> {
        self.bases.get(number).copied().flatten()
    }

    /// A unit with all below it, the last one first; nothing where they cannot be put together.
    pub(super) fn chain(&self, number: usize) -> Option<Vec<usize>> {
        let Footing::On(depth) = self.standing(number) else { return None };
        let mut chain = vec![number];
        let mut at = number;
        for _ in 0..depth {
            at = self.of(at)?.number;
            chain.push(at);
        }
        chain.reverse();
        Some(chain)
    }
}

/// The name that a unit extends, by the last word about it.
fn extended(document: &Document) -> Option<(&str, At)> {
    let said = document.trees().filter_map(|tree| decode::entry(&tree.root, "extends")).last()?;
    match &said.value.value {
        Value::Text(name) => Some((name, said.value.at)),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

fn unknown(
    document: &Document,
    name: &str,
    at: At,
    known: &Known<'_>,
    is_looked_for: bool,
    sink: &mut Sink<'_>,
) {
    let own = document.name.as_deref().unwrap_or_default();
    let Ok(parsed) = UnitName::parse(name) else { return };
    let message =
        format!("`extends` of unit {} names `{parsed}`, which does not exist", quoted(own));
    let elsewhere = known.others.get(&parsed);
    let names = known.names.keys().map(String::as_str).filter(|name| is_looked_for && *name != own);
    let meant = suggest::nearest(name, names);
    let found = sink.error(at, message).did_you_mean(meant);
    if let Some(source) = elsewhere {
        found.help(format!("it is of the source `{source}`: a unit extends one of its own source"));
    }
}
