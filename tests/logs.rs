//! `opm logs`: what of the logs is shown, and how. The files are written by hand or by real units.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use common::{OPM, Said, World, comes_true, in_shell};

/// A log of one instance, its records as (time of 2026-11-25, stream, line).
fn write(world: &World, instance: &str, file: &str, records: &[(&str, &str, &str)]) {
    let dir = world.root().join("log").join(instance);
    fs::create_dir_all(&dir).unwrap();
    let lines = records
        .iter()
        .map(|(time, stream, line)| format!("2026-11-25T{time}.000000Z {stream} F {line}\n"));
    let mut text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    text.extend(lines);
    fs::write(dir.join(file), text).unwrap();
}

fn two_logs(world: &World) {
    let dropped = "[opm: dropped 5 bytes: no space left on device]";
    write(world, "web", "00000001.log", &[("10:00:00", "stdout", "GET /a")]);
    write(
        world,
        "web",
        "current",
        &[("10:00:02", "stdout", "GET /b"), ("11:00:00", "opm", dropped)],
    );
    write(
        world,
        "db@1",
        "current",
        &[("10:00:01", "stdout", "ready"), ("10:00:03", "stdout", "get")],
    );
}

fn logs(world: &World, args: &[&str]) -> Said {
    let said = world.opm(&[&["logs"], args].concat());
    assert!(said.err.is_empty(), "{said:?}");
    said
}

fn lines(world: &World, args: &[&str]) -> Vec<String> {
    let said = logs(world, &[args, &["--output", "cat"]].concat());
    assert_eq!(said.code, 0, "{said:?}");
    said.out.lines().map(str::to_owned).collect()
}

#[test]
fn lines_are_found_by_time_text_and_stream() {
    let world = World::bare();
    two_logs(&world);
    let day = |time: &str| format!("2026-11-25T{time}Z");
    let dropped = "[opm: dropped 5 bytes: no space left on device]";
    for (args, expected) in [
        (&[][..], &["GET /a", "ready", "GET /b", "get", dropped][..]),
        (&["--since", &day("10:00:01")], &["ready", "GET /b", "get", dropped]),
        (&["--since", &day("10:00:01"), "--until", &day("10:00:02")], &["ready", "GET /b"]),
        (&["--until", &day("10:00:02"), "-n", "2"], &["ready", "GET /b"]),
        (&["--until", &day("09:00:00")], &[]),
        (&["--since", "-1h"], &[]),
        (&["--grep", "GET", "-n", "1"], &["GET /b"]),
        (&["--grep", "^get( /.)?$", "-i"], &["GET /a", "GET /b", "get"]),
        (&["--stream", "stdout", "web"], &["GET /a", "GET /b"]),
        (&["--stream", "opm"], &[dropped]),
        (&["--gaps"], &[dropped]),
        (&["--gaps", "db"], &[]),
    ] {
        assert_eq!(lines(&world, args), expected, "{args:?}");
    }
}

#[test]
fn lines_are_printed_in_four_forms_and_without_colour_into_a_pipe() {
    let world = World::bare();
    two_logs(&world);
    let print = |args: &[&str]| {
        let mut command = world.command(OPM);
        command.env("TZ", "UTC").arg("--root").arg(world.root()).args(["logs", "-n", "1", "db"]);
        Said::of_child(
            command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(),
        )
        .out
    };
    assert_eq!(print(&[]), "2026-11-25T10:00:03.000000Z db@1 | get\n");
    assert_eq!(print(&["--output", "iso"]), print(&[]));
    assert_eq!(print(&["--output", "short"]), "Nov 25 10:00:03.000 db@1 | get\n");
    assert_eq!(print(&["--output", "cat"]), "get\n");
    assert_eq!(print(&["--raw"]), "get\n");
    let json: serde_json::Value = serde_json::from_str(&print(&["--output", "json"])).unwrap();
    assert_eq!((&json["line"], &json["instance"]), (&"get".into(), &"db@1".into()));
    assert_eq!(print(&["--json"]), print(&["--output", "json"]));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let world = World::bare();
    two_logs(&world);
    for (args, code, message) in [
        (&["--since", "soon"][..], 2, "opm: cannot use --since: `soon` is no time; write it as "),
        (&["--grep", "("], 2, "opm: cannot use --grep `(`: "),
        (
            &["-f", "--until", "now"],
            2,
            "error: the argument '--follow' cannot be used with '--until",
        ),
        (&["-i"], 2, "error: the following required arguments were not provided:\n  --grep <RE>"),
        (&["-l", "tier=front"], 3, "opm: no daemon runs"),
        (&["none"], 4, "opm: no log of `none` in "),
    ] {
        let said = world.opm(&[&["logs"], args].concat());
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(said.err.starts_with(message), "{args:?}: {said:?}");
    }
    // What there is of the others comes before.
    let said = world.opm(&["logs", "none", "db", "never"]);
    assert_eq!((said.code, said.out.lines().count() > 0), (4, true), "{said:?}");
    assert!(said.err.starts_with("opm: no log of `none`, `never` in "), "{said:?}");
    // Who waits for one that may come is told so.
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).args(["logs", "-f", "none"]);
    let mut waits = command.stderr(File::create(world.path("said")).unwrap()).spawn().unwrap();
    let said = || world.read("said");
    let is_said = comes_true(|| said().ends_with("; waiting for one\n"));
    waits.kill().unwrap();
    waits.wait().unwrap();
    assert!(is_said && said().starts_with("opm: no log of `none` in "), "{}", said());
}

