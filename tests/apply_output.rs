//! opm-apply(1): what an apply prints where nobody looks at a terminal, word by word, and the
//! examples of the page, which are run as they stand there.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;

use common::World;
use common::far::{Far, program};
use serde_json::Value;

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

/// Everything that an apply can do to a unit.
const EVERYTHING: &str = "\
- old (remove)
± a (restart, down for 1m10s at most)
    env.X: - → \"1\" (restart)
~ cache (change live)
    restart.delay: \"200ms\" → \"1s\" (live)
~ held (change live, held down by uid 0)
    restart.policy: \"on-failure\" → \"always\" (live)
± b (restart, down for 2m20s at most, because of `a`)
+ new (create)
";

const SUMMARY: &str = "6 to change: 1 create, 1 remove, 2 restart, 2 change live";

/// Neither colours nor moves of a cursor, and on standard error nothing but what is documented.
fn assert_plain(said: &common::Said) {
    for text in [&said.out, &said.err] {
        let is_odd = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(is_odd), "{said:?}");
    }
    for line in said.err.lines() {
        let is_phase = line.split_once(": ").is_some_and(|(unit, phase)| {
            let first = phase.split(' ').next().unwrap_or_default();
            !unit.contains(' ')
                && ["starting", "up", "stopping", "down", "waiting", "failed", "skipped"]
                    .contains(&first)
        });
        let is_reason = line.starts_with("opm: `") || line.starts_with("    ");
        assert!(is_phase || is_reason, "{line}");
    }
}

#[test]
fn what_an_apply_prints_is_the_same_each_time() {
    let Some(world) = World::new() else { return };
    for name in ["a", "cache", "held", "old"] {
        world.unit(name, SLEEP);
    }
    world.unit("b", &format!("{SLEEP}requires: [a]\n"));
    assert_eq!(world.opm(&["daemon"]).code, 0);
    let all = "+ a (create)\n+ cache (create)\n+ held (create)\n+ old (create)\n+ b (create)\n";
    assert_eq!(world.apply(0).out, format!("{all}5 changed, generation 1\n"));
    assert_eq!(world.opm(&["stop", "held"]).code, 0);
    world.unit("a", &format!("{SLEEP}env: {{X: 1}}\n"));
    world.unit("cache", &format!("{SLEEP}restart: {{delay: 1s}}\n"));
    world.unit("held", &format!("{SLEEP}restart: always\n"));
    world.unit("new", SLEEP);
    world.remove_unit("old");
    let said = world.opm(&["plan", "units"]);
    assert_eq!((said.out, said.err), (format!("{EVERYTHING}{SUMMARY}\n"), String::new()));
    let said = world.apply(0);
    assert_eq!(said.out, format!("{EVERYTHING}6 changed, generation 3\n"));
    assert_plain(&said);
    let said = world.apply(0);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("no change, generation 3\n", ""));

    world.unit("new", "command: [sh, -c, exit 7]\nrestart: never\nready: {fd: 3}\n");
    let said = world.apply(1);
    assert!(said.err.contains("opm: `new` is failed: exited 7\n"), "{said:?}");
    assert_plain(&said);
}

#[test]
fn who_is_skipped_is_no_failure_and_says_why() {
    let Some(world) = World::new() else { return };
    world.unit("cond", &format!("{SLEEP}conditions: {{path_exists: [/nowhere]}}\n"));
    let why = "opm: `cond` is skipped: a condition does not hold: path `/nowhere`: no such \
               file or directory\n";
    assert_eq!(world.opm(&["daemon"]).code, 0);
    let said = world.apply(0);
    assert!(said.err.ends_with(why), "{said:?}");
    assert_plain(&said);
    let said = world.opm(&["start", "cond"]);
    assert_eq!(said.code, 0);
    assert!(said.err.ends_with(why), "{said:?}");
}

#[test]
fn who_dies_early_fails_where_the_unit_says_from_when_on_it_is_ready() {
    let Some(world) = World::new() else { return };
    world.unit("web", SLEEP);
    world.apply(0);
    // Up is who runs. Who is ready is up for longer than it takes to die.
    let dies = "shell: echo oops; exit 7\nrestart: never\n";
    world.unit("web", &format!("{dies}ready: {{delay: 1h}}\n"));
    let said = world.opm(&["apply", "--rollback-on-failure", "units"]);
    assert_eq!(said.code, 1, "{said:?}");
    for text in ["`web` is failed: exited 7", "    web | oops\n", "taken back to generation 1"] {
        assert!(said.err.contains(text), "{text}: {said:?}");
    }
    world.until_phase("web", "up");
}

