//! Where the units of a random world must be once there are no more faults.

use opm::model::{Desired, Instance, InstanceId, Kind, Observed, Phase, Unit, UnitName};
use opm::plan;

use crate::story::{NAMES, Story};

/// Whether what an instance waits for has not come to rest itself, as what restarts again and again, or a task
/// that runs.
fn is_under_way(desired: &Desired, observed: &Observed, phase: &Phase) -> bool {
    let Phase::Waiting { on, .. } = phase else { return false };
    let is_moving = |unit: &UnitName, instance: &Instance| match instance.phase {
        Phase::Waiting { .. }
        | Phase::Starting
        | Phase::Stopping { .. }
        | Phase::Backoff { .. } => true,
        Phase::Up => desired.units[unit].spec.kind == Kind::Task,
        _ => false,
    };
    on.iter().any(|blocker| {
        let mut all = observed.of_unit(&blocker.unit);
        all.any(|(_, other)| is_moving(&blocker.unit, other))
    })
}

impl Story {
    pub(crate) fn expect_all(&mut self) -> Result<(), String> {
        let Some(supervisor) = self.world.supervisor() else {
            return Err("no supervisor can be started".to_owned());
        };
        let units: Vec<Unit> = supervisor.desired().units.values().cloned().collect();
        for unit in units.iter().filter(|unit| !unit.spec.name.as_str().starts_with('_')) {
            for id in unit.spec.instance_ids() {
                self.expect(unit, &id)?;
            }
        }
        for (place, exists) in self.exists.iter().enumerate() {
            if !exists && self.world.machine().living(NAMES[place]) > 0 {
                return Err(format!("`{}` was removed and lives", NAMES[place]));
            }
        }
        Ok(())
    }

    fn expect(&mut self, unit: &Unit, id: &InstanceId) -> Result<(), String> {
        if unit.spec.kind == Kind::Socket {
            return self.expect_socket(id);
        }
        let place = NAMES.iter().position(|name| *name == unit.spec.name.as_str()).unwrap();
        let conflicts = self.conflicts(place);
        let file = &self.files[place];
        // It goes along with what it requires, where that never comes to rest.
        let follows = file.keys.contains("on_dependency_restart: restart")
            && file.needs.iter().any(|(_, other)| !self.files[*other].stays());
        // Of a task that is killed by its own next run none may ever complete.
        let in_vain = self.waits_for(place, "overlap: kill");
        let stays = file.stays() && !conflicts && !follows && !in_vain && !self.is_shaky(place);
        let has_condition = file.keys.contains("conditions:");
        let Some(supervisor) = self.world.supervisor() else { return Ok(()) };
        let view = supervisor.view();
        let wanted = view.wants(id);
        let known = supervisor.observed().get(id);
        let phase = known.map_or(Phase::Down, |instance| instance.phase.clone());
        let is_met = unit.spec.relations.requires.iter().all(|need| {
            let other = &supervisor.desired().units[&need.unit];
            let is_there = |id: &InstanceId| {
                let known = view.observed.get(id);
                let is_lazy = plan::is_lazy(&view, &need.unit);
                let waits = |known: &Instance| plan::waits_at(known).next().is_some();
                known.is_some_and(|known| match other.spec.kind {
                    _ if is_lazy && (waits(known) || known.phase == Phase::Done) => true,
                    // What it has done as another unit does not count.
                    Kind::Task => known.phase == Phase::Done && known.epoch == other.epoch_of(id),
                    Kind::Service | Kind::Socket | Kind::Target => known.phase == Phase::Up,
                })
            };
            other.spec.instance_ids().iter().all(is_there)
        });
        let sockets = view.graph.node(&unit.spec.name).map_or(&[][..], |node| &node.sockets);
        let listens = |(socket, _): &(UnitName, _)| {
            let mut all = view.observed.of_unit(socket);
            all.any(|(_, socket)| socket.phase == Phase::Up)
        };
        let is_met = is_met && sockets.iter().all(listens);
        let calls = known.is_some_and(|known| plan::waits_at(known).next().is_some());
        let has_run = known.is_some_and(|instance| instance.run.is_some());
        let is_task = unit.spec.kind == Kind::Task;
        // One that ends again and again is anywhere between.
        let fits = match (wanted, is_task) {
            (false, _) => !has_run && matches!(phase, Phase::Down | Phase::Done),
            (true, false) if calls => true,
            (true, true) => {
                // It may be looked at in the moment in which another task runs.
                let may_wait = !is_met
                    || conflicts
                    || is_under_way(supervisor.desired(), supervisor.observed(), &phase)
                    || self.waits_for(place, "overlap:");
                may_wait || !matches!(phase, Phase::Waiting { .. })
            }
            // A condition command that somebody killed has not said yes.
            (true, false) if is_met && matches!(phase, Phase::Skipped { .. }) => has_condition,
            (true, false) if is_met => !stays || phase == Phase::Up,
            // What was up before goes on without what restarts by itself.
            (true, false) => phase != Phase::Down,
        };
        if fits { Ok(()) } else { Err(format!("{id}, wanted: {wanted}, rests in {phase:?}")) }
    }

    fn expect_socket(&mut self, id: &InstanceId) -> Result<(), String> {
        let Some(supervisor) = self.world.supervisor() else { return Ok(()) };
        let wanted = supervisor.view().wants(id);
        let phase = supervisor.observed().get(id).map(|instance| instance.phase.clone());
        let is_up = phase == Some(Phase::Up);
        if is_up == wanted { Ok(()) } else { Err(format!("{id}, wanted: {wanted}, is {phase:?}")) }
    }

    /// Whether it requires what comes and goes: it may be looked at in the moment in which that has
    /// come.
    fn is_shaky(&self, place: usize) -> bool {
        self.files[place].needs.iter().any(|(key, other)| {
            let is_steady = self.files[*other].stays() || self.files[*other].kind == "task";
            *key == "requires" && (!is_steady || self.is_shaky(*other))
        })
    }

    /// Whether it waits, at times, for a task with this among its keys.
    fn waits_for(&self, place: usize, key: &str) -> bool {
        self.files[place]
            .needs
            .iter()
            .any(|(_, other)| self.files[*other].keys.contains(key) || self.waits_for(*other, key))
    }

    fn conflicts(&self, place: usize) -> bool {
        let of = |one: usize, other: usize| {
            self.files[one].needs.iter().any(|(key, to)| *key == "conflicts" && *to == other)
        };
        (0..self.files.len()).any(|other| of(place, other) || of(other, place))
    }
}
