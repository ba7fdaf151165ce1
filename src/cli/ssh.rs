//! The opm of another machine, over the system's ssh client. opm has no network protocol: who may do
//! what there, and how that is proven, is ssh's business.
//!
//! [`Ssh::proxy`] gives the bytes of the control socket there, or an error: nothing is asked before
//! an opm has answered, so that what a remote shell prints is never taken for a reply. Whatever
//! ends first, ssh or the daemon, the other is not waited for without end.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Map;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::args::Global;
use super::{Error, Exit, output};
use crate::config::command_words;
use crate::protocol::{Call, Reply, SERVICE};

/// ssh's own exit code when it could not do its work, ssh(1).
const EXIT_SSH: i32 = 255;
/// A shell's exit code for a program that it did not find, and for one that it could not run.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_RUN: i32 = 126;

/// Longest answer to the first question, in bytes; it has some hundred.
const GREETING_BYTES_MAX: usize = 64 * 1024;
/// Most characters shown of what is no answer.
const SHOWN_CHARS_MAX: usize = 60;

/// How long the rest of a line that is no answer may take, in milliseconds.
const MORE_MILLIS: u16 = 500;

/// How often, and how long each time, the end of an ssh that has nothing more to do is waited for:
/// two seconds. After that it is killed.
const END_WAITS_MAX: usize = 400;
const END_WAIT_MILLIS: u8 = 5;

/// The words of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words(Vec<String>);

/// Reads a command with its options; no shell will see it.
pub(super) fn command(text: &str) -> Result<Words, String> {
    let words = command_words(text)?;
    if words.first().is_none_or(String::is_empty) {
        return Err("it names no program".to_owned());
    }
    Ok(Words(words))
}

/// Takes what ssh takes, `[USER@]HOST` or `ssh://[USER@]HOST[:PORT]`, but nothing that could be an
/// option to it.
pub(super) fn destination(text: &str) -> Result<String, String> {
    let address = text.strip_prefix("ssh://").unwrap_or(text);
    let (user, host) = address.rsplit_once('@').map_or((None, address), |(u, h)| (Some(u), h));
    let is_odd = |part: &str| part.is_empty() || part.starts_with('-');
    if user.is_some_and(is_odd) || is_odd(host) {
        return Err("user and host are not empty and begin with no `-`".to_owned());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("a host has no blanks and no control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// One word for whatever shell the remote user has: sh and its kin, csh and fish read it alike.
/// What means something inside of single quotes to one of them stands outside, behind a backslash.
fn quote(word: &OsStr) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"@+:,./-_".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(is_plain) {
        return word.as_bytes().to_vec();
    }
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' | b'\\' => quoted.extend([b'\'', b'\\', *byte, b'\'']),
            _ => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// The command line for the far side: ssh joins its words with blanks, a shell parts them again.
fn remote_line(global: &Global, words: &[OsString]) -> OsString {
    let opm = global.remote_opm.as_ref().map_or(vec!["opm".into()], |Words(words)| words.clone());
    let mut all: Vec<OsString> = opm.into_iter().map(OsString::from).collect();
    if let Some(root) = &global.root {
        all.extend(["--root".into(), root.clone().into_os_string()]);
    }
    all.extend(words.iter().cloned());
    let quoted: Vec<Vec<u8>> = all.iter().map(|word| quote(word)).collect();
    OsString::from_vec(quoted.join(&b' '))
}

/// Starts ssh with `opm WORDS` for the far side.
fn start(
    global: &Global,
    host: &str,
    words: &[OsString],
    streams: [Stdio; 3],
) -> Result<Child, Error> {
    let Words(client) = global.ssh.clone().unwrap_or_else(|| Words(vec!["ssh".to_owned()]));
    let mut client = client.iter();
    let program = client.next().map_or("ssh", String::as_str);
    #[expect(clippy::disallowed_methods, reason = "nothing is supervised here")]
    let mut ssh = Command::new(program);
    ssh.args(client).arg("-T");
    if !output::stderr_is_terminal() {
        // Nobody is there to be asked for a password.
        ssh.args(["-o", "BatchMode=yes"]);
    }
    ssh.args(["--", host]).arg(remote_line(global, words));
    let [stdin, stdout, stderr] = streams;
    ssh.stdin(stdin).stdout(stdout).stderr(stderr).spawn().map_err(|error| {
        let reason = crate::system::plain(&error.to_string());
        let message = format!(
            "cannot run `{program}`: {reason}; install an ssh client, or name another with --ssh"
        );
        Error::new(Exit::NoDaemon, message)
    })
}

/// Runs a whole command on the far side, whose output is ours; its exit code. Whoever ends this
/// process by a signal ends ssh too.
pub(super) fn run(global: &Global, host: &str, words: &[OsString]) -> Result<u8, Error> {
    let fail =
        |error: &io::Error| Error::new(Exit::Failed, format!("cannot wait for ssh: {error}"));
    // Before there is a child, so that its end is not missed.
    let signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM]);
    let mut signals = signals.map_err(|error| fail(&error))?;
    let streams = [Stdio::null(), Stdio::inherit(), Stdio::inherit()];
    let mut child = start(global, host, words, streams)?;
    for signal in signals.forever() {
        if signal != SIGCHLD {
            child.kill().and_then(|()| child.wait()).map_err(|error| fail(&error))?;
            emulate_default_handler(signal).map_err(|error| fail(&error))?;
        }
        if let Some(status) = child.try_wait().map_err(|error| fail(&error))? {
            return code_of(host, status);
        }
    }
    child.wait().map_err(|error| fail(&error)).and_then(|status| code_of(host, status))
}

