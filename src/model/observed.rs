//! What is known: per instance its phase, its run, and how the last one ended.
//!
//! [`Observed::apply`] is the one door: nothing else changes a fact. It takes every event in every
//! phase; what an event does where is the golden table `tests/golden/phases.txt`.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::event::{Blocker, Event, Happening, Rung, StopCause, Verdict, Word};
use super::name::InstanceId;
use super::outcome::Outcome;
use super::restart::StartLimit;
use super::run::{End, Life, Process, Run, RunId};
use super::shared::Shared;
use super::spec::SpecHash;
use super::time::{Monotonic, Wall};

/// Everything known about all instances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// In boxes: a node of the map has room for eleven, and is half empty where names came in order.
    instances: BTreeMap<InstanceId, Box<Instance>>,
}

/// What is known about one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Instance {
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since: Monotonic,
    /// Its run, from its beginning until its last process is gone.
    pub run: Option<Run>,
    /// How the last run ended.
    pub last: Option<Box<End>>,
    /// Automatic starts in a row.
    pub attempt: u32,
    /// Runs in a row that failed before they were ready, or restarted then with a unit that they require:
    /// for such a restart `attempt` begins anew. A ready run ends the row, and so does another wish,
    /// definition or due time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub in_vain: u32,
    /// Automatic starts since the unit was last started on purpose; for people.
    pub restarts: u64,
    /// When the latest runs began, oldest first, at most [`StartLimit::STARTS_MAX`].
    pub starts: VecDeque<Monotonic>,
    /// The epoch that the latest run served.
    pub epoch: u64,
    /// What was fixed at the start of the latest run.
    pub hash: SpecHash,
    /// The due time that the latest run served, where the unit has a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Wall>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where an instance is. The phases with a run are `Starting`, `Up`, `Stopping` and `Unproven`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No run, and nothing that would lead to one by itself.
    #[default]
    Down,
    /// It would start, but for these.
    Waiting {
        /// What is in the way.
        on: Vec<Blocker>,
        /// Whether restart counters begin anew when it starts.
        fresh: bool,
    },
    /// A run has begun and is not ready.
    Starting,
    /// The run is ready; a task: it runs.
    Up,
    /// The run is being ended.
    Stopping {
        /// Why.
        cause: StopCause,
        /// How far that is.
        rung: Rung,
        /// Since when it is there.
        rung_since: Monotonic,
        /// Since when those that depend on it are gone and its own end is under way; early where that
        /// is not so yet.
        #[serde(default)]
        own_since: Monotonic,
    },
    /// It will start again.
    Backoff {
        /// Not before this time.
        until: Monotonic,
    },
    /// It has failed for good.
    Failed {
        /// Whether that is because it used up its starts.
        at_limit: bool,
    },
    /// It has ended well, for good.
    Done,
    /// It was not started, because a condition does not hold.
    Skipped {
        /// Which one.
        condition: String,
    },
    /// The ledger names processes that can be neither proven nor excluded: held.
    Unproven {
        /// Why not.
        why: String,
        /// Where it was before, and is again once they are proven.
        #[serde(default)]
        was: Box<Phase>,
    },
}

impl Phase {
    /// The word for the phase in output.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Waiting { .. } => "waiting",
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Stopping { .. } => "stopping",
            Self::Backoff { .. } => "backoff",
            Self::Failed { .. } => "failed",
            Self::Done => "done",
            Self::Skipped { .. } => "skipped",
            Self::Unproven { .. } => "unproven",
        }
    }
}

impl Observed {
    /// What is known about an instance.
    pub fn get(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id).map(|instance| &**instance)
    }

    /// All instances, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&InstanceId, &Instance)> {
        self.instances.iter().map(|(id, instance)| (id, &**instance))
    }

    /// The known instances of a unit, in order.
    pub fn of_unit<'a>(
        &'a self,
        unit: &'a super::UnitName,
    ) -> impl Iterator<Item = (&'a InstanceId, &'a Instance)> {
        let from = self.instances.range(InstanceId::single(unit)..);
        let own = from.take_while(move |(id, _)| id.unit == *unit);
        own.map(|(id, instance)| (id, &**instance))
    }

    /// Takes over an instance's facts as a whole: from the first lines of a compacted ledger.
    pub fn insert(&mut self, id: InstanceId, instance: Instance) {
        self.instances.insert(id, Box::new(instance));
    }

    /// Takes note of what happened. Returns whether any fact changed; an event about a run that is
    /// not current, or about a process that ended already, changes none.
    pub fn apply(&mut self, event: &Event) -> bool {
        let Event { instance: id, at, what } = event;
        if *what == Happening::Forgotten {
            return self.instances.remove(id).is_some();
        }
        let known = self.instances.contains_key(id);
        let instance = self.instances.entry(id.clone()).or_default();
        let changed = instance.apply(*at, what);
        if !known && !changed {
            self.instances.remove(id);
        }
        changed
    }
}

impl Instance {
    /// Whether opm ends because of how its last run ended.
    pub fn has_ended_opm(&self) -> bool {
        self.last.as_ref().is_some_and(|end| end.ends_opm)
    }

