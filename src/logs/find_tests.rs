//! Tests of what is found by time, stream and text, against a reader that looks at every record.

use std::fs;
use std::sync::Arc;

use super::tests::{append, stamp, texts, write};
use super::*;

fn selecting(dir: &Path, select: Select) -> Query {
    Query { select: Arc::new(select), ..Query::of(dir, &[]) }
}

fn between(since: Option<usize>, until: Option<usize>) -> Select {
    Select { since: since.map(stamp), until: until.map(stamp), ..Select::default() }
}

/// A log of 3,000 seconds in files of different lengths, some lines longer than a block, and its
/// seconds. Each third second has three records, and some lines are no records.
fn long_log(root: &Path) -> Vec<usize> {
    let dir = root.join("a");
    let mut seconds = Vec::new();
    for second in 0..3_000 {
        let name = match second {
            0..40 => "00000001.log",
            40..1_000 => "00000002.log",
            1_000..1_002 => "00000003.log",
            _ => "current",
        };
        for part in 0..if second % 3 == 0 { 3 } else { 1 } {
            let filler = "x".repeat(if second % 500 == 7 { 40_000 } else { second % 90 });
            write(&dir.join(name), &[(second, &format!("{second}.{part} {filler}"))]);
            seconds.push(second);
        }
    }
    seconds
}

fn seconds_of(query: &Query) -> Vec<usize> {
    texts(query).iter().map(|text| text.split('.').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_time_is_found_in_any_file() {
    let root = tempfile::tempdir().unwrap();
    let all = long_log(root.path());
    times_are_found(root.path(), &all);
    let log = root.path().join("a");
    for name in ["00000001.log", "00000002.log"] {
        packed::replace(&log.join(name), &log.join(".room")).unwrap();
        assert!(!log.join(name).exists());
    }
    times_are_found(root.path(), &all);
}

fn times_are_found(root: &Path, all: &[usize]) {
    let times = [0, 40, 507, 999, 1_002, 3_100];
    let times: Vec<Option<usize>> = [None].into_iter().chain(times.map(Some)).collect();
    for (since, until) in times.iter().flat_map(|s| times.iter().map(move |u| (*s, *u))) {
        let is_in = |second: &usize| {
            since.is_none_or(|since| *second >= since) && until.is_none_or(|until| *second <= until)
        };
        let expected: Vec<usize> = all.iter().copied().filter(is_in).collect();
        let query = selecting(root, between(since, until));
        assert!(seconds_of(&query) == expected, "{since:?} to {until:?}");
        for lines in [1, 5] {
            let found = seconds_of(&Query { lines: Some(lines), ..query.clone() });
            let from = expected.len().saturating_sub(lines);
            assert!(found == expected[from..], "{lines} of {since:?} to {until:?}: {found:?}");
        }
    }
}

#[test]
fn times_of_files_that_were_finished_by_hand_are_found() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    write(&dir.join("00000001.log"), &[(1, "1.")]);
    write(&dir.join("00000002.log"), &[(5, "5.")]);
    append(&dir.join("00000002.log"), stamp(6).as_bytes());
    append(&dir.join("00000002.log"), b" stdout F 6.");
    for (since, expected) in [(0, &[1, 5, 6][..]), (5, &[5, 6]), (6, &[6]), (7, &[])] {
        let query = selecting(root.path(), between(Some(since), None));
        assert_eq!(seconds_of(&query), expected, "{since}");
    }
    fs::write(dir.join("current"), "").unwrap();
    assert_eq!(seconds_of(&selecting(root.path(), between(Some(6), None))), [6]);
    assert_eq!(seconds_of(&selecting(root.path(), between(None, Some(5)))), [1, 5]);
    assert_eq!(seconds_of(&selecting(root.path(), between(None, Some(0)))), [0; 0]);
}

#[test]
fn a_clock_that_was_set_back_between_two_files_hides_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let texts: Vec<String> = (0..30).map(|second| format!("{second}.")).collect();
    let put = |name: &str, range: std::ops::Range<usize>| {
        for second in range {
            write(&dir.join(name), &[(second, &texts[second])]);
        }
    };
    put("00000001.log", 10..20);
    put("00000002.log", 5..15);
    put("current", 15..18);
    for (since, until, expected) in [
        (Some(14), None, vec![14, 15, 16, 17, 18, 19, 14, 15, 16, 17]),
        (Some(19), None, vec![19]),
        (None, Some(6), vec![5, 6]),
        (None, Some(11), vec![10, 11, 5, 6, 7, 8, 9, 10, 11]),
    ] {
        let query = selecting(root.path(), between(since, until));
        assert_eq!(seconds_of(&query), expected, "{since:?} to {until:?}");
        let query = Query { lines: Some(2), ..query };
        let from = expected.len().saturating_sub(2);
        assert_eq!(seconds_of(&query), expected[from..], "{since:?} to {until:?}");
    }
}

