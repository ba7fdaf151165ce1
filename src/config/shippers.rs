//! What only the whole set shows of units that read what others write: whether they do.

use std::collections::BTreeMap;

use super::decode::Decoded;
use super::diagnostic::{Diagnostic, Spot};
use crate::model::{LogTarget, Spec, UnitName};

/// Every unit whose `logs.to` names one that does not read it.
pub(super) fn check(
    units: &BTreeMap<&UnitName, &Decoded>,
    specs: &BTreeMap<&UnitName, &Spec>,
    found: &mut Vec<Diagnostic>,
) {
    for spec in specs.values() {
        let LogTarget::Unit(to) = &spec.logs.to else { continue };
        // Both may be of another source, which was checked without us; what has gone wrong since is
        // told where the one that changes stands.
        let Some(spot) = spot(units, &spec.name, to) else { continue };
        let Some(reader) = specs.get(to).filter(|reader| reader.name != spec.name) else {
            continue;
        };
        found.extend(mistake(spec, reader, spot));
    }
}

/// Where a unit of this source names its reader, or where the reader stands.
fn spot<'a>(
    units: &BTreeMap<&UnitName, &'a Decoded>,
    name: &UnitName,
    to: &UnitName,
) -> Option<&'a Spot> {
    let references = units.get(name).map(|unit| &unit.references);
    let mut references = references.into_iter().flatten();
    let own = references.find(|reference| reference.key == "logs.to");
    own.map(|reference| &reference.spot).or_else(|| units.get(to).map(|unit| &unit.spot))
}

fn mistake(spec: &Spec, reader: &Spec, spot: &Spot) -> Option<Diagnostic> {
    let (name, to) = (&spec.name, &reader.name);
    let (why, help) = if !reader.reads_logs() {
        ("does not read it", format!("give `{to}` `stdin: logs`"))
    } else if reader.instance_ids().len() > 1 {
        ("has several instances", format!("take `instances` out of `{to}`"))
    } else if let LogTarget::Unit(next) = &reader.logs.to {
        ("hands its own on", format!("name `{next}` here, or take `logs.to` out of `{to}`"))
    } else {
        return None;
    };
    let message = format!("`logs.to` of `{name}` names `{to}`, which {why}");
    let mut wrong = Diagnostic::error(spot.clone(), &message);
    wrong.help(help);
    Some(wrong)
}
