//! From a spec to everything the child needs: arguments, environment, user, directory, limits.
//!
//! All of it is worked out before the fork, from the definition and the supervisor's environment at
//! its start, so that it does not depend on who asked for the start.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::child::Prepared;
use super::env::{Inherited, Variables};
use super::{Environment, Launch, accounts, env, errno_words, plain, program, tree};
use crate::model::{
    Command, Gather, Hook, InheritEnv, InstanceId, Limit, ProcessSpec, Question, Ready, Reload,
    Resource, Role, Spec, Stage, StartError, Stdin, StopAction, Template, Variable,
};

/// Where programs are looked for when the unit and the supervisor have no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Mask of a run whose unit names none, whatever the supervisor's own is.
const DEFAULT_UMASK: u32 = 0o022;
/// Largest env file, in bytes.
const ENV_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What launching needs to know of the supervisor.
#[derive(Debug)]
pub(super) struct Origin {
    /// What units inherit of its environment at its start.
    pub(super) env: Inherited,
    /// Its limit of open descriptors before it raised it.
    pub(super) nofile: (u64, u64),
}

/// A text of a unit file with its places filled in.
pub(super) fn fill(
    template: &Template,
    origin: &Origin,
    id: &InstanceId,
    index: u32,
    spec: &Spec,
) -> OsString {
    template.fill(&|variable| match variable {
        Variable::Env { name, default } => origin
            .env
            .get(OsStr::new(name))
            .filter(|value| !value.is_empty())
            .map_or_else(|| OsString::from(default), OsStr::to_owned),
        Variable::UnitName => spec.name.as_str().into(),
        Variable::UnitDir => spec.base_dir().unwrap_or(Path::new("/")).into(),
        Variable::Instance => id.label().unwrap_or("1").into(),
        Variable::InstanceIndex => index.to_string().into(),
    })
}

/// One launch being worked out.
pub(super) struct Launcher<'a> {
    pub(super) origin: &'a Origin,
    pub(super) launch: &'a Launch,
    pub(super) process: &'a ProcessSpec,
}

#[expect(clippy::needless_pass_by_value, reason = "texts and things that print, as they come")]
pub(super) fn error(stage: Stage, subject: impl ToString, reason: impl ToString) -> StartError {
    StartError { stage, subject: subject.to_string(), reason: reason.to_string(), passing: false }
}

/// The same where the reason may be one that passes.
fn shortage(stage: Stage, subject: impl ToString, error: &std::io::Error) -> StartError {
    let passing = super::sys::is_shortage(error);
    StartError { passing, ..self::error(stage, subject, plain(&error.to_string())) }
}

/// What was looked up, which has to be there.
fn known<T>(
    stage: Stage,
    name: &str,
    found: std::io::Result<Option<T>>,
    nothing: &str,
) -> Result<T, StartError> {
    let found = found.map_err(|error| shortage(stage, name, &error))?;
    found.ok_or_else(|| error(stage, name, nothing))
}

/// The user of a hook, or else of its unit.
fn user_of<'a>(hook: Option<&'a Hook>, process: &'a ProcessSpec) -> Option<&'a String> {
    hook.and_then(|hook| hook.user.as_ref()).or(process.user.as_ref())
}

fn c_string(text: impl Into<OsString>, stage: Stage) -> Result<CString, StartError> {
    CString::new(text.into().into_vec()).map_err(|error| holds_nul(error, stage))
}

fn holds_nul(error: NulError, stage: Stage) -> StartError {
    let bytes = error.into_vec();
    let text = String::from_utf8_lossy(&bytes).replace('\0', "\\0");
    self::error(stage, text, "it holds a NUL byte, which no program can be given")
}

