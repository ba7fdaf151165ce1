//! All small worlds: every dependency graph of up to three units, of every sort, under names in both
//! orders. Each comes up, has one unit held down and started again, and goes down, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use opm::model::{
    Command, Condition, Dependency, Desired, FilePath, Hook, InstanceId, Kind, Output, Phase,
    ProcessSpec, Ready, Span, Spec, StartLimit, Strength, Template, Unit, UnitName,
};

use crate::scene::Seen;
use crate::setting::Setting;
use crate::story::name;
use crate::world::{World, verdict};

/// What a unit of a small world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Plain,
    Late,
    Child,
    Task,
    Fails,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Plain, Self::Late, Self::Child, Self::Task, Self::Fails];
    const FEW: [Self; 3] = [Self::Late, Self::Task, Self::Fails];

    fn spec(self, unit: UnitName) -> Spec {
        let kind = if self == Self::Task { Kind::Task } else { Kind::Service };
        let program = match self {
            Self::Plain => "forever",
            Self::Late => "late",
            Self::Child => "child",
            Self::Task => "after:700:0",
            Self::Fails => "exit:1",
        };
        let mut spec = Spec::new(kind, unit);
        let command = Command::Argv(vec![Template::literal(program)]);
        let mut process = ProcessSpec::new(command, FilePath::from("/"));
        process.output = Output::Null;
        if self == Self::Late {
            process.ready = Ready::Notify.into();
        }
        spec.process = Some(process);
        if self == Self::Fails {
            spec.restart.limit = Some(StartLimit { starts: 2, within: Span::seconds(60) });
        }
        spec
    }
}

/// An edge for each pair of units: the later one depends on the earlier one.
type Edges = BTreeMap<(usize, usize), Strength>;

fn all_edges(count: usize) -> Vec<Edges> {
    let pairs: Vec<(usize, usize)> =
        (0..count).flat_map(|later| (0..later).map(move |earlier| (later, earlier))).collect();
    let mut all = vec![Edges::new()];
    for pair in pairs {
        let more = all.iter().flat_map(|edges| {
            [Strength::After, Strength::Wants, Strength::Requires].map(|strength| {
                let mut edges = edges.clone();
                edges.insert(pair, strength);
                edges
            })
        });
        let more: Vec<Edges> = more.collect();
        all.extend(more);
    }
    all
}

fn all_sorts(count: usize, from: &[Sort]) -> Vec<Vec<Sort>> {
    (0..count).fold(vec![Vec::new()], |all, _| {
        let longer = all.iter().flat_map(|sorts| {
            from.iter().map(|sort| sorts.iter().copied().chain([*sort]).collect())
        });
        longer.collect()
    })
}

struct Small {
    names: [&'static str; 3],
    sorts: Vec<Sort>,
    edges: Edges,
}

impl Small {
    fn unit(&self, place: usize) -> UnitName {
        name(self.names[place])
    }

    fn desired(&self) -> Desired {
        let mut units = BTreeMap::new();
        for (place, sort) in self.sorts.iter().enumerate() {
            let mut spec = sort.spec(self.unit(place));
            for ((later, earlier), strength) in &self.edges {
                if *later != place {
                    continue;
                }
                let need = Dependency { unit: self.unit(*earlier), condition: Condition::Ready };
                match strength {
                    Strength::After => spec.relations.after.push(need),
                    Strength::Wants => spec.relations.wants.push(need),
                    Strength::Requires => spec.relations.requires.push(need),
                }
            }
            units.insert(spec.name.clone(), Unit::new(Arc::new(spec), "/units".to_owned()));
        }
        Desired { generation: 1, units, ..Desired::default() }
    }

    fn requires(&self, later: usize) -> impl Iterator<Item = usize> {
        let required = self.edges.iter().filter(move |((from, _), strength)| {
            *from == later && **strength == Strength::Requires
        });
        required.map(|((_, earlier), _)| *earlier)
    }

    /// Whether a unit comes up; `without` is a unit that was held down when all had come up.
    fn comes_up(&self, place: usize, without: Option<usize>) -> bool {
        // What a task has done stays done.
        let without = without.filter(|_| self.sorts[place] != Sort::Task);
        self.sorts[place] != Sort::Fails && self.may_start(place, without)
    }

    fn may_start(&self, place: usize, without: Option<usize>) -> bool {
        without != Some(place) && self.requires(place).all(|other| self.comes_up(other, without))
    }

    fn phase(&self, world: &mut World, place: usize) -> Phase {
        let id = InstanceId::single(&self.unit(place));
        let known = world.supervisor().unwrap().observed().get(&id);
        known.map_or(Phase::Down, |instance| instance.phase.clone())
    }

