//! Where clone3(2) is refused, as container filters do, processes are made by older calls. A filter
//! of seccomp(2) refuses them here too; everything else of a run's life has to be the same.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unsafe_code,
    reason = "a test stops at the first surprise; a filter is installed between fork and exec"
)]

mod common;

use std::os::unix::process::CommandExt;

use common::{OPM, World, watch_for, witness};

/// A system call that a filter refuses.
#[derive(Clone, Copy, Debug)]
enum Refused {
    /// This one, whatever its arguments.
    Call(libc::c_long),
    /// clone(2) where it is to give a pidfd.
    CloneWithPidfd,
}

/// `clone(2)`: the flag for a pidfd.
const CLONE_PIDFD: u32 = 0x1000;

/// An instruction of a filter, `seccomp(2)`.
fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k }
}

fn filter(refused: &[Refused], errno: i32) -> Vec<libc::sock_filter> {
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let test = |how, k, skip| instruction(libc::BPF_JMP | how | libc::BPF_K, k, 0, skip);
    let refuse = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let answer = |k| instruction(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let mut all = Vec::new();
    for call in refused {
        // struct seccomp_data: the number at 0, the first argument at 16.
        all.push(load(0));
        match call {
            Refused::Call(call) => all.push(test(libc::BPF_JEQ, number(*call), 1)),
            Refused::CloneWithPidfd => all.extend([
                test(libc::BPF_JEQ, number(libc::SYS_clone), 3),
                load(16),
                test(libc::BPF_JSET, CLONE_PIDFD, 1),
            ]),
        }
        all.push(answer(refuse));
    }
    all.push(answer(libc::SECCOMP_RET_ALLOW));
    all
}

/// `opm run units`, for which these calls fail with this error.
fn run_behind(world: &mut World, refused: &[Refused], errno: i32) {
    let log = std::fs::File::options().append(true).create(true).open(world.path("opm.out"));
    let log = log.unwrap();
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).args(["-v", "run", "units"]);
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let mut filter = filter(refused, errno);
    let install = move || {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap_or(0),
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: takes numbers.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the program and what it points to live until the call is over.
        let done = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
    world.spawn(command);
}

/// A whole life: start, hook, crash of the program, crash of opm, adoption, stop.
fn live(refused: &[Refused], errno: i32, way: &str) {
    let Some(mut world) = World::new() else { return };
    let said = format!("by {way} ({refused:?}, {errno})");
    let look = "grep -E 'Sig(Blk|Ign)' /proc/self/status > masks; ";
    world.service("web", &(witness("web") + look + "exec sleep 1000"), "");
    world.service("fails", "exit 3", "restart: never\n");
    world.unit("missing", "command: [./nowhere]\nrestart: never\n");
    run_behind(&mut world, refused, errno);
    world.until_phase("web", "up");
    world.until("its masks", || world.lines("masks").len() == 2);
    let masks = format!("SigBlk:\t{0:016}\nSigIgn:\t{0:016}\n", 0);
    assert_eq!(world.read("masks"), masks, "{said}");
    for unit in ["fails", "missing"] {
        world.until_phase(unit, "failed");
    }
    assert_eq!(world.row("fails")["code"], 3, "{said}");
    let why = world.row("missing")["why"].to_string();
    assert!(why.contains("nowhere"), "{said}: {why}");
    assert!(world.log().contains(&format!("using {way}")), "{said}\n{}", world.log());
    let first = world.pid("web").unwrap();
    world.kill("KILL", first);
    world.until("the next run", || world.pid("web").is_some_and(|pid| pid != first));
    world.until_phase("web", "up");
    let pid = world.pid("web").unwrap();

    world.crash();
    assert!(world.alive(pid), "{said}");
    run_behind(&mut world, refused, errno);
    world.until("the adoption", || world.rows().len() == 3);
    let without_pidfds =
        refused.iter().any(|call| matches!(call, Refused::Call(n) if *n == libc::SYS_pidfd_open));
    if without_pidfds {
        // It could be watched by nobody: held, as the manual says, and not doubled.
        assert_eq!(world.phase("web"), "unproven", "{said}");
        let doubled = || world.lines("web.starts").len() > 2;
        watch_for(std::time::Duration::from_millis(300), doubled, "a second one");
        world.kill("KILL", pid);
        assert_eq!(world.opm(&["release", "web"]).code, 0);
    } else {
        assert_eq!(world.pid("web"), Some(pid), "{said}\n{}", world.log());
        world.kill("KILL", pid);
    }
    world.until("a run after that", || world.lines("web.starts").len() == 3);
    world.until_phase("web", "up");
    let last = world.pid("web").unwrap();
    assert_eq!(world.opm(&["stop", "web"]).code, 0, "{said}");
    assert!(!world.alive(last), "{said}");
    assert_eq!(world.opm(&["shutdown"]).code, 0, "{said}");
    assert_eq!(world.wait_run(), 0);
    world.assert_no_doubles();
}

const CLONE3: Refused = Refused::Call(libc::SYS_clone3);

#[test]
fn where_clone3_is_refused_clone_is_used() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        live(&[CLONE3], errno, "Clone");
    }
}

