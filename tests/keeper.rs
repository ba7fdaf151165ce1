//! The log keeper as a process, with real FIFOs and files, and the reader on what it writes.
//!
//! The test binary runs itself again as the keeper: see `keeper_process`.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::exit,
    reason = "a test may end by any of these"
)]

#[path = "keeper/losses.rs"]
mod losses;
#[path = "keeper/world.rs"]
mod world;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

use opm::keeper::Options;
use opm::logs::{self, LogsError, Query, Record};
use opm::model::{FilePath, InstanceId, LogFormat};
use opm::system::instruction::{Destination, Instruction};

use world::{CONSOLE, DEADLINE, Helper, RUN_DIR, World, spawn, until};

/// Not a test: the keeper's own process, where the variable says so.
#[test]
fn keeper_process() {
    let Some(run_dir) = std::env::var_os(RUN_DIR) else { return };
    let console = std::env::var_os(CONSOLE).is_some();
    let code =
        opm::keeper::run(&Options { run_dir: run_dir.into(), console, colour: false, quota: None });
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}

fn numbered(range: std::ops::RangeInclusive<usize>) -> Vec<u8> {
    range.flat_map(|number| format!("line {number}\n").into_bytes()).collect()
}

#[test]
fn case_062_any_bytes_are_stored_as_they_came() {
    let world = World::new();
    let mut fifo = world.unit("web@eu", 10 << 20, 5);
    let mut text = b"a\xc1b\0c\n".to_vec();
    text.extend(numbered(1..=100_000));
    fifo.write_all(&text).unwrap();
    world.until_text("web@eu", &text);
}

#[test]
fn case_063_a_line_of_20_mb_needs_no_memory() {
    let world = World::new();
    let mut fifo = world.unit("l", 100 << 20, 5);
    fifo.write_all(b"before\n").unwrap();
    world.until_text("l", b"before\n");
    let memory = world.status("VmRSS");
    let start = Instant::now();
    let mut text = vec![b'x'; 20_000_000];
    text.extend_from_slice(b"\nafter\n");
    fifo.write_all(&text).unwrap();
    world.until_text("l", &[b"before\n", &text[..]].concat());
    assert!(start.elapsed() < Duration::from_secs(40));
    let grown = world.status("VmHWM").saturating_sub(memory);
    assert!(grown < 10_000, "{grown} kB");
}

#[test]
fn case_064_what_follows_an_over_long_line_is_stored_and_so_is_text_without_newline() {
    let world = World::new();
    let mut fifo = world.unit("l", 10 << 20, 5);
    let mut text = b"before\n".to_vec();
    text.extend(vec![b'y'; 3_000_000]);
    text.extend_from_slice(b"\ntail1\ntail2\ntail3\nno newline at end");
    fifo.write_all(&text).unwrap();
    world.until_text("l", &text);
    // The line is one line although its begin was stored first.
    fifo.write_all(b", or is there\n").unwrap();
    text.extend_from_slice(b", or is there\n");
    world.until_text("l", &text);
}

