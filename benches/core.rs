//! What the parts cost that nothing is started by: `cargo bench`; `cargo bench -- ledger` for one.
//!
//! Whole commands, and what is started, are measured by the scripts beside this file.
#![expect(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use opm::config::{self, Cache, Layers, Loaded, SourceFile};
use opm::model::{
    Agenda, Desired, Event, FilePath, Graph, Happening, InstanceId, Monotonic, Observed, RunId,
    SpecHash, Unit, UnitName, Wall,
};
use opm::plan::{self, View};
use opm::protocol::{Call, Decoder, FileToSend};
use opm::system::{Files, Ledger, compact_text, replay_text};

/// Units of a source. What is measured is close to proportional to it.
const UNITS: usize = 1_000;

fn file(number: usize) -> SourceFile {
    let needs = if number == 0 { String::new() } else { format!("after: [u{:04}]\n", number - 1) };
    let text = format!(
        "command: [sleep, infinity]\ndescription: unit {number} of many\n\
         env: {{PORT: \"{}\", RELEASE: \"1\"}}\nworking_dir: /tmp\n\
         restart: {{policy: always, delay: 1s}}\nlogs: {{to: null}}\n{needs}",
        1_024 + number
    );
    SourceFile { path: FilePath::from(format!("/units/u{number:04}.yaml")), text: text.into() }
}

fn files() -> Vec<SourceFile> {
    (0..UNITS).map(file).collect()
}

fn load(files: &[SourceFile], cache: &mut Cache) -> Loaded {
    config::load_again(files, &Layers::default(), &BTreeMap::new(), &[], cache)
}

fn desired() -> Desired {
    let loaded = load(&files(), &mut Cache::new());
    let unit = |spec| Unit::new(spec, "/units".to_owned());
    let units = loaded.specs.into_iter().map(|spec| (spec.name.clone(), unit(spec)));
    Desired { generation: 1, units: units.collect(), ..Desired::default() }
}

/// The beginnings of a run of every unit.
fn events() -> Vec<Event> {
    let began = |number: usize| {
        let unit = UnitName::parse(&format!("u{number:04}")).unwrap();
        let (run, hash) = (RunId(u64::try_from(number).unwrap()), SpecHash(0));
        let what = Happening::Began { run, epoch: 0, hash, wall: Wall(0), fresh: true, due: None };
        Event { instance: InstanceId::single(&unit), at: Monotonic::default(), what }
    };
    (0..UNITS).map(began).collect()
}

fn running() -> Observed {
    let mut observed = Observed::default();
    for event in events() {
        observed.apply(&event);
    }
    observed
}

fn parse(criterion: &mut Criterion) {
    let files = files();
    criterion.bench_function("config: 1,000 files", |bencher| {
        bencher.iter(|| load(black_box(&files), &mut Cache::new()));
    });
    let mut cache = Cache::new();
    load(&files, &mut cache);
    criterion.bench_function("config: 1,000 files that are known", |bencher| {
        bencher.iter(|| load(black_box(&files), &mut cache));
    });
}

fn difference(criterion: &mut Criterion) {
    let (old, observed) = (desired(), running());
    let mut new = old.clone();
    let unit = new.units.get_mut(&UnitName::parse("u0500").unwrap()).unwrap();
    Arc::make_mut(&mut unit.spec).restart.factor = 3.0;
    criterion.bench_function("plan: one of 1,000 changes", |bencher| {
        bencher.iter(|| plan::plan(black_box(&old), black_box(&new), &observed));
    });
}

fn reconcile(criterion: &mut Criterion) {
    let (desired, observed, agenda) = (desired(), running(), Agenda::default());
    let graph = Graph::build(&desired);
    let view = View {
        desired: &desired,
        graph: &graph,
        observed: &observed,
        shutdown: None,
        agenda: &agenda,
        wall: Wall::default(),
    };
    let now = Monotonic::default();
    criterion.bench_function("reconcile: all of 1,000", |bencher| {
        bencher.iter(|| plan::reconcile(black_box(&view), now));
    });
    let id = InstanceId::single(&UnitName::parse("u0500").unwrap());
    criterion.bench_function("reconcile: one of 1,000", |bencher| {
        bencher.iter(|| plan::decide(black_box(&view), &id, now));
    });
}

fn ledger(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::open(Files, dir.path(), "bench").unwrap();
    let event = events().remove(0);
    criterion.bench_function("ledger: append one event", |bencher| {
        bencher.iter(|| {
            ledger.note(black_box(&event));
            ledger.flush().unwrap();
        });
    });
    let text = compact_text(&running()).unwrap();
    criterion.bench_function("ledger: replay 1,000 instances", |bencher| {
        bencher.iter(|| replay_text(black_box(&text)));
    });
}

fn protocol(criterion: &mut Criterion) {
    let files = files();
    let encode = || {
        let files: Vec<FileToSend<'_>> =
            files.iter().map(|file| FileToSend::new(&file.path, &file.text)).collect();
        Call::encode_control("Apply", &BTreeMap::from([("files", files)]))
    };
    criterion.bench_function("protocol: encode 1,000 files", |bencher| bencher.iter(encode));
    let bytes = encode();
    let decode = |bytes: Vec<u8>| {
        let mut decoder = Decoder::new(bytes.len());
        for chunk in bytes.chunks(64 * 1024) {
            decoder.push(chunk);
        }
        Call::parse(&decoder.take().unwrap().unwrap()).unwrap()
    };
    criterion.bench_function("protocol: decode 1,000 files", |bencher| {
        bencher.iter_batched(|| bytes.clone(), decode, BatchSize::LargeInput);
    });
}

criterion_group!(benches, parse, difference, reconcile, ledger, protocol);
criterion_main!(benches);
