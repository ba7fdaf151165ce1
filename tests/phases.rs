//! What every event does in every phase: the golden table `tests/golden/phases.txt`, and what holds
//! after any sequence of events.
//!
//! `UPDATE=1 cargo test --test phases` writes the table anew; review reads the difference.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write;

use opm::model::{
    Asked, Blocker, Bound, Condition, Doing, Event, Happening, Identity, Instance, InstanceId,
    Life, Monotonic, Observed, Outcome, Phase, Process, Role, Run, RunId, Rung, STATUS_BYTES_MAX,
    Shared, Signal, Span, SpecHash, StopCause, UnitName, Until, Verdict, Wall, Word,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/phases.txt");
const CURRENT: RunId = RunId(1);
const STALE: RunId = RunId(2);

fn instance_id() -> InstanceId {
    InstanceId::parse("web").unwrap()
}

fn second(n: u64) -> Monotonic {
    Monotonic::default().after(Span::seconds(n))
}

fn identity(pid: i32) -> Identity {
    Identity { pid, start: 7, inode: None }
}

fn process(state: Life) -> Process {
    Process { identity: Some(identity(40)), state }
}

fn run(main: Option<Life>, helper: Option<(Role, Life)>) -> Run {
    Run {
        id: CURRENT,
        began: second(1),
        wall: Wall(0),
        main: main.map(process),
        helper: helper.map(|(role, state)| Box::new((role, process(state)))),
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
    }
}

fn asked() -> Asked {
    Asked { role: Role::HealthProbe, process: process(running()), at: second(3), before: None }
}

fn blocker() -> Blocker {
    let unit = UnitName::parse("db").unwrap();
    Blocker { unit, until: Until::Is(Condition::Ready), stuck: false }
}

fn running() -> Life {
    Life::Running(second(2))
}

fn ended() -> Life {
    Life::Ended(Outcome::Exited(0))
}

fn stopping(rung: Rung) -> Phase {
    let own_since = if rung == Rung::Dependents { Monotonic::default() } else { second(5) };
    Phase::Stopping { cause: StopCause::GoalDown, rung, rung_since: second(5), own_since }
}

/// One row per place in which an instance can be.
fn places() -> Vec<(&'static str, Instance)> {
    let at = |phase: Phase, run: Option<Run>| Instance {
        phase,
        run,
        since: second(5),
        ..Instance::default()
    };
    let waiting = Phase::Waiting { on: vec![blocker()], fresh: true };
    let unproven = |was| Phase::Unproven { why: "no pidfd".to_owned(), was: Box::new(was) };
    let before = unproven(stopping(Rung::Kill));
    let skipped = Phase::Skipped { condition: "path `/x`".to_owned() };
    let hook = |role| run(Some(running()), Some((role, running())));
    vec![
        ("down", at(Phase::Down, None)),
        ("waiting", at(waiting, None)),
        ("backoff", at(Phase::Backoff { until: second(9) }, None)),
        ("failed", at(Phase::Failed { at_limit: false }, None)),
        ("done", at(Phase::Done, None)),
        ("skipped", at(skipped, None)),
        ("starting", at(Phase::Starting, Some(run(None, None)))),
        (
            "starting+hook",
            at(Phase::Starting, Some(run(None, Some((Role::PreStart(0), running()))))),
        ),
        ("starting+born", at(Phase::Starting, Some(run(Some(Life::Born), None)))),
        ("starting+main", at(Phase::Starting, Some(run(Some(running()), None)))),
        ("starting+ended", at(Phase::Starting, Some(run(Some(ended()), None)))),
        ("up", at(Phase::Up, Some(run(Some(running()), None)))),
        ("up+reload", at(Phase::Up, Some(hook(Role::Reload)))),
        (
            "up+asked",
            at(Phase::Up, Some(Run { asked: Some(Box::new(asked())), ..hook(Role::Reload) })),
        ),
        ("stopping:dependents", at(stopping(Rung::Dependents), Some(run(Some(running()), None)))),
        ("stopping:pre-stop", at(stopping(Rung::PreStop(0)), Some(hook(Role::PreStop(0))))),
        ("stopping:step", at(stopping(Rung::Step(0)), Some(run(Some(running()), None)))),
        ("stopping:kill", at(stopping(Rung::Kill), Some(run(Some(running()), None)))),
        ("stopping:kill+gone", at(stopping(Rung::Kill), Some(run(Some(ended()), None)))),
        (
            "stopping:post-stop",
            at(
                stopping(Rung::PostStop(0)),
                Some(run(Some(ended()), Some((Role::PostStop(0), running())))),
            ),
        ),
        ("unproven", at(unproven(Phase::Down), Some(run(Some(running()), None)))),
        ("unproven:kill", at(before, Some(run(Some(running()), None)))),
    ]
}

/// Every happening, where it is about a run about this one.
fn happenings(run: RunId) -> Vec<(&'static str, Happening)> {
    let outcome = Outcome::Exited(0);
    let settled = |verdict| Happening::Settled { verdict, ends_opm: false };
    let ended = |role| Happening::Ended { run, role, outcome: outcome.clone() };
    let spawned = |role| Happening::Spawned { run, role, identity: identity(50) };
    vec![
        ("Spawned main", spawned(Role::Main)),
        ("Spawned pre_start 2", spawned(Role::PreStart(1))),
        ("Execed main", Happening::Execed { run, role: Role::Main }),
        ("HeldUp main", Happening::HeldUp { run, role: Role::Main }),
        ("AskedAnew", Happening::AskedAnew { run }),
        ("Ended main", ended(Role::Main)),
        ("Ended pre_start 1", ended(Role::PreStart(0))),
        ("Spawned health check", spawned(Role::HealthProbe)),
        ("Ended health check", ended(Role::HealthProbe)),
        ("Ready", Happening::Ready { run }),
        ("Up", Happening::Up { run }),
        ("Reloaded", Happening::Reloaded { run }),
        ("StopBegan", Happening::StopBegan { run, cause: StopCause::Restart }),
        ("Rung step", Happening::Rung { run, rung: Rung::Step(0) }),
        ("Rung post_stop", Happening::Rung { run, rung: Rung::PostStop(0) }),
        ("Tree 0", Happening::Tree { run, left: 0 }),
        (
            "Listens",
            Happening::Listens {
                run,
                bound: vec![Bound { at: "tcp [::1]:80".to_owned(), inode: 7, file: None }],
            },
        ),
        ("Called", Happening::Called { run }),
        ("Touched", Happening::Touched { run }),
        ("Said", Happening::Said { run, status: "well".to_owned() }),
        ("Does", Happening::Word { run, word: Word::Does(Some(Doing::Reloading)) }),
        ("Well", Happening::Word { run, word: Word::Well }),
        ("Failed", Happening::Word { run, word: Word::Failed }),
        ("Silence", Happening::Word { run, word: Word::Silence(Span::seconds(5)) }),
        ("MoreTime", Happening::Word { run, word: Word::MoreTime(second(99)) }),
        ("MainIs", Happening::Word { run, word: Word::MainIs { identity: identity(60), was: 0 } }),
        ("Ended former main", ended(Role::Former(0))),
        ("Adopted", Happening::Adopted { run }),
        ("Unproven", Happening::Unproven { run, why: "no pidfd in this kernel".to_owned() }),
        (
            "Began",
            Happening::Began {
                run,
                epoch: 3,
                hash: SpecHash(9),
                wall: Wall(0),
                fresh: false,
                due: None,
            },
        ),
        ("Settled down", settled(Verdict::Down)),
        ("Settled backoff", settled(Verdict::Backoff { until: second(99), attempt: 4 })),
        ("Settled failed", settled(Verdict::Failed { at_limit: true })),
        ("Settled done", settled(Verdict::Done)),
        ("Settled skipped", settled(Verdict::Skipped { condition: "env `X`".to_owned() })),
        ("Waits", Happening::Waits { on: Vec::new(), fresh: false, epoch: None }),
        ("Forgotten", Happening::Forgotten),
    ]
}

/// Whether a happening names a run.
fn names_a_run(what: &Happening) -> bool {
    match what {
        Happening::Settled { .. } | Happening::Waits { .. } | Happening::Forgotten => false,
        Happening::Began { .. }
        | Happening::Spawned { .. }
        | Happening::Listens { .. }
        | Happening::Called { .. }
        | Happening::Execed { .. }
        | Happening::HeldUp { .. }
        | Happening::AskedAnew { .. }
        | Happening::Ended { .. }
        | Happening::Ready { .. }
        | Happening::Up { .. }
        | Happening::Reloaded { .. }
        | Happening::StopBegan { .. }
        | Happening::Rung { .. }
        | Happening::Tree { .. }
        | Happening::Touched { .. }
        | Happening::Said { .. }
        | Happening::Word { .. }
        | Happening::Adopted { .. }
        | Happening::Unproven { .. } => true,
    }
}

/// The facts that differ, in words.
fn difference(old: &Instance, new: Option<&Instance>) -> String {
    let Some(new) = new else { return "forgotten".to_owned() };
    let mut words = Vec::new();
    if old.phase != new.phase {
        words.push(match &new.phase {
            Phase::Stopping { rung, .. } => format!("stopping ({rung})"),
            phase @ (Phase::Down
            | Phase::Waiting { .. }
            | Phase::Starting
            | Phase::Up
            | Phase::Backoff { .. }
            | Phase::Failed { .. }
            | Phase::Done
            | Phase::Skipped { .. }
            | Phase::Unproven { .. }) => phase.as_str().to_owned(),
        });
    }
    let mut fact = |name: &str, differs: bool| {
        if differs {
            words.push(name.to_owned());
        }
    };
    match (&old.run, &new.run) {
        (Some(old), Some(new)) => {
            fact("another run", old.id != new.id);
            fact("main", old.main != new.main);
            fact("helper", old.helper != new.helper);
            fact("earlier helper", old.earlier != new.earlier);
            fact("ready", old.ready != new.ready);
            fact("reloaded", old.reloaded != new.reloaded);
            fact("count", old.left != new.left);
            fact("status", old.status != new.status);
            fact("doing", old.words.doing != new.words.doing);
            fact("well", old.words.well != new.words.well);
            fact("failed", old.words.failed != new.words.failed);
            fact("silence", old.words.silence != new.words.silence);
            fact("more time", old.words.more_time != new.words.more_time);
            fact("adopted", old.adopted != new.adopted);
        }
        (None, Some(_)) => fact("a run", true),
        (Some(_), None) => fact("run over", true),
        (None, None) => {}
    }
    fact("last", old.last != new.last);
    fact("attempt", old.attempt != new.attempt);
    fact("in vain", old.in_vain != new.in_vain);
    if words.is_empty() { "same facts".to_owned() } else { words.join(", ") }
}

/// What a happening makes of each place, grouped by what that is.
fn outcomes(what: &Happening) -> BTreeMap<String, Vec<&'static str>> {
    let mut groups: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for (name, before) in places() {
        let mut observed = Observed::default();
        observed.insert(instance_id(), before.clone());
        let event = Event { instance: instance_id(), at: second(10), what: what.clone() };
        let result = if observed.apply(&event) {
            difference(&before, observed.get(&instance_id()))
        } else {
            assert_eq!(observed.get(&instance_id()), Some(&before), "{name}: {what:?}");
            "-".to_owned()
        };
        groups.entry(result).or_default().push(name);
    }
    groups
}

