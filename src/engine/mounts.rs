//! What the person asked to mount: `-v`, `--mount` and `--tmpfs` parsed into plain data.
//!
//! Pure apart from nothing: sources are not looked at here, so that the grammar can be tested by
//! table. Invariant: a destination that passed is absolute, normal, and not a kernel filesystem.

use std::path::{Component, Path, PathBuf};

use super::size::parse_size_bytes;
use super::volumes;

/// Says why a mount request was refused; names the request as it was written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid mount {request:?}: {reason}")]
pub struct MountError {
    request: String,
    reason: String,
}

/// Names the thing that appears at a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A host path; `create_dir` is Docker's `-v` behaviour for a path that does not exist.
    Bind { path: PathBuf, create_dir: bool },
    /// Memory, `size_bytes` at most.
    Tmpfs { size_bytes: Option<u64>, mode: Option<u32> },
    /// A volume that is made for the container and starts with the image's content.
    Anonymous,
    /// A volume by its name; `copy` fills a new one with the image's content.
    Volume { name: String, copy: bool },
}

/// Is one mount that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    pub source: MountSource,
    pub destination: PathBuf,
    pub read_only: bool,
    /// Kernel flags by mount(8) name, e.g. `noexec`, `rslave`.
    pub options: Vec<String>,
}

/// Flags that a person may add; suid and dev are absent on purpose: they are never granted.
const KNOWN_FLAGS: &[&str] = &[
    "noexec", "exec", "nosuid", "nodev", "noatime", "relatime", "private", "rprivate", "slave", "rslave", "bind",
    "rbind",
];

impl MountRequest {
    /// Parses `-v [SOURCE:]DESTINATION[:OPTIONS]`.
    pub fn from_volume(request: &str) -> Result<Self, MountError> {
        let fail = |reason: &str| MountError { request: request.to_owned(), reason: reason.to_owned() };
        let fields: Vec<&str> = request.split(':').collect();
        let (source, destination, options) = match fields.as_slice() {
            [destination] => (None, *destination, ""),
            [source, destination] => (Some(*source), *destination, ""),
            [source, destination, options] => (Some(*source), *destination, *options),
            _ => return Err(fail("expected [SOURCE:]DESTINATION[:OPTIONS]")),
        };
        let destination = checked_destination(destination).map_err(|reason| fail(&reason))?;
        let source = match source {
            None => MountSource::Anonymous,
            Some("") => return Err(fail("the source is empty")),
            Some(path) if path.starts_with(['/', '.', '~']) => {
                MountSource::Bind { path: path.into(), create_dir: true }
            }
            Some(name) => {
                volumes::check_name(name).map_err(|error| fail(&error.to_string()))?;
                MountSource::Volume { name: name.to_owned(), copy: true }
            }
        };
        let mut mount = Self { source, destination, read_only: false, options: Vec::new() };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            mount.apply_flag(option).map_err(|reason| fail(&reason))?;
        }
        Ok(mount)
    }

    /// Parses `--mount type=bind,source=…,target=…[,readonly]`.
    pub fn from_mount(request: &str) -> Result<Self, MountError> {
        let fail = |reason: String| MountError { request: request.to_owned(), reason };
        let mut fields = MountFields::default();
        for field in request.split(',') {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (field, None),
            };
            fields.set(key, value).map_err(fail)?;
        }
        fields.finish().map_err(fail)
    }

    /// Parses `--tmpfs DESTINATION[:OPTIONS]`.
    pub fn from_tmpfs(request: &str) -> Result<Self, MountError> {
        let fail = |reason: String| MountError { request: request.to_owned(), reason };
        let (destination, options) = request.split_once(':').unwrap_or((request, ""));
        let destination = checked_destination(destination).map_err(fail)?;
        let (mut size_bytes, mut mode) = (None, None);
        let mut mount = Self { source: MountSource::Anonymous, destination, read_only: false, options: Vec::new() };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", value)) => size_bytes = Some(parse_size_bytes(value).map_err(|e| fail(e.to_string()))?),
                Some(("mode", value)) => mode = Some(parse_mode(value).map_err(fail)?),
                _ => mount.apply_flag(option).map_err(fail)?,
            }
        }
        mount.source = MountSource::Tmpfs { size_bytes, mode };
        Ok(mount)
    }

    fn apply_flag(&mut self, flag: &str) -> Result<(), String> {
        match flag {
            "ro" | "readonly" => self.read_only = true,
            // SELinux relabelling: nothing to do where there is no SELinux, and `rw` is the default.
            "rw" | "z" | "Z" => {}
            "nocopy" => match &mut self.source {
                MountSource::Volume { copy, .. } => *copy = false,
                _ => return Err("option \"nocopy\" is for named volumes".into()),
            },
            known if KNOWN_FLAGS.contains(&known) => self.options.push(known.to_owned()),
            other => return Err(format!("option {other:?} is not implemented")),
        }
        Ok(())
    }
}

/// Collects the comma separated fields of `--mount` before they are checked together.
#[derive(Default)]
struct MountFields {
    kind: Option<String>,
    source: Option<PathBuf>,
    destination: Option<PathBuf>,
    read_only: bool,
    options: Vec<String>,
    size_bytes: Option<u64>,
    mode: Option<u32>,
    no_copy: bool,
}

