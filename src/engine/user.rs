//! Who the container's process is: `USER` of an image or `-u`, resolved against the image's own
//! passwd and group files.
//!
//! The files are data from a stranger: they are parsed by us (a static binary has no NSS, and the
//! host's NSS must never see them), bounded, and a malformed line is skipped. Invariant: a text that
//! is not clearly a number in range or a plain name is an error, never uid 0 (CVE-2024-40635,
//! CVE-2026-46680).

use coracle_runtime::IdMap;

/// Docker's and runc's largest id; the kernel's is higher, but many programs keep ids in an int.
const ID_MAX: u32 = i32::MAX.cast_unsigned();
/// The longest user or group name shadow-utils accepts.
const NAME_BYTES_MAX: usize = 32;

/// Says why a user could not be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    #[error("invalid user {spec:?}: {reason}")]
    Invalid { spec: String, reason: &'static str },
    #[error("user {name:?} is not in the image's /etc/passwd")]
    UnknownUser { name: String },
    #[error("group {name:?} is not in the image's /etc/group")]
    UnknownGroup { name: String },
}

/// Is a resolved identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, without duplicates; the primary one is among them, as in Docker, so that a
    /// setgid program cannot drop it (CVE-2022-36109).
    pub groups: Vec<u32>,
    pub home: String,
}

impl ProcessUser {
    /// Bends a user to a map of one id: groups that only the image names are dropped, and a user that
    /// only the image names (`from_image`) becomes the one id there is, which is the caller.
    ///
    /// What a person asked for stays as it is and is refused later when it is not mapped.
    pub fn fit_single(&mut self, map: &IdMap, from_image: bool) {
        let ([uids], [gids]) = (map.uids.as_slice(), map.gids.as_slice()) else {
            return;
        };
        self.groups.clear();
        if from_image {
            self.uid = uids.container;
            self.gid = gids.container;
        }
    }
}

/// Is one half of USER[:GROUP].
#[derive(Debug, PartialEq, Eq)]
enum NameOrId<'a> {
    Id(u32),
    Name(&'a str),
}

/// Resolves `USER[:GROUP]`; empty means root, as in Docker.
///
/// `passwd` and `group` are the contents of the image's files, empty when it has none.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<ProcessUser, UserError> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if spec.is_empty() { NameOrId::Id(0) } else { parse(user, spec)? };
    let entry = match user {
        // A number is always a number, even where a user has that name (CVE-2016-3697).
        NameOrId::Id(uid) => passwd_entries(passwd).find(|entry| entry.uid == uid),
        NameOrId::Name(name) => Some(
            passwd_entries(passwd)
                .find(|entry| entry.name == name)
                .ok_or_else(|| UserError::UnknownUser { name: name.to_owned() })?,
        ),
    };
    let uid = match (&user, &entry) {
        (NameOrId::Id(uid), _) => *uid,
        (NameOrId::Name(_), Some(entry)) => entry.uid,
        (NameOrId::Name(name), None) => {
            return Err(UserError::UnknownUser { name: (*name).to_owned() });
        }
    };
    let home = entry.as_ref().map_or("/", |entry| entry.home).to_owned();
    let (gid, groups) = match group_spec {
        Some(group_spec) => {
            let gid = resolve_group(group_spec, spec, group)?;
            (gid, vec![gid])
        }
        None => {
            let gid = entry.as_ref().map_or(0, |entry| entry.gid);
            let name = entry.as_ref().map_or("", |entry| entry.name);
            (gid, supplementary(name, gid, group))
        }
    };
    Ok(ProcessUser { uid, gid, groups, home })
}

/// Resolves one `--group-add`.
pub fn resolve_group(text: &str, spec: &str, group: &str) -> Result<u32, UserError> {
    match parse(text, spec)? {
        NameOrId::Id(gid) => Ok(gid),
        NameOrId::Name(name) => group_entries(group)
            .find(|entry| entry.name == name)
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::UnknownGroup { name: name.to_owned() }),
    }
}

