//! Other machines for `-H`: directories, and a script that is ssh.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{OPM, Said, World};

/// Runs the command line in the host's directory, by the host's own shell where it has one.
const SSH: &str = r#"#!/bin/sh
printf '%s\n' "$@" >> "$FAR/ssh.arguments"
while [ "$1" != -- ]; do shift; done
host=${2##*@}
cd "$FAR/hosts/$host" 2> /dev/null || { echo "ssh: Could not resolve hostname $host" >&2; exit 255; }
echo $$ >> ssh.pids
export OPM_ROOT="$PWD/root" PATH="$FAR/bin:$PATH"
[ -x shell ] && exec ./shell -c "$3"
exec sh -c "exec $3"
"#;

/// Hosts, each with an opm, and none with a daemon yet.
pub struct Far {
    pub world: World,
}

impl Far {
    pub fn new(hosts: &[&str]) -> Option<Self> {
        World::new().map(|world| Self::of(world, hosts))
    }

    /// Hosts on which no daemon will run.
    pub fn bare(hosts: &[&str]) -> Self {
        Self::of(World::bare(), hosts)
    }

    fn of(world: World, hosts: &[&str]) -> Self {
        for host in hosts {
            fs::create_dir_all(world.path("hosts").join(host)).unwrap();
        }
        fs::create_dir(world.path("bin")).unwrap();
        symlink(OPM, world.path("bin/opm")).unwrap();
        program(&world.path("bin/ssh"), SSH);
        Self { world }
    }

    /// A program for which the hosts are there, and which finds opm.
    pub fn program(&self, program: &str) -> Command {
        let mut command = self.world.command("timeout");
        let path = format!("{}:/usr/bin:/bin", self.world.path("bin").display());
        command.args(["40", program]).env("FAR", self.world.dir.path()).env("PATH", path);
        command.env("OPM_SSH", self.world.path("bin/ssh"));
        // Of this machine, and so of no matter.
        command.env("OPM_ROOT", self.world.path("here"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(OPM);
        command.args(args);
        command
    }

    pub fn begin(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    pub fn opm(&self, args: &[&str]) -> Said {
        Said::of_child(self.begin(args))
    }

    pub fn host(&self, name: &str) -> PathBuf {
        self.world.path("hosts").join(name)
    }

    /// What a command on the host itself says.
    pub fn on(&self, host: &str, args: &[&str]) -> Said {
        let mut command = self.command(args);
        Said::of_child(command.env("OPM_ROOT", self.host(host).join("root")).spawn().unwrap())
    }

    pub fn daemons(&self, hosts: &[&str]) {
        for host in hosts {
            let said = self.on(host, &["daemon"]);
            assert_eq!(said.code, 0, "{said:?}");
        }
    }

    /// The words that ssh got last.
    pub fn ssh_words(&self) -> Vec<String> {
        let lines = self.world.lines("ssh.arguments");
        let start = lines.iter().rposition(|line| line == "-T").unwrap();
        lines.get(start..).unwrap_or_default().to_vec()
    }

    /// Gives a host another shell.
    pub fn shell(&self, host: &str, script: &str) {
        program(&self.host(host).join("shell"), &format!("#!/bin/sh\n{script}\n"));
    }
}

pub fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
