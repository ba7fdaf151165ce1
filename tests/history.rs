//! The way back: history, rollback, trials that nobody confirms, saved plans, holds with an end, and
//! restarts in turns.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::fs;

use common::{OPM, World, witness};
use serde_json::Value;

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

/// A service with a value by which its version is known.
fn version(world: &World, name: &str, value: &str) {
    world.unit(name, &format!("{SLEEP}env: {{V: \"{value}\"}}\n"));
}

/// The version of a unit that is wanted.
fn wanted(world: &World, name: &str) -> String {
    let shown: Value = serde_json::from_str(&world.opm(&["show", "--json", name]).out).unwrap();
    shown["spec"]["env.V"].as_str().unwrap_or("absent").to_owned()
}

fn records(world: &World) -> Vec<Value> {
    let said = world.opm(&["history", "--json"]);
    let reply: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(reply["problem"], Value::Null);
    reply["records"].as_array().unwrap().clone()
}

fn generations(world: &World) -> Vec<u64> {
    records(world).iter().map(|record| record["generation"].as_u64().unwrap()).collect()
}

fn done(world: &World, args: &[&str]) -> String {
    let said = world.opm(args);
    assert_eq!(said.code, 0, "opm {}: {said:?}\n{}", args.join(" "), world.log());
    said.out
}