#[test]
fn a_stream_and_a_text_are_found_and_lines_count_what_is_found() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let record = |second: usize, stream: &str, text: &str| {
        append(&dir.join("current"), format!("{} {stream} F {text}\n", stamp(second)).as_bytes());
    };
    record(1, "stdout", "GET /a");
    record(2, "opm", "[opm: dropped 5 bytes: No space left on device]");
    append(&dir.join("current"), b"by hand\n");
    record(3, "opm", &format!("{} by 5s]", record::CLOCK_BACK));
    record(4, "stdout", "get /b");
    record(5, "stdout", "GET /c");
    let of = |select: Select| texts(&selecting(root.path(), select));
    let whose = |whose| of(Select { whose, ..Select::default() });
    assert_eq!(whose(Whose::Unit), ["GET /a", "by hand", "get /b", "GET /c"]);
    assert_eq!(whose(Whose::Opm).len(), 2);
    assert_eq!(whose(Whose::Gaps), ["[opm: dropped 5 bytes: No space left on device]"]);
    let grep = |text, ignore_case| {
        let grep = Some(Pattern::parse(text, ignore_case).unwrap());
        selecting(root.path(), Select { grep, ..Select::default() })
    };
    assert_eq!(texts(&grep("GET", false)), ["GET /a", "GET /c"]);
    assert_eq!(texts(&grep("^get .[b-z]", true)), ["get /b", "GET /c"]);
    let query = Query { lines: Some(2), ..grep("GET", false) };
    assert_eq!(texts(&query), ["GET /a", "GET /c"]);
    let query = Query { lines: Some(1), ..grep("opm", false) };
    assert_eq!(texts(&query).len(), 1);
}

#[test]
fn a_compressed_file_counts_once_and_a_damaged_one_is_told() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    for (name, text) in [("00000001.log", "1."), ("00000002.log", "2."), ("current", "3.")] {
        write(&dir.join(name), &[(1, text)]);
    }
    let finished = dir.join("00000001.log");
    let packed = dir.join("00000001.log.gz");
    let all = Query::of(root.path(), &[]);
    // As a keeper leaves it that is killed between the two steps, and before the first.
    packed::pack(&finished, &packed).unwrap();
    fs::write(dir.join("current.packing"), "half").unwrap();
    assert_eq!(texts(&all), ["1.", "2.", "3."]);
    fs::remove_file(&finished).unwrap();
    assert_eq!(texts(&all), ["1.", "2.", "3."]);
    for lines in 0..4 {
        let query = Query { lines: Some(lines), ..all.clone() };
        assert_eq!(texts(&query), ["1.", "2.", "3."][3 - lines..], "{lines}");
    }
    let whole = fs::read(&packed).unwrap();
    let told = "[opm: 00000001.log.gz is damaged; lines are missing here]";
    let mut bent = whole.clone();
    let last = bent.len() - 20;
    bent[last] ^= 1;
    for damaged in [&bent[..], &whole[..50], b"gzip of somebody else", b""] {
        fs::write(&packed, damaged).unwrap();
        assert_eq!(texts(&all), [told, "2.", "3."], "{} bytes", damaged.len());
        assert_eq!(texts(&selecting(root.path(), between(Some(1), Some(1)))).last().unwrap(), "3.");
        let query = Query { lines: Some(2), ..all.clone() };
        assert_eq!(texts(&query), ["2.", "3."]);
        // More than there are behind it: they are shown all the same, and what is missing is told.
        let query = Query { lines: Some(5), ..all.clone() };
        assert!(
            texts(&query).ends_with(&["2.".to_owned(), "3.".to_owned()]),
            "{:?}",
            texts(&query)
        );
    }
    let gaps = Select { whose: Whose::Gaps, ..Select::default() };
    assert_eq!(texts(&selecting(root.path(), gaps)), [told]);
}

#[test]
fn what_is_no_file_in_a_log_hides_nothing_and_stops_nobody() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("a/00000002.log"), &[(1, "1.")]);
    nix::unistd::mkfifo(&root.path().join("a/current"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir_all(root.path().join("a/00000001.log")).unwrap();
    fs::create_dir_all(root.path().join("b/current")).unwrap();
    write(&root.path().join("c/current"), &[(2, "2.")]);
    let all = Query::of(root.path(), &[]);
    for lines in [None, Some(1), Some(9)] {
        let found = texts(&Query { lines, ..all.clone() });
        assert_eq!(found.last().unwrap(), "2.", "{found:?}");
    }
}

#[test]
fn a_file_that_is_followed_is_known_again_when_it_was_compressed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    write(&dir.join("current"), &[(1, "1.")]);
    let mut merge = Merge::new(start(&Query::of(root.path(), &[]), &["a".to_owned()]).unwrap());
    let mut found = Vec::new();
    tests::pump(&mut merge, &mut found);
    for number in 1..6 {
        // Inodes are used again: most file systems give the one that was freed last.
        let name = dir.join(format!("{number:08}.log"));
        fs::rename(dir.join("current"), &name).unwrap();
        packed::replace(&name, &dir.join("current.packing")).unwrap();
        write(&dir.join("current"), &[(number + 1, &format!("{}.", number + 1))]);
        if number % 2 == 0 {
            tests::pump(&mut merge, &mut found);
        }
    }
    tests::pump(&mut merge, &mut found);
    assert_eq!(found, ["1.", "2.", "3.", "4.", "5.", "6."]);
    assert_eq!(texts(&Query::of(root.path(), &[])), found);
    let query = Query { lines: Some(6), ..Query::of(root.path(), &[]) };
    assert_eq!(texts(&query), found);
}
