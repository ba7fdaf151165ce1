//! Small texts: a process as the kernel shows it, an instruction for the log keeper, a datagram.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use opm::model::{Doing, Event, Happening, InstanceId, Monotonic, RunId, Span};
use opm::system::instruction::{self, Instruction};
use opm::system::{NotifyMessage, Ping, Stat, parse_notify, parse_stat, replay_text};

/// `/proc/PID/stat`: any text is read or refused; a program has any name that it likes.
pub fn stat(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(stat) = parse_stat(&text) {
        let fields: Vec<&str> =
            text[text.rfind(')').unwrap() + 1..].split_ascii_whitespace().collect();
        assert!(fields[0].starts_with(stat.state), "{stat:?}");
        let numbers = [stat.parent, stat.group, stat.session];
        assert_eq!(fields[1..4].iter().map(|f| f.parse()).collect::<Vec<_>>(), numbers.map(Ok));
        assert_eq!(fields[17].parse(), Ok(stat.threads));
        assert_eq!(fields[19].parse(), Ok(stat.start));
    }
    let numbers = "1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551615 9 10";
    let (threads, start, has_execed) = (1, u64::MAX, true);
    let expected =
        Stat { state: 'Z', parent: 1, group: 42, session: 43, has_execed, threads, start };
    assert_eq!(parse_stat(&format!("42 ({text}) Z {numbers}\n")), Some(expected), "{text:?}");
}

/// The log keeper's instruction, and which instance the name of a file belongs to.
pub fn instruction(bytes: &[u8]) {
    if let Ok(instruction) = Instruction::parse(bytes) {
        let json = serde_json::to_vec(&instruction).expect("it can be written");
        assert_eq!(Instruction::parse(&json).expect("it can be read back"), instruction);
    }
    let name = OsStr::from_bytes(bytes);
    let Some(id) = instruction::instance_of(name) else { return };
    assert_eq!(InstanceId::parse(&id.to_string()), Ok(id.clone()));
    let run = Path::new("/run");
    let paths = [instruction::instruction_path(run, &id), instruction::fifo_path(run, &id)];
    assert!(paths.contains(&instruction::log_dir(run).join(name)), "not of {id}");
}

/// A datagram of `sd_notify(3)`: lines of assignments, of which the last status counts, and the last
/// number that can be read.
pub fn notify(bytes: &[u8]) {
    let lines = || bytes.split(|byte| *byte == b'\n');
    let values = |name: &'static [u8]| lines().filter_map(move |line| line.strip_prefix(name));
    let status = values(b"STATUS=").next_back();
    let status = status.map(|status| String::from_utf8_lossy(status).into_owned());
    let ready = lines().any(|line| line == b"READY=1");
    // What `parse` takes beyond digits is a sign.
    let number = |value: &[u8]| {
        let text = std::str::from_utf8(value).ok().filter(|text| !text.starts_with('+'))?;
        text.parse::<u64>().ok()
    };
    let span = |name| values(name).filter_map(number).next_back();
    let span = |name| span(name).map(|micros| Span::nanos(micros.saturating_mul(1_000)));
    let is_pid = |pid: &i32| *pid > 0;
    let mut pids = values(b"MAINPID=").filter_map(number).filter_map(|pid| i32::try_from(pid).ok());
    let pings = values(b"WATCHDOG=");
    let pings = pings.filter_map(|value| match value {
        b"1" => Some(Ping::Well),
        b"trigger" => Some(Ping::Failed),
        _ => None,
    });
    let mut doings = lines().filter_map(|line| match line {
        b"READY=1" => Some(None),
        b"RELOADING=1" => Some(Some(Doing::Reloading)),
        b"STOPPING=1" => Some(Some(Doing::Stopping)),
        _ => None,
    });
    let message = parse_notify(bytes);
    let expected = NotifyMessage {
        ready,
        doing: doings.next_back().flatten(),
        status,
        ping: pings.max(),
        watchdog: span(b"WATCHDOG_USEC="),
        more_time: span(b"EXTEND_TIMEOUT_USEC="),
        main_pid: pids.rfind(is_pid),
        unread: message.unread,
        sender: None,
    };
    assert_eq!(message, expected);
    // What cannot be read is there.
    let is_there = |name: &str| lines().any(|line| line.starts_with(format!("{name}=").as_bytes()));
    assert!(message.unread.is_none_or(is_there), "{message:?}");
    // What it says is noted in the ledger's form, whatever it is, and is one line there.
    let status = message.status.unwrap_or_default();
    let (instance, at) = (InstanceId::parse("web").unwrap(), Monotonic::from_nanos(1));
    let what = Happening::Said { run: RunId(1), status };
    let mut line = serde_json::to_vec(&Event { instance, at, what }).unwrap();
    assert!(!line.contains(&b'\n'));
    line.push(b'\n');
    assert_eq!(replay_text(&line).problems, [""; 0]);
}
