//! What a wait promises, for every goal and every phase.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use common::{OPM, Said, World};

/// What a wait says when it has not come to an end in this time.
const PATIENCE_MILLIS: u32 = 700;

/// Sends these calls at once, and returns a reader of their replies.
fn ask(world: &World, calls: &[String]) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(world.root().join("run/control.sock")).unwrap();
    let bytes: Vec<u8> = calls.iter().flat_map(|call| [call.as_bytes(), b"\0"].concat()).collect();
    stream.write_all(&bytes).unwrap();
    BufReader::new(stream)
}

fn reply(from: &mut BufReader<UnixStream>) -> serde_json::Value {
    let mut bytes = Vec::new();
    from.read_until(0, &mut bytes).unwrap();
    bytes.pop();
    serde_json::from_slice(&bytes).unwrap()
}

fn wait_call(unit: &str, goal: &str, millis: u32) -> String {
    format!(
        "{{\"method\":\"io.opm.Control.Wait\",\"parameters\":{{\"units\":[\"{unit}\"],\
         \"condition\":\"{goal}\",\"timeout_ms\":{millis}}}}}"
    )
}

const GOALS: [&str; 5] = ["up", "ready", "down", "completed", "settled"];

/// For each unit how a wait for each of [`GOALS`] ends: `+` reached, `!` it will not be, `.` it may
/// still come.
const TABLE: [(&str, &str, &str); 19] = [
    ("up", "up", "++.!+"),
    ("held", "down", "!!+!+"),
    ("off", "down", "!!+!+"),
    ("waits-for-held", "waiting", "!!+!+"),
    ("waits-for-waits", "waiting", "!!+!+"),
    ("waits-for-off", "waiting", "!!+!+"),
    ("backoff", "backoff", "....+"),
    ("waits-for-backoff", "waiting", "....+"),
    ("failed", "failed", "!!+!+"),
    ("waits-for-failed", "waiting", "!!+!+"),
    ("waits-for-both", "waiting", "!!+!+"),
    ("done", "done", "+++++"),
    ("task", "up", "+...."),
    ("waits-for-task", "waiting", "....."),
    ("skipped", "skipped", "!!+!+"),
    ("starting", "starting", "....."),
    ("waits-for-starting", "waiting", "....."),
    ("stopping", "stopping", "....."),
    ("rival", "waiting", "....."),
];

fn a_world_with_every_phase() -> Option<World> {
    let mut world = World::new()?;
    let stays = "exec sleep 1000";
    world.service("up", stays, "");
    world.service("held", stays, "");
    world.service("off", stays, "enabled: false\n");
    // These say that they are ready, and do not: else what waits for them may be up for a moment.
    let ready = "ready: {fd: 3}\n";
    let late = "restart: {policy: always, delay: 600s, max_delay: 600s}\n";
    world.service("backoff", "exit 1", &format!("{late}{ready}"));
    world.service("failed", "exit 1", &format!("restart: never\n{ready}"));
    world.task("done", "exit 0", "");
    world.task("task", stays, "");
    world.service("skipped", stays, "conditions: {path_exists: [nowhere]}\n");
    world.service("starting", stays, "ready: {notify: true}\nstart_timeout: 600s\n");
    world.service("rival", stays, "conflicts: [stopping]\nenabled: false\n");
    let stubborn = "trap '' TERM; echo > trap; while :; do sleep 0.05; done";
    world.service("stopping", stubborn, "stop: {timeout: 600s}\n");
    for base in ["held", "off", "backoff", "failed", "task", "starting"] {
        world.service(&format!("waits-for-{base}"), stays, &format!("requires: [{base}]\n"));
    }
    world.service("waits-for-waits", stays, "requires: [waits-for-held]\n");
    world.service("waits-for-both", stays, "requires: [backoff, failed]\n");
    world.run();
    world.until("its trap", || world.path("trap").exists());
    world.until_phase("stopping", "up");
    assert_eq!(world.opm(&["stop", "held"]).code, 0);
    assert_eq!(world.opm(&["start", "--no-wait", "rival"]).code, 0);
    for (unit, phase, _) in TABLE {
        world.until_phase(unit, phase);
    }
    Some(world)
}