#[test]
fn files_are_rotated_exactly_and_the_oldest_are_removed() {
    let world = World::new();
    let mut fifo = world.unit("r", 100_000, 3);
    fifo.write_all(&numbered(1..=50_000)).unwrap();
    until("the last line is there", || world.text("r").ends_with(b"line 50000\n"));
    let lengths = |name: &str| fs::metadata(world.logs().join("r").join(name)).unwrap().len();
    let mut names: Vec<String> = fs::read_dir(world.logs().join("r"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    for name in &names[..3] {
        // The longest record has 27 + 10 + 10 + 1 bytes: no file has room for one more.
        assert!((100_000 - 48 + 1..=100_000).contains(&lengths(name)), "{name}");
    }
    let numbers: Vec<usize> = String::from_utf8(world.text("r"))
        .unwrap()
        .lines()
        .map(|line| line.strip_prefix("line ").unwrap().parse().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
}

#[test]
fn case_069_a_deleted_file_and_a_removed_directory_stop_nothing() {
    let world = World::new();
    let mut fifo = world.unit("l", 100_000, 2);
    let mut write = |number: usize| {
        let line = format!("line {number}\n");
        fifo.write_all(line.as_bytes()).unwrap();
        until("the line is there", || world.text("l").ends_with(line.as_bytes()));
    };
    write(1);
    fs::remove_file(world.logs().join("l/current")).unwrap();
    write(2);
    fs::remove_dir_all(world.logs()).unwrap();
    write(3);
    assert_eq!(world.text("l"), b"line 3\n");
}

#[test]
fn case_070_a_full_disk_loses_output_with_a_count_and_recovers() {
    use nix::mount::{MsFlags, mount, umount};
    let mut world = World::new();
    let small = world.root.path().join("logs/small");
    fs::create_dir_all(&small).unwrap();
    let flags = MsFlags::empty();
    if let Err(error) = mount(Some("tmpfs"), &small, Some("tmpfs"), flags, Some("size=1m")) {
        assert!(std::env::var_os("OPM_TESTS").is_none_or(|tests| tests != "all"), "{error}");
        eprintln!("skipped: cannot mount a small disk: {error}");
        return;
    }
    fs::write(small.join("ballast"), vec![0; 500_000]).unwrap();
    let mut fifo = world.unit("small", 100 << 20, 5);
    let mut other = world.unit("other", 10 << 20, 5);
    let text = numbered(1..=200_000);
    // Does not wait for ever: what finds no room is dropped.
    fifo.write_all(&text).unwrap();
    other.write_all(b"still here\n").unwrap();
    world.until_text("other", b"still here\n");
    assert!(world.is_running());
    fs::remove_file(small.join("ballast")).unwrap();
    let mut back = 0;
    until("the log goes on", || {
        back += 1;
        fifo.write_all(format!("back {back}\n").as_bytes()).unwrap();
        world.text("small").windows(5).any(|found| found == b"back ")
    });
    world.stop();
    let bytes = world.text("small");
    umount(&small).unwrap();
    let log = String::from_utf8(bytes).unwrap();
    let (mut kept, mut dropped) = (0, 0);
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("[opm: dropped ") {
            assert!(rest.ends_with(" bytes: no space left on device]"), "{line}");
            dropped += rest.split(' ').next().unwrap().parse::<usize>().unwrap();
        } else {
            assert!(line.starts_with("line ") || line.starts_with("back "), "{line}");
            kept += line.len() + 1;
        }
    }
    assert!(dropped > 0);
    let backs: usize = (1..=back).map(|n| format!("back {n}\n").len()).sum();
    assert_eq!(kept + dropped, text.len() + backs);
}

#[test]
fn case_073_500_renames_leak_no_descriptor() {
    let world = World::new();
    let mut fifo = world.unit("l", 10 << 20, 5);
    let current = world.logs().join("l/current");
    let mut before = 0;
    for number in 0..500 {
        let line = format!("line {number}\n");
        fifo.write_all(line.as_bytes()).unwrap();
        until("the line is there", || world.text("l").ends_with(line.as_bytes()));
        if number == 0 {
            before = world.open_files().len();
        }
        fs::rename(&current, world.logs().join("l/old")).unwrap();
    }
    fifo.write_all(b"last\n").unwrap();
    world.until_text("l", b"last\n");
    let files = world.open_files();
    assert_eq!(files.len(), before, "{files:?}");
    assert!(files.iter().all(|file| !file.to_string_lossy().contains("(deleted)")), "{files:?}");
}

#[test]
fn at_sigterm_everything_that_was_written_is_stored() {
    let mut world = World::new();
    let mut fifos: Vec<(String, File)> =
        (1..=20).map(|n| (format!("u@{n}"), world.unit(&format!("u@{n}"), 10 << 20, 5))).collect();
    // More than one turn of each, and nothing of it is read before the signal is there.
    let mut text = numbered(1..=20_000);
    text.extend_from_slice(b"last words");
    // It takes signals when it has opened the FIFOs.
    let is_open = || world.open_files().iter().any(|file| file.ends_with("log/u@20.fifo"));
    until("the keeper to read", is_open);
    world.signal(Signal::SIGSTOP);
    for (_, fifo) in &mut fifos {
        fcntl(&*fifo, FcntlArg::F_SETPIPE_SZ(256 * 1024)).unwrap();
        fifo.write_all(&text).unwrap();
    }
    world.signal(Signal::SIGTERM);
    world.signal(Signal::SIGCONT);
    world.stop();
    for (name, _) in &fifos {
        assert!(world.text(name) == text, "{name}");
    }
}

#[test]
fn a_removed_instruction_ends_the_log_and_a_new_one_begins_it_again() {
    let world = World::new();
    let other = world.unit("other", 10 << 20, 5);
    let id = InstanceId::parse("l").unwrap();
    let mut fifo = world.unit("l", 10 << 20, 5);
    fifo.write_all(b"one\n").unwrap();
    world.until_text("l", b"one\n");
    let is_open = || world.open_files().iter().any(|file| file.ends_with("log/l.fifo"));
    assert!(is_open());
    fifo.write_all(b"two\nthree").unwrap();
    Instruction::remove(world.root.path(), &id).unwrap();
    until("the FIFO is closed", || !is_open());
    assert_eq!(world.text("l"), b"one\ntwo\nthree");
    let is_log_open = || world.open_files().iter().any(|file| file.ends_with("logs/l/current"));
    until("the log is closed", || !is_log_open());
    fifo.write_all(b"four\n").unwrap();
    world.instruction("l", 10 << 20, 5).write(world.root.path(), &id).unwrap();
    world.until_text("l", b"one\ntwo\nthreefour\n");
    drop(other);
}

#[test]
fn a_changed_instruction_is_taken_over_at_once() {
    let world = World::new();
    let mut fifo = world.unit("l", 10 << 20, 5);
    fifo.write_all(b"one\n").unwrap();
    world.until_text("l", b"one\n");
    let path = world.root.path().join("app/log");
    let to = Destination::Path(FilePath::from(path.as_path()));
    let id = InstanceId::parse("l").unwrap();
    let instruction =
        Instruction { to, format: LogFormat::Raw, ..world.instruction("l", 4, 1_000) };
    instruction.write(world.root.path(), &id).unwrap();
    let mut number = 0;
    until("the new file is written", || {
        number += 1;
        fifo.write_all(format!("{}\n", 100 + number).as_bytes()).unwrap();
        path.with_file_name("log.00000001").exists()
    });
    // Between the rename and the new file there is none for a moment.
    until("each line has its file", || fs::read(&path).is_ok_and(|bytes| bytes.len() == 4));
}

#[test]
fn a_killed_keeper_leaves_whole_records_and_a_mark_where_something_is_missing() {
    let mut world = World::new();
    let mut fifo = world.unit("l", 1 << 30, 5);
    let script = format!(
        "i=0; while [ $i -lt 20 ]; do seq $((i * 10000 + 1000001)) $((i * 10000 + 1010000)); i=$((i + 1)); done > '{}/log/l.fifo'",
        world.root.path().display()
    );
    let mut writer = Helper(Command::new("sh").args(["-c", &script]).spawn().unwrap());
    let current = world.logs().join("l/current");
    let length = || fs::metadata(&current).map_or(0, |metadata| metadata.len());
    for round in 1..=3 {
        until("the log grows", || length() > round * 1_500_000);
        world.signal(Signal::SIGKILL);
        world.keeper.wait().unwrap();
        world.keeper = spawn(world.root.path(), |command| command.stdout(Stdio::null()));
    }
    assert!(writer.0.wait().unwrap().success());
    fifo.write_all(b"end\n").unwrap();
    until("the end is there", || {
        logs::last_lines(&world.logs(), "l", 1).iter().any(|record| record.bytes == b"end")
    });
    let (mut last, mut after_mark, mut marks, mut missing) = (1_000_000, false, 0, 0);
    let mut check = |record: Record| {
        let text = String::from_utf8(record.bytes).unwrap();
        if record.stream == "opm" {
            assert!(text.starts_with("[opm: the log keeper was killed"), "{text}");
            marks += 1;
            after_mark = true;
        } else if text != "end" {
            // Only the first line behind a mark may be the end of one.
            if text.len() == 7 {
                let number: usize = text.parse().unwrap();
                assert!(number > last, "{number} after {last}");
                missing += (number - last - 1) * 8;
                assert!(number == last + 1 || marks > 0, "{number} after {last}");
                last = number;
            } else {
                assert!(after_mark, "torn: {text}");
            }
            after_mark = false;
        }
        Ok(())
    };
    let query = Query::of(&world.logs(), &["l"]);
    logs::read(&query, None, &mut check).unwrap();
    assert_eq!((last, marks), (1_200_000, 3));
    assert!(missing <= 3 * (64 + 48) * 1024, "{missing} bytes lost");
}

#[test]
fn following_over_rotations_gives_every_line_once() {
    let world = World::new();
    let mut fifo = world.unit("l", 20_000, 10_000);
    // Its directory comes with its first line, while we follow.
    let mut late_fifo = world.unit("late", 20_000, 5);
    until("the log's directory", || {
        fifo.write_all(b"line 0\n").unwrap();
        world.logs().exists()
    });
    let query = Query { follow: true, ..Query::of(&world.logs(), &[]) };
    let (reader, output) = io::pipe().unwrap();
    let (mut last, mut late) = (0, false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=30_000 {
                fifo.write_all(format!("line {number}\n").as_bytes()).unwrap();
            }
            late_fifo.write_all(b"late\n").unwrap();
        });
        let mut each = |record: Record| {
            let text = String::from_utf8(record.bytes).unwrap();
            late |= record.instance == "late";
            if let Some(number) = text.strip_prefix("line ") {
                let number: usize = number.parse().unwrap();
                assert!(number == last + 1 || number + last == 0, "{number} after {last}");
                last = number;
            }
            if late && last == 30_000 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        };
        // The way out where lines are missing: the output loses its reader.
        let (alive, is_alive) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            is_alive.recv_timeout(DEADLINE).unwrap_err();
            drop(reader);
        });
        let ended = logs::read(&query, Some(output.as_fd()), &mut each);
        assert!(matches!(ended, Err(LogsError::Output(_))), "{ended:?}: line {last}, {late}");
        drop(alive);
    });
    assert_eq!(last, 30_000);
}

