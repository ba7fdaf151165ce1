//! How things are, for output: one row per instance.

use jiff::{Timestamp, ZonedDateTime};
use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::keeper_unit::is_internal;
use super::neighbours::Visible;
use crate::model::{Gather, InstanceId, Life, Phase, Run, Unit, Wall};
use crate::plan;
use crate::system::System;

/// A time for programs.
const RFC_3339: &str = "%Y-%m-%dT%H:%M:%S%:z";

/// How one instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "a row of output, each column a claim")]
pub struct Row {
    /// Which one.
    pub instance: String,
    /// Its unit.
    pub unit: String,
    /// `service`, `task`, `socket` or `target`.
    pub kind: String,
    /// The word for its phase.
    pub phase: String,
    /// How long it has been in it, in milliseconds.
    pub since_ms: u64,
    /// Whether it is to be up.
    pub wanted: bool,
    /// Whether its readiness rule is met.
    pub ready: bool,
    /// Whether its health checks succeed; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub healthy: Option<bool>,
    /// Its main process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Automatic restarts since it was last started on purpose.
    pub restarts: u64,
    /// How its last run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// The exit code of its last run; 128+n for a signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// Why it is as it is, where that needs a word.
    pub why: String,
    /// Who holds it down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// When that ends by itself, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_until: Option<String>,
    /// Whether its run was started by an older definition than is wanted now.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub outdated: bool,
    /// What its run says about itself.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub says: String,
    /// What its run says that it is doing: `reloading` or `stopping`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub doing: Option<String>,
    /// Whether its run was taken over from an earlier supervisor.
    pub adopted: bool,
    /// When it will be started again, in milliseconds from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_in_ms: Option<u64>,
    /// When its schedule lets it run next, RFC 3339; absent without a schedule, or if never again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_run: Option<String>,
    /// When its latest run by a schedule began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_run: Option<String>,
    /// Whether it starts when somebody connects to its sockets.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub awaits_connection: bool,
    /// Whether it waits for nothing but what somebody holds down, or what runs when it is due.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub awaits_held: bool,
    /// What the unit file says it is.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub description: String,
    /// The unit's labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Whether nothing will happen to it by itself, apart from time passing in a backoff.
    pub settled: bool,
}

/// Whether a run that is ready is healthy, where anybody asks.
fn healthy(unit: Option<&Unit>, run: Option<&Run>) -> Option<bool> {
    let (spec, run) = (&unit?.spec, run?);
    let is_asked = spec.health.is_some() && run.ready.is_some();
    is_asked.then(|| !plan::is_unhealthy(spec, run))
}

/// What a run says about itself; of a socket, where it listens.
fn says(unit: Option<&Unit>, run: Option<&Run>) -> String {
    let Some(run) = run else { return String::new() };
    match unit.and_then(|unit| unit.spec.socket.as_ref()) {
        Some(socket) if !run.bound.is_empty() => socket.words(),
        Some(_) | None => run.status.clone(),
    }
}