#[test]
fn a_wait_ends_or_goes_on_as_the_manual_says_for_every_phase() {
    let Some(world) = a_world_with_every_phase() else { return };
    let mut open = Vec::new();
    for (unit, _, ends) in TABLE {
        for (goal, end) in GOALS.into_iter().zip(ends.chars()) {
            let call = wait_call(unit, goal, PATIENCE_MILLIS);
            open.push((unit, goal, end, ask(&world, &[call])));
        }
    }
    let mut wrong = Vec::new();
    for (unit, goal, end, mut from) in open {
        let reply = reply(&mut from);
        let right = match end {
            '+' => "reached",
            '!' => "failed",
            _ => "timeout",
        };
        let result = &reply["parameters"]["result"];
        if result != right {
            wrong.push(format!("{unit}, for {goal}: {result}, not {right}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", world.opm(&["status"]).out);
}

#[test]
fn a_wait_ends_when_what_its_unit_waits_for_can_come_no_more() {
    let Some(world) = a_world_with_every_phase() else { return };
    // Nothing happens to the unit itself by that: it waits as before.
    let wait = |goal| ask(&world, &[wait_call("waits-for-backoff", goal, 20_000)]);
    let (mut up, mut down) = (wait("up"), wait("down"));
    assert_eq!(world.opm(&["status"]).code, 0, "they are heard before this");
    assert_eq!(world.opm(&["stop", "backoff"]).code, 0);
    assert_eq!(reply(&mut up)["parameters"]["result"], "failed");
    assert_eq!(reply(&mut down)["parameters"]["result"], "reached");
    let said = world.opm(&["wait", "waits-for-backoff"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("`waits-for-backoff` is waiting: waits for `backoff`"), "{said:?}");
    let said = world.opm(&["wait", "--for", "completed", "up"]);
    assert_eq!((said.code, said.err.as_str()), (1, "opm: will not be completed: `up` is up\n"));
    // What a stop takes along, and what waited before.
    for unit in ["up", "starting", "waits-for-starting", "backoff", "task"] {
        assert_eq!(world.opm(&["stop", unit]).code, 0, "{unit}");
        assert_eq!(world.opm(&["wait", "--for", "down", unit]).code, 0, "{unit}");
    }
}

#[test]
fn a_wait_sees_what_was_asked_just_before_it() {
    let Some(mut world) = World::new() else { return };
    world.service("once", "[ -e good ] || exit 1; exec sleep 1000", "restart: never\n");
    world.run();
    world.until_phase("once", "failed");
    std::fs::write(world.path("good"), "").unwrap();
    for goal in ["settled", "up", "ready"] {
        let start = "{\"method\":\"io.opm.Control.Restart\",\"parameters\":{\"units\":[\"once\"]}}";
        let mut from = ask(&world, &[start.to_owned(), wait_call("once", goal, 30_000)]);
        reply(&mut from);
        let waited = reply(&mut from);
        assert_eq!(waited["parameters"]["result"], "reached", "{goal}: {waited}");
        assert_eq!(waited["parameters"]["instances"][0]["phase"], "up", "{goal}: {waited}");
        assert_eq!(world.opm(&["stop", "once"]).code, 0);
    }
}

#[test]
fn who_waited_in_vain_does_so_no_more_when_the_other_one_is_started() {
    let Some(mut world) = World::new() else { return };
    let stays = "exec sleep 1000";
    let slow = world.path("slow-is-ready");
    world.service("db", "[ -e good ] || exit 1; exec sleep 1000", "restart: never\n");
    world.service("web", stays, "requires: [db]\n");
    world.service("slow", stays, &format!("ready: {{file: {}}}\n", slow.display()));
    world.run();
    for (unit, phase) in [("db", "failed"), ("web", "waiting"), ("slow", "starting")] {
        world.until_phase(unit, phase);
    }
    let mut both = ask(&world, &[wait_call("web\",\"slow", "up", 60_000)]);
    assert_eq!(world.opm(&["status"]).code, 0, "it is heard before this");
    std::fs::write(world.path("good"), "").unwrap();
    assert_eq!(world.opm(&["start", "db"]).code, 0);
    world.until_phase("web", "up");
    std::fs::write(slow, "").unwrap();
    assert_eq!(reply(&mut both)["parameters"]["result"], "reached");
}

#[test]
fn a_reload_ends_with_its_command_and_as_that_does() {
    let Some(mut world) = World::new() else { return };
    let command = "reload: {command: [sh, -c, 'echo begun >> reloads; until [ -e go ]; do sleep 0.02; done; exit $(cat code)']}\n";
    world.service("web", "exec sleep 1000", command);
    world.service("hup", "trap : HUP; while :; do sleep 0.02; done", "reload: {signal: HUP}\n");
    world.run();
    let put = |name: &str, text: &str| std::fs::write(world.path(name), text).unwrap();
    world.until_phase("web", "up");
    world.until_phase("hup", "up");
    assert_eq!(world.opm(&["reload", "hup"]).code, 0);
    // Nobody has to wait, and nobody waits longer than they say.
    assert_eq!(world.opm(&["reload", "--no-wait", "web"]).code, 0);
    world.until("the command", || world.lines("reloads").len() == 1);
    let said = world.opm(&["reload", "web"]);
    assert_eq!((said.code, said.err.as_str()), (4, "opm: `web` is reloading already\n"));
    put("code", "0");
    put("go", "");
    world.until("its end", || world.opm(&["reload", "web"]).code == 0);
    std::fs::remove_file(world.path("go")).unwrap();
    let said = world.opm(&["reload", "--timeout", "50ms", "web"]);
    assert_eq!(said.code, 5, "{said:?}");
    put("code", "3");
    put("go", "");
    // What it came to is told, also with what went well, and stays to be seen until the next one.
    world.until("its end", || world.row("web")["why"] == "its last reload failed: exited 3");
    let said = world.opm(&["reload", "web", "hup"]);
    let failed = "opm: `web` is up: its last reload failed: exited 3\n";
    assert_eq!((said.code, said.err.as_str()), (1, failed));
    assert!(world.opm(&["why", "web"]).out.contains("its last reload failed: exited 3"));
    put("code", "0");
    assert_eq!(world.opm(&["reload", "web"]).code, 0);
    assert_eq!(world.row("web")["why"], "");
    // One that cannot be run at all, after one that could.
    world.service("web", "exec sleep 1000", "reload: {command: [./none]}\n");
    world.apply(0);
    for _ in 0..2 {
        let said = world.opm(&["reload", "web"]);
        assert!(said.code == 1 && said.err.contains("its last reload failed: "), "{said:?}");
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn who_starts_or_stops_is_told_when_somebody_else_does_the_opposite() {
    let Some(mut world) = World::new() else { return };
    let there = world.path("there");
    world.service("slow", "exec sleep 1000", &format!("ready: {{file: {}}}\n", there.display()));
    let ignores = "trap '' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    world.service("stays", ignores, "stop: {timeout: 1h}\n");
    world.run();
    world.until_phase("slow", "starting");
    world.until_phase("stays", "up");
    let begin = |args: &[&str]| {
        let mut command = world.command(OPM);
        command.arg("--root").arg(world.root()).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // The wait is heard before the opposite, as its first words are printed after it began.
    for words in ["start", "restart"] {
        let mut waits = begin(&[words, "slow"]);
        let mut first = [0u8];
        waits.stderr.as_mut().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(world.opm(&["stop", "--reason", "no", "slow"]).code, 0);
        let said = Said::of_child(waits);
        assert_eq!(said.code, 1, "{words}: {said:?}");
        assert!(said.err.contains("`slow` is down: held by uid 0: no"), "{words}: {said:?}");
    }
    let mut waits = begin(&["stop", "stays"]);
    let mut first = [0u8];
    waits.stderr.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(world.opm(&["start", "--no-wait", "stays"]).code, 0);
    let said = Said::of_child(waits);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("opm: `stays` is "), "{said:?}");
    // One whose hold ends before it is down is wanted again.
    let said = world.opm(&["stop", "--until", "100ms", "stays"]);
    assert_eq!(said.code, 1, "{said:?}");
    world.kill("KILL", world.read("pid").trim().parse().unwrap());
}

#[test]
fn what_is_being_removed_can_be_seen_and_reached_until_it_is_gone() {
    let Some(mut world) = World::new() else { return };
    let ignores = "trap '' TERM; while :; do sleep 0.02; done";
    world.service("never", ignores, "stop: {timeout: never}\n");
    world.run();
    world.until_phase("never", "up");
    world.remove_unit("never");
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    world.until_phase("never", "stopping");
    assert!(world.opm(&["status", "never"]).out.contains("stopping"));
    assert_eq!(world.opm(&["why", "never"]).code, 0);
    for word in ["start", "stop", "restart", "release"] {
        let said = world.opm(&[word, "never"]);
        let why = "opm: `never` was removed, and is on its way down\n";
        assert_eq!((said.code, said.err.as_str()), (4, why), "{word}");
    }
    assert_eq!(world.opm(&["kill", "-s", "KILL", "never"]).code, 0);
    world.until("its end", || world.phase("never") == "absent");
    assert_eq!(world.opm(&["why", "never"]).code, 4);
}

#[test]
fn a_wait_that_takes_too_long_says_what_has_failed_already() {
    let Some(world) = World::new() else { return };
    world.service("bad", "exit 3", "restart: never\nready: {delay: 1h}\n");
    world.service("slow", "exec sleep 1000", "ready: {delay: 1h}\nstart_timeout: never\n");
    let said = world.opm(&["apply", "--timeout", "2s", "units"]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains("`bad` is failed: exited 3"), "{said:?}");
    assert!(said.err.contains("slow (starting)"), "{said:?}");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_wait_for_all_is_for_what_is_wanted_now_and_a_task_comes_when_it_is_due() {
    let Some(mut world) = World::new() else { return };
    world.service("web", "exec sleep 1000", "");
    world.service("off", "exec sleep 1000", "enabled: false\n");
    world.service("held", "exec sleep 1000", "");
    world.task("yearly", "true", "schedule: '0 0 1 1 *'\n");
    world.task("often", "true", "every: 1s\n");
    world.run();
    world.until_phase("web", "up");
    assert_eq!(world.opm(&["stop", "held"]).code, 0);
    assert_eq!(world.opm(&["wait"]).code, 0);
    let said = world.opm(&["wait", "off"]);
    assert_eq!(said.code, 1, "{said:?}");
    let said = world.opm(&["wait", "--for", "completed", "--timeout", "30s", "often"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(world.opm(&["wait", "--timeout", "300ms", "yearly"]).code, 5);
    // Who stops it again says why anew, and what was said stays where nothing is said.
    let why = |world: &World| world.row("held")["why"].as_str().unwrap().to_owned();
    for (args, reason) in [
        (&["--reason", "one"][..], ": one ("),
        (&[], ": one ("),
        (&["--reason", "two"], ": two ("),
        (&["--until", "1h"], ": two ("),
    ] {
        assert_eq!(world.opm(&[&["stop", "held"], args].concat()).code, 0);
        assert!(why(&world).contains(reason), "{args:?}: {}", why(&world));
    }
    // Files are told to who asks for them.
    let told = |args: &[&str]| world.opm(&[&["--json", "history", "1"], args].concat()).out;
    assert!(told(&["--files"]).contains("exec sleep") && !told(&[]).contains("exec sleep"));
    // Events have the time, and the run as logs name it.
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).args(["--json", "events"]);
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let event: serde_json::Value = loop {
        let event: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event["what"].get("began").is_some() {
            break event;
        }
    };
    let run = u64::from_str_radix(event["run"].as_str().unwrap(), 16).unwrap();
    assert_eq!(event["what"]["began"]["run"].as_u64(), Some(run));
    assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn a_stop_of_several_tells_of_the_one_that_is_up_again_by_its_end() {
    let Some(mut world) = World::new() else { return };
    world.service("fast", "exec sleep 1000", "");
    let ignores = "trap '' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    world.service("slow", ignores, "stop: {timeout: 1h}\n");
    world.run();
    world.until_phase("fast", "up");
    world.until("its trap", || !world.read("pid").is_empty());
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).args(["stop", "fast", "slow"]);
    let waits = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    world.until_phase("fast", "down");
    assert_eq!(world.opm(&["start", "fast"]).code, 0);
    world.kill("KILL", world.read("pid").trim().parse().unwrap());
    let said = Said::of_child(waits);
    assert!(said.code == 1 && said.err.contains("opm: `fast` is up"), "{said:?}");
}

#[test]
fn who_stumbled_before_it_was_well_is_waited_for_again_when_it_restarts() {
    let Some(world) = World::new() else { return };
    let script = "echo >> tries; test $(wc -l < tries) -gt 3 || exit 1; \
                  trap 'sleep 0.3; echo ended >> order; exit 0' TERM; \
                  echo began >> order; while :; do sleep 0.02; done";
    world.service(
        "db",
        script,
        "restart: {delay: 10ms, reset_after: 1ms}\nready: {delay: 100ms}\n",
    );
    world.service("app", "echo app >> order; exec sleep 1000", "wants: [db]\n");
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    for unit in ["db", "app"] {
        world.until_phase(unit, "up");
    }
    assert_eq!(world.row("db")["restarts"], 3);
    std::fs::remove_file(world.path("order")).unwrap();
    assert_eq!(world.opm(&["restart", "db", "app"]).code, 0);
    world.until("its first act", || world.lines("order").len() == 3);
    assert_eq!(world.lines("order"), ["ended", "began", "app"]);
}
