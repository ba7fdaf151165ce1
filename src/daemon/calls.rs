//! What each method of the control interface does.

mod history;

use mio::Token;
use serde_json::{Map, Value, json};

use super::clients::{Clients, Pending};
use super::wait::{Goal, Wait};
use super::{Options, setup};
use crate::config::{self, SourceFile};
use crate::model::{
    Author, FilePath, Gather, InstanceId, MESSAGE_BYTES_MAX, Signal, Span, UnitName, Wall,
};
use crate::plan;
use crate::protocol::{
    CONTROL, CONTROL_DESCRIPTION, Call, Failure, FileText, Reply, SERVICE, SERVICE_DESCRIPTION,
};
use crate::supervisor::{Applied, Manner, Refusal, Row, Source, Supervisor};
use crate::system::{Linux, System};

/// What becomes of a call.
pub(super) enum Answer {
    /// This reply.
    Reply(Reply),
    /// The client waits; replies come with what happens.
    Later,
    /// The program is replaced; where that fails, the client is told.
    Reexec,
}

impl From<Result<Value, Failure>> for Answer {
    fn from(result: Result<Value, Failure>) -> Self {
        Self::Reply(result.map_or_else(Reply::from, Reply::last))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown { .. } => Self::NoSuchUnit(refusal.to_string()),
            Refusal::Impossible(reason) | Refusal::NotSaved(reason) => Self::Refused(reason),
        }
    }
}

/// Does what a call asks.
pub(super) fn answer(
    supervisor: &mut Supervisor<Linux>,
    options: &Options,
    clients: &mut Clients,
    client: Token,
    call: &mut Call,
) -> Answer {
    let Some((interface, method)) = call.method.rsplit_once('.') else {
        return Err(Failure::InterfaceNotFound(call.method.clone())).into();
    };
    match interface {
        SERVICE => introspect(method, &Parameters(&mut call.parameters)).into(),
        CONTROL => {
            let may_change = clients.peer(client).is_some_and(super::clients::Peer::may_change);
            // The socket's mode keeps others out; this holds where somebody changed it.
            if !may_change {
                return Err(Failure::PermissionDenied).into();
            }
            match method {
                // There is nobody to tell.
                "Events" | "Wait" if call.oneway => Err(Failure::ExpectedMore).into(),
                "Events" if !call.more => Err(Failure::ExpectedMore).into(),
                "Events" => {
                    clients.set_pending(client, Pending::Events);
                    Answer::Later
                }
                "Wait" => wait(supervisor, clients, client, call),
                "Reexec" => match setup::hand_over(supervisor) {
                    Ok(()) => Answer::Reexec,
                    Err(refusal) => Err(refusal.into()).into(),
                },
                _ => {
                    let uid = clients.peer(client).map_or(0, |peer| peer.uid);
                    let mut parameters = Parameters(&mut call.parameters);
                    let by = format!("uid {uid}");
                    control(supervisor, options, method, &mut parameters, &by).into()
                }
            }
        }
        other => Err(Failure::InterfaceNotFound(other.to_owned())).into(),
    }
}

fn introspect(method: &str, parameters: &Parameters<'_>) -> Result<Value, Failure> {
    match method {
        "GetInfo" => Ok(json!({
            "vendor": "opm", "product": "opm", "version": env!("CARGO_PKG_VERSION"),
            "url": "", "interfaces": [SERVICE, CONTROL],
        })),
        "GetInterfaceDescription" => {
            let interface = parameters.text("interface")?;
            let description = match interface.as_str() {
                SERVICE => SERVICE_DESCRIPTION,
                CONTROL => CONTROL_DESCRIPTION,
                _ => return Err(Failure::InterfaceNotFound(interface)),
            };
            Ok(json!({ "description": description }))
        }
        _ => Err(Failure::MethodNotFound(format!("{SERVICE}.{method}"))),
    }
}