impl<S: System> Supervisor<S> {
    /// How one instance is.
    pub fn row(&self, id: &InstanceId) -> Row {
        let view = self.view();
        let unit = view.unit(id);
        let instance = view.observed.get(id);
        let phase = instance.map_or(&Phase::Down, |instance| &instance.phase);
        let now = self.system.now();
        let run = instance.and_then(|instance| instance.run.as_ref());
        let main = run.and_then(|run| run.main.as_ref()).filter(|main| main.is_alive());
        let last = instance.and_then(|instance| instance.last.as_ref());
        let wanted = view.wants(id);
        let why = match phase {
            Phase::Up => plan::unwell(&view, id).unwrap_or_default(),
            Phase::Down
            | Phase::Waiting { .. }
            | Phase::Starting
            | Phase::Stopping { .. }
            | Phase::Backoff { .. }
            | Phase::Failed { .. }
            | Phase::Done
            | Phase::Skipped { .. }
            | Phase::Unproven { .. } => {
                let lines = self.why(id);
                let first = lines.first().and_then(|line| line.split_once(": "));
                let why = first.map(|(_, why)| why.to_owned());
                why.into_iter().chain(plan::held_up(&view, id)).gather::<Vec<_>>().join("; ")
            }
        };
        Row {
            instance: id.to_string(),
            unit: id.unit.to_string(),
            kind: unit.map_or("unknown", |unit| unit.spec.kind.as_str()).to_owned(),
            phase: phase.as_str().to_owned(),
            since_ms: instance
                .map_or(0, |instance| now.since(instance.since).as_nanos() / 1_000_000),
            wanted,
            ready: run.is_some_and(|run| run.ready.is_some()),
            healthy: healthy(unit, run),
            pid: main
                .filter(|main| matches!(main.state, Life::Running(_) | Life::Born))
                .and_then(|main| main.identity)
                .map(|identity| identity.pid),
            restarts: instance.map_or(0, |instance| instance.restarts),
            last: last.and_then(|end| end.outcome.as_ref()).map(ToString::to_string),
            code: last.and_then(|end| end.outcome.as_ref()).map(crate::model::Outcome::code),
            why,
            held_by: unit.and_then(|unit| unit.hold_of(id)).map(|hold| hold.by.clone()),
            held_until: unit.and_then(|unit| self.held_until(unit, id)),
            outdated: run.is_some() && plan::is_outdated(&view, id),
            says: says(unit, run),
            doing: run.and_then(|run| run.words.doing).map(|doing| doing.as_str().to_owned()),
            adopted: run.is_some_and(|run| run.adopted),
            restart_in_ms: if let Phase::Backoff { until } = phase {
                Some(until.since(now).as_millis_up())
            } else {
                None
            },
            next_run: self.next_run(id).map(|time| time.strftime(RFC_3339).to_string()),
            last_run: self.last_run(id).map(|time| time.strftime(RFC_3339).to_string()),
            awaits_connection: instance.is_some_and(|i| plan::waits_at(i).next().is_some()),
            awaits_held: plan::awaits_held(&view, id),
            description: unit.map(|unit| unit.spec.description.clone()).unwrap_or_default(),
            labels: unit.map(|unit| (*unit.spec.labels).clone()).unwrap_or_default(),
            settled: plan::is_settled(&view, id),
        }
    }

    /// Who lives although opm ends: they were killed, and are not gone.
    pub fn left_behind(&self) -> Vec<&InstanceId> {
        let runs = self.observed.iter().filter(|(_, instance)| Visible::of(instance).is_open);
        runs.map(|(id, _)| id).collect()
    }

    /// When the hold of an instance ends by itself.
    fn held_until(&self, unit: &Unit, id: &InstanceId) -> Option<String> {
        let time = Timestamp::from_microsecond(unit.hold_of(id)?.until?.0).ok()?;
        let time = time.to_zoned_datetime(self.system.zone(None));
        Some(time.strftime(RFC_3339).to_string())
    }

    fn local(&self, id: &InstanceId, time: Wall) -> Option<ZonedDateTime> {
        let schedule = self.desired.units.get(&id.unit)?.spec.schedule.as_ref()?;
        let zone = self.system.zone(schedule.timezone.as_deref());
        Some(Timestamp::from_microsecond(time.0).ok()?.to_zoned_datetime(zone))
    }

    /// When a wanted instance with a schedule runs next.
    fn next_run(&self, id: &InstanceId) -> Option<ZonedDateTime> {
        let due = self.times.agenda.get(id)?.next.filter(|_| self.view().wants(id))?;
        self.local(id, due.at)
    }

    /// When an instance with a schedule last ran.
    fn last_run(&self, id: &InstanceId) -> Option<ZonedDateTime> {
        self.local(id, self.times.agenda.get(id)?.ran?)
    }

    /// The chain of reasons why an instance is as it is, with its next run where it has a schedule.
    pub fn why(&self, id: &InstanceId) -> Vec<String> {
        let mut lines = plan::why(&self.view(), id);
        if let Some(line) = lines.first_mut()
            && let Some(next) = self.next_run_words(id)
        {
            line.extend(["; ", &next]);
        }
        lines
    }

    fn next_run_words(&self, id: &InstanceId) -> Option<String> {
        let due = self.next_run(id)?;
        Some(format!("next run {}", due.strftime("%a %Y-%m-%d %H:%M:%S %Z")))
    }

    /// Whether an instance is of a unit that no file declares.
    pub fn is_own(&self, id: &InstanceId) -> bool {
        self.view().unit(id).is_some_and(is_internal)
    }

    /// All instances that are wanted or known, in order; opm's own where `internal`.
    pub fn all_ids_known(&self, internal: bool) -> Vec<InstanceId> {
        let view = self.view();
        let mut ids: std::collections::BTreeSet<InstanceId> =
            self.observed.iter().map(|(id, _)| id.clone()).gather();
        for unit in self.desired.units.values() {
            ids.extend(view.instances(&unit.spec.name));
        }
        ids.retain(|id| internal || view.unit(id).is_none_or(|unit| !is_internal(unit)));
        ids.into_iter().collect()
    }
}
