//! Tests of [`Store`] on real files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::limit::Limit;
use super::split::Part;
use super::stamp::Stamp;
use super::store::Store;
use crate::logs::{Query, Select};
use crate::model::{FilePath, LogFormat, LogRate, RunId, Span};
use crate::system::instruction::{Destination, Instruction};

const STAMP: &str = "2026-11-25T10:32:00.123456Z";

fn instruction(dir: &Path, to: Destination, max_size: u64, keep: u32) -> Instruction {
    let format = if to == Destination::File { LogFormat::Text } else { LogFormat::Raw };
    Instruction { to, format, max_size, keep, ..Instruction::in_dir(dir) }
}

fn put(store: &mut Store, lines: &[&[u8]]) {
    put_at(store, 1_795_602_720, lines);
}

fn put_at(store: &mut Store, second: i64, lines: &[&[u8]]) {
    let mut out = Vec::new();
    let mut batch = store.batch(&mut out, Stamp::at(second, 123_456_000));
    for line in lines {
        let (bytes, full) = match line.split_last() {
            Some((b'\n', bytes)) => (bytes, true),
            _ => (*line, false),
        };
        batch.push(Part { bytes, full });
    }
    batch.finish();
}

fn line(bytes: &[u8]) -> Part<'_> {
    Part { bytes, full: true }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A directory that does not exist yet, in one that goes away with the first value.
fn place() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log/web");
    (root, dir)
}

#[test]
fn records_have_stamp_stream_mark_and_the_bytes() {
    let (_root, dir) = place();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000, 5));
    put(&mut store, &[b"a\xc1b\0c\n", b"\n", b"no end"]);
    let expected = [
        STAMP.as_bytes(),
        b" stdout F a\xc1b\0c\n",
        STAMP.as_bytes(),
        b" stdout F \n",
        STAMP.as_bytes(),
        b" stdout P no end\n",
    ];
    assert_eq!(fs::read(dir.join("current")).unwrap(), expected.concat());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir.join("current")) & !0o640, 0);
    assert_eq!(mode(&dir) & !0o750, 0);
}

#[test]
fn rotation_is_exact_to_the_byte() {
    let (_root, dir) = place();
    // A record of a 3-byte line has 27 + 10 + 3 + 1 = 41 bytes: two of them fit exactly.
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 82, 2));
    for batch in [&[&b"001\n"[..], b"002\n", b"003\n"][..], &[b"004\n"], &[b"005\n"]] {
        put(&mut store, batch);
    }
    assert_eq!(names(&dir), ["00000001.log", "00000002.log", "current"]);
    for (name, last, length) in
        [("00000001.log", "002\n", 82), ("00000002.log", "004\n", 82), ("current", "005\n", 41)]
    {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        assert!(text.ends_with(last), "{name}: {text}");
        assert_eq!(text.len(), length, "{name}");
    }
    // A record that is larger than the limit has a file of its own.
    let long = [&[b'x'; 200][..], b"\n"].concat();
    put(&mut store, &[&long, b"006\n"]);
    assert_eq!(names(&dir), ["00000003.log", "00000004.log", "current"]);
    assert_eq!(fs::metadata(dir.join("00000004.log")).unwrap().len(), 27 + 10 + 200 + 1);
    assert_eq!(fs::metadata(dir.join("current")).unwrap().len(), 41);
}

#[test]
fn numbers_go_on_from_the_largest_and_a_smaller_keep_holds_at_once() {
    let (_root, dir) = place();
    fs::create_dir_all(&dir).unwrap();
    for name in ["00000007.log", "00000009.log", "9.log", "notes"] {
        fs::write(dir.join(name), "").unwrap();
    }
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 50, 5));
    put(&mut store, &[b"001\n", b"002\n"]);
    let kept = ["00000007.log", "00000009.log", "00000010.log", "9.log", "current", "notes"];
    assert_eq!(names(&dir), kept);
    store.change(&instruction(&dir, Destination::File, 50, 1));
    assert_eq!(names(&dir), ["00000010.log", "9.log", "current", "notes"]);
    store.change(&instruction(&dir, Destination::File, 50, 0));
    put(&mut store, &[b"003\n"]);
    assert_eq!(names(&dir), ["9.log", "current", "notes"]);
}

