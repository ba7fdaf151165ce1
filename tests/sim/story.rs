//! Random worlds in two acts: an operator and a machine that do what they like; then no more faults,
//! and everything must come to where it belongs, stay there in silence, and go down in order.

use std::fmt::Write;

use opm::config::SourceFile;
use opm::model::{FilePath, Phase, Span, UnitName};
use opm::supervisor::{Manner, Source, Supervisor};

use crate::back::Known;
use crate::chance::Chance;
use crate::file::{File, address};
use crate::scene::Seen;
use crate::setting::{Doom, Fault, Setting, Trouble};
use crate::system::Simulated;
use crate::world::{Moment, World, verdict};

pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// How many things happen in the first act.
const HAPPENINGS: u64 = 24;
/// By then everything is where it belongs once faults are over: the longest wait before a restart
/// (2 s in these files), the longest start (5 s), the longest stop (1 s) for each of five units in a
/// chain, and a passing shortage.
pub(crate) const CONVERGED_AFTER: Span = Span::seconds(40);
/// A quiet time in which a supervisor that is at rest does nothing at all.
const QUIET: Span = Span::seconds(3_600);

pub(crate) fn name(text: &str) -> UnitName {
    UnitName::parse(text).unwrap()
}

/// A random world and its operator.
pub(crate) struct Story {
    pub(crate) world: World,
    pub(crate) chance: Chance,
    pub(crate) files: Vec<File>,
    pub(crate) exists: Vec<bool>,
    troubles: Vec<Trouble>,
    flavour: Flavour,
    /// Whether services watch files, and somebody changes those at times.
    watches: bool,
    /// Whether its operator goes back at times.
    goes_back: bool,
    pub(crate) known: Known,
}

/// What units of a world may have beyond what every world's may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Plain,
    /// Schedules and watchdogs.
    More,
    Sockets,
}