fn control(
    supervisor: &mut Supervisor<Linux>,
    options: &Options,
    method: &str,
    parameters: &mut Parameters<'_>,
    by: &str,
) -> Result<Value, Failure> {
    match method {
        "Info" => Ok(info(supervisor)),
        "List" => list(supervisor, parameters),
        "Show" => show(supervisor, &parameters.text("unit")?, parameters.flag("origin")?),
        "Plan" => {
            let source = parameters.source()?;
            changes(&supervisor.plan(&source, &manner(parameters, by)?)?, &source)
        }
        "Apply" => {
            let source = parameters.source()?;
            let applied = supervisor.apply_source(&source, &manner(parameters, by)?)?;
            changes(&applied, &source)
        }
        "Stop" => stop(supervisor, parameters, by),
        "Confirm" => {
            supervisor.is_in_force(parameters.number("of")?)?;
            Ok(json!({ "generation": supervisor.confirm()? }))
        }
        "Rollback" | "History" | "Record" | "Difference" => {
            history::answer(supervisor, method, parameters, by)
        }
        "Start" => Ok(instances(&supervisor.start(&parameters.units()?)?)),
        "Restart" => {
            let rolling = parameters.batch()?;
            Ok(instances(&supervisor.restart(&parameters.units()?, rolling)?))
        }
        "Release" => Ok(instances(&supervisor.release(&parameters.units()?)?)),
        "Reload" => Ok(instances(&supervisor.reload(&parameters.units()?)?)),
        "Kill" => {
            let name = parameters.text("signal")?;
            let signal = Signal::parse(&name)
                .ok_or_else(|| Failure::Refused(format!("no such signal: `{name}`")))?;
            let all = parameters.flag("all")?;
            Ok(instances(&supervisor.kill(&parameters.units()?, signal, all)?))
        }
        "Why" => {
            let names = [parameters.text("unit")?];
            let ids = supervisor.select(&names)?;
            let lines: Vec<String> = ids.iter().flat_map(|id| supervisor.why(id)).collect();
            Ok(json!({ "lines": lines }))
        }
        "State" => state(supervisor),
        "Save" => Ok(json!({ "generation": supervisor.save()? })),
        "Restore" => Ok(restore(supervisor)),
        "Shutdown" => {
            let why = "opm shutdown".to_owned();
            supervisor.ask_to_shut_down(options.shutdown_budget, why);
            Ok(json!({}))
        }
        _ => Err(Failure::MethodNotFound(format!("{CONTROL}.{method}"))),
    }
}

fn info(supervisor: &Supervisor<Linux>) -> Value {
    let dirs = supervisor.system().dirs();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "program": setup::program().map(|path| path.to_string_lossy().into_owned()).ok(),
        "generation": supervisor.desired().generation,
        "applied": supervisor.desired().applied,
        "run_dir": dirs.run.to_string_lossy(),
        "state_dir": dirs.state.to_string_lossy(),
        "log_dir": dirs.logs.to_string_lossy(),
        "shutting_down": supervisor.shutdown().is_some(),
    })
}

fn list(supervisor: &Supervisor<Linux>, parameters: &Parameters<'_>) -> Result<Value, Failure> {
    let names = parameters.units()?;
    let ids: Vec<InstanceId> = if names.is_empty() {
        supervisor.all_ids_known(parameters.flag("internal")?)
    } else {
        supervisor.select(&names)?
    };
    let rows: Vec<Row> = ids.iter().map(|id| supervisor.row(id)).collect();
    Ok(json!({ "instances": rows }))
}

