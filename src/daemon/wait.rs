//! Waiting for instances to be somewhere.
//!
//! A wait looks at every instance once, and then only at those that something happened to, so that
//! its cost does not grow with how many it waits for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::model::{InstanceId, Monotonic};
use crate::protocol::Reply;
use crate::supervisor::{Notice, Row, Supervisor};
use crate::system::{Linux, System};

/// Where instances are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Up,
    Ready,
    Down,
    Completed,
    Settled,
}

/// How an instance stands towards a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
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
            "completed" => Self::Completed,
            "settled" => Self::Settled,
            _ => return None,
        })
    }

    fn standing(self, row: &Row) -> Standing {
        let phase = row.phase.as_str();
        let reached = match self {
            Self::Up => phase == "up" || phase == "done",
            Self::Ready => (phase == "up" && row.kind != "task") || phase == "done",
            Self::Completed => phase == "done",
            Self::Down => matches!(phase, "down" | "done" | "failed" | "skipped"),
            Self::Settled => row.settled,
        };
        if reached {
            return Standing::Reached;
        }
        let rests = row.settled && !matches!(phase, "up" | "backoff" | "waiting");
        let completes_never = self == Self::Completed && phase == "up" && row.kind != "task";
        let is_unwanted = !row.wanted && row.settled;
        if completes_never || (self != Self::Down && (rests || is_unwanted)) {
            Standing::Hopeless
        } else {
            Standing::Open
        }
    }
}

/// A wait of one client.
pub(super) struct Wait {
    goal: Goal,
    deadline: Option<Monotonic>,
    more: bool,
    standings: BTreeMap<InstanceId, Standing>,
    open: usize,
}

impl Wait {
    /// A wait that has not looked at anything yet. `more`: every change on the way is told.
    pub(super) fn new(
        ids: Vec<InstanceId>,
        goal: Goal,
        deadline: Option<Monotonic>,
        more: bool,
    ) -> Self {
        let open = ids.len();
        let standings = ids.into_iter().map(|id| (id, Standing::Open)).collect();
        Self { goal, deadline, more, standings, open }
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.deadline
    }

    /// The first look, at everything: what to tell now, and whether that is the end.
    pub(super) fn begin(&mut self, supervisor: &Supervisor<Linux>) -> (Option<Reply>, bool) {
        let ids: Vec<InstanceId> = self.standings.keys().cloned().collect();
        self.open = ids.len();
        let rows = self.look(supervisor, ids.iter());
        self.tell(supervisor, &rows)
    }

    /// A look at what something happened to.
    pub(super) fn update(
        &mut self,
        supervisor: &Supervisor<Linux>,
        notices: &[Notice],
    ) -> (Option<Reply>, bool) {
        let touched: BTreeSet<&InstanceId> =
            notices.iter().map(|notice| &notice.event.instance).collect();
        let rows = self.look(supervisor, touched);
        self.tell(supervisor, &rows)
    }

    fn look<'a>(
        &mut self,
        supervisor: &Supervisor<Linux>,
        ids: impl IntoIterator<Item = &'a InstanceId>,
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        for id in ids {
            let Some(standing) = self.standings.get_mut(id) else { continue };
            let row = supervisor.row(id);
            let new = self.goal.standing(&row);
            match (*standing == Standing::Open, new == Standing::Open) {
                (true, false) => self.open = self.open.saturating_sub(1),
                (false, true) => self.open = self.open.saturating_add(1),
                (true, true) | (false, false) => {}
            }
            *standing = new;
            rows.push(row);
        }
        rows
    }

    fn tell(&self, supervisor: &Supervisor<Linux>, rows: &[Row]) -> (Option<Reply>, bool) {
        let late = self.deadline.is_some_and(|deadline| supervisor.system().now() >= deadline);
        if self.open > 0 && !late {
            let told = self.more && !rows.is_empty();
            return (told.then(|| Reply::one_of_more(json!({ "instances": rows }))), false);
        }
        let reached = self.standings.values().all(|standing| *standing == Standing::Reached);
        let result = match (self.open, reached) {
            (0, true) => "reached",
            (0, false) => "failed",
            _ => "timeout",
        };
        let rows: Vec<Row> = self.standings.keys().map(|id| supervisor.row(id)).collect();
        (Some(Reply::last(json!({ "result": result, "instances": rows }))), true)
    }
}
