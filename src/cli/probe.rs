//! `opm probe`: puts one question to a unit and exits 0 for yes. The supervisor starts it, in the
//! unit's own context, and kills it when an answer takes too long: it may block.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// No.
const EXIT_NO: u8 = 1;
/// The question makes no sense.
const EXIT_USAGE: u8 = 2;
/// Longest status line of an HTTP answer that is read, in bytes.
const STATUS_BYTES_MAX: u64 = 1024;
/// The port where a URL names none.
const HTTP_PORT: &str = ":80";

/// Asks, and returns the exit code: 0 for yes.
pub(super) fn run(question: &[OsString]) -> u8 {
    let texts: Vec<&str> = question.iter().filter_map(|text| text.to_str()).collect();
    let is_yes = match (texts.as_slice(), question) {
        (["tcp", address], _) => TcpStream::connect(*address).is_ok(),
        (["http", url], _) => http(url, None).unwrap_or(false),
        (["http", url, expect], _) => {
            expect.parse().is_ok_and(|expect| http(url, Some(expect)).unwrap_or(false))
        }
        (["memory", bytes], _) => bytes.parse().is_ok_and(|most| memory() < most),
        (_, [kind, path, base]) if kind == "unix" => {
            UnixStream::connect(Path::new(base).join(path)).is_ok()
        }
        _ => return EXIT_USAGE,
    };
    if is_yes { 0 } else { EXIT_NO }
}

/// Whether a URL answers with this status, or with one that is no failure.
fn http(url: &str, expect: Option<u16>) -> io::Result<bool> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.find('/').map_or((rest, "/"), |place| rest.split_at(place));
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { host.to_owned() } else { format!("{host}{HTTP_PORT}") };
    let mut stream = TcpStream::connect(&address)?;
    let agent = concat!("opm/", env!("CARGO_PKG_VERSION"));
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    let mut byte = [0u8];
    while !answer.ends_with(b"\n") && (answer.len() as u64) < STATUS_BYTES_MAX {
        if stream.read(&mut byte)? == 0 {
            break;
        }
        answer.extend_from_slice(&byte);
    }
    let line = String::from_utf8_lossy(&answer);
    let status = line.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1));
    let status: Option<u16> = status.and_then(|status| status.trim().parse().ok());
    Ok(status.is_some_and(|status| match expect {
        Some(expect) => status == expect,
        None => (200..400).contains(&status),
    }))
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
