//! Too little of everything on the real system: no room on a disk, no descriptors, no processes, a
//! supervisor that stands still. Nothing runs twice, nothing is lost, nothing spins, and all comes
//! back once there is room. What `tests/disk.rs` and `tests/scale.rs` have is not repeated here.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use common::{OPM, World, in_shell, is_root, skip, watch_for, witness};

const QUICK: &str = "restart: {policy: always, delay: 20ms, max_delay: 100ms}\n";

/// A tiny tmpfs on a directory of the world's namespace, of so many KiB.
fn tiny(world: &World, dir: &str, size: u32) -> bool {
    if !is_root() {
        skip("needs root to mount a tmpfs");
        return false;
    }
    let dir = world.root().join(dir);
    std::fs::create_dir_all(&dir).unwrap();
    let options = format!("size={size}k");
    let mut mount = world.command("mount");
    let status = mount.args(["-t", "tmpfs", "-o", &options, "tiny"]).arg(&dir).status();
    assert!(status.unwrap().success());
    true
}

/// Takes all room that a directory has.
fn fill(world: &World, dir: &str) {
    let filler = world.root().join(dir).join("filler");
    let script = format!("head -c 2000000 /dev/zero >> {}", filler.display());
    world.command("sh").args(["-c", &script]).output().unwrap();
}

fn empty(world: &World, dir: &str) {
    let filler = world.root().join(dir).join("filler");
    assert!(world.command("rm").arg(filler).status().unwrap().success());
}

/// Processor time that a process of the namespace has used, in hundredths of a second.
fn ticks(world: &World, pid: i32) -> u64 {
    let path = world.proc().unwrap().join(format!("{pid}/stat"));
    let stat = std::fs::read_to_string(path).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_ascii_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().unwrap()).sum()
}

/// A process does next to nothing in a second.
fn assert_idle(world: &World, pid: i32, what: &str) {
    let before = ticks(world, pid);
    watch_for(Duration::from_secs(1), || false, "");
    let used = ticks(world, pid) - before;
    assert!(used <= 10, "{what} used {used} hundredths of a second in one\n{}", world.log());
}

/// No message came often.
fn assert_no_flood(world: &World) {
    let lines = world.log().lines().count();
    assert!(lines < 2_000, "{lines} lines of opm's own:\n{}", world.log());
}

fn running(world: &World, part: &str) -> Option<i32> {
    let is_it = |pid: &i32| world.alive(*pid) && world.command_line(*pid).contains(part);
    world.pids().into_iter().find(is_it)
}

fn keeper(world: &World) -> Option<i32> {
    running(world, " log-keeper ")
}

fn daemon(world: &World) -> Option<i32> {
    running(world, " daemon ")
}

fn starts(world: &World, name: &str) -> usize {
    world.lines(&format!("{name}.starts")).len()
}

/// An `opm run units` behind what a shell does first.
fn run_behind(world: &mut World, first: &str) {
    let log = File::options().append(true).create(true).open(world.path("opm.out")).unwrap();
    let mut command = world.command("sh");
    let script = format!("{first}; exec \"$0\" --root \"$1\" run --quiet units");
    command.args(["-c", &script, OPM]).arg(world.root());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    world.spawn(command);
}

