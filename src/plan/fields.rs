//! A spec as an operator would write it: keys of opm-unit(5) with their values, for plans and `opm show`.
//!
//! This is the one place that turns what was read back into keys and values: each key is one of the
//! table in `config/keys.rs`, and what is given for a spec reads back as the same spec. Every field
//! of a spec is named here, so that a new one is not forgotten.

mod forms;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Class;
use crate::model::{
    AtLimit, Command, Condition, Conditions, Dependency, EndAction, FACILITIES, Health, Hooks,
    InheritEnv, Instances, Kind, LogTarget, Logs, Output, ProcessSpec, Ready, Relations, Reload,
    Restart, Schedule, Socket, Spec, Stdin, Stop, StopAction, StopStep, StopTo, Syslog,
    SyslogAddress, Watch, When,
};
use forms::{
    asked, dependency, env_file, exit, hook, limit, listens, signal, size, span, stop_step, word,
    words,
};

/// Names whose values are never shown.
const SECRET_WORDS: [&str; 6] = ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL"];

/// Keys with their values, and what a change of each costs.
pub(super) type Fields = BTreeMap<String, (Value, Class)>;

/// Every key of a spec under the name it has in a unit file, with what its change costs.
pub fn fields_of(spec: &Spec) -> Fields {
    let Spec {
        kind,
        name,
        description,
        documentation,
        labels,
        enabled,
        process,
        socket,
        relations,
        conditions,
        instances,
        restart,
        success_exit,
        on_success,
        on_failure,
        essential,
        start_timeout,
        stop,
        reload,
        health,
        watch,
        schedule,
        hooks,
        logs,
    } = spec;
    let mut list = Listing::default();
    list.fixed("kind", word(kind));
    list.live("name", json!(name));
    list.some("description", json!(description));
    list.some("documentation", json!(documentation));
    for (label, text) in labels {
        list.live(&format!("labels.{label}"), json!(text));
    }
    list.live("enabled", json!(enabled));
    list.relations(relations, &logs.to);
    list.socket(socket.as_deref());
    // The other kinds have none of the rest.
    if !matches!(kind, Kind::Service | Kind::Task) {
        return list.0;
    }
    let output = process.as_ref().map_or(Output::Keeper, |process| process.output);
    list.process(process.as_ref());
    list.live("on_dependency_restart", word(&relations.on_dependency_restart));
    list.conditions(conditions);
    let instances = match &**instances {
        Instances::Count(count) => json!(count),
        Instances::Names(names) => json!(names),
    };
    list.live("instances", instances);
    list.restart(restart);
    list.live("success_exit", success_exit.iter().copied().map(exit).collect());
    list.end("on_success", on_success);
    list.end("on_failure", on_failure);
    list.live("essential", json!(essential));
    list.live("start_timeout", span(*start_timeout));
    list.stop(stop);
    list.reload(reload.as_deref());
    list.health(health.as_deref());
    list.watch(watch.as_deref());
    list.schedule(schedule.as_deref());
    list.hooks(hooks);
    list.logs(logs, output);
    list.0
}

/// The keys that were found.
#[derive(Default)]
struct Listing(Fields);

