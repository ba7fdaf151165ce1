//! Users and groups from `/etc/passwd` and `/etc/group`, read as text.
//!
//! Not getpwnam(3): in a static binary glibc loads NSS modules into PID 1, and an unknown user
//! then ends it by a segmentation fault.

use std::fs;
use std::io;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Name, home and shell, where there is an entry.
    pub(super) entry: Option<Entry>,
}

/// What an account's line says beyond numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) home: String,
    pub(super) shell: String,
}

/// The text of a file; one that is not there has no entries. Any other reason not to read it says
/// nothing about who is in it.
fn read(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The account of a user by name or number. A number needs no entry; its group is then its own
/// number, so that nothing of root's is left.
pub(super) fn user(name: &str) -> io::Result<Option<Account>> {
    Ok(user_in(&read("/etc/passwd")?, name))
}

fn user_in(passwd: &str, name: &str) -> Option<Account> {
    let number = name.parse::<u32>().ok();
    let found = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [login, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (*login == name || number == Some(uid)).then(|| Account {
            uid,
            gid,
            entry: Some(Entry {
                name: (*login).to_owned(),
                home: (*home).to_owned(),
                shell: (*shell).to_owned(),
            }),
        })
    });
    found.or_else(|| number.map(|uid| Account { uid, gid: uid, entry: None }))
}

/// The number of a group by name or number.
pub(super) fn group(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let text = read("/etc/group")?;
    let number = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    Ok(number)
}

/// The groups that list a user as a member.
pub(super) fn groups_of(user: &str) -> io::Result<Vec<u32>> {
    Ok(groups_in(&read("/etc/group")?, user))
}

fn groups_in(text: &str, user: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, gid, members] = fields.as_slice() else { return None };
            members.split(',').any(|member| member == user).then(|| gid.parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\n\
                          alice:x:1000:1001::/home/alice:/bin/bash\n";

    #[test]
    fn a_user_is_found_by_name_and_number() {
        let alice = user_in(PASSWD, "alice").unwrap();
        assert_eq!((alice.uid, alice.gid), (1000, 1001));
        assert_eq!(user_in(PASSWD, "1000"), Some(alice));
        assert_eq!(user_in(PASSWD, "bob"), None);
    }

    #[test]
    fn a_number_needs_no_entry() {
        let account = user_in("", "1000780000").unwrap();
        assert_eq!(account, Account { uid: 1_000_780_000, gid: 1_000_780_000, entry: None });
    }

    #[test]
    fn groups_are_those_that_list_the_user() {
        let text = "root:x:0:\nadm:x:4:syslog,alice\nvideo:x:44:alice\nalice2:x:7:alice2\n";
        assert_eq!(groups_in(text, "alice"), [4, 44]);
    }
}