#[test]
fn a_path_gets_the_bytes_as_they_came() {
    let (root, _) = place();
    let path = root.path().join("new/app.log");
    let to = Destination::Path(FilePath::from(path.as_path()));
    let mut store = Store::new("web", &instruction(root.path(), to, 10, 1));
    put(&mut store, &[b"part", b" two\n", b"three\n", b"4\n"]);
    assert_eq!(names(path.parent().unwrap()), ["app.log", "app.log.00000001"]);
    assert_eq!(fs::read(path.with_file_name("app.log.00000001")).unwrap(), b"part two\n");
    assert_eq!(fs::read(path).unwrap(), b"three\n4\n");
}

#[test]
fn case_069_a_deleted_file_and_a_removed_directory_come_back() {
    let (_root, dir) = place();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000, 5));
    put(&mut store, &[b"one\n"]);
    fs::remove_file(dir.join("current")).unwrap();
    put(&mut store, &[b"two\n"]);
    assert!(fs::read_to_string(dir.join("current")).unwrap().ends_with(" two\n"));
    fs::remove_dir_all(&dir).unwrap();
    put(&mut store, &[b"three\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    assert_eq!(text, format!("{STAMP} stdout F three\n"));
    fs::rename(dir.join("current"), dir.join("mine")).unwrap();
    put(&mut store, &[b"four\n"]);
    assert_eq!(fs::read_to_string(dir.join("mine")).unwrap(), text);
}

#[test]
fn a_place_that_cannot_be_written_loses_output_and_says_so_later() {
    let (root, dir) = place();
    fs::write(root.path().join("log"), "a file where a directory should be").unwrap();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000, 5));
    put(&mut store, &[b"12345\n", b"678"]);
    put(&mut store, &[b"9\n"]);
    fs::remove_file(root.path().join("log")).unwrap();
    put(&mut store, &[b"back\n"]);
    put(&mut store, &[b"again\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    let expected = format!(
        "{STAMP} opm F [opm: dropped 11 bytes: not a directory]\n{STAMP} stdout F back\n\
         {STAMP} stdout F again\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn case_070_a_full_device_is_told_at_the_next_place() {
    let (root, dir) = place();
    let full = Destination::Path(FilePath::from("/dev/full"));
    let mut store = Store::new("web", &instruction(&dir, full, 10_000, 5));
    put(&mut store, &[b"12345\n", b"678"]);
    let path = root.path().join("app.log");
    let to = Destination::Path(FilePath::from(path.as_path()));
    store.change(&instruction(&dir, to, 10_000, 5));
    put(&mut store, &[b"back\n"]);
    let expected = "[opm: dropped 9 bytes: no space left on device]\nback\n";
    assert_eq!(fs::read_to_string(path).unwrap(), expected);
}

#[test]
fn what_the_limit_costs_behind_the_record_about_it_is_told_with_the_next_one() {
    let (root, dir) = place();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000, 5));
    let limit = Limit::new(LogRate { lines: 1, per: Span::seconds(1) });
    let put = |store: &mut Store, taken: &[u8], dropped: usize| {
        let mut out = Vec::new();
        let mut batch = store.batch(&mut out, Stamp::at(1_795_602_720, 123_456_000));
        batch.push(line(taken));
        (0..dropped).for_each(|_| batch.limit(line(b"1234"), true, &limit));
        batch.finish();
    };
    for (taken, dropped) in [(b"one", 1), (b"two", 2), (b"six", 0)] {
        put(&mut store, taken, dropped);
    }
    let text = fs::read_to_string(dir.join("current")).unwrap();
    let text = text.replace(STAMP, "");
    let expected = " stdout F one\n opm F [opm: dropped 1 lines of 5 bytes: more than 1 in 1s]\n \
                    stdout F two\n opm F [opm: dropped 2 lines of 10 bytes: more than 1 in 1s]\n \
                    stdout F six\n";
    assert_eq!(text, expected);
    // A record that is lost is told again, with what came meanwhile.
    put(&mut store, b"ten", 1);
    let to = |path: &Path| instruction(&dir, Destination::Path(FilePath::from(path)), 10_000, 5);
    store.change(&to(Path::new("/dev/full")));
    put(&mut store, b"lost", 2);
    let path = root.path().join("app.log");
    store.change(&to(&path));
    put(&mut store, b"end", 0);
    let expected = "[opm: dropped 5 bytes: no space left on device; \
                    dropped 3 lines of 15 bytes: more than 1 in 1s]\nend\n";
    assert_eq!(fs::read_to_string(path).unwrap(), expected);
}

