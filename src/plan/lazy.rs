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
        | StopCause::DependencyRestarted(_)
        | StopCause::Conflict(_) => true,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Accept, Action, Address, Agenda, Desired, End, Event, Graph, Happening, Kind, Listen,
        Observed, RunId, Socket, Spec, Step, Unit, Wall,
    };
    use crate::plan::{BLOCKERS_MAX, decide};

    fn name(text: &str) -> UnitName {
        UnitName::parse(text).unwrap()
    }

    fn id(text: &str) -> InstanceId {
        InstanceId::parse(text).unwrap()
    }

    fn second(n: u64) -> Monotonic {
        Monotonic::default().after(Span::seconds(n))
    }

    /// A service `web` with these sockets, and what is known of them.
    struct Scene {
        desired: Desired,
        observed: Observed,
    }

    impl Scene {
        fn new(sockets: &[(&str, Accept)]) -> Self {
            let mut desired = Desired::default();
            let mut add = |spec: Spec| {
                let unit = Unit::new(Arc::new(spec), "-".to_owned());
                desired.units.insert(unit.spec.name.clone(), unit);
            };
            add(Spec::new(Kind::Service, name("web")));
            for (socket, accept) in sockets {
                let mut spec = Spec::new(Kind::Socket, name(socket));
                let address = Address::Tcp("127.0.0.1:1".parse().unwrap());
                let one = Listen { address, name: None, mode: None, user: None, group: None };
                let (service, accept) = (name("web"), *accept);
                let listen = vec![one];
                let socket = Socket { listen, service, accept, base_dir: "/".into() };
                spec.socket = Some(Box::new(socket));
                add(spec);
            }
            Self { desired, observed: Observed::default() }
        }

        fn happen(&mut self, unit: &str, at: u64, what: Happening) {
            self.observed.apply(&Event { instance: id(unit), at: second(at), what });
        }

        /// A run of this number begins and is up.
        fn begin(&mut self, unit: &str, at: u64) {
            let (run, hash, wall) = (RunId(at), self.desired.units[&name(unit)].hash, Wall(0));
            let began = Happening::Began { run, epoch: 0, hash, wall, fresh: true, due: None };
            self.happen(unit, at, began);
            self.happen(unit, at, Happening::Ready { run });
            self.happen(unit, at, Happening::Up { run });
        }

        fn called(&mut self, socket: &str, run: u64, at: u64) {
            self.happen(socket, at, Happening::Called { run: RunId(run) });
        }

        fn look<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
            let (graph, agenda) = (Graph::build(&self.desired), Agenda::default());
            look(&View {
                desired: &self.desired,
                graph: &graph,
                observed: &self.observed,
                shutdown: None,
                agenda: &agenda,
                wall: Wall(0),
            })
        }

        /// At which sockets the service waits for a connection.
        fn waits(&self, instance: &Instance, fresh: bool) -> Vec<String> {
            let on = self.look(|view| callers(view, &id("web"), instance, fresh));
            on.iter().map(|blocker| blocker.unit.to_string()).collect()
        }
    }

    #[test]
    fn a_service_is_lazy_where_all_its_sockets_are() {
        for (sockets, is) in [
            (&[][..], false),
            (&[("a", Accept::Lazy)], true),
            (&[("a", Accept::Lazy), ("b", Accept::Lazy)], true),
            (&[("a", Accept::Lazy), ("b", Accept::Eager)], false),
            (&[("a", Accept::Eager)], false),
        ] {
            let scene = Scene::new(sockets);
            assert_eq!(scene.look(|view| is_lazy(view, &name("web"))), is, "{sockets:?}");
            let waits = scene.waits(&Instance::default(), true).len();
            assert_eq!(waits, if is { sockets.len() } else { 0 });
        }
    }

    #[test]
    fn all_sockets_are_listened_for_however_many_there_are() {
        let names: Vec<String> = (0..2 * BLOCKERS_MAX).map(|n| format!("s{n:02}")).collect();
        let sockets: Vec<_> = names.iter().map(|name| (name.as_str(), Accept::Lazy)).collect();
        let mut scene = Scene::new(&sockets);
        for (n, name) in (1..).zip(&names) {
            scene.begin(name, n);
        }
        let due = scene.look(|view| decide(view, &id("web"), second(60)));
        let [Step { action: Action::Wait { on, .. }, .. }] = due.steps.as_slice() else {
            panic!("{due:?}")
        };
        assert_eq!(on.iter().map(|on| on.unit.as_str()).collect::<Vec<_>>(), names);
    }

    #[test]
    fn a_connection_since_the_latest_start_lets_it_start() {
        let mut scene = Scene::new(&[("a", Accept::Lazy), ("b", Accept::Lazy)]);
        let mut instance = Instance::default();
        assert_eq!(scene.waits(&instance, true), ["a", "b"]);
        scene.begin("a", 1);
        scene.begin("b", 2);
        assert_eq!(scene.waits(&instance, true), ["a", "b"]);
        scene.called("b", 2, 5);
        assert!(scene.waits(&instance, true).is_empty());
        // Who was served by that start does not ask for another one.
        for (start, waits) in [(4, false), (5, true), (6, true)] {
            instance.starts = [second(start)].into();
            assert_eq!(!scene.waits(&instance, true).is_empty(), waits, "{start}");
        }
    }

    #[test]
    fn a_restart_a_wish_and_what_was_up_before_wait_for_nobody() {
        let mut scene = Scene::new(&[("a", Accept::Lazy)]);
        let blank = Instance::default();
        assert!(scene.waits(&blank, false).is_empty(), "a restart by itself");
        let backoff = Phase::Backoff { until: second(9) };
        assert!(scene.waits(&Instance { phase: backoff, ..blank.clone() }, true).is_empty());
        for (cause, waits) in [
            (StopCause::Restart, false),
            (StopCause::Changed, false),
            (StopCause::Dependency(name("db")), false),
            (StopCause::MainEnded, true),
            (StopCause::GoalDown, true),
        ] {
            let last = End {
                run: RunId(1),
                cause,
                outcome: None,
                at: second(1),
                ready_for: None,
                ends_opm: false,
            };
            let words = format!("{:?}", last.cause);
            let instance = Instance { last: Some(Box::new(last)), ..blank.clone() };
            assert_eq!(!scene.waits(&instance, true).is_empty(), waits, "{words}");
        }
        // A start by hand raises the epoch beyond the one that is known.
        scene.observed.insert(id("web"), blank.clone());
        assert_eq!(scene.waits(&blank, true), ["a"]);
        scene.observed.insert(id("web"), Instance { epoch: 7, ..blank.clone() });
        assert!(scene.waits(&blank, true).is_empty());
    }

    #[test]
    fn one_that_ended_well_waits_again_but_not_at_once() {
        let lazy = Scene::new(&[("a", Accept::Lazy)]);
        let mut instance = Instance { since: second(3), ..Instance::default() };
        let again = |scene: &Scene, instance: &Instance| {
            scene.look(|view| again_at(view, &id("web"), instance))
        };
        assert_eq!(again(&lazy, &instance), Some(second(3)));
        instance.starts = [second(3)].into();
        assert_eq!(again(&lazy, &instance), Some(second(3).after(ACTIVATION_PAUSE)));
        assert_eq!(again(&Scene::new(&[("a", Accept::Eager)]), &instance), None);
    }

    #[test]
    fn a_socket_that_listens_anew_is_not_the_one_that_a_run_has() {
        let mut scene = Scene::new(&[("a", Accept::Eager)]);
        scene.begin("a", 1);
        scene.begin("web", 2);
        let newer = |scene: &Scene| {
            let web = scene.observed.get(&id("web")).unwrap().run.clone().unwrap();
            scene.look(|view| newer_socket(view, &id("web"), &web))
        };
        assert_eq!(newer(&scene), None);
        scene.observed.insert(id("a"), Instance::default());
        assert_eq!(newer(&scene), None, "it does not listen");
        scene.begin("a", 3);
        assert_eq!(newer(&scene), Some(name("a")));
    }

    #[test]
    fn it_can_be_called_while_every_socket_of_it_listens() {
        let mut scene = Scene::new(&[("a", Accept::Lazy), ("b", Accept::Lazy)]);
        let on = scene.look(|view| callers(view, &id("web"), &Instance::default(), true));
        let waiting = Phase::Waiting { on, fresh: true };
        let can = |scene: &Scene, phase: &Phase| {
            scene.look(|view| can_be_called(view, &id("web"), phase))
        };
        scene.begin("a", 1);
        assert!(!can(&scene, &waiting));
        scene.begin("b", 2);
        assert!(can(&scene, &waiting) && can(&scene, &Phase::Done));
        assert!(!can(&scene, &Phase::Down));
        let cause = StopCause::GoalDown;
        scene.happen("a", 3, Happening::StopBegan { run: RunId(1), cause });
        assert!(!can(&scene, &waiting) && !can(&scene, &Phase::Done));
        let instance = Instance { phase: waiting, ..Instance::default() };
        let at: Vec<String> = waits_at(&instance).map(ToString::to_string).collect();
        assert_eq!(at, ["a", "b"]);
    }
}
