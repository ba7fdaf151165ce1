//! Services that are restarted, or reload, when a file changes.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::time::Duration;

use common::World;

/// Notes each start, and each HUP.
const APP: &str = "trap 'echo >> reloads' HUP; echo $$ >> starts; while :; do sleep 0.05; done";

fn app(watch: &str) -> Option<World> {
    let mut world = World::new()?;
    fs::create_dir_all(world.path("app/lib")).unwrap();
    fs::write(world.path("app/main"), "1").unwrap();
    world.service("app", APP, &format!("reload: {{signal: HUP}}\nwatch: {watch}\n"));
    world.run();
    world.until_phase("app", "up");
    world.until("its start", || world.lines("starts").len() == 1);
    Some(world)
}

/// What is changed, and how.
type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// Waits until the run with this number of starts before it is up.
fn until_start(world: &World, starts: usize, why: &str) {
    world.until(why, || world.lines("starts").len() >= starts);
    world.until_phase("app", "up");
    assert_eq!(world.lines("starts").len(), starts, "{why}\n{}", world.log());
}

#[test]
fn any_change_below_a_watched_directory_restarts_once() {
    let Some(world) = app("{paths: [../app], debounce: 200ms}") else { return };
    let dir = world.path("app");
    let changes: Vec<Change<'_>> = vec![
        ("a file written", Box::new(|| fs::write(dir.join("main"), "2").unwrap())),
        ("a file deep down", Box::new(|| fs::write(dir.join("lib/part"), "2").unwrap())),
        ("a new tree", Box::new(|| fs::create_dir_all(dir.join("new/deep")).unwrap())),
        ("a file in it", Box::new(|| fs::write(dir.join("new/deep/file"), "1").unwrap())),
        (
            "a file replaced, as editors do",
            Box::new(|| {
                fs::write(dir.join("lib/part.new"), "3").unwrap();
                fs::rename(dir.join("lib/part.new"), dir.join("lib/part")).unwrap();
            }),
        ),
        ("a file removed", Box::new(|| fs::remove_file(dir.join("lib/part")).unwrap())),
        (
            "a thousand files",
            Box::new(|| {
                for n in 0..1_000 {
                    fs::write(dir.join(format!("lib/{n}")), "x").unwrap();
                }
            }),
        ),
        ("all of it gone", Box::new(|| fs::remove_dir_all(&dir).unwrap())),
        (
            "it is there again",
            Box::new(|| {
                fs::create_dir_all(dir.join("lib")).unwrap();
                fs::write(dir.join("lib/part"), "4").unwrap();
            }),
        ),
        ("a change in what came back", Box::new(|| fs::write(dir.join("lib/part"), "5").unwrap())),
    ];
    for (n, (what, change)) in changes.iter().enumerate() {
        change();
        until_start(&world, n + 2, what);
    }
    let why = world.log();
    assert!(why.contains("a file that it watches changed"), "{why}");
    world.assert_no_doubles();
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_file_is_watched_and_its_neighbours_are_not() {
    let Some(world) = app("{paths: [../app/main, ../missing/later.conf], debounce: 100ms}") else {
        return;
    };
    fs::write(world.path("app/other"), "x").unwrap();
    fs::write(world.path("app/lib/other"), "x").unwrap();
    let again = || world.lines("starts").len() > 1;
    common::watch_for(Duration::from_millis(600), again, "a restart for another file");
    fs::write(world.path("app/main"), "2").unwrap();
    until_start(&world, 2, "the file itself");
    // A path that comes only now.
    fs::create_dir(world.path("missing")).unwrap();
    fs::write(world.path("missing/later.conf"), "x").unwrap();
    until_start(&world, 3, "a file that did not exist");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_reload_instead_of_a_restart_and_a_change_of_what_is_watched() {
    let Some(world) = app("{paths: [../app], debounce: 100ms, action: reload}") else { return };
    fs::write(world.path("app/main"), "2").unwrap();
    world.until("a reload", || world.lines("reloads").len() == 1);
    assert_eq!(world.lines("starts").len(), 1);
    // Taken over while the run goes on: another path, another action.
    fs::create_dir(world.path("etc")).unwrap();
    let watch = "reload: {signal: HUP}\nwatch: {paths: [../etc], debounce: 100ms}\n";
    world.service("app", APP, watch);
    world.apply(0);
    fs::write(world.path("app/main"), "3").unwrap();
    let changed = || world.lines("reloads").len() > 1 || world.lines("starts").len() > 1;
    common::watch_for(Duration::from_millis(500), changed, "a reaction to what is watched no more");
    fs::write(world.path("etc/conf"), "1").unwrap();
    until_start(&world, 2, "what is watched now");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_link_that_is_turned_is_a_change_and_what_it_leads_to_now_is_watched() {
    let watch = "{paths: [../current, ../app/link/conf], debounce: 100ms, action: reload}";
    let Some(mut world) = World::new() else { return };
    for dir in ["rel/1", "rel/2", "app"] {
        fs::create_dir_all(world.path(dir)).unwrap();
    }
    let turn = |world: &World, link: &str, to: &str| {
        let new = world.path("new");
        std::os::unix::fs::symlink(to, &new).unwrap();
        fs::rename(new, world.path(link)).unwrap();
    };
    turn(&world, "current", "rel/1");
    turn(&world, "app/link", "../rel/1");
    world.service("app", APP, &format!("reload: {{signal: HUP}}\nwatch: {watch}\n"));
    world.run();
    world.until_phase("app", "up");
    let changes: Vec<Change<'_>> = vec![
        ("a link turned", Box::new(|| turn(&world, "current", "rel/2"))),
        ("a file where it leads", Box::new(|| fs::write(world.path("rel/2/a"), "1").unwrap())),
        ("a link on the way turned", Box::new(|| turn(&world, "app/link", "../rel/2"))),
        ("the file behind it", Box::new(|| fs::write(world.path("rel/2/conf"), "1").unwrap())),
    ];
    for (n, (what, change)) in changes.iter().enumerate() {
        change();
        world.until(what, || world.lines("reloads").len() == n + 1);
    }
    assert_eq!(world.lines("starts").len(), 1);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_tree_that_was_moved_away_is_watched_no_more() {
    let Some(world) = app("{paths: [../app], debounce: 100ms, action: reload}") else { return };
    fs::create_dir_all(world.path("app.new/lib")).unwrap();
    fs::rename(world.path("app"), world.path("app.old")).unwrap();
    fs::rename(world.path("app.new"), world.path("app")).unwrap();
    world.until("a reload", || !world.lines("reloads").is_empty());
    let reloads = world.lines("reloads").len();
    fs::write(world.path("app.old/lib/part"), "x").unwrap();
    fs::remove_dir_all(world.path("app.old")).unwrap();
    let again = || world.lines("reloads").len() > reloads;
    common::watch_for(Duration::from_millis(500), again, "a reload for what was moved away");
    fs::write(world.path("app/lib/part"), "x").unwrap();
    world.until("a reload for what is there now", again);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_reload_command_that_fails_is_told_and_the_service_goes_on() {
    let Some(world) = World::new() else { return };
    let reload = "reload: {command: [sh, -c, 'echo bad config; exit 3']}\n";
    world.service("app", "exec sleep 1000", reload);
    assert_eq!(world.opm(&["daemon", "units"]).code, 0);
    world.until_phase("app", "up");
    let pid = world.pid("app");
    assert_eq!(world.opm(&["reload", "app"]).code, 1);
    let log = || fs::read_to_string(world.root().join("log/opm.log")).unwrap();
    world.until("the end of the command", || log().contains("exited 3; it goes on as before"));
    assert_eq!(world.pid("app"), pid);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_change_just_before_opm_goes_away_is_heeded_by_the_next() {
    for way in ["reexec", "crash"] {
        let Some(mut world) = app("{paths: [../app], debounce: 2s}") else { return };
        fs::write(world.path("app/main"), "2").unwrap();
        let ledger = || common::shell(&world.root(), "cat run/ledger-*").stdout;
        let is_noted = || String::from_utf8_lossy(&ledger()).contains("touched");
        world.until("the change to be seen", is_noted);
        if way == "crash" {
            world.crash();
            world.run();
        } else {
            assert_eq!(world.opm(&["reexec"]).code, 0);
        }
        until_start(&world, 2, way);
        assert_eq!(world.opm(&["shutdown"]).code, 0);
    }
}

#[test]
fn who_requires_it_goes_first_and_the_next_supervisor_watches_on() {
    let Some(mut world) = app("{paths: [../app], debounce: 100ms}") else { return };
    world.service("web", "echo $$ >> web; exec sleep 1000", "requires: [app]\n");
    world.apply(0);
    world.until_phase("web", "up");
    world.crash();
    world.run();
    world.until_phase("web", "up");
    fs::write(world.path("app/main"), "2").unwrap();
    until_start(&world, 2, "a change after a crash of opm");
    world.until_phase("web", "up");
    world.until("its act", || world.lines("web").len() == 2);
    world.assert_no_doubles();
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}
