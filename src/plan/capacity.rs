//! Whether all that is to be up can be up at the same time: what it takes for good, in descriptors of
//! the supervisor and in processes, against what there is.
//!
//! What a start takes for a moment is not counted: starts wait their turn for that.

use crate::model::{Desired, Graph, Kind, Output, ProcessSpec, Ready, Stdin, Unit, UnitName};

/// Descriptors that are never for units: what is kept free of starts, and opm's own files. With a low
/// limit no more than [`OWN_SHARE`] of it.
const OWN_DESCRIPTORS: u64 = 48;
/// The part of a low limit that is opm's own.
const OWN_SHARE: u64 = 3;
/// Processes that are not of units: opm, its log keeper, and what else a machine needs at least.
const OWN_PROCESSES: u64 = 8;

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The limit of open descriptors, `RLIMIT_NOFILE`.
    pub descriptors: u64,
    /// How many numbers there are for processes, `kernel.pid_max`.
    pub processes: u64,
}

/// What is taken for as long as everything is up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Taken {
    amount: u64,
    /// The unit that takes most of it.
    most: Option<(u64, UnitName)>,
}

impl Taken {
    fn add(&mut self, amount: u64, unit: &UnitName) {
        self.amount = self.amount.saturating_add(amount);
        if self.most.as_ref().is_none_or(|(most, _)| amount > *most) {
            self.most = Some((amount, unit.clone()));
        }
    }
}

impl Capacity {
    fn for_units(self) -> u64 {
        self.descriptors.saturating_sub(OWN_DESCRIPTORS.min(self.descriptors / OWN_SHARE))
    }

    /// What to say where not all of a desired state can be up at a time; nothing of one that takes
    /// no more than the one before, which is there already.
    pub fn shortage(self, old: &Desired, new: &Desired) -> Option<String> {
        let ((descriptors, processes), (old_descriptors, old_processes)) = (taken(new), taken(old));
        let most = |taken: &Taken, what: &str| match &taken.most {
            Some((amount, unit)) => format!("`{unit}` alone takes {amount} {what}"),
            None => String::new(),
        };
        let room = self.for_units();
        if descriptors.amount > room.max(old_descriptors.amount) {
            let needed = descriptors.amount.saturating_add(OWN_DESCRIPTORS);
            return Some(format!(
                "the units that are to be up take {} descriptors, and the limit of {} (RLIMIT_NOFILE) \
                 leaves them {room}; {}. Start opm with a hard limit of {needed} or more (`ulimit -Hn`, \
                 `docker run --ulimit nofile=…`), or send output elsewhere, as `logs: {{to: null}}` does",
                descriptors.amount,
                self.descriptors,
                most(&descriptors, "of them"),
            ));
        }
        let room = self.processes.saturating_sub(OWN_PROCESSES);
        if processes.amount > room.max(old_processes.amount) {
            return Some(format!(
                "the units that are to be up are {} processes, and the system has numbers for {}; {}. \
                 Raise `kernel.pid_max` (sysctl(8)), or ask for fewer instances",
                processes.amount,
                self.processes,
                most(&processes, "of them"),
            ));
        }
        None
    }
}

/// The descriptors and the processes of all that is to be up.
fn taken(desired: &Desired) -> (Taken, Taken) {
    let graph = Graph::build(desired);
    let mut all = (Taken::default(), Taken::default());
    let is_up = |unit: &&Unit| !unit.removed && graph.is_wanted(&unit.spec.name);
    for unit in desired.units.values().filter(is_up) {
        let name = &unit.spec.name;
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let instances = count(unit.spec.instance_ids().len());
        if let Some(socket) = &unit.spec.socket {
            all.0.add(count(socket.listen.len()), name);
        }
        if let Some(process) =
            unit.spec.process.as_ref().filter(|_| unit.spec.kind == Kind::Service)
        {
            all.0.add(instances.saturating_mul(of_a_run(process)), name);
            all.1.add(instances, name);
        }
    }
    all
}

