//! What would happen: the real supervisor over an imagined world.
//!
//! Every decision is the reconciler's own; only the world is made up, as `imagined.rs` says. Nothing
//! is read, written or started. Time is a number that jumps to the next moment at which something is
//! due, so that an hour costs nothing.

mod imagined;
mod tell;

use std::collections::BTreeSet;

pub use tell::{Line, Share};

use crate::model::{Gather, Instance, InstanceId, Kind, Phase, Rung, Signal, Span, UnitName};
use crate::supervisor::{Boot, Refusal, State, Supervisor};
use crate::system::{Loaded, Replay};
use imagined::Imagined;
use tell::Teller;

/// So often the same must come again, at the same distances, before it is taken to go on for ever.
/// A unit with a limit of starts has to get beyond that first.
pub const REPETITIONS: usize = 3;
/// Most moments of which a repetition may consist.
const PERIOD_MAX: usize = 64;
/// Most moments that are imagined after one wish; what is not at rest then is said not to be.
pub const MOMENTS_MAX: usize = 10_000;
/// So many turns without the clock moving are taken for a loop, if they are one; else the end of a
/// moment is waited for, so that what is told of one is whole.
const MOMENTS_AT_ONCE: usize = 256;
/// How long units of files alone have been up when the first wish comes: their start counts towards
/// no limit of starts any more.
const UP_FOR: Span = Span::seconds(30 * 86_400);

/// Something that is imagined to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// The main processes of a unit or instance fail.
    Fail(String),
    /// A unit or instance is stopped by hand.
    Stop(String),
    /// opm shuts down, in so long a time; `None`: in the daemon's own.
    Shutdown(Option<Span>),
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// What happens, one after the other, each when the one before has come to rest.
    pub wishes: Vec<Wish>,
    /// Units that only `SIGKILL` ends.
    pub stubborn: Vec<String>,
    /// Units that fail at each start.
    pub broken: Vec<String>,
    /// Whether everything that is wanted is brought up first.
    pub boot: bool,
}

/// What came of one wish.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The wish; `None`: opm ended when everything was brought up.
    pub wish: Option<Wish>,
    /// What happened, in order.
    pub lines: Vec<Line>,
    /// How it ended.
    pub end: End,
    /// When that was, since the beginning.
    pub at: Span,
    /// Where every instance was then.
    pub phases: Vec<(InstanceId, &'static str)>,
    /// For a shutdown: what each instance gets of the time, if nothing obeys.
    pub shares: Vec<Share>,
}

/// How what was imagined ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing happens any more.
    Rest,
    /// opm has ended, with this exit code.
    Over(u8),
    /// The same happens again and again.
    ForEver {
        /// Each time after so long.
        period: Span,
        /// So often it was seen.
        times: usize,
    },
    /// It was not at rest after [`MOMENTS_MAX`] moments.
    Unknown,
}

/// What came of all wishes.
#[derive(Debug, Clone)]
pub struct Story {
    /// Wish by wish.
    pub scenes: Vec<Scene>,
    /// How many moments were imagined.
    pub moments: usize,
}

/// Imagines what follows from a state.
pub fn simulate(state: &State, question: &Question) -> Result<Story, Refusal> {
    let mut story = Play::begin(state, question)?.perform(question)?;
    let asks_shares = |wish: &Wish| matches!(wish, Wish::Shutdown(_));
    let Some(place) = story.scenes.iter().position(|s| s.wish.as_ref().is_some_and(asks_shares))
    else {
        return Ok(story);
    };
    // The same once more, but nothing obeys the shutdown.
    let mut worst = Play::begin(state, question)?;
    worst.is_worst = true;
    let worst = worst.perform(question)?;
    if let (Some(scene), Some(worst)) = (story.scenes.get_mut(place), worst.scenes.get(place)) {
        scene.shares.clone_from(&worst.shares);
    }
    Ok(story)
}

/// A world in which one question is played.
struct Play {
    supervisor: Supervisor<Imagined>,
    teller: Teller,
    moments: usize,
    /// How often the same must come again.
    repetitions: usize,
    /// Whether nothing obeys a shutdown.
    is_worst: bool,
    /// What came of bringing everything up, where that was no rest.
    first: Option<Scene>,
}

/// What was told at one moment, and how long after the one before that was.
#[derive(Debug)]
struct Beat {
    after: Span,
    words: Vec<String>,
    lines: usize,
}

impl Beat {
    fn is_like(&self, other: &Self) -> bool {
        (self.after, &self.words) == (other.after, &other.words)
    }
}

