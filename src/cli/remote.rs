//! `-H`: commands for other machines, one after the other.
//!
//! What talks to a daemon talks to the one there, through [`super::ssh`]; unit files are read here.
//! What reads files of the far side is run there as a whole. A command that does neither is refused
//! before anything is asked. The first host that fails is the last that is asked.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Args as _, CommandFactory, FromArgMatches};
use serde_json::{Value, json};

use super::args::{Args, Command, Global};
use super::{Error, Exit, output, ssh};

/// Most bytes of a failed unit's last lines that are fetched.
const LAST_LINES_BYTES_MAX: u64 = 64 * 1024;

/// Reads the arguments. With `-H` also gives the words of the command without what is for this side
/// alone, as the far side is to get them.
pub(super) fn parse(line: &[OsString]) -> Result<(Args, Vec<OsString>), clap::Error> {
    let mut command = Args::command();
    let matches = command.try_get_matches_from_mut(line)?;
    let args = Args::from_arg_matches(&matches);
    let mut args = args.map_err(|error| error.format(&mut command))?;
    if args.global.hosts.is_empty() {
        return Ok((args, Vec::new()));
    }
    let before = hosts_before_command(line);
    if before != args.global.hosts {
        args.global.hosts.splice(..0, before);
    }
    // The environment is that of this machine.
    if matches.value_source("root") == Some(ValueSource::EnvVariable) {
        args.global.root = None;
    }
    let words = words(&command, &matches, &args.global);
    Ok((args, words))
}

/// The hosts that stand before the command: clap forgets them where others follow it.
fn hosts_before_command(line: &[OsString]) -> Vec<String> {
    let globals = Global::augment_args(clap::Command::new("opm")).allow_external_subcommands(true);
    let found = globals.try_get_matches_from(line).ok();
    let found = found.and_then(|mut found| found.remove_many::<String>("hosts"));
    found.into_iter().flatten().collect()
}

/// The command with its own arguments.
fn words(command: &clap::Command, matches: &clap::ArgMatches, global: &Global) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    words.extend(global.json.then(|| "--json".into()));
    words.extend((0..global.verbose).map(|_| "-v".into()));
    let Some((name, matches)) = matches.subcommand() else { return words };
    words.push(name.into());
    let mut plain: Vec<OsString> = Vec::new();
    let own = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    for arg in own.filter(|arg| !arg.is_global_set()) {
        let id = arg.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let values = matches.get_raw(id).into_iter().flatten().map(ToOwned::to_owned);
        let option = match (arg.get_long(), arg.get_short()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => {
                plain.extend(values);
                continue;
            }
        };
        if arg.get_action().takes_values() {
            for value in values {
                words.extend([OsString::from(&option), value]);
            }
        } else {
            words.push(option.into());
        }
    }
    words.push("--".into());
    words.extend(plain);
    words
}

