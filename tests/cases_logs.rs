//! Cases LOGFILE with all of opm: its service, its log keeper, and what an operator sees.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{OPM, World, in_shell, is_root, skip, watch_for};

/// A number that its program counts up after each line.
fn counted(world: &World) -> usize {
    world.read("count").trim().parse().unwrap_or(0)
}

/// Waits until the program has written more.
fn more(world: &World, what: &str) {
    let now = counted(world);
    world.until(what, || counted(world) > now + 20);
}

const TALKS: &str = "i=0; while :; do i=$((i+1)); echo line $i; echo $i > count; sleep 0.002; done";

#[test]
fn case_069_a_service_runs_on_when_its_log_file_is_taken_away() {
    let Some(mut world) = World::new() else { return };
    fs::create_dir(world.path("out")).unwrap();
    let logs = "logs: {to: {path: ../out/l.log}, max_size: 4K, keep: 2}\n";
    world.unit("l", &(in_shell(TALKS) + logs));
    world.run();
    let size = || fs::metadata(world.path("out/l.log")).map_or(0, |file| file.len());
    world.until("a log", || size() > 0);
    let pid = world.pid("l");
    fs::remove_file(world.path("out/l.log")).unwrap();
    world.until("a new file", || size() > 0);
    let finished = || {
        let names = fs::read_dir(world.path("out")).unwrap().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("l.log.0")).count()
    };
    world.until("a finished file", || finished() > 0);
    more(&world, "lines without the file");
    // In the middle of a rotation there is one more.
    assert!(finished() <= 3, "{}", finished());
    world.until("it to be gone", || fs::remove_dir_all(world.path("out")).is_ok());
    more(&world, "lines without the directory");
    // A file is where the directory has to be: that cannot work, and stops nobody either.
    world.until("its place to be taken", || {
        fs::remove_dir_all(world.path("out")).ok();
        fs::write(world.path("out"), "").is_ok()
    });
    more(&world, "lines without a place");
    assert_eq!((world.pid("l"), world.phase("l")), (pid, "up".to_owned()));
    world.until("a complaint", || world.log().contains("l.log"));
    fs::remove_file(world.path("out")).unwrap();
    world.until("the file again", || size() > 0);
    assert_eq!(world.pid("l"), pid);
}

#[test]
fn case_070_a_full_disk_holds_up_no_unit_and_nothing_is_lost_unsaid() {
    if !is_root() {
        return skip("needs root to mount a tmpfs");
    }
    let Some(mut world) = World::new() else { return };
    fs::create_dir(world.path("small")).unwrap();
    let mut mount = world.command("mount");
    mount.args(["-t", "tmpfs", "-o", "size=256k", "small"]).arg(world.path("small"));
    assert!(mount.status().unwrap().success());
    let flood = "i=0; while :; do i=$((i+1)); head -c 5000 /dev/zero | tr '\\0' x; echo; \
                 echo $i > count; sleep 0.002; done";
    world.unit("f", &(in_shell(flood) + "logs: {to: {path: ../small/f.log}, max_size: 1G}\n"));
    world.service("o", "exec sleep 1000", "");
    world.run();
    world.until_phase("f", "up");
    let pid = world.pid("f");
    // By the whole path: a working directory from outside the namespace does not show the mount.
    let see = |script: &str| {
        let small = world.path("small");
        let mut shell = world.command("sh");
        let output = shell.args(["-c", script, "sh"]).arg(small).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    world.until("a full disk", || see("df --output=avail $1 | tail -1") == "0");
    more(&world, "lines on a full disk");
    assert_eq!(world.opm(&["restart", "o"]).code, 0);
    assert_eq!((world.pid("f"), world.phase("f")), (pid, "up".to_owned()));
    see(": > $1/f.log");
    world.until("what was dropped to be told", || {
        see("grep -c dropped $1/f.log").parse::<u32>().is_ok_and(|count| count > 0)
    });
    assert_eq!(world.pid("f"), pid);
}

#[test]
fn case_072_another_user_writes_to_opms_output_whatever_that_is() {
    if !is_root() {
        return skip("only root can become another user");
    }
    for kind in ["pipe", "socket", "file"] {
        let Some(mut world) = World::new() else { return };
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Through the keeper, where a program may also open its output anew, and directly.
        let twice = "echo hi; echo again > /dev/stdout; exec sleep 1000";
        world.unit("k", &(in_shell(twice) + "user: nobody\nlogs: {to: console}\n"));
        let once = "echo direct; exec sleep 1000";
        world.unit("d", &(in_shell(once) + "user: nobody\nlogs: {to: inherit}\n"));
        let (theirs, ours): (OwnedFd, Option<Box<dyn std::io::Read + Send>>) = match kind {
            "pipe" => {
                let (read, write) = std::io::pipe().unwrap();
                (write.into(), Some(Box::new(read)))
            }
            "socket" => {
                let (end, other) = UnixStream::pair().unwrap();
                (end.into(), Some(Box::new(other)))
            }
            _ => {
                let file = fs::File::create(world.path("opm.stdout")).unwrap();
                file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
                (file.into(), None)
            }
        };
        let mut command = world.command(OPM);
        command.arg("--root").arg(world.root()).args(["run", "units"]);
        command.stdout(theirs).stderr(fs::File::create(world.path("opm.out")).unwrap());
        world.spawn(command);
        let mut missing = vec!["hi", "again", "direct"];
        match ours {
            Some(ours) => {
                // It ends when all three came: a test that waits in vain is ended from outside.
                for line in BufReader::new(ours).lines() {
                    let line = line.unwrap();
                    missing.retain(|word| !line.ends_with(word));
                    if missing.is_empty() {
                        break;
                    }
                }
                assert!(missing.is_empty(), "{kind}: {missing:?}\n{}", world.log());
            }
            None => world.until("all three lines", || {
                let text = world.read("opm.stdout");
                missing.iter().all(|word| text.lines().any(|line| line.ends_with(word)))
            }),
        }
        let gone = || world.phase("k") != "up" || world.phase("d") != "up";
        watch_for(Duration::from_millis(100), gone, kind);
    }
}
