//! Puts settings on a directory.

use rustix::io::Errno;

use super::CgroupError;
use super::LimitState;
use super::delegation::is;
use super::directory::Directory;
use super::settings::{Absent, Setting, Settings, parse_list};

impl LimitState {
    fn enforced(setting: &Setting) -> Self {
        Self { name: setting.field.clone(), asked: setting.value.clone(), enforced: true, why: None }
    }

    pub(super) fn unenforced(name: &str, asked: &str, why: &str) -> Self {
        Self { name: name.to_owned(), asked: asked.to_owned(), enforced: false, why: Some(why.to_owned()) }
    }
}

/// The fields of a list of settings, once each, for people.
pub(super) fn fields<'a>(settings: impl IntoIterator<Item = &'a Setting>) -> String {
    let mut names: Vec<&str> = settings.into_iter().map(|setting| setting.field.as_str()).collect();
    names.dedup();
    names.join(", ")
}

/// What becomes of limits when no cgroup is there.
pub(super) fn all_unenforced(settings: &Settings, why: &str) -> Vec<LimitState> {
    settings.list.iter().map(|setting| LimitState::unenforced(&setting.field, &setting.value, why)).collect()
}

/// Refuses what cgroup v2 does not know, or says that it is not enforced.
pub(super) fn refuse(settings: &Settings, best_effort: bool) -> Result<Vec<LimitState>, CgroupError> {
    match settings.refused.first() {
        Some(refusal) if !best_effort => Err(CgroupError::Refused(refusal.clone())),
        _ => {
            let state = settings
                .refused
                .iter()
                .map(|refusal| LimitState::unenforced(&refusal.field, &refusal.value, &refusal.reason));
            Ok(state.collect())
        }
    }
}

/// Writes every setting; stops at the first that fails unless `best_effort`.
pub(super) fn apply(
    directory: &Directory,
    settings: &Settings,
    best_effort: bool,
) -> Result<Vec<LimitState>, CgroupError> {
    let mut states = Vec::new();
    for setting in &settings.list {
        match apply_one(directory, setting) {
            Ok(true) => states.push(LimitState::enforced(setting)),
            Ok(false) => {}
            Err(error) if best_effort => {
                states.push(LimitState::unenforced(&setting.field, &setting.value, &with_source(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(states)
}

/// An error and its first cause, for a report that keeps no types.
pub(super) fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Writes one; false where another setting does its work.
fn apply_one(directory: &Directory, setting: &Setting) -> Result<bool, CgroupError> {
    let file = directory.path().join(&setting.file);
    if !directory.has(&setting.file) {
        let harmless = match setting.absent {
            Absent::Fails => false,
            Absent::Harmless => true,
            Absent::ReplacedBy(other) => directory.has(other),
            // A kernel without swap (CONFIG_SWAP) has no such file in /proc either.
            Absent::HarmlessWithoutSwap => !std::path::Path::new("/proc/swaps").exists(),
        };
        return if harmless { Ok(false) } else { Err(CgroupError::NoFile { field: setting.field.clone(), file }) };
    }
    match directory.write(&setting.file, &setting.value) {
        // More than the kernel can count to.
        Err(error) if is(&error, Errno::RANGE) && is_set(setting) => {
            return Err(unavailable(setting, &directory.read(&effective(setting)).unwrap_or_default()));
        }
        result => result.map_err(|source| CgroupError::Set {
            field: setting.field.clone(),
            value: setting.value.clone(),
            file,
            source,
        })?,
    }
    check_set(directory, setting)?;
    Ok(true)
}

fn is_set(setting: &Setting) -> bool {
    matches!(setting.file.as_str(), "cpuset.cpus" | "cpuset.mems")
}

fn effective(setting: &Setting) -> String {
    format!("{}.effective", setting.file)
}

fn unavailable(setting: &Setting, effective: &str) -> CgroupError {
    CgroupError::Cpuset {
        field: setting.field.clone(),
        asked: setting.value.clone(),
        effective: effective.trim().to_owned(),
    }
}

/// A set of processors outside of the parent's is taken by the kernel and then not followed.
fn check_set(directory: &Directory, setting: &Setting) -> Result<(), CgroupError> {
    if !is_set(setting) {
        return Ok(());
    }
    let Ok(effective) = directory.read(&effective(setting)) else { return Ok(()) };
    if parse_list(&effective) == parse_list(&setting.value) { Ok(()) } else { Err(unavailable(setting, &effective)) }
}
