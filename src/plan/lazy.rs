//! Services with sockets: when a connection starts them, and when new sockets make them restart.

use super::View;
use crate::model::{
    Blocker, Instance, InstanceId, Monotonic, Node, Phase, Run, Span, StopCause, UnitName, Until,
};

/// The least time from one start by a connection to the next. A service that ends well at once and
/// leaves the connection to itself is started no more often than that.
const ACTIVATION_PAUSE: Span = Span::seconds(1);

/// A service that starts with the first connection, and not before.
fn lazy<'a>(view: &View<'a>, unit: &UnitName) -> Option<&'a Node> {
    view.graph.node(unit).filter(|node| node.is_lazy())
}

/// Whether a service starts with the first connection, and not before.
pub fn is_lazy(view: &View<'_>, unit: &UnitName) -> bool {
    lazy(view, unit).is_some()
}

/// What an instance waits for that may start as far as other units are concerned: a connection, where
/// its sockets are lazy and nothing else is a reason to start.
pub(super) fn callers(
    view: &View<'_>,
    id: &InstanceId,
    instance: &Instance,
    fresh: bool,
) -> Vec<Blocker> {
    let Some(node) = lazy(view, &id.unit) else { return Vec::new() };
    let is_restart = !fresh || matches!(instance.phase, Phase::Backoff { .. });
    if is_restart || is_asked(view, id) || comes_back(instance) || is_called(view, node, instance) {
        return Vec::new();
    }
    let sockets = node.sockets.iter();
    let until = Until::Connection;
    sockets.map(|(unit, _)| Blocker { unit: unit.clone(), until, stuck: true }).collect()
}

/// Whether a start was asked for since the instance began to wait. Of one that is not known nobody can
/// tell what it has served before.
fn is_asked(view: &View<'_>, id: &InstanceId) -> bool {
    let (Some(unit), Some(known)) = (view.unit(id), view.observed.get(id)) else { return false };
    known.epoch != unit.epoch_of(id)
}

/// Whether it went down although it was wanted, and is to be as it was before.
fn comes_back(instance: &Instance) -> bool {
    instance.last.as_ref().is_some_and(|end| match end.cause {
        StopCause::Restart
        | StopCause::Changed
        | StopCause::Touched
        | StopCause::Dependency(_)
        | StopCause::DependencyRestarted(_) => true,
        StopCause::GoalDown
        | StopCause::Shutdown
        | StopCause::MainEnded
        | StopCause::HookFailed(_)
        | StopCause::StartTimeout
        | StopCause::ConditionUnmet(_)
        | StopCause::Unhealthy
        | StopCause::Watchdog
        | StopCause::Triggered
        | StopCause::Due => false,
    })
}

/// Whether somebody has connected since its latest run began.
fn is_called(view: &View<'_>, node: &Node, instance: &Instance) -> bool {
    let began = instance.starts.back().copied();
    node.sockets.iter().any(|(socket, _)| {
        let mut calls =
            view.observed.of_unit(socket).filter_map(|(_, socket)| socket.run.as_ref()?.called);
        calls.any(|at| began.is_none_or(|began| at > began))
    })
}

/// When a service that has ended well may wait for the next connection; nothing where it stays as it
/// is.
pub(super) fn again_at(view: &View<'_>, id: &InstanceId, instance: &Instance) -> Option<Monotonic> {
    lazy(view, &id.unit)?;
    Some(instance.starts.back().map_or(instance.since, |at| at.after(ACTIVATION_PAUSE)))
}

/// A socket that listens since a time after the run began, which so cannot have it.
pub(super) fn newer_socket(view: &View<'_>, id: &InstanceId, run: &Run) -> Option<UnitName> {
    let mut sockets = view.graph.node(&id.unit)?.sockets.iter();
    let is_newer = |(socket, _): &&(UnitName, _)| {
        view.observed.of_unit(socket).any(|(_, socket)| {
            let up = socket.run.as_ref().filter(|_| socket.phase == Phase::Up);
            up.is_some_and(|up| up.began > run.began)
        })
    };
    sockets.find(is_newer).map(|(socket, _)| socket.clone())
}

/// Whether nothing is missing for an instance to come up but a connection. What it was last seen to
/// wait for is not enough: its sockets may have gone since, and the ledger tells only of the wait.
pub(super) fn can_be_called(view: &View<'_>, id: &InstanceId, phase: &Phase) -> bool {
    let waits = matches!(phase, Phase::Waiting { on, .. }
        if on.iter().any(|blocker| blocker.until == Until::Connection));
    let listens = |(socket, _): &(UnitName, _)| {
        let up =
            |(id, socket): (&InstanceId, &Instance)| socket.phase == Phase::Up && view.wants(id);
        view.observed.of_unit(socket).any(up)
    };
    (waits || *phase == Phase::Done)
        && lazy(view, &id.unit).is_some_and(|node| node.sockets.iter().all(listens))
}

/// The socket units at which an instance waits for a connection.
pub fn waits_at(instance: &Instance) -> impl Iterator<Item = &UnitName> {
    let on = if let Phase::Waiting { on, .. } = &instance.phase { on.as_slice() } else { &[] };
    on.iter().filter(|blocker| blocker.until == Until::Connection).map(|blocker| &blocker.unit)
}
