//! What happened in an imagined world, in the words of an operator.

use std::collections::BTreeMap;

use serde::Serialize;

use super::imagined::Imagined;
use crate::model::{
    Event, Happening, InstanceId, Kind, Monotonic, Reason, Role, Rung, Span, Spec, StopCause,
    Verdict,
};
use crate::plan::Hurry;
use crate::supervisor::{Notice, Supervisor};

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When, since the beginning, in nanoseconds.
    #[serde(rename = "at_ns")]
    pub at: Span,
    /// To whom; opm itself is nobody.
    pub instance: Option<InstanceId>,
    /// What.
    pub what: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// What an instance gets of the time of a shutdown, if it does not obey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Which one.
    pub instance: InstanceId,
    /// How many stages were to come then, its own among them.
    pub stage: u32,
    /// When its stop begins, since the beginning, in nanoseconds.
    #[serde(rename = "from_ns")]
    pub from: Span,
    /// How long it has until it is killed, in nanoseconds.
    #[serde(rename = "gets_ns")]
    pub gets: Span,
    /// How long its own steps would take, in nanoseconds.
    #[serde(rename = "own_ns")]
    pub own: Span,
    /// Whether it is killed before that is over.
    pub cut_short: bool,
}

/// A stop that goes on.
struct Stop {
    cause: StopCause,
    /// When its first step was taken, and whether any was cut short.
    acts: Option<Monotonic>,
    is_cut: bool,
}

/// Turns notices into lines.
pub(super) struct Teller {
    began: Monotonic,
    stops: BTreeMap<InstanceId, Stop>,
    starts: BTreeMap<InstanceId, Monotonic>,
    waits: BTreeMap<InstanceId, String>,
    hurry: Option<Hurry>,
    pub(super) lines: Vec<Line>,
    pub(super) shares: Vec<Share>,
}

