//! The files of Unix sockets, where others may write in their directory: opm gives owner and mode to its own
//! file alone, and does not call a socket up that nobody reaches.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use common::{World, is_root};

/// A service with a socket, which is up; and beside it a file that is the operator's.
fn world() -> Option<World> {
    let world = World::new()?;
    fs::create_dir(world.path("w")).unwrap();
    let owner = if is_root() { ", user: '65534'" } else { "" };
    world.unit(
        "s",
        &format!("kind: socket\nfor: web\nlisten: [{{unix: ../w/s.sock, mode: '0666'{owner}}}]\n"),
    );
    world.unit("web", "command: [sleep, '1000']\nlogs: {to: null}\n");
    fs::write(world.path("secret"), "mine").unwrap();
    fs::set_permissions(world.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    world.apply(0);
    Some(world)
}

fn assert_secret(world: &World, when: &str) {
    let found = fs::metadata(world.path("secret")).unwrap();
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, own), "{when}");
}

#[test]
fn a_link_in_the_place_of_a_socket_leads_nowhere() {
    let Some(world) = world() else { return };
    let path = world.path("w/s.sock");
    let link = || {
        fs::remove_file(&path).unwrap();
        symlink("../secret", &path).unwrap();
    };
    link();
    assert_eq!(world.opm(&["reexec"]).code, 0);
    assert_secret(&world, "reexec");
    let said = world.opm(&["restart", "s"]);
    assert_secret(&world, "restart");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("there is a file of that name, and it is no socket"), "{said:?}");
    fs::remove_file(&path).unwrap();
    assert_eq!(world.opm(&["restart", "s"]).code, 0);
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket() && found.mode() & 0o7777 == 0o666);
    // The same where a supervisor finds it after a crash.
    link();
    world.kill("KILL", world.daemon_pid().unwrap());
    world.until("its end", || world.daemon_pid().is_none_or(|pid| !world.alive(pid)));
    assert_eq!(world.opm(&["daemon"]).code, 0);
    world.until("a look at it", || world.phase("s") != "unproven");
    assert_secret(&world, "crash");
}

#[test]
fn a_socket_of_somebody_else_in_the_place_of_one_is_left_alone_and_told() {
    let Some(world) = world() else { return };
    let path = world.path("w/s.sock");
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let said = world.opm(&["restart", "s"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("somebody listens there already"), "{said:?}");
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, nix::unistd::geteuid().as_raw()));
}

#[test]
fn a_socket_keeps_its_file_over_a_reexec_and_a_crash_and_gets_the_mode_that_it_is_to_have_now() {
    let Some(world) = world() else { return };
    let path = world.path("w/s.sock");
    let inode = || fs::symlink_metadata(&path).unwrap().ino();
    let first = inode();
    assert_eq!(world.opm(&["start", "web"]).code, 0);
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.kill("KILL", world.daemon_pid().unwrap());
    world.until("its end", || world.daemon_pid().is_none_or(|pid| !world.alive(pid)));
    let text = fs::read_to_string(world.path("units/s.yaml")).unwrap();
    world.unit("s", &text.replace("0666", "0640"));
    world.apply(0);
    let found = fs::symlink_metadata(&path).unwrap();
    assert_eq!((found.ino(), found.mode() & 0o7777), (first, 0o640));
}
