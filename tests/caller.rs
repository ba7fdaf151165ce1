//! What whoever starts opm has set, and what is no part of what is wanted.
mod common;

use common::{OPM, World, skip};

/// What the shell of whoever starts a daemon has set is no part of what is wanted.
#[test]
fn who_starts_the_daemon_and_how_makes_no_difference() {
    if !nix::unistd::geteuid().is_root() {
        return skip("who is not root cannot be another user");
    }
    let Some(world) = World::new() else { return };
    std::fs::set_permissions(world.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let keys = "ready: {notify: true}\nstart_timeout: 5s\nuser: nobody\nrestart: never\n";
    let ready = "import socket, os, time\n\
                 s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                 s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n\
                 print(os.getcwd())\n\
                 time.sleep(1000)\n";
    std::fs::write(world.path("ready.py"), ready).unwrap();
    let script = world.path("ready.py").display().to_string();
    world.unit("web", &format!("command: [python3, {script}]\n{keys}"));
    world.unit("tick", "kind: task\ncommand: ['true']\nschedule: '0 12 * * *'\n");
    // The directory of the unit is closed to the service's user.
    let units = world.path("units");
    std::fs::set_permissions(&units, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for umask in ["077", "027", "777"] {
        let mut command = world.command("sh");
        let root = world.root();
        let script = "umask $2; TZ=ABC-7:13 exec \"$0\" --root \"$1\" apply units";
        let said = command.args(["-c", script, OPM]).arg(&root).arg(umask).output().unwrap();
        assert_eq!(said.status.code(), Some(0), "{umask}: {said:?}");
        let daemon = world.daemon_pid().unwrap();
        let due = world.row("tick")["next_run"].as_str().unwrap().to_owned();
        assert!(!due.contains("07:13"), "{due} is the system's time, and not the shell's");
        let pid = world.pid("web").unwrap();
        let cwd = std::fs::read_link(world.proc().unwrap().join(format!("{pid}/cwd"))).unwrap();
        assert_eq!(cwd, std::path::Path::new("/"), "its own directory is closed to it");
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        let daemon = world.proc().unwrap().join(daemon.to_string());
        world.until("its end", || !daemon.exists());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
