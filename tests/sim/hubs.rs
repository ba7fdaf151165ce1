//! Units that many others have to do with: targets of two dozen units, and what all of these need. Who
//! looks again when one of them changes is a choice of the supervisor's; a look at everything after
//! each turn must find nothing that it passed over.

use std::collections::BTreeMap;
use std::sync::Arc;

use opm::model::{
    Command, Condition, Dependency, Desired, FilePath, InstanceId, Kind, OnDependencyRestart,
    Output, Phase, ProcessSpec, Ready, Signal, Span, Spec, Template, Unit, UnitName,
};
use opm::plan::BLOCKERS_MAX;

use crate::chance::Chance;
use crate::scene::Seen;
use crate::setting::Setting;
use crate::story::{CONVERGED_AFTER, name};
use crate::world::{World, lines, verdict};

/// More than are noted to be waited for.
const MEMBERS: usize = BLOCKERS_MAX + 8;
const WORLDS: u64 = 12;
/// How many things happen in a world.
const HAPPENINGS: u64 = 30;

fn service(unit: &str, program: &str, chance: &mut Chance) -> Spec {
    let kind = if program.starts_with("after:700") { Kind::Task } else { Kind::Service };
    let mut spec = Spec::new(kind, name(unit));
    let command = Command::Argv(vec![Template::literal(program)]);
    let mut process = ProcessSpec::new(command, FilePath::from("/"));
    process.output = Output::Null;
    if program == "late" {
        process.ready = Ready::Notify.into();
    }
    spec.process = Some(process);
    spec.restart.max_delay = Span::seconds(2);
    spec.enabled = !chance.one_in(12);
    spec
}

fn need(unit: &UnitName) -> Dependency {
    Dependency { unit: unit.clone(), condition: Condition::Ready }
}

/// `base`, which all need; the members, under names before and after the hubs'; and four hubs, one
/// for each way to have to do with all.
fn desired(chance: &mut Chance) -> Desired {
    let program = *chance.pick(&["forever", "late", "after:900:1"]);
    let base = service("base", program, chance);
    let mut members = Vec::new();
    for place in 0..MEMBERS {
        let programs =
            ["forever", "late", "child", "after:700:0", "after:400:1", "exit:1", "slow:90"];
        let unit = if chance.one_in(2) { format!("a{place:02}") } else { format!("x{place:02}") };
        let program = *chance.pick(&programs);
        let mut spec = service(&unit, program, chance);
        match chance.below(4) {
            0 => spec.relations.wants.push(need(&base.name)),
            1 => {}
            _ => spec.relations.requires.push(need(&base.name)),
        }
        if chance.one_in(4) {
            spec.relations.on_dependency_restart = OnDependencyRestart::Restart;
        }
        members.push(spec);
    }
    let all: Vec<Dependency> = members.iter().map(|spec| need(&spec.name)).collect();
    let mut target = Spec::new(Kind::Target, name("m-target"));
    target.relations.requires.clone_from(&all);
    let mut wants = service("m-wants", "forever", chance);
    wants.relations.wants.clone_from(&all);
    let mut after = service("m-after", "forever", chance);
    after.relations.after.clone_from(&all);
    let mut follows = service("m-follows", "forever", chance);
    follows.relations.on_dependency_restart = OnDependencyRestart::Restart;
    follows.relations.requires = all.into_iter().take(BLOCKERS_MAX + 2).collect();
    let hubs = [base, target, wants, after, follows];
    let all = members.into_iter().chain(hubs);
    let units: BTreeMap<UnitName, Unit> =
        all.map(|spec| (spec.name.clone(), Unit::new(Arc::new(spec), "/units"))).collect();
    Desired { generation: 1, units, ..Desired::default() }
}

fn happen(world: &mut World, units: &[UnitName], chance: &mut Chance) {
    let unit = chance.pick(units).clone();
    let names = [unit.to_string()];
    let ask = |world: &mut World| world.see(Seen::Asks { units: Some(vec![unit.clone()]) });
    match chance.below(8) {
        0 => {
            ask(world);
            if world.act(|s| s.stop(&names, "me", "", None).is_ok()) == Some(true) {
                world.see(Seen::Held { units: vec![unit.clone()] });
            }
        }
        1 => {
            ask(world);
            world.act(|s| s.start(&names).is_ok());
        }
        2 => {
            ask(world);
            world.act(|s| s.restart(&names, None).is_ok());
        }
        3 | 4 => {
            world.machine().is_by_hand = true;
            ask(world);
            world.act(|s| s.kill(&names, Signal::KILL, true).is_ok());
            world.machine().is_by_hand = false;
        }
        5 if chance.one_in(4) => world.crash(),
        _ => world.pass(Span::millis(chance.below(1_500))),
    }
    world.pass(Span::millis(chance.below(200)));
}

fn live(seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let desired = desired(&mut chance);
    let setting = Setting { is_unordered: chance.one_in(2), ..Setting::default() };
    // Of every third world each turn is compared with a look at everything.
    let mut world = World::new(seed * 3, setting);
    let saved = opm::system::encode_saved(&desired).unwrap();
    world.machine().drive.put_file("/state/desired.json", saved);
    let units: Vec<UnitName> = desired.units.keys().cloned().collect();
    world.pass(Span::millis(chance.below(3_000)));
    for _ in 0..HAPPENINGS {
        happen(&mut world, &units, &mut chance);
    }
    for unit in &units {
        world.see(Seen::Asks { units: Some(vec![unit.clone()]) });
        world.act(|supervisor| supervisor.start(&[unit.to_string()]).is_ok());
    }
    world.pass(CONVERGED_AFTER);
    for hub in ["m-wants", "m-after"] {
        let supervisor = world.supervisor().unwrap();
        let known = supervisor.observed().get(&InstanceId::single(&name(hub)));
        let phase = known.map(|instance| instance.phase.clone());
        if phase != Some(Phase::Up) {
            return Err(format!("`{hub}` rests in {phase:?}\n{}", lines(&world.timeline)));
        }
    }
    world.act(|supervisor| supervisor.ask_to_shut_down(None, "test".to_owned()));
    world.see(Seen::Shutdown);
    for _ in 0..300 {
        if world.closed == 0 {
            world.pass(Span::millis(100));
        }
    }
    let is_over = world.closed > 0;
    verdict(&world)?;
    if is_over { Ok(()) } else { Err("the shutdown is not over".to_owned()) }
}

#[test]
fn what_each_of_many_does_is_passed_over_only_where_it_makes_no_difference() {
    for seed in 1..=WORLDS {
        if let Err(why) = live(seed) {
            panic!("seed {seed}: {why}");
        }
    }
}
