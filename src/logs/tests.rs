//! Tests of the reader on logs that are written by hand, and by the keeper's own rules.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::*;

pub(super) fn stamp(second: usize) -> String {
    format!("2026-11-25T10:{:02}:{:02}.000000Z", second / 60, second % 60)
}

pub(super) fn append(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

pub(super) fn write(path: &Path, records: &[(usize, &str)]) {
    for (second, text) in records {
        append(path, format!("{} stdout F {text}\n", stamp(*second)).as_bytes());
    }
}

fn query(dir: &Path, instances: &[&str], lines: Option<usize>) -> Query {
    Query { lines, ..Query::of(dir, instances) }
}

fn following(dir: &Path, lines: usize) -> Query {
    Query { follow: true, ..query(dir, &[], Some(lines)) }
}

pub(super) fn texts(query: &Query) -> Vec<String> {
    let mut texts = Vec::new();
    read(query, None, &mut |record| {
        texts.push(String::from_utf8(record.bytes).unwrap());
        Ok(())
    })
    .unwrap();
    texts
}

/// Two instances whose records alternate, `a` over three files.
fn two_logs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("a"), root.path().join("b@1"));
    write(&a.join("00000003.log"), &[(1, "a1"), (3, "a3")]);
    write(&a.join("00000004.log"), &[(5, "a5")]);
    write(&a.join("current"), &[(7, "a7"), (9, "a9")]);
    write(&b.join("current"), &[(2, "b2"), (4, "b4"), (6, "b6"), (8, "b8")]);
    root
}

#[test]
fn records_of_several_instances_come_by_time() {
    let root = two_logs();
    let all = ["a1", "b2", "a3", "b4", "a5", "b6", "a7", "b8", "a9"];
    assert_eq!(texts(&query(root.path(), &[], None)), all);
    for lines in 0..12 {
        let expected = &all[all.len() - lines.min(all.len())..];
        assert_eq!(texts(&query(root.path(), &[], Some(lines))), expected, "{lines}");
    }
    assert_eq!(texts(&query(root.path(), &["a"], Some(3))), ["a5", "a7", "a9"]);
    assert_eq!(texts(&query(root.path(), &["b"], Some(2))), ["b6", "b8"]);
    assert_eq!(texts(&query(root.path(), &["b@1"], Some(1))), ["b8"]);
    assert_eq!(texts(&query(root.path(), &["b@"], None)), [""; 0]);
    assert!(read(&query(&root.path().join("none"), &[], None), None, &mut |_| Ok(())).is_err());
}

#[test]
fn what_is_written_after_the_last_were_found_is_none_of_them() {
    for rotates in [false, true] {
        let root = two_logs();
        let (a, b) = (root.path().join("a"), root.path().join("b@1"));
        append(&a.join("current"), b"unfinished");
        let query = query(root.path(), &[], Some(4));
        let cursors = start(&query, &query.present().unwrap()).unwrap();
        append(&a.join("current"), b"\n");
        if rotates {
            fs::rename(a.join("current"), a.join("00000005.log")).unwrap();
        }
        write(&a.join("current"), &[(10, "a10")]);
        write(&b.join("current"), &[(11, "b11")]);
        let mut texts = Vec::new();
        let mut each = |record: Record| {
            texts.push(String::from_utf8(record.bytes).unwrap());
            Ok(())
        };
        give(cursors, &mut each).unwrap();
        assert_eq!(texts, ["b6", "a7", "b8", "a9"], "rotates: {rotates}");
    }
}

#[test]
fn the_rest_of_a_finished_file_is_a_line_from_both_ends() {
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("a");
    append(&log.join("00000001.log"), b"one\ntwo");
    append(&log.join("00000002.log"), b"three");
    append(&log.join("current"), b"four\nunfinished");
    let all = ["one", "two", "three", "four"];
    assert_eq!(texts(&query(root.path(), &[], None)), all);
    for lines in 0..6 {
        let expected = &all[all.len() - lines.min(all.len())..];
        assert_eq!(texts(&query(root.path(), &[], Some(lines))), expected, "{lines}");
    }
}