/// How a command is done for another machine.
enum Way {
    /// Here, with the daemon there.
    Socket,
    /// There, as a whole.
    There,
    /// Not at all.
    No(&'static str),
}

fn way(command: &Command) -> Way {
    match command {
        Command::Run(_) | Command::Daemon(_) => {
            Way::No("a supervisor is started on its own machine, as by `ssh HOST opm daemon`")
        }
        Command::Check(_) => Way::No("it reads files of this machine, and asks no daemon"),
        Command::Simulate(args) if args.dir.is_some() => {
            Way::No("with a directory it reads files of this machine, and asks no daemon")
        }
        Command::Explain(_) | Command::Completions { .. } => {
            Way::No("it is about this program, and asks no daemon")
        }
        Command::Proxy | Command::Probe { .. } | Command::LogKeeper(_) => {
            Way::No("it works for opm on its own machine")
        }
        // The program that is to be run is there.
        Command::Logs(_) | Command::Reexec => Way::There,
        Command::Apply(_)
        | Command::Plan(_)
        | Command::Diff(_)
        | Command::Confirm
        | Command::Rollback(_)
        | Command::History(_)
        | Command::Status(_)
        | Command::Start(_)
        | Command::Stop(_)
        | Command::Restart(_)
        | Command::Reload(_)
        | Command::Kill(_)
        | Command::Release(_)
        | Command::Show(_)
        | Command::Why(_)
        | Command::Graph(_)
        | Command::Simulate(_)
        | Command::Wait(_)
        | Command::Events
        | Command::Save
        | Command::Restore
        | Command::Shutdown => Way::Socket,
    }
}

/// Whether a command goes on until somebody ends it.
fn follows(command: &Command) -> bool {
    matches!(command, Command::Events) || matches!(command, Command::Logs(logs) if logs.follow)
}

/// Whether the exit code of a command is an answer too, after which the next host is asked.
fn answers(command: &Command) -> bool {
    matches!(command, Command::Status(_) | Command::Plan(_) | Command::Diff(_))
}

/// Does a command for each host.
pub(super) fn dispatch(args: &Args, words: &[OsString]) -> Result<u8, Error> {
    let (hosts, command) = (&args.global.hosts, &args.command);
    let way = way(command);
    if let Way::No(reason) = way {
        return Err(Error::new(Exit::Bad, format!("cannot do this with -H: {reason}")));
    }
    let several = hosts.len() > 1;
    if several && follows(command) {
        let message = "cannot follow several hosts: give one -H, and each host a command";
        return Err(Error::new(Exit::Bad, message));
    }
    let mut first_no = 0;
    for (place, host) in hosts.iter().enumerate() {
        let global = Global { hosts: vec![host.clone()], ..args.global.clone() };
        if several {
            output::name_host(host);
            if !global.json {
                let gap = if place > 0 { "\n" } else { "" };
                output::line(&format!("{gap}{host}:"))?;
            }
        }
        let done = match way {
            Way::There => there(&global, host, words, several),
            Way::Socket | Way::No(_) => super::dispatch(&global, command),
        };
        let is_error = done.is_err();
        let code = match done {
            Err(error) if several && !error.message.is_empty() => {
                output::error(&error.message);
                error.exit as u8
            }
            Err(error) if several && error.exit != Exit::Done => error.exit as u8,
            other => other?,
        };
        first_no = if first_no == 0 { code } else { first_no };
        if is_error || (code != 0 && !answers(command)) {
            stopped(host, hosts.get(place.saturating_add(1)..).unwrap_or_default());
            return Ok(code);
        }
    }
    Ok(first_no)
}

/// Says which hosts are left as they were.
fn stopped(at: &str, left: &[String]) {
    if !left.is_empty() {
        let left: Vec<String> = left.iter().map(|host| format!("`{host}`")).collect();
        output::error(&format!("stopped at `{at}`; nothing was asked of {}", left.join(", ")));
    }
}

/// Runs the command on the far side.
fn there(global: &Global, host: &str, words: &[OsString], several: bool) -> Result<u8, Error> {
    if !(several && global.json) {
        return ssh::run(global, host, words);
    }
    let mut each = |line: &[u8]| match serde_json::from_slice::<Value>(line) {
        Ok(value) => output::line(&json!({ "host": host, "value": value }).to_string()),
        Err(_) => output::raw(&[line, b"\n"].concat()),
    };
    ssh::run_by_line(global, host, words, &mut each)
}

/// The name of a source whose files are on this machine, for a daemon on another: a directory of
/// the same path there, or on a third machine, is another source.
pub(super) fn source_name(name: &str) -> String {
    format!("{}:{name}", crate::system::host_name())
}

/// The last lines that an instance wrote.
pub(super) fn last_lines(global: &Global, host: &str, instance: &str, lines: usize) -> Vec<String> {
    let count = lines.to_string();
    let words = ["logs", "--raw", "-n", &count, "--", instance].map(OsString::from);
    let text = ssh::printed(global, host, &words, LAST_LINES_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let skipped = text.lines().count().saturating_sub(lines);
    text.lines().skip(skipped).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> (Args, String) {
        let line: Vec<OsString> = words.iter().map(OsString::from).collect();
        let (args, words) = parse(&line).unwrap();
        let words: Vec<String> =
            words.into_iter().map(|word| word.into_string().unwrap()).collect();
        (args, words.join("|"))
    }

    #[test]
    fn hosts_stand_before_and_after_the_command() {
        for line in [
            &["opm", "-H", "a", "-H", "b", "status"][..],
            &["opm", "status", "-H", "a", "--host", "b"],
            &["opm", "-Ha", "status", "-H", "b"],
            &["opm", "--json", "--host=a", "status", "x", "-Hb"],
        ] {
            assert_eq!(parsed(line).0.global.hosts, ["a", "b"], "{line:?}");
        }
        assert!(parsed(&["opm", "status"]).0.global.hosts.is_empty());
    }

    #[test]
    fn the_far_side_gets_the_command_without_what_is_for_this_side() {
        for (line, words) in [
            (&["opm", "-H", "a", "logs"][..], "logs|--"),
            (
                &["opm", "--root", "/r", "-Ha", "--json", "-v", "logs", "-fn5", "a b", "--", "-x"],
                "--json|-v|logs|--follow|--lines|5|--|a b|-x",
            ),
            (&["opm", "logs", "--ssh", "x", "--remote-opm=y", "-H", "a", "--raw"], "logs|--raw|--"),
        ] {
            assert_eq!(parsed(line).1, words, "{line:?}");
        }
    }
}