#[test]
fn case_074_two_instances_with_one_file_lose_nothing() {
    let (root, dir) = place();
    let to = Destination::Path(FilePath::from(root.path().join("same.log")));
    let instruction = instruction(&dir, to, 1_000, 1_000);
    let mut stores = [Store::new("a", &instruction), Store::new("b", &instruction)];
    for number in 0..2_000 {
        for (index, store) in stores.iter_mut().enumerate() {
            put(store, &[format!("{index} {number}\n").as_bytes()]);
        }
    }
    let mut lines = Vec::new();
    for name in names(root.path()) {
        let text = fs::read_to_string(root.path().join(name)).unwrap();
        assert!(text.len() <= 1_000);
        lines.extend(text.lines().map(str::to_owned));
    }
    let mut expected: Vec<String> =
        (0..2_000).flat_map(|n| [format!("0 {n}"), format!("1 {n}")]).collect();
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);
}

#[test]
fn a_torn_record_is_cut_off_and_foreign_text_is_not() {
    let (_root, dir) = place();
    fs::create_dir_all(&dir).unwrap();
    let whole = format!("{STAMP} stdout F one\n");
    fs::write(dir.join("current"), format!("{whole}{STAMP} stdout F tor")).unwrap();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000_000, 5));
    put(&mut store, &[b"two\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    assert_eq!(text, format!("{whole}{STAMP} stdout F two\n"));
    let foreign = "x".repeat(100_000);
    fs::write(dir.join("current"), &foreign).unwrap();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000_000, 5));
    put(&mut store, &[b"two\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    assert_eq!(text, format!("{foreign}\n{STAMP} stdout F two\n"));
    // The last words of a log that was raw, short as they are, and what is left of a stamp.
    for (tail, kept) in [("last words", true), ("7 words", true), ("2026-", false), ("2", false)] {
        fs::write(dir.join("current"), format!("{whole}{tail}")).unwrap();
        let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000_000, 5));
        put(&mut store, &[b"two\n"]);
        let text = fs::read_to_string(dir.join("current")).unwrap();
        let tail = if kept { format!("{tail}\n") } else { String::new() };
        assert_eq!(text, format!("{whole}{tail}{STAMP} stdout F two\n"));
    }
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_not_rotated() {
    let (root, dir) = place();
    let (link, real) = (root.path().join("stdout"), root.path().join("real"));
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let to = Destination::Path(FilePath::from(link.as_path()));
    let mut store = Store::new("web", &instruction(&dir, to, 10, 2));
    put(&mut store, &[b"one two three\n", b"four five six\n", b"seven\n"]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&real).unwrap(), b"one two three\nfour five six\nseven\n");
    assert_eq!(names(root.path()).iter().filter(|name| name.starts_with("stdout")).count(), 1);
}

#[test]
fn a_fifo_without_a_reader_stops_nothing() {
    let (root, dir) = place();
    let path = root.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let to = Destination::Path(FilePath::from(path.as_path()));
    let mut store = Store::new("web", &instruction(&dir, to, 10, 5));
    put(&mut store, &[b"one\n"]);
    assert!(fs::metadata(&path).unwrap().nlink() == 1);
}