impl Launcher<'_> {
    fn fill(&self, template: &Template) -> OsString {
        let Launch { instance, index, spec, .. } = self.launch;
        fill(template, self.origin, instance, *index, spec)
    }

    /// A path of the unit file: relative ones start at the file's directory.
    pub(super) fn path(&self, template: &Template) -> PathBuf {
        self.process.base_dir.as_path().join(self.fill(template))
    }

    /// What the role runs.
    fn command(&self) -> Result<(Cow<'_, Command>, Option<&Hook>), StartError> {
        let Launch { spec, role, .. } = self.launch;
        let ask = |question: &Question| Cow::Owned(question.command(&self.process.base_dir));
        let alone = match role {
            Role::Main => Some(Cow::Borrowed(&self.process.command)),
            Role::Condition => spec.conditions.command.as_ref().map(Cow::Borrowed),
            Role::Reload => match spec.reload.as_deref() {
                Some(Reload::Command(command)) => Some(Cow::Borrowed(command)),
                Some(Reload::Signal(_)) | None => None,
            },
            Role::Stop(n) => match spec.stop.steps.get(usize::from(*n)).map(|step| &step.action) {
                Some(StopAction::Command(command)) => Some(Cow::Borrowed(command)),
                Some(StopAction::Signal(..)) | None => None,
            },
            Role::ReadyProbe => match &*self.process.ready {
                Ready::Asked(probe) => Some(ask(&probe.question)),
                Ready::Started
                | Ready::Notify
                | Ready::Fd(_)
                | Ready::Log(_)
                | Ready::Delay(_)
                | Ready::File(_) => None,
            },
            Role::HealthProbe => spec.health.as_ref().map(|health| ask(&health.probe.question)),
            Role::PreStart(_)
            | Role::PostStart(_)
            | Role::PreStop(_)
            | Role::PostStop(_)
            | Role::Former(_) => None,
        };
        if let Some(command) = alone {
            return Ok((command, None));
        }
        let hook = match role {
            Role::PreStart(n) => spec.hooks.pre_start.get(usize::from(*n)),
            Role::PostStart(n) => spec.hooks.post_start.get(usize::from(*n)),
            Role::PreStop(n) => spec.hooks.pre_stop.get(usize::from(*n)),
            Role::PostStop(n) => spec.hooks.post_stop.get(usize::from(*n)),
            Role::Main
            | Role::Condition
            | Role::Reload
            | Role::Stop(_)
            | Role::ReadyProbe
            | Role::HealthProbe
            | Role::Former(_) => None,
        };
        hook.map(|hook| (Cow::Borrowed(&hook.command), Some(hook))).ok_or_else(gone)
    }

    /// Everything the child needs. `descriptors` are those it is given; `extra` variables are set
    /// over all others.
    pub(super) fn prepare(
        &self,
        descriptors: Vec<(RawFd, RawFd)>,
        extra: &[(&str, OsString)],
    ) -> Result<Prepared, StartError> {
        let (command, hook) = self.command()?;
        let identity = self.identity(hook)?;
        let env = self.variables(&identity, extra)?;
        let dir_asked = self.process.working_dir.is_some();
        let dir = match &self.process.working_dir {
            Some(dir) => self.path(dir),
            None => self.process.base_dir.as_path().to_owned(),
        };
        let (program, args) = self.arguments(&command, &env, &dir)?;
        let stdin = match (&*self.process.stdin, self.launch.role) {
            (Stdin::File(path), Role::Main) => Some(c_string(self.path(path), Stage::Stdin)?),
            _ => None,
        };
        let score =
            self.process.oom_score_adjust.map(|score| c_string(score.to_string(), Stage::OomScore));
        Ok(Prepared {
            program,
            args,
            env: env.entries().map_err(|error| holds_nul(error, Stage::EnvFile))?,
            dir: c_string(dir, Stage::WorkingDir)?,
            dir_asked,
            stdin,
            descriptors,
            limits: self.limits(),
            groups: identity.groups,
            gid: identity.gid,
            uid: identity.uid,
            umask: self.process.umask.unwrap_or(DEFAULT_UMASK),
            nice: self.process.nice,
            oom_score_adjust: score.transpose()?,
            own_session: self.process.own_session || self.launch.role != Role::Main,
        })
    }

    /// As whom the role runs.
    fn user(&self) -> Option<&String> {
        user_of(self.command().ok().and_then(|(_, hook)| hook), self.process)
    }

    fn identity(&self, hook: Option<&Hook>) -> Result<RunAs, StartError> {
        let name = user_of(hook, self.process);
        let no_user = "no such user in /etc/passwd";
        let user = |name: &String| known(Stage::User, name, accounts::user(name), no_user);
        let no_group = "no such group in /etc/group";
        let group = |name: &String| known(Stage::Group, name, accounts::group(name), no_group);
        let account = name.map(user).transpose()?;
        let groups = self.process.supplementary_groups.iter();
        let mut groups = groups.map(group).collect::<Result<Vec<u32>, _>>()?;
        let group = self.process.group.as_ref().map(group).transpose()?;
        if account.is_none() && group.is_none() && groups.is_empty() {
            return Ok(RunAs::default());
        }
        let gid = group.or(account.as_ref().map(|account| account.gid));
        let entry = account.as_ref().and_then(|account| account.entry.clone());
        let uid = account.map(|account| account.uid);
        if !nix::unistd::geteuid().is_root() {
            return self.unprivileged(name, uid, gid, entry);
        }
        if let Some(entry) = &entry {
            let more = accounts::groups_of(&entry.name);
            groups.extend(more.map_err(|error| shortage(Stage::Group, &entry.name, &error))?);
        }
        groups.extend(gid);
        groups.sort_unstable();
        groups.dedup();
        Ok(RunAs { uid, gid, groups: Some(groups), entry })
    }

    /// Without privileges only what we are anyway can be asked for.
    fn unprivileged(
        &self,
        name: Option<&String>,
        uid: Option<u32>,
        gid: Option<u32>,
        entry: Option<accounts::Entry>,
    ) -> Result<RunAs, StartError> {
        let own_user = uid.is_none_or(|uid| uid == nix::unistd::geteuid().as_raw());
        let own_group = self.process.group.is_none()
            || gid.is_none_or(|gid| gid == nix::unistd::getegid().as_raw());
        if own_user && own_group && self.process.supplementary_groups.is_empty() {
            // Whoever has no account is told so much of it as when root becomes this user.
            let nobody = || {
                let (name, home) = (uid?.to_string(), "/".to_owned());
                Some(accounts::Entry { name, home, shell: String::new() })
            };
            return Ok(RunAs { entry: entry.or_else(nobody), ..RunAs::default() });
        }
        let reason = "only root can start a unit as another user or group";
        if let Some(user) = name.filter(|_| !own_user) {
            return Err(error(Stage::Uid, user, reason));
        }
        let group = self.process.group.as_ref().filter(|_| !own_group);
        let group = group.or(self.process.supplementary_groups.first());
        Err(error(Stage::Gid, group.cloned().unwrap_or_default(), reason))
    }

    /// The variables that the main process would have, but for its user's.
    pub(super) fn variables_for_conditions(&self) -> Result<Variables<'_>, StartError> {
        self.variables(&RunAs::default(), &[])
    }

    fn variables(
        &self,
        identity: &RunAs,
        extra: &[(&str, OsString)],
    ) -> Result<Variables<'_>, StartError> {
        let mut variables = match &*self.process.inherit_env {
            InheritEnv::All => Variables::inheriting(&self.origin.env),
            InheritEnv::Only(names) => Variables::only(
                names
                    .iter()
                    .filter_map(|name| {
                        let name = OsStr::new(name);
                        Some((name.to_owned(), self.origin.env.get(name)?.to_owned()))
                    })
                    .gather(),
            ),
        };
        let has_path = variables.get("PATH").is_some();
        let env = &mut variables.set;
        if !has_path {
            env.insert("PATH".into(), DEFAULT_PATH.into());
        }
        if identity.uid.is_some() || identity.entry.is_some() {
            let entry = identity.entry.as_ref();
            let uid = identity.uid.map(|uid| uid.to_string()).unwrap_or_default();
            let name = entry.map_or(uid, |entry| entry.name.clone());
            env.insert("HOME".into(), entry.map_or("/", |entry| &entry.home).into());
            env.insert("USER".into(), name.clone().into());
            env.insert("LOGNAME".into(), name.into());
            let shell = entry.map(|entry| entry.shell.as_str()).filter(|shell| !shell.is_empty());
            env.insert("SHELL".into(), shell.unwrap_or("/bin/sh").into());
        }
        for file in &self.process.env_files {
            env.extend(read_env_file(&self.path(&file.path), file.optional)?);
        }
        for (name, value) in &self.process.env {
            env.insert(name.into(), self.fill(value));
        }
        env.insert(tree::COOKIE.into(), self.launch.run.to_string().into());
        env.insert("OPM_UNIT".into(), self.launch.spec.name.as_str().into());
        env.insert("OPM_INSTANCE".into(), self.launch.instance.to_string().into());
        env.extend(extra.iter().map(|(name, value)| (OsString::from(name), value.clone())));
        Ok(variables)
    }

    fn arguments(
        &self,
        command: &Command,
        env: &Variables<'_>,
        dir: &Path,
    ) -> Result<(CString, Vec<CString>), StartError> {
        let texts: Vec<OsString> = match command {
            Command::Shell(text) => vec!["/bin/sh".into(), "-c".into(), self.fill(text)],
            Command::Argv(list) => list.iter().map(|item| self.fill(item)).collect(),
        };
        let name = texts
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| error(Stage::Resolve, "", "the command is empty"))?;
        let program = program::resolve(name, env.get("PATH").unwrap_or_default(), dir)?;
        let args = texts.into_iter().map(|text| c_string(text, Stage::Exec));
        Ok((c_string(program, Stage::Exec)?, args.collect::<Result<_, _>>()?))
    }

    fn limits(&self) -> Vec<(u32, u64, u64)> {
        let mut limits = BTreeMap::new();
        // What opm raised for itself is not the unit's.
        let (soft, hard) = self.origin.nofile;
        limits.insert(libc::RLIMIT_NOFILE, (soft, hard));
        for (resource, Limit { soft, hard }) in &self.process.limits {
            let number = |limit: &Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
            limits.insert(resource_number(*resource), (number(soft), number(hard)));
        }
        limits.into_iter().map(|(resource, (soft, hard))| (resource, soft, hard)).collect()
    }

    /// What a failure report of the child is about, and why.
    pub(super) fn explain(
        &self,
        stage: Stage,
        errno: i32,
        which: u8,
        prepared: &Prepared,
    ) -> StartError {
        let text = |text: &CString| text.to_string_lossy().into_owned();
        let subject = match stage {
            Stage::Limits => {
                let number = prepared.limits.get(usize::from(which)).map(|(number, ..)| *number);
                let found = Resource::ALL.iter().find(|(_, r)| Some(resource_number(*r)) == number);
                found.map_or_else(String::new, |(name, _)| (*name).to_owned())
            }
            Stage::WorkingDir => text(&prepared.dir),
            Stage::Exec => text(&prepared.program),
            Stage::Stdin => prepared.stdin.as_ref().map(text).unwrap_or_default(),
            Stage::Uid | Stage::Gid | Stage::Groups | Stage::User => {
                self.user().cloned().unwrap_or_default()
            }
            Stage::Nice => self.process.nice.map(|nice| nice.to_string()).unwrap_or_default(),
            Stage::OomScore => prepared.oom_score_adjust.as_ref().map(text).unwrap_or_default(),
            Stage::EnvFile
            | Stage::Group
            | Stage::Resolve
            | Stage::Prepare
            | Stage::Fork
            | Stage::Ledger
            | Stage::Gate
            | Stage::Session
            | Stage::Listen
            | Stage::Descriptors => String::new(),
        };
        // Of a script it means the interpreter.
        let is_missing = (stage, errno) == (Stage::Exec, libc::ENOENT);
        let stage =
            if is_missing && !Path::new(&subject).exists() { Stage::Resolve } else { stage };
        let reason = match (stage, errno) {
            (Stage::Exec, libc::ENOENT) => program::missing_interpreter(Path::new(&subject)),
            (Stage::Exec, libc::EACCES) if Path::new(&subject).is_dir() => {
                Some("it is a directory".to_owned())
            }
            (Stage::Exec, libc::EACCES) if !program::is_executable(Path::new(&subject)) => {
                Some("it is not executable, which `chmod +x` makes it".to_owned())
            }
            (Stage::Exec, libc::ENOEXEC) => {
                Some("it is no program and no script with a `#!` line".to_owned())
            }
            (Stage::Limits, libc::EPERM) => most_descriptors(prepared, which).or_else(|| {
                Some("a hard limit above the one that opm has needs CAP_SYS_RESOURCE".to_owned())
            }),
            _ => None,
        };
        let mut reason = reason.unwrap_or_else(|| errno_words(errno));
        if let (Some(user), libc::EACCES) = (self.user(), errno) {
            reason = format!("{reason}, as user `{user}`");
        }
        let own = self.own_limit(stage, errno);
        if let Some(name) = own {
            reason = format!("{reason}, by its own `limits.{name}`");
        }
        let passing = own.is_none() && super::sys::is_shortage_number(errno);
        StartError { stage, subject, reason, passing }
    }

    /// The limit of the unit's own that a child came up against, once it had its limits.
    fn own_limit(&self, stage: Stage, errno: i32) -> Option<&'static str> {
        let may_be: &[Resource] = match errno {
            libc::EMFILE => &[Resource::Nofile],
            libc::EAGAIN => &[Resource::Nproc],
            libc::ENOMEM => &[Resource::As, Resource::Data, Resource::Stack],
            _ => &[],
        };
        let is_before = matches!(stage, Stage::Session | Stage::Descriptors | Stage::Limits);
        let own = may_be.iter().find(|resource| self.process.limits.contains_key(resource));
        let own = own.filter(|_| !is_before)?;
        Resource::ALL.iter().find(|(_, resource)| resource == own).map(|(name, _)| *name)
    }
}

