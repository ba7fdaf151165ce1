//! The drawings as they are printed, whole.

use super::{dot, mermaid, text};
use crate::cli::graph::tests::{live_picture, picture_of};
use crate::model::{Monotonic, Phase, UnitName};

/// Units as in the README's example, and some that are out of the ordinary.
const UNITS: &str = "\
kind: target
name: default
requires: [web]
wants: [end.x-1]
---
name: web
command: [web]
instances: 2
requires: [database, {unit: migrate, condition: completed}]
wants: [cache]
---
kind: task
name: migrate
command: [migrate]
requires: [database]
---
name: database
command: [db]
after: [cache]
---
name: cache
command: [cache]
conflicts: [old]
---
name: old
command: [old]
---
name: end.x-1
command: [report]
enabled: false
before: [web]
";

#[test]
fn a_tree_for_people() {
    assert_eq!(
        text(&picture_of(UNITS)),
        "\
default (target)
├─ requires web (2 instances)
│  ├─ requires database
│  │  └─ after cache
│  │     └─ conflicts with old (not wanted)
│  ├─ requires completed: migrate (task)
│  │  └─ requires database, see above
│  ├─ wants cache
│  │  └─ conflicts with old (not wanted)
│  └─ after end.x-1 (not enabled)
└─ wants end.x-1 (not enabled)
old (not wanted)
└─ conflicts with cache

Stages of a start; a stop goes the other way:
  1  cache
  2  database
  3  migrate
  4  web
  5  default

Not started: end.x-1, old
"
    );
}

#[test]
fn a_tree_of_a_daemon_says_how_each_unit_is() {
    let backoff = Phase::Backoff { until: Monotonic::default() };
    let phases = [("web@1", Phase::Up), ("web@2", backoff), ("database", Phase::Up)];
    let mut picture = live_picture(UNITS, &phases);
    let kept = ["web", "database", "migrate"].map(|name| UnitName::parse(name).unwrap());
    picture.keep(&kept.into());
    assert_eq!(
        text(&picture),
        "\
web (2 instances): 1 backoff, 1 up
├─ requires database: up
└─ requires completed: migrate (task): down
   └─ requires database: up

Stages of a start; a stop goes the other way:
  2  database
  3  migrate
  4  web
"
    );
}

#[test]
fn graphviz() {
    let phases = [("web@1", Phase::Up), ("web@2", Phase::Failed { at_limit: true })];
    assert_eq!(
        dot(&live_picture(UNITS, &phases)),
        r##"digraph opm {
  rankdir=LR;
  node [shape=box];
  "cache" [label="cache\ndown", style=filled, fillcolor="#dddddd"];
  "database" [label="database\ndown", style=filled, fillcolor="#dddddd"];
  "default" [label="default\ntarget\ndown", shape=hexagon, style=filled, fillcolor="#dddddd"];
  "end.x-1" [label="end.x-1\nnot enabled\ndown", style=filled, fillcolor="#dddddd"];
  "migrate" [label="migrate\ntask\ndown", shape=ellipse, style=filled, fillcolor="#dddddd"];
  "old" [label="old\nnot wanted\ndown", style=filled, fillcolor="#dddddd"];
  "web" [label="web\n2 instances\n1 failed, 1 up", style=filled, fillcolor="#f4b3b3"];
  "database" -> "cache" [style=dotted, label="after"];
  "default" -> "web" [style=solid, label="requires"];
  "default" -> "end.x-1" [style=dashed, label="wants"];
  "migrate" -> "database" [style=solid, label="requires"];
  "web" -> "database" [style=solid, label="requires"];
  "web" -> "migrate" [style=solid, label="requires completed"];
  "web" -> "cache" [style=dashed, label="wants"];
  "web" -> "end.x-1" [style=dotted, label="after"];
  "cache" -> "old" [dir=none, color=red, constraint=false, label="conflicts"];
}
"##
    );
}

#[test]
fn mermaid_knows_no_word_in_an_id() {
    assert_eq!(
        mermaid(&picture_of(UNITS)),
        r#"flowchart LR
  u_cache["cache"]
  u_database["database"]
  u_default{{"default<br>target"}}
  u_end_2ex_2d1["end.x-1<br>not enabled"]
  u_migrate(["migrate<br>task"])
  u_old["old<br>not wanted"]
  u_web["web<br>2 instances"]
  u_database -.->|after| u_cache
  u_default -->|requires| u_web
  u_default -.->|wants| u_end_2ex_2d1
  u_migrate -->|requires| u_database
  u_web -->|requires| u_database
  u_web -->|requires completed| u_migrate
  u_web -.->|wants| u_cache
  u_web -.->|after| u_end_2ex_2d1
  u_cache x--x|conflicts| u_old
"#
    );
    let live = mermaid(&live_picture("name: a\ncommand: [a]\n", &[("a", Phase::Up)]));
    assert!(
        live.starts_with("flowchart LR\n  u_a[\"a<br>up\"]:::good\n  classDef good "),
        "{live}"
    );
}

#[test]
fn a_long_chain_is_cut_into_trees_and_each_unit_is_drawn_once() {
    let unit = |n: usize| {
        let needs = if n == 0 { String::new() } else { format!("requires: [u{}]\n", n - 1) };
        format!("---\nname: u{n}\ncommand: [x]\n{needs}")
    };
    let all: String = (0..100).map(unit).collect();
    let text = text(&picture_of(&all));
    let tree = text.split("\n\n").next().unwrap();
    assert!(tree.lines().all(|line| line.chars().count() < 90), "{tree}");
    assert!(tree.contains("requires u83, see below\n") && tree.contains("\nu83\n"), "{tree}");
    assert_eq!(tree.lines().count(), 106, "{tree}");
}