#[test]
fn a_console_whose_reader_is_gone_stops_nothing() {
    let (reader, writer) = io::pipe().unwrap();
    let mut world = World::with(|command| command.stdout(writer).env(CONSOLE, "1"));
    let mut fifo = world.unit("l", 10 << 20, 5);
    fifo.write_all(b"one\n").unwrap();
    world.until_text("l", b"one\n");
    drop(reader);
    let text = numbered(1..=100_000);
    fifo.write_all(&text).unwrap();
    world.until_text("l", &[b"one\n", &text[..]].concat());
    world.stop();
}

#[test]
fn a_console_whose_reader_is_stuck_stops_nothing_and_is_told() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut world = World::with(|command| command.stdout(writer).env(CONSOLE, "1"));
    let mut fifo = world.unit("l", 100 << 20, 5);
    let text = numbered(1..=300_000);
    fifo.write_all(&text).unwrap();
    world.until_text("l", &text);
    let mut console = Vec::new();
    let mut buffer = vec![0; 65_536];
    let mut is_told = || {
        let count = reader.read(&mut buffer).unwrap();
        console.extend_from_slice(&buffer[..count]);
        console.windows(14).any(|found| found == b"opm | dropped ")
    };
    until("the loss is told", &mut is_told);
    let console = String::from_utf8_lossy(&console).into_owned();
    assert!(console.contains("l | line 1\n"), "{console:.100}");
    world.stop();
}

