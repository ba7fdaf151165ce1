//! The way back under `kill -9`: applies, trials, confirmations and rollbacks, whose supervisor is
//! killed at random times. What was acknowledged is in force; what was not is in force whole, or not
//! at all; a trial ends when its time is over, and not before.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise, and says what it saw"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use common::random::Random;
use common::{Said, World, now, tests_all, witness};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Kills of the full run, and of a short one.
const KILLS_ALL: u32 = 200;
const KILLS: u32 = 30;
/// How many records are kept.
const RECORDS_MAX: usize = 50;
/// A trial that does not end here.
const LONG: &str = "1h";
/// No apply is taken to be over sooner, in microseconds.
const LONGEST_LEAST: u64 = 2_000;

/// What is on trial, and what comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    before: u32,
    /// Between these it ends; where there is none it does not end in this test.
    ends: Option<(Instant, Instant)>,
}

/// The value that is in force, and whether that is a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    value: u32,
    trial: Option<Trial>,
}

impl State {
    fn of(value: u32) -> Self {
        Self { value, trial: None }
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Nothing,
    Apply(u32),
    /// For so many milliseconds; for long where there are none.
    Try(u32, Option<u64>),
    Confirm,
    /// To a generation, or to what was before the trial.
    Rollback(Option<u64>),
}

/// What `opm history` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    generations: Vec<u64>,
    value: u32,
    on_trial: bool,
}

struct Trials {
    world: World,
    random: Random,
    state: State,
    /// The value of each generation that was ever seen.
    values: BTreeMap<u64, u32>,
    known: Vec<u64>,
    last: u32,
    /// The pid of the supervisor, as it is here.
    supervisor: Option<Pid>,
    /// How long an apply takes here, in microseconds.
    longest: u64,
    /// Acts that were acknowledged before their kill, and all.
    acknowledged: (u32, u32),
    reverts: u32,
}

/// Three services of a version, of which one is there in every other version only.
fn write(world: &World, value: u32) {
    for (name, requires) in [("a", ""), ("b", "a"), ("c", "")] {
        let keys = format!("requires: [{requires}]\nenv: {{V: \"{value}\"}}\n");
        world.service(name, &(witness(name) + "exec sleep 1000"), &keys);
    }
    if !value.is_multiple_of(2) {
        world.remove_unit("c");
    }
}

impl Trials {
    fn new() -> Option<Self> {
        let world = World::new()?;
        write(&world, 1);
        let began = now();
        let said = world.opm(&["apply", "units", "-m", "1"]);
        assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
        let longest = u64::try_from(began.elapsed().as_micros()).unwrap().max(LONGEST_LEAST);
        let mut trials = Self {
            world,
            random: Random::new(),
            state: State::of(1),
            values: BTreeMap::new(),
            known: Vec::new(),
            last: 1,
            supervisor: None,
            longest,
            acknowledged: (0, 0),
            reverts: 0,
        };
        trials.boot();
        assert_eq!(trials.seen().value, 1);
        Some(trials)
    }

    /// Starts a supervisor where none runs, and waits until it answers.
    fn boot(&mut self) {
        let said = self.world.opm(&["daemon"]);
        assert!([0, 4].contains(&said.code), "{said:?}\n{}", self.world.log());
        let pid = self.world.daemon_pid().unwrap();
        self.supervisor = self.world.host_pid(pid).map(Pid::from_raw);
        assert!(self.supervisor.is_some(), "opm has no pid\n{}", self.world.log());
    }

    fn kill(&mut self) {
        let pid = self.supervisor.take().unwrap();
        kill(pid, Signal::SIGKILL).unwrap();
        let proc = format!("/proc/{pid}/stat");
        let is_dead = || {
            let stat = fs::read_to_string(&proc).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z"))
        };
        common::until("the supervisor's death", is_dead);
    }

    /// The history, which has to be whole and to hold all that was seen of it before.
    fn seen(&mut self) -> Seen {
        let said = self.world.opm(&["history", "--json"]);
        assert_eq!(said.code, 0, "{said:?}\n{}", self.world.log());
        let reply: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(reply["problem"], Value::Null, "{}", self.world.log());
        let records = reply["records"].as_array().unwrap();
        let number = |record: &Value, key: &str| record[key].as_u64().unwrap();
        let generations: Vec<u64> =
            records.iter().map(|record| number(record, "generation")).collect();
        for (record, older) in records.iter().zip(&generations[1..]) {
            assert_eq!(number(record, "before"), *older, "no gap: {generations:?}");
        }
        // The oldest make room: for one that was kept and never came into force, too.
        let kept = self.known.iter().take_while(|known| generations.contains(known)).count();
        let new = generations.iter().filter(|new| !self.known.contains(*new)).count();
        assert_eq!(kept + new, generations.len(), "{:?} became {generations:?}", self.known);
        let is_whole = kept == self.known.len() || generations.len() >= RECORDS_MAX - 1;
        assert!(is_whole, "{:?} became {generations:?}", self.known);
        self.known.clone_from(&generations);
        for record in records.iter().rev() {
            let value = match record["cause"].as_str().unwrap() {
                "apply" => record["message"].as_str().unwrap().parse().ok(),
                _ => self.values.get(&number(record, "to")).copied(),
            };
            // What is older than the history of this test has a value since it was seen first.
            let generation = number(record, "generation");
            let value = value.or_else(|| self.values.get(&generation).copied()).unwrap();
            let known = self.values.insert(generation, value);
            assert!(known.is_none_or(|known| known == value), "generation {generation}: {reply}");
        }
        assert_eq!(records[0]["current"], true, "{reply}");
        let value = self.values[&generations[0]];
        Seen { generations, value, on_trial: !records[0]["confirm_until_us"].is_null() }
    }

