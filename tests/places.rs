//! Where opm has its run directory when the usual one cannot be made: in places where anybody may make
//! directories, of which only its own are used.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;

use common::{OPM, World, is_root, skip};

/// The exit code of a command that finds no daemon.
const NO_DAEMON: i32 = 3;
/// The one of `opm status UNIT` where there is no such unit.
const NO_UNIT: i32 = 4;
/// Runs a command as a user without anything.
const NOBODY: &str =
    "setpriv --reuid 65534 --regid 65534 --clear-groups env -u XDG_RUNTIME_DIR HOME=/nowhere";

/// A namespace in which everything outside the world's own directory is empty: `/dev/shm` and `/tmp`, which can be
/// written, and the directories of the system scope.
fn apart() -> Option<World> {
    if !is_root() {
        skip("needs root to mount");
        return None;
    }
    let world = World::new()?;
    // The program may be below /tmp too.
    fs::copy(OPM, world.path("opm")).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(world.dir.path(), everybody).unwrap();
    world.unit("a", "command: [sleep, '1000']\nlogs: {to: null}\n");
    sh(
        &world,
        "mkdir -p /run/opm /var/lib/opm /var/log/opm
         mount -t tmpfs none /dev/shm && mkdir /dev/shm/w && mount --bind \"$PWD\" /dev/shm/w
         mount -t tmpfs none /tmp && mkdir -p \"$PWD\" && mount --move /dev/shm/w \"$PWD\"
         for dir in /run /var/lib /var/log; do mount -t tmpfs none $dir && mkdir $dir/opm; done",
    );
    Some(world)
}

