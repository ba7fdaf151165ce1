//! Addresses of the simulated machine: who listens, who has connected, and what strangers took.

use std::collections::{BTreeMap, BTreeSet};

use opm::model::{Bound, InstanceId, RunId, UnitName};
use opm::system::Listening;

use crate::machine::{Life, Machine, Wire};
use crate::scene::Seen;

/// The sockets of one instance.
#[derive(Debug)]
struct Open {
    run: RunId,
    service: UnitName,
    bound: Vec<Bound>,
    is_watched: bool,
    /// Whether somebody has connected and was not taken.
    is_called: bool,
}

/// All addresses of a machine.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    open: BTreeMap<InstanceId, Open>,
    /// Those that strangers have.
    pub(crate) taken: BTreeSet<String>,
    next_inode: u64,
}

impl Ports {
    /// All that listened is gone.
    pub(crate) fn open_none(&mut self) {
        self.open.clear();
    }
}

impl Machine {
    /// Listens at all addresses of a unit, or at none; the error is the one that is taken.
    pub(crate) fn listen(&mut self, listening: &Listening<'_>) -> Result<Vec<Bound>, String> {
        let socket = listening.spec.socket.as_ref().unwrap();
        let old = self.ports.open.get(listening.instance);
        let mut bound = Vec::new();
        for one in &socket.listen {
            let at = one.address.to_string();
            let known = old.and_then(|open| open.bound.iter().find(|bound| bound.at == at));
            if let Some(known) = known {
                bound.push(known.clone());
            } else if self.ports.taken.contains(&at) {
                return Err(at);
            } else {
                self.ports.next_inode += 1;
                bound.push(Bound { at, inode: self.ports.next_inode, file: None });
            }
        }
        let (run, service) = (listening.run, socket.service.clone());
        let (is_watched, is_called) =
            old.map_or((false, false), |open| (open.is_watched, open.is_called));
        let open = Open { run, service, bound: bound.clone(), is_watched, is_called };
        self.ports.open.insert(listening.instance.clone(), open);
        Ok(bound)
    }

    pub(crate) fn close_sockets(&mut self, instance: &InstanceId) {
        self.ports.open.remove(instance);
    }

    pub(crate) fn watch_sockets(&mut self, instance: &InstanceId, watch: bool) {
        let Some(open) = self.ports.open.get_mut(instance) else { return };
        let begins = watch && !open.is_watched;
        open.is_watched = watch;
        if begins && open.is_called {
            let run = open.run;
            self.tell(Wire::Caller(run));
        }
    }

    /// What there is to see where the wire said that somebody has connected: it is told once.
    pub(crate) fn called(&mut self, run: RunId) -> Option<(InstanceId, RunId)> {
        let mut all = self.ports.open.iter_mut();
        let (id, open) = all.find(|(_, open)| open.run == run)?;
        let is_news = open.is_watched && open.is_called;
        open.is_watched = false;
        is_news.then(|| (id.clone(), run))
    }

    /// Somebody connects to all sockets of a service.
    pub(crate) fn connect(&mut self, service: &UnitName) {
        let mut runs = Vec::new();
        let mut is_open = false;
        for open in self.ports.open.values_mut().filter(|open| open.service == *service) {
            is_open = true;
            open.is_called = true;
            if open.is_watched {
                runs.push(open.run);
            }
        }
        for run in runs {
            self.tell(Wire::Caller(run));
        }
        if is_open {
            self.see(Seen::Connects { unit: service.clone() });
        }
        self.take_callers();
    }

    /// A service that runs takes who has connected.
    pub(crate) fn take_callers(&mut self) {
        let takes = self.processes.values().filter(|p| p.life == Life::Running && p.is_main());
        let services: BTreeSet<UnitName> = takes
            .filter(|p| p.end_at.is_none())
            .filter_map(|p| Some(p.owner.as_ref()?.instance.unit.clone()))
            .collect();
        for open in self.ports.open.values_mut() {
            open.is_called &= !services.contains(&open.service);
        }
    }

    /// A supervisor is gone: what no service has is closed.
    pub(crate) fn lose_ports(&mut self) {
        let living: BTreeSet<UnitName> = self
            .processes
            .values()
            .filter(|process| process.is_alive() && process.is_main())
            .filter_map(|process| Some(process.owner.as_ref()?.instance.unit.clone()))
            .collect();
        self.ports.open.retain(|_, open| living.contains(&open.service));
        self.leave_ports();
    }

    /// Another program is to watch them.
    pub(crate) fn leave_ports(&mut self) {
        self.ports.open.values_mut().for_each(|open| open.is_watched = false);
    }
}
