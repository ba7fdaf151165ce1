//! Whether a run was silent for too long. It is a look at when it last said something, and no fact.

use crate::model::{Monotonic, Run, Span, Spec, StopCause};

/// When its silence will have lasted too long, if anybody watches; or why it has to end now. `spec`: by
/// which it was begun, where that is known.
pub(super) fn look(
    spec: Option<&Spec>,
    run: &Run,
    now: Monotonic,
) -> Result<Option<Monotonic>, StopCause> {
    if run.words.failed {
        return Err(StopCause::Triggered);
    }
    let process = spec.and_then(|spec| spec.process.as_ref());
    let asked = process.and_then(|process| process.watchdog);
    let silence =
        run.words.silence.or(asked).filter(|span| ![Span::ZERO, Span::FOREVER].contains(span));
    let (Some(silence), Some(ready)) = (silence, run.ready) else { return Ok(None) };
    let deadline = run.words.well.map_or(ready, |pinged| pinged.max(ready)).after(silence);
    if now >= deadline { Err(StopCause::Watchdog) } else { Ok(Some(deadline)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Command, Event, FilePath, Happening, InstanceId, Kind, Observed, ProcessSpec, RunId,
        SpecHash, Template, UnitName, Wall, Word,
    };

    const RUN: RunId = RunId(1);

    fn second(n: u64) -> Monotonic {
        Monotonic::default().after(Span::seconds(n))
    }

    fn spec(watchdog: Option<Span>) -> Spec {
        let mut spec = Spec::new(Kind::Service, UnitName::parse("web").unwrap());
        let command = Command::Argv(vec![Template::literal("true")]);
        let process = ProcessSpec::new(command, FilePath::from("/"));
        spec.process = Some(ProcessSpec { watchdog, ..process });
        spec
    }

    /// A run that began at 1 s, and to which this happened.
    fn run(happened: Vec<(u64, Happening)>) -> Run {
        let instance = InstanceId::parse("web").unwrap();
        let (hash, wall) = (SpecHash(1), Wall(0));
        let began = Happening::Began { run: RUN, epoch: 0, hash, wall, fresh: true, due: None };
        let mut observed = Observed::default();
        for (at, what) in std::iter::once((1, began)).chain(happened) {
            observed.apply(&Event { instance: instance.clone(), at: second(at), what });
        }
        observed.get(&instance).unwrap().run.clone().unwrap()
    }

    #[test]
    fn silence_counts_from_the_last_word_and_not_before_ready() {
        let (ready, ping) =
            (Happening::Ready { run: RUN }, Happening::Word { run: RUN, word: Word::Well });
        let spec = spec(Some(Span::seconds(10)));
        for (happened, deadline) in [
            (vec![], None),
            (vec![(3, ping.clone())], None),
            (vec![(5, ready.clone())], Some(15)),
            (vec![(3, ping.clone()), (5, ready.clone())], Some(15)),
            (vec![(5, ready.clone()), (9, ping.clone())], Some(19)),
        ] {
            let run = run(happened);
            assert_eq!(look(Some(&spec), &run, second(9)), Ok(deadline.map(second)));
            let late = deadline.map_or(Ok(None), |_| Err(StopCause::Watchdog));
            assert_eq!(look(Some(&spec), &run, second(deadline.unwrap_or(99))), late);
        }
    }

    #[test]
    fn what_the_run_says_of_its_watchdog_counts() {
        let ready = (5, Happening::Ready { run: RUN });
        let says = |silence| (6, Happening::Word { run: RUN, word: Word::Silence(silence) });
        for (asked, said, deadline) in [
            (None, Span::seconds(2), Some(7)),
            (Some(Span::seconds(1)), Span::seconds(20), Some(25)),
            (Some(Span::seconds(1)), Span::ZERO, None),
            (Some(Span::seconds(1)), Span::FOREVER, None),
        ] {
            let run = run(vec![ready.clone(), says(said)]);
            let due = look(Some(&spec(asked)), &run, second(6));
            assert_eq!(due, Ok(deadline.map(second)), "{asked:?} {said}");
        }
        let triggered = run(vec![(2, Happening::Word { run: RUN, word: Word::Failed })]);
        assert_eq!(look(Some(&spec(None)), &triggered, second(2)), Err(StopCause::Triggered));
    }
}
