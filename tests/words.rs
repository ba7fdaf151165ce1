//! What a run says on its notify socket, as facts: sequences that the table of `phases.rs` has not.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use opm::model::{
    Event, Happening, Identity, InstanceId, Monotonic, Observed, Outcome, Role, RunId, Rung,
    Signal, Span, SpecHash, StopCause, Verdict, Wall, Word,
};

const CURRENT: RunId = RunId(1);

fn instance_id() -> InstanceId {
    InstanceId::parse("web").unwrap()
}

fn second(n: u64) -> Monotonic {
    Monotonic::default().after(Span::seconds(n))
}

fn identity(pid: i32) -> Identity {
    Identity { pid, start: 7, inode: None }
}

#[test]
fn a_former_main_process_is_of_the_run_and_its_end_is_not_the_run_s() {
    let mut observed = Observed::default();
    let id = instance_id();
    let happen = |observed: &mut Observed, what| {
        observed.apply(&Event { instance: id.clone(), at: second(1), what })
    };
    let (run, wall, outcome) = (CURRENT, Wall(0), Outcome::Exited(0));
    let main_is = |pid, was| {
        let word = Word::MainIs { identity: identity(pid), was };
        Happening::Word { run, word }
    };
    let ended = |role| Happening::Ended { run, role, outcome: outcome.clone() };
    let main_of = |observed: &Observed| {
        let run = observed.get(&instance_id()).unwrap().run.as_ref().unwrap();
        let main = run.main.as_ref().unwrap();
        (main.identity.unwrap().pid, main.is_alive(), run.processes().count())
    };
    happen(
        &mut observed,
        Happening::Began { run, epoch: 0, hash: SpecHash(0), wall, fresh: true, due: None },
    );
    let spawned = Happening::Spawned { run, role: Role::Main, identity: identity(10) };
    happen(&mut observed, spawned);
    assert!(happen(&mut observed, main_is(11, 0)));
    assert!(!happen(&mut observed, main_is(11, 1)), "it is so already");
    assert!(happen(&mut observed, ended(Role::Former(0))));
    assert_eq!(main_of(&observed), (11, true, 2));
    // One that was the main process before is it again.
    assert!(happen(&mut observed, main_is(12, 1)));
    assert!(happen(&mut observed, main_is(11, 2)));
    assert_eq!(main_of(&observed), (11, true, 3));
    happen(&mut observed, Happening::StopBegan { run, cause: StopCause::GoalDown });
    assert!(happen(&mut observed, ended(Role::Main)));
    let settled = Happening::Settled { verdict: Verdict::Down, ends_opm: false };
    assert!(!happen(&mut observed, settled.clone()), "the one before it lives");
    assert!(!happen(&mut observed, main_is(12, 3)), "what has ended is followed by nobody");
    assert!(happen(&mut observed, ended(Role::Former(2))));
    assert!(happen(&mut observed, settled));
}

#[test]
fn one_that_forked_away_may_be_followed_once() {
    let run = CURRENT;
    let main_is = |pid| {
        let word = Word::MainIs { identity: identity(pid), was: 0 };
        Happening::Word { run, word }
    };
    for (outcome, may) in [
        (Outcome::Exited(0), true),
        (Outcome::Unknown, true),
        (Outcome::Exited(1), false),
        (Outcome::Killed { signal: Signal::KILL, core: false }, false),
    ] {
        let (mut observed, id) = (Observed::default(), instance_id());
        let mut happen =
            |what| observed.apply(&Event { instance: id.clone(), at: second(1), what });
        let (hash, wall) = (SpecHash(0), Wall(0));
        happen(Happening::Began { run, epoch: 0, hash, wall, fresh: true, due: None });
        happen(Happening::Spawned { run, role: Role::Main, identity: identity(10) });
        happen(Happening::Ended { run, role: Role::Main, outcome: outcome.clone() });
        assert_eq!(happen(main_is(11)), may, "{outcome:?}");
        happen(Happening::Ended { run, role: Role::Main, outcome: Outcome::Exited(0) });
        assert!(!happen(main_is(12)), "{outcome:?}");
    }
}

#[test]
fn more_time_is_for_what_is_under_way_and_is_never_less() {
    let mut observed = Observed::default();
    let id = instance_id();
    let run = CURRENT;
    let mut happen = |what| {
        observed.apply(&Event { instance: id.clone(), at: second(1), what });
        observed.get(&id).unwrap().run.as_ref().unwrap().words.more_time
    };
    let more = |n| Happening::Word { run, word: Word::MoreTime(second(n)) };
    let wall = Wall(0);
    happen(Happening::Began { run, epoch: 0, hash: SpecHash(0), wall, fresh: true, due: None });
    assert_eq!(happen(more(9)), Some(second(9)));
    assert_eq!(happen(more(8)), Some(second(9)));
    assert_eq!(happen(Happening::Up { run }), None);
    assert_eq!(happen(more(9)), None, "nothing has a deadline");
    assert_eq!(happen(Happening::StopBegan { run, cause: StopCause::GoalDown }), None);
    assert_eq!(happen(Happening::Rung { run, rung: Rung::Step(0) }), None);
    assert_eq!(happen(more(20)), Some(second(20)));
    assert_eq!(happen(Happening::Rung { run, rung: Rung::Step(1) }), None);
}
