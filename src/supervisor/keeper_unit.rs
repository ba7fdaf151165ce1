//! The log keeper as a unit like any other: started, watched, restarted and adopted by the same
//! reconciler. It is there while any unit's output needs it, and goes last.

use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{
    Command, Desired, FilePath, Gather, InstanceId, Kind, Output, ProcessSpec, RestartPolicy, Span,
    Spec, Template, Unit, UnitName,
};

/// Its name; unit files cannot have names like this.
const NAME: &str = "_opm-log-keeper";
/// The source of units that no file declares; they are not saved.
pub(super) const SOURCE: &str = "(opm)";

/// How the log keeper is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperOptions {
    /// The directory of sockets and FIFOs.
    pub run_dir: PathBuf,
    /// Whether every line goes to opm's standard output too.
    pub console: bool,
    /// Whether that is coloured.
    pub colour: bool,
    /// Most bytes of all finished files in the directory of logs.
    pub quota: Option<(PathBuf, u64)>,
}

pub(super) fn is_keeper(unit: &UnitName) -> bool {
    unit.as_str() == NAME
}

/// The source of the unit of `opm run -- CMD`. The command line says it each time; what was asked of it since
/// is saved.
pub const COMMAND_SOURCE: &str = "(command line)";

/// Whether a unit is opm's own.
pub(super) fn is_internal(unit: &Unit) -> bool {
    *unit.source == *SOURCE
}

pub(super) fn instance() -> InstanceId {
    InstanceId::single(&name())
}

fn name() -> UnitName {
    UnitName::parse(NAME).unwrap_or_else(|_| unreachable!("a valid name"))
}

/// Puts the keeper's unit into a desired state, wanted where any unit needs it.
pub(super) fn add_to(desired: &mut Desired, options: &KeeperOptions) {
    let needed = desired.units.values().any(|unit| unit.spec.needs_keeper());
    let mut argv = vec!["/proc/self/exe".to_owned(), "log-keeper".to_owned()];
    if options.console {
        argv.push("--console".to_owned());
    }
    if options.colour {
        argv.push("--colour".to_owned());
    }
    let mut argv: Vec<Template> = argv.iter().map(|text| Template::literal(text)).collect();
    argv.push(Template::literal("--run-dir"));
    argv.push(Template::literal(&options.run_dir.to_string_lossy()));
    if let Some((dir, bytes)) = &options.quota {
        argv.push(Template::literal("--log-dir"));
        argv.push(Template::literal(&dir.to_string_lossy()));
        argv.push(Template::literal("--quota"));
        argv.push(Template::literal(&bytes.to_string()));
    }
    let mut process = ProcessSpec::new(Command::Argv(argv), FilePath::from("/"));
    process.output = Output::Inherit;
    let mut spec = Spec::new(Kind::Service, name());
    "reads what the units write and keeps it".clone_into(&mut spec.description);
    spec.process = Some(process);
    spec.enabled = needed;
    spec.restart.policy = RestartPolicy::Always;
    // Services wait on full FIFOs meanwhile, and what is in the FIFO of one that ends is lost if we
    // are killed too: back at once, then with growing patience, but soon.
    spec.restart.delay = Span::millis(5);
    spec.restart.max_delay = Span::seconds(1);
    spec.restart.reset_after = Span::seconds(1);
    let mut unit = Unit::new(Arc::new(spec), SOURCE);
    // With a default target nothing else would want it.
    unit.started = needed;
    desired.units.insert(name(), unit);
}

/// Takes opm's own units out of a desired state before it is saved.
pub(super) fn without_internal(desired: &Desired) -> Desired {
    let units = desired.units.iter().filter(|(_, unit)| !is_internal(unit));
    Desired {
        generation: desired.generation,
        units: units.map(|(name, unit)| (name.clone(), unit.clone())).gather(),
        sources: desired.sources.clone(),
        applied: desired.applied,
        trial: desired.trial.clone(),
        gone: desired.gone.clone(),
    }
}
