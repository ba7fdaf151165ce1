//! Programs that start as root, become somebody else, and open `/dev/stdout`, `/dev/stderr` or
//! `/proc/self/fd/1` by name, as they do in containers: each line is in the log, once.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests run programs")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use common::{World, in_shell, is_root, skip};

/// A world into which other users may look; `None` where nobody can become another one, or a
/// program is missing.
fn world(programs: &[&str]) -> Option<World> {
    if !is_root() {
        skip("only root can become another user");
        return None;
    }
    for program in programs {
        if Command::new("which").arg(program).output().is_ok_and(|said| !said.status.success()) {
            skip(&format!("{program} is not installed"));
            return None;
        }
    }
    let world = World::new()?;
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Some(world)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks for a path as soon as somebody listens; what came.
fn get(world: &World, port: u16, path: &str) -> String {
    let mut stream = None;
    world.until("somebody to listen", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// How many lines of a unit's log have this in them.
fn count(world: &World, unit: &str, text: &str) -> usize {
    let said = world.opm(&["logs", "--raw", unit]);
    said.out.lines().filter(|line| line.contains(text)).count()
}

fn until_count(world: &World, unit: &str, text: &str, lines: usize) {
    world.until(&format!("{text} from {unit}"), || count(world, unit, text) >= lines);
}

#[test]
fn a_program_that_became_another_user_opens_its_output_by_name() {
    let Some(world) = world(&["setpriv"]) else { return };
    let names = ["/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "/proc/self/fd/2", "/dev/fd/1"];
    let opens: String = names
        .iter()
        .flat_map(|name| {
            [format!("echo 'to {name}.' > {name}; "), format!("echo 'end of {name}.' >> {name}; ")]
        })
        .collect();
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c";
    let script = format!("{nobody} \"{opens}\"; echo done; exec sleep 1000");
    world.unit("drops", &in_shell(&script));
    world.unit(
        "user",
        &(in_shell(&format!("{opens} echo done; exec sleep 1000")) + "user: nobody\n"),
    );
    world.apply(0);
    for unit in ["drops", "user"] {
        until_count(&world, unit, "done", 1);
        for name in names {
            for text in [format!("to {name}."), format!("end of {name}.")] {
                assert_eq!(count(&world, unit, &text), 1, "{unit}: {text}");
            }
        }
    }
    // Others cannot: where the names are, nobody comes in.
    let fifo = world.root().join("run/log/drops.fifo");
    let mut other = world.command("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "echo x > $0"]);
    assert!(!other.arg(&fifo).output().unwrap().status.success());
    assert!(fifo.exists());
}

#[test]
fn nginx_and_php_fpm_as_in_their_containers() {
    let Some(world) = world(&["nginx"]) else { return };
    let Some(php) = php_fpm() else { return skip("php-fpm is not installed") };
    let dir = world.dir.path().display().to_string();
    let port = free_port();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = kinds.map(|kind| format!("  {kind}_temp_path {dir}/nginx-{kind};\n")).concat();
    let nginx = format!(
        "user www-data;\ndaemon off;\npid {dir}/nginx.pid;\nerror_log /dev/stderr notice;\n\
         worker_processes 1;\nevents {{ worker_connections 64; }}\nhttp {{\n{temporary}\
         \x20 access_log /dev/stdout;\n  server {{\n    listen 127.0.0.1:{port};\n\
         \x20   location / {{ return 200 ok; }}\n    location /php {{\n\
         \x20     fastcgi_pass unix:{dir}/php.sock;\n\
         \x20     fastcgi_param SCRIPT_FILENAME {dir}/test.php;\n\
         \x20     fastcgi_param REQUEST_METHOD $request_method;\n    }}\n  }}\n}}\n"
    );
    fs::write(world.path("nginx.conf"), nginx).unwrap();
    let fpm = format!(
        "[global]\nerror_log = /proc/self/fd/2\ndaemonize = no\n[www]\nuser = www-data\n\
         group = www-data\nlisten = {dir}/php.sock\nlisten.owner = www-data\npm = static\n\
         pm.max_children = 1\naccess.log = /proc/self/fd/2\naccess.format = \"asked %m\"\n\
         catch_workers_output = yes\ndecorate_workers_output = no\n"
    );
    fs::write(world.path("php.conf"), fpm).unwrap();
    let script = "<?php file_put_contents('php://stderr', \"said by PHP\\n\"); echo 'made by PHP';";
    fs::write(world.path("test.php"), script).unwrap();
    world.unit(
        "php",
        &format!(
            "command: [{}, -n, -y, {dir}/php.conf]\nready: {{file: {dir}/php.sock}}\n",
            php.display()
        ),
    );
    let command = format!("[nginx, -e, /dev/stderr, -c, {dir}/nginx.conf]");
    world.unit(
        "nginx",
        &format!("command: {command}\nrequires: [php]\nready: {{file: {dir}/nginx.pid}}\n"),
    );
    world.apply(0);
    assert!(get(&world, port, "/one").ends_with("ok"));
    assert!(get(&world, port, "/php").ends_with("made by PHP"), "{}", world.opm(&["logs"]).out);
    // A worker opens its logs again, and is no root any more.
    assert_eq!(world.opm(&["kill", "-s", "USR1", "nginx"]).code, 0);
    until_count(&world, "nginx", "reopening logs", 2);
    assert!(get(&world, port, "/two").ends_with("ok"));
    assert!(get(&world, port, "/last").ends_with("ok"));
    until_count(&world, "nginx", "GET /last", 1);
    for text in ["GET /one", "GET /php", "GET /two", "GET /last"] {
        assert_eq!(
            count(&world, "nginx", text),
            1,
            "{text}: {}",
            world.opm(&["logs", "nginx"]).out
        );
    }
    for text in ["asked GET", "said by PHP"] {
        until_count(&world, "php", text, 1);
        assert_eq!(count(&world, "php", text), 1, "{}", world.opm(&["logs", "php"]).out);
    }
}

/// Debian puts the version into the name.
fn php_fpm() -> Option<PathBuf> {
    let entries = fs::read_dir("/usr/sbin").ok()?.flatten();
    let is_it = |path: &PathBuf| path.to_string_lossy().contains("/php-fpm");
    entries.map(|entry| entry.path()).find(is_it)
}

#[test]
fn apache_as_in_its_container() {
    let Some(world) = world(&["apache2"]) else { return };
    let dir = world.dir.path().display().to_string();
    let port = free_port();
    fs::create_dir(world.path("www")).unwrap();
    fs::write(world.path("www/index.html"), "ok").unwrap();
    let modules = "/usr/lib/apache2/modules";
    let conf = format!(
        "ServerRoot {dir}\nServerName localhost\nDefaultRuntimeDir {dir}\nPidFile {dir}/apache.pid\n\
         LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
         LoadModule authz_core_module {modules}/mod_authz_core.so\nStartServers 1\n\
         Listen 127.0.0.1:{port}\nUser www-data\nGroup www-data\nErrorLog /proc/self/fd/2\n\
         LogFormat \"%r by %U.\" short\nCustomLog /proc/self/fd/1 short\nDocumentRoot {dir}/www\n"
    );
    fs::write(world.path("apache.conf"), conf).unwrap();
    world.unit("apache", &format!("command: [apache2, -D, FOREGROUND, -f, {dir}/apache.conf]\n"));
    world.apply(0);
    assert!(get(&world, port, "/index.html?one").ends_with("ok"));
    // It opens its logs again.
    assert_eq!(world.opm(&["kill", "-s", "USR1", "apache"]).code, 0);
    until_count(&world, "apache", "resuming normal operations", 2);
    assert!(get(&world, port, "/index.html?two").ends_with("ok"));
    assert!(get(&world, port, "/index.html?last").ends_with("ok"));
    until_count(&world, "apache", "?last HTTP", 1);
    for text in ["?one HTTP", "?two HTTP", "?last HTTP"] {
        assert_eq!(count(&world, "apache", text), 1, "{}", world.opm(&["logs", "apache"]).out);
    }
}
