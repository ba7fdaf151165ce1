//! `opm simulate`: what it tells of files, of a daemon, and that what it tells is what happens.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::fmt::Write;

use common::World;
use serde_json::Value;

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

/// A chain of three, one beside it, a task, and one that is off.
fn units(world: &World) {
    world.unit("db", &format!("{SLEEP}stop: {{timeout: 5s}}\n"));
    world.unit("web", &format!("{SLEEP}requires: [db, {{unit: migrate, condition: completed}}]\n"));
    world.unit("proxy", &format!("{SLEEP}requires: [web]\n"));
    world.unit("alone", SLEEP);
    world.unit("migrate", "kind: task\ncommand: [true]\nlogs: {to: null}\nrequires: [db]\n");
    world.unit("off", &format!("{SLEEP}enabled: false\n"));
}

/// What is told of these wishes about the files, which ends well.
fn tells(world: &World, args: &[&str]) -> String {
    let said = world.opm(&[&["simulate", "units"], args].concat());
    assert_eq!((said.code, &*said.err), (0, ""), "{said:?}");
    said.out
}

#[test]
fn one_line_for_each_thing_that_happens() {
    let world = World::bare();
    units(&world);
    assert_eq!(
        tells(&world, &["--fail", "db"]),
        "0s     db  fails (exited 1)\n\
         0s     db  is to be restarted in 200ms\n\
         200ms  db  starts, because its wait is over\n\
         at rest after 200ms: done migrate; down off; up alone, db, proxy, web\n"
    );
    assert_eq!(
        tells(&world, &["--stop", "db", "--stubborn", "proxy"]),
        "0s   proxy  stops, because it requires `web`, which is not up\n\
         10s  proxy  is killed, because it did not stop in time\n\
         10s  proxy  is down\n\
         10s  proxy  waits for `web` to be ready\n\
         10s  web    stops, because it requires `db`, which is not up\n\
         10s  db     stops, because it is to be down\n\
         10s  web    waits for `db` to be ready\n\
         at rest after 10s: done migrate; down db, off; up alone; waiting proxy, web\n"
    );
    // Nothing was written, and nobody was asked.
    assert!(!world.root().exists());
}

#[test]
fn a_shutdown_shows_what_each_stage_gets_and_who_is_cut_short() {
    let world = World::bare();
    units(&world);
    assert_eq!(
        tells(&world, &["--shutdown", "8s"]),
        "0s  opm    shuts down, because it was asked to\n\
         0s  alone  stops, because opm is shutting down\n\
         0s  proxy  stops, because opm is shutting down\n\
         0s  web    stops, because opm is shutting down\n\
         0s  db     stops, because opm is shutting down\n\
         \n\
         If no process obeys but to be killed:\n\
         STAGE  UNIT   FROM  GETS  OF ITS OWN\n\
         3      proxy  0s    2.6s  10s         cut short\n\
         1      alone  0s    8s    10s         cut short\n\
         2      web    2.6s  2.6s  10s         cut short\n\
         1      db     5.3s  2.6s  5s          cut short\n\
         \n\
         opm ends after 0s, with exit code 0\n"
    );
    let whole = tells(&world, &["--shutdown"]);
    assert!(!whole.contains("cut short"), "{whole}");
    assert!(whole.contains("1      db     20s   5s    5s\n"), "{whole}");
}

/// A service behind an eager socket, one behind a lazy one, and one that requires that.
fn behind_sockets(world: &World) {
    let socket = |service: &str, more: &str| format!("kind: socket\nfor: {service}\n{more}");
    world.unit("eager", SLEEP);
    let listen = "listen: [{tcp: '127.0.0.1:1'}]\naccept: eager\n";
    world.unit("eager-in", &socket("eager", listen));
    world.unit("lazy", SLEEP);
    world.unit("lazy-in", &socket("lazy", "listen: [{unix: lazy.sock}]\n"));
    world.unit("user", &format!("{SLEEP}requires: [lazy]\n"));
}

