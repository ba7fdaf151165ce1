//! What a unit file can say, valid by construction, and every default; each part that has much to say is
//! in a file of its own: `process`, `relations`, `restart`, `stop`, `logs`, `probe`, `schedule`, `socket`,
//! `watch`.
//!
//! A [`Spec`] is grouped by what a change of it costs: whatever is in [`ProcessSpec`] is fixed when a
//! run starts, so that changing it restarts the run; everything else is taken over at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::logs::{LogTarget, Logs};
use super::name::{InstanceId, UnitName};
use super::outcome::{ExitMatch, Outcome};
use super::path::FilePath;
use super::probe::Health;
use super::process::{Command, Output, ProcessSpec, Stdin};
use super::relations::Relations;
use super::restart::{Restart, RestartPolicy};
use super::schedule::Schedule;
use super::shared::Shared;
use super::signal::Signal;
use super::socket::Socket;
use super::stop::Stop;
use super::template::Template;
use super::time::Span;
use super::watch::Watch;

/// Most instances of one unit. More is a sign of a wrong number, not of a plan.
pub const INSTANCES_MAX: u32 = 1_000;

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Runs until it is stopped.
    Service,
    /// Runs to completion, once per boot and definition.
    Task,
    /// Addresses that opm listens at for a service.
    Socket,
    /// A named set of units.
    Target,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Service, Self::Task, Self::Socket, Self::Target];

    /// The word for it in unit files and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Task => "task",
            Self::Socket => "socket",
            Self::Target => "target",
        }
    }
}

/// A unit, parsed, checked and with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: UnitName,
    /// One line for people.
    pub description: String,
    /// Where to read more.
    pub documentation: Shared<Vec<String>>,
    /// For choosing units in commands.
    pub labels: Shared<BTreeMap<String, String>>,
    /// False: known, but down until `opm start`.
    pub enabled: bool,
    /// What runs; a socket and a target have none. A change restarts the run.
    pub process: Option<ProcessSpec>,
    /// Where a socket listens. A change restarts its run, and keeps open what is in both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Box<Socket>>,
    /// How it hangs together with other units.
    pub relations: Shared<Relations>,
    /// What must hold for it to start at all.
    pub conditions: Shared<Conditions>,
    /// Which instances there are.
    pub instances: Shared<Instances>,
    /// When and how it is started again.
    pub restart: Shared<Restart>,
    /// Which ends are successes.
    pub success_exit: Shared<Vec<ExitMatch>>,
    /// What follows when it ended well for good.
    pub on_success: Shared<EndAction>,
    /// What follows when it failed for good.
    pub on_failure: Shared<EndAction>,
    /// When it ends for good, opm shuts down with its exit code.
    pub essential: bool,
    /// How long it may take from its start to ready.
    pub start_timeout: Span,
    /// How it is stopped.
    pub stop: Shared<Stop>,
    /// How it is told to read its configuration again.
    pub reload: Option<Box<Reload>>,
    /// How it is watched while it is up.
    pub health: Option<Box<Health>>,
    /// Files whose change restarts or reloads it.
    pub watch: Option<Box<Watch>>,
    /// When a task runs; `None`: once per boot and definition.
    pub schedule: Option<Box<Schedule>>,
    /// Commands round the main process.
    pub hooks: Shared<Hooks>,
    /// Where its output goes and how much is kept, where the log keeper reads it.
    pub logs: Shared<Logs>,
}

impl Spec {
    /// A unit of this kind in which nothing is said beyond its name.
    pub fn new(kind: Kind, name: UnitName) -> Self {
        let policy = match kind {
            Kind::Service | Kind::Socket => RestartPolicy::OnFailure,
            Kind::Task | Kind::Target => RestartPolicy::Never,
        };
        Self {
            kind,
            name,
            description: String::new(),
            documentation: Shared::default(),
            labels: Shared::default(),
            enabled: true,
            process: None,
            socket: None,
            relations: Shared::default(),
            conditions: Shared::default(),
            instances: Shared::default(),
            restart: Restart { policy, ..Restart::default() }.into(),
            success_exit: Shared::default(),
            on_success: Shared::default(),
            on_failure: Shared::default(),
            essential: false,
            start_timeout: Span::seconds(60),
            stop: Shared::default(),
            reload: None,
            health: None,
            watch: None,
            schedule: None,
            hooks: Shared::default(),
            logs: Shared::default(),
        }
    }

    /// The instances the unit asks for, in order.
    pub fn instance_ids(&self) -> Vec<InstanceId> {
        match &*self.instances {
            Instances::Count(1) => vec![InstanceId::single(&self.name)],
            Instances::Count(count) => (1..=*count)
                .filter_map(|n| InstanceId::labelled(&self.name, &n.to_string()).ok())
                .collect(),
            Instances::Names(names) => names
                .iter()
                .filter_map(|name| InstanceId::labelled(&self.name, name.as_str()).ok())
                .collect(),
        }
    }