#[test]
fn full_disks_at_boot_start_nothing_twice_and_lose_nothing() {
    let Some(mut world) = World::new() else { return };
    if !tiny(&world, "state", 64) || !tiny(&world, "run", 128) {
        return;
    }
    world.service("a", &(witness("a") + "exec sleep 1000"), QUICK);
    world.service("b", &(witness("b") + "exec sleep 1000"), QUICK);
    world.apply(0);
    world.until("their first acts", || starts(&world, "a") + starts(&world, "b") == 2);
    let (a, b) = (world.pid("a"), world.pid("b").unwrap());
    world.crash();
    world.kill("KILL", b);
    fill(&world, "run");
    fill(&world, "state");
    let said = world.opm(&["daemon"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    assert_eq!(world.pid("a"), a, "it runs on");
    // Its pid is not in the lock file, for want of room.
    let daemon = daemon(&world).unwrap();
    assert_idle(&world, daemon, "the supervisor");
    world.assert_no_doubles();
    empty(&world, "run");
    empty(&world, "state");
    world.until_phase("b", "up");
    world.until("its next act", || starts(&world, "b") == 2);
    assert_eq!(starts(&world, "a"), 1);
    world.apply(0);
    assert_no_flood(&world);
}

#[test]
fn a_full_disk_during_a_rotation_of_logs_stops_nobody_and_is_told() {
    let Some(world) = World::new() else { return };
    if !tiny(&world, "log/x", 64) {
        return;
    }
    let write = "i=0; while read -r to; do \
                 while [ $i -lt $to ]; do i=$((i+1)); echo \"line $i of many, and some more text\"; \
                 done; echo $i >> written; done";
    let script = format!("mkfifo orders; exec 3<> orders; exec < orders; touch there; {write}");
    world.unit("x", &(in_shell(&script) + "logs: {max_size: 4K, keep: 100}\n"));
    world.apply(0);
    world.until("its orders", || world.path("there").exists());
    let order = |to: u32| {
        let line = format!("{to}\n");
        std::fs::write(world.path("orders"), line).unwrap();
        world.until("its lines", || world.lines("written").last() == Some(&to.to_string()));
    };
    let kept = || world.opm(&["logs", "--raw", "x"]).out;
    order(200);
    world.until("the lines", || kept().lines().any(|line| line.starts_with("line 200 ")));
    fill(&world, "log/x");
    // Many files' worth, while not one more byte can be written.
    order(2_000);
    let pid = keeper(&world).unwrap();
    assert_idle(&world, pid, "the log keeper");
    empty(&world, "log/x");
    order(2_010);
    world.until("the last lines", || kept().lines().any(|line| line.starts_with("line 2010 ")));
    let text = kept();
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("line ")?.split(' ').next()?.parse().ok())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "doubled or out of order");
    let jumps = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    let told = text.lines().filter(|line| line.contains("[opm: dropped ")).count();
    assert!(jumps > 0 && jumps <= told, "{jumps} gaps, {told} records:\n{text}");
    assert_eq!(keeper(&world), Some(pid), "the same keeper");
    assert_no_flood(&world);
}

#[test]
fn the_end_of_a_task_that_cannot_be_written_is_written_once_there_is_room() {
    let Some(mut world) = World::new() else { return };
    if !tiny(&world, "run", 128) {
        return;
    }
    let script = witness("t") + "while ! [ -e go ]; do sleep 0.02; done; touch gone; exit 0";
    world.task("t", &script, "");
    world.service("a", &(witness("a") + "exec sleep 1000"), QUICK);
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    world.until("their first acts", || starts(&world, "t") + starts(&world, "a") == 2);
    fill(&world, "run");
    std::fs::write(world.path("go"), "").unwrap();
    world.until_phase("t", "done");
    let daemon = world.daemon_pid().unwrap();
    assert_idle(&world, daemon, "the supervisor");
    empty(&world, "run");
    // Whatever comes next writes what waits.
    assert_eq!(world.opm(&["restart", "a"]).code, 0, "{}", world.log());
    world.crash();
    assert_eq!(world.opm(&["daemon"]).code, 0, "{}", world.log());
    world.until_phase("a", "up");
    assert_eq!(world.phase("t"), "done", "{}", world.log());
    assert_eq!((starts(&world, "t"), starts(&world, "a")), (1, 2));
    world.assert_no_doubles();
    assert_no_flood(&world);
}

