//! A program that forks away, at the system's own floor: its last words and its end are there at the
//! same time, and the end is looked at first.
//!
//! The one test of this file: it reaps all children of its process.
#![expect(clippy::wildcard_enum_match_arm, reason = "one kind of event is looked for")]
#![expect(clippy::disallowed_methods, reason = "tests wait for programs")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use opm::model::{
    Command, FilePath, Happening, InstanceId, Kind, Outcome, Output, ProcessSpec, Ready, Role,
    RunId, Signal, Spec, Template, UnitName, Word,
};
use opm::system::{Dirs, Launch, Linux, Options, System, become_subreaper, parse_stat};

const FORK: &str = "
import os, socket, time
child = os.fork()
if child == 0:
    time.sleep(1000)
peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
text = 'MAINPID=%d\\nREADY=1' % child
peer.sendto(text.encode(), os.environ['NOTIFY_SOCKET'])
os._exit(0)
";

fn wait_for<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = fact() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_process_said_is_heard_before_its_end() {
    let python = std::process::Command::new("python3").arg("-V").output();
    if !python.is_ok_and(|said| said.status.success()) {
        assert!(std::env::var("OPM_TESTS").as_deref() != Ok("all"), "needs python3");
        eprintln!("skipped: needs python3");
        return;
    }
    become_subreaper().unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut dirs = Dirs::under(root.path());
    dirs.prepare().unwrap();
    let poll = mio::Poll::new().unwrap();
    let options =
        Options { env: std::env::vars_os().collect(), nofile: (256, 256), stateless: true };
    let (mut linux, ..) = Linux::open(dirs, options, poll.registry().try_clone().unwrap()).unwrap();

    let mut spec = Spec::new(Kind::Service, UnitName::parse("web").unwrap());
    let argv = ["python3", "-c", FORK].map(Template::literal).to_vec();
    let process = ProcessSpec::new(Command::Argv(argv), FilePath::from("/"));
    spec.process =
        Some(ProcessSpec { ready: Ready::Notify.into(), output: Output::Null, ..process });
    let instance = InstanceId::parse("web").unwrap();
    let (run, spec) = (RunId(7), Arc::new(spec));
    let launch = Launch { instance, index: 1, run, role: Role::Main, spec };
    let at = linux.now();
    let first = linux.spawn(&launch, at).unwrap();
    wait_for("its end", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", first.pid)).unwrap();
        parse_stat(&stat).filter(opm::system::Stat::is_dead)
    });

    let told: Vec<Happening> = linux.reap().into_iter().map(|event| event.what).collect();
    let named = told.iter().find_map(|what| match what {
        Happening::Word { word: Word::MainIs { identity, was: 0 }, .. } => Some(*identity),
        _ => None,
    });
    let named = named.unwrap_or_else(|| unreachable!("it is not heard: {told:?}"));
    assert_ne!(named.pid, first.pid);
    assert!(told.contains(&Happening::Ready { run }), "{told:?}");
    let outcome = Outcome::Exited(0);
    let last = Happening::Ended { run, role: Role::Former(0), outcome };
    assert_eq!(told.last(), Some(&last));

    // The new one is our child by now, and we are told how it ends.
    linux.signal(&named, Signal::KILL).unwrap();
    let told = wait_for("its end", || linux.reap().pop());
    let outcome = Outcome::Killed { signal: Signal::KILL, core: false };
    assert_eq!(told.what, Happening::Ended { run, role: Role::Main, outcome });
}
