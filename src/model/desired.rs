//! What is wanted: all specs with each unit's intent, holds and epochs, under a generation number.
//!
//! This is what is saved, and all that commands change: `opm start`, `stop`, `restart` and `apply`
//! edit a [`Desired`] and leave the rest to the reconciler.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::gather::Gather;
use super::history::{Sources, Trial};
use super::name::{InstanceId, UnitName};
use super::spec::{Spec, SpecHash};
use super::time::Wall;

/// The desired state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Desired {
    /// Raised by every change.
    pub generation: u64,
    /// Every unit.
    pub units: BTreeMap<UnitName, Unit>,
    /// What is applied: the revision of every source.
    #[serde(default)]
    pub sources: Sources,
    /// The latest record of the history; 0: there is none.
    #[serde(default)]
    pub applied: u64,
    /// Set while the last apply waits to be confirmed.
    #[serde(default)]
    pub trial: Option<Trial>,
    /// What was asked for by hand of units that are gone: they may come back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gone: BTreeMap<UnitName, Gone>,
}

/// Most units that are gone of which it is known what was asked of them; the first that went are forgotten.
const GONE_MAX: usize = 1_000;

/// A unit as it is wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unit {
    /// What its file says.
    pub spec: Arc<Spec>,
    /// The source that owns it: the directory that was applied, or `-`.
    pub source: Arc<str>,
    /// Fingerprint of what is fixed when a run starts. It is kept for as long as that part of the
    /// spec is equal, so that an opm that writes specs otherwise restarts nothing.
    pub hash: SpecHash,
    /// Set by `opm start`: up although it is not enabled.
    #[serde(default)]
    pub started: bool,
    /// Whether that is not beyond the next boot: nobody asked for it by hand, but the end of another unit did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub until_boot: bool,
    /// Set by `opm stop`: down until somebody starts or releases it.
    #[serde(default)]
    pub hold: Option<Box<Hold>>,
    /// Raising it asks for one restart of every instance.
    #[serde(default)]
    pub epoch: u64,
    /// How many of its instances may be away at a time for a restart or a change; all of them where
    /// it is not said.
    #[serde(default)]
    pub rolling: Option<u32>,
    /// What is wanted of single instances beyond that.
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, InstanceWish>,
    /// True from its removal until its last instance is gone.
    #[serde(default)]
    pub removed: bool,
}

impl PartialEq for Unit {
    /// As it would be derived, but that a spec is not compared with itself.
    fn eq(&self, other: &Self) -> bool {
        let Self { spec, source, hash, started, until_boot, .. } = self;
        let Self { hold, epoch, rolling, instances, removed, .. } = self;
        let is_same_spec = Arc::ptr_eq(spec, &other.spec) || *spec == other.spec;
        is_same_spec
            && (source, hash, hold) == (&other.source, &other.hash, &other.hold)
            && (started, until_boot) == (&other.started, &other.until_boot)
            && (epoch, rolling, instances, removed)
                == (&other.epoch, &other.rolling, &other.instances, &other.removed)
    }
}

/// What is wanted of one instance beyond its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct InstanceWish {
    /// Down until somebody starts or releases it.
    #[serde(default)]
    pub hold: Option<Box<Hold>>,
    /// Added to the unit's epoch.
    #[serde(default)]
    pub epoch: u64,
    /// What another unit's end asked for last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<Automatic>,
}

/// A start that the end of another unit asks for, and nobody by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Automatic {
    /// The epoch that it raised.
    pub epoch: u64,
    /// How many such starts followed one another up to this one, each unit by the end of the one before.
    pub chain: u32,
}

/// What was asked for by hand of a unit that is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gone {
    /// The hold on it.
    #[serde(default)]
    pub hold: Option<Box<Hold>>,
    /// Whether it was started although it was not enabled.
    #[serde(default)]
    pub started: bool,
    /// Holds on single instances.
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, Box<Hold>>,
    /// The generation in which it went.
    pub generation: u64,
}

/// "Stopped by hand".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who said so.
    pub by: String,
    /// Why, in their words.
    #[serde(default)]
    pub reason: String,
    /// When.
    pub at: Wall,
    /// When it ends by itself.
    #[serde(default)]
    pub until: Option<Wall>,
    /// Whether it is not beyond the next boot: it makes room for what is not either.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub until_boot: bool,
}

