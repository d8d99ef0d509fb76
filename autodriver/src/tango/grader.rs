//! The account that jobs run as, read from passwd(5) and group(5) by ourselves: a static program must not
//! load a machine's name services into a privileged process.

use std::fs;

use crate::fault::errno_of;
use crate::sandbox::Ids;
use crate::tango::failure::{Failure, OS_ERROR};

/// Its name.
pub(super) const NAME: &str = "autograde";
/// Most supplementary groups that are taken on; NGROUPS_MAX of old kernels.
const GROUPS_MAX: usize = 32;

/// The account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grader {
    pub(super) ids: Ids,
    /// An absolute path.
    pub(super) home: String,
}

/// Reads the machine's.
pub(super) fn find() -> Result<Grader, Failure> {
    let read = |path: &str| {
        fs::read(path)
            .map_err(|error| Failure::os(format!("Unable to get user info from {path}"), errno_of(&error)))
    };
    // A machine may do without groups.
    let (passwd, group) = (read("/etc/passwd")?, fs::read("/etc/group").unwrap_or_default());
    parse(&passwd, &group).ok_or_else(|| Failure::new(OS_ERROR, format!("Invalid grading user {NAME}")))
}

/// The first line of that name counts, as with getpwnam(3); it must be whole, and not root's.
fn parse(passwd: &[u8], group: &[u8]) -> Option<Grader> {
    let entries = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    let (passwd, group) = (entries(passwd), entries(group));
    let line = passwd.lines().find(|line| line.split(':').next() == Some(NAME))?;
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
    let (uid, gid) = (id(uid)?, id(gid)?);
    if uid == 0 || !home.starts_with('/') || home.trim_matches('/').is_empty() {
        return None;
    }
    let ids = Ids { uid, gid, groups: groups(&group, gid).leak() };
    Some(Grader { ids, home: home.trim_end_matches('/').to_owned() })
}

/// A number that somebody can have: -1 means nobody to setresuid(2).
fn id(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?.filter(|id| *id != u32::MAX)
}

/// As initgroups(3): those that name it, besides its own.
fn groups(group: &str, gid: u32) -> Vec<u32> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields.as_slice() else { return None };
        members.split(',').any(|member| member == NAME).then(|| id(gid))?
    };
    let mut groups: Vec<u32> = group.lines().filter_map(of_line).filter(|group| *group != gid).collect();
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(GROUPS_MAX);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &[u8] =
        b"root:x:0:\nautograde:x:1002:autograde\nlabs:x:70:ann,autograde\nothers:x:71:autograde2\nbad\n";

    fn of(line: &str) -> Option<Grader> {
        parse(format!("root:x:0:0::/root:/bin/sh\n\n# x\n{line}\n").as_bytes(), GROUP)
    }

    #[test]
    fn account_is_found_with_its_groups() {
        let grader = of("autograde2:x:1:1::/:\nautograde:x:1001:1002:a, b:/home/autograde/:/bin/false");
        let ids = Ids { uid: 1001, gid: 1002, groups: &[70] };
        assert_eq!(grader, Some(Grader { ids, home: "/home/autograde".into() }));
    }

    #[test]
    fn what_is_no_account_to_grade_with_is_none() {
        for line in [
            "",
            "autograd:x:1:1::/home/x:",
            "autograde",
            "autograde:x:1001:1002::/home/autograde",
            "autograde:x:0:1002::/home/autograde:",
            "autograde:x:-1:1002::/home/autograde:",
            "autograde:x:4294967295:1002::/home/autograde:",
            "autograde:x:4294967296:1002::/home/autograde:",
            "autograde:x:+7:1002::/home/autograde:",
            "autograde:x::1002::/home/autograde:",
            "autograde:x:1001:::/home/autograde:",
            "autograde:x:1001:1002::home:",
            "autograde:x:1001:1002::/:",
            "autograde:x:1001:1002:::",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }
}
