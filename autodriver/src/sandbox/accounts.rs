//! The job's user as the job sees it: a line in `/etc/passwd` and one in `/etc/group`, so that
//! `whoami`, Python's getpass and Java's user.home work for a uid that the machine does not know.

use std::path::Path;

use nix::errno::Errno;

use crate::fault::{errno_of, Fault, Step};

/// The job's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Name, `job` unless it is an account of the machine.
    pub name: String,
    /// Uid.
    pub uid: u32,
    /// Gid.
    pub gid: u32,
}

impl Account {
    /// One whose gid is the same number.
    pub fn alone(name: String, uid: u32) -> Account {
        Account { name, uid, gid: uid }
    }
}

/// The name of a leased uid.
pub const LEASED_NAME: &str = "job";

/// The account files of a root file system; missing ones are empty.
#[derive(Clone, Debug, Default)]
pub struct AccountFiles {
    passwd: String,
    group: String,
}

impl AccountFiles {
    /// Reads those of `root`.
    ///
    /// # Errors
    /// Those of reading a file that is there, and readable for us.
    pub fn read(root: &str) -> Result<AccountFiles, Fault> {
        let read = |name: &str| {
            let path = Path::new(root).join("etc").join(name);
            match std::fs::read(&path).map_err(|error| errno_of(&error)) {
                Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(String::new()),
                Err(errno) => Err(Fault::new(Step::Uid, format!("read {}", path.display()), errno)),
            }
        };
        Ok(AccountFiles { passwd: read("passwd")?, group: read("group")? })
    }

    fn field(line: &str, n: usize) -> Option<&str> {
        line.split(':').nth(n)
    }

    /// Whether an account has this uid.
    pub fn has_uid(&self, uid: u32) -> bool {
        let uid = uid.to_string();
        self.passwd.lines().any(|line| Self::field(line, 2) == Some(&uid))
    }

    /// The uid of an account.
    ///
    /// # Errors
    /// No such account, or it is root's.
    pub fn uid_of(&self, name: &str) -> Result<u32, Fault> {
        let line = self.passwd.lines().find(|line| Self::field(line, 0) == Some(name));
        match line.and_then(|line| Self::field(line, 2)?.parse().ok()) {
            Some(0) => Err(Fault::refused(Step::Request, format!("run as --user {name}"), "it has uid 0")),
            Some(uid) => Ok(uid),
            None => Err(Fault::refused(
                Step::Request,
                format!("run as --user {name}"),
                "no such account in /etc/passwd",
            )),
        }
    }

    /// The name of an account, or that of a leased uid.
    pub fn name_of(&self, uid: u32) -> String {
        let uid = uid.to_string();
        let line = self.passwd.lines().find(|line| Self::field(line, 2) == Some(&uid));
        line.and_then(|line| Self::field(line, 0)).unwrap_or(LEASED_NAME).to_owned()
    }

    /// `/etc/passwd` with the job's user in it, and no other of the same name or uid.
    pub fn passwd_with(&self, account: &Account, home: &str) -> String {
        let Account { name, uid, gid } = account;
        let line = format!("{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh");
        Self::with(&self.passwd, name, *uid, &line)
    }

    /// `/etc/group` likewise.
    pub fn group_with(&self, account: &Account) -> String {
        let Account { name, uid, gid } = account;
        let id = gid.to_string();
        // A group that the machine has, and others are in as well.
        if uid != gid && self.group.lines().any(|line| Self::field(line, 2) == Some(&id)) {
            return self.group.clone();
        }
        Self::with(&self.group, name, *gid, &format!("{name}:x:{gid}:"))
    }

    fn with(file: &str, name: &str, id: u32, line: &str) -> String {
        let id = id.to_string();
        let others = file
            .lines()
            .filter(|line| Self::field(line, 0) != Some(name) && Self::field(line, 2) != Some(&id));
        others.chain([line]).fold(String::new(), |text, line| text + line + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> AccountFiles {
        AccountFiles {
            passwd:
                "root:x:0:0:root:/root:/bin/sh\njob:x:7:7::/:/bin/false\nann:x:1000:1000::/home/ann:/bin/sh\n"
                    .into(),
            group: "root:x:0:\nold:x:59000:\n".into(),
        }
    }

    #[test]
    fn the_job_has_one_line_and_nobody_else_its_name_or_uid() {
        let account = Account::alone("job".into(), 59_000);
        let passwd = files().passwd_with(&account, "/job");
        assert_eq!(passwd.lines().last(), Some("job:x:59000:59000:job:/job:/bin/sh"));
        assert_eq!(passwd.lines().count(), 3);
        assert_eq!(files().group_with(&account), "root:x:0:\njob:x:59000:\n");
    }

    #[test]
    fn accounts_are_found_by_name_and_root_is_refused() {
        assert_eq!(files().uid_of("ann"), Ok(1000));
        assert_eq!(files().name_of(1000), "ann");
        assert_eq!(files().name_of(5), "job");
        assert!(files().uid_of("root").is_err() && files().uid_of("nobody").is_err());
    }
}