impl Story {
    pub(crate) fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut chance = Chance::new(seed);
        let count = 2 + chance.place(4);
        let setting = Setting {
            is_pid_one: chance.one_in(3),
            has_inodes: chance.one_in(2),
            tells_foreign: chance.one_in(2),
            has_keeper: chance.one_in(2),
            is_unordered: chance.one_in(2),
            delay_max: chance.below(20),
            // Beyond the flavour, one thing more; worlds of which a fault was known before it came stay
            // what they were.
            slots: matches!(seed % 13, 0 | 4).then_some(1 + count % 2),
            fault,
        };
        let watches = matches!(seed % 13, 4 | 10 | 11);
        let troubles: Vec<Trouble> =
            Trouble::ALL.into_iter().filter(|_| chance.one_in(2)).collect();
        // Worlds of before there were schedules, watchdogs and sockets stay what they were.
        let flavour = match seed % 5 {
            3 => Flavour::Sockets,
            4 => Flavour::More,
            _ => Flavour::Plain,
        };
        let any = |place| Self::file(place, flavour, watches, &mut chance);
        let files = (0..count).map(any).collect();
        let world = World::new(chance.next(), setting);
        let exists = vec![true; count];
        let (goes_back, known) = (seed % 4 == 1, Known::default());
        Self { world, chance, files, exists, troubles, flavour, watches, goes_back, known }
    }

    /// The same, and nothing goes wrong.
    pub(crate) fn calm(seed: u64) -> Self {
        Self { troubles: Vec::new(), ..Self::new(seed, None) }
    }

    fn file(place: usize, flavour: Flavour, watches: bool, chance: &mut Chance) -> File {
        let file = match flavour {
            Flavour::More if chance.one_in(2) => File::scheduled(place, chance),
            Flavour::More => File::any(place, chance).speaking(chance),
            Flavour::Sockets => File::any(place, chance).with_socket(chance),
            Flavour::Plain => File::any(place, chance),
        };
        if watches { file.watching(chance) } else { file }
    }

    /// Three units that have to do with each other, and nothing left to chance.
    pub(crate) fn fixed(setting: Setting) -> Self {
        let file = |program, kind, keys: &str, needs| File {
            program,
            kind,
            keys: keys.to_owned(),
            needs,
            is_broken: false,
            socket: None,
        };
        let hooks = "pre_start: [[\"exit:0\"]]\npost_start: [[\"exit:0\"]]\n\
                     pre_stop: [[\"exit:0\"]]\npost_stop: [[\"exit:0\"]]\n\
                     stop: {steps: [{command: [\"exit:0\"], wait: 50ms}, {signal: TERM}]}\n\
                     reload: {command: [\"exit:0\"]}\n";
        let late = "ready: {fd: 3}\nstart_timeout: 3s\n";
        let files = vec![
            file("late", "service", late, Vec::new()),
            file("after:900:0", "task", "", vec![("requires", 0)]),
            file("child", "service", hooks, vec![("requires", 0), ("requires", 1)]),
        ];
        let world = World::new(1, setting);
        let (chance, exists) = (Chance::new(1), vec![true; 3]);
        Self {
            world,
            chance,
            files,
            exists,
            troubles: Vec::new(),
            flavour: Flavour::Plain,
            watches: false,
            goes_back: false,
            known: Known::default(),
        }
    }

    /// Everything that is asked of a supervisor, once.
    pub(crate) fn follow_script(&mut self) -> Result<(), String> {
        let name = |place: usize| [NAMES[place].to_owned()];
        self.apply();
        self.world.pass(Span::seconds(3));
        self.ask(2, |supervisor| supervisor.reload(&name(2)).is_ok());
        self.world.pass(Span::millis(300));
        if self.ask(0, |supervisor| supervisor.stop(&name(0), "me", "why", None).is_ok()) {
            self.world.see(Seen::Held { units: vec![self::name(NAMES[0])] });
        }
        self.world.pass(Span::seconds(1));
        self.ask(0, |supervisor| supervisor.start(&name(0)).is_ok());
        self.world.pass(Span::seconds(3));
        self.ask(2, |supervisor| supervisor.restart(&name(2), None).is_ok());
        self.world.pass(Span::seconds(1));
        self.files[0].keys += "env: {NEW: \"1\"}\n";
        self.apply();
        self.world.pass(Span::seconds(3));
        self.exists[1] = false;
        self.apply();
        self.world.pass(Span::seconds(1));
        verdict(&self.world)?;
        self.converge()?;
        self.rest()?;
        self.end()
    }

    /// The unit files of now, for people.
    pub(crate) fn files(&self) -> String {
        let mut all = format!("{:?}\n{:?}\n", self.world.machine().setting, self.troubles);
        for (place, file) in self.files.iter().enumerate() {
            let state = if self.exists[place] { "" } else { "# removed\n" };
            write!(all, "---\n{state}{}", file.text(NAMES[place], &self.exists)).unwrap();
        }
        all
    }

    pub(crate) fn source(&self) -> Source {
        let units = self.files.iter().enumerate().filter(|(place, _)| self.exists[*place]);
        let files = units.map(|(place, file)| SourceFile {
            path: FilePath::from(format!("/units/{}.yaml", NAMES[place]).as_str()),
            text: file.text(NAMES[place], &self.exists).into_bytes(),
        });
        Source { name: "/units".to_owned(), files: files.collect(), ..Source::default() }
    }

    /// Returns whether it was acknowledged.
    fn apply(&mut self) -> bool {
        self.apply_as(&Manner::default())
    }

    /// The same in this manner.
    pub(crate) fn apply_as(&mut self, manner: &Manner) -> bool {
        let source = self.source();
        self.world.see(Seen::Asks { units: None });
        let applied = self.world.act(|supervisor| supervisor.apply_source(&source, manner));
        match applied {
            Some(Ok(applied)) => {
                let errors: Vec<_> =
                    applied.diagnostics.iter().map(|mistake| mistake.message.clone()).collect();
                if !opm::config::has_errors(&applied.diagnostics) {
                    self.note_applied();
                    return true;
                }
                // Whatever is wrong is refused whole; what can be wrong here is one thing.
                let is_conflict = |error: &String| error.contains("conflict, and both would be up");
                assert!(errors.iter().all(is_conflict), "{errors:?}");
                for file in &mut self.files {
                    file.needs.retain(|(key, _)| *key != "conflicts");
                }
                self.apply_as(manner)
            }
            Some(Err(_)) => false,
            None => {
                self.world.see(Seen::Unanswered);
                false
            }
        }
    }

    /// A client asks; what is refused changes nothing.
    pub(crate) fn ask(
        &mut self,
        place: usize,
        ask: impl FnOnce(&mut Supervisor<Simulated>) -> bool,
    ) -> bool {
        self.world.see(Seen::Asks { units: Some(vec![name(NAMES[place])]) });
        let answer = self.world.act(ask);
        if answer.is_none() {
            self.world.see(Seen::Unanswered);
        }
        answer == Some(true)
    }

    /// A unit becomes another one.
    pub(crate) fn change(&mut self, place: usize) {
        self.files[place] = Self::file(place, self.flavour, self.watches, &mut self.chance);
    }

    /// Something that an operator does.
    fn operate(&mut self) {
        let place = self.chance.place(self.files.len());
        let unit = vec![name(NAMES[place])];
        let names = [NAMES[place].to_owned()];
        match self.chance.below(14) {
            0..=2 => {
                self.ask(place, |supervisor| supervisor.start(&names).is_ok());
            }
            3..=5 => {
                if self.ask(place, |supervisor| supervisor.stop(&names, "me", "why", None).is_ok())
                {
                    self.world.see(Seen::Held { units: unit });
                }
            }
            6 => {
                self.ask(place, |supervisor| supervisor.restart(&names, None).is_ok());
            }
            7 => {
                // Who lets go of what cannot be proven says that it is gone.
                let is_hidden = {
                    let machine = self.world.machine();
                    machine.now < machine.hidden_until
                };
                if !is_hidden {
                    self.ask(place, |supervisor| supervisor.release(&names).is_ok());
                }
            }
            8 => {
                self.ask(place, |supervisor| supervisor.reload(&names).is_ok());
            }
            9 => {
                let all = self.chance.one_in(2);
                let signal =
                    *self.chance.pick(&[opm::model::Signal::KILL, opm::model::Signal::TERM]);
                self.world.machine().is_by_hand = true;
                self.ask(place, |supervisor| supervisor.kill(&names, signal, all).is_ok());
                self.world.machine().is_by_hand = false;
            }
            10 | 11 => {
                self.change(place);
                self.apply();
            }
            12 => {
                self.exists[place] = !self.exists[place];
                self.apply();
            }
            _ => {
                let instance = [format!("{}@{}", NAMES[place], self.chance.pick(&["1", "2", "x"]))];
                let is_stop = self.chance.one_in(2);
                self.ask(place, |supervisor| {
                    if is_stop {
                        supervisor.stop(&instance, "me", "why", None).is_ok()
                    } else {
                        supervisor.start(&instance).is_ok()
                    }
                });
            }
        }
    }

    /// Somebody connects, or takes an address, or does something about a socket.
    fn network(&mut self) {
        let place = self.chance.place(self.files.len());
        let unit = NAMES[place];
        let names = [format!("{unit}-s")];
        match self.chance.below(8) {
            0..=3 => self.world.machine().connect(&name(unit)),
            4 => {
                let at = format!("tcp {}", address(unit, self.chance.place(2)));
                let mut machine = self.world.machine();
                if !machine.ports.taken.remove(&at) {
                    machine.ports.taken.insert(at);
                }
            }
            5 => {
                self.ask(place, |supervisor| supervisor.stop(&names, "me", "why", None).is_ok());
            }
            6 => {
                self.ask(place, |supervisor| supervisor.start(&names).is_ok());
            }
            _ => {
                self.ask(place, |supervisor| supervisor.restart(&names, None).is_ok());
            }
        }
    }

    /// Something that goes wrong.
    fn trouble(&mut self) {
        if self.troubles.is_empty() {
            return;
        }
        let trouble = *self.chance.pick(&self.troubles);
        let soon = 1 + self.chance.below(80);
        let span = Span::millis(self.chance.below(1_500));
        let doom = |story: &mut Self, doom: Doom| {
            let mut machine = story.world.machine();
            machine.doom = Some((machine.ops + soon, doom));
        };
        match trouble {
            Trouble::Kill => self.world.crash(),
            Trouble::Doom => doom(self, Doom::Kill),
            Trouble::Panic => doom(self, Doom::Panic),
            Trouble::PowerLoss if self.chance.one_in(2) => self.world.lose_power(),
            Trouble::PowerLoss => doom(self, Doom::PowerLoss),
            Trouble::Reexec => self.world.reexec(),
            Trouble::Second => self.world.second(),
            Trouble::Freeze => self.world.freeze(span),
            Trouble::WallStep => {
                let seconds = *self.chance.pick(&[-4_000, -30, 30, 4_000]);
                self.world.machine().step_wall(seconds);
            }
            Trouble::Strangers => {
                for _ in 0..self.chance.below(30) {
                    self.world.machine().stranger();
                }
            }
            Trouble::FullDisk => {
                let room = self.chance.place(2_000);
                let lasts = if self.chance.one_in(3) { Span::FOREVER } else { span };
                let mut machine = self.world.machine();
                machine.drive.room = Some(room);
                machine.full_until = machine.now.after(lasts);
            }
            Trouble::DiskError => {
                let after = u32::try_from(self.chance.below(30)).unwrap();
                self.world.machine().drive.error_in = Some(after);
            }
            Trouble::NoForks => {
                let mut machine = self.world.machine();
                machine.no_forks_until = machine.now.after(span);
            }
            Trouble::Hidden => {
                let mut machine = self.world.machine();
                machine.hidden_until = machine.now.after(span);
            }
            Trouble::Shutdown => self.shut_down(),
        }
    }

    fn shut_down(&mut self) {
        let times = 1 + self.chance.below(3) / 2;
        for _ in 0..times {
            let begun = self.world.act(|supervisor| {
                supervisor.ask_to_shut_down(None, "test".to_owned());
            });
            let is_unordered = self.world.machine().has_fault(Fault::NoOrder);
            if is_unordered {
                let again = |supervisor: &mut Supervisor<Simulated>| {
                    supervisor.ask_to_shut_down(None, "test".to_owned());
                };
                self.world.act(again);
            }
            if begun.is_some() {
                self.world.see(Seen::Shutdown);
            }
        }
    }

    /// The whole of it; `Err` says what was wrong.
    pub(crate) fn live(&mut self) -> Result<(), String> {
        self.apply();
        for _ in 0..HAPPENINGS {
            if self.chance.one_in(2) {
                self.operate();
            } else {
                self.trouble();
            }
            if self.flavour == Flavour::Sockets {
                self.network();
            }
            if self.watches && self.chance.one_in(3) {
                let place = self.chance.place(self.files.len());
                self.world.machine().edit(&name(NAMES[place]));
            }
            if self.goes_back && self.chance.one_in(3) {
                self.hesitate()?;
            }
            let span = *self.chance.pick(&[0, 1, 3, 50, 400, 2_000]);
            self.world.pass(Span::millis(span));
            verdict(&self.world)?;
        }
        self.converge()?;
        self.rest()?;
        self.end()
    }

    /// No more faults: everything comes to where it belongs.
    fn converge(&mut self) -> Result<(), String> {
        {
            let mut machine = self.world.machine();
            machine.doom = None;
            (machine.drive.room, machine.drive.error_in) = (None, None);
            machine.full_until = machine.now;
            (machine.no_forks_until, machine.hidden_until) = (machine.now, machine.now);
            machine.ports.taken.clear();
        }
        let is_going = |supervisor: &Supervisor<Simulated>| supervisor.shutdown().is_some();
        if self.world.supervisor().is_some_and(|supervisor| is_going(supervisor)) {
            self.world.pass(CONVERGED_AFTER);
        }
        let unproven = |supervisor: &Supervisor<Simulated>| {
            let mut all = supervisor.observed().iter();
            all.any(|(_, instance)| matches!(instance.phase, Phase::Unproven { .. }))
        };
        let is_lame = self.world.is_minimal()
            || self.world.supervisor().is_some_and(|supervisor| unproven(supervisor));
        if is_lame {
            // What an operator does about it.
            self.world.crash();
        }
        self.has_history()?;
        self.end_trial()?;
        if !self.apply() {
            return Err("without faults, an apply was refused".to_owned());
        }
        self.world.pass(CONVERGED_AFTER);
        verdict(&self.world)?;
        self.expect_all()
    }

    /// Whether every unit has come to a rest that only a wish ends.
    pub(crate) fn is_at_rest(&mut self) -> bool {
        self.world.supervisor().is_some_and(|supervisor| {
            supervisor.observed().iter().all(|(_, instance)| match instance.phase {
                Phase::Down
                | Phase::Waiting { .. }
                | Phase::Up
                | Phase::Failed { .. }
                | Phase::Done
                | Phase::Skipped { .. } => true,
                Phase::Starting
                | Phase::Stopping { .. }
                | Phase::Backoff { .. }
                | Phase::Unproven { .. } => false,
            })
        })
    }

    /// Whoever is at rest is silent, and a restore of it starts nothing.
    fn rest(&mut self) -> Result<(), String> {
        let stay = (0..self.files.len()).all(|place| {
            let file = &self.files[place];
            let stays = file.stays() || file.kind == "task";
            let rests = stays && !file.is_restless();
            !self.exists[place] || rests
        });
        if !stay || !self.is_at_rest() {
            return Ok(());
        }
        let wake = self.world.supervisor().and_then(|supervisor| supervisor.wake_at());
        if wake.is_some() {
            return Err(format!("all is at rest, and it wakes at {wake:?}"));
        }
        self.world.pass(Span::ZERO);
        let verbs = self.world.verbs();
        self.world.pass(QUIET);
        // The one turn at the beginning of the wait looks whether the ledger is to be written.
        if self.world.verbs() != verbs {
            return Err(format!("{} calls while all is at rest", self.world.verbs() - verbs));
        }
        if !self.world.machine().setting.is_pid_one && self.chance.one_in(2) {
            self.world.crash();
            let from = self.world.timeline.len();
            self.world.pass(CONVERGED_AFTER);
            let mut after = self.world.timeline[from..].iter();
            let went = after.find(|moment| matches!(moment, Moment::Seen(_, Seen::Goes { .. })));
            if let Some(line) = went.and_then(Moment::line) {
                return Err(format!("a restore started something: {line}"));
            }
            self.expect_all()?;
        }
        if self.watches {
            self.edit_all()?;
        }
        verdict(&self.world)
    }

    /// Down in order; and, at times, up again from what was saved.
    fn end(&mut self) -> Result<(), String> {
        let closed = self.world.closed;
        self.shut_down();
        // The second wish of the same shutdown is less patient, which the order's check knows.
        for _ in 0..60 {
            if self.world.closed == closed {
                self.world.pass(Span::millis(500));
            }
        }
        verdict(&self.world)?;
        let living: usize = NAMES.iter().map(|unit| self.world.machine().living(unit)).sum();
        if self.world.closed == closed || living > 0 {
            return Err(format!("after a shutdown {living} live"));
        }
        if self.chance.one_in(4) {
            self.world.lose_power();
            self.world.pass(CONVERGED_AFTER);
            verdict(&self.world)?;
            self.expect_all()?;
        }
        verdict(&self.world)
    }
}
