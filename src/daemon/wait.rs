//! Waiting for instances to be somewhere.
//!
//! A wait looks at every instance once, and then only at those that something happened to, so that
//! its cost does not grow with how many it waits for. At those that wait for others it looks again where
//! one comes to a stand that others may wait for, or leaves it, which is rare.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::model::{Gather, InstanceId, Kind, Monotonic, Phase, Role, UnitName};
use crate::plan::{self, Outlook, Outlooks, View};
use crate::protocol::Reply;
use crate::supervisor::{Notice, Row, Supervisor};
use crate::system::{Linux, System};

/// Where instances are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Up,
    Ready,
    Down,
    /// Down, and nobody wants it up again.
    Stopped,
    Completed,
    /// Told to read its configuration again, by a command that has ended well.
    Reloaded,
    Settled,
}

/// How an instance stands towards a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It is there.
    Reached,
    /// It is on its way.
    Open,
    /// It will not come there by itself.
    Hopeless,
}

impl Goal {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "up" => Self::Up,
            "ready" => Self::Ready,
            "down" => Self::Down,
            "stopped" => Self::Stopped,
            "completed" => Self::Completed,
            "reloaded" => Self::Reloaded,
            "settled" => Self::Settled,
            _ => return None,
        })
    }

    /// Whether nothing is to be up.
    fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::Stopped)
    }

    fn standing(self, phase: &Phase, kind: Option<Kind>, outlook: Outlook) -> Progress {
        let is_task = kind == Some(Kind::Task);
        let reached = match self {
            Self::Up => matches!(phase, Phase::Up | Phase::Done),
            Self::Ready => matches!(phase, Phase::Done) || (*phase == Phase::Up && !is_task),
            Self::Completed => *phase == Phase::Done,
            // Whoever waits for one that does not come has no process and gets none.
            Self::Down | Self::Stopped => match phase {
                Phase::Done | Phase::Failed { .. } | Phase::Skipped { .. } => true,
                Phase::Down | Phase::Waiting { .. } => outlook == Outlook::Stays,
                Phase::Starting
                | Phase::Up
                | Phase::Stopping { .. }
                | Phase::Backoff { .. }
                | Phase::Unproven { .. } => false,
            },
            Self::Reloaded | Self::Settled => return Progress::Open,
        };
        match (reached, outlook) {
            (true, _) => Progress::Reached,
            (false, Outlook::Moves) => Progress::Open,
            // It may end, or somebody may stop it.
            (false, Outlook::Stays) if self.is_down() && *phase == Phase::Up => Progress::Open,
            (false, Outlook::Stays) => Progress::Hopeless,
        }
    }
}

/// How the command stands that reloads an instance. Where its run goes away nothing comes of it.
fn reload_of(view: &View<'_>, id: &InstanceId) -> Progress {
    let up = view.observed.get(id).filter(|instance| instance.phase == Phase::Up);
    let Some(run) = up.and_then(|instance| instance.run.as_ref()) else {
        return Progress::Hopeless;
    };
    match run.process(Role::Reload) {
        Some(reload) if reload.is_alive() => Progress::Open,
        _ if run.failed_reload().is_some() => Progress::Hopeless,
        _ => Progress::Reached,
    }
}

/// A wait of one client.
pub(super) struct Wait {
    goal: Goal,
    deadline: Option<Monotonic>,
    more: bool,
    /// Whether the last reply leaves out what is at rest where it should be.
    brief: bool,
    /// Whether nothing was looked at yet: what was asked before it has to be carried out first.
    fresh: bool,
    /// What was wanted when it last looked: a change of that is no event of any instance's.
    generation: u64,
    standings: BTreeMap<InstanceId, Progress>,
    /// Those that wait for others: what becomes of these changes what becomes of them.
    waiting: BTreeSet<InstanceId>,
    /// All that others wait for in vain.
    still: BTreeSet<InstanceId>,
    open: usize,
}

impl Wait {
    /// A wait that has not looked at anything yet. `more`: every change on the way is told. `brief`: at
    /// the end only what is not at rest where it should be.
    pub(super) fn new(
        ids: Vec<InstanceId>,
        goal: Goal,
        deadline: Option<Monotonic>,
        more: bool,
        brief: bool,
    ) -> Self {
        let open = ids.len();
        let standings = ids.into_iter().map(|id| (id, Progress::Open)).gather();
        let (waiting, still) = (BTreeSet::new(), BTreeSet::new());
        Self {
            goal,
            deadline,
            more,
            brief,
            fresh: true,
            generation: 0,
            standings,
            waiting,
            still,
            open,
        }
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.deadline
    }

