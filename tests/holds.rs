//! What people ask for by hand: a hold stays, one instance is not all of them, and what cannot be is
//! refused.

mod common;

use std::time::Duration;

use common::{World, watch_for};

#[test]
fn case_097_what_was_stopped_by_hand_stays_down() {
    let Some(mut world) = World::new() else { return };
    world.staying("a", "");
    world.staying("b", "");
    world.apply(0);
    world.until("both to begin", || world.starts("a") == 1 && world.starts("b") == 1);
    assert_eq!(world.opm(&["stop", "b"]).code, 0);
    let is_held = |world: &World| world.phase("b") == "down" && world.starts("b") == 1;
    for end in ["shutdown", "crash", "none"] {
        match end {
            "shutdown" => assert_eq!(world.opm(&["shutdown"]).code, 0),
            "crash" => world.crash(),
            _ => {}
        }
        if end == "none" {
            world.apply(0);
        } else {
            assert_eq!(world.opm(&["restore"]).code, 0);
        }
        world.until_phase("a", "up");
        watch_for(Duration::from_millis(200), || !is_held(&world), end);
    }
    assert_eq!(world.opm(&["start", "b"]).code, 0);
    assert_eq!(world.phase("b"), "up");
    world.until("its start", || world.starts("b") == 2);
}

#[test]
fn a_hold_on_one_instance_leaves_the_others_alone_however_they_came_up() {
    let Some(mut world) = World::new() else { return };
    world.staying("a", "instances: 3\nenabled: false\n");
    world.run();
    world.until("opm to listen", || world.root().join("run/control.sock").exists());
    assert_eq!(world.opm(&["start", "a"]).code, 0);
    assert_eq!(world.opm(&["stop", "a@1"]).code, 0);
    let phases = |world: &World| [1, 2, 3].map(|n| world.phase(&format!("a@{n}")));
    assert_eq!(phases(&world), ["down", "up", "up"]);
    world.crash();
    world.run();
    world.until("all to be known", || phases(&world) == ["down", "up", "up"]);
    assert_eq!(world.opm(&["stop", "a"]).code, 0);
    assert_eq!(phases(&world), ["down", "down", "down"]);
}

#[test]
fn what_would_bring_something_up_is_refused_while_opm_goes_down() {
    let Some(mut world) = World::new() else { return };
    world.staying("a", "");
    world.service(
        "late",
        "trap '' TERM; echo > trap; while :; do sleep 0.05; done",
        "stop: {timeout: 1h}\n",
    );
    world.run();
    world.until_phase("a", "up");
    world.until("its trap", || world.path("trap").exists());
    let mut shutdown = world.command(common::OPM);
    let mut shutdown = shutdown.arg("--root").arg(world.root()).arg("shutdown").spawn().unwrap();
    world.until_phase("a", "down");
    world.staying("a", "description: changed\n");
    for args in [&["start", "a"][..], &["restart", "a"], &["apply", "units"], &["rollback"]] {
        let said = world.opm(args);
        assert_eq!(said.code, 4, "{said:?}");
        assert!(said.err.contains("opm is shutting down"), "{said:?}");
    }
    assert_eq!(world.starts("a"), 1);
    world.kill("KILL", world.pid("late").unwrap());
    assert!(shutdown.wait().unwrap().success());
}

#[test]
fn case_097_what_was_stopped_by_hand_is_started_by_no_other_units_end() {
    let Some(world) = World::new() else { return };
    world.staying("b", "");
    world.staying("c", "instances: [x, y]\n");
    for (name, starts) in [("whole", "b"), ("one", "c")] {
        let keys = format!("restart: never\nenabled: false\non_failure: {{start: {starts}}}\n");
        world.service(name, "exit 1", &keys);
    }
    world.apply(0);
    assert_eq!(world.opm(&["stop", "b", "c@x"]).code, 0);
    for name in ["whole", "one"] {
        world.opm(&["start", name]);
        world.until_phase(name, "failed");
    }
    for held in ["b", "c@x"] {
        watch_for(Duration::from_millis(100), || world.phase(held) != "down", held);
        assert!(world.row(held)["held_by"].is_string(), "{held}");
    }
    world.until_phase("c@y", "up");
}