/// An example of the page, as it is printed.
fn example(name: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/man/opm-apply.1");
    let page = fs::read_to_string(page).unwrap();
    let mark = format!(".\\\" example: {name}\n");
    let text = page.split(&mark).nth(1).unwrap().split("-offset indent\n").nth(1).unwrap();
    let text = text.split(".Ed\n").next().unwrap();
    [("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\e", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (roff, plain)| text.replace(roff, plain))
}

fn said(command: &mut std::process::Command) -> common::Said {
    common::Said::of_child(command.spawn().unwrap())
}

#[test]
fn the_script_of_the_manual_deploys() {
    let Some(far) = Far::new(&["web1", "web2"]) else { return };
    program(&far.world.path("deploy.sh"), &example("deploy.sh"));
    let run = || said(far.program("./deploy.sh").env("LC_ALL", "C"));
    far.daemons(&["web1"]);
    far.world.unit("site", SLEEP);
    let first = run();
    assert_eq!(first.code, 3, "web2 has no daemon: {first:?}");
    assert!(first.out.contains("1 changed, generation 1\nUNIT "), "{first:?}");
    far.daemons(&["web2"]);
    let second = run();
    assert_eq!(second.code, 0, "{second:?}");
    assert!(second.out.contains("no change, generation 1\n"), "{second:?}");
    assert!(second.out.contains("1 changed, generation 1\n"), "{second:?}");
    far.world.unit("broken", "comand: [true]\n");
    assert_eq!(run().code, 2);
}

/// Runs the steps of the workflow as GitHub's runner does, those of actions excepted.
fn run_workflow(far: &Far, event: &str) -> Vec<(String, common::Said)> {
    let workflow: Value = serde_yaml::from_str(&example("deploy.yaml")).unwrap();
    let steps = workflow.pointer("/jobs/deploy/steps").unwrap().as_array().unwrap();
    let mut done = Vec::new();
    for step in steps {
        let wanted = step
            .get("if")
            .and_then(Value::as_str)
            .is_none_or(|condition| condition.contains(event));
        let Some(script) = step.get("run").and_then(Value::as_str).filter(|_| wanted) else {
            continue;
        };
        let mut command = far.program("bash");
        command.args(["-e", "-c", script]);
        command.env("HOST", workflow.pointer("/env/HOST").unwrap().as_str().unwrap());
        command.env("HOME", far.world.path("home"));
        command.env("GITHUB_STEP_SUMMARY", far.world.path("summary"));
        for (name, value) in step.get("env").and_then(Value::as_object).into_iter().flatten() {
            assert!(value.as_str().unwrap().starts_with("${{ secrets."));
            command.env(name, "secret");
        }
        let name = step.get("name").and_then(Value::as_str).unwrap().to_owned();
        let said = said(&mut command);
        let failed = said.code != 0;
        done.push((name, said));
        if failed {
            break;
        }
    }
    done
}

#[test]
fn the_workflow_of_the_manual_plans_and_deploys() {
    let Some(far) = Far::new(&["web1.example.org"]) else { return };
    for dir in ["home", "ci"] {
        fs::create_dir(far.world.path(dir)).unwrap();
    }
    program(&far.world.path("ci/install-opm"), "#!/bin/sh\nopm --version\n");
    far.daemons(&["web1.example.org"]);
    far.world.unit("site", SLEEP);
    let names = |steps: &[(String, common::Said)]| -> Vec<String> {
        steps.iter().map(|(name, said)| format!("{name} {}", said.code)).collect()
    };
    let steps = run_workflow(&far, "pull_request");
    assert_eq!(names(&steps), ["Install 0", "Check 0", "Key 0", "Plan 0"], "{steps:?}");
    assert_eq!(far.world.read("summary"), "```\n+ site (create)\n1 to change: 1 create\n```\n");
    assert_eq!(far.world.read("home/.ssh/id_ed25519"), "secret\n");
    assert!(!far.on("web1.example.org", &["status"]).out.contains("site"), "only a plan");
    let steps = run_workflow(&far, "push");
    let all = ["Install 0", "Check 0", "Key 0", "Plan 0", "Apply 0", "State 0"];
    assert_eq!(names(&steps), all, "{steps:?}");
    assert!(steps[4].1.out.ends_with("1 changed, generation 1\n"), "{steps:?}");
    far.world.unit("site", "comand: [true]\n");
    assert_eq!(names(&run_workflow(&far, "push")), ["Install 0", "Check 2"]);
}