impl Desired {
    /// Takes out the units that were removed and of which nothing is left.
    pub fn take_out_removed(&mut self, is_left: impl Fn(&UnitName) -> bool) {
        let gone = self.units.iter().filter(|(name, unit)| unit.removed && !is_left(name));
        for name in gone.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.take_out(&name);
        }
    }

    /// Takes out a unit. What was asked of it by hand is kept for when it comes back.
    pub fn take_out(&mut self, name: &UnitName) {
        let Some(unit) = self.units.remove(name) else { return };
        let Unit { hold, started, until_boot, instances, .. } = unit;
        let started = started && !until_boot;
        let hold = hold.filter(|hold| !hold.until_boot);
        let of_one = |(id, wish): (InstanceId, InstanceWish)| Some((id, wish.hold?));
        let instances: BTreeMap<_, _> = instances.into_iter().filter_map(of_one).gather();
        if hold.is_some() || started || !instances.is_empty() {
            let generation = self.generation;
            self.gone.insert(name.clone(), Gone { hold, started, instances, generation });
        }
        if self.gone.len() > GONE_MAX {
            let first = self.gone.iter().min_by_key(|(_, gone)| gone.generation);
            let first = first.map(|(name, _)| name.clone());
            first.and_then(|name| self.gone.remove(&name));
        }
    }

    /// What another unit's end asked for in the boot before is not asked for any more.
    pub fn forget_until_boot(&mut self) {
        for unit in self.units.values_mut() {
            unit.started &= !std::mem::take(&mut unit.until_boot);
            unit.hold.take_if(|hold| hold.until_boot);
        }
    }

    /// Asks for one restart of an instance.
    pub fn raise_epoch(&mut self, id: &InstanceId) {
        if let Some(unit) = self.units.get_mut(&id.unit) {
            let wish = unit.instances.entry(id.clone()).or_default();
            wish.epoch = wish.epoch.saturating_add(1);
        }
    }

    /// Notes that what was asked for last was asked for by no hand: it clears no counters, and waits.
    pub fn note_automatic(&mut self, id: &InstanceId, chain: u32) {
        if let Some(unit) = self.units.get_mut(&id.unit) {
            let automatic = Automatic { epoch: unit.epoch_of(id), chain };
            unit.instances.entry(id.clone()).or_default().automatic = Some(automatic);
        }
    }

    /// Gives a unit that comes back the holds that it had; with `started`, it is up where it was, though it is not
    /// enabled.
    pub fn give_back(&mut self, unit: &mut Unit, started: bool) {
        let Some(gone) = self.gone.remove(&unit.spec.name) else { return };
        unit.hold = gone.hold;
        unit.started = started && gone.started;
        for (id, hold) in gone.instances {
            unit.instances.entry(id).or_default().hold = Some(hold);
        }
    }
}

impl Unit {
    /// A unit nobody has touched by hand.
    pub fn new(spec: Arc<Spec>, source: impl Into<Arc<str>>) -> Self {
        Self {
            hash: spec.process_hash(),
            spec,
            source: source.into(),
            started: false,
            until_boot: false,
            hold: None,
            epoch: 0,
            rolling: None,
            instances: BTreeMap::new(),
            removed: false,
        }
    }

    /// The hold that keeps an instance down, if any.
    pub fn hold_of(&self, id: &InstanceId) -> Option<&Hold> {
        self.hold.as_deref().or_else(|| self.instances.get(id)?.hold.as_deref())
    }

    /// What the end of another unit asked for, where nobody has asked by hand since.
    pub fn automatic(&self, id: &InstanceId) -> Option<Automatic> {
        let asked = self.instances.get(id).and_then(|wish| wish.automatic);
        asked.filter(|asked| asked.epoch == self.epoch_of(id))
    }

    /// The epoch that a run of this instance has to serve.
    pub fn epoch_of(&self, id: &InstanceId) -> u64 {
        self.epoch.saturating_add(self.instances.get(id).map_or(0, |wish| wish.epoch))
    }
}