fn table() -> String {
    let mut text = String::from(
        "What Observed::apply makes of every event in every phase. `-`: passed over.\n\
         Words after a phase, or alone, are the facts that change.\n\
         An event about a run that is not current is passed over everywhere, apart from Began.\n",
    );
    for (name, what) in happenings(CURRENT) {
        writeln!(text, "\n{name}").unwrap();
        for (result, places) in outcomes(&what) {
            let mut line = format!("    {result:<28}");
            for place in places {
                if line.len() + place.len() > 99 {
                    writeln!(text, "{}", line.trim_end()).unwrap();
                    line = " ".repeat(32);
                }
                write!(line, " {place}").unwrap();
            }
            writeln!(text, "{line}").unwrap();
        }
    }
    text
}

#[test]
fn every_event_in_every_phase_does_what_the_golden_table_says() {
    let table = table();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(GOLDEN, &table).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    if table != golden {
        let lines = table.lines().zip(golden.lines()).find(|(new, old)| new != old);
        panic!(
            "the table is not the golden one; first difference (new, golden): {lines:#?}\n\
             `UPDATE=1 cargo test --test phases` writes it anew"
        );
    }
}

#[test]
fn an_event_about_another_run_is_passed_over_in_every_phase() {
    for (name, what) in happenings(STALE) {
        if !names_a_run(&what) || matches!(what, Happening::Began { .. }) {
            continue;
        }
        let groups = outcomes(&what);
        assert_eq!(groups.keys().collect::<Vec<_>>(), ["-"], "{name}: {groups:#?}");
    }
}

