//! The first use of a volume: it gets what the image has where it is mounted, owners and all.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use coracle_images::copy_up;
use coracle_runtime::IdMap;

use super::{Volume, VolumeError, create, lock};
use crate::engine::quota::{Charge, DiskLimit};
use crate::engine::{EngineError, elsewhere};

/// Makes sure that a volume is there and has been offered the image's files once.
///
/// `copy` is the mount point in the image whose layers (bottom first) are `layers`; None leaves the
/// volume as it is. Killed at any moment, the volume is untouched and still fresh, or filled.
pub fn make_ready(
    root: &Path,
    name: &str,
    idmap: &IdMap,
    copy: Option<(&[PathBuf], &Path)>,
) -> Result<Volume, EngineError> {
    let (volume, _) = create(root, name, Default::default(), None, Charge::Nothing)?;
    if !volume.path.join("fresh").exists() {
        return Ok(volume);
    }
    let Some(locked) = lock(root, name)? else {
        return Err(VolumeError::Unsteady { name: name.to_owned() }.into());
    };
    let (fresh, data) = (locked.path.join("fresh"), locked.path.join("data"));
    if !fresh.exists() {
        return Ok(volume);
    }
    let failed = |op| VolumeError::io(op, &locked.path);
    if fs_err::read_dir(&data).map_err(failed("read"))?.next().is_none() {
        let filling = locked.path.join("filling");
        elsewhere::call(idmap, || {
            coracle_images::remove_tree(&filling).map_err(failed("remove"))?;
            fs_err::create_dir(&filling).map_err(failed("make"))?;
            let done = match copy {
                Some((layers, path)) if !layers.is_empty() => copy_up(layers, path, &filling)?,
                _ => false,
            };
            if !done {
                own_by_root(&filling, idmap).map_err(failed("give to the container's root"))?;
            }
            fs_err::rename(&filling, &data).map_err(failed("fill"))?;
            Ok(())
        })?;
    }
    fs_err::remove_file(&fresh).map_err(failed("complete"))?;
    Ok(volume)
}

/// Makes the volume of one container, which its start fills: nobody else knows its name.
pub fn make_anonymous(root: &Path, name: &str, container: &str, disk: Option<&DiskLimit>) -> Result<(), EngineError> {
    let charge = disk.map_or(Charge::Nothing, Charge::Container);
    let (volume, _) = create(root, name, Default::default(), Some(container), charge)?;
    let fresh = volume.path.join("fresh");
    Ok(fs_err::remove_file(&fresh).map_err(VolumeError::io("complete", &fresh))?)
}

/// Docker's empty volume: root's, 0755.
fn own_by_root(path: &Path, idmap: &IdMap) -> std::io::Result<()> {
    fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if idmap.is_single() { Ok(()) } else { chown(path, Some(0), Some(0)) }
}
