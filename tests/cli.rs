//! Whole conversations on the command line: what is printed where, and the exit code.

mod common;

use common::{Said, World};

/// What was said, with what differs from run to run made equal.
fn text(world: &World, said: &Said) -> String {
    let scratch = world.dir.path().to_string_lossy().into_owned();
    let out = said.out.replace(&scratch, "DIR");
    let err = said.err.replace(&scratch, "DIR");
    format!("exit {}\n{out}{}{err}", said.code, if err.is_empty() { "" } else { "---\n" })
}

fn check(world: &World, args: &[&str], expected: &str) {
    let said = world.opm(args);
    assert_eq!(text(world, &said), expected, "opm {}\n{}", args.join(" "), world.log());
}

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

#[test]
fn without_a_daemon() {
    let world = World::bare();
    world.unit("a", SLEEP);
    check(&world, &["check", "units"], "exit 0\n1 unit, no mistakes\n");
    let nobody = "exit 3\n---\nopm: no daemon runs (nobody listens on `DIR/root/run/control.sock`); \
                  start one with `opm daemon` or `opm apply`\n";
    for args in [&["status"][..], &["apply", "--no-daemon", "units"], &["stop", "a"], &["why", "a"]]
    {
        check(&world, args, nobody);
    }
    check(
        &world,
        &["check", "nowhere"],
        "exit 2\n---\nopm: cannot read units from `nowhere`: no such file or directory\n",
    );
    assert_eq!(world.opm(&["run"]).code, 2);
    assert_eq!(world.opm(&["no-such-command"]).code, 2);
    assert_eq!(world.opm(&["--version"]).out, format!("opm {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_apply_and_what_follows() {
    let Some(world) = World::new() else { return };
    world.unit("a", SLEEP);
    world.unit("b", &format!("{SLEEP}requires: [a]\n"));
    let said = world.apply(0);
    assert_eq!(said.out, "+ a (create)\n+ b (create)\n2 changed, generation 1\n");
    assert!(said.err.contains("no daemon ran; one was started"), "{said:?}");
    check(&world, &["apply", "units"], "exit 0\nno change, generation 1\n");
    check(&world, &["plan", "units"], "exit 0\nno change\n");
    check(&world, &["why", "a"], "exit 0\n`a` is up: it is wanted, and ready\n");

    world.unit("a", &format!("{SLEEP}restart: always\nenv: {{DB_PASSWORD: geheim}}\n"));
    let plan = "± a (restart, down for 1m10s at most)\n    env.DB_PASSWORD: - → \"(not shown)\" (restart)\n    \
                restart.policy: \"on-failure\" → \"always\" (live)\n± b (restart, down for 2m20s at most, because of `a`)\n";
    check(&world, &["plan", "units"], &format!("exit 0\n{plan}2 to change: 2 restart\n"));
    check(
        &world,
        &["plan", "--exit-code", "units"],
        &format!("exit 2\n{plan}2 to change: 2 restart\n"),
    );
    let said = world.opm(&["apply", "units"]);
    assert_eq!((said.code, said.out.as_str()), (0, &*format!("{plan}2 changed, generation 2\n")));

    assert_eq!(world.opm(&["stop", "--reason", "lunch", "a"]).code, 0);
    check(
        &world,
        &["why", "b"],
        "exit 0\n`b` is waiting: waits for `a` to be ready\n`a` is down: held by uid 0: lunch \
         (`opm start a` lifts it)\n",
    );
    assert_eq!(world.opm(&["status", "a"]).code, 3);
    assert_eq!(world.opm(&["status", "nobody"]).code, 4);
    check(&world, &["start", "aa"], "exit 4\n---\nopm: no unit `aa`; did you mean `a`?\n");
    assert_eq!(world.opm(&["start", "a"]).code, 0);
    world.until_phase("b", "up");
    check(&world, &["status", "--json", "nobody"], "exit 4\n---\nopm: no unit `nobody`\n");
    check(&world, &["reload", "a"], "exit 4\n---\nopm: `a` has no `reload:` in its unit file\n");
    world.remove_unit("b");
    // How much of the way is seen depends on how fast it goes.
    let said = world.opm(&["apply", "units"]);
    assert_eq!((said.code, &*said.out), (0, "- b (remove)\n1 changed, generation 5\n"));
    assert_eq!(world.phase("b"), "absent");
    check(&world, &["shutdown"], "exit 0\n");
    assert_eq!(world.opm(&["status"]).code, 3);
}

#[test]
fn an_apply_that_fails_names_the_cause_and_the_last_words() {
    let Some(world) = World::new() else { return };
    world.unit("db", "command: [sh, -c, 'echo no disk; exit 7']\nrestart: never\nready: {fd: 3}\n");
    world.unit("web", &format!("{SLEEP}requires: [db]\n"));
    let said = world.apply(1);
    assert!(said.err.contains("opm: `db` is failed: exited 7\n    db | no disk\n"), "{said:?}");
    assert!(said.err.contains("opm: `web` is waiting: waits for `db` to be ready\n"), "{said:?}");
}

#[test]
fn units_with_mistakes_change_nothing() {
    let Some(world) = World::new() else { return };
    world.unit("a", SLEEP);
    world.apply(0);
    let pid = world.pid("a");
    world.unit("b", "comand: [true]\n");
    let said = world.apply(2);
    assert!(said.err.contains("did you mean `command`?"), "{said:?}");
    assert_eq!((world.pid("a"), world.phase("b")), (pid, "absent".to_owned()));
    let said = world.opm(&["check", "--format", "json", "units"]);
    let mistakes: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, mistakes[0]["line"].as_u64()), (2, Some(1)), "{said:?}");
}

