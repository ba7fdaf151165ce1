//! `simulate`: what would happen.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::args::{Global, Simulate};
use super::client::refused;
use super::{Error, Exit, Outcome, output, world};
use crate::model::Gather;
use crate::simulate::{self, End, Line, MOMENTS_MAX, Question, Scene, Wish};

/// Most instances of one phase that the last line names; of more it gives the number.
const NAMED_MAX: usize = 8;

/// `opm simulate`.
pub(super) fn simulate(global: &Global, args: &Simulate) -> Outcome {
    let state = match &args.dir {
        Some(dir) => world::of_files(dir)?,
        None => world::live(global)?,
    };
    if state.shutting_down {
        return Err(Error::new(Exit::Refused, "opm is shutting down"));
    }
    let question = Question {
        wishes: args.wishes.0.clone(),
        stubborn: args.stubborn.clone(),
        broken: args.broken.clone(),
        boot: args.dir.is_some(),
    };
    let story = simulate::simulate(&state, &question).map_err(|refusal| refused(&refusal))?;
    if global.json {
        let scenes: Vec<Value> = story.scenes.iter().map(as_json).collect();
        output::json(&json!({ "scenes": scenes, "moments": story.moments }))?;
        return Ok(Exit::Done);
    }
    let mut text = String::new();
    for scene in &story.scenes {
        if story.scenes.len() > 1 {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.extend([gap, &wish(scene), ":\n"]);
        }
        text.push_str(&lines(&scene.lines));
        text.push_str(&shares(scene));
        text.push_str(&end(scene));
        text.push('\n');
    }
    output::raw(text.as_bytes())?;
    Ok(Exit::Done)
}

/// What was wished, as it was written.
fn wish(scene: &Scene) -> String {
    match &scene.wish {
        None => "start".to_owned(),
        Some(Wish::Fail(name)) => format!("fail {name}"),
        Some(Wish::Stop(name)) => format!("stop {name}"),
        Some(Wish::Shutdown(None)) => "shutdown".to_owned(),
        Some(Wish::Shutdown(Some(time))) => format!("shutdown {time}"),
    }
}

/// One line for each thing that happens.
fn lines(lines: &[Line]) -> String {
    let who = |line: &Line| line.instance.as_ref().map_or("opm".to_owned(), ToString::to_string);
    let at_width = lines.iter().map(|line| line.at.to_string().len()).max().unwrap_or(0);
    let who_width = lines.iter().map(|line| who(line).len()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let because = line.because.as_ref().map(|why| format!(", because {why}"));
        let what = output::plain(&format!("{}{}", line.what, because.unwrap_or_default()));
        let (at, who) = (line.at.to_string(), who(line));
        let line = format!("{at:at_width$}  {who:who_width$}  {what}\n");
        text.push_str(&line);
    }
    text
}

/// What each stage of a shutdown gets of the time, and who is cut short.
fn shares(scene: &Scene) -> String {
    if scene.shares.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = scene
        .shares
        .iter()
        .map(|share| {
            let cut = if share.cut_short { "cut short" } else { "" };
            vec![
                share.stage.to_string(),
                share.instance.to_string(),
                share.from.to_string(),
                share.gets.to_string(),
                share.own.to_string(),
                cut.to_owned(),
            ]
        })
        .collect();
    let head = ["STAGE", "UNIT", "FROM", "GETS", "OF ITS OWN", ""];
    format!("\nIf no process obeys but to be killed:\n{}\n", output::table(&head, &rows))
}

/// Where it comes to rest.
fn end(scene: &Scene) -> String {
    let at = scene.at;
    let how = match scene.end {
        End::Rest => format!("at rest after {at}"),
        End::Over(code) => return format!("opm ends after {at}, with exit code {code}"),
        End::ForEver { period, times } if period == crate::model::Span::ZERO => {
            format!("goes on for ever, the same at once again (seen {times} times)")
        }
        End::ForEver { period, times } => {
            format!("goes on for ever, the same every {period} (seen {times} times)")
        }
        End::Unknown => format!("not at rest after {at} and {MOMENTS_MAX} moments"),
    };
    let mut phases: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (id, phase) in &scene.phases {
        phases.entry(phase).or_default().push(id.to_string());
    }
    let part = |(phase, ids): (&&str, &Vec<String>)| {
        if ids.len() > NAMED_MAX {
            format!("{} {phase}", ids.len())
        } else {
            format!("{phase} {}", ids.join(", "))
        }
    };
    let parts: Vec<String> = phases.iter().map(part).collect();
    if parts.is_empty() {
        format!("{how}: nothing")
    } else {
        format!("{how}: {}", parts.join("; "))
    }
}

fn as_json(scene: &Scene) -> Value {
    let (state, detail) = match scene.end {
        End::Rest => ("rest", Value::Null),
        End::Over(code) => ("over", json!({ "exit_code": code })),
        End::ForEver { period, times } => {
            ("for-ever", json!({ "period_ns": period, "times": times }))
        }
        End::Unknown => ("unknown", Value::Null),
    };
    let phases: BTreeMap<String, &str> =
        scene.phases.iter().map(|(id, phase)| (id.to_string(), *phase)).gather();
    json!({
        "wish": wish(scene), "happens": scene.lines, "shares": scene.shares,
        "end": { "state": state, "detail": detail, "at_ns": scene.at, "phases": phases },
    })
}