#[test]
fn who_goes_back_twice_goes_back_two_changes() {
    let Some(world) = World::new() else { return };
    for value in ["1", "2", "3"] {
        version(&world, "web", value);
        done(&world, &["apply", "units", "-m", &format!("version {value}")]);
    }
    assert_eq!(records(&world)[0]["message"], "version 3");
    assert_eq!(records(&world)[0]["by"], format!("uid {}", nix::unistd::getuid()));
    let pid = world.pid("web");
    let dry = done(&world, &["rollback", "--dry-run"]);
    assert!(dry.ends_with("1 to change, back to generation 2\n"), "{dry}");
    assert_eq!((wanted(&world, "web"), world.pid("web")), ("3".to_owned(), pid));
    done(&world, &["rollback"]);
    assert_eq!(wanted(&world, "web"), "2");
    done(&world, &["rollback", "-m", "worse"]);
    assert_eq!(wanted(&world, "web"), "1");
    let said = world.opm(&["rollback"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("nothing to go back to"), "{said:?}");
    done(&world, &["rollback", "3"]);
    assert_eq!(wanted(&world, "web"), "3");
    assert_eq!(generations(&world), [6, 5, 4, 3, 2, 1]);
    let unknown = world.opm(&["rollback", "70"]);
    assert_eq!(unknown.code, 4);
    assert!(unknown.err.contains("no generation 70; the history goes from 1 to 6"), "{unknown:?}");
}

#[test]
fn a_rollback_brings_back_what_was_removed_and_removes_what_was_new_and_leaves_holds_alone() {
    let Some(mut world) = World::new() else { return };
    version(&world, "web", "1");
    version(&world, "old", "1");
    world.run();
    world.until_phase("web", "up");
    done(&world, &["stop", "web", "--reason", "disks"]);
    world.remove_unit("old");
    version(&world, "new", "1");
    done(&world, &["apply", "units"]);
    world.until_phase("new", "up");
    assert_eq!(world.phase("old"), "absent");
    // The checkout is not needed.
    fs::remove_dir_all(world.path("units")).unwrap();
    world.crash();
    done(&world, &["restore"]);
    world.until_phase("new", "up");
    done(&world, &["rollback"]);
    world.until_phase("old", "up");
    assert_eq!((world.phase("new"), world.phase("web")), ("absent".to_owned(), "down".to_owned()));
    assert!(done(&world, &["why", "web"]).contains("disks"));
    let text = done(&world, &["history", "1", "--files"]);
    assert!(text.contains("units/old.yaml") && text.contains("V: \"1\""), "{text}");
}

#[test]
fn what_nobody_confirms_goes_back_by_itself_after_a_crash_too() {
    let Some(mut world) = World::new() else { return };
    version(&world, "web", "1");
    done(&world, &["apply", "units"]);
    version(&world, "web", "2");
    let said = world.opm(&["apply", "units", "--confirm", "1h"]);
    assert!(said.err.contains("taken back in 1h unless `opm confirm` follows"), "{said:?}");
    assert_eq!(wanted(&world, "web"), "2");
    version(&world, "web", "3");
    let refused = world.opm(&["apply", "units"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("generation 2 waits to be confirmed"), "{refused:?}");
    // It would confirm what somebody else wants to confirm.
    let refused = world.opm(&["apply", "units", "--rollback-on-failure"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    // What is in force already will not stay.
    version(&world, "web", "2");
    assert_eq!(world.opm(&["apply", "units"]).code, 4);
    version(&world, "web", "3");
    done(&world, &["apply", "units", "--confirm", "1500ms", "--no-wait"]);
    world.crash();
    // What its own directory says is no reason to end a trial.
    world.run();
    world.until_phase("web", "up");
    world.until("the revert", || wanted(&world, "web") == "1");
    world.until_phase("web", "up");
    assert_eq!(records(&world)[0]["cause"], "revert");
    assert!(world.log().contains("was not confirmed in 1.5s"), "{}", world.log());
    assert_eq!(world.opm(&["confirm"]).code, 4, "it is too late");
}

#[test]
fn what_is_confirmed_stays_and_a_rollback_ends_a_trial() {
    let Some(world) = World::new() else { return };
    version(&world, "web", "1");
    done(&world, &["apply", "units"]);
    version(&world, "web", "2");
    done(&world, &["apply", "units", "--confirm", "1h", "--no-wait"]);
    assert_eq!(done(&world, &["confirm"]), "generation 2 stays\n");
    // As in a script, where the same is applied once more.
    done(&world, &["apply", "units", "--confirm", "1h"]);
    assert_eq!(done(&world, &["confirm"]), "generation 2 stays\n");
    version(&world, "web", "3");
    done(&world, &["apply", "units", "--confirm", "1h"]);
    // A trial of a trial goes back to what was before both.
    version(&world, "web", "4");
    done(&world, &["apply", "units", "--confirm", "1h"]);
    done(&world, &["rollback"]);
    assert_eq!(wanted(&world, "web"), "2");
    assert_eq!(world.opm(&["confirm"]).code, 4, "that is rolled back");
    assert_eq!(records(&world).len(), 5);
}

#[test]
fn an_apply_that_fails_is_taken_back() {
    let Some(world) = World::new() else { return };
    version(&world, "web", "1");
    done(&world, &["apply", "units"]);
    let pid = world.pid("web");
    world.task("migrate", "echo no such column >&2; exit 3", "restart: never\n");
    version(&world, "web", "2");
    let said = world.opm(&["apply", "units", "--rollback-on-failure"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("taken back to generation 1, as generation 3"), "{said:?}");
    assert_eq!((wanted(&world, "web"), world.phase("migrate")), ("1".to_owned(), "absent".into()));
    assert!(world.pid("web").is_some() && world.pid("web") != pid);
    world.task("migrate", "exit 0", "");
    done(&world, &["apply", "units", "--rollback-on-failure"]);
    assert_eq!(done(&world, &["confirm"]), "generation 4 stays\n", "it is confirmed already");
}

#[test]
fn a_saved_plan_is_applied_only_while_nothing_has_moved() {
    let Some(world) = World::new() else { return };
    version(&world, "web", "1");
    version(&world, "db", "1");
    done(&world, &["apply", "units"]);
    version(&world, "web", "2");
    let save = |world: &World| done(world, &["plan", "units", "-o", "plan"]);
    let refused = |world: &World, why: &str| {
        let said = world.opm(&["apply", "plan"]);
        assert_eq!(said.code, 4, "{said:?}");
        assert!(said.err.contains("out of date") && said.err.contains(why), "{said:?}");
    };
    save(&world);
    version(&world, "db", "2");
    refused(&world, "db.yaml` has changed");
    version(&world, "db", "1");
    version(&world, "more", "1");
    refused(&world, "more.yaml` is new");
    world.remove_unit("more");
    done(&world, &["stop", "db"]);
    refused(&world, "generation 2 is in force, and the plan was made from 1");
    save(&world);
    let pid = world.pid("web").unwrap();
    world.unit("web", &format!("{SLEEP}env: {{V: \"2\"}}\n"));
    world.kill("KILL", pid);
    world.until("its end", || world.pid("web") != Some(pid));
    world.until_phase("web", "up");
    done(&world, &["apply", "plan"]);
    assert_eq!(wanted(&world, "web"), "2");
    refused(&world, "generation 3 is in force");
    refused(&world, "; what it plans is in force already\n");
}

#[test]
fn only_one_unit_of_a_source_is_applied_and_what_it_lacks_is_said() {
    let Some(world) = World::new() else { return };
    version(&world, "web", "1");
    version(&world, "db", "1");
    done(&world, &["apply", "units"]);
    version(&world, "web", "2");
    version(&world, "db", "2");
    let plan = done(&world, &["plan", "units", "--only", "web"]);
    assert!(plan.contains("± web") && !plan.contains("db"), "{plan}");
    done(&world, &["apply", "units", "--only", "web"]);
    assert_eq!((wanted(&world, "web"), wanted(&world, "db")), ("2".to_owned(), "1".to_owned()));
    version(&world, "cache", "1");
    world.unit("web", &format!("{SLEEP}requires: [cache]\n"));
    let said = world.opm(&["apply", "units", "--only", "web"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("`web` requires `cache`, which is not applied"), "{said:?}");
    let said = world.opm(&["apply", "units", "--only", "webb"]);
    assert!(said.err.contains("did you mean `web`?"), "{said:?}");
    done(&world, &["apply", "units", "--only", "web", "--only", "cache"]);
    assert_eq!(wanted(&world, "db"), "1");
    done(&world, &["rollback"]);
    assert_eq!((wanted(&world, "web"), world.phase("cache")), ("2".to_owned(), "absent".into()));
}

#[test]
fn a_hold_with_an_end_ends_by_itself_after_a_crash_too() {
    let Some(mut world) = World::new() else { return };
    version(&world, "web", "1");
    done(&world, &["apply", "units"]);
    done(&world, &["stop", "web", "--until", "1h"]);
    assert_eq!(world.phase("web"), "down");
    assert!(done(&world, &["diff", "--live"]).contains("web: held down by"));
    // Who stops it last says for how long.
    done(&world, &["stop", "web"]);
    assert_eq!(world.row("web")["held_until"], Value::Null);
    done(&world, &["stop", "web", "--until", "1s", "--no-wait"]);
    world.crash();
    done(&world, &["restore"]);
    world.until_phase("web", "up");
    assert_eq!(world.row("web")["held_until"], Value::Null);
    let said = world.opm(&["stop", "web", "--until", "2020-01-01T00:00:00Z"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert_eq!(world.opm(&["stop", "web", "--until", "yesterday"]).code, 2);
}

/// Four instances that say when they are ready and when they end; `more` comes between.
fn four(world: &World, value: &str, more: &str) {
    let script = format!(
        "{}trap 'echo - >> turns; exit 0' TERM; {more} sleep 0.1; echo + >> turns; : > \
         $OPM_READY_FILE; while :; do sleep 0.05; done",
        witness("w$0")
    );
    let script = serde_json::to_string(&script).unwrap();
    let keys = format!(
        "command: [sh, -c, {script}, \"${{instance}}\"]\nworking_dir: ..\ninstances: 4\nlogs: {{to: null}}\n\
         env: {{V: \"{value}\", OPM_READY_FILE: \"ready-${{instance}}\"}}\n\
         ready: {{exec: [test, -e, \"ready-${{instance}}\"], interval: 20ms}}\n\
         pre_start: [[rm, -f, \"ready-${{instance}}\"]]\nrestart: {{delay: 20ms, limit: {{starts: 2, within: 60s}}}}\n\
         stop: {{timeout: 5s}}\n"
    );
    world.unit("web", &keys);
}

/// The least number of instances that were ready at a time, by what they said.
fn least(world: &World) -> i32 {
    let (mut now, mut least) = (4, 4);
    for line in world.lines("turns") {
        now += if line == "+" { 1 } else { -1 };
        least = least.min(now);
    }
    least
}

#[test]
fn instances_restart_in_turns_over_a_crash_of_opm() {
    let Some(mut world) = World::new() else { return };
    four(&world, "1", "");
    done(&world, &["apply", "units"]);
    let begin = |world: &World| fs::write(world.path("turns"), "").unwrap();
    begin(&world);
    done(&world, &["restart", "--rolling", "web"]);
    assert_eq!(least(&world), 3, "{:?}", world.lines("turns"));
    assert_eq!(world.lines("turns").len(), 8);
    begin(&world);
    // No new one is ready before the test says so: what turns at a time can be seen.
    four(&world, "2", "until [ -e go ]; do sleep 0.02; done;");
    let plan = done(&world, &["plan", "units", "--rolling", "--batch", "2"]);
    assert!(plan.contains("± web (restart, 2 at a time)"), "{plan}");
    done(&world, &["apply", "units", "--rolling", "--batch", "2", "--no-wait"]);
    let are_up = |world: &World| world.rows().iter().filter(|row| row["phase"] == "up").count();
    world.until("the first turn", || world.lines("turns").len() == 2 && are_up(&world) == 2);
    world.crash();
    done(&world, &["restore"]);
    world.until("what is left of the first turn", || are_up(&world) == 2);
    assert_eq!(world.lines("turns"), ["-", "-"]);
    fs::write(world.path("go"), "").unwrap();
    let is_new = |world: &World| {
        world.rows().iter().all(|row| row["phase"] == "up" && row["outdated"].is_null())
    };
    world.until("all turns", || world.lines("turns").len() == 8 && is_new(&world));
    assert_eq!(least(&world), 2, "{:?}", world.lines("turns"));
    world.assert_no_doubles();
}

#[test]
fn a_roll_halts_where_an_instance_does_not_come_up_and_is_taken_back_in_turns() {
    let Some(world) = World::new() else { return };
    four(&world, "1", "");
    done(&world, &["apply", "units"]);
    fs::write(world.path("turns"), "").unwrap();
    four(&world, "2", "exit 1;");
    let said = world.opm(&["apply", "units", "--rolling"]);
    assert_eq!(said.code, 1, "{said:?}\n{}", world.log());
    let rows = world.rows();
    let old = rows.iter().filter(|row| row["outdated"] == true && row["phase"] == "up");
    assert_eq!(old.count(), 3, "{rows:?}");
    assert!(done(&world, &["diff", "--live"]).contains("up, by an older definition"));
    done(&world, &["rollback", "--rolling"]);
    let rows = world.rows();
    assert!(rows.iter().all(|row| row["phase"] == "up"), "{rows:?}");
    assert_eq!(least(&world), 3, "{:?}", world.lines("turns"));
}

#[test]
fn what_only_some_units_of_a_source_would_be_beside_the_others_is_checked_as_all_of_them_are() {
    let Some(world) = World::new() else { return };
    let to = |path: &str| format!("command: [sleep, '1000']\nlogs: {{to: {{path: {path}}}}}\n");
    world.unit("a", &to("x.log"));
    world.unit("b", &to("y.log"));
    world.unit("d", SLEEP);
    done(&world, &["apply", "units"]);
    world.unit("a", &to("y.log"));
    world.unit("b", &to("x.log"));
    world.unit("c", &format!("{SLEEP}conflicts: [d]\n"));
    world.unit("d", &format!("{SLEEP}enabled: false\n"));
    world.unit("e", "command: [sleep, '1000']\nlogs: {to: {unit: ship}}\n");
    world.unit("f", &format!("{SLEEP}on_failure: {{start: alarm}}\n"));
    world.unit("g", "kind: socket\nfor: web\nlisten: [{unix: g.sock}]\n");
    world.unit("h", &format!("{SLEEP}wants: [web]\n"));
    world.unit("ship", "command: [cat]\nstdin: logs\n");
    world.unit("alarm", &format!("{SLEEP}enabled: false\n"));
    world.unit("web", SLEEP);
    for (unit, code, why) in [
        ("b", 2, "`a` and `b` would both write"),
        ("c", 2, "`c` and `d` conflict, and both would be up"),
        ("e", 4, "`e` names in `logs.to` `ship`, which is not applied; apply `ship` too"),
        ("f", 4, "`f` names in `on_failure` `alarm`, which is not applied; apply `alarm` too"),
        ("g", 4, "`g` names in `for` `web`, which is not applied; apply `web` too"),
        ("h", 2, "`wants` of unit `h` names `web`, which is not applied"),
    ] {
        for command in ["plan", "apply"] {
            let said = world.opm(&[command, "units", "--only", unit]);
            assert!(said.code == code && said.err.contains(why), "{command} {unit}: {said:?}");
        }
        assert!(["absent", "up"].contains(&world.phase(unit).as_str()), "{unit} changed");
    }
    assert_eq!(world.phase("d"), "up");
    let pairs = [["a", "b"], ["c", "d"], ["e", "ship"], ["f", "alarm"], ["g", "web"]];
    for [one, other] in pairs {
        done(&world, &["apply", "units", "--only", one, "--only", other]);
    }
    done(&world, &["apply", "units", "--only", "h"]);
    // What goes is needed by the version that stays of another one.
    world.remove_unit("ship");
    world.unit("e", SLEEP);
    let said = world.opm(&["apply", "units", "--only", "ship"]);
    let also = "`ship`, which goes; apply `e` too, with `--only e`";
    assert!(said.code == 4 && said.err.contains(also), "{said:?}");
    done(&world, &["apply", "units", "--only", "ship", "--only", "e"]);
}

#[test]
fn what_a_unit_of_another_source_names_is_not_taken_away_under_it() {
    let Some(world) = World::new() else { return };
    fs::create_dir(world.path("more")).unwrap();
    let of_more = |name: &str, text: &str| {
        fs::write(world.path("more").join(format!("{name}.yaml")), text).unwrap();
    };
    of_more("ship", "command: [cat]\nstdin: logs\n");
    of_more("alarm", &format!("{SLEEP}enabled: false\n"));
    of_more("sv", SLEEP);
    of_more("base", SLEEP);
    of_more("soft", SLEEP);
    done(&world, &["apply", "more"]);
    let logs = "logs: {to: {unit: ship}}\non_failure: {start: alarm}\n";
    let needs = "requires: [base]\nwants: [soft]\n";
    world.unit("web", &format!("command: [sleep, '1000']\n{logs}{needs}"));
    world.unit("sk", "kind: socket\nfor: sv\nlisten: [{unix: s.sock}]\n");
    done(&world, &["apply", "units"]);
    for (gone, how) in [
        ("ship", "`web` of source"),
        ("alarm", "names in `on_failure` `alarm`"),
        ("sv", "names in `for` `sv`"),
        ("base", "requires `base`"),
    ] {
        let file = world.path("more").join(format!("{gone}.yaml"));
        let text = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        for command in ["plan", "apply"] {
            let said = world.opm(&[command, "more"]);
            assert!(said.code == 4 && said.err.contains(how), "{command} {gone}: {said:?}");
            assert!(said.err.contains("which is not declared any more"), "{said:?}");
        }
        fs::write(&file, text).unwrap();
    }
    fs::remove_file(world.path("more/soft.yaml")).unwrap();
    done(&world, &["apply", "more"]);
}

#[test]
fn what_waits_for_what_is_held_or_due_later_takes_nothing_back() {
    let Some(world) = World::new() else { return };
    world.staying("db", "");
    world.staying("web", "requires: [db]\n");
    world.staying("mail", "");
    world.task("nightly", "true", "calendar: '*-01-01 03:00'\n");
    world.staying("report", "requires: [nightly]\n");
    let said = world.opm(&["apply", "units", "--rollback-on-failure"]);
    assert_eq!(said.code, 0, "{said:?}");
    let due = "waits for `nightly` to be ready; `nightly` runs when it is due (`opm start nightly` runs it now)";
    assert!(said.err.contains(due), "{said:?}");
    assert_eq!(world.opm(&["stop", "db"]).code, 0);
    world.until_phase("web", "waiting");
    world.staying("mail", "env: {A: b}\n");
    let said = world.opm(&["apply", "units", "--rollback-on-failure"]);
    assert!(said.code == 0 && said.err.contains("(`opm start db` lifts it)"), "{said:?}");
    assert_eq!(world.apply(0).code, 0, "nothing has changed, and nothing fails");
    // Who asks for just that one is told that it did not come.
    let said = world.opm(&["start", "web"]);
    assert!(said.code == 1 && said.err.contains("`db` is held by"), "{said:?}");
    // One that waits for what fails beside it fails, however many of them are held.
    let many: Vec<String> = (0..40).map(|n| format!("a{n:02}")).collect();
    for unit in &many {
        world.staying(unit, "");
    }
    assert_eq!(world.apply(0).code, 0);
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(world.opm(&[&["stop"][..], &names].concat()).code, 0);
    world.service("bad", "exit 1", "restart: never\nready: {delay: 1s}\n");
    world.staying("web", &format!("requires: [db, {}, bad]\n", many.join(", ")));
    let said = world.opm(&["apply", "units", "--rollback-on-failure"]);
    assert!(said.code == 1 && said.err.contains("taken back"), "{said:?}");
    assert_eq!(world.row("web")["awaits_held"], true);
    assert_eq!(world.opm(&["apply", "units"]).code, 1);
    world.until("that it waits for the last one too", || world.row("web")["awaits_held"].is_null());
    assert_eq!(world.phase("bad"), "failed");
}

#[test]
fn a_way_back_that_is_waited_for_ends_when_those_are_up_who_wait_for_what_has_changed() {
    let Some(world) = World::new() else { return };
    let app = "ready: {delay: 700ms}\nrequires: [{unit: m, condition: completed}]\n";
    world.task("m", "exit 0", "");
    world.staying("app", app);
    world.apply(0);
    world.task("m", "exit 1", "restart: never\n");
    let said = world.opm(&["apply", "units", "--rollback-on-failure"]);
    assert!(said.code == 1 && said.err.contains("taken back to generation"), "{said:?}");
    assert_eq!(world.phase("app"), "up", "{said:?}");
}

#[test]
fn what_is_behind_a_link_that_is_turned_is_the_same_source() {
    let Some(world) = World::new() else { return };
    for release in ["rel1", "rel2"] {
        let units = world.path(release).join("units");
        fs::create_dir_all(&units).unwrap();
        let unit =
            format!("command: [sh, -c, 'echo {release} >> ../../a.starts; exec sleep 1000']\n");
        fs::write(units.join("a.yaml"), unit).unwrap();
        let same = "command: [sh, -c, 'echo >> ../../b.starts; exec sleep 1000']\n";
        fs::write(units.join("b.yaml"), same).unwrap();
        let link = world.path("next");
        std::os::unix::fs::symlink(release, &link).unwrap();
        fs::rename(link, world.path("current")).unwrap();
        // By whatever way that leads there.
        for dir in ["current/units", "./units/../current/units/"] {
            let said = world.opm(&["apply", dir]);
            assert_eq!(said.code, 0, "{release}, {dir}: {said:?}");
        }
        world.until("its start", || {
            world.lines("a.starts").last().is_some_and(|last| last == release)
        });
    }
    // A path from the root on needs no directory to begin in.
    let [root, dir] = [world.root(), world.path("current/units")].map(|p| p.display().to_string());
    let apply = format!("mkdir gone; cd gone; rmdir ../gone; exec {OPM} --root {root} apply {dir}");
    assert!(world.command("sh").args(["-c", &apply]).status().unwrap().success());
    assert_eq!(world.lines("a.starts"), ["rel1", "rel2"]);
    assert_eq!(world.starts("b"), 1, "nothing of it has changed");
}