#[test]
fn with_few_descriptors_nothing_is_doubled_lost_or_spun() {
    let Some(mut world) = World::new() else { return };
    // With its FIFO and its log for each, the log keeper would need twice as many descriptors.
    let names: Vec<String> = (0..70).map(|n| format!("s{n}")).collect();
    for name in &names {
        let script = witness(name) + &format!("echo \"{name} run $$\"; exec sleep 1000");
        world.unit(name, &(in_shell(&script) + QUICK));
    }
    // For opm and for its log keeper.
    run_behind(&mut world, "ulimit -n 96");
    world.until("some to be up", || {
        world.rows().iter().filter(|row| row["phase"] == "up").count() >= 20
    });
    let daemon = world.daemon_pid().unwrap();
    // Restarts go on, ten a second at most for each that has no room.
    watch_for(Duration::from_secs(2), || !world.read("doubles").is_empty(), "doubled");
    let before = ticks(&world, daemon);
    watch_for(Duration::from_secs(1), || false, "");
    let used = ticks(&world, daemon) - before;
    assert!(used <= 60, "the supervisor used {used} hundredths of a second in one");
    let pid = keeper(&world).unwrap();
    assert_idle(&world, pid, "the log keeper");
    // A new supervisor with as few adopts what runs.
    let before: usize = names.iter().map(|name| starts(&world, name)).sum();
    world.crash();
    run_behind(&mut world, "ulimit -n 96");
    world.until("an answer", || world.rows().len() == 70);
    world.assert_no_doubles();
    world.crash();
    // Room: all come up, each once, and each has said so once.
    run_behind(&mut world, ":");
    world.until("all to be up", || {
        world.rows().iter().filter(|row| row["phase"] == "up").count() == 70
    });
    world.assert_no_doubles();
    eprintln!("{before} of 70 ran with few descriptors");
    let once = |name: &String| {
        let log = world.opm(&["logs", "--raw", name]).out;
        world
            .lines(&format!("{name}.starts"))
            .iter()
            .all(|pid| log.lines().filter(|line| *line == format!("{name} run {pid}")).count() == 1)
    };
    for name in &names {
        world.until(&format!("the lines of {name}"), || once(name));
    }
}

#[test]
fn a_limit_of_processes_passes() {
    if !is_root() {
        return skip("needs root to become somebody with a limit of processes");
    }
    let Some(mut world) = World::new() else { return };
    let Some(opm) = shared_program(&world) else { return };
    let wide = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; touch wide; wait";
    world.service("wide", wide, "ready: {file: ../wide}\n");
    for n in 0..12 {
        let name = format!("s{n}");
        let keys = format!("{QUICK}after: [wide]\n");
        world.service(&name, &(witness(&name) + "exec sleep 1000"), &keys);
    }
    // A number of a user that nobody else is; its processes are counted together.
    common::shell(world.dir.path(), "chmod -R a+rwX . && chmod 777 .");
    let log = File::create(world.path("opm.out")).unwrap();
    let mut command = world.command("setpriv");
    let number = 60_000 + std::process::id() % 5_000;
    let script = "exec prlimit --nproc=18 \"$0\" --root \"$1\" run --quiet units";
    command.args([&format!("--reuid={number}"), "--regid=60000", "--clear-groups"]);
    command.args(["sh", "-c", script]).arg(&opm).arg(world.root());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    world.spawn(command);
    let up = |world: &World| world.rows().iter().filter(|row| row["phase"] == "up").count();
    world.until("a start that found no room", || {
        world.log().contains("esource temporarily unavailable")
    });
    world.assert_no_doubles();
    let daemon = world.daemon_pid().unwrap();
    let before = ticks(&world, daemon);
    watch_for(Duration::from_secs(1), || false, "");
    let used = ticks(&world, daemon) - before;
    assert!(used <= 60, "the supervisor used {used} hundredths of a second in one");
    assert_no_flood(&world);
    assert_eq!(world.opm(&["stop", "wide"]).code, 0);
    world.until("all to be up", || up(&world) == 12);
    // One that is up has run its program, and not yet all of it.
    world.until("all to have begun", || (0..12).all(|n| starts(&world, &format!("s{n}")) > 0));
    world.assert_no_doubles();
    for n in 0..12 {
        assert_eq!(starts(&world, &format!("s{n}")), 1, "s{n}\n{}", world.log());
    }
}