/// The descriptors that a run of a service takes while it is up: one for its output, one for what it
/// says, one on which it or the log keeper says that it is ready, one for what others write to it.
fn of_a_run(process: &ProcessSpec) -> u64 {
    let hears = process.ready == Ready::Notify || process.watchdog.is_some();
    let is_told = matches!(*process.ready, Ready::Fd(_) | Ready::Log(_));
    let all = [process.output == Output::Keeper, hears, is_told, process.stdin == Stdin::Logs];
    all.into_iter().map(u64::from).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Command, FilePath, Instances, Span, Spec, Template};

    fn service(name: &str, instances: u32) -> Spec {
        let mut spec = Spec::new(Kind::Service, UnitName::parse(name).unwrap());
        let command = Command::Argv(vec![Template::literal("true")]);
        spec.process = Some(ProcessSpec::new(command, FilePath::from("/")));
        spec.instances = Instances::Count(instances).into();
        spec
    }

    fn desired(specs: &[Spec]) -> Desired {
        let unit = |spec: &Spec| Unit::new(Arc::new(spec.clone()), "-".to_owned());
        let units = specs.iter().map(|spec| (spec.name.clone(), unit(spec))).collect();
        Desired { generation: 1, units, ..Desired::default() }
    }

    const USUAL: Capacity = Capacity { descriptors: 1_024, processes: 32_768 };

    #[test]
    fn what_fits_is_not_spoken_of() {
        let (none, mut web) = (Desired::default(), service("web", 976));
        assert_eq!(USUAL.shortage(&none, &desired(&[web.clone()])), None);
        web.instances = Instances::Count(977).into();
        let more = desired(&[web.clone()]);
        let said = USUAL.shortage(&none, &more).unwrap();
        assert!(said.contains("take 977 descriptors"), "{said}");
        assert!(
            said.contains("limit of 1024 (RLIMIT_NOFILE) leaves them 976; `web` alone"),
            "{said}"
        );
        assert!(said.contains("hard limit of 1025 or more"), "{said}");
        assert_eq!(USUAL.shortage(&more, &more), None, "it is there already");
        web.enabled = false;
        assert_eq!(USUAL.shortage(&none, &desired(&[web])), None, "it is not to be up");
    }

    #[test]
    fn output_words_and_input_take_a_descriptor_each() {
        let mut web = service("web", 500);
        let process = web.process.as_mut().unwrap();
        process.watchdog = Some(Span::seconds(1));
        let both = desired(&[web.clone()]);
        assert!(USUAL.shortage(&Desired::default(), &both).unwrap().contains("take 1000"));
        web.process.as_mut().unwrap().output = Output::Null;
        assert_eq!(USUAL.shortage(&Desired::default(), &desired(&[web.clone()])), None);
        web.process.as_mut().unwrap().stdin = Stdin::Logs.into();
        let said = USUAL.shortage(&Desired::default(), &desired(&[web])).unwrap();
        assert!(said.contains("take 1000"), "{said}");
    }

    #[test]
    fn there_is_a_number_for_each_process() {
        let mut many = service("many", 100);
        many.process.as_mut().unwrap().output = Output::Null;
        let room = Capacity { processes: 100, ..USUAL };
        let said = room.shortage(&Desired::default(), &desired(&[many])).unwrap();
        assert!(said.contains("are 100 processes, and the system has numbers for 100"), "{said}");
        assert!(said.contains("kernel.pid_max"), "{said}");
    }

    #[test]
    fn each_way_in_which_a_run_is_heard_takes_a_descriptor() {
        for (ready, takes) in [
            (Ready::Started, 1),
            (Ready::Notify, 2),
            (Ready::Fd(3), 2),
            (Ready::Log("up".to_owned()), 2),
        ] {
            let mut spec = service("web", 1);
            let process = spec.process.as_mut().unwrap();
            process.ready = ready.into();
            assert_eq!(of_a_run(process), takes, "{:?}", process.ready);
        }
    }
}