#[test]
fn where_clone_gives_no_pidfd_fork_is_used() {
    for errno in [libc::EPERM, libc::EINVAL] {
        live(&[CLONE3, Refused::CloneWithPidfd], errno, "Fork");
    }
}

#[test]
fn without_any_pidfd_a_run_is_not_doubled_either() {
    let pidfds = [libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal].map(Refused::Call);
    live(&[&[CLONE3, Refused::CloneWithPidfd], &pidfds[..]].concat(), libc::ENOSYS, "Fork");
}

#[test]
fn root_without_any_privilege_starts_units_and_keeps_their_logs() {
    if !common::is_root() {
        return common::skip("needs root to be one without privileges");
    }
    let Some(mut world) = World::new() else { return };
    world.unit("web", "command: [sh, -c, 'echo there > /dev/stdout; exec sleep 1000']\n");
    world.unit("reader", "command: [sh, -c, 'cat > got']\nworking_dir: ..\nstdin: logs\n");
    world.unit(
        "shipped",
        "command: [sh, -c, 'echo sent; exec sleep 1000']\nlogs: {to: {unit: reader}}\n",
    );
    world.unit(
        "says",
        "command: [sh, -c, 'echo >&3; exec sleep 1000']\nready: {fd: 3}\nlogs: {to: null}\n",
    );
    for _ in 0..2 {
        let log = std::fs::File::options().append(true).create(true).open(world.path("opm.out"));
        let log = log.unwrap();
        let mut command = world.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", OPM, "--root"]);
        command.arg(world.root()).args(["run", "units"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        world.spawn(command);
        for unit in ["web", "reader", "shipped", "says"] {
            world.until_phase(unit, "up");
        }
        world.until("its line", || world.opm(&["logs", "web"]).out.contains("there"));
        world.until("what was shipped", || world.read("got").contains("sent"));
        world.crash();
    }
    world.assert_no_doubles();
}

#[test]
fn what_was_removed_and_can_be_watched_by_nobody_can_be_let_go() {
    let Some(mut world) = World::new() else { return };
    let no_pidfds = [CLONE3, Refused::CloneWithPidfd, Refused::Call(libc::SYS_pidfd_open)];
    world.staying("web", "");
    world.staying("other", "");
    run_behind(&mut world, &no_pidfds, libc::ENOSYS);
    world.until("both", || world.starts("web") == 1 && world.starts("other") == 1);
    world.crash();
    run_behind(&mut world, &no_pidfds, libc::ENOSYS);
    world.until_phase("web", "unproven");
    world.remove_unit("web");
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    assert_eq!(world.phase("web"), "unproven", "nobody knows whether it lives");
    let said = world.opm(&["release", "web"]);
    assert_eq!(said.code, 0, "{said:?}");
    world.until("that it is gone", || world.rows().len() == 1);
}