impl MountFields {
    fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        let required = || value.ok_or_else(|| format!("{key} needs a value"));
        match key {
            "type" => self.kind = Some(required()?.to_owned()),
            "source" | "src" => self.source = Some(required()?.into()),
            "target" | "destination" | "dst" => self.destination = Some(checked_destination(required()?)?),
            "readonly" | "ro" => self.read_only = parse_bool(value.unwrap_or("true"))?,
            "bind-propagation" => self.options.push(checked_propagation(required()?)?),
            "volume-nocopy" => self.no_copy = parse_bool(value.unwrap_or("true"))?,
            "tmpfs-size" => self.size_bytes = Some(parse_size_bytes(required()?).map_err(|e| e.to_string())?),
            "tmpfs-mode" => self.mode = Some(parse_mode(required()?)?),
            other => return Err(format!("field {other:?} is not implemented")),
        }
        Ok(())
    }

    fn finish(self) -> Result<MountRequest, String> {
        let destination = self.destination.ok_or("target is missing")?;
        let source = match (self.kind.as_deref(), self.source) {
            (Some("bind"), Some(path)) => MountSource::Bind { path, create_dir: false },
            (Some("bind"), None) => return Err("source is missing".into()),
            (Some("tmpfs"), None) => MountSource::Tmpfs { size_bytes: self.size_bytes, mode: self.mode },
            (Some("tmpfs"), Some(_)) => return Err("a tmpfs has no source".into()),
            (Some("volume") | None, None) => MountSource::Anonymous,
            (Some("volume") | None, Some(name)) => {
                let name = name.to_string_lossy().into_owned();
                volumes::check_name(&name).map_err(|error| error.to_string())?;
                MountSource::Volume { name, copy: !self.no_copy }
            }
            (Some(other), _) => return Err(format!("type {other:?} is not implemented")),
        };
        Ok(MountRequest { source, destination, read_only: self.read_only, options: self.options })
    }
}

/// Checks a path inside the container and removes `.` and doubled slashes; `..` is refused.
///
/// /proc, /sys and /dev are kernel filesystems of the container's own: something mounted over them
/// would fool the runtime and the program (A15 of the attack list).
pub fn checked_destination(path: &str) -> Result<PathBuf, String> {
    if path.contains('\0') {
        return Err("the destination contains a NUL byte".into());
    }
    if !path.starts_with('/') {
        return Err(format!("the destination {path:?} is not absolute"));
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(format!("the destination {path:?} contains .."));
            }
        }
    }
    if clean == Path::new("/") {
        return Err("the destination is the root directory".into());
    }
    if clean.starts_with("/proc") || clean.starts_with("/sys") || clean == Path::new("/dev") {
        return Err(format!("the destination {} is a kernel filesystem", clean.display()));
    }
    Ok(clean)
}

fn checked_propagation(value: &str) -> Result<String, String> {
    match value {
        "private" | "rprivate" | "slave" | "rslave" => Ok(value.to_owned()),
        other => Err(format!("propagation {other:?} is not implemented")),
    }
}

fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

fn parse_mode(value: &str) -> Result<u32, String> {
    match u32::from_str_radix(value, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("mode {value:?} is not an octal number up to 7777")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(request: &str) -> Result<MountRequest, String> {
        MountRequest::from_volume(request).map_err(|e| e.to_string())
    }

    #[test]
    fn volume_grammar() {
        let bind = volume("/src:/dst:ro,noexec").unwrap();
        assert_eq!(bind.source, MountSource::Bind { path: "/src".into(), create_dir: true });
        assert_eq!((bind.read_only, bind.options), (true, vec!["noexec".to_owned()]));
        assert_eq!(volume("/data").unwrap().source, MountSource::Anonymous);
        let named = |copy| MountSource::Volume { name: "data".into(), copy };
        assert_eq!(volume("data:/x").unwrap().source, named(true));
        assert_eq!(volume("data:/x:ro,nocopy").unwrap().source, named(false));
        assert_eq!(volume("./x:/a//b/./c").unwrap().destination, Path::new("/a/b/c"));
        for (bad, part) in [
            ("-data:/x", "invalid volume name"),
            ("/a:/x:nocopy", "named volumes"),
            (":/x", "empty"),
            ("/a:/b:ro:z", "expected"),
            ("/a:/b:shared", "\"shared\" is not implemented"),
            ("/a:b", "not absolute"),
            ("/a:/", "root directory"),
        ] {
            assert!(volume(bad).unwrap_err().contains(part), "{bad}");
        }
    }

    #[test]
    fn a15_kernel_filesystems_are_no_destination() {
        for bad in ["/proc", "/proc/self", "/sys", "/sys/fs", "/dev", "//proc", "/./proc", "/dev/../proc", "/x/../sys"]
        {
            assert!(volume(&format!("/src:{bad}")).is_err(), "{bad}");
        }
        assert!(volume("/src:/dev/shm").is_ok());
        assert!(volume("/src:/process").is_ok());
    }

    #[test]
    fn mount_grammar() {
        let bind = MountRequest::from_mount("type=bind,src=/a,dst=/b,readonly").unwrap();
        assert_eq!(bind.source, MountSource::Bind { path: "/a".into(), create_dir: false });
        assert!(bind.read_only);
        let tmpfs = MountRequest::from_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777").unwrap();
        assert_eq!(tmpfs.source, MountSource::Tmpfs { size_bytes: Some(1 << 20), mode: Some(0o1777) });
        for bad in [
            "type=bind,src=/a",
            "type=bind,dst=/b",
            "type=npipe,src=a,dst=/b",
            "dst=/b,wat=1",
            "type=volume,src=/n,dst=/b",
        ] {
            assert!(MountRequest::from_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tmpfs_grammar() {
        let tmpfs = MountRequest::from_tmpfs("/run:size=64k,mode=755,noexec,ro").unwrap();
        assert_eq!(tmpfs.source, MountSource::Tmpfs { size_bytes: Some(65536), mode: Some(0o755) });
        assert!(tmpfs.read_only);
        assert!(MountRequest::from_tmpfs("/run:mode=99").is_err());
        assert!(MountRequest::from_tmpfs("/run:size=-1").is_err());
    }
}
