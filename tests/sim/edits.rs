//! Files that change: who watches them restarts or reloads, once, and nobody else does.

use std::collections::BTreeMap;

use opm::model::{
    Happening, InstanceId, Monotonic, Phase, RunId, StopCause, UnitName, WatchAction,
};

use crate::check::Check;
use crate::scene::{Scene, Seen};
use crate::story::{CONVERGED_AFTER, NAMES, Story, name};

/// A change ends a run once, when it has been quiet for as long as the unit says.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    /// When the files of a unit changed last.
    edited: BTreeMap<UnitName, Monotonic>,
    /// When an instance's supervisor was told so.
    told: BTreeMap<InstanceId, Monotonic>,
    /// Which change an instance went for.
    heeded: BTreeMap<InstanceId, Monotonic>,
}

impl Check for Edits {
    fn see(&mut self, scene: &Scene, at: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Edited { unit } => {
                self.edited.insert(unit.clone(), at);
            }
            Seen::Told(event) if matches!(event.what, Happening::Touched { .. }) => {
                self.told.insert(event.instance.clone(), at);
            }
            Seen::AllEnd => *self = Self::default(),
            Seen::Noticed(notice) => {
                let what = &notice.event.what;
                let Happening::StopBegan { cause: StopCause::Touched, .. } = what else {
                    return Ok(());
                };
                let id = &notice.event.instance;
                let Some(edited) = self.edited.get(&id.unit).copied() else {
                    return Err(format!("{id} restarts for files that nobody changed"));
                };
                if self.heeded.insert(id.clone(), edited) == Some(edited) {
                    return Err(format!("{id} restarts twice for one change of its files"));
                }
                let watch = scene.spec(&id.unit).and_then(|spec| spec.watch.as_ref());
                let quiet = watch.map(|watch| watch.debounce).unwrap_or_default();
                let told = self.told.get(id).copied().unwrap_or(edited);
                if at < told.after(quiet) {
                    return Err(format!("{id} restarts before it was quiet for {quiet}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Story {
    /// Where all is at rest: the files of each unit change, and it does what it says that follows.
    pub(crate) fn edit_all(&mut self) -> Result<(), String> {
        for unit in NAMES.map(name) {
            let before = self.runs_of(&unit);
            let Some(supervisor) = self.world.supervisor() else { break };
            let spec = supervisor.desired().units.get(&unit).map(|unit| &unit.spec);
            let restarts = spec
                .and_then(|spec| spec.watch.as_ref())
                .is_some_and(|watch| watch.action == WatchAction::Restart);
            self.world.machine().edit(&unit);
            self.world.pass(CONVERGED_AFTER);
            let after = self.runs_of(&unit);
            for (id, run) in before {
                if (after.get(&id) != Some(&run)) != restarts {
                    return Err(format!("{id} watches, restarts: {restarts}, and did otherwise"));
                }
            }
        }
        self.expect_all()
    }

    /// The runs of a unit that are up.
    fn runs_of(&mut self, unit: &UnitName) -> BTreeMap<InstanceId, RunId> {
        let Some(supervisor) = self.world.supervisor() else { return BTreeMap::new() };
        let up = supervisor.observed().of_unit(unit).filter(|(_, i)| i.phase == Phase::Up);
        up.filter_map(|(id, instance)| Some((id.clone(), instance.run.as_ref()?.id))).collect()
    }
}