fn show(supervisor: &Supervisor<Linux>, name: &str, origin: bool) -> Result<Value, Failure> {
    let ids = supervisor.select(&[name.to_owned()])?;
    let unit = ids.first().and_then(|id| supervisor.view().unit(id));
    let unit = unit.ok_or_else(|| Failure::NoSuchUnit(format!("no unit `{name}`")))?;
    let fields: Map<String, Value> = plan::fields_of(&unit.spec)
        .into_iter()
        .map(|(key, (value, _))| (key.clone(), plan::conceal(&key, value)))
        .gather();
    let rows: Vec<Row> = ids.iter().map(|id| supervisor.row(id)).collect();
    let origins: Option<Map<String, Value>> = if origin {
        let origins = supervisor.origins(&unit.spec.name)?;
        let place = |key: &String| origins.of(key).map(|at| format!("{}:{}", at.file, at.line));
        Some(fields.keys().map(|key| (key.clone(), json!(place(key)))).gather())
    } else {
        None
    };
    Ok(json!({ "unit": {
        "name": unit.spec.name, "source": unit.source, "hold": unit.hold, "epoch": unit.epoch,
        "spec": fields, "origins": origins, "instances": rows,
    } }))
}

/// What `graph` and `simulate` look at in a process of their own: neither holds up supervision.
fn state(supervisor: &Supervisor<Linux>) -> Result<Value, Failure> {
    let state = serde_json::to_value(supervisor.state());
    let state = state.map_err(|error| Failure::Refused(format!("cannot tell it: {error}")))?;
    Ok(json!({ "state": state }))
}

fn changes(applied: &Applied, source: &Source) -> Result<Value, Failure> {
    let mut text = if applied.diagnostics.is_empty() {
        String::new()
    } else {
        config::render(&applied.diagnostics, &source.shown(), false)
    };
    if config::has_errors(&applied.diagnostics) {
        let all = serde_json::to_value(&applied.diagnostics).unwrap_or_default();
        return Err(Failure::BadUnits(all, text));
    }
    text.extend(applied.warnings.iter().map(|warning| format!("warning: {warning}\n")));
    Ok(json!({
        "changes": applied.plan.changes, "generation": applied.generation,
        "units": applied.units, "warnings": text, "basis": applied.basis,
    }))
}

fn instances(ids: &[InstanceId]) -> Value {
    json!({ "instances": ids })
}

/// Restoring is nothing of its own: the reconciler looks at everything, as at boot.
fn restore(supervisor: &mut Supervisor<Linux>) -> Value {
    supervisor.look_at_everything();
    let pending: Vec<String> = supervisor
        .all_ids_known(false)
        .iter()
        .map(|id| supervisor.row(id))
        .filter(|row| !row.settled)
        .map(|row| row.instance)
        .collect();
    json!({ "generation": supervisor.desired().generation, "pending": pending })
}

fn stop(
    supervisor: &mut Supervisor<Linux>,
    parameters: &Parameters<'_>,
    by: &str,
) -> Result<Value, Failure> {
    let reason = parameters.optional_text("reason")?;
    let until = parameters
        .number("until_us")?
        .map(|micros| Wall(i64::try_from(micros).unwrap_or(i64::MAX)));
    Ok(instances(&supervisor.stop(&parameters.units()?, by, &reason, until)?))
}

/// How a source is to be applied.
fn manner(parameters: &Parameters<'_>, by: &str) -> Result<Manner, Failure> {
    let basis = match parameters.0.get("basis") {
        None | Some(Value::Null) => None,
        Some(basis) => Some(
            serde_json::from_value(basis.clone())
                .map_err(|error| Failure::InvalidParameter(format!("basis: {error}")))?,
        ),
    };
    Ok(Manner {
        author: parameters.author(by)?,
        only: parameters.unit_names("only")?,
        rolling: parameters.batch()?,
        confirm: parameters.number("confirm_ms")?.map(Span::millis),
        confirms_itself: parameters.flag("confirms_itself")?,
        must_fit: true,
        basis,
    })
}