/// What a script prints, with `opm` in its path. It has to succeed.
fn sh(world: &World, script: &str) -> String {
    let script =
        format!("cd {}; PATH=$PWD:$PATH nobody='{NOBODY}'; {script}", world.dir.path().display());
    let output = world.command("sh").args(["-ec", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {output:?}");
    text
}

fn cannot_be_written(world: &World) {
    sh(world, "for dir in /run /var/lib /var/log; do mount -o remount,ro $dir; done");
}

/// The exit code of a command, and what it says.
fn code(world: &World, command: &str) -> (i32, String) {
    let said = sh(world, &format!("code=0; {command} 2>&1 || code=$?; echo $code"));
    let (said, code) = said.trim_end().rsplit_once('\n').unwrap_or(("", said.trim_end()));
    (code.parse().unwrap(), said.to_owned())
}

#[test]
fn what_another_user_has_put_there_is_neither_asked_nor_used() {
    let Some(world) = apart() else { return };
    cannot_be_written(&world);
    sh(
        &world,
        "mkdir -m 755 /dev/shm/opm-0; chown 65534 /dev/shm/opm-0
         $nobody opm --root /dev/shm/opm-0 daemon
         test -S /dev/shm/opm-0/run/control.sock",
    );
    let (status, said) = code(&world, "opm status");
    assert!(status == NO_DAEMON && said.contains("no daemon runs"), "{status}: {said}");
    // An apply begins a daemon of its own, elsewhere.
    sh(&world, "opm apply units");
    assert_eq!(sh(&world, "stat -c %u /tmp/opm-0/run/control.sock"), "0\n");
    assert_eq!(code(&world, "opm status a").0, 0);
    let other = format!("{NOBODY} opm --root /dev/shm/opm-0 status a");
    assert_eq!(code(&world, &other).0, NO_UNIT);
    // That is the daemon of no other root.
    let (status, said) = code(&world, "opm --root other status");
    assert!(status == NO_DAEMON && said.contains("other/run/control.sock"), "{status}: {said}");
}

#[test]
fn a_place_in_another_user_s_directory_is_refused_by_daemon_and_command() {
    let Some(world) = apart() else { return };
    // Who owns a directory may put another one in the place of what is in it.
    sh(
        &world,
        "for place in /tmp /dev/shm; do
           mkdir -pm 755 $place/opm-65534/run; chown 65533 $place/opm-65534; chown 65534 $place/opm-65534/run
         done",
    );
    for command in ["status", "daemon"] {
        let (status, said) = code(&world, &format!("{NOBODY} opm {command}"));
        assert!(status != 0 && said.contains("user 65533"), "{command}: {status}: {said}");
    }
}

#[test]
fn a_reexec_stays_where_all_is_although_the_usual_place_can_be_had_by_now() {
    let Some(world) = apart() else { return };
    cannot_be_written(&world);
    sh(
        &world,
        "opm apply units; opm stop a --reason lunch; test -S /dev/shm/opm-0/run/control.sock",
    );
    sh(&world, "for dir in /run /var/lib /var/log; do mount -o remount,rw $dir; done");
    sh(&world, "opm reexec");
    let why = sh(&world, "opm why a");
    assert!(why.contains("lunch"), "{why}");
    sh(&world, "opm start a; opm reexec");
    cannot_be_written(&world);
    let pid = |world: &World| sh(world, "opm status --json | grep '\"pid\"'");
    let before = pid(&world);
    sh(&world, "opm reexec");
    assert_eq!(pid(&world), before);
    sh(&world, "test ! -e /run/opm/control.sock; opm shutdown");
}

#[test]
fn a_socket_that_nobody_listens_at_hides_no_daemon_elsewhere() {
    let Some(world) = apart() else { return };
    // As in an image that was made of a file system on which opm ran.
    sh(&world, "opm daemon; kill -9 \"$(cat /run/opm/lock)\"; test -S /run/opm/control.sock");
    cannot_be_written(&world);
    sh(
        &world,
        "opm apply units; test -S /dev/shm/opm-0/run/control.sock; opm status a; opm stop a",
    );
}

#[test]
fn after_a_crash_all_is_where_it_was_wherever_one_would_look_for_a_place_by_then() {
    let Some(world) = apart() else { return };
    let pid = |world: &World| sh(world, "opm status --json | grep '\"pid\"'");
    let crash = "kill -9 $(cat /dev/shm/opm-0/run/lock); opm daemon";
    cannot_be_written(&world);
    sh(&world, "opm apply units; test -S /dev/shm/opm-0/run/control.sock");
    let before = pid(&world);
    sh(&world, "for dir in /run /var/lib /var/log; do mount -o remount,rw $dir; done");
    sh(&world, crash);
    assert_eq!(pid(&world), before, "although the usual places can be written again");
    cannot_be_written(&world);
    sh(&world, crash);
    assert_eq!(pid(&world), before);
    sh(&world, "test ! -e /run/opm/control.sock; test ! -e /var/lib/opm/desired.json");
    // What another opm has there is not its own.
    let (status, said) = code(&world, "opm --root other daemon && opm --root other status a");
    assert!(status == NO_UNIT, "{status}: {said}");
}

#[test]
fn after_a_crash_a_user_s_opm_is_found_with_another_runtime_directory() {
    let Some(world) = apart() else { return };
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups env";
    sh(&world, "mkdir home one two; chown 65534 home one two");
    let pid = |runtime: &str| {
        sh(&world, &format!("{user} {runtime} HOME=$PWD/home opm status --json | grep '\"pid\"'"))
    };
    sh(&world, &format!("{user} XDG_RUNTIME_DIR=$PWD/one HOME=$PWD/home opm apply units"));
    let before = pid("XDG_RUNTIME_DIR=$PWD/one");
    for now in ["XDG_RUNTIME_DIR=$PWD/two", "-u XDG_RUNTIME_DIR", "XDG_RUNTIME_DIR=$PWD/one"] {
        // The one who asks has it, and the daemon had not; and the other way round.
        assert_eq!(pid(now), before, "{now}");
        let daemon = format!("{user} {now} HOME=$PWD/home opm daemon");
        sh(&world, &format!("kill -9 $(cat home/.local/state/opm/lock); {daemon}"));
        for asks in [now, "XDG_RUNTIME_DIR=$PWD/one"] {
            assert_eq!(pid(asks), before, "{now}, asked with {asks}");
        }
    }
}

#[test]
fn after_a_crash_a_run_directory_that_cannot_be_written_any_more_still_says_what_runs() {
    let Some(world) = apart() else { return };
    let pid = |world: &World| sh(world, "opm status --json | grep '\"pid\"'");
    sh(&world, "opm apply units");
    let before = pid(&world);
    sh(&world, "kill -9 $(cat /run/opm/lock)");
    cannot_be_written(&world);
    sh(&world, "opm daemon; test -S /dev/shm/opm-0/run/control.sock");
    assert_eq!(pid(&world), before);
    // What is known since then is known there.
    sh(&world, "opm restart a");
    let before = pid(&world);
    sh(&world, "for dir in /run /var/lib /var/log; do mount -o remount,rw $dir; done");
    sh(&world, "kill -9 $(cat /dev/shm/opm-0/run/lock); opm daemon");
    assert_eq!(pid(&world), before);
}

#[test]
fn what_is_saved_where_nothing_can_be_written_is_what_runs() {
    let Some(world) = apart() else { return };
    sh(&world, "opm apply units; opm shutdown");
    cannot_be_written(&world);
    // As after a boot: nothing is known of what ran.
    sh(&world, "mount -t tmpfs none /run; opm daemon");
    sh(&world, "opm start a; opm status a; test -e /run/opm/state/desired.json");
    sh(&world, "opm stop a --reason lunch; kill -9 $(cat /run/opm/lock); opm daemon");
    let why = sh(&world, "opm why a");
    assert!(why.contains("lunch"), "what was saved here since is newer: {why}");
}

#[test]
fn a_second_daemon_is_refused_although_the_first_one_s_directories_cannot_be_written_any_more() {
    let Some(world) = apart() else { return };
    sh(&world, "opm apply units");
    let before = sh(&world, "opm status --json | grep '\"pid\"'");
    // What it has open it can write on.
    sh(
        &world,
        "for dir in /run /var/lib /var/log; do
           mount --bind $dir $dir; mount -o remount,bind,ro $dir
         done",
    );
    let (status, said) = code(&world, "opm daemon");
    assert!(status == 4 && said.contains("opm runs already"), "{status}: {said}");
    assert_eq!(sh(&world, "opm status --json | grep '\"pid\"'"), before);
    // Nor with another runtime directory, where the state has to be in that.
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nowhere";
    sh(&world, "mkdir one two; chown 65534 one two");
    sh(
        &world,
        &format!("{user} XDG_RUNTIME_DIR=$PWD/one XDG_STATE_HOME=/var/lib/x opm apply units"),
    );
    let two = format!("{user} XDG_RUNTIME_DIR=$PWD/two XDG_STATE_HOME=/var/lib/x opm");
    let (status, said) = code(&world, &format!("{two} daemon"));
    assert!(status == 4 && said.contains("opm runs already"), "{status}: {said}");
    assert_eq!(code(&world, &format!("{two} status a")).0, 0, "and is found there");
}

#[test]
fn each_root_has_a_place_of_its_own_where_none_can_be_made() {
    let Some(world) = apart() else { return };
    sh(&world, "mkdir /run/ro");
    cannot_be_written(&world);
    let root = |name: &str| format!("opm --root /run/ro/{name}");
    sh(&world, &format!("{} apply units", root("one")));
    for other in [root("two"), "opm".to_owned()] {
        assert_eq!(code(&world, &format!("{other} status a")).0, NO_DAEMON, "{other}");
        assert_eq!(code(&world, &format!("{other} daemon")).0, 0, "{other}");
        assert_eq!(code(&world, &format!("{other} status a")).0, NO_UNIT, "{other}");
    }
    assert_eq!(code(&world, &format!("{} status a", root("one"))).0, 0);
}

#[test]
fn what_is_noted_of_a_place_that_another_opm_has_by_now_counts_no_more() {
    let Some(world) = apart() else { return };
    sh(&world, "mkdir home one two state; chown 65534 home one two state");
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=$PWD/home";
    let first = format!("{user} XDG_RUNTIME_DIR=$PWD/one opm");
    sh(&world, &format!("{first} daemon; {first} shutdown"));
    let other = format!("{user} XDG_RUNTIME_DIR=$PWD/one XDG_STATE_HOME=$PWD/state opm");
    sh(&world, &format!("{other} apply units"));
    let again = format!("{user} XDG_RUNTIME_DIR=$PWD/two opm");
    assert_eq!(code(&world, &format!("{again} status a")).0, NO_DAEMON);
    assert_eq!(code(&world, &format!("{again} daemon")).0, 0);
    assert_eq!(code(&world, &format!("{again} status a")).0, NO_UNIT);
    assert_eq!(code(&world, &format!("{other} status a")).0, 0);
}

#[test]
fn directories_that_were_removed_are_made_again_before_a_reexec_and_at_a_start() {
    let Some(world) = apart() else { return };
    sh(&world, "opm apply units");
    let pid = |world: &World| sh(world, "opm status --json | grep '\"pid\"'");
    let before = pid(&world);
    for gone in ["/var/lib/opm", "/var/log/opm", "/run/opm/log /run/opm/notify"] {
        // What a removed directory is mounted on stays.
        sh(&world, &format!("rm -rf {gone}/* {gone} 2>/dev/null || true; opm reexec"));
        assert_eq!(pid(&world), before, "{gone}");
    }
    sh(&world, "kill -9 $(cat /var/lib/opm/lock); rm -rf /var/log/opm; opm daemon");
    assert_eq!(pid(&world), before);
}

#[test]
fn a_note_that_could_not_be_written_is_written_later() {
    let Some(world) = apart() else { return };
    sh(&world, "mkdir home one two; chown 65534 home one two; mkdir -p home/.local/state/opm");
    // Something is in its way, and then no more.
    sh(&world, "mkdir -p home/.local/state/opm/places.json/x; chown -R 65534 home");
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=$PWD/home";
    let one = format!("{user} XDG_RUNTIME_DIR=$PWD/one opm");
    sh(&world, &format!("{one} daemon"));
    sh(&world, &format!("rm -r home/.local/state/opm/places.json; {one} apply units"));
    let before = sh(&world, &format!("{one} status --json | grep '\"pid\"'"));
    let two = format!("{user} XDG_RUNTIME_DIR=$PWD/two opm");
    sh(&world, &format!("kill -9 $(cat home/.local/state/opm/lock); {two} daemon"));
    assert_eq!(sh(&world, &format!("{two} status --json | grep '\"pid\"'")), before);
}
