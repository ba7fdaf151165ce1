//! `opm probe`: puts one question to a unit and exits 0 for yes. The supervisor starts it, in the
//! unit's own context, and kills it when an answer takes too long: it may block.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::model::{PROBE_NO, PROBE_NOT_HTTP, PROBE_STATUS, Span};
use crate::system::monotonic_now;

/// The question makes no sense.
const EXIT_USAGE: u8 = 2;
/// Longest status line of an HTTP answer that is read, in bytes.
const STATUS_BYTES_MAX: u64 = 1024;
/// So much of what follows the status line is read, in bytes, and so long is waited for it: who closes before an answer
/// is whole makes its server complain.
const REST_BYTES_MAX: u64 = 64 * 1024;
const REST_WAIT: Span = Span::millis(100);
/// The port where a URL names none.
const HTTP_PORT: &str = ":80";

/// Asks, and returns the exit code: 0 for yes.
pub(super) fn run(question: &[OsString]) -> u8 {
    let texts: Vec<&str> = question.iter().filter_map(|text| text.to_str()).collect();
    let is_yes = match (texts.as_slice(), question) {
        (["tcp", address], _) => TcpStream::connect(*address).is_ok(),
        (["http", url], _) => return http(url, None).unwrap_or(PROBE_NO),
        (["http", url, expect], _) => {
            let Ok(expect) = expect.parse() else { return EXIT_USAGE };
            return http(url, Some(expect)).unwrap_or(PROBE_NO);
        }
        (["memory", bytes], _) => bytes.parse().is_ok_and(|most| memory() < most),
        (_, [kind, path, base]) if kind == "unix" => {
            UnixStream::connect(Path::new(base).join(path)).is_ok()
        }
        _ => return EXIT_USAGE,
    };
    if is_yes { 0 } else { PROBE_NO }
}

/// The exit code that says whether a URL answers with this status, or with one that is no failure.
fn http(url: &str, expect: Option<u16>) -> io::Result<u8> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.find('/').map_or((rest, "/"), |place| rest.split_at(place));
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { host.to_owned() } else { format!("{host}{HTTP_PORT}") };
    let mut stream = TcpStream::connect(&address)?;
    let agent = concat!("opm/", env!("CARGO_PKG_VERSION"));
    // At once: some servers take what comes first for all of it.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(&stream);
    let mut answer = Vec::new();
    reader.by_ref().take(STATUS_BYTES_MAX).read_until(b'\n', &mut answer)?;
    let line = String::from_utf8_lossy(&answer);
    let status = line.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1));
    let status: Option<u16> = status.and_then(|status| status.trim().parse().ok());
    read_rest(&stream, reader)?;
    let Some(status) = status.filter(|status| (100..1_000).contains(status)) else {
        return Ok(PROBE_NOT_HTTP);
    };
    let is_yes = expect.map_or((200..400).contains(&status), |expect| status == expect);
    let class = u8::try_from(status / 100).unwrap_or(0);
    Ok(if is_yes { 0 } else { PROBE_STATUS.saturating_add(class) })
}

/// Reads what is left of an answer, as far as it comes soon: it changes nothing.
fn read_rest(stream: &TcpStream, reader: BufReader<&TcpStream>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_nanos(REST_WAIT.as_nanos())))?;
    let (began, mut rest) = (monotonic_now(), reader.take(REST_BYTES_MAX));
    let mut part = [0u8; 4096];
    let mut is_over = false;
    while !is_over && monotonic_now().since(began) < REST_WAIT {
        is_over = rest.read(&mut part).map_or(true, |got| got == 0);
    }
    // It is over all the same.
    let _is_closed = stream.shutdown(Shutdown::Both);
    Ok(())
}

/// The resident memory, in bytes, of all processes of the run to which this one belongs: those that
/// carry its mark in their environment. Shared pages count in each.
fn memory() -> u64 {
    let Some(mark) = std::env::var_os("OPM_RUN") else { return 0 };
    let own = std::process::id().to_string();
    let names =
        fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_pid = |name: &OsString| name.as_bytes().iter().all(u8::is_ascii_digit);
    let pids = names.filter(is_pid).filter(|name| *name != *own);
    pids.filter(|pid| has_mark(pid, &mark)).filter_map(|pid| resident(&pid)).sum()
}

fn has_mark(pid: &OsStr, mark: &OsStr) -> bool {
    let environ = fs::read(Path::new("/proc").join(pid).join("environ")).unwrap_or_default();
    let mut entries = environ.split(|byte| *byte == 0);
    entries.any(|entry| entry.strip_prefix(b"OPM_RUN=") == Some(mark.as_bytes()))
}

fn resident(pid: &OsStr) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(pid).join("status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes.saturating_mul(1024))
}
