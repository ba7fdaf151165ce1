//! `PostgreSQL` as a unit of a world.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::{World, is_root, shell, skip};

/// A cluster in the world's directory `pg`, where its socket and its log are too.
pub struct Postgres {
    bin: String,
}

impl Postgres {
    /// A new cluster; `None` where there is no `PostgreSQL` that speaks `sd_notify(3)`.
    pub fn new(world: &World) -> Option<Self> {
        let script = "for bin in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do \
                      ldd $bin/postgres 2>/dev/null | grep -q libsystemd && echo $bin && break; \
                      done";
        let output = shell(std::path::Path::new("/"), script);
        let bin = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        if bin.is_empty() {
            skip("no PostgreSQL with systemd support is installed");
            return None;
        }
        let postgres = Self { bin };
        fs::create_dir(world.path("pg")).unwrap();
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            let chown = shell(world.dir.path(), "chown postgres pg");
            assert!(chown.status.success(), "{chown:?}");
        }
        let mut initdb = postgres.command(world, "initdb");
        let made = initdb.args(["-D", "data", "-A", "trust", "-U", "postgres", "--no-sync"]);
        let made = made.output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Some(postgres)
    }

    /// Writes the unit `db`.
    pub fn unit(&self, world: &World) {
        let user = if is_root() { "user: postgres\n" } else { "" };
        let (bin, dir) = (&self.bin, world.path("pg"));
        let dir = dir.display();
        world.unit(
            "db",
            &format!(
                "command: [{bin}/postgres, -D, data, -k, {dir}, -c, \"listen_addresses=\", \
                 -c, logging_collector=off]\nworking_dir: {dir}\n{user}ready: {{notify: true}}\n\
                 stop: {{signal: INT, to: main, timeout: 1m}}\nreload: {{signal: HUP}}\n\
                 restart: {{policy: always, delay: 10ms}}\nlogs: {{to: {{path: {dir}/log}}}}\n"
            ),
        );
    }

    /// One of its programs, none of which runs as root.
    pub fn command(&self, world: &World, program: &str) -> Command {
        let program = format!("{}/{program}", self.bin);
        let mut command = Command::new(if is_root() { "setpriv" } else { &program });
        if is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", &program]);
        }
        command.current_dir(world.path("pg")).stdin(Stdio::null());
        command
    }

    /// How a client is called, as words of a shell.
    pub fn client(&self, world: &World) -> String {
        format!("{}/psql -h {} -U postgres", self.bin, world.path("pg").display())
    }

    /// A client with a statement.
    pub fn psql(&self, world: &World, statement: &str) -> Command {
        let mut psql = self.command(world, "psql");
        psql.arg("-h").arg(world.path("pg")).args(["-U", "postgres", "-Atc", statement]);
        psql
    }

    /// What a statement gives: the database is there, or the test is over.
    pub fn ask(&self, world: &World, statement: &str) -> String {
        let output = self.psql(world, statement).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", world.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// All that the database holds, as text.
    pub fn dump(&self, world: &World) -> String {
        let mut dump = self.command(world, "pg_dump");
        let output =
            dump.arg("-h").arg(world.path("pg")).args(["-U", "postgres"]).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", world.log());
        let text = String::from_utf8(output.stdout).unwrap();
        // Later editions put a random word round it.
        let lines = text.lines().filter(|line| !line.starts_with("\\restrict"));
        lines.filter(|line| !line.starts_with("\\unrestrict")).collect::<Vec<_>>().join("\n")
    }
}
