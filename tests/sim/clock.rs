//! A wall clock that is set back and forth in the middle of one turn of the supervisor.

use std::path::Path;

use opm::config::SourceFile;
use opm::model::{FilePath, InstanceId, Span};
use opm::supervisor::{Manner, Source};

use crate::setting::Setting;
use crate::story::name;
use crate::world::{World, verdict};

/// Whether `a` runs, or did.
fn has_run(world: &mut World) -> bool {
    let id = InstanceId::single(&name("a"));
    let supervisor = world.supervisor().unwrap();
    supervisor.observed().get(&id).is_some_and(|a| a.last.is_some() || a.run.is_some())
}

#[test]
fn an_interval_is_as_long_as_it_is_whatever_the_clock_shows_at_any_look() {
    for looks in 1..8 {
        for seconds in [-3_600, 3_600] {
            let mut world = World::new(5, Setting { has_inodes: true, ..Setting::default() });
            let text = "name: a\nkind: task\ncommand: [\"exit:0\"]\nevery: 1h\n";
            let path = FilePath::from(Path::new("/units/a.yaml"));
            let files = vec![SourceFile { path, text: text.into() }];
            let source = Source { name: "/units".to_owned(), files, ..Source::default() };
            let apply = |supervisor: &mut opm::supervisor::Supervisor<_>| {
                supervisor.apply_source(&source, &Manner::default()).unwrap();
            };
            world.act(apply).unwrap();
            world.pass(Span::seconds(60));
            assert!(!has_run(&mut world));
            // One turn, in which this many looks at the clock are by an hour off.
            world.machine().wall_looks.extend(vec![seconds; looks]);
            world.pass(Span::seconds(1_800));
            world.machine().wall_looks.clear();
            assert!(!has_run(&mut world), "after half an hour; {looks} looks by {seconds} s");
            world.pass(Span::seconds(1_800));
            assert!(has_run(&mut world), "after an hour; {looks} looks by {seconds} s");
            verdict(&world).unwrap();
        }
    }
}