#[test]
fn an_event_about_an_unknown_instance_leaves_it_unknown_unless_it_begins_or_settles() {
    for (name, what) in happenings(CURRENT) {
        let mut observed = Observed::default();
        let event = Event { instance: instance_id(), at: second(1), what: what.clone() };
        let changed = observed.apply(&event);
        let enters = matches!(
            what,
            Happening::Began { .. } | Happening::Settled { .. } | Happening::Waits { .. }
        );
        assert_eq!(changed, enters, "{name}");
        assert_eq!(observed.iter().count(), usize::from(enters), "{name}");
    }
}

#[test]
fn a_helper_that_a_stop_did_not_wait_for_is_not_lost() {
    let mut observed = Observed::default();
    let id = instance_id();
    let mut happen = |what| observed.apply(&Event { instance: id.clone(), at: second(1), what });
    let wall = Wall(0);
    happen(Happening::Began {
        run: CURRENT,
        epoch: 0,
        hash: SpecHash(0),
        wall,
        fresh: true,
        due: None,
    });
    for (role, pid) in [(Role::Main, 10), (Role::Stop(0), 11), (Role::Stop(1), 12)] {
        happen(Happening::Spawned { run: CURRENT, role, identity: identity(pid) });
    }
    happen(Happening::StopBegan { run: CURRENT, cause: StopCause::GoalDown });
    let outcome = Outcome::Exited(0);
    for role in [Role::Main, Role::Stop(1)] {
        happen(Happening::Ended { run: CURRENT, role, outcome: outcome.clone() });
    }
    assert!(
        !happen(Happening::Settled { verdict: Verdict::Down, ends_opm: false }),
        "the first command lives"
    );
    assert!(happen(Happening::Ended { run: CURRENT, role: Role::Stop(0), outcome }));
    assert!(happen(Happening::Settled { verdict: Verdict::Down, ends_opm: false }));
}