/// The program where another user can run it.
fn shared_program(world: &World) -> Option<std::path::PathBuf> {
    let opm = world.path("opm-of-all");
    std::fs::copy(OPM, &opm).ok()?;
    Some(opm)
}

#[test]
fn a_supervisor_that_stood_still_notices_all_and_doubles_nothing() {
    let Some(world) = World::new() else { return };
    let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    for name in &names {
        world.service(name, &(witness(name) + "exec sleep 1000"), QUICK);
    }
    world.apply(0);
    world.until("their first acts", || names.iter().all(|name| starts(&world, name) == 1));
    let daemon = world.daemon_pid().unwrap();
    let pids: Vec<i32> = names.iter().map(|name| world.pid(name).unwrap()).collect();
    world.kill("STOP", daemon);
    // Fifteen die, five are to be stopped or restarted, and thirty ask how things are.
    for pid in &pids[5..] {
        world.kill("KILL", *pid);
    }
    let mut clients: Vec<_> = (0..30).map(|_| world.begin(&["status"])).collect();
    clients.push(world.begin(&["stop", "s0"]));
    clients.push(world.begin(&["restart", "s1"]));
    clients.push(world.begin(&["restart", "s6"]));
    watch_for(
        Duration::from_secs(1),
        || names.iter().any(|name| starts(&world, name) != 1),
        "a start by a supervisor that stands still",
    );
    world.kill("CONT", daemon);
    for client in clients {
        let said = common::Said::of_child(client);
        assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    }
    for name in &names[1..] {
        world.until_phase(name, "up");
        world.until("its acts", || starts(&world, name) >= if name == "s1" { 2 } else { 1 });
    }
    assert_eq!(world.phase("s0"), "down");
    for (n, name) in names.iter().enumerate() {
        let pid = world.pid(name);
        if n >= 5 {
            assert_ne!(pid, Some(pids[n]), "{name}");
        }
        let expected = match n {
            0 | 2 | 3 | 4 => 1..=1,
            // Its death was seen before or after the order: one start serves both, or each its own.
            6 => 2..=3,
            _ => 2..=2,
        };
        world.until("its first act", || expected.contains(&starts(&world, name)));
    }
    world.assert_no_doubles();
    assert_idle(&world, daemon, "the supervisor");
}