    fn expect(&self, world: &mut World, without: Option<usize>) -> Result<(), String> {
        for (place, sort) in self.sorts.iter().enumerate() {
            let phase = self.phase(world, place);
            let fits = match (&phase, self.may_start(place, without)) {
                (Phase::Up, true) => !matches!(sort, Sort::Task | Sort::Fails),
                (Phase::Done, _) => *sort == Sort::Task,
                (Phase::Failed { at_limit }, true) => *sort == Sort::Fails && *at_limit,
                // What failed for good stays so when what it requires goes.
                (Phase::Failed { .. }, false) => without.is_some() && without != Some(place),
                (Phase::Waiting { .. }, false) => without != Some(place),
                (Phase::Down, false) => without == Some(place),
                _ => false,
            };
            if !fits {
                return Err(format!(
                    "`{}` rests in {phase:?} without {without:?}",
                    self.names[place]
                ));
            }
        }
        let supervisor = world.supervisor().unwrap();
        let due = supervisor.due_by_full_look();
        if !due.is_empty() || supervisor.wake_at().is_some() {
            return Err(format!("at the goal, and {due:?} is due"));
        }
        verdict(world)
    }

    /// Up, the first unit down and up again, and everything down.
    fn live(&self) -> Result<(), String> {
        let mut world = World::with_saved(&self.desired());
        // What comes up is waited for by whoever is ordered after it, required or not.
        let edges = self.edges.keys().filter(|(_, earlier)| self.comes_up(*earlier, None));
        world.checks.scene.also_ordered =
            edges.map(|(later, earlier)| (self.unit(*later), self.unit(*earlier))).collect();
        world.pass(Span::seconds(5));
        self.expect(&mut world, None)?;
        world.checks.scene.also_ordered.clear();
        let first = [self.names[0].to_owned()];
        world.see(Seen::Asks { units: Some(vec![self.unit(0)]) });
        world.act(|supervisor| supervisor.stop(&first, "me", "", None).unwrap());
        world.see(Seen::Held { units: vec![self.unit(0)] });
        world.pass(Span::seconds(5));
        self.expect(&mut world, Some(0))?;
        world.see(Seen::Asks { units: Some(vec![self.unit(0)]) });
        world.act(|supervisor| supervisor.start(&first).unwrap());
        world.pass(Span::seconds(5));
        self.expect(&mut world, None)?;
        world.act(|supervisor| supervisor.ask_to_shut_down(None, "test".to_owned()));
        world.see(Seen::Shutdown);
        // No longer than until it has gone down: then another would boot.
        for _ in 0..50 {
            if world.closed == 0 {
                world.pass(Span::millis(100));
            }
        }
        let living: usize = self.names.iter().map(|unit| world.machine().living(unit)).sum();
        if world.closed == 0 || living > 0 {
            return Err("the shutdown is not over".to_owned());
        }
        verdict(&world)
    }
}

fn all_worlds(count: usize, sorts: &[Sort], names: [&'static str; 3]) {
    for sorts in all_sorts(count, sorts) {
        for edges in all_edges(count) {
            let small = Small { names, sorts: sorts.clone(), edges };
            if let Err(why) = small.live() {
                panic!("{:?} named {:?} with {:?}: {why}", small.sorts, names, small.edges);
            }
        }
    }
}

#[test]
fn every_world_of_up_to_two_units_lives_and_ends_in_order() {
    for names in [["a", "b", "c"], ["b", "a", "c"]] {
        all_worlds(1, &Sort::ALL, names);
        all_worlds(2, &Sort::ALL, names);
    }
}

#[test]
fn every_world_of_three_units_lives_and_ends_in_order() {
    all_worlds(3, &Sort::FEW, ["a", "b", "c"]);
}

#[test]
fn every_world_of_three_units_does_so_under_names_in_the_other_order() {
    all_worlds(3, &Sort::FEW, ["c", "b", "a"]);
}

#[test]
fn a_wish_to_stop_has_spread_before_anything_starts() {
    let mut small =
        Small { names: ["a", "b", "c"], sorts: vec![Sort::Plain; 2], edges: Edges::new() };
    small.edges.insert((1, 0), Strength::Requires);
    let mut desired = small.desired();
    let unit = desired.units.get_mut(&name("b")).unwrap();
    let command = Command::Argv(vec![Template::literal("after:20:0")]);
    let hook = Hook { command, ignore_failure: false, user: None };
    Arc::make_mut(&mut unit.spec).hooks.pre_start.push(hook);
    let mut world = World::with_saved(&desired);
    world.pass(Span::millis(6));
    assert_eq!(small.phase(&mut world, 1), Phase::Starting);
    // In one turn: the hook has ended, so that the main process is due, and `a` is to go.
    let now = world.machine().now;
    world.machine().now = now.after(Span::millis(50));
    world.act(|supervisor| supervisor.stop(&["a".to_owned()], "me", "", None).unwrap());
    world.pass(Span::seconds(1));
    let timeline = crate::world::lines(&world.timeline);
    let has = |text: &str| timeline.contains(text);
    assert!(has("b PreStart(0) of") && !has("b Main of"), "{timeline}");
    assert!(matches!(small.phase(&mut world, 1), Phase::Waiting { .. }));
}

impl World {
    /// A machine whose last supervisor left this.
    fn with_saved(desired: &Desired) -> Self {
        let world = Self::new(1, Setting::default());
        let bytes = opm::system::encode_saved(desired).unwrap();
        world.machine().drive.put_file("/state/desired.json", bytes);
        world
    }
}