    /// Whether the unit asks for this instance.
    pub fn has_instance(&self, id: &InstanceId) -> bool {
        self.instance_index(id).is_some()
    }

    /// The instance's place in the unit's list, from 1.
    pub fn instance_index(&self, id: &InstanceId) -> Option<u32> {
        match (&*self.instances, id.label()) {
            (Instances::Count(1), None) => Some(1),
            (Instances::Count(count), Some(label)) if *count != 1 => {
                let index = label.parse::<u32>().ok()?;
                let canonical = index.to_string() == label;
                (canonical && (1..=*count).contains(&index)).then_some(index)
            }
            (Instances::Names(names), Some(label)) => {
                let place = names.iter().position(|name| name.as_str() == label)?;
                u32::try_from(place).ok()?.checked_add(1)
            }
            (Instances::Count(_) | Instances::Names(_), Some(_) | None) => None,
        }
    }

    /// The number that an instance's processes are told; of one that the unit asks for no more the one that
    /// its label says, else 1.
    pub fn index_of(&self, id: &InstanceId) -> u32 {
        let by_label = || id.label().and_then(|label| label.parse().ok());
        self.instance_index(id).or_else(by_label).unwrap_or(1)
    }

    /// Those instances whose number among them is another one than in `old`, where a process is told it.
    pub fn renumbered(&self, old: &Self) -> Vec<InstanceId> {
        if !matches!(*self.instances, Instances::Names(_)) || !self.tells_index() {
            return Vec::new();
        }
        let is_other = |id: &InstanceId| {
            old.instance_index(id).is_some_and(|index| self.instance_index(id) != Some(index))
        };
        self.instance_ids().into_iter().filter(is_other).collect()
    }

    /// Whether anything that is fixed at a start depends on an instance's number.
    fn tells_index(&self) -> bool {
        let text = serde_json::to_string(&self.process);
        text.is_ok_and(|text| text.contains("${instance.index}"))
    }

    /// Whether the unit has instances and none of those that it has in `old`.
    pub fn has_only_new_instances(&self, old: &Self) -> bool {
        let ids = self.instance_ids();
        !ids.is_empty() && !ids.iter().any(|id| old.has_instance(id))
    }

    /// Whether this end of a run is a success.
    pub fn is_success(&self, outcome: &Outcome) -> bool {
        outcome.is_one_of(&self.success_exit)
    }

    /// Fingerprint of what is fixed when a run starts: two specs with the same one need no restart.
    pub fn process_hash(&self) -> SpecHash {
        match &self.socket {
            Some(socket) => SpecHash::of(&(self.kind, &socket.listen, &socket.service)),
            None => SpecHash::of(&(self.kind, &self.process)),
        }
    }

    /// Whether nothing that is fixed at a start differs.
    pub fn starts_like(&self, other: &Self) -> bool {
        let fixed = |socket: &Option<Box<Socket>>| {
            socket.as_ref().map(|socket| (socket.listen.clone(), socket.service.clone()))
        };
        self.kind == other.kind
            && self.process == other.process
            && fixed(&self.socket) == fixed(&other.socket)
    }

    /// The directory at which relative paths of the unit start.
    pub fn base_dir(&self) -> Option<&std::path::Path> {
        let process = self.process.as_ref().map(|process| &process.base_dir);
        let socket = || self.socket.as_ref().map(|socket| &socket.base_dir);
        process.or_else(socket).map(FilePath::as_path)
    }

    /// Fingerprint of the whole spec.
    pub fn hash(&self) -> SpecHash {
        SpecHash::of(self)
    }

    /// Whether the log keeper has to read the unit's output.
    pub fn needs_keeper(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.output == Output::Keeper)
    }

    /// The units without which it cannot do what it says, but for those that it waits for (`needs_of`); each with the
    /// key that names it.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &UnitName)> {
        let reader = if let LogTarget::Unit(reader) = &self.logs.to { Some(reader) } else { None };
        let service = self.socket.as_ref().map(|socket| &socket.service);
        let ends = [("on_success", &self.on_success), ("on_failure", &self.on_failure)];
        let started = ends.into_iter().filter_map(|(key, action)| match &**action {
            EndAction::Start(unit) => Some((key, unit)),
            EndAction::None | EndAction::Shutdown => None,
        });
        let reader = reader.map(|reader| ("logs.to", reader));
        reader.into_iter().chain(service.map(|service| ("for", service))).chain(started)
    }

    /// Whether it reads what other units write.
    pub fn reads_logs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| *process.stdin == Stdin::Logs)
    }
}