fn wait(
    supervisor: &Supervisor<Linux>,
    clients: &mut Clients,
    client: Token,
    call: &mut Call,
) -> Answer {
    let parameters = Parameters(&mut call.parameters);
    let parsed = (|| {
        let goal = parameters.text("condition")?;
        let goal =
            Goal::parse(&goal).ok_or_else(|| Failure::InvalidParameter("condition".to_owned()))?;
        let brief = parameters.flag("brief")?;
        // What is gone is down.
        let ids = match goal {
            Goal::Down | Goal::Stopped => supervisor.select_known(&parameters.units()?)?,
            Goal::Up | Goal::Ready | Goal::Completed | Goal::Reloaded | Goal::Settled => {
                supervisor.select(&parameters.units()?)?
            }
        };
        // Of all units those are not meant that nobody wants now.
        let view = supervisor.view();
        let is_meant = |id: &InstanceId| view.wants(id) && !plan::rests_until_due(&view, id);
        let is_of_all = parameters.units()?.is_empty()
            && matches!(goal, Goal::Up | Goal::Ready | Goal::Completed);
        let ids = ids.into_iter().filter(|id| !is_of_all || is_meant(id)).collect();
        let timeout = parameters.number("timeout_ms")?;
        let now = supervisor.system().now();
        let deadline = timeout.map(|millis| now.after(Span::millis(millis)));
        Ok(Wait::new(ids, goal, deadline, call.more, brief))
    })();
    match parsed {
        Ok(wait) => {
            clients.set_pending(client, Pending::Wait(wait));
            Answer::Later
        }
        Err(failure) => Answer::from(Err(failure)),
    }
}

/// The parameters of a call.
struct Parameters<'a>(&'a mut Map<String, Value>);

impl Parameters<'_> {
    fn text(&self, name: &str) -> Result<String, Failure> {
        let text = self.0.get(name).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| Failure::InvalidParameter(name.to_owned()))
    }

    fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Failure::InvalidParameter(name.to_owned())),
        }
    }

    fn units(&self) -> Result<Vec<String>, Failure> {
        self.texts("units")
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, Failure> {
        let bad = || Failure::InvalidParameter(name.to_owned());
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                list.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(bad)).collect()
            }
            Some(_) => Err(bad()),
        }
    }

    /// A text that may be left out.
    fn optional_text(&self, name: &str) -> Result<String, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Failure::InvalidParameter(name.to_owned())),
        }
    }

    /// A number that may be left out.
    fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let bad = || Failure::InvalidParameter(name.to_owned());
                value.as_u64().map(Some).ok_or_else(bad)
            }
        }
    }

    /// How many instances of a unit may be away at a time.
    fn batch(&self) -> Result<Option<u32>, Failure> {
        let bad = || Failure::InvalidParameter("rolling".to_owned());
        let batch = self.number("rolling")?;
        let batch = batch.map(|n| u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(bad));
        batch.transpose()
    }

    fn unit_names(&self, name: &str) -> Result<Vec<UnitName>, Failure> {
        let parse = |text: &String| {
            UnitName::parse(text).map_err(|error| Failure::Refused(format!("`{text}`: {error}")))
        };
        self.texts(name)?.iter().map(parse).collect()
    }

    /// Who asks, and what they say about it.
    fn author(&self, by: &str) -> Result<Author, Failure> {
        let message = self.optional_text("message")?;
        if message.len() > MESSAGE_BYTES_MAX || message.contains('\n') {
            let reason = format!("a message is one line of at most {MESSAGE_BYTES_MAX} bytes");
            return Err(Failure::Refused(reason));
        }
        Ok(Author { by: by.to_owned(), message })
    }

    /// The source that is meant. Its files are taken out: there may be many.
    fn source(&mut self) -> Result<Source, Failure> {
        #[derive(serde::Deserialize)]
        struct File {
            path: FilePath,
            text: FileText,
        }
        let name = self.text("source")?;
        let files = self.0.remove("files").unwrap_or_default();
        let files: Vec<File> = serde_json::from_value(files)
            .map_err(|error| Failure::InvalidParameter(format!("files: {error}")))?;
        let files = files
            .into_iter()
            .map(|file| SourceFile { path: file.path, text: file.text.into() })
            .collect();
        let (profiles, sets) = (self.texts("profiles")?, self.texts("sets")?);
        let dir = Some(self.optional_text("dir")?).filter(|dir| !dir.is_empty());
        Ok(Source { name, dir, files, profiles, sets })
    }
}