    fn enter(&mut self, phase: Phase, at: Monotonic) {
        self.phase = phase;
        self.since = at;
    }

    fn apply(&mut self, at: Monotonic, what: &Happening) -> bool {
        match what {
            Happening::Began { run, epoch, hash, wall, fresh, due } => {
                let first = self.run.is_none();
                if first {
                    if (self.epoch, self.hash, self.due) != (*epoch, *hash, *due) {
                        self.in_vain = 0;
                    }
                    self.begin(at, *run, *wall, *fresh);
                    (self.epoch, self.hash, self.due) = (*epoch, *hash, *due);
                }
                first
            }
            Happening::Spawned { run, role, identity } => {
                let process = Process { identity: Some(*identity), state: Life::Born };
                // A line that was written twice is about the same process.
                let is_known = |run: &Run| {
                    let mut all = run.processes();
                    all.any(|(_, known)| known.identity == Some(*identity))
                };
                self.with_run(*run, |run| !is_known(run) && run.set(*role, process, at))
            }
            Happening::Execed { run, role } => self.with_run(*run, |run| run.execed(*role, at)),
            Happening::AskedAnew { run } => self.with_run(*run, Run::asked_anew),
            Happening::HeldUp { run, role } => self.with_run(*run, |run| run.held_up(*role)),
            Happening::Ended { run, role, outcome } => {
                self.with_run(*run, |run| run.end(*role, outcome, at))
            }
            Happening::Ready { run } => self.become_ready(*run, at),
            Happening::Up { run } => self.up(*run, at),
            Happening::Reloaded { run } => self.with_run(*run, |run| {
                (run.reloaded, run.touched) = (Some(at), None);
                true
            }),
            Happening::Touched { run } => self.touch(*run, at),
            Happening::StopBegan { run, cause } => self.begin_stop(*run, cause, at),
            Happening::Rung { run, rung } => self.take_rung(*run, *rung, at),
            Happening::Tree { run, left } => {
                self.with_run(*run, |run| run.left.replace(*left) != Some(*left))
            }
            Happening::Settled { verdict, ends_opm } => {
                let over = self.run.as_ref().is_none_or(|run| {
                    matches!(self.phase, Phase::Stopping { .. }) && !run.is_alive()
                });
                if over {
                    self.settle(at, verdict);
                    if let Some(last) = &mut self.last {
                        last.ends_opm = *ends_opm;
                    }
                }
                over
            }
            Happening::Waits { on, fresh, epoch } => self.wait_for(on, *fresh, *epoch, at),
            Happening::Listens { run, bound } => self
                .with_run(*run, |run| std::mem::replace(&mut *run.bound, bound.clone()) != *bound),
            Happening::Called { run } => {
                self.with_run(*run, |run| run.called.replace(at) != Some(at))
            }
            Happening::Said { run, status } => self.with_run(*run, |run| run.say(status)),
            Happening::Word { run, word } => self.hear(*run, *word, at),
            Happening::Adopted { run } => self.adopt(*run, at),
            Happening::Unproven { run, why } => {
                let current = self.run.as_ref().is_some_and(|known| known.id == *run);
                if current {
                    self.doubt(why, at);
                }
                current
            }
            Happening::Forgotten => false,
        }
    }

    /// Something that it watches changed. What a start itself writes is no reason for another one.
    fn touch(&mut self, id: RunId, at: Monotonic) -> bool {
        let is_up = self.phase == Phase::Up;
        self.with_run(id, |run| is_up && run.touched.replace(at) != Some(at))
    }