    fn next(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn choose(&mut self) -> Act {
        let chance = self.random.below(100);
        let span = (self.random.below(2) == 0).then(|| 50 + self.random.below(500));
        let place = self.random.index(self.known.len());
        let another = self.known[place];
        match (self.state.trial, chance) {
            (None, 80..) if self.values[&another] != self.state.value => {
                Act::Rollback(Some(another))
            }
            (Some(_), 0..45) => Act::Confirm,
            // Of one that may be over by then it would go one further back.
            (Some(Trial { ends: None, .. }), 45..60) => Act::Rollback(None),
            (None, 0..30) | (Some(_), 60..65) => Act::Apply(self.next()),
            (Some(_), 65..85) => Act::Nothing,
            (None | Some(_), _) => Act::Try(self.next(), span),
        }
    }

    /// The command of an act.
    fn command(&self, act: Act) -> Option<Vec<String>> {
        let words: &[&str] = match act {
            Act::Nothing => return None,
            Act::Confirm => &["confirm"],
            Act::Rollback(_) => &["rollback"],
            Act::Apply(value) | Act::Try(value, _) => {
                write(&self.world, value);
                &["apply", "--no-daemon", "units", "-m"]
            }
        };
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        match act {
            Act::Nothing | Act::Confirm | Act::Rollback(None) => {}
            Act::Rollback(Some(generation)) => words.push(generation.to_string()),
            Act::Apply(value) => words.push(value.to_string()),
            Act::Try(value, span) => {
                let span = span.map_or(LONG.to_owned(), |span| format!("{span}ms"));
                words.extend([value.to_string(), "--confirm".to_owned(), span]);
            }
        }
        Some(words)
    }

    /// Begins an act, kills the supervisor in it or after it, and says how it came out: whether it
    /// was acknowledged, and between which times it was done.
    fn act_and_kill(&mut self, act: Act) -> (bool, Instant, Instant) {
        let began = now();
        let command = self.command(act);
        let mut wait = Duration::from_micros(self.random.below(self.longest * 3 / 2));
        if let (None, Some(Trial { ends: Some((_, last)), .. })) = (&command, self.state.trial) {
            // Round the end of the trial.
            let left = last.saturating_duration_since(began) + Duration::from_millis(20);
            wait = left.saturating_sub(Duration::from_micros(self.random.below(40_000)));
        }
        let client = command.as_ref().map(|words| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.world.begin(&words)
        });
        // As it is done by a machine that fails: at its own time.
        while began.elapsed() < wait {
            std::hint::spin_loop();
        }
        self.kill();
        let Some(client) = client else { return (true, began, now()) };
        let said = Said::of_child(client);
        assert!(![2, 101].contains(&said.code), "{act:?}: {said:?}");
        let word = said.out.lines().last().and_then(|line| line.split("generation ").last());
        let generation = word.and_then(|word| word.split(' ').next()?.parse::<u64>().ok());
        self.acknowledged.1 += 1;
        self.acknowledged.0 += u32::from(generation.is_some());
        // About as many kills are to come before the end of an act as after it, however busy the machine is.
        let (times, parts) = if generation.is_some() { (4, 5) } else { (5, 4) };
        self.longest = (self.longest * times / parts).max(LONGEST_LEAST);
        assert!(generation.is_some() || said.code != 0, "{act:?}: {said:?}");
        (generation.is_some(), began, now())
    }

    /// What an act that was acknowledged has made of the state.
    fn after(&self, act: Act, began: Instant, ended: Instant) -> State {
        let before = self.state.trial.map_or(self.state.value, |trial| trial.before);
        match act {
            Act::Nothing => self.state,
            Act::Apply(value) => State::of(value),
            Act::Try(value, span) => {
                let span = span.map(Duration::from_millis);
                let ends = span.map(|span| (began + span, ended + span));
                State { value, trial: Some(Trial { before, ends }) }
            }
            Act::Confirm => State::of(self.state.value),
            Act::Rollback(None) => State::of(before),
            Act::Rollback(Some(generation)) => State::of(self.values[&generation]),
        }
    }

