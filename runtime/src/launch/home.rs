//! The home directory of a process whose environment names none.

use std::ffi::CString;
use std::io::Read;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

const NAME: &[u8] = b"HOME=";
const PASSWD: &str = "/etc/passwd";
/// More than any real file has; the image may name something without an end (A28).
const PASSWD_BYTES_MAX: u64 = 1 << 20;
/// What a user without an entry gets, as from other runtimes.
const DEFAULT: &[u8] = b"/";

/// Adds HOME for a user by the container's own passwd file, which is read as that user.
pub(super) fn with_home(env: &[CString], uid: u32) -> Vec<CString> {
    let mut env = env.to_vec();
    if !env.iter().any(|entry| entry.to_bytes().starts_with(NAME)) {
        let home = read().and_then(|text| find(&text, uid).map(<[u8]>::to_vec)).unwrap_or_else(|| DEFAULT.to_vec());
        env.extend(CString::new([NAME, &home].concat()));
    }
    env
}

fn read() -> Option<Vec<u8>> {
    // A fifo must not hold us, and a device must not be opened for what it does.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat2(CWD, PASSWD, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).ok()?;
    if FileType::from_raw_mode(fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(PASSWD_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The directory in the first line of a user (passwd(5)); only an absolute path is one.
fn find(text: &[u8], uid: u32) -> Option<&[u8]> {
    let wanted = uid.to_string();
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let own = fields.nth(2)? == wanted.as_bytes();
        let home = fields.nth(2)?;
        (own && home.starts_with(b"/")).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_number() {
        let text = b"root:x:0:0:r:/root:/bin/sh\nshort:x:7\nuser:x:1000:5::/var/empty:/bin/sh\nodd:x:9:9::rel:/bin/sh";
        assert_eq!(find(text, 0), Some(b"/root".as_slice()));
        assert_eq!(find(text, 1000), Some(b"/var/empty".as_slice()));
        assert_eq!((find(text, 7), find(text, 9), find(text, 5)), (None, None, None));
    }
}
