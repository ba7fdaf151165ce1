//! What is lost is told, with a count, whether another line comes or not.

use std::fs;
use std::io::Write;

use opm::logs::{self, Query};
use opm::model::{LogRate, Span};
use opm::system::instruction::Instruction;

use super::numbered;
use super::world::{World, until};

#[test]
fn too_many_lines_are_dropped_with_a_count_also_when_no_more_come() {
    let world = World::new();
    let rate = LogRate { lines: 100, per: Span::millis(500) };
    let instruction = Instruction { rate: Some(rate), ..world.instruction("flood", 10 << 20, 5) };
    let mut flood = world.unit_as("flood", &instruction);
    let mut other = world.unit("other", 10 << 20, 5);
    flood.write_all(&numbered(1..=10_000)).unwrap();
    other.write_all(&numbered(1..=1_000)).unwrap();
    world.until_text("other", &numbered(1..=1_000));
    let records = || {
        let mut records = Vec::new();
        let query = Query::of(&world.logs(), &["flood"]);
        logs::read(&query, None, &mut |record| {
            records.push((record.stream, String::from_utf8(record.bytes).unwrap()));
            Ok(())
        })
        .unwrap();
        records
    };
    let (mut kept, mut dropped) = (0, 0);
    until("the rest is told", || {
        (kept, dropped) = (0, 0);
        for (stream, text) in records() {
            if stream == "opm" {
                let rest = text.strip_prefix("[opm: dropped ").unwrap();
                assert!(rest.ends_with(" bytes: more than 100 in 500ms]"), "{text}");
                dropped += rest.split(' ').next().unwrap().parse::<usize>().unwrap();
            } else {
                kept += 1;
                assert_eq!(text, format!("line {}", kept + dropped));
            }
        }
        kept + dropped == 10_000
    });
    assert!(kept >= 100 && kept % 100 == 0, "{kept}");
}

/// A log that could not be written for a while: what is said in it, and the time that is said of it.
fn gap(world: &World, name: &str) -> Option<(String, String)> {
    let mut found = None;
    let query = Query::of(&world.logs(), &[name]);
    let read = logs::read(&query, None, &mut |record| {
        found = Some((record.time, String::from_utf8(record.bytes).unwrap()));
        Ok(())
    });
    read.ok().and(found)
}

#[test]
fn what_could_not_be_written_is_told_when_it_can_be_and_at_the_end() {
    let mut world = World::new();
    let mut other = world.unit("other", 10 << 20, 5);
    // A file is where the directory should be. What is read twice from somebody else comes later.
    let mut rounds = Vec::new();
    let mut lose = |world: &World, name: &str| {
        fs::write(world.logs().join(name), "").unwrap();
        let mut fifo = world.unit(name, 10 << 20, 5);
        fifo.write_all(b"12345\n").unwrap();
        for _ in 0..2 {
            other.write_all(b"round\n").unwrap();
            rounds.extend_from_slice(b"round\n");
            world.until_text("other", &rounds);
        }
        let lost = system_time();
        fs::remove_file(world.logs().join(name)).unwrap();
        (lost, fifo)
    };
    fs::create_dir_all(world.logs()).unwrap();
    let (time_lost, _silent) = lose(&world, "silent");
    let text = "[opm: dropped 6 bytes: not a directory]";
    until("it to be told with no line behind it", || gap(&world, "silent").is_some());
    let (time, told) = gap(&world, "silent").unwrap();
    assert_eq!(told, text);
    assert!(time <= time_lost, "{time} is not when it was lost, before {time_lost}");
    let _ends = lose(&world, "ends");
    world.stop();
    assert_eq!(gap(&world, "ends").map(|(_, told)| told).as_deref(), Some(text));
}

fn system_time() -> String {
    let now = jiff::Timestamp::now();
    format!("{}Z", now.strftime("%Y-%m-%dT%H:%M:%S%.6f"))
}