    /// What is in force is one of these, or what one of them came to by its time.
    fn take(&mut self, may_be: &[State], act: Act) {
        let seen = self.seen();
        let at = now();
        let as_it_was = may_be
            .iter()
            .find(|state| state.value == seen.value && state.trial.is_some() == seen.on_trial);
        let ended = may_be.iter().filter_map(|state| state.trial).find(|trial| {
            let is_over = trial.ends.is_some_and(|(first, _)| at >= first);
            is_over && trial.before == seen.value && !seen.on_trial
        });
        self.reverts += u32::from(as_it_was.is_none() && ended.is_some());
        let state = as_it_was.copied().or(ended.map(|trial| State::of(trial.before)));
        self.state = state.unwrap_or_else(|| {
            let (number, log) = (self.random.seed, self.world.log());
            panic!("seed {number}: {act:?}: {seen:?} is none of {may_be:?}\n{log}")
        });
    }

    /// Waits until every process is as the state in force says, which may change meanwhile.
    fn until_it_runs(&mut self) {
        let began = now();
        loop {
            let seen = self.seen();
            let as_wanted = self.runs_as(seen.value);
            if as_wanted.is_ok() && self.seen() == seen {
                return;
            }
            let (number, log) = (self.random.seed, self.world.log());
            assert!(began.elapsed() < common::PATIENCE, "seed {number}: {as_wanted:?}\n{log}");
        }
    }

    /// Whether exactly the services of a version are up, each with this version in its environment.
    fn runs_as(&self, value: u32) -> Result<(), String> {
        let rows = self.world.rows();
        let names: Vec<&str> = rows.iter().filter_map(|row| row["instance"].as_str()).collect();
        let all = if value.is_multiple_of(2) { &["a", "b", "c"][..] } else { &["a", "b"][..] };
        if names != all {
            return Err(format!("{names:?} for {value}"));
        }
        for row in &rows {
            let pid = row["pid"].as_u64().unwrap_or(0);
            let environ = self.world.proc().unwrap().join(format!("{pid}/environ"));
            let environ = fs::read(environ).unwrap_or_default();
            let wanted = format!("V={value}");
            let is_new = environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes());
            if row["phase"] != "up" || !row["outdated"].is_null() || !is_new {
                return Err(format!("{row} for {value}"));
            }
        }
        Ok(())
    }

    /// A trial that has an end has come to it.
    fn until_trial_ends(&mut self) {
        let Some(Trial { before, ends: Some(_) }) = self.state.trial else { return };
        let began = now();
        while self.seen().on_trial {
            assert!(began.elapsed() < common::PATIENCE, "it stays\n{}", self.world.log());
        }
        self.take(&[self.state], Act::Nothing);
        assert_eq!(self.state, State::of(before), "seed {}", self.random.seed);
    }
}

#[test]
fn kills_during_applies_trials_confirmations_and_rollbacks_lose_nothing() {
    let Some(mut trials) = Trials::new() else { return };
    let kills = std::env::var("OPM_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills = kills.unwrap_or(if tests_all() { KILLS_ALL } else { KILLS });
    let mut done = 0;
    while done < kills {
        let act = trials.choose();
        let (is_done, began, ended) = trials.act_and_kill(act);
        done += 1;
        if trials.random.below(4) == 0 {
            // Once more on its way up.
            trials.boot();
            let wait = Duration::from_micros(trials.random.below(20_000));
            let began = now();
            while began.elapsed() < wait {
                std::hint::spin_loop();
            }
            trials.kill();
            done += 1;
        }
        trials.boot();
        if let (Act::Apply(_), true, Some(trial)) = (act, is_done, trials.state.trial) {
            let is_over = trial.ends.is_some_and(|(first, _)| ended >= first);
            assert!(is_over, "a trial is ended by no apply; seed {}", trials.random.seed);
        }
        let mut may_be = vec![trials.after(act, began, ended)];
        if !is_done {
            may_be.push(trials.state);
        }
        trials.take(&may_be, act);
        if trials.random.below(2) == 0 {
            trials.until_it_runs();
        }
        if trials.random.below(3) == 0 {
            trials.until_trial_ends();
        }
        trials.world.assert_no_doubles();
    }
    trials.until_trial_ends();
    trials.until_it_runs();
    let ((acknowledged, all), reverts) = (trials.acknowledged, trials.reverts);
    eprintln!("{done} kills: {acknowledged} of {all} acts acknowledged before, {reverts} reverts");
    assert!(
        acknowledged > 0 && acknowledged < all,
        "the kills say nothing: {acknowledged} of {all}"
    );
}
