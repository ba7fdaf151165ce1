//! A plan is what then happens: in worlds at rest in which nothing goes wrong, an apply restarts,
//! removes and begins what its plan says, and nothing else.

use std::collections::BTreeSet;

use opm::model::{Happening, InstanceId, Phase, Span, UnitName};
use opm::plan::{Effect, Plan};
use opm::supervisor::Manner;

use crate::chance::Chance;
use crate::scene::Seen;
use crate::story::Story;
use crate::world::{Moment, verdict};

/// By then an apply has had all its effects.
const DONE_AFTER: Span = Span::seconds(40);
/// Worlds that are tried; of many nothing can be said, since they are never at rest.
const WORLDS: u64 = 600;
/// So many of them at least must have something to say.
const TOLD_MIN: u64 = 100;

/// What happened to units.
#[derive(Debug, Default, PartialEq, Eq)]
struct Happened {
    stopped: BTreeSet<UnitName>,
    begun: BTreeSet<UnitName>,
}

impl Happened {
    fn since(story: &Story, from: usize) -> Self {
        let mut happened = Self::default();
        for moment in story.world.timeline.iter().skip(from) {
            let Moment::Seen(_, Seen::Noticed(notice)) = moment else { continue };
            let unit = notice.event.instance.unit.clone();
            match notice.event.what {
                _ if unit.as_str().starts_with('_') => {}
                Happening::StopBegan { .. } => drop(happened.stopped.insert(unit)),
                Happening::Began { .. } => drop(happened.begun.insert(unit)),
                _ => {}
            }
        }
        happened
    }
}

/// A unit becomes another one that comes up and stays, so that only an apply changes anything.
fn change(story: &mut Story, place: usize) {
    loop {
        story.change(place);
        let file = &mut story.files[place];
        file.needs.retain(|(key, _)| matches!(*key, "requires" | "wants" | "after"));
        if file.stays() && file.kind != "task" && !file.is_restless() {
            return;
        }
    }
}

/// One world; whether it had something to say.
fn is_foretold(seed: u64) -> Result<bool, String> {
    let mut story = Story::calm(seed);
    let mut chance = Chance::new(seed);
    for place in 0..story.files.len() {
        change(&mut story, place);
    }
    if !story.apply_as(&Manner::default()) {
        return Ok(false);
    }
    story.world.pass(DONE_AFTER);
    if !story.is_at_rest() {
        return Ok(false);
    }
    let supervisor = story.world.supervisor().ok_or("no supervisor")?;
    let runs: BTreeSet<UnitName> = supervisor
        .observed()
        .iter()
        .filter(|(id, instance)| instance.run.is_some() && !id.unit.as_str().starts_with('_'))
        .map(|(id, _)| id.unit.clone())
        .collect();
    for _ in 0..=chance.place(2) {
        let place = chance.place(story.files.len());
        if chance.one_in(3) {
            story.exists[place] = !story.exists[place];
        } else {
            change(&mut story, place);
        }
    }
    let source = story.source();
    let supervisor = story.world.supervisor().ok_or("no supervisor")?;
    let planned =
        supervisor.plan(&source, &Manner::default()).map_err(|error| error.to_string())?;
    if opm::config::has_errors(&planned.diagnostics) {
        return Ok(false);
    }
    let from = story.world.timeline.len();
    if !story.apply_as(&Manner::default()) {
        return Ok(false);
    }
    story.world.pass(DONE_AFTER);
    verdict(&story.world)?;
    if !story.is_at_rest() || planned.plan.changes.is_empty() {
        return Ok(false);
    }
    let happened = Happened::since(&story, from);
    compare(&planned.plan, &runs, &happened, &mut story)
        .map_err(|why| format!("{why}\n{:?}\n{}", planned.plan, story.files()))?;
    Ok(true)
}

fn compare(
    plan: &Plan,
    runs: &BTreeSet<UnitName>,
    happened: &Happened,
    story: &mut Story,
) -> Result<(), String> {
    let of = |effects: &[Effect]| -> BTreeSet<UnitName> {
        let changes = plan.changes.iter().filter(|change| effects.contains(&change.effect));
        changes.map(|change| change.unit.clone()).collect()
    };
    // Single instances come and go where their number or names change.
    let is_scaled = |unit: &UnitName| {
        let change = plan.changes.iter().find(|change| change.unit == *unit);
        let mut fields = change.into_iter().flat_map(|change| &change.fields);
        fields.any(|field| field.key == "instances")
    };
    let goes: BTreeSet<UnitName> =
        of(&[Effect::Restart, Effect::Remove, Effect::Stop]).intersection(runs).cloned().collect();
    let odd = goes.symmetric_difference(&happened.stopped).find(|unit| !is_scaled(unit));
    if odd.is_some() {
        return Err(format!("planned to stop {goes:?}, and {:?} stopped", happened.stopped));
    }
    let supervisor = story.world.supervisor().ok_or("no supervisor")?;
    let view = supervisor.view();
    // What is not to be up is planned too, and does not begin; nor does what requires such.
    let waits = |id: &InstanceId| {
        let instance = view.observed.get(id);
        instance.is_some_and(|instance| matches!(instance.phase, Phase::Waiting { .. }))
    };
    let is_up =
        |unit: &UnitName| view.instances(unit).iter().any(|id| view.wants(id) && !waits(id));
    let comes: BTreeSet<UnitName> =
        of(&[Effect::Restart, Effect::Create, Effect::Start]).into_iter().filter(is_up).collect();
    let is_known = |unit: &&UnitName| comes.contains(*unit) || is_scaled(unit);
    if let Some(unit) = happened.begun.iter().find(|unit| !is_known(unit)) {
        return Err(format!("`{unit}` began, and it was not planned"));
    }
    match comes.iter().find(|unit| !happened.begun.contains(*unit)) {
        Some(unit) => Err(format!("`{unit}` was planned to begin, and did not")),
        None => Ok(()),
    }
}

#[test]
fn a_plan_is_what_then_happens() {
    let mut told = 0;
    for seed in (0..WORLDS).filter(|seed| !matches!(seed % 5, 3 | 4)) {
        match is_foretold(seed) {
            Ok(said) => told += u64::from(said),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    assert!(told >= TOLD_MIN, "only {told} worlds had something to say");
}