impl Listing {
    /// Adds a key whose change is taken over at once.
    fn live(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), (value, Class::Live));
    }

    /// Adds a key that is fixed when a run starts.
    fn fixed(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), (value, Class::Restart));
    }

    /// As `live`, for a key that says nothing where its value is empty.
    fn some(&mut self, key: &str, value: Value) {
        if !is_empty(&value) {
            self.live(key, value);
        }
    }

    /// As `fixed`, for a key that says nothing where its value is empty.
    fn some_fixed(&mut self, key: &str, value: Value) {
        if !is_empty(&value) {
            self.fixed(key, value);
        }
    }

    fn relations(&mut self, relations: &Relations, to: &LogTarget) {
        let Relations { requires, wants, after, before, conflicts, on_dependency_restart: _ } =
            relations;
        // Who writes to a unit is after it without saying so.
        let is_brought = |dependency: &Dependency| {
            let Dependency { unit, condition } = dependency;
            matches!(to, LogTarget::Unit(reader) if reader == unit)
                && *condition == Condition::Started
        };
        let brought = after.iter().rposition(is_brought);
        let after = after.iter().enumerate().filter(|(at, _)| Some(*at) != brought);
        self.some("requires", requires.iter().map(dependency).collect());
        self.some("wants", wants.iter().map(dependency).collect());
        self.some("after", after.map(|(_, one)| dependency(one)).collect());
        self.some("before", before.iter().map(dependency).collect());
        self.some("conflicts", json!(conflicts));
    }

    fn socket(&mut self, socket: Option<&Socket>) {
        let Some(Socket { listen, service, accept, base_dir: _ }) = socket else { return };
        self.fixed("listen", listen.iter().map(listens).collect());
        self.fixed("for", json!(service));
        self.live("accept", word(accept));
    }

    fn process(&mut self, process: Option<&ProcessSpec>) {
        let Some(ProcessSpec {
            command,
            base_dir: _,
            working_dir,
            env,
            env_files,
            inherit_env,
            stdin,
            output: _,
            user,
            group,
            supplementary_groups,
            umask,
            limits,
            nice,
            oom_score_adjust,
            ready,
            watchdog,
            pid_file,
            own_session: _,
        }) = process
        else {
            return;
        };
        let key = if matches!(command, Command::Shell(_)) { "shell" } else { "command" };
        self.fixed(key, words(command));
        self.some_fixed("working_dir", json!(working_dir));
        for (name, text) in env {
            self.fixed(&format!("env.{name}"), json!(text));
        }
        self.some_fixed("env_files", env_files.iter().map(env_file).collect());
        let inherited = match &**inherit_env {
            InheritEnv::All => json!(true),
            InheritEnv::Only(names) if names.is_empty() => json!(false),
            InheritEnv::Only(names) => json!(names),
        };
        self.fixed("inherit_env", inherited);
        match &**stdin {
            Stdin::File(path) => self.fixed("stdin.file", json!(path)),
            Stdin::Null | Stdin::Logs | Stdin::Inherit => self.fixed("stdin", word(stdin)),
        }
        self.some_fixed("user", json!(user));
        self.some_fixed("group", json!(group));
        self.some_fixed("supplementary_groups", json!(supplementary_groups));
        self.some_fixed("umask", json!(umask.map(|mask| format!("{mask:03o}"))));
        for (resource, of) in limits {
            self.fixed(&format!("limits.{}", resource.as_str()), limit(*resource, *of));
        }
        self.some_fixed("nice", json!(nice));
        self.some_fixed("oom_score_adjust", json!(oom_score_adjust));
        self.ready(ready);
        self.some_fixed("watchdog", watchdog.map_or(Value::Null, span));
        self.some_fixed("pid_file", json!(pid_file));
    }

    fn ready(&mut self, ready: &Ready) {
        match ready {
            Ready::Started => {}
            Ready::Notify => self.fixed("ready.notify", json!(true)),
            Ready::Fd(fd) => self.fixed("ready.fd", json!(fd)),
            Ready::Delay(delay) => self.fixed("ready.delay", span(*delay)),
            Ready::File(path) => self.fixed("ready.file", json!(path)),
            Ready::Log(pattern) => self.fixed("ready.log", json!(pattern)),
            Ready::Asked(probe) => {
                for (key, value) in asked(probe) {
                    self.fixed(&format!("ready.{key}"), value);
                }
            }
        }
    }

    fn conditions(&mut self, conditions: &Conditions) {
        let Conditions { path_exists, env, command } = conditions;
        self.some("conditions.path_exists", json!(path_exists));
        self.some("conditions.env", json!(env));
        self.some("conditions.command", command.as_ref().map_or(Value::Null, words));
    }

    fn restart(&mut self, restart: &Restart) {
        let Restart { policy, delay, factor, max_delay, jitter, reset_after, limit, at_limit } =
            restart;
        self.live("restart.policy", word(policy));
        self.live("restart.delay", span(*delay));
        self.live("restart.factor", json!(factor));
        self.live("restart.max_delay", span(*max_delay));
        self.live("restart.jitter", json!(jitter));
        self.live("restart.reset_after", span(*reset_after));
        // Without a limit there is nothing that could follow at it.
        let Some(limit) = limit else { return };
        self.live("restart.limit.starts", json!(limit.starts));
        self.live("restart.limit.within", span(limit.within));
        match at_limit {
            AtLimit::Start(unit) => self.live("restart.at_limit.start", json!(unit)),
            AtLimit::Fail | AtLimit::Shutdown => self.live("restart.at_limit", word(at_limit)),
        }
    }

    fn end(&mut self, key: &str, action: &EndAction) {
        match action {
            EndAction::Start(unit) => self.live(&format!("{key}.start"), json!(unit)),
            EndAction::None | EndAction::Shutdown => self.live(key, word(action)),
        }
    }

    fn stop(&mut self, stop: &Stop) {
        let signalled = stop.steps.iter().find_map(|step| match &step.action {
            StopAction::Signal(_, to) => Some(to),
            StopAction::Command(_) => None,
        });
        self.live("stop.to", word(signalled.unwrap_or(&StopTo::All)));
        match stop.steps.as_slice() {
            [StopStep { action: StopAction::Signal(by, _), wait }] => {
                self.live("stop.signal", signal(*by));
                self.live("stop.timeout", span(*wait));
            }
            steps => self.live("stop.steps", steps.iter().map(stop_step).collect()),
        }
    }

    fn reload(&mut self, reload: Option<&Reload>) {
        match reload {
            None => {}
            Some(Reload::Signal(by)) => self.live("reload.signal", signal(*by)),
            Some(Reload::Command(command)) => self.live("reload.command", words(command)),
        }
    }

    fn health(&mut self, health: Option<&Health>) {
        let Some(Health { probe, retries, start_period, on_failure }) = health else { return };
        for (key, value) in asked(probe) {
            self.live(&format!("health.{key}"), value);
        }
        self.live("health.retries", json!(retries));
        self.live("health.start_period", span(*start_period));
        self.live("health.on_failure", word(on_failure));
    }

    fn watch(&mut self, watch: Option<&Watch>) {
        let Some(Watch { paths, debounce, action }) = watch else { return };
        self.live("watch.paths", json!(paths));
        self.live("watch.debounce", span(*debounce));
        self.live("watch.action", word(action));
    }

    fn schedule(&mut self, schedule: Option<&Schedule>) {
        let Some(Schedule { when, timezone, jitter, catch_up, overlap }) = schedule else { return };
        match when {
            When::Schedule(cron) => self.live("schedule", json!(cron)),
            When::Calendar(calendar) => self.live("calendar", json!(calendar)),
            When::Every(length) => self.live("every", span(*length)),
        }
        self.some("timezone", json!(timezone));
        self.live("jitter", span(*jitter));
        self.live("catch_up", json!(catch_up));
        self.live("overlap", word(overlap));
    }

    fn hooks(&mut self, hooks: &Hooks) {
        let Hooks { pre_start, post_start, pre_stop, post_stop } = hooks;
        for (key, hooks) in [
            ("pre_start", pre_start),
            ("post_start", post_start),
            ("pre_stop", pre_stop),
            ("post_stop", post_stop),
        ] {
            self.some(key, hooks.iter().map(hook).collect());
        }
    }

    fn logs(&mut self, logs: &Logs, output: Output) {
        let Logs { to, format, max_size, keep, max_age, compress, rate } = logs;
        match (output, to) {
            (Output::Inherit | Output::Null, _) => self.fixed("logs.to", word(&output)),
            (Output::Keeper, LogTarget::File | LogTarget::Console) => {
                self.live("logs.to", word(to));
            }
            (Output::Keeper, LogTarget::Path(path)) => self.live("logs.to.path", json!(path)),
            (Output::Keeper, LogTarget::Unit(unit)) => self.live("logs.to.unit", json!(unit)),
            (Output::Keeper, LogTarget::Syslog(syslog)) => self.syslog(syslog),
        }
        self.some("logs.format", json!(format));
        self.live("logs.max_size", size(*max_size));
        self.live("logs.keep", json!(keep));
        self.some("logs.max_age", max_age.map_or(Value::Null, span));
        self.live("logs.compress", json!(compress));
        if let Some(rate) = rate {
            self.live("logs.rate.lines", json!(rate.lines));
            self.live("logs.rate.per", span(rate.per));
        }
    }

    fn syslog(&mut self, syslog: &Syslog) {
        if *syslog == Syslog::at(SyslogAddress::default()) {
            self.live("logs.to", json!("syslog"));
            return;
        }
        let facility = FACILITIES.get(usize::from(syslog.facility));
        self.live("logs.to.syslog.address", json!(syslog.address.to_string()));
        self.live("logs.to.syslog.facility", json!(facility));
        self.live("logs.to.syslog.format", word(&syslog.form));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

/// Keeps values of names like `DB_PASSWORD` out of plans, output and logs.
pub fn conceal(key: &str, value: Value) -> Value {
    let upper = key.to_ascii_uppercase();
    if key.starts_with("env.") && SECRET_WORDS.iter().any(|word| upper.contains(word)) {
        return Value::String("(not shown)".to_owned());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Template, UnitName};

    #[test]
    fn values_are_shown_as_they_are_written() {
        let mut spec = Spec::new(Kind::Service, UnitName::parse("web").unwrap());
        let command = Command::Argv(vec![Template::literal("true")]);
        let mut process = ProcessSpec::new(command, "/units".into());
        process.umask = Some(0o27);
        process.env.insert("A".to_owned(), Template::literal("x"));
        process.env.insert("EMPTY".to_owned(), Template::literal(""));
        spec.process = Some(process);
        let fields = fields_of(&spec);
        for (key, value) in [
            ("command", json!(["true"])),
            ("umask", json!("027")),
            ("env.A", json!("x")),
            ("env.EMPTY", json!("")),
            ("restart.delay", json!("200ms")),
            ("start_timeout", json!("1m")),
            ("stop.signal", json!("SIGTERM")),
            ("stop.timeout", json!("10s")),
            ("logs.to", json!("file")),
            ("logs.max_size", json!("10M")),
            ("instances", json!(1)),
        ] {
            assert_eq!(fields.get(key).map(|(value, _)| value), Some(&value), "{key}");
        }
        for key in ["base_dir", "output", "user", "hooks.pre_start", "pre_start", "ready"] {
            assert_eq!(fields.get(key), None, "{key}");
        }
    }
}