impl Play {
    fn begin(state: &State, question: &Question) -> Result<Self, Refusal> {
        let mut state = state.clone();
        let mut most = 0;
        for unit in state.desired.units.values_mut() {
            // Health is assumed, and would be asked for ever.
            let spec = std::sync::Arc::make_mut(&mut unit.spec);
            spec.health = None;
            if let Some(process) = &mut spec.process {
                process.watchdog = None;
                // Nobody writes files there; what forks away does so at once.
                process.pid_file = None;
            }
            most = most.max(unit.spec.restart.limit.map_or(0, |limit| limit.starts));
        }
        let mut system = Imagined::new(state.now, state.wall);
        for instance in state.instances.values() {
            take_over(instance, &mut system);
        }
        let observed = state.observed();
        let boot = Boot {
            system,
            loaded: Loaded { desired: Some(state.desired), ..Loaded::default() },
            replay: Replay { observed, ..Replay::default() },
            keeper: None,
            shutdown_budget: state.shutdown_timeout,
            capacity: None,
            same_process: true,
        };
        let supervisor = boot.supervisor();
        let mut play = Self {
            supervisor,
            teller: Teller::new(state.now),
            moments: 0,
            repetitions: usize::try_from(most).unwrap_or(0).saturating_add(1).max(REPETITIONS),
            is_worst: false,
            first: None,
        };
        let stubborn = play.units(&question.stubborn)?;
        play.supervisor.system_mut().stubborn = stubborn;
        if question.boot {
            play.bring_up();
        }
        let broken = play.units(&question.broken)?;
        play.supervisor.system_mut().broken = broken;
        Ok(play)
    }

    /// The units that names stand for.
    fn units(&self, names: &[String]) -> Result<BTreeSet<UnitName>, Refusal> {
        if names.is_empty() {
            return Ok(BTreeSet::new());
        }
        Ok(self.supervisor.select(names)?.into_iter().map(|id| id.unit).collect())
    }

    /// Everything comes up, and has been so for long; nothing is told of it but that opm ended.
    fn bring_up(&mut self) {
        let scene = self.settle(None);
        match scene.end {
            End::Rest => {
                let now = crate::system::System::now(self.supervisor.system()).after(UP_FOR);
                self.supervisor.system_mut().jump(now);
                // What was due meanwhile has run.
                self.supervisor.begin_schedules_anew();
            }
            End::Over(_) => self.first = Some(scene),
            End::ForEver { .. } | End::Unknown => {}
        }
        let now = crate::system::System::now(self.supervisor.system());
        self.teller.begin_at(now);
    }

    fn perform(mut self, question: &Question) -> Result<Story, Refusal> {
        let mut scenes: Vec<Scene> = self.first.take().into_iter().collect();
        for wish in &question.wishes {
            if self.supervisor.is_over().is_some() {
                break;
            }
            self.grant(wish)?;
            scenes.push(self.settle(Some(wish.clone())));
        }
        Ok(Story { scenes, moments: self.moments })
    }

    /// What was wished happens.
    fn grant(&mut self, wish: &Wish) -> Result<(), Refusal> {
        match wish {
            Wish::Fail(name) => self.fail(name),
            Wish::Stop(name) => {
                self.supervisor.stop(std::slice::from_ref(name), "opm simulate", "", None).map(drop)
            }
            Wish::Shutdown(budget) => {
                self.supervisor.system_mut().all_stubborn = self.is_worst;
                let budget = budget.or(self.supervisor.shutdown_budget());
                self.supervisor.ask_to_shut_down(budget, "it was asked to".to_owned());
                Ok(())
            }
        }
    }

    fn fail(&mut self, name: &str) -> Result<(), Refusal> {
        for id in self.supervisor.select(&[name.to_owned()])? {
            let Some(unit) = self.supervisor.view().unit(&id) else { continue };
            let spec = std::sync::Arc::clone(&unit.spec);
            if spec.process.is_none() {
                let kind = spec.kind.as_str();
                let reason = format!("`{id}` is a {kind}, which has no process that could fail");
                return Err(Refusal::Impossible(reason));
            }
            let instance = self.supervisor.observed().get(&id);
            let phase = instance.map_or(&Phase::Down, |instance| &instance.phase).clone();
            let run = instance.and_then(|instance| instance.run.as_ref()).map(|run| run.id);
            if spec.kind == Kind::Task && phase == Phase::Done {
                // A task that is done can fail only if it runs once more.
                self.supervisor.system_mut().fails_next.insert(id.clone());
                self.supervisor.restart(&[id.to_string()], None)?;
            } else if !run.is_some_and(|run| self.supervisor.system_mut().fail(run, &spec)) {
                let now = crate::system::System::now(self.supervisor.system());
                let what = format!("is {}: it has no process that could fail", phase.as_str());
                self.teller.say(now, Some(id), what, None);
            }
        }
        Ok(())
    }

