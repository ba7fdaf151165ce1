//! What holds for every decision, whatever is wanted and whatever is known: properties of
//! `plan::decide`, `plan::reconcile` and `plan::plan`, and of the graph.
//!
//! proptest prints the smallest case that fails, and keeps its seed in `tests/reconcile.seeds`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use opm::model::{
    Action, Agenda, Blocker, Command, Condition, Dependency, Desired, End, Event, FilePath, Graph,
    Happening, Hold, Identity, Instance, InstanceId, Instances, Kind, Life, Monotonic, Observed,
    OnDependencyRestart, Outcome, Phase, Process, ProcessSpec, Ready, Reload, RestartPolicy, Role,
    Run, RunId, Rung, Shared, Signal, Span, Spec, SpecHash, Step, StopCause, Template, Unit,
    UnitName, Until, Wall, Word, Words, find_loop, needs_of,
};
use opm::plan::{self, Hurry, Shutdown, View, decide, reconcile};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const NOW: Monotonic = Monotonic::from_nanos(100_000_000_000);

fn name(text: &str) -> UnitName {
    UnitName::parse(text).unwrap()
}

/// So many milliseconds before [`NOW`].
fn ago(millis: u64) -> Monotonic {
    Monotonic::from_nanos(NOW.since(Monotonic::default()).as_nanos() - millis * 1_000_000)
}

/// What is wanted, what is known, and whether opm is going down.
#[derive(Clone)]
struct Scene {
    desired: Desired,
    observed: Observed,
    shutdown: Option<Shutdown>,
    agenda: Agenda,
}

/// A few lines instead of a thousand.
impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for unit in self.desired.units.values() {
            let (spec, relations) = (&unit.spec, &unit.spec.relations);
            let ready = spec.process.as_ref().map(|process| &process.ready);
            let names = |needs: &[Dependency]| -> Vec<String> {
                let text = |need: &Dependency| format!("{} {}", need.unit, need.condition.as_str());
                needs.iter().map(text).collect()
            };
            writeln!(f, "{} {:?} x{:?}", spec.name, spec.kind, spec.instances)?;
            writeln!(f, "  enabled {} removed {}", spec.enabled, unit.removed)?;
            writeln!(f, "  requires {:?}", names(&relations.requires))?;
            writeln!(f, "  wants {:?}", names(&relations.wants))?;
            writeln!(f, "  after {:?}", names(&relations.after))?;
            writeln!(f, "  conflicts {:?}", relations.conflicts)?;
            let follow = relations.on_dependency_restart;
            writeln!(f, "  {:?} {ready:?} follows by {follow:?}", spec.restart.policy)?;
            let held = unit.hold.is_some();
            let instances = unit.instances.keys().collect::<Vec<_>>();
            writeln!(f, "  held {held} or {instances:?}, epoch {}", unit.epoch)?;
        }
        for (id, instance) in self.observed.iter() {
            let Instance { phase, since, run, epoch, hash, .. } = instance;
            writeln!(f, "{id} {phase:?} since {since:?}, epoch {epoch}, {hash:?}")?;
            if let Some(run) = run {
                let main = run.main.as_ref().map(|main| &main.state);
                writeln!(f, "  main {main:?} ready {:?} left {:?}", run.ready, run.left)?;
            }
        }
        write!(f, "shutdown {:?}", self.shutdown)
    }
}

impl Scene {
    fn graph(&self) -> Graph {
        Graph::build(&self.desired)
    }

    fn ids(&self) -> BTreeSet<InstanceId> {
        let known = self.observed.iter().map(|(id, _)| id.clone());
        known.chain(self.desired.units.values().flat_map(|unit| unit.spec.instance_ids())).collect()
    }
}

fn view<'a>(scene: &'a Scene, graph: &'a Graph) -> View<'a> {
    let Scene { desired, observed, shutdown, agenda } = scene;
    let wall = Wall::default();
    View { desired, graph, observed, shutdown: shutdown.as_ref(), agenda, wall }
}

// What is wanted.