#[test]
fn what_is_held_takes_nothing_away_that_it_conflicts_with() {
    let Some(world) = World::new() else { return };
    world.staying("old", "");
    world.staying("new", "enabled: false\nconflicts: [old]\n");
    world.staying("app", "enabled: false\nrequires: [new]\n");
    world.apply(0);
    assert_eq!(world.opm(&["stop", "new", "--reason", "disk broken"]).code, 0);
    let old = world.pid("old");
    assert_eq!(world.opm(&["start", "app"]).code, 1, "it waits for what is held");
    assert_eq!((world.phase("app").as_str(), world.phase("old").as_str()), ("waiting", "up"));
    assert_eq!(world.pid("old"), old);
    // Once that is lifted, who was asked for last is meant.
    assert_eq!(world.opm(&["start", "new"]).code, 0);
    world.until_phase("app", "up");
    assert_eq!(world.phase("old"), "down");
}

#[test]
fn what_was_asked_by_hand_of_a_unit_that_goes_and_comes_back_holds() {
    let Some(mut world) = World::new() else { return };
    for unit in ["held", "one", "other"] {
        world.staying(unit, if unit == "one" { "instances: [x, y]\n" } else { "" });
    }
    world.staying("by_hand", "enabled: false\n");
    world.apply(0);
    assert_eq!(world.opm(&["stop", "held", "one@x", "--reason", "lunch"]).code, 0);
    assert_eq!(world.opm(&["start", "by_hand"]).code, 0);
    let texts: Vec<(&str, String)> = ["held", "one", "by_hand"]
        .map(|unit| (unit, world.read(&format!("units/{unit}.yaml"))))
        .to_vec();
    let is_held = |world: &World| {
        let why = |id: &str| world.opm(&["why", id]).out;
        why("held").contains("lunch")
            && why("one@x").contains("lunch")
            && world.phase("one@y") == "up"
    };
    let without = |world: &World, more: &[&str]| {
        for (unit, _) in &texts {
            world.remove_unit(unit);
        }
        let said = world.opm(&[&["apply", "units"], more].concat());
        assert_eq!(said.code, 0, "{said:?}");
        world.until("that they are gone", || world.rows().len() == 1);
        for (unit, text) in &texts {
            world.unit(unit, text);
        }
    };
    without(&world, &["--confirm", "1s"]);
    world.until("the way back", || world.rows().len() == 5);
    world.until_phase("one@y", "up");
    assert!(is_held(&world), "a trial that nobody confirms");
    world.until_phase("by_hand", "up");

    without(&world, &[]);
    assert_eq!(world.opm(&["rollback"]).code, 0);
    assert!(is_held(&world), "a rollback");
    assert_eq!(world.phase("by_hand"), "up");

    without(&world, &[]);
    world.crash();
    world.apply(0);
    assert!(is_held(&world), "another apply, and a crash");
    assert_eq!(world.phase("by_hand"), "down", "what was started once is not wanted for good");
    assert_eq!(world.starts("held"), 1);
}

#[test]
fn what_is_required_and_has_failed_is_tried_anew_by_hand_and_by_nobody_else() {
    let Some(world) = World::new() else { return };
    let fails_once = "echo >> tries; test -e there || exit 1; exec sleep 1000";
    world.service("db", fails_once, "restart: never\n");
    world.staying("app", "requires: [db]\n");
    world.staying("front", "requires: [app]\n");
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    for times in [1, 2] {
        world.until_phase("db", "failed");
        world.until_phase("front", "waiting");
        assert_eq!(world.lines("tries").len(), times);
        let said = world.opm(&["start", "front"]);
        if times == 1 {
            // It has been tried, and waited for.
            assert!(said.code == 1 && said.err.contains("`front` is waiting"), "{said:?}");
            assert_eq!(world.lines("tries").len(), 2);
            std::fs::write(world.path("there"), "").expect("it is written");
        } else {
            assert_eq!(said.code, 0, "{said:?}");
        }
    }
    assert_eq!((world.phase("front"), world.lines("tries").len()), ("up".to_owned(), 3));
    // What is up is left alone.
    assert_eq!(world.opm(&["start", "front"]).code, 0);
    assert_eq!(world.lines("tries").len(), 3);
}
