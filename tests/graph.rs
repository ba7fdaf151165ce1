//! `opm graph`, of files and of a daemon.
#![expect(clippy::disallowed_methods, reason = "tests run programs")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::World;
use serde_json::Value;

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

fn units(world: &World) {
    world.unit("db", SLEEP);
    world.unit("web", &format!("{SLEEP}requires: [db]\nwants: [cache]\n"));
    world.unit("cache", SLEEP);
    world.unit("other", SLEEP);
}

#[test]
fn files_alone() {
    let world = World::bare();
    units(&world);
    let said = world.opm(&["graph", "units"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        said.out,
        "other\nweb\n├─ requires db\n└─ wants cache\n\nStages of a start; a stop goes the other \
         way:\n  1  cache, db, other\n  2  web\n"
    );
    let said = world.opm(&["graph", "units", "db"]);
    assert!(said.out.starts_with("web\n└─ requires db\n\n"), "{said:?}");
    let said = world.opm(&["graph", "units", "dbb"]);
    assert_eq!((said.code, &*said.err), (4, "opm: no unit `dbb`; did you mean `db`?\n"));
    let said = world.opm(&["graph", "--dot", "--json", "units"]);
    assert_eq!(said.code, 2, "{said:?}");
    let said = world.opm(&["graph", "--json", "units"]);
    let json: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(json["units"].as_array().unwrap().len(), 4, "{json}");
    assert_eq!(json["edges"][0]["from"], "web", "{json}");
    let one = world.opm(&["graph", "units/db.yaml"]);
    assert!(one.out.starts_with("db\n"), "{one:?}");
}

#[test]
fn mistakes_are_shown_and_nothing_is_drawn() {
    let world = World::bare();
    units(&world);
    world.unit("bad", "comand: [true]\n");
    let said = world.opm(&["graph", "units"]);
    assert_eq!((said.code, &*said.out), (2, ""), "{said:?}");
    assert!(said.err.contains("did you mean `command`?"), "{said:?}");
    let said = world.opm(&["graph", "./nowhere"]);
    assert_eq!(said.code, 2, "{said:?}");
}

#[test]
fn without_a_daemon_it_says_that_a_directory_can_be_given() {
    let world = World::bare();
    for args in [&["graph"][..], &["graph", "web"]] {
        let said = world.opm(args);
        assert_eq!((said.code, &*said.out), (3, ""), "{said:?}");
        assert!(said.err.contains("no daemon runs"), "{said:?}");
        assert!(said.err.contains("give a directory of unit files"), "{said:?}");
    }
}

#[test]
fn a_daemon_tells_how_each_unit_is_and_no_secret() {
    let Some(world) = World::new() else { return };
    units(&world);
    world.unit("db", &format!("{SLEEP}env: {{DB_PASSWORD: geheim}}\n"));
    // A directory of the name of a unit, without unit files, is not meant.
    std::fs::create_dir(world.path("web")).unwrap();
    world.apply(0);
    assert_eq!(world.opm(&["stop", "cache"]).code, 0);
    let said = world.opm(&["graph", "web"]);
    assert_eq!(
        said.out,
        "web: up\n├─ requires db: up\n└─ wants cache (held by uid 0): down\n\nStages of a start; a \
         stop goes the other way:\n  1  db\n  2  web\n\nNot started: cache\n",
        "{said:?}"
    );
    let dot = world.opm(&["graph", "--dot"]).out;
    assert!(dot.contains(r#""web" [label="web\nup", style=filled, fillcolor="#), "{dot}");
    let mermaid = world.opm(&["graph", "--mermaid"]).out;
    assert!(mermaid.contains("u_web[\"web<br>up\"]:::good\n"), "{mermaid}");
    let json: Value = serde_json::from_str(&world.opm(&["graph", "--json", "db"]).out).unwrap();
    assert_eq!(json["units"][0]["phases"]["db"], "up", "{json}");

    let mut to =
        std::os::unix::net::UnixStream::connect(world.root().join("run/control.sock")).unwrap();
    to.write_all(b"{\"method\":\"io.opm.Control.State\"}\0").unwrap();
    let mut reply = Vec::new();
    std::io::BufRead::read_until(&mut std::io::BufReader::new(to), 0, &mut reply).unwrap();
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.contains("\"web\"") && !reply.contains("geheim"), "{reply}");
    assert!(!reply.contains("log-keeper"), "{reply}");
}

/// Runs graphviz over what is printed, where it is installed.
#[test]
fn graphviz_takes_it() {
    let world = World::bare();
    units(&world);
    world.unit("end.x-1", &format!("name: end.x-1\n{SLEEP}conflicts: [other]\nenabled: false\n"));
    let dot = world.opm(&["graph", "--dot", "units"]).out;
    let child = Command::new("dot")
        .arg("-Tsvg")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return common::skip("no graphviz") };
    child.stdin.take().unwrap().write_all(dot.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{dot}");
    let drawn = String::from_utf8_lossy(&output.stdout).replace("&#45;", "-");
    assert!(drawn.contains("end.x-1"), "{drawn}");
}