/// The same, where each line of the output is for `each`.
pub(super) fn run_by_line(
    global: &Global,
    host: &str,
    words: &[OsString],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<u8, Error> {
    let streams = [Stdio::null(), Stdio::piped(), Stdio::inherit()];
    let mut child = start(global, host, words, streams)?;
    let out = child.stdout.take().map(io::BufReader::new);
    let lines = out.into_iter().flat_map(|out| io::BufRead::split(out, b'\n'));
    let printed = lines.map_while(Result::ok).try_for_each(|line| each(&line));
    let status = child.wait().map_err(|error| Error::new(Exit::Failed, error))?;
    printed?;
    code_of(host, status)
}

/// The exit code of a command on the far side, if it was run there.
fn code_of(host: &str, status: ExitStatus) -> Result<u8, Error> {
    match status.code() {
        Some(EXIT_SSH | EXIT_NOT_FOUND | EXIT_NOT_RUN) | None => {
            Err(unreachable(host, &reason(Ended::from(status))))
        }
        Some(code) => Ok(u8::try_from(code).unwrap_or(Exit::Failed as u8)),
    }
}

/// What a command prints on the far side, up to so many bytes; nothing where it cannot be had.
pub(super) fn printed(
    global: &Global,
    host: &str,
    words: &[OsString],
    bytes_max: u64,
) -> Result<Vec<u8>, Error> {
    let mut child = start(global, host, words, [Stdio::null(), Stdio::piped(), Stdio::null()])?;
    let mut text = Vec::new();
    if let Some(out) = child.stdout.take()
        && let Err(error) = out.take(bytes_max).read_to_end(&mut text)
    {
        log::debug!("cannot read from ssh: {error}");
    }
    let mut ssh = Ssh { host: host.to_owned(), child, stdin: None, stdout: None, ended: None };
    ssh.end();
    Ok(text)
}

/// How an ssh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Code(i32),
    Signal(i32),
    /// It did not, and was killed.
    Stuck,
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        let signal = || Self::Signal(status.signal().unwrap_or(0));
        status.code().map_or_else(signal, Self::Code)
    }
}