    /// Lets everything happen that follows.
    fn settle(&mut self, wish: Option<Wish>) -> Scene {
        let mut beats: Vec<Beat> = Vec::new();
        let mut last = crate::system::System::now(self.supervisor.system());
        let mut end = End::Unknown;
        let (mut since, mut moments_since) = (last, 0usize);
        for _ in 0..MOMENTS_MAX {
            self.moments = self.moments.saturating_add(1);
            let told = self.supervisor.system_mut().take_told();
            self.supervisor.turn(told);
            let now = crate::system::System::now(self.supervisor.system());
            let words = self.teller.listen(&mut self.supervisor);
            if !words.is_empty() {
                let lines = self.teller.lines.len();
                beats.push(Beat { after: now.since(last), words, lines });
                last = now;
            }
            if let Some(code) = self.supervisor.is_over() {
                end = End::Over(code);
                break;
            }
            let is_quiet = !self.supervisor.system().has_news();
            let is_flood = now == since && moments_since >= MOMENTS_AT_ONCE;
            if (is_quiet || is_flood)
                && let Some(period) = period(&beats, self.repetitions)
            {
                let period = self.forget_repetitions(&beats, period);
                end = End::ForEver { period, times: self.repetitions };
                break;
            }
            if !is_quiet {
                moments_since = if now == since { moments_since.saturating_add(1) } else { 0 };
                since = now;
                continue;
            }
            let never = crate::model::Monotonic::default().after(Span::FOREVER);
            let Some(at) = self.supervisor.wake_at().filter(|at| *at < never) else {
                end = End::Rest;
                break;
            };
            self.supervisor.system_mut().jump(at);
        }
        self.scene(wish, end, last)
    }

    /// Keeps one of the repetitions; returns how long one takes.
    fn forget_repetitions(&mut self, beats: &[Beat], period: usize) -> Span {
        let is_same = |(one, next): &(&Beat, &Beat)| one.is_like(next);
        let pairs = beats.iter().rev().skip(period).zip(beats.iter().rev());
        let again = pairs.take_while(is_same).count();
        let one = beats.iter().rev().take(period);
        let nanos = one.fold(0u64, |sum, beat| sum.saturating_add(beat.after.as_nanos()));
        let first = beats.len().saturating_sub(again.saturating_add(1));
        // What happens at the same moment is told whole.
        let rest = beats.iter().skip(first.saturating_add(1));
        let more = rest.take_while(|beat| nanos > 0 && beat.after == Span::ZERO).count();
        if let Some(beat) = beats.get(first.saturating_add(more)) {
            self.teller.lines.truncate(beat.lines);
        }
        Span::nanos(nanos)
    }

    fn scene(&mut self, wish: Option<Wish>, end: End, at: crate::model::Monotonic) -> Scene {
        let ids = self.supervisor.all_ids_known(false);
        let observed = self.supervisor.observed();
        let phase = |id: InstanceId| {
            let phase = observed.get(&id).map_or("down", |instance| instance.phase.as_str());
            (id, phase)
        };
        self.teller
            .shares
            .sort_by(|a, b| (a.from, b.stage, &a.instance).cmp(&(b.from, a.stage, &b.instance)));
        Scene {
            wish,
            phases: ids.into_iter().map(phase).gather(),
            end,
            at: self.teller.since_begin(at),
            shares: std::mem::take(&mut self.teller.shares),
            lines: std::mem::take(&mut self.teller.lines),
        }
    }
}

/// What a stop has done already to a run that is being ended.
fn take_over(instance: &Instance, system: &mut Imagined) {
    let (Some(run), Phase::Stopping { rung, .. }) = (&instance.run, &instance.phase) else {
        return;
    };
    let sent = match rung {
        Rung::Dependents | Rung::PreStop(_) => None,
        Rung::Step(_) => Some(Signal::TERM),
        Rung::Kill | Rung::PostStop(_) => Some(Signal::KILL),
    };
    system.was_stopping(run.id, sent);
}

/// The number of moments of which the last ones are so many repetitions.
fn period(beats: &[Beat], repetitions: usize) -> Option<usize> {
    (1..=PERIOD_MAX).find(|period| {
        let wanted = period.saturating_mul(repetitions);
        let Some(tail) = beats.len().checked_sub(wanted).and_then(|from| beats.get(from..)) else {
            return false;
        };
        let is_same =
            |(one, next): (&Beat, &Beat)| (one.after, &one.words) == (next.after, &next.words);
        tail.iter().zip(tail.iter().skip(*period)).all(is_same)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(words: &str) -> Vec<Beat> {
        let beat = |c: char| Beat { after: Span::ZERO, words: vec![c.to_string()], lines: 0 };
        words.chars().map(beat).collect()
    }

    #[test]
    fn a_repetition_is_seen_when_it_has_come_often_enough() {
        for (words, repetitions, found) in [
            ("", 3, None),
            ("aa", 3, None),
            ("aaa", 3, Some(1)),
            ("xyaaa", 3, Some(1)),
            ("ababab", 3, Some(2)),
            ("ababab", 4, None),
            ("xabcabcabc", 3, Some(3)),
            ("abcabcabd", 3, None),
        ] {
            assert_eq!(period(&beats(words), repetitions), found, "{words} {repetitions}");
        }
    }
}