fn parse<'a>(text: &'a str, spec: &str) -> Result<NameOrId<'a>, UserError> {
    let fail = |reason| UserError::Invalid { spec: spec.to_owned(), reason };
    if text.is_empty() {
        return Err(fail("a part is empty"));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        if text.len() > 1 && text.starts_with('0') {
            return Err(fail("an id has no leading zero"));
        }
        return match text.parse::<u32>() {
            Ok(id) if id <= ID_MAX => Ok(NameOrId::Id(id)),
            _ => Err(fail("an id is at most 2147483647")),
        };
    }
    let first_ok = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest_ok = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$' | b'@'));
    if !first_ok || !rest_ok || text.len() > NAME_BYTES_MAX {
        return Err(fail("neither a number nor a user name"));
    }
    Ok(NameOrId::Name(text))
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// passwd(5): name:password:uid:gid:gecos:home:shell.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (parse_id(fields.next()?)?, parse_id(fields.next()?)?);
        let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
        (!name.is_empty()).then_some(PasswdEntry { name, uid, gid, home })
    })
}

/// group(5): name:password:gid:member,member.
fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = parse_id(fields.next()?)?;
        (!name.is_empty()).then_some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
    })
}

fn parse_id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id <= ID_MAX)
}

fn supplementary(name: &str, primary: u32, group: &str) -> Vec<u32> {
    let mut groups: Vec<u32> = group_entries(group)
        .filter(|entry| !name.is_empty() && entry.members.split(',').any(|member| member == name))
        .map(|entry| entry.gid)
        .chain([primary])
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:w:/srv:/bin/false\n1000:x:0:0::/:/bin/sh\nbad line\n\
                          0x0:x:0:0::/:/bin/sh\n-1:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n+0:x:0:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:44:\nlog:x:50:web,other\nadm:x:4:web\n";

    #[test]
    fn a23_groups_are_exactly_those_of_the_image() {
        let web = resolve("web", PASSWD, GROUP).unwrap();
        assert_eq!((web.uid, web.gid, web.groups, web.home.as_str()), (33, 44, vec![4, 44, 50], "/srv"));
        let by_id = resolve("33", PASSWD, GROUP).unwrap();
        assert_eq!((by_id.uid, by_id.gid, by_id.groups), (33, 44, vec![4, 44, 50]));
        let explicit = resolve("web:log", PASSWD, GROUP).unwrap();
        assert_eq!((explicit.gid, explicit.groups), (50, vec![50]));
        assert_eq!(resolve("7:9", "", "").unwrap(), ProcessUser { uid: 7, gid: 9, groups: vec![9], home: "/".into() });
    }

    #[test]
    fn a25_a_number_is_never_looked_up_as_a_name() {
        assert_eq!(resolve("1000", PASSWD, GROUP).unwrap().uid, 1000);
    }

    #[test]
    fn a26_nothing_odd_becomes_root() {
        for spec in [
            "4294967295",
            "4294967296",
            "99999999999",
            "-1",
            "0x0",
            "+0",
            "00",
            "1000:99999999999",
            " 0",
            "0 ",
            "a:b:c",
            "root\n",
            ":0",
            "0:",
            ":",
            "r\0oot",
            "nosuch",
            "web:nosuch",
        ] {
            assert!(resolve(spec, PASSWD, GROUP).is_err(), "{spec:?}");
        }
        assert!(resolve("2147483648", PASSWD, GROUP).is_err());
        // It still needs a map that holds it, which is checked later.
        assert_eq!(resolve("2147483647", PASSWD, GROUP).unwrap().uid, 2_147_483_647);
    }

    #[test]
    fn one_id_is_all_there_is() {
        let range = vec![coracle_runtime::IdRange { container: 0, host: 1000, size: 1 }];
        let map = IdMap { uids: range.clone(), gids: range };
        let mut web = resolve("web", PASSWD, GROUP).unwrap();
        web.fit_single(&map, false);
        assert_eq!((web.uid, web.gid, web.groups.len()), (33, 44, 0), "asked for: refused later");
        web.fit_single(&map, true);
        assert_eq!((web.uid, web.gid), (0, 0));
    }

    #[test]
    fn empty_is_root() {
        assert_eq!(resolve("", PASSWD, GROUP).unwrap().home, "/root");
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
    }
}
