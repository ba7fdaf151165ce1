//! Files that change: who watches them restarts or reloads, once, and nobody else does.

use std::collections::BTreeMap;

use opm::model::{
    Happening, InstanceId, Monotonic, Phase, RunId, Span, StopCause, UnitName, WatchAction,
};

use crate::check::Check;
use crate::scene::{Scene, Seen};
use crate::story::{CONVERGED_AFTER, NAMES, Story, name};

/// A change ends a run once, when it has been quiet for as long as the unit says.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    /// When the files of a unit changed last.
    edited: BTreeMap<UnitName, Monotonic>,
    /// When an instance's supervisor was told so, for the first time and the last. Of the others the
    /// next supervisor does not know.
    told: BTreeMap<InstanceId, (Monotonic, Monotonic)>,
    /// Which run of an instance went for which change. It goes again where that was not written down.
    heeded: BTreeMap<InstanceId, (RunId, Monotonic)>,
}

impl Check for Edits {
    fn see(&mut self, scene: &Scene, at: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Edited { unit } => {
                self.edited.insert(unit.clone(), at);
            }
            Seen::Told(event) if matches!(event.what, Happening::Touched { .. }) => {
                self.told.entry(event.instance.clone()).or_insert((at, at)).1 = at;
            }
            Seen::Boots { .. } | Seen::Known { .. } => {
                self.told.values_mut().for_each(|(first, last)| *last = *first);
            }
            Seen::AllEnd => *self = Self::default(),
            Seen::Noticed(notice) => {
                let what = &notice.event.what;
                let told = self.told.get(&notice.event.instance).copied();
                let is_heeded = match what {
                    Happening::Reloaded { .. } | Happening::StopBegan { .. } => {
                        // What could not be written the next supervisor does not know, and heeds it again;
                        // and what is told now may have come after it, in the same turn.
                        scene.is_written && told.is_some_and(|(_, last)| last < notice.event.at)
                    }
                    _ => false,
                };
                if is_heeded {
                    self.told.remove(&notice.event.instance);
                }
                let Happening::StopBegan { run, cause: StopCause::Touched } = what else {
                    return Ok(());
                };
                let id = &notice.event.instance;
                let Some(edited) = self.edited.get(&id.unit).copied() else {
                    return Err(format!("{id} restarts for files that nobody changed"));
                };
                let before = self.heeded.insert(id.clone(), (*run, edited));
                if before.is_some_and(|(of, _)| of == *run) {
                    return Ok(());
                }
                if before.is_some_and(|(_, change)| change == edited) {
                    return Err(format!("{id} restarts twice for one change of its files"));
                }
                let watch = scene.spec(&id.unit).and_then(|spec| spec.watch.as_ref());
                let quiet = watch.map(|watch| watch.debounce).unwrap_or_default();
                if at < told.map_or(edited, |(_, last)| last).after(quiet) {
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
        let is_pid_one = self.world.machine().setting.is_pid_one;
        for unit in NAMES.map(name) {
            let before = self.runs_of(&unit);
            let Some(supervisor) = self.world.supervisor() else { break };
            let unit_now = supervisor.desired().units.get(&unit);
            let watch = unit_now.and_then(|unit| unit.spec.watch.clone());
            let restarts = watch.as_ref().is_some_and(|w| w.action == WatchAction::Restart);
            self.world.machine().edit(&unit);
            // It is told after twenty milliseconds at most.
            let quiet = watch.map(|watch| watch.debounce);
            if quiet.is_some_and(|quiet| quiet >= Span::millis(50)) && !is_pid_one {
                self.world.pass(Span::millis(25));
                match self.chance.below(3) {
                    0 => self.world.crash(),
                    1 => self.world.reexec(),
                    _ => {}
                }
            }
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
