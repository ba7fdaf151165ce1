//! What the names in a request stand for: units, and instances of them.

use super::Supervisor;
use super::keeper_unit::is_internal;
use super::requests::Refusal;
use crate::config;
use crate::model::{InstanceId, UnitName};
use crate::system::System;

/// A unit with all its instances, or one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Unit(UnitName),
    Instance(InstanceId),
}

impl Target {
    pub(super) fn unit(&self) -> &UnitName {
        match self {
            Self::Unit(unit) => unit,
            Self::Instance(id) => &id.unit,
        }
    }
}

impl<S: System> Supervisor<S> {
    /// A target for each name.
    pub(super) fn targets(&self, names: &[String]) -> Result<Vec<Target>, Refusal> {
        names.iter().map(|name| self.target(name)).collect()
    }

    pub(super) fn target(&self, name: &str) -> Result<Target, Refusal> {
        let unknown = || {
            let known =
                self.desired.units.iter().filter(|(_, unit)| !unit.removed && !is_internal(unit));
            let similar = config::nearest(name, known.map(|(known, _)| known.as_str()));
            Refusal::Unknown { name: name.to_owned(), similar: similar.map(str::to_owned) }
        };
        let id = InstanceId::parse(name).map_err(|_| unknown())?;
        let unit = self.desired.units.get(&id.unit).ok_or_else(unknown)?;
        if unit.removed {
            let why = format!("`{}` was removed, and is on its way down", id.unit);
            return Err(Refusal::Impossible(why));
        }
        match id.label() {
            None => Ok(Target::Unit(id.unit)),
            Some(_) if unit.spec.has_instance(&id) || self.observed.get(&id).is_some() => {
                Ok(Target::Instance(id))
            }
            Some(_) => Err(unknown()),
        }
    }

    /// The same for who only looks, or sends a signal: what is being removed can be reached until it is
    /// gone.
    pub(super) fn reachable(&self, names: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        let ids = |name: &String| {
            let id = InstanceId::parse(name)
                .ok()
                .filter(|id| self.desired.units.get(&id.unit).is_some_and(|unit| unit.removed));
            match id {
                Some(id) if id.label().is_none() => Ok(self.view().instances(&id.unit)),
                Some(id) => Ok(vec![id]),
                None => Ok(self.ids(&self.target(name)?)),
            }
        };
        Ok(names.iter().map(ids).collect::<Result<Vec<_>, _>>()?.concat())
    }

    pub(super) fn ids(&self, target: &Target) -> Vec<InstanceId> {
        match target {
            Target::Unit(unit) => self.view().instances(unit),
            Target::Instance(id) => vec![id.clone()],
        }
    }

    pub(super) fn all_ids(&self, targets: &[Target]) -> Vec<InstanceId> {
        targets.iter().flat_map(|target| self.ids(target)).collect()
    }

    /// The same without what their units ask for no more.
    pub(super) fn declared_ids(&self, targets: &[Target]) -> Vec<InstanceId> {
        let mut ids = self.all_ids(targets);
        ids.retain(|id| self.view().unit(id).is_some_and(|unit| unit.spec.has_instance(id)));
        ids
    }

    /// The instances that names stand for; all of them where there are no names.
    pub fn select(&self, names: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        if names.is_empty() {
            let units = self.desired.units.iter().filter(|(_, unit)| !is_internal(unit));
            return Ok(units.flat_map(|(name, _)| self.view().instances(name)).collect());
        }
        self.reachable(names)
    }

    /// The instances that names stand for: what is not known any more is nothing.
    pub fn select_known(&self, names: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        if names.is_empty() {
            return self.select(names);
        }
        let known = names.iter().flat_map(|name| self.reachable(std::slice::from_ref(name)));
        Ok(known.flatten().collect())
    }
}
