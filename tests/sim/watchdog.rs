//! Watchdogs, in worlds where nothing is left to chance: who pings is left alone and costs nothing,
//! who falls silent is ended in time, and no silence counts in which nobody listened.

use std::collections::BTreeMap;
use std::path::Path;

use opm::config::SourceFile;
use opm::model::{FilePath, Happening, InstanceId, Monotonic, Phase, RunId, Span, StopCause};
use opm::supervisor::{Manner, Source};

use crate::check::Check;
use crate::scene::{Scene, Seen};
use crate::setting::Setting;
use crate::story::name;
use crate::world::{World, verdict};

/// A watchdog ends no run that was not silent for so long.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// When a run last said that it is well, where it did.
    said: BTreeMap<RunId, Monotonic>,
    /// Since when there is a supervisor that could hear it.
    listens: Monotonic,
}

impl Check for Silence {
    fn see(&mut self, scene: &Scene, at: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Pings { run } => {
                self.said.insert(*run, at);
            }
            Seen::Boots { .. } => self.listens = at,
            Seen::Released { run, .. } => {
                self.said.remove(run);
            }
            Seen::AllEnd => *self = Self::default(),
            Seen::Noticed(notice) => {
                let Happening::StopBegan { run, cause: StopCause::Watchdog } = notice.event.what
                else {
                    return Ok(());
                };
                let id = &notice.event.instance;
                let process = scene.spec(&id.unit).and_then(|spec| spec.process.as_ref());
                let silence = process.and_then(|process| process.watchdog).unwrap_or_default();
                let from =
                    self.said.get(&run).map_or(self.listens, |said| (*said).max(self.listens));
                if at < from.after(silence) {
                    return Err(format!("{id} was silent for {}, not {silence}", at.since(from)));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A world with a unit `a` that has a watchdog of three seconds, and one that requires it.
fn world(program: &str, is_pid_one: bool) -> World {
    let setting = Setting { is_pid_one, has_inodes: true, ..Setting::default() };
    let mut world = World::new(3, setting);
    let text = format!(
        "name: a\ncommand: [\"{program}\"]\nwatchdog: 3s\n\
         restart: {{policy: never, delay: 5s, jitter: 0}}\n\
         ---\nname: b\ncommand: [forever]\nrequires: [a]\n"
    );
    let path = FilePath::from("/units/a.yaml");
    let files = vec![SourceFile { path, text: text.into_bytes() }];
    let source = Source { name: "/units".to_owned(), files, ..Source::default() };
    world.act(|supervisor| supervisor.apply_source(&source, &Manner::default()).unwrap()).unwrap();
    world
}

fn phase(world: &mut World, unit: &str) -> Phase {
    let id = InstanceId::single(&name(unit));
    world.supervisor().unwrap().observed().get(&id).unwrap().phase.clone()
}

fn run(world: &mut World, unit: &str) -> RunId {
    let id = InstanceId::single(&name(unit));
    world.supervisor().unwrap().observed().get(&id).unwrap().run.as_ref().unwrap().id
}

#[test]
fn a_ping_costs_no_call_and_no_line_of_the_ledger() {
    let mut world = world("pings", true);
    world.pass(Span::seconds(10));
    let ledger = |world: &World| {
        world.machine().drive.read(Path::new("/run/opm/ledger-0.jsonl")).unwrap().len()
    };
    let (verbs, bytes, first) = (world.verbs(), ledger(&world), run(&mut world, "a"));
    // Ten minutes of pings.
    world.pass(Span::seconds(600));
    assert_eq!((world.verbs(), ledger(&world)), (verbs, bytes));
    assert_eq!((run(&mut world, "a"), phase(&mut world, "a")), (first, Phase::Up));
    verdict(&world).unwrap();
}

#[test]
fn who_falls_silent_is_ended_in_time_and_another_follows_whatever_the_policy() {
    // The last ping is that of two seconds.
    let mut world = world("faints:2500", true);
    world.pass(Span::millis(4_900));
    let (first, dependent) = (run(&mut world, "a"), run(&mut world, "b"));
    assert_eq!(phase(&mut world, "a"), Phase::Up);
    world.pass(Span::millis(300));
    assert!(matches!(phase(&mut world, "a"), Phase::Backoff { .. }));
    let id = InstanceId::single(&name("a"));
    let last = world.supervisor().unwrap().observed().get(&id).unwrap().last.clone().unwrap();
    assert_eq!(last.cause, StopCause::Watchdog);
    world.pass(Span::seconds(6));
    assert_ne!(run(&mut world, "a"), first);
    assert_eq!(run(&mut world, "b"), dependent, "what requires it runs on");
    verdict(&world).unwrap();
}

#[test]
fn a_turn_that_takes_long_is_no_silence() {
    let mut world = world("pings", true);
    world.pass(Span::millis(3_500));
    let first = run(&mut world, "a");
    // What requires it begins, which takes long; and it is looked at in the same turn.
    world.machine().slowness = Span::seconds(20);
    let names = ["b".to_owned()];
    world.act(|supervisor| supervisor.restart(&names, None).unwrap()).unwrap();
    world.pass(Span::seconds(60));
    assert_eq!((run(&mut world, "a"), phase(&mut world, "b")), (first, Phase::Up));
    verdict(&world).unwrap();
}

#[test]
fn no_silence_counts_in_which_nobody_listened() {
    let mut world = world("pings", false);
    world.pass(Span::millis(3_500));
    let first = run(&mut world, "a");
    world.crash();
    world.freeze(Span::seconds(30));
    world.pass(Span::seconds(30));
    world.reexec();
    world.freeze(Span::millis(2_500));
    world.pass(Span::seconds(30));
    assert_eq!((run(&mut world, "a"), phase(&mut world, "a")), (first, Phase::Up));
    verdict(&world).unwrap();
}