fn any_spec(place: usize, instances_max: u32) -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![
        4 => Just(Kind::Service),
        2 => Just(Kind::Task),
        1 => Just(Kind::Target),
    ];
    let condition = select(vec![Condition::Started, Condition::Ready, Condition::Completed]);
    let need = (0..4u8, prop_oneof![2 => Just(Condition::Ready), 1 => condition]);
    let follow = select(vec![
        OnDependencyRestart::Ignore,
        OnDependencyRestart::Ignore,
        OnDependencyRestart::Restart,
        OnDependencyRestart::Reload,
    ]);
    let policy =
        select(vec![RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never]);
    let ready =
        select(vec![Ready::Started, Ready::Started, Ready::Notify, Ready::Delay(Span::seconds(1))]);
    (
        kind,
        prop::collection::vec(need, place),
        1..=instances_max,
        prop::bool::weighted(0.85),
        (follow, policy, ready),
        prop::bool::weighted(0.1),
    )
        .prop_map(move |(kind, needs, instances, enabled, behaviour, conflict)| {
            let mut spec = Spec::new(kind, name(NAMES[place]));
            if kind != Kind::Target {
                let argv = Command::Argv(vec![Template::literal("x")]);
                let mut process = ProcessSpec::new(argv, FilePath::from("/"));
                process.ready = behaviour.2.into();
                let is_watched = kind == Kind::Service && process.ready == Ready::Notify;
                process.watchdog = is_watched.then_some(Span::seconds(1));
                spec.process = Some(process);
                // A task that is always run again never comes to rest.
                if kind == Kind::Service || behaviour.1 != RestartPolicy::Always {
                    spec.restart.policy = behaviour.1;
                }
            }
            for (other, (strength, condition)) in needs.into_iter().enumerate() {
                let need = Dependency { unit: name(NAMES[other]), condition };
                match strength {
                    0 => {}
                    1 => spec.relations.after.push(need),
                    2 => spec.relations.wants.push(need),
                    _ => spec.relations.requires.push(need),
                }
            }
            if conflict && place > 0 {
                spec.relations.conflicts.push(name(NAMES[0]));
            }
            spec.relations.on_dependency_restart = behaviour.0;
            spec.reload = Some(Box::new(Reload::Signal(Signal::HUP)));
            spec.instances = Instances::Count(instances).into();
            spec.enabled = enabled;
            spec
        })
}

fn hold() -> Hold {
    Hold { by: "me".to_owned(), reason: String::new(), at: Wall(0), until: None, until_boot: false }
}

fn any_unit(place: usize, instances_max: u32) -> impl Strategy<Value = Unit> {
    let rare = prop::bool::weighted(0.15);
    (any_spec(place, instances_max), rare, rare, 0..2u64, rare).prop_map(
        |(spec, held, first_held, epoch, removed)| {
            let first = spec.instance_ids().into_iter().next();
            let mut unit = Unit::new(Arc::new(spec), "/units".to_owned());
            unit.hold = held.then(|| Box::new(hold()));
            unit.epoch = epoch;
            unit.removed = removed;
            if let (true, Some(id)) = (first_held, first) {
                unit.instances.entry(id).or_default().hold = Some(Box::new(hold()));
            }
            unit
        },
    )
}

fn any_desired(instances_max: u32) -> impl Strategy<Value = Desired> {
    let units = (0..NAMES.len()).map(|place| any_unit(place, instances_max).boxed());
    (units.collect::<Vec<_>>(), 1..=NAMES.len()).prop_map(|(units, count)| {
        let units = units.into_iter().take(count);
        let units = units.map(|unit| (unit.spec.name.clone(), unit)).collect();
        Desired { generation: 1, units, ..Desired::default() }
    })
}

// What is known.

fn any_life() -> impl Strategy<Value = Life> {
    prop_oneof![
        1 => Just(Life::Born),
        4 => Just(Life::Running(ago(500))),
        2 => (0..2u8).prop_map(|code| Life::Ended(Outcome::Exited(code))),
    ]
}

fn any_cause() -> impl Strategy<Value = StopCause> {
    select(vec![
        StopCause::GoalDown,
        StopCause::Restart,
        StopCause::Changed,
        StopCause::MainEnded,
        StopCause::StartTimeout,
    ])
}

fn any_phase() -> impl Strategy<Value = Phase> {
    let rung = select(vec![Rung::Dependents, Rung::Dependents, Rung::Step(0), Rung::Kill]);
    prop_oneof![
        2 => Just(Phase::Down),
        1 => any::<bool>().prop_map(|fresh| Phase::Waiting { on: Vec::new(), fresh }),
        2 => Just(Phase::Starting),
        5 => Just(Phase::Up),
        3 => (any_cause(), rung).prop_map(|(cause, rung)| Phase::Stopping {
            cause, rung, rung_since: ago(300), own_since: ago(300),
        }),
        1 => (0..2_000u64).prop_map(|millis| Phase::Backoff {
            until: ago(1_000).after(Span::millis(millis)),
        }),
        1 => any::<bool>().prop_map(|at_limit| Phase::Failed { at_limit }),
        2 => Just(Phase::Done),
        1 => Just(Phase::Skipped { condition: "it".to_owned() }),
        1 => Just(Phase::Unproven { why: "it".to_owned(), was: Box::default() }),
    ]
}

fn has_run(phase: &Phase) -> bool {
    match phase {
        Phase::Starting | Phase::Up | Phase::Stopping { .. } | Phase::Unproven { .. } => true,
        Phase::Down
        | Phase::Waiting { .. }
        | Phase::Backoff { .. }
        | Phase::Failed { .. }
        | Phase::Done
        | Phase::Skipped { .. } => false,
    }
}