/// A clock for those who load it: the wall clock, moved by as many seconds as a file says.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("OPM_TEST_CLOCK");
    if (result != 0 || clock != CLOCK_REALTIME || !path) return result;
    char text[32] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return result;
    if (read(fd, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
    close(fd);
    return 0;
}
"#;

const TWENTY_YEARS: i64 = 20 * 365 * 24 * 60 * 60;

#[test]
fn steps_of_the_wall_clock_move_no_deadline() {
    let Some(mut world) = World::new() else { return };
    std::fs::write(world.path("clock.c"), CLOCK).unwrap();
    let built = common::shell(world.dir.path(), "cc -shared -fPIC -o clock.so clock.c");
    if !built.status.success() {
        return skip("no C compiler for a clock that can be moved");
    }
    let load = |path: &str| world.path(path).display().to_string();
    let env = [("LD_PRELOAD", load("clock.so")), ("OPM_TEST_CLOCK", load("moved-by"))];
    world.env.extend(env.map(|(name, value)| (name.to_owned(), value)));
    let step = |world: &World, seconds: i64| {
        std::fs::write(world.path("new"), seconds.to_string()).unwrap();
        std::fs::rename(world.path("new"), world.path("moved-by")).unwrap();
    };
    let delay = "restart: {policy: always, delay: 300ms, factor: 1, jitter: 0}\n";
    world.service("flaps", "echo $$ >> flaps.starts; exit 1", delay);
    world.service("slow", &(witness("slow") + "exec sleep 1000"), "ready: {delay: 600ms}\n");
    let stubborn = witness("stubborn") + "trap '' TERM; while :; do sleep 0.1; done";
    world.service("stubborn", &stubborn, "stop: {signal: TERM, timeout: 600ms}\n");
    world.unit("talks", &in_shell("while :; do echo line; sleep 0.1; done"));
    step(&world, 0);
    world.run_with(&["run", "--quiet", "units"]);
    world.until_phase("slow", "up");
    let kept = world.pid("talks");
    let year = |line: &str| line.get(..4).and_then(|year| year.parse::<i64>().ok());
    let mut first = None;
    world.until("its first line", || {
        first = year(&world.read("root/log/talks/current"));
        first.is_some()
    });
    let first = first.unwrap();
    for moved in [TWENTY_YEARS, -TWENTY_YEARS, 0] {
        world.until_phase("slow", "up");
        let orders = [world.begin(&["restart", "slow"]), world.begin(&["restart", "stubborn"])];
        let before = starts(&world, "flaps");
        let began = common::now();
        step(&world, moved);
        for order in orders {
            let said = common::Said::of_child(order);
            assert_eq!(said.code, 0, "{said:?}");
        }
        let took = began.elapsed();
        assert!(took > Duration::from_millis(500), "{took:?} for a delay of 600ms");
        world.until("five more starts", || starts(&world, "flaps") >= before + 5);
        let took = began.elapsed();
        assert!(took > Duration::from_millis(1_200), "five delays of 300ms took {took:?}");
        let count = u32::try_from(starts(&world, "flaps") - before).unwrap();
        assert!(took > Duration::from_millis(270) * (count - 1), "{count} starts in {took:?}");
        // The clock was moved: what is written now says so, in another file where it went back.
        let log = || world.read("root/log/talks/current");
        let wanted = first + moved / (365 * 24 * 60 * 60);
        world.until("its stamp", || {
            log().lines().last().and_then(year).is_some_and(|last| (last - wanted).abs() <= 1)
        });
        // Identities do not depend on it: the next supervisor adopts what runs.
        world.crash();
        world.run_with(&["run", "--quiet", "units"]);
        world.until_phase("talks", "up");
        assert_eq!(world.pid("talks"), kept, "{}", world.log());
    }
    world.assert_no_doubles();
    assert_eq!(world.opm(&["stop", "flaps", "talks"]).code, 0);
    assert_idle(&world, world.daemon_pid().unwrap(), "the supervisor");
}

#[test]
fn who_does_not_read_the_messages_holds_up_nothing() {
    let Some(world) = World::new() else { return };
    world.staying("a", "");
    let noisy = "restart: {policy: always, delay: 1ms, factor: 1}\n";
    world.service("noisy", "echo >> noisy.starts; exit 1", noisy);
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).args(["run", "units"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut opm = command.spawn().unwrap();
    let mut unread = opm.stderr.take().unwrap();
    // So little room that few messages fill it.
    let room = nix::fcntl::fcntl(&unread, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    world.until("more messages than there is room for", || {
        world.starts("noisy") > usize::try_from(room).unwrap() / 40 + 50
    });
    world.until_phase("a", "up");
    let main = world.pid("a").unwrap();
    world.kill("KILL", main);
    world.until("the next one", || world.pid("a").is_some_and(|pid| pid != main));
    // Who reads them later has them all.
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut unread, &mut text).unwrap();
            text
        });
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        reader.join().unwrap()
    });
    assert!(opm.wait().unwrap().success());
    for said in ["a: up", "noisy: command exited 1", "shutting down", "a: down"] {
        assert!(reader.contains(said), "{said}: {reader}");
    }
    assert!(!reader.contains("were lost"), "{reader}");
}