#[test]
fn a_service_behind_a_socket_fails_alone_and_a_lazy_one_is_called_by_nobody() {
    let world = World::bare();
    behind_sockets(&world);
    assert_eq!(
        tells(&world, &["--fail", "eager"]),
        "0s     eager  fails (exited 1)\n\
         0s     eager  is to be restarted in 200ms\n\
         200ms  eager  starts, because its wait is over\n\
         at rest after 200ms: up eager, eager-in, lazy-in, user; waiting lazy\n"
    );
    assert_eq!(
        tells(&world, &["--fail", "lazy"]),
        "0s  lazy  is waiting: it has no process that could fail\n\
         at rest after 0s: up eager, eager-in, lazy-in, user; waiting lazy\n"
    );
    for socket in ["eager-in", "lazy-in"] {
        let said = world.opm(&["simulate", "units", "--fail", socket]);
        let why = format!("opm: `{socket}` is a socket, which has no process that could fail\n");
        assert_eq!((said.code, said.err), (4, why));
    }
}

#[test]
fn sockets_stop_after_their_services_and_a_lazy_one_keeps_those_that_need_its_service_up() {
    let world = World::bare();
    behind_sockets(&world);
    assert_eq!(
        tells(&world, &["--stop", "eager-in"]),
        "0s  eager     stops, because it requires `eager-in`, which is not up\n\
         0s  eager     waits for `eager-in` to be ready\n\
         0s  eager-in  stops, because it is to be down\n\
         at rest after 0s: down eager-in; up lazy-in, user; waiting eager, lazy\n"
    );
    assert_eq!(
        tells(&world, &["--stop", "lazy"]),
        "0s  lazy  is down\n\
         0s  user  stops, because it requires `lazy`, which is not up\n\
         0s  user  waits for `lazy` to be ready\n\
         at rest after 0s: down lazy; up eager, eager-in, lazy-in; waiting user\n"
    );
    let order = tells(&world, &["--shutdown", "8s"]);
    let place = |line: &str| order.find(line).unwrap_or_else(|| panic!("{line}: {order}"));
    assert!(place("user      stops") < place("lazy-in   stops"), "{order}");
    assert!(place("eager     stops") < place("eager-in  stops"), "{order}");
}

#[test]
fn a_lazy_service_that_runs_is_simulated_as_one_that_runs() {
    let Some(mut world) = World::new() else { return };
    behind_sockets(&world);
    world.run();
    world.until_phase("lazy-in", "up");
    assert!(world.opm(&["simulate", "--fail", "lazy"]).out.contains("no process that could fail"));
    let socket = world.path("units/lazy.sock");
    let caller = std::os::unix::net::UnixStream::connect(socket).unwrap();
    world.until_phase("lazy", "up");
    let said = world.opm(&["simulate", "--fail", "lazy"]);
    assert_eq!(said.code, 0, "{said:?}");
    let lines = ["lazy  fails (exited 1)", "lazy  is to be restarted in", "lazy  starts"];
    assert!(lines.iter().all(|line| said.out.contains(line)), "{said:?}");
    assert!(said.out.contains("up eager, eager-in, lazy, lazy-in, user"), "{said:?}");
    drop(caller);
}

#[test]
fn what_goes_on_for_ever_is_told_once() {
    let world = World::bare();
    world.unit("db", &format!("{SLEEP}restart: {{delay: 1s, factor: 2, max_delay: 2s}}\n"));
    world.unit("hot", &format!("{SLEEP}restart: {{delay: 0s}}\n"));
    assert_eq!(
        tells(&world, &["--fail", "db", "--broken", "db"]),
        "0s  db  fails (exited 1)\n\
         0s  db  is to be restarted in 1s\n\
         1s  db  starts, because its wait is over\n\
         1s  db  fails (exited 1)\n\
         1s  db  is to be restarted in 2s\n\
         3s  db  starts, because its wait is over\n\
         3s  db  fails (exited 1)\n\
         3s  db  is to be restarted in 2s\n\
         goes on for ever, the same every 2s (seen 3 times): backoff db; up hot\n"
    );
    let hot = tells(&world, &["--fail", "hot", "--broken", "hot"]);
    assert!(hot.contains("the same at once again (seen 3 times)"), "{hot}");
    assert!(hot.lines().count() < 10, "{hot}");
    // A limit of starts ends it, however often that is.
    world.unit(
        "db",
        &format!(
            "{SLEEP}restart: {{delay: 1s, factor: 1, limit: {{starts: 20, within: 1h}}}}\n\
             on_failure: shutdown\n"
        ),
    );
    // Twenty of the same are no repetition where the limit is twenty.
    let limit = tells(&world, &["--fail", "db", "--broken", "db"]);
    assert!(
        limit.contains("20s  db   has failed for good, because it used up its starts\n"),
        "{limit}"
    );
    assert!(limit.contains("opm  shuts down, because `db` ended for good: exited 1\n"), "{limit}");
    assert!(limit.ends_with("opm ends after 20s, with exit code 1\n"), "{limit}");
}