fn process(pid: i32, state: Life) -> Process {
    Process { identity: Some(Identity { pid, start: 1, inode: None }), state }
}

/// Facts about an instance; those of a running unit fit its spec.
#[derive(Debug, Clone)]
struct Facts {
    phase: Phase,
    main: Option<Life>,
    ready: bool,
    since: u64,
    epoch: u64,
    is_old: bool,
    left: Option<u32>,
}

fn any_facts() -> impl Strategy<Value = Facts> {
    (
        any_phase(),
        prop::option::weighted(0.8, any_life()),
        any::<bool>(),
        0..2_000u64,
        0..2u64,
        prop::bool::weighted(0.2),
        prop::option::of(0..2u32),
    )
        .prop_map(|(phase, main, ready, since, epoch, is_old, left)| Facts {
            phase,
            main,
            ready,
            since,
            epoch,
            is_old,
            left,
        })
}

fn instance(facts: Facts, unit: &Unit, pid: i32) -> Instance {
    let Facts { phase, main, ready, since, epoch, is_old, left } = facts;
    let is_up = phase == Phase::Up;
    let main = if is_up && main.is_none() { Some(Life::Running(ago(500))) } else { main };
    let main = main.filter(|_| unit.spec.process.is_some());
    let run = has_run(&phase).then(|| Run {
        id: RunId(u64::try_from(pid).unwrap()),
        began: ago(since + 1),
        wall: Wall(0),
        main: main.map(|state| process(pid, state)),
        helper: None,
        earlier: Vec::new(),
        asked: None,
        unhealthy: Shared::default(),
        was_healthy: false,
        ready: (ready || is_up).then(|| ago(since)),
        reloaded: None,
        touched: None,
        left,
        bound: Shared::default(),
        called: None,
        status: String::new(),
        words: Words {
            well: (epoch == 1).then(|| ago(since / 2)),
            failed: since.is_multiple_of(16),
            ..Words::default()
        }
        .into(),
        adopted: false,
    });
    let last = End {
        run: RunId(999),
        cause: StopCause::MainEnded,
        outcome: Some(Outcome::Exited(1)),
        at: ago(since),
        ready_for: None,
        ends_opm: false,
    };
    Instance {
        last: run.is_none().then(|| Box::new(last)),
        run,
        phase,
        since: ago(since),
        epoch,
        hash: if is_old { SpecHash(1) } else { unit.hash },
        ..Instance::default()
    }
}

fn any_shutdown() -> impl Strategy<Value = Option<Shutdown>> {
    let hurry = select(vec![Hurry::Ordered, Hurry::Ordered, Hurry::Unordered, Hurry::Kill]);
    let some = (hurry, prop::option::of(0..3_000u64)).prop_map(|(hurry, deadline)| Shutdown {
        began: ago(1_000),
        deadline: deadline.map(|millis| ago(1_000).after(Span::millis(millis))),
        reserve: Span::ZERO,
        stages: BTreeMap::new(),
        is_asked: true,
        hurry,
        kills_since: None,
        code: 0,
        why: String::new(),
        spared: BTreeSet::new(),
    });
    prop::option::weighted(0.15, some)
}

fn any_scene(instances_max: u32) -> impl Strategy<Value = Scene> {
    let facts = prop::collection::vec(prop::option::weighted(0.8, any_facts()), 8);
    (any_desired(instances_max), facts, any_shutdown()).prop_map(|(desired, facts, shutdown)| {
        let mut observed = Observed::default();
        let mut facts = facts.into_iter().zip(10..);
        for unit in desired.units.values() {
            for id in unit.spec.instance_ids() {
                if let Some((Some(facts), pid)) = facts.next() {
                    observed.insert(id, instance(facts, unit, pid));
                }
            }
        }
        Scene { desired, observed, shutdown, agenda: Agenda::default() }
    })
}

// What holds.

/// Whether everything that a unit requires is as it has to be, said in another way than in `plan`.
fn requirements_are_met(scene: &Scene, id: &InstanceId) -> bool {
    let unit = &scene.desired.units[&id.unit];
    unit.spec.relations.requires.iter().all(|need| {
        let Some(other) = scene.desired.units.get(&need.unit) else { return false };
        let completes = need.condition == Condition::Completed
            || (other.spec.kind == Kind::Task && need.condition == Condition::Ready);
        other.spec.instance_ids().iter().all(|id| {
            let Some(instance) = scene.observed.get(id) else { return false };
            let started = instance.run.as_ref().is_some_and(|run| {
                matches!(run.main, Some(Process { state: Life::Running(_), .. }))
            });
            match instance.phase {
                Phase::Up => !completes,
                Phase::Starting => need.condition == Condition::Started && started,
                Phase::Done => completes || other.spec.kind == Kind::Task,
                Phase::Down
                | Phase::Waiting { .. }
                | Phase::Stopping { .. }
                | Phase::Backoff { .. }
                | Phase::Failed { .. }
                | Phase::Skipped { .. }
                | Phase::Unproven { .. } => false,
            }
        })
    })
}