/// What an end of ssh means, with the exit code for it.
fn reason(ended: Ended) -> (Exit, String) {
    let text = match ended {
        Ended::Code(0) => "it closed the connection".to_owned(),
        // What `opm proxy` says of itself: it has printed the details.
        Ended::Code(2) => "the opm there knows no `proxy`; is it older than this one?".to_owned(),
        Ended::Code(3) => "no daemon can be reached there".to_owned(),
        Ended::Code(4) => return (Exit::Refused, "it was refused there".to_owned()),
        Ended::Code(EXIT_NOT_FOUND) => {
            "there is no opm; install it there, or say with --remote-opm where it is".to_owned()
        }
        Ended::Code(EXIT_NOT_RUN) => "its opm cannot be run".to_owned(),
        Ended::Code(EXIT_SSH) => "ssh failed".to_owned(),
        Ended::Code(code) => format!("ssh ended with exit code {code}"),
        Ended::Signal(number) => format!("ssh was ended by signal {number}"),
        Ended::Stuck => "ssh closed the connection and did not end".to_owned(),
    };
    (Exit::NoDaemon, text)
}

fn unreachable(host: &str, (exit, reason): &(Exit, String)) -> Error {
    Error::new(*exit, format!("cannot reach opm on `{host}`: {reason}"))
}

/// A connection to the control socket of another machine.
pub(super) struct Ssh {
    host: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    ended: Option<Ended>,
}

impl Ssh {
    /// Connects, and makes sure that it is an opm that answers.
    pub(super) fn proxy(global: &Global, host: &str) -> Result<Self, Error> {
        let streams = [Stdio::piped(), Stdio::piped(), Stdio::inherit()];
        let mut child = start(global, host, &["proxy".into()], streams)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut ssh = Self { host: host.to_owned(), child, stdin, stdout, ended: None };
        ssh.greet()?;
        Ok(ssh)
    }

    /// Asks who is there. The answer is all that may come; what a shell prints comes before it.
    fn greet(&mut self) -> Result<(), Error> {
        let method = format!("{SERVICE}.GetInfo");
        let call = Call { method, parameters: Map::new(), more: false, oneway: false };
        if let Err(error) = self.write_all(&call.encode()) {
            // What it said before it went is worth more.
            log::debug!("ssh does not listen: {error}");
        }
        let mut said = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            let length = match self.read(&mut buffer) {
                Ok(0) if said.is_empty() => return Err(self.cannot_reach()),
                Ok(0) => return Err(self.babble(said)),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(self.cannot_reach()),
            };
            said.extend_from_slice(buffer.get(..length).unwrap_or_default());
            if said.first() != Some(&b'{') || said.len() > GREETING_BYTES_MAX {
                return Err(self.babble(said));
            }
            if let Some(answer) = said.strip_suffix(&[0]) {
                let is_answer = Reply::parse(answer).is_ok();
                return if is_answer { Ok(()) } else { Err(self.babble(said)) };
            }
        }
    }

    /// The first thing that came is no answer.
    fn babble(&mut self, mut said: Vec<u8>) -> Error {
        self.stdin = None;
        let mut more = true;
        let is_whole = |said: &[u8]| said.trim_ascii_start().contains(&b'\n');
        while more && !is_whole(&said) {
            more = self.read_more(&mut said);
        }
        let text = String::from_utf8_lossy(&said);
        let line = text.trim_start().lines().next().unwrap_or_default().trim_end();
        let shown: String = output::plain(line).chars().take(SHOWN_CHARS_MAX).collect();
        let message = format!(
            "cannot reach opm on `{}`: `{shown}` came from there and not its answer; a shell that \
             is not interactive may print nothing (is it in ~/.bashrc there?)",
            self.host
        );
        Error::new(Exit::NoDaemon, message)
    }

    /// Takes what comes within a moment; whether anything did.
    fn read_more(&mut self, said: &mut Vec<u8>) -> bool {
        let Some(stdout) = self.stdout.as_mut().filter(|_| said.len() < GREETING_BYTES_MAX) else {
            return false;
        };
        let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let mut buffer = [0u8; 4096];
        match poll(&mut ready, PollTimeout::from(MORE_MILLIS)) {
            Ok(1..) => {}
            Ok(_) | Err(_) => return false,
        }
        let length = stdout.read(&mut buffer).unwrap_or(0);
        said.extend_from_slice(buffer.get(..length).unwrap_or_default());
        length > 0
    }

    fn cannot_reach(&mut self) -> Error {
        let ended = self.end();
        unreachable(&self.host, &reason(ended))
    }

    /// What to say when the connection has ended before its time, or something else is wrong with
    /// it.
    pub(super) fn lost(&mut self, wrong: Option<&str>) -> Error {
        let (exit, reason) = reason(self.end());
        let reason = wrong.unwrap_or(&reason);
        let message = format!(
            "lost opm on `{}`: {reason}; what was asked for may have been done, or go on",
            self.host
        );
        Error::new(exit, message)
    }

    /// Whether the connection ended because the daemon closed it.
    pub(super) fn was_closed_there(&mut self) -> bool {
        self.end() == Ended::Code(0)
    }

    /// Hangs up, and waits for ssh, but not for long. A second call says the same.
    fn end(&mut self) -> Ended {
        if let Some(ended) = self.ended {
            return ended;
        }
        let ended = self.wait();
        self.ended = Some(ended);
        ended
    }

    fn wait(&mut self) -> Ended {
        self.stdin = None;
        self.stdout = None;
        for _ in 0..END_WAITS_MAX {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ended::from(status),
                Ok(None) => {}
                Err(error) => log::debug!("cannot wait for ssh: {error}"),
            }
            if let Err(errno) = poll(&mut [], PollTimeout::from(END_WAIT_MILLIS)) {
                log::debug!("interrupted: {errno}");
            }
        }
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            log::debug!("cannot end ssh: {error}");
        }
        Ended::Stuck
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.end();
    }
}