#[test]
fn several_wishes_are_taken_in_their_order() {
    let world = World::bare();
    units(&world);
    let wishes = |text: &str| -> Vec<String> {
        let heads = text.lines().filter_map(|line| line.strip_suffix(':'));
        heads.map(str::to_owned).filter(|head| !head.contains("  ")).collect()
    };
    let said =
        tells(&world, &["--stop", "web", "--fail", "db", "--stop", "proxy", "--shutdown", "3s"]);
    let heads = wishes(&said);
    assert_eq!(heads[..3], ["stop web", "fail db", "stop proxy"], "{said}");
    assert!(heads.contains(&"shutdown 3s".to_owned()), "{said}");
    let said = tells(&world, &["--fail", "web", "--stop", "web", "--fail", "web"]);
    assert_eq!(wishes(&said), ["fail web", "stop web", "fail web"], "{said}");
    assert!(said.contains("web  is down: it has no process that could fail\n"), "{said}");
    let said = tells(&world, &["--fail", "migrate"]);
    assert!(said.contains("migrate  has failed for good\n"), "{said}");
    assert!(said.contains("web      waits for `migrate` to be completed\n"), "{said}");
}

#[test]
fn wrong_questions() {
    let world = World::bare();
    units(&world);
    for (args, code, words) in [
        (&["simulate", "units"][..], 2, "--fail <UNIT>"),
        (&["simulate", "nowhere", "--fail", "db"], 2, "cannot read units from `nowhere`"),
        (&["simulate", "units", "--shutdown", "9"], 2, "a duration needs a unit"),
        (&["simulate", "units", "--fail", "dbb"], 4, "no unit `dbb`; did you mean `db`?"),
        (&["simulate", "units", "--fail", "db", "--broken", "x9x"], 4, "no unit `x9x`"),
        (&["simulate", "--fail", "db"], 3, "give a directory of unit files"),
    ] {
        let said = world.opm(args);
        assert_eq!((said.code, &*said.out), (code, ""), "{args:?}: {said:?}");
        assert!(said.err.contains(words), "{args:?}: {said:?}");
    }
    world.unit("bad", "comand: [true]\n");
    let said = world.opm(&["simulate", "units", "--fail", "db"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("did you mean `command`?"), "{said:?}");
}

/// Who fails, starts and stops, in the order in which a story about a daemon tells it.
fn told(world: &World, args: &[&str]) -> Vec<String> {
    let said = world.opm(&[&["simulate", "--json"], args].concat());
    let story: Value = serde_json::from_str(&said.out).unwrap();
    let scenes = story["scenes"].as_array().unwrap();
    let lines = scenes.iter().flat_map(|scene| scene["happens"].as_array().unwrap());
    lines
        .filter_map(|line| {
            let (instance, what) = (line["instance"].as_str()?, line["what"].as_str()?);
            let verb = what.split(' ').next()?;
            matches!(verb, "starts" | "stops" | "fails").then(|| format!("{instance} {verb}"))
        })
        .collect()
}

/// The same of what `opm events --json` wrote. `off` is there to see whether anybody listens.
fn seen(events: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    let mut stopping: Vec<String> = Vec::new();
    for event in events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let instance = event["instance"].as_str().unwrap().to_owned();
        let what = &event["what"];
        if what.get("began").is_some() {
            seen.push(format!("{instance} starts"));
        } else if what.get("rung").is_some() && !stopping.contains(&instance) {
            seen.push(format!("{instance} stops"));
            stopping.push(instance);
        } else if what["ended"]["role"] == "main" && !stopping.contains(&instance) {
            seen.push(format!("{instance} fails"));
        } else if what.get("settled").is_some() {
            stopping.retain(|other| *other != instance);
        }
    }
    seen.retain(|line| !line.starts_with("off "));
    seen
}

/// Follows events into a file of the scratch directory; returns when it does.
fn follow(world: &mut World, name: &str) {
    let file = std::fs::File::create(world.path(name)).unwrap();
    let mut command = world.command(common::OPM);
    command.arg("--root").arg(world.root()).args(["events", "--json"]).stdout(file);
    world.spawn(command);
    world.until("the follower", || {
        world.opm(&["start", "off"]);
        world.opm(&["stop", "off"]);
        world.read(name).contains("\"off\"")
    });
}

