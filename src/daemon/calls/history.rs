//! The methods about what was applied before.

use serde_json::{Value, json};

use super::Parameters;
use crate::model::{Cause, Record, UnitName};
use crate::protocol::{CONTROL, Failure};
use crate::supervisor::{History, RolledBack, Supervisor};
use crate::system::Linux;

/// Does what a method of the history asks.
pub(super) fn answer(
    supervisor: &mut Supervisor<Linux>,
    method: &str,
    parameters: &Parameters<'_>,
    by: &str,
) -> Result<Value, Failure> {
    let missing = |name: &str| Failure::InvalidParameter(name.to_owned());
    match method {
        "Rollback" => {
            let manner = super::manner(parameters, by)?;
            let (to, dry) = (parameters.number("to")?, parameters.flag("dry_run")?);
            supervisor.is_in_force(parameters.number("of")?)?;
            let RolledBack { to, plan, generation } = supervisor.roll_back(to, &manner, dry)?;
            // What is not run by it is not waited for, as after an apply.
            let known = &supervisor.desired().units;
            let is_scheduled = |name: &&UnitName| {
                known.get(*name).is_some_and(|unit| unit.spec.schedule.is_some())
            };
            let units = plan.changes.iter().map(|change| &change.unit);
            let units: Vec<&UnitName> = units.filter(|name| !is_scheduled(name)).collect();
            Ok(json!({
                "to": to, "changes": plan.changes, "generation": generation, "units": units,
            }))
        }
        "History" => {
            let History { records, problem } = supervisor.history();
            let rows: Vec<Value> = records.iter().map(|record| row(supervisor, record)).collect();
            Ok(json!({ "records": rows, "problem": problem }))
        }
        "Record" => {
            let generation =
                parameters.number("generation")?.ok_or_else(|| missing("generation"))?;
            let record = supervisor.record(generation)?;
            let mut sources = Vec::new();
            for revision in supervisor.revisions(&record)? {
                let units: Vec<_> = revision.specs.iter().map(|spec| &spec.name).collect();
                let generation = record.sources.get(&revision.source);
                sources.push(json!({
                    "source": revision.source, "generation": generation, "units": units,
                    "files": revision.files,
                }));
            }
            Ok(json!({ "record": row(supervisor, &record), "sources": sources }))
        }
        "Difference" => {
            let from = parameters.number("from")?.ok_or_else(|| missing("from"))?;
            let to = parameters.number("to")?.ok_or_else(|| missing("to"))?;
            Ok(json!({ "changes": supervisor.difference(from, to)?.changes }))
        }
        _ => Err(Failure::MethodNotFound(format!("{CONTROL}.{method}"))),
    }
}

/// A record as it is told.
fn row(supervisor: &Supervisor<Linux>, record: &Record) -> Value {
    let (cause, source, to) = match &record.cause {
        Cause::Apply { source } => ("apply", Some(source), None),
        Cause::Rollback { to } => ("rollback", None, Some(to)),
        Cause::Revert { to } => ("revert", None, Some(to)),
    };
    let is_current = record.generation == supervisor.desired().applied;
    let trial = supervisor.desired().trial.as_ref().filter(|_| is_current);
    json!({
        "generation": record.generation, "before": record.before, "at_us": record.at.0, "by": record.author.by,
        "message": record.author.message, "cause": cause, "source": source, "to": to,
        "current": is_current, "confirm_until_us": trial.map(|trial| trial.until.0),
    })
}
