//! What the supervisor tells the log keeper about an instance: a small file that is replaced whole.
//!
//! `RUN/log/INSTANCE.json` beside `RUN/log/INSTANCE.fifo`. Its change is taken over at once; its
//! removal ends the instance's log. Names that begin with `.` are half-written files.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{
    FilePath, InstanceId, LogFormat, LogRate, LogTarget, Logs, Span, Syslog, Template, UnitName,
};

/// Largest instruction that is read, in bytes: two paths fit. A larger file is refused.
const INSTRUCTION_BYTES_MAX: u64 = 64 * 1024;

/// The line by which a run says that it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyLine {
    /// What it matches, a regular expression.
    pub pattern: String,
    /// The FIFO that is told so.
    pub answer: FilePath,
}

/// Where an instance's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// To `current` in the instance's log directory.
    File,
    /// Only to the keeper's standard output.
    Console,
    /// To this file.
    Path(FilePath),
    /// To a syslog daemon.
    Syslog(Syslog),
    /// To the FIFO that is the standard input of this unit.
    Unit(UnitName),
}

/// How the keeper treats an instance's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Where it goes.
    pub to: Destination,
    /// How a line stands there.
    #[serde(default = "text", skip_serializing_if = "is_text")]
    pub format: LogFormat,
    /// How large one file may become, in bytes; only a single record that is larger exceeds it.
    pub max_size: u64,
    /// How many finished files are kept.
    pub keep: u32,
    /// How long finished files are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Whether finished files are compressed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compress: bool,
    /// How many lines are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<LogRate>,
    /// The instance's log directory, for [`Destination::File`].
    pub dir: FilePath,
    /// What is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyLine>,
}

impl Instruction {
    /// What a spec says about an instance's output; `path` fills in a path of the unit file.
    pub fn of(
        logs: &Logs,
        ready: Option<ReadyLine>,
        dir: &Path,
        path: &dyn Fn(&Template) -> PathBuf,
    ) -> Self {
        let to = match &logs.to {
            LogTarget::File => Destination::File,
            LogTarget::Console => Destination::Console,
            LogTarget::Path(template) => Destination::Path(path(template).into()),
            LogTarget::Syslog(syslog) => Destination::Syslog(syslog.clone()),
            LogTarget::Unit(unit) => Destination::Unit(unit.clone()),
        };
        let usual = match &to {
            Destination::File | Destination::Console | Destination::Syslog(_) => LogFormat::Text,
            Destination::Path(_) => LogFormat::Raw,
            Destination::Unit(_) => LogFormat::Json,
        };
        let format = logs.format.unwrap_or(usual);
        let Logs { max_size, keep, max_age, compress, rate, to: _, format: _ } = logs;
        let (max_size, keep, max_age, compress, rate) =
            (*max_size, *keep, *max_age, *compress, *rate);
        Self { to, format, max_size, keep, max_age, compress, rate, dir: dir.into(), ready }
    }

    /// All of the output into `current` in a directory, with what a unit file need not say.
    pub fn in_dir(dir: &Path) -> Self {
        Self::of(&Logs::default(), None, dir, &|_| PathBuf::new())
    }

    /// Puts the instruction in place of the one before; the keeper sees the old or the new one.
    pub fn write(&self, run_dir: &Path, instance: &InstanceId) -> io::Result<()> {
        let dir = log_dir(run_dir);
        make_dir(&dir)?;
        let new = dir.join(format!(".{instance}.json"));
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&json)?;
        fs::rename(&new, instruction_path(run_dir, instance))
    }

    /// Takes the instruction away: the keeper reads what is left and forgets the instance.
    pub fn remove(run_dir: &Path, instance: &InstanceId) -> io::Result<()> {
        match fs::remove_file(instruction_path(run_dir, instance)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Reads an instance's instruction; `None` where there is none.
    pub fn read(run_dir: &Path, instance: &InstanceId) -> io::Result<Option<Self>> {
        let file = match File::open(instruction_path(run_dir, instance)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut json = Vec::new();
        file.take(INSTRUCTION_BYTES_MAX).read_to_end(&mut json)?;
        Self::parse(&json).map(Some)
    }

    /// Reads the text of an instruction.
    pub fn parse(json: &[u8]) -> io::Result<Self> {
        serde_json::from_slice(json).map_err(io::Error::other)
    }
}

fn text() -> LogFormat {
    LogFormat::Text
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_text(format: &LogFormat) -> bool {
    *format == LogFormat::Text
}

/// The directory of instructions and FIFOs.
pub fn log_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("log")
}

/// The FIFO that an instance writes to.
pub fn fifo_path(run_dir: &Path, instance: &InstanceId) -> PathBuf {
    log_dir(run_dir).join(format!("{instance}.fifo"))
}

/// The FIFO that a unit reads which has `stdin: logs`.
pub fn input_path(run_dir: &Path, unit: &UnitName) -> PathBuf {
    log_dir(run_dir).join(format!("{unit}.in"))
}

/// The file with an instance's instruction.
pub fn instruction_path(run_dir: &Path, instance: &InstanceId) -> PathBuf {
    log_dir(run_dir).join(format!("{instance}.json"))
}

/// The instance that a file in [`log_dir`] belongs to; `None` for files that are none of ours.
pub fn instance_of(name: &OsStr) -> Option<InstanceId> {
    let name = name.to_str()?;
    let stem = name.strip_suffix(".json").or_else(|| name.strip_suffix(".fifo"))?;
    InstanceId::parse(stem).ok()
}

/// Makes the directory that only opm may enter, where it is missing.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn an_instruction_is_written_as_documented_and_read_back() {
        let run = tempfile::tempdir().unwrap();
        let id = InstanceId::parse("web@eu").unwrap();
        assert_eq!(Instruction::read(run.path(), &id).unwrap(), None);
        let odd = FilePath::from(OsString::from_vec(b"/srv/\xe9".to_vec()));
        for (to, json) in [
            (Destination::File, r#""file""#),
            (Destination::Console, r#""console""#),
            (Destination::Path(FilePath::from("/a")), r#"{"path":"/a"}"#),
            (Destination::Path(odd), r#"{"path":[47,115,114,118,47,233]}"#),
        ] {
            let dir = Path::new("/var/log/opm/web");
            let instruction = Instruction { to, max_size: 10, ..Instruction::in_dir(dir) };
            instruction.write(run.path(), &id).unwrap();
            let text = fs::read_to_string(run.path().join("log/web@eu.json")).unwrap();
            let expected =
                format!(r#"{{"to":{json},"max_size":10,"keep":5,"dir":"/var/log/opm/web"}}"#);
            assert_eq!(text, expected);
            assert_eq!(Instruction::read(run.path(), &id).unwrap(), Some(instruction));
        }
        Instruction::remove(run.path(), &id).unwrap();
        Instruction::remove(run.path(), &id).unwrap();
        assert_eq!(Instruction::read(run.path(), &id).unwrap(), None);
    }

    #[test]
    fn only_our_own_file_names_are_taken() {
        for (name, expected) in [
            ("web.json", Some("web")),
            ("web@1.fifo", Some("web@1")),
            ("a.json.json", Some("a.json")),
            (".web.json", None),
            ("web", None),
            ("web.log", None),
        ] {
            let found = instance_of(OsStr::new(name)).map(|id| id.to_string());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }
}