#[test]
fn what_is_told_is_what_happens() {
    let Some(mut world) = World::new() else { return };
    units(&world);
    world.apply(0);
    follow(&mut world, "events");
    let happened = |world: &World| seen(&world.read("events"));
    let until = |world: &World, expected: &[String]| {
        world.until("what was told", || happened(world).len() >= expected.len());
        assert_eq!(happened(world), expected);
    };
    let mut expected = Vec::new();

    let (pid, generation) = (world.pid("db"), world.opm(&["save"]).out);
    let fail = told(&world, &["--fail", "web"]);
    let stop = told(&world, &["--stop", "db"]);
    let is_as_before = (world.pid("db"), world.opm(&["save"]).out) == (pid, generation);
    assert!(is_as_before, "imagining it changed something");

    // The proxy stays: it follows only where a unit goes for good.
    world.opm(&["kill", "-s", "KILL", "web"]);
    assert_eq!(fail, ["web fails", "web starts"]);
    expected.extend(fail);
    until(&world, &expected);
    world.until_phase("web", "up");

    world.opm(&["stop", "db"]);
    assert_eq!(stop, ["proxy stops", "web stops", "db stops"]);
    expected.extend(stop);
    until(&world, &expected);

    world.opm(&["start", "db"]);
    world.until_phase("proxy", "up");
    expected.extend(["db starts", "web starts", "proxy starts"].map(str::to_owned));
    until(&world, &expected);

    let down = told(&world, &["--shutdown"]);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(down.last().map(String::as_str), Some("db stops"), "{down:?}");
    expected.extend(down);
    until(&world, &expected);
}

#[test]
fn a_daemon_in_the_middle_of_something() {
    let Some(world) = World::new() else { return };
    world.service("late", "exec sleep 1000", "ready: {notify: true}\nstart_timeout: 600s\n");
    world.service("next", "exec sleep 1000", "requires: [late]\n");
    world.service("lazy", "exit 1", "restart: {delay: 300s, max_delay: 300s}\nready: {fd: 3}\n");
    world.opm(&["apply", "--no-wait", "units"]);
    world.until_phase("lazy", "backoff");
    world.until_phase("next", "waiting");
    let said = world.opm(&["simulate", "--fail", "late"]);
    assert_eq!(said.code, 0, "{said:?}");
    // Readiness is assumed, also of what is on its way; a backoff is waited out.
    assert!(said.out.contains("late  fails (exited 1)\n"), "{said:?}");
    assert!(said.out.contains("late  starts, because its wait is over\n"), "{said:?}");
    assert!(said.out.contains("lazy  starts, because its wait is over\n"), "{said:?}");
    assert!(said.out.contains(": up late, lazy, next\n"), "{said:?}");
    assert_eq!(world.phase("late"), "starting");
}

/// Three chains and many beside them: the work is counted in moments, not in time.
#[test]
fn a_thousand_units_take_few_moments() {
    let world = World::bare();
    let mut text = String::new();
    for n in 0..1000 {
        let needs = match n {
            0 => String::new(),
            1..=200 => format!("requires: [u{}]\n", n - 1),
            _ => "requires: [u0]\n".to_owned(),
        };
        write!(text, "---\nname: u{n}\n{SLEEP}{needs}").unwrap();
    }
    world.unit("all", &text);
    for (args, moments) in
        [(["--stop", "u0"], 500), (["--fail", "u0"], 500), (["--shutdown", "60s"], 500)]
    {
        let said = world.opm(&["simulate", "units", "--json", args[0], args[1]]);
        let story: Value = serde_json::from_str(&said.out).unwrap();
        let taken = story["moments"].as_u64().unwrap();
        assert!(taken < moments, "{args:?}: {taken} moments");
        let happens = story["scenes"][0]["happens"].as_array().unwrap().len();
        assert!(args[0] == "--fail" || happens >= 1000, "{args:?}: {happens}");
    }
}

#[test]
fn a_task_with_a_schedule_is_not_due_because_everything_is_up_for_long() {
    let world = World::bare();
    world.unit("a", "command: [sleep, '1000']\n");
    world.unit("t", "kind: task\ncommand: ['true']\nschedule: '0 0 * * *'\ncatch_up: true\n");
    let said = world.opm(&["simulate", "units", "--stop", "a"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!said.out.contains("starts") && said.out.contains("down a, t"), "{said:?}");
}
