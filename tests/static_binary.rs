//! The static binary in an empty root: no libraries, no /etc, no shell.
//!
//! It is not built by `cargo test`, which has the ordinary one:
//!
//! ```sh
//! RUSTFLAGS="-C target-feature=+crt-static" cargo build --target x86_64-unknown-linux-gnu
//! ```
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests run programs")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{OPM, is_root, skip, until};

/// Largest static release, in bytes. It was 6.7 million when this was written, and is to become less.
const RELEASE_BYTES_MAX: u64 = 7_000_000;
/// Where unshare(1) and chroot(8) are.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// The type of the program header that names an interpreter, elf(5).
const PT_INTERP: u32 = 3;

/// Where cargo puts what is built for this target by name, beside what tests run.
fn target_dir(profile: &str) -> PathBuf {
    let beside = Path::new(OPM).ancestors().nth(2).unwrap();
    beside.join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).join(profile).join("opm")
}

/// Whether a program needs nothing to be loaded: it names no interpreter.
fn is_static(program: &Path) -> bool {
    let bytes = fs::read(program).unwrap();
    assert!(bytes.starts_with(b"\x7fELF\x02"), "64 bits");
    let number = |at: usize, length: usize| {
        let field = bytes.get(at..at + length).unwrap().iter().rev();
        field.fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte))
    };
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut kinds = (0..count).map(|n| u32::try_from(number(start + n * size, 4)).unwrap());
    kinds.all(|kind| kind != PT_INTERP)
}

/// The static binary that was built last.
fn binary() -> Option<PathBuf> {
    let built = ["release", "debug"].map(target_dir).into_iter().filter(|path| path.exists());
    let built = built.filter(|path| is_static(path));
    let newest = built.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    if newest.is_none() {
        skip("no static binary; tests/static_binary.rs says how to build it");
    }
    newest
}

/// A root with nothing in it but the static opm and units, and that opm as its PID 1.
struct Empty {
    dir: tempfile::TempDir,
    unshare: Option<Child>,
}

impl Empty {
    fn new(units: &[(&str, &str)]) -> Option<Self> {
        let binary = binary()?;
        if !is_root() {
            skip("only root may change its root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::copy(binary, dir.path().join("opm")).unwrap();
        fs::set_permissions(dir.path().join("opm"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("units")).unwrap();
        for (name, text) in units {
            fs::write(dir.path().join("units").join(format!("{name}.yaml")), text).unwrap();
        }
        Some(Self { dir, unshare: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn begin(&mut self) {
        let log = fs::File::create(self.path("opm.out")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--fork", "--kill-child"]);
        command.arg(format!("--root={}", self.dir.path().display()));
        command.args(["/opm", "run", "/units"]).env_clear().env("PATH", PATH).stdin(Stdio::null());
        self.unshare = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        until("opm to listen", || self.path("run/opm/control.sock").exists() || self.is_over());
        assert!(!self.is_over(), "{}", self.log());
    }

    /// Whether unshare has ended, which it does with opm.
    fn is_over(&self) -> bool {
        let stat = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let child = self.unshare.as_ref().unwrap();
        stat(child.id()).rsplit(") ").next().unwrap_or_default().starts_with('Z')
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("opm.out")).unwrap_or_default()
    }

    /// A command of the same binary in the same root.
    fn opm(&self, args: &[&str]) -> Output {
        let mut command = Command::new("chroot");
        command.arg(self.dir.path()).arg("/opm").args(args);
        command.env_clear().env("PATH", PATH).stdin(Stdio::null()).output().unwrap()
    }

    fn end(&mut self) -> i32 {
        let said = self.opm(&["shutdown"]);
        assert!(said.status.success(), "{said:?}\n{}", self.log());
        self.unshare.as_mut().unwrap().wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        if let Some(unshare) = &mut self.unshare {
            // The kernel kills the namespace with it.
            drop(unshare.kill());
            drop(unshare.wait());
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn pid_one_of_an_empty_root_supervises_static_programs() {
    // Programs that need nothing: opm in front of itself, and an opm that supervises nothing.
    let hello = "kind: task\ncommand: [/opm, run, --, /opm, --version]\n";
    let stays = "command: [/opm, --root, /inner, run, /nothing]\nrequires: [{unit: hello, condition: completed}]\n";
    let Some(mut root) = Empty::new(&[("hello", hello), ("stays", stays)]) else { return };
    fs::create_dir(root.path("nothing")).unwrap();
    root.begin();
    let waited = root.opm(&["wait", "--for=ready", "--timeout=20s", "stays"]);
    assert!(waited.status.success(), "{waited:?}\n{}", root.log());
    let has_logs =
        || text(&root.opm(&["logs", "hello"]).stdout).contains(env!("CARGO_PKG_VERSION"));
    assert!(common::comes_true(has_logs), "{}", root.log());
    assert_eq!(root.end(), 0, "{}", root.log());
}

#[test]
fn a_user_that_nobody_knows_fails_a_unit_and_not_pid_one() {
    let unit = "command: [/opm, --version]\nuser: no-such-user\nrestart: never\n";
    let Some(mut root) = Empty::new(&[("web", unit)]) else { return };
    root.begin();
    until("it to fail", || text(&root.opm(&["status"]).stdout).contains("failed"));
    let why = text(&root.opm(&["why", "web"]).stdout);
    assert!(why.contains("no-such-user"), "{why}");
    assert_eq!(root.opm(&["status", "web"]).status.code(), Some(3), "{}", root.log());
    root.end();
}

#[test]
fn without_time_zone_files_no_zone_can_be_named() {
    let task = |more: &str| format!("kind: task\ncommand: [/opm]\nschedule: '0 3 * * *'\n{more}");
    let Some(root) = Empty::new(&[("near", &task(""))]) else { return };
    let good = root.opm(&["check", "/units"]);
    assert!(good.status.success(), "{}", text(&good.stderr));
    fs::write(root.path("units/far.yaml"), task("timezone: Europe/Berlin\n")).unwrap();
    let bad = root.opm(&["check", "/units"]);
    let said = text(&bad.stderr);
    assert_eq!(bad.status.code(), Some(2), "{said}");
    assert!(said.contains("there is no time zone `Europe/Berlin`"), "{said}");
}

#[test]
fn a_static_release_is_small() {
    let release = target_dir("release");
    if !release.exists() || !is_static(&release) {
        // CI builds a debug one, which is there sooner.
        eprintln!("skipped: no static release");
        return;
    }
    let size = fs::metadata(&release).unwrap().len();
    assert!(size <= RELEASE_BYTES_MAX, "{} has {size} bytes", release.display());
}
