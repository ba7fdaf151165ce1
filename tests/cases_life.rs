//! Cases BACKOFF, RACE, DEPS, READY, ONESHOT and APPLY: when a unit runs, and when it does not.

mod common;

use std::process::Child;
use std::time::Duration;

use common::{Said, World, now, watch_for};

#[test]
fn case_036_a_crash_loop_ends_at_its_limit_and_dependents_say_why() {
    let Some(world) = World::new() else { return };
    let limit = "{policy: always, delay: 20ms, factor: 1, limit: {starts: 6, within: 60s}}";
    world.service("dep", "echo x >> n; exit 1", &format!("restart: {limit}\n"));
    world.service("top", "exec sleep 1000", "requires: [dep]\n");
    // A start that gets as far as exec is ready: for a moment both may be up.
    world.opm(&["apply", "--no-wait", "units"]);
    world.until_phase("dep", "failed");
    world.until_phase("top", "waiting");
    let wrong = || world.lines("n").len() != 6;
    watch_for(Duration::from_millis(500), wrong, "it is started again");
    let why = world.opm(&["why", "top"]).out;
    assert!(why.contains("dep") && why.contains("used up its starts"), "{why}");
}

#[test]
fn case_037_waits_grow_until_the_limit_though_each_start_succeeds() {
    let Some(world) = World::new() else { return };
    let restart = "restart: {policy: on-failure, delay: 100ms, factor: 2, max_delay: 2s, \
                   limit: {starts: 5, within: 60s}}\n";
    world.service("c", "date +%s%N >> t; sleep 0.2; exit 1", restart);
    world.opm(&["apply", "--no-wait", "units"]);
    world.until_phase("c", "failed");
    let times: Vec<u64> = world.lines("t").iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(times.len(), 5);
    for (pair, wait) in times.windows(2).zip([100, 200, 400, 800]) {
        let gap = (pair[1] - pair[0]) / 1_000_000;
        // A part of one tenth of the wait is left to chance.
        assert!(gap >= 200 + wait * 94 / 100, "{gap} ms, with a wait of {wait}");
        assert!(gap < 200 + wait + 1_000, "{gap} ms, with a wait of {wait}");
    }
}

#[test]
fn case_039_a_task_that_crashes_goes_through_the_same_limiter() {
    let Some(world) = World::new() else { return };
    let keys = "restart: {policy: on-failure, delay: 100ms, limit: {starts: 4, within: 60s}}\n\
                limits: {core: 0}\n";
    world.task("r", "echo x >> n; kill -SEGV $$", keys);
    let began = now();
    world.opm(&["apply", "--no-wait", "units"]);
    world.until_phase("r", "failed");
    assert!(began.elapsed() >= Duration::from_millis(650), "{:?}", began.elapsed());
    assert_eq!(world.lines("n").len(), 4);
    let daemon = world.daemon_pid().unwrap();
    let stat = std::fs::read_to_string(world.proc().unwrap().join(format!("{daemon}/stat")));
    let stat = stat.unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    assert!(ticks < 100, "{ticks} hundredths of a second of processor time");
}

#[test]
fn case_041_nothing_starts_between_the_stop_and_its_end() {
    let Some(world) = World::new() else { return };
    let script =
        "echo $$ >> starts; trap 'sleep 1; exit 1' TERM; echo > set; while :; do sleep 0.05; done";
    world.service("w", script, "restart: {policy: always, delay: 20ms}\n");
    world.apply(0);
    world.until("its trap", || world.path("set").exists());
    let began = now();
    assert_eq!(world.opm(&["stop", "w"]).code, 0);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let wrong = || world.phase("w") != "down" || world.lines("starts").len() != 1;
    watch_for(Duration::from_millis(500), wrong, "it came back");
}

#[test]
fn case_042_a_stop_cancels_the_next_try() {
    let Some(world) = World::new() else { return };
    world.service("b", "echo x >> n; exit 1", "restart: {policy: always, delay: 1s}\n");
    world.opm(&["apply", "--no-wait", "units"]);
    world.until_phase("b", "backoff");
    assert_eq!(world.opm(&["stop", "b"]).code, 0);
    let tries = world.lines("n").len();
    let wrong = || world.phase("b") != "down" || world.lines("n").len() != tries;
    watch_for(Duration::from_millis(1_400), wrong, "the next try came all the same");
}