#[test]
fn a_flood_slows_itself_and_nobody_else() {
    let world = World::new();
    let flooding = world.unit("flood", 100_000, 1);
    let yes = Command::new("yes").stdout(flooding).stderr(Stdio::null()).spawn().unwrap();
    let flood = Helper(yes);
    let is_on =
        |name: &std::ffi::OsStr| name.as_encoded_bytes() > b"00000009.log" && name != "current";
    until("the flood is on", || {
        let files = fs::read_dir(world.logs().join("flood")).into_iter().flatten();
        files.flatten().any(|file| is_on(&file.file_name()))
    });
    for number in 1..=50 {
        let mut fifo = world.unit(&format!("u@{number}"), 10_000, 1);
        fifo.write_all(b"hello\n").unwrap();
        world.until_text(&format!("u@{number}"), b"hello\n");
    }
    drop(flood);
}

#[test]
fn it_sleeps_when_there_is_nothing_to_do_and_there_is_only_one() {
    let world = World::new();
    let mut fifo = world.unit("l", 10 << 20, 5);
    fifo.write_all(b"one\n").unwrap();
    world.until_text("l", b"one\n");
    let mut other = spawn(world.root.path(), |command| command.stdout(Stdio::null()));
    assert_eq!(other.wait().unwrap().code(), Some(1));
    let switches = || world.status("voluntary_ctxt_switches");
    until("no wake-up in 300 ms", || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(300));
        switches() == before
    });
}

#[test]
fn a_keeper_that_is_killed_while_it_compresses_loses_and_doubles_no_file() {
    let mut world = World::new();
    let instruction = Instruction { compress: true, ..world.instruction("l", 50_000, 1_000) };
    let mut fifo = world.unit_as("l", &instruction);
    let names = || {
        let entries = fs::read_dir(world.root.path().join("logs/l")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let packed = || names().iter().filter(|name| name.ends_with(".log.gz")).count();
    let mut last = 0;
    for round in 1..=8 {
        // All of it is stored before the kill: what is lost then was lost by compressing.
        let text = numbered(last + 1..=last + 20_000);
        last += 20_000;
        fifo.write_all(&text).unwrap();
        let is_last = |record: &Record| record.bytes == format!("line {last}").into_bytes();
        until("the lines", || {
            logs::last_lines(&world.root.path().join("logs"), "l", 1).iter().any(is_last)
        });
        until("compressed files", || packed() > round);
        world.signal(Signal::SIGKILL);
        world.keeper.wait().unwrap();
        world.keeper = spawn(world.root.path(), |command| command.stdout(Stdio::null()));
    }
    until("all to be compressed", || {
        names().iter().all(|name| name.ends_with(".log.gz") || name == "current")
    });
    let text = world.text("l");
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let lines = lines.iter().filter(|line| line.starts_with(b"line "));
    assert!(lines.copied().eq(numbered(1..=last).split(|b| *b == b'\n').filter(|l| !l.is_empty())));
    world.stop();
}
