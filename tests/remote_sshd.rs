//! `-H` over a real ssh and a real sshd. The client starts the server itself and talks to it over
//! pipes, so that no port is needed; all else is as between two machines.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests run programs")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{OPM, Said, World, in_shell, is_root, shell, skip, until};

const SSHD: &str = "/usr/sbin/sshd";

/// A machine `far` with a daemon, and `empty`, which has no opm.
struct Far {
    world: World,
}

impl Far {
    fn new() -> Option<Self> {
        if !is_root() {
            skip(
                "sshd lets other users in only as themselves, and needs root for its own directory",
            );
            return None;
        }
        if !Path::new(SSHD).exists() || Command::new("ssh").arg("-V").output().is_err() {
            skip("ssh and sshd are not installed");
            return None;
        }
        let world = World::new()?;
        let dir = world.dir.path().display().to_string();
        // The directory that sshd wants, in the world's own /run.
        let mount = "mount -t tmpfs none /run && mkdir -m 755 /run/sshd";
        assert!(world.command("sh").args(["-c", mount]).status().unwrap().success());
        let keys = "for key in host user other; do ssh-keygen -q -t ed25519 -N '' -f $key; done; \
                    cp user.pub authorized; echo \"far $(cat host.pub)\" > known; \
                    echo \"empty $(cat host.pub)\" >> known; \
                    echo \"stranger $(cat other.pub)\" >> known";
        assert!(shell(world.dir.path(), keys).status.success());
        let sshd = format!(
            "HostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n\
             PermitRootLogin prohibit-password\nLogLevel ERROR\n"
        );
        let far = format!("{sshd}SetEnv PATH={dir}/bin:/usr/bin:/bin OPM_ROOT={dir}/root\n");
        fs::write(world.path("sshd_far"), far).unwrap();
        let empty = format!("{sshd}SetEnv PATH=/usr/bin:/bin\n");
        fs::write(world.path("sshd_empty"), empty).unwrap();
        let mut client = format!(
            "User root\nIdentityFile {dir}/user\nIdentitiesOnly yes\n\
             UserKnownHostsFile {dir}/known\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nLogLevel ERROR\n"
        );
        for (host, file) in [("far", "far"), ("stranger", "far"), ("empty", "empty")] {
            let server = format!("{SSHD} -i -e -f {dir}/sshd_{file} 2>> {dir}/sshd.log");
            client
                .extend([format!("Host {host}\n  HostKeyAlias {host}\n  ProxyCommand {server}\n")]);
        }
        fs::write(world.path("ssh_config"), client).unwrap();
        fs::create_dir(world.path("bin")).unwrap();
        symlink(OPM, world.path("bin/opm")).unwrap();
        Some(Self { world })
    }

    fn begin(&self, args: &[&str]) -> Child {
        let mut command = self.world.command("timeout");
        let config = self.world.path("ssh_config");
        command.args(["40", OPM, "--ssh", &format!("ssh -F {}", config.display())]).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn opm(&self, args: &[&str]) -> Said {
        Said::of_child(self.begin(args))
    }

    /// The processes of the world with these words in a row in their arguments.
    fn processes(&self, words: &[&str]) -> Vec<i32> {
        let entries = fs::read_dir(self.world.proc().unwrap()).unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_it = |pid: &i32| {
            let path = self.world.proc().unwrap().join(format!("{pid}/cmdline"));
            let line = fs::read(path).unwrap_or_default();
            let found: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            found.windows(words.len()).any(|some| some == words)
        };
        pids.filter(is_it).collect()
    }
}

#[test]
fn a_deployment_over_ssh() {
    let Some(far) = Far::new() else { return };
    let said = far.opm(&["-H", "far", "status"]);
    assert_eq!(said.code, 3, "{said:?}\n{}", far.world.read("sshd.log"));
    assert!(
        said.err.ends_with("cannot reach opm on `far`: no daemon can be reached there\n"),
        "{said:?}"
    );
    assert_eq!(far.world.opm(&["daemon"]).code, 0);
    far.world.unit("web", &in_shell("echo hello; exec sleep 1000"));
    let said = far.opm(&["-H", "far", "apply", "units"]);
    assert_eq!(
        (said.code, &*said.out),
        (0, "+ web (create)\n1 changed, generation 1\n"),
        "{said:?}"
    );
    assert_eq!(far.opm(&["-H", "root@far", "-H", "far", "status", "web"]).code, 0);
    until("the log", || far.opm(&["-H", "far", "logs", "--raw", "web"]).out == "hello\n");
    assert_eq!(far.opm(&["-H", "far", "shutdown"]).code, 0);

    let said = far.opm(&["-H", "empty", "status"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.err.contains("cannot reach opm on `empty`: there is no opm"), "{said:?}");
    let said = far.opm(&["-H", "stranger", "status"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.err.contains("Host key verification failed"), "ssh's own words: {said:?}");
    assert!(said.err.ends_with("cannot reach opm on `stranger`: ssh failed\n"), "{said:?}");
}

#[test]
fn nothing_is_left_on_either_side_of_a_command_that_is_ended() {
    let Some(far) = Far::new() else { return };
    assert_eq!(far.world.opm(&["daemon"]).code, 0);
    far.world.unit("web", &in_shell("echo hello; exec sleep 1000"));
    assert_eq!(far.opm(&["-H", "far", "apply", "units"]).code, 0);
    let follow = ["-H", "far", "logs", "-f", "web"];
    for (args, there) in [
        (&["-H", "far", "events"][..], &["opm", "proxy"][..]),
        (&["-H", "far", "wait", "--for", "down", "--timeout", "1h", "web"], &["opm", "proxy"]),
        (&follow, &["logs", "--follow"]),
    ] {
        // By `kill -9` the client leaves an ssh that prints on; what is asked through a pipe ends.
        for signal in ["INT", "TERM", if args == follow { "HUP" } else { "KILL" }] {
            let mut child = far.begin(args);
            let mut is_over = false;
            far.world.until("its far side", || {
                is_over = child.try_wait().unwrap().is_some();
                is_over || !far.processes(there).is_empty()
            });
            if is_over {
                let sshd = far.world.read("sshd.log");
                panic!("{args:?} has ended: {:?}\n{sshd}", Said::of_child(child));
            }
            // The first is timeout(1); others are on their way to be ssh.
            let pid = *far.processes(&[OPM, "--ssh"]).get(1).unwrap();
            if signal == "INT" {
                // To the whole group, as a terminal does.
                let group = far.processes(&["timeout", "40", OPM]);
                far.world.kill("INT", -group.first().unwrap());
            } else {
                far.world.kill(signal, pid);
            }
            child.wait().unwrap();
            let what = format!("the end of {args:?} by {signal}");
            far.world.until(&what, || far.processes(there).is_empty());
            far.world.until(&what, || far.processes(&["ssh", "-F"]).is_empty());
        }
    }
}