#[test]
fn lines_without_a_stamp_are_as_old_as_their_file() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("raw");
    let time = |second: usize| {
        let time = stamp(second).parse::<jiff::Timestamp>().unwrap().as_second();
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(time.try_into().unwrap())
    };
    for (name, second) in [("00000001.log", 10), ("current", 20)] {
        for number in 0..100 {
            append(&dir.join(name), format!("raw {second} {number}\n").as_bytes());
        }
        let file = OpenOptions::new().append(true).open(dir.join(name)).unwrap();
        file.set_modified(time(second)).unwrap();
    }
    let numbers = |second: usize, count: usize| {
        (100 - count..100).map(move |number| format!("raw {second} {number}"))
    };
    let b = root.path().join("b/current");
    write(&b, &[(5, "b5"), (15, "b15"), (18, "b18"), (25, "b25"), (26, "b26")]);
    // Where records follow, they are as old as the first one.
    append(&root.path().join("c/current"), b"foreign\n");
    write(&root.path().join("c/current"), &[(17, "c17")]);
    let last = |lines: usize| texts(&query(root.path(), &[], Some(lines)));
    assert_eq!(last(2), ["b25", "b26"]);
    let both = ["b25", "b26"].map(str::to_owned);
    assert_eq!(last(7), numbers(20, 5).chain(both.clone()).collect::<Vec<_>>());
    let middle = ["b15", "foreign", "c17", "b18"].map(str::to_owned);
    let expected: Vec<String> =
        numbers(10, 3).chain(middle).chain(numbers(20, 100)).chain(both).collect();
    assert_eq!(last(109), expected);
    let all = texts(&query(root.path(), &[], None));
    assert_eq!(all[all.len() - 109..], expected);
    assert_eq!(all[..2], ["b5", "raw 10 0"]);
    // Who asks for a time is given no guess, and it is none of the last ones either.
    let since = Select { since: Some(stamp(1)), ..Select::default() };
    let since = Query { select: Arc::new(since), ..query(root.path(), &["raw", "b"], Some(3)) };
    assert_eq!(texts(&since), ["b18", "b25", "b26"]);
}

#[test]
fn last_lines_come_from_one_instance_and_never_fail() {
    let root = two_logs();
    let texts = |instance, lines| -> Vec<Vec<u8>> {
        last_lines(root.path(), instance, lines).into_iter().map(|r| r.bytes).collect()
    };
    assert_eq!(texts("a", 2), [b"a7", b"a9"]);
    assert_eq!(texts("a", 100).len(), 5);
    assert_eq!(texts("none", 2).len(), 0);
    assert_eq!(last_lines(root.path(), "a", 1)[0].instance, "a");
}

#[test]
fn a_log_without_a_current_file_is_read_too() {
    let root = two_logs();
    fs::remove_file(root.path().join("a/current")).unwrap();
    assert_eq!(texts(&query(root.path(), &["a"], None)), ["a1", "a3", "a5"]);
    assert_eq!(texts(&query(root.path(), &["a"], Some(2))), ["a3", "a5"]);
    fs::write(root.path().join("a/current"), "").unwrap();
    assert_eq!(texts(&query(root.path(), &["a"], Some(2))), ["a3", "a5"]);
}

#[test]
fn long_lines_foreign_text_and_an_unfinished_record_are_read() {
    let root = tempfile::tempdir().unwrap();
    let current = root.path().join("a/current");
    let long = "x".repeat(48 * 1024);
    write(&current, &[(1, "one"), (2, &long), (3, "three")]);
    append(&current, b"by hand\n");
    append(&current, stamp(4).as_bytes());
    let expected = ["one", long.as_str(), "three", "by hand"];
    assert_eq!(texts(&query(root.path(), &[], None)), expected);
    for lines in 0..=4 {
        let found = texts(&query(root.path(), &[], Some(lines)));
        assert_eq!(found, expected[4 - lines..], "{lines}");
    }
}

#[test]
fn only_the_end_of_a_large_log_is_read_for_its_last_lines() {
    let root = tempfile::tempdir().unwrap();
    let current = root.path().join("a/current");
    write(&current, &[(1, "old")]);
    // A hole of 64 GB: to read it would take a minute.
    let file = OpenOptions::new().write(true).open(&current).unwrap();
    file.set_len(64 << 30).unwrap();
    append(&current, b"\n");
    write(&current, &[(2, "two"), (3, "three")]);
    let found = last_lines(root.path(), "a", 2);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].bytes, b"two");
}

/// A writer that keeps the keeper's rules, and readers that look after each of its steps.
struct Log {
    dir: PathBuf,
    next: u64,
    keep: u64,
    written: usize,
}

impl Log {
    fn line(&mut self) {
        self.written += 1;
        write(&self.dir.join("current"), &[(self.written, &self.written.to_string())]);
    }

    fn rename(&mut self) {
        let name = format!("{:08}.log", self.next);
        fs::rename(self.dir.join("current"), self.dir.join(name)).unwrap();
        self.next += 1;
    }

    fn prune(&self) {
        if let Some(old) = self.next.checked_sub(self.keep + 1) {
            let removed = fs::remove_file(self.dir.join(format!("{old:08}.log")));
            assert!(removed.is_ok() || old == 0);
        }
    }
}

