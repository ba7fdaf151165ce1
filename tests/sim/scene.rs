//! What there is to judge, and the truth so far: what the machine saw, what clients were told, what
//! the supervisor gave as reasons.

use std::collections::{BTreeMap, BTreeSet};

use opm::model::{
    Accept, Condition, Desired, Event, Happening, InstanceId, Kind, Outcome, Ready, Role, RunId,
    Signal, Spec, StopCause, UnitName, Word,
};
use opm::supervisor::Notice;

use crate::machine::Owner;

/// Something that the checks judge.
#[derive(Debug, Clone)]
pub(crate) enum Seen {
    /// A process is let through the gate.
    Goes {
        owner: Owner,
    },
    /// The ledger knows a run that a supervisor before began.
    Known {
        run: RunId,
    },
    /// A process runs its program.
    Begins {
        pid: i32,
        owner: Owner,
    },
    /// Somebody connects to a socket of a unit.
    Connects {
        unit: UnitName,
    },
    /// It says that it is ready.
    Ready {
        owner: Owner,
    },
    /// It says that it is well.
    Pings {
        run: RunId,
    },
    /// It ends.
    Ends {
        pid: i32,
        owner: Owner,
        outcome: Outcome,
    },
    /// A process gets a signal that was meant for this run.
    Signalled {
        target: Option<Owner>,
        meant: RunId,
        signal: Signal,
        is_by_hand: bool,
    },
    /// The supervisor is given an event.
    Told(Event),
    /// The supervisor says what it did.
    Noticed(Notice),
    /// A run is called over.
    Released {
        instance: InstanceId,
        run: RunId,
    },
    /// A client asks for something about these units; `None`: about all.
    Asks {
        units: Option<Vec<UnitName>>,
    },
    /// Somebody changes the files that this unit watches.
    Edited {
        unit: UnitName,
    },
    /// A client is told that these units are held.
    Held {
        units: Vec<UnitName>,
    },
    /// Nobody knows what came of what a client asked.
    Unanswered,
    /// A desired state is being saved.
    Saves {
        desired: Desired,
    },
    /// It is saved and in force.
    Saved {
        desired: Desired,
    },
    /// What was noted was written to the ledger, or not.
    Flushed {
        is_ok: bool,
    },
    /// Due times were saved, or not.
    AgendaSaved {
        is_ok: bool,
    },
    /// A supervisor begins with this.
    Boots {
        desired: Desired,
        /// Whether that survives a loss of power.
        is_sure: bool,
    },
    SupervisorDies,
    /// All processes are gone at once, and the ledger means nothing any more.
    AllEnd,
    /// opm is asked to go down.
    Shutdown,
    TurnOver,
}

/// What every check may look at: the truth so far.
#[derive(Debug, Default)]
pub(crate) struct Scene {
    pub(crate) desired: Desired,
    /// Who else, beside those that require it, may start only when another one is there.
    pub(crate) also_ordered: Vec<(UnitName, UnitName)>,
    pub(crate) live: BTreeMap<i32, Owner>,
    ready: BTreeSet<RunId>,
    /// Main processes that were let go, and did not end.
    gone: BTreeMap<InstanceId, RunId>,
    /// Main processes that the supervisor was told to run, and not that they ended.
    told_running: BTreeMap<InstanceId, RunId>,
    told_ready: BTreeSet<RunId>,
    /// Tasks that came to a good end in this life of the machine.
    finished: BTreeSet<InstanceId>,
    pub(crate) causes: BTreeMap<RunId, StopCause>,
    /// Instances of which nobody knows whether they live.
    unproven: BTreeSet<InstanceId>,
    /// Whether all that was noted is in the ledger.
    pub(crate) is_written: bool,
    /// Whether the latest save of due times failed.
    pub(crate) is_agenda_lost: bool,
    /// Set while opm goes down: whether in order.
    pub(crate) is_ordered: Option<bool>,
}

impl Scene {
    pub(crate) fn spec(&self, unit: &UnitName) -> Option<&Spec> {
        self.desired.units.get(unit).map(|unit| &*unit.spec)
    }

    /// Whether a unit has processes, as far as anybody can know.
    pub(crate) fn lives(&self, unit: &UnitName) -> bool {
        let known = |owner: &&Owner| !self.unproven.contains(&owner.instance);
        self.live.values().filter(known).any(|owner| owner.instance.unit == *unit)
    }

    /// Whether a unit has processes, and nobody knows of any whether it lives.
    pub(crate) fn is_unproven(&self, unit: &UnitName) -> bool {
        let mut of_unit = self.unproven.iter().filter(|id| id.unit == *unit);
        of_unit.next().is_some() && !self.lives(unit)
    }

    /// Whether a service starts with the first connection.
    pub(crate) fn is_lazy(&self, unit: &UnitName) -> bool {
        let units = self.desired.units.values().filter(|unit| !unit.removed);
        let sockets = units.filter_map(|unit| unit.spec.socket.as_ref());
        let mut sockets = sockets.filter(|socket| socket.service == *unit).peekable();
        sockets.peek().is_some() && sockets.all(|socket| socket.accept == Accept::Lazy)
    }