/// Whether the phase is one of those that have a run.
fn has_run(phase: &Phase) -> bool {
    match phase {
        Phase::Starting | Phase::Up | Phase::Stopping { .. } | Phase::Unproven { .. } => true,
        Phase::Down
        | Phase::Waiting { .. }
        | Phase::Backoff { .. }
        | Phase::Failed { .. }
        | Phase::Done
        | Phase::Skipped { .. } => false,
    }
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![
        3 => Just(Role::Main),
        1 => Just(Role::Condition),
        1 => (0..2u16).prop_map(Role::PreStart),
        1 => (0..2u16).prop_map(Role::PostStart),
        1 => Just(Role::Reload),
        1 => (0..2u16).prop_map(Role::Stop),
        1 => (0..2u16).prop_map(Role::PostStop),
    ]
}

fn any_rung() -> impl Strategy<Value = Rung> {
    prop_oneof![
        Just(Rung::Dependents),
        (0..2u16).prop_map(Rung::PreStop),
        (0..3u16).prop_map(Rung::Step),
        Just(Rung::Kill),
        (0..2u16).prop_map(Rung::PostStop),
    ]
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (0..3u8).prop_map(Outcome::Exited),
        Just(Outcome::Killed { signal: Signal::KILL, core: false }),
        Just(Outcome::Unknown),
    ]
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Down),
        (0..9u32).prop_map(|attempt| Verdict::Backoff { until: second(50), attempt }),
        any::<bool>().prop_map(|at_limit| Verdict::Failed { at_limit }),
        Just(Verdict::Done),
        Just(Verdict::Skipped { condition: "it".to_owned() }),
    ]
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let run = || (1..=2u64).prop_map(RunId);
    prop_oneof![
        3 => (run(), any::<bool>()).prop_map(|(run, fresh)| Happening::Began {
            run, epoch: 1, hash: SpecHash(1), wall: Wall(1), fresh, due: None,
        }),
        4 => (run(), any_role(), 1..9i32).prop_map(|(run, role, pid)| Happening::Spawned {
            run, role, identity: identity(pid),
        }),
        2 => (run(), any_role()).prop_map(|(run, role)| Happening::Execed { run, role }),
        1 => (run(), any_role()).prop_map(|(run, role)| Happening::HeldUp { run, role }),
        1 => run().prop_map(|run| Happening::AskedAnew { run }),
        4 => (run(), any_role(), any_outcome())
            .prop_map(|(run, role, outcome)| Happening::Ended { run, role, outcome }),
        1 => run().prop_map(|run| Happening::Ready { run }),
        1 => run().prop_map(|run| Happening::Up { run }),
        1 => run().prop_map(|run| Happening::Reloaded { run }),
        2 => run().prop_map(|run| Happening::StopBegan { run, cause: StopCause::MainEnded }),
        2 => (run(), any_rung()).prop_map(|(run, rung)| Happening::Rung { run, rung }),
        1 => (run(), 0..3u32).prop_map(|(run, left)| Happening::Tree { run, left }),
        1 => run().prop_map(|run| Happening::Touched { run }),
        1 => (run(), "[aä€]{0,200}").prop_map(|(run, status)| Happening::Said { run, status }),
        1 => (run(), 0..3u64).prop_map(|(run, inode)| Happening::Listens {
            run, bound: vec![Bound { at: "tcp [::1]:80".to_owned(), inode, file: None }],
        }),
        1 => run().prop_map(|run| Happening::Called { run }),
        1 => run().prop_map(|run| Happening::Adopted { run }),
        1 => run().prop_map(|run| Happening::Unproven { run, why: "why".to_owned() }),
        3 => any_verdict().prop_map(|verdict| Happening::Settled { verdict, ends_opm: false }),
        1 => any::<bool>().prop_map(|fresh| Happening::Waits { on: vec![blocker()], fresh, epoch: None }),
        1 => Just(Happening::Forgotten),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("seeds"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_known_stays_sound_after_any_sequence_of_events(
        whats in prop::collection::vec(any_happening(), 0..60)
    ) {
        let mut observed = Observed::default();
        for (n, what) in whats.into_iter().enumerate() {
            let at = second(u64::try_from(n).unwrap());
            let event = Event { instance: instance_id(), at, what };
            let before = observed.clone();
            let was = before.get(&instance_id());
            let changed = observed.apply(&event);
            prop_assert!(changed || observed == before, "said unchanged: {event:?}");
            let ran = was.and_then(|was| was.run.as_ref());
            let Some(now) = observed.get(&instance_id()) else { continue };
            prop_assert_eq!(now.run.is_some(), has_run(&now.phase), "{:?}", now.phase);
            if let (Some(old), Some(new)) = (ran, &now.run) {
                prop_assert_eq!(old.id, new.id, "a run was replaced by {:?}", event.what);
                let living = |run: &Run| {
                    let all = run.processes().filter(|(_, process)| process.is_alive());
                    all.filter(|(role, _)| *role != Role::Main).count()
                };
                let lost = living(old) > living(new);
                let told = matches!(event.what, Happening::Ended { .. });
                prop_assert!(!lost || told, "a living helper was lost by {:?}", event.what);
            }
            if let (Some(old), None) = (ran, &now.run) {
                prop_assert!(!old.is_alive(), "over while it lives: {:?}", event.what);
                prop_assert_eq!(now.last.as_ref().map(|end| end.run), Some(old.id));
            }
            prop_assert!(now.since <= at && now.starts.len() <= 100);
            if let Some(run) = &now.run {
                prop_assert!(run.status.len() <= STATUS_BYTES_MAX);
                prop_assert!(run.earlier.len() <= 60);
            }
            let json = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Event>(&json).unwrap(), &event);
            let json = serde_json::to_string(now).unwrap();
            // Whoever reads it has to count for himself.
            let mut now = now.clone();
            if let Some(run) = &mut now.run {
                run.left = None;
            }
            prop_assert_eq!(serde_json::from_str::<Instance>(&json).unwrap(), now);
        }
    }
}