thread_local! {
    /// What happens while the reader looks at a directory.
    static MEANWHILE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// The reader calls this just before it asks what the files are.
pub(super) fn before_a_look() {
    let meanwhile = MEANWHILE.take();
    if let Some(mut meanwhile) = meanwhile {
        meanwhile();
        MEANWHILE.set(Some(meanwhile));
    }
}

#[test]
fn a_rotation_in_the_middle_of_a_look_loses_and_doubles_nothing() {
    // In the middle of each of the first looks, each order of three steps of the writer.
    for (look, order) in (0..6).flat_map(|look| (0..27).map(move |order| (look, order))) {
        let root = tempfile::tempdir().unwrap();
        let mut log = Log { dir: root.path().join("a"), next: 1, keep: 10, written: 0 };
        log.line();
        let log = Rc::new(RefCell::new(log));
        let writer = Rc::clone(&log);
        let mut looks = 0;
        MEANWHILE.set(Some(Box::new(move || {
            let mut log = writer.borrow_mut();
            for step in [order % 3, order / 3 % 3, order / 9] {
                match step {
                    _ if looks != look => {}
                    0 => log.line(),
                    1 if log.dir.join("current").exists() => log.rename(),
                    _ => {}
                }
            }
            looks += 1;
        })));
        let names = ["a".to_owned()];
        let mut found = Vec::new();
        let mut merge = Merge::new(start(&following(root.path(), 9), &names).unwrap());
        for _ in 0..3 {
            pump(&mut merge, &mut found);
            log.borrow_mut().line();
            log.borrow_mut().rename();
        }
        pump(&mut merge, &mut found);
        MEANWHILE.set(None);
        let expected: Vec<String> = (1..=log.borrow().written).map(|n| n.to_string()).collect();
        assert_eq!(found, expected, "look {look}, order {order}");
    }
}

/// Takes what is there now.
pub(super) fn pump(merge: &mut Merge, into: &mut Vec<String>) {
    merge.wake_all().unwrap();
    let mut each = |record: Record| {
        into.push(String::from_utf8(record.bytes).unwrap());
        Ok(())
    };
    while merge.step(&mut each).unwrap() {}
}

#[test]
fn following_over_rotations_loses_and_doubles_nothing() {
    // Every order of six steps: a line, the rename of a rotation, a look.
    for order in 0..3_usize.pow(6) {
        let root = tempfile::tempdir().unwrap();
        let mut log = Log { dir: root.path().join("a"), next: 1, keep: 10, written: 0 };
        log.line();
        let mut found = Vec::new();
        let names = ["a".to_owned()];
        let mut merge = Merge::new(start(&following(root.path(), 1), &names).unwrap());
        let mut rest = order;
        for _ in 0..6 {
            match rest % 3 {
                0 => log.line(),
                1 if log.dir.join("current").exists() => log.rename(),
                1 => {}
                _ => pump(&mut merge, &mut found),
            }
            rest /= 3;
        }
        pump(&mut merge, &mut found);
        let expected: Vec<String> = (1..=log.written).map(|n| n.to_string()).collect();
        assert_eq!(found, expected, "order {order}");
    }
}

#[test]
fn a_reader_that_falls_behind_is_told() {
    let root = tempfile::tempdir().unwrap();
    let mut log = Log { dir: root.path().join("a"), next: 1, keep: 2, written: 0 };
    log.line();
    let names = ["a".to_owned()];
    let mut merge = Merge::new(start(&following(root.path(), 1), &names).unwrap());
    let mut found = Vec::new();
    pump(&mut merge, &mut found);
    for _ in 0..6 {
        log.rename();
        log.prune();
        log.line();
    }
    pump(&mut merge, &mut found);
    // Files 2 to 4 were removed unread; ours, 1, was removed too, but it had been read.
    let gap = "[opm: 3 log files were removed before they were read]";
    assert_eq!(found, ["1", gap, "5", "6", "7"]);
}

#[test]
fn an_unfinished_record_that_is_cut_off_again_is_not_given() {
    let root = tempfile::tempdir().unwrap();
    let current = root.path().join("a/current");
    write(&current, &[(1, "one")]);
    let whole = fs::metadata(&current).unwrap().len();
    let mut merge = Merge::new(start(&query(root.path(), &[], None), &["a".to_owned()]).unwrap());
    let mut found = Vec::new();
    append(&current, format!("{} stdout F to", stamp(2)).as_bytes());
    pump(&mut merge, &mut found);
    OpenOptions::new().write(true).open(&current).unwrap().set_len(whole).unwrap();
    write(&current, &[(3, "three")]);
    pump(&mut merge, &mut found);
    assert_eq!(found, ["one", "three"]);
    // Cut by others, as `copytruncate` does.
    OpenOptions::new().write(true).open(&current).unwrap().set_len(0).unwrap();
    pump(&mut merge, &mut found);
    write(&current, &[(4, "four")]);
    pump(&mut merge, &mut found);
    assert_eq!(found, ["one", "three", "four"]);
}

#[test]
fn reading_without_following_ends_although_the_log_grows() {
    let root = two_logs();
    let mut count = BTreeMap::new();
    read(&query(root.path(), &[], None), None, &mut |record| {
        *count.entry(record.instance.clone()).or_insert(0) += 1;
        write(&root.path().join(&record.instance).join("current"), &[(9, "more")]);
        Ok(())
    })
    .unwrap();
    assert_eq!(count, BTreeMap::from([("a".to_owned(), 5), ("b@1".to_owned(), 4)]));
}

#[test]
fn the_caller_can_end_it() {
    let root = two_logs();
    let mut query = query(root.path(), &[], None);
    query.follow = true;
    let mut left = 3;
    let ended = read(&query, None, &mut |_| {
        left -= 1;
        if left == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    });
    assert!(matches!(ended, Err(LogsError::Output(_))));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let fd = std::os::fd::AsFd::as_fd(&writer);
    read(&query, Some(fd), &mut |_| Ok(())).unwrap();
}
