//! What is wanted beyond a boot, and what is not: what people have asked for, and what only the end of a unit did.

mod common;

use common::World;

#[test]
fn what_the_end_of_another_unit_has_started_is_not_started_at_the_next_boot() {
    let mut world = World::bare();
    world.task("bad", "false", "restart: never\non_failure: {start: alarm}\n");
    world.task("alarm", "echo >> alarms", "enabled: false\nrequires: [mail]\n");
    world.staying("mail", "enabled: false\n");
    world.staying("by_hand", "enabled: false\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until("its socket", || world.opm(&["status"]).code == 0);
    world.until_phase("alarm", "done");
    world.until_phase("mail", "up");
    assert_eq!(world.opm(&["start", "by_hand"]).code, 0);
    // What failed is put in order.
    world.task("bad", "true", "");
    world.apply(0);
    // Over a crash the boot is the same.
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("mail", "up");
    for (boots, by_hand) in [(1, "up"), (2, "up")] {
        // It goes with its namespace.
        world.opm(&["shutdown"]);
        world.wait_init();
        assert!(world.start_pid_one(&["run", "units"]));
        world.until("its socket", || world.opm(&["status"]).code == 0);
        world.until_phase("by_hand", by_hand);
        world.until_phase("bad", "done");
        assert_eq!((world.phase("alarm"), world.phase("mail")), ("down".into(), "down".into()));
        assert_eq!((world.lines("alarms").len(), world.starts("mail")), (1, 1), "{boots}");
    }
}

/// Another life of opm in a namespace of its own, which is another boot.
fn boot(world: &mut World) {
    // It goes with its namespace.
    world.opm(&["shutdown"]);
    world.wait_init();
    assert!(world.start_pid_one(&["run", "units"]));
    world.until("its socket", || world.opm(&["status"]).code == 0);
}

#[test]
fn what_makes_room_for_an_automatic_start_comes_back_at_the_next_boot() {
    let mut world = World::bare();
    let main = "test -e ok && exec sleep 1000; exit 1";
    world.service("main", main, "restart: never\non_failure: {start: fallback}\n");
    world.staying("fallback", "enabled: false\nconflicts: [main]\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until_phase("fallback", "up");
    std::fs::write(world.path("ok"), "").unwrap();
    boot(&mut world);
    world.until_phase("main", "up");
    assert_eq!(world.phase("fallback"), "down");
}

#[test]
fn who_starts_by_hand_what_is_up_until_the_next_boot_has_it_beyond_that() {
    let mut world = World::bare();
    let main = "test -e ok && exec sleep 1000; exit 1";
    world.unit("default", "kind: target\nwants: [main]\n");
    world.service("main", main, "restart: never\non_failure: {start: alarm}\n");
    world.staying("alarm", "wants: [mail]\n");
    world.staying("mail", "");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until_phase("mail", "up");
    assert_eq!(world.opm(&["start", "mail"]).code, 0);
    std::fs::write(world.path("ok"), "").unwrap();
    boot(&mut world);
    world.until_phase("main", "up");
    world.until_phase("mail", "up");
    assert_eq!(world.phase("alarm"), "down");
}

#[test]
fn an_end_of_opm_alone_is_no_boot_for_what_the_end_of_a_unit_started() {
    let Some(mut world) = World::new() else { return };
    world.service("main", "exit 1", "restart: never\non_failure: {start: alarm}\n");
    world.staying("alarm", "enabled: false\n");
    world.run();
    world.until_phase("alarm", "up");
    world.service("main", "exec sleep 1000", "");
    world.apply(0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    world.wait_run();
    world.run();
    world.until_phase("alarm", "up");
}

#[test]
fn who_stops_by_hand_what_was_displaced_until_the_next_boot_has_it_down_beyond_that() {
    let mut world = World::bare();
    let main = "test -e ok && exec sleep 1000; exit 1";
    world.service("main", main, "restart: never\non_failure: {start: fallback}\n");
    world.staying("fallback", "enabled: false\nconflicts: [main]\n");
    world.staying("other", "");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until_phase("fallback", "up");
    // In the same words, as none are given.
    assert_eq!(world.opm(&["stop", "main"]).code, 0);
    std::fs::write(world.path("ok"), "").unwrap();
    boot(&mut world);
    world.until_phase("other", "up");
    assert_eq!(world.row("main")["phase"], "down");
    assert!(world.row("main")["held_by"].is_string(), "{}", world.row("main"));
}