#[test]
fn case_043_a_unit_in_backoff_is_removed_at_once() {
    let Some(world) = World::new() else { return };
    world.unit("m", "command: [/no/such]\nrestart: {policy: always, delay: 20s}\n");
    world.staying("other", "");
    world.apply(1);
    assert_eq!(world.phase("m"), "backoff");
    world.remove_unit("m");
    let began = now();
    world.apply(0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(world.phase("m"), "absent");
}

/// Waits for clients that were started together; all of them have to succeed.
fn all_succeed(clients: Vec<Child>) {
    for client in clients {
        let said = Said::of_child(client);
        assert_eq!(said.code, 0, "{said:?}");
    }
}

#[test]
fn case_047_commands_go_side_by_side_and_the_last_one_counts() {
    let Some(world) = World::new() else { return };
    let names: Vec<String> = (1..=7).map(|n| format!("s{n}")).collect();
    for name in &names {
        let script =
            format!("trap 'sleep 1; exit' TERM; echo > {name}.set; while :; do sleep 0.05; done");
        world.service(name, &script, "");
    }
    world.apply(0);
    world.until("all traps", || {
        names.iter().all(|name| world.path(&format!("{name}.set")).exists())
    });
    let began = now();
    all_succeed(names.iter().map(|name| world.begin(&["stop", name])).collect());
    assert!(began.elapsed() < Duration::from_millis(6_800), "{:?}", began.elapsed());
    assert!(names.iter().all(|name| world.phase(name) == "down"));
    // Of those on one unit none is refused.
    let verbs = ["start", "stop", "restart", "start", "stop", "start", "restart", "stop"];
    all_succeed(verbs.iter().map(|verb| world.begin(&[verb, "--no-wait", "s1"])).collect());
    assert_eq!(world.opm(&["stop", "s1"]).code, 0);
    assert_eq!(world.phase("s1"), "down");
    assert_eq!(world.opm(&["start", "s1"]).code, 0);
    assert_eq!(world.phase("s1"), "up");
}

#[test]
fn case_048_a_loop_is_refused_whole_and_drawn() {
    let Some(world) = World::new() else { return };
    world.staying("ok", "");
    world.apply(0);
    let pid = world.pid("ok");
    for (name, after) in [("a", "b"), ("b", "c"), ("c", "a")] {
        world.staying(name, &format!("after: [{after}]\n"));
    }
    let said = world.apply(2);
    assert!(said.err.contains("dependency loop: `a` -> `b` -> `c` -> `a`"), "{said:?}");
    for name in ["a", "b", "c"] {
        assert!(said.err.contains(&format!("{name}.yaml:")), "{said:?}");
        world.remove_unit(name);
    }
    world.staying("x", "after: [x]\n");
    let said = world.apply(2);
    assert!(said.err.contains("`x` waits for itself"), "{said:?}");
    assert_eq!(world.pid("ok"), pid);
    assert_eq!(world.rows().len(), 1);
    assert_eq!(world.starts("ok"), 1);
}

#[test]
fn case_049_a_wait_ends_when_what_it_waits_for_cannot_come() {
    let Some(world) = World::new() else { return };
    world.service("db", "exit 1", "restart: never\nready: {fd: 3}\n");
    world.staying("web", "requires: [db]\n");
    let began = now();
    let said = world.apply(1);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(said.err.contains("`db` is failed: exited 1"), "{said:?}");
    let why = world.opm(&["why", "web"]).out;
    assert!(why.contains("db") && why.contains("exited 1"), "{why}");
    assert_eq!(world.starts("web"), 0);
}

#[test]
fn case_051_an_exclusive_console_is_no_key() {
    let Some(world) = World::new() else { return };
    world.task("one", "true", "console: true\n");
    world.staying("two", "requires: [one]\nconsole: true\n");
    let said = world.apply(2);
    for place in ["one.yaml:", "two.yaml:", "unknown key `console`"] {
        assert!(said.err.contains(place), "{said:?}");
    }
    assert_eq!(world.daemon_pid(), None, "and no daemon was left behind");
}

#[test]
fn case_053_a_restarted_base_takes_its_dependents_along() {
    let Some(world) = World::new() else { return };
    let chain = [("base", ""), ("mid", "requires: [base]\n"), ("top", "requires: [mid]\n")];
    for (name, requires) in chain {
        let script = format!(
            "trap 'echo -{name} >> order; exit' TERM; echo {name} >> order; echo >&3; \
             while :; do sleep 0.02; done"
        );
        world.service(name, &script, &format!("{requires}ready: {{fd: 3}}\n"));
    }
    world.apply(0);
    let before = chain.map(|(name, _)| world.pid(name));
    assert_eq!(world.opm(&["restart", "base"]).code, 0);
    world.until("all three to be up", || chain.iter().all(|(name, _)| world.phase(name) == "up"));
    for ((name, _), old) in chain.iter().zip(before) {
        assert!(old.is_some() && world.pid(name) != old, "{name}");
    }
    let order = ["base", "mid", "top", "-top", "-mid", "-base", "base", "mid", "top"];
    assert_eq!(world.lines("order"), order);
}

#[test]
fn case_054_a_ready_message_that_is_the_first_act_is_heard() {
    let Some(world) = World::new() else { return };
    if !world.command("perl").arg("-v").output().is_ok_and(|output| output.status.success()) {
        return common::skip("no perl to speak to a datagram socket");
    }
    let ready = "socket(S, AF_UNIX, SOCK_DGRAM, 0); my $a = $ENV{NOTIFY_SOCKET}; $a =~ s/^@/\\0/; \
                 send(S, 'READY=1', 0, pack_sockaddr_un($a)); sleep 1000";
    let ready = serde_json::to_string(ready).unwrap();
    world.unit(
        "n",
        &format!(
            "command: [perl, -MSocket, -e, {ready}]\nready: {{notify: true}}\ninstances: 20\n\
             start_timeout: 60s\nrestart: never\nlogs: {{to: null}}\n"
        ),
    );
    world.apply(0);
    for _ in 0..4 {
        assert_eq!(world.opm(&["restart", "n"]).code, 0, "{}", world.log());
    }
    let ready = world.rows().iter().filter(|row| row["ready"] == true).count();
    assert_eq!(ready, 20);
}

#[test]
fn case_056_only_the_declared_rule_makes_a_unit_ready() {
    let Some(world) = World::new() else { return };
    let keys = "ready: {fd: 3}\nrestart: {policy: on-failure, delay: 20ms, reset_after: 100ms, \
                limit: {starts: 4, within: 60s}}\n";
    world.service("s", "echo x >> n; sleep 0.3; exit 1", keys);
    world.task("d", "touch d.ran", "requires: [s]\n");
    world.opm(&["apply", "--no-wait", "units"]);
    world.until_phase("s", "failed");
    assert_eq!(world.lines("n").len(), 4);
    assert_eq!(world.phase("d"), "waiting");
    assert!(!world.path("d.ran").exists());
}

#[test]
fn case_058_status_is_not_older_than_the_last_event() {
    let Some(world) = World::new() else { return };
    world.service("a", "echo $$ > pid; sleep 0.5; exit 1", "restart: never\n");
    world.apply(0);
    world.until("its start", || world.pid_in("pid").is_some());
    let pid = world.pid_in("pid").unwrap();
    world.until("its end", || !world.alive(pid));
    let ended = now();
    world.until_phase("a", "failed");
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
    let row = world.row("a");
    assert_eq!((&row["code"], &row["last"]), (&1.into(), &"exited 1".into()));
}

#[test]
fn case_093_only_a_changed_unit_is_touched() {
    let Some(world) = World::new() else { return };
    let names: Vec<String> = (1..=5).map(|n| format!("g{n}")).collect();
    for name in &names {
        world.staying(name, "");
    }
    world.apply(0);
    let pids = |world: &World| names.iter().map(|name| world.pid(name)).collect::<Vec<_>>();
    let before = pids(&world);
    world.staying("g3", "env: {A: b}\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("g3 (restart, down for") && plan.contains("1 to change"), "{plan}");
    assert!(names.iter().filter(|name| plan.contains(&**name)).eq(["g3"]), "{plan}");
    world.apply(0);
    let after = pids(&world);
    for (n, (old, new)) in before.iter().zip(&after).enumerate() {
        assert_eq!(old != new, n == 2, "g{}", n + 1);
    }
    let keys =
        "working_dir: ..\n# why not\ncommand: [sh, -c, echo $$ >> g1.starts; exec sleep 1000]";
    world.unit("g1", &format!("logs: {{to: null}}\n{keys}\n"));
    let said = world.apply(0);
    assert!(said.out.contains("no change"), "{said:?}");
    assert_eq!(pids(&world), after);
}

#[test]
fn case_094_a_policy_is_taken_over_live() {
    let Some(world) = World::new() else { return };
    world.staying("p", "restart: {policy: always, delay: 20ms}\n");
    world.apply(0);
    world.until("its first act", || world.starts("p") == 1);
    let pid = world.pid("p");
    world.staying("p", "restart: never\nstop: {timeout: 3s}\n");
    world.apply(0);
    assert_eq!(world.pid("p"), pid);
    world.kill("KILL", pid.unwrap());
    world.until_phase("p", "failed");
    let wrong = || world.starts("p") != 1 || world.phase("p") != "failed";
    watch_for(Duration::from_millis(400), wrong, "it is started again");
}

#[test]
fn case_140_what_requires_a_task_waits_for_its_success() {
    let Some(world) = World::new() else { return };
    let foo = "test -e i.done && touch foo.ok; echo >> foo.ran; exec sleep 1000";
    world.task("init", "sleep 0.5; touch i.done", "");
    world.service("foo", foo, "requires: [init]\n");
    world.apply(0);
    world.until("its act", || world.path("foo.ran").exists());
    assert!(world.path("foo.ok").exists());
    // With a task that fails it never starts.
    world.task("bad", "exit 1", "");
    world.service("bar", "touch bar.ran; exec sleep 1000", "requires: [bad]\n");
    world.apply(1);
    assert_eq!(world.phase("bar"), "waiting");
    assert!(!world.path("bar.ran").exists());
}

#[test]
fn case_141_a_task_runs_once_for_all_who_require_it() {
    let Some(mut world) = World::new() else { return };
    world.task("mig", "echo x >> n", "");
    world.staying("a", "requires: [mig]\n");
    world.staying("b", "requires: [mig]\nenabled: false\n");
    world.apply(0);
    for args in [&["start", "b"][..], &["restart", "a"], &["apply", "units"], &["apply", "units"]] {
        assert_eq!(world.opm(args).code, 0, "{args:?}");
    }
    world.crash();
    assert_eq!(world.opm(&["restore"]).code, 0);
    assert_eq!(world.opm(&["restart", "b"]).code, 0);
    assert_eq!(world.phase("mig"), "done");
    assert_eq!(world.lines("n").len(), 1);
    world.task("mig", "echo x >> n", "env: {A: b}\n");
    world.apply(0);
    world.until("its second run", || world.lines("n").len() == 2);
    world.until_phase("mig", "done");
}

#[test]
fn case_143_a_short_run_that_succeeds_is_a_success() {
    let Some(world) = World::new() else { return };
    world.task("v", "echo hi >> n", "");
    world.service("w", "echo hi >> n2", "restart: on-failure\n");
    world.apply(0);
    for (unit, file) in [("v", "n"), ("w", "n2")] {
        world.until_phase(unit, "done");
        assert_eq!(world.row(unit)["last"], "exited 0");
        assert_eq!(world.lines(file).len(), 1);
    }
    // An apply waits for a task until it has completed, and says how that went.
    world.task("v", "sleep 0.3; echo hi >> n; exit 1", "");
    world.apply(1);
    assert_eq!(world.lines("n").len(), 2);
}

#[test]
fn what_is_said_while_no_supervisor_lives_is_found_later() {
    let Some(mut world) = World::new() else { return };
    let wait = "until [ -e now ]; do sleep 0.02; done";
    let stay = "echo > said-$OPM_UNIT; exec sleep 1000";
    let rules = [
        ("fd", "echo >&3", "ready: {fd: 3}\n"),
        ("file", "echo > units/told", "ready: {file: told}\n"),
        // The one that is lost, opm-daemon(8): its socket died with the supervisor.
        ("notify", ":", "ready: {notify: true}\n"),
    ];
    for (name, say, ready) in rules {
        world.service(
            name,
            &format!("{wait}; {say}; {stay}"),
            &format!("{ready}start_timeout: 1h\n"),
        );
    }
    world.run();
    for (name, ..) in rules {
        world.until("it to run", || world.phase(name) == "starting" && world.pid(name).is_some());
    }
    let pids = rules.map(|(name, ..)| world.pid(name));
    world.crash();
    std::fs::write(world.path("now"), "").unwrap();
    world.until("all to have spoken", || {
        rules.iter().all(|(name, ..)| world.path(&format!("said-{name}")).exists())
    });
    world.run();
    for name in ["fd", "file"] {
        world.until_phase(name, "up");
    }
    assert_eq!(world.phase("notify"), "starting");
    assert_eq!(rules.map(|(name, ..)| world.pid(name)), pids);
}

#[test]
fn conditions_that_change_while_they_are_asked_are_asked_anew() {
    let Some(mut world) = World::new() else { return };
    let asks = "echo > asked; while ! [ -e go ]; do sleep 0.05; done; exit 1";
    let asks = format!("conditions: {{command: [sh, -c, '{asks}']}}\n");
    world.service("s", "exec sleep 1000", &asks);
    world.run();
    world.until("its condition to be asked", || world.path("asked").exists());
    world.service("s", "exec sleep 1000", "");
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    std::fs::write(world.path("go"), "").unwrap();
    world.until_phase("s", "up");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
}