/// Why nobody may have so many descriptors, where that is so: no capability helps, setrlimit(2).
fn most_descriptors(prepared: &Prepared, which: u8) -> Option<String> {
    let (resource, soft, hard) = *prepared.limits.get(usize::from(which))?;
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?;
    let most: u64 = most.trim().parse().ok()?;
    let is_more = resource == libc::RLIMIT_NOFILE && soft.max(hard) > most;
    is_more.then(|| format!("the kernel allows {most} at most (fs.nr_open)"))
}

/// The role's command is gone from the spec: it was changed while the run was under way.
fn gone() -> StartError {
    error(Stage::Resolve, "", "the unit has no such command any more")
}

/// Whom a process runs as.
#[derive(Debug, Default)]
struct RunAs {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    entry: Option<accounts::Entry>,
}

fn read_env_file(path: &Path, optional: bool) -> Result<Environment, StartError> {
    let fail = |reason: String| error(Stage::EnvFile, path.display(), reason);
    match std::fs::metadata(path) {
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Environment::new());
        }
        Err(error) => return Err(shortage(Stage::EnvFile, path.display(), &error)),
        Ok(metadata) if metadata.len() > ENV_FILE_BYTES_MAX => {
            return Err(fail(format!("it has more than {ENV_FILE_BYTES_MAX} bytes")));
        }
        Ok(metadata) if !metadata.is_file() => return Err(fail("it is no file".to_owned())),
        Ok(_) => {}
    }
    let bytes =
        std::fs::read(path).map_err(|error| shortage(Stage::EnvFile, path.display(), &error))?;
    env::parse_file(&bytes).map_err(fail)
}

fn resource_number(resource: Resource) -> u32 {
    match resource {
        Resource::As => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Locks => libc::RLIMIT_LOCKS,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
        Resource::Nice => libc::RLIMIT_NICE,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Rss => libc::RLIMIT_RSS,
        Resource::Rtprio => libc::RLIMIT_RTPRIO,
        Resource::Rttime => libc::RLIMIT_RTTIME,
        Resource::Sigpending => libc::RLIMIT_SIGPENDING,
        Resource::Stack => libc::RLIMIT_STACK,
    }
}