#[test]
fn a_time_out_says_that_it_goes_on() {
    let Some(world) = World::new() else { return };
    world.unit("slow", "command: [sleep, '1000']\nready: {delay: 600s}\nstart_timeout: 700s\n");
    let said = world.opm(&["apply", "--timeout", "200ms", "units"]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains("still going on: slow (starting)"), "{said:?}");
    assert_eq!(world.opm(&["wait", "--for", "ready", "--timeout", "50ms", "slow"]).code, 5);
}

#[test]
fn units_are_put_together_from_the_command_line() {
    let Some(world) = World::new() else { return };
    let write = |name: &str, text: &str| {
        let path = world.dir.path().join("units").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    world.unit("a", &format!("{SLEEP}env: {{A: unit}}\n"));
    write("a.d/10-env.yaml", "env: {A: drop-in, B: drop-in}\n");
    write("a.prod.yaml", "env: {B: prod}\n");
    write("more/b.yaml", "extends: a\nenabled: false\n");
    check(
        &world,
        &["check", "units"],
        "exit 0\n1 unit, no mistakes\nleft out: DIR/units/a.prod.yaml, of the profile `prod`\n",
    );
    let all = ["-R", "--profile", "prod", "--set", "a.env.C=8080", "units"];
    let with = |command: &'static str| [&[command][..], &all].concat();
    check(&world, &with("check"), "exit 0\n2 units, no mistakes\n");
    let said = world.opm(&[&["check", "--origin", "b"][..], &all].concat());
    let text = text(&world, &said);
    for line in [
        "env.A: drop-in   DIR/units/a.d/10-env.yaml:1\n",
        "env.B: prod   DIR/units/a.prod.yaml:1\n",
        "env.C: 8080   --set:1\n",
        "command: [\"sleep\",\"1000\"]   DIR/units/a.yaml:1\n",
        "enabled: false   DIR/units/more/b.yaml:2\n",
        "restart.policy: on-failure   default\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let nobody = world.opm(&["check", "--origin", "c", "units"]);
    assert_eq!((nobody.code, nobody.err.contains("no such unit")), (2, true), "{nobody:?}");

    let said = world.opm(&with("apply"));
    assert_eq!(
        (said.code, &*said.out),
        (0, "+ a (create)\n+ b (create)\n2 changed, generation 1\n")
    );
    check(&world, &with("plan"), "exit 0\nno change\n");
    let shown = world.opm(&["show", "a"]).out;
    assert!(shown.contains("env.B: prod\nenv.C: 8080\n"), "{shown}");
    // Without them the source says something else.
    check(
        &world,
        &["plan", "units"],
        "exit 0\n- b (remove)\n± a (restart, down for 1m10s at most)\n    env.B: \"prod\" → \"drop-in\" (restart)\n    \
         env.C: \"8080\" → - (restart)\n2 to change: 1 remove, 1 restart\n",
    );
    let said = world.opm(&["apply", "--set", "a.nice=99", "units"]);
    assert!(said.code == 2 && said.err.contains("--set:1:8"), "{said:?}");
    let said = world.opm(&["plan", "--profile", "prdo", "units"]);
    assert!(said.err.contains("did you mean `prod`?"), "{said:?}");
}

#[test]
fn a_supervisor_reads_its_directory_the_same_way_again() {
    let Some(world) = World::new() else { return };
    world.unit("a", &format!("{SLEEP}env: {{A: unit}}\n"));
    let units = world.dir.path().join("units");
    std::fs::create_dir(units.join("more")).unwrap();
    std::fs::write(units.join("more/b.yaml"), SLEEP).unwrap();
    std::fs::write(units.join("a.prod.yaml"), "env: {A: prod}\n").unwrap();
    assert_eq!(world.opm(&["daemon", "-R", "--profile", "prod", "units"]).code, 0);
    world.until_phase("b", "up");
    assert!(world.opm(&["show", "a"]).out.contains("env.A: prod\n"));
    // Its own arguments bring it here again.
    assert_eq!(world.opm(&["reexec"]).code, 0);
    std::fs::write(units.join("a.prod.yaml"), "env: {A: again}\n").unwrap();
    world.kill("HUP", world.daemon_pid().unwrap());
    world.until("the directory is read again", || {
        world.opm(&["show", "a"]).out.contains("env.A: again\n")
    });
}

#[test]
fn directories_are_read_once_and_in_bounds() {
    let world = World::bare();
    world.unit("a", SLEEP);
    let units = world.dir.path().join("units");
    let made = |path: &str| std::fs::create_dir_all(units.join(path)).unwrap();
    made("deep/er");
    made(".hidden");
    made("a.d");
    std::fs::write(units.join("deep/er/b.yaml"), SLEEP).unwrap();
    std::fs::write(units.join(".hidden/c.yaml"), SLEEP).unwrap();
    for (to, link) in [("..", "deep/up"), ("deep", "link"), (".", "self"), ("none", "gone")] {
        std::os::unix::fs::symlink(to, units.join(link)).unwrap();
    }
    check(&world, &["check", "units"], "exit 0\n1 unit, no mistakes\n");
    check(&world, &["check", "-R", "units"], "exit 0\n2 units, no mistakes\n");
    std::fs::write(units.join("deep/a.yaml"), SLEEP).unwrap();
    let said = world.opm(&["check", "--recursive", "units"]);
    assert!(said.code == 2 && said.err.contains("unit `a` is declared twice"), "{said:?}");
    nix::unistd::mkfifo(&units.join("a.d/x.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let said = world.opm(&["check", "units"]);
    assert!(said.err.contains("it is no regular file"), "{said:?}");
    made(&"d/".repeat(40));
    let said = world.opm(&["check", "-R", "units"]);
    assert!(said.err.contains("more than 32 directories deep"), "{said:?}");
}

#[test]
fn an_interrupt_ends_the_wait_and_says_that_it_goes_on() {
    let Some(world) = World::new() else { return };
    world.unit("slow", "command: [sleep, '1000']\nready: {delay: 600s}\nstart_timeout: 700s\n");
    let script = format!(
        "{} --root {} apply units 2> err & apply=$!; until grep -q starting err; do :; done; \
         kill -INT $apply; wait $apply; echo $? > code",
        common::OPM,
        world.root().display()
    );
    assert!(world.command("sh").args(["-c", &script]).status().is_ok_and(|s| s.success()));
    assert_eq!(world.read("code"), "130\n");
    assert!(world.read("err").contains("it goes on; `opm status`"), "{}", world.read("err"));
    assert_eq!(world.phase("slow"), "starting");
}

#[test]
fn explain_takes_what_units_take_and_refuses_what_they_refuse() {
    let world = World::bare();
    for (args, code, text) in [
        (&["every", "500ms"][..], 2, "cannot explain `500ms`: `every` must be 1s or more"),
        (&["every", "1s"], 0, ":01 UTC\n"),
        (&["schedule", "0 0 30 2 *"], 2, "never comes"),
        (&["schedule", "daily"], 2, "it is written as `calendar: …`"),
        (&["watchdog"], 0, "  value    duration of 10ms or more\n"),
        (&["web.env.PORT"], 0, "env: variables"),
        (&["restart.PORT"], 2, "there is no key"),
    ] {
        let mut all = vec!["explain", "--timezone", "UTC", "--from", "2026-11-26T00:00:00Z", "-n1"];
        if args.len() == 1 {
            all.truncate(1);
        }
        all.extend(args);
        let said = world.opm(&all);
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(format!("{}{}", said.out, said.err).contains(text), "{args:?}: {said:?}");
    }
}

#[test]
fn what_can_be_told_from_the_words_alone_is_told_before_anybody_is_asked() {
    let world = World::bare();
    for (args, text) in [
        (&["kill", "-s", "SIGTERN", "web"][..], "did you mean `TERM`?"),
        (&["kill", "-s", "65", "web"], "write it as `TERM`, `SIGTERM`, `15` or `RTMIN+3`"),
        (&["explain", "every", "1h", "-n", "0"], "0 is not in 1..=1000"),
        (&["explain", "every", "1h", "-n", "1001"], "1001 is not in 1..=1000"),
        (&["explain", "every", "1h", "--from", "soon"], "`soon` is no time; write it as"),
    ] {
        let said = world.opm(args);
        assert_eq!(said.code, 2, "{args:?}: {said:?}");
        assert!(said.err.contains(text), "{args:?}: {said:?}");
    }
    // A day is one of the zone that is asked about.
    let day = ["explain", "schedule", "0 * * * *", "--from", "2026-11-26", "-n1", "--timezone"];
    for (zone, due) in [("UTC", "Thu 2026-11-26 01:00:00 UTC"), ("Asia/Tokyo", "01:00:00 JST")] {
        let said = world.opm(&[&day[..], &[zone]].concat());
        assert!(said.code == 0 && said.out.contains(due), "{zone}: {said:?}");
    }
}

#[test]
fn a_daemon_whose_units_have_mistakes_prints_them_and_does_not_start() {
    let Some(world) = World::new() else { return };
    world.unit("a", "comand: [sleep]\n");
    let said = world.opm(&["daemon", "units"]);
    assert_eq!(said.code, 2, "{said:?}");
    let log = std::fs::read_to_string(world.root().join("log/opm.log")).unwrap();
    for text in [&said.err, &log] {
        assert!(text.contains("unknown key `comand`"), "{text}");
    }
    assert_eq!(world.opm(&["status"]).code, 3, "nothing runs");
}

#[test]
fn a_daemon_of_a_directory_that_moved_says_whose_its_units_are() {
    let Some(world) = World::new() else { return };
    world.unit("a", "command: [sleep, '1000']\nlogs: {to: null}\n");
    world.apply(0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    std::fs::create_dir(world.path("moved")).unwrap();
    std::fs::copy(world.path("units/a.yaml"), world.path("moved/a.yaml")).unwrap();
    let said = world.opm(&["daemon", "moved"]);
    assert_eq!(said.code, 2, "{said:?}");
    for words in ["runs what was saved", "unit `a` is declared by source", "moved/a.yaml"] {
        assert!(said.err.contains(words), "{words}: {said:?}");
    }
    world.until_phase("a", "up");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_file_that_cannot_be_read_hides_no_mistake_in_another() {
    let world = World::bare();
    for (link, target) in [("one.yaml", "/nope"), ("two.yaml", "nowhere")] {
        std::os::unix::fs::symlink(target, world.path("units").join(link)).unwrap();
    }
    world.unit("web", "comand: [true]\n");
    let said = world.opm(&["check", "units"]);
    assert_eq!(said.code, 2, "{said:?}");
    for words in
        ["did you mean `command`?", "one.yaml`: it is a link to `/nope`", "two.yaml`: it is a link"]
    {
        assert!(said.err.contains(words), "{words}: {said:?}");
    }
}