#[test]
fn a_note_stands_before_the_next_record_and_only_once() {
    let (_root, dir) = place();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000, 5));
    store.note("something");
    put(&mut store, &[b"one\n"]);
    put(&mut store, &[b"two\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    let expected =
        format!("{STAMP} opm F [opm: something]\n{STAMP} stdout F one\n{STAMP} stdout F two\n");
    assert_eq!(text, expected);
}

#[test]
fn a_clock_that_is_set_back_is_told_once() {
    let (_root, dir) = place();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 10_000, 5));
    for (second, line) in [(3_600, "one\n"), (0, "two\n"), (0, "three\n"), (1, "four\n")] {
        put_at(&mut store, second, &[line.as_bytes()]);
    }
    // Each file is in order by itself.
    assert_eq!(names(&dir), ["00000001.log", "current"]);
    let text = ["00000001.log", "current"].map(|name| fs::read_to_string(dir.join(name)).unwrap());
    let text = text.concat();
    let lines: Vec<&str> = text.lines().map(|line| &line[11..]).collect();
    let expected = [
        "01:00:00.123456Z stdout F one",
        "00:00:00.123456Z opm F [opm: the clock was set back by 1h]",
        "00:00:00.123456Z stdout F two",
        "00:00:00.123456Z stdout F three",
        "00:00:01.123456Z stdout F four",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_clock_that_is_set_back_hides_no_line_from_a_search_by_time() {
    let (root, dir) = place();
    let instruction = instruction(&dir, Destination::File, 10_000_000, 5);
    let line = |round: &str, minute: i64| format!("{round} {minute} {}\n", "x".repeat(500));
    let write = |store: &mut Store, round: &str, minutes: std::ops::Range<i64>| {
        for minute in minutes {
            put_at(store, minute * 60, &[line(round, minute).as_bytes()]);
        }
    };
    let mut store = Store::new("web", &instruction);
    write(&mut store, "first", 600..720);
    write(&mut store, "second", 540..780);
    // The next keeper sees it too: a machine may begin in the year 1970 each time.
    let mut store = Store::new("web", &instruction);
    write(&mut store, "third", 500..700);
    for (since, until) in [(660, 10_000), (650, 10_000), (0, 610), (530, 600), (690, 695)] {
        let time =
            |minute: i64| Some(String::from_utf8(Stamp::at(minute * 60, 0).text.to_vec()).unwrap());
        let select = Select { since: time(since), until: time(until), ..Select::default() };
        let query = Query {
            select: std::sync::Arc::new(select),
            ..Query::of(&root.path().join("log"), &["web"])
        };
        let mut found = Vec::new();
        let mut each = |record: crate::logs::Record| {
            found.extend(
                (record.stream == "stdout").then(|| String::from_utf8(record.bytes).unwrap()),
            );
            Ok(())
        };
        crate::logs::read(&query, None, &mut each).unwrap();
        let rounds = [("first", 600..720), ("second", 540..780), ("third", 500..700)];
        let wanted = rounds.into_iter().flat_map(|(round, minutes)| {
            let minutes = minutes.filter(|minute| (since..until).contains(minute));
            minutes.map(move |minute| line(round, minute).trim_end().to_owned())
        });
        assert!(found == wanted.collect::<Vec<_>>(), "{since} to {until}: {} lines", found.len());
    }
}

#[test]
fn files_of_a_path_that_somebody_else_dated_are_left_alone() {
    let (root, _) = place();
    let path = root.path().join("app.log");
    let foreign =
        ["app.log.1795602720", "app.log.20261120", "app.log.20261121.gz", "app.log.000000007"];
    for name in foreign {
        fs::write(path.with_file_name(name), "mine").unwrap();
    }
    let to = Destination::Path(FilePath::from(path.as_path()));
    let mut store = Store::new("web", &instruction(root.path(), to, 10, 1));
    put(&mut store, &[b"one word\n", b"two words\n", b"three words\n"]);
    let mut expected: Vec<String> = foreign.map(str::to_owned).into();
    expected.extend(["app.log", "app.log.00000002"].map(str::to_owned));
    expected.sort();
    assert_eq!(names(root.path()), expected);
    // A number keeps the zero by which it is known, however large it becomes.
    fs::rename(path.with_file_name("app.log.00000002"), path.with_file_name("app.log.09999999"))
        .unwrap();
    for name in ["app.log.010000000", "app.log.010000001"] {
        put(&mut store, &[b"more words\n"]);
        assert!(path.with_file_name(name).exists(), "{:?}", names(root.path()));
    }
    assert_eq!(names(root.path()).len(), foreign.len() + 2);
}

#[test]
fn finished_files_are_removed_when_they_are_too_old() {
    let (_root, dir) = place();
    let day = Span::seconds(86_400);
    let aged =
        Instruction { max_age: Some(day), ..instruction(&dir, Destination::File, 1_000_000, 5) };
    let set_age = |name: &str, age: Span| {
        let file = fs::File::options().write(true).open(dir.join(name)).unwrap();
        let time = std::time::UNIX_EPOCH
            + std::time::Duration::from_micros(crate::system::wall_now().0.try_into().unwrap());
        file.set_modified(time - std::time::Duration::from_nanos(age.as_nanos())).unwrap();
    };
    fs::create_dir_all(&dir).unwrap();
    for (name, age) in [
        ("00000001.log", Span::seconds(86_500)),
        ("00000002.log", Span::seconds(86_300)),
        ("00000003.log", Span::ZERO),
        ("current", Span::seconds(1_000_000)),
    ] {
        fs::write(dir.join(name), "").unwrap();
        set_age(name, age);
    }
    let mut store = Store::new("web", &aged);
    assert_eq!(names(&dir), ["00000002.log", "00000003.log", "current"]);
    let due = store.age_due().unwrap() - super::clock::now_ms();
    assert!((90_000..=100_001).contains(&due), "{due}");
    set_age("00000002.log", day);
    store.prune();
    assert_eq!(names(&dir), ["00000003.log", "current"]);
    store.change(&instruction(&dir, Destination::File, 1_000_000, 5));
    assert_eq!(store.age_due(), None);
    // Nothing waits where nothing is finished.
    fs::remove_file(dir.join("00000003.log")).unwrap();
    assert_eq!(Store::new("web", &aged).age_due(), None);
}

#[test]
fn the_current_file_is_finished_when_its_first_record_is_too_old() {
    let (_root, dir) = place();
    let to = Destination::File;
    let aged =
        Instruction { max_age: Some(Span::seconds(60)), ..instruction(&dir, to, 1_000_000, 5) };
    let mut store = Store::new("web", &aged);
    for (second, files) in [(0, 1), (59, 1), (60, 2), (119, 2)] {
        put_at(&mut store, second, &[b"x\n"]);
        assert_eq!(names(&dir).len(), files, "{second}");
    }
    // Another keeper reads how old the file is.
    let mut store = Store::new("web", &aged);
    for (second, files) in [(119, 2), (120, 3)] {
        put_at(&mut store, second, &[b"x\n"]);
        assert_eq!(names(&dir).len(), files, "{second}");
    }
}

#[test]
fn each_file_of_a_text_log_says_which_run_it_is_about_and_again_from_time_to_time() {
    let (_root, dir) = place();
    let mut store = Store::new("web", &instruction(&dir, Destination::File, 200_000, 5));
    let line = [&[b'x'; 10_000][..], b"\n"].concat();
    let run = |run: u64, store: &mut Store| {
        let mut out = Vec::new();
        let mut batch = store.batch(&mut out, Stamp::at(1_795_602_720, 123_456_000));
        batch.begin_run(Some(RunId(run)));
        batch.finish();
        for _ in 0..15 {
            put(store, &[&line]);
        }
    };
    run(1, &mut store);
    run(2, &mut store);
    let mut runs = Vec::new();
    for name in ["00000001.log", "current"] {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        assert!(text.len() <= 200_000, "{}", text.len());
        let marks = text.lines().map(|line| line.split(' ').nth(2).unwrap());
        let told: Vec<(usize, &str)> = marks.enumerate().filter(|(_, mark)| *mark != "F").collect();
        runs.extend(told.into_iter().map(|(index, mark)| (name, index, mark.to_owned())));
    }
    let (one, two) = ("F:0000000000000001", "F:0000000000000002");
    let expected = [
        ("00000001.log", 0, one),
        ("00000001.log", 8, one),
        ("00000001.log", 15, two),
        ("current", 0, two),
        ("current", 8, two),
    ];
    assert_eq!(runs, expected.map(|(name, index, mark)| (name, index, mark.to_owned())));
    // The next keeper goes on where this one was.
    let mut next = Store::new("web", &instruction(&dir, Destination::File, 200_000, 5));
    put(&mut next, &[b"after\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    assert!(text.ends_with(&format!("{STAMP} stdout {two} after\n")), "{}", text.len());
}

#[test]
fn a_json_log_has_whole_objects_of_exact_size() {
    let (_root, dir) = place();
    let to = Destination::File;
    let json = Instruction { format: LogFormat::Json, ..instruction(&dir, to, 300, 5) };
    let mut store = Store::new("web", &json);
    put(&mut store, &[b"one\n", b"two \"\xff\"\n", b"three"]);
    let mut found = Vec::new();
    for name in names(&dir) {
        let text = fs::read_to_string(dir.join(&name)).unwrap();
        assert!(text.len() <= 300);
        for line in text.lines() {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            found.push((name.clone(), json["line"].to_string(), json["partial"].to_string()));
        }
    }
    let expected = [
        ("00000001.log", "\"one\"", "false"),
        ("00000001.log", "[116,119,111,32,34,255,34]", "false"),
        ("current", "\"three\"", "true"),
    ];
    let expected = expected.map(|(n, l, p)| (n.to_owned(), l.to_owned(), p.to_owned()));
    assert_eq!(found, expected);
    // What a killed keeper left of an object is cut off, however long its escapes are.
    let torn = format!("{{\"time\":\"{STAMP}\",\"line\":\"{}", "\\u0000".repeat(40_000));
    let whole = fs::read_to_string(dir.join("current")).unwrap();
    fs::write(dir.join("current"), format!("{whole}{torn}")).unwrap();
    let larger = Instruction { max_size: 1_000_000, ..json };
    put(&mut Store::new("web", &larger), &[b"four\n"]);
    let text = fs::read_to_string(dir.join("current")).unwrap();
    assert!(text.starts_with(&whole) && text.lines().count() == 2, "{text}");
}