fn hung_up() -> io::Error {
    io::Error::from(ErrorKind::BrokenPipe)
}

impl Read for Ssh {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stdout.as_mut().ok_or_else(hung_up)?.read(buffer)
    }
}

impl Write for Ssh {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdin.as_mut().ok_or_else(hung_up)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.as_mut().ok_or_else(hung_up)?.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_reads_what_was_quoted() {
        let words = [
            "",
            "plain",
            "a b",
            "it's",
            "\\",
            "\\\\'\\n",
            "$HOME $(id) `id`",
            "\"",
            "*",
            "~",
            "#x",
            "a;b&c|d",
            "new\nline",
            "!x",
            "=x",
            "%x",
            "{a,b}",
            "[a]",
            "é",
            "-x",
            "tab\t",
            "'",
            "''",
            "\\'",
        ];
        let quoted: Vec<Vec<u8>> = words.iter().map(|word| quote(OsStr::new(word))).collect();
        let line = [b"printf '%s\\0' ".as_slice(), &quoted.join(&b' ')].concat();
        let expected: Vec<u8> =
            words.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
        for shell in ["sh", "bash", "zsh", "fish", "ksh", "mksh"] {
            #[expect(clippy::disallowed_methods, reason = "a test runs shells")]
            let mut command = Command::new(shell);
            let Ok(said) = command.arg("-c").arg(OsStr::from_bytes(&line)).output() else {
                continue;
            };
            let (said, expected) = (said.stdout.escape_ascii(), expected.escape_ascii());
            assert_eq!(said.to_string(), expected.to_string(), "{shell}");
        }
    }

    #[test]
    fn what_ssh_could_take_for_an_option_is_no_host() {
        for good in ["web", "root@web", "ssh://me@web:2222", "::1", "a@b@c", "10.0.0.1"] {
            assert_eq!(destination(good), Ok(good.to_owned()));
        }
        for bad in
            ["", "-oProxyCommand=x", "me@-x", "@web", "ssh://-x", "ssh://", "-l@web", "a b", "a\nb"]
        {
            assert!(destination(bad).is_err(), "{bad:?}");
        }
        assert!(command("").is_err() && command("''").is_err() && command("a 'b").is_err());
        assert_eq!(
            command("ssh -F 'a b'"),
            Ok(Words(vec!["ssh".into(), "-F".into(), "a b".into()]))
        );
    }
}