#[test]
fn a_label_chooses_units_of_the_daemon() {
    let Some(mut world) = World::new() else { return };
    for (name, tier) in [("web", "front"), ("lb", "front"), ("db", "back")] {
        let script = format!("echo {name} speaks; exec sleep 1000");
        world.unit(name, &format!("{}labels: {{tier: {tier}}}\n", in_shell(&script)));
    }
    world.run();
    let all = || lines(&world, &[]).len();
    world.until("what they say", || world.root().join("log").exists() && all() == 3);
    let mut found = lines(&world, &["-l", "tier=front"]);
    found.sort();
    assert_eq!(found, ["lb speaks", "web speaks"]);
    assert_eq!(lines(&world, &["-l", "tier=front", "web"]), ["web speaks"]);
    let said = world.opm(&["logs", "-l", "tier=none"]);
    assert_eq!((said.code, said.err.as_str()), (4, "opm: no unit has the label `tier=none`\n"));
    let said = world.opm(&["logs", "-l", "tier"]);
    assert_eq!((said.code, said.err.as_str()), (2, "opm: `tier` is no NAME=VALUE\n"));
}

#[test]
fn following_gives_only_what_is_wanted() {
    let world = World::bare();
    two_logs(&world);
    let mut command = world.command(OPM);
    command
        .arg("--root")
        .arg(world.root())
        .args(["logs", "-f", "-n", "1", "--grep", "GET", "--raw"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(out.next().unwrap().unwrap(), "GET /b");
    let current = world.root().join("log/web/current");
    append(&current, "2026-11-25T12:00:00.000000Z stdout F PUT /c\n");
    append(&current, "2026-11-25T12:00:01.000000Z stdout F GET /d\n");
    assert_eq!(out.next().unwrap().unwrap(), "GET /d");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_unit_s_log_is_limited_and_compressed_as_its_file_says() {
    let Some(mut world) = World::new() else { return };
    let text = in_shell("seq -f 'line %.0f' 5000; echo done > done; exec sleep 1000");
    world.unit("all", &format!("{text}logs: {{max_size: 20K, keep: 100, compress: true}}\n"));
    let text = in_shell("seq -f 'line %.0f' 5000; exec sleep 1000");
    world.unit("few", &format!("{text}logs: {{rate: {{lines: 10, per: 1h}}}}\n"));
    world.run();
    let dir = world.root().join("log/all");
    let names = || {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    world.until("the last line", || {
        dir.exists() && lines(&world, &["-n", "1", "all"]) == ["line 5000"]
    });
    let is_done = |name: &String| name.ends_with(".log.gz") || name == "current";
    world.until("compressed files", || names().len() > 10 && names().iter().all(is_done));
    let expected: Vec<String> = (1..=5000).map(|number| format!("line {number}")).collect();
    assert_eq!(lines(&world, &["all"]), expected);
    assert_eq!(lines(&world, &["-n", "3000", "all"]), expected[2000..]);
    let few = || lines(&world, &["few"]);
    world.until("the lines that are taken", || few().len() == 10);
    assert_eq!(few(), expected[..10]);
    // It is told as soon as another rate takes a line, and a change of it restarts nothing.
    let pid = world.pid("few");
    world.unit("few", &format!("{text}logs: {{rate: {{lines: 10, per: 1ms}}}}\n"));
    world.apply(0);
    assert_eq!(world.pid("few"), pid);
    let gap = "[opm: dropped 4990 lines of 48822 bytes: more than 10 in 1h]";
    world.until("the record about the others", || lines(&world, &["--gaps"]) == [gap]);
}

#[test]
fn logs_are_found_where_the_supervisor_has_put_them_also_when_it_is_gone() {
    let Some(mut world) = World::new() else { return };
    fs::create_dir_all(world.root()).unwrap();
    fs::write(world.root().join("log"), "a file where the directory should be").unwrap();
    world.unit("a", &in_shell("echo one; exec sleep 1000"));
    world.run();
    let found = || {
        let said = world.opm(&["logs", "a", "--raw"]);
        (said.code, said.out)
    };
    let expected = (0, "one\n".to_owned());
    world.until("its line", || found() == expected);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(found(), expected);
    let said = world.opm(&["logs", "b"]);
    let place = world.root().join("run/logs").display().to_string();
    assert_eq!((said.code, said.err), (4, format!("opm: no log of `b` in {place}\n")));
}