impl Default for Spec {
    /// What a field that an older opm did not save stands for.
    fn default() -> Self {
        let name = UnitName::parse("unnamed").unwrap_or_else(|_| unreachable!("a valid name"));
        Self::new(Kind::Service, name)
    }
}

/// 64-bit FNV-1a of a value's JSON: stable over builds, platforms and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct SpecHash(pub u64);

impl SpecHash {
    /// The fingerprint of a value.
    pub(super) fn of<T: Serialize>(value: &T) -> Self {
        struct Fnv(u64);
        impl std::io::Write for Fnv {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                for byte in bytes {
                    self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                }
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
        match serde_json::to_writer(&mut fnv, value) {
            Ok(()) => Self(fnv.0),
            // A spec is plain data and the writer cannot fail; a constant would hide a change.
            Err(error) => unreachable!("a spec has a JSON form: {error}"),
        }
    }
}

/// What must hold for a unit to start at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Conditions {
    /// These paths exist.
    pub path_exists: Vec<Template>,
    /// These variables are set and not empty in the run's environment.
    pub env: Vec<String>,
    /// This command exits 0.
    pub command: Option<Command>,
}

impl Conditions {
    /// Whether there is anything to look at before a start, apart from the command.
    pub fn is_trivial(&self) -> bool {
        self.path_exists.is_empty() && self.env.is_empty()
    }
}

/// Which instances a unit has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instances {
    /// So many, labelled from 1; exactly one has no label.
    Count(u32),
    /// One for each of these labels.
    Names(Vec<UnitName>),
}

/// What follows when a unit ended for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndAction {
    /// Nothing.
    None,
    /// opm shuts down.
    Shutdown,
    /// This unit is started.
    Start(UnitName),
}

/// How a unit is told to read its configuration again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reload {
    /// By a signal to its main process.
    Signal(Signal),
    /// By a command.
    Command(Command),
}

/// Commands round the main process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Hooks {
    /// One after another before the main process.
    pub pre_start: Vec<Hook>,
    /// One after another when the run is ready.
    pub post_start: Vec<Hook>,
    /// One after another before a stop that was asked for.
    pub pre_stop: Vec<Hook>,
    /// One after another when all processes of the run are gone, however it ended.
    pub post_stop: Vec<Hook>,
}

/// A command round the main process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// What is run.
    pub command: Command,
    /// Whether its failure is passed over.
    pub ignore_failure: bool,
    /// As whom, where not as the unit's user.
    pub user: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> Spec {
        let mut spec = Spec::new(Kind::Service, UnitName::parse(name).unwrap());
        let command = Command::Argv(vec![Template::literal("true")]);
        spec.process = Some(ProcessSpec::new(command, FilePath::from("/units")));
        spec
    }

    #[test]
    fn a_spec_survives_its_json() {
        let mut spec = spec("web");
        spec.instances = Instances::Names(vec![UnitName::parse("eu").unwrap()]).into();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
    }

    #[test]
    fn a_spec_saved_without_a_field_has_its_default() {
        let spec: Spec = serde_json::from_str(r#"{"kind":"task","name":"a"}"#).unwrap();
        assert_eq!(spec.start_timeout, Span::seconds(60));
        assert!(spec.enabled);
    }

    #[test]
    fn only_what_is_fixed_at_a_start_changes_the_process_hash() {
        let old = spec("web");
        let mut new = old.clone();
        new.restart.policy = RestartPolicy::Always;
        new.stop.steps.clear();
        new.logs.keep = 1;
        assert_eq!(old.process_hash(), new.process_hash());
        assert_ne!(old.hash(), new.hash());
        if let Some(process) = &mut new.process {
            process.env.insert("A".to_owned(), Template::literal("1"));
        }
        assert_ne!(old.process_hash(), new.process_hash());
    }

    #[test]
    fn instances_are_counted_or_named() {
        let mut spec = spec("web");
        assert_eq!(spec.instance_ids(), [InstanceId::parse("web").unwrap()]);
        spec.instances = Instances::Count(2).into();
        let ids: Vec<String> = spec.instance_ids().iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["web@1", "web@2"]);
        assert_eq!(spec.instance_index(&InstanceId::parse("web@2").unwrap()), Some(2));
        for other in ["web", "web@3", "web@0", "web@02"] {
            assert!(!spec.has_instance(&InstanceId::parse(other).unwrap()), "{other}");
        }
        let names = ["eu", "us"].map(|name| UnitName::parse(name).unwrap());
        spec.instances = Instances::Names(names.to_vec()).into();
        assert_eq!(spec.instance_index(&InstanceId::parse("web@us").unwrap()), Some(2));
    }
}
