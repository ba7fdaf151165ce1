//! Full disks: what cannot be written is refused, and what was written stays.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{World, is_root, skip, witness};

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

/// Puts a tiny tmpfs over a directory in the world's namespace, and fills it but for `left` KiB.
fn tiny(world: &World, dir: &str) -> bool {
    if !is_root() {
        skip("needs root to mount a tmpfs");
        return false;
    }
    let dir = world.root().join(dir);
    std::fs::create_dir_all(&dir).unwrap();
    let status =
        world.command("mount").args(["-t", "tmpfs", "-o", "size=256k", "tiny"]).arg(&dir).status();
    assert!(status.unwrap().success());
    true
}

fn fill(world: &World, dir: &str) {
    let script = format!("head -c 400000 /dev/zero > {}/filler", world.root().join(dir).display());
    world.command("sh").args(["-c", &script]).output().unwrap();
}

fn empty(world: &World, dir: &str) {
    let filler = world.root().join(dir).join("filler");
    world.command("rm").arg(filler).status().unwrap();
}

#[test]
fn a_full_disk_refuses_the_apply_and_keeps_the_old_state() {
    let Some(mut world) = World::new() else { return };
    if !tiny(&world, "state") {
        return;
    }
    world.unit("a", SLEEP);
    world.apply(0);
    let pid = world.pid("a");
    fill(&world, "state");
    world.unit("b", SLEEP);
    let said = world.apply(4);
    assert!(said.err.contains("no space left on device"), "{said:?}");
    assert!(said.err.contains("generation 1 stays"), "{said:?}");
    assert_eq!((world.pid("a"), world.phase("b")), (pid, "absent".to_owned()));
    // Also after a crash it is the old state, not an empty one.
    world.crash();
    assert_eq!(world.opm(&["daemon"]).code, 0, "{}", world.log());
    assert_eq!((world.pid("a"), world.phase("b")), (pid, "absent".to_owned()));
    empty(&world, "state");
    world.apply(0);
    assert_eq!(world.phase("b"), "up");
}

#[test]
fn nothing_is_started_that_the_ledger_cannot_hold() {
    let Some(mut world) = World::new() else { return };
    if !tiny(&world, "run") {
        return;
    }
    world.unit("a", SLEEP);
    world.apply(0);
    let pid = world.pid("a");
    fill(&world, "run");
    // More than what fits in the rest of the ledger's last page.
    let names: Vec<String> = (0..60).map(|n| format!("b{n}")).collect();
    for name in &names {
        let command = format!("{:?}", witness(name) + "exec sleep 1000");
        let text = format!("command: [sh, -c, {command}]\nworking_dir: ..\nlogs: {{to: null}}\n");
        world.unit(name, &text);
    }
    let said = world.apply(1);
    assert!(said.err.contains("cannot write to the ledger"), "{said:?}");
    empty(&world, "run");
    for name in &names {
        world.until_phase(name, "up");
    }
    world.crash();
    assert_eq!(world.opm(&["daemon"]).code, 0);
    for name in &names {
        world.until_phase(name, "up");
        world.until("its first act", || !world.lines(&format!("{name}.starts")).is_empty());
        assert_eq!(world.lines(&format!("{name}.starts")).len(), 1, "{name}");
    }
    assert_eq!(world.pid("a"), pid);
    world.assert_no_doubles();
}

#[test]
fn a_limit_of_file_sizes_that_opm_inherits_costs_lines_and_ends_nobody() {
    let Some(mut world) = World::new() else { return };
    let script = "yes | head -c 1000000; touch through; exec sleep 1000";
    world.unit("web", &common::in_shell(script));
    let root = world.root();
    // In units of 512 bytes.
    let limited = format!("ulimit -f 40; exec {} --root {} run units", common::OPM, root.display());
    let mut command = world.command("sh");
    command.args(["-c", &limited]).stdout(std::process::Stdio::null());
    world.spawn(command);
    world.until("all that it writes to be taken", || world.path("through").exists());
    let kept = std::fs::metadata(root.join("log/web/current")).unwrap().len();
    assert!(kept <= 40 * 512, "{kept} bytes");
    let keeper = world.opm(&["status", "--all", "--json"]).out;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&keeper).unwrap();
    let keeper = rows.iter().find(|row| row["instance"] == "_opm-log-keeper").unwrap();
    assert_eq!((&keeper["phase"], &keeper["restarts"]), (&"up".into(), &0.into()), "{keeper}");
    let limits = world.proc().unwrap().join(format!("{}/status", world.pid("web").unwrap()));
    let ignored = std::fs::read_to_string(limits).unwrap();
    let ignored = ignored.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(u64::from_str_radix(ignored.trim(), 16), Ok(0), "the unit has the default");
    assert_eq!(world.opm(&["stop", "web"]).code, 0);
}

/// A disk of the state that is full, and a service that has an alarm started when it is told to end.
fn full_with_an_alarm(world: &World, task: bool) -> bool {
    if !tiny(world, "state") {
        return false;
    }
    let keys = "restart: never\non_failure: {start: alarm}\n";
    world.service("web", "read line < fifo; exit 1", keys);
    if task {
        world.task("alarm", "echo >> alarms", "enabled: false\n");
    } else {
        world.staying("alarm", "enabled: false\n");
    }
    assert!(world.command("mkfifo").arg("fifo").status().unwrap().success());
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    world.until_phase("web", "up");
    fill(world, "state");
    std::fs::write(world.path("fifo"), "end\n").unwrap();
    true
}

#[test]
fn what_the_end_of_a_unit_starts_runs_although_that_cannot_be_saved() {
    let Some(world) = World::new() else { return };
    if !full_with_an_alarm(&world, true) {
        return;
    }
    world.until_phase("alarm", "done");
    assert_eq!(world.lines("alarms").len(), 1);
    // Where another program is to go on with it, it has to be saved first.
    let said = world.opm(&["reexec"]);
    assert!(said.code == 4 && said.err.contains("no space left"), "{said:?}");
    // All else is refused, and done as soon as there is room again.
    assert_eq!(world.opm(&["start", "web"]).code, 4);
    empty(&world, "state");
    assert_eq!(world.opm(&["start", "web", "--no-wait"]).code, 0);
    std::fs::write(world.path("fifo"), "end\n").unwrap();
    world.until("another alarm", || world.lines("alarms").len() == 2);
}

#[test]
fn what_could_not_be_saved_is_saved_before_another_program_goes_on_with_it() {
    let Some(world) = World::new() else { return };
    if !full_with_an_alarm(&world, false) {
        return;
    }
    world.until_phase("alarm", "up");
    empty(&world, "state");
    assert_eq!(world.opm(&["reexec"]).code, 0);
    assert_eq!((world.phase("alarm").as_str(), world.starts("alarm")), ("up", 1));
}