    fn begin(&mut self, at: Monotonic, id: RunId, wall: Wall, fresh: bool) {
        if fresh {
            self.attempt = 0;
            self.restarts = 0;
            self.starts.clear();
        } else {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.starts.push_back(at);
        while self.starts.len() > StartLimit::STARTS_MAX as usize {
            self.starts.pop_front();
        }
        self.run = Some(Run {
            id,
            began: at,
            wall,
            main: None,
            helper: None,
            earlier: Vec::new(),
            asked: None,
            unhealthy: Shared::default(),
            was_healthy: false,
            ready: None,
            reloaded: None,
            touched: None,
            left: None,
            bound: Shared::default(),
            called: None,
            status: String::new(),
            words: Shared::default(),
            adopted: false,
        });
        self.enter(Phase::Starting, at);
    }

    fn wait_for(&mut self, on: &[Blocker], fresh: bool, epoch: Option<u64>, at: Monotonic) -> bool {
        let phase = Phase::Waiting { on: on.to_vec(), fresh };
        let changed = self.run.is_none() && self.phase != phase;
        if changed {
            self.enter(phase, at);
            self.epoch = epoch.unwrap_or(self.epoch);
        }
        changed
    }

    /// Its processes can be neither proven nor excluded; where it was is kept for when they can.
    fn doubt(&mut self, why: &str, at: Monotonic) {
        let before = std::mem::take(&mut self.phase);
        let was = if let Phase::Unproven { was, .. } = before { was } else { Box::new(before) };
        self.enter(Phase::Unproven { why: why.to_owned(), was }, at);
    }

    /// A new supervisor has to count the processes, and to prove anew what could not be proven.
    fn adopt(&mut self, id: RunId, at: Monotonic) -> bool {
        let Some(run) = self.run.as_mut().filter(|run| run.id == id) else { return false };
        let counted = run.left.take().is_some();
        let first = !std::mem::replace(&mut run.adopted, true);
        let began = if run.ready.is_some() { Phase::Up } else { Phase::Starting };
        let Phase::Unproven { was, .. } = &mut self.phase else { return first || counted };
        // An opm before did not note where it was.
        let was = std::mem::take(&mut **was);
        self.enter(if was == Phase::Down { began } else { was }, at);
        true
    }

    /// What a run said, as far as it changes anything.
    fn hear(&mut self, id: RunId, word: Word, at: Monotonic) -> bool {
        if let Word::MoreTime(until) = word {
            return self.extend(id, until);
        }
        self.with_run(id, |run| match word {
            Word::Does(doing) => std::mem::replace(&mut run.words.doing, doing) != doing,
            Word::Well => run.words.well.replace(at) != Some(at),
            Word::Failed => !std::mem::replace(&mut run.words.failed, true),
            Word::Silence(silence) => run.words.silence.replace(silence) != Some(silence),
            Word::MainIs { identity, was } => run.change_main(identity, was, at),
            Word::MoreTime(_) => false,
        })
    }

    fn become_ready(&mut self, id: RunId, at: Monotonic) -> bool {
        let first = self.with_run(id, |run| {
            let first = run.ready.is_none();
            run.ready.get_or_insert(at);
            first
        });
        if first {
            self.in_vain = 0;
        }
        first
    }

    fn up(&mut self, id: RunId, at: Monotonic) -> bool {
        let current = self.run.as_ref().is_some_and(|run| run.id == id);
        let starting = self.phase == Phase::Starting;
        if current && starting {
            self.enter(Phase::Up, at);
            self.with_run(id, Run::forget_more_time);
        }
        current && starting
    }

    /// More time counts where there is a deadline, and only beyond what was given before.
    fn extend(&mut self, id: RunId, until: Monotonic) -> bool {
        let has_deadline =
            matches!(self.phase, Phase::Starting | Phase::Stopping { rung: Rung::Step(_), .. });
        self.with_run(id, |run| {
            let more = has_deadline && run.words.more_time.is_none_or(|known| known < until);
            if more {
                run.words.more_time = Some(until);
            }
            more
        })
    }

    fn begin_stop(&mut self, id: RunId, cause: &StopCause, at: Monotonic) -> bool {
        let current = self.run.as_ref().is_some_and(|run| run.id == id);
        let running = matches!(self.phase, Phase::Starting | Phase::Up);
        if current && running {
            let (cause, rung) = (cause.clone(), Rung::Dependents);
            let own_since = Monotonic::default();
            self.enter(Phase::Stopping { cause, rung, rung_since: at, own_since }, at);
            self.with_run(id, Run::forget_more_time);
        }
        current && running
    }

    fn take_rung(&mut self, id: RunId, new: Rung, at: Monotonic) -> bool {
        if self.run.as_ref().is_none_or(|run| run.id != id) {
            return false;
        }
        if let Phase::Stopping { rung, rung_since, own_since, .. } = &mut self.phase
            && *rung < new
        {
            if *rung == Rung::Dependents {
                *own_since = at;
            }
            *rung = new;
            *rung_since = at;
            return self.with_run(id, Run::forget_more_time);
        }
        false
    }

    /// The run is over, or there was none and minds changed.
    fn settle(&mut self, at: Monotonic, verdict: &Verdict) {
        if let Some(run) = self.run.take() {
            let (cause, stops_since) = if let Phase::Stopping { cause, .. } = &self.phase {
                (cause.clone(), self.since)
            } else {
                (StopCause::MainEnded, at)
            };
            let is_in_vain = run.ready.is_none() && cause.is_failure();
            self.in_vain = if is_in_vain { self.in_vain.saturating_add(1) } else { 0 };
            let end = run.as_end(cause, stops_since, at);
            // A start that came to nothing for want of something counts towards no limit of the unit's.
            if matches!(&end.outcome, Some(Outcome::NotStarted(error)) if error.passing) {
                self.starts.pop_back();
            }
            self.last = Some(Box::new(end));
        } else if *verdict == Verdict::Down {
            self.in_vain = 0;
        }
        let phase = match verdict {
            Verdict::Down => Phase::Down,
            Verdict::Backoff { until, attempt } => {
                self.attempt = *attempt;
                Phase::Backoff { until: *until }
            }
            Verdict::Failed { at_limit } => Phase::Failed { at_limit: *at_limit },
            Verdict::Done => Phase::Done,
            Verdict::Skipped { condition } => Phase::Skipped { condition: condition.clone() },
        };
        self.enter(phase, at);
    }

    /// Changes the run, if it is the current one.
    fn with_run(&mut self, id: RunId, change: impl FnOnce(&mut Run) -> bool) -> bool {
        self.run.as_mut().filter(|run| run.id == id).is_some_and(change)
    }
}