    fn main_of(&self, id: &InstanceId) -> Option<RunId> {
        let main = |owner: &&Owner| owner.instance == *id && owner.role == Some(Role::Main);
        self.live.values().find(main).map(|owner| owner.run)
    }

    /// Whether an instance is what another one needs of it: in truth, or as far as anybody was told.
    pub(crate) fn is_met(&self, spec: &Spec, id: &InstanceId, condition: Condition) -> bool {
        // Who needs a service that waits for a connection may be the one to connect.
        if matches!(spec.kind, Kind::Target | Kind::Socket) || self.is_lazy(&spec.name) {
            return true;
        }
        if spec.kind == Kind::Task || condition == Condition::Completed {
            return self.finished.contains(id);
        }
        let says = spec.process.as_ref().is_some_and(|process| match *process.ready {
            Ready::Notify | Ready::Fd(_) | Ready::File(_) | Ready::Log(_) => true,
            Ready::Started | Ready::Delay(_) | Ready::Asked(_) => false,
        });
        let any = condition == Condition::Started || !says;
        let truth = self.main_of(id).is_some_and(|run| any || self.ready.contains(&run));
        let told = self.told_running.get(id);
        truth || told.is_some_and(|run| any || self.told_ready.contains(run))
    }

    pub(crate) fn see(&mut self, seen: &Seen) {
        match seen {
            Seen::Goes { owner } if owner.role == Some(Role::Main) => {
                self.gone.insert(owner.instance.clone(), owner.run);
            }
            Seen::Begins { pid, owner } => {
                self.live.insert(*pid, owner.clone());
            }
            Seen::Ready { owner } => {
                self.ready.insert(owner.run);
            }
            Seen::Ends { pid, owner, outcome } => {
                self.live.remove(pid);
                self.gone.retain(|_, run| owner.role != Some(Role::Main) || *run != owner.run);
                let spec = self.desired.units.get(&owner.instance.unit).map(|unit| &unit.spec);
                if owner.role == Some(Role::Main)
                    && spec.is_some_and(|spec| spec.is_success(outcome))
                {
                    self.finished.insert(owner.instance.clone());
                }
            }
            Seen::Told(event) => self.told(event),
            Seen::Noticed(notice) => {
                let id = &notice.event.instance;
                match &notice.event.what {
                    Happening::StopBegan { run, cause } => {
                        self.causes.insert(*run, cause.clone());
                    }
                    Happening::Unproven { .. } => {
                        self.unproven.insert(id.clone());
                    }
                    Happening::Adopted { .. } | Happening::Forgotten => {
                        self.unproven.remove(id);
                    }
                    _ => {}
                }
                self.told(&notice.event);
            }
            Seen::Saved { desired } => self.desired.clone_from(desired),
            Seen::Boots { desired, .. } => {
                self.proves_anew(desired);
                self.is_ordered = None;
            }
            Seen::AllEnd => {
                let desired = std::mem::take(&mut self.desired);
                let also_ordered = std::mem::take(&mut self.also_ordered);
                *self = Self { desired, also_ordered, ..Self::default() };
            }
            Seen::Flushed { is_ok } => self.is_written = *is_ok,
            Seen::AgendaSaved { is_ok } => self.is_agenda_lost = !*is_ok,
            // Who asks twice has no patience for order.
            Seen::Shutdown => self.is_ordered = Some(self.is_ordered.is_none()),
            Seen::Goes { .. }
            | Seen::Pings { .. }
            | Seen::Known { .. }
            | Seen::Signalled { .. }
            | Seen::Released { .. }
            | Seen::Connects { .. }
            | Seen::Asks { .. }
            | Seen::Held { .. }
            | Seen::Edited { .. }
            | Seen::Unanswered
            | Seen::Saves { .. }
            | Seen::SupervisorDies
            | Seen::TurnOver => {}
        }
    }

    /// A supervisor goes on with this, and proves anew what lives. What was let go and lives counts
    /// as running its program: nobody can tell a new supervisor that the exec is still to come.
    pub(crate) fn proves_anew(&mut self, desired: &Desired) {
        self.desired.clone_from(desired);
        self.told_running.extend(self.gone.clone());
    }

    fn told(&mut self, event: &Event) {
        match &event.what {
            // Whoever is named the main process runs its program.
            Happening::Execed { run, role: Role::Main }
            | Happening::Word { run, word: Word::MainIs { .. } } => {
                self.told_running.insert(event.instance.clone(), *run);
            }
            Happening::Ready { run } => {
                self.told_ready.insert(*run);
            }
            Happening::Ended { run, role: Role::Main, .. } => {
                self.told_running.retain(|_, running| running != run);
            }
            _ => {}
        }
    }
}
