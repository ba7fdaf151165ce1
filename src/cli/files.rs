//! What the arguments say about a source, and what `check` tells of how it is put together.

use serde_json::{Value, json};

use super::args::{Composed, Files, Global};
use super::{Error, Exit, Outcome, output};
use crate::config::{Loaded, Origins};
use crate::daemon::SourceOptions;
use crate::model::Spec;
use crate::plan;
use crate::supervisor::Source;

impl From<&Files> for SourceOptions {
    fn from(files: &Files) -> Self {
        let profiles = files.profile.clone();
        Self { recursive: files.recursive, profiles, sets: Vec::new() }
    }
}

impl From<&Composed> for SourceOptions {
    fn from(composed: &Composed) -> Self {
        Self { sets: composed.set.clone(), ..Self::from(&composed.files) }
    }
}

/// Says which files belong to profiles that are not chosen: who took one for a unit sees it here.
pub(super) fn left_out(loaded: &Loaded) -> Result<(), Error> {
    for left in &loaded.left_out {
        let file = output::plain(&left.file.to_string());
        output::line(&format!("left out: {file}, of the profile `{}`", left.profile))?;
    }
    Ok(())
}

/// Every key of a unit with the place that gave it; a default has none.
pub(super) fn origin(global: &Global, source: &Source, loaded: &Loaded, unit: &str) -> Outcome {
    let spec = loaded.specs.iter().find(|spec| spec.name.as_str() == unit);
    let Some(spec) = spec else {
        let message = format!("cannot tell the origins of `{unit}`: there is no such unit");
        return Err(Error::new(Exit::Bad, message));
    };
    let origins = source.origins().remove(&spec.name).unwrap_or_default();
    let rows = rows(spec, &origins);
    if global.json {
        let row = |(key, value, place): &Row| json!({ "key": key, "value": value, "place": place });
        output::json(&rows.iter().map(row).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    for (key, value, place) in rows {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let place = place.unwrap_or_else(|| "default".to_owned());
        output::line(&format!("{key}: {}   {}", output::plain(&value), output::plain(&place)))?;
    }
    Ok(Exit::Done)
}

type Row = (String, Value, Option<String>);

fn rows(spec: &Spec, origins: &Origins) -> Vec<Row> {
    let place = |key: &str| origins.of(key).map(|at| format!("{}:{}", at.file, at.line));
    let row = |(key, (value, _)): (String, (Value, _))| {
        let place = place(&key);
        let value = plan::conceal(&key, value);
        (key, value, place)
    };
    plan::fields_of(spec).into_iter().map(row).collect()
}