fn is_held(scene: &Scene, id: &InstanceId) -> bool {
    scene.desired.units.get(&id.unit).is_some_and(|unit| unit.hold_of(id).is_some())
}

/// Who requires this unit and has a run that can be stopped.
fn requiring_runs(scene: &Scene, unit: &UnitName) -> Vec<InstanceId> {
    let requires = |other: &&Unit| {
        other.spec.relations.requires.iter().any(|dependency| dependency.unit == *unit)
    };
    let dependents = scene.desired.units.values().filter(requires);
    let of = dependents.flat_map(|unit| scene.observed.of_unit(&unit.spec.name));
    of.filter(|(_, instance)| {
        instance.run.is_some() && !matches!(instance.phase, Phase::Unproven { .. })
    })
    .map(|(id, _)| id.clone())
    .collect()
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("seeds"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn a_decision_is_a_function_of_what_it_is_given(scene in any_scene(2)) {
        let graph = scene.graph();
        let view = view(&scene, &graph);
        let all = reconcile(&view, NOW);
        prop_assert_eq!(&all, &reconcile(&view, NOW));
        // One by one, in the other order, is the same.
        let mut steps: Vec<Step> = Vec::new();
        let mut wakes = Vec::new();
        for id in scene.ids().iter().rev() {
            let due = decide(&view, id, NOW);
            steps.splice(0..0, due.steps);
            wakes.extend(due.wake);
        }
        prop_assert_eq!(&all.steps, &steps);
        prop_assert_eq!(all.wake, wakes.into_iter().min());
    }

    #[test]
    fn the_order_in_which_units_name_each_other_does_not_matter(scene in any_scene(2)) {
        let mut turned = scene.clone();
        for unit in turned.desired.units.values_mut() {
            let spec = Arc::make_mut(&mut unit.spec);
            spec.relations.requires.reverse();
            spec.relations.wants.reverse();
            spec.relations.after.reverse();
        }
        let (graph, turned_graph) = (scene.graph(), turned.graph());
        let (view, turned) = (view(&scene, &graph), view(&turned, &turned_graph));
        for id in scene.ids() {
            let (due, other) = (decide(&view, &id, NOW), decide(&turned, &id, NOW));
            let kinds = |steps: &[Step]| -> Vec<_> {
                steps.iter().map(|step| std::mem::discriminant(&step.action)).collect()
            };
            prop_assert_eq!(kinds(&due.steps), kinds(&other.steps));
            prop_assert_eq!(due.wake, other.wake);
        }
    }

    #[test]
    fn whom_a_change_does_not_concern_has_nothing_due_by_it(
        scene in any_scene(2),
        which in any::<prop::sample::Index>(),
        facts in any_facts(),
    ) {
        let graph = scene.graph();
        let ids = scene.ids();
        prop_assume!(!ids.is_empty());
        let changed = ids.iter().nth(which.index(ids.len())).unwrap();
        let Some(unit) = scene.desired.units.get(&changed.unit) else { return Ok(()) };
        let mut after = scene.clone();
        after.observed.insert(changed.clone(), instance(facts, unit, 7_000));
        let (before, after) = (view(&scene, &graph), view(&after, &graph));
        let Some(node) = graph.node(&changed.unit) else { return Ok(()) };
        for need in &node.dependents {
            for id in after.instances(&need.unit) {
                let due = decide(&before, &id, NOW);
                let is_looked_at = plan::concerns(&after, &id, &changed.unit, need)
                    || node.conflicts.contains(&id.unit);
                if due.steps.is_empty() && !is_looked_at {
                    prop_assert_eq!(due, decide(&after, &id, NOW), "{}, for {}", id, changed);
                }
            }
        }
    }

    #[test]
    fn no_decision_is_illegal(scene in any_scene(2)) {
        let graph = scene.graph();
        let view = view(&scene, &graph);
        for id in scene.ids() {
            let due = decide(&view, &id, NOW);
            let instance = scene.observed.get(&id);
            let run = instance.and_then(|instance| instance.run.as_ref());
            prop_assert!(due.wake.is_none_or(|at| at > NOW), "{id} wakes in the past");
            if let Some(Phase::Unproven { .. }) = instance.map(|instance| &instance.phase) {
                prop_assert!(due.steps.is_empty() && due.wake.is_none(), "{id} is held");
            }
            for step in &due.steps {
                match &step.action {
                    Action::Begin { .. } => {
                        prop_assert!(run.is_none(), "{id} begins twice");
                        prop_assert!(!is_held(&scene, &id), "{id} begins though it is held");
                        prop_assert!(scene.shutdown.is_none());
                        prop_assert!(!scene.desired.units[&id.unit].removed);
                        prop_assert!(requirements_are_met(&scene, &id), "{id} begins too early");
                    }
                    Action::Wait { .. } => prop_assert!(run.is_none() && !is_held(&scene, &id)),
                    Action::Spawn(of, Role::Main) => {
                        prop_assert_eq!(run.map(|run| run.id), Some(*of));
                        prop_assert!(run.is_some_and(|run| run.main.is_none()), "{id}: two mains");
                        prop_assert!(!is_held(&scene, &id), "{id}: a held unit goes on starting");
                    }
                    Action::Settle(_) => prop_assert!(
                        run.is_none_or(|run| !run.is_alive() && run.left == Some(0)),
                        "{id} is over while it lives"
                    ),
                    Action::Forget => prop_assert!(run.is_none()),
                    Action::Spawn(..)
                    | Action::MarkReady(_)
                    | Action::MarkUp(_)
                    | Action::ReloadSignal(_)
                    | Action::StopBegin(..)
                    | Action::Climb(..)
                    | Action::KillHelper(..)
                    | Action::WatchTree(_) => prop_assert!(run.is_some()),
                    Action::Enrol | Action::PassOver | Action::Queue => {
                        prop_assert!(false, "{id} has no schedule");
                    }
                    Action::StartUnit(_) | Action::Shutdown(_) => {}
                }
            }
        }
    }

    #[test]
    fn a_hold_is_respected_in_every_phase(scene in any_scene(2)) {
        let graph = scene.graph();
        let view = view(&scene, &graph);
        for id in scene.ids().into_iter().filter(|id| is_held(&scene, id)) {
            let Some(instance) = scene.observed.get(&id) else { continue };
            let steps = decide(&view, &id, NOW).steps;
            let first = steps.first().map(|step| &step.action);
            match instance.phase {
                Phase::Starting | Phase::Up => {
                    prop_assert!(matches!(first, Some(Action::StopBegin(..))), "{first:?}");
                }
                Phase::Waiting { .. } | Phase::Backoff { .. } if steps.is_empty() => {
                    prop_assert!(false, "{id} stays in {:?}", instance.phase);
                }
                Phase::Waiting { .. }
                | Phase::Backoff { .. }
                | Phase::Failed { .. }
                | Phase::Skipped { .. }
                | Phase::Down
                | Phase::Done => prop_assert!(
                    matches!(first, None | Some(Action::Settle(_) | Action::Forget)),
                    "{first:?}"
                ),
                Phase::Stopping { .. } | Phase::Unproven { .. } => {}
            }
        }
    }

    #[test]
    fn nothing_is_signalled_before_those_who_require_it_are_gone(scene in any_scene(1)) {
        let graph = scene.graph();
        let view = view(&scene, &graph);
        let ordered = scene.shutdown.as_ref().is_none_or(|shutdown| {
            shutdown.hurry == Hurry::Ordered && shutdown.deadline.is_none_or(|at| at > NOW)
        });
        for (id, instance) in scene.observed.iter().filter(|_| ordered) {
            let Phase::Stopping { cause, rung: Rung::Dependents, .. } = &instance.phase else {
                continue;
            };
            if !cause.spreads() {
                continue;
            }
            let runs = requiring_runs(&scene, &id.unit);
            let steps = decide(&view, id, NOW).steps;
            prop_assert!(runs.is_empty() || steps.is_empty(), "{steps:?} in spite of {runs:?}");
            // And it waits for nobody who will not go.
            if steps.is_empty() && !runs.is_empty() {
                for dependent in runs {
                    let phase = &scene.observed.get(&dependent).unwrap().phase;
                    let goes = matches!(phase, Phase::Stopping { .. })
                        || matches!(
                            decide(&view, &dependent, NOW).steps.first().map(|step| &step.action),
                            Some(Action::StopBegin(..))
                        );
                    prop_assert!(goes, "{id} waits for {dependent}, which stays {phase:?}");
                }
            }
        }
    }

    #[test]
    fn a_plan_to_what_is_already_wanted_is_empty(scene in any_scene(2)) {
        let plan = plan::plan(&scene.desired, &scene.desired, &scene.observed);
        prop_assert!(plan.changes.is_empty(), "{plan:?}");
    }

    #[test]
    fn depth_is_the_longest_way_down(desired in any_desired(1)) {
        let graph = Graph::build(&desired);
        let specs: Vec<&Spec> = desired.units.values().map(|unit| &*unit.spec).collect();
        prop_assert_eq!(find_loop(specs.iter().copied()), None);
        for unit in desired.units.keys() {
            let depth = longest(&specs, unit);
            prop_assert_eq!(graph.node(unit).unwrap().depth, depth, "{}", unit);
        }
    }

    #[test]
    fn a_loop_is_found_exactly_where_there_is_one(
        edges in prop::collection::btree_set((0..5usize, 0..5usize), 0..9)
    ) {
        let letters = ["a", "b", "c", "d", "e"];
        let mut specs: Vec<Spec> =
            letters.iter().map(|letter| Spec::new(Kind::Service, name(letter))).collect();
        for (from, to) in &edges {
            let need = Dependency { unit: name(letters[*to]), condition: Condition::Ready };
            specs[*from].relations.after.push(need);
        }
        let mut reach = edges.clone();
        for _ in 0..letters.len() {
            let more: Vec<_> = reach.iter().flat_map(|(a, b)| {
                edges.iter().filter(move |(from, _)| from == b).map(move |(_, to)| (*a, *to))
            }).collect();
            reach.extend(more);
        }
        let found = find_loop(&specs);
        prop_assert_eq!(found.is_some(), reach.iter().any(|(a, b)| a == b));
        if let Some(cycle) = found {
            let place = |unit: &UnitName| letters.iter().position(|l| *l == unit.as_str()).unwrap();
            for (n, unit) in cycle.iter().enumerate() {
                let next = &cycle[(n + 1) % cycle.len()];
                prop_assert!(edges.contains(&(place(unit), place(next))), "{cycle:?}");
            }
            prop_assert_eq!(cycle.iter().min(), cycle.first());
        }
    }
}

/// The longest way down from a unit, counted in units.
fn longest(specs: &[&Spec], unit: &UnitName) -> u32 {
    let needs = specs.iter().copied().flat_map(needs_of).filter(|(from, _)| from == unit);
    1 + needs.map(|(_, need)| longest(specs, &need.unit)).max().unwrap_or(0)
}

/// A unit in two instances, the first of which is being stopped, the second of which is as given;
/// and one that requires the unit and is as given.
fn first_of_two_stops(kind: Kind, second: Phase, dependent: Phase) -> Vec<Step> {
    let mut base = Spec::new(kind, name("a"));
    base.instances = Instances::Count(2).into();
    base.process =
        Some(ProcessSpec::new(Command::Argv(vec![Template::literal("x")]), FilePath::from("/")));
    let mut user = Spec::new(Kind::Service, name("b"));
    user.process.clone_from(&base.process);
    user.relations.requires = vec![Dependency { unit: name("a"), condition: Condition::Ready }];
    let mut units = [base, user].map(|spec| Unit::new(Arc::new(spec), "-".to_owned()));
    let first = InstanceId::parse("a@1").unwrap();
    units[0].instances.entry(first.clone()).or_default().hold = Some(Box::new(hold()));
    let (cause, rung) = (StopCause::GoalDown, Rung::Dependents);
    let (rung_since, own_since) = (ago(300), ago(300));
    let stopping = Phase::Stopping { cause, rung, rung_since, own_since };
    let facts = |phase| Facts {
        phase,
        main: Some(Life::Running(ago(500))),
        ready: true,
        since: 600,
        epoch: 0,
        is_old: false,
        left: None,
    };
    let mut observed = Observed::default();
    for (id, phase, unit, pid) in [
        ("a@1", stopping, &units[0], 1),
        ("a@2", second, &units[0], 2),
        ("b", dependent, &units[1], 3),
    ] {
        observed.insert(InstanceId::parse(id).unwrap(), instance(facts(phase), unit, pid));
    }
    let units = units.map(|unit| (unit.spec.name.clone(), unit)).into();
    let desired = Desired { generation: 1, units, ..Desired::default() };
    let scene = Scene { desired, observed, shutdown: None, agenda: Agenda::default() };
    let graph = scene.graph();
    decide(&view(&scene, &graph), &first, NOW).steps
}

#[test]
fn an_instance_that_stops_waits_for_those_who_go_with_it_and_for_nobody_else() {
    let unproven = || Phase::Unproven { why: "it".to_owned(), was: Box::default() };
    for (kind, second, dependent, waits) in [
        // All of the unit goes, and so does who requires it.
        (Kind::Service, Phase::Failed { at_limit: false }, Phase::Up, true),
        // The other instance is, or will be again, what is required: nobody goes.
        (Kind::Service, Phase::Up, Phase::Up, false),
        (Kind::Service, Phase::Backoff { until: NOW.after(Span::seconds(20)) }, Phase::Up, false),
        (Kind::Task, Phase::Done, Phase::Up, false),
        // Nobody can say whether it is there at all.
        (Kind::Service, Phase::Failed { at_limit: false }, unproven(), false),
    ] {
        let case = format!("{kind:?}, beside {second:?}, required by {dependent:?}");
        let steps = first_of_two_stops(kind, second, dependent);
        assert_eq!(steps.is_empty(), waits, "{case}: {steps:?}");
    }
}

// From any state to rest.

/// Rounds in which any scene of four units must come to rest.
const ROUNDS_MAX: usize = 300;

/// Whether a stop has come so far that its signal was sent.
fn is_signalled(phase: &Phase) -> bool {
    matches!(phase, Phase::Stopping { rung: Rung::Step(_) | Rung::Kill, .. })
}

/// Whether nothing that an instance requires has failed for good, or is to be down.
fn requirements_may_come(view: &View<'_>, id: &InstanceId) -> bool {
    view.desired.units[&id.unit].spec.relations.requires.iter().all(|need| {
        view.instances(&need.unit).iter().any(|id| {
            let phase = view.observed.get(id).map_or(&Phase::Down, |instance| &instance.phase);
            match phase {
                Phase::Failed { .. } | Phase::Skipped { .. } => false,
                Phase::Done | Phase::Unproven { .. } => true,
                Phase::Down
                | Phase::Waiting { .. }
                | Phase::Starting
                | Phase::Up
                | Phase::Stopping { .. }
                | Phase::Backoff { .. } => view.wants(id),
            }
        })
    })
}

/// Whether a start may wait for this for ever: nothing is under way, or it is for a service to end.
fn is_at_rest(scene: &Scene, blocker: &Blocker) -> bool {
    let waits = |(_, instance): (_, &Instance)| matches!(instance.phase, Phase::Waiting { .. });
    let is_task = |unit: &Unit| unit.spec.kind == Kind::Task;
    let ends = scene.desired.units.get(&blocker.unit).is_some_and(is_task);
    blocker.stuck
        || scene.observed.of_unit(&blocker.unit).any(waits)
        || (blocker.until == Until::Is(Condition::Completed) && !ends)
}

/// Carries out what is due in a world where every program does as it should.
struct Obliging {
    scene: Scene,
    now: Monotonic,
    next: u64,
}

impl Obliging {
    fn happen(&mut self, id: &InstanceId, what: Happening) {
        let event = Event { instance: id.clone(), at: self.now, what };
        self.scene.observed.apply(&event);
    }

    /// Who could say again and again that it is well says once that it may be silent.
    fn watchdogs_rest(&mut self) -> bool {
        let says = |run: &Run| run.ready.is_some() && run.words.silence.is_none();
        let speaks = self.scene.observed.iter().filter_map(|(id, instance)| {
            Some((id.clone(), instance.run.as_ref().filter(|run| says(run))?.id))
        });
        let speaks: Vec<(InstanceId, RunId)> = speaks.collect();
        for (id, run) in &speaks {
            let word = Word::Silence(Span::FOREVER);
            self.happen(id, Happening::Word { run: *run, word });
        }
        !speaks.is_empty()
    }

    /// Until nothing is due, nobody has anything left to do, and no time is waited for.
    fn rest(&mut self) -> Result<(), String> {
        let mut last = Vec::new();
        for _ in 0..ROUNDS_MAX {
            self.now = self.now.after(Span::millis(1));
            let graph = self.scene.graph();
            let due = reconcile(&view(&self.scene, &graph), self.now);
            let wishes = due.steps.iter().any(|step| step.action.is_wish());
            last.clone_from(&due.steps);
            for step in due.steps {
                if !wishes || step.action.is_wish() {
                    self.carry_out(&step);
                }
            }
            if last.is_empty() && !self.programs_go_on() && !self.watchdogs_rest() {
                match due.wake {
                    Some(at) => self.now = at,
                    None => return Ok(()),
                }
            }
        }
        Err(format!("no rest: {last:?}\n{:#?}", self.scene.observed))
    }

    fn carry_out(&mut self, step: &Step) {
        let id = &step.instance;
        let Some(unit) = self.scene.desired.units.get(&id.unit) else { return };
        let (epoch, hash) = (unit.epoch_of(id), unit.hash);
        match step.action.clone() {
            Action::Begin { fresh } => {
                self.next += 1;
                let run = RunId(self.next);
                self.happen(
                    id,
                    Happening::Began { run, epoch, hash, wall: Wall(0), fresh, due: None },
                );
            }
            Action::Spawn(run, role) => {
                self.next += 1;
                let pid = i32::try_from(self.next).unwrap();
                let identity = Identity { pid, start: 1, inode: None };
                self.happen(id, Happening::Spawned { run, role, identity });
            }
            Action::MarkReady(run) => self.happen(id, Happening::Ready { run }),
            Action::MarkUp(run) => self.happen(id, Happening::Up { run }),
            Action::ReloadSignal(run) => self.happen(id, Happening::Reloaded { run }),
            Action::StopBegin(run, cause) => self.happen(id, Happening::StopBegan { run, cause }),
            Action::Climb(run, rung) => {
                self.happen(id, Happening::Rung { run, rung });
                let outcome = Outcome::Killed { signal: Signal::TERM, core: false };
                self.happen(id, Happening::Ended { run, role: Role::Main, outcome });
            }
            Action::WatchTree(run) | Action::KillHelper(run, _) => {
                self.happen(id, Happening::Tree { run, left: 0 });
            }
            Action::Settle(verdict) => {
                self.happen(id, Happening::Settled { verdict, ends_opm: false });
            }
            Action::Wait { on, fresh } => {
                self.happen(id, Happening::Waits { on, fresh, epoch: None });
            }
            Action::Forget => {
                self.happen(id, Happening::Forgotten);
                let unit = &id.unit;
                if self.scene.observed.of_unit(unit).next().is_none()
                    && self.scene.desired.units.get(unit).is_some_and(|unit| unit.removed)
                {
                    self.scene.desired.units.remove(unit);
                }
            }
            Action::Enrol | Action::PassOver | Action::Queue => {
                unreachable!("no unit has a schedule")
            }
            Action::StartUnit(_) | Action::Shutdown(_) => {}
        }
    }

    /// Programs run, say that they are ready, and tasks end. Returns whether anything happened.
    fn programs_go_on(&mut self) -> bool {
        let mut all = Vec::new();
        for (id, instance) in self.scene.observed.iter() {
            let Some(run) = &instance.run else { continue };
            if matches!(instance.phase, Phase::Unproven { .. }) {
                continue;
            }
            let spec = self.scene.desired.units.get(&id.unit).map(|unit| Arc::clone(&unit.spec));
            let is_task = spec.as_ref().is_some_and(|spec| spec.kind == Kind::Task);
            let notifies = spec.as_ref().and_then(|spec| spec.process.as_ref());
            let notifies = notifies.is_some_and(|process| process.ready == Ready::Notify);
            let (run, role, left) = (run.id, Role::Main, run.left);
            let life = instance.run.as_ref().and_then(|run| run.main.as_ref());
            let ready = instance.run.as_ref().and_then(|run| run.ready);
            match life.map(|process| &process.state) {
                Some(Life::Born | Life::Running(_)) if is_signalled(&instance.phase) => {
                    let outcome = Outcome::Killed { signal: Signal::KILL, core: false };
                    all.push((id.clone(), Happening::Ended { run, role, outcome }));
                }
                Some(Life::Born) => all.push((id.clone(), Happening::Execed { run, role })),
                Some(Life::Running(_)) if is_task => {
                    let outcome = Outcome::Exited(0);
                    all.push((id.clone(), Happening::Ended { run, role, outcome }));
                }
                Some(Life::Running(_)) if notifies && ready.is_none() => {
                    all.push((id.clone(), Happening::Ready { run }));
                }
                Some(Life::Running(_) | Life::Ended(_)) | None => {}
            }
            if matches!(instance.phase, Phase::Stopping { .. }) && left.is_some_and(|n| n > 0) {
                all.push((id.clone(), Happening::Tree { run, left: 0 }));
            }
        }
        let any = !all.is_empty();
        for (id, what) in all {
            self.happen(&id, what);
        }
        any
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn from_any_state_an_obliging_world_comes_to_rest_at_the_goal(scene in any_scene(2)) {
        let mut world = Obliging { scene, now: NOW, next: 1_000 };
        world.rest().map_err(TestCaseError::fail)?;
        let Obliging { scene, now, .. } = &world;
        let graph = scene.graph();
        let view = view(scene, &graph);
        let due = reconcile(&view, *now);
        prop_assert!(due.steps.is_empty() && due.wake.is_none(), "{due:?}");
        for id in scene.ids() {
            let wanted = view.wants(&id);
            let phase = scene.observed.get(&id).map_or(Phase::Down, |known| known.phase.clone());
            let fits = match &phase {
                Phase::Unproven { .. } | Phase::Done => true,
                Phase::Up => wanted && requirements_may_come(&view, &id),
                Phase::Waiting { on, .. } => {
                    wanted && !on.is_empty() && on.iter().all(|blocker| is_at_rest(scene, blocker))
                }
                Phase::Failed { .. } | Phase::Skipped { .. } => {
                    wanted || scene.shutdown.is_some()
                }
                Phase::Down => !wanted,
                Phase::Starting | Phase::Stopping { .. } | Phase::Backoff { .. } => false,
            };
            prop_assert!(fits, "{id}, wanted: {wanted}, rests in {phase:?}");
        }
    }
}