impl Teller {
    pub(super) fn new(began: Monotonic) -> Self {
        Self {
            began,
            stops: BTreeMap::new(),
            starts: BTreeMap::new(),
            waits: BTreeMap::new(),
            hurry: None,
            lines: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Forgets what was told; time counts from here.
    pub(super) fn begin_at(&mut self, now: Monotonic) {
        *self = Self::new(now);
    }

    pub(super) fn since_begin(&self, at: Monotonic) -> Span {
        at.since(self.began)
    }

    /// Takes what happened since the last time; returns it as far as it can come again.
    pub(super) fn listen(&mut self, supervisor: &mut Supervisor<Imagined>) -> Vec<String> {
        let known = self.lines.len();
        for notice in supervisor.take_notices() {
            if let Happening::StopBegan { cause: StopCause::Shutdown, .. } = notice.event.what {
                self.shutdown(supervisor);
            }
            self.notice(supervisor, &notice);
        }
        self.shutdown(supervisor);
        let new = self.lines.iter().skip(known);
        new.map(|line| format!("{:?} {} {:?}", line.instance, line.what, line.because)).collect()
    }

    pub(super) fn say(
        &mut self,
        at: Monotonic,
        instance: Option<InstanceId>,
        what: String,
        because: Option<String>,
    ) {
        self.lines.push(Line { at: at.since(self.began), instance, what, because });
    }

    /// Says once that opm goes down, and with how much patience.
    fn shutdown(&mut self, supervisor: &Supervisor<Imagined>) {
        let Some(shutdown) = supervisor.shutdown() else { return };
        if self.hurry == Some(shutdown.hurry) {
            return;
        }
        self.hurry = Some(shutdown.hurry);
        let what = match shutdown.hurry {
            Hurry::Ordered => "shuts down",
            Hurry::Unordered => "stops everything at once",
            Hurry::Kill => "kills everything",
        };
        let now = crate::system::System::now(supervisor.system());
        self.say(now, None, what.to_owned(), Some(shutdown.why.clone()));
    }

    fn notice(&mut self, supervisor: &Supervisor<Imagined>, notice: &Notice) {
        let Event { instance: id, at, what } = &notice.event;
        let reason = notice.reason.as_ref();
        let because = reason.map(because);
        let spec = supervisor.view().unit(id).map(|unit| &*unit.spec);
        match what {
            Happening::Began { .. } => {
                self.starts.insert(id.clone(), *at);
                self.waits.remove(id);
                self.say(*at, Some(id.clone()), "starts".to_owned(), because);
            }
            // A start that takes no time is told by its beginning.
            Happening::Up { .. } if self.starts.get(id) != Some(at) => {
                self.say(*at, Some(id.clone()), "is up".to_owned(), None);
            }
            Happening::Ended { role: Role::Main, outcome, .. } if !self.stops.contains_key(id) => {
                let is_good = spec.is_some_and(|spec| spec.is_success(outcome));
                let word = if is_good { "ends" } else { "fails" };
                // Of a task that ends well the next line says that it is done.
                if !is_good || spec.is_none_or(|spec| spec.kind != Kind::Task) {
                    self.say(*at, Some(id.clone()), format!("{word} ({outcome})"), None);
                }
            }
            Happening::StopBegan { cause, .. } => {
                let stop = Stop { cause: cause.clone(), acts: None, is_cut: false };
                self.stops.insert(id.clone(), stop);
            }
            Happening::Rung { rung, .. } => self.rung(supervisor, spec, notice, *rung),
            Happening::Settled { verdict, .. } => self.settled(id, *at, verdict),
            Happening::Waits { on, .. } => {
                let what: Vec<String> = on.iter().map(ToString::to_string).collect();
                let what = format!("waits for {}", what.join(", "));
                // Whether anybody is at it is no other thing to wait for.
                if self.waits.insert(id.clone(), what.clone()).as_ref() != Some(&what) {
                    self.say(*at, Some(id.clone()), what, None);
                }
            }
            Happening::Reloaded { .. } => {
                self.say(*at, Some(id.clone()), "reloads".to_owned(), because);
            }
            Happening::Spawned { .. }
            | Happening::Execed { .. }
            | Happening::HeldUp { .. }
            | Happening::AskedAnew { .. }
            | Happening::Ended { .. }
            | Happening::Ready { .. }
            | Happening::Up { .. }
            | Happening::Tree { .. }
            | Happening::Listens { .. }
            | Happening::Called { .. }
            | Happening::Touched { .. }
            | Happening::Word { .. }
            | Happening::Said { .. }
            | Happening::Adopted { .. }
            | Happening::Unproven { .. }
            | Happening::Forgotten => {}
        }
    }

    /// A stop is told when it does something: before, it waits for those who go first.
    fn rung(
        &mut self,
        supervisor: &Supervisor<Imagined>,
        spec: Option<&Spec>,
        notice: &Notice,
        rung: Rung,
    ) {
        let Event { instance: id, at, .. } = &notice.event;
        let Some(stop) = self.stops.get_mut(id) else { return };
        stop.is_cut |= notice.reason.as_ref().is_some_and(Reason::is_cut);
        let (is_first, cause, is_cut) = (stop.acts.is_none(), stop.cause.to_string(), stop.is_cut);
        let acts = *stop.acts.get_or_insert(*at);
        if is_first {
            self.say(*at, Some(id.clone()), "stops".to_owned(), Some(cause));
        }
        if rung != Rung::Kill {
            return;
        }
        let why = notice.reason.as_ref().filter(|reason| !matches!(reason, Reason::Stop(_)));
        self.say(*at, Some(id.clone()), "is killed".to_owned(), why.map(ToString::to_string));
        if let Some(shutdown) = supervisor.shutdown() {
            self.shares.push(Share {
                instance: id.clone(),
                stage: shutdown.stages.get(&id.unit).map_or(1, |stage| stage.count),
                from: acts.since(self.began),
                gets: at.since(acts),
                own: spec.map_or(Span::ZERO, |spec| spec.stop.time()),
                cut_short: is_cut,
            });
        }
    }

    fn settled(&mut self, id: &InstanceId, at: Monotonic, verdict: &Verdict) {
        let stop = self.stops.remove(id);
        let (what, because) = match verdict {
            Verdict::Down => match stop {
                // A stop that takes no time is told by its beginning.
                Some(Stop { acts: Some(acts), .. }) if acts == at => return,
                Some(Stop { acts: None, cause, .. }) if cause != StopCause::MainEnded => {
                    ("stops".to_owned(), Some(cause.to_string()))
                }
                Some(_) | None => ("is down".to_owned(), None),
            },
            Verdict::Backoff { until, .. } => {
                (format!("is to be restarted in {}", until.since(at)), None)
            }
            Verdict::Failed { at_limit } => {
                let limit = at_limit.then(|| Reason::Limit.to_string());
                ("has failed for good".to_owned(), limit)
            }
            Verdict::Done => ("is done".to_owned(), None),
            Verdict::Skipped { condition } => ("is skipped".to_owned(), Some(condition.clone())),
        };
        self.say(at, Some(id.clone()), what, because);
    }
}

/// A reason as the end of a sentence.
fn because(reason: &Reason) -> String {
    match reason {
        Reason::BackoffOver => "its wait is over".to_owned(),
        Reason::Asked => "that was asked for".to_owned(),
        Reason::Next => "what it waited for is there".to_owned(),
        Reason::Wanted
        | Reason::Changed
        | Reason::Follows
        | Reason::Recovered(_)
        | Reason::Blocked
        | Reason::Stop(_)
        | Reason::StopTimedOut
        | Reason::ShareSpent
        | Reason::BudgetSpent
        | Reason::Ended(_)
        | Reason::GoalDown
        | Reason::Removed
        | Reason::DependencyRestarted(_)
        | Reason::Limit
        | Reason::Touched
        | Reason::Due
        | Reason::Missed
        | Reason::StillRuns => reason.to_string(),
    }
}