    /// A look at everything, the first time, and else at what something happened to: what to tell
    /// now, and whether that is the end.
    pub(super) fn update(
        &mut self,
        supervisor: &Supervisor<Linux>,
        notices: &[Notice],
    ) -> (Option<Reply>, bool) {
        let generation = supervisor.desired().generation;
        let is_other = std::mem::replace(&mut self.generation, generation) != generation;
        let is_first = std::mem::take(&mut self.fresh) || is_other;
        let mut touched: BTreeSet<InstanceId> = if is_first {
            self.standings.keys().cloned().gather()
        } else {
            notices.iter().map(|notice| notice.event.instance.clone()).gather()
        };
        let view = supervisor.view();
        // What happens to one says whose turn it is, and whether a turn comes at all.
        let is_rolling =
            |id: &&InstanceId| view.unit(id).is_some_and(|unit| unit.rolling.is_some());
        let rolling: BTreeSet<&UnitName> =
            touched.iter().filter(is_rolling).map(|id| &id.unit).gather();
        let siblings: Vec<InstanceId> =
            rolling.into_iter().flat_map(|unit| view.instances(unit)).collect();
        touched.extend(siblings);
        let mut outlooks = Outlooks::of_all(view);
        let is_news = !matches!(self.goal, Goal::Settled | Goal::Reloaded)
            && if is_first {
                let known = outlooks.view.observed.iter().map(|(id, _)| id.clone());
                let units = outlooks.view.desired.units.values();
                let wanted = units.flat_map(|unit| unit.spec.instance_ids());
                self.note_still(&mut outlooks, &known.chain(wanted).gather())
            } else {
                self.note_still(&mut outlooks, &touched)
            };
        touched.retain(|id| self.standings.contains_key(id));
        for id in &touched {
            let is_settled = plan::is_settled(&outlooks.view, id);
            self.look(&mut outlooks, id, is_settled);
        }
        if is_news {
            for id in self.waiting.difference(&touched).cloned().collect::<Vec<_>>() {
                self.look(&mut outlooks, &id, false);
            }
        }
        self.tell(supervisor, &touched)
    }

    /// Takes note of which of these others wait for in vain. Returns whether that changed for any.
    fn note_still(&mut self, outlooks: &mut Outlooks<'_>, ids: &BTreeSet<InstanceId>) -> bool {
        let mut changed = false;
        for id in ids {
            let is_still = outlooks.is_still(id);
            changed |= is_still != self.still.contains(id);
            if is_still {
                self.still.insert(id.clone());
            } else {
                self.still.remove(id);
            }
        }
        changed
    }

    fn look(&mut self, outlooks: &mut Outlooks<'_>, id: &InstanceId, settled: bool) {
        let blank = Phase::Down;
        let phase = outlooks.view.observed.get(id).map_or(&blank, |instance| &instance.phase);
        let kind = outlooks.view.unit(id).map(|unit| unit.spec.kind);
        let new = match self.goal {
            Goal::Settled if settled => Progress::Reached,
            Goal::Reloaded => reload_of(&outlooks.view, id),
            Goal::Stopped if outlooks.view.wants(id) => Progress::Hopeless,
            goal @ (Goal::Settled
            | Goal::Up
            | Goal::Ready
            | Goal::Down
            | Goal::Stopped
            | Goal::Completed) => {
                let standing = goal.standing(phase, kind, outlooks.of(id));
                // What only waits until it is due comes by itself.
                let comes = !goal.is_down() && plan::rests_until_due(&outlooks.view, id);
                if comes && standing == Progress::Hopeless { Progress::Open } else { standing }
            }
        };
        if matches!(phase, Phase::Waiting { .. }) {
            self.waiting.insert(id.clone());
        } else {
            self.waiting.remove(id);
        }
        let Some(standing) = self.standings.get_mut(id) else { return };
        match (*standing == Progress::Open, new == Progress::Open) {
            (true, false) => self.open = self.open.saturating_sub(1),
            (false, true) => self.open = self.open.saturating_add(1),
            (true, true) | (false, false) => {}
        }
        *standing = new;
    }

    /// A row for each of these but, where the wait is brief, for what nobody needs to hear of.
    fn rows<'a>(
        &self,
        supervisor: &Supervisor<Linux>,
        ids: impl Iterator<Item = &'a InstanceId>,
        is_end: bool,
    ) -> Vec<Row> {
        let view = supervisor.view();
        let is_well = |id: &InstanceId| {
            let known = view.observed.get(id);
            let is_there =
                known.is_some_and(|known| matches!(known.phase, Phase::Up | Phase::Done));
            let is_settled = || match (self.goal, self.standings.get(id)) {
                (Goal::Settled | Goal::Reloaded, Some(standing)) => *standing == Progress::Reached,
                _ => plan::is_settled(&view, id),
            };
            (is_there || !view.wants(id)) && is_settled()
        };
        let is_left_out = |id: &&InstanceId| self.brief && is_end && is_well(id);
        ids.filter(|id| !is_left_out(id)).map(|id| supervisor.row(id)).collect()
    }

    /// What to tell after something happened to these.
    fn tell(
        &self,
        supervisor: &Supervisor<Linux>,
        touched: &BTreeSet<InstanceId>,
    ) -> (Option<Reply>, bool) {
        let late = self.deadline.is_some_and(|deadline| supervisor.system().now() >= deadline);
        let reached = self.standings.values().all(|standing| *standing == Progress::Reached);
        // Nothing comes up any more. Whoever waits for rest is told: all that is not wanted rests.
        let is_moot = self.goal.is_down() || (reached && self.goal != Goal::Settled);
        let ends = supervisor.shutdown().filter(|_| !is_moot);
        if self.open > 0 && !late && ends.is_none() {
            if !self.more || touched.is_empty() {
                return (None, false);
            }
            let rows = self.rows(supervisor, touched.iter(), false);
            return (Some(Reply::one_of_more(json!({ "instances": rows }))), false);
        }
        let result = match (self.open, reached) {
            _ if ends.is_some() => "shutdown",
            (0, true) => "reached",
            (0, false) => "failed",
            _ => "timeout",
        };
        let rows = self.rows(supervisor, self.standings.keys(), true);
        let why = ends.map(|shutdown| &shutdown.why);
        let code = ends.filter(|shutdown| !shutdown.is_asked).map(|shutdown| shutdown.code);
        let told = json!({ "result": result, "instances": rows, "why": why, "code": code });
        (Some(Reply::last(told)), true)
    }
}
